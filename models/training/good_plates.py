"""What good plates look like, cell by cell: a model of a product without one defective plate.

The statistics are those of `patches`; the trunk is the shipped one of the front end that tells
drawn marks from good tiles best, out of fold. Nothing is learned from the marks.

Without defective plates nobody knows where good ends. So the score is a scale of good plates: on
plates that took no part in the statistics the strangest tile of the middle plate is -3 log odds, of
the strangest plate 0. A plate fails above +3, as far beyond all good plates as these reach beyond
the middle one. What lies between `unsure_above`, an order statistic of the good plates, and there
is for a person to judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from models.training.data import (
    DataError,
    data_sha256,
    load_tiles,
    read_folder,
    select,
)
from models.training.evaluate import auroc, order_statistic
from models.training.fit import RESULT_FILE, code_revision, load_weights
from models.training.front_end import FRONT_ENDS
from models.training.lightdefectnet import CELLS, LightDefectNet
from models.training.patches import CHANNELS, PATCHES, REACH, PatchNetwork
from models.training.train import pretrained_weights, write_result

FEWEST_PLATES = 8
MOST_TILES = 20_000
"""Their features take half a gigabyte."""
FOLDS = 4
UNDECIDED_TARGET = 0.1
"""Share of good plates that may be given to a person."""
_SHRINKAGE = 1e-2
"""Of the covariance towards equal variances."""
_LEAST_REACH = 0.05
_BATCH = 32
_MARKED_TILES = 200
_MARK_CONTRAST = (0.06, 0.35)

Tiles = NDArray[np.uint8]
Floats = NDArray[np.float64]
Features = NDArray[np.float16]
OnTiles = Callable[[int], object]
"""Told of so many tiles that were looked at."""


@dataclass(frozen=True, slots=True)
class GoodPlan:
    """One run of `learn_good`."""

    data: Path
    run: Path
    weights: dict[str, Path]
    """Trunk of each front end that is tried."""
    undecided_target: float = UNDECIDED_TARGET
    seed: int = 1


@dataclass(frozen=True, slots=True)
class _Learned:
    """A front end's statistics and what they say of good tiles that took no part in them."""

    front_end: str
    mean: Floats
    """(256, 7, 7)"""
    whitening: Floats
    """(256, 256)"""
    distances: Floats
    """Log of the strangest cell's, out of fold, (tiles,)."""
    auroc: float
    """Drawn marks against the good tiles, out of fold."""


def learn_good(
    plan: GoodPlan, command: str, on_tiles: OnTiles = lambda count: None
) -> dict[str, Any]:
    """Learn from the pictures of good plates in the splits train and val, and leave a run in
    `plan.run` that `export` and `evaluate` take. A plate is a group; it is good if all of its
    pictures are. Returns the summary. Raises `DataError`."""
    started = time.monotonic()
    samples = read_folder(plan.data)
    bad = {sample.group for sample in samples if sample.label == 1}
    known = [s for s in select(samples, "train", "val") if s.group not in bad]
    groups = np.array([sample.group for sample in known])
    plates = sorted(set(groups.tolist()))
    if len(plates) < FEWEST_PLATES:
        raise DataError(f"{plan.data}: good pictures of {len(plates)} plates; {FEWEST_PLATES} or "
                        "more are needed")  # fmt: skip
    if len(known) > MOST_TILES:
        raise DataError(f"{plan.data}: {len(known)} good pictures; {MOST_TILES} at most")
    tiles = load_tiles(known)
    tried = [_learn(name, path, tiles, groups, plan.seed, on_tiles)
             for name, path in plan.weights.items()]  # fmt: skip
    best = max(tried, key=lambda one: one.auroc)
    strangest = np.array([best.distances[groups == plate].max() for plate in plates])
    centre, spread = _scale(strangest)
    scores = np.sort(expit((strangest - centre) / spread))
    above = order_statistic(len(scores), plan.undecided_target)
    unsure_above = float(scores[len(scores) - 1 - above])
    threshold = float(expit(REACH))
    network = _network(best, plan.weights[best.front_end], centre, spread)
    plan.run.mkdir(parents=True, exist_ok=True)
    weights = f"seed-{plan.seed}/{RESULT_FILE}"
    (plan.run / weights).parent.mkdir(exist_ok=True)
    torch.save({"weights": network.state_dict(), "seconds": time.monotonic() - started},
               plan.run / weights)  # fmt: skip
    summary = {
        "network": PATCHES,
        "data": str(plan.data),
        "data_sha256": data_sha256(samples),
        "good": len(known),
        "defective": 0,
        "groups": len(plates),
        "recipe": {"name": f"good plates only, {best.front_end}", "front_end": best.front_end},
        "epoch": 0,
        "epochs": 0,
        "threshold": threshold,
        "unsure_above": min(unsure_above, threshold),
        "threshold_words": _words(len(scores), above, plan.undecided_target),
        "out_of_fold": {
            "samples": len(known),
            "folds": FOLDS,
            "auroc": best.auroc,
            "accuracy": float((best.distances <= centre).mean()),
        },
        "candidates": [{"recipe": {"name": one.front_end}, "auroc": one.auroc} for one in tried],
        "seeds": [plan.seed],
        "weights": [weights],
        "trainings": len(tried),
        "device": "cpu",
        "cpu_hours": round((time.monotonic() - started) / 3600, 3),
        "command": command,
        "code_revision": code_revision(),
    }
    write_result(plan.run, known, summary)
    return summary


