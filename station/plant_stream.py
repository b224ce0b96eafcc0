"""A NATS JetStream between stations and the plant's database, for a plant of many lines: stations
hand their rows over and go on while the database is away, and one receiver writes them.

A message holds rows of one station that follow one another, on a subject of that station's own. The
last message of the subject says how far the station has come, and a message is only taken directly
after the one that its sender knows: two senders at once cannot mix. The receiver stores by
`Hub.deliver`, exactly once, and acknowledges after the commit. What a stream lost, the station's
log still has: see docs/plant.md.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from station.config import ConfigError, PlantSettings
from station.log_lines import get_logger
from station.plant import (
    Batch,
    ChainError,
    Head,
    Hub,
    PlantError,
    StoredRow,
    contexts_of,
    credential,
    prepare,
)
from station.qms import EMPTY_CHAIN
from station.systemd import notify

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js.client import JetStreamContext

_LOG = get_logger("plant")
STREAM: Final = "vqi-rows"
_SUBJECT: Final = "vqi.rows"
_DURABLE: Final = "plant-database"
_HEAD = "Vqi-Head"
"""Header: number and chain value of a message's last row."""
_MESSAGE_BYTES: Final = 512 * 1024
"""Of rows as JSON, before they are packed: far below a server's usual limit of 1 MB."""
_MOST_BYTES: Final = 64 * 2**20
"""What a message may unpack to."""
_FETCHED: Final = 32
_TIMEOUT_S: Final = 10.0
_LATER_S: Final = 2.0
"""Before a message that could not be stored comes again."""
_SAID_EVERY_S: Final = 60.0
_OUT_OF_PLACE: Final = 10071
"""JetStream's code for: the subject has another last message."""
_Value = TypeVar("_Value")


