"""A plant's database, as a shipper and whoever asks it use it.

`Hub.deliver` is the one way by which rows come in: they are stored exactly once by station and
number, as they were hashed, with QA's tables, in one transaction that also checks that they
continue what is there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy import Connection, Engine, create_engine, delete, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from station.config import ConfigError, PlantSettings
from station.derived import KINDS, Lines, add, lines_of
from station.log_reader import by_result
from station.packing import Contexts
from station.plant_schema import BROKEN_CHAIN, DERIVED, UnfitDatabase, create, grant
from station.qms import EMPTY_CHAIN, Json, first_changed
from station.record import rfc3339

if TYPE_CHECKING:
    import psycopg

_CREDENTIALS = "CREDENTIALS_DIRECTORY"
_DEFAULTS = {
    "connect_timeout": "10",
    # A network that swallows what is sent is noticed, not waited for.
    "tcp_user_timeout": "30000",
    "keepalives_idle": "30",
    "application_name": "vqi",
    "client_encoding": "UTF8",
}
_SHOWN = ("host", "hostaddr", "port", "dbname", "user", "service")
_ROW = ("station_id", "seq", "kind", "body", "body_sha256", "chain_sha256")
_NOT_IN_TABLES = ("tile_blocks", "tile_score_planes")
"""What is costly to unpack, and what no table tells of."""
_PAGE_ROWS = 2000
_ADVICE = {
    "42P01": "make its tables with `vqi plant create`",
    "42501": "see `vqi plant grant`",
    "25006": "it is read-only: a standby, or a server that is being moved",
    "28P01": "see plant.dsn_file",
    "53100": "its disk is full",
}
"""What to do, by SQLSTATE."""


class PlantError(Exception):
    """The plant's database cannot be used now; says which, why, and what to do."""


class ChainError(PlantError):
    """What a station has and what the plant has of it are not one chain; names the row."""


class StoredRow(NamedTuple):
    """A row of a log, as it was hashed."""

    seq: int
    kind: str
    body: str
    body_sha256: str
    chain_sha256: str


class Head(NamedTuple):
    """The last row of a station's chain."""

    seq: int
    chain_sha256: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that follow one another, and what they add to QA's tables."""

    station_id: str
    rows: Sequence[StoredRow]
    lines: Lines

    def after(self, seq: int) -> Batch:
        """Without rows up to one."""
        parts = {
            part.name: [line for line in getattr(self.lines, part.name) if line["seq"] > seq]
            for part in fields(Lines)
        }
        return Batch(self.station_id, [row for row in self.rows if row.seq > seq], Lines(**parts))


class Anchor(NamedTuple):
    """A row that somebody else than the station keeps, and since when."""

    station_id: str
    seq: int
    chain_sha256: str
    arrived_at: datetime

    def line(self) -> str:
        """As anchors are written anywhere; the time is that of the plant's database."""
        return (
            f"vqi-anchor {self.station_id} row {self.seq} chain {self.chain_sha256} "
            f"time {rfc3339(self.arrived_at)} key none"
        )


def connection_info(settings: PlantSettings) -> dict[str, Any]:
    """What libpq is given. Raises `ConfigError`."""
    import psycopg

    found: dict[str, Any] = dict(_DEFAULTS)
    for source, given in (("plant.dsn", settings.dsn), *_from_file(settings.dsn_file)):
        try:
            found |= psycopg.conninfo.conninfo_to_dict(given)
        except psycopg.ProgrammingError as error:
            raise ConfigError(f"{source}: {str(error).strip()}") from None
    return found


def _from_file(path: Path | None) -> Iterator[tuple[str, str]]:
    if path is None:
        return
    place = credential(path)
    try:
        yield f"plant.dsn_file {place}", place.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"plant.dsn_file {place}: cannot be read: {error}") from error


def credential(path: Path) -> Path:
    """Where a secret's file lies: without a folder, among the unit's credentials, if it has any."""
    folder = os.environ.get(_CREDENTIALS, "")
    return Path(folder) / path if folder and not path.is_absolute() else path


