"""`vqi serve`: one process of the station each, for the service manager and `vqi run`."""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import ConfigOption, exit_on_config_error, fail, load_or_exit
from station.ipc import Json

app = typer.Typer(no_args_is_help=True)


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )


@app.command()
def lamp(config: ConfigOption) -> None:
    """Own the stack light; let a pass lapse."""
    from station.lamp import serve

    _log_to_stderr()
    raise typer.Exit(serve(load_or_exit(config).value))


@app.command()
def journal(config: ConfigOption) -> None:
    """Own the QMS log."""
    from station.journal import serve

    _log_to_stderr()
    raise typer.Exit(serve(load_or_exit(config).value))


@app.command()
def station(
    config: ConfigOption,
    plates: Annotated[int | None, typer.Option(min=1, help="End after so many plates.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    record: Annotated[Path | None, typer.Option(help="Record the strip in this folder.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Started again after a failure.")
    ] = False,
) -> None:
    """Inspect. Events go to stdout, one JSON object a line."""
    _log_to_stderr()
    loaded = load_or_exit(config)
    from drivers.errors import DeviceError
    from models.card import ModelError
    from station.ipc import PeerGone
    from station.pipeline import Options, Station, StationError
    from station.product import load_product

    with exit_on_config_error():
        recipe = load_product(loaded)
        options = Options(plates, seconds, record, restart)
        with EventLines() as events:
            try:
                status = Station(loaded, recipe, options, events.emit).run()
            except (StationError, DeviceError, ModelError, PeerGone) as error:
                fail(str(error))
    raise typer.Exit(status)


class EventLines:
    """Events as lines on stdout, written by a thread: a reader that stops reading delays nobody.

    What does not fit in the queue is dropped and counted in the next line; the record of every
    plate is in the journal.
    """

    _LINES = 10_000

    def __init__(self) -> None:
        self._queue: queue.Queue[Json | None] = queue.Queue(self._LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()

    def emit(self, event: Json) -> None:
        if self._dropped:
            event = {**event, "events_dropped": self._dropped}
        try:
            self._queue.put_nowait(event)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def __enter__(self) -> EventLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._queue.put(None)
        self._thread.join(timeout=2.0)

    def _write(self) -> None:
        try:
            while (event := self._queue.get()) is not None:
                sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
                sys.stdout.flush()
        except (BrokenPipeError, ValueError):
            while self._queue.get() is not None:
                pass
