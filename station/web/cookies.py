"""How the page's cookies are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from station.web.context import Web


def cookie_name(request: Request, name: str) -> str:
    """`__Host-`, with which no other host or path can set it, wherever the browser takes that:
    under TLS (RFC 6265bis, 4.1.3.2)."""
    return f"__Host-vqi-{name}" if is_secure(request) else f"vqi-{name}"


def is_secure(request: Request) -> bool:
    """Whether people reach this page by TLS: its own, or that of the proxy before it."""
    web: Web = request.app.state.web
    public = web.settings.public_url or ""
    return request.url.scheme == "https" or public.startswith("https:")
