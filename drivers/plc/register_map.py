"""Where each word of the handshake lies, in one table: the servers, the clients, the wires and the
documentation's table are all made from it. Addresses count from 0."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from drivers.plc import PlcInputs, PlcOutputs

MAP_VERSION = 1

OUTPUT_BITS: tuple[str, ...] = (
    "ready",
    "busy",
    "result_valid",
    "ok",
    "ng",
    "undecided",
    "error",
    "attention",
    "not_production",
)
"""Names of the station's bits, by their place in the status register and among the discrete
inputs."""
INPUT_BITS: tuple[str, ...] = ("ack", "ack_hold")
"""Names of the PLC's bits, by their place in the command register and among the coils."""


@dataclass(frozen=True, slots=True)
class Word:
    """One line of the table."""

    table: str
    """`input` or `holding` register; `discrete input` or `coil`."""
    address: int
    name: str
    meaning: str
    registers: int = 1


STATUS, HEARTBEAT, RESULT, OVERRUNS, LATE, VERSION = 0, 1, 2, 4, 5, 6
OUTPUT_REGISTERS = 7
COMMAND, PLC_HEARTBEAT, TRIGGERS = 0, 1, 2
INPUT_REGISTERS = 4
SERIALS, SERIAL = 4, 5
SERIAL_REGISTERS = 32
WITH_SERIALS = SERIAL + SERIAL_REGISTERS
"""Registers of the PLC where it reads part serials (`has_serials`)."""

_BIT_MEANINGS = {
    "ready": "the station inspects and records; the line may run",
    "busy": "a plate is below the camera, or its verdict is not out",
    "result_valid": "result, ok, ng, undecided, not_production belong to one plate, "
    "not yet acknowledged",
    "ok": "it passed; its record is durable; production",
    "ng": "it failed or could not be decided: take it out",
    "undecided": "with ng: it could not be decided",
    "error": "plates are not judged or not recorded, or the station is not there",
    "attention": "plates are judged, but a person is needed",
    "not_production": "the result is of a simulated, replayed or unsigned camera, or of a "
    "model that nobody signed; never with ok",
    "ack": "the result has been read; off again before the next one is shown",
    "ack_hold": "acknowledges a held FAIL or UNDECIDED, and late plates, when it goes on",
}

WORDS: tuple[Word, ...] = (
    *(
        Word("discrete input", place, name, _BIT_MEANINGS[name])
        for place, name in enumerate(OUTPUT_BITS)
    ),
    *(Word("coil", place, name, _BIT_MEANINGS[name]) for place, name in enumerate(INPUT_BITS)),
    Word("input register", STATUS, "status", "the discrete inputs as bits 0 to 8"),
    Word("input register", HEARTBEAT, "heartbeat", "ticks that travelled through the station"),
    Word("input register", RESULT, "result", "the plate's sequence number, high word first", 2),
    Word("input register", OVERRUNS, "overruns", "results that ended without an ACK"),
    Word("input register", LATE, "late", "passed plates whose accept point went by first"),
    Word("input register", VERSION, "version", f"of this map: {MAP_VERSION}"),
    Word("holding register", COMMAND, "command", "the coils as bits 0 and 1"),
    Word("holding register", PLC_HEARTBEAT, "heartbeat", "changes while the PLC runs"),
    Word("holding register", TRIGGERS, "triggers", "plates it counted, high word first", 2),
    Word("holding register", SERIALS, "serials", "with has_serials: changes with each serial read"),
    Word(
        "holding register",
        SERIAL,
        "serial",
        "with has_serials: it, ASCII, high byte first, zeros after it",
        SERIAL_REGISTERS,
    ),
)


def input_count(has_serials: bool) -> int:
    """How many registers the PLC's words are."""
    return WITH_SERIALS if has_serials else INPUT_REGISTERS


def output_bits(outputs: PlcOutputs) -> list[bool]:
    return [getattr(outputs, name) for name in OUTPUT_BITS]


def output_registers(outputs: PlcOutputs) -> list[int]:
    status = sum(is_on << place for place, is_on in enumerate(output_bits(outputs)))
    high, low = divmod(outputs.result % 2**32, 2**16)
    counts = (outputs.overruns % 2**16, outputs.late % 2**16)
    return [status, outputs.heartbeat % 2**16, high, low, *counts, MAP_VERSION]


def read_outputs(registers: Sequence[int]) -> PlcOutputs:
    """As a PLC reads them."""
    status, heartbeat, high, low, overruns, late, _ = registers
    bits = {name: bool(status >> place & 1) for place, name in enumerate(OUTPUT_BITS)}
    return PlcOutputs(
        **bits, heartbeat=heartbeat, result=high << 16 | low, overruns=overruns, late=late
    )


def input_bits(inputs: PlcInputs) -> list[bool]:
    return [getattr(inputs, name) for name in INPUT_BITS]


def input_registers(inputs: PlcInputs, has_serials: bool = False) -> list[int]:
    command = sum(is_on << place for place, is_on in enumerate(input_bits(inputs)))
    words = [command, inputs.heartbeat % 2**16, *divmod(inputs.triggers % 2**32, 2**16)]
    if not has_serials:
        return words
    text = inputs.serial[: 2 * SERIAL_REGISTERS].ljust(2 * SERIAL_REGISTERS, b"\0")
    return [*words, inputs.serials % 2**16, *struct.unpack(f">{SERIAL_REGISTERS}H", text)]


def read_inputs(registers: Sequence[int]) -> PlcInputs:
    command, heartbeat, high, low = registers[:INPUT_REGISTERS]
    bits = {name: bool(command >> place & 1) for place, name in enumerate(INPUT_BITS)}
    serials, serial = 0, b""
    if len(registers) == WITH_SERIALS:
        serials = registers[SERIALS]
        serial = struct.pack(f">{SERIAL_REGISTERS}H", *registers[SERIAL:]).rstrip(b"\0")
    return PlcInputs(
        **bits, heartbeat=heartbeat, triggers=high << 16 | low, serials=serials, serial=serial
    )


def markdown_table() -> str:
    """The documentation's table."""
    rows = ["| table | address | word | meaning |", "|---|---|---|---|"]
    for word in WORDS:
        end = f" to {word.address + word.registers - 1}" if word.registers > 1 else ""
        rows.append(f"| {word.table} | {word.address}{end} | `{word.name}` | {word.meaning} |")
    return "\n".join(rows) + "\n"
