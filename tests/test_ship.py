"""The log beyond its station: every row once, in the order of its chain, whatever is killed."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from make_journal import STATION, make
from postgres_peer import Postgres, running_postgres
from station_rig import Rig, vqi
from test_qms import change, opened, result

from station.config import PlantSettings
from station.log_reader import Reader
from station.plant import ChainError, Hub, PlantError, StoredRow
from station.plant_verify import anchors, missing_guards, verify_station
from station.qms import DATABASE, Store
from station.record import Body, ReviewBody, Verdict, result_id
from station.ship import Shipment

psycopg = pytest.importorskip("psycopg", reason="no psycopg here: pip install 'vqi-station[plant]'")
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as postgres:
        yield postgres


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
        with self.hub() as hub:
            hub.grant(role, duty, list(station_ids))
        return role


@pytest.fixture
def plant(server: Postgres) -> Plant:
    name = f"plant_{next(_NUMBERS)}"
    server.sql("postgres", f"CREATE DATABASE {name}")
    found = Plant(server, name)
    with found.hub() as hub:
        assert hub.create() == [1, 2, 3, 4]
    return found


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 plates."""
    folder = tmp_path_factory.mktemp("long")
    make(folder, 2000, seed=1, tiles=25)
    return folder


def review(number: int, verdict: Verdict, reviewer: str) -> ReviewBody:
    return ReviewBody(
        station_id="s",
        result_id=result_id("s", number),
        verdict=verdict,
        reviewer=reviewer,
        reason="looked again",
    )


def plates(first: int, last: int) -> list[Body]:
    found: list[Body] = []
    for number in range(first, last + 1):
        is_bad = number % 3 == 0
        defect = {
            "x_px": 1,
            "y_px": 2,
            "w_px": 3,
            "h_px": 4,
            "x_mm": 1.5,
            "y_mm": 2.5,
            "score": 0.9,
        }
        found.append(opened(number))
        found.append(
            result(
                number,
                Verdict.FAIL if is_bad else Verdict.PASS,
                part_id=f"serial {number}",
                defects=(defect,) * (number % 4 if is_bad else 0),
            )
        )
    return found


def write(folder: Path, *bodies: Body) -> Path:
    with Store(folder) as store:
        store.append(list(bodies))
    return folder


def shipment(plant: Plant, journal: Path, station_id: str = "s", **changes: Any) -> Shipment:
    return Shipment(station_id, journal, plant.settings(**changes))


def stored(journal: Path) -> list[StoredRow]:
    with Reader(journal) as reader:
        return [StoredRow(*row) for row in reader.stored(1, 100_000)]


def arrived(plant: Plant, station_id: str = "s") -> list[StoredRow]:
    query = "SELECT seq, kind, body, body_sha256, chain_sha256 FROM row WHERE station_id = '{}' "
    return [StoredRow(*row) for row in plant.rows(query.format(station_id) + "ORDER BY seq")]


def assert_all_arrived(plant: Plant, journal: Path, station_id: str = "s") -> None:
    assert arrived(plant, station_id) == stored(journal)
    assert plant.findings(station_id) == []


def table(connection: Any, name: str) -> list[tuple[Any, ...]]:
    columns = (
        "station_id, result_id, part_id, verdict, defects, reviewed_verdict, reviewer, review_seq"
    )
    if name == "defect":
        columns = "station_id, seq, number, x_mm, score"
    return sorted(tuple(row) for row in connection.execute(f"SELECT {columns} FROM {name}"))


# --- what arrives -------------------------------------------------------------------------------


def test_a_log_arrives_as_it_was_hashed_and_with_the_stations_own_tables(
    plant: Plant, tmp_path: Path
) -> None:
    journal = write(tmp_path, change("start"), *plates(1, 40), review(3, Verdict.PASS, "ada"))
    sent = shipment(plant, journal).send_all()
    assert (sent.rows, sent.head.seq) == (82, 82)
    assert_all_arrived(plant, journal)
    write(tmp_path, *plates(41, 45), review(3, Verdict.FAIL, "bela"), change("end"))
    assert shipment(plant, journal).send_all().rows == 12
    assert shipment(plant, journal).send_all().rows == 0
    assert_all_arrived(plant, journal)
    with (
        sqlite3.connect(journal / DATABASE) as here,
        psycopg.connect(plant.settings().dsn) as there,
    ):
        for name in ("plate", "defect"):
            assert table(there, name) == table(here, name) != []
    here.close()


@pytest.mark.parametrize("text", ["a\0b", "'; DROP TABLE row; --", "\\N\t\\.\n", "é\u202e=1+1"])
def test_hostile_text_arrives_as_it_was_hashed(plant: Plant, tmp_path: Path, text: str) -> None:
    journal = write(tmp_path, opened(1), result(1, part_id=text, detail=text), change(text))
    shipment(plant, journal).send_all()
    assert_all_arrived(plant, journal)
    assert plant.rows("SELECT part_id FROM plate") == [(text.replace("\0", "\ufffd"),)]


