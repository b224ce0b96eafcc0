"""From tile to plate, on rendered plates of a recipe: the threshold that rejects as few good plates
as was asked for, what it lets escape, and how a plate's score is read as a probability.

A plate's score is its highest tile score; a plate fails above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.training.evaluate import Figure, clopper_pearson, order_statistic, rate
from station.synthesize import PlateSource, TileScorer

FALSE_REJECT_TARGET = 0.01
"""Share of good plates that may fail."""
_RESAMPLES = 1000
_LEAST_ODDS = 1e-6

Scores = NDArray[np.float32]
Floats = NDArray[np.float64]


class TooFewPlates(ValueError):
    """So few good plates cannot hold a target: says how many can."""


@dataclass(frozen=True, slots=True)
class PlateScore:
    """A fresh plate and its highest tile score."""

    plate: int
    is_defective: bool
    score: float
    tiles: int
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """A threshold and what the good plates that chose it say of it."""

    value: float
    target: float
    expected: float
    """Mean false-reject rate of such a choice on other good plates: at most the target."""
    false_reject_rate: Figure
    """On the plates that chose."""

    @property
    def words(self) -> str:
        """For a model card."""
        seen = self.false_reject_rate
        return (
            f"false-reject target {self.target:.2%} of plates, highest tile score of each: exceeded"
            f" by {round(seen.value * seen.samples)} of {seen.samples} good fresh rendered plates "
            f"(95 % interval {seen.low:.2%} to {seen.high:.2%}, {seen.method}), {self.expected:.2%}"
            " expected of others (order statistic, Wilks 1941)"
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """A plate's score as the probability that it is defective (Platt, 1999), fitted on some plates
    and measured on others."""

    slope: float
    offset: float
    """Of the calibrated log odds over those of the score."""
    defective_share: float
    """Of the plates that it was fitted on: the probability holds where as many are defective."""
    brier: Figure
    """Mean square of probability less truth: 0 is certain and right, 0.25 says nothing."""
    brier_uncalibrated: float
    """Of the score itself, on the same plates."""


@dataclass(frozen=True, slots=True)
class PlateRates:
    """Whole plates at a threshold."""

    threshold: float
    escape_rate: Figure
    """Defective plates passed, of all defective ones."""
    false_reject_rate: Figure
    """Good plates failed, of all good ones."""


def plates_needed(target: float = FALSE_REJECT_TARGET) -> int:
    """Good plates without which no threshold is known to hold the target: 99 for 1 %."""
    return math.ceil(1 / target - 1e-9) - 1


def score_plates(
    source: PlateSource, scorer: TileScorer, plates: int, seed: int, contrast_scale: float = 1.0
) -> Iterator[PlateScore]:
    """Score whole plates of the nominal product, every other one defective, the first one good."""
    for number in range(plates):
        rng = np.random.default_rng((seed, number))
        is_defective = number % 2 == 1
        tiles = source.plate(rng, is_defective, 0.0, contrast_scale)
        scores = scorer.scores(np.stack([tile.pixels for tile in tiles])[:, None])
        kinds = tuple(sorted({tile.defect_type for tile in tiles} - {""}))
        yield PlateScore(number, is_defective, float(scores.max()), len(tiles), kinds)


def choose_threshold(
    plates: Sequence[PlateScore], target: float = FALSE_REJECT_TARGET
) -> ChosenThreshold:
    """The smallest of the good plates' scores that keeps the target.

    Another good plate is as likely to fall into any of the n + 1 gaps between n scores as into any
    other, whatever their distribution: with k scores above the threshold it fails with a
    probability of (k + 1) / (n + 1) on average (Wilks, 1941; the same rank is that of split
    conformal prediction, Lei et al., 2018). That is held to the target, not k / n, which flatters;
    a tail is not fitted, since nothing in the scores says what it looks like. Raises
    `TooFewPlates`.
    """
    good = np.sort([plate.score for plate in plates if not plate.is_defective])
    needed = plates_needed(target)
    if len(good) < needed:
        raise TooFewPlates(
            f"{len(good)} good plates cannot show a false-reject rate of {target:.2%}; "
            f"{needed} or more are needed"
        )
    above = order_statistic(len(good), target)
    value = float(good[len(good) - 1 - above])
    seen = rate(int((good > value).sum()), len(good))
    return ChosenThreshold(value, target, (above + 1) / (len(good) + 1), seen)


def measure_rates(plates: Sequence[PlateScore], threshold: float) -> PlateRates:
    """Escape and false-reject rate of plates that had no part in the threshold; some of them are
    good and some defective."""
    bad = [plate.score for plate in plates if plate.is_defective]
    good = [plate.score for plate in plates if not plate.is_defective]
    return PlateRates(
        threshold,
        escape_rate=rate(sum(score <= threshold for score in bad), len(bad)),
        false_reject_rate=rate(sum(score > threshold for score in good), len(good)),
    )


def measure_calibration(
    fitting: Sequence[PlateScore], measuring: Sequence[PlateScore]
) -> Calibration:
    """Fit Platt's two numbers on some plates, measure them on others; both hold good and defective
    plates."""
    from scipy import special  # a fifth of a second that no start of a station need take

    from models.training.train import calibrate  # with all that training needs

    labels, scores = _arrays(fitting)
    slope, offset = calibrate(labels, scores)
    truth, measured = _arrays(measuring)
    clipped = np.clip(measured.astype(np.float64), _LEAST_ODDS, 1 - _LEAST_ODDS)
    probability = special.expit(slope * special.logit(clipped) + offset)
    return Calibration(
        slope=slope,
        offset=offset,
        defective_share=float(labels.mean()),
        brier=_mean(np.square(probability - truth)),
        brier_uncalibrated=float(np.square(measured - truth).mean()),
    )


def _arrays(plates: Sequence[PlateScore]) -> tuple[NDArray[np.int64], Scores]:
    labels = np.array([int(plate.is_defective) for plate in plates], np.int64)
    return labels, np.array([plate.score for plate in plates], np.float32)


def _mean(values: Floats) -> Figure:
    """The mean of values between 0 and 1: by drawing plates, and as if each were 0 or 1, the wider.

    Nothing with this mean varies more than what is 0 or 1; drawing does not know of plates that are
    judged wrongly but rarely.
    """
    rng, count, total = np.random.default_rng(0), len(values), float(values.sum())
    drawn = values[rng.integers(count, size=(_RESAMPLES, count))].mean(axis=1)
    low, high = (float(end) for end in np.percentile(drawn, [2.5, 97.5]))
    low = min(low, clopper_pearson(math.floor(total), count)[0])
    high = max(high, clopper_pearson(math.ceil(total), count)[1])
    method = f"bootstrap of {count} plates and Clopper-Pearson, the wider"
    return Figure(total / count, low, high, count, method)
