"""Sends the log to the plant's database, from a process of its own that no other waits for.

The station's log is the outbox, and the plant's database says how far it has come: nothing about it
is kept here. So whatever was killed, cut off or restored, the next look at both says what to send.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from station.config import Configuration, PlantSettings
from station.log_lines import get_logger
from station.log_reader import Reader
from station.packing import Contexts
from station.plant import Batch, ChainError, Head, Hub, PlantError, StoredRow, fork, prepare
from station.plant_stream import Stream
from station.qms import StoreError
from station.ship_pictures import Pictures, PicturesError, open_shelf
from station.systemd import notify

_LOG = get_logger("ship")
BATCH_ROWS: Final = 3000
"""In one transaction: large enough that its costs are shared, small enough to be held twice."""
_LOOK_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_NICE = 10


@dataclass(frozen=True, slots=True)
class Sent:
    """What one look sent."""

    rows: int
    head: Head
    """Of the plant then."""
    pictures: int = 0
    missing: int = 0
    """Pictures that rows name, no rule removed, and the station does not have."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """Whose log goes where."""

    station_id: str
    journal: Path
    plant: PlantSettings

    def send_all(self) -> Sent:
        """Send what the plant does not have. Raises `PlantError`, `StoreError`, `PicturesError`,
        `ConfigError`; what was committed until then stays."""
        with self.outlet() as hub, Reader(self.journal) as reader:
            rows, head = self.send_rows(reader, hub)
            pictures = self.pictures(hub)
            if pictures is None:
                return Sent(rows, head)
            while pictures.send_some(reader, head.seq):
                pass
            pictures.note()
        return Sent(rows, head, pictures.sent, pictures.missing)

    def outlet(self) -> Hub | Stream:
        """Where rows go: the database, or a stream that leads there. Raises as `send_all`."""
        return Hub(self.plant) if self.plant.nats is None else Stream(self.plant)

    def pictures(self, hub: Hub | Stream) -> Pictures | None:
        """None where they stay at the station. Raises as `send_all`."""
        if not isinstance(hub, Hub):
            return None
        shelf = open_shelf(self.plant)
        return None if shelf is None else Pictures(self.station_id, hub, shelf)

    def send_rows(
        self, reader: Reader, hub: Hub | Stream, is_told_to_stop: Callable[[], bool] = lambda: False
    ) -> tuple[int, Head]:
        """How many rows were sent, and the plant's head. Raises as `send_all`."""
        head = hub.head(self.station_id)
        self._refuse_other_log(reader, hub, head)
        first = head.seq
        # The next batch is read and checked while the database stores the one before.
        with ThreadPoolExecutor(1) as ahead:
            contexts = Contexts(lambda seq: _body_of(reader, seq))
            coming = ahead.submit(self._batch, reader, contexts, head.seq + 1)
            while (batch := coming.result()) and not is_told_to_stop():
                coming = ahead.submit(self._batch, reader, contexts, batch.rows[-1].seq + 1)
                head = hub.deliver(batch)
                notify("WATCHDOG=1")
        return head.seq - first, head

    def _batch(self, reader: Reader, contexts: Contexts, first: int) -> Batch | None:
        rows = [StoredRow(*row) for row in reader.stored(first, BATCH_ROWS)]
        return prepare(self.station_id, rows, contexts) if rows else None

    def _refuse_other_log(self, reader: Reader, hub: Hub | Stream, head: Head) -> None:
        """The plant's head must be a row of this log."""
        rows = reader.stored(1, 1)
        begun_by = json.loads(rows[0].body).get("station_id") if rows else self.station_id
        if begun_by != self.station_id:
            raise ChainError(
                f"this log was begun by station {begun_by}, station.id is {self.station_id}: the "
                "plant keeps one chain for each station; set station.id back, or begin a new log"
            )
        if head.seq == 0:
            return
        here = reader.stored(head.seq, 1)
        if here and here[0].seq == head.seq:
            if here[0].chain_sha256 != head.chain_sha256:
                raise ChainError(fork(self.station_id, self._first_other(reader, hub, head.seq)))
            return
        self._refuse_shorter(reader, hub, head)

    def _refuse_shorter(self, reader: Reader, hub: Hub | Stream, head: Head) -> None:
        last = reader.last_seq()
        first_other = self._first_other(reader, hub, last + 1)
        if first_other <= last:
            raise ChainError(fork(self.station_id, first_other))
        # What is published now and then may be older than what was sent from the live file.
        if reader.source == "live":
            raise ChainError(
                f"station {self.station_id}: its log ends at row {last}, the plant has rows up to "
                f"{head.seq}: an older copy was restored, or rows were cut off; nothing is sent. "
                "Keep this file as evidence, and restore a copy that has them"
            )

    def _first_other(self, reader: Reader, hub: Hub | Stream, upto: int) -> int:
        """The first row at which the two differ, if one before `upto` does; chains that differ once
        differ ever after."""
        if not hub.is_history_there:
            return upto
        same, other = 0, upto
        while other - same > 1:
            middle = (same + other) // 2
            here = reader.stored(middle, 1)
            is_same = here and here[0].chain_sha256 == hub.chain_at(self.station_id, middle)
            same, other = (middle, other) if is_same else (same, middle)
        return other


