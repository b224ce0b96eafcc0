"""The camera page in a real browser: what it shows follows what the camera sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_rig import web_rig

from station.live_frames import LivePicture
from station.roles import Role
from station.web.camera import CameraPage, _shown

sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.long


def _answer(blur_px: int) -> str:
    """Of a camera that sees an edge in each zone, this wide."""
    rising = np.clip(np.arange(4096) % 256 / blur_px, 0, 1) * 180 + 20
    pixels = np.tile(rising.astype(np.uint8), (64, 1))
    picture = _shown(LivePicture(pixels, blur_px, 1, 1500.0, 1, 0, 0))
    page = CameraPage(
        is_running=True, why="", picture=picture.model_copy(update={"at": "2026-03-09T13:02:07"}),
        serial="7", model="m", temperature_c=None, overrun_frames=0, state="OPERATIONAL",
    )  # fmt: skip
    return page.model_dump_json()


def test_sharpness_by_zone_follows_the_camera(tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here")
    answers = {"now": _answer(4)}

    def answer(route: Any) -> None:
        route.fulfill(body=answers["now"], content_type="application/json")

    with web_rig(tmp_path, plates=0) as rig, sync_api.sync_playwright() as playwright:
        rig.client_of(Role.ENGINEER, "ann")
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context()
        context.add_cookies([{"name": "given", "value": "session-ann", "url": rig.url}])
        page = context.new_page()
        page.route("**/engineer/camera.json", answer)
        page.goto(f"{rig.url}/engineer/camera")
        page.locator("summary").first.click()
        rows = page.locator("[data-zones] tr")
        rows.first.wait_for()
        sharp = rows.all_inner_texts()
        answers["now"] = _answer(40)
        page.wait_for_function(
            "before => document.querySelector('[data-zones] tr').innerText !== before", arg=sharp[0]
        )
        assert all(now != then for now, then in zip(rows.all_inner_texts(), sharp, strict=True))
        browser.close()
