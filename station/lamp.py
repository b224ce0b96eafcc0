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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from drivers.errors import DeviceError
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.config import EX_CONFIG, Configuration, LightSettings
from station.ipc import Channel, Json, Listener, PeerGone, connect
from station.lease import FAULT, LAMP_TEST_S, Claims, LightLease, Show, Write
from station.lock import take_lock
from station.record import Provenance
from station.systemd import lifeline, notify

_TURN_S = 0.25
"""The loop waits this long at most; the watchdog is fed in every turn."""
_REOPEN_S = 0.5
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


class _Lamp:
    """One thread, one loop: a device write that hangs stops it, and with it the watchdog."""

    def __init__(self, settings: LightSettings, runtime_dir: Path) -> None:
        self._settings = settings
        self._runtime_dir = runtime_dir
        self._device: StackLight | None = None
        self._problem = ""
        """Why there is no device."""
        self._claims = Claims()
        self._light = LightLease(self._claims)
        self._reopen_ns = 0
        self._listener: Listener | None = None
        self._owners = itertools.count(1)
        self._clients: dict[int, Channel] = {}
        """By their numbers in the leases."""
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
        lapse_ns = self._light.next_due_ns()
        if lapse_ns is not None:
            due_ns.append(lapse_ns)
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
        for client in self._clients.values():
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
        self._took(FAULT, is_confirmed)

    def _write(self, write: Write) -> str:
        """Tell the device; why it is not shown, empty if it is."""
        if self._device is None:
            return self._problem
        try:
            is_confirmed = self._device.show(write.state)
        except DeviceError as error:
            self._lose_device(error)
            return self._problem
        self._took(write, is_confirmed)
        return ""

    def _took(self, write: Write, is_confirmed: bool) -> None:
        before = self._light.shown
        self._light.took(write, is_confirmed, time.monotonic_ns())
        if before is None or before.write.meaning != write.meaning:
            _say({"lamp": {"state": str(write.state), "result_id": write.result_id}})

    def _lose_device(self, error: DeviceError) -> None:
        assert self._device is not None
        _log.error("%s", error)
        self._device.close()
        self._device = None
        self._problem = str(error)
        self._light.lost()
        # At once: a device that merely choked may still show a pass.
        self._reopen_ns = time.monotonic_ns()
        self._end_test(self._problem)

    def _keep_device(self) -> None:
        """Look for a lost device."""
        now_ns = time.monotonic_ns()
        if self._device is None and now_ns >= self._reopen_ns:
            try:
                self._open_with_fault()
            except DeviceError as error:
                self._problem = str(error)
                self._reopen_ns = time.monotonic_ns() + int(_REOPEN_S * 1e9)
            else:
                _log.warning("the stack light is back and shows FAULT")

    def _lapse(self) -> None:
        """What nobody renewed ends; FAULT is written again while nothing else is shown."""
        write = self._light.due(time.monotonic_ns())
        if write is None or self._light.shown is None:
            return
        lapsed = self._light.shown.write
        if lapsed.lease is not None and self._light.tester is None:
            _log.warning("%s was not renewed: FAULT", lapsed.state)
        self._end_test(self._write(write))

    # --- the clients ------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        client = self._listener.accept()
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        owner = next(self._owners)
        self._clients[owner] = client
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(owner))

    def _serve(self, owner: int) -> None:
        """Answer one message; one a turn, so that a flood does not hold up a lapse."""
        client = self._clients[owner]
        try:
            packet = client.receive(timeout_s=0)
            packet.close()
            answer = self._handle(owner, packet.body)
            if answer is not None:
                client.send(answer, timeout_s=0)
        except PeerGone:
            self._drop(owner)
        except BlockingIOError:
            # Either nothing was there, or a client does not read its answers: those are lost.
            return
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            _log.warning("a client sent nonsense and was dropped: %r", error)
            self._drop(owner)

    def _drop(self, owner: int) -> None:
        client = self._clients.pop(owner)
        self._selector.unregister(client)
        client.close()
        write = self._light.leave(owner)
        if write is not None:
            self._write(write)

    def _handle(self, owner: int, body: Json) -> Json | None:
        match body["op"]:
            case "show":
                return self._handle_show(owner, Show.parse(body))
            case "status":
                return {"op": "status", **self._status()}
            case "test":
                return self._start_test(owner)
            case other:
                raise ValueError(f"unknown op {other!r}")

    def _handle_show(self, owner: int, show: Show) -> Json:
        write = self._light.show(owner, show, time.monotonic_ns())
        if isinstance(write, str):
            return _show_answer(show.number, reason=write)
        self._end_test("ended by a show")
        reason = self._write(write)
        shown = self._light.shown
        if shown is None:
            return _show_answer(show.number, reason=reason)
        return _show_answer(show.number, shown.is_confirmed, shown.since_ns)

    def _start_test(self, owner: int) -> Json | None:
        write = self._light.test(owner, time.monotonic_ns())
        reason = write if isinstance(write, str) else self._write(write)
        if reason:
            return {"op": "test", "reason": reason}
        self._light.tester = owner  # answered at its end
        return None

    def _end_test(self, reason: str) -> None:
        tester = self._light.end_test()
        if tester is None:
            return
        with contextlib.suppress(PeerGone, BlockingIOError):
            self._clients[tester].send({"op": "test", "reason": reason}, timeout_s=0)

    def _status(self) -> Json:
        shown = self._light.shown
        return {
            "state": str(shown.write.state) if shown else "unknown",
            "result_id": shown.write.result_id if shown else "",
            "is_confirmed": shown is not None and shown.is_confirmed,
            "is_held": self._claims.holder is not None,
            "device": self._device.description if self._device else "",
            "problem": self._problem,
        }


def _show_answer(
    number: int, is_confirmed: bool = False, shown_ns: int | None = None, reason: str = ""
) -> Json:
    return {
        "op": "show",
        "n": number,
        "is_confirmed": is_confirmed,
        "shown_ns": shown_ns,
        "reason": reason,
    }
