"""When a plate is where: from the trigger input to the picture, and from the camera to the reject
point, measured on the frames themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from drivers.camera import Frame


class DelayUnknown(ValueError):
    """The frames do not say; what is missing, what to do."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One plate: where its leading edge is in the picture, and where the trigger counted it.

    Scan lines are counted from the start of acquisition.
    """

    leading_edge: float
    trigger_after: int
    """The trigger's edge came at this scan line or later,"""
    trigger_before: int
    """and before this one: the counter is read once a frame."""


@dataclass(frozen=True, slots=True)
class TriggerDelay:
    """From the trigger's edge to the leading edge in the picture; negative: that one is first."""

    scan_lines: float
    mm: float
    ms: float
    standard_error_mm: float
    plates: int


@dataclass(frozen=True, slots=True)
class RejectDelay:
    """From the leading edge under the camera to the same edge at the reject point."""

    mm: float
    ms: float
    encoder_counts: float | None
    decision_ms: float
    """Time for verdict and commit: from the trailing edge under the camera until the leading edge
    is at the reject point."""
    problems: tuple[str, ...]


def sightings(frames: Iterable[tuple[Frame, Sequence[int]]]) -> list[Sighting]:
    """Plates in consecutive frames, each with the rows of its leading edges.

    Raises `DelayUnknown` without a trigger counter, or where frames are missing.
    """
    edges: list[int] = []
    steps: list[tuple[int, int]] = []
    line, previous = 0, None
    for frame, rows in frames:
        if previous is not None:
            counted = _counted(previous, frame)
            steps += [(line - previous.height, line)] * counted
        edges += [line + row for row in rows]
        line, previous = line + frame.height, frame
    if previous is not None and previous.plate_counter is None:
        raise DelayUnknown(_NO_COUNTER)
    nearest = ((edge, min(steps, key=partial(_away, edge), default=None)) for edge in edges)
    return [Sighting(float(edge), *step) for edge, step in nearest if step is not None]


_NO_COUNTER = "the camera counts no trigger: enable the plate trigger input and its counter chunk"


def _counted(previous: Frame, frame: Frame) -> int:
    """Plates that the trigger counted from one frame to the next. Raises `DelayUnknown`."""
    if frame.plate_counter is None or previous.plate_counter is None:
        raise DelayUnknown(_NO_COUNTER)
    if frame.frame_id != previous.frame_id + 1:
        raise DelayUnknown(f"frames before {frame.frame_id} are missing; take them again")
    return frame.plate_counter - previous.plate_counter


def _away(edge: int, step: tuple[int, int]) -> float:
    return abs(sum(step) / 2 - edge)


def measure_trigger_delay(
    plates: Sequence[Sighting], mm_per_scan_line: float, belt_mm_s: float
) -> TriggerDelay:
    """The mean delay of some plates. The counter is read once a frame; plates lie anywhere in
    theirs, so that the mean knows more than one plate. Raises `DelayUnknown`."""
    if not plates:
        raise DelayUnknown("no plate was both seen and counted; let plates pass")
    _check_speed(belt_mm_s)
    middles = np.array(
        [plate.leading_edge - (plate.trigger_after + plate.trigger_before) / 2 for plate in plates]
    )
    frame = float(np.mean([plate.trigger_before - plate.trigger_after for plate in plates]))
    scan_lines = float(middles.mean())
    error = max(float(middles.std()), frame / math.sqrt(12)) / math.sqrt(len(plates))
    mm = scan_lines * mm_per_scan_line
    return TriggerDelay(
        scan_lines, mm, 1000 * mm / belt_mm_s, error * mm_per_scan_line, len(plates)
    )


def belt_speed(frames: Sequence[tuple[int, int]], mm_per_scan_line: float) -> float:
    """mm/s from (scan lines delivered so far, timestamp ns) of frames, by a straight line through
    them. Raises `DelayUnknown`."""
    if len(frames) < 3:
        raise DelayUnknown("too few frames to tell the belt's speed; take at least 3")
    lines, stamps = np.array(frames, np.float64).T
    seconds = (stamps - stamps[0]) / 1e9
    if seconds[-1] <= 0:
        raise DelayUnknown("the frames' timestamps do not move")
    return float(np.polyfit(seconds, lines, 1)[0]) * mm_per_scan_line


def plan_reject(
    distance_mm: float,
    belt_mm_s: float,
    plate_length_mm: float,
    deadline_ms: float,
    counts_per_mm: float | None = None,
) -> RejectDelay:
    """When a plate is at the reject point, `distance_mm` after the camera. Raises `DelayUnknown`
    for a belt that stands still."""
    _check_speed(belt_mm_s)
    decision_ms = 1000 * (distance_mm - plate_length_mm) / belt_mm_s
    problems = []
    if decision_ms < deadline_ms:
        least_mm = plate_length_mm + deadline_ms * belt_mm_s / 1000
        problems.append(
            f"the reject point is too near: {decision_ms:.0f} ms from the end of a plate, its "
            f"verdict may take {deadline_ms:.0f} ms; at least {least_mm:.0f} mm, or a slower belt"
        )
    return RejectDelay(
        mm=distance_mm,
        ms=1000 * distance_mm / belt_mm_s,
        encoder_counts=None if counts_per_mm is None else distance_mm * counts_per_mm,
        decision_ms=decision_ms,
        problems=tuple(problems),
    )


def _check_speed(belt_mm_s: float) -> None:
    if not (math.isfinite(belt_mm_s) and belt_mm_s > 0):
        raise DelayUnknown(f"the belt's speed must be above 0 mm/s, {belt_mm_s:g} was given")
