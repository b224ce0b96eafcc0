"""Part serials in the running station: from scanner, PLC and person to the plate's record.

Used by the station's main thread alone. What was read and became no plate's serial is a row, a
bounded number of them however fast a device talks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

from drivers.scanner import Scan
from station.belt_register import Place
from station.config import Configuration, PlateRecipe
from station.identity import Association, IdentityRegister, Reading, Unclaimed
from station.ingress import Refused, admit, escaped
from station.record import Identity, SerialBody
from station.scanner_feed import Scanned, ScannerFeed, ScannerState

_BURST_ROWS = 32
"""Rows that may follow one another at once; then one a second."""


class Serials:
    """`sign_on` is called with the name on a badge that was scanned."""

    def __init__(
        self,
        configuration: Configuration,
        recipe: PlateRecipe,
        post: Callable[[Scanned | ScannerState], None],
        sign_on: Callable[[str], object],
    ) -> None:
        settings = configuration.identity
        pitch_mm = configuration.camera.pixel_pitch_mm
        self.is_expected = settings is not None
        """Plates have serials; the belt's place is wanted."""
        self.counts: Counter[str] = Counter()
        self._station_id = configuration.station.id
        self._badge_prefix = settings.badge_prefix if settings else None
        self._sign_on = sign_on
        self._register = IdentityRegister(
            settings.distance_mm / pitch_mm if settings else 0.0,
            settings.tolerance_mm / pitch_mm if settings else 0.0,
            (recipe.max_length_mm or 1.25 * recipe.length_mm) / pitch_mm,
            self.is_expected,
        )
        scanner = settings.scanner if settings else None
        self._feed = ScannerFeed(scanner, post) if scanner else None
        self._rows: list[SerialBody] = []
        self._untold: Counter[str] = Counter()
        self._credit, self._credited_s = float(_BURST_ROWS), time.monotonic()

    def open(self, is_restart: bool) -> None:
        """Raises `DeviceError`, with `is_restart` never: the scanner is then looked for again and
        again."""
        if self._feed is not None and not is_restart:
            self._feed.open()
        if self._feed is not None:
            self._feed.start()

    def close(self) -> None:
        if self._feed is not None:
            self._feed.stop()

    # --- what is read -----------------------------------------------------------------------------

    def scanned(self, scan: Scan) -> None:
        if scan.fault:
            shown = escaped(scan.data.decode("latin-1"))
            self._refuse(Refused(scan.fault, shown), Identity.SCANNER, scan.at_ns)
            self._register.read(Reading("", Identity.SCANNER, scan.at_ns))
        else:
            self.said(scan.data, Identity.SCANNER, scan.at_ns)

    def said(self, raw: bytes, source: Identity, at_ns: int) -> None:
        """A scanner or the PLC read a label on the belt."""
        name = admit(raw)
        prefix = self._badge_prefix
        if isinstance(name, str) and prefix and name.startswith(prefix):
            name = admit(name.removeprefix(prefix))
            if isinstance(name, str):
                self._sign_on(name)
                return
        if isinstance(name, Refused):
            self._refuse(name, source, at_ns)
            return
        self.counts["readings"] += 1
        self._register.read(Reading(name, source, at_ns))

    def given(self, serial: str) -> None:
        """A person says which serial the next plate has; a name already."""
        self.counts["readings"] += 1
        self._register.give(Reading(serial, Identity.COMMAND, time.monotonic_ns()))

    def _refuse(self, refused: Refused, source: Identity, at_ns: int) -> None:
        self.counts["refused"] += 1
        self._write(None, refused.shown, source, "refused", refused.why, at_ns)

    # --- plates and the belt ----------------------------------------------------------------------

    def belt_began(self, frame_height: int) -> None:
        self._register.begin(frame_height)

    def belt_moved(self, place: Place, is_measured: bool) -> None:
        self._register.move(place, is_measured)

    def plate_began(self, result_id: str, scan_line: int | None) -> None:
        self._register.open(result_id, scan_line)

    def plate_ended(self, result_id: str, scan_line: int) -> None:
        self._register.close(result_id, scan_line)

    def decide(self, result_id: str) -> Association | None:
        """What the plate's record says of its serial."""
        found = self._register.decide(result_id)
        if found is not None:
            is_read = found.part_id is not None
            self.counts["assigned" if is_read else str(found.identity)] += 1
        return found

    def end(self) -> None:
        """No more plates come."""
        self._register.end()

    def take_rows(self) -> list[SerialBody]:
        """What is to be written down since the last call."""
        for unclaimed in self._register.take_unclaimed():
            self._say_unclaimed(unclaimed)
        rows, self._rows = self._rows, []
        return rows

    def _say_unclaimed(self, unclaimed: Unclaimed) -> None:
        self.counts["unclaimed"] += 1
        reading = unclaimed.reading
        self._write(
            unclaimed.result_id, reading.serial, reading.source, "unclaimed", unclaimed.why,
            reading.at_ns,
        )  # fmt: skip

    def _write(
        self,
        result_id: str | None,
        serial: str,
        source: Identity,
        why: Literal["refused", "unclaimed"],
        detail: str,
        read_ns: int,
    ) -> None:
        self._untold[why] += 1
        if not self._may_write():
            return
        body = SerialBody(
            station_id=self._station_id,
            result_id=result_id,
            serial=serial,
            source=source,
            why=why,
            detail=detail,
            read_ns=read_ns,
            count=self._untold.pop(why),
        )
        self._rows.append(body)

    def _may_write(self) -> bool:
        now_s = time.monotonic()
        earned = now_s - self._credited_s
        self._credit, self._credited_s = min(_BURST_ROWS, self._credit + earned), now_s
        if self._credit < 1:
            return False
        self._credit -= 1
        return True
