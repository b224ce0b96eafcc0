"""QA's figures at the price of what is new: what hours that are over say of defects is kept.

The defects of a long log are read in a tenth of a second and more; so their sums up to the hour
that runs are kept, by everything that they depend on, and only the defects since are read.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

from sqlalchemy import func, select, text

from station.answers import PLACES, ChartKind, Json, Of, Size, reasons
from station.charts import Chart, Group, chart
from station.config import ConfigError
from station.heat_map import HeatMap, heat_map
from station.log_reader import Reader
from station.quality import ParetoRow, pareto, size_class, zone
from station.questions import Selection, defects_select
from station.recipes import active_recipe
from station.tables import DEFECT, HOURLY, PLATE
from station.web.context import Web
from station.web.errors import PageError

T = TypeVar("T")
_KEPT = 64
_REVIEWS = text("SELECT count(*) FROM row WHERE kind = 'review'")


@dataclass(slots=True)
class Kept(Generic[T]):
    """Answers by what they depend on; those not asked for longest go. What is not there is made by
    one at a time: the machine is the line's."""

    _found: OrderedDict[Hashable, T] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._found:
                self._found[key] = make()
            self._found.move_to_end(key)
            if len(self._found) > _KEPT:
                self._found.popitem(last=False)
            return self._found[key]


_defects: Kept[Counter[Any]] = Kept()


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
    return pareto(_counted(reader, selection, of.value, _NAMERS[of](size_mm), size_mm))


def map_of(reader: Reader, selection: Selection, size_mm: Size, cell_mm: float) -> HeatMap:
    """As `vqi log heat-map`."""
    places: Counter[Any] = _counted(reader, selection, "place", _PLACE, size_mm)
    return heat_map(places.elements(), size_mm, cell_mm)


@dataclass(frozen=True, slots=True)
class _Namer:
    """What of defects is counted: columns of theirs, and what they come to."""

    columns: tuple[Any, ...]
    name: Callable[[Any], Any]


_NAMERS: dict[Of, Callable[[Size], _Namer]] = {
    Of.KIND: lambda _: _Namer((DEFECT.c.kind,), lambda row: row[0] or "not named"),
    Of.SIZE: lambda _: _Namer((DEFECT.c.w_mm, DEFECT.c.h_mm), lambda row: size_class(*row)),
    Of.ZONE: lambda size_mm: _Namer(PLACES, lambda row: zone(row[0], row[1], size_mm)),
}
_PLACE = _Namer(PLACES, tuple)


def _counted(
    reader: Reader, selection: Selection, what: str, namer: _Namer, size_mm: Size
) -> Counter[Any]:
    """Defects of a selection, by what they come to."""

    def read(part: Selection) -> Counter[Any]:
        rows = reader.ask(defects_select(part, *namer.columns))
        return Counter(map(namer.name, rows))

    hour = _running_hour(reader)
    if hour is None or (selection.since or "") >= hour:
        return read(selection)
    is_over = selection.until is not None and selection.until <= hour
    over = selection if is_over else replace(selection, until=hour)
    key = (what, over, size_mm, *_state(reader, hour))
    kept = _defects.get(key, lambda: read(over))
    return kept if is_over else kept + read(replace(selection, since=hour))


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


@lru_cache(maxsize=_KEPT)
def _chart(kind: Any, groups: tuple[Group, ...], with_false_alarms: bool) -> Chart:
    return chart(kind, groups, with_false_alarms)


def chart_rows(found: Chart) -> list[Json]:
    """As the command gives them."""
    return [asdict(point) | {"rules": list(point.rules)} for point in found.points]
