"""The camera contract: a line-scan camera delivers frames of scan lines (SFNC words).

A scan line is one row of pixels. *Downweb* is axis 0, along the travel; *crossweb* is axis 1.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:  # the lamp process imports settings beside this and must stay free of numpy
    import numpy as np
    from numpy.typing import NDArray

    from drivers.camera.settings import CameraSettings

MONO8 = "Mono8"


@dataclass(frozen=True, slots=True)
class TrueDefect:
    """A defect that the source knows to be there (simulation only). Lengths in mm on the plate."""

    kind: str
    """`scratch`, `bright_spot`, `dark_spot` or `impurity`."""
    x_mm: float
    """Crossweb centre from the plate's left edge."""
    y_mm: float
    """Downweb centre from the plate's leading edge."""
    width_mm: float
    height_mm: float
    contrast: float
    """Peak change of brightness relative to the local brightness, signed."""


@dataclass(frozen=True, slots=True)
class PlateTruth:
    """What the source knows of a plate whose leading edge lies in a frame (simulation only)."""

    ordinal: int
    """Which plate of the belt this is, counted from 1 like `Frame.plate_counter`."""
    row: int
    """Scan line of the frame in which the first plate pixel appears."""
    defects: tuple[TrueDefect, ...] = ()

    @property
    def is_defective(self) -> bool:
        return bool(self.defects)


@dataclass(frozen=True, slots=True)
class Break:
    """What a station knew to have happened between two frames.

    `started` again · `lost`: what passed is unknown · `damaged`: so is the recording ·
    `belt_stopped` · `ended`: it was stopped · `finished`: its source came to its own end.
    """

    kind: Literal["started", "lost", "damaged", "belt_stopped", "ended", "finished"]
    text: str
    frames: int = 0
    """Frames known to be missing, beyond those that the frame ids tell of."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One delivered buffer.

    `pixels` is uint8, shape (height, width), C-contiguous, a view of the buffer that was handed to
    `Camera.grab`: it is valid until that buffer is given to the camera again. Where `pixel_format`
    is not Mono8 the shape is (height, bytes per scan line) and the bytes are as delivered.
    """

    pixels: NDArray[np.uint8]
    width: int
    """Pixels in a scan line as the camera says it."""
    frame_id: int
    """Counts delivered and lost frames; a step other than 1 is a loss (BUFFER_INFO_FRAMEID)."""
    timestamp_ns: int
    """CLOCK_MONOTONIC of this host when the last scan line was in memory."""
    pixel_format: str = MONO8
    is_incomplete: bool = False
    """True if the camera or its link says that pixels are missing."""
    encoder_value: int | None = None
    """Scan lines that the encoder has counted before the first one of this frame; None where no
    encoder triggers the scan lines."""
    plate_counter: int | None = None
    """Plates whose leading edge passed the trigger input before the first scan line, if known."""
    truth: tuple[PlateTruth, ...] = ()
    breaks: tuple[Break, ...] = ()
    """What came before this frame; only a recorded strip knows it."""

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """Who the camera says it is, asked after opening."""

    driver: str
    """`simulated`, `replay` or `genicam`."""
    vendor: str
    model: str
    serial: str
    width: int
    """Pixels in a scan line."""
    frame_height: int
    """Scan lines in a frame, at most."""
    pixel_format: str
    offset_x_px: int = 0
    """OffsetX: pixels of the sensor before the first of a scan line."""
    line_rate_hz: float | None = None
    """None where the camera has no AcquisitionLineRate."""
    exposure_us: float | None = None
    """None where the camera has no ExposureTime."""
    is_frame_triggered: bool = False
    """True if a trigger begins or ends frames: belt passes unseen between them."""
    is_scan_line_triggered: bool = False
    """True if a trigger, the belt's encoder as a rule, makes each scan line: none comes while the
    belt stands still."""
    is_patient: bool = False
    """True if the source waits for its reader: nothing passes by while nobody takes frames."""
    producer_path: str | None = None
    producer_sha256: str | None = None
    """Of the GenTL producer's file, for provenance."""
    features: dict[str, str] = field(default_factory=dict)
    """Features applied, as read back from the camera."""
    rounded: dict[str, str] = field(default_factory=dict)
    """Of those that the camera rounded: what was asked for."""

    @property
    def counts_belt_travel(self) -> bool:
        """Whether no scan line comes while the belt stands still. A simulated or recorded belt is
        nothing but its scan lines."""
        return self.is_scan_line_triggered or self.driver != "genicam"

    @property
    def features_sha256(self) -> str:
        """Of the features as the camera read them back, by name: equal sets, equal hash."""
        text = json.dumps(self.features, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def max_frame_bytes(self) -> int:
        """Enough for 2 bytes a pixel, so that a wrong pixel format can be seen and refused."""
        return 2 * self.width * self.frame_height


class EndOfSource(Exception):
    """A replay that plays once has delivered its last frame; `breaks` came after it."""

    def __init__(self, *breaks: Break) -> None:
        super().__init__("the source has ended")
        self.breaks = breaks


class Camera(ABC):
    """A line-scan camera: opened by its constructor, used as a context manager by one thread.

    The constructor raises `DriverMissing`, `DeviceNotFound`, `DeviceBusy` or `DeviceRefused`.
    """

    info: CameraInfo

    @abstractmethod
    def start(self) -> None:
        """Begin acquisition. Frame ids start again. Raises `DeviceLost`."""

    @abstractmethod
    def grab(self, into: NDArray[np.uint8], timeout_s: float) -> Frame | None:
        """Copy the next frame into `into` and give the camera's own buffer back at once.

        `into` is flat, uint8, at least `info.max_frame_bytes` long. Returns None if no frame came
        within `timeout_s`. An incomplete frame is returned, marked, never hidden. Raises
        `DeviceLost` within 1 s of a disconnect, `EndOfSource` at the end of a finite source.
        """

    def temperature_c(self) -> float | None:
        """The camera's temperature in degrees Celsius; None where it does not tell."""
        return None

    @abstractmethod
    def stop(self) -> None:
        """End acquisition. Safe to call twice and after a loss."""

    @abstractmethod
    def close(self) -> None:
        """Release the device. Safe to call twice and after a loss."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.close()


_DRIVERS = {
    "simulated": "drivers.camera.simulated:SimulatedCamera",
    "replay": "drivers.camera.replay:ReplayCamera",
    "genicam": "drivers.camera.genicam:GenicamCamera",
}


def open_camera(settings: CameraSettings) -> Camera:
    """Open the camera that `settings.type` names; that one or an error, never another."""
    module_name, class_name = _DRIVERS[settings.type].split(":")
    driver: type[Camera] = getattr(import_module(module_name), class_name)
    return driver(settings)  # type: ignore[call-arg]
