"""Pictures of plates with dots under any affine view, and the view's true figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """How a camera sees the belt, and how the plate lies on it."""

    crossweb_mm_per_px: float = 0.1
    downweb_mm_per_px: float = 0.1
    rotation_deg: float = 0.0
    squareness_deg: float = 0.0

    @property
    def to_mm(self) -> NDArray[np.float64]:
        """Plate mm of a pixel (column, row)."""
        turn, shear = math.radians(self.rotation_deg), math.tan(math.radians(self.squareness_deg))
        turned = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        lower = [
            [1 / self.crossweb_mm_per_px, 0.0],
            [shear / self.downweb_mm_per_px, 1 / self.downweb_mm_per_px],
        ]
        return np.asarray(np.linalg.inv(np.array(lower) @ np.array(turned)), np.float64)


@dataclass(frozen=True)
class Plate:
    """A plate with a lattice of dots; `pitch_mm` None: without dots."""

    pitch_mm: float | None = 1.2
    is_staggered: bool = False
    angle_deg: float = 0.0
    width_mm: float = 66.0
    length_mm: float = 48.0
    noise: float = 2.0

    def seen(self, view: View, rng: np.random.Generator, columns: int = 800) -> Pixels:
        """A picture of the whole plate on a dark belt."""
        margin_mm = 6.0 + self.width_mm * math.sin(math.radians(4))
        rows = round((self.length_mm + 2 * margin_mm) / view.downweb_mm_per_px)
        shape = (rows, columns)
        across, along = np.meshgrid(*(np.arange(n) - n / 2 for n in shape[::-1]))
        m = view.to_mm
        x, y = m[0, 0] * across + m[0, 1] * along, m[1, 0] * across + m[1, 1] * along
        inside_px = np.minimum(
            (self.width_mm / 2 - np.abs(x)) / view.crossweb_mm_per_px,
            (self.length_mm / 2 - np.abs(y)) / view.downweb_mm_per_px,
        )
        share = np.clip(inside_px + 0.5, 0, 1)
        level = 12 + share * (92 + 78 * self._dots(x, y, rng) - 12)
        level += self.noise * rng.standard_normal(shape)
        return np.clip(np.rint(level), 0, 255).astype(np.uint8)

    def _dots(
        self, x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64] | float:
        if self.pitch_mm is None:
            return 0.0
        waves = 3 if self.is_staggered else 2
        period = self.pitch_mm * (math.sin(math.pi / 3) if self.is_staggered else 1)
        at_x, at_y = rng.uniform(0, self.pitch_mm, 2)
        field = np.zeros_like(x)
        for wave in range(waves):
            turn = math.radians(self.angle_deg) + wave * math.pi / waves
            along = (x - at_x) * math.cos(turn) + (y - at_y) * math.sin(turn)
            field += np.cos(2 * math.pi / period * along)
        return 1 / (1 + np.exp(-6 * (field - 1.1)))
