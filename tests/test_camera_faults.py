"""The belt of benchmarks/camera_faults.py is one that a station takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

from camera_faults import simulated_camera

from drivers.camera.settings import SimulatedCameraSettings


def test_its_belt_is_a_configuration(tmp_path: Path) -> None:
    table = tomllib.loads(simulated_camera(tmp_path, {"drop_frames": [7]}, epoch_ns=1))["camera"]
    belt = SimulatedCameraSettings.model_validate(table)
    assert belt.faults.drop_frames == (7,)
    assert belt.belt_file == tmp_path / "belt.json"
