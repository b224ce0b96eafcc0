"""The line-rate calculator."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.line_rate import plan_line_rate

POSITIVE = st.floats(1e-3, 1e4)


@given(st.floats(1, 5000), st.floats(0.005, 1), st.floats(1, 5000), st.integers(1, 2000))
def test_a_plan_agrees_with_itself(
    belt_mm_s: float, pitch_mm: float, counts_per_mm: float, divider: int
) -> None:
    plan = plan_line_rate(belt_mm_s, pitch_mm, counts_per_mm, divider, width=4096)
    # In one second the belt passes as many mm as scan lines have seen of it.
    assert math.isclose(plan.line_rate_hz * plan.downweb_pitch_mm, belt_mm_s)
    assert math.isclose(plan.line_rate_hz * divider, belt_mm_s * counts_per_mm)
    assert math.isclose(plan.aspect * plan.line_rate_hz, plan.line_rate_square_hz)
    assert math.isclose(plan.period_us * plan.line_rate_hz, 1e6)
    assert plan.mb_per_s is not None
    assert math.isclose(plan.mb_per_s, plan.line_rate_hz * 4096 / 1e6)
    is_square = abs(plan.aspect - 1) <= 0.005
    assert is_square == (not any("not square" in text for text in plan.warnings))


@given(st.floats(1, 5000), st.floats(0.005, 1), st.floats(1, 5000))
def test_no_other_divider_makes_pixels_more_nearly_square(
    belt_mm_s: float, pitch_mm: float, counts_per_mm: float
) -> None:
    plan = plan_line_rate(belt_mm_s, pitch_mm, counts_per_mm)
    assert plan.divider == plan.divider_square is not None
    for other in (plan.divider - 1, plan.divider + 1):
        if other > 0:
            worse = plan_line_rate(belt_mm_s, pitch_mm, counts_per_mm, other)
            off, best = (abs(p.downweb_pitch_mm - pitch_mm) for p in (worse, plan))
            assert off >= best * (1 - 1e-9), "two that are equally near differ by rounding only"


@given(st.floats(1, 5000), st.floats(0.005, 1), POSITIVE)
def test_exposure_beyond_the_period_is_told(
    belt_mm_s: float, pitch_mm: float, exposure_us: float
) -> None:
    plan = plan_line_rate(belt_mm_s, pitch_mm, exposure_us=exposure_us)
    is_told = any(text.startswith("exposure") for text in plan.warnings)
    assert is_told == (exposure_us >= plan.period_us)


def test_the_demonstration_belt() -> None:
    plan = plan_line_rate(300.0, 0.1, counts_per_mm=100.0, exposure_us=250.0, width=4096)
    assert plan.line_rate_hz == pytest.approx(3000)
    assert (plan.counts_per_scan_line, plan.divider, plan.warnings) == (10, 10, ())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"divider": 8}, "0.8000 times as long downweb as crossweb; the divider is 8, 10 is right"),
        ({"counts_per_mm": 4.0}, "0.400 counts a pixel, fewer than one"),
        ({"counts_per_mm": 25.0}, "no whole divider is nearer than 2 to 2.500 counts"),
        ({"exposure_us": 400.0}, "exceeds the scan line's period of 333.3 us"),
        ({"max_line_rate_hz": 2000.0}, "3000 scan lines/s, at most 2000; slow the belt to 67%"),
        ({"link_mb_per_s": 10.0}, "12.3 MB/s, at most 90% of 10 MB/s"),
    ],
)
def test_each_warning_says_what_to_do(changes: dict[str, float], text: str) -> None:
    values = {"counts_per_mm": 100.0, "exposure_us": 250.0, "width": 4096, **changes}
    plan = plan_line_rate(300.0, 0.1, **values)  # type: ignore[arg-type]
    (warning,) = plan.warnings
    assert text in warning


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0, 0.1), "belt_mm_s must be above 0"),
        ((300.0, math.nan), "pixel_pitch_mm must be above 0"),
        ((300.0, 0.1, None, 4), "counts_per_mm is needed"),
        ((300.0, 0.1, -1.0), "counts_per_mm must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(values: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plan_line_rate(*values)  # type: ignore[arg-type]
