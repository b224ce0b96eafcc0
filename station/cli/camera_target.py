"""`vqi camera calibrate` and `warm-up`: what is measured before a target, not before plates."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from drivers.camera import Camera, open_camera
from drivers.camera.feature_tree import feature_tree, own_corrections
from drivers.camera.features import read_feature
from drivers.camera.genicam import GenicamCamera
from drivers.camera.settings import CameraSettings, GenicamCameraSettings, ReplayCameraSettings
from drivers.errors import DeviceError
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.flat_field import (
    FlatField,
    FlatFieldRefused,
    correct,
    correction_of,
    measure_flat_field,
    residual_non_uniformity,
    save,
)
from station.scan_lines import Pixels, frames, take_scan_lines, with_target
from station.warm_up import WarmUp, WarmUpLimits, WarmUpSample, judge_warm_up

_SCAN_LINES = 4096
_MOST_RESIDUAL = 0.005
_WARM_UP_LOOKS = 60
"""In the time that must be stable; at least one each 5 s."""
_WARM_UP_EVERY_S = 5.0
_WARM_UP_LINES = 256
_UNIFORM = "Put an even white target over the whole scan line, the lens slightly defocused"


@dataclass(frozen=True, slots=True)
class _Taken:
    """Scan lines of both targets; `fresh` ones of the bright target try the result on."""

    serial: str
    offset_x_px: int
    dark: Pixels
    bright: Pixels
    fresh: Pixels | None


# --- flat field -----------------------------------------------------------------------------------


def calibrate(
    config: ConfigOption,
    dark: Annotated[
        Path | None, typer.Option(help="Picture or recording without light, not the camera.")
    ] = None,
    flat: Annotated[
        Path | None, typer.Option(help="Picture or recording of the uniform target.")
    ] = None,
    scan_lines: Annotated[int, typer.Option(min=128, help="Of each target.")] = _SCAN_LINES,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: flat-fields beside the journal.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Measure the flat field: dark, then an even target, the lens slightly defocused."""
    loaded = load_or_exit(config)
    if (dark is None) != (flat is None):
        fail("--dark and --flat belong together: one without light, one of the uniform target", 2)
    folder = out or loaded.value.journal.directory.parent / "flat-fields"
    try:
        taken = _targets(loaded.value.camera, dark, flat, scan_lines)
        field = measure_flat_field(
            taken.dark, taken.bright, taken.serial, offset_x_px=taken.offset_x_px
        )
        residual = _residual(field, taken.fresh)
        if residual > _MOST_RESIDUAL:
            raise FlatFieldRefused(
                f"{residual:.2%} of unevenness is left, at most {_MOST_RESIDUAL:.1%}; take more "
                "--scan-lines, or more light"
            )
        path = save(field, folder)
    except (FlatFieldRefused, DeviceError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{folder}: cannot be written: {error.strerror}")
    _say_flat_field(field, path, residual, is_json)


def _targets(
    settings: CameraSettings, dark: Path | None, flat: Path | None, scan_lines: int
) -> _Taken:
    """From recordings, else from the camera before one target after the other."""
    if dark is not None and flat is not None:
        (first, unlit), (second, lit) = (_recorded(path, scan_lines) for path in (dark, flat))
        cameras = {camera for camera in (first, second) if camera is not None}
        if len(cameras) > 1:
            said = " and ".join(f"{serial} at OffsetX {at}" for serial, at in sorted(cameras))
            raise FlatFieldRefused(f"dark and flat are of two cameras: {said}")
        serial, offset_x_px = cameras.pop() if cameras else _camera_of(settings)
        return _Taken(serial, offset_x_px, unlit, lit, None)
    with open_camera(_aimed(settings, "Dark", "Cover the lens or the lamp")) as camera:
        _refuse_own_correction(camera)
        camera.start()
        unlit = take_scan_lines(camera, scan_lines)
    with open_camera(_aimed(settings, "Uniform", _UNIFORM)) as camera:
        camera.start()
        lit, fresh = take_scan_lines(camera, scan_lines), take_scan_lines(camera, scan_lines)
    return _Taken(camera.info.serial, camera.info.offset_x_px, unlit, lit, fresh)


def _refuse_own_correction(camera: Camera) -> None:
    if isinstance(camera, GenicamCamera):
        on = own_corrections(feature_tree(camera.node_map))
        if on:
            raise FlatFieldRefused(
                f"the camera corrects by itself: {', '.join(on)}; switch that off in "
                "[camera.features], or leave the flat field to the camera"
            )


def _aimed(settings: CameraSettings, target: str, instruction: str) -> CameraSettings:
    """The camera before a target: the simulator is set, a person is asked."""
    if _has_target(settings):
        typer.echo(f"simulated camera: SimTarget = {target}", err=True)
        return with_target(settings, target)
    if not sys.stdin.isatty():
        fail("no terminal to ask at for the targets; give recordings with --dark and --flat", 2)
    typer.prompt(f"{instruction}, then press Enter", default="", show_default=False, err=True)
    return settings


def _has_target(settings: CameraSettings) -> bool:
    if not isinstance(settings, GenicamCameraSettings):
        return False
    with open_camera(settings) as camera:
        assert isinstance(camera, GenicamCamera)
        return read_feature(camera.node_map, "SimTarget") is not None


def _recorded(path: Path, scan_lines: int) -> tuple[tuple[str, int] | None, Pixels]:
    """Scan lines of a recording, with its camera's serial and OffsetX; None for a picture, which
    names none."""
    settings = ReplayCameraSettings(type="replay", path=path, frame_height=1, gap_scan_lines=0)
    with open_camera(settings) as camera:
        camera.start()
        info = camera.info
        is_picture = info.serial == f"REPLAY-{path.name}"
        who = None if is_picture else (info.serial, info.offset_x_px)
        return who, take_scan_lines(camera, scan_lines)


def _camera_of(settings: CameraSettings) -> tuple[str, int]:
    """Serial and OffsetX, without the camera where the configuration names them."""
    if isinstance(settings, GenicamCameraSettings):
        return settings.serial, int(settings.features.get("OffsetX", 0))
    with open_camera(settings) as camera:
        return camera.info.serial, camera.info.offset_x_px


def _residual(field: FlatField, bright: Pixels | None) -> float:
    if bright is None:
        return field.non_uniformity_after
    correct(bright, correction_of(field))
    return residual_non_uniformity(bright)


def _say_flat_field(field: FlatField, path: Path, residual: float, is_json: bool) -> None:
    if is_json:
        row = {name: getattr(field, name) for name in FlatField.__slots__}
        row = {name: value for name, value in row.items() if name not in ("dark", "gain")}
        print_json({**row, "file": str(path), "residual": residual})
        return
    typer.echo(
        f"column non-uniformity {field.non_uniformity_before:.2%} before, {residual:.2%} after, "
        f"on other scan lines; level {field.level:.0f}. For the configuration:\n"
    )
    typer.echo(f'[flat_field]\nfile = {json.dumps(str(path))}\nsha256 = "{field.sha256}"')


# --- warm-up --------------------------------------------------------------------------------------


def warm_up(
    config: ConfigOption,
    minutes: Annotated[float, typer.Option(min=0.01, help="Within the bands for so long.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, help="Give up after this time.")] = 7200.0,
    is_json: JsonOption = False,
) -> None:
    """Wait, lens covered, until temperature and dark level stand still; exit 1 if they do not."""
    settings, limits = load_or_exit(config).value.camera, WarmUpLimits(minutes=minutes)
    samples: list[WarmUpSample] = []
    end = time.monotonic() + seconds
    try:
        aimed = _aimed(settings, "Dark", "Cover the lens")
        with open_camera(aimed) as camera:
            camera.start()
            every_s = min(_WARM_UP_EVERY_S, 60 * minutes / _WARM_UP_LOOKS)
            for frame_lines in _dark_looks(camera, every_s, end):
                level = float(frame_lines.mean())
                samples.append(WarmUpSample(time.monotonic(), camera.temperature_c(), level))
                found = judge_warm_up(samples, limits)
                _say_warm_up(found, is_json)
                if found.is_stable:
                    raise typer.Exit(0)
    except DeviceError as error:
        fail(str(error))
    fail(f"not warm within {seconds:g} s")


def _dark_looks(camera: Camera, every_s: float, end: float) -> Iterator[Pixels]:
    """Some scan lines now and then; those between are taken and forgotten."""
    due = 0.0
    held: list[Pixels] = []
    for frame in frames(camera):
        now = time.monotonic()
        if now >= due and not frame.is_incomplete:
            held.append(frame.pixels.copy())
        if sum(map(len, held)) >= _WARM_UP_LINES:
            yield np.concatenate(held)
            held.clear()
            due = now + every_s
        if now >= end:
            return


def _say_warm_up(found: WarmUp, is_json: bool) -> None:
    if is_json:
        print_json(asdict(found))
    else:
        typer.echo(found.detail)
