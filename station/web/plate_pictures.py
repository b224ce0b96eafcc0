"""Pictures of plates for the page: whole, in tiles, in parts; by result and role, never by path."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from models.card import ModelError, read_card
from models.registry import shipped_model
from station.config import ConfigError, load_recipe
from station.model_store import ModelStore
from station.qms import IMAGES, Json
from station.record import ImageBody
from station.roles import Person
from station.web.blind import is_blind_of
from station.web.context import Web
from station.web.errors import PageError, not_found
from station.web.pages import WebRouter
from station.web.picture_tiles import (
    CACHE_BYTES,
    FORMAT,
    MOST_CROP_PX,
    BusyError,
    LocalContrast,
    NoSuchTileError,
    PictureTiles,
)
from station.web.plate_log import PlateRows, found_plate, seen_plate, tile_scores
from station.web.plate_place import pixels_per_pixel
from station.web.stored_pictures import Bounded, PictureError, StoredPictures, Trouble

router = WebRouter()
T = TypeVar("T")
ROLES = ("evidence", "preview")
"""Best first."""
Role = Literal["evidence", "preview"]
View = Literal["recorded", "contrast"]
_FURTHEST_PX = 10**6
PlacePx = Annotated[int, Query(ge=-_FURTHEST_PX, le=_FURTHEST_PX)]
_ASKED_AGAIN = "private, no-cache"
"""A browser keeps a picture, but asks each time: a result's id says nothing of a log that was begun
anew under the same station's name, nor of pictures that were removed since."""
_STATUS = {
    Trouble.NOT_KEPT: 404,
    Trouble.MISSING: 404,
    Trouble.REMOVED: 410,
    Trouble.ALTERED: 409,
    Trouble.UNREADABLE: 422,
}
_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
_OVERVIEW_PX = 1024
_MOST_SHOWN_PX = 512
THUMBNAIL_PX = 240
"""Twice what is shown, for screens with small pixels."""
_CHUNK_BYTES = 2**18
_RECENT_S = 5.0
"""A screen is forty tiles: the log is asked once for all of them."""
_RECENT: Bounded[tuple[Path, str], tuple[float, PlateRows]] = Bounded(64, lambda _: 1)
_CACHE_SHARE = 0.1
"""Of its disk, at most: it may be one that lives in memory."""


@router.data("/plates/{result_id}/pictures/{role}", media_type="image/png")
def picture(request: Request, web: Web, person: Person, result_id: str, role: Role) -> Response:
    """A picture as it was recorded, byte for byte."""
    found = _found(web, result_id, role, person)
    image = _image(found, role)
    if (unchanged := _unchanged(request, image.sha256)) is not None:
        return unchanged
    file = _served(lambda: shown_picture(web, found, role))
    suffix = image.path.rsplit(".", 1)[-1]
    headers = _headers(image.sha256) | {
        "content-length": str(image.bytes),
        "content-disposition": f'inline; filename="{image.sha256[:16]}.{suffix}"',
    }
    return StreamingResponse(_chunks(file), media_type=_MEDIA_TYPES[suffix], headers=headers)


@router.data(
    "/plates/{result_id}/tiles/{role}/{view}/{level}/{column}/{row}", media_type="image/png"
)
def tile(
    request: Request,
    web: Web,
    person: Person,
    result_id: str,
    role: Role,
    view: View,
    level: int,
    column: int,
    row: int,
) -> Response:
    """A square of 256 px of the picture, at a power of two of its size."""
    found = _found(web, result_id, role, person)
    image, front_end = _image(found, role), _front_end(web, found, view)
    etag = f"{image.sha256}-{_view_name(front_end)}-{level}-{column}-{row}"
    tiles = tiles_of(web)
    return _answer(
        request, web, found, role, etag, lambda: tiles.tile(image, front_end, level, column, row)
    )


@router.data("/plates/{result_id}/overview/{role}/{view}", media_type="image/png")
def overview(
    request: Request, web: Web, person: Person, result_id: str, role: Role, view: View
) -> Response:
    """The whole picture, made small."""
    found = _found(web, result_id, role, person)
    image, front_end = _image(found, role), _front_end(web, found, view)
    etag = f"{image.sha256}-{_view_name(front_end)}-overview"
    tiles = tiles_of(web)
    return _answer(
        request,
        web,
        found,
        role,
        etag,
        lambda: tiles.overview(image, front_end, _OVERVIEW_PX)[0],
    )


