"""The steps of `vqi commission`, in the order in which one builds on another."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivers.camera import CameraInfo, Frame
from drivers.camera.picture import PictureError, read_grey_picture
from drivers.camera.settings import CameraSettings, GenicamCameraSettings
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.chart import line_chart
from station.commissioning import (
    Bench,
    Capture,
    Findings,
    NotDone,
    Step,
    StepFailed,
    watch,
)
from station.delays import measure_trigger_delay, plan_reject, sightings
from station.flat_field import (
    FlatFieldRefused,
    correct,
    correction_of,
    measure_flat_field,
    residual_non_uniformity,
)
from station.focus import FocusReading, FocusZone, judge_focus, measure_focus
from station.ipc import Json
from station.line_rate import plan_line_rate
from station.msa import (
    EFFECTIVENESS,
    FALSE_ALARM_RATE,
    KAPPA,
    MIN_PARTS,
    MIN_RUNS,
    MISS_RATE,
    Estimate,
    Limits,
    MsaError,
    Rating,
    Study,
    evaluate,
    read_study,
)
from station.offline import PictureInspector
from station.precision import load_classifier
from station.product import geometry_of, load_flat_field
from station.qms import IMAGES, Reader, verify
from station.record import Verdict, score_text, utc_now
from station.scale import (
    MOST_OUT_OF_SQUARE_DEG,
    SCALE_TOLERANCE,
    Measured,
    measure_scale,
    scale_findings,
)
from station.strip import scan_line_edges
from station.tiling import OUTSIDE, Geometry
from station.warm_up import WarmUpLimits, WarmUpSample, judge_warm_up

DRY_RUN_PLATES = 200
_TARGET_SCAN_LINES = 2048
_FIRST_LOOK_S = 2.0
_LEAST_SCAN_LINES = 512
_RESIDUAL = 0.005
"""Largest deviation of a corrected column."""
_AGED_LIGHT = 0.90
"""Light that is left of what the flat field was measured with."""
_UNDECIDED_SHARE = 0.01
_DRY_RUN_LIMIT_S = 4 * 3600.0
_STATE_S = 1.0
"""A light state is shown this long before its confirmation is asked for."""
_PLATE_LENGTHS = 4
"""So many plate lengths of belt hold one whole plate with belt around it."""
_RATE_TOLERANCE = 0.005
_DELAY_LOOKS = 3
_DELAY_ERROR_MM = 5.0
_LOOK_S = 5.0
_LOOKS = 12
"""At least so many in a warm-up's time."""
_MOST_WARM_UPS = 6
"""What has not become still in so many times the time asked for is not going to."""
_MOST_RISE_PX = 4.0
_READING = "reading"
_SAMPLES_FILE = "samples.csv"


# --- camera ---------------------------------------------------------------------------------------


def camera(bench: Bench, found: Findings) -> None:
    """The camera says who it is, takes its features, and delivers frames without loss."""
    taken = _first_look(bench)
    info, wanted = taken.info, bench.settings.camera
    found.facts |= {
        "vendor": info.vendor,
        "model": info.model,
        "serial": info.serial,
        "producer": info.producer_path or "none",
        "producer_sha256": info.producer_sha256 or "none",
        "width_px": str(info.width),
        "frame_height": str(info.frame_height),
        "pixel_format": info.pixel_format,
        "features_sha256": info.features_sha256,
    }
    found.check("driver", info.driver, "genicam", info.driver == "genicam")
    if isinstance(wanted, GenicamCameraSettings):
        for name, value in wanted.features.items():
            _check_feature(found, info, name, str(value))
    found.check("lost frames", taken.lost_frames, "0", taken.lost_frames == 0)
    found.check("incomplete frames", taken.incomplete_frames, "0", taken.incomplete_frames == 0)
    found.show_pixels("first-look", taken.pixels, "What the camera sees, as it is set")


def _first_look(bench: Bench) -> Capture:
    taken = bench.capture(_LEAST_SCAN_LINES)
    rate_hz = taken.info.line_rate_hz
    if rate_hz is None or rate_hz * _FIRST_LOOK_S <= _LEAST_SCAN_LINES:
        return taken
    return bench.capture(round(rate_hz * _FIRST_LOOK_S))


