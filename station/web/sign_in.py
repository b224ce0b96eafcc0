"""Signing in and out: by name and password, or on a shared screen by name or badge and PIN."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlencode

from pydantic import BaseModel, Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from station.ingress import MAX_CHARACTERS, Refused, admit
from station.passwords import MAX_DIGITS, MIN_CHARACTERS, TooBusy, WeakSecret
from station.people import PeopleError
from station.roles import Person, Role
from station.web.context import Web
from station.web.cookies import cookie_name
from station.web.errors import PageError, not_found
from station.web.pages import WebRouter, back_target
from station.web.people import DEVICE_COOKIE, SESSION_COOKIE, StationPeople, where_of
from station.web.render import set_cookie
from station.web.texts import catalogue

router = WebRouter()
RECENT_COOKIE = "recent"
_MOST_RECENT = 6
_RECENT_S = 90 * 86_400
_DEVICE_S = 365 * 86_400
_MOST_SECRET = 1024

Name = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Secret = Annotated[SecretStr, Field(min_length=1, max_length=_MOST_SECRET)]
Then = Annotated[str, Field(max_length=2000)]


class SignInPage(BaseModel):
    """How one signs in here."""

    then: str
    """Where it leads."""
    why: str
    """Why the last try did not succeed; a key of the texts."""
    seconds: int
    """How long the next one has to wait."""
    recent: list[str]
    """Who signed in at this screen lately."""
    has_users: bool
    takes_pins: bool
    """Somebody signed in by password in this browser before."""
    shared_idle_s: int
    most_digits: int = MAX_DIGITS
    config: str = ""
    """For who adds the first person; empty once somebody can sign in."""


class NewPasswordPage(BaseModel):
    """A password that somebody else gave has to be changed."""

    then: str
    is_shared: bool
    why: str
    seconds: int
    least: int = MIN_CHARACTERS


class PasswordForm(BaseModel):
    """By name and password."""

    name: Name
    password: Secret
    is_shared: bool = False
    """Several people use this screen: the session ends soon where nothing is done."""
    then: Then = ""


class PinForm(BaseModel):
    """On a shared screen. The name is typed or chosen; a badge types itself."""

    who: Annotated[str, Field(max_length=MAX_CHARACTERS)] = ""
    chosen: Annotated[str, Field(max_length=MAX_CHARACTERS)] = ""
    pin: Secret
    then: Then = ""


class NewPasswordForm(BaseModel):
    """The password that was given, and the one that the person chose, twice."""

    name: Name
    password: Secret
    new: Secret
    again: Secret
    is_shared: bool = False
    then: Then = ""


class EmptyForm(BaseModel):
    """Nothing but the token."""


class SignedIn(BaseModel):
    """Where it leads, and for how long without anything done."""

    to: str
    """The page that comes next."""
    name: str = ""
    role: str = ""
    signs_out_after_s: int | None = None


class SessionLeft(BaseModel):
    """What is left of a session where nothing is done."""

    signs_out_after_s: int | None


def station_people(web: Web) -> StationPeople:
    """The people of this station's own file. Raises `PageError` 404 where there are others."""
    if not isinstance(web.people, StationPeople):
        raise not_found()
    return web.people


def known_why(why: str) -> str:
    """A reason that has a text; empty for anything else that an address says."""
    return why if f"people.why.{why}" in catalogue() else ""


@router.page("/sign-in", template="people/sign_in.html", role=None)
def sign_in_page(
    web: Web, request: Request, back: str = "", why: str = "", seconds: int = 0
) -> SignInPage:
    """The page to sign in."""
    return SignInPage(
        then=back_target(back),
        why=known_why(why),
        seconds=max(0, min(seconds, 3600)),
        recent=_recent(request),
        has_users=web.people.has_users(),
        takes_pins=_takes_pins(web, request),
        shared_idle_s=web.settings.shared_idle_s,
        config="" if web.people.has_users() else web.configuration.source,
    )


def _takes_pins(web: Web, request: Request) -> bool:
    if not isinstance(web.people, StationPeople):
        return False
    return web.people.devices.is_known(where_of(request).device)


@router.action("/sign-in", role=None, to="{to}")
def sign_in(web: Web, request: Request, response: Response, form: PasswordForm) -> SignedIn:
    """Sign in by name and password."""
    people, password = station_people(web), form.password.get_secret_value()
    return _begin(
        web,
        request,
        response,
        form.then,
        lambda: people.sign_in(form.name, password, where_of(request), is_shared=form.is_shared),
        is_shared=form.is_shared,
    )


@router.action("/sign-in/pin", role=None, to="{to}")
def sign_in_shared(web: Web, request: Request, response: Response, form: PinForm) -> SignedIn:
    """Sign in on a shared screen by name or badge and PIN, as reviewer at most."""
    people, who = station_people(web), form.who or form.chosen
    return _begin(
        web,
        request,
        response,
        form.then,
        lambda: people.sign_in_shared(who, form.pin.get_secret_value(), where_of(request)),
    )


