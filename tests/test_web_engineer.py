"""The engineer's pages: recipes with approval, health with its cause, lamp and outputs by hand, the
camera's picture, log lines; over a real log, a real journal process and a real station."""

from __future__ import annotations

import io
import re
import selectors
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from second_model import other_model
from test_recipes import submitted, whole_under_each_recipe
from web_rig import PageClient, WebRig, running_journal, until, web_rig

from models.card import read_card
from station.lending import Lending
from station.live_frames import LivePicture
from station.log_reader import Reader
from station.precision import GateRecord, GateSetRecord, write_record
from station.processes import ask_all
from station.recipe_desk import Desk
from station.recipe_form import fields
from station.recipes import PARITY, Finding, Named, RecipeFolder, activation_of, register
from station.record import ChangeBody
from station.roles import Person, Role
from station.state import JUDGED_ALL_THE_SAME
from station.web.camera import _Desk
from station.web.context import Web
from station.web.engineer import _ADVICE
from station.web.live import Live
from station.web.pages import json_path
from station.web.recipes import _problems, _versions
from station.web.texts import Formatter, catalogue

Json = dict[str, Any]
FIRST = "small@1"
PAGES = (
    *("", "/recipes", "/camera", "/lamp", "/log", "/configuration", "/recipes/compare"),
    *(f"/recipes/{FIRST}", f"/recipes/{FIRST}/edit"),
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("engineer")) as rig, running_journal(rig.station):
        yield rig


@pytest.fixture
def ann(rig: WebRig) -> PageClient:
    return rig.client_of(Role.ENGINEER, "ann")


@pytest.fixture
def bob(rig: WebRig) -> PageClient:
    return rig.client_of(Role.ENGINEER, "bob")


def proposal(client: PageClient, base: str, **changes: str) -> Json:
    """The form of a page as it is shown, with other values."""
    shown = client.get(f"/engineer/recipes/{base}/edit.json").json()
    values = {one["key"]: one["value"] for one in shown["fields"]}
    return {**values, **changes, "reason": "narrower"}


def propose(client: PageClient, **changes: str) -> str:
    """The next version of what judges; its name."""
    done = client.send_json(
        "/engineer/recipes/active/propose.json", proposal(client, "active", **changes)
    )
    assert done.status_code == 200, done.text
    name: str = done.json()["proposed"]
    return name


def test_every_page_is_shown_in_every_language_and_as_json(rig: WebRig, ann: PageClient) -> None:
    for page in PAGES:
        for language in ("en", "de", "zh"):
            headers = {"accept-language": language}
            shown = ann.get(f"/engineer{page}", headers=headers, follow_redirects=True)
            assert shown.status_code == 200, (page, shown.text)
        twin = ann.get(json_path(f"/engineer{page}"))
        assert twin.status_code == 200, (page, twin.text)
        assert twin.json()
    viewer = rig.client()
    assert viewer.get("/engineer").status_code == 200
    assert viewer.get("/engineer/log.json").status_code == 401


def test_every_key_of_a_recipe_has_its_meaning_in_three_languages() -> None:
    texts = catalogue()
    keys = {f"recipe_keys.{one.key.replace('.', '_')}" for one in fields()}
    assert keys == {key for key in texts if key.startswith("recipe_keys.")}
    assert all(texts[key].keys() == {"en", "de", "zh"} for key in keys)


# --- recipes --------------------------------------------------------------------------------------


def test_a_form_is_of_the_version_that_it_was_opened_on(tmp_path: Path) -> None:
    """What another person does meanwhile is neither taken back unseen nor built upon."""
    with web_rig(tmp_path, plates=0) as rig, running_journal(rig.station):
        ann, bob = (rig.client_of(Role.ENGINEER, name) for name in ("ann", "bob"))
        shown = ann.get("/engineer/recipes/active/edit.json").json()
        assert (shown["base"], shown["next_version"]) == (FIRST, 2)
        form = ann.get("/engineer/recipes/active/edit").text
        assert f'action="/engineer/recipes/{FIRST}/propose"' in form
        assert 'name="version" value="2"' in form
        address = f"/engineer/recipes/{FIRST}/propose.json"
        hers = proposal(ann, "active", **{"plate.tolerance_mm": "2.5"})
        his = proposal(bob, "active", **{"plate.edge_margin_mm": "2.5"})
        assert bob.send_json(address, his).json()["proposed"] == "small@2"
        refused = ann.send_json(address, hers)
        assert (refused.status_code, refused.json()["key"]) == (409, "engineer.version_taken")
        assert ann.send_json(address, {**hers, "version": "3"}).json()["proposed"] == "small@3"


