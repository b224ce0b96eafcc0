"""The fault campaign in its short form, the rule of its ledger, and whether its observer sees."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign.belt import Belt, Stop, write_uneven_source
from campaign.ledger import ROOT, Ledger, State, is_harmless
from campaign.life import ACCEPT_MM, belt_features, campaign_belt, restless_belt
from campaign.observer import Observer, Seen
from campaign.panel import COILS, PULSE_MS, Wires, _Module

from drivers.camera import open_camera
from drivers.camera.producer.build import build_producer
from drivers.camera.settings import GenicamCameraSettings
from drivers.errors import DriverMissing

Json = dict[str, Any]
SHORT_KINDS = (
    "kill -9 station",
    "kill -9 lamp",
    "deadlock: station's main thread",
    "fsync says EIO",
    "disk full",
    "tower: unplugged and plugged in",
    "nonsense on every socket",
    "I/O module reads back the opposite",
)


@pytest.fixture
def needs_root() -> None:
    tools = [tool for tool in ("mkfs.ext4", "strace", "gcc") if shutil.which(tool) is None]
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists() or tools:
        pytest.skip(f"cannot cut power here: root, loop devices, {', '.join(tools) or 'tools'}")


def campaign(ledger: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-m", "campaign", "--ledger", str(ledger), *options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )


# --- the short form -------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.usefixtures("needs_root")
def test_faults_in_a_living_station_leave_nothing_behind(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    done = campaign(ledger, "--runs", "1", "--stations", "1", "--kinds", ",".join(SHORT_KINDS))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {run["kind"] for run in runs} == {*SHORT_KINDS, "clean stop"}, done.stdout


@pytest.mark.alone
@pytest.mark.usefixtures("needs_root")
def test_power_cuts_and_killed_system_calls_lose_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    done = campaign(ledger, "--power-cuts", "5", "--system-calls", "--calls", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [run["runs"] for run in runs if "acknowledged" in run] == [5]
    assert all(run["runs"] > 0 for run in runs)
    (calls,) = [run for run in runs if "limit" in run]
    assert calls["limit"] == 12, "some of them, not all"
    assert calls["runs"] + len(calls["not_reached"]) == calls["planned"]


@pytest.mark.alone
@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize(
    "wrong",
    [
        "no fsync of the folder",
        "acknowledged before the commit",
        "lamp without a lease",
        "accept ignores the next plate",
    ],
)
def test_a_wrong_station_is_caught(tmp_path: Path, wrong: str) -> None:
    done = campaign(tmp_path / "ledger.jsonl", "--controls", wrong)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {wrong} |" in done.stdout
    assert "MISSED" not in done.stdout


# --- the ledger -----------------------------------------------------------------------------------


def test_what_takes_runs_back() -> None:
    for path in ("docs/campaign.md", "README.md", "tests/test_strip.py", "deploy/INSTALL.md"):
        assert is_harmless(path), path
    for path in (
        "station/lamp.py",
        "tests/campaign/observer.py",
        "config/simulated.toml",
        "Makefile",
    ):
        assert not is_harmless(path), path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in ("station", "docs"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("1")
    git(root, "init", "-q")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "c")


def test_runs_count_until_what_they_proved_is_changed(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    def counting() -> int:
        return len(Ledger(path, State.now(repository), repository).counting())

    Ledger(path, State.now(repository), repository).add({"kind": "a"})
    assert counting() == 1
    (repository / "docs" / "file").write_text("2")
    assert counting() == 1, "documentation"
    commit(repository)
    assert counting() == 1, "a commit of documentation"
    (repository / "station" / "file").write_text("2")
    assert counting() == 0, "another station"
    Ledger(path, State.now(repository), repository).add({"kind": "a"})
    assert counting() == 1, "what was run before it was committed counts as long as it stands"
    (repository / "station" / "new").write_text("3")
    assert counting() == 0, "a file that nobody tracks"
    (repository / "station" / "new").unlink()
    commit(repository)
    assert counting() == 0, "that exact state cannot be had again"
    (repository / "station" / "file").write_text("1")
    commit(repository)
    assert counting() == 1, "the first state, come back"


# --- the observer ---------------------------------------------------------------------------------

_GREEN, _DARK = "14", "24"


class Scene:
    """Files as a station would leave them, plate after plate of a belt that began just before."""

    def __init__(self, folder: Path, stops: tuple[Stop, ...] = ()) -> None:
        self.folder = folder
        epoch_ns = time.monotonic_ns() - 60_000_000_000
        self.belt = Belt(campaign_belt(), epoch_ns, 8, stops=stops)
        (folder / "images").mkdir()
        self._log = sqlite3.connect(folder / "journal.db", isolation_level=None)
        self._log.execute(
            "CREATE TABLE row (seq INTEGER PRIMARY KEY, kind, body, body_sha256, chain_sha256)"
        )
        self._chain, self._seq = "0" * 64, 0
        seen = Seen(folder / "tower", folder / "panel", folder / "stdout")
        self.observer = Observer(folder, seen, self.belt, ACCEPT_MM)

    def plate(self, plate: int, verdict: str | None = None, **changes: object) -> Json:
        """A row for a plate, with what the belt knows unless told otherwise."""
        truth = "FAIL" if self.belt.is_defective(plate) else "PASS"
        body = {
            "result_id": f"p-{plate}",
            "plate_ordinal": plate,
            "verdict": verdict or truth,
            "reason": None,
            "opened_ns": self.belt.leading_ns(plate),
            "decided_ns": self.decided_ns(plate),
            "images": [],
            **changes,
        }
        self.row("result", body)
        return body

    def decided_ns(self, plate: int) -> int:
        return self.belt.trailing_ns(plate) + 50_000_000

    def row(self, kind: str, body: Json) -> None:
        text = json.dumps(body)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._seq += 1
        words = f"{self._chain} {self._seq} {kind} {sha256}"
        self._chain = hashlib.sha256(words.encode()).hexdigest()
        values = (self._seq, kind, text, sha256, self._chain)
        self._log.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", values)

    def green(self, plate: int, until_ns: int | None = None) -> None:
        """After a plate's verdict, until the next leading edge unless told otherwise."""
        on_ns = self.decided_ns(plate) + 5_000_000
        off_ns = until_ns or self.belt.leading_ns(plate + 1)
        with (self.folder / "tower").open("a") as file:
            file.write(f"{on_ns} {_GREEN}\n{off_ns} {_DARK}\n")

    def accept(self, plate: int, for_ms: int = PULSE_MS) -> int:
        """From when a plate's trailing edge is at the accept point; when that is."""
        at_ns = self.belt.at_ns(self.belt.lap.end(plate) + self.belt.rows(ACCEPT_MM))
        self.wire("accept", at_ns, for_ms)
        return at_ns

    def wire(self, name: str, on_ns: int, for_ms: int) -> None:
        with (self.folder / "panel").open("a") as file:
            coil = COILS[name]
            file.write(f"{on_ns} {coil} 1\n{on_ns + for_ms * 1_000_000} {coil} 0\n")

    def healthy(self, plates: range) -> None:
        for plate in plates:
            body = self.plate(plate)
            if body["verdict"] == "PASS":
                self.green(plate)
                self.accept(plate)

    def good(self, after: int, is_defective: bool = False) -> int:
        """The next plate that is (not) defective."""
        return next(n for n in range(after, after + 9) if self.belt.is_defective(n) is is_defective)

    def opened(self, plate: int) -> None:
        self.row("opened", {"result_id": f"p-{plate}", "plate_ordinal": plate})

    def found(self, is_over: bool = False) -> dict[str, int]:
        counts = self.observer.judge(self.belt.epoch_ns, is_over=is_over).counts()
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_healthy_station_is_not_blamed(scene: Scene) -> None:
    scene.healthy(range(10, 30))
    assert scene.found() == {}


