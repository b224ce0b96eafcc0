"""Labelled tiles: of rendered plates of one product, cut by the same strip, region and grid as in
production, and of scenes, which are plates of any make (`drivers.camera.views`)."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import Frame
from drivers.camera.marks import Mark, random_marks
from drivers.camera.settings import SpecimenSettings
from drivers.camera.specimen import NOMINAL_PITCH_MM, RenderedPlate, Specimen, render, render_belt
from drivers.camera.views import Scene, View, take_view
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
_SKEW_SHARE = 0.8
"""Of the skew that a recipe allows, the most that its plates have."""
_CORE_SHARE = 0.5
"""A defect's pixels are those with at least this share of its peak contrast."""
_PAIRS_OF_SCENE = 3
"""Of a defective and a good tile."""
_BLUR_REACH = 4
"""Standard deviations of the blur, beyond which a mark changes nothing."""
_BELT_LINES = 120
LABEL_COLUMNS = (
    "file", "label", "split", "group", "defect_type", "size_px", "size_mm", "contrast",
)  # fmt: skip
BOX_COLUMNS = ("file", "type", "x0", "y0", "x1", "y1")
_SPLITS = (("train", 0.7), ("val", 0.15), ("test", 0.15))


class SynthesisError(Exception):
    """A rendered plate cannot be cut with this recipe: says why."""


class TileScorer(Protocol):
    """What judges tiles: `models.classifier.Classifier`, for one."""

    def scores(self, tiles: Pixels) -> NDArray[np.float32]:
        """Probability of a defect of each tile, float32 (n,), for tiles uint8 (n, 1, 224, 224)."""


@dataclass(frozen=True, slots=True)
class TileDefect:
    """A defect as a tile shows it."""

    kind: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in px of the tile, ends exclusive."""
    contrast: float
    """Mean change over the box' defective pixels relative to the local brightness, signed."""

    @property
    def size_px(self) -> int:
        """Longer side of the box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class LabelledTile:
    """A tile as the station cuts it, and what it shows."""

    pixels: Pixels
    """uint8 (224, 224)."""
    x_px: int
    y_px: int
    label: int | None
    """0 good, 1 defective, None if a defect only touches it."""
    defects: tuple[TileDefect, ...]
    """Of a defective tile, the plainest first."""
    marks: tuple[int, ...] = ()
    """Of the plate's marks those it shows anything of, by their place in `Specimen.marks`."""

    @property
    def defect_type(self) -> str:
        return self.defects[0].kind if self.defects else ""


