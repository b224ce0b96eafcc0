"""The scanner at the simulated belt: lines out of a named pipe, which the belt writes."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from pathlib import Path

from drivers.errors import DeviceLost, DeviceRefused
from drivers.scanner import Scan, Scanner
from drivers.scanner.lines import LineAssembler
from drivers.scanner.settings import SimulatedScannerSettings


class SimulatedScanner(Scanner):
    """Unplugged when its pipe is gone, or another one has its name."""

    def __init__(self, settings: SimulatedScannerSettings) -> None:
        self._path = settings.pipe
        self.description = f"simulated scanner at {self._path}"
        self._descriptor = _open_pipe(self._path)
        self._lines = LineAssembler()
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, 4096):  # of a belt that is gone
                continue

    def read(self, timeout_s: float) -> Scan | None:
        waiting = self._lines.take()
        if waiting is not None:
            return waiting
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        self._lines.feed(os.read(self._descriptor, 4096) if ready else b"", time.monotonic_ns())
        if not ready:
            self._see_that_it_is_there()
        return self._lines.take()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _see_that_it_is_there(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                return
        raise DeviceLost(f"{self.description}: the pipe is gone")


def _open_pipe(path: Path) -> int:
    """Also for writing: a pipe that nobody has open for writing is at its end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceRefused(f"{path}: no named pipe can be had here: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DeviceRefused(f"{path}: is no named pipe; remove it, or name another")
    return descriptor