def test_a_recipe_goes_from_a_form_to_an_approved_version(
    rig: WebRig, ann: PageClient, bob: PageClient
) -> None:
    name = propose(ann, **{"plate.tolerance_mm": "2.5"})
    mine = ann.get(f"/engineer/recipes/{name}.json").json()
    assert (mine["version"]["state"], mine["may_approve"]) == ("proposed", False)
    assert mine["why_not_approve"] == "engineer.own_proposal"
    own = ann.send_json(f"/engineer/recipes/{name}/approve.json", {})
    assert own.status_code == 409
    assert "another person" in own.json()["error"]
    early = ann.send_json(f"/engineer/recipes/{name}/activate.json", {})
    assert "nobody has approved it" in early.json()["error"]
    done = bob.send_form(f"/engineer/recipes/{name}/approve", reason="looks right")
    assert (done.status_code, done.headers["location"]) == (303, f"/engineer/recipes/{name}")
    page = bob.get(f"/engineer/recipes/{name}")
    assert "looks right" in page.text
    assert f"/engineer/recipes/{name}/activate" in page.text
    away = bob.send_json(f"/engineer/recipes/{name}/activate.json", {})
    assert away.status_code == 503, "no station runs"
    query = f"before={FIRST}&after={name}"
    found = bob.get(f"/engineer/recipes/compare.json?{query}").json()["differences"]
    changes = {one["key"]: (one["before"], one["after"]) for one in found}
    assert changes.pop("plate.tolerance_mm") == ("3", "2.5")
    assert set(changes) == {"model.sha256", "model.threshold"}, "bound to the model of that day"
    rows = [row for row in rig.station.rows("change") if row["what"].startswith("recipe")]
    assert [(row["what"], row["who"]) for row in rows] == [
        ("recipe_proposed", "ann"),
        ("recipe_approved", "bob"),
    ]


def test_a_mistake_is_said_at_its_field(ann: PageClient) -> None:
    form = proposal(ann, "active", **{"plate.width_mm": "wide", "grid.step_px": "100"})
    shown = ann.send_form("/engineer/recipes/active/propose", htmx=True, **form)
    assert shown.status_code == 200
    for key in ("plate.width_mm", "grid.step_px"):
        assert re.search(rf'id="m-{re.escape(key)}">[^<]+<', shown.text), key
    assert 'value="wide"' in shown.text, "what was written stays"
    plain = ann.send_form("/engineer/recipes/active/propose", **form)
    assert plain.status_code == 422
    assert "plate.width_mm" in plain.text
    strange = ann.send_json("/engineer/recipes/active/propose.json", {**form, "plate.colour": "x"})
    assert "no such key" in strange.json()["error"]
    lost = ann.send_json("/engineer/recipes/active/propose.json", {**form, "model.id": "none"})
    assert lost.status_code == 422


def test_a_list_of_versions_reads_their_files_once(rig: WebRig, ann: PageClient) -> None:
    for _ in range(3):
        propose(ann)
    looks: list[int] = []

    class Counted(Desk):
        def findings(self) -> list[Finding]:
            looks.append(1)
            return Desk.findings(self)

    desk = Counted.at(rig.web.configuration)
    assert len(_versions(desk, _problems(desk))) > 3
    assert len(looks) == 1


