"""How sharp a line-scan picture is, zone by zone along the scan line.

Only the crossweb gradient counts: sharpness downweb also depends on exposure and encoder, which no
lens puts right. The score is the gradient's energy over the squared mean level, less what noise
adds: brightness does not move it, and it falls steadily as the lens is turned away from focus
(Groen et al. 1985 and Pertuz et al. 2013 compare such measures).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

ZONES = 5
_LEAST_LEVEL = 30.0
"""A zone darker than this shows belt."""
_LEAST_STRUCTURE = 0.02
"""Contrast, as a share of the level, that a sharp edge must have to be one."""
_RISE_10_90 = 2.563
"""From 10 to 90 % of a Gaussian edge, in standard deviations."""
_ALLOWED_LOSS = 0.2
_ALLOWED_TILT = 0.25


@dataclass(frozen=True, slots=True)
class FocusZone:
    """Part of the scan line, from `start_px` to `end_px`."""

    start_px: int
    end_px: int
    score: float | None
    """None where no plate is seen; near 0 where it shows nothing, or all out of focus."""
    rise_px: float | None
    """Crossweb width of the sharpest edges, from 10 to 90 % of their step; None without edges."""


@dataclass(frozen=True, slots=True)
class FocusReading:
    """Sharpness of some scan lines."""

    zones: tuple[FocusZone, ...]
    score: float | None
    """Mean of the zones'; None if no zone shows a plate."""
    tilt: float | None
    """Right less left zones' score as a share of their mean; None if one side shows no plate."""


@dataclass(frozen=True, slots=True)
class FocusVerdict:
    """A reading held against a reference."""

    is_ok: bool
    worst_share: float | None
    """Of the reference's score, in the worst zone."""
    problems: tuple[str, ...]


def measure_focus(scan_lines: Pixels, zones: int = ZONES) -> FocusReading:
    """Read the focus of scan lines that show a plate; uint8 (rows, width)."""
    borders = np.linspace(0, scan_lines.shape[1], zones + 1).astype(int).tolist()
    found = tuple(
        _zone(scan_lines[:, start:end], start, end) for start, end in itertools.pairwise(borders)
    )
    scores = [zone.score for zone in found]
    seen = [score for score in scores if score is not None]
    return FocusReading(found, float(np.mean(seen)) if seen else None, _tilt(scores))


def _tilt(scores: list[float | None]) -> float | None:
    half = len(scores) // 2
    left = [score for score in scores[:half] if score is not None]
    right = [score for score in scores[-half:] if score is not None] if half else []
    if not left or not right:
        return None
    a, b = float(np.mean(left)), float(np.mean(right))
    return (b - a) / ((a + b) / 2) if a + b > 0 else None


def _zone(pixels: Pixels, start: int, end: int) -> FocusZone:
    # Belt beside and between plates would count as dim plate, and a plate's side as an edge.
    plate = pixels[pixels.mean(axis=1) > _LEAST_LEVEL]
    if len(plate):
        plate = plate[:, plate.mean(axis=0) > max(_LEAST_LEVEL, 0.6 * float(plate.mean()))]
    if len(plate) < 8 or plate.shape[1] < 16:
        return FocusZone(start, end, None, None)
    level = float(plate.mean())
    noise = _noise(plate)
    gradient = cv2.Sobel(plate, cv2.CV_32F, 1, 0, ksize=1) / 2
    energy = float(np.mean(gradient[:, 1:-1] ** 2, dtype=np.float64)) - noise * noise / 2
    score = max(0.0, energy) / (level * level)
    return FocusZone(start, end, score, _rise(plate, noise, level))


def _noise(plate: Pixels) -> float:
    """Standard deviation of a pixel, from a difference that edges do not enter (Immerkaer 1996),
    by its median: most of a plate lies between its edges."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = cv2.filter2D(plate, cv2.CV_32F, kernel)[1:-1, 1:-1]
    return float(np.median(np.abs(response))) * 1.4826 / 6


def _rise(plate: Pixels, noise: float, level: float) -> float | None:
    """10 to 90 % width of the steepest edges in px; None if there are none."""
    # Noise must not pass for steepness: means of three scan lines.
    calm = cv2.blur(plate, (1, 3)).astype(np.float32)
    low, high = (float(value) for value in np.percentile(calm[::2], [2, 98]))
    step = high - low
    if step < max(_LEAST_STRUCTURE * level, 8 * noise):
        return None
    slopes = np.abs(np.diff(calm, axis=1))
    steepest = float(np.percentile(slopes[::2], 99))
    if steepest <= 0:
        return None
    return _RISE_10_90 * step / (steepest * math.sqrt(2 * math.pi))


def judge_focus(reading: FocusReading, reference: FocusReading) -> FocusVerdict:
    """Hold a reading against the one that commissioning kept, zone by zone."""
    problems = []
    shares = []
    for zone, kept in zip(reading.zones, reference.zones, strict=True):
        place = f"px {zone.start_px}-{zone.end_px}"
        if not kept.score:
            continue
        if zone.score is None:
            problems.append(f"{place}: no plate is seen; show one there")
            continue
        shares.append(zone.score / kept.score)
        if shares[-1] < 1 - _ALLOWED_LOSS:
            problems.append(f"{place}: {shares[-1]:.0%} of the reference's sharpness; refocus")
    if not shares and not problems:
        problems.append("the reference shows nothing to focus on; take it anew with a plate")
    if reading.tilt is not None and reference.tilt is not None:
        tilt = reading.tilt - reference.tilt
        if abs(tilt) > _ALLOWED_TILT:
            softer = "left" if tilt > 0 else "right"
            problems.append(
                f"tilt: the {softer} side is softer by {abs(tilt):.0%}; level the camera"
            )
    return FocusVerdict(not problems, min(shares, default=None), tuple(problems))
