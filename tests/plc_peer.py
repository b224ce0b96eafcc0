"""A PLC that polls the station over Modbus TCP, acknowledges each result, and writes down what it
saw and when."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

from pymodbus.client import ModbusTcpClient

from drivers.plc import PlcInputs, PlcOutputs
from drivers.plc.register_map import OUTPUT_REGISTERS, input_registers, read_outputs


@dataclass
class PollingPlc:
    """Polls on a thread of its own from entering to leaving. `trace` holds (CLOCK_MONOTONIC ns,
    what it read or None without an answer, its ACK) of each poll."""

    port: int
    period_s: float = 0.01
    acknowledges: bool = True
    ack_after_s: float = 0.0
    """It takes so long to take in a result."""
    trace: list[tuple[int, PlcOutputs | None, bool]] = field(default_factory=list)
    results: list[PlcOutputs] = field(default_factory=list)
    """Each result as it was when RESULT_VALID went on."""
    ack_hold: bool = False
    is_heard: bool = False
    """The station took what it wrote."""

    def __enter__(self) -> Self:
        self._client = ModbusTcpClient("127.0.0.1", port=self.port, timeout=0.5, retries=0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plc")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._client.close()

    @property
    def last(self) -> PlcOutputs | None:
        return self.trace[-1][1] if self.trace else None

    def _run(self) -> None:
        ack, was_valid, written = False, False, PlcInputs()
        valid_since = 0.0
        while not self._is_over.wait(self.period_s):
            said = self._read()
            is_valid = said is not None and said.result_valid
            if said is not None and is_valid and not was_valid:
                self.results.append(said)
                valid_since = time.monotonic()
            was_valid = is_valid
            is_taken = time.monotonic() - valid_since >= self.ack_after_s
            ack = is_valid and self.acknowledges and is_taken
            self.trace.append((time.monotonic_ns(), said, ack))
            inputs = PlcInputs(ack=ack, ack_hold=self.ack_hold, heartbeat=len(self.trace) % 2**16)
            if said is not None and inputs != written and self._write(inputs):
                written, self.is_heard = inputs, True

    def _read(self) -> PlcOutputs | None:
        try:
            if not self._client.connect():
                return None
            answer = self._client.read_input_registers(0, count=OUTPUT_REGISTERS, device_id=1)
            return None if answer.isError() else read_outputs(answer.registers)
        except Exception:  # noqa: BLE001  whatever it was, the PLC got no answer
            self._client.close()
            return None

    def _write(self, inputs: PlcInputs) -> bool:
        try:
            answer = self._client.write_registers(0, input_registers(inputs), device_id=1)
            return not answer.isError()
        except Exception:  # noqa: BLE001
            self._client.close()
            return False
