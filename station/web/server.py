"""The process of the page: listens, serves, stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from station.config import EX_CONFIG, ConfigError, Configuration, Loaded, WebSettings
from station.log_lines import get_logger
from station.people import PeopleError
from station.systemd import exit_with_starter, notify
from station.web.app import create_app
from station.web.certificates import TlsFiles, certificate_at, tls_context, tls_files
from station.web.context import Web
from station.web.frontier import MAX_HEAD_BYTES
from station.web.listening import FairListener
from station.web.live import Poller
from station.web.people import StationPeople
from station.web.render import warm_up

_LOG = get_logger("web")
_HEAD_LIMIT_S = 10.0
"""A request's head must be whole by then, however its bytes come."""
_KEEP_ALIVE_S = 15
_MAX_CONNECTIONS = 1500
_STOP_LIMIT_S = 3
_WATCHDOG_EVERY_S = 0.5
_DAY_S = 86_400.0


class PatientProtocol(H11Protocol):
    """Waits for a request's head for a bounded time, also before the first one of a connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_limit = self.loop.call_later(_HEAD_LIMIT_S, self._give_up)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head_limit.cancel()

    def data_received(self, data: bytes) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._head_limit.cancelled():
            self._head_limit = self.loop.call_later(_HEAD_LIMIT_S, self._give_up)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_limit.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def make_web(loaded: Loaded[Configuration]) -> Web:
    """What all pages work with, of this station. Raises `PeopleError`."""
    return Web(loaded, StationPeople(loaded), Poller(loaded.value))


def server_of(web: Web, tell: Callable[[], None]) -> Server:
    """The page's server; `tell` is called when it listens. Raises `ConfigError` if the certificate
    cannot serve."""
    files = tls_files(web.settings)
    web.certificate = certificate_at(files.cert) if files else None
    return Server(_uvicorn(web, files), tell, web)


def serve(loaded: Loaded[Configuration], tell: Callable[[str], None]) -> int:
    """Serve until told to stop. Exit status 0, or 78 if it cannot as configured."""
    exit_with_starter()
    try:
        web = make_web(loaded)
    except PeopleError as error:
        _LOG.error(f"web.state_dir: {error}")
        return EX_CONFIG
    settings = web.settings
    problem = refusal(settings, web.people.has_users())
    if problem:
        _LOG.error(problem)
        return EX_CONFIG
    try:
        tls_files(settings)
    except ConfigError as error:
        _LOG.error(str(error))
        return EX_CONFIG
    try:
        listening = listen(settings)
        server = server_of(web, lambda: tell(address_of(settings, listening)))
    except OSError as error:
        where = f"web.host {settings.host}, port {settings.port}"
        _LOG.error(f"{where} cannot be listened at: {error.strerror or error}")
        return EX_CONFIG
    _allow_files()
    # It tells of starts and stops; what it warns of is worth a line.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    warm_up()
    # What is there now stays: the collector looking through it again and again held pages up.
    gc.freeze()
    server.run(sockets=[listening])
    return 0


def _allow_files() -> None:
    """As many as the connections that are let in need, where this process may have them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 2 * _MAX_CONNECTIONS if most == resource.RLIM_INFINITY else most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 2 * _MAX_CONNECTIONS), most))


def refusal(settings: WebSettings, has_users: bool) -> str:
    """Why this page may not be shown as configured; empty if it may."""
    if settings.is_local or has_users:
        return ""
    return (
        f"web.host {settings.public_url or settings.host} can be reached from other machines, and "
        "nobody can sign in: add the first user with `vqi user add NAME --role admin`, or set "
        'host = "127.0.0.1"'
    )


def listen(settings: WebSettings) -> socket.socket:
    """A socket at the configured address. Raises OSError."""
    family = socket.AF_INET6 if settings.host.version == 6 else socket.AF_INET
    listening = FairListener(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio does it for sockets that name their protocol only; without, each answer waits 40 ms
    # for the acknowledgement of its head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listening.bind((str(settings.host), settings.port))
        listening.listen(512)
    except OSError:
        listening.close()
        raise
    return listening


def address_of(settings: WebSettings, listening: socket.socket) -> str:
    """What people type."""
    if settings.public_url:
        return settings.public_url
    port = listening.getsockname()[1]
    host = str(settings.host)
    if settings.host.is_unspecified:
        host = socket.gethostname()
    elif settings.host.version == 6:
        host = f"[{host}]"
    return f"{'https' if settings.is_tls else 'http'}://{host}:{port}/"


def _uvicorn(web: Web, files: TlsFiles | None) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(web),
        http=PatientProtocol,
        ws="none",
        loop="station.web.listening:PageLoop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_LIMIT_S,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_context_factory=(lambda *_: tls_context(files)) if files else None,
    )


class Server(uvicorn.Server):
    """Tells when it listens, and that its loop turns; ends its streams before it waits for what is
    in work."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None], web: Web) -> None:
        super().__init__(config)
        self._web = web
        if not config.loaded:
            config.load()
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._turning = asyncio.create_task(self._turn())
        notify("READY=1")
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._turning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._turning
        self._web.end_streams()
        await super().shutdown(sockets)

    async def _turn(self) -> None:
        looked_s = float("-inf")
        while True:
            notify("WATCHDOG=1")
            if time.monotonic() - looked_s > _DAY_S:
                looked_s = time.monotonic()
                self._look_at_certificate()
            await asyncio.sleep(_WATCHDOG_EVERY_S)

    def _look_at_certificate(self) -> None:
        served = self._web.certificate
        if served and (why := served.warning(datetime.now(UTC))):
            _LOG.warning("the certificate ends soon", why=why)
