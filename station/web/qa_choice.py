"""Which plates a page is about: the filters of `vqi log`, as the query of its address, and times as
people pick them in the station's zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from station.choices import Rectangle, recipe_and_version, rectangle, utc_text
from station.config import ShiftSettings
from station.questions import Selection
from station.record import Provenance, Verdict, rfc3339
from station.shifts import begun_on
from station.web.context import Web

Json = dict[str, Any]


class Range(StrEnum):
    """A time that moves on by itself."""

    THIS_SHIFT = "this-shift"
    LAST_SHIFT = "last-shift"
    TODAY = "today"
    DAYS_7 = "7-days"
    DAYS_30 = "30-days"


_OF_SHIFTS = (Range.THIS_SHIFT, Range.LAST_SHIFT)
_DAYS = {Range.TODAY: 1, Range.DAYS_7: 7, Range.DAYS_30: 30}
"""Of the station's zone; the last one is today."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What a range's name means: where the station stands, when its shifts begin, what time it
    is."""

    zone: ZoneInfo
    shifts: ShiftSettings | None
    now: datetime

    @classmethod
    def of(cls, web: Web) -> Clock:
        return cls(web.zone, web.configuration.value.journal.shifts, datetime.now(UTC))

    def ranges(self) -> list[Range]:
        """Those that there are."""
        return [one for one in Range if self.shifts is not None or one not in _OF_SHIFTS]

    def span(self, range_: Range) -> tuple[datetime, datetime]:
        """First and last moment, the last exclusive. A shift where there are none: of today."""
        if range_ in _OF_SHIFTS and self.shifts is not None:
            return self._shift(self.shifts, 1 if range_ is Range.LAST_SHIFT else 0)
        today = self.now.astimezone(self.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        days = _DAYS.get(range_, 1)
        # Midnights of the zone, whatever summer time does between them.
        return today - timedelta(days=days - 1), today + timedelta(days=1)

    def _shift(self, shifts: ShiftSettings, before: int) -> tuple[datetime, datetime]:
        today = self.now.astimezone(self.zone).date()
        days = [today + timedelta(days=n) for n in range(-3, 3)]
        begins = [begin for begin, _ in begun_on(shifts, days)]
        place = max(n for n, begin in enumerate(begins) if begin <= self.now) - before
        return begins[place], begins[place + 1]


def _local(text: str) -> str:
    """As a browser's field of a date and a time has it."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text[:40]!r} is no time; write it as 2026-11-24T06:00") from error
    if at.tzinfo is not None or not 1970 < at.year < 9000:
        raise ValueError(f"{text[:40]!r} is no local time; write it as 2026-11-24T06:00")
    return text


def _seen_as_recipe(text: str) -> str:
    recipe_and_version(text)
    return text


def _seen_as_place(text: str) -> str:
    rectangle(text)
    return text


def _stored(text: str) -> str:
    """What no row can hold, half a character, SQLite cannot even be asked for."""
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError("holds a character that no record holds")
    return text


Moment = Annotated[str, Field(max_length=40), AfterValidator(utc_text)]
Local = Annotated[str, Field(max_length=40), AfterValidator(_local)]
Word = Annotated[str, Field(max_length=200), AfterValidator(_stored)]
Millimetres = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


_AS_THEY_ARE = (
    *("serial", "lot", "shift", "verdict", "reason", "model", "reviewer", "attempt", "provenance"),
    *("kind", "min_size_mm", "max_size_mm"),
)
"""Fields that a `Selection` has under the same names."""


