"""A model in the shadow: real stations, real processes, real kills; nothing of it is ever shown."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from sqlalchemy import text
from station_rig import Rig, check_conservation, children, vqi, wait_until
from test_qms import result
from typer.testing import CliRunner

from models.classifier import Classifier, Variant
from models.registry import shipped_model
from station.certificate import rows_of_certificate
from station.cli.model_shadow import app
from station.config import load_configuration
from station.judge import Judge
from station.lending import _message
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.offline import cut_picture, plate_of
from station.processes import process_figures
from station.product import configured_judging, geometry_of, load_product
from station.qms import Store
from station.quality import proportion
from station.record import (
    ChangeBody,
    Reason,
    ResultBody,
    ShadowBody,
    ShadowedPlate,
    Verdict,
    result_id,
)
from station.shadow import Budget, _Shadow
from station.shadow_report import RISK, comparisons
from station.shadows import (
    STARTED,
    STOPPED,
    Register,
    objection,
    register,
    row_objection,
    started_change,
    stopped_change,
)
from station.signing import journal_at_hand

Json = dict[str, Any]
MODEL = "lightdefectnet-v3"
SLOW = {"line_rate_hz": 2000.0}
"""Two and a half plates a second: nothing is overrun beside other work."""
_SLOW_S = 90.0
"""The lowest priority there is may wait long for its turn on a machine that has other work."""


def shadow(config: Path, *arguments: str, status: int = 0) -> list[Json]:
    """`vqi model shadow … --json`: its rows."""
    done = vqi("model", "shadow", *arguments, "--config", str(config), "--json")
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def begin(config: Path, *arguments: str) -> Json:
    return shadow(
        config, "start", MODEL, "--reason", "to see", "--who", "Eve Engineer", *arguments
    )[0]


def of_shadow(rig: Rig) -> Json:
    return dict(rig.status().get("shadow") or {})


def stopped_with_a_plate(rig: Rig, run: int) -> int:
    """The shadow's process, stopped while a plate is lent to it, or as soon as one comes."""
    pid = children(run)["shadow"]
    for _ in range(20):
        os.kill(pid, signal.SIGSTOP)
        # It may have asked for none yet.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: bool(of_shadow(rig)["is_lent"]), 2.0, "a plate that is lent")
            return pid
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
    raise AssertionError("it never had a plate")


def scored(rig: Rig) -> int:
    return int(of_shadow(rig).get("scored", 0))


# --- stations -----------------------------------------------------------------------------------


@pytest.mark.alone
def test_the_active_model_in_the_shadow_agrees_bit_for_bit_and_outlives_the_station(
    tmp_path: Path,
) -> None:
    # The belt goes on while nobody looks.
    belt = tmp_path / "belt.json"
    belt.write_text(json.dumps({"epoch_monotonic_ns": time.monotonic_ns()}))
    rig, share = Rig(tmp_path, camera={**SLOW, "belt_file": str(belt)}), 0.5
    config = rig.write()
    began = begin(config, "--share", str(share))
    with rig.running() as run:
        wait_until(lambda: scored(rig) >= 5, _SLOW_S, "scored plates")
        pids = children(run.pid)
        assert os.sched_getscheduler(pids["shadow"]) == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, pids["shadow"]) == 19
        os.kill(pids["station"], signal.SIGKILL)
        wait_until(lambda: rig.status().get("pid") not in (None, pids["station"]), 30.0, "restart")
        wait_until(lambda: scored(rig) >= 5, _SLOW_S, "scored plates after a restart")
        assert children(run.pid)["shadow"] == pids["shadow"], "the shadow went on"
        figures = process_figures(pids["shadow"])
        assert figures is not None
        alive_s = time.monotonic() - figures.start_ticks / os.sysconf("SC_CLK_TCK")
        assert figures.cpu_s <= share * alive_s + 0.3, "its share is kept"
        shadow(config, "stop", "--reason", "seen")
        wait_until(lambda: "shadow" not in children(run.pid), _SLOW_S, "end of the shadow")
        assert not of_shadow(rig)["is_set"]
    [found] = shadow(config, "report")
    assert (found["model_id"], found["judging_model_id"]) == (MODEL, MODEL)
    assert found["runtime"] == rig.rows("result")[0]["runtime"]
    assert 10 <= found["shadowed"] <= found["judged"]
    assert found["same_bits"] == found["equal"] == found["shadowed"]
    assert (found["agreement"], found["flips"]) == (1.0, [])
    assert found["agreement_low"] < 1.0 == found["agreement_high"]
    assert 0.0 < found["share_used"] <= share
    # Each plate once, and each of them judged.
    plates = [plate["result_id"] for row in rig.rows("shadow") for plate in row["plates"]]
    assert len(plates) == len(set(plates)) == found["shadowed"]
    assert set(plates) <= {row["result_id"] for row in rig.rows("result")}
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
        assert all(row["kind"] != "shadow" for row in reader.of_result(plates[0]))
    steps = [row for row in rig.rows("change") if row["what"] in (STARTED, STOPPED)]
    assert [(row["what"], row["detail"]["reason"]) for row in steps] == [
        (STARTED, "to see"),
        (STOPPED, "seen"),
    ]
    assert steps[0]["who"] == "Eve Engineer"
    assert steps[0]["detail"]["sha256"] == began["sha256"]
    check_conservation(rig)


