"""Another model: what must be shown of it first, how a running line takes it up between two plates
and goes back from it, and what a death at each step leaves."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import typer
from second_model import SHIPPED, other_model
from station_rig import Rig, check_conservation, children, vqi, wait_until
from test_recipes import submitted
from typer.testing import CliRunner
from web_rig import running_journal

from models.card import read_card
from models.classifier import Classifier
from models.runtimes import Findings
from station import comparisons, parity
from station.candidate import AuditFigures
from station.cli.model import app as app_of_model
from station.cli.model_promotion import _roll_back
from station.cli.recipe import _ask_next_start
from station.cli.recipe import app as app_of_recipe
from station.comparisons import COMPARED, SIGNED
from station.config import Evidence, PromotionRecipe, Recipe, load_configuration, load_recipe
from station.control import send_command
from station.journal_client import JournalClient
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.offline import PictureInspector
from station.parity import check_parity, whole_plate
from station.precision import load_classifier
from station.product import load_product
from station.promotion import (
    CHOSEN,
    GATE,
    LIMIT_SAMPLES,
    SHADOWED,
    Judging,
    evidence,
    objection,
)
from station.recipe_desk import Desk
from station.recipes import (
    ACTIVATED,
    APPROVED,
    DIFFERS,
    EQUAL,
    NOTHING,
    PARITY,
    PROPOSED,
    ROLLBACK,
    Named,
    RecipeError,
    RecipeFolder,
    Switch,
    activated_change,
    activation_of,
    approved_change,
    register,
    settle_start,
    starting_recipe,
)
from station.recipes import objection as recipe_objection
from station.record import ChangeBody, ReviewBody, Verdict

Json = dict[str, Any]
A, B, SEED = 64 * "a", 64 * "b", 32 * "0"
ALL: tuple[Evidence, ...] = get_args(Evidence)
ACTIVE = {"judging_model_sha256": A, "judging_threshold": "0.4"}


# --- what must be shown ---------------------------------------------------------------------------


def said(what: str, **detail: str) -> Json:
    at = "2026-11-20T08:00:00.000000Z"
    return {"what": what, "who": "eve", "written_at": at, "detail": detail}


def compared(flips: list[str], confirmed: list[str], **other: str) -> Json:
    named = {"a_id": "a", "a_sha256": A, "a_threshold": "0.4", "b_id": "b", "b_sha256": B}
    named |= {"b_threshold": "0.5", "report_sha256": 64 * "c", "sample_seed": SEED, "since": ""}
    named |= {"to_sign": json.dumps(flips), "confirmed": json.dumps(confirmed), "plates": "300"}
    named |= {"recipes": '{"r": 300}', "until": "", "differing": "0", "flips": "{}"}
    return said(COMPARED, **(named | other))


def signed(names: list[str], opinion: str = "accepted", **other: str) -> Json:
    named = {"comparison": 64 * "c", "result_ids": json.dumps(names), "opinion": opinion}
    return said(SIGNED, **(named | {"reason": "looked at it"} | other))


def gated(which: str, **other: str) -> Json:
    named = {"set": which, "model_sha256": B, "threshold": "0.5", "problem": "", "words": "good"}
    return said(GATE, **(named | {"recipe": "r@2"} | ACTIVE | other))


def shown_samples(**other: str) -> Json:
    return said(LIMIT_SAMPLES, recipe="r@2", model_sha256=B, threshold="0.5", **other)


LATER = {"report_sha256": 64 * "d"}


def signed_later(name: str) -> Json:
    return signed([name], comparison=64 * "d")


SHOWN = [
    gated("limit_samples"),
    gated("audit"),
    gated("precision"),
    compared(["s-1"], []),
    signed(["s-1"]),
    said(SHADOWED, model_sha256=B, threshold="0.5", recipe_id="r", plates="200", **ACTIVE),
    said(CHOSEN, recipe="r@2", model_sha256=B, threshold="0.5", chosen_by="400 plates"),
]


def missing(rows: list[Json], threshold: float = 0.5) -> dict[str, str]:
    active = Judging("r@1", A, 0.4, PromotionRecipe(evidence=ALL))
    wanted = Judging("r@2", B, threshold, PromotionRecipe())
    return {one.kind: one.problem for one in evidence(active, wanted, rows) if one.problem}


def test_all_that_is_asked_for_is_shown_by_rows_of_this_model_at_this_threshold() -> None:
    assert missing(SHOWN) == {}
    assert missing([]).keys() == set(ALL)
    assert missing(SHOWN, threshold=0.6).keys() == set(ALL), "figures are of one threshold"
    for row in SHOWN:
        left = [one for one in SHOWN if one is not row]
        assert len(missing(left)) == 1, row
        if row["what"] == SIGNED:
            continue
        for others in (
            {"b_sha256": A, "model_sha256": A},
            {"recipe": "q@2", "recipe_id": "q", "recipes": '{"q": 300}'},
            {"judging_model_sha256": B, "a_sha256": B},
            {"judging_threshold": "0.3", "a_threshold": "0.3"},
        ):
            changed = {**row, "detail": {**row["detail"], **others}}
            is_alone = row["what"] == CHOSEN or row["detail"].get("set") == "limit_samples"
            is_still_shown = is_alone and others.keys() & {"a_sha256", "a_threshold"}
            assert len(missing([*left, changed])) == (0 if is_still_shown else 1), others


def test_figures_beside_another_judge_say_beside_whom_they_are_wanted() -> None:
    elsewhere = gated("audit", judging_model_sha256=B)
    assert "(beside r@1, which judges now)" in missing([elsewhere])["audit"]
    refused = gated("audit", problem="it lets one escape")
    assert missing([*SHOWN, elsewhere, refused])["audit"] == "it lets one escape"


def test_unless_the_version_in_force_says_otherwise_everything_is_to_be_shown() -> None:
    assert PromotionRecipe().evidence == ALL
    assert load_recipe("shipped:demo-lgp").value.promotion == PromotionRecipe()


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([shown_samples(passed="no", problem="a is PASS")], "limit_samples", "a is PASS"),
        ([gated("limit_samples", problem="b is PASS"), shown_samples(passed="yes")], "", ""),
        ([gated("audit", problem="it lets one escape")], "audit", "escape"),
        ([gated("precision", problem="too slow")], "precision", "slow"),
        ([compared(["s-1", "s-2"], [], **LATER)], "compare", "not signed yet: s-1, s-2"),
        ([compared(["s-1", "s-2"], [], **LATER), signed_later("s-1")], "compare", "yet: s-2"),
        ([signed(["s-1"], "escape")], "compare", "called an escape"),
        ([compared([], [], plates="0", **LATER)], "compare", "no plate"),
        ([compared([], [], recipes='{"r": 1, "q": 900}', **LATER)], "compare", "1 plates of r "),
        ([compared([], [], differing="2", **LATER)], "compare", "did not come out"),
        ([compared([], [], a_sha256=64 * "d", **LATER)], "", ""),
        ([signed(["s-1"], "escape"), compared([], [], **LATER)], "compare", "called an escape in"),
    ],
)
def test_what_came_last_counts(rows: list[Json], kind: str, words: str) -> None:
    found = missing(SHOWN + rows)
    assert found.keys() == ({kind} if kind else set())
    assert words in found.get(kind, "")


def test_audit_samples_show_something_with_a_defect_among_them_and_no_new_escape() -> None:
    assert "no defective audit sample" in AuditFigures(good=40).problem
    assert AuditFigures(good=40, defective=1, escapes=1, active_escapes=1).problem == ""
    trained = AuditFigures(good=40, may_have_trained=3).problem
    assert "(3 of parts that may have trained do not count)" in trained
    one_for_another = AuditFigures(defective=9, escapes=1, active_escapes=1, new_escape="s-7")
    assert "s-7 escape, which the judging model does not" in one_for_another.problem


def test_a_stated_sample_stands_for_flips_that_nobody_judged_defective() -> None:
    flips = [f"s-{number}" for number in range(100)]
    rows = [*SHOWN[:3], *SHOWN[5:], compared(flips, flips[:1])]
    (one,) = comparisons.register(rows).known.values()
    sample = signed([*one.sample(59)], sample="59")
    assert "s-0" in missing([*rows, sample])["compare"]
    assert missing([*rows, sample, signed(flips[:1])]) == {}
    few = signed([*one.sample(58)], sample="58")
    assert "not signed" in missing([*rows, few])["compare"]


def test_no_comparison_is_made_again_until_a_sample_suits() -> None:
    """Each draws a seed of its own; what it drew is looked at, signed in whichever of them."""
    flips = [f"s-{number}" for number in range(100)]
    rows = [*SHOWN[:3], *SHOWN[5:], compared(flips, flips[:1])]
    rows.append(compared(flips, flips[:1], sample_seed=32 * "1", **LATER))
    first, second = comparisons.register(rows).known.values()
    assert set(first.sample(59)) != set(second.sample(59))
    of_second = {"comparison": second.sha256}
    rows += [signed([*second.sample(59)], sample="59", **of_second), signed(flips[:1], **of_second)]
    assert comparisons.register(rows).known[second.sha256].is_complete
    left = len(set(first.sample(59)) - set(second.sample(59)))
    assert f"{left} flips of {first.sha256[:12]}, compared before" in missing(rows)["compare"]
    escape = signed([first.sample(59)[-1]], "escape")
    assert "called an escape" in missing([*rows, escape])["compare"]
    rows.append(compared(["s-1"], [], a_threshold="0.3", report_sha256=64 * "e"))
    assert missing([*rows, signed([*first.sample(59)], sample="59")]) == {}, "other limits, no pair"
    one_by_one = [signed([name], **of_second) for name in first.sample(59)]
    assert missing([*rows, *one_by_one]) == {}


def version(number: int, model: str, asks: str = "", who: str = "ann") -> Json:
    text = f'id = "r"\nversion = {number}\n[model]\nsha256 = "{model}"\nthreshold = 0.5\n{asks}'
    detail = {"id": "r", "version": str(number), "reason": "because", "toml": text}
    detail["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return ChangeBody(station_id="s", what=PROPOSED, who=who, detail=detail).as_json()


def step(what: str, proposal: Json, who: str = "bob", **more: str) -> Json:
    detail = {key: proposal["detail"][key] for key in ("id", "version", "sha256")} | more
    return ChangeBody(station_id="s", what=what, who=who, detail=detail).as_json()


def in_force(proposal: Json) -> list[Json]:
    return [proposal, step(APPROVED, proposal), step(ACTIVATED, proposal)]


def no_configured() -> Judging:
    raise AssertionError("the log names what judges")


def test_the_version_in_force_says_what_the_next_one_shows() -> None:
    """Not the next one itself, which could ask for nothing; another plate table alone is no other
    model; what judged before is gone back to without."""
    asks = '[promotion]\nevidence = ["compare"]\n'
    first, second, same = version(1, A, asks), version(2, B), version(3, A)
    known = register([*in_force(first), second, same])
    for what in (APPROVED, ACTIVATED):
        problem = objection(known, step(what, second), no_configured, list)
        assert "r@2: compare: not compared with r@1" in problem
        shown = [compared([], [], a_threshold="0.5")]
        assert not objection(known, step(what, second), no_configured, lambda rows=shown: rows)
        assert not objection(known, step(what, same), no_configured, list)
    configured = Judging("r@0", A, 0.5, PromotionRecipe(evidence=("shadow",)))
    fresh = register([second])
    assert "shadow" in objection(fresh, step(APPROVED, second), lambda: configured, list)
    back = [*in_force(first), second, step(APPROVED, second), step(ACTIVATED, second)]
    back.append(step(ACTIVATED, first, **{ROLLBACK: "yes"}))
    assert not objection(register(back[:-1]), back[-1], no_configured, list)


def test_looser_limits_are_shown_like_another_model() -> None:
    """A higher threshold, a higher doubt, or none: plates would pass that do not now. Stricter
    ones need a second person only."""
    asks = 'unsure_above = 0.3\n[promotion]\nevidence = ["compare"]\n'
    first = version(1, A, asks)
    known = register(in_force(first))

    def problem(number: int, limits: str, rows: list[Json]) -> str:
        text = version(number, A)["detail"]["toml"].replace("threshold = 0.5\n", limits)
        detail = {"id": "r", "version": str(number), "reason": "because", "toml": text}
        detail["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        row = ChangeBody(station_id="s", what=PROPOSED, who="ann", detail=detail).as_json()
        with_it = register([*in_force(first), row])
        assert with_it.strange == known.strange == ()
        return objection(with_it, step(APPROVED, row), no_configured, lambda: rows)

    for limits in (
        "threshold = 0.6\nunsure_above = 0.3\n",
        "threshold = 0.5\nunsure_above = 0.4\n",
        "threshold = 0.5\n",
    ):
        assert "r@2: compare: not compared with r@1" in problem(2, limits, []), limits
    for limits in (
        "threshold = 0.5\nunsure_above = 0.3\n",
        "threshold = 0.4\nunsure_above = 0.2\n",
        "threshold = 0.3\n",
    ):
        assert not problem(2, limits, []), limits
    wanted = "threshold = 0.6\nunsure_above = 0.4\n"
    sides = {"a_threshold": "0.5", "a_unsure_above": "0.3", "b_sha256": A, "b_threshold": "0.6"}
    shown = compared([], [], **sides, b_unsure_above="0.4")
    assert not problem(2, wanted, [shown])
    for other in ({"a_threshold": "0.6"}, {"b_unsure_above": "0.6"}, {"a_unsure_above": "nan"}):
        of_others = {**shown, "detail": {**shown["detail"], **other}}
        assert "not compared" in problem(2, wanted, [of_others]), other
    del shown["detail"]["b_unsure_above"]
    assert "not compared" in problem(2, wanted, [shown]), "judged without a doubt"


def test_limit_samples_are_those_of_the_version_in_force() -> None:
    """Samples that suit the candidate could be chosen otherwise, and the last row counts."""
    own, other = 64 * "5", 64 * "6"
    asks = PromotionRecipe(evidence=("limit_samples",))
    wanted = Judging("r@2", B, 0.5, PromotionRecipe())

    def problem(listed: str | None, *rows: Json) -> str:
        active = Judging("r@1", A, 0.5, asks, samples_sha256=listed)
        (one,) = evidence(active, wanted, rows)
        return one.problem

    passed = gated("limit_samples", samples_sha256=own)
    refused = gated("limit_samples", samples_sha256=own, problem="a is PASS")
    assert problem(own, passed) == ""
    for row in (
        gated("limit_samples", samples_sha256=other),
        gated("limit_samples"),
        shown_samples(passed="yes", samples_sha256=other),
    ):
        assert "nothing measured yet" in problem(own, row)
        assert f"of the list of r@1, {own[:12]}" in problem(own, row)
        assert "a is PASS" in problem(own, refused, row)
        assert problem(None, row) == "", "the version in force names none"
    assert problem(own, refused, shown_samples(passed="yes", samples_sha256=own)) == ""


def test_a_roll_back_goes_to_what_judged_before_and_nowhere_else() -> None:
    one, two, three = (version(number, letter * 64) for number, letter in enumerate("abc", 1))
    rows = [*in_force(one), *in_force(two), three, step(APPROVED, three)]
    back = {name: step(ACTIVATED, name_, **{ROLLBACK: "yes"}) for name, name_ in
            (("one", one), ("three", three))}  # fmt: skip
    assert "only r@1 judged before it" in recipe_objection(register(rows), back["three"])
    rows.append(back["one"])
    known = register(rows)
    assert known.strange == ()
    assert (known.active and known.active.name, known.former) == ("r@1", None)
    twice = step(ACTIVATED, two, **{ROLLBACK: "yes"})
    assert "nothing judged before it" in recipe_objection(known, twice), "not forward again"
    differs = {"result": "differs", "recipe": "r@1", "problem": "other bits"}
    parity = ChangeBody(station_id="s", what=PARITY, who="station", detail=differs).as_json()
    assert register([*rows, parity]).brief()["parity_problem"] == "other bits"
    assert register([*rows, parity]).brief()["lacks_parity"], "each start checks again"
    for result, problem, is_checked in ((NOTHING, "other bits", True), (EQUAL, "", False)):
        detail = {"result": result, "recipe": "r@1"}
        again = ChangeBody(station_id="s", what=PARITY, who="station", detail=detail).as_json()
        brief = register([*rows, parity, again]).brief()
        assert (brief["parity_problem"], brief["lacks_parity"]) == (problem, is_checked)
    assert register([*rows, parity, step(ACTIVATED, two)]).parity_problem == ""


# --- a death at each step -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return other_model(folder, "model-a", 1.0), other_model(folder, "model-b", 0.9)


@pytest.fixture
def stocked(rig: Rig, models: tuple[Path, Path]) -> tuple[Any, list[Json]]:
    """A configuration, and rows by which small@2 judges and small@3 is approved."""
    configuration = load_configuration(str(rig.write()))
    rows: list[Json] = []
    for model in models:
        desk = Desk(configuration, register(rows))
        row = desk.propose_changed(drafted(desk, model), "ann", "because")
        desk.folder.keep_proposed(row, desk.known)
        version = register([*rows, row.as_json()]).of(f"small@{row.detail['version']}")
        rows += [row.as_json(), approved_change("test-1", version, "bob", "").as_json()]
        if not rows[2:]:
            row = activation_of("test-1", version)
            desk.folder.keep_active(row)
            rows.append(row.as_json())
    return configuration, rows


def start(configuration: Any, rows: list[Json]) -> int:
    """What a start of the station does, up to its first row: the version that judges."""
    recipe = starting_recipe(configuration.value)
    row = settle_start(configuration.value, recipe, register(rows).brief())
    rows += [] if row is None else [row.as_json()]
    RecipeFolder.of(configuration.value).forget_switch()
    return recipe.value.version


@pytest.mark.parametrize("step_", ["asked", "active file", "row", "settled"])
@pytest.mark.parametrize("goes_back", [False, True])
def test_a_death_at_each_step_leaves_one_model_and_the_log_says_which(
    stocked: tuple[Any, list[Json]], step_: str, goes_back: bool
) -> None:
    """The station is left where it dies: `asked` is also loaded, and loading; the journal process
    writes file and row, in this order."""
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    if goes_back:
        row = activation_of("test-1", register(rows).of("small@3"))
        folder.keep_active(row)
        rows.append(row.as_json())
    before, after = (3, 2) if goes_back else (2, 3)
    version = register(rows).of(f"small@{after}")
    wanted = Named(id="small", version=after, sha256=version.sha256, who="eve")
    switch = Switch(wanted=wanted, state="hot", is_rollback=goes_back, reason="because")
    folder.keep_switch(switch)
    row = activated_change("test-1", switch, {})
    if step_ != "asked":
        folder.keep_active(row)
    if step_ in ("row", "settled"):
        rows.append(row.as_json())
    if step_ == "settled":
        folder.forget_switch()
    expected = before if step_ == "asked" else after
    count = len(rows)
    assert start(configuration, rows) == expected
    known = register(rows)
    assert known.strange == ()
    assert known.active is not None
    assert known.active.name == f"small@{expected}"
    added = [row["what"] for row in rows[count:]]
    assert added == {"asked": ["recipe_refused"], "active file": [ACTIVATED]}.get(step_, [])
    if step_ == "asked":
        assert "before it was taken up" in rows[-1]["detail"]["problem"]
    assert start(configuration, rows) == expected
    assert len(rows) == count + len(added), "settled once"


@pytest.mark.parametrize(
    ("who", "reason", "said"),
    [
        ("eve ", "scratches", "the person begins or ends with a blank"),
        ("eve\u00a0", "scratches", "the person is no name"),
        ("eve", "", "a roll-back says why"),
        ("eve", "scratches ", "the reason begins or ends with a blank"),
        ("eve", "scratches\nagain", "not seen"),
    ],
)
def test_a_stopped_station_is_asked_for_nothing_that_no_row_could_say(
    stocked: tuple[Any, list[Json]], who: str, reason: str, said: str
) -> None:
    configuration, rows = stocked
    row = activation_of("test-1", register(rows).of("small@3"))
    desk = Desk(configuration, register([*rows, row.as_json()]))
    desk.folder.keep_active(row)
    with pytest.raises(RecipeError, match=said):
        _roll_back(desk, who, reason)
    if who != "eve":
        with pytest.raises(RecipeError, match=said):
            _ask_next_start(desk, "small@3", who)
    assert desk.folder.switch is None
    assert _roll_back(desk, "eve", "scratches")["state"] == "asked"
    rows.append(row.as_json())
    assert start(configuration, rows) == 2
    assert register(rows).strange == ()


def test_what_is_refused_leaves_the_file_that_says_which_one_judges(
    rig: Rig, models: tuple[Path, Path]
) -> None:
    """A start would find a version that no row activates."""
    configuration = load_configuration(str(rig.write()))
    folder = RecipeFolder.of(configuration.value)
    nobody = ChangeBody(station_id="test-1", what="model_signed", who="eve", detail={})
    with running_journal(rig):
        names = [proposed(rig, model) for model in models]
        rows = [activation_of("test-1", Desk.at(configuration).known.of(name)) for name in names]
        for row, before in zip(rows, (None, names[0]), strict=True):
            for refused in ([row, nobody], [nobody, row], [row, row]):
                journal = JournalClient(rig.runtime)
                journal.connect(5.0)
                with contextlib.closing(journal):
                    assert not journal.submit(list(refused))["ok"]
                assert (folder.active and folder.active.name) == before
            submitted(rig, row)
        assert folder.active is not None
        assert folder.active.name == names[1]


@pytest.mark.parametrize("has_former", [False, True])
def test_a_file_that_cannot_be_made_durable_is_put_back(
    stocked: tuple[Any, list[Json]], monkeypatch: pytest.MonkeyPatch, has_former: bool
) -> None:
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    if not has_former:
        (folder.path / "active.json").unlink()
    before = folder.active
    assert (before is not None) is has_former
    real, synced = os.fsync, list[int]()

    def fails_once_it_is_replaced(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once_it_is_replaced)
    with pytest.raises(OSError, match="Input/output"):
        folder.keep_active(activation_of("test-1", register(rows).of("small@3")))
    assert folder.active == before


@pytest.mark.long
@pytest.mark.parametrize("moment", ["checking", "loading", "active.json", "row"])
def test_kill_9_on_a_running_line(rig: Rig, models: tuple[Path, Path], moment: str) -> None:
    """All processes at once, at each step of a promotion: after the restart one model judges, the
    log says which, and each plate's record is of the model that made its scores."""
    with rig.running() as run:
        activated(rig, models[0])
        b = proposed(rig, models[1])
        plates(rig, 2)
        active = rig.journal / "recipes" / "active.json"
        was = active.read_bytes()
        family = [run.pid, *children(run.pid).values()]
        assert send_command(rig.runtime, "recipe", b)["ok"]
        reached = {
            "checking": lambda: rig.status()["recipe_switch"]["stage"] == "checking",
            "loading": lambda: (
                rig.status()["recipe_switch"]["stage"] in ("loading", "taking_up", "")
            ),
            "active.json": lambda: active.read_bytes() != was,
            "row": lambda: activations(rig) == 2,
        }[moment]
        while not reached():
            pass
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        run.wait(10.0)
    with rig.running():
        plates(rig, 2)
        judges = rig.status()
    version = json.loads(active.read_text())["version"]
    assert (judges["recipe"]["version"], activations(rig)) == (version, version - 1)
    assert version == {"checking": 2, "row": 3}.get(moment, version)
    judged_as_recorded(rig, {read_card(model).sha256: model for model in (SHIPPED, *models)})
    after = [row for row in rig.rows("result") if row["reason"] is None]
    assert after[-1]["recipe_version"] == version
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


