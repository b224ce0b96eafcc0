"""Dirt on lens or window, and dead pixels: what stays at the same camera columns while plates lie
shifted crossweb.

What moves with the plates is the product's: printed on it, or pressed into it by a damaged tool.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from station.config import HealthRecipe
from station.crossweb import Floats, Profile, median, spread

NEAR_MM = 1.0
"""What lies closer together is one place."""
_NEED = 0.75
"""Share of the last plates on which it must be."""
_SHOWS = 0.5
"""Share of its limit at which a column counts to the dirt beside it."""
_USUAL = 4.0
"""What is usual in a plate's profile, times this, is no dirt."""
_FIXED = 0.25
"""So much better must what is seen fit together by camera columns than by places on the plate."""
_LEAST_SHIFT_PX = 5.0
"""Standard deviation of the plates' places; less says nothing, for a place is known to 2 px."""


@dataclass(frozen=True, slots=True)
class Place:
    """Dirt that was found: columns of the camera, the end exclusive, and what it looked like."""

    start: int
    end: int
    is_streak: bool
    """Seen in the profile: `measured` is its relative contrast. Else by the boxes of defects, which
    say less well where it lies: the share of plates with a defect there."""
    measured: float
    limit: float
    since: str
    """The first plate that shows it."""


class Dirt:
    """The last plates, and what all of them show at the same columns.

    Two witnesses: columns of the profile that stand out, also where no tile fails, and the boxes of
    defects. Both are kept per plate as multiples of what counts.
    """

    def __init__(self, recipe: HealthRecipe, pixel_pitch_mm: float, scan_line_px: int) -> None:
        self._contrast = recipe.dirt_contrast
        self._plates = recipe.dirt_plates
        self._need = math.ceil(_NEED * self._plates)
        self._pitch_mm = pixel_pitch_mm
        shape = (self._plates, scan_line_px)
        self._streaks = np.zeros(shape, np.float32)
        self._boxes = np.zeros(shape, np.float32)
        self._scales = np.zeros(self._plates, np.float32)
        self._covered = np.zeros((self._plates, 2), np.int64)
        self._middles = np.zeros(self._plates)
        self._ids: deque[str] = deque(maxlen=self._plates)
        self._taken = 0

    def take(
        self, result_id: str, profile: Profile, found: Floats, defects: Iterable[tuple[int, int]]
    ) -> None:
        """One plate: by how much each column of its profile stands out, and the columns of its
        defects' boxes."""
        row, self._taken = self._taken % self._plates, self._taken + 1
        inside = slice(profile.left_px, profile.right_px)
        self._scales[row] = max(self._contrast, _USUAL * spread(found))
        self._streaks[row] = 0
        self._streaks[row, inside] = found / self._scales[row]
        self._boxes[row] = 0
        for start, end in defects:
            self._boxes[row, start:end] = 1
        self._covered[row] = profile.left_px, profile.right_px
        self._middles[row] = profile.middle_px
        self._ids.append(result_id)

    def places(self) -> Iterator[Place]:
        """Where dirt is now."""
        for values in (self._streaks, self._boxes):
            for start, end in self._lasting(values):
                if self._is_fixed(values, start, end):
                    yield self._place(values, start, end)

    def is_clean(self, place: Place) -> bool:
        """Enough plates lay there, and nearly none of them shows it any more."""
        covers = (self._covered[:, 0] <= place.start) & (self._covered[:, 1] >= place.end)
        covers &= np.arange(self._plates) < self._taken
        shows = self._shows(self._streaks, place.start, place.end)
        shows |= self._shows(self._boxes, place.start, place.end)
        shown = int((shows & covers).sum())
        return int(covers.sum()) >= self._need and shown <= self._plates - self._need

    def _lasting(self, values: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
        """Runs of columns that stand out on enough plates, with what belongs to them beside."""
        for sign in (-1, 1):
            core = (sign * values >= 1).sum(axis=0) >= self._need
            if core.any():
                wide = (sign * values >= _SHOWS).sum(axis=0) >= self._need
                yield from self._runs(np.flatnonzero(wide), core)

    def _runs(
        self, columns: NDArray[np.intp], core: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int]]:
        near = max(1, round(NEAR_MM / self._pitch_mm))
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > near) + 1):
            if core[run].any():
                yield int(run[0]), int(run[-1]) + 1

    def _is_fixed(self, values: NDArray[np.float32], start: int, end: int) -> bool:
        """Is it the camera's, not the plates'? False where all lie alike: nothing tells then."""
        known = min(self._taken, self._plates)
        middles = self._middles[:known]
        if middles.std() < _LEAST_SHIFT_PX:
            return False
        shifts = np.round(middles - median(middles)).astype(np.int64)
        reach = int(np.abs(shifts).max()) + round(NEAR_MM / self._pitch_mm)
        columns = np.arange(start - reach, end + reach)
        by_camera = self._misfit(values, np.broadcast_to(columns, (known, len(columns))))
        by_plate = self._misfit(values, columns + shifts[:, None])
        return by_plate - by_camera > _FIXED * (by_plate + by_camera)

    def _misfit(self, values: NDArray[np.float32], columns: NDArray[np.int64]) -> float:
        """How much the plates differ in their values at these columns of each."""
        inside = np.clip(columns, 0, values.shape[1] - 1)
        window = np.clip(np.take_along_axis(values[: len(columns)], inside, axis=1), -2, 2)
        return float(np.square(window - window.mean(axis=0)).sum())

    def _shows(self, values: NDArray[np.float32], start: int, end: int) -> NDArray[np.bool_]:
        """Which of the last plates show something in half of these columns."""
        middles = np.sort(np.abs(values[:, start:end]), axis=1)[:, (end - start) // 2]
        return np.asarray(middles >= _SHOWS, np.bool_)

    def _since(self, values: NDArray[np.float32], start: int, end: int) -> str:
        order = np.arange(self._taken - len(self._ids), self._taken) % self._plates
        return self._ids[int(self._shows(values, start, end)[order].argmax())]

    def _place(self, values: NDArray[np.float32], start: int, end: int) -> Place:
        since = self._since(values, start, end)
        if values is self._streaks:
            return Place(start, end, True, self._contrast_of(start, end), self._contrast, since)
        share = float(self._boxes[:, start:end].any(axis=1).mean())
        return Place(start, end, False, share, self._need / self._plates, since)

    def _contrast_of(self, start: int, end: int) -> float:
        """Of the strongest column, what it is on most plates."""
        rows = slice(0, min(self._taken, self._plates))
        contrasts = self._streaks[rows, start:end] * self._scales[rows, None]
        middles = np.sort(contrasts, axis=0)[len(contrasts) // 2]
        return float(middles[int(np.abs(middles).argmax())])
