"""What the light should mean now. Pure: events and times go in, one state and its plate come out.

The rules, highest first:

1. A fault shows FAULT.
2. FAIL and UNDECIDED are held until acknowledged or for the site's hold time. The newest replaces
   the older: both say "take this plate out", and the newest is the one still within reach.
3. ATTENTION, where the light itself is not believed: no pass shows on it.
4. PASS shows until the next plate's leading edge or for its hold time.
5. ATTENTION, where the station needs a person.
6. IDLE.

A pass shows from its decision on or never: one that was late, that came after the next plate's
leading edge, or was decided under a fault, a doubt or a held FAIL, does not appear afterwards. One
that was interrupted does not come back. So the light never turns green without a new record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from drivers.stacklight import LightState
from station.record import Verdict


@dataclass(frozen=True, slots=True)
class _Result:
    state: LightState
    result_id: str
    since_ns: int

    def has_ended(self, hold_s: float | None, now_ns: int) -> bool:
        return hold_s is not None and now_ns - self.since_ns >= hold_s * 1e9


class LightPolicy:
    """Used by one thread. Times are CLOCK_MONOTONIC ns; `now_ns` defaults to the present."""

    def __init__(self, fail_hold_s: float | None, pass_hold_s: float) -> None:
        """`fail_hold_s` None: FAIL and UNDECIDED are held until acknowledged."""
        self._fail_hold_s = fail_hold_s
        self._pass_hold_s = pass_hold_s
        self._held: _Result | None = None
        self._passed: _Result | None = None
        self._fault = ""
        self._doubt = ""
        self._attention = ""

    def plate_opened(self) -> None:
        """A plate's leading edge was seen: the pass of the plate before it ends."""
        self._passed = None

    def end_pass(self) -> None:
        """The pass was not shown, or the light left it by itself: it does not come back."""
        self._passed = None

    def failing_tile(self, result_id: str, *, now_ns: int | None = None) -> None:
        """A tile of the plate exceeds the threshold: its FAIL shows before its verdict."""
        self._hold(LightState.FAIL, result_id, now_ns)

    def decided(
        self,
        verdict: Verdict,
        result_id: str,
        is_production: bool,
        *,
        is_late: bool = False,
        now_ns: int | None = None,
    ) -> None:
        """A plate's record is durable. `is_late`: too late for the plate to show a pass."""
        if verdict is not Verdict.PASS:
            self._hold(LightState[verdict.name], result_id, now_ns)
            return
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        # Also the pass that it does not replace is over: it belongs to an older plate.
        self._passed = None
        if is_late or self._fault or self._doubt or self._held_at(now_ns):
            return
        state = LightState.PASS if is_production else LightState.PASS_NOT_PRODUCTION
        self._passed = _Result(state, result_id, now_ns)

    def held(self, now_ns: int) -> str:
        """The result that is held until somebody acknowledges it, also where a fault hides it;
        empty: none."""
        held = self._held_at(now_ns)
        return "" if held is None else held.result_id

    def acknowledge(self) -> None:
        """A person has seen the held FAIL or UNDECIDED."""
        self._held = None

    def set_fault(self, text: str) -> None:
        """The station does not inspect; `text` says why."""
        self._fault = text or "fault"
        self._passed = None

    def clear_fault(self) -> None:
        self._fault = ""

    def set_doubt(self, text: str) -> None:
        """The light may show something else than it is told; `text` says why."""
        self._doubt = text or "doubt"
        self._passed = None

    def clear_doubt(self) -> None:
        self._doubt = ""

    def set_attention(self, text: str) -> None:
        """The station inspects, but needs a person; `text` says why."""
        self._attention = text or "attention"

    def clear_attention(self) -> None:
        self._attention = ""

    def wanted(self, now_ns: int) -> tuple[LightState, str]:
        """What to show, and the result it belongs to (empty: none)."""
        if self._fault:
            return LightState.FAULT, ""
        held = self._held_at(now_ns)
        if held is not None:
            return held.state, held.result_id
        if self._doubt:
            return LightState.ATTENTION, ""
        if self._passed is not None and not self._passed.has_ended(self._pass_hold_s, now_ns):
            return self._passed.state, self._passed.result_id
        if self._attention:
            return LightState.ATTENTION, ""
        return LightState.IDLE, ""

    def _hold(self, state: LightState, result_id: str, now_ns: int | None) -> None:
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        self._held = _Result(state, result_id, now_ns)
        self._passed = None

    def _held_at(self, now_ns: int) -> _Result | None:
        if self._held is None or self._held.has_ended(self._fail_hold_s, now_ns):
            return None
        return self._held
