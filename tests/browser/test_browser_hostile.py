"""Smuggled scripts before a real browser: whatever the log holds and the address says, no dialog
opens, nothing is written to the console, and the content security policy is not even asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from browser_rig import DESK, chromium, screen, skip_without_browser
from hostile_requests import texts
from hostile_rig import Slot, slots_of, write_hostile_log
from web_rig import WebRig, web_rig

from station.roles import Role

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    skip_without_browser()
    with web_rig(tmp_path_factory.mktemp("scripts")) as rig:
        rig.plates += write_hostile_log(rig.station.journal)
        rig.client_of(Role.ADMIN)
        yield rig


@pytest.fixture(scope="module")
def shown(rig: WebRig) -> Iterator[Any]:
    """A screen on which an admin is signed in, with all that it complains of."""
    with chromium() as browser, screen(browser, rig.url, DESK) as one:
        session = {"name": "given", "value": "session-admin", "url": rig.url}
        one.page.context.add_cookies([session])
        yield one


def _pages(rig: WebRig) -> list[Slot]:
    return [
        slot
        for route in rig.web.routes
        if route.kind == "page" and not route.is_json
        for slot in slots_of(route)
    ]


def _path(rig: WebRig, slot: Slot, plate: str, query: dict[str, str]) -> str:
    path = slot.route.path.replace("{result_id}", plate)
    for name in ("recipe_id", "version", "number", "seq", "hold_id", "name"):
        path = path.replace(f"{{{name}}}", "1")
    return path + ("?" + urlencode(query) if query else "")


def test_what_the_log_holds_runs_nowhere(rig: WebRig, shown: Any) -> None:
    """Every page as it is, and each plate's page of those that say hostile things."""
    done = set()
    for slot in _pages(rig):
        plates = rig.plates[8:] if "{result_id}" in slot.route.path else rig.plates[-1:]
        for plate in plates[:: max(1, len(plates) // 12)]:
            path = _path(rig, slot, plate, {})
            if path not in done:
                done.add(path)
                shown.open(path)
    assert not shown.complaints


def test_what_the_address_says_runs_nowhere(rig: WebRig, shown: Any) -> None:
    """Each script in a parameter of some page; each page has met a dozen."""
    places = [slot for slot in _pages(rig) if slot.where == "query"]
    scripts = [one.text for one in texts() if one.kind == "markup"]
    for number in range(max(len(scripts), 3 * len(places))):
        slot, text = places[number % len(places)], scripts[number % len(scripts)]
        shown.open(_path(rig, slot, rig.plates[1], {slot.name: text}))
    assert not shown.complaints