def test_green_over_a_plate_that_did_not_pass(scene: Scene) -> None:
    bad = scene.good(10, is_defective=True)
    scene.healthy(range(10, bad + 1))
    scene.green(bad)
    assert scene.found() == {"false_greens": 1}


def test_green_before_any_verdict(scene: Scene) -> None:
    scene.green(10)
    assert scene.found() == {"false_greens": 1}


def test_green_that_outlives_its_lease(scene: Scene) -> None:
    good = scene.good(10)
    scene.plate(good)
    scene.green(good, until_ns=scene.belt.leading_ns(good + 1) + 2_100_000_000)
    assert scene.found() == {"false_greens": 1}


def test_a_defective_plate_that_passed(scene: Scene) -> None:
    scene.plate(scene.good(10, is_defective=True), "PASS")
    assert scene.found() == {"false_greens": 1}


def test_rows_that_are_lost_altered_or_doubled(scene: Scene) -> None:
    scene.healthy(range(10, 14))
    assert scene.found() == {}
    log = sqlite3.connect(scene.folder / "journal.db", isolation_level=None)
    log.execute("DELETE FROM row WHERE seq = 4")
    assert scene.found() == {"lost": 1}
    log.execute("UPDATE row SET body = body || ' ' WHERE seq = 3")
    scene.plate(12)
    assert scene.found()["duplicated"] > 0


