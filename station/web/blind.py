"""Whose judgement may not be led: the one place where the plate's page asks."""

from __future__ import annotations

from station.log_reader import Reader
from station.web.roles import Person


def is_blind(reader: Reader, result_id: str, person: Person) -> bool:
    """Whether verdict, score, places and judgements of a plate are kept from a person: it was drawn
    for the audit, and nobody has judged it yet."""
    rows = reader.of_result(result_id)
    is_drawn = any(row["kind"] == "result" and row.get("is_audit_sample") for row in rows)
    return is_drawn and not any(row["kind"] == "review" for row in rows)