def test_a_file_changed_by_hand_is_named(rig: WebRig, ann: PageClient, bob: PageClient) -> None:
    name = propose(ann, **{"plate.tolerance_mm": "2.25"})
    path = rig.station.journal / "recipes" / f"{name}.toml"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("2.25", "9.5"))
    (path.parent / "mine@7.toml").write_text("id = 1")
    page = ann.get("/engineer/recipes.json").json()
    (row,) = [one for one in page["versions"] if one["recipe"] == name]
    assert "changed by hand" in row["problem"]
    assert any("mine@7" in finding for finding in page["findings"])
    refused = bob.send_json(f"/engineer/recipes/{name}/approve.json", {})
    assert "changed since it was proposed" in refused.json()["error"]


@pytest.mark.parametrize("name", ["nothing@1", "..%2F..%2Fetc%2Fpasswd", "shipped:demo-lgp", "x"])
def test_a_recipe_is_named_never_a_path(ann: PageClient, name: str) -> None:
    assert ann.get(f"/engineer/recipes/{name}.json").status_code == 404


# --- health ---------------------------------------------------------------------------------------


def test_health_names_the_cause_and_what_to_do(rig: WebRig) -> None:
    rig.live.live = Live(
        station={
            "state": "ERROR",
            "ready": False,
            "not_ready": ["the state is ERROR"],
            "problems": {"camera": "no frame for 1 s", "plc": "<b>no answer</b>"},
            "calls": ["<b>no answer</b>", "clean crossweb 412-418 mm"],
            "tick_age_s": 0.1,
        },
        journal={"wal_bytes": 5_000_000, "clock": {"is_synchronized": False, "doubt": ""}},
        is_stale=False,
    )
    try:
        page = rig.client().get("/engineer.json").json()
        text = rig.client().get("/engineer").text
    finally:
        rig.live.live = Live()
    checks = {(one["part"], one["level"]): one for one in page["checks"]}
    assert checks["lamp", "bad"]["advice"] == "engineer.advice_process"
    assert checks["camera", "bad"]["cause"] == "no frame for 1 s"
    assert checks["plc", "attention"]["advice"] == "engineer.advice_plc"
    assert checks["attention", "attention"]["cause"] == "clean crossweb 412-418 mm"
    assert page["log"]["wal_mb"] == 5.0
    assert "&lt;b&gt;no answer" in text
    assert "<b>no answer" not in text


def test_the_lamp_is_not_tried_out_while_a_station_comes_back(rig: WebRig, ann: PageClient) -> None:
    """None answers; plates may run until it is there again."""

    def said(what: str) -> int:
        submitted(rig.station, ChangeBody(station_id="test-1", what=what, who="station", detail={}))
        return ann.send_json("/engineer/light.json", {"what": "test"}).status_code

    assert said("start") == 409
    refused = ann.send_json("/engineer/light.json", {"what": "test"})
    assert "did not end in order" in refused.json()["error"]
    assert said("stop") == 503, "it ended; no lamp process runs here"
    folder = RecipeFolder(rig.station.journal / "recipes")
    folder.ask(Named(id="small", version=2, sha256="0" * 64, who="eve"))
    try:
        assert said("stop") == 409, "a recipe is taken up"
    finally:
        folder.forget_switch()


