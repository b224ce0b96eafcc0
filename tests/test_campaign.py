"""The fault campaign in its short form, the rule of its ledger, and whether its observer sees."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from campaign.belt import Belt
from campaign.ledger import ROOT, Ledger, State, is_harmless
from campaign.life import ACCEPT_MM, campaign_belt
from campaign.observer import Observer, Seen

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
    ["no fsync of the folder", "acknowledged before the commit", "lamp without a lease"],
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.belt = Belt(campaign_belt(), time.monotonic_ns() - 60_000_000_000, 8)
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

    def accept(self, plate: int) -> None:
        at_ns = self.belt.trailing_ns(plate) + int(ACCEPT_MM / self.belt.mm_s * 1e9)
        with (self.folder / "panel").open("a") as file:
            file.write(f"{at_ns} 8 1\n{at_ns + 100_000_000} 8 0\n")

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


def test_ready_while_nothing_is_judged(scene: Scene) -> None:
    scene.healthy(range(10, 12))
    (scene.folder / "panel").write_text(f"{scene.decided_ns(11)} 0 1\n")
    assert scene.found()["false_greens"] == 1