@pytest.mark.long
@pytest.mark.alone
def test_a_shadow_that_disagrees_hangs_and_is_killed_touches_no_plate(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera=SLOW)
    config = rig.write()
    begin(config, "--share", "1", "--threshold", "1")
    with rig.running() as run:
        wait_until(lambda: bool(rig.rows("shadow")), _SLOW_S, "a row of scored plates")
        pid = stopped_with_a_plate(rig, run.pid)
        before = rig.status()["plates"]
        wait_until(lambda: of_shadow(rig)["taken_back"] == 1, 40.0, "the plate taken back")
        assert rig.status()["plates"] > before + 10, "plates were judged meanwhile"
        assert not of_shadow(rig)["is_lent"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children(run.pid).get("shadow") not in (None, pid), 30.0, "another one")
        known = scored(rig)
        wait_until(lambda: scored(rig) >= known + 5, _SLOW_S, "scored plates")
        os.kill(children(run.pid)["shadow"], signal.SIGKILL)  # in whatever it is doing
        wait_until(lambda: not of_shadow(rig)["is_there"], 5.0, "word of its death")
        assert not of_shadow(rig)["is_lent"]
        status = rig.status()
        assert status["queues"]["plate_buffers"] <= status["capacities"]["plate_buffers"]
        assert status["state"] == "OPERATIONAL"
    results = {row["result_id"]: row for row in rig.rows("result")}
    told = {row["result_id"]: row["command"] for row in rig.rows("actuation")}
    assert {row["verdict"] for row in results.values()} >= {"PASS", "FAIL"}
    assert not [row for row in results.values() if row["reason"] == "overrun"]
    for name, row in results.items():
        if row["truth_is_defective"] is not None and row["verdict"] != "UNDECIDED":
            assert (row["verdict"] == "FAIL") == row["truth_is_defective"]
            wrong = "pass_not_production" if row["truth_is_defective"] else "fail"
            assert told[name] != wrong
    [found] = shadow(config, "report")
    # It fails nothing, so each of these would have been an escape.
    assert found["flips"]
    for flip in found["flips"]:
        assert (flip["verdict"], flip["shadow_verdict"]) == ("FAIL", "PASS")
        assert results[flip["result_id"]]["verdict"] == "FAIL"
    assert {"FAIL to PASS"} <= found["pairs"].keys() <= {"FAIL to PASS", "PASS to PASS"}
    assert found["agreement"] < found["agreement_high"] < 1.0
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
    check_conservation(rig)


# --- the share ----------------------------------------------------------------------------------


def test_the_share_of_processor_time_is_kept() -> None:
    share, began_s, used_s = 0.25, time.monotonic(), time.thread_time()
    budget = Budget(share, began_s, used_s=lambda: time.thread_time() - used_s)
    steps = 0
    while time.monotonic() - began_s < 2.0:
        if (wait_s := budget.wait_s()) > 0:
            time.sleep(wait_s)
            continue
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            steps += 1
    taken = (time.thread_time() - used_s) / (time.monotonic() - began_s)
    assert steps
    assert 0.3 * share < taken < 1.2 * share


