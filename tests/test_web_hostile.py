"""Five hundred payloads against every route of the page: nothing outside is read, nothing smuggled
runs, nothing is written, no request is answered by a failure, and the page goes on."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hostile_requests import CANARY, Headers, Text, forged, in_path, rebound, texts, wire
from hostile_texts import STORABLE
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from web_rig import PageClient, WebRig, plate, running_journal, web_rig

from station.images import ImageFolder
from station.log_reader import Reader
from station.qms import IMAGES, Store
from station.record import AttentionBody, ChangeBody, ResultBody, ReviewBody, Verdict
from station.web.context import Web
from station.web.pages import Declared
from station.web.roles import Person, Role

RUNS_LONG = os.environ.get("VQI_LONG") == "1"
_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")
_INJECTED = (Web, Person, Request, Response)
_MAY_BE_SLOW_S = 20.0
_STREAMS = "text/event-stream"


# --- where a text can go --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of one route that takes what a client says."""

    route: Declared
    where: str
    """path, query, form"""
    name: str


def slots_of(route: Declared) -> list[Slot]:
    """Every parameter; a route without any takes a query that it does not know."""
    in_the_path = [match[1] for match in _PARAMETER.finditer(route.path)]
    found = [Slot(route, "path", name) for name in in_the_path]
    hints = get_type_hints(route.view, include_extras=True)
    for name in inspect.signature(route.view).parameters:
        hint = hints[name]
        if name in in_the_path or hint in _INJECTED:
            continue
        found += _form_slots(route, hint) if name == "form" else [Slot(route, "query", name)]
    return found or [Slot(route, "query", "nothing")]


def _form_slots(route: Declared, model: type[BaseModel]) -> list[Slot]:
    return [Slot(route, "form", name) for name in model.model_fields]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it goes out."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


def sent(rig: WebRig, slot: Slot, text: str, token: str, cookie: str) -> Sent:
    """A request whose every other parameter is good, with the text in one slot."""
    route = slot.route
    good = {"result_id": rig.plates[1], "name": "base.css", "seq": "1", "number": "0"}

    def part(match: re.Match[str]) -> str:
        is_slot = (slot.where, slot.name) == ("path", match[1])
        return in_path(text) if is_slot else quote(good.get(match[1], "1"), safe="")

    target = _PARAMETER.sub(part, route.path)
    if slot.where == "query":
        target += "?" + urlencode({slot.name: text}, errors="surrogatepass")
    headers = {"host": urlsplit(rig.url).netloc, "cookie": cookie}
    if route.method == "GET":
        return Sent("GET", target, headers)
    headers |= {"origin": rig.url, "x-csrf-token": token}
    fields = _good_form(rig, route) | ({slot.name: text} if slot.where == "form" else {})
    if route.is_json:
        body = json.dumps(fields).encode()
        return Sent("POST", target, headers | {"content-type": "application/json"}, body)
    body = urlencode(fields, errors="surrogatepass").encode()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    return Sent("POST", target, headers | kind, body)


def _good_form(rig: WebRig, route: Declared) -> dict[str, Any]:
    """Values that forms of this page are full of."""
    hint = get_type_hints(route.view).get("form")
    good = {"verdict": "FAIL", "reason": "confirmed", "nonce": "n" * 16, "language": "de"}
    good |= {"theme": "dark", "back": "/", "result_id": rig.plates[1], "supersedes": "1"}
    return {name: good[name] for name in getattr(hint, "model_fields", {}) if name in good}


# --- what is a hit --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


class _Active(HTMLParser):
    """What in a page would run, or fetch from elsewhere."""

    _ADDRESSES = ("href", "src", "action", "formaction", "data", "srcdoc", "poster", "xlink:href")
    _BAD_TAGS = ("iframe", "object", "embed", "base", "portal", "applet", "frame", "marquee")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name.lower(): (value or "") for name, value in attrs}
        if tag in self._BAD_TAGS or tag == "style":
            self.found.append(f"<{tag}>")
        if tag == "script" and not given.get("src", "").startswith("/static/"):
            self.found.append(f"<script {given}>")
        if tag == "meta" and "http-equiv" in given and given["http-equiv"] != "refresh":
            self.found.append(f"<meta {given}>")
        self.found += [
            f"{tag} {name}={value[:60]}"
            for name, value in given.items()
            if self._is_active(name, value)
        ]

    def _is_active(self, name: str, value: str) -> bool:
        if name.startswith(("on", "hx-on")) or name == "style":
            return True
        squeezed = re.sub(r"[\s\x00-\x1f]", "", value).lower()
        is_address = name in self._ADDRESSES or name in ("hx-get", "hx-post", "hx-put")
        is_foreign = squeezed.startswith(("javascript:", "vbscript:", "data:text", "//", "http"))
        return is_address and (is_foreign or squeezed.startswith("/\\"))


