"""The people of the station's page: who they are, what they may do, and what proves it is them.

One SQLite file in a folder of the page's own, read and written by its process and by `vqi user`,
never part of the log: what is secret stays here. What is done to an account is kept beside it, in
the same transaction, until the log has it as a row (station/people_log.py).

A rollback journal, not a write-ahead file: two processes write here, and SQLite before 3.51.3 can
corrupt a write-ahead file of two writers.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from station.ingress import Refused, admit, name_problem, words_problem
from station.passwords import (
    MIN_BADGE_CHARACTERS,
    Hasher,
    Weakness,
    WeakSecret,
    check_password,
    check_pin,
    is_pin,
)
from station.record import utc_now
from station.reviews import person as folded
from station.roles import Role

DATABASE = "people.db"
MAX_PEOPLE = 1000
MAX_PIN_FAILURES = 100
"""In a row; then the PIN is void, until its person sets one again (NIST SP 800-63B, 5.2.2)."""
_VERSION = 1
_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE person (
    name TEXT NOT NULL,
    folded TEXT NOT NULL PRIMARY KEY,
    full_name TEXT NOT NULL,
    role INTEGER NOT NULL,
    language TEXT NOT NULL DEFAULT '',
    password TEXT,
    pin TEXT,
    pin_failures INTEGER NOT NULL DEFAULT 0,
    badge TEXT UNIQUE,
    must_change INTEGER NOT NULL,
    is_locked INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    removed_at TEXT
) STRICT;
CREATE TABLE act (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    what TEXT NOT NULL,
    who TEXT NOT NULL,
    at TEXT NOT NULL,
    detail TEXT NOT NULL,
    was_sent INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE store (
    id TEXT NOT NULL,
    badge_salt BLOB NOT NULL,
    device_key BLOB NOT NULL,
    pins_counted INTEGER NOT NULL DEFAULT 0
) STRICT;
"""

_NOBODYS = {"station", "the station", "system", "systemd", "root", "vqi", "plc"}


class PeopleError(Exception):
    """Nothing was changed; `key` names why, for the page's catalogues, the message says it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Account:
    """What may be seen of a person's account."""

    name: str
    full_name: str
    role: Role
    language: str
    """Chosen by the person; empty: the browser says."""
    must_change: bool
    """The password was given by somebody else: it opens nothing but its own change."""
    is_locked: bool
    has_pin: bool
    has_badge: bool
    epoch: int
    """Sessions of an earlier one are over."""
    created_at: str
    removed_at: str | None

    @property
    def is_active(self) -> bool:
        return not self.is_locked and self.removed_at is None


@dataclass(frozen=True, slots=True)
class Act:
    """What was done to an account, and the log does not know yet."""

    number: int
    id: str
    """Of this store and act, once for ever."""
    what: str
    who: str
    detail: dict[str, str]
    was_sent: bool
    """Whether the log may have it, though nobody heard so."""


