"""Digital I/O on a module's coils and discrete inputs, over Modbus TCP or RTU.

| command | bytes on RS-485, module 1, coil 0 |
|---|---|
| on, off | `01 05 00 00 FF 00 8C 3A`, `01 05 00 00 00 00 CD CA` |
| on for 7 units (Waveshare: of 100 ms) | `01 05 02 00 00 07 8D B0` |
| read back 8 coils | `01 01 00 00 00 08 3D CC` |

An answer to FC05 repeats its request, as an echo does: what is on is what FC01 reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from drivers.errors import DeviceTimeout
from drivers.io import DigitalIo
from drivers.io.settings import ModbusIoSettings, times_pulses
from drivers.modbus import (
    ModbusDevice,
    ModbusPDU,
    ReadCoilsRequest,
    ReadDiscreteInputsRequest,
    WriteCoilValue,
    WriteMultipleCoilsRequest,
    WriteSingleCoilRequest,
)

_LIMIT_S = 0.45
"""Of one call, with everything that is asked in it."""


class ModbusIo(DigitalIo):
    """Every write is read back."""

    def __init__(self, settings: ModbusIoSettings) -> None:
        self._settings = settings
        self.times_pulses = times_pulses(settings)
        place = settings.port or f"{settings.host} port {settings.tcp_port}"
        self.description = f"Modbus I/O at {place}, device {settings.device_id}"
        self._modbus = ModbusDevice(settings, self.description)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._settings.outputs)

    def write(self, levels: Mapping[str, bool]) -> bool:
        deadline_s = time.monotonic() + _LIMIT_S
        for first, values in _runs(self._settings.outputs, levels):
            self._command(self._switch_request(first, values), deadline_s)
        self._confirm(levels, deadline_s)
        return True

    def pulse(self, output: str, seconds: float) -> bool:
        offset, began_s = self._settings.pulse_offset, time.monotonic()
        if offset is None:
            return self.write({output: True})
        deadline_s = began_s + _LIMIT_S
        units = max(1, math.ceil(seconds * 1000 / self._settings.pulse_unit_ms - 1e-6))
        address = self._settings.outputs[output] + offset
        self._command(WriteCoilValue(address, units, self._settings.device_id), deadline_s)
        try:
            self._confirm({output: True}, deadline_s)
        except DeviceTimeout:
            # A pulse that is over by now is no contradiction, and no confirmation.
            if time.monotonic() - began_s < seconds:
                raise
            return False
        return True

    def read(self) -> dict[str, bool]:
        deadline_s = time.monotonic() + _LIMIT_S
        return self._read(self._settings.inputs, ReadDiscreteInputsRequest, deadline_s)

    def close(self) -> None:
        self._modbus.close()

    def _switch_request(self, first: int, values: list[bool]) -> ModbusPDU:
        request = WriteSingleCoilRequest if len(values) == 1 else WriteMultipleCoilsRequest
        return request(address=first, bits=values, dev_id=self._settings.device_id)

    def _command(self, request: ModbusPDU, deadline_s: float) -> None:
        answer = self._modbus.ask(request, deadline_s)
        if answer.address != request.address:
            raise DeviceTimeout(f"{self.description}: {answer} answers another request")

    def _confirm(self, levels: Mapping[str, bool], deadline_s: float) -> None:
        coils = {name: self._settings.outputs[name] for name in levels}
        found = self._read(coils, ReadCoilsRequest, deadline_s)
        wrong = [name for name, is_on in levels.items() if found[name] != is_on]
        if wrong:
            raise DeviceTimeout(f"{self.description}: {', '.join(wrong)} read back wrong")

    def _read(
        self,
        places: Mapping[str, int],
        request: type[ReadCoilsRequest],
        deadline_s: float,
    ) -> dict[str, bool]:
        if not places:
            return {}
        first, count = min(places.values()), max(places.values()) - min(places.values()) + 1
        asked = request(address=first, count=count, dev_id=self._settings.device_id)
        bits = self._modbus.ask(asked, deadline_s).bits
        if len(bits) != -(-count // 8) * 8:
            raise DeviceTimeout(f"{self.description}: {len(bits)} bits for {count}")
        return {name: bool(bits[place - first]) for name, place in places.items()}


def _runs(places: Mapping[str, int], levels: Mapping[str, bool]) -> list[tuple[int, list[bool]]]:
    """First address and values of each run of neighbours: one command switches them together."""
    runs: list[tuple[int, list[bool]]] = []
    for place, is_on in sorted((places[name], is_on) for name, is_on in levels.items()):
        if runs and runs[-1][0] + len(runs[-1][1]) == place:
            runs[-1][1].append(is_on)
        else:
            runs.append((place, [is_on]))
    return runs
