"""QA's figures: what most often goes wrong, control charts, yield, the map of the plate, and what
reviews say of the verdicts. The same figures under the same names as `vqi log`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Literal

import cv2
from fastapi import Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from station import heat_map as maps
from station.answers import (
    By,
    ChartKind,
    Json,
    Of,
    groups,
    open_samples,
    yields,
)
from station.charts import Chart
from station.export_csv import table
from station.export_rows import Context
from station.heat_map import HeatMap
from station.log_reader import Reader
from station.quality import SIZE_CLASSES_MM, ParetoRow
from station.record import Verdict
from station.report_drawings import control_chart, pareto_bars, plate_map
from station.web.context import Web
from station.web.errors import PageError, not_found
from station.web.pages import WebRouter
from station.web.qa_choice import Asked, Choice, Clock, asked, plain
from station.web.qa_figures import (
    chart_of,
    chart_rows,
    false_alarms_per_1000,
    map_of,
    pareto_rows,
    plate_size_mm,
    quality_rows,
)

router = WebRouter()
_SAMPLES = 50
_MOST_CELLS = 250_000


def csv_file(rows: Sequence[Json], web: Web, name: str) -> Response:
    """A table as RFC 4180 has it, safe to open in a spreadsheet."""
    content = "\ufeff" + table(rows, Context(web.zone))
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return Response(content.encode(), media_type="text/csv; charset=utf-8", headers=headers)


def _svg_file(drawn: str) -> Response:
    content = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return Response(content.encode(), media_type="image/svg+xml")


class ParetoQuery(Choice):
    """Which plates, and what of them is counted."""

    of: Of = Field(Of.REASON, description="Of results: reason. Of defects: the others.")


class ChartQuery(Choice):
    """Which plates, and what makes a chart of them."""

    which: ChartKind = Field(ChartKind.P, description="p: failed plates; u: defects a plate.")
    by: By = Field(By.HOUR, description="Which plates make one point; hours and days by UTC.")


class MapQuery(Choice):
    """Which plates, and how fine the map is."""

    cell_mm: float = Field(10.0, ge=0.5, le=1000, allow_inf_nan=False, description="Side.")


# --- Pareto -------------------------------------------------------------------------------------


class ParetoBar(BaseModel):
    """A row of `vqi log pareto --json`."""

    name: str
    count: int
    share: float
    cumulative: float = Field(description="Share of all up to this one.")
    plates: str | None = Field(description="Where these plates are listed.")


class ParetoPage(BaseModel):
    """What most often goes wrong."""

    asked: Asked
    of: Of
    total: int
    rows: list[ParetoBar]


@router.page("/pareto", template="qa/pareto.html")
def pareto(web: Web, query: Annotated[ParetoQuery, Query()]) -> ParetoPage:
    """What most often keeps plates from passing; or of which kind, which size, in which ninth of
    the plate defects are."""
    clock = Clock.of(web)
    with web.reader() as reader:
        said, selection = asked(web, reader, query, clock)
        size_mm = plate_size_mm(web)
        found = pareto_rows(reader, selection, query.of, size_mm)
    rows = [
        ParetoBar(**asdict(row), plates=_bar_plates(query, row, clock, size_mm)) for row in found
    ]
    return ParetoPage(asked=said, of=query.of, total=sum(row.count for row in rows), rows=rows)


@router.data("/pareto.csv", media_type="text/csv")
def pareto_csv(web: Web, query: Annotated[ParetoQuery, Query()]) -> Response:
    """The same as a table."""
    rows = [row.model_dump(exclude={"plates"}) for row in pareto(web, query).rows]
    return csv_file(rows, web, f"pareto-{query.of}")


@router.data("/pareto.svg", media_type="image/svg+xml")
def pareto_svg(web: Web, query: Annotated[ParetoQuery, Query()]) -> Response:
    """The same as a drawing."""
    rows = [ParetoRow(**row.model_dump(exclude={"plates"})) for row in pareto(web, query).rows]
    if not rows:
        raise not_found("qa.nothing_found")
    return _svg_file(pareto_bars(rows))


def _bar_plates(
    query: ParetoQuery, row: ParetoRow, clock: Clock, size_mm: tuple[float, float]
) -> str | None:
    """None where no filter says it, or that filter is in use already."""
    more = _filters_of(query.of, row.name, size_mm)
    if not more or any(getattr(query, name) is not None for name in more):
        return None
    return _address(query, clock, more)


def _filters_of(of: Of, name: str, size_mm: tuple[float, float]) -> Json:
    if name in ("unknown", "not named"):
        return {}
    if of is Of.REASON:
        return {"verdict": Verdict.FAIL} if name == "defects" else {"reason": name}
    if of is Of.KIND:
        return {"kind": name}
    return _size_filters(name) if of is Of.SIZE else {"place": _ninth(name, size_mm)}


def _size_filters(name: str) -> Json:
    """Of a class of `station.quality.size_class`."""
    low = float(name.partition(" ")[0].partition("-")[0])
    ends = [end for end in SIZE_CLASSES_MM if end > low]
    least = {"min_size_mm": low} if low else {}
    return least | ({"max_size_mm": ends[0]} if ends else {})


def _ninth(name: str, size_mm: tuple[float, float]) -> str:
    """Of `station.quality.zone`."""
    along, _, across = name.partition(" ")
    column = ("left", "middle", "right").index(across)
    row = ("leading", "centre", "trailing").index(along)
    w, h = size_mm[0] / 3, size_mm[1] / 3
    return f"{column * w:g},{row * h:g},{(column + 1) * w:g},{(row + 1) * h:g}"


def _address(query: Choice, clock: Clock, more: Json) -> str:
    """Of the plates that a choice and some filters more have in common."""
    return f"/plates?{plain(query).model_copy(update=more).query(clock)}".removesuffix("?")


# --- charts -------------------------------------------------------------------------------------


class ChartPage(BaseModel):
    """A control chart; its points are rows of `vqi log chart --json`."""

    asked: Asked
    which: ChartKind
    by: By
    limits: Literal["exact", "laney"]
    centre: float
    sigma_z: float | None = Field(description="Spread in units of what chance allows.")
    sigma_z_limit: float | None = Field(description="Chance exceeds it in one chart of a hundred.")
    marked: int = Field(description="Points out of limits, or that complete a rule.")
    points: list[Json] = Field(description="With `plates`: where a point's plates are listed.")


class FalseAlarms(BaseModel):
    """How many points of a process in control a chart would mark."""

    false_alarms_per_1000: float | None


@router.page("/chart", template="qa/chart.html")
def chart(web: Web, query: Annotated[ChartQuery, Query()]) -> ChartPage:
    """Failed plates, or defects a plate, from hour to hour, with limits that chance seldom
    crosses."""
    clock = Clock.of(web)
    with web.reader() as reader:
        said, selection = asked(web, reader, query, clock)
        found = chart_of(query.which, groups(reader, selection, query.which, query.by))
    address = _point_address(query, clock)
    points = [row | {"plates": address(row["label"])} for row in chart_rows(found)]
    marked = sum(point.is_out or bool(point.rules) for point in found.points)
    return ChartPage(
        asked=said, which=query.which, by=query.by, limits=found.limits, centre=found.centre,
        sigma_z=found.sigma_z, sigma_z_limit=found.sigma_z_limit, marked=marked, points=points,
    )  # fmt: skip


def _point_address(query: ChartQuery, clock: Clock) -> _PointAddress:
    sides: Json = {"range": None, "since": None, "until": None}
    sides |= {"since_local": None, "until_local": None, "verdict": Verdict.FAIL}
    if query.by is By.SHIFT:
        sides["shift"] = None
    since, until = query.span(clock)
    return _PointAddress(query.by, _address(query, clock, sides), since or "", until or "9999")


class _PointAddress:
    """Where the failed plates of a point are listed: a query for the whole chart, and the point's
    time or shift."""

    def __init__(self, by: By, base: str, since: str, until: str) -> None:
        self._by, self._base, self._since, self._until = by, base, since, until

    def __call__(self, label: str) -> str:
        if self._by is By.SHIFT:
            return f"{self._base}&shift={label.replace(' ', '+')}"
        hours = 24 if self._by is By.DAY else 1
        begin = datetime.fromisoformat(label if self._by is By.DAY else f"{label}:00")
        end = begin + timedelta(hours=hours)
        since = max(f"{begin.isoformat()}.000000Z", self._since)
        until = min(f"{end.isoformat()}.000000Z", self._until)
        return f"{self._base}&since={since}&until={until}"


@router.page("/chart/false-alarms", template="qa/false_alarms.html")
def false_alarms(web: Web, query: Annotated[ChartQuery, Query()]) -> FalseAlarms:
    """How many points of 1,000 such a chart would mark while nothing is wrong; simulated, so asked
    for by itself."""
    clock = Clock.of(web)
    with web.reader() as reader:
        found = groups(reader, query.selection(clock), query.which, query.by)
    return FalseAlarms(false_alarms_per_1000=false_alarms_per_1000(query.which, found))


@router.data("/chart.csv", media_type="text/csv")
def chart_csv(web: Web, query: Annotated[ChartQuery, Query()]) -> Response:
    """The chart's figures as a table."""
    return csv_file(chart_rows(_chart(web, query)), web, f"chart-{query.which}-by-{query.by}")


