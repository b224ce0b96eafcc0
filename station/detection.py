"""Probability of detection on rendered plates: many defects of known kind, size and contrast.

Either the size or the contrast of a defect is drawn, the other is what its kind usually has: one
curve of both logarithms would not fit, because a defect that is too faint is not found at any size.
Defects lie so far apart that no tile shows two. Kinds are mixed on every plate, so that none hangs
on the light of a few. A defect is hit if a tile that shows it scores above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drivers.camera.marks import DEFECT_INSET_MM, Mark, Points, random_marks
from models.training.pod import Detection
from station.synthesize import PlateSource, TileScorer
from station.tiling import TILE_PX

Property = Literal["size_mm", "contrast"]
PROPERTIES: tuple[Property, ...] = ("size_mm", "contrast")

SIZES = (0.1, 3.0)
CONTRASTS = (0.2, 3.0)
"""From surely missed to surely seen, relative to the kind's nominal size and contrast."""
LEAST_MM = 0.2
"""Below two pixels the blur, not the defect, sets how large it looks."""
_MARKS_OF_PLATE = 40
_TRIES = 100
_BELT_MARKS = 2000
_BELT_MM = (300.0, 300.0)
_SLACK_MM = 1.0
_SKEW_SHARE = 0.05
"""By so much more than a tile two defects lie apart, for plates up to 2.9 degrees askew."""
_LEAST_SHARE = 0.1
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Nominal:
    """Median size and absolute contrast of a kind on the belt."""

    size_mm: float
    contrast: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One defect, and whether it was found."""

    kind: str
    size_mm: float
    """Longer side."""
    contrast: float
    """Absolute."""
    varied: Property
    """What was drawn; the other is the kind's usual one."""
    is_hit: bool


@cache
def nominal_defects() -> dict[str, Nominal]:
    """What the defects of each kind usually are on the simulated belt."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Mark]] = {}
    for _ in range(_BELT_MARKS):
        for mark in random_marks(_BELT_MM, 1.0, rng):
            found.setdefault(kind_of(mark), []).append(mark)
    return {
        kind: Nominal(
            float(np.median([size_of(mark) for mark in marks])),
            float(np.median([abs(mark.contrast) for mark in marks])),
        )
        for kind, marks in sorted(found.items())
    }


def kind_of(mark: Mark) -> str:
    """A mark's kind. Fibres and specks are impurities, but not as hard to see at the same size: one
    curve would fit neither."""
    if mark.kind != "impurity":
        return mark.kind
    return "impurity: fibre" if mark.thickness_mm else "impurity: speck"


def size_of(mark: Mark) -> float:
    """Longer side of a mark's box, in mm."""
    return max(mark.truth.width_mm, mark.truth.height_mm)


def try_plates(
    source: PlateSource, scorer: TileScorer, threshold: float, plates: int, seed: int
) -> Iterator[list[Trial]]:
    """The trials of each of `plates` plates. Raises ValueError if the plate is too small for a
    defect, `SynthesisError`."""
    for number in range(plates):
        rng = np.random.default_rng((seed, number))
        drawn = spaced_marks(source, rng)
        marks = tuple(mark for mark, _ in drawn)
        tiles = [tile for tile in source.plate_with(marks, rng) if tile.marks]
        scores = scorer.scores(np.stack([tile.pixels for tile in tiles])[:, None])
        failing = zip(tiles, scores > threshold, strict=True)
        hit = {mark for tile, fails in failing if fails for mark in tile.marks}
        yield [
            Trial(kind_of(mark), size_of(mark), abs(mark.contrast), varied, place in hit)
            for place, (mark, varied) in enumerate(drawn)
        ]


def fit(trials: Sequence[Trial], kind: str, varied: Property) -> Detection:
    """The trials of a kind in which one property was drawn."""
    some = [trial for trial in trials if (trial.kind, trial.varied) == (kind, varied)]
    values = [trial.size_mm if varied == "size_mm" else trial.contrast for trial in some]
    return Detection(np.array(values), np.array([trial.is_hit for trial in some]))


