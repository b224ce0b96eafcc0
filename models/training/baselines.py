"""The networks that LightDefectNet is measured against, from pytorchcv, with two classes.

ResNet-50 is the original (it strides in the first 1 x 1 of a block), MnasNet is A1 of its paper.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

BASELINES = ("resnet50", "efficientnet_b0", "mnasnet", "mobilenetv3_large")

_PLACES = {
    "resnet50": ("resnet", "resnet50"),
    "efficientnet_b0": ("efficientnet", "efficientnet_b0"),
    "mnasnet": ("mnasnet", "mnasnet_a1"),
    "mobilenetv3_large": ("mobilenetv3", "mobilenetv3_large_w1"),
}


def build(name: str, channels: int) -> nn.Module:
    """A baseline with random weights: float32 (n, channels, 224, 224) -> logits float32 (n, 2).

    Raises ValueError for a name that is not in `BASELINES`, ModuleNotFoundError without pytorchcv.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    file, function = _PLACES[name]
    # Its `model_provider` imports every network, and those torchvision.
    module = import_module(f"pytorchcv.models.{file}")
    network: nn.Module = getattr(module, function)(in_channels=channels, num_classes=2)
    return network
