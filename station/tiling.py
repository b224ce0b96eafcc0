"""Where tiles lie on a plate and what is in them: the same arithmetic live, offline and replayed.

The grid starts at the lane's left edge crossweb and at the plate's leading edge downweb. The scored
region is the plate's outline less the edge margin. Pixels outside the region are replaced by the
nearest region pixel of the same scan line, scan lines outside it by the nearest one inside, so that
none of them ever enters a score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from station.config import Recipe

TILE_PX = 224
CHUNK_TILES = 5
"""Tiles scored at once, in grid order and never across tile rows: results do not depend on load."""
MOST_PLATE_PX = 65_536
"""Downweb: records say in 16 bits where a tile lies."""
MOST_PLATE_TILES = 30_000
"""Their places and scores are one message to the journal, of `station.ipc.MAX_PACKET_BYTES`."""
OUTSIDE = -1

Rows = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A recipe in pixels for one camera; x is crossweb, y is downweb."""

    scan_line_px: int
    pixel_pitch_mm: float
    lane_left_px: int
    lane_right_px: int
    width_px: float
    length_px: float
    tolerance_px: float
    max_rows: int
    margin_px: int
    min_gap_px: int
    max_skew_deg: float
    step_px: int
    belt_level: int
    is_whole: bool
    is_narrow_allowed: bool

    @classmethod
    def of(cls, recipe: Recipe, pixel_pitch_mm: float, scan_line_px: int) -> Geometry:
        """Raises ValueError, which names the key, if the lane does not fit in the scan line, or a
        plate not in a record."""
        plate, lane = recipe.plate, recipe.lane

        def px(length_mm: float) -> float:
            return length_mm / pixel_pitch_mm

        lane_left = round(px(lane.start_mm))
        lane_right = scan_line_px if lane.end_mm is None else round(px(lane.end_mm))
        if not lane_left < lane_right <= scan_line_px:
            raise ValueError(
                f"lane: lane {lane.start_mm} to {lane.end_mm} mm does not fit in a scan line of "
                f"{scan_line_px} px x {pixel_pitch_mm} mm = {scan_line_px * pixel_pitch_mm:g} mm"
            )
        max_length_mm = plate.max_length_mm or 1.25 * plate.length_mm
        slant_px = px(plate.width_mm) * math.sin(math.radians(plate.max_skew_deg))
        max_rows = math.ceil(px(max_length_mm) + slant_px)
        # Of single pictures there is no record, and their size is known.
        if plate.outline == "level":
            _check_recordable(max_rows, lane_right - lane_left, recipe.grid.step_px)
        return cls(
            scan_line_px=scan_line_px,
            pixel_pitch_mm=pixel_pitch_mm,
            lane_left_px=lane_left,
            lane_right_px=lane_right,
            width_px=px(plate.width_mm),
            length_px=px(plate.length_mm),
            tolerance_px=px(plate.tolerance_mm),
            max_rows=max_rows,
            margin_px=math.ceil(px(plate.edge_margin_mm)),
            min_gap_px=max(1, math.ceil(px(plate.min_gap_mm))),
            max_skew_deg=plate.max_skew_deg,
            step_px=recipe.grid.step_px,
            belt_level=plate.belt_level,
            is_whole=plate.outline == "whole",
            is_narrow_allowed=plate.is_narrow_allowed,
        )

    @property
    def block_px(self) -> int:
        """Widest span of a chunk of tiles."""
        return (CHUNK_TILES - 1) * self.step_px + TILE_PX


def _check_recordable(max_rows: int, lane_px: int, step_px: int) -> None:
    if max_rows > MOST_PLATE_PX:
        raise ValueError(
            f"plate: a plate may have {max_rows} scan lines, a record has room for "
            f"{MOST_PLATE_PX}; less length_mm or max_length_mm, or a coarser pixel_pitch_mm of the "
            "camera"
        )
    tiles = math.ceil(max_rows / step_px) * math.ceil(lane_px / step_px)
    if tiles > MOST_PLATE_TILES:
        raise ValueError(
            f"grid.step_px: a plate may have {tiles} tiles in steps of {step_px} px, a record has "
            f"room for {MOST_PLATE_TILES}; a larger step, or less max_length_mm"
        )


def scored_region(left: Rows, right: Rows, margin_px: int) -> tuple[Rows, Rows]:
    """Erode an outline by the edge margin, crossweb and downweb.

    `left` and `right` are int32 (rows,): the first plate pixel and the one after the last,
    OUTSIDE where a scan line has none; scan lines before the first and after the last count as
    outside. Returns the same for the region.
    """
    is_plate = left != OUTSIDE
    inner_left = _widest(np.where(is_plate, left, np.iinfo(np.int32).max), margin_px, np.maximum)
    inner_right = _widest(np.where(is_plate, right, 0), margin_px, np.minimum)
    is_region = (inner_left < inner_right) & (inner_left != np.iinfo(np.int32).max)
    is_region &= inner_right - inner_left > 2 * margin_px
    region_left = np.where(is_region, inner_left + np.int32(margin_px), OUTSIDE)
    region_right = np.where(is_region, inner_right - np.int32(margin_px), OUTSIDE)
    return region_left.astype(np.int32), region_right.astype(np.int32)


def _widest(values: Rows, reach: int, pick: np.ufunc) -> Rows:
    """Max (or min) over the window of `reach` scan lines before and after each one."""
    if reach == 0:
        return values
    end = np.iinfo(np.int32).max if pick is np.maximum else 0
    padded = np.full(len(values) + 2 * reach, end, np.int32)
    padded[reach : reach + len(values)] = values
    # Windows of twice the size, and in the end those that the last two of them overlap to.
    size = 1
    while 2 * size <= 2 * reach + 1:
        padded, size = pick(padded[:-size], padded[size:]), 2 * size
    rest = 2 * reach + 1 - size
    result: Rows = pick(padded[: len(values)], padded[rest:])
    return result


