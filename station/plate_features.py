"""What a judged plate says of light, camera, material and network, in a few numbers.

Made after the lamp's command, from what the verdict left behind: tile scores, the network's maps,
the profile along the scan line, and sixteen small patches of the plate's pixels. The network has no
output for its last features; its map of evidence (7 x 7 log odds a tile) is what comes nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from station.crossweb import LEAST_PX, Profile
from station.inspection import PlateWork
from station.plate_names import MAP, NAMES, SCALARS, SECTIONS
from station.tiling import OUTSIDE
from station.verdict import TileScore, is_failing

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_GRID = 4
_PATCH_PX = 64
_LEAST_PATCH_PX = 16
_COVERED = 0.4
_MOST_LOG_ODDS = 12.0
_LEAST_CONTRAST = 0.003
"""Of a plate without any dots: its logarithm must not follow the last level of grey."""
_LEAST_NOISE = 0.1
_UPPER = 0.9
_LAPLACE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_LAPLACE_GAIN = 6.0
"""Standard deviation of its answer to white noise of 1 (Immerkaer 1996)."""
_QUARTER = 0.31864
"""Lower quartile of the absolute value of a normal variable: dots and marks reach only the upper
part, where a plate is flat the noise is alone."""
_MOST_ANSWER = 1023


def plate_features(
    work: PlateWork, profile: Profile | None, threshold: float, scan_line_px: int
) -> Floats:
    """The features of a plate in the order of `NAMES`, float64; NaN for what cannot be said."""
    found = np.full(len(NAMES), np.nan)
    if profile is not None and work.plate.pixels is not None:
        found[0] = np.log(max(float(profile.levels.mean()), 0.5))
        found[1:3] = _contrast_and_noise(_patches(work, profile))
        found[len(SCALARS) + len(MAP) :] = _sections(profile, scan_line_px)
    found[3:5] = _log_odds(work.scores, threshold)
    found[5:8] = _map_features(work.maps)
    return found


def _patches(work: PlateWork, profile: Profile) -> list[Pixels]:
    """Views of the plate where it has its full width, a grid of them."""
    pixels = work.plate.pixels
    assert pixels is not None
    left, right = work.plate.region
    covered = (left != OUTSIDE) & (left <= profile.left_px) & (right >= profile.right_px)
    lines = np.flatnonzero(covered)
    if not len(lines):
        return []
    first, last = int(lines[0]), int(lines[-1]) + 1
    height, width = (
        min(_PATCH_PX, (end - start) // _GRID)
        for start, end in ((first, last), (profile.left_px, profile.right_px))
    )
    if min(height, width) < _LEAST_PATCH_PX:
        return []
    tops = np.linspace(first, last - height, _GRID).astype(int)
    sides = np.linspace(profile.left_px, profile.right_px - width, _GRID).astype(int)
    return [pixels[top : top + height, side : side + width] for top in tops for side in sides]


def _contrast_and_noise(patches: Sequence[Pixels]) -> tuple[float, float]:
    """Logarithms; medians over the patches, so that no defect and no speck counts."""
    if not patches:
        return np.nan, np.nan
    counts = np.zeros(_MOST_ANSWER + 1, np.int64)
    moments = np.empty((len(patches), 2))
    for number, patch in enumerate(patches):
        mean, deviation = cv2.meanStdDev(patch)
        moments[number] = mean[0, 0], deviation[0, 0]
        answer = cv2.filter2D(patch, cv2.CV_16S, _LAPLACE)[1:-1, 1:-1]
        size = np.minimum(np.abs(answer), _MOST_ANSWER).ravel()
        counts += np.bincount(size, minlength=_MOST_ANSWER + 1)
    noise = _quantile(counts, 0.25) / (_QUARTER * _LAPLACE_GAIN)
    means, deviations = moments.T
    seen = np.sqrt(np.maximum(deviations**2 - noise**2, 0)) / np.maximum(means, 1.0)
    contrast = float(np.sort(seen)[len(seen) // 2])
    relative = (noise + _LEAST_NOISE) / max(float(means.mean()), 1.0)
    return float(np.log(contrast + _LEAST_CONTRAST)), float(np.log(relative))


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """Of whole numbers counted, between them evenly; |0| is half as wide as the others."""
    cumulated = np.cumsum(counts)
    wanted = share * float(cumulated[-1])
    at = int(np.searchsorted(cumulated, wanted))
    before = float(cumulated[at - 1]) if at else 0.0
    inside = (wanted - before) / max(float(counts[at]), 1.0)
    return inside / 2 if at == 0 else at - 0.5 + inside


def _sections(profile: Profile, scan_line_px: int) -> Floats:
    """Logarithm of each section's level over the plate's; NaN where too little is covered."""
    edges = np.round(np.linspace(0, scan_line_px, SECTIONS + 1)).astype(np.int64)
    sums = np.concatenate([[0.0], np.cumsum(profile.levels)])
    inside = np.clip(edges - profile.left_px, 0, len(profile.levels))
    widths = np.diff(inside)
    is_covered = widths >= np.maximum(_COVERED * np.diff(edges), LEAST_PX / SECTIONS)
    means = np.diff(sums[inside]) / np.maximum(widths, 1)
    relative = np.maximum(means, 0.5) / max(float(profile.levels.mean()), 0.5)
    return np.where(is_covered, np.log(relative), np.nan)


def _log_odds(scores: Sequence[TileScore], threshold: float) -> tuple[float, float]:
    passing = np.array([s.score for s in scores if not is_failing(s.score, threshold)])
    if not len(passing):
        return np.nan, np.nan
    with np.errstate(divide="ignore"):
        odds = np.clip(np.log(passing) - np.log1p(-passing), -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    odds.sort()
    return float(odds[len(odds) // 2]), float(odds[int(_UPPER * (len(odds) - 1))])


def _map_features(maps: Sequence[NDArray[np.float32]]) -> Floats:
    if not maps:
        return np.full(len(MAP), np.nan)
    cells = np.concatenate(maps).reshape(-1, maps[0].shape[1] * maps[0].shape[2])
    said = np.stack([cells.mean(axis=1), cells.std(axis=1), cells.max(axis=1)]).astype(np.float64)
    said.sort(axis=1)
    middle: Floats = said[:, said.shape[1] // 2]
    return middle
