"""The twenty tasks of docs/tasks.md, in their order, by a real browser against a station that runs;
and how many touches and keys each takes a practised hand."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser_rig import DESK, TOUCH, Screen, chromium, screen, skip_without_browser
from history import LAST_MONTH_SERIAL
from people_rig import PIN, enrol, sign_in
from station_page import StationPage, station_page
from station_rig import wait_until

_DOC = Path(__file__).parents[2] / "docs" / "tasks.md"
_ROW = re.compile(r"\| (\d+) \| .* \| .* \| (\d+) \| (\d+) \|")


@dataclass
class Floor:
    """The station, and the three screens before it."""

    station: StationPage
    rosa: Screen
    """A reviewer at the touch screen beside the belt."""
    ada: Screen
    """An administrator at a desk, who does QA's work."""
    browser: Any
    plate: str = ""
    """The plate that the tasks are about."""

    def reviews(self, result_id: str) -> list[dict[str, Any]]:
        rows = self.station.rig.rows("review")
        return [row for row in rows if row["result_id"] == result_id]


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    skip_without_browser()
    with (
        station_page(tmp_path_factory.mktemp("tasks")) as station,
        chromium() as browser,
        screen(browser, station.url, TOUCH) as rosa,
        screen(browser, station.url, DESK, accept_downloads=True) as ada,
    ):
        sign_in(ada, "ada")
        enrol(rosa, "rosa")
        rosa.open("/")
        yield Floor(station, rosa, ada, browser)


_efforts: dict[int, tuple[int, int]] = {}


def _done(number: int, *hands: Screen) -> None:
    """What a task took, and that no page complained meanwhile."""
    efforts = [hand.effort() for hand in hands]
    _efforts[number] = (sum(one[0] for one in efforts), sum(one[1] for one in efforts))
    for hand in hands:
        assert not hand.complaints


