"""From a training run to a folder that the station can load, checked against PyTorch."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch import nn

from models.card import (
    GOLDEN_FILE,
    MODEL_FILE,
    MODEL_ID,
    GoldenCard,
    InputCard,
    MeasuredCard,
    ModelCard,
    ThresholdCard,
    TrainingCard,
    sha256_of,
    write_card,
)
from models.training.count import count_mflops, count_parameters
from models.training.data import load_tiles, read_folder, read_splits, select
from models.training.explore.constraints import violations
from models.training.explore.network import Explored
from models.training.explore.network import prepare_for_export as prepare_explored
from models.training.fit import predict
from models.training.lightdefectnet import LightDefectNet, prepare_for_export
from models.training.networks import EXPLORED, OURS
from models.training.onnx_graph import graph_of
from models.training.patches import PATCHES, PatchNetwork, prepare_patches
from models.training.train import code_revisions_of, load_network, read_summary

TOLERANCE = 1e-4
GOLDEN_TILES = 8


class ExportError(Exception):
    """The run cannot be exported, or the graph does not compute what the network computes."""


Network = LightDefectNet | Explored | PatchNetwork
_NAMES = {
    OURS: "LightDefectNet",
    EXPLORED: "LightDefectNet, explored",
    PATCHES: "LightDefectNet's good patches",
}


def read_network(run: Path) -> tuple[Network, dict[str, Any]]:
    """Network and summary of a finished run. Raises `DataError`, `ExportError`."""
    summary = read_summary(run)
    if summary["network"] not in _NAMES:
        raise ExportError(
            f"{run}: a run of {summary['network']}; only {OURS} and {EXPLORED} can be exported"
        )
    network = load_network(run)
    assert isinstance(network, Network)
    return network, summary


def golden_candidates(data: Path, network: Network) -> NDArray[np.uint8]:
    """Tiles of the split test, of which the golden ones are taken; of good plates only, where that
    split has none, all. Raises `DataError`."""
    if not isinstance(network, PatchNetwork):
        return load_tiles(read_splits(data, "test"))
    samples = read_folder(data)
    return load_tiles(select(samples, "test") or samples)


def _prepared(network: Network) -> nn.Module:
    if isinstance(network, PatchNetwork):
        return prepare_patches(network)
    if isinstance(network, Explored):
        return prepare_explored(network)
    return prepare_for_export(network)


def to_onnx(network: Network) -> bytes:
    """One self-contained graph: tiles uint8 (n, 1, 224, 224) -> probabilities float32 (n, 2) and
    defect_map float32 (n, 1, 7, 7)."""
    return graph_of(_prepared(network.cpu()), ("probabilities", "defect_map"))


def check_against_torch(
    network: Network, model: bytes, tiles: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Score tiles in ONNX Runtime. Raises `ExportError` if PyTorch differs by more than 1e-4."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    one_by_one = [session.run(None, {"tiles": tile[None]})[0] for tile in tiles]
    scores: NDArray[np.float32] = np.concatenate(one_by_one)[:, 1]
    expected = predict(network, tiles)
    difference = float(np.abs(scores - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"ONNX Runtime differs from PyTorch by {difference:.2g}")
    return scores


def export(
    network: Network,
    summary: dict[str, Any],
    tiles: NDArray[np.uint8],
    folder: Path,
    measured: tuple[MeasuredCard, ...] = (),
) -> ModelCard:
    """Write `model.onnx`, `golden.npz` and `card.json` into `folder`, whose name is the id.

    `tiles` are tiles the network was not trained on; the golden tiles are taken from them, from the
    lowest score to the highest. Raises `ExportError`.
    """
    if not re.fullmatch(MODEL_ID, folder.name):
        raise ExportError(
            f"{folder}: its name becomes the model's id; lower-case letters, digits, '.', '_', '-'"
        )
    model = to_onnx(network)
    if isinstance(network, Explored) and (broken := violations(model)):
        raise ExportError(f"its spec is no LightDefectNet: {'; '.join(broken.values())}")
    scores = check_against_torch(network, model, tiles)
    chosen = spread(scores, GOLDEN_TILES)
    golden = golden_archive(tiles[chosen])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(model)
    (folder / GOLDEN_FILE).write_bytes(golden)
    card = ModelCard(
        id=folder.name,
        name=_NAMES[summary["network"]],
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        sha256=sha256_of(model),
        parameters=count_parameters(model),
        mflops=round(count_mflops(model), 2),
        input=InputCard(front_end=network.front_end.words, constants=network.front_end.constants),
        threshold=ThresholdCard(
            value=summary["threshold"],
            unsure_above=summary.get("unsure_above"),
            chosen_by=summary.get("threshold_words")
            or f"calibrated odds of a defect even, on {summary['out_of_fold']['samples']} "
            "tiles out of fold; choose one per plate before use",
        ),
        golden=GoldenCard(
            sha256=sha256_of(golden), scores=tuple(map(float, scores[chosen])), tolerance=TOLERANCE
        ),
        training=_training_card(summary),
        measured=measured,
    )
    write_card(folder, card)
    return card


def _training_card(summary: dict[str, Any]) -> TrainingCard:
    return TrainingCard(
        data_sha256=summary["data_sha256"],
        good=summary["good"],
        defective=summary["defective"],
        groups=summary["groups"],
        recipe=summary["recipe"]["name"],
        seed=summary["seeds"][0],
        epochs=summary["epoch"],
        command=summary["command"],
        code_revision=code_revisions_of(summary),
    )


def spread(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of `count` scores at even ranks from the lowest to the highest."""
    ranks = np.linspace(0, len(scores) - 1, min(count, len(scores))).round().astype(np.int64)
    return np.argsort(scores, kind="stable")[ranks]


def golden_archive(tiles: NDArray[np.uint8]) -> bytes:
    """`golden.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tiles=tiles)
    return buffer.getvalue()
