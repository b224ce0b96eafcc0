"""The scanner contract: part serials as a device reads them off labels, one reading at a time.

A driver hands over whole readings, or says that one was broken. It never makes one up: what was
under way when the device was opened, lost or disturbed is no reading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from drivers.scanner.settings import ScannerSettings

MAX_READING_BYTES = 256
QUIET_S = 0.05
"""A device that has said nothing for so long is at the beginning of a reading."""
PAUSE_S = 0.25
"""A reading that halts for so long was broken off."""
BROKEN_OFF = "it was broken off"
IS_REST = "its beginning was broken off"
"""What follows one that was broken off, up to the next end: it may be the other half of it."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What the device said at once."""

    data: bytes
    """Without what ends it; a byte that the device cannot mean as text is 0xFF."""
    at_ns: int
    """CLOCK_MONOTONIC when its end was read; of one broken off, the last that there is of it."""
    fault: str = ""
    """Why this is no reading; empty if it is one."""


class Scanner(ABC):
    """A scanner: opened by its constructor, used by one thread.

    The constructor raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy` or `DeviceRefused`.
    """

    description: str
    """What was opened, for people."""

    @abstractmethod
    def read(self, timeout_s: float) -> Scan | None:
        """The next reading, None if none ended within `timeout_s`; reads at most once from the
        device. Raises `DeviceLost`."""

    @abstractmethod
    def close(self) -> None:
        """Release the device. Safe to call twice and after a loss."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_DRIVERS = {
    "serial": "drivers.scanner.serial_line:SerialScanner",
    "hid": "drivers.scanner.hid:HidScanner",
    "simulated": "drivers.scanner.simulated:SimulatedScanner",
}


def open_scanner(settings: ScannerSettings) -> Scanner:
    """Open the scanner that `settings.type` names; that one or an error, never another."""
    module_name, class_name = _DRIVERS[settings.type].split(":")
    driver: type[Scanner] = getattr(import_module(module_name), class_name)
    return driver(settings)  # type: ignore[call-arg]