def shipped_trunks() -> dict[str, Path]:
    """The weights to look with, by front end."""
    return {name: pretrained_weights(name) for name in FRONT_ENDS}


def _words(plates: int, above: int, target: float) -> str:
    expected = (above + 1) / (plates + 1)
    return (
        f"of {plates} good plates, each scored without it, none failed; {above} were stranger than "
        f"unsure_above, {expected:.1%} expected of others (target {target:.1%}; order statistic, "
        "Wilks 1941). No defective plate was seen: what escapes is not known"
    )


def _scale(strangest: Floats) -> tuple[float, float]:
    """Where log odds are 0, and how much of the log distance is 1."""
    highest, middle = float(strangest.max()), float(np.median(strangest))
    return highest, max(highest - middle, _LEAST_REACH) / REACH


def _network(learned: _Learned, trunk: Path, centre: float, spread: float) -> PatchNetwork:
    network = PatchNetwork(learned.front_end)
    load_weights(network.trunk, trunk)
    network.mean.copy_(torch.from_numpy(learned.mean)[None])
    network.whitening.copy_(torch.from_numpy(learned.whitening)[:, :, None, None])
    network.centre.fill_(centre)
    network.spread.fill_(spread)
    return network.eval()


def _learn(
    name: str, weights: Path, tiles: Tiles, groups: NDArray[np.str_], seed: int, on_tiles: OnTiles
) -> _Learned:
    trunk = load_weights(LightDefectNet(name), weights).eval()
    assert isinstance(trunk, LightDefectNet)
    features = _features(trunk, tiles, on_tiles)
    rng = np.random.default_rng(seed)
    marked = np.sort(rng.choice(len(tiles), min(len(tiles), _MARKED_TILES), replace=False))
    strange = _features(trunk, draw_marks(tiles[marked], rng), on_tiles)
    distances, of_marked = np.empty(len(tiles)), np.empty(len(marked))
    for seen, held in GroupKFold(FOLDS).split(tiles, groups=groups):
        mean, whitening = _statistics(features[seen])
        distances[held] = _distances(features[held], mean, whitening)
        is_held = np.isin(marked, held)
        of_marked[is_held] = _distances(strange[is_held], mean, whitening)
    mean, whitening = _statistics(features)
    labels = np.repeat([0, 1], [len(distances), len(of_marked)])
    both = np.concatenate([distances, of_marked]).astype(np.float32)
    return _Learned(name, mean, whitening, distances, auroc(labels, both))


def _features(trunk: LightDefectNet, tiles: Tiles, on_tiles: OnTiles) -> Features:
    """(n, 256, 7, 7)"""
    found = np.empty((len(tiles), CHANNELS, CELLS, CELLS), np.float16)
    with torch.inference_mode():
        for batch in _batches(len(tiles)):
            found[batch] = trunk.features(torch.from_numpy(tiles[batch])).numpy()
            on_tiles(len(found[batch]))
    return found


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH))


def _statistics(features: Features) -> tuple[Floats, Floats]:
    """Mean of each place, (256, 7, 7), and the rows that whiten, (256, 256)."""
    mean = features.mean(axis=0, dtype=np.float64)
    products = np.zeros((CHANNELS, CHANNELS))
    for batch in _batches(len(features)):
        cells = _cells(features[batch], mean)
        products += cells.T @ cells
    covariance = products / (len(features) * CELLS**2)
    variances, axes = np.linalg.eigh(covariance)
    floor = _SHRINKAGE * variances.mean() + 1e-12
    return mean, (axes / np.sqrt(np.maximum(variances, 0) + floor)).T


def _distances(features: Features, mean: Floats, whitening: Floats) -> Floats:
    """Log of the squared distance of each tile's strangest cell, (n,)."""
    found = np.empty(len(features))
    rows = whitening.T.astype(np.float32)
    for batch in _batches(len(features)):
        white = _cells(features[batch], mean).astype(np.float32) @ rows
        found[batch] = np.square(white).sum(axis=1).reshape(-1, CELLS**2).max(axis=1)
    return np.log(found + 1e-6)


def _cells(features: Features, mean: Floats) -> Floats:
    """(n x 49, 256), centred."""
    return (features - mean).reshape(-1, CHANNELS, CELLS**2).transpose(0, 2, 1).reshape(
        -1, CHANNELS
    )  # fmt: skip


def draw_marks(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """Each tile with a line or a spot, darker or brighter than what lies below: only to choose how
    a network looks at a product, nothing is learned from them."""
    marked = tiles.copy()
    size = tiles.shape[-1]
    for tile in marked[:, 0]:
        mask = np.zeros((size, size), np.float32)
        x, y = (int(v) for v in rng.integers(24, size - 24, 2))
        if rng.random() < 0.5:
            angle, length = rng.uniform(0, np.pi), rng.uniform(8, 50)
            end = (round(x + length * np.cos(angle)), round(y + length * np.sin(angle)))
            cv2.line(mask, (x, y), end, 1.0, int(rng.integers(1, 3)), cv2.LINE_AA)
        else:
            cv2.circle(mask, (x, y), int(rng.integers(2, 7)), 1.0, -1, cv2.LINE_AA)
        mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), 1.0), np.float32)
        contrast = rng.uniform(*_MARK_CONTRAST) * rng.choice([-1, 1]) / max(mask.max(), 1e-3)
        tile[:] = np.clip(np.rint(tile * (1 + contrast * mask)), 0, 255)
    return marked
