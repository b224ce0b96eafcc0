"""Judging in a real browser: keys, a note, a double touch, and a journal that is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_rig import WebRig, running_journal, until, web_rig

from station.log_reader import Reader
from station.roles import Role

sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here")
CHROMIUM = Path("/usr/bin/chromium")
Page = Any
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("judge"), plates=8) as rig:
        rig.client_of(Role.REVIEWER, "ada")
        yield rig


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    """Twelve plates that nobody has seen to."""
    with web_rig(tmp_path_factory.mktemp("crowded"), plates=24) as rig:
        rig.client_of(Role.REVIEWER, "ada")
        yield rig


@pytest.fixture
def page(rig: WebRig) -> Iterator[Page]:
    """A touch screen of which nothing complains."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 800}, has_touch=True)
        context.add_cookies([{"name": "given", "value": "session-ada", "url": rig.url}])
        shown, complaints = context.new_page(), list[str]()
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        yield shown
        browser.close()
        assert complaints == []


def reviews(rig: WebRig, plate: str) -> list[dict[str, Any]]:
    with Reader(rig.station.journal) as reader:
        return [row for row in reader.of_result(plate) if row["kind"] == "review"]


def hears_keys(page: Page) -> None:
    """The page is there before its script."""
    page.locator(".judge-keys input").wait_for()


def test_keys_judge_and_are_letters_where_somebody_writes(rig: WebRig, page: Page) -> None:
    plate = rig.plates[1]
    with running_journal(rig.station):
        page.goto(f"{rig.url}/plates/{plate}/judge")
        page.locator("#judge-note").press_sequentially("cold x 1")
        page.locator("#judge-note").press("Enter")
        page.locator("h1").click()
        page.wait_for_timeout(200)  # as a hand does: what follows at once is a scanner's
        page.keyboard.press("o")
        page.locator(".judge-choose[open]").wait_for()
        page.keyboard.press("1")
        page.locator(".judge-done").wait_for()
        assert [(row["verdict"], row["note"]) for row in reviews(rig, plate)] == [
            ("PASS", "cold x 1")
        ]
        hears_keys(page)
        page.keyboard.press("z")
        page.locator(".judge-history li").nth(2).wait_for()
        hears_keys(page)
        page.keyboard.press("c")
        page.locator(".judge-history li").nth(3).wait_for()
    said = [(row["verdict"], row.get("disposition")) for row in reviews(rig, plate)]
    assert said == [("PASS", "use"), ("UNDECIDED", None), ("FAIL", "removed")]


def test_a_scanner_that_writes_a_badge_judges_nothing(rig: WebRig, page: Page) -> None:
    plate = rig.plates[7]
    with running_journal(rig.station):
        page.goto(f"{rig.url}/plates/{plate}/judge")
        for badge in ("c", "xC0c", "7o1c"):
            page.keyboard.type(badge, delay=10)
            page.keyboard.press("Enter")
            page.wait_for_timeout(200)
        keys = page.locator(".judge-keys input")
        keys.uncheck()
        page.locator("h1").click()
        page.keyboard.press("c")
        page.wait_for_timeout(200)
        assert reviews(rig, plate) == []
        page.reload()
        assert not keys.is_checked(), "kept for this screen"
        keys.check()
        page.keyboard.press("c")
        page.locator(".judge-done").wait_for()
    assert [row["disposition"] for row in reviews(rig, plate)] == ["removed"]


def test_one_touch_of_two_fingers_is_one_row(rig: WebRig, page: Page) -> None:
    plate = rig.plates[5]
    with running_journal(rig.station):
        page.goto(f"{rig.url}/plates/{plate}/judge")
        page.locator('[data-key="c"]').dblclick()
        page.locator(".judge-done").wait_for()
    assert len(reviews(rig, plate)) == 1


def test_what_was_not_written_stays_and_is_sent_again(rig: WebRig, page: Page) -> None:
    plate = rig.plates[3]
    page.goto(f"{rig.url}/plates/{plate}/judge")
    page.locator("#judge-note").fill("by the belt")
    page.locator('[data-key="c"]').tap()
    again = page.locator(".judge-says button")
    again.wait_for()
    assert reviews(rig, plate) == []
    with running_journal(rig.station):
        again.tap()
        page.locator(".judge-done").wait_for()
        until(lambda: len(reviews(rig, plate)) == 1, "review")
    assert reviews(rig, plate)[0]["note"] == "by the belt"


def test_the_open_list_is_left_by_one_touch(crowded: WebRig, page: Page) -> None:
    with running_journal(crowded.station):
        page.goto(f"{crowded.url}/open")
        count = page.locator(".judge-cards > .card").count()
        page.locator(".judge-cards button").first.tap()
        page.wait_for_url("**judged=**")
        assert page.locator(".judge-cards > .card").count() == count - 1
        judged = page.url
        page.locator(".judge-done button").tap()
        page.wait_for_url(lambda url: "judged=" in url and url != judged)
        assert page.locator(".judge-cards > .card").count() == count


def test_a_refusal_is_said_beside_what_was_touched(crowded: WebRig, page: Page) -> None:
    page.set_viewport_size({"width": 500, "height": 500})
    with running_journal(crowded.station):
        page.goto(f"{crowded.url}/open")
        card = page.locator(".judge-cards > .card").last
        plate = card.locator("h2 a").inner_text()
        version = card.locator("[name=supersedes]").get_attribute("value")
        meanwhile = crowded.client_of(Role.REVIEWER, "ben").send_form(
            f"/plates/{plate}/review",
            act="FAIL|removed|confirmed",
            supersedes=version,
            nonce="nonce-of-ben",
        )
        assert meanwhile.status_code == 303
        card.locator(".judge-form button").tap()
        says = card.locator(".judge-says.is-bad")
        says.wait_for()
        assert "ben" in says.inner_text()
        box = says.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 500, "off the screen"
        says.locator("button").tap()
        page.locator(f'h2 a[href="/plates/{plate}"]').wait_for(state="detached")


def test_what_was_judged_is_said_everywhere_on_the_plates_page(crowded: WebRig, page: Page) -> None:
    plate = crowded.plates[1]
    shown = page.locator(".plate-judged .plate-large, .plate-strip .is-this .tag")
    with running_journal(crowded.station):
        page.goto(f"{crowded.url}/plates/{plate}")
        hears_keys(page)
        assert verdicts(shown) == {"fail"}
        page.locator('.judge-choose summary[data-key="o"]').tap()
        page.locator(".judge-choose[open] button").first.tap()
        page.locator(".judge-done").wait_for()
        assert verdicts(shown) == {"pass"}
        assert shown.count() > 2, "at its top, among its neighbours, at the same place"
        hears_keys(page)
        assert page.evaluate("document.activeElement.className").endswith("judge-done")


def verdicts(tags: Page) -> set[str]:
    found = tags.evaluate_all("all => all.map((one) => one.classList.item(1))")
    return {str(one) for one in found}
