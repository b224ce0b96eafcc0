"""The flat field: measured on specimens whose vignetting and pixels are known."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensor import Sensor, record
from station_rig import Rig, vqi

from drivers.camera import CameraInfo
from drivers.camera.settings import SpecimenSettings
from drivers.camera.specimen import Specimen, render
from station.flat_field import (
    FlatField,
    FlatFieldRefused,
    correct,
    correction_of,
    load,
    measure_flat_field,
    residual_non_uniformity,
    save,
)
from station.log_reader import Reader

Pixels = NDArray[np.uint8]
WIDTH = 768
SENSOR = Sensor(WIDTH, vignetting=0.2, non_uniformity=0.03, dark_level=4.0, seed=5)
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@cache
def field_of(sensor: Sensor = SENSOR, serial: str = "S1") -> FlatField:
    return measure_flat_field(sensor.dark(1024), sensor.uniform(2048), serial, AT)


def camera(serial: str, width: int = WIDTH, offset_x_px: int = 0) -> CameraInfo:
    return CameraInfo("genicam", "V", "M", serial, width, 64, "Mono8", offset_x_px)


def corrected(pixels: Pixels, field: FlatField) -> Pixels:
    pixels = pixels.copy()
    correct(pixels, correction_of(field))
    return pixels


def test_vignetting_of_a_fifth_and_uneven_pixels_are_taken_out() -> None:
    field, seen = field_of(), SENSOR.uniform(2048, seed=77)
    assert residual_non_uniformity(seen) > 0.1
    assert residual_non_uniformity(corrected(seen, field)) <= 0.005
    assert field.non_uniformity_after <= 0.005 < 0.1 < field.non_uniformity_before
    assert field.id == "S1-20260102T030405Z"


def test_it_holds_at_half_the_light() -> None:
    seen = SENSOR.uniform(4096, level=90.0, seed=78)
    assert residual_non_uniformity(corrected(seen, field_of())) <= 0.01


def test_a_plate_seen_through_the_lens_becomes_the_plate() -> None:
    field, sensor = field_of(), replace(SENSOR, noise=0.0)
    plate = Specimen.random(
        SpecimenSettings(width_mm=60, length_mm=40), np.random.default_rng(1), is_defective=True
    )
    true = render(plate, 0.1, WIDTH, 0.0, 0.0, np.random.default_rng(2)).pixels
    found = corrected(sensor.sees(true), field).astype(np.float64)
    scale = found.mean() / true.mean()
    is_bright = true > 60
    assert np.abs(found / scale - true)[is_bright].mean() < 0.01 * true[is_bright].mean()


@given(
    st.integers(1, 70),
    st.integers(0, 2**32 - 1),
    st.floats(0, 20),
    st.floats(0, 0.4),
)
@settings(max_examples=15, deadline=None)
def test_unlit_and_saturated_pixels_stay_what_they_are(
    rows: int, seed: int, dark_level: float, vignetting: float
) -> None:
    sensor = Sensor(WIDTH, vignetting, 0.02, dark_level, seed=3, noise=1.0)
    field = measure_flat_field(sensor.dark(128), sensor.uniform(2048, level=200.0), "S1", AT)
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, WIDTH)).astype(np.uint8)
    found = corrected(pixels, field)
    assert (found[pixels == 255] == 255).all()
    assert np.array_equal(found == 0, pixels == 0)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 100), max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_division_into_frames_gives_the_same_bits(seed: int, cuts: list[int]) -> None:
    field = field_of()
    pixels = np.random.default_rng(seed).integers(0, 256, (100, WIDTH)).astype(np.uint8)
    parts = [corrected(part, field) for part in np.split(pixels, sorted(cuts)) if len(part)]
    assert np.array_equal(np.concatenate(parts), corrected(pixels, field))


def test_nothing_is_allocated_for_a_frame() -> None:
    correction, frame = correction_of(field_of()), SENSOR.uniform(256)
    correct(frame, correction)
    tracemalloc.start()
    correct(frame, correction)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < frame.nbytes / 20


# --- what is refused ------------------------------------------------------------------------------


def dots(rows: int) -> Pixels:
    plate = Specimen.random(
        SpecimenSettings(width_mm=74, length_mm=rows / 10),
        np.random.default_rng(1),
        is_defective=False,
    )
    picture = render(plate, 0.1, WIDTH, 0.0, 0.0, np.random.default_rng(2)).pixels
    return SENSOR.sees(picture[:rows, : WIDTH - 30].repeat(2, axis=1)[:, :WIDTH])


def dirty(width_px: int, contrast: float) -> Pixels:
    target = np.full((1024, WIDTH), 180.0)
    target[:, 300 : 300 + width_px] *= 1 - contrast
    return SENSOR.sees(target)


def flickering() -> Pixels:
    target = np.full((1024, WIDTH), 170.0)
    target *= 1 + 0.1 * np.sin(np.arange(1024) / 5)[:, None]
    return SENSOR.sees(target)


REFUSED = {
    "structure": (lambda: SENSOR.dark(256), lambda: dots(1024), r"structure at columns? \d+"),
    "an edge": (
        lambda: SENSOR.dark(256),
        lambda: SENSOR.sees(np.repeat([[180.0] * 500 + [90.0] * 268], 1024, axis=0)),
        r"structure at columns 4\d\d-5\d\d: an edge of 5\d%",
    ),
    "dirt": (lambda: SENSOR.dark(256), lambda: dirty(20, 0.15), r"columns 29\d-3\d\d.*dirt"),
    "a dead pixel": (lambda: SENSOR.dark(256), lambda: dirty(1, 0.35), "column 300: 3\\d% .*dead"),
    "saturated": (
        lambda: SENSOR.dark(256),
        lambda: SENSOR.uniform(1024, level=262.0),
        r"saturated at columns? \d+.*lower ExposureTime",
    ),
    "too dark": (
        lambda: SENSOR.dark(256),
        lambda: SENSOR.uniform(1024, level=40.0),
        r"too dark: \d+\.\d levels",
    ),
    "a bright dark frame": (
        lambda: SENSOR.uniform(256, level=30.0),
        lambda: SENSOR.uniform(1024),
        r"dark frame is too bright: level 3\d\.\d",
    ),
    "few scan lines": (
        lambda: SENSOR.dark(256),
        lambda: SENSOR.uniform(64),
        r"too few scan lines: 64; take at least 128",
    ),
    "a noisy target": (
        lambda: SENSOR.dark(256),
        lambda: replace(SENSOR, noise=9.0).uniform(400),
        r"too few scan lines: 400 leave .*at least \d{4}",
    ),
    "flicker": (lambda: SENSOR.dark(256), flickering, r"flickers: whole scan lines differ by 7"),
    "another width": (
        lambda: SENSOR.dark(256)[:, :500],
        lambda: SENSOR.uniform(1024),
        r"500 px wide and bright 768 px",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_bad_target_is_refused_with_what_where_and_what_to_do(why: str) -> None:
    dark, bright, message = REFUSED[why]
    with pytest.raises(FlatFieldRefused, match=message):
        measure_flat_field(dark(), bright(), "S1")


# --- keeping --------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_for_its_camera_only(tmp_path: Path) -> None:
    field = field_of(serial="A/1")
    path = save(field, tmp_path / "fields")
    assert path.name == "A_1-20260102T030405Z.json"
    found = load(path, field.sha256, camera("A/1"))
    pixels = SENSOR.uniform(64)
    assert np.array_equal(corrected(pixels, found), corrected(pixels, field))
    with pytest.raises(FlatFieldRefused, match="measured with camera A/1, this one is S2"):
        load(path, field.sha256, camera("S2"))
    with pytest.raises(FlatFieldRefused, match="measured at 768 px, this camera delivers 4096"):
        load(path, field.sha256, camera("A/1", 4096))
    with pytest.raises(FlatFieldRefused, match="measured at OffsetX 0, this camera has 64"):
        load(path, field.sha256, camera("A/1", offset_x_px=64))
    with pytest.raises(FileExistsError):
        save(field, tmp_path / "fields")
    with pytest.raises(FlatFieldRefused, match="No such file"):
        load(tmp_path / "none.json", field.sha256, camera("A/1"))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    field = field_of()
    path = save(field, tmp_path)
    values = json.loads(path.read_text())
    values["gain"][7] *= 1.001
    path.write_text(json.dumps(values))
    with pytest.raises(FlatFieldRefused, match="its sha256 is"):
        load(path, field.sha256, camera("S1"))


# --- in the station -------------------------------------------------------------------------------

CAMERA = CameraInfo("simulated", "VQI", "belt", "S1", WIDTH, 64, "Mono8", line_rate_hz=4000.0)


def belt_with_a_plate() -> Pixels:
    rng = np.random.default_rng(4)
    plate = Specimen.random(SpecimenSettings(width_mm=60, length_mm=40), rng, is_defective=True)
    picture = render(plate, 0.1, WIDTH, 0.0, 0.3, rng).pixels
    belt = rng.integers(8, 16, (2, 256, WIDTH)).astype(np.uint8)
    return np.concatenate([belt[0], picture, belt[1]])


def test_replayed_raw_scan_lines_and_a_raw_picture_get_the_same_bits(tmp_path: Path) -> None:
    field = field_of()
    path = save(field, tmp_path)
    raw = SENSOR.sees(belt_with_a_plate())
    rig = Rig(tmp_path, recipe_lines="[keep]\npass_whole_share = 1.0\n")
    rig.camera = {"type": "replay", "path": str(record(tmp_path / "strip", CAMERA, raw))}
    config = rig.write()
    table = f'[flat_field]\nfile = "{path}"\nsha256 = "{field.sha256}"\n'
    config.write_text(config.read_text() + table)
    done = vqi("run", "--config", str(config), "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[0])
    assert (row["flat_field_id"], row["flat_field_sha256"]) == (field.id, field.sha256)

    picture = tmp_path / "raw.png"
    cv2.imwrite(str(picture), raw)
    scores = {}
    for name, options in {"raw": ["--raw"], "as it is": []}.items():
        done = vqi("inspect", str(picture), "--config", str(config), "--json", *options)
        scores[name] = json.loads(done.stdout)["score"]
    assert scores["raw"] == row["score"] != scores["as it is"]

    with Reader(rig.journal) as reader:
        start = next(body for body in reader.bodies("change") if body["what"] == "start")
    assert start["detail"]["flat_field_sha256"] == field.sha256


def with_flat_field(rig: Rig, serial: str = "SIM-3") -> tuple[FlatField, str]:
    """The rig's station with a flat field of its camera."""
    field = field_of(serial=serial)
    path, config = save(field, rig.folder), rig.write()
    table = f'[flat_field]\nfile = "{path}"\nsha256 = "{field.sha256}"\n'
    config.write_text(config.read_text() + table)
    return field, str(config)


