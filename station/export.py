"""Exports of results in four formats, each with a manifest that ties it to the log's chain.

A file has its name only once it is whole and durable. Its manifest says its sha256, what was asked,
and the row of the log as of which it was made; `check_export` asks the log again, as of that row,
and compares every value.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from station.durable import sync
from station.export_rows import ASK_FOR_LESS, SINCE_ADDED, Context, ExportError
from station.export_source import Chosen, Head, Source
from station.log_reader import Reader
from station.qms import Json, StoreError
from station.questions import Questions, Selection
from station.release import program_version

FORMATS = ("csv", "jsonl", "parquet", "xlsx")
STREAMED = ("csv", "jsonl")
MANIFEST = ".manifest.json"
_MOST_FINDINGS = 20
_MOST_NAMED = 10_000
"""Results that a manifest names one by one."""


@dataclass(slots=True)
class Told:
    """Counted while rows go by."""

    rows: int = 0
    first_seq: int | None = None
    last_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is exported, and how times are written for people."""

    format: str
    chosen: Chosen
    timezone: str | None = None
    images: Path | None = None
    """Of the log; small pictures are taken from there."""

    @property
    def zone(self) -> tzinfo | None:
        return ZoneInfo(self.timezone) if self.timezone else None


class Part(NamedTuple):
    """What of a file is compared with the log, row by row."""

    name: str
    read: Callable[[Path], Iterator[Json]]
    says: Callable[[Json, Context], list[Json]]


def export_to(
    source: Source, wish: Wish, path: Path, at_row: Callable[[int], None] | None = None
) -> Json:
    """Write the file and its manifest; the manifest. `at_row` is told how many rows went by. Raises
    `ExportError`, `StoreError`."""
    head, told = source.head(), Told()
    _see_that_it_fits(source, wish, head)
    context = Context(wish.zone, wish.images, tuple(_about(wish, head).items()))
    rows = _counted(source.results(wish.chosen, head.seq), told, at_row)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _format(wish.format).write(rows, temporary, context)
        manifest = _manifest(wish, head, told, path.name, temporary)
        _put(temporary, path, manifest)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def chosen(reader: Reader, selection: Selection) -> Chosen:
    """The results of a selection, such that the same row of the log gives the same ones again: who
    reviewed a plate last, and what a reviewer called its defects, may change, so such plates are
    named one by one. Raises `ExportError` if they are too many for that, `StoreError`."""
    given = asdict(selection)
    changes = {name: given.pop(name) for name in ("reviewer", "kind")}
    if any(given.pop(name) is not None for name in ("station", "is_audit_sample")):
        raise ExportError("an export knows no such choice")
    if not any(changes.values()):
        return Chosen(**given)
    pages = Questions(reader.ask).pages(selection, _MOST_NAMED + 1)
    rows = sorted(line.seq for page in pages for line in page)
    if len(rows) > _MOST_NAMED:
        raise ExportError(f"more than {_MOST_NAMED:,} results by reviewer or kind: {ASK_FOR_LESS}")
    return Chosen(rows=rows)


def chosen_for_people(reader: Reader, selection: Selection) -> Chosen:
    """As `chosen`, without what somebody may still have to judge blind."""
    return replace(chosen(reader, selection), without_open_samples=True)


def stream(source: Source, wish: Wish, to: Any) -> None:
    """The rows alone, to a text stream."""
    rows = source.results(wish.chosen, source.head().seq)
    _format(wish.format).write_to(to, rows, Context(wish.zone))


def manifest_path(path: Path) -> Path:
    return path.with_name(path.name + MANIFEST)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Under its name only when it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)


def _format(name: str) -> ModuleType:
    """Only what is used is loaded: two of them bring heavy libraries."""
    return importlib.import_module(f"station.export_{name}")


def _see_that_it_fits(source: Source, wish: Wish, head: Head) -> None:
    if wish.format != "xlsx":
        return
    most = int(_format("xlsx").MOST_ROWS) - 1
    count = source.count(wish.chosen, head.seq)
    if count > most:
        raise ExportError(f"{count:,} results, a sheet holds {most:,}: {ASK_FOR_LESS}")


def _counted(
    rows: Iterable[Json], told: Told, at_row: Callable[[int], None] | None
) -> Iterator[Json]:
    for row in rows:
        told.rows += 1
        if at_row is not None:
            at_row(told.rows)
        told.last_seq = row["seq"]
        told.first_seq = told.first_seq or row["seq"]
        yield row


