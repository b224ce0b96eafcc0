"""The log, copied whole while it is written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import time
from pathlib import Path

from station.durable import sync
from station.schema import PAGE_BYTES

_STEP_BYTES = 1 << 20
"""On its way to the disk at once: a record's sync waits for no more than that."""
_PAUSES = 3
"""Of its time the disk is left to others."""
_LEAST_PAUSE_S = 0.002
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # sync_file_range(2)


def copy_log(log: Path, target: Path) -> None:
    """Copy the log to a new file `target`, on the disk when this returns. Raises OSError,
    sqlite3.Error.

    Little by little, each part written out before the next: a long log that is synced in one piece
    keeps the disk from whoever writes a record for as long as the disk takes for all of it. Through
    one reading transaction: a commit meanwhile neither waits nor makes it begin again; the
    write-ahead file grows by what is committed until the end.
    """
    with (
        contextlib.closing(
            sqlite3.connect(f"{log.absolute().as_uri()}?mode=ro", uri=True)
        ) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
        target.open("rb") as file,
    ):
        source.isolation_level = None
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        copy.execute("PRAGMA synchronous = OFF")  # the last line is what syncs
        source.backup(
            copy,
            pages=_STEP_BYTES // PAGE_BYTES,
            progress=lambda *_: _write_out(file.fileno()),
        )
        copy.execute("PRAGMA journal_mode = DELETE")
    sync(target)


def _write_out(descriptor: int) -> None:
    """Have the disk take what was written, and leave it to others for a while."""
    began = time.monotonic()
    try:
        written = ctypes.CDLL(None).sync_file_range(
            descriptor,
            ctypes.c_int64(0),
            ctypes.c_int64(0),
            ctypes.c_uint(_WAIT_BEFORE | _WRITE | _WAIT_AFTER),
        )
    except AttributeError:  # another C library than glibc
        written = -1
    if written != 0:
        os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(max(_LEAST_PAUSE_S, _PAUSES * (time.monotonic() - began)))
