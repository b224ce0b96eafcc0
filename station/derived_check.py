"""The derived tables made again from the rows' bodies, and compared with those that are there."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from station.derived import Json, Lines, lines_of
from station.tables import DEFECT, HOURLY, PLATE
from station.unsettled import ALL, is_behind

_REVIEWED = ("reviewed_verdict", "reviewer", "review_seq")
_PLATE = [c.name for c in PLATE.columns if c.name not in _REVIEWED]
_DEFECT = [c.name for c in DEFECT.columns if c.name != "kind"]
_HOUR = [c.name for c in HOURLY.columns]
_MARK = "SELECT coalesce(CAST(seq AS INTEGER), 0) FROM derived"
_SUMS = ("plates", "defects")
_HOURS = f"SELECT {', '.join(_HOUR)} FROM hourly"
_REVIEWS = f"""
    SELECT seq, result_id, {", ".join(_REVIEWED)} FROM plate
    WHERE review_seq IS NOT NULL OR reviewed_verdict IS NOT NULL OR reviewer IS NOT NULL
"""
_KINDS = """
    SELECT defect.seq, number, defect.kind, result_id
    FROM defect JOIN plate ON plate.seq = defect.seq WHERE defect.kind IS NOT NULL
"""
_SEQ, _RESULT = _PLATE.index("seq"), _PLATE.index("result_id")
_Line = tuple[Any, ...]
_MOST_FINDINGS = 1000


@dataclass(slots=True)
class _Reviewed:
    """Of a plate: what its last review says, by the rows; nothing where that takes one back."""

    seq: int
    verdict: str | None
    reviewer: str | None


@dataclass(slots=True)
class DerivedCheck:
    """Rows in order, page by page; what differs is named by its row."""

    log: sqlite3.Connection
    known: int = 0
    """The row up to which the tables say that they know; after it they may say nothing."""
    findings: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _hours: list[_Line] = field(default_factory=list)
    _reviewed: list[_Line] = field(default_factory=list)
    _named: list[_Line] = field(default_factory=list)
    _sums: dict[_Line, list[int]] = field(default_factory=dict)
    _reviews: dict[str, _Reviewed] = field(default_factory=dict)
    _kinds: dict[tuple[str, int], str] = field(default_factory=dict)
    _expected: Lines = field(default_factory=Lines)
    _from: int = -(2**63)

    @classmethod
    def of(cls, log: sqlite3.Connection, last: int) -> DerivedCheck | None:
        """None for a log of a program that had no such tables. What later rows change is read now,
        within the caller's transaction: the log may go on meanwhile."""
        try:
            said = [row[0] for row in log.execute(_MARK)]
            hours, reviewed, named = (
                log.execute(query).fetchall() for query in (_HOURS, _REVIEWS, _KINDS)
            )
            check = cls(log, min([*said, last]), [], [], hours, reviewed, named)
            check._look_at_mark(said, last)
            check._look_at_unsettled()
        except sqlite3.OperationalError:
            return None
        return check

    def _look_at_mark(self, said: list[int], last: int) -> None:
        """The one line of table derived, and that no other table knows more than it says."""
        if len(said) != 1:
            self._say(0, f"table derived has {len(said)} lines, not one")
        for seq in said:
            if not 0 <= seq <= last:
                self._say(0, f"table derived says row {seq}; the last one is {last}")
        for table in ("plate", "defect"):
            query = f"SELECT DISTINCT seq FROM {table} WHERE seq > ? ORDER BY seq LIMIT ?"
            for (seq,) in self.log.execute(query, (self.known, _MOST_FINDINGS)):
                text = f"has a line of row {seq}; table derived says {self.known}"
                self._say(self.known, f"table {table} {text}")
        if self.known < last:
            self.notes.append(f"the derived tables do not know the last {last - self.known} rows")

    def _look_at_unsettled(self) -> None:
        """Whether the plates to see to are those of table plate, which is compared with the rows
        itself. A log of a program before has no such table."""
        try:
            found = set(self.log.execute("SELECT seq, state FROM unsettled"))
            is_late = is_behind(self.log)
        except sqlite3.OperationalError:
            return
        expected = set(self.log.execute(ALL))
        if is_late:
            self.notes.append("table unsettled is made anew when the journal process starts")
            return
        for seq, state in sorted(found ^ expected, key=repr):
            what = "lacks" if (seq, state) in expected else "has"
            self._say(seq, f"table unsettled {what} row {seq}, {state}")

    def take(self, seq: int, kind: str, body: Json) -> None:
        """The next row, as it was recorded."""
        if seq <= self.known:
            self._expected.extend(lines_of(str(body.get("station_id")), seq, kind, body))

    def page(self, last: int) -> None:
        """Compare what the rows taken since the last page make, with what is there up to a row."""
        last = min(last, self.known)
        lines, self._expected = self._expected, Lines()
        for line in lines.hours():
            sums = self._sums.setdefault(tuple(line[name] for name in _HOUR[: -len(_SUMS)]), [0, 0])
            sums[0], sums[1] = sums[0] + line["plates"], sums[1] + line["defects"]
        self._compare("plate", _PLATE, ("seq",), lines.plates, last)
        self._compare("defect", _DEFECT, ("seq", "number"), lines.defects, last)
        for review in lines.reviews:
            said = _Reviewed(review["seq"], review["verdict"], review["reviewer"])
            self._reviews[review["result_id"]] = said
        for named in lines.defect_kinds:
            self._kinds[named["result_id"], named["number"]] = named["kind"]
        self._from = last + 1

    def _compare(
        self, table: str, columns: list[str], key: tuple[str, ...], lines: list[Json], last: int
    ) -> None:
        query = f"SELECT {', '.join(columns)} FROM {table} WHERE seq >= ? AND seq <= ?"
        key_of = itemgetter(*(columns.index(name) for name in key))
        there = {key_of(line): line for line in self.log.execute(query, (self._from, last))}
        values_of = itemgetter(*columns)
        for expected in map(values_of, lines):
            found = there.pop(key_of(expected), None)
            if found != expected:
                self._differs(table, columns, expected, found)
        for place in there:
            seq = place[0] if isinstance(place, tuple) else place
            self._say(seq, f"table {table} has a line of row {seq} that no row makes")

    def _differs(
        self, table: str, columns: list[str], expected: _Line, found: _Line | None
    ) -> None:
        seq = int(expected[columns.index("seq")])
        if found is None:
            self._say(seq, f"table {table} lacks the line of row {seq}")
            return
        what = "; ".join(
            f"{name} {is_!r}, by the row {was!r}"
            for name, was, is_ in zip(columns, expected, found, strict=True)
            if was != is_
        )
        self._say(seq, f"table {table}, line of row {seq}: {what}")

    def settle(self) -> list[tuple[int, str]]:
        """When all rows were taken: reviews, which change lines of earlier rows, and sums."""
        self._compare_reviews()
        self._compare_kinds()
        self._compare_hours()
        return self.findings

    def _compare_reviews(self) -> None:
        for seq, result_id, *found in self._reviewed:
            said = self._reviews.pop(result_id, None)
            expected = [said.verdict, said.reviewer, said.seq] if said else [None] * 3
            if found != expected:
                text = f"its review {found!r}, by the rows {expected!r}"
                self._say(seq, f"table plate, line of row {seq}: {text}")
        for result_id, said in self._reviews.items():
            place = "SELECT seq FROM plate WHERE result_id = ? AND seq < ?"
            found_seq = self.log.execute(place, (result_id, said.seq)).fetchone()
            if found_seq is not None:
                seq = int(found_seq[0])
                self._say(
                    seq, f"table plate, line of row {seq}: lacks the review of row {said.seq}"
                )

    def _compare_kinds(self) -> None:
        there = {(result_id, number): (seq, kind) for seq, number, kind, result_id in self._named}
        for place in sorted(set(there) | set(self._kinds)):
            seq, kind = there.get(place, (self.known, None))
            if kind != self._kinds.get(place):
                text = f"kind {kind!r}, by the rows {self._kinds.get(place)!r}"
                self._say(seq, f"table defect, {place[0]} number {place[1]}: {text}")

    def _compare_hours(self) -> None:
        there = {line[: -len(_SUMS)]: list(line[-len(_SUMS) :]) for line in self._hours}
        for key in sorted(set(there) | set(self._sums), key=repr):
            found, expected = there.get(key), self._sums.get(key)
            if found != expected:
                said = f"{_SUMS} {found}, by the rows {expected}"
                self._say(self.known, f"table hourly, {' '.join(map(str, key))}: {said}")

    def _say(self, seq: int, text: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append((seq, text))
