"""Whose judgement may not be led: the one place where pages ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from station.log_reader import Reader
from station.record import Verdict
from station.reviews import effective_verdict, person
from station.web.roles import Person

Json = dict[str, Any]


def is_blind(reader: Reader, result_id: str, who: Person) -> bool:
    """Whether verdict, score, places and judgements of a plate are kept from a person: it passed
    and was drawn for the audit, nobody's judgement of it holds, and this person has none."""
    return is_blind_of(reader.of_result(result_id), who)


def is_blind_of(rows: Sequence[Json], who: Person) -> bool:
    """The same of all rows about a plate. One that did not pass is hidden from nobody: the light
    has said it, and somebody has to take it off the belt."""
    result = next((row for row in rows if row["kind"] == "result"), None)
    if result is None or not result.get("is_audit_sample") or result["verdict"] != Verdict.PASS:
        return False
    reviewers = {person(row["reviewer"]) for row in rows if row["kind"] == "review"}
    return effective_verdict(rows).review is None and person(who.name) not in reviewers
