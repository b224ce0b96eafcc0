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
from drivers.plc import NOBODY, PlcOutputs
from drivers.plc.cyclic import CyclicLink
from drivers.plc.register_map import INPUT_REGISTERS, output_registers, read_inputs
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
        self._modbus: ModbusDevice | None = self._connect()

    def _connect(self) -> ModbusDevice:
        place = ModbusPlace(str(self._settings.host), self._settings.tcp_port)
        return ModbusDevice(place, self.description)

    def _release(self) -> None:
        if self._modbus is not None:
            self._modbus.close()
            self._modbus = None

    def _say_nobody(self) -> None:
        if self._modbus is not None:
            self._write(NOBODY, self._modbus)

    def _cycle(self) -> None:
        if self._modbus is None:
            self._modbus = self._connect()
        self._write(self._read_outputs(), self._modbus)
        request = ReadHoldingRegistersRequest(
            address=self._settings.read_address,
            count=INPUT_REGISTERS,
            dev_id=self._settings.device_id,
        )
        answer = self._modbus.ask(request, time.monotonic() + _LIMIT_S)
        if len(answer.registers) != INPUT_REGISTERS:
            raise DeviceTimeout(f"{self.description}: {answer} is no answer to {request}")
        self._take_inputs(read_inputs(answer.registers))

    def _write(self, outputs: PlcOutputs, modbus: ModbusDevice) -> None:
        request = WriteMultipleRegistersRequest(
            address=self._settings.write_address,
            registers=output_registers(outputs),
            dev_id=self._settings.device_id,
        )
        modbus.ask(request, time.monotonic() + _LIMIT_S)
