"""The station's light in a world of its own: time, wires, a journal and a latching device, all of
which fail on demand; what decides between them is the program's own code.

Real: `LightPolicy`, `Actuation` (the station's side), `Claims`, `LightLease`, `Light` (the lamp
process's side). Made here: the threads and sockets around them, each step of which is a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from drivers.errors import DeviceLost, DeviceTimeout
from drivers.stacklight import LightState, StackLight
from station.actuation import Actuated, Actuation, Committed
from station.lamp import LampAnswer, Light
from station.lease import Claims, LightLease, Show
from station.light_policy import LightPolicy
from station.record import Provenance, Verdict

S = 1_000_000_000
STEP_S = 0.05
"""The loops of station and lamp process go round once in each step."""
LEASE_S = 1.2
TICK_S = 0.25
WATCHDOG_S = 1.0
RESTART_S = 0.4
"""From a lamp process's end until its successor has opened the device."""


@dataclass(frozen=True)
class Code:
    """The code under test; a mutation replaces one part of it."""

    policy: type[LightPolicy] = LightPolicy
    actuation: type[Actuation] = Actuation
    claims: type[Claims] = Claims
    lease: type[LightLease] = LightLease
    commits_first: bool = True
    """False: a result is acknowledged before it is durable."""


class Violated(AssertionError):
    """What must never happen happened."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Violated(what)


# --- the device -----------------------------------------------------------------------------------


@dataclass
class Tower:
    """What people see. It latches: it shows what it took last, whoever is dead."""

    can_confirm: bool
    shows: LightState = LightState.IDLE
    is_there: bool = True
    is_stuck: bool = False
    """It takes bytes and does not change: only a read-back can tell."""
    is_blocked: bool = False
    """It takes no bytes until the writer's limit is over."""

    @property
    def obeys(self) -> bool:
        return self.is_there and not self.is_stuck and not self.is_blocked


class TowerDriver(StackLight):
    description = "a tower"

    def __init__(self, tower: Tower, clock: Clock) -> None:
        if not tower.is_there:
            raise DeviceLost("no tower")
        self._tower, self._clock = tower, clock
        self.can_confirm = tower.can_confirm

    def show(self, state: LightState) -> bool:
        if not self._tower.is_there:
            raise DeviceLost("the tower is gone")
        if self._tower.is_blocked:
            self._clock.now_ns += int(0.3 * S)
            raise DeviceTimeout("the tower does not take bytes")
        if not self._tower.is_stuck:
            self._tower.shows = state
        return self.can_confirm and self._tower.shows is state

    def close(self) -> None:
        pass


@dataclass
class Clock:
    now_ns: int = 1000 * S


# --- the wires ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Wire:
    """One connection of a station with a lamp process, and what may happen to its packets."""

    owner: int
    to_lamp: list[Show] = field(default_factory=list)
    to_station: list[LampAnswer] = field(default_factory=list)
    sent: list[Show] = field(default_factory=list)
    obeyed: list[int] = field(default_factory=list)
    is_delayed: bool = False
    is_dead: bool = False
    """The station's end is closed; what it sent before still arrives."""
    is_refused: bool = False
    """The lamp process's end is closed."""


# --- the lamp process -----------------------------------------------------------------------------


class LampProcess:
    """What `_Lamp` of station/lamp.py does in a turn, without its sockets."""

    def __init__(self, code: Code, tower: Tower, clock: Clock) -> None:
        self.clock = clock
        self.claims = code.claims()
        self.light = Light(
            lambda: TowerDriver(tower, clock), self.claims, lambda _: None, lambda: clock.now_ns
        )
        self.light.lease = code.lease(self.claims)
        self.wires: list[Wire] = []
        self.is_stopped = False
        self.turned_ns = clock.now_ns
        try:
            self.light.open()
        except (DeviceLost, DeviceTimeout) as error:
            self.light.miss(error)

    def turn(self) -> None:
        self.turned_ns = self.clock.now_ns
        for wire in list(self.wires):
            if not wire.is_delayed:
                self._serve(wire)
        self.light.keep()

    def _serve(self, wire: Wire) -> None:
        shows, wire.to_lamp = wire.to_lamp[:8], wire.to_lamp[8:]
        is_gone = wire.is_dead and not wire.to_lamp
        newest = None if is_gone or not shows else shows[-1]
        for show in shows:
            answer = self.light.answer(wire.owner, show, newest)
            if not answer.reason:
                wire.obeyed.append(show.number)
            wire.to_station.append(answer)
            self.light.keep()
        if is_gone:
            self.wires.remove(wire)
            write = self.light.lease.leave(wire.owner)
            if write is not None:
                self.light.write(write)


