"""The scanner's thread: readings and the state of the device, handed to the station's main thread.

Nothing waits for it. What a device says beyond a bounded rate is refused unread, so that one gone
mad takes no time from the inspection.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from drivers.errors import DeviceError
from drivers.scanner import Scan, Scanner, open_scanner
from drivers.scanner.settings import ScannerSettings

_TURN_S = 0.1
_PAUSE_S = 0.005
"""After each read: 4096 bytes at most in so long."""
_REOPEN_S = 0.5
_MOST_A_SECOND = 20


@dataclass(frozen=True, slots=True)
class Scanned:
    """The scanner said something."""

    scan: Scan


@dataclass(frozen=True, slots=True)
class ScannerState:
    """The scanner came or went; `problem` is empty while it is there."""

    problem: str


class ScannerFeed:
    """Owns the scanner; one thread. `post` is called from it."""

    def __init__(self, settings: ScannerSettings, post: Callable[[Scanned | ScannerState], None]):
        self._settings = settings
        self._post = post
        self._scanner: Scanner | None = None
        self._recent: deque[int] = deque(maxlen=_MOST_A_SECOND)
        self._is_flooded = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def open(self) -> None:
        """Raises `DeviceError`; without it the thread opens the scanner, and tries again and
        again."""
        self._scanner = open_scanner(self._settings)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A device that hangs is left to the end of the process."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)
        elif self._scanner is not None:
            self._scanner.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except DeviceError as error:
                self._lose(str(error))
            except Exception as error:  # noqa: BLE001  no driver's mistake may end the thread
                self._lose(f"the scanner's driver failed: {error!r}")
        if self._scanner is not None:
            self._scanner.close()

    def _turn(self) -> None:
        if self._scanner is None:
            self._scanner = open_scanner(self._settings)
            self._post(ScannerState(""))
        scan = self._scanner.read(_TURN_S)
        if scan is not None:
            self._tell(scan)
        self._stopping.wait(_PAUSE_S)

    def _tell(self, scan: Scan) -> None:
        is_full = len(self._recent) == _MOST_A_SECOND
        is_flood = is_full and scan.at_ns - self._recent[0] < 1e9
        self._recent.append(scan.at_ns)
        if not is_flood:
            self._post(Scanned(scan))
        elif not self._is_flooded:
            fault = f"more than {_MOST_A_SECOND} readings within a second"
            self._post(Scanned(Scan(scan.data, time.monotonic_ns(), fault)))
        self._is_flooded = is_flood

    def _lose(self, problem: str) -> None:
        if self._scanner is not None:
            self._scanner.close()
            self._scanner = None
        self._post(ScannerState(problem))
        self._stopping.wait(_REOPEN_S)
