"""Which plate a serial is of, by the belt's travel between the scanner and the camera. Pure.

Places are scan lines of belt travel (of the encoder, or else those that the camera took), times are
CLOCK_MONOTONIC ns. A reading was taken somewhere between two places that frames told. It is in a
plate's window if it may have been taken while the plate, widened by the tolerance at both ends, was
below the scanner. A plate gets a serial only if that one alone was read in its window, and in no
window of another plate that was seen or may still come. Everything else is written down as what it
is: ambiguous, none, or a reading that no plate took.

Without an encoder a belt that stops is not seen, so places only say how things were if it did not:
then a plate gets a serial only while no other reading waits, and a reading that no plate came for
puts all in doubt that waited with it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from station.belt_register import Place
from station.record import Identity

MAX_WAITING = 64
"""Readings that wait for their plates; the oldest is given up."""
MAX_CANDIDATES = 8
LOST, UNKNOWN, ENDED = (
    "the belt's place was lost",
    "the belt's place was not known",
    "the station ended",
)
UNSEEN = {LOST, UNKNOWN, ENDED}
"""Why no plate took a reading where nobody watched the belt: plates passed unseen, too."""
_PLACES = 1024
_WINDOWS = 32
"""Plates that were seen last, also those that were decided."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A serial that was read, or given."""

    serial: str
    """Empty: a label was read that nobody can tell; what is read beside it is doubtful."""
    source: Identity
    at_ns: int


@dataclass(frozen=True, slots=True)
class Association:
    """What is known of a plate's serial."""

    identity: Identity
    part_id: str | None = None
    serials: tuple[str, ...] = ()
    """All that may be its, where that is ambiguous."""


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A reading that no plate took."""

    reading: Reading
    result_id: str | None
    """The plate in whose window it was read, if there is one."""
    why: str


@dataclass(slots=True, eq=False)
class _Waiting:
    reading: Reading
    low: float = -math.inf
    """The belt was between these two."""
    high: float = math.inf
    is_named: bool = False
    """A plate's record has it."""
    is_certain: bool = False
    """And it is that plate's."""
    is_doubted: bool = False


@dataclass(slots=True, eq=False)
class _Window:
    result_id: str
    begin: float
    """Place of the belt with the leading edge at the camera."""
    end: float
    """With the trailing edge there; until that is seen, as late as may be."""
    given: list[Reading] = field(default_factory=list)
    """By a person, for this plate."""
    association: Association | None = None


