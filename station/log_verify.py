"""Whether the QMS log still says what was written, row by row and picture by picture."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from station import packing
from station.audit_check import audit_findings
from station.chain_check import Beside
from station.checkpoint import verify_checkpoints
from station.conservation import Conservation
from station.derived import KINDS
from station.derived_check import DerivedCheck
from station.log_reader import Reader
from station.packing import Contexts
from station.qms import EMPTY_CHAIN, Json, StoreError, first_changed
from station.record import ClockBody, DiskBody, HoldBody, RetentionBody, TombstoneBody
from station.retention import newest_label, objection, pictures_of
from station.reviews import inconsistency
from station.schema import differences

_CHECKED_ROWS = 10_000
_FIRST_SEQ, _PAGE_ROWS = -(2**63), 2000
_PAGE = "SELECT seq, kind, body FROM row WHERE seq >= ? AND seq <= ? ORDER BY seq LIMIT ?"
_OF_RESULT = """
    SELECT seq, body FROM row WHERE result_id = :id AND seq < :before
    ORDER BY kind <> 'result', seq
"""
_PLAIN = ("opened", "actuation")
"""Kinds of rows that no removal depends on."""
_ROW = re.compile(r"row (-?\d+)")
_PASSING = timedelta(minutes=1)


@dataclass(slots=True)
class Verification:
    """What `verify` found; no findings means that the log says what was written."""

    rows: int = 0
    results: int = 0
    open_plates: int = 0
    images: int = 0
    """Pictures that rows name."""
    tombstones: int = 0
    """Of them, those that a rule removed."""
    holds: int = 0
    """In force."""
    triggers: int = 0
    """That results and downtimes answer for."""
    unknown_triggers: int = 0
    """Rows that cannot say for how many they answer."""
    anchors: int = 0
    """From outside that the log was held against."""
    head: str = EMPTY_CHAIN
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no fault of the log: files that will be removed."""


