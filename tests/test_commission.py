"""The acceptance run: its steps, its folder, its report, and who may sign it when."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from producer_rig import viky_rig
from pty_recorder import PtyRecorder
from station_rig import Rig, start_vqi, vqi, wait_until

from drivers.camera import open_camera
from station.commission_record import (
    Basis,
    Check,
    Run,
    RunFolder,
    RunFolderError,
    Status,
    StepResult,
)
from station.commissioned import sha256_hex
from station.commissioning import Answers, Bench, Findings, NotDone, Step, StepFailed, run_step
from station.commissioning_line import limit_samples, msa
from station.commissioning_report import build_report, html
from station.commissioning_steps import STEPS
from station.config import load_configuration, load_recipe
from station.product import load_product

BASIS = Basis(
    configuration_sha256="a" * 64,
    recipe_id="small",
    recipe_version=1,
    recipe_sha256="b" * 64,
    model_id="lightdefectnet-v3",
    model_sha256="c" * 64,
)
TITLES = {step.name: step.title for step in STEPS}


def a_step(name: str, status: Status = Status.PASSED, **changes: Any) -> StepResult:
    values: dict[str, Any] = {
        "step": name,
        "status": status,
        "checks": (Check(what="size", measured=1.5, expected="1 to 2", is_ok=True, unit="mm"),),
        "who": "A. Engineer",
        "started_at": "2026-11-26T05:00:00Z",
        "finished_at": "2026-11-26T05:01:00Z",
        "basis": BASIS,
        **changes,
    }
    return StepResult(**values)


def a_bench(folder: Path, rig: Rig | None = None, **changes: Any) -> Bench:
    configuration = load_configuration(str(rig.write()) if rig else "shipped:simulated")
    values: dict[str, Any] = {
        "configuration": configuration,
        "recipe": load_product(configuration) if rig else load_recipe("shipped:demo-lgp"),
        "basis": BASIS,
        "folder": RunFolder(folder, Run.FAT),
        "before": None,
        "answers": Answers(),
        "who": "A. Engineer",
        "say": lambda _: None,
        "dry_run_plates": 3,
        **changes,
    }
    return Bench(**values)


# --- steps ----------------------------------------------------------------------------------------


def _raises(error: Exception) -> Callable[[Bench, Findings], None]:
    def do(bench: Bench, found: Findings) -> None:
        found.check("before", 1.0, "1", True)
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotDone("no belt"), Status.NOT_DONE), (StepFailed("it is dirty"), Status.FAILED)],
)
def test_a_step_that_ends_early_keeps_what_it_found(
    tmp_path: Path, error: Exception, status: Status
) -> None:
    bench = a_bench(tmp_path)
    result = run_step(bench, Step("camera", "Camera", _raises(error)))
    assert (result.status, result.reason) == (status, str(error))
    assert [check.what for check in result.checks] == ["before"]
    assert bench.folder.steps() == {"camera": result}


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_was_not_measured_is_not_as_expected(tmp_path: Path, value: float | None) -> None:
    def do(bench: Bench, found: Findings) -> None:
        found.check("light", value, "any", True)

    assert run_step(a_bench(tmp_path), Step("lamp", "Lamp", do)).status is Status.FAILED


def test_a_step_that_measured_nothing_is_not_done(tmp_path: Path) -> None:
    step = Step("lamp", "Lamp", lambda bench, found: None)
    assert run_step(a_bench(tmp_path), step).status is Status.NOT_DONE


def test_answers_come_from_a_person_or_are_given_and_never_made_up() -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return "y"

    assert Answers(ask=ask).confirm("light", "Is it red?")[0]
    assert asked == ["Is it red? [y/n]"]
    assert not Answers(ask=lambda _: "").confirm("light", "Is it red?")[0]
    assert not Answers({"light": "no"}, is_yes=True).confirm("light", "Is it red?")[0]
    with pytest.raises(NotDone, match="nobody answered: Is it red"):
        Answers().confirm("light", "Is it red?")
    with pytest.raises(NotDone, match="not given"):
        Answers(is_yes=True).text("speed", "Belt, mm/s")
    for text in ("fast", "-1", "nan", "inf", "0"):
        with pytest.raises(StepFailed, match="no positive number"):
            Answers({"speed": text}).number("speed", "Belt, mm/s")


def lamp_rig(folder: Path) -> Rig:
    light = {"device": {"type": "serial_tower", "port": str(folder / "tower")}}
    return Rig(folder, camera={"bank_plates": 1}, light=light)


def commission(rig: Rig, *options: str) -> list[dict[str, Any]]:
    """Rows of `vqi commission --json` on the rig as it was written."""
    config = str(rig.folder / "station.toml")
    done = vqi("commission", "--config", config, "--json", *options, timeout_s=120.0)
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_a_light_without_read_back_takes_a_person(tmp_path: Path) -> None:
    rig = lamp_rig(tmp_path)
    rig.write()
    with PtyRecorder(tmp_path / "tower") as tower:
        nobody = commission(rig, "--step", "lamp")
        dark = commission(rig, "--step", "lamp", "--yes", "--answer", "light_idle=no")
        seen = commission(rig, "--step", "lamp", "--yes")
        tower.wait_for(lambda: tower.elements() == {"red": "blink"})
    assert nobody[0]["status"] == "not done"
    assert "nobody answered" in nobody[0]["reason"]
    assert dark[0]["status"] == "failed"
    assert [check["what"] for check in dark[0]["checks"] if not check["is_ok"]] == ["light idle"]
    assert seen[0]["status"] == "passed"
    lit = {check["what"]: check["measured"] for check in seen[0]["checks"]}
    assert lit["light pass_not_production"] == "green on, yellow blink"
    assert "light pass" not in lit, "the production pass takes a production plate"
    assert {"encoder counts", "plate counter counts"} <= lit.keys()


def test_a_light_that_is_not_there_is_not_done(tmp_path: Path) -> None:
    rig = lamp_rig(tmp_path)
    rig.write()
    row = commission(rig, "--step", "lamp", "--yes")[0]
    assert row["status"] == "not done"
    assert str(tmp_path / "tower") in row["reason"]


@pytest.mark.long
def test_the_dry_run_is_the_station_and_too_few_plates_do_not_pass_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera={"bank_plates": 2}, specimen={"contrast_scale": 3.0})
    rig.write()
    row, end = commission(rig, "--step", "dry_run", "--plates", "6")
    wrong = [check["what"] for check in row["checks"] if not check["is_ok"]]
    assert (row["status"], wrong) == ("failed", ["plates"])
    found = {check["what"]: check["measured"] for check in row["checks"]}
    assert found["opened plates"] == found["light commands"] == found["plates by the trigger"] == 6
    assert len(rig.rows("result")) == 6
    assert not end["is_signable"]
    assert any(line.startswith("dry_run: failed") for line in end["open"])


def test_a_station_that_does_not_start_fails_the_dry_run(tmp_path: Path) -> None:
    rig = lamp_rig(tmp_path)
    rig.write()
    row = commission(rig, "--step", "dry_run", "--plates", "1")[0]
    assert row["status"] == "failed"
    assert "the station did not run" in row["reason"]


def test_limit_samples_must_get_the_verdicts_that_were_agreed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, recipe_lines="")
    bench = a_bench(tmp_path / "runs", rig)
    step = Step("limit_samples", "Limit samples", limit_samples)
    assert run_step(bench, step).status is Status.NOT_DONE
    bench.answers = Answers({"limit_samples": str(tmp_path / "samples")})
    (tmp_path / "samples").mkdir()
    assert "no such file" in run_step(bench, step).reason
    rig.run("--plates", "8")
    rows = [row for row in rig.rows("result") if row["verdict"] == "FAIL"]
    evidence = [i["path"] for row in rows for i in row["images"] if i["role"] == "evidence"]
    listing = tmp_path / "samples" / "samples.csv"
    listing.write_text(f"file,expected\n{rig.journal / 'images' / evidence[0]},FAIL\n")
    result = run_step(bench, step)
    assert [c.is_ok for c in result.checks] == [False, True, True], "no sample that must pass"
    listing.write_text(
        f"file,expected\n{rig.journal / 'images' / evidence[0]},pass\nnone.png,FAIL\n"
    )
    result = run_step(bench, step)
    assert [c.is_ok for c in result.checks] == [True, True, False, False]
    assert len(result.pictures) == 1
    listing.write_text("file,expected\ngood.png,maybe\n")
    assert "row 2: file and expected" in run_step(bench, step).reason


def write_study(path: Path, parts: int = 50, runs: int = 3, missed: int = 0) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["part", "run", "reference", "verdict"])
        for part in range(parts):
            reference = "good" if part % 3 else "defective"
            for run in range(runs):
                is_missed = reference == "defective" and part // 3 < missed
                passes = reference == "good" or is_missed
                rows.writerow([part, run, reference, "PASS" if passes else "FAIL"])


@pytest.mark.parametrize(
    ("study", "status", "wrong"),
    [
        ({}, Status.PASSED, []),
        ({"missed": 1}, Status.FAILED, ["miss rate"]),
        ({"parts": 20}, Status.FAILED, ["parts"]),
        ({"runs": 1}, Status.FAILED, ["runs"]),
    ],
)
def test_the_study_must_reach_the_acceptable_grade(
    tmp_path: Path, study: dict[str, int], status: Status, wrong: list[str]
) -> None:
    write_study(tmp_path / "study.csv", **study)
    bench = a_bench(tmp_path, answers=Answers({"msa_csv": str(tmp_path / "study.csv")}))
    result = run_step(bench, Step("msa", "MSA", msa))
    assert result.status is status
    assert [check.what for check in result.checks if not check.is_ok] == wrong


def test_without_a_study_nothing_is_known(tmp_path: Path) -> None:
    step = Step("msa", "MSA", msa)
    for answers in (Answers(), Answers({"msa_csv": str(tmp_path / "none.csv")})):
        assert run_step(a_bench(tmp_path, answers=answers), step).status is Status.NOT_DONE


def test_the_guide_walks_through_every_step() -> None:
    guide = (Path(__file__).parents[1] / "deploy" / "COMMISSIONING.md").read_text()
    headings = re.findall(r"^### (.*) \(`(\w+)`\)$", guide, re.MULTILINE)
    assert headings == [(step.title, step.name) for step in STEPS]


# --- the folder -----------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_and_a_torn_file_is_not_a_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Run.FAT)
    folder.write_step(a_step("camera"))
    (folder.path / "steps" / "lamp.json.new").write_text('{"step": "la')
    assert list(RunFolder(tmp_path, Run.FAT).steps()) == ["camera"]
    (folder.path / "steps" / "lamp.json").write_text('{"step": "la')
    with pytest.raises(RunFolderError, match="no finished step"):
        folder.steps()
    (folder.path / "steps" / "lamp.json").write_bytes(
        (folder.path / "steps" / "camera.json").read_bytes()
    )
    with pytest.raises(RunFolderError, match="says it is camera"):
        folder.steps()


@pytest.mark.parametrize("changes", [{"checks": ()}, {"measured": None, "is_ok": False}])
def test_a_step_that_was_edited_to_have_passed_is_no_step(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path, Run.FAT)
    folder.write_step(a_step("camera"))
    path = folder.path / "steps" / "camera.json"
    row = json.loads(path.read_text())
    row.update(changes) if "checks" in changes else row["checks"][0].update(changes)
    path.write_text(json.dumps(row))
    with pytest.raises(RunFolderError, match="no finished step"):
        folder.steps()


def test_a_run_that_is_killed_in_a_step_keeps_the_steps_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera={"bank_plates": 1})
    config = str(rig.write())
    steps = rig.journal / "commissioning" / "fat" / "steps"
    run = start_vqi("commission", "--config", config, "--yes", "--answer", "warm_up_minutes=10")
    try:
        wait_until((steps / "camera.json").exists, 60.0, "the first step")
    finally:
        run.kill()
        run.wait()
    folder = RunFolder(rig.journal / "commissioning", Run.FAT)
    assert list(folder.steps()) == ["camera"]
    before = folder.steps()["camera"]
    row = commission(rig, "--step", "lamp")[0]
    assert row["status"] == "passed", "nothing that the killed run held is in the way"
    assert folder.steps()["camera"] == before


def test_a_picture_that_changed_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Run.FAT)
    picture = folder.write_picture("camera", "first.svg", b"<svg/>", "What it saw")
    folder.write_step(a_step("camera", pictures=(picture,)))
    report = build_report("test-1", folder, TITLES, BASIS, None)
    assert b"data:image/svg+xml;base64,PHN2Zy8+" in html(report, folder)
    (folder.path / picture.file).write_bytes(b"<svg></svg>")
    with pytest.raises(RunFolderError, match="changed; do its step again"):
        html(report, folder)


# --- the report -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from([*Status, None]), min_size=len(TITLES), max_size=len(TITLES)))
def test_only_a_run_whose_every_step_passed_can_be_signed(
    tmp_path_factory: pytest.TempPathFactory, statuses: list[Status | None]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"), Run.FAT)
    for name, status in zip(TITLES, statuses, strict=True):
        if status is not None:
            folder.write_step(a_step(name, status))
    report = build_report("test-1", folder, TITLES, BASIS, None)
    assert bool(report.open_steps) == any(status is not Status.PASSED for status in statuses)
    assert [step.step for step in report.steps] == list(TITLES)


@pytest.mark.parametrize("key", list(Basis.model_fields))
def test_a_step_done_on_something_else_is_not_done(tmp_path: Path, key: str) -> None:
    folder = RunFolder(tmp_path, Run.FAT)
    folder.write_step(a_step("camera"))
    now = BASIS.model_copy(update={key: 2 if key == "recipe_version" else "other"})
    report = build_report("test-1", folder, TITLES, now, None)
    assert f"camera: not done (done before {key} changed: do it again)" in report.open_steps


def test_the_second_run_says_what_changed_against_the_first(tmp_path: Path) -> None:
    fat, sat = RunFolder(tmp_path, Run.FAT), RunFolder(tmp_path, Run.SAT)
    size = Check(what="size", measured=1.75, expected="1 to 2", is_ok=True, unit="mm")
    fat.write_step(a_step("camera", facts={"serial": "1", "model": "LS"}))
    fat.write_step(a_step("lamp"))
    assert build_report("s", sat, TITLES, BASIS, RunFolder(tmp_path / "no", Run.FAT)).changes == ()
    sat.write_step(a_step("camera", facts={"serial": "2", "model": "LS"}, checks=(size,)))
    report = build_report("s", sat, TITLES, BASIS, fat)
    changes = {(c.step, c.what): (c.before, c.after) for c in report.changes}
    assert changes == {
        ("camera", "serial"): ("1", "2"),
        ("camera", "size"): ("1.5 mm", "1.75 mm"),
        ("lamp", "status"): ("passed", "not done"),
        ("lamp", "size"): ("1.5 mm", "–"),
    }
    page = html(report, sat).decode()
    assert "What changed since the FAT" in page
    assert re.search(r"<td>size</td><td>1\.5 mm</td><td>1\.75 mm</td>", page)


def test_the_page_is_one_file_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Run.FAT)
    folder.write_step(a_step("camera", who="<script>alert(1)</script>"))
    report = build_report("test-1", folder, TITLES, BASIS, None)
    page = html(report, folder).decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page == html(report, folder).decode(), "the same steps make the same bytes"


# --- the signature --------------------------------------------------------------------------------


class Signable:
    """A station with a real producer's camera whose every step has passed."""

    def __init__(self, folder: Path) -> None:
        self.rig, self.file = viky_rig(folder)
        self.config = str(self.rig.write())
        self.folder = RunFolder(self.rig.journal / "commissioning", Run.SAT)
        self.pass_all()

    def pass_all(self) -> None:
        """As if each step had been done on this camera; the report is written by the command."""
        vqi("commission", "--config", self.config, "--run", "sat", "--step", "msa")
        basis = self.folder.steps()["msa"].basis
        with open_camera(load_configuration(self.config).value.camera) as camera:
            info = camera.info
        facts = {
            "serial": info.serial,
            "producer_sha256": info.producer_sha256 or "",
            "features_sha256": info.features_sha256,
        }
        for name in TITLES:
            self.folder.write_step(a_step(name, basis=basis, facts=facts))
        done = vqi("commission", "--config", self.config, "--run", "sat", "--json")
        assert json.loads(done.stdout.splitlines()[-1])["is_signable"], done.stdout

    def verify(self) -> list[str]:
        done = vqi("commission", "verify", "--config", self.config, "--json")
        findings: list[str] = json.loads(done.stdout)["findings"]
        assert done.returncode == bool(findings)
        return findings

    def sign(self) -> str:
        """What the command says, on stdout or stderr."""
        done = vqi("commission", "sign", "--config", self.config, "--who", "A. Engineer")
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def signable(tmp_path_factory: pytest.TempPathFactory) -> Signable:
    return Signable(tmp_path_factory.mktemp("signable"))


