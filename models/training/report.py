"""What a trained run or an exported model does on a folder, and what made it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import TrainingCard
from models.classifier import Classifier
from models.training.data import (
    SPLITS,
    DataError,
    Sample,
    data_sha256,
    labels_of,
    load_tiles,
    picture_sha256,
    read_folder,
    read_splits,
)
from models.training.evaluate import FEW_GROUPS, error_rates, evaluate
from models.training.fit import code_revision, predict
from models.training.lightdefectnet import LightDefectNet
from models.training.localisation import localise
from models.training.networks import HAND, OURS
from models.training.robustness import Score, robustness
from models.training.train import (
    LEARNED,
    LEARNED_FILE,
    code_revisions_of,
    hand_model,
    load_network,
    read_summary,
)

EVERY = "all"
"""All splits together: for a model that saw none of them."""
_TRAINED = (
    "network", "recipe", "epoch", "epochs", "trainings", "out_of_fold", "cpu_hours", "device",
    "data_sha256", "seeds",
)  # fmt: skip
_FEW_SAMPLES = 100
_FEW_OF_A_CLASS = 30
_LEAST_GROUPS = 3
_CHANGED_TILES = 200
"""Tiles whose decisions are followed through 24 changes: all would take a baseline hours."""


def evaluate_run(
    data: Path, run: Path, split: str, with_robustness: bool = False
) -> dict[str, Any]:
    """All seeds of a run of `train`, at the threshold that its out-of-fold scores set.

    Localisation and robustness are those of the first seed, robustness of 200 pictures at most.
    Raises `DataError`, ValueError for scores that are not finite.
    """
    summary = read_summary(run)
    samples = _samples(data, split)
    tiles = load_tiles(samples)
    scorers = _scorers(summary, run)
    scores = [score(tiles) for score in scorers]
    row = _row(data, split, samples, scores, [summary["threshold"]] * len(scores))
    row["remarks"] += _learned(run, samples)
    if summary["network"] == OURS:
        row |= _localisation(run, samples, tiles, row["remarks"])
    if with_robustness:
        step = -(-len(tiles) // _CHANGED_TILES)
        groups = [sample.group for sample in samples[::step]]
        agreements = robustness(scorers[0], summary["threshold"], tiles[::step], groups)
        row["robustness"] = [asdict(agreement) for agreement in agreements]
    trained = {name: summary[name] for name in _TRAINED} | {"by": summary["command"]}
    trained["code_revisions"] = code_revisions_of(summary)
    return row | {"run": str(run), "trained": trained}


def _localisation(
    run: Path, samples: list[Sample], tiles: NDArray[np.uint8], remarks: list[str]
) -> dict[str, Any]:
    """`localisation`, or nothing where nobody says where the defects are. A mask that says nothing
    is remarked on: the other figures do not need it."""
    try:
        places = localise(_ours(run), samples, tiles)
    except DataError as error:
        remarks.append(f"no localisation: {error}")
        return {}
    return {"localisation": asdict(places)} if places else {}


def _learned(run: Path, samples: list[Sample]) -> list[str]:
    """A remark on pictures that the run was trained on. Raises `DataError`."""
    path = run / LEARNED_FILE
    if not path.is_file():
        raise DataError(f"{path}: missing; `vqi model train` with --out {run} writes it anew")
    learned = set(path.read_text().split())
    count = sum(picture_sha256(sample) in learned for sample in samples)
    if not count:
        return []
    return [f"{count} of {len(samples)} pictures were trained on: this says nothing of new ones"]


def _scorers(summary: dict[str, Any], run: Path) -> list[Score]:
    """What scores tiles, once per seed."""
    if summary["network"] == HAND:
        return [_hand_scorer(summary)]
    return [partial(predict, load_network(run, seed)) for seed in summary["seeds"]]


def _hand_scorer(summary: dict[str, Any]) -> Score:
    """Fitted again to the pictures that the run was made of: seconds. Raises `DataError`."""
    data = Path(summary["data"])
    if data_sha256(read_folder(data)) != summary["data_sha256"]:
        raise DataError(f"{data}: changed since the run was made; train it again")
    return hand_model(data).scores


def _ours(run: Path) -> LightDefectNet:
    network = load_network(run)
    assert isinstance(network, LightDefectNet)
    return network


def evaluate_model(data: Path, classifier: Classifier, split: str) -> dict[str, Any]:
    """An exported model at its card's threshold. Raises `DataError`, ValueError."""
    samples = _samples(data, split)
    scores = classifier.scores(load_tiles(samples))
    row = _row(data, split, samples, [scores], [classifier.threshold])
    if split != "test" and _is_trained_on(classifier, data):
        row["remarks"].append(
            f"the model was trained on {' and '.join(LEARNED)} of this folder: this says nothing "
            "of new pictures"
        )
    return row | {"model": classifier.model_id, "runtime": classifier.runtime}


