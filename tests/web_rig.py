"""The real page over a real, small log: served by the real server on a free port, in a thread."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.requests import Request
from station_rig import Rig, wait_until
from test_qms import opened, result

from station.config import load_configuration
from station.images import Draft, ImageFolder, Pixels
from station.ipc import PeerGone, connect
from station.journal_client import journal_path
from station.qms import DATABASE, IMAGES, Store
from station.record import ActuationBody, Body, ResultBody, Verdict, rfc3339
from station.roles import ANONYMOUS, Person, Role
from station.web.context import Web
from station.web.errors import PageError
from station.web.live import Live
from station.web.pages import WebRouter, add_routes
from station.web.server import Server, address_of, listen, make_web, server_of

Json = dict[str, Any]
STATION = "s"
PIN = "483920"
"""Of everybody whose session a test hands out."""
PIXELS = (320, 480)
"""Scan lines and scan line pixels of a plate."""
_BEGIN = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
_PERIOD = timedelta(seconds=6)
_TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.PASS, Verdict.UNDECIDED)


# --- a small log ----------------------------------------------------------------------------------


def small_journal(directory: Path, plates: int = 8, **changes: object) -> list[str]:
    """Plates with real pictures through the real writer, PASS, FAIL, PASS, UNDECIDED and so on, one
    every 6 s; `changes` are fields of every result. The ids of the results."""
    folder, ids = ImageFolder(directory / IMAGES), []
    with Store(directory) as store:
        for number in range(1, plates + 1):
            row = plate(folder, number, **changes)
            said = {"written_at": row.written_at}
            store.append([opened(number, number).model_copy(update=said), row, _shown(row)])
            ids.append(row.result_id)
    return ids


def plate(folder: ImageFolder, number: int, **changes: object) -> ResultBody:
    """A result whose pictures are durable; a FAIL has one scratch, boxed."""
    verdict = VERDICTS[(number - 1) % len(VERDICTS)]
    pixels = plate_pixels(number, is_scratched=verdict is Verdict.FAIL)
    draft = Draft(folder, pixels, band_rows=64)
    made = draft.finish(len(pixels), {"evidence", "preview"})
    folder.make_durable(made.written)
    box = {"x_px": 300, "y_px": 120, "w_px": 60, "h_px": 40}
    size = {"x_mm": 33.0, "y_mm": 14.0, "w_mm": 6.0, "h_mm": 4.0, "score": 0.93}
    more: Json = {
        "written_at": rfc3339(_BEGIN + number * _PERIOD),
        "part_id": f"LGP-{number:04d}",
        "plate_ordinal": number,
        "reason": "skewed" if verdict is Verdict.UNDECIDED else None,
        "score": 0.93 if verdict is Verdict.FAIL else 0.12,
        "defects": [box | size] if verdict is Verdict.FAIL else [],
        "left_px": 12,
        "width_px": pixels.shape[1],
        "length_px": pixels.shape[0],
        "pixels_sha256": made.pixels_sha256,
        "images": [item.body.model_dump() for item in made.written],
    }
    return result(number, verdict, **{**more, **changes})


def plate_pixels(number: int, is_scratched: bool) -> Pixels:
    """A bright plate with rows of dots and, where wanted, a dark scratch in the box."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[0 : PIXELS[0], 0 : PIXELS[1]]
    pixels = 150 + 20 * ((rows // 4 + columns // 4) % 2) + random.normal(0, 3, PIXELS)
    if is_scratched:
        on_scratch = (np.abs((rows - 140) - (columns - 330) * 0.4) < 2) & (abs(columns - 330) < 28)
        pixels[on_scratch] = 60
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _shown(row: ResultBody) -> Body:
    said = {"station_id": row.station_id, "written_at": row.written_at, "is_confirmed": True}
    told = {"result_id": row.result_id, "commanded_ns": 1, "shown_ns": 1}
    return ActuationBody.model_validate(said | told | {"command": str(row.verdict).lower()})


def damage(journal: Path) -> None:
    """Spoil a log's file, which no process holds open: it still opens, and of all its tables and
    indexes only `row` itself can be read."""
    path = journal / DATABASE
    with closing(sqlite3.connect(path)) as log:
        log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_bytes,) = log.execute("PRAGMA page_size").fetchone()
        pages = log.execute(
            "SELECT rootpage FROM sqlite_master WHERE rootpage > 0 AND name <> 'row'"
        ).fetchall()
    with path.open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * page_bytes)
            file.write(bytes(page_bytes))


# --- people ---------------------------------------------------------------------------------------


@dataclass
class GivenPeople:
    """Sessions that a test hands out: the cookie `given` names one."""

    is_open: bool = True
    """Whether who did not sign in may look."""
    sessions: dict[str, Person] = field(default_factory=dict)

    def person_of(self, request: Request) -> Person | None:
        given = self.sessions.get(request.cookies.get("given", ""))
        return given or (ANONYMOUS if self.is_open else None)

    def session_of(self, request: Request) -> str:
        return request.cookies.get("given", "")

    def has_users(self) -> bool:
        return True

    def confirm(self, person: Person, secret: str) -> None:
        if secret != PIN:
            raise PageError(403, "people.why.confirm_wrong")

    async def refresh(self) -> None: ...
    def prefer_language(self, person: Person, language: str) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class GivenLive:
    """What a test says that the station's processes said."""

    live: Live = field(default_factory=Live)

    def listen(self, listener: Callable[[Live], None]) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


