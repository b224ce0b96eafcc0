"""The verdict: nothing passes unless everything that I1 asks for holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from station.record import DefectBody, Reason, Verdict
from station.tiling import OUTSIDE, TILE_PX, TileRow
from station.verdict import (
    Evidence,
    TileScore,
    boxes_on_plate,
    decide,
    find_defects,
    is_failing,
)

ANY_FLOAT = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 0.5, 1.0]),
)
TILES = st.lists(
    st.builds(
        lambda column, row, score: TileScore(column, row, 192 * column, 192 * row, score),
        st.integers(0, 3),
        st.integers(0, 3),
        ANY_FLOAT,
    ),
    max_size=16,
)
EVIDENCE = st.builds(
    Evidence,
    problem=st.one_of(st.none(), st.none(), st.none(), st.sampled_from(Reason)),
    tiles_expected=st.integers(-1, 16),
    scores=TILES,
    threshold=ANY_FLOAT,
    unsure_above=st.one_of(st.none(), ANY_FLOAT),
    unlit_share=st.one_of(st.just(0.0), ANY_FLOAT),
    max_unlit_share=st.floats(0, 1),
    streak_share=st.one_of(st.just(0.0), ANY_FLOAT),
    max_streak_share=st.floats(0, 1),
    is_self_tested=st.sampled_from([True, True, True, False]),
    is_late=st.sampled_from([False, False, False, True]),
)


@given(EVIDENCE)
def test_pass_means_that_all_of_i1_holds(evidence: Evidence) -> None:
    verdict, reason = decide(evidence)
    if verdict is not Verdict.PASS:
        assert (verdict is Verdict.UNDECIDED) == (reason is not None)
        return
    assert evidence.problem is None
    assert evidence.is_self_tested
    assert not evidence.is_late
    assert 0 <= evidence.threshold <= 1
    assert evidence.unlit_share <= evidence.max_unlit_share
    assert evidence.streak_share <= evidence.max_streak_share
    assert len({(t.column, t.row) for t in evidence.scores}) == evidence.tiles_expected > 0
    assert all(math.isfinite(t.score) and t.score <= evidence.threshold for t in evidence.scores)
    if evidence.unsure_above is not None:
        assert 0 <= evidence.unsure_above <= 1
        assert all(t.score <= evidence.unsure_above for t in evidence.scores)


@given(EVIDENCE, ANY_FLOAT)
def test_doubt_takes_passes_away_and_changes_nothing_else(evidence: Evidence, doubt: float) -> None:
    certain = decide(replace(evidence, unsure_above=None))
    found = decide(replace(evidence, unsure_above=doubt))
    if found != certain:
        assert certain[0] is Verdict.PASS or certain[1] is Reason.DEADLINE or not 0 <= doubt <= 1
        assert found[0] is Verdict.UNDECIDED
        assert found[1] in (Reason.UNSURE, Reason.MODEL)


def plate(scores: list[float], **changes: object) -> Evidence:
    tiles = [TileScore(i, 0, 192 * i, 0, score) for i, score in enumerate(scores)]
    values: dict[str, object] = {
        "problem": None,
        "tiles_expected": len(tiles),
        "scores": tiles,
        "threshold": 0.5,
        "unsure_above": None,
        "unlit_share": 0.0,
        "max_unlit_share": 0.02,
        "streak_share": 0.05,
        "max_streak_share": 0.25,
        "is_self_tested": True,
        **changes,
    }
    return Evidence(**values)  # type: ignore[arg-type]


def test_a_good_plate_passes_and_a_bad_tile_fails_it() -> None:
    assert decide(plate([0.1, 0.5])) == (Verdict.PASS, None)
    assert decide(plate([0.1, 0.51])) == (Verdict.FAIL, None)


def test_what_is_unknown_is_undecided_with_its_reason() -> None:
    assert decide(plate([0.1, math.nan])) == (Verdict.UNDECIDED, Reason.NON_FINITE)
    assert decide(plate([0.1], tiles_expected=2)) == (Verdict.UNDECIDED, Reason.UNCOVERED)
    assert decide(plate([], tiles_expected=0)) == (Verdict.UNDECIDED, Reason.UNCOVERED)
    assert decide(plate([0.1], is_self_tested=False)) == (Verdict.UNDECIDED, Reason.MODEL)
    assert decide(plate([0.1], unlit_share=0.5)) == (Verdict.UNDECIDED, Reason.UNLIT)
    assert decide(plate([0.1], streak_share=0.3)) == (Verdict.UNDECIDED, Reason.OBSCURED)
    assert decide(plate([0.9], streak_share=0.3)) == (Verdict.FAIL, None)
    assert decide(plate([0.9], problem=Reason.SKEWED)) == (Verdict.UNDECIDED, Reason.SKEWED)
    assert decide(plate([0.1], is_late=True)) == (Verdict.UNDECIDED, Reason.DEADLINE)
    assert decide(plate([0.9], is_late=True)) == (Verdict.FAIL, None), "a late fail is a fail"
    assert decide(plate([0.1, 0.4], unsure_above=0.3)) == (Verdict.UNDECIDED, Reason.UNSURE)
    assert decide(plate([0.4, 0.9], unsure_above=0.3)) == (Verdict.FAIL, None)
    assert decide(plate([0.3], unsure_above=0.3)) == (Verdict.PASS, None)
    assert decide(plate([0.1], unsure_above=math.nan)) == (Verdict.UNDECIDED, Reason.MODEL)


@given(ANY_FLOAT, st.floats(0, 1))
def test_a_score_that_is_no_number_fails_its_tile(score: float, threshold: float) -> None:
    if not math.isfinite(score):
        assert is_failing(score, threshold)


def test_neighbouring_failing_tiles_are_one_defect() -> None:
    tiles = [TileScore(c, r, 192 * c, 192 * r, 0.9) for c, r in ((0, 0), (1, 1), (5, 5))]
    boxes = find_defects(tiles, 0.5, left_px=0, pixel_pitch_mm=0.1)
    assert sorted((b.x_px, b.y_px, b.w_px) for b in boxes) == [(0, 0, 416), (960, 960, 224)]


BOX = st.tuples(st.integers(0, 27), st.integers(0, 27), st.integers(1, 28), st.integers(1, 28)).map(
    lambda b: (8 * b[0], 8 * b[1], 8 * min(b[2], 28 - b[0]), 8 * min(b[3], 28 - b[1]))
)
"""On the raster of `models.localise`."""


@st.composite
def scored_grids(draw: st.DrawFn) -> list[TileScore]:
    """A whole grid of tiles; failing ones have boxes or none."""
    step = draw(st.sampled_from([32, 192, 224]))
    columns, rows = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    tiles = []
    for column, row in ((c, r) for c in range(columns) for r in range(rows)):
        score = draw(st.sampled_from([0.1, 0.2, 0.8, 0.9]))
        boxes = draw(st.lists(BOX, max_size=3)) if score > 0.5 else []
        tiles.append(TileScore(column, row, step * column, step * row, score, tuple(boxes)))
    return tiles


@given(scored_grids())
def test_every_failing_tile_is_in_a_defect_and_nothing_else_makes_one(
    tiles: list[TileScore],
) -> None:
    found = find_defects(tiles, 0.5, left_px=0, pixel_pitch_mm=0.1)
    failing = [tile for tile in tiles if tile.score > 0.5]
    boxes = [
        (t.x_px + x, t.y_px + y, t.x_px + x + w, t.y_px + y + h, t.score)
        for t in failing
        for x, y, w, h in t.boxes or [(0, 0, TILE_PX, TILE_PX)]
    ]
    inside: dict[int, list[tuple[int, int, int, int, float]]] = {}
    for box in boxes:
        homes = [i for i, d in enumerate(found) if covers(d, box)]
        assert homes, "every box of a failing tile lies in a defect"
        for home in homes:
            inside.setdefault(home, []).append(box)
    assert len(inside) == len(found), "no defect without a failing tile"
    for place, defect in enumerate(found):
        own = inside[place]
        corners = [f(b[i] for b in own) for i, f in enumerate((min, min, max, max))]
        assert corners == [defect.x_px, defect.y_px, *ends(defect)], "no larger than its boxes"
        assert defect.score in {box[4] for box in own}
        assert ends(defect)[0] <= max(t.x_px for t in tiles) + TILE_PX
        assert ends(defect)[1] <= max(t.y_px for t in tiles) + TILE_PX
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def ends(defect: DefectBody) -> tuple[int, int]:
    return defect.x_px + defect.w_px, defect.y_px + defect.h_px


def covers(defect: DefectBody, box: tuple[int, int, int, int, float]) -> bool:
    right, bottom = ends(defect)
    x0, y0, x1, y1, _ = box
    return defect.x_px <= x0 and defect.y_px <= y0 and x1 <= right and y1 <= bottom


def test_boxes_that_meet_across_tiles_are_one_defect_in_mm() -> None:
    """A scratch that two overlapping tiles see, and a spot of its own in the second."""
    first = TileScore(0, 0, 0, 0, 0.8, ((160, 40, 64, 16),))
    second = TileScore(1, 0, 192, 0, 0.9, ((0, 48, 40, 16), (150, 150, 20, 20)))
    scratch, spot = sorted(
        find_defects([first, second], 0.5, left_px=100, pixel_pitch_mm=0.1),
        key=lambda defect: defect.x_px,
    )
    assert (scratch.x_px, scratch.y_px, scratch.w_px, scratch.h_px) == (160, 40, 72, 24)
    assert (scratch.x_mm, scratch.y_mm, scratch.w_mm, scratch.h_mm) == (9.6, 5.2, 7.2, 2.4)
    assert scratch.score == 0.9
    assert (spot.x_px, spot.w_px, spot.score) == (342, 20, 0.9)


def test_boxes_that_touch_are_one_and_boxes_apart_are_two() -> None:
    def found(gap: int) -> int:
        tile = TileScore(0, 0, 0, 0, 0.9, ((0, 0, 10, 10), (10 + gap, 10, 10, 10)))
        return len(find_defects([tile], 0.5, left_px=0, pixel_pitch_mm=0.1))

    assert [found(0), found(1)] == [1, 2]


def test_a_failing_tile_without_boxes_is_boxed_whole_and_takes_in_what_it_meets() -> None:
    plain = TileScore(0, 0, 0, 0, 0.7)
    boxed = TileScore(1, 0, 192, 0, 0.9, ((10, 10, 20, 20),))
    (defect,) = find_defects([plain, boxed], 0.5, left_px=0, pixel_pitch_mm=0.1)
    assert (defect.x_px, defect.y_px, defect.w_px, defect.h_px) == (0, 0, 224, 224)
    assert defect.score == 0.9


def test_padding_beside_the_plate_is_cut_off_a_box() -> None:
    """The plate ends at pixel 300 of the scan line and after 100 lines of the tile."""
    left, right = np.full(TILE_PX, 5, np.int32), np.full(TILE_PX, 300, np.int32)
    left[100:], right[100:] = OUTSIDE, OUTSIDE
    row = TileRow(0, 0, (1,), (192,), left, right)
    boxes = [(80, 60, 64, 64), (120, 0, 40, 40), (0, 100, 64, 64), (8, 8, 16, 16)]
    assert boxes_on_plate(row, 192, boxes) == ((80, 60, 28, 40), (8, 8, 16, 16))
