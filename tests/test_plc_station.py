"""A whole station with PLC and accept: the C producer, signed, so that OK and accept are seen on
the wire, and what ends them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plc_line import DISTANCE_MM, PlcLine, plc_line
from producer_rig import PITCH_MM
from station_rig import FRAME_HEIGHT, check_conservation, children, vqi, wait_until

from drivers.errors import DriverMissing
from station.belt_register import SLACK_S
from station.control import send_command

LEAVES_WITHIN_S = 2.0
"""The stated safety limit."""


@pytest.fixture
def line(tmp_path: Path) -> Iterator[PlcLine]:
    try:
        with plc_line(tmp_path / "line") as line:
            yield line
    except DriverMissing as error:
        pytest.skip(str(error))


def test_every_record_reaches_the_plc_and_every_pass_the_accept_point(line: PlcLine) -> None:
    with line.rig.running():
        wait_until(lambda: len(line.pulses) >= 3, 60.0, "3 accepted plates")
        send_command(line.rig.runtime, "halt")  # what is on the belt comes to its point
        before = len(line.plc.results)
        wait_until(lambda: len(line.plc.results) >= before + 4, 30.0, "the last results")
    assert vqi("log", "verify", "--journal", str(line.rig.journal)).returncode == 0
    check_conservation(line.rig)
    records = {row["sequence"]: row for row in line.rig.rows("result")}
    lights = {row["result_id"] for row in line.rig.rows("actuation")}
    assert lights == {row["result_id"] for row in records.values()}
    for said in line.plc.results:
        verdict = records[said.result]["verdict"]
        assert (said.ok, said.ng, said.undecided) == {
            "PASS": (True, False, False),
            "FAIL": (False, True, False),
            "UNDECIDED": (False, True, True),
        }[verdict]
    heard = [said.result for said in line.plc.results]
    assert heard == sorted(set(heard)), "each once, in order"
    _check_accepts(line, {row["result_id"]: row for row in records.values()})


def _check_accepts(line: PlcLine, records: dict[str, dict[str, object]]) -> None:
    rows = line.rig.rows("accept")
    assert len({row["result_id"] for row in rows}) == len(rows), "at most one for a result"
    assert all(records[row["result_id"]]["verdict"] == "PASS" for row in rows)
    accepted = [row for row in rows if row["command"] == "accept"]
    assert len(accepted) >= 3
    assert all(row["is_confirmed"] for row in accepted)
    assert len(line.pulses) == len(accepted)
    for row, pulse_ns in zip(accepted, line.pulses, strict=True):
        assert row["commanded_ns"] <= pulse_ns <= row["shown_ns"]
    errors_mm = [_error_mm(line, records[row["result_id"]], row["shown_ns"]) for row in accepted]
    limit_mm = FRAME_HEIGHT / 2 * PITCH_MM + SLACK_S * 200.0
    assert max(map(abs, errors_mm)) < 2 * limit_mm, "and see benchmarks/reject_position.py"


def _error_mm(line: PlcLine, record: dict[str, object], at_ns: int) -> float:
    """How far the plate's trailing edge was beyond its point, as belt time tells it: the last scan
    line of the record was in memory so many ns before."""
    since_s = (at_ns - int(str(record["last_scan_line_ns"]))) / 1e9
    return since_s * 200.0 - DISTANCE_MM


@pytest.mark.long
@pytest.mark.alone
def test_a_hung_journal_and_a_killed_station_take_ready_and_ok_from_the_plc(line: PlcLine) -> None:
    """Nothing but a tick that has been everywhere prolongs READY."""
    plc = line.plc
    with line.rig.running() as process:
        wait_until(lambda: any(said.ok for said in plc.results), 60.0, "OK")
        wait_until(lambda: bool(plc.last and plc.last.ready), 5.0, "READY")
        _hang_journal(line, children(process.pid)["journal"])
        killed_ns = time.monotonic_ns()
        os.kill(children(process.pid)["station"], signal.SIGKILL)
        wait_until(lambda: bool(plc.last and plc.last.error), LEAVES_WITHIN_S, "an error")
        gone_ns = next(ns for ns, said, _ in plc.trace if ns > killed_ns and said and said.error)
        assert (gone_ns - killed_ns) / 1e9 < LEAVES_WITHIN_S
        wait_until(lambda: bool(plc.last and plc.last.ready), 60.0, "READY again")
    after = [said for ns, said, _ in plc.trace if ns >= gone_ns and said and said.error]
    assert not any(said.ready or said.ok for said in after)


def _hang_journal(line: PlcLine, journal: int) -> None:
    plc = line.plc
    os.kill(journal, signal.SIGSTOP)
    try:
        wait_until(lambda: bool(plc.last and not plc.last.ready), LEAVES_WITHIN_S, "no READY")
        beat = plc.last.heartbeat if plc.last else 0
        time.sleep(0.5)
        assert plc.last
        assert plc.last.heartbeat == beat
    finally:
        os.kill(journal, signal.SIGCONT)
    wait_until(lambda: bool(plc.last and plc.last.ready), 20.0, "READY again")


@pytest.mark.long
def test_a_plate_too_late_for_its_point_drops_ready_until_the_plc_acknowledges(
    tmp_path: Path,
) -> None:
    """The accept point lies where no verdict can be in time."""
    with plc_line(tmp_path / "line", distance_mm=0.5) as line:
        plc = line.plc
        with line.rig.running():
            wait_until(lambda: bool(plc.last and plc.last.late), 60.0, "a late plate")
            wait_until(lambda: bool(plc.last and not plc.last.ready), 5.0, "the end of READY")
            status = line.rig.status()
            assert any("late" in reason for reason in status["not_ready"])
            assert status["state"] == "OPERATIONAL", "plates are judged as ever"
            send_command(line.rig.runtime, "halt")
            wait_until(lambda: not line.rig.status()["ready"], 5.0, "a halt")
            plc.ack_hold = True
            wait_until(lambda: "late" not in line.rig.status()["problems"], 5.0, "its end")
        assert line.pulses == []
        commands = {row["command"] for row in line.rig.rows("accept")}
        assert commands == {"withheld_late"}
        changes = [row for row in line.rig.rows("change") if row["what"] == "ack"]
        assert changes[0]["who"] == "plc"


@pytest.mark.long
def test_every_pass_has_one_accept_row_though_lamp_and_station_were_killed(tmp_path: Path) -> None:
    """What was on its way with a lamp process that ended is written down by who comes next."""
    with plc_line(tmp_path / "line", distance_mm=2 * DISTANCE_MM) as line:
        with line.rig.running() as process:
            wait_until(lambda: len(line.pulses) >= 2, 60.0, "2 accepted plates")
            os.kill(children(process.pid)["lamp"], signal.SIGKILL)
            wait_until(lambda: _given_up(line) > 0, 60.0, "a row of a plate that was on its way")
            pulses = len(line.pulses)
            wait_until(lambda: len(line.pulses) > pulses, 60.0, "the next accepted plate")
            os.kill(children(process.pid)["station"], signal.SIGKILL)
            wait_until(lambda: len(line.pulses) > pulses + 1, 60.0, "one of the next station")
        with line.rig.running():
            send_command(line.rig.runtime, "halt")
            wait_until(lambda: _lacking(line) == set(), 60.0, "every row")
        rows = [row["result_id"] for row in line.rig.rows("accept")]
        assert len(set(rows)) == len(rows)
        accepted = [row for row in line.rig.rows("accept") if row["command"] == "accept"]
        assert len(accepted) <= len(line.pulses)


def _given_up(line: PlcLine) -> int:
    return sum(row["command"] == "unknown" for row in line.rig.rows("accept"))


def _lacking(line: PlcLine) -> set[str]:
    passed = {row["result_id"] for row in line.rig.rows("result") if row["verdict"] == "PASS"}
    return passed - {row["result_id"] for row in line.rig.rows("accept")}
