"""A small station whose camera is the C producer, under any vendor's name, on the rig's belt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from station_rig import FRAME_HEIGHT, LINE_RATE_HZ, Rig

from drivers.camera.producer.build import build_producer
from drivers.camera.producer.source import belt_source
from drivers.camera.settings import SimulatedCameraSettings, SpecimenSettings

Json = dict[str, Any]
PITCH_MM = 0.1


def producer_rig(
    folder: Path, vendor: str, features: Json | None = None, specimen: Json | None = None
) -> Rig:
    """The rig's belt of 60 x 40 mm plates under the producer's camera.

    Raises `DriverMissing` without gcc.
    """
    rig = Rig(folder, fail_hold_s=0.05)
    rig.camera = {
        "type": "genicam",
        "producer": str(build_producer(folder.parent / f"producer-{vendor}", vendor)),
        "serial": f"{vendor}-LS-1",
        "pixel_pitch_mm": PITCH_MM,
        "features": {
            "Width": 768,
            "Height": FRAME_HEIGHT,
            "PixelFormat": "Mono8",
            "AcquisitionLineRate": LINE_RATE_HZ,
            "SimBeltSpeed": LINE_RATE_HZ * PITCH_MM,
            "SimSource": str(_write_belt(folder / "belt.source", specimen or {})),
            **(features or {}),
        },
    }
    return rig


def _write_belt(path: Path, specimen: Json) -> Path:
    settings = SimulatedCameraSettings(
        type="simulated",
        seed=3,
        width=768,
        frame_height=FRAME_HEIGHT,
        line_rate_hz=LINE_RATE_HZ,
        pixel_pitch_mm=PITCH_MM,
        bank_plates=4,
        specimen=SpecimenSettings(
            **{
                "width_mm": 60.0,
                "length_mm": 40.0,
                "gap_mm": 40.0,
                "lateral_offset_mm": 3.0,
                "skew_deg": 0.8,
                "contrast_scale": 3.0,
                **specimen,
            }
        ),
    )
    descriptor = belt_source(settings, plates=8)
    try:
        path.write_bytes(Path(f"/proc/self/fd/{descriptor}").read_bytes())
    finally:
        os.close(descriptor)
    return path
