"""`vqi camera`: who is there, what it can, and a picture; see also camera_bench and camera_live."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import typer

from drivers.camera import open_camera
from drivers.camera.feature_tree import Feature, feature_tree
from drivers.camera.genicam import GenicamCamera
from drivers.camera.gentl import list_cameras, producers_on_path
from drivers.camera.producer.build import build_producer
from drivers.camera.settings import CameraSettings
from drivers.errors import DeviceError
from station.cli.camera_bench import delays, focus, rate, scale
from station.cli.camera_live import live
from station.cli.camera_target import calibrate, warm_up
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.scan_lines import take_scan_lines

app = typer.Typer(no_args_is_help=True)
for command in (live, calibrate, focus, rate, scale, delays):
    app.command()(command)
app.command("warm-up")(warm_up)


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
            taken = take_scan_lines(camera, frames * camera.info.frame_height)
    except DeviceError as error:
        fail(str(error))
    try:
        out.write_bytes(cv2.imencode(".png", taken)[1].tobytes())
    except OSError as error:
        fail(f"{out}: cannot be written: {error.strerror}")
    typer.echo(f"{out}: {taken.shape[1]} x {len(taken)} px of {camera.info.serial}")


@app.command()
def features(
    config: ConfigOption,
    text: Annotated[
        str, typer.Option("--filter", help="Only what has this in name, category or tooltip.")
    ] = "",
    is_json: JsonOption = False,
) -> None:
    """The camera's features by category: value, unit, range, access, what each is for."""
    settings = load_or_exit(config).value.camera
    try:
        with open_camera(settings) as camera:
            if not isinstance(camera, GenicamCamera):
                fail(f"camera.type is {settings.type}: it has no features (GenICam); see --help")
            found = feature_tree(camera.node_map)
    except DeviceError as error:
        fail(str(error))
    wanted = [row for row in found if _matches(row, text)]
    if not wanted:
        fail(f"none of {len(found)} features has {text!r} in name, category or tooltip")
    if is_json:
        for row in wanted:
            print_json(asdict(row))
    else:
        _print_tree(wanted)


def _matches(feature: Feature, text: str) -> bool:
    return text.lower() in f"{feature.name} {feature.category} {feature.tooltip}".lower()


def _print_tree(rows: list[Feature]) -> None:
    width = max(len(row.name) for row in rows)
    for category, group in itertools.groupby(rows, lambda row: row.category):
        typer.echo(category)
        for row in group:
            typer.echo(f"  {row.name:{width}}  {row.access:10}  {_as_text(row)}")
            typer.echo(f"  {'':{width}}  {'':10}  {row.tooltip}")


def _as_text(row: Feature) -> str:
    value = "" if row.value is None else f"{row.value:g}" if row.kind == "Float" else str(row.value)
    limits = ", ".join(row.choices)
    if row.minimum is not None and row.maximum is not None and row.access == "read/write":
        step = f" step {row.increment:g}" if row.increment and row.increment != 1 else ""
        limits = f"{row.minimum:g} to {row.maximum:g}{step}"
    chosen = f" by {', '.join(row.selectors)}" if row.selectors else ""
    return f"{value} {row.unit}".strip() + (f"  [{limits}]" if limits else "") + chosen
