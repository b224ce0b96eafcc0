"""The lamp process: owns the stack light's port and lets every state lapse to FAULT.

A station's command carries an absolute monotonic expiry; when no newer one has come by then, the
light shows FAULT. Imports neither numpy nor ONNX Runtime nor a database: it must be back at once.
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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from drivers.errors import DeviceError
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.config import EX_CONFIG, Configuration, LightSettings
from station.ipc import Channel, Json, Listener, PeerGone, connect
from station.lock import take_lock
from station.logs import prepare_lines
from station.record import Provenance
from station.systemd import lifeline, notify

MAX_LEASE_S = 2.0
"""A command whose expiry lies further ahead is a mistake and is dropped."""
MAX_PASS_LEASE_S = 1.2
"""A pass lapses this long after its command at the latest, whatever was asked for."""
LAMP_TEST_S = 0.8

_TURN_S = 0.25
"""The loop waits this long at most; the watchdog is fed in every turn."""
_REOPEN_S = 0.5
_REWRITE_S = 1.0
"""FAULT is written again this often: a light that was off meanwhile shows it when it is back."""
_MAX_CLIENTS = 16

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
    shown_ns: int | None
    """CLOCK_MONOTONIC after the device took it; None if it is not shown."""
    reason: str
    """Why it is not shown; empty if it is."""


class LampClient:
    """A connection to the lamp process. Used by one thread; `fileno` goes into a selector."""

    def __init__(self, runtime_dir: Path) -> None:
        self._path = lamp_path(runtime_dir)
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._answers: list[LampAnswer] = []

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

    def fileno(self) -> int:
        return self._connected().fileno()

    def receive_ready(self) -> list[LampAnswer]:
        """Answers that have arrived; never waits. Raises `PeerGone` after the last of them."""
        answers, self._answers = self._answers, []
        while True:
            try:
                answers.append(_answer(self._receive(timeout_s=0)))
            except BlockingIOError:
                return answers
            except PeerGone:
                if answers:
                    return answers
                raise

    def status(self) -> Json:
        """What the lamp process shows: state (`unknown` while the device is lost), result_id,
        is_confirmed, is_held (by a station), device, problem.

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
            self._answers.append(_answer(answer))


def _answer(body: Json) -> LampAnswer:
    reason = body["reason"]
    return LampAnswer(body["n"], not reason, body["is_confirmed"], body["shown_ns"], reason)


# --- the process ----------------------------------------------------------------------------------


def serve(configuration: Configuration, is_restart: bool = False) -> int:
    """Run the lamp process until SIGTERM, SIGINT or the starter's death; FAULT is the first and
    the last thing it writes. With `is_restart` a device that cannot be opened is looked for again
    and again: the station records plates meanwhile. Each new state is a line on stdout.

    Exit status: 0 told to stop; 1 the device cannot be opened, or the starter is dead; 78 another
    lamp process runs here, or the runtime folder cannot be used.
    """
    runtime_dir = configuration.station.runtime_dir
    try:
        lock = take_lock(runtime_dir / "lamp.lock")
    except OSError as error:
        _log.error("station.runtime_dir %s cannot be used: %s", runtime_dir, error.strerror)
        return EX_CONFIG
    if lock is None:
        _log.error("another lamp process holds %s; stop that one", runtime_dir / "lamp.lock")
        return EX_CONFIG
    try:
        return _Lamp(configuration.light, runtime_dir).run(is_restart)
    except DeviceError as error:
        _log.error("light.device: %s", error)
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


@dataclass(frozen=True, slots=True)
class _Show:
    """A validated command."""

    number: int
    state: LightState
    result_id: str
    provenance: Provenance | None
    expires_ns: int

    @classmethod
    def parse(cls, body: Json) -> _Show:
        """Raises KeyError, TypeError, ValueError, OverflowError."""
        provenance = body["provenance"]
        return cls(
            int(body["n"]),
            LightState(body["state"]),
            str(body["result_id"]),
            None if provenance is None else Provenance(provenance),
            int(body["expires_ns"]),
        )


