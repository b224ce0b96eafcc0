"""Digital I/O on a module's coils and discrete inputs, over Modbus TCP or RTU.

| command | bytes on RS-485, module 1, coil 0 |
|---|---|
| on, off | `01 05 00 00 FF 00 8C 3A`, `01 05 00 00 00 00 CD CA` |
| on for 7 units (Waveshare: of 100 ms) | `01 05 02 00 00 07 8D B0` |
| read back 8 coils | `01 01 00 00 00 08 3D CC` |

An answer to FC05 repeats its request, as an echo does: what is on is what FC01 reads.
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from drivers.errors import (
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
    DriverMissing,
)
from drivers.io import DigitalIo
from drivers.io.settings import ModbusIoSettings

try:
    from pymodbus.client import ModbusSerialClient, ModbusTcpClient
    from pymodbus.exceptions import ModbusException
    from pymodbus.pdu.bit_message import WriteSingleCoilRequest
except ImportError as _error:  # pragma: no cover - pymodbus is a base dependency
    raise DriverMissing("modbus needs pymodbus: pip install pymodbus") from _error

# What the module does wrong is said by this driver, once, not by the library at each try.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)


class ModbusClient(Protocol):
    """What is used of pymodbus' synchronous clients."""

    def connect(self) -> bool: ...
    def close(self) -> None: ...
    def execute(self, no_response_expected: bool, request: Any) -> Any: ...
    def read_coils(self, address: int, *, count: int, device_id: int) -> Any: ...
    def read_discrete_inputs(self, address: int, *, count: int, device_id: int) -> Any: ...
    def write_coil(self, address: int, value: bool, *, device_id: int) -> Any: ...
    def write_coils(self, address: int, values: list[bool], *, device_id: int) -> Any: ...


class ModbusIo(DigitalIo):
    """Every write is read back; a connection that failed is made anew by the next call."""

    def __init__(self, settings: ModbusIoSettings) -> None:
        self._settings = settings
        self.times_pulses = settings.pulse_offset is not None
        where = settings.serial_port or f"{settings.host}:{settings.port}"
        self.description = f"Modbus I/O at {where}, device {settings.device_id}"
        self._client = _client(settings)
        if not self._client.connect():
            raise DeviceNotFound(f"no {self.description}; check its power, cable and address")

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._settings.outputs)

    def write(self, levels: Mapping[str, bool]) -> bool:
        for first, values in _runs(self._settings.outputs, levels):
            self._ask(partial(self._switch, first, values))
        self._confirm(levels)
        return True

    def pulse(self, output: str, seconds: float) -> bool:
        offset = self._settings.pulse_offset
        if offset is None:
            return self.write({output: True})
        units = math.ceil(seconds * 1000 / self._settings.pulse_unit_ms - 1e-6)
        request = _FlashOn(self._settings.outputs[output] + offset, max(1, units))
        request.dev_id = self._settings.device_id
        self._ask(lambda: self._client.execute(False, request))
        self._confirm({output: True})
        return True

    def read(self) -> dict[str, bool]:
        return self._read(self._settings.inputs, self._client.read_discrete_inputs)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.close()

    def _switch(self, first: int, values: list[bool]) -> Any:
        if len(values) == 1:
            return self._client.write_coil(first, values[0], **self._unit)
        return self._client.write_coils(first, values, **self._unit)

    @property
    def _unit(self) -> dict[str, int]:
        return {"device_id": self._settings.device_id}

    def _confirm(self, levels: Mapping[str, bool]) -> None:
        coils = {name: self._settings.outputs[name] for name in levels}
        found = self._read(coils, self._client.read_coils)
        wrong = [name for name, is_on in levels.items() if found[name] != is_on]
        if wrong:
            raise DeviceTimeout(f"{self.description}: {', '.join(wrong)} read back wrong")

    def _read(self, addresses: Mapping[str, int], read: Callable[..., Any]) -> dict[str, bool]:
        if not addresses:
            return {}
        first, last = min(addresses.values()), max(addresses.values())
        answer = self._ask(lambda: read(first, count=last - first + 1, **self._unit))
        return {name: bool(answer.bits[at - first]) for name, at in addresses.items()}

    def _ask(self, request: Callable[[], Any]) -> Any:
        """One question and its answer. Raises `DeviceLost`, `DeviceTimeout`, `DeviceRefused`."""
        if not self._client.connect():
            raise DeviceLost(f"{self.description}: gone; check its power and cable")
        try:
            answer = request()
        except (ModbusException, OSError, ValueError) as error:
            # What comes after a missing answer may be that answer: begin anew.
            self._client.close()
            raise DeviceTimeout(f"{self.description}: no answer ({error})") from error
        if answer.isError():
            raise DeviceRefused(f"{self.description}: refused ({answer})")
        return answer


class _FlashOn(WriteSingleCoilRequest):
    """FC05 with a time where the value stands: on for so many units, then off by itself."""

    def __init__(self, address: int, units: int) -> None:
        super().__init__(address=address, bits=[True])
        self._units = units

    def encode(self) -> bytes:
        return struct.pack(">HH", self.address, self._units)


def _client(settings: ModbusIoSettings) -> ModbusClient:
    if settings.host is not None:
        return ModbusTcpClient(
            settings.host, port=settings.port, timeout=settings.timeout_s, retries=0
        )
    assert settings.serial_port is not None, "the configuration was checked"
    return ModbusSerialClient(
        settings.serial_port, baudrate=settings.baud_rate, timeout=settings.timeout_s, retries=0
    )


def _runs(addresses: Mapping[str, int], levels: Mapping[str, bool]) -> list[tuple[int, list[bool]]]:
    """First address and values of each run of neighbours: one command switches them together."""
    runs: list[tuple[int, list[bool]]] = []
    for address, is_on in sorted((addresses[name], is_on) for name, is_on in levels.items()):
        if runs and runs[-1][0] + len(runs[-1][1]) == address:
            runs[-1][1].append(is_on)
        else:
            runs.append((address, [is_on]))
    return runs