# --- the journal ----------------------------------------------------------------------------------


@dataclass
class Row:
    kind: str
    result_id: str
    verdict: Verdict | None = None
    command: str = ""
    done: Callable[[], None] | None = None


@dataclass
class Journal:
    """Rows become durable in order, each in its time. Once durable, they are for ever."""

    opened: set[str] = field(default_factory=set)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of the results."""
    actuated: dict[str, str] = field(default_factory=dict)
    waiting: list[Row] = field(default_factory=list)
    is_slow: bool = False
    is_full: bool = False

    @property
    def is_working(self) -> bool:
        return not (self.is_slow or self.is_full)

    def commit(self, count: int) -> None:
        for _ in range(count):
            if self.waiting and not self.is_full:
                row = self.waiting.pop(0)
                self._append(row)
                if row.done is not None:
                    row.done()

    def _append(self, row: Row) -> None:
        if row.kind == "o":
            self.opened.add(row.result_id)
        elif row.verdict is not None:
            require(row.result_id not in self.verdicts, "two results of one plate")
            self.verdicts[row.result_id] = row.verdict
        else:
            require(row.result_id not in self.actuated, "two actuations of one result")
            require(row.result_id in self.verdicts, "an actuation before its result")
            self.actuated[row.result_id] = row.command

    def hello(self) -> None:
        """A station connects: what its predecessor sent is durable before it hears of anything, or
        was refused."""
        self.commit(len(self.waiting))
        self.waiting.clear()

    def verdict_of(self, result_id: str) -> Verdict | None:
        """The durable one; None if there is none."""
        return self.verdicts.get(result_id)


# --- the station ----------------------------------------------------------------------------------


class StationProcess:
    """What the main thread of station/pipeline.py does in a turn, as far as the light goes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock, self.journal = world.clock, world.journal
        code = world.code
        self.policy = code.policy(None, 30.0)
        self.actuation = code.actuation(self.policy, LEASE_S, self._send, self._write)
        self.wire: Wire | None = None
        self.numbers = itertools.count(1)
        self.faults: set[str] = set()
        self.last_tick_ns = self.clock.now_ns
        self.on_belt: list[int] = []
        """Plates that were opened and have no result yet."""
        self.held: set[str] = set()
        """FAIL and UNDECIDED that nobody acknowledged."""
        self.spoilt: set[str] = set()
        """Results whose pass may not show any more."""
        self.is_stopped = False
        self.inbox: list[Callable[[], None]] = []
        """Acknowledgements that have arrived."""
        self._start()

    def _start(self) -> None:
        """Write what the last life left open (DESIGN)."""
        self.journal.hello()
        journal = self.journal
        self._spoil_all()
        for result_id in journal.verdicts.keys() - journal.actuated.keys():
            self._write(Actuated(result_id, "unknown", 0))
        for result_id in sorted(journal.opened - journal.verdicts.keys(), key=int):
            self.submit_result(int(result_id), Verdict.UNDECIDED)
        lamp = self.world.lamp
        if lamp is None or lamp.light.lease.belief.doubt:
            self.actuation.distrust("the lamp did not confirm fault")

    # --- plates -----------------------------------------------------------------------------------

    def open_plate(self) -> None:
        self.world.plates += 1
        sequence = self.world.plates
        self.spoilt.update(map(str, range(sequence)))
        self.on_belt.append(sequence)
        self.world.edge_ns = self.clock.now_ns
        self.actuation.plate_opened(sequence, self.clock.now_ns)
        self.journal.waiting.append(Row("o", str(sequence)))

    def fail_tile(self) -> None:
        sequence = self.on_belt[0]
        self.held.add(str(sequence))
        self._spoil_all()
        self.actuation.failing_tile(str(sequence), self.clock.now_ns)

    def submit_result(self, sequence: int, verdict: Verdict) -> None:
        committed = Committed(str(sequence), sequence, verdict, True, False)

        def on_committed() -> None:
            if verdict is not Verdict.PASS:
                self.held.add(str(sequence))
                self._spoil_all()
            elif self.faults or self.actuation.doubt or self.held:
                self.spoilt.add(str(sequence))
            self.actuation.committed(committed, self.clock.now_ns)

        row = Row("r", str(sequence), verdict)
        self.journal.waiting.append(row)
        if self.world.code.commits_first:
            row.done = lambda: self.inbox.append(on_committed)
        else:
            self.inbox.append(on_committed)

    def acknowledge(self) -> None:
        self.held.clear()
        self.policy.acknowledge()
        self.actuation.update(self.clock.now_ns)

    def set_fault(self, name: str, is_on: bool) -> None:
        (self.faults.add if is_on else self.faults.discard)(name)
        if self.faults:
            self._spoil_all()
            self.policy.set_fault("; ".join(self.faults))
        else:
            self.policy.clear_fault()

    def _spoil_all(self) -> None:
        self.spoilt.update(self.journal.verdicts)

    # --- one turn ---------------------------------------------------------------------------------

    def turn(self) -> None:
        now_ns = self.clock.now_ns
        self._read_lamp()
        inbox, self.inbox = self.inbox, []
        for acknowledged in inbox:
            acknowledged()
        if self.journal.is_working and now_ns - self.last_tick_ns >= TICK_S * S:
            if now_ns - self.last_tick_ns >= LEASE_S * S:
                self._spoil_all()
            self.last_tick_ns = now_ns
            self.set_fault("liveness", False)
            self.actuation.renew(now_ns)
        if now_ns - self.last_tick_ns > LEASE_S * S:
            self.set_fault("liveness", True)
        self.actuation.check(now_ns)
        if self.actuation.doubt:
            self._spoil_all()
        self.actuation.update(now_ns)

    def _read_lamp(self) -> None:
        wire = self.wire
        if wire is not None and not wire.is_delayed:
            answers, wire.to_station = wire.to_station, []
            for answer in answers:
                self.actuation.answered(answer)
        if wire is not None and wire.is_refused:
            self.wire = None
            self._spoil_all()
            self.actuation.lamp_lost()
        if self.wire is None and self.world.lamp is not None:
            self.wire = Wire(next(self.world.owners))
            self.numbers = itertools.count(1)
            self.world.lamp.wires.append(self.wire)

    def _send(self, meaning: tuple[LightState, str]) -> int | None:
        if self.wire is None:
            return None
        state, result_id = meaning
        if state is LightState.PASS:
            self._check_pass(result_id)
        show = Show(
            next(self.numbers),
            state,
            result_id,
            Provenance.PRODUCTION,
            self.clock.now_ns + int(LEASE_S * S),
        )
        self.wire.sent.append(show)
        self.wire.to_lamp.append(show)
        return show.number

    def _check_pass(self, result_id: str) -> None:
        """A pass is asked for: is it one?"""
        require(self.journal.verdict_of(result_id) is Verdict.PASS, "pass without a committed one")
        require(result_id == str(self.world.plates), "pass after a later leading edge")
        require(not self.held, "pass beside an unacknowledged fail")
        require(not self.faults, "pass under a fault")
        require(result_id not in self.spoilt, "a pass that was interrupted came back")

    def _write(self, actuated: Actuated) -> None:
        self.journal.waiting.append(Row("a", actuated.result_id, command=actuated.command))


