"""The log beyond its station: every row once, in the order of its chain, whatever is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_journal import STATION, block_rows
from postgres_peer import PORT, CuttingProxy, Postgres, running_postgres
from ship_rig import Plant, arrived, kill_at_random, make_plant, psycopg, stored
from sqlalchemy import text
from station_rig import Rig, vqi
from test_qms import change, opened, result
from typer.testing import CliRunner

from station.backup import make_backup
from station.cli.log import app as log_app
from station.cli.plant import app as plant_app
from station.config import ConfigError, PlantSettings, load_configuration
from station.log_reader import Reader
from station.log_verify import verify
from station.packing import Contexts
from station.plant import Batch, ChainError, Hub, PlantError, StoredRow, prepare
from station.plant_verify import anchors, verify_station
from station.qms import DATABASE, Store
from station.record import (
    Body,
    ImageBody,
    PictureClass,
    ReviewBody,
    TombstoneBody,
    Verdict,
    result_id,
)
from station.ship import Shipment, follow
from station.ship_pictures import PicturesError, S3Shelf


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture
def plant(server: Postgres) -> Iterator[Plant]:
    """Dropped at the end: a server that was killed syncs all that it has when it comes back."""
    found = make_plant(server)
    yield found
    names = server.rows(
        "postgres", f"SELECT datname FROM pg_database WHERE datname LIKE '{found.name}%'"
    )
    server.sql("postgres", *(f"DROP DATABASE {name} WITH (FORCE)" for (name,) in names))


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than one batch."""
    return write(tmp_path_factory.mktemp("long"), *itertools.islice(block_rows(1, 0, 25), 4000))


def review(number: int, verdict: Verdict, reviewer: str) -> ReviewBody:
    return ReviewBody(
        station_id="s",
        result_id=result_id("s", number),
        verdict=verdict,
        reviewer=reviewer,
        reason="looked again",
    )


def plates(first: int, last: int) -> list[Body]:
    """Two rows each: no two plates have the same runtime, so that none leaves it to another row."""
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
                runtime=f"t {number}",
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


def batch(station_id: str, rows: list[StoredRow]) -> Batch:
    """Of rows that leave nothing to others."""
    return prepare(station_id, rows, Contexts(lambda seq: None))


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
    assert_same_tables(plant, journal, "s")


def test_a_restored_log_takes_back_what_the_plant_has_and_goes_on(
    plant: Plant, tmp_path: Path
) -> None:
    tables = f'[plant]\ndsn = "{plant.settings().dsn}"\n'
    rig = Rig(tmp_path, station={"id": "s"}, tables=tables)
    config, journal = str(rig.write()), write(rig.journal, *plates(1, 6))
    made = make_backup(journal, tmp_path / "backups", 3, is_new=True, read_all=False)
    write(journal, *plates(7, 9))
    shipment(plant, journal).send_all()
    sent = stored(journal)
    write(journal, *plates(10, 10))
    journal.rename(tmp_path / "damaged")

    copy = str(tmp_path / "backups" / made.generation)
    command = ("log", "restore", copy, "--config", config, "--why", "lost", "--json")
    done = vqi(*command)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["copy_rows"], told["plant_rows"]) == (12, 6)
    assert stored(journal)[:-1] == sent
    with Store(journal) as store:
        assert store.last_sequence() == told["sequence"] >= 10
        store.append(plates(told["sequence"] + 1, told["sequence"] + 2))
    shipment(plant, journal).send_all()
    assert_all_arrived(plant, journal)
    assert_same_tables(plant, journal, "s")
    with Reader(journal) as reader:
        assert verify(reader).findings == []

    # What the plant refuses as a fork, and what it cannot be asked about, is not put in place.
    shutil.rmtree(journal)
    other = write(tmp_path / "other", *plates(1, 5), change("another end"))
    fork = make_backup(other, tmp_path / "of-other", 3, is_new=True, read_all=False)
    forked = vqi(*command[:2], str(tmp_path / "of-other" / fork.generation), *command[3:])
    assert "is not the one that the plant has" in forked.stderr
    Rig(tmp_path, station={"id": "s"}, tables=tables.replace(plant.name, "nowhere")).write()
    unreachable = vqi(*command)
    for refused in (forked, unreachable):
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert not list(journal.glob(f"{DATABASE}*"))
    assert vqi(*command, "--without-plant").returncode == 0


