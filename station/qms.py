"""The QMS record: one table, one hash chain, one writing connection; readers that cannot write.

A row's body is stored as the text that was hashed; the columns that queries use are generated from
it by SQLite, so an index cannot disagree with the hash. Each row's chain value covers the value
before it: a changed, removed or swapped row breaks every later one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from station.record import Body, ClockBody, DiskBody, HoldBody, RetentionBody, TombstoneBody
from station.retention import newest_label, objection, pictures_of

DATABASE = "journal.db"
SNAPSHOT = "journal-snapshot.db"
IMAGES = "images"
EMPTY_CHAIN = "0" * 64
_ONCE_A_RESULT = ("opened", "result", "actuation", "accept")
_TRIGGERS = {"row_no_update", "row_no_delete", "row_no_replace"}
_TAIL_ROWS = 100
"""Checked at each start (I12); `vqi log verify` checks all."""
_PAGE_ROWS = 500
"""Read at once: while a reader is within a page, the write-ahead file cannot be begun anew (I8)."""
_CHECKED_ROWS = 10_000
_FIRST_SEQ = -(2**63)
"""The lowest that SQLite has: a row that somebody put before the first one is read, too."""
_LABEL_ROWS = 1000
_PASSING = timedelta(minutes=1)
_BUSY_TIMEOUT_S = 1.0
_MOST_REFERENCES = 64
"""Of recipes and cameras that a log remembers; an older one is learned anew."""
_CODES_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CODES_FULL = {sqlite3.SQLITE_FULL}

Json = dict[str, Any]

_SIGNED_FILES = """
    SELECT coalesce(body ->> '$.detail.file_sha256', '') FROM row
    WHERE kind = 'change' AND body ->> '$.what' = 'commissioned' ORDER BY seq DESC LIMIT 100
"""

_LAST_BACKUP = """
    SELECT body FROM row WHERE kind = 'backup' AND body ->> '$.is_ok'
    AND body ->> '$.directory' = :directory ORDER BY seq DESC LIMIT 1
"""
_HOLDS = """
    SELECT body FROM row AS held WHERE kind = 'hold' AND NOT EXISTS (
        SELECT 1 FROM row WHERE kind = 'release' AND seq > held.seq
        AND body ->> '$.hold_id' = held.body ->> '$.hold_id')
    ORDER BY seq
"""

_ABOUT_PICTURES = text("""
    SELECT CASE kind WHEN 'result' THEN json_remove(body, '$.tile_grid', '$.tile_scores') ELSE body
    END FROM row WHERE result_id = :id AND +kind IN ('result', 'review', 'tombstone')
    AND seq < :before ORDER BY seq
""")
_IS_REMOVED = text("""
    SELECT 1 FROM row WHERE result_id = :id AND kind = 'tombstone' AND body ->> '$.path' = :path
    LIMIT 1
""")

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
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
    ),
)
"""Numbered from 1; a migration only adds, so that an older program still reads."""


class StoreError(Exception):
    """The log cannot be used; the message says which file, why, and what to do."""


class StoreRefused(StoreError):
    """Nothing was written, and it may be tried again: the disk is full, or another tool holds the
    file's write lock."""


class ContradictionError(StoreError):
    """A row of this kind and result is there already and says something else."""


