"""The layer table of our network, from one pass through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.front_end import TILE_PX
from models.training.lightdefectnet import BlurPool, ConvNorm, LightDefectNet


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer: of one tile, norms folded as they are exported."""

    stage: str
    layer: str
    output: tuple[int, int, int]
    """Channels, rows, columns."""
    parameters: int
    macs: int


def layer_rows(network: LightDefectNet) -> list[LayerRow]:
    """Every convolution, blur and linear layer in the order in which a tile passes it."""
    rows: list[LayerRow] = []
    hooks = [
        module.register_forward_hook(_recorder(name, rows))
        for name, module in network.named_modules()
        if isinstance(module, ConvNorm | BlurPool | nn.Linear)
    ]
    with torch.inference_mode():
        network.eval()(torch.zeros((1, 1, TILE_PX, TILE_PX), dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return rows


def markdown(rows: list[LayerRow]) -> str:
    """The table with its sums."""
    lines = ["| stage | layer | output | parameters | M MACs |", "|---|---|---|--:|--:|"]
    for row in rows:
        shape = " x ".join(map(str, row.output))
        lines.append(
            f"| {row.stage} | {row.layer} | {shape} | {row.parameters:,} | {row.macs / 1e6:.3f} |"
        )
    parameters, macs = sum(r.parameters for r in rows), sum(r.macs for r in rows)
    lines.append(f"| | sum | | {parameters:,} | {macs / 1e6:.3f} |")
    return "\n".join(lines)


def _recorder(name: str, rows: list[LayerRow]):  # type: ignore[no-untyped-def]  # torch's own type
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stage, _, place = name.partition(".")
        shape = tuple(output.shape[1:]) if output.ndim == 4 else (output.shape[1], 1, 1)
        words, parameters, macs_per_value = _layer(module)
        macs = math.prod(shape) * macs_per_value
        rows.append(
            LayerRow(stage, f"{place}: {words}" if place else words, shape, parameters, macs)
        )

    return record


def _layer(module: nn.Module) -> tuple[str, int, int]:
    """In words, its parameters, and the multiply-accumulates of one output value."""
    if isinstance(module, ConvNorm):
        conv = module.conv
        size = conv.kernel_size[0]
        words = f"{size} x {size}"
        words += f", {conv.groups} groups" if 1 < conv.groups < conv.in_channels else ""
        words += ", depthwise" if conv.groups == conv.in_channels > 1 else ""
        words += ", stride 2" if conv.stride[0] == 2 else ""
        each = conv.in_channels // conv.groups * size * size
        return words, conv.out_channels * (each + 1), each
    if isinstance(module, BlurPool):
        return "blur [1 2 1], stride 2, fixed", 0, 9
    assert isinstance(module, nn.Linear)
    return "linear", module.out_features * (module.in_features + 1), module.in_features
