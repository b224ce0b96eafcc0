"""Which shift a time belongs to. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from station.config import ShiftSettings


def shift_of(shifts: ShiftSettings, at: datetime) -> str:
    """The shift that was running, named for the local day on which it began: `2026-11-26 night`.

    A shift begins once, at its local time, and lasts until the next one begins: one that begins in
    the hour that is repeated when summer time ends begins at the first; one in the hour that is
    left out begins when that hour is over.
    """
    zone = ZoneInfo(shifts.timezone)
    today = at.astimezone(zone).date()
    begun = [
        (_begin(day, begins, zone), f"{day.isoformat()} {name}")
        for day in (today - timedelta(days=1), today)
        for name, begins in shifts.begins.items()
    ]
    return max((begin, name) for begin, name in begun if begin <= at)[1]


def _begin(day: date, begins: str, zone: ZoneInfo) -> datetime:
    # In UTC: two times of one zone are compared without regard to which of two equal hours.
    local = datetime.fromisoformat(f"{day.isoformat()}T{begins}").replace(tzinfo=zone)
    return local.astimezone(UTC)
