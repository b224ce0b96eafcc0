"""Drift: what plates are measured by, limits and charts, what an alarm names, a whole station."""

from __future__ import annotations

import json
import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from station_rig import Rig, vqi

from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import SimulatedCamera
from models.classifier import Classifier
from models.registry import find_model
from station.config import DriftRecipe, Loaded, Recipe, load_configuration, load_recipe
from station.crossweb import column_profile
from station.drift import UNMEASURED_PLATES, Drift, state_file
from station.drift_charts import (
    BATCH_PLATES,
    CHARTS,
    Alarm,
    Charts,
    Limits,
    Wanted,
    by_chart,
    finding,
    is_enough,
    learn,
    point_of,
    ratios,
)
from station.drift_log import (
    ALARM,
    LIMITS,
    PAGE_KEYS,
    RELEARN,
    DriftRegister,
    change,
    objection,
    register,
)
from station.inspection import Inspector, PlateScored, PlateWork
from station.ipc import Json
from station.journal_client import JournalClient
from station.judge import Judge
from station.pipeline import Options, Station
from station.plate_features import plate_features
from station.plate_names import NAMES, SECTIONS
from station.record import ChangeBody
from station.signing import journal_at_hand
from station.strip import PlateClosed, PlateOpened, StripCutter, TileRowReady, buffer_lines
from station.tiling import Geometry
from station.view import plain_line

Floats = NDArray[np.float64]

WIDTH_PX, PITCH_MM, FRAME_HEIGHT = 768, 0.1, 64
RECIPE = Recipe.model_validate(
    {
        "id": "small",
        "version": 1,
        "plate": {"width_mm": 60, "length_mm": 40},
        "model": {"id": "lightdefectnet-v3"},
    }
)
SPREAD = np.array([0.009, 0.03, 0.04, 0.2, 0.4, 0.1, 0.1, 0.3] + [0.004] * SECTIONS)
CENTRE = np.array([4.64, -1.43, -3.5, -3.2, -2.6, -1.3, 1.3, 1.0] + [0.0] * SECTIONS)


# --- features -----------------------------------------------------------------------------------


def belt_features(plates: int, wear: Json | None = None, noise_levels: float = 0.0) -> Floats:
    """Of plates as the station cuts and scores them from the simulated camera's frames."""
    size = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 20.0, "skew_deg": 0.8}
    camera = SimulatedCamera(
        SimulatedCameraSettings.model_validate(
            {
                "type": "simulated",
                "seed": 5,
                "width": WIDTH_PX,
                "frame_height": FRAME_HEIGHT,
                "bank_plates": plates,
                "is_paced": False,
                "specimen": {**size, "defective_share": 0.25},
                "wear": wear or {},
            }
        )
    )
    geometry, classifier = Geometry.of(RECIPE, PITCH_MM, WIDTH_PX), network()
    threshold = classifier.threshold_for(None)
    done: queue.SimpleQueue[PlateWork] = queue.SimpleQueue()
    judge = Judge(Loaded(RECIPE, "", ""), classifier, threshold, is_self_tested=True)
    inspector = Inspector(
        geometry,
        1,
        lambda message: done.put(message.work) if isinstance(message, PlateScored) else None,
    )
    pixels = np.zeros((buffer_lines(geometry), WIDTH_PX), np.uint8)
    cutter = StripCutter(geometry, FRAME_HEIGHT, lambda: pixels)
    into = np.empty(camera.info.max_frame_bytes, np.uint8)
    rng = np.random.default_rng(1)
    found: list[Floats] = []
    work = None
    camera.start()
    while len(found) < plates:
        frame = camera.grab(into, 1.0)
        assert frame is not None
        for event in cutter.feed(frame):
            if isinstance(event, PlateOpened):
                work = PlateWork(event.plate, "", 0, None, judge)
            elif isinstance(event, TileRowReady):
                assert work is not None
                inspector.score(work, event.row)
            elif isinstance(event, PlateClosed):
                assert work is not None
                assert event.plate.pixels is not None
                if noise_levels:
                    noise = noise_levels * rng.standard_normal(event.plate.pixels.shape)
                    event.plate.pixels[:] = np.clip(event.plate.pixels + noise, 0, 255)
                inspector.close(work)
                scored = done.get()
                profile = column_profile(scored.plate)
                found.append(plate_features(scored, profile, threshold, WIDTH_PX))
    inspector.stop()
    return np.array(found)


