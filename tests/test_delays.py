"""Trigger and reject delay from frames whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.camera import Frame
from station.delays import (
    DelayUnknown,
    belt_speed,
    measure_trigger_delay,
    plan_reject,
    sightings,
)

HEIGHT = 64
EMPTY = np.zeros((HEIGHT, 16), np.uint8)


def frames(
    edges: list[int], delay: int, count: int, has_counter: bool = True
) -> Iterator[tuple[Frame, list[int]]]:
    """Frames over leading edges at these scan lines, each counted `delay` scan lines before."""
    for number in range(count):
        first = number * HEIGHT
        counter = sum(edge - delay < first for edge in edges) if has_counter else None
        frame = Frame(EMPTY, 16, number, number * 1_000_000, plate_counter=counter)
        yield frame, [edge - first for edge in edges if first <= edge < first + HEIGHT]


@given(st.integers(-300, 300), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_mean_over_plates_knows_more_than_a_frame(delay: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.integers(900, 1100, 60)).tolist()
    plates = sightings(frames(edges, delay, edges[-1] // HEIGHT + 10))
    found = measure_trigger_delay(plates, mm_per_scan_line=0.1, belt_mm_s=300.0)
    assert found.plates == 60
    assert abs(found.scan_lines - delay) < 5 * found.standard_error_mm / 0.1
    assert found.standard_error_mm / 0.1 < HEIGHT / 12
    assert found.mm == pytest.approx(0.1 * found.scan_lines)
    assert found.ms == pytest.approx(found.mm / 0.3)


def test_a_plate_whose_trigger_came_before_the_first_frame_does_not_count() -> None:
    edges = [100 + 1000 * n for n in range(8)]
    plates = sightings(frames(edges, 300, edges[-1] // HEIGHT + 1))
    found = measure_trigger_delay(plates, 0.1, 300.0)
    assert found.plates == 7
    assert found.scan_lines == pytest.approx(300, abs=HEIGHT / 2)


def test_without_a_counter_or_with_a_loss_it_is_unknown() -> None:
    with pytest.raises(DelayUnknown, match="counts no trigger: enable"):
        sightings(frames([500], 10, 20, has_counter=False))
    lost = [pair for n, pair in enumerate(frames([500], 10, 20)) if n != 4]
    with pytest.raises(DelayUnknown, match="frames before 5 are missing"):
        sightings(lost)
    with pytest.raises(DelayUnknown, match="no plate was both seen and counted"):
        measure_trigger_delay([], 0.1, 300.0)


def test_the_belt_s_speed_comes_from_the_frames() -> None:
    rng = np.random.default_rng(3)
    jitter = rng.integers(-200_000, 200_000, 100)
    seen = [(64 * n, int(64 * n / 3000 * 1e9) + int(jitter[n])) for n in range(100)]
    assert belt_speed(seen, 0.1) == pytest.approx(300.0, rel=1e-3)
    with pytest.raises(DelayUnknown, match="too few frames"):
        belt_speed(seen[:2], 0.1)
    with pytest.raises(DelayUnknown, match="do not move"):
        belt_speed([(64 * n, 5) for n in range(5)], 0.1)


def test_the_reject_point_must_leave_time_for_a_verdict() -> None:
    plan = plan_reject(600.0, 300.0, 150.0, deadline_ms=1000.0, counts_per_mm=10.0)
    assert (plan.ms, plan.encoder_counts, plan.decision_ms) == (2000.0, 6000.0, 1500.0)
    assert plan.problems == ()
    near = plan_reject(300.0, 300.0, 150.0, deadline_ms=1000.0)
    assert (
        "500 ms from the end of a plate, its verdict may take 1000 ms; at least 450 mm"
        in (near.problems[0])
    )
    for speed in (0.0, -1.0, math.nan):
        with pytest.raises(DelayUnknown, match="above 0 mm/s"):
            plan_reject(600.0, speed, 150.0, 1000.0)
