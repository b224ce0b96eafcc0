"""What the belt really carried: which plate passed when, and which of them have defects."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random

from drivers.camera.producer.source import simulated_belt, write_source
from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import Slots, shuffled

_TIGHT_MM, _NEAR_MM, _WIDE_MM = (10.0, 25.0), (60.0, 85.0), (110.0, 150.0)
"""Gaps into which an accept pulse of 200 ms at 300 mm/s does not fit; just fits, or not; fits."""
_TIGHT_SHARE, _TIGHT_SHARE_OF_DEFECTIVE, _NEAR_SHARE = 0.2, 0.75, 0.1
"""Of the gaps before plates: a pulse that is too long does most harm before a defective one."""
_STOPS, _STOP_MS, _BETWEEN_STOPS_S = 80, (100, 450), (1.0, 7.0)
"""As many as the camera's text of 1023 characters has room for; then the belt runs on."""
_AIMED_SHARE, _AIM_MM = 0.5, 6.0
"""So many stop a plate just before the point at which it is accepted, while the next is close."""


@dataclass(frozen=True)
class Lap:
    """Where plates lie on a belt that repeats, in scan lines from its beginning."""

    starts: tuple[int, ...]
    plate_rows: int
    rows: int

    def start(self, plate: int) -> int:
        """First scan line of a plate, counted from 1."""
        laps, place = divmod(plate - 1, len(self.starts))
        return laps * self.rows + self.starts[place]

    def end(self, plate: int) -> int:
        return self.start(plate) + self.plate_rows

    def plates_before(self, row: float) -> int:
        """How many plates begin before a scan line."""
        laps, place = divmod(row, self.rows)
        return max(0, int(laps) * len(self.starts) + bisect_left(self.starts, place))


@dataclass(frozen=True)
class Stop:
    """A time in which the belt stands still, from when it began to run."""

    from_ms: int
    for_ms: int


@dataclass(frozen=True)
class Belt:
    """A belt that no fault reaches: everything follows from when it began to run."""

    settings: SimulatedCameraSettings
    epoch_ns: int
    repeats_after: int | None = None
    """Plates after which the producer's picture source repeats; None: it never does."""
    uneven: Lap | None = None
    """None: all plates are as far apart as the settings say."""
    stops: tuple[Stop, ...] = ()

    @cached_property
    def lap(self) -> Lap:
        slots = Slots(self.settings)
        return self.uneven or Lap((slots.gap,), slots.period - slots.gap, slots.period)

    def rows(self, mm: float) -> float:
        """So many scan lines are so long."""
        return mm / self.settings.pixel_pitch_mm

    @property
    def rows_s(self) -> float:
        """How many pass in a second while it runs."""
        return self.settings.line_rate_hz

    def at_ns(self, row: float) -> int:
        """When a scan line is under the camera; the first moment, if the belt stands there."""
        at_ms = row / self.rows_s * 1000
        for stop in self.stops:
            if at_ms <= stop.from_ms:
                break
            at_ms += stop.for_ms
        return self.epoch_ns + int(at_ms * 1e6)

    def row_at(self, at_ns: int) -> float:
        """Which scan line is under the camera."""
        age_ms = (at_ns - self.epoch_ns) / 1e6
        stood_ms = sum(min(max(age_ms - s.from_ms, 0.0), s.for_ms) for s in self.stops)
        return (age_ms - stood_ms) / 1000 * self.rows_s

    def leading_ns(self, plate: int) -> int:
        """When the leading edge of a plate (counted from 1) is under the camera."""
        return self.at_ns(self.lap.start(plate))

    def trailing_ns(self, plate: int) -> int:
        return self.at_ns(self.lap.end(plate))

    def carried(self, at_ns: int) -> int:
        """Plates whose leading edge has passed."""
        return self.lap.plates_before(int(self.row_at(at_ns)))

    def is_defective(self, plate: int) -> bool:
        if self.repeats_after is not None:
            plate = (plate - 1) % self.repeats_after + 1
        return _is_defective(self.settings, plate)

    def frame_at(self, plate: int, share: float) -> int:
        """The belt's frame in which this share of a plate's length lies."""
        row = self.lap.start(plate) + int(share * self.lap.plate_rows)
        return row // self.settings.frame_height

    def frame_ns(self, frame: int) -> int:
        """When a frame of the belt is complete."""
        return self.at_ns((frame + 1) * self.settings.frame_height)

    def plates_in(self, first_frame: int, last_frame: int) -> list[int]:
        """Plates of which a scan line lies in these frames."""
        lap, height = self.lap, self.settings.frame_height
        first, last = first_frame * height, (last_frame + 1) * height
        candidates = range(max(1, lap.plates_before(first)), lap.plates_before(last) + 1)
        return [plate for plate in candidates if lap.start(plate) < last and lap.end(plate) > first]


