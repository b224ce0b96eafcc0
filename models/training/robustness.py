"""Does a decision hold when the picture changes as it may between two plates of one product?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from models.training.evaluate import Figure, Judge, members_of

Tiles = NDArray[np.uint8]
Score = Callable[[Tiles], NDArray[np.float32]]

SHIFTS_PX = tuple(range(1, 9))
_GRADIENT = 0.2
_GAIN = 0.1
_BLUR_PX = 1.0
_ZOOM = 0.05
_LINE_NOISE_LEVELS = 2.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of the tiles that keep their decision under one kind of change."""

    change: str
    mean: Figure
    """Over the variants of the change."""
    worst: float
    """Of the variants."""


def robustness(
    score: Score, threshold: float, tiles: Tiles, groups: Sequence[str]
) -> list[Agreement]:
    """Agreement of the decisions with those on the unchanged tiles uint8 (n, 1, 224, 224), which
    show the parts `groups`."""
    before = score(tiles) > threshold
    kept: dict[str, list[NDArray[np.bool_]]] = {}
    for change, changed in changes(tiles):
        after = score(changed) > threshold
        kept.setdefault(change, []).append(after == before)
    judge, all_tiles = Judge(members_of(groups), seed=0), np.ones(len(tiles), bool)
    return [
        Agreement(change, judge.rate(np.stack(rows), all_tiles), min(float(r.mean()) for r in rows))
        for change, rows in kept.items()
    ]


def changes(tiles: Tiles) -> Iterator[tuple[str, Tiles]]:
    """Every variant of every change, with the change's name."""
    for shift in SHIFTS_PX:
        for axis in (2, 3):
            yield "shift by 1-8 px", _shifted(tiles, shift, axis)
    ramp = np.linspace(1 - _GRADIENT, 1 + _GRADIENT, tiles.shape[3])
    yield "illumination gradient of 20 %", _scaled(tiles, ramp)
    yield "illumination gradient of 20 %", _scaled(tiles, ramp[:, None])
    for gain in (1 - _GAIN, 1 + _GAIN):
        yield "gain of 10 %", _scaled(tiles, np.array(gain))
    yield f"focus blur, sigma {_BLUR_PX:g} px", _each(tiles, _blurred)
    for factor in (1 - _ZOOM, 1 + _ZOOM):
        yield "density of 5 %", _each(tiles, partial(_zoomed, factor=factor))
    yield f"line noise of {_LINE_NOISE_LEVELS:g} levels", _with_line_noise(tiles)


def _shifted(tiles: Tiles, shift_px: int, axis: int) -> Tiles:
    """Moved towards the end of an axis; what enters is mirrored."""
    reach = [(0, 0)] * 4
    reach[axis] = (shift_px, 0)
    size = tiles.shape[axis]
    padded = np.pad(tiles, reach, mode="reflect")
    return np.ascontiguousarray(np.take(padded, range(size), axis=axis))


def _scaled(tiles: Tiles, factor: NDArray[np.float64]) -> Tiles:
    return np.clip(np.rint(tiles * factor), 0, 255).astype(np.uint8)


def _each(tiles: Tiles, change: Callable[[Tiles], Tiles]) -> Tiles:
    return np.stack([change(tile[0]) for tile in tiles])[:, None]


def _blurred(tile: Tiles) -> Tiles:
    blurred = cv2.GaussianBlur(tile, (0, 0), _BLUR_PX, borderType=cv2.BORDER_REFLECT_101)
    return blurred.astype(np.uint8)


def _zoomed(tile: Tiles, factor: float) -> Tiles:
    """Seen from so much nearer, about the tile's middle."""
    middle = (len(tile) - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), 0, factor)
    size = (len(tile), len(tile))
    zoomed = cv2.warpAffine(
        tile, turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return zoomed.astype(np.uint8)


def _with_line_noise(tiles: Tiles) -> Tiles:
    """Each pixel of the line sensor a little off, the same for all scan lines of a tile."""
    shape = (len(tiles), 1, 1, tiles.shape[3])
    noise = np.random.default_rng(0).normal(0, _LINE_NOISE_LEVELS, shape)
    return np.clip(np.rint(tiles + noise), 0, 255).astype(np.uint8)
