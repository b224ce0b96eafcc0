"""Questions to the QMS log, from connections that cannot write."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    Executable,
    TextClause,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from station.packing import UNREADABLE, Contexts
from station.qms import (
    COMPARISON_CHANGES,
    DATABASE,
    DRIFT_CHANGES,
    HOLDS,
    IMAGES,
    MODEL_CHANGES,
    RECIPE_CHANGES,
    SHADOW_CHANGES,
    SHADOWED,
    SIGNED_FILES,
    SNAPSHOT,
    Json,
    StoreError,
)
from station.reviews import effective_verdict
from station.tables import PLATE
from station.unsettled import UNSETTLED

_PAGE_ROWS = 500
"""Read at once: while a reader is within a page, the write-ahead file cannot be begun anew (I8)."""
ASK_LIMIT_S = 10.0
"""A question that takes longer is given up: a reader keeps the write-ahead file from being begun
anew (I8)."""
_LOOK_EVERY_STEPS = 10_000
"""Of SQLite's virtual machine: about a millisecond."""
_CODES_NOT_PERMITTED = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_FIRST_SEQ, _LAST_SEQ = -(2**63), 2**63 - 1
"""What SQLite has: a row that somebody put before the first one is read, too."""

_LAST_LIFE = text("""
    SELECT body ->> '$.what' FROM row
    WHERE kind = 'change' AND body ->> '$.what' IN ('start', 'stop') ORDER BY +seq DESC LIMIT 1
""")
"""By the index of kinds, not backwards through all plates."""
_ABOUT_PICTURES = text("""
    SELECT CASE kind WHEN 'result' THEN json_remove(body, '$.tile_grid', '$.tile_scores') ELSE body
    END FROM row WHERE result_id = :id AND +kind IN ('result', 'review', 'tombstone')
    AND seq < :before ORDER BY seq
""")
_BODY = text("SELECT body FROM row WHERE seq = :seq")
_IS_REMOVED = text("""
    SELECT 1 FROM row WHERE result_id = :id AND kind = 'tombstone' AND body ->> '$.path' = :path
    LIMIT 1
""")
_STORED = text("""
    SELECT seq, kind, body, body_sha256, chain_sha256 FROM row WHERE seq >= :first
    ORDER BY seq LIMIT :count
""")
_WITH_PICTURES = text("""
    SELECT result_id, body -> '$.images' FROM row WHERE seq > :after AND seq <= :last
    AND +kind = 'result' AND body ->> '$.images' <> '[]' ORDER BY seq
""")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which results; times are UTC text as in `written_at`, compared as text."""

    since: str | None = None
    until: str | None = None
    serial: str | None = None
    verdict: str | None = None

    def sql(self) -> tuple[str, Json]:
        parts = {
            "since": "written_at >= :since",
            "until": "written_at < :until",
            "serial": "part_id = :serial",
            "verdict": "verdict = :verdict",
        }
        given = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return "".join(f" AND {parts[name]}" for name in given), given


class NoTables(StoreError):
    """An older program wrote this log: it has no tables to ask."""


class Reader:
    """Reads the log and can do nothing else to it; also for a user who may only read.

    Reads the live file where it can. After a clean stop or a reboot an unprivileged user cannot;
    then it reads the snapshot. `source` is `live` or `snapshot`.
    """

    def __init__(self, directory: Path) -> None:
        """Raises `StoreError` if there is no log or it cannot be read."""
        self.directory = directory
        self._contexts = Contexts(self.body_of)
        self.live_problem = ""
        """What is wrong with the live file, where the snapshot was read; empty where this user
        merely may not read it."""
        problems = []
        for source, name in (("live", DATABASE), ("snapshot", SNAPSHOT)):
            path = directory / name
            try:
                self._engine, self._connection = _open_reading(path)
            except SQLAlchemyError as error:
                problems.append(f"{path}: {error.__cause__ or error}")
                if source == "live":
                    self.live_problem = _damage(path, error)
                continue
            self.source, self.path = source, path
            return
        raise StoreError(f"no log can be read here: {'; '.join(problems)}")

    @property
    def lag_note(self) -> str:
        """For people: that the derived tables do not know all rows yet; empty where they do."""
        query = text("SELECT (SELECT coalesce(max(seq), 0) FROM row) - seq FROM derived")
        lag = self.ask(query)[0][0]
        if lag <= 0:
            return ""
        return (
            f"{lag} rows are not in the tables yet, and in no answer; the journal process adds them"
        )

    @property
    def source_note(self) -> str:
        """For people: which file was read, and as of when."""
        if self.source == "live":
            return f"read the live file {self.path}"
        at = datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return f"read the published snapshot {self.path} of {at}; the live file cannot be read"

    @property
    def notes(self) -> list[str]:
        """For people: what an answer of now may lack, and why; nothing where it lacks nothing."""
        source = "" if self.source == "live" else self.source_note
        return [note for note in (self.lag_note, source) if note]

    def ask(self, statement: Executable, limit_s: float = ASK_LIMIT_S) -> Sequence[Any]:
        """All rows of one select over the derived tables. Raises `StoreError` if it takes longer
        than it may, if the file is damaged, or if this log does not have these tables:
        `NoTables`."""
        connection = self._connection.connection.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        until = time.monotonic() + limit_s
        connection.set_progress_handler(lambda: time.monotonic() > until, _LOOK_EVERY_STEPS)
        try:
            return self._connection.execute(statement).all()
        except DatabaseError as error:
            raise self._failure(error, limit_s) from error
        finally:
            connection.set_progress_handler(None, 0)

    def _failure(self, error: DatabaseError, limit_s: float) -> StoreError:
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_INTERRUPT:
            return StoreError(
                f"the question took longer than {limit_s:g} s; ask for less, as with --since"
            )
        # A damaged file is not searched for its tables: that would fail as well.
        if code == sqlite3.SQLITE_ERROR and not self._has_tables():
            return NoTables(
                f"{self.path} was written by an older program and has no tables to ask; let the "
                "journal process of this one open it once, or a copy of it"
            )
        return StoreError(f"{self.path}: {error.orig}")

    def _has_tables(self) -> bool:
        known = inspect(self._connection)
        return all(map(known.has_table, (PLATE.name, UNSETTLED.name)))

    def bodies_at(self, numbers: Sequence[int]) -> dict[int, Json]:
        """Bodies of rows by their numbers; for no more than a page."""
        query = text(
            "SELECT seq, body FROM row WHERE seq IN (SELECT value FROM json_each(:numbers))"
        )
        found = self._connection.execute(query, {"numbers": json.dumps(list(numbers))})
        return {row.seq: self.whole(row.body) for row in found}

    def results(
        self, wanted: Filter, newest_first: bool = False, limit: int | None = None
    ) -> Iterator[Json]:
        """Result bodies with their `seq`, in order; those that are there now. `review` is None, or
        what its reviews come to: see `judged`."""
        where, values = wanted.sql()
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT seq FROM row WHERE kind = 'result'{where} ORDER BY seq {order}"
        if limit is not None:
            query, values = query + " LIMIT :limit", {**values, "limit": limit}
        reviews = self._reviews()
        for seq, body in self._of_rows(query, values):
            row = {"seq": seq, **body}
            yield {**row, "review": judged([row, *reviews.get(body["result_id"], ())])}

    def of_result(self, result_id: str) -> list[Json]:
        """Every row about a result: the result first, then the others in order."""
        found = self._connection.execute(
            text("SELECT seq, body FROM row WHERE result_id = :id ORDER BY kind <> 'result', seq"),
            {"id": result_id},
        )
        return [{"seq": row.seq, **self.whole(row.body)} for row in found]

    def about_pictures(self, result_id: str, before: int) -> list[Json]:
        """What rows of a result before a row say of its pictures, in order."""
        found = self._connection.execute(_ABOUT_PICTURES, {"id": result_id, "before": before})
        return [json.loads(row[0]) for row in found]

    def bodies(self, kind: str, since: str = "") -> Iterator[Json]:
        """All bodies of a kind, in order; `since` is UTC text as in `written_at`."""
        query = "SELECT seq FROM row WHERE kind = :kind AND written_at >= :since ORDER BY seq"
        for _, body in self._of_rows(query, {"kind": kind, "since": since}):
            yield body

    def holds(self) -> list[Json]:
        """Bodies of the holds that nobody released, oldest first."""
        return [json.loads(row[0]) for row in self._connection.execute(text(HOLDS))]

    def last_bodies(self, count: int) -> list[str]:
        """The texts of the last rows of any kind, in order."""
        query = text("SELECT body FROM row ORDER BY seq DESC LIMIT :count")
        return [row[0] for row in self._connection.execute(query, {"count": count})][::-1]

    def signed_files(self) -> list[str]:
        """The sha256 of each commissioning file that was signed, the latest first."""
        return [row[0] for row in self._connection.execute(text(SIGNED_FILES))]

    def recipe_changes(self) -> list[Json]:
        """Bodies of the rows that propose, approve and activate recipes, in order."""
        return [json.loads(row[0]) for row in self._connection.execute(text(RECIPE_CHANGES))]

    def model_changes(self) -> list[Json]:
        """As `Store.model_changes`."""
        queries = (MODEL_CHANGES, SHADOWED)
        return [
            json.loads(row[0]) for query in queries for row in self._connection.execute(text(query))
        ]

    def shadow_changes(self) -> list[Json]:
        """Bodies of the rows that begin and end a model's shadow, in order."""
        return [json.loads(row[0]) for row in self._connection.execute(text(SHADOW_CHANGES))]

    def comparison_changes(self) -> list[Json]:
        """Bodies of the rows of comparisons of models and of what people signed, in order."""
        return [json.loads(row[0]) for row in self._connection.execute(text(COMPARISON_CHANGES))]

    def drift_changes(self) -> list[Json]:
        """As `Store.drift_changes`."""
        return [json.loads(row[0]) for row in self._connection.execute(text(DRIFT_CHANGES))]

    def ended_in_order(self) -> bool:
        """The station's last life ended as it was told, or there was none: nothing starts it again
        by itself."""
        found = self._connection.execute(_LAST_LIFE).fetchone()
        return found is None or found[0] == "stop"

    def stats(self, wanted: Filter) -> Json:
        """Counts by verdict and by reason."""
        where, values = wanted.sql()
        verdicts: dict[str, int] = {}
        reasons: dict[str, int] = {}
        found = self._connection.execute(
            text(
                f"SELECT verdict, reason, count(*) FROM row WHERE kind = 'result'{where} "
                "GROUP BY verdict, reason"
            ),
            values,
        )
        for verdict, reason, count in found:
            verdicts[verdict] = verdicts.get(verdict, 0) + count
            if reason is not None:
                reasons[reason] = count
        return {"results": sum(verdicts.values()), "verdicts": verdicts, "reasons": reasons}

    def rows(self, first: int = _FIRST_SEQ, last: int = _LAST_SEQ) -> Iterator[Any]:
        """Every row with its generated columns, in order, up to the last one there is by then."""
        query = text(
            "SELECT * FROM row WHERE seq >= :first AND seq <= :last ORDER BY seq LIMIT :count"
        )
        values = {"last": last, "count": _PAGE_ROWS}
        while page := self._connection.execute(query, {"first": first, **values}).all():
            yield from page
            if len(page) < _PAGE_ROWS:
                return
            first = page[-1].seq + 1

    def stored(self, first: int, count: int) -> Sequence[Any]:
        """So many rows at most, in order, as they were hashed: without their generated columns."""
        return self._connection.execute(_STORED, {"first": first, "count": count}).all()

    def with_pictures(self, after: int, last: int) -> list[tuple[str, list[Json]]]:
        """Result and pictures of the rows `after` < row <= `last` that name any, in order."""
        found = self._connection.execute(_WITH_PICTURES, {"after": after, "last": last})
        return [(row[0], json.loads(row[1])) for row in found]

    def query(self, statement: TextClause, values: Json) -> CursorResult[Any]:
        """What a statement that reads finds."""
        return self._connection.execute(statement, values)

    def tuples(self, statement: str, values: Json) -> list[tuple[Any, ...]]:
        """As `query`, of many rows at once and sooner."""
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return raw.execute(statement, values).fetchall()

    def chain_at(self, seq: int) -> str:
        """Chain value of a row. Raises `StoreError` if there is no such row."""
        query = text("SELECT chain_sha256 FROM row WHERE seq = :seq")
        found = self._connection.execute(query, {"seq": seq}).scalar()
        if found is None:
            raise StoreError(f"{self.path}: there is no row {seq}: see `vqi log verify`")
        return str(found)

    def last_seq(self) -> int:
        """Of the newest row; 0 if there is none."""
        return int(self._connection.execute(text("SELECT max(seq) FROM row")).scalar() or 0)

    def _of_rows(self, query: str, values: Json) -> Iterator[tuple[int, Json]]:
        """Number and body of the rows whose numbers a query gives, in its order."""
        numbers = array("q", (row[0] for row in self._connection.execute(text(query), values)))
        for start in range(0, len(numbers), _PAGE_ROWS):
            page = numbers[start : start + _PAGE_ROWS].tolist()
            bodies = self.bodies_at(page)
            yield from ((number, bodies[number]) for number in page)

    def whole(self, body: str) -> Json:
        """What was recorded in a row, also where the row leaves it to its context. Raises
        `StoreError` if that is not there, or is not what was packed."""
        try:
            return self._contexts.whole(json.loads(body))
        except UNREADABLE as error:
            raise StoreError(f"{self.path}: {error}; see `vqi log verify`") from error

    def body_of(self, seq: int) -> str | None:
        """The text of a row; None if there is no such row."""
        found = self._connection.execute(_BODY, {"seq": seq}).first()
        return None if found is None else str(found[0])

    @property
    def images(self) -> Path:
        """Where the pictures lie: beside the log, or beside the folder of a backup's generation."""
        beside = self.directory / IMAGES
        return beside if beside.is_dir() else self.directory.parent / IMAGES

    def is_removed(self, result_id: str, path: str) -> bool:
        """True if a tombstone says that this picture of the result was removed."""
        found = self._connection.execute(_IS_REMOVED, {"id": result_id, "path": path})
        return found.first() is not None

    def results_naming(self, paths: Collection[str]) -> list[tuple[str, str]]:
        """Results, removed pictures or not, that name these files; reads all results."""
        if not paths:
            return []
        query = (
            "SELECT result_id, image.value ->> 'path' FROM row, json_each(body, '$.images') AS "
            "image WHERE kind = 'result' AND image.value ->> 'path' IN "
            "(SELECT value FROM json_each(:paths))"
        )
        found = self._connection.execute(text(query), {"paths": json.dumps(sorted(paths))})
        return [(row[0], row[1]) for row in found]

    def reviews_of(self, result_ids: Collection[str]) -> dict[str, list[Json]]:
        """The reviews of these results with their `seq`, in order."""
        query = text(
            "SELECT seq, body FROM row WHERE +kind = 'review' AND result_id IN "
            "(SELECT value FROM json_each(:ids)) ORDER BY seq"
        )
        rows = self._connection.execute(query, {"ids": json.dumps(list(result_ids))})
        return by_result((row.seq, json.loads(row.body)) for row in rows)

    def _reviews(self) -> dict[str, list[Json]]:
        """Every review by the result that it is of, in order."""
        query = "SELECT seq FROM row WHERE kind = 'review' ORDER BY seq"
        return by_result(self._of_rows(query, {}))

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def by_result(rows: Iterable[tuple[int, Json]]) -> dict[str, list[Json]]:
    """Bodies with their `seq` by the result that they are about, in their order."""
    found: dict[str, list[Json]] = {}
    for seq, body in rows:
        found.setdefault(body["result_id"], []).append({"seq": seq, **body})
    return found