def network() -> Classifier:
    return Classifier.load(find_model("lightdefectnet-v3"))


@pytest.fixture(scope="module")
def healthy() -> Floats:
    return belt_features(16)


def changes(features: Floats, healthy: Floats) -> dict[str, float]:
    return dict(zip(NAMES, np.median(features - healthy, axis=0).tolist(), strict=True))


def test_light_changes_the_level_and_little_else(healthy: Floats) -> None:
    found = changes(belt_features(16, {"light_level": 0.95}), healthy)
    assert found["level"] == pytest.approx(np.log(0.95), abs=0.003)
    assert abs(found["contrast"]) < 0.02
    assert abs(found["noise"]) < 0.12, "the camera's eight bits round twice"
    assert max(abs(found[f"section_{number}"]) for number in range(2, 8)) < 0.003


def test_a_material_of_less_contrast_changes_the_contrast_and_little_else(healthy: Floats) -> None:
    found = changes(belt_features(16, {"dot_contrast": 0.8}), healthy)
    assert found["contrast"] == pytest.approx(np.log(0.8), abs=0.02)
    assert abs(found["level"]) < 0.01


def test_noise_is_told_from_the_lattice(healthy: Floats) -> None:
    found = changes(belt_features(16, noise_levels=2.2), healthy)
    assert 0.18 < found["noise"] < 0.36, "1.41 times as much where the plate is flat"
    assert abs(found["contrast"]) < 0.02
    assert abs(found["level"]) < 0.01


def test_dirt_changes_its_section(healthy: Floats) -> None:
    found = changes(belt_features(16, {"dirt_mm": [31.0, 33.0], "dirt_contrast": -0.3}), healthy)
    sections = {name: found[name] for name in NAMES if name.startswith("section")}
    assert min(sections, key=lambda name: np.nan_to_num(sections[name])) == "section_4"
    assert sections["section_4"] < -0.04
    assert abs(found["level"]) < 0.015


def test_what_cannot_be_measured_is_no_number() -> None:
    plate = PlateWork(None, "", 0, None, None)  # type: ignore[arg-type]
    assert np.isnan(plate_features(plate, None, 0.5, WIDTH_PX)).all()


def test_a_plate_costs_one_small_patch_after_the_other(healthy: Floats) -> None:
    assert healthy.shape == (16, len(NAMES))
    assert np.isfinite(healthy[:, :8]).all()
    assert np.isnan(healthy[:, NAMES.index("section_8")]).all(), "no plate lies there"


# --- limits and charts --------------------------------------------------------------------------


def stream(
    plates: int, correlation: float = 0.0, seed: int = 1, change: dict[str, float] | None = None
) -> Floats:
    """Features of plates, each like the one before as `correlation` says."""
    rng = np.random.default_rng(seed)
    rest = np.empty((plates, len(NAMES)))
    rest[0] = rng.standard_normal(len(NAMES))
    for number in range(1, plates):
        new = rng.standard_normal(len(NAMES))
        rest[number] = correlation * rest[number - 1] + np.sqrt(1 - correlation**2) * new
    moved = np.array([(change or {}).get(name, 0.0) for name in NAMES])
    return np.asarray(CENTRE + moved + SPREAD * rest)


def points(plates: Floats) -> list[Floats]:
    whole = len(plates) // BATCH_PLATES * BATCH_PLATES
    return [point_of(batch) for batch in plates[:whole].reshape(-1, BATCH_PLATES, len(NAMES))]


