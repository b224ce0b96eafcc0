"""`vqi camera live`: the camera's picture in the terminal, now."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from drivers.camera import open_camera
from drivers.errors import DeviceError
from station.camera_view import LiveStrip, as_row, live_line, live_panel
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.scan_lines import frames_or_silence

_SILENT_S = 0.5
"""A belt that stands still under an encoder trigger is no error here; the picture says so."""
_EVERY_S = 0.25
_TEXT_EVERY_S = 1.0


def live(
    config: ConfigOption,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    count: Annotated[
        int | None, typer.Option("--frames", min=1, help="End after so many frames.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """The picture as it comes, with profile, histogram, saturation, focus and counters."""
    settings = load_or_exit(config).value.camera
    strip = LiveStrip()
    try:
        with open_camera(settings) as camera, _shown(strip, camera.info.serial, is_json) as show:
            camera.start()
            end = None if seconds is None else time.monotonic() + seconds
            due = 0.0
            for frame in frames_or_silence(camera, _SILENT_S):
                strip.take(frame)
                if time.monotonic() >= due:
                    due = time.monotonic() + show()
                if strip.frames == count or (end is not None and time.monotonic() >= end):
                    break
            show()
    except DeviceError as error:
        fail(str(error))


@contextlib.contextmanager
def _shown(strip: LiveStrip, serial: str, is_json: bool) -> Iterator[Callable[[], float]]:
    """How the strip is shown: each call shows it and says after how long to show it again."""

    def row() -> float:
        print_json(as_row(strip.figures()))
        return _EVERY_S

    def line() -> float:
        typer.echo(live_line(strip.figures()))
        return _TEXT_EVERY_S

    with contextlib.suppress(KeyboardInterrupt):
        if is_json or not sys.stdout.isatty():
            yield row if is_json else line
            return
        with Live(console=Console(), auto_refresh=False) as screen:

            def panel() -> float:
                screen.update(live_panel(strip, serial), refresh=True)
                return _EVERY_S

            yield panel
