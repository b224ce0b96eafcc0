"""Where on the plate defects lie: a count for each cell of a grid in mm, and its picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_LONG_SIDE_PX = 900
_MARGIN_PX = 60
_INK = (40, 40, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Defects by cell; rows run downweb from the leading edge, columns crossweb from the left."""

    counts: NDArray[np.int64]
    cell_mm: float
    size_mm: tuple[float, float]
    """Crossweb, downweb."""
    beside: int
    """Defects whose centre is not on a plate of this size, or is not known."""

    def rows(self) -> list[dict[str, float | int]]:
        """Cells with defects, the fullest first."""
        found = [
            {
                "x_mm": column * self.cell_mm,
                "y_mm": row * self.cell_mm,
                "defects": int(self.counts[row, column]),
            }
            for row, column in np.argwhere(self.counts).tolist()
        ]
        return sorted(found, key=lambda cell: (-cell["defects"], cell["y_mm"], cell["x_mm"]))


def heat_map(
    places_mm: Iterable[tuple[float | None, float | None]],
    size_mm: tuple[float, float],
    cell_mm: float,
) -> HeatMap:
    """Counts of defect centres (crossweb, downweb) on a plate of a size."""
    shape = math.ceil(size_mm[1] / cell_mm), math.ceil(size_mm[0] / cell_mm)
    known = list(places_mm)
    xy = np.array([(x, y) for x, y in known if x is not None and y is not None], float)
    xy = xy.reshape(-1, 2)
    is_on = ((xy >= 0) & (xy < size_mm)).all(axis=1)
    cells = (xy[is_on] // cell_mm).astype(int)
    counts = np.zeros(shape, np.int64)
    np.add.at(counts, (cells[:, 1], cells[:, 0]), 1)
    return HeatMap(counts, cell_mm, size_mm, len(known) - int(is_on.sum()))


def picture(found: HeatMap, title: str) -> NDArray[np.uint8]:
    """The plate as it lies under the camera, leading edge up, with a scale in mm; BGR."""
    across, along = found.size_mm
    px_per_mm = _LONG_SIDE_PX / max(across, along)
    width, height = (max(1, round(side * px_per_mm)) for side in (across, along))
    image = np.full((height + 2 * _MARGIN_PX, width + 2 * _MARGIN_PX, 3), 255, np.uint8)
    image[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX] = _coloured(found, width, height)
    corner = (_MARGIN_PX - 1, _MARGIN_PX - 1)
    cv2.rectangle(image, corner, (_MARGIN_PX + width, _MARGIN_PX + height), _INK, 1)
    _text(image, title, (_MARGIN_PX, 24))
    _scale(image, across, px_per_mm, is_across=True)
    _scale(image, along, px_per_mm, is_across=False)
    most = int(found.counts.max(initial=0))
    legend = f"defects in a cell of {found.cell_mm:g} mm: 0 (dark) to {most} (bright)"
    _text(image, legend, (_MARGIN_PX, image.shape[0] - 14))
    return image


def write_picture(found: HeatMap, title: str, path: Path) -> None:
    """A PNG file. Raises OSError if it cannot be written."""
    is_made, data = cv2.imencode(".png", picture(found, title))
    assert is_made
    path.write_bytes(data.tobytes())


def _coloured(found: HeatMap, width: int, height: int) -> NDArray[np.uint8]:
    most = max(1, int(found.counts.max(initial=0)))
    levels = np.round(found.counts * (255 / most)).astype(np.uint8)
    # Cells, not pixels: the last ones may reach beyond the plate and are cut there.
    rows = (np.arange(height) * (found.size_mm[1] / height) // found.cell_mm).astype(int)
    columns = (np.arange(width) * (found.size_mm[0] / width) // found.cell_mm).astype(int)
    coloured = cv2.applyColorMap(levels[np.ix_(rows, columns)], cv2.COLORMAP_VIRIDIS)
    return np.asarray(coloured, np.uint8)


def _scale(image: NDArray[np.uint8], size_mm: float, px_per_mm: float, is_across: bool) -> None:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if size_mm / step <= 8)
    for place in range(0, int(size_mm) + 1, step):
        at = _MARGIN_PX + round(place * px_per_mm)
        if is_across:
            _text(image, f"{place}", (at - 8, _MARGIN_PX - 10))
            cv2.line(image, (at, _MARGIN_PX - 6), (at, _MARGIN_PX - 1), _INK, 1)
        else:
            _text(image, f"{place}", (8, at + 4))
            cv2.line(image, (_MARGIN_PX - 6, at), (_MARGIN_PX - 1, at), _INK, 1)


def _text(image: NDArray[np.uint8], words: str, at: tuple[int, int]) -> None:
    cv2.putText(image, words, at, _FONT, 0.45, _INK, 1, cv2.LINE_AA)
