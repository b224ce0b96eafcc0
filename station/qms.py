"""The QMS record: one table, one hash chain, one writing connection; readers that cannot write.

A row's body is stored as the text that was hashed; the columns that queries use are generated from
it by SQLite, so an index cannot disagree with the hash. Each row's chain value covers the value
before it: a changed, removed or swapped row breaks every later one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from station import derived, reviews, unsettled
from station.attempts import FILLED_IN, attempt_of
from station.given import GIVEN, VALUE
from station.packing import Contexts, Packer
from station.record import HAS_ACCEPT, Body, ContextBody, ReviewBody, utc_now
from station.schema import BEGIN, PAGE_BYTES, STEP_TABLE, STEPS, VERSION, Step

DATABASE = "journal.db"
SNAPSHOT = "journal-snapshot.db"
IMAGES = "images"
EMPTY_CHAIN = "0" * 64
_ONCE_A_RESULT = ("opened", "result", "actuation", "accept")
_TAIL_ROWS = 100
"""Checked at each start (I12); `vqi log verify` checks all."""
_LABEL_ROWS = 1000
_ON_THEIR_WAY_ROWS = 20_000
_LIVES = 20
"""So many may die one after another before one writes what became of plates on their way."""
_BUSY_TIMEOUT_S = 1.0
_WAL_PAGES = 256
"""4 MB until a commit carries the write-ahead file over into the database: it waits that long."""
WAL_KEPT_BYTES = 8 * 2**20
"""A reader or the snapshot's copy makes the write-ahead file longer than this only for a while: the
commit that begins it anew cuts it. Twice `_WAL_PAGES`, so that it is not cut for nothing: what is
cut off has to be found on the disk again."""
_MOST_REFERENCES = 64
"""Of recipes and cameras that a log remembers; an older one is learned anew."""
_MOST_SEEDS = 64
"""Of audit draws that a start looks at: a life seldom leaves one unrevealed."""
_CATCH_UP_ROWS = 2000
"""Rows from which the derived tables are filled in one transaction: some tens of milliseconds."""
_CATCH_UP_AT_ONCE = 2 * _CATCH_UP_ROWS
"""What a start does before it goes on; more is done while nothing waits."""
_CODES_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CODES_FULL = {sqlite3.SQLITE_FULL}

Json = dict[str, Any]

SIGNED_FILES = """
    SELECT coalesce(body ->> '$.detail.file_sha256', '') FROM row
    WHERE kind = 'change' AND body ->> '$.what' = 'commissioned' ORDER BY seq DESC LIMIT 100
"""

RECIPE_CHANGES = """
    SELECT body FROM row WHERE kind = 'change' AND (body ->> '$.what' GLOB 'recipe_*'
    OR body ->> '$.what' = 'model_parity') ORDER BY seq
"""
MODEL_CHANGES = """
    SELECT body FROM row WHERE kind = 'change' AND (body ->> '$.what' GLOB 'model_*'
    OR body ->> '$.what' GLOB 'limit_samples*') ORDER BY seq
"""
SHADOWED = """
    SELECT json_object('what', 'shadowed', 'detail', json_object(
        'model_sha256', body ->> '$.model_sha256', 'threshold', body -> '$.threshold',
        'unsure_above', body -> '$.unsure_above',
        'judging_model_sha256', body ->> '$.judging_model_sha256',
        'judging_threshold', body -> '$.judging_threshold', 'recipe_id', body ->> '$.recipe_id',
        'plates', sum(json_array_length(body, '$.plates')))) AS body
    FROM row WHERE kind = 'shadow'
    GROUP BY body ->> '$.model_sha256', body -> '$.threshold', body -> '$.unsure_above',
        body ->> '$.judging_model_sha256', body -> '$.judging_threshold', body ->> '$.recipe_id'
"""
"""The threshold as it stands in the row: a number that SQLite read and wrote has 15 digits."""

SHADOW_CHANGES = """
    SELECT body FROM row WHERE kind = 'change' AND body ->> '$.what' GLOB 'model_shadow_*'
    ORDER BY seq
"""

COMPARISON_CHANGES = """
    SELECT body FROM row WHERE kind = 'change'
    AND body ->> '$.what' IN ('model_compared', 'model_flip_signed') ORDER BY seq
