"""What the lamp process holds besides the light: the handshake with the PLC, and accept.

READY, OK and accept are leases like the light's pass: a station's word carries an absolute expiry
that is looked at whenever something is handed out, on the thread that hands it out, and nobody else
can prolong it. A station that is gone says nothing, which is: not ready, no result, error, and no
plate is accepted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from drivers.errors import DeviceError
from drivers.io import DigitalIo, open_digital_io
from drivers.plc import PlcInputs, PlcLink, PlcOutputs, open_plc_link
from drivers.plc.handshake import Handshake, PlateWord, StationWord
from drivers.plc.settings import PlcSettings
from station.belt_register import BeltRegister, Decision, Fate, Place
from station.config import ACCEPT_OUTPUT, AcceptSettings, Configuration
from station.ipc import PeerGone
from station.lease import whole_number
from station.record import Provenance, Verdict

TEST_S = 1.0
"""How long an output is on that a person tries out."""
TESTED_WORDS = ("busy", "error", "attention")
"""Of the words to the PLC: none that says anything of a plate, or that one may come."""
_MOST_EVENTS = 1000
"""That nobody takes; the oldest is forgotten."""
_TURN_S = 0.05
HUNG_NS = 1_000_000_000
"""A thread that did nothing for so long hangs: no device's call and no pause takes longer."""
_REOPEN_S = 0.5
_ENDED = "ended: a plate came, or plates may come"

Json = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlateResult:
    """A plate's durable verdict, as the station sends it."""

    result_id: str
    sequence: int
    verdict: Verdict
    provenance: Provenance
    is_late: bool
    """Its deadline has passed: it does not count as good."""
    is_overtaken: bool = False
    """A later plate has its verdict already."""

    def as_json(self) -> Json:
        return {
            "result_id": self.result_id,
            "sequence": self.sequence,
            "verdict": str(self.verdict),
            "provenance": str(self.provenance),
            "is_late": self.is_late,
            "is_overtaken": self.is_overtaken,
        }

    @classmethod
    def parse(cls, body: Json) -> PlateResult:
        """Raises KeyError, TypeError, ValueError."""
        return cls(
            str(body["result_id"]),
            whole_number(body["sequence"]),
            Verdict(body["verdict"]),
            Provenance(body["provenance"]),
            body["is_late"] is not False,
            body["is_overtaken"] is not False,
        )


@dataclass(frozen=True, slots=True)
class BeltNews:
    """Where frames saw the belt, and where plates began and ended, in scan lines of travel."""

    frame_height: int
    is_new: bool
    """Places before this say nothing of those from here on: a camera was opened."""
    places: tuple[Place, ...]
    plates: tuple[tuple[str, bool, int], ...]
    """Result id, whether it is the trailing edge, and its place; without an id: from there on
    plates may have begun that nobody saw."""

    def as_json(self) -> Json:
        return {
            "frame_height": self.frame_height,
            "is_new": self.is_new,
            "places": [(place.scan_lines, place.at_ns) for place in self.places],
            "plates": self.plates,
        }

    @classmethod
    def parse(cls, body: Json) -> BeltNews:
        """Raises KeyError, TypeError, ValueError."""
        return cls(
            whole_number(body["frame_height"]),
            body["is_new"] is True,
            tuple(Place(_whole(at), whole_number(ns)) for at, ns in body["places"]),
            tuple((str(who), is_end is True, _whole(at)) for who, is_end, at in body["plates"]),
        )


def parse_word(body: Json, expires_ns: int) -> StationWord:
    """How the station says it is; what is not plainly true is false, errors the other way round.
    Raises KeyError."""
    return StationWord(
        ready=body["ready"] is True,
        busy=body["busy"] is True,
        error=body["error"] is not False,
        attention=body["attention"] is True,
        expires_ns=expires_ns,
    )


