"""Labelled tiles from rendered plates, cut by the same strip, region and grid as in production."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import Frame
from drivers.camera.marks import Mark, random_marks
from drivers.camera.settings import SpecimenSettings
from drivers.camera.specimen import RenderedPlate, Specimen, render, render_belt
from models.classifier import Classifier
from station.config import Recipe
from station.strip import PlateClosed, StripCutter, TileRowReady, buffer_lines, outline_problem
from station.tiling import CHUNK_TILES, OUTSIDE, TILE_PX, Geometry, TileRow, cut_tiles

Pixels = NDArray[np.uint8]

CONTRAST_SCALES = (0.9, 2.0)
"""Defects from a little fainter than the belt's to plain ones: the plain ones are learned first."""
CROWDING = 5
"""Training plates carry so many times the belt's defects: rendering is what costs."""
_GOOD_OF_GOOD = 12
"""Tiles taken of a plate without defects; of others half as many good ones as defective."""
VISIBLE_PX = 30
"""A tile is defective if it shows so many pixels of a defect, or half of a smaller one."""
_CORE_SHARE = 0.5
"""A defect's pixels are those with at least this share of its peak contrast."""
_BELT_LINES = 120
_SPLITS = (("train", 0.7), ("val", 0.15), ("test", 0.15))


class SynthesisError(Exception):
    """A rendered plate cannot be cut with this recipe: says why."""


@dataclass(frozen=True, slots=True)
class LabelledTile:
    """A tile as the station cuts it, and what it shows."""

    pixels: Pixels
    """uint8 (224, 224)."""
    x_px: int
    y_px: int
    label: int | None
    """0 good, 1 defective, None if a defect only touches it."""
    defect_type: str


