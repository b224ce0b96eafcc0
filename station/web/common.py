"""What belongs to no part: files of the page, language and theme, health, the interface's own
description.

Health and files are told on the event loop, from memory: whatever holds up the threads of the rest,
a browser gets its style and whoever watches the page hears how it is.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from station.config import MetricsSettings
from station.ipc import Json
from station.metrics_server import health
from station.web.certificates import Certificate
from station.web.context import Web
from station.web.errors import not_found
from station.web.pages import WebRouter
from station.web.render import (
    LANGUAGE_COOKIE,
    THEME_COOKIE,
    known_visit,
    person_of,
    remember_visit,
    set_cookie,
    token_of,
)
from station.web.static import static_files

router = WebRouter()
_YEAR_S = 365 * 86_400


class Switched(BaseModel):
    """What was chosen."""

    chosen: str


class LanguageForm(BaseModel):
    """Which language the page speaks from now on."""

    language: Literal["en", "de", "zh"]
    back: str = ""


class ThemeForm(BaseModel):
    """Light on dark, dark on light, or as the browser wishes."""

    theme: Literal["auto", "light", "dark"]
    back: str = ""


@router.data("/static/{name:path}", role=None, media_type="application/octet-stream")
async def static(request: Request, name: str) -> Response:
    """A file of the page itself."""
    file = static_files().get(name)
    if file is None:
        raise not_found()
    is_named = request.query_params.get("v") == file.digest
    age = "public, max-age=31536000, immutable" if is_named else "no-cache"
    headers = {"cache-control": age, "etag": f'"{file.digest}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@router.action("/language", role=None)
def language(web: Web, request: Request, response: Response, form: LanguageForm) -> Switched:
    """Speak another language in this browser, and to this person wherever they sign in."""
    web.people.prefer_language(person_of(request), form.language)
    set_cookie(request, response, LANGUAGE_COOKIE, form.language, _YEAR_S)
    return Switched(chosen=form.language)


@router.action("/theme", role=None)
def theme(request: Request, response: Response, form: ThemeForm) -> Switched:
    """Choose dark on light or light on dark in this browser."""
    set_cookie(request, response, THEME_COOKIE, form.theme, _YEAR_S)
    return Switched(chosen=form.theme)


@router.data("/health", role=None, media_type="application/json")
async def station_health(web: Web) -> Response:
    """Whether every worker lives and verdicts become durable: 200, else 503 with what is wrong."""
    live, metrics = web.live, web.configuration.value.metrics
    said = {
        name: (status, "" if status else "does not answer")
        for name, status in (
            ("lamp", live.lamp),
            ("journal", live.journal),
            ("station", live.station),
        )
    }
    found = health(said, (metrics or MetricsSettings()).stale_verdict_s)
    if live.is_stale:
        old = f"the page heard the station {time.time() - live.at:.0f} s ago; what follows is old"
        found |= {"ok": False, "problems": [old, *found["problems"]]}
    found |= _of_certificate(web.certificate, found["problems"])
    return JSONResponse(found, 200 if found["ok"] else 503)


def _of_certificate(served: Certificate | None, problems: list[str]) -> Json:
    """That it ends soon is said; once it is over, nobody gets in."""
    now = datetime.now(UTC)
    if served is None or not (why := served.warning(now)):
        return {}
    is_over = {"ok": False, "problems": [*problems, why]} if served.is_over(now) else {}
    return {"certificate": why, **is_over}


@router.data("/openapi.json", media_type="application/json")
def openapi(request: Request) -> Response:
    """This description (OpenAPI 3.1)."""
    return JSONResponse(request.app.openapi())


@router.data("/token.json", role=None, media_type="application/json")
def token(request: Request) -> Response:
    """The token that actions of this session want in X-CSRF-Token, and the cookie of its visit."""
    visit = known_visit(request)
    response = JSONResponse({"csrf_token": token_of(request, visit)})
    remember_visit(request, response, visit)
    return response


class Operation(BaseModel):
    """One address of the interface for programs."""

    method: str
    path: str
    summary: str
    role: str | None
    """Who may use it; None: everybody."""
    kind: str
    parameters: list[str]


class Interface(BaseModel):
    """What programs can ask and do here."""

    operations: list[Operation]


@router.page("/api", template="common/api.html")
def interface(web: Web) -> Interface:
    """Every address for programs, with what each is for."""
    shown = [one for one in web.routes if one.is_json or one.kind == "data"]
    return Interface(
        operations=[
            Operation(
                method=one.method,
                path=one.path,
                summary=(inspect.getdoc(one.view) or "").partition("\n\n")[0],
                role=None if one.role is None else one.role.word,
                kind=one.kind,
                parameters=_parameters(one.view),
            )
            for one in sorted(shown, key=lambda one: one.path)
        ]
    )


def _parameters(view: Callable[..., object]) -> list[str]:
    """What a caller gives, by name; the rest is put in by the page itself."""
    own = ("web", "person", "request", "response", "form")
    return [name for name in inspect.signature(view).parameters if name not in own]
