"""What hangs, and whoever does not read: seen at once, answered without a restart too many."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign.freeze import held
from pty_recorder import PtyRecorder, adafruit_elements
from station_rig import (
    Rig,
    busy_workers,
    check_conservation,
    children,
    linescan_camera,
    threads,
    wait_until,
)
from test_lamp import no_more_processes
from test_station import verify_log, write_belt

from station.control import control_path
from station.journal_client import journal_path
from station.lamp import lamp_path
from station.lock import LAMP_LOCK
from station.qms import Store
from station.record import ResultBody
from station.supervisor import LAMP, Supervisor

pytestmark = pytest.mark.alone
_ACCEPT = """
[accept]
distance_mm = 30.0
pulse_ms = 100
device = { type = "simulated", outputs = ["accept"] }
"""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, specimen={"contrast_scale": 3.0, "defective_share": 0.3})
    rig.camera = {"belt_file": str(tmp_path / "belt.json"), "bank_plates": 2}
    write_belt(rig)
    return rig


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_camera_process_that_hangs_is_replaced_and_the_station_stays(rig: Rig) -> None:
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        before = children(run.pid)
        with stopped(before["camera"]):
            wait_until(lambda: rig.status()["state"] == "ERROR", 2.5, "ERROR")
            wait_until(lambda: rig.status()["light"] == "fault", 1.0, "FAULT")
            wait_until(lambda: is_gone(before["camera"]), 5.0, "end of the hung process")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 10.0, "OPERATIONAL")
        after = children(run.pid)
        assert after["camera"] != before["camera"]
        assert after["station"] == before["station"]
        plates = rig.status()["plates"]
        wait_until(lambda: rig.status()["plates"] > plates + 2, 10.0, "plates afterwards")
    check_conservation(rig)
    verify_log(rig)


def test_a_camera_that_ticks_and_delivers_nothing_ends_the_pass(rig: Rig) -> None:
    """Its process is alive and says so, while plates pass unseen."""
    stalls_at = 14 * 4000 // 64  # 14 s after the belt began, with a plate every 1.2 s
    rig.specimen |= {"gap_mm": 440.0, "defective_share": 0.0}
    rig.faults = {"stall": [stalls_at], "stall_s": 5.0}
    write_belt(rig)
    with rig.running():
        assert rig.status()["frames"] < stalls_at
        wait_until(lambda: "camera" in rig.status()["problems"], 25.0, "a word about the camera")
        assert "no frame" in rig.status()["problems"]["camera"]
        wait_until(lambda: rig.status()["light"] == "fault", 1.0, "FAULT")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 10.0, "OPERATIONAL")
        assert rig.status()["camera_restarts"] == 0
    check_conservation(rig)


@contextlib.contextmanager
def inspect_thread_held(rig: Rig, station: int) -> Iterator[None]:
    """At a tile, where it holds no lock: one that is held elsewhere is set free and tried again."""

    def is_said() -> bool:
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            if "inspection" in rig.status().get("problems", {}):
                return True
        return False

    for _ in range(5):
        for tid in busy_workers(station):
            with held(tid, 60.0):
                if is_said():
                    yield
                    return
            time.sleep(1.0)  # a tick comes through: its watchdog is not what is tried
    pytest.fail("no inspect thread could be held at a tile")


@pytest.mark.long
@pytest.mark.usefixtures("may_hold_threads")
def test_an_inspect_thread_that_hangs_is_replaced_with_its_process(rig: Rig) -> None:
    """The other one lets every tick of the camera past it."""
    rig.camera = {"is_paced": False, "bank_plates": 2}  # the threads are never idle
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 5, 20.0, "plates")
        station = children(run.pid)["station"]
        with inspect_thread_held(rig, station):
            wait_until(lambda: rig.status()["light"] == "fault", 1.0, "FAULT")
            wait_until(lambda: is_gone(station), 14.0, "an end by the watchdog")
        wait_until(lambda: rig.status().get("state") == "OPERATIONAL", 30.0, "OPERATIONAL")
        assert children(run.pid)["station"] != station
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates afterwards")
    results = rig.rows("result")
    assert {row["result_id"] for row in rig.rows("opened")} <= {row["result_id"] for row in results}
    interrupted = [row for row in results if row["reason"] == "interrupted"]
    assert "the station stopped while the plate was on the belt" in {
        row["detail"] for row in interrupted
    }
    assert {row["verdict"] for row in interrupted} == {"UNDECIDED"}


def begin_belt_in(rig: Rig, seconds: float) -> None:
    """A camera that is opened before that delivers no frame."""
    epoch_ns = time.monotonic_ns() + int(seconds * 1e9)
    Path(rig.camera["belt_file"]).write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))


def test_a_camera_without_a_first_frame_is_a_fault(rig: Rig) -> None:
    """Its process ticks and its control channel answers, at a start as after a loss."""
    begin_belt_in(rig, 3600.0)
    with rig.running(state="ERROR") as run:
        assert rig.status()["problems"]["camera"].startswith("no frame")
        wait_until(lambda: rig.status()["light"] == "fault", 1.0, "FAULT")
        assert rig.status()["ready"] is False
        write_belt(rig)
        os.kill(children(run.pid)["camera"], signal.SIGKILL)
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 10.0, "OPERATIONAL")
        wait_until(lambda: rig.status()["plates"] > 2, 10.0, "plates")
        begin_belt_in(rig, 12.0)
        os.kill(children(run.pid)["camera"], signal.SIGKILL)
        wait_until(lambda: rig.status()["camera_restarts"] == 2, 10.0, "a new camera process")

        def is_silence_said() -> bool:
            status = rig.status()
            assert status["state"] == "ERROR", "opened, but it has shown nothing yet"
            return status["problems"]["camera"].startswith("no frame")

        wait_until(is_silence_said, 10.0, "a word about the silence")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 15.0, "OPERATIONAL")
        assert rig.status()["camera_restarts"] == 2


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the line-scan simulator needs gcc")
@pytest.mark.long
def test_a_belt_that_stands_is_no_fault_of_a_camera_that_it_triggers(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera=linescan_camera(SimBeltDirection="Stopped"))
    with rig.running() as run:

        def is_calm() -> bool:
            time.sleep(3.0)
            return rig.status()["state"] == "OPERATIONAL" and rig.status()["frames"] == 0

        assert is_calm(), rig.status()["problems"]
        os.kill(children(run.pid)["camera"], signal.SIGKILL)
        wait_until(lambda: rig.status()["camera_restarts"] == 1, 20.0, "a new camera process")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 2.0, "OPERATIONAL")
        assert is_calm(), rig.status()["problems"]


@pytest.mark.usefixtures("may_hold_threads")
def test_a_camera_process_that_does_not_die_keeps_no_successor_away(rig: Rig) -> None:
    """To its parent it is one that a driver holds in the kernel: killed, and no end is told."""
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        before = children(run.pid)
        with held(before["camera"], 60.0):
            wait_until(lambda: rig.status()["state"] == "ERROR", 4.0, "ERROR")
            wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 15.0, "OPERATIONAL")
            assert is_gone(before["camera"]), "killed"
            after = children(run.pid)
            assert after["camera"] != before["camera"]
            assert after["station"] == before["station"]
            plates = rig.status()["plates"]
            wait_until(lambda: rig.status()["plates"] > plates + 2, 10.0, "plates afterwards")
    check_conservation(rig)


def thread_that_began(child: int, pid: int) -> int:
    return next(
        tid
        for tid in threads(pid)
        if str(child) in Path(f"/proc/{pid}/task/{tid}/children").read_text().split()
    )


@pytest.mark.long
@pytest.mark.usefixtures("may_hold_threads")
def test_a_camera_that_is_lost_hides_no_thread_that_hangs(rig: Rig) -> None:
    """No tick comes while a camera is opened, which may take long; but the thread must turn."""
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        before = children(run.pid)
        begin_belt_in(rig, 3600.0)
        os.kill(before["camera"], signal.SIGKILL)
        wait_until(
            lambda: rig.status()["problems"].get("camera", "").startswith("no frame"),
            20.0,
            "a camera that delivers nothing",
        )
        write_belt(rig)
        acquire = thread_that_began(children(run.pid)["camera"], before["station"])
        with held(acquire, 60.0):
            wait_until(lambda: is_gone(before["station"]), 25.0, "an end by the watchdog")
        wait_until(lambda: rig.status().get("state") == "OPERATIONAL", 30.0, "OPERATIONAL")
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates afterwards")
        assert children(run.pid)["station"] != before["station"]


@pytest.mark.long
def test_a_run_ends_without_its_camera_and_with_a_log_that_takes_nothing(rig: Rig) -> None:
    belt, config = Path(rig.camera["belt_file"]), rig.folder / "station.toml"
    text = belt.read_text()
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        whole = config.read_text()
        config.write_text(whole.replace("min_free_mb = 0", "min_free_mb = 1000000000"))
        os.kill(children(run.pid)["journal"], signal.SIGKILL)
        wait_until(
            lambda: "MB needed" in rig.status()["problems"].get("journal", ""), 10.0, "a full disk"
        )
        belt.write_text("nothing")
        os.kill(children(run.pid)["camera"], signal.SIGKILL)
        wait_until(
            lambda: "no belt here" in rig.status()["problems"].get("camera", ""), 10.0, "no camera"
        )
        run.terminate()
        assert run.wait(25.0) == 1
    belt.write_text(text)
    with rig.running():
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates afterwards")
    check_conservation(rig)
    verify_log(rig)


def test_a_dead_station_takes_a_hung_camera_process_with_it(rig: Rig) -> None:
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        before = children(run.pid)
        os.kill(before["camera"], signal.SIGSTOP)
        os.kill(before["station"], signal.SIGKILL)
        wait_until(lambda: is_gone(before["camera"]), 3.0, "end of the camera process")
        wait_until(lambda: rig.status().get("plates", 0) > 2, 20.0, "plates afterwards")
    check_conservation(rig)


def test_a_journal_that_hangs_ends_the_pass_and_it_does_not_come_back(rig: Rig) -> None:
    with PtyRecorder(rig.folder / "tower") as tower:
        rig.light = {"device": {"type": "serial_tower", "port": str(rig.folder / "tower")}}
        rig.specimen["gap_mm"] = 800.0  # a pass stays alight for two seconds
        rig.camera["line_rate_hz"] = 4000.0
        with rig.running() as run:

            def green() -> str | None:
                return adafruit_elements(tower.bytes_sent()).get("green")

            wait_until(lambda: green() == "on", 20.0, "a pass")
            shown_id = rig.status()["light_result_id"]
            with stopped(children(run.pid)["journal"]):
                wait_until(lambda: green() is None, 2.0, "dark")
                wait_until(lambda: rig.status()["state"] == "ERROR", 2.0, "ERROR")
                assert "liveness" in rig.status()["problems"]
            wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 5.0, "OPERATIONAL")
            assert rig.status()["light_result_id"] != shown_id
            assert green() is None or rig.status()["light_result_id"] != shown_id
    check_conservation(rig)


def test_a_plate_waits_for_its_verdict_from_where_it_left_the_camera(rig: Rig) -> None:
    """One that still passes below the camera is not late, however slow the belt is."""
    rig.camera["line_rate_hz"] = 200.0  # a plate passes for two seconds
    with rig.running() as run:
        passing_s = 0.0
        while passing_s < 1.2:
            wait_until(lambda: not rig.status()["queues"]["plates_open"], 10.0, "a gap")
            wait_until(lambda: rig.status()["queues"]["plates_open"] == 1, 10.0, "a plate")
            began = time.monotonic()
            while (status := rig.status())["queues"]["plates_open"]:
                passing_s = time.monotonic() - began
                assert status["waiting_s"] < 1.0
        with stopped(children(run.pid)["journal"]):
            wait_until(lambda: rig.status()["waiting_s"] > 1.0, 15.0, "a plate without a verdict")
        wait_until(lambda: rig.status()["waiting_s"] < 1.0, 10.0, "its verdict")
    check_conservation(rig)


def test_a_lamp_process_that_dies_does_not_bring_its_pass_back(rig: Rig) -> None:
    rig.specimen["gap_mm"] = 800.0
    with rig.running() as run:
        wait_until(lambda: rig.status()["light"] == "pass_not_production", 30.0, "a pass")
        shown_id, before = rig.status()["light_result_id"], children(run.pid)
        os.kill(before["lamp"], signal.SIGKILL)
        wait_until(lambda: rig.status()["light_result_id"] != shown_id, 1.0, "end of the pass")
        wait_until(
            lambda: children(run.pid).get("lamp", before["lamp"]) != before["lamp"], 3.0, "a lamp"
        )
        for _ in range(50):
            assert rig.status()["light_result_id"] != shown_id
            time.sleep(0.02)
        assert children(run.pid)["station"] == before["station"]


def test_a_held_fail_outlives_a_kill(rig: Rig) -> None:
    rig.fail_hold_s = None
    rig.specimen["defective_share"] = 1.0
    with rig.running() as run:
        wait_until(lambda: rig.status()["light"] == "fail", 30.0, "FAIL")
        # No plate fails from here on: only the log can know of the one before.
        config = rig.folder / "station.toml"
        config.write_text(
            config.read_text().replace("defective_share = 1.0", "defective_share = 0")
        )
        os.kill(children(run.pid)["station"], signal.SIGKILL)
        wait_until(lambda: rig.status().get("state") == "OPERATIONAL", 20.0, "OPERATIONAL")
        wait_until(lambda: rig.status()["light"] in ("fail", "undecided"), 3.0, "the held result")
        wait_until(lambda: rig.status().get("pass", 0) > 1, 20.0, "passes")
        assert rig.status()["light"] in ("fail", "undecided"), "a later pass does not hide it"
    results = [row["result_id"] for row in rig.rows("result")]
    assert sorted(row["result_id"] for row in rig.rows("actuation")) == sorted(results)


def test_what_the_outputs_were_told_of_a_dead_stations_plate_is_unknown(rig: Rig) -> None:
    """The log as a station leaves it that dies between a pass and the rows of light and accept:
    green may have shown, and a pulse may have gone out."""
    rig.tables = _ACCEPT
    assert rig.run("--plates", "6").status == 0
    passed = next(row for row in rig.rows("result") if row["verdict"] == "PASS")
    name = {"result_id": "test-1-00000100", "sequence": 100}
    with Store(rig.journal) as store:
        store.append([ResultBody.of_log({**passed, **name})])
    again = rig.run("--seconds", "8")
    assert again.status == 0, again.stderr
    for kind in ("actuation", "accept"):
        (row,) = (row for row in rig.rows(kind) if row["result_id"] == name["result_id"])
        assert (row["command"], row["is_confirmed"], row["shown_ns"]) == ("unknown", None, None)
    counted = again.summary["accept"]["unknown"]
    assert counted == sum(row["command"] == "unknown" for row in rig.rows("accept"))
    verify_log(rig)


def test_an_unread_stdout_keeps_nobody_from_replacing_the_lamp(rig: Rig) -> None:
    config = rig.write()
    run = subprocess.Popen(
        [sys.executable, "-P", "-m", "station.cli", "run", "--config", str(config), "--json"],
        stdout=subprocess.PIPE,  # which nobody reads
        pipesize=4096,
        start_new_session=True,
    )
    assert run.stdout is not None
    try:
        wait_until(lambda: rig.status().get("plates", 0) > 10, 40.0, "more than a pipe holds")
        lamp = children(run.pid)["lamp"]
        os.kill(lamp, signal.SIGKILL)
        wait_until(lambda: children(run.pid).get("lamp", lamp) != lamp, 2.0, "a new lamp process")
        run.terminate()
        run.wait(25.0)
    finally:
        run.kill()
        run.stdout.close()
        run.wait()
    check_conservation(rig)


def test_an_unplugged_tower_stops_neither_lamp_process_nor_plates(rig: Rig) -> None:
    with PtyRecorder(rig.folder / "tower"):
        rig.light = {"device": {"type": "serial_tower", "port": str(rig.folder / "tower")}}
        run = rig.running()
        process = run.__enter__()
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
    try:
        (rig.folder / "tower").unlink(missing_ok=True)
        dead = children(process.pid)["lamp"]
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: children(process.pid).get("lamp", dead) != dead, 3.0, "a new lamp")
        lamp = children(process.pid)["lamp"]
        plates = rig.status()["plates"]
        wait_until(lambda: rig.status()["plates"] > plates + 5, 20.0, "plates without a lamp")
        status = rig.status()
        assert status["ready"] is False
        assert any(reason.startswith("lamp:") for reason in status["not_ready"])
        assert status["light_confirmation"].startswith("not believed")
        assert status["light"] != "pass_not_production"
        assert children(process.pid)["lamp"] == lamp, "it looks for its device, it does not die"
        with PtyRecorder(rig.folder / "tower") as tower:
            wait_until(
                lambda: adafruit_elements(tower.bytes_sent()).get("red") == "blink", 5.0, "FAULT"
            )
            wait_until(lambda: rig.status()["ready"] is True, 10.0, "READY")
            assert rig.status()["light_confirmation"].startswith("unconfirmed")
    finally:
        run.__exit__(None, None, None)
    check_conservation(rig)


def test_a_full_process_table_leaves_no_green_behind_a_dead_lamp_process(rig: Rig) -> None:
    with PtyRecorder(rig.folder / "tower") as tower:
        rig.light = {"device": {"type": "serial_tower", "port": str(rig.folder / "tower")}}
        rig.specimen["gap_mm"] = 800.0
        with rig.running() as run:

            def green() -> str | None:
                return adafruit_elements(tower.bytes_sent()).get("green")

            wait_until(lambda: green() == "on", 20.0, "a pass")
            lamp = children(run.pid)["lamp"]
            with no_more_processes(run.pid):
                os.kill(lamp, signal.SIGKILL)
                wait_until(lambda: green() is None, 2.0, "dark")
                time.sleep(1.0)  # the supervisor tries again meanwhile, and goes on
                assert "lamp" not in children(run.pid)
            wait_until(lambda: "lamp" in children(run.pid), 3.0, "a new lamp process")
            wait_until(lambda: rig.status()["ready"] is True, 10.0, "READY")
    check_conservation(rig)


@pytest.fixture
def green_run(rig: Rig) -> Iterator[tuple[PtyRecorder, subprocess.Popen[bytes]]]:
    """A run whose tower, which latches, shows a pass."""
    with PtyRecorder(rig.folder / "tower") as tower:
        rig.light = {"device": {"type": "serial_tower", "port": str(rig.folder / "tower")}}
        rig.specimen |= {"gap_mm": 800.0, "defective_share": 0.0}
        with rig.running() as run:
            wait_until(lambda: tower.elements().get("green") == "on", 20.0, "a pass")
            yield tower, run


def test_a_run_that_ends_beside_a_hung_lamp_process_leaves_fault(
    green_run: tuple[PtyRecorder, subprocess.Popen[bytes]],
) -> None:
    tower, run = green_run
    os.kill(children(run.pid)["lamp"], signal.SIGSTOP)
    run.terminate()
    assert run.wait(20.0) == 0
    wait_until(lambda: tower.elements() == {"red": "blink"}, 2.0, "FAULT")


def test_a_configuration_that_is_being_edited_keeps_no_green_alight(
    rig: Rig, green_run: tuple[PtyRecorder, subprocess.Popen[bytes]]
) -> None:
    tower, run = green_run
    (rig.folder / "station.toml").write_text("[light")
    os.kill(children(run.pid)["lamp"], signal.SIGKILL)
    wait_until(lambda: tower.elements() == {"red": "blink"}, 5.0, "FAULT")


def test_a_lock_that_cannot_be_opened_keeps_no_green_alight(
    rig: Rig, green_run: tuple[PtyRecorder, subprocess.Popen[bytes]]
) -> None:
    tower, run = green_run
    lock = rig.runtime / LAMP_LOCK
    lock.unlink()
    lock.mkdir()
    os.kill(children(run.pid)["lamp"], signal.SIGKILL)
    wait_until(lambda: tower.elements() == {"red": "blink"}, 5.0, "FAULT")


def test_what_a_dead_process_still_said_in_the_same_moment_ends_nobody(rig: Rig) -> None:
    """Its end may come first in a batch of events that holds its output and its heartbeat too."""
    supervisor = Supervisor(str(rig.folder / "none"), None, [], lambda _: None, lambda _: None)
    supervisor._start(LAMP)  # which ends at once: there is no such configuration
    child = supervisor._children[LAMP.name]
    batch = sorted(
        supervisor._selector.get_map().values(), key=lambda key: key.fd != child.descriptor
    )
    wait_until(lambda: is_gone(child.process.pid), 20.0, "the end of the process")
    for key in batch:
        supervisor._take_event(key)
    assert LAMP.name not in supervisor._children
    supervisor._stop_all()


_WATCHER = """
import json, sys, time
from station.supervisor import Supervisor

