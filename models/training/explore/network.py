"""From a spec to a network of LightDefectNet's building blocks."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.training.explore.space import Spec, to_row
from models.training.front_end import FRONT_ENDS, TILE_PX
from models.training.lightdefectnet import ConvNorm

CELLS = TILE_PX // 32
TAPS = {"rect-2": (1, 1), "binomial-3": (1, 2, 1), "binomial-5": (1, 4, 6, 4, 1)}
"""Filters of anti-aliased downsampling (Zhang, 2019), before they are scaled to the sum 1."""
_COLUMN_PX = 16
"""Channels of a group of an early grouped filter."""

# Parts


class Blur(nn.Module):
    """Anti-aliased downsampling by two: a fixed filter, then every other pixel."""

    def __init__(self, channels: int, taps: str) -> None:
        super().__init__()
        self.taps = taps
        row = torch.tensor(TAPS[taps], dtype=torch.float32)
        kernel = torch.outer(row, row) / row.sum() ** 2
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padding = (self.kernel.shape[2] - 1) // 2
        return F.conv2d(x, self.kernel, stride=2, padding=padding, groups=x.shape[1])


class Condenser(nn.Module):
    """Visual attention condenser: V' = S * V * A, with A computed at 1 / step of the resolution."""

    def __init__(self, channels: int, embed: str, step: int, taps: str) -> None:
        super().__init__()
        self.kind, self.step = embed, step
        blurs = [Blur(channels, taps) for _ in range(1 if step == 2 else 2)]
        self.condense = nn.Sequential(nn.MaxPool2d(3, 1, 1), *blurs)
        groups = {"separable": channels, "grouped": channels // _COLUMN_PX}
        filters = [ConvNorm(channels, channels, 3, groups[embed])] if embed in groups else []
        self.embed = nn.Sequential(*filters, ConvNorm(channels, channels, is_active=False))
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))
        self.is_folded = False
        """S is in the next linear operation; made so by `prepare_for_export`."""

    def forward(self, values: Tensor) -> Tensor:
        attention = torch.sigmoid(self.embed(self.condense(values)))
        attended = values * F.interpolate(attention, scale_factor=self.step, mode="nearest")
        return attended if self.is_folded else self.scale * attended


class Residual(nn.Module):
    """Two filters around a shortcut, which is a 1 x 1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel, groups if inputs == outputs else 1)
        self.second = ConvNorm(outputs, outputs, kernel, groups, is_active=False)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, is_active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(self.first(x)))


class Exchange(nn.Module):
    """Columns filter apart, then exchange (1 x 1), around a shortcut."""

    def __init__(self, channels: int, kernel: int, groups: int, exchange_groups: int = 1) -> None:
        super().__init__()
        self.filter = ConvNorm(channels, channels, kernel, groups)
        self.exchange = ConvNorm(channels, channels, 1, exchange_groups, is_active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.exchange(self.filter(x)))


def column_filter(kind: str, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """The filter of an early column."""
    if kind == "separable":
        return nn.Sequential(ConvNorm(inputs, inputs, kernel, inputs), ConvNorm(inputs, outputs))
    if kind == "pointwise first":
        return nn.Sequential(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs, kernel, outputs))
    if kind == "grouped":
        # Both widths are multiples of 16, so this is a number of groups that divides both.
        groups = inputs // _COLUMN_PX if outputs % inputs == 0 else 1
        return ConvNorm(inputs, outputs, kernel, groups)
    if kind == "dense":
        return ConvNorm(inputs, outputs, kernel)
    return Residual(inputs, outputs, kernel)


class Column(nn.Module):
    """An early column: attends "before" it filters, "after" it, or not ("none"); then is halved."""

    def __init__(
        self, attend: str, condenser: Condenser | None, filters: nn.Module, down: Blur
    ) -> None:
        super().__init__()
        self.attend, self.condenser = attend, condenser
        self.filter, self.down = filters, down

    def forward(self, x: Tensor) -> Tensor:
        if self.condenser is not None and self.attend == "before":
            x = self.condenser(x)
        x = self.filter(x)
        if self.condenser is not None and self.attend == "after":
            x = self.condenser(x)
        return self.down(x)


class EarlyColumns(nn.Module):
    """Two columns that do not talk to each other, side by side."""

    def __init__(self, column_a: Column, column_b: Column) -> None:
        super().__init__()
        self.column_a, self.column_b = column_a, column_b

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.column_a(a), self.column_b(b)


def late_block(kind: str, channels: int, group: int, is_exchanging: bool) -> nn.Module:
    """A block of a late stage with columns of at most `group` channels."""
    groups = channels // math.gcd(channels, group)
    if kind == "exchange":
        return Exchange(channels, 3, groups, 1 if is_exchanging else groups)
    if kind == "separable":
        return Exchange(channels, 3, channels, 1 if is_exchanging else groups)
    return Residual(channels, channels, 3, groups)


# Network


class Explored(nn.Module):
    """Tiles (n, 1, 224, 224) uint8 -> logits (n, 2 heads, 2): good, defective."""

    def __init__(self, spec: Spec, front_end: str) -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]()
        self.pooling, self.is_apart = spec.pooling, spec.input2 == "own"
        taps = spec.early_filter
        self.stem = nn.Sequential(
            ConvNorm(self.front_end.channels, spec.stem_width, spec.stem_kernel, stride=2),
            Blur(spec.stem_width, taps),
        )
        width = spec.stem_width
        self.stage1 = EarlyColumns(_column(spec, "a1", width), _column(spec, "b1", width))
        both = spec.a1_width + spec.b1_width
        self.stage2 = EarlyColumns(
            _column(spec, "a2", spec.a1_width if self.is_apart else both),
            _column(spec, "b2", spec.b1_width if self.is_apart else both),
        )
        width = spec.a2_width + spec.b2_width
        stage3 = [ConvNorm(width, spec.width3)] if width != spec.width3 and spec.blocks3 else []
        width = spec.width3 if spec.blocks3 else width
        stage3 += _blocks(spec.block3, spec.blocks3, width, spec.group3, spec.exchange3)
        stage3 += [ConvNorm(width, spec.exit3)] if width != spec.exit3 else []
        self.stage3 = nn.Sequential(*stage3, Blur(spec.exit3, spec.late_filter))
        stage4 = [ConvNorm(spec.exit3, spec.width4)] if spec.exit3 != spec.width4 else []
        stage4 += _blocks(spec.block4, spec.blocks4, spec.width4, spec.group4, spec.exchange4)
        self.stage4 = nn.Sequential(*stage4)
        pooled = 2 if spec.pooling == "average and strongest" else 1
        self.heads = nn.Linear(pooled * spec.width4, 4)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.classify(self.features(tiles))

    def features(self, tiles: Tensor) -> Tensor:
        """(n, channels, 7, 7)."""
        return self.trunk(self.front_end(tiles))

    def trunk(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.stage1(x, x)
        if not self.is_apart:
            a = b = torch.cat([a, b], dim=1)
        features: Tensor = self.stage4(self.stage3(torch.cat(self.stage2(a, b), dim=1)))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits of what is pooled of all cells."""
        parts = []
        if self.pooling != "strongest":
            parts.append(F.avg_pool2d(features, CELLS))
        if self.pooling != "average":
            parts.append(F.max_pool2d(features, CELLS))
        pooled = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        logits: Tensor = self.heads(pooled.flatten(1)).view(-1, 2, 2)
        return logits

    def cell_weights(self) -> Tensor:
        """(1, channels, 1, 1): see `LightDefectNet.cell_weights`."""
        weights = self.heads.weight.view(2, 2, -1).mean(dim=0).diff(dim=0)[0]
        if self.pooling == "average":
            weights = weights / CELLS**2
        elif self.pooling == "average and strongest":
            average, strongest = weights.view(2, -1)
            weights = average / CELLS**2 + strongest
        return weights.view(1, -1, 1, 1)


