"""A shift on a sheet of paper: what was made, what was wrong, what is open, and as of which row of
the log. One HTML page that needs nothing else and prints to A4.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined

from station import open_plates
from station.anchors import Anchor
from station.answers import yields
from station.charts import Group, chart
from station.config import ShiftSettings
from station.export_rows import visible
from station.export_source import NO_REVIEW_HOLDS, Source
from station.heat_map import heat_map
from station.log_reader import Reader
from station.qms import Json
from station.quality import extent_mm, pareto, proportion, size_class, zone
from station.questions import Questions, Selection, defects_select
from station.record import Provenance, Reason, rfc3339
from station.release import program_version
from station.report_drawings import control_chart, pareto_bars, plate_map
from station.shifts import begun_on
from station.tables import DEFECT
from station.thumbnails import smallest, thumbnail

_MOST_ROWS = 40
"""Of a list; what is beyond is counted."""
_MOST_PARETO = 10
_MOST_PICTURES = 6
_PICTURE_PX = 300
_KEPT_AWAY = timedelta(days=7)
"""A report that nobody could make for longer is not made any more."""
_COUNTED_BY = ("hour", "verdict", "reason", "provenance", "recipe", "recipe_version")
_IN_TIME = "kind = :kind AND written_at >= :since AND written_at < :until AND seq <= :last"


@dataclass(frozen=True, slots=True)
class Span:
    """A time that is reported on."""

    title: str
    since: datetime
    until: datetime
    """Exclusive."""
    zone: tzinfo = UTC

    @property
    def file_name(self) -> str:
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.title)
        return f"report-{safe}.html"


def spans(shifts: ShiftSettings, first: date, last: date) -> list[Span]:
    """Shifts that begin on these local days, in order."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 2)]
    begun = begun_on(shifts, days)
    found = [
        Span(name, begin, end, ZoneInfo(shifts.timezone))
        for (begin, name), (end, _) in pairwise(begun)
    ]
    return [span for span in found if span.title[:10] <= last.isoformat()]


def span_named(shifts: ShiftSettings, name: str) -> Span:
    """Raises ValueError if there is no such shift."""
    try:
        day = datetime.fromisoformat(name[:10]).date()
        known = {span.title: span for span in spans(shifts, day, day)}
    except (ValueError, OverflowError) as error:
        first = next(iter(shifts.begins))
        raise ValueError(f"{name!r}: write it as '2026-11-26 {first}'") from error
    if name not in known:
        raise ValueError(f"{name!r}: there are {', '.join(repr(one) for one in known)}")
    return known[name]


def due(shifts: ShiftSettings, now: datetime, folder: Path, first_row: datetime) -> list[Span]:
    """Shifts that have ended, that the log knows, and that no report is there of."""
    zone_ = ZoneInfo(shifts.timezone)
    begin = max(first_row, now - _KEPT_AWAY).astimezone(zone_).date() - timedelta(days=1)
    return [
        span
        for span in spans(shifts, begin, now.astimezone(zone_).date())
        if max(first_row, now - _KEPT_AWAY) < span.until <= now
        and not (folder / span.file_name).exists()
    ]