@router.data("/plates/{result_id}/crops/{role}/{view}", media_type="image/png")
def crop(
    request: Request,
    web: Web,
    person: Person,
    result_id: str,
    role: Role,
    view: View,
    x_px: PlacePx,
    y_px: PlacePx,
    side_px: Annotated[int, Query(ge=1, le=_FURTHEST_PX)],
) -> Response:
    """A square of the plate, its left leading corner and side in px of the plate."""
    found = _found(web, result_id, role, person)
    image, front_end = _image(found, role), _front_end(web, found, view)
    box = _box(found, image, x_px, y_px, side_px)
    etag = f"{image.sha256}-{_view_name(front_end)}-crop-{'-'.join(map(str, box))}"
    make = partial(tiles_of(web).crop, image, front_end, box, _MOST_SHOWN_PX)
    return _answer(request, web, found, role, etag, make)


@router.data("/plates/{result_id}/thumbnail.jpg", media_type="image/jpeg")
def thumbnail(request: Request, web: Web, person: Person, result_id: str) -> Response:
    """A small picture of a plate: of the one that is the least work. Who is to judge blind sees
    the one that is kept whatever the verdict."""
    with web.reader() as reader:
        found = found_plate(reader, result_id)
    roles = ROLES[:1] if is_blind_of(found.all, person) else ROLES[::-1]
    named = [role for role in roles if role in found.images]
    kept = [role for role in named if found.tombstone(found.images[role]) is None]
    role = next(iter(kept or named), "")
    image = _image(found, role)
    make = partial(tiles_of(web).thumbnail, image, THUMBNAIL_PX)
    etag = f"{image.sha256}-thumbnail"
    return _answer(request, web, found, role, etag, make, "image/jpeg")


@router.data("/plates/{result_id}/tile-scores", media_type="application/json")
def scores(web: Web, person: Person, result_id: str) -> Response:
    """What the network said of each tile; a score that is no number is text (`NaN`)."""
    with web.reader() as reader:
        result = seen_plate(reader, result_id, person).result
    found = tile_scores(result)
    return JSONResponse(
        {
            "threshold": result["threshold"],
            "step_px": found.step_px,
            "x_px": found.places[:, 0].tolist(),
            "y_px": found.places[:, 1].tolist(),
            "score": [_as_json(one) for one in found.scores.tolist()],
        }
    )


def _as_json(score: float) -> float | str:
    return score if math.isfinite(score) else json.dumps(score)


# --- looking up -----------------------------------------------------------------------------------


def _found(web: Web, result_id: str, role: Role, person: Person) -> PlateRows:
    """The plate's rows. Which pictures but the whole one were kept depends on the verdict: who is
    to judge blind gets no other. Raises `PageError`."""
    key = (web.configuration.value.journal.directory, result_id)
    now, recent = time.monotonic(), _RECENT.get(key)
    if role == "evidence" and recent is not None and now < recent[0]:
        return recent[1]
    with web.reader() as reader:
        found = found_plate(reader, result_id)
        if role != "evidence" and is_blind_of(found.all, person):
            raise PageError(403, "plate.blind_hidden")
    _RECENT.put(key, (now + _RECENT_S, found))
    return found


def _image(found: PlateRows, role: str) -> ImageBody:
    """Raises `PageError` for one that was not kept or is removed."""
    image = found.images.get(role)
    if image is None:
        raise _as_page_error(PictureError(Trouble.NOT_KEPT, ""))
    if (removed := _removed(found, image)) is not None:
        raise _as_page_error(removed)
    return image


def _removed(found: PlateRows, image: ImageBody) -> PictureError | None:
    stone = found.tombstone(image)
    return None if stone is None else PictureError(Trouble.REMOVED, str(stone["why"]))


def shown_picture(web: Web, found: PlateRows, role: str) -> BinaryIO:
    """The file of a plate's picture, held against the record. Raises `PictureError`."""
    image = found.images[role]
    if (removed := _removed(found, image)) is not None:
        raise removed
    return tiles_of(web).pictures.open(image)


def _front_end(web: Web, found: PlateRows, view: View) -> LocalContrast | None:
    if view == "recorded":
        return None
    front_end = front_end_of(web, found.result)
    if front_end is None:
        raise not_found("plate.contrast_unknown")
    return front_end


def front_end_of(web: Web, result: Json) -> LocalContrast | None:
    """What the plate's network sees of it; None where its card is not here, or where it sees the
    grey levels as they are."""
    settings = web.configuration.value
    constants = _constants(
        result["model_id"], result["model_sha256"], settings.station.recipe, settings.model_dir
    )
    if constants is None:
        return None
    cell_px, window, dark_level = constants
    found = tile_scores(result)
    phase_px = int(found.places[0, 0]) % cell_px if len(found.places) else 0
    return LocalContrast(cell_px, window, dark_level, phase_px)


@lru_cache(maxsize=64)
def _constants(
    model_id: str, sha256: str, recipe: str, model_dir: Path
) -> tuple[int, int, float] | None:
    """Cell, window and dark level of the front end of exactly these weights."""
    for folder in _model_folders(model_id, recipe, model_dir):
        try:
            card = read_card(folder)
        except ModelError:
            continue
        said = card.input.constants
        if card.sha256 == sha256 and {"cell_px", "window", "dark_level"} <= said.keys():
            return int(said["cell_px"]), int(said["window"]), said["dark_level"]
    return None


