"""From a PyTorch module to bytes of ONNX that every runtime of ours takes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from models.graph import check_self_contained
from models.training.front_end import TILE_PX

OPSET = 18


def graph_of(module: nn.Module, outputs: tuple[str, ...]) -> bytes:
    """One self-contained graph with the input `tiles` uint8 (n, 1, 224, 224)."""
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            (torch.zeros((2, 1, TILE_PX, TILE_PX), dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=4096)},),
            input_names=["tiles"],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    check_self_contained(model)
    return model


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's words on torchvision, which nobody needs here, and on itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
