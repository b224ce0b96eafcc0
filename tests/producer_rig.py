"""A small station whose camera is the C producer, under any vendor's name, on the rig's belt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from model_rig import trust_shipped
from station_rig import FRAME_HEIGHT, LINE_RATE_HZ, Rig

from drivers.camera import CameraInfo, open_camera
from drivers.camera.producer.build import build_producer
from drivers.camera.producer.source import belt_source
from drivers.camera.settings import SimulatedCameraSettings, SpecimenSettings
from station.commissioned import CommissioningFile
from station.config import load_configuration
from station.signing import sign

Json = dict[str, Any]
PITCH_MM = 0.1
WIDTH = 768
_PLATES = 8
_SPECIMEN = {
    "width_mm": 60.0,
    "length_mm": 40.0,
    "gap_mm": 40.0,
    "lateral_offset_mm": 3.0,
    "skew_deg": 0.8,
    "contrast_scale": 3.0,
}
SHA = "ab" * 32


def belt_settings(specimen: Json) -> SimulatedCameraSettings:
    """The rig's belt, as the simulated camera would carry it."""
    return SimulatedCameraSettings(
        type="simulated",
        seed=3,
        width=WIDTH,
        frame_height=FRAME_HEIGHT,
        line_rate_hz=LINE_RATE_HZ,
        pixel_pitch_mm=PITCH_MM,
        bank_plates=4,
        specimen=SpecimenSettings(**{**_SPECIMEN, **specimen}),
    )


def write_belt(path: Path, specimen: Json) -> Path:
    """A picture source for the producer, which outlives every process."""
    descriptor = belt_source(belt_settings(specimen), _PLATES)
    try:
        path.write_bytes(Path(f"/proc/self/fd/{descriptor}").read_bytes())
    finally:
        os.close(descriptor)
    return path


def producer_rig(
    folder: Path, vendor: str, features: Json | None = None, specimen: Json | None = None
) -> Rig:
    """The rig's belt of 60 x 40 mm plates under the producer's camera.

    Raises `DriverMissing` without gcc.
    """
    rig = Rig(folder)
    rig.camera = {
        "type": "genicam",
        "producer": str(build_producer(folder.parent / f"producer-{vendor}", vendor)),
        "serial": f"{vendor}-LS-1",
        "pixel_pitch_mm": PITCH_MM,
        "features": {
            "Width": WIDTH,
            "Height": FRAME_HEIGHT,
            "PixelFormat": "Mono8",
            "AcquisitionLineRate": LINE_RATE_HZ,
            "SimBeltSpeed": LINE_RATE_HZ * PITCH_MM,
            "SimSource": str(write_belt(folder / "belt.source", specimen or {})),
            **(features or {}),
        },
    }
    return rig


def viky_rig(folder: Path) -> tuple[Rig, Path]:
    """A station with a demonstration camera of the genicam package, a real producer without a
    compiler, the commissioning file that it names, and a model that trusted people signed."""
    rig, file = Rig(folder, recipe_lines="[lane]\nend_mm = 30.0\n"), folder / "commissioning.json"
    features = {"Width": 320, "Height": 240, "PixelFormat": "Mono8"}
    rig.camera = {"type": "genicam", "producer": "viky", "serial": "1", "features": features}
    rig.tables = trust_shipped(rig).tables + f'[commissioning]\nfile = "{file}"\n'
    return rig, file


def a_file(**changes: Any) -> CommissioningFile:
    """What commissioning could have signed."""
    values: dict[str, Any] = {
        "station_id": "test-1",
        "run": "sat",
        "camera_vendor": "A Vendor",
        "camera_model": "LS-4K",
        "camera_serial": "22334455",
        "producer_sha256": SHA,
        "features_sha256": SHA,
        "flat_field_id": None,
        "flat_field_sha256": None,
        "recipe_id": "small",
        "recipe_version": 1,
        "recipe_sha256": SHA,
        "model_id": "lightdefectnet-v3",
        "model_sha256": SHA,
        "configuration_sha256": SHA,
        "report_sha256": SHA,
        "report_html_sha256": SHA,
        "who": "A. Engineer",
        "signed_at": "2026-11-26T06:00:00Z",
        **changes,
    }
    return CommissioningFile(**values)


class SignedLine:
    """A line under the C producer, a commissioning file that was signed for its camera, and a model
    that trusted people signed."""

    def __init__(
        self,
        folder: Path,
        features: Json | None = None,
        specimen: Json | None = None,
        light: Json | None = None,
        vendor: str = "Acme",
    ) -> None:
        """Raises `DriverMissing` without gcc."""
        self.rig = producer_rig(folder, vendor, features, specimen)
        self.file = folder / "commissioning.json"
        self.people = trust_shipped(self.rig)
        self.rig.tables = self.people.tables + f'[commissioning]\nfile = "{self.file}"\n'
        self.rig.light = {"device": light or {"type": "simulated"}}
        self.config = str(self.rig.write())
        self.settings = load_configuration(self.config).value
        self.sign()

    def info(self) -> CameraInfo:
        with open_camera(self.settings.camera) as camera:
            return camera.info

    def sign(self, **changes: str) -> None:
        info = self.info()
        found = {"camera_serial": info.serial, "producer_sha256": info.producer_sha256, **changes}
        sign(self.config, self.settings, a_file(**found), self.file)