def test_a_long_rest_saves_no_more_than_a_burst() -> None:
    now, used = [0.0], [0.0]
    budget = Budget(0.2, 0.0, lambda: now[0], lambda: used[0])
    now[0] = 3600.0
    assert budget.wait_s() == 0.0
    used[0] = 1.05
    assert budget.wait_s() == pytest.approx(1.0 / 0.2)
    now[0] += 5.0
    assert budget.wait_s() == pytest.approx(0.0, abs=1e-6)


# --- what may follow ----------------------------------------------------------------------------


def start_row(**other: Any) -> ChangeBody:
    given = {
        "folder": "/models/a",
        "model_id": "a",
        "sha256": "0" * 64,
        "threshold": 0.5,
        "share": 0.2,
        "who": "Eve",
        "reason": "to see",
    }
    return started_change("test-1", **(given | other))


def test_one_model_at_a_time_and_each_step_with_a_reason() -> None:
    first = start_row()
    known = register([first.as_json()])
    assert known.active is not None
    assert "stop it first" in objection(known, start_row().as_json())
    assert "why" in objection(Register(), start_row(reason="").as_json())
    assert "share" in objection(Register(), start_row(share=1.5).as_json())
    assert "share" in objection(Register(), start_row(share=float("nan")).as_json())
    assert "threshold" in objection(Register(), start_row(threshold=2.0).as_json())
    end = stopped_change("test-1", known.active, "Eve", "seen")
    assert "no model" in objection(Register(), end.as_json())
    ended = register([first.as_json(), end.as_json()])
    assert ended.active is None
    assert not objection(ended, start_row().as_json())
    # What breaks a rule counts for nothing.
    assert register([end.as_json(), first.as_json()]).active == known.active


def row(started_at: str, *plates: str, model: str = "a", sha256: str = "0" * 64) -> ShadowBody:
    """Of plates that pass."""
    return ShadowBody(
        station_id="test-1",
        started_at=started_at,
        model_id=model,
        model_sha256=sha256,
        threshold=0.5,
        runtime="a runtime",
        judging_model_id="b",
        judging_model_sha256="1" * 64,
        judging_threshold=0.5,
        recipe_id="small",
        recipe_version=1,
        recipe_sha256="2" * 64,
        plates=tuple(
            ShadowedPlate(
                result_id=name,
                verdict=Verdict.PASS,
                score=0.1,
                failing_tiles=0,
                is_same_bits=False,
                took_ms=1.0,
                cpu_ms=1.0,
            )
            for name in plates
        ),
        cpu_s=0.1,
        wall_s=1.0,
    )


def test_plates_are_of_a_shadow_that_began(tmp_path: Path) -> None:
    config = Rig(tmp_path).write()
    settings = load_configuration(str(config)).value
    first = start_row()
    with journal_at_hand(str(config), settings) as journal:

        def submit(*rows: Any) -> Json:
            return journal.submit(list(rows))

        strange = submit(row(first.written_at, "test-1-00000001"))
        assert not strange["ok"]
        assert "no shadow" in strange["error"]
        assert submit(first)["ok"]
        assert "stop it first" in submit(start_row())["error"]
        assert journal.hello()["shadow"]["model_id"] == "a"
        other = submit(row(first.written_at, "test-1-00000001", sha256="3" * 64))
        assert "no shadow" in other["error"]
        plates = row(first.written_at, "test-1-00000001", "test-1-00000002")
        again = [submit(plates)["seq"], submit(plates)["seq"]]
        assert again[0] == again[1], "sent again it is one row"
        known = register([first.as_json()]).active
        assert known is not None
        assert submit(stopped_change("test-1", known, "Eve", "seen"))["ok"]
        assert journal.hello()["shadow"] is None
        # What it had scored by then.
        assert submit(row(first.written_at, "test-1-00000003"))["ok"]
        assert "no model" in submit(stopped_change("test-1", known, "Eve", "seen"))["error"]
    with Reader(settings.journal.directory) as reader:
        assert verify(reader).findings == []
        [found] = comparisons(reader)
        # No result of them is there: nothing is said of agreement.
        assert (found.shadowed, found.unknown, found.agreement.value) == (3, 3, None)
        assert comparisons(reader, "another") == []


