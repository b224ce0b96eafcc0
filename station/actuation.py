"""From committed results to lamp commands, and to exactly one actuation row each.

Pure but for the two calls that it is given: one that sends a command, one that writes a row. A
result comes in here only after its commit; nothing else in the station commands the light. Times
are CLOCK_MONOTONIC ns. Used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from drivers.stacklight import LightState
from station.lamp import LampAnswer
from station.lease import Belief
from station.light_policy import LightPolicy
from station.record import Verdict

ANSWER_LIMIT_S = 0.5
"""A lamp process that has not answered for so long is not believed."""

Meaning = tuple[LightState, str]
"""A state, and the result that it speaks of (empty: none)."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A result whose record is durable."""

    result_id: str
    sequence: int
    verdict: Verdict
    is_production: bool
    is_late: bool
    """Too old for the plate to show a pass."""


@dataclass(frozen=True, slots=True)
class Actuated:
    """What became of a result's lamp command."""

    result_id: str
    command: str
    """The light state commanded, or `withheld_late`, `withheld`; `unknown` where the station died
    before it wrote that down."""
    commanded_ns: int
    is_confirmed: bool | None = None
    shown_ns: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Command:
    sent_ns: int
    meaning: Meaning
    result: Actuated | None
    """The result that waits for this command's answer."""


@dataclass(slots=True)
class LampCounts:
    """What became of this run's commands to the lamp process."""

    commands: int = 0
    renewals: int = 0
    """Commands that repeat the one before: the lease goes on."""
    confirmed: int = 0
    taken: int = 0
    """Sent to a device that cannot be read back."""
    refused: int = 0
    unanswered: int = 0


