"""What the log says of drift: limits that were learned, alarms, and who had limits learned anew.

Each step is a chained change row. Limits that once hold for a key (recipe, camera, its settings,
model) are replaced only after a person's command, which says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from station.drift_charts import Limits
from station.ingress import name_problem, words_problem
from station.record import ChangeBody

LIMITS = "drift_limits"
ALARM = "drift_alarm"
CLEARED = "drift_cleared"
RELEARN = "drift_relearn"
CHANGES = (LIMITS, ALARM, CLEARED, RELEARN)
"""Names of the change rows."""
PAGE_KEYS = 64
"""Told at once to a station that starts: 3 kB each, and a packet takes 400 kB."""

Row = Mapping[str, Any]
Detail = Mapping[str, str]


@dataclass(slots=True)
class DriftRegister:
    """What the rows of drift come to, by key."""

    limits: dict[str, Detail] = field(default_factory=dict)
    """Details of the rows whose limits hold, the oldest first."""
    standing: dict[str, Detail] = field(default_factory=dict)
    """Of the alarms that stand."""
    strange: list[str] = field(default_factory=list)
    """Rows that no journal process takes."""

    def page(self, first: int) -> dict[str, Any]:
        """What holds for `PAGE_KEYS` keys from number `first` on, and the number of the `next` one;
        None after the last. A start needs all: which key its camera and model have is not known
        yet."""
        keys, end = sorted({*self.limits, *self.standing}), first + PAGE_KEYS
        found = {"limits": self.limits, "standing": self.standing}
        said = {
            name: {key: rows[key] for key in keys[first:end] if key in rows}
            for name, rows in found.items()
        }
        return {**said, "next": end if end < len(keys) else None}


def register(rows: Iterable[Row]) -> DriftRegister:
    """Fold change rows, in their order; one that breaks a rule counts for nothing."""
    found = DriftRegister()
    follow(found, rows)
    return found


def follow(found: DriftRegister, rows: Iterable[Row]) -> None:
    """Fold further rows into it."""
    for row in rows:
        if row["what"] not in CHANGES:
            continue
        if problem := objection(found, row):
            found.strange.append(problem)
        else:
            _take(found, row["what"], row["detail"])


def _take(found: DriftRegister, what: str, detail: Detail) -> None:
    key = detail["key"]
    if what == LIMITS:
        found.limits.pop(key, None)
        found.limits[key] = detail
    elif what == ALARM:
        found.standing.pop(key, None)
        found.standing[key] = detail
    elif what == CLEARED:
        found.standing.pop(key, None)
    else:
        found.limits.pop(key, None)
        found.standing.pop(key, None)


def objection(known: DriftRegister, row: Row) -> str:
    """Why this change row may not follow; empty if it may, or is none of drift."""
    what, detail = row["what"], row["detail"]
    if what not in CHANGES:
        return ""
    key = detail.get("key", "")
    if not key:
        return f"a {what} row names its key"
    if what == RELEARN:
        reason = str(detail.get("reason", ""))
        problem = name_problem("person", row["who"]) or words_problem("reason", reason)
        return problem or ("" if reason else "to learn limits anew, say why")
    if what == LIMITS:
        return _no_limits(known.limits.get(key), detail)
    if what == ALARM and not detail.get("cause"):
        return "an alarm names its cause"
    return ""


def _no_limits(there: Detail | None, detail: Detail) -> str:
    try:
        limits_of(detail)
    except ValueError as error:
        return str(error)
    # Sent again, it is the same row: an answer may have been lost.
    if there is None or there["limits"] == detail["limits"]:
        return ""
    return (
        "these plates have limits already; they are learned anew only by a person: "
        "`vqi model drift --relearn`"
    )


def limits_of(detail: Detail) -> Limits:
    """Of a `drift_limits` row. Raises ValueError if it holds none of these charts."""
    try:
        said = json.loads(detail["limits"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"a {LIMITS} row without limits: {error!r}") from error
    if not isinstance(said, dict):
        raise ValueError(f"a {LIMITS} row without limits")
    return Limits.of_json(said)


def change(station_id: str, what: str, detail: dict[str, str], who: str = "station") -> ChangeBody:
    """A row of drift."""
    return ChangeBody(station_id=station_id, what=what, who=who, detail=detail)
