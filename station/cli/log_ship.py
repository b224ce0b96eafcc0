"""`vqi log ship` and `vqi log verify --plant`: the log beyond its station."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    fail,
    load_or_exit,
    print_json,
)
from station.config import EX_CONFIG, PlantSettings
from station.log_reader import judged
from station.logs import set_up_logging
from station.qms import Json, StoreError
from station.questions import Questions, Selection
from station.systemd import exit_with_starter, notify

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from station.plant import Hub
    from station.plant_verify import PlantVerification

PlantDsn = Annotated[
    str | None,
    typer.Option("--dsn", envvar="VQI_PLANT_DSN", help="Plant database, as libpq takes it."),
]
Plant = Annotated[bool, typer.Option("--plant", help="What the plant's database has, instead.")]
Station = Annotated[str | None, typer.Option(help="With --plant: this one alone.")]


def ship(
    config: ConfigOption,
    is_following: Annotated[
        bool, typer.Option("--follow/--once", help="Send what comes, or what is there and end.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Send the log, and its pictures, to the plant's database; exactly once, and never in the way
    of a verdict."""
    configuration = load_or_exit(config).value
    plant = configuration.plant
    if plant is None:
        fail(f"{config}: there is no [plant] section: see docs/plant.md", EX_CONFIG)
    from station.ship import follow, give_way, shipment_of

    give_way()
    shipment = shipment_of(configuration, plant)
    with plain_errors():
        if is_following:
            set_up_logging("ship", configuration.station.id)
            exit_with_starter()
            notify("READY=1")
            follow(shipment, until_told())
            return
        sent = shipment.send_all()
    row = {
        "station_id": shipment.station_id,
        "rows": sent.rows,
        "pictures": sent.pictures,
        "missing_pictures": sent.missing,
        "head_seq": sent.head.seq,
        "head_chain_sha256": sent.head.chain_sha256,
    }
    if is_json:
        print_json(row)
    else:
        typer.echo(
            f"sent {sent.rows} rows, {sent.pictures} pictures; the plant has all rows up to "
            f"{sent.head.seq}"
        )
    if sent.missing:
        fail(f"{sent.missing} pictures could not be sent: they are not at the station")


def until_told() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def plain_errors() -> Iterator[None]:
    """One line each, whatever cannot be used."""
    from station.plant import PlantError
    from station.ship_pictures import PicturesError

    with exit_on_config_error():
        try:
            yield
        except (PlantError, PicturesError, StoreError) as error:
            fail(str(error))


@contextmanager
def plant_hub(config: str | None, dsn: str | None) -> Iterator[Hub]:
    """The plant's database by --dsn, VQI_PLANT_DSN, or a configuration's [plant]."""
    from station.plant import Hub

    with plain_errors(), Hub(plant_settings(config, dsn)) as hub:
        yield hub


def plant_results(config: str | None, selection: Selection, limit: int) -> Iterator[Json]:
    """Result bodies of all stations with their `seq` and what their reviews come to, newest
    first."""
    with _plant(config) as hub, hub.asking() as connection:
        for page in _questions(connection).pages(selection, limit):
            bodies = hub.bodies(connection, [(line.station_id, line.seq) for line in page])
            reviews = _reviews(hub, connection, page)
            for line in page:
                row = {"seq": line.seq, **bodies[line.station_id, line.seq]}
                of_it = reviews.get((line.station_id, line.result_id), ())
                yield {**row, "review": judged([row, *of_it])}


def _reviews(
    hub: Hub, connection: Connection, page: Sequence[Any]
) -> dict[tuple[str, str], list[Json]]:
    """Of the plates of a page, by station and result."""
    found: dict[tuple[str, str], list[Json]] = {}
    reviewed = [line for line in page if line.review_seq]
    for station_id in {line.station_id for line in reviewed}:
        lines = [line for line in reviewed if line.station_id == station_id]
        first, last = min(line.seq for line in lines), max(line.review_seq for line in lines)
        for result_id, reviews in hub.reviews(connection, station_id, first, last).items():
            found[station_id, result_id] = reviews
    return found


def plant_counts(config: str | None, selection: Selection, *by: str) -> Sequence[Any]:
    """Plates of all stations, counted by columns."""
    with _plant(config) as hub, hub.asking() as connection:
        return _questions(connection).counts(selection, *by)


def _questions(connection: Connection) -> Questions:
    return Questions(lambda query: connection.execute(query).all())


def _plant(config: str | None) -> AbstractContextManager[Hub]:
    return plant_hub(config, os.environ.get("VQI_PLANT_DSN"))


def plant_settings(config: str | None, dsn: str | None) -> PlantSettings:
    if dsn is not None:
        # Given by a person for this command alone: it may hold a password.
        return PlantSettings.model_construct(dsn=dsn)
    plant = load_or_exit(config).value.plant if config is not None else None
    if plant is None:
        fail("name the plant's database: --config FILE with [plant], or VQI_PLANT_DSN", 2)
    if plant.nats is not None and not plant.dsn and plant.dsn_file is None:
        fail(f"{config}: [plant] sends to {plant.nats}; name the database by VQI_PLANT_DSN", 2)
    return plant


def verify_plant(config: str | None, station: str | None, is_json: bool) -> NoReturn:
    """Recompute each station's chain in the plant's database. Exit status 1 if anything differs."""
    from sqlalchemy import text

    from station.plant_verify import missing_guards, verify_station

    with _plant(config) as hub, hub.asking() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        guards = missing_guards(connection)
        _show_guards(hub, guards, is_json)
        is_ok = not guards
        for station_id in _chosen(hub, connection, station):
            found = verify_station(connection, station_id)
            is_ok &= not found.findings
            _show(found, is_json)
    raise typer.Exit(0 if is_ok else 1)


def _chosen(hub: Hub, connection: Connection, station: str | None) -> list[str]:
    """The stations to verify; that there are none is no good news."""
    there = hub.station_ids(connection)
    chosen = there if station is None else [station] if station in there else []
    if not chosen:
        whose = "any station" if station is None else f"station {station}"
        fail(f"plant database {hub.name} has no rows of {whose} for this role")
    return chosen


def _show_guards(hub: Hub, guards: list[str], is_json: bool) -> None:
    """Those of the database as a whole."""
    if is_json and guards:
        print_json({"station_id": None, "ok": False, "rows": 0, "head": "", "findings": guards})
        return
    for guard in guards:
        typer.echo(f"plant database {hub.name}: {guard}")


def _show(found: PlantVerification, is_json: bool) -> None:
    if is_json:
        print_json(
            {
                "station_id": found.station_id,
                "ok": not found.findings,
                "rows": found.rows,
                "head": found.head,
                "findings": found.findings,
            }
        )
        return
    for finding in found.findings:
        typer.echo(f"station {found.station_id}: {finding}")
    state = "NOT OK" if found.findings else "ok"
    typer.echo(f"{state}: station {found.station_id}: {found.rows} rows, head {found.head[:16]}")
