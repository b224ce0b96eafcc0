"""Brings what was done to accounts into the log: each act once, whoever dies in between.

An act is kept in the people's file until the log has it, so that a stolen account can be locked
while no journal process runs. Its row is a `change`: what, who did it, to whom; no secret.
"""

from __future__ import annotations

import os
from pathlib import Path

from station.config import Configuration
from station.ipc import NotAMessage, PeerGone
from station.journal import JournalClient
from station.lock import take_lock
from station.log_reader import Reader
from station.people import Act, PeopleStore
from station.qms import StoreError
from station.record import ChangeBody

_LOCK = "acts.lock"
_WAIT_S = 5.0
_ACT = "act"
"""Where the row names the act that it is of."""


def tell_log(configuration: Configuration, store: PeopleStore) -> str:
    """Send what is pending and wait for its commit; why it is still pending, empty if nothing is.
    Takes as long as a journal process may take to answer; raises nothing."""
    if not store.pending_acts():
        return ""
    lock = _take(store.directory / _LOCK)
    if lock is None:
        return "another process is just sending it"
    try:
        return _send(configuration, store)
    except (PeerGone, NotAMessage, TimeoutError, OSError, StoreError) as error:
        return f"it is kept, and becomes a row of the log once that takes it ({error})"
    finally:
        os.close(lock)


def _take(path: Path) -> int | None:
    try:
        return take_lock(path, _WAIT_S)
    except OSError:
        return None


def _send(configuration: Configuration, store: PeopleStore) -> str:
    """Raises as the journal's client and the log's reader do."""
    acts = store.pending_acts()
    doubtful = {act.id for act in acts if act.was_sent}
    there = _in_log(configuration, doubtful) if doubtful else set()
    rows = [_row(configuration, act) for act in acts if act.id not in there]
    if rows:
        client = JournalClient(configuration.station.runtime_dir, is_page=True)
        try:
            client.connect(0.0)
            store.mark_sent(acts[-1].number)
            answer = client.submit(rows)
        finally:
            client.close()
        if not answer["ok"]:
            return f"the journal process refused it: {answer['error']}"
    if acts:
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
