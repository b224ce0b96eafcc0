"""A closed period of the log in a folder that proves itself: its rows as they were hashed, its
pictures, and its results as Parquet.

`deploy/check-archive`, a copy of which lies in the folder, needs nothing of this program. The rows
go on to the first checkpoint that covers the whole period, so that a public key proves all of it.
Nothing is removed from the log.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from station import packing
from station.backup import BackupError, copy_picture
from station.config import shipped_path
from station.durable import sync
from station.export import file_sha256, write_durably
from station.export_rows import Context
from station.export_source import Chosen, Head, Source
from station.qms import IMAGES, Json
from station.release import program_version
from station.signed_note import PUBLIC_KEY

ROWS, RESULTS, MANIFEST, CHECK = (
    "rows.jsonl.gz",
    "results.parquet",
    "manifest.json",
    "check-archive",
)


class ArchiveError(Exception):
    """No archive was made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Period:
    """Rows that an archive holds."""

    before: Head
    """The row before the first one."""
    last: Head
    signed_to: int
    """The last row that a checkpoint among them covers; 0 where none does."""


@dataclass(slots=True)
class _Taken:
    rows: int = 0
    results: int = 0
    pictures: int = 0
    removed: list[Json] = field(default_factory=list)
    """Pictures that a rule removed after the period: the tombstone's row and the file."""
    folders: set[Path] = field(default_factory=set)
    contexts: dict[str, str] = field(default_factory=dict)
    """Texts of rows before the period that rows in it leave something to, by their numbers."""


def make_archive(
    source: Source, journal: Path, images: Path, since: str | None, until: str, to: Path
) -> Json:
    """Write the folder `to`, which is not there yet; its manifest. Times are UTC text. Raises
    `ArchiveError`."""
    if to.exists():
        raise ArchiveError(f"{to}: is there already; name a folder that is not")
    period = _period(source, since, until)
    making = to.with_name(f".{to.name}.new")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        taken = _take(source, period, images, making)
        _write_results(source, period, making)
        _add_tools(journal, making)
        manifest = _write_manifest(making, period, taken, since, until)
        making.rename(to)
        sync(to.parent)
    except BackupError as error:
        raise ArchiveError(str(error)) from error
    except OSError as error:
        raise ArchiveError(f"{to}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _period(source: Source, since: str | None, until: str) -> Period:
    first = source.one(
        "SELECT min(seq) FROM row WHERE body ->> '$.written_at' >= ?", (since or "",)
    )[0]
    last = source.one("SELECT max(seq) FROM row WHERE body ->> '$.written_at' < ?", (until,))[0]
    if first is None or last is None or last < first:
        raise ArchiveError(f"the log has no rows from {since or 'its begin'} to {until}")
    sealed = source.one(
        "SELECT seq FROM row WHERE kind = 'checkpoint' AND seq >= ? AND body ->> '$.size' >= ? "
        "ORDER BY seq LIMIT 1",
        (last, last),
    )
    if sealed is not None:
        last = sealed[0]
    covered = source.one(
        "SELECT max(body ->> '$.size') FROM row WHERE kind = 'checkpoint' AND seq <= ?", (last,)
    )[0]
    before, end = source.chain_at(first - 1), source.chain_at(last)
    if before is None or end is None:
        raise ArchiveError(f"row {first - 1} is missing; see `vqi log verify`")
    return Period(Head(first - 1, before), Head(last, end), covered or 0)


def _take(source: Source, period: Period, images: Path, to: Path) -> _Taken:
    taken, path = _Taken(), to / ROWS
    with path.open("wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
            for seq, kind, body, body_sha256, link in source.rows(period.before.seq + 1,
                                                                  period.last.seq):  # fmt: skip
                row = {"seq": seq, "kind": kind, "body": body, "body_sha256": body_sha256,
                       "chain_sha256": link}  # fmt: skip
                packed.write(json.dumps(row).encode() + b"\n")
                taken.rows += 1
                content = json.loads(body)
                if kind == "result":
                    _take_pictures(source, period, content, images, to, taken)
                _take_context(source, period, content, taken)
        raw.flush()
        os.fsync(raw.fileno())
    for folder in taken.folders:
        sync(folder)
    return taken


def _take_pictures(
    source: Source, period: Period, body: Json, images: Path, to: Path, taken: _Taken
) -> None:
    taken.results += 1
    for image in body["images"]:
        target = to / IMAGES / image["path"]
        stone = _tombstone(source, body["result_id"], image["path"])
        if stone is None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                copy_picture(images / image["path"], target, image["sha256"])
            except FileNotFoundError as error:
                stone = _tombstone(source, body["result_id"], image["path"])
                if stone is None:
                    said = f"{images / image['path']}: is missing; see `vqi log verify`"
                    raise ArchiveError(said) from error
            taken.folders.add(target.parent)
            taken.pictures += stone is None
        if stone is not None and stone > period.last.seq:
            taken.removed.append({"path": image["path"], "tombstone_seq": stone})


def _take_context(source: Source, period: Period, content: Json, taken: _Taken) -> None:
    named = content.get(packing.KIND)
    if named is None or named > period.before.seq or str(named) in taken.contexts:
        return
    body = source.body_of(named)
    if body is None:
        raise ArchiveError(f"row {named} is missing; see `vqi log verify`")
    taken.contexts[str(named)] = body


def _tombstone(source: Source, result_id: str, path: str) -> int | None:
    found = source.one(
        "SELECT seq FROM row WHERE result_id = ? AND kind = 'tombstone' AND body ->> '$.path' = ?",
        (result_id, path),
    )
    return None if found is None else int(found[0])


def _write_results(source: Source, period: Period, to: Path) -> None:
    from station import export_parquet

    path = to / RESULTS
    rows = source.results(Chosen(), period.last.seq, first=period.before.seq + 1)
    export_parquet.write(rows, path, Context())
    sync(path)


def _add_tools(journal: Path, to: Path) -> None:
    """The script that checks it, and the public key, which a checker should have from elsewhere."""
    shutil.copy(shipped_path(CHECK), to / CHECK)
    if (journal / PUBLIC_KEY).exists():
        shutil.copy(journal / PUBLIC_KEY, to / PUBLIC_KEY)


def _write_manifest(to: Path, period: Period, taken: _Taken, since: str | None, until: str) -> Json:
    manifest = {
        "format": "vqi archive 1",
        "since": since,
        "until": until,
        "before": period.before._asdict(),
        "last": period.last._asdict(),
        "signed_to": period.signed_to,
        "rows": taken.rows,
        "results": taken.results,
        "pictures": taken.pictures,
        "removed_later": taken.removed,
        "earlier_contexts": taken.contexts,
        "files": {name: file_sha256(to / name) for name in (ROWS, RESULTS, CHECK)},
        "program": program_version(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_durably(to / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest
