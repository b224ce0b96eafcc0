"""Judges a station from three things it cannot talk to: wires, the log's file, and the belt.

Nothing here is the station's own code: rows are read with sqlite `mode=ro`, the chain and every
picture are checked anew, and what the tower shows is decoded from the bytes that it was sent.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import sqlite3
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from campaign.belt import Belt
from campaign.panel import Wires
from campaign.tower import Pattern, Wire

Json = dict[str, Any]

LEASE_LIMIT_NS = 2_000_000_000
"""I2: whatever happened, green is gone so long after the fault or the next leading edge."""
_OK_SLACK_NS = 500_000_000
"""From a verdict to its commit and the link's next cycle, OK still speaks of the plate before."""
_SILENT_LIMIT_NS = 4_000_000_000
"""READY and OK are gone if no plate was judged for so long: the lease, two plates and a stop."""
_FIRM_S = 0.02
"""A station may take the belt to be half a frame height and its travel in this time from where it
is (docs/plc.md, "Where the belt is"); within that a plate is not held to be at the accept point."""
_CANCEL_LIMIT_NS = 100_000_000
"""Accept ends with what ERROR says: a turn of its thread, 50 ms, and as long for a busy machine."""
_ANSWER_LIMIT_NS = 5_000_000_000
"""A plate's result may follow those of later plates for so long after its trailing edge."""
_GAP = "gap"
_JUDGED = ("PASS", "FAIL")


@dataclass
class Findings:
    """What must never be; every list is empty for a station that can be trusted."""

    false_greens: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    wrong_rejects: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    """Plates that the belt carried or a row opened, and no row answers for."""

    @property
    def all(self) -> list[str]:
        return [f"{f.name}: {text}" for f in fields(self) for text in getattr(self, f.name)]

    def counts(self) -> dict[str, int]:
        return {f.name: len(getattr(self, f.name)) for f in fields(self)}


# --- the log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    seq: int
    kind: str
    body: Json
    chain: str


class LogWatch:
    """Reads the log as it grows, and remembers every row that anybody could have seen."""

    def __init__(self, journal: Path) -> None:
        self._file, self._images = journal / "journal.db", journal / "images"
        self._connection: sqlite3.Connection | None = None
        self.rows: list[Row] = []
        self.broken: list[str] = []
        """Rows that are not what was hashed, or do not follow the one before."""

    def read(self) -> list[Row]:
        """The rows that are new. An unreadable log has none."""
        before = self.rows[-1].chain if self.rows else "0" * 64
        last = self.rows[-1].seq if self.rows else 0
        new = []
        for seq, kind, body, sha256, link in self._query("WHERE seq > ? ORDER BY seq", last):
            problem = _unlike(before, seq, last + 1, kind, body, sha256, link)
            if problem:
                self.broken.append(problem)
            new.append(Row(seq, kind, json.loads(body), link))
            before, last = link, seq
        self.rows += new
        return new

    def forgotten(self) -> list[str]:
        """Rows that were there once and are not now, or say something else."""
        now = {seq: link for seq, _, _, _, link in self._query("", None)}
        if not now:
            return []  # it cannot be read; that is not a loss yet
        lost = (row for row in self.rows if now.get(row.seq) != row.chain)
        return [f"row {row.seq} ({row.kind} {row.body.get('result_id', '')})" for row in lost]

    def dangling(self, body: Json) -> list[str]:
        """Pictures of a row that are missing or not those that were recorded."""
        found = []
        for image in body.get("images") or ():
            path = self._images / image["path"]
            try:
                data = path.read_bytes()
            except OSError as error:
                found.append(f"{body['result_id']}: {path.name}: {error.strerror}")
                continue
            if hashlib.sha256(data).hexdigest() != image["sha256"]:
                found.append(f"{body['result_id']}: {path.name} is another picture")
        return found

    def release(self) -> None:
        """Let go of the file, so that its disk can be unmounted."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forget_after(self, seq: int) -> None:
        """Rows beyond `seq` were put there by a fault that has been taken back."""
        self.rows = [row for row in self.rows if row.seq <= seq]

    def _query(self, where: str, value: int | None) -> list[Any]:
        query = f"SELECT seq, kind, body, body_sha256, chain_sha256 FROM row {where}"
        try:
            if self._connection is None:
                uri = f"file:{self._file}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=0.2)
            return self._connection.execute(query, () if value is None else (value,)).fetchall()
        except sqlite3.Error:
            self.release()
            return []


def _when(item: tuple[int, Json]) -> int:
    return item[0]


def _unlike(
    before: str, seq: int, wanted_seq: int, kind: str, body: str, sha256: str, link: str
) -> str:
    if seq != wanted_seq:
        return f"row {wanted_seq} is missing"
    if hashlib.sha256(body.encode()).hexdigest() != sha256:
        return f"row {seq} is not what was hashed"
    chain = hashlib.sha256(f"{before} {seq} {kind} {sha256}".encode()).hexdigest()
    return "" if chain == link else f"row {seq} does not follow the one before"


# --- the judge ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Files in which others wrote down what they were sent."""

    tower: Path
    panel: Path
    stdout: Path


