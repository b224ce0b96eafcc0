"""A signed line with a stack light on a pty, a PLC that polls it and an accept output on a Modbus
module: everything that goes over their wires, with times of one clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modbus_peer import PULSE_OFFSET, ModbusPeer
from plc_peer import PollingPlc
from ports import free_port
from producer_rig import PITCH_MM, SignedLine
from pty_recorder import PtyRecorder
from station_rig import Rig

BELT_MM_S = 200.0
DISTANCE_MM, PULSE_MS = 150.0, 100
_SCAN_LINES_S = BELT_MM_S / PITCH_MM
_ENCODER = {
    "TriggerSource[LineStart]": "Encoder0",
    "TriggerMode[LineStart]": "On",
    "EncoderDivider": 2,
    "ChunkModeActive": True,
    "SimEncoderResolution": 20.0,
    "SimBeltSpeed": BELT_MM_S,
    "AcquisitionLineRate": _SCAN_LINES_S,
    "ExposureTime": 10.0,
}
_TABLES = """
[plc]
type = "modbus_server"
host = "127.0.0.1"
tcp_port = {plc_port}
heartbeat_timeout_s = 2.0
[accept]
distance_mm = {distance_mm}
pulse_ms = {pulse_ms}
[accept.device]
type = "modbus"
host = "127.0.0.1"
tcp_port = {module_port}
outputs = {{ accept = 0 }}
pulse_offset = {offset}
"""


@dataclass
class PlcLine:
    """The files of a line and what lies at the ends of its wires."""

    rig: Rig
    tower: PtyRecorder
    plc: PollingPlc
    module: ModbusPeer

    @property
    def pulses(self) -> list[int]:
        """When accept went on, CLOCK_MONOTONIC ns."""
        return [at_ns for at_ns, coil, is_on in self.module.history if coil == 0 and is_on]


@contextmanager
def plc_line(
    folder: Path, distance_mm: float = DISTANCE_MM, speed: float = 1.0
) -> Iterator[PlcLine]:
    """Its station is started by whoever asks. Raises `DriverMissing` without gcc."""
    folder.mkdir(exist_ok=True)
    light = {"type": "serial_tower", "port": str(folder / "tower")}
    features = {**_ENCODER, "SimBeltSpeed": BELT_MM_S * speed}
    line = SignedLine(folder, light=light, features=features)
    plc_port = free_port()
    with ModbusPeer() as module, PtyRecorder(folder / "tower") as tower:
        line.rig.tables += _TABLES.format(
            plc_port=plc_port,
            distance_mm=distance_mm,
            pulse_ms=PULSE_MS,
            module_port=module.port,
            offset=PULSE_OFFSET,
        )
        with PollingPlc(plc_port) as plc:
            yield PlcLine(line.rig, tower, plc, module)
