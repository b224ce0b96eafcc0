"""What a network sees of a tile: fixed arithmetic on grey levels, nothing learned.

Every front end takes tiles uint8 (n, 1, 224, 224) and gives float32 (n, channels, 224, 224) of
about unit spread. Its constants are fixed: nothing depends on a tile's own extremes, so equal
pixels are equal whatever lies beside them. Which one serves a product is chosen by
cross-validation and written on the card.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE_PX = 224
COARSE_PX = 32
"""Side of the cells whose mean is the local brightness: several dots of a lattice, and larger than
a defect, which would else take part in what it is compared with."""
FINE_PX = 8
"""The same where thin marks lie on blobs of light: these are taken away, the marks stay."""


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

    def __init__(self, local_px: int, contrast_gain: float) -> None:
        """`contrast_gain` brings the relative contrast to about unit spread."""
        super().__init__()
        self.constants = {
            "local_px": float(local_px),
            # Keeps a dark tile's noise from being blown up, in 8-bit levels.
            "dark_level": 16.0,
            "contrast_gain": contrast_gain,
        }
        cells = TILE_PX // local_px
        self.register_buffer("expand", _bilinear_matrix(cells, local_px))

    def forward(self, tiles: Tensor) -> Tensor:
        dark, gain = self.constants["dark_level"], self.constants["contrast_gain"]
        levels = tiles.float()
        cells = F.avg_pool2d(levels, int(self.constants["local_px"]))
        relative = self.expand @ (gain / (cells + dark)) @ self.expand.T
        return (levels + dark) * relative - gain


def _bilinear_matrix(cells: int, factor: int) -> Tensor:
    """Interpolation from `cells` cell centres to cells * factor pixels, shape (pixels, cells)."""
    eye = torch.eye(cells)[None, None]
    size = (cells * factor, cells)
    return F.interpolate(eye, size=size, mode="bilinear", align_corners=False)[0, 0]


FRONT_ENDS: dict[str, Callable[[], RawLevels | LocalContrast]] = {
    "raw": RawLevels,
    "contrast": partial(LocalContrast, COARSE_PX, 4.0),
    "fine": partial(LocalContrast, FINE_PX, 16.0),
}
