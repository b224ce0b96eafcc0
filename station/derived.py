"""What QA's tables hold of a row of the log: one pure function, so that a station's file, a plant's
database and a verification come to the same.

`lines_of` says what a row adds; `add` writes it with statements that SQLite and PostgreSQL both
understand. Rows are given in the order of their chain, and each once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from station.tables import DEFECT, HOURLY, PLATE

Json = dict[str, Any]
Many = Callable[[str, Sequence[Json]], object]
"""Executes a statement with named parameters (`:name`) once for each set of values."""

KINDS = ("result", "review")
"""Kinds of rows that the tables are made of."""
_HOUR = len("2026-11-26T09")
_NOTHING = {"reason": "", "shift": "", "attempt": 0}
"""What sums say where there is none: a key has no NULL."""
_MADE_LATER = ("reviewed_verdict", "reviewer", "review_seq")
_NUMBERS = ("score", "x_mm", "y_mm", "w_mm", "h_mm")


def _insert(table: str, columns: Iterable[str]) -> str:
    names = list(columns)
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"


_KEY = [column.name for column in HOURLY.primary_key]
_PLATES = _insert("plate", (c.name for c in PLATE.columns if c.name not in _MADE_LATER))
_DEFECTS = _insert("defect", (c.name for c in DEFECT.columns if c.name != "kind"))
_HOURS = (
    f"{_insert('hourly', (c.name for c in HOURLY.columns))} ON CONFLICT ({', '.join(_KEY)}) "
    "DO UPDATE SET plates = hourly.plates + excluded.plates, "
    "defects = hourly.defects + excluded.defects"
)
# A result's id begins with its station's, which may have another name by the time of a review.
_REVIEWS = """
    UPDATE plate SET reviewed_verdict = :verdict, reviewer = :reviewer, review_seq = :seq
    WHERE result_id = :result_id AND seq < :seq AND (review_seq IS NULL OR review_seq < :seq)
"""
_DEFECT_KINDS = """
    UPDATE defect SET kind = :kind WHERE number = :number
    AND (station_id, seq) = (SELECT station_id, seq FROM plate
                             WHERE result_id = :result_id AND seq < :seq ORDER BY seq DESC LIMIT 1)
"""
EMPTY = (
    *(f"DELETE FROM {table}" for table in ("plate", "defect", "hourly", "derived")),
    "INSERT INTO derived (seq) VALUES (0)",
)
"""Makes a station's tables what they are before the first row."""


@dataclass(slots=True)
class Lines:
    """What rows add to the tables."""

    plates: list[Json] = field(default_factory=list)
    defects: list[Json] = field(default_factory=list)
    reviews: list[Json] = field(default_factory=list)
    defect_kinds: list[Json] = field(default_factory=list)

    def extend(self, other: Lines) -> None:
        self.plates += other.plates
        self.defects += other.defects
        self.reviews += other.reviews
        self.defect_kinds += other.defect_kinds

    def hours(self) -> list[Json]:
        """The sums that the plates add, one for each key of the table."""
        plates, defects = Counter[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
        for line in self.plates:
            hour = line["written_at"][:_HOUR]
            key = tuple(
                hour if name == "hour" else line[name] or _NOTHING.get(name, line[name])
                for name in _KEY
            )
            plates[key] += 1
            defects[key] += line["defects"]
        return [
            {**dict(zip(_KEY, key, strict=True)), "plates": plates[key], "defects": defects[key]}
            for key in plates
        ]


def lines_of(station_id: str, seq: int, kind: str, body: Mapping[str, Any]) -> Lines:
    """What one row adds. A body that no version of this program wrote adds nothing: whoever checks
    the log names it."""
    try:
        if kind == "result":
            return _of_result(station_id, seq, body)
        if kind == "review":
            return _of_review(seq, body)
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    return Lines()


def add(many: Many, lines: Lines) -> None:
    """Write what rows add, within the transaction of those rows."""
    for statement, values in (
        (_PLATES, lines.plates),
        (_DEFECTS, lines.defects),
        (_HOURS, lines.hours()),
        (_REVIEWS, lines.reviews),
        (_DEFECT_KINDS, lines.defect_kinds),
    ):
        if values:
            many(statement, values)


def _of_result(station_id: str, seq: int, body: Mapping[str, Any]) -> Lines:
    place = {"station_id": station_id, "seq": seq}
    found = body.get("defects") or ()
    plate = {
        **place,
        "result_id": str(body["result_id"]),
        "written_at": str(body["written_at"]),
        "shift": body.get("shift"),
        "part_id": body.get("part_id"),
        "attempt": body.get("attempt"),
        "lot": body.get("lot"),
        "verdict": str(body["verdict"]),
        "reason": body.get("reason"),
        "score": _finite(body.get("score")),
        "defects": len(found) + int(body.get("defects_omitted") or 0),
        "recipe_id": str(body["recipe_id"]),
        "recipe_version": int(body["recipe_version"]),
        "model_id": str(body["model_id"]),
        "provenance": str(body["provenance"]),
        "triggers": body.get("triggers", 1),
        "is_audit_sample": bool(body.get("is_audit_sample", False)),
    }
    defects = [
        {**place, "number": number, **{name: _finite(one.get(name)) for name in _NUMBERS}}
        for number, one in enumerate(found)
    ]
    return Lines(plates=[plate], defects=defects)


def _of_review(seq: int, body: Mapping[str, Any]) -> Lines:
    if body.get("is_pending"):  # what stood before stands until a second person agrees
        return Lines()
    is_judged = not body.get("takes_back")  # else nobody's judgement stands
    review = {
        "seq": seq,
        "result_id": str(body["result_id"]),
        "verdict": str(body["verdict"]) if is_judged else None,
        "reviewer": str(body["reviewer"]) if is_judged else None,
    }
    place = {name: review[name] for name in ("seq", "result_id")}
    kinds = [
        {**place, "number": int(one["number"]), "kind": str(one["kind"])}
        for one in body.get("defects") or ()
        if one.get("kind")
    ]
    return Lines(reviews=[review], defect_kinds=kinds)


def _finite(value: Any) -> float | None:
    """A number; None for what is none (`NaN`, `Infinity`), which no SQL database keeps alike."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
