"""From tile to plate: thresholds that hold their target, and what is found of which size."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from station_rig import vqi

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")
pytest.importorskip("matplotlib", reason="needs package matplotlib (the `train` extra)")

from models.training.pod import MISFIT, Detection, Reach  # noqa: E402
from models.training.pod_figure import Panel, draw  # noqa: E402
from models.training.report import evaluate_model  # noqa: E402
from station.config import PlateRecipe, load_recipe  # noqa: E402
from station.detection import (  # noqa: E402
    CONTRASTS,
    LEAST_MM,
    PROPERTIES,
    SIZES,
    Trial,
    fit,
    kind_of,
    nominal_defects,
    size_of,
    spaced_marks,
    try_plates,
)
from station.plates import (  # noqa: E402
    FALSE_REJECT_TARGET,
    PlateScore,
    TooFewPlates,
    choose_threshold,
    measure_calibration,
    measure_rates,
    plates_needed,
    score_plates,
)
from station.synthesize import PlateSource  # noqa: E402

DOT_PITCH_PX = 12


@dataclass(frozen=True)
class ContrastFinder:
    """Scores a tile by its strongest local contrast, over the plate's dots."""

    least: float = 0.05
    """Contrast, mean of a dot pitch, that scores 0.5."""
    model_id: str = "contrast-finder"
    runtime: str = "numpy"
    threshold: float = 0.5

    def scores(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array([self._score(tile[0]) for tile in tiles], np.float32)

    def _score(self, tile: NDArray[np.uint8]) -> float:
        level = tile.astype(np.float32)
        near = cv2.blur(level, (DOT_PITCH_PX, DOT_PITCH_PX))[_is_plate(level)]
        usual = np.median(near) if near.size else 1.0
        strongest = float(np.abs(near / usual - 1).max(initial=0.0))
        return 0.5 + 0.5 * math.tanh((strongest - self.least) * 100)


def _is_plate(level: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a tile is not padding, in which neighbours are equal."""
    across, along = np.diff(level, axis=1, prepend=-1), np.diff(level, axis=0, prepend=-1)
    equal = ((across == 0) | (along == 0)).astype(np.float32)
    padding = (cv2.blur(equal, (9, 9)) > 0.6).astype(np.uint8)
    is_plate = cv2.dilate(padding, np.ones((31, 31), np.uint8)) == 0
    is_plate[:12], is_plate[-12:], is_plate[:, :12], is_plate[:, -12:] = (False,) * 4
    return is_plate


def source_of(width_mm: float, length_mm: float) -> PlateSource:
    """A recipe's plates under a camera that is just wide enough."""
    recipe = load_recipe("shipped:demo-lgp").value
    plate = PlateRecipe(width_mm=width_mm, length_mm=length_mm)
    lane = recipe.lane.model_copy(update={"start_mm": 0.0, "end_mm": None})
    changed = recipe.model_copy(update={"plate": plate, "lane": lane})
    return PlateSource(changed, 0.1, round(width_mm / 0.1) + 200)


@pytest.mark.parametrize(("start_mm", "skew_deg"), [(33.5, 2.0), (3.0, 0.5), (60.0, 2.0)])
def test_rendered_plates_lie_in_the_recipes_lane(start_mm: float, skew_deg: float) -> None:
    """A lane beside the scan line's middle, or one with little room, has plates too."""
    recipe = load_recipe("shipped:demo-lgp").value
    plate = PlateRecipe(width_mm=40.0, length_mm=30.0, max_skew_deg=skew_deg)
    lane = recipe.lane.model_copy(update={"start_mm": start_mm, "end_mm": start_mm + 43.0})
    changed = recipe.model_copy(update={"plate": plate, "lane": lane})
    source = PlateSource(changed, 0.1, 1100)
    for number in range(6):
        assert source.plate(np.random.default_rng(number), False, 0.0, 1.0)


def plates_of(good: list[float], bad: list[float]) -> list[PlateScore]:
    scores = [(score, False) for score in good] + [(score, True) for score in bad]
    return [PlateScore(i, is_bad, score, 1, ()) for i, (score, is_bad) in enumerate(scores)]


@given(st.lists(st.floats(0, 1, width=32), min_size=99, max_size=400))
def test_the_threshold_is_the_least_that_keeps_its_promise(good: list[float]) -> None:
    chosen = choose_threshold(plates_of(good, [1.0]))
    above = sum(score > chosen.value for score in good)
    assert (above + 1) / (len(good) + 1) <= FALSE_REJECT_TARGET + 1e-12
    assert chosen.expected <= FALSE_REJECT_TARGET + 1e-12
    seen = chosen.false_reject_rate
    assert seen.value == above / len(good)
    assert seen.low <= seen.value <= seen.high
    for lower in {score for score in good if score < chosen.value}:
        more = sum(score > lower for score in good)
        assert (more + 1) / (len(good) + 1) > FALSE_REJECT_TARGET


@pytest.mark.parametrize("count", [99, 100, 250])
def test_other_good_plates_are_rejected_as_rarely_as_expected(count: int) -> None:
    """Whatever the scores' distribution: here uniform, where the rate is 1 less the threshold."""
    rng = np.random.default_rng(count)
    rates, expected = [], 0.0
    for _ in range(2000):
        chosen = choose_threshold(plates_of(rng.random(count).tolist(), []))
        rates.append(1 - chosen.value)
        expected = chosen.expected
    assert expected <= FALSE_REJECT_TARGET
    assert np.mean(rates) == pytest.approx(expected, rel=0.1)


def test_too_few_good_plates_choose_nothing() -> None:
    assert plates_needed() == 99
    with pytest.raises(TooFewPlates, match=r"98 good plates .* 99 or more"):
        choose_threshold(plates_of([0.1] * 98, [0.9] * 200))


def test_what_a_card_says_names_target_count_and_interval() -> None:
    words = choose_threshold(plates_of([i / 300 for i in range(300)], [])).words
    for part in ("1.00%", "2 of 300 good", "95 % interval", "Clopper-Pearson"):
        assert part in words


def test_rates_count_what_passes_at_the_threshold_and_fails_above() -> None:
    rates = measure_rates(plates_of([0.1, 0.5, 0.6, 0.7], [0.5, 0.9]), 0.5)
    assert rates.false_reject_rate.value == 0.5
    assert rates.escape_rate.value == 0.5
    assert rates.escape_rate.samples == 2


def drawn_plates(rng: np.random.Generator, count: int) -> list[PlateScore]:
    """Plates that are defective with the odds of their score, to the power of 0.5, less 1."""
    odds = rng.normal(0, 4, count)
    is_bad = rng.random(count) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    scores = 1 / (1 + np.exp(-odds))
    return [PlateScore(i, bool(is_bad[i]), float(scores[i]), 1, ()) for i in range(count)]


def test_calibration_finds_the_odds_and_its_interval_holds_the_true_figure() -> None:
    rng = np.random.default_rng(0)
    found = measure_calibration(drawn_plates(rng, 5000), drawn_plates(rng, 5000))
    assert (found.slope, found.offset) == pytest.approx((0.5, -1.0), abs=0.1)
    assert found.brier.value < found.brier_uncalibrated
    odds = np.random.default_rng(1).normal(0, 4, 200_000)
    true = 1 / (1 + np.exp(-(0.5 * odds - 1)))
    assert found.brier.low <= float((true * (1 - true)).mean()) <= found.brier.high


def test_a_calibration_of_few_plates_does_not_claim_to_be_perfect() -> None:
    plates = plates_of([0.001] * 20, [0.999] * 20)
    brier = measure_calibration(plates, plates).brier
    assert brier.value < 1e-3
    assert brier.high > 0.05


def test_defective_plates_score_higher_and_the_seed_decides() -> None:
    source = source_of(60.0, 40.0)
    plates = list(score_plates(source, ContrastFinder(), 12, seed=3, contrast_scale=4.0))
    assert [plate.is_defective for plate in plates] == [False, True] * 6
    good = max(plate.score for plate in plates if not plate.is_defective)
    bad = [plate.score for plate in plates if plate.is_defective]
    assert sum(score > good for score in bad) >= 4
    again = list(score_plates(source, ContrastFinder(), 12, seed=3, contrast_scale=4.0))
    assert again == plates


def trials(rng: np.random.Generator, count: int, slope: float = 2.5) -> Detection:
    """Log odds of a hit `1 + slope ln(value)`, from 0.1 to 5."""
    logs = rng.uniform(math.log(0.1), math.log(5), count)
    return Detection(np.exp(logs), rng.random(count) < 1 / (1 + np.exp(-(1 + slope * logs))))


TRUE_A90 = math.exp((math.log(9) - 1) / 2.5)


def test_a90_is_found_and_a90_95_is_large_enough_as_often_as_it_says() -> None:
    reaches = [trials(np.random.default_rng(seed), 200).reach() for seed in range(200)]
    found = np.array([reach.a90 for reach in reaches if reach.a90])
    assert np.median(found) == pytest.approx(TRUE_A90, rel=0.05)
    bounds = [reach.a90_95 or math.inf for reach in reaches]
    share = np.mean([bound >= TRUE_A90 for bound in bounds])
    assert 0.88 <= share <= 0.99
    assert all(bound > reach.a90 for bound, reach in zip(bounds, reaches, strict=True) if reach.a90)
    assert np.mean([reach.misfit_p < 0.05 for reach in reaches]) < 0.1  # type: ignore[operator]


def test_the_bound_is_where_the_bands_lower_edge_reaches_ninety_percent() -> None:
    detection = trials(np.random.default_rng(1), 400)
    curve, reach = detection.curve(200), detection.reach()
    assert curve
    assert reach.a90
    assert reach.a90_95
    assert float(np.interp(reach.a90, curve.values, curve.pod)) == pytest.approx(0.9, abs=0.01)
    assert float(np.interp(reach.a90_95, curve.values, curve.low)) == pytest.approx(0.9, abs=0.01)
    assert (curve.low < curve.pod).all()
    assert (curve.pod < curve.high).all()


def test_more_trials_bring_the_bound_nearer() -> None:
    few, many = (trials(np.random.default_rng(2), count).reach() for count in (100, 3000))
    assert few.a90_95
    assert many.a90_95
    assert TRUE_A90 < many.a90_95 < few.a90_95
    assert many.a90_95 == pytest.approx(TRUE_A90, rel=0.15)


def none_found(reach: Reach) -> bool:
    return (reach.a50, reach.a90, reach.a90_95) == (None, None, None)


@pytest.mark.parametrize(
    ("is_hit", "words"),
    [
        (lambda values: values > 1, "completely separated: all up to .* missed"),
        (lambda values: values < 1, "completely separated, the hits below"),
        (lambda values: values > 0, "all 50 were hit"),
        (lambda values: values < 0, "all 50 were missed"),
    ],
)
def test_hits_and_misses_without_a_curve_are_called_so(
    is_hit: Callable[[NDArray[np.float64]], NDArray[np.bool_]], words: str
) -> None:
    values = np.geomspace(0.1, 10, 50)
    detection = Detection(values, is_hit(values))
    reach = detection.reach()
    assert none_found(reach)
    assert re.search(words, reach.note)
    assert detection.curve() is None
    assert len(detection.shares()) == 8


def test_nothing_tried_is_nothing_found() -> None:
    reach = Detection(np.array([]), np.array([], bool)).reach()
    assert none_found(reach)
    assert reach.note == "none was tried"


def test_a_value_that_was_not_measured_is_not_given() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.5, 1.0, 300)
    rare = Detection(values, rng.random(300) < 0.2 * values).reach()
    assert rare.a90 is None
    assert rare.a90_95 is None
    assert "90 % not reached up to 0.999" in rare.note
    plain = Detection(values, rng.random(300) < 0.95 + 0.04 * values).reach()
    assert plain.a90 is None
    assert "already at 0.5" in plain.note
    falling = Detection(values, rng.random(300) < 1 - 0.9 * values).reach()
    assert none_found(falling)
    assert "does not grow" in falling.note


def test_a_curve_that_the_data_contradict_says_so() -> None:
    """One in five is never found, however large."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(math.log(0.1), math.log(50), 2000))
    reach = Detection(values, (values > 0.5) & (rng.random(2000) < 0.8)).reach()
    assert reach.misfit_p is not None
    assert reach.misfit_p < MISFIT
    assert "does not fit" in reach.note


@pytest.fixture(scope="module")
def source() -> PlateSource:
    return source_of(150.0, 110.0)


@pytest.fixture(scope="module")
def tried(source: PlateSource) -> list[Trial]:
    plates = try_plates(source, ContrastFinder(), 0.5, plates=10, seed=5)
    return [trial for of_plate in plates for trial in of_plate]


def test_no_tile_shows_two_marks_and_every_mark_is_shown(source: PlateSource) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        marks = tuple(mark for mark, _ in spaced_marks(source, rng))
        tiles = source.plate_with(marks, rng)
        assert max(len(tile.marks) for tile in tiles) == 1
        assert {mark for tile in tiles for mark in tile.marks} == set(range(len(marks)))
        assert len(marks) >= 5


def test_marks_vary_one_property_and_keep_the_other(source: PlateSource) -> None:
    for mark, varied in spaced_marks(source, np.random.default_rng(9)):
        nominal = nominal_defects()[kind_of(mark)]
        if varied == "contrast":
            assert size_of(mark) == pytest.approx(nominal.size_mm, rel=0.02)
            assert CONTRASTS[0] <= abs(mark.contrast) / nominal.contrast <= CONTRASTS[1]
        else:
            assert abs(mark.contrast) == pytest.approx(nominal.contrast)
            assert LEAST_MM * 0.99 <= size_of(mark) <= SIZES[1] * nominal.size_mm * 1.01


def test_all_kinds_are_tried_both_ways(tried: list[Trial]) -> None:
    combinations = {(trial.kind, trial.varied) for trial in tried}
    assert combinations == {(k, v) for k in nominal_defects() for v in PROPERTIES}


def test_what_is_plain_is_found_and_what_is_faint_is_not(
    source: PlateSource, tried: list[Trial]
) -> None:
    """The finder looks at contrast over a dot pitch: of large dark spots it sees nearly that."""
    spots = [t for t in tried if t.varied == "contrast" and t.kind in ("dark_spot", "bright_spot")]
    usual = {kind: nominal.contrast for kind, nominal in nominal_defects().items()}
    plain = [t.is_hit for t in spots if t.contrast > 1.5 * usual[t.kind]]
    faint = [t.is_hit for t in spots if t.contrast < 0.3 * usual[t.kind]]
    assert np.mean(plain) > 0.8
    assert np.mean(faint) < 0.2
    blind = try_plates(source, ContrastFinder(least=5.0), 0.5, plates=1, seed=5)
    assert not any(trial.is_hit for of_plate in blind for trial in of_plate)


def test_a_plate_too_small_for_its_defects_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        list(try_plates(source_of(40.0, 12.0), ContrastFinder(), 0.5, plates=1, seed=0))


def test_the_picture_shows_every_kind_and_is_the_same_again(
    tmp_path: Path, tried: list[Trial]
) -> None:
    panels = [
        [Panel(kind, name, fit(tried, kind, name)) for kind in nominal_defects()]
        for name in PROPERTIES
    ]
    for name in ("one.svg", "two.svg", "three.png"):
        draw(tmp_path / name, "curves", panels)
    one = (tmp_path / "one.svg").read_text()
    assert all(f">{kind}<" in one for kind in nominal_defects())
    assert one == (tmp_path / "two.svg").read_text()
    assert cv2.imread(str(tmp_path / "three.png")) is not None


def write_folder(root: Path) -> None:
    """Three parts of two pictures, one of one: good, one picture bad, bad but faint; good."""
    rng = np.random.default_rng(0)
    strengths = {"a": (0, 0), "b": (0, 90), "c": (0, 6), "d": (0,)}
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group"])
        for part, levels in strengths.items():
            for number, level in enumerate(levels):
                tile = rng.normal(100, 4, (224, 224)).astype(np.uint8)
                tile[100:130, 100:130] += np.uint8(level)
                name = f"{part}{number}.png"
                cv2.imwrite(str(root / name), tile)
                table.writerow([name, int(level > 0), "test", part])
        for number, label in enumerate((0, 1)):
            cv2.imwrite(str(root / f"t{number}.png"), np.full((224, 224), 100, np.uint8))
            table.writerow([f"t{number}.png", label, "train", f"t{number}"])


def test_parts_of_several_pictures_are_judged_by_their_highest_score(tmp_path: Path) -> None:
    write_folder(tmp_path)
    row = evaluate_model(tmp_path, ContrastFinder(least=0.1), "test")  # type: ignore[arg-type]
    level = row["groups_level"]
    assert (level["groups"], level["defective"]) == (3, 2)
    assert level["escape_rate"]["value"] == 0.5
    assert level["false_reject_rate"]["value"] == 0.0
    assert level["false_reject_rate"]["samples"] == 1


SMALL = """
id = "small"
version = 1
[plate]
width_mm = 60.0
length_mm = 40.0
[model]
id = "lightdefectnet-v3"
threshold = 0.75
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


def test_evaluate_measures_plates_at_the_recipes_threshold(recipe: str) -> None:
    options = ("--plates", "20", "--recipe", recipe, "--json")
    done = vqi("model", "evaluate", "--model", "lightdefectnet-v3", *options)
    assert done.returncode == 0, done.stderr
    plates = json.loads(done.stdout)["plates"]
    assert plates["threshold"] == 0.75
    for name in ("escape_rate", "false_reject_rate"):
        assert plates[name]["samples"] == 10
        assert plates[name]["low"] <= plates[name]["value"] <= plates[name]["high"]
    assert plates["calibration"]["brier"]["samples"] == 10


def test_pod_writes_a_row_for_each_kind_and_the_picture(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "pod.svg"
    options = ("--plates", "6", "--recipe", recipe, "--out", str(out), "--json")
    done = vqi("model", "pod", "--model", "lightdefectnet-v3", *options)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == list(nominal_defects())
    for row in rows:
        assert row["command"].startswith("vqi model pod")
        for name in PROPERTIES:
            reach = row[name]
            assert reach["hits"] <= reach["trials"]
            assert reach["note"] or reach["a90_95"], "what is missing is explained"
    assert out.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate",), "--data, or --plates"),
        (("evaluate", "--plates", "20"), "--model"),
        (("evaluate", "--model", "lightdefectnet-v3", "--plates", "5"), "20 plates"),
        (("pod", "--model", "lightdefectnet-v3", "--out", "curve.pdf"), ".svg or .png"),
        (
            ("export", "--run", "r", "--data", "d", "--out", "o", "--recipe", "x", "--plates", "9"),
            "396",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = vqi("model", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