class _Lamp:
    """One thread, one loop: a device write that hangs stops it, and with it the watchdog."""

    def __init__(self, settings: LightSettings, runtime_dir: Path) -> None:
        self._settings = settings
        self._runtime_dir = runtime_dir
        self._device: StackLight | None = None
        self._problem = ""
        """Why there is no device."""
        self._state: LightState | None = None
        """What the device took last; None while that is unknown."""
        self._result_id = ""
        self._is_confirmed = False
        self._shown_ns = 0
        self._expires_ns: int | None = None
        """When `_state` lapses; None for FAULT, which does not."""
        self._reopen_ns = 0
        self._listener: Listener | None = None
        self._clients: set[Channel] = set()
        self._holder: Channel | None = None
        """The station that owns the lamp."""
        self._tester: Channel | None = None
        """Who waits for the end of a lamp test."""
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._exit_status: int | None = None

    def run(self, is_restart: bool) -> int:
        """Raises `DeviceError` if the device cannot be opened or does not take FAULT at start."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            self._open_with_fault()
        except DeviceError as error:
            if not is_restart:
                raise
            _log.error("%s", error)
            self._problem = str(error)
        try:
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
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        descriptor = lifeline()
        if descriptor is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, self._starter_gone)
        self._listener = Listener(lamp_path(self._runtime_dir))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._until_next_s()):
            key.data()
        # Fed here too: this turn may hold two writes that each take their whole time limit.
        notify("WATCHDOG=1")
        self._lapse()
        self._keep_device()
        notify("WATCHDOG=1")

    def _until_next_s(self) -> float:
        due_ns = [self._reopen_ns] if self._device is None else []
        if self._expires_ns is not None:
            due_ns.append(self._expires_ns)
        now_ns = time.monotonic_ns()
        return min([_TURN_S, *(max(0, due - now_ns) / 1e9 for due in due_ns)])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._exit_status = 0
        os.eventfd_write(self._wake, 1)

    def _starter_gone(self) -> None:
        _log.warning("the starter is dead: FAULT")
        self._exit_status = 1

    def _leave(self) -> None:
        """Also after an error of our own: whatever was shown, nobody keeps it alive any more."""
        if self._device is not None:
            with contextlib.suppress(DeviceError):
                self._device.show(LightState.FAULT)
            self._device.close()
        if self._listener is not None:
            self._listener.path.unlink(missing_ok=True)
            self._listener.close()
        for client in self._clients:
            client.close()

    # --- the device -------------------------------------------------------------------------------

    def _open_with_fault(self) -> None:
        """Open the device and show FAULT before anything else. Raises `DeviceError`."""
        device = open_stack_light(self._settings.device, self._settings.pattern_table)
        try:
            is_confirmed = device.show(LightState.FAULT)
        except DeviceError:
            device.close()
            raise
        self._device, self._problem = device, ""
        self._took(LightState.FAULT, "", None, is_confirmed)

    def _write(self, state: LightState, result_id: str, expires_ns: int | None) -> str:
        """Show `state` until `expires_ns`; why it is not shown, empty if it is."""
        if self._device is None:
            return self._problem
        try:
            is_confirmed = self._device.show(state)
        except DeviceError as error:
            self._lose_device(error)
            return self._problem
        self._took(state, result_id, expires_ns, is_confirmed)
        return ""

    def _took(
        self, state: LightState, result_id: str, expires_ns: int | None, is_confirmed: bool
    ) -> None:
        if (state, result_id) != (self._state, self._result_id):
            _say({"lamp": {"state": str(state), "result_id": result_id}})
        self._state, self._result_id, self._expires_ns = state, result_id, expires_ns
        self._is_confirmed, self._shown_ns = is_confirmed, time.monotonic_ns()

    def _show_fault(self) -> str:
        return self._write(LightState.FAULT, "", None)

    def _lose_device(self, error: DeviceError) -> None:
        assert self._device is not None
        _log.error("%s", error)
        self._device.close()
        self._device = None
        self._problem = str(error)
        self._state, self._result_id, self._expires_ns = None, "", None
        # At once: a device that merely choked may still show a pass.
        self._reopen_ns = time.monotonic_ns()
        self._end_test(self._problem)

    def _keep_device(self) -> None:
        """Look for a lost device; write FAULT again while nothing else is shown."""
        now_ns = time.monotonic_ns()
        if self._device is None and now_ns >= self._reopen_ns:
            try:
                self._open_with_fault()
            except DeviceError as error:
                self._problem = str(error)
                self._reopen_ns = time.monotonic_ns() + int(_REOPEN_S * 1e9)
            else:
                _log.warning("the stack light is back and shows FAULT")
        elif self._expires_ns is None and now_ns - self._shown_ns >= _REWRITE_S * 1e9:
            self._show_fault()

    def _lapse(self) -> None:
        """What nobody renewed ends."""
        if self._expires_ns is None or time.monotonic_ns() < self._expires_ns:
            return
        if self._tester is None:
            _log.warning("%s was not renewed: FAULT", self._state)
        self._end_test(self._show_fault())

    # --- the clients ------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        client = self._listener.accept()
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _serve(self, client: Channel) -> None:
        """Answer one message; one a turn, so that a flood does not hold up a lapse."""
        try:
            packet = client.receive(timeout_s=0)
            packet.close()
            answer = self._handle(client, packet.body)
            if answer is not None:
                client.send(answer, timeout_s=0)
        except PeerGone:
            self._drop(client)
        except BlockingIOError:
            # Either nothing was there, or a client does not read its answers: those are lost.
            return
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            _log.warning("a client sent nonsense and was dropped: %r", error)
            self._drop(client)

    def _drop(self, client: Channel) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._selector.unregister(client)
        client.close()
        if client is self._tester:
            self._tester = None
        if client is self._holder:
            self._holder = None
            self._show_fault()

    def _handle(self, client: Channel, body: Json) -> Json | None:
        match body["op"]:
            case "show":
                return self._handle_show(client, _Show.parse(body))
            case "status":
                return {"op": "status", **self._status()}
            case "test":
                return self._start_test(client)
            case other:
                raise ValueError(f"unknown op {other!r}")

    def _handle_show(self, client: Channel, show: _Show) -> Json:
        reason = self._refusal(client, show)
        if not reason:
            if show.provenance is not None:
                self._holder = client
            self._end_test("ended by a show")
            expires_ns = show.expires_ns
            if show.state.is_pass:
                limit_ns = time.monotonic_ns() + int(MAX_PASS_LEASE_S * 1e9)
                expires_ns = min(expires_ns, limit_ns)
            reason = self._write(show.state, show.result_id, expires_ns)
        return {
            "op": "show",
            "n": show.number,
            "is_confirmed": not reason and self._is_confirmed,
            "shown_ns": None if reason else self._shown_ns,
            "reason": reason,
        }

    def _refusal(self, client: Channel, show: _Show) -> str:
        """Why this command is not obeyed; empty if it is."""
        if self._holder not in (None, client):
            return "another station holds the lamp"
        if show.state is LightState.LAMP_TEST:
            return "all elements at once is for the lamp test"
        if show.state is LightState.PASS and show.provenance is not Provenance.PRODUCTION:
            return "pass is for production plates only"
        ahead_s = (show.expires_ns - time.monotonic_ns()) / 1e9
        if ahead_s <= 0:
            return f"stale: expired {-ahead_s:.3f} s ago"
        if ahead_s > MAX_LEASE_S:
            return f"the lease ends {ahead_s:.1f} s ahead, at most {MAX_LEASE_S} s are allowed"
        return ""

    def _start_test(self, client: Channel) -> Json | None:
        reason = ""
        if self._holder not in (None, client):
            reason = "a station holds the lamp"
        elif self._tester is not None:
            reason = "another lamp test runs"
        else:
            expires_ns = time.monotonic_ns() + int(LAMP_TEST_S * 1e9)
            reason = self._write(LightState.LAMP_TEST, "", expires_ns)
        if reason:
            return {"op": "test", "reason": reason}
        self._tester = client  # answered at its end
        return None

    def _end_test(self, reason: str) -> None:
        if self._tester is None:
            return
        tester, self._tester = self._tester, None
        with contextlib.suppress(PeerGone, BlockingIOError):
            tester.send({"op": "test", "reason": reason}, timeout_s=0)

    def _status(self) -> Json:
        return {
            "state": "unknown" if self._state is None else str(self._state),
            "result_id": self._result_id,
            "is_confirmed": self._is_confirmed and self._state is not None,
            "is_held": self._holder is not None,
            "device": self._device.description if self._device else "",
            "problem": self._problem,
            "pid": os.getpid(),
        }