def _check_feature(found: Findings, info: CameraInfo, name: str, wanted: str) -> None:
    """The driver refuses a value that became another; one that was rounded is said."""
    got = info.features.get(name)
    is_rounded = name in info.rounded
    found.check(f"feature {name}", got, wanted, got == wanted or is_rounded)
    if is_rounded:
        found.note(f"{name}: the camera rounded {info.rounded[name]} to {got}")


# --- warm-up --------------------------------------------------------------------------------------


def warm_up(bench: Bench, found: Findings) -> None:
    """Temperature and dark level have stopped moving; waits until they have."""
    usual = f"{WarmUpLimits().minutes:g}"
    question = "minutes in which temperature and dark level must not move"
    limits = WarmUpLimits(minutes=bench.answers.number("warm_up_minutes", question, usual))
    every_s = min(_LOOK_S, 60 * limits.minutes / _LOOKS)
    samples: list[WarmUpSample] = []
    camera = bench.at_target(found, "Dark")
    for look in watch(camera, bench.settings.station.ring_s, every_s):
        samples.append(WarmUpSample(look.at_s, look.temperature_c, look.level))
        judged = judge_warm_up(samples, limits)
        if len(samples) % _LOOKS == 0:
            bench.say(f"      {judged.detail}")
        is_over = look.at_s - samples[0].at_s > _MOST_WARM_UPS * 60 * limits.minutes
        if judged.is_stable or is_over:
            break
    found.check(
        "temperature and dark level still for",
        judged.stable_for_s / 60,
        f">= {limits.minutes:g} min",
        judged.is_stable,
        "min",
    )
    found.note(judged.detail)
    found.facts["dark level"] = f"{samples[-1].dark_level:.2f}"
    _chart_warm_up(found, samples, every_s)


def _chart_warm_up(found: Findings, samples: list[WarmUpSample], every_s: float) -> None:
    readings = {
        "temperature, C": [sample.temperature_c for sample in samples],
        "dark level": [sample.dark_level for sample in samples],
    }
    for name, values in readings.items():
        if None in values:
            continue
        line = {name: np.array(values, np.float64)}
        chart = line_chart(f"Warm-up: {name}", f"looks, every {every_s:g} s", name, line)
        found.picture(f"{name.split(',')[0]}.svg", chart, f"Warm-up: {name}")
        if name.startswith("temperature"):
            found.facts["temperature"] = f"{values[-1]:.1f} C"


# --- rate -----------------------------------------------------------------------------------------


def rate(bench: Bench, found: Findings) -> None:
    """Belt, pixel pitch, encoder and exposure agree, and scan lines come as fast as they must."""
    belt_mm_s = bench.answers.number("belt_mm_s", "speed of the belt, mm/s")
    by_encoder = _encoder_divider(bench.settings.camera)
    counts_per_mm = None
    if by_encoder is not None:
        question = "encoder counts a millimetre of belt, as the camera counts them"
        usual = _configured_counts(bench.settings.camera)
        counts_per_mm = bench.answers.number("encoder_counts_per_mm", question, usual)
    taken = _first_look(bench)
    info, pitch_mm = taken.info, bench.settings.camera.pixel_pitch_mm
    plan = plan_line_rate(
        belt_mm_s, pitch_mm, counts_per_mm, by_encoder, info.exposure_us, info.width
    )
    measured_hz = _line_rate_hz(taken)
    wanted_hz = plan.line_rate_square_hz
    found.check(
        "line rate, from the frames' times",
        measured_hz,
        f"{wanted_hz:.6g} Hz within {100 * _RATE_TOLERANCE:g} %, for square pixels",
        measured_hz is not None and abs(measured_hz / wanted_hz - 1) <= _RATE_TOLERANCE,
        "Hz",
    )
    words = "; ".join(plan.warnings) or "all agree"
    found.check("belt, pixel, encoder, exposure", words, "all agree", not plan.warnings)
    found.facts |= {
        "belt": f"{belt_mm_s:g} mm/s",
        "pixel pitch": f"{pitch_mm:g} mm",
        "line period": f"{1e6 / wanted_hz:.6g} us",
        "exposure": "not told" if info.exposure_us is None else f"{info.exposure_us:g} us",
        "pixels to carry": f"{plan.mb_per_s:.4g} MB/s",
        "encoder": "none" if counts_per_mm is None else f"{counts_per_mm:g} counts/mm",
        "encoder divider": "none" if by_encoder is None else str(by_encoder),
    }


