"""Brings what was done to accounts into the log: each act once, whoever dies in between.

An act is kept in the people's file until the log has it, so that a stolen account can be locked
while no journal process runs. Its row is a `change`: what, who did it, to whom; no secret.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

from station.config import Configuration
from station.ipc import NotAMessage, PacketTooLarge, PeerGone
from station.journal_client import JournalClient
from station.lock import take_lock
from station.log_lines import get_logger
from station.log_reader import Reader
from station.page_door import MAX_ROWS
from station.people import Act, PeopleError, PeopleStore
from station.qms import StoreError
from station.record import ChangeBody

_LOG = get_logger("people")
_LOCK = "acts.lock"
_WAIT_S = 5.0
_ANSWER_S = 10.0
_TELL_S = 2.0
"""Whoever did something waits so long to hear that it is in the log; then it goes on without."""
_TELL_AGAIN_S = 30.0
_STOP_S = 1.0
_ACT = "act"
"""Where the row names the act that it is of."""


def tell_log(configuration: Configuration, store: PeopleStore) -> str:
    """Send what is pending and wait for its commit; why it is still pending, empty if nothing is.
    Takes as long as a journal process may take to answer; raises nothing."""
    try:
        if not store.pending_acts():
            return ""
        lock = _take(store.directory / _LOCK)
        if lock is None:
            return "another process is just sending it"
        with os.fdopen(lock):
            return _send_all(configuration, store)
    except _FAILURES as error:
        return f"it is kept, and becomes a row of the log once that takes it ({error})"


_FAILURES = (
    *(PeerGone, NotAMessage, PacketTooLarge, TimeoutError, OSError),
    *(StoreError, PeopleError, sqlite3.Error),
)


def _take(path: Path) -> int | None:
    try:
        return take_lock(path, _WAIT_S)
    except OSError:
        return None


def _send_all(configuration: Configuration, store: PeopleStore) -> str:
    """Raises as `_send`."""
    problem = ""
    while not problem and (acts := store.pending_acts()):
        problem = _send(configuration, store, acts[:MAX_ROWS])
    return problem


def _send(configuration: Configuration, store: PeopleStore, acts: list[Act]) -> str:
    """Raises as the journal's client, the log's reader and the store do."""
    doubtful = {act.id for act in acts if act.was_sent}
    there = _in_log(configuration, doubtful) if doubtful else set()
    rows = [_row(configuration, act) for act in acts if act.id not in there]
    if rows:
        client = JournalClient(configuration.station.runtime_dir, is_page=True)
        try:
            client.connect(0.0)
            store.mark_sent(acts[-1].number)
            answer = client.submit(rows, timeout_s=_ANSWER_S)
        finally:
            client.close()
        if not answer["ok"]:
            return f"the journal process refused it: {answer['error']}"
    store.forget_acts(acts[-1].number)
    return ""


def _row(configuration: Configuration, act: Act) -> ChangeBody:
    detail = {**act.detail, _ACT: act.id}
    return ChangeBody(
        station_id=configuration.station.id, what=act.what, who=act.who, detail=detail
    )


def _in_log(configuration: Configuration, ids: set[str]) -> set[str]:
    """Those of the acts that are rows already. Raises `StoreError`."""
    with Reader(configuration.journal.directory) as reader:
        if reader.source != "live":
            raise StoreError("the log itself cannot be read, only its copy of a while ago")
        rows = reader.bodies("change")
        return {row["detail"][_ACT] for row in rows if row["detail"].get(_ACT) in ids}


class Teller:
    """Tells the log on a thread of its own, at once where something was done, else again after a
    while: a journal process that stands still holds up no request."""

    def __init__(self, configuration: Configuration, store: PeopleStore) -> None:
        self._configuration, self._store = configuration, store
        self._changed = threading.Condition()
        self._asked = self._told = 0
        """Times that somebody asked, and how many of them are dealt with."""
        self._problem = ""
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="people-log", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """False if it is still waiting for the journal process."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(_STOP_S)
        return not self._thread.is_alive()

    def tell(self, limit_s: float = _TELL_S) -> str:
        """Why the log does not know yet what was done; empty if it does."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._told >= mine, limit_s):
                return self._problem
        return "it is kept, and becomes a row of the log once that takes it (it did not answer yet)"

    def _run(self) -> None:
        while not self._is_stopping:
            asked = self._asked
            problem = self._once()
            with self._changed:
                self._told, self._problem = asked, problem
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda asked=asked: self._is_stopping or self._asked > asked,  # type: ignore[misc]
                    _TELL_AGAIN_S,
                )

    def _once(self) -> str:
        try:
            problem = tell_log(self._configuration, self._store)
        except Exception as error:  # noqa: BLE001  else nobody would ever tell the log again
            problem = repr(error)
        if problem:
            _LOG.warning("what was done to accounts is not in the log yet", why=problem)
        return problem
