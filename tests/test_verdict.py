"""The verdict: nothing passes unless everything that I1 asks for holds."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from station.record import Reason, Verdict
from station.verdict import Evidence, TileScore, decide, find_defects, is_failing

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
    unlit_share=st.one_of(st.just(0.0), ANY_FLOAT),
    max_unlit_share=st.floats(0, 1),
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
    assert len({(t.column, t.row) for t in evidence.scores}) == evidence.tiles_expected > 0
    assert all(math.isfinite(t.score) and t.score <= evidence.threshold for t in evidence.scores)


def plate(scores: list[float], **changes: object) -> Evidence:
    tiles = [TileScore(i, 0, 192 * i, 0, score) for i, score in enumerate(scores)]
    values: dict[str, object] = {
        "problem": None,
        "tiles_expected": len(tiles),
        "scores": tiles,
        "threshold": 0.5,
        "unlit_share": 0.0,
        "max_unlit_share": 0.02,
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
    assert decide(plate([0.9], problem=Reason.SKEWED)) == (Verdict.UNDECIDED, Reason.SKEWED)
    assert decide(plate([0.1], is_late=True)) == (Verdict.UNDECIDED, Reason.DEADLINE)
    assert decide(plate([0.9], is_late=True)) == (Verdict.FAIL, None), "a late fail is a fail"


@given(ANY_FLOAT, st.floats(0, 1))
def test_a_score_that_is_no_number_fails_its_tile(score: float, threshold: float) -> None:
    if not math.isfinite(score):
        assert is_failing(score, threshold)


def test_neighbouring_failing_tiles_are_one_defect() -> None:
    tiles = [TileScore(c, r, 192 * c, 192 * r, 0.9) for c, r in ((0, 0), (1, 1), (5, 5))]
    boxes = find_defects(tiles, 0.5, left_px=0, pixel_pitch_mm=0.1)
    assert sorted((b.x_px, b.y_px, b.w_px) for b in boxes) == [(0, 0, 416), (960, 960, 224)]
