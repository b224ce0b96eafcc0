"""The metrics process: figures for Prometheus, and /health, over a small bounded HTTP server.

A scrape asks the other processes; what was answered is kept for a second, so that no number of
scrapes asks them more often. Connections, their time and their size are bounded, and a request that
is not a plain GET of one of two paths is an error: nothing that arrives here reaches the station.
"""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer
from types import FrameType
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from station.config import EX_CONFIG, Configuration, MetricsSettings
from station.ipc import Json
from station.log_lines import get_logger
from station.metrics import ASK_TIMEOUT_S, StationCollector
from station.processes import ask_all
from station.state import StationState
from station.systemd import exit_with_starter, notify

_LOG = get_logger("metrics")
_MAX_CONNECTIONS = 8
"""More are closed at once."""
_REQUEST_LIMIT_S = 3.0
"""A request must be whole by then, however its bytes come, and an answer taken."""
_MAX_REQUEST_BYTES = 8192
_KEPT_S = 1.0
_TICK_LIMIT_S = 2.0
"""A tick comes through every 250 ms; the light's lease has run out long before this."""
_HEALTHY: Final = (StationState.OPERATIONAL, StationState.HALTED)
"""A person who halted a station knows it; its workers are as alive as ever."""


def health(said: dict[str, tuple[Json | None, str]], stale_verdict_s: float) -> Json:
    """Whether every worker is alive and verdicts become durable, and what is wrong if not."""
    problems = [f"{name}: {why}" for name, (status, why) in said.items() if status is None]
    station = said["station"][0]
    if station is not None:
        problems += _station_problems(station, stale_verdict_s)
    station = station or {}
    return {
        "ok": not problems,
        "problems": problems,
        "state": station.get("state"),
        "last_verdict_age_s": station.get("verdict_age_s"),
        "verdict_waiting_s": station.get("waiting_s"),
        "tick_age_s": station.get("tick_age_s"),
        "up": {name: status is not None for name, (status, _) in said.items()},
    }


def _station_problems(station: Json, stale_verdict_s: float) -> list[str]:
    problems = []
    if station["state"] not in _HEALTHY:
        problems.append(f"the station is {station['state']}")
    tick_s, waiting_s = station["tick_age_s"], station["waiting_s"]
    if tick_s is None or tick_s > _TICK_LIMIT_S:
        since = "yet" if tick_s is None else f"for {tick_s:.1f} s"
        problems.append(f"no tick has come through all workers {since}")
    if waiting_s > stale_verdict_s:
        problems.append(f"a plate has been without a durable verdict for {waiting_s:.1f} s")
    return problems


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    body: bytes
    made_at: float


class _Pages:
    """What is served; each page is made anew once a second at most, by one thread at a time."""

    def __init__(self, runtime_dir: Path, stale_verdict_s: float) -> None:
        self._runtime_dir = runtime_dir
        self._stale_verdict_s = stale_verdict_s
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(StationCollector(runtime_dir))
        self._lock = threading.Lock()
        self._kept: dict[str, _Answer] = {}

    def answer(self, path: str, accept: str) -> _Answer | None:
        """None for a path that there is not."""
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return self._page(content_type, lambda: (200, encode(self._registry)))
        if path == "/health":
            return self._page("application/json", self._health)
        return None

    def _page(self, content_type: str, make: Any) -> _Answer:
        with self._lock:
            kept = self._kept.get(content_type)
            if kept is None or time.monotonic() - kept.made_at > _KEPT_S:
                status, body = make()
                kept = _Answer(status, content_type, body, time.monotonic())
                self._kept[content_type] = kept
            return kept

    def _health(self) -> tuple[int, bytes]:
        found = health(ask_all(self._runtime_dir, ASK_TIMEOUT_S), self._stale_verdict_s)
        return 200 if found["ok"] else 503, json.dumps(found).encode() + b"\n"


class _Handler(BaseHTTPRequestHandler):
    """One request a connection, read whole and with a deadline before it is looked at."""

    server: _Server
    server_version, sys_version = "vqi", ""
    protocol_version = "HTTP/1.0"

    def handle(self) -> None:
        head = _read_head(self.request)
        if head is not None:
            self.rfile = io.BufferedReader(io.BytesIO(head))
            self.handle_one_request()

    def do_GET(self) -> None:
        answer = self.server.pages.answer(
            self.path.partition("?")[0], self.headers.get("Accept", "")
        )
        if answer is None:
            self.send_error(404, "there are /metrics and /health")
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no events."""


def _read_head(connection: socket.socket) -> bytes | None:
    """A request's head; None if it is not whole in time, or too large."""
    deadline, head = time.monotonic() + _REQUEST_LIMIT_S, b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or len(head) > _MAX_REQUEST_BYTES:
            return None
        connection.settimeout(left_s)
        try:
            data = connection.recv(_MAX_REQUEST_BYTES)
        except OSError:
            return None
        if not data:
            return None
        head += data
    # Of a sendall this is the limit for all of it.
    connection.settimeout(_REQUEST_LIMIT_S)
    return head


class _Server(TCPServer):
    """A thread for each connection, so many at most."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, settings: MetricsSettings, pages: _Pages) -> None:
        self.address_family = socket.AF_INET6 if settings.address.version == 6 else socket.AF_INET
        self.pages = pages
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((str(settings.address), settings.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went, or did not read
        finally:
            self.shutdown_request(request)
            self._free.release()

    def service_actions(self) -> None:
        notify("WATCHDOG=1")


def serve(configuration: Configuration) -> int:
    """Serve until told to stop. Exit status 0, or 78 if the address cannot be listened at."""
    exit_with_starter()
    settings = configuration.metrics or MetricsSettings()
    pages = _Pages(configuration.station.runtime_dir, settings.stale_verdict_s)
    try:
        server = _Server(settings, pages)
    except OSError as error:
        where = f"{settings.address}:{settings.port}"
        _LOG.error(f"metrics.port {where} cannot be listened at: {error.strerror}")
        return EX_CONFIG

    def stop(number: int, frame: FrameType | None) -> None:
        # `shutdown` waits for the loop that this signal interrupts.
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    notify("READY=1")
    with server:
        server.serve_forever(poll_interval=0.25)
    return 0
