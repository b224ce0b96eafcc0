"""Training: decided by its seed, not harmed by a kill, clear about bad folders, and never flattered
by what it is tested on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
from station_rig import vqi

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")

from models.classifier import Classifier  # noqa: E402
from models.training.count import count_mflops, count_parameters  # noqa: E402
from models.training.data import DataError, Sample, load_tiles, read_folder, select  # noqa: E402
from models.training.evaluate import auroc, evaluate, rate  # noqa: E402
from models.training.export import ExportError, export, read_network, to_onnx  # noqa: E402
from models.training.fit import (  # noqa: E402
    RESULT_FILE,
    Fit,
    FitResult,
    TrainingRecipe,
    load_weights,
    predict,
    run_fit,
)
from models.training.front_end import FRONT_ENDS  # noqa: E402
from models.training.lightdefectnet import (  # noqa: E402
    AttentionCondenser,
    BlurPool,
    LightDefectNet,
    prepare_for_export,
)
from models.training.loss import DISCREPANCY_LIMIT, DISCREPANCY_WEIGHT, two_head_loss  # noqa: E402
from models.training.networks import build  # noqa: E402
from models.training.report import evaluate_run  # noqa: E402
from models.training.train import (  # noqa: E402
    FROM_NOTHING_LONG,
    LARGE,
    LEARNED_FILE,
    RECIPES,
    Beginning,
    Plan,
    _judge,
    calibrate,
    cut_folds,
    default_epochs,
    load_network,
    pretrained_weights,
    read_summary,
    train,
)

PLAIN = TrainingRecipe("contrast, from nothing", "contrast", is_pretrained=False)
RAW = TrainingRecipe("raw, from nothing", "raw", is_pretrained=False)


class Quiet:
    """Counts what is reported."""

    def __init__(self) -> None:
        self.planned = self.done = 0

    def begin(self, batches: int, what: str) -> None:
        self.planned += batches

    def advance(self, batches: int = 1) -> None:
        self.done += batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 tiles of noise, half with a bright blob: 24 to train on, 8 to test."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(32):
        tile = rng.integers(80, 100, (224, 224), np.uint8)
        label = number % 2
        if label:
            cv2.circle(tile, (int(rng.integers(40, 180)), 100), 20, 250, -1)
        name = f"{number:02d}.png"
        cv2.imwrite(str(root / name), tile)
        split = "train" if number < 24 else "test"
        rows.append([name, label, split, f"part{number // 2}", "bright_spot" if label else ""])
    write_labels(root, rows)
    return root


def write_labels(root: Path, rows: list[list[object]]) -> None:
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group", "defect_type"])
        table.writerows(rows)


def plan(folder: Path, run: Path, **changes: object) -> Plan:
    return replace(Plan(folder, run, recipes=(PLAIN,), seeds=(1,), epochs=1), **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "seed-1" / RESULT_FILE, weights_only=True)["weights"]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that chose among two recipes and trained two seeds."""
    run = tmp_path_factory.mktemp("run")
    progress = Quiet()
    chosen = plan(folder, run, recipes=(PLAIN, RAW), seeds=(1, 2), epochs=2)
    train(chosen, "vqi model train", progress)
    assert progress.done == progress.planned > 0
    return run


@pytest.mark.long
def test_the_best_front_end_is_also_trained_from_nothing_and_longer(
    folder: Path, tmp_path: Path
) -> None:
    summary = train(plan(folder, tmp_path / "run", recipes=RECIPES), "", Quiet())
    judged = {each["recipe"]["name"]: each["auroc"] for each in summary["candidates"]}
    begun = {recipe.name: recipe for recipe in RECIPES}
    best = max(begun, key=lambda name: judged[name])
    longer = FROM_NOTHING_LONG[begun[best].front_end]
    assert set(judged) == {*begun, longer.name}
    assert summary["out_of_fold"]["auroc"] == max(judged.values())
    assert default_epochs("lightdefectnet", 400, is_long=True) > default_epochs(
        "lightdefectnet", 400
    )


