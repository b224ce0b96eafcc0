"""A scanner that is a keyboard: events of Linux' input layer (linux/input.h), read as they are.

The device is grabbed, so that no reading is typed into a console. Keys are those of the US layout,
which scanners have unless they are told otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import time
from collections import deque
from pathlib import Path
from typing import Final

from drivers.errors import DeviceBusy, DeviceError, DeviceLost, DeviceNotFound, DeviceRefused
from drivers.scanner import (
    BROKEN_OFF,
    IS_REST,
    MAX_READING_BYTES,
    PAUSE_S,
    QUIET_S,
    Scan,
    Scanner,
)
from drivers.scanner.settings import HidScannerSettings

EVENT: Final = struct.Struct("llHHi")
"""struct input_event: seconds, microseconds, type, code, value."""
EV_SYN, EV_KEY, SYN_DROPPED = 0, 1, 3
RELEASED, PRESSED, REPEATED = 0, 1, 2
ENTERS = (28, 96)
SHIFTS = (42, 54)
_EVIOCGRAB = 0x40044590
_EVENTS = 64
_OPEN_S = 1.0
_NO_TEXT = 0xFF

KEYS: dict[int, tuple[str, str]] = {
    **{2 + place: (key, "!@#$%^&*()_+"[place]) for place, key in enumerate("1234567890-=")},
    **{16 + place: (key, key.upper()) for place, key in enumerate("qwertyuiop")},
    **{30 + place: (key, key.upper()) for place, key in enumerate("asdfghjkl")},
    **{44 + place: (key, key.upper()) for place, key in enumerate("zxcvbnm")},
    **dict(zip((26, 27, 39, 40, 41, 43, 51, 52, 53, 57),
               (("[", "{"), ("]", "}"), (";", ":"), ("'", '"'), ("`", "~"), ("\\", "|"),
                (",", "<"), (".", ">"), ("/", "?"), (" ", " ")), strict=True)),
}  # fmt: skip
"""Key code to what it types, without and with Shift (linux/input-event-codes.h)."""


class KeyReader:
    """Readings out of key events. Pure; times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._held: set[int] = set()
        self._fault = ""
        self._is_rest = False
        self._heard_ns = 0
        self._scans: deque[Scan] = deque()

    def feed(self, data: bytes, now_ns: int) -> None:
        """Whole events; none where the device was silent until now."""
        if (self._text or self._fault) and (now_ns - self._heard_ns) / 1e9 > PAUSE_S:
            self._end(self._heard_ns, BROKEN_OFF)
            self._is_rest = True
        for _, _, kind, code, value in EVENT.iter_unpack(data):
            if kind == EV_SYN and code == SYN_DROPPED:
                self._fault, self._held = "the system lost keys of it", set()
            elif kind == EV_KEY:
                self._key(code, value, now_ns)
        self._heard_ns = now_ns if data else self._heard_ns

    def take(self) -> Scan | None:
        return self._scans.popleft() if self._scans else None

    def _key(self, code: int, value: int, now_ns: int) -> None:
        if code in SHIFTS:
            (self._held.discard if value == RELEASED else self._held.add)(code)
        elif value == REPEATED:
            self._fault = "a key repeats"
        elif value == PRESSED and code in ENTERS:
            self._end(now_ns, self._fault or (IS_REST if self._is_rest and self._text else ""))
        elif value == PRESSED:
            self._type(code)

    def _type(self, code: int) -> None:
        pair = KEYS.get(code)
        if len(self._text) >= MAX_READING_BYTES:
            self._fault = "it has no end"
        elif pair is None:
            self._text.append(_NO_TEXT)
        else:
            self._text += pair[bool(self._held)].encode()

    def _end(self, at_ns: int, fault: str) -> None:
        if self._text or fault:
            self._scans.append(Scan(bytes(self._text), at_ns, fault))
        self._text.clear()
        self._fault, self._is_rest = "", False


class HidScanner(Scanner):
    """Opened in the silence between two readings."""

    def __init__(self, settings: HidScannerSettings) -> None:
        self.description = f"keyboard scanner at {settings.device}"
        self._rest = b""
        self._keys = KeyReader()
        self._descriptor = _open(settings.device)
        try:
            self._grab()
            self._await_silence()
        except BaseException:
            self.close()
            raise

    def read(self, timeout_s: float) -> Scan | None:
        waiting = self._keys.take()
        if waiting is not None:
            return waiting
        self._keys.feed(self._events(timeout_s), time.monotonic_ns())
        return self._keys.take()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _events(self, timeout_s: float) -> bytes:
        """Whole events that have come. Raises `DeviceLost`."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            return b""
        try:
            data = os.read(self._descriptor, _EVENTS * EVENT.size)
        except OSError as error:
            raise self._lost(error.strerror or "") from error
        if not data:
            raise self._lost("it hung up")
        data = self._rest + data
        whole = len(data) // EVENT.size * EVENT.size
        self._rest = data[whole:]
        return data[:whole]

    def _grab(self) -> None:
        """A pipe that a program writes events into has nobody else to type for."""
        if not stat.S_ISCHR(os.fstat(self._descriptor).st_mode):
            return
        try:
            fcntl.ioctl(self._descriptor, _EVIOCGRAB, 1)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceBusy(
                    f"{self.description}: held by another process; stop that one"
                ) from error
            raise DeviceRefused(f"{self.description}: is no input device: {error}") from error

    def _await_silence(self) -> None:
        deadline_s = time.monotonic() + _OPEN_S
        while self._events(QUIET_S):
            if time.monotonic() > deadline_s:
                raise DeviceRefused(f"{self.description}: talks without end; is it a scanner?")

    def _lost(self, why: str) -> DeviceLost:
        return DeviceLost(f"{self.description}: gone ({why}); plug it in again")


def _open(path: Path) -> int:
    """Raises `DeviceError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return descriptor
    os.close(descriptor)
    raise DeviceRefused(f"{path}: is no input device; look under /dev/input/by-id")


def _open_error(path: Path, error: OSError) -> DeviceError:
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return DeviceNotFound(f"no scanner at {path}; plug it in, or look under /dev/input/by-id")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceRefused(f"no permission for {path}; join the group input")
    return DeviceRefused(f"{path} cannot be opened: {error.strerror}")