@dataclass(slots=True)
class _Removals:
    """What the log has said, up to a row, of what may be removed."""

    rules: RetentionBody | None = None
    holds: dict[str, HoldBody] = field(default_factory=dict)
    disk_level: int = 0
    ahead_s: float = 0.0
    newest_at: str = ""
    aged_from: dict[str, str] = field(default_factory=dict)
    """The newest label by then of results whose own label is earlier."""
    missing: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Row, result and path of pictures that are not there, and what the system says."""
    left: set[str] = field(default_factory=set)
    """Files that a tombstone speaks of and that are still there."""


def verify(
    reader: Reader,
    with_images: bool = True,
    public_key: Path | None = None,
    with_file: bool = True,
    at_row: Callable[[int, int], None] | None = None,
) -> Verification:
    """Recompute every hash, the chain, the derived tables, the checkpoints and the pictures'
    sha256; see that the schema is the one that was made, that plates, results and lamp commands
    agree, and that no picture was removed but by a rule that held and against no hold. That only
    the snapshot was read is a finding, unless this user may not read the live file.
    `public_key`: what checkpoints must be signed with; default: the key beside the log.
    `with_file`: also hold the file's indexes against its tables; not of a log beside a line that
    runs, where nobody asked for it: see station/chain_check.py. `at_row` is told how far it is, and
    the last row."""
    found = Verification()
    with contextlib.closing(_open(reader.path)) as log:
        schema, (last, tables) = differences(log), _as_of_now(log)
        seen = _Seen(reader, log, tables, found, with_images)
        with Beside(reader.path, last, with_file) as links:
            for page in _pages(reader.path, last):
                for seq, kind, text in page:
                    seen.take(seq, kind, text)
                seen.page(page[-1][0])
                if at_row is not None:
                    at_row(page[-1][0], last)
            seen.settle()
            chained = links.result()
    _settle_removals(reader, seen.removals, found)
    said = [(row_of(text), text) for text in found.findings]
    in_order = sorted([*chained.findings, *seen.findings, *said], key=lambda pair: pair[0])
    found.findings = [*_live_file(reader), *schema, *(text for _, text in in_order)]
    found.rows, found.head = chained.rows, chained.head
    _verify_audit(reader, found)
    findings, notes = verify_checkpoints(reader, public_key)
    found.findings += findings
    found.notes += notes
    return found


def _as_of_now(log: sqlite3.Connection) -> tuple[int, DerivedCheck | None]:
    """The last row, and what the derived tables say: in one transaction, so that they know no row
    after it however the log goes on."""
    log.execute("BEGIN")
    try:
        last = log.execute("SELECT coalesce(max(seq), 0) FROM row").fetchone()[0]
        return int(last), DerivedCheck.of(log, int(last))
    finally:
        log.rollback()


class _Seen:
    """What the rows say, one after another."""

    def __init__(
        self,
        reader: Reader,
        log: sqlite3.Connection,
        tables: DerivedCheck | None,
        found: Verification,
        with_images: bool,
    ) -> None:
        self._reader, self._found, self._with_images = reader, found, with_images
        self._tables, self._law = tables, Conservation(log)
        self._contexts = Contexts(reader.body_of)
        self.removals = _Removals()
        self.findings: list[tuple[int, str]] = []

    def take(self, seq: int, kept_as: bytes, text: bytes) -> None:
        body = _parsed(text)
        kind = str(body.get("kind"))
        if kind.encode() != kept_as:
            name = kept_as.decode(errors="replace")
            self.findings.append((seq, f"row {seq}: is kept as {name}, says {body.get('kind')}"))
        self._law.take(seq, kind, body)
        if packing.KIND in body or kind in KINDS:
            self._derive(seq, kind, body)
        if kind in _PLAIN:
            self.removals.newest_at = newest_label(self.removals.newest_at, body)
        else:
            _follow_removals(self._reader, seq, body, self.removals, self._found)
        if self._with_images and kind == "result":
            _see_images(self._reader.images, seq, body, self.removals, self._found)

    def _derive(self, seq: int, kind: str, body: Json) -> None:
        try:
            if kind in KINDS:
                body = self._contexts.stated(body)
            else:
                self._contexts.constants(body[packing.KIND])
        except packing.UNREADABLE as error:
            self.findings.append((seq, f"row {seq}: its context cannot be read: {error}"))
            return
        if self._tables is not None and kind in KINDS:
            self._tables.take(seq, kind, body)

    def page(self, last: int) -> None:
        """All rows up to this one were taken, and not for too long: see _PAGE_ROWS."""
        if self._tables is not None:
            self._tables.page(last)

    def settle(self) -> None:
        """All rows were taken."""
        if self._tables is not None:
            self.findings += self._tables.settle()
            self._found.notes += self._tables.notes
        self.findings += self._law.settle()
        found, law = self._found, self._law
        found.results, found.open_plates = law.results, law.open_plates
        found.triggers, found.unknown_triggers = law.triggers, law.unknown
        found.holds = len(self.removals.holds)


def _live_file(reader: Reader) -> list[str]:
    if not reader.live_problem:
        return []
    return [f"{reader.live_problem}; only its copy {reader.path} was read"]


def _schema(reader: Reader) -> list[str]:
    with contextlib.closing(_open(reader.path)) as log:
        return differences(log)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)


def _pages(path: Path, last: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
    """Rows with their texts as they are in the file: whoever edits it need not write UTF-8."""
    with contextlib.closing(_open(path)) as log:
        log.text_factory, first = bytes, _FIRST_SEQ
        while page := log.execute(_PAGE, (first, last, _PAGE_ROWS)).fetchall():
            yield page
            first = page[-1][0] + 1


def row_of(finding: str) -> int:
    """The row that a finding is about; it comes first in it."""
    named = _ROW.search(finding)
    return int(named[1]) if named else 0


def verify_tail(reader: Reader) -> Verification:
    """As `verify`, of the last rows alone and without their pictures: however long the log is, it
    takes as long. The row before them is believed."""
    found = Verification(findings=[*_live_file(reader), *_schema(reader)])
    first = max(1, reader.last_seq() - _CHECKED_ROWS)
    rows = reader.rows(first)
    found.head = EMPTY_CHAIN if first == 1 else next(rows).chain_sha256
    for row in rows:
        if (changed := first_changed([row], found.head)) is not None:
            found.findings.append(f"row {changed} is not the one that was written")
        found.rows, found.head = found.rows + 1, row.chain_sha256
    return found


def _parsed(body: bytes) -> Json:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        # What this one refuses, as NaN, the journal process would have read.
        parsed = _parsed_as_written(body)
    return parsed if isinstance(parsed, dict) else {}


def _parsed_as_written(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        return None


def _follow_removals(
    reader: Reader, seq: int, body: Json, removals: _Removals, found: Verification
) -> None:
    removals.newest_at = newest_label(removals.newest_at, body)
    try:
        match body.get("kind"):
            case "result" if _is_late(body["written_at"], removals.newest_at):
                removals.aged_from[body["result_id"]] = removals.newest_at
            case "retention":
                removals.rules = RetentionBody.model_validate(body)
            case "hold":
                removals.holds[body["hold_id"]] = HoldBody.model_validate(body)
            case "release":
                removals.holds.pop(body["hold_id"], None)
            case "disk":
                removals.disk_level = DiskBody.model_validate(body).level
            case "clock":
                removals.ahead_s = ClockBody.model_validate(body).ahead_s
            case "review":
                _verify_review(reader, seq, body, found)
            case "tombstone":
                _verify_tombstone(reader, seq, TombstoneBody.model_validate(body), removals, found)
    except (*packing.UNREADABLE, StoreError, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(error).replace("\n", " ")
        found.findings.append(f"row {seq}: no such {body.get('kind')} row can be: {reason}")


def _verify_audit(reader: Reader, found: Verification) -> None:
    try:
        audit = audit_findings(reader)
    except (StoreError, SQLAlchemyError, sqlite3.Error) as error:
        found.findings.append(f"the audit sample cannot be drawn again: {error}")
        return
    found.findings += audit.findings
    found.notes += audit.notes


def _verify_review(reader: Reader, seq: int, body: Json, found: Verification) -> None:
    if "supersedes" not in body:
        return
    before = _rows_before(reader, seq, body["result_id"], found)
    if before is None:
        return
    if why := inconsistency(before, {"seq": seq, **body}):
        found.findings.append(f"row {seq}: a review that cannot be: it {why}")


def _rows_before(
    reader: Reader, before: int, result_id: str, found: Verification
) -> list[Json] | None:
    """Of a result, the result first; None, and a finding, if one of them cannot be read."""
    rows = []
    for seq, text in reader.tuples(_OF_RESULT, {"id": result_id, "before": before}):
        try:
            rows.append({"seq": seq, **reader.whole(text)})
        except StoreError as error:
            said = f"row {seq}: cannot be read: {error}"
            found.findings += [said] if said not in found.findings else []
            return None
    return rows


def _is_late(label: str, newest_at: str) -> bool:
    """The clock had fallen back; not for rows that passed one another on their way."""
    if label >= newest_at:
        return False
    return datetime.fromisoformat(newest_at) - datetime.fromisoformat(label) > _PASSING


def _verify_tombstone(
    reader: Reader, seq: int, stone: TombstoneBody, removals: _Removals, found: Verification
) -> None:
    found.tombstones += 1
    known = reader.about_pictures(stone.result_id, seq)
    picture = next((one for one in pictures_of(known) if one.path == stone.path), None)
    if picture is not None:
        aged_from = removals.aged_from.get(stone.result_id, "")
        picture = replace(picture, aged_from=aged_from)
    why = objection(
        stone,
        picture,
        removals.rules,
        removals.holds.values(),
        removals.disk_level,
        removals.ahead_s,
    )
    if why:
        found.findings.append(f"row {seq}: a picture was removed against the rules: {why}")
    if (reader.images / stone.path).exists():
        removals.left.add(stone.path)


def _see_images(
    images: Path, seq: int, body: Json, removals: _Removals, found: Verification
) -> None:
    try:
        _verify_images(images, seq, body, removals, found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        found.findings.append(f"row {seq}: names pictures as no row does: {error!r}")


def _verify_images(
    images: Path, seq: int, body: Json, removals: _Removals, found: Verification
) -> None:
    for image in body.get("images") or ():
        found.images += 1
        path = images / image["path"]
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            said = error.strerror or "cannot be read"
            removals.missing.append((seq, str(body.get("result_id")), image["path"], said))
            continue
        if sha256 != image["sha256"]:
            found.findings.append(f"row {seq}: {path} is not the picture that was recorded")


def _settle_removals(reader: Reader, removals: _Removals, found: Verification) -> None:
    """Only now: the log may have gone on, and removed a picture, while it was read."""
    for seq, result_id, path, said in removals.missing:
        if not reader.is_removed(result_id, path):
            found.findings.append(f"row {seq}: {reader.images / path}: {said}")
    named = reader.results_naming(removals.left)
    still = {path for result_id, path in named if not reader.is_removed(result_id, path)}
    found.notes += [
        f"{reader.images / path}: has a tombstone and is still there; the journal removes it"
        for path in sorted(removals.left - still)
    ]