def _encoder_divider(camera: CameraSettings) -> int | None:
    """The divider where an encoder triggers the scan lines; None where they run free."""
    features = camera.features if isinstance(camera, GenicamCameraSettings) else {}
    is_by_encoder = str(features.get("TriggerMode[LineStart]", "Off")) == "On" and str(
        features.get("TriggerSource[LineStart]", "")
    ).startswith("Encoder")
    return int(features.get("EncoderDivider", 1)) if is_by_encoder else None


def _configured_counts(camera: CameraSettings) -> str | None:
    """Counts a mm by EncoderResolution, which says how many um a count is."""
    features = camera.features if isinstance(camera, GenicamCameraSettings) else {}
    resolution_um = features.get("EncoderResolution")
    return None if resolution_um is None else f"{1000 / float(resolution_um):g}"


def _line_rate_hz(taken: Capture) -> float | None:
    """Scan lines a second between the ends of the first and the last frame."""
    first, last = taken.frames[0], taken.frames[-1]
    seconds = (last.timestamp_ns - first.timestamp_ns) / 1e9
    frames = last.frame_id - first.frame_id
    return frames * taken.info.frame_height / seconds if frames > 0 and seconds > 0 else None


# --- focus ----------------------------------------------------------------------------------------


def focus(bench: Bench, found: Findings) -> None:
    """Edges are sharp in each zone of the scan line, and as sharp as they were at the FAT."""
    lines = _plate_scan_lines(bench)
    taken = bench.capture_target(found, "Belt", lines)
    reading = measure_focus(taken.pixels)
    for zone in reading.zones:
        place = f"edges at px {zone.start_px}-{zone.end_px}"
        if zone.score is None:
            found.facts[place] = "no plate is seen there"
            continue
        rise = zone.rise_px
        is_ok = rise is not None and rise <= _MOST_RISE_PX
        found.check(f"{place}, 10-90 %", rise, f"<= {_MOST_RISE_PX:g} px", is_ok, "px")
    seen = [zone for zone in reading.zones if zone.score is not None]
    found.check("zones that show a plate", float(len(seen)), ">= 1", bool(seen))
    found.facts[_READING] = json.dumps([dataclasses.asdict(zone) for zone in reading.zones])
    _compare_focus(bench, found, reading)
    found.show_pixels("plates", taken.pixels, "Plates as the focus was measured on")


def _compare_focus(bench: Bench, found: Findings, reading: FocusReading) -> None:
    kept = bench.before.steps().get("focus") if bench.before else None
    if kept is None or _READING not in kept.facts:
        return
    zones = tuple(FocusZone(**zone) for zone in json.loads(kept.facts[_READING]))
    scores = [zone.score for zone in zones if zone.score is not None]
    reference = FocusReading(zones, sum(scores) / len(scores) if scores else None, None)
    if [z.end_px for z in zones] != [z.end_px for z in reading.zones]:
        found.note("the FAT had another width: sharpness is not compared")
        return
    verdict = judge_focus(reading, reference)
    words = "; ".join(verdict.problems) or f"{verdict.worst_share:.0%} in the worst zone"
    found.check("sharpness, of the FAT's", words, "not softer", verdict.is_ok)


def _plate_scan_lines(bench: Bench) -> int:
    """Scan lines in which a plate lies whole, with belt around it."""
    plate, pitch_mm = bench.recipe.value.plate, bench.settings.camera.pixel_pitch_mm
    longest_mm = plate.max_length_mm or 1.25 * plate.length_mm
    return math.ceil(_PLATE_LENGTHS * longest_mm / pitch_mm)


# --- flat field -----------------------------------------------------------------------------------