class Hub:
    """One connection to the plant's database. For one thread at a time."""

    is_history_there = True

    def __init__(self, settings: PlantSettings) -> None:
        """Raises `PlantError`, `ConfigError`; where the extra is missing, `ConfigError` too."""
        info = _with_driver(settings)
        self.name = " ".join(f"{key}={info[key]}" for key in _SHOWN if info.get(key)) or "libpq's"
        self._engine = _engine(info)
        with self._said():
            self.connection: Connection = self._engine.connect()

    def head(self, station_id: str) -> Head:
        """The last row that is there; number 0 if there is none."""
        with self._said(), self.connection.begin():
            return self._head(station_id)

    def chain_at(self, station_id: str, seq: int) -> str | None:
        """Chain value of a row; None where there is no such row."""
        query = text("SELECT chain_sha256 FROM row WHERE station_id = :station AND seq = :seq")
        with self._said(), self.connection.begin():
            values = {"station": station_id, "seq": seq}
            return self.connection.execute(query, values).scalar()

    def rows_after(self, station_id: str, seq: int) -> Iterator[Sequence[StoredRow]]:
        """The rows of a station after one of them, in order."""
        with self.asking() as connection:
            yield from pages(connection, station_id, seq)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Connection]:
        """The connection, in a transaction, for whoever asks."""
        with self._said(), self.connection.begin():
            yield self.connection

    def station_ids(self, connection: Connection) -> list[str]:
        """Of all stations that this role may see."""
        # One look into the index for each station, where DISTINCT would read all of it.
        query = text("""
            WITH RECURSIVE found AS (
                SELECT min(station_id) AS id FROM row
                UNION ALL SELECT (SELECT min(station_id) FROM row WHERE station_id > id) FROM found
                WHERE id IS NOT NULL
            ) SELECT id FROM found WHERE id IS NOT NULL
        """)
        return list(connection.execute(query).scalars())

    def bodies(
        self, connection: Connection, named: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Json]:
        """What was recorded in rows, by station and number."""
        query = text(
            "SELECT station_id, seq, body FROM row JOIN unnest(CAST(:stations AS text[]), "
            "CAST(:numbers AS bigint[])) AS named (station_id, seq) USING (station_id, seq)"
        )
        stations, numbers = [name for name, _ in named], [number for _, number in named]
        found = connection.execute(query, {"stations": stations, "numbers": numbers})
        contexts = {name: contexts_of(connection, name) for name in set(stations)}
        return {
            (row.station_id, row.seq): contexts[row.station_id].whole(json.loads(row.body))
            for row in found.all()
        }

    def reviews(
        self, connection: Connection, station_id: str, first: int, last: int
    ) -> dict[str, list[Json]]:
        """The reviews among these rows of a station with their `seq`, by result and in order."""
        query = text(
            "SELECT seq, body FROM row WHERE station_id = :station AND kind = 'review' "
            "AND seq BETWEEN :first AND :last ORDER BY seq"
        )
        values = {"station": station_id, "first": first, "last": last}
        found = connection.execute(query, values)
        return by_result((row.seq, json.loads(row.body)) for row in found)

    def deliver(self, batch: Batch) -> Head:
        """Store what is not there yet; the station's head then.

        All or nothing. Raises `ChainError` for rows that do not continue what is there, or that say
        otherwise than it, and `PlantError`.
        """
        with self._said(), self.connection.begin():
            self._lock(batch.station_id)
            head = self._head(batch.station_id)
            fresh = self._not_there(batch, head)
            if fresh.rows:
                _refuse_broken(fresh, head)
                self._store(fresh)
                head = Head(fresh.rows[-1].seq, fresh.rows[-1].chain_sha256)
        return head

    def pictures_upto(self, station_id: str) -> int:
        """Up to which row a station's pictures are in the store."""
        query = text(
            "SELECT seq FROM picture_position WHERE station_id = :station ORDER BY id DESC LIMIT 1"
        )
        with self._said(), self.connection.begin():
            return int(self.connection.execute(query, {"station": station_id}).scalar() or 0)

    def note_pictures(self, station_id: str, seq: int) -> None:
        """The pictures of rows up to here are in the store."""
        query = text("INSERT INTO picture_position (station_id, seq) VALUES (:station, :seq)")
        with self._said(), self.connection.begin():
            self.connection.execute(query, {"station": station_id, "seq": seq})

    def create(self) -> list[int]:
        """Bring the database up to this program; the numbers of the steps that it lacked."""
        with self.asking() as connection:
            try:
                return create(connection)
            except UnfitDatabase as error:
                raise PlantError(f"plant database {self.name}: {error}") from None

    def grant(self, role: str, duty: str, station_ids: list[str]) -> None:
        """Let a login role ship a station, see stations, or (`qa`) see all."""
        with self.asking() as connection:
            grant(connection, role, duty, station_ids)

    def rebuild(self, station_id: str) -> int:
        """Make QA's tables of a station again; how many rows were read."""
        with self.asking() as connection:
            self._lock(station_id)
            for table in DERIVED:
                connection.execute(delete(table).where(table.c.station_id == station_id))
            rows, contexts = 0, contexts_of(connection, station_id)
            for page in pages(connection, station_id):
                self._store_lines(plant_lines(station_id, page, contexts))
                # Until the commit they keep each page, and the next one would read it again.
                self._cursor().execute("DROP TABLE IF EXISTS arriving_plate, arriving_defect")
                rows += len(page)
        return rows

    def close(self) -> None:
        with contextlib.suppress(SQLAlchemyError):
            self.connection.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Turns what the database says into one line."""
        import psycopg

        try:
            yield
        except (SQLAlchemyError, psycopg.Error) as error:
            kind, said = _explained(error)
            raise kind(f"plant database {self.name}: {said}") from error

    def _lock(self, station_id: str) -> None:
        """One at a time writes a station's rows, until the transaction ends."""
        query = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
        self.connection.execute(query, {"key": f"vqi station {station_id}"})

    def _head(self, station_id: str) -> Head:
        query = text(
            "SELECT seq, chain_sha256 FROM row WHERE station_id = :station "
            "ORDER BY seq DESC LIMIT 1"
        )
        found = self.connection.execute(query, {"station": station_id}).first()
        return Head(0, EMPTY_CHAIN) if found is None else Head(found.seq, found.chain_sha256)

    def _not_there(self, batch: Batch, head: Head) -> Batch:
        """Rows after the head; those before it must be what is there."""
        rows = batch.rows
        if not rows or rows[0].seq > head.seq:
            return batch
        query = text(
            "SELECT seq, chain_sha256 FROM row WHERE station_id = :station "
            "AND seq BETWEEN :first AND :last"
        )
        values = {"station": batch.station_id, "first": rows[0].seq, "last": rows[-1].seq}
        known = {row.seq: row.chain_sha256 for row in self.connection.execute(query, values)}
        for row in rows:
            if row.seq in known and known[row.seq] != row.chain_sha256:
                raise ChainError(fork(batch.station_id, row.seq))
        return batch.after(head.seq)

    def _store(self, batch: Batch) -> None:
        rows = [(batch.station_id, *row) for row in batch.rows]
        if _copy(self._cursor(), "row", _ROW, rows) != len(rows):
            raise PlantError(f"station {batch.station_id}: somebody wrote rows beside the shipper")
        self._store_lines(batch.lines)

    def _store_lines(self, lines: Lines) -> None:
        """QA's tables of rows that are new."""
        cursor = self._cursor()

        def many(statement: str, values: Sequence[Json]) -> None:
            if values is lines.plates:
                _copy_all(cursor, "plate", values)
            elif values is lines.defects:
                _copy_all(cursor, "defect", values)
            else:
                self.connection.execute(text(statement), list(values))

        add(many, lines)

    def _cursor(self) -> psycopg.Cursor[Any]:
        driver: Any = self.connection.connection.driver_connection
        cursor: psycopg.Cursor[Any] = driver.cursor()
        return cursor