def test_a_promise_on_stdout_that_was_not_kept(scene: Scene) -> None:
    scene.plate(10)
    (scene.folder / "stdout").write_text('{"result_id": "p-10"}\n{"result_id": "p-11"}\n')
    assert scene.found() == {"lost": 1}


def test_a_picture_that_is_missing_and_one_that_is_another(scene: Scene) -> None:
    (scene.folder / "images" / "a.png").write_bytes(b"another")
    images = [{"path": "a.png", "sha256": "0" * 64}, {"path": "b.png", "sha256": "0" * 64}]
    scene.plate(10, images=images)
    assert scene.found() == {"dangling": 2}


def test_a_plate_without_a_row_and_one_in_downtime(scene: Scene) -> None:
    scene.healthy(range(10, 12))
    scene.row("downtime", {"from_ordinal": 11, "to_ordinal": 13})
    scene.healthy(range(14, 15))
    assert scene.found() == {}
    scene.healthy(range(16, 17))
    assert scene.found() == {"unrecorded": 1}


def test_a_plate_that_was_opened_and_never_answered(scene: Scene) -> None:
    scene.opened(10)
    scene.opened(11)
    scene.plate(10)
    assert scene.found() == {}, "the newest may still be under way"
    scene.opened(12)
    scene.plate(12)
    assert scene.found() == {"unrecorded": 1}
    scene.row("downtime", {"from_ordinal": 12, "to_ordinal": 14})
    scene.opened(13)
    assert scene.found() == {}, "told once"
    assert scene.found(is_over=True) == {"unrecorded": 1}, "no row is to come"


def test_a_late_result_is_waited_for(scene: Scene) -> None:
    now = scene.belt.carried(time.monotonic_ns())
    scene.healthy(range(now - 3, now - 1))
    scene.opened(now - 1)
    scene.healthy(range(now, now + 1))
    assert scene.found() == {}
    assert scene.found(is_over=True) == {"unrecorded": 1}


def test_a_plate_let_through_that_did_not_pass(scene: Scene) -> None:
    bad = scene.good(10, is_defective=True)
    scene.healthy(range(10, bad + 1))
    scene.accept(bad)
    scene.accept(bad + 1)  # of which nothing is known
    assert scene.found() == {"wrong_rejects": 2}


def in_turn(scene: Scene, *defective: bool) -> int:
    """The first of plates, 333 ms apart, of which these are defective; those before are healthy."""
    first = next(
        plate
        for plate in range(20, 40)
        if all(scene.belt.is_defective(plate + i) is bad for i, bad in enumerate(defective))
    )
    scene.healthy(range(10, first))
    return first


def before_a_defective_plate(scene: Scene) -> int:
    good = in_turn(scene, False, True)
    scene.plate(good)
    scene.plate(good + 1)
    return good


