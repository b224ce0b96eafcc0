"""Recipes: two people, files that never change, and a station that takes one up between plates."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from station_rig import Rig, vqi, wait_until

from models.card import read_card
from models.registry import shipped_model
from station.config import (
    ConfigError,
    Loaded,
    Recipe,
    load_configuration,
    load_recipe,
    parse_recipe,
)
from station.control import send_command
from station.journal_client import JournalClient
from station.log_reader import Reader
from station.log_verify import verify
from station.recipe_desk import Desk, is_claimed_by_one_account
from station.recipe_form import (
    NotARecipe,
    as_toml,
    differences,
    fields,
    flat,
    read_form,
    written,
)
from station.recipes import (
    ACTIVATED,
    APPROVED,
    PROPOSED,
    Named,
    RecipeError,
    RecipeFolder,
    Register,
    Switch,
    approved_change,
    give_up,
    next_recipe,
    objection,
    register,
    settle_start,
    starting_recipe,
)
from station.record import ChangeBody
from station.reviews import person

Json = dict[str, Any]
PEOPLE = ("ann", "Ann ", "bob", "eve")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def loaded(rig: Rig) -> Any:
    return load_configuration(str(rig.write()))


def changed(rig: Rig, version: int, **plate: object) -> str:
    """The rig's recipe as a later version, with other keys of its plate."""
    recipe = load_recipe(str(rig.folder / "recipe.toml")).value
    update = {"version": version, "plate": recipe.plate.model_copy(update=plate)}
    return as_toml(recipe.model_copy(update=update))


def change(what: str, who: str, name: str, text: str, reason: str = "because") -> Json:
    id, _, version = name.partition("@")
    text = f'id = "{id}"\nversion = {version}\nproduct = "{text}"\n'
    text += f'[model]\nsha256 = "{64 * "0"}"\nthreshold = 0.5\n'
    detail = {"id": id, "version": version, "reason": reason, "toml": text}
    detail["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return ChangeBody(station_id="s", what=what, who=who, detail=detail).as_json()


# --- the rules -----------------------------------------------------------------------------------

steps = st.tuples(
    st.sampled_from((PROPOSED, APPROVED, ACTIVATED)),
    st.sampled_from([who.strip() for who in PEOPLE]),
    st.sampled_from(("a@1", "a@2", "b@1")),
    st.sampled_from(("text", "other")),
)


@given(st.lists(steps, max_size=30))
def test_nothing_is_active_that_two_people_did_not_want(rows: list[tuple[str, ...]]) -> None:
    """Whatever rows come, in whatever order: the rules are held against a plain account of them."""
    known = Register()
    done: list[Json] = []
    for what, who, name, text in rows:
        row = change(what, who, name, text)
        if not objection(known, row):
            done.append(row)
            known = register(done)
    assert known.strange == ()
    for name, version in known.versions.items():
        mine = [row for row in done if name == f"{row['detail']['id']}@{row['detail']['version']}"]
        assert {row["detail"]["sha256"] for row in mine} == {version.sha256}, "it changed"
        if version.approved is not None:
            assert person(version.approved.who) != person(version.proposed.who)
        if version.activated is not None:
            assert version.approved is not None
    activated = [row for row in done if row["what"] == ACTIVATED]
    assert known.active_sha256 == (activated[-1]["detail"]["sha256"] if activated else "")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(PROPOSED, "ann", "a@1"), (APPROVED, "ann", "a@1")], "another person"),
        ([(PROPOSED, "ann", "a@1"), (APPROVED, "ANN", "a@1")], "another person"),
        ([(PROPOSED, "ann", "a@1"), (APPROVED, "ann.", "a@1")], "another person"),
        ([(PROPOSED, "ann", "a@1"), (PROPOSED, "bob", "a@1")], "the next number"),
        ([(PROPOSED, "ann", "a@2"), (PROPOSED, "bob", "a@1")], "the next version of a is 3"),
        ([(APPROVED, "bob", "a@1")], "nobody proposed it"),
        ([(PROPOSED, "ann", "a@1"), (ACTIVATED, "bob", "a@1")], "nobody has approved"),
        ([(PROPOSED, "", "a@1")], "no name"),
    ],
)
def test_what_may_not_follow_is_said(rows: list[tuple[str, str, str]], said: str) -> None:
    bodies = [change(what, who, name, "text") for what, who, name in rows]
    assert said in objection(register(bodies[:-1]), bodies[-1])
    assert said in register(bodies).strange[-1]


