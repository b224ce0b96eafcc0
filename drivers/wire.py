"""Bytes to and from a device over a serial port or TCP: one place for limits of time and for loss.

Each call has a deadline (CLOCK_MONOTONIC seconds) and never waits longer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import termios
import time
from typing import TYPE_CHECKING, NoReturn

from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
    DriverMissing,
)

if TYPE_CHECKING:
    import serial

_DRAIN_POLL_S = 0.001
_MAX_READS = 16
_CONNECT_S = 0.3
"""Opening and the first show together must stay below the lamp's watchdog of 1 s."""


class Wire:
    """An open serial port or TCP connection. Used by one thread at a time."""

    def __init__(self, name: str, device: serial.Serial | socket.socket) -> None:
        """`name` is the device for people; every error begins with it."""
        self.name = name
        self._device = device
        self._is_serial = not isinstance(device, socket.socket)

    def send(self, data: bytes, deadline_s: float) -> None:
        """Return when all bytes have left. Raises `DeviceTimeout`, `DeviceLost`."""
        started_s = time.monotonic()
        try:
            left = memoryview(data)
            while left:
                self._wait(deadline_s, is_write=True)
                left = left[os.write(self._descriptor(), left) :]
            # Bytes in the kernel's buffer have not reached the device, and may never.
            while self._is_serial and self._device.out_waiting:  # type: ignore[union-attr]
                if time.monotonic() >= deadline_s:
                    raise TimeoutError
                time.sleep(_DRAIN_POLL_S)
        except TimeoutError as error:
            self._drop_output()
            raise DeviceTimeout(
                f"{self.name}: the device did not take {len(data)} bytes within "
                f"{max(0.0, deadline_s - started_s):.1f} s; check its power and its cable"
            ) from error
        except (OSError, termios.error) as error:
            self._lost(error)

    def receive(self, deadline_s: float) -> bytes:
        """What has arrived, empty if nothing has by the deadline. Raises `DeviceLost`."""
        try:
            self._wait(deadline_s)
            data = os.read(self._descriptor(), 4096)
        except (TimeoutError, BlockingIOError):
            return b""
        except OSError as error:
            self._lost(error)
        if not data:
            self._lost("it hung up")
        return data

    def forget(self) -> None:
        """Drop what arrived and nobody asked for. Raises `DeviceLost`, `DeviceTimeout`."""
        for _ in range(_MAX_READS):
            if not self.receive(0.0):
                return
        raise DeviceTimeout(f"{self.name}: talks without end; is it this device?")

    def close(self) -> None:
        """Safe to call twice and after a loss."""
        with contextlib.suppress(OSError, termios.error):
            self._device.close()

    def _descriptor(self) -> int:
        """Raises OSError where it was closed."""
        if self._is_serial and not self._device.is_open:  # type: ignore[union-attr]
            raise OSError(errno.EBADF, "closed")
        return self._device.fileno()

    def _wait(self, deadline_s: float, is_write: bool = False) -> None:
        """Raises TimeoutError, OSError."""
        descriptor = [self._descriptor()]
        if descriptor[0] < 0:
            raise OSError(errno.EBADF, "closed")
        reads, writes = ([], descriptor) if is_write else (descriptor, [])
        if not any(select.select(reads, writes, [], max(0.0, deadline_s - time.monotonic()))):
            raise TimeoutError

    def _drop_output(self) -> None:
        """What the device did not take must not arrive later, out of date, and closing the port
        would wait for it, up to 30 s."""
        if self._is_serial:
            with contextlib.suppress(OSError, termios.error):
                self._device.reset_output_buffer()  # type: ignore[union-attr]

    def _lost(self, reason: Exception | str) -> NoReturn:
        advice = "plug it in again" if self._is_serial else "check its power and its network cable"
        cause = reason if isinstance(reason, Exception) else None
        raise DeviceLost(f"{self.name}: gone ({reason}); {advice}") from cause


def open_serial(
    name: str, port: str, baud_rate: int, parity: str = "N", stop_bits: int = 1
) -> Wire:
    """Open a serial port, 8 data bits, for this process alone.

    Raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy`, `DeviceRefused`.
    """
    try:
        import serial
    except ImportError as error:  # pragma: no cover - pyserial is a base dependency
        raise DriverMissing("a serial port needs pyserial: pip install pyserial") from error
    try:
        device = serial.Serial(
            port, baud_rate, parity=parity, stopbits=stop_bits, exclusive=True, timeout=0
        )
    except (OSError, termios.error, ValueError) as error:
        raise _serial_error(port, error) from error
    return Wire(name, device)


def open_tcp(name: str, host: str, port: int, limit_s: float = _CONNECT_S) -> Wire:
    """Connect to an IP address. Raises `DeviceNotFound`."""
    try:
        device = socket.create_connection((host, port), timeout=min(limit_s, _CONNECT_S))
    except (ConnectionRefusedError, TimeoutError) as error:
        raise DeviceNotFound(
            f"{name}: nobody answers at {host} port {port}; check its power, cable and address"
        ) from error
    except OSError as error:
        raise DeviceNotFound(f"{name}: {host} port {port} cannot be reached: {error}") from error
    device.setblocking(False)
    device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Wire(name, device)


def _serial_error(port: str, error: Exception) -> DeviceError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return DeviceNotFound(f"no serial port {port}; found: {_ports()}; plug the device in")
    if number in (errno.EAGAIN, errno.EBUSY):
        return DeviceBusy(f"serial port {port} is held by another process; stop that one")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceRefused(f"no permission for serial port {port}; join the group dialout")
    return DeviceRefused(f"{port} is not a serial port that can be set up: {error}")


def _ports() -> str:
    from serial.tools import list_ports

    return ", ".join(sorted(port.device for port in list_ports.comports())) or "none"
