"""How good scores are, with 95 % intervals that do not flatter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.agreement import auroc as auroc

Labels = NDArray[np.int64]
Scores = NDArray[np.float32]
Indices = NDArray[np.int64]
Statistic = Callable[[Indices], float]

FEW_GROUPS = 20
"""With fewer parts the bootstrap's intervals are too narrow (Cameron, Gelbach and Miller, 2008)."""
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval and how it was made."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    samples: int
    method: str
    few_groups: Interval | None = None
    """A second interval, by a method made for few parts, where there are few."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `vqi model evaluate` reports; with several seeds the mean of their figures."""

    thresholds: list[float]
    accuracy: Figure
    auroc: Figure
    escape_rate: Figure
    """Defective called good, of all defective."""
    false_reject_rate: Figure
    """Good called defective, of all good."""
    confusion: dict[str, int]
    """Summed over the seeds."""
    recall_by_defect_type: dict[str, Figure]
    seeds: list[dict[str, float]]
    """Accuracy and AUROC of each seed."""


def evaluate(
    labels: Labels,
    scores: Sequence[Scores],
    thresholds: Sequence[float],
    groups: Sequence[str] | None = None,
    defect_types: Sequence[str] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare scores, one array per trained seed, with labels.

    A score above its seed's threshold calls a defect. `groups` names the part of each sample:
    parts, not samples, are then drawn for the intervals. Raises ValueError for a score that is not
    finite.
    """
    table = np.stack(scores)
    if not np.isfinite(table).all():
        raise ValueError("a score is NaN or infinite")
    calls = table > np.array(thresholds)[:, None]
    judge = Judge(members_of(groups or [str(i) for i in range(len(labels))]), seed)
    bad, good = labels == 1, labels == 0
    return Evaluation(
        thresholds=list(thresholds),
        accuracy=judge.rate(calls == bad, np.ones(len(labels), bool)),
        auroc=judge.area(labels, table),
        escape_rate=judge.rate(~calls, bad),
        false_reject_rate=judge.rate(calls, good),
        confusion={
            "good_passed": int((~calls & good).sum()),
            "good_rejected": int((calls & good).sum()),
            "defective_rejected": int((calls & bad).sum()),
            "defective_passed": int((~calls & bad).sum()),
        },
        recall_by_defect_type={
            kind: judge.rate(calls, bad & (np.array(defect_types) == kind))
            for kind in _kinds_present(defect_types, bad)
        },
        seeds=[
            {"accuracy": float((called == bad).mean()), "auroc": auroc(labels, row)}
            for called, row in zip(calls, table, strict=True)
        ],
    )


def error_rates(
    labels: Labels, scores: Sequence[Scores], thresholds: Sequence[float], seed: int = 0
) -> dict[str, Figure]:
    """`escape_rate` and `false_reject_rate` of independent samples, mean over the trained seeds;
    without the one of a label that no sample has."""
    calls = np.stack(scores) > np.array(thresholds)[:, None]
    judge = Judge(members_of([str(i) for i in range(len(labels))]), seed)
    bad, good = labels == 1, labels == 0
    wanted = {"escape_rate": (~calls, bad), "false_reject_rate": (calls, good)}
    return {name: judge.rate(hits, of) for name, (hits, of) in wanted.items() if of.any()}


def order_statistic(good: int, target: float) -> int:
    """How many of so many good plates' scores may lie above a limit that another good plate exceeds
    with a probability of at most `target`, on average (Wilks, 1941); 0 where even the highest one
    is exceeded more often."""
    return max(0, math.floor(target * (good + 1) + 1e-9) - 1)


def clopper_pearson(hits: int, samples: int) -> tuple[float, float]:
    """Exact 95 % interval of a rate."""
    low = float(stats.beta.ppf(0.025, hits, samples - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, samples - hits)) if hits < samples else 1.0
    return low, high


def rate(hits: int, samples: int) -> Figure:
    """A rate of independent samples with its exact interval."""
    low, high = clopper_pearson(hits, samples)
    return Figure(hits / samples, low, high, samples, "Clopper-Pearson")


class Judge:
    """Intervals that come from drawing parts."""

    def __init__(self, members: list[Indices], seed: int) -> None:
        self._members = members
        self._seed = seed

    def rate(self, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Figure:
        """Share of the samples `among` (n,) that hit, mean of the rows of `hits` (seeds, n).

        With parts of several samples: by drawing parts and exactly, the wider of both. Where
        nothing or everything hits, drawing says nothing: the parts are counted.
        """
        share, samples = hits.mean(axis=0), int(among.sum())
        value = float(share[among].mean())
        parts = [part for part in self._members if among[part].any()]
        if len(parts) == samples and len(hits) == 1:
            return rate(round(value * samples), samples)
        if value in (0.0, 1.0):
            low, high = clopper_pearson(round(value * len(parts)), len(parts))
            return Figure(value, low, high, samples, f"Clopper-Pearson of {len(parts)} parts")

        def statistic(drawn: Indices) -> float:
            return float(share[drawn][among[drawn]].mean())

        drawn_low, drawn_high = _bootstrap(parts, statistic, self._seed)
        low, high = clopper_pearson(round(value * samples), samples)
        return Figure(
            value,
            min(low, drawn_low),
            max(high, drawn_high),
            samples,
            f"bootstrap of {len(parts)} parts and Clopper-Pearson, the wider",
            _few_groups(parts, statistic),
        )

    def area(self, labels: Labels, scores: NDArray[np.float32]) -> Figure:
        """AUROC, mean of the rows of `scores` (seeds, n)."""

        def statistic(drawn: Indices) -> float:
            some = labels[drawn]
            if not 0 < some.sum() < len(some):
                return float("nan")
            return float(np.mean([auroc(some, row[drawn]) for row in scores]))

        drawn_low, drawn_high = _bootstrap(self._members, statistic, self._seed)
        value = float(np.mean([auroc(labels, row) for row in scores]))
        count = self._fewest(labels, of_parts=value in (0.0, 1.0))
        low, high = clopper_pearson(round(value * count), count)
        return Figure(
            value,
            min(low, drawn_low),
            max(high, drawn_high),
            len(labels),
            f"bootstrap of {len(self._members)} parts and Clopper-Pearson of {count}, the wider",
            _few_groups(self._members, statistic),
        )

    def _fewest(self, labels: Labels, of_parts: bool) -> int:
        """Samples (parts) of the rarer class: an area is known no better than a rate of so many.

        Where all pairs are in the right order, drawing says nothing, and the parts count.
        """
        if not of_parts:
            return int(min(labels.sum(), len(labels) - labels.sum()))
        return min(sum((labels[part] == c).any() for part in self._members) for c in (0, 1))


def _bootstrap(parts: list[Indices], statistic: Statistic, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLES):
        chosen = random.integers(len(parts), size=len(parts))
        values.append(statistic(np.concatenate([parts[i] for i in chosen])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _few_groups(parts: list[Indices], statistic: Statistic) -> Interval | None:
    """Each part left out in turn, Student's t with one degree of freedom less than parts.

    The jackknife CV3 of MacKinnon, Nielsen and Webb (2023), which keeps its promise with few and
    unequal parts. None where parts are many, or too few to leave one out.
    """
    if not 3 <= len(parts) < FEW_GROUPS:
        return None
    value = statistic(np.concatenate(parts))
    left_out = [np.concatenate(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]
    values = np.array([statistic(drawn) for drawn in left_out])
    if not np.isfinite(values).all() or not values.std():
        return None
    count = len(parts)
    error = float(np.sqrt((count - 1) / count * np.square(values - value).sum()))
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    method = f"jackknife of {count} parts, t({count - 1})"
    return Interval(max(0.0, value - reach), min(1.0, value + reach), method)


def _kinds_present(defect_types: Sequence[str] | None, bad: NDArray[np.bool_]) -> list[str]:
    kinds = np.array(defect_types or [""] * len(bad))
    return sorted(set(kinds[bad].tolist()) - {""})


def members_of(groups: Sequence[str]) -> list[Indices]:
    """Indices of the samples of each part."""
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [np.array(indices, np.int64) for indices in found.values()]
