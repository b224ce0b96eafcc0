"""What would running the network once over a whole strip gain, against tile by tile?

    python benchmarks/strip_inference.py

One thread, one tile row of 4096 px at the station's step of 192 px: 22 tiles in chunks of 5 against
one pass over the strip, front end `raw` (the cells of the others would have to be aligned first).
Interleaved; the median of the ratios is printed. Both compute the last feature map only.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from models.classifier import CHUNK_TILES, processor_name
from models.training.lightdefectnet import LightDefectNet, prepare_for_export

WIDTH_PX, TILE_PX, STEP_PX = 4096, 224, 192
ROUNDS = 20


class Features(nn.Module):
    """The exported network up to its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.network = prepare_for_export(LightDefectNet("raw")).network

    def forward(self, tiles: Tensor) -> Tensor:
        return self.network.features(tiles)


def session(example: Tensor, dynamic_shapes: Any) -> ort.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Features().eval(), (example,), dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def main() -> None:
    tiles_of = -(-(WIDTH_PX - TILE_PX) // STEP_PX) + 1
    batch = {0: torch.export.Dim("n", min=1, max=4096)}
    by_tile = session(torch.zeros((2, 1, TILE_PX, TILE_PX), dtype=torch.uint8), (batch,))
    by_strip = session(torch.zeros((1, 1, TILE_PX, WIDTH_PX), dtype=torch.uint8), None)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (tiles_of, 1, TILE_PX, TILE_PX), np.uint8)
    strip = rng.integers(0, 256, (1, 1, TILE_PX, WIDTH_PX), np.uint8)
    ratios = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for first in range(0, tiles_of, CHUNK_TILES):
            by_tile.run(None, {by_tile.get_inputs()[0].name: tiles[first : first + CHUNK_TILES]})
        between = time.perf_counter()
        by_strip.run(None, {by_strip.get_inputs()[0].name: strip})
        ratios.append((between - started) / (time.perf_counter() - between))
    print(f"{tiles_of} tiles take {np.median(ratios):.2f} x the time of their strip")
    print(processor_name())


if __name__ == "__main__":
    main()