def test_frames_of_another_shape_are_still_refused_by_the_strip(tmp_path: Path) -> None:
    faults = {"wrong_width": [8], "wrong_pixel_format": [14], "truncate": [20], "black": [26]}
    rig = Rig(tmp_path, faults=faults)
    _, config = with_flat_field(rig)
    done = vqi("run", "--config", config, "--plates", "6", "--json")
    assert done.returncode == 0, done.stderr
    reasons = {json.loads(line).get("reason") for line in done.stdout.splitlines()[:-1]}
    assert reasons & {"incomplete", "gap", "unlit"}
    assert json.loads(done.stdout.splitlines()[-1])["summary"]["camera_restarts"] == 0


def test_check_names_the_flat_field_or_what_is_wrong_with_it(tmp_path: Path) -> None:
    field, config = with_flat_field(Rig(tmp_path))
    done = vqi("check", "--config", config)
    assert done.returncode == 0, done.stderr
    assert f"flat field {field.id}" in done.stdout
    (tmp_path / f"{field.id}.json").write_text("{}")
    done = vqi("check", "--config", config)
    assert done.returncode == 78
    assert "flat_field.file" in done.stderr


@pytest.mark.parametrize(
    ("width", "sha256", "message"),
    [
        (WIDTH, "0" * 64, "its sha256 is"),
        (512, "", "measured at 512 px, this camera delivers 768 px"),
    ],
)
def test_a_flat_field_that_is_not_this_camera_s_is_a_bad_configuration(
    tmp_path: Path, width: int, sha256: str, message: str
) -> None:
    sensor = Sensor(width, 0.2, 0.02, 4.0, seed=5)
    field = measure_flat_field(sensor.dark(256), sensor.uniform(2048), "SIM-3")
    path = save(field, tmp_path)
    config = Rig(tmp_path).write()
    table = f'[flat_field]\nfile = "{path}"\nsha256 = "{sha256 or field.sha256}"\n'
    config.write_text(config.read_text() + table)
    done = vqi("run", "--config", str(config), "--plates", "1")
    assert done.returncode == 78
    assert "flat_field.file" in done.stderr
    assert message in done.stderr
