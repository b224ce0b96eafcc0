"""Every request passes here first and every answer last, whatever happens between: which names the
page answers to, how much of a request is too much, what no answer may lack, and who gives up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from station.log_lines import get_logger
from station.web.errors import PageError

_LOG = get_logger("web")
MAX_URL_BYTES: Final = 4096
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
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), serial=(), payment=()",
}
"""OWASP Secure Headers; the page itself needs none of what they forbid."""
_HSTS: Final = "max-age=31536000"

AnswerError = Callable[[Request, PageError], Response]


class Frontier:
    """ASGI; around the whole application."""

    def __init__(
        self, app: ASGIApp, answer_error: AnswerError, hosts: frozenset[str], is_secure: bool
    ) -> None:
        self._app, self._answer_error = app, answer_error
        self._hosts, self._is_secure = hosts, is_secure
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
        answer = _Answer(send, reference, self._is_secure)
        try:
            self._see_that_it_may(scope)
            await self._app(scope, receive, answer)
        except PageError as error:
            await self._end(scope, receive, answer, error)
        except TimeoutError:
            _LOG.info("a client took nothing and was given up", reference=reference)
        except Exception as error:  # noqa: BLE001  whatever it is, its page reveals nothing
            _LOG.error("a page failed", reference=reference, path=scope["path"], exc_info=error)
            await self._end(scope, receive, answer, PageError(500, "errors.failed"))

    def _see_that_it_may(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            raise PageError(414, "errors.long_address")
        if host_name(Headers(scope=scope).get("host", "")) not in self._hosts:
            raise PageError(421, "errors.host")
        if self._in_work > MAX_REQUESTS:
            raise PageError(503, "errors.busy", retry_s=2)

    async def _end(self, scope: Scope, receive: Receive, answer: _Answer, error: PageError) -> None:
        """Where the answer has begun, all that is left is to cut it off."""
        if not answer.has_begun:
            response = self._answer_error(Request(scope, receive), error)
            await response(scope, receive, answer)


class _Answer:
    """What an application sends, with the headers that every answer has."""

    def __init__(self, send: Send, reference: str, is_secure: bool) -> None:
        self._send, self._reference, self._is_secure = send, reference, is_secure
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._complete(MutableHeaders(raw=message["headers"]))
        async with asyncio.timeout(_SEND_LIMIT_S):
            await self._send(message)

    def _complete(self, headers: MutableHeaders) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers["x-request-id"] = self._reference
        headers.setdefault("cache-control", "no-store")
        if self._is_secure:
            headers["strict-transport-security"] = _HSTS


def host_name(header: str) -> str:
    """Of a Host header, without its port, as it is compared."""
    name, _, rest = header.rpartition(":")
    has_port = bool(name) and rest.isdecimal() and not name.endswith(":")
    return (name if has_port else header).strip("[]").lower()
