"""Every page by every hand: axe finds nothing serious, the keyboard reaches all of it, gloves too,
texts may be 40 % longer, nothing moves where that is not wanted, and little script is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_rig import DESK, PHONE, SCREENS, TOUCH, Screen, chromium, screen
from page_checks import axe_faults, keyboard_faults, moves, small_targets, spills
from people_rig import sign_in
from pseudo_locale import station_with_longer_texts
from station_page import StationPage, page_paths, station_page, web_process

pytestmark = pytest.mark.long
WIDTHS_PX = (360, 768, 1280, 1920)
TOUCH_PX = 48
SCRIPT_BYTES = 150_000
LANGUAGES = {"desk": "en-GB", "touch": "de-DE", "phone": "zh-CN"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[StationPage]:
    with station_page(tmp_path_factory.mktemp("access")) as shown:
        yield shown


@pytest.fixture(scope="module")
def paths(shown: StationPage) -> list[str]:
    return page_paths(shown)


def _named(path: str, faults: list[str]) -> list[str]:
    return [f"{path}: {fault}" for fault in faults]


def _opened(one: Screen, path: str) -> None:
    answer = one.open(path)
    assert answer.status == 200, (path, answer.status)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    shown: StationPage, browser: Any, paths: list[str], theme: str
) -> None:
    faults: list[str] = []
    with screen(browser, shown.url, TOUCH, color_scheme=theme) as one:
        sign_in(one, "ada")
        for path in paths:
            _opened(one, path)
            faults += _named(path, axe_faults(one.page))
    assert not faults


def test_the_keyboard_reaches_everything_and_shows_where_it_is(
    shown: StationPage, browser: Any, paths: list[str]
) -> None:
    faults: list[str] = []
    with screen(browser, shown.url, DESK) as one:
        sign_in(one, "ada")
        for path in paths:
            _opened(one, path)
            faults += _named(path, keyboard_faults(one.page))
    assert not faults


def test_the_focus_stays_on_its_plate_when_another_comes(shown: StationPage, browser: Any) -> None:
    with screen(browser, shown.url, TOUCH) as one:
        sign_in(one, "ada")
        one.open("/")
        one.page.locator(".strip a").nth(4).focus()
        focused = one.page.evaluate("document.activeElement.getAttribute('href')")
        newest = one.page.locator(".strip a").first.get_attribute("href")
        one.page.wait_for_function(
            "newest => document.querySelector('.strip a').getAttribute('href') !== newest",
            arg=newest,
        )
        assert one.page.evaluate("document.activeElement.getAttribute('href')") == focused
        card, strip = (
            one.page.locator(name).first.bounding_box()
            for name in (f'.strip [href="{focused}"]', ".strip")
        )
        assert strip["x"] - 1 <= card["x"]
        assert card["x"] + card["width"] <= strip["x"] + strip["width"] + 1


def test_a_gloved_finger_hits_what_it_means(
    shown: StationPage, browser: Any, paths: list[str]
) -> None:
    faults: list[str] = []
    with screen(browser, shown.url, PHONE) as one:
        sign_in(one, "ada")
        for path in paths:
            _opened(one, path)
            faults += _named(path, small_targets(one.page, TOUCH_PX))
    assert not faults


def test_texts_may_be_longer(
    shown: StationPage, browser: Any, paths: list[str], tmp_path: Path
) -> None:
    """The German catalogue grown by 40 %, in another process of the same page."""
    environment = {"PYTHONPATH": str(station_with_longer_texts(tmp_path))}
    config = tmp_path / "station.toml"
    config.write_text(re.sub(r"\[web\]\nport = \d+", "[web]\nport = 0", shown.config.read_text()))
    faults: list[str] = []
    with (
        web_process(config, environment) as (url, _),
        screen(browser, url, DESK, locale="de-DE") as one,
    ):
        sign_in(one, "ada")
        for width_px in WIDTHS_PX:
            one.page.set_viewport_size({"width": width_px, "height": 900})
            for path in paths:
                _opened(one, path)
                faults += _named(f"{width_px} px {path}", spills(one.page))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", SCREENS)
def test_each_page_fits_each_screen(
    shown: StationPage, browser: Any, paths: list[str], name: str, tmp_path: Path
) -> None:
    """And leaves a picture of each in the folder VQI_PICTURES, for people to look at."""
    folder = Path(os.environ.get("VQI_PICTURES", tmp_path)) / name
    folder.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    with screen(browser, shown.url, SCREENS[name], locale=LANGUAGES[name]) as one:
        sign_in(one, "ada")
        for path in paths:
            _opened(one, path)
            faults += _named(path, spills(one.page))
            file = re.sub(r"[^A-Za-z0-9@-]+", "_", path).strip("_") or "line"
            one.page.screenshot(path=folder / f"{file}.png", full_page=True)
    assert not faults, "\n".join(faults)
    assert len(list(folder.glob("*.png"))) >= len(set(paths))


def test_nothing_moves_where_that_is_not_wanted(
    shown: StationPage, browser: Any, paths: list[str]
) -> None:
    faults: list[str] = []
    with screen(browser, shown.url, TOUCH, reduced_motion="reduce") as one:
        sign_in(one, "ada")
        for path in paths:
            _opened(one, path)
            faults += _named(path, moves(one.page))
    assert not faults


def test_little_script_is_loaded(shown: StationPage, browser: Any, paths: list[str]) -> None:
    """Bytes of script on the first view of each page, as they lie on the server's disk."""
    too_much: list[str] = []
    for path in paths:
        with screen(browser, shown.url, DESK) as one:
            sign_in(one, "ada")
            sizes: list[int] = []
            one.page.on("response", lambda answer, sizes=sizes: sizes.append(_script_bytes(answer)))
            _opened(one, path)
            one.page.wait_for_load_state("load")
            total = sum(sizes)
            too_much += [f"{path}: {total} bytes"] if total > SCRIPT_BYTES else []
    assert not too_much


def _script_bytes(answer: Any) -> int:
    is_script = answer.request.resource_type == "script"
    return len(answer.body()) if is_script and answer.status == 200 else 0
