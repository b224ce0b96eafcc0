"""Known plates before others: a station whose samples do not get their verdicts judges no plate."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_models import SHIPPED, leaning_model
from PIL import Image
from station_rig import Rig, start_vqi, vqi, wait_until
from test_recipe_switch import EndedFeed
from typer.testing import CliRunner

from models.card import sha256_of
from models.classifier import Classifier
from station.candidate import measure_samples
from station.cli.recipe_samples import app as app_of_samples
from station.config import ConfigError, Loaded, load_configuration, load_recipe
from station.control import send_command
from station.inspection import Inspector
from station.judge import Judge
from station.limit_samples import (
    SAMPLES_FILE,
    LimitSamples,
    Run,
    Sample,
    SamplesError,
    SamplesShown,
    Shown,
    findings_offline,
    load_samples,
    run_aside,
    show_offline,
    write_list,
)
from station.log_reader import Reader
from station.log_verify import verify
from station.pipeline import Options, Station
from station.precision import load_classifier
from station.product import geometry_of
from station.record import Provenance, Verdict
from station.state import StationState

Json = dict[str, Any]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples that `vqi recipe samples add` took from a station's log: two that must fail, two that
    must pass."""
    folder = tmp_path_factory.mktemp("taken")
    rig = Rig(folder, recipe_lines="[keep]\npass_whole_share = 1.0\n")
    assert rig.run("--plates", "8").status == 0
    samples = folder / "samples"
    for verdict in ("PASS", "FAIL"):
        found = [row["result_id"] for row in rig.rows("result") if row["verdict"] == verdict]
        for result_id in found[:2]:
            done = vqi(
                "recipe", "samples", "add", result_id, "--expected", verdict,
                "--folder", str(samples), "--config", str(folder / "station.toml"),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert hashlib.sha256((samples / SAMPLES_FILE).read_bytes()).hexdigest() in done.stdout
    return samples


def lines(samples: Path, sha256: str | None = None, more: str = "") -> str:
    sha256 = sha256 or hashlib.sha256((samples / SAMPLES_FILE).read_bytes()).hexdigest()
    return f'[limit_samples]\nfolder = "{samples}"\nsha256 = "{sha256}"\n{more}'


@pytest.fixture
def rig(tmp_path: Path, taken: Path) -> Rig:
    """A station that asks for the samples, which lie in a folder of its own."""
    samples = tmp_path / "samples"
    shutil.copytree(taken, samples)
    return Rig(tmp_path, recipe_lines=lines(samples))


def runs(rig: Rig) -> list[Json]:
    return [row["detail"] for row in rig.rows("change") if row["what"] == "limit_samples"]


def swap(samples: Path) -> str:
    """A good plate under the name of a bad one; the name."""
    rows = [one.split(",") for one in (samples / SAMPLES_FILE).read_text().splitlines()[1:]]
    good, bad = (next(row[0] for row in rows if row[1] == word) for word in ("PASS", "FAIL"))
    shutil.copyfile(samples / good, samples / bad)
    return bad


# --- the list -------------------------------------------------------------------------------------


def recipe_of(rig: Rig) -> Any:
    loaded = load_configuration(str(rig.write()))
    return loaded, load_recipe(loaded.value.station.recipe)


def test_the_list_is_the_one_that_the_recipe_names(rig: Rig) -> None:
    loaded, recipe = recipe_of(rig)
    _, samples = load_samples(recipe)
    assert [one.expected for one in samples].count(Verdict.FAIL) == 2
    classifier = load_classifier(loaded, recipe, 1).classifier
    assert all(one.is_right for one in show_offline(recipe, classifier, 0.1))
    path = rig.folder / "samples" / SAMPLES_FILE
    text = path.read_text()
    path.write_text(text.replace("FAIL", "PASS"))
    with pytest.raises(SamplesError, match="changed"):
        load_samples(recipe)
    path.unlink()
    assert "restore the limit samples" in findings_offline(recipe, classifier, 0.1)[0]


def test_another_recipe_is_adopted_with_what_its_samples_came_to(rig: Rig) -> None:
    """As a change of the model between two plates does it, without a new process."""
    loaded, recipe = recipe_of(rig)
    good = load_classifier(loaded, recipe, 1).classifier
    bad = Classifier.load(leaning_model(rig.folder / "lenient", 9.0))
    samples = LimitSamples(recipe, lambda _: None)
    assert not samples.may_judge
    samples.adopt(recipe, run_aside(recipe, good, 0.1, 768, "promotion", "today"))
    assert samples.may_judge
    samples.turn("today")
    assert samples.may_judge
    samples.adopt(recipe, run_aside(recipe, bad, 0.1, 768, "promotion", "today"))
    assert not samples.may_judge
    assert "not FAIL" in samples.problem
    swap(rig.folder / "samples")
    assert not run_aside(recipe, good, 0.1, 768, "promotion", "today").is_passed
    rig.recipe_lines = ""
    without = recipe_of(rig)[1]
    samples.adopt(without, run_aside(without, bad, 0.1, 768, "promotion", "today"))
    assert samples.state == "none"


@pytest.mark.parametrize("what", ["lane", "width", "model"])
def test_whatever_is_wrong_with_samples_that_are_shown_aside_is_what_the_run_says(
    rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roll-back is not refused for it: the station goes back, and judges nothing."""
    loaded, recipe = recipe_of(rig)
    classifier, line_px = load_classifier(loaded, recipe, 1).classifier, 768
    said = "take samples with this camera"
    if what == "lane":  # as after a camera of another width: no lane in such a sample
        folder, samples = rig.folder / "samples", []
        for one in load_samples(recipe)[1]:
            narrow = folder / f"narrow-{one.path.name}"
            Image.open(one.path).crop((0, 0, 200, 400)).save(narrow)
            samples.append(Sample(narrow, one.expected, sha256_of(narrow.read_bytes())))
        lane = "[lane]\nend_mm = 70.0\n"
        rig.recipe_lines = lines(folder, write_list(folder, samples), lane)
        recipe = recipe_of(rig)[1]
        with pytest.raises(ConfigError, match="lane"):
            show_offline(recipe, classifier, 0.1)
    elif what == "width":
        line_px = 1024
    else:
        monkeypatch.setattr(classifier, "self_test", lambda: 1 / 0)
        said = "could not be judged: ZeroDivisionError"
    run = run_aside(recipe, classifier, 0.1, line_px, "recipe small@1", "")
    assert not run.is_passed
    assert said in run.findings[0]
    held = LimitSamples(recipe, lambda _: None)
    held.adopt(recipe, run)
    assert not held.may_judge


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,expected,sha256\na.png,FAIL,00\n", "must PASS and one that must FAIL"),
        ("file,expected\na.png,FAIL\nb.png,PASS\n", "no sha256"),
        ("file,expected\na.png,GOOD\n", "row 2"),
        ("\xff\xfe", "must PASS"),
    ],
)
def test_a_list_that_proves_nothing_is_refused(rig: Rig, text: str, said: str) -> None:
    path = rig.folder / "samples" / SAMPLES_FILE
    path.write_text(text)
    rig.recipe_lines = lines(path.parent)
    with pytest.raises(SamplesError, match=said):
        load_samples(recipe_of(rig)[1])


def test_a_gate_shows_the_versions_own_samples_as_the_station_would(rig: Rig) -> None:
    loaded, recipe = recipe_of(rig)
    shown = measure_samples(loaded, recipe)
    assert (shown["problem"], shown["words"]) == ("", "2 fail and 2 pass as they should")
    assert shown["samples_sha256"] == recipe.value.limit_samples.sha256
    bad = swap(rig.folder / "samples")
    assert f"{bad} is not the sample of the list" in measure_samples(loaded, recipe)["problem"]


def test_a_gate_binds_the_pictures_of_whatever_list_it_is_given(rig: Rig) -> None:
    """Another list has another sum; one that binds no picture is refused."""
    loaded, recipe = recipe_of(rig)
    own = rig.folder / "samples"
    other = Path(shutil.copytree(own, rig.folder / "other"))
    shown = measure_samples(loaded, recipe, other)
    assert shown == measure_samples(loaded, recipe), "the same list"
    text = (other / "samples.csv").read_text()
    (other / "samples.csv").write_text(text + text.splitlines()[-1] + "\n")
    another = measure_samples(loaded, recipe, other)
    assert another["problem"] == ""
    assert another["samples_sha256"] != shown["samples_sha256"]
    bad = swap(other)
    assert (
        f"{bad} is not the sample of the list" in measure_samples(loaded, recipe, other)["problem"]
    )
    (other / "samples.csv").write_text("file,expected\n" + text.splitlines()[-1].rsplit(",", 1)[0])
    with pytest.raises(SamplesError, match="has no sha256"):
        measure_samples(loaded, recipe, other)


def test_a_gate_shows_the_very_list_that_it_names(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies there by the time the model is loaded."""
    loaded, recipe = recipe_of(rig)
    folder = Path(shutil.copytree(rig.folder / "samples", rig.folder / "other"))
    text = (folder / SAMPLES_FILE).read_text()
    turned = text.replace("PASS", "GOOD").replace("FAIL", "PASS").replace("GOOD", "FAIL")

    def exchanged(*given: Any) -> Any:
        (folder / SAMPLES_FILE).write_text(turned)
        return load_classifier(*given)

    monkeypatch.setattr("station.candidate.load_classifier", exchanged)
    shown = measure_samples(loaded, recipe, folder)
    assert (shown["problem"], shown["words"]) == ("", "2 fail and 2 pass as they should")
    assert shown["samples_sha256"] == sha256_of(text.encode())
    assert (folder / SAMPLES_FILE).read_text() == turned


def test_a_sum_without_a_folder_is_a_mistake(rig: Rig) -> None:
    rig.recipe_lines = f'[limit_samples]\nsha256 = "{"0" * 64}"\n'
    with pytest.raises(ConfigError, match="left out"):
        recipe_of(rig)


def test_check_says_what_a_model_makes_of_them(rig: Rig) -> None:
    config = str(rig.write())
    done = vqi("recipe", "samples", "check", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["is_right"] for line in done.stdout.splitlines())
    lenient = leaning_model(rig.folder / "lenient", 9.0)
    done = vqi("recipe", "samples", "check", "--config", config, "--model", str(lenient), "--json")
    assert done.returncode == 1
    wrong = [row for row in map(json.loads, done.stdout.splitlines()) if not row["is_right"]]
    assert {(row["expected"], row["verdict"]) for row in wrong} == {("FAIL", "PASS")}
    store = rig.journal / "models"
    store.mkdir(parents=True)
    shutil.move(lenient, store / "lenient")
    stored = ("recipe", "samples", "check", "--config", config, "--model", "lenient", "--json")
    assert vqi(*stored).stdout == done.stdout, "by its id in the station's store"


def test_another_model_is_checked_at_its_own_limits(rig: Rig) -> None:
    """By those of the recipe in force it would fail no plate, and pass none."""
    rig.threshold = 1.0
    rig.recipe_lines = "unsure_above = 1e-9\n" + rig.recipe_lines
    config, other = str(rig.write()), leaning_model(rig.folder / "other", 0.01)

    def check(*more: str) -> tuple[int, set[str]]:
        words = ("check", "--config", config, "--json", *more)
        done = CliRunner().invoke(app_of_samples, words)
        return done.exit_code, {json.loads(line)["verdict"] for line in done.stdout.splitlines()}

    assert check() == (1, {"UNDECIDED"})
    assert check("--model", str(other)) == (0, {"PASS", "FAIL"})
    assert check("--model", str(other), "--threshold", "1") == (1, {"PASS"})


# --- a station's life -----------------------------------------------------------------------------


def test_samples_are_judged_before_any_plate_and_are_none(rig: Rig) -> None:
    run = rig.run("--plates", "4")
    assert run.status == 0, run.stderr
    assert run.summary["undecided"] == 0
    (detail,) = runs(rig)
    assert detail["passed"] == "yes"
    assert detail["cause"] == "start"
    shown = json.loads(detail["samples"])
    assert {(one["expected"], one["verdict"]) for one in shown} == {
        ("FAIL", "FAIL"),
        ("PASS", "PASS"),
    }
    with Reader(rig.journal) as reader:
        kinds = [row.kind for row in reader.rows()]
        assert not verify(reader).findings
    whats = [row["what"] for row in rig.rows("change")]
    assert whats.index("start") < whats.index("limit_samples") < whats.index("stop")
    assert kinds.count("result") == kinds.count("opened") == 4, "a sample is no plate"
    assert kinds.count("actuation") == 4


def test_a_swapped_sample_keeps_the_station_from_judging(rig: Rig) -> None:
    bad = swap(rig.folder / "samples")
    run = rig.run("--plates", "3")
    assert run.status == 0, run.stderr
    assert run.summary["undecided"] == 3
    assert {row["reason"] for row in rig.rows("result")} == {"halted"}
    assert "pass" not in {row["command"] for row in rig.rows("actuation")}
    (detail,) = runs(rig)
    assert detail["passed"] == "no"
    assert f"{bad} is not the sample of the list" in detail["problem"]


def test_a_model_that_passes_the_bad_one_judges_nothing_until_it_is_put_right(rig: Rig) -> None:
    lenient = leaning_model(rig.folder / "lenient", 9.0)
    asked = rig.recipe_lines
    rig.recipe_lines = f'folder = "{lenient}"\n' + asked
    text = str(rig.write())
    recipe = rig.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(f'id = "{SHIPPED}"', 'id = "lenient"'))
    process = start_vqi("run", "--config", text)
    try:
        wait_until(lambda: rig.status().get("state") == "ERROR", 60.0, "ERROR")
        status = rig.status()
        assert not status["ready"]
        assert status["light"] == "fault"
        assert status["limit_samples"]["state"] == "failed"
        assert "is PASS" in status["problems"]["limit_samples"]
        assert "not FAIL" in status["problems"]["limit_samples"]
        # A person cannot talk it out of that.
        for op in ("halt", "resume", "ack"):
            send_command(rig.runtime, op)
        assert rig.status()["state"] == "ERROR"
        before = len(runs(rig))
        assert send_command(rig.runtime, "limit_samples")["ok"]
        wait_until(lambda: len(runs(rig)) > before, 30.0, "another run")
        wait_until(lambda: rig.status()["limit_samples"]["state"] == "failed", 30.0, "its end")
        assert rig.status()["state"] == "ERROR"
    finally:
        process.terminate()
        process.wait(30.0)
    assert "PASS" not in {row["verdict"] for row in rig.rows("result")}


def test_they_are_judged_between_two_plates_when_a_person_asks(rig: Rig) -> None:
    """As when a shift begins: no plate is touched where the belt leaves room."""
    rig.specimen = {"gap_mm": 400.0}
    with rig.running():
        wait_until(lambda: len(rig.rows("result")) >= 2, 60.0, "two plates")
        assert send_command(rig.runtime, "limit_samples")["ok"]
        wait_until(lambda: len(runs(rig)) == 2, 30.0, "a second run")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 30.0, "OPERATIONAL")
        count = len(rig.rows("result"))
        wait_until(lambda: len(rig.rows("result")) >= count + 2, 60.0, "two more plates")
    second = runs(rig)[1]
    assert second["passed"] == "yes"
    assert second["cause"].startswith("asked for by")
    assert [row["reason"] for row in rig.rows("result") if row["reason"] == "halted"] == []


