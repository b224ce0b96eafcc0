"""Whether a plant's database still has what its stations wrote: each chain recomputed row by row,
and QA's tables made again from the rows and compared."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Table, create_engine, select, text
from sqlalchemy.pool import StaticPool

from station.derived import add
from station.plant import Anchor, StoredRow, contexts_of, pages, plant_lines
from station.plant_schema import DERIVED, TRIGGERS, lacking_steps
from station.qms import EMPTY_CHAIN, Json, first_changed
from station.tables import METADATA

_PAGE_ROWS = 5000
_MOST_FINDINGS = 20
"""Of one station: who changed a row broke all that follow."""


@dataclass(slots=True)
class PlantVerification:
    """What was found of one station's chain."""

    station_id: str
    rows: int = 0
    head: str = EMPTY_CHAIN
    findings: list[str] = field(default_factory=list)


def missing_guards(connection: Connection) -> list[str]:
    """Triggers that keep rows from being changed and are not in force; steps of `create` that the
    database lacks."""
    query = text(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'row'::regclass AND tgenabled IN ('O', 'A')"
    )
    there = set(connection.execute(query).scalars())
    return [
        *(f"step {step} is not made: `vqi plant create`" for step in lacking_steps(connection)),
        *(f"trigger {name} of table row is not in force" for name in sorted(TRIGGERS - there)),
    ]


def verify_station(connection: Connection, station_id: str) -> PlantVerification:
    """Recompute a station's chain and tables. As of one moment where the caller's transaction is
    REPEATABLE READ."""
    found = PlantVerification(station_id)
    with _empty_tables() as made:
        contexts = contexts_of(connection, station_id)

        def many(statement: str, values: Sequence[Json]) -> None:
            made.execute(text(statement), list(values))

        for page in pages(connection, station_id):
            _check_chain(page, found)
            add(many, plant_lines(station_id, page, contexts))
        for table in DERIVED:
            found.findings += _differences(table, _read(made, table, station_id),
                                           _read(connection, table, station_id))  # fmt: skip
    return found


def anchors(connection: Connection, station_id: str, most: int) -> list[Anchor]:
    """Rows of a station that the plant keeps, evenly over its chain, the last one among them: whose
    log lacks one of them, or has another in its place, is not the log that was sent."""
    query = text("""
        WITH last AS (SELECT max(seq) AS seq FROM row WHERE station_id = :station)
        SELECT row.seq, chain_sha256, arrived_at FROM row, last
        WHERE station_id = :station AND row.seq IN (
            SELECT last.seq - n * greatest(1, last.seq / :most)
            FROM generate_series(0, :most - 1) AS n)
        ORDER BY row.seq
    """)
    found = connection.execute(query, {"station": station_id, "most": most})
    return [Anchor(station_id, *row) for row in found]


def _check_chain(page: Sequence[StoredRow], found: PlantVerification) -> None:
    """Each row's number and hashes; past a break it goes on from what is stored."""
    for row in page:
        if row.seq != found.rows + 1:
            _say(found, f"row {found.rows + 1} is missing; row {row.seq} comes next")
        if (changed := first_changed([row], found.head)) is not None:
            _say(found, f"row {changed} is not the one that was sent")
        found.rows, found.head = row.seq, row.chain_sha256


def _say(found: PlantVerification, finding: str) -> None:
    if len(found.findings) < _MOST_FINDINGS:
        found.findings.append(finding)


@contextlib.contextmanager
def _empty_tables() -> Iterator[Connection]:
    """QA's tables in a temporary file, filled with the same function."""
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(""), poolclass=StaticPool)
    with engine.connect() as connection:
        METADATA.create_all(connection)
        yield connection
    engine.dispose()


def _read(connection: Connection, table: Table, station_id: str) -> Iterator[Row[Any]]:
    keys = list(table.primary_key)
    query = select(*keys, *(column for column in table.columns if column not in keys))
    query = query.where(table.c.station_id == station_id).order_by(*keys)
    return iter(connection.execution_options(yield_per=_PAGE_ROWS).execute(query))


def _differences(table: Table, made: Iterator[Row[Any]], kept: Iterator[Row[Any]]) -> Iterator[str]:
    """What table and rows do not both say, both in the order of the key."""
    length = len(table.primary_key)

    def key(line: Row[Any] | None) -> tuple[Any, ...] | None:
        return None if line is None else tuple(line[:length])

    one, other = next(made, None), next(kept, None)
    for _ in range(_MOST_FINDINGS):
        while one is not None and other is not None and tuple(one) == tuple(other):
            one, other = next(made, None), next(kept, None)
        if one is None and other is None:
            return
        here, there = key(one), key(other)
        if there is None or (here is not None and here < there):
            yield f"table {table.name} lacks {here}"
            one = next(made, None)
        elif here is None or there < here:
            yield f"table {table.name} has {there}, which no row says"
            other = next(kept, None)
        else:
            yield f"table {table.name} says otherwise than the rows of {here}"
            one, other = next(made, None), next(kept, None)