def _model_folders(model_id: str, recipe: str, model_dir: Path) -> Iterator[Path]:
    stored = ModelStore(model_dir).find(model_id)
    if stored is not None:
        yield stored
    with contextlib.suppress(ModelError):
        yield shipped_model(model_id)
    try:
        named = load_recipe(recipe).value.model.folder
    except ConfigError:
        return
    if named is not None:
        yield Path(recipe).parent / named


# --- answering ------------------------------------------------------------------------------------


def _answer(
    request: Request,
    web: Web,
    found: PlateRows,
    role: str,
    etag: str,
    make: Callable[[], bytes],
    media_type: str = "image/png",
) -> Response:
    def checked() -> bytes:
        shown_picture(web, found, role).close()
        return make()

    return answer(request, etag, checked, media_type)


def answer(
    request: Request, etag: str, make: Callable[[], bytes], media_type: str = "image/png"
) -> Response:
    """What `make` gives; 304 for a browser that has it. Raises `PageError` for what `make` raises
    of a picture."""
    if (unchanged := _unchanged(request, etag)) is not None:
        return unchanged
    return Response(_served(make), media_type=media_type, headers=_headers(etag))


def _served(make: Callable[[], T]) -> T:
    try:
        return make()
    except PictureError as error:
        raise _as_page_error(error) from error
    except NoSuchTileError as error:
        raise not_found("plate.no_tile", text=str(error)) from error
    except BusyError as error:
        raise PageError(503, "errors.busy", retry_s=1) from error
    except OSError as error:
        raise PageError(507, "plate.no_room", text=error.strerror or "") from error


def _as_page_error(error: PictureError) -> PageError:
    return PageError(_STATUS[error.trouble], f"plate.trouble_{error.trouble}", text=str(error))


def _headers(etag: str) -> dict[str, str]:
    return {"etag": f'"{FORMAT}-{etag}"', "cache-control": _ASKED_AGAIN}


def _unchanged(request: Request, etag: str) -> Response | None:
    """304 for a browser that has it (RFC 9110, 13.1.2)."""
    headers = _headers(etag)
    known = request.headers.get("if-none-match", "").split(",")
    is_known = headers["etag"] in (one.strip().removeprefix("W/") for one in known)
    return Response(status_code=304, headers=headers) if is_known else None


def _view_name(front_end: LocalContrast | None) -> str:
    return "recorded" if front_end is None else front_end.name


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while data := file.read(_CHUNK_BYTES):
            yield data


def _box(
    found: PlateRows, image: ImageBody, x_px: int, y_px: int, side_px: int
) -> tuple[int, int, int, int]:
    """Of the picture's pixels, at least one. Raises `PageError`."""
    cell = pixels_per_pixel(found.result, image)
    if cell is None:
        raise not_found("plate.no_place")
    side = max(1, round(side_px / cell))
    x, y = round(x_px / cell), round(y_px / cell)
    return x, y, x + side, y + side


def crop_url(
    result_id: str,
    role: str,
    centre_px: tuple[float, float],
    half_px: float,
    view: str = "recorded",
) -> str:
    """Where a square of a plate's picture is, in px of the plate."""
    half_px = min(half_px, MOST_CROP_PX / 2)
    x_px, y_px = (round(place - half_px) for place in centre_px)
    query = urlencode({"x_px": x_px, "y_px": y_px, "side_px": max(1, round(2 * half_px))})
    return f"{plate_url(result_id)}/crops/{role}/{view}?{query}"


def plate_url(result_id: str) -> str:
    """Of the plate's page."""
    return f"/plates/{quote(result_id, safe='')}"


def tiles_of(web: Web) -> PictureTiles:
    """One for a process and log."""
    return _tiles(web.configuration.value.journal.directory / IMAGES, *cache_of(web))


@lru_cache(maxsize=4)
def _tiles(images: Path, cache: Path, most_bytes: int) -> PictureTiles:
    return PictureTiles(StoredPictures(images), cache, most_bytes)


def cache_of(web: Web) -> tuple[Path, int]:
    """Folder of what is made of pictures, and how many bytes it may have."""
    settings = web.configuration.value
    given = os.environ.get("CACHE_DIRECTORY") or str(settings.station.runtime_dir / "web-cache")
    cache = Path(given)
    return cache, _most_bytes(cache)


@lru_cache(maxsize=4)
def _most_bytes(cache: Path) -> int:
    return min(CACHE_BYTES, int(_CACHE_SHARE * _disk_bytes(cache)))


def _disk_bytes(folder: Path) -> int:
    """Size of the file system that a folder lies in, or will."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).total
