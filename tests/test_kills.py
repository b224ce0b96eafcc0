"""kill -9 at random moments: nothing green stays, nothing is lost, everything comes back.

A belt and a pty recorder that survive every kill bear witness: the plates that the belt carried
must all be answered for, and every pass pattern must be off within 2 s of a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from producer_rig import SignedLine, belt_settings
from pty_recorder import read_log
from station_rig import Rig, check_conservation, children, shared_memory, start_vqi, vqi, wait_until

from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import belt_plates_before
from drivers.errors import DriverMissing
from station.config import load_configuration
from station.log_reader import Reader
from station.log_verify import verify

Json = dict[str, Any]
MakeLine = Callable[[Path, Json, int], tuple[Rig, SimulatedCameraSettings]]
"""From a folder, the tower's settings and the belt's beginning."""
pytestmark = pytest.mark.alone

TARGETS = ("parent", "lamp", "journal", "station", "camera", "all")
PASS_OFF_LIMIT_S = 2.0
REPLACED_LIMIT_S = 3.0
_GREEN_ON, _GREEN_OFF = (0x14, 0x44), 0x24
_FAULT_ON, _ALL_OFF = 0x41, (0x21, 0x22, 0x24, 0x28)


@dataclass
class KillLoop:
    """One rig under fire."""

    rig: Rig
    seed: int
    tower_log: Path
    belt: SimulatedCameraSettings
    """The belt under the camera, whichever camera that is."""
    epoch_ns: int
    """When it began to run."""
    run: subprocess.Popen[bytes] | None = None
    kills_with_pass: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    slowest_off_s: float = 0.0
    slowest_replaced_s: float = 0.0

    def go(self, kills: int, with_pass: int) -> None:
        draw = random.Random(self.seed)
        config = str(self.rig.write())
        self.start(config)
        while sum(self.kills.values()) < kills or self.kills_with_pass < with_pass:
            assert sum(self.kills.values()) < 3 * kills, "too few kills met a pass pattern"
            target = TARGETS[sum(self.kills.values()) % len(TARGETS)]
            self.wait_for_plates()
            if draw.random() < 0.75:
                self.wait_for_pass(8.0)
            else:
                time.sleep(draw.uniform(0, 1.0))
            self.strike(target, config)
        self.wait_for_plates()
        assert self.run is not None
        stopped_ns = time.monotonic_ns()
        self.run.terminate()
        assert self.run.wait(30.0) == 0
        self.check_belt(stopped_ns)

    def check_belt(self, stopped_ns: int) -> None:
        """The log's last plate is the last that the belt, which nobody can kill, had carried."""

        def carried(at_ns: int) -> int:
            scan_line = int((at_ns - self.epoch_ns) / 1e9 * self.belt.line_rate_hz)
            return belt_plates_before(self.belt, scan_line)

        last = max(row["plate_ordinal"] or 0 for row in self.rig.rows("opened"))
        # Frames are up to half a second old when they are seen.
        assert carried(stopped_ns - 500_000_000) <= last <= carried(time.monotonic_ns())

    def start(self, config: str) -> None:
        self.run = start_vqi("run", "--config", config)

    def wait_for_plates(self) -> None:
        wait_until(lambda: self.rig.status().get("state") == "OPERATIONAL", 40.0, "OPERATIONAL")
        plates = self.rig.status().get("plates", 0)
        wait_until(lambda: self.rig.status().get("plates", 0) > plates, 20.0, "a plate")

    def wait_for_pass(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.is_green():
            time.sleep(0.005)

    def is_green(self) -> bool:
        return _is_green(b"".join(data for _, data in read_log(self.tower_log)[-60:]))

    def strike(self, target: str, config: str) -> None:
        assert self.run is not None
        family = children(self.run.pid) | {"parent": self.run.pid}
        victims = list(family.values()) if target == "all" else [family[target]]
        was_green = self.is_green()
        struck_ns = time.monotonic_ns()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if target in ("parent", "all"):
            self.run.wait(5.0)
            if target == "parent":
                self.wait_ends(set(family.values()) - {self.run.pid}, struck_ns)
            self.start(config)
        else:
            self.wait_replaced(target, family[target], struck_ns)
        self.kills[target] += 1
        if was_green:
            self.kills_with_pass += 1
            self.check_pass_went_off(struck_ns, target)
        if target == "all":
            self.check_fault_came_first(struck_ns)
        if target in ("lamp", "journal", "camera"):
            assert children(self.run.pid)["station"] == family["station"], "the station stays"
        self.verify_log()

    def verify_log(self) -> None:
        with Reader(self.rig.journal) as reader:
            found = verify(reader)
        assert found.findings == []

    def wait_ends(self, pids: set[int], struck_ns: int) -> None:
        wait_until(
            lambda: not any(_is_alive(pid) for pid in pids), REPLACED_LIMIT_S + 1, "end of children"
        )
        self.note_replaced(struck_ns)

    def wait_replaced(self, target: str, old_pid: int, struck_ns: int) -> None:
        assert self.run is not None
        pid = self.run.pid

        def is_new() -> bool:
            return children(pid).get(target, old_pid) != old_pid

        wait_until(is_new, REPLACED_LIMIT_S + 1, f"a new {target} process")
        self.note_replaced(struck_ns)

    def note_replaced(self, struck_ns: int) -> None:
        took_s = (time.monotonic_ns() - struck_ns) / 1e9
        self.slowest_replaced_s = max(self.slowest_replaced_s, took_s)
        assert took_s <= REPLACED_LIMIT_S

    def check_pass_went_off(self, struck_ns: int, target: str) -> None:
        """The first byte after the kill that switches green off came in time."""
        limit_ns = struck_ns + int(PASS_OFF_LIMIT_S * 1e9)

        def off_ns() -> int | None:
            for ns, data in read_log(self.tower_log):
                if ns >= struck_ns and _GREEN_OFF in data:
                    return ns
            return None

        while (found := off_ns()) is None and time.monotonic_ns() < limit_ns + 1_000_000_000:
            time.sleep(0.01)
        assert found is not None, f"green stayed after killing {target}"
        self.slowest_off_s = max(self.slowest_off_s, (found - struck_ns) / 1e9)
        assert found <= limit_ns, f"green off after {(found - struck_ns) / 1e9:.2f} s ({target})"

    def check_fault_came_first(self, struck_ns: int) -> None:
        """Nothing but darkness went over the wire before FAULT's flashing red."""

        def sent() -> bytes:
            return b"".join(data for ns, data in read_log(self.tower_log) if ns > struck_ns)

        wait_until(lambda: _FAULT_ON in sent(), 5.0, "FAULT")
        assert set(sent().split(bytes([_FAULT_ON]))[0]) <= set(_ALL_OFF)


def _is_green(data: bytes) -> bool:
    lit = [byte for byte in data if byte in _GREEN_ON or byte == _GREEN_OFF]
    return bool(lit) and lit[-1] != _GREEN_OFF


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


_SPECIMEN = {"gap_mm": 100.0, "contrast_scale": 3.0, "defective_share": 0.2}


def simulated_line(folder: Path, tower: Json, epoch_ns: int) -> tuple[Rig, SimulatedCameraSettings]:
    """A line under the simulated camera: its passes are not production."""
    (folder / "belt.json").write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))
    camera = {"belt_file": str(folder / "belt.json"), "bank_plates": 2}
    rig = Rig(folder, camera=camera, specimen=_SPECIMEN, light={"device": tower})
    belt = load_configuration(str(rig.write())).value.camera
    assert isinstance(belt, SimulatedCameraSettings)
    return rig, belt