def most(charts: Charts, plates: Floats) -> float:
    """How near any chart comes to its limit."""
    found = (ratios(charts.take(point), charts.limits) for point in points(plates))
    return float(max(np.nanmax(np.abs(one)) for one in found))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_plates_in_control_call_nobody_however_alike_they_are(
    correlation: float, seed: int
) -> None:
    plates = stream(3200 + 8000, correlation, seed)
    limits = learn(points(plates[:3200]), Wanted())
    assert most(Charts(limits), plates[3200:]) < 1


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"level": np.log(0.95)}, "light"),
        ({"level": np.log(1.05)}, "light"),
        ({"contrast": np.log(0.8)}, "material"),
        ({"contrast": np.log(1.25), "level": -0.04}, "material"),
        ({"noise": 0.3, "score": 0.9}, "material"),
        ({"section_3": -0.06, "level": -0.01}, "lens"),
        ({"score": 1.0, "score_high": 1.5}, "model"),
        ({"map_mean": 1.0, "map_peak": 1.5}, "model"),
        ({"score": 1.0, "level": np.log(0.95), "map_mean": 1.0}, "light"),
    ],
)
def test_a_drift_is_found_within_few_plates_and_named(
    correlation: float, change: dict[str, float], cause: str
) -> None:
    limits = learn(points(stream(3200, correlation)), Wanted())
    charts, alarm = Charts(limits), Alarm()
    for point in points(stream(80, correlation, seed=2)):
        assert alarm.take(charts.take(point), limits) is None
    found = None
    waited = 0
    for point in points(stream(400, correlation, seed=3, change=change)):
        waited += BATCH_PLATES
        found = alarm.take(charts.take(point), limits)
        if found is not None:
            break
    assert found is not None
    assert found.cause == cause, found.text
    assert waited <= 200
    assert found.text.startswith("drift: ")
    assert abs(found.change) > found.limit


def test_an_alarm_is_renamed_when_more_is_known_and_ends_when_it_is_over() -> None:
    limits = learn(points(stream(1600)), Wanted())
    charts, alarm = Charts(limits), Alarm()

    def told(change: dict[str, float], seed: int) -> list[str]:
        found = [alarm.take(charts.take(p), limits) for p in points(stream(80, 0, seed, change))]
        return [one.cause for one in found if one]

    assert told({"score": 1.5}, 1) == ["model"]
    assert told({"score": 1.5, "contrast": -0.3}, 2) == ["material"]
    assert not alarm.has_ended()
    assert told({}, 3) in ([], ["model"])
    for point in points(stream(160, 0, 4)):
        alarm.take(charts.take(point), limits)
        if alarm.has_ended():
            break
    assert alarm.standing is None


def test_a_slow_change_is_found_by_what_stays() -> None:
    limits = learn(points(stream(1600)), Wanted())
    plates = stream(2400)
    plates[:, 0] += np.log(0.95) * np.arange(2400) / 2000
    charts = Charts(limits)
    calls = [finding(charts.take(point), limits) is not None for point in points(plates)]
    first = calls.index(True) * BATCH_PLATES
    assert 800 < first < 2000, "before it has changed by what is to be found"


def test_plates_that_vary_too_much_are_said_to(healthy: Floats) -> None:
    wild = stream(1600)
    wild[:, 1] += 1.5 * np.random.default_rng(0).standard_normal(1600)
    limits = learn(points(wild), Wanted())
    assert limits.too_wide(Wanted()) == ["contrast"]
    assert learn(points(stream(1600)), Wanted()).too_wide(Wanted()) == []


def test_plates_that_are_alike_are_learned_from_for_longer() -> None:
    wanted = 200
    assert not is_enough(points(stream(1592)), wanted)
    assert is_enough(points(stream(1600)), wanted)
    alike = points(stream(3200, 0.995))
    assert not is_enough(alike[:wanted], wanted)
    assert is_enough(alike, wanted)


def test_a_batch_shows_no_single_defect_and_knows_what_it_does_not_know() -> None:
    plates = stream(BATCH_PLATES)
    plates[:3, 3] = 50.0
    plates[:4, 1] = np.nan
    plates[:5, 2] = np.nan
    point = point_of(plates)
    assert point[3] < 0
    assert np.isfinite(point[1])
    assert point[1] == pytest.approx(np.median(plates[4:, 1]))
    assert np.isnan(point[2])
    many = point_of(np.stack([plates, plates], axis=1))
    np.testing.assert_array_equal(many, np.stack([point, point]))


