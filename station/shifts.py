"""Which shift a time belongs to. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from station.config import ShiftSettings


def shift_of(shifts: ShiftSettings, at: datetime) -> str:
    """The shift that was running, named for the local day on which it began: `2026-11-26 night`.

    A shift begins once, at its local time, and lasts until the next one begins: one that begins in
    the hour that is repeated when summer time ends begins at the first; one in the hour that is
    left out begins when that hour is over.
    """
    today = at.astimezone(ZoneInfo(shifts.timezone)).date()
    days = (today - timedelta(days=1), today)
    return max((begin, name) for begin, name in begun_on(shifts, days) if begin <= at)[1]


def begun_on(shifts: ShiftSettings, days: Iterable[date]) -> list[tuple[datetime, str]]:
    """When shifts begin on local days, in UTC, and their names; in the order of time."""
    zone = ZoneInfo(shifts.timezone)
    return sorted(
        (_begin(day, begins, zone), f"{day.isoformat()} {name}")
        for day in days
        for name, begins in shifts.begins.items()
    )


def _begin(day: date, begins: str, zone: ZoneInfo) -> datetime:
    # In UTC: two times of one zone are compared without regard to which of two equal hours.
    local = datetime.fromisoformat(f"{day.isoformat()}T{begins}").replace(tzinfo=zone)
    return local.astimezone(UTC)
