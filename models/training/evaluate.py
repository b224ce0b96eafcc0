"""How good scores are, with 95 % intervals that do not flatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Labels = NDArray[np.int64]
Scores = NDArray[np.float32]

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    samples: int
    method: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `vqi model evaluate` reports."""

    threshold: float
    accuracy: Figure
    auroc: Figure
    escape_rate: Figure
    """Defective called good, of all defective."""
    false_reject_rate: Figure
    """Good called defective, of all good."""
    confusion: dict[str, int]
    recall_by_defect_type: dict[str, Figure]


def evaluate(
    labels: Labels,
    scores: Scores,
    threshold: float,
    groups: Sequence[str] | None = None,
    defect_types: Sequence[str] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare scores with labels. A score above `threshold` calls a defect.

    `groups` names the part of each sample: parts, not samples, are then drawn for the intervals.
    Raises ValueError for a score that is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite")
    members = _members(groups or [str(i) for i in range(len(labels))])
    calls = (scores > threshold).astype(np.int64)
    bad, good = labels == 1, labels == 0
    return Evaluation(
        threshold=threshold,
        accuracy=_rate(calls == labels, np.ones(len(labels), bool), members, seed),
        auroc=_area(labels, scores, members, seed),
        escape_rate=_rate(calls == 0, bad, members, seed),
        false_reject_rate=_rate(calls == 1, good, members, seed),
        confusion={
            "good_passed": int((good & (calls == 0)).sum()),
            "good_rejected": int((good & (calls == 1)).sum()),
            "defective_rejected": int((bad & (calls == 1)).sum()),
            "defective_passed": int((bad & (calls == 0)).sum()),
        },
        recall_by_defect_type={
            kind: _rate(calls == 1, bad & (np.array(defect_types) == kind), members, seed)
            for kind in _kinds_present(defect_types, bad)
        },
    )


def auroc(labels: Labels, scores: Scores) -> float:
    """Probability that a defective sample scores above a good one; ties count half."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    ranks = stats.rankdata(scores)
    above = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def best_threshold(labels: Labels, scores: Scores) -> float:
    """The threshold with the least mean of escape and false-reject rate, in the middle of the gap
    between the scores beside it."""
    ordered = np.unique(scores)
    between = (ordered[1:] + ordered[:-1]) / 2 if len(ordered) > 1 else ordered
    bad, good = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    escapes = np.searchsorted(bad, between, side="right") / len(bad)
    rejects = 1 - np.searchsorted(good, between, side="right") / len(good)
    return float(between[int(np.argmin(escapes + rejects))])


def clopper_pearson(hits: int, samples: int) -> tuple[float, float]:
    """Exact 95 % interval of a rate."""
    low = float(stats.beta.ppf(0.025, hits, samples - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, samples - hits)) if hits < samples else 1.0
    return low, high


def rate(hits: int, samples: int) -> Figure:
    """A rate of independent samples with its exact interval."""
    low, high = clopper_pearson(hits, samples)
    return Figure(hits / samples, low, high, samples, "Clopper-Pearson")


def _rate(
    hits: NDArray[np.bool_], among: NDArray[np.bool_], members: list[NDArray[np.int64]], seed: int
) -> Figure:
    """A rate with an exact interval; with parts of several samples, also by drawing parts, and the
    wider of both. Where nothing or everything hits, drawing says nothing: the parts are counted."""
    count, samples = int((hits & among).sum()), int(among.sum())
    parts = [part for part in members if among[part].any()]
    if len(parts) == samples:
        return rate(count, samples)
    if count in (0, samples):
        low, high = clopper_pearson(0 if count == 0 else len(parts), len(parts))
        return Figure(count / samples, low, high, samples, f"Clopper-Pearson of {len(parts)} parts")

    def statistic(drawn: NDArray[np.int64]) -> float:
        return float((hits & among)[drawn].sum() / among[drawn].sum())

    drawn_low, drawn_high = _bootstrap(parts, statistic, seed)
    low, high = clopper_pearson(count, samples)
    method = f"bootstrap of {len(parts)} parts and Clopper-Pearson, the wider"
    return Figure(count / samples, min(low, drawn_low), max(high, drawn_high), samples, method)


def _area(labels: Labels, scores: Scores, members: list[NDArray[np.int64]], seed: int) -> Figure:
    def statistic(drawn: NDArray[np.int64]) -> float:
        some = labels[drawn]
        return auroc(some, scores[drawn]) if 0 < some.sum() < len(some) else float("nan")

    low, high = _bootstrap(members, statistic, seed)
    return Figure(auroc(labels, scores), low, high, len(labels), f"bootstrap of {len(members)}")


def _bootstrap(
    parts: list[NDArray[np.int64]], statistic: Callable[[NDArray[np.int64]], float], seed: int
) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLES):
        chosen = random.integers(len(parts), size=len(parts))
        values.append(statistic(np.concatenate([parts[i] for i in chosen])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _kinds_present(defect_types: Sequence[str] | None, bad: NDArray[np.bool_]) -> list[str]:
    kinds = np.array(defect_types or [""] * len(bad))
    return sorted(set(kinds[bad].tolist()) - {""})


def _members(groups: Sequence[str]) -> list[NDArray[np.int64]]:
    """Indices of the samples of each part."""
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [np.array(indices, np.int64) for indices in found.values()]