def test_several_stations_have_a_chain_each(plant: Plant, tmp_path: Path, long_log: Path) -> None:
    small = write(tmp_path / "small", *plates(1, 5))
    shipment(plant, small).send_all()
    shipment(plant, long_log, STATION).send_all()
    assert_all_arrived(plant, small)
    assert_all_arrived(plant, long_log, STATION)
    with plant.hub() as hub, hub.asking() as connection:
        assert hub.station_ids(connection) == ["s", STATION]
        found = anchors(connection, STATION, most=7)
    rows = {row.seq: row.chain_sha256 for row in stored(long_log)}
    assert len(found) == 7
    assert found[-1].seq == max(rows)
    assert all(rows[anchor.seq] == anchor.chain_sha256 for anchor in found)


ASKED = (("list", "--verdict", "FAIL"), ("stats",))


def test_commands_send_and_verify(plant: Plant, tmp_path: Path) -> None:
    write(tmp_path / "journal", *plates(1, 3))
    dsn = plant.settings().dsn
    (tmp_path / "secret").write_text(f"dbname={plant.name} password=unused")
    tables = f'[plant]\ndsn = "{dsn.replace(plant.name, "nowhere")}"\n'
    tables += f'dsn_file = "{tmp_path / "secret"}"\n'
    config = str(Rig(tmp_path, station={"id": "s"}, tables=tables).write())
    done = vqi("log", "ship", "--once", "--json", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 6
    done = vqi("log", "verify", "--plant", "--json", "--config", config)
    assert done.returncode == 0
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [True]
    here, there = (
        [vqi("log", *words, "--json", "--config", config, *where).stdout for words in ASKED]
        for where in ((), ("--plant",))
    )
    assert here == there
    assert "serial 3" in there[0]
    plant.sql("UPDATE plate SET verdict = 'PASS' WHERE seq = 6")
    done = vqi("log", "verify", "--plant", "--station", "s", "--config", config)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        1,
        "station s: table plate says otherwise than the rows of ('s', 6)",
    )
    assert vqi("plant", "rebuild", "--station", "s", "--config", config).returncode == 0
    assert plant.findings("s") == []


# --- what must not arrive -----------------------------------------------------------------------


def test_rows_that_come_twice_or_overlapping_are_there_once(plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 20))
    rows = stored(journal)
    with plant.hub() as hub:
        for first, last in ((0, 10), (0, 10), (5, 25), (3, 8), (25, 40), (0, 40)):
            hub.deliver("s", rows[first:last])
    assert_all_arrived(plant, journal)


def test_rows_out_of_order_are_refused_by_number(plant: Plant, tmp_path: Path) -> None:
    rows = stored(write(tmp_path, *plates(1, 10)))
    with plant.hub() as hub:
        hub.deliver("s", rows[:5])
        with pytest.raises(ChainError, match=r"row 6 is missing: .* up to 5, row 9 came next"):
            hub.deliver("s", rows[8:])
        with pytest.raises(ChainError, match="row 8 does not continue the chain"):
            hub.deliver("s", [*rows[5:6], rows[7], rows[6]])
        changed = rows[6]._replace(body=rows[6].body.replace("PASS", "FAIL") + " ")
        with pytest.raises(ChainError, match="row 7 does not continue the chain"):
            hub.deliver("s", [*rows[5:6], changed, *rows[7:]])
    assert arrived(plant) == rows[:5]


def test_a_fork_stops_and_names_its_first_row(plant: Plant, tmp_path: Path) -> None:
    one = write(tmp_path / "one", *plates(1, 11))
    two = shutil.copytree(one, tmp_path / "two")
    shipment(plant, write(one, *plates(12, 20))).send_all()
    before = arrived(plant)
    write(two, change("restored and continued"))
    for bodies in ([], plates(12, 40)):
        write(two, *bodies)
        with pytest.raises(ChainError, match="row 23 is not the one that the plant has"):
            shipment(plant, two).send_all()
    assert arrived(plant) == before


def test_an_older_copy_of_the_log_stops(plant: Plant, tmp_path: Path) -> None:
    now = write(tmp_path / "now", *plates(1, 11))
    older = shutil.copytree(now, tmp_path / "older")
    shipment(plant, write(now, *plates(12, 20))).send_all()
    with pytest.raises(ChainError, match="ends at row 22, the plant has rows up to 40"):
        shipment(plant, older).send_all()


def test_another_stations_log_stops(plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 2))
    with pytest.raises(ChainError, match=r"begun by station s, station\.id is line-2"):
        shipment(plant, journal, "line-2").send_all()


def test_a_restored_plant_is_caught_up_from_its_own_head(
    plant: Plant, server: Postgres, tmp_path: Path
) -> None:
    journal = write(tmp_path, *plates(1, 20))
    shipment(plant, journal).send_all()
    server.sql("postgres", f"CREATE DATABASE {plant.name}_older TEMPLATE {plant.name}")
    write(tmp_path, *plates(21, 40))
    shipment(plant, journal).send_all()
    restored = replace(plant, name=f"{plant.name}_older")
    assert len(arrived(restored)) == 40
    assert shipment(restored, journal).send_all().rows == 40
    assert_all_arrived(restored, journal)