def _is_trained_on(classifier: Classifier, data: Path) -> bool:
    training = classifier.card.training
    return (
        isinstance(training, TrainingCard)
        and data_sha256(read_folder(data)) == training.data_sha256
    )


def _samples(data: Path, split: str) -> list[Sample]:
    if split not in (*SPLITS, EVERY):
        raise DataError(f"no split {split!r}; there are {', '.join((*SPLITS, EVERY))}")
    return read_splits(data, *(SPLITS if split == EVERY else (split,)))


def _row(
    data: Path,
    split: str,
    samples: list[Sample],
    scores: list[NDArray[np.float32]],
    thresholds: list[float],
) -> dict[str, Any]:
    figures = evaluate(
        labels_of(samples),
        scores,
        thresholds,
        [sample.group for sample in samples],
        [sample.defect_type for sample in samples],
    )
    return {
        "data": str(data),
        "split": split,
        "samples": len(samples),
        "groups": len({sample.group for sample in samples}),
        **asdict(figures),
        **_groups_level(samples, scores, thresholds),
        "remarks": _remarks(samples),
        "evaluated_data_sha256": data_sha256(samples),
        "code_revision": code_revision(),
    }


def _groups_level(
    samples: list[Sample], scores: list[NDArray[np.float32]], thresholds: list[float]
) -> dict[str, Any]:
    """`groups_level`: parts of several pictures, each by its highest score; nothing without any."""
    members: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        members.setdefault(sample.group, []).append(place)
    parts = [part for part in members.values() if len(part) > 1]
    if not parts:
        return {}
    labels = labels_of(samples)
    highest = [np.array([row[part].max() for part in parts], np.float32) for row in scores]
    of_part = np.array([labels[part].max() for part in parts])
    rates = error_rates(of_part, highest, thresholds)
    figures = {name: asdict(figure) for name, figure in rates.items()}
    return {"groups_level": {"groups": len(parts), "defective": int(of_part.sum()), **figures}}


def _remarks(samples: list[Sample]) -> list[str]:
    """What the numbers cannot say."""
    remarks = []
    if len(samples) < _FEW_SAMPLES:
        remarks.append(
            f"{len(samples)} pictures only: read the intervals, not the figures; a difference of "
            "less than their width says nothing"
        )
    for label, word in ((0, "good"), (1, "defective")):
        count = sum(sample.label == label for sample in samples)
        if count < _FEW_OF_A_CLASS <= len(samples) - count:
            remarks.append(f"{count} {word} pictures only: what is said of them is a guess")
    groups = {sample.group for sample in samples}
    if groups == {sample.name for sample in samples}:
        remarks.append(
            "no groups given: if several pictures show one part, the intervals are too narrow"
        )
    elif len(groups) < _LEAST_GROUPS:
        remarks.append(f"{len(groups)} groups only: no interval can be given that holds")
    elif len(groups) < FEW_GROUPS:
        remarks.append(f"{len(groups)} groups only: believe the interval of few groups")
    return remarks
