"""What our network is measured against: baselines, hand-made features, and how all are timed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from station_rig import vqi

pytest.importorskip("torch", reason="needs package torch (the `train` extra)")
pytest.importorskip("pytorchcv", reason="needs package pytorchcv, installed with --no-deps")

from models.registry import list_models
from models.runtimes import PrecisionUnavailable, check_available
from models.training.baselines import BASELINES, build
from models.training.benchmark import BATCH, BenchmarkRow, benchmark
from models.training.data import (
    DataError,
    labels_of,
    load_tiles,
    read_folder,
    select,
)
from models.training.evaluate import auroc
from models.training.hand import (
    FEATURE_COUNT,
    features,
    fit_hand,
    most_accurate_threshold,
)

PARAMETERS = {
    "resnet50": 23_512_130,
    "efficientnet_b0": 4_010_110,
    "mnasnet": 2_608_600,
    "mobilenetv3_large": 4_203_314,
}
"""Three channels, two classes; a second and third channel are kernels of the first layer."""
FIRST_KERNELS = {
    "resnet50": 64 * 49,
    "efficientnet_b0": 32 * 9,
    "mnasnet": 32 * 9,
    "mobilenetv3_large": 16 * 9,
}
PUBLISHED_MFLOPS = {
    "resnet50": 7716,
    "efficientnet_b0": 772,
    "mnasnet": 623,
    "mobilenetv3_large": 433,
}


@pytest.fixture(scope="module")
def every_row() -> list[BenchmarkRow]:
    """One short run of everything."""
    return benchmark(list_models(), rounds=3)


@pytest.fixture(scope="module")
def rows(every_row: list[BenchmarkRow]) -> dict[str, BenchmarkRow]:
    """Those in fp32, by network."""
    return {row.network: row for row in every_row if row.precision == "fp32"}


def lattice_tiles(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Noisy lattices, every other one with a scratch; four tiles of each part."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224]
    tiles = np.empty((count, 1, 224, 224), np.uint8)
    labels = np.arange(count) % 2
    for tile, label in zip(tiles, labels, strict=True):
        phase = rng.uniform(0, 60, 2)
        waves = np.cos((x + phase[0]) / 10) + np.cos((y + phase[1]) / 10)
        levels = rng.uniform(80, 140) + 15 * waves + rng.normal(0, 3, waves.shape)
        picture = levels.clip(0, 255).astype(np.uint8)
        if label:
            start = rng.integers(40, 140, 2)
            cv2.line(picture, start.tolist(), (start + rng.integers(15, 40, 2)).tolist(), 60, 2)
        tile[0] = picture
    return tiles, labels, [f"part{number // 4}" for number in range(count)]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_the_published_networks_with_two_classes(name: str) -> None:
    for channels in (1, 3):
        network = build(name, channels)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == PARAMETERS[name] - (3 - channels) * FIRST_KERNELS[name]


def test_an_unknown_baseline_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet50, efficientnet_b0"):
        build("resnet51", 1)


@pytest.mark.long
def test_every_network_has_its_row(rows: dict[str, BenchmarkRow]) -> None:
    assert list(rows) == ["lightdefectnet", *BASELINES]
    for row in rows.values():
        assert row.ms_per_sample > 0
        assert (row.precision, row.batch, row.threads, row.rounds) == ("fp32", BATCH, 1, 3)
        assert row.runtime.startswith("onnxruntime")
    assert rows["efficientnet_b0"].ratio_to_efficientnet_b0 == 1
    assert rows["resnet50"].ratio_to_efficientnet_b0 < 1 < rows["resnet50"].mflops
    assert [row.model is None for row in rows.values()] == [False, True, True, True, True]


@pytest.mark.long
def test_ours_has_a_row_for_each_faster_precision(every_row: list[BenchmarkRow]) -> None:
    try:
        check_available("bf16")
    except PrecisionUnavailable as error:
        pytest.skip(str(error))
    found = [row for row in every_row if row.precision == "bf16"]
    assert [row.network for row in found] == ["lightdefectnet"]
    assert " bf16" in found[0].runtime
    assert found[0].ratio_to_efficientnet_b0 > 1


@pytest.mark.long
@pytest.mark.parametrize("name", BASELINES)
def test_operations_are_counted_as_in_the_publications(
    rows: dict[str, BenchmarkRow], name: str
) -> None:
    assert rows[name].mflops == pytest.approx(PUBLISHED_MFLOPS[name], rel=0.02)
    # The norms' four numbers a channel have become one bias.
    assert 0.98 * PARAMETERS[name] < rows[name].parameters < PARAMETERS[name]


def test_ours_is_small_and_several_times_faster(rows: dict[str, BenchmarkRow]) -> None:
    ours = rows["lightdefectnet"]
    assert ours.parameters <= 770_000
    assert ours.mflops <= 93
    assert ours.ratio_to_efficientnet_b0 > 5


def test_an_unknown_model_is_one_line() -> None:
    done = vqi("model", "benchmark", "--model", "none", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "none: no such model" in done.stderr.strip()
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.long
def test_the_command_prints_rows_and_nothing_else() -> None:
    done = vqi("model", "benchmark", "--json", timeout_s=240)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    in_fp32 = [row["network"] for row in found if row["precision"] == "fp32"]
    assert in_fp32 == ["lightdefectnet", *BASELINES]
    assert done.stderr.strip() == ""


def test_hand_features_find_scratches_on_a_lattice() -> None:
    tiles, labels, groups = lattice_tiles(48, seed=1)
    model = fit_hand(tiles, labels, groups, seed=1)
    assert auroc(labels, model.out_of_fold) > 0.97
    fresh, fresh_labels, _ = lattice_tiles(24, seed=2)
    scores = model.scores(fresh)
    assert scores.dtype == np.float32
    assert ((scores > model.threshold) == fresh_labels).mean() > 0.9
    again = fit_hand(tiles, labels, groups, seed=1)
    assert again.out_of_fold.tobytes() == model.out_of_fold.tobytes()
    assert again.threshold == model.threshold


def test_hand_features_are_finite_whatever_the_tile_shows() -> None:
    tiles = np.zeros((5, 1, 224, 224), np.uint8)
    tiles[1] = 255
    tiles[2, 0, 100, 100] = 255
    tiles[3, 0, :, ::2] = 255
    tiles[4] = np.random.default_rng(0).integers(0, 256, tiles[4].shape)
    found = features(tiles)
    assert found.shape == (5, FEATURE_COUNT)
    assert np.isfinite(found).all()
    assert features(tiles[:0]).shape == (0, FEATURE_COUNT)


def test_too_few_parts_are_one_clear_error() -> None:
    tiles, labels, _ = lattice_tiles(8, seed=1)
    with pytest.raises(DataError, match="4 parts"):
        fit_hand(tiles, labels, ["a", "a", "b", "b", "c", "c", "c", "c"], seed=1)


def test_the_threshold_is_the_most_accurate_one() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.6, 0.9], np.float32)
    # 0.45 and 0.8 leave one wrong each, and no threshold leaves none.
    assert most_accurate_threshold(labels, scores) == pytest.approx(0.8)
    assert most_accurate_threshold(labels[3:], 1 - scores[3:]) < 0.4


@pytest.mark.long
def test_hand_features_on_real_lenses(real_data: Path) -> None:
    samples = read_folder(real_data / "goggle_lens")
    train, test = select(samples, "train"), select(samples, "test")
    groups = [sample.group for sample in train]
    model = fit_hand(load_tiles(train), labels_of(train), groups, seed=1)
    labels, scores = labels_of(test), model.scores(load_tiles(test))
    assert ((scores > model.threshold) == labels).mean() >= 0.82
    assert auroc(labels, scores) >= 0.895
