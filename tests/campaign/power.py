"""Power cuts below a journal process that takes rows and pictures, on ext4, with a WAL in reuse.

Only what was acknowledged before the disk was cut counts. A cut is the `EXT4_IOC_SHUTDOWN` ioctl
without a flush of the file system's log: what no sync has brought to the disk is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from station_rig import Rig

from campaign.disk import Disk
from campaign.life import Life
from campaign.observer import LogWatch, Row
from campaign.submitter import Submitter
from campaign.zygote import Zygote

_DISK_MB, _INODES = 768, 120_000
_WARM_BYTES = 4_000_000
"""Of the WAL once it has been checkpointed: it is written over from here on."""
_LOOK_BACK_ROWS = 400


@dataclass
class Cuts:
    """What a series of cuts came to."""

    cuts: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    worst_recovery_s: float = 0.0
    wal_bytes: int = 0
    cold: int = 0
    """Cuts before the WAL was written over for the first time."""

    def of(self, finding: str) -> list[str]:
        """By its name in the campaign's table."""
        return {"lost": self.lost, "dangling": self.dangling}.get(finding, [])


class JournalRig:
    """A journal process on a disk that can be cut."""

    def __init__(self, folder: Path, seed: int, broken: str | None = None) -> None:
        self.disk = Disk(folder / "disk.img", folder / "disk", _DISK_MB, _INODES)
        (folder / "files").mkdir()
        self.rig = Rig(folder / "files", journal_folder=self.disk.folder / "journal")
        self.config = self.rig.write()
        # A snapshot's sync would bring to the disk what the row's own must bring there.
        text = self.config.read_text()
        text = text.replace("snapshot_interval_s = 1.0", "snapshot_interval_s = 3600.0")
        self.config.write_text(text)
        self._zygote = Zygote(broken)
        self.submitter = Submitter(self.rig.runtime, seed)
        self.log = LogWatch(self.rig.journal)
        self.pid = 0

    @property
    def wal(self) -> Path:
        return self.rig.journal / "journal.db-wal"

    def start(self) -> None:
        self.pid = self._zygote.journal(self.config)
        self.submitter.connect()

    def kill(self) -> None:
        """It may have ended by itself: its disk is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        Life.wait_gone({"journal": self.pid})
        self.submitter.close()

    def cut(self) -> None:
        """Power off, and on again."""
        self.disk.cut_power()
        self.kill()
        self.log.release()
        self.disk.unmount()
        self.disk.mount()

    def close(self) -> None:
        if self.pid:
            self.kill()
        self._zygote.close()
        self.log.release()
        self.disk.remove()

    def look(self) -> tuple[list[Row], list[str], list[str]]:
        """New rows; pictures that they name and that are not there; results that occur twice."""
        rows = self.log.read()
        results = [row.body for row in rows if row.kind == "result"]
        names = [row.body["result_id"] for row in self.log.rows if row.kind == "result"]
        recent = names[-_LOOK_BACK_ROWS:]
        twice = sorted({name for name in recent if recent.count(name) > 1})
        return rows, [text for body in results for text in self.log.dangling(body)], twice

    def missing(self, known: dict[str, set[str]]) -> list[str]:
        """Acknowledged rows that are not in the log."""
        there: dict[str, set[str]] = {}
        for row in self.log.rows:
            there.setdefault(row.body.get("result_id", ""), set()).add(row.kind)
        return [
            f"{kind} of {name} was acknowledged and is not there"
            for name, kinds in known.items()
            for kind in sorted(kinds - there.get(name, set()))
        ]


def cut_again_and_again(
    folder: Path,
    cuts: int,
    seed: int,
    broken: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    until: float = float("inf"),
    stop_at: str = "",
) -> Cuts:
    """`until`: time.time() after which no cut is begun. `stop_at`: the finding that suffices."""
    draw, found = Random(seed), Cuts()
    journal = JournalRig(folder, seed, broken)
    try:
        journal.start()
        _warm_up(journal)
        while found.cuts < cuts and time.time() < until:
            _one_cut(journal, draw, found)
            if found.cuts % 50 == 0:
                say(f"{found.cuts} power cuts, {found.acknowledged} rows acknowledged")
            if found.of(stop_at):
                break
        found.lost += [*journal.log.forgotten(), *journal.log.broken]
    finally:
        journal.close()
    return found


def _warm_up(journal: JournalRig) -> None:
    """Until the WAL has been checkpointed and is written over."""
    deadline = time.monotonic() + 60
    while not journal.wal.exists() or journal.wal.stat().st_size < _WARM_BYTES:
        journal.submitter.turn()
        if time.monotonic() > deadline:
            raise RuntimeError("the WAL does not grow")
        time.sleep(0.0005)
    for _ in range(200):
        journal.submitter.turn()
        time.sleep(0.0005)


def _one_cut(journal: JournalRig, draw: Random, found: Cuts) -> None:
    submitter = journal.submitter
    cut_at = time.monotonic() + draw.uniform(0.02, 0.15)
    while time.monotonic() < cut_at:
        submitter.turn()
    found.wal_bytes = journal.wal.stat().st_size
    journal.cut()
    began = time.monotonic()
    journal.start()
    found.worst_recovery_s = max(found.worst_recovery_s, time.monotonic() - began)
    _, dangling, twice = journal.look()
    found.cuts += 1
    found.acknowledged += sum(map(len, submitter.acknowledged.values()))
    found.lost += journal.missing(submitter.acknowledged)
    found.dangling += dangling
    found.duplicated += twice
    submitter.acknowledged.clear()
