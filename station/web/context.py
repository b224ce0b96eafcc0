"""What every page works with: the log to read, the processes to write through, texts, people."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Executable
from sqlalchemy.exc import DatabaseError

from station.config import Configuration, Loaded, WebSettings
from station.control import send_command
from station.ipc import Json, NotAMessage, PeerGone
from station.journal_client import JournalClient
from station.log_lines import get_logger
from station.log_reader import ASK_LIMIT_S, Reader
from station.qms import StoreError
from station.record import Body
from station.roles import Person
from station.web.certificates import Certificate
from station.web.errors import PageError, conflict, not_found
from station.web.hub import Hub
from station.web.live import Live, LiveSource
from station.web.others import OtherStations
from station.web.people import People
from station.web.plant_lines import PlantWatch
from station.web.tokens import Tokens

_LOG = get_logger("web")
READ_LIMIT_S = 2.0
"""All questions of one request together; a reader holds up the write-ahead file (I8)."""
_COMMIT_S = 12.0
"""So long somebody waits for rows, sent again or not; a journal process that dies is back within
this time."""
_CONNECT_S = 2.0
_RESEND_PAUSE_S = 0.2
_WRITERS = 8
"""Requests that wait for the journal process at once: reading goes on in the other threads."""
_WRITER_S = 1.0
"""Another one waits so long to be one of them."""
_STEPS = 5_000


class PageReader(Reader):
    """A reader whose questions, all together, end by a deadline."""

    def __init__(self, directory: Path, limit_s: float) -> None:
        """Raises `StoreError` as `Reader` does."""
        super().__init__(directory)
        self._limit_s, until = limit_s, time.monotonic() + limit_s
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(lambda: time.monotonic() > until, _STEPS)

    def ask(self, statement: Executable, limit_s: float = ASK_LIMIT_S) -> Sequence[Any]:
        """As `Reader.ask`; the request's deadline holds, not `limit_s`."""
        try:
            return self._connection.execute(statement).all()
        except DatabaseError as error:
            if _is_interrupted(error):
                raise
            raise self._failure(error, self._limit_s) from error


