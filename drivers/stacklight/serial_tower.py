"""Stack light behind a serial line that takes bytes: USB towers, relay boards. No read-back.

| device | link | bytes |
|---|---|---|
| Adafruit 5125 | 9600 8N1 | on 11 12 14 18, off 21 22 24 28, blink 41 42 44 48 (R Y G buzzer) |
| LCUS relay board | 9600 8N1 | channel 1 on `A0 01 01 A2`, off `A0 01 00 A1`; 2: `A0 02 01 A3` |

Such devices latch: they keep showing what they were told until told otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import termios
import time
from typing import NoReturn

from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
    DriverMissing,
)
from drivers.stacklight import LightState, StackLight
from drivers.stacklight.settings import Element, LightPattern, Mode, SerialTowerSettings

try:
    import serial
    from serial.tools import list_ports
except ImportError as _error:  # pragma: no cover - pyserial is a base dependency
    raise DriverMissing("serial_tower needs pyserial: pip install pyserial") from _error

_DRAIN_POLL_S = 0.001


class SerialTower(StackLight):
    """Writes the bytes of every element at each `show`, those that go dark first."""

    def __init__(
        self, settings: SerialTowerSettings, patterns: dict[LightState, LightPattern]
    ) -> None:
        self._settings = settings
        self._patterns = patterns
        self._lit: dict[Element, Mode] = {}
        """What was last written; empty at first, so that every element is switched off once."""
        self.description = f"serial tower at {settings.port}, {settings.baud_rate} baud"
        try:
            self._port = serial.Serial(
                settings.port,
                settings.baud_rate,
                exclusive=True,
                timeout=0,
                write_timeout=settings.write_timeout_s,
            )
        except (OSError, termios.error, ValueError) as error:
            raise _open_error(settings.port, error) from error

    def show(self, state: LightState) -> bool:
        pattern = self._patterns[state]
        payload = self._bytes(pattern)
        deadline = time.monotonic() + self._settings.write_timeout_s
        try:
            self._port.write(payload)
            # Bytes in the kernel's buffer have not reached the device, and may never.
            while self._port.out_waiting:
                if time.monotonic() >= deadline:
                    raise serial.SerialTimeoutException
                time.sleep(_DRAIN_POLL_S)
        except serial.SerialTimeoutException as error:
            self._fail()
            raise DeviceTimeout(
                f"{self.description}: the device did not take {len(payload)} bytes within "
                f"{self._settings.write_timeout_s} s; check its power and its cable"
            ) from error
        except (OSError, termios.error, TypeError) as error:
            # pyserial raises TypeError where the port was closed under it.
            self._fail()
            self._lost(error)
        self._lit = dict(pattern)
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError, termios.error, TypeError):
            self._port.close()

    def _bytes(self, pattern: LightPattern) -> bytes:
        """Off for all that is dark or changes, then on or blink: never two patterns at once.

        An element that stays lit gets no off, so that a renewal is not seen.
        """
        off, on = [], []
        for element, codes in self._settings.elements.items():
            mode = pattern.get(element)
            if mode is None or self._lit.get(element) != mode:
                off.append(codes.off)
            if mode == "on":
                on.append(codes.on)
            elif mode == "blink":
                assert codes.blink is not None, "the configuration was checked"
                on.append(codes.blink)
        return bytes.fromhex(" ".join(off + on))

    def _fail(self) -> None:
        """Drop what the device did not take: it must not arrive later, out of date, and closing
        the port would wait for it, up to 30 s."""
        self._lit = {}
        with contextlib.suppress(OSError, termios.error, TypeError):
            self._port.reset_output_buffer()

    def _lost(self, error: Exception) -> NoReturn:
        raise DeviceLost(f"{self.description}: gone ({error}); plug it in again") from error


def _open_error(port: str, error: Exception) -> DeviceError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return DeviceNotFound(f"no serial port {port}; found: {_ports()}; plug the stack light in")
    if number in (errno.EAGAIN, errno.EBUSY):
        return DeviceBusy(f"serial port {port} is held by another process; stop that one")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceRefused(f"no permission for serial port {port}; join the group dialout")
    return DeviceRefused(f"{port} is not a serial port that can be set up: {error}")


def _ports() -> str:
    return ", ".join(sorted(port.device for port in list_ports.comports())) or "none"
