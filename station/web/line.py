"""The line view: what the light shows and why, what needs a person, readable from three metres.

Its parts are rendered once for each language that somebody reads, when they change, and sent to
all who look; who has no script loads the page anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

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
from station.web.hub import EventStream
from station.web.line_view import LinePage, line_page
from station.web.live import Live
from station.web.pages import WebRouter
from station.web.render import environment, language_of
from station.web.roles import Person, Role
from station.web.texts import Formatter, Translator

router = WebRouter()
REGIONS = ("light", "station", "calls", "figures", "strip")
"""Parts of the page that change by themselves; the templates `line/_REGION.html`."""
_LANGUAGE_TOPIC = "line "
_NEWS = "news"
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
    return _stream(web, request, _LANGUAGE_TOPIC + language_of(request))


@router.data("/live", media_type="text/event-stream")
async def live(web: Web, request: Request) -> Response:
    """Events `news`: the newest result, light, state and most urgent call as JSON; `beat`."""
    return _stream(web, request, _NEWS)


def _stream(web: Web, request: Request, topic: str) -> Response:
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    known = request.headers.get("last-event-id", "")
    return EventStream(
        web.hub, web.hub.topic(topic), known, lambda: web.people.person_of(request) is not None
    )


class LineFeed:
    """Makes news of what the poller hears, on its thread."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._rendered: dict[str, tuple[object, Mapping[str, str]]] = {}

    def turn(self, heard: Live) -> None:
        """One look at the station."""
        page = line_page(self._web.station_id, self._web.configuration.value.light, heard)
        wanted = self._web.hub.wanted
        states: dict[str, Mapping[str, str]] = {}
        if _NEWS in wanted:
            states[_NEWS] = _news(page, heard)
        for topic in wanted:
            if topic.startswith(_LANGUAGE_TOPIC):
                states[topic] = self._regions(topic, page)
        self._web.hub.publish(states, self._beat(heard))

    def _regions(self, topic: str, page: LinePage) -> Mapping[str, str]:
        """As JSON, each; rendered only if the page says something else than before."""
        said = page.model_dump(exclude={"at"})
        before = self._rendered.get(topic)
        if before is None or before[0] != said:
            language = topic.removeprefix(_LANGUAGE_TOPIC)
            regions = rendered(page, language, Formatter(language, self._web.zone))
            self._rendered[topic] = said, {
                name: json.dumps(html, ensure_ascii=False) for name, html in regions.items()
            }
        return self._rendered[topic][1]

    def _beat(self, heard: Live) -> Mapping[str, Any] | None:
        """What changes all the time; None if nobody has looked of late."""
        if heard.is_stale:
            return None
        lease_s = heard.lamp.get("lease_left_s") if heard.lamp else None
        return {
            "ms": heard.heard_ns // 1_000_000,
            "at": round(heard.at, 3),
            "clock": Formatter("en", self._web.zone).time(heard.at),
            "lease_s": None if lease_s is None else round(lease_s, 1),
        }


def _news(page: LinePage, heard: Live) -> Mapping[str, str]:
    newest = page.plates[0] if page.plates else None
    found = {
        "newest": {
            "seq": heard.newest_seq,
            "result_id": newest.result_id if newest else "",
            "verdict": newest.verdict if newest else "",
        },
        "light": {"state": page.light.state, "result_id": page.light.result_id},
        "state": page.state,
        "call": page.calls[0].model_dump() if page.calls else None,
    }
    return {name: json.dumps(value) for name, value in found.items()}


def rendered(page: LinePage, language: str, fmt: Formatter) -> dict[str, str]:
    """The page's regions as HTML."""
    context = {"t": Translator(language), "fmt": fmt, "page": page}
    return {
        name: environment().get_template(f"line/_{name}.html").render(context) for name in REGIONS
    }


# --- pictures -------------------------------------------------------------------------------------


@router.data("/line/thumbnails/{result_id}")
def plate_thumbnail(web: Web, result_id: str) -> Response:
    """A small picture of a plate."""
    with web.reader() as reader:
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
