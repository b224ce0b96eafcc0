"""Which attempt of a part a result is: the so-manieth of its serial in this log.

Counted by the journal process, in the transaction that writes the row, from the rows before it.
Only there is it certain which results came before: a station that counted would have to be told
after each crash, and could not know of rows that are still on their way. A row that is sent again,
because its acknowledgement was lost, is found to be there before anything is counted.
"""

from __future__ import annotations

import sqlite3
from typing import Any

FILLED_IN = ("attempt", "previous_result_id")
_LAST = """
    SELECT result_id, body ->> '$.attempt' FROM row
    WHERE part_id = ? AND +kind = 'result' ORDER BY seq DESC LIMIT 1
"""
_COUNT = "SELECT count(*) FROM row WHERE part_id = ? AND +kind = 'result'"
_NUMBERED = """
    SELECT seq, attempt, part_id, lag(result_id) OVER part AS before,
        row_number() OVER part AS number
    FROM plate WHERE part_id IS NOT NULL WINDOW part AS (PARTITION BY part_id ORDER BY seq)
"""
_SAID = "SELECT body ->> '$.previous_result_id' FROM row WHERE row.seq = counted.seq"
# Bodies are read of parts that came back alone.
_MISCOUNTED = f"""
    SELECT seq, attempt, part_id, number, before, ({_SAID}) FROM ({_NUMBERED}) AS counted
    WHERE attempt <> number OR (attempt > 1 AND ({_SAID}) IS NOT before) ORDER BY seq
"""


def miscounted(log: sqlite3.Connection) -> list[tuple[int, str]]:
    """Results whose attempt, or the result that they follow, is another than the rows before say:
    row, and what is wrong. Results of programs that did not count say nothing. Of a log without
    table `plate`, none."""
    try:
        found = log.execute(_MISCOUNTED).fetchall()
    except sqlite3.OperationalError:
        return []
    return [(row[0], _said(*row)) for row in found]


def _said(seq: int, attempt: int, part: str, number: int, before: str | None, said: str) -> str:
    where = f"row {seq}: says attempt {attempt} of part {part}, after {said or 'none'}"
    return f"{where}; by the rows it is {number}, after {before or 'none'}"


def attempt_of(log: sqlite3.Connection, fields: dict[str, Any]) -> dict[str, Any]:
    """What is to be filled into a row's fields before it is written: for the result of a part its
    attempt, linked to the one before."""
    part = (fields.get("part_id"),)
    if fields["kind"] != "result" or part[0] is None:
        return {}
    last = log.execute(_LAST, part).fetchone()
    if last is None:
        return {"attempt": 1}
    # A row of an earlier program says none: then they are counted.
    before = last[1] or log.execute(_COUNT, part).fetchone()[0]
    return {"attempt": before + 1, "previous_result_id": last[0]}
