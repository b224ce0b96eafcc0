"""Stack light behind Modbus relays, RTU or TCP, through pymodbus.

| board | on, off | pulse | read-back |
|---|---|---|---|
| coils (Waveshare class) | FC05 0xFF00, 0x0000 | FC05 to 0x0200 + coil, in 0.1 s | FC01 |
| registers (R421A08 class) | FC06 0x0100, 0x0200 | FC06 0x0600 + s | FC03: 1 is on |

An FC05 answer equals its request, so an echoing line looks like success: only what was read back
confirms. The relays latch; with `pass_pulse_s` the board itself ends a pass.
"""

from __future__ import annotations

import logging
import struct
import time

from drivers.errors import DeviceError, DeviceRefused, DeviceTimeout, DriverMissing
from drivers.stacklight import LightState
from drivers.stacklight.settings import Element, LightPattern, ModbusRelaySettings
from drivers.stacklight.switched import Modes, SwitchedLight
from drivers.stacklight.wire import Wire, open_serial, open_tcp

try:
    from pymodbus.client.base import ModbusBaseSyncClient
    from pymodbus.exceptions import ModbusException
    from pymodbus.framer import FramerType
    from pymodbus.pdu import ModbusPDU
    from pymodbus.pdu.bit_message import (
        ReadCoilsRequest,
        ReadCoilsResponse,
        WriteSingleCoilRequest,
    )
    from pymodbus.pdu.register_message import (
        ReadHoldingRegistersRequest,
        ReadHoldingRegistersResponse,
        WriteSingleRegisterRequest,
    )
    from pymodbus.transport import CommParams, CommType
except ImportError as _error:  # pragma: no cover - pymodbus is a base dependency
    raise DriverMissing("modbus_relay needs pymodbus: pip install pymodbus") from _error

# Each of its complaints becomes an error of ours, which says what to do.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_ANSWER_S = 0.15
"""A board answers within 20 ms; a request without an answer is sent once more."""
_MAX_ANSWER = 512
"""Twice the longest frame. pymodbus would search any number of bytes for one, and take its time."""
_PULSE = 0x0200
_REGISTER_ON, _REGISTER_OFF, _REGISTER_PULSE = 0x0100, 0x0200, 0x0600


class _WriteCoilValue(WriteSingleCoilRequest):
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


class _Client(ModbusBaseSyncClient):
    """pymodbus's synchronous client over a wire with deadlines; its own clients wait by wall time,
    which may step."""

    def __init__(self, wire: Wire, framer: FramerType, silence_s: float) -> None:
        """`silence_s`: between two frames on a serial line."""
        limits = CommParams(comm_type=CommType.SERIAL, timeout_connect=_ANSWER_S)
        super().__init__(framer, 1, limits, None, None, None)
        self.register(_Coils)
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


class ModbusRelay(SwitchedLight):
    """One request an element at each `show`, those that go dark first, then one that reads all."""

    _has_rivals = True

    def __init__(
        self, settings: ModbusRelaySettings, patterns: dict[LightState, LightPattern]
    ) -> None:
        self._settings = settings
        self._first = min(settings.addresses.values())
        self._count = max(settings.addresses.values()) - self._first + 1
        self.can_confirm = settings.can_confirm
        place = settings.port or f"{settings.host} port {settings.tcp_port}"
        self.description = f"stack light on Modbus relays at {place}, device {settings.device_id}"
        self._client = _open(settings, self.description)
        super().__init__(patterns, settings.addresses, settings.addresses, settings.blink_hz)

    def _switch(self, modes: Modes, deadline_s: float) -> None:
        lit = [element for element, mode in modes.items() if mode is not None]
        for element in [*(e for e in modes if e not in lit), *lit]:
            request = self._write_request(element, element in lit)
            answer = self._ask(request, deadline_s)
            if getattr(answer, "address", None) != request.address:
                raise DeviceTimeout(f"{self.description}: {answer} answers another request")

    def _read(self, deadline_s: float) -> Modes | None:
        if not self.can_confirm:
            return None
        request = self._read_request()
        answer = self._ask(request, deadline_s)
        values = answer.bits if self._settings.command == "coil" else answer.registers
        wanted = -(-self._count // 8) * 8 if self._settings.command == "coil" else self._count
        if len(values) != wanted or not set(values) <= {0, 1}:
            raise DeviceTimeout(f"{self.description}: {answer} is no answer to {request}")
        return {
            element: "on" if values[address - self._first] else None
            for element, address in self._settings.addresses.items()
        }

    def _lasting(self) -> Modes:
        return {e: mode for e, mode in self._modes.items() if not self._is_pulsed(e)}

    def _release(self) -> None:
        self._client.close()

    def _is_pulsed(self, element: Element) -> bool:
        is_steady = self._pattern.get(element) == "on"
        return self._settings.lapses_by_itself and self._state.is_pass and is_steady

    def _write_request(self, element: Element, is_lit: bool) -> ModbusPDU:
        address, device_id = self._settings.addresses[element], self._settings.device_id
        pulse_s = self._settings.pass_pulse_s if is_lit and self._is_pulsed(element) else None
        if self._settings.command == "coil":
            if pulse_s is not None:
                return _WriteCoilValue(_PULSE | address, round(pulse_s * 10), device_id)
            return WriteSingleCoilRequest(address=address, bits=[is_lit], dev_id=device_id)
        value = _REGISTER_ON if is_lit else _REGISTER_OFF
        if pulse_s is not None:
            value = _REGISTER_PULSE | round(pulse_s)
        return WriteSingleRegisterRequest(address=address, registers=[value], dev_id=device_id)

    def _read_request(self) -> ModbusPDU:
        is_coil = self._settings.command == "coil"
        request = ReadCoilsRequest if is_coil else ReadHoldingRegistersRequest
        return request(address=self._first, count=self._count, dev_id=self._settings.device_id)

    def _ask(self, request: ModbusPDU, deadline_s: float) -> ModbusPDU:
        """Raises `DeviceRefused` if the board says no, `DeviceTimeout`, `DeviceLost`."""
        self._client.deadline_s = deadline_s
        try:
            answer = self._client.execute(False, request)
        except DeviceError:
            raise
        except (ModbusException, ValueError, IndexError, struct.error) as error:
            raise DeviceTimeout(
                f"{self.description}: no answer in time ({error}); check its power, its wiring, "
                f"device_id and baud rate"
            ) from error
        if answer.isError():
            raise DeviceRefused(f"{self.description}: refuses {request}: {answer}")
        if answer.function_code != request.function_code:
            raise DeviceTimeout(f"{self.description}: {answer} answers another request")
        return answer


def _open(settings: ModbusRelaySettings, name: str) -> _Client:
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
