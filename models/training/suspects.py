"""Which labels are probably wrong: the tiles where several networks, none of which was trained on
the tile, agree with each other and not with the label.

Each voter gives every tile a probability out of fold, calibrated on the labels as they are (Platt).
What they say together is the mean of their log odds, each weighted by how well it knows the set
(the square of 2 AUROC - 1). The tiles are listed by the probability of the other label.
Chosen by `benchmarks/label_noise.py` among the voters alone, means of probabilities, of ranks,
strongest and weakest voice, stacking, and confident learning's class-wise margins (Northcutt et
al., 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.training.data import DataError, Sample, data_sha256, labels_of, read_folder, select
from models.training.embeddings import FRONT_ENDS, embeddings
from models.training.evaluate import auroc
from models.training.fit import RESULT_FILE
from models.training.hand import features
from models.training.networks import HAND
from models.training.train import (
    FOLDS,
    LEARNED,
    calibrate,
    cut_folds,
    hand_model,
    read_summary,
    refuse_seen_folds,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Tables = dict[str, NDArray[np.float32]]
"""Features of all tiles, (n, d), by name: `hand` and the front ends."""

_CLIP = 1e-4
_WEIGHT_POWER = 2.0
"""Of 2 AUROC - 1."""


@dataclass(frozen=True, slots=True)
class Voter:
    """What one network or classifier says of each tile, having seen the others' labels only."""

    name: str
    probability: Floats
    """Of a defect, calibrated, (n,); NaN where it says nothing."""
    auroc: float
    """Out of fold, against the labels as they are."""

    def of_learned(self, samples: Sequence[Sample]) -> Voter:
        """Of all samples of a folder only those of the splits that are learned from."""
        is_learned = np.array([sample.split in LEARNED for sample in samples])
        return Voter(self.name, self.probability[is_learned], self.auroc)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All tiles, the most suspicious first."""

    order: NDArray[np.int64]
    suspicion: Floats
    """Probability that the label is the other one, by all voters together, (n,)."""
    disagreeing: NDArray[np.int64]
    """How many voters call the other label more probable, (n,)."""
    estimated_wrong: int
    """Tiles that are at least as probably of the other class as that class's own are on average
    (confident learning's count)."""


def tables_of(tiles: NDArray[np.uint8]) -> Tables:
    """Features of tiles uint8 (n, 1, 224, 224); no label has a part in them."""
    return {HAND: features(tiles)} | {name: embeddings(tiles, name) for name in FRONT_ENDS}


def feature_voters(tables: Tables, labels: Labels, seed: int = 1) -> list[Voter]:
    """Classifiers on features, by four folds of tiles. Raises `DataError` for too few tiles.

    Of tiles, not of groups: a tile's neighbours on its plate tell most of its label. An error that
    was made on a whole plate is not seen by them; the runs of a training hold out whole groups.
    """
    if np.bincount(labels, minlength=2).min() < FOLDS:
        raise DataError(f"fewer than {FOLDS} tiles of one label: nothing can be compared")
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    folds = list(splitter.split(labels, labels))
    return [
        _voter(name, _out_of_fold(make, tables[table], labels, folds), labels)
        for name, table, make in _CLASSIFIERS
    ]


def run_voters(run: Path, samples: Sequence[Sample]) -> list[Voter]:
    """The out-of-fold scores that a run of `vqi model train` left: one voter for each recipe that
    it tried, the mean log odds over the second half of its epochs (the area under the margin of
    Pleiss et al., 2020, but of tiles that are held out). Raises `DataError` for a run of other
    data or labels, or one that began with what had learned from them."""
    summary, known = read_summary(run), select(samples, *LEARNED)
    if summary["data_sha256"] != data_sha256(samples):
        raise DataError(f"{run}: trained on other pictures, labels or splits; train it again")
    refuse_seen_folds(run, summary)
    name, labels = f"{run.name}", labels_of(samples)
    if summary["network"] == HAND:
        scores = hand_model(Path(summary["data"])).out_of_fold
        return [_spread(f"{name}: {HAND}", scores, range(len(known)), samples, labels)]
    return [_recipe_voter(run, one["recipe"]["name"], known, samples) for one in _tried(summary)]


def _tried(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Recipes whose training did not diverge."""
    return [one for one in summary["candidates"] if one["auroc"] >= 0]


def _recipe_voter(
    run: Path, recipe: str, known: Sequence[Sample], samples: Sequence[Sample]
) -> Voter:
    held: list[int] = []
    odds: list[Floats] = []
    folder = recipe.replace(",", "").replace(" ", "-")
    for number, fold in enumerate(cut_folds(known, read_summary(run)["seeds"][0])):
        path = run / f"{folder}-fold-{number}" / RESULT_FILE
        if not path.is_file():  # a baseline tries its recipes on one fold
            break
        scores = torch.load(path, weights_only=True)["held_scores"].numpy().astype(np.float64)
        later = logit(np.clip(scores[len(scores) // 2 :], _CLIP, 1 - _CLIP))
        held += sorted(fold.tolist())
        odds.append(later.mean(axis=0))
    if not held:
        raise DataError(f"{run}: its out-of-fold scores ({folder}-fold-0) are missing")
    scores = expit(np.concatenate(odds)).astype(np.float32)
    return _spread(f"{run.name}: {recipe}", scores, held, samples, labels_of(samples))


def _spread(
    name: str,
    scores: NDArray[np.float32],
    held: Sequence[int],
    samples: Sequence[Sample],
    labels: Labels,
) -> Voter:
    """Scores of some of the learned samples as a voter of all samples."""
    learned = [i for i, sample in enumerate(samples) if sample.split in LEARNED]
    places = np.array(learned, np.int64)[list(held)]
    found = _voter(name, scores.astype(np.float64), labels[places])
    probability = np.full(len(samples), np.nan)
    probability[places] = found.probability
    return Voter(name, probability, found.auroc)


def rank(labels: Labels, voters: Sequence[Voter]) -> Ranking:
    """Order the tiles by what the voters say of labels (n,). Raises `DataError` without a voter
    that knows anything, or where a tile has none."""
    weights = np.array([max(0.0, 2 * voter.auroc - 1) ** _WEIGHT_POWER for voter in voters])
    if not weights.sum():
        raise DataError("no voter knows these labels better than chance: nothing can be ranked")
    table = np.stack([voter.probability for voter in voters])
    known = np.isfinite(table) * weights[:, None]
    if not known.sum(axis=0).all():
        raise DataError("some tiles have no out-of-fold score; rank the split that was trained on")
    odds = np.nansum(logit(table) * known, axis=0) / known.sum(axis=0)
    other = expit(np.where(labels == 1, -odds, odds))
    says_other = np.where(labels == 1, table < 0.5, table > 0.5)
    return Ranking(
        order=np.argsort(-other, kind="stable"),
        suspicion=other,
        disagreeing=says_other.sum(axis=0),
        estimated_wrong=_estimate(labels, other),
    )


def _estimate(labels: Labels, other: Floats) -> int:
    usual = np.array([(1 - other)[labels == label].mean() for label in (0, 1)])
    return int((other >= usual[1 - labels]).sum())


def known_samples(data: Path, with_test: bool) -> list[Sample]:
    """Those whose labels are looked at. Raises `DataError`."""
    samples = read_folder(data)
    return samples if with_test else select(samples, *LEARNED)


def _voter(name: str, scores: Floats, labels: Labels) -> Voter:
    clipped = np.clip(scores, _CLIP, 1 - _CLIP)
    slope, offset = calibrate(labels, clipped.astype(np.float32))
    probability = np.clip(expit(slope * logit(clipped) + offset), _CLIP, 1 - _CLIP)
    return Voter(name, probability, auroc(labels, scores.astype(np.float32)))


def _out_of_fold(
    make: Any, table: NDArray[np.float32], labels: Labels, folds: Sequence[Any]
) -> Floats:
    scores = np.empty(len(labels))
    for fit, held in folds:
        scores[held] = make().fit(table[fit], labels[fit]).predict_proba(table[held])[:, 1]
    return scores


def _linear(strength: float) -> Any:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
    return make_pipeline(StandardScaler(), model)


def _trees() -> Any:
    return ExtraTreesClassifier(200, min_samples_leaf=3, class_weight="balanced", random_state=1)


_CLASSIFIERS: tuple[tuple[str, str, Any], ...] = (
    ("hand-made, linear", HAND, lambda: _linear(0.03)),
    ("hand-made, trees", HAND, _trees),
    *((f"{name}, linear", name, lambda: _linear(0.001)) for name in FRONT_ENDS),
)
"""Name, features and classifier; none has been fitted."""
