"""Checkpoints of the log: the heads of its two trees, made by a process that gives way.

The first tree's leaves are the rows. The second's are results in the order of their ids, each with
all rows about it by then, so that none of them can be left out. Heads of full chunks of leaves are
kept in a file beside the log, so that the next checkpoint reads little more than what is new.
Nobody believes that file: what was made with it is held against the last checkpoint, and where it
does not agree it is made again from the rows.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sqlite3
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from station.anchors import Anchor, anchor_of, check_anchors, publish, said_in
from station.config import ProofSettings
from station.log_reader import Reader
from station.merkle import CHUNK, EMPTY, Chunked, Front, Growing, consistency, leaf_hash, root_of
from station.qms import EMPTY_CHAIN, StoreError, first_changed
from station.record import CheckpointBody
from station.signed_note import (
    PUBLIC_KEY,
    Checkpoint,
    NoteError,
    SigningKeyError,
    check_signature,
    fingerprint,
    is_signed,
    load_key,
    origin_of,
    parsed,
    read_public,
    signed,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TREES = "proof-trees.json"
_ROWS = text(
    "SELECT seq, kind, body_sha256 FROM row WHERE seq > :after AND seq <= :until ORDER BY seq"
)
_NAMES = text(
    "SELECT DISTINCT result_id FROM row WHERE result_id >= :first AND seq <= :until "
    "ORDER BY result_id LIMIT :count"
)
_LAST_PLATES, _PLATES = (
    text(
        "SELECT result_id, seq, kind, body_sha256 FROM row WHERE result_id >= :first "
        f"{bound} AND seq <= :until ORDER BY result_id, seq"
    )
    # A bound that may be NULL is none to SQLite: it would read to the end of the log.
    for bound in ("", "AND result_id < :next")
)
_CHANGED = text(
    "SELECT DISTINCT result_id FROM row WHERE seq > :after AND seq <= :until "
    "AND result_id IS NOT NULL"
)
_CHECKPOINTS = text("SELECT seq, body FROM row WHERE kind = 'checkpoint' ORDER BY seq")
_ALL = (
    "SELECT seq, kind, body_sha256, chain_sha256, result_id FROM row "
    "WHERE seq > :after AND seq <= :until ORDER BY seq"
)
_PAGE_ROWS = 2000


class CheckpointError(Exception):
    """No checkpoint, or no proof from one; the message says why and what to do."""


# --- leaves -------------------------------------------------------------------------------------


def row_leaf(seq: int, kind: str, body_sha256: str) -> bytes:
    """Of the first tree: what a row says, whatever stands before it."""
    return leaf_hash(f"{seq} {kind} {body_sha256}".encode())


def plate_begin(result_id: str) -> bytes:
    return hashlib.sha256(result_id.encode()).digest()


def plate_next(before: bytes, row: bytes) -> bytes:
    """A result's list of rows, one longer: `row` is the row's leaf in the first tree."""
    return hashlib.sha256(before + row).digest()


def plate_leaf(result_id: str, rows: bytes) -> bytes:
    """Of the second tree."""
    return leaf_hash(rows + result_id.encode())


def _leaf_of_plate(result_id: str, rows: Iterable[Any]) -> bytes:
    found = plate_begin(result_id)
    for row in rows:
        found = plate_next(found, row_leaf(row.seq, row.kind, row.body_sha256))
    return plate_leaf(result_id, found)


# --- the log's trees ----------------------------------------------------------------------------


@dataclass(slots=True)
class Trees:
    """Both trees of the log's first `size` rows, as heads of their chunks."""

    size: int = 0
    rows: list[bytes] = field(default_factory=list)
    """Of full chunks alone."""
    plates: int = 0
    firsts: list[str] = field(default_factory=list)
    """The lowest result id of each chunk of results."""
    heads: list[bytes] = field(default_factory=list)
    """Of each such chunk; the last may not be full."""

    def advance(self, reader: Reader, size: int) -> None:
        """Take in what the log says up to row `size`. Raises `CheckpointError`."""
        values = {"after": self.size, "until": size}
        changed = [str(row[0]) for row in reader.query(_CHANGED, values)] if self.size else []
        for number in range(len(self.rows), size // CHUNK):
            self.rows.append(root_of(row_leaves(reader, CHUNK * number, CHUNK * (number + 1))))
        self.size = size
        self._take_plates(reader, changed)

    def rows_tree(self, reader: Reader) -> Chunked:
        return Chunked(
            self.rows, lambda first, last: row_leaves(reader, first, min(last, self.size))
        )

    def plates_tree(self, reader: Reader) -> Chunked:
        full = self.heads[: self.plates // CHUNK]
        return Chunked(
            full, lambda first, last: [leaf for _, leaf in self._chunk(reader, first // CHUNK)]
        )

    def place_of(self, reader: Reader, result_id: str) -> int | None:
        """A result's place in the second tree; None if no row is about it."""
        number = bisect_right(self.firsts, result_id) - 1
        if number < 0:
            return None
        names = [name for name, _ in self._chunk(reader, number)]
        place = bisect_left(names, result_id)
        is_there = place < len(names) and names[place] == result_id
        return CHUNK * number + place if is_there else None

    def checkpoint(self, reader: Reader, origin: str, head: str, at: str) -> Checkpoint:
        root = self.rows_tree(reader).head(0, self.size)
        return Checkpoint(origin, self.size, root, self.plates, self.plates_root(), head, at)

    def plates_root(self) -> bytes:
        return root_of(self.heads) if self.heads else EMPTY

    def _chunk(self, reader: Reader, number: int) -> list[tuple[str, bytes]]:
        last = self.firsts[number + 1] if number + 1 < len(self.firsts) else None
        return list(plate_leaves(reader, self.firsts[number], last, self.size))

    def _take_plates(self, reader: Reader, changed: list[str]) -> None:
        """Chunks in which something changed are made again; from the first on in which there is a
        result more, all are: their results move."""
        moved = max(0, len(self.firsts) - 1)
        numbers = {bisect_right(self.firsts, name) - 1 for name in changed}
        for number in sorted(number for number in numbers if number < moved):
            leaves = self._chunk(reader, number) if number >= 0 else []
            if len(leaves) != CHUNK:
                moved = max(0, number)
                break
            self.heads[number] = root_of([leaf for _, leaf in leaves])
        self._remake(reader, moved)

    def _remake(self, reader: Reader, number: int) -> None:
        """From a chunk on, one after the other: none is read for long (I8)."""
        first: str | None = self.firsts[number] if number else ""
        del self.firsts[number:], self.heads[number:]
        self.plates = CHUNK * number
        while first is not None:
            values = {"first": first, "until": self.size, "count": CHUNK + 1}
            names = [str(row[0]) for row in reader.query(_NAMES, values)]
            if not names:
                return
            first = names[CHUNK] if len(names) > CHUNK else None
            self.firsts.append(names[0])
            leaves = plate_leaves(reader, names[0], first, self.size)
            self.heads.append(root_of([leaf for _, leaf in leaves]))
            self.plates += min(CHUNK, len(names))

    # --- their file -----------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        joined = (base64.b64encode(b"".join(heads)).decode() for heads in (self.rows, self.heads))
        rows, heads = joined
        return {
            "size": self.size,
            "rows": rows,
            "plates": self.plates,
            "firsts": self.firsts,
            "heads": heads,
        }

    @classmethod
    def read(cls, directory: Path) -> Trees:
        """What the file says, or nothing: then all is made from the rows."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            said = json.loads((directory / TREES).read_bytes())
            rows, heads = (_heads(said[key]) for key in ("rows", "heads"))
            trees = cls(int(said["size"]), rows, int(said["plates"]), list(said["firsts"]), heads)
            if trees._is_sound():
                return trees
        return cls()

    def _is_sound(self) -> bool:
        chunks = -(-self.plates // CHUNK)
        return (len(self.rows), len(self.firsts), len(self.heads)) == (
            self.size // CHUNK,
            chunks,
            chunks,
        )

    def write(self, directory: Path) -> None:
        """Nothing is lost with it: no sync."""
        temporary = directory / f"{TREES}.new"
        temporary.write_text(json.dumps(self.as_json()))
        temporary.replace(directory / TREES)


def _heads(given: str) -> list[bytes]:
    data = base64.b64decode(given)
    return [data[n : n + 32] for n in range(0, len(data), 32)]


def row_leaves(reader: Reader, after: int, until: int) -> list[bytes]:
    """Leaves of the rows after one up to another. Raises `CheckpointError` if one is missing."""
    leaves: list[bytes] = []
    for row in reader.query(_ROWS, {"after": after, "until": until}):
        if row.seq != after + len(leaves) + 1:
            raise CheckpointError(_broken(after + len(leaves) + 1, reader))
        leaves.append(row_leaf(row.seq, row.kind, row.body_sha256))
    if len(leaves) != until - after:
        raise CheckpointError(_broken(after + len(leaves) + 1, reader))
    return leaves


def plate_leaves(
    reader: Reader, first: str, last: str | None, size: int
) -> Iterator[tuple[str, bytes]]:
    """Results of the rows up to `size`, in order of their ids, from one to before another."""
    values = {"first": first, "until": size}
    if last is None:
        rows = reader.query(_LAST_PLATES, values)
    else:
        rows = reader.query(_PLATES, {**values, "next": last})
    for name, about in groupby(rows, lambda row: str(row.result_id)):
        yield name, _leaf_of_plate(name, about)


def _broken(seq: int, reader: Reader) -> str:
    return f"row {seq} of {reader.path} is not the one that was written: see `vqi log verify`"


# --- making -------------------------------------------------------------------------------------


def last_checkpoint(reader: Reader) -> CheckpointBody | None:
    """The newest in the log."""
    bodies = checkpoints(reader)
    return bodies[-1][1] if bodies else None


def checkpoints(reader: Reader) -> list[tuple[int, CheckpointBody]]:
    """Row and body of each, in order. Raises `CheckpointError` if one cannot be read."""
    found = []
    for row in reader.query(_CHECKPOINTS, {}).all():
        try:
            found.append((int(row.seq), CheckpointBody.model_validate_json(row.body)))
        except ValueError as error:
            raise CheckpointError(_broken(row.seq, reader)) from error
    return found


def keys_of(reader: Reader) -> dict[int, str | None]:
    """Fingerprint of the key that signed each checkpoint, by the row that it is as of."""
    found = {body.size: _public(body) for _, body in checkpoints(reader)}
    return {size: fingerprint(key) if key else None for size, key in found.items()}


def prove_consistency(reader: Reader, old: Checkpoint, new: Checkpoint) -> list[bytes]:
    """That the log as of `new` begins with the log as of `old`. Raises `CheckpointError`."""
    if old.size > new.size:
        raise CheckpointError(f"row {old.size} comes after row {new.size}: name the older first")
    trees = trees_at(reader, new)
    tree = trees.rows_tree(reader)
    if old.size and tree.head(0, old.size) != old.root:
        raise CheckpointError(
            f"{reader.path}: its first {old.size} rows are not those of the checkpoint of {old.at}"
        )
    return consistency(tree, old.size, new.size)


def make_checkpoint(
    reader: Reader,
    station_id: str,
    at: str,
    key: Ed25519PrivateKey | None,
    *,
    former_keys: Collection[str] = (),
    anchors: Sequence[Anchor] = (),
) -> CheckpointBody:
    """A checkpoint of what the log says now; the trees' file is brought up to it.

    Raises `CheckpointError` if the log is not what the last checkpoint signed, or does not follow
    it, or if neither this key nor one of the former ones (fingerprints) signed that, or if an
    anchor says something else: nobody signs that.
    """
    known = checkpoints(reader)
    _check_goes_on(known, key, former_keys)
    if against := check_anchors(reader, anchors, keys_of(reader)):
        raise CheckpointError(f"{against[0]}; see `vqi log verify`")
    size, before = reader.last_seq(), known[-1][1] if known else None
    trees = trees_at(reader, parsed(before.note)) if before else Trees()
    head = _head_at(reader, trees.size, size)
    trees.advance(reader, size)
    made = trees.checkpoint(reader, origin_of(station_id), head, at)
    with contextlib.suppress(OSError):
        trees.write(reader.directory)
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode() if key else None
    return CheckpointBody(
        station_id=station_id, written_at=at, size=size, note=signed(made, key), public_key=public
    )


def _check_goes_on(
    known: list[tuple[int, CheckpointBody]],
    key: Ed25519PrivateKey | None,
    former_keys: Collection[str],
) -> None:
    """A log that was signed once is signed from then on, by whoever signed it until now."""
    publics = [_public(body) for _, body in known]
    if not any(public is not None for public in publics):
        return
    (seq, body), public = known[-1], publics[-1]
    if public is None:
        raise CheckpointError(f"{_unsigned(seq)}: see `vqi log verify`")
    if finding := _signature_finding(seq, body, public):
        raise CheckpointError(f"{finding[0]}: see `vqi log verify`")
    if key is None:
        raise CheckpointError(f"row {seq}: the checkpoints so far are signed, and there is no key")
    before = fingerprint(public)
    if public != key.public_key().public_bytes_raw() and before not in former_keys:
        raise CheckpointError(
            f"row {seq}: another key signed it; if that was the station's until now, name it in "
            f"[proof] former_keys: {before}"
        )


def _unsigned(seq: int) -> str:
    return f"row {seq}: this checkpoint is not signed, and earlier ones are"


def _head_at(reader: Reader, believed: int, size: int) -> str:
    """Chain value of row `size`, recomputed from row `believed`."""
    before = reader.chain_at(believed) if believed else EMPTY_CHAIN
    changed = first_changed(reader.rows(believed + 1, size), before)
    if changed is not None:
        raise CheckpointError(_broken(changed, reader))
    return reader.chain_at(size) if size else EMPTY_CHAIN


def trees_at(reader: Reader, checkpoint: Checkpoint) -> Trees:
    """The trees that a checkpoint signed: from their file, or else from the rows. Raises
    `CheckpointError` if the log's rows make others."""
    kept = Trees.read(reader.directory)
    # A later one says no more how the results were.
    for trees in [kept, Trees()] if 0 < kept.size <= checkpoint.size else [Trees()]:
        with contextlib.suppress(CheckpointError, IndexError):
            trees.advance(reader, checkpoint.size)
            if _heads_of(trees, reader) == (
                checkpoint.root,
                checkpoint.plates,
                checkpoint.plates_root,
            ):
                return trees
    raise CheckpointError(
        f"{reader.path}: its first {checkpoint.size} rows are not those of its checkpoint of "
        f"{checkpoint.at}: see `vqi log verify`"
    )


def _heads_of(trees: Trees, reader: Reader) -> tuple[bytes, int, bytes]:
    root = trees.rows_tree(reader).head(0, trees.size)
    return root, trees.plates, trees.plates_root()


# --- verifying ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Replay:
    """The trees as they grow."""

    rows: Front = field(default_factory=Front)
    plates: Growing = field(default_factory=Growing)
    order: list[str] = field(default_factory=list)
    lists: dict[str, bytes] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    head: str = EMPTY_CHAIN

    def take(self, rows: Sequence[tuple[int, str, str, str, str | None]]) -> None:
        """Rows that follow. As `row_leaf` and `plate_next`; a long log has millions."""
        sha256, lists = hashlib.sha256, self.lists
        leaves = [
            sha256(f"\0{seq} {kind} {body}".encode()).digest() for seq, kind, body, _, _ in rows
        ]
        self.rows.extend(leaves)
        self.head = rows[-1][3]
        for leaf, (_, _, _, _, name) in zip(leaves, rows, strict=True):
            if name is None:
                continue
            known = lists.get(name)
            if known is None:
                known = plate_begin(name)
                self.fresh.add(name)
            else:
                self.changed.add(name)
            lists[name] = sha256(known + leaf).digest()

    def settle(self) -> None:
        """The second tree, as of now."""
        fresh = sorted(self.fresh)
        if self.order and fresh and fresh[0] < self.order[-1]:
            self.order = sorted([*self.order, *fresh])
            self.plates, again = Growing(), self.order
        else:
            self.order += fresh
            again = fresh
        self.plates.extend([plate_leaf(name, self.lists[name]) for name in again])
        for name in self.changed - self.fresh:
            place = bisect_left(self.order, name)
            self.plates.replace(place, plate_leaf(name, self.lists[name]))
        self.fresh, self.changed = set(), set()


def verify_checkpoints(
    reader: Reader, public_key: Path | None = None
) -> tuple[list[str], list[str]]:
    """Findings and notes: every checkpoint in the log against the rows before it, its signature,
    and the public key beside the log or the one given."""
    try:
        known = checkpoints(reader)
        findings = _replayed(reader, known)
    except CheckpointError as error:
        return [str(error)], []
    except (sqlite3.Error, SQLAlchemyError) as error:
        return [f"{reader.path}: checkpoints cannot be checked: {error}"], []
    notes: list[str] = []
    _check_keys(reader, known, public_key, findings, notes)
    return findings, notes


def _replayed(reader: Reader, known: list[tuple[int, CheckpointBody]]) -> list[str]:
    findings: list[str] = []
    replay = _Replay()
    for seq, body in sorted(known, key=lambda item: item[1].size):
        for after in range(replay.rows.size, body.size, _PAGE_ROWS):
            until = min(body.size, after + _PAGE_ROWS)
            rows = reader.tuples(_ALL, {"after": after, "until": until})
            if len(rows) != until - after:
                return [*findings, f"row {seq}: rows that this checkpoint signs are missing"]
            replay.take(rows)
        replay.settle()
        findings += _differences(seq, body, replay)
    return findings


def _differences(seq: int, body: CheckpointBody, replay: _Replay) -> list[str]:
    try:
        said = parsed(body.note)
    except NoteError as error:
        return [f"row {seq}: {error}"]
    pairs = {
        "is of another log": (said.origin, origin_of(body.station_id)),
        "says two sizes": (said.size, body.size),
        "comes before what it signs": (min(seq, said.size + 1), said.size + 1),
        "is of other rows": (said.root, replay.rows.root()),
        "is of other results": (said.plates, len(replay.order)),
        "is of other rows of results": (said.plates_root, replay.plates.root()),
        "has another chain value": (said.head, replay.head),
        "was made at another time": (said.at, body.written_at),
    }
    wrong = [what for what, (signed_, found) in pairs.items() if signed_ != found]
    return [f"row {seq}: this checkpoint {' and '.join(wrong)}"] if wrong else []


def _check_keys(
    reader: Reader,
    known: list[tuple[int, CheckpointBody]],
    given: Path | None,
    findings: list[str],
    notes: list[str],
) -> None:
    """Each signature by the key that its row names; the newest of these is the one beside the log,
    or the one given."""
    newest: bytes | None = None
    for seq, body in known:
        public = _public(body)
        findings += _signature_finding(seq, body, public)
        if public is None and newest is not None:
            findings.append(_unsigned(seq))
        if public is not None and newest not in (None, public):
            notes.append(f"row {seq}: signed from here on with the key {fingerprint(public)}")
        newest = public or newest
    path = given or reader.directory / PUBLIC_KEY
    if newest is None:
        notes += ["no checkpoint is signed"] if known else []
        findings += [f"{path}: no checkpoint is signed with it"] if given else []
    elif given or path.exists():
        findings += _key_finding(path, newest)
    else:
        notes.append(f"{path}: not there; checkpoints say themselves whose they are")


def _public(body: CheckpointBody) -> bytes | None:
    with contextlib.suppress(ValueError):
        return base64.b64decode(body.public_key) if body.public_key else None
    return b""


def _key_finding(path: Path, signed_with: bytes) -> list[str]:
    try:
        public = read_public(path)
    except SigningKeyError as error:
        return [str(error)]
    if public == signed_with:
        return []
    other = f"{fingerprint(signed_with)} signed the log's last checkpoint"
    return [f"{path}: the key {fingerprint(public)}, and {other}"]


def _signature_finding(seq: int, body: CheckpointBody, public: bytes | None) -> list[str]:
    try:
        if public is not None:
            check_signature(body.note, public)
        elif is_signed(body.note):
            return [f"row {seq}: signed by nobody that it names"]
    except (NoteError, ValueError) as error:
        return [f"row {seq}: {error}"]
    return []


# --- the process --------------------------------------------------------------------------------


class Order(BaseModel):
    """What the journal process wants a checkpoint of."""

    directory: Path
    station_id: str
    written_at: str
    proof: ProofSettings


def main() -> int:
    """An order on stdin; on stdout the row to be written, and what could not be done. The anchors
    are said before that: they are of rows that are durable."""
    order = Order.model_validate_json(sys.stdin.read())
    problems: list[str] = []
    try:
        key = load_key(order.proof.key_file)
    except SigningKeyError as error:
        key, problems = None, [f"checkpoints are not signed: {error}"]
    said, unread = said_in(order.proof.anchor_file)
    former, at = order.proof.former_keys, order.written_at
    try:
        with Reader(order.directory) as reader:
            body = make_checkpoint(
                reader, order.station_id, at, key, former_keys=former, anchors=said
            )
    except (StoreError, CheckpointError) as error:
        sys.stderr.write("; ".join([*problems, f"{error}\n"]))
        return 1
    problems += unread
    public = _public(body)
    anchor = anchor_of(parsed(body.note), fingerprint(public) if public else None)
    problems += publish(anchor, order.proof, order.directory)
    sys.stdout.write(json.dumps({"body": body.as_json(), "problems": problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
