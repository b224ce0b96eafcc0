"""Which plate a serial is of: no plate ever gets another's, and what is not certain is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from station.belt_register import Place
from station.identity import MAX_WAITING, Association, IdentityRegister, Reading, Unclaimed
from station.record import Identity

DISTANCE, TOLERANCE, FRAME = 4000.0, 200.0, 64
FRAME_NS = 16_000_000
LENGTH = 1500


@dataclass
class Plate:
    number: int
    begin: int
    """Place of the belt with the leading edge at the camera."""
    labels: list[tuple[int, str]]
    """From the leading edge, and what is read there."""

    @property
    def result_id(self) -> str:
        return f"p{self.number}"

    @property
    def end(self) -> int:
        return self.begin + LENGTH


@dataclass
class World:
    """A belt that stops and turns, its scanner, and a station that hears of it frame by frame."""

    plates: list[Plate]
    lag: int
    """Frames between a plate's end and its verdict."""
    strays: list[tuple[int, str]] = field(default_factory=list)
    """Labels that lie on the belt."""
    has_encoder: bool = True
    register: IdentityRegister = field(
        default_factory=lambda: IdentityRegister(DISTANCE, TOLERANCE, LENGTH, True)
    )
    found: dict[int, Association] = field(default_factory=dict)
    unclaimed: list[Unclaimed] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    _opened: set[int] = field(default_factory=set)
    _closed: dict[int, int] = field(default_factory=dict)

    def run(self, path: list[int]) -> None:
        """The belt's true place at each frame."""
        self.register.begin(FRAME)
        labels = [
            (plate.begin + at - DISTANCE, serial)
            for plate in self.plates
            for at, serial in plate.labels
        ]
        labels += [(float(at), serial) for at, serial in self.strays]
        furthest, counted = path[0], path[0]
        self.register.move(Place(counted, 0), self.has_encoder)
        for frame, (before, place) in enumerate(pairwise(path), 1):
            low, high = min(before, place), max(before, place)
            passed = sorted((at, serial) for at, serial in labels if low < at <= high)
            now_ns = frame * FRAME_NS
            for share, (_, serial) in enumerate(passed, 1):
                self.read.append(serial)
                at_ns = now_ns - FRAME_NS + share * FRAME_NS // (len(passed) + 1)
                self.register.read(Reading(serial, Identity.SCANNER, at_ns))
            # Without an encoder, scan lines come whether the belt moves or not.
            counted = place if self.has_encoder else counted + FRAME
            furthest = max(furthest, place)
            self.register.move(Place(counted, now_ns), self.has_encoder)
            self._see(furthest, counted - place, frame)
            self.unclaimed += self.register.take_unclaimed()
        self.register.end()
        self.unclaimed += self.register.take_unclaimed()

    def _see(self, furthest: int, offset: int, frame: int) -> None:
        for plate in self.plates:
            if plate.begin <= furthest and plate.number not in self._opened:
                self._opened.add(plate.number)
                self.register.open(plate.result_id, plate.begin + offset)
            if plate.end <= furthest and plate.number not in self._closed:
                self._closed[plate.number] = frame
                self.register.close(plate.result_id, plate.end + offset)
            closed = self._closed.get(plate.number)
            if closed is not None and closed + self.lag <= frame and plate.number not in self.found:
                found = self.register.decide(plate.result_id)
                assert found is not None
                self.found[plate.number] = found


def serial_of(number: int) -> str:
    return f"S{number}"


@st.composite
def belts(draw: st.DrawFn) -> list[Plate]:
    """Plates with gaps from hardly any to wide, each with its label, none, two, or read twice."""
    plates, begin = [], 5000
    for number in range(draw(st.integers(1, 7))):
        begin += draw(st.integers(60, 3000))
        at = draw(st.integers(0, LENGTH))
        kind = draw(st.sampled_from(["one", "one", "one", "none", "again", "two"]))
        labels = [] if kind == "none" else [(at, serial_of(number))]
        if kind == "again":
            labels.append((draw(st.integers(0, LENGTH)), serial_of(number)))
        if kind == "two":
            labels.append((draw(st.integers(0, LENGTH)), f"X{number}"))
        plates.append(Plate(number, begin, labels))
        begin += LENGTH
    return plates


