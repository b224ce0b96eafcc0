"""A Modbus device at the far end of a real socket or pty: pymodbus' own simulator server, with
coils that can be switched on for a time, as relay boards do.

As a process of its own (`python tests/modbus_peer.py`) it prints its port, and at the end of its
input what was written to its coils.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from ports import free_port
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

PULSE_OFFSET = 0x0200
COILS = 16


class ModbusPeer:
    """`coils`, `inputs` and `registers` are its memory; `history` what was written to coils."""

    def __init__(self, serial_port: Path | None = None) -> None:
        self.coils = [False] * COILS
        self.inputs = [False] * COILS
        self.registers = [0] * 256
        self.history: list[tuple[int, int, bool]] = []
        """CLOCK_MONOTONIC ns, coil, level."""
        self.stuck: set[int] = set()
        """Coils that never switch."""
        self.delay_s = 0.0
        """It takes so long to answer."""
        self._ends: dict[int, float] = {}
        self.frames: list[bytes] = []
        """Requests as they came in."""
        self._serial_port = serial_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peer")
        self._thread.start()
        self.port = 0
        self.start()

    def start(self) -> None:
        if self._serial_port is None and not self.port:
            self.port = free_port()
        self._server: Any = self._run(self._serve())

    def stop(self) -> None:
        """Gone, with all its connections."""
        self._run(self._shut_down())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lit(self) -> list[bool]:
        now = time.monotonic()
        for coil, end in list(self._ends.items()):
            if end <= now:
                del self._ends[coil]
                self._set(coil, False)
        return list(self.coils)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _shut_down(self) -> None:
        """With connections that are being accepted; what is closed needs turns of the loop."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.shutdown()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _serve(self) -> Any:
        bits = [SimData(0, values=[False] * 1024, datatype=DataType.BITS)]
        words = [SimData(0, count=256, values=0, datatype=DataType.REGISTERS)]
        device = SimDevice(id=1, simdata=(bits, bits, words, words), action=self._act)
        options: dict[str, Any] = {"context": device, "trace_packet": self._trace}
        if self._serial_port is None:
            server: Any = ModbusTcpServer(address=("127.0.0.1", self.port), **options)
        else:
            server = ModbusSerialServer(port=str(self._serial_port), **options)
        await server.serve_forever(background=True)
        return server

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(5)

    def _trace(self, is_sending: bool, data: bytes) -> bytes:
        if not is_sending:
            self.frames.append(data)
        return data

    async def _act(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[Any] | None,
    ) -> ExcCodes | None:
        await asyncio.sleep(self.delay_s)
        if values is not None and function in (5, 15):
            self._write_coils(address, values)
        elif values is not None:
            self.registers[address : address + len(values)] = values
        bits = {1: self.lit(), 2: self.inputs}.get(function)
        if bits is not None:
            word = sum(is_on << place for place, is_on in enumerate(bits))
            registers[0] = word
        elif function in (3, 4):
            registers[: len(self.registers)] = self.registers
        return None

    def _write_coils(self, address: int, values: list[Any]) -> None:
        for place, value in enumerate(values):
            coil = (address + place) % PULSE_OFFSET
            self._ends.pop(coil, None)
            if address >= PULSE_OFFSET:
                frame = self.frames[-1]
                at = 10 if self._serial_port is None else 4
                self._ends[coil] = time.monotonic() + int.from_bytes(frame[at : at + 2]) / 10
                self._set(coil, True)
            else:
                self._set(coil, bool(value))

    def _set(self, coil: int, is_on: bool) -> None:
        self.history.append((time.monotonic_ns(), coil, is_on))
        self.coils[coil] = is_on and coil not in self.stuck


def main() -> None:
    with ModbusPeer() as peer:
        print(peer.port, flush=True)
        sys.stdin.read()
        print(json.dumps(peer.history))


if __name__ == "__main__":
    main()
