"""The station as Modbus TCP client: it writes its words into holding registers of the PLC and reads
the PLC's words from others, in both cases those of the register map.

A PLC keeps what was written last: it must watch the heartbeat.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any, Protocol

from drivers.errors import DeviceNotFound, DriverMissing
from drivers.plc import NOBODY, PlcLink, PlcOutputs, ReadOutputs, TakeInputs
from drivers.plc.register_map import INPUT_REGISTERS, output_registers, read_inputs
from drivers.plc.settings import ModbusClientSettings

try:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.exceptions import ModbusException
except ImportError as _error:  # pragma: no cover - pymodbus is a base dependency
    raise DriverMissing("modbus needs pymodbus: pip install pymodbus") from _error

_RETRY_S = 0.5


class _Client(Protocol):
    """What is used of pymodbus' synchronous client."""

    def connect(self) -> bool: ...
    def close(self) -> None: ...
    def read_holding_registers(self, address: int, *, count: int, device_id: int) -> Any: ...
    def write_registers(self, address: int, values: list[int], *, device_id: int) -> Any: ...


# What the PLC does wrong is said by this driver, once, not by the library at each try.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)


class ModbusClientLink(PlcLink):
    """Connects when opened, and again whenever the connection is lost."""

    keeps_last_word = True

    def __init__(self, settings: ModbusClientSettings) -> None:
        self._settings = settings
        self.description = f"PLC at {settings.host}:{settings.port}, Modbus TCP"
        self._client = _client(settings)
        if not self._client.connect():
            raise DeviceNotFound(f"no {self.description}; check its power, cable and address")
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
            with contextlib.suppress(ModbusException, OSError, ValueError):
                self._write(NOBODY)
        self._client.close()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            try:
                self._cycle()
            except (ModbusException, OSError, ValueError) as error:
                # What comes after a missing answer may be that answer: begin anew.
                self._client.close()
                self._problem, pause_s = f"{self.description}: {_words(error)}", _RETRY_S
            else:
                self._problem, pause_s = "", self._settings.cycle_ms / 1000

    def _cycle(self) -> None:
        if not self._client.connect():
            raise OSError("does not answer; check its power and cable")
        self._write(self._read_outputs())
        answer = self._client.read_holding_registers(
            self._settings.read_address, count=INPUT_REGISTERS, device_id=self._settings.device_id
        )
        _check(answer)
        self._take_inputs(read_inputs(answer.registers))

    def _write(self, outputs: PlcOutputs) -> None:
        answer = self._client.write_registers(
            self._settings.write_address,
            output_registers(outputs),
            device_id=self._settings.device_id,
        )
        _check(answer)


def _client(settings: ModbusClientSettings) -> _Client:
    return ModbusTcpClient(settings.host, port=settings.port, timeout=settings.timeout_s, retries=0)


def _check(answer: Any) -> None:
    """Raises ValueError."""
    if answer.isError():
        raise ValueError(f"refused: {answer}")


def _words(error: Exception) -> str:
    return str(error).replace("\n", " ")