def assert_same_tables(plant: Plant, journal: Path, station_id: str) -> None:
    """As the station's own file has them."""
    with (
        contextlib.closing(sqlite3.connect(journal / DATABASE)) as here,
        psycopg.connect(plant.settings().dsn) as there,
    ):
        for name in ("plate", "defect"):
            found = [row for row in table(there, name) if row[0] == station_id]
            assert found == table(here, name) != []


@pytest.mark.parametrize("said", ["a\0b", "'; DROP TABLE row; --", "\\N\t\\.\n", "é\u202e=1+1"])
def test_hostile_text_arrives_as_it_was_hashed(plant: Plant, tmp_path: Path, said: str) -> None:
    journal = write(tmp_path, opened(1), result(1, part_id=said, detail=said), change(said))
    shipment(plant, journal).send_all()
    assert_all_arrived(plant, journal)
    assert plant.rows("SELECT part_id FROM plate") == [(said.replace("\0", "\ufffd"),)]


def test_several_stations_have_a_chain_each(plant: Plant, tmp_path: Path, long_log: Path) -> None:
    small = write(tmp_path / "small", *plates(1, 5))
    shipment(plant, small).send_all()
    shipment(plant, long_log, STATION).send_all()
    assert_all_arrived(plant, small)
    assert_all_arrived(plant, long_log, STATION)
    assert_same_tables(plant, long_log, STATION)
    assert any('"context":' in row.body for row in stored(long_log)), "rows that leave to others"
    with plant.hub() as hub, hub.asking() as connection:
        assert hub.station_ids(connection) == ["s", STATION]
        found = anchors(connection, STATION, 7)
    rows = {row.seq: row.chain_sha256 for row in stored(long_log)}
    assert len(found) == 7
    assert found[-1].seq == max(rows)
    assert all(rows[anchor.seq] == anchor.chain_sha256 for anchor in found)


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

    def log(*words: str) -> tuple[int, list[str]]:
        found = CliRunner().invoke(log_app, [*words, "--config", config])
        return found.exit_code, found.stdout.splitlines()

    for words in (("list", "--verdict", "FAIL", "--json"), ("stats", "--json")):
        assert log(*words) == log(*words, "--plant") == log(*words, "--plant", "--station", "s")
        assert log(*words)[0] == 0
    assert "serial 3" in log("list", "--plant", "--json")[1][0]
    status, rows = log("verify", "--plant", "--json")
    assert (status, [json.loads(row)["ok"] for row in rows]) == (0, [True])
    plant.sql("UPDATE plate SET verdict = 'PASS' WHERE seq = 6")
    status, rows = log("verify", "--plant", "--station", "s")
    assert (status, rows[0]) == (
        1,
        "station s: table plate says otherwise than the rows of ('s', 6)",
    )
    assert log("verify", "--plant", "--station", "nobody")[0] == 1
    options = ["--station", "s", "--config", config]
    assert CliRunner().invoke(plant_app, ["rebuild", *options]).exit_code == 0
    assert plant.findings("s") == []
    lines = CliRunner().invoke(plant_app, ["anchors", *options]).stdout.splitlines()
    last = stored(tmp_path / "journal")[-1]
    assert lines[-1].startswith(f"vqi-anchor s row 6 chain {last.chain_sha256} time 20")