"""
DRIFT_CHANGES = """
    SELECT body FROM row WHERE kind = 'change' AND body ->> '$.what' GLOB 'drift_*'
    ORDER BY seq
"""


_LAST_BACKUP = """
    SELECT body FROM row WHERE kind = 'backup' AND body ->> '$.is_ok'
    AND body ->> '$.directory' = :directory ORDER BY seq DESC LIMIT 1
"""
HOLDS = """
    SELECT body FROM row AS held WHERE kind = 'hold' AND NOT EXISTS (
        SELECT 1 FROM row WHERE kind = 'release' AND seq > held.seq
        AND body ->> '$.hold_id' = held.body ->> '$.hold_id')
    ORDER BY seq
"""

_INSERT = "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) VALUES (?, ?, ?, ?, ?)"
_SAME = "SELECT seq FROM row WHERE kind = ? AND written_at = ? AND body = ?"
_LAST_CONTEXTS = "SELECT seq, body FROM row WHERE kind = 'context' ORDER BY seq DESC LIMIT 64"
# By the index: neither walks the log's rows of other kinds.
_LAST_SEEDS = "SELECT seq, body FROM row WHERE kind = 'audit_seed' ORDER BY +seq DESC LIMIT :most"
_REVEALS = (
    "SELECT seq, body ->> '$.seed_sha256' AS seed_sha256 FROM row "
    "WHERE kind = 'audit_reveal' AND +seq > :since ORDER BY +seq"
)
_OF_RESULT = "SELECT seq, body FROM row WHERE result_id = ? AND +kind = ?"
_ALL_OF_RESULT = "SELECT seq, body FROM row WHERE result_id = ? ORDER BY seq"
_STEPS_MADE = "SELECT number FROM schema_step"


class StoreError(Exception):
    """The log cannot be used; the message says which file, why, and what to do."""


class LogLost(StoreError):
    """There was a log, and a person has to put it back."""


class StoreRefused(StoreError):
    """Nothing was written, and it may be tried again: the disk is full, or another tool holds the
    file's write lock."""


class _WrongLineError(StoreRefused):
    """The derived tables have a line already where a row's own belongs."""


class ContradictionError(StoreError):
    """A row of this kind and result is there already and says something else."""


def see_that_none_was_lost(directory: Path) -> None:
    """Raises `LogLost` where a log is to be begun beside the copy of another: a new one would be
    taken for it, and would soon be copied over what is left of it."""
    if (directory / SNAPSHOT).exists():
        raise LogLost(
            f"{directory / DATABASE} is gone or empty, and {SNAPSHOT} beside it is the copy of the "
            "log that was there: restore that log, see docs/maintenance.md; or move the whole "
            "folder away to begin a new one"
        )


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(body: Body) -> str:
    """The text that is hashed: JSON, sorted keys, no spaces, UTF-8."""
    return _ENCODER.encode(body.as_json())


def sha256_text(data: str) -> str:
    return hashlib.sha256(data.encode()).hexdigest()


def chain(before: str, seq: int, kind: str, body_sha256: str) -> str:
    """The chain value of a row after the one whose value is `before`."""
    return sha256_text(f"{before} {seq} {kind} {body_sha256}")


def first_changed(rows: Iterable[Any], before: str) -> int | None:
    """The number of the first row that is not the one that was hashed, or does not follow the one
    before it, whose chain value is `before`; None if all do."""
    for row in rows:
        body_sha256 = sha256_text(row.body)
        link = chain(before, row.seq, row.kind, body_sha256)
        if (body_sha256, link) != (row.body_sha256, row.chain_sha256):
            return int(row.seq)
        before = row.chain_sha256
    return None


@dataclass(frozen=True, slots=True)
class _Row:
    """What will be written of a body."""

    station_id: str
    kind: str
    fields: Json
    content: str
    """The text that is hashed."""

    @classmethod
    def of(cls, body: Body) -> _Row:
        fields = body.as_json()
        return cls(body.station_id, str(fields["kind"]), fields, _ENCODER.encode(fields))

    def filled(self, more: Json) -> _Row:
        """With fields that only the log knows."""
        if not more:
            return self
        fields = self.fields | more
        return _Row(self.station_id, self.kind, fields, _ENCODER.encode(fields))

    def lines(self, seq: int) -> derived.Lines:
        """What it adds to the derived tables."""
        return derived.lines_of(self.station_id, seq, self.kind, self.fields)


