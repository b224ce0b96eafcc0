"""What QA asks of the log, as selects over the derived tables: the same on a station's SQLite file
and on a plant's PostgreSQL database.

Every question is answered from an index or from the hourly sums; none reads all plates. Sums over a
time take whole hours from the sums and the two broken hours at its ends from the plates.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    String,
    Table,
    and_,
    case,
    desc,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)

from station.record import Verdict
from station.tables import DEFECT, HOURLY, PLATE

PAGE_ROWS = 500
_HOUR = len("2026-11-26T09")
_DAY = len("2026-11-26")
_END = "9999"
"""After every time."""
_FAILING = (Verdict.FAIL.value, Verdict.UNDECIDED.value)

Ask = Callable[[Select[Any]], Sequence[Any]]
"""Runs one select, within its reader's deadline."""


class Key(NamedTuple):
    """Where a page ends: the next one begins with the plate before it in time."""

    written_at: str
    seq: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which plates; what is given must all be met. Times are UTC text as in `written_at`."""

    since: str | None = None
    until: str | None = None
    """Exclusive."""
    station: str | None = None
    serial: str | None = None
    lot: str | None = None
    shift: str | None = None
    verdict: str | None = None
    reason: str | None = None
    recipe: str | None = None
    recipe_version: int | None = None
    model: str | None = None
    reviewer: str | None = None
    attempt: int | None = None
    provenance: str | None = None
    is_audit_sample: bool | None = None
    kind: str | None = None
    """Of a defect, as a reviewer called it. From here on: of one and the same defect."""
    min_size_mm: float | None = None
    max_size_mm: float | None = None
    """Of the longer side of its box."""
    place_mm: tuple[float, float, float, float] | None = None
    """Left, leading, right and trailing side of a rectangle that its centre lies in."""


_PLATE_COLUMNS: dict[str, Column[Any]] = {
    "station": PLATE.c.station_id,
    "serial": PLATE.c.part_id,
    "lot": PLATE.c.lot,
    "shift": PLATE.c.shift,
    "verdict": PLATE.c.verdict,
    "reason": PLATE.c.reason,
    "recipe": PLATE.c.recipe_id,
    "recipe_version": PLATE.c.recipe_version,
    "model": PLATE.c.model_id,
    "reviewer": PLATE.c.reviewer,
    "attempt": PLATE.c.attempt,
    "provenance": PLATE.c.provenance,
    "is_audit_sample": PLATE.c.is_audit_sample,
}
_SUMMED: dict[str, Column[Any]] = {
    "station": HOURLY.c.station_id,
    "shift": HOURLY.c.shift,
    "verdict": HOURLY.c.verdict,
    "reason": HOURLY.c.reason,
    "recipe": HOURLY.c.recipe_id,
    "recipe_version": HOURLY.c.recipe_version,
    "model": HOURLY.c.model_id,
    "attempt": HOURLY.c.attempt,
    "provenance": HOURLY.c.provenance,
}
"""Of both dictionaries: fields of a selection, and the column that each is compared with."""
_OF_DEFECTS = ("kind", "min_size_mm", "max_size_mm", "place_mm")
_FINDS_FEW = {"serial", "lot", "reviewer", "is_audit_sample", *_OF_DEFECTS}
"""Selections that an index answers at once."""


def is_of_defects(selection: Selection) -> bool:
    """Whether plates are chosen by their defects."""
    return any(getattr(selection, name) is not None for name in _OF_DEFECTS)


# --- conditions ---------------------------------------------------------------------------------


def _given(selection: Selection, columns: dict[str, Column[Any]]) -> list[ColumnElement[bool]]:
    values = ((column, getattr(selection, name)) for name, column in columns.items())
    return [column == value for column, value in values if value is not None]


def plate_conditions(selection: Selection) -> ColumnElement[bool]:
    """What a line of `plate` must meet, without its defects."""
    found = [literal(True), *_given(selection, _PLATE_COLUMNS)]
    if selection.since is not None:
        found.append(PLATE.c.written_at >= selection.since)
    if selection.until is not None:
        found.append(PLATE.c.written_at < selection.until)
    return and_(*found, *_index_hints(selection))


def _index_hints(selection: Selection) -> list[ColumnElement[bool]]:
    """What follows from the conditions, in the words of an index of few plates: without them SQLite
    does not use it."""
    hints: list[ColumnElement[bool]] = []
    if selection.verdict in _FAILING:
        hints.append(_not_passed())
    if selection.attempt is not None and selection.attempt > 1:
        hints.append(PLATE.c.attempt > literal_column("1"))
    return hints


def _not_passed() -> ColumnElement[bool]:
    return PLATE.c.verdict != literal_column(f"'{Verdict.PASS}'")


def _defect_conditions(selection: Selection) -> ColumnElement[bool]:
    found: list[ColumnElement[bool]] = [literal(True)]
    if selection.kind is not None:
        found.append(DEFECT.c.kind == selection.kind)
    if (size := selection.min_size_mm) is not None:
        found.append(or_(DEFECT.c.w_mm >= size, DEFECT.c.h_mm >= size))
    if (size := selection.max_size_mm) is not None:
        found.append(and_(DEFECT.c.w_mm <= size, DEFECT.c.h_mm <= size))
    if selection.place_mm is not None:
        left, leading, right, trailing = selection.place_mm
        found += [DEFECT.c.x_mm.between(left, right), DEFECT.c.y_mm.between(leading, trailing)]
    return and_(*found)


def _with_defects(selection: Selection) -> ColumnElement[bool]:
    """Plates with a defect that meets the selection, among the few that can have any."""
    chosen = select(DEFECT.c.seq).where(_is_of_plate(), _defect_conditions(selection))
    return and_(plate_conditions(selection), _may_have_defects(), chosen.exists())


def _may_have_defects() -> ColumnElement[bool]:
    """A plate that passed has none."""
    return and_(PLATE.c.verdict.in_(_FAILING), _not_passed())


def _where(selection: Selection) -> ColumnElement[bool]:
    if is_of_defects(selection):
        return _with_defects(selection)
    return plate_conditions(selection)


# --- selects ------------------------------------------------------------------------------------


def page_select(
    selection: Selection, limit: int, before: Key | None = None, oldest_first: bool = False
) -> Select[Any]:
    """The newest plates before a key, newest first; or the oldest after it."""
    found = select(PLATE).where(_where(selection))
    at, seq = PLATE.c.written_at, PLATE.c.seq
    if before is not None:
        # Twice: the first part alone bounds the index.
        found = found.where(
            at >= before.written_at if oldest_first else at <= before.written_at,
            tuple_(at, seq) > before if oldest_first else tuple_(at, seq) < before,
        )
    order = (at, seq) if oldest_first else (desc(at), desc(seq))
    return found.order_by(*order).limit(limit)


def span_select(selection: Selection) -> Select[Any]:
    """First and last hour in which there are sums of a selection."""
    return select(func.min(HOURLY.c.hour), func.max(HOURLY.c.hour)).where(
        literal(True), *_given(selection, _SUMMED)
    )


def defects_select(selection: Selection, *columns: ColumnElement[Any]) -> Select[Any]:
    """A line for each defect of a selection."""
    return (
        select(*columns)
        .select_from(PLATE.join(DEFECT, _is_of_plate()))
        .where(plate_conditions(selection), _defect_conditions(selection))
        .where(_may_have_defects())
    )


def defect_counts_select(selection: Selection, key: ColumnElement[Any]) -> Select[Any]:
    """How many defects of a selection there are of each `key`."""
    return defects_select(selection, key.label("key"), func.count().label("defects")).group_by(key)


def size_number(ends_mm: Sequence[float]) -> ColumnElement[int]:
    """Which class a defect's longer side lies in, by their upper ends; -1 where it is not known."""
    w, h = DEFECT.c.w_mm, DEFECT.c.h_mm
    passed = [case((or_(w >= end, h >= end), 1), else_=0) for end in ends_mm]
    return case((or_(w.is_(None), h.is_(None)), -1), else_=_total(passed))


