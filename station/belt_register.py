"""A register that shifts with the belt: which plate is at the accept point, and when. Pure.

Places are scan lines of belt travel: the belt's encoder counts or triggers them, so that none is
added while the belt stands still; of scan lines that come by themselves nothing here would be true,
and a station with such a camera refuses accept (station/product.py). A frame says where the belt
was when its last scan line was in memory; between frames the place is extrapolated with the speed
of the frames before, but no further than half a frame height and what the belt travels in 20 ms: a
belt that stops at any moment is never further from where it is taken to be, nor is one that turns,
where the encoder counts that. A plate whose point lies beyond that waits for the frame that says
that it is reached.

A plate is at its point once: a belt that turns and comes again finds it done.

A pulse is begun where it fits before the next plate at the speed of then. A belt that goes faster
afterwards takes the next plate there sooner: `is_next_here` says when it may be.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum

SLACK_S = 0.02
"""Travel in this time may be added to half a frame height: writing and reading take time, too."""
_WIRE_S = 0.01
"""Of it, what is left to the command's way to the output where a plate is beyond its point."""
_STOP_RATIO = 0.5
"""A frame that took twice as long as its speed before says may have met a stop."""
MAX_PLATES = 256
"""Plates between camera and accept point, at most; the oldest is forgotten."""


class Fate(StrEnum):
    """What became of a plate that reached its accept point."""

    ACCEPT = "accept"
    """It passed, and is at its point now."""
    LATE = "withheld_late"
    """Its point went by before its verdict."""
    WITHHELD = "withheld"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the belt was, in scan lines of travel, when a frame's last scan line was in memory."""

    scan_lines: float
    at_ns: int
    """CLOCK_MONOTONIC."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a plate at its accept point."""

    result_id: str
    fate: Fate
    why: str = ""
    off_by: float = 0.0
    """Scan lines that the belt is taken to be beyond the point."""
    spare_s: float = math.inf
    """A pulse that begins so much later would still be on when the next plate arrives."""
    begin: float = -math.inf
    """Place of the belt at which the plate's leading edge was at the accept point."""


@dataclass(slots=True)
class _Entry:
    result_id: str
    begin: float
    """Place of the belt at which the plate's leading edge is at the accept point."""
    point: float = math.inf
    """And its trailing edge; infinite until that is seen."""
    is_pass: bool | None = None
    """None until its verdict."""
    refusal: str = ""
    """Why it must not be accepted though it passed."""
    is_over: bool = False
    """Its point went by."""