def show(event):
    if "lamp" in event:
        print(time.monotonic_ns(), json.dumps(event["lamp"]), flush=True)

sys.exit(Supervisor(sys.argv[1], None, [], show, lambda text: None).run())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["station", "lamp"])
def test_the_drawn_tower_leaves_its_pass_like_a_real_one(
    rig: Rig, victim: str, how: signal.Signals
) -> None:
    rig.specimen["gap_mm"] = 800.0
    seen = rig.folder / "seen"
    with seen.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-P", "-c", _WATCHER, str(rig.write())],
            stdout=file,
            start_new_session=True,
        )

    def lamp() -> tuple[int, str]:
        lines = seen.read_text().split("\n")[:-1]
        if not lines:
            return 0, ""
        at, text = lines[-1].split(" ", 1)
        return int(at), json.loads(text)["state"]

    try:
        wait_until(lambda: lamp()[1] == "pass_not_production", 40.0, "a pass")
        pid = children(run.pid)[victim]
        struck_ns = time.monotonic_ns()
        os.kill(pid, how)
        wait_until(lambda: lamp()[1] == "fault", 3.0, "FAULT")
        assert lamp()[0] - struck_ns < 2_000_000_000
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    finally:
        run.terminate()
        run.wait(25.0)


HOSTILE = [
    b"",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"op": "tick"}',
    b'{"op": "submit"}',
    b'{"op": "submit", "id": 1, "rows": 7}',
    b'{"op": "submit", "id": 1, "rows": [], "pixels": {"rows": 1}}',
    b'{"op": "show"}',
    b'{"op": ["x"]}',
    b'{"op": {}}',
]