@router.data("/chart.svg", media_type="image/svg+xml")
def chart_svg(web: Web, query: Annotated[ChartQuery, Query()]) -> Response:
    """The chart as a drawing."""
    found = _chart(web, query)
    if not found.points:
        raise not_found("qa.nothing_found")
    return _svg_file(control_chart(found))


def _chart(web: Web, query: ChartQuery) -> Chart:
    with web.reader() as reader:
        selection = query.selection(Clock.of(web))
        return chart_of(query.which, groups(reader, selection, query.which, query.by))


# --- yield --------------------------------------------------------------------------------------


class RowsPage(BaseModel):
    """An answer of `vqi log`, a row for each of its rows."""

    asked: Asked
    rows: list[Json]


@router.page("/yield", template="qa/yield.html")
def yield_(web: Web, query: Annotated[Choice, Query()]) -> RowsPage:
    """First-pass yield by recipe: of serials seen for the first time, those that passed."""
    with web.reader() as reader:
        said, selection = asked(web, reader, query, Clock.of(web))
        return RowsPage(asked=said, rows=list(yields(reader, selection)))


@router.data("/yield.csv", media_type="text/csv")
def yield_csv(web: Web, query: Annotated[Choice, Query()]) -> Response:
    """The same as a table."""
    return csv_file(yield_(web, query).rows, web, "yield")