def flat_field(bench: Bench, found: Findings) -> None:
    """The target is clean and even, and the approved flat field levels what the camera sees."""
    dark = bench.capture_target(found, "Dark", _TARGET_SCAN_LINES)
    bright = bench.capture_target(found, "Uniform", _TARGET_SCAN_LINES)
    raw = bright.pixels.mean(axis=0, dtype=np.float64)
    approved = load_flat_field(bench.configuration, bright.info)
    profiles = {"raw": raw}
    corrected = bright.pixels.copy()
    if approved is not None:
        correct(corrected, correction_of(approved))
        profiles["corrected"] = corrected.mean(axis=0, dtype=np.float64)
    chart = line_chart("Uniform target", "crossweb, px", "level", profiles)
    found.picture("profile.svg", chart, "Level of each column on the uniform target")
    found.facts["non-uniformity before"] = f"{residual_non_uniformity(bright.pixels):.3%}"
    found.facts["flat field"] = approved.id if approved else "none"
    residual = residual_non_uniformity(corrected)
    found.check(
        "residual column non-uniformity",
        100 * residual,
        f"<= {100 * _RESIDUAL:g} %",
        residual <= _RESIDUAL,
        "%",
    )
    if approved is None and residual > _RESIDUAL:
        found.note("no flat field is configured: `vqi camera calibrate`, then [flat_field]")
    if approved is not None:
        level = float(raw.mean() - dark.pixels.mean(dtype=np.float64))
        share = level / approved.level
        found.check(
            "light, of the flat field's",
            100 * share,
            f"{100 * _AGED_LIGHT:g} to {100 / _AGED_LIGHT:.0f} %",
            _AGED_LIGHT <= share <= 1 / _AGED_LIGHT,
            "%",
        )
    try:
        fresh = measure_flat_field(dark.pixels, bright.pixels, bright.info.serial)
    except FlatFieldRefused as error:
        found.check("target and lens", str(error), "clean and even", False)
    else:
        found.check("target and lens", f"level {fresh.level:.1f}", "clean and even", True)


# --- scale ----------------------------------------------------------------------------------------


def scale(bench: Bench, found: Findings) -> None:
    """The plate itself says how many mm a pixel has downweb and crossweb; a wrong encoder divider
    stretches the picture."""
    plate, pitch_mm = bench.recipe.value.plate, bench.settings.camera.pixel_pitch_mm
    taken = bench.capture_target(found, "Belt", _plate_scan_lines(bench))
    found.show_pixels("plates", taken.pixels, "Plates as the scale was measured on")
    measured = measure_scale(taken.pixels, plate, pitch_mm)
    across, along = measured.crossweb_mm_per_px, measured.downweb_mm_per_px
    share = f"within {100 * SCALE_TOLERANCE:g} %"
    found.check(
        "crossweb",
        across.value,
        f"{pitch_mm:g} mm, {share}",
        abs(across.value / pitch_mm - 1) <= SCALE_TOLERANCE,
        "mm/px",
    )
    found.check(
        "downweb over crossweb",
        measured.aspect.value,
        f"1, {share}",
        abs(measured.aspect.value - 1) <= SCALE_TOLERANCE,
    )
    found.check(
        "squareness",
        measured.squareness_deg.value,
        f"within {MOST_OUT_OF_SQUARE_DEG:g} deg",
        abs(measured.squareness_deg.value) <= MOST_OUT_OF_SQUARE_DEG,
        "deg",
    )
    found.facts |= {
        "method": measured.method,
        "crossweb": _with_error(across, "mm/px"),
        "downweb": _with_error(along, "mm/px"),
        "rotation of the plate": _with_error(measured.rotation_deg, "deg"),
        "residual": f"{1000 * measured.residual_mm:.3g} um",
    }
    for finding in scale_findings(measured, pitch_mm):
        found.note(finding)


def _with_error(measured: Measured, unit: str) -> str:
    return f"{measured.value:.6g} +- {measured.standard_error:.2g} {unit} (standard error)"


# --- delays ---------------------------------------------------------------------------------------


