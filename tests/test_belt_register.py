"""The register that shifts with the belt, against a belt whose true place is known."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from belt_model import Belt, Leg, restless_belt
from hypothesis import given, settings
from hypothesis import strategies as st

from station.belt_register import MAX_PLATES, SLACK_S, BeltRegister, Decision, Fate, Place

HEIGHT, DISTANCE = 64, 3000
PULSE_S, MAX_AGE_S = 0.05, 0.5
PLATE, GAP = 400, 700
SPEED = 3000.0


@dataclass
class Run:
    """One belt with plates on it, in virtual time: frames come `latency_s` late, the register is
    asked when it wants to be, up to `wake_s` late."""

    belt: Belt
    verdicts: dict[str, tuple[bool, float]]
    """Whether it passed, and how many seconds after its trailing edge that is known."""
    latency_s: float = 0.005
    wake_s: float = 0.002
    height: int = HEIGHT
    gap: int = GAP
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    pulses: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, when accept went on, and off."""
    _on: tuple[float, Decision] | None = None

    def plate(self, number: int) -> tuple[int, int]:
        begin = 200 + number * (PLATE + self.gap)
        return begin, begin + PLATE

    def go(self) -> None:
        register = BeltRegister(DISTANCE, self.height, PULSE_S, MAX_AGE_S)
        events: list[tuple[float, str, tuple[object, ...]]] = []
        for frame in self.belt.frames(self.height):
            arrives = frame.at_s + self.latency_s
            events.append((arrives, "move", (Place(frame.end, ns(frame.at_s)),)))
            for name, (is_pass, after_s) in self.verdicts.items():
                begin, end = self.plate(int(name))
                if frame.end - self.height < begin <= frame.end:
                    events.append((arrives, "enter", (name, begin)))
                if frame.end - self.height < end <= frame.end:
                    events.append((arrives, "close", (name, end)))
                    events.append((frame.at_s + after_s, "decide", (name, is_pass)))
        self._play(register, sorted(events, key=lambda e: (e[0], e[1] == "move")))

    def _play(
        self, register: BeltRegister, events: list[tuple[float, str, tuple[object, ...]]]
    ) -> None:
        now = 0.0
        for at_s, what, values in [*events, (self.belt.seconds, "end", ())]:
            while True:
                wake = min(at_s, self._next_ask(register, now))
                now = wake
                if wake >= at_s:
                    break
                self._ask(register, now)
            if what == "decide":
                name, is_pass = values
                said = register.decide(str(name), bool(is_pass), "", ns(now))
                self.decisions += [] if said is None else [(now, said)]
            elif what != "end":
                getattr(register, what)(*values)
            self._ask(register, now)

    def _next_ask(self, register: BeltRegister, now: float) -> float:
        due = register.next_due_ns(ns(now))
        wakes = [now + 0.05 if due is None else max(due / 1e9, now) + self.wake_s]
        if self._on is not None:
            began, decision = self._on
            next_s = register.next_here_s(decision.begin, ns(now))
            left_s = min(next_s, began + PULSE_S - now)
            wakes.append(now + max(0.0, left_s) + self.wake_s)
        return min(wakes)

    def _ask(self, register: BeltRegister, now: float) -> None:
        if self._on is not None:
            began, decision = self._on
            if now >= began + PULSE_S or register.is_next_here(decision.begin, ns(now)):
                self.pulses.append((decision.result_id, began, now))
                self._on = None
        for said in register.due(ns(now)):
            self.decisions.append((now, said))
            if said.fate is Fate.ACCEPT:
                self._on = now, said

    def error(self, at_s: float, name: str) -> float:
        """Scan lines that the belt truly was beyond the plate's accept point."""
        return self.belt.place(at_s) - (self.plate(int(name))[1] + DISTANCE)

    def accepted(self) -> dict[str, float]:
        return {d.result_id: at for at, d in self.decisions if d.fate is Fate.ACCEPT}

    def fates(self) -> dict[str, Fate]:
        return {d.result_id: d.fate for _, d in self.decisions}


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def all_pass(count: int, after_s: float = 0.1) -> dict[str, tuple[bool, float]]:
    return {str(number): (True, after_s) for number in range(count)}


