"""The lease and the order of actuation, proven in a world of faults (tests/lamp_world.py).

The machine inflicts faults in any order on the program's own code; after each step what must never
happen is looked for. Wrong variants of that code show that it would be found.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from lamp_world import Code, S, StationProcess, Violated, Wire, World

from drivers.stacklight import LightState
from station import actuation, lamp, lease, light_policy
from station.actuation import Actuation
from station.lease import (
    BELIEVED_AFTER,
    FAULT,
    MAX_LEASE_S,
    Claims,
    Confirmation,
    Lease,
    LightLease,
    Show,
    Write,
)
from station.light_policy import LightPolicy
from station.record import Provenance, Verdict

PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED


def _camera(world: World) -> None:
    if world.station:
        world.station.set_fault("camera", True)


def _station_hangs(world: World) -> None:
    if world.station:
        world.station.is_stopped = True


def _lamp_hangs(world: World) -> None:
    if world.lamp:
        world.lamp.is_stopped = True


def _journal_hangs(world: World) -> None:
    world.journal.is_slow = True


def _disk_full(world: World) -> None:
    world.journal.is_full = True


def _unplugged(world: World) -> None:
    world.tower.is_there = False


def _choked(world: World) -> None:
    world.tower.is_blocked = True


def _lies(world: World) -> None:
    # One that cannot be read back and does not do what it is told deceives everybody.
    world.tower.is_stuck = world.tower.can_confirm


FAULTS = {
    "the camera fails": _camera,
    "the station hangs": _station_hangs,
    "the station dies, nothing that it wrote left it": lambda world: world.kill_station(0),
    "the station dies, a row had left it": lambda world: world.kill_station(1),
    "the station dies, all rows had left it": lambda world: world.kill_station(9),
    "the journal hangs": _journal_hangs,
    "the disk is full": _disk_full,
    "the lamp process dies": World.kill_lamp,
    "the lamp process hangs": _lamp_hangs,
    "the tower is unplugged": _unplugged,
    "the tower chokes": _choked,
    "the tower lies": _lies,
}


def _wait(wire: Wire) -> None:
    wire.is_delayed = True


def _again(wire: Wire) -> None:
    wire.to_lamp += wire.sent[-4:-1:2]


def _last_again(wire: Wire) -> None:
    wire.to_lamp += wire.sent[-1:]


DISTURBANCES = {
    "packets wait": _wait,
    "the last packet comes again": _last_again,
    "older packets come again": _again,
    "packets change places": lambda wire: wire.to_lamp.reverse(),
    "packets are lost": lambda wire: wire.to_lamp.clear(),
    "answers are lost": lambda wire: wire.to_station.clear(),
}
VERDICTS = st.sampled_from([PASS, PASS, FAIL, UNDECIDED])
SECONDS = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.5, 3.0])


class Faults(RuleBasedStateMachine):
    """Everything that can go wrong around the light, in any order."""

    code = Code()

    @initialize(can_confirm=st.booleans())
    def begin(self, can_confirm: bool) -> None:
        self.world = World(self.code, can_confirm)

    @property
    def station(self) -> StationProcess | None:
        station = self.world.station
        return None if station is None or station.is_stopped else station

    @rule()
    def all_is_well_and_green(self) -> None:
        station = self.world.heal()
        station.acknowledge()
        self.plates([PASS])
        green = (LightState.PASS, str(self.world.plates))
        assert station.on_belt or station.actuation.shown == green, "a plate that earned green"

    @rule(fault=st.sampled_from(sorted(FAULTS)), seconds=SECONDS, rows=st.integers(0, 2))
    def fault_while_green(self, fault: str, seconds: float, rows: int) -> None:
        self.all_is_well_and_green()
        self.inflict(fault, seconds)
        self.faults_end(rows, 0.3)

    @rule(verdicts=st.lists(VERDICTS, min_size=1, max_size=3))
    def plates(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            self.leading_edge()
            self.score(verdict)
            self.world.advance(0.1)

    @rule()
    def leading_edge(self) -> None:
        if self.station:
            self.station.open_plate()

    @rule(verdict=VERDICTS)
    def score(self, verdict: Verdict) -> None:
        if self.station and self.station.on_belt:
            self.station.submit_result(self.station.on_belt.pop(0), verdict)

    @rule()
    def failing_tile(self) -> None:
        if self.station and self.station.on_belt:
            self.station.fail_tile()

    @rule()
    def acknowledge(self) -> None:
        if self.station:
            self.station.acknowledge()

    @rule(fault=st.sampled_from(sorted(FAULTS)), seconds=SECONDS)
    def inflict(self, fault: str, seconds: float) -> None:
        FAULTS[fault](self.world)
        self.world.advance(seconds)

    @rule(disturbance=st.sampled_from(sorted(DISTURBANCES)), seconds=SECONDS)
    def disturb(self, disturbance: str, seconds: float) -> None:
        station = self.world.station
        if station is not None and station.wire is not None:
            self.world.is_wire_true = False
            DISTURBANCES[disturbance](station.wire)
        self.world.advance(seconds)

    @rule(rows=st.integers(1, 3), seconds=SECONDS)
    def faults_end(self, rows: int, seconds: float) -> None:
        self.world.journal.commit(rows)
        self.world.end_faults()
        self.world.advance(seconds)

    @invariant()
    def nothing_forbidden(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


# --- wrong variants, each of which must be found --------------------------------------------------


class NothingLapses(LightLease):
    def due(self, now_ns: int) -> Write | None:
        is_leased = self.shown is not None and self.shown.write.lease is not None
        return None if is_leased else super().due(now_ns)


class EqualNumbersPass(Claims):
    def refusal(self, number: int, lease: Lease, now_ns: int) -> str:
        if self._newest.get(lease.owner) == number:
            self._newest[lease.owner] = number - 1
        return super().refusal(number, lease, now_ns)


class AnyNumberPasses(Claims):
    def refusal(self, number: int, lease: Lease, now_ns: int) -> str:
        self._newest.pop(lease.owner, None)
        return super().refusal(number, lease, now_ns)


class BelievesAContradiction(LightLease):
    def took(self, write: Write, confirmation: Confirmation, now_ns: int) -> None:
        super().took(write, Confirmation.READ_BACK, now_ns)


class PassOutlivesAFault(LightPolicy):
    def set_fault(self, text: str) -> None:
        passed = self._passed
        super().set_fault(text)
        self._passed = passed


class FailIsNotHeld(LightPolicy):
    def plate_opened(self) -> None:
        super().plate_opened()
        self._held = None


class LapsedPassIsRenewed(Actuation):
    def renew(self, now_ns: int) -> None:
        self._renewed_ns = now_ns
        super().renew(now_ns)


class LatePassShows(Actuation):
    def plate_opened(self, sequence: int, now_ns: int) -> None:
        super().plate_opened(sequence, now_ns)
        self._newest_opened = 0


class AnswerIsAwaitedForEver(Actuation):
    def check(self, now_ns: int) -> None:
        pass


class GivenUpIsAnsweredToo(Actuation):
    def _give_up(self, numbers: list[int], detail: str) -> None:
        commands = {number: self._commands[number] for number in numbers}
        super()._give_up(numbers, detail)
        self._commands |= {n: replace(c, sent_ns=2**62) for n, c in commands.items()}


WRONG = {
    "no expiry check": Code(lease=NothingLapses),
    "equal numbers accepted": Code(claims=EqualNumbersPass),
    "older numbers accepted": Code(claims=AnyNumberPasses),
    "a read-back that contradicts is believed": Code(lease=BelievesAContradiction),
    "a pass restored after a fault": Code(policy=PassOutlivesAFault),
    "a pass hides a fail": Code(policy=FailIsNotHeld),
    "a pass restored after a standstill": Code(actuation=LapsedPassIsRenewed),
    "a pass over the next plate": Code(actuation=LatePassShows),
    "an actuation that is never written": Code(actuation=AnswerIsAwaitedForEver),
    "an actuation that is written twice": Code(actuation=GivenUpIsAnsweredToo),
    "actuation before commit": Code(commits_first=False),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_machine_finds(wrong: str) -> None:
    machine = type("Wrong", (Faults,), {"code": WRONG[wrong]})
    search = settings(
        max_examples=1000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    with pytest.raises(Violated):
        run_state_machine_as_test(machine, settings=search)


# --- examples -------------------------------------------------------------------------------------


def a_show(number: int, state: LightState, result_id: str = "a-1", expires_ns: int = S) -> Show:
    return Show(number, state, result_id, Provenance.PRODUCTION, expires_ns)


def lit(light: LightLease, show: Show, now_ns: int = 0) -> str:
    """Obey a command on a device that does what it is told; why it was refused."""
    write = light.show(1, show, now_ns, show)
    if isinstance(write, str):
        return write
    light.took(write, Confirmation.READ_BACK, now_ns)
    return ""


def test_numbers_of_a_connection_grow_also_over_refused_commands() -> None:
    claims = Claims()
    assert claims.refusal(5, Lease(1, -1), 0).startswith("stale")
    assert "after command 5" in claims.refusal(4, Lease(1, S), 0)
    assert "after command 5" in claims.refusal(5, Lease(1, S), 0)
    assert claims.refusal(6, Lease(1, S), 0) == ""
    assert claims.refusal(1, Lease(2, S), 0) == "", "another connection counts for itself"


def test_a_pass_that_ended_does_not_come_back_and_the_next_one_shows() -> None:
    light = LightLease(Claims())
    assert lit(light, a_show(1, LightState.PASS)) == ""
    assert lit(light, a_show(2, LightState.PASS)) == "", "it is renewed"
    light.took(FAULT, Confirmation.READ_BACK, S)
    assert "does not come back" in lit(light, a_show(3, LightState.PASS, expires_ns=2 * S), S)
    assert lit(light, a_show(4, LightState.PASS, "a-2", expires_ns=2 * S), S) == ""


def test_a_pass_that_is_over_when_it_is_read_is_not_shown() -> None:
    light = LightLease(Claims())
    passed, idle = a_show(1, LightState.PASS), a_show(2, LightState.IDLE, "")
    assert "over" in str(light.show(1, passed, 0, idle))
    light = LightLease(Claims())
    assert "over" in str(light.show(1, passed, 0, None)), "its station is gone"


def test_what_failed_is_believed_again_after_some_successes() -> None:
    light = LightLease(Claims())
    light.took(Write(LightState.FAIL), Confirmation.CONTRADICTED, 0)
    assert light.shown is None
    assert "read back" in light.belief.doubt
    for number in range(1, BELIEVED_AFTER + 1):
        assert "not believed" in lit(light, a_show(number, LightState.PASS))
        light.took(FAULT, Confirmation.READ_BACK, 0)
    assert lit(light, a_show(9, LightState.PASS)) == ""


def test_a_doubtful_light_gets_fault_more_often() -> None:
    light = LightLease(Claims())
    light.took(FAULT, Confirmation.READ_BACK, 0)
    assert light.due(S // 2) is None
    assert light.due(S) == FAULT
    light.lost("gone", S)
    assert light.due(S + S // 4) == FAULT


@given(expires_ns=st.integers(0, 2**63 - 1), now_ns=st.integers(0, 2**62))
def test_a_lease_is_live_before_its_end_and_never_after(expires_ns: int, now_ns: int) -> None:
    lease = Lease(1, expires_ns)
    assert lease.is_live(now_ns) is (now_ns < expires_ns)
    assert lease.capped(now_ns, 1.2).expires_ns <= now_ns + 1.2 * S
    is_obeyed = Claims().refusal(1, lease, now_ns) == ""
    assert is_obeyed is (0 < expires_ns - now_ns <= MAX_LEASE_S * S)


def test_nothing_that_decides_reads_the_wall_clock() -> None:
    """Clock steps are no fault of theirs: there is only CLOCK_MONOTONIC, and it is passed in."""
    for module in (lease, actuation, light_policy, lamp):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not names & {"time_ns", "now", "utcnow", "today", "gmtime", "localtime"}
        assert not any(node.module == "datetime" for node in imported)
        assert "time.time(" not in ast.unparse(tree)
