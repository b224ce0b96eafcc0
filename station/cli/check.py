"""`vqi check`: what would keep the station from running, before it runs."""

from __future__ import annotations

import contextlib
import getpass
import os
import sqlite3
from collections.abc import Callable
from typing import Annotated

import typer

from drivers.camera import CameraInfo
from drivers.errors import DeviceError
from drivers.io import open_digital_io
from drivers.plc import open_plc_link
from drivers.plc.settings import PlcSettings
from drivers.scanner import open_scanner
from drivers.scanner.settings import ScannerSettings
from drivers.stacklight import open_stack_light
from models.card import ModelError
from station.acquisition import CameraProcess
from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    load_or_exit,
    print_json,
)
from station.commissioned import read_commissioned
from station.config import ACCEPT_OUTPUT, AcceptSettings, Configuration, Loaded, Recipe
from station.control import send_command
from station.ipc import PeerGone
from station.limit_samples import SamplesError, samples_folder, show_offline
from station.log_reader import Reader
from station.log_verify import verify_tail
from station.machine import accept_scores, test_on_this_machine
from station.model_signatures import SignedModel
from station.model_store import ModelStore, judge_folder
from station.precision import Chosen, load_classifier
from station.product import (
    check_strip,
    geometry_of,
    load_flat_field,
    load_product,
    model_folder,
)
from station.qms import DATABASE, StoreError, see_that_none_was_lost
from station.record import Provenance
from station.state import Origin, provenance

_SQLITE_FIXED = (3, 51, 3)


class Problem(Exception):
    """What was found, and what to do."""


def check(
    config: ConfigOption,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-scores",
            help="Record the golden scores anew, after a change of processor or runtime.",
        ),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Validate the configuration, open each device, verify the model. Exit 1 on a problem."""
    loaded = load_or_exit(config)
    with exit_on_config_error():
        recipe = load_product(loaded)
        is_running = _is_running(loaded.value)
        steps: list[tuple[str, Callable[[], str]]] = [
            ("configuration", lambda: f"{loaded.source} sha256 {loaded.sha256[:12]}"),
            ("recipe", lambda: f"{recipe.value.id} version {recipe.value.version}"),
            ("model", lambda: _check_model(loaded, recipe, accept)),
            ("limit samples", lambda: _check_samples(loaded, recipe)),
            ("camera", lambda: _check_camera(loaded, recipe, is_running)),
            ("light", lambda: _check_light(loaded.value, is_running)),
            ("journal", lambda: _check_journal(loaded.value)),
            *_line_side_steps(loaded.value, is_running),
        ]
        results = [_attempt(name, step, is_json) for name, step in steps]
    raise typer.Exit(0 if all(results) else 1)


def _attempt(name: str, step: Callable[[], str], is_json: bool) -> bool:
    try:
        text, is_ok = step(), True
    except (Problem, DeviceError, ModelError, StoreError, OSError) as error:
        text, is_ok = str(error), False
    if is_json:
        print_json({"part": name, "ok": is_ok, "found": text})
    else:
        typer.echo(f"{'ok  ' if is_ok else 'FAIL'}  {name:14} {text}")
    return is_ok


def _is_running(settings: Configuration) -> bool:
    with contextlib.suppress(PeerGone, TimeoutError):
        send_command(settings.station.runtime_dir, "status")
        return True
    return False


def _check_model(loaded: Loaded[Configuration], recipe: Loaded[Recipe], accept: bool) -> str:
    chosen, directory = load_classifier(loaded, recipe, 1), loaded.value.journal.directory
    classifier = chosen.classifier
    if accept:
        accept_scores(classifier, directory, getpass.getuser())
    test_on_this_machine(classifier, directory)
    return (
        f"{classifier.model_id} sha256 {classifier.model_sha256[:12]}, golden scores reproduced, "
        f"{classifier.runtime}; {_precision(chosen)}; {_signed(loaded.value, recipe)}"
    )


def _check_samples(loaded: Loaded[Configuration], recipe: Loaded[Recipe]) -> str:
    if samples_folder(recipe) is None:
        return (
            "none: the recipe has no [limit_samples]; nothing shows before plates pass that a bad "
            "one would fail"
        )
    classifier = load_classifier(loaded, recipe, 1).classifier
    try:
        shown = show_offline(recipe, classifier, loaded.value.camera.pixel_pitch_mm)
    except SamplesError as error:
        raise Problem(str(error)) from error
    if wrong := [one.text for one in shown if not one.is_right]:
        raise Problem("; ".join(wrong))
    again = " and when a shift begins" if recipe.value.limit_samples.at_shift_start else ""
    return f"{len(shown)} get their verdicts; judged at each start{again}"


def _signed(settings: Configuration, recipe: Loaded[Recipe]) -> str:
    """Who vouches for the model; production, and that alone, needs it."""
    judged = judge_folder(settings, model_folder(recipe, ModelStore.of(settings)))
    if isinstance(judged, SignedModel):
        return judged.words
    return f"notice: may not judge production: {judged.why}"


def _precision(chosen: Chosen) -> str:
    return f"warning: {chosen.why}" if chosen.is_warning else chosen.why


def _flat_field(loaded: Loaded[Configuration], info: CameraInfo) -> str:
    """Raises `ConfigError` for one that is not this camera's."""
    field = load_flat_field(loaded, info)
    return "" if field is None else f", flat field {field.id}"


