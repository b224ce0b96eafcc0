"""Which pictures may go: the rules, what a hold covers, and a catalogue to ask the log quickly.

Records are never removed. A picture goes in two steps: a chained tombstone says why, and only once
no result without a tombstone names the file is it removed. What decides here is pure; the journal
process asks `objection` before it writes a tombstone, and `vqi log verify` asks it again of every
tombstone in the log.

The catalogue is derived from the log and may be deleted at any time. It is brought up by SQLite
itself, from row to row, in a process that gives way to every other (`python -m station.retention`):
in the journal process it would hold the interpreter while a verdict waits.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel

from station.config import KeepRule
from station.record import HoldBody, PictureClass, RetentionBody, TombstoneBody

CATALOGUE = "catalogue.db"
PASSED = (PictureClass.PASS_PREVIEW, PictureClass.PASS_WHOLE, PictureClass.AUDIT)
"""Classes of pictures that a nearly full disk may take."""
PASSES_GO_LEVEL = 2
"""From this level of the disk on, the oldest pictures of passed plates are removed."""
READY_LEVEL = 3
"""From this level of the disk on, the station is not ready."""
FOLDERS = 256
_MOST = 512
"""Pictures that one plan names at most."""
_RECENT = 1000
"""Removed pictures whose files are looked for at every pass; older ones: folder by folder."""
_BATCH_ROWS = 2000
_BUSY_TIMEOUT_S = 60.0
"""A catalogue that a process of a life before still brings up is waited for so long."""
_DAY_S = 86_400.0

Rules = Mapping[PictureClass, KeepRule]
RuleName = Literal["days", "size", "watermark"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A stored picture of one result."""

    result_id: str
    role: str
    path: str
    sha256: str
    bytes: int
    picture_class: PictureClass
    written_at: str
    """Of the result."""
    part_id: str | None = None
    lot: str | None = None
    aged_from: str = ""
    """The newest label that the log had by then, where that is later: a clock that had fallen back
    makes no picture older than the ones before it."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """A picture that a rule removes."""

    picture: Picture
    rule: RuleName
    measured: float
    limit: float


def is_held(picture: Picture, holds: Iterable[HoldBody]) -> bool:
    """True if a hold covers the picture's result."""
    return any(_covers(hold, picture) for hold in holds)


def _covers(hold: HoldBody, picture: Picture) -> bool:
    wanted = (
        (hold.result_id, picture.result_id),
        (hold.part_id, picture.part_id),
        (hold.lot, picture.lot),
    )
    if any(held is not None and held != found for held, found in wanted):
        return False
    at = _time(picture.written_at)
    starts = hold.since_at is None or _time(hold.since_at) <= at
    return starts and (hold.until_at is None or at < _time(hold.until_at))


def class_of(result: Mapping[str, Any], role: str, verdicts: Iterable[str]) -> PictureClass:
    """What a result's picture is kept for; `verdicts` are those of its reviews. The strictest ever
    given counts: what a person called a fail is evidence of a fail."""
    given = {result["verdict"], *verdicts}
    if "FAIL" in given:
        return PictureClass.FAIL
    if "UNDECIDED" in given:
        return PictureClass.UNDECIDED
    if role == "preview":
        return PictureClass.PASS_PREVIEW
    return PictureClass.AUDIT if result.get("is_audit_sample") else PictureClass.PASS_WHOLE


