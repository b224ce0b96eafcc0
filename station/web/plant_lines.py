"""What the plant's database knows of each line: its last plate, and how old that news is. Asked by
a thread of its own; the database may be down, slow or gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sqlalchemy import Connection, desc, select, text

from station.config import ConfigError, PlantSettings
from station.log_lines import get_logger
from station.plant import Hub, PlantError
from station.record import rfc3339
from station.tables import PLATE

POLL_S = 5.0
_STATEMENT_LIMIT_MS = 2000
_MOST_STATIONS = 500
_ARRIVED = text("SELECT arrived_at FROM row WHERE station_id = :id ORDER BY seq DESC LIMIT 1")
_LOG = get_logger("web")


@dataclass(frozen=True, slots=True)
class PlantLine:
    """A line as the plant's database has it."""

    station_id: str
    result_id: str
    written_at: str
    verdict: str
    reviewed_verdict: str | None
    arrived_at: str
    """When the station's newest row came in."""


@dataclass(frozen=True, slots=True)
class PlantNews:
    """What the database said last, and since when it says nothing."""

    lines: tuple[PlantLine, ...] = ()
    asked_at: float | None = None
    """Seconds since 1970; None: it has not answered yet."""
    problem: str = ""


class PlantWatch:
    """Asks while it runs. `news` may be read by any thread."""

    def __init__(self, settings: PlantSettings) -> None:
        self.news = PlantNews()
        self._settings = settings
        self._stopping = threading.Event()

    def start(self) -> None:
        # A daemon: a database that hangs in a connect holds up no end.
        threading.Thread(target=self._run, name="plant", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with Hub(self._settings) as hub:
                    while not self._stopping.is_set():
                        with hub.asking() as connection:
                            lines = tuple(_lines(hub, connection))
                        self.news = PlantNews(lines, time.time())
                        self._stopping.wait(POLL_S)
            except (PlantError, ConfigError) as error:
                self._note(str(error))
            self._stopping.wait(POLL_S)

    def _note(self, problem: str) -> None:
        if problem != self.news.problem:
            _LOG.info("the plant's database does not answer", error=problem)
        self.news = replace(self.news, problem=problem)


def _lines(hub: Hub, connection: Connection) -> Iterator[PlantLine]:
    connection.execute(text(f"SET LOCAL statement_timeout = {_STATEMENT_LIMIT_MS}"))
    for station_id in hub.station_ids(connection)[:_MOST_STATIONS]:
        newest = select(PLATE).where(PLATE.c.station_id == station_id)
        plate = connection.execute(newest.order_by(desc(PLATE.c.seq)).limit(1)).first()
        arrived = connection.execute(_ARRIVED, {"id": station_id}).scalar_one()
        if plate is not None:
            yield PlantLine(
                station_id=station_id,
                result_id=plate.result_id,
                written_at=plate.written_at,
                verdict=plate.verdict,
                reviewed_verdict=plate.reviewed_verdict,
                arrived_at=rfc3339(arrived),
            )