def steady(speed: float = SPEED, seconds: float = 5.0) -> Belt:
    return Belt([Leg(seconds, speed)])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(100, 9000),
    st.floats(0, 0.3),
    st.floats(0.001, 0.015),
    st.integers(100, GAP),
)
def test_a_plate_is_accepted_at_its_point_or_not_at_all(
    seed: int, speed: float, jitter: float, latency_s: float, gap: int
) -> None:
    """Whatever the belt does: half a frame height and 20 ms of travel, no plate that did not pass,
    none twice, and off when the next one comes."""
    rng = random.Random(seed)
    belt = restless_belt(rng, speed, 20_000 / speed, jitter)
    verdicts = {str(n): (rng.random() < 0.7, rng.choice([0.05, 0.3, 2.0])) for n in range(12)}
    run = Run(belt, verdicts, latency_s, gap=gap)
    run.go()
    names = [decision.result_id for _, decision in run.decisions]
    assert len(names) == len(set(names)), "one decision for a plate"
    for name, at_s in run.accepted().items():
        assert verdicts[name][0], "only what passed"
        limit = HEIGHT / 2 + SLACK_S * belt.top_speed(at_s - 1.0, at_s)
        assert abs(run.error(at_s, name)) <= limit
    for name, on_s, off_s in run.pulses:
        if str(int(name) + 1) not in verdicts:
            continue
        limit = HEIGHT / 2 + SLACK_S * belt.top_speed(on_s - 1.0, off_s)
        next_begin = run.plate(int(name) + 1)[0] + DISTANCE
        assert belt.place(off_s) <= next_begin + limit


def test_on_a_steady_belt_every_pass_is_accepted_to_the_scan_line() -> None:
    run = Run(steady(), all_pass(8))
    run.go()
    assert len(run.accepted()) == 8
    for name, at_s in run.accepted().items():
        assert abs(run.error(at_s, name)) <= SPEED * 0.003, "as late as it was woken"


def test_a_plate_before_its_point_survives_a_stop_and_a_way_back() -> None:
    reach_s = (200 + PLATE + DISTANCE) / SPEED
    for stop_s in (reach_s - 0.3, reach_s - 0.02):
        for legs in (
            [Leg(2.0, 0.0)],
            [Leg(0.2, 0.0), Leg(0.3, -SPEED / 2), Leg(1.0, 0.0), Leg(0.15, SPEED)],
        ):
            run = Run(Belt([Leg(stop_s, SPEED), *legs, Leg(2.0, SPEED)]), all_pass(2))
            run.go()
            assert run.fates() == {"0": Fate.ACCEPT, "1": Fate.ACCEPT}


def test_a_plate_that_comes_again_is_not_accepted_again() -> None:
    reach_s = (200 + PLATE + DISTANCE) / SPEED
    belt = Belt([Leg(reach_s + 0.1, SPEED), Leg(0.3, -SPEED), Leg(3.0, SPEED)])
    run = Run(belt, all_pass(2))
    run.go()
    assert [d.result_id for _, d in run.decisions] == ["0", "1"]


def test_a_verdict_after_the_point_is_late_and_counts_only_for_what_passed() -> None:
    verdicts = {"0": (True, 1.2), "1": (False, 1.2), "2": (True, 0.1)}
    run = Run(steady(), verdicts)
    run.go()
    assert run.fates() == {"0": Fate.LATE, "2": Fate.ACCEPT}


def test_a_refused_plate_is_withheld_with_its_reason() -> None:
    register = BeltRegister(100, HEIGHT, 0.001, MAX_AGE_S)
    for number in range(3):
        register.move(Place(number * 64, number * 20_000_000))
    register.enter("a", 64)
    register.close("a", 128)
    assert register.decide("a", True, "not production", 40_000_000) is None
    register.move(Place(230, 70_000_000))
    (decision,) = register.due(70_000_000)
    assert (decision.fate, decision.why) == (Fate.WITHHELD, "not production")
    assert decision.off_by == 230 - 228


def test_a_plate_whose_end_nobody_saw_has_its_row() -> None:
    register = BeltRegister(100, HEIGHT, 0.001, MAX_AGE_S)
    register.enter("a", 64)
    register.enter("b", 64)
    decision = register.decide("a", True, "", 1)
    assert decision is not None
    assert (decision.fate, decision.why) == (Fate.WITHHELD, "nobody saw where it ends")
    assert register.decide("b", False, "", 1) is None


