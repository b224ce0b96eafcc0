"""Tiles hold what the rule says, pixel by pixel: whatever an outline looks like."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import runtimes
from station.tiling import (
    CHUNK_TILES,
    OUTSIDE,
    TILE_PX,
    Geometry,
    Rows,
    TileRow,
    cut_tiles,
    scored_region,
    tile_row,
)

Pixels = NDArray[np.uint8]


def test_every_runner_takes_the_chunks_that_are_cut() -> None:
    assert (CHUNK_TILES, TILE_PX) == (runtimes.CHUNK_TILES, runtimes.TILE_PX)


@st.composite
def outlines(draw: st.DrawFn) -> tuple[Pixels, Rows, Rows, Geometry]:
    """A picture, a slanted outline with scan lines that miss, and a lane."""
    lines, width = draw(st.integers(5, 500)), draw(st.integers(230, 900))
    lane_left = draw(st.integers(0, 100))
    first = draw(st.integers(0, width - 1))
    last = draw(st.integers(first + 1, width))
    shift = (np.arange(lines) * draw(st.floats(-0.3, 0.3))).astype(np.int32)
    left, right = np.clip(first + shift, 0, width), np.clip(last + shift, 0, width)
    misses = draw(st.lists(st.integers(0, lines - 1), max_size=3))
    is_outside = (left >= right) | np.isin(np.arange(lines), misses)
    left, right = (np.where(is_outside, OUTSIDE, side).astype(np.int32) for side in (left, right))
    geometry = Geometry(
        scan_line_px=width,
        pixel_pitch_mm=0.1,
        lane_left_px=lane_left,
        lane_right_px=draw(st.integers(lane_left + 50, width)),
        width_px=100.0,
        length_px=100.0,
        tolerance_px=10.0,
        max_rows=lines,
        margin_px=draw(st.integers(0, 30)),
        min_gap_px=5,
        max_skew_deg=2.0,
        step_px=draw(st.sampled_from([32, 96, 192, 224])),
        belt_level=32,
        is_whole=False,
        is_narrow_allowed=True,
    )
    pixels = np.random.default_rng(lines).integers(0, 256, (lines, width), np.uint8)
    return pixels, left, right, geometry


def eroded(left: Rows, right: Rows, margin_px: int) -> list[tuple[int, int]]:
    """The region of each scan line: of all scan lines within the margin, the innermost edges."""
    region = []
    for line in range(len(left)):
        near = range(line - margin_px, line + margin_px + 1)
        sides = [(OUTSIDE, OUTSIDE)]
        if near.start >= 0 and near.stop <= len(left):
            sides = [(int(left[at]), int(right[at])) for at in near]
        first = max(side[0] for side in sides) + margin_px
        end = min(side[1] for side in sides) - margin_px
        is_region = first < end and all(side[0] != OUTSIDE for side in sides)
        region.append((first, end) if is_region else (OUTSIDE, OUTSIDE))
    return region


@settings(max_examples=60, deadline=None)
@given(outlines())
def test_the_region_is_the_outline_less_the_margin_on_all_sides(
    outline: tuple[Pixels, Rows, Rows, Geometry],
) -> None:
    _, left, right, geometry = outline
    found = scored_region(left, right, geometry.margin_px)
    wanted = eroded(left, right, geometry.margin_px)
    assert list(zip(*(side.tolist() for side in found), strict=True)) == wanted


def expected_tile(pixels: Pixels, row: TileRow, x_px: int) -> Pixels:
    """A tile by the rule: the nearest region pixel of the scan line, and for a scan line without
    region that of the nearest one before it that has, else of the first."""
    inside = np.flatnonzero(row.left != OUTSIDE)
    tile = np.empty((TILE_PX, TILE_PX), np.uint8)
    for line in range(TILE_PX):
        before = inside[inside <= line]
        source = int(before[-1]) if len(before) else int(inside[0])
        columns = np.arange(x_px, x_px + TILE_PX)
        columns = np.clip(columns, row.left[source], row.right[source] - 1)
        tile[line] = pixels[row.y_px + source, columns]
    return tile


@settings(max_examples=60, deadline=None)
@given(outlines())
def test_each_tile_holds_what_the_rule_says(
    outline: tuple[Pixels, Rows, Rows, Geometry],
) -> None:
    pixels, left, right, geometry = outline
    region = scored_region(left, right, geometry.margin_px)
    block = np.full((TILE_PX, geometry.block_px), 99, np.uint8)
    batch = np.full((CHUNK_TILES, 1, TILE_PX, TILE_PX), 99, np.uint8)
    for index in range(len(left) // geometry.step_px + 1):
        row = tile_row(geometry, index, *region)
        for chunk in row.chunks() if row is not None else []:
            assert row is not None
            count = cut_tiles(geometry, pixels, row, chunk, block, batch)
            assert count == len(row.columns[chunk])
            for tile, x_px in zip(batch[:count, 0], row.x_px[chunk], strict=True):
                assert np.array_equal(tile, expected_tile(pixels, row, x_px))