def spaced_marks(
    source: PlateSource, rng: np.random.Generator
) -> tuple[tuple[Mark, Property], ...]:
    """Marks of all kinds in turn and what was drawn of each, log-uniform; no two of them near
    enough for one tile. Raises ValueError if the plate is too small for one."""
    turns = [(kind, varied) for kind in nominal_defects() for varied in PROPERTIES]
    first = int(rng.integers(len(turns)))
    gap_mm = TILE_PX * source.geometry.pixel_pitch_mm * (1 + _SKEW_SHARE) + _SLACK_MM
    placed: list[tuple[Mark, Property]] = []
    boxes = np.empty((0, 2, 2))
    for number in range(_MARKS_OF_PLATE):
        kind, varied = turns[(first + number) % len(turns)]
        mark = _drawn(kind, varied, source.size_mm, rng)
        box_mm = np.array([mark.truth.width_mm, mark.truth.height_mm])
        centre = _free_centre(box_mm, source.size_mm, boxes, gap_mm, rng)
        if centre is not None:
            placed.append((_moved(mark, centre), varied))
            boxes = np.concatenate([boxes, [[centre, box_mm]]])
    if not placed:
        width_mm, length_mm = source.size_mm
        raise ValueError(f"a plate of {width_mm:g} x {length_mm:g} mm is too small for its defects")
    return tuple(placed)


def _drawn(
    kind: str, varied: Property, plate_mm: tuple[float, float], rng: np.random.Generator
) -> Mark:
    """A mark of the belt's with another size and contrast; strokes keep their thickness."""
    mark = next(m for m in _belt_marks(plate_mm, rng) if kind_of(m) == kind)
    nominal = nominal_defects()[kind]
    size_mm, contrast = nominal.size_mm, nominal.contrast
    if varied == "size_mm":
        size_mm = _log_uniform(rng, max(SIZES[0] * size_mm, LEAST_MM), SIZES[1] * size_mm)
    else:
        contrast *= _log_uniform(rng, *CONTRASTS)
    path = np.array(mark.path_mm)
    middle, span_mm = path.mean(axis=0), float(np.ptp(path, axis=0).max())
    wanted_mm = max(size_mm - mark.thickness_mm, _LEAST_SHARE * size_mm)
    path = middle + (path - middle) * (wanted_mm / span_mm)
    return replace(mark, path_mm=_points(path), contrast=math.copysign(contrast, mark.contrast))


def _belt_marks(plate_mm: tuple[float, float], rng: np.random.Generator) -> Iterator[Mark]:
    while True:
        yield from random_marks(plate_mm, 1.0, rng)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(float(rng.uniform(math.log(low), math.log(high))))


def _free_centre(
    box_mm: Floats,
    plate_mm: tuple[float, float],
    boxes: Floats,
    gap_mm: float,
    rng: np.random.Generator,
) -> Floats | None:
    """A random place (x, y) well inside the plate and `gap_mm` from all boxes, crossweb or downweb;
    None if none is found. `boxes` is (n, 2, 2): centre and size."""
    room_mm = np.array(plate_mm) - 2 * DEFECT_INSET_MM - box_mm
    if (room_mm <= 0).any():
        return None
    centres = DEFECT_INSET_MM + box_mm / 2 + rng.uniform(0, 1, (_TRIES, 2)) * room_mm
    gaps = np.abs(centres[:, None] - boxes[:, 0]) - (box_mm + boxes[:, 1]) / 2
    is_free = (gaps.max(axis=2) >= gap_mm).all(axis=1)
    return centres[int(is_free.argmax())] if is_free.any() else None


def _moved(mark: Mark, centre: Floats) -> Mark:
    path = np.array(mark.path_mm) - (mark.truth.x_mm, mark.truth.y_mm) + centre
    return replace(mark, path_mm=_points(path))


def _points(path: Floats) -> Points:
    return tuple((float(x), float(y)) for x, y in path)
