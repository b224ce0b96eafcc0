"""The door of the page's own user: a second socket of a process, in a folder that only the group of
that user may enter, behind which less is allowed.

Not by the peer's user id: in the units' sandboxes (systemd.exec(5), PrivateUsers=) every other user
looks like nobody. Whoever comes in speaks for the person that it names; the row says so.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from station.ipc import Listener
from station.record import AnyBody, Body, ChangeBody, ReviewBody, rfc3339

_FOLDER = "page"
ACCOUNT = "vqi-page"
"""In rows that came through it, where otherwise a login name stands; also the group's name."""
MAX_CLIENTS = 32
"""Connections to one process; one more is closed at once: descriptors are left for others."""
MAX_ROWS = 64
"""Of one submission, which `station.ipc.MAX_PACKET_BYTES` bounds too."""
MAX_WAITING = 16
"""Submissions of the page in the journal's work; the station's own find room beside them."""
KINDS: tuple[type[Body], ...] = (ReviewBody, ChangeBody)
"""What a person may say, each with the account. No verdict, no actuation, nothing that a machine
measured."""
_CHANGES = ("recipe_proposed", "recipe_approved", "lamp_test", "model_flip_signed")
_OF_ACCOUNTS = "user "
"""Changes that the page may say; by all others later rows are judged, or they are nobody's yet."""
_AHEAD = timedelta(minutes=1)
"""Of a row's time, by this machine's clock, which is the page's too."""
_STATION_SAYS = frozenset(
    (
        *("start", "stop", "recording", "withheld_late", "commissioned"),
        *("halt", "resume", "ack", "relearn", "operator", "lot", "job", "serial"),
        *("recipe", "recipe_activated", "recipe_refused", "light", "output"),
        *("model_rollback", "model_parity", "limit_samples", "limit_samples_asked"),
        *("drift_limits", "drift_alarm", "drift_cleared", "drift_relearn"),
    )
)
"""Changes that only the station and `vqi commission sign` write; who asked is in them already."""


def door_of(path: Path) -> Path:
    """Beside a process's socket."""
    return path.parent / _FOLDER / path.name


def open_door(path: Path) -> Listener | None:
    """The second socket, where the folder for it is there (deploy/tmpfiles.d); its group is the
    folder's."""
    door = door_of(path)
    return Listener(door) if door.parent.is_dir() else None


def way_in(path: Path) -> Path:
    """The socket for a process of the page: the door where it may use it, else the main one, for a
    page that runs as the station's own user."""
    door = door_of(path)
    return door if os.access(door, os.W_OK) else path


def is_of_person(row: AnyBody | Body) -> bool:
    """Whether a person asked for this change, not the station itself."""
    return isinstance(row, ChangeBody) and row.what not in _STATION_SAYS


def objection(row: AnyBody | Body) -> str:
    """Why the page may not write this; empty if it may."""
    if not isinstance(row, KINDS):
        return f"the page may not write a row of kind {getattr(row, 'kind', '')!r}"
    if isinstance(row, ChangeBody) and not _may_say(row.what):
        return f"the page may not say {row.what!r}: send the station the command"
    if not _is_of_now_or_before(row.written_at):
        return f"the page may not write for {row.written_at[:40]!r}: no time, or one to come"
    return ""


def _is_of_now_or_before(label: str) -> bool:
    """A time to come would make every picture look old (I5)."""
    try:
        at = datetime.fromisoformat(label)
        return rfc3339(at) == label and at <= datetime.now(UTC) + _AHEAD
    except ValueError:
        return False


def _may_say(what: str) -> bool:
    return what in _CHANGES or what.startswith(_OF_ACCOUNTS)
