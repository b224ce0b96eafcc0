"""Settings of each digital I/O driver, chosen by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from drivers.modbus_link import ModbusLink
from drivers.settings import Count, Settings, gpio_line, shared_wire

Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
_MOST_APART = 64
"""They are read in one request."""
Bias = Literal["as_is", "pull_up", "pull_down", "disabled"]


class SimulatedIoSettings(Settings):
    """Outputs that nobody sees: no wire is behind them."""

    type: Literal["simulated"]
    outputs: tuple[Name, ...] = ()
    inputs: tuple[Name, ...] = ()

    @property
    def wires(self) -> list[tuple[str, str]]:
        """Key and place of each wire that is driven here; none is."""
        return []


class GpioIoLine(Settings):
    """One line of the chip."""

    offset: Count = Field(ge=0, description="Line offset on the chip.")
    is_active_low: bool = Field(False, description="True if on is the low level.")
    bias: Bias = Field("as_is", description="The chip's own pull resistor.")


class GpioIoSettings(Settings):
    """Lines of this machine, through libgpiod."""

    type: Literal["gpio"]
    chip: str = Field(min_length=1, description="For example /dev/gpiochip0.")
    outputs: dict[Name, GpioIoLine] = Field(default_factory=dict)
    inputs: dict[Name, GpioIoLine] = Field(default_factory=dict)

    @property
    def wires(self) -> list[tuple[str, str]]:
        """Inputs too: a line is an output or an input."""
        return [
            (f"{kind}.{name}", gpio_line(self.chip, line.offset))
            for kind, lines in (("outputs", self.outputs), ("inputs", self.inputs))
            for name, line in lines.items()
        ]

    @model_validator(mode="after")
    def _each_line_has_one_use(self) -> GpioIoSettings:
        if problem := shared_wire(self.wires):
            raise ValueError(problem)
        return self


class ModbusIoSettings(ModbusLink):
    """An I/O module's coils and discrete inputs, over Modbus TCP or RTU."""

    type: Literal["modbus"]
    outputs: dict[Name, Annotated[Count, Field(ge=0, le=65535)]] = Field(
        default_factory=dict, description="Coil address of each output."
    )
    inputs: dict[Name, Annotated[Count, Field(ge=0, le=65535)]] = Field(
        default_factory=dict, description="Discrete input address of each input."
    )
    pulse_offset: Count | None = Field(
        None,
        ge=1,
        le=65535,
        description="FC05 to coil address + this switches on for a time: 512 on Waveshare boards.",
    )
    pulse_unit_ms: Count = Field(100, ge=1, le=1000, description="Unit of that time.")

    @property
    def wires(self) -> list[tuple[str, str]]:
        """Every coil that is written, those that time pulses too."""
        return [
            (f"outputs.{name}", self.place("coil", coil + offset))
            for name, coil in self.outputs.items()
            for offset in (0, self.pulse_offset or 0)
        ]

    @model_validator(mode="after")
    def _each_coil_has_one_use(self) -> ModbusIoSettings:
        if problem := shared_wire(self.wires):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _is_read_in_one_request(self) -> ModbusIoSettings:
        for places in (self.outputs.values(), self.inputs.values()):
            if places and max(places) - min(places) >= _MOST_APART:
                raise ValueError(f"addresses lie more than {_MOST_APART} apart")
        return self


DigitalIoSettings = Annotated[
    SimulatedIoSettings | GpioIoSettings | ModbusIoSettings, Field(discriminator="type")
]


def output_names(settings: DigitalIoSettings) -> set[str]:
    return set(settings.outputs)


def times_pulses(settings: DigitalIoSettings) -> bool:
    """Whether the device ends a pulse by itself, also when nobody lives to end it."""
    if settings.type == "modbus":
        return settings.pulse_offset is not None
    return settings.type == "simulated"


def input_names(settings: DigitalIoSettings) -> set[str]:
    return set(settings.inputs)