def judged(rows: list[Json]) -> Json | None:
    """What the reviews of a result come to: the fields of the one that holds, `verdict` None and
    `reviewer` empty while none does, and `pending` True while the last waits for a second person:
    what that one says holds for nothing yet."""
    if len(rows) == 1:
        return None
    judged = effective_verdict(rows)
    return {
        **(judged.review or {}),
        "verdict": None if judged.review is None else str(judged.verdict),
        "reviewer": ", ".join(judged.reviewers),
        "pending": judged.pending is not None,
    }


def _damage(path: Path, error: SQLAlchemyError) -> str:
    """What is wrong with a log that could not be opened; empty where this user may not. SQLite has
    to write beside the file, and says the same of both."""
    if not path.exists():
        return f"{path}: there is no such file"
    cause = error.__cause__ or error
    may_read = os.access(path, os.R_OK) and os.access(path.parent, os.W_OK)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in _CODES_NOT_PERMITTED and not may_read:
        return ""
    return f"{path}: cannot be read: {cause}"


def _open_reading(path: Path) -> tuple[Engine, Connection]:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{path}?mode=ro", uri=True, timeout=5.0, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    connection = engine.connect()
    connection.execute(text("SELECT count(*) FROM row WHERE seq = 1")).all()
    return engine, connection