def test_a_product_without_a_feature_has_no_chart_of_it() -> None:
    plates = stream(1600)
    plates[:, NAMES.index("section_8")] = np.nan
    plates[:, 5:8] = np.nan  # a network without a map
    limits = learn(points(plates), Wanted())
    charts = Charts(limits)
    found = [by_chart(ratios(charts.take(point), limits)) for point in points(plates[:80])]
    assert found[-1].keys() == set(CHARTS) - {"section_8", "embedding"}
    assert finding(charts.take(point_of(plates[:8])), limits) is None


def test_limits_are_the_same_after_the_log() -> None:
    plates = stream(1600)
    plates[:, NAMES.index("section_1")] = np.nan
    limits = learn(points(plates), Wanted())
    again = Limits.of_json(json.loads(json.dumps(limits.as_json())))
    np.testing.assert_allclose(again.mean, limits.mean, rtol=1e-5)
    np.testing.assert_allclose(again.map_inverse, limits.map_inverse, rtol=1e-5)
    for broken in ({}, {**limits.as_json(), "mean": [1.0]}, {**limits.as_json(), "plates": None}):
        with pytest.raises(ValueError, match="limits"):
            Limits.of_json(broken)


# --- the log ------------------------------------------------------------------------------------


def limits_row(key: str = "k", seed: int = 1) -> ChangeBody:
    limits = learn(points(stream(320, seed=seed)), Wanted())
    detail = {"key": key, "limits": json.dumps(limits.as_json())}
    return change("t", LIMITS, detail)


def test_limits_are_replaced_only_after_a_person_said_why() -> None:
    first, second = limits_row().as_json(), limits_row(seed=2).as_json()
    known = register([first])
    assert objection(known, first) == "", "sent again, it is the same row"
    assert "--relearn" in objection(known, second)
    assert objection(known, limits_row("other", 2).as_json()) == ""
    assert register([first, second]).limits["k"] == first["detail"]
    assert register([first, second]).strange
    asked = change("t", RELEARN, {"key": "k", "reason": "new lamp"}, "Ada").as_json()
    assert register([first, asked]).limits == {}
    assert register([first, asked, second]).limits["k"] == second["detail"]


@pytest.mark.parametrize(
    ("what", "who", "detail"),
    [
        (RELEARN, "Ada", {"key": "k", "reason": ""}),
        (RELEARN, "", {"key": "k", "reason": "new lamp"}),
        (RELEARN, "Ada", {"key": "k", "reason": "two\nlines"}),
        (RELEARN, "Ada", {"reason": "new lamp"}),
        (LIMITS, "station", {"key": "k"}),
        (LIMITS, "station", {"key": "k", "limits": "[]"}),
        (LIMITS, "station", {"key": "k", "limits": '{"plates": 8}'}),
        ("drift_alarm", "station", {"key": "k"}),
    ],
)
def test_rows_that_say_nothing_are_refused(what: str, who: str, detail: dict[str, str]) -> None:
    row = change("t", what, detail, who).as_json()
    assert objection(register([]), row)
    assert not register([row]).limits


def test_a_station_is_told_the_limits_of_every_key_that_it_ever_had(tmp_path: Path) -> None:
    """A line of many products comes back to its oldest one."""
    rig, first = Rig(tmp_path), limits_row("k-0")
    config = rig.write()
    rows = [
        first.model_copy(update={"detail": {**first.detail, "key": f"k-{number}"}})
        for number in range(PAGE_KEYS + 2)
    ]
    alarm = change("t", ALARM, {"key": "k-9", "cause": "light"})
    with journal_at_hand(str(config), load_configuration(str(config)).value) as journal:
        assert journal.hello()["drift"] == {"limits": {}, "standing": {}}
        for row in [*rows, alarm]:
            assert journal.submit([row])["ok"]
        known = DriftRegister(**journal.hello()["drift"])
    assert known.limits == {row.detail["key"]: row.detail for row in rows}
    assert known.standing == {"k-9": alarm.detail}