class Events:
    """What the outputs have to say to the station; `wake` is called with each."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._events: deque[Json] = deque(maxlen=_MOST_EVENTS)

    def add(self, event: Json) -> None:
        """From any thread."""
        self._events.append(event)
        self._wake()

    def take(self) -> Json | None:
        """The oldest; None if there is none."""
        try:
            return self._events.popleft()
        except IndexError:
            return None

    def put_back(self, event: Json) -> None:
        """It was not taken."""
        if len(self._events) < _MOST_EVENTS:
            self._events.appendleft(event)

    def wake(self) -> None:
        """If any waits."""
        if self._events:
            self._wake()

    def forget_acknowledgements(self) -> None:
        """They were for a station that is gone."""
        for event in list(self._events):
            if event["op"] == "plc_ack":
                with contextlib.suppress(ValueError):
                    self._events.remove(event)


class Outputs:
    """The PLC link and accept, as far as the configuration has them. Used by the lamp's thread."""

    def __init__(self, configuration: Configuration, wake: Callable[[], None]) -> None:
        self._events = Events(wake)
        plc, accept = configuration.plc, configuration.accept
        self._plc = Plc(plc, self._events) if plc else None
        pitch_mm = configuration.camera.pixel_pitch_mm
        self._accept = Accept(accept, pitch_mm, self._events) if accept else None
        self._is_greeted = False
        """The present station was told what was wrong before it came."""
        self._looked_ns = self._awake_ns = time.monotonic_ns()
        """When somebody looked after the threads last, and since when without a pause."""
        self._resend_ns = 0
        """When what the station did not take is tried again."""

    def open(self, is_restart: bool) -> None:
        """Raises `DeviceError` if a device cannot be opened; with `is_restart` it is looked for
        again and again."""
        for name, part in (("plc", self._plc), ("accept", self._accept)):
            try:
                if part is not None:
                    part.open(is_restart)
            except DeviceError as error:
                raise DeviceError(f"{name}: {error}") from error

    def say(self, word: StationWord, is_tick: bool, now_ns: int) -> None:
        """How the station is, until `word.expires_ns`."""
        if not self._is_greeted:
            self._is_greeted = True
            for part in (self._plc, self._accept):
                if part is not None:
                    part.tell_problem()
        if self._plc is not None:
            self._plc.say(word, is_tick, now_ns)
        if self._accept is not None:
            self._accept.renew(0 if word.error else word.expires_ns)

    def result(self, result: PlateResult, now_ns: int) -> None:
        if self._plc is not None:
            self._plc.result(result, now_ns)
        if self._accept is not None:
            self._accept.result(result, now_ns)

    def belt(self, news: BeltNews) -> None:
        if self._accept is not None:
            self._accept.belt(news)

    def revoke(self) -> None:
        """The station is gone."""
        self._is_greeted = False
        if self._plc is not None:
            self._plc.revoke()
            self._events.forget_acknowledgements()
        if self._accept is not None:
            self._accept.revoke()

    def is_hung(self, now_ns: int) -> bool:
        """One of the threads takes nothing back any more: this process must be replaced."""
        # While this process stood still as a whole, no thread of it could do anything.
        if now_ns - self._looked_ns > HUNG_NS // 2:
            self._awake_ns = now_ns
        self._looked_ns = now_ns
        turned_ns = [part.turned_ns for part in (self._plc, self._accept) if part is not None]
        return any(
            at_ns is not None and now_ns - max(at_ns, self._awake_ns) > HUNG_NS
            for at_ns in turned_ns
        )

    def keep(self, now_ns: int) -> None:
        """Look after what is lost."""
        if self._plc is not None:
            self._plc.keep(now_ns)
        if self._accept is not None:
            self._accept.keep()
        if self._is_greeted and now_ns >= self._resend_ns:
            self._events.wake()

    def send_events(self, send: Callable[[Json], None]) -> None:
        """Say to the station what there is to say; what it does not take waits."""
        while event := self._events.take():
            try:
                send(event)
            except (PeerGone, BlockingIOError):
                self._events.put_back(event)
                self._resend_ns = time.monotonic_ns() + int(_TURN_S * 1e9)
                return
            is_late = event["op"] == "accept" and event["command"] == Fate.LATE
            if self._plc is not None and is_late:
                self._plc.add_late()

    def test(self, name: str) -> str | None:
        """Switch one output on for a moment; why not, or None: the event `output` says it."""
        if name == ACCEPT_OUTPUT and self._accept is not None:
            return self._accept.test()
        if name in TESTED_WORDS and self._plc is not None:
            return self._plc.test(name, time.monotonic_ns())
        return f"there is no such output: {name!r:.40}"

    def end_tests(self) -> None:
        """Plates come again."""
        if self._accept is not None:
            self._accept.end_test()
        if self._plc is not None:
            self._plc.end_test()

    def status(self) -> Json:
        return {
            "plc": None if self._plc is None else self._plc.status(),
            "accept": None if self._accept is None else self._accept.status(),
            "testable": [
                *([] if self._accept is None else [ACCEPT_OUTPUT]),
                *([] if self._plc is None else TESTED_WORDS),
            ],
        }

    def close(self) -> None:
        """Say that nobody is here any more."""
        for part in (self._accept, self._plc):
            if part is not None:
                part.close()