def _is_defective(settings: SimulatedCameraSettings, plate: int) -> bool:
    lap, place = divmod(plate - 1, settings.bank_plates)
    defective = round(settings.specimen.defective_share * settings.bank_plates)
    return shuffled(settings, lap)[place] < defective


# --- a belt that is hard to accept from -----------------------------------------------------------


def uneven_lap(settings: SimulatedCameraSettings, plates: int, draw: Random) -> Lap:
    """The belt's first plates with other gaps: before some, mostly before defective ones, no pulse
    fits."""
    slots = Slots(settings)
    plate_rows = slots.period - slots.gap
    gaps = [
        int(draw.uniform(*_gap_mm(_is_defective(settings, plate), draw)) / settings.pixel_pitch_mm)
        for plate in range(1, plates + 1)
    ]
    ends = list(accumulate(gap + plate_rows for gap in gaps))
    return Lap(tuple(end - plate_rows for end in ends), plate_rows, ends[-1])


def _gap_mm(is_before_defective: bool, draw: Random) -> tuple[float, float]:
    tight_share = _TIGHT_SHARE_OF_DEFECTIVE if is_before_defective else _TIGHT_SHARE
    if draw.random() < tight_share:
        return _TIGHT_MM
    return _NEAR_MM if draw.random() < _NEAR_SHARE else _WIDE_MM


def short_stops(belt: Belt, accept_mm: float, draw: Random) -> tuple[Stop, ...]:
    """Where the belt stands still: at random, and where a pulse may begin with the next plate close
    behind. A station that takes the mean speed across a stop for the belt's takes that plate to be
    farther away in time than it is."""
    stops: list[Stop] = []
    row, stood_ms = 0.0, 0
    while len(stops) < _STOPS:
        row += draw.uniform(*_BETWEEN_STOPS_S) * belt.rows_s
        if draw.random() < _AIMED_SHARE:
            row = _next_aim(belt, row, accept_mm) - draw.random() * belt.rows(_AIM_MM)
        stops.append(Stop(round(row / belt.rows_s * 1000) + stood_ms, draw.randint(*_STOP_MS)))
        stood_ms += stops[-1].for_ms
    return tuple(stops)


def _next_aim(belt: Belt, row: float, accept_mm: float) -> float:
    """The belt's place, after this one, when a plate is at the accept point and the next is near;
    if no plate is near another, the next plate's."""
    lap, way = belt.lap, belt.rows(accept_mm)
    first = lap.plates_before(row - way) + 1
    lapful = range(first, first + len(lap.starts))
    near = belt.rows(_TIGHT_MM[1])
    aims = (plate for plate in lapful if lap.start(plate + 1) - lap.end(plate) <= near)
    return lap.end(next(aims, first)) + way


def write_uneven_source(path: Path, belt: Belt) -> None:
    """The producer's picture source of an uneven belt."""
    lap = belt.lap
    even = simulated_belt(belt.settings, len(lap.starts))
    placements = list(zip(lap.starts, (picture for _, picture in even.placements), strict=True))
    with path.open("wb") as file:
        write_source(file, replace(even, placements=placements, period_rows=lap.rows))
