"""The plate's page in a real browser: looking, measuring, and a plate of 16,384 x 16,384 px."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_qms import opened, result
from web_rig import WebRig, plate, plate_pixels, web_rig

from station.images import Draft, ImageFolder
from station.qms import IMAGES, Store
from station.record import Verdict

sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here")
CHROMIUM = Path("/usr/bin/chromium")
Page = Any
_FAILED = "s-00000002"
_LARGE_PX = 16_384
_WATCH = """
window.long = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.long.push([entry.startTime, entry.duration]);
}).observe({ type: "longtask", buffered: true });
"""
_IS_DRAWN = """() => {
  const viewer = document.querySelector(".plate-viewer")?.viewer;
  return viewer && !viewer.isAsked && !viewer.tiles.loading.size && !viewer.tiles.wanted.length;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def browser(
    chromium: Any, width: int = 1280, height: int = 800, **options: Any
) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what its console complains of."""
    context = chromium.new_context(
        viewport={"width": width, "height": height}, locale="en-GB", **options
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page, complaints
    context.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("browser")) as rig:
        yield rig


def drawn(page: Page) -> None:
    page.wait_for_function(_IS_DRAWN)


def out(page: Page, name: str) -> str:
    return str(page.locator(f'[data-out="{name}"]').text_content())


def test_a_plate_is_looked_at_measured_and_never_changed(rig: WebRig, chromium: Any) -> None:
    with browser(chromium) as (page, complaints):
        page.goto(f"{rig.url}/plates/{_FAILED}")
        drawn(page)
        page.keyboard.press("n")
        assert out(page, "says").startswith("Defect 1 of 1: 6.0")
        assert page.evaluate("new URL(location).searchParams.get('defect')") == "0"
        page.wait_for_selector("#same-place img")
        _measure_the_box(page)
        _change_what_is_seen(page)
        _grey_value_is_the_recorded_one(page)
        page.keyboard.press(".")
        page.wait_for_url("**/plates/s-00000003")
        assert complaints == []


def _measure_the_box(page: Page) -> None:
    """By keyboard alone: from the box's left leading corner to its right trailing one."""
    page.locator(".plate-stage").press("m")
    page.evaluate("document.querySelector('.plate-viewer').viewer.measure.at = { x: 301, y: 121 }")
    page.keyboard.press("Enter")  # snaps to 300, 120
    for _ in range(6):
        page.keyboard.press("Shift+ArrowRight")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    assert out(page, "measure") == (
        "Length 7.21 mm, across 6.00 mm, along 4.00 mm (one pixel: 0.100 mm)"
    )
    page.keyboard.press("Escape")


def _change_what_is_seen(page: Page) -> None:
    note = page.locator('[data-note="recorded"]')
    assert not note.is_visible()
    page.locator(".plate-window summary").click()
    page.locator('[data-does="stretch"]').click()
    assert note.is_visible()
    assert page.locator("canvas").first.evaluate("one => one.style.filter") != ""
    page.locator('[data-does="reset"]').click()
    assert not note.is_visible()
    page.locator(".plate-window summary").click()


def _grey_value_is_the_recorded_one(page: Page) -> None:
    page.locator(".plate-stage").press("1")
    drawn(page)
    box = page.locator(".plate-stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    said = out(page, "position")
    found = re.search(r"(\d+), (\d+) px · grey (\d+)$", said)
    assert found is not None, said
    x, y, grey = map(int, found.groups())
    assert grey == plate_pixels(2, is_scratched=True)[y, x]
    assert said.startswith(f"{(x - 12) / 10:.1f}"[:3])


def test_fingers_move_and_zoom(rig: WebRig, chromium: Any) -> None:
    with browser(chromium, 390, 844, has_touch=True, is_mobile=True) as (page, complaints):
        page.goto(f"{rig.url}/plates/{_FAILED}")
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        before, after = page.evaluate(_PINCH)
        assert after == pytest.approx(2 * before, rel=0.05)
        assert complaints == []


_PINCH = """() => {
  const stage = document.querySelector(".plate-stage");
  const { viewer } = document.querySelector(".plate-viewer");
  const before = viewer.scale;
  const box = stage.getBoundingClientRect();
  stage.setPointerCapture = () => {};
  const send = (kind, id, x) => stage.dispatchEvent(new PointerEvent(kind, {
    pointerId: id, clientX: box.left + x, clientY: box.top + 100, bubbles: true,
  }));
  send("pointerdown", 1, 100);
  send("pointerdown", 2, 150);
  for (let x = 150; x <= 200; x += 5) send("pointermove", 2, x);
  send("pointerup", 2, 200);
  send("pointerup", 1, 100);
  return [before, viewer.scale];
}"""


def test_a_plate_on_its_way_is_shown_as_soon_as_it_is_recorded(rig: WebRig, chromium: Any) -> None:
    with Store(rig.station.journal) as store:
        store.append([opened(900, 900)])
    with browser(chromium) as (page, complaints):
        page.goto(f"{rig.url}/plates/s-00000900")
        assert "no result yet" in page.locator("[data-waits]").text_content()
        row = plate(ImageFolder(rig.station.journal / IMAGES), 2)
        row = row.model_copy(update={"result_id": "s-00000900", "sequence": 900})
        with Store(rig.station.journal) as store:
            store.append([row])
        page.wait_for_selector(".plate-viewer")
        drawn(page)
        assert complaints == []


# --- a large plate --------------------------------------------------------------------------------


def large_plate(journal: Path) -> str:
    """A failed plate of 16,384 x 16,384 px with noise like a sensor's; its id."""
    folder = ImageFolder(journal / IMAGES)
    noise = np.random.default_rng(1).normal(120, 8, (192, 2 * _LARGE_PX)).astype(np.uint8)
    pixels = np.empty((_LARGE_PX, _LARGE_PX), np.uint8)
    for number, y in enumerate(range(0, _LARGE_PX, 192)):
        part = pixels[y : y + 192]
        part[:] = noise[: len(part), 97 * number : 97 * number + _LARGE_PX]
    made = Draft(folder, pixels, 192).finish(_LARGE_PX, {"evidence", "preview"})
    folder.make_durable(made.written)
    row = result(
        1, Verdict.FAIL, images=[one.body.model_dump() for one in made.written],
        left_px=0, width_px=_LARGE_PX, length_px=_LARGE_PX,
    )  # fmt: skip
    with Store(journal) as store:
        store.append([row])
    return row.result_id


@pytest.mark.long
@pytest.mark.alone
def test_panning_a_large_plate_never_holds_up_the_browser(tmp_path: Path, chromium: Any) -> None:
    with web_rig(tmp_path, plates=0) as rig:
        name = large_plate(rig.station.journal)
        with browser(chromium, 1920, 1080) as (page, complaints):
            page.add_init_script(_WATCH)
            asked: list[str] = []
            page.on("request", lambda one: asked.append(one.url) if "/tiles/" in one.url else None)
            page.goto(f"{rig.url}/plates/{name}")
            page.wait_for_function(_IS_DRAWN, timeout=60_000)
            _only_what_is_seen_was_asked_for(page, asked)
            page.locator(".plate-stage").press("1")
            rounds = [_held_while_panned(page, place) for place in (2000, 8000, 13_000)]
    # While the lower levels are made the page may say that it is busy; it was asked again.
    assert [one for one in complaints if "503" not in one] == []
    assert len(asked) > 200, "nothing was panned"
    # The browser's watch goes by the clock: what else runs on this machine may hold up a round.
    assert [] in rounds


def _held_while_panned(page: Page, place: int) -> list[list[float]]:
    """Begin and length of the long tasks while a part is panned that nobody has seen before."""
    page.evaluate(
        """(place) => { const { viewer } = document.querySelector(".plate-viewer");
        viewer.x = place; viewer.y = place; viewer.moved(); }""",
        place,
    )
    page.wait_for_function(_IS_DRAWN, timeout=60_000)
    begin = page.evaluate("performance.now()")
    _pan(page)
    page.wait_for_function(_IS_DRAWN, timeout=60_000)
    return [task for task in page.evaluate("window.long") if task[0] >= begin]


def _only_what_is_seen_was_asked_for(page: Page, asked: list[str]) -> None:
    seen = page.evaluate(
        """() => { const { viewer } = document.querySelector(".plate-viewer");
        const { canvas } = viewer;
        return viewer.tiles.visible(viewer, viewer.level, canvas.width, canvas.height).length; }"""
    )
    assert len(set(asked)) <= seen + 1


def _pan(page: Page) -> None:
    box = page.locator(".plate-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for dx, dy in ((-400, -300), (-400, -100), (-300, 300), (350, -300), (-500, 0), (-100, -350)):
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx, y + dy, steps=30)
        page.mouse.up()
    for _ in range(5):
        page.mouse.wheel(0, 120)
    for _ in range(5):
        page.mouse.wheel(0, -120)
