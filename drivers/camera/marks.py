"""Defects of a plate as shapes in mm, and how they change its picture.

Contrast ranges were set so that features made by hand (29 statistics of grey levels, local contrast
and gradients of a 224 px tile, logistic regression) tell defective tiles at `contrast_scale` 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import TrueDefect

DEFECT_INSET_MM = 4.0
"""Every defect lies whole at least this far inside the plate's edge."""
_SUBPIXELS = 4

Points = tuple[tuple[float, float], ...]
ToPx = Callable[[float, float], tuple[float, float]]
MakeMark = Callable[[tuple[float, float], float, np.random.Generator], "Mark"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A defect's shape: a filled outline, or a stroke along a path."""

    kind: str
    path_mm: Points
    """On the plate, from its left leading corner."""
    thickness_mm: float
    """Of the stroke; 0 for a filled outline."""
    contrast: float
    """Peak change relative to the local brightness, signed."""

    @property
    def truth(self) -> TrueDefect:
        points = np.array(self.path_mm)
        low, high = points.min(axis=0), points.max(axis=0)
        x_mm, y_mm = ((low + high) / 2).tolist()
        width_mm, height_mm = (high - low + self.thickness_mm).tolist()
        return TrueDefect(self.kind, x_mm, y_mm, width_mm, height_mm, self.contrast)

    def draw(
        self, level: NDArray[np.float32], to_px: ToPx, pixel_pitch_mm: float, blur_mm: float
    ) -> None:
        """Change the picture `level` (rows, columns) where the mark lies in it."""
        points = np.array([to_px(x, y) for x, y in self.path_mm])
        reach = math.ceil((self.thickness_mm / 2 + 4 * blur_mm) / pixel_pitch_mm) + 2
        left, top = np.floor(points.min(axis=0)).astype(int) - reach
        right, bottom = np.ceil(points.max(axis=0)).astype(int) + reach + 1
        shape = _shape(self, points - (left, top), (bottom - top, right - left), pixel_pitch_mm)
        blurred = cv2.GaussianBlur(shape, (0, 0), max(blur_mm / pixel_pitch_mm, 0.3))
        inside = level[max(top, 0) : bottom, max(left, 0) : right]
        crop = blurred[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
        inside *= 1 + np.float32(self.contrast / max(float(blurred.max()), 1e-6)) * crop


def random_marks(
    size_mm: tuple[float, float], contrast_scale: float, rng: np.random.Generator
) -> tuple[Mark, ...]:
    """1-3 defects of random kinds, all inside a plate of (width, length)."""
    return tuple(
        _KINDS[int(rng.integers(len(_KINDS)))](size_mm, contrast_scale, rng)
        for _ in range(int(rng.integers(1, 4)))
    )


def _scratch(size_mm: tuple[float, float], scale: float, rng: np.random.Generator) -> Mark:
    """A thin arc, 2-15 mm long."""
    length_mm, bend = float(rng.uniform(2, 15)), float(rng.uniform(-0.2, 0.2))
    steps = np.linspace(-0.5, 0.5, 25)
    path = np.stack([steps, bend * (1 - 4 * steps**2)], axis=1) * length_mm
    contrast = _signed(rng, 0.065, 0.14, bright_share=0.7) * scale
    thickness_mm = float(rng.uniform(0.12, 0.3))
    return Mark("scratch", _place(path, size_mm, rng), thickness_mm, contrast)


def _spot(kind: str, low: float, high: float) -> MakeMark:
    """A small ellipse, 0.3-1.5 mm; its contrast lies between the two given for 1 mm."""

    def make(size_mm: tuple[float, float], scale: float, rng: np.random.Generator) -> Mark:
        diameter_mm, ratio = float(rng.uniform(0.3, 1.5)), float(rng.uniform(0.75, 1.0))
        turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        path = np.stack([np.cos(turns), ratio * np.sin(turns)], axis=1) * diameter_mm / 2
        # A smaller spot must be stronger to be noticed at all.
        contrast = float(rng.uniform(low, high)) * (1.3 - 0.3 * min(diameter_mm, 1.0))
        return Mark(kind, _place(path, size_mm, rng), 0.0, contrast * scale)

    return make


def _impurity(size_mm: tuple[float, float], scale: float, rng: np.random.Generator) -> Mark:
    """An irregular fibre (a wandering stroke) or speck (a ragged outline)."""
    contrast = _signed(rng, 0.075, 0.15, bright_share=0.3) * scale
    if rng.random() < 0.5:
        headings = np.cumsum(rng.normal(0, 0.35, 20))
        step_mm = float(rng.uniform(1.0, 5.0)) / 20
        path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1) * step_mm, axis=0)
        thickness_mm = float(rng.uniform(0.12, 0.25))
        return Mark("impurity", _place(path, size_mm, rng), thickness_mm, contrast)
    turns = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    radius_mm = float(rng.uniform(0.25, 0.7)) * rng.uniform(0.6, 1.4, 12)
    path = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius_mm[:, None]
    return Mark("impurity", _place(path, size_mm, rng), 0.0, contrast)


_KINDS = (_scratch, _spot("bright_spot", 0.12, 0.24), _spot("dark_spot", -0.125, -0.065), _impurity)


def _signed(rng: np.random.Generator, low: float, high: float, bright_share: float) -> float:
    return float(rng.uniform(low, high)) * (1 if rng.random() < bright_share else -1)


def _place(
    path: NDArray[np.float64], size_mm: tuple[float, float], rng: np.random.Generator
) -> Points:
    """Turn a path at random and move it to a random place inside the plate."""
    angle = float(rng.uniform(0, 2 * math.pi))
    cos, sin = math.cos(angle), math.sin(angle)
    turned = (path - path.mean(axis=0)) @ np.array([[cos, sin], [-sin, cos]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    inset = DEFECT_INSET_MM + 0.5  # half of the thickest stroke and its blur
    room = np.array(size_mm) - 2 * inset - (high - low)
    if (room < 0).any():
        raise ValueError(f"a plate of {size_mm} mm is too small for a defect inside its margin")
    corner = inset + rng.uniform(0, 1, 2) * room
    return tuple((float(x), float(y)) for x, y in turned - low + corner)


def _shape(
    mark: Mark, points: NDArray[np.float64], size: tuple[int, int], pixel_pitch_mm: float
) -> NDArray[np.float32]:
    """1 on the mark, 0 beside it, the covered share on its rim; shape `size`."""
    fine = np.zeros((size[0] * _SUBPIXELS, size[1] * _SUBPIXELS), np.uint8)
    bits = 4
    # cv2 counts pixel centres as integers, at both resolutions.
    centred = (points + 0.5) * _SUBPIXELS - 0.5
    path = np.round(centred * (1 << bits)).astype(np.int32).reshape(-1, 1, 2)
    if mark.thickness_mm:
        thickness = max(1, round(mark.thickness_mm / pixel_pitch_mm * _SUBPIXELS))
        cv2.polylines(fine, [path], False, 255, thickness, cv2.LINE_AA, bits)
    else:
        cv2.fillPoly(fine, [path], 255, cv2.LINE_AA, bits)
    coarse = cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    share: NDArray[np.float32] = np.asarray(coarse, np.float32) / np.float32(255)
    return share
