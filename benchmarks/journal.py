"""What the journal takes and gives: commits with pictures, of single plates and of such that wait
together, through the journal process itself; size per plate at 25 and 400 tiles; verify; the
back-fill of a log that a program without derived tables wrote.

    python benchmarks/journal.py [--seconds 10] [--plates 20000] [--journal DIR]

`--journal` names a journal of benchmarks/make_journal.py for verify; else one of --plates is made.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from make_journal import make
from station_rig import Rig, start_vqi
from test_qms import acted, opened, result

from station.journal_client import JournalClient
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, Store
from station.record import Verdict

_SHAPE = (96, 256)
"""Of a plate: its pictures are small, so that flushes are measured and not encoding."""
_GROUP = 32
"""Plates that wait at once; the journal takes no more than 64 submissions."""


def commits(folder: Path, seconds: float, group: int) -> None:
    """Plates a second, each an opened row, a result with two pictures, an actuation row."""
    folder.mkdir()
    rig = Rig(folder)
    process = start_vqi("serve", "journal", "--config", str(rig.write()))
    try:
        with contextlib.closing(JournalClient(rig.runtime)) as client:
            client.connect(20.0)
            number, began = 0, time.monotonic()
            while time.monotonic() - began < seconds:
                _submit(client, range(number + 1, number + 1 + group))
                number += group
            rate = number / (time.monotonic() - began)
            status = client.status()
    finally:
        process.terminate()
        process.wait()
    print(
        f"commit, {group} plates waiting, {status['pictures'] / number:.0f} pictures each of "
        f"{_SHAPE[1]} x {_SHAPE[0]} px: {rate:.0f} plates/s, {status['commits'] / number:.2f} "
        "commits a plate"
    )


def _submit(client: JournalClient, numbers: range) -> None:
    memories = []
    for number in numbers:
        memory = os.memfd_create("plate")
        pixels = np.random.default_rng(number).integers(0, 256, _SHAPE, np.uint8)
        os.write(memory, pixels.tobytes())
        wanted = {
            "width": _SHAPE[1], "rows": _SHAPE[0], "band_rows": 96, "keep": ["evidence", "preview"]
        }  # fmt: skip
        rows = [opened(number, number), result(number, Verdict.PASS)]
        client.send_submit(rows, wanted, memory)
        memories.append(memory)
    left = len(numbers)
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        left -= len([answer for answer in client.receive_ready() if answer["ok"]])
        if left:
            time.sleep(0.0005)
    assert not left, "the journal did not answer"
    client.submit([acted(number) for number in numbers])
    for memory in memories:
        os.close(memory)


def sizes(folder: Path, plates: int, tiles: int) -> None:
    """Bytes of each table and index for a plate, by SQLite's own count of pages."""
    make(folder, plates, seed=1, tiles=tiles)
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as log:
        count = log.execute("SELECT count(*) FROM plate").fetchone()[0]
        query = "SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC"
        found = log.execute(query).fetchall()
    total = sum(size for _, size in found) / count
    parts = ", ".join(f"{name} {size / count:.0f}" for name, size in found if size / count >= 1)
    print(f"size at {tiles} tiles: {total:.0f} B a plate ({parts})")


def verified(directory: Path) -> None:
    with Reader(directory) as reader:
        began = time.monotonic()
        found = verify(reader, with_images=False)
        took_s = time.monotonic() - began
    assert not found.findings, found.findings[:5]
    print(
        f"verify without pictures: {found.results} plates, {found.rows} rows in {took_s:.1f} s: "
        f"{1e6 * took_s / found.results:.1f} s for 1e6 plates, "
        f"{1e6 * took_s / found.rows:.1f} s for 1e6 rows"
    )


def back_filled(folder: Path, directory: Path) -> None:
    """Of a copy whose derived tables and steps are taken away."""
    shutil.copytree(directory, folder)
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as log:
        made = "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'table')"
        for kind, name in log.execute(f"{made} AND name <> 'row' ORDER BY type DESC").fetchall():
            log.execute(f"DROP {kind} {name}")
        log.commit()
    began = time.monotonic()
    with Store(folder) as store:
        rows = store.lag
        while store.lag:
            store.catch_up()
    took_s = time.monotonic() - began
    print(f"back-fill: {rows} rows in {took_s:.1f} s, {1e6 * took_s / rows:.1f} s for 1e6 rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--plates", type=int, default=20_000)
    parser.add_argument("--journal", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for group in (1, _GROUP):
            commits(folder / f"commits-{group}", given.seconds, group)
        for tiles in (25, 400):
            sizes(folder / f"tiles-{tiles}", given.plates, tiles)
        directory = given.journal or folder / "tiles-25"
        verified(directory)
        back_filled(folder / "old", directory)


if __name__ == "__main__":
    main()
