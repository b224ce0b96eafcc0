"""Faster precisions: none judges a plate before its gate, none does what it does not say."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from station_rig import Rig, vqi

from drivers.camera.settings import SimulatedCameraSettings
from models.agreement import auroc, auroc_difference, equal_share_bound, matching_threshold
from models.card import GateSetCard, ModelError, read_card, sha256_of
from models.classifier import Classifier, Variant
from models.quantise import quantise
from models.registry import shipped_weights
from models.runtimes import (
    Precision,
    PrecisionUnavailable,
    Runner,
    _compile,
    _front_end,
    _read,
    _trunk,
    build_runner,
    check_available,
    check_really_runs,
    defect_scores,
    find,
    runtime_name,
)
from station import machine
from station.config import Configuration, Loaded, Recipe, load_configuration, load_recipe
from station.gate import (
    Candidate,
    Gate,
    GatePlan,
    Plate,
    _compare_auroc,
    compare_verdicts,
    limits_of,
    run_gate,
)
from station.gate_set import GateSet, GateTiles, Scores, measure_gate_set
from station.precision import (
    ChangedPlate,
    GateRecord,
    GateSetRecord,
    derived_path,
    load_classifier,
    read_record,
    record_path,
    write_record,
)

onnx = pytest.importorskip("onnx", reason="needs onnx (the `edge` extra)")
openvino = pytest.importorskip("openvino", reason="needs openvino (the `edge` extra)")
from onnx import helper, numpy_helper  # noqa: E402

try:
    check_available("bf16")
except PrecisionUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SHIPPED = shipped_weights() / "lightdefectnet-v3"
MODEL = (SHIPPED / "model.onnx").read_bytes()
CAMERA = SimulatedCameraSettings.model_validate(
    {
        "type": "simulated",
        "width": 768,
        "specimen": {"width_mm": 60.0, "length_mm": 40.0, "lateral_offset_mm": 3.0},
    }
)
"""The rig's: small plates of eight tiles."""


@dataclass(frozen=True)
class Station:
    """A configured station, and what its gate is given."""

    rig: Rig
    configuration: Loaded[Configuration]
    recipe: Loaded[Recipe]
    plan: GatePlan

    @property
    def directory(self) -> Path:
        return self.configuration.value.precision_dir


def make_station(folder: Path) -> Station:
    rig = Rig(folder, station={"inspect_threads": 1})
    configuration = load_configuration(str(rig.write()))
    source = configuration.value.station.recipe
    plan = GatePlan(
        GateSet(source, 0.1, 768, plates=48, seed=5),
        choosing_plates=12,
        judged_plates=24,
        equal_share=0.8,
    )
    return Station(rig, configuration, load_recipe(source), plan)


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return make_station(tmp_path)


@pytest.fixture(scope="module")
def fp32() -> Classifier:
    return Classifier.load(SHIPPED)


def gate_of(station: Station, fp32: Classifier) -> Gate:
    return Gate(fp32, station.recipe, CAMERA, station.plan)


def candidate_of(model: bytes) -> Candidate:
    return Candidate("bf16", [build_runner("test", model, "bf16")], runtime=runtime_name("bf16"))


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory, fp32: Classifier) -> GateRecord:
    """A record in which bf16 passed, with the scores that it really gives; of the recipe that all
    stations here have."""
    candidate = candidate_of(MODEL)
    candidate.threshold, candidate.speed_ratio = 0.875, 1.4
    gate_set = GateSetRecord(
        recipe="", seed=1, plates=1, tiles=1, defective=1, sha256="", is_as_on_card=None, auroc=1.0
    )
    station = make_station(tmp_path_factory.mktemp("passed"))
    return gate_of(station, fp32).record([candidate], 1.0, gate_set, [], "a test")


# --- what is refused ----------------------------------------------------------------------------