def test_a_signed_report_makes_its_camera_production(signable: Signable) -> None:
    assert "signed by A. Engineer" in signable.sign()
    signed = json.loads(signable.file.read_text())
    report = (signable.folder.path / "report.json").read_bytes()
    assert signed["report_sha256"] == sha256_hex(report)
    assert (signed["run"], signed["who"]) == ("sat", "A. Engineer")
    done = vqi("check", "--config", signable.config)
    assert "plates are production" in done.stdout
    assert signable.verify() == []
    page = signable.folder.path / "report.html"
    before = page.read_bytes()
    page.write_bytes(before.replace(b"A. Engineer", b"Z. Engineer"))
    assert signable.verify() == [f"{page}: not the report that was signed"]
    page.write_bytes(before)
    file = signable.file.read_bytes()
    signable.file.write_bytes(file + b" ")
    assert "changed since" in signable.verify()[0]
    signable.file.write_bytes(file)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lamp", {"status": Status.FAILED}, "cannot be signed: lamp: failed"),
        ("lamp", {"status": Status.NOT_DONE}, "cannot be signed: lamp: not done"),
        ("lamp", {"who": "Another"}, "not what its steps say"),
    ],
)
def test_what_was_not_read_or_has_not_passed_cannot_be_signed(
    signable: Signable, name: str, changes: dict[str, Any], message: str
) -> None:
    before = signable.folder.steps()[name]
    try:
        signable.folder.write_step(before.model_copy(update=changes))
        assert message in signable.sign()
    finally:
        signable.folder.write_step(before)


@pytest.mark.long
def test_another_camera_than_the_steps_had_cannot_be_signed(signable: Signable) -> None:
    text = Path(signable.config).read_text()
    before = signable.folder.steps()["camera"]
    facts = {**before.facts, "serial": "0"}
    try:
        signable.folder.write_step(before.model_copy(update={"facts": facts}))
        vqi("commission", "--config", signable.config, "--run", "sat")
        assert "the camera's serial is 1, the steps were done with 0" in signable.sign()
        Path(signable.config).write_text(text + "\n# changed\n")
        assert "done before configuration_sha256 changed" in signable.sign()
    finally:
        Path(signable.config).write_text(text)
        signable.folder.write_step(before)
        vqi("commission", "--config", signable.config, "--run", "sat")


@pytest.mark.long
def test_without_a_place_for_the_file_nothing_is_signed(tmp_path: Path) -> None:
    config = str(Rig(tmp_path).write())
    done = vqi("commission", "sign", "--config", config, "--who", "A. Engineer")
    assert done.returncode == 1
    assert "no [commissioning] file" in done.stderr
    assert vqi("commission", "--config", config, "--step", "none").returncode == 2
    assert vqi("commission", "sign", "--config", config, "--who", " ").returncode == 2
