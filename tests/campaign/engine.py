"""Runs faults one after another in a living station and says what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from campaign.kinds import Kind, Strike
from campaign.life import ACCEPT_MM, Life
from campaign.observer import Findings, Observer, Seen

Json = dict[str, Any]
RECOVERY_LIMIT_S = 30.0
LEAVE_GREEN_LIMIT_S = 2.0
_WITH_GREEN, _WITH_OPEN_PLATE = 0.6, 0.8
"""So many strikes while green is lit; up to so many of all while a plate is under the camera."""


@dataclass
class Outcome:
    """One run of one fault."""

    kind: str
    seed: int
    findings: dict[str, int] = field(default_factory=dict)
    leave_green_s: float | None = None
    """None where green was not lit."""
    recovery_s: float | None = None
    """From the fault (or its end, where it lasts) to the next plate that was judged."""
    restarts: int = 0
    """Of `vqi run` by whoever starts it."""
    is_death: bool = False
    note: str = ""
    said: list[str] = field(default_factory=list)
    """What was wrong, in words."""

    def as_json(self) -> Json:
        return asdict(self)


class Engine:
    """One life, its observer, and its faults."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.observer = Observer(
            life.journal, Seen(life.tower.log, life.panel.log, life.stdout), life.belt, ACCEPT_MM
        )
        life.before_unmount = self.observer.log.release

    def begin(self) -> None:
        """Start the station and see it judge a plate. Raises `RuntimeError`."""
        since_ns = time.monotonic_ns()
        self.life.keep_running()
        if self.wait_judged(since_ns, 60.0) is None:
            raise RuntimeError(f"the station did not start: {self.stderr()}")

    def strike(self, kind: Kind, seed: int) -> Outcome:
        """One fault, from a random moment to the station's recovery. Raises `NotThere`
        if there was nothing to strike."""
        draw = Random(seed)
        if not kind.chooses_its_moment:
            self._wait_for_a_moment(draw)
        starts, began_ns = self.life.starts, time.monotonic_ns()
        strike = kind.inject(self.life, draw)
        recovery_s = self.wait_judged(strike.ended_ns, RECOVERY_LIMIT_S)
        outcome = self.outcome(kind, seed, strike, recovery_s, began_ns)
        outcome.restarts = self.life.starts - starts
        return outcome

    def outcome(
        self, kind: Kind, seed: int, strike: Strike, recovery_s: float | None, since_ns: int
    ) -> Outcome:
        blind = (strike.began_ns, strike.ended_ns) if kind.is_blind else None
        findings = self.observer.judge(since_ns, blind)
        green_ns = strike.ended_ns if kind.is_blind else strike.began_ns
        leave_s = self.observer.green_left_s(green_ns)
        self._judge_times(findings, leave_s)
        return Outcome(
            kind=kind.name,
            seed=seed,
            findings=findings.counts(),
            leave_green_s=leave_s,
            recovery_s=recovery_s,
            is_death=kind.is_death,
            note=strike.note,
            said=[
                *findings.all,
                *strike.problems,
                *strike.check(self.observer.verdicts()),
                *self._no_recovery(recovery_s),
            ],
        )

    def wait_judged(self, after_ns: int, within_s: float) -> float | None:
        """Seconds from a moment until a plate that came after it was judged, and the tower was told
        something; `vqi run` is kept running meanwhile."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.life.keep_running()
            self.observer.look()
            body = self.observer.next_judged(after_ns)
            shown_ns = self.observer.lamp.changed_ns(after_ns)
            if body is not None and shown_ns is not None:
                return (max(int(body["decided_ns"]), shown_ns) - after_ns) / 1e9
            time.sleep(0.02)
        return None

    def stderr(self) -> str:
        lines = self.life.stderr.read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:])

    def _wait_for_a_moment(self, draw: Random) -> None:
        """Mostly while green is lit, or a plate is open, at a random time of it; else at any."""
        share, observer = draw.random(), self.observer
        if share < _WITH_GREEN:
            self._wait_until(lambda: observer.lamp.now.is_green)
            time.sleep(draw.uniform(0, 0.2))
        elif share < _WITH_OPEN_PLATE:
            self._wait_until(lambda: observer.has_open_plate)
            time.sleep(draw.uniform(0, 0.3))
        else:
            time.sleep(draw.uniform(0, 0.5))

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline and not condition():
            self.observer.look()
            time.sleep(0.01)

    @staticmethod
    def _judge_times(findings: Findings, leave_s: float | None) -> None:
        if leave_s is not None and leave_s > LEAVE_GREEN_LIMIT_S:
            findings.false_greens.append(f"green stayed for {leave_s:.2f} s after the fault")

    def _no_recovery(self, recovery_s: float | None) -> list[str]:
        if recovery_s is not None:
            return []
        return [f"no plate was judged within {RECOVERY_LIMIT_S:g} s: {self.stderr()}"]
