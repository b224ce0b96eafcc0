"""What arrives at the page's port: whatever it is, it is answered, refused, or given up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response, StreamingResponse
from web_rig import WebRig, until, web_rig

from station.roles import Role
from station.web import listening, server
from station.web.certificates import make_certificate
from station.web.pages import Declared, WebRouter

MUST_HAVE = {
    "content-security-policy": "default-src 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=()",
    "x-request-id": "",
    "cache-control": "",
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("http")) as rig:
        yield rig


def check_headers(answer: httpx.Response) -> None:
    for name, value in MUST_HAVE.items():
        assert value in answer.headers[name], (answer.request.url, name)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "server" not in answer.headers


def filled(rig: WebRig, one: Declared) -> str:
    """An address of a route: of the first plate, else a number that nobody has."""
    return re.sub(
        r"{(\w+)(:\w+)?}", lambda m: rig.plates[1] if m[1] == "result_id" else "7", one.path
    )


def quick_routes(rig: WebRig) -> list[Declared]:
    """Without event streams, which do not end."""
    return [one for one in rig.web.routes if "event-stream" not in one.media_type]


# --- every route ----------------------------------------------------------------------------------


def test_no_answer_of_any_route_lacks_a_header_or_reveals_how_it_failed(rig: WebRig) -> None:
    admin = rig.client_of(Role.ADMIN)
    token = admin.token()
    for one in quick_routes(rig):
        headers = {"origin": rig.url, "x-csrf-token": token, "accept": "application/json"}
        sent = {"json": {}} if one.method == "POST" else {}
        answer = admin.request(one.method, filled(rig, one), headers=headers, **sent)
        check_headers(answer)
        assert answer.status_code != 500, (one.path, answer.text)
        assert "Traceback" not in answer.text


def test_every_action_wants_origin_and_token_of_whoever_sends_it(rig: WebRig) -> None:
    admin = rig.client_of(Role.ADMIN)
    token = admin.token()
    for one in rig.web.routes:
        if one.kind != "action":
            continue
        for headers in (
            {"origin": rig.url},
            {"x-csrf-token": token},
            {"origin": "null", "x-csrf-token": token},
            {"origin": f"{rig.url}.evil.example", "x-csrf-token": token},
            {"origin": rig.url, "x-csrf-token": "f" * 64},
        ):
            sent = {"json": {}} if one.is_json else {"data": {}}
            answer = admin.post(filled(rig, one), headers=headers, **sent)  # type: ignore[arg-type]
            assert answer.status_code == 403, (one.path, headers)


def test_every_route_states_its_role_and_its_twin(rig: WebRig) -> None:
    paths = {(one.method, one.path) for one in rig.web.routes}
    assert len(paths) == len(rig.web.routes), "an address is declared twice"
    for one in rig.web.routes:
        if one.kind != "data" and not one.is_json:
            twin = "/index.json" if one.path == "/" else f"{one.path}.json"
            assert (one.method, twin) in paths


def test_the_description_names_every_address_for_programs_once(rig: WebRig) -> None:
    described = rig.client().get("/openapi.json").json()
    operations = [
        operation for methods in described["paths"].values() for operation in methods.values()
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    shown = {
        one.path.replace(":path", "") for one in rig.web.routes if one.kind == "data" or one.is_json
    }
    assert set(described["paths"]) == shown
    for operation in operations:
        assert operation["summary"]
        schema = operation["responses"]["422"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    page = rig.client().get("/api").text
    assert all(path in page.replace(":path", "") for path in shown)


# --- names, sizes, methods ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "",
        "[::2]",
        "[[::1]]",
        "a b",
    ],
)
def test_a_foreign_name_is_not_answered(rig: WebRig, host: str) -> None:
    answer = raw(rig, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))
    assert b"problems" not in answer


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "x-forwarded-proto", "X-Forwarded-Host", "Forwarded", "Via"]
)
def test_a_proxy_that_the_configuration_does_not_name_shows_nobody_anything(
    rig: WebRig, header: str
) -> None:
    """The page takes who comes from this machine for who sits at it."""
    answer = rig.client().get("/api.json", headers={header: "10.0.0.7"})
    assert (answer.status_code, answer.json()["key"]) == (421, "errors.proxy")
    assert "web.public_url" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"])
def test_this_machine_is_called_by_each_of_its_names(rig: WebRig, host: str) -> None:
    assert rig.client().get("/api.json", headers={"host": host}).status_code == 200


def test_what_is_too_much_is_refused_before_it_is_read(rig: WebRig) -> None:
    client = rig.client()
    headers = {"origin": rig.url, "x-csrf-token": client.token()}
    long = client.get("/nothing?" + "a" * 5000)
    assert (long.status_code, "too long" in long.text) == (414, True)
    check_headers(long)
    large = client.post("/language.json", content=b"[" * 70_000, headers=headers)
    assert large.status_code == 413
    said = {"content-type": "application/json", **headers}
    unsaid = client.post("/language.json", content=iter([b" " * 40_000] * 3), headers=said)
    assert unsaid.status_code == 413, "of a length that nobody said"
    assert unsaid.json()["key"] == "errors.too_large"
    many = client.post("/language", data={f"f{n}": "1" for n in range(500)}, headers=headers)
    assert many.status_code in (400, 413)
    assert client.get("/nothing", headers={"x-a": "a" * 20_000}).status_code in (400, 431)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"])
def test_another_method_is_refused_with_the_ones_that_there_are(rig: WebRig, method: str) -> None:
    answer = rig.client().request(method, "/health")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    check_headers(answer)


def test_head_answers_as_get_without_a_body(rig: WebRig) -> None:
    client = rig.client()
    head, get = client.head("/api"), client.get("/api")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"NaN", b"\xff\xfe", b'"' * 1000, b"[" * 10_000),
        *(b'{"language": 7}', b'{"language": "\\ud800"}', b'{"language": "de", "language": "x"}'),
    ],
)
def test_a_body_that_is_none_is_refused_and_says_where(rig: WebRig, body: bytes) -> None:
    client = rig.client()
    headers = {"origin": rig.url, "x-csrf-token": client.token()}
    headers |= {"content-type": "application/json"}
    answer = client.post("/language.json", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["key"].startswith("errors.")


def test_a_form_leads_back_to_this_page_only(rig: WebRig) -> None:
    client = rig.client()
    elsewhere = ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", "a")
    for back in (*elsewhere, "//[", "http://[", "/\n/x"):
        assert client.send_form("/theme", theme="dark", back=back).headers["location"] == "/"
    assert client.send_form("/theme", theme="dark", back="/api").headers["location"] == "/api"
    assert 'data-theme="dark"' in client.get("/api").text
    by_script = client.send_form("/theme", htmx=True, theme="light", back="/api")
    assert (by_script.status_code, by_script.headers["hx-redirect"]) == (204, "/api")
    by_script = client.send_form("/theme", htmx=True, theme="light", back="/中?a=%20&b=ü")
    assert by_script.headers["hx-redirect"] == "/%E4%B8%AD?a=%20&b=%C3%BC"
    token = {"csrf": client.token(), "theme": "dark"}
    answer = client.post("/theme", data=token, headers={"origin": "http://["})
    assert answer.status_code == 403
    assert client.get("/sign-in?back=//[").status_code == 200


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_is_a_page_or_json_and_its_reference_is_in_the_log(
    rig: WebRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = rig.client()
    page, twin = client.get("/nothing"), client.get("/nothing.json")
    assert page.headers["content-type"].startswith("text/html")
    assert twin.json() == {
        "error": "There is no such page.",
        "key": "errors.not_found",
        "reference": twin.headers["x-request-id"],
    }
    assert client.get("/nothing", headers={"accept": "application/json"}).json()["key"]
    until(lambda: twin.json()["reference"] in caplog.text, "line of the log")
    client.send_form("/theme", theme="dark")
    rig.client_of(Role.ENGINEER, "eve").send_form("/sign-out")
    until(lambda: "'/sign-out'" in caplog.text, "line of the action")
    assert "'/theme'" not in caplog.text


def test_who_must_sign_in_is_led_there_and_back(rig: WebRig) -> None:
    rig.people.is_open = False
    try:
        answer = rig.client().get("/api?a=1&b=2")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/sign-in?back=%2Fapi%3Fa%3D1%26b%3D2"
        assert rig.client().get("/api.json").status_code == 401
    finally:
        rig.people.is_open = True


# --- slow, broken and many ------------------------------------------------------------------------


def raw(rig: WebRig, text: str, limit_s: float = 30.0) -> bytes:
    """What comes back for bytes, until the other side ends."""
    url = httpx.URL(rig.url)
    with socket.create_connection((url.host, url.port), limit_s) as connection:
        connection.sendall(text.encode("latin-1"))
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                received += data
    return received


@pytest.mark.parametrize(
    "text",
    [
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        (
            "POST /language HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "POST /language HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_not_taken_for_one(rig: WebRig, text: str) -> None:
    answer = raw(rig, text + "\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 411"))
    assert rig.client().get("/api").status_code == 200


def test_who_sends_slowly_is_given_up(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_LIMIT_S", 0.2)
    with web_rig(tmp_path_factory.mktemp("slow"), plates=0) as slow:
        url = httpx.URL(slow.url)
        with contextlib.ExitStack() as stack:
            sockets = [
                stack.enter_context(socket.create_connection((url.host, url.port), 30.0))
                for _ in range(3)
            ]
            sockets[1].sendall(b"GET /api HTTP/1.1\r\nHost: loc")
            sockets[2].sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sockets[2].recv(65_536).startswith(b"HTTP/1.1 200")
            sockets[2].sendall(b"GET /api HTTP")  # the second one of this connection
            for one in sockets:
                with contextlib.suppress(ConnectionResetError):
                    while one.recv(65_536):
                        pass
        assert slow.client().get("/api").status_code == 200


def test_no_machine_has_all_connections(rig: WebRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_MOST_OF_ONE", 3)
    url = httpx.URL(rig.url)
    where = (url.host, url.port)
    with contextlib.ExitStack() as stack:
        greedy = [
            stack.enter_context(socket.create_connection(where, 30.0, ("127.0.0.2", 0)))
            for _ in range(4)
        ]
        assert greedy[3].recv(1) == b"", "one too many is closed"
        assert status_of(greedy[2], "/api") == 200
        other = stack.enter_context(socket.create_connection(where, 30.0, ("127.0.0.3", 0)))
        assert status_of(other, "/api") == 200
    until(lambda: _is_let_in(where), "place that was left")


def _is_let_in(where: tuple[str, int | None]) -> bool:
    with socket.create_connection(where, 30.0, ("127.0.0.2", 0)) as one:  # type: ignore[arg-type]
        return status_of(one, "/api") == 200


def status_of(connection: socket.socket, path: str) -> int:
    """What is answered; 0 where the connection is closed."""
    try:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = connection.recv(65_536)
    except OSError:
        return 0
    return int(answer.split()[1]) if answer else 0


def test_who_begins_tls_and_goes_no_further_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_HANDSHAKE_S", 0.2)
    make_certificate(tmp_path / "tls", (), datetime.now(UTC))
    lines = f'tls_cert_file = "{tmp_path}/tls/cert.pem"\ntls_key_file = "{tmp_path}/tls/key.pem"'
    with web_rig(tmp_path, plates=0, web_lines=lines) as rig:
        url = httpx.URL(rig.url)
        with socket.create_connection((url.host, url.port), 30.0) as idle:
            assert idle.recv(1) == b""


def test_an_open_stream_does_not_hold_up_the_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    ended = threading.Event()
    with web_rig(tmp_path_factory.mktemp("end"), plates=0, more=[endless]) as ending:
        answer = read_stream(ending, ended)
        until(lambda: len(ending.web.streams) == 1, "open stream")
    assert ended.wait(30.0)
    assert answer[-1].endswith(b"0\r\n\r\n"), "ended as a whole answer"


endless = WebRouter()


@endless.data("/test-stream", media_type="text/event-stream")
async def stream() -> Response:
    """Says one thing, then nothing."""

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()

    return StreamingResponse(events(), media_type="text/event-stream")


def read_stream(rig: WebRig, ended: threading.Event) -> list[bytes]:
    received: list[bytes] = []

    def read() -> None:
        received.append(raw(rig, "GET /test-stream HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    return received


def test_json_is_utf_8(rig: WebRig) -> None:
    answer = rig.client().get("/nothing.json", headers={"accept-language": "zh"})
    assert json.loads(answer.content)["error"] == "没有这个页面。"