@pytest.mark.long
def test_they_are_judged_between_two_plates_when_a_shift_begins(rig: Rig) -> None:
    """On the wall clock: the next shift begins with the minute after the next."""
    rig.specimen = {"gap_mm": 1600.0}
    at = datetime.now(UTC) + timedelta(seconds=110)
    rig.tables = f'[journal.shifts]\ntimezone = "UTC"\nlate = "{at:%H:%M}"\n'
    rig.tables += f'early = "{at - timedelta(hours=8):%H:%M}"\n'
    with rig.running():
        wait_until(lambda: len(runs(rig)) == 2, 180.0, "the shift's run")
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 30.0, "OPERATIONAL")
        count = len(rig.rows("result"))
        wait_until(lambda: len(rig.rows("result")) > count, 60.0, "a plate of the new shift")
    first, second = runs(rig)
    assert second["passed"] == "yes"
    assert second["cause"] == f"shift {second['shift']}"
    assert (first["shift"].split()[1], second["shift"].split()[1]) == ("early", "late")
    assert not [row for row in rig.rows("result") if row["reason"] == "halted"], "none is touched"
    assert {row["shift"].split()[1] for row in rig.rows("result")} == {"early", "late"}


def test_a_station_whose_recipe_names_none_is_as_ever(rig: Rig) -> None:
    rig.recipe_lines = ""
    run = rig.run("--plates", "2")
    assert run.summary["undecided"] == 0
    assert runs(rig) == []
    config = str(rig.folder / "station.toml")
    rows = [
        json.loads(one) for one in vqi("check", "--config", config, "--json").stdout.splitlines()
    ]
    (row,) = [row for row in rows if row["part"] == "limit samples"]
    assert row["ok"]
    assert "no [limit_samples]" in row["found"]