# --- all of it ------------------------------------------------------------------------------------


class World:
    def __init__(self, code: Code, can_confirm: bool) -> None:
        self.code = code
        self.clock = Clock()
        self.tower = Tower(can_confirm)
        self.journal = Journal()
        self.owners = itertools.count(1)
        self.plates = 0
        """Sequence of the newest leading edge."""
        self.edge_ns = 0
        """When it came."""
        self.is_wire_true = True
        """No packet was delayed, lost, doubled or reordered so far."""
        self.lamp: LampProcess | None = LampProcess(code, self.tower, self.clock)
        self.lamp_due_ns = 0
        self.unfounded_since_ns: int | None = None
        self.station: StationProcess | None = StationProcess(self)

    # --- faults -----------------------------------------------------------------------------------

    def start_station(self) -> None:
        if self.station is None:
            self.station = StationProcess(self)

    def kill_station(self, rows_that_left: int) -> None:
        """What had not left the process is lost with it."""
        if self.station is None:
            return
        if self.station.wire is not None:
            self.station.wire.is_dead = True
        self.journal.waiting = self.journal.waiting[:rows_that_left]
        self.station = None

    def kill_lamp(self) -> None:
        if self.lamp is None:
            return
        for wire in self.lamp.wires:
            wire.is_refused = True
        self.lamp = None
        self.lamp_due_ns = self.clock.now_ns + int(RESTART_S * S)

    # --- time -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        end_ns = self.clock.now_ns + int(seconds * S)
        while self.clock.now_ns < end_ns:
            self.clock.now_ns += int(STEP_S * S)
            self.step()

    def step(self) -> None:
        self._supervise()
        if self.station is not None and not self.station.is_stopped:
            self.station.turn()
        if self.journal.is_working:
            self.journal.commit(len(self.journal.waiting))
        if self.lamp is not None and not self.lamp.is_stopped:
            self.lamp.turn()
        self.check()

    def _supervise(self) -> None:
        now_ns, lamp = self.clock.now_ns, self.lamp
        if lamp is not None and lamp.is_stopped and now_ns - lamp.turned_ns > WATCHDOG_S * S:
            self.kill_lamp()
        if self.lamp is None and now_ns >= self.lamp_due_ns:
            self.lamp = LampProcess(self.code, self.tower, self.clock)

    # --- what must hold ---------------------------------------------------------------------------

    def check(self) -> None:
        if self.lamp is not None:
            for wire in self.lamp.wires:
                require(wire.obeyed == sorted(set(wire.obeyed)), "a command was obeyed twice")
            shown = self.lamp.light.lease.shown
            if self.tower.can_confirm and shown is not None:
                require(self.tower.shows is shown.write.state, "a light that lied was believed")
        self._check_green()
        self._check_end_of_green()

    def _check_green(self) -> None:
        """A lamp process that runs, over a device that obeys, shows green for a reason only."""
        lamp, now_ns = self.lamp, self.clock.now_ns
        is_green = self.tower.shows is LightState.PASS
        if not is_green or lamp is None or lamp.is_stopped or not self.tower.obeys:
            return
        shown = lamp.light.lease.shown
        if shown is None:
            # It knows that it does not know, and writes fault again and again.
            return
        require(shown.write.state is LightState.PASS, "green that the lamp process did not mean")
        lease, result_id = shown.write.lease, shown.write.result_id
        require(lease is not None and lease.is_live(now_ns), "green without a live lease")
        require(self.journal.verdict_of(result_id) is Verdict.PASS, "green without a commit")
        if self.is_wire_true and lamp.turned_ns > self.edge_ns:
            require(result_id == str(self.plates), "green after a later leading edge")

    def _check_end_of_green(self) -> None:
        """Green ends within its lease and a turn of the last moment in which it was founded; where
        the lamp process is dead or stands still, within 2 s of that."""
        now_ns = self.clock.now_ns
        is_green = self.tower.obeys and self.tower.shows is LightState.PASS
        if not is_green or self._is_founded():
            self.unfounded_since_ns = None
        elif self.unfounded_since_ns is None:
            self.unfounded_since_ns = now_ns
        if self.unfounded_since_ns is not None:
            is_keeper_well = self.lamp is not None and not self.lamp.is_stopped
            limit_s = LEASE_S + STEP_S if is_keeper_well else 2.0
            seconds = (now_ns - self.unfounded_since_ns) / S
            require(seconds <= limit_s, f"green for {seconds:.2f} s without a reason")

    def _is_founded(self) -> bool:
        """The newest plate passed, and a station that lives means to say so."""
        station = self.station
        if station is None or station.is_stopped or self.lamp is None or self.lamp.is_stopped:
            return False
        passed = self.journal.verdict_of(str(self.plates)) is Verdict.PASS
        return passed and station.actuation.shown == (LightState.PASS, str(self.plates))

    def end_faults(self) -> StationProcess:
        """The station."""
        tower, journal = self.tower, self.journal
        tower.is_there, tower.is_stuck, tower.is_blocked = True, False, False
        journal.is_slow = journal.is_full = False
        if self.lamp is not None:
            self.lamp.is_stopped = False
            for wire in self.lamp.wires:
                wire.is_delayed = False
        self.start_station()
        assert self.station is not None
        self.station.is_stopped = False
        for name in list(self.station.faults):
            self.station.set_fault(name, False)
        return self.station

    def heal(self) -> StationProcess:
        """All faults end, and time passes until everything is well again; the station."""
        station = self.end_faults()
        self.advance(2.5)
        return station

    def settle(self) -> None:
        """Everything that is owed is done once all is well."""
        station, journal = self.heal(), self.journal
        for sequence in station.on_belt:
            station.submit_result(sequence, Verdict.UNDECIDED)
        station.on_belt.clear()
        self.advance(1.0)
        require(not station.actuation.is_waiting, "a result waits for ever")
        require(not station.actuation.doubt, "a lamp that works is not believed again")
        require(journal.opened <= journal.verdicts.keys(), "a plate without a record")
        require(journal.verdicts.keys() == journal.actuated.keys(), "a record without an actuation")