@st.composite
def paths(draw: st.DrawFn, can_turn: bool = True) -> list[int]:
    """Forward, standing still and, by what the encoder counts, backward."""
    path = [0]
    steps = [FRAME, FRAME, FRAME, 0, -FRAME] if can_turn else [FRAME, FRAME, 0]
    while path[-1] < 45_000 and len(path) < 3000:
        step = draw(st.sampled_from(steps)) if draw(st.booleans()) else FRAME
        path += [path[-1] + step * (n + 1) for n in range(draw(st.integers(1, 200)))]
    return path


def is_own(plate: Plate, serial: str) -> bool:
    return serial in [text for _, text in plate.labels]


@given(belts(), paths(), st.integers(0, 30))
@settings(max_examples=60)
def test_no_plate_gets_anothers_serial_whatever_the_belt_does(
    plates: list[Plate], path: list[int], lag: int
) -> None:
    world = World(plates, lag)
    world.run(path)
    for plate in plates:
        found = world.found.get(plate.number)
        if found is not None and found.part_id is not None:
            assert is_own(plate, found.part_id)
            assert len({text for _, text in plate.labels}) == 1, "two labels: never one of them"
            assert found.serials == ()
        if found is not None and found.identity is Identity.AMBIGUOUS:
            assert found.serials


@given(belts(), paths(), st.integers(0, 30), st.lists(st.integers(500, 40_000), max_size=3))
@settings(max_examples=40)
def test_what_is_read_is_in_a_record_or_said_to_be_in_none(
    plates: list[Plate], path: list[int], lag: int, strays: list[int]
) -> None:
    world = World(plates, lag, [(at, f"stray{at}") for at in strays])
    world.run(path)
    recorded = {found.part_id for found in world.found.values()}
    recorded |= {serial for found in world.found.values() for serial in found.serials}
    told = recorded | {one.reading.serial for one in world.unclaimed}
    undecided = {text for p in plates if p.number not in world.found for _, text in p.labels}
    assert set(world.read) - undecided <= told
    assert all(one.reading.serial in world.read for one in world.unclaimed), "none was made up"


def steady(until: int = 60_000) -> list[int]:
    return list(range(0, until, FRAME))


def plates_every(period: int, count: int, at: int = 700) -> list[Plate]:
    return [Plate(n, 6000 + n * period, [(at, serial_of(n))]) for n in range(count)]


def test_each_plate_of_a_steady_belt_has_its_serial() -> None:
    world = World(plates_every(3000, 10), lag=2)
    world.run(steady())
    assert {n: found.part_id for n, found in world.found.items()} == {
        n: serial_of(n) for n in range(10)
    }
    assert not world.unclaimed


def test_a_serial_that_may_be_of_two_plates_is_of_none() -> None:
    """Less than twice the tolerance between them."""
    plates = [Plate(0, 6000, [(1500, "A")]), Plate(1, 7600, [(700, "B")])]
    world = World(plates, lag=20)
    world.run(steady(20_000))
    assert world.found[0] == Association(Identity.AMBIGUOUS, None, ("A",))
    assert world.found[1].identity is Identity.AMBIGUOUS
    assert set(world.found[1].serials) == {"A", "B"}


def test_a_serial_at_the_end_of_a_plate_whose_follower_is_not_seen_yet() -> None:
    plates = [Plate(0, 6000, [(1490, "A")]), Plate(1, 7600, [(700, "B")])]
    world = World(plates, lag=0)
    world.run(steady(20_000))
    assert world.found[0].part_id is None
    assert world.found[0].serials == ("A",)


def test_no_label_is_none_and_a_stray_serial_is_told() -> None:
    world = World([Plate(0, 6000, [])], lag=2, strays=[(4500, "stray")])
    world.run(steady(20_000))
    assert world.found[0] == Association(Identity.NONE)
    assert [one.reading.serial for one in world.unclaimed] == ["stray"]


def test_a_serial_read_too_late_names_the_plate_that_it_was_beside() -> None:
    register = IdentityRegister(DISTANCE, TOLERANCE, LENGTH, True)
    register.begin(FRAME)
    for frame in range(200):
        register.move(Place(frame * FRAME, frame * FRAME_NS))
    register.open("p", 6000)
    register.close("p", 7500)
    assert register.decide("p") == Association(Identity.NONE)
    register.read(Reading("late", Identity.SCANNER, int(2700 / FRAME * FRAME_NS)))
    for frame in range(200, 300):
        register.move(Place(frame * FRAME, frame * FRAME_NS))
    (late,) = register.take_unclaimed()
    assert (late.reading.serial, late.result_id) == ("late", "p")


