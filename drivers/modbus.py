"""Modbus questions and their answers, RTU or TCP, through pymodbus: for every device that is asked.

pymodbus frames and unpacks; the bytes travel over a `Wire`, whose every wait has a deadline of
CLOCK_MONOTONIC. pymodbus' own clients wait by wall time, which may step.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import dataclass
from typing import Protocol

from drivers.errors import DeviceError, DeviceRefused, DeviceTimeout, DriverMissing
from drivers.wire import Wire, open_serial, open_tcp

try:
    from pymodbus.client.base import ModbusBaseSyncClient
    from pymodbus.exceptions import ModbusException
    from pymodbus.framer import FramerType
    from pymodbus.pdu import ModbusPDU
    from pymodbus.pdu.bit_message import (
        ReadCoilsRequest,
        ReadCoilsResponse,
        ReadDiscreteInputsRequest,
        ReadDiscreteInputsResponse,
        WriteMultipleCoilsRequest,
        WriteSingleCoilRequest,
    )
    from pymodbus.pdu.register_message import (
        ReadHoldingRegistersRequest,
        ReadHoldingRegistersResponse,
        WriteMultipleRegistersRequest,
        WriteSingleRegisterRequest,
    )
    from pymodbus.transport import CommParams, CommType
except ImportError as _error:  # pragma: no cover - pymodbus is a base dependency
    raise DriverMissing("Modbus needs pymodbus: pip install pymodbus") from _error

__all__ = [
    "ModbusDevice",
    "ModbusLinkSettings",
    "ModbusPDU",
    "ModbusPlace",
    "ReadCoilsRequest",
    "ReadDiscreteInputsRequest",
    "ReadHoldingRegistersRequest",
    "WriteCoilValue",
    "WriteMultipleCoilsRequest",
    "WriteMultipleRegistersRequest",
    "WriteSingleCoilRequest",
    "WriteSingleRegisterRequest",
]

# Each of its complaints becomes an error of ours, which says what to do.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_ANSWER_S = 0.15
"""A board answers within 20 ms; a request without an answer is sent once more."""
_MAX_ANSWER = 512
"""Twice the longest frame. pymodbus would search any number of bytes for one, and take its time."""


class ModbusLinkSettings(Protocol):
    """How a device is reached: `port` (RTU) or `host` (TCP)."""

    @property
    def port(self) -> str | None: ...
    @property
    def baud_rate(self) -> int: ...
    @property
    def parity(self) -> str: ...
    @property
    def stop_bits(self) -> int: ...
    @property
    def host(self) -> object: ...
    @property
    def tcp_port(self) -> int: ...
    @property
    def framing(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ModbusPlace:
    """Such a way, by Modbus TCP."""

    host: str
    tcp_port: int
    port: str | None = None
    baud_rate: int = 9600
    parity: str = "N"
    stop_bits: int = 1
    framing: str = "tcp"


class WriteCoilValue(WriteSingleCoilRequest):
    """FC05 with any value, not only 0xFF00 and 0x0000."""

    def __init__(self, address: int, value: int, dev_id: int) -> None:
        super().__init__(address=address, dev_id=dev_id)
        self.value = value

    def encode(self) -> bytes:
        return struct.pack(">HH", self.address, self.value)


def _check_length(data: bytes) -> None:
    """Raises ValueError. pymodbus believes an answer whose byte count is not that of its bytes."""
    if data[0] != len(data) - 1:
        raise ValueError(f"byte count {data[0]} for {len(data) - 1} bytes")


class _Coils(ReadCoilsResponse):
    def decode(self, data: bytes) -> None:
        _check_length(data)
        super().decode(data)


class _Registers(ReadHoldingRegistersResponse):
    def decode(self, data: bytes) -> None:
        _check_length(data)
        super().decode(data)


class _DiscreteInputs(ReadDiscreteInputsResponse):
    def decode(self, data: bytes) -> None:
        _check_length(data)
        super().decode(data)


class _Client(ModbusBaseSyncClient):
    """pymodbus's synchronous client over a wire."""

    def __init__(self, wire: Wire, framer: FramerType, silence_s: float) -> None:
        """`silence_s`: between two frames on a serial line."""
        limits = CommParams(comm_type=CommType.SERIAL, timeout_connect=_ANSWER_S)
        super().__init__(framer, 1, limits, None, None, None)
        self.register(_Coils)
        self.register(_DiscreteInputs)
        self.register(_Registers)
        self._wire = wire
        self._silence_s = silence_s
        self._try_until_s = 0.0
        self._received = 0
        self.deadline_s = 0.0
        """Of everything that is sent and received."""

    def connect(self) -> bool:
        return True

    def close(self) -> None:
        self._wire.close()

    def send(self, request: bytes, addr: tuple[str, int] | None = None) -> int:
        time.sleep(self._silence_s)
        # A late answer to an earlier request must not be taken for this one's.
        self._wire.forget()
        self._wire.send(request, self.deadline_s)
        self._try_until_s = min(self.deadline_s, time.monotonic() + _ANSWER_S)
        self._received = 0
        return len(request)

    def recv(self, size: int | None) -> bytes:
        data = self._wire.receive(self._try_until_s)
        self._received += len(data)
        if self._received > _MAX_ANSWER:
            raise DeviceRefused(f"{self._wire.name}: {self._received} bytes are no answer")
        return data


class ModbusDevice:
    """A device that is asked. Used by one thread."""

    def __init__(self, settings: ModbusLinkSettings, name: str) -> None:
        """`name` is the device for people; every error begins with it. Raises `DeviceNotFound`,
        `DeviceBusy`, `DeviceRefused`."""
        self._name = name
        self._client = _open(settings, name)

    def ask(self, request: ModbusPDU, deadline_s: float) -> ModbusPDU:
        """Raises `DeviceRefused` if the device says no, `DeviceTimeout`, `DeviceLost`."""
        self._client.deadline_s = deadline_s
        try:
            answer = self._client.execute(False, request)
        except DeviceError:
            raise
        except (ModbusException, ValueError, IndexError, struct.error) as error:
            raise DeviceTimeout(
                f"{self._name}: no answer in time ({error}); check its power, its wiring, "
                f"device_id and baud rate"
            ) from error
        if answer.isError():
            raise DeviceRefused(f"{self._name}: refuses {request}: {answer}")
        if answer.function_code != request.function_code:
            raise DeviceTimeout(f"{self._name}: {answer} answers another request")
        return answer

    def close(self) -> None:
        """Safe to call twice and after a loss."""
        self._client.close()


def _open(settings: ModbusLinkSettings, name: str) -> _Client:
    """Raises `DeviceNotFound`, `DeviceBusy`, `DeviceRefused`."""
    if settings.port is not None:
        wire = open_serial(
            name, settings.port, settings.baud_rate, settings.parity, settings.stop_bits
        )
        # Modbus over serial line 1.02, 2.5.1.1: 3.5 characters, 1.75 ms from 19200 baud on.
        return _Client(wire, FramerType.RTU, max(38.5 / settings.baud_rate, 0.00175))
    wire = open_tcp(name, str(settings.host), settings.tcp_port)
    is_rtu = settings.framing == "rtu"
    return _Client(wire, FramerType.RTU if is_rtu else FramerType.SOCKET, 0.0)