def test_a_proposal_says_why_and_is_what_its_sum_says() -> None:
    assert "says why" in objection(Register(), change(PROPOSED, "ann", "a@1", "text", reason=""))
    row = change(PROPOSED, "ann", "a@1", "text")
    row["detail"]["toml"] = "another"
    assert "not the one of its sha256" in objection(Register(), row)


@pytest.mark.parametrize(
    ("accounts", "is_claimed"),
    [(("root", "root"), True), (("root", "vqi-page"), False), (("vqi-page", "vqi-page"), False)],
)
def test_two_names_that_one_account_gave_are_marked(
    accounts: tuple[str, str], is_claimed: bool
) -> None:
    rows = [change(PROPOSED, "ann", "a@1", "text"), change(APPROVED, "bob", "a@1", "text")]
    for row, account in zip(rows, accounts, strict=True):
        row["account"] = account
    version = register(rows).of("a@1")
    assert version.proposed.account == accounts[0]
    assert is_claimed_by_one_account(version) == is_claimed


@pytest.mark.parametrize("key", ["sha256", "threshold"])
def test_what_leaves_the_model_open_is_not_approved(key: str) -> None:
    row = change(PROPOSED, "ann", "a@1", "text")
    text = "\n".join(one for one in row["detail"]["toml"].splitlines() if key not in one)
    row["detail"] |= {"toml": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    known = register([row])
    approval = approved_change("s", known.of("a@1"), "bob", "").as_json()
    assert f"model.{key}" in objection(known, approval)


def test_a_proposal_that_comes_again_changes_no_text(tmp_path: Path) -> None:
    row = change(PROPOSED, "ann", "a@1", "text")
    known, folder = register([row]), RecipeFolder(tmp_path)
    folder.keep_proposed(ChangeBody.model_validate(row), Register())
    assert not objection(known, row)
    other = change(PROPOSED, "ann", "a@1", "another")["detail"]["toml"]
    again = {**row, "detail": {**row["detail"], "toml": other}}
    assert "not the one of its sha256" in objection(known, again)
    folder.keep_proposed(ChangeBody.model_validate(again), known)
    assert folder.file("a@1").read_text() == row["detail"]["toml"]


@pytest.mark.parametrize(
    ("id", "version", "text"),
    [
        ("X Y/..", "1", 'id = "X Y/.."\nversion = 1\n'),
        ("a", " 1", 'id = "a"\nversion = 1\n'),
        ("a", "1", 'id = "b"\nversion = 1\n'),
        ("a", "1", 'id = "a"\nversion = 2\n'),
        ("a", "1", "no toml"),
        ("a", "1", "a = " + 100_000 * "["),
    ],
)
def test_a_proposal_is_of_the_version_that_it_names(id: str, version: str, text: str) -> None:
    detail = {"id": id, "version": version, "reason": "because", "toml": text}
    detail["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    row = ChangeBody(station_id="s", what=PROPOSED, who="ann", detail=detail).as_json()
    assert objection(Register(), row)


# --- a recipe key by key -------------------------------------------------------------------------


def test_every_key_has_a_meaning_and_comes_back_from_form_and_file() -> None:
    recipe = load_recipe("shipped:demo-lgp").value
    assert [one.key for one in fields() if not one.meaning] == []
    texts = {one.key: written(one.kind, flat(recipe)[one.key]) for one in fields()}
    assert read_form(texts) == recipe
    assert parse_recipe(as_toml(recipe).encode(), "text").value == recipe


def test_what_nobody_touched_in_a_form_stays_as_it_is() -> None:
    shipped = load_recipe("shipped:demo-lgp").value
    plate = {"width_mm": 100 + 1 / 3, "dot_pitch_mm": 1.5}
    plate |= {"dot_pitch_map": ((0.0, 1.0000000001), (1 / 3, 2.0))}
    base = shipped.model_copy(
        update={
            "plate": shipped.plate.model_copy(update=plate),
            "review": shipped.review.model_copy(update={"kinds": ()}),
        }
    )
    texts = {one.key: written(one.kind, flat(base)[one.key]) for one in fields()}
    assert differences(base, read_form(texts, base)) == []
    sent = {key: text.replace("\n", "\r\n") for key, text in texts.items()}
    changed = read_form(sent | {"plate.width_mm": "90"}, base)
    assert [one.key for one in differences(base, changed)] == ["plate.width_mm"]


def test_a_form_names_the_field_that_is_wrong() -> None:
    recipe = load_recipe("shipped:demo-lgp").value
    texts = {one.key: written(one.kind, flat(recipe)[one.key]) for one in fields()}
    wrong = {"plate.width_mm": "wide", "grid.step_px": "100", "review.reasons": "no sign"}
    with pytest.raises(NotARecipe) as refused:
        read_form(texts | wrong)
    assert {mistake.key for mistake in refused.value.mistakes} == set(wrong)
    with pytest.raises(NotARecipe, match="no such key"):
        read_form(texts | {"plate.colour": "red"})
    changed = read_form(texts | {"plate.tolerance_mm": "2,5"})
    assert [(d.key, d.before, d.after) for d in differences(recipe, changed)] == [
        ("plate.tolerance_mm", 3.0, 2.5)
    ]


# --- the folder, and a start ---------------------------------------------------------------------


@pytest.fixture
def stocked(rig: Rig) -> tuple[Any, list[Json]]:
    """A configuration, and rows by which small@2 is approved and small@3 is proposed."""
    configuration = loaded(rig)
    rows: list[Json] = []
    for version in (2, 3):
        desk = Desk(configuration, register(rows))
        text = changed(rig, version, tolerance_mm=float(version))
        row = desk.propose(text, "ann", "because")
        desk.folder.keep_proposed(row, desk.known)
        rows.append(row.as_json())
    desk = Desk(configuration, register(rows))
    rows.append(desk.approve("small@2", "bob", "").as_json())
    return configuration, rows


def test_a_proposal_binds_the_model_of_the_day(rig: Rig) -> None:
    configuration = loaded(rig)
    desk = Desk(configuration, Register())
    model = load_recipe(str(rig.folder / "recipe.toml")).value.model
    assert (model.sha256, model.threshold) == (None, None)
    row = desk.propose(changed(rig, 2), "ann", "because")
    bound = parse_recipe(row.detail["toml"].encode(), "row").value.model
    card = read_card(shipped_model(model.id))
    assert (bound.sha256, bound.threshold) == (card.sha256, card.threshold.value)
    assert row.detail["sha256"] == hashlib.sha256(row.detail["toml"].encode()).hexdigest()
    other = row.detail["toml"].replace(card.sha256, 64 * "0")
    with pytest.raises(RecipeError, match="holds another model"):
        desk.propose(other, "ann", "because")


def wanted(rows: list[Json], name: str, who: str = "eve") -> Named:
    version = register(rows).versions[name]
    return Named(id=version.id, version=version.version, sha256=version.sha256, who=who)


def start(configuration: Any, rows: list[Json]) -> Loaded[Recipe]:
    """What a start of the station does with its recipe, up to its first row."""
    recipe = starting_recipe(configuration.value)
    row = settle_start(configuration.value, recipe, register(rows).brief())
    if row is not None:
        rows.append(row.as_json())
    RecipeFolder.of(configuration.value).forget_switch()
    return recipe


def test_an_activation_survives_every_start(stocked: tuple[Any, list[Json]]) -> None:
    configuration, rows = stocked
    assert start(configuration, rows).value.version == 1
    RecipeFolder.of(configuration.value).ask(wanted(rows, "small@2"))
    assert start(configuration, rows).value.version == 2
    assert rows[-1]["what"] == ACTIVATED
    assert rows[-1]["who"] == "eve"
    count = len(rows)
    assert start(configuration, rows).value.version == 2
    assert len(rows) == count
    assert register(rows).strange == ()


@pytest.mark.parametrize("step", ["asked", "tried", "active file", "row"])
def test_a_death_at_each_step_leaves_the_old_or_the_new_recipe(
    stocked: tuple[Any, list[Json]], step: str
) -> None:
    """A start is left where it dies; the next one settles it, and log and folder agree."""
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    folder.ask(wanted(rows, "small@2"))
    if step != "asked":
        recipe = starting_recipe(configuration.value)
        if step != "tried":
            row = settle_start(configuration.value, recipe, register(rows).brief())
            assert row is not None
            rows += [row.as_json()] if step == "row" else []
    expected = 1 if step == "tried" else 2
    assert start(configuration, rows).value.version == expected
    said = rows[-1]
    if step == "tried":
        assert said["what"] == "recipe_refused"
        assert "ended while it loaded it" in said["detail"]["problem"]
    assert start(configuration, rows).value.version == expected
    assert register(rows).strange == ()


def test_a_version_that_cannot_start_gives_way_once(stocked: tuple[Any, list[Json]]) -> None:
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    assert not give_up(configuration.value, "nothing was asked for")
    folder.ask(wanted(rows, "small@3"), is_halted=True)
    recipe = starting_recipe(configuration.value)
    with pytest.raises(ConfigError, match="no row of the log approves it"):
        settle_start(configuration.value, recipe, register(rows).brief())
    assert give_up(configuration.value, "not approved")
    switch = folder.switch
    assert switch is not None
    assert switch.is_halted, "a halted station stays so"
    assert start(configuration, rows).value.version == 1
    assert rows[-1]["detail"] == {"recipe": "small@3", "problem": "not approved"}


@pytest.mark.parametrize(
    ("who", "reason", "said"),
    [
        ("eve ", "scratches", "the person begins or ends with a blank"),
        ("eve\u00a0", "scratches", "the person is no name"),
        ("eve", "scratches\nagain", "not seen"),
    ],
)
def test_what_no_row_can_say_gives_way_once(
    stocked: tuple[Any, list[Json]], who: str, reason: str, said: str
) -> None:
    """The log would refuse the row of what judges by then, at this start and at each after it."""
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    folder.keep_switch(Switch(wanted=wanted(rows, "small@2", who), reason=reason))
    recipe = starting_recipe(configuration.value)
    with pytest.raises(ConfigError, match=said):
        settle_start(configuration.value, recipe, register(rows).brief())
    assert folder.active is None
    assert give_up(configuration.value, said)
    assert start(configuration, rows).value.version == 1
    assert rows[-1]["detail"] == {"recipe": "small@2", "problem": said}


def test_what_was_changed_by_hand_is_named_and_judges_nothing(
    stocked: tuple[Any, list[Json]],
) -> None:
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    folder.ask(wanted(rows, "small@2"))
    start(configuration, rows)
    assert folder.findings(register(rows)) == []
    path = folder.file("small@2")
    good = path.read_text()
    path.chmod(0o644)
    path.write_text(good.replace("tolerance_mm = 2.0", "tolerance_mm = 9.0"))
    (folder.path / "mine@1.toml").write_text(good)
    folder.file("small@3").unlink()
    problems = {found.file: found.problem for found in folder.findings(register(rows))}
    assert problems.keys() == {"small@2.toml", "small@3.toml", "mine@1.toml"}
    assert "changed by hand" in problems["small@2.toml"]
    with pytest.raises(ConfigError, match="changed since it was proposed"):
        starting_recipe(configuration.value)
    with pytest.raises(RecipeError, match="no such version"):
        Desk(configuration, register(rows)).may_be_activated("mine@1")


def test_an_active_file_that_no_activation_named_is_refused(
    stocked: tuple[Any, list[Json]],
) -> None:
    """By hand on to an approved version, back to the configured one, or with an older log."""
    configuration, rows = stocked
    folder = RecipeFolder.of(configuration.value)
    folder.activate(wanted(rows, "small@2"))
    with pytest.raises(ConfigError, match="not what was activated last"):
        start(configuration, rows)
    folder.ask(wanted(rows, "small@2"))
    assert start(configuration, rows).value.version == 2
    (folder.path / "active.json").unlink()
    with pytest.raises(ConfigError, match="not what was activated last"):
        start(configuration, rows)
    (folder.path / "active.json").write_text("{")
    with pytest.raises(ConfigError, match="vqi recipe activate"):
        start(configuration, rows)
    folder.ask(wanted(rows, "small@2"))
    assert next_recipe(configuration.value).value.version == 2
    assert start(configuration, rows).value.version == 2, "done as it says"


# --- the command, and a running station ----------------------------------------------------------


def submitted(rig: Rig, row: ChangeBody) -> None:
    journal = JournalClient(rig.runtime)
    journal.connect(5.0)
    try:
        answer = journal.submit([row])
    finally:
        journal.close()
    assert answer["ok"], answer


def approve_next(rig: Rig, version: int, **plate: object) -> None:
    """Through the journal process that runs."""
    configuration = load_configuration(str(rig.folder / "station.toml"))
    text = changed(rig, version, **plate)
    submitted(rig, Desk.at(configuration).propose(text, "ann", "because"))
    itself = Desk.at(configuration).known.of(f"small@{version}")
    with pytest.raises(AssertionError, match="another person"):
        submitted(rig, approved_change("test-1", itself, "Ann", ""))
    submitted(rig, Desk.at(configuration).approve(f"small@{version}", "bob", ""))


def whole_under_each_recipe(rig: Rig) -> None:
    """Of a run in which version 2 was taken up: no plate is lost or judged under a mixture."""
    results = rig.rows("result")
    versions = [row["recipe_version"] for row in results]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert len({row["recipe_sha256"] for row in results}) == 2
    assert "interrupted" not in [row["reason"] for row in results[:-1]]
    acted = Counter(row["result_id"] for row in rig.rows("actuation"))
    assert acted == Counter(row["result_id"] for row in results)
    assert {row["result_id"] for row in rig.rows("opened")} == set(acted)
    whats = [row["what"] for row in rig.rows("change")]
    assert (whats.count("start"), whats.count("recipe_activated")) == (2, 1)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


@pytest.mark.long
def test_what_cannot_judge_changes_nothing(rig: Rig) -> None:
    """A version whose file was changed is asked for, then one that is whole, while plates run."""
    rig.camera = {"line_rate_hz": 1500.0}
    with rig.running():
        approve_next(rig, 2, tolerance_mm=4.0)
        approve_next(rig, 3, tolerance_mm=5.0)
        broken = RecipeFolder(rig.journal / "recipes").file("small@3")
        broken.chmod(0o644)
        broken.write_text(broken.read_text() + "\n")
        assert send_command(rig.runtime, "recipe", "small@3")["ok"], "it is checked aside"
        wait_until(lambda: bool(rig.status()["recipe_switch"]["problem"]), 60.0, "a refusal")
        assert "changed since it was proposed" in rig.status()["recipe_switch"]["problem"]
        assert rig.status()["recipe"]["version"] == 1
        assert send_command(rig.runtime, "recipe", "small@2", who="eve")["ok"]
        wait_until(lambda: rig.status().get("recipe", {}).get("version") == 2, 60.0, "the new one")
        wait_until(lambda: rig.status().get("plates", 0) > 1, 30.0, "plates under the new recipe")
    whole_under_each_recipe(rig)
    rows = [(row["what"], row["who"]) for row in rig.rows("change")]
    assert ("recipe_activated", "eve") in rows
    assert "recipe_refused" in [what for what, _ in rows]


@pytest.mark.long
def test_the_command_takes_a_recipe_from_a_file_to_the_belt(rig: Rig) -> None:
    """Also of a halted station, which stays so, and of one that does not run."""

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return vqi("recipe", *words, "--config", str(rig.folder / "station.toml"))

    rig.write()
    for version in (2, 3):
        file = rig.folder / "next.toml"
        file.write_text(changed(rig, version, tolerance_mm=float(version)))
        assert command("propose", str(file), "--who", "ann", "--reason", "why").returncode == 0
        assert "another person" in command("approve", f"small@{version}", "--who", "Ann").stderr
        assert "nobody has approved it" in command("activate", f"small@{version}").stderr
        assert command("approve", f"small@{version}", "--who", "bob").returncode == 0
    assert command("check", "small@2").returncode == 0
    assert command("activate", "small@2").returncode == 0
    with rig.running():
        assert rig.status()["recipe"]["version"] == 2
        assert send_command(rig.runtime, "halt")["ok"]
        done = command("activate", "small@3")
        assert done.returncode == 0, done.stderr
        assert (rig.status()["recipe"]["version"], rig.status()["state"]) == (3, "HALTED")
        rows = [json.loads(line) for line in command("list", "--json").stdout.splitlines()]
    assert [(row["recipe"], row["state"]) for row in rows] == [
        ("small@2", "approved"),
        ("small@3", "active"),
    ]
    assert "tolerance_mm" in command("diff", "small@2", "small@3").stdout
    assert "3" in command("show", "small@3").stdout
