"""Training: decided by its seed, not harmed by a kill, and clear about bad folders."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from station_rig import vqi

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")

from models.classifier import Classifier  # noqa: E402
from models.training.count import count_mflops, count_parameters  # noqa: E402
from models.training.data import DataError, read_folder  # noqa: E402
from models.training.evaluate import auroc, best_threshold, rate  # noqa: E402
from models.training.export import to_onnx  # noqa: E402
from models.training.lightdefectnet import BlurPool, LightDefectNet  # noqa: E402
from models.training.loss import DISCREPANCY_LIMIT, DISCREPANCY_WEIGHT, two_head_loss  # noqa: E402
from models.training.train import CHECKPOINT_FILE, TrainSettings, train  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 tiles of noise, half with a bright blob, in three splits."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        tile = rng.integers(80, 100, (224, 224), np.uint8)
        label = number % 2
        if label:
            cv2.circle(tile, (int(rng.integers(40, 180)), 100), 12, 220, -1)
        name = f"{number:02d}.png"
        cv2.imwrite(str(root / name), tile)
        split = "train" if number < 14 else "val" if number < 18 else "test"
        rows.append([name, label, split, f"part{number}", "bright_spot" if label else ""])
    write_labels(root, rows)
    return root


def write_labels(root: Path, rows: list[list[object]]) -> None:
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group", "defect_type"])
        table.writerows(rows)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / CHECKPOINT_FILE, weights_only=True)["network"]


def test_the_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, batch=7)
    train(folder, tmp_path / "a", settings, "")
    train(folder, tmp_path / "b", settings, "")
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "station.cli", "model", "train"]
    command += ["--data", str(folder), "--epochs", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, "--out", str(whole)], env=environment, check=True)
    process = subprocess.Popen([*command, "--out", str(broken)], env=environment)
    while not (broken / CHECKPOINT_FILE).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "summary.json").exists(), "it was killed too late to show anything"
    subprocess.run([*command, "--out", str(broken)], env=environment, check=True)
    first, second = weights(whole), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, TrainSettings(epochs=1), "")
    with pytest.raises(DataError, match="other data or settings"):
        train(folder, tmp_path, TrainSettings(epochs=1, seed=2), "")


def test_the_command_line_goes_from_tiles_to_a_model_the_station_loads(
    folder: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "tiny-model"
    done = vqi("model", "train", "--data", str(folder), "--out", str(run), "--epochs", "1")
    assert done.returncode == 0, done.stderr
    done = vqi(
        *("model", "export", "--run", str(run), "--data", str(folder)),
        *("--out", str(out), "--plates", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert Classifier.load(out).self_test().bits
    card = json.loads((out / "card.json").read_text())
    assert card["training"]["epochs"] == 1
    assert "vqi model train" in card["training"]["command"]


def test_evaluate_reports_every_figure_with_its_interval(folder: Path) -> None:
    done = vqi("model", "evaluate", "--data", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    for name in ("accuracy", "auroc", "escape_rate", "false_reject_rate"):
        figure = row[name]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert sum(row["confusion"].values()) == 6
    assert set(row["recall_by_defect_type"]) == {"bright_spot"}


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
    ],
)
def test_a_bad_folder_is_one_clear_error(
    folder: Path, tmp_path: Path, rows: list[list[object]], text: str
) -> None:
    for file in folder.glob("*.png"):
        (tmp_path / file.name).symlink_to(file)
    write_labels(tmp_path, rows)
    with pytest.raises(DataError, match=text) as error:
        read_folder(tmp_path)
    assert str(tmp_path) in str(error.value)
    done = vqi("model", "train", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_network_keeps_its_budget() -> None:
    model = to_onnx(LightDefectNet().eval())
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


def test_two_heads_earn_by_differing_but_not_without_bound() -> None:
    labels = torch.tensor([1])
    same = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    apart = torch.tensor([[[0.0, 0.9], [0.0, 1.1]]])
    assert two_head_loss(apart, labels) < two_head_loss(same, labels) + 1e-3
    wrong = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    right = torch.tensor([[[0.0, 9.0], [0.0, 9.0]]])
    assert two_head_loss(wrong, labels) > two_head_loss(right, labels) + 1
    assert DISCREPANCY_WEIGHT * DISCREPANCY_LIMIT < 0.1


def test_figures_of_known_scores() -> None:
    labels = np.array([0, 0, 1, 1])
    assert auroc(labels, np.array([0.1, 0.2, 0.8, 0.9], np.float32)) == 1
    assert auroc(labels, np.array([0.5] * 4, np.float32)) == 0.5
    assert 0.2 < best_threshold(labels, np.array([0.1, 0.2, 0.8, 0.9], np.float32)) < 0.8
    assert rate(0, 20).high == pytest.approx(0.168, abs=0.001)