def test_a_shadow_row_names_its_model_exactly() -> None:
    first = start_row()
    known = register([first.as_json()])
    assert not row_objection(known, row(first.written_at, "p"))
    assert row_objection(known, row(first.written_at, "p", model="b"))
    assert row_objection(known, row("2026-01-01T00:00:00.000000Z", "p"))


# --- the report ----------------------------------------------------------------------------------


def judged(number: int, verdict: Verdict, score: float, version: int = 1) -> ResultBody:
    return result(
        number,
        verdict,
        part_id=f"serial {number}",
        score=score,
        recipe_id="small",
        recipe_version=version,
        model_id="b",
        model_sha256="1" * 64,
    )


def said(number: int, verdict: Verdict) -> ShadowedPlate:
    return ShadowedPlate(
        result_id=result_id("s", number),
        verdict=verdict,
        score=0.25,
        failing_tiles=0,
        is_same_bits=False,
        took_ms=10.0 * number,
        cpu_ms=2.0,
    )


def test_a_report_names_each_flip_and_mixes_no_recipe_versions(tmp_path: Path) -> None:
    first, passed, fails = start_row(), Verdict.PASS, Verdict.FAIL
    # Judged before, so nobody's.
    before = [judged(1, passed, 0.1)]
    one = [judged(n, fails if n in (4, 6) else passed, n / 100) for n in range(2, 22)]
    gap = result(22, Verdict.UNDECIDED, reason=Reason.GAP, recipe_id="small", recipe_version=1)
    two = [judged(n, passed, 0.1, version=2) for n in range(23, 27)]
    like = row(first.written_at, "p")
    told = (*(said(n, passed) for n in range(2, 12)), said(12, fails))
    other = {"plates": (said(23, passed), said(24, Verdict.UNDECIDED)), "recipe_version": 2}
    rows = [like.model_copy(update={"plates": told}), like.model_copy(update=other)]
    known = register([first.as_json()]).active
    assert known is not None
    end = stopped_change("s", known, "Eve", "seen")
    after = [judged(27, passed, 0.1)]
    with Store(tmp_path) as store:
        store.append([*before, first, *one, gap, *two, *rows, end, *after])
    with Reader(tmp_path) as reader:
        assert verify(reader).findings == []
        old, new = comparisons(reader)
        assert (old.recipe_version, old.judged, old.shadowed, old.equal) == (1, 20, 11, 8)
        assert (new.recipe_version, new.judged, new.shadowed, new.equal) == (2, 4, 2, 1)
        assert old.agreement == proportion(8, 11)
        flips = [(f.part_id, f.verdict, f.score, f.shadow_verdict) for f in old.flips]
        # First what the judging model was surest of.
        assert flips == [
            ("serial 6", fails, 0.06, passed),
            ("serial 4", fails, 0.04, passed),
            ("serial 12", passed, 0.12, fails),
        ]
        assert [f.shadow_verdict for f in new.flips] == [Verdict.UNDECIDED]
        assert old.as_json()["took_ms"] == {"p50": 70.0, "p99": 119.0, "max": 120.0}
        # Nobody else sees it.
        about, elsewhere = rows_of_certificate(reader, result_id("s", 4), reader.last_seq())
        assert "shadow" not in {each.kind for each in (*about, *elsewhere)}
        assert len(list(reader.results(Filter()))) == 27
        assert reader.ask(text("SELECT count(*) FROM plate"))[0][0] == 27


def test_a_recipe_version_by_which_nothing_was_shadowed_is_listed(tmp_path: Path) -> None:
    first = start_row()
    with Store(tmp_path) as store:
        store.append([first, judged(1, Verdict.PASS, 0.1), judged(2, Verdict.FAIL, 0.9)])
    with Reader(tmp_path) as reader:
        [found] = comparisons(reader)
    assert (found.recipe_id, found.judged, found.shadowed) == ("small", 2, 0)
    assert found.agreement.value is None
    assert (found.agreement.interval.low, found.agreement.interval.high) == (0.0, 1.0)