def zone_number(size_mm: tuple[float, float]) -> ColumnElement[int]:
    """Which ninth of a plate a defect's centre lies in, three a row; -1 where it is not known."""
    x, y = DEFECT.c.x_mm, DEFECT.c.y_mm
    across, along = (
        _total([case((3 * place / size >= third, 1), else_=0) for third in (1, 2)])
        for place, size in zip((x, y), size_mm, strict=True)
    )
    return case((or_(x.is_(None), y.is_(None)), -1), else_=3 * along + across)


def _total(parts: Sequence[ColumnElement[int]]) -> ColumnElement[int]:
    return functools.reduce(operator.add, parts)


def _is_of_plate() -> ColumnElement[bool]:
    return and_(DEFECT.c.station_id == PLATE.c.station_id, DEFECT.c.seq == PLATE.c.seq)


def counts_select(selection: Selection, by: Sequence[str]) -> Select[Any]:
    """Plates and their defects, summed by columns of `by`: fields of a selection that sums know,
    `hour` and `day`."""
    if any(getattr(selection, name) is not None for name in _not_summed()):
        parts = [_of_plates(_where(selection), by)]
    else:
        parts = _of_hours(selection, by)
    summed = union_all(*parts).subquery()
    keys = [summed.c[name] for name in by]
    totals = (
        func.sum(summed.c.plates).label("plates"),
        func.sum(summed.c.defects).label("defects"),
    )
    return select(*keys, *totals).group_by(*keys)


def _not_summed() -> list[str]:
    known = {"since", "until", *_SUMMED}
    return [one.name for one in fields(Selection) if one.name not in known]


def _of_plates(where: ColumnElement[bool], by: Sequence[str]) -> Select[Any]:
    keys = [_plate_key(name).label(name) for name in by]
    return select(*keys, literal_column("1").label("plates"), PLATE.c.defects).where(where)


def _plate_key(name: str) -> ColumnElement[Any]:
    if name in ("hour", "day"):
        return func.substr(PLATE.c.written_at, 1, _HOUR if name == "hour" else _DAY, type_=String)
    column = _PLATE_COLUMNS[name]
    if name in ("shift", "reason"):
        return func.coalesce(column, "", type_=String)
    return func.coalesce(column, 0) if name == "attempt" else column