def test_what_judged_before_is_gone_back_to_in_one_touch(tmp_path: Path) -> None:
    asks = '[promotion]\nevidence = ["shadow"]\n'
    with web_rig(tmp_path) as rig:
        rig.station.recipe_lines = asks
        rig.station.write()
        with running_journal(rig.station):
            ann, bob = (rig.client_of(Role.ENGINEER, name) for name in ("ann", "bob"))
            for threshold in ("0.9", "0.8"):
                name = propose(ann, **{"model.threshold": threshold})
                assert bob.send_form(f"/engineer/recipes/{name}/approve").status_code == 303
                known = register(changes_of(rig))
                assert "rollback" not in ann.get("/engineer/recipes").text
                submitted(rig.station, activation_of("test-1", known.of(name)))
            page = ann.get("/engineer/recipes")
            assert "Back to small@2, from the next plate on" in page.text
            assert "rollback" not in rig.client_of(Role.VIEWER).get("/engineer/recipes").text
            untold = ann.send_json("/engineer/recipes/rollback.json", {"reason": ""})
            assert untold.status_code == 422
            away = ann.send_json("/engineer/recipes/rollback.json", {"reason": "scratches"})
            assert away.status_code == 503, "no station runs"
            goes_back = {"reason": "scratches", "rollback": "yes"}
            row = activation_of("test-1", known.of("small@2"))
            submitted(rig.station, row.model_copy(update={"detail": row.detail | goes_back}))
            said = {"result": "differs", "recipe": "small@2", "problem": "2 of 8 have other bits"}
            submitted(
                rig.station,
                ChangeBody(station_id="test-1", what=PARITY, who="station", detail=said),
            )
            page = ann.get("/engineer/recipes")
            assert "2 of 8 have other bits" in page.text
            assert 'action="/engineer/recipes/rollback"' not in page.text, "nothing judged before"
            name = propose_model(rig, ann, other_model(tmp_path, "model-b"))
            assert (
                "0 plates beside small@2, 200 asked for"
                in ann.get(f"/engineer/recipes/{name}").text
            )
            refused = bob.send_json(f"/engineer/recipes/{name}/approve.json", {})
            assert refused.status_code == 409
            assert "shadow" in refused.json()["error"]


def changes_of(rig: WebRig) -> list[Json]:
    with Reader(rig.station.journal) as reader:
        return reader.recipe_changes()


def propose_model(rig: WebRig, client: PageClient, folder: Path) -> str:
    sha256 = read_card(folder).sha256
    named = {"model.id": folder.name, "model.folder": str(folder), "model.sha256": sha256}
    return propose(client, **named)


def test_what_does_not_answer_or_is_old_is_not_shown_as_good(rig: WebRig) -> None:
    station = {"state": "OPERATIONAL", "ready": True, "problems": {}, "tick_age_s": 0.1}

    def health(**said: Any) -> tuple[Json, dict[str, set[str]]]:
        rig.live.live = Live(station=station, **said)
        page = rig.client().get("/engineer.json").json()
        levels: dict[str, set[str]] = {}
        for one in page["checks"]:
            levels.setdefault(one["part"], set()).add(one["level"])
        return page, levels

    try:
        _, levels = health(is_stale=False)
        assert (levels["lamp"], levels["journal"], levels["camera"]) == ({"bad"}, {"bad"}, {"ok"})
        page, levels = health(journal={}, lamp={}, is_stale=True)
        assert not page["is_ready"]
        assert set().union(*levels.values()) == {"unknown"}
        assert rig.client().get("/engineer").status_code == 200
    finally:
        rig.live.live = Live()


def test_every_part_that_may_have_a_problem_has_its_name_and_advice() -> None:
    """Else Health calls it another fault, and says nothing of what to do."""
    said = {part for file in Path("station").glob("*.py")
            for part in re.findall(r'_set_problem\(\s*"([a-z_]+)"', file.read_text())}  # fmt: skip
    assert said > {"drift", "camera"}
    texts = catalogue()
    assert said | JUDGED_ALL_THE_SAME <= _ADVICE
    for part in _ADVICE:
        assert {f"engineer.part_{part}", f"engineer.advice_{part}"} <= texts.keys(), part


def test_the_gate_shown_is_that_of_the_version_that_judges(rig: WebRig) -> None:
    gate_set = GateSetRecord(
        recipe="", seed=1, plates=1, tiles=1, defective=1, sha256="", is_as_on_card=None, auroc=1.0
    )
    record = GateRecord(
        made_at="2026-03-02T06:00:00.000000Z", command="a test", model_id="m",
        model_sha256="a" * 64, recipe_id="small", recipe_sha256="1" * 64, processor="", limits=(),
        fp32_runtime="", fp32_ms_per_tile=1.0, fp32_threshold=0.5, gate_set=gate_set,
        pixel_pitch_mm=0.1, seed=1, choosing_plates=1, judged_plates=1, limit_samples=0,
        candidates=(),
    )  # fmt: skip
    write_record(rig.web.configuration.value.precision_dir, record, {})

    def gate_at(recipe_sha256: str) -> str | None:
        station = {
            "state": "OPERATIONAL",
            "ready": True,
            "problems": {},
            "tick_age_s": 0.1,
            "recipe": {"id": "small", "version": 1, "sha256": recipe_sha256},
            "model": {"id": "m", "sha256": "a" * 64, "runtime": "", "precision": "fp32"},
        }
        rig.live.live = Live(station=station, is_stale=False)
        shown: str | None = rig.client().get("/engineer.json").json()["model"]["gate_at"]
        return shown

    try:
        assert gate_at("1" * 64) == record.made_at
        assert gate_at("2" * 64) is None
    finally:
        rig.live.live = Live()