def production_line(
    folder: Path, tower: Json, epoch_ns: int
) -> tuple[Rig, SimulatedCameraSettings]:
    """A line under the C producer as another vendor's, signed: its passes are production."""
    try:
        line = SignedLine(
            folder, {"ChunkModeActive": True, "SimBeltEpoch": epoch_ns}, _SPECIMEN, light=tower
        )
    except DriverMissing as error:
        pytest.skip(str(error))
    return line.rig, belt_settings(_SPECIMEN)


def kill_loop(folder: Path, kills: int, with_pass: int, make_line: MakeLine) -> KillLoop:
    log, link = folder / "tower.log", folder / "tower"
    recorder = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("pty_recorder.py")), str(link), str(log)],
        start_new_session=True,
    )
    shared = shared_memory()
    epoch_ns = time.monotonic_ns()
    try:
        rig, belt = make_line(folder, {"type": "serial_tower", "port": str(link)}, epoch_ns)
        loop = KillLoop(rig, seed=kills, tower_log=log, belt=belt, epoch_ns=epoch_ns)
        wait_until(link.is_symlink, 5.0, "the tower")
        _go(loop, kills, with_pass)
    finally:
        recorder.terminate()
        recorder.wait()
    assert shared_memory() == shared
    return loop


def _go(loop: KillLoop, kills: int, with_pass: int) -> None:
    rig = loop.rig
    try:
        loop.go(kills, with_pass)
        done = vqi("log", "verify", "--journal", str(rig.journal))
        assert done.returncode == 0, done.stdout + done.stderr
        check_conservation(rig)
        results = sorted(row["result_id"] for row in rig.rows("result"))
        assert sorted(row["result_id"] for row in rig.rows("actuation")) == results
    finally:
        if loop.run is not None and loop.run.poll() is None:
            loop.run.terminate()
            loop.run.wait(30.0)


