"""What a trained run or an exported model does on a folder, and what made it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.classifier import Classifier
from models.training.data import (
    DataError,
    Sample,
    data_sha256,
    labels_of,
    load_tiles,
    read_folder,
    select,
)
from models.training.evaluate import FEW_GROUPS, evaluate
from models.training.fit import predict
from models.training.lightdefectnet import LightDefectNet
from models.training.localisation import localise
from models.training.robustness import robustness
from models.training.train import code_revision, load_network, read_summary

_FEW_SAMPLES = 100


def evaluate_run(
    data: Path, run: Path, split: str, with_robustness: bool = False
) -> dict[str, Any]:
    """All seeds of a run of `train`, at the threshold that its out-of-fold scores set.

    Localisation and robustness are those of the first seed. Raises `DataError`, ValueError for
    scores that are not finite.
    """
    summary = read_summary(run)
    samples = _samples(data, split)
    tiles = load_tiles(samples)
    scores = [predict(load_network(run, seed), tiles) for seed in summary["seeds"]]
    row = _row(data, split, samples, scores, [summary["threshold"]] * len(scores))
    first = load_network(run)
    if isinstance(first, LightDefectNet) and (places := localise(first, samples, tiles)):
        row["localisation"] = asdict(places)
    if with_robustness:
        agreements = robustness(partial(predict, first), summary["threshold"], tiles)
        row["robustness"] = [asdict(agreement) for agreement in agreements]
    names = ("network", "recipe", "epoch", "out_of_fold", "cpu_hours", "device", "data_sha256")
    trained = {name: summary[name] for name in names}
    return row | {"run": str(run), "trained": trained | {"by": summary["command"]}}


def evaluate_model(data: Path, classifier: Classifier, split: str) -> dict[str, Any]:
    """An exported model at its card's threshold. Raises `DataError`, ValueError."""
    samples = _samples(data, split)
    scores = classifier.scores(load_tiles(samples))
    row = _row(data, split, samples, [scores], [classifier.threshold])
    return row | {"model": classifier.model_id, "runtime": classifier.runtime}


def _samples(data: Path, split: str) -> list[Sample]:
    samples = select(read_folder(data), split)
    if not samples:
        raise DataError(f"{data}: no pictures of split {split}")
    return samples


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
        "remarks": _remarks(samples),
        "evaluated_data_sha256": data_sha256(samples),
        "code_revision": code_revision(),
    }


def _remarks(samples: list[Sample]) -> list[str]:
    """What the numbers cannot say."""
    remarks = []
    if len(samples) < _FEW_SAMPLES:
        remarks.append(
            f"{len(samples)} pictures only: read the intervals, not the figures; a difference of "
            "less than their width says nothing"
        )
    groups = {sample.group for sample in samples}
    if groups == {sample.name for sample in samples}:
        remarks.append(
            "no groups given: if several pictures show one part, the intervals are too narrow"
        )
    elif len(groups) < FEW_GROUPS:
        remarks.append(f"{len(groups)} groups only: believe the interval `few_groups`")
    return remarks
