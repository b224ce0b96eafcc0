"""A client that attacks the page: where a text can go, how it is sent, what counts as a hit; and a
log that says hostile things wherever a log can."""

from __future__ import annotations

import http.client
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import quote, urlencode, urlsplit

from hostile_requests import CANARY, in_path, texts
from hostile_texts import STORABLE
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from web_rig import PageClient, WebRig, plate

from station.images import ImageFolder
from station.qms import IMAGES, Store
from station.record import AttentionBody, ChangeBody, ResultBody, ReviewBody, Verdict
from station.roles import Person, Role
from station.web.context import Web
from station.web.pages import Declared

MAY_BE_SLOW_S = 20.0
_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")
_INJECTED = (Web, Person, Request, Response)
_UNENDING = ("text/event-stream", "application/gzip")
"""Not read to their end: a stream has none, and support's archive takes its time."""


# --- where a text can go --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of one route that takes what a client says."""

    route: Declared
    where: str
    """path, query, form"""
    name: str


@cache
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
    good = {"verdict": "FAIL", "reason": "confirmed", "nonce": "n" * 16, "language": "de"}
    good |= {"theme": "dark", "back": "/", "result_id": rig.plates[1], "supersedes": "1"}
    return {name: good[name] for name in _fields_of(route) if name in good}


@cache
def _fields_of(route: Declared) -> tuple[str, ...]:
    """Of the form that an action takes."""
    form = get_type_hints(route.view).get("form")
    return tuple(getattr(form, "model_fields", ()))


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


def hit(rig: WebRig, answer: Answer, role: Role | None = None) -> str:
    """What an attack achieved; empty if nothing. An engineer may know where files lie."""
    text = answer.body.decode("utf-8", "replace")
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    if CANARY in text or "root:x:0:0" in text or "SQLite format 3" in text:
        return "a file from outside was read"
    if "Traceback (most recent" in text:
        return "it tells of its insides"
    if str(rig.station.folder) in text and (role is None or role < Role.ENGINEER):
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


# --- a log with whatever a log can hold -----------------------------------------------------------


STORED = [
    *(one.text for one in texts() if one.kind == "markup"),
    *(text for text in STORABLE if text and len(text) < 1000),
]


def write_hostile_log(directory: Path) -> list[str]:
    """Results, reviews, changes and attentions that say hostile things in each of their texts, as
    an older program or another tool may have written them. The ids of the results."""
    folder, ids = ImageFolder(directory / IMAGES), []
    pairs = [STORED[number : number + 4] for number in range(0, len(STORED), 4)]
    with Store(directory) as store:
        for number, said in enumerate(pairs, start=101):
            row = plate(folder, number, **_texts_of(said))
            ids.append(row.result_id)
            store.append([row, *_about(row, said)])
    return ids


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


class Attacker:
    """Sends over one connection, opens it again where the page closed it."""

    def __init__(self, rig: WebRig, browser: PageClient) -> None:
        self.rig = rig
        self.token = browser.token()
        self.cookie = "; ".join(f"{c.name}={c.value}" for c in browser.cookies.jar)
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.rig.url).netloc, timeout=MAY_BE_SLOW_S)

    def send(self, request: Sent) -> Answer | None:
        """None where the client's own library will not send it."""
        try:
            return self._sent(request)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()
            self._connection = self._connect()
            return self._sent(request)
        except TimeoutError as error:
            raise AssertionError(f"no end of the answer to {request.target[:200]}") from error

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
        is_stream = (response.getheader("content-type") or "").startswith(_UNENDING)
        body = b"" if is_stream else response.read()
        if is_stream:
            connection.close()
        return Answer(response.status, headers, body)

    def attack(self, slot: Slot, text: str) -> str:
        request = sent(self.rig, slot, text, self.token, self.cookie)
        answer = self.send(request)
        found = hit(self.rig, answer, slot.route.role) if answer is not None else ""
        return f"{slot.route.method} {slot.route.path} {slot.where} {slot.name}: {found}" * bool(
            found
        )

    def close(self) -> None:
        self._connection.close()