def test_another_seed_gives_other_weights(run: Path) -> None:
    first = weights(run)
    other = torch.load(run / "seed-2" / RESULT_FILE, weights_only=True)["weights"]
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_summary_names_what_made_it_and_every_candidate(folder: Path, run: Path) -> None:
    summary = read_summary(run)
    assert {c["recipe"]["name"] for c in summary["candidates"]} == {PLAIN.name, RAW.name}
    best = max(summary["candidates"], key=lambda candidate: candidate["auroc"])
    assert summary["recipe"] == best["recipe"]
    assert summary["out_of_fold"]["folds"] == 4
    assert summary["out_of_fold"]["samples"] == 24, "every training picture was held out once"
    assert summary["seeds"] == [1, 2]
    for key in ("command", "data_sha256", "code_revision"):
        assert summary[key]


def test_what_is_held_out_is_held_out_with_its_whole_group(folder: Path, run: Path) -> None:
    folds = sorted(run.glob("contrast-from-nothing-fold-*"))
    assert len(folds) == 4
    saved = [torch.load(fold / RESULT_FILE, weights_only=True) for fold in folds]
    assert sum(result["identity"]["held"] for result in saved) == 24
    assert all(result["identity"]["held"] % 2 == 0 for result in saved), "groups are pairs"


