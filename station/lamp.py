"""The lamp process: owns the stack light's port and lets every state lapse to FAULT.

A station's command carries an absolute monotonic expiry; when no newer one has come by then, the
light shows FAULT. What is obeyed and what lapses is decided in station/lease.py; sockets, device
and clock are here. Imports neither numpy nor ONNX Runtime nor a database: it must be back at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import selectors
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from drivers.errors import DeviceError
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.config import Configuration, exit_status_of
from station.fault import remember
from station.ipc import Channel, Json, Listener, NotAMessage, PeerGone, connect
from station.lease import (
    FAULT,
    LAMP_TEST_S,
    MAX_PASS_LEASE_S,
    Claims,
    Confirmation,
    Lease,
    LightLease,
    Show,
    Write,
    whole_number,
)
from station.lock import LAMP_LOCK, take_lock
from station.logs import prepare_lines
from station.outputs import BeltNews, Outputs, PlateResult, parse_word
from station.page_door import open_door, way_in
from station.processes import said_figures
from station.record import Provenance
from station.systemd import lifeline, notify

_TURN_S = 0.25
"""The loop waits this long at most; the watchdog is fed in every turn."""
_REOPEN_S = 0.5
_OPS_OF_PAGE = ("status", "test")
_MAX_CLIENTS = 16
_MAX_BATCH = 8
"""Messages of one client that are looked at together."""

_log = logging.getLogger(__name__)


def lamp_path(runtime_dir: Path) -> Path:
    return runtime_dir / "lamp.sock"


class LampError(Exception):
    """The light did not do what was asked; the message says why."""


# --- the client -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LampAnswer:
    """What became of one command."""

    number: int
    """As returned by `send_show`."""
    is_shown: bool
    is_confirmed: bool
    """True if the device was read back; never True where `is_shown` is False."""
    can_confirm: bool
    """The device can be read back at all."""
    shown_ns: int | None
    """CLOCK_MONOTONIC after the device took it; None if it is not shown."""
    reason: str
    """Why it is not shown; empty if it is."""
    doubt: str
    """Why the light is not believed, and shows no pass; empty if it is."""


class LampClient:
    """A connection to the lamp process. Used by one thread; `fileno` goes into a selector."""

    def __init__(self, runtime_dir: Path, is_page: bool = False) -> None:
        """`is_page`: through the page's own door, where there is one."""
        path = lamp_path(runtime_dir)
        self._path = way_in(path) if is_page else path
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._answers: list[LampAnswer] = []
        self._events: list[Json] = []

    def connect(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the lamp process. Raises `PeerGone`."""
        self._channel = connect(self._path, timeout_s)

    def send_show(
        self, state: LightState, result_id: str, provenance: Provenance | None, lease_s: float
    ) -> int:
        """Ask for `state` from now for `lease_s` at most; never waits. The command's number.

        The first show with a provenance claims the lamp for this station until it disconnects.
        `provenance` None is a person's show: no plate is meant, and any station ends it.
        Raises `PeerGone`; BlockingIOError if the lamp process does not read.
        """
        number = next(self._numbers)
        self._connected().send(
            {
                "op": "show",
                "n": number,
                "state": str(state),
                "result_id": result_id,
                "provenance": None if provenance is None else str(provenance),
                "expires_ns": time.monotonic_ns() + int(lease_s * 1e9),
            },
            timeout_s=0,
        )
        return number

    def send_word(
        self, *, ready: bool, busy: bool, error: bool, attention: bool, tick: bool, lease_s: float
    ) -> None:
        """Tell PLC and accept how the station is from now for `lease_s`; `tick`: because one has
        travelled. Only the station that holds the lamp is heard. Raises as `send_show`."""
        word = {"ready": ready, "busy": busy, "error": error, "attention": attention}
        self._send({"op": "word", **word, "tick": tick}, lease_s)

    def send_result(self, result: PlateResult, lease_s: float) -> None:
        """Tell them a plate's durable verdict. Raises as `send_show`."""
        self._send({"op": "result", **result.as_json()}, lease_s)

    def send_belt(self, news: BeltNews, lease_s: float) -> None:
        """Tell accept where the belt is and what it carries. Raises as `send_show`."""
        self._send({"op": "belt", **news.as_json()}, lease_s)

    def take_events(self) -> list[Json]:
        """What the other outputs had to say in what `receive_ready` received."""
        events, self._events = self._events, []
        return events

    def _send(self, body: Json, lease_s: float) -> None:
        expires_ns = time.monotonic_ns() + int(lease_s * 1e9)
        number = next(self._numbers)
        self._connected().send({**body, "n": number, "expires_ns": expires_ns}, timeout_s=0)

    def fileno(self) -> int:
        return self._connected().fileno()

    def receive_ready(self) -> list[LampAnswer]:
        """Answers that have arrived; never waits. Raises `PeerGone` after the last of them."""
        answers, self._answers = self._answers, []
        while True:
            try:
                body = self._receive(timeout_s=0)
                if body["op"] == "show":
                    answers.append(_answer(body))
                else:
                    self._events.append(body)
            except BlockingIOError:
                return answers
            except PeerGone:
                if answers:
                    return answers
                raise

    def status(self) -> Json:
        """What the lamp process shows: state (`unknown` while the device is lost), result_id,
        is_confirmed, can_confirm, lease_left_s (until it shows FAULT if nobody renews it), is_held
        (by a station), device, problem (why there is none), doubt (why the light is not believed).

        Raises `PeerGone`, TimeoutError.
        """
        return self._request({"op": "status"}, timeout_s=2.0)

    def test(self) -> None:
        """Light all elements for a moment, then FAULT; returns after that.

        Raises `LampError` if a station holds the lamp or the device did not take it, `PeerGone`,
        TimeoutError.
        """
        answer = self._request({"op": "test"}, timeout_s=LAMP_TEST_S + 3.0)
        if answer["reason"]:
            raise LampError(f"the lamp test failed: {answer['reason']}")

    def send_test(self) -> None:
        """As `test`, without waiting: the answer is the event `test`. Raises as `send_show`."""
        self._connected().send({"op": "test"}, timeout_s=0)

    def send_output(self, name: str) -> None:
        """Switch one output on for a moment, by whom holds the lamp; the answer is the event
        `output`. Raises as `send_show`."""
        self._connected().send({"op": "output", "name": name}, timeout_s=0)

    def send_end_tests(self) -> None:
        """End at once what `send_output` switched on. Raises as `send_show`."""
        self._connected().send({"op": "end_tests"}, timeout_s=0)

    def close(self) -> None:
        """Give up the lamp: it leaves any pass at once. Safe to call twice."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connected(self) -> Channel:
        if self._channel is None:
            raise PeerGone(f"not connected to {self._path}")
        return self._channel

    def _receive(self, timeout_s: float) -> Json:
        packet = self._connected().receive(timeout_s)
        packet.close()
        return packet.body

    def _request(self, body: Json, timeout_s: float) -> Json:
        """The answer to `body`; answers to shows that arrive before it are kept."""
        self._connected().send(body)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._receive(max(0.001, deadline - time.monotonic()))
            if answer["op"] == body["op"]:
                return answer
            if answer["op"] == "show":
                self._answers.append(_answer(answer))
            else:
                self._events.append(answer)


def _to_json(answer: LampAnswer) -> Json:
    return {"op": "show", **asdict(answer)}


def _answer(body: Json) -> LampAnswer:
    return LampAnswer(**{key: value for key, value in body.items() if key != "op"})


# --- the process ----------------------------------------------------------------------------------


def serve(configuration: Configuration, is_restart: bool = False) -> int:
    """Run the lamp process until SIGTERM, SIGINT or the starter's death; FAULT is the first and
    the last thing it writes. With `is_restart` a device that cannot be opened is looked for again
    and again: the station records plates meanwhile. Each new state is a line on stdout.

    Exit status: 0 told to stop; 1 the device cannot be opened, the starter is dead, somebody else
    has the light, or the runtime folder cannot be used now; 78 it cannot be used as configured.
    """
    runtime_dir = configuration.station.runtime_dir
    # On a busy machine the imports have taken their time; waiting for a predecessor begins now.
    notify("STATUS=waiting for the light")
    try:
        lock = take_lock(runtime_dir / LAMP_LOCK)
    except OSError as error:
        _log.error("station.runtime_dir %s cannot be used: %s", runtime_dir, error.strerror)
        return exit_status_of(error)
    if lock is None:
        path = runtime_dir / LAMP_LOCK
        _log.error("another lamp process, or `vqi light`, holds %s; stop that one", path)
        return 1
    try:
        remember(configuration)
    except OSError as error:
        _log.warning("%s does not remember the light: %s", runtime_dir, error.strerror)
    try:
        return _Lamp(configuration).run(is_restart)
    except DeviceError as error:
        _log.error("%s", error)
        return 1
    finally:
        os.close(lock)


def _say(event: Json) -> None:
    """A line on stdout for whoever watches; lost where nobody reads: nothing here may wait."""
    line = json.dumps(event, separators=(",", ":")) + "\n"
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            os.set_blocking(1, False)
        os.write(1, line.encode())


class Light:
    """The device and what it is told. A device that is lost is looked for, and shows FAULT first.

    Used by one thread; no call takes longer than two writes, each of which has its own limit.
    """

    def __init__(
        self,
        open_device: Callable[[], StackLight],
        claims: Claims,
        on_change: Callable[[Write], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`on_change` hears of each new meaning that the device took."""
        self._open_device = open_device
        self._on_change = on_change
        self._clock_ns = clock_ns
        self.lease = LightLease(claims)
        self.problem = ""
        """Why there is no device."""
        self._device: StackLight | None = None
        self._reopen_ns = 0

    @property
    def device(self) -> str:
        """The device, for people; empty if there is none."""
        return self._device.description if self._device else ""

    @property
    def can_confirm(self) -> bool:
        return self._device is not None and self._device.can_confirm

    def open(self) -> None:
        """Open the device and show FAULT before anything else. Raises `DeviceError`."""
        device = self._open_device()
        try:
            is_confirmed = device.show(LightState.FAULT)
        except DeviceError:
            device.close()
            raise
        self._device, self.problem = device, ""
        self._took(FAULT, is_confirmed)

    def miss(self, error: DeviceError) -> None:
        """There is no device yet: look for it from now on."""
        self.problem = str(error)
        self.lease.lost(self.problem, self._clock_ns())

    def write(self, write: Write) -> str:
        """Tell the device; why it is not shown, empty if it is."""
        if self._device is None:
            return self.problem
        try:
            is_confirmed = self._device.show(write.state)
        except DeviceError as error:
            self._lose(error)
            return self.problem
        self._took(write, is_confirmed)
        return "" if self.lease.shown else self.lease.belief.doubt

    def answer(self, owner: int, show: Show, newest: Show | None) -> LampAnswer:
        """Obey a command of a connection, or not. `newest`: see `LightLease.show`."""
        write = self.lease.show(owner, show, self._clock_ns(), newest)
        reason = write if isinstance(write, str) else self.write(write)
        shown = None if reason else self.lease.shown
        return LampAnswer(
            show.number,
            is_shown=not reason,
            is_confirmed=shown is not None and shown.is_confirmed,
            can_confirm=self.can_confirm,
            shown_ns=shown.since_ns if shown else None,
            reason=reason,
            doubt=self.lease.belief.doubt,
        )

    def keep(self) -> None:
        """End what nobody renewed, write FAULT again, look for a lost device."""
        now_ns = self._clock_ns()
        if self._device is None and now_ns >= self._reopen_ns:
            self._reopen()
            return
        write = self.lease.due(now_ns)
        if write is not None:
            self.write(write)

    def next_due_ns(self) -> int | None:
        """When `keep` has something to do at the latest; None: whenever."""
        return self._reopen_ns if self._device is None else self.lease.next_due_ns()

    def close(self) -> None:
        """Show FAULT and release the device: nobody keeps alive what was shown."""
        if self._device is not None:
            with contextlib.suppress(DeviceError):
                self._device.show(LightState.FAULT)
            self._device.close()
            self._device = None

    def _took(self, write: Write, is_confirmed: bool) -> None:
        assert self._device is not None
        if is_confirmed:
            confirmation = Confirmation.READ_BACK
        elif self._device.can_confirm:
            confirmation = Confirmation.CONTRADICTED
        else:
            confirmation = Confirmation.NONE_POSSIBLE
        before = self.lease.shown
        self.lease.took(write, confirmation, self._clock_ns())
        if before is None or before.write.meaning != write.meaning:
            self._on_change(write)

    def _lose(self, error: DeviceError) -> None:
        assert self._device is not None
        _log.error("%s", error)
        self._device.close()
        self._device = None
        self.miss(error)
        # At once: a device that merely choked may still show a pass.
        self._reopen_ns = self._clock_ns()

    def _reopen(self) -> None:
        try:
            self.open()
        except DeviceError as error:
            self.problem = str(error)
            self._reopen_ns = self._clock_ns() + int(_REOPEN_S * 1e9)
        else:
            _log.warning("the stack light is back and shows FAULT")


class _Lamp:
    """One thread, one loop: a device write that hangs stops it, and with it the watchdog.

    That one is fed after each step that may write, for a turn may hold many of them, and each may
    take its whole time limit.
    """

    def __init__(self, configuration: Configuration) -> None:
        settings = configuration.light
        self._runtime_dir = configuration.station.runtime_dir
        self._claims = Claims()
        self._light = Light(
            lambda: open_stack_light(settings.device, settings.pattern_table, settings.buzzer_s),
            self._claims,
            lambda write: _say({"lamp": {"state": write.state, "result_id": write.result_id}}),
        )
        self._listener: Listener | None = None
        self._door: Listener | None = None
        self._of_page: set[int] = set()
        """Numbers of clients of the page's own user: they may ask, and test the light."""
        self._owners = itertools.count(1)
        self._clients: dict[int, Channel] = {}
        """By their numbers in the leases; who was heard last comes last."""
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outputs = Outputs(configuration, lambda: os.eventfd_write(self._wake, 1))
        self._exit_status: int | None = None

    def run(self, is_restart: bool) -> int:
        """Raises `DeviceError` if the device cannot be opened or does not take FAULT at start."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            self._light.open()
        except DeviceError as error:
            if not is_restart:
                raise DeviceError(f"light.device: {error}") from error
            _log.error("%s", error)
            self._light.miss(error)
        try:
            self._outputs.open(is_restart)
            self._listen()
            notify("READY=1")
            # FAULT shows; a first line must not hold up what comes from here on.
            prepare_lines()
            while self._exit_status is None:
                self._turn()
            return self._exit_status
        finally:
            self._leave()

    def _listen(self) -> None:
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        descriptor = lifeline()
        if descriptor is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, self._starter_gone)
        self._listener = Listener(lamp_path(self._runtime_dir))
        self._selector.register(
            self._listener, selectors.EVENT_READ, lambda: self._accept(is_page=False)
        )
        self._door = open_door(self._listener.path)
        if self._door is not None:
            self._selector.register(
                self._door, selectors.EVENT_READ, lambda: self._accept(is_page=True)
            )

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._until_next_s()):
            key.data()
        notify("WATCHDOG=1")
        self._keep()

    def _keep(self) -> None:
        self._light.keep()
        notify("WATCHDOG=1")
        self._tell_tester()
        now_ns = time.monotonic_ns()
        self._outputs.keep(now_ns)
        if self._outputs.is_hung(now_ns):
            _log.error("a thread to PLC or accept hangs; whoever comes next takes back what is on")
            os._exit(1)  # nothing here could join it
        notify("WATCHDOG=1")

    def _woken(self) -> None:
        """Told to end, or the other outputs have something to say to the station."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        holder = self._claims.holder
        if holder is not None:
            client = self._clients[holder]
            self._outputs.send_events(lambda event: client.send(event, timeout_s=0))

    def _until_next_s(self) -> float:
        due_ns = self._light.next_due_ns()
        if due_ns is None:
            return _TURN_S
        return min(_TURN_S, max(0, due_ns - time.monotonic_ns()) / 1e9)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._exit_status = 0
        os.eventfd_write(self._wake, 1)

    def _starter_gone(self) -> None:
        _log.warning("the starter is dead: FAULT")
        self._exit_status = 1

    def _leave(self) -> None:
        """Also after an error of our own: whatever was shown, nobody keeps it alive any more."""
        self._outputs.revoke()  # at once; closing devices takes its time
        self._light.close()
        self._outputs.close()
        for listener in (self._listener, self._door):
            if listener is not None:
                listener.path.unlink(missing_ok=True)
                listener.close()
        for client in self._clients.values():
            client.close()

    # --- the clients ------------------------------------------------------------------------------

    def _accept(self, is_page: bool) -> None:
        listener = self._door if is_page else self._listener
        assert listener is not None
        client = listener.accept()
        if len(self._clients) >= _MAX_CLIENTS:
            # Who has been silent longest makes room, so that nobody can keep the station out.
            self._drop(next(o for o in self._clients if o != self._claims.holder))
        owner = next(self._owners)
        self._clients[owner] = client
        if is_page:
            self._of_page.add(owner)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(owner))

    def _serve(self, owner: int) -> None:
        """Answer what has arrived, with a look at what is due after each message."""
        client = self._clients.pop(owner, None)
        if client is None:  # it made room for another one
            return
        self._clients[owner] = client
        bodies, is_gone = _arrived(client)
        waiting = [] if is_gone else bodies
        for body in bodies:
            if not self._obey(owner, body, waiting):
                is_gone = True
                break
            notify("WATCHDOG=1")
            self._keep()
        if is_gone:
            self._drop(owner)

    def _obey(self, owner: int, body: Json, waiting: list[Json]) -> bool:
        """False if it is nonsense. `waiting`: what arrived with it."""
        try:
            answer = self._handle(owner, body, _newest_show(waiting))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            _log.warning("a client sent nonsense and was dropped: %r", error)
            return False
        self._answer(owner, answer)
        return True

    def _answer(self, owner: int, answer: Json | None) -> None:
        # A client that does not read its answers, or is dead, loses them; nobody waits for it.
        with contextlib.suppress(PeerGone, BlockingIOError):
            if answer is not None:
                self._clients[owner].send(answer, timeout_s=0)

    def _drop(self, owner: int) -> None:
        client = self._clients.pop(owner)
        self._of_page.discard(owner)
        self._selector.unregister(client)
        client.close()
        write = self._light.lease.leave(owner)
        if write is not None:
            self._outputs.revoke()
            self._light.write(write)

    def _handle(self, owner: int, body: Json, newest: Show | None) -> Json | None:
        if owner in self._of_page and body["op"] not in _OPS_OF_PAGE:
            raise ValueError(f"the page may not {body['op']!r:.40}")
        match body["op"]:
            case "show":
                return _to_json(self._light.answer(owner, Show.parse(body), newest))
            case "status":
                return {"op": "status", **self._status()}
            case "test":
                return self._start_test(owner)
            case "output":
                return self._test_output(owner, str(body["name"]))
            case "end_tests":
                self._outputs.end_tests()
                return None
            case "word" | "result" | "belt":
                self._tell_outputs(owner, body)
                return None
            case other:
                raise ValueError(f"unknown op {other!r:.40}")

    def _tell_outputs(self, owner: int, body: Json) -> None:
        """Raises KeyError, TypeError, ValueError."""
        now_ns = time.monotonic_ns()
        lease = Lease(owner, whole_number(body["expires_ns"]))
        reason = self._claims.refusal(whole_number(body["n"]), lease, now_ns)
        if reason or self._claims.holder != owner:
            _log.warning("%s is not obeyed: %s", body["op"], reason or "no station holds the lamp")
        elif body["op"] == "word":
            expires_ns = lease.capped(now_ns, MAX_PASS_LEASE_S).expires_ns
            self._outputs.say(parse_word(body, expires_ns), body["tick"] is True, now_ns)
        elif body["op"] == "result":
            self._outputs.result(PlateResult.parse(body), now_ns)
        else:
            self._outputs.belt(BeltNews.parse(body))

    def _start_test(self, owner: int) -> Json | None:
        write = self._light.lease.test(owner, time.monotonic_ns())
        reason = write if isinstance(write, str) else self._light.write(write)
        if reason:
            return {"op": "test", "reason": reason}
        self._light.lease.tester = owner  # answered at its end
        return None

    def _test_output(self, owner: int, name: str) -> Json | None:
        """Only for the station, which knows that no plate comes; answered once it is done."""
        is_held = self._claims.holder == owner
        reason = self._outputs.test(name) if is_held else "no station that holds the lamp asks"
        return None if reason is None else {"op": "output", "name": name, "reason": reason}

    def _tell_tester(self) -> None:
        """The lamp test is over when something else is shown."""
        shown, tester = self._light.lease.shown, self._light.lease.tester
        if tester is None or (shown and shown.write.state is LightState.LAMP_TEST):
            return
        reason = "" if shown and shown.write == FAULT else "ended by a show"
        if shown is None:
            reason = self._light.lease.belief.doubt
        self._light.lease.tester = None
        self._answer(tester, {"op": "test", "reason": reason})

    def _status(self) -> Json:
        shown = self._light.lease.shown
        lease = shown.write.lease if shown else None
        return {
            "state": str(shown.write.state) if shown else "unknown",
            "result_id": shown.write.result_id if shown else "",
            "is_confirmed": shown is not None and shown.is_confirmed,
            "lease_left_s": lease and max(0.0, (lease.expires_ns - time.monotonic_ns()) / 1e9),
            "can_confirm": self._light.can_confirm,
            "is_held": self._claims.holder is not None,
            "device": self._light.device,
            "problem": self._light.problem,
            "doubt": self._light.lease.belief.doubt,
            "pid": os.getpid(),
            "process": said_figures(os.getpid()),
            **self._outputs.status(),
        }


def _arrived(client: Channel) -> tuple[list[Json], bool]:
    """Messages that wait, so many that a flood does not hold up the others; and whether the client
    is gone, or sent what is no message."""
    bodies: list[Json] = []
    try:
        while len(bodies) < _MAX_BATCH:
            packet = client.receive(timeout_s=0)
            packet.close()
            bodies.append(packet.body)
    except BlockingIOError:
        pass
    except NotAMessage as error:
        _log.warning("a client sent nonsense and was dropped: %r", error)
        return [], True
    except PeerGone:
        return bodies, True
    return bodies, False


def _newest_show(bodies: list[Json]) -> Show | None:
    shows = [body for body in bodies if body["op"] == "show"]
    return Show.parse(shows[-1]) if shows else None