def test_a_belt_of_unknown_speed_accepts_nothing() -> None:
    register = BeltRegister(100, HEIGHT, 0.001, MAX_AGE_S)
    register.enter("a", 0)
    register.close("a", 64)
    register.move(Place(64, 0))
    assert register.place_at(10) is None
    register.decide("a", True, "", 10)
    assert register.forget() == [Decision("a", Fate.WITHHELD, "the belt's place was lost")]
    register.move(Place(164, 1000))
    assert register.due(2000) == []
    assert register.decide("a", True, "", 3000) == Decision(
        "a", Fate.WITHHELD, "nobody saw it pass the camera, or the belt's place was lost since"
    )


def test_speed_must_be_known_at_the_point() -> None:
    register = BeltRegister(0, HEIGHT, 0.001, MAX_AGE_S)
    register.enter("a", 0)
    register.close("a", 65)
    register.decide("a", True, "", 0)
    register.move(Place(70, 0))
    (decision,) = register.due(1)
    assert (decision.fate, decision.why) == (Fate.WITHHELD, "the belt's speed is unknown")


def test_frames_that_were_lost_at_the_point_withhold_it() -> None:
    register = BeltRegister(0, HEIGHT, 0.001, MAX_AGE_S)
    for number in range(3):
        register.move(Place(number * 64, number * 20_000_000))
    register.enter("a", 150)
    register.close("a", 300)
    register.decide("a", True, "", 45_000_000)
    register.move(Place(700, 260_000_000))
    (decision,) = register.due(261_000_000)
    assert decision.fate is Fate.WITHHELD
    assert "beyond its accept point" in decision.why


def test_the_next_plate_too_close_withholds_it() -> None:
    """A pulse that would still be on when the next plate arrives belongs to no plate."""
    register = BeltRegister(3000, HEIGHT, 0.1, MAX_AGE_S)
    at_ns = 0
    for name, begin, end in (("near", 0, 400), ("next", 500, 900), ("free", 2000, 2400)):
        register.enter(name, begin)
        register.close(name, end)
        register.decide(name, True, "", at_ns)
    decisions = []
    for number in range(120):
        at_ns = number * 20_000_000
        register.move(Place(number * 64, at_ns))
        decisions += register.due(at_ns)
    fates = {decision.result_id: decision.fate for decision in decisions}
    assert fates == {"near": Fate.WITHHELD, "next": Fate.ACCEPT, "free": Fate.ACCEPT}


def passed_plate(pulse_s: float = 0.2) -> BeltRegister:
    """Its accept point is 1064."""
    register = BeltRegister(1000, HEIGHT, pulse_s, MAX_AGE_S)
    register.enter("a", 0)
    register.close("a", 64)
    register.decide("a", True, "", 0)
    return register


def test_a_stop_between_two_frames_makes_no_belt_slow() -> None:
    """By the mean across it, the next plate would come after 1.1 s; it comes after 0.06 s."""
    register = passed_plate()
    register.enter("b", 264)
    for place, at_s in ((936, 0.0), (1000, 0.02), (1064, 0.44)):
        register.move(Place(place, ns(at_s)))
    (decision,) = register.due(ns(0.44))
    assert decision.fate is Fate.WITHHELD
    assert decision.why == "the next plate would reach the accept point within the pulse"


def test_a_belt_that_stands_accepts_no_plate_that_another_one_touches() -> None:
    register = passed_plate()
    register.enter("b", 84)
    for number in range(3):
        register.move(Place(1064, ns(0.02 * number)))
    (decision,) = register.due(ns(0.04))
    assert decision.fate is Fate.WITHHELD


def test_a_belt_that_goes_faster_takes_the_next_plate_there_sooner() -> None:
    register = passed_plate()
    register.enter("b", 364)
    register.move(Place(1000, 0))
    register.move(Place(1064, ns(0.2)))
    (decision,) = register.due(ns(0.2))
    assert decision.fate is Fate.ACCEPT
    assert not register.is_next_here(decision.begin, ns(0.2))
    register.move(Place(1128, ns(0.22)))
    assert not register.is_next_here(decision.begin, ns(0.22))
    assert 0 < register.next_here_s(decision.begin, ns(0.22)) < (1364 - 1128) / 3200
    for number in range(1, 4):
        register.move(Place(1128 + 64 * number, ns(0.22 + 0.02 * number)))
    assert register.is_next_here(decision.begin, ns(0.28)), "44 scan lines before it is there"


def test_a_plate_without_an_end_takes_the_place_behind_one_that_passed() -> None:
    register = passed_plate()
    register.enter("endless", 164)
    assert register.decide("endless", False, "", 0) is None
    register.move(Place(1044, 0))
    register.move(Place(1064, ns(0.02)))
    (decision,) = register.due(ns(0.02))
    assert decision.fate is Fate.WITHHELD


