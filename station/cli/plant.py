"""`vqi plant`: the plant's database, by whoever owns it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from station.cli.common import JsonOption, fail, print_json
from station.cli.log_options import Config
from station.cli.log_ship import PlantDsn, plain_errors, plant_hub, plant_settings, until_told
from station.logs import set_up_logging
from station.record import rfc3339
from station.systemd import notify

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(config: Config = None, dsn: PlantDsn = None) -> None:
    """Make the tables, triggers and roles, or bring them up to this program; nothing is removed."""
    with plant_hub(config, dsn) as hub:
        steps = hub.create()
        typer.echo(f"{hub.name}: {f'steps {steps} applied' if steps else 'nothing to do'}")


@app.command()
def grant(
    role: Annotated[str, typer.Argument(help="A login role that exists.")],
    duty: Annotated[Literal["shipper", "viewer", "qa"], typer.Argument(help="What it may do.")],
    station: Annotated[list[str] | None, typer.Option(help="Station id; for each one.")] = None,
    config: Config = None,
    dsn: PlantDsn = None,
) -> None:
    """Let a role send a station's rows, see those of some stations, or (qa) of all."""
    if (duty == "qa") == bool(station):
        fail("qa sees every station; shipper and viewer need --station", 2)
    with plant_hub(config, dsn) as hub:
        hub.grant(role, duty, station or [])
        whose = ", ".join(station or ["every station"])
        typer.echo(f"{hub.name}: {role} is {duty} of {whose}")


@app.command()
def anchors(
    station: Annotated[str, typer.Option(help="Station id.")],
    config: Config = None,
    dsn: PlantDsn = None,
    most: Annotated[int, typer.Option(min=1, max=100_000, help="Evenly over the chain.")] = 1000,
    is_json: JsonOption = False,
) -> None:
    """Which rows the plant has of a station, with which chain value, since when: a log that lacks
    one was cut or changed."""
    from station.plant_verify import anchors as read_anchors

    with plant_hub(config, dsn) as hub, hub.asking() as connection:
        for anchor in read_anchors(connection, station, most):
            if is_json:
                print_json({**anchor._asdict(), "arrived_at": rfc3339(anchor.arrived_at)})
            else:
                typer.echo(anchor.line())


@app.command()
def rebuild(
    station: Annotated[str, typer.Option(help="Station id.")],
    config: Config = None,
    dsn: PlantDsn = None,
) -> None:
    """Make QA's tables of a station again from its rows, after `vqi log verify --plant` named
    them."""
    with plant_hub(config, dsn) as hub:
        typer.echo(f"{hub.name}: {hub.rebuild(station)} rows of {station} read again")


@app.command()
def receive(
    nats: Annotated[str, typer.Option(envvar="VQI_PLANT_NATS", help="nats://host, tls://host.")],
    config: Config = None,
    dsn: PlantDsn = None,
    credentials: Annotated[Path | None, typer.Option(help="As `nsc` writes it, .creds.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Who signed the server's certificate.")] = None,
    is_following: Annotated[
        bool, typer.Option("--follow/--once", help="For ever, or what is there and end.")
    ] = True,
) -> None:
    """Store what stations hand over to a NATS JetStream; makes the stream where there is none."""
    from station.plant_stream import receive as receive_rows

    given = {"nats": nats, "nats_credentials_file": credentials, "nats_ca_file": ca}
    with plain_errors():
        settings = plant_settings(config, dsn).model_copy(update=given)
        if is_following:
            set_up_logging("plant", "plant")
            notify("READY=1")
        rows = receive_rows(settings, until_told(), not is_following)
    typer.echo(f"{rows} rows stored")
