"""What the journal's maintenance costs: the time a record takes to be durable while pictures are
removed and backups are made, against nothing of it, in turns; the WAL during a backup; sizes.

    python benchmarks/maintenance.py [--blocks 10] [--block-s 8] [--rate 20] [--rows 200000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from station_rig import Rig, start_vqi
from test_qms import acted, change, opened, result

from station.images import ImageFolder
from station.journal_client import JournalClient
from station.qms import DATABASE, IMAGES, Store
from station.record import Body, Verdict
from station.retention import CATALOGUE, Catalogue

_RULES = "[retention]\npass_preview = { days = 0.00001 }\npass_whole = { days = 0.00001 }\n"
_SHAPE = (1500, 1024)


class Line:
    """Plates at an even rate, and how long each waited for its commit."""

    def __init__(self, client: JournalClient, rate: float) -> None:
        self._client, self._period_s = client, 1 / rate
        rows, width = _SHAPE
        self._memory = os.memfd_create("plate")
        os.ftruncate(self._memory, rows * width)
        noise = np.random.default_rng(0).integers(0, 256, _SHAPE, np.uint8)
        self._pixels = noise
        self._wanted = {
            "width": width, "rows": rows, "band_rows": 192, "keep": ["evidence", "preview"],
        }  # fmt: skip
        self.number = 0

    def run(self, seconds: float) -> list[float]:
        """Times from submission to acknowledgement, in ms. A second later a plate may go."""
        times, due, end = [], time.monotonic(), time.monotonic() + seconds
        while time.monotonic() < end:
            due += self._period_s
            self.number += 1
            self._pixels[0, :8] = np.frombuffer(self.number.to_bytes(8, "little"), np.uint8)
            os.pwrite(self._memory, self._pixels.tobytes(), 0)
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            row = result(self.number, Verdict.PASS)
            answer = self._client.submit([row], self._wanted, self._memory)
            assert answer["ok"], answer
            times.append(1000 * (time.monotonic() - began))
        return times


@contextlib.contextmanager
def maintenance(rig: Rig, backups: Path):  # type: ignore[no-untyped-def]
    """Sweeps and backups, one after another, as the journal's own timers start them."""
    is_over = threading.Event()

    def sweep() -> None:
        with contextlib.closing(JournalClient(rig.runtime)) as client:
            client.connect(5.0)
            while not is_over.wait(0.5):
                client.ask("prune")

    def back_up() -> None:
        command = ["-P", "-m", "station.cli", "log", "backup", "--journal", str(rig.journal)]
        command += ["--to", str(backups), "--keep", "2"]
        while not is_over.is_set():
            process = subprocess.Popen(
                ["nice", "-n", "19", "ionice", "-c", "3", sys.executable, *command],
                stdout=subprocess.DEVNULL,
            )
            os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
            while process.poll() is None:
                if is_over.wait(0.1):
                    process.kill()

    threads = [threading.Thread(target=work) for work in (sweep, back_up)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def interference(folder: Path, blocks: int, block_s: float, rate: float) -> None:
    rig = Rig(folder, tables=_RULES)
    config = rig.write()
    process = start_vqi("serve", "journal", "--config", str(config))
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    try:
        with contextlib.closing(JournalClient(rig.runtime)) as client:
            client.connect(20.0)
            line = Line(client, rate)
            line.run(block_s)
            for _ in range(blocks):
                times[False].append(line.run(block_s))
                with maintenance(rig, folder / "backups"):
                    times[True].append(line.run(block_s))
            retention = client.status()["retention"]
    finally:
        process.terminate()
        process.wait(30.0)
    low, point, high = ratio(times[True], times[False], 99)
    for is_on, name in ((False, "off"), (True, "on")):
        pooled = np.concatenate(times[is_on])
        p50, p99 = np.percentile(pooled, [50, 99])
        print(f"{name:4} {len(pooled)} plates, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(f"p99 on/off {point:.3f}, 95 % [{low:.3f}, {high:.3f}], {blocks} blocks of {block_s} s")
    print(f"meanwhile {retention['tombstones']} tombstones, {retention['removed']} files removed")


def ratio(on: list[list[float]], off: list[list[float]], q: float) -> tuple[float, float, float]:
    """Of the pooled percentile, with a bootstrap over blocks."""
    draw = random.Random(0)

    def pooled(blocks: list[list[float]]) -> float:
        return float(np.percentile(np.concatenate(blocks), q))

    found = sorted(
        pooled(draw.choices(on, k=len(on))) / pooled(draw.choices(off, k=len(off)))
        for _ in range(1000)
    )
    return found[25], pooled(on) / pooled(off), found[975]


def long_log(folder: Path, plates: int) -> None:
    """How a backup of a long log goes beside commits, and what a catalogue of it takes."""
    images = ImageFolder(folder / IMAGES)
    written = images.write("preview", "jpg", [b"x"], (1, 1))
    images.make_durable([written])
    grid = "A" * 2000
    with Store(folder) as store:
        for first in range(1, plates, 500):
            rows: list[Body] = []
            for number in range(first, first + 500):
                body = written.body.model_dump()
                body |= {"path": f"ab/{number:064x}.jpg", "sha256": f"{number:064x}"}
                rows += [opened(number, number), acted(number)]
                rows.append(result(number, tile_grid=grid, tile_scores=grid, images=[body]))
            store.append(rows)
        size = (folder / DATABASE).stat().st_size
        print(f"log of {plates} plates: {size / 1e6:.0f} MB, {size / plates:.0f} bytes a plate")
        began = time.monotonic()
        with Catalogue(folder / DATABASE, folder / CATALOGUE):
            took_s = time.monotonic() - began
        held = (folder / CATALOGUE).stat().st_size
        print(f"catalogue from nothing: {took_s:.1f} s, {held / plates:.0f} bytes a picture")
        backup_beside_commits(folder, store)


def backup_beside_commits(folder: Path, store: Store) -> None:
    is_over, commits, largest = threading.Event(), 0, 0
    wal = folder / f"{DATABASE}-wal"
    slowest_s = 0.0

    def write() -> None:
        nonlocal commits, largest, slowest_s
        while not is_over.wait(0.01):
            began = time.monotonic()
            store.append([change(f"{commits}")])
            slowest_s = max(slowest_s, time.monotonic() - began)
            commits += 1
            largest = max(largest, wal.stat().st_size)

    writer = threading.Thread(target=write)
    writer.start()
    # The copied log names pictures that are not there: only its database is of interest here.
    from station import backup

    incoming = folder / "incoming"
    incoming.mkdir()
    began = time.monotonic()
    backup._copy_database(folder, incoming)
    took_s = time.monotonic() - began
    is_over.set()
    writer.join()
    print(
        f"copied in {took_s:.1f} s beside {commits} commits, the slowest {1000 * slowest_s:.0f} ms;"
        f" the WAL grew to {largest / 1e6:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--block-s", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--rows", type=int, default=200_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vqi-maintenance-", dir="."))
    try:
        long_log(folder / "long", given.rows)
        (folder / "line").mkdir()
        interference(folder / "line", given.blocks, given.block_s, given.rate)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