class BeltRegister:
    """Used by one thread at a time."""

    def __init__(
        self, distance: float, frame_height: float, pulse_s: float, max_age_s: float
    ) -> None:
        """`distance` from the camera to the accept point and `frame_height` in scan lines;
        `max_age_s`: what the belt did is unknown if no frame came for longer."""
        self._distance = distance
        self._frame_height = frame_height
        self._pulse_s = pulse_s
        self._max_age_s = max_age_s
        self._place: Place | None = None
        self._speed: float | None = None
        """Scan lines a second, by the last two frames that followed one another in time."""
        self._may_have_stopped = False
        """Between them; the speed is the one of before."""
        self._begins: deque[float] = deque(maxlen=MAX_PLATES)
        """Of plates that were seen, whatever became of them, and of what nobody saw: see
        `_Entry.begin`."""
        self._is_last_unseen = False
        """Of them; what else nobody saw since lies behind it, and before the next plate."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lost: list[Decision] = []
        """About plates that passed and are forgotten."""
        self._empty_since: float | None = None
        """Behind this place the belt carried nothing past the camera; None before the first."""

    def forget(self) -> list[Decision]:
        """Nothing is known any more, the camera or the station is gone; what that means for plates
        that passed."""
        entries, self._entries = self._entries, OrderedDict()
        lost = self._lost + [_lost(entry) for entry in entries.values() if entry.is_pass]
        self._lost = []
        return lost

    def clear_s(self, now_ns: int) -> float:
        """How long surely no plate reaches the accept point, whatever comes past the camera; 0
        unless it is known that none is on its way: the belt went the whole way empty."""
        if self._entries or self._place is None or self._speed is None:
            return 0.0
        if self._empty_since is None:
            return 0.0
        if self._speed < 0 or self._place.scan_lines - self._empty_since < self._distance:
            return 0.0
        free = self._distance - (self.place_at(now_ns) or 0.0) + self._place.scan_lines
        return max(0.0, free - self._reach) / self._speed if self._speed else math.inf

    def move(self, place: Place) -> None:
        """A frame says where the belt is."""
        last, self._place = self._place, place
        is_at_camera = any(math.isinf(entry.point) for entry in self._entries.values())
        if self._empty_since is None or is_at_camera:
            self._empty_since = place.scan_lines
        if last is None:
            return
        if place.at_ns <= last.at_ns:
            return
        seconds = (place.at_ns - last.at_ns) / 1e9
        # Across a stop the mean says nothing; the belt goes on as it went before, or nearly so.
        if seconds <= self._max_age_s:
            self._take_speed((place.scan_lines - last.scan_lines) / seconds)

    def _take_speed(self, speed: float) -> None:
        """Only a second frame in turn tells a slower belt from one that stood for a moment."""
        is_slower = self._speed is not None and 0 <= speed < _STOP_RATIO * self._speed
        self._may_have_stopped = is_slower and not self._may_have_stopped
        if not self._may_have_stopped:
            self._speed = speed

    def enter(self, result_id: str, leading_edge: float) -> None:
        """A plate's leading edge was seen, at this place of the belt."""
        self._begins.append(leading_edge + self._distance)
        self._is_last_unseen = False
        self._entries[result_id] = _Entry(result_id, leading_edge + self._distance)
        if len(self._entries) > MAX_PLATES:
            _, oldest = self._entries.popitem(last=False)
            self._lost += [_lost(oldest)] if oldest.is_pass else []

    def miss(self, scan_line: float) -> None:
        """From this place of the belt on, up to the last frame's, plates may have begun that nobody
        saw."""
        begin = scan_line + self._distance
        if not self._is_last_unseen or begin < self._begins[-1]:
            self._begins.append(begin)
        self._is_last_unseen = True
        self._empty_since = None

    def close(self, result_id: str, trailing_edge: float) -> None:
        """And its trailing edge."""
        entry = self._entries.get(result_id)
        if entry is not None:
            entry.point = trailing_edge + self._distance
        self._empty_since = max(trailing_edge, self._empty_since or trailing_edge)

    def decide(self, result_id: str, is_pass: bool, refusal: str, now_ns: int) -> Decision | None:
        """A plate's record is durable; what that means if its point went by already, or if it never
        entered."""
        entry = self._entries.get(result_id)
        if entry is None:
            # It may lie anywhere.
            self._empty_since = None if self._place is None else self._place.scan_lines
            why = "nobody saw it pass the camera, or the belt's place was lost since"
            return Decision(result_id, Fate.WITHHELD, why) if is_pass else None
        self._mark_over(now_ns)
        if entry.is_over and is_pass:
            del self._entries[result_id]
            return Decision(result_id, Fate.LATE, "its accept point went by before its verdict")
        if math.isinf(entry.point) and is_pass:
            del self._entries[result_id]
            return Decision(result_id, Fate.WITHHELD, "nobody saw where it ends")
        if entry.is_over or math.isinf(entry.point):
            del self._entries[result_id]
            return None
        entry.is_pass, entry.refusal = is_pass, refusal
        return None

    def due(self, now_ns: int) -> list[Decision]:
        """Plates that passed and have reached their points since the last call, or are lost."""
        decided = [entry for entry in self._crossed(now_ns) if entry.is_pass is not None]
        self._mark_over(now_ns)
        lost, self._lost = self._lost, []
        decisions = lost + [self._decision(entry, now_ns) for entry in decided if entry.is_pass]
        for entry in decided:
            del self._entries[entry.result_id]
        return decisions

    def next_due_ns(self, now_ns: int) -> int | None:
        """When the next plate will reach its point, if nothing changes; None: not before a frame
        comes."""
        place = self.place_at(now_ns)
        ahead = [e.point for e in self._entries.values() if not e.is_over and e.is_pass]
        if place is None or not ahead or not self._speed or self._speed <= 0:
            return None
        assert self._place is not None
        point = min(ahead)
        if point - self._place.scan_lines > self._reach:
            return None
        return now_ns + max(0, int((point - place) / self._speed * 1e9))

    def place_at(self, now_ns: int) -> float | None:
        """Where the belt is taken to be; None while that is unknown."""
        if self._place is None or self._speed is None:
            return None
        seconds = (now_ns - self._place.at_ns) / 1e9
        travel = max(0.0, self._speed) * max(0.0, seconds)
        return self._place.scan_lines + min(travel, self._reach)

    @property
    def _reach(self) -> float:
        """How far the belt may be from where the last frame saw it."""
        return self._frame_height / 2 + max(0.0, self._speed or 0.0) * SLACK_S

    def _crossed(self, now_ns: int) -> list[_Entry]:
        place = self.place_at(now_ns)
        if place is None and self._place is not None:
            place = self._place.scan_lines
        if place is None:
            return []
        return [e for e in self._entries.values() if not e.is_over and e.point <= place]

    def _mark_over(self, now_ns: int) -> None:
        for entry in self._crossed(now_ns):
            entry.is_over = True

    def _decision(self, entry: _Entry, now_ns: int) -> Decision:
        place = self.place_at(now_ns)
        off_by = 0.0 if place is None else place - entry.point
        why = entry.refusal or self._doubt(off_by, now_ns)
        spare_s = 0.0 if why else self._spare_s(entry, off_by)
        if not why and spare_s <= 0:
            why = "the next plate would reach the accept point within the pulse"
        fate = Fate.WITHHELD if why else Fate.ACCEPT
        return Decision(entry.result_id, fate, why, off_by, spare_s, entry.begin)

    def _doubt(self, off_by: float, now_ns: int) -> str:
        """Why it is not known that a plate is at its point; empty if it is."""
        if self._speed is None or self._place is None:
            return "the belt's speed is unknown"
        if (now_ns - self._place.at_ns) / 1e9 > self._max_age_s:
            return "the belt's place is too old"
        if off_by > self._frame_height / 2 + max(0.0, self._speed) * (SLACK_S - _WIRE_S):
            return f"it was {off_by:.0f} scan lines beyond its accept point when that was known"
        if self._speed < 0:
            return "the belt runs backwards"
        return ""

    def is_next_here(self, begin: float, now_ns: int) -> bool:
        """Whether a plate behind the one that began at `begin` may be at the accept point."""
        return self.next_here_s(begin, now_ns) <= 0

    def next_here_s(self, begin: float, now_ns: int) -> float:
        """In how long that may be, if the belt goes on as it does; 0 while its place is unknown."""
        place = self.place_at(now_ns)
        if place is None:
            return 0.0
        free = self._next_begin(begin) - place - self._reach
        if free <= 0 or not self._speed or self._speed < 0:
            return 0.0 if free <= 0 else math.inf
        return free / self._speed

    def _next_begin(self, begin: float) -> float:
        assert self._place is not None
        # Of a plate that the camera has not seen, only this is known.
        unseen = self._place.scan_lines + self._distance
        return min([other for other in self._begins if other > begin] + [unseen])

    def _spare_s(self, entry: _Entry, off_by: float) -> float:
        """How much later a pulse may begin and still end before the next plate arrives, wherever
        the belt may be; not above 0 if it may not begin at all."""
        free = self._next_begin(entry.begin) - entry.point - off_by - self._reach
        if free <= 0:
            return -self._pulse_s
        return free / self._speed - self._pulse_s if self._speed else math.inf


def _lost(entry: _Entry) -> Decision:
    return Decision(entry.result_id, Fate.WITHHELD, "the belt's place was lost")