def test_health_says_as_of_when_it_is_and_shows_nothing_old_in_green(rig: WebRig) -> None:
    said: Json = {
        "station": {"state": "OPERATIONAL", "ready": True, "problems": {}, "tick_age_s": 0.1},
        "journal": {"clock": {"is_synchronized": True}},
        "lamp": {},
        "at": datetime(2026, 3, 6, 13, 2, 7, tzinfo=UTC).timestamp(),
    }
    at = Formatter("en", rig.web.zone).moment(said["at"])

    def health(is_stale: bool) -> str:
        rig.live.live = Live(**said, is_stale=is_stale)
        page = rig.client().get("/engineer", headers={"accept-language": "en"}).text
        return page.partition('id="health"')[2].partition("</main>")[0]

    try:
        now, old = health(is_stale=False), health(is_stale=True)
    finally:
        rig.live.live = Live()
    assert f"As of {at}" in now
    assert "tag pass" in now
    assert re.search(r"<p [^>]*data-old hidden>These figures are old", now), "the script's words"
    assert 'class="old"' in old
    assert "data-old>These figures are old" in old
    assert "tag pass" not in old


def test_health_shows_a_candidate_in_the_shadow_where_there_is_one(
    rig: WebRig, tmp_path: Path
) -> None:
    """As the station's own part says it."""
    with closing(selectors.DefaultSelector()) as selector:
        lending = Lending(tmp_path, selector)
        for wanted in (None, {"model_id": "model-b", "share": 0.2}):
            lending.wanted = wanted
            rig.live.live = Live(station={"shadow": lending.status}, is_stale=False)
            try:
                page = rig.client().get("/engineer.json").json()
                text = rig.client().get("/engineer", headers={"accept-language": "en"}).text
            finally:
                rig.live.live = Live()
            assert ("A candidate in the shadow" in text) == (wanted is not None)
            assert ("model-b" in text) == (wanted is not None)
            counts = {"lent": 0, "scored": 0, "taken_back": 0, "problem": "", "is_there": False}
            assert page["shadow"] == (wanted and wanted | counts)
        lending.close()


def test_the_camera_page_without_a_picture_says_why_and_is_old(
    rig: WebRig, ann: PageClient
) -> None:
    said = {"station": {"camera": {"overrun_frames": 3}}, "is_stale": False}
    for live, why in ((Live(), "engineer.station_away"), (Live(**said), "engineer.no_picture")):
        rig.live.live = live
        try:
            page = ann.get("/engineer/camera", headers={"accept-language": "en"}).text
            twin = ann.get("/engineer/camera.json").json()
        finally:
            rig.live.live = Live()
        assert re.search(r'<div data-camera [^>]*class="old">', page)
        assert '<div class="notice bad" role="status" data-old>' in page
        shown = dict(re.findall(r'<p data-say="([a-z._]+)"( hidden)?>', page))
        assert {key for key, hidden in shown.items() if not hidden} == {why}
        assert shown.keys() > {"engineer.picture_stale"}, "the script's words"
        assert (twin["why"], twin["picture"]) == (why, None)
        overrun = (live.station or {}).get("camera", {}).get("overrun_frames")
        assert twin["overrun_frames"] == overrun, "unknown is not zero"


