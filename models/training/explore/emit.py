"""A found network as one readable file, like `lightdefectnet`: its layers written out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn

from models.training.explore import network as parts
from models.training.explore.network import (
    Blur,
    Column,
    Condenser,
    EarlyColumns,
    Exchange,
    Explored,
    Residual,
    build,
)
from models.training.explore.space import Spec
from models.training.lightdefectnet import ConvNorm

_LINE = 100
_HEAD = '''"""{title}

Written by `vqi model explore emit`; the layers are what the search chose, the parts are those of
`models.training.explore.network`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.front_end import FRONT_ENDS, TILE_PX
from models.training.lightdefectnet import ConvNorm

CELLS = TILE_PX // 32
TAPS = {taps}
_COLUMN_PX = 16

# Parts

'''
_CLASS = '''
# Network


class {name}(nn.Module):
    """Tiles (n, 1, 224, 224) uint8 -> logits (n, 2 heads, 2): good, defective."""

    def __init__(self, front_end: str = "{front_end}") -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]()
        self.pooling, self.is_apart = {pooling!r}, {is_apart}
{layers}

'''
_METHODS = ("forward", "features", "trunk", "classify", "cell_weights")


def source(spec: Spec, name: str, title: str, front_end: str) -> str:
    """Python source of a module with the class `name`, whose state dict is that of
    `build(spec, front_end)`."""
    network = build(spec, front_end)
    used = {type(module) for module in network.modules()}
    classes = [c for c in (Blur, Condenser, Residual, Exchange, Column, EarlyColumns) if c in used]
    text = _HEAD.format(title=title, taps=parts.TAPS)
    text += "\n\n".join(f"{inspect.getsource(each)}" for each in classes)
    layers = "\n".join(
        f"        self.{stage} = {_written(getattr(network, stage), 8)}"
        for stage in ("stem", "stage1", "stage2", "stage3", "stage4", "heads")
    )
    text += "\n" + _CLASS.format(
        name=name,
        front_end=front_end,
        pooling=network.pooling,
        is_apart=network.is_apart,
        layers=layers,
    )
    return (
        text.rstrip()
        + "\n\n"
        + "\n".join(inspect.getsource(getattr(Explored, method)) for method in _METHODS)
    )


def _written(module: nn.Module, indent: int) -> str:
    """A module as the call that makes it, broken into lines where it is long."""
    name, arguments = _call(module, indent + 4)
    line = f"{name}({', '.join(arguments)})"
    if "\n" not in line and len(line) + indent + 16 <= _LINE:
        return line
    inner = " " * (indent + 4)
    return f"{name}(\n" + "".join(f"{inner}{a},\n" for a in arguments) + " " * indent + ")"


def _call(module: nn.Module, indent: int) -> tuple[str, Sequence[str]]:
    if isinstance(module, nn.Linear):
        return "nn.Linear", [str(module.in_features), str(module.out_features)]
    if isinstance(module, ConvNorm):
        return "ConvNorm", _conv_norm(module)
    if isinstance(module, Blur):
        return "Blur", [str(module.kernel.shape[0]), f'"{module.taps}"']
    if isinstance(module, Condenser):
        taps = module.condense[1].taps
        return "Condenser", [
            str(len(module.scale)), f'"{module.kind}"', str(module.step), f'"{taps}"',
        ]  # fmt: skip
    if isinstance(module, Residual):
        first, second = module.first.conv, module.second.conv
        sizes = (first.in_channels, second.out_channels, second.kernel_size[0], second.groups)
        return "Residual", list(map(str, sizes))
    if isinstance(module, Exchange):
        conv, exchange = module.filter.conv, module.exchange.conv
        sizes = (conv.in_channels, conv.kernel_size[0], conv.groups, exchange.groups)
        return "Exchange", list(map(str, sizes))
    if isinstance(module, Column):
        condenser = _written(module.condenser, indent) if module.condenser else "None"
        filters, down = _written(module.filter, indent), _written(module.down, indent)
        return "Column", [f'"{module.attend}"', condenser, filters, down]
    name = "EarlyColumns" if isinstance(module, EarlyColumns) else "nn.Sequential"
    return name, [_written(child, indent) for child in module.children()]


def _conv_norm(module: ConvNorm) -> list[str]:
    conv = module.conv
    arguments = [str(conv.in_channels), str(conv.out_channels)]
    if conv.kernel_size[0] > 1:
        arguments.append(str(conv.kernel_size[0]))
    if conv.groups > 1:
        arguments.append(f"groups={conv.groups}")
    if conv.stride[0] > 1:
        arguments.append(f"stride={conv.stride[0]}")
    if isinstance(module.act, nn.Identity):
        arguments.append("is_active=False")
    return arguments
