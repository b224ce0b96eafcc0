"""A network that knows good cells: how far the strangest cell of a tile is from them.

The features of each cell of 32 px (`LightDefectNet.features`) are held against one Gaussian around
the mean of their place in the tile (as PaDiM, Defard et al. 2021, with one covariance: a plate lies
anywhere under the grid). Whitening is a 1 x 1 convolution, so that all is one graph with the
outputs of every other model. `good_plates` fills in the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.lightdefectnet import CELLS, LightDefectNet, fold

PATCHES = "patches"
"""The network's name in a run."""
CHANNELS = 256
REACH = 3.0
"""Log odds between the middle good plate, the strangest one, and where a plate fails."""


class PatchNetwork(nn.Module):
    """Tiles (n, 1, 224, 224) uint8 -> logits (n, 1 head, 2): good, strange."""

    centre: Tensor
    spread: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, front_end: str) -> None:
        super().__init__()
        self.trunk = LightDefectNet(front_end)
        self.register_buffer("mean", torch.zeros(1, CHANNELS, CELLS, CELLS))
        self.register_buffer("whitening", torch.eye(CHANNELS)[:, :, None, None])
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @property
    def front_end(self) -> nn.Module:
        return self.trunk.front_end

    def forward(self, tiles: Tensor) -> Tensor:
        strangest = self.strangeness(self.trunk.features(tiles)).amax(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(strangest), strangest], dim=1)[:, None]

    def strangeness(self, features: Tensor) -> Tensor:
        """(n, 1, 7, 7): log odds of each cell, -REACH at the middle good plate's strangest."""
        white = F.conv2d(features - self.mean, self.whitening)
        distance = white.square().sum(dim=1, keepdim=True)
        return (torch.log(distance + 1e-6) - self.centre) / self.spread


class ExportedPatches(nn.Module):
    """Probabilities (n, 2) and where a tile is stranger than good plates' strangest mostly are,
    (n, 1, 7, 7)."""

    def __init__(self, network: PatchNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.network.strangeness(self.network.trunk.features(tiles))
        strange = torch.sigmoid(F.max_pool2d(cells, CELLS).flatten(1))
        return torch.cat([1 - strange, strange], dim=1), cells + REACH


def prepare_patches(network: PatchNetwork) -> ExportedPatches:
    """A copy in eval mode with norms and scales folded."""
    folded = PatchNetwork(str(network.trunk.front_end_name))
    folded.load_state_dict(network.state_dict())
    folded.trunk = fold(network.trunk)
    return ExportedPatches(folded).eval()
