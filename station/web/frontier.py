"""Every request passes here first and every answer last, whatever happens between: which names the
page answers to, how much of a request is too much, what no answer may lack, and who gives up."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from station.log_lines import get_logger
from station.web.context import Web
from station.web.errors import PageError
from station.web.hosts import allowed_hosts, came_by_proxy
from station.web.sign_in import Failure, as_page_error

_LOG = get_logger("web")
MAX_URL_BYTES: Final = 4096
MAX_HEAD_BYTES: Final = 16_384
MAX_REQUESTS: Final = 1200
"""In work at once, event streams included; one more is told to come again."""
_SEND_LIMIT_S: Final = 30.0
"""Who takes no byte for so long is given up."""
_CSP: Final = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "img-src 'self' blob: data:",
    )
)
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # With no-referrer browsers send `Origin: null` with the page's own forms (Fetch, 3.1).
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), serial=(), payment=()",
}
"""OWASP Secure Headers; the page itself needs none of what they forbid."""
_HSTS: Final = "max-age=31536000"

_IDLE_TOUCHES: Final = ("/session/touch", "/theme", "/language")
_FRAMINGS: Final = (b"content-length", b"transfer-encoding")
"""Who sends both means two requests to a proxy that reads the other one (RFC 9112, 6.3)."""

AnswerError = Callable[[Request, PageError], Response]


class Frontier:
    """ASGI; around the whole application."""

    def __init__(self, app: ASGIApp, web: Web, answer_error: AnswerError) -> None:
        self._app, self._web, self._answer_error = app, web, answer_error
        self._hosts, self._is_secure = allowed_hosts(web.settings), web.settings.is_secure
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._in_work += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._in_work -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        reference = secrets.token_hex(6)
        scope.setdefault("state", {})["reference"] = reference
        answer = _Answer(send, reference, self._is_secure, self._web.streams)
        try:
            self._see_that_it_may(scope)
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            if asyncio.current_task() not in self._web.streams:
                raise
            await answer.end()  # the server stops
        except Exception as error:  # noqa: BLE001  whatever it is, its page reveals nothing
            if not answer.has_begun:
                response = self._answer_error(
                    Request(scope, receive), _explained(error, scope, reference)
                )
                await response(scope, receive, answer)
            elif not isinstance(error, TimeoutError):  # else a client that took nothing
                _LOG.error("an answer broke off", reference=reference, exc_info=error)
        if answer.status >= 400 or (scope["method"] == "POST" and not _is_idle_touch(scope)):
            _log_end(scope, reference, answer.status)

    def _see_that_it_may(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            raise PageError(414, "errors.long_address")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            raise PageError(431, "errors.long_head")
        if sum(name in _FRAMINGS for name, _ in scope["headers"]) > 1:
            raise PageError(400, "errors.bad_request")
        headers = Headers(scope=scope)
        if host_name(headers.get("host", "")) not in self._hosts:
            raise PageError(421, "errors.host")
        if self._web.settings.is_local and came_by_proxy(headers):
            raise PageError(421, "errors.proxy")
        if self._in_work > MAX_REQUESTS:
            raise PageError(503, "errors.busy", retry_s=2)


def _explained(error: Exception, scope: Scope, reference: str) -> PageError:
    if isinstance(error, PageError):
        return error
    if isinstance(error, UnicodeEncodeError):  # a lone surrogate in what was sent
        return PageError(422, "errors.no_text")
    if isinstance(error, Failure):
        _LOG.warning("people were not to be had", reference=reference, error=repr(error))
        return as_page_error(error)
    _LOG.error("a page failed", reference=reference, path=scope["path"], exc_info=error)
    return PageError(500, "errors.failed")


def _is_idle_touch(scope: Scope) -> bool:
    """It changes nothing but how a browser shows pages, or that it goes on doing so."""
    return str(scope["path"]).removesuffix(".json") in _IDLE_TOUCHES


def _log_end(scope: Scope, reference: str, status: int) -> None:
    """Who tried to do what, or what was refused; what was sent is nobody's business here."""
    person = scope["state"].get("person")
    who = person.name if person is not None else ""
    event = "action" if status < 400 else "refused"
    said = {"method": scope["method"], "path": scope["path"], "status": status}
    _LOG.info(event, **said, who=who, reference=reference)


class _Answer:
    """What an application sends, with the headers that every answer has."""

    def __init__(
        self, send: Send, reference: str, is_secure: bool, streams: set[asyncio.Task[Any]]
    ) -> None:
        self._send, self._reference, self._is_secure = send, reference, is_secure
        self._streams, self._task = streams, asyncio.current_task()
        self.has_begun = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun, self.status = True, message["status"]
            self._complete(MutableHeaders(raw=message["headers"]))
        async with asyncio.timeout(_SEND_LIMIT_S):
            await self._send(message)

    async def end(self) -> None:
        """The last bytes of a stream."""
        with contextlib.suppress(Exception):
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _complete(self, headers: MutableHeaders) -> None:
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._note_stream()
        # A document of the log says itself by which hash its one style element may be used.
        headers.setdefault("content-security-policy", _CSP)
        for name, value in _HEADERS.items():
            headers[name] = value
        headers["x-request-id"] = self._reference
        headers.setdefault("cache-control", "no-store")
        if self._is_secure:
            headers["strict-transport-security"] = _HSTS

    def _note_stream(self) -> None:
        assert self._task is not None
        self._streams.add(self._task)
        self._task.add_done_callback(self._streams.discard)


def host_name(header: str) -> str:
    """Of a Host header, without its port, as it is compared."""
    name, _, rest = header.rpartition(":")
    has_port = bool(name) and rest.isdecimal() and not name.endswith(":")
    return (name if has_port else header).removeprefix("[").removesuffix("]").lower()