def test_plates_are_counted_for_the_limits_that_shadowed_them(tmp_path: Path) -> None:
    """At the card's threshold, then at another, then unsure, which scored none; then the first."""
    limits: tuple[dict[str, Any], ...] = (
        {},
        {"threshold": 0.7},
        {"threshold": 0.7, "unsure_above": 0.6},
        {},
    )
    counts, number = (3, 4, 5, 6), 0
    with Store(tmp_path) as store:
        for minute, (given, count) in enumerate(zip(limits, counts, strict=True)):
            at = f"2026-01-01T00:0{minute}:00.000000Z"
            first = start_row(**given).model_copy(update={"written_at": at})
            plates = [judged(number + n, Verdict.PASS, 0.1) for n in range(1, count + 1)]
            told = row(at, result_id("s", number + 1)).model_copy(update=given)
            known = register([first.as_json()]).active
            assert known is not None
            end = stopped_change("s", known, "Eve", "seen")
            is_scored = "unsure_above" not in given
            store.append([first, *plates, *([told] if is_scored else []), end])
            number += count
    with Reader(tmp_path) as reader:
        found = comparisons(reader)
    named = [(f.threshold, f.unsure_above, f.judged, f.shadowed) for f in found]
    assert named == [(0.5, None, 9, 2), (0.7, None, 4, 1), (0.7, 0.6, 5, 0)]


def test_every_flip_has_a_place_and_fail_to_pass_the_first() -> None:
    assert RISK[0] == (Verdict.FAIL, Verdict.PASS)
    assert set(RISK) == {(one, other) for one in Verdict for other in Verdict if one is not other}


# --- which models may -----------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Rig(tmp_path).write()


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped_model(MODEL), tmp_path / "models" / MODEL))


def here(config: Path, *arguments: str) -> Result:
    """`vqi model shadow …` in this process, which has its imports behind it."""
    return CliRunner().invoke(app, [*arguments, "--config", str(config)])


def refused(config: Path, model: str) -> str:
    done = here(config, "start", model, "--reason", "to see")
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert not (config.parent / "journal" / "journal.db").exists(), "nothing was written"
    return done.output


def test_a_damaged_model_comes_into_no_shadow(config: Path, tmp_path: Path) -> None:
    file = copied(tmp_path) / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "is not the card's" in refused(config, str(file.parent))


def test_other_golden_scores_come_into_no_shadow(config: Path, tmp_path: Path) -> None:
    file = copied(tmp_path) / "card.json"
    card = json.loads(file.read_text())
    card["golden"]["scores"][0] = 1.0 - card["golden"]["scores"][0]
    file.write_text(json.dumps(card))
    assert "golden scores differ" in refused(config, str(file.parent))


def test_a_model_that_is_not_there_comes_into_no_shadow(config: Path) -> None:
    assert "no such model" in refused(config, "no-such-model")


