"""The frozen specimen set: the same tiles for every network and baseline that is compared.

Plates of mildly different products (`variety` 0.3): were they all of one, its lattice could be
learned by heart from 205 tiles, and were they of any make, 205 tiles could not show what a good
one is. Defects are as large as the belt's (`drivers.camera.marks`); their contrast was set so that
hand-made features with logistic regression, fitted to the training tiles, classify 87 % of the test
tiles correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from station.config import load_recipe
from station.synthesize import LabelledTile, PlateSource, TileFolder


@dataclass(frozen=True, slots=True)
class SpecimenSet:
    """What makes the set: change nothing of it without a new hash and new figures."""

    seed: int
    contrast_scale: float
    """Of the belt's defects."""
    variety: float
    recipe: str
    pixel_pitch_mm: float
    scan_line_px: int
    tiles: tuple[tuple[str, int, int], ...]
    """Split, good tiles, defective tiles."""
    tiles_of_plate: int
    """At most, of each label."""
    sha256: str
    """Of the written folder (`models.training.data.data_sha256`) on x86-64 with AVX-512. Another
    processor may round a few pixels to the next level: there only the labels are the same."""


SPECIMEN_SET = SpecimenSet(
    seed=20_261_125,
    contrast_scale=4.3,
    variety=0.3,
    recipe="shipped:demo-lgp",
    pixel_pitch_mm=0.1,
    scan_line_px=4096,
    tiles=(("train", 102, 103), ("test", 400, 400)),
    tiles_of_plate=3,
    sha256="cdc6f3ede66414912dcb022290746cef22a2f81aa66440aff5ae24e5ba08ffab",
)


def write_specimen_set(
    folder: TileFolder,
    spec: SpecimenSet = SPECIMEN_SET,
    on_plate: Callable[[], object] = lambda: None,
) -> None:
    """Write the set. Every plate has its own group; no plate is in two splits."""
    source = PlateSource(load_recipe(spec.recipe).value, spec.pixel_pitch_mm, spec.scan_line_px)
    plates = specimen_plates(source, spec)
    for split, *counts in spec.tiles:
        left = list(counts)
        while any(left):
            number, tiles = next(plates)
            for tile in tiles:
                assert tile.label is not None
                if left[tile.label]:
                    left[tile.label] -= 1
                    name = f"{number:05d}_{tile.x_px:05d}_{tile.y_px:05d}"
                    folder.add(tile, name, split, f"plate{number:05d}", spec.pixel_pitch_mm)
            on_plate()


def specimen_plates(
    source: PlateSource, spec: SpecimenSet
) -> Iterator[tuple[int, list[LabelledTile]]]:
    """Number and chosen tiles of each plate, without end."""
    number = 0
    while True:
        rng = np.random.default_rng((spec.seed, number))
        tiles = source.plate(rng, True, spec.variety, spec.contrast_scale)
        chosen: list[LabelledTile] = []
        for label in (0, 1):
            of_label = [tile for tile in tiles if tile.label == label]
            count = min(spec.tiles_of_plate, len(of_label))
            chosen += [of_label[i] for i in sorted(rng.choice(len(of_label), count, replace=False))]
        yield number, chosen
        number += 1
