"""The station's end of PLC and accept: what it tells the lamp process beside the light.

A word about the station ends when the last tick that travelled is older than the lease, whatever
else has been sent since.
"""

from __future__ import annotations

import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from station.belt_register import Place
from station.config import Configuration
from station.lamp import LampClient
from station.lease import MAX_LEASE_S
from station.outputs import BeltNews, PlateResult
from station.record import ResultBody, Verdict

_MOST_PLACES = 64
"""Of frames that nobody hears of; the oldest is forgotten."""
_MOST_PLATES = 256
"""Results, and edges, that nobody hears of."""
_MOST_ANSWERED = 2000
_NO_ANSWER_S = 2.0
"""A lamp process that has listened for so long has said what it knows of earlier plates."""


@dataclass(frozen=True, slots=True)
class _Result:
    """A plate's durable verdict on its way."""

    body: ResultBody
    is_late: Callable[[], bool]
    expires_ns: int
    """It does not count as good any more, whatever its deadline."""

    def as_sent(self, newest_decided: int) -> PlateResult:
        body, is_late = self.body, self.is_late() or time.monotonic_ns() >= self.expires_ns
        return PlateResult(
            body.result_id,
            body.sequence,
            body.verdict,
            body.provenance,
            is_late,
            is_overtaken=body.sequence < newest_decided,
        )


def _sequence(result: _Result) -> int:
    return result.body.sequence


@dataclass(frozen=True, slots=True)
class Word:
    """How the station is."""

    ready: bool
    busy: bool
    error: bool
    attention: bool


class LineSide:
    """Used by one thread; never waits. What the lamp process could not take waits for `flush`."""

    def __init__(self, configuration: Configuration) -> None:
        self.is_used = configuration.plc is not None or configuration.accept is not None
        self.has_accept = configuration.accept is not None
        self._lease_s = configuration.light.lease_s
        self._frame_height = 0
        self._is_new = True
        self._places: deque[Place] = deque(maxlen=_MOST_PLACES)
        self._plates: list[tuple[str, bool, int]] = []
        self._results: list[_Result] = []
        """In the order of the plates."""
        self._open: set[int] = set()
        """Sequence numbers of plates that were opened and have no durable record."""
        self._newest_decided = 0
        self._said: Word | None = None
        self._awaited: dict[str, None] = {}
        """Plates that passed, and of which the lamp process will say what accept was told."""
        self._orphans: dict[str, bool] = {}
        """Those whose lamp process is gone, one that lived on may still say it; and whether it may
        have been told of the plate."""
        self._answered: deque[str] = deque(maxlen=_MOST_ANSWERED)
        """Those that were given up."""
        self._heard_since_ns: int | None = None
        """Since when the present lamp process listens."""

    def belt_began(self, frame_height: int) -> None:
        """A camera was opened: places of the belt begin anew."""
        self._frame_height = frame_height
        self._forget_belt()

    def belt_moved(self, place: Place) -> None:
        self._places.append(place)

    def plate_began(self, result_id: str, sequence: int, scan_line: int | None) -> None:
        self._open.add(sequence)
        self._edge(result_id, False, scan_line)

    def plates_missed(self, scan_line: int) -> None:
        """From there on plates may have begun that nobody saw."""
        self._edge("", False, scan_line)

    def decided(self, sequence: int) -> None:
        """A plate's verdict is on its way to the log."""
        self._newest_decided = max(self._newest_decided, sequence)

    def plate_ended(self, result_id: str, scan_line: int | None) -> None:
        self._edge(result_id, True, scan_line)

    def _edge(self, result_id: str, is_end: bool, scan_line: int | None) -> None:
        if scan_line is None:
            return
        if len(self._plates) == _MOST_PLATES:
            self._forget_belt()  # a belt with plates that are not known has no room for a pulse
        self._plates.append((result_id, is_end, scan_line))

    def result(self, body: ResultBody, is_late: Callable[[], bool]) -> None:
        """A plate's record is durable; `is_late`, asked when it is sent: too late for it to count
        as good. It waits for the plates before it: who counts results counts plates."""
        self._open.discard(body.sequence)
        if self.is_used:
            expires_ns = time.monotonic_ns() + int(self._lease_s * 1e9)
            if len(self._results) == _MOST_PLATES:
                self._drop_oldest()
            insort(self._results, _Result(body, is_late, expires_ns), key=_sequence)
        if self.has_accept and body.verdict is Verdict.PASS:
            self._awaited[body.result_id] = None

    def _drop_oldest(self) -> None:
        result_id = self._results.pop(0).body.result_id
        if result_id in self._awaited:
            del self._awaited[result_id]
            self._orphans[result_id] = False

    def forget_lamp(self) -> None:
        """The lamp process is another one: it knows nothing."""
        self._said = None
        self._forget_belt()
        now_ns = time.monotonic_ns()
        while self._results and self._results[0].expires_ns <= now_ns:
            self._drop_oldest()
        self._heard_since_ns = None
        queued = {one.body.result_id for one in self._results}
        self.inherit([one for one in self._awaited if one not in queued])
        self._awaited = dict.fromkeys(one for one in self._awaited if one in queued)

    # --- what accept was told ---------------------------------------------------------------------

    def inherit(self, result_ids: Iterable[str]) -> None:
        """Plates that passed, and of which the log does not know what accept was told."""
        self._orphans.update(dict.fromkeys(result_ids, True))

    def is_news(self, result_id: str) -> bool:
        """The lamp process says what accept was told; False where that was given up, and is written
        down so."""
        self._awaited.pop(result_id, None)
        self._orphans.pop(result_id, None)
        return result_id not in self._answered

    def without_answer(self, now_ns: int) -> dict[str, bool]:
        """Plates of which nobody will say any more what accept was told, each given once; and
        whether a lamp process may have been told of them."""
        since_ns = self._heard_since_ns
        is_soon = since_ns is None or now_ns < since_ns + _NO_ANSWER_S * 1e9
        if self.has_accept and is_soon:
            return {}
        given_up, self._orphans = self._orphans, {}
        self._answered += given_up
        return given_up

    def _forget_belt(self) -> None:
        self._is_new = True
        self._places.clear()
        self._plates.clear()

    def flush(self, lamp: LampClient, word: Word, last_tick_ns: int, is_tick: bool) -> None:
        """Send what is new; the word also if a tick has travelled. Raises `PeerGone`,
        BlockingIOError if the lamp process does not read."""
        self._flush_belt(lamp)
        lease_s = self._lease_s - (time.monotonic_ns() - last_tick_ns) / 1e9
        if lease_s > 0 and (is_tick or word != self._said):
            lamp.send_word(
                ready=word.ready,
                busy=word.busy,
                error=word.error,
                attention=word.attention,
                tick=is_tick,
                lease_s=lease_s,
            )
            self._said = word
            if self._heard_since_ns is None:
                self._heard_since_ns = time.monotonic_ns()
        oldest_open = min(self._open, default=math.inf)
        while self._results and _sequence(self._results[0]) < oldest_open:
            lamp.send_result(self._results[0].as_sent(self._newest_decided), MAX_LEASE_S)
            self._results.pop(0)

    def _flush_belt(self, lamp: LampClient) -> None:
        if not self.has_accept or not (self._places or self._plates or self._is_new):
            return
        news = BeltNews(self._frame_height, self._is_new, tuple(self._places), tuple(self._plates))
        lamp.send_belt(news, MAX_LEASE_S)
        self._is_new = False
        self._places.clear()
        self._plates.clear()
