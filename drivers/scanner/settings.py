"""Settings of each scanner driver, chosen by `type`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from drivers.settings import Count, Settings


class SerialScannerSettings(Settings):
    """A scanner that sends each reading as a line of ASCII over a serial port."""

    type: Literal["serial"]
    port: str = Field(min_length=1, description="/dev/serial/by-id/... keeps its name.")
    baud_rate: Count = Field(9600, ge=300, le=1_000_000)
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1


class HidScannerSettings(Settings):
    """A scanner that types each reading, and Enter, as a keyboard does."""

    type: Literal["hid"]
    device: Path = Field(description="/dev/input/by-id/...-event-kbd; a group may read it.")


class SimulatedScannerSettings(Settings):
    """The scanner at the simulated belt, or at whatever writes lines into the named pipe."""

    type: Literal["simulated"]
    pipe: Path = Field(description="A named pipe; made if there is none.")


ScannerSettings = Annotated[
    SerialScannerSettings | HidScannerSettings | SimulatedScannerSettings,
    Field(discriminator="type"),
]