def _of_hours(selection: Selection, by: Sequence[str]) -> list[Select[Any]]:
    """Whole hours from the sums, the broken ones at both ends from the plates."""
    first, last = _next_hour(selection.since or ""), (selection.until or _END)[:_HOUR]
    if selection.since is not None and first > last:  # all within one hour
        return [_of_plates(plate_conditions(selection), by)]
    parts = [_of_sums(selection, first, last, by)]
    if selection.since is not None and selection.since < first:
        before = replace(selection, until=first)
        parts.append(_of_plates(plate_conditions(before), by))
    if selection.until is not None and last < selection.until:
        after = replace(selection, since=last)
        parts.append(_of_plates(plate_conditions(after), by))
    return parts


def _next_hour(at: str) -> str:
    """The first whole hour that does not begin before a time, as the sums write it."""
    if not at:
        return ""
    hour = at[:_HOUR]
    if at <= f"{hour}:00:00.000000Z":
        return hour
    return (datetime.fromisoformat(f"{hour}:00") + timedelta(hours=1)).isoformat()[:_HOUR]


def _of_sums(selection: Selection, first: str, last: str, by: Sequence[str]) -> Select[Any]:
    keys = [_sum_key(name).label(name) for name in by]
    return select(*keys, HOURLY.c.plates, HOURLY.c.defects).where(
        HOURLY.c.hour >= first, HOURLY.c.hour < last, *_given(selection, _SUMMED)
    )


def _sum_key(name: str) -> ColumnElement[Any]:
    if name == "day":
        return func.substr(HOURLY.c.hour, 1, _DAY, type_=String)
    return HOURLY.c.hour if name == "hour" else _SUMMED[name]


def reviewed_select(selection: Selection, by: Sequence[str]) -> Select[Any]:
    """Plates that a person judged, by columns and by what the person said."""
    keys = [_PLATE_COLUMNS[name].label(name) for name in by]
    return (
        select(*keys, PLATE.c.reviewed_verdict, func.count().label("plates"))
        .where(_where(selection), PLATE.c.reviewer.is_not(None))
        .group_by(*keys, PLATE.c.reviewed_verdict)
    )


def audit_select(selection: Selection, by: Sequence[str]) -> Select[Any]:
    """Passed plates that were drawn for the audit, by columns and by what a person said of them;
    None where nobody has yet."""
    keys = [_PLATE_COLUMNS[name].label(name) for name in by]
    passed = replace(selection, verdict=Verdict.PASS.value, is_audit_sample=True)
    return (
        select(*keys, PLATE.c.reviewed_verdict, func.count().label("plates"))
        .where(_where(passed))
        .group_by(*keys, PLATE.c.reviewed_verdict)
    )


def open_samples_select(selection: Selection, limit: int) -> Select[Any]:
    """Drawn plates that passed and that nobody has judged, oldest first."""
    passed = replace(selection, verdict=Verdict.PASS.value, is_audit_sample=True)
    return (
        select(PLATE)
        .where(_where(passed), PLATE.c.reviewed_verdict.is_(None))
        .order_by(PLATE.c.written_at, PLATE.c.seq)
        .limit(limit)
    )


# --- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Questions:
    """Asks one database. `ask` runs a select and gives its rows."""

    ask: Ask
    page_rows: int = PAGE_ROWS

    def pages(
        self,
        selection: Selection,
        limit: int,
        before: Key | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Sequence[Any]]:
        """Lines of `plate`, newest first; each page is a question of its own, so that none of them
        keeps the log from being tidied for long."""
        narrowed = self.narrowed(selection)
        while narrowed is not None and limit > 0:
            rows = self.ask(page_select(narrowed, min(limit, self.page_rows), before, oldest_first))
            yield rows
            if len(rows) < min(limit, self.page_rows):
                return
            limit, before = limit - len(rows), Key(rows[-1].written_at, rows[-1].seq)

    def narrowed(self, selection: Selection) -> Selection | None:
        """The selection within the hours in which the sums know such plates; None if they know
        none. What is rare, or long ago, is found without reading all plates since."""
        is_asked = any(getattr(selection, name) is not None for name in _SUMMED)
        if not is_asked or any(getattr(selection, name) is not None for name in _FINDS_FEW):
            return selection
        first, last = self.ask(span_select(selection))[0]
        if first is None:
            return None
        end = f"{last}~"  # after every time of that hour, whatever comes after the hour
        return replace(
            selection,
            since=max(first, selection.since or ""),
            until=min(end, selection.until or _END),
        )

    def counts(self, selection: Selection, *by: str) -> Sequence[Any]:
        """See `counts_select`."""
        return self.ask(counts_select(selection, by))

    def key_of(self, seq: int) -> Key | None:
        """Of the plate whose result is this row of the log."""
        found = self.ask(select(PLATE.c.written_at).where(PLATE.c.seq == seq))
        return Key(found[0].written_at, seq) if found else None


def tables() -> tuple[Table, ...]:
    return PLATE, DEFECT, HOURLY
