"""Frames in, plates and tiles out: the same for any division of the same pixels into frames."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drivers.camera import Frame
from station.config import Recipe
from station.record import Reason
from station.strip import (
    Event,
    Gap,
    Joined,
    Plate,
    PlateClosed,
    PlateOpened,
    StripCutter,
    TileRowReady,
    buffer_lines,
    measure,
    outline_problem,
)
from station.tiling import CHUNK_TILES, OUTSIDE, TILE_PX, Geometry, Rows, cut_tiles

Pixels = NDArray[np.uint8]
WIDTH = 800
BELT = 60
PLATE_MM = (60.0, 40.0)


def recipe(**plate: Any) -> Recipe:
    values = {"width_mm": PLATE_MM[0], "length_mm": PLATE_MM[1], "min_gap_mm": 4.0, **plate}
    return Recipe.model_validate(
        {
            "id": "small",
            "version": 1,
            "plate": values,
            "lane": {"start_mm": 2.0, "end_mm": 78.0},
            "model": {"id": "m"},
        }
    )


def geometry(**plate: Any) -> Geometry:
    return Geometry.of(recipe(**plate), 0.1, WIDTH)


def belt(lines: int, seed: int = 1) -> Pixels:
    return np.random.default_rng(seed).integers(4, 14, (lines, WIDTH), np.uint8)


@dataclass(frozen=True)
class Piece:
    """What is missing of a plate's corner, px along the end and along the side."""

    corner: str
    """"leading" or "trailing", "left" or "right"."""
    along_end: float
    along_side: float
    is_slantwise: bool = False


def plate(
    length: int = 400,
    width: int = 600,
    left: int = 100,
    skew_deg: float = 0.0,
    seed: int = 0,
    missing: Sequence[Piece] = (),
) -> Pixels:
    """A textured plate on belt; its first and last scan lines are plate."""
    slope = np.tan(np.radians(skew_deg))
    rows = length + int(abs(slope) * width) + 1 if skew_deg else length
    y, x = np.mgrid[0:rows, 0:WIDTH].astype(np.float64)
    along = y - slope * (x - left) - (0 if slope > 0 else -slope * width)
    across = x - left + slope * (y - rows / 2)
    inside = (along >= 0) & (along < length) & (across >= 0) & (across < width)
    for piece in missing:
        from_end = along if "leading" in piece.corner else length - 1 - along
        from_side = across if "left" in piece.corner else width - 1 - across
        shares = from_end / piece.along_side, from_side / piece.along_end
        inside &= (np.add(*shares) if piece.is_slantwise else np.maximum(*shares)) >= 1
    texture = np.random.default_rng(seed).integers(80, 160, (rows, WIDTH), np.uint8)
    picture = np.where(inside, texture, belt(rows, seed + 9)).astype(np.uint8)
    shown = inside.sum(axis=1) > 48
    return picture[shown]


@dataclass(frozen=True)
class Outcome:
    """Everything that must not depend on how scan lines were framed."""

    plates: list[tuple[int, Reason | None]]
    tiles: list[tuple[int, int, bytes]]


def frames_of(strip: Pixels, cuts: Sequence[int]) -> list[Frame]:
    edges = [0, *sorted({at for at in cuts if 0 < at < len(strip)}), len(strip)]
    return [
        Frame(strip[a:b], WIDTH, frame_id=i, timestamp_ns=i, encoder_value=a)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]


def cut(frames: Sequence[Frame], lay: Geometry | None = None, **options: Any) -> list[Event]:
    lay = lay or geometry()
    cutter = StripCutter(
        lay,
        64,
        lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8),
        is_height_fixed=options.pop("is_height_fixed", False),
        **options,
    )
    events: list[Event] = []
    for frame in frames:
        events += cutter.feed(frame)
    return events


