"""The one way through the page that every run tries: a real browser before a running station."""

from __future__ import annotations

import pytest
from browser_rig import TOUCH, chromium, screen, skip_without_browser
from people_rig import sign_in
from station_page import station_page


def test_a_failed_plate_is_judged_at_the_screen_beside_the_belt(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The way that is gone a hundred times a day: sign in, the line that calls, its plate, confirm;
    two touches once signed in."""
    skip_without_browser()
    with (
        chromium() as browser,
        station_page(tmp_path_factory.mktemp("smoke"), ("ada",), has_history=False) as station,
        screen(browser, station.url, TOUCH) as hand,
    ):
        sign_in(hand, "ada")
        station.newest("FAIL")
        hand.open("/")
        hand.effort()
        hand.lands(lambda: hand.touch('.region-calls a[href^="/plates/"]'))
        plate = hand.where().removeprefix("/plates/")
        hand.touch(".judge-offers button.danger")
        hand.sees(".judge-done")
        assert hand.effort() == (2, 0)
        reviews = [row for row in station.rig.rows("review") if row["result_id"] == plate]
        assert [row["disposition"] for row in reviews] == ["removed"]
        assert not hand.complaints
