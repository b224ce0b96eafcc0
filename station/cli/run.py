"""`vqi run`: the station with all its processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    load_or_exit,
    print_json,
)
from station.config import Configuration, Loaded
from station.ipc import Json
from station.product import load_product
from station.supervisor import Supervisor
from station.view import LiveView, plain_line, print_summary


def run(
    config: ConfigOption,
    plates: Annotated[int | None, typer.Option(min=1, help="End after so many plates.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    record: Annotated[Path | None, typer.Option(help="Record the strip in this folder.")] = None,
    is_json: JsonOption = False,
) -> None:
    """Run the station until it is told to stop (Ctrl-C)."""
    loaded = load_or_exit(config)
    with exit_on_config_error():
        load_product(loaded)
    options = [] if seconds is None else ["--seconds", str(seconds)]
    options += [] if record is None else ["--record", str(record)]

    def start(show: Callable[[Json], None], log: Callable[[str], None]) -> Supervisor:
        return Supervisor(config, plates, options, show, log)

    if is_json:
        supervisor = start(_show_record, _log)
        status = supervisor.run()
        if supervisor.report.summary is not None:
            print_json({"summary": supervisor.report.summary})
    elif sys.stdout.isatty():
        supervisor, status = _run_live(loaded, start)
    else:
        supervisor = start(_show_line, _log)
        status = supervisor.run()
    if not is_json and supervisor.report.summary is not None:
        print_summary(Console(), supervisor.report.summary)
    raise typer.Exit(status)


def _run_live(
    loaded: Loaded[Configuration],
    start: Callable[[Callable[[Json], None], Callable[[str], None]], Supervisor],
) -> tuple[Supervisor, int]:
    settings = loaded.value
    view = LiveView(settings.light.pattern_table, f"{settings.station.id}  {loaded.source}")
    console = Console()
    with Live(view, console=console, refresh_per_second=8):
        supervisor = start(view.take, lambda text: console.print(text, style="yellow"))
        return supervisor, supervisor.run()


def _show_record(event: Json) -> None:
    if "record" in event:
        print_json(event["record"])


def _show_line(event: Json) -> None:
    line = plain_line(event)
    if line is not None:
        typer.echo(line)


def _log(text: str) -> None:
    typer.echo(text, err=True)