def active_parts(html: str) -> list[str]:
    """Scripts, handlers, foreign addresses of a page; the page's own have none of these."""
    parser = _Active()
    parser.feed(html)
    return parser.found


def hit(rig: WebRig, answer: Answer) -> str:
    """What an attack achieved; empty if nothing."""
    text = answer.body.decode("utf-8", "replace")
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    if CANARY in text or "root:x:0:0" in text or "SQLite format 3" in text:
        return "a file from outside was read"
    if "Traceback (most recent" in text or str(rig.station.folder) in text:
        return "it tells of its insides"
    if any("vqix" in key.lower() for key, _ in answer.headers):
        return "a header was smuggled"
    if "vqix=1" in answer.header("set-cookie"):
        return "a cookie was smuggled"
    place = answer.header("location") or answer.header("hx-redirect")
    if place and not re.fullmatch(r"/(?![/\\])[!-~]*", place):
        return f"it leads elsewhere: {place[:80]}"
    if not answer.header("content-security-policy") or not answer.header("x-content-type-options"):
        return "an answer without its headers"
    if answer.header("content-type").startswith("text/html") and active_parts(text):
        return f"it runs: {active_parts(text)[:3]}"
    return ""


# --- the page, and a log with whatever a log can hold ---------------------------------------------


STORED = [
    *(one.text for one in texts() if one.kind == "markup"),
    *(text for text in STORABLE if text and len(text) < 1000),
]


def write_hostile_log(directory: Path) -> list[str]:
    """Results, reviews, changes and attentions that say hostile things in each of their texts, as
    an older program or another tool may have written them. The ids of the results."""
    folder, ids = ImageFolder(directory / IMAGES), []
    pairs = list(itertools.batched(STORED, 4)) if hasattr(itertools, "batched") else _fours(STORED)
    with Store(directory) as store:
        for number, said in enumerate(pairs, start=101):
            row = plate(folder, number, **_texts_of(said))
            ids.append(row.result_id)
            store.append([row, *_about(row, said)])
    return ids


def _fours(those: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(those[n : n + 4]) for n in range(0, len(those), 4)]


def _texts_of(said: Sequence[str]) -> dict[str, Any]:
    names = ("part_id", "lot", "job_id", "operator")
    more = {"recipe_id": said[0][:60], "model_id": said[-1][:60], "camera_serial": said[0][:60]}
    return {**dict(zip(names, said, strict=False)), **more, "shift": said[-1]}