def test_bf16_of_the_shipped_model_passes(station: Station, fp32: Classifier) -> None:
    gate, candidate = gate_of(station, fp32), candidate_of(MODEL)
    gate_set = gate.compare_tiles([candidate])
    judged = gate.compare_plates([candidate])
    assert candidate.refused == ""
    assert candidate.auroc_difference is not None
    value, low, high = candidate.auroc_difference
    assert -0.002 <= low <= value <= high <= 0.002
    assert candidate.equal_plates == len(judged) == 24
    assert sum(plate.is_limit_sample for plate in judged) == 6
    verdicts = {plate.highest["fp32"] > fp32.threshold for plate in judged}
    assert verdicts == {True, False}, "plates of one verdict would prove nothing"
    assert 0 < gate_set.defective < gate_set.tiles


def damaged(kind: str) -> bytes:
    """The shipped graph with something wrong in it."""
    model = onnx.load_from_string(MODEL)
    random = np.random.default_rng(0)
    if kind == "noise":
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim == 4 and values.size > 500:
                noise = random.normal(0, 2 * values.std(), values.shape).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
        return bytes(model.SerializeToString())
    operator, constant = {
        "order": ("Gather", np.array([1, 0])),
        "stuck": ("Min", np.zeros(2, np.float32)),
        "NaN": ("Mul", np.full(2, np.nan, np.float32)),
    }[kind]
    last = next(node for node in model.graph.node if "probabilities" in node.output)
    last.output[0] = "right"
    model.graph.initializer.append(numpy_helper.from_array(constant, "wrong"))
    axis = {"axis": 1} if operator == "Gather" else {}
    wrong = helper.make_node(operator, ["right", "wrong"], ["probabilities"], **axis)
    model.graph.node.append(wrong)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("noise", r"AUROC on the gate set differs by -0\.\d+ \[.*\] from fp32's, 0\.002 allowed"),
        ("stuck", r"AUROC on the gate set differs by -[01]\.\d+"),
        ("order", r"AUROC on the gate set differs by -[01]\.\d+"),
        ("NaN", "a tile of the gate set scores NaN or infinity"),
    ],
)
def test_a_damaged_model_is_refused(
    station: Station, fp32: Classifier, kind: str, reason: str
) -> None:
    candidate = candidate_of(damaged(kind))
    gate_of(station, fp32).compare_tiles([candidate])
    assert re.match(reason, candidate.refused), candidate.refused
    assert not candidate.record().is_passed


def test_a_gate_set_too_small_to_tell_refuses() -> None:
    """Two errors that cancel: the difference is nothing, but what is known of it is little."""
    labels = np.tile(np.array([0, 1]), 20)
    fp32_scores = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    faster = fp32_scores.copy()
    faster[[8, 9]], faster[[30, 31]] = faster[[9, 8]], faster[[31, 30]]
    labels[[30, 31]] = 1, 0
    plates_of = np.arange(40) // 4
    candidate = Candidate("bf16")
    scores: dict[Precision, Scores] = {"fp32": fp32_scores, "bf16": faster}
    _compare_auroc(candidate, GateTiles(labels, plates_of, scores, ""))
    assert candidate.auroc_difference is not None
    assert abs(candidate.auroc_difference[0]) <= 1e-9
    assert "AUROC on the gate set differs by +0.0000 [-0.0" in candidate.refused


def plates(scores: list[tuple[float, float]], scale: float = 1.5) -> list[Plate]:
    """Defective plates with these highest scores in fp32 and bf16."""
    return [
        Plate(number, True, scale, {"fp32": fp32_score, "bf16": score})
        for number, (fp32_score, score) in enumerate(scores)
    ]


ALIKE = [(0.1, 0.1), (0.9, 0.9)] * 400
"""800 equal verdicts at any threshold between."""


