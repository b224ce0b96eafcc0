"""The log's schema, as numbered steps that only add.

`PRAGMA user_version` stays 1: a program that knows only the table `row` opens, reads and writes a
log that this one has written. What came later are steps in a table of their own; a step is one
transaction, so that whoever is killed within it finds it not begun.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

VERSION = 1
"""`user_version`; a log of a greater one needs a newer program."""

TRIGGERS = {"row_no_update", "row_no_delete", "row_no_replace"}

FIRST = (
    """
    CREATE TABLE row (
        seq INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        body TEXT NOT NULL,
        body_sha256 TEXT NOT NULL,
        chain_sha256 TEXT NOT NULL,
        result_id TEXT GENERATED ALWAYS AS (body ->> '$.result_id') VIRTUAL,
        sequence INTEGER GENERATED ALWAYS AS (body ->> '$.sequence') VIRTUAL,
        verdict TEXT GENERATED ALWAYS AS (body ->> '$.verdict') VIRTUAL,
        reason TEXT GENERATED ALWAYS AS (body ->> '$.reason') VIRTUAL,
        part_id TEXT GENERATED ALWAYS AS (body ->> '$.part_id') VIRTUAL,
        plate_ordinal INTEGER GENERATED ALWAYS AS (
            coalesce(body ->> '$.plate_ordinal', body ->> '$.to_ordinal')) VIRTUAL,
        written_at TEXT GENERATED ALWAYS AS (body ->> '$.written_at') VIRTUAL
    ) STRICT
    """,
    """CREATE UNIQUE INDEX row_once ON row (result_id, kind)
       WHERE kind IN ('opened', 'result', 'actuation')""",
    "CREATE INDEX row_result ON row (result_id, kind) WHERE result_id IS NOT NULL",
    "CREATE INDEX row_sequence ON row (sequence) WHERE sequence IS NOT NULL",
    "CREATE INDEX row_part ON row (part_id) WHERE part_id IS NOT NULL",
    "CREATE INDEX row_time ON row (kind, written_at)",
    "CREATE INDEX row_verdict ON row (verdict, written_at) WHERE verdict IS NOT NULL",
    "CREATE INDEX row_ordinal ON row (plate_ordinal) WHERE plate_ordinal IS NOT NULL",
    """CREATE TRIGGER row_no_update BEFORE UPDATE ON row
       BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END""",
    """CREATE TRIGGER row_no_delete BEFORE DELETE ON row
       BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END""",
    """CREATE TRIGGER row_no_replace BEFORE INSERT ON row
       WHEN EXISTS (SELECT 1 FROM row WHERE seq = NEW.seq)
         OR NEW.seq <> coalesce((SELECT max(seq) FROM row), 0) + 1
         OR (NEW.kind IN ('opened', 'result', 'actuation') AND EXISTS (
             SELECT 1 FROM row
             WHERE result_id = json_extract(NEW.body, '$.result_id') AND +kind = NEW.kind))
       BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END""",
)
"""What a log of the first release begins with."""

_DROPPED = ("row_once", "row_verdict")
BEGIN = (
    *(sql for sql in FIRST if not any(f" {name} " in sql for name in _DROPPED)),
    "CREATE INDEX row_judged ON row (verdict) WHERE verdict IS NOT NULL",
)
"""What a log begins with now: the same table, and the indexes that any program's writer needs. The
trigger sees that a plate has no row twice; by verdict and time the derived tables are asked."""

PAGE_BYTES = 16384
"""Of a new log: rows of plates leave less of such a page unused."""

STEP_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_step (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL, made_at TEXT NOT NULL
    ) STRICT
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One addition; its number is its place. Its text never changes once a release had it."""

    name: str
    statements: tuple[str, ...]


