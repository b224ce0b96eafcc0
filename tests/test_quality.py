"""Rates and charts: intervals that hold as often as they say, limits that chance seldom crosses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from station.charts import NORMAL_COUNT, TAIL, Chart, Group, chart
from station.heat_map import heat_map, picture
from station.quality import (
    UNKNOWN,
    Tally,
    extent_mm,
    number_in_lot,
    pareto,
    proportion,
    size_class,
    zone,
)

# --- intervals ----------------------------------------------------------------------------------


def test_a_proportion_has_the_interval_of_clopper_and_pearson() -> None:
    """Values of Newcombe, Statistics in Medicine 17, 1998, table I, method 5."""
    for count, of, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ):
        rate = proportion(count, of)
        assert rate.value == pytest.approx(count / of)
        assert (rate.interval.low, rate.interval.high) == pytest.approx((low, high), abs=5e-5)
    assert proportion(0, 0) == UNKNOWN


@pytest.mark.parametrize(("lot", "sampled"), [(1, 1), (12, 5), (40, 7), (40, 40)])
def test_the_number_in_a_lot_is_covered_whatever_it_is(lot: int, sampled: int) -> None:
    """Exactly: every number of defective plates, every sample with its chance."""
    bounds = {found: number_in_lot(found, sampled, lot) for found in range(min(lot, sampled) + 1)}
    for defective in range(lot + 1):
        covered = sum(
            stats.hypergeom.pmf(found, lot, defective, sampled)
            for found, (low, high) in bounds.items()
            if low <= defective <= high
        )
        assert covered >= 0.95


def test_what_was_not_sampled_may_be_anything() -> None:
    assert number_in_lot(0, 0, 10) == (0, 10)
    assert number_in_lot(3, 10, 10) == (3, 3)


@pytest.mark.parametrize(("defective_share", "is_all_reviewed"), [(0.02, True), (0.002, False)])
def test_the_escape_rate_is_covered_where_the_truth_is_known(
    defective_share: float, is_all_reviewed: bool
) -> None:
    """Simulated plates: the station lets 20 % of the defective ones pass, and fails 1 % of the good
    ones; a tenth of the passed ones is audited, and of the failed ones each or each other one is
    reviewed."""
    rng, runs, covered = np.random.default_rng(5), 200, 0
    for _ in range(runs):
        is_defective = rng.random(8_000) < defective_share
        is_passed = rng.random(8_000) < np.where(is_defective, 0.2, 0.99)
        is_looked_at = rng.random(8_000) < np.where(is_passed, 0.1, 1.0 if is_all_reviewed else 0.5)
        tally = tally_of(is_defective, is_passed, is_looked_at)
        truth = (is_defective & is_passed).sum() / max(1, is_defective.sum())
        interval = tally.escape_rate().interval
        covered += interval.low <= truth <= interval.high
    assert covered / runs >= 0.95


def tally_of(is_defective: np.ndarray, is_passed: np.ndarray, is_seen: np.ndarray) -> Tally:
    audited, reviewed = is_passed & is_seen, ~is_passed & is_seen
    return Tally(
        passed=int(is_passed.sum()),
        failed=int((~is_passed).sum()),
        audited=int(audited.sum()),
        audited_defective=int((audited & is_defective).sum()),
        reviewed_fails=int(reviewed.sum()),
        confirmed_fails=int((reviewed & is_defective).sum()),
    )


def test_rates_of_a_tally() -> None:
    tally = Tally(
        passed=9_000, failed=1_000, audited=900, audited_defective=9, reviewed_fails=1_000,
        confirmed_fails=900,
    )  # fmt: skip
    assert tally.outgoing_defect_rate().value == pytest.approx(0.01)
    assert tally.overruled_share().value == pytest.approx(0.1)
    assert tally.escape_rate().value == pytest.approx(90 / 990)
    assert Tally(10, 5, 0, 0, 5, 5).escape_rate() == UNKNOWN, "nobody looked at what passed"
    unseen = Tally(10, 5, 10, 1, 0, 0).escape_rate()
    assert unseen.value is None
    assert unseen.interval.low == pytest.approx(1 / 6)
    assert unseen.interval.high == 1.0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_rate_lies_in_its_interval(data: st.DataObject) -> None:
    passed, failed = data.draw(st.integers(0, 500)), data.draw(st.integers(0, 500))
    audited, reviewed = data.draw(st.integers(0, passed)), data.draw(st.integers(0, failed))
    tally = Tally(
        passed,
        failed,
        audited,
        data.draw(st.integers(0, audited)),
        reviewed,
        data.draw(st.integers(0, reviewed)),
    )
    for rate in (tally.escape_rate(), tally.outgoing_defect_rate(), tally.overruled_share()):
        assert 0 <= rate.interval.low <= rate.interval.high <= 1
        if rate.value is not None:
            # A share of a lot is not always a whole number of plates.
            assert rate.interval.low - 0.01 <= rate.value <= rate.interval.high + 0.01


# --- Pareto, classes ----------------------------------------------------------------------------


def test_pareto_ranks_and_sums_up() -> None:
    rows = pareto({"skewed": 2, "defects": 7, "gap": 1})
    assert [(row.name, row.count) for row in rows] == [("defects", 7), ("skewed", 2), ("gap", 1)]
    assert [row.cumulative for row in rows] == pytest.approx([0.7, 0.9, 1.0])
    assert pareto({}) == []


def test_sizes_and_places_have_classes() -> None:
    assert size_class(0.5, 0.9) == "0-1 mm"
    assert size_class(1.0, 0.2) == "1-2 mm"
    assert size_class(3.0, 20.0) == "20 mm and more"
    assert size_class(None, 3.0) == "unknown"
    assert zone(0.0, 0.0, (90.0, 60.0)) == "leading left"
    assert zone(45.0, 59.9, (90.0, 60.0)) == "trailing middle"
    assert zone(90.0, 60.0, (90.0, 60.0)) == "trailing right"
    assert zone(None, 60.0, (90.0, 60.0)) == "unknown"
    assert extent_mm([(12.0, 7.0), (33.0, 9.9)]) == (40.0, 10.0)


def test_a_heat_map_counts_each_defect_once() -> None:
    places = [(5.0, 5.0), (5.1, 9.9), (359.9, 149.9), (400.0, 5.0), (None, 5.0)]
    found = heat_map(places, (360.0, 150.0), 10.0)
    assert found.counts.shape == (15, 36)
    assert found.rows() == [
        {"x_mm": 0.0, "y_mm": 0.0, "defects": 2},
        {"x_mm": 350.0, "y_mm": 140.0, "defects": 1},
    ]
    assert found.beside == 2
    image = picture(found, "three defects")
    bright = image[60 + 12, 60 + 12].astype(int)
    dark = image[60 + 12, 60 + 450].astype(int)
    assert bright.sum() > dark.sum() + 200, "the fullest cell is the brightest, in its place"
    assert heat_map([], (360.0, 150.0), 7.0).rows() == []


# --- charts -------------------------------------------------------------------------------------


def p_chart(sizes: list[int], counts: list[int]) -> Chart:
    return chart("p", [Group(str(i), n, x) for i, (n, x) in enumerate(zip(sizes, counts))])  # noqa: B905


def u_chart(sizes: list[int], counts: list[int]) -> Chart:
    return chart("u", [Group(str(i), n, x) for i, (n, x) in enumerate(zip(sizes, counts))])  # noqa: B905


@pytest.mark.parametrize("size", [3, 50, 1_000])
def test_exact_limits_leave_what_they_say_beyond(size: int) -> None:
    found = p_chart([size] * 8, [0, 1, 0, 0, 0, 1, 0, 0])
    point, counted = found.points[0], stats.binom(size, found.centre)
    low, high = round(point.low * size), round(point.high * size)
    assert counted.cdf(low - 1) < TAIL <= counted.cdf(low)
    assert counted.sf(high) <= TAIL < counted.sf(high - 1)
    found = u_chart([size] * 8, [0, 1, 0, 0, 0, 1, 0, 0])
    expected = stats.poisson(size * found.centre)
    assert expected.sf(round(found.points[0].high * size)) <= TAIL


def test_a_bad_hour_is_marked_and_a_usual_one_is_not() -> None:
    rng = np.random.default_rng(1)
    counts = rng.binomial(600, 0.02, 60)
    counts[40] = 40
    found = p_chart([600] * 60, counts.tolist())
    assert found.limits == "exact"
    assert [point.label for point in found.points if point.is_out] == ["40"]


def test_plates_that_vary_more_than_chance_get_laneys_limits() -> None:
    rng = np.random.default_rng(2)
    rates = rng.beta(20, 980, 80)
    found = p_chart([2_000] * 80, rng.binomial(2_000, rates).tolist())
    assert found.limits == "laney"
    assert found.sigma_z is not None
    assert found.sigma_z > 1.2
    assert sum(point.is_out for point in found.points) <= 2
    found = u_chart([2_000] * 80, rng.poisson(2_000 * rng.gamma(20, 0.001, 80)).tolist())
    assert found.limits == "laney"


def test_laneys_limits_are_those_of_his_formula() -> None:
    rng = np.random.default_rng(2)
    sizes, rates = rng.integers(1_500, 2_500, 40), rng.beta(20, 980, 40)
    counts = rng.binomial(sizes, rates)
    found = p_chart(sizes.tolist(), counts.tolist())
    mean = counts.sum() / sizes.sum()
    sigma = np.sqrt(mean * (1 - mean) / sizes)
    z = (counts / sizes - mean) / sigma
    sigma_z = np.abs(np.diff(z)).mean() / 1.128
    assert found.sigma_z == pytest.approx(sigma_z)
    assert [p.high for p in found.points] == pytest.approx((mean + 3 * sigma * sigma_z).tolist())


def test_chance_alone_seldom_gets_laneys_limits() -> None:
    rng, laney = np.random.default_rng(3), 0
    for _ in range(16):
        laney += p_chart([400] * 40, rng.binomial(400, 0.03, 40).tolist()).limits == "laney"
    assert laney <= 2  # one in a hundred is meant


@pytest.mark.parametrize(("size", "rate"), [(100, 0.004), (1_000, 0.03)])
def test_the_false_alarms_are_those_that_come(size: int, rate: float) -> None:
    """Marked points of charts of a process in control, against what the charts say of themselves;
    with a centre that is not known but found."""
    rng, marked, said = np.random.default_rng(4), 0, []
    for _ in range(6):
        found = p_chart([size] * 400, rng.binomial(size, rate, 400).tolist())
        marked += sum(point.is_out or bool(point.rules) for point in found.points)
        assert found.false_alarms_per_1000 is not None
        said.append(found.false_alarms_per_1000)
    assert marked / 2.4 == pytest.approx(float(np.mean(said)), rel=0.5, abs=2.0)


def rules_of(z: list[float]) -> dict[int, list[int]]:
    """Rules that points break whose counts are far from small, by the place of the point."""
    size, centre = 100_000, 0.5
    sigma = (centre * (1 - centre) * size) ** 0.5
    counts = [round(size * centre + one * sigma) for one in z]
    # As many again on the other side, so that the centre stays, and quiet ones, so that the spread
    # does.
    rest = [size - count for count in counts]
    rest += [round(size * centre + one * sigma) for one in (0.2, -0.5, 0.9, -0.6) * 40]
    found = p_chart([size] * len(counts + rest), counts + rest).points[: len(z)]
    return {i: list(point.rules) for i, point in enumerate(found) if point.rules}


def test_nelsons_rules_mark_the_point_that_completes_them() -> None:
    quiet = [0.3, -0.4, 1.2, -1.3, 0.2]
    assert rules_of(quiet) == {}
    assert 2 in rules_of([0.5, 1.2, 0.3, 0.9, 1.3, 0.4, 1.1, 0.2, 0.8])[8]
    assert 3 in rules_of([-1.2, -0.8, -0.2, 0.3, 0.9, 1.4])[5]
    assert 4 in rules_of([0.5, -0.5] * 7)[13]
    assert 5 in rules_of([2.3, 0.1, 2.4])[2]
    assert 6 in rules_of([1.3, 1.4, -0.2, 1.5, 1.6])[4]
    assert 7 in rules_of([0.2, -0.3, 0.4, 0.4, -0.5] * 3)[14]
    assert 8 in rules_of([1.5, -1.4, 1.6, -1.7, -1.3, 1.2, -1.6, 1.8])[7]


def test_nelsons_rules_are_silent_where_counts_are_small() -> None:
    size = int(NORMAL_COUNT / 0.02) - 1
    found = p_chart([size] * 30, [5, 4] * 10 + [6] * 10)
    assert found.centre * size <= 6
    assert not p_chart([100] * 30, [3] * 15 + [1] * 15).points[14].rules
    assert not p_chart([100] * 30, [3] * 15 + [1] * 15).points[14].is_normal


def test_a_chart_of_nothing_says_nothing() -> None:
    assert chart("p", []).points == ()
    none = p_chart([100] * 12, [0] * 12)
    assert (none.centre, none.sigma_z, none.false_alarms_per_1000) == (0.0, None, None)
    assert not any(point.is_out for point in none.points)
    every = p_chart([100] * 12, [100] * 12)
    assert not any(point.is_out for point in every.points)
    assert chart("u", [Group("empty", 0, 0), Group("one", 5, 2)]).points[0].label == "one"
