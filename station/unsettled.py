"""Plates that somebody must still see to: those of which nobody said what becomes of them, and
those out for rework. A small table beside the derived ones, of a station alone.

What the table holds follows from the derived table `plate` and the review that holds, by one rule,
`RULE`: used for a row that comes, for the whole table, and by whoever checks the log.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table

from station.derived import Lines
from station.record import Reason, Verdict


class State(StrEnum):
    """Why a plate is in the table."""

    OPEN = "open"
    """It did not pass, and was neither removed, reworked, scrapped nor overruled."""
    REWORK = "rework"
    """It was given to rework and has not come back by its serial."""


UNSETTLED = Table(
    "unsettled",
    MetaData(),
    Column("seq", Integer, primary_key=True),
    Column("state", String, nullable=False),
)
"""`seq` is that of the plate's result, as in `plate`."""

# The last review that holds, holds whole: where it does not say what becomes of the plate, that is
# not known any more, whatever an earlier one said. A gap has no plate to be seen to.
RULE = f"""
    SELECT seq, state FROM (
        SELECT plate.seq AS seq, CASE
            WHEN plate.reason IS '{Reason.GAP}' THEN NULL
            WHEN row.body ->> '$.disposition' IN ('removed', 'scrap') THEN NULL
            WHEN row.body ->> '$.disposition' = 'rework' THEN CASE WHEN EXISTS (
                SELECT 1 FROM plate AS later
                WHERE later.part_id = plate.part_id AND later.seq > plate.review_seq
            ) THEN NULL ELSE '{State.REWORK}' END
            WHEN coalesce(plate.reviewed_verdict, plate.verdict) = '{Verdict.PASS}' THEN NULL
            ELSE '{State.OPEN}' END AS state
        FROM plate LEFT JOIN row ON row.seq = plate.review_seq
        WHERE @which@
    ) WHERE state IS NOT NULL
"""
_INTO = "INSERT INTO unsettled (seq, state)"
_CAN_BE = ("plate.verdict <> 'PASS'", "plate.reviewer IS NOT NULL")
"""Each has an index."""
ALL = " UNION ".join(RULE.replace("@which@", which) for which in _CAN_BE)
"""What the table must hold."""
_OF_RESULT = _INTO + RULE.replace("@which@", "plate.seq = :seq")
_CAME_BACK = f"""
    DELETE FROM unsettled WHERE state = '{State.REWORK}' AND seq IN (
        SELECT seq FROM plate WHERE part_id = :part_id AND seq < :seq)
"""
_JUDGED = "plate.result_id = :result_id AND plate.review_seq = :seq"
_AS_IT_WAS = f"DELETE FROM unsettled WHERE seq IN (SELECT seq FROM plate WHERE {_JUDGED})"
_OF_REVIEW = _INTO + RULE.replace("@which@", _JUDGED)

MARK = (
    "DELETE FROM unsettled_upto",
    "INSERT INTO unsettled_upto (seq) SELECT coalesce(max(seq), 0) FROM derived",
)
"""The table knows all that the derived tables do."""
EMPTY = ("DELETE FROM unsettled", *MARK)
"""After the derived tables were emptied."""
REBUILD = ("DELETE FROM unsettled", _INTO + ALL, *MARK)
"""Makes the table anew of what the derived tables know."""
COUNTS = f"SELECT total(state = '{State.OPEN}'), total(state = '{State.REWORK}') FROM unsettled"
_BEHIND = """
    SELECT EXISTS (SELECT 1 FROM plate NOT INDEXED
                   WHERE seq > :upto
                   AND (verdict <> 'PASS' OR part_id IS NOT NULL AND attempt IS NOT 1))
        OR EXISTS (SELECT 1 FROM row
                   WHERE kind = 'review' AND +seq > :upto AND +seq <= (SELECT seq FROM derived)
                   AND NOT coalesce(body ->> '$.is_pending', 0))
"""


def add(log: sqlite3.Connection, lines: Lines, seq: int) -> Counter[State]:
    """What rows up to one change, within their transaction and after the derived tables know them;
    how many plates more there are in each state, or fewer."""
    failed = [one for one in lines.plates if one["verdict"] != Verdict.PASS]
    came_back = [one for one in lines.plates if one["part_id"] and one["attempt"] != 1]
    changes = (
        (_OF_RESULT, failed, 1),
        (_CAME_BACK, came_back, -1),
        (_AS_IT_WAS, lines.reviews, -1),
        (_OF_REVIEW, lines.reviews, 1),
    )
    more: Counter[State] = Counter()
    for statement, values, sign in changes:
        for one in values:
            for (state,) in log.execute(f"{statement} RETURNING state", one):
                more[State(state)] += sign
    if failed or came_back or lines.reviews:
        log.execute("UPDATE unsettled_upto SET seq = ?", (seq,))
    return more


def is_behind(log: sqlite3.Connection) -> bool:
    """Whether a program that does not know the table has written plates or reviews since: then it
    must be made anew."""
    marks = log.execute("SELECT seq FROM unsettled_upto").fetchall()
    if len(marks) != 1:
        return True
    return bool(log.execute(_BEHIND, {"upto": marks[0][0]}).fetchone()[0])


def counts(log: sqlite3.Connection) -> dict[State, int]:
    """How many plates are open, and how many out for rework."""
    found: Any = log.execute(COUNTS).fetchone()
    return {State.OPEN: int(found[0]), State.REWORK: int(found[1])}
