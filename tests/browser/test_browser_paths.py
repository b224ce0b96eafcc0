"""The addresses that a browser is led to are those of pages, without a browser."""

from __future__ import annotations

from pathlib import Path

from history import COMPARISON_SHA256, PLATES, STATION, write_history
from station_page import filled_paths
from web_rig import web_rig

from station.record import result_id
from station.roles import Role

_OF_ACCOUNTS = ("/account", "/people")
"""The people of this rig are given and have none."""


def test_every_page_is_there_to_be_looked_at(tmp_path: Path) -> None:
    with web_rig(tmp_path, plates=0) as rig:
        write_history(rig.station.journal)
        plate = result_id(STATION, PLATES // 7 * 7)
        eve = rig.client_of(Role.ADMIN, "eve")
        recipe = eve.get("/engineer/recipes.json").json()["active"]
        paths = filled_paths(rig.web.routes, plate, recipe)
        assert f"/engineer/models/{COMPARISON_SHA256}" in paths
        found = {path: eve.get(path).status_code for path in paths if path not in _OF_ACCOUNTS}
        assert {path: status for path, status in found.items() if status not in (200, 303)} == {}