def test_a_camera_that_began_anew_shows_its_own_picture() -> None:
    def picture(at_ns: int, level: int) -> LivePicture:
        pixels = np.full((64, 256), level, np.uint8)
        return LivePicture(pixels, 1, at_ns, None, 1, 0, 0)

    desk = _Desk()
    before = desk.seen(picture(1, 20)).jpeg
    assert desk.seen(picture(1, 20)).jpeg is before
    assert desk.seen(picture(2, 200)).jpeg != before


@pytest.mark.parametrize(
    ("state", "refusal"), [("ERROR", "engineer.not_halted"), ("OPERATIONAL", "engineer.plates_run")]
)
def test_the_lamp_is_told_of_in_the_readers_words(
    rig: WebRig, ann: PageClient, state: str, refusal: str
) -> None:
    rig.live.live = Live(
        station={"state": state, "light_confirmation": "read back"},
        lamp={"state": "undecided", "result_id": "s-4", "device": "tower"},
        is_stale=False,
    )
    try:
        assert ann.get("/engineer/lamp.json").json()["refusal"] == refusal
        german = ann.get("/engineer/lamp", headers={"accept-language": "de"}).text
    finally:
        rig.live.live = Live()
    texts = catalogue()
    for key in (f"line.state.{state}", "line.light.undecided", "engineer.confirmed_read_back"):
        assert texts[key]["de"] in german
    assert "Fehlerhaft" in german
    assert f"{state}<" not in german
    assert "read back" not in german


