"""The active recipe's limit samples beside a plate: what must pass and what must fail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from station.config import ConfigError, Loaded, Recipe
from station.limit_samples import Sample as Listed
from station.limit_samples import SamplesError, load_samples, samples_folder
from station.recipes import active_recipe
from station.web.context import Web
from station.web.errors import not_found
from station.web.pages import WebRouter
from station.web.picture_tiles import PictureTiles
from station.web.plate_model import LimitSample
from station.web.plate_pictures import THUMBNAIL_PX, answer, cache_of
from station.web.stored_pictures import SamplePictures

router = WebRouter()
_SHA256 = re.compile("[0-9a-f]{64}")


def limit_samples(recipe: Loaded[Recipe]) -> list[LimitSample]:
    """What the recipe names, in the order of its list; nothing where that is not to be had."""
    try:
        listed = _listed(recipe)
    except SamplesError:
        return []
    return [
        LimitSample(
            file=one.path.name,
            expected=one.expected,
            picture_url=f"/limit-samples/{quote(one.sha256, safe='')}/thumbnail.jpg",
        )
        for one in listed
    ]


@router.data("/limit-samples/{sha256}/thumbnail.jpg", media_type="image/jpeg")
def limit_sample_thumbnail(request: Request, web: Web, sha256: str) -> Response:
    """A limit sample of the active recipe, made small: by its content, never by path."""
    try:
        listed = _listed(active_recipe(web.configuration.value))
    except (ConfigError, SamplesError) as error:
        raise not_found() from error
    path = next((one.path for one in listed if one.sha256 == sha256), None)
    if path is None or not _SHA256.fullmatch(sha256):
        raise not_found()
    pictures, tiles = _tiles(path.parent, *cache_of(web))

    def make() -> bytes:
        return tiles.thumbnail(pictures.image(sha256, path.name), THUMBNAIL_PX)

    return answer(request, f"{sha256}-thumbnail", make, "image/jpeg")


def _listed(recipe: Loaded[Recipe]) -> Sequence[Listed]:
    return () if samples_folder(recipe) is None else load_samples(recipe)[1]


@lru_cache(maxsize=1)
def _tiles(folder: Path, cache: Path, most_bytes: int) -> tuple[SamplePictures, PictureTiles]:
    pictures = SamplePictures(folder)
    return pictures, PictureTiles(pictures, cache, most_bytes)