class Observer:
    """One life of a station, from its first row on."""

    def __init__(self, journal: Path, seen: Seen, belt: Belt, accept_mm: float) -> None:
        self.log, self.lamp, self.belt = LogWatch(journal), Wire(seen.tower), belt
        self.wires = Wires(seen.panel)
        self._accept_rows = belt.rows(accept_mm)
        """From the camera to the accept point."""
        self._firm_rows = belt.settings.frame_height / 2 + _FIRM_S * belt.rows_s
        self._stdout, self._told = seen.stdout, 0
        self.results: dict[str, Json] = {}
        self._decided: list[tuple[int, Json]] = []
        """Results of plates by the time of their verdict."""
        self._plates: dict[int, str] = {}
        self._spans: list[tuple[int, int, str]] = []
        """Plates (after, up to) that passed unseen, by the row that answers for them."""
        self._opened: dict[str, int] = {}
        self._acknowledged: set[str] = set()
        self._twice: list[str] = []
        self._dangling: list[str] = []
        self._reported: set[str] = set()
        self._first: int | None = None
        self._judged_ns: int | None = None
        self._blinds: list[tuple[int, int]] = []

    def look(self) -> list[Row]:
        """Take in what is new on the wire and in the log."""
        self.lamp.read()
        self.wires.read()
        rows = self.log.read()
        for row in rows:
            self._take(row)
        return rows

    def next_judged(self, after_ns: int) -> Json | None:
        """The first plate whose leading edge came after a moment and that was judged."""
        first = bisect.bisect_right(self._decided, after_ns, key=_when)
        for _, body in self._decided[first:]:
            if body["opened_ns"] > after_ns and body["verdict"] in _JUDGED:
                return body
        return None

    @property
    def has_open_plate(self) -> bool:
        """Whether the newest plate that was opened has no result yet."""
        newest = next(reversed(self._opened), None)
        return newest is not None and newest not in self.results

    def verdicts(self) -> dict[int, str]:
        """By the plate's number."""
        return {plate: self.results[name]["verdict"] for plate, name in self._plates.items()}

    def judge(
        self, since_ns: int, blind: tuple[int, int] | None = None, is_over: bool = False
    ) -> Findings:
        """What was wrong since a moment, and since it was last asked. `blind`: a time in which no
        byte reached the tower, for which nobody can be blamed. `is_over`: the station has ended,
        and no row is to come. Each finding is told once."""
        since_ns = min(since_ns, self._judged_ns or since_ns)
        if blind is not None:
            self._blinds.append(blind)
        self.look()
        self._judged_ns = time.monotonic_ns()
        self._read_stdout()
        found = Findings(
            false_greens=[
                *self._false_greens(since_ns),
                *self._false_ok(since_ns),
                *self._false_ready(since_ns),
                *self._escapes(),
            ],
            lost=self.log.forgotten() + self.log.broken + self._unkept_promises(),
            duplicated=self._twice + self._covered_twice(),
            dangling=self._dangling,
            wrong_rejects=self._wrong_accepts(since_ns) + self._accepts_beside_error(since_ns),
            unrecorded=self._unrecorded() + self._unanswered(is_over),
        )
        self.log.broken, self._twice, self._dangling = [], [], []
        for f in fields(found):
            new = [text for text in getattr(found, f.name) if text not in self._reported]
            self._reported.update(new)
            setattr(found, f.name, new)
        return found

    # --- green ----------------------------------------------------------------------------------

    def green_left_s(self, since_ns: int) -> float | None:
        """From a moment until green was gone; None if it was not lit then."""
        for pattern in self.lamp.greens(since_ns):
            if pattern.since_ns <= since_ns:
                end_ns = time.monotonic_ns() if pattern.until_ns is None else pattern.until_ns
                return (end_ns - since_ns) / 1e9
        return None

    def _false_greens(self, since_ns: int) -> list[str]:
        problems = (self._why_false(pattern) for pattern in self.lamp.greens(since_ns))
        return [problem for problem in problems if problem]

    def _blind_in(self, on_ns: int, off_ns: int) -> list[tuple[int, int]]:
        """Times of blindness that a time overlaps."""
        return [blind for blind in self._blinds if on_ns <= blind[1] and off_ns >= blind[0]]

    def _why_false(self, green: Pattern) -> str:
        """Empty for a green that speaks of the newest plate, whose record is durable and PASS."""
        on_ns, off_ns = green.since_ns, green.until_ns or time.monotonic_ns()
        body = self._spoken_of(on_ns)
        if body is None:
            return f"green at {on_ns} and no plate was decided"
        text = f"green at {on_ns} after {body['result_id']}"
        if body["verdict"] != "PASS":
            return f"{text}, which is {body['verdict']} {body['reason'] or ''}"
        limit_ns = self.belt.leading_ns(body["plate_ordinal"] + 1) + LEASE_LIMIT_NS
        for _, blind_until_ns in self._blind_in(on_ns, off_ns):
            limit_ns = max(limit_ns, blind_until_ns + LEASE_LIMIT_NS)
        if off_ns > limit_ns:
            late_s = (off_ns - limit_ns + LEASE_LIMIT_NS) / 1e9
            return f"{text}, still {late_s:.2f} s after the next plate's leading edge"
        return ""

    def _spoken_of(self, at_ns: int, slack_ns: int = 0) -> Json | None:
        """The plate that a green which begins then would be taken to speak of: the newest that was
        decided. `slack_ns`: so long the one before may still be meant."""
        index = bisect.bisect_right(self._decided, at_ns, key=_when)
        while index > 0:
            decided_ns, body = self._decided[index - 1]
            if body["verdict"] == "PASS" or at_ns - decided_ns >= slack_ns:
                return body
            index -= 1
        return None

    def _escapes(self) -> list[str]:
        """Plates that the belt knows to be defective, and that passed."""
        return [
            f"{body['result_id']}: plate {body['plate_ordinal']} is defective and passed"
            for _, body in self._decided
            if body["verdict"] == "PASS" and self.belt.is_defective(body["plate_ordinal"])
        ]

    # --- READY, OK, accept ----------------------------------------------------------------------

    def _false_ready(self, since_ns: int) -> list[str]:
        """READY while the belt carried plates and none was judged."""
        return [
            f"{name} was on for {(off_ns - last_ns) / 1e9:.2f} s after the last plate was judged"
            for name in ("ready", "ok")
            for on in self.wires.on(name, since_ns)
            for off_ns in [on.until_ns or time.monotonic_ns()]
            for last_ns in [self._last_alive(off_ns, on.since_ns)]
            if off_ns - last_ns > _SILENT_LIMIT_NS
        ]

    def _last_alive(self, at_ns: int, since_ns: int) -> int:
        """The last moment until `at_ns` at which a wire that is on since `since_ns` was right."""
        index = bisect.bisect_right(self._decided, at_ns, key=_when)
        last_ns = max(since_ns, self._decided[index - 1][0] if index else 0)
        for _, blind_until_ns in self._blind_in(since_ns, at_ns):
            last_ns = max(last_ns, min(blind_until_ns, at_ns))
        return last_ns

    def _false_ok(self, since_ns: int) -> list[str]:
        """OK that goes on for a plate that did not pass, or stays over one."""
        found = []
        for on in self.wires.on("ok", since_ns):
            body = self._spoken_of(on.since_ns, _OK_SLACK_NS)
            if body is None or body["verdict"] != "PASS":
                found.append(f"OK at {on.since_ns} after {body and body['result_id']}")
            off_ns = on.until_ns or time.monotonic_ns()
            later = self._decided[bisect.bisect_right(self._decided, on.since_ns, key=_when) :]
            found += [
                f"OK stayed over {body['result_id']}, {body['verdict']}"
                for decided_ns, body in later
                if body["verdict"] != "PASS" and off_ns > self._due_ns(decided_ns, off_ns)
            ]
        return found

    def _due_ns(self, decided_ns: int, off_ns: int) -> int:
        """When a wire that was still on at a verdict has to be off: the lease, and after a
        blindness that comes meanwhile once more."""
        due_ns = decided_ns + LEASE_LIMIT_NS
        for blind_from_ns, blind_until_ns in self._blind_in(decided_ns, off_ns):
            if blind_from_ns < due_ns:
                due_ns = max(due_ns, blind_until_ns + LEASE_LIMIT_NS)
        return due_ns

    def _wrong_accepts(self, since_ns: int) -> list[str]:
        """Plates that were let through and are not recorded as passed. A pulse that is not over is
        looked at again."""
        found = []
        for on in self.wires.on("accept", since_ns):
            last = self._plate_at_accept(on.until_ns or on.since_ns)
            for plate in range(self._plate_at_accept(on.since_ns), last + 1):
                name = self._plates.get(plate)
                verdict = self.results[name]["verdict"] if name else "without a record"
                if verdict != "PASS":
                    found.append(f"accept at {on.since_ns}: plate {plate} is {verdict}")
            off_ns = on.until_ns or time.monotonic_ns()
            if off_ns - on.since_ns > LEASE_LIMIT_NS:
                found.append(f"accept at {on.since_ns} stayed {(off_ns - on.since_ns) / 1e9:.2f} s")
        return found

    def _is_judging_between(self, from_ns: int, to_ns: int) -> bool:
        """Whether the station decided by what it saw: one with an ERROR of its own does not."""
        first = bisect.bisect_right(self._decided, from_ns, key=_when)
        last = bisect.bisect_left(self._decided, to_ns, key=_when)
        return any(body["verdict"] != "UNDECIDED" for _, body in self._decided[first:last])

    def _plate_at_accept(self, at_ns: int) -> int:
        """The plate that is at the accept point, or was there last."""
        row = self.belt.row_at(at_ns) - self._accept_rows
        return self.belt.lap.plates_before(row - self._firm_rows)

    def _accepts_beside_error(self, since_ns: int) -> list[str]:
        """A pulse that goes on, or begins, though nobody answers for it any more."""
        found = []
        for on in self.wires.on("accept", since_ns):
            if on.until_ns is None or self._blind_in(on.since_ns, on.until_ns):
                continue
            for error in self.wires.on("error", since_ns):
                if self._is_judging_between(error.since_ns, on.since_ns):
                    continue  # what a process left that died, while there was no link to the PLC
                began_ns = max(on.since_ns, error.since_ns)
                ended_ns = min(on.until_ns, error.until_ns or on.until_ns)
                if ended_ns - began_ns > _CANCEL_LIMIT_NS:
                    found.append(f"accept at {on.since_ns} stayed beside ERROR at {error.since_ns}")
        return found

    # --- rows -----------------------------------------------------------------------------------

    def _take(self, row: Row) -> None:
        body = row.body
        if row.kind == "opened":
            self._opened[body["result_id"]] = body["plate_ordinal"]
        elif row.kind == "downtime":
            if body["from_ordinal"] is not None:
                self._spans.append((body["from_ordinal"], body["to_ordinal"], f"row {row.seq}"))
        elif row.kind == "result":
            self._take_result(body)

    def _take_result(self, body: Json) -> None:
        name, ordinal = body["result_id"], body["plate_ordinal"]
        self._dangling += self.log.dangling(body)
        if name in self.results:
            self._twice.append(f"{name} has two results")
        self.results[name] = body
        if body["reason"] == _GAP:
            if ordinal is not None and body["triggers"]:
                self._spans.append((ordinal - body["triggers"], ordinal, name))
            return
        if ordinal in self._plates:
            self._twice.append(f"plate {ordinal} is {self._plates[ordinal]} and {name}")
        self._plates[ordinal] = name
        bisect.insort(self._decided, (body["decided_ns"], body), key=_when)

    def _read_stdout(self) -> None:
        """Records that `vqi run --json` gave out are promises, as a light is."""
        if not self._stdout.exists():
            return
        with self._stdout.open("rb") as file:
            file.seek(self._told)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._told += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            if "result_id" in record:
                self._acknowledged.add(record["result_id"])

    def _unkept_promises(self) -> list[str]:
        missing = sorted(self._acknowledged - self.results.keys())
        return [f"{name} was given out and is not in the log" for name in missing]

    # --- the conservation law -------------------------------------------------------------------

    def _unrecorded(self) -> list[str]:
        """Plates between the first and the last known ones that no row answers for."""
        known = set(self._plates)
        for after, until, _ in self._spans:
            known.update(range(after + 1, until + 1))
        if not known:
            return []
        if self._first is None:
            self._first = min(known)
        opened = set(self._opened.values())
        missing = set(range(self._first, max(known) + 1)) - known - opened
        return [f"plate {plate} passed without a row" for plate in sorted(missing)]

    def _unanswered(self, is_over: bool) -> list[str]:
        """I3: a plate that was opened has a result, whoever died meanwhile."""
        newest, now_ns = max(self._plates, default=0), time.monotonic_ns()
        return [
            f"{name} (plate {plate}) was opened and has no result"
            for name, plate in self._opened.items()
            if name not in self.results
            if is_over or not self._can_arrive(plate, newest, now_ns)
        ]

    def _can_arrive(self, plate: int, newest: int, now_ns: int) -> bool:
        return plate > newest or self.belt.trailing_ns(plate) > now_ns - _ANSWER_LIMIT_NS

    def _covered_twice(self) -> list[str]:
        return [
            f"plate {plate} is {self._plates[plate]} and lies in {name}"
            for after, until, name in self._spans
            for plate in range(after + 1, until + 1)
            if plate in self._plates
        ]

    def behind(self, at_ns: int) -> str:
        """Where the last plate that was answered for is not the belt's once the station has ended,
        which was told to at a moment; empty if it is."""
        last = max([0, *self._plates, *(s[1] for s in self._spans)])
        low = self.belt.carried(at_ns - LEASE_LIMIT_NS)
        high = self.belt.carried(time.monotonic_ns())
        return "" if low <= last <= high + 1 else f"last plate {last}, the belt's {low}-{high}"
