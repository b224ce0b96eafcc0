"""What a network sees of a tile: fixed arithmetic on grey levels, nothing learned.

Every front end takes tiles uint8 (n, 1, 224, 224) and gives float32 (n, channels, 224, 224) of
about unit spread. Its constants are fixed: nothing depends on a tile's own extremes, so equal
pixels are equal whatever lies beside them. Which one serves a product is chosen by
cross-validation and written on the card.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE_PX = 224
LOCAL_PX = 32
"""Side of the cells whose mean is the local brightness: several dots of a lattice, and larger than
a defect, which would else take part in what it is compared with."""


class RawLevels(nn.Module):
    """Grey levels, shifted and scaled: brightness itself is evidence."""

    channels = 1
    words = "grey levels: (x - middle) / spread"

    def __init__(self) -> None:
        super().__init__()
        self.constants = {"middle": 110.0, "spread": 40.0}

    def forward(self, tiles: Tensor) -> Tensor:
        return (tiles.float() - self.constants["middle"]) * (1 / self.constants["spread"])


class LocalContrast(nn.Module):
    """Grey levels relative to the local brightness: unmoved by gain and slow illumination."""

    channels = 1
    words = (
        "grey levels relative to the local brightness: (x + dark_level) * r - contrast_gain, r = "
        "bilinear interpolation of contrast_gain / (m + dark_level), m = means of local_px cells"
    )

    def __init__(self) -> None:
        super().__init__()
        self.constants = {
            "local_px": float(LOCAL_PX),
            # Keeps a dark tile's noise from being blown up, in 8-bit levels.
            "dark_level": 16.0,
            # Brings the relative contrast of dot lattices to about unit spread.
            "contrast_gain": 4.0,
        }
        cells = TILE_PX // LOCAL_PX
        self.register_buffer("average", torch.eye(cells).repeat_interleave(LOCAL_PX, 1) / LOCAL_PX)
        self.register_buffer("expand", _bilinear_matrix(cells, LOCAL_PX))

    def forward(self, tiles: Tensor) -> Tensor:
        dark, gain = self.constants["dark_level"], self.constants["contrast_gain"]
        levels = tiles.float()
        # As matrix products: ONNX Runtime's average pooling takes longer than the stem.
        cells = self.average @ levels @ self.average.T
        relative = self.expand @ (gain / (cells + dark)) @ self.expand.T
        return (levels + dark) * relative - gain


def _bilinear_matrix(cells: int, factor: int) -> Tensor:
    """Interpolation from `cells` cell centres to cells * factor pixels, shape (pixels, cells)."""
    eye = torch.eye(cells)[None, None]
    size = (cells * factor, cells)
    return F.interpolate(eye, size=size, mode="bilinear", align_corners=False)[0, 0]


FRONT_ENDS: dict[str, type[RawLevels] | type[LocalContrast]] = {
    "raw": RawLevels,
    "contrast": LocalContrast,
}
