"""Commissioning steps before a target or the belt: camera, lens, light, encoder, trigger."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from drivers.camera import CameraInfo, Frame
from drivers.camera.features import Value, is_same_value
from drivers.camera.settings import CameraSettings, GenicamCameraSettings
from station.chart import line_chart
from station.commissioning import (
    Bench,
    Capture,
    Findings,
    NotDone,
    Pixels,
    watch,
)
from station.delays import measure_trigger_delay, plan_reject, sightings
from station.flat_field import (
    FlatField,
    FlatFieldRefused,
    correct,
    correction_of,
    measure_flat_field,
    residual_non_uniformity,
)
from station.focus import FocusReading, FocusZone, judge_focus, measure_focus
from station.line_rate import plan_line_rate
from station.product import geometry_of, load_flat_field
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

_TARGET_SCAN_LINES = 2048
_FIRST_LOOK_S = 2.0
_LEAST_SCAN_LINES = 512
_RESIDUAL = 0.005
"""Largest deviation of a corrected column."""
_AGED_LIGHT = 0.90
"""Light that is left of what the flat field was measured with."""
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
"""10 to 90 % of an edge: the simulated plates' have 2 px in focus, 4.2 at a blur of radius 3 px. A
smaller loss is found against the FAT's sharpness."""


# --- camera ---------------------------------------------------------------------------------------


def camera(bench: Bench, found: Findings) -> None:
    """The camera says who it is, takes its features, and delivers frames without loss."""
    taken = first_look(bench)
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
            _check_feature(found, info, name, value)
    found.check("lost frames", taken.lost_frames, "0", taken.lost_frames == 0)
    found.check("incomplete frames", taken.incomplete_frames, "0", taken.incomplete_frames == 0)
    found.show_pixels("first-look", taken.pixels, "What the camera sees, as it is set")


def first_look(bench: Bench) -> Capture:
    taken = bench.capture(_LEAST_SCAN_LINES)
    rate_hz = taken.info.line_rate_hz
    if rate_hz is None or rate_hz * _FIRST_LOOK_S <= _LEAST_SCAN_LINES:
        return taken
    return bench.capture(round(rate_hz * _FIRST_LOOK_S))


def _check_feature(found: Findings, info: CameraInfo, name: str, wanted: Value) -> None:
    """The driver refuses a value that became another; one that was rounded is said."""
    got = info.features.get(name)
    is_rounded = name in info.rounded
    is_ok = is_rounded or (got is not None and is_same_value(wanted, got))
    found.check(f"feature {name}", got, str(wanted), is_ok)
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
    divider = _encoder_divider(bench.settings.camera)
    counts_per_mm = None
    if divider is not None:
        question = "encoder counts a millimetre of belt, as the camera counts them"
        usual = _configured_counts(bench.settings.camera)
        counts_per_mm = bench.answers.number("encoder_counts_per_mm", question, usual)
    taken = first_look(bench)
    info, pitch_mm = taken.info, bench.settings.camera.pixel_pitch_mm
    plan = plan_line_rate(belt_mm_s, pitch_mm, counts_per_mm, divider, info.exposure_us, info.width)
    _check_line_rate(found, taken, plan.line_rate_square_hz)
    words = "; ".join(plan.warnings) or "all agree"
    found.check("belt, pixel, encoder, exposure", words, "all agree", not plan.warnings)
    found.facts |= {
        "belt": f"{belt_mm_s:g} mm/s",
        "pixel pitch": f"{pitch_mm:g} mm",
        "line period": f"{1e6 / plan.line_rate_square_hz:.6g} us",
        "exposure": "not told" if info.exposure_us is None else f"{info.exposure_us:g} us",
        "pixels to carry": f"{plan.mb_per_s:.4g} MB/s",
        "encoder": "none" if counts_per_mm is None else f"{counts_per_mm:g} counts/mm",
        "encoder divider": "none" if divider is None else str(divider),
    }


def _check_line_rate(found: Findings, taken: Capture, wanted_hz: float) -> None:
    measured_hz = _line_rate_hz(taken)
    found.check(
        "line rate, from the frames' times",
        measured_hz,
        f"{wanted_hz:.6g} Hz within {100 * _RATE_TOLERANCE:g} %, for square pixels",
        measured_hz is not None and abs(measured_hz / wanted_hz - 1) <= _RATE_TOLERANCE,
        "Hz",
    )


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
    taken = bench.capture_target(found, "Belt", _plate_scan_lines(bench))
    reading = measure_focus(taken.pixels)
    for zone in reading.zones:
        found.facts[_sharpness(zone)] = "no plate" if zone.score is None else f"{zone.score:.6g}"
        if zone.score is not None:
            what = f"edges at px {zone.start_px}-{zone.end_px}, 10-90 %"
            is_ok = zone.rise_px is not None and zone.rise_px <= _MOST_RISE_PX
            found.check(what, zone.rise_px, f"<= {_MOST_RISE_PX:g} px", is_ok, "px")
    seen = sum(zone.score is not None for zone in reading.zones)
    found.check("zones that show a plate", float(seen), ">= 1", seen >= 1)
    found.show_pixels("plates", taken.pixels, "Plates as the focus was measured on")
    _compare_focus(bench, found, reading)


def _sharpness(zone: FocusZone) -> str:
    """The fact that keeps a zone's score for the next run to compare with."""
    return f"sharpness at px {zone.start_px}-{zone.end_px}"


