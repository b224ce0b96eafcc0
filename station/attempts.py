"""Which attempt of a part a result is: the so-manieth of its serial in this log.

Counted by the journal process, in the transaction that writes the row, from the rows before it.
Only there is it certain which results came before: a station that counted would have to be told
after each crash, and could not know of rows that are still on their way. A row that is sent again,
because its acknowledgement was lost, is found to be there before anything is counted.
"""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Connection, text

from station.record import Body, ResultBody

FILLED_IN = ("attempt", "previous_result_id")
_LAST = text("""
    SELECT result_id, body ->> '$.attempt' AS attempt FROM row
    WHERE part_id = :part_id AND +kind = 'result' ORDER BY seq DESC LIMIT 1
""")
_COUNT = text("SELECT count(*) FROM row WHERE part_id = :part_id AND +kind = 'result'")


class _Row(Protocol):
    result_id: str
    attempt: int | None


def numbered(connection: Connection, body: Body) -> Body:
    """A result with its attempt, linked to the one before; another row as it is."""
    if not isinstance(body, ResultBody) or body.part_id is None:
        return body
    part: dict[str, Any] = {"part_id": body.part_id}
    last: _Row | None = connection.execute(_LAST, part).first()
    if last is None:
        return body.model_copy(update={"attempt": 1, "previous_result_id": None})
    # A first attempt does not say so, and an earlier program counted none: then they are counted.
    before = last.attempt or connection.execute(_COUNT, part).scalar_one()
    update = {"attempt": before + 1, "previous_result_id": last.result_id}
    return body.model_copy(update=update)