def _about(wish: Wish, head: Head) -> dict[str, str]:
    given = wish.chosen.given()
    if wish.chosen.rows is not None:
        given["rows"] = f"{len(wish.chosen.rows)} named in the manifest"
    asked = ", ".join(f"{name} {value}" for name, value in given.items())
    return {
        "asked": asked or "all results",
        "log as of row": str(head.seq),
        "chain value of that row": head.chain_sha256,
        "times": wish.timezone or "UTC",
        "made at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made by": f"vqi {program_version()}",
    }


def _manifest(wish: Wish, head: Head, told: Told, name: str, made: Path) -> Json:
    return {
        "file": name,
        "format": wish.format,
        "sha256": file_sha256(made),
        "bytes": made.stat().st_size,
        **asdict(told),
        "filter": wish.chosen.given(),
        "timezone": wish.timezone,
        "head": head._asdict(),
        "program": program_version(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _put(temporary: Path, path: Path, manifest: Json) -> None:
    sync(temporary)
    # A file without a manifest says so; one with the manifest of the file before would lie.
    manifest_path(path).unlink(missing_ok=True)
    temporary.rename(path)
    sync(path.parent)
    write_durably(manifest_path(path), json.dumps(manifest, indent=1) + "\n")


# --- is it still what the log says? ---------------------------------------------------------------


@dataclass(slots=True)
class _Findings:
    texts: list[str] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.texts) >= _MOST_FINDINGS

    def add(self, text: str) -> None:
        if not self.is_full:
            self.texts.append(text)


def check_export(source: Source, path: Path) -> list[str]:
    """What an exported file says that the log does not; at most the first twenty differences."""
    try:
        manifest = json.loads(manifest_path(path).read_text())
        wish = Wish(manifest["format"], Chosen(**manifest["filter"]), manifest["timezone"])
        head, sha256 = Head(**manifest["head"]), file_sha256(path)
        parts = _parts(wish.format)
    except FileNotFoundError as error:
        return [f"{error.filename}: {error.strerror}"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"{manifest_path(path)}: this is no manifest of an export: {error!r}"]
    found = _Findings()
    if sha256 != manifest["sha256"]:
        found.add(f"{path.name}: is not the file that was exported; its sha256 is {sha256}")
    try:
        if said := _other_log(source, head):
            return [f"{path.name}: {said}"]
        for part in parts:
            _compare(source, wish, head, path, part, found)
    except StoreError as error:
        found.add(str(error))
    return found.texts


def _parts(format_: str) -> list[Part]:
    if format_ not in FORMATS:
        raise ValueError(f"no format {format_!r}")
    made = _format(format_)
    if format_ == "xlsx":
        return [
            Part("results", made.read_results, made.says_results),
            Part("defects", made.read_defects, made.says_defects),
        ]
    return [Part("results", made.read, made.says)]


def _other_log(source: Source, head: Head) -> str:
    """Why this is not the log that the export was made of; empty if it is."""
    link = source.chain_at(head.seq)
    if link is None:
        return (
            f"was made as of row {head.seq}; the log ends with row {source.head().seq}: it is "
            "shorter than its export"
        )
    if link != head.chain_sha256:
        return f"row {head.seq} of this log is not the one that it was made as of"
    return ""


def _compare(
    source: Source, wish: Wish, head: Head, path: Path, part: Part, found: _Findings
) -> None:
    context = Context(wish.zone)
    wanted = (
        one for row in source.results(wish.chosen, head.seq) for one in part.says(row, context)
    )
    try:
        for number, (told, said) in enumerate(zip_longest(part.read(path), wanted), start=1):
            _compare_row(f"{path.name}, {part.name} row {number}", told, said, found)
            if found.is_full:
                return
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001  a spoiled file makes its library raise anything
        found.add(f"{path.name}: cannot be read as {wish.format}: {str(error)[:200]}")


def _compare_row(place: str, told: Json | None, said: Json | None, found: _Findings) -> None:
    if said is None:
        found.add(f"{place}: the log has no such row")
    elif told is None:
        found.add(f"{place}: is missing; the log has {said['result_id']}")
    else:
        expected = [name for name in said if name in told or name not in SINCE_ADDED]
        names = [*expected, *(name for name in told if name not in said)]
        for name in names:
            if not _is_same(told.get(name), said.get(name)):
                found.add(
                    f"{place} ({said['result_id']}): {name} is {_short(told.get(name))}, "
                    f"in the log {_short(said.get(name))}"
                )


def _is_same(one: Any, other: Any) -> bool:
    # NaN is not equal to itself, and 1 equals True.
    return bool(one == other) or repr(one) == repr(other)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
