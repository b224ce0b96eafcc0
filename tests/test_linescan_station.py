"""The station over the line-scan simulator: real GenTL bytes through harvesters, real processes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from station_rig import (
    FRAME_HEIGHT,
    Rig,
    check_conservation,
    children,
    linescan_camera,
    vqi,
    wait_until,
)

from drivers.camera import open_camera
from station.config import load_configuration

if shutil.which("gcc") is None:
    pytest.skip("the line-scan simulator is built with gcc", allow_module_level=True)

_SAME = ("verdict", "reason", "score", "tile_grid", "tile_scores", "pixels_sha256", "defects")


@pytest.fixture
def belt() -> dict[str, Any]:
    return {"contrast_scale": 3.0}


def by_plate(rig: Rig) -> dict[int, dict[str, Any]]:
    rows = {row["plate_ordinal"]: row for row in rig.rows("result")}
    return {ordinal: {key: row[key] for key in _SAME} for ordinal, row in rows.items()}


def test_the_same_pixels_give_the_same_scores_whatever_camera_brings_them(
    tmp_path: Path, belt: dict[str, Any]
) -> None:
    strip = str(tmp_path / "strip")
    cameras: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "simulated": ({}, ()),
        "linescan": (linescan_camera(), ("--record", strip, "--record-gb", "0.5")),
        "replay": ({"type": "replay", "path": strip}, ()),
    }
    rigs = [Rig(tmp_path / name, camera, belt) for name, (camera, _) in cameras.items()]
    for rig, (_, options) in zip(rigs, cameras.values(), strict=True):
        rig.folder.mkdir()
        result = rig.run("--plates", "8", *options)
        assert result.status == 0, result.stderr
        assert result.summary["lost_frames"] == 0
        assert result.summary["undecided"] == 0, [row["detail"] for row in result.records]
        check_conservation(rig)
    simulated, linescan, replay = map(by_plate, rigs)
    assert simulated == linescan == replay
    assert len(simulated) == 8
    start = next(row for row in rigs[1].rows("change") if row["what"] == "start")
    assert start["detail"]["camera_serial"] == "VQI-LS-1"
    assert len(start["detail"]["camera_features_sha256"]) == 64


def test_a_frame_that_is_incomplete_says_nothing_of_encoder_and_plates(tmp_path: Path) -> None:
    """What it says comes last, and is missing with its last scan lines."""
    rig = Rig(tmp_path, camera=linescan_camera(SimIncompleteFrames="5", SimShortFrames="7"))
    with open_camera(load_configuration(str(rig.write())).value.camera) as camera:
        camera.start()
        into = np.empty(camera.info.max_frame_bytes, np.uint8)
        frames = [camera.grab(into, 5.0) for _ in range(9)]
    told = [(one.height, one.is_incomplete, one.encoder_value) for one in frames if one]
    whole = [(FRAME_HEIGHT, False, number * FRAME_HEIGHT) for number in range(9)]
    whole[5], whole[7] = (FRAME_HEIGHT // 2, True, None), (FRAME_HEIGHT // 2, True, whole[7][2])
    assert told == whole
    assert [one.plate_counter for one in frames if one][4:7] == [0, None, 0]


def test_a_stall_of_the_inspection_loses_nothing(tmp_path: Path, belt: dict[str, Any]) -> None:
    """The ring and the producer's buffers hold what comes in 300 ms."""
    rig = Rig(tmp_path, specimen=belt, camera=linescan_camera())
    with rig.running() as process:
        wait_until(lambda: rig.status().get("plates", 0) > 1, 30.0, "plates")
        station = children(process.pid)["station"]
        for _ in range(5):
            os.kill(station, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(station, signal.SIGCONT)
            plates = rig.status()["plates"]
            wait_until(lambda: rig.status().get("plates", 0) > plates, 20.0, "the next plate")  # noqa: B023
        status = rig.status()
    assert status["lost_frames"] == status["gaps"] == status["camera_restarts"] == 0
    assert status["undecided"] == 0


def test_the_belt_reaches_as_far_as_the_camera_looks(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera=linescan_camera(Width=512, OffsetX=256))
    camera = load_configuration(str(rig.write())).value.camera
    with open_camera(camera) as opened:
        assert opened.info.width == 512
        assert opened.info.features["OffsetX"] == "256"
        assert opened.info.offset_x_px == 256


@pytest.mark.parametrize(
    "trigger", ["FrameStart", pytest.param("FrameActive", marks=pytest.mark.long)]
)
def test_a_camera_that_shows_parts_of_the_belt_is_refused(tmp_path: Path, trigger: str) -> None:
    features = {f"TriggerSource[{trigger}]": "Line0", f"TriggerMode[{trigger}]": "On"}
    if trigger == "FrameActive":
        features["TriggerActivation[FrameActive]"] = "LevelHigh"
    rig = Rig(tmp_path, camera=linescan_camera(**features))
    for command in (("run", "--json"), ("check",)):
        done = vqi(*command, "--config", str(rig.write()))
        assert done.returncode == 78, done.stderr
        assert "camera.features" in done.stderr
        assert "strip without gaps" in done.stderr


_ACCEPT = """
[accept]
distance_mm = 90.0
pulse_ms = 40
device = { type = "simulated", outputs = ["accept"] }
"""


def test_accept_wants_a_camera_that_sees_the_belt_stand_still(tmp_path: Path) -> None:
    free = linescan_camera(**{"TriggerMode[LineStart]": "Off", "AcquisitionLineRate": 4000.0})
    rig = Rig(tmp_path, camera=free, tables=_ACCEPT)
    for command in (("run", "--json"), ("check",)):
        done = vqi(*command, "--config", str(rig.write()))
        assert done.returncode == 78, done.stderr
        assert "accept: camera VQI-LS-1 takes scan lines also while" in done.stderr
        assert "TriggerMode[LineStart]" in done.stderr
    rig.tables = ""
    assert vqi("check", "--config", str(rig.write())).returncode == 0


def test_where_scan_lines_are_triggered_they_are_the_belts_travel(tmp_path: Path) -> None:
    """Also without the encoder's count."""
    camera, specimen = linescan_camera(ChunkModeActive=False), {"defective_share": 0.0}
    rig = Rig(tmp_path, camera=camera, specimen=specimen, tables=_ACCEPT)
    result = rig.run("--plates", "4")
    assert result.status == 0, result.stderr
    assert all(row["encoder_value"] is None for row in rig.rows("result"))
    assert any("beyond its point" in row["detail"] for row in rig.rows("accept"))
