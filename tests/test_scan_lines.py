"""Scan lines taken straight from a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drivers.camera import open_camera
from drivers.camera.settings import ReplayCameraSettings, SimulatedCameraSettings
from drivers.errors import DeviceRefused
from station.scan_lines import Pixels, take_scan_lines, with_target

SPECIMEN = {"width_mm": 30.0, "length_mm": 26.0, "gap_mm": 20.0, "lateral_offset_mm": 1.0}


def settings(**faults: Any) -> SimulatedCameraSettings:
    return SimulatedCameraSettings.model_validate(
        {
            "type": "simulated",
            "width": 384,
            "frame_height": 32,
            "is_paced": False,
            "bank_plates": 1,
            "specimen": SPECIMEN,
            "faults": faults,
        }
    )


def taken(count: int, is_gap_free: bool = False, **faults: Any) -> Pixels:
    with open_camera(settings(**faults)) as camera:
        camera.start()
        return take_scan_lines(camera, count, is_gap_free)


def test_as_many_as_asked() -> None:
    assert taken(100).shape == (100, 384)


@pytest.mark.parametrize("fault", ["truncate", "drop_frames", "wrong_width"])
def test_a_picture_for_measuring_has_no_seam(fault: str) -> None:
    whole = taken(32 * 20)
    for number in (3, 7):
        found = taken(32 * 8, is_gap_free=True, **{fault: [number]})
        first = 32 * (number + 1)
        assert np.array_equal(found, whole[first : first + len(found)])
    assert len(taken(32 * 8, **{fault: [3]})) == 32 * 8


def test_a_camera_that_delivers_mostly_broken_frames_is_refused() -> None:
    with pytest.raises(DeviceRefused, match="came in whole frames; check the link"):
        taken(320, truncate=list(range(1, 200)))


def test_another_pixel_format_is_refused() -> None:
    with pytest.raises(DeviceRefused, match="delivers Mono12; set PixelFormat"):
        taken(320, wrong_pixel_format=[2])


def test_only_the_simulator_has_targets() -> None:
    with pytest.raises(DeviceRefused, match="type replay has no SimTarget"):
        with_target(ReplayCameraSettings.model_validate({"type": "replay", "path": "x"}), "Dark")
