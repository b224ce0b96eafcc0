"""The PLC contract: what the station says to a PLC, what the PLC says back, and the links between.

A link asks for the station's words at the very moment at which it hands them out, so that a lapsed
lease is never read as READY or OK, however late a read is answered; and says so once they are out,
so that nothing is taken for seen which never reached the wire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivers.plc.settings import PlcSettings


@dataclass(frozen=True, slots=True)
class PlcOutputs:
    """What the station says. The default is what a station says that is not there: not ready, no
    result, and an error."""

    ready: bool = False
    """It inspects and records; the line may run."""
    busy: bool = False
    """A plate is below the camera, or its verdict is not out."""
    result_valid: bool = False
    """The plate's words (`result` to `not_production`) are of one plate, not yet acknowledged."""
    ok: bool = False
    """The plate passed, its record is durable, its pictures are production."""
    ng: bool = False
    """The plate failed or could not be decided: take it out."""
    undecided: bool = False
    """With `ng`: it could not be decided."""
    error: bool = True
    """Something keeps plates from being judged or recorded, or the station is not there."""
    attention: bool = False
    """Plates are judged as ever, but a person is needed."""
    not_production: bool = False
    """The result is of a simulated or replayed plate, or of a camera that nobody signed; never with
    `ok`."""
    heartbeat: int = 0
    """Counts ticks that travelled through the station; stands still when any part of it does."""
    result: int = 0
    """Sequence number of the plate in the log; 0 before the first."""
    overruns: int = 0
    """Results that ended before they were acknowledged: the next one came, or the lease ended."""
    late: int = 0
    """Passed plates whose accept point went by before their verdict."""


NOBODY = PlcOutputs()


@dataclass(frozen=True, slots=True)
class PlcInputs:
    """What the PLC says."""

    ack: bool = False
    """It has read the result. A result is not shown before this is off again."""
    ack_hold: bool = False
    """A person at the line acknowledges a held FAIL, and plates that came too late."""
    heartbeat: int = 0
    """Changes while the PLC runs."""
    triggers: int = 0
    """Plates that the PLC's own light barrier counted."""
    serials: int = 0
    """Counts the serials that it has read; the last of them is in `serial`."""
    serial: bytes = b""


ReadOutputs = Callable[[], PlcOutputs]
"""What the station says now, for one handing out; from any thread."""
HandedOut = Callable[[PlcOutputs], None]
"""It is on the wire, with RESULT_VALID; from any thread."""
TakeInputs = Callable[[PlcInputs], None]
"""What the PLC says, each time it was heard; from any thread."""


class PlcLink(ABC):
    """A link to a PLC: opened by its constructor, served by a thread of its own until closed.

    The constructor raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy` or `DeviceRefused`.
    """

    description: str
    """What was opened, for people."""
    keeps_last_word: bool = False
    """True if the other side goes on showing what it was told last when nobody writes any more: the
    PLC must watch the heartbeat."""
    turned_ns: int | None = None
    """CLOCK_MONOTONIC at which its thread did something last, 0.5 s ago at most or nearly so; None
    where it does not run."""

    @abstractmethod
    def start(
        self, read_outputs: ReadOutputs, handed_out: HandedOut, take_inputs: TakeInputs
    ) -> None:
        """Begin to serve. Raises RuntimeError if there is no thread to be had."""

    @property
    @abstractmethod
    def problem(self) -> str:
        """Why the PLC does not hear us, empty while it may."""

    @abstractmethod
    def say_nobody(self) -> None:
        """Say `NOBODY` where that takes saying, without `start`. Raises `DeviceError` if the PLC
        did not take it."""

    @abstractmethod
    def try_out(self) -> None:
        """Say `NOBODY` and hear the PLC once, without `start`, where the station asks for answers.
        Raises `DeviceError` if there is none."""

    @abstractmethod
    def close(self) -> None:
        """Say `NOBODY` where that takes saying, and end. Safe to call twice."""


_LINKS = {
    "modbus_server": "drivers.plc.modbus_server:ModbusServerLink",
    "modbus_client": "drivers.plc.modbus_client:ModbusClientLink",
    "io": "drivers.plc.io_link:IoLink",
}


def open_plc_link(settings: PlcSettings) -> PlcLink:
    """Open the link that `settings.type` names; that one or an error, never another."""
    module_name, class_name = _LINKS[settings.type].split(":")
    link: type[PlcLink] = getattr(import_module(module_name), class_name)
    return link(settings)  # type: ignore[call-arg]
