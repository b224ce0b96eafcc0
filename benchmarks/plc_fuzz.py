"""Malformed Modbus frames against the lamp process of a station, until 100,000 have been sent.

    python benchmarks/plc_fuzz.py [--frames 100000] [--seed 1] [--json]

A real lamp process with a PLC server; a PLC that polls beside the flood; slow clients that hold
half a frame. Exit status 1 if a frame was obeyed, the PLC missed an answer, or the process did not
keep its memory.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from plc_fuzz import Fuzz
from ports import free_port
from pymodbus.client import ModbusTcpClient

from drivers.plc.register_map import INPUT_REGISTERS, OUTPUT_REGISTERS
from station.lamp import LampClient

_CONFIG = """
[station]
id = "fuzz-1"
recipe = "shipped:demo-lgp"
runtime_dir = "{folder}/run"
[camera]
type = "simulated"
[journal]
directory = "{folder}/journal"
[light]
device = {{ type = "simulated" }}
[plc]
type = "modbus_server"
host = "127.0.0.1"
tcp_port = {port}
"""
_WORDS = [0, 0x1234, 7, 9]
"""What the PLC wrote before, and must read afterwards."""


class Plc:
    """Polls every 20 ms on a connection of its own, and counts what it did not get."""

    def __init__(self, port: int) -> None:
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=5, retries=0)
        self._client.connect()
        self.polls = self.misses = self.wrong = 0
        self.slowest_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def write(self) -> None:
        assert not self._client.write_registers(0, _WORDS, device_id=1).isError()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._is_over.wait(0.02):
            began = time.monotonic()
            self.polls += 1
            try:
                said = self._client.read_input_registers(0, count=OUTPUT_REGISTERS, device_id=1)
                kept = self._client.read_holding_registers(0, count=INPUT_REGISTERS, device_id=1)
            except Exception:  # noqa: BLE001  whatever it was, the PLC did not get its answer
                self.misses += 1
                self._client.connect()
                continue
            self.wrong += said.isError() or kept.isError() or kept.registers != _WORDS
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def slow_clients(port: int, is_over: threading.Event, count: int = 3) -> None:
    """Half a frame, byte by byte, on and on."""
    peers: list[socket.socket] = []
    while not is_over.wait(0.1):
        while len(peers) < count:
            peers.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        for peer in list(peers):
            try:
                peer.sendall(b"\0")
            except OSError:
                peers.remove(peer)
                peer.close()
    for peer in peers:
        peer.close()


def figures_of(pid: int) -> tuple[int, int]:
    """Resident memory in KiB and open descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(frames: int, seed: int, folder: Path) -> dict[str, object]:
    port = free_port()
    config = folder / "station.toml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    command = [sys.executable, "-m", "station.cli", "serve", "lamp", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with LampClient(folder / "run") as lamp:
            lamp.connect(10.0)
            return _flood(process, lamp, port, frames, seed)
    finally:
        process.terminate()
        process.wait()


def _flood(
    process: subprocess.Popen[bytes], lamp: LampClient, port: int, frames: int, seed: int
) -> dict[str, object]:
    plc, fuzz, is_over = Plc(port), Fuzz(port, random.Random(seed)), threading.Event()
    plc.write()
    fuzz.run(1000)  # what is made once is made
    before = figures_of(process.pid)
    slow = threading.Thread(target=slow_clients, args=(port, is_over))
    plc.start()
    slow.start()
    began = time.monotonic()
    problem = ""
    try:
        fuzz.run(frames)
    except AssertionError as error:
        problem = str(error)
    seconds = time.monotonic() - began
    plc.stop()
    is_over.set()
    slow.join()
    time.sleep(0.5)
    after = figures_of(process.pid)
    status = lamp.status()["plc"]
    return {
        "malformed": fuzz.malformed,
        "refused": fuzz.refused,
        "closed": fuzz.closed,
        "obeyed": problem or 0,
        "kinds": dict(fuzz.kinds),
        "seconds": round(seconds, 1),
        "polls": plc.polls,
        "polls_missed": plc.misses,
        "polls_wrong": plc.wrong,
        "slowest_poll_ms": round(1000 * plc.slowest_s, 1),
        "rss_kib": [before[0], after[0]],
        "descriptors": [before[1], after[1]],
        "is_alive": process.poll() is None,
        "problem": status["problem"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments.frames, arguments.seed, Path(folder))
    if arguments.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:16} {value}")
    rss = found["rss_kib"]
    assert isinstance(rss, list)
    is_well = found["is_alive"] and not (found["obeyed"] or found["problem"])
    is_well = is_well and not (found["polls_missed"] or found["polls_wrong"])
    return 0 if is_well and rss[1] - rss[0] < 4096 else 1


if __name__ == "__main__":
    sys.exit(main())
