"""Whose judgement may not be led: the one place where pages ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from station.log_reader import Reader
from station.record import Verdict
from station.reviews import effective_verdict, person
from station.roles import Person

Json = dict[str, Any]
_IDENTITY = (
    *("seq", "kind", "schema", "station_id", "result_id", "written_at", "sequence"),
    *("part_id", "attempt", "lot", "shift", "recipe_id", "recipe_version", "provenance"),
    "is_audit_sample",
)
"""What says which plate it is, and nothing of how it was judged."""


def is_blind(reader: Reader, result_id: str, who: Person) -> bool:
    """Whether verdict, score, places and judgements of a plate are kept from a person: it passed
    and was drawn for the audit, nobody's judgement of it holds, and this person has none."""
    return is_blind_of(reader.of_result(result_id), who)


def is_blind_of(rows: Sequence[Json], who: Person) -> bool:
    """The same of all rows about a plate. One that did not pass is hidden from nobody: the light
    has said it, and somebody has to take it off the belt."""
    result = next((row for row in rows if row["kind"] == "result"), None)
    if result is None or not is_drawn(result):
        return False
    reviewers = {person(row["reviewer"]) for row in rows if row["kind"] == "review"}
    return effective_verdict(rows).review is None and person(who.name) not in reviewers


def for_person(reader: Reader, results: Sequence[Json], who: Person) -> list[Json]:
    """Whole results with their `review` as they leave for a person: of a plate that is kept from
    them only which one it is, with `is_blind`."""
    drawn = [row["result_id"] for row in results if is_drawn(row)]
    reviews = reader.reviews_of(drawn) if drawn else {}
    found = []
    for row in results:
        is_kept = is_drawn(row) and is_blind_of(
            [{**row, "kind": "result"}, *reviews.get(row["result_id"], ())], who
        )
        found.append(_identity(row) if is_kept else row)
    return found


def _identity(row: Json) -> Json:
    said = {name: row[name] for name in _IDENTITY if name in row}
    return said | {"review": None, "is_blind": True}


def is_drawn(result: Json) -> bool:
    """Whether a result is a sample of the audit that passed: what is judged blind."""
    return bool(result.get("is_audit_sample")) and result["verdict"] == Verdict.PASS
