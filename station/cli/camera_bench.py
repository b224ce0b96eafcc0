"""The measuring commands of `vqi camera` before plates: focus, line rate, scale, delays."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.live import Live

from drivers.camera import Camera, Frame, open_camera
from drivers.camera.features import HERTZ, MICROSECONDS, read_feature, read_in
from drivers.camera.genicam import GenicamCamera
from drivers.camera.settings import CameraSettings, GenicamCameraSettings
from drivers.errors import DeviceError
from station.camera_view import focus_bar, focus_line
from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    fail,
    load_or_exit,
    print_json,
)
from station.config import Configuration, Loaded, Recipe
from station.delays import (
    DelayUnknown,
    belt_speed,
    measure_trigger_delay,
    plan_reject,
    sightings,
)
from station.focus import FocusReading, judge_focus, measure_focus
from station.line_rate import LineRatePlan, plan_line_rate
from station.product import geometry_of, load_product
from station.scale import Measured, Scale, ScaleRefused, measure_scale, scale_findings
from station.scan_lines import Pixels, frames, frames_or_silence, take_scan_lines
from station.strip import scan_line_edges
from station.tiling import OUTSIDE, Geometry

_FOCUS_LINES = 256
_FOCUS_S = 3.0
_SILENT_S = 0.5
_SCALE_PLATES = 4
"""Lengths of a plate in a picture: one lies whole in it, also stretched."""


# --- focus ----------------------------------------------------------------------------------------


def focus(
    config: ConfigOption,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Default: at a terminal until Ctrl-C, else 3 s.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Hold the best reading against it.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Write the best reading as reference.")] = None,
    is_json: JsonOption = False,
) -> None:
    """Sharpness across the scan line while the lens is turned: now, best so far, tilt."""
    settings = load_or_exit(config).value.camera
    kept = None if reference is None else _read_reference(reference)
    is_live = not is_json and sys.stdout.isatty()
    limit_s = seconds if seconds is not None or is_live else _FOCUS_S
    best: FocusReading | None = None
    try:
        with open_camera(settings) as camera, _shown(is_live) as show:
            camera.start()
            for reading in _readings(camera, limit_s):
                best = _better(best, reading)
                if is_json:
                    print_json({**asdict(reading), "best_score": best.score})
                elif show is not None:
                    show.update(focus_bar(reading, best))
                else:
                    typer.echo(focus_line(reading, best))
    except DeviceError as error:
        fail(str(error))
    if best is None or best.score is None:
        fail("no plate was seen; let plates pass, or put one under the camera")
    _end_focus(best, kept, keep)


@contextlib.contextmanager
def _shown(is_live: bool) -> Iterator[Live | None]:
    """Live at a terminal; Ctrl-C ends the turning, not the command."""
    with contextlib.suppress(KeyboardInterrupt):
        if is_live:
            with Live(console=Console(), refresh_per_second=8) as show:
                yield show
        else:
            yield None


def _readings(camera: Camera, seconds: float | None) -> Iterator[FocusReading]:
    """A reading for each `_FOCUS_LINES` scan lines, while the time lasts."""
    end = None if seconds is None else time.monotonic() + seconds
    held: list[Pixels] = []
    for frame in frames_or_silence(camera, _SILENT_S):
        if frame is not None and not frame.is_incomplete:
            held.append(frame.pixels.copy())
        if sum(map(len, held)) >= _FOCUS_LINES:
            yield measure_focus(np.concatenate(held))
            held.clear()
        if end is not None and time.monotonic() >= end:
            return
    if held:
        yield measure_focus(np.concatenate(held))


def _better(best: FocusReading | None, reading: FocusReading) -> FocusReading:
    """The reading of more zones, of as many the sharper one."""
    if best is None:
        return reading

    def rank(each: FocusReading) -> tuple[int, float]:
        return sum(zone.score is not None for zone in each.zones), each.score or 0.0

    return max(best, reading, key=rank)


def _read_reference(path: Path) -> FocusReading:
    try:
        return TypeAdapter(FocusReading).validate_json(path.read_bytes())
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}")
    except ValidationError:
        fail(f"{path}: not a focus reference; write one with --keep")


def _end_focus(best: FocusReading, reference: FocusReading | None, keep: Path | None) -> None:
    if keep is not None:
        try:
            keep.write_text(json.dumps(asdict(best)) + "\n")
        except OSError as error:
            fail(f"{keep}: cannot be written: {error.strerror}")
    if reference is None:
        return
    if (
        len(reference.zones) != len(best.zones)
        or reference.zones[-1].end_px != best.zones[-1].end_px
    ):
        fail("the reference is of another camera width; take it anew with --keep")
    verdict = judge_focus(best, reference)
    if not verdict.is_ok:
        fail("; ".join(verdict.problems))


# --- line rate ------------------------------------------------------------------------------------


def rate(
    belt_mm_s: Annotated[float, typer.Argument(help="Speed of the belt.")],
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="VQI_CONFIG", help="What is not given comes from here."),
    ] = None,
    pixel_pitch_mm: Annotated[float | None, typer.Option(help="Crossweb size of a pixel.")] = None,
    counts_per_mm: Annotated[
        float | None, typer.Option(help="Encoder counts a mm of belt.")
    ] = None,
    divider: Annotated[
        int | None, typer.Option(help="EncoderDivider; default: the right one.")
    ] = None,
    exposure_us: Annotated[float | None, typer.Option(help="ExposureTime.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels in a scan line.")] = None,
    max_line_rate_hz: Annotated[float | None, typer.Option(help="Of the camera.")] = None,
    link_mb_per_s: Annotated[float | None, typer.Option(help="Of the camera's link.")] = None,
    is_json: JsonOption = False,
) -> None:
    """Line rate and encoder divider for square pixels; exit 1 if a warning stands."""
    given = {
        "pixel_pitch_mm": pixel_pitch_mm,
        "counts_per_mm": counts_per_mm,
        "divider": divider,
        "exposure_us": exposure_us,
        "width": width,
        "max_line_rate_hz": max_line_rate_hz,
        "link_mb_per_s": link_mb_per_s,
    }
    known = {} if config is None else _ask_camera(load_or_exit(config).value.camera)
    values: dict[str, Any] = {**known, **{k: v for k, v in given.items() if v is not None}}
    if "pixel_pitch_mm" not in values:
        fail("--pixel-pitch-mm or --config FILE is needed", 2)
    try:
        plan = plan_line_rate(belt_mm_s, **values)
    except ValueError as error:
        fail(str(error), 2)
    _say_plan(plan, is_json)
    raise typer.Exit(1 if plan.warnings else 0)


def _ask_camera(settings: CameraSettings) -> dict[str, Any]:
    """What configuration and camera say; the camera need not be there yet."""
    values: dict[str, Any] = {"pixel_pitch_mm": settings.pixel_pitch_mm}
    if not isinstance(settings, GenicamCameraSettings):
        return values
    try:
        with open_camera(settings) as camera:
            assert isinstance(camera, GenicamCamera)
            return {**values, **_camera_figures(camera)}
    except DeviceError as error:
        typer.echo(f"vqi: the camera is not asked: {error}", err=True)
        names = {"ExposureTime": "exposure_us", "EncoderDivider": "divider", "Width": "width"}
        features = settings.features
        return {**values, **{names[key]: features[key] for key in names.keys() & features.keys()}}


def _camera_figures(camera: GenicamCamera) -> dict[str, Any]:
    nodes = camera.node_map
    resolution_um = read_in(nodes, "EncoderResolution", MICROSECONDS)
    is_by_encoder = str(read_feature(nodes, "TriggerMode[LineStart]")) == "On"
    link = read_feature(nodes, "DeviceLinkSpeed")
    fastest = read_in(nodes, "AcquisitionLineRate", HERTZ, limit="max")
    found = {
        "counts_per_mm": 1000 / resolution_um if resolution_um else None,
        "divider": read_feature(nodes, "EncoderDivider") if is_by_encoder else None,
        "exposure_us": camera.info.exposure_us,
        "width": camera.info.width,
        "max_line_rate_hz": fastest,
        "link_mb_per_s": None if link is None else link / 1e6,
    }
    return {name: value for name, value in found.items() if value is not None}


def _say_plan(plan: LineRatePlan, is_json: bool) -> None:
    if is_json:
        print_json(asdict(plan) | {"warnings": list(plan.warnings)})
        return
    for name, value in asdict(plan).items():
        if name != "warnings" and value is not None:
            typer.echo(f"{name.replace('_', ' '):22}  {value:.6g}")
    for warning in plan.warnings:
        typer.echo(f"warning: {warning}")


# --- scale ----------------------------------------------------------------------------------------


def scale(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Millimetres per pixel from a plate itself: its dots, else its outline; exit 1 if wrong."""
    loaded, recipe = _load_product(config)
    pitch_mm, plate = loaded.value.camera.pixel_pitch_mm, recipe.value.plate
    count = round(_SCALE_PLATES * (plate.max_length_mm or 1.25 * plate.length_mm) / pitch_mm)
    try:
        with open_camera(loaded.value.camera) as camera:
            camera.start()
            picture = take_scan_lines(camera, count, is_gap_free=True)
        measured = measure_scale(picture, plate, pitch_mm)
    except (DeviceError, ScaleRefused) as error:
        fail(str(error))
    findings = scale_findings(measured, pitch_mm)
    if is_json:
        print_json(asdict(measured) | {"findings": list(findings)})
    else:
        _say_scale(measured, findings)
    raise typer.Exit(1 if findings else 0)