def test_two_shippers_at_once_make_one_chain(plant: Plant, long_log: Path) -> None:
    errors: list[BaseException] = []

    def send() -> None:
        try:
            shipment(plant, long_log, STATION).send_all()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_all_arrived(plant, long_log, STATION)


# --- who may do what ----------------------------------------------------------------------------

INSERT = (
    "INSERT INTO row (station_id, seq, kind, body, body_sha256, chain_sha256) VALUES "
    "('{}', {}, 'change', '{{}}', '{}', '{}')"
)


FORBIDDEN = (
    "UPDATE row SET kind = 'x'",
    "DELETE FROM row",
    "TRUNCATE row",
    "UPDATE plate SET verdict = 'PASS'",
    "DELETE FROM plate",
    "DELETE FROM hourly",
    "INSERT INTO station_role VALUES (current_user, 'other', 'shipper')",
    "INSERT INTO row VALUES ('s', 7, 'k', '{}', '', '', '2020-01-01')",
    INSERT.format("other", 3, "", ""),
    INSERT.format("s", 7, "", ""),
    INSERT.format("s", 9, "", ""),
    INSERT.format("s", 2, "", ""),
)


def test_a_shipper_can_only_continue_its_own_chain(plant: Plant, tmp_path: Path) -> None:
    role = plant.make_role("line", "shipper", "s")
    journal = write(tmp_path / "s", *plates(1, 3))
    Shipment("s", journal, plant.settings(role)).send_all()
    others = (body.model_copy(update={"station_id": "other"}) for body in plates(1, 1))
    other = write(tmp_path / "o", *others)
    with pytest.raises(PlantError, match="row-level security"):
        Shipment("other", other, plant.settings(role)).send_all()
    shipment(plant, other, "other").send_all()
    names = ("row", "plate", "hourly", "station_role")
    before = [plant.rows(f"SELECT * FROM {name}") for name in names]
    with psycopg.connect(plant.server.dsn(plant.name, role), autocommit=True) as connection:
        for statement in FORBIDDEN:
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
        connection.execute("UPDATE plate SET reviewer = 'x' WHERE station_id = 'other'")
        assert connection.execute("SELECT DISTINCT station_id FROM row").fetchall() == [("s",)]
    assert [plant.rows(f"SELECT * FROM {name}") for name in names] == before


def test_even_the_owner_cannot_change_rows_unseen(plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 3))
    shipment(plant, journal).send_all()
    for statement in ("UPDATE row SET kind = 'x'", "DELETE FROM row", "TRUNCATE row"):
        with pytest.raises(psycopg.Error, match="append-only"):
            plant.sql(statement)
    plant.sql(
        "ALTER TABLE row DISABLE TRIGGER row_stays",
        "UPDATE row SET body = replace(body, 'PASS', 'FAIL') WHERE seq = 4",
        "DELETE FROM row WHERE seq = 5",
    )
    assert plant.findings("s") == [
        "trigger row_stays of table row is not in force",
        "row 4 is not the one that was sent",
        "row 5 is missing; row 6 comes next",
        "row 6 is not the one that was sent",
        *[finding for finding in plant.findings("s") if finding.startswith("table ")],
    ]


def test_viewers_see_their_stations_and_qa_sees_all(plant: Plant, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        bodies = (body.model_copy(update={"station_id": name}) for body in plates(1, 2))
        shipment(plant, write(tmp_path / name, *bodies), name).send_all()
    roles = {
        plant.make_role("viewer", "viewer", "a", "c"): ["a", "c"],
        plant.make_role("qa", "qa"): ["a", "b", "c"],
        plant.make_role("nobody", "viewer"): [],
    }
    for role, seen in roles.items():
        with plant.hub(role) as hub, hub.asking() as connection:
            assert hub.station_ids(connection) == seen
            for name in ("row", "plate", "hourly"):
                query = f"SELECT DISTINCT station_id FROM {name} ORDER BY 1"
                assert list(connection.exec_driver_sql(query).scalars()) == seen
            for name in seen:
                assert verify_station(connection, name).findings == []
        for statement in (INSERT.format("a", 5, "", ""), "UPDATE plate SET reviewer = 'x'"):
            with (
                psycopg.connect(plant.server.dsn(plant.name, role)) as other,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                other.execute(statement)


def test_create_is_safe_to_repeat_and_refuses_what_sorts_otherwise(
    plant: Plant, server: Postgres
) -> None:
    with plant.hub() as hub:
        assert hub.create() == []
    server.sql("postgres", f"CREATE DATABASE {plant.name}_ascii TEMPLATE template0 "
                           "ENCODING 'SQL_ASCII' LOCALE 'C'")  # fmt: skip
    with (
        replace(plant, name=f"{plant.name}_ascii").hub() as hub,
        pytest.raises(PlantError, match="createdb --template=template0 --encoding=UTF8"),
    ):
        hub.create()
