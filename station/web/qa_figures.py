"""QA's figures at the price of what is new: what hours that are over say is kept.

The defects of a long log, and what people said of its plates, are read in a tenth of a second and
more; so their sums up to the hour that runs are kept, by everything that they depend on, and only
what came since is read.
"""

from __future__ import annotations

import operator
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import func, select, text

from station.answers import (
    PLACES,
    ChartKind,
    Json,
    Judged,
    Of,
    Size,
    defects_on,
    judged_plates,
    qualities,
    reasons,
)
from station.charts import Chart, Group, Point, chart
from station.config import ConfigError
from station.heat_map import HeatMap, heat_map
from station.log_reader import Reader
from station.quality import ParetoRow, pareto
from station.questions import Selection, defects_select
from station.recipes import active_recipe
from station.tables import HOURLY, PLATE
from station.web.context import Web
from station.web.errors import PageError
from station.web.stored_pictures import Bounded
from station.web.turns import Turns

T = TypeVar("T")
_KEPT_BYTES = 32 * 2**20
"""As they would be written down; in memory they take a few times as much."""
_one_simulation = threading.Lock()
"""The machine is the line's."""
_turns = Turns()
_REVIEWS = text("SELECT count(*) FROM row WHERE kind = 'review'")


def _size_bytes(value: Any) -> int:
    return len(pickle.dumps(value))


class Kept(Generic[T]):
    """Answers by what they depend on, none of them None; those not asked for longest go. Whoever
    asks for one that is being made waits for it, and for no other, where there is room."""

    def __init__(self, most_bytes: int = _KEPT_BYTES) -> None:
        self._found: Bounded[Hashable, T] = Bounded(most_bytes, _size_bytes)
        self._lock = threading.Lock()
        self._making: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._turns = Turns()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Raises `PageError` 503 where too many wait, or too long."""
        found = self._found.get(key)
        if found is not None:
            return found
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with self._turns.of(making):
            found = self._found.get(key)
            if found is None:
                found = make()
                self._found.put(key, found)
        return found


_kept: Kept[Any] = Kept()


def plate_size_mm(web: Web) -> Size:
    """Of the active recipe's plate. Raises `PageError`."""
    try:
        plate = active_recipe(web.configuration.value).value.plate
    except ConfigError as error:
        raise PageError(503, "qa.no_recipe", why=str(error)) from error
    return plate.width_mm, plate.length_mm


def pareto_rows(reader: Reader, selection: Selection, of: Of, size_mm: Size) -> list[ParetoRow]:
    """As `vqi log pareto`."""
    if of is Of.REASON:
        return pareto(reasons(reader, selection))
    key = (of, size_mm if of is Of.ZONE else None)

    def read(part: Selection) -> Counter[str]:
        return defects_on(reader, part, of, size_mm)

    return pareto(_in_two_parts(reader, selection, key, read, operator.add))


def map_of(reader: Reader, selection: Selection, size_mm: Size, cell_mm: float) -> HeatMap:
    """As `vqi log heat-map`."""

    def read(part: Selection) -> HeatMap:
        return heat_map(reader.ask(defects_select(part, *PLACES)), size_mm, cell_mm)

    def add(kept: HeatMap, new: HeatMap) -> HeatMap:
        return replace(kept, counts=kept.counts + new.counts, beside=kept.beside + new.beside)

    return _in_two_parts(reader, selection, ("map", size_mm, cell_mm), read, add)


def quality_rows(reader: Reader, selection: Selection) -> list[Json]:
    """As `vqi log quality`."""

    def judged_of(_: Reader, part: Selection) -> list[Judged]:
        def read(one: Selection) -> list[Judged]:
            return judged_plates(reader, one)

        return _in_two_parts(reader, part, ("judged",), read, operator.add)

    return list(qualities(reader, selection, judged_of))


def _in_two_parts(
    reader: Reader,
    selection: Selection,
    key: tuple[Any, ...],
    read: Callable[[Selection], T],
    add: Callable[[T, T], T],
) -> T:
    """What `read` says of a selection: of the hours that are over it is kept."""
    hour = _running_hour(reader)
    if hour is None or (selection.since or "") >= hour:
        return read(selection)
    is_over = selection.until is not None and selection.until <= hour
    over = selection if is_over else replace(selection, until=hour)
    kept: T = _kept.get((*key, over, *_state(reader, hour)), lambda: read(over))
    return kept if is_over else add(kept, read(replace(selection, since=hour)))


def _running_hour(reader: Reader) -> str | None:
    """In which the newest plate was; None if there is none."""
    found = reader.ask(select(func.max(PLATE.c.written_at)))[0][0]
    return None if found is None else str(found)[: len("2026-11-26T09")]


def _state(reader: Reader, hour: str) -> tuple[Any, ...]:
    """All that what is over may still depend on: plates whose clock stood earlier, reviews that
    name defects; and which log it is."""
    before = select(func.sum(HOURLY.c.plates)).where(HOURLY.c.hour < hour)
    return str(reader.path), reader.ask(before)[0][0], reader.ask(_REVIEWS)[0][0]


# --- charts -------------------------------------------------------------------------------------


def chart_of(kind: ChartKind, groups: Sequence[Group]) -> Chart:
    """As `vqi log chart`, without the alarms to expect, which are most of the work."""
    return _chart(kind.value, tuple(groups), False)


def false_alarms_per_1000(kind: ChartKind, groups: Sequence[Group]) -> float | None:
    """Points of a process in control that this chart would mark; simulated once for each chart."""
    return _chart(kind.value, tuple(groups), True).false_alarms_per_1000


def _chart(kind: Any, groups: tuple[Group, ...], with_false_alarms: bool) -> Chart:
    make = _simulated if with_false_alarms else chart
    key = ("chart", kind, groups, with_false_alarms)
    found: Chart = _kept.get(key, lambda: make(kind, groups, with_false_alarms))
    return found


def _simulated(kind: Any, groups: tuple[Group, ...], with_false_alarms: bool) -> Chart:
    """One at a time. Raises `PageError` 503 where others come first for too long."""
    with _turns.of(_one_simulation):
        return chart(kind, groups, with_false_alarms)


def chart_rows(found: Chart) -> list[Json]:
    """As the command gives them."""
    names = [one.name for one in fields(Point)]
    return [
        {name: getattr(point, name) for name in names} | {"rules": list(point.rules)}
        for point in found.points
    ]
