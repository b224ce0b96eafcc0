"""An I/O module over Modbus TCP: READY, OK and accept are its coils, which latch, and it writes
down every change.

`python panel.py LOG` prints its port and appends `monotonic_ns coil level` to LOG. One word a line
on stdin: `mute` (nothing is answered), `lie` (what is read back is the opposite), `unplug` (power
and connections are gone, coils are off), `plug`, `heal`; each is answered by a line once it is so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COILS = {"ready": 0, "result_valid": 1, "ok": 2, "ng": 3, "error": 4, "heartbeat": 5, "accept": 8}
PULSE_OFFSET, _PULSE_UNIT_S = 512, 0.1
PULSE_MS = 200
_COUNT = 16

Json = dict[str, Any]


# --- the recorder's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class On:
    """A time in which a wire was on; `until_ns` None: it still is."""

    since_ns: int
    until_ns: int | None


class Wires:
    """What the module's log says of each coil."""

    def __init__(self, log: Path) -> None:
        self._log, self._offset = log, 0
        self._names = {coil: name for name, coil in COILS.items()}
        self._since: dict[str, int] = {}
        self._over: dict[str, list[On]] = {name: [] for name in COILS}

    def read(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.decode().splitlines():
                at, coil, level = map(int, line.split(" "))
                if coil in self._names:
                    self._take(at, self._names[coil], bool(level))

    def on(self, name: str, since_ns: int) -> list[On]:
        """Times at or after a moment in which a wire was on."""
        times = list(self._over[name])
        if name in self._since:
            times.append(On(self._since[name], None))
        return [time for time in times if time.until_ns is None or time.until_ns >= since_ns]

    def _take(self, at_ns: int, name: str, is_on: bool) -> None:
        if is_on:
            self._since.setdefault(name, at_ns)
        elif name in self._since:
            self._over[name].append(On(self._since.pop(name), at_ns))


class Panel:
    """The module's process, seen from the campaign."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "panel.log"
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def tell(self, word: str) -> None:
        """One of the words above; back once it is so."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the panel's process is gone")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def tables(self, distance_mm: float | None) -> str:
        """Of a station's configuration; without an accept point it has no accept output."""
        where = f'type = "modbus", host = "127.0.0.1", tcp_port = {self.port}'
        names = [name for name in COILS if name != "accept"]
        outputs = ", ".join(f"{name} = {COILS[name]}" for name in names)
        pulse = f"pulse_offset = {PULSE_OFFSET}, pulse_unit_ms = {int(_PULSE_UNIT_S * 1000)}"
        plc = (
            '[plc]\ntype = "io"\ncycle_ms = 100\n'
            f"device = {{ {where}, outputs = {{ {outputs} }} }}\n"
        )
        if distance_mm is None:
            return plc
        return plc + (
            f"[accept]\ndistance_mm = {distance_mm}\npulse_ms = {PULSE_MS}\n"
            f"device = {{ {where}, outputs = {{ accept = {COILS['accept']} }}, {pulse} }}\n"
        )


# --- the module itself ----------------------------------------------------------------------------


class _Module:
    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._levels = [False] * _COUNT
        self._off_at: dict[int, float] = {}
        self._lock = threading.Lock()
        self.how = "heal"
        self.connections: set[socket.socket] = set()

    def set(self, coil: int, is_on: bool, for_s: float | None = None) -> None:
        with self._lock:
            self._end_pulses()
            self._off_at.pop(coil, None)
            if for_s is not None:
                self._off_at[coil] = time.monotonic() + for_s
            self._switch(coil, is_on)

    def end_pulses(self) -> None:
        with self._lock:
            self._end_pulses()

    def _end_pulses(self) -> None:
        """A module has a clock of its own: how late this process is counts for nothing."""
        for coil, at in list(self._off_at.items()):
            if time.monotonic() >= at:
                del self._off_at[coil]
                self._switch(coil, False, int(at * 1e9))

    def lose_power(self) -> None:
        for coil in range(_COUNT):
            self.set(coil, False)
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def read(self, first: int, count: int) -> bytes:
        levels = (self._levels + [False] * 2048)[first : first + count]
        if self.how == "lie":
            levels = [not level for level in levels]
        bits = sum(level << place for place, level in enumerate(levels))
        return bits.to_bytes((count + 7) // 8, "little")

    def _switch(self, coil: int, is_on: bool, at_ns: int | None = None) -> None:
        if 0 <= coil < _COUNT and self._levels[coil] != is_on:
            self._levels[coil] = is_on
            at_ns = at_ns or time.monotonic_ns()
            os.write(self._log, f"{at_ns} {coil} {int(is_on)}\n".encode())

    def answer(self, pdu: bytes) -> bytes:
        """One request of the Modbus application protocol."""
        function = pdu[0]
        if function in (1, 2):
            first, count = struct.unpack(">HH", pdu[1:5])
            bits = self.read(first if function == 1 else 2000, count)
            return bytes([function, len(bits)]) + bits
        if function == 5:
            address, value = struct.unpack(">HH", pdu[1:5])
            if address >= PULSE_OFFSET:
                self.set(address - PULSE_OFFSET, True, value * _PULSE_UNIT_S)
            else:
                self.set(address, value == 0xFF00)
            return pdu[:5]
        if function == 15:
            first, count = struct.unpack(">HH", pdu[1:5])
            bits_ = int.from_bytes(pdu[6:], "little")
            for place in range(count):
                self.set(first + place, bool(bits_ >> place & 1))
            return pdu[:5]
        return bytes([function | 0x80, 1])


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        module: _Module = self.server.module  # type: ignore[attr-defined]
        if module.how == "unplug":
            return
        module.connections.add(self.request)
        try:
            while (head := self._exactly(7)) is not None:
                transaction, protocol, length, unit = struct.unpack(">HHHB", head)
                pdu = self._exactly(length - 1)
                if pdu is None or module.how == "unplug":
                    return
                if module.how == "mute":
                    continue
                answer = module.answer(pdu)
                head = struct.pack(">HHHB", transaction, protocol, len(answer) + 1, unit)
                self.request.sendall(head + answer)
        except OSError:
            return
        finally:
            module.connections.discard(self.request)

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                return None
            data += part
        return data


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    module = _Module(Path(sys.argv[1]))
    server = _Server(("127.0.0.1", 0), _Handler)
    server.module = module  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=_tick, args=(module,), daemon=True).start()
    print(server.server_address[1], flush=True)
    for line in sys.stdin:
        module.how = line.strip()
        if module.how == "unplug":
            module.lose_power()
        print(module.how, flush=True)


def _tick(module: _Module) -> None:
    while True:
        module.end_pulses()
        time.sleep(0.005)


if __name__ == "__main__":
    main()
