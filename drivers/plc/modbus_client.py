"""The station as Modbus TCP client: it writes its words into holding registers of the PLC and reads
the PLC's words from others, in both cases those of the register map.

A PLC keeps what was written last: it must watch the heartbeat.
"""

from __future__ import annotations

import contextlib
import threading
import time

from drivers.errors import DeviceError, DeviceTimeout
from drivers.modbus import (
    ModbusDevice,
    ModbusPlace,
    ReadHoldingRegistersRequest,
    WriteMultipleRegistersRequest,
)
from drivers.plc import NOBODY, PlcLink, PlcOutputs, ReadOutputs, TakeInputs
from drivers.plc.register_map import INPUT_REGISTERS, output_registers, read_inputs
from drivers.plc.settings import ModbusClientSettings

_RETRY_S = 0.5
_LIMIT_S = 0.5
"""Of one question."""


class ModbusClientLink(PlcLink):
    """Connects when opened, and again whenever the connection is lost."""

    keeps_last_word = True

    def __init__(self, settings: ModbusClientSettings) -> None:
        self._settings = settings
        self.description = f"PLC at {settings.host} port {settings.tcp_port}, Modbus TCP"
        self._modbus: ModbusDevice | None = self._connect()
        self._problem = ""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str:
        return self._problem

    def start(self, read_outputs: ReadOutputs, take_inputs: TakeInputs) -> None:
        self._read_outputs, self._take_inputs = read_outputs, take_inputs
        self._thread = threading.Thread(target=self._run, name="plc", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
            self._thread = None
        with contextlib.suppress(DeviceError):
            if self._modbus is not None:
                self._write(NOBODY, self._modbus)
        self._disconnect()

    def _connect(self) -> ModbusDevice:
        place = ModbusPlace(str(self._settings.host), self._settings.tcp_port)
        return ModbusDevice(place, self.description)

    def _disconnect(self) -> None:
        if self._modbus is not None:
            self._modbus.close()
            self._modbus = None

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            try:
                self._cycle()
            except DeviceError as error:
                # What comes after a missing answer may be that answer: begin anew.
                self._disconnect()
                self._problem, pause_s = str(error), _RETRY_S
            else:
                self._problem, pause_s = "", self._settings.cycle_ms / 1000

    def _cycle(self) -> None:
        """Raises `DeviceError`."""
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
