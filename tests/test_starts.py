"""A start: what it refuses, what it goes on after, and what it finds in a log of long ago."""

from __future__ import annotations

import getpass
import os
import sqlite3
from pathlib import Path

import pytest
from pty_recorder import PtyRecorder
from station_rig import Rig, vqi, wait_until

from station.qms import DATABASE


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, specimen={"contrast_scale": 3.0, "defective_share": 0.3})
    rig.camera = {"bank_plates": 2}
    return rig


def test_a_second_run_of_the_same_station_is_refused_and_harms_nothing(rig: Rig) -> None:
    with rig.running():
        config = str(rig.folder / "station.toml")
        for state in ("OPERATIONAL", "HALTED"):
            if state == "HALTED":
                assert vqi("control", "halt", "--config", config).returncode == 0
            rows = len(rig.rows("change"))
            done = vqi("run", "--config", config, "--plates", "1")
            assert done.returncode == 1, (state, done.stderr)
            assert rig.status()["state"] == state
            assert len(rig.rows("change")) == rows
        for process in ("lamp", "journal", "station"):
            done = vqi("serve", process, "--config", config)
            assert done.returncode == 1, (process, done.stderr)
            assert len(done.stderr.splitlines()) == 1, done.stderr
        assert rig.status()["state"] == "HALTED"


def test_a_start_that_is_refused_puts_out_what_a_killed_one_left(rig: Rig) -> None:
    """A tower latches, and nobody was there to say FAULT."""
    with PtyRecorder(rig.folder / "tower") as tower:
        rig.light = {"device": {"type": "serial_tower", "port": str(rig.folder / "tower")}}
        config = rig.write()
        os.write(tower.slave, b"\x14")
        wait_until(lambda: tower.elements().get("green") == "on", 5.0, "green")
        rig.recipe_lines = 'folder = "nowhere"\n'
        rig.write()
        done = vqi("run", "--config", str(config))
        assert done.returncode == 78, done.stderr
        assert "nowhere" in done.stderr
        wait_until(lambda: tower.elements() == {"red": "blink"}, 5.0, "FAULT")


def test_a_torn_tick_file_is_no_reason_to_stay_down(rig: Rig) -> None:
    assert rig.run("--plates", "2").status == 0
    (rig.journal / "last-tick").write_bytes(bytes(27))
    assert rig.run("--plates", "2").status == 0


def test_damaged_machine_scores_are_not_taken_for_a_first_sight(rig: Rig) -> None:
    assert rig.run("--plates", "1").status == 0
    for garbage in ("garbage", "[]"):
        (rig.journal / "machine-scores.json").write_text(garbage)
        done = rig.run("--plates", "1")
        assert done.status == 78
        assert "machine-scores.json: damaged" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_other_bits_need_a_person_who_says_so_and_the_log_says_who(rig: Rig) -> None:
    assert rig.run("--plates", "1").status == 0
    path = rig.journal / "machine-scores.json"
    path.write_text(path.read_text().replace('"runtime": "', '"runtime": "older '))
    refused = rig.run("--plates", "1")
    assert refused.status == 78
    assert "vqi check --accept-scores" in refused.stderr
    config = str(rig.folder / "station.toml")
    assert vqi("check", "--config", config, "--accept-scores").returncode == 0
    assert rig.run("--plates", "1").status == 0
    starts = [row["detail"] for row in rig.rows("change") if row["what"] == "start"]
    assert starts[0]["machine_accepted"] == "on first sight"
    assert f" by {getpass.getuser()}" in starts[-1]["machine_accepted"]


def test_a_log_that_was_changed_long_ago_calls_a_person(rig: Rig) -> None:
    assert rig.run("--plates", "40").status == 0  # far more rows than a start looks at
    path = rig.journal / DATABASE
    with sqlite3.connect(path) as hostile:
        hostile.execute("DROP TRIGGER row_no_update")
        hostile.execute("UPDATE row SET body = replace(body, 'FAIL', 'PASS') WHERE seq < 20")
    hostile.close()
    rig.specimen["gap_mm"] = 300.0
    with rig.running():
        wait_until(lambda: "log" in rig.status()["problems"], 20.0, "the finding")
        assert rig.status()["state"] == "OPERATIONAL"
        assert "trigger row_no_update is gone" in rig.status()["problems"]["log"]
        wait_until(lambda: rig.status()["light"] == "attention", 20.0, "ATTENTION")
