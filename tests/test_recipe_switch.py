"""A recipe that is taken up: what the station's main thread shows, keeps and writes meanwhile. No
process runs; a feed that was told to end has ended."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from station_rig import Rig

from drivers.stacklight import LightState
from station import parity_aside, recipe_switch
from station.actuation import Committed
from station.config import load_configuration, load_recipe
from station.feed import FeedCounts, FeedEnded
from station.judge import Judge, LoadedJudge
from station.model_signatures import SignedModel, UnsignedModel
from station.pipeline import Options, ParityChecked, Station
from station.recipe_switch import RecipeChecked
from station.recipes import Named, RecipeFolder, Switch, settle_start
from station.recipes import is_rollback as is_rollback_row
from station.record import ChangeBody, Provenance, Verdict
from station.state import Commissioned, StationState, provenance

SIGNED = SignedModel("m", "0" * 64, "1" * 64, ())
CAMERA: Any = SimpleNamespace(
    driver="genicam", vendor="ACME", serial="7", producer_sha256="ab", producer_path="p.cti"
)
"""Of a commissioned line."""
SECOND = Named(id="small", version=2, sha256="0" * 64, who="eve")


class EndedFeed:
    """No scan lines come any more."""

    def __init__(self) -> None:
        self.counts = FeedCounts()
        self.camera_pid = None
        self.is_told = False

    def end_between_plates(self) -> None:
        self.is_told = True

    def start(self) -> None:
        """Nothing comes."""

    stop = look = start


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    rig = Rig(tmp_path)
    loaded = load_configuration(str(rig.write()))
    station = Station(loaded, load_recipe(loaded.value.station.recipe), Options(), said.append)
    parts: Any = station
    parts._context = SimpleNamespace(
        provenance=Provenance.PRODUCTION, camera=CAMERA, shift_at=lambda _: "early"
    )
    parts._drift = SimpleNamespace(save=lambda: None, leave=list, attentions=[])
    parts._drift_log, parts._make_drift = None, lambda _: parts._drift
    parts._health = SimpleNamespace(attentions=[])
    parts._commissioned = Commissioned("7", "ab")
    parts._origin = provenance(CAMERA, parts._commissioned, SIGNED)
    parts._feed = EndedFeed()
    station._outbox._gone_at = time.monotonic()
    station._state = StationState.OPERATIONAL
    yield station
    said.clear()


said: list[dict[str, Any]] = []
"""What the stations of this module told whoever watches."""


def wanting(station: Station, is_checked: bool = True) -> None:
    """Somebody wants the second version."""
    station._switch.wanted, station._switch._stage = SECOND, "checking"
    if is_checked:
        station._dispatch(RecipeChecked(SECOND, ""))


def changes(station: Station) -> list[tuple[str, str]]:
    """Change rows, and what they say of a problem."""
    rows = [row for one in station._outbox._unsent for row in one.rows]
    return [
        (row.what, row.detail.get("problem", "")) for row in rows if isinstance(row, ChangeBody)
    ]


def shown(station: Station) -> LightState:
    return station._policy.wanted(time.monotonic_ns())[0]


# --- the light ------------------------------------------------------------------------------------


def test_no_pass_shows_once_the_feed_has_ended_for_a_switch(station: Station) -> None:
    wanting(station)
    assert shown(station) is not LightState.FAULT, "the plate on the belt is judged as ever"
    station._dispatch(FeedEnded())
    assert shown(station) is LightState.FAULT
    last = Committed("a-1", 1, Verdict.PASS, is_production=True, is_late=False)
    station._actuation.committed(last, time.monotonic_ns())
    assert shown(station) is LightState.FAULT, "a plate may come that nobody sees"
    assert "restart" in said[-1]


# --- a person's halt ------------------------------------------------------------------------------


def said_to(station: Station, op: str, text: str = "") -> dict[str, Any]:
    return station._control_command(op, "eve", "", text)


@pytest.mark.parametrize("op", ["halt", "resume", "ack", "recipe", "light", "output", "lot"])
def test_a_station_that_is_ending_takes_no_command(station: Station, op: str) -> None:
    wanting(station)
    station._dispatch(FeedEnded())
    answer = said_to(station, op)
    assert not answer["ok"]
    assert "is ending" in answer["error"]
    assert said_to(station, "look")["ok"]


def test_a_halt_before_the_recipe_is_taken_up_is_kept(station: Station) -> None:
    wanting(station)
    assert said_to(station, "halt")["state"] == "HALTED"
    station._dispatch(FeedEnded())
    switch = RecipeFolder.of(station._settings).switch
    assert switch is not None
    assert switch.is_halted


@pytest.mark.parametrize("is_halted_before", [False, True])
def test_a_halt_before_the_log_took_the_start_holds(
    station: Station, is_halted_before: bool
) -> None:
    folder = RecipeFolder.of(station._settings)
    folder.ask(SECOND, is_halted=is_halted_before)
    station._state, station._starts_halted = StationState.PREOPERATIONAL, is_halted_before
    assert said_to(station, "halt")["state"] == "HALTED"
    assert folder.switch is not None
    assert folder.switch.is_halted, "also if this start fails"
    station._on_started()
    assert station._state is StationState.HALTED
    assert shown(station) is LightState.FAULT


def test_a_resume_before_the_log_took_the_start_judges_no_plate_before_it(
    station: Station,
) -> None:
    RecipeFolder.of(station._settings).ask(SECOND, is_halted=True)
    station._state, station._starts_halted = StationState.PREOPERATIONAL, True
    said_to(station, "halt")
    assert said_to(station, "resume")["state"] == "PREOPERATIONAL"
    station._on_started()
    assert station._state is StationState.OPERATIONAL


# --- a station that ends for another reason -------------------------------------------------------


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_station_that_is_told_to_end_takes_no_recipe_up(
    station: Station, is_checked: bool
) -> None:
    """The feed says that it ended while it is stopped; the check may end then, too."""
    wanting(station, is_checked)
    if not is_checked:
        station._post(RecipeChecked(SECOND, ""))
    station._post(FeedEnded())
    station._end_now("SIGTERM")
    assert RecipeFolder.of(station._settings).switch is None, "a later start is as before"
    assert not any("restart" in event for event in said)
    refused = [problem for what, problem in changes(station) if what == "recipe_refused"]
    assert refused == ["the station ended first: SIGTERM"]
    station._dispatch(RecipeChecked(SECOND, "it cannot judge"))
    assert len([what for what, _ in changes(station) if what == "recipe_refused"]) == 1


def test_a_recipe_that_is_taken_up_is_not_refused_too(station: Station) -> None:
    wanting(station)
    station._dispatch(FeedEnded())
    station._end_now("SIGTERM")
    assert RecipeFolder.of(station._settings).switch is not None
    assert [what for what, _ in changes(station)] == ["stop"]


# --- the configuration ----------------------------------------------------------------------------


def test_an_activation_takes_no_edited_configuration_up(station: Station) -> None:
    """Nobody asked for that, and nobody approved it."""
    camera: Any = SimpleNamespace(driver="simulated", width=768)
    file = Path(station._configuration.source)
    before = file.read_text()
    for text in (before + "\n# another\n", "[station"):
        file.write_text(text)
        assert str(file) in station._switch.ask("small@2", "eve", camera)
    file.write_text(before)
    assert "small@2" in station._switch.ask("small@2", "eve", camera), "it is not there"
    wanting(station, is_checked=False)
    file.write_text(before + "\n# while it was checked\n")
    station._dispatch(RecipeChecked(SECOND, ""))
    assert not station._switch.is_waiting
    ((what, problem),) = changes(station)
    assert what == "recipe_refused"
    assert "was changed since the station started" in problem


# --- a judge that is taken up hot -----------------------------------------------------------------


class FakeModel:
    """Can be seen to be gone."""

    model_id, model_sha256, runtime, precision = "m", "0" * 64, "none", "fp32"


def judge_of(
    station: Station, version: int, model: Any, vouched: SignedModel | UnsignedModel = SIGNED
) -> LoadedJudge:
    value = station._recipe.value.model_copy(update={"version": version})
    recipe = replace(station._recipe, value=value, sha256=str(version))
    return LoadedJudge(Judge(recipe, model, 0.5, True), "fp32", {}, vouched)


def loaded(
    station: Station,
    is_rollback: bool = False,
    vouched: SignedModel | UnsignedModel = SIGNED,
) -> LoadedJudge:
    """The second version is loaded beside the first, which judges."""
    before, parts = FakeModel(), station._feed
    station._judge = judge_of(station, 1, before).judge
    setattr(parts, "judge", station._judge)  # noqa: B010  the feed of these tests has none
    wanting(station, is_checked=False)
    station._switch._switch = Switch(
        wanted=SECOND, state="hot", is_rollback=is_rollback, reason="scratches"
    )
    tested = judge_of(station, 2, FakeModel(), vouched)
    station._dispatch(RecipeChecked(SECOND, "", tested))
    return tested


def answered(station: Station, what: str, **answer: Any) -> None:
    """The journal process answers the row of this name."""
    item = next(one for one in station._outbox._unsent if one.rows[0].as_json()["what"] == what)
    station._outbox._unsent.remove(item)
    done = item.done if answer.get("ok", True) else item.refused
    assert done is not None
    done(answer)


def test_a_hot_judge_has_the_plates_after_its_row_and_the_old_one_is_freed(
    station: Station,
) -> None:
    tested = loaded(station)
    before = weakref.ref(station._judge.classifier)
    feed: Any = station._feed
    assert feed.judge is not tested.judge, "its row is not durable yet"
    assert not station._not_ready
    assert not feed.is_told, "the feed goes on"
    answered(station, "recipe_activated")
    assert feed.judge is station._judge is tested.judge
    assert (station._switch.status["wanted"], station._not_ready) == ("", [])
    assert before() is None
    assert not any("restart" in event for event in said)


def test_what_the_journal_refuses_leaves_the_judge(station: Station) -> None:
    tested = loaded(station)
    answered(station, "recipe_activated", ok=False, error="small@2: audit: it lets one escape")
    feed: Any = station._feed
    assert feed.judge is station._judge is not tested.judge
    ((what, problem),) = changes(station)
    assert what == "recipe_refused"
    assert "it lets one escape" in problem
    assert station._switch.status["problem"] == problem


@pytest.mark.parametrize("is_rollback", [False, True])
def test_a_production_line_refuses_a_model_that_nobody_signed(
    station: Station, is_rollback: bool
) -> None:
    tested = loaded(station, is_rollback, UnsignedModel("nobody signed b"))
    feed: Any = station._feed
    assert feed.judge is station._judge is not tested.judge
    assert not feed.is_told, "no restart for what is known to be wrong"
    assert not station._not_ready
    ((what, problem),) = changes(station)
    assert (what, problem) == ("recipe_refused", "may not judge production: nobody signed b")


def test_who_vouches_is_said_of_the_judge_that_judges(station: Station) -> None:
    """Nothing is hashed for it once the judge is loaded: its folder need not even be there."""
    parts: Any = station
    parts._origin = provenance(CAMERA, parts._commissioned, UnsignedModel("nobody signed a"))
    loaded(station, vouched=UnsignedModel("nobody signed b"))
    assert tuple(station._origin_words().values()) == ("simulated", "nobody signed a")
    row = next(row for one in station._outbox._unsent for row in one.rows).as_json()
    assert row["detail"]["model_signed_by"] == ""
    answered(station, "recipe_activated")
    assert tuple(station._origin_words().values()) == ("simulated", "nobody signed b")


def test_a_signed_model_begins_production_with_a_restart(station: Station) -> None:
    parts: Any = station
    parts._origin = provenance(CAMERA, parts._commissioned, UnsignedModel("nobody signed a"))
    loaded(station)
    assert parts._feed.is_told
    assert changes(station) == []
    station._dispatch(FeedEnded())
    switch = RecipeFolder.of(station._settings).switch
    assert switch is not None
    assert (switch.wanted, switch.state) == (SECOND, "asked")


@pytest.mark.parametrize(
    "error", [RuntimeError("no more memory"), MemoryError(), KeyError("problem"), OSError("gone")]
)
@pytest.mark.parametrize("part", ["load_judge", "run_aside", "aside", "restart"])
def test_whatever_goes_wrong_as_it_is_loaded_the_next_one_can_be_asked_for(
    station: Station, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    tested = judge_of(station, 2, FakeModel())
    monkeypatch.setattr(recipe_switch, "load_judge", lambda *_: tested)
    name = part if part in ("load_judge", "run_aside") else "subprocess.run"
    monkeypatch.setattr(f"station.recipe_switch.{name}", fails)
    wanting(station, is_checked=False)
    switch = Switch(wanted=SECOND, state="hot", is_rollback=part in ("load_judge", "run_aside"))
    check: tuple[Callable[..., None], tuple[object, ...]]
    check = (station._switch._load, (switch, station._recipe))
    if part == "restart":
        check = (station._switch._check, (SECOND,))
    thread = threading.Thread(target=check[0], args=check[1])
    thread.start()  # one of its own: it changes its priority
    thread.join()
    station._drain_inbox()
    ((what, problem),) = changes(station)
    assert what == "recipe_refused"
    assert "could not be checked" in problem
    assert station._switch.wanted is None


def test_a_roll_back_with_a_restart_stays_one(station: Station) -> None:
    """Up to the row of the next start; neither an edited configuration nor approval or evidence
    keeps it from what judged before."""
    parts: Any = station
    parts._origin = provenance(CAMERA, parts._commissioned, UnsignedModel("nobody signed a"))
    file = Path(station._configuration.source)
    file.write_text(file.read_text() + "\n# another\n")
    loaded(station, is_rollback=True)
    said_to(station, "halt")
    station._dispatch(FeedEnded())
    folder, settings = RecipeFolder.of(station._settings), station._settings
    assert folder.switch is not None
    assert (folder.switch.state, folder.switch.is_halted) == ("asked", True)
    folder.mark(folder.switch, "tried")
    recipe = replace(station._recipe, sha256=SECOND.sha256)
    known = {"active": "1" * 64, "former": SECOND.sha256, "approved": []}
    row = settle_start(settings, recipe, known)
    assert row is not None
    assert is_rollback_row(row.as_json())
    assert row.detail["reason"] == "scratches"


def test_what_is_asked_for_again_is_not_forgotten_with_what_was_refused(station: Station) -> None:
    loaded(station)
    answered(station, "recipe_activated", ok=False, error="no")
    again = loaded(station)
    answered(station, "recipe_refused")
    answered(station, "recipe_activated")
    assert station._judge is again.judge


def test_a_hot_judge_that_is_not_taken_up_is_refused_and_one_that_was_asked_is_kept(
    station: Station,
) -> None:
    loaded(station)
    station._end_now("SIGTERM")
    assert "recipe_refused" not in [what for what, _ in changes(station)], "its row is on its way"
    answered(station, "recipe_activated")
    assert station._judge.recipe.value.version == 2


def test_other_bits_after_a_roll_back_drop_ready_until_another_version_judges(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []
    monkeypatch.setattr(station, "_check_parity", lambda name: checked.append(name == "small@2"))
    loaded(station, is_rollback=True)
    answered(station, "recipe_activated")
    until = time.monotonic() + 5.0
    while not checked and time.monotonic() < until:
        time.sleep(0.001)
    assert checked == [True]
    station._dispatch(ParityChecked({"result": "equal", "recipe": "small@2"}))
    assert not station._not_ready
    problem = "small@2 does not score as it did"
    station._dispatch(ParityChecked({"result": "differs", "recipe": "small@2", "problem": problem}))
    assert station._not_ready == [f"parity: {problem}"]
    assert station._state is StationState.OPERATIONAL, "plates that come are judged and recorded"
    assert [what for what, _ in changes(station)].count("model_parity") == 2
    station._dispatch(ParityChecked({"result": "nothing to compare", "recipe": "small@2"}))
    assert station._not_ready == [f"parity: {problem}"], "it says nothing of what differed"
    station._dispatch(ParityChecked({"result": "equal", "recipe": "small@2"}))
    assert not station._not_ready
    station._dispatch(ParityChecked({"result": "differs", "recipe": "small@2", "problem": problem}))
    loaded(station)
    answered(station, "recipe_activated")
    assert not station._not_ready


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "not done after 0.5 s"),
        ("echo '{}'; echo broken >&2", "broken"),
        ("echo '[1]'; exit 3", "exit status 3"),
        ('echo \'{"result": "equal", "recipe": "small@7"}\'', "of 'small@7'"),
        ('echo \'{"result": "fine", "recipe": "small@2"}\'', "'fine'"),
        ('echo \'{"result": "equal", "recipe": "small@2", "plates": 8}\'', "exit status 0"),
        ("", "no process for it"),
    ],
)
def test_a_parity_check_that_fails_drops_ready(
    station: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    """Real processes in the place of `vqi model parity`."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755 if script else 0o644)
    monkeypatch.setattr(parity_aside, "tied", lambda _: [str(program)])
    monkeypatch.setattr(parity_aside.parity_aside, "__defaults__", (0.5,))
    station._judge = judge_of(station, 2, FakeModel()).judge
    station._check_parity("small@2")
    station._drain_inbox()
    (problem,) = station._not_ready
    assert "stored plates could not be judged again" in problem
    assert words in problem
    ((what, detail),) = changes(station)
    assert (what, f"parity: {detail}") == ("model_parity", problem)