def _is_interrupted(error: DatabaseError | sqlite3.DatabaseError) -> bool:
    origin = error.orig if isinstance(error, DatabaseError) else error
    return getattr(origin, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


def _zone_of_machine() -> ZoneInfo:
    try:
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return ZoneInfo("UTC")


@dataclass(slots=True)
class Web:
    """One for the process."""

    configuration: Loaded[Configuration]
    people: People
    live_source: LiveSource
    hub: Hub = field(default_factory=Hub)
    """By which news of it reaches browsers."""
    others: OtherStations = field(init=False)
    plant: PlantWatch | None = field(init=False)
    routes: list[Any] = field(default_factory=list)
    """Every route as it was declared (station.web.pages.Declared)."""
    tokens: Tokens = field(default_factory=Tokens)
    streams: set[asyncio.Task[Any]] = field(default_factory=set)
    """Event streams that are open; who stops the server ends them."""
    _writers: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WRITERS))
    zone: ZoneInfo = field(init=False)
    """Where the station stands: `[journal.shifts] timezone`, or what this machine is set to."""
    certificate: Certificate | None = None
    """By which this page is known; None without TLS."""
    log_seen_at: float | None = None
    """When the log last answered all questions of a request, seconds since 1970."""

    def __post_init__(self) -> None:
        shifts = self.configuration.value.journal.shifts
        self.zone = ZoneInfo(shifts.timezone) if shifts else _zone_of_machine()
        plant = self.configuration.value.plant
        self.others = OtherStations(self.settings.stations)
        self.plant = PlantWatch(plant) if plant else None

    @property
    def settings(self) -> WebSettings:
        return self.configuration.value.web or WebSettings()

    @property
    def station_id(self) -> str:
        return self.configuration.value.station.id

    @property
    def live(self) -> Live:
        """What the poller heard last."""
        return self.live_source.live

    # --- reading ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reader(self, limit_s: float = READ_LIMIT_S) -> Iterator[Reader]:
        """The log for one request. Raises `PageError` 503: there is no log, it is damaged, or the
        questions took too long."""
        directory = self.configuration.value.journal.directory
        try:
            with PageReader(directory, limit_s) as reader:
                yield reader
                self.log_seen_at = time.time()
        except StoreError as error:
            raise self._no_log(str(error)) from error
        except (OverflowError, UnicodeEncodeError) as error:  # no such number, no such text
            raise not_found() from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            if _is_interrupted(error):
                raise PageError(503, "errors.too_long", retry_s=5, seconds=limit_s) from error
            raise self._no_log(str(error)) from error

    def _no_log(self, why: str) -> PageError:
        key = "errors.no_log" if self.log_seen_at is None else "errors.no_log_since"
        _LOG.error("the log cannot be read", why=why)  # it names files
        return PageError(503, key, retry_s=5, since=self.log_seen_at)

    def end_streams(self) -> None:
        """On the event loop: who looks on is told that there is no more."""
        self.hub.close()
        for stream in list(self.streams):
            stream.cancel()

    # --- writing ----------------------------------------------------------------------------------

    def submit(self, rows: Sequence[Body], who: Person) -> list[int]:
        """Numbers of the rows, once they are committed. Rows that carry a nonce are sent again if
        the journal process dies meanwhile: they are one row.

        Raises `PageError`: 503 if nothing was written or that is not known, 409 if they were
        refused, with the journal's own words; ValueError if a row says that somebody else sent it.
        """
        for row in rows:
            said = getattr(row, "reviewer", None) or getattr(row, "who", None)
            if said != who.name or not who.is_signed_in:
                raise ValueError(
                    f"a {getattr(row, 'kind', 'row')} of {said!r}, not of {who.name!r}"
                )
        answer = self._submitted(rows)
        if answer["ok"]:
            return [int(seq) for seq in answer["seq"]]
        if answer.get("is_full"):
            raise PageError(503, "errors.journal_full", why=answer["error"], retry_s=30)
        raise conflict("errors.refused", why=answer["error"])

    def _submitted(self, rows: Sequence[Body]) -> Json:
        if not self._writers.acquire(timeout=_WRITER_S):
            raise PageError(503, "errors.journal_away", retry_s=5)
        try:
            return self._sent(rows)
        finally:
            self._writers.release()

    def _sent(self, rows: Sequence[Body]) -> Json:
        is_repeatable = all(getattr(row, "nonce", "") for row in rows)
        deadline, was_sent = time.monotonic() + _COMMIT_S, False
        while True:
            client = JournalClient(self.configuration.value.station.runtime_dir, is_page=True)
            try:
                client.connect(_CONNECT_S)
                was_sent = True
                return client.submit(rows, timeout_s=max(0.1, deadline - time.monotonic()))
            except (PeerGone, NotAMessage, TimeoutError, OSError) as error:
                if not was_sent:
                    raise PageError(503, "errors.journal_away", retry_s=5) from error
                if not is_repeatable or time.monotonic() > deadline:
                    raise PageError(503, "errors.commit_unknown") from error
                time.sleep(_RESEND_PAUSE_S)
            finally:
                client.close()

    def command(self, op: str, text: str, who: Person) -> Json:
        """What the station answered to a command. Raises `PageError`: 503 if it does not run, 409
        if it refused, with its own words."""
        try:
            runtime_dir = self.configuration.value.station.runtime_dir
            answer = send_command(runtime_dir, op, text, who=who.name)
        except (PeerGone, NotAMessage, TimeoutError, OSError) as error:
            raise PageError(503, "errors.station_away", retry_s=5) from error
        if not answer.get("ok"):
            raise conflict("errors.refused", why=answer.get("error", ""))
        return answer
