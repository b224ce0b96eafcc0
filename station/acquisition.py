"""The camera process and the ring that its frames travel in.

The camera lives in a process of its own, started by exec: a vendor's library that crashes, leaks or
holds the interpreter takes only that process with it. Frames lie in the slots of a memfd; slot
numbers, headers and slot returns travel over a SOCK_SEQPACKET pair. The kernel frees the memory and
reports a death as end-of-file, so no lock or name can be left behind.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from drivers.camera import (
    Break,
    Camera,
    CameraInfo,
    EndOfSource,
    Frame,
    PlateTruth,
    open_camera,
)
from drivers.camera.settings import CameraSettings
from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DriverMissing,
)
from station.ipc import Channel, Json, PeerGone, channel_pair
from station.log_lines import get_logger
from station.logs import set_up_logging
from station.tied import die_with

_LOG = get_logger("camera")
TICK_S = 0.25
"""Liveness travels through the whole station this often, also when no plate comes."""
OPEN_LIMIT_S = 120.0
_SLOTS_WITHOUT_RATE = 32
_SLOTS_MIN = 8
_CLOSE_LIMIT_S = 2.0
"""A camera has so long to stop; a driver that hangs, or still opens its camera, is killed."""
_DEATH_LIMIT_S = 2.0
"""What was killed is gone within milliseconds, unless a call into the kernel does not return."""
_LEFT_BEHIND: list[subprocess.Popen[bytes]] = []
_MOST_LEFT_BEHIND = 3
"""Each holds the memory of its ring."""
_ERRORS: dict[str, type[DeviceError]] = {
    kind.__name__: kind
    for kind in (DeviceBusy, DeviceLost, DeviceNotFound, DeviceRefused, DriverMissing)
}
"""What a driver says at its opening keeps its kind on the way here."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The camera process is alive; `grabbed` and `overrun` count its frames since its start."""

    number: int
    grabbed: int
    overrun: int
    """Frames that found no free slot: seen as lost by their missing ids."""
    temperature_c: float | None = None
    """The camera's own temperature, if it tells."""
    ring_filled: int = 0
    """Slots of the ring that hold frames."""


class CameraGone(ConnectionError):
    """The camera process died or lost its camera; the message says which."""


