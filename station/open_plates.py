"""What is asked of the plates that somebody must still see to: how many, which, since when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select, text

from station.log_reader import Reader
from station.tables import PLATE
from station.unsettled import UNSETTLED, State


def count_select(state: State = State.OPEN) -> Select[Any]:
    """How many there are."""
    return select(func.count()).select_from(UNSETTLED).where(UNSETTLED.c.state == str(state))


def page_select(limit: int, state: State = State.OPEN, after: int = 0) -> Select[Any]:
    """Lines of `plate`, the oldest first, those after a row of the log."""
    return (
        select(PLATE)
        .join(UNSETTLED, UNSETTLED.c.seq == PLATE.c.seq)
        .where(UNSETTLED.c.state == str(state), UNSETTLED.c.seq > after)
        .order_by(UNSETTLED.c.seq)
        .limit(limit)
    )


def count(reader: Reader, state: State = State.OPEN) -> int:
    """How many plates there are in a state. Raises `StoreError` of a log that does not say."""
    return int(reader.ask(count_select(state))[0][0])


def count_between(reader: Reader, since: str, until: str) -> int:
    """How many open plates have their result in a time, its end excluded. Raises as `count`."""
    of_time = (PLATE.c.written_at >= since, PLATE.c.written_at < until)
    chosen = count_select().join(PLATE, UNSETTLED.c.seq == PLATE.c.seq).where(*of_time)
    return int(reader.ask(chosen)[0][0])


def page(reader: Reader, limit: int, state: State = State.OPEN, after: int = 0) -> Sequence[Any]:
    """See `page_select`. Raises as `count`."""
    return reader.ask(page_select(limit, state, after))


class Attempts(NamedTuple):
    """The times that a part came by, beside one of them: lines of `plate`."""

    previous: Any
    """The one before it; None of the first."""
    newest: Any
    """None where it is the newest itself."""
    in_all: int
    """This one included."""


def attempts(reader: Reader, part_id: str, seq: int) -> Attempts:
    """Beside the result of this row. However often a serial came, few are read."""
    of_part = select(PLATE).where(PLATE.c.part_id == part_id).order_by(PLATE.c.seq.desc()).limit(1)
    previous = reader.ask(of_part.where(PLATE.c.seq < seq))
    newest = reader.ask(of_part.where(PLATE.c.seq > seq))
    counted = select(func.count()).select_from(PLATE).where(PLATE.c.part_id == part_id)
    count = int(reader.ask(counted)[0][0])
    return Attempts(previous[0] if previous else None, newest[0] if newest else None, count)


def state_of(reader: Reader, seq: int) -> State | None:
    """Of the plate whose result is this row; None where nobody has to see to it."""
    found = reader.ask(select(UNSETTLED.c.state).where(UNSETTLED.c.seq == seq))
    return State(found[0].state) if found else None


def newest_sequence(reader: Reader) -> int | None:
    """Of the plate that came last; None without one."""
    newest = reader.ask(select(PLATE.c.seq).order_by(PLATE.c.seq.desc()).limit(1))
    return int(reader.bodies_at([newest[0].seq])[newest[0].seq]["sequence"]) if newest else None


_WAITING = """
    SELECT DISTINCT plate.seq FROM row AS said
    JOIN plate ON plate.result_id = said.result_id AND plate.seq < said.seq
    WHERE said.kind = 'review' AND said.written_at >= :since AND said.body ->> '$.is_pending'
    AND plate.seq > :after AND NOT EXISTS (
        SELECT 1 FROM row WHERE result_id = said.result_id AND +kind = 'review' AND seq > said.seq)
    ORDER BY plate.seq LIMIT :limit
"""


def pending(reader: Reader, since: str, limit: int, after: int = 0) -> Sequence[Any]:
    """Lines of `plate` whose last review, written since then, waits for a second person; the oldest
    first, those after a row of the log. Raises as `count`."""
    values = {"since": since, "limit": limit, "after": after}
    found = [row.seq for row in reader.ask(text(_WAITING).bindparams(**values))]
    return reader.ask(select(PLATE).where(PLATE.c.seq.in_(found)).order_by(PLATE.c.seq))
