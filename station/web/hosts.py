"""By which names the page may be called; a foreign name that leads here (DNS rebinding) is none."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from station.config import WebSettings

_FROM_PROXIES = ("forwarded", "via")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def own_names() -> list[str]:
    """This machine's name, with and without its domain."""
    name = socket.gethostname().lower()
    return list(dict.fromkeys((name, name.partition(".")[0])))


def came_by_proxy(headers: Headers) -> bool:
    """Whether a reverse proxy says that it passes this on (RFC 7239; RFC 9110, 7.6.3)."""
    return any(name in _FROM_PROXIES or name.startswith("x-forwarded-") for name in headers)


def allowed_hosts(settings: WebSettings) -> frozenset[str]:
    """Names and addresses, in lower case and without a port."""
    names = {*_LOOPBACK, *(name.lower() for name in settings.allowed_hosts)}
    if not settings.host.is_unspecified:
        names.add(str(settings.host))
    if not settings.host.is_loopback:
        names.update(own_names())
    public = urlsplit(settings.public_url or "").hostname
    if public:
        names.add(public)
    return frozenset(names)
