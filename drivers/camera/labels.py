"""Labels on the simulated belt's plates, and the scanner above it that reads them as they pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from drivers.camera.settings import LabelSettings

_SECOND_MM = 5.0
"""How far behind the first a second label lies."""


class LabelScanner:
    """Writes what passes into the pipe; nobody listens there: then it is said to nobody."""

    def __init__(
        self,
        settings: LabelSettings,
        pixel_pitch_mm: float,
        start: Callable[[int], int],
        plates_before: Callable[[int], int],
    ) -> None:
        """`start`: a plate's first scan line; `plates_before`: how many begin before one."""
        self._settings = settings
        self._pitch_mm = pixel_pitch_mm
        self._start = start
        self._plates_before = plates_before
        self._seen = 0

    def begin(self, scan_line: int) -> None:
        """The belt is so far."""
        self._seen = scan_line

    def move(self, scan_line: int) -> None:
        """And now it is here: read what passed the scanner."""
        before, self._seen = self._seen, scan_line
        serials = [serial for place, serial in self._labels(scan_line) if before < place]
        if serials:
            self._say("".join(f"{serial}\r\n" for serial in serials))

    def _labels(self, until: int) -> Iterator[tuple[int, str]]:
        """Where the belt is when a label is below the scanner, and what it says, of those that
        may have passed last."""
        settings = self._settings
        ahead = round((settings.distance_mm - settings.place_mm) / self._pitch_mm)
        last = self._plates_before(until + ahead + 1)
        for ordinal in range(max(1, last - 4), last + 1):
            if ordinal in settings.unread:
                continue
            place, serial = self._start(ordinal) - ahead, f"{settings.prefix}{ordinal:06d}"
            if place <= until:
                yield place, serial
            second = place + round(_SECOND_MM / self._pitch_mm)
            if ordinal in settings.doubled and second <= until:
                yield second, f"{serial}-B"

    def _say(self, text: str) -> None:
        try:
            descriptor = os.open(self._settings.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            os.write(descriptor, text.encode())
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)
