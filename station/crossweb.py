"""How bright a plate is along the scan line, and what of that is neither light nor product.

A streak of dirt is a few parts in a hundred; the dots of a light guide plate make ten times as much
of a column's mean where the plate lies straight. So the lattice is taken out first: it is a few
pure waves along the scan line, whatever its pitch, and dirt is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy import fft
from numpy.typing import NDArray

from station.strip import Plate
from station.tiling import OUTSIDE

Floats = NDArray[np.float64]

LEAST_PX = 128
"""A narrower part of a scan line shows neither lattice nor background."""
_FULL_WIDTH = 0.97
"""Scan lines of a plate's slanted ends are shorter and left out."""
_BACKGROUND_MM = 40.0
"""What is narrower than half of this stands out from the background."""
_BLOCK_MM = 2.0
_STREAK_MM = 2.0
_SECTIONS = 4
"""A streak is seen in each of so many parts of the plate's length; a defect ends somewhere."""
_FITS = 5
_EVERY = 7
"""Scan lines looked at for streaks: no dots repeat in this step."""
_WAVES = 8
_LONGEST_WAVE_PX = 30
_NEAR_BINS = 24
_PROMINENCE = 6.0
"""A wave stands out so much from the spectrum beside it."""
_SWEEPS = 2
_MOST = 0.3
"""Stronger deviations say nothing of a wave."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean level of each camera column over the scan lines in which the plate has its full width.

    `levels` is float64 (columns,), the first of them at `left_px` of the scan line.
    """

    left_px: int
    levels: Floats
    middle_px: float
    """Of the plate, crossweb; the mean over its scan lines, for a side is known to 8 px only."""

    @property
    def right_px(self) -> int:
        return self.left_px + len(self.levels)


