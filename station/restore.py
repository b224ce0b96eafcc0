"""A backup's copy put in the place of a log that was lost: all that a station needs to go on, and
what the plant's database has of the rows since.

The log has its name only once everything else is there. Its newest row says that it was restored,
and up to which number plates may have been given an id by rows that are lost: none is given twice.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from station.backup import FOLDERS, BackupError, copy_picture, live_pictures
from station.config import Configuration
from station.durable import sync
from station.lock import JOURNAL_LOCK, take_lock
from station.log_reader import Reader
from station.log_verify import verify
from station.plant import ChainError, fork
from station.qms import DATABASE, IMAGES, Store, StoreError
from station.recipes import Named, RecipeFolder, register
from station.record import ChangeBody, RestoredBody
from station.signed_note import PUBLIC_KEY

if TYPE_CHECKING:
    from station.plant import Hub

PLATES_PER_S: Final = 20.0
"""No line is faster. So many plates may have had an id since the last row that is known; two
restores of one copy give none twice either."""
_COMING = "restoring"
_LOCK_WAIT_S = 1.0


class RestoreError(Exception):
    """No log was put in place; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A log that is in place again."""

    directory: str
    copy_rows: int
    plant_rows: int
    """That came after the copy, from the plant's database."""
    sequence: int
    """No plate number up to this is given again."""
    pictures: int
    missing_pictures: int
    """That rows name and that the backup does not have, or not as they were recorded."""


def restore(
    configuration: Configuration,
    generation: Path,
    hub: Hub | None,
    last_sequence: int | None,
    who: str,
    why: str,
) -> Restored:
    """Put a generation in the place of the configured log. `last_sequence`: the highest plate
    number that is known to anybody; None where nobody can say, and then it is bounded by the time
    since. Raises `RestoreError`, `PlantError`."""
    journal = configuration.journal.directory
    with _only_writer(journal):
        _refuse(configuration, generation)
        coming = journal / _COMING
        shutil.rmtree(coming, ignore_errors=True)
        coming.mkdir()
        shutil.copyfile(generation / DATABASE, coming / DATABASE)
        with Store(coming) as store:
            copy_rows, copy_chain = store.head()
            plant_rows = _take_from_plant(store, hub, configuration.station.id)
            sequence = _last_given(store, last_sequence)
            body = RestoredBody(
                station_id=configuration.station.id,
                generation=generation.name,
                copy_rows=copy_rows,
                copy_chain_sha256=copy_chain,
                plant_rows=plant_rows,
                sequence=sequence,
                who=who,
                why=why,
            )
            store.append([body])
            while store.lag:
                store.catch_up()
            _put_recipes(store, RecipeFolder.of(configuration))
        _put_files(generation, journal)
        pictures, missing = _put_pictures(coming / DATABASE, generation.parent, journal)
        sync(coming / DATABASE)
        (coming / DATABASE).rename(journal / DATABASE)
        sync(journal)
        shutil.rmtree(coming)
        return Restored(str(journal), copy_rows, plant_rows, sequence, pictures, missing)


@contextmanager
def _only_writer(journal: Path) -> Iterator[None]:
    """Nobody else writes this log meanwhile. Raises `RestoreError`, also for what goes wrong."""
    try:
        lock = take_lock(journal / JOURNAL_LOCK, _LOCK_WAIT_S)
        if lock is None:
            raise RestoreError(f"{journal}: its journal process runs; stop all of the station")
        try:
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise RestoreError(f"{error.filename or journal}: {error.strerror or error}") from error
    except (sqlite3.Error, StoreError) as error:
        raise RestoreError(str(error)) from error


def _refuse(configuration: Configuration, generation: Path) -> None:
    journal = configuration.journal.directory
    # A WAL that was left behind would be read into whatever log lies beside it.
    if there := sorted(journal.glob(f"{DATABASE}*")):
        raise RestoreError(f"{there[0]}: a log lies there; move {journal} away, and keep it")
    with Reader(generation) as copy:
        found = verify(copy, with_images=False)
        begun_by = [json.loads(row.body)["station_id"] for row in copy.stored(1, 1)]
    if found.findings:
        raise RestoreError(f"{generation}: {found.findings[0]}; see `vqi log verify`")
    if begun_by != [configuration.station.id]:
        raise RestoreError(
            f"{generation}: is of station {', '.join(begun_by)}, station.id is "
            f"{configuration.station.id}"
        )


def _take_from_plant(store: Store, hub: Hub | None, station_id: str) -> int:
    """How many rows; the log goes on where the plant's ends, so that it has the rest sent."""
    if hub is None:
        return 0
    seq, link = store.head()
    there = hub.chain_at(station_id, seq)
    if there not in (None, link):
        raise ChainError(fork(station_id, seq))
    for page in hub.rows_after(station_id, seq):
        store.go_on_with(page)
    return store.head()[0] - seq


def _last_given(store: Store, last_sequence: int | None) -> int:
    known = max(store.last_sequence(), last_sequence or 0)
    if last_sequence is not None:
        return known
    label = store.newest_label()
    if label is None:
        return known
    since_s = (datetime.now(UTC) - datetime.fromisoformat(label)).total_seconds()
    if since_s < 0:
        raise RestoreError(
            f"the newest row that is known is of {label}, this clock says an earlier time: set it "
            "right, or say by --last-sequence which plate number was the last"
        )
    return known + math.ceil(since_s * PLATES_PER_S)


def _put_recipes(store: Store, folder: RecipeFolder) -> None:
    """Each version as the row that proposed it has it, and which one judges."""
    bodies = store.recipe_changes()
    known = register(bodies)
    texts = {version.sha256 for version in known.versions.values()}
    for row in map(ChangeBody.of_log, bodies):
        if row.detail.get("sha256") in texts:
            folder.keep_proposed(row, known)
    if (active := known.active) is not None:
        named = {"id": active.id, "version": active.version, "sha256": active.sha256}
        folder.activate(Named.model_validate({**named, "who": "station"}))


def _put_files(generation: Path, journal: Path) -> None:
    """What is there already is newer."""
    names = [PUBLIC_KEY, *(f"{name}/**/*" for name in FOLDERS)]
    for source in (path for name in names for path in sorted(generation.glob(name))):
        target = journal / source.relative_to(generation)
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            sync(target)
            sync(target.parent)


def _put_pictures(log: Path, backups: Path, journal: Path) -> tuple[int, int]:
    """How many rows of the log name, and how many of them could not be had."""
    count = missing = 0
    folders = set()
    for path, sha256, _ in live_pictures(log, 0):
        count += 1
        target = journal / IMAGES / path
        target.parent.mkdir(parents=True, exist_ok=True)
        folders.add(target.parent)
        try:
            copy_picture(backups / IMAGES / path, target, sha256)
        except (FileNotFoundError, BackupError):
            target.unlink(missing_ok=True)
            missing += 1
    for folder in folders:
        sync(folder)
    return count, missing