class Actuation:
    """What the light is told, and what is written down of it."""

    def __init__(
        self,
        policy: LightPolicy,
        lease_s: float,
        send: Callable[[Meaning], int | None],
        write: Callable[[Actuated], None],
    ) -> None:
        """`send` gives the command's number, or None if no lamp process takes it; numbers grow."""
        self._policy = policy
        self._lease_ns = int(lease_s * 1e9)
        self._send = send
        self._write = write
        self._commands: dict[int, _Command] = {}
        """Those that wait for their answers."""
        self._newest_opened = 0
        """Sequence of the last plate whose leading edge was seen."""
        self._renewed_ns = 0
        self._belief = Belief()
        self.counts = LampCounts()
        self.shown: Meaning | None = None
        """What the lamp process was told last; None if there is none that was told anything."""
        self._can_confirm = False
        """Whether the device can be read back, as the lamp process said last."""

    @property
    def doubt(self) -> str:
        """Why the light may show something else than it was told; empty if it is believed."""
        return self._belief.doubt

    @property
    def confirmation(self) -> str:
        """What is known of the light, for people."""
        if self.doubt:
            return f"not believed: {self.doubt}"
        if self.shown is None:
            return "unknown"
        return "read back" if self._can_confirm else "unconfirmed: it cannot be read back"

    @property
    def is_waiting(self) -> bool:
        """Some result waits for the lamp's answer."""
        return any(command.result for command in self._commands.values())

    @property
    def waiting(self) -> int:
        """Commands that the lamp process has not answered yet."""
        return len(self._commands)

    # --- plates -----------------------------------------------------------------------------------

    def plate_opened(self, sequence: int, now_ns: int) -> None:
        """A leading edge: the pass of the plate before it ends."""
        self._newest_opened = sequence
        self._policy.plate_opened()
        self.update(now_ns)

    def failing_tile(self, result_id: str, now_ns: int) -> None:
        """Green ends, and red needs no commit."""
        self._policy.failing_tile(result_id, now_ns=now_ns)
        self.update(now_ns)

    def committed(self, result: Committed, now_ns: int) -> bool:
        """Command the light for a durable result, and see that one row says what was commanded;
        False if no lamp process takes commands."""
        # A light that turns green over the next plate would speak of that one.
        is_late = result.is_late or result.sequence < self._newest_opened
        self._policy.decided(
            result.verdict, result.result_id, result.is_production, is_late=is_late, now_ns=now_ns
        )
        number = self._command(now_ns)
        if number is None or self.shown is None:
            # It may not turn green later either: the row says that it did not.
            self._policy.end_pass()
            self._write(Actuated(result.result_id, "withheld", 0, detail="no lamp was told"))
            return False
        state, shown_id = self.shown
        if shown_id == result.result_id:
            waiting = Actuated(result.result_id, str(state), now_ns)
            self._commands[number] = _Command(now_ns, self.shown, waiting)
        elif result.verdict is Verdict.PASS and is_late:
            self._write(Actuated(result.result_id, "withheld_late", now_ns))
        else:
            detail = f"the light shows {state} of {shown_id or 'no plate'}"
            detail += f"; {self.doubt}" if self.doubt else ""
            self._write(Actuated(result.result_id, "withheld", now_ns, detail=detail))
        return True

    # --- the lamp ---------------------------------------------------------------------------------

    def update(self, now_ns: int) -> None:
        """Command what the light should mean now, if that is another thing than before."""
        if self._policy.wanted(now_ns) != self.shown:
            self._command(now_ns)

    def renew(self, now_ns: int) -> None:
        """A tick has been everywhere: what is shown lives on, but no pass that has lapsed."""
        if now_ns - self._renewed_ns >= self._lease_ns:
            self._policy.end_pass()
        self._renewed_ns = now_ns
        self._command(now_ns)

    def answered(self, answer: LampAnswer) -> None:
        """The lamp process says what became of a command."""
        self._can_confirm = answer.can_confirm
        command = self._commands.pop(answer.number, None)
        self.counts.refused += not answer.is_shown
        self.counts.confirmed += answer.is_confirmed
        self.counts.taken += answer.is_shown and not answer.is_confirmed
        if answer.is_shown and not answer.doubt:
            self._believe()
        elif answer.doubt or command is None or command.meaning == self.shown:
            # Else it is of what nobody means any more, and says nothing of the light.
            self.distrust(answer.doubt or f"not shown: {answer.reason}")
        if command is not None and command.result is not None:
            self._finish(command.result, answer)

    def lamp_lost(self) -> None:
        """The lamp process is gone: it has left any pass, which does not come back."""
        self.shown = None
        self.distrust("the lamp process is gone")
        self._give_up(list(self._commands), "the lamp process died")

    def distrust(self, why: str) -> None:
        """No pass from here on, until the lamp process has done what it was told again."""
        self._belief.failed(why)
        self._policy.set_doubt(why)

    def check(self, now_ns: int) -> None:
        """What was not answered in time is written down so, and the light not believed."""
        limit_ns = now_ns - int(ANSWER_LIMIT_S * 1e9)
        overdue = [n for n, command in self._commands.items() if command.sent_ns <= limit_ns]
        if overdue:
            self.distrust("the lamp process does not answer")
            self._give_up(overdue, "the lamp process did not answer")

    def _command(self, now_ns: int) -> int | None:
        wanted = self._policy.wanted(now_ns)
        number = self._send(wanted)
        if number is not None:
            self.counts.renewals += wanted == self.shown
            self.counts.commands += wanted != self.shown
            self.shown = wanted
            self._commands[number] = _Command(now_ns, wanted, None)
        return number

    def _finish(self, result: Actuated, answer: LampAnswer) -> None:
        is_confirmed = answer.is_confirmed if answer.is_shown else None
        self._write(
            replace(
                result,
                is_confirmed=is_confirmed,
                shown_ns=answer.shown_ns,
                detail=answer.reason,
            )
        )

    def _give_up(self, numbers: list[int], detail: str) -> None:
        for number in numbers:
            result = self._commands.pop(number).result
            self.counts.unanswered += 1
            if result is not None:
                self._write(replace(result, detail=detail))

    def _believe(self) -> None:
        self._belief.worked()
        if not self._belief.doubt:
            self._policy.clear_doubt()