def _about(row: ResultBody, said: Sequence[str]) -> list[Any]:
    whose = {"station_id": row.station_id, "written_at": row.written_at}
    review = {"result_id": row.result_id, "verdict": Verdict.FAIL, "reviewer": said[0]}
    review |= {"reason": said[-1], "note": " ".join(said), "defects": []}
    change = {"what": said[0], "who": said[-1], "detail": {said[0]: said[-1]}}
    attention = {"result_id": row.result_id, "since_result_id": row.result_id, "name": said[0]}
    attention |= {"is_begin": True, "text": said[-1], "measured": 1.0, "limit": 0.5}
    return [
        ReviewBody.model_validate(whose | review),
        ChangeBody.model_validate(whose | change),
        AttentionBody.model_validate(whose | attention | {"unit": said[0]}),
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    folder = tmp_path_factory.mktemp("hostile-web")
    (folder / "canary.txt").write_text(CANARY)
    with web_rig(folder) as rig:
        rig.plates += write_hostile_log(rig.station.journal)
        (rig.station.journal / "canary.txt").write_text(CANARY)
        yield rig


class Attacker:
    """Sends over one connection, opens it again where the page closed it."""

    def __init__(self, rig: WebRig, browser: PageClient) -> None:
        self.rig = rig
        self.token = browser.token()
        self.cookie = "; ".join(f"{c.name}={c.value}" for c in browser.cookies.jar)
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.rig.url).netloc, timeout=_MAY_BE_SLOW_S)

    def send(self, request: Sent) -> Answer | None:
        """None where the client's own library will not send it."""
        try:
            return self._sent(request)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()
            self._connection = self._connect()
            return self._sent(request)

    def _sent(self, request: Sent) -> Answer | None:
        connection = self._connection
        try:
            connection.putrequest(request.method, request.target, skip_host=True)
            for name, value in request.headers.items():
                connection.putheader(name, value.encode("utf-8", "surrogatepass"))
            if request.method == "POST":
                connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body or None)
        except (ValueError, UnicodeError, http.client.InvalidURL):
            connection.close()
            return None
        response = connection.getresponse()
        headers = response.getheaders()
        is_stream = (response.getheader("content-type") or "").startswith(_STREAMS)
        body = b"" if is_stream else response.read()
        if is_stream:
            connection.close()
        return Answer(response.status, headers, body)

    def attack(self, slot: Slot, text: str) -> str:
        request = sent(self.rig, slot, text, self.token, self.cookie)
        answer = self.send(request)
        found = hit(self.rig, answer) if answer is not None else ""
        return f"{slot.route.method} {slot.route.path} {slot.where} {slot.name}: {found}" * bool(
            found
        )

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def attacker(rig: WebRig) -> Iterator[Attacker]:
    with contextlib.closing(Attacker(rig, rig.client_of(Role.ENGINEER))) as attacker:
        yield attacker


def newest_row(rig: WebRig) -> int:
    with Reader(rig.station.journal) as reader:
        return reader.last_seq()


