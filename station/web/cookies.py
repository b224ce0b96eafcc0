"""How the page's cookies are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from station.web.context import Web


def cookie_name(request: Request, name: str) -> str:
    """`__Host-`, with which no other host or path can set it, wherever the browser takes that:
    under TLS (RFC 6265bis, 4.1.3.2)."""
    web: Web = request.app.state.web
    return f"__Host-vqi-{name}" if web.settings.is_secure else f"vqi-{name}"
