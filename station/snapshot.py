"""The copy of the log for other tools.

    python -m station.snapshot JOURNAL/journal.db JOURNAL/journal-snapshot.db

Copied by a process of its own: what that takes of memory for a moment stays out of the journal's,
which runs for months.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import BinaryIO

from station.durable import sync
from station.log_copy import copy_log

_FREED_AT_ONCE = 16 << 20
_PAUSE_S = 0.02


def unfinished(snapshot: Path) -> Path:
    """Where a copy lies while it is made."""
    return snapshot.with_name(f"{snapshot.name}.new")


def publish(log: Path, snapshot: Path) -> None:
    """Copy the log, rename, sync the folder. Raises OSError, sqlite3.Error."""
    temporary = unfinished(snapshot)
    temporary.unlink(missing_ok=True)
    copy_log(log, temporary)
    temporary.chmod(0o644)
    with contextlib.ExitStack() as former:
        with contextlib.suppress(OSError):
            former.callback(give_room_back, former.enter_context(snapshot.open("rb+")))
        temporary.rename(snapshot)
        sync(snapshot.parent)


def give_room_back(copy: BinaryIO) -> None:
    """The copy before has no name any more: give its room back little by little, for whoever
    writes a record waits while the file system frees blocks. Not under a reader who still has it
    open: then whoever closes it last frees all."""
    if os.fstat(copy.fileno()).st_nlink:
        return
    try:
        fcntl.fcntl(copy, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # granted if nobody else has it open
    except OSError:
        return
    for size in range(copy.seek(0, os.SEEK_END), 0, -_FREED_AT_ONCE):
        copy.truncate(size)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    try:
        publish(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, sqlite3.Error) as error:
        sys.exit(str(error))