def switch_off(configuration: Configuration) -> list[str]:
    """Say that nobody is here and switch accept off, where no lamp process runs; what failed."""
    problems = []
    if configuration.accept is not None:
        try:
            with open_digital_io(configuration.accept.device) as device:
                device.write({ACCEPT_OUTPUT: False})
        except DeviceError as error:
            problems.append(f"accept: {error}")
    if configuration.plc is not None and configuration.plc.type != "modbus_server":
        try:
            with contextlib.closing(open_plc_link(configuration.plc)) as link:
                link.say_nobody()
        except DeviceError as error:
            problems.append(f"plc: {error}")
    return problems


# --- the PLC --------------------------------------------------------------------------------------


class Plc:
    """The handshake, shared by the lamp's thread and the link's."""

    def __init__(self, settings: PlcSettings, events: Events) -> None:
        self._settings = settings
        self._events = events
        self._link: PlcLink | None = None
        self._lock = threading.Lock()
        self._handshake = Handshake()
        self._inputs: PlcInputs | None = None
        """None before it was heard."""
        self._has_station = False
        self._heard_ns = time.monotonic_ns()
        """When the PLC's heartbeat changed last."""
        self._problem = ""
        self._told = (0, 0)
        """Counts that the station knows."""
        self._tested = ("", 0)
        """A word that a person tries out, and until when."""
        self._awaited = ""
        """The same, while it is not known whether the PLC has it."""
        self._reopen_ns = 0
        self._opening: threading.Thread | None = None

    def open(self, is_restart: bool) -> None:
        """Raises `DeviceError`, with `is_restart` never."""
        try:
            self._open()
        except DeviceError as error:
            if not is_restart:
                raise
            self._miss(error)

    def _open(self) -> None:
        link = open_plc_link(self._settings)
        try:
            link.start(self._read, self._handed, self._take)
        except RuntimeError as error:
            link.close()
            raise DeviceError(f"{link.description}: {error}") from error
        self._link = link

    def _open_aside(self) -> None:
        """On a thread of its own: a light must not wait for a PLC that is not there."""
        opening = threading.Thread(target=self._try_open, name="plc-open", daemon=True)
        try:
            opening.start()
        except RuntimeError as error:
            self._miss(DeviceError(f"plc: {error}"))
        else:
            self._opening = opening

    def _try_open(self) -> None:
        try:
            self._open()
        except DeviceError as error:
            self._miss(error)

    def _miss(self, error: DeviceError) -> None:
        self._say_problem(str(error))
        self._reopen_ns = time.monotonic_ns() + int(_REOPEN_S * 1e9)

    def say(self, word: StationWord, is_tick: bool, now_ns: int) -> None:
        with self._lock:
            self._has_station = True
            self._handshake.renew(word, is_tick, now_ns)

    def result(self, result: PlateResult, now_ns: int) -> None:
        is_pass = result.verdict is Verdict.PASS
        # On wires that do not say of which plate they speak, it would be taken for the later one.
        is_late = result.is_late or (result.is_overtaken and self._settings.type == "io")
        plate = PlateWord(
            result.sequence,
            is_pass=is_pass and not is_late,
            is_undecided=result.verdict is Verdict.UNDECIDED or (is_pass and is_late),
            is_production=result.provenance is Provenance.PRODUCTION,
        )
        with self._lock:
            self._handshake.result(plate, now_ns)

    def revoke(self) -> None:
        with self._lock:
            self._has_station = False
            self._handshake.revoke()

    def test(self, name: str, now_ns: int) -> str | None:
        """One word is on for a moment, whatever it says; why not, or None: its event says when the
        PLC has it."""
        if self._link is None or self._link.problem:
            return (self._link and self._link.problem) or self._problem or "its link is not open"
        with self._lock:
            if self._handshake.look(now_ns).result_valid:
                return "a plate's result is valid: let the PLC acknowledge it first"
            self._tested, self._awaited = (name, now_ns + int(TEST_S * 1e9)), name
        return None

    def _answer_test(self, reason: str) -> None:
        with self._lock:
            name, self._awaited = self._awaited, ""
        if name:
            self._events.add(_tried(name, reason))

    def end_test(self) -> None:
        self._tested = ("", 0)
        self._answer_test(_ENDED)

    def add_late(self) -> None:
        with self._lock:
            self._handshake.late += 1

    def keep(self, now_ns: int) -> None:
        """Look for a link that could not be opened; see whether the PLC lives."""
        if now_ns >= self._tested[1]:
            self._answer_test(self._problem or f"the PLC did not take it within {TEST_S:g} s")
        is_opening = self._opening is not None and self._opening.is_alive()
        if self._link is None and now_ns >= self._reopen_ns and not is_opening:
            self._open_aside()
        if self._link is not None:
            self._say_problem(self._link.problem or self._silence(now_ns))
            if self._told != self._counts():
                self.tell_problem()

    @property
    def turned_ns(self) -> int | None:
        """When the link's thread did something last; None where there is none."""
        return None if self._link is None else self._link.turned_ns

    def status(self) -> Json:
        with self._lock:
            outputs = self._handshake.look(time.monotonic_ns())
        return {
            "device": self._link.description if self._link else "",
            "problem": self._problem,
            "ready": outputs.ready,
            "result_valid": outputs.result_valid,
            "result": outputs.result,
            "heartbeat": outputs.heartbeat,
            "overruns": outputs.overruns,
            "late": outputs.late,
            "triggers": self._counts()[1],
        }

    def close(self) -> None:
        if self._opening is not None:
            self._opening.join(timeout=1.0)
        if self._link is not None:
            self._link.close()
            self._link = None

    def _silence(self, now_ns: int) -> str:
        limit_s = self._settings.heartbeat_timeout_s
        if limit_s is None or (now_ns - self._heard_ns) / 1e9 <= limit_s:
            return ""
        return f"the PLC's heartbeat has not changed for {limit_s:g} s; see whether it runs"

    def tell_problem(self) -> None:
        """With its counts, which the station shows."""
        self._told = overruns, triggers = self._counts()
        self._events.add(
            {"op": "plc", "problem": self._problem, "overruns": overruns, "triggers": triggers}
        )

    def _counts(self) -> tuple[int, int]:
        """Overruns and triggers."""
        with self._lock:
            triggers = 0 if self._inputs is None else self._inputs.triggers
            return self._handshake.overruns, triggers

    def _say_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self.tell_problem()

    # On the link's thread:

    def _read(self) -> PlcOutputs:
        now_ns, (name, until_ns) = time.monotonic_ns(), self._tested
        with self._lock:
            said = self._handshake.look(now_ns)
        # Beside a plate's result nothing is said that is not so.
        is_tested = now_ns < until_ns and not said.result_valid
        return replace(said, **{name: True}) if is_tested else said

    def _handed(self, said: PlcOutputs) -> None:
        with self._lock:
            self._handshake.handed(said, time.monotonic_ns())
        if self._awaited and getattr(said, self._awaited):
            self._answer_test("")

    def _take(self, inputs: PlcInputs) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            before, self._inputs = self._inputs, inputs
            self._handshake.take(inputs, now_ns)
            if before is None or inputs.heartbeat != before.heartbeat:
                self._heard_ns = now_ns
            # What is on when it is heard first did not go on: it is no acknowledgement.
            is_ack = before is not None and inputs.ack_hold and not before.ack_hold
            if before is not None and inputs.serials != before.serials:
                text = inputs.serial.decode("latin-1")
                self._events.add({"op": "serial", "text": text, "at_ns": now_ns})
            if is_ack and self._has_station:
                self._events.add({"op": "plc_ack"})


