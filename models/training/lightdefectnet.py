"""LightDefectNet: two-column attention-condensing network for 224 x 224 grey tiles.

After Xu et al., "LightDefectNet" (2023): visual attention condensers (Wong et al., 2020) early, two
columns that are independent early and exchange late, anti-aliased downsampling (Zhang, 2019)
everywhere after the input layer, and two heads. The layer sizes are our own: no implementation is
public. Channel counts are multiples of 16, so that ONNX Runtime keeps its blocked layout.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.training.front_end import FRONT_ENDS, TILE_PX

CELLS = TILE_PX // 32
"""Cells a side of the last feature map."""

# Parts


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size (or halves it), batch norm, and mostly ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        groups: int = 1,
        stride: int = 1,
        is_active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU() if is_active else nn.Identity()


class BlurPool(nn.Module):
    """Anti-aliased downsampling by two: a fixed [1 2 1] binomial filter, then every other pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


class AttentionCondenser(nn.Module):
    """Visual attention condenser: V' = S * V * A, with A computed at half resolution.

    Condense (strongest activation, anti-aliased), embed (depthwise 3 x 3 and 1 x 1), squash,
    expand. S scales each channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.condense = nn.Sequential(nn.MaxPool2d(3, 1, 1), BlurPool(channels))
        self.embed = nn.Sequential(
            ConvNorm(channels, channels, 3, groups=channels),
            ConvNorm(channels, channels, is_active=False),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))

    def forward(self, values: Tensor) -> Tensor:
        attention = torch.sigmoid(self.embed(self.condense(values)))
        attention = F.interpolate(attention, scale_factor=2, mode="nearest")
        return self.scale * (values * attention)


class FoldedCondenser(AttentionCondenser):
    """The same with S moved into the next linear operation; made by `prepare_for_export`."""

    def forward(self, values: Tensor) -> Tensor:
        attention = torch.sigmoid(self.embed(self.condense(values)))
        return values * F.interpolate(attention, scale_factor=2, mode="nearest")


# Blocks


class EarlyColumns(nn.Module):
    """Two columns that look at the same input differently and do not talk to each other.

    Column A attends before it filters, column B filters before it attends; then both are halved.
    """

    def __init__(self, channels: int, column_a: nn.Module, column_b: nn.Module) -> None:
        super().__init__()
        self.attend_a = AttentionCondenser(channels)
        self.filter_a = column_a
        self.filter_b = column_b
        self.attend_b = AttentionCondenser(channels)
        self.down_a, self.down_b = BlurPool(channels), BlurPool(channels)

    def forward(self, x: Tensor) -> Tensor:
        a = self.filter_a(self.attend_a(x))
        b = self.attend_b(self.filter_b(x))
        return torch.cat([self.down_a(a), self.down_b(b)], dim=1)


class ExchangeBlock(nn.Module):
    """Columns filter apart (grouped 3 x 3), then exchange (1 x 1), around a shortcut."""

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.filter = ConvNorm(channels, channels, 3, groups=columns)
        self.exchange = ConvNorm(channels, channels, is_active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.exchange(self.filter(x)))


def _separable(channels: int, kernel: int) -> nn.Sequential:
    """Depthwise and 1 x 1: at 56 x 56 a dense 3 x 3 of 16 channels costs four times as much."""
    return nn.Sequential(
        ConvNorm(channels, channels, kernel, groups=channels), ConvNorm(channels, channels)
    )


# Network


class LightDefectNet(nn.Module):
    """Tiles (n, 1, 224, 224) uint8 -> logits (n, 2 heads, 2): good, defective."""

    def __init__(self, front_end: str = "contrast") -> None:
        super().__init__()
        self.front_end_name = front_end
        self.front_end = FRONT_ENDS[front_end]()
        channels = self.front_end.channels
        self.stem = nn.Sequential(ConvNorm(channels, 16, 3, stride=2), BlurPool(16))
        self.stage1 = EarlyColumns(16, _separable(16, 3), _separable(16, 3))
        self.stage2 = EarlyColumns(32, ConvNorm(32, 32, 3, groups=2), _separable(32, 5))
        self.stage3 = nn.Sequential(
            ExchangeBlock(64, 4), ExchangeBlock(64, 4), ConvNorm(64, 128), BlurPool(128)
        )
        self.stage4 = nn.Sequential(
            ConvNorm(128, 256),
            ExchangeBlock(256, 16),
            ExchangeBlock(256, 16),
            ExchangeBlock(256, 16),
        )
        self.heads = nn.Linear(2 * 256, 4)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.classify(self.features(tiles))

    def features(self, tiles: Tensor) -> Tensor:
        """(n, 256, 7, 7): what each cell of 32 px shows, with its surroundings."""
        x = self.stem(self.front_end(tiles))
        features: Tensor = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits of the average and the strongest of all cells."""
        pooled = torch.cat([F.avg_pool2d(features, CELLS), F.max_pool2d(features, CELLS)], dim=1)
        logits: Tensor = self.heads(pooled.flatten(1)).view(-1, 2, 2)
        return logits

    def cell_weights(self) -> Tensor:
        """(1, 256, 1, 1): what a cell's features would add to the log odds of a defect if all
        other cells were dark (class-activation mapping, Zhou et al., 2016)."""
        average, strongest = self.heads.weight.view(2, 2, 2, -1).mean(dim=0).diff(dim=0)[0]
        return (average / CELLS**2 + strongest).view(1, -1, 1, 1)


class Exported(nn.Module):
    """What is exported: the mean of both heads' softmax, (n, 2): good, defective; and where the
    evidence lies, (n, 1, 7, 7), one value per cell of 32 px."""

    def __init__(self, network: LightDefectNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("cell_weights", network.cell_weights().detach())

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(tiles)
        probabilities = F.softmax(self.network.classify(features), dim=2).mean(dim=1)
        return probabilities, F.conv2d(features, self.cell_weights)


def prepare_for_export(network: LightDefectNet) -> Exported:
    """A copy in eval mode that computes the same in fewer operations: norms, scales folded."""
    return Exported(fold(network)).eval()


def fold(network: LightDefectNet) -> LightDefectNet:
    """As of `prepare_for_export`, still with its own outputs."""
    network = copy.deepcopy(network).eval()
    for stage in (network.stage1, network.stage2):
        _fold_scales(stage)
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return network


def _fold_scales(stage: EarlyColumns) -> None:
    """Column A's scale goes into its filter, column B's into its blur kernels."""
    first = stage.filter_a
    conv = (first if isinstance(first, ConvNorm) else first[0]).conv
    scale_a = stage.attend_a.scale.data.view(conv.groups, 1, -1, 1, 1)
    weight = conv.weight.data
    grouped = weight.view(conv.groups, -1, *weight.shape[1:])
    conv.weight.data = (grouped * scale_a).view_as(weight)
    stage.down_b.kernel *= stage.attend_b.scale.data[:, None]
    for condenser in (stage.attend_a, stage.attend_b):
        condenser.__class__ = FoldedCondenser