# --- map ----------------------------------------------------------------------------------------


class MapPage(BaseModel):
    """Where on the plate defects lie; rows of `vqi log heat-map --json`."""

    asked: Asked
    cell_mm: float
    width_mm: float
    length_mm: float
    defects: int
    beside: int = Field(description="Defects beside a plate of this size, or of unknown place.")
    most: int = Field(description="In one cell.")
    rows: list[Json] = Field(description="Cells by their left leading corner, the fullest first.")


@router.page("/map", template="qa/map.html")
def defect_map(web: Web, query: Annotated[MapQuery, Query()]) -> MapPage:
    """Where on the plate defects lie."""
    clock = Clock.of(web)
    with web.reader() as reader:
        said, _ = asked(web, reader, query, clock)
        found = _map(web, reader, query, clock)
    rows = _cells(query, clock, found)
    on_plate = int(found.counts.sum())
    return MapPage(
        asked=said, cell_mm=query.cell_mm, width_mm=found.size_mm[0], length_mm=found.size_mm[1],
        defects=on_plate + found.beside, beside=found.beside,
        most=int(found.counts.max(initial=0)), rows=rows,
    )  # fmt: skip


def _cells(query: MapQuery, clock: Clock, found: HeatMap) -> list[Json]:
    """With where each cell's plates are listed, unless a place is asked for already."""
    base = _address(query, clock, {})
    if query.place is not None:
        return found.rows()
    base += "&place=" if "?" in base else "?place="
    return [row | {"plates": base + _cell(row, found.cell_mm)} for row in found.rows()]