@pytest.mark.parametrize(
    ("judged", "reason"),
    [
        (plates(ALIKE), ""),
        (plates(ALIKE[:730]), "0 plate verdicts change: at least 99.50% are equal"),
        (plates([*ALIKE, (0.6, 0.4)]), "1 plate verdicts change: at least 99.31% are equal"),
        (plates([*ALIKE, *ALIKE, (0.6, 0.4)]), ""),
        (plates([*ALIKE, *ALIKE]) + plates([(0.6, 0.4)], 1.0), "passes limit samples .* plates 0"),
        (plates([*ALIKE, *ALIKE]) + plates([(0.4, 0.6)], 1.0), ""),
        (plates([*ALIKE, (0.1, float("nan"))]), "a plate scores NaN or infinity"),
        (plates([*ALIKE, (0.9, float("inf"))]), "a plate scores NaN or infinity"),
    ],
)
def test_verdicts_must_be_equal_and_no_limit_sample_lost(judged: list[Plate], reason: str) -> None:
    candidate = Candidate("bf16")
    compare_verdicts(candidate, plates(ALIKE[:40]), judged, fp32_threshold=0.5)
    assert re.match(reason + "$" * (not reason), candidate.refused), candidate.refused


def test_every_changed_verdict_is_listed() -> None:
    candidate = Candidate("bf16")
    judged = plates([*ALIKE, *ALIKE, (0.7, 0.3), (0.2, 0.8)])
    compare_verdicts(candidate, plates(ALIKE[:40]), judged, fp32_threshold=0.5)
    common = {"is_defective": True, "is_limit_sample": False, "contrast_scale": 1.5}
    assert [each.model_dump() for each in candidate.changed] == [
        {"plate": 1600, "change": "FAIL to PASS", "fp32_score": 0.7, "score": 0.3, **common},
        {"plate": 1601, "change": "PASS to FAIL", "fp32_score": 0.2, "score": 0.8, **common},
    ]


def test_the_threshold_is_chosen_again_on_other_plates() -> None:
    """A precision that halves every score judges alike at a threshold of its own."""
    candidate = Candidate("bf16")
    halved = [(score, score / 2) for score, _ in ALIKE]
    compare_verdicts(candidate, plates(halved[:40]), plates(halved), fp32_threshold=0.6)
    assert candidate.threshold == pytest.approx(0.25)
    assert candidate.refused == ""


def test_int8_runs_in_int8_and_is_refused_when_damaged(station: Station, fp32: Classifier) -> None:
    model = quantise(MODEL, fp32.golden_tiles())
    scores = defect_scores(build_runner("int8", model, "int8"), fp32.golden_tiles())
    assert np.abs(scores - fp32.scores(fp32.golden_tiles())).max() < 0.5
    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.int8 and values.size > 500:
            tensor.CopyFrom(numpy_helper.from_array(np.roll(values, 7), tensor.name))
    runner = build_runner("damaged", graph.SerializeToString(), "int8")
    candidate = Candidate("int8", [runner], runtime=runtime_name("int8"))
    gate_of(station, fp32).compare_tiles([candidate])
    assert "AUROC on the gate set differs" in candidate.refused


