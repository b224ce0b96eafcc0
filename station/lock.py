"""One process of a kind: a lock that the kernel drops with its owner."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

JOURNAL_LOCK = "lock"
"""In the log's folder: held by the one process that writes it."""
STATION_LOCK = "station.lock"
"""Held by the one station of a runtime folder."""
LAMP_LOCK = "lamp.lock"
"""Held by whoever owns the stack light and the outputs."""
SHADOW_LOCK = "shadow.lock"
"""Held by the process that scores plates with a model in the shadow."""
WAIT_S = 3.0
"""A predecessor that is just ending is waited for so long."""
_RETRY_S = 0.02


def take_lock(path: Path, wait_s: float = WAIT_S) -> int | None:
    """A descriptor that holds the lock until it is closed; None if another process keeps it.

    Makes the folder. Raises OSError if folder or file cannot be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(lock)
                    return None
                time.sleep(_RETRY_S)
    except OSError:
        os.close(lock)
        raise