@pytest.mark.long
def test_a_version_is_bound_to_its_samples_and_refused_with_wrong_ones(rig: Rig) -> None:
    samples = rig.folder / "samples"
    rig.recipe_lines = f'[limit_samples]\nfolder = "{samples}"\n'
    config = str(rig.write())
    second = rig.folder / "second.toml"
    second.write_text(
        (rig.folder / "recipe.toml").read_text().replace("version = 1", "version = 2")
    )

    def recipe(*words: str) -> Any:
        return vqi("recipe", *words, "--config", config)

    done = recipe("propose", str(second), "--reason", "samples", "--who", "ann")
    assert done.returncode == 0, done.stderr
    text = (rig.journal / "recipes" / "small@2.toml").read_text()
    assert hashlib.sha256((samples / SAMPLES_FILE).read_bytes()).hexdigest() in text
    assert recipe("approve", "small@2", "--who", "bob").returncode == 0
    assert recipe("check", "small@2").returncode == 0
    swap(samples)
    done = recipe("check", "small@2")
    assert done.returncode == 1
    assert "is not the sample of the list" in done.stderr


# --- no OPERATIONAL without a passed run ----------------------------------------------------------


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, taken: Path) -> tuple[Any, Any]:
    rig = Rig(tmp_path_factory.mktemp("asking"), recipe_lines=lines(taken))
    return recipe_of(rig)