def delays(bench: Bench, found: Findings) -> None:
    """From the plate trigger to the picture, as the frames show it, and on to the reject point."""
    belt_mm_s = bench.answers.number("belt_mm_s", "speed of the belt, mm/s")
    taken = bench.capture_target(found, "Belt", _DELAY_LOOKS * _plate_scan_lines(bench))
    if all(frame.plate_counter is None for frame in taken.frames):
        question = "the frames carry no plate counter; type none if the line has no plate trigger"
        if bench.answers.text("plate_trigger", question) != "none":
            raise NotDone("the frames carry no plate counter: enable its chunk")
        found.facts["plate trigger"] = "none"
    else:
        _check_trigger(bench, found, taken, belt_mm_s)
    question = "from the camera to the reject point, mm; none if the line has none"
    distance = bench.answers.text("reject_distance_mm", question)
    if distance == "none":
        found.facts["reject point"] = "none"
        found.check("belt", belt_mm_s, "> 0 mm/s", True, "mm/s")
        return
    distance_mm = bench.answers.number("reject_distance_mm", question)
    recipe = bench.recipe.value
    length_mm = recipe.plate.max_length_mm or 1.25 * recipe.plate.length_mm
    deadline_ms = 1000 * recipe.deadline_s
    plan = plan_reject(distance_mm, belt_mm_s, length_mm, deadline_ms)
    found.check(
        "time left for the verdict",
        plan.decision_ms,
        f">= {deadline_ms:g} ms, the recipe's deadline",
        not plan.problems,
        "ms",
    )
    found.facts["reject delay"] = f"{plan.ms:.1f} ms after the leading edge, {plan.mm:g} mm"
    for problem in plan.problems:
        found.note(problem)


def _check_trigger(bench: Bench, found: Findings, taken: Capture, belt_mm_s: float) -> None:
    """Every plate that is seen was counted, and the delay between the two is known."""
    pitch_mm = bench.settings.camera.pixel_pitch_mm
    geometry = geometry_of(bench.recipe, pitch_mm, taken.info.width)
    frames = list(_with_leading_edges(taken, geometry))
    counters = [frame.plate_counter for frame in taken.frames if frame.plate_counter is not None]
    seen, counted = sum(len(edges) for _, edges in frames), counters[-1] - counters[0]
    # A plate at either end may be seen or counted outside of what was taken.
    found.check(
        "plates counted by the trigger",
        float(counted),
        f"{seen} seen, give or take one at the ends",
        seen > 0 and abs(counted - seen) <= 1,
    )
    delay = measure_trigger_delay(sightings(frames), pitch_mm, belt_mm_s)
    found.check(
        "trigger delay known within",
        delay.standard_error_mm,
        f"<= {_DELAY_ERROR_MM:g} mm (standard error)",
        delay.standard_error_mm <= _DELAY_ERROR_MM,
        "mm",
    )
    found.facts["trigger to picture"] = f"{delay.mm:.1f} mm, {delay.ms:.1f} ms"


def _with_leading_edges(taken: Capture, geometry: Geometry) -> Iterator[tuple[Frame, list[int]]]:
    """Each frame with the rows at which a plate begins, as the station sees them."""
    was_plate = True
    for frame in taken.frames:
        is_plate = scan_line_edges(frame.pixels, geometry)[0] != OUTSIDE
        before = np.concatenate([[was_plate], is_plate[:-1]])
        yield frame, np.flatnonzero(is_plate & ~before).tolist()
        was_plate = bool(is_plate[-1])


# --- lamp and I/O ---------------------------------------------------------------------------------

_SHOWN = tuple(state for state in LightState if state is not LightState.PASS)


def lamp(bench: Bench, found: Findings) -> None:
    """Every state is shown and seen, but the production pass, which takes a production plate; and
    the inputs count while the belt runs."""
    table = bench.settings.light.pattern_table
    with open_stack_light(bench.settings.light.device, table) as device:
        found.facts["device"] = device.description
        try:
            for state in _SHOWN:
                _check_state(bench, found, device, state)
        finally:
            device.show(LightState.FAULT)
    found.note(f"{LightState.PASS} is shown for production plates only; the lamp test lights green")
    _check_inputs(found, _first_look(bench))