@dataclass(frozen=True, slots=True)
class TileRow:
    """The tiles of one grid row that are needed to cover the region."""

    index: int
    y_px: int
    """First scan line of the tiles, from the plate's leading edge."""
    columns: tuple[int, ...]
    x_px: tuple[int, ...]
    """First pixel of each tile in the scan line."""
    left: Rows
    right: Rows
    """Region of the 224 scan lines, int32, OUTSIDE where there is none."""

    def chunks(self) -> list[slice]:
        return [slice(i, i + CHUNK_TILES) for i in range(0, len(self.columns), CHUNK_TILES)]


def tile_row(geometry: Geometry, index: int, left: Rows, right: Rows) -> TileRow | None:
    """The tiles of grid row `index` over a region; None if the rows before cover all of it.

    `left` and `right` are the region of the plate up to at least this row's last scan line, or of
    the whole plate.
    """
    y = index * geometry.step_px
    lines = slice(y, y + TILE_PX)
    # What a tile shares with the one before it is covered already, unless there is none before.
    is_first = not (left[:y] != OUTSIDE).any()
    own = slice(y, y + geometry.step_px)
    if not is_first:
        own = slice(y + TILE_PX - geometry.step_px, y + TILE_PX)
    if not (left[own] != OUTSIDE).any():
        return None
    is_region = left[lines] != OUTSIDE
    columns = _columns_of(geometry, left[lines][is_region], right[lines][is_region])
    if not columns:
        return None
    return TileRow(
        index=index,
        y_px=y,
        columns=columns,
        x_px=tuple(geometry.lane_left_px + column * geometry.step_px for column in columns),
        left=_whole_tile(left[lines]),
        right=_whole_tile(right[lines]),
    )


def _whole_tile(lines: Rows) -> Rows:
    """224 scan lines, OUTSIDE where the plate has ended before."""
    whole = np.full(TILE_PX, OUTSIDE, np.int32)
    whole[: len(lines)] = lines
    return whole


def _columns_of(geometry: Geometry, left: Rows, right: Rows) -> tuple[int, ...]:
    """The fewest columns of the grid that cover the region, within the lane."""
    start = max(0, int(left.min()) - geometry.lane_left_px)
    end = min(int(right.max()), geometry.lane_right_px) - geometry.lane_left_px
    first = start // geometry.step_px
    last = max(first, math.ceil((end - TILE_PX) / geometry.step_px))
    return tuple(range(first, last + 1)) if end > start else ()


def cut_tiles(
    geometry: Geometry,
    pixels: NDArray[np.uint8],
    row: TileRow,
    tiles: slice,
    block: NDArray[np.uint8],
    batch: NDArray[np.uint8],
) -> int:
    """Fill `batch` with the tiles `row.columns[tiles]` and return how many they are.

    `pixels` is the plate so far, uint8 (scan lines, scan_line_px); `block` is scratch, uint8
    (224, at least the span of the tiles); `batch` is uint8 (tiles, 1, 224, 224).
    """
    columns = row.columns[tiles]
    start = geometry.lane_left_px + columns[0] * geometry.step_px
    width = (columns[-1] - columns[0]) * geometry.step_px + TILE_PX
    _pad_block(pixels, row, start, block[:, :width])
    for place, column in enumerate(columns):
        x = (column - columns[0]) * geometry.step_px
        batch[place, 0] = block[:, x : x + TILE_PX]
    return len(columns)


def _pad_block(
    pixels: NDArray[np.uint8], row: TileRow, start: int, block: NDArray[np.uint8]
) -> None:
    """Copy the region's pixels of 224 scan lines from column `start` on and complete the rest."""
    width = block.shape[1]
    available = min(width, pixels.shape[1] - start)
    lines = min(TILE_PX, pixels.shape[0] - row.y_px)
    block[:lines, :available] = pixels[row.y_px : row.y_px + lines, start : start + available]
    _pad_sides(pixels, row, start, block)
    _complete_lines(row.left != OUTSIDE, block)


def _pad_sides(
    pixels: NDArray[np.uint8], row: TileRow, start: int, block: NDArray[np.uint8]
) -> None:
    """Left and right of the region, each scan line repeats the region's nearest pixel; also where
    the region lies wholly beside the block."""
    width = block.shape[1]
    inside = np.flatnonzero(row.left != OUTSIDE)
    left, right = row.left[inside] - start, row.right[inside] - start
    at_left, at_right = min(width, int(left.max())), max(0, int(right.min()))
    columns = np.arange(width, dtype=np.int32)
    if at_left > 0:
        nearest = pixels[row.y_px + inside, row.left[inside]]
        is_beside = columns[:at_left] < left[:, None]
        block[inside, :at_left] = np.where(is_beside, nearest[:, None], block[inside, :at_left])
    if at_right < width:
        nearest = pixels[row.y_px + inside, row.right[inside] - 1]
        is_beside = columns[at_right:] >= right[:, None]
        block[inside, at_right:] = np.where(is_beside, nearest[:, None], block[inside, at_right:])


def _complete_lines(is_region: NDArray[np.bool_], block: NDArray[np.uint8]) -> None:
    """A scan line without region repeats the nearest one before it that has, else the first."""
    if is_region.all():
        return
    source = np.maximum.accumulate(np.where(is_region, np.arange(len(block)), -1))
    source[source < 0] = np.flatnonzero(is_region)[0]
    block[~is_region] = block[source[~is_region]]
