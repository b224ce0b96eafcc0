"""How far two precisions of one network agree, on the same tiles and the same plates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Labels = NDArray[np.int64]
Groups = NDArray[np.int64]
Verdicts = NDArray[np.bool_]
"""True where the plate fails."""

_RESAMPLES = 1000
_TAIL = 0.025
"""Two-sided 95 %, as everywhere in this project."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference with its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(labels: Labels, scores: Scores) -> float:
    """Probability that a defective tile (label 1) scores above a good one (0); ties count half.

    NaN where there are not both.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    above = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def auroc_difference(
    labels: Labels, reference: Scores, candidate: Scores, plates: Groups
) -> Difference:
    """Candidate less reference on the same tiles; whole plates are drawn for the interval."""

    def difference(chosen: NDArray[np.int64]) -> float:
        some = labels[chosen]
        return auroc(some, candidate[chosen]) - auroc(some, reference[chosen])

    members = [np.flatnonzero(plates == plate) for plate in np.unique(plates)]
    random = np.random.default_rng(0)
    drawn = [
        difference(
            np.concatenate([members[i] for i in random.integers(0, len(members), len(members))])
        )
        for _ in range(_RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [100 * _TAIL, 100 * (1 - _TAIL)])
    return Difference(difference(np.arange(len(labels))), float(low), float(high))


def matching_threshold(fails: Verdicts, scores: Scores, reference_threshold: float) -> float:
    """The threshold at which plates with these highest `scores` get the reference's verdicts most
    often: with the fewest FAIL to PASS among equals, then nearest to the reference's own."""
    exact = scores.astype(np.float64)
    ordered = np.unique(exact)
    tried = np.append((ordered[1:] + ordered[:-1]) / 2, reference_threshold)
    passed = np.searchsorted(np.sort(exact[fails]), tried, side="right")
    failed = (~fails).sum() - np.searchsorted(np.sort(exact[~fails]), tried, side="right")
    distance = np.abs(tried - reference_threshold)
    return float(tried[np.lexsort((distance, passed, passed + failed))[0]])


def equal_share_bound(differences: int, plates: int) -> float:
    """Lower end of the exact (Clopper-Pearson) 95 % interval of the share of equal verdicts."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(differences, plates, middle) > _TAIL:
            low = middle
        else:
            high = middle
    return 1 - high


def _at_most(hits: int, samples: int, rate: float) -> float:
    """Probability of at most `hits` of `samples` that each hit with probability `rate`."""
    if hits >= samples:
        return 1.0
    terms = [
        math.lgamma(samples + 1) - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
        + k * math.log(rate) + (samples - k) * math.log1p(-rate)
        for k in range(hits + 1)
    ]  # fmt: skip
    return sum(map(math.exp, terms))
