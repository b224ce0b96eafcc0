"""`vqi serve`: one process of the station each, for the service manager and `vqi run`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import (
    ConfigOption,
    RecordGbOption,
    RecordOption,
    exit_on_config_error,
    fail,
    load_or_exit,
)
from station.config import (
    DEFAULT_RECORD_GB,
    EX_CONFIG,
    ConfigError,
    Configuration,
    Loaded,
    exit_status_of,
)
from station.lock import SHADOW_LOCK, take_lock
from station.logs import set_up_logging
from station.outlet import Outlet, write_json_line
from station.supervisor import JOURNAL, LAMP, METRICS, SHADOW, STATION, WEB, Role
from station.systemd import LONGEST_PAUSE_S, UnitLife, exit_with_starter, is_unit

app = typer.Typer(no_args_is_help=True)


def _begin(process: str, config: str) -> Loaded[Configuration]:
    """The configuration, or its exit status; from here on this process logs."""
    try:
        loaded = load_or_exit(config)
    except typer.Exit as end:
        if end.exit_code != EX_CONFIG and is_unit():
            time.sleep(LONGEST_PAUSE_S)  # it is not known yet where failures are remembered
        raise
    set_up_logging(process, loaded.value.station.id)
    return loaded


@contextlib.contextmanager
def _unit_life(role: Role, settings: Configuration) -> Iterator[bool]:
    """What the supervisor of `vqi run` does for its children, a unit's process does for itself: it
    waits longer before each start that follows a failing one. True if this start follows one.

    Imports come inside: a version that fails in one of them waits too."""
    if not is_unit():
        yield False
        return
    # The page's unit has another user, and a folder of its own (systemd.exec(5)).
    folder = os.environ.get("RUNTIME_DIRECTORY") or settings.station.runtime_dir
    file = Path(folder) / f"{role.name}.life"
    life = UnitLife(file, role.is_replaced_at_once)
    life.begin(role.start_limit_s)
    try:
        yield life.is_restart
    except typer.Exit as end:
        if end.exit_code in (0, EX_CONFIG):
            life.end()
        else:
            life.fail()
        raise


RestartOption = Annotated[bool, typer.Option("--restart", help="Started again after a failure.")]


@app.command()
def lamp(config: ConfigOption, restart: RestartOption = False) -> None:
    """Own the stack light; let a pass lapse."""
    settings = _begin("lamp", config).value
    with _unit_life(LAMP, settings) as is_restart:
        from station.lamp import serve

        raise typer.Exit(serve(settings, restart or is_restart))


@app.command()
def journal(config: ConfigOption) -> None:
    """Own the QMS log."""
    settings = _begin("journal", config).value
    with _unit_life(JOURNAL, settings):
        from station.journal import serve

        raise typer.Exit(serve(settings))


@app.command()
def metrics(config: ConfigOption) -> None:
    """Show figures to Prometheus, and /health."""
    settings = _begin("metrics", config).value
    with _unit_life(METRICS, settings):
        from station.metrics_server import serve

        raise typer.Exit(serve(settings))


def _start_again_if_recipe(settings: Configuration, error: Exception, events: Outlet) -> None:
    """Exit in order where a recipe that was only asked for may be to blame: the next start takes
    the former one."""
    from station.recipes import give_up

    if give_up(settings, str(error)):
        events.emit({"restart": f"the former recipe goes on: {error}"})
        raise typer.Exit(0) from error


@app.command()
def shadow(config: ConfigOption) -> None:
    """Score plates with the model that is in the shadow; wait where none is."""
    loaded = _begin("shadow", config)
    with _unit_life(SHADOW, loaded.value):
        # Light until there is something to do: no numpy, no runtime.
        from station.shadows import Life, wait_for_shadow

        exit_with_starter()
        folder = loaded.value.station.runtime_dir
        try:
            lock = take_lock(folder / SHADOW_LOCK)
        except OSError as error:
            problem = f"station.runtime_dir: {folder} cannot be used: {error.strerror}"
            fail(problem, exit_status_of(error))
        if lock is None:
            fail(f"{folder}: another shadow process runs there")
        life = Life()
        wanted = wait_for_shadow(folder, life)
        if wanted is None:
            raise typer.Exit(0)
        from station.shadow import serve

        raise typer.Exit(serve(loaded, wanted, life))


@app.command()
def web(config: ConfigOption) -> None:
    """Show the station's page. Its address goes to stdout, as JSON."""
    loaded = _begin("web", config)
    with _unit_life(WEB, loaded.value):
        from station.web.server import serve

        raise typer.Exit(serve(loaded, lambda address: write_json_line({"web": address})))


@app.command()
def station(
    config: ConfigOption,
    plates: Annotated[int | None, typer.Option(min=1, help="End after so many plates.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    record: RecordOption = None,
    record_gb: RecordGbOption = DEFAULT_RECORD_GB,
    restart: RestartOption = False,
) -> None:
    """Inspect. Events go to stdout, one JSON object a line."""
    loaded = _begin("station", config)
    with _unit_life(STATION, loaded.value) as is_restart, exit_on_config_error():
        from drivers.errors import DeviceError
        from models.card import ModelError
        from station.outbox import OutboxError
        from station.pipeline import Options, Station, StationError
        from station.product import load_product
        from station.recipes import starting_recipe

        options = Options(plates, seconds, record, record_gb, restart or is_restart)
        with Outlet(write_json_line) as events:
            try:
                recipe = load_product(loaded, starting_recipe)
                status = Station(loaded, recipe, options, events.emit).run()
            except (ConfigError, ModelError) as error:
                _start_again_if_recipe(loaded.value, error, events)
                fail(str(error), getattr(error, "status", EX_CONFIG))
            except (StationError, OutboxError, DeviceError, OSError) as error:
                _start_again_if_recipe(loaded.value, error, events)
                fail(str(error))
        raise typer.Exit(status)