def run_to_the_point(register: BeltRegister) -> Decision:
    for number in range(1, 18):
        register.move(Place(64 * number, ns(0.02 * number)))
    (decision,) = register.due(ns(0.34))
    return decision


@pytest.mark.parametrize(
    ("missed", "fate"),
    [
        ([128], Fate.WITHHELD),
        ([128, 900], Fate.WITHHELD),
        ([900, 128], Fate.WITHHELD),
        ([900], Fate.ACCEPT),
        ([], Fate.ACCEPT),
    ],
)
def test_what_nobody_saw_behind_a_plate_may_be_another_one(missed: list[int], fate: Fate) -> None:
    register = passed_plate()
    for scan_line in missed:
        register.miss(scan_line)
    decision = run_to_the_point(register)
    assert decision.fate is fate
    if fate is Fate.WITHHELD:
        assert decision.why == "the next plate would reach the accept point within the pulse"


def test_what_nobody_saw_is_behind_each_plate_before_it() -> None:
    """Of what was missed without a plate between, the first place is kept; a plate makes it new."""
    register = passed_plate()
    register.miss(-200)
    register.enter("b", -100)
    register.miss(128)
    assert run_to_the_point(register).fate is Fate.WITHHELD


def test_much_that_nobody_saw_hides_nothing_that_was_seen_or_missed_before() -> None:
    register = passed_plate()
    for number in range(2, 2 * MAX_PLATES):
        register.miss(64 * number)
    assert run_to_the_point(register).fate is Fate.WITHHELD


def test_places_that_are_not_told_are_nothing_that_was_missed() -> None:
    """A fast camera's every second or third place is told."""
    register = passed_plate()
    for number in range(1, 6):
        register.move(Place(192 * number, ns(0.06 * number)))
    register.move(Place(1064, ns(0.3325)))
    (decision,) = register.due(ns(0.3325))
    assert decision.fate is Fate.ACCEPT


def test_it_is_bounded() -> None:
    register = BeltRegister(3000, HEIGHT, 0.1, MAX_AGE_S)
    for number in range(10_000):
        register.enter(str(number), number)
        if not number % 2:
            register.close(str(number), number + 1)
            register.decide(str(number), True, "", 0)
    assert len(register._entries) <= 256
    lost = {decision.result_id for decision in register.due(0)}
    assert lost == {str(number) for number in range(0, 10_000 - 256, 2)}, "no passed plate vanishes"


# --- is the way to the point empty? ---------------------------------------------------------------


def moved(register: BeltRegister, *places: int) -> int:
    """Frames at `SPEED`; the time of the last."""
    for place in places:
        register.move(Place(place, ns(place / SPEED)))
    return ns(places[-1] / SPEED)


def test_the_way_is_clear_once_the_belt_went_it_empty() -> None:
    register = BeltRegister(DISTANCE, HEIGHT, PULSE_S, MAX_AGE_S)
    assert register.clear_s(0) == 0, "nothing is known"
    assert register.clear_s(moved(register, 0, 64, DISTANCE - 1)) == 0, "what lay there is unknown"
    now_ns = moved(register, DISTANCE)
    clear_s = register.clear_s(now_ns)
    assert 0 < clear_s < DISTANCE / SPEED - HEIGHT / 2 / SPEED
    assert register.clear_s(now_ns + ns(0.02)) < clear_s, "what enters now is on its way"


def test_a_plate_is_on_its_way_also_where_nobody_can_say_what_it_is() -> None:
    for how in ("judged", "endless", "unseen"):
        register = BeltRegister(DISTANCE, HEIGHT, PULSE_S, MAX_AGE_S)
        now_ns = moved(register, 0, DISTANCE)
        if how != "unseen":
            register.enter("1", DISTANCE - 10)
        now_ns = moved(register, DISTANCE + 64)
        if how == "judged":
            register.close("1", DISTANCE + 64)
        register.decide("1", is_pass=False, refusal="", now_ns=now_ns)
        now_ns = moved(register, DISTANCE + 128, 2 * DISTANCE + 63)
        register.due(now_ns)
        assert register.clear_s(now_ns) == 0, how
        now_ns = moved(register, 2 * DISTANCE + 64)
        register.due(now_ns)
        assert register.clear_s(now_ns) > 0, how