def _body_of(reader: Reader, seq: int) -> str | None:
    rows = reader.stored(seq, 1)
    return str(rows[0].body) if rows and rows[0].seq == seq else None


# --- for ever -----------------------------------------------------------------------------------


def give_way() -> None:
    """Every other process of the station goes first."""
    os.nice(max(0, _NICE - os.nice(0)))


@dataclass(slots=True)
class _Outage:
    """Whether the plant can be reached, and how long the next wait is."""

    pause_s: float = _FIRST_PAUSE_S
    since: float | None = None

    def goes_on(self, error: Exception, stop: threading.Event) -> None:
        """Wait, longer each time; said once."""
        if self.since is None:
            self.since = time.monotonic()
            _LOG.warning("the plant cannot be reached", error=str(error))
        notify(f"WATCHDOG=1\nSTATUS=waits {self.pause_s:.0f} s: {error}")
        stop.wait(self.pause_s)
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)

    def is_over(self, rows: int) -> None:
        """After rows and pictures went through."""
        if self.since is not None:
            away_s = round(time.monotonic() - self.since, 1)
            _LOG.info("the plant is back", away_s=away_s, rows=rows)
        self.pause_s, self.since = _FIRST_PAUSE_S, None


def follow(shipment: Shipment, stop: threading.Event) -> None:
    """Send what comes until told to stop; while the plant cannot be reached, wait longer each time.
    Raises `ChainError` and `ConfigError`, which waiting does not mend."""
    outage = _Outage()
    while not stop.is_set():
        try:
            _follow_once(shipment, stop, outage)
        except ChainError:
            raise
        except (PlantError, PicturesError, StoreError) as error:
            outage.goes_on(error, stop)


def _follow_once(shipment: Shipment, stop: threading.Event, outage: _Outage) -> None:
    """Over one connection, until told to stop. Pictures give way to rows."""
    with shipment.outlet() as hub:
        pictures = shipment.pictures(hub)
        while not stop.is_set():
            # Anew each time: the file may have been replaced by another.
            with Reader(shipment.journal) as reader:
                rows, head = shipment.send_rows(reader, hub, stop.is_set)
                is_more = pictures is not None and pictures.send_some(reader, head.seq)
            outage.is_over(rows)
            notify(f"WATCHDOG=1\nSTATUS=the plant has all rows up to {head.seq}")
            if not is_more:
                stop.wait(_LOOK_S)


def shipment_of(configuration: Configuration, plant: PlantSettings) -> Shipment:
    return Shipment(configuration.station.id, configuration.journal.directory, plant)