def canonical(body: Body) -> str:
    """The text that is hashed: JSON, sorted keys, no spaces, UTF-8."""
    return json.dumps(body.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(data: str) -> str:
    return hashlib.sha256(data.encode()).hexdigest()


def chain(before: str, seq: int, kind: str, body_sha256: str) -> str:
    """The chain value of a row after the one whose value is `before`."""
    return sha256_text(f"{before} {seq} {kind} {body_sha256}")


class Store:
    """The only connection that writes or checkpoints. For one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Open or create the log in `directory` and bring its schema up. Raises `StoreError`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.path = directory / DATABASE
        self._engine = _writing_engine(self.path)
        try:
            self._connection = self._engine.connect()
            self._migrate()
            self._seq, self._chain = self._read_head()
            self._check_tail()
        except SQLAlchemyError as error:
            raise StoreError(f"{self.path}: {error.__cause__ or error}") from error
        self.path.chmod(0o644)

    def append(self, bodies: Sequence[Body]) -> list[int]:
        """Write rows in one transaction, durable on return; the sequence number of each.

        An opened, result, actuation or accept row that is there already is not written again.
        Raises `ContradictionError` if it says something else, `StoreRefused` if it may be tried
        again, another `StoreError` if the file cannot be written; in each case nothing of `bodies`
        is.
        """
        seq, link = self._seq, self._chain
        numbers = []
        try:
            with self._transaction() as connection:
                for body in bodies:
                    known = self._find(connection, body)
                    if known is not None:
                        numbers.append(known)
                        continue
                    seq, link = seq + 1, self._insert(connection, seq + 1, link, body)
                    numbers.append(seq)
        except SQLAlchemyError as error:
            raise self._failure(error) from error
        self._seq, self._chain = seq, link
        return numbers

    def head(self) -> tuple[int, str]:
        """Last sequence number and chain value."""
        return self._seq, self._chain

    def open_plates(self) -> list[Json]:
        """Bodies of opened rows without a result, oldest first."""
        return self._lacking("opened", "result")

    def results_without_actuation(self) -> list[Json]:
        """Bodies of results for which nobody wrote what the lamp was told, oldest first."""
        return self._lacking("result", "actuation")

    def held_result(self) -> Json | None:
        """The newest FAIL or UNDECIDED that nobody has acknowledged since, if there is one."""
        acknowledged = self._last_change("ack")
        # Reviews have verdicts, too.
        newest = max(
            self._scalar(
                f"SELECT max(seq) FROM row WHERE verdict = '{verdict}' AND +kind = 'result'"
            )
            or 0
            for verdict in ("FAIL", "UNDECIDED")
        )
        if newest <= acknowledged:
            return None
        found = self._query("SELECT body FROM row WHERE seq = :seq", {"seq": newest})
        body: Json = json.loads(found[0].body)
        return body

    def has_late_plates(self) -> bool:
        """Whether a plate was withheld from accept for its lateness since a person last
        acknowledged."""
        return self._last_change("withheld_late") > self._last_change("ack")

    def open_attentions(self) -> list[Json]:
        """Bodies of attentions that began and have not ended, oldest first."""
        begun: dict[tuple[str, float | None, float | None], Json] = {}
        for row in self._query("SELECT body FROM row WHERE kind = 'attention' ORDER BY seq", {}):
            body: Json = json.loads(row.body)
            key = (body["name"], body["start_mm"], body["end_mm"])
            begun.pop(key, None)
            if body["is_begin"]:
                begun[key] = body
        return list(begun.values())

    def references(self) -> list[Json]:
        """The newest reference of the light for each key."""
        rows = self._query(
            "SELECT body FROM row WHERE kind = 'reference' AND seq IN (SELECT max(seq) FROM row "
            "WHERE kind = 'reference' GROUP BY body ->> '$.key') ORDER BY seq DESC LIMIT :most",
            {"most": _MOST_REFERENCES},
        )
        return [json.loads(row.body) for row in rows]

    def last_sequence(self) -> int:
        """Highest plate sequence number ever given; 0 if none."""
        return self._scalar("SELECT max(sequence) FROM row WHERE sequence IS NOT NULL") or 0

    def last_plate_ordinal(self) -> int | None:
        """Highest trigger ordinal that a row answers for, since the counter last began anew."""
        began_anew = self._scalar(
            "SELECT max(seq) FROM row WHERE kind = 'downtime' AND body ->> '$.is_counter_new'"
        )
        return self._scalar(
            "SELECT max(plate_ordinal) FROM row WHERE plate_ordinal IS NOT NULL "
            f"AND seq >= {began_anew or 0}"
        )

    def signed_files(self) -> list[str]:
        """The sha256 of each commissioning file that was signed, the latest first."""
        return [row[0] for row in self._query(_SIGNED_FILES, {})]

    def of_result(self, result_id: str) -> list[Json]:
        """Bodies of every row about a result, in order."""
        query = "SELECT body FROM row WHERE result_id = :id ORDER BY seq"
        return [json.loads(row.body) for row in self._query(query, {"id": result_id})]

    def holds(self) -> list[Json]:
        """Bodies of the holds that nobody released, oldest first."""
        return [json.loads(row.body) for row in self._query(_HOLDS, {})]

    def hold_ids(self) -> set[str]:
        """Of every hold that ever was."""
        rows = self._query("SELECT body ->> '$.hold_id' FROM row WHERE kind = 'hold'", {})
        return {row[0] for row in rows}

    def last_body(self, kind: str) -> Json | None:
        """The newest row of a kind."""
        query = "SELECT body FROM row WHERE kind = :kind ORDER BY seq DESC LIMIT 1"
        found = self._query(query, {"kind": kind})
        return json.loads(found[0].body) if found else None

    def last_backup(self, directory: str) -> Json | None:
        """The newest good copy that was made there."""
        found = self._query(_LAST_BACKUP, {"directory": directory})
        return json.loads(found[0].body) if found else None

    def newest_label(self) -> str | None:
        """The latest `written_at` of the last rows, since a person last said that the clock is
        right; None without such rows."""
        accepted = self._scalar(
            "SELECT max(seq) FROM row WHERE kind = 'clock' AND body ->> '$.cause' = 'accepted'"
        )
        since = max(accepted or 0, self._seq - _LABEL_ROWS)
        found = self._query("SELECT max(written_at) FROM row WHERE seq >= :since", {"since": since})
        return None if found[0][0] is None else str(found[0][0])

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        connection = self._connection
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            with contextlib.suppress(SQLAlchemyError):
                connection.exec_driver_sql("ROLLBACK")
            raise
        finally:
            connection.rollback()

    def _failure(self, error: SQLAlchemyError) -> StoreError:
        cause = error.__cause__ or error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in _CODES_BUSY:
            return StoreRefused(f"{self.path}: another tool holds its write lock; close that tool")
        if code in _CODES_FULL:
            return StoreRefused(f"{self.path}: {cause}; free some space")
        return StoreError(f"{self.path}: {cause}")

    def _insert(self, connection: Connection, seq: int, link: str, body: Body) -> str:
        content = canonical(body)
        kind = str(getattr(body, "kind"))  # noqa: B009  every row kind has one
        body_sha256 = sha256_text(content)
        link = chain(link, seq, kind, body_sha256)
        connection.execute(
            text(
                "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) "
                "VALUES (:seq, :kind, :body, :body_sha256, :chain)"
            ),
            {"seq": seq, "kind": kind, "body": content, "body_sha256": body_sha256, "chain": link},
        )
        return link

    def _find(self, connection: Connection, body: Body) -> int | None:
        """The row that says this already. Raises `StoreError` if one says something else."""
        kind = getattr(body, "kind")  # noqa: B009
        if kind not in _ONCE_A_RESULT:
            same = connection.execute(
                text(
                    "SELECT seq FROM row WHERE kind = :kind AND written_at = :at AND body = :body"
                ),
                {
                    "kind": kind,
                    "at": body.written_at,
                    "body": canonical(body),
                },
            ).scalar()
            return same if same is None else int(same)
        found = connection.execute(
            text("SELECT seq, body FROM row WHERE result_id = :id AND +kind = :kind"),
            {"kind": kind, "id": getattr(body, "result_id")},  # noqa: B009
        ).first()
        if found is None:
            return None
        if _content(found.body) != _content(canonical(body)):
            raise ContradictionError(
                f"{kind} row of {json.loads(found.body)['result_id']} says otherwise"
            )
        return int(found.seq)

    def _lacking(self, kind: str, answer: str) -> list[Json]:
        """Bodies of a kind whose result has no row of another kind. Each start settles what the
        life before left; a life that dies right after its `start` row leaves results that stand
        before that row, so two lives are looked at. Older rows need no look."""
        query = (
            f"SELECT body FROM row AS asked WHERE seq > :since AND +kind = '{kind}' AND NOT EXISTS "
            f"(SELECT 1 FROM row WHERE result_id = asked.result_id AND +kind = '{answer}') "
            "ORDER BY seq"
        )
        found = self._query(query, {"since": self._last_change("start", before=1)})
        return [json.loads(row.body) for row in found]

    def _last_change(self, what: str, before: int = 0) -> int:
        """Sequence number of the newest change row of this name, or of one so many before it; 0 if
        there is none."""
        query = (
            "SELECT seq FROM row WHERE kind = 'change' AND body ->> '$.what' = :what "
            "ORDER BY seq DESC LIMIT 1 OFFSET :before"
        )
        found = self._query(query, {"what": what, "before": before})
        return int(found[0].seq) if found else 0

    def _query(self, query: str, values: Json) -> list[Any]:
        found = list(self._connection.execute(text(query), values))
        self._connection.rollback()
        return found

    def _check_tail(self) -> None:
        """The last rows say what was hashed and follow one another. Raises `StoreError`."""
        first = max(0, self._seq - _TAIL_ROWS)
        query = "SELECT seq, kind, body, body_sha256, chain_sha256 FROM row WHERE seq >= :first"
        rows = self._query(f"{query} ORDER BY seq", {"first": first})
        before = EMPTY_CHAIN if first == 0 else rows.pop(0).chain_sha256
        changed = _first_changed(rows, before)
        if changed is not None:
            raise StoreError(
                f"{self.path}: row {changed} is not the one that was written; keep this file "
                "as evidence, see `vqi log verify`, and restore a backup"
            )

    def _migrate(self) -> None:
        version = int(self._scalar("PRAGMA user_version") or 0)
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"{self.path}: schema {version}, this program knows {len(_MIGRATIONS)}; "
                "use the newer program"
            )
        for number, statements in enumerate(_MIGRATIONS[version:], start=version + 1):
            with self._transaction() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(f"PRAGMA user_version = {number}")

    def _read_head(self) -> tuple[int, str]:
        row = self._connection.execute(
            text("SELECT seq, chain_sha256 FROM row ORDER BY seq DESC LIMIT 1")
        ).first()
        self._connection.rollback()
        return (0, EMPTY_CHAIN) if row is None else (int(row.seq), str(row.chain_sha256))

    def _scalar(self, query: str) -> int | None:
        value = self._connection.execute(text(query)).scalar()
        self._connection.rollback()
        return None if value is None else int(value)


def _writing_engine(path: Path) -> Engine:
    # The driver's own transaction handling is off: each transaction says BEGIN IMMEDIATE itself.
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": _BUSY_TIMEOUT_S,
        },
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, record: object) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "recursive_triggers = ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _content(body: str) -> Json:
    """What a row says, without when it was written and what the journal filled in."""
    filled = ("written_at", "images", "pixels_sha256")
    return {key: value for key, value in json.loads(body).items() if key not in filled}


def publish_snapshot(directory: Path) -> None:
    """Copy the log through a reading connection; write, sync, rename, sync the folder."""
    temporary, final = directory / f"{SNAPSHOT}.new", directory / SNAPSHOT
    temporary.unlink(missing_ok=True)
    source = sqlite3.connect(f"file:{directory / DATABASE}?mode=ro", uri=True)
    copy = sqlite3.connect(temporary)
    try:
        # In one step: between two, a commit would make it begin again, on a live log for ever.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
    finally:
        copy.close()
        source.close()
    temporary.chmod(0o644)
    _sync(temporary)
    temporary.rename(final)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


class Reader:
    """Reads the log and can do nothing else to it; also for a user who may only read.

    Reads the live file where it can. After a clean stop or a reboot an unprivileged user cannot;
    then it reads the snapshot. `source` is `live` or `snapshot`.
    """

    def __init__(self, directory: Path) -> None:
        """Raises `StoreError` if there is no log or it cannot be read."""
        self.directory = directory
        problems = []
        for source, name in (("live", DATABASE), ("snapshot", SNAPSHOT)):
            path = directory / name
            try:
                self._engine, self._connection = _open_reading(path)
            except SQLAlchemyError as error:
                problems.append(f"{path}: {error.__cause__ or error}")
                continue
            self.source, self.path = source, path
            return
        raise StoreError(f"no log can be read here: {'; '.join(problems)}")

    @property
    def source_note(self) -> str:
        """For people: which file was read, and as of when."""
        if self.source == "live":
            return f"read the live file {self.path}"
        at = datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return f"read the published snapshot {self.path} of {at}; the live file cannot be read"

    def results(
        self, wanted: Filter, newest_first: bool = False, limit: int | None = None
    ) -> Iterator[Json]:
        """Result bodies with their `seq` and last review, in order; those that are there now."""
        where, values = wanted.sql()
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT seq FROM row WHERE kind = 'result'{where} ORDER BY seq {order}"
        if limit is not None:
            query, values = query + " LIMIT :limit", {**values, "limit": limit}
        reviews = self._last_reviews()
        for seq, body in self._of_rows(query, values):
            yield {"seq": seq, **body, "review": reviews.get(body["result_id"])}

    def of_result(self, result_id: str) -> list[Json]:
        """Every row about a result: the result first, then the others in order."""
        found = self._connection.execute(
            text("SELECT seq, body FROM row WHERE result_id = :id ORDER BY kind <> 'result', seq"),
            {"id": result_id},
        )
        return [{"seq": row.seq, **json.loads(row.body)} for row in found]

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
        return [json.loads(row[0]) for row in self._connection.execute(text(_HOLDS))]

    def last_bodies(self, count: int) -> list[str]:
        """The texts of the last rows of any kind, in order."""
        query = text("SELECT body FROM row ORDER BY seq DESC LIMIT :count")
        return [row[0] for row in self._connection.execute(query, {"count": count})][::-1]

    def signed_files(self) -> list[str]:
        """The sha256 of each commissioning file that was signed, the latest first."""
        return [row[0] for row in self._connection.execute(text(_SIGNED_FILES))]

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

    def rows(self, first: int = _FIRST_SEQ) -> Iterator[Any]:
        """Every row with its generated columns, in order, up to the last one there is by then."""
        query = text("SELECT * FROM row WHERE seq >= :first ORDER BY seq LIMIT :count")
        while page := self._connection.execute(query, {"first": first, "count": _PAGE_ROWS}).all():
            yield from page
            if len(page) < _PAGE_ROWS:
                return
            first = page[-1].seq + 1

    def last_seq(self) -> int:
        """Of the newest row; 0 if there is none."""
        return int(self._connection.execute(text("SELECT max(seq) FROM row")).scalar() or 0)

    def _of_rows(self, query: str, values: Json) -> Iterator[tuple[int, Json]]:
        """Number and body of the rows whose numbers a query gives, in its order."""
        numbers = array("q", (row[0] for row in self._connection.execute(text(query), values)))
        page_query = text(
            "SELECT seq, body FROM row WHERE seq IN (SELECT value FROM json_each(:numbers))"
        )
        for start in range(0, len(numbers), _PAGE_ROWS):
            page = numbers[start : start + _PAGE_ROWS].tolist()
            found = self._connection.execute(page_query, {"numbers": json.dumps(page)}).all()
            bodies = {row.seq: row.body for row in found}
            yield from ((number, json.loads(bodies[number])) for number in page)

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

    def triggers(self) -> set[str]:
        """Names of the triggers that keep rows from being changed."""
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'row'"
        return {row[0] for row in self._connection.execute(text(query))}

    def _last_reviews(self) -> dict[str, Json]:
        return {body["result_id"]: body for body in self.bodies("review")}

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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


@dataclass(slots=True)
class Verification:
    """What `verify` found; no findings means that the log says what was written."""

    rows: int = 0
    results: int = 0
    open_plates: int = 0
    images: int = 0
    """Pictures that rows name."""
    tombstones: int = 0
    """Of them, those that a rule removed."""
    holds: int = 0
    """In force."""
    head: str = EMPTY_CHAIN
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no fault of the log: files that will be removed."""


@dataclass(slots=True)
class _Removals:
    """What the log has said, up to a row, of what may be removed."""

    rules: RetentionBody | None = None
    holds: dict[str, HoldBody] = field(default_factory=dict)
    disk_level: int = 0
    ahead_s: float = 0.0
    newest_at: str = ""
    aged_from: dict[str, str] = field(default_factory=dict)
    """The newest label by then of results whose own label is earlier."""
    missing: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Row, result and path of pictures that are not there, and what the system says."""
    left: set[str] = field(default_factory=set)
    """Files that a tombstone speaks of and that are still there."""


def verify(reader: Reader, with_images: bool = True) -> Verification:
    """Recompute every hash, the chain and the pictures' sha256; see that edits are still barred and
    that no picture was removed but by a rule that held and against no hold."""
    found = Verification(findings=_missing_triggers(reader))
    before, opened, decided = EMPTY_CHAIN, set[str](), set[str]()
    removals = _Removals()
    for row in reader.rows():
        found.rows += 1
        if row.seq != found.rows:
            found.findings.append(f"row {found.rows} is missing; row {row.seq} comes next")
            found.rows = row.seq
        body_sha256 = sha256_text(row.body)
        if body_sha256 != row.body_sha256:
            found.findings.append(f"row {row.seq}: its body is not the one that was hashed")
        before = chain(before, row.seq, row.kind, body_sha256)
        if before != row.chain_sha256:
            found.findings.append(f"row {row.seq}: the chain breaks here")
            before = row.chain_sha256
        body = _parsed(row.body)
        if body.get("kind") != row.kind:
            found.findings.append(f"row {row.seq}: is kept as {row.kind}, says {body.get('kind')}")
        _collect(row.seq, body, opened, decided, found)
        _follow_removals(reader, row.seq, body, removals, found)
        if with_images:
            _verify_images(reader.images, row.seq, body, removals, found)
    found.results, found.head = len(decided), before
    found.open_plates = len(opened - decided)
    found.holds = len(removals.holds)
    _settle_removals(reader, removals, found)
    return found


def verify_tail(reader: Reader) -> Verification:
    """As `verify`, of the last rows alone and without their pictures: however long the log is, it
    takes as long. The row before them is believed."""
    found = Verification(findings=_missing_triggers(reader))
    first = max(1, reader.last_seq() - _CHECKED_ROWS)
    rows = reader.rows(first)
    found.head = EMPTY_CHAIN if first == 1 else next(rows).chain_sha256
    for row in rows:
        if (changed := _first_changed([row], found.head)) is not None:
            found.findings.append(f"row {changed} is not the one that was written")
        found.rows, found.head = found.rows + 1, row.chain_sha256
    return found


def _missing_triggers(reader: Reader) -> list[str]:
    return [f"trigger {name} is gone" for name in sorted(_TRIGGERS - reader.triggers())]


def _first_changed(rows: Iterable[Any], before: str) -> int | None:
    """The number of the first row that is not the one that was hashed, or does not follow the one
    before it, whose chain value is `before`; None if all do."""
    for row in rows:
        body_sha256 = sha256_text(row.body)
        link = chain(before, row.seq, row.kind, body_sha256)
        if (body_sha256, link) != (row.body_sha256, row.chain_sha256):
            return int(row.seq)
        before = row.chain_sha256
    return None


def _parsed(body: str) -> Json:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _collect(
    seq: int, body: Json, opened: set[str], decided: set[str], found: Verification
) -> None:
    result_id = str(body.get("result_id"))
    if body.get("kind") == "opened":
        opened.add(result_id)
    elif body.get("kind") == "result":
        if result_id in decided:
            found.findings.append(f"row {seq}: a second result of {result_id}")
        decided.add(result_id)


def _follow_removals(
    reader: Reader, seq: int, body: Json, removals: _Removals, found: Verification
) -> None:
    removals.newest_at = newest_label(removals.newest_at, body)
    try:
        match body.get("kind"):
            case "result" if _is_late(body["written_at"], removals.newest_at):
                removals.aged_from[body["result_id"]] = removals.newest_at
            case "retention":
                removals.rules = RetentionBody.model_validate(body)
            case "hold":
                removals.holds[body["hold_id"]] = HoldBody.model_validate(body)
            case "release":
                removals.holds.pop(body["hold_id"], None)
            case "disk":
                removals.disk_level = DiskBody.model_validate(body).level
            case "clock":
                removals.ahead_s = ClockBody.model_validate(body).ahead_s
            case "tombstone":
                _verify_tombstone(reader, seq, TombstoneBody.model_validate(body), removals, found)
    except (ValueError, LookupError, TypeError) as error:
        reason = str(error).replace("\n", " ")
        found.findings.append(f"row {seq}: no such {body.get('kind')} row can be: {reason}")


def _is_late(label: str, newest_at: str) -> bool:
    """The clock had fallen back; not for rows that passed one another on their way."""
    if label >= newest_at:
        return False
    return datetime.fromisoformat(newest_at) - datetime.fromisoformat(label) > _PASSING


def _verify_tombstone(
    reader: Reader, seq: int, stone: TombstoneBody, removals: _Removals, found: Verification
) -> None:
    found.tombstones += 1
    known = reader.about_pictures(stone.result_id, seq)
    picture = next((one for one in pictures_of(known) if one.path == stone.path), None)
    if picture is not None:
        aged_from = removals.aged_from.get(stone.result_id, "")
        picture = replace(picture, aged_from=aged_from)
    why = objection(
        stone,
        picture,
        removals.rules,
        removals.holds.values(),
        removals.disk_level,
        removals.ahead_s,
    )
    if why:
        found.findings.append(f"row {seq}: a picture was removed against the rules: {why}")
    if (reader.images / stone.path).exists():
        removals.left.add(stone.path)


def _verify_images(
    images: Path, seq: int, body: Json, removals: _Removals, found: Verification
) -> None:
    for image in body.get("images") or ():
        found.images += 1
        path = images / image["path"]
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            said = error.strerror or "cannot be read"
            removals.missing.append((seq, str(body.get("result_id")), image["path"], said))
            continue
        if sha256 != image["sha256"]:
            found.findings.append(f"row {seq}: {path} is not the picture that was recorded")


def _settle_removals(reader: Reader, removals: _Removals, found: Verification) -> None:
    """Only now: the log may have gone on, and removed a picture, while it was read."""
    for seq, result_id, path, said in removals.missing:
        if not reader.is_removed(result_id, path):
            found.findings.append(f"row {seq}: {reader.images / path}: {said}")
    named = reader.results_naming(removals.left)
    still = {path for result_id, path in named if not reader.is_removed(result_id, path)}
    found.notes += [
        f"{reader.images / path}: has a tombstone and is still there; the journal removes it"
        for path in sorted(removals.left - still)
    ]
