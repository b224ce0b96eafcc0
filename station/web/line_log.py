"""What the line view reads of the log: the newest plates and first-pass yield; and the rate, by the
station's own count.

Read when the journal process has new rows, or figures that age have aged; by one thread, within a
deadline, from a connection that cannot write.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select, text

from station.config import Configuration, ShiftSettings
from station.log_reader import Reader
from station.qms import StoreError
from station.quality import Rate, proportion
from station.questions import Questions, Selection
from station.record import Reason, Verdict, current_boot_id, rfc3339
from station.shifts import begun_on
from station.tables import PLATE

Json = dict[str, Any]

STRIP_PLATES = 12
RATE_S = 300.0
"""The rate is that of so long, or of the station's life, or of what was heard of it, where that is
shorter."""
_LEAST_RATE_S = 10.0
"""A shorter time says nothing of the rate."""
_LIMIT_S = 1.0
_SUMS_EVERY_S = 2.0
_QUIET_S = 5.0
"""Without new rows: the rate falls, a shift ends."""
_ATTENTIONS = 100
_NEWEST = text("""
    SELECT plate.*, json_array_length(row.body, '$.images') > 0 AS has_picture
    FROM (SELECT * FROM plate ORDER BY seq DESC LIMIT :most) AS plate JOIN row USING (seq)
    ORDER BY plate.seq DESC
""")
_SHOWN = text("SELECT part_id, written_at FROM plate WHERE result_id = :id")
_ACTUATION = text(
    "SELECT body ->> '$.commanded_ns' AS commanded_ns, body ->> '$.boot_id' AS boot_id FROM row "
    "WHERE result_id = :id AND kind = 'actuation'"
)
_BEGUN = text(
    "SELECT body ->> '$.text' AS text, written_at FROM row WHERE kind = 'attention' "
    "AND body ->> '$.is_begin' = 1 ORDER BY written_at DESC LIMIT :most"
)


@dataclass(frozen=True, slots=True)
class StripPlate:
    """One of the newest plates."""

    result_id: str
    written_at: str
    part_id: str | None
    verdict: str
    """The station's own."""
    reviewed_verdict: str | None
    reason: str | None
    defects: int
    has_picture: bool


@dataclass(frozen=True, slots=True)
class ShownPlate:
    """The plate that the light speaks of."""

    result_id: str
    part_id: str | None
    written_at: str
    commanded_at: float | None
    """When the lamp was told for it, after its commit; seconds since 1970. None: no row says."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Of parts that came for the first time, those that passed at once (first-pass yield)."""

    since: float
    """Seconds since 1970."""
    shift: str
    """As records name it; empty for a day."""
    plates: int
    passed: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class LineLog:
    """The log as it was at a moment."""

    read_at: float = 0.0
    """Seconds since 1970, of the oldest of what follows; 0: it was never read."""
    problem: str = ""
    """Why it, or what is counted in it, cannot be read now; the rest is what was read last."""
    notes: tuple[str, ...] = ()
    """What it may lack although it could be read, and why (`Reader.notes`)."""
    newest_seq: int = 0
    newest_result_id: str = ""
    plates: tuple[StripPlate, ...] = ()
    """The newest first."""
    shown: ShownPlate | None = None
    rate_per_minute: float | None = None
    shift: Yield | None = None
    today: Yield | None = None
    begun_at: Mapping[str, str] = field(default_factory=dict)
    """When what the station calls a person for began, by its text."""


