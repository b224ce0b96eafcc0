"""Settings of each camera driver, chosen by `type`. Imports no numpy: every process reads these."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from drivers.settings import Count, Number, Settings


class LineScanSettings(Settings):
    """What every line-scan camera has."""

    width: Count = Field(4096, ge=16, le=32768, description="Pixels in a scan line.")
    frame_height: Count = Field(256, ge=1, le=8192, description="Scan lines in a frame.")
    line_rate_hz: Number = Field(3000.0, gt=0, le=1e6, description="Scan lines per second.")
    pixel_pitch_mm: Number = Field(
        0.1, gt=0, le=10, description="Size of a pixel on the plate, crossweb and downweb."
    )


_LEAST_SIDE_MM = 25.0
"""A scratch of 15 mm in any direction, and the border that stays free of defects."""


class SpecimenSettings(Settings):
    """The light guide plates that the simulated belt carries."""

    width_mm: Number = Field(360.0, gt=0, le=5_000, description="Plate, crossweb.")
    length_mm: Number = Field(150.0, gt=0, le=5_000, description="Plate, downweb.")
    gap_mm: Number = Field(150.0, gt=0, le=1e6, description="Belt between two plates.")
    lateral_offset_mm: Number = Field(
        5.0, ge=0, le=1_000, description="Plates lie up to this far off centre."
    )
    skew_deg: Number = Field(1.0, ge=0, le=45, description="Plates lie up to this far askew.")
    dots: Literal["regular", "graded", "none"] = Field(
        "regular",
        description="Dots of one pitch; rows of dots that come closer downweb; no dots to be seen.",
    )
    defective_share: Number = Field(0.5, ge=0, le=1, description="Share of plates with defects.")
    contrast_scale: Number = Field(
        1.0, gt=0, le=100, description="Scales every defect's contrast; 1: the default difficulty."
    )

    @model_validator(mode="after")
    def _has_room_for_a_defect(self) -> SpecimenSettings:
        if self.defective_share and min(self.width_mm, self.length_mm) < _LEAST_SIDE_MM:
            raise ValueError(
                f"a plate of {self.width_mm:g} x {self.length_mm:g} mm has no room for defects; "
                f"at least {_LEAST_SIDE_MM:g} mm a side, or defective_share = 0"
            )
        return self


class FaultSettings(Settings):
    """Faults of the simulated camera. Each happens at the frames named by its list of frame numbers
    (counted from 0 since the belt's start, so that a restart does not repeat them)."""

    drop_frames: tuple[int, ...] = Field((), description="Frames never delivered (id gap).")
    drop_scan_lines: tuple[int, ...] = Field(
        (), description="Frames that lack scan lines in their middle and do not say so."
    )
    truncate: tuple[int, ...] = Field((), description="Frames cut short, marked incomplete.")
    duplicate: tuple[int, ...] = Field((), description="Frames delivered twice.")
    stall: tuple[int, ...] = Field((), description="Frames before which the camera halts.")
    stall_s: Number = Field(
        1.5, gt=0, le=3600, description="How long a stall takes; its frames are lost."
    )
    disconnect: tuple[int, ...] = Field((), description="Frames at which the camera is gone.")
    black: tuple[int, ...] = Field((), description="Frames of zeros.")
    saturated: tuple[int, ...] = Field((), description="Frames of 255.")
    stuck: tuple[int, ...] = Field((), description="Frames that repeat the pixels before them.")
    wrong_width: tuple[int, ...] = Field((), description="Frames half as wide.")
    wrong_pixel_format: tuple[int, ...] = Field((), description="Frames in Mono12.")


class WearSettings(Settings):
    """What ages or gets dirty on the simulated belt, in a run of frames."""

    from_frame: Count = Field(0, ge=0, description="First frame, counted as for the faults.")
    until_frame: Count | None = Field(None, ge=0, description="First frame that is well again.")
    dirt_mm: tuple[Number, Number] | None = Field(
        None, description="Dirt on the lens: from and to, crossweb from the scan line's left end."
    )
    dirt_contrast: Number = Field(
        -0.05, ge=-1, le=1, description="Relative change of brightness below the dirt."
    )
    light_level: Number = Field(1.0, gt=0, le=10, description="Brightness, relative.")
    light_fade_frames: Count = Field(
        0, ge=0, description="Frames in which the light gets there, evenly; 0: at once."
    )
    dot_contrast: Number = Field(
        1.0, gt=0, le=2, description="Contrast of the plates' dots, relative: another material."
    )
    stretch: Number = Field(
        1.0, ge=0.8, le=1.2, description="Length of plates in scan lines: a belt that slips."
    )
    temperature_c: Number | None = Field(None, description="Of the camera; None: it has none.")


class LabelSettings(Settings):
    """Labels on the simulated belt's plates, and the scanner that reads them as they pass."""

    pipe: Path = Field(description="Named pipe that the scanner writes lines into.")
    distance_mm: Number = Field(gt=0, le=100_000, description="From the scanner to the camera.")
    place_mm: Number = Field(
        20.0, ge=0, le=5_000, description="The label's place, from the leading edge."
    )
    prefix: str = Field(
        "SIM", max_length=32, description="Of each serial; the plate's number ends it."
    )
    unread: tuple[int, ...] = Field((), description="Plates whose label cannot be read.")
    doubled: tuple[int, ...] = Field((), description="Plates with a second label of another part.")


class BeltSettings(Settings):
    """Which plates a simulated belt carries."""

    seed: Count = Field(1, ge=0, description="Same seed, same belt.")
    bank_plates: Count = Field(16, ge=1, le=4096, description="Different plates rendered ahead.")
    specimen: SpecimenSettings = SpecimenSettings()


class SimulatedCameraSettings(LineScanSettings, BeltSettings):
    """A belt with rendered plates under a paced line-scan camera."""

    type: Literal["simulated"]
    is_paced: bool = Field(True, description="False delivers frames as fast as they are taken.")
    belt_file: Path | None = Field(
        None,
        description="JSON with epoch_monotonic_ns: a belt that runs since then, watched or not. "
        "Without it the belt starts with the camera.",
    )
    faults: FaultSettings = FaultSettings()
    wear: WearSettings = WearSettings()
    labels: LabelSettings | None = Field(None, description="Left out: plates have no labels.")

    @model_validator(mode="after")
    def _plate_fits_in_the_scan_line(self) -> SimulatedCameraSettings:
        room_mm = self.width * self.pixel_pitch_mm
        wanted_mm = self.specimen.width_mm + 2 * self.specimen.lateral_offset_mm
        if wanted_mm > room_mm:
            raise ValueError(
                f"specimen: a plate {self.specimen.width_mm:g} mm wide, up to "
                f"{self.specimen.lateral_offset_mm:g} mm off centre, does not fit in a scan line "
                f"of {room_mm:g} mm"
            )
        return self

    @model_validator(mode="after")
    def _wear_fits_on_the_belt(self) -> SimulatedCameraSettings:
        room_mm, (start_mm, end_mm) = self.width * self.pixel_pitch_mm, self.wear.dirt_mm or (0, 1)
        if not 0 <= start_mm < end_mm <= max(room_mm, 1):
            raise ValueError(
                f"wear.dirt_mm {start_mm:g} to {end_mm:g} does not lie in a scan line of "
                f"{room_mm:g} mm"
            )
        if (self.wear.stretch - 1) * self.specimen.length_mm >= self.specimen.gap_mm:
            raise ValueError(f"wear.stretch {self.wear.stretch:g} leaves no gap between plates")
        return self


class ReplayCameraSettings(Settings):
    """Images or a recorded strip played as a line-scan camera would deliver them."""

    type: Literal["replay"]
    path: Path = Field(description="An image, a folder of images (by name), or a recorded strip.")
    frame_height: Count = Field(256, ge=1, le=8192, description="Scan lines in a frame.")
    line_rate_hz: Number | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Paced at this rate; None plays as fast as frames are taken.",
    )
    timing: Literal["recorded"] | None = Field(
        None, description="recorded: a strip's frames come when they came to the station."
    )
    pixel_pitch_mm: Number = Field(0.1, gt=0, le=10, description="Size of a pixel on the plate.")
    is_loop: bool = Field(False, description="Start again at the end.")
    gap_scan_lines: Count = Field(
        200, ge=0, description="Black scan lines before, between and after images of a folder."
    )

    @model_validator(mode="after")
    def _has_one_pace(self) -> ReplayCameraSettings:
        if self.timing is not None and self.line_rate_hz is not None:
            raise ValueError("timing and line_rate_hz exclude each other: leave one of them out")
        return self


class GenicamCameraSettings(Settings):
    """A camera behind a GenTL producer."""

    type: Literal["genicam"]
    producer: Path = Field(
        description="The vendor's .cti file; `linescan` is built here with gcc, from the line-scan "
        "simulator that comes with vqi; `viky` is the area-scan one in genicam's wheel."
    )
    serial: str = Field(min_length=1, description="DeviceSerialNumber; another serial is refused.")
    pixel_pitch_mm: Number = Field(0.1, gt=0, le=10, description="Size of a pixel on the plate.")
    buffers: Count = Field(64, ge=4, le=1024, description="Buffers announced to the producer.")
    features: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="SFNC features; one that a selector chooses as Name[Selected].",
    )
    belt: BeltSettings | None = Field(
        None, description="Plates that the line-scan simulator sees; no other camera can be told."
    )

    @model_validator(mode="after")
    def _only_the_simulator_sees_a_rendered_belt(self) -> GenicamCameraSettings:
        if self.belt is not None and "SimSource" in self.features:
            raise ValueError("belt and the feature SimSource both say what the simulator sees")
        return self


CameraSettings = Annotated[
    SimulatedCameraSettings | ReplayCameraSettings | GenicamCameraSettings,
    Field(discriminator="type"),
]
