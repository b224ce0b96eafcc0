"""A line-scan sensor behind a lens, whose unevenness is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivers.camera import CameraInfo, Frame
from drivers.camera.recorder import Bounds, StripRecorder

Pixels = NDArray[np.uint8]


def record(folder: Path, camera: CameraInfo, pixels: Pixels) -> Path:
    """Scan lines as a recording of a camera; the last part of a frame is left out."""
    problems: list[str] = []
    recorder = StripRecorder(folder, camera, Bounds(2**30, 0), problems.append)
    height = camera.frame_height
    for number, first in enumerate(range(0, len(pixels) - height + 1, height)):
        frame = pixels[first : first + height]
        recorder.append(Frame(frame, camera.width, number, number, encoder_value=first))
    recorder.close()
    assert not problems
    return folder


@dataclass(frozen=True)
class Sensor:
    """What each column adds and lacks, and the noise of a pixel in grey levels."""

    width: int
    vignetting: float
    """Loss of light at both ends of the scan line, as a share."""
    non_uniformity: float
    """Pixels differ by up to this share."""
    dark_level: float
    seed: int
    noise: float = 2.0

    @property
    def gain(self) -> NDArray[np.float64]:
        rng = np.random.default_rng([self.seed, 0])
        x = np.linspace(-1, 1, self.width)
        pixels = rng.uniform(-self.non_uniformity, self.non_uniformity, self.width)
        return (1 - self.vignetting * x * x) * (1 + pixels)

    @property
    def offset(self) -> NDArray[np.float64]:
        rng = np.random.default_rng([self.seed, 1])
        return self.dark_level * rng.uniform(0.8, 1.2, self.width)

    def sees(self, scene: NDArray[np.float64] | Pixels, seed: int = 0) -> Pixels:
        """Scan lines of a scene, (rows, width) in grey levels."""
        noise = np.random.default_rng([self.seed, 2, seed]).standard_normal(scene.shape)
        level = scene * self.gain + self.offset + self.noise * noise
        return np.clip(np.rint(level), 0, 255).astype(np.uint8)

    def dark(self, rows: int) -> Pixels:
        return self.sees(np.zeros((rows, self.width)), seed=1)

    def uniform(self, rows: int, level: float = 180.0, seed: int = 2) -> Pixels:
        return self.sees(np.full((rows, self.width), level), seed=seed)