def pages(
    connection: Connection, station_id: str, after: int = -1
) -> Iterator[Sequence[StoredRow]]:
    """All rows of a station, or those after one, in order."""
    query = text(
        "SELECT seq, kind, body, body_sha256, chain_sha256 FROM row "
        "WHERE station_id = :station AND seq > :after ORDER BY seq LIMIT :count"
    )
    values: dict[str, Any] = {"station": station_id, "after": after, "count": _PAGE_ROWS}
    while page := connection.execute(query, values).all():
        yield [StoredRow(*row) for row in page]
        values["after"] = page[-1].seq


def contexts_of(
    connection: Connection, station_id: str, coming: Mapping[int, str] | None = None
) -> Contexts:
    """What rows of a station leave to others, from the plant and, `coming`, from context rows that
    are not there yet."""
    query = text("SELECT body FROM row WHERE station_id = :station AND seq = :seq")

    def read(seq: int) -> str | None:
        if coming is not None and seq in coming:
            return coming[seq]
        return connection.execute(query, {"station": station_id, "seq": seq}).scalar()

    return Contexts(read)


def prepare(station_id: str, rows: Sequence[StoredRow], contexts: Contexts) -> Batch:
    """What a database is not needed for. Raises `ChainError` for rows that do not follow one
    another."""
    broken = first_changed(rows[1:], rows[0].chain_sha256) if rows else None
    if broken is not None:
        raise ChainError(_broken(station_id, broken))
    return Batch(station_id, rows, plant_lines(station_id, rows, contexts))