def _cell(row: Json, side: float) -> str:
    """As a filter, whose far sides belong to it: those of a cell belong to the next one."""
    x, y = row["x_mm"], row["y_mm"]
    return f"{x:g},{y:g},{x + side - 0.001:.3f},{y + side - 0.001:.3f}"


def _map(web: Web, reader: Reader, query: MapQuery, clock: Clock) -> HeatMap:
    size_mm = plate_size_mm(web)
    if size_mm[0] * size_mm[1] / query.cell_mm**2 > _MOST_CELLS:
        least = (size_mm[0] * size_mm[1] / _MOST_CELLS) ** 0.5
        raise PageError(422, "qa.cells_too_small", least=f"{least:.1f}")
    return map_of(reader, query.selection(clock), size_mm, query.cell_mm)


@router.data("/map.csv", media_type="text/csv")
def map_csv(web: Web, query: Annotated[MapQuery, Query()]) -> Response:
    """The cells as a table."""
    with web.reader() as reader:
        return csv_file(_map(web, reader, query, Clock.of(web)).rows(), web, "map")


@router.data("/map.svg", media_type="image/svg+xml")
def map_svg(web: Web, query: Annotated[MapQuery, Query()]) -> Response:
    """The map as a drawing."""
    with web.reader() as reader:
        found = _map(web, reader, query, Clock.of(web))
    return _svg_file(plate_map(found.counts, found.cell_mm, found.size_mm))


@router.data("/map.png", media_type="image/png")
def map_png(web: Web, query: Annotated[MapQuery, Query()]) -> Response:
    """The map as the command draws it."""
    with web.reader() as reader:
        found = _map(web, reader, query, Clock.of(web))
    on_plate = int(found.counts.sum()) + found.beside
    image = maps.picture(found, f"{on_plate} defects, plate in mm, leading edge up")
    return Response(cv2.imencode(".png", image)[1].tobytes(), media_type="image/png")


# --- are the verdicts right ---------------------------------------------------------------------


class QualityPage(RowsPage):
    """What reviews say of the verdicts; rows of `vqi log quality --json`."""

    samples: list[Json] = Field(description="Oldest audit samples that nobody has judged.")


@router.page("/quality", template="qa/quality.html", menu="qa.menu")
def quality(web: Web, query: Annotated[Choice, Query()]) -> QualityPage:
    """Defective plates among those that passed, good ones among those that failed, and the share of
    defective plates that escape; each with its interval at 95 %."""
    with web.reader() as reader:
        said, selection = asked(web, reader, query, Clock.of(web))
        rows = quality_rows(reader, selection)
        is_open = any(row["audit_open"] for row in rows)
        samples = open_samples(reader, selection, _SAMPLES) if is_open else []
        return QualityPage(asked=said, rows=rows, samples=samples)


@router.data("/quality.csv", media_type="text/csv")
def quality_csv(web: Web, query: Annotated[Choice, Query()]) -> Response:
    """The same as a table."""
    with web.reader() as reader:
        rows = quality_rows(reader, query.selection(Clock.of(web)))
    return csv_file(rows, web, "quality")


@router.data("/quality/samples.csv", media_type="text/csv")
def samples_csv(web: Web, query: Annotated[Choice, Query()]) -> Response:
    """Audit samples that nobody has judged, as a table."""
    with web.reader() as reader:
        rows = open_samples(reader, query.selection(Clock.of(web)), 500)
    return csv_file(rows, web, "open-audit-samples")