class Store:
    """The only connection that writes or checkpoints. For one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Open or create the log in `directory` and bring its schema up. Raises `StoreError`,
        `LogLost` where one was there."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.path = directory / DATABASE
        self.derived_problem = ""
        """What was wrong with the derived tables in this life; empty if nothing was."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            see_that_none_was_lost(directory)
        self._engine = _writing_engine(self.path)
        self._packer: Packer | None = None
        self._contexts = Contexts(self._body_of)
        self._unsettled: dict[unsettled.State, int] | None = None
        """Counted with each change; None: to be counted."""
        try:
            self._connection = self._engine.connect()
            self._migrate()
            self._seq, self._chain = self._read_head()
            self._check_tail()
            self._derived = self._scalar("SELECT seq FROM derived") or 0
            if self.lag < 0:
                said = f"table derived says row {self._derived}, the last one is {self._seq}"
                self._derive_anew(_WrongLineError(f"{self.path}: {said}"))
            self._see_to_unsettled()
            self._unsettled = unsettled.counts(self._raw)
            with contextlib.suppress(_WrongLineError):
                while 0 < self.lag <= _CATCH_UP_AT_ONCE:
                    self.catch_up()
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
        try:
            return self._append(bodies, is_up_to_date=self.lag == 0)
        except _WrongLineError as error:
            self._derive_anew(error)
            return self._append(bodies, is_up_to_date=False)

    def _append(self, bodies: Sequence[Body], is_up_to_date: bool) -> list[int]:
        """`is_up_to_date`: the derived tables know all rows before, and are to know these."""
        head, lines = (self._seq, self._chain), derived.Lines()
        numbers = []
        try:
            with self._transaction():
                for body in bodies:
                    known, row = self._place(body)
                    if known is None:
                        row = row.filled(attempt_of(self._raw, row.fields))
                        head = self._write(row, *head)
                        lines.extend(row.lines(head[0]))
                    numbers.append(known or head[0])
                if is_up_to_date:
                    self._derive(lines, head[0])
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._seq, self._chain = head
        self._derived = head[0] if is_up_to_date else self._derived
        return numbers

    def go_on_with(self, rows: Sequence[Any]) -> None:
        """Rows of this very log that were kept elsewhere, as they were hashed; the derived tables
        lag behind them. Raises `StoreError` if they do not follow the last one here."""
        changed = first_changed(rows, self._chain)
        if changed is not None:
            raise StoreError(f"{self.path}: row {changed} does not continue it; nothing was added")
        try:
            with self._transaction():
                self._raw.executemany(_INSERT, [tuple(row) for row in rows])
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._forget_contexts()
        self._seq, self._chain = int(rows[-1].seq), str(rows[-1].chain_sha256)

    @property
    def lag(self) -> int:
        """Rows that the derived tables do not know yet: those of a log that a program without these
        tables has written."""
        return self._seq - self._derived

    def catch_up(self) -> None:
        """Fill the derived tables from the next rows that they do not know, in one transaction; a
        kill loses none and counts none twice. Where they held a wrong line they are emptied
        instead, once in a life. Raises `StoreError`, `StoreRefused` if they take none even so."""
        rows = self._query(
            "SELECT seq, kind, body FROM row WHERE seq > :seq ORDER BY seq LIMIT :most",
            {"seq": self._derived, "most": _CATCH_UP_ROWS},
        )
        lines = derived.Lines()
        for row in rows:
            if row.kind in derived.KINDS:
                body = self._whole(row.body)
                lines.extend(derived.lines_of(body["station_id"], row.seq, row.kind, body))
        try:
            with self._transaction():
                self._derive(lines, rows[-1].seq)
        except _WrongLineError as error:
            if self.derived_problem:
                raise
            self._derive_anew(error)
            return
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._derived = int(rows[-1].seq)

    def _derive(self, lines: derived.Lines, seq: int) -> None:
        """Within a transaction: what rows add to the derived tables, and up to which row."""
        try:
            derived.add(self._raw.executemany, lines)
            more = unsettled.add(self._raw, lines, seq)
        except sqlite3.IntegrityError as error:
            raise _WrongLineError(f"{self.path}: {error}") from error
        self._raw.execute("UPDATE derived SET seq = ?", (seq,))
        if self._unsettled is not None:
            self._unsettled = {state: n + more[state] for state, n in self._unsettled.items()}

    def _derive_anew(self, wrong: _WrongLineError) -> None:
        """Empty the derived tables, for `catch_up` to fill. Once in a life: what is wrong again is
        for a person to see to. Raises `StoreError`."""
        if self.derived_problem:
            return
        try:
            with self._transaction():
                for statement in (*derived.EMPTY, *unsettled.EMPTY):
                    self._raw.execute(statement)
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._derived, self._unsettled = 0, dict.fromkeys(unsettled.State, 0)
        self.derived_problem = (
            f"{wrong}: the derived tables held a line that is not of the log, and are made anew; "
            "find out which tool writes to this file"
        )

    def _see_to_unsettled(self) -> None:
        """Make the table of plates to see to anew where a program without it has written since. The
        mark follows a long log of plates that passed, so that the next start looks at few."""
        known = self._scalar("SELECT max(seq) FROM unsettled_upto") or 0
        is_behind = unsettled.is_behind(self._raw)
        if not is_behind and self._derived - known < _CATCH_UP_ROWS:
            return
        with self._transaction() as connection:
            for statement in unsettled.REBUILD if is_behind else unsettled.MARK:
                connection.exec_driver_sql(statement)

    def unsettled(self) -> dict[unsettled.State, int] | None:
        """How many plates somebody must still see to; None while the tables are being filled."""
        if self.lag > 0:
            return None
        if self._unsettled is None:
            self._unsettled = unsettled.counts(self._raw)
        return self._unsettled

    def head(self) -> tuple[int, str]:
        """Last sequence number and chain value."""
        return self._seq, self._chain

    def open_plates(self) -> list[Json]:
        """Bodies of opened rows without a result, oldest first."""
        return self._lacking("opened", "result")

    def results_without_actuation(self) -> list[Json]:
        """Bodies of results for which nobody wrote what the lamp was told, oldest first."""
        return self._lacking("result", "actuation")

    def passes_without_accept(self) -> list[str]:
        """Result ids of plates that passed in lives whose station had an accept output, and of
        which nobody wrote what that was told, oldest first. Such a plate was on its way when
        something ended: it is among the newest."""
        query = (
            "SELECT result_id FROM row AS asked WHERE seq > :since AND +kind = 'result' "
            "AND +verdict = 'PASS' AND NOT EXISTS (SELECT 1 FROM row "
            "WHERE result_id = asked.result_id AND +kind = 'accept') ORDER BY seq"
        )
        since = max(self._first_life_with_accept(), self._seq - _ON_THEIR_WAY_ROWS)
        return [row.result_id for row in self._query(query, {"since": since})]

    def _first_life_with_accept(self) -> int:
        """Number of the `start` row from which on every life had one, of the last lives."""
        found = self._query(
            "SELECT seq, body ->> :place AS has FROM row WHERE kind = 'change' "
            "AND body ->> '$.what' = 'start' ORDER BY seq DESC LIMIT :most",
            {"place": f"$.detail.{HAS_ACCEPT}", "most": _LIVES},
        )
        first = self._seq
        for row in found:
            if row.has is None:
                break
            first = int(row.seq)
        return first

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
        return self._whole(found[0].body)

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

    def unrevealed_seeds(self, most: int) -> list[Json]:
        """Bodies of the newest announced audit seeds that no later row reveals, newest first; of
        the last ones only."""
        told = self._query(_LAST_SEEDS, {"most": _MOST_SEEDS})
        reveals = self._query(_REVEALS, {"since": told[-1].seq if told else 0})
        # A seed may be announced again after it was revealed.
        revealed_at = {row.seed_sha256: row.seq for row in reveals}
        bodies = ((row.seq, json.loads(row.body)) for row in told)
        unrevealed = [body for seq, body in bodies if revealed_at.get(body["seed_sha256"], 0) < seq]
        return unrevealed[:most]

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

    def given(self) -> dict[str, str]:
        """What a person said last of each that holds from plate to plate; see station/given.py."""
        query = f"SELECT body ->> '$.detail.{VALUE}' FROM row WHERE seq = :seq"
        last = {what: self._query(query, {"seq": self._last_change(what)}) for what in GIVEN}
        return {what: str(found[0][0]) for what, found in last.items() if found}

    def signed_files(self) -> list[str]:
        """The sha256 of each commissioning file that was signed, the latest first."""
        return [row[0] for row in self._query(SIGNED_FILES, {})]

    def recipe_changes(self) -> list[Json]:
        """Bodies of the rows that propose, approve and activate recipes, in order."""
        return [json.loads(row.body) for row in self._query(RECIPE_CHANGES, {})]

    def model_changes(self) -> list[Json]:
        """Bodies of the rows that show what a model does, in order; of plates in the shadow, how
        many for each pair of models."""
        queries = (MODEL_CHANGES, SHADOWED)
        return [json.loads(row.body) for query in queries for row in self._query(query, {})]

    def shadow_changes(self) -> list[Json]:
        """Bodies of the rows that begin and end a model's shadow, in order."""
        return [json.loads(row.body) for row in self._query(SHADOW_CHANGES, {})]

    def comparison_changes(self) -> list[Json]:
        """Bodies of the rows of comparisons of models and of what people signed, in order."""
        return [json.loads(row.body) for row in self._query(COMPARISON_CHANGES, {})]

    def drift_changes(self) -> list[Json]:
        """Bodies of the rows of drift, in order; see station/drift_log.py."""
        return [json.loads(row.body) for row in self._query(DRIFT_CHANGES, {})]

    def of_result(self, result_id: str) -> list[Json]:
        """Bodies of every row about a result, in order."""
        query = "SELECT body FROM row WHERE result_id = :id ORDER BY seq"
        return [self._whole(row.body) for row in self._query(query, {"id": result_id})]

    def holds(self) -> list[Json]:
        """Bodies of the holds that nobody released, oldest first."""
        return [json.loads(row.body) for row in self._query(HOLDS, {})]

    def hold_ids(self) -> set[str]:
        """Of every hold that ever was."""
        rows = self._query("SELECT body ->> '$.hold_id' FROM row WHERE kind = 'hold'", {})
        return {row[0] for row in rows}

    def last_body(self, kind: str) -> Json | None:
        """The newest row of a kind."""
        query = "SELECT body FROM row WHERE kind = :kind ORDER BY seq DESC LIMIT 1"
        found = self._query(query, {"kind": kind})
        return self._whole(found[0].body) if found else None

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
            self._forget_contexts()
            self._unsettled = None
            raise
        finally:
            connection.rollback()

    def _forget_contexts(self) -> None:
        """Those of a transaction that was taken back are not there; others get their numbers."""
        self._packer = None
        self._contexts = Contexts(self._body_of)

    @property
    def _raw(self) -> sqlite3.Connection:
        """The driver's connection, for what is done for each row."""
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return raw

    def _failure(self, error: Exception) -> StoreError:
        cause = error.__cause__ or error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in _CODES_BUSY:
            return StoreRefused(f"{self.path}: another tool holds its write lock; close that tool")
        if code in _CODES_FULL:
            return StoreRefused(f"{self.path}: {cause}; free some space")
        return StoreError(f"{self.path}: {cause}")

    def _write(self, row: _Row, seq: int, link: str) -> tuple[int, str]:
        """Write a row, and the context that it names where there is none yet, after the row of this
        number and chain value; the number and chain value of the last one written."""
        packer = self._ready_packer()
        constants = packer.wanted(row.fields)
        if constants is not None:
            labels = {name: row.fields[name] for name in ("station_id", "written_at", "boot_id")}
            context = _Row.of(ContextBody.model_validate({**labels, "constants": constants}))
            seq, link = self._insert(context.kind, context.content, seq, link)
            packer.remember(seq, constants)
        packed = packer.pack(row.fields)
        content = row.content if packed is row.fields else _ENCODER.encode(packed)
        return self._insert(row.kind, content, seq, link)

    def _ready_packer(self) -> Packer:
        if self._packer is None:
            rows = self._raw.execute(_LAST_CONTEXTS).fetchall()
            self._packer = Packer((seq, json.loads(body)) for seq, body in reversed(rows))
        return self._packer

    def _insert(self, kind: str, content: str, seq: int, link: str) -> tuple[int, str]:
        body_sha256 = sha256_text(content)
        seq, link = seq + 1, chain(link, seq + 1, kind, body_sha256)
        self._raw.execute(_INSERT, (seq, kind, content, body_sha256, link))
        return seq, link

    def _find(self, row: _Row) -> int | None:
        """The row that says this already. Raises `ContradictionError` if one says something
        else."""
        if row.kind not in _ONCE_A_RESULT:
            values = (row.kind, row.fields["written_at"], row.content)
            same = self._raw.execute(_SAME, values).fetchone()
            return None if same is None else int(same[0])
        result_id = row.fields["result_id"]
        found = self._raw.execute(_OF_RESULT, (result_id, row.kind)).fetchone()
        if found is None:
            return None
        if _content(self._whole(found[1])) != _content(row.fields):
            raise ContradictionError(f"{row.kind} row of {result_id} says otherwise")
        return int(found[0])

    def _place(self, body: Body) -> tuple[int | None, _Row]:
        """The number of the row that says this already, if one does, and the row as it is written.
        Raises `ContradictionError`, also for a text that is no Unicode."""
        try:
            if isinstance(body, ReviewBody) and body.supersedes is not None:
                known, body = reviews.place(self._numbered(body.result_id), body)
                return known, _Row.of(body)
            row = _Row.of(body)
        except ValueError as error:
            raise ContradictionError(str(error)) from error
        return self._find(row), row

    def _numbered(self, result_id: str) -> list[Json]:
        found = self._raw.execute(_ALL_OF_RESULT, (result_id,))
        return [{"seq": seq, **self._whole(content)} for seq, content in found]

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
        return [self._whole(row.body) for row in found]

    def _last_change(self, what: str, before: int = 0) -> int:
        """Sequence number of the newest change row of this name, or of one so many before it; 0 if
        there is none."""
        query = (
            "SELECT seq FROM row WHERE kind = 'change' AND body ->> '$.what' = :what "
            "ORDER BY seq DESC LIMIT 1 OFFSET :before"
        )
        found = self._query(query, {"what": what, "before": before})
        return int(found[0].seq) if found else 0

    def _whole(self, body: str) -> Json:
        """What was recorded in a row. Raises `StoreError` if its context is not there."""
        try:
            return self._contexts.whole(json.loads(body))
        except LookupError as error:
            raise StoreError(f"{self.path}: {error}; see `vqi log verify`") from error

    def _body_of(self, seq: int) -> str | None:
        found = self._raw.execute("SELECT body FROM row WHERE seq = ?", (seq,)).fetchone()
        return None if found is None else str(found[0])

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
        changed = first_changed(rows, before)
        if changed is not None:
            raise StoreError(
                f"{self.path}: row {changed} is not the one that was written; keep this file "
                "as evidence, see `vqi log verify`, and restore a backup"
            )

    def _migrate(self) -> None:
        version = int(self._scalar("PRAGMA user_version") or 0)
        if version > VERSION:
            raise StoreError(
                f"{self.path}: schema {version}, this program knows {VERSION}; "
                "use the newer program"
            )
        if version == 0:
            see_that_none_was_lost(self.directory)
            with self._transaction() as connection:
                for statement in BEGIN:
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
        made = {row.number for row in self._query(_STEPS_MADE, {})} if self._has_steps() else set()
        for number, step in enumerate(STEPS, start=1):
            if number not in made:
                self._make(number, step)

    def _has_steps(self) -> bool:
        return bool(self._scalar("SELECT count(*) FROM sqlite_master WHERE name = 'schema_step'"))

    def _make(self, number: int, step: Step) -> None:
        with self._transaction() as connection:
            for statement in (STEP_TABLE, *step.statements):
                connection.exec_driver_sql(statement)
            connection.execute(
                text("INSERT INTO schema_step VALUES (:number, :name, :at)"),
                {"number": number, "name": step.name, "at": utc_now()},
            )

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
        # The size holds for a new file, and must come before WAL writes its first page.
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "recursive_triggers = ON",
            f"wal_autocheckpoint = {_WAL_PAGES}",
            f"journal_size_limit = {WAL_KEPT_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _content(fields: Json) -> Json:
    """What a row says, without when it was written and what the journal filled in."""
    filled = ("written_at", "images", "pixels_sha256", *FILLED_IN)
    return {key: value for key, value in fields.items() if key not in filled}
