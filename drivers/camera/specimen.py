"""A light guide plate with known defects, in mm, and its picture under a line-scan camera.

The plate is a rectangle with a lattice of bright dots whose size grows away from the light source.
A lattice is the sum of two plane waves (square) or three (staggered, hexagonal), cut at a level: a
sum of products of one factor a row and one a column, so that the whole plate is one small matrix
product. Levels are 8-bit: about 90 between dots, 170 on dots, 4 to 20 on the belt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import TrueDefect
from drivers.camera.marks import DEFECT_INSET_MM, Mark, random_marks
from drivers.camera.settings import SpecimenSettings

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

BELT_LEVEL = 12.0
BELT_RANGE = (4, 20)
PLATE_RANGE = (48, 250)
"""Levels that a plate's own pixels never leave, however strong noise and defects are."""
NOMINAL_PITCH_MM = 1.2
"""Of the demonstration product's dots."""
GRADED_SHARE = 0.75
"""Pitch at the trailing edge of a plate with graded dots, of the one at its leading edge."""
_EDGE_BAND_MM = 3.0
"""Border in which no defect may darken the plate: the outline is always found."""
assert DEFECT_INSET_MM > _EDGE_BAND_MM


@dataclass(frozen=True, slots=True)
class Lattice:
    """Where the dots lie and how large they are."""

    pitch_mm: float
    diameter_mm: float
    """Of the smallest dots, at the edge where the light enters."""
    growth: float
    """Relative growth of the diameter from there to the far edge."""
    is_staggered: bool
    rotation_deg: float
    far_pitch_mm: float | None = None
    """Pitch downweb at the trailing edge; grows or shrinks evenly to it. None: as `pitch_mm`."""

    def rows_before(self, y_mm: Doubles, length_mm: float) -> Doubles:
        """Rows of dots between the leading edge and `y_mm`, for a square lattice."""
        change = ((self.far_pitch_mm or self.pitch_mm) - self.pitch_mm) / length_mm
        if change == 0:
            return y_mm / self.pitch_mm
        return np.log1p(change * y_mm / self.pitch_mm) / change