class PlateSource:
    """Renders plates of a recipe's size and cuts them. Not for several threads."""

    def __init__(self, recipe: Recipe, pixel_pitch_mm: float, scan_line_px: int) -> None:
        """Raises ValueError as `Geometry.of`."""
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
        settings = self._settings(contrast_scale)
        specimen = self._own(Specimen.random(settings, rng, is_defective, variety))
        if is_defective:
            more = [random_marks(self.size_mm, contrast_scale, rng) for _ in range(crowding - 1)]
            specimen = replace(specimen, marks=sum(more, specimen.marks))
        return self._tiles(specimen, rng)

    def plate_with(self, marks: tuple[Mark, ...], rng: np.random.Generator) -> list[LabelledTile]:
        """All tiles of one plate of the nominal product with these marks, in grid order. Raises
        `SynthesisError`."""
        specimen = self._own(Specimen.random(self._settings(1.0), rng, False))
        return self._tiles(replace(specimen, marks=marks), rng)

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and length of the plates."""
        return self._recipe.plate.width_mm, self._recipe.plate.length_mm

    def _own(self, specimen: Specimen) -> Specimen:
        """With the dots of the recipe, where it declares them, in place of the demonstration
        product's: pitch and diameter scaled, turned, staggered."""
        plate, lattice = self._recipe.plate, specimen.lattice
        if plate.dot_pitch_mm is None or lattice is None:
            return specimen
        scale = plate.dot_pitch_mm / NOMINAL_PITCH_MM
        lattice = replace(
            lattice,
            pitch_mm=lattice.pitch_mm * scale,
            diameter_mm=lattice.diameter_mm * scale,
            is_staggered=lattice.is_staggered != (plate.dot_layout == "staggered"),
            rotation_deg=lattice.rotation_deg + plate.dot_angle_deg,
        )
        return replace(specimen, lattice=lattice)

    def _settings(self, contrast_scale: float) -> SpecimenSettings:
        width_mm, length_mm = self.size_mm
        return SpecimenSettings(
            width_mm=width_mm, length_mm=length_mm, contrast_scale=contrast_scale
        )

    def _tiles(self, specimen: Specimen, rng: np.random.Generator) -> list[LabelledTile]:
        centre_mm, reach_mm, skew_deg = self._placement()
        picture = render(
            specimen,
            self.geometry.pixel_pitch_mm,
            self.geometry.scan_line_px,
            centre_mm + float(rng.uniform(-1, 1)) * reach_mm,
            float(rng.uniform(-1, 1)) * skew_deg,
            rng,
        )
        return list(self._cut(specimen, picture, rng))

    def _placement(self) -> tuple[float, float, float]:
        """Where plates lie: middle from the scan line's, how far they are off it, mm, and askew,
        degrees. As on the simulated belt where the lane has room for that, else in the lane's
        middle."""
        settings, geometry = self._settings(1.0), self.geometry
        skew_deg = min(settings.skew_deg, _SKEW_SHARE * geometry.max_skew_deg)
        skew = math.radians(skew_deg)
        half_mm = (settings.width_mm * math.cos(skew) + settings.length_mm * math.sin(skew)) / 2
        ends_px = np.array([geometry.lane_left_px, geometry.lane_right_px])
        left_mm, right_mm = (ends_px - geometry.scan_line_px / 2) * geometry.pixel_pitch_mm
        reach_mm = settings.lateral_offset_mm
        if left_mm <= -half_mm - reach_mm and half_mm + reach_mm <= right_mm:
            return 0.0, reach_mm, skew_deg
        room_mm = (right_mm - left_mm) / 2 - half_mm
        return float(left_mm + right_mm) / 2, float(np.clip(room_mm, 0, reach_mm)), skew_deg

    def _cut(
        self, specimen: Specimen, picture: RenderedPlate, rng: np.random.Generator
    ) -> Iterator[LabelledTile]:
        first_line, pixels, rows = self._strip(picture.pixels, rng)
        shown = [self._shown(mark, specimen, picture, first_line) for mark in specimen.marks]
        for row in rows:
            for chunk in row.chunks():
                cut_tiles(self.geometry, pixels, row, chunk, self._block, self._batch)
                for x_px, tile in zip(row.x_px[chunk], self._batch, strict=False):
                    inside = [mark.inside(row, x_px) for mark in shown]
                    marks = tuple(number for number, at in enumerate(inside) if len(at))
                    label, defects = _label(list(zip(shown, inside, strict=True)))
                    tile_px = tile[0].copy()
                    yield LabelledTile(tile_px, x_px, row.y_px, label, defects, marks)

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

    def _shown(
        self, mark: Mark, specimen: Specimen, picture: RenderedPlate, first_line: int
    ) -> _ShownMark:
        pitch_mm, blur_mm = self.geometry.pixel_pitch_mm, specimen.lighting.blur_mm
        left, top, right, bottom = _around(mark, picture, blur_mm)

        def to_px(x_mm: float, y_mm: float) -> tuple[float, float]:
            x, y = picture.to_px(x_mm, y_mm)
            return x - left, y - top

        plain = np.ones((bottom - top, right - left), np.float32)
        mark.draw(plain, to_px, pitch_mm, blur_mm)
        is_core = np.abs(plain - 1) >= _CORE_SHARE * abs(mark.contrast)
        at = np.argwhere(is_core) + np.array([top - first_line, left])
        return _ShownMark(mark.kind, at, float((plain[is_core] - 1).mean()) if len(at) else 0.0)