class CameraProcess:
    """The station's side: starts the camera process and reads its frames, one thread."""

    def __init__(self, settings: CameraSettings, ring_s: float) -> None:
        """Open the camera in a new process, within `OPEN_LIMIT_S`. Raises `DeviceError` with what
        the driver said."""
        _refuse_beside_too_many()
        self._channel, theirs = channel_pair()
        self._process = _spawn(theirs)
        try:
            dump: Json = settings.model_dump(mode="json")
            self._channel.send({"settings": dump})
            self.info = self._read_info()
            self._slots = _slot_count(self.info, ring_s)
            memory = np.frombuffer(self._make_ring(), np.uint8)
        except (PeerGone, TimeoutError) as error:
            self.close()
            raise DeviceLost(f"the camera process died at its start: {error}") from error
        except BaseException:
            self.close()
            raise
        self._memory = memory.reshape(self._slots, self.info.max_frame_bytes)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Begin acquisition. Raises `CameraGone`."""
        try:
            self._channel.send({"op": "start"})
        except (PeerGone, TimeoutError) as error:
            raise CameraGone(f"the camera process died before its start: {error}") from error

    @property
    def ring_slots(self) -> int:
        return self._slots

    def receive(self, timeout_s: float) -> tuple[Frame, int] | Tick | None:
        """The next frame with its slot, or a tick; None after `timeout_s`.

        The frame's pixels lie in the ring: call `release` with the slot when done. Raises
        `CameraGone` if the process died, `EndOfSource` at the end of a finite source.
        """
        try:
            body = self._channel.receive(timeout_s).body
        except TimeoutError:
            return None
        except PeerGone as error:
            raise CameraGone(f"the camera process died ({self._exit_text()})") from error
        if body["op"] == "tick":
            return Tick(**{key: value for key, value in body.items() if key != "op"})
        if body["op"] == "end":
            raise EndOfSource(*(Break(**item) for item in body["breaks"]))
        if body["op"] == "error":
            raise CameraGone(body["message"])
        return self._frame(body), body["slot"]

    def release(self, slot: int) -> None:
        """Give a slot back. A dead process is noticed by the next `receive`."""
        with contextlib.suppress(PeerGone, TimeoutError):
            self._channel.send({"op": "release", "slot": slot})

    def close(self) -> None:
        """End the process: it sees end-of-file; a stuck one is killed, and left behind if it does
        not die. Frees the ring."""
        self._channel.close()
        try:
            self._process.wait(timeout=_CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _wait_or_leave(self._process)
        # Frames may still be in use by the caller; the last one frees the ring.
        self._memory = np.empty((0, 0), np.uint8)

    def _read_info(self) -> CameraInfo:
        try:
            body = self._channel.receive(OPEN_LIMIT_S).body
        except PeerGone as error:
            raise DeviceLost(
                f"the camera process died while opening the camera ({self._exit_text()})"
            ) from error
        except TimeoutError as error:
            raise DeviceLost(f"the camera did not open within {OPEN_LIMIT_S:g} s") from error
        if body["op"] == "error":
            raise _ERRORS.get(body["kind"], DeviceError)(body["message"])
        return CameraInfo(**body["info"])

    def _make_ring(self) -> mmap.mmap:
        size = self._slots * self.info.max_frame_bytes
        descriptor = os.memfd_create("vqi-ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            self._channel.send({"op": "ring", "slots": self._slots}, (descriptor,))
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def _frame(self, body: Json) -> Frame:
        row_bytes, height = body.pop("row_bytes"), body.pop("height")
        pixels = self._memory[body["slot"]][: row_bytes * height].reshape(height, row_bytes)
        truth = tuple(_truth(item) for item in body["truth"])
        breaks = tuple(Break(**item) for item in body["breaks"])
        header = {k: v for k, v in body.items() if k not in ("op", "slot", "truth", "breaks")}
        return Frame(pixels=pixels, truth=truth, breaks=breaks, **header)

    def _exit_text(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "station.acquisition"),
                *(str(theirs.fileno()), str(os.getpid())),
            ],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Ctrl-C at a terminal is the starter's to handle.
            process_group=0,
        )
    finally:
        theirs.close()


def _wait_or_leave(process: subprocess.Popen[bytes]) -> None:
    """A killed process that a driver holds in the kernel dies when that call returns, or never.

    A successor is tried beside it: the camera may be plugged in anew. To end the station instead
    would help nobody: its own successor could do no more than open the camera, beside the same
    process, and log and outputs would lack the station meanwhile.
    """
    try:
        process.wait(timeout=_DEATH_LIMIT_S)
    except subprocess.TimeoutExpired:
        if process not in _LEFT_BEHIND:
            _LEFT_BEHIND.append(process)
        _LOG.error("a camera process was killed and does not die", pid=process.pid)


def _refuse_beside_too_many() -> None:
    """Raises `DeviceBusy`."""
    _LEFT_BEHIND[:] = [process for process in _LEFT_BEHIND if process.poll() is None]
    if len(_LEFT_BEHIND) >= _MOST_LEFT_BEHIND:
        pids = ", ".join(str(process.pid) for process in _LEFT_BEHIND)
        raise DeviceBusy(
            f"the camera's driver hangs in the kernel: killed, but not dead are its processes "
            f"{pids}; unplug the camera, or restart this machine"
        )


def _slot_count(info: CameraInfo, ring_s: float) -> int:
    if info.line_rate_hz is None:
        return _SLOTS_WITHOUT_RATE
    return max(_SLOTS_MIN, int(ring_s * info.line_rate_hz / info.frame_height) + 2)


def _truth(item: dict[str, Any]) -> PlateTruth:
    return TypeAdapter(PlateTruth).validate_python(item)


# --- in the camera process ---------------------------------------------------------------------


class _Ring:
    """The camera process's side: free slots, and one scratch slot for frames that find none."""

    def __init__(self, channel: Channel, slot_bytes: int) -> None:
        packet = channel.receive()
        self._channel = channel
        slots = int(packet.body["slots"])
        memory = np.frombuffer(mmap.mmap(packet.descriptors[0], slots * slot_bytes), np.uint8)
        packet.close()
        self._memory = memory.reshape(slots, slot_bytes)
        self._scratch = np.empty(slot_bytes, np.uint8)
        self._free = deque(range(slots))
        self.overrun = 0

    @property
    def filled(self) -> int:
        return len(self._memory) - len(self._free)

    def next_slot(self) -> tuple[int | None, NDArray[np.uint8]]:
        self.take_returns()
        if not self._free:
            return None, self._scratch
        return self._free[0], self._memory[self._free[0]]

    def take_returns(self) -> None:
        """Raises `PeerGone` if the station is gone."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._free.append(self._channel.receive(timeout_s=0).body["slot"])

    def wait_for_slot(self, timeout_s: float) -> bool:
        """For a source that can wait: True once a slot is free. Raises `PeerGone`."""
        self.take_returns()
        if not self._free:
            with contextlib.suppress(TimeoutError):
                self._free.append(self._channel.receive(timeout_s).body["slot"])
        return bool(self._free)

    def send(self, slot: int | None, frame: Frame) -> None:
        if slot is None:
            self.overrun += 1
            return
        self._free.popleft()
        self._channel.send(_header(slot, frame), timeout_s=None)


def _header(slot: int, frame: Frame) -> Json:
    return {
        "op": "frame",
        "slot": slot,
        "height": frame.height,
        "row_bytes": frame.pixels.shape[1],
        "width": frame.width,
        "frame_id": frame.frame_id,
        "timestamp_ns": frame.timestamp_ns,
        "pixel_format": frame.pixel_format,
        "is_incomplete": frame.is_incomplete,
        "encoder_value": frame.encoder_value,
        "plate_counter": frame.plate_counter,
        "truth": [asdict(truth) for truth in frame.truth],
        "breaks": [asdict(item) for item in frame.breaks],
    }


def _serve(channel: Channel) -> None:
    settings: CameraSettings = TypeAdapter[CameraSettings](CameraSettings).validate_python(
        channel.receive().body["settings"]
    )
    try:
        with open_camera(settings) as camera:
            channel.send({"op": "info", "info": asdict(camera.info)})
            ring = _Ring(channel, camera.info.max_frame_bytes)
            channel.receive()  # start
            camera.start()
            _deliver(camera, channel, ring)
    except EndOfSource as end:
        channel.send({"op": "end", "breaks": [asdict(item) for item in end.breaks]})
        _wait_for_end_of_file(channel)
    except DeviceError as error:
        _LOG.error("the camera is lost", error=str(error))
        channel.send({"op": "error", "message": str(error), "kind": type(error).__name__})
        _wait_for_end_of_file(channel)


def _deliver(camera: Camera, channel: Channel, ring: _Ring) -> None:
    grabbed, number, next_tick = 0, 0, 0.0
    while True:
        if not camera.info.is_patient or ring.wait_for_slot(TICK_S / 4):
            slot, into = ring.next_slot()
            frame = camera.grab(into, timeout_s=TICK_S / 4)
            if frame is not None:
                grabbed += 1
                ring.send(slot, frame)
        if time.monotonic() >= next_tick:
            number, next_tick = number + 1, time.monotonic() + TICK_S
            said = Tick(number, grabbed, ring.overrun, camera.temperature_c(), ring.filled)
            tick = {"op": "tick", **asdict(said)}
            # A station that does not read gets no ticks, and so no green.
            with contextlib.suppress(BlockingIOError):
                channel.send(tick, timeout_s=0)


def _wait_for_end_of_file(channel: Channel) -> None:
    """Keep what is in flight readable until the station has taken it: the frames, and the last
    message, which a socket that is closed with slot returns unread would give after an error."""
    while True:
        channel.receive()


def main() -> int:
    # A vendor's library that hangs would keep any thread of its own from noticing the station's
    # death, and the camera from being opened again.
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logging("camera")
    with (
        Channel(socket.socket(fileno=int(sys.argv[1]))) as channel,
        contextlib.suppress(PeerGone),
    ):
        _serve(channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
