"""Whether the QMS log still says what was written, row by row and picture by picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from station.audit_check import audit_findings
from station.checkpoint import verify_checkpoints
from station.log_reader import Reader
from station.qms import EMPTY_CHAIN, Json, chain, first_changed, sha256_text
from station.record import ClockBody, DiskBody, HoldBody, RetentionBody, TombstoneBody
from station.retention import newest_label, objection, pictures_of
from station.reviews import inconsistency
from station.schema import TRIGGERS

_CHECKED_ROWS = 10_000
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
    reader: Reader, with_images: bool = True, public_key: Path | None = None
) -> Verification:
    """Recompute every hash, the chain, the checkpoints and the pictures' sha256; see that edits are
    still barred and that no picture was removed but by a rule that held and against no hold.
    `public_key`: what checkpoints must be signed with; default: the key beside the log."""
    found = Verification(findings=_missing_triggers(reader))
    before, opened, decided = EMPTY_CHAIN, set[str](), set[str]()
    removals = _Removals()
    for row in reader.rows():
        found.rows += 1
        if row.seq != found.rows:
            found.findings.append(f"row {found.rows} is missing; row {row.seq} comes next")
            found.rows = row.seq
        body_sha256 = sha256_text(row.body)
        if body_sha256 != row.body_sha256:
            found.findings.append(f"row {row.seq}: its body is not the one that was hashed")
        before = chain(before, row.seq, row.kind, body_sha256)
        if before != row.chain_sha256:
            found.findings.append(f"row {row.seq}: the chain breaks here")
            before = row.chain_sha256
        body = _parsed(row.body)
        if body.get("kind") != row.kind:
            found.findings.append(f"row {row.seq}: is kept as {row.kind}, says {body.get('kind')}")
        _collect(row.seq, body, opened, decided, found)
        _follow_removals(reader, row.seq, body, removals, found)
        if with_images:
            _see_images(reader.images, row.seq, body, removals, found)
    found.results, found.head = len(decided), before
    found.open_plates = len(opened - decided)
    found.holds = len(removals.holds)
    _settle_removals(reader, removals, found)
    audit = audit_findings(reader)
    found.findings += audit.findings
    found.notes += audit.notes
    findings, notes = verify_checkpoints(reader, public_key)
    found.findings += findings
    found.notes += notes
    return found


def verify_tail(reader: Reader) -> Verification:
    """As `verify`, of the last rows alone and without their pictures: however long the log is, it
    takes as long. The row before them is believed."""
    found = Verification(findings=_missing_triggers(reader))
    first = max(1, reader.last_seq() - _CHECKED_ROWS)
    rows = reader.rows(first)
    found.head = EMPTY_CHAIN if first == 1 else next(rows).chain_sha256
    for row in rows:
        if (changed := first_changed([row], found.head)) is not None:
            found.findings.append(f"row {changed} is not the one that was written")
        found.rows, found.head = found.rows + 1, row.chain_sha256
    return found


def _missing_triggers(reader: Reader) -> list[str]:
    return [f"trigger {name} is gone" for name in sorted(TRIGGERS - reader.triggers())]


def _parsed(body: str) -> Json:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _collect(
    seq: int, body: Json, opened: set[str], decided: set[str], found: Verification
) -> None:
    result_id = str(body.get("result_id"))
    if body.get("kind") == "opened":
        opened.add(result_id)
    elif body.get("kind") == "result":
        if result_id in decided:
            found.findings.append(f"row {seq}: a second result of {result_id}")
        decided.add(result_id)


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
    except (ValueError, LookupError, TypeError) as error:
        reason = str(error).replace("\n", " ")
        found.findings.append(f"row {seq}: no such {body.get('kind')} row can be: {reason}")


def _verify_review(reader: Reader, seq: int, body: Json, found: Verification) -> None:
    before = [row for row in reader.of_result(body["result_id"]) if row["seq"] < seq]
    if why := inconsistency(before, {"seq": seq, **body}):
        found.findings.append(f"row {seq}: a review that cannot be: it {why}")


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