def test_the_test_pictures_are_not_looked_at(folder: Path, run: Path, tmp_path: Path) -> None:
    """Other test pictures and labels give the same weights, recipe and threshold: the seed and the
    training pictures alone decide."""
    copy, again = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, copy)
    rows = list(csv.reader((folder / "labels.csv").read_text().splitlines()))[1:]
    for row in rows:
        if row[2] == "test":
            row[1] = str(1 - int(row[1]))
            cv2.imwrite(str(copy / row[0]), np.zeros((224, 224), np.uint8))
    write_labels(copy, rows)
    chosen = plan(copy, again, recipes=(PLAIN, RAW), seeds=(1, 2), epochs=2)
    train(chosen, "vqi model train", Quiet())
    first, second = weights(run), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for key in ("recipe", "epoch", "threshold", "out_of_fold", "candidates"):
        assert read_summary(run)[key] == read_summary(again)[key]


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_stopped(folder: Path, run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "station.cli", "model", "train", "--data", str(folder)]
    command += ["--epochs", "4", "--seeds", "1", "--recipe", PLAIN.name, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob("*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "summary.json").exists(), "it was killed too late to show anything"
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    whole = tmp_path / "whole"
    train(plan(folder, whole, epochs=4), "", Quiet())
    first, second = weights(whole), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    train(plan(folder, tmp_path), "", Quiet())
    with pytest.raises(DataError, match="other data or settings"):
        train(plan(folder, tmp_path, epochs=2), "", Quiet())


def test_a_large_set_holds_one_part_out(folder: Path) -> None:
    """In a large set the split `val` chooses if it can; four folds would take hours."""
    samples = select(read_folder(folder), "train")
    assert len(cut_folds(samples, seed=1)) == 4
    many = [
        replace(samples[i % len(samples)], group=f"part{i}", label=i % 2) for i in range(LARGE + 1)
    ]
    held = [replace(sample, split="val") for sample in many[:16]]
    (fold,) = cut_folds(held + many[16:], seed=1)
    assert sorted(fold) == list(range(16))
    (fold,) = cut_folds(held[:6] + many[6:], seed=1)
    assert LARGE / 10 < len(fold) < LARGE / 6, "six pictures choose nothing"
    assert default_epochs("lightdefectnet", 16_000) < default_epochs("lightdefectnet", 400)


def test_the_command_line_goes_from_tiles_to_a_model_the_station_loads(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny-model"
    done = vqi(
        *("model", "export", "--run", str(run), "--data", str(folder)),
        *("--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert Classifier.load(out).self_test().bits
    card = json.loads((out / "card.json").read_text())
    assert card["training"]["seed"] == 1
    assert "vqi model train" in card["training"]["command"]
    front_end = FRONT_ENDS[read_summary(run)["recipe"]["front_end"]]()
    assert card["input"]["constants"] == front_end.constants
    for split, is_known in (("test", False), ("all", True)):
        options = ("--model", str(out), "--data", str(folder), "--split", split, "--json")
        done = vqi("model", "evaluate", *options)
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)
        assert row["model"] == "tiny-model"
        assert any("was trained on train and val" in each for each in row["remarks"]) == is_known


def test_evaluate_reports_the_mean_of_the_seeds_with_intervals(folder: Path, run: Path) -> None:
    done = vqi("model", "evaluate", "--data", str(folder), "--run", str(run), "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    for name in ("accuracy", "auroc", "escape_rate", "false_reject_rate"):
        figure = row[name]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert sum(row["confusion"].values()) == 8 * 2
    assert set(row["recall_by_defect_type"]) == {"bright_spot"}
    assert row["auroc"]["value"] == pytest.approx(np.mean([s["auroc"] for s in row["seeds"]]))
    assert any("8 pictures only" in remark for remark in row["remarks"])
    assert row["command"].startswith("vqi model evaluate")
    assert row["trained"]["by"]


def test_evaluate_takes_an_exported_model_too(folder: Path) -> None:
    done = vqi(
        *("model", "evaluate", "--data", str(folder)),
        *("--model", "lightdefectnet-v3", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "lightdefectnet-v3"


def test_a_folder_of_thirty_pictures_of_each_class_trains(tmp_path: Path) -> None:
    """Any size, one to four channels, no table: it works and says how little it can claim."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("good", "defective")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(30):
            shape = (int(rng.integers(90, 300)), int(rng.integers(90, 300)), 1 + number % 4)
            picture = rng.integers(80, 100, shape, np.uint8)
            if label:
                picture[20:50, 20:50] = 220
            if shape[2] == 2:
                picture = picture[:, :, 0]
            cv2.imwrite(str(tmp_path / "data" / name / f"{number}.png"), picture)
    run = tmp_path / "run"
    train(plan(tmp_path / "data", run, epochs=1), "", Quiet())
    done = vqi("model", "evaluate", "--data", str(tmp_path / "data"), "--run", str(run))
    assert done.returncode == 0, done.stderr
    assert "pictures only" in done.stdout
    assert "no groups given" in done.stdout


def test_a_picture_of_any_shape_is_seen_whole(tmp_path: Path) -> None:
    picture = np.zeros((100, 600), np.uint8)
    picture[:, 580:] = 255
    cv2.imwrite(str(tmp_path / "wide.png"), picture)
    sample = Sample(tmp_path / "wide.png", "wide.png", 0, "train", "wide")
    assert load_tiles([sample])[0, 0, :, -4:].min() > 200


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([["00.png", 0, "train", "p", ""]], "defective"),
        ([["00.png", 0, "train", "a", ""], ["none.png", 1, "train", "b", ""]], "none.png"),
        (
            [
                ["00.png", 0, "train", "p", ""],
                ["01.png", 1, "train", "q", ""],
                ["02.png", 0, "test", "p", ""],
                ["03.png", 1, "test", "r", ""],
            ],
            "p",
        ),
        ([["00.png", 2, "train", "p", ""], ["01.png", 1, "train", "q", ""]], "label"),
        ([["00.png", 0, "train", "p", ""], ["01.png", 1, "train", "q", ""]], "groups"),
    ],
)
def test_a_bad_folder_is_one_clear_error(
    folder: Path, tmp_path: Path, rows: list[list[object]], text: str
) -> None:
    for file in folder.glob("*.png"):
        (tmp_path / file.name).symlink_to(file)
    write_labels(tmp_path, rows)
    done = vqi("model", "train", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert text in done.stderr
    assert str(tmp_path) in done.stderr


def test_an_unknown_network_or_recipe_is_named(folder: Path) -> None:
    for option, value in (("--network", "vgg"), ("--recipe", "nonsense")):
        done = vqi("model", "train", "--data", str(folder), option, value)
        assert done.returncode == 1
        assert value in done.stderr
        assert "there are" in done.stderr


def test_the_network_keeps_its_budget() -> None:
    for front_end in FRONT_ENDS:
        model = to_onnx(LightDefectNet(front_end).eval())
        assert count_parameters(model) <= 770_000
        assert count_mflops(model) <= 93


def test_nothing_but_the_input_layer_and_blur_pools_strides() -> None:
    network = LightDefectNet()
    strided = [
        module
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d | torch.nn.AvgPool2d)
        and module.stride not in (1, (1, 1))
    ]
    assert strided == [network.stem[0].conv]
    assert sum(isinstance(module, BlurPool) for module in network.modules()) >= 4
    assert sum(isinstance(module, AttentionCondenser) for module in network.modules()) == 4


def test_what_is_exported_computes_what_was_trained(folder: Path, run: Path) -> None:
    network = load_network(run)
    assert isinstance(network, LightDefectNet)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 1, 224, 224), np.uint8)
    with torch.inference_mode():
        folded = prepare_for_export(network)(torch.from_numpy(tiles))[0][:, 1].numpy()
    assert folded == pytest.approx(predict(network, tiles), abs=1e-5)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_front_end_depends_on_no_extreme_of_the_tile(front_end: str) -> None:
    """A speck far away does not change what is seen here."""
    tile = np.random.default_rng(0).integers(80, 120, (1, 1, 224, 224), np.uint8)
    speck = tile.copy()
    speck[0, 0, 200:210, 200:210] = 255
    see = FRONT_ENDS[front_end]()
    plain, changed = see(torch.from_numpy(tile)), see(torch.from_numpy(speck))
    assert torch.allclose(plain[..., :120, :120], changed[..., :120, :120], atol=1e-5)
    assert not torch.allclose(plain, changed, atol=0.1)


def test_local_contrast_is_unmoved_by_gain() -> None:
    tile = torch.full((1, 1, 224, 224), 100, dtype=torch.uint8)
    tile[..., 50:60, 50:60] = 120
    see = FRONT_ENDS["contrast"]()
    bright = (tile * 2).to(torch.uint8)
    assert (see(tile) - see(bright)).abs().max() < 0.1 * see(tile).abs().max()


@pytest.mark.parametrize(("front_end", "cell_px", "reach"), [("contrast", 4, 4), ("fine", 2, 2)])
def test_local_contrast_is_what_its_card_says(front_end: str, cell_px: int, reach: int) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (2, 1, 224, 224), np.uint8)
    see = FRONT_ENDS[front_end]()
    seen = see(torch.from_numpy(tile)).numpy()
    dark, gain = see.constants["dark_level"], see.constants["gain"]
    for y, x in ((0, 0), (0, 223), (113, 57), (223, 100), (9, 220)):
        rows, columns = (
            slice(max(0, (p // cell_px - reach) * cell_px), (p // cell_px + reach + 1) * cell_px)
            for p in (y, x)
        )
        mean = tile[1, 0, rows, columns].mean()
        expected = (tile[1, 0, y, x] + dark) * gain / (mean + dark) - gain
        assert seen[1, 0, y, x] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_front_end_sees_a_shifted_picture_shifted(front_end: str) -> None:
    """Were the local means those of fixed cells, a plate's decision would depend on its place."""
    picture = np.random.default_rng(0).integers(80, 120, (1, 1, 224, 228), np.uint8)
    see = FRONT_ENDS[front_end]()
    here, there = see(torch.from_numpy(picture[..., :224])), see(torch.from_numpy(picture[..., 4:]))
    assert torch.allclose(here[..., 24:204], there[..., 20:200], atol=1e-4)


def test_of_one_held_out_part_the_last_epochs_count() -> None:
    """The best of many epochs on one part is luck, and its learning rate was still high."""
    labels = np.tile(np.array([0, 1]), 10)
    perfect, useless = labels.astype(np.float32), np.full(20, 0.5, np.float32)
    scores = np.stack([useless, perfect, perfect, perfect, useless, useless, useless])
    result = FitResult({}, scores, 1.0, "cpu", "")
    part = np.arange(20)
    one = SimpleNamespace(epochs=lambda _: 7, labels=labels, choosing_folds=[part])
    choice = _judge(cast(Any, one), PLAIN, [result])
    assert (choice.epoch, choice.auroc) == (7, 0.5)
    two = SimpleNamespace(epochs=lambda _: 7, labels=labels, choosing_folds=[part, part])
    choice = _judge(cast(Any, two), PLAIN, [result, result])
    assert (choice.epoch, choice.auroc) == (4, 1.0)


def test_two_heads_earn_by_differing_but_not_without_bound() -> None:
    labels = torch.tensor([1])
    same = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    apart = torch.tensor([[[0.0, 0.9], [0.0, 1.1]]])
    assert two_head_loss(apart, labels) < two_head_loss(same, labels) + 1e-3
    wrong = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    right = torch.tensor([[[0.0, 9.0], [0.0, 9.0]]])
    assert two_head_loss(wrong, labels) > two_head_loss(right, labels) + 1
    assert DISCREPANCY_WEIGHT * DISCREPANCY_LIMIT < 0.1


def test_a_baseline_is_trained_by_the_same_hands(folder: Path, tmp_path: Path) -> None:
    samples = select(read_folder(folder), "train")[:4]
    fit = Fit("unit", "mobilenetv3_large", RAW, seed=1, epochs=1, stop_after=1)
    result = run_fit(fit, samples, samples[:2], "0" * 64, tmp_path)
    assert result.held_scores.shape == (1, 2)
    assert np.isfinite(result.held_scores).all()


def test_figures_of_known_scores() -> None:
    labels = np.array([0, 0, 1, 1])
    assert auroc(labels, np.array([0.1, 0.2, 0.8, 0.9], np.float32)) == 1
    assert auroc(labels, np.array([0.5] * 4, np.float32)) == 0.5
    assert rate(0, 20).high == pytest.approx(0.168, abs=0.001)


def test_few_groups_get_a_wider_second_interval() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    groups = [f"lens{i // 25}" for i in range(200)]
    lens_shift = np.repeat(rng.normal(0, 0.3, 8), 25)
    scores = np.clip(0.5 + 0.3 * (labels - 0.5) + lens_shift, 0, 1).astype(np.float32)
    figure = evaluate(labels, [scores], [0.5], groups).accuracy
    assert figure.few_groups is not None
    assert "t(7)" in figure.few_groups.method
    assert figure.few_groups.high - figure.few_groups.low > figure.high - figure.low
    many = evaluate(labels, [scores], [0.5], [str(i // 2) for i in range(200)]).accuracy
    assert many.few_groups is None


def test_a_perfect_order_of_few_is_not_known_to_be_perfect() -> None:
    labels, scores = np.array([0] * 6 + [1] * 6), np.arange(12, dtype=np.float32) / 12
    area = evaluate(labels, [scores], [0.5]).auroc
    assert (area.value, area.high) == (1, 1)
    assert area.low < 0.6
    of_parts = evaluate(labels, [scores], [0.5], groups=list("aabbccddeeff")).auroc
    assert of_parts.low < area.low, "three parts of each class say less than six pictures"


def test_pictures_that_were_trained_on_are_named(folder: Path, run: Path) -> None:
    assert not any(
        "trained on" in remark for remark in evaluate_run(folder, run, "test")["remarks"]
    )
    remarks = evaluate_run(folder, run, "all")["remarks"]
    assert "24 of 32 pictures were trained on: this says nothing of new ones" in remarks
    with pytest.raises(DataError, match="no split 'tests'; there are train, val, test, all"):
        evaluate_run(folder, run, "tests")
    (run / LEARNED_FILE).rename(run / "aside")
    with pytest.raises(DataError, match=r"learned\.txt: missing; `vqi model train`"):
        evaluate_run(folder, run, "test")
    (run / "aside").rename(run / LEARNED_FILE)


def test_hand_made_features_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    """Another folder is scored by what was fitted to the first."""
    other, run = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    rows = []
    for number, row in enumerate(csv.reader((folder / "labels.csv").read_text().splitlines())):
        if number:
            (other / row[0]).symlink_to(folder / row[0])
            rows.append([row[0], 1 - int(row[1]), *row[2:]])
    write_labels(other, rows)
    train(Plan(folder, run, network="hand", seeds=(1,)), "", Quiet())
    assert evaluate_run(folder, run, "test")["accuracy"]["value"] == 1
    assert evaluate_run(other, run, "test")["accuracy"]["value"] == 0


def test_a_large_set_of_few_groups_has_four_folds(folder: Path) -> None:
    samples = select(read_folder(folder), "train")
    many = [
        replace(samples[i % len(samples)], name=f"{i}.png", group=f"part{i % 7}")
        for i in range(LARGE + 100)
    ]
    assert len(cut_folds(many, seed=1)) == 4
    rare = [
        replace(one, group=f"part{i % 40 if one.label else i % 7}x{one.label}")
        for i, one in enumerate(many)
    ]
    assert len(cut_folds(rare, seed=1)) == 4, "good ones of few parts"
    (held,) = cut_folds([replace(one, group=f"part{i % 40}") for i, one in enumerate(many)], 1)
    assert 0.08 < len(held) / len(many) < 0.17


@pytest.mark.parametrize("network", ["mnasnet", "lightdefectnet-without-vac", "hand"])
def test_only_our_network_can_be_exported(network: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"network": network}))
    with pytest.raises(ExportError, match=f"a run of {network}; only lightdefectnet and explored"):
        read_network(tmp_path)


def test_a_name_that_is_no_id_is_refused_before_anything_is_written(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    network, summary = read_network(run)
    with pytest.raises(ExportError, match="its name becomes the model's id"):
        export(network, summary, np.zeros((2, 1, 224, 224), np.uint8), tmp_path / "MyModel")
    assert not (tmp_path / "MyModel").exists()


def test_calibration_finds_the_odds_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 3, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))).astype(np.int64)
    scores = (1 / (1 + np.exp(-odds))).astype(np.float32)
    assert calibrate(labels, scores) == pytest.approx((0.5, -1.0), abs=0.1)


@pytest.mark.long
def test_hand_made_features_go_the_same_way(folder: Path, tmp_path: Path) -> None:
    where = ("--data", str(folder), "--network", "hand")
    done = vqi("model", "train", *where, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    done = vqi("model", "evaluate", *where, "--run", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["trained"]["network"] == "hand"
    assert row["auroc"]["value"] > 0.9


def test_small_sets_begin_with_the_shipped_weights_behind_any_front_end() -> None:
    for front_end in FRONT_ENDS:
        network = build("lightdefectnet", front_end, 1)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        after = load_weights(network, pretrained_weights(front_end)).state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {"stem.0.conv.weight", "stage4.3.exchange.conv.weight", "heads.weight"} <= changed
        assert not any(name.startswith("front_end.") for name in changed)


def test_weights_of_another_network_are_not_begun_with(folder: Path, tmp_path: Path) -> None:
    torch.save({"weights": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="another network"):
        load_weights(build("lightdefectnet", "raw", 1), tmp_path / "other.pt")
    begun = replace(PLAIN, name="begun", is_pretrained=True)
    nothing = Beginning("none", tmp_path / "none.pt", frozenset())
    with pytest.raises(DataError, match="no weights to begin with"):
        train(plan(folder, tmp_path / "run", recipes=(begun,), init=nothing), "", Quiet())


def test_other_weights_to_begin_with_are_another_run(folder: Path, tmp_path: Path) -> None:
    samples, file = select(read_folder(folder), "train")[:4], tmp_path / "init.pt"
    fit = Fit("unit", "lightdefectnet", PLAIN, seed=1, epochs=1, stop_after=1, init=str(file))
    torch.save({"weights": build("lightdefectnet", "contrast", 2).state_dict()}, file)
    run_fit(fit, samples, samples[:2], "0" * 64, tmp_path)
    torch.save({"weights": build("lightdefectnet", "contrast", 3).state_dict()}, file)
    with pytest.raises(DataError, match="other data or settings"):
        run_fit(fit, samples, samples[:2], "0" * 64, tmp_path)