def _check_state(bench: Bench, found: Findings, device: StackLight, state: LightState) -> None:
    pattern = bench.settings.light.pattern_table[state]
    words = ", ".join(f"{element} {mode}" for element, mode in pattern.items()) or "all off"
    if device.show(state):
        found.check(f"light {state}", words, words, True)
        found.note(f"{state}: read back")
        return
    time.sleep(_STATE_S if bench.answers.ask is not None else 0.0)
    is_seen, how = bench.answers.confirm(f"light_{state}", f"Does the light show {words}?")
    found.check(f"light {state}", words if is_seen else "not seen", words, is_seen)
    found.note(f"{state}: {how}")


def _check_inputs(found: Findings, taken: Capture) -> None:
    """What the frames say of encoder and plate trigger."""
    frames = [frame for frame in taken.frames if not frame.is_incomplete]
    encoder = [frame.encoder_value for frame in frames if frame.encoder_value is not None]
    counter = [frame.plate_counter for frame in frames if frame.plate_counter is not None]
    for name, values in (("encoder", encoder), ("plate counter", counter)):
        if len(values) < 2:
            found.facts[name] = "not delivered with the frames"
            continue
        moved = values[-1] - values[0]
        found.check(f"{name} counts", float(moved), "> 0, the belt runs", moved > 0)


# --- dry run --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the station's run ended."""

    status: int
    summary: Json
    last_words: str


def dry_run(bench: Bench, found: Findings) -> None:
    """The station itself on this configuration: every plate has its record and its light."""
    since, wanted = utc_now(), bench.dry_run_plates
    ended = _run_station(bench)
    summary = ended.summary
    if not summary:
        raise StepFailed(f"the station did not run: {ended.last_words or 'it said nothing'}")
    found.check("exit status", float(ended.status), "0", ended.status == 0)
    found.check(
        "plates",
        float(summary["plates"]),
        f">= {DRY_RUN_PLATES}",
        summary["plates"] >= max(wanted, DRY_RUN_PLATES),
    )
    for key in ("lost_frames", "incomplete_frames", "gaps", "camera_restarts"):
        found.check(key.replace("_", " "), float(summary[key]), "0", summary[key] == 0)
    _check_latency(bench, found, summary)
    undecided = summary["undecided"] / max(1, summary["plates"])
    limit = f"<= {100 * _UNDECIDED_SHARE:g} %"
    found.check("undecided", 100 * undecided, limit, undecided <= _UNDECIDED_SHARE, "%")
    for key in ("pass", "fail", "undecided", "frames", "tiles", "mb_per_s", "peak_rss_mb"):
        found.facts[key.replace("_", " ")] = str(summary[key])
    for key in ("truly_defective", "truly_good", "escapes", "false_rejects"):
        if key in summary:
            found.facts[key.replace("_", " ")] = str(summary[key])
    _check_conservation(bench, found, since)


def _run_station(bench: Bench) -> _Ended:
    """`vqi run` as an operator would start it."""
    command = [sys.executable, "-P", "-m", "station.cli", "run"]
    command += ["--config", bench.configuration.source, "--json"]
    command += ["--plates", str(bench.dry_run_plates), "--seconds", str(_DRY_RUN_LIMIT_S)]
    summary: Json = {}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words
        )
        try:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout, start=1):
                row = json.loads(line)
                summary = row.get("summary", summary)
                if number % 20 == 0:
                    bench.say(f"      {number} plates")
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        words.seek(0)
        last = words.read().decode(errors="replace").strip().splitlines()[-1:]
    return _Ended(status, summary, "".join(last))


def _check_latency(bench: Bench, found: Findings, summary: Json) -> None:
    deadline_ms = 1000 * bench.recipe.value.deadline_s
    for key in ("p50", "p99", "max"):
        value = summary["latency_ms"][key]
        is_ok = value is not None and value <= deadline_ms
        found.check(f"latency {key}", value, f"<= {deadline_ms:g} ms", is_ok, "ms")