def test_a_row_of_drift_that_is_refused_ends_no_station(tmp_path: Path) -> None:
    config = Rig(tmp_path).write()
    said: list[Json] = []
    recipe = load_recipe(str(tmp_path / "recipe.toml"))
    parts: Any = Station(load_configuration(str(config)), recipe, Options(), said.append)
    parts._outbox._gone_at = time.monotonic()
    first, second = limits_row(), limits_row(seed=2)
    parts._drift_log, parts._health = register([]), SimpleNamespace(attentions=[])
    parts._make_drift = lambda known: watch(tmp_path / "j", rows=[first] if known.limits else [])
    parts._drift = parts._make_drift(parts._drift_log)
    # Here none are known, in the log some are.
    parts._say_drift([first])
    (item,) = parts._outbox._unsent
    item.refused({"ok": False, "error": "these plates have limits already"})
    assert parts._drift_log.limits == {}, "what the log does not say does not hold"
    assert parts._drift.status()["state"] == "learning"
    assert "have limits already" in parts._problems["drift"]
    assert any("have limits already" in text for text in parts._attention_texts)
    assert parts._blocking == [], "plates are judged all the same"
    assert not any(why.startswith("drift") for why in parts._not_ready)
    # Here some are known: others are not even sent, nor what rests on them.
    parts._outbox._unsent.clear()
    parts._say_drift([first])
    assert "drift" not in parts._problems
    parts._say_drift([second, change("t", ALARM, {"key": "k", "cause": "light"})])
    assert [one.rows for one in parts._outbox._unsent] == [[first]]
    assert "--relearn" in parts._problems["drift"]
    assert parts._drift_log.limits["k"] == first.detail
    assert parts._drift_log.strange == []


# --- the watch ----------------------------------------------------------------------------------


def watch(folder: Path, key: str = "k", rows: list[ChangeBody] | None = None) -> Drift:
    """As after a start that finds these rows in the log."""
    known = register(row.as_json() for row in rows or [])
    folder.mkdir(exist_ok=True)
    return Drift(DriftRecipe(learn_plates=160), "t", key, {"recipe": "small@1"}, folder, known)


def run(watched: Drift, plates: Floats, first: int = 0) -> list[ChangeBody]:
    return [
        row
        for number, plate in enumerate(plates, first)
        for row in watched.plate(f"t-{number:08d}", plate, is_calm=True, is_dirty=False)
    ]


LIGHT = {"level": float(np.log(0.93))}


