"""A verified copy of the log and its pictures, made beside a running station.

A folder of backups holds `images/`, content-named and common to all, and a folder for each
generation with `journal.db` and `manifest.json`. A generation has its name only once its chain was
recomputed and its pictures were read, so a backup that is killed leaves the last good one.

A picture that the log names and no longer has, or has changed, ends one try, so that a person may
put it right; the next one makes a generation that names it as damaged, for rows must not wait for a
picture that will never be there again.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from station.durable import sync
from station.lock import take_lock
from station.log_copy import copy_log
from station.log_reader import Reader
from station.log_verify import Verification, verify
from station.qms import DATABASE, IMAGES, StoreError
from station.signed_note import PUBLIC_KEY

Json = dict[str, Any]
MARKER = "vqi-backup.json"
MANIFEST = "manifest.json"
FOLDERS = ("models", "precision")
"""Of the log's own, as they lie there: what a station may need to start. Recipes are in its rows.
"""
_DAMAGED = "damaged.json"
"""Paths of the pictures that the last try did not find as they were recorded."""
_MOST_NAMED = 1000
"""Damaged pictures that a file names."""
_CODES_BAD_DISK = {errno.EIO, errno.EBADMSG, errno.EUCLEAN}
_INCOMING = "incoming"
_GENERATION = re.compile(r"\d{8}T\d{6}\.\d{6}Z")
_NAMED_BY = "%Y%m%dT%H%M%S.%fZ"
_SAMPLE = 200
"""Pictures of earlier backups that are read again."""
_RESERVE = 50 * 10**6
_ROUNDS = 5
"""A picture that a rule removes while it is copied begins another round."""
_LOCK_WAIT_S = 1.0


class BackupError(Exception):
    """No backup was made; the message says why and what to do. The last good one is as it was."""


class DamagedPicture(BackupError):
    """A picture of the log is not what was recorded."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A generation that was made and verified."""

    directory: str
    generation: str
    head_seq: int
    head_chain_sha256: str
    pictures: int
    copied: int
    took_s: float
    problem: str
    """Which pictures it lacks; empty if it is whole."""


def make_backup(journal: Path, directory: Path, keep: int, is_new: bool, read_all: bool) -> Backup:
    """Copy the log in `journal` to a new generation in `directory` and verify it.

    `is_new`: a folder that holds no backups is begun. `read_all`: every picture is read again, not
    only the new ones and a sample. Raises `BackupError`.
    """
    began = time.monotonic()
    try:
        _begin(journal, directory, is_new)
        lock = take_lock(directory / "lock", _LOCK_WAIT_S)
        if lock is None:
            raise BackupError(f"{directory}: another backup is being made there")
        try:
            return _make(journal, directory, keep, read_all, began)
        finally:
            os.close(lock)
    except OSError as error:
        advice = "; free some space there" if error.errno == errno.ENOSPC else ""
        raise BackupError(f"{directory}: {error.strerror or error}{advice}") from error
    except (sqlite3.Error, StoreError) as error:
        raise BackupError(f"{journal}: {error}") from error


def generations(directory: Path) -> list[str]:
    """Names of the verified copies in a folder of backups, oldest first. A folder that a person
    gave another name is that person's."""
    names = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST}"))
    return [name for name in names if _GENERATION.fullmatch(name)]


def read_manifest(directory: Path, generation: str) -> Json:
    manifest: Json = json.loads((directory / generation / MANIFEST).read_text())
    return manifest


def is_whole(manifest: Json) -> bool:
    """Whether the generation has every picture that its log says is there."""
    return not manifest.get("damaged")


def _begin(journal: Path, directory: Path, is_new: bool) -> None:
    """The marker keeps a folder over which no disk is mounted, and another station's, from being
    taken for this one's."""
    marker, ours = directory / MARKER, {"first_chain_sha256": _first_link(journal)}
    if is_new and not marker.exists():
        directory.mkdir(exist_ok=True)
        if any(directory.iterdir()):
            raise BackupError(f"{directory}: is not empty and holds no backups; name another")
        marker.write_text(json.dumps(ours) + "\n")
    try:
        found = json.loads(marker.read_text())
    except FileNotFoundError as error:
        raise BackupError(
            f"{directory}: holds no backups; if its disk is there, begin it once with "
            f"`vqi log backup --to {directory}`"
        ) from error
    if found != ours:
        raise BackupError(f"{directory}: holds backups of another log; name another")


