"""Settings of each stack light driver, chosen by `type`, and the pattern table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from drivers.settings import Count, Number, Settings
from drivers.stacklight import LightState

Element = Literal["red", "yellow", "green", "blue", "white", "buzzer"]
Mode = Literal["on", "blink"]
LightPattern = dict[Element, Mode]
"""Elements that are not named are off."""

DEFAULT_PATTERNS: dict[LightState, LightPattern] = {
    LightState.PASS: {"green": "on"},
    LightState.PASS_NOT_PRODUCTION: {"green": "on", "yellow": "blink"},
    LightState.FAIL: {"red": "on"},
    LightState.UNDECIDED: {"yellow": "on"},
    LightState.FAULT: {"red": "blink"},
    LightState.ATTENTION: {"yellow": "blink"},
    LightState.IDLE: {},
    LightState.LAMP_TEST: {"red": "on", "yellow": "on", "green": "on"},
}
"""IEC 60073 / IEC 60204-1 colours for a tower of red, yellow and green."""


class SimulatedStackLightSettings(Settings):
    """A tower drawn by whoever watches the station; no device."""

    type: Literal["simulated"]


class SerialElement(Settings):
    """The bytes that switch one element, as hex, for example `11` or `A0 01 01 A2`."""

    on: str = Field(pattern=r"^([0-9A-Fa-f]{2} ?)+$")
    off: str = Field(pattern=r"^([0-9A-Fa-f]{2} ?)+$")
    blink: str | None = Field(
        None, pattern=r"^([0-9A-Fa-f]{2} ?)+$", description="Where the device flashes by itself."
    )


ADAFRUIT_5125: dict[Element, SerialElement] = {
    "red": SerialElement(on="11", off="21", blink="41"),
    "yellow": SerialElement(on="12", off="22", blink="42"),
    "green": SerialElement(on="14", off="24", blink="44"),
    "buzzer": SerialElement(on="18", off="28", blink="48"),
}
"""Adafruit 5125 USB tower (CH340, 9600 8N1): one byte switches one element; latched."""


class SerialTowerSettings(Settings):
    """A tower that takes bytes over a serial line and has no read-back."""

    type: Literal["serial_tower"]
    port: str = Field(min_length=1, description="Device, best a name under /dev/serial/by-id.")
    baud_rate: Count = Field(9600, gt=0)
    write_timeout_s: Number = Field(0.3, gt=0, le=0.5, description="A blocked line is an error.")
    elements: dict[Element, SerialElement] = Field(
        default_factory=lambda: dict(ADAFRUIT_5125), description="Bytes of each element."
    )


class GpioLine(Settings):
    """One output line of the chip."""

    offset: Count = Field(ge=0, description="Line offset on the chip.")
    is_active_low: bool = Field(False, description="True if the element is lit at low level.")


class GpioStackLightSettings(Settings):
    """A tower behind transistor outputs, through libgpiod."""

    type: Literal["gpio"]
    chip: str = Field(min_length=1, description="For example /dev/gpiochip0.")
    lines: dict[Element, GpioLine] = Field(min_length=1)
    blink_hz: Number = Field(2.0, ge=1.4, le=2.8, description="Flash rate (IEC 60073: 1.4-2.8 Hz).")


StackLightSettings = Annotated[
    SimulatedStackLightSettings | SerialTowerSettings | GpioStackLightSettings,
    Field(discriminator="type"),
]
