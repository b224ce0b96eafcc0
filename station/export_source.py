"""The log as of one of its rows, read a page at a time by whoever exports it or checks an export.

Whatever is written meanwhile, the same row of the log gives the same answer again, years later.
"""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from station.log_reader import judged
from station.packing import Contexts
from station.qms import EMPTY_CHAIN, Json, StoreError

PAGE_ROWS = 500
_Values = Json | tuple[Any, ...]
_RESULTS = """
    SELECT seq, body, body_sha256, chain_sha256 FROM row
    WHERE seq IN (SELECT value FROM json_each(:numbers)) ORDER BY seq
"""
_REVIEWS = """
    SELECT seq, body FROM row WHERE result_id IN (SELECT value FROM json_each(:ids))
    AND kind = 'review' AND seq <= :last ORDER BY seq
"""
_COLUMNS = {
    "since": "written_at >= :since",
    "until": "written_at < :until",
    "serial": "part_id = :serial",
    "lot": "lot = :lot",
    "shift": "shift = :shift",
    "verdict": "verdict = :verdict",
    "recipe": "recipe_id = :recipe",
    "model": "model_id = :model",
    "reason": "reason = :reason",
    "recipe_version": "recipe_version = :recipe_version",
    "attempt": "attempt = :attempt",
    "provenance": "provenance = :provenance",
    "rows": "seq IN (SELECT value FROM json_each(:rows))",
}
"""Of the table `plate`, which is made of the rows."""
NO_REVIEW_HOLDS = """coalesce((
    SELECT coalesce(said.body ->> '$.takes_back', 0) FROM row AS said
    WHERE said.result_id = {table}.result_id AND said.kind = 'review'
    AND said.seq <= :last AND NOT coalesce(said.body ->> '$.is_pending', 0)
    ORDER BY said.seq DESC LIMIT 1
), 1)"""
"""By row `last` nobody has judged it, or the last that was said takes the judgement back."""
_WAITING = f"NOT (coalesce({{drawn}}, 0) AND verdict = 'PASS' AND {NO_REVIEW_HOLDS})"
_COLUMNS["without_open_samples"] = _WAITING.format(drawn="is_audit_sample", table="plate")
_IN_CONTEXT = """coalesce(body ->> '$.{0}', (
    SELECT told.body ->> '$.constants.{0}' FROM row AS told
    WHERE told.seq = row.body ->> '$.context'
))"""
_IN_BODY = {
    **_COLUMNS,
    "lot": "body ->> '$.lot' = :lot",
    "shift": f"{_IN_CONTEXT.format('shift')} = :shift",
    "recipe": f"{_IN_CONTEXT.format('recipe_id')} = :recipe",
    "model": f"{_IN_CONTEXT.format('model_id')} = :model",
    "recipe_version": f"{_IN_CONTEXT.format('recipe_version')} = :recipe_version",
    "attempt": "body ->> '$.attempt' = :attempt",
    "provenance": f"{_IN_CONTEXT.format('provenance')} = :provenance",
    "without_open_samples": _WAITING.format(drawn="body ->> '$.is_audit_sample'", table="row"),
}
"""Of the rows themselves, for a log that an older program wrote, or wrote to: `plate` does not know
its rows yet. A row may leave what stays the same to its context."""
_DEFECTS = (
    "SELECT * FROM defect WHERE defect.station_id = plate.station_id AND defect.seq = plate.seq"
)
_DEFECTS_IN_BODY = """SELECT value ->> '$.x_mm' AS x_mm, value ->> '$.y_mm' AS y_mm,
    value ->> '$.w_mm' AS w_mm, value ->> '$.h_mm' AS h_mm FROM json_each(body, '$.defects')"""
_OF_DEFECT = {
    "min_size_mm": "(w_mm >= :min_size_mm OR h_mm >= :min_size_mm)",
    "max_size_mm": "w_mm <= :max_size_mm AND h_mm <= :max_size_mm",
    "place_mm": "x_mm BETWEEN :left AND :right AND y_mm BETWEEN :leading AND :trailing",
}
"""Of one and the same defect."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which results, by what never changes of them; what is given must all be met. Times are UTC
    text as in `written_at`."""

    since: str | None = None
    until: str | None = None
    """Exclusive."""
    serial: str | None = None
    lot: str | None = None
    shift: str | None = None
    verdict: str | None = None
    recipe: str | None = None
    model: str | None = None
    reason: str | None = None
    recipe_version: int | None = None
    attempt: int | None = None
    provenance: str | None = None
    min_size_mm: float | None = None
    """Of a defect's longer side; this and the next two of one and the same defect."""
    max_size_mm: float | None = None
    place_mm: Sequence[float] | None = None
    """Left, leading, right and trailing side of a rectangle that its centre lies in."""
    rows: Sequence[int] | None = None
    """These alone, by their `seq`: where what was asked may change."""
    without_open_samples: bool | None = None
    """Without those that passed, were drawn for the audit and that nobody had judged by then: who
    reads an export may have to judge them."""

    def values(self) -> Json:
        """What is asked, as a statement takes it."""
        given = self.given()
        if place := given.pop("place_mm", None):
            given |= dict(zip(("left", "leading", "right", "trailing"), place, strict=True))
        if self.rows is not None:
            given["rows"] = json.dumps(list(self.rows))
        return given

    def given(self) -> Json:
        """What is asked."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


_LOOK_EVERY_STEPS = 10_000
"""Of SQLite's machine."""


class Head(NamedTuple):
    """A row of the chain: whoever knows it can tell whether the log is still the one it was."""

    seq: int
    chain_sha256: str