def test_kills_lose_nothing_and_leave_no_green(tmp_path: Path) -> None:
    loop = kill_loop(tmp_path, len(TARGETS), with_pass=3, make_line=simulated_line)
    assert set(loop.kills) == set(TARGETS)


def test_kills_put_out_the_production_pass_too(tmp_path: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    loop = kill_loop(folder, len(TARGETS), with_pass=3, make_line=production_line)
    assert set(loop.kills) == set(TARGETS)
    commands = {row["command"] for row in loop.rig.rows("actuation")}
    assert "pass" in commands
    assert "pass_not_production" not in commands


@pytest.mark.long
def test_a_start_after_a_kill_at_any_moment_of_the_start_before(tmp_path: Path) -> None:
    """Also before anything was ready: what is left of one run never blocks the next."""
    draw = random.Random(5)
    rig = Rig(
        tmp_path,
        camera={"belt_file": str(tmp_path / "belt.json"), "bank_plates": 2},
        specimen={"contrast_scale": 3.0},
    )
    (tmp_path / "belt.json").write_text(json.dumps({"epoch_monotonic_ns": time.monotonic_ns()}))
    config = str(rig.write())
    for _ in range(12):
        run = start_vqi("run", "--config", config)
        time.sleep(draw.uniform(0.1, 2.5))
        run.kill()
        run.wait()
    with rig.running():
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
    check_conservation(rig)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


@pytest.mark.parametrize("kind", ["result", pytest.param("downtime", marks=pytest.mark.long)])
def test_the_conservation_check_misses_no_missing_row(tmp_path: Path, kind: str) -> None:
    """Negative control: the law must not hold where one row is kept from it."""

    class Forgetful(Rig):
        def rows(self, wanted: str) -> list[dict[str, Any]]:
            rows = super().rows(wanted)
            if wanted == kind == "result":
                del rows[len(rows) // 2]
            elif wanted == kind:
                rows = [row for row in rows if not row["triggers"]]
            return rows

    rig = Rig(
        tmp_path,
        camera={"belt_file": str(tmp_path / "belt.json"), "bank_plates": 1},
        specimen={"contrast_scale": 3.0},
    )
    (tmp_path / "belt.json").write_text(json.dumps({"epoch_monotonic_ns": time.monotonic_ns()}))
    for _ in range(2):
        assert rig.run("--plates", "6").status == 0
        time.sleep(1.0)
    check_conservation(rig)
    with pytest.raises(AssertionError):
        check_conservation(Forgetful(tmp_path, camera=rig.camera))


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_two_hundred_kills(tmp_path: Path) -> None:
    loop = kill_loop(tmp_path, kills=200, with_pass=100, make_line=simulated_line)
    print(
        f"{sum(loop.kills.values())} kills {dict(loop.kills)}, {loop.kills_with_pass} with a pass "
        f"shown; off after at most {loop.slowest_off_s:.2f} s, replaced after at most "
        f"{loop.slowest_replaced_s:.2f} s"
    )