def build(spec: Spec, front_end: str = "fine", seed: int = 0) -> Explored:
    """A network with weights that only `seed` decides."""
    torch.manual_seed(seed)
    return Explored(spec, front_end)


def _column(spec: Spec, place: str, inputs: int) -> Column:
    row = to_row(spec)
    attend, kind = str(row[f"{place}_attend"]), str(row[f"{place}_filter"])
    outputs, kernel = int(row[f"{place}_width"]), int(row[f"{place}_kernel"])
    taps = spec.early_filter
    condenser = None
    if attend != "none":
        channels = inputs if attend == "before" else outputs
        condenser = Condenser(channels, spec.condenser_embed, spec.condenser_step, taps)
    filters = column_filter(kind, inputs, outputs, kernel)
    return Column(attend, condenser, filters, Blur(outputs, taps))


def _blocks(kind: str, count: int, channels: int, group: int, exchange: str) -> list[nn.Module]:
    return [
        late_block(kind, channels, group, exchange == "every" or number == count - 1)
        for number in range(count)
    ]


class Exported(nn.Module):
    """What is exported, as of `lightdefectnet.Exported`."""

    def __init__(self, network: Explored) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("cell_weights", network.cell_weights().detach())

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(tiles)
        probabilities = F.softmax(self.network.classify(features), dim=2).mean(dim=1)
        return probabilities, F.conv2d(features, self.cell_weights)


def prepare_for_export(network: Explored) -> Exported:
    """A copy in eval mode that computes the same in fewer operations: norms, scales folded."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, Column):
            _fold_scale(module)
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return Exported(network).eval()


def _fold_scale(column: Column) -> None:
    """S goes into what follows: the filter's first convolutions, or the blur's kernel."""
    if column.condenser is None:
        return
    shortcut = column.filter.shortcut if isinstance(column.filter, Residual) else None
    if column.attend == "before" and isinstance(shortcut, nn.Identity):
        return  # a shortcut without a convolution takes no scale
    scale = column.condenser.scale.data
    column.condenser.is_folded = True
    if column.attend == "after":
        column.down.kernel *= scale[:, None]
        return
    if isinstance(column.filter, Residual):
        for branch in (column.filter.first, column.filter.shortcut):
            _scale_input(branch.conv, scale)
        return
    first = column.filter if isinstance(column.filter, ConvNorm) else column.filter[0]
    _scale_input(first.conv, scale)


def _scale_input(conv: nn.Conv2d, scale: Tensor) -> None:
    weight = conv.weight.data
    grouped = weight.view(conv.groups, -1, *weight.shape[1:])
    conv.weight.data = (grouped * scale.view(conv.groups, 1, -1, 1, 1)).view_as(weight)