class PlateSource:
    """Renders plates of a recipe's size and cuts them. Not for several threads."""

    def __init__(self, recipe: Recipe, pixel_pitch_mm: float, scan_line_px: int) -> None:
        """Raises ValueError if the lane does not fit in the scan line."""
        self.geometry = Geometry.of(recipe, pixel_pitch_mm, scan_line_px)
        self._recipe = recipe
        self._buffer = np.empty((buffer_lines(self.geometry), scan_line_px), np.uint8)
        self._batch = np.empty((CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
        self._block = np.empty((TILE_PX, self.geometry.block_px), np.uint8)

    def plate(
        self,
        rng: np.random.Generator,
        is_defective: bool,
        variety: float,
        contrast_scale: float,
        crowding: int = 1,
    ) -> list[LabelledTile]:
        """All tiles of one random plate, in grid order; a defective one has `crowding` times the
        belt's defects. Raises `SynthesisError`."""
        size = self._recipe.plate
        settings = SpecimenSettings(
            width_mm=size.width_mm, length_mm=size.length_mm, contrast_scale=contrast_scale
        )
        specimen = Specimen.random(settings, rng, is_defective, variety)
        if is_defective:
            size_mm = (size.width_mm, size.length_mm)
            more = [random_marks(size_mm, contrast_scale, rng) for _ in range(crowding - 1)]
            specimen = replace(specimen, marks=sum(more, specimen.marks))
        picture = render(
            specimen,
            self.geometry.pixel_pitch_mm,
            self.geometry.scan_line_px,
            float(rng.uniform(-1, 1)) * settings.lateral_offset_mm,
            float(rng.uniform(-1, 1)) * settings.skew_deg,
            rng,
        )
        return list(self._cut(specimen, picture, rng))

    def _cut(
        self, specimen: Specimen, picture: RenderedPlate, rng: np.random.Generator
    ) -> Iterator[LabelledTile]:
        first_line, pixels, rows = self._strip(picture.pixels, rng)
        shown = [self._pixels_of(mark, specimen, picture, first_line) for mark in specimen.marks]
        kinds = [mark.kind for mark in specimen.marks]
        for row in rows:
            for chunk in row.chunks():
                cut_tiles(self.geometry, pixels, row, chunk, self._block, self._batch)
                for x_px, tile in zip(row.x_px[chunk], self._batch, strict=False):
                    label, kind = _label(shown, kinds, row, x_px)
                    yield LabelledTile(tile[0].copy(), x_px, row.y_px, label, kind)

    def _strip(
        self, picture: Pixels, rng: np.random.Generator
    ) -> tuple[int, Pixels, list[TileRow]]:
        """The plate as the station's strip finds it: its first scan line in the picture, its
        pixels, its tile rows."""
        width = self.geometry.scan_line_px
        lines = max(_BELT_LINES, 2 * self.geometry.min_gap_px)
        before, after = render_belt(lines, width, rng), render_belt(lines, width, rng)
        strip = np.concatenate([before, picture, after])
        cutter = StripCutter(self.geometry, len(strip), lambda: self._buffer, is_height_fixed=False)
        events = cutter.feed(Frame(strip, width, 0, 0, encoder_value=0))
        rows = [event.row for event in events if isinstance(event, TileRowReady)]
        closed = [event for event in events if isinstance(event, PlateClosed)]
        if len(closed) != 1:
            raise SynthesisError(f"the strip found {len(closed)} plates in one plate's picture")
        plate = closed[0].plate
        problem, detail = outline_problem(plate, self.geometry)
        if problem or closed[0].reason:
            raise SynthesisError(f"{problem or closed[0].reason}: {detail or closed[0].detail}")
        assert plate.pixels is not None
        return (plate.encoder_value or 0) - lines, plate.pixels[: plate.lines], rows

    def _pixels_of(
        self, mark: Mark, specimen: Specimen, picture: RenderedPlate, first_line: int
    ) -> NDArray[np.int64]:
        """Where a mark shows: (n, 2), scan line of the plate and pixel of the scan line."""
        plain = np.ones(picture.pixels.shape, np.float32)
        mark.draw(plain, picture.to_px, self.geometry.pixel_pitch_mm, specimen.lighting.blur_mm)
        change = np.abs(plain - 1)
        shown = np.argwhere(change >= _CORE_SHARE * abs(mark.contrast))
        return shown - (first_line, 0)


def _label(
    shown: list[NDArray[np.int64]], kinds: list[str], row: TileRow, x_px: int
) -> tuple[int | None, str]:
    """What a tile shows of the marks: label and the kind that shows most."""
    amounts = [_visible_px(pixels, row, x_px) for pixels in shown]
    if not any(amounts):
        return 0, ""
    most = int(np.argmax(amounts))
    is_visible = any(
        amount >= min(VISIBLE_PX, len(pixels) / 2)
        for amount, pixels in zip(amounts, shown, strict=True)
    )
    return (1, kinds[most]) if is_visible else (None, "")


def _visible_px(pixels: NDArray[np.int64], row: TileRow, x_px: int) -> int:
    y, x = pixels[:, 0] - row.y_px, pixels[:, 1] - x_px
    inside = (y >= 0) & (y < TILE_PX) & (x >= 0) & (x < TILE_PX)
    y, at = y[inside], pixels[inside, 1]
    in_region = (row.left[y] != OUTSIDE) & (at >= row.left[y]) & (at < row.right[y])
    return int(np.count_nonzero(in_region))


def synthesize(
    source: PlateSource,
    out: Path,
    plates: int,
    seed: int,
    variety: float,
    contrast_scales: tuple[float, float] = CONTRAST_SCALES,
    on_plate: Callable[[], object] = lambda: None,
) -> int:
    """Write `tiles/*.png` and `labels.csv` of `plates` plates; how many tiles they are.

    Half of the plates are defective. Half are the nominal product, the others differ from it by
    `variety`. Each gives its defective tiles and some good ones.
    """
    (out / "tiles").mkdir(parents=True, exist_ok=True)
    count = 0
    with (out / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group", "defect_type"])
        for number in range(plates):
            rng = np.random.default_rng((seed, number))
            tiles = _training_plate(source, rng, number, variety, contrast_scales)
            for tile in _balanced(tiles, rng):
                name = f"tiles/{number:05d}_{tile.x_px:05d}_{tile.y_px:05d}.png"
                if not cv2.imwrite(str(out / name), tile.pixels):
                    raise SynthesisError(f"{out / name}: cannot be written")
                split = _split(number, plates)
                table.writerow([name, tile.label, split, f"plate{number:05d}", tile.defect_type])
                count += 1
            on_plate()
    return count


def _training_plate(
    source: PlateSource,
    rng: np.random.Generator,
    number: int,
    variety: float,
    contrast_scales: tuple[float, float],
) -> list[LabelledTile]:
    own_variety = variety if number % 4 >= 2 else 0.0
    contrast_scale = float(rng.uniform(*contrast_scales))
    return source.plate(rng, number % 2 == 1, own_variety, contrast_scale, CROWDING)


def _balanced(tiles: list[LabelledTile], rng: np.random.Generator) -> list[LabelledTile]:
    """All defective tiles of a plate and some good ones."""
    bad = [tile for tile in tiles if tile.label == 1]
    good = [tile for tile in tiles if tile.label == 0]
    wanted = min(len(good), max(_GOOD_OF_GOOD, round(len(bad) / 2)))
    chosen = rng.choice(len(good), wanted, replace=False)
    return bad + [good[i] for i in sorted(chosen)]


def _split(number: int, plates: int) -> str:
    """The first plates train, the next validate, the last test."""
    place, end = number / plates, 0.0
    for split, share in _SPLITS:
        end += share
        if place < end:
            return split
    return _SPLITS[-1][0]


@dataclass(frozen=True, slots=True)
class PlateScore:
    """A fresh plate and its highest tile score."""

    plate: int
    is_defective: bool
    score: float
    tiles: int
    kinds: tuple[str, ...]


def score_plates(
    source: PlateSource, classifier: Classifier, plates: int, seed: int, contrast_scale: float = 1.0
) -> Iterator[PlateScore]:
    """Score whole plates of the nominal product, every other one defective."""
    for number in range(plates):
        rng = np.random.default_rng((seed, number))
        is_defective = number % 2 == 1
        tiles = source.plate(rng, is_defective, 0.0, contrast_scale)
        scores = classifier.scores(np.stack([tile.pixels for tile in tiles])[:, None])
        kinds = tuple(sorted({tile.defect_type for tile in tiles} - {""}))
        yield PlateScore(number, is_defective, float(scores.max()), len(tiles), kinds)