def _load_product(config: str) -> tuple[Loaded[Configuration], Loaded[Recipe]]:
    loaded = load_or_exit(config)
    with exit_on_config_error():
        return loaded, load_product(loaded)


def _say_scale(measured: Scale, findings: tuple[str, ...]) -> None:
    typer.echo(f"by the plate's {measured.method}, {measured.parts} parts compared")
    rows: dict[str, tuple[Measured, str]] = {
        "crossweb": (measured.crossweb_mm_per_px, "mm per pixel"),
        "downweb": (measured.downweb_mm_per_px, "mm per pixel"),
        "downweb / crossweb": (measured.aspect, ""),
        "squareness": (measured.squareness_deg, "deg"),
        "rotation of the plate": (measured.rotation_deg, "deg"),
    }
    for name, (each, unit) in rows.items():
        typer.echo(f"{name:22}  {each.value:.6f} +- {each.standard_error:.1e} {unit}".rstrip())
    typer.echo(f"{'residual':22}  {1000 * measured.residual_mm:.1f} um")
    for finding in findings:
        typer.echo(f"warning: {finding}")


# --- delays ---------------------------------------------------------------------------------------


def delays(
    config: ConfigOption,
    plates: Annotated[int, typer.Option(min=1, help="Plates to measure on.")] = 10,
    reject_mm: Annotated[
        float | None, typer.Option(min=0, help="From the camera to the reject point.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Trigger and reject delay in mm and ms, from the plates' leading edges in the picture."""
    loaded, recipe = _load_product(config)
    camera_settings, plate = loaded.value.camera, recipe.value.plate
    try:
        with open_camera(camera_settings) as camera:
            geometry = geometry_of(recipe, camera_settings.pixel_pitch_mm, camera.info.width)
            camera.start()
            seen, times = _watch_edges(camera, geometry, plates)
        speed = belt_speed(times, camera_settings.pixel_pitch_mm)
        trigger = measure_trigger_delay(sightings(seen), camera_settings.pixel_pitch_mm, speed)
        row: dict[str, Any] = {"belt_mm_s": speed, "trigger": asdict(trigger)}
        if reject_mm is not None:
            deadline_ms = 1000 * recipe.value.deadline_s
            plan = plan_reject(reject_mm, speed, plate.length_mm, deadline_ms)
            row["reject"] = asdict(plan) | {"problems": list(plan.problems)}
    except (DeviceError, DelayUnknown) as error:
        fail(str(error))
    if is_json:
        print_json(row)
    else:
        _say_delays(row)
    raise typer.Exit(1 if row.get("reject", {}).get("problems") else 0)


def _watch_edges(
    camera: Camera, geometry: Geometry, plates: int
) -> tuple[list[tuple[Frame, list[int]]], list[tuple[int, int]]]:
    """Frames with the rows of leading edges in them, and (scan lines, ns) of each frame."""
    seen: list[tuple[Frame, list[int]]] = []
    times: list[tuple[int, int]] = []
    was_plate, lines, found = True, 0, 0
    for frame in frames(camera):
        is_plate = scan_line_edges(frame.pixels, geometry)[0] != OUTSIDE
        before = np.concatenate([[was_plate], is_plate[:-1]])
        rows = np.flatnonzero(is_plate & ~before).tolist()
        was_plate, lines, found = bool(is_plate[-1]), lines + frame.height, found + len(rows)
        seen.append((frame, rows))
        times.append((lines, frame.timestamp_ns))
        # One frame more: the counter of the last plate may come late.
        if found >= plates and not rows:
            break
    return seen, times


def _say_delays(row: dict[str, Any]) -> None:
    trigger, reject = row["trigger"], row.get("reject")
    typer.echo(f"belt           {row['belt_mm_s']:.2f} mm/s")
    typer.echo(
        f"trigger delay  {trigger['mm']:+.2f} +- {trigger['standard_error_mm']:.2f} mm, "
        f"{trigger['ms']:+.2f} ms, from {trigger['plates']} plates"
    )
    if reject is not None:
        typer.echo(
            f"reject delay   {reject['mm']:.1f} mm, {reject['ms']:.1f} ms after the leading edge; "
            f"{reject['decision_ms']:.0f} ms for the verdict"
        )
        for problem in reject["problems"]:
            typer.echo(f"warning: {problem}")
