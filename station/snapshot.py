"""The copy of the log for other tools.

    python -m station.snapshot JOURNAL/journal.db JOURNAL/journal-snapshot.db

Copied by a process of its own: what that takes of memory for a moment stays out of the journal's,
which runs for months.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

from station.durable import sync


def unfinished(snapshot: Path) -> Path:
    """Where a copy lies while it is made."""
    return snapshot.with_name(f"{snapshot.name}.new")


def publish(log: Path, snapshot: Path) -> None:
    """Copy the log through a reading connection; write, sync, rename, sync the folder. Raises
    OSError, sqlite3.Error."""
    temporary = unfinished(snapshot)
    temporary.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(temporary)) as copy,
    ):
        # In one step: between two, a commit would make it begin again, on a live log for ever.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
    temporary.chmod(0o644)
    sync(temporary)
    temporary.rename(snapshot)
    sync(snapshot.parent)


if __name__ == "__main__":
    try:
        publish(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, sqlite3.Error) as error:
        sys.exit(str(error))
