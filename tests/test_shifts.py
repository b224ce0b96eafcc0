"""A time's shift: each plate has one, nights belong to the day on which they began, in any zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from station_rig import Rig

from station.config import ConfigError, ShiftSettings, load_configuration
from station.shifts import shift_of

BERLIN = ShiftSettings.model_validate(
    {"timezone": "Europe/Berlin", "early": "06:00", "late": "14:00", "night": "22:00"}
)


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


@pytest.mark.parametrize(
    ("local", "shift"),
    [
        ("2026-11-26T06:00", "2026-11-26 early"),
        ("2026-11-26T13:59:59.999999", "2026-11-26 early"),
        ("2026-11-26T14:00", "2026-11-26 late"),
        ("2026-11-26T22:00", "2026-11-26 night"),
        ("2026-11-27T00:30", "2026-11-26 night"),
        ("2026-11-27T05:59", "2026-11-26 night"),
        ("2027-01-01T01:00", "2026-12-31 night"),
        ("2026-10-25T02:30", "2026-10-24 night"),
        ("2026-03-29T03:30", "2026-03-28 night"),
    ],
)
def test_the_shift_of_a_time(local: str, shift: str) -> None:
    assert shift_of(BERLIN, at(local).astimezone(UTC)) == shift


def test_a_shift_that_begins_in_the_hour_that_comes_twice_begins_once() -> None:
    shifts = ShiftSettings.model_validate({"timezone": "Europe/Berlin", "a": "02:30", "b": "12:00"})
    day = "2026-10-25"
    assert shift_of(shifts, at(f"{day}T02:29")) == "2026-10-24 b"
    assert shift_of(shifts, at(f"{day}T02:30")) == f"{day} a"
    assert shift_of(shifts, at(f"{day}T02:15", fold=1)) == f"{day} a", "it does not end again"


def test_a_shift_that_begins_in_the_hour_that_is_left_out_begins_after_it() -> None:
    shifts = ShiftSettings.model_validate({"timezone": "Europe/Berlin", "a": "02:30", "b": "12:00"})
    assert shift_of(shifts, datetime(2026, 3, 29, 0, 59, tzinfo=UTC)) == "2026-03-28 b"
    assert shift_of(shifts, datetime(2026, 3, 29, 1, 30, tzinfo=UTC)) == "2026-03-29 a"


_ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]
_TIMES = st.datetimes(
    datetime(2020, 1, 1),  # noqa: DTZ001
    datetime(2035, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@given(
    _TIMES,
    st.sampled_from(_ZONES),
    st.lists(st.integers(0, 24 * 60 - 1), min_size=1, max_size=4, unique=True),
)
def test_time_goes_on_and_so_do_shifts(when: datetime, zone: str, minutes: list[int]) -> None:
    """Each time has one shift, shifts follow one another, and none that ended comes again."""
    begins = {f"s{m}": f"{m // 60:02d}:{m % 60:02d}" for m in minutes}
    shifts = ShiftSettings.model_validate({"timezone": zone, **begins})
    seen = [shift_of(shifts, when + timedelta(minutes=20 * n)) for n in range(150)]
    runs = [shift for n, shift in enumerate(seen) if n == 0 or shift != seen[n - 1]]
    assert len(runs) == len(set(runs))
    assert [shift[:10] for shift in runs] == sorted(shift[:10] for shift in runs)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('timezone = "Europe/Berln"\nearly = "06:00"', "no time zone 'Europe/Berln'"),
        ('timezone = "Europe/Berlin"', "no shift is named"),
        ('early = "06:00"', "timezone: this key is missing"),
        ('timezone = "UTC"\nearly = "6:00"', "shifts.early"),
        ('timezone = "UTC"\nearly = "06:00"\nlate = "06:00"', "begin at the same time"),
        ('timezone = "UTC"\n"e x" = "06:00"', "letters, digits and _"),
        ('timezone = "UTC"\nearly = 6', "shifts.early"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, table: str, words: str) -> None:
    rig = Rig(tmp_path, tables=f"[journal.shifts]\n{table}\n")
    with pytest.raises(ConfigError, match=words):
        load_configuration(str(rig.write()))
