"""The page's texts in each language, and numbers, dates and units as a language writes them."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

from babel import Locale, dates, numbers

LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch", "zh": "中文"}
"""Code and own name of each language that every text is there in."""
_LOCALES = {"en": "en_GB", "de": "de_DE", "zh": "zh_Hans_CN"}
"""British English: its dates cannot be read as American ones where months are names."""
NOTHING = "–"
"""Shown for a figure that there is not: unknown is never zero."""

_NO_KEY = re.compile(r"[^a-z0-9]+")

Texts = Mapping[str, Mapping[str, str]]


class MissingText(LookupError):
    """A page asks for a text that no catalogue has."""


@cache
def catalogue() -> Texts:
    """Every text by its key, `part.name`, then by language."""
    folder = resources.files("station.web") / "texts"
    found: dict[str, Mapping[str, str]] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            part = file.name.removesuffix(".toml")
            found.update(_leaves(part, tomllib.loads(file.read_text("utf-8"))))
    return found


def _leaves(prefix: str, table: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, str]]]:
    """Tables that hold texts, not further tables."""
    if any(isinstance(value, str) for value in table.values()):
        yield prefix, table
        return
    for name, inner in table.items():
        yield from _leaves(f"{prefix}.{name}", inner)


@dataclass(frozen=True, slots=True)
class Translator:
    """`t(key, name=value)` in one language."""

    language: str

    def __call__(self, key: str, **values: object) -> str:
        """Raises `MissingText`."""
        try:
            text = catalogue()[key][self.language]
        except KeyError as error:
            raise MissingText(f"no text {key!r} in {self.language!r}") from error
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        return key in catalogue()

    def word(self, name: str) -> str:
        """A name that comes with the station, as a shipped recipe's reason; one that the plant gave
        as it is."""
        key = f"words.{_key_of(name)}"
        return self(key) if self.has(key) else name

    def reason(self, name: str) -> str:
        """Why a plate has its verdict, by the log's word for it; one that this release does not
        know as it is."""
        key = f"plate.reason.{_key_of(name)}"
        return self(key) if self.has(key) else self.word(name)


def _key_of(name: str) -> str:
    return _NO_KEY.sub("_", name.lower()).strip("_")


def chosen_language(wishes: Iterable[str], offered: tuple[str, ...]) -> str:
    """The first wish that is offered, by its primary subtag (RFC 4647); else the first offered."""
    for wish in wishes:
        primary = wish.split("-")[0].split("_")[0].strip().lower()
        if primary in offered:
            return primary
    return offered[0]


def accepted_languages(header: str) -> list[str]:
    """Of an Accept-Language header (RFC 9110, 12.5.4), most wanted first."""
    weighted = []
    for part in header[:500].split(","):
        tag, _, parameters = part.strip().partition(";")
        weight = parameters.strip().removeprefix("q=")
        try:
            weighted.append((float(weight) if weight else 1.0, tag))
        except ValueError:
            continue
    return [tag for weight, tag in sorted(weighted, key=lambda one: -one[0]) if weight > 0]


Day = date
Moment = str | float | datetime
"""RFC 3339 text, seconds since 1970, or a time with its zone."""
Figure = float | int | None


@dataclass(frozen=True, slots=True)
class Formatter:
    """Figures as people of a language write them; times in the station's zone."""

    language: str
    zone: ZoneInfo

    @property
    def locale(self) -> Locale:
        return _locale(self.language)

    @property
    def tag(self) -> str:
        """The same for scripts (BCP 47)."""
        return _LOCALES[self.language].replace("_", "-")

    @property
    def today(self) -> Day:
        return datetime.now(self.zone).date()

    def number(self, value: Figure, digits: int = 0) -> str:
        """With so many digits after the decimal sign."""
        if value is None or not math.isfinite(value):
            return NOTHING
        return numbers.format_decimal(value, _decimal_pattern(digits), self.locale)

    def mm(self, value: Figure, digits: int = 1) -> str:
        """A length in mm."""
        shown = self.number(value, digits)
        return shown if shown == NOTHING else f"{shown}\N{NO-BREAK SPACE}mm"

    def percent(self, value: Figure, digits: int = 1) -> str:
        """Of a share: 0.5 is 50 %."""
        if value is None or not math.isfinite(value):
            return NOTHING
        pattern = _decimal_pattern(digits) + _percent_sign(self.language)
        return numbers.format_percent(value, pattern, self.locale, decimal_quantization=True)

    def time(self, at: Moment | None) -> str:
        """Time of day with seconds."""
        return NOTHING if at is None else dates.format_time(self._local(at), "HH:mm:ss")

    def when(self, at: Moment | None) -> str:
        """Time of day; with its day where that is not today."""
        if at is None:
            return NOTHING
        return self.time(at) if self._local(at).date() == self.today else self.moment(at)

    def date(self, at: Moment | Day | None) -> str:
        """Day; the month's name where a number could be read as the day."""
        if at is None:
            return NOTHING
        day = at if isinstance(at, Day) and not isinstance(at, datetime) else self._local(at)
        return dates.format_date(day, "medium", self.locale)

    def moment(self, at: Moment | None) -> str:
        """Day and time of day."""
        return NOTHING if at is None else f"{self.date(at)} {self.time(at)}"

    def duration(self, seconds: Figure) -> str:
        """In the two largest units that say something: 2 h 5 min, 14 s."""
        if seconds is None or not math.isfinite(seconds):
            return NOTHING
        parts = _duration_parts(abs(seconds))
        words = [self._unit(value, unit, digits) for value, unit, digits in parts]
        return ("-" if seconds < 0 else "") + " ".join(words)

    def _unit(self, value: float, unit: str, digits: int) -> str:
        return f"{self.number(value, digits)}\N{NO-BREAK SPACE}{_UNIT_SIGNS[self.language][unit]}"

    def _local(self, at: Moment | Day) -> datetime:
        if isinstance(at, str):
            at = datetime.fromisoformat(at)
        elif isinstance(at, int | float):
            at = datetime.fromtimestamp(at, UTC)
        assert isinstance(at, datetime)
        return at.astimezone(self.zone)


_UNIT_SIGNS = {
    "en": {"day": "d", "hour": "h", "minute": "min", "second": "s"},
    "de": {"day": "d", "hour": "h", "minute": "min", "second": "s"},
    "zh": {"day": "天", "hour": "小时", "minute": "分", "second": "秒"},
}


def _duration_parts(seconds: float) -> list[tuple[float, str, int]]:
    if seconds < 9.95:
        return [(seconds, "second", 1)]
    whole = round(seconds)
    minutes, left_s = divmod(whole, 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    given = ((days, "day"), (left_h, "hour"), (left_min, "minute"), (left_s, "second"))
    first = next(place for place, (value, _) in enumerate(given) if value)
    return [(value, unit, 0) for value, unit in given[first : first + 2] if value]


@cache
def _locale(language: str) -> Locale:
    return Locale.parse(_LOCALES[language])


@cache
def _decimal_pattern(digits: int) -> str:
    return "#,##0" + ("." + "0" * digits if digits else "")


@cache
def _percent_sign(language: str) -> str:
    return "\N{NO-BREAK SPACE}%" if language == "de" else "%"