def test_what_does_not_run_in_its_precision_is_refused() -> None:
    """A hint that the runtime does not follow, and fp32 bytes in the place of int8 ones."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(MODEL), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with pytest.raises(ModelError, match=r"not all of its convolutions run in bf16: \d+ in f32"):
        check_really_runs("silent", compiled, "bf16")
    with pytest.raises(ModelError, match=r"not all of its convolutions run in int8: \d+ in f32"):
        build_runner("fp32 bytes", MODEL, "int8")
    with pytest.raises(ModelError, match="junk: OpenVINO refuses it: "):
        build_runner("junk", b"junk", "bf16")


def test_a_gate_set_that_is_not_the_cards_ends_the_gate(station: Station, fp32: Classifier) -> None:
    gate_set = station.plan.gate_set
    assert gate_set is not None
    card = measure_gate_set(fp32, gate_set)
    assert (card.plates, card.seed) == (48, 5)
    for auroc_on_card, fails in ((card.auroc, False), (card.auroc - 0.01, True)):
        claimed = GateSetCard(
            **{**card.model_dump(), "auroc": auroc_on_card, "recipe": "shipped:x"}
        )
        claimed = claimed.model_copy(update={"recipe": gate_set.recipe})
        classifier = Classifier(
            SHIPPED, fp32.card.model_copy(update={"gate": claimed}), fp32.runners, None
        )
        gate = Gate(classifier, station.recipe, CAMERA, GatePlan())
        if fails:
            with pytest.raises(ModelError, match=r"its gate set came out differently here"):
                gate.compare_tiles([])
        else:
            assert gate.compare_tiles([]).is_as_on_card is True


def test_a_processor_that_reaches_less_is_told_so() -> None:
    old = limits_of(("avx2",))
    assert [text.partition(":")[0] for text in old] == [
        "no AVX512",
        "no AVX512 VNNI",
        "no AVX512 BF16",
    ]
    assert limits_of(("avx2", "avx512f", "avx512_vnni", "avx512_bf16")) == ()
    assert limits_of(("asimd", "sve")) == ()


# --- what runs in bf16 --------------------------------------------------------------------------


def test_bf16_scores_depend_on_neither_session_nor_batch(fp32: Classifier) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (11, 1, 224, 224), np.uint8)
    first, second = (build_runner("bf16", MODEL, "bf16") for _ in range(2))
    whole = defect_scores(first, tiles)
    alone = np.concatenate([defect_scores(second, tile[None]) for tile in tiles])
    assert whole.tobytes() == alone.tobytes()
    assert 0 < np.abs(whole - fp32.scores(tiles)).max() < 0.1


def test_what_openvino_runs_computes_what_onnx_runtime_computes(fp32: Classifier) -> None:
    """Also the input layer, which sees its columns in pairs there."""
    tiles = np.random.default_rng(1).integers(0, 256, (3, 1, 224, 224), np.uint8)
    halves = _front_end(_read(MODEL, 3)), _trunk(_read(MODEL, 3))
    first = next(each for each in halves[1].get_ordered_ops() if "Conv" in each.get_type_name())
    assert list(first.input_value(0).shape) == [3, 2, 224, 112]
    front, trunk = (_compile(half, "f32") for half in halves)
    found = trunk(front(tiles)[0])
    exact = fp32.find(tiles)
    assert found[0][:, 1] == pytest.approx(exact.scores, abs=1e-4)
    assert found[1][:, 0] == pytest.approx(exact.defect_maps, rel=1e-3, abs=1e-3)


def test_bf16_sees_the_defect_where_fp32_does(fp32: Classifier) -> None:
    tiles = fp32.golden_tiles()
    exact, faster = fp32.find(tiles), find(build_runner("bf16", MODEL, "bf16"), tiles)
    assert exact.defect_maps is not None
    assert faster.defect_maps is not None
    assert faster.defect_maps.shape == exact.defect_maps.shape == (len(tiles), 7, 7)
    spread = float(exact.defect_maps.std())
    assert 0 < np.abs(exact.defect_maps - faster.defect_maps).max() < 0.5 * spread


def test_a_station_judges_in_what_passed(station: Station, passed: GateRecord) -> None:
    before = load_classifier(station.configuration, station.recipe, 1)
    assert before.classifier.precision == "fp32"
    assert "no gate has run here" in before.why
    assert not before.is_warning
    write_record(station.directory, passed, {})
    chosen = load_classifier(station.configuration, station.recipe, 2)
    assert chosen.classifier.precision == "bf16"
    assert " bf16, " in chosen.classifier.runtime
    assert chosen.classifier.threshold_for(0.3) == 0.875
    assert "passed its gate" in chosen.why


def test_of_several_that_passed_the_fastest_judges(station: Station, passed: GateRecord) -> None:
    record = passed
    slower = record.candidates[0].model_copy(update={"precision": "int8", "speed_ratio": 1.2})
    write_record(
        station.directory,
        record.model_copy(update={"candidates": (slower, *record.candidates)}),
        {},
    )
    assert load_classifier(station.configuration, station.recipe, 1).classifier.precision == "bf16"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"processor": "another"}, "processor was another, is "),
        ({"recipe_sha256": "0" * 64}, "recipe's file was 0000"),
        ({"fp32_runtime": "onnxruntime 1.20.0 fp32"}, r"runtime was onnxruntime 1\.20\.0 fp32"),
        ({"pixel_pitch_mm": 0.05}, r"pixel pitch was 0\.05, is 0\.1"),
        ({"fp32_threshold": 0.1}, r"threshold was 0\.1, is 0\.\d"),
        ({"model_sha256": "0" * 64}, "no gate has run here"),
    ],
)
def test_a_record_of_something_else_is_ignored(
    station: Station, passed: GateRecord, changes: dict[str, object], why: str
) -> None:
    record = passed.model_copy(update=changes)
    write_record(station.directory, record, {})
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.classifier.precision == "fp32"
    assert re.search(why, chosen.why), chosen.why


def test_the_next_version_leaves_the_record_of_the_one_that_judges(
    station: Station, passed: GateRecord
) -> None:
    first = write_record(station.directory, passed, {})
    later = {"recipe_sha256": "0" * 64, "made_at": "9999-01-01T00:00:00.000000Z"}
    second = write_record(station.directory, passed.model_copy(update=later), {})
    assert second != first
    assert load_classifier(station.configuration, station.recipe, 1).classifier.precision == "bf16"
    first.unlink()
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.is_warning
    assert "recipe's file was 0000" in chosen.why


def test_a_record_by_its_former_name_holds_for_its_own_version_only(
    station: Station, passed: GateRecord
) -> None:
    former = station.directory / f"small-{passed.model_sha256[:16]}.json"
    write_record(station.directory, passed, {}).rename(former)
    assert load_classifier(station.configuration, station.recipe, 1).classifier.precision == "bf16"
    before = former.read_bytes()
    other = passed.model_copy(update={"recipe_sha256": "0" * 64})
    path = write_record(station.directory, other, {})
    assert former.read_bytes() == before
    assert load_classifier(station.configuration, station.recipe, 1).classifier.precision == "bf16"
    path.rename(former)
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.classifier.precision == "fp32"
    assert chosen.is_warning
    assert "recipe's file was 0000" in chosen.why
    former.write_text("{}")
    assert "damaged" in load_classifier(station.configuration, station.recipe, 1).why
    write_record(station.directory, passed, {})
    assert load_classifier(station.configuration, station.recipe, 1).classifier.precision == "bf16"


def test_what_is_derived_for_the_next_version_leaves_this_machines_scores_of_the_other(
    tmp_path: Path, fp32: Classifier
) -> None:
    def derived(runner: Runner, sha256: str) -> Classifier:
        golden = tuple(map(float, defect_scores(runner, fp32.golden_tiles())))
        variant = Variant("int8", 0.5, golden, tmp_path / "x.onnx", sha256)
        return Classifier(SHIPPED, fp32.card, [runner], variant)

    first = derived(fp32.runners[0], "1" * 64)
    second = derived(build_runner("bf16", MODEL, "bf16"), "2" * 64)
    machine.accept_scores(first, tmp_path, "the precision gate")
    machine.accept_scores(second, tmp_path, "the precision gate")
    for one in (first, second):
        kept = machine.test_on_this_machine(one, tmp_path)
        assert kept["scores_sha256"] == one.machine_bits().scores_sha256

    path = tmp_path / "machine-scores.json"
    known = json.loads(path.read_text())
    entry = known[f"{fp32.model_sha256} int8 {'1' * 16}"]
    path.write_text(json.dumps({f"{fp32.model_sha256} int8": entry}))
    assert machine.test_on_this_machine(first, tmp_path) == entry, "of before"
    with pytest.raises(ModelError, match="recorded scores no longer hold"):
        machine.test_on_this_machine(second, tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"is_passed": False, "refused": "too slow"}, "passed nothing else: bf16 too slow"),
        ({"runtime": "openvino 1.0 bf16"}, r"runtime was openvino 1\.0 bf16, is openvino"),
        ({"golden_scores": (0.5,) * 8}, "golden scores differ by .* from the gate's record"),
        ({"precision": "int8", "derived_sha256": "0" * 64}, "cannot be read: No such file"),
        ({"precision": "int8", "runtime": "openvino int8"}, "runtime was openvino int8"),
    ],
)
def test_a_candidate_that_did_not_pass_here_does_not_judge(
    station: Station, passed: GateRecord, changes: dict[str, object], why: str
) -> None:
    record = passed
    if "derived_sha256" in changes:
        changes = {**changes, "runtime": runtime_name("int8")}
    candidate = record.candidates[0].model_copy(update=changes)
    write_record(station.directory, record.model_copy(update={"candidates": (candidate,)}), {})
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.classifier.precision == "fp32"
    assert re.search(why, chosen.why), chosen.why


def test_a_damaged_record_is_ignored_and_check_says_so(
    station: Station, passed: GateRecord
) -> None:
    path = write_record(station.directory, passed, {})
    text = path.read_text()
    assert text.count('"threshold": 0.875') == 1
    for damage in (text.replace('"threshold": 0.875', '"threshold": 0.975'), text[:-20], "{}", ""):
        path.write_text(damage)
        chosen = load_classifier(station.configuration, station.recipe, 1)
        assert chosen.classifier.precision == "fp32"
        assert chosen.is_warning
        assert "damaged" in chosen.why
    done = vqi("check", "--config", station.configuration.source)
    lines = [line for line in done.stdout.splitlines() if "warning: fp32" in line]
    assert len(lines) == 1, done.stdout
    assert "damaged" in lines[0]


def test_a_record_whose_threshold_is_no_number_is_damaged(
    station: Station, passed: GateRecord
) -> None:
    """Its sha256 is made anew: nothing but the figure is wrong, and no score is above it."""
    candidate = passed.candidates[0].model_copy(update={"threshold": math.nan})
    path = write_record(
        station.directory, passed.model_copy(update={"candidates": (candidate,)}), {}
    )
    text = path.read_text()
    assert text.count('"threshold": null') == 1
    path.write_text(text.replace('"threshold": null', '"threshold": NaN'))
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.classifier.precision == "fp32"
    assert "damaged" in chosen.why


def test_derived_bytes_are_those_that_the_gate_measured(tmp_path: Path, fp32: Classifier) -> None:
    variant = Variant("int8", 0.5, (), derived_path(tmp_path, sha256_of(MODEL)), sha256_of(MODEL))
    assert variant.derived is not None
    variant.derived.write_bytes(MODEL[:-1] + b"\0")
    with pytest.raises(ModelError, match="not the bytes that the gate measured"):
        Classifier.load(SHIPPED, variant=variant)


def test_the_whole_gate_writes_a_record_that_holds(station: Station, fp32: Classifier) -> None:
    record, path = run_gate(
        station.configuration, station.recipe, fp32, "vqi test", station.plan, lambda: None
    )
    named = "small", fp32.model_sha256, station.recipe.sha256
    assert path == record_path(station.directory, *named)
    assert read_record(station.directory, *named) == record
    assert [each.precision for each in record.candidates] == ["bf16", "fp16", "int8"]
    assert record.pixel_pitch_mm == 0.1
    assert 0 <= record.limit_samples <= station.plan.judged_plates // 4
    passed = [each for each in record.candidates if each.is_passed]
    for each in passed:
        assert each.speed_ratio is not None
        assert each.speed_ratio > 1
        assert len(each.golden_scores) == len(read_card(SHIPPED).golden.scores)
    chosen = load_classifier(station.configuration, station.recipe, 1)
    assert chosen.classifier.precision in {"fp32", *(each.precision for each in passed)}
    assert (chosen.classifier.precision == "fp32") == (not passed)


@pytest.mark.long
def test_live_inspected_and_replayed_bf16_scores_are_the_same_bits(
    tmp_path: Path, passed: GateRecord
) -> None:
    station, recorded = make_station(tmp_path), tmp_path / "strip"
    write_record(station.directory, passed, {})
    station.rig.run("--plates", "4", "--record", str(recorded))
    live = station.rig.rows("result")
    assert {"bf16" in row["runtime"] and row["threshold"] == 0.875 for row in live} == {True}
    start = next(row for row in station.rig.rows("change") if row["what"] == "start")
    assert "passed its gate" in start["detail"]["precision"]
    again = Rig(tmp_path / "replay", camera={"type": "replay", "path": str(recorded)})
    again.folder.mkdir()
    again.station["precision_dir"] = str(station.directory)
    again.run()
    replayed = {row["plate_ordinal"]: row for row in again.rows("result")}
    for row in live:
        assert replayed[row["plate_ordinal"]]["tile_scores"] == row["tile_scores"]
    whole = [row for row in live if any(image["role"] == "evidence" for image in row["images"])]
    image = next(image for image in whole[0]["images"] if image["role"] == "evidence")
    picture = str(station.rig.journal / "images" / image["path"])
    found = vqi("inspect", picture, "--config", station.configuration.source, "--json")
    scores = [tile["score"] for tile in json.loads(found.stdout)["tiles"]]
    assert np.array(scores, np.float32).tobytes() == base64.b64decode(whole[0]["tile_scores"])


# --- the package --------------------------------------------------------------------------------


def test_a_missing_openvino_is_one_line(station: Station, passed: GateRecord) -> None:
    write_record(station.directory, passed, {})
    program = (
        "import sys; sys.modules['openvino'] = None\n"
        "from station.config import load_configuration, load_recipe\n"
        "from station.precision import load_classifier\n"
        f"configuration = load_configuration({station.configuration.source!r})\n"
        "recipe = load_recipe(configuration.value.station.recipe)\n"
        "print(load_classifier(configuration, recipe, 1).why)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert re.fullmatch(
        r"fp32: needs package openvino .*pip install vqi-station\[edge\].*\n", done.stdout
    )


def test_openvino_tells_nobody(tmp_path: Path) -> None:
    """Its companion for telemetry is not imported and leaves no identifier in the home folder."""
    program = (
        "import sys; from models.registry import shipped_weights\n"
        "from models.runtimes import build_runner\n"
        "model = (shipped_weights() / 'lightdefectnet-v3' / 'model.onnx').read_bytes()\n"
        "build_runner('test', model, 'bf16')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "count", "low"),
    [(0, 735, 0.994994), (0, 736, 0.995000), (2, 1443, 0.995002), (5, 10, 0.187086), (9, 9, 0.0)],
)
def test_the_bound_is_the_exact_one(differences: int, count: int, low: float) -> None:
    assert equal_share_bound(differences, count) == pytest.approx(low, abs=1e-6)


def test_auroc_counts_ties_half() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.5, 0.9], np.float32)
    assert auroc(labels, scores) == pytest.approx(3.5 / 4)
    difference = auroc_difference(labels, scores, scores[::-1].copy(), np.array([0, 1, 0, 1]))
    assert difference.value == pytest.approx(0.5 / 4 - 3.5 / 4)
    assert difference.low <= difference.value <= difference.high


def test_the_matching_threshold_loses_as_few_fails_as_it_can() -> None:
    fails = np.array([False, False, True, True])
    scores = np.array([0.1, 0.6, 0.5, 0.9])
    # 0.3 and 0.75 change one verdict each; 0.75 would let a failing plate pass.
    assert matching_threshold(fails, scores, 0.7) == pytest.approx(0.3)
    assert matching_threshold(fails, np.array([0.1, 0.2, 0.8, 0.9]), 0.7) == 0.7


def test_changed_plates_read_back() -> None:
    plate = ChangedPlate(
        plate=1,
        change="FAIL to PASS",
        is_defective=True,
        is_limit_sample=True,
        contrast_scale=1.0,
        fp32_score=0.99210345745,
        score=0.1,
    )
    assert ChangedPlate.model_validate_json(plate.model_dump_json()) == plate
