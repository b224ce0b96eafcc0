"""The wall clock, watched against the time since boot: who sets it, and whether it may be believed.

Order and leases go by monotonic time. Only labels and the age of pictures go by the wall clock, so
a clock that was set decides what is removed; until a person says that it is right, nothing is.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from station.record import ClockBody, current_boot_id, rfc3339

_STEP_S = 0.25
"""A smaller change is no step: time sources slew by 0.5 ms a second."""
_SLEW = 1e-3
_PAIR_S = 0.01
"""Two readings further apart say nothing: this process was away between them."""
_READINGS = 5
_LABEL_S = 2.0
"""A row's label is made before the row is written."""
_SYNC_EVERY_S = 10.0
_TIME_ERROR = 5
_STA_UNSYNC = 0x40
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")


class Clock(Protocol):
    """Where times come from: this machine, or a test."""

    def wall_s(self) -> float:
        """Unix time."""

    def boot_s(self) -> float:
        """Seconds since boot; nobody can set it."""

    def is_synchronized(self) -> bool | None:
        """Whether a time source keeps the wall clock; None where nobody says."""


class SystemClock:
    """This machine's."""

    def wall_s(self) -> float:
        return time.time()

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def is_synchronized(self) -> bool | None:
        found = _kernel_is_synchronized()
        if found is None and _TIMESYNCD.exists():
            return True
        return found


def _kernel_is_synchronized() -> bool | None:
    """By adjtimex(2), which only reads with modes 0; None where a unit's filter forbids it."""
    # struct timex: modes at 0, status at 40 on 64-bit Linux.
    buffer = (ctypes.c_byte * 256)()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(buffer, 40).value
    return state != _TIME_ERROR and not status & _STA_UNSYNC


class ClockWatch:
    """What a journal process knows of its clock. For one thread."""

    def __init__(
        self,
        clock: Clock,
        station_id: str,
        limit_s: float,
        last: ClockBody | None,
        newest_at: str | None,
    ) -> None:
        """`last` is the log's last row of this kind, `newest_at` the label of its newest row;
        nothing is removed once the clock was set ahead by more than `limit_s`."""
        self._clock = clock
        self._station_id = station_id
        self._limit_s = limit_s
        self._newest_s = _unix(newest_at) if newest_at else 0.0
        self._sync_due = 0.0
        self.is_synchronized = clock.is_synchronized()
        self.steps = 0
        self.last_step_s = 0.0
        wall_s, boot_s = self._read() or (clock.wall_s(), clock.boot_s())
        self._offset_s = wall_s - boot_s
        step_s = self._since(last, newest_at, wall_s, boot_s)
        self.ahead_s = (last.ahead_s if last else 0.0) + step_s
        self._unsaid = [self._row("start", step_s)]

    def look(self) -> list[ClockBody]:
        """Rows to be written: what happened since the last look. They come again until `said`."""
        pair = self._read()
        if pair is not None:
            step_s = pair[0] - pair[1] - self._offset_s
            self._offset_s += step_s
            if abs(step_s) >= _STEP_S:
                self._step(step_s)
        if self._clock.boot_s() >= self._sync_due:
            self._look_at_sync()
        return self._unsaid

    def said(self) -> None:
        """What `look` gave is durable."""
        self._unsaid = []

    def accept(self, who: str, why: str) -> None:
        """A person says that the clock is right."""
        self.ahead_s, self._newest_s = 0.0, self._clock.wall_s()
        self._unsaid.append(self._row("accepted", 0.0).model_copy(update={"who": who, "why": why}))

    def labelled(self, written_at: str) -> None:
        """A row with this label was written."""
        self._newest_s = max(self._newest_s, _unix(written_at))

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC)

    @property
    def doubt(self) -> str:
        """Why the wall clock must not decide what is removed; empty if it may."""
        if self.ahead_s > self._limit_s:
            return (
                f"the clock was set ahead by {self.ahead_s / 3600:.1f} h; no picture is removed "
                "until `vqi log clock-is-right`, or until it is set back"
            )
        behind_s = self._newest_s - self._clock.wall_s()
        if behind_s > _LABEL_S:
            return (
                f"the clock is {behind_s / 3600:.1f} h before the newest row; no picture is "
                "removed until `vqi log clock-is-right`, or until that time has passed"
            )
        return ""

    def _read(self) -> tuple[float, float] | None:
        """Wall time and time since boot at one moment, or nothing."""
        for _ in range(_READINGS):
            before_s = self._clock.boot_s()
            wall_s = self._clock.wall_s()
            after_s = self._clock.boot_s()
            if after_s - before_s < _PAIR_S:
                return wall_s, (before_s + after_s) / 2
        return None

    def _since(
        self, last: ClockBody | None, newest_at: str | None, wall_s: float, boot_s: float
    ) -> float:
        """The step while nobody watched. Nothing measures the time between two boots: there a long
        absence counts as a step unless a time source keeps the clock."""
        if last is not None and last.boot_id == current_boot_id():
            step_s = (wall_s - boot_s) - (_unix(last.written_at) - last.boot_s)
            return step_s if abs(step_s) > _STEP_S + _SLEW * (boot_s - last.boot_s) else 0.0
        if newest_at is None:
            return 0.0
        away_s = wall_s - _unix(newest_at)
        is_odd = away_s > self._limit_s and not self.is_synchronized
        return away_s if is_odd or away_s < -_LABEL_S else 0.0

    def _step(self, step_s: float) -> None:
        self.steps += 1
        self.last_step_s = step_s
        self.ahead_s += step_s
        self._unsaid.append(self._row("step", step_s))

    def _look_at_sync(self) -> None:
        self._sync_due = self._clock.boot_s() + _SYNC_EVERY_S
        found = self._clock.is_synchronized()
        if found != self.is_synchronized:
            self.is_synchronized = found
            self._unsaid.append(self._row("sync", 0.0))

    def _row(self, cause: Literal["start", "step", "sync", "accepted"], step_s: float) -> ClockBody:
        return ClockBody(
            station_id=self._station_id,
            written_at=rfc3339(self.now()),
            cause=cause,
            step_s=step_s,
            ahead_s=self.ahead_s,
            boot_s=self._clock.boot_s(),
            is_synchronized=self.is_synchronized,
        )


def _unix(text: str) -> float:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return 0.0
