"""`vqi camera`: list cameras, take a picture."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from drivers.camera import EndOfSource, Frame, open_camera
from drivers.camera.genicam import list_cameras, producers_on_path
from drivers.camera.producer.build import build_producer
from drivers.camera.settings import CameraSettings
from drivers.errors import DeviceError
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_(
    producer: Annotated[
        list[Path] | None,
        typer.Option(help="GenTL producer (.cti), or viky; default: GENICAM_GENTL64_PATH."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="VQI_CONFIG", help="Also the camera configured here."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Cameras that GenTL producers find, and the configured one."""
    configured = [] if config is None else [load_or_exit(config).value.camera]
    producers = producer or producers_on_path()
    if not producers and not configured:
        fail(
            "no GenTL producer: GENICAM_GENTL64_PATH names none; use --producer FILE.cti, or "
            "--producer viky for the demonstration cameras that come with genicam"
        )
    failed = False
    searches = [partial(_configured, settings) for settings in configured]
    for search in (*searches, *(partial(list_cameras, path) for path in producers)):
        try:
            rows = search()
        except DeviceError as error:
            typer.echo(f"vqi: {error}", err=True)
            failed = True
            continue
        for row in rows:
            if is_json:
                print_json(row)
            else:
                typer.echo("  ".join(f"{key}={value}" for key, value in row.items()))
    raise typer.Exit(1 if failed else 0)


def _configured(settings: CameraSettings) -> list[dict[str, str]]:
    """The camera that a configuration names, opened to ask who it is."""
    with open_camera(settings) as camera:
        info = camera.info
    return [
        {
            "producer": info.producer_path or info.driver,
            "vendor": info.vendor,
            "model": info.model,
            "serial": info.serial,
            "tl_type": "configured",
        }
    ]


@app.command()
def producer(
    out: Annotated[Path, typer.Option(help="Folder for vqi-linescan.cti.")] = Path("var/producer"),
    vendor: Annotated[str, typer.Option(help="Vendor name that its cameras have.")] = "VQI",
) -> None:
    """Build the GenTL line-scan simulator, for this station and any other GenTL consumer."""
    try:
        path = build_producer(out, vendor)
    except ValueError as error:
        fail(str(error), 2)
    except DeviceError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{out}: cannot be written: {error.strerror}")
    typer.echo(path)
    typer.echo(f"export GENICAM_GENTL64_PATH={shlex.quote(str(path.parent))}")


@app.command()
def snap(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("snap.png"),
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames, one below another.")] = 8,
) -> None:
    """Take a picture with the configured camera. The station must not be running."""
    settings = load_or_exit(config).value.camera
    try:
        with open_camera(settings) as camera:
            camera.start()
            taken = _grab(camera.info.max_frame_bytes, frames, camera.grab)
    except DeviceError as error:
        fail(str(error))
    try:
        out.write_bytes(cv2.imencode(".png", np.concatenate(taken))[1].tobytes())
    except OSError as error:
        fail(f"{out}: cannot be written: {error.strerror}")
    rows, width = sum(len(pixels) for pixels in taken), taken[0].shape[1]
    typer.echo(f"{out}: {width} x {rows} px of {camera.info.serial}")


def _grab(frame_bytes: int, frames: int, grab: Any) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    into = np.empty(frame_bytes, np.uint8)
    taken: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for _ in range(3 * frames):
        try:
            frame: Frame | None = grab(into, 2.0)
        except EndOfSource:
            if taken:
                return taken
            fail("the source has no frames")
        if frame is None:
            fail("the camera delivers no frames within 2 s; is it triggered?")
        if not frame.is_incomplete and (not taken or frame.pixels.shape[1] == taken[0].shape[1]):
            taken.append(frame.pixels.copy())
        if len(taken) == frames:
            return taken
    fail(f"only {len(taken)} of {3 * frames} frames were complete; check the link")
