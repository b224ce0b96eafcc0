"""What is known of a station's drift, for people and scripts: limits, charts, the last alarms.

Limits and alarms are the log's; the charts are those of the state files beside it, which are no
evidence.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from station.chart import line_chart
from station.drift import state_file
from station.drift_charts import CHARTS, MAP_CHART, Limits
from station.drift_log import ALARM, CLEARED, RELEARN, limits_of, register
from station.plate_names import NAMES

Json = dict[str, Any]
Floats = NDArray[np.float64]

_MOST_ROWS = 20
"""Alarms, their ends and commands to learn anew, the newest."""
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 48
_UNITS = {"score": "log odds", "score_high": "log odds", MAP_CHART: "distance"}
_RELATIVE = "relative"


def drifts(rows: Sequence[Mapping[str, Any]], directory: Path) -> list[Json]:
    """One object for each key that has limits, the newest first; `rows` are the log's rows of
    drift, `directory` is the journal's."""
    known = register(rows)
    return [
        _drift(key, detail, known.standing.get(key), rows, directory)
        for key, detail in reversed(known.limits.items())
    ]


def _drift(
    key: str,
    detail: Mapping[str, str],
    standing: Mapping[str, str] | None,
    rows: Iterable[Mapping[str, Any]],
    directory: Path,
) -> Json:
    limits, state = limits_of(detail), _state(directory, key)
    history = _array(state.get("ratios"), len(CHARTS))
    return {
        "key": key,
        "recipe": detail["recipe"],
        "model_id": detail["model_id"],
        "model_sha256": detail["model_sha256"],
        "learned_plates": limits.plates,
        "learned_until": detail["result_id"],
        "plates": state.get("plates"),
        "unmeasured": state.get("unmeasured"),
        "standing": standing and {"cause": standing["cause"], "text": standing["text"]},
        "charts": [_chart(name, limits, history, detail) for name in CHARTS],
        "alarms": [_said(row) for row in rows if _is_told(row, key)][-_MOST_ROWS:],
    }


def _chart(name: str, limits: Limits, history: Floats, detail: Mapping[str, str]) -> Json:
    at = CHARTS.index(name)
    line = history[:, at].tolist() if len(history) else []
    found: Json = {
        "chart": name,
        "unit": _UNITS.get(name, _RELATIVE),
        "limit": _known(limits.distance),
        "jump_limit": None,
        "is_wide": name in detail["too_wide"].split(", "),
        "ratio": line[-1] if line else None,
        "ratios": line,
    }
    if name != MAP_CHART:
        place = NAMES.index(name)
        found["limit"] = _known(limits.mean[place])
        found["jump_limit"] = _known(limits.jump[place])
    found["ratios"] = [_known(value) for value in line]
    found["ratio"] = _known(found["ratio"]) if line else None
    return found


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _state(directory: Path, key: str) -> Json:
    """Empty where there is none, or none that can be read."""
    with suppress(OSError, ValueError):
        said = json.loads(state_file(directory, key).read_bytes())
        if isinstance(said, dict) and said.get("key") == key:
            return said
    return {}


def _array(values: Any, width: int) -> Floats:
    """Rows of numbers; none of what is no such list."""
    with suppress(ValueError, TypeError):
        return np.array(values or [], np.float64).reshape(-1, width)
    return np.empty((0, width))


def _is_told(row: Mapping[str, Any], key: str) -> bool:
    return row["what"] in (ALARM, CLEARED, RELEARN) and row["detail"].get("key") == key


def _said(row: Mapping[str, Any]) -> Json:
    detail = row["detail"]
    names = ("cause", "chart", "change", "limit", "text", "since_result_id", "result_id", "why")
    said = {name: detail[name] for name in (*names, "reason") if name in detail}
    if "evidence" in detail:
        said["evidence"] = json.loads(detail["evidence"])
    return {"what": row["what"], "written_at": row["written_at"], "who": row["who"], **said}


# --- for people ----------------------------------------------------------------------------------


def lines(drift: Json) -> list[str]:
    """A key's charts and alarms as text, one chart a line."""
    standing = drift["standing"]
    head = (
        f"{drift['recipe']}  {drift['model_id']} {drift['model_sha256'][:12]}  limits of "
        f"{drift['learned_plates']} plates until {drift['learned_until']}"
    )
    state = f"ATTENTION: {standing['text']}" if standing else "inside its limits"
    counts = f"{drift['plates'] or 0} plates seen, {drift['unmeasured'] or 0} not measured"
    table = [f"{'chart':12}{'now':>7}{'limit':>12}{'jump':>9}  last points, of the limit"]
    table += [_line(chart) for chart in drift["charts"] if chart["limit"] is not None]
    told = [
        f"{row['written_at'][:19]}  {row['what']:14}{row.get('text') or row.get('reason', '')}"
        for row in drift["alarms"]
    ]
    return [head, f"{state}; {counts}", *table, *told]


def _line(chart: Json) -> str:
    now = "" if chart["ratio"] is None else f"{chart['ratio']:+.2f}"
    jump = "" if chart["jump_limit"] is None else _amount(chart, "jump_limit")
    wide = "  varies too much for what is to be found" if chart["is_wide"] else ""
    return (
        f"{chart['chart']:12}{now:>7}{_amount(chart, 'limit'):>12}{jump:>9}  "
        f"{_spark(chart['ratios'])}{wide}"
    )


def _amount(chart: Json, name: str) -> str:
    value = chart[name]
    if chart["unit"] == _RELATIVE:
        return f"{np.expm1(value):.1%}"
    return f"{value:.2f}"


def _spark(ratios: Sequence[float | None]) -> str:
    """From -1.5 to 1.5 of the limit; a point that is not known is a blank."""
    places = [
        " " if r is None else _SPARKS[int(np.clip((r + 1.5) / 3 * len(_SPARKS), 0, 7))]
        for r in ratios[-_SPARK_POINTS:]
    ]
    return "".join(places)


def html(station_id: str, found: Sequence[Json]) -> bytes:
    """One page that needs no network and prints."""
    environment = Environment(
        loader=PackageLoader("station"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": _picture, "amount": _amount}
    page = environment.get_template("drift.html").render(station_id=station_id, drifts=found)
    return page.encode()


def _picture(chart: Json) -> str:
    """A chart as a data URI; empty where no point is known."""
    values = np.array(chart["ratios"], np.float64)
    if not np.isfinite(values).any():
        return ""
    limit = np.ones(len(values))
    series = {"of its limit": values, "limit": limit, "-limit": -limit}
    if chart["chart"] == MAP_CHART:
        del series["-limit"]
    svg = line_chart(chart["chart"], "points of 8 plates", "of its limit", series)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