class Outbox:
    """Rows are durable when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.rows: list[Any] = []

    def submit(self, rows: Any, done: Any = None, **more: Any) -> None:
        self.rows += rows
        if done is not None:
            self.waiting.append(done)


def station_of(asking: tuple[Loaded[Any], Loaded[Any]], is_played: bool = True) -> Any:
    """`is_played`: the test says what the thread that shows samples would."""
    station: Any = Station(*asking, Options(), lambda _: None)
    configuration, recipe = asking
    station._context = SimpleNamespace(
        provenance=Provenance.PRODUCTION,
        station_id="test-1",
        camera=SimpleNamespace(serial="c"),
        geometry=geometry_of(recipe, 0.1, configuration.value.camera.width),
        shift_at=lambda _: station.shift,
    )
    station.shift = "2026-11-26 early"
    station._feed, station._outbox, station._inspector = EndedFeed(), Outbox(), None
    station._verify_log = lambda: None
    model: Any = SimpleNamespace(model_sha256="0" * 64, runtime="r")
    station._judge = Judge(recipe, model, 0.5, True)
    if is_played:
        station._samples._run = lambda *given: None
    return station


STEPS = ("passes", "fails", "written", "shift", "turn", "ask", "halt", "resume", "plate", "gone",
         "camera", "camera back")  # fmt: skip


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_operational_is_never_without_a_passed_run(
    asking: tuple[Loaded[Any], Loaded[Any]], steps: list[str]
) -> None:
    """Whatever people, shifts, devices and samples do, held against a plain account: the last run
    whose row is durable passed, and none is under way."""
    station = station_of(asking)
    station._on_started()
    is_running, last = True, ""
    queue: list[tuple[Any, str]] = []
    for step in steps:
        samples = station._samples
        if step in ("passes", "fails") and samples.state == "running" and not queue:
            shown = Shown("a", "", Verdict.FAIL, Verdict.FAIL, None, 0.9)
            problem = "" if step == "passes" else "it is gone"
            run = Run(samples._cause, samples._shift, "", (shown,), problem)
            station._dispatch(SamplesShown(samples._current, run))
            queue.append((station._outbox.waiting.pop(), step))
        elif step == "written" and queue:
            done, last = queue.pop()
            is_running = False
            done({})
        elif step == "shift":
            station.shift += "+"
        elif step == "turn":
            station._turn_samples()
        elif step == "plate":
            station._in_work.add("test-1-00000001")
        elif step == "gone":
            station._in_work.clear()
        elif step in ("halt", "resume"):
            station._control_command(step, "eve", "", "")
        elif step == "ask":
            station._control_command("limit_samples", "eve", "", "")
        elif step.startswith("camera"):
            station._set_problem("camera", "" if step.endswith("back") else "it is gone")
        is_running = is_running or samples.state == "running"
        if station._state is StationState.OPERATIONAL:
            assert last == "passes"
            assert not is_running
            assert "camera" not in station._problems
        if samples.state in ("due", "running", "failed"):
            assert station._not_ready, "no plate may be called for"
        if station._in_work and step == "turn":
            assert samples.state != "running" or is_running


@pytest.mark.parametrize("comes_to", ["", "it is gone"])
def test_no_other_judge_is_taken_up_before_the_starts_own_samples_have_ended(
    asking: tuple[Any, Any], comes_to: str
) -> None:
    """Plates are watched for once their row is durable, whatever they came to."""
    station = station_of(asking)
    for begun in (lambda: None, station._on_started):
        begun()
        for op, text in (("recipe", "small@2"), ("rollback", "small@2 too many fail")):
            answer = station._control_command(op, "eve", "", text)
            assert (answer["ok"], "is starting; ask again" in answer["error"]) == (False, True)
    assert station._switch.wanted is None
    shown = Shown("a", "", Verdict.FAIL, Verdict.FAIL, None, 0.9)
    run = Run("start", "", "", (shown,), comes_to)
    station._dispatch(SamplesShown(station._samples._current, run))
    station._outbox.waiting.pop()({})
    assert station._is_watching
    station._context.camera.driver, station._context.camera.width = "simulated", 768
    for op, text in (("recipe", "small@2"), ("rollback", "small@2 too many fail")):
        assert "ask again" not in station._control_command(op, "eve", "", text)["error"]


@pytest.mark.parametrize("comes_to", ["", "it is gone"])
def test_what_is_asked_for_during_a_run_follows_it(asking: tuple[Any, Any], comes_to: str) -> None:
    """A sample may be restored after it was read."""
    station = station_of(asking)
    station._on_started()
    samples, shown = station._samples, Shown("a", "", Verdict.FAIL, Verdict.FAIL, None, 0.9)

    def ends(cause: str, problem: str) -> None:
        assert (samples.state, samples._cause) == ("running", cause)
        run = Run(cause, station.shift, "", (shown,), problem)
        station._dispatch(SamplesShown(samples._current, run))
        station._outbox.waiting.pop()({})
        assert samples.state == ("failed" if problem else "passed"), "until it is shown again"
        assert ("limit_samples" in station._problems) is bool(problem)
        station._turn_samples()

    assert station._control_command("limit_samples", "eve", "", "")["ok"]
    ends("start", comes_to)
    ends("asked for by eve", "")
    assert samples.may_judge
    assert station._state is StationState.OPERATIONAL, "none follows that nobody asked for"


def judge_by(asking: tuple[Loaded[Any], Loaded[Any]], folder: Path | None = None) -> Judge:
    loaded, recipe = asking
    shipped = load_classifier(loaded, recipe, 1).classifier
    classifier = shipped if folder is None else Classifier.load(folder)
    classifier.self_test()
    return Judge.of(recipe, classifier)


def test_what_was_shown_to_a_judge_that_judges_no_more_is_booked_under_no_other(
    asking: tuple[Any, Any], tmp_path: Path
) -> None:
    """Real sessions: a run with the one is on its way when the other is taken up, and is asked to
    show them once more."""
    station = station_of(asking, is_played=False)
    station._inspector = Inspector(station._context.geometry, 1, station._post)
    good, lenient = judge_by(asking), judge_by(asking, leaning_model(tmp_path / "lenient", 9.0))
    try:
        station._judge = lenient
        station._on_started()
        first, samples = station._samples._current, station._samples
        wait_until(lambda: bool(samples._awaited), 30.0, "its first sample")
        station._judge = good
        samples.adopt(good.recipe, run_aside(good.recipe, good.classifier, 0.1, 768, "recipe", ""))
        assert samples.may_judge
        assert station._control_command("limit_samples", "eve", "", "")["ok"]
        assert samples.state == "running"

        def rows() -> list[Json]:
            station._drain_inbox()
            return [row.detail for row in station._outbox.rows if row.what == "limit_samples"]

        passed = Run("start", "", "", (Shown("a", "", Verdict.FAIL, Verdict.FAIL, None, 0.9),))
        station._dispatch(SamplesShown(first, passed))
        assert rows() == []
        assert samples.state == "running"
        wait_until(lambda: bool(rows()), 60.0, "the second run's end")
        runs = [one for one in threading.enumerate() if one.name == "limit-samples"]
        wait_until(lambda: not rows()[1:] and not any(one.is_alive() for one in runs), 30.0, "both")
        (detail,), (done,) = rows(), station._outbox.waiting
        assert detail["model_sha256"] == good.classifier.model_sha256
        assert detail["passed"] == "yes", detail["problem"]
        station._on_samples_written(SamplesShown(first, passed))
        assert samples.state == "running", "its row is not durable yet"
        done({})
        assert samples.may_judge
        assert len(rows()) == 1
    finally:
        station._inspector.stop()


@pytest.mark.parametrize("limit_s", [-1.0, 0.3])
def test_a_run_that_does_not_end_fails_before_the_start_is_given_up(
    asking: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    """Real sessions whose scores nobody takes: all samples together have one limit."""
    monkeypatch.setattr("station.limit_samples._RUN_LIMIT_S", limit_s)
    station = station_of(asking, is_played=False)
    station._inspector = Inspector(station._context.geometry, 1, lambda _: None)
    station._judge = judge_by(asking)
    try:
        station._on_started()

        def is_written() -> bool:
            station._drain_inbox()
            return bool(station._outbox.waiting)

        wait_until(is_written, 30.0, "the run's end")
        station._outbox.waiting.pop()({})
        assert "0 of 4 samples were judged" in station._problems["limit_samples"]
        assert station._samples.status["samples"] <= 1, "one limit, not one for each"
        assert station._not_ready
        assert station._is_watching, "READY=1 was said: the start is no longer timed"
    finally:
        station._inspector.stop()


def test_a_shift_is_waited_for_no_longer_than_a_belt_may_be_full(
    asking: tuple[Loaded[Any], Loaded[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    station = station_of(asking)
    station._on_started()
    shown = Shown("a", "", Verdict.FAIL, Verdict.FAIL, None, 0.9)
    run = Run("start", "", "", (shown,))
    station._on_samples_written(SamplesShown(station._samples._current, run))
    assert station._state is StationState.OPERATIONAL
    station._samples._shift = station.shift
    station._in_work.add("test-1-00000001")
    station.shift = "2026-11-26 late"
    station._turn_samples()
    assert station._state is StationState.OPERATIONAL, "the plate on the belt is judged as ever"
    assert station._not_ready
    monkeypatch.setattr("station.limit_samples._BELT_LIMIT_S", -1.0)
    station._turn_samples()
    assert station._state is StationState.PREOPERATIONAL
