"""Looked at before any view runs: how much is sent, by whom, from which page."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.types import Message, Receive

from station.roles import Person, Role
from station.web.context import Web
from station.web.cookies import cookie_name
from station.web.errors import PageError, SignInNeeded

VISIT_COOKIE = "visit"
TOKEN_HEADER = "x-csrf-token"
TOKEN_FIELD = "csrf"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_MAX_FIELDS = 200
_BODY_LIMIT_S = 15.0
"""A request's body must be whole by then, however its bytes come."""


def visit_of(request: Request) -> str:
    """The browser's own random number; empty for one that comes for the first time."""
    return request.cookies.get(cookie_name(request, VISIT_COOKIE), "")


def limited(request: Request, max_bytes: int) -> Request:
    """The same request, whose body ends in 413 when it is longer."""
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > max_bytes:
        raise PageError(413, "errors.too_large", kilobytes=max_bytes // 1000)
    return Request(request.scope, _counted(request.receive, max_bytes))


def _counted(receive: Receive, max_bytes: int) -> Receive:
    taken, is_whole = 0, False
    deadline = asyncio.get_running_loop().time() + _BODY_LIMIT_S

    async def receive_counted() -> Message:
        nonlocal taken, is_whole
        if is_whole:  # what comes now is the client's end, for which streams wait
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise PageError(408, "errors.too_slow") from error
        taken += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if taken > max_bytes:
            raise PageError(413, "errors.too_large", kilobytes=max_bytes // 1000)
        return message

    return receive_counted


async def guard(request: Request, role: Role | None, kind: str) -> None:
    """Raises `PageError` if this request may not be answered. Who sends it is in
    `request.state.person` from here on."""
    web: Web = request.app.state.web
    is_action = kind == "action"
    if role is not None or kind != "data":  # files of the page and its health ask for nobody
        await web.people.refresh()
    person = web.people.person_of(request)
    request.state.person = person
    if role is not None:
        _see_that_they_may(person, role, is_action)
    if is_action:
        _see_where_from(request)
        await _see_token(request, web)


def _see_that_they_may(person: Person | None, role: Role, is_action: bool) -> None:
    if person is None or (not person.is_signed_in and (is_action or role > Role.VIEWER)):
        raise SignInNeeded
    if not person.may(role):
        raise PageError(403, "errors.role", role=role.word)


def _see_where_from(request: Request) -> None:
    """The Origin that browsers send with every POST is this page's (OWASP, CSRF prevention)."""
    try:
        origin = urlsplit(request.headers.get("origin", "")).netloc.lower()
    except ValueError:
        origin = ""
    if not origin or origin != request.headers["host"].lower():
        raise PageError(403, "errors.origin")


async def form_of(request: Request) -> FormData:
    """The fields of a form, a bounded number of them and no files."""
    return await request.form(max_files=0, max_fields=_MAX_FIELDS)


async def _see_token(request: Request, web: Web) -> None:
    token = request.headers.get(TOKEN_HEADER, "")
    if not token and request.headers.get("content-type", "").startswith(_FORMS):
        field = (await form_of(request)).get(TOKEN_FIELD, "")
        token = field if isinstance(field, str) else ""
    if not web.tokens.is_right(token, visit_of(request), web.people.session_of(request)):
        raise PageError(403, "errors.token")
