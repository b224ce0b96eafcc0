"""What happens to the disk, the database and the pictures below a running station."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from campaign.disk import run
from campaign.kinds import NotThere, Strike, kind, now_ns
from campaign.life import Life

_LONG_S = (0.4, 1.6)
"""How long a state of the disk lasts."""
_ATTACH_LIMIT_S = 3.0


def _hold(draw: Random) -> None:
    time.sleep(draw.uniform(*_LONG_S))


# --- room -----------------------------------------------------------------------------------------


@kind("disk full")
def disk_full(life: Life, draw: Random) -> Strike:
    filler = life.disk.folder / "filler"
    began_ns = now_ns()
    try:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        _hold(draw)
    finally:
        filler.unlink(missing_ok=True)
    return Strike(began_ns, now_ns())


@kind("no inode left")
def inodes_full(life: Life, draw: Random) -> Strike:
    folder = life.disk.folder / "many"
    folder.mkdir()
    began_ns = now_ns()
    try:
        with contextlib.suppress(OSError):
            for number in range(100_000):
                (folder / str(number)).touch()
        _hold(draw)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return Strike(began_ns, now_ns())


# --- what system calls say ------------------------------------------------------------------------


@contextlib.contextmanager
def injected(pid: int, calls: str, how: str) -> Iterator[None]:
    """`strace` says in place of the kernel what these calls return."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid)]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:{how}"]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_traced(pid, tracer)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(0.5)
        tracer.kill()
        tracer.wait()


def _wait_traced(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _ATTACH_LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text():
                return
        time.sleep(0.01)
    raise NotThere(f"process {pid} cannot be traced")


def _until_gone(life: Life, pid: int, within_s: float) -> None:
    life.wait_gone({"traced": pid}, within_s)


@kind("fsync says EIO", is_death=True)
def fsync_fails(life: Life, draw: Random) -> Strike:
    return _injected_until_gone(life, "fsync,fdatasync", f"error=EIO:when={draw.randint(1, 6)}")


@kind("write says ENOSPC")
def write_no_space(life: Life, draw: Random) -> Strike:
    return _injected_until_gone(life, "pwrite64", f"error=ENOSPC:when={draw.randint(1, 8)}+")


@kind("write says EIO", is_death=True)
def write_fails(life: Life, draw: Random) -> Strike:
    return _injected_until_gone(life, "pwrite64", f"error=EIO:when={draw.randint(1, 8)}+")


@kind("rename says EROFS", is_death=True)
def rename_fails(life: Life, draw: Random) -> Strike:
    return _injected_until_gone(life, "rename,renameat,renameat2", "error=EROFS:when=1+")


@kind("read-only: no file can be opened for writing", is_death=True)
def open_fails(life: Life, draw: Random) -> Strike:
    return _injected_until_gone(life, "openat", f"error=EROFS:when={draw.randint(1, 4)}+")


@kind("slow fsync")
def slow_fsync(life: Life, draw: Random) -> Strike:
    delay_us = draw.randint(50_000, 400_000)
    return _injected_until_gone(life, "fsync,fdatasync", f"delay_enter={delay_us}")


@kind("slow disk")
def slow_disk(life: Life, draw: Random) -> Strike:
    delay_us = draw.randint(5_000, 60_000)
    calls = "write,writev,pwrite64,fsync,fdatasync,rename,openat"
    return _injected_until_gone(life, calls, f"delay_enter={delay_us}")


def _injected_until_gone(life: Life, calls: str, how: str) -> Strike:
    """Until the process has ended because of it, or for a while."""
    pid = life.pid("journal")
    with injected(pid, calls, how):
        began_ns = now_ns()
        _until_gone(life, pid, within_s=1.5)
    return Strike(began_ns, now_ns(), how)


# --- the file system itself -----------------------------------------------------------------------


@kind("picture folder read-only")
def pictures_read_only(life: Life, draw: Random) -> Strike:
    images = life.journal / "images"
    run("mount", "--bind", images, images)
    began_ns = now_ns()
    try:
        run("mount", "-o", "remount,bind,ro", images)
        _hold(draw)
    finally:
        run("umount", "-l", images)
    return Strike(began_ns, now_ns())


@kind("file system turns read-only", is_death=True)
def file_system_read_only(life: Life, draw: Random) -> Strike:
    """As ext4 does after an error; somebody mounts it anew and the station goes on."""
    began_ns = now_ns()
    trigger = Path(f"/sys/fs/ext4/{life.disk.device}/trigger_fs_error")
    trigger.write_text("1")
    _hold(draw)
    return _mounted_anew(life, began_ns)


@kind("power cut below the station", is_death=True)
def power_cut(life: Life, draw: Random) -> Strike:
    """The cabinet is switched off and on: disk, tower and I/O module lose their power, too."""
    began_ns = now_ns()
    life.disk.cut_power()
    life.tower.tell("unplug")
    life.panel.tell("unplug")
    life.kill_all(life.family())
    life.tower.tell("plug")
    life.panel.tell("plug")
    return _mounted_anew(life, began_ns)


def _mounted_anew(life: Life, began_ns: int) -> Strike:
    life.kill_all(life.family())
    life.before_unmount()
    life.disk.unmount()
    subprocess.run(["fsck.ext4", "-p", life.disk.image], check=False, capture_output=True)
    life.disk.mount()
    life.keep_running()
    return Strike(began_ns, began_ns)


# --- the database and other tools -----------------------------------------------------------------


@contextlib.contextmanager
def _another_tool(life: Life) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(life.journal / "journal.db", timeout=2.0, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@kind("database locked by another tool")
def database_locked(life: Life, draw: Random) -> Strike:
    with _another_tool(life) as tool:
        tool.execute(f"BEGIN {draw.choice(('IMMEDIATE', 'EXCLUSIVE'))}")
        began_ns = now_ns()
        time.sleep(draw.uniform(0.5, 2.5))
        tool.execute("ROLLBACK")
        ended_ns = now_ns()
    return Strike(began_ns, ended_ns)


@kind("WAL pinned by a reader")
def wal_pinned(life: Life, draw: Random) -> Strike:
    """A long query, while a kill asks for the log to be opened anew."""
    with _another_tool(life) as tool:
        tool.execute("BEGIN")
        tool.execute("SELECT count(*) FROM row").fetchone()
        began_ns = now_ns()
        _hold(draw)
        os.kill(life.pid("journal"), signal.SIGKILL)
        _hold(draw)
        tool.execute("ROLLBACK")
    return Strike(began_ns, now_ns())


@kind("checkpoint by another tool")
def foreign_checkpoint(life: Life, draw: Random) -> Strike:
    """What any ordinary connection does when it closes."""
    began_ns = now_ns()
    with _another_tool(life) as tool:
        for _ in range(5):
            with contextlib.suppress(sqlite3.OperationalError):
                tool.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            time.sleep(0.05)
    return Strike(began_ns, now_ns())


@kind("snapshot held and removed")
def snapshot_held(life: Life, draw: Random) -> Strike:
    snapshot = life.journal / "journal-snapshot.db"
    began_ns = now_ns()
    if not snapshot.exists():
        raise NotThere("no snapshot is published yet")
    with contextlib.closing(sqlite3.connect(f"file:{snapshot}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM row").fetchone()
        snapshot.unlink(missing_ok=True)
        _hold(draw)
    return Strike(began_ns, now_ns())