def test_nonsense_on_any_socket_harms_nobody(rig: Rig) -> None:
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 0, 20.0, "plates")
        before = children(run.pid)

        def descriptors() -> dict[str, int]:
            return {n: len(os.listdir(f"/proc/{pid}/fd")) for n, pid in before.items()}  # noqa: PTH208

        for name in (journal_path, lamp_path, control_path):
            for payload in HOSTILE:
                send_with_descriptor(name(rig.runtime), payload)
        settled = descriptors()
        for name in (journal_path, lamp_path, control_path):
            for payload in HOSTILE:
                send_with_descriptor(name(rig.runtime), payload)
        plates = rig.status()["plates"]
        wait_until(lambda: rig.status()["plates"] > plates + 2, 20.0, "plates afterwards")
        assert children(run.pid) == before

        def leaks() -> bool:
            # A connection or two come and go; each payload carried one descriptor.
            return any(count > settled[name] + 3 for name, count in descriptors().items())

        wait_until(lambda: not leaks(), 5.0, "end of the leak")
    verify_log(rig)


def send_with_descriptor(path: Path, payload: bytes) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        open(os.devnull) as file,  # noqa: PTH123
    ):
        connection.connect(str(path))
        connection.settimeout(2.0)
        with contextlib.suppress(OSError):
            socket.send_fds(connection, [payload], [file.fileno()])
            connection.recv(400_000)
