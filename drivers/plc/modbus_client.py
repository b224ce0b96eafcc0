"""The station as Modbus TCP client: it writes its words into holding registers of the PLC and reads
the PLC's words from others, in both cases those of the register map.

A PLC keeps what was written last: it must watch the heartbeat.
"""

from __future__ import annotations

import time

from drivers.errors import DeviceTimeout
from drivers.modbus import (
    ModbusDevice,
    ModbusPlace,
    ReadHoldingRegistersRequest,
    WriteMultipleRegistersRequest,
)
from drivers.plc import PlcInputs, PlcOutputs
from drivers.plc.cyclic import CyclicLink
from drivers.plc.register_map import input_count, output_registers, read_inputs
from drivers.plc.settings import ModbusClientSettings

_LIMIT_S = 0.5
"""Of one question."""


class ModbusClientLink(CyclicLink):
    """Connects when opened, and again whenever the connection is lost."""

    keeps_last_word = True

    def __init__(self, settings: ModbusClientSettings) -> None:
        super().__init__(settings.cycle_ms / 1000)
        self._settings = settings
        self.description = f"PLC at {settings.host} port {settings.tcp_port}, Modbus TCP"
        self._modbus: ModbusDevice | None = None
        self._open()

    @property
    def _is_open(self) -> bool:
        return self._modbus is not None

    def _open(self) -> None:
        place = ModbusPlace(str(self._settings.host), self._settings.tcp_port)
        self._modbus = ModbusDevice(place, self.description)

    def _release(self) -> None:
        if self._modbus is not None:
            self._modbus.close()
            self._modbus = None

    def _hear(self) -> PlcInputs:
        assert self._modbus is not None
        request = ReadHoldingRegistersRequest(
            address=self._settings.read_address,
            count=input_count(self._settings.has_serials),
            dev_id=self._settings.device_id,
        )
        answer = self._modbus.ask(request, time.monotonic() + _LIMIT_S)
        if len(answer.registers) != request.count:
            raise DeviceTimeout(f"{self.description}: {answer} is no answer to {request}")
        return read_inputs(answer.registers)

    def _tell(self, said: PlcOutputs) -> None:
        assert self._modbus is not None
        request = WriteMultipleRegistersRequest(
            address=self._settings.write_address,
            registers=output_registers(said),
            dev_id=self._settings.device_id,
        )
        self._modbus.ask(request, time.monotonic() + _LIMIT_S)
