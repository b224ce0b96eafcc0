"""A process of the station dies while somebody looks: the page says since when its figures are old,
and what was sent in that moment is committed once or clearly not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_rig import TOUCH, Screen, chromium, screen, skip_without_browser
from people_rig import sign_in
from station_page import StationPage, station_page
from station_rig import children, wait_until

pytestmark = pytest.mark.long
_CLOCK = re.compile(r"\d\d:\d\d:\d\d")


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StationPage]:
    skip_without_browser()
    with station_page(tmp_path_factory.mktemp("kills"), ("ada",), has_history=False) as station:
        yield station


@pytest.fixture(scope="module")
def hand(station: StationPage) -> Iterator[Screen]:
    with chromium() as browser, screen(browser, station.url, TOUCH) as hand:
        sign_in(hand, "ada")
        yield hand


def _pid(station: StationPage, process: str) -> int:
    """Of a process of the run that lives."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for name, pid in children(station.run.pid).items() if name == process]
        return bool(found)

    wait_until(is_there, 60.0, f"{process} process")
    return found[0]


def _kill(pid: int) -> None:
    """One that hung may have been replaced by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _unjudged(station: StationPage) -> str:
    """The newest plate that failed, once nobody has judged it."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = [station.newest("FAIL")]
        return not _reviews(station, found[0])

    wait_until(is_there, 60.0, "plate that failed")
    return found[0]


def _page_pid(station: StationPage) -> int:
    """Of the page's own process, which `vqi run` starts beside the others."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == station.run.pid and "web" in words:
            return int(folder.name)
    raise AssertionError("the page's process is not there")


def _shows_the_line(hand: Screen) -> None:
    hand.open("/")
    wait_until(lambda: hand.page.locator("#line.stale").count() == 0, 60.0, "page that is current")


@pytest.mark.parametrize("process", ["station", "journal", "lamp", "camera"])
def test_the_line_says_what_died_and_comes_back(
    station: StationPage, hand: Screen, process: str
) -> None:
    """What needs a person names it, since when; nobody loads the page anew for that. Held with
    SIGSTOP first, for what is back at once would not be seen by anybody."""
    _shows_the_line(hand)
    part = {"camera": "liveness"}.get(process, process)
    pid = _pid(station, process)
    os.kill(pid, signal.SIGSTOP)
    call = f'[data-region="calls"] [data-call^="{part} "], [data-region="calls"] .call-fault'
    try:
        wait_until(lambda: hand.page.locator(call).count() > 0, 60.0, f"call for the {process}")
        assert _CLOCK.search(hand.text('[data-region="calls"]'))
        word = hand.page.locator(".word").first.get_attribute("data-state")
        assert word not in ("pass", "pass_not_production"), "it shows a pass nobody vouches for"
    finally:
        _kill(pid)
    wait_until(lambda: hand.page.locator(call).count() == 0, 90.0, f"{process} that is back")
    before = hand.text("#as-of")
    wait_until(lambda: hand.text("#as-of") != before, 30.0, "time that goes on")
    assert not hand.complaints


@pytest.mark.parametrize("moment", ["before", "meanwhile", "at once"])
def test_a_review_sent_while_the_journal_dies_is_one_row_or_clearly_none(
    station: StationPage, hand: Screen, moment: str
) -> None:
    """The journal process is held before the touch, killed before, after or with it. Whatever the
    page says, sending it again until it is committed leaves one row."""
    plate = _unjudged(station)
    hand.open(f"/plates/{plate}")
    pid = _pid(station, "journal")
    os.kill(pid, signal.SIGKILL if moment == "before" else signal.SIGSTOP)
    killer = threading.Timer(2.0 if moment == "meanwhile" else 0.0, _kill, (pid,))
    if moment != "before":
        killer.start()
    hand.touch(".judge-offers button.danger")
    wait_until(lambda: _is_settled(hand), 60.0, "answer to the review")
    if moment != "before":
        killer.join()
    _pid(station, "journal")
    wait_until(lambda: _is_committed(hand), 90.0, "review that is committed")
    assert len(_reviews(station, plate)) == 1
    assert _reviews(station, plate)[0]["reviewer"] == "ada"
    hand.complaints.clear()


def _is_settled(hand: Screen) -> bool:
    """It says that it is committed, or what is not known."""
    is_done = hand.page.locator(".judge-done").count() > 0
    return is_done or hand.page.locator(".judge-says.is-bad").count() > 0


def _is_committed(hand: Screen) -> bool:
    """Or offers to send it again, which is done."""
    again = hand.page.locator(".judge-says.is-bad button")
    if hand.page.locator(".judge-done").count() == 0 and again.count() > 0:
        again.first.tap()
        wait_until(lambda: _is_settled(hand), 60.0, "answer to the review")
    return bool(hand.page.locator(".judge-done").count() > 0)


def test_a_review_is_written_while_the_station_is_dead(station: StationPage, hand: Screen) -> None:
    plate = _unjudged(station)
    hand.open(f"/plates/{plate}")
    pid = _pid(station, "station")
    os.kill(pid, signal.SIGSTOP)
    try:
        hand.touch(".judge-offers button.danger")
        hand.sees(".judge-done")
        assert len(_reviews(station, plate)) == 1
    finally:
        _kill(pid)


def _reviews(station: StationPage, plate: str) -> list[dict[str, Any]]:
    return [row for row in station.rig.rows("review") if row["result_id"] == plate]


def test_a_page_whose_server_died_says_that_it_is_old(station: StationPage, hand: Screen) -> None:
    """And is current again by itself, once `vqi run` has started another."""
    _shows_the_line(hand)
    pid = _page_pid(station)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: hand.page.locator("#line.stale").count() > 0, 60.0, "page that is old")
    assert _CLOCK.search(hand.text("#stale"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: hand.page.locator("#line.stale").count() == 0, 90.0, "page that is current")