class Source:
    """A connection of its own that cannot write. For one thread. Each question raises `StoreError`
    if the log cannot be read."""

    def __init__(self, path: Path, limit_s: float | None = None) -> None:
        """`path` is the database, as a `Reader` names it. With `limit_s` all questions together
        may take so long; what takes longer raises sqlite3.OperationalError. Raises `StoreError`."""
        self.path = path
        self._until = time.monotonic() + limit_s if limit_s else float("inf")
        try:
            self._log = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            self._log.execute("PRAGMA query_only = ON")
            self._log.set_progress_handler(self._is_over, _LOOK_EVERY_STEPS)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        self._contexts = Contexts(self.body_of)

    def _is_over(self) -> bool:
        return time.monotonic() > self._until

    def head(self) -> Head:
        """The newest row."""
        found = self.one("SELECT seq, chain_sha256 FROM row ORDER BY seq DESC LIMIT 1")
        return Head(*(found or (0, EMPTY_CHAIN)))

    def chain_at(self, seq: int) -> str | None:
        """Chain value of a row; None if there is no such row."""
        if seq == 0:
            return EMPTY_CHAIN
        found = self.one("SELECT chain_sha256 FROM row WHERE seq = ?", (seq,))
        return None if found is None else str(found[0])

    def count(self, chosen: Chosen, last: int) -> int:
        """How many results `results` gives."""
        where = self._where(chosen, last)
        found = self.one(f"SELECT count(*) {where}", {**chosen.values(), "last": last})
        return int(found[0])

    def results(self, chosen: Chosen, last: int, first: int = 1) -> Iterator[Json]:
        """Results from row `first` to row `last`, oldest first, with `seq`, hashes and what their
        reviews by then come to."""
        query = f"SELECT seq {self._where(chosen, last)} AND seq >= :first ORDER BY seq"
        found = self._each(query, {**chosen.values(), "last": last, "first": first})
        # Eight bytes a row, so that no transaction stays open while somebody writes a file (I8).
        numbers = array("q", (row[0] for row in found))
        for start in range(0, len(numbers), PAGE_ROWS):
            yield from self._page(numbers[start : start + PAGE_ROWS].tolist(), last)

    def _where(self, chosen: Chosen, last: int) -> str:
        is_derived = self._is_derived(last)
        known = _COLUMNS if is_derived else _IN_BODY
        given = chosen.given()
        conditions = [known[name] for name in given if name in known]
        if of_defect := [_OF_DEFECT[name] for name in given if name in _OF_DEFECT]:
            found = _DEFECTS if is_derived else _DEFECTS_IN_BODY
            exists = f"EXISTS (SELECT 1 FROM ({found}) WHERE {' AND '.join(of_defect)})"
            # As questions.py: a plate that passed has none, and those that did not have an index.
            conditions += ["verdict <> 'PASS'", exists]
        begin = "FROM plate WHERE true" if is_derived else "FROM row WHERE kind = 'result'"
        return " AND ".join([begin, *conditions, "seq <= :last"])

    def _is_derived(self, last: int) -> bool:
        """Whether the table `plate` is there and knows every row to `last`."""
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'plate'"
        if self.one(query) is None:
            return False
        return int(self.one("SELECT seq FROM derived")[0]) >= last

    def _page(self, numbers: list[int], last: int) -> Iterator[Json]:
        rows = self.all(_RESULTS, {"numbers": json.dumps(numbers)})
        bodies = [self._whole(row[1]) for row in rows]
        reviews = self._reviews([body["result_id"] for body in bodies], last)
        for (seq, _, body_sha256, chain_sha256), body in zip(rows, bodies, strict=True):
            yield {
                "seq": seq,
                **body,
                "review": judged([{"seq": seq, **body}, *reviews.get(body["result_id"], ())]),
                "body_sha256": body_sha256,
                "chain_sha256": chain_sha256,
            }

    def _whole(self, body: str) -> Json:
        try:
            return self._contexts.whole(json.loads(body))
        except LookupError as error:
            raise StoreError(f"{self.path}: {error}; see `vqi log verify`") from error

    def body_of(self, seq: int) -> str | None:
        """Text of a row; None if there is no such row."""
        found = self.one("SELECT body FROM row WHERE seq = ?", (seq,))
        return None if found is None else str(found[0])

    def _reviews(self, ids: list[str], last: int) -> dict[str, list[Json]]:
        found: dict[str, list[Json]] = {}
        for seq, text in self._each(_REVIEWS, {"ids": json.dumps(ids), "last": last}):
            body = json.loads(text)
            found.setdefault(body["result_id"], []).append({"seq": seq, **body})
        return found

    def rows(self, first: int, last: int) -> Iterator[tuple[int, str, str, str, str]]:
        """seq, kind, body, body_sha256 and chain_sha256 of all rows between, both included."""
        query = (
            "SELECT seq, kind, body, body_sha256, chain_sha256 FROM row "
            "WHERE seq >= ? AND seq <= ? ORDER BY seq LIMIT ?"
        )
        while page := self.all(query, (first, last, PAGE_ROWS)):
            yield from page
            first = page[-1][0] + 1

    def one(self, query: str, values: _Values = ()) -> Any:
        """The first row that a question finds; None if there is none."""
        return next(self._each(query, values), None)

    def all(self, query: str, values: _Values) -> list[Any]:
        """What a question with a small answer finds."""
        return list(self._each(query, values))

    def _each(self, query: str, values: _Values) -> Iterator[Any]:
        try:
            yield from self._log.execute(query, values)
        except sqlite3.Error as error:
            if self._is_over():
                raise
            raise StoreError(f"{self.path}: {error}; see `vqi log verify`") from error

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
