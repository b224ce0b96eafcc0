"""How fast a log goes to a PostgreSQL of this machine, and whether all is there after kills.

    python benchmarks/ship.py [--plates 20000] [--stations 1] [--kills 0] [--profile]

A record is a plate: its opened, result and actuation rows, with QA's tables filled and the chain
checked by the shipper and by the database. Server, shipper and log share this machine.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import pstats
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from make_journal import BLOCK, STATION, block_rows
from own_machine import enter_own_network
from postgres_peer import running_postgres
from ship_rig import Plant, arrived, kill_at_random, make_plant, stored

from station.plant_verify import verify_station
from station.qms import Store
from station.record import Body
from station.ship import Shipment

JOURNALS = Path(tempfile.gettempdir()) / "vqi-ship-journals"


def journal(station_id: str, plates: int) -> Path:
    """A log through the real writer; made once."""
    folder = JOURNALS / f"{station_id}-{plates}"
    with Store(folder) as store:
        for number in range(store.last_sequence() // BLOCK, -(-plates // BLOCK)):
            store.append(list(_rows(station_id, number)))
    return folder


def _rows(station_id: str, number: int) -> Iterator[Body]:
    for body in block_rows(1, number, 25):
        changes = {"station_id": station_id}
        if getattr(body, "result_id", None):
            changes["result_id"] = body.result_id.replace(STATION, station_id)  # type: ignore[attr-defined]
        yield body.model_copy(update=changes)


def ship(plant: Plant, station_id: str, folder: Path) -> int:
    return Shipment(station_id, folder, plant.settings()).send_all().rows


def measure(plant: Plant, stations: int, plates: int, is_profiled: bool) -> None:
    logs = [
        (f"line-{number}", journal(f"line-{number}", plates)) for number in range(1, stations + 1)
    ]
    began, used_s = time.monotonic(), _cpu_s(stations > 1)
    if stations == 1:
        rows = _profiled(plant, *logs[0]) if is_profiled else ship(plant, *logs[0])
    else:
        with ProcessPoolExecutor(stations) as pool:
            rows = sum(pool.map(ship, itertools.repeat(plant), *zip(*logs, strict=True)))
    took_s = time.monotonic() - began
    records = plant.rows("SELECT count(*) FROM plate")[0][0]
    print(json.dumps({
        "stations": stations, "records": records, "rows": rows, "seconds": round(took_s, 2),
        "records_per_s": round(records / took_s), "rows_per_s": round(rows / took_s),
        "shipper_cpu_s": round(_cpu_s(stations > 1) - used_s, 2), "load_1min": os.getloadavg()[0],
    }))  # fmt: skip
    began = time.monotonic()
    for station_id, _ in logs:
        with plant.hub() as hub, hub.asking() as connection:
            found = verify_station(connection, station_id)
        assert not found.findings, found.findings
    print(json.dumps({"verified_rows": rows, "seconds": round(time.monotonic() - began, 2)}))


def _cpu_s(of_children: bool) -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _profiled(plant: Plant, station_id: str, folder: Path) -> int:
    profile = cProfile.Profile()
    rows = profile.runcall(ship, plant, station_id, folder)
    pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    return rows


def kill(plant: Plant, kills: int, folder: Path) -> None:
    began = time.monotonic()
    found = kill_at_random(plant, folder, kills, seed=kills)
    assert arrived(plant, STATION) == stored(folder / "journal")
    assert plant.findings(STATION) == []
    print(json.dumps({
        "kills": found.kills, "of_them_within_a_batch": found.within_a_batch,
        "rows": len(stored(folder / "journal")), "equal": True, "verified": True,
        "seconds": round(time.monotonic() - began, 1),
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plates", type=int, default=20_000)
    parser.add_argument("--stations", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    enter_own_network()  # another server may run here
    with running_postgres(is_durable=True) as server, tempfile.TemporaryDirectory() as folder:
        if given.kills:
            kill(make_plant(server), given.kills, Path(folder))
        else:
            measure(make_plant(server), given.stations, given.plates, given.profile)


if __name__ == "__main__":
    main()
