"""Our network without one of the things that its paper names, to see what each does."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.training.lightdefectnet import (
    AttentionCondenser,
    BlurPool,
    LightDefectNet,
)


class EveryOther(nn.Module):
    """Downsampling by two without a filter before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


def without_attention(network: LightDefectNet) -> None:
    """No visual attention condensers: columns only filter."""
    _replace(network, AttentionCondenser, lambda _: nn.Identity())


def without_anti_aliasing(network: LightDefectNet) -> None:
    """Every other pixel is dropped instead of blurred."""
    _replace(network, BlurPool, lambda _: EveryOther())


def without_columns(network: LightDefectNet) -> None:
    """Both early columns alike: two of the kind A."""
    twin = LightDefectNet()
    for stage, other in ((network.stage1, twin.stage1), (network.stage2, twin.stage2)):
        stage.filter_b = nn.Sequential(other.attend_a, other.filter_a)
        stage.attend_b = nn.Identity()


def _replace(
    network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> None:
    for name, module in list(network.named_children()):
        if isinstance(module, kind):
            setattr(network, name, make(module))
        else:
            _replace(module, kind, make)


WITHOUT_L1 = "lightdefectnet-without-l1"
"""Differs in its loss only."""
ABLATIONS: dict[str, Callable[[LightDefectNet], None]] = {
    "lightdefectnet-without-vac": without_attention,
    "lightdefectnet-without-aads": without_anti_aliasing,
    "lightdefectnet-without-columns": without_columns,
    WITHOUT_L1: lambda network: None,
}
