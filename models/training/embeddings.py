"""What the shipped beginnings of a network see in a tile: features that no label had a part in."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.training.fit import load_weights
from models.training.networks import OURS, build
from models.training.train import pretrained_weights

FRONT_ENDS = ("contrast", "fine", "raw")
EMBEDDING_COUNT = 512
"""Average and strongest of the 256 channels of the last feature map."""
_BATCH = 32


def embeddings(tiles: NDArray[np.uint8], front_end: str) -> NDArray[np.float32]:
    """float32 (n, `EMBEDDING_COUNT`) of tiles uint8 (n, 1, 224, 224), by the pre-trained weights of
    a front end. Raises `DataError` where they are missing."""
    network = load_weights(build(OURS, front_end, seed=1), pretrained_weights(front_end)).eval()
    parts = [np.empty((0, EMBEDDING_COUNT), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tiles), _BATCH):
            seen = network.features(torch.from_numpy(tiles[start : start + _BATCH]))
            both = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
            parts.append(both.numpy())
    return np.concatenate(parts)