# --- the page -------------------------------------------------------------------------------------


class PageClient(httpx.Client):
    """A browser of one person: keeps cookies, sends forms as the page's own script and forms do."""

    def __init__(self, rig: WebRig, session: str = "") -> None:
        super().__init__(base_url=rig.url, timeout=30.0)
        self.rig = rig
        if session:
            self.cookies.set("given", session)

    def token(self) -> str:
        """What every form of a page holds; any page has the header's forms."""
        found = _TOKEN.search(self.get("/sign-in").text)
        assert found is not None
        return found[1]

    def send_form(self, path: str, htmx: bool = False, **fields: Any) -> httpx.Response:
        """POST as a form of the page itself."""
        headers = {"origin": self.rig.url} | ({"hx-request": "true"} if htmx else {})
        return self.post(path, data={"csrf": self.token(), **fields}, headers=headers)

    def send_json(self, path: str, body: Json) -> httpx.Response:
        """POST to an action's JSON twin."""
        headers = {"origin": self.rig.url, "x-csrf-token": self.token()}
        return self.post(path, json=body, headers=headers)

    def as_role(self, role: Role, name: str = "") -> PageClient:
        """Another browser in which a person of this role is signed in."""
        return self.rig.client_of(role, name)


@dataclass
class WebRig:
    """A page that runs."""

    url: str
    web: Web
    station: Rig
    people: GivenPeople
    live: GivenLive
    plates: list[str]
    """Ids of the log's results, in order."""
    clients: list[PageClient] = field(default_factory=list)

    def client(self) -> PageClient:
        """A browser in which nobody is signed in."""
        return self._kept(PageClient(self))

    def client_of(self, role: Role, name: str = "") -> PageClient:
        person = Person(name or role.word, (name or role.word).title(), role)
        session = f"session-{person.name}"
        self.people.sessions[session] = person
        return self._kept(PageClient(self, session))

    def _kept(self, client: PageClient) -> PageClient:
        self.clients.append(client)
        return client


@contextmanager
def web_rig(
    folder: Path,
    plates: int = 8,
    web_lines: str = "",
    tables: str = "",
    more: Sequence[WebRouter] = (),
    **changes: object,
) -> Iterator[WebRig]:
    """The page over a log of so many plates. `web_lines` are further lines of `[web]`, `tables`
    further tables of the configuration, `more` further parts of the page, `changes` fields of every
    result. Share one in a module."""
    text = f"[web]\nport = 0\n{web_lines}\n{tables}"
    station = Rig(folder, tables=text, station={"id": STATION})
    ids = small_journal(station.journal, plates, **changes) if plates else []
    loaded = load_configuration(str(station.write()))
    people, live = GivenPeople(), GivenLive()
    web = make_web(loaded)
    web.people, web.live_source = people, live
    with serving(web, more) as url:
        rig = WebRig(url, web, station, people, live, ids)
        try:
            yield rig
        finally:
            for client in rig.clients:
                client.close()


@contextmanager
def web_client(folder: Path, **options: Any) -> Iterator[PageClient]:
    """As `web_rig`: a browser in which nobody is signed in; the rest is its `.rig`."""
    with web_rig(folder, **options) as rig:
        yield rig.client()


@contextmanager
def serving(web: Web, more: Sequence[WebRouter] = ()) -> Iterator[str]:
    """The page of `web` by the real server, in a thread; its address without a slash."""
    settings = web.settings
    listening, ready = listen(settings), threading.Event()
    server = server_of(web, ready.set)
    for router in more:
        add_routes(server.config.app, router.declared)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert ready.wait(30.0), "the page does not begin to listen"
    try:
        yield address_of(settings, listening).rstrip("/")
    finally:
        _stop(server, thread)


def _stop(server: Server, thread: threading.Thread) -> None:
    server.should_exit = True
    thread.join(30.0)
    assert not thread.is_alive(), "the page does not end"


# --- real processes -------------------------------------------------------------------------------


@contextmanager
def running_web(config: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`vqi web --json`, listening: its address without a slash, and its process."""
    command = [sys.executable, "-P", "-m", "station.cli", "web", "--config", str(config), "--json"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"vqi web ended with {process.wait(30.0)}"
        yield json.loads(line)["url"].rstrip("/"), process
    finally:
        process.terminate()
        process.wait(30.0)
        process.stdout.close()


@contextmanager
def running_journal(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    """`vqi serve journal` of a station whose configuration is written, listening."""
    config = rig.folder / "station.toml"
    command = [sys.executable, "-P", "-m", "station.cli", "serve", "journal"]
    process = subprocess.Popen([*command, "--config", str(config)])
    try:
        wait_until(lambda: _listens(rig.runtime), 60.0, "journal process")
        yield process
    finally:
        process.terminate()
        process.wait(30.0)


def _listens(runtime: Path) -> bool:
    try:
        with connect(journal_path(runtime)):
            return True
    except (PeerGone, FileNotFoundError):
        return False


def until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    """Poll with a deadline."""
    wait_until(condition, limit_s, what)
