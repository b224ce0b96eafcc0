"""The line view: what the light shows and why, what needs a person, readable from three metres.

Its parts are rendered once for each language that somebody reads, when they change, and sent to
all who look; who has no script loads the page anew.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel
from sqlalchemy import select, text
from starlette.requests import Request
from starlette.responses import Response

from station.log_reader import Reader
from station.record import PICTURE_NAME
from station.tables import PLATE
from station.thumbnails import smallest, thumbnail
from station.web.context import Web
from station.web.errors import not_found
from station.web.feed import NEWS, Shown, stream
from station.web.line_view import LinePage, line_page
from station.web.pages import WebRouter
from station.web.plate_log import not_blind
from station.web.render import language_of
from station.web.roles import Person, Role

router = WebRouter()
REGIONS = ("light", "station", "calls", "figures", "strip")
_THUMBNAIL_PX = 240
_KEPT_THUMBNAILS = 256
_FOREVER = "private, max-age=31536000, immutable"
_IMAGES = text("SELECT body -> '$.images' AS images FROM row WHERE seq = :seq")


@router.page("/", template="line/line.html", menu="line.menu")
def line(web: Web) -> LinePage:
    """The line as it is now."""
    return page_of(web)


def page_of(web: Web) -> LinePage:
    """What the page says at this moment."""
    return line_page(web.station_id, web.configuration.value.light, web.live)


# --- news -----------------------------------------------------------------------------------------


@router.data("/line/live", media_type="text/event-stream")
async def line_live(web: Web, request: Request) -> Response:
    """Events `news`: changed parts of the line view as HTML, in the reader's language; `beat`:
    that somebody still looks at the station."""
    return stream(web, request, f"line {language_of(request)}")


@router.data("/live", media_type="text/event-stream")
async def live(web: Web, request: Request) -> Response:
    """Events `news`: the newest result, light, state and most urgent call as JSON; `beat`."""
    return stream(web, request, NEWS)


SHOWN = Shown(
    lambda web, heard: line_page(web.station_id, web.configuration.value.light, heard),
    {name: f"line/_{name}.html" for name in REGIONS},
)


# --- pictures -------------------------------------------------------------------------------------


@router.data("/line/thumbnails/{result_id}")
def strip_thumbnail(web: Web, person: Person, result_id: str) -> Response:
    """A small picture of a plate."""
    with web.reader() as reader:
        not_blind(reader, result_id, person)
        name, folder = _smallest_picture(reader, result_id), reader.images
    try:
        data = _thumbnail(folder, name)
    except OSError:
        raise not_found() from None
    return Response(data, media_type="image/jpeg", headers={"cache-control": _FOREVER})


def _smallest_picture(reader: Reader, result_id: str) -> str:
    """Its name in the folder of pictures; empty where none was kept."""
    found = reader.ask(select(PLATE.c.seq).where(PLATE.c.result_id == result_id))
    if not found:
        return ""
    rows = reader.ask(_IMAGES.bindparams(seq=found[0].seq))
    image = smallest(json.loads(rows[0].images or "[]"))
    return image["path"] if image else ""


@lru_cache(maxsize=_KEPT_THUMBNAILS)
def _thumbnail(folder: Path, name: str) -> bytes:
    """Of a picture that is named by its content, and so never another one. Raises OSError."""
    if not re.fullmatch(PICTURE_NAME, name):
        raise FileNotFoundError(name)
    with _opened(folder, name) as file:
        data = thumbnail(Path(f"/proc/self/fd/{file.fileno()}"), _THUMBNAIL_PX)
    if data is None:
        raise FileNotFoundError(name)
    return data


def _opened(folder: Path, name: str) -> BinaryIO:
    """Through no link: it lies in the folder of pictures. Raises OSError."""
    first, _, last = name.partition("/")
    inner = os.open(folder / first, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.fdopen(os.open(last, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=inner), "rb")
    finally:
        os.close(inner)


# --- acknowledge ----------------------------------------------------------------------------------


class AcknowledgeForm(BaseModel):
    """Somebody has seen what the light holds."""

    back: str = ""


class Acknowledged(BaseModel):
    """What the station did."""

    state: str


@router.action("/line/acknowledge", role=Role.REVIEWER)
def acknowledge(web: Web, person: Person, form: AcknowledgeForm) -> Acknowledged:
    """Acknowledge a FAIL or UNDECIDED that the light holds; judges no plate."""
    return Acknowledged(state=str(web.command("ack", "", person)["state"]))
