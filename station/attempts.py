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