def _attacks(rig: WebRig, those: Sequence[Text], share: int) -> Iterator[tuple[Slot, str]]:
    """Each text against each `share`-th route, another slot of it each time; in the end every text
    met every share of the routes and every slot met texts of every kind."""
    places = [slots_of(route) for route in rig.web.routes]
    for number, one in enumerate(those):
        for place, slots in enumerate(places):
            if (number + place) % share == 0:
                yield slots[number // share % len(slots)], one.text


def test_some_texts_of_each_kind_against_every_route(rig: WebRig, attacker: Attacker) -> None:
    kinds = {one.kind: one for one in texts()}
    hits = [attacker.attack(slot, text) for slot, text in _attacks(rig, list(kinds.values()), 4)]
    assert not any(hits), [one for one in hits if one]


@pytest.mark.long
def test_every_text_against_every_route(rig: WebRig, attacker: Attacker) -> None:
    with running_journal(rig.station):
        hits = [attacker.attack(slot, text) for slot, text in _attacks(rig, texts(), 3)]
    found = [one for one in hits if one]
    assert not found, (len(found), found[:20])


# --- whose request, and for whom ------------------------------------------------------------------


def _forms(rig: WebRig) -> list[Declared]:
    return [route for route in rig.web.routes if route.method == "POST"]


def _with(request: Sent, one: Headers, *without: str) -> Sent:
    kept = {name: value for name, value in request.headers.items() if name not in without}
    return replace(request, headers=kept | dict(one.headers))


def test_a_form_of_another_page_changes_nothing(rig: WebRig, attacker: Attacker) -> None:
    """Refused before the form is looked at: 403, 413, 415 or 422, and no row."""
    before = newest_row(rig)
    for number, route in enumerate(_forms(rig)):
        good = sent(rig, slots_of(route)[0], "x", attacker.token, attacker.cookie)
        for one in forged() if RUNS_LONG else forged()[number % 11 :: 11]:
            answer = attacker.send(_with(good, one, "origin", "x-csrf-token"))
            assert answer is not None
            assert answer.status in (401, 403, 413, 415, 421), (route.path, one, answer.status)
            assert not hit(rig, answer)
    assert newest_row(rig) == before


def test_nothing_is_answered_under_another_name(rig: WebRig, attacker: Attacker) -> None:
    routes = rig.web.routes if RUNS_LONG else rig.web.routes[::7]
    for route in routes:
        good = sent(rig, slots_of(route)[0], "x", attacker.token, attacker.cookie)
        for one in rebound():
            answer = attacker.send(_with(good, one))
            assert answer is None or answer.status in (400, 421), (route.path, one, answer.status)


def test_a_role_does_what_it_may_and_no_more(rig: WebRig) -> None:
    """Everybody below a route's role is refused, by page and by JSON, with a good token."""
    before = newest_row(rig)
    for role in (None, *Role):
        client = rig.client() if role is None else rig.client_of(role, f"some-{role.word}")
        with contextlib.closing(Attacker(rig, client)) as attacker:
            for route in rig.web.routes:
                if route.role is None or (role is not None and role >= route.role):
                    continue
                if role is None and route.method == "GET" and route.role is Role.VIEWER:
                    continue
                slot = slots_of(route)[0]
                answer = attacker.send(sent(rig, slot, "x", attacker.token, attacker.cookie))
                assert answer is not None
                is_led_away = answer.header("location").startswith("/sign-in")
                assert answer.status in (401, 403) or is_led_away, (role, route.path, answer.status)
    assert newest_row(rig) == before


# --- bytes ----------------------------------------------------------------------------------------


def _exchange(rig: WebRig, request: bytes, limit_s: float = _MAY_BE_SLOW_S) -> bytes:
    """What comes back for bytes as they are, until the page closes or has nothing more to say."""
    address = urlsplit(rig.url)
    came = b""
    with socket.create_connection((address.hostname, address.port), timeout=limit_s) as wires:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wires.sendall(request)
        with contextlib.suppress(ConnectionResetError, TimeoutError, BrokenPipeError):
            wires.shutdown(socket.SHUT_WR)
            while chunk := wires.recv(65_536):
                came += chunk
    return came


def test_no_bytes_on_the_wire_do_harm(rig: WebRig) -> None:
    host = urlsplit(rig.url).netloc.encode()
    for one in wire():
        came = _exchange(rig, one.request.replace(b"{host}", host))
        status = came[:12].decode("latin-1")
        assert not came or re.match(r"HTTP/1\.[01] (?:2\d\d|3\d\d|4\d\d|501|505)", status), (
            one.request[:60],
            came[:60],
        )
        assert CANARY.encode() not in came, one.request[:80]
        assert b"root:x:0:0" not in came, one.request[:80]
        assert b"evil.example" not in came.partition(b"\r\n\r\n")[0], one.request[:80]
    assert rig.client().get("/health").status_code in (200, 503)


def test_a_body_without_end_is_cut_off(rig: WebRig, attacker: Attacker) -> None:
    """Refused by its size before it is read whole, said or not said, by every action."""
    for route in _forms(rig) if RUNS_LONG else _forms(rig)[:3]:
        good = sent(rig, slots_of(route)[0], "x", attacker.token, attacker.cookie)
        kind = good.headers["content-type"]
        for body in _endless(kind):
            answer = attacker.send(replace(good, body=body))
            assert answer is not None
            assert answer.status in (400, 403, 413, 422), (route.path, answer.status, body[:20])
        head = "".join(f"{name}: {value}\r\n" for name, value in good.headers.items())
        chunks = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        start = f"POST {good.target} HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n\r\n"
        came = _exchange(rig, start.encode() + chunks * 40)
        assert came[9:12] in (b"413", b"400", b"403"), (route.path, came[:60])


def _endless(kind: str) -> list[bytes]:
    if "json" in kind:
        deep = b"[" * 60_000
        return [b'{"note": "' + b"a" * 300_000 + b'"}', deep, b'{"a":' * 12_000]
    return [b"note=" + b"a" * 300_000, b"&".join(b"a%d=1" % n for n in range(9_000)), b"&" * 63_000]


@pytest.mark.long
def test_who_sends_byte_by_byte_holds_up_nobody(rig: WebRig) -> None:
    """300 connections that never finish their request; a browser is answered as before, and in the
    end the page lets go of them."""
    address = urlsplit(rig.url)
    with contextlib.ExitStack() as open_ones:
        slow = [
            open_ones.enter_context(socket.create_connection((address.hostname, address.port)))
            for _ in range(300)
        ]
        for number, one in enumerate(slow):
            one.sendall((b"G", b"GET / HTTP/1.1\r\nX-", b"POST / HTTP/1.1\r\nHost: l")[number % 3])
        answer = rig.client().get("/health")
        assert answer.status_code in (200, 503)
        for one in slow:
            one.settimeout(60.0)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) in (b"", b"H"), "the page waits for ever"