def test_the_plant_lists_what_reviews_come_to_as_the_station_does(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = write(
        tmp_path / "journal",
        *plates(1, 9),
        review(3, Verdict.PASS, "ada"),
        four_eyes_review(6, "ada", supersedes=12),
        four_eyes_review(9, "ada", supersedes=18),
        four_eyes_review(9, "bela", supersedes=21),
    )
    shipment(plant, journal).send_all()
    bodies = (body.model_copy(update={"station_id": "other"}) for body in plates(1, 3))
    shipment(plant, write(tmp_path / "other", *bodies), "other").send_all()
    monkeypatch.setenv("VQI_PLANT_DSN", plant.settings().dsn)

    def listed(*words: str) -> list[Any]:
        found = CliRunner().invoke(log_app, ["list", "--json", *words])
        assert found.exit_code == 0, found.output
        return [json.loads(row) for row in found.stdout.splitlines()]

    rows = listed("--plant", "--station", "s")
    assert rows == listed("--journal", str(journal))
    reviews = [(row["seq"], row["review"]) for row in rows if row["review"]]
    assert [
        (seq, review["verdict"], review["reviewer"], review["pending"]) for seq, review in reviews
    ] == [(18, "PASS", "ada, bela", False), (12, None, "", True), (6, "PASS", "ada", False)]
    assert len(listed("--plant")) == 12
    assert CliRunner().invoke(log_app, ["list", "--plant"]).exit_code == 0
    refused = CliRunner().invoke(log_app, ["list", "--plant", "--after", "7"])
    assert refused.exit_code == 2
    assert "--after" in refused.stderr


def four_eyes_review(number: int, reviewer: str, supersedes: int) -> ReviewBody:
    """Where the recipe asks for two people to pass what failed."""
    given = {"four_eyes": (Verdict.FAIL,), "supersedes": supersedes, "nonce": f"nonce-{reviewer}"}
    return review(number, Verdict.PASS, reviewer).model_copy(update=given)


def test_verify_says_what_is_missing_also_where_no_station_is_seen(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verified(user: str, *words: str) -> tuple[int, str]:
        monkeypatch.setenv("VQI_PLANT_DSN", plant.settings(user).dsn)
        found = CliRunner().invoke(log_app, ["verify", "--plant", *words])
        return found.exit_code, found.output

    status, said = verified("postgres")
    assert (status, "has no rows of any station for this role" in said) == (1, True)
    bodies = (
        body.model_copy(update={"station_id": name}) for name in "ab" for body in plates(1, 2)
    )
    for name, rows in itertools.groupby(bodies, key=lambda body: body.station_id):
        shipment(plant, write(tmp_path / name, *rows), name).send_all()
    assert verified("postgres")[0] == 0
    nobody = plant.make_role("nobody", "viewer")
    assert verified(nobody)[0] == 1
    plant.sql("ALTER TABLE row DISABLE TRIGGER row_stays")
    status, said = verified("postgres")
    assert (status, said.count("trigger row_stays of table row is not in force")) == (1, 1)
    assert [line.split(":")[0] for line in said.splitlines()][1:] == ["ok", "ok"]
    assert "row_stays" in verified(nobody)[1]
    status, said = verified("postgres", "--json")
    assert (status, [json.loads(row)["ok"] for row in said.splitlines()]) == (
        1,
        [False, True, True],
    )


def test_a_rebuild_handles_each_plate_once(plant: Plant, long_log: Path) -> None:
    shipment(plant, long_log, STATION).send_all()
    read = text("SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_all_tables "
                "WHERE relname = 'arriving_plate'")  # fmt: skip
    with plant.hub() as hub:
        assert hub.rebuild(STATION) == len(stored(long_log))
        with hub.asking() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with hub.asking() as connection:
            again = connection.execute(read).scalar_one()
    assert again <= plant.rows("SELECT count(*) FROM plate")[0][0]
    assert plant.findings(STATION) == []


# --- what must not arrive -----------------------------------------------------------------------


def test_rows_that_come_twice_or_overlapping_are_there_once(plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 20))
    rows = stored(journal)
    with plant.hub() as hub:
        for first, last in ((0, 10), (0, 10), (5, 25), (3, 8), (25, 40), (0, 40)):
            hub.deliver(batch("s", rows[first:last]))
    assert_all_arrived(plant, journal)


def test_rows_out_of_order_are_refused_by_number(plant: Plant, tmp_path: Path) -> None:
    rows = stored(write(tmp_path, *plates(1, 10)))
    with plant.hub() as hub:
        hub.deliver(batch("s", rows[:5]))
        with pytest.raises(ChainError, match=r"row 6 is missing: .* up to 5, row 9 came next"):
            hub.deliver(batch("s", rows[8:]))
        with pytest.raises(ChainError, match="row 8 does not continue the chain"):
            hub.deliver(batch("s", [*rows[5:6], rows[7], rows[6]]))
        changed = rows[6]._replace(body=rows[6].body.replace("PASS", "FAIL") + " ")
        with pytest.raises(ChainError, match="row 7 does not continue the chain"):
            hub.deliver(batch("s", [*rows[5:6], changed, *rows[7:]]))
    assert arrived(plant, "s") == rows[:5]


def test_a_fork_stops_and_names_its_first_row(plant: Plant, tmp_path: Path) -> None:
    one = write(tmp_path / "one", *plates(1, 11))
    two = shutil.copytree(one, tmp_path / "two")
    shipment(plant, write(one, *plates(12, 20))).send_all()
    before = arrived(plant, "s")
    write(two, change("restored and continued"))
    for bodies in ([], plates(12, 40)):
        write(two, *bodies)
        with pytest.raises(ChainError, match="row 23 is not the one that the plant has"):
            shipment(plant, two).send_all()
    assert arrived(plant, "s") == before


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
    assert len(arrived(restored, "s")) == 40
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


@pytest.mark.parametrize("made_by_step_2", [False, True])
def test_a_row_before_in_a_table_of_the_shippers_own_is_none(
    plant: Plant, tmp_path: Path, made_by_step_2: bool
) -> None:
    role = plant.make_role("line", "shipper", "s")
    shipment(plant, write(tmp_path, *plates(1, 3))).send_all()
    if made_by_step_2:
        plant.sql(
            "ALTER FUNCTION row_arrived() SET search_path = public",
            "DELETE FROM plant_step WHERE number >= 5",
            "DROP INDEX row_review",
        )
        with plant.hub(f"owner_{plant.name}") as hub:
            assert 5 in hub.create()
    before = "0" * 64
    body = hashlib.sha256(b"{}").hexdigest()
    chain = hashlib.sha256(f"{before} 7 change {body}".encode()).hexdigest()
    with psycopg.connect(plant.server.dsn(plant.name, role), autocommit=True) as connection:
        for statement in (
            "CREATE TEMPORARY TABLE row AS SELECT * FROM public.row WITH NO DATA",
            f"INSERT INTO pg_temp.row VALUES ('s', 6, 'change', '{{}}', '', '{before}')",
            "GRANT ALL ON pg_temp.row TO PUBLIC",
        ):
            connection.execute(statement)
        with pytest.raises(psycopg.Error, match="row 7 of station s does not continue its chain"):
            connection.execute(
                INSERT.format("s", 7, body, chain).replace("INTO row", "INTO public.row")
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE FUNCTION public.repeat(text, int) RETURNS text AS '' "
                               "LANGUAGE sql")  # fmt: skip
    assert len(arrived(plant, "s")) == 6


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


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('dsn = "host=hub password=secret"', "plant.dsn holds a password"),
        ('dsn = "postgresql://line:secret@hub/plant"', "plant.dsn holds a password"),
        ("", "give dsn, dsn_file or both"),
        ('dsn = "host=hub"\nimages = "/x"\ns3_endpoint_url = "http://s3"', "needs images = s3://"),
        ('dsn = "hots=hub"', 'plant.dsn: invalid connection option "hots"'),
        ('dsn_file = "/no/such/file"', "plant.dsn_file /no/such/file: cannot be read"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(tmp_path: Path, lines: str, said: str) -> None:
    config = str(Rig(tmp_path, tables=f"[plant]\n{lines}\n").write())
    with pytest.raises(ConfigError) as caught:
        _open_plant(config)
    assert said in str(caught.value).replace("plant: dsn", "plant.dsn")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def _open_plant(config: str) -> Hub:
    plant = load_configuration(config).value.plant
    assert plant is not None
    return Hub(plant)


# --- pictures -----------------------------------------------------------------------------------


def picture(journal: Path, content: bytes) -> ImageBody:
    """Stored at the station, as a result names it."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = journal / "images" / sha256[:2] / f"{sha256}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    name = f"{sha256[:2]}/{sha256}.png"
    return ImageBody(
        role="evidence", path=name, sha256=sha256, bytes=len(content), width_px=1, height_px=1
    )


def with_pictures(journal: Path, *contents: bytes) -> list[ImageBody]:
    """A log of a plate for each picture; the pictures."""
    images = [picture(journal, content) for content in contents]
    rows = enumerate(images, start=1)
    write(
        journal, *(result(number, images=(image,), runtime=f"t {number}") for number, image in rows)
    )
    return images


def test_pictures_arrive_once_and_whole(plant: Plant, tmp_path: Path) -> None:
    journal, store = tmp_path / "journal", tmp_path / "store"
    images = with_pictures(journal, b"one", b"two", b"one", b"removed", b"lost", b"changed")
    removed, lost, changed = images[3:]
    for image in (removed, lost):
        (journal / "images" / image.path).unlink()
    (journal / "images" / changed.path).write_bytes(b"chanGed")
    write(journal, tombstone(4, removed))
    to_store = shipment(plant, journal, images=str(store))
    with pytest.raises(PicturesError, match="there is no such folder; mount it"):
        to_store.send_all()
    assert len(arrived(plant, "s")) == 7, "rows do not wait for pictures"
    store.mkdir()
    sent = to_store.send_all()
    assert (sent.rows, sent.pictures, sent.missing) == (0, 2, 2)
    files = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.*")}
    assert files == {images[0].path: b"one", images[1].path: b"two"}
    assert to_store.send_all().pictures == 0
    # What the plant lost is sent again where it is told so.
    (store / images[0].path).write_bytes(b"on")
    plant.sql("INSERT INTO picture_position (station_id, seq) VALUES ('s', 0)")
    assert to_store.send_all().pictures == 1
    assert (store / images[0].path).read_bytes() == b"one"


def test_a_picture_counts_as_there_once_no_power_cut_takes_its_name_back(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, store = tmp_path / "journal", tmp_path / "store"
    store.mkdir()
    images = with_pictures(journal, b"one", b"two")
    folders = {store, *((store / image.path).parent for image in images)}
    broken, synced, to_disk = store, list[Path](), os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        to_disk(descriptor)
        synced.append(path)

    monkeypatch.setattr(os, "fsync", fsync)
    to_store = shipment(plant, journal, images=str(store))
    with pytest.raises(PicturesError, match="Input/output error"):
        to_store.send_all()
    noted = "SELECT max(seq) FROM picture_position"
    assert plant.rows(noted) == [(None,)]
    assert all((store / image.path).exists() for image in images)
    broken = tmp_path
    synced.clear()
    # What another life put there need not be durable, either.
    assert to_store.send_all().pictures == 0
    assert set(synced) == folders
    assert plant.rows(noted) == [(len(stored(journal)),)]


def tombstone(number: int, image: ImageBody) -> TombstoneBody:
    return TombstoneBody(
        station_id="s",
        result_id=result_id("s", number),
        role=image.role,
        path=image.path,
        sha256=image.sha256,
        bytes=image.bytes,
        picture_class=PictureClass.FAIL,
        rule="days",
        measured=31.0,
        limit=30.0,
        why="older than 30 days",
    )


def test_pictures_go_to_an_object_store(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3", reason="no boto3 here: pip install 'vqi-station[plant]'")
    moto = pytest.importorskip("moto.server", reason="no moto here: pip install 'moto[server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        journal = tmp_path / "journal"
        images = with_pictures(journal, b"one", b"two" * 100_000)
        to_store = shipment(plant, journal, images="s3://qms/line", s3_endpoint_url=url)
        with pytest.raises(PicturesError, match=r"s3://qms: .*bucket does not exist"):
            to_store.send_all()
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="qms")
        assert [to_store.send_all().pictures for _ in range(2)] == [2, 0]
        for image in images:
            found = client.get_object(Bucket="qms", Key=f"line/{image.path}")["Body"].read()
            assert found == (journal / "images" / image.path).read_bytes()
        shelf = S3Shelf("qms", "line", url)
        with pytest.raises(PicturesError, match="did not arrive as it was sent"):
            shelf.put("spoiled.png", b"other", images[0].sha256)
        assert not shelf.has("spoiled.png", 5)
    finally:
        server.stop()


def test_a_picture_that_cannot_be_read_is_waited_for(plant: Plant, tmp_path: Path) -> None:
    journal, store = tmp_path / "journal", tmp_path / "store"
    store.mkdir()
    (image,) = with_pictures(journal, b"one")
    path = journal / "images" / image.path
    path.unlink()
    path.mkdir()  # as good as a disk that does not answer
    to_store = shipment(plant, journal, images=str(store))
    with pytest.raises(PicturesError, match="cannot be read: Is a directory"):
        to_store.send_all()
    path.rmdir()
    path.write_bytes(b"one")
    sent = to_store.send_all()
    assert (sent.pictures, sent.missing) == (1, 0)


# --- what is away, cut off, killed --------------------------------------------------------------


def test_what_cannot_be_used_is_one_line_each(
    plant: Plant, server: Postgres, tmp_path: Path
) -> None:
    journal = write(tmp_path, *plates(1, 2))
    plant.sql(f"CREATE ROLE wrong_{plant.name} LOGIN PASSWORD 'right'")
    by_tcp = f"host=127.0.0.1 port={PORT} dbname={plant.name} user=wrong_{plant.name}"
    secret = tmp_path / "secret"
    secret.write_text("password=not_this_one")
    server.sql("postgres", f"CREATE DATABASE {plant.name}_empty")
    read_only = f"{plant.settings().dsn} options='-c default_transaction_read_only=on'"
    cases = {
        "nobody listens": (PlantSettings(dsn="host=127.0.0.1 port=1"), "refused"),
        "password": (PlantSettings(dsn=by_tcp, dsn_file=secret), "password authentication failed"),
        "TLS": (PlantSettings(dsn=f"{by_tcp} sslmode=require"), "does not support SSL"),
        "no tables": (PlantSettings(dsn=server.dsn(f"{plant.name}_empty")), "vqi plant create"),
        "read-only": (PlantSettings(dsn=read_only), "it is read-only"),
    }
    for name, (settings, said) in cases.items():
        with pytest.raises(PlantError, match=said) as caught:
            Shipment("s", journal, settings).send_all()
        assert "\n" not in str(caught.value), name
        assert "not_this_one" not in str(caught.value), name


def test_a_network_that_drops_in_mid_batch_loses_and_doubles_nothing(
    plant: Plant, tmp_path: Path, long_log: Path
) -> None:
    plant.sql(f"CREATE ROLE tcp_{plant.name} LOGIN SUPERUSER PASSWORD 'p'")
    (tmp_path / "secret").write_text("password=p")
    proxy = CuttingProxy(1_500_000)
    dsn = f"host=127.0.0.1 port={proxy.port} dbname={plant.name} user=tcp_{plant.name}"
    settings = PlantSettings(dsn=dsn, dsn_file=tmp_path / "secret")
    seen = []
    for limit in (1_500_000, 1_000_000, 4_000, 10**9):
        proxy.after_bytes = limit
        try:
            Shipment(STATION, long_log, settings).send_all()
        except PlantError:
            assert proxy.cuts > 0
        seen.append(plant.rows("SELECT count(*), coalesce(max(seq), 0) FROM row")[0])
    proxy.close()
    assert all(count == last for count, last in seen)
    assert seen[0][0] < seen[-1][0]
    assert_all_arrived(plant, long_log, STATION)


class Manager:
    """The service manager, at its end of the socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)

    def hear(self, words: str) -> str:
        """The next message that has these words."""
        while words not in (message := self._socket.recv(65536).decode()):
            pass
        return message

    def heard(self) -> list[str]:
        """What is there already."""
        self._socket.setblocking(False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(65536).decode())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        with contextlib.closing(Manager(Path(folder) / "notify")) as found:
            yield found


def test_each_outage_begins_anew(
    plant: Plant, tmp_path: Path, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ship")
    stop = threading.Event()
    to_plant = shipment(plant, write(tmp_path, *plates(1, 3)))
    follower = threading.Thread(target=follow, args=(to_plant, stop))
    follower.start()
    try:
        for _ in range(2):
            manager.hear("the plant has all rows up to 6")
            open_database(plant, is_open=False)
            assert "STATUS=waits 1 s" in manager.hear("STATUS=waits")
            open_database(plant, is_open=True)
        manager.hear("the plant has all rows up to 6")
    finally:
        stop.set()
        follower.join()
    said = [record.getMessage() for record in caplog.records if record.name == "ship"]
    assert sum("cannot be reached" in line for line in said) == 2
    assert sum("is back" in line for line in said) == 2


def open_database(plant: Plant, is_open: bool) -> None:
    plant.server.sql(
        "postgres",
        f"ALTER DATABASE {plant.name} ALLOW_CONNECTIONS {is_open}",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{plant.name}' AND NOT {is_open}",
    )


def test_the_watchdog_hears_of_each_picture(plant: Plant, tmp_path: Path, manager: Manager) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with_pictures(tmp_path / "journal", b"one", b"two", b"three")
    shipment(plant, tmp_path / "journal", images=str(store)).send_all()
    assert manager.heard().count("WATCHDOG=1") >= 3 + 1, "one more for the batch of rows"


@pytest.mark.parametrize(
    "kills", [4, pytest.param(6, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_kills_of_shipper_and_server_lose_and_double_nothing(
    plant: Plant, tmp_path: Path, kills: int
) -> None:
    outcome = kill_at_random(plant, tmp_path, kills, seed=kills)
    assert_all_arrived(plant, tmp_path / "journal", STATION)
    assert outcome.kills == kills
    assert outcome.within_a_batch > 0
