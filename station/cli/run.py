"""`vqi run`: the station with all its processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from station.cli.common import (
    ConfigOption,
    JsonOption,
    RecordGbOption,
    RecordOption,
    exit_on_config_error,
    json_line,
    load_or_exit,
)
from station.config import DEFAULT_RECORD_GB, Configuration, Loaded
from station.ipc import Json
from station.log_tail import log_folder
from station.logs import LOG_FOLDER_VARIABLE, set_up_logging
from station.outlet import Outlet, Write, write_line
from station.supervisor import METRICS, WEB, Supervisor
from station.view import LiveView, plain_line, print_summary


def run(
    config: ConfigOption,
    plates: Annotated[int | None, typer.Option(min=1, help="End after so many plates.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    record: RecordOption = None,
    record_gb: RecordGbOption = DEFAULT_RECORD_GB,
    is_web: Annotated[
        bool, typer.Option("--web", help="Show the page too, as where there is a [web] section.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Run the station until it is told to stop (Ctrl-C)."""
    loaded = load_or_exit(config)
    # What comes up on a page that shows the last lines; a terminal has scrolled them away.
    os.environ.setdefault(LOG_FOLDER_VARIABLE, str(log_folder(loaded.value.station.runtime_dir)))
    set_up_logging("supervisor", loaded.value.station.id)
    options = [] if seconds is None else ["--seconds", str(seconds)]
    if record is not None:
        options += ["--record", str(record), "--record-gb", str(record_gb)]

    def start(show: Write, log: Callable[[str], None]) -> Supervisor:
        others = [METRICS] if loaded.value.metrics is not None else []
        if is_web or loaded.value.web is not None:
            others.append(WEB)
        return Supervisor(config, plates, options, show, log, others, check)

    def check() -> None:
        # Only here: a lamp that still shows what a killed run left must not wait for OpenCV.
        from station.product import load_product
        from station.recipes import next_recipe

        load_product(loaded, next_recipe)

    with exit_on_config_error():
        if is_json:
            supervisor, status = _run_lines(start, _record_line)
        elif sys.stdout.isatty():
            supervisor, status = _run_live(loaded, start)
        else:
            supervisor, status = _run_lines(start, plain_line)
    if not is_json and supervisor.report.summary is not None:
        print_summary(Console(), supervisor.report.summary)
    raise typer.Exit(status)


Start = Callable[[Write, Callable[[str], None]], Supervisor]


def _run_lines(start: Start, line_of: Callable[[Json], str | None]) -> tuple[Supervisor, int]:
    """Events as lines on stdout, the supervisor's own words in the log."""

    def write(event: Json) -> None:
        line = line_of(event)
        if line is not None:
            write_line(1, line)

    with Outlet(write) as lines:
        supervisor = start(lines.emit, logging.getLogger("supervisor").warning)
        status = supervisor.run()
        if supervisor.report.summary is not None:
            lines.emit({"summary": supervisor.report.summary})
    return supervisor, status


def _run_live(loaded: Loaded[Configuration], start: Start) -> tuple[Supervisor, int]:
    settings = loaded.value
    view = LiveView(settings.light.pattern_table, f"{settings.station.id}  {loaded.source}")
    console = Console()
    with (
        Live(view, console=console, refresh_per_second=8),
        Outlet(lambda event: console.print(event["log"], style="yellow")) as words,
    ):
        supervisor = start(view.take, lambda text: words.emit({"log": text}))
        return supervisor, supervisor.run()


def _record_line(event: Json) -> str | None:
    if "record" in event:
        return json_line(event["record"])
    is_said = event.keys() == {"web"} or (event.keys() == {"summary"} and event["summary"])
    return json_line(event) if is_said else None