def test_a_pulse_that_stays_over_the_next_plate(scene: Scene) -> None:
    good = before_a_defective_plate(scene)
    at_ns = scene.accept(good, for_ms=400)
    said = scene.observer.judge(scene.belt.epoch_ns).all
    assert said == [f"wrong_rejects: accept at {at_ns}: plate {good + 1} is FAIL"]


def test_a_pulse_that_stays_over_a_plate_that_passed_but_not_before_it_did(scene: Scene) -> None:
    good = in_turn(scene, False, False)
    scene.plate(good)
    scene.accept(good, for_ms=400)
    assert scene.found() == {"wrong_rejects": 1}, "the next has no record yet"
    scene.plate(good + 1)
    assert scene.found() == {}


@pytest.mark.parametrize("for_ms", [PULSE_MS, 330, 360])
def test_a_pulse_that_ends_in_the_gap(scene: Scene, for_ms: int) -> None:
    """360 ms: 8 mm into the plate, less than a station may be mistaken about the belt."""
    scene.accept(before_a_defective_plate(scene), for_ms)
    assert scene.found() == {}


def test_a_pulse_ends_in_the_gap_where_the_belt_stood_still_meanwhile(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("runs", "stops")]
    for place in places:
        place.mkdir()
    runs = Scene(places[0])
    good = before_a_defective_plate(runs)
    at_ms = (runs.accept(good, for_ms=600) - runs.belt.epoch_ns) // 1_000_000
    assert runs.found() == {"wrong_rejects": 1}
    stops = Scene(places[1], (Stop(at_ms + 50, 300),))
    stops.accept(before_a_defective_plate(stops), for_ms=600)
    assert stops.found() == {}


@pytest.mark.parametrize(("beside_ms", "count"), [(40, 0), (150, 1)])
def test_a_pulse_beside_an_error(scene: Scene, beside_ms: int, count: int) -> None:
    """It ends with the station's word, though a module times it."""
    good = scene.good(10)
    scene.healthy(range(10, good))
    scene.plate(good)
    error_ns = scene.accept(good) + (PULSE_MS - beside_ms) * 1_000_000
    scene.wire("error", error_ns, 1000)
    assert scene.found().get("wrong_rejects", 0) == count


@pytest.mark.parametrize(("before_its_verdict_ms", "count"), [(10, 0), (-10, 1)])
def test_a_pulse_that_begins_beside_an_error(
    scene: Scene, before_its_verdict_ms: int, count: int
) -> None:
    """A station that judges may have no link to the PLC; one that died gives no pulse."""
    good = scene.good(10)
    scene.healthy(range(10, good))
    scene.plate(good)
    scene.accept(good)
    scene.wire("error", scene.decided_ns(good) - before_its_verdict_ms * 1_000_000, 5000)
    assert scene.found().get("wrong_rejects", 0) == count


def test_the_module_times_a_pulse_by_its_own_clock(tmp_path: Path) -> None:
    """However late its process comes to it."""
    module = _Module(tmp_path / "panel")
    module.set(COILS["accept"], True, 0.05)
    time.sleep(0.15)
    module.set(COILS["accept"], True, 0.05)
    time.sleep(0.15)
    module.end_pulses()
    wires = Wires(tmp_path / "panel")
    wires.read()
    lengths_ns = [(on.until_ns or 0) - on.since_ns for on in wires.on("accept", 0)]
    assert lengths_ns == pytest.approx([50_000_000, 50_000_000], abs=5_000_000)


def test_ready_while_nothing_is_judged(scene: Scene) -> None:
    scene.healthy(range(10, 12))
    (scene.folder / "panel").write_text(f"{scene.decided_ns(11)} 0 1\n")
    assert scene.found()["false_greens"] == 1