def test_a_station_learns_watches_calls_and_is_well_again(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    rows = run(watched, stream(400))
    assert [row.what for row in rows] == ["drift_limits"]
    assert rows[0].detail["result_id"] <= "t-00000319"
    assert watched.status()["state"] == "watching"
    begun = run(watched, stream(32, seed=2, change=LIGHT))
    assert [(row.what, row.detail["cause"]) for row in begun] == [("drift_alarm", "light")]
    assert watched.attentions == [begun[0].detail["text"]]
    assert "darker than learned, everywhere alike" in watched.attentions[0]
    ended = run(watched, stream(120, seed=3))
    assert [(row.what, row.detail["cause"]) for row in ended] == [("drift_cleared", "light")]
    assert watched.attentions == []


def test_an_alarm_ends_with_the_model_whose_plates_it_was_said_of(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    learned = run(watched, stream(400))
    assert watched.leave() == []
    begun = run(watched, stream(32, seed=2, change=LIGHT))
    (ended,) = watched.leave()
    assert (ended.what, ended.detail["why"]) == ("drift_cleared", "another model judges")
    assert watched.attentions == []
    assert watch(tmp_path, rows=[*learned, *begun, ended]).attentions == []


@pytest.mark.parametrize("cut", [3, 100, 331, 420, 443])
def test_a_restart_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    plates = np.concatenate([stream(410), stream(60, seed=2, change=LIGHT)])
    whole = run(watch(tmp_path / "a"), plates)
    first = watch(tmp_path / "b")
    rows = run(first, plates[:cut])
    first.save()  # as a station that ends in order
    second = watch(tmp_path / "b", rows=rows)
    assert second.attentions == first.attentions
    rows += run(second, plates[cut:], cut)
    said = [[(r.what, r.detail["result_id"]) for r in some] for some in (whole, rows)]
    assert said[0] == said[1]
    assert said[0][-1][0] == "drift_alarm"


def test_without_its_file_a_station_has_its_limits_and_alarm_from_the_log(tmp_path: Path) -> None:
    first = watch(tmp_path)
    rows = run(first, np.concatenate([stream(400), stream(40, seed=2, change=LIGHT)]))
    for damage in (b"", b"{", b'{"key": "k", "points": [[1]]}', b'{"key": "k", "pending": 3}'):
        state_file(tmp_path, "k").write_bytes(damage)
        second = watch(tmp_path, rows=rows)
        assert second.status()["state"] == "watching"
        assert second.attentions == first.attentions
        assert run(second, stream(40, seed=3, change=LIGHT)) == [], "it stands already"


def test_another_key_has_its_own_limits_and_its_own_state(tmp_path: Path) -> None:
    first = watch(tmp_path)
    rows = run(first, np.concatenate([stream(400), stream(40, seed=2, change=LIGHT)]))
    other = watch(tmp_path, "other model", rows)
    assert other.attentions == []
    assert other.status()["state"] == "learning"
    assert [r.detail["key"] for r in run(other, stream(400, change=LIGHT))] == ["other model"]
    assert watch(tmp_path, rows=rows).attentions == first.attentions, "back again"
    for number in range(40):
        watch(tmp_path, f"key {number}").save()
    assert len(list((tmp_path / "drift").iterdir())) <= 17


def test_a_person_has_the_limits_learned_anew(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    rows = run(watched, np.concatenate([stream(400), stream(40, seed=2, change=LIGHT)]))
    rows += watched.relearn("Ada", "new lamp")
    assert [row.what for row in rows[-2:]] == ["drift_cleared", "drift_relearn"]
    assert (rows[-1].who, rows[-1].detail["reason"]) == ("Ada", "new lamp")
    again = watch(tmp_path, rows=rows)
    assert again.status()["state"] == "learning"
    rows += run(again, stream(400, seed=4, change=LIGHT))
    assert rows[-1].what == "drift_limits"
    known = register(row.as_json() for row in rows)
    assert not known.strange
    assert known.limits["k"] == rows[-1].detail


def test_nothing_is_learned_while_something_is_wrong(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    for number, plate in enumerate(stream(800)):
        assert watched.plate(f"t-{number}", plate, is_calm=False, is_dirty=True) == []
    status = watched.status()
    assert (status["state"], status["learned_plates"], status["not_learned"]) == (
        "learning",
        0,
        800,
    )


def test_what_cannot_be_measured_is_counted_and_calls(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    rows = run(watched, stream(400))
    blind = np.full(len(NAMES), np.nan)
    for number in range(UNMEASURED_PLATES - 1):
        assert watched.plate(f"b-{number}", None if number % 2 else blind, True, False) == []
    rows = watched.plate("b-last", None, True, False)
    assert [(row.what, row.detail["cause"]) for row in rows] == [("drift_alarm", "unmeasured")]
    assert watched.plate("b-more", None, True, False) == [], "once"
    assert watched.status()["unmeasured"] == UNMEASURED_PLATES + 1
    ended = run(watched, stream(BATCH_PLATES, seed=5))
    assert [(row.what, row.detail["cause"]) for row in ended] == [("drift_cleared", "unmeasured")]


def test_a_disk_that_takes_nothing_stops_no_plate(tmp_path: Path) -> None:
    (tmp_path / "drift").write_text("in the way")
    watched = watch(tmp_path)
    assert [row.what for row in run(watched, stream(400))] == ["drift_limits"]
    assert str(tmp_path) in watched.status()["problem"]


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    watched = watch(tmp_path)
    run(watched, stream(6000))
    assert state_file(tmp_path, "k").stat().st_size < 100_000


def test_alarms_are_lines_for_people() -> None:
    row = change("t", "drift_alarm", {"key": "k", "text": "drift: light"}).as_json()
    said = {"drift": [row], "attentions": ["drift: light"]}
    assert plain_line(said) == "ATTENTION: drift: light"
    ended = change("t", "drift_cleared", {"key": "k", "text": "drift: light"}).as_json()
    assert plain_line({"drift": [ended], "attentions": []}) == "ATTENTION ended: drift: light"


# --- the whole station --------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(
        tmp_path,
        camera={"is_paced": False, "bank_plates": 12},
        specimen={"gap_mm": 20.0, "defective_share": 0.25},
        recipe_lines="[drift]\nlearn_plates = 48\n",
    )


def drift_rows(rig: Rig) -> list[Json]:
    return [row for row in rig.rows("change") if row["what"].startswith("drift")]


@pytest.mark.long
def test_a_line_whose_light_and_material_change_says_which(rig: Rig) -> None:
    """One log through four lives: well, in less light, well again, another material."""
    result = rig.run("--plates", "104")
    assert result.status == 0, result.stderr
    assert [row["what"] for row in drift_rows(rig)] == ["drift_limits"]
    rig.wear = {"light_level": 0.95}
    result = rig.run("--plates", "24")
    alarm = drift_rows(rig)[-1]
    assert (alarm["what"], alarm["detail"]["cause"]) == ("drift_alarm", "light")
    assert result.summary["attentions"] == [alarm["detail"]["text"]]
    assert "everywhere alike" in alarm["detail"]["text"]
    assert {row["verdict"] for row in result.records} == {"PASS", "FAIL"}, "nothing else changes"
    rig.wear = {}
    result = rig.run("--plates", "88")
    assert [row["what"] for row in drift_rows(rig)][-1] == "drift_cleared"
    assert result.summary["attentions"] == []
    rig.wear = {"dot_contrast": 0.8}
    rig.run("--plates", "24")
    alarm = drift_rows(rig)[-1]
    assert (alarm["what"], alarm["detail"]["cause"]) == ("drift_alarm", "material")
    assert len([row for row in drift_rows(rig) if row["what"] == "drift_limits"]) == 1
    verified = vqi("log", "verify", "--journal", str(rig.journal), "--json")
    assert verified.returncode == 0, verified.stdout
    check_shown(rig)


def check_shown(rig: Rig) -> None:
    config, page = str(rig.folder / "station.toml"), rig.folder / "drift.html"
    said = vqi("model", "drift", "--config", config, "--json", "--html", str(page))
    assert said.returncode == 0, said.stderr
    (row,) = map(json.loads, said.stdout.splitlines())
    assert row["standing"]["cause"] == "material"
    assert [one["what"] for one in row["alarms"]] == ["drift_alarm", "drift_cleared", "drift_alarm"]
    contrast = next(chart for chart in row["charts"] if chart["chart"] == "contrast")
    assert contrast["ratio"] < -1
    text = page.read_text()
    assert row["standing"]["text"] in text
    assert text.count("data:image/svg+xml") >= 8
    lines = vqi("model", "drift", "--config", config).stdout.splitlines()
    assert lines[1].startswith("ATTENTION: drift: material")
    assert any(line.startswith("contrast") and "▁" in line for line in lines)


@pytest.mark.long
def test_limits_are_learned_anew_by_command_and_not_otherwise(rig: Rig) -> None:
    config = str(rig.write())
    nobody = vqi("model", "drift", "--config", config, "--relearn", "new lamp")
    assert nobody.returncode == 1
    assert "no station answers" in nobody.stderr
    rig.camera["is_paced"] = True
    with rig.running():
        status = rig.status()["drift"]
        assert (status["state"], status["wanted_plates"]) == ("learning", 48)
        assert vqi("model", "drift", "--config", config, "--relearn", "").returncode == 1
        done = vqi("model", "drift", "--config", config, "--relearn", "new lamp", "--json")
        assert json.loads(done.stdout) == {"state": "OPERATIONAL"}
        key = drift_rows(rig)[-1]["detail"]["key"]
        client = JournalClient(rig.runtime)
        client.connect(5.0)
        first, second = limits_row(key), limits_row(key, 2)
        assert client.submit([first])["ok"]
        assert client.submit([first])["ok"], "sent again"
        refused = client.submit([second])
        assert not refused["ok"]
        assert "--relearn" in refused["error"]
        client.close()
    asked = next(row for row in drift_rows(rig) if row["what"] == "drift_relearn")
    assert asked["detail"]["reason"] == "new lamp"
    assert asked["who"]
