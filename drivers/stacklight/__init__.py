"""The stack light contract: a state goes in, a pattern of elements comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from drivers.stacklight.settings import LightPattern, StackLightSettings


class LightState(StrEnum):
    """What the light means. Colours and flashing live in the configuration (IEC 60073)."""

    PASS = "pass"
    """The last plate passed, its record is durable, its provenance is production."""
    PASS_NOT_PRODUCTION = "pass_not_production"
    """As PASS, for a simulated or replayed plate: a pattern of its own under the same lease."""
    FAIL = "fail"
    """The last plate failed."""
    UNDECIDED = "undecided"
    """The last plate could not be decided; treat it as suspect."""
    FAULT = "fault"
    """The station does not inspect."""
    ATTENTION = "attention"
    """The station inspects, but needs a person."""
    IDLE = "idle"
    """The station is alive and no plate's result is shown."""
    LAMP_TEST = "lamp_test"
    """All elements at once: a pattern that no plate can produce."""

    @property
    def is_pass(self) -> bool:
        return self in (LightState.PASS, LightState.PASS_NOT_PRODUCTION)


class StackLight(ABC):
    """A stack light: opened by its constructor, used by one thread.

    The constructor raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy` or `DeviceRefused`, and
    leaves the light as it found it: the caller's first `show` decides what is seen.
    """

    description: str
    """What was opened, for people."""
    can_confirm: bool = False
    """True if the device can be read back."""
    buzzer_s: float | None = None
    """A buzzer sounds so long from the beginning of a state on; None: as long as the state."""

    @abstractmethod
    def show(self, state: LightState) -> bool:
        """Switch the elements to the pattern of `state`, all of them, also those already right,
        unless the device has just been read and says that it shows just that.

        Returns True if the device confirmed it by read-back, False if it has no read-back and the
        bytes merely left. Returns within 0.5 s. Raises `DeviceTimeout` if the device did not take
        the command, `DeviceLost` if it is gone; the light is then in an unknown state.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device without changing the light. Safe to call twice and after a loss."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_DRIVERS = {
    "simulated": "drivers.stacklight.simulated:SimulatedStackLight",
    "serial_tower": "drivers.stacklight.serial_tower:SerialTower",
    "modbus_relay": "drivers.stacklight.modbus_relay:ModbusRelay",
    "patlite": "drivers.stacklight.patlite:Patlite",
    "gpio": "drivers.stacklight.gpio:GpioStackLight",
}


def open_stack_light(
    settings: StackLightSettings,
    patterns: dict[LightState, LightPattern],
    buzzer_s: float | None = None,
) -> StackLight:
    """Open the light that `settings.type` names; that one or an error, never another."""
    module_name, class_name = _DRIVERS[settings.type].split(":")
    driver: type[StackLight] = getattr(import_module(module_name), class_name)
    light = driver(settings, patterns)  # type: ignore[call-arg]
    light.buzzer_s = buzzer_s
    return light