STEPS = (
    Step(
        "derived tables",
        (
            """
            CREATE TABLE plate (
                seq INTEGER PRIMARY KEY,
                station_id TEXT NOT NULL,
                result_id TEXT NOT NULL,
                written_at TEXT NOT NULL,
                shift TEXT,
                part_id TEXT,
                attempt INTEGER,
                lot TEXT,
                verdict TEXT NOT NULL,
                reason TEXT,
                score REAL,
                defects INTEGER NOT NULL,
                recipe_id TEXT NOT NULL,
                recipe_version INTEGER NOT NULL,
                model_id TEXT NOT NULL,
                provenance TEXT NOT NULL,
                triggers INTEGER,
                is_audit_sample INTEGER NOT NULL,
                reviewed_verdict TEXT,
                reviewer TEXT,
                review_seq INTEGER
            )
            """,
            "CREATE INDEX plate_result ON plate (result_id)",
            "CREATE INDEX plate_part ON plate (part_id) WHERE part_id IS NOT NULL",
            "CREATE INDEX plate_time ON plate (written_at)",
            """CREATE INDEX plate_failing ON plate (verdict, written_at)
               WHERE verdict <> 'PASS'""",
            "CREATE INDEX plate_lot ON plate (lot, written_at) WHERE lot IS NOT NULL",
            "CREATE INDEX plate_attempt ON plate (attempt, written_at) WHERE attempt > 1",
            """CREATE INDEX plate_reviewer ON plate (reviewer, written_at)
               WHERE reviewer IS NOT NULL""",
            "CREATE INDEX plate_audit ON plate (written_at) WHERE is_audit_sample = 1",
            """
            CREATE TABLE defect (
                seq INTEGER NOT NULL,
                number INTEGER NOT NULL,
                station_id TEXT NOT NULL,
                kind TEXT,
                x_mm REAL,
                y_mm REAL,
                w_mm REAL,
                h_mm REAL,
                score REAL,
                PRIMARY KEY (seq, number)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE hourly (
                hour TEXT NOT NULL,
                station_id TEXT NOT NULL,
                recipe_id TEXT NOT NULL,
                recipe_version INTEGER NOT NULL,
                model_id TEXT NOT NULL,
                shift TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                provenance TEXT NOT NULL,
                verdict TEXT NOT NULL,
                reason TEXT NOT NULL,
                plates INTEGER NOT NULL,
                defects INTEGER NOT NULL,
                PRIMARY KEY (station_id, hour, recipe_id, recipe_version, model_id, shift, attempt,
                             provenance, verdict, reason)
            ) WITHOUT ROWID
            """,
            "CREATE TABLE derived (seq INTEGER NOT NULL) STRICT",
            "INSERT INTO derived (seq) VALUES (0)",
        ),
    ),
    Step(
        "views for other tools",
        (
            """
            CREATE VIEW results AS SELECT
                plate.seq AS seq,
                plate.result_id AS ResultId,
                0 AS IsPartial,
                plate.provenance <> 'production' AS IsSimulated,
                CASE plate.reason WHEN 'interrupted' THEN 3 WHEN 'model' THEN 4 ELSE 1 END
                    AS ResultState,
                plate.written_at AS CreationTime,
                plate.part_id AS PartId,
                plate.attempt AS attempt,
                plate.lot AS JobId,
                plate.shift AS shift,
                plate.recipe_id AS InternalRecipeId,
                plate.recipe_version AS recipe_version,
                plate.model_id AS model_id,
                plate.provenance AS provenance,
                CASE plate.verdict WHEN 'PASS' THEN 'OK' WHEN 'FAIL' THEN 'NotOK'
                    ELSE 'NotDecidable' END AS verdict,
                plate.reason AS reason,
                plate.score AS score,
                plate.defects AS defects,
                plate.triggers AS triggers,
                plate.is_audit_sample AS is_audit_sample,
                CASE plate.reviewed_verdict WHEN 'PASS' THEN 'OK' WHEN 'FAIL' THEN 'NotOK'
                    WHEN 'UNDECIDED' THEN 'NotDecidable' END AS reviewed_verdict,
                plate.reviewer AS reviewer,
                plate.station_id AS station_id
            FROM plate
            """,
            """
            CREATE VIEW defects AS SELECT
                defect.seq AS seq,
                plate.result_id AS ResultId,
                plate.written_at AS CreationTime,
                plate.part_id AS PartId,
                plate.recipe_id AS InternalRecipeId,
                defect.number AS number,
                defect.kind AS kind,
                defect.x_mm AS x_mm,
                defect.y_mm AS y_mm,
                defect.w_mm AS w_mm,
                defect.h_mm AS h_mm,
                defect.score AS score,
                defect.station_id AS station_id
            FROM defect JOIN plate ON plate.seq = defect.seq
            """,
            """
            CREATE VIEW reviews AS SELECT
                row.seq AS seq,
                row.result_id AS ResultId,
                row.written_at AS CreationTime,
                CASE row.verdict WHEN 'PASS' THEN 'OK' WHEN 'FAIL' THEN 'NotOK'
                    ELSE 'NotDecidable' END AS verdict,
                row.body ->> '$.reviewer' AS reviewer,
                row.reason AS reason,
                row.body ->> '$.note' AS note,
                row.body ->> '$.disposition' AS disposition,
                coalesce(row.body ->> '$.is_pending', 0) AS is_pending,
                row.body ->> '$.station_id' AS station_id
            FROM row WHERE row.kind = 'review'
            """,
            """
            CREATE VIEW actuations AS SELECT
                row.seq AS seq,
                row.result_id AS ResultId,
                row.written_at AS CreationTime,
                row.body ->> '$.command' AS command,
                row.body ->> '$.is_confirmed' AS is_confirmed,
                coalesce(row.body ->> '$.detail', '') AS detail,
                coalesce(row.body ->> '$.station_id',
                         context.body ->> '$.constants.station_id') AS station_id
            FROM row LEFT JOIN row AS context ON context.seq = row.body ->> '$.context'
            WHERE row.kind = 'actuation'
            """,
            """
            CREATE VIEW hours AS SELECT
                hour || ':00:00Z' AS StartTime,
                recipe_id AS InternalRecipeId,
                recipe_version,
                model_id,
                nullif(shift, '') AS shift,
                nullif(attempt, 0) AS attempt,
                provenance,
                CASE verdict WHEN 'PASS' THEN 'OK' WHEN 'FAIL' THEN 'NotOK'
                    ELSE 'NotDecidable' END AS verdict,
                nullif(reason, '') AS reason,
                plates,
                defects,
                station_id
            FROM hourly
            """,
        ),
    ),
    Step(
        "plates to see to",
        (
            "CREATE TABLE unsettled (seq INTEGER PRIMARY KEY, state TEXT NOT NULL)",
            "CREATE TABLE unsettled_upto (seq INTEGER NOT NULL) STRICT",
            "INSERT INTO unsettled_upto (seq) VALUES (0)",
            """
            CREATE VIEW unsettled_plates AS SELECT
                plate.seq AS seq,
                unsettled.state AS state,
                plate.result_id AS ResultId,
                plate.written_at AS CreationTime,
                plate.part_id AS PartId,
                plate.attempt AS attempt,
                CASE coalesce(plate.reviewed_verdict, plate.verdict) WHEN 'PASS' THEN 'OK'
                    WHEN 'FAIL' THEN 'NotOK' ELSE 'NotDecidable' END AS verdict,
                plate.reason AS reason,
                plate.station_id AS station_id
            FROM unsettled JOIN plate ON plate.seq = unsettled.seq
            """,
        ),
    ),
)
"""Expand-only: a step is added at the end, none is changed or taken away."""