def _first_link(journal: Path) -> str:
    """The chain value of a log's first row: no other log has it."""
    uri = f"{(journal / DATABASE).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as log:
        found = log.execute("SELECT chain_sha256 FROM row WHERE seq = 1").fetchone()
    if found is None:
        raise BackupError(f"{journal}: the log has no rows yet")
    return str(found[0])


def _make(journal: Path, directory: Path, keep: int, read_all: bool, began: float) -> Backup:
    incoming = directory / _INCOMING
    shutil.rmtree(incoming, ignore_errors=True)
    before, met_before = _newest_whole(directory), _met_before(directory)
    copied, met = list[str](), set(met_before)
    for _ in range(_ROUNDS):
        incoming.mkdir(exist_ok=True)
        _copy_database(journal, incoming)
        _copy_key(journal, incoming)
        _copy_folders(journal, directory)
        since = _seen(incoming / DATABASE, before)
        damaged = _copy_pictures(journal, directory, since, copied)
        # What a rule removed has its tombstone before it goes: in the next copy of the log.
        if damaged.keys() <= met:
            break
        met |= damaged.keys()
    else:
        raise BackupError(f"{journal}: pictures go faster than they are copied: {min(damaged)}")
    _remember(directory, damaged)
    problem = _damage_text(list(damaged.values()))
    if damaged and met_before.isdisjoint(damaged):
        raise BackupError(
            f"{problem}; put back what was recorded, else the next try makes a copy without"
        )
    found = _verified(directory, copied, damaged, read_all)
    _write_manifest(incoming, found, copied, damaged)
    name = _publish(directory)
    _forget(directory, keep, name)
    return Backup(
        directory=str(directory.absolute()),
        generation=name,
        head_seq=found.rows,
        head_chain_sha256=found.head,
        pictures=found.images - found.tombstones - len(damaged),
        copied=len(copied),
        took_s=round(time.monotonic() - began, 3),
        problem=problem,
    )


def _newest_whole(directory: Path) -> Json | None:
    """A later one lacks pictures, which may have been put back."""
    manifests = (read_manifest(directory, name) for name in reversed(generations(directory)))
    return next(filter(is_whole, manifests), None)


def _met_before(directory: Path) -> set[str]:
    try:
        return set(json.loads((directory / _DAMAGED).read_text()))
    except FileNotFoundError:
        return set()


def _remember(directory: Path, damaged: dict[str, str]) -> None:
    if not damaged:
        (directory / _DAMAGED).unlink(missing_ok=True)
        return
    temporary = directory / _INCOMING / _DAMAGED
    temporary.write_text(json.dumps(list(damaged)[:_MOST_NAMED]) + "\n")
    sync(temporary)
    temporary.rename(directory / _DAMAGED)


def _damage_text(damages: list[str]) -> str:
    """Empty if there are none."""
    if not damages:
        return ""
    others = f", and {len(damages) - 1} more pictures" if damages[1:] else ""
    return f"{damages[0]}{others}; see `vqi log verify`"


def _copy_database(journal: Path, incoming: Path) -> None:
    target = incoming / DATABASE
    target.unlink(missing_ok=True)
    _see_room(incoming, (journal / DATABASE).stat().st_size)
    copy_log(journal / DATABASE, target)


