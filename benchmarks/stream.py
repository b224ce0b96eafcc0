"""Many stations at once: to PostgreSQL directly, and by a NATS JetStream to it.

    python benchmarks/stream.py [--stations 20] [--plates 2000]

Each station is a shipper process of its own that replays a log made before. Servers, shippers and
receiver share this machine. `handed_over_s`: until all shippers were done; `stored_s`: until the
database had every row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from nats_peer import Nats, running_nats
from own_machine import enter_own_network
from postgres_peer import running_postgres
from ship import journal
from ship_rig import Plant, make_plant

from station.config import PlantSettings
from station.plant_stream import Stream, receive
from station.plant_verify import verify_station
from station.ship import Shipment

_LONGEST_S = 3600.0


def send(settings: PlantSettings, station_id: str, folder: Path) -> int:
    return Shipment(station_id, folder, settings).send_all().rows


def measure(
    plant: Plant, settings: PlantSettings, logs: dict[str, Path], nats: Nats | None
) -> None:
    stop = threading.Event()
    receiver = threading.Thread(target=receive, args=(settings, stop, False))
    began = time.monotonic()
    if nats is not None:
        receiver.start()
    with ProcessPoolExecutor(len(logs)) as pool:
        rows = sum(pool.map(send, itertools.repeat(settings), logs, logs.values()))
    handed_over_s = time.monotonic() - began
    while plant.rows("SELECT count(*) FROM row")[0][0] < rows:
        assert time.monotonic() - began < _LONGEST_S
        time.sleep(0.05)
    stored_s = time.monotonic() - began
    if nats is not None:
        stop.set()
        receiver.join()
    records = int(str(plant.rows("SELECT count(*) FROM plate")[0][0]))
    for station_id in logs:
        with plant.hub() as hub, hub.asking() as connection:
            assert not verify_station(connection, station_id).findings
    print(json.dumps({
        "way": "direct" if nats is None else "JetStream", "stations": len(logs),
        "records": records, "rows": rows, "handed_over_s": round(handed_over_s, 2),
        "stored_s": round(stored_s, 2), "records_per_s": round(records / stored_s),
        "verified": True, "load_1min": os.getloadavg()[0],
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stations", type=int, default=20)
    parser.add_argument("--plates", type=int, default=2000)
    given = parser.parse_args()
    logs = {
        f"line-{number}": journal(f"line-{number}", given.plates)
        for number in range(1, given.stations + 1)
    }
    enter_own_network()  # other servers may run here
    with running_postgres(is_durable=True) as server:
        plant = make_plant(server)
        measure(plant, plant.settings(), logs, None)
        with running_nats() as nats:
            with Stream(PlantSettings(nats=nats.url)) as stream:
                stream.create()
            plant = make_plant(server)
            measure(plant, plant.settings(nats=nats.url), logs, nats)


if __name__ == "__main__":
    main()