@pytest.mark.parametrize(
    ("blind_ms", "off_ms", "count"),
    [
        (None, 1_900, 0),
        (None, 2_100, 1),
        ((15, 3_000), 3_010, 0),
        ((15, 3_000), 5_010, 1),
        ((1_900, 3_000), 3_010, 0),
        ((2_100, 3_000), 3_010, 1),
    ],
)
def test_ok_over_a_plate_that_did_not_pass(
    scene: Scene, blind_ms: tuple[int, int] | None, off_ms: int, count: int
) -> None:
    belt = scene.belt
    good = next(n for n in range(10, 40) if not belt.is_defective(n) and belt.is_defective(n + 1))
    for plate in (good, good + 1):
        scene.plate(plate)
    on_ns, failed_ns = scene.decided_ns(good) + 20_000_000, scene.decided_ns(good + 1)
    scene.wire("ok", on_ns, (failed_ns - on_ns) // 1_000_000 + off_ms)
    blind = None
    if blind_ms is not None:
        blind = (failed_ns + blind_ms[0] * 1_000_000, failed_ns + blind_ms[1] * 1_000_000)
    found = scene.observer.judge(belt.epoch_ns, blind).counts()
    assert found["false_greens"] == count


# --- the belt -------------------------------------------------------------------------------------


def test_a_belt_has_short_stops_and_gaps_into_which_no_pulse_fits() -> None:
    too_short = 0
    for seed in range(40):
        belt = restless_belt(0, random.Random(seed))
        lap, pulse_rows = belt.lap, PULSE_MS / 1000 * belt.rows_s
        gaps = [lap.start(plate + 1) - lap.end(plate) for plate in range(1, 9)]
        assert min(gaps) >= belt.rows(10.0)
        assert max(gaps) >= 1.5 * pulse_rows
        too_short += sum(gap < pulse_rows / 2 for gap in gaps)
        assert all(100 <= stop.for_ms <= 450 for stop in belt.stops)
        ends = [stop.from_ms + stop.for_ms for stop in belt.stops]
        assert all(end < stop.from_ms for end, stop in zip(ends, belt.stops[1:], strict=False))
        assert len(belt_features(belt, Path("source"))["SimBeltStops"]) < 1024
        for row in range(0, 1_200_000, 9973):
            assert belt.row_at(belt.at_ns(row)) == pytest.approx(row, abs=0.01)
    assert too_short > 40


def test_the_belt_is_where_the_camera_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    try:
        producer = build_producer(tmp_path / "producer")
    except DriverMissing as error:
        pytest.skip(str(error))
    belt = restless_belt(0, random.Random(1))
    write_uneven_source(tmp_path / "source", belt)
    stop = belt.stops[1]
    belt = replace(belt, epoch_ns=time.monotonic_ns() + (1500 - stop.from_ms) * 1_000_000)
    camera = GenicamCameraSettings(
        type="genicam",
        producer=producer,
        serial="VQI-LS-1",
        features=belt_features(belt, tmp_path / "source"),
    )
    frames = _frames(camera, belt.epoch_ns + (stop.from_ms + stop.for_ms + 500) * 1_000_000)
    for row, plates, last_ns in frames:
        last_row = row + campaign_belt().frame_height - 1
        assert last_ns == pytest.approx(belt.at_ns(last_row), abs=50_000_000)
        assert plates == belt.lap.plates_before(row)
    assert len({plates for _, plates, _ in frames}) > 2, "plates were seen"
    times = [last_ns for _, _, last_ns in frames]
    waits_ms = [(after - before) // 1_000_000 for before, after in pairwise(times)]
    assert max(waits_ms) >= stop.for_ms, "and the stop"


def _frames(settings: GenicamCameraSettings, until_ns: int) -> list[tuple[int, int, int]]:
    """Of each the first scan line, the plates before it, and when the last was in memory."""
    frames = []
    with open_camera(settings) as camera:
        into = np.zeros(camera.info.max_frame_bytes, np.uint8)
        camera.start()
        while time.monotonic_ns() < until_ns:
            frame = camera.grab(into, 1.0)
            assert frame is not None
            assert frame.encoder_value is not None
            assert frame.plate_counter is not None
            frames.append((frame.encoder_value, frame.plate_counter, frame.timestamp_ns))
    return frames