def test_a_model_is_found_by_its_folder_and_named_in_status(config: Path, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    start = ("start", str(folder), "--reason", "to see")
    done = json.loads(here(config, *start, "--threshold", "0.25", "--json").output)
    assert (done["folder"], done["threshold"], done["share"]) == (str(folder), 0.25, 0.2)
    status = json.loads(here(config, "status", "--json").output)
    assert status["running"] is None
    assert status["shadow"]["started_at"] == done["started_at"]
    assert "stop it first" in here(config, *start).output
    assert here(config, "stop", "--reason", "enough").exit_code == 0
    assert "no model is in the shadow" in here(config, "status").output
    assert here(config, "report", "--json").output == ""
    assert here(config, "start", str(folder), "--reason", "to see", "--share", "2").exit_code == 2


def test_a_recipe_version_is_shadowed_at_its_own_threshold(config: Path, tmp_path: Path) -> None:
    """A promotion counts figures of one threshold only: the proposed version's."""
    folder = copied(tmp_path)
    text = (tmp_path / "recipe.toml").read_text().replace("version = 1", "version = 2")
    proposed = tmp_path / "second.toml"
    proposed.write_text(f'{text}folder = "{folder}"\nthreshold = 0.625\n')
    words = ("recipe", "propose", str(proposed), "--reason", "because", "--config", str(config))
    assert vqi(*words).returncode == 0
    done = here(config, "start", "small@2", "--reason", "to see", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["folder"], said["threshold"]) == (str(folder), 0.625)
    assert here(config, "stop", "--reason", "enough").exit_code == 0
    assert "small@3" in here(config, "start", "small@3", "--reason", "to see").output


def test_a_plate_that_the_candidate_doubts_is_none_that_it_passes(
    config: Path, tmp_path: Path
) -> None:
    file = copied(tmp_path) / "card.json"
    card = json.loads(file.read_text())
    card["threshold"] |= {"value": 1.0, "unsure_above": 1e-9}
    file.write_text(json.dumps(card))
    start = ("start", str(file.parent), "--reason", "to see", "--threshold", "1", "--json")
    done = here(config, *start)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["unsure_above"] == 1e-9
    loaded = load_configuration(str(config))
    with Reader(loaded.value.journal.directory) as reader:
        active = register(reader.shadow_changes()).active
    assert active is not None
    assert active.unsure_above == 1e-9, "the row says so"
    recipe = load_product(loaded)
    plate = recipe.value.plate.model_copy(update={"outline": "whole"})
    recipe = replace(recipe, value=recipe.value.model_copy(update={"plate": plate}))
    picture = np.random.default_rng(1).integers(100, 140, (400, 600), np.uint8)
    geometry = geometry_of(recipe, 0.1, 600)
    cut = plate_of(cut_picture(picture, geometry))
    said = {
        "recipe": recipe.value.model_dump(mode="json"),
        "recipe_sha256": recipe.sha256,
        "judged": {"result_id": "s-1"},
        "loan": 1,
    }
    for unsure, verdict, reason in (
        (None, Verdict.PASS, None),
        (1e-9, Verdict.UNDECIDED, Reason.UNSURE),
    ):
        parts: Any = SimpleNamespace(
            is_ending=False, began_s=0.0, send=lambda message: None, value=loaded.value
        )
        one = replace(active, unsure_above=unsure, share=1.0)
        classifier = Classifier.load(shipped_model(MODEL))
        classifier.self_test()
        judgement = _Shadow(loaded.value, one, classifier, parts)._score(
            parts,
            said,
            cut,
            geometry,  # type: ignore[arg-type]
        )
        assert judgement is not None
        assert (judgement.verdict, judgement.reason) == (verdict, reason)


def test_plates_are_said_to_be_judged_at_the_recipes_threshold_in_any_precision(
    config: Path,
) -> None:
    """A promotion is about the versions' own: a gate may have moved it for the precision."""
    loaded = load_configuration(str(config))
    recipe = load_product(loaded)
    own = configured_judging(loaded.value).threshold
    classifier = Classifier.load(shipped_model(MODEL), variant=Variant("fp32", own / 2, ()))
    judge = Judge.of(recipe, classifier)
    assert judge.threshold == own / 2
    plate = SimpleNamespace(lines=1, length_px=1, region_lines=1)
    work: Any = SimpleNamespace(plate=plate, judge=judge)
    context: Any = SimpleNamespace(geometry=geometry_of(recipe, 0.1, 768))
    body = result(1, Verdict.PASS, threshold=judge.threshold)
    assert _message(1, body, work, context)["judging"]["judging_threshold"] == own
    given = recipe.value.model.model_copy(update={"threshold": 0.25})
    value = recipe.value.model_copy(update={"model": given})
    work.judge = Judge.of(replace(recipe, value=value), classifier)
    assert _message(1, body, work, context)["judging"]["judging_threshold"] == 0.25


def test_what_a_promotion_counts_has_the_threshold_to_the_last_bit(tmp_path: Path) -> None:
    """SQLite writes a number that it has read with 15 digits."""
    threshold = 0.01507100835442543
    exact = {"threshold": threshold}
    first = row(start_row().written_at, "s-1", "s-2").model_copy(update=exact)
    second = row(start_row().written_at, "s-3").model_copy(update=exact)
    with Store(tmp_path) as store:
        store.append([first, second])
        found = store.model_changes()
    with Reader(tmp_path) as reader:
        assert reader.model_changes() == found
    assert [(one["detail"]["threshold"], one["detail"]["plates"]) for one in found] == [
        (threshold, 3)
    ]
    doubted = second.model_copy(update={"unsure_above": 0.01, "written_at": "2026-01-01"})
    with Store(tmp_path) as store:
        store.append([doubted])
        counts = {
            one["detail"]["unsure_above"]: one["detail"]["plates"] for one in store.model_changes()
        }
    assert counts == {None: 3, 0.01: 1}, "other limits are another candidate"