def _compare_focus(bench: Bench, found: Findings, reading: FocusReading) -> None:
    kept = bench.before.steps().get("focus") if bench.before else None
    if kept is None:
        return
    texts = [kept.facts.get(_sharpness(zone)) for zone in reading.zones]
    if None in texts or kept.basis.recipe_sha256 != bench.basis.recipe_sha256:
        found.note("the FAT had another width or recipe: its sharpness says nothing here")
        return
    scores = [None if text == "no plate" else float(text or "nan") for text in texts]
    zones = tuple(
        dataclasses.replace(zone, score=score, rise_px=None)
        for zone, score in zip(reading.zones, scores, strict=True)
    )
    verdict = judge_focus(reading, FocusReading(zones, score=None, tilt=None))
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
    approved = load_flat_field(bench.configuration, bright.info)
    found.facts["non-uniformity before"] = f"{residual_non_uniformity(bright.pixels):.3%}"
    found.facts["flat field"] = approved.id if approved else "none"
    _check_residual(found, bright.pixels, approved)
    if approved is None:
        found.note("no flat field is configured: `vqi camera calibrate`, then [flat_field]")
    else:
        _check_light(found, dark.pixels, bright.pixels, approved)
    try:
        fresh = measure_flat_field(
            dark.pixels, bright.pixels, bright.info.serial, offset_x_px=bright.info.offset_x_px
        )
    except FlatFieldRefused as error:
        found.check("target and lens", str(error), "clean and even", False)
    else:
        found.check("target and lens", f"level {fresh.level:.1f}", "clean and even", True)


def _check_residual(found: Findings, bright: Pixels, approved: FlatField | None) -> None:
    """What is left of each column, once what is approved is taken out."""
    profiles = {"raw": bright.mean(axis=0, dtype=np.float64)}
    levelled = bright.copy()
    if approved is not None:
        correct(levelled, correction_of(approved))
        profiles["corrected"] = levelled.mean(axis=0, dtype=np.float64)
    chart = line_chart("Uniform target", "crossweb, px", "level", profiles)
    found.picture("profile.svg", chart, "Level of each column on the uniform target")
    residual = residual_non_uniformity(levelled)
    found.check(
        "residual column non-uniformity",
        100 * residual,
        f"<= {100 * _RESIDUAL:g} %",
        residual <= _RESIDUAL,
        "%",
    )


def _check_light(found: Findings, dark: Pixels, bright: Pixels, approved: FlatField) -> None:
    level = float(bright.mean(dtype=np.float64) - dark.mean(dtype=np.float64))
    share = level / approved.level
    found.check(
        "light, of the flat field's",
        100 * share,
        f"{100 * _AGED_LIGHT:g} to {100 / _AGED_LIGHT:.0f} %",
        _AGED_LIGHT <= share <= 1 / _AGED_LIGHT,
        "%",
    )


# --- scale ----------------------------------------------------------------------------------------


def scale(bench: Bench, found: Findings) -> None:
    """The plate itself says how many mm a pixel has downweb and crossweb; a wrong encoder divider
    stretches the picture."""
    plate, pitch_mm = bench.recipe.value.plate, bench.settings.camera.pixel_pitch_mm
    taken = bench.capture_target(found, "Belt", _plate_scan_lines(bench))
    found.show_pixels("plates", taken.pixels, "Plates as the scale was measured on")
    measured = measure_scale(taken.pixels, plate, pitch_mm)
    across, along = measured.crossweb_mm_per_px, measured.downweb_mm_per_px
    _check_about(found, "crossweb", across.value, pitch_mm, "mm/px")
    _check_about(found, "downweb over crossweb", measured.aspect.value, 1.0, "")
    found.check(
        "squareness",
        measured.squareness_deg.value,
        f"within {MOST_OUT_OF_SQUARE_DEG:g} deg",
        abs(measured.squareness_deg.value) <= MOST_OUT_OF_SQUARE_DEG,
        "deg",
    )
    found.facts |= {
        "method": measured.method,
        "mm per px crossweb": _with_error(across, "mm"),
        "mm per px downweb": _with_error(along, "mm"),
        "rotation of the plate": _with_error(measured.rotation_deg, "deg"),
        "residual": f"{1000 * measured.residual_mm:.3g} um",
    }
    for finding in scale_findings(measured, pitch_mm):
        found.note(finding)


def _check_about(found: Findings, what: str, value: float, wanted: float, unit: str) -> None:
    expected = f"{wanted:g} within {100 * SCALE_TOLERANCE:g} %"
    found.check(what, value, expected, abs(value / wanted - 1) <= SCALE_TOLERANCE, unit)


def _with_error(measured: Measured, unit: str) -> str:
    return f"{measured.value:.6g} +- {measured.standard_error:.2g} {unit} (standard error)"


# --- delays ---------------------------------------------------------------------------------------


def delays(bench: Bench, found: Findings) -> None:
    """From the plate trigger to the picture, as the frames show it, and on to the reject point."""
    belt_mm_s = bench.answers.number("belt_mm_s", "speed of the belt, mm/s")
    taken = bench.capture_target(found, "Belt", _DELAY_LOOKS * _plate_scan_lines(bench))
    found.check("belt", belt_mm_s, "> 0 mm/s", True, "mm/s")
    if any(frame.plate_counter is not None for frame in taken.frames):
        _check_trigger(bench, found, taken, belt_mm_s)
    else:
        question = "the frames carry no plate counter; type none if the line has no plate trigger"
        if bench.answers.text("plate_trigger", question) != "none":
            raise NotDone("the frames carry no plate counter: enable its chunk")
        found.facts["plate trigger"] = "none"
    question = "from the camera to the reject point, mm; none if the line has none"
    if bench.answers.text("reject_distance_mm", question) == "none":
        found.facts["reject point"] = "none"
    else:
        distance_mm = bench.answers.number("reject_distance_mm", question)
        _check_reject(bench, found, distance_mm, belt_mm_s)


def _check_reject(bench: Bench, found: Findings, distance_mm: float, belt_mm_s: float) -> None:
    """A verdict may take its deadline before the plate is at the reject point."""
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
