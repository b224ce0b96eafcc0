"""Every route of the page against every role, and every action against a wrong origin and token."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from web_rig import PageClient, WebRig, web_rig

from station.roles import Role
from station.web.app import create_app
from station.web.pages import Declared, GuardedRoute

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
OPEN_PAGES = {"/sign-in", "/sign-in/new-password"}
# `/line/summary` looks at person or token itself: tests/test_web_live.py.
OPEN_DATA = {"/static/{name:path}", "/health", "/token", "/line/summary"}
OPEN_ACTIONS = {
    "/sign-in",
    "/sign-in/pin",
    "/sign-in/new-password",
    "/sign-out",
    "/language",
    "/theme",
}
"""All that is there for somebody of whom nothing is known; the summary wants the read token."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("roles"), plates=2) as rig:
        yield rig


@pytest.fixture(scope="module")
def routes(rig: WebRig) -> list[Declared]:
    return rig.web.routes


def address(rig: WebRig, route: Declared) -> str:
    """Of a route, with something in the place of each parameter."""
    known = {"result_id": rig.plates[0]}
    return _PARAMETER.sub(lambda found: known.get(found[1], "1"), route.path)


def status_of(client: PageClient, route: Declared, path: str, **headers: str) -> tuple[int, str]:
    """Status and where it leads; of a stream that does not end, too. What is sent to an action is
    nothing that it takes: who is let in does nothing by it."""
    body = {"json": []} if route.is_json and route.method == "POST" else {}
    with client.stream(route.method, path, headers=headers, **body) as answer:
        return answer.status_code, answer.headers.get("location", "")


def is_sign_in(status: int, location: str) -> bool:
    return status == 401 or (status == 303 and location.startswith("/sign-in?back="))


def own(rig: WebRig, client: PageClient) -> dict[str, str]:
    """Headers as the page's own script sends them."""
    return {"origin": rig.url, "x-csrf-token": client.token()}


def test_no_route_is_served_that_says_no_role(rig: WebRig, routes: list[Declared]) -> None:
    served = create_app(rig.web).routes
    assert {route.path for route in served if isinstance(route, APIRoute)} == {
        route.path for route in routes
    }
    assert all(isinstance(route, GuardedRoute) for route in served), "and nothing beside them"


def test_what_is_open_to_everybody_is_named_here(routes: list[Declared]) -> None:
    open_paths = {
        kind: {route.path.removesuffix(".json") for route in routes if is_open(route, kind)}
        for kind in ("page", "action", "data")
    }
    assert open_paths["page"] == OPEN_PAGES
    assert open_paths["action"] == OPEN_ACTIONS
    assert open_paths["data"] == {path.removesuffix(".json") for path in OPEN_DATA}


def is_open(route: Declared, kind: str) -> bool:
    return route.role is None and route.kind == kind


def test_who_is_less_is_refused_and_who_is_enough_is_let_in(
    rig: WebRig, routes: list[Declared]
) -> None:
    clients = {role: rig.client_of(role) for role in Role}
    sent = {role: own(rig, client) for role, client in clients.items()}
    wrong = []
    for route in routes:
        if route.role is None:
            continue
        path = address(rig, route)
        for role, client in clients.items():
            is_done = route.kind == "action" and not route.is_json and role >= route.role
            if role > route.role or is_done:
                continue
            status, _ = status_of(client, route, path, **sent[role])
            if (status == 403) != (role < route.role) or status == 401:
                wrong.append((role.word, route.method, path, status))
    assert wrong == []


def test_who_is_not_signed_in_looks_at_most_and_does_nothing(
    rig: WebRig, routes: list[Declared]
) -> None:
    anybody = rig.client()
    headers, wrong = own(rig, anybody), []
    for is_local in (True, False):
        rig.people.is_open = is_local
        for route in routes:
            may_look = is_local and route.role is Role.VIEWER and route.kind != "action"
            if route.role is None or may_look:
                continue
            path = address(rig, route)
            if not is_sign_in(*status_of(anybody, route, path, **headers)):
                wrong.append((is_local, route.method, path))
    rig.people.is_open = True
    assert wrong == []


def test_no_action_is_done_from_elsewhere_or_without_its_token(
    rig: WebRig, routes: list[Declared]
) -> None:
    admin, other = rig.client_of(Role.ADMIN), rig.client_of(Role.ADMIN, "other")
    right = own(rig, admin)
    forged = {
        "elsewhere": {**right, "origin": "https://evil.example"},
        "no token": {"origin": rig.url},
        "no origin": {"x-csrf-token": right["x-csrf-token"]},
        "null": {**right, "origin": "null"},
        "a port beside": {**right, "origin": rig.url + "0"},
        "another's token": {**right, "x-csrf-token": other.token()},
        "a made-up token": {**right, "x-csrf-token": "0" * 64},
    }
    actions = [route for route in routes if route.kind == "action"]
    tries = [(route, what) for route in actions for what in ("elsewhere", "no token")]
    tries += [(actions[0], what) for what in forged]
    wrong = []
    for route, what in tries:
        status, _ = status_of(admin, route, address(rig, route), **forged[what])
        if status != 403:
            wrong.append((what, route.path, status))
    assert wrong == []