def report(reader: Reader, source: Source, station_id: str, span: Span) -> str:
    """The page. Raises `StoreError` if the log cannot be asked."""
    facts = _Facts(reader, source, span)
    environment = Environment(
        loader=PackageLoader("station"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": visible, "local": facts.local}
    made_at = rfc3339(datetime.now(UTC))
    return environment.get_template("shift_report.html").render(
        station_id=station_id,
        span=span,
        made_by=program_version(),
        made_at=made_at,
        share=_share,
        anchor=Anchor(station_id, *facts.head, at=made_at).printed(),
        **facts.all(),
    )


def _share(value: float | None, low: float, high: float) -> str:
    said = "unknown" if value is None else f"{value:.2%}"
    return f"{said} (95 %: {low:.2%} to {high:.2%})"


@dataclass(frozen=True, slots=True)
class Some:
    """The first rows of a list, and how many more there are."""

    rows: list[Json]
    more: int


class _Facts:
    def __init__(self, reader: Reader, source: Source, span: Span) -> None:
        self._reader, self._source, self._span = reader, source, span
        self.head = source.head()
        self._times = {"since": rfc3339(span.since), "until": rfc3339(span.until)}
        self._selection = Selection(since=self._times["since"], until=self._times["until"])
        self._ask = Questions(reader.ask)

    def local(self, at: str | None) -> str:
        """A time of the log, for people."""
        if at is None:
            return "–"
        return datetime.fromisoformat(at).astimezone(self._span.zone).isoformat(" ", "seconds")

    def all(self) -> Json:
        counts = self._ask.counts(self._selection, *_COUNTED_BY)
        plates = [row for row in counts if row.reason != Reason.GAP]
        return {
            "gaps": sum(row.plates for row in counts if row.reason == Reason.GAP),
            "parts": [self._part(name, plates) for name in _provenances(plates)],
            **self._rows(),
            **self._open(),
            "pictures": list(self._pictures()),
        }

    def _part(self, provenance: str, plates: Sequence[Any]) -> Json:
        """Plates of one provenance: counts, and the share that did not pass hour by hour."""
        counts = [row for row in plates if row.provenance == provenance]
        selection = replace(self._selection, provenance=provenance)
        total = _sums(counts, lambda row: row.verdict)
        hours = _sums(counts, lambda row: row.hour)
        bad = _sums(counts, lambda row: row.hour if row.verdict != "PASS" else None)
        groups = [Group(self._hour(hour), size, bad[hour]) for hour, size in sorted(hours.items())]
        found = chart("p", groups) if groups else None
        reasons = _sums(counts, lambda row: row.reason or None)
        return {
            "provenance": provenance,
            "is_production": provenance == Provenance.PRODUCTION,
            "plates": total.total(),
            "verdicts": total,
            "yield_": proportion(total["PASS"], total.total()),
            "first_passes": list(yields(self._reader, selection)),
            "recipes": _sums(counts, lambda row: f"{row.recipe} version {row.recipe_version}"),
            "reasons": pareto(reasons)[:_MOST_PARETO],
            "reasons_drawn": pareto_bars(pareto(reasons)[:_MOST_PARETO]) if reasons else "",
            "chart": found,
            "chart_drawn": control_chart(found) if found else "",
            **self._defects(selection),
        }

    def _hour(self, hour: str) -> str:
        return datetime.fromisoformat(f"{hour}:00Z").astimezone(self._span.zone).strftime("%H:%M")

    def _defects(self, selection: Selection) -> Json:
        columns = (DEFECT.c.x_mm, DEFECT.c.y_mm, DEFECT.c.w_mm, DEFECT.c.h_mm)
        rows = self._reader.ask(defects_select(selection, *columns))
        size_mm = extent_mm((row.x_mm, row.y_mm) for row in rows if row.x_mm is not None)
        zones = Counter(zone(row.x_mm, row.y_mm, size_mm) for row in rows)
        sizes = Counter(size_class(row.w_mm, row.h_mm) for row in rows)
        found = heat_map(((row.x_mm, row.y_mm) for row in rows), size_mm, _cell_mm(size_mm))
        return {
            "map_drawn": plate_map(found.counts, found.cell_mm, size_mm) if rows else "",
            "defects": len(rows),
            "zones_drawn": pareto_bars(pareto(zones)) if rows else "",
            "sizes_drawn": pareto_bars(pareto(sizes)) if rows else "",
        }

    def _rows(self) -> Json:
        """What else the log says of this time."""
        removed = self._source.all(
            "SELECT body ->> '$.picture_class', body ->> '$.rule', count(*), "
            f"sum(body ->> '$.bytes') FROM row WHERE {_IN_TIME} GROUP BY 1, 2 ORDER BY 1, 2",
            {"kind": "tombstone", **self._limits()},
        )
        return {
            "downtimes": self._some("downtime"),
            "attentions": self._some("attention"),
            "changes": self._some("change"),
            "restored": self._some("restored"),
            "disk": self._some("disk"),
            "clock": self._some("clock"),
            "removed": [
                {"what": row[0], "rule": row[1], "count": row[2], "mb": row[3] / 1e6}
                for row in removed
            ],
        }

    def _limits(self) -> Json:
        return {**self._times, "last": self.head.seq}

    def _some(self, kind: str) -> Some:
        values = {"kind": kind, **self._limits()}
        count = self._source.one(f"SELECT count(*) FROM row WHERE {_IN_TIME}", values)[0]
        query = f"SELECT body FROM row WHERE {_IN_TIME} ORDER BY seq LIMIT {_MOST_ROWS}"
        rows = [json.loads(row[0]) for row in self._source.all(query, values)]
        return Some(rows, count - len(rows))

    def _open(self) -> Json:
        """Plates without a result, and plates that no review holds of, as of the head."""
        undone = self._source.one(
            f"SELECT count(*) FROM row AS begun WHERE {_IN_TIME} AND NOT EXISTS (SELECT 1 FROM row "
            "WHERE result_id = begun.result_id AND kind = 'result' AND seq <= :last)",
            {"kind": "opened", **self._limits()},
        )[0]
        unreviewed = self._source.one(
            f"SELECT count(*) FROM row AS made WHERE {_IN_TIME} AND verdict <> 'PASS' "
            f"AND reason IS NOT :gap AND {NO_REVIEW_HOLDS.format(table='made')}",
            {"kind": "result", "gap": Reason.GAP, **self._limits()},
        )[0]
        not_removed = open_plates.count_between(self._reader, **self._times)
        return {"open_plates": undone, "unreviewed": unreviewed, "not_removed": not_removed}

    def _pictures(self) -> Iterator[Json]:
        """Of the failed plates with the highest scores."""
        found = self._source.all(
            f"SELECT body FROM row WHERE {_IN_TIME} AND verdict = 'FAIL' "
            f"ORDER BY CAST(body ->> '$.score' AS REAL) DESC, seq LIMIT {_MOST_PICTURES}",
            {"kind": "result", **self._limits()},
        )
        for row in found:
            body = self._reader.whole(row[0])
            kept = smallest(body["images"])
            data = thumbnail(self._reader.images / kept["path"], _PICTURE_PX) if kept else None
            if data is not None:
                yield {**body, "jpeg": base64.b64encode(data).decode()}


def _provenances(plates: Sequence[Any]) -> list[str]:
    """Production first; it is told of also where there was no plate at all."""
    found = {row.provenance for row in plates} or {str(Provenance.PRODUCTION)}
    return sorted(found, key=lambda name: (name != Provenance.PRODUCTION, name))


def _cell_mm(size_mm: tuple[float, float]) -> float:
    """About a twentieth of the longer side, so that a number fits into a cell."""
    return max(1.0, 5.0 * round(max(size_mm) / 100))


def _sums(counts: Any, key: Callable[[Any], Any]) -> Counter[str]:
    """Plates by what a row is; rows that are None are left out."""
    found: Counter[str] = Counter()
    for row in counts:
        name = key(row)
        if name is not None:
            found[name] += row.plates
    return found
