"""A plant's database of a test's own, and a shipper to it that is killed while rows come."""

from __future__ import annotations

import itertools
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from make_journal import STATION, block_rows
from postgres_peer import Postgres
from station_rig import Rig, start_vqi

from station.config import PlantSettings
from station.log_reader import Reader
from station.plant import Hub, StoredRow
from station.plant_verify import missing_guards, verify_station
from station.qms import Store
from station.record import Body

psycopg = pytest.importorskip("psycopg", reason="no psycopg here: pip install 'vqi-station[plant]'")
_NUMBERS = itertools.count(1)
_CHUNK_ROWS = 900
_LIMIT_S = 120.0


@dataclass
class Plant:
    """A database of its own on the server, made by `create`."""

    server: Postgres
    name: str

    def settings(self, user: str = "postgres", **changes: Any) -> PlantSettings:
        return PlantSettings(dsn=self.server.dsn(self.name, user), **changes)

    def hub(self, user: str = "postgres") -> Hub:
        return Hub(self.settings(user))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.server.rows(self.name, query)

    def sql(self, *statements: str) -> None:
        self.server.sql(self.name, *statements)

    def findings(self, station_id: str) -> list[str]:
        with self.hub() as hub, hub.asking() as connection:
            return missing_guards(connection) + verify_station(connection, station_id).findings

    def make_role(self, name: str, duty: str, *station_ids: str) -> str:
        """A login role; roles are the whole server's, so its name is its own."""
        role = f"{name}_{self.name}"
        self.sql(f"CREATE ROLE {role} LOGIN")
        with self.hub(f"owner_{self.name}") as hub:
            hub.grant(role, duty, list(station_ids))
        return role


def make_plant(server: Postgres) -> Plant:
    """Made, and owned, by a role without any other rights than to make roles."""
    name = f"plant_{next(_NUMBERS)}"
    server.sql(
        "postgres",
        f"CREATE ROLE owner_{name} LOGIN CREATEROLE",
        f"CREATE DATABASE {name} OWNER owner_{name}",
    )
    plant = Plant(server, name)
    with plant.hub(f"owner_{name}") as hub:
        assert hub.create()
    return plant


def stored(journal: Path) -> list[StoredRow]:
    """What the station has."""
    with Reader(journal) as reader:
        return [StoredRow(*row) for row in reader.stored(1, 10_000_000)]


def arrived(plant: Plant, station_id: str) -> list[StoredRow]:
    """What the plant has."""
    query = "SELECT seq, kind, body, body_sha256, chain_sha256 FROM row WHERE station_id = '{}' "
    return [StoredRow(*row) for row in plant.rows(query.format(station_id) + "ORDER BY seq")]


@dataclass
class Kills:
    kills: int = 0
    within_a_batch: int = 0
    """Of them, those that came before the batch on its way was there."""


def kill_at_random(plant: Plant, folder: Path, kills: int, seed: int) -> Kills:
    """Kill -9 shipper and server in turn, each while a batch is on its way, and let what starts
    again finish. The log lies in `folder`."""
    chance, found = random.Random(seed), Kills()
    journal, rows = folder / "journal", _rows()
    start = _follower(plant, folder, journal)
    with Store(journal) as store:
        process = start()
        try:
            for number in range(kills):
                last = store.append(list(itertools.islice(rows, _CHUNK_ROWS)))[-1]
                _wait_until_busy(plant)
                time.sleep(chance.uniform(0.0, 0.08))
                if number % 2:
                    plant.server.kill()
                    plant.server.start(is_durable=True)
                else:
                    process.kill()
                    process.wait()
                found.kills += 1
                found.within_a_batch += _count(plant) < last
                if process.poll() is not None:
                    process = start()
            _wait(lambda: _count(plant) == store.head()[0])
        finally:
            process.terminate()
            process.wait(_LIMIT_S)
    return found


def _rows() -> Iterator[Body]:
    for number in itertools.count():
        yield from block_rows(1, number, 25)


def _follower(plant: Plant, folder: Path, journal: Path) -> Callable[[], subprocess.Popen[bytes]]:
    tables = f'[plant]\ndsn = "{plant.settings().dsn}"\n'
    rig = Rig(folder, station={"id": STATION}, tables=tables, journal_folder=journal)
    config = str(rig.write())
    return lambda: start_vqi("log", "ship", "--follow", "--config", config)


def _wait_until_busy(plant: Plant) -> None:
    """Until the shipper's rows are on their way."""
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'vqi' AND state <> 'idle' "
        f"AND datname = '{plant.name}'"
    )
    with psycopg.connect(plant.settings().dsn, autocommit=True) as connection:
        _wait(lambda: connection.execute(query).fetchone() is not None)


def _count(plant: Plant) -> int:
    return int(plant.rows("SELECT coalesce(max(seq), 0) FROM row")[0][0])


def _wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)