def activations(rig: Rig) -> int:
    return [row["what"] for row in rig.rows("change")].count(ACTIVATED)


def judged_as_recorded(rig: Rig, folders: dict[str, Path]) -> None:
    """Every whole plate, scored again by the model that its record names, has the recorded bits: no
    plate was judged by a mixture."""
    loaded = {sha: Classifier.load(folder) for sha, folder in folders.items()}
    recipe = load_recipe(str(rig.folder / "recipe.toml"))
    compared = Counter[str]()
    for body in rig.rows("result"):
        picture = whole_plate(rig.journal / "images", body)
        if picture is None or not body["tiles"] or body["reason"] is not None:
            continue
        found = PictureInspector(recipe, loaded[body["model_sha256"]], 0.1, 1).inspect(picture)
        scores = np.array([tile.score for tile in found.tiles], "<f4").tobytes()
        assert scores == base64.b64decode(body["tile_scores"]), body["result_id"]
        compared[body["model_sha256"]] += 1
    assert len(compared) > 1


# --- the same bits --------------------------------------------------------------------------------


class Nudged:
    """A classifier whose first score of each chunk is one bit off."""

    def __init__(self, real: Classifier) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def find(self, tiles: Any, session: int = 0) -> Findings:
        found = self._real.find(tiles, session)
        found.scores[0] = np.nextafter(found.scores[0], np.float32(1))
        return found


