"""The log by a JetStream to the plant: every row once and in order, whatever is killed or lost."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_journal import STATION, block_rows
from nats_peer import Nats, running_nats
from postgres_peer import Postgres, running_postgres
from ship_rig import Plant, arrived, make_plant, stored
from station_rig import Rig, start_vqi, vqi, wait_until
from test_ship import plates, write

from station.config import PlantSettings
from station.packing import Contexts
from station.plant import Batch, ChainError, PlantError, prepare
from station.plant_stream import Stream, receive
from station.qms import Store
from station.ship import Shipment

pytest.importorskip("nats", reason="no nats here: pip install 'vqi-station[plant]'")
_LIMIT_S = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture
def plant(server: Postgres) -> Plant:
    return make_plant(server)


@pytest.fixture
def nats() -> Iterator[Nats]:
    with running_nats() as found:
        with Stream(PlantSettings(nats=found.url)) as stream:
            stream.create()
        yield found


def hand_over(nats: Nats, journal: Path, station_id: str = "s") -> int:
    return Shipment(station_id, journal, PlantSettings(nats=nats.url)).send_all().rows


def receive_all(nats: Nats, plant: Plant) -> int:
    settings = plant.settings(nats=nats.url)
    return receive(settings, threading.Event(), is_once=True)


def test_every_row_comes_once(nats: Nats, plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path / "one", *itertools.islice(block_rows(1, 0, 25), 4000))
    rows = len(stored(journal))
    assert hand_over(nats, journal, STATION) == rows
    assert hand_over(nats, journal, STATION) == 0
    assert receive_all(nats, plant) == rows
    assert receive_all(nats, plant) == 0
    assert arrived(plant, STATION) == stored(journal)
    assert plant.findings(STATION) == []


def test_several_stations_share_a_stream(nats: Nats, plant: Plant, tmp_path: Path) -> None:
    journals = {name: tmp_path / name for name in ("a", "b", "c")}
    for turn in range(3):
        for name, journal in journals.items():
            changed = [
                row.model_copy(update={"station_id": name})
                for row in plates(10 * turn + 1, 10 * turn + 10)
            ]
            write(journal, *changed)
            assert hand_over(nats, journal, name) == 20
        receive_all(nats, plant)
    for name, journal in journals.items():
        assert arrived(plant, name) == stored(journal)
        assert plant.findings(name) == []


def test_a_stream_that_lost_everything_gets_it_again(
    nats: Nats, plant: Plant, tmp_path: Path
) -> None:
    journal = write(tmp_path, *plates(1, 20))
    hand_over(nats, journal)
    receive_all(nats, plant)
    write(journal, *plates(21, 30))
    hand_over(nats, journal)
    nats.lose_everything()
    with pytest.raises(PlantError, match="no stream vqi-rows: start `vqi plant receive`"):
        hand_over(nats, journal)
    assert receive_all(nats, plant) == 0
    assert hand_over(nats, journal) == 60
    assert receive_all(nats, plant) == 20
    assert arrived(plant, "s") == stored(journal)
    assert plant.findings("s") == []


def test_a_message_that_is_lost_is_named_and_brought_by_the_direct_way(
    nats: Nats, plant: Plant, tmp_path: Path
) -> None:
    journal = write(tmp_path, *plates(1, 20))
    hand_over(nats, journal)
    with Stream(PlantSettings(nats=nats.url)) as stream:
        stream._run(stream._js.purge_stream("vqi-rows", keep=1))
        write(journal, *plates(21, 30))
        hand_over(nats, journal)
        stream._run(stream._js.delete_msg("vqi-rows", 1))
    # What came after the lost message is not stored, and is not lost either.
    assert receive_all(nats, plant) == 0
    Shipment("s", journal, plant.settings()).send_all()
    assert receive_all(nats, plant) == 0
    assert arrived(plant, "s") == stored(journal)
    assert plant.findings("s") == []


def test_a_fork_and_an_older_copy_are_refused(nats: Nats, tmp_path: Path) -> None:
    journal = write(tmp_path / "first", *plates(1, 20))
    hand_over(nats, journal)
    with pytest.raises(ChainError, match="its log ends at row 20, the plant has rows up to 40"):
        hand_over(nats, write(tmp_path / "older", *plates(1, 10)))
    other = [row.model_copy(update={"station_id": "s"}) for row in plates(31, 50)]
    with pytest.raises(ChainError, match="is not the one that the plant has"):
        hand_over(nats, write(tmp_path / "other", *other))


def test_two_senders_at_once_do_not_mix(nats: Nats, plant: Plant, tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 20))
    settings = PlantSettings(nats=nats.url)
    with Stream(settings) as slow:
        assert slow.head("s").seq == 0
        hand_over(nats, journal)
        shipment = Shipment("s", journal, settings)
        with pytest.raises(PlantError, match="another sender of station s was before"):
            slow.deliver(_first_batch(shipment))
    assert receive_all(nats, plant) == 40
    assert arrived(plant, "s") == stored(journal)


def _first_batch(shipment: Shipment) -> Batch:
    return prepare("s", stored(shipment.journal), Contexts(lambda seq: None))


def test_what_no_station_packed_stops_nobody_else(nats: Nats, plant: Plant, tmp_path: Path) -> None:
    with Stream(PlantSettings(nats=nats.url)) as stream:
        for data in (b"", b"nonsense", b"x\x9c\x03\x00\x00\x00\x00\x01"):
            stream._run(stream._js.publish("vqi.rows.bad", data))
    journal = write(tmp_path, *plates(1, 20))
    hand_over(nats, journal)
    assert receive_all(nats, plant) == 40
    assert arrived(plant, "s") == stored(journal)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    journal = write(tmp_path, *plates(1, 2))
    with pytest.raises(PlantError, match=r"^nats://127\.0\.0\.1:9: "):
        Shipment("s", journal, PlantSettings(nats="nats://127.0.0.1:9")).send_all()


@pytest.mark.long
def test_kills_lose_nothing(nats: Nats, plant: Plant, tmp_path: Path) -> None:
    """Server, shipper, receiver, each by the commands, in turn, while rows are on their way."""
    journal = tmp_path / "journal"
    rig = Rig(tmp_path, journal_folder=journal)
    config = tmp_path / "station.toml"
    text = rig.write().read_text().replace('id = "test-1"', f'id = "{STATION}"')
    config.write_text(f'{text}\n[plant]\nnats = "{nats.url}"\n')
    ship = ("log", "ship", "--follow", "--config", str(config))
    take = ("plant", "receive", "--nats", nats.url, "--dsn", plant.server.dsn(plant.name))
    chance, rows = random.Random(1), block_rows(1, 0, 25)
    with Store(journal) as store:
        running = [start_vqi(*ship), start_vqi(*take)]
        try:
            for number in range(6):
                store.append(list(itertools.islice(rows, 300)))
                threading.Event().wait(chance.uniform(0.1, 0.6))
                if number % 3 == 2:
                    nats.kill()
                    nats.start()
                    continue
                running[number % 3].kill()
                running[number % 3].wait()
                running[number % 3] = start_vqi(*(ship, take)[number % 3])
            last = store.head()[0]
            wait_until(lambda: len(arrived(plant, STATION)) == last, _LIMIT_S, "all rows")
        finally:
            for process in running:
                process.kill()
                process.wait()
    assert arrived(plant, STATION) == stored(journal)
    assert plant.findings(STATION) == []


def test_a_configuration_says_where_rows_go(tmp_path: Path) -> None:
    text = Rig(tmp_path).write().read_text()
    config = tmp_path / "station.toml"
    config.write_text(f'{text}\n[plant]\nnats = "nats://hub"\nimages = "/mnt"\n')
    done = vqi("log", "ship", "--once", "--config", str(config))
    assert (done.returncode, "images go beside the database" in done.stderr) == (78, True)