class Stream:
    """One connection to a NATS server. For one thread at a time."""

    is_history_there = False
    """Only the last row of a station is known here."""

    def __init__(self, settings: PlantSettings) -> None:
        """Raises `PlantError`; where the extra is missing, `ConfigError`."""
        assert settings.nats is not None
        self.name = settings.nats.rsplit("@", 1)[-1]
        self._settings = settings
        self._runner = asyncio.Runner()
        self._last: dict[str, int] = {}
        """Of each station's subject: the stream's number of its last message."""
        try:
            with self._said():
                self._js: JetStreamContext = self._run(self._connect())
        except BaseException:
            self._runner.close()
            raise

    def create(self) -> None:
        """The stream, where there is none. It keeps messages for 30 days, stored or not."""
        from nats.js.api import StorageType, StreamConfig

        kept = StreamConfig(
            name=STREAM,
            subjects=[f"{_SUBJECT}.*"],
            storage=StorageType.FILE,
            max_age=30 * 86_400,
            allow_direct=True,
        )
        with self._said():
            self._run(self._js.add_stream(kept))

    def head(self, station_id: str) -> Head:
        """The last row that was handed over; number 0 if there is none."""
        from nats.js.errors import NotFoundError

        with self._said():
            try:
                found = self._run(self._js.get_last_msg(STREAM, _subject(station_id)))
            except NotFoundError:
                self._run(self._js.stream_info(STREAM))  # no such stream is another matter
                self._last[station_id] = 0
                return Head(0, EMPTY_CHAIN)
        self._last[station_id] = int(found.seq or 0)
        return _head_of((found.headers or {}).get(_HEAD, ""))

    def chain_at(self, station_id: str, seq: int) -> str | None:
        """Chain value of the last row; None of any other."""
        head = self.head(station_id)
        return head.chain_sha256 if head.seq == seq else None

    def deliver(self, batch: Batch) -> Head:
        """Hand rows over, after those that were; the station's head then. Raises `PlantError`; what
        was handed over until then stays."""
        head = Head(0, EMPTY_CHAIN)
        for rows in _messages(batch.rows):
            head = Head(rows[-1].seq, rows[-1].chain_sha256)
            with self._said():
                self._publish(batch.station_id, rows, head)
        return head

    def _publish(self, station_id: str, rows: Sequence[StoredRow], head: Head) -> None:
        from nats.js.errors import BadRequestError

        known = self._last[station_id]
        headers = {
            _HEAD: f"{head.seq} {head.chain_sha256}",
            "Nats-Expected-Last-Subject-Sequence": str(known),
        }
        sent = self._js.publish(
            _subject(station_id), _packed(rows), _TIMEOUT_S, STREAM, headers=headers
        )
        try:
            self._last[station_id] = self._run(sent).seq
        except BadRequestError as error:
            if error.err_code != _OUT_OF_PLACE:
                raise
            raise PlantError(
                f"{self.name}: another sender of station {station_id} was before: it is looked at "
                "again"
            ) from None

    def fetch(self) -> list[Msg]:
        """The next messages for the plant's database; none after a second without any."""
        from nats.errors import TimeoutError as NothingCame

        with self._said():
            try:
                return self._run(self._fetch())
            except NothingCame:
                return []

    def stored(self, message: Msg) -> None:
        with self._said():
            self._run(message.ack())

    def later(self, message: Msg) -> None:
        """It comes again; what comes after it of the same station is not stored before."""
        with self._said():
            self._run(message.nak(_LATER_S))

    def close(self) -> None:
        with suppress(Exception):
            self._run(self._js._nc.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _connect(self) -> JetStreamContext:
        try:
            import nats
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"plant.nats needs {error.name}: pip install 'vqi-station[plant]'"
            ) from None
        options: dict[str, Any] = {}
        if self._settings.nats_credentials_file is not None:
            options["user_credentials"] = str(credential(self._settings.nats_credentials_file))
        if str(self._settings.nats).startswith("tls://"):
            options["tls"] = ssl.create_default_context(cafile=self._settings.nats_ca_file)
        client = await nats.connect(
            str(self._settings.nats),
            # Who uses it waits and tries again, and says so.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(_TIMEOUT_S),
            error_cb=_silent,
            **options,
        )
        return client.jetstream(timeout=_TIMEOUT_S)

    async def _fetch(self) -> list[Msg]:
        if not hasattr(self, "_pull"):
            self._pull = await self._js.pull_subscribe(
                f"{_SUBJECT}.*", durable=_DURABLE, stream=STREAM
            )
        return list(await self._pull.fetch(_FETCHED, timeout=1.0))

    def _run(self, work: Coroutine[Any, Any, _Value]) -> _Value:
        return self._runner.run(work)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Turns what the server says, or its silence, into one line."""
        from nats.errors import Error
        from nats.js.errors import NotFoundError

        try:
            yield
        except NotFoundError as error:
            raise PlantError(
                f"{self.name}: no stream {STREAM}: start `vqi plant receive`, which makes it"
            ) from error
        except (Error, OSError, TimeoutError) as error:
            raise PlantError(f"{self.name}: {error or type(error).__name__}") from error


async def _silent(error: Exception) -> None:
    """Whoever asks for something is told; nothing is written beside."""


def _subject(station_id: str) -> str:
    return f"{_SUBJECT}.{station_id}"


def _head_of(text: str) -> Head:
    seq, _, chain_sha256 = text.partition(" ")
    if not seq.isdecimal() or not chain_sha256:
        raise PlantError(f"stream {STREAM}: a message without {_HEAD}: not one of this program's")
    return Head(int(seq), chain_sha256)


def _messages(rows: Sequence[StoredRow]) -> Iterator[Sequence[StoredRow]]:
    first, size = 0, 0
    for number, row in enumerate(rows):
        size += len(row.body)
        if size >= _MESSAGE_BYTES:
            yield rows[first : number + 1]
            first, size = number + 1, 0
    if first < len(rows):
        yield rows[first:]


def _packed(rows: Sequence[StoredRow]) -> bytes:
    return zlib.compress(json.dumps(rows).encode(), 1)


def _unpacked(data: bytes) -> list[StoredRow]:
    """Raises ValueError for what no station packed."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, _MOST_BYTES)
        rows = [StoredRow(*row) for row in json.loads(text)]
    except (zlib.error, TypeError, ValueError) as error:
        raise ValueError(f"no rows: {error}") from error
    if not unpacker.eof or not rows or not all(type(row.seq) is int for row in rows):
        raise ValueError("no rows")
    return rows