def _check_conservation(bench: Bench, found: Findings, since: str) -> None:
    """Plates triggered = records = light commands, as the log says it."""
    with Reader(bench.settings.journal.directory) as reader:
        opened, results, acted = (
            list(reader.bodies(kind, since)) for kind in ("opened", "result", "actuation")
        )
        report = verify(reader, with_images=False)
    plates = [row for row in results if row["reason"] != "gap"]
    ids = Counter(row["result_id"] for row in results)
    is_once = max(ids.values(), default=0) == 1
    is_all = {row["result_id"] for row in opened} == {row["result_id"] for row in plates}
    found.check("opened plates", float(len(opened)), "one record each", is_once and is_all)
    commands = Counter(row["result_id"] for row in acted)
    found.check("light commands", float(len(acted)), "one for each record", commands == ids)
    late = sum(row["command"] == "withheld_late" for row in acted)
    found.check("passes withheld for lateness", float(late), "0", late == 0)
    _check_counter(found, plates, results)
    findings = "; ".join(report.findings[:1]) or "verified"
    found.check("log", findings, "verified", not report.findings)
    _show_run(bench, found, plates, acted)


def _check_counter(found: Findings, plates: list[Json], results: list[Json]) -> None:
    ordinals = [row["plate_ordinal"] for row in plates]
    if not ordinals or None in ordinals:
        found.note("the camera counts no plates: that none passed unseen rests on the frame ids")
        return
    unseen = sum(row["triggers"] or 0 for row in results if row["reason"] == "gap")
    passed = max(ordinals) - min(ordinals) + 1
    answered = len(set(ordinals)) + unseen
    found.check("plates by the trigger", float(passed), f"{answered} answered", passed == answered)


def _show_run(bench: Bench, found: Findings, plates: list[Json], acted: list[Json]) -> None:
    commanded = {row["result_id"]: row["commanded_ns"] for row in acted if row["commanded_ns"]}
    latencies = [
        (commanded[row["result_id"]] - row["last_scan_line_ns"]) / 1e6
        for row in plates
        if row["last_scan_line_ns"] and row["result_id"] in commanded
    ]
    if latencies:
        chart = line_chart(
            "Last scan line to light command", "plate", "ms", {"latency": np.array(latencies)}
        )
        found.picture("latency.svg", chart, "Latency of each plate")
    reasons = Counter(f"{row['reason']}" for row in plates if row["reason"])
    if reasons:
        found.note("undecided: " + ", ".join(f"{n} x {why}" for why, n in reasons.most_common()))
    images = bench.settings.journal.directory / IMAGES
    for verdict in Verdict:
        for data in _preview(images, plates, verdict):
            found.picture(f"{verdict}.jpg".lower(), data, f"The last plate with verdict {verdict}")


def _preview(images: Path, plates: list[Json], verdict: Verdict) -> Iterator[bytes]:
    """The last preview of a verdict, if one was kept."""
    for row in reversed(plates):
        for image in row["images"] if row["verdict"] == verdict else ():
            if image["role"] == "preview":
                yield (images / image["path"]).read_bytes()
                return


# --- limit samples --------------------------------------------------------------------------------


def limit_samples(bench: Bench, found: Findings) -> None:
    """Pictures of plates at the limit get the verdicts that were agreed for them."""
    path = Path(bench.answers.text("limit_samples", f"folder with {_SAMPLES_FILE}, or that file"))
    samples = _read_samples(path / _SAMPLES_FILE if path.is_dir() else path)
    classifier = load_classifier(bench.configuration, bench.recipe, 1).classifier
    pitch_mm = bench.settings.camera.pixel_pitch_mm
    inspector = PictureInspector(bench.recipe, classifier, pitch_mm, 1)
    for verdict in (Verdict.PASS, Verdict.FAIL):
        count = sum(wanted is verdict for _, wanted in samples)
        found.check(f"samples that must be {verdict}", float(count), ">= 1", count >= 1)
    for file, wanted in samples:
        _check_sample(found, inspector, file, wanted)


