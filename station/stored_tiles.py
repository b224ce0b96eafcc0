"""Stored plates read back: a kept picture proved by its sha256, and the tiles that were scored of
it, cut as they were cut live."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from station.config import ConfigError, Configuration, Loaded, Recipe, load_recipe
from station.log_reader import Reader
from station.offline import cut_picture
from station.product import geometry_of
from station.recipes import RecipeFolder, active_recipe, register
from station.strip import PlateOpened, TileRowReady
from station.tiling import CHUNK_TILES, TILE_PX, Geometry, cut_tiles

Pixels = NDArray[np.uint8]
Place = tuple[int, int]
"""x_px, y_px of a tile on the plate's picture."""


class NotStored(ValueError):
    """A plate cannot be had again; the message says why, the same for all plates of one cause."""


@dataclass(frozen=True, slots=True)
class ScoredTile:
    """A tile as its record has it."""

    x_px: int
    y_px: int
    score: float


def scored_tiles(result: Mapping[str, Any]) -> list[ScoredTile]:
    """The tiles of a result's row, in grid order."""
    places = np.frombuffer(base64.b64decode(result.get("tile_grid") or ""), "<u2").reshape(-1, 2)
    scores = np.frombuffer(base64.b64decode(result.get("tile_scores") or ""), "<f4")
    return [
        ScoredTile(int(x), int(y), float(score))
        for (x, y), score in zip(places, scores, strict=True)
    ]


def evidence_picture(reader: Reader, result: Mapping[str, Any]) -> Pixels:
    """The whole plate, uint8 (scan lines, scan line pixels): the very file and pixels of its
    record, and no rule has removed them. Raises `NotStored`."""
    kept = _evidence(result)
    if reader.is_removed(result["result_id"], kept["path"]):
        raise NotStored("picture removed by a rule")
    return proved_picture(reader.images, result)


def proved_picture(images: Path, result: Mapping[str, Any]) -> Pixels:
    """The same for whoever has no log to ask for removals."""
    kept = _evidence(result)
    try:
        data = (images / kept["path"]).read_bytes()
    except OSError as error:
        raise NotStored("picture cannot be read") from error
    if hashlib.sha256(data).hexdigest() != kept["sha256"]:
        raise NotStored("picture is not the recorded one")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 2 or picture.dtype != np.uint8:
        raise NotStored("picture is no grey picture of 8 bits")
    if hashlib.sha256(picture.tobytes()).hexdigest() != result.get("pixels_sha256"):
        raise NotStored("picture is not the recorded one")
    return np.ascontiguousarray(picture, np.uint8)


def _evidence(result: Mapping[str, Any]) -> Mapping[str, Any]:
    images = result.get("images") or ()
    for kept in images:
        if kept["role"] == "evidence":
            return dict(kept)
    raise NotStored("preview only" if images else "no picture was kept")


def picture_of(images: Path, result: Mapping[str, Any]) -> tuple[str, Path | None]:
    """What of a plate is kept and lies there, `whole`, `preview` or `none`, and the smaller file;
    not proved: for a look, not for evidence."""
    kept = {one["role"]: images / one["path"] for one in result.get("images") or ()}
    there = {role: path for role, path in kept.items() if path.is_file()}
    what = "whole" if "evidence" in there else "preview" if there else "none"
    return what, there.get("preview") or there.get("evidence")


class RecipeBook:
    """Every version of a recipe that this station can read, by the sha256 of its file."""

    def __init__(self, configuration: Configuration, reader: Reader) -> None:
        self._configuration = configuration
        self._versions = register(reader.recipe_changes()).versions
        self._loaded: dict[str, Loaded[Recipe] | NotStored] = {}

    def of(self, sha256: str) -> Loaded[Recipe]:
        """Raises `NotStored` if no file of this sha256 is at hand."""
        if sha256 not in self._loaded:
            try:
                self._loaded[sha256] = self._load(sha256)
            except NotStored as error:
                self._loaded[sha256] = error
        found = self._loaded[sha256]
        if isinstance(found, NotStored):
            raise found
        return found

    def _load(self, sha256: str) -> Loaded[Recipe]:
        named = [version for version in self._versions.values() if version.sha256 == sha256]
        try:
            if named:
                return RecipeFolder.of(self._configuration).load(named[0].name, sha256)
            for recipe in self._configured():
                if recipe.sha256 == sha256:
                    return recipe
        except ConfigError as error:
            raise NotStored(str(error)) from error
        raise NotStored(f"the recipe that judged it (sha256 {sha256[:12]}) is not at hand any more")

    def _configured(self) -> list[Loaded[Recipe]]:
        return [
            active_recipe(self._configuration),
            load_recipe(self._configuration.station.recipe),
        ]


def cut_stored(
    result: Mapping[str, Any],
    picture: Pixels,
    recipe: Loaded[Recipe],
    pixel_pitch_mm: float,
    wanted: Collection[Place],
) -> dict[Place, Pixels]:
    """The wanted tiles of a plate, uint8 (224, 224), as the network saw them. Raises `NotStored`
    if the picture does not give the record's tiles again."""
    try:
        geometry = geometry_of(recipe, pixel_pitch_mm, picture.shape[1])
    except ConfigError as error:
        raise NotStored(str(error)) from error
    found: dict[Place, Pixels] = {}
    places: list[Place] = []
    for event in cut_picture(picture, geometry):
        if isinstance(event, TileRowReady):
            places += [(x, event.row.y_px) for x in event.row.x_px]
            found |= _row_tiles(geometry, event, wanted)
        elif isinstance(event, PlateOpened) and places:
            raise NotStored("its picture shows more than one plate")
    recorded = [(tile.x_px, tile.y_px) for tile in scored_tiles(result)]
    if sorted(places) != sorted(recorded):
        raise NotStored(
            f"its picture gives {len(places)} tiles, its record has {len(recorded)}, not in the "
            "same places: another pixel pitch or lane than today's?"
        )
    return found


def _row_tiles(
    geometry: Geometry, event: TileRowReady, wanted: Collection[Place]
) -> dict[Place, Pixels]:
    row, pixels = event.row, event.plate.pixels
    assert pixels is not None
    block = np.empty((TILE_PX, geometry.block_px), np.uint8)
    batch = np.empty((CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
    found: dict[Place, Pixels] = {}
    for chunk in row.chunks():
        places = [(x, row.y_px) for x in row.x_px[chunk]]
        if not any(place in wanted for place in places):
            continue
        cut_tiles(geometry, pixels, row, chunk, block, batch)
        found |= {p: batch[n, 0].copy() for n, p in enumerate(places) if p in wanted}
    return found