class IdentityRegister:
    """Used by one thread at a time."""

    def __init__(
        self, distance: float, tolerance: float, longest: float, is_expected: bool
    ) -> None:
        """In scan lines: `distance` from the scanner to the camera, `longest` that a plate may be.
        `is_expected`: plates have serials; else one without has no `Identity` either."""
        self._distance = distance
        self._longest = longest
        self._tolerance = tolerance
        self._is_expected = is_expected
        self._frame_height = 0.0
        self._has_encoder = True
        self._places: deque[Place] = deque(maxlen=_PLACES)
        self._furthest = -math.inf
        self._waiting: list[_Waiting] = []
        self._given: list[Reading] = []
        """For the plate that comes next."""
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._unclaimed: list[Unclaimed] = []

    # --- what happens -----------------------------------------------------------------------------

    def begin(self, frame_height: float) -> None:
        """A camera was opened: places begin anew, and what was read before is beside nothing that
        will be seen."""
        self._finish(LOST)
        for window in self._windows.values():
            window.begin = window.end = math.nan
        self._frame_height = frame_height
        self._places.clear()
        self._furthest = -math.inf

    def move(self, place: Place, has_encoder: bool = True) -> None:
        """A frame says where the belt is."""
        self._has_encoder = has_encoder
        self._places.append(place)
        self._furthest = max(self._furthest, place.scan_lines)
        for waiting in self._waiting:
            if math.isinf(waiting.high):
                self._locate(waiting)
        self._expire()

    def read(self, reading: Reading) -> None:
        """A serial was read on the belt."""
        waiting = _Waiting(reading)
        self._waiting.append(waiting)
        self._locate(waiting)
        if math.isinf(waiting.low):
            self._settle(lambda one: one is waiting, UNKNOWN)
        elif len(self._waiting) > MAX_WAITING:
            oldest = self._waiting[0]
            self._settle(lambda one: one is oldest, "too many serials were read")

    def give(self, reading: Reading) -> None:
        """A person says which serial the plate has that comes next."""
        if len(self._given) < MAX_CANDIDATES:
            self._given.append(reading)
        else:
            why = "too many serials were given for one plate"
            self._unclaimed.append(Unclaimed(reading, None, why))

    def open(self, result_id: str, leading_edge: float | None) -> None:
        """A plate's leading edge was seen, at this place of the belt."""
        place = math.nan if leading_edge is None else leading_edge
        end = place + self._longest
        self._windows[result_id] = _Window(result_id, place, end, given=self._given)
        self._given = []
        while len(self._windows) > _WINDOWS:
            self._windows.popitem(last=False)

    def close(self, result_id: str, trailing_edge: float) -> None:
        """And its trailing edge."""
        if result_id in self._windows:
            self._windows[result_id].end = trailing_edge

    def decide(self, result_id: str) -> Association | None:
        """What is known of a plate's serial when its record is made; None where no serials are
        looked for."""
        window = self._windows.get(result_id)
        if window is None:
            return Association(Identity.NONE) if self._is_expected else None
        if window.association is None:
            window.association = self._associate(window)
        found = window.association
        is_silent = found.identity is Identity.NONE and not self._is_expected
        self._expire()
        return None if is_silent else found

    def end(self) -> None:
        """No plates come any more."""
        self._finish(ENDED)
        self._unclaimed += [Unclaimed(one, None, ENDED) for one in self._given]
        self._given = []

    def _finish(self, why: str) -> None:
        """Decide what is open, and give up what waits."""
        for window in self._windows.values():
            window.association = window.association or self._associate(window)
        self._settle(lambda waiting: True, why)

    def take_unclaimed(self) -> list[Unclaimed]:
        """Readings that no plate took since the last call."""
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed

    # --- what follows -----------------------------------------------------------------------------

    def _locate(self, waiting: _Waiting) -> None:
        """Between which places a reading was taken; an end that is not known yet is infinite."""
        at_ns = waiting.reading.at_ns
        before = after = None
        for place in reversed(self._places):
            if place.at_ns >= at_ns:
                after = place
            if place.at_ns <= at_ns:
                before = place
                break
        if before is None:
            return
        waiting.low = before.scan_lines
        if after is None:
            waiting.low -= self._frame_height
            return
        waiting.low = min(before.scan_lines, after.scan_lines)
        waiting.high = max(before.scan_lines, after.scan_lines)

    def _is_in(self, waiting: _Waiting, window: _Window) -> bool:
        # False for a plate whose place is not known (NaN).
        begins = waiting.high + self._distance + self._tolerance >= window.begin
        return begins and waiting.low + self._distance - self._tolerance <= window.end

    def _may_be_of_another(self, waiting: _Waiting, window: _Window) -> bool:
        """Of a plate that was seen, or of one that comes."""
        others = (other for other in self._windows.values() if other is not window)
        return any(self._is_in(waiting, other) for other in others) or self._may_come(waiting)

    def _may_come(self, waiting: _Waiting) -> bool:
        """A plate whose leading edge nobody has seen yet may have this serial."""
        unseen = self._furthest - self._frame_height
        return waiting.high + self._distance + self._tolerance >= unseen

    def _is_repeated(self, serial: str, window: _Window) -> bool:
        """The serial was read elsewhere, too, while one plate cannot have been at both places: of
        two on the belt, the second was read before the first had passed the camera."""
        same = [one for one in self._waiting if one.reading.serial == serial]
        inside = [one.low for one in same if self._is_in(one, window)]
        if any(one.low <= window.end for one in same if not self._is_in(one, window)):
            return True
        others = [one for one in self._windows.values() if one is not window]
        return any(
            min(inside, default=math.inf) <= other.end
            if other.begin <= window.begin
            else other.begin - self._distance <= window.end
            for other in others
            if _says(other, serial)
        )

    def _associate(self, window: _Window) -> Association:
        inside = [one for one in self._waiting if self._is_in(one, window)]
        if not self._has_encoder and inside:
            inside = list(self._waiting)
        told = [one for one in inside if one.reading.serial]
        readings = [*window.given, *(one.reading for one in told)]
        serials = tuple(dict.fromkeys(reading.serial for reading in readings))
        if not serials:
            return Association(Identity.NONE)
        # A person who says it may do so because the scanner could not read it.
        is_unsure = len(told) < len(inside) and not window.given
        is_doubtful = (
            len(serials) > 1
            or is_unsure
            or any(one.is_doubted or self._may_be_of_another(one, window) for one in told)
        )
        for one in inside:
            one.is_named = True
        if is_doubtful or self._is_repeated(serials[0], window):
            return Association(Identity.AMBIGUOUS, None, serials[:MAX_CANDIDATES])
        for one in inside:
            one.is_certain = True
        return Association(readings[0].source, serials[0])

    def _expire(self) -> None:
        """Readings that no plate can take any more: those that came are decided."""
        open_windows = [one for one in self._windows.values() if one.association is None]

        def is_over(waiting: _Waiting) -> bool:
            if self._may_come(waiting):
                return False
            return not any(self._is_in(waiting, window) for window in open_windows)

        self._settle(is_over, "no plate came for it")

    def _settle(self, is_over: Callable[[_Waiting], bool], why: str) -> None:
        over = [one for one in self._waiting if is_over(one)]
        if not over:
            return
        self._waiting = [one for one in self._waiting if not is_over(one)]
        for one in over:
            if not one.is_named:
                self._give_up(one, why)
        if not self._has_encoder and not all(one.is_certain for one in over):
            for waiting in self._waiting:
                waiting.is_doubted = True

    def _give_up(self, waiting: _Waiting, why: str) -> None:
        if not waiting.reading.serial:
            return
        beside = next(
            (one for one in reversed(self._windows.values()) if self._is_in(waiting, one)), None
        )
        result_id = None
        if beside is not None:
            if _says(beside, waiting.reading.serial):
                return
            result_id, why = beside.result_id, "it was read too late for its plate's record"
        self._unclaimed.append(Unclaimed(waiting.reading, result_id, why))


def _says(window: _Window, serial: str) -> bool:
    """The plate's record has it."""
    found = window.association
    return found is not None and serial in (found.part_id, *found.serials)
