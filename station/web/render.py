"""From what a view returns to a page in the reader's language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from station.release import program_version
from station.roles import ANONYMOUS, Person
from station.web.context import Web
from station.web.cookies import cookie_name
from station.web.guard import TOKEN_FIELD, VISIT_COOKIE, visit_of
from station.web.static import static_url
from station.web.texts import (
    LANGUAGES,
    Formatter,
    Translator,
    accepted_languages,
    chosen_language,
)
from station.web.tokens import is_visit, new_visit

LANGUAGE_COOKIE, THEME_COOKIE = "language", "theme"
THEMES = ("auto", "light", "dark")
_VISIT_S = 365 * 86_400


@cache
def environment() -> Environment:
    """Every value is escaped; a name that is not there is an error."""
    return Environment(
        loader=PackageLoader("station.web", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def warm_up() -> None:
    """Compiles every template, which the first to look at each page would wait for."""
    for name in environment().list_templates(extensions=["html"]):
        environment().get_template(name)


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """A page that the navigation names."""

    key: str
    path: str
    is_here: bool


def language_of(request: Request) -> str:
    """As chosen for the person, by the switch, by the browser; else the first that is offered."""
    web: Web = request.app.state.web
    wishes = [
        *person_of(request).languages,
        request.cookies.get(cookie_name(request, LANGUAGE_COOKIE), ""),
        *accepted_languages(request.headers.get("accept-language", "")),
    ]
    return chosen_language([wish for wish in wishes if wish], web.settings.languages)


def person_of(request: Request) -> Person:
    person: Person | None = getattr(request.state, "person", None)
    return person or ANONYMOUS


def theme_of(request: Request) -> str:
    theme = request.cookies.get(cookie_name(request, THEME_COOKIE), "")
    return theme if theme in THEMES else THEMES[0]


def render(request: Request, template: str, status: int = 200, **given: Any) -> HTMLResponse:
    """A page, and the cookie of a visit for a browser that comes for the first time."""
    visit = known_visit(request)
    context = _context(request, visit) | given
    html = environment().get_template(template).render(context)
    response = HTMLResponse(html, status_code=status)
    remember_visit(request, response, visit)
    return response


def known_visit(request: Request) -> str:
    """The browser's own random number, or a new one."""
    visit = visit_of(request)
    return visit if is_visit(visit) else new_visit()


def remember_visit(request: Request, response: Response, visit: str) -> None:
    """A cookie for a browser that comes for the first time."""
    if visit != visit_of(request):
        set_cookie(request, response, VISIT_COOKIE, visit, max_age_s=_VISIT_S)


def token_of(request: Request, visit: str) -> str:
    """What an action of this visit and session must bring."""
    web: Web = request.app.state.web
    return web.tokens.make(visit, web.people.session_of(request))


def set_cookie(
    request: Request, response: Response, name: str, value: str, max_age_s: int | None = None
) -> None:
    """No script reads it, no other site sends it; without `max_age_s` it ends with the browser."""
    web: Web = request.app.state.web
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=max_age_s,
        path="/",
        secure=web.settings.is_secure,
        httponly=True,
        samesite="strict",
    )


def _context(request: Request, visit: str) -> dict[str, Any]:
    web: Web = request.app.state.web
    language, person = language_of(request), person_of(request)
    # What runs here, and which pages there are, is for nobody who has yet to sign in.
    is_known = getattr(request.state, "person", None) is not None
    token = token_of(request, visit)
    hidden = Markup('<input type="hidden" name="{}" value="{}">').format(TOKEN_FIELD, token)
    return {
        "t": Translator(language),
        "fmt": Formatter(language, web.zone),
        "language": language,
        "languages": {code: LANGUAGES[code] for code in web.settings.languages},
        "theme": theme_of(request),
        "themes": THEMES,
        "person": person,
        "station_id": web.station_id,
        "csrf": hidden,
        "csrf_token": token,
        "here": _here(request),
        "url_with": _url_with(request),
        "static": static_url,
        "menu": _menu(request, web, person) if is_known else [],
        "has_users": web.people.has_users(),
        "version": program_version() if is_known else "",
    }


def _here(request: Request) -> str:
    """The address of this page, to come back to; of an action, the page that it leads to."""
    if request.method not in ("GET", "HEAD"):
        return "/"
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _url_with(request: Request) -> Callable[..., str]:
    def url_with(**changes: object) -> str:
        """This address with other query parameters; None takes one away."""
        kept = [(k, v) for k, v in parse_qsl(request.url.query) if k not in changes]
        added = [(k, str(v)) for k, v in changes.items() if v is not None]
        query = urlencode([*kept, *added])
        return request.url.path + (f"?{query}" if query else "")

    return url_with


def _menu(request: Request, web: Web, person: Person) -> list[MenuEntry]:
    return [
        MenuEntry(one.menu, one.path, request.url.path == one.path)
        for one in web.routes
        if one.menu and (one.role is None or person.may(one.role))
    ]
