"""The attribute study: AIAG's printed example, scikit-learn's kappa, and what must be refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.msa import (
    EFFECTIVENESS,
    FALSE_ALARM_RATE,
    KAPPA,
    MISS_RATE,
    Decision,
    MsaError,
    Rating,
    cohen_kappa,
    evaluate,
    read_study,
    wilson,
)


def study(parts: list[tuple[bool, list[bool]]]) -> list[Decision]:
    """From each part's reference (is it good?) and decisions (is it accepted?)."""
    return [
        Decision(f"p{number}", str(run), is_good, is_accepted)
        for number, (is_good, decisions) in enumerate(parts)
        for run, is_accepted in enumerate(decisions)
    ]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Reference against appraisers A, B and C in AIAG's MSA manual, 4th edition, chapter III-C.
        ([[45, 5], [3, 97]], 0.88),
        ([[45, 3], [2, 100]], 0.92),
        ([[42, 9], [6, 93]], 0.77),
    ],
)
def test_kappa_of_the_manuals_appraisers(table: list[list[int]], kappa: float) -> None:
    assert round(float(cohen_kappa(np.array(table, float))), 2) == kappa


def test_the_manuals_first_appraiser() -> None:
    """50 parts, 16 of them bad, 3 runs; 42 right in each run, 3 misses, 5 false alarms: the manual
    prints 84 %, 6.3 % and 4.9 %."""
    right_good, right_bad = (True, [True] * 3), (False, [False] * 3)
    missed, alarmed = (False, [True, False, False]), (True, [False, True, True])
    parts = [right_good] * 29 + [right_bad] * 13 + [missed] * 3 + [alarmed] * 5
    found = evaluate(study(parts))
    assert found.effectiveness.value == pytest.approx(0.84)
    assert found.miss_rate.value == pytest.approx(3 / 48)
    assert found.false_alarm_rate.value == pytest.approx(5 / 102)
    assert found.kappa.value == pytest.approx(0.88, abs=0.005)
    assert found.ratings == {
        "effectiveness": Rating.MARGINAL,
        "miss rate": Rating.UNACCEPTABLE,
        "false-alarm rate": Rating.ACCEPTABLE,
        "kappa": Rating.MARGINAL,
    }
    assert len(found.wrong) == 8


tables = st.lists(
    st.tuples(st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(tables)
def test_kappa_is_the_one_of_scikit_learn(parts: list[tuple[bool, list[bool]]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    decisions = study(parts)
    truth, seen = [d.is_good for d in decisions], [d.is_accepted for d in decisions]
    found = evaluate(decisions).kappa
    if len(set(truth) | set(seen)) == 1:
        assert math.isnan(found.value)
    else:
        assert found.value == pytest.approx(metrics.cohen_kappa_score(truth, seen))
        assert found.low <= found.high


@settings(deadline=None)
@given(tables)
def test_figures_lie_in_their_intervals_and_the_unknown_is_not_good(
    parts: list[tuple[bool, list[bool]]],
) -> None:
    found = evaluate(study(parts))
    for item in (found.effectiveness, found.repeatability, found.miss_rate, found.false_alarm_rate):
        assert math.isnan(item.value) or 0 <= item.low <= item.value <= item.high <= 1
    if found.defective_parts == 0:
        assert found.ratings["miss rate"] is Rating.UNACCEPTABLE
    if found.good_parts == 0:
        assert found.ratings["false-alarm rate"] is Rating.UNACCEPTABLE


def test_wilson_of_known_shares() -> None:
    """Values of R's binom.confint(method = "wilson")."""
    for successes, trials, low, high in (
        (0, 50, 0.0, 0.07135),
        (50, 50, 0.92865, 1.0),
        (8, 10, 0.49016, 0.94332),
    ):
        found = wilson(successes, trials)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(
    ("limits", "acceptable", "marginal", "unacceptable"),
    [
        (EFFECTIVENESS, 0.90, 0.80, 0.79),
        (MISS_RATE, 0.02, 0.05, 0.051),
        (FALSE_ALARM_RATE, 0.05, 0.10, 0.11),
        (KAPPA, 0.90, 0.70, 0.69),
    ],
)
def test_the_notes_limits(
    limits: object, acceptable: float, marginal: float, unacceptable: float
) -> None:
    rate = limits.rate  # type: ignore[attr-defined]
    assert [rate(v) for v in (acceptable, marginal, unacceptable, math.nan)] == [
        Rating.ACCEPTABLE,
        Rating.MARGINAL,
        Rating.UNACCEPTABLE,
        Rating.UNACCEPTABLE,
    ]


def test_undecided_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_text("part,run,reference,verdict\na,1,good,UNDECIDED\nb,1,FAIL,undecided\n")
    assert [d.is_accepted for d in read_study(path)] == [False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part,run,verdict\n", "no column reference"),
        ("part,run,reference,verdict\na,1,good,maybe\n", "row 2: verdict 'maybe'; one of PASS"),
        ("part,run,reference,verdict\na,1,,PASS\n", "row 2: reference ''"),
        ("part,run,reference,verdict\n,1,good,PASS\n", "row 2: part and run must be named"),
        ("part,run,reference,verdict\na,1\n", "row 2: reference ''"),
        ("", "no column part"),
        ("part,run,reference,verdict\n", "no decisions"),
        ("part,run,reference,verdict\na,1,good,PASS\na,1,good,PASS\n", "twice in run 1"),
        ("part,run,reference,verdict\na,1,good,PASS\na,2,FAIL,PASS\n", "two references"),
        (
            "part,run,reference,verdict\na,1,good,PASS\na,2,good,PASS\nb,1,good,PASS\n",
            "b is missing in run 2",
        ),
    ],
)
def test_a_study_that_is_not_whole_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.csv"
    path.write_text(text)
    with pytest.raises(MsaError, match=message):
        evaluate(read_study(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("binary.csv", "none.csv"):
        with pytest.raises(MsaError, match="cannot be read"):
            read_study(tmp_path / name)