class PeopleStore:
    """For one process; its threads may share it."""

    def __init__(self, directory: Path, hasher: Hasher | None = None) -> None:
        """Open the store, made anew where there is none. Raises `PeopleError`."""
        self.directory, self.path = directory, directory / DATABASE
        self._hasher = hasher or Hasher()
        self._writing, self._reading = threading.Lock(), threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(self.path)
            # Two, so that nobody reads what is not committed.
            self._writer, self._reader = _connect(self.path), _connect(self.path)
            self._id, self._badge_salt, self.device_key = self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise PeopleError("store", f"{self.path}: cannot be used: {error}") from error

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- reading --------------------------------------------------------------------------------

    def accounts(self) -> list[Account]:
        """All people by name, also those that were removed."""
        return [_account(row) for row in self._rows("SELECT * FROM person ORDER BY folded")]

    def find(self, name: str) -> Account | None:
        """The person of that name, in any spelling; None if there is none, or no longer."""
        row = self._row(name)
        return _account(row) if row is not None and row["removed_at"] is None else None

    def has_people(self) -> bool:
        """Whether anybody can sign in."""
        return bool(self._rows("SELECT 1 FROM person WHERE removed_at IS NULL LIMIT 1"))

    def by_badge(self, text: str) -> Account | None:
        """Whose badge it is. Takes as long as any; raises `TooBusy`."""
        kept = self._hasher.badge(text.strip(" "), self._badge_salt)
        found = self._rows("SELECT * FROM person WHERE badge = ? AND removed_at IS NULL", kept)
        return _account(found[0]) if found else None

    def by_password(self, name: str, password: str) -> Account | None:
        """The account whose password it is, as it was when the hash was read: looking takes its
        turn, and the account may be another one meanwhile. None if it is not; takes as long for a
        name that nobody has. Raises `TooBusy`."""
        return self._proven(name, "password", password)

    def by_pin(self, name: str, pin: str) -> Account | None:
        """As of a password. Many wrong ones in a row make the PIN void."""
        return self._proven(name, "pin", pin)

    def by_secret(self, name: str, secret: str) -> Account | None:
        """By the person's password or PIN; which of them it can be its length says."""
        return self._proven(name, "pin" if is_pin(secret) else "password", secret)

    def _proven(self, name: str, which: Literal["password", "pin"], secret: str) -> Account | None:
        row = self._row(name)
        kept: str | None = row[which] if row is not None and row["removed_at"] is None else None
        is_right = self._hasher.is_right(kept, secret)
        if which == "pin" and (not is_right or (row is not None and row["pin_failures"])):
            self._count_pin(row["name"] if row else "", is_right)
        if row is None or kept is None or not is_right:
            return None
        if self._hasher.is_outdated(kept):
            self._renew(name, which, kept, self._hasher.hash(secret))
        return _account(row)

    def _count_pin(self, name: str, is_right: bool) -> None:
        """Kept in the file: a restart of the page gives no further tries. Raises `PeopleError`
        where that cannot be kept, for then nothing bounds them."""
        after = "0" if is_right else "pin_failures + 1"
        person = (folded(name),)
        with self._change() as connection:
            # Written for a name that nobody has, too: it takes as long.
            connection.execute("UPDATE store SET pins_counted = pins_counted + 1")
            connection.execute(f"UPDATE person SET pin_failures = {after} WHERE folded = ?", person)
            voided = connection.execute(
                "UPDATE person SET pin = NULL, pin_failures = 0 "
                f"WHERE folded = ? AND pin IS NOT NULL AND pin_failures >= {MAX_PIN_FAILURES}",
                person,
            )
            if voided.rowcount:
                detail = {"name": name, "why": f"{MAX_PIN_FAILURES} wrong ones in a row"}
                _note(connection, "user PIN removed", "station", detail)

    def _renew(self, name: str, which: str, before: str, after: str) -> None:
        """With the parameters of today. The old hash is as right: a busy file is no failure."""
        statement = f"UPDATE person SET {which} = ? WHERE folded = ? AND {which} = ?"
        with suppress(sqlite3.Error, PeopleError), self._change() as connection:
            connection.execute(statement, (after, folded(name), before))

    # --- changing -------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        full_name: str,
        role: Role,
        password: str,
        by: str,
        *,
        must_change: bool = True,
    ) -> Account:
        """A new person. Raises `PeopleError`, `WeakSecret`, `TooBusy`."""
        _check_names(name, full_name)
        check_password(password, name, full_name)
        kept = self._hasher.hash(password)
        detail = {"name": name, "full_name": full_name, "role": role.word}
        with self._change() as connection:
            self._check_is_new(name)
            connection.execute(
                "INSERT INTO person (name, folded, full_name, role, password, must_change, "
                "created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, folded(name), full_name, int(role), kept, must_change, utc_now()),
            )
            _note(connection, "user added", by, detail)
        return self._known(name)

    def reset(self, name: str, password: str, by: str) -> None:
        """A password that the person has to change; a PIN is void. Raises as `add`."""
        account = self._known(name)
        check_password(password, account.name, account.full_name)
        kept = {
            "password": self._hasher.hash(password),
            "pin": None,
            "pin_failures": 0,
            "must_change": 1,
        }
        self._set(name, kept, "user password reset", by)

    def change_password(self, name: str, password: str, epoch: int | None = None) -> int:
        """By the person; all sessions end. `epoch`: the account's, of which the person proved to be
        the owner. The new one. Raises as `add`, `PeopleError` if it is another one by now."""
        account = self._known(name)
        check_password(password, account.name, account.full_name)
        if self.by_password(name, password):
            raise PeopleError("same_password", "the new password is the old one; choose another")
        kept = {"password": self._hasher.hash(password), "must_change": 0}
        return self._set(name, kept, "user password changed", account.name, epoch=epoch)

    def set_pin(self, name: str, pin: str, epoch: int | None = None) -> int:
        """As `change_password`; empty takes it away."""
        if pin:
            check_pin(pin)
        kept = self._hasher.hash(pin) if pin else None
        values = {"pin": kept, "pin_failures": 0}
        what = f"user PIN {'set' if pin else 'removed'}"
        return self._set(name, values, what, name, epoch=epoch)

    def set_badge(self, name: str, text: str, epoch: int | None = None) -> int:
        """By the person; empty takes it away. Raises as `set_pin`."""
        given = admit(text) if text else ""
        if isinstance(given, Refused) or (text and len(given) < MIN_BADGE_CHARACTERS):
            raise WeakSecret(Weakness.NO_BADGE)
        kept = self._hasher.badge(given, self._badge_salt) if given else None
        what = f"user badge {'set' if given else 'removed'}"
        try:
            return self._set(name, {"badge": kept}, what, name, epoch=epoch)
        except sqlite3.IntegrityError as error:
            raise PeopleError("badge_taken", "this badge is another person's") from error

    def set_role(self, name: str, role: Role, by: str) -> None:
        """Sessions of the person end. Raises `PeopleError`."""
        before = self._known(name).role
        if role != before:
            detail = {"before": before.word, "role": role.word}
            self._set(name, {"role": int(role)}, "user role", by, detail)

    def set_locked(self, name: str, is_locked: bool, by: str) -> None:
        """Nobody signs in as this person until it is unlocked. Raises `PeopleError`."""
        if self._known(name).is_locked != is_locked:
            what = "user locked" if is_locked else "user unlocked"
            self._set(name, {"is_locked": int(is_locked)}, what, by)

    def remove(self, name: str, by: str) -> None:
        """For good: the name stays known, and is nobody else's ever. Raises `PeopleError`."""
        gone = {"password": None, "pin": None, "badge": None, "removed_at": utc_now()}
        self._set(name, gone, "user removed", by)

    def set_language(self, name: str, language: str) -> None:
        """What the person reads; nothing for the log, and no session ends. Raises `PeopleError`."""
        with self._change() as connection:
            connection.execute(
                "UPDATE person SET language = ? WHERE folded = ?", (language, folded(name))
            )

    def _set(
        self,
        name: str,
        values: dict[str, Any],
        what: str,
        by: str,
        detail: dict[str, str] | None = None,
        epoch: int | None = None,
    ) -> int:
        """One change of an account and its act; sessions that began before it are over. The new
        epoch. Raises `PeopleError` if the account has not this `epoch` any more."""
        with self._change() as connection:
            account = self._known(name)
            if epoch not in (None, account.epoch):
                raise PeopleError("changed", f"the account of {name!r} was changed meanwhile")
            columns = ", ".join(f"{column} = ?" for column in values)
            connection.execute(
                f"UPDATE person SET {columns}, epoch = epoch + 1 WHERE folded = ?",
                (*values.values(), folded(name)),
            )
            _note(connection, what, by, {"name": account.name, **(detail or {})})
        return account.epoch + 1

    def _known(self, name: str) -> Account:
        account = self.find(name)
        if account is None:
            raise PeopleError("unknown", f"there is no person {name!r}; see `vqi user list`")
        return account

    def _check_is_new(self, name: str) -> None:
        row = self._row(name)
        if row is not None:
            state = "was" if row["removed_at"] else "is"
            raise PeopleError(
                "taken",
                f"{row['name']!r} {state} somebody already: a name stays one person's in the log "
                "for ever; choose another, as with a number",
            )
        if len(self._rows("SELECT 1 FROM person")) >= MAX_PEOPLE:
            raise PeopleError("full", f"there are {MAX_PEOPLE} people; no more are kept")

    # --- acts -----------------------------------------------------------------------------------

    def pending_acts(self) -> list[Act]:
        """What the log does not know yet, in order."""
        return [
            Act(
                number=row["number"],
                id=f"{self._id}-{row['number']}",
                what=row["what"],
                who=row["who"],
                detail={**json.loads(row["detail"]), "at": row["at"]},
                was_sent=bool(row["was_sent"]),
            )
            for row in self._rows("SELECT * FROM act ORDER BY number")
        ]

    def mark_sent(self, last: int) -> None:
        """Acts up to this number are on their way."""
        with self._change() as connection:
            connection.execute("UPDATE act SET was_sent = 1 WHERE number <= ?", (last,))

    def forget_acts(self, last: int) -> None:
        """The log has the acts up to this number."""
        with self._change() as connection:
            connection.execute("DELETE FROM act WHERE number <= ?", (last,))

    # --- the file -------------------------------------------------------------------------------

    def _prepare(self) -> tuple[str, bytes, bytes]:
        with self._change() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise PeopleError("store", f"{self.path} was written by a newer program")
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                made = (secrets.token_hex(4), secrets.token_bytes(16), secrets.token_bytes(32))
                connection.execute(
                    "INSERT INTO store (id, badge_salt, device_key) VALUES (?, ?, ?)", made
                )
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            row = connection.execute("SELECT id, badge_salt, device_key FROM store").fetchone()
        return row["id"], row["badge_salt"], row["device_key"]

    def _row(self, name: str) -> sqlite3.Row | None:
        found = self._rows("SELECT * FROM person WHERE folded = ?", folded(name))
        return found[0] if found else None

    def _rows(self, statement: str, *values: str) -> list[sqlite3.Row]:
        with self._reading:
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable at its end. Raises `PeopleError` if it cannot be written."""
        connection = self._writer
        with self._writing:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise PeopleError("store", f"{self.path}: cannot be written: {error}") from error
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


def _make_private(path: Path) -> None:
    """The file for its owner alone; SQLite gives its rollback journal the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    # EXTRA: the folder is synced, too, after the rollback journal is gone from it.
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _account(row: sqlite3.Row) -> Account:
    return Account(
        name=row["name"],
        full_name=row["full_name"],
        role=Role(row["role"]),
        language=row["language"],
        must_change=bool(row["must_change"]),
        is_locked=bool(row["is_locked"]),
        has_pin=row["pin"] is not None,
        has_badge=row["badge"] is not None,
        epoch=row["epoch"],
        created_at=row["created_at"],
        removed_at=row["removed_at"],
    )


def _note(connection: sqlite3.Connection, what: str, who: str, detail: dict[str, str]) -> None:
    connection.execute(
        "INSERT INTO act (what, who, at, detail) VALUES (?, ?, ?, ?)",
        (what, who, utc_now(), json.dumps(detail)),
    )


def _check_names(name: str, full_name: str) -> None:
    problem = name_problem("name", name) or words_problem("full name", full_name)
    if folded(name) in _NOBODYS:
        problem = f"{name!r} is no person's name: rows of the log say it of the station itself"
    if not problem and not full_name:
        problem = "the full name is missing: it is printed beside what this person signs"
    if problem:
        raise PeopleError("name", problem)