class Choice(BaseModel):
    """Filters; what is given must all be met. A field left empty is as if it were not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    range: Range | None = Field(None, description="Moves on by itself; not beside since or until.")
    since: Moment | None = Field(None, description="UTC, or with an offset.")
    until: Moment | None = Field(None, description="UTC, or with an offset; exclusive.")
    since_local: Local | None = Field(None, description="In the station's zone, from a form.")
    until_local: Local | None = Field(None, description="In the station's zone, from a form.")
    serial: Word | None = Field(None, description="Part serial.")
    lot: Word | None = Field(None, description="Lot.")
    shift: Word | None = Field(None, description="As in the record: 2026-11-24 early.")
    verdict: Verdict | None = Field(None, description="The station's, whatever reviews say.")
    reason: Word | None = Field(None, description="Why a plate is undecided.")
    recipe: Annotated[Word, AfterValidator(_seen_as_recipe)] | None = Field(
        None, description="ID or ID:VERSION."
    )
    model: Word | None = Field(None, description="Model id.")
    reviewer: Word | None = Field(None, description="Of the last review.")
    attempt: int | None = Field(None, ge=1, le=1_000_000, description="1: first of a serial.")
    provenance: Provenance | None = None
    kind: Word | None = Field(None, description="Of a defect, as a reviewer named it.")
    min_size_mm: Millimetres | None = Field(None, description="Longer side of a defect.")
    max_size_mm: Millimetres | None = Field(None, description="Longer side of a defect.")
    place: Annotated[Word, AfterValidator(_seen_as_place)] | None = Field(
        None, description="Of a defect: LEFT,LEADING,RIGHT,TRAILING in mm."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: Any) -> Any:
        """A form sends each of its fields."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value != ""}

    def selection(self, clock: Clock) -> Selection:
        name, version = recipe_and_version(self.recipe or "")
        since, until = self.span(clock)
        place: Rectangle | None = rectangle(self.place) if self.place else None
        given = {name: getattr(self, name) for name in _AS_THEY_ARE}
        return Selection(
            since=since,
            until=until,
            recipe=name or None,
            recipe_version=version,
            place_mm=place,
            **given,
        )

    def span(self, clock: Clock) -> tuple[str | None, str | None]:
        """First moment and last, exclusive; UTC text as in `written_at`."""
        since = self.since if self.since_local is None else _utc(self.since_local, clock)
        until = self.until if self.until_local is None else _utc(self.until_local, clock)
        if self.range is None or since is not None or until is not None:
            return since, until
        begin, end = clock.span(self.range)
        return rfc3339(begin.astimezone(UTC)), rfc3339(end.astimezone(UTC))

    def canonical(self, clock: Clock) -> dict[str, str]:
        """The one way to write this in an address: no empty fields, times in UTC."""
        given = self.model_dump(mode="json", exclude_defaults=True)
        given.pop("since_local", None)
        given.pop("until_local", None)
        since, until = self.span(clock)
        if "range" in given and self.is_moving:
            since = until = None
        else:
            given.pop("range", None)
        given |= {"since": _short(since), "until": _short(until)}
        return {name: str(given[name]) for name in type(self).model_fields if given.get(name)}

    @property
    def is_moving(self) -> bool:
        """Whether the range holds: nobody picked times beside it."""
        picked = (self.since, self.until, self.since_local, self.until_local)
        return self.range is not None and all(one is None for one in picked)

    def query(self, clock: Clock) -> str:
        return urlencode(self.canonical(clock))


def _utc(local: str, clock: Clock) -> str:
    at = datetime.fromisoformat(local).replace(tzinfo=clock.zone)
    return rfc3339(at.astimezone(UTC))


def _short(text: str | None) -> str | None:
    """2026-01-05T05:00:00.000000Z as 2026-01-05T05:00Z."""
    if text is None:
        return None
    return text.replace(".000000Z", "Z").removesuffix(":00Z") + (
        "Z" if text.endswith(":00.000000Z") else ""
    )


def field_text(at: str | None, clock: Clock) -> str:
    """A time of an address in a browser's field of a date and a time."""
    if at is None:
        return ""
    local = datetime.fromisoformat(at).astimezone(clock.zone)
    return local.replace(tzinfo=None).isoformat(timespec="minutes")


class Asked(BaseModel):
    """What a page says of its question, beside the answer."""

    choice: dict[str, str] = Field(description="The canonical query of this address.")
    filters: str = Field(description="The filters alone, as the other pages take them.")
    since: str | None = Field(description="First moment, UTC; null: since ever.")
    until: str | None = Field(description="Last moment, UTC, exclusive; null: until now.")
    as_of_row: int = Field(description="Newest row of the log that the answer knows.")
    notes: list[str] = Field(description="What the answer lacks, and from which copy it is.")
    ranges: list[Range] = Field(description="Those that this station knows.")
    zone: str = Field(description="In which people pick times.")
    since_local: str = Field(description="`since` in the zone; empty where a range says it.")
    until_local: str = Field(description="`until` in the zone; empty where a range says it.")


def plain(choice: Choice) -> Choice:
    """The filters alone, without what only one page asks for."""
    return Choice(**{name: getattr(choice, name) for name in Choice.model_fields})


def asked(web: Web, reader: Any, choice: Choice, clock: Clock) -> tuple[Asked, Selection]:
    """What is asked for, of which state of the log."""
    selection = choice.selection(clock)
    fixed = (None, None) if choice.is_moving else (selection.since, selection.until)
    said = Asked(
        choice=choice.canonical(clock),
        filters=plain(choice).query(clock),
        since=selection.since,
        until=selection.until,
        as_of_row=reader.last_seq(),
        notes=reader.notes,
        ranges=clock.ranges(),
        zone=str(clock.zone.key or "local"),
        since_local=field_text(fixed[0], clock),
        until_local=field_text(fixed[1], clock),
    )
    return said, selection