def outcome(events: Sequence[Event], lay: Geometry) -> Outcome:
    tiles = []
    block = np.empty((TILE_PX, lay.block_px), np.uint8)
    batch = np.empty((CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
    for event in events:
        if isinstance(event, TileRowReady):
            assert event.plate.pixels is not None
            for chunk in event.row.chunks():
                count = cut_tiles(lay, event.plate.pixels, event.row, chunk, block, batch)
                for x, tile in zip(event.row.x_px[chunk], batch[:count], strict=True):
                    tiles.append((x, event.row.y_px, tile.tobytes()))
    closed = [e for e in events if isinstance(e, PlateClosed)]
    return Outcome([(e.plate.length_px, e.reason) for e in closed], tiles)


def strip_of(*parts: Pixels) -> Pixels:
    pieces = [belt(BELT, 100)]
    for number, part in enumerate(parts):
        pieces += [part, belt(BELT, 101 + number)]
    return np.concatenate(pieces)


def plate_with_outline(left: Rows, right: Rows) -> Plate:
    empty = np.zeros((0, WIDTH), np.uint8)
    shown = Plate(empty, 0, 0, 0, None, None, None, left, right, left, right)
    shown.lines = shown.length_px = len(left)
    return shown


def closing(*parts: Pixels, **plate_keys: Any) -> list[tuple[Reason | None, str]]:
    lay = geometry(**plate_keys)
    events = cut(frames_of(strip_of(*parts), range(0, 10_000, 64)), lay)
    return [(e.reason, e.detail) for e in events if isinstance(e, PlateClosed)]


# --- any division into frames -------------------------------------------------------------------

STRIP = strip_of(plate(), plate(skew_deg=1.0, seed=3), plate(length=300, seed=5))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, len(STRIP) - 1), max_size=40))
def test_any_division_into_frames_gives_the_same_plates_and_tiles(cuts: list[int]) -> None:
    lay = geometry()
    whole = outcome(cut(frames_of(STRIP, []), lay), lay)
    assert [reason for _, reason in whole.plates] == [None, None, Reason.SHORT]
    assert len(whole.tiles) > 20
    assert outcome(cut(frames_of(STRIP, cuts), lay), lay) == whole


@settings(max_examples=25, deadline=None)
@given(
    skew_deg=st.floats(-1.9, 1.9),
    left=st.integers(40, 140),
    length=st.integers(375, 425),
    margin_mm=st.sampled_from([0.0, 1.0, 2.0, 3.3]),
)
def test_every_scored_pixel_lies_in_a_tile_and_no_other_enters_one(
    skew_deg: float, left: int, length: int, margin_mm: float
) -> None:
    lay = geometry(edge_margin_mm=margin_mm)
    strip = strip_of(plate(length=length, left=left, skew_deg=skew_deg))
    events = cut(frames_of(strip, []), lay)
    shown = next(e.plate for e in events if isinstance(e, PlateClosed))
    region_left, region_right = shown.region
    covered = np.zeros((shown.lines + TILE_PX, WIDTH + TILE_PX), bool)
    rows = [e.row for e in events if isinstance(e, TileRowReady)]
    for row in rows:
        for x in row.x_px:
            assert (x - lay.lane_left_px) % lay.step_px == 0
            covered[row.y_px : row.y_px + TILE_PX, x : x + TILE_PX] = True
    in_region = np.zeros_like(covered)
    for y, (a, b) in enumerate(zip(region_left, region_right, strict=True)):
        if a != OUTSIDE:
            in_region[y, a:b] = True
    assert in_region.any()
    assert not (in_region & ~covered).any()
    # Every scan line of the plate is in a tile row, or in the border that the recipe leaves out.
    for y in range(shown.length_px):
        is_margin = region_left[y] == OUTSIDE
        assert is_margin or any(row.y_px <= y < row.y_px + TILE_PX for row in rows)
    before = outcome(events, lay)
    assert shown.pixels is not None
    noise = np.random.default_rng(1).integers(0, 256, shown.pixels.shape, np.uint8)
    outside = ~in_region[: len(shown.pixels), :WIDTH]
    outside = np.pad(outside, ((0, len(shown.pixels) - len(outside)), (0, 0)), constant_values=True)
    shown.pixels[outside] = noise[outside]
    assert outcome(events, lay) == before


