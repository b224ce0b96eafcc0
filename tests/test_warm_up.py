"""The warm-up gate."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from station.warm_up import WarmUpLimits, WarmUpSample, judge_warm_up

LIMITS = WarmUpLimits(minutes=10, temperature_band_c=0.5, dark_band=0.5)


def warming(minutes: int, settle_min: float = 8.0) -> list[WarmUpSample]:
    """A camera that nears 45 C and a dark level of 4, a sample each half minute."""
    return [
        WarmUpSample(
            at_s=30.0 * n,
            temperature_c=45 - 20 * math.exp(-n / 2 / settle_min),
            dark_level=4 - 2 * math.exp(-n / 2 / settle_min),
        )
        for n in range(2 * minutes + 1)
    ]


def test_a_cold_camera_is_not_ready_and_a_warm_one_is() -> None:
    assert not judge_warm_up(warming(20), LIMITS).is_stable
    ready = judge_warm_up(warming(60), LIMITS)
    assert ready.is_stable
    assert ready.remaining_s == 0
    assert "45.0 C (band 0.5), dark level 4.00" in ready.detail


def test_it_says_how_long_is_left() -> None:
    still = [WarmUpSample(60.0 * n, 40.0, 3.0) for n in range(5)]
    found = judge_warm_up(still, LIMITS)
    assert (found.stable_for_s, found.remaining_s, found.is_stable) == (240.0, 360.0, False)


def test_a_jump_starts_the_time_again() -> None:
    still = [WarmUpSample(60.0 * n, 40.0, 3.0 + (n >= 18)) for n in range(20)]
    assert judge_warm_up(still, LIMITS).stable_for_s == 60.0


def test_unknown_is_not_stable() -> None:
    assert not judge_warm_up([], LIMITS).is_stable
    blind = [WarmUpSample(60.0 * n, None, None) for n in range(30)]
    assert not judge_warm_up(blind, LIMITS).is_stable
    lost = [WarmUpSample(60.0 * n, 40.0 if n < 25 else None, 3.0) for n in range(30)]
    assert judge_warm_up(lost, LIMITS).stable_for_s == 240.0
    broken = [WarmUpSample(60.0 * n, math.nan if n == 28 else 40.0, 3.0) for n in range(30)]
    assert judge_warm_up(broken, LIMITS).stable_for_s == 0.0


def test_a_camera_without_a_thermometer_is_judged_by_its_dark_level() -> None:
    found = judge_warm_up([WarmUpSample(60.0 * n, None, 3.0) for n in range(30)], LIMITS)
    assert found.is_stable
    assert "says no temperature" in found.detail


@given(st.lists(st.floats(30, 50), min_size=1, max_size=40))
def test_stable_means_that_every_sample_of_the_time_lies_within_the_band(
    temperatures: list[float],
) -> None:
    samples = [WarmUpSample(60.0 * n, t, 3.0) for n, t in enumerate(temperatures)]
    found = judge_warm_up(samples, LIMITS)
    inside = [s.temperature_c for s in samples if s.at_s >= samples[-1].at_s - found.stable_for_s]
    values = [value for value in inside if value is not None]
    assert max(values) - min(values) <= 0.5
    assert found.is_stable == (found.stable_for_s >= 600)
