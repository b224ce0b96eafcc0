"""Where a plate fails and where a person must look, from the plates that a run was trained on.

A plate's score is its highest tile's, by the networks of the folds that never saw the plate. So a
real product needs no rendered plates to choose its limits; but each plate has to be in the folder
with all of its tiles, or its highest may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.training.data import DataError, data_sha256, labels_of, read_folder, read_splits
from models.training.evaluate import Figure, order_statistic, rate
from models.training.fit import RESULT_FILE
from models.training.train import LEARNED, cut_folds, fold_name, refuse_seen_folds


@dataclass(frozen=True, slots=True)
class PlateLimits:
    """Limits of a plate's highest score."""

    threshold: float
    unsure_above: float | None
    """None where no defective plate scores below `threshold`."""
    words: str
    """For the card."""


def out_of_fold(
    data: Path, run: Path, summary: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Score of each known tile by the network that did not see its plate, with label and group.
    Raises `DataError`."""
    if data_sha256(read_folder(data)) != summary["data_sha256"]:
        raise DataError(f"{data}: not what {run} was trained on, or changed since")
    refuse_seen_folds(run, summary)
    known = read_splits(data, *LEARNED)
    folds = cut_folds(known, summary["seeds"][0])
    if len(folds) == 1:
        raise DataError(f"{run}: a large set has one held-out part; choose the limits on plates of "
                        "a recipe (--recipe)")  # fmt: skip
    scores = np.full(len(known), np.nan, np.float32)
    for number, held in enumerate(folds):
        path = run / fold_name(summary["recipe"]["name"], number) / RESULT_FILE
        if not path.is_file():
            raise DataError(f"{path}: missing; train the run again")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        scores[held] = saved["held_scores"][summary["epoch"] - 1].numpy()
    return scores, labels_of(known), [sample.group for sample in known]


def choose_limits(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: list[str],
    false_reject_target: float,
    escape_target: float,
) -> PlateLimits:
    """A plate is defective if a tile is. `threshold` is what good plates mostly stay below,
    `unsure_above` what defective ones mostly exceed: order statistics of the plates, so that on
    other plates the targets hold on average, as far as so few plates can say."""
    plates = np.array(groups)
    names = np.unique(plates)
    highest = np.array([scores[plates == name].max() for name in names])
    is_bad = np.array([labels[plates == name].max() == 1 for name in names])
    good, bad = np.sort(highest[~is_bad]), np.sort(highest[is_bad])
    if not len(good) or not len(bad):
        raise DataError("limits need good and defective plates (groups); there are "
                        f"{len(good)} and {len(bad)}")  # fmt: skip
    above, below = (
        order_statistic(len(each), target)
        for each, target in ((good, false_reject_target), (bad, escape_target))
    )
    threshold = float(good[len(good) - 1 - above])
    # The next float below: a plate with just this score has to be doubted, too.
    doubted = float(np.nextafter(bad[below], np.float32(0)))
    failed = rate(int((good > threshold).sum()), len(good))
    unsure = min(doubted, threshold)
    passed = rate(int((bad <= unsure).sum()), len(bad))
    between = rate(int(((good > unsure) & (good <= threshold)).sum()), len(good))
    words = (
        f"highest tile of each plate, unseen by its networks: {_share(failed)} good plates "
        f"failed, {(above + 1) / (len(good) + 1):.1%} expected of others (target "
        f"{false_reject_target:.1%}); {_share(passed)} defective ones passed, "
        f"{(below + 1) / (len(bad) + 1):.1%} expected (target {escape_target:.1%}); "
        f"{_share(between)} good ones undecided (order statistics, Wilks 1941)"
    )
    return PlateLimits(threshold, unsure if unsure < threshold else None, words)


def _share(of: Figure) -> str:
    hits = round(of.value * of.samples)
    return f"{hits} of {of.samples} [{of.low:.1%}, {of.high:.1%}]"