# --- outcomes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (plate(), None),
        (plate(skew_deg=1.5), None),
        (plate(skew_deg=3.0), Reason.SKEWED),
        (plate(left=5), Reason.OUT_OF_LANE),
        (plate(left=194), Reason.OUT_OF_LANE),
        (plate(length=330), Reason.SHORT),
        (plate(length=460), Reason.OVERLONG),
        (plate(length=900), Reason.OVERLONG),
        (plate(width=500), Reason.NARROW),
        (np.concatenate([plate(), belt(20), plate()]), Reason.NOT_SEPARATED),
        (np.concatenate([plate(200), belt(20), plate(180, seed=2)]), Reason.NOT_SEPARATED),
    ],
)
def test_each_outline_has_its_outcome(picture: Pixels, reason: Reason | None) -> None:
    found = closing(picture)
    assert found[0][0] is reason, found
    assert (found[0][1] == "") == (reason is None)


def test_a_side_that_is_not_straight_is_seen() -> None:
    broken = plate()
    broken[60:110, 100:260] = belt(50)[:, 100:260]
    assert closing(broken)[0][0] is Reason.OUTLINE


CORNERS = ("leading left", "leading right", "trailing left", "trailing right")
OUTLINES = st.fixed_dictionaries(
    {
        "length": st.integers(380, 420),
        "width": st.integers(590, 620),
        "left": st.integers(60, 120),
        "skew_deg": st.floats(-1.9, 1.9),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=50, deadline=None)
@given(outline=OUTLINES)
def test_a_whole_plate_askew_is_measured(outline: dict[str, Any]) -> None:
    events = cut(frames_of(strip_of(plate(**outline)), range(0, 10_000, 64)))
    closed = next(event for event in events if isinstance(event, PlateClosed))
    assert closed.reason is None, closed.detail
    shape = measure(closed.plate)
    assert abs(shape.length_px - outline["length"]) < 4
    assert outline["width"] - 26 < shape.width_px <= outline["width"]
    # Against the slope of y in `plate`; a scan line at the end of a side.
    assert abs(shape.skew_deg + outline["skew_deg"]) < np.degrees(2 / outline["width"])


@settings(max_examples=100, deadline=None)
@given(
    outline=OUTLINES,
    corner=st.sampled_from(CORNERS),
    along_end=st.floats(60, 540),
    along_side=st.floats(30, 250),
    is_slantwise=st.booleans(),
)
def test_a_plate_without_a_corner_is_not_judged(
    outline: dict[str, Any], corner: str, along_end: float, along_side: float, is_slantwise: bool
) -> None:
    """Nobody looks at what is missing: the scored region follows the outline."""
    if is_slantwise:  # beyond the edge margin in both directions
        along_end, along_side = max(along_end, 120), max(along_side, 60)
    piece = Piece(corner, along_end, along_side, is_slantwise)
    reason, detail = closing(plate(**outline, missing=[piece]))[0]
    assert reason in (Reason.OUTLINE, Reason.SHORT, Reason.OVERLONG), (reason, detail)


@pytest.mark.parametrize("skew_deg", [0.0, 0.4, -1.5])
@pytest.mark.parametrize("along_end", [60, 250, 540])
@pytest.mark.parametrize("is_slantwise", [False, True])
@pytest.mark.parametrize("corners", list(itertools.combinations(CORNERS, 2)))
def test_two_missing_corners_do_not_make_up_for_one_another(
    corners: tuple[str, str], is_slantwise: bool, along_end: int, skew_deg: float
) -> None:
    pieces = [Piece(corner, along_end, 60, is_slantwise) for corner in corners]
    reason, detail = closing(plate(skew_deg=skew_deg, missing=pieces))[0]
    assert reason in (Reason.OUTLINE, Reason.SHORT, Reason.SKEWED), (reason, detail)


@pytest.mark.parametrize("share", [0.03, 0.2, 0.45, 0.9])
@pytest.mark.parametrize("ends", [(0, 50), (50, 0), (50, 50), (30, 30)])
@pytest.mark.parametrize("sides", ["left", "right", "both", "diagonal"])
def test_of_a_wide_plate_a_corner_is_seen_that_would_be_little_skew(
    sides: str, ends: tuple[int, int], share: float
) -> None:
    """Of 360 x 150 mm, 3 mm off at most, 3 or 5 mm of an end are missing."""
    demo = Geometry.of(recipe(width_mm=360.0, length_mm=150.0), 0.1, 4000)
    demo = replace(demo, lane_right_px=3900)
    left, right = np.full(1500, 104, np.int32), np.full(1500, 3696, np.int32)
    piece = round(share * 3600 / (2 if sides == "both" else 1))
    leading, trailing = slice(0, ends[0]), slice(1500 - ends[1], 1500)
    if sides != "right":
        left[leading] += piece
    if sides in ("left", "both"):
        left[trailing] += piece
    if sides in ("right", "both"):
        right[leading] -= piece
    if sides != "left":
        right[trailing] -= piece
    assert outline_problem(plate_with_outline(left, right), demo)[0] is Reason.OUTLINE


@pytest.mark.parametrize("is_slantwise", [False, True])
def test_what_the_edge_margin_leaves_out_may_be_missing(is_slantwise: bool) -> None:
    for size in ((19, 19), (300, 9), (11, 150)):
        pieces = [Piece(corner, *size, is_slantwise) for corner in CORNERS[:1]]
        assert closing(plate(skew_deg=0.7, missing=pieces)) == [(None, "")], size
    chamfers = [Piece(corner, 22, 22, True) for corner in CORNERS]
    assert closing(plate(skew_deg=0.7, missing=chamfers)) == [(None, "")]


def test_a_plate_narrower_than_a_tile_is_padded_only_where_allowed() -> None:
    narrow = plate(width=200)
    keys = {"width_mm": 20.0, "edge_margin_mm": 1.0}
    assert closing(narrow, **keys)[0][0] is Reason.NARROW
    assert closing(narrow, **keys, is_narrow_allowed=True)[0][0] is None


def test_an_overlong_plate_is_cut_at_the_limit() -> None:
    lay = geometry()
    events = cut(frames_of(strip_of(plate(length=900)), range(0, 2000, 64)), lay)
    closed = next(e for e in events if isinstance(e, PlateClosed))
    assert closed.plate.length_px <= lay.max_rows


def test_a_belt_that_stops_closes_its_plate() -> None:
    lay = geometry()
    cutter = StripCutter(lay, 64, lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8))
    for frame in frames_of(strip_of(plate())[:192], range(0, 192, 64)):
        cutter.feed(frame)
    events = cutter.stop_plate(Reason.BELT_STOPPED, "no scan line for 3 s")
    assert [e.reason for e in events if isinstance(e, PlateClosed)] == [Reason.BELT_STOPPED]