def other_bits_are_found(rig: Rig) -> None:
    """Of a log whose plates were kept whole."""
    configuration = load_configuration(str(rig.folder / "station.toml"))
    recipe = load_product(configuration)
    kept = sum(row["tiles"] > 0 for row in rig.rows("result"))
    same = check_parity(configuration, recipe)
    assert (same.result, len(same.results), same.problem) == (EQUAL, kept, "")
    chosen = load_classifier(configuration, recipe, 1)
    nudged: Any = Nudged(chosen.classifier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "load_classifier", lambda *_: replace(chosen, classifier=nudged))
        other = check_parity(configuration, recipe)
        assert (other.result, len(other.differing)) == (DIFFERS, kept)
        assert "tile scores have other bits" in other.detail["problem"]
        nudged.runtime = "another processor"
        assert check_parity(configuration, recipe).result == NOTHING, "no other bits, none at all"


def test_only_plates_that_were_scored_whole_are_scored_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plate whose end was never seen has fewer scores than its picture gives alone."""
    configuration = load_configuration(str(rig.write()))
    recipe = load_product(configuration)
    classifier = load_classifier(configuration, recipe, 1).classifier
    pitch_mm = configuration.value.camera.pixel_pitch_mm
    picture = np.full((600, 768), 10, np.uint8)
    picture[100:500, 84:684] = 180
    found = PictureInspector(recipe, classifier, pitch_mm, 1).inspect(picture)
    assert len(found.tiles) > 1
    body = {
        "runtime": classifier.runtime,
        "model_sha256": classifier.model_sha256,
        "verdict": str(found.verdict),
    }

    def record(reason: str | None, seen: int) -> Json:
        places = np.array([(tile.x_px, tile.y_px) for tile in found.tiles[:seen]], "<u2")
        scores = np.array([tile.score for tile in found.tiles[:seen]], "<f4")
        packed = {"tile_grid": places, "tile_scores": scores}
        arrays = {key: base64.b64encode(one.tobytes()) for key, one in packed.items()}
        name = f"{reason}-{seen}"
        return {**body, **arrays, "result_id": name, "reason": reason, "tiles": seen}

    whole = len(found.tiles)
    partial = ["belt stopped", "incomplete", "overrun", "outline", "uncovered", "model", "deadline"]
    bodies = [record(reason, 1) for reason in partial]
    bodies += [record(reason, whole) for reason in (None, "obscured", "unlit")]
    monkeypatch.setattr(parity, "_records", lambda *_: iter(bodies))
    monkeypatch.setattr(parity, "whole_plate", lambda *_: picture)
    monkeypatch.setattr(parity, "Reader", lambda _: contextlib.nullcontext())
    said = check_parity(configuration, recipe)
    assert said.problem == ""
    assert said.results == tuple(body["result_id"] for body in bodies[len(partial) :])
    assert said.passed_over == len(partial)
    bodies[:] = [record(None, 1)]
    assert check_parity(configuration, recipe).result == DIFFERS, "of a whole plate nothing lacks"


# --- from a model to an approved version ----------------------------------------------------------


def here(app: typer.Typer, rig: Rig, *words: str) -> Any:
    """A command in this process; its status and what it printed."""
    return CliRunner().invoke(app, [*words, "--config", str(rig.folder / "station.toml")])


def review_by_truth(rig: Rig) -> None:
    with Reader(rig.journal) as reader:
        results = list(reader.results(Filter()))
    for row in results:
        verdict = Verdict.FAIL if row["truth_is_defective"] else Verdict.PASS
        review = {"result_id": row["result_id"], "verdict": verdict, "reviewer": "qa"}
        review |= {"reason": "confirmed", "supersedes": row["seq"], "station_id": "test-1"}
        review |= {"nonce": f"nonce-{row['result_id']}"}
        submitted(rig, ReviewBody.model_validate(review))


def limit_samples(rig: Rig) -> Path:
    """One plate that failed and one that passed, as they are stored."""
    kept = {row["verdict"]: row["images"][0]["path"] for row in rig.rows("result")}
    paths = {name: rig.journal / "images" / kept[name] for name in ("FAIL", "PASS")}
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    lines = [f"{path},{name},{sums[name]}" for name, path in paths.items()]
    (rig.folder / "samples.csv").write_text("\n".join(["file,expected,sha256", *lines]))
    return rig.folder


@pytest.mark.long
def test_a_planted_bad_model_is_refused_at_each_gate(rig: Rig, models: tuple[Path, Path]) -> None:
    rig.camera = {"line_rate_hz": 4000.0}
    rig.recipe_lines += '[promotion]\nevidence = ["limit_samples", "audit", "precision"]\n'
    assert rig.run("--plates", "6").status == 0
    other_bits_are_found(rig)
    bad = other_model(rig.folder, "model-bad", 0.0)
    model, recipe = app_of_model, app_of_recipe
    with running_journal(rig):
        review_by_truth(rig)
        samples = limit_samples(rig)
        said = ("--recipe", "small", "--who", "ann", "--reason", "because")
        early = here(model, rig, "promote", str(bad), *said, "--threshold", "0.9")
        assert "judges by the configuration alone" in early.output
        assert here(recipe, rig, "adopt", "--who", "ann", "--reason", "base").exit_code == 0
        assert here(recipe, rig, "approve", "small@2", "--who", "bob").exit_code == 0, "same model"
        configuration = load_configuration(str(rig.folder / "station.toml"))
        submitted(rig, activation_of("test-1", Desk.at(configuration).known.of("small@2")))
        damaged = rig.folder / "model-damaged"
        shutil.copytree(models[1], damaged)
        data = bytearray((damaged / "model.onnx").read_bytes())
        data[-9] ^= 1
        (damaged / "model.onnx").write_bytes(data)
        card = (damaged / "card.json").read_text().replace("model-b", "model-damaged")
        (damaged / "card.json").write_text(card)
        refused = here(model, rig, "promote", str(damaged), *said, "--threshold", "0.9")
        assert (refused.exit_code, "is not the card's" in refused.output) == (1, True)

        planted = here(model, rig, "promote", str(bad), *said, "--threshold", "0.9")
        assert planted.exit_code == 0, planted.output
        assert planted.output.count("MISSING: nothing measured yet") == 3
        approved = here(recipe, rig, "approve", "small@3", "--who", "bob")
        assert (approved.exit_code, "nothing measured" in approved.output) == (1, True)
        gated = here(model, rig, "gate", "small@3", "--samples", str(samples), "--who", "qa")
        assert gated.exit_code == 1
        assert "escape, which the judging model does not" in gated.output
        assert re.search(r"is PASS [0-9.]+, not FAIL", gated.output)
        version = Desk.at(configuration).known.of("small@3")
        with pytest.raises(AssertionError, match=r"small@3: limit_samples.*escape, which"):
            submitted(rig, approved_change("test-1", version, "bob", ""))

        good = here(model, rig, "promote", str(models[0]), *said, "--plates", "200", "--json")
        assert good.exit_code == 0, good.output
        chosen = json.loads(good.output.splitlines()[-1])
        assert "false-reject target 1.00%" in chosen["chosen_by"]
        name = chosen["recipe"]
        gated = here(model, rig, "gate", name, "--samples", str(samples), "--who", "qa", "--json")
        assert gated.exit_code == 0, gated.output
        assert here(model, rig, "evidence", name).exit_code == 0
        assert here(recipe, rig, "approve", name, "--who", "bob").exit_code == 0
        asked = Desk.at(configuration).load(name).value.model
        assert (asked.id, asked.threshold) == ("model-a", float(chosen["threshold"]))
    whats = Counter(row["what"] for row in rig.rows("change"))
    assert (whats["model_gate"], whats["model_threshold"], whats["recipe_approved"]) == (6, 2, 2)


def test_a_promoted_model_takes_no_limit_of_the_one_before(
    rig: Rig, models: tuple[Path, Path]
) -> None:
    """The doubt of a model that knows good plates only would let another one pass more."""
    rig.recipe_lines = "unsure_above = 0.4\n" + rig.recipe_lines
    configuration = load_configuration(str(rig.write()))
    with running_journal(rig):
        base = ("--who", "ann", "--reason", "base")
        assert here(app_of_recipe, rig, "adopt", *base).exit_code == 0
        assert here(app_of_recipe, rig, "approve", "small@2", "--who", "bob").exit_code == 0
        submitted(rig, activation_of("test-1", Desk.at(configuration).known.of("small@2")))
        assert Desk.at(configuration).active().value.model.unsure_above == 0.4
        said = ("--recipe", "small", *base, "--threshold", "0.9")
        promoted = here(app_of_model, rig, "promote", str(models[0]), *said)
        assert promoted.exit_code == 0, promoted.output
        asked = Desk.at(configuration).load("small@3").value.model
    assert (asked.id, asked.threshold, asked.unsure_above) == ("model-a", 0.9, None)


# --- a running line -------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, camera={"line_rate_hz": 2000.0})
    rig.recipe_lines = "[keep]\npass_whole_share = 1.0\n"
    return rig


def command(rig: Rig, *words: str) -> Any:
    return vqi(*words, "--config", str(rig.folder / "station.toml"), timeout_s=240.0)


def drafted(desk: Desk, model: Path, **update: object) -> Recipe:
    card = read_card(model)
    draft = desk.draft(desk.active())
    said = {"id": card.id, "folder": str(model), "sha256": card.sha256, "threshold": 0.9, **update}
    return draft.model_copy(update={"model": draft.model.model_copy(update=said)})


def proposed(rig: Rig, model: Path, **update: object) -> str:
    """The next version of what judges, with another model; proposed and approved."""
    configuration = load_configuration(str(rig.folder / "station.toml"))
    desk = Desk.at(configuration)
    draft = drafted(desk, model, **update)
    row = desk.propose_changed(draft, "ann", "another model")
    submitted(rig, row)
    name = f"small@{draft.version}"
    submitted(rig, Desk.at(configuration).approve(name, "bob", "seen"))
    return name


def activated(rig: Rig, model: Path) -> str:
    name = proposed(rig, model)
    assert send_command(rig.runtime, "recipe", name)["ok"]
    version = int(name.partition("@")[2])
    wait_until(lambda: rig.status()["recipe"]["version"] == version, 60.0, name)
    return name


def plates(rig: Rig, more: int) -> None:
    """Wait until so many more plates have their record."""
    before = rig.status()["plates"]
    wait_until(lambda: rig.status().get("plates", 0) >= before + more, 40.0, f"{more} plates")


def test_a_model_is_taken_up_and_gone_back_from_while_plates_pass(
    rig: Rig, models: tuple[Path, Path]
) -> None:
    first, second = models
    with rig.running():
        pid = rig.status()["pid"]
        a = activated(rig, first)
        plates(rig, 2)
        b = activated(rig, second)
        plates(rig, 2)
        assert send_command(rig.runtime, "rollback", "small@3 for nothing")["error"], "it is active"
        done = command(rig, "model", "rollback", "--who", "eve", "--reason", "scratches", "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["recipe"], said["from"], said["parity"]["result"]) == (a, b, "equal")
        assert int(said["parity"]["plates"]) > 0
        forward = send_command(rig.runtime, "rollback", f"{b} once more")
        assert forward["ok"], "held against the log by the journal process"
        wait_until(lambda: bool(rig.status()["recipe_switch"]["problem"]), 30.0, "a refusal")
        assert "nothing judged before it" in rig.status()["recipe_switch"]["problem"]
        plates(rig, 2)
        status = rig.status()
        assert (status["pid"], status["ready"], status["recipe"]["version"]) == (pid, True, 2)
    results = rig.rows("result")
    assert [row["reason"] for row in results[:-1] if row["verdict"] == "UNDECIDED"] == []
    shas = [read_card(folder).sha256 for folder in (SHIPPED, first, second)]
    seen = [row["model_sha256"] for row in results]
    runs = [sha for place, sha in enumerate(seen) if place == 0 or seen[place - 1] != sha]
    assert runs == [shas[0], shas[1], shas[2], shas[1]]
    assert {(row["recipe_version"], row["model_sha256"]) for row in results} == {
        (1, shas[0]),
        (2, shas[1]),
        (3, shas[2]),
    }
    check_conservation(rig)
    judged_as_recorded(rig, dict(zip(shas, (SHIPPED, first, second), strict=True)))
    whats = Counter(row["what"] for row in rig.rows("change"))
    assert (whats["start"], whats["recipe_activated"], whats["model_parity"]) == (1, 3, 1)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
