"""A scanner that sends lines of ASCII over a serial port."""

from __future__ import annotations

import time

from drivers.errors import DeviceRefused
from drivers.scanner import QUIET_S, Scan, Scanner
from drivers.scanner.lines import LineAssembler
from drivers.scanner.settings import SerialScannerSettings
from drivers.wire import open_serial

_OPEN_S = 1.0


class SerialScanner(Scanner):
    """Opened in the silence between two readings: half of one is another part's serial."""

    def __init__(self, settings: SerialScannerSettings) -> None:
        self.description = f"scanner at {settings.port}, {settings.baud_rate} baud"
        self._wire = open_serial(
            self.description, settings.port, settings.baud_rate, settings.parity, settings.stop_bits
        )
        self._lines = LineAssembler()
        try:
            self._await_silence()
        except BaseException:
            self.close()
            raise

    def read(self, timeout_s: float) -> Scan | None:
        waiting = self._lines.take()
        if waiting is not None:
            return waiting
        data = self._wire.receive(time.monotonic() + timeout_s)
        self._lines.feed(data, time.monotonic_ns())
        return self._lines.take()

    def close(self) -> None:
        self._wire.close()

    def _await_silence(self) -> None:
        deadline_s = time.monotonic() + _OPEN_S
        while self._wire.receive(time.monotonic() + QUIET_S):
            if time.monotonic() > deadline_s:
                raise DeviceRefused(f"{self.description}: talks without end; is it a scanner?")