# --- accept ---------------------------------------------------------------------------------------


class Accept:
    """The accept output, on a thread of its own: a pulse waits for no light and no PLC."""

    def __init__(self, settings: AcceptSettings, pixel_pitch_mm: float, events: Events) -> None:
        self._settings = settings
        self._pitch_mm = pixel_pitch_mm
        self._events = events
        self._device: DigitalIo | None = None
        self._problem = ""
        self._reopen_ns = 0
        self._register: BeltRegister | None = None
        self._expires_ns = 0
        self._off_ns: int | None = None
        """When the pulse is over that is on, or that is begun just now; None where none is. Also
        of a device that ends it: the station's word may end before, and its clock is rounded up."""
        self._pulsed = Decision("", Fate.ACCEPT)
        """Whose pulse it is."""
        self._counts = dict.fromkeys(Fate, 0)
        self._is_tested = False
        """A person wants to see it on."""
        self._is_test_on = False
        """What is on is on because a person wants to see it."""
        self._changed = threading.Condition()
        """Guards everything above but the device, which is the thread's own."""
        self._turned_ns = time.monotonic_ns()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def open(self, is_restart: bool) -> None:
        """Raises `DeviceError`, with `is_restart` never."""
        try:
            self._open()
        except DeviceError as error:
            if not is_restart:
                raise
            self._lose(str(error))
        try:
            self._start()
        except RuntimeError as error:  # the process table is full
            if not is_restart:
                raise DeviceError(str(error)) from error
            self._lose(str(error))

    def keep(self) -> None:
        """Begin where there is no thread: none was to be had before."""
        if self._thread is None or not self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._start()

    @property
    def turned_ns(self) -> int | None:
        """When the thread did something last; None where there is none."""
        is_running = self._thread is not None and self._thread.is_alive()
        return self._turned_ns if is_running else None

    def _start(self) -> None:
        """Raises RuntimeError."""
        self._turned_ns = time.monotonic_ns()
        thread = threading.Thread(target=self._run, name="accept", daemon=True)
        thread.start()
        self._thread = thread

    def _open(self) -> None:
        """Whatever it did before, it is off now."""
        device = open_digital_io(self._settings.device)
        try:
            device.write({ACCEPT_OUTPUT: False})
        except DeviceError:
            device.close()
            raise
        self._device = device
        self._say_problem("")

    def renew(self, expires_ns: int) -> None:
        with self._changed:
            self._expires_ns = expires_ns

    def revoke(self) -> None:
        with self._changed:
            self._expires_ns = 0
            self._changed.notify()

    def end_test(self) -> None:
        """Plates come: what a person wanted to see is over."""
        with self._changed:
            self._forget_test()
            self._changed.notify()

    def _forget_test(self) -> None:
        if self._is_tested:
            self._events.add(_tried(ACCEPT_OUTPUT, _ENDED))
        self._is_tested = False
        if self._is_test_on:
            self._off_ns = 0

    def belt(self, news: BeltNews) -> None:
        lost = []
        with self._changed:
            if news.is_new or self._register is None:
                lost = [] if self._register is None else self._register.forget()
                self._register = self._new_register(news.frame_height)
            for place in news.places:
                self._register.move(place)
            for result_id, is_end, scan_line in news.plates:
                if not result_id:
                    self._register.miss(scan_line)
                elif is_end:
                    self._register.close(result_id, scan_line)
                else:
                    self._register.enter(result_id, scan_line)
                self._forget_test()
            self._changed.notify()
        for decision in lost:
            self._say(decision, None, 0, None)

    def _new_register(self, frame_height: int) -> BeltRegister:
        settings = self._settings
        return BeltRegister(
            settings.distance_mm / self._pitch_mm,
            frame_height,
            settings.pulse_ms / 1000,
            settings.max_position_age_s,
        )

    def result(self, result: PlateResult, now_ns: int) -> None:
        is_pass = result.verdict is Verdict.PASS
        decision = None
        with self._changed:
            refusal = self._refusal(result)
            if self._register is not None:
                decision = self._register.decide(result.result_id, is_pass, refusal, now_ns)
            elif is_pass:
                decision = Decision(result.result_id, Fate.WITHHELD, "the belt's place is unknown")
            self._changed.notify()
        if decision is not None:
            self._say(decision, None, 0, None)

    def _refusal(self, result: PlateResult) -> str:
        if result.is_late:
            return "its deadline had passed"
        is_production = result.provenance is Provenance.PRODUCTION
        if is_production or self._settings.device.type == "simulated":
            return ""
        return f"the plate is {result.provenance}: only production is accepted"

    def test(self) -> str | None:
        """Switch it on once; why not, or None: its event says what became of it."""
        with self._changed:
            if self._device is None:
                return self._problem or "its device is not open"
            if why := self._untestable(time.monotonic_ns()):
                return why
            self._is_tested = True
            self._changed.notify()
        return None

    def _untestable(self, now_ns: int) -> str:
        """Why a plate may lie at the accept point, or come there at once; empty if none does."""
        if self._register is None or now_ns >= self._expires_ns:
            return "it is not known what the belt carries: the station reports an error, or began"
        if self._register.clear_s(now_ns) <= 0:
            distance = self._settings.distance_mm
            return (
                "a plate may be on its way to the accept point; let the belt travel "
                f"{distance:g} mm without plates"
            )
        return ""

    def status(self) -> Json:
        with self._changed:
            counts = {f"{fate}": count for fate, count in self._counts.items()}
        device = self._device
        return {
            "device": device.description if device else "",
            "problem": self._problem,
            **counts,
        }

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
            if self._thread.is_alive():
                return  # the device is still its own
        if self._device is not None:
            with contextlib.suppress(DeviceError):
                self._device.write({ACCEPT_OUTPUT: False})
            self._device.close()
            self._device = None

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001
                # Without this thread nobody would switch off what is on.
                _log.exception("accept failed")
                self._fail(repr(error))

    def _turn(self) -> None:
        self._turned_ns = time.monotonic_ns()
        with self._changed:
            decided_ns = time.monotonic_ns()
            decisions, is_over = self._due(decided_ns)
            is_tested, self._is_tested = self._is_tested, False
        if is_over:
            self._end_pulse()
        if is_tested:
            self._events.add(_tried(ACCEPT_OUTPUT, self._pulse_for_test()))
        for decision in decisions:
            self._carry_out(decision, decided_ns)
        self._keep_device()
        with self._changed:
            if not self._is_closing:
                self._changed.wait(self._until_next_s(time.monotonic_ns()))

    def _fail(self, problem: str) -> None:
        """Whatever it was: nothing is known of the belt, and the device is opened anew."""
        with self._changed:
            self._register = None
        self._lose(problem)
        self._keep_device()
        with self._changed:
            if not self._is_closing:
                self._changed.wait(_REOPEN_S)

    def _due(self, now_ns: int) -> tuple[list[Decision], bool]:
        """Plates at their point, and whether the pulse that is on is over."""
        is_dead = now_ns >= self._expires_ns
        is_over = self._off_ns is not None and (is_dead or now_ns >= self._off_ns)
        if self._register is None:
            return [], is_over or self._off_ns is not None
        if self._off_ns is not None and not (is_over or self._is_test_on):
            is_over = self._register.is_next_here(self._pulsed.begin, now_ns)
            if is_over:
                name = self._pulsed.result_id
                _log.warning("accept of %s ends early: another plate may be there", name)
        if is_dead:
            register, self._register = self._register, None
            return register.forget(), is_over
        return self._register.due(now_ns), is_over

    def _until_next_s(self, now_ns: int) -> float:
        due_ns = [now_ns + int(_TURN_S * 1e9)]
        if self._register is not None:
            next_ns = self._register.next_due_ns(now_ns)
            due_ns += [] if next_ns is None else [next_ns]
        if self._off_ns is not None:
            due_ns.append(self._off_ns)
            if self._register is not None:
                next_s = self._register.next_here_s(self._pulsed.begin, now_ns)
                due_ns.append(now_ns + int(min(next_s, _TURN_S) * 1e9))
        return max(0.0, (min(due_ns) - now_ns) / 1e9)

    def _carry_out(self, decision: Decision, decided_ns: int) -> None:
        if decision.fate is not Fate.ACCEPT:
            self._say(decision, None, 0, None)
            return
        if self._device is None:
            self._say(_withheld(decision, self._problem), None, 0, None)
            return
        commanded_ns, seconds = time.monotonic_ns(), self._settings.pulse_ms / 1000
        why = self._overtaken(decision, decided_ns, commanded_ns)
        if why:
            self._say(_withheld(decision, why), None, 0, None)
            return
        self._pulsed, self._is_test_on = decision, False
        self._off_ns = commanded_ns + int(seconds * 1e9)
        try:
            is_confirmed = self._device.pulse(ACCEPT_OUTPUT, seconds)
        except DeviceError as error:
            self._lose(str(error))
            self._say(_withheld(decision, str(error)), None, commanded_ns, None)
            return
        shown_ns = self._turned_ns = time.monotonic_ns()
        late_s = (shown_ns - decided_ns) / 1e9
        if late_s > decision.spare_s:
            self._end_pulse()
            why = f"switched on up to {1000 * late_s:.0f} ms late, and off before the next plate"
            decision = replace(decision, why=why)
        self._say(decision, is_confirmed, commanded_ns, shown_ns)

    def _overtaken(self, decision: Decision, decided_ns: int, now_ns: int) -> str:
        """Why a decision does not hold any more: a module that was slow to take what came before
        it; empty if it does."""
        with self._changed:
            if now_ns >= self._expires_ns:
                return "the station's word ended first"
        late_s = (now_ns - decided_ns) / 1e9
        if late_s > decision.spare_s:
            return f"{1000 * late_s:.0f} ms late, a pulse would have reached the next plate"
        return ""

    def _pulse_for_test(self) -> str:
        """Why it is not on; empty if it is."""
        began_ns = time.monotonic_ns()
        with self._changed:
            # Looked at again: what was true when it was asked for may not be any more.
            if why := self._untestable(began_ns):
                return why
            assert self._register is not None
            seconds = min(TEST_S, self._register.clear_s(began_ns))
        if self._device is None:
            return self._problem or "its device is not open"
        try:
            self._device.pulse(ACCEPT_OUTPUT, seconds)
        except DeviceError as error:
            self._lose(str(error))
            return str(error)
        with self._changed:
            # Also of a device that ends it: a plate that enters meanwhile ends it before.
            self._off_ns, self._is_test_on = began_ns + int(seconds * 1e9), True
            if not self._register or self._register.clear_s(time.monotonic_ns()) <= 0:
                self._off_ns = 0
        return ""

    def _end_pulse(self) -> None:
        if self._device is not None:
            try:
                self._device.write({ACCEPT_OUTPUT: False})
            except DeviceError as error:
                self._lose(str(error))
        self._off_ns, self._is_test_on = None, False
        self._turned_ns = time.monotonic_ns()

    def _keep_device(self) -> None:
        if self._device is not None or time.monotonic_ns() < self._reopen_ns:
            return
        try:
            self._open()
        except DeviceError as error:
            self._lose(str(error))
        self._turned_ns = time.monotonic_ns()

    def _lose(self, problem: str) -> None:
        """It may be on: it is opened again at once, and switched off."""
        is_new = self._device is not None
        if self._device is not None:
            self._device.close()
            self._device = None
        self._off_ns, self._is_test_on = None, False
        self._turned_ns = time.monotonic_ns()
        pause_s = 0.0 if is_new else _REOPEN_S
        self._reopen_ns = time.monotonic_ns() + int(pause_s * 1e9)
        self._say_problem(problem)

    def tell_problem(self) -> None:
        self._events.add({"op": "accept_problem", "problem": self._problem})

    def _say_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self.tell_problem()

    def _say(
        self, decision: Decision, is_confirmed: bool | None, commanded_ns: int, shown_ns: int | None
    ) -> None:
        off_mm = decision.off_by * self._pitch_mm
        detail = decision.why or f"{off_mm:.1f} mm beyond its point"
        with self._changed:
            self._counts[decision.fate] += 1
        self._events.add(
            {
                "op": "accept",
                "result_id": decision.result_id,
                "command": str(decision.fate),
                "is_confirmed": is_confirmed,
                "commanded_ns": commanded_ns or None,
                "shown_ns": shown_ns,
                "detail": detail,
            }
        )


def _tried(name: str, reason: str) -> Json:
    """What became of an output that a person tried out."""
    return {"op": "output", "name": name, "reason": reason}


def _withheld(decision: Decision, why: str) -> Decision:
    return replace(decision, fate=Fate.WITHHELD, why=why)


def _whole(value: object) -> int:
    """Raises TypeError."""
    if type(value) is not int:
        raise TypeError(f"no whole number: {value!r:.40}")
    return value