def _copy_key(journal: Path, incoming: Path) -> None:
    """What the copy's checkpoints are checked with; there may be none."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(journal / PUBLIC_KEY, incoming / PUBLIC_KEY)


def _copy_folders(journal: Path, directory: Path) -> None:
    """What the generation before has too is a second name of its file."""
    incoming, names = directory / _INCOMING, generations(directory)
    before = directory / names[-1] if names else None
    for name in FOLDERS:
        shutil.rmtree(incoming / name, ignore_errors=True)
        for source in sorted((journal / name).rglob("*")):
            place = source.relative_to(journal)
            if source.is_symlink() or not source.is_file() or _is_passing(place):
                continue
            target = incoming / place
            target.parent.mkdir(parents=True, exist_ok=True)
            _see_room(incoming, source.stat().st_size)
            with contextlib.suppress(OSError):
                if before and filecmp.cmp(source, before / place, shallow=False):
                    os.link(before / place, target)
                    continue
            shutil.copyfile(source, target)
            sync(target)


def _is_passing(place: Path) -> bool:
    """A lock, or a model that is just coming in."""
    return any(part.startswith(".") for part in place.parts)


def _see_room(folder: Path, size: int) -> None:
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < size + _RESERVE:
        raise OSError(errno.ENOSPC, f"no room for {size / 1e6:.0f} MB")


def _seen(copy: Path, before: Json | None) -> int:
    """The row up to which the last generation's pictures are here; 0 if it is of another log."""
    if before is None:
        return 0
    seq, link = before["head_seq"], before["head_chain_sha256"]
    with contextlib.closing(sqlite3.connect(copy)) as log:
        found = log.execute("SELECT chain_sha256 FROM row WHERE seq = ?", (seq,)).fetchone()
    return seq if found and found[0] == link else 0


def live_pictures(copy: Path, since: int) -> Iterator[tuple[str, str, int]]:
    """Path, sha256 and size of what rows after `since` name and no tombstone removed."""
    query = """
        SELECT image.value ->> 'path', image.value ->> 'sha256', image.value ->> 'bytes'
        FROM row AS named, json_each(named.body, '$.images') AS image
        WHERE seq > ? AND +kind = 'result' AND NOT EXISTS (
            SELECT 1 FROM row WHERE result_id = named.result_id AND kind = 'tombstone'
            AND body ->> '$.path' = image.value ->> 'path')
    """
    with contextlib.closing(sqlite3.connect(copy)) as log:
        yield from log.execute(query, (since,))


def _copy_pictures(journal: Path, directory: Path, since: int, copied: list[str]) -> dict[str, str]:
    """Take what is new, and add it to `copied`; what is not there as it was recorded, and why."""
    damaged: dict[str, str] = {}
    folders = set()
    for path, sha256, size in live_pictures(directory / _INCOMING / DATABASE, since):
        target = directory / IMAGES / path
        if target.exists() and target.stat().st_size == size:
            continue
        _see_room(directory, size)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = directory / _INCOMING / target.name
        try:
            copy_picture(journal / IMAGES / path, temporary, sha256)
        except FileNotFoundError:
            damaged[path] = f"{journal / IMAGES / path}: is missing"
            continue
        except DamagedPicture as error:
            damaged[path] = str(error)
            continue
        temporary.rename(target)
        folders.add(target.parent)
        copied.append(path)
    for folder in folders:
        sync(folder)
    return damaged


def copy_picture(source: Path, target: Path, sha256: str) -> None:
    """A second name where both lie on one disk, else a copy that was read back. Raises
    `DamagedPicture`; FileNotFoundError if there is none."""
    target.unlink(missing_ok=True)
    data = _read_recorded(source, sha256)
    try:
        os.link(source, target)
        return
    except FileNotFoundError:
        raise
    except OSError:
        with target.open("wb") as taken:
            taken.write(data)
            taken.flush()
            os.fsync(taken.fileno())
    if _sha256(target) != sha256:
        raise BackupError(f"{target}: what was read back is not what was written")


def _read_recorded(source: Path, sha256: str) -> bytes:
    try:
        data = source.read_bytes()
    except OSError as error:
        if error.errno in _CODES_BAD_DISK:
            raise DamagedPicture(f"{source}: cannot be read: {error.strerror}") from error
        raise
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedPicture(f"{source}: is not the picture that was recorded")
    return data


def _verified(
    directory: Path, copied: list[str], damaged: dict[str, str], read_all: bool
) -> Verification:
    """The copy's chain, and its pictures: the new ones were read when they were copied, of the
    others all or a sample."""
    incoming = directory / _INCOMING
    with Reader(incoming) as reader:
        found = verify(reader, with_images=False)
    found.images = _count_images(incoming / DATABASE)
    known = {*damaged, *(() if read_all else copied)}
    found.findings += _read_again(directory, known, read_all)
    if found.findings:
        raise BackupError(
            f"{directory}: the copy is not good: {found.findings[0]}; see `vqi log verify`"
        )
    return found