class Pace:
    """Plates a minute of late. By the station's own count and the time since it began: the times in
    the log are those of a clock that can be set."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._is_heard = False
        self._counts: deque[tuple[float, int]] = deque()
        """Seconds since the station began, and its plates by then; all but the first one younger
        than `RATE_S`."""

    def hear(self, station: Json | None) -> None:
        """What the station says now; None: it does not answer."""
        plates = station.get("plates") if station else None
        self._is_heard = plates is not None
        if station is None or plates is None:
            return
        pid, uptime_s = station["pid"], station["uptime_s"]
        if not self._is_of_this_life(pid, uptime_s):
            self._pid, self._counts = pid, deque([(0.0, 0)] if uptime_s <= RATE_S else [])
        self._counts.append((uptime_s, plates))
        while len(self._counts) > 1 and self._counts[1][0] <= uptime_s - RATE_S:
            self._counts.popleft()

    def _is_of_this_life(self, pid: int, uptime_s: float) -> bool:
        return bool(self._counts) and pid == self._pid and uptime_s >= self._counts[-1][0]

    @property
    def per_minute(self) -> float | None:
        """None where too little was heard to say."""
        if not self._is_heard:
            return None
        (first_s, before), (last_s, by_then) = self._counts[0], self._counts[-1]
        span_s = last_s - first_s
        return None if span_s < _LEAST_RATE_S else (by_then - before) * 60 / span_s


class LogLook:
    """Reads again when there is something new. Used by one thread."""

    def __init__(self, configuration: Configuration) -> None:
        self._directory = configuration.journal.directory
        self._shifts = configuration.journal.shifts
        self._last = LineLog()
        self._seen: object = None
        self._read_s = self._sums_s = float("-inf")
        self._sums_problem = ""
        """Stands until the sums can be had again, which is not tried with each row."""
        self._pace = Pace()

    def look(self, journal: Json | None, lamp: Json | None, station: Json | None) -> LineLog:
        """As processes say they are now. What cannot be read leaves what was read before."""
        seen = journal and journal["rows"], lamp and lamp["result_id"]
        now_s = time.monotonic()
        self._pace.hear(station)
        if seen != self._seen or now_s - self._read_s > _QUIET_S:
            self._seen, self._read_s = seen, now_s
            self._last = self._read(now_s, lamp, station)
        return self._last

    def _read(self, now_s: float, lamp: Json | None, station: Json | None) -> LineLog:
        try:
            with Reader(self._directory) as reader:
                found = self._newest(reader, lamp)
                if now_s - self._sums_s > _SUMS_EVERY_S:
                    self._sums_s = now_s
                    found = self._summed(reader, found, station)
        except StoreError as error:
            return replace(self._last, problem=str(error))
        if self._sums_problem:
            return replace(found, read_at=self._last.read_at, problem=self._sums_problem)
        return found

    def _newest(self, reader: Reader, lamp: Json | None) -> LineLog:
        ask = partial(reader.ask, limit_s=_LIMIT_S)
        rows = ask(_NEWEST.bindparams(most=STRIP_PLATES))
        shown_id = lamp["result_id"] if lamp else ""
        return replace(
            self._last,
            read_at=time.time(),
            problem="",
            notes=tuple(reader.notes),
            newest_seq=rows[0].seq if rows else 0,
            newest_result_id=rows[0].result_id if rows else "",
            plates=tuple(_strip_plate(row) for row in rows),
            shown=_shown(ask, shown_id) if shown_id else None,
        )

    def _summed(self, reader: Reader, found: LineLog, station: Json | None) -> LineLog:
        """Where the sums take too long, those of before stay."""
        try:
            summed = self._sums(reader, found, station)
        except StoreError as error:
            self._sums_problem = str(error)
            return found
        self._sums_problem = ""
        return summed

    def _sums(self, reader: Reader, found: LineLog, station: Json | None) -> LineLog:
        ask = partial(reader.ask, limit_s=_LIMIT_S)
        questions, now = Questions(ask), datetime.now(UTC)
        newest = ask(select(PLATE.c.provenance).where(PLATE.c.seq == found.newest_seq))
        provenance = newest[0].provenance if newest else None
        shift = _shift_begin(self._shifts, now)
        begun = ask(_BEGUN.bindparams(most=_ATTENTIONS)) if (station or {}).get("calls") else ()
        return replace(
            found,
            rate_per_minute=self._pace.per_minute,
            shift=shift and _yield(questions, *shift, provenance),
            today=_yield(questions, _midnight(self._shifts, now), "", provenance),
            begun_at={row.text: row.written_at for row in reversed(begun)},
        )


def _strip_plate(row: Any) -> StripPlate:
    return StripPlate(
        result_id=row.result_id,
        written_at=row.written_at,
        part_id=row.part_id,
        verdict=row.verdict,
        reviewed_verdict=row.reviewed_verdict,
        reason=row.reason,
        defects=row.defects,
        has_picture=bool(row.has_picture),
    )


def _shown(ask: Callable[[Any], Sequence[Any]], result_id: str) -> ShownPlate | None:
    """None where a tile failed and the plate has no record yet."""
    plates = ask(_SHOWN.bindparams(id=result_id))
    if not plates:
        return None
    told = ask(_ACTUATION.bindparams(id=result_id))
    is_ours = bool(told) and told[0].boot_id == current_boot_id() and bool(told[0].commanded_ns)
    at = time.time() - (time.monotonic_ns() - told[0].commanded_ns) / 1e9 if is_ours else None
    return ShownPlate(result_id, plates[0].part_id, plates[0].written_at, at)


def _yield(questions: Questions, since: datetime, shift: str, provenance: str | None) -> Yield:
    """Plates of one provenance: what a simulator made is no yield of production."""
    selection = Selection(since=rfc3339(since), provenance=provenance)
    counts: Counter[str] = Counter()
    for row in questions.counts(selection, "attempt", "verdict", "reason"):
        if row.attempt <= 1 and row.reason != Reason.GAP:
            counts[row.verdict] += row.plates
    passed, plates = counts[Verdict.PASS], counts.total()
    return Yield(since.timestamp(), shift, plates, passed, _proportion(passed, plates))


@lru_cache(maxsize=64)
def _proportion(count: int, of: int) -> Rate:
    return proportion(count, of)


def _shift_begin(shifts: ShiftSettings | None, now: datetime) -> tuple[datetime, str] | None:
    """Of the shift that runs, and its name; None where none is configured."""
    if shifts is None:
        return None
    today = now.astimezone(ZoneInfo(shifts.timezone)).date()
    days = (today - timedelta(days=1), today)
    return max(begin for begin in begun_on(shifts, days) if begin[0] <= now)


def _midnight(shifts: ShiftSettings | None, now: datetime) -> datetime:
    local = now.astimezone(ZoneInfo(shifts.timezone) if shifts else None)
    return local.replace(hour=0, minute=0, second=0, microsecond=0)