# --- verifying ----------------------------------------------------------------------------------

_TEXTS = r"""
    SELECT name, type, sql FROM sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
"""
_Texts = dict[str, tuple[str, str]]


def differences(log: sqlite3.Connection) -> list[str]:
    """What of a log's schema is gone, or says something else than the steps that made it: a table's
    generated columns, a trigger, an index, a view. What another tool added is its own affair, but
    for triggers: they can change what is written."""
    found = _texts(log)
    made = _steps_said(log)
    numbers = range(1, _highest_step(made, found) + 1)
    expected = _made(*_begin_of(found), *_statements(numbers))
    problems = [f"table schema_step lacks step {n}" for n in numbers if n not in made]
    for name, (kind, sql) in expected.items():
        if name not in found:
            problems.append(f"{kind} {name} is gone")
        elif found[name] != (kind, sql):
            problems.append(f"{kind} {name} is not the one that was made")
    strange = [
        f"trigger {name} is none of the log's"
        for name, (kind, _) in found.items()
        if kind == "trigger" and name not in expected
    ]
    return sorted(problems) + sorted(strange)


def _begin_of(found: _Texts) -> tuple[str, ...]:
    """A log of the first release has an index that later ones do not begin with."""
    return BEGIN if "row_judged" in found or "row_verdict" not in found else FIRST


def _steps_said(log: sqlite3.Connection) -> set[int]:
    """What a log says it has had; nothing where it has no such list."""
    try:
        return {row[0] for row in log.execute("SELECT number FROM schema_step")}
    except sqlite3.Error:
        return set()


def _highest_step(made: set[int], found: _Texts) -> int:
    """Up to which step all must be there: the last one in the list or of which anything is there.
    All where anything is there and the list says nothing: it is never empty."""
    parts = [n for n in range(1, len(STEPS) + 1) if _names_of(n) & found.keys()]
    if not made and (parts or "schema_step" in found):
        return len(STEPS)
    return max((n for n in [*made, *parts] if n <= len(STEPS)), default=0)


def _names_of(number: int) -> set[str]:
    """Of what a step makes."""
    before, after = (_made(*BEGIN, *_statements(range(1, end))) for end in (number, number + 1))
    return after.keys() - before.keys() - {"schema_step"}


def _statements(numbers: Iterable[int]) -> Iterable[str]:
    for number in numbers:
        yield from (STEP_TABLE, *STEPS[number - 1].statements)


def _texts(log: sqlite3.Connection) -> _Texts:
    """By name. Releases have indented them otherwise."""
    return {name: (kind, " ".join(sql.split())) for name, kind, sql in log.execute(_TEXTS)}


@cache
def _made(*statements: str) -> _Texts:
    """As SQLite keeps them."""
    with sqlite3.connect(":memory:") as log:
        for statement in statements:
            log.execute(statement)
        return _texts(log)
