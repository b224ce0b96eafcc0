"""Where on a plate something lies: from the pixels of its picture to mm, and to the same place of
another plate that lay otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from station.config import Configuration, Loaded
from station.record import ImageBody

_PITCH_ERROR = 0.02
"""Sizes in mm are recorded to 0.01 mm: from them the pixel is known so well, relatively."""


class PitchSource(StrEnum):
    """How it is known how large a pixel was on this plate."""

    CONFIGURATION = "configuration"
    """The plate was inspected under the configuration that holds now."""
    RECORD = "record"
    """From the sizes that the record gives in px and in mm."""
    ASSUMED = "assumed"
    """The configuration has changed since and the record does not say: as it is configured now."""


def pitch_of(
    result: Mapping[str, Any], configuration: Loaded[Configuration]
) -> tuple[float, PitchSource]:
    """Size of a pixel on the plate in mm, crossweb and downweb alike."""
    configured = configuration.value.camera.pixel_pitch_mm
    if result["configuration_sha256"] == configuration.sha256:
        return configured, PitchSource.CONFIGURATION
    defects: Sequence[Mapping[str, Any]] = result.get("defects") or ()
    sized = [one for one in defects if one.get("w_mm") and one.get("h_mm")]
    if not sized:
        return configured, PitchSource.ASSUMED
    mm = sum(one["w_mm"] + one["h_mm"] for one in sized)
    said = mm / sum(one["w_px"] + one["h_px"] for one in sized)
    is_as_now = abs(said / configured - 1) < _PITCH_ERROR
    return (configured if is_as_now else said), PitchSource.RECORD


@dataclass(frozen=True, slots=True)
class Pose:
    """How a plate lay in its picture; px from the scan line's left end and the leading edge."""

    pitch_mm: float
    left_px: float
    width_px: float
    length_px: float
    skew_deg: float

    @classmethod
    def of(cls, result: Mapping[str, Any], pitch_mm: float) -> Pose | None:
        """None of a record that does not say where the plate lay."""
        if result.get("left_px") is None or not result.get("length_px"):
            return None
        return cls(
            pitch_mm,
            result["left_px"],
            result.get("width_px") or 0,
            result["length_px"],
            result.get("skew_deg") or 0.0,
        )

    @property
    def _corner(self) -> tuple[float, float]:
        """The plate's left leading corner. Askew to the right (positive), the right corner comes
        first; to the left, the left edge goes on to the left behind its corner, and `left_px` is
        the least of its first quarter."""
        angle = math.radians(self.skew_deg)
        if angle >= 0:
            return self.left_px, self.width_px * math.sin(angle)
        return self.left_px + self.length_px / 4 * math.tan(-angle), 0.0

    def on_plate(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Crossweb and downweb along the plate's own edges from its left leading corner, in mm."""
        (corner_x, corner_y), angle = self._corner, math.radians(self.skew_deg)
        across, along = x_px - corner_x, y_px - corner_y
        return (
            (across * math.cos(angle) - along * math.sin(angle)) * self.pitch_mm,
            (across * math.sin(angle) + along * math.cos(angle)) * self.pitch_mm,
        )

    def in_picture(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """The pixel of a place that `on_plate` gave, maybe of another plate."""
        (corner_x, corner_y), angle = self._corner, math.radians(self.skew_deg)
        across, along = x_mm / self.pitch_mm, y_mm / self.pitch_mm
        return (
            corner_x + across * math.cos(angle) + along * math.sin(angle),
            corner_y - across * math.sin(angle) + along * math.cos(angle),
        )


def pixels_per_pixel(result: Mapping[str, Any], image: ImageBody) -> int | None:
    """How many pixels of the plate lie along one of a kept picture: 1 of evidence, the side of a
    cell of a preview; None where the record does not say."""
    if image.role == "evidence":
        return 1
    length_px, rows = result.get("length_px"), image.height_px
    if not length_px or rows < 1:
        return None
    cell = round(length_px / rows)
    return cell if cell and length_px // cell == rows else None