def _count_images(copy: Path) -> int:
    query = "SELECT sum(json_array_length(body, '$.images')) FROM row WHERE kind = 'result'"
    with contextlib.closing(sqlite3.connect(copy)) as log:
        return log.execute(query).fetchone()[0] or 0


def _read_again(directory: Path, known: set[str], read_all: bool) -> list[str]:
    """Findings among the pictures that are not known, or a random sample of them."""
    found = []
    others = live_pictures(directory / _INCOMING / DATABASE, 0)
    unknown = (one for one in others if one[0] not in known)
    for path, sha256, _ in unknown if read_all else _sample(unknown):
        target = directory / IMAGES / path
        if not target.exists() or _sha256(target) != sha256:
            found.append(f"{target} is not the picture that was recorded")
    return found


def _sample(pictures: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    sample: list[tuple[str, str, int]] = []
    for number, one in enumerate(pictures):
        if len(sample) < _SAMPLE:
            sample.append(one)
        elif (place := random.randrange(number + 1)) < _SAMPLE:
            sample[place] = one
    return sample


def _write_manifest(
    incoming: Path, found: Verification, copied: list[str], damaged: dict[str, str]
) -> None:
    database = incoming / DATABASE
    manifest = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "database_sha256": _sha256(database),
        "database_bytes": database.stat().st_size,
        "rows": found.rows,
        "results": found.results,
        "head_seq": found.rows,
        "head_chain_sha256": found.head,
        "pictures": found.images - found.tombstones - len(damaged),
        "copied": len(copied),
        "damaged": dict(list(damaged.items())[:_MOST_NAMED]),
        "damaged_pictures": len(damaged),
    }
    path = incoming / MANIFEST
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    sync(path)


def _publish(directory: Path) -> str:
    name = _next_name(directory)
    sync(directory / _INCOMING)
    (directory / _INCOMING).rename(directory / name)
    sync(directory)
    return name


def _next_name(directory: Path) -> str:
    """After every other one, also where the clock was set back: their order is that of the log."""
    at = datetime.now(UTC)
    for name in generations(directory)[-1:]:
        newest = datetime.strptime(name, _NAMED_BY).replace(tzinfo=UTC)
        at = max(at, newest + timedelta(microseconds=1))
    return at.strftime(_NAMED_BY)


# --- what is old --------------------------------------------------------------------------------


def _forget(directory: Path, keep: int, published: str) -> None:
    """Generations beyond `keep`, never the one just published, and the pictures that no kept one
    needs. Those that lack pictures push no whole one out: they count by themselves, and go once a
    later one is whole."""
    names = generations(directory)
    whole = [name for name in names if is_whole(read_manifest(directory, name))]
    lacking = [name for name in names if not whole or name > whole[-1]]
    wanted = {*whole[-keep:], *lacking[-keep:], published}
    kept = [name for name in names if name in wanted]
    dropped = [name for name in names if name not in wanted]
    if not dropped:
        return
    since = min(read_manifest(directory, name)["head_seq"] for name in dropped)
    until = read_manifest(directory, kept[0])["head_seq"]
    for path in _unneeded(directory / kept[-1] / DATABASE, since, until):
        (directory / IMAGES / path).unlink(missing_ok=True)
    for name in dropped:
        # First its manifest: without one it is no generation.
        (directory / name / MANIFEST).unlink()
        shutil.rmtree(directory / name)


def _unneeded(newest: Path, since: int, until: int) -> list[str]:
    """Pictures that were removed in the log between two rows, and that nothing has named since."""
    query = """
        SELECT DISTINCT stone.body ->> '$.path' FROM row AS stone
        WHERE stone.kind = 'tombstone' AND stone.seq > :since AND stone.seq <= :until
        AND stone.body ->> '$.path' NOT IN (
            SELECT image.value ->> 'path' FROM row AS named, json_each(named.body, '$.images') AS
            image WHERE named.kind = 'result' AND NOT EXISTS (
                SELECT 1 FROM row WHERE result_id = named.result_id AND kind = 'tombstone'
                AND seq <= :until AND body ->> '$.path' = image.value ->> 'path'))
    """
    with contextlib.closing(sqlite3.connect(newest)) as log:
        found = log.execute(query, {"since": since, "until": until})
        return [row[0] for row in found]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