def pictures_of(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """The pictures that a result's rows name and that no tombstone among them removed."""
    results = [row for row in rows if row["kind"] == "result"]
    gone = {row["path"] for row in rows if row["kind"] == "tombstone"}
    verdicts = [row["verdict"] for row in rows if row["kind"] == "review"]
    return [
        Picture(
            result["result_id"],
            image["role"],
            image["path"],
            image["sha256"],
            image["bytes"],
            class_of(result, image["role"], verdicts),
            result["written_at"],
            result.get("part_id"),
            result.get("lot"),
        )
        for result in results
        for image in result.get("images") or ()
        if image["path"] not in gone
    ]


def choose(
    pictures: Iterable[Picture],
    rule: KeepRule,
    used_mb: float,
    holds: Sequence[HoldBody],
    now: datetime,
    least_days: float = 0.0,
) -> Iterator[Doomed]:
    """What the rule of one class removes of its pictures, oldest first. `used_mb` is without what
    is on hold; younger than `least_days` nothing goes for its size."""
    for picture in pictures:
        days = age_days(picture, now)
        if is_held(picture, holds):
            continue
        if rule.days is not None and days >= rule.days:
            yield Doomed(picture, "days", days, rule.days)
        elif rule.mb is not None and used_mb > rule.mb and days >= least_days:
            yield Doomed(picture, "size", used_mb, rule.mb)
        else:
            return
        used_mb -= picture.bytes / 1e6


def choose_for_room(
    pictures: Iterable[Picture],
    room: Room,
    holds: Sequence[HoldBody],
    now: datetime,
    least_days: float,
) -> Iterator[Doomed]:
    """The oldest pictures of passed plates, until there is so much room as is wanted."""
    free_mb = room.free_mb
    for picture in pictures:
        if free_mb >= room.wanted_mb or age_days(picture, now) < least_days:
            return
        if picture.picture_class in PASSED and not is_held(picture, holds):
            yield Doomed(picture, "watermark", room.free_mb, room.wanted_mb)
            free_mb += picture.bytes / 1e6


def objection(
    stone: TombstoneBody,
    picture: Picture | None,
    rules: RetentionBody | None,
    holds: Iterable[HoldBody],
    disk_level: int,
    ahead_s: float = 0.0,
) -> str:
    """Why this tombstone may not be, by what the log said before it; empty if it may."""
    if picture is None or (picture.path, picture.sha256) != (stone.path, stone.sha256):
        return f"{stone.result_id} has no such picture"
    if picture.picture_class is not stone.picture_class:
        return f"the picture is {picture.picture_class}, not {stone.picture_class}"
    if is_held(picture, holds):
        return f"{stone.result_id} is on hold"
    if rules is None:
        return "no rules were written"
    if ahead_s > 3600 * rules.clock_jump_limit_h:
        return f"the clock was set ahead by {ahead_s / 3600:.1f} h"
    days = age_days(picture, _time(stone.written_at))
    if stone.rule == "watermark":
        return _room_objection(stone, days, rules, disk_level)
    key: Literal["days", "mb"] = "days" if stone.rule == "days" else "mb"
    limit = rules.rules.get(stone.picture_class, {}).get(key)
    if limit is None:
        return f"no rule in {key} holds for {stone.picture_class}"
    measured = min(stone.measured, days) if key == "days" else stone.measured
    if measured < limit:
        return f"{stone.picture_class} is kept for {limit:g} {key}, this was {measured:.4g}"
    if key == "mb" and picture.picture_class not in PASSED:
        return _youth_objection(days, rules)
    return ""


def _room_objection(
    stone: TombstoneBody, days: float, rules: RetentionBody, disk_level: int
) -> str:
    if stone.picture_class not in PASSED:
        return f"{stone.picture_class} is never removed for room"
    if disk_level < PASSES_GO_LEVEL:
        return f"the disk was at level {disk_level}"
    return _youth_objection(days, rules)


def _youth_objection(days: float, rules: RetentionBody) -> str:
    if days < rules.min_pass_days:
        return f"it was {days:.4g} days old, {rules.min_pass_days:g} are the least"
    return ""


def age_days(picture: Picture, now: datetime) -> float:
    """By the labels of the wall clock, in the order of the log."""
    since = max(picture.written_at, picture.aged_from)
    return (now - _time(since)).total_seconds() / _DAY_S


def newest_label(before: str, body: Mapping[str, Any]) -> str:
    """The newest label of a log, `before` being that of the rows before; since a person last said
    that the clock is right."""
    label = str(body.get("written_at") or "")
    is_accepted = body.get("kind") == "clock" and body.get("cause") == "accepted"
    return label if is_accepted else max(before, label)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


# --- the catalogue ------------------------------------------------------------------------------

_SCHEMA = """
    CREATE TABLE meta (
        seq INTEGER NOT NULL, chain_sha256 TEXT NOT NULL, newest_at TEXT NOT NULL);
    INSERT INTO meta VALUES (0, '', '');
    CREATE TABLE picture (
        path TEXT, result_id TEXT, role TEXT, sha256 TEXT, bytes INTEGER, class TEXT,
        written_at TEXT, part_id TEXT, lot TEXT, aged_from TEXT,
        PRIMARY KEY (path, result_id)) WITHOUT ROWID;
    CREATE INDEX picture_age ON picture (class, aged_from);
    CREATE INDEX picture_result ON picture (result_id);
    CREATE TABLE gone (seq INTEGER PRIMARY KEY, path TEXT);
    CREATE TABLE hold (hold_id TEXT PRIMARY KEY, body TEXT);
"""
# As `newest_label` says, row by row.
_LABELS = """
    CREATE TEMP TABLE label (seq INTEGER PRIMARY KEY, newest_at TEXT NOT NULL)
"""
_STEPS = (
    "DELETE FROM label",
    """INSERT INTO label SELECT seq, max(
           CASE era WHEN 0 THEN max(at, (SELECT newest_at FROM meta)) ELSE at END
       ) OVER (PARTITION BY era ORDER BY seq) FROM (
           SELECT seq, coalesce(written_at, '') AS at,
                  sum(kind = 'clock' AND body ->> '$.cause' = 'accepted') OVER (ORDER BY seq) AS era
           FROM log.row WHERE seq > :first AND seq <= :last)""",
    "UPDATE meta SET newest_at = (SELECT newest_at FROM label WHERE seq = :last)",
    """INSERT OR IGNORE INTO picture
       SELECT image.value ->> 'path', result_id, image.value ->> 'role', image.value ->> 'sha256',
              image.value ->> 'bytes',
              CASE WHEN verdict = 'FAIL' THEN 'fail' WHEN verdict = 'UNDECIDED' THEN 'undecided'
                   WHEN image.value ->> 'role' = 'preview' THEN 'pass_preview'
                   WHEN body ->> '$.is_audit_sample' THEN 'audit' ELSE 'pass_whole' END,
              written_at, part_id, body ->> '$.lot',
              (SELECT newest_at FROM label WHERE label.seq = row.seq)
       FROM log.row, json_each(body, '$.images') AS image
       WHERE seq > :first AND seq <= :last AND +kind = 'result'""",
    """UPDATE picture SET class = 'undecided' WHERE class NOT IN ('fail', 'undecided')
       AND result_id IN (SELECT result_id FROM log.row WHERE seq > :first AND seq <= :last
                         AND +kind = 'review' AND +verdict = 'UNDECIDED')""",
    """UPDATE picture SET class = 'fail' WHERE class <> 'fail'
       AND result_id IN (SELECT result_id FROM log.row WHERE seq > :first AND seq <= :last
                         AND +kind = 'review' AND +verdict = 'FAIL')""",
    """DELETE FROM picture WHERE (path, result_id) IN (
           SELECT body ->> '$.path', result_id FROM log.row
           WHERE seq > :first AND seq <= :last AND +kind = 'tombstone')""",
    """INSERT INTO gone SELECT seq, body ->> '$.path' FROM log.row
       WHERE seq > :first AND seq <= :last AND +kind = 'tombstone'""",
    """DELETE FROM hold WHERE hold_id IN (SELECT body ->> '$.hold_id' FROM log.row
           WHERE seq > :first AND seq <= :last AND +kind = 'release')""",
    """INSERT OR REPLACE INTO hold SELECT body ->> '$.hold_id', body FROM log.row AS held
       WHERE seq > :first AND seq <= :last AND +kind = 'hold' AND NOT EXISTS (
           SELECT 1 FROM log.row WHERE seq > held.seq AND seq <= :last AND +kind = 'release'
           AND body ->> '$.hold_id' = held.body ->> '$.hold_id')
       ORDER BY seq""",
)
_FORGET_GONE = """
    DELETE FROM gone WHERE seq <= (SELECT seq FROM gone ORDER BY seq DESC LIMIT 1 OFFSET ?)
"""
_COLUMNS = "result_id, role, path, sha256, bytes, class, written_at, part_id, lot, aged_from"


class Catalogue:
    """The pictures that the log names and no tombstone removed, as of `seq`."""

    def __init__(self, log: Path, keep: Path | None = None) -> None:
        """`log` is a database of the log; the catalogue is kept in `keep`, or in memory. Raises
        sqlite3.Error if the log cannot be read."""
        if keep is not None and not _is_catalogue_of(keep, log):
            # Also a journal that a power cut left: it belongs to the file that goes.
            keep.unlink(missing_ok=True)
            keep.with_name(keep.name + "-journal").unlink(missing_ok=True)
        self._connection = _open_both(log, keep)
        if not self._connection.execute("SELECT 1 FROM main.sqlite_master LIMIT 1").fetchone():
            self._connection.executescript(_SCHEMA)
        self._catch_up()

    def _link(self, seq: int) -> str | None:
        query = "SELECT chain_sha256 FROM log.row WHERE seq = ?"
        found = self._connection.execute(query, (seq,)).fetchone()
        return found[0] if found else None

    def _catch_up(self) -> None:
        """Row after row, in transactions that are short for the log."""
        self.seq = self._one("SELECT seq FROM meta")
        end = self._one("SELECT coalesce(max(seq), 0) FROM log.row")
        while self.seq < end:
            last = min(self.seq + _BATCH_ROWS, end)
            self._connection.execute("BEGIN IMMEDIATE")
            for step in _STEPS:
                self._connection.execute(step, {"first": self.seq, "last": last})
            seen = (last, self._link(last))
            self._connection.execute("UPDATE meta SET seq = ?, chain_sha256 = ?", seen)
            self._connection.execute("COMMIT")
            self.seq = last
        self._connection.execute(_FORGET_GONE, (_RECENT,))

    def oldest(self, *classes: PictureClass) -> Iterator[Picture]:
        """Pictures of these classes, oldest first."""
        marks = ", ".join("?" * len(classes))
        query = f"SELECT {_COLUMNS} FROM picture WHERE class IN ({marks}) ORDER BY aged_from"
        for row in self._connection.execute(query, [str(one) for one in classes]):
            name, role, path, sha256, size, kind, *others = row
            yield Picture(name, role, path, sha256, size, PictureClass(kind), *others)

    def used(self) -> dict[PictureClass, tuple[int, float]]:
        """Files and MB of each class."""
        query = (
            "SELECT class, count(*), sum(bytes) / 1e6 FROM "
            "(SELECT DISTINCT class, path, bytes FROM picture) GROUP BY class"
        )
        found = self._connection.execute(query)
        return {PictureClass(name): (count, mb) for name, count, mb in found}

    def holds(self) -> list[HoldBody]:
        """The holds that are not released."""
        query = "SELECT body FROM hold ORDER BY hold_id"
        return [HoldBody.model_validate_json(row[0]) for row in self._connection.execute(query)]

    def has(self, path: str) -> bool:
        """True if a result names this file and no tombstone removed it there."""
        query = "SELECT 1 FROM picture WHERE path = ? LIMIT 1"
        return self._connection.execute(query, (path,)).fetchone() is not None

    def recently_gone(self) -> set[str]:
        """Files that the last tombstones speak of."""
        return {row[0] for row in self._connection.execute("SELECT path FROM gone")}

    def had(self, path: str) -> bool:
        """True if a tombstone speaks of this file, however old; reads all tombstones."""
        query = "SELECT 1 FROM log.row WHERE kind = 'tombstone' AND body ->> '$.path' = ? LIMIT 1"
        return self._connection.execute(query, (path,)).fetchone() is not None

    def _one(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_both(log: Path, keep: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(
        keep or ":memory:", isolation_level=None, uri=True, timeout=_BUSY_TIMEOUT_S
    )
    connection.execute("ATTACH ? AS log", (f"{log.absolute().as_uri()}?mode=ro",))
    connection.execute(_LABELS)
    return connection


def _is_catalogue_of(keep: Path, log: Path) -> bool:
    """The row up to which it was brought is that of this log, and not of one restored."""
    if not keep.exists():
        return False
    query = (
        "SELECT 1 FROM meta LEFT JOIN log.row USING (seq) "
        "WHERE meta.newest_at IS NOT NULL "
        "AND (meta.seq = 0 OR meta.chain_sha256 = row.chain_sha256)"
    )
    try:
        with contextlib.closing(_open_both(log, keep)) as connection:
            return connection.execute(query).fetchone() is not None
    except sqlite3.DatabaseError:
        return False


# --- the plan -----------------------------------------------------------------------------------


class Room(BaseModel):
    """What a nearly full disk wants."""

    free_mb: float
    wanted_mb: float
    """Free disk to come to."""


class Order(BaseModel):
    """What the journal process asks for."""

    log: Path
    """The database."""
    images: Path
    rules: dict[PictureClass, KeepRule]
    min_pass_days: float
    now: datetime
    room: Room | None = None
    is_removing: bool = True
    """False where the clock is not to be believed: nothing is removed."""
    folders: list[int] = []
    """Of pictures, to be searched for files that no row names."""
    is_counting: bool = False
    """Say how much all pictures are; it reads the whole catalogue."""


class Step(BaseModel):
    """A picture that a rule removes."""

    result_id: str
    path: str
    rule: RuleName
    measured: float
    limit: float
    aged_from: str = ""
    """As the picture's; rows that stand do not change it."""


class Plan(BaseModel):
    """What the journal process is to do, as of a row of the log."""

    as_of: int
    doomed: list[Step] = []
    leftovers: list[str] = []
    """Files whose results all have a tombstone for them."""
    orphans: list[str] = []
    """Files that no row ever named."""
    kept_mb: float | None = None
    """Of all pictures that the log names, where that was asked."""


def make_plan(order: Order, catalogue: Catalogue) -> Plan:
    """What is to go, and what lies about."""
    left, orphans = _strays(order, catalogue)
    kept_mb = sum(mb for _, mb in catalogue.used().values()) if order.is_counting else None
    plan = Plan(as_of=catalogue.seq, orphans=orphans, kept_mb=kept_mb)
    if not order.is_removing:
        return plan
    if order.room is not None:
        # What is about to go makes room, too.
        order.room.free_mb += sum((order.images / path).stat().st_size for path in left) / 1e6
    doomed = islice(all_doomed(order, catalogue), _MOST)
    return plan.model_copy(update={"leftovers": left, "doomed": [_step(one) for one in doomed]})


def _step(doomed: Doomed) -> Step:
    return Step(
        result_id=doomed.picture.result_id,
        path=doomed.picture.path,
        rule=doomed.rule,
        measured=doomed.measured,
        limit=doomed.limit,
        aged_from=doomed.picture.aged_from,
    )


def all_doomed(order: Order, catalogue: Catalogue) -> Iterator[Doomed]:
    """What the rules remove, class by class, then what a full disk wants of passed plates."""
    holds = catalogue.holds()
    used = catalogue.used() if any(rule.mb for rule in order.rules.values()) else {}
    for kind, rule in order.rules.items():
        _, used_mb = used.get(kind, (0, 0.0))
        if rule.mb is not None and holds:
            used_mb -= _held_mb(catalogue.oldest(kind), holds)
        least_days = 0.0 if kind in PASSED else order.min_pass_days
        yield from choose(catalogue.oldest(kind), rule, used_mb, holds, order.now, least_days)
    if order.room is not None:
        passed = catalogue.oldest(*PASSED)
        yield from choose_for_room(passed, order.room, holds, order.now, order.min_pass_days)


def _held_mb(pictures: Iterable[Picture], holds: Sequence[HoldBody]) -> float:
    held = {one.path: one.bytes for one in pictures if is_held(one, holds)}
    return sum(held.values()) / 1e6


def _strays(order: Order, catalogue: Catalogue) -> tuple[list[str], list[str]]:
    """Files that no result names any more, and those that none ever did."""
    left = {path for path in catalogue.recently_gone() if (order.images / path).exists()}
    unnamed = {path for path in _files(order.images, order.folders) if not catalogue.has(path)}
    left |= {path for path in islice(unnamed - left, _MOST) if catalogue.had(path)}
    left = {path for path in left if not catalogue.has(path)}
    return sorted(left), sorted(unnamed - left)[:_MOST]


def _files(images: Path, folders: Iterable[int]) -> Iterator[str]:
    for number in folders:
        name = f"{number:02x}"
        with contextlib.suppress(FileNotFoundError):
            yield from (f"{name}/{entry.name}" for entry in os.scandir(images / name))


def main() -> None:
    """An order on stdin, a plan on stdout."""
    order = Order.model_validate_json(sys.stdin.read())
    with Catalogue(order.log, order.log.with_name(CATALOGUE)) as catalogue:
        print(make_plan(order, catalogue).model_dump_json())  # noqa: T201


if __name__ == "__main__":
    main()
