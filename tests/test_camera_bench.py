"""`vqi camera` as a commissioning engineer meets it, over the line-scan simulator."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor import Sensor, record
from station_rig import Rig, vqi

from drivers.camera import CameraInfo

SENSOR = Sensor(768, vignetting=0.2, non_uniformity=0.03, dark_level=4.0, seed=5)

ENCODER = {
    "SimEncoderResolution": 100.0,
    "EncoderResolution": 10.0,
    "TriggerSource_LineStart": "Encoder0",
    "TriggerMode_LineStart": "On",
    "ExposureTime": 20.0,
}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def simulator(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A station before the GenTL simulator, whose belt carries the rig's plates."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the simulator")
    # Its devices are locked there: another test may have one open.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    specimen = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 40.0, "lateral_offset_mm": 3.0}
    rig.camera = {
        "type": "genicam",
        "producer": "linescan",
        "serial": "VQI-LS-1",
        "features": {
            "Width": 768,
            "Height": 64,
            "AcquisitionLineRate": 4000.0,
            "SimBeltSpeed": 400.0,
        },
        "belt": {"bank_plates": 2, "specimen": {**specimen, "skew_deg": 0.8}},
    }
    return rig


def with_features(rig: Rig, **features: Any) -> str:
    rig.camera["features"] |= {
        (f"{name[:-10]}[LineStart]" if name.endswith("_LineStart") else name): value
        for name, value in features.items()
    }
    return str(rig.write())


def rows_of(*arguments: str, status: int = 0) -> list[dict[str, Any]]:
    done = vqi("camera", *arguments, "--json")
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- features -------------------------------------------------------------------------------------


def test_features_are_a_tree_with_units_ranges_and_access(simulator: Rig) -> None:
    config = str(simulator.write())
    rows = {row["name"]: row for row in rows_of("features", "--config", config)}
    rate = rows["AcquisitionLineRate"]
    assert (rate["category"], rate["unit"], rate["value"]) == ("AcquisitionControl", "Hz", 4000.0)
    assert rate["minimum"] < 4000 < rate["maximum"]
    assert rows["DeviceTemperature"]["access"] == "read"
    assert rows["TriggerMode"]["choices"] == ["Off", "On"]
    assert rows["TriggerMode"]["selectors"] == ["TriggerSelector"]
    assert all(row["tooltip"] for row in rows.values())
    text = vqi("camera", "features", "--config", config, "--filter", "exposuretime").stdout
    assert text.splitlines()[0] == "AcquisitionControl"
    assert "us  [0.5 to 250]" in text


def test_features_of_a_producer_nobody_here_wrote(rig: Rig) -> None:
    rig.camera = {"type": "genicam", "producer": "viky", "serial": "0"}
    rows = rows_of("features", "--config", str(rig.write()))
    assert {"Width", "PixelFormat"} <= {row["name"] for row in rows}


def test_what_has_no_features_says_so(rig: Rig) -> None:
    done = vqi("camera", "features", "--config", str(rig.write()))
    assert done.returncode == 1
    assert "camera.type is simulated" in done.stderr


# --- live -----------------------------------------------------------------------------------------


def test_live_counts_and_measures(simulator: Rig) -> None:
    config = with_features(simulator, SimLostFrames="5,6")
    rows = rows_of("live", "--config", config, "--frames", "60")
    last = rows[-1]
    assert (last["frames"], last["lost_frames"], last["incomplete_frames"]) == (60, 2, 0)
    assert last["line_rate_hz"] == pytest.approx(4000, rel=0.02)
    assert any(row["focus"] for row in rows)


def test_live_without_a_terminal_is_text(rig: Rig) -> None:
    done = vqi("camera", "live", "--config", str(rig.write()), "--frames", "20")
    assert done.returncode == 0, done.stderr
    assert "frames 20 lost 0 incomplete 0" in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.stdout


def test_live_waits_for_a_belt_that_stands_still(simulator: Rig) -> None:
    config = with_features(simulator, **ENCODER, EncoderDivider=10, SimBeltDirection="Stopped")
    rows = rows_of("live", "--config", config, "--seconds", "1.5")
    assert rows[-1]["is_silent"]
    assert rows[-1]["frames"] == 0
    done = vqi("camera", "snap", "--config", config)
    assert done.returncode == 1
    assert "no frames within 2 s; is it triggered?" in done.stderr


def test_live_at_a_terminal_draws_the_picture(rig: Rig) -> None:
    text = at_a_terminal("camera", "live", "--config", str(rig.write()), "--frames", "30")
    assert "▀" in text
    assert "SIM-3" in text
    assert "scan lines/s" in text


def at_a_terminal(*arguments: str) -> str:
    """What a command draws on a pseudo-terminal of its own."""

    pid, master = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS="120", LINES="40", TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-P", "-m", "station.cli", *arguments])
    parts = []
    try:
        while part := os.read(master, 65536):
            parts.append(part)
    except OSError:  # the other end is closed
        pass
    assert os.waitpid(pid, 0)[1] == 0
    return b"".join(parts).decode()


# --- calibrate ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_calibrated_station_sees_an_even_target(simulator: Rig, tmp_path: Path) -> None:
    config = with_features(
        simulator, SimVignetting=20.0, SimPixelNonUniformity=3.0, SimDarkLevel=4.0, SimNoise=2.0
    )
    done = vqi("camera", "calibrate", "--config", config, "--out", str(tmp_path / "fields"))
    assert done.returncode == 0, done.stderr
    assert "SimTarget = Dark" in done.stderr
    table = done.stdout[done.stdout.index("[flat_field]") :]
    field = tomllib.loads(table)["flat_field"]
    stored = json.loads(Path(field["file"]).read_text())
    assert stored["non_uniformity_before"] > 0.1
    assert stored["non_uniformity_after"] <= 0.005

    Path(config).write_text(Path(config).read_text() + table)
    run = vqi("run", "--config", config, "--plates", "3", "--json")
    assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in run.stdout.splitlines()][:-1]
    assert {record["flat_field_sha256"] for record in records} == {field["sha256"]}
    assert {record["verdict"] for record in records} <= {"PASS", "FAIL"}


def test_recordings_are_calibrated_without_the_camera(rig: Rig, tmp_path: Path) -> None:
    camera = CameraInfo("genicam", "V", "M", "S7", 768, 64, "Mono8")
    dark = record(tmp_path / "dark", camera, SENSOR.dark(512))
    flat = record(tmp_path / "flat", camera, SENSOR.uniform(2048))
    (row,) = rows_of(
        *("calibrate", "--config", str(rig.write()), "--out", str(tmp_path / "fields")),
        *("--dark", str(dark), "--flat", str(flat)),
    )
    assert row["camera_serial"] == "S7"
    assert row["non_uniformity_after"] <= 0.005
    assert Path(row["file"]).is_file()


def test_pictures_are_calibrated_for_the_configured_camera(rig: Rig, tmp_path: Path) -> None:
    for name, pixels in (("dark", SENSOR.dark(300)), ("flat", SENSOR.uniform(1500))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    targets = ("--dark", str(tmp_path / "dark.png"), "--flat", str(tmp_path / "flat.png"))
    (row,) = rows_of("calibrate", "--config", str(rig.write()), *targets)
    assert row["camera_serial"] == "SIM-3"
    assert Path(row["file"]).parent == rig.journal.parent / "flat-fields"


def test_a_bad_target_writes_nothing(rig: Rig, tmp_path: Path) -> None:
    target = np.full((1024, 768), 180.0)
    target[:, 300:320] *= 0.8
    for name, pixels in (("dark", SENSOR.dark(300)), ("flat", SENSOR.sees(target))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    targets = ("--dark", str(tmp_path / "dark.png"), "--flat", str(tmp_path / "flat.png"))
    done = vqi("camera", "calibrate", "--config", str(rig.write()), *targets)
    assert done.returncode == 1
    assert "the target has structure at columns 29" in done.stderr
    assert not (rig.journal.parent / "flat-fields").exists()


def test_a_plate_is_no_target(simulator: Rig) -> None:
    config = with_features(simulator, SimDirtPosition=400, SimDirtWidth=40, SimDirtContrast=30.0)
    done = vqi("camera", "calibrate", "--config", config)
    assert done.returncode == 1
    assert "dirt on target, lens or window" in done.stderr


def test_nobody_to_ask_is_a_usage_error(rig: Rig) -> None:
    done = vqi("camera", "calibrate", "--config", str(rig.write()))
    assert done.returncode == 2
    assert "--dark and --flat" in done.stderr
    done = vqi("camera", "calibrate", "--config", str(rig.write()), "--dark", "x")
    assert done.returncode == 2


# --- focus ----------------------------------------------------------------------------------------


def test_a_lens_out_of_focus_is_found_by_its_reference(simulator: Rig, tmp_path: Path) -> None:
    reference = str(tmp_path / "focus.json")
    config = str(simulator.write())
    done = vqi("camera", "focus", "--config", config, "--seconds", "1.5", "--keep", reference)
    assert done.returncode == 0, done.stderr
    same = ("focus", "--config", config, "--seconds", "1.5", "--reference", reference)
    rows = rows_of(*same)
    assert max(row["best_score"] or 0 for row in rows) > 0
    with_features(simulator, SimDefocus=2.0)
    done = vqi("camera", *same)
    assert done.returncode == 1
    assert "of the reference's sharpness; refocus" in done.stderr


def test_no_plate_and_no_reference_are_told(simulator: Rig, tmp_path: Path) -> None:
    config = with_features(simulator, SimTarget="Dark")
    done = vqi("camera", "focus", "--config", config, "--seconds", "0.5")
    assert done.returncode == 1
    assert "no plate was seen" in done.stderr
    (tmp_path / "bad.json").write_text("{}")
    done = vqi("camera", "focus", "--config", config, "--reference", str(tmp_path / "bad.json"))
    assert done.returncode == 1
    assert "not a focus reference" in done.stderr


# --- rate, scale, delays, warm-up -----------------------------------------------------------------


def test_a_wrong_divider_is_found_by_rate_and_by_scale(simulator: Rig) -> None:
    simulator.recipe_lines = ""
    config = with_features(simulator, **ENCODER, EncoderDivider=8)
    (plan,) = rows_of("rate", "400", "--config", config, status=1)
    assert (plan["divider"], plan["divider_square"]) == (8, 10)
    assert plan["aspect"] == pytest.approx(0.8)
    (found,) = rows_of("scale", "--config", config, status=1)
    assert found["aspect"]["value"] == pytest.approx(0.8, abs=0.01)
    assert "stretched 1.25" in found["findings"][0]

    config = with_features(simulator, EncoderDivider=10)
    (plan,) = rows_of("rate", "400", "--config", config)
    assert plan["warnings"] == []
    (found,) = rows_of("scale", "--config", config)
    assert found["aspect"]["value"] == pytest.approx(1.0, abs=0.004)


def test_the_dots_are_the_better_ruler(simulator: Rig) -> None:
    config = simulator.write()
    (outline,) = rows_of("scale", "--config", str(config))
    recipe = simulator.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[plate]", "[plate]\ndot_pitch_mm = 1.2"))
    (dots,) = rows_of("scale", "--config", str(config))
    assert (outline["method"], dots["method"]) == ("outline", "lattice")
    assert dots["downweb_mm_per_px"]["value"] == pytest.approx(0.1, rel=1e-4)
    errors = [row["downweb_mm_per_px"]["standard_error"] for row in (outline, dots)]
    assert errors[1] < errors[0] / 50


def test_rate_needs_no_camera(rig: Rig) -> None:
    (plan,) = rows_of("rate", "300", "--pixel-pitch-mm", "0.1")
    assert plan["line_rate_hz"] == pytest.approx(3000)
    done = vqi("camera", "rate", "300")
    assert done.returncode == 2
    rig.camera = {
        "type": "genicam",
        "producer": "/opt/none.cti",
        "serial": "1",
        "features": {"ExposureTime": 400.0},
    }
    done = vqi("camera", "rate", "300", "--config", str(rig.write()))
    assert done.returncode == 1
    assert "the camera is not asked" in done.stderr
    assert "exposure 400 us exceeds" in done.stdout


def test_the_light_barrier_s_distance_is_found(simulator: Rig) -> None:
    config = with_features(simulator, ChunkModeActive=True, SimBarrierDistance=15.0)
    (row,) = rows_of("delays", "--config", config, "--plates", "8", "--reject-mm", "2000")
    assert row["belt_mm_s"] == pytest.approx(400, rel=0.02)
    away = abs(row["trigger"]["mm"] - 15.0)
    assert away < 5 * row["trigger"]["standard_error_mm"] < 5.0
    assert row["reject"]["ms"] == pytest.approx(2000 / row["belt_mm_s"] * 1000)
    (row,) = rows_of("delays", "--config", config, "--plates", "2", "--reject-mm", "100", status=1)
    assert "too near" in row["reject"]["problems"][0]


@pytest.mark.long
def test_a_camera_that_warms_up_is_waited_for(simulator: Rig) -> None:
    config = with_features(simulator, SimDarkLevel=4.0, SimTemperatureDrift=60.0)
    cold = ("warm-up", "--config", config, "--minutes", "0.05", "--seconds", "5")
    rows = rows_of(*cold, status=1)
    assert rows[-1]["temperature_c"] > rows[0]["temperature_c"]
    config = with_features(simulator, SimTemperatureDrift=0.0)
    rows = rows_of("warm-up", "--config", config, "--minutes", "0.03", "--seconds", "30")
    assert rows[-1]["is_stable"]