@dataclass(frozen=True, slots=True)
class Lighting:
    """Levels and unevenness of the light, and what the optics and the sensor make of it."""

    base_level: float
    dot_level: float
    gradient_x: float
    """Relative change of brightness from the centre to the right edge."""
    gradient_y: float
    vignette: float
    """Relative loss of brightness in the corners."""
    noise_level: float
    """Standard deviation of a pixel, in levels."""
    blur_mm: float
    """Width of an edge, 1 sigma."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """One plate: outline, dots, light and marks. Lengths in mm from its left leading corner."""

    width_mm: float
    length_mm: float
    lattice: Lattice | None
    """None: a plate without dots, or with dots finer than a pixel."""
    lighting: Lighting
    marks: tuple[Mark, ...] = ()

    @property
    def defects(self) -> tuple[TrueDefect, ...]:
        return tuple(mark.truth for mark in self.marks)

    def with_contrast(self, scale: float) -> Specimen:
        """The same plate with dots of another contrast to what is between them, about as bright."""
        if self.lattice is None or scale == 1.0:
            return self
        light, lattice = self.lighting, self.lattice
        middle_mm = lattice.diameter_mm * (1 + lattice.growth / 2)
        share = math.pi / 4 * (middle_mm / lattice.pitch_mm) ** 2
        less = (1 - scale) * (light.dot_level - light.base_level)
        changed = replace(
            light,
            base_level=light.base_level + less * share,
            dot_level=light.dot_level - less * (1 - share),
        )
        return replace(self, lighting=changed)

    @classmethod
    def random(
        cls,
        settings: SpecimenSettings,
        rng: np.random.Generator,
        is_defective: bool,
        variety: float = 0.0,
    ) -> Specimen:
        """A plate of `settings`' size with 1-3 random defects if `is_defective`.

        `variety` 0 is one product (one lattice, small changes of brightness), 1 is any product.
        Contrast at `contrast_scale` 1: see `marks`.
        """
        marks: tuple[Mark, ...] = ()
        if is_defective:
            size_mm = (settings.width_mm, settings.length_mm)
            marks = random_marks(size_mm, settings.contrast_scale, rng)
        lattice: Lattice | None = _random_lattice(rng, variety)
        lighting = _random_lighting(rng, variety)
        if settings.dots == "none":
            lattice = None
        elif settings.dots == "graded" and lattice is not None:
            far_mm = GRADED_SHARE * lattice.pitch_mm
            lattice = replace(lattice, is_staggered=False, rotation_deg=0.0, far_pitch_mm=far_mm)
        return cls(settings.width_mm, settings.length_mm, lattice, lighting, marks)


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a plate lies in its picture: rotated by `skew_deg` about its centre."""

    half_width_mm: float
    half_length_mm: float
    centre_x_px: float
    centre_y_px: float
    skew_deg: float
    pixel_pitch_mm: float

    def to_px(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """Picture coordinates (x, y) in px of a point of the plate; pixel centres are integers."""
        turn = math.radians(self.skew_deg)
        x, y = x_mm - self.half_width_mm, y_mm - self.half_length_mm
        across = (x * math.cos(turn) - y * math.sin(turn)) / self.pixel_pitch_mm
        along = (x * math.sin(turn) + y * math.cos(turn)) / self.pixel_pitch_mm
        return self.centre_x_px + across, self.centre_y_px + along

    def corners_px(self) -> Floats:
        """Shape (4, 2): x, y of the corners, clockwise from the left leading one."""
        width, length = 2 * self.half_width_mm, 2 * self.half_length_mm
        corners = [(0.0, 0.0), (width, 0.0), (width, length), (0.0, length)]
        return np.array([self.to_px(*corner) for corner in corners], np.float32)


@dataclass(frozen=True, slots=True)
class RenderedPlate:
    """A plate's picture: uint8, from its first to its last scan line, the whole scan line wide."""

    pixels: NDArray[np.uint8]
    defects: tuple[TrueDefect, ...]
    pose: Pose

    def to_px(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """Picture coordinates (x, y) in px of a point of the plate in mm."""
        return self.pose.to_px(x_mm, y_mm)


def plate_rows(specimen_mm: tuple[float, float], skew_deg: float, pixel_pitch_mm: float) -> int:
    """Scan lines that a plate of (width, length) takes at most when it lies so far askew."""
    turn = math.radians(abs(skew_deg))
    along_mm = specimen_mm[0] * math.sin(turn) + specimen_mm[1] * math.cos(turn)
    return math.ceil(along_mm / pixel_pitch_mm) + 1


def render(
    specimen: Specimen,
    pixel_pitch_mm: float,
    width_px: int,
    centre_offset_mm: float,
    skew_deg: float,
    rng: np.random.Generator,
) -> RenderedPlate:
    """Picture of a plate whose centre lies `centre_offset_mm` right of the scan line's centre.

    The same `rng` state gives the same picture. A plate wider than the scan line is cut by it.
    """
    size_mm = (specimen.width_mm, specimen.length_mm)
    rows = plate_rows(size_mm, skew_deg, pixel_pitch_mm)
    centre_x = (width_px - 1) / 2 + centre_offset_mm / pixel_pitch_mm
    pose = Pose(size_mm[0] / 2, size_mm[1] / 2, centre_x, (rows - 1) / 2, skew_deg, pixel_pitch_mm)
    coverage = _coverage(pose, (rows, width_px))
    touched = np.flatnonzero(coverage.max(axis=1) >= 128)
    first, last = (int(touched[0]), int(touched[-1])) if touched.size else (0, rows - 1)
    pixels = _develop(specimen, pose, coverage, rng)[first : last + 1]
    shifted = Pose(
        pose.half_width_mm, pose.half_length_mm, centre_x, pose.centre_y_px - first, skew_deg,
        pixel_pitch_mm,
    )  # fmt: skip
    return RenderedPlate(np.ascontiguousarray(pixels), specimen.defects, shifted)


def render_belt(rows: int, width_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scan lines of empty belt, uint8, shape (rows, width_px)."""
    noise = rng.standard_normal((rows, width_px), dtype=np.float32)
    belt: NDArray[np.uint8] = np.clip(noise * 2.0 + BELT_LEVEL, *BELT_RANGE).astype(np.uint8)
    return belt


def _develop(
    specimen: Specimen, pose: Pose, coverage: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Light on the plate, marks, noise, then the belt where the plate is not."""
    rows, width_px = coverage.shape
    light = specimen.lighting
    level = _dots(specimen, pose, (rows, width_px))
    level *= np.float32(light.dot_level - light.base_level)
    level += np.float32(light.base_level)
    level *= _brightness(light, (rows, width_px))
    for mark in specimen.marks:
        mark.draw(level, pose.to_px, pose.pixel_pitch_mm, light.blur_mm)
    noise = rng.standard_normal((rows, width_px), dtype=np.float32)
    level += noise * np.float32(light.noise_level)
    np.clip(level, *PLATE_RANGE, out=level)
    belt = np.clip(noise * np.float32(2.0) + np.float32(BELT_LEVEL), *BELT_RANGE)
    share = coverage * np.float32(1 / 255)
    level -= belt
    level *= share
    level += belt
    # Rounds to the nearest level.
    return np.asarray(cv2.convertScaleAbs(level), np.uint8)


def _coverage(pose: Pose, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """255 on the plate, 0 on the belt, the covered share of a pixel on the outline."""
    mask = np.zeros(shape, np.uint8)
    bits = 8
    corners = np.round(pose.corners_px() * (1 << bits)).astype(np.int32)
    cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA, bits)
    return mask


def _dots(specimen: Specimen, pose: Pose, shape: tuple[int, int]) -> Floats:
    """1 on a dot, 0 between dots, softly from one to the other; shape as given."""
    lattice = specimen.lattice
    if lattice is None:
        return np.zeros(shape, np.float32)
    if lattice.far_pitch_mm is not None:
        return _graded_dots(specimen, lattice, pose, shape)
    return _even_dots(lattice, specimen.lighting.blur_mm, pose, shape)


def _even_dots(lattice: Lattice, blur_mm: float, pose: Pose, shape: tuple[int, int]) -> Floats:
    """As `_dots`; one pitch everywhere is a sum of products."""
    pitch_px = lattice.pitch_mm / pose.pixel_pitch_mm
    turn = math.radians(lattice.rotation_deg + pose.skew_deg)
    waves = 3 if lattice.is_staggered else 2
    angles = [turn + math.pi / (3 if lattice.is_staggered else 2) * k for k in range(waves)]
    # A hexagonal lattice of this pitch has its waves closer together by sin 60 degrees.
    period_px = pitch_px * (math.sin(math.pi / 3) if lattice.is_staggered else 1.0)
    rows = np.arange(shape[0], dtype=np.float64) - pose.centre_y_px
    columns = np.arange(shape[1], dtype=np.float64) - pose.centre_x_px
    by_row, by_column = [], []
    for angle in angles:
        along = 2 * math.pi / period_px * math.sin(angle) * rows
        across = 2 * math.pi / period_px * math.cos(angle) * columns
        by_row += [np.cos(along), -np.sin(along)]
        by_column += [np.cos(across), np.sin(across)]
    gain, cut = _cut(lattice, blur_mm, waves, period_px, pose)
    far = np.clip(rows / shape[0] + 0.5, 0, 1)
    by_row.append(-(cut[0] + (cut[1] - cut[0]) * far))
    by_column.append(np.ones_like(columns))
    left = np.stack(by_row, axis=1) * gain
    left[:, -1] += 0.5
    field: Floats = left.astype(np.float32) @ np.stack(by_column).astype(np.float32)
    return np.clip(field, 0, 1, out=field)


def _graded_dots(
    specimen: Specimen, lattice: Lattice, pose: Pose, shape: tuple[int, int]
) -> Floats:
    """As `_dots`; rows that come closer downweb are no sum of products on a plate askew."""
    turn = math.radians(pose.skew_deg)
    along = (np.arange(shape[0])[:, None] - pose.centre_y_px) * pose.pixel_pitch_mm
    across = (np.arange(shape[1])[None, :] - pose.centre_x_px) * pose.pixel_pitch_mm
    x_mm = across * math.cos(turn) + along * math.sin(turn)
    y_mm = along * math.cos(turn) - across * math.sin(turn) + pose.half_length_mm
    rows = lattice.rows_before(np.clip(y_mm, 0, specimen.length_mm), specimen.length_mm)
    period_px = lattice.pitch_mm / pose.pixel_pitch_mm
    gain, cut = _cut(lattice, specimen.lighting.blur_mm, 2, period_px, pose)
    level = cut[0] + (cut[1] - cut[0]) * np.clip(y_mm / specimen.length_mm, 0, 1)
    field = np.cos(2 * math.pi * x_mm / lattice.pitch_mm) + np.cos(2 * math.pi * rows) - level
    return np.clip(field * gain + 0.5, 0, 1).astype(np.float32)


def _cut(
    lattice: Lattice, blur_mm: float, waves: int, period_px: float, pose: Pose
) -> tuple[float, tuple[float, float]]:
    """Steepness of a dot's rim, and the level of the wave sum at the rim of the smallest and of
    the largest dot."""
    largest_mm = lattice.diameter_mm * (1 + lattice.growth)
    small, large = (
        math.pi * diameter_mm / pose.pixel_pitch_mm / period_px
        for diameter_mm in (lattice.diameter_mm, largest_mm)
    )

    def level(phase: float) -> float:
        return 1 + math.cos(phase) if waves == 2 else 1 + 2 * math.cos(phase * math.sqrt(3) / 2)

    middle = (small + large) / 2
    slope = abs(level(middle + 1e-3) - level(middle - 1e-3)) / 2e-3 * 2 * math.pi / period_px
    rim_px = max(1.0, 2.5 * blur_mm / pose.pixel_pitch_mm)
    return 1 / (slope * rim_px), (level(small), level(large))


def _brightness(light: Lighting, shape: tuple[int, int]) -> Floats:
    """Relative brightness of the uneven light, about 1; shape as given."""
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)
    column = 1 + light.gradient_x * x - light.vignette / 2 * x * x
    row = light.gradient_y * y - light.vignette / 2 * y * y
    return np.add.outer(row.astype(np.float32), column.astype(np.float32))


def _random_lattice(rng: np.random.Generator, variety: float) -> Lattice:
    """The nominal product, or any product in realistic ranges as `variety` grows."""

    def draw(nominal: float, low: float, high: float) -> float:
        return nominal + variety * (float(rng.uniform(low, high)) - nominal)

    pitch_mm = draw(NOMINAL_PITCH_MM, 0.8, 2.0)
    return Lattice(
        pitch_mm=pitch_mm,
        diameter_mm=pitch_mm * draw(0.4, 0.3, 0.5),
        growth=draw(0.3, 0.0, 0.5),
        is_staggered=bool(rng.random() < 0.5 * variety),
        rotation_deg=draw(0.0, -20.0, 20.0),
    )


def _random_lighting(rng: np.random.Generator, variety: float) -> Lighting:
    """Light changes a little from plate to plate of one product, and widely between products."""
    span = 0.2 + 0.8 * variety

    def draw(nominal: float, low: float, high: float) -> float:
        return nominal + span * (float(rng.uniform(low, high)) - nominal)

    return Lighting(
        base_level=draw(92.0, 84.0, 102.0),
        dot_level=draw(170.0, 155.0, 185.0),
        gradient_x=draw(0.0, -0.08, 0.08),
        gradient_y=draw(0.0, -0.08, 0.08),
        vignette=draw(0.06, 0.0, 0.12),
        noise_level=draw(2.2, 1.2, 3.2),
        blur_mm=draw(0.07, 0.04, 0.12),
    )
