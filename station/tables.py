"""Tables that answer QA's questions, made of the log's rows: a line a plate, its defects, and
sums by the hour. Filled in the transaction of the row; whoever doubts them makes them again.

The same tables are in a station's SQLite file and in a plant's PostgreSQL database, so that one
query asks both. Times are UTC as RFC 3339 text of one length, compared as text; `station_id` and
`seq` name the row of the log that a line was made of.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, text

METADATA = MetaData()


def _index_of(name: str, *columns: str, where: str, where_postgresql: str | None = None) -> Index:
    """An index of the few plates that a question is about: the others take no room in it."""
    return Index(
        name,
        *columns,
        sqlite_where=text(where),
        postgresql_where=text(where_postgresql or where),
    )


PLATE = Table(
    "plate",
    METADATA,
    Column("station_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("result_id", String, nullable=False),
    Column("written_at", String, nullable=False),
    Column("shift", String),
    Column("part_id", String),
    Column("attempt", Integer),
    Column("lot", String),
    Column("verdict", String, nullable=False),
    Column("reason", String),
    Column("score", Float),
    Column("defects", Integer, nullable=False),
    Column("recipe_id", String, nullable=False),
    Column("recipe_version", Integer, nullable=False),
    Column("model_id", String, nullable=False),
    Column("provenance", String, nullable=False),
    Column("triggers", Integer),
    Column("is_audit_sample", Boolean, nullable=False),
    Column("reviewed_verdict", String),
    Column("reviewer", String),
    Column("review_seq", Integer),
    Index("plate_result", "result_id"),
    _index_of("plate_part", "part_id", where="part_id IS NOT NULL"),
    Index("plate_time", "written_at", "seq"),
    _index_of("plate_failing", "verdict", "written_at", where="verdict <> 'PASS'"),
    _index_of("plate_lot", "lot", "written_at", where="lot IS NOT NULL"),
    _index_of("plate_attempt", "attempt", "written_at", where="attempt > 1"),
    _index_of("plate_reviewer", "reviewer", "written_at", where="reviewer IS NOT NULL"),
    _index_of(
        "plate_audit",
        "written_at",
        where="is_audit_sample = 1",
        where_postgresql="is_audit_sample",
    ),
)
"""One line for each result row; the last three columns are those of its last review."""

DEFECT = Table(
    "defect",
    METADATA,
    Column("station_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String),
    Column("x_mm", Float),
    Column("y_mm", Float),
    Column("w_mm", Float),
    Column("h_mm", Float),
    Column("score", Float),
)
"""One line for each defect of a result, numbered from 0 as in its row. `kind` is what a reviewer
called it; None until then. A score that is no number (NaN) is None, here and in `plate`."""

HOURLY = Table(
    "hourly",
    METADATA,
    Column("station_id", String, primary_key=True),
    Column("hour", String, primary_key=True),
    Column("recipe_id", String, primary_key=True),
    Column("recipe_version", Integer, primary_key=True, autoincrement=False),
    Column("model_id", String, primary_key=True),
    Column("shift", String, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("provenance", String, primary_key=True),
    Column("verdict", String, primary_key=True),
    Column("reason", String, primary_key=True),
    Column("plates", Integer, nullable=False),
    Column("defects", Integer, nullable=False),
)
"""Sums of `plate`; `hour` is `written_at` cut after the hour (`2026-11-26T09`), `reason` and
`shift` are empty and `attempt` is 0 where there is none."""