def _check_sample(
    found: Findings, inspector: PictureInspector, file: Path, wanted: Verdict
) -> None:
    try:
        pixels = read_grey_picture(file)
        judged = inspector.inspect(pixels)
    except (PictureError, ValueError) as error:
        found.check(f"sample {file.name}", str(error), str(wanted), False)
        return
    score = "" if judged.score is None else f" {score_text(judged.score)}"
    reason = f" ({judged.reason}: {judged.detail})" if judged.reason else ""
    is_ok = judged.verdict is wanted
    found.check(f"sample {file.name}", f"{judged.verdict}{score}{reason}", str(wanted), is_ok)
    if not is_ok:
        found.show_pixels(f"wrong-{file.stem}", pixels, f"{file.name}: {judged.verdict}")


def _read_samples(path: Path) -> list[tuple[Path, Verdict]]:
    """Rows of a CSV with the columns file (relative to it) and expected."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise NotDone(f"{path}: no such file; it lists limit samples: file,expected") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StepFailed(f"{path}: cannot be read: {error}") from error
    samples = []
    for number, row in enumerate(rows, start=2):
        wanted = (row.get("expected") or "").strip().upper()
        if not row.get("file") or wanted not in set(Verdict):
            verdicts = ", ".join(Verdict)
            raise StepFailed(f"{path}, row {number}: file and expected ({verdicts}) are needed")
        samples.append((path.parent / row["file"], Verdict(wanted)))
    return samples


# --- attribute study ------------------------------------------------------------------------------


def msa(bench: Bench, found: Findings) -> None:
    """The attribute study of re-presented plates reaches AIAG's acceptable grade."""
    path = Path(bench.answers.text("msa_csv", "CSV with part,run,reference,verdict"))
    if not path.exists():
        raise NotDone(f"{path}: no such file")
    try:
        study = evaluate(read_study(path))
    except MsaError as error:
        raise StepFailed(str(error)) from error
    found.check("parts", float(study.parts), f">= {MIN_PARTS}", study.parts >= MIN_PARTS)
    found.check("runs", float(study.runs), f">= {MIN_RUNS}", study.runs >= MIN_RUNS)
    figures = (
        ("effectiveness", study.effectiveness, EFFECTIVENESS),
        ("miss rate", study.miss_rate, MISS_RATE),
        ("false-alarm rate", study.false_alarm_rate, FALSE_ALARM_RATE),
        ("kappa", study.kappa, KAPPA),
    )
    for name, estimate, limits in figures:
        _check_figure(found, study, name, estimate, limits)
    found.facts |= {
        "good parts": str(study.good_parts),
        "defective parts": str(study.defective_parts),
        "repeatability": f"{study.repeatability.value:.1%}",
    }
    if study.wrong:
        found.note(f"decided wrongly at least once: {', '.join(study.wrong)}")


def _check_figure(
    found: Findings, study: Study, name: str, estimate: Estimate, limits: Limits
) -> None:
    scale, unit = (1.0, "") if limits is KAPPA else (100.0, "%")
    sign = ">=" if limits.is_high_good else "<="
    suffix = f" {unit}" if unit else ""
    rating = study.ratings[name]
    found.check(
        name,
        scale * estimate.value,
        f"{sign} {scale * limits.acceptable:g}{suffix} (marginal {sign} "
        f"{scale * limits.marginal:g}{suffix})",
        rating is Rating.ACCEPTABLE,
        unit,
    )
    found.facts[f"{name}, 95 % interval"] = (
        f"{scale * estimate.low:.3g} to {scale * estimate.high:.3g}{suffix}"
    )
    found.facts[f"{name}, AIAG"] = str(rating)


STEPS = (
    Step("camera", "Camera and features", camera),
    Step("warm_up", "Warm-up", warm_up),
    Step("rate", "Line rate", rate),
    Step("flat_field", "Flat field", flat_field),
    Step("focus", "Focus", focus),
    Step("scale", "Scale", scale),
    Step("delays", "Trigger and reject delay", delays),
    Step("lamp", "Lamp and I/O", lamp),
    Step("dry_run", "Dry run", dry_run, runs_the_station=True),
    Step("limit_samples", "Limit samples", limit_samples),
    Step("msa", "Attribute study (MSA)", msa),
)
