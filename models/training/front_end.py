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
    """Grey levels relative to the local brightness: unmoved by gain and by slow changes of the
    illumination.

    The window slides, cell by cell of a few pixels, so that a picture shifted by cells gives the
    same contrast, shifted; with one mean for each of fixed cells more tiles change their decision
    under a shift.
    """

    channels = 1
    words = (
        "grey levels relative to the local brightness: (x + dark_level) * gain / (m + dark_level) "
        "- gain, m = mean of the window x window cells of cell_px x cell_px pixels around the "
        "pixel's own cell that lie in the tile"
    )

    def __init__(self, cell_px: int, window: int, gain: float) -> None:
        """`gain` brings the relative contrast to about unit spread."""
        super().__init__()
        self.constants = {
            "cell_px": float(cell_px),
            "window": float(window),
            # Keeps a dark tile's noise from being blown up, in 8-bit levels.
            "dark_level": 16.0,
            "gain": gain,
        }
        self._cell_px, self._cells = cell_px, TILE_PX // cell_px
        means = _window_means(self._cells, window)
        self.register_buffer("_down", means, persistent=False)
        across = means.T.repeat_interleave(cell_px, dim=1)
        self.register_buffer("_across", across, persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        # Two small matrix products are the sliding mean, and spread it over the columns of pixels:
        # pooling and resizing take a quarter of the network's time in bf16.
        gain = self.constants["gain"]
        levels = tiles.float() + self.constants["dark_level"]
        cells = F.avg_pool2d(levels, self._cell_px)
        relative = gain / (self._down @ cells @ self._across)
        rows = levels.view(-1, self._cells, self._cell_px, TILE_PX)
        contrast = rows * relative.view(-1, self._cells, 1, TILE_PX) - gain
        return contrast.view(-1, 1, TILE_PX, TILE_PX)


def _window_means(cells: int, window: int) -> Tensor:
    """(cells, cells): each row weighs the cells of the window around one that there are."""
    places = torch.arange(cells)
    near = ((places[:, None] - places).abs() <= window // 2).float()
    return near / near.sum(dim=1, keepdim=True)


FRONT_ENDS: dict[str, Callable[[], RawLevels | LocalContrast]] = {
    # Several dots of a lattice, and larger than most defects, which would else take part in what
    # they are compared with.
    "contrast": partial(LocalContrast, 4, 9, 6.0),
    # For thin marks on blobs of light: these are taken away, the marks stay.
    "fine": partial(LocalContrast, 2, 5, 16.0),
    "raw": RawLevels,
}