# --- the receiver -------------------------------------------------------------------------------


@dataclass(slots=True)
class Receiver:
    """From the stream into the database."""

    stream: Stream
    hub: Hub
    rows: int = 0
    """Stored by now."""
    _said_at: dict[str, float] = field(default_factory=dict)

    def receive(self, stop: Callable[[], bool], is_once: bool = False) -> None:
        """Until told to stop; `is_once`: until nothing comes. Raises `PlantError` when stream or
        database is gone: what was fetched and not stored comes again."""
        while not stop():
            messages = self.stream.fetch()
            if is_once and not messages:
                return
            behind: set[str] = set()
            for message in messages:
                self._take(message, behind)
            notify(f"WATCHDOG=1\nSTATUS={self.rows} rows stored")

    def _take(self, message: Msg, behind: set[str]) -> None:
        station_id = message.subject.removeprefix(f"{_SUBJECT}.")
        if station_id in behind:
            self.stream.later(message)
            return
        try:
            self.rows += self._store(station_id, _unpacked(message.data))
        except (ChainError, ValueError) as error:
            behind.add(station_id)
            self._say(station_id, str(error))
            self.stream.later(message)
            return
        self.stream.stored(message)

    def _store(self, station_id: str, rows: list[StoredRow]) -> int:
        """How many rows were new."""
        head = self.hub.head(station_id)
        fresh = [row for row in rows if row.seq > head.seq]
        if fresh and fresh[0].seq != head.seq + 1:
            raise ChainError(
                f"station {station_id}: row {head.seq + 1} has not come; if this goes on, the "
                "stream lost it: `vqi log ship --once` at the station with plant.dsn brings it"
            )
        # Rows that are there are compared, so all of them go the one way.
        self.hub.deliver(self._batch(station_id, rows))
        return len(fresh)

    def _batch(self, station_id: str, rows: list[StoredRow]) -> Batch:
        here = {row.seq: row.body for row in rows if row.kind == "context"}
        with self.hub.asking() as connection:
            return prepare(station_id, rows, contexts_of(connection, station_id, here))

    def _say(self, station_id: str, text: str) -> None:
        """Not every time that it comes again."""
        now = time.monotonic()
        if now - self._said_at.get(station_id, -_SAID_EVERY_S) >= _SAID_EVERY_S:
            self._said_at[station_id] = now
            _LOG.warning("rows are not stored", station=station_id, error=text)


def receive(settings: PlantSettings, stop: threading.Event, is_once: bool) -> int:
    """Store what comes, for ever or (`is_once`) what is there; how many rows. While stream or
    database cannot be reached it is tried again, or raises `PlantError` where `is_once`."""
    stored, pause_s = 0, 1.0
    while not stop.is_set():
        try:
            with Stream(settings) as stream, Hub(settings) as hub:
                stream.create()
                receiver = Receiver(stream, hub)
                try:
                    receiver.receive(stop.is_set, is_once)
                finally:
                    stored += receiver.rows
                    pause_s = 1.0 if receiver.rows else pause_s
            return stored
        except PlantError as error:
            if is_once:
                raise
            _LOG.warning("not received", error=str(error))
            notify(f"WATCHDOG=1\nSTATUS=waits {pause_s:.0f} s: {error}")
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, 60.0)
    return stored