def _around(mark: Mark, picture: RenderedPlate, blur_mm: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in px of the part of a picture that a mark can change, ends exclusive."""
    points = np.array([picture.to_px(x, y) for x, y in mark.path_mm])
    reach_mm = mark.thickness_mm + _BLUR_REACH * blur_mm
    reach = math.ceil(reach_mm / picture.pose.pixel_pitch_mm) + 2
    ends = np.array(picture.pixels.shape[::-1])
    low = np.clip(np.floor(points.min(axis=0)).astype(int) - reach, 0, ends)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + reach, low, ends)
    x0, y0, x1, y1 = (int(value) for value in (*low, *high))
    return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class _ShownMark:
    """Where a mark shows on a plate, and how strongly."""

    kind: str
    at: NDArray[np.int64]
    """(n, 2): scan line of the plate and pixel of the scan line."""
    contrast: float

    def inside(self, row: TileRow, x_px: int) -> NDArray[np.int64]:
        """(n, 2): row and column of the tile's pixels that show the mark."""
        y, x = self.at[:, 0] - row.y_px, self.at[:, 1] - x_px
        is_tile = (y >= 0) & (y < TILE_PX) & (x >= 0) & (x < TILE_PX)
        y, x = y[is_tile], x[is_tile]
        left, right = row.left[y], row.right[y]
        is_region = (left != OUTSIDE) & (x + x_px >= left) & (x + x_px < right)
        return np.stack([y[is_region], x[is_region]], axis=1)


def _label(
    marks: list[tuple[_ShownMark, NDArray[np.int64]]],
) -> tuple[int | None, tuple[TileDefect, ...]]:
    """Label of a tile, and the defects that can be seen in it, most pixels first; `marks` with the
    pixels that it shows of each."""
    shown = sorted(((m, at) for m, at in marks if len(at)), key=lambda one: -len(one[1]))
    if not shown:
        return 0, ()
    seen = [(m, at) for m, at in shown if len(at) >= min(VISIBLE_PX, len(m.at) / 2)]
    defects = tuple(TileDefect(mark.kind, _box(at), mark.contrast) for mark, at in seen)
    return (1, defects) if defects else (None, ())


def _box(at: NDArray[np.int64]) -> tuple[int, int, int, int]:
    (y0, x0), (y1, x1) = at.min(axis=0).tolist(), at.max(axis=0).tolist()
    return x0, y0, x1 + 1, y1 + 1


class TileFolder:
    """Writes `tiles/*.png`, `labels.csv` and `boxes.csv`; a context manager."""

    def __init__(self, root: Path) -> None:
        """Raises OSError if the folder cannot be written."""
        (root / "tiles").mkdir(parents=True, exist_ok=True)
        self.count = 0
        self._root = root
        self._files = [(root / name).open("w", newline="") for name in ("labels.csv", "boxes.csv")]
        self._labels, self._boxes = (csv.writer(file) for file in self._files)
        self._labels.writerow(LABEL_COLUMNS)
        self._boxes.writerow(BOX_COLUMNS)

    def __enter__(self) -> TileFolder:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(
        self, tile: LabelledTile, name: str, split: str, group: str, pixel_pitch_mm: float
    ) -> None:
        """Raises `SynthesisError` if the picture cannot be written."""
        file = f"tiles/{name}.png"
        if not cv2.imwrite(str(self._root / file), tile.pixels):
            raise SynthesisError(f"{self._root / file}: cannot be written")
        figures: tuple[object, ...] = ("", "", "")
        if tile.defects:
            size_px, contrast = tile.defects[0].size_px, tile.defects[0].contrast
            figures = (size_px, f"{size_px * pixel_pitch_mm:.3f}", f"{contrast:.4f}")
        self._labels.writerow([file, tile.label, split, group, tile.defect_type, *figures])
        self._boxes.writerows([file, defect.kind, *defect.box] for defect in tile.defects)
        self.count += 1


def write_plates(
    folder: TileFolder,
    source: PlateSource,
    plates: int,
    seed: int,
    variety: float,
    contrast_scales: tuple[float, float] = CONTRAST_SCALES,
    on_plate: Callable[[], object] = lambda: None,
) -> None:
    """Tiles of `plates` plates of one product.

    Half of the plates are defective. Half are the nominal product, the others differ from it by
    `variety`. Each gives its defective tiles and some good ones.
    """
    for number in range(plates):
        rng = np.random.default_rng((seed, number))
        tiles = _training_plate(source, rng, number, variety, contrast_scales)
        for tile in _balanced(tiles, rng):
            name = f"{number:05d}_{tile.x_px:05d}_{tile.y_px:05d}"
            pitch_mm = source.geometry.pixel_pitch_mm
            folder.add(tile, name, _split(number, plates), f"plate{number:05d}", pitch_mm)
        on_plate()


def write_scenes(
    folder: TileFolder, scenes: int, seed: int, on_scene: Callable[[], object] = lambda: None
) -> None:
    """Tiles of `scenes` plates of any make, about as many good as defective ones."""
    for number in range(scenes):
        rng = np.random.default_rng((seed, number, 1))
        scene = Scene.random(rng)
        for place, tile in enumerate(_scene_tiles(scene, rng)):
            name, group = f"s{number:05d}_{place}", f"scene{number:05d}"
            folder.add(tile, name, _split(number, scenes), group, scene.pixel_pitch_mm)
        on_scene()


def _scene_tiles(scene: Scene, rng: np.random.Generator) -> Iterator[LabelledTile]:
    """A defective and a good tile in turn; neither where no defect can be seen, so that nothing of
    a scene tells its label."""
    for _ in range(_PAIRS_OF_SCENE):
        defective = take_view(scene, rng, is_defective=True)
        good = take_view(scene, rng, is_defective=False)
        if defective and good:
            yield from (_tile_of(defective), _tile_of(good))


def _tile_of(view: View) -> LabelledTile:
    defects = tuple(TileDefect(flaw.kind, flaw.box, flaw.contrast) for flaw in view.flaws)
    return LabelledTile(view.pixels, 0, 0, int(bool(defects)), defects)


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
