"""Counters of a running station: plain integers, written by one thread, read whenever asked."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from station.ipc import Json

BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper ends of the buckets, in seconds; one more bucket takes what is longer."""
_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in BOUNDS_S)
STAGES: Final = ("scored", "verdict", "submitted", "committed", "commanded", "confirmed")
"""Of a plate, each counted from the one before it, the first from the plate's last scan line."""


class Histogram:
    """Durations in fixed buckets."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        """A duration below 0 counts as 0: two threads read the clock."""
        duration_ns = max(0, duration_ns)
        self._counts[bisect_left(_BOUNDS_NS, duration_ns)] += 1
        self._sum_ns += duration_ns

    def as_json(self) -> Json:
        """`counts` by bucket, not summed up, and the sum of all durations in seconds."""
        return {"counts": list(self._counts), "sum_s": self._sum_ns / 1e9}


class StageTimes:
    """How long plates take from stage to stage, and from the last scan line to the command."""

    __slots__ = ("_latency", "_stages")

    def __init__(self) -> None:
        self._stages = {stage: Histogram() for stage in STAGES}
        self._latency = Histogram()

    def took(self, stage: str, from_ns: int, to_ns: int) -> None:
        self._stages[stage].observe(to_ns - from_ns)

    def commanded(self, last_scan_line_ns: int, commanded_ns: int) -> None:
        self._latency.observe(commanded_ns - last_scan_line_ns)

    def as_json(self) -> Json:
        stages = {stage: histogram.as_json() for stage, histogram in self._stages.items()}
        return {"stages": stages, "latency": self._latency.as_json()}