def test_no_free_buffer_is_an_overrun_not_a_pass() -> None:
    lay = geometry()
    cutter = StripCutter(lay, 64, lambda: None, is_height_fixed=False)
    events = [e for f in frames_of(strip_of(plate()), [200]) for e in cutter.feed(f)]
    assert [e.reason for e in events if isinstance(e, PlateClosed)] == [Reason.OVERRUN]


# --- frames that cannot be trusted --------------------------------------------------------------


def spoil(frame: Frame, fault: str) -> Frame | None:
    height = frame.height
    match fault:
        case "lost":
            return None
        case "incomplete":
            return replace(frame, is_incomplete=True)
        case "empty":
            return replace(frame, pixels=frame.pixels[:0])
        case "short":
            return replace(frame, pixels=frame.pixels[: height // 2])
        case "black":
            return replace(frame, pixels=np.zeros_like(frame.pixels))
        case "saturated":
            return replace(frame, pixels=np.full_like(frame.pixels, 255))
        case "width":
            return replace(frame, width=400, pixels=frame.pixels[:, :400].copy())
        case "format":
            return replace(frame, pixel_format="Mono12")
        case "id":
            return replace(frame, frame_id=frame.frame_id - 1)
        case "time":
            return replace(frame, timestamp_ns=-5)
        case "encoder":
            return replace(frame, encoder_value=(frame.encoder_value or 0) + 7)
    raise ValueError(fault)


FAULTS = {
    "lost": Reason.INCOMPLETE,
    "incomplete": Reason.INCOMPLETE,
    "short": Reason.INCOMPLETE,
    "empty": Reason.INCOMPLETE,
    "black": Reason.UNLIT,
    "saturated": Reason.UNLIT,
    "stuck": Reason.STUCK,
    "width": Reason.INCOMPLETE,
    "format": Reason.INCOMPLETE,
    "id": Reason.INCOMPLETE,
    "time": Reason.INCOMPLETE,
    "encoder": Reason.INCOMPLETE,
}


def spoilt(strip: Pixels, at: int, fault: str) -> list[Frame]:
    """Frames of 64 scan lines, one of them spoilt."""
    frames = frames_of(strip[: len(strip) // 64 * 64], range(0, len(strip), 64))
    if fault == "stuck":
        frames[at] = replace(frames[at], pixels=frames[at - 1].pixels)
        return frames
    bad = spoil(frames[at], fault)
    return frames[:at] + ([bad] if bad else []) + frames[at + 1 :]


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items())
def test_a_spoilt_frame_inside_a_plate_makes_it_undecided(fault: str, reason: Reason) -> None:
    strip = np.concatenate([strip_of(plate(), plate(seed=2), plate(seed=3)), belt(64)])
    events = cut(spoilt(strip, 4, fault), is_height_fixed=True)
    closed = [e for e in events if isinstance(e, PlateClosed)]
    assert closed[0].reason is reason, closed[0].detail
    assert closed[-1].reason is None, "the plates after it are judged again"
    opened = [e for e in events if isinstance(e, PlateOpened)]
    assert len(opened) == len(closed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_frame_between_plates_is_a_gap(fault: str) -> None:
    strip = np.concatenate([belt(256), strip_of(plate()), belt(300), strip_of(plate(seed=2))])
    strip = np.concatenate([strip, belt(64)])
    events = cut(spoilt(strip, 2, fault), is_height_fixed=True)
    gaps = [e for e in events if isinstance(e, Gap)]
    # A wrong id or encoder value breaks the run before the frame and again after it.
    assert len(gaps) == (2 if fault in ("id", "encoder") else 1)
    assert gaps[0].reason is Reason.GAP
    assert gaps[0].detail
    assert [e.reason for e in events if isinstance(e, PlateClosed)] == [None, None]


def test_a_gap_says_how_many_plates_the_trigger_counted_in_it() -> None:
    strip = np.concatenate([belt(256), strip_of(plate()), belt(320), strip_of(plate(seed=2))])
    edges = [256 + BELT, 256 + 2 * BELT + 400 + 320 + BELT]
    frames = [
        replace(f, plate_counter=sum(edge < (f.encoder_value or 0) for edge in edges))
        for f in frames_of(strip[: len(strip) // 64 * 64], range(0, len(strip), 64))
    ]
    events = cut(frames[:2] + frames[14:], is_height_fixed=True)
    gap = next(e for e in events if isinstance(e, Gap))
    assert gap.triggers == 1
    assert gap.lost_frames == 12
    assert [e.plate.ordinal for e in events if isinstance(e, PlateOpened)] == [2]


# --- nothing passes without a row ---------------------------------------------------------------


@pytest.mark.parametrize("loss", ["lose", "encoder", "id", "time"])
def test_a_loss_of_unknown_length_inside_a_plate_is_also_a_gap(loss: str) -> None:
    """Without a trigger counter: whatever may have passed meanwhile has a row of its own."""
    lay = geometry()
    cutter = StripCutter(lay, 64, lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8))
    frames = frames_of(strip_of(plate(), plate(seed=2))[: 64 * 14], range(0, 64 * 14, 64))
    events = [event for frame in frames[:5] for event in cutter.feed(frame)]
    if loss == "lose":
        events += cutter.lose("unplugged")
        later = frames[5:]
    else:
        change = {
            "encoder": {"encoder_value": 5000 + 64 * 5},
            "id": {"frame_id": 0},
            "time": {"timestamp_ns": -9},
        }[loss]
        later = [replace(frames[5], **change), *frames[6:8]]
    events += [event for frame in later for event in cutter.feed(frame)]
    closed = [event.reason for event in events if isinstance(event, PlateClosed)]
    assert closed[0] is Reason.INCOMPLETE
    assert any(isinstance(event, Gap) for event in events)


def test_a_short_loss_inside_a_plate_is_that_plates_alone() -> None:
    strip = np.concatenate([strip_of(plate(), plate(seed=2)), belt(64)])
    events = cut(spoilt(strip, 4, "lost"), is_height_fixed=True)
    assert not any(isinstance(event, Gap) for event in events)


@pytest.mark.parametrize("count", [2, 3])
def test_touching_plates_without_a_counter_leave_a_plate_and_a_gap(count: int) -> None:
    parts: list[Pixels] = []
    for number in range(count):
        parts += [plate(seed=number), belt(15)]
    strip = strip_of(np.concatenate(parts[:-1]), plate(seed=4))
    events = cut(frames_of(strip, range(0, len(strip), 64)))
    closed = [event.reason for event in events if isinstance(event, PlateClosed)]
    assert closed == [Reason.NOT_SEPARATED, None]
    gaps = [event for event in events if isinstance(event, Gap)]
    assert len(gaps) == 1
    assert "could not be told apart" in gaps[0].detail


def test_a_plate_that_began_unseen_behind_a_cut_one_has_a_gap() -> None:
    """Too little is lost to hide a plate, and too little is seen to be one; both are of one."""
    strip = np.concatenate([strip_of(plate(), plate(seed=2), plate(seed=3)), belt(64)])
    frames = frames_of(strip[: len(strip) // 32 * 32], range(0, len(strip), 32))
    # The first plate's last scan lines, the gap, and the second's first fifth are lost.
    events = cut(frames[:14] + frames[19:])
    told = [event for event in events if isinstance(event, Gap | PlateOpened)]
    assert [type(event) for event in told] == [PlateOpened, Gap, PlateOpened]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_without_a_counter_each_plate_that_passed_has_a_row_or_a_gap_of_its_own(
    data: st.DataObject,
) -> None:
    """Rows without a number stand for plates that nobody could count; a plate's own row stands for
    no other."""
    parts: list[Pixels] = [belt(data.draw(st.integers(BELT, 300)))]
    edges: list[int] = []
    for number in range(4):
        edges.append(sum(map(len, parts)))
        gap = data.draw(st.sampled_from([0, 10, 25, 42, BELT, 130, 300]))
        parts += [plate(length=data.draw(st.integers(375, 425))), belt(gap, seed=number)]
    strip = np.concatenate([*parts, belt(200)])
    frame_height = data.draw(st.sampled_from([32, 64]))
    strip = strip[: len(strip) // frame_height * frame_height]
    frames = frames_of(strip, range(0, len(strip), frame_height))
    lost: set[int] = set()
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(1, len(frames) - 2))
        lost |= set(range(first, first + data.draw(st.integers(1, 500 // frame_height))))
    lay = geometry()
    cutter = StripCutter(lay, frame_height, lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8))
    rows: list[tuple[int, Event]] = []
    missed: list[int] = []
    seen_until = 0
    for frame in frames:
        if frame.frame_id not in lost or frame is frames[-1]:
            at = (frame.encoder_value or 0) + frame_height
            rows += [(at, event) for event in cutter.feed(frame)]
            missed += [seen_until] if cutter.may_have_missed_plates else []
            seen_until = at
    rows += [(len(strip), event) for event in cutter.finish()]
    owners = [
        bisect.bisect_right(edges, event.plate.encoder_value or 0) - 1
        for _, event in rows
        if isinstance(event, PlateOpened)
    ]
    gaps = [at for at, event in rows if isinstance(event, Gap)]
    assert owners == sorted(set(owners)), "a plate has one row"
    for number in set(range(4)) - set(owners):
        # Before the next plate that has a row of its own has ended.
        later = [edges[owner] for owner in owners if owner > number]
        until = min(later, default=len(strip)) + frame_height
        assert any(edges[number] < at <= until for at in gaps), (number, edges, owners, gaps)
    begins = missed + [
        event.plate.encoder_value or 0 for _, event in rows if isinstance(event, PlateOpened)
    ]
    for _, event in rows:
        if isinstance(event, PlateClosed) and event.reason is None:
            begin = event.plate.encoder_value or 0
            behind = next((edge for edge in edges if edge > begin), math.inf)
            nearest = min((at for at in begins if at > begin), default=math.inf)
            assert nearest <= behind, "an accept pulse would be too long"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_at_every_moment_the_rows_answer_for_all_ordinals_so_far(data: st.DataObject) -> None:
    """However often the run is cut, and wherever a kill falls: the highest ordinal in a row never
    leaves one below it without a row."""
    gaps = [data.draw(st.integers(BELT, 400)) for _ in range(4)]
    parts: list[Pixels] = [belt(data.draw(st.integers(0, 300)))]
    edges: list[int] = []
    for number, gap in enumerate(gaps):
        edges.append(sum(map(len, parts)))
        parts += [plate(seed=number), belt(gap, seed=number)]
    strip = np.concatenate(parts)
    strip = strip[: len(strip) // 64 * 64]
    before = data.draw(st.integers(0, 5))
    is_first = data.draw(st.booleans())
    passed = 0 if is_first else data.draw(st.integers(0, 3))
    frames = [
        replace(f, plate_counter=before + passed + sum(e < (f.encoder_value or 0) for e in edges))
        for f in frames_of(strip, range(0, len(strip), 64))
    ]
    lost = data.draw(st.sets(st.integers(0, len(frames) - 1), max_size=4))
    lay = geometry()
    cutter = StripCutter(
        lay,
        64,
        lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8),
        accounted_ordinal=None if is_first else before,
    )
    if is_first:  # what passed before the first frame of all was nobody's to see
        seen = [frame for number, frame in enumerate(frames) if number not in lost]
        before = (seen[0].plate_counter or 0) if seen else 0
    highest, answered = before, 0
    for number, frame in enumerate(frames):
        if number in lost:
            continue
        for event in cutter.feed(frame):
            if isinstance(event, PlateOpened):
                answered += 1
                highest = max(highest, event.plate.ordinal or 0)
            elif isinstance(event, Joined | Gap):
                answered += event.triggers or 0
                highest = max(highest, event.to_ordinal or 0)
            assert highest - before == answered, event


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("belt_lines", range(BELT, BELT + 64, 7))
def test_a_plate_whose_leading_edge_nobody_saw_is_not_taken_to_be_farther_away(
    fault: str, belt_lines: int
) -> None:
    edge = BELT + 400 + belt_lines
    strip = np.concatenate([belt(BELT), plate(), belt(belt_lines), plate(seed=2), belt(200)])
    lay = geometry()
    cutter = StripCutter(
        lay, 64, lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8), is_height_fixed=True
    )
    events: list[Event] = []
    missed, seen_until = [], 0
    for frame in spoilt(strip, edge // 64, fault):
        events += cutter.feed(frame)
        missed += [seen_until] if cutter.may_have_missed_plates else []
        seen_until = frame.frame_id * 64 + 64
    opened = [e.plate for e in events if isinstance(e, PlateOpened)]
    closed = [e for e in events if isinstance(e, PlateClosed)]
    if closed[0].reason is None:
        assert opened[0].encoder_value == BELT
        later = [at for at in missed if at > BELT] + [e.encoder_value or 0 for e in opened[1:]]
        # A picture that shows no plate where one is hides it until the next frame.
        assert min(later) <= edge + (64 if fault in ("black", "stuck") else 0)


def test_plates_that_are_opened_are_not_missed_and_counted_ones_that_nobody_sees_are() -> None:
    strip = np.concatenate([belt(256), strip_of(plate()), belt(640)])
    edges = [256 + BELT, 256 + 2 * BELT + 400 + 200]
    lay = geometry()
    cutter = StripCutter(lay, 64, lambda: np.empty((buffer_lines(lay), WIDTH), np.uint8))
    missed = []
    for frame in frames_of(strip[: len(strip) // 64 * 64], range(0, len(strip), 64)):
        at = frame.encoder_value or 0
        cutter.feed(replace(frame, plate_counter=sum(edge < at for edge in edges)))
        missed += [at] if cutter.may_have_missed_plates else []
    first, second = missed
    assert first == 0, "until the first belt is seen"
    assert edges[1] < second <= edges[1] + 3 * 64


def test_a_counter_that_began_anew_says_that_the_number_is_unknown() -> None:
    strip = strip_of(plate())
    frames = [
        replace(frame, plate_counter=210)
        for frame in frames_of(strip[: len(strip) // 64 * 64], range(0, len(strip), 64))
    ]
    events = cut(frames, accounted_ordinal=10_000)
    joined = next(event for event in events if isinstance(event, Joined))
    assert (joined.triggers, joined.to_ordinal, joined.is_counter_new) == (None, 210, True)