@router.page("/sign-in/new-password", template="people/new_password.html", role=None)
def new_password_page(
    back: str = "", is_shared: bool = False, why: str = "", seconds: int = 0
) -> NewPasswordPage:
    """The page on which a given password is changed."""
    return NewPasswordPage(
        then=back_target(back),
        is_shared=is_shared,
        why=known_why(why),
        seconds=max(0, min(seconds, 3600)),
    )


@router.action("/sign-in/new-password", role=None, to="{to}")
def new_password(web: Web, request: Request, response: Response, form: NewPasswordForm) -> SignedIn:
    """Change a password that was given, and sign in with the new one."""
    people, new = station_people(web), form.new.get_secret_value()

    def change() -> str:
        if new != form.again.get_secret_value():
            raise PageError(422, "people.why.mismatch")
        old = form.password.get_secret_value()
        where, is_shared = where_of(request), form.is_shared
        return people.replace_password(form.name, old, new, where, is_shared=is_shared)

    again = "/sign-in/new-password"
    return _begin(web, request, response, form.then, change, again, is_shared=form.is_shared)


@router.action("/sign-out", role=None, to="/")
def sign_out(web: Web, request: Request, response: Response, form: EmptyForm) -> SignedIn:
    """End this session."""
    station_people(web).sign_out(request)
    set_cookie(request, response, SESSION_COOKIE, "", max_age_s=0)
    return SignedIn(to="/")


@router.action("/session/touch", role=Role.VIEWER)
def touch(web: Web, person: Person, form: EmptyForm) -> SessionLeft:
    """Somebody is at the screen: the session goes on."""
    return SessionLeft(signs_out_after_s=person.signs_out_after_s)


def _begin(
    web: Web,
    request: Request,
    response: Response,
    then: str,
    sign_in: Callable[[], str],
    again: str = "/sign-in",
    *,
    is_shared: bool = False,
) -> SignedIn:
    """The new session's cookie; a form that failed leads back with the reason, JSON says it."""
    try:
        token = sign_in()
    except (PageError, PeopleError, WeakSecret) as error:
        failure = as_page_error(error)
        if request.url.path.endswith(".json"):
            raise failure from error
        return SignedIn(to=_once_more(again, then, failure, is_shared))
    people = station_people(web)
    people.sign_out(request)  # whatever this browser was before
    session = people.sessions.find(token)
    assert session is not None
    account = people.account(session.name)
    assert account is not None
    set_cookie(request, response, SESSION_COOKIE, token)
    device = people.devices.with_person(where_of(request).device, account.name)
    set_cookie(request, response, DEVICE_COOKIE, device, _DEVICE_S)
    if session.is_shared:
        _remember(request, response, account.name)
    left = people.sessions.idle_limit_s(session)
    return SignedIn(
        to=back_target(then) or "/",
        name=account.name,
        role=min(account.role, session.most).word,
        signs_out_after_s=round(left) if session.is_shared else None,
    )


Failure = PageError | PeopleError | WeakSecret | TooBusy | sqlite3.OperationalError


def as_page_error(error: Failure) -> PageError:
    """What went wrong with people and their secrets, in the page's words."""
    if isinstance(error, PageError):
        return error
    if isinstance(error, WeakSecret):
        return PageError(422, f"people.why.{error.weakness}")
    if isinstance(error, TooBusy):
        return PageError(503, "people.why.busy", retry_s=5)
    if isinstance(error, PeopleError) and error.key != "store":
        return PageError(409, f"people.why.{error.key}")
    return PageError(503, "people.why.store", retry_s=5)


def _once_more(again: str, then: str, failure: PageError, is_shared: bool) -> str:
    why = failure.key.rpartition(".")[2]
    if why == "must_change":
        again = "/sign-in/new-password"
    said = {"why": why, "seconds": failure.values.get("seconds", 0), "back": back_target(then)}
    if again == "/sign-in/new-password":
        said["is_shared"] = is_shared
    return f"{again}?{urlencode({key: value for key, value in said.items() if value})}"


# --- who signed in at this screen -----------------------------------------------------------------


def _recent(request: Request) -> list[str]:
    """Names that this browser was given; whatever else its cookie says is left out."""
    kept = request.cookies.get(cookie_name(request, RECENT_COOKIE), "")
    try:
        names = json.loads(base64.urlsafe_b64decode(kept[:2000].encode()))
    except (ValueError, RecursionError):
        return []
    if not isinstance(names, list):
        return []
    found = [admit(name) for name in names[:_MOST_RECENT] if isinstance(name, str)]
    return [name for name in found if not isinstance(name, Refused)]


def _remember(request: Request, response: Response, name: str) -> None:
    names = [name, *(one for one in _recent(request) if one != name)][:_MOST_RECENT]
    kept = base64.urlsafe_b64encode(json.dumps(names).encode()).decode()
    set_cookie(request, response, RECENT_COOKIE, kept, _RECENT_S)