def _check_camera(loaded: Loaded[Configuration], recipe: Loaded[Recipe], is_running: bool) -> str:
    settings = loaded.value
    if is_running:
        status = send_command(settings.station.runtime_dir, "status")["status"]
        return (
            "in use by the running station; "
            f"plates are {status['provenance']}: {status['provenance_why']}"
        )
    camera = CameraProcess(settings.camera, settings.station.ring_s)
    try:
        info = camera.info
        check_strip(loaded, info)
        geometry_of(recipe, settings.camera.pixel_pitch_mm, info.width)
        rate = "" if info.line_rate_hz is None else f", {info.line_rate_hz:g} scan lines/s"
        text = (
            f"{info.vendor} {info.model} {info.serial}, {info.width} px {info.pixel_format}{rate}"
            f"{_rounded(info)}{_flat_field(loaded, info)}"
        )
        origin = _origin(settings, recipe, info)
    finally:
        camera.close()
    if origin.provenance is Provenance.PRODUCTION:
        return f"{text}; plates are production: {origin.why}"
    text += f"; plates are not production: {origin.why}"
    if settings.commissioning_file is not None:
        raise Problem(text)
    return text


def _origin(settings: Configuration, recipe: Loaded[Recipe], info: CameraInfo) -> Origin:
    """Whose plates these would be."""
    directory, signed = settings.journal.directory, list[str]()
    if (directory / DATABASE).exists():
        with Reader(directory) as reader:
            signed = reader.signed_files()
    file = settings.commissioning_file
    model = judge_folder(settings, model_folder(recipe, ModelStore.of(settings)))
    return provenance(info, read_commissioned(file, settings.station.id, signed), model)


def _rounded(info: CameraInfo) -> str:
    """What the camera made of the values that it did not take as they were."""
    texts = [f"{name} {info.features[name]} for {asked}" for name, asked in info.rounded.items()]
    return f"; warning: the camera rounded {', '.join(texts)}" if texts else ""


def _check_light(settings: Configuration, is_running: bool) -> str:
    if is_running:
        return "in use by the running station"
    with open_stack_light(settings.light.device, settings.light.pattern_table) as light:
        return f"{light.description}; {settings.light.device.nature}"


def _line_side_steps(
    settings: Configuration, is_running: bool
) -> list[tuple[str, Callable[[], str]]]:
    """Scanner, PLC and accept, where the configuration has them."""
    steps: list[tuple[str, Callable[[], str]]] = []
    if (identity := settings.identity) is not None and identity.scanner is not None:
        scanner = identity.scanner
        steps.append(("scanner", lambda: _check_scanner(scanner, is_running)))
    if (plc := settings.plc) is not None:
        steps.append(("plc", lambda: _check_plc(plc, is_running)))
    if (accept := settings.accept) is not None:
        steps.append(("accept", lambda: _check_accept(accept, is_running)))
    return steps


def _check_scanner(scanner: ScannerSettings, is_running: bool) -> str:
    if is_running:
        return "in use by the running station"
    with open_scanner(scanner) as device:
        return f"{device.description}, silent; scan a label while the station runs"


def _check_plc(plc: PlcSettings, is_running: bool) -> str:
    if is_running:
        return "in use by the running station"
    link = open_plc_link(plc)
    try:
        link.try_out()
    finally:
        link.close()
    if not link.keeps_last_word:
        return link.description
    return (
        f"{link.description}; warning: it keeps what it was told when the lamp process is killed: "
        "the PLC must watch the heartbeat"
    )


def _check_accept(accept: AcceptSettings, is_running: bool) -> str:
    """Off is safe at any time, and shows that the output can be switched."""
    if is_running:
        return "in use by the running station"
    with open_digital_io(accept.device) as device:
        is_confirmed = device.write({ACCEPT_OUTPUT: False})
        text = f"{device.description}, off{' and read back' if is_confirmed else ''}"
    text += f"; {accept.pulse_ms} ms at {accept.distance_mm:g} mm after the camera"
    if device.times_pulses:
        return f"{text}, timed by the device"
    return (
        f"{text}; warning: the lamp process ends the pulses: killed within one, the output stays "
        "on until it is back"
    )


def _check_journal(settings: Configuration) -> str:
    directory = settings.journal.directory
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise Problem(f"{directory}: not writable by this user")
    status = os.statvfs(directory)
    free_mb = status.f_bavail * status.f_frsize // 1_000_000
    if free_mb < settings.journal.min_free_mb:
        raise Problem(
            f"{directory}: {free_mb} MB free, {settings.journal.min_free_mb} needed; free some"
        )
    version = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < _SQLITE_FIXED:
        version += " (WAL-reset bug: one writer only)"
    if not (directory / DATABASE).exists():
        see_that_none_was_lost(directory)
        return f"{directory}: empty, {free_mb} MB free, {version}"
    with Reader(directory) as reader:
        report, rows = verify_tail(reader), reader.last_seq()
    if report.findings:
        raise Problem(f"{directory}: {report.findings[0]}; see `vqi log verify`")
    found = f"{directory}: {rows} rows, the last {report.rows} of them verified"
    return f"{found}, {free_mb} MB free, {version}"
