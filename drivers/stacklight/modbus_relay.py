"""Stack light behind Modbus relays, RTU or TCP, through pymodbus.

| board | on, off | pulse | read-back |
|---|---|---|---|
| coils (Waveshare class) | FC05 0xFF00, 0x0000 | FC05 to 0x0200 + coil, in 0.1 s | FC01 |
| registers (R421A08 class) | FC06 0x0100, 0x0200 | FC06 0x0600 + s | FC03: 1 is on |

An FC05 answer equals its request, so an echoing line looks like success: only what was read back
confirms. The relays latch; with `pass_pulse_s` the board itself ends a pass.
"""

from __future__ import annotations

from drivers.errors import DeviceTimeout
from drivers.modbus import (
    ModbusDevice,
    ModbusPDU,
    ReadCoilsRequest,
    ReadHoldingRegistersRequest,
    WriteCoilValue,
    WriteSingleCoilRequest,
    WriteSingleRegisterRequest,
)
from drivers.stacklight import LightState
from drivers.stacklight.settings import (
    PULSE_COIL,
    Element,
    LightPattern,
    ModbusRelaySettings,
)
from drivers.stacklight.switched import Modes, SwitchedLight

_REGISTER_ON, _REGISTER_OFF, _REGISTER_PULSE = 0x0100, 0x0200, 0x0600


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
        self._modbus = ModbusDevice(settings, self.description)
        super().__init__(patterns, settings.addresses, settings.addresses, settings.blink_hz)

    def _switch(self, modes: Modes, deadline_s: float) -> None:
        lit = [element for element, mode in modes.items() if mode is not None]
        for element in [*(e for e in modes if e not in lit), *lit]:
            request = self._write_request(element, element in lit)
            answer = self._modbus.ask(request, deadline_s)
            if getattr(answer, "address", None) != request.address:
                raise DeviceTimeout(f"{self.description}: {answer} answers another request")

    def _read(self, deadline_s: float) -> Modes | None:
        if not self.can_confirm:
            return None
        request = self._read_request()
        answer = self._modbus.ask(request, deadline_s)
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
        self._modbus.close()

    def _is_pulsed(self, element: Element) -> bool:
        is_steady = self._pattern.get(element) == "on"
        return self._settings.lapses_by_itself and self._state.is_pass and is_steady

    def _write_request(self, element: Element, is_lit: bool) -> ModbusPDU:
        address, device_id = self._settings.addresses[element], self._settings.device_id
        pulse_s = self._settings.pass_pulse_s if is_lit and self._is_pulsed(element) else None
        if self._settings.command == "coil":
            if pulse_s is not None:
                return WriteCoilValue(PULSE_COIL | address, round(pulse_s * 10), device_id)
            return WriteSingleCoilRequest(address=address, bits=[is_lit], dev_id=device_id)
        value = _REGISTER_ON if is_lit else _REGISTER_OFF
        if pulse_s is not None:
            value = _REGISTER_PULSE | round(pulse_s)
        return WriteSingleRegisterRequest(address=address, registers=[value], dev_id=device_id)

    def _read_request(self) -> ModbusPDU:
        is_coil = self._settings.command == "coil"
        request = ReadCoilsRequest if is_coil else ReadHoldingRegistersRequest
        return request(address=self._first, count=self._count, dev_id=self._settings.device_id)
