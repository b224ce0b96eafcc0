"""The light's rules: examples for each, then properties over any order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drivers.stacklight import LightState
from station.light_policy import LightPolicy
from station.record import Verdict

S = 1_000_000_000
PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED
IDLE = (LightState.IDLE, "")


def policy(fail_hold_s: float | None = None, pass_hold_s: float = 10.0) -> LightPolicy:
    return LightPolicy(fail_hold_s, pass_hold_s)


def test_nothing_decided_is_idle() -> None:
    assert policy().wanted(0) == IDLE


def test_pass_shows_until_the_next_leading_edge() -> None:
    light = policy()
    light.decided(PASS, "a-1", True, now_ns=0)
    assert light.wanted(9 * S) == (LightState.PASS, "a-1")
    light.plate_opened()
    assert light.wanted(9 * S) == IDLE


def test_pass_shows_for_its_hold_time_at_most() -> None:
    light = policy(pass_hold_s=2.0)
    light.decided(PASS, "a-1", True, now_ns=5 * S)
    assert light.wanted(7 * S - 1) == (LightState.PASS, "a-1")
    assert light.wanted(7 * S) == IDLE


def test_a_plate_that_is_not_production_has_a_pattern_of_its_own() -> None:
    light = policy()
    light.decided(PASS, "a-1", False, now_ns=0)
    assert light.wanted(0) == (LightState.PASS_NOT_PRODUCTION, "a-1")


def test_a_late_pass_never_shows_and_ends_the_older_one() -> None:
    light = policy()
    light.decided(PASS, "a-1", True, now_ns=0)
    light.decided(PASS, "a-2", True, is_late=True, now_ns=1)
    assert light.wanted(2) == IDLE


def test_fail_is_held_until_acknowledged_and_a_later_pass_does_not_hide_it() -> None:
    light = policy()
    light.decided(FAIL, "a-1", True, now_ns=0)
    light.plate_opened()
    light.decided(PASS, "a-2", True, now_ns=1)
    assert light.wanted(1000 * S) == (LightState.FAIL, "a-1")
    light.acknowledge()
    assert light.wanted(1) == IDLE, "the pass was withheld; it must not appear afterwards"
    light.decided(PASS, "a-3", True, now_ns=2)
    assert light.wanted(2) == (LightState.PASS, "a-3")


def test_fail_is_held_for_the_sites_time() -> None:
    light = policy(fail_hold_s=0.5)
    light.decided(UNDECIDED, "a-1", True, now_ns=0)
    assert light.wanted(S // 2 - 1) == (LightState.UNDECIDED, "a-1")
    light.decided(PASS, "a-2", True, now_ns=S // 2)
    assert light.wanted(S // 2) == (LightState.PASS, "a-2")


def test_the_newest_of_fail_and_undecided_shows() -> None:
    light = policy()
    light.decided(FAIL, "a-1", True, now_ns=0)
    light.decided(UNDECIDED, "a-2", True, now_ns=1)
    assert light.wanted(2) == (LightState.UNDECIDED, "a-2")
    light.failing_tile("a-3", now_ns=3)
    assert light.wanted(3) == (LightState.FAIL, "a-3")


def test_a_failing_tile_ends_green_before_the_verdict() -> None:
    light = policy()
    light.decided(PASS, "a-1", True, now_ns=0)
    light.failing_tile("a-2", now_ns=1)
    assert light.wanted(1) == (LightState.FAIL, "a-2")
    light.decided(PASS, "a-1", True, now_ns=2)
    assert light.wanted(2) == (LightState.FAIL, "a-2")


def test_a_fault_overrides_everything_and_ends_the_pass() -> None:
    light = policy()
    light.decided(PASS, "a-1", True, now_ns=0)
    light.set_fault("the camera is gone")
    assert light.wanted(0) == (LightState.FAULT, "")
    light.decided(PASS, "a-2", True, now_ns=1)
    assert light.wanted(1) == (LightState.FAULT, "")
    light.clear_fault()
    assert light.wanted(1) == IDLE


def test_a_held_fail_outlives_a_fault() -> None:
    light = policy()
    light.decided(FAIL, "a-1", True, now_ns=0)
    light.set_fault("x")
    light.clear_fault()
    assert light.wanted(1) == (LightState.FAIL, "a-1")


def test_attention_shows_where_no_result_does() -> None:
    light = policy()
    light.set_attention("the disk fills")
    assert light.wanted(0) == (LightState.ATTENTION, "")
    light.decided(PASS, "a-1", True, now_ns=0)
    assert light.wanted(0) == (LightState.PASS, "a-1")
    light.plate_opened()
    light.clear_attention()
    assert light.wanted(0) == IDLE


def test_a_light_that_is_not_believed_calls_a_person_and_shows_no_pass_afterwards() -> None:
    light = policy()
    light.decided(PASS, "a-1", True, now_ns=0)
    light.set_doubt("it did not confirm")
    assert light.wanted(0) == (LightState.ATTENTION, "")
    light.decided(PASS, "a-2", True, now_ns=1)
    light.clear_doubt()
    assert light.wanted(1) == IDLE
    light.decided(FAIL, "a-3", True, now_ns=2)
    light.set_doubt("it did not confirm")
    assert light.wanted(2) == (LightState.FAIL, "a-3"), "a held fail is not hidden"


def test_the_clock_is_monotonic_when_no_time_is_given() -> None:
    import time

    light = policy(pass_hold_s=1000.0)
    light.decided(PASS, "a-1", True)
    assert light.wanted(time.monotonic_ns()) == (LightState.PASS, "a-1")
    assert light.wanted(time.monotonic_ns() + 1001 * S) == IDLE


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: green implies a newest, timely, unhidden pass."""

    FAIL_HOLD_S, PASS_HOLD_S = 3.0, 2.0

    def __init__(self) -> None:
        super().__init__()
        self.light = LightPolicy(self.FAIL_HOLD_S, self.PASS_HOLD_S)
        self.now_ns = 0
        self.plates = 0
        self.last_event = ""
        """What happened last that can end or begin green."""
        self.last_pass_ns = 0
        self.last_bad_ns: int | None = None
        self.is_fault = False
        self.is_doubt = False

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)

    @rule()
    def open_plate(self) -> None:
        self.light.plate_opened()
        self.last_event = "opened"

    @rule(verdict=st.sampled_from(Verdict), is_production=st.booleans(), is_late=st.booleans())
    def decide(self, verdict: Verdict, is_production: bool, is_late: bool) -> None:
        self.plates += 1
        self.light.decided(
            verdict, f"a-{self.plates}", is_production, is_late=is_late, now_ns=self.now_ns
        )
        self.last_event = f"{verdict} {is_production} {is_late}"
        if verdict is PASS:
            self.last_pass_ns = self.now_ns
        else:
            self.last_bad_ns = self.now_ns

    @rule()
    def fail_tile(self) -> None:
        self.light.failing_tile(f"a-{self.plates + 1}", now_ns=self.now_ns)
        self.last_event, self.last_bad_ns = "failing tile", self.now_ns

    @rule()
    def acknowledge(self) -> None:
        self.light.acknowledge()
        self.last_bad_ns = None

    @rule(is_fault=st.booleans())
    def fault(self, is_fault: bool) -> None:
        if is_fault:
            self.light.set_fault("x")
            self.last_event = "fault"
        else:
            self.light.clear_fault()
        self.is_fault = is_fault

    @rule(is_doubt=st.booleans())
    def doubt(self, is_doubt: bool) -> None:
        if is_doubt:
            self.light.set_doubt("x")
            self.last_event = "doubt"
        else:
            self.light.clear_doubt()
        self.is_doubt = is_doubt

    @rule()
    def attention(self) -> None:
        self.light.set_attention("x")

    @invariant()
    def green_is_earned(self) -> None:
        state, result_id = self.light.wanted(self.now_ns)
        if not state.is_pass:
            return
        is_production = state is LightState.PASS
        assert self.last_event == f"PASS {is_production} False"
        assert result_id == f"a-{self.plates}"
        assert self.now_ns - self.last_pass_ns < self.PASS_HOLD_S * S

    @invariant()
    def bad_is_held(self) -> None:
        state, _ = self.light.wanted(self.now_ns)
        if self.is_fault:
            assert state is LightState.FAULT
        elif self.last_bad_ns is not None and (
            self.now_ns - self.last_bad_ns < self.FAIL_HOLD_S * S
        ):
            assert state in (LightState.FAIL, LightState.UNDECIDED)
        else:
            assert state not in (LightState.FAIL, LightState.UNDECIDED, LightState.FAULT)
            assert not (self.is_doubt and state is not LightState.ATTENTION)


TestAnyOrder = AnyOrder.TestCase


@given(st.integers(0, 10 * S), st.integers(0, 100 * S))
def test_wanted_changes_nothing(decided_ns: int, later_ns: int) -> None:
    light = policy(pass_hold_s=1.0)
    light.decided(PASS, "a-1", True, now_ns=decided_ns)
    before = light.wanted(decided_ns)
    light.wanted(decided_ns + later_ns)
    assert light.wanted(decided_ns) == before == (LightState.PASS, "a-1")
