"""A plate's outline in a picture, to a part of a pixel: four straight sides and their corners.

The strip's own outline (station/strip.py) is known to 8 px, scan line by scan line while the plate
arrives; here a whole picture is at hand and the millimetre is what is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

CELL_PX = 8
_REACH_PX = 24
"""A side is looked for so far from where the cells say it is."""
_EVERY_PX = 3
_CORNER_SHARE = 0.08
"""Of a side's length, left out at both ends: corners are round."""
_OUTLIERS = 4.0
_LEAST_PLATE_PX = 64
SIDES = ("left", "right", "leading", "trailing")


class NoOutline(ValueError):
    """The picture does not show what is needed; says what."""


@dataclass(frozen=True, slots=True)
class PlateArea:
    """Where the largest plate lies in a picture, in cells of 8 x 8 px."""

    is_plate: NDArray[np.bool_]
    """Shape (rows // 8, columns // 8)."""
    left_px: int
    top_px: int
    right_px: int
    bottom_px: int
    cut_sides: tuple[str, ...]
    """Sides at which the plate goes on beyond the picture."""


@dataclass(frozen=True, slots=True)
class SideSamples:
    """Points on one side: float64 (points,), `at` along it and `edge` across it, in px."""

    at: Floats
    edge: Floats

    def line(self, without: slice | None = None) -> tuple[float, float, float]:
        """Offset, slope and robust deviation of edge = offset + slope x at."""
        keep = np.ones(len(self.at), np.bool_)
        if without is not None:
            keep[without] = False
        at, edge = self.at[keep], self.edge[keep]
        for _ in range(4):
            slope, offset = np.polyfit(at, edge, 1)
            away = np.abs(edge - offset - slope * at)
            spread = 1.4826 * float(np.median(away)) + 1e-3
            near = away <= _OUTLIERS * spread
            if near.all():
                break
            at, edge = at[near], edge[near]
        return float(offset), float(slope), spread


def find_plate(pixels: Pixels, belt_level: int) -> PlateArea:
    """The largest plate in a picture, uint8 (rows, columns). Raises `NoOutline`."""
    is_bright = _bright_cells(pixels, belt_level)
    rows, columns = is_bright.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(is_bright, connectivity=4)
    if count < 2:
        raise NoOutline(
            f"no plate in the picture: nothing is brighter than belt_level {belt_level}"
        )
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height = (int(value) for value in stats[largest, :4])
    if min(width, height) * CELL_PX < _LEAST_PLATE_PX:
        raise NoOutline("no plate in the picture: what is bright in it is too small for one")
    # A plate's edge may run through the outermost cell.
    ends = (left <= 1, left + width >= columns - 1, top <= 1, top + height >= rows - 1)
    return PlateArea(
        is_plate=labels == largest,
        left_px=left * CELL_PX,
        top_px=top * CELL_PX,
        right_px=(left + width) * CELL_PX,
        bottom_px=(top + height) * CELL_PX,
        cut_sides=tuple(side for side, is_cut in zip(SIDES, ends, strict=True) if is_cut),
    )


def _bright_cells(pixels: Pixels, belt_level: int) -> Pixels:
    rows, columns = pixels.shape[0] // CELL_PX, pixels.shape[1] // CELL_PX
    if not rows or not columns:
        raise NoOutline("the picture is too small")
    whole = pixels[: rows * CELL_PX, : columns * CELL_PX]
    means = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    return (means > belt_level).astype(np.uint8)


def sides_of(pixels: Pixels, area: PlateArea) -> dict[str, SideSamples]:
    """Points on the four sides, a part of a pixel exact. Raises `NoOutline` if one is cut."""
    if area.cut_sides:
        raise NoOutline(f"the plate is cut off at its {' and '.join(area.cut_sides)} side")
    return {name: side_of(pixels, area, name) for name in SIDES}


def side_of(pixels: Pixels, area: PlateArea, name: str) -> SideSamples:
    """Points on one side that is not cut, `at` and `edge` in px of the whole picture."""
    inside = pixels[area.top_px : area.bottom_px, area.left_px : area.right_px]
    plate_level = float(np.percentile(inside[::7, ::7], 30))
    is_far = name in ("right", "trailing")
    if name in ("left", "right"):
        return _side(pixels, area, plate_level, is_far)
    turned = PlateArea(
        area.is_plate.T, area.top_px, area.left_px, area.bottom_px, area.right_px, ()
    )
    return _side(np.ascontiguousarray(pixels.T), turned, plate_level, is_far)


def _side(pixels: Pixels, area: PlateArea, plate_level: float, is_far: bool) -> SideSamples:
    """Where rows cross from belt to plate, at their left (or far) end."""
    height = area.bottom_px - area.top_px
    skip = int(_CORNER_SHARE * height) + CELL_PX
    rows = np.arange(area.top_px + skip, area.bottom_px - skip, _EVERY_PX)
    at, edge = [], []
    for row in rows.tolist():
        cells = np.flatnonzero(area.is_plate[min(row // CELL_PX, len(area.is_plate) - 1)])
        if not len(cells):
            continue
        near = (int(cells[-1]) + 1 if is_far else int(cells[0])) * CELL_PX
        found = _crossing(pixels[row], near, plate_level, is_far)
        if found is not None:
            at.append(float(row))
            edge.append(found)
    if len(at) < 16:
        raise NoOutline("a side of the plate cannot be told from the belt")
    return SideSamples(np.array(at), np.array(edge))


def _crossing(line: Pixels, near: int, plate_level: float, is_far: bool) -> float | None:
    """Where half of the step from belt to plate is reached, in px; pixel centres are integers."""
    start, stop = max(0, near - _REACH_PX), min(len(line), near + _REACH_PX)
    levels = line[start:stop].astype(np.float64)
    if is_far:
        levels = levels[::-1]
    half = (float(np.median(levels[: _REACH_PX // 2])) + plate_level) / 2
    above = levels > half
    # The first pixel from which on the plate stays bright: a speck on the belt is none.
    first = int(np.argmax(above & np.roll(above, -1) & np.roll(above, -2)))
    if first == 0 or not above[first]:
        return None
    before, after = levels[first - 1], levels[first]
    place = first - 1 + (half - before) / (after - before)
    return float(stop - 1 - place if is_far else start + place)
