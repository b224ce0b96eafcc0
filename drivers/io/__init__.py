"""The digital I/O contract: named outputs, driven and read back, and named inputs.

An output at rest is off. Wire it so that off is the safe side: not accepted, not ready, not good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from drivers.io.settings import DigitalIoSettings


class DigitalIo(ABC):
    """Digital outputs and inputs: opened by its constructor, used by one thread.

    The constructor raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy` or `DeviceRefused`, and
    leaves the outputs as it found them: the caller's first `write` decides.
    """

    description: str
    """What was opened, for people."""
    times_pulses: bool = False
    """True if the device ends a pulse by itself, also when nobody lives to end it."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    @abstractmethod
    def write(self, levels: Mapping[str, bool]) -> bool:
        """Switch the named outputs.

        Returns True if the device confirmed it by read-back. Returns within 0.5 s. Raises
        `DeviceTimeout` if the device did not take it, `DeviceLost` if it is gone; the outputs are
        then in an unknown state.
        """

    @abstractmethod
    def pulse(self, output: str, seconds: float) -> bool:
        """Switch an output on for `seconds`; returns when it is on, as `write` does.

        Where `times_pulses` the device switches it off, rounded up to what it can time; else the
        caller must, with `write`. A pulse in a pulse begins anew. Returns False where it was over
        before it could be read back.
        """

    @abstractmethod
    def read(self) -> dict[str, bool]:
        """The inputs, by name. Raises as `write` does."""

    @abstractmethod
    def close(self) -> None:
        """Release the device; its outputs stay. Safe to call twice and after a loss."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_DRIVERS = {
    "simulated": "drivers.io.simulated:SimulatedIo",
    "gpio": "drivers.io.gpio:GpioIo",
    "modbus": "drivers.io.modbus:ModbusIo",
}


def open_digital_io(settings: DigitalIoSettings) -> DigitalIo:
    """Open the I/O that `settings.type` names; that one or an error, never another."""
    module_name, class_name = _DRIVERS[settings.type].split(":")
    driver: type[DigitalIo] = getattr(import_module(module_name), class_name)
    return driver(settings)  # type: ignore[call-arg]