@pytest.mark.long
class TestTasks:
    """In their order: each begins where the one before it ended."""

    def test_01_sign_in(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.effort()
        hand.touch('.switches a[href^="/sign-in"]')
        hand.write("#who", "rosa")
        for digit in PIN:
            hand.touch(f'[data-pad] [data-digit="{digit}"]')
        hand.lands(lambda: hand.touch("form.pin > .button"))
        assert hand.page.locator(".who").inner_text() == "Rosa"
        _done(1, hand)

    def test_02_find_the_calling_line(self, floor: Floor) -> None:
        floor.station.newest("FAIL")
        hand = floor.rosa
        hand.touch('.menu a[href="/lines"]')
        hand.sees("#lines .calling, #lines [data-call]")
        _done(2, hand)

    def test_03_open_the_failed_plate(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.lands(lambda: hand.touch('#lines a.button[href*="/plates/"]'))
        floor.plate = hand.where().removeprefix("/plates/")
        assert hand.page.locator(".plate-head .tag.fail").count() == 1
        _done(3, hand)

    def test_04_zoom_to_the_defect(self, floor: Floor) -> None:
        hand = floor.rosa
        before = hand.page.locator('[data-out="position"]').inner_text()
        hand.touch('[data-does="next"]')
        wait_until(lambda: hand.text('[data-out="says"]') != "", 10.0, "word of the defect")
        assert hand.text('[data-out="position"]') != before or hand.text('[data-out="says"]')
        _done(4, hand)

    def test_05_measure_it(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.touch('[data-does="measure"]')
        stage = hand.page.locator(".plate-stage").bounding_box()
        middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        for step_px in (-60, 60):
            hand.touch_at(middle[0] + step_px, middle[1])
        wait_until(lambda: "mm" in hand.text('[data-out="measure"]'), 10.0, "length in mm")
        _done(5, hand)

    def test_06_confirm(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.touch(".judge-offers button.danger")
        hand.sees(".judge-done")
        review = floor.reviews(floor.plate)[-1]
        assert (review["verdict"], review["disposition"]) == ("FAIL", "removed")
        assert review["reviewer"] == "rosa"
        _done(6, hand)

    def test_07_overrule_with_a_reason(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.touch('.judge-choose > summary[data-key="o"]')
        hand.touch('.judge-choose[open] button[value$="|dirt"]')
        wait_until(lambda: floor.reviews(floor.plate)[-1]["reason"] == "dirt", 10.0, "review")
        assert floor.reviews(floor.plate)[-1]["verdict"] == "PASS"
        hand.sees(".judge-done .tag.pass")
        _done(7, hand)

    def test_08_undo(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.touch(".judge-undo button")
        wait_until(lambda: len(floor.reviews(floor.plate)) == 3, 10.0, "third review")
        assert floor.reviews(floor.plate)[-1]["verdict"] == "FAIL"
        hand.sees(".judge-done .tag.fail")
        _done(8, hand)

    def test_09_mark_a_plate_removed(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.open("/")
        hand.lands(lambda: hand.touch('.region-calls a[href^="/plates/"]'))
        plate = hand.where().removeprefix("/plates/")
        hand.touch(".judge-offers button.danger")
        hand.sees(".judge-done")
        assert floor.reviews(plate)[-1]["disposition"] == "removed"
        _done(9, hand)

    def test_10_work_the_open_list(self, floor: Floor) -> None:
        """Two plates of the list: each is one touch once the list is open."""
        hand = floor.rosa
        hand.lands(lambda: hand.touch('.menu a[href="/open"]'))
        for _ in range(2):
            first = hand.page.locator(".judge-cards h2 a").first.inner_text()
            hand.lands(lambda: hand.touch(".judge-cards .judge-form button.primary"))
            hand.sees(".judge-done")
            assert floor.reviews(first)[-1]["disposition"] == "removed"
        _done(10, hand)

    def test_11_judge_an_audit_sample_blind(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.lands(lambda: hand.touch('.menu a[href="/samples"]'))
        hand.lands(lambda: hand.touch("main a.primary"))
        plate = hand.where().removeprefix("/plates/")
        assert hand.page.locator(".plate-head .tag").count() == 0, "the verdict is not hidden"
        hand.touch(".judge-offers button")
        hand.sees(".judge-done")
        assert floor.reviews(plate)
        _done(11, hand)

    def test_12_find_a_serial_of_last_month(self, floor: Floor) -> None:
        hand = floor.ada
        hand.effort()
        hand.lands(lambda: hand.touch('.menu a[href="/plates"]'))
        hand.write('input[name="serial"]', LAST_MONTH_SERIAL)
        hand.lands(lambda: hand.key("Enter"))
        assert LAST_MONTH_SERIAL in hand.page.locator(".qa-plates tbody").inner_text()
        assert hand.page.locator(".qa-plates tbody tr").count() == 1
        _done(12, hand)

    def test_13_export_it(self, floor: Floor) -> None:
        hand = floor.ada
        data = hand.downloads(lambda: hand.touch('a[href^="/plates.csv"]'))
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
        assert len(rows) == 1
        assert LAST_MONTH_SERIAL in rows[0].values()
        _done(13, hand)

    def test_14_fetch_its_certificate(self, floor: Floor) -> None:
        hand = floor.ada
        hand.lands(lambda: hand.touch(".qa-plates tbody th a"))
        plate = hand.where().removeprefix("/plates/")
        data = hand.downloads(lambda: hand.touch('a[href$="/certificate.json"]'))
        assert plate in json.dumps(json.loads(data))
        _done(14, hand)

    def test_15_read_the_pareto(self, floor: Floor) -> None:
        """Which kind of defect is the most frequent, among those that people named."""
        hand = floor.ada
        hand.lands(lambda: hand.touch('.menu a[href="/quality"]'))
        hand.lands(lambda: hand.touch('main nav a[href^="/pareto"]'))
        hand.choose('select[name="of"]', "kind")
        hand.lands(lambda: hand.touch("main form button.primary"))
        assert "scratch" in hand.page.locator("main table tbody").inner_text()
        _done(15, hand)

    def test_16_change_a_recipe_with_approval(self, floor: Floor) -> None:
        """Eve proposes, Emil approves and activates: nobody does both."""
        with (
            screen(floor.browser, floor.station.url, DESK) as eve,
            screen(floor.browser, floor.station.url, DESK) as emil,
        ):
            for hand, name in ((eve, "eve"), (emil, "emil")):
                sign_in(hand, name)
                hand.open("/engineer")
                hand.effort()
            eve.lands(lambda: eve.touch('main nav a[href="/engineer/recipes"]'))
            eve.lands(lambda: eve.touch('main a[href$="/edit"]'))
            eve.write('[name="model.threshold"]', "0.97")
            eve.write("#reason", "fewer false rejects")
            eve.touch("#recipe-form .primary")
            eve.sees('#recipe-form [role="status"]')
            emil.lands(lambda: emil.touch('main nav a[href="/engineer/recipes"]'))
            emil.lands(lambda: emil.touch('main a[href="/engineer/recipes/small@2"]'))
            emil.lands(lambda: emil.touch('form[action$="/approve"] button'))
            emil.lands(lambda: emil.touch('form[action$="/activate"] button'))
            wait_until(lambda: self._judges_by(floor, 2), 60.0, "plate judged by version 2")
            _done(16, eve, emil)

    def _judges_by(self, floor: Floor, version: int) -> bool:
        newest = floor.station.newest_row()
        return bool(newest and newest["recipe_version"] == version)

    def test_17_acknowledge_the_lamp(self, floor: Floor) -> None:
        hand = floor.rosa
        floor.station.newest("FAIL")
        hand.lands(lambda: hand.touch('.menu a[href="/"]'))
        hand.effort()
        before = len(floor.station.changes("ack"))
        hand.touch("#acknowledge button")
        wait_until(lambda: len(floor.station.changes("ack")) > before, 10.0, "ack in the log")
        assert floor.station.changes("ack")[-1]["who"].startswith("rosa")
        _done(17, hand)

    def test_18_run_the_lamp_test(self, floor: Floor) -> None:
        """Refused while plates run: the station is halted first, and resumed afterwards."""
        hand = floor.ada
        hand.open("/engineer")
        hand.effort()
        hand.lands(lambda: hand.touch('main nav a[href="/engineer/lamp"]'))
        test = 'form[action="/engineer/light"]:has([value="test"]) button'
        assert hand.page.locator(test).is_disabled()
        hand.lands(lambda: hand.touch('form:has([value="halt"]) button'))
        wait_until(lambda: self._tested(hand, test), 60.0, "lamp test between two plates")
        hand.lands(lambda: hand.touch('form:has([value="resume"]) button'))
        wait_until(lambda: floor.station.changes("light") != [], 20.0, "test in the log")
        _done(18, hand)

    def _tested(self, hand: Screen, test: str) -> bool:
        """This belt does not stand still: tried until no plate is before the camera, and counted
        once."""
        touches = hand.touches
        hand.open("/engineer/lamp")
        if not hand.page.locator(test).is_disabled():
            hand.lands(lambda: hand.touch(test))
        is_done = hand.page.locator("main .notice:not(.warning):visible").count() > 0
        hand.touches = touches + is_done
        return is_done

    def test_19_switch_the_language(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.lands(lambda: hand.choose("#language", "zh"))
        assert hand.page.locator("html").get_attribute("lang") == "zh-Hans"
        _done(19, hand)

    def test_20_sign_out(self, floor: Floor) -> None:
        hand = floor.rosa
        hand.lands(lambda: hand.touch('form[action="/sign-out"] button'))
        assert hand.page.locator('.switches a[href^="/sign-in"]').count() == 1
        _done(20, hand)

    def test_the_table_says_what_was_counted(self) -> None:
        said = {int(n): (int(t), int(k)) for n, t, k in _ROW.findall(_DOC.read_text())}
        assert said == _efforts, "\n".join(f"{n}: {done}" for n, done in _efforts.items())