def test_one_serial_on_two_plates_at_once_is_neithers() -> None:
    plates = [Plate(0, 6000, [(700, "A")]), Plate(1, 9000, [(700, "A")])]
    world = World(plates, lag=2)
    world.run(steady(20_000))
    assert [found.identity for found in world.found.values()] == [Identity.AMBIGUOUS] * 2


def test_a_plate_that_is_fed_again_has_its_serial_again() -> None:
    plates = [Plate(0, 6000, [(700, "A")]), Plate(1, 6000 + LENGTH + 6000, [(700, "A")])]
    world = World(plates, lag=2)
    world.run(steady(30_000))
    assert [found.part_id for found in world.found.values()] == ["A", "A"]


def test_a_camera_that_was_lost_takes_places_with_it_but_not_what_was_known() -> None:
    register = IdentityRegister(DISTANCE, TOLERANCE, LENGTH, True)
    register.begin(FRAME)
    for frame in range(120):
        register.move(Place(frame * FRAME, frame * FRAME_NS))
        if frame == 40:
            register.read(Reading("A", Identity.SCANNER, frame * FRAME_NS))
        if frame == 94:
            register.open("p", 6000)
        if frame == 110:
            register.read(Reading("B", Identity.SCANNER, frame * FRAME_NS))
    register.begin(FRAME)
    assert register.decide("p") == Association(Identity.SCANNER, "A")
    assert [one.reading.serial for one in register.take_unclaimed()] == ["B"]


def test_what_a_person_says_is_the_next_plates() -> None:
    register = IdentityRegister(0, 0, LENGTH, is_expected=False)
    register.open("p1", None)
    register.give(Reading("A", Identity.COMMAND, 0))
    register.open("p2", None)
    register.open("p3", None)
    assert register.decide("p1") is None
    assert register.decide("p2") == Association(Identity.COMMAND, "A")
    register.give(Reading("B", Identity.COMMAND, 0))
    register.give(Reading("C", Identity.COMMAND, 0))
    register.open("p4", None)
    assert register.decide("p4") == Association(Identity.AMBIGUOUS, None, ("B", "C"))


def test_a_person_and_the_scanner_must_agree() -> None:
    for said, part_id in (("S0", "S0"), ("S7", None)):
        world = World(plates_every(3000, 1), lag=2)
        world.register.give(Reading(said, Identity.COMMAND, 0))
        world.run(steady(12_000))
        assert world.found[0].part_id == part_id


def test_a_serial_beside_a_label_that_was_not_read_whole_is_doubtful() -> None:
    plates = [Plate(0, 6000, [(300, "A"), (700, "")]), Plate(1, 12_000, [(700, "B")])]
    world = World(plates, lag=2)
    world.run(steady(20_000))
    assert world.found[0] == Association(Identity.AMBIGUOUS, None, ("A",))
    assert world.found[1].part_id == "B"
    assert world.unclaimed == []


def test_what_a_person_says_stands_where_the_scanner_could_not_read() -> None:
    world = World([Plate(0, 6000, [(700, "")]), Plate(1, 12_000, [(700, "")])], lag=2)
    world.register.give(Reading("A", Identity.COMMAND, 0))
    world.run(steady(20_000))
    assert world.found[0] == Association(Identity.COMMAND, "A")
    assert world.found[1] == Association(Identity.NONE)


def test_without_an_encoder_a_stop_is_not_seen_and_nobody_gets_anothers() -> None:
    """The belt halts for just the time in which one plate follows the other."""
    period = 3000
    for stopped_at in range(2000, 14_000, 500):
        path = [p for p in steady(30_000) if p < stopped_at]
        path += [path[-1]] * (period // FRAME) + [p for p in steady(30_000) if p >= stopped_at]
        world = World(plates_every(period, 5), lag=2, has_encoder=False)
        world.run(path)
        for number, found in world.found.items():
            assert found.part_id in (None, serial_of(number))


def test_without_an_encoder_one_plate_at_a_time_has_its_serial() -> None:
    world = World(plates_every(7000, 5), lag=2, has_encoder=False)
    world.run(steady())
    assert [found.part_id for found in world.found.values()] == [serial_of(n) for n in range(5)]


def test_a_scanner_gone_mad_is_bounded() -> None:
    register = IdentityRegister(DISTANCE, TOLERANCE, LENGTH, True)
    register.begin(FRAME)
    register.move(Place(0, 0))
    for number in range(10 * MAX_WAITING):
        register.read(Reading(f"{number}", Identity.SCANNER, 1))
    assert len(register.take_unclaimed()) == 9 * MAX_WAITING