def column_profile(plate: Plate) -> Profile | None:
    """The profile of a plate's scored region; None if too little of it has the full width."""
    lines = _full_lines(plate)
    if plate.pixels is None or lines is None:
        return None
    region_left, region_right = (side[lines] for side in plate.region)
    left, right = int(region_left.max()), int(region_right.min())
    if right - left < LEAST_PX:
        return None
    sums = cv2.reduce(plate.pixels[lines, left:right], 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    levels = np.asarray(sums[0], np.float64) / (lines.stop - lines.start)
    return Profile(left, levels, float((region_left + region_right).mean()) / 2)


def _full_lines(plate: Plate) -> slice | None:
    """From the first to the last scan line of the region with its full width."""
    left, right = plate.region
    widths = np.where(left != OUTSIDE, right - left, 0)
    full = np.flatnonzero(widths > _FULL_WIDTH * widths.max(initial=0))
    if not len(full):
        return None
    lines = slice(int(full[0]), int(full[-1]) + 1)
    return lines if (left[lines] != OUTSIDE).all() else None


def streak_share(plate: Plate, pixel_pitch_mm: float) -> float:
    """The strongest change of brightness, relative, of a streak at least `_STREAK_MM` wide that
    runs the plate's whole length; 0 where too little is seen.

    Below a streak of dirt, or a glare, nobody sees the plate: a network that learned defects, which
    end somewhere, may call it good.
    """
    lines = _full_lines(plate)
    if plate.pixels is None or lines is None:
        return 0.0
    left, right = (side[lines] for side in plate.region)
    block = max(1, round(_STREAK_MM / 2 / pixel_pitch_mm))
    count = (int(right.min()) - int(left.max())) // block
    if count * block < LEAST_PX or lines.stop - lines.start < _SECTIONS * _EVERY:
        return 0.0
    first = int(left.max())
    seen = plate.pixels[lines.start : lines.stop : _EVERY, first : first + count * block]
    found = [_block_deviations(part, block) for part in _sections(seen)]
    dark, bright = np.max(found, axis=0), np.min(found, axis=0)
    return float(max(-np.expm1(dark.min()), np.expm1(bright.max()), 0.0))


def _sections(seen: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(part) for part in np.array_split(seen, _SECTIONS)]


def _block_deviations(part: NDArray[np.uint8], block: int) -> Floats:
    """Logarithm of each block's level over what light and product make of the whole width."""
    means = cv2.reduce(part, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[0]
    logs = np.log(np.maximum(means.reshape(-1, block).mean(axis=1), 0.5)).astype(np.float64)
    deviating: Floats = logs - _slow_change(logs)
    return deviating


def _slow_change(logs: Floats) -> Floats:
    """A parabola through most of the blocks: dirt of any width below half of the plate's is not
    followed, where a running median follows what is wider than half of its window."""
    place = np.linspace(-1, 1, len(logs))
    powers = np.stack((np.ones_like(place), place, place**2))
    fitted = np.full_like(logs, median(logs))
    for _ in range(_FITS):
        off = np.abs(logs - fitted)
        weights = 1 / np.maximum(off, max(median(off), 0.02)) ** 2
        weighted = powers * weights
        fitted = np.linalg.solve(weighted @ powers.T, weighted @ logs) @ powers
    return fitted


def deviations(levels: Floats, pixel_pitch_mm: float) -> Floats:
    """How much darker (negative) or brighter each column is than its surroundings, relative;
    the plate's lattice and the slow change of its light taken out. Shape as given, finite."""
    logs = np.log(np.maximum(levels, 0.5))
    window = round(_BACKGROUND_MM / pixel_pitch_mm) | 1
    rough = logs - cv2.blur(logs[None], (window, 1), borderType=cv2.BORDER_REFLECT)[0]
    logs -= _lattice(rough)
    return np.expm1(logs - _background(logs, pixel_pitch_mm))


def spread(values: Floats) -> float:
    """Standard deviation of what is usual, by the median of the absolute values."""
    return 1.4826 * median(np.abs(values))


def median(values: Floats) -> float:
    """numpy's own imports its masked arrays at the first call: 10 ms while a plate waits."""
    return float(np.sort(values)[len(values) // 2])


def _lattice(values: Floats) -> Floats:
    """The pure waves in a profile: those whose peak stands out from the spectrum beside it."""
    count = len(values)
    bins = 1 << count.bit_length()
    clipped = np.clip(values, -_MOST, _MOST)
    spectrum = np.abs(fft.rfft(clipped * np.hanning(count), bins))
    peaks = _peaks(spectrum, bins // _LONGEST_WAVE_PX)
    found = np.zeros(count)
    if not len(peaks):
        return found
    below, at, above = (np.log(spectrum[peaks + step] + 1e-12) for step in (-1, 0, 1))
    # A Hann window's main lobe is nearly a parabola on a log scale.
    exact = peaks + 0.5 * (below - above) / np.minimum(below - 2 * at + above, -1e-12)
    # Turns below one are exact enough in float32, whose sines are several times as fast.
    turns = np.outer(exact / bins, np.arange(count))
    phases = (2 * np.pi * (turns - np.floor(turns))).astype(np.float32)
    rest = clipped.astype(np.float32)
    # One after the other instead of a least-squares solution: the linear algebra library would
    # start threads on the cores that the tiles need.
    for _ in range(_SWEEPS):
        for wave in (*np.cos(phases), *np.sin(phases)):
            part = wave * (np.dot(rest, wave) / np.dot(wave, wave))
            rest -= part
            found += part
    return found


def _peaks(spectrum: Floats, first: int) -> NDArray[np.intp]:
    """Bins of the strongest peaks that stand out, at most `_WAVES`."""
    middle = spectrum[1:-1]
    is_peak = (middle >= spectrum[:-2]) & (middle > spectrum[2:])
    peaks = np.flatnonzero(is_peak) + 1
    peaks = peaks[(peaks >= max(first, _NEAR_BINS)) & (peaks < len(spectrum) - _NEAR_BINS)]
    peaks = peaks[np.argsort(-spectrum[peaks])[: 3 * _WAVES]]
    near = peaks[:, None] + np.arange(-_NEAR_BINS, _NEAR_BINS + 1)
    usual = np.sort(spectrum[near], axis=1)[:, _NEAR_BINS]
    return np.asarray(peaks[spectrum[peaks] > _PROMINENCE * usual][:_WAVES], np.intp)


def _background(logs: Floats, pixel_pitch_mm: float) -> Floats:
    """Running median of block medians, straight lines between them."""
    block = max(1, round(_BLOCK_MM / pixel_pitch_mm))
    block = min(block, len(logs) // 8)
    count = len(logs) // block
    blocks = np.sort(logs[: count * block].reshape(count, block), axis=1)[:, block // 2]
    reach = min(round(_BACKGROUND_MM / pixel_pitch_mm / block), count - 1) // 2
    padded = np.pad(blocks, reach, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    middles = np.sort(windows, axis=1)[:, reach]
    centres = (np.arange(count) + 0.5) * block - 0.5
    return np.interp(np.arange(len(logs)), centres, middles)