def test_who_acknowledges_on_the_lamps_page_says_which_plate_was_seen(
    rig: WebRig, ann: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The station refuses where another plate is held by now (`tests/test_station.py`)."""
    told: list[tuple[str, str]] = []

    def command(_: Web, op: str, text: str, who: Person) -> Json:
        told.append((op, text))
        return {"ok": True, "state": "OPERATIONAL"}

    monkeypatch.setattr(Web, "command", command)
    try:
        for state, result_id, seen in (
            ("fail", "s-7", "s-7"),
            ("undecided", "s-8", "s-8"),
            ("fail", "", "none"),
            ("pass", "s-9", "none"),
        ):
            rig.live.live = Live(lamp={"state": state, "result_id": result_id}, is_stale=False)
            page = ann.get("/engineer/lamp").text
            form = page.partition('name="op" value="ack"')[2].partition("</form>")[0]
            assert f'name="seen" value="{seen}"' in form
            assert (f'href="/plates/{seen}"' in page) == (seen != "none")
            assert page.count('name="seen"') == 1
            assert ann.get("/engineer/lamp.json").json()["held"] == seen
            sent = {"op": "ack", "seen": seen}
            assert ann.send_form("/engineer/command", **sent).status_code == 303
            assert told.pop() == ("ack", seen)
    finally:
        rig.live.live = Live()
    for op, text in (("halt", ""), ("ack", "none")):
        assert ann.send_json("/engineer/command.json", {"op": op}).status_code == 200
        assert told.pop() == (op, text), "who saw nothing acknowledges nothing that is held"


def test_the_lamps_page_says_as_of_when_it_is_and_shows_no_light_that_is_old(
    rig: WebRig, ann: PageClient
) -> None:
    said: Json = {
        "station": {"state": "OPERATIONAL", "light_confirmation": "read back"},
        "lamp": {"state": "pass", "result_id": "s-4", "device": "tower"},
        "at": datetime(2026, 3, 6, 13, 2, 7, tzinfo=UTC).timestamp(),
    }
    at = Formatter("en", rig.web.zone).moment(said["at"])

    def shown(is_stale: bool) -> str:
        rig.live.live = Live(**said, is_stale=is_stale)
        page = ann.get("/engineer/lamp", headers={"accept-language": "en"}).text
        return page.partition('id="lamp"')[2].partition("</main>")[0]

    try:
        now, old = shown(is_stale=False), shown(is_stale=True)
        twin = ann.get("/engineer/lamp.json").json()
    finally:
        rig.live.live = Live()
    texts = catalogue()
    light, confirmed = texts["line.light.pass"]["en"], texts["engineer.confirmed_read_back"]["en"]
    assert f"As of {at}" in now
    assert f"shows {light} (tower)" in now
    assert confirmed in now
    assert re.search(r"<p [^>]*data-old hidden>These figures are old", now), "the script's words"
    assert 'class="old"' in old
    assert f"data-old>These figures are old: the station was heard last on {at}" in old
    assert f"shows {light}" not in old
    assert confirmed not in old
    assert (twin["is_stale"], twin["state"], twin["shown"]) == (True, "", "")


CHROMIUM = shutil.which("chromium")


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_lamps_page_is_renewed_and_old_where_nobody_renews_it(
    rig: WebRig, ann: PageClient
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here: no playwright")

    def held(result_id: str) -> Live:
        light = {"state": "fail", "result_id": result_id}
        return Live(station={"state": "OPERATIONAL"}, lamp=light, is_stale=False)

    rig.live.live = held("s-7")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            cookie = {"name": "given", "value": ann.cookies["given"], "url": rig.url}
            page.context.add_cookies([cookie])
            page.goto(f"{rig.url}/engineer/lamp")
            page.locator('#lamp a[href="/plates/s-7"]').wait_for()
            page.locator("#op-halt").focus()
            rig.live.live = held("s-8")
            page.locator('#lamp a[href="/plates/s-8"]').wait_for()
            assert page.evaluate("document.activeElement.id") == "op-halt", "a keyboard's place"
            page.route("**/engineer/lamp", lambda route: route.abort())
            page.locator("#lamp [data-old]:visible").wait_for()
            assert page.locator('#lamp a[href="/plates/s-8"]').count() == 0
        finally:
            browser.close()
            rig.live.live = Live()


# --- a station that runs --------------------------------------------------------------------------


def hear(rig: WebRig) -> Json:
    """Let the page know what the processes say now; the station's part of it."""
    said = {name: status for name, (status, _) in ask_all(rig.station.runtime, 2.0).items()}
    rig.live.live = Live(**said, is_stale=False)
    return said["station"] or {}


@pytest.mark.long
def test_the_page_of_a_running_station(tmp_path: Path) -> None:
    """Camera, lamp and outputs, log lines, a recipe that is taken up between two plates; the light
    shows what a person wants only while no plate runs, and every command is a row that says who."""
    accept = '[accept]\ndistance_mm = 300.0\npulse_ms = 40\n[accept.device]\ntype = "simulated"\n'
    with web_rig(tmp_path, plates=0, tables=accept + "outputs = ['accept']\n") as rig:
        rig.station.camera = {"line_rate_hz": 1500.0}
        with rig.station.running():
            ann = rig.client_of(Role.ENGINEER, "ann")
            hear(rig)
            see_the_camera(rig, ann)
            try_the_lamp(rig, ann)
            read_the_log(ann)
            take_up_a_recipe(rig, ann)
    whole_under_each_recipe(rig.station)
    rows = [row for row in rig.station.rows("change") if row["who"] == "ann"]
    rows = [row for row in rows if "recipe" not in row["what"]]
    assert [(row["what"], row["detail"].get("tested")) for row in rows] == [
        ("halt", None),
        ("light", "test"),
        ("light", "fail"),
        ("output", "accept"),
        ("resume", None),
    ]


def see_the_camera(rig: WebRig, ann: PageClient) -> None:
    picture = rig.station.runtime / "live.pgm"
    assert not picture.exists(), "nobody has asked"
    until(lambda: ann.get("/engineer/camera.json").json()["picture"] is not None, "picture")
    shown = ann.get("/engineer/camera.json").json()["picture"]
    assert shown["width_px"] == 768
    assert 1400 < shown["line_rate_hz"] < 1600
    assert len(shown["profile_mean"]) == 400
    assert sum(shown["histogram"]) == shown["rows"] * shown["width_px"]
    got = ann.get("/engineer/camera/picture.jpg")
    assert got.headers["content-type"] == "image/jpeg"
    taken = datetime.fromisoformat(shown["at"]).timestamp()
    assert 0 <= datetime.now(UTC).timestamp() - taken < 60, "as of when it is"
    small = cv2.imdecode(np.frombuffer(got.content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert small.shape == (shown["rows"], 768)
    assert "picture.jpg" in ann.get("/engineer/camera").text
    assert rig.client().get("/engineer/camera.json").status_code == 401


def try_the_lamp(rig: WebRig, ann: PageClient) -> None:
    refused = ann.send_json("/engineer/light.json", {"what": "test"})
    assert refused.status_code == 409
    assert "halt it first" in refused.json()["error"]
    assert ann.get("/engineer/lamp.json").json()["refusal"] == "engineer.plates_run"
    assert ann.send_json("/engineer/command.json", {"op": "halt"}).json()["state"] == "HALTED"
    until(lambda: tried(rig, ann, "light", "test"), "lamp test while no plate is open")
    until(lambda: hear(rig)["hand_test"]["problem"] == "", "answer of the lamp process")
    until(lambda: tried(rig, ann, "light", "fail"), "a state while no plate is open")
    until(lambda: hear_lamp(rig) == "fail", "fail")
    assert ann.send_json("/engineer/light.json", {"what": "pass"}).status_code == 422
    until(lambda: tried(rig, ann, "output", "accept"), "an output")
    assert (
        ann.send_json("/engineer/command.json", {"op": "resume"}).json()["state"] == "OPERATIONAL"
    )
    until(
        lambda: hear(rig)["light"] != "fail" or hear(rig)["light_result_id"] != "", "plates again"
    )


def hear_lamp(rig: WebRig) -> str:
    hear(rig)
    lamp = rig.live.live.lamp
    return str(lamp["state"]) if lamp else ""


def tried(rig: WebRig, ann: PageClient, op: str, what: str) -> bool:
    """A plate that is on the belt yet keeps it from being tried out."""
    field = "what" if op == "light" else "name"
    answer = ann.send_json(f"/engineer/{op}.json", {field: what})
    assert answer.status_code == 200 or "not finished" in answer.text or "on its way" in answer.text
    return answer.status_code == 200


def take_up_a_recipe(rig: WebRig, ann: PageClient) -> None:
    name = propose(ann, **{"plate.tolerance_mm": "4"})
    bob = rig.client_of(Role.ENGINEER, "bob")
    assert bob.send_json(f"/engineer/recipes/{name}/approve.json", {}).status_code == 200
    assert ann.send_json(f"/engineer/recipes/{name}/activate.json", {}).status_code == 200
    hear(rig)
    until(lambda: name in ann.get("/engineer/recipes").text, "its name while it is checked")
    until(lambda: hear(rig).get("recipe", {}).get("version") == 2, "the new one", 60.0)
    until(lambda: hear(rig).get("plates", 0) > 1, "plates under the new recipe")
    page = ann.get("/engineer/recipes.json").json()
    assert page["active"] == name
    assert page["versions"][0]["activated"]["who"] == "ann"


def read_the_log(ann: PageClient) -> None:
    lines = ann.get("/engineer/log.json", params={"process": "station"}).json()["lines"]
    assert {"state"} <= {line["event"] for line in lines}
    assert ann.get("/engineer/log.json?level=critical").json()["lines"] == []
    assert "HALTED" in ann.get("/engineer/log?text=HALTED").text


@pytest.mark.long
def test_the_archive_for_support_comes_one_at_a_time(rig: WebRig, ann: PageClient) -> None:
    with ann.stream("GET", "/engineer/doctor.tar.gz", timeout=120.0) as first:
        assert first.status_code == 200
        assert ann.get("/engineer/doctor.tar.gz").status_code == 429
        data = b"".join(first.iter_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert any(name.endswith("manifest.json") for name in archive.getnames())


def test_the_signed_report_is_kept_not_shown(rig: WebRig, ann: PageClient) -> None:
    assert ann.get("/engineer/commissioning-report.html").status_code == 404
    page = ann.get("/engineer/configuration.json").json()
    assert {"station.id", "camera.type"} <= {one["key"] for one in page["keys"]}
    assert page["commissioning"]["report"] is False
