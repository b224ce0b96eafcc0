"""`vqi plant`: the plant's database, by whoever owns it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from station.cli.common import JsonOption, fail, print_json
from station.cli.log_options import Config
from station.cli.log_ship import PlantDsn, plant_hub
from station.record import rfc3339

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
