"""Lamp and outputs tried out by a person: only while the station is halted and no plate is open,
through the lamp process, which owns them and ends what nobody renews."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

from drivers.stacklight import LightState
from station.ipc import Json, PeerGone
from station.lamp import LampAnswer, LampClient
from station.lease import LAMP_TEST_S
from station.outputs import TEST_S
from station.record import utc_now
from station.state import StationState

SHOWN: Final = (
    LightState.FAIL,
    LightState.UNDECIDED,
    LightState.ATTENTION,
    LightState.IDLE,
    LightState.FAULT,
)
"""States that a person may have shown: none that somebody could take for a good plate. The lamp
test lights green too, in a pattern that no plate can produce."""
LAMP_TEST: Final = "test"
_SHOW_S = 5.0
_LEASE_S = 1.0


@dataclass(slots=True)
class HandTest:
    """What is being tried out. Used by the station's main thread."""

    _until_ns: int = 0
    _state: LightState | None = None
    _said: Json | None = None
    _op: str = ""
    """Of what was tried out last: `light` or `output`."""
    _shows: set[int] = field(default_factory=set)
    """Numbers of its commands to the light that wait for their answers."""

    def refusal(self, state: StationState, open_plates: int, op: str, text: str) -> str:
        """Why nothing may be tried out now; empty if it may."""
        if state is not StationState.HALTED:
            return f"the station is {state}; halt it first: plates run"
        if open_plates:
            return "a plate is not finished yet; wait until it is"
        names = [LAMP_TEST, *map(str, SHOWN)]
        if op == "light" and text not in names:
            return f"{text!r:.40} cannot be shown by hand; there are: {', '.join(names)}"
        return ""

    def ask(self, op: str, text: str) -> None:
        """It will be tried out once its row is durable."""
        self._said = {"what": text, "at": utc_now(), "problem": None}
        self._op = op
        self._shows.clear()

    def refuse(self, problem: str) -> None:
        """It was not tried out after all."""
        self._learn(problem)

    def begin(self, lamp: LampClient, op: str, text: str, now_ns: int) -> None:
        """Raises `PeerGone`; BlockingIOError if the lamp process does not read."""
        self.ask(op, text)
        if op == "output":
            lamp.send_output(text)
            self._state, seconds = None, TEST_S
        elif text == LAMP_TEST:
            lamp.send_test()
            self._state, seconds = None, LAMP_TEST_S
        else:
            self._state, seconds = LightState(text), _SHOW_S
        self._until_ns = now_ns + int(seconds * 1e9)
        self.renew(lamp, now_ns)

    def is_on(self, now_ns: int) -> bool:
        """The light shows what a person wants to see, and is told nothing else."""
        return now_ns < self._until_ns

    def renew(self, lamp: LampClient, now_ns: int) -> None:
        """Raises as `begin`."""
        if self._state is not None and self.is_on(now_ns):
            left_s = (self._until_ns - now_ns) / 1e9
            self._shows.add(lamp.send_show(self._state, "", None, min(_LEASE_S, left_s)))

    def end(self, lamp: LampClient | None) -> None:
        """Plates may come again. Without a lamp process nothing is on; one that does not read ends
        it by the next plate."""
        self._until_ns, self._state = 0, None
        if lamp is not None:
            with contextlib.suppress(PeerGone, BlockingIOError):
                lamp.send_end_tests()

    def shown(self, answer: LampAnswer) -> None:
        """The lamp process says what became of a command to the light; of another, nothing is
        done."""
        if answer.number in self._shows:
            self._shows.remove(answer.number)
            self._learn(answer.reason)

    def answered(self, event: Json) -> None:
        """The lamp process says what became of a lamp test or an output: `reason` is empty if it
        was done."""
        tested = ("light", LAMP_TEST) if event["op"] == "test" else ("output", event["name"])
        if self._said is not None and (self._op, self._said["what"]) == tested:
            self._learn(event["reason"])

    def _learn(self, reason: str) -> None:
        """One that failed once was not done, whatever its renewals did."""
        if self._said is not None:
            self._said["problem"] = self._said["problem"] or reason

    @property
    def status(self) -> Json | None:
        """What was tried out last, when, and what the lamp process said: `problem` is None until it
        does, empty if it was done."""
        return self._said