def _refuse_broken(batch: Batch, head: Head) -> None:
    """The first row must follow the head; those after it were looked at before."""
    first = batch.rows[0]
    if first.seq != head.seq + 1:
        raise ChainError(
            f"station {batch.station_id}: row {head.seq + 1} is missing: the plant has rows up to "
            f"{head.seq}, row {first.seq} came next"
        )
    if first_changed([first], head.chain_sha256) is not None:
        raise ChainError(_broken(batch.station_id, first.seq))


def _broken(station_id: str, seq: int) -> str:
    return (
        f"station {station_id}: row {seq} does not continue the chain; see `vqi log verify` at the "
        "station"
    )


def plant_lines(station_id: str, rows: Iterable[StoredRow], contexts: Contexts) -> Lines:
    """What rows add to QA's tables in PostgreSQL, whose text knows neither NUL nor halves of
    characters."""
    lines = Lines()
    for row in rows:
        if row.kind in KINDS:
            lines.extend(lines_of(station_id, row.seq, row.kind, _content(row.body, contexts)))
    return lines


def _content(text_of_body: str, contexts: Contexts) -> Json:
    """What a row says, but for its tiles; nothing where it is none: the chain's check names it."""
    try:
        body = json.loads(text_of_body)
        for name in _NOT_IN_TABLES:
            body.pop(name, None)
        found = contexts.whole(body)
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}
    return _storable(found) if "\\u" in text_of_body else found


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def fork(station_id: str, seq: int) -> str:
    return (
        f"station {station_id}: row {seq} is not the one that the plant has: one of the two logs "
        "was changed, or restored from a copy and continued; nothing is sent. Keep both as "
        "evidence, and see `vqi log verify` at the station and `vqi log verify --plant`"
    )


def _copy_all(cursor: psycopg.Cursor[Any], table: str, lines: Sequence[Json]) -> None:
    _copy(cursor, table, tuple(lines[0]), [tuple(line.values()) for line in lines])


def _copy(
    cursor: psycopg.Cursor[Any],
    table: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> int:
    """Insert rows that are not there yet; how many those were. Tables with row-level security take
    no COPY, so a temporary one does."""
    names = ", ".join(columns)
    cursor.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS arriving_{table} ON COMMIT DELETE ROWS "
        f"AS SELECT {names} FROM {table} WITH NO DATA"
    )
    with cursor.copy(f"COPY arriving_{table} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    cursor.execute(
        f"INSERT INTO {table} ({names}) SELECT {names} FROM arriving_{table} ON CONFLICT DO NOTHING"
    )
    return int(cursor.rowcount)


def _with_driver(settings: PlantSettings) -> dict[str, Any]:
    try:
        return connection_info(settings)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"[plant] needs {error.name}: pip install 'vqi-station[plant]', or deploy/install, "
            "which installs it where the configuration has this section"
        ) from None


def _engine(info: dict[str, Any]) -> Engine:
    import psycopg

    return create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(**info), poolclass=NullPool
    )


def _explained(error: Exception) -> tuple[type[PlantError], str]:
    """Whether waiting helps, what the database said in one line, and what to do."""
    cause = (error.orig if isinstance(error, DBAPIError) else None) or error
    state = getattr(cause, "sqlstate", None) or ""
    said = " ".join(str(cause).split("\nDETAIL")[0].split())
    advice = _ADVICE.get(state, "")
    return (
        ChainError if state == BROKEN_CHAIN else PlantError,
        f"{said}; {advice}" if advice else said,
    )
