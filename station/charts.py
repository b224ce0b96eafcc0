"""Control charts of a station's plates (ISO 7870-2; Montgomery, Introduction to Statistical Quality
Control, 8th ed., ch. 7). Pure.

Limits are exact quantiles of the binomial (p) or Poisson (u) distribution: at small counts three
standard deviations are not what they seem. Where plates vary more from group to group than chance
allows, Laney's limits (Quality Engineering 14, 2002, 531-537) take their place. Nelson's rules
(Journal of Quality Technology 16, 1984, 237-239) look at points whose counts are nearly normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Literal["p", "u"]

TAIL = float(stats.norm.sf(3.0))
"""Chance of a point beyond either limit while nothing is wrong: that of three standard deviations.
"""
NORMAL_COUNT = 5.0
"""A count whose expectation, and that of its complement, is less is not taken for normal
(Montgomery, ch. 3: n p and n (1 - p) of 5)."""
_LEAST_POINTS = 10
"""With fewer nobody can tell whether they vary too much."""
_RANGE_TO_SIGMA = 1.128
"""Mean range of two normal values, in standard deviations (Montgomery, appendix VI)."""
_OVER = float(stats.norm.ppf(0.99))
_SEED = 2002
_DRAWS = 100_000
"""Points of the charts that are simulated."""


@dataclass(frozen=True, slots=True)
class Group:
    """Plates that make one point: how many there were, and what was counted in them."""

    label: str
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    label: str
    size: int
    count: int
    rate: float
    low: float
    high: float
    is_out: bool
    rules: tuple[int, ...]
    """Of Nelson's, those that this point completes; the first is `is_out`."""
    is_normal: bool
    """Whether the rules look at it."""


@dataclass(frozen=True, slots=True)
class Chart:
    kind: Kind
    limits: Literal["exact", "laney"]
    centre: float
    sigma_z: float | None
    """Spread of the points in units of what chance allows; None with too few points."""
    sigma_z_limit: float | None
    """Chance alone exceeds it once in a hundred charts."""
    false_alarms_per_1000: float | None
    """Points of a process in control that would be marked, by limits or rules; simulated. None
    where nobody asked, or nothing varies."""
    points: tuple[Point, ...]


def chart(kind: Kind, groups: Sequence[Group], with_false_alarms: bool = True) -> Chart:
    """A chart of groups in the order of time; its centre is their mean. `with_false_alarms`:
    simulate how many there are to expect, most of the work."""
    used = [group for group in groups if group.size > 0]
    sizes = np.array([group.size for group in used], float)
    counts = np.array([group.count for group in used], float)
    centre = float(counts.sum() / sizes.sum()) if used else 0.0
    model = _Model(kind, sizes, centre)
    sigma_z = _sigma_z(model.z(counts)) if model.varies and len(used) >= _LEAST_POINTS else None
    limit = _sigma_z_limit(model) if sigma_z is not None else None
    is_over = sigma_z is not None and limit is not None and sigma_z > limit
    spread = sigma_z if is_over and sigma_z is not None else 1.0
    low, high = model.laney(spread) if is_over else model.exact()
    rules = _Rules(low, high, model.is_normal, spread)
    return Chart(
        kind,
        "laney" if is_over else "exact",
        centre,
        sigma_z,
        limit,
        _false_alarms(model, rules, spread) if with_false_alarms and model.varies else None,
        tuple(_points(used, model, counts, rules)),
    )


def _points(used: Sequence[Group], model: _Model, counts: Floats, rules: _Rules) -> list[Point]:
    out = rules.beyond(counts / model.sizes)
    broken = rules.broken(model.z(counts)) if model.varies else {}
    return [
        Point(
            label=group.label,
            size=group.size,
            count=group.count,
            rate=group.count / group.size,
            low=float(rules.low[i]),
            high=float(rules.high[i]),
            is_out=bool(out[i]),
            rules=tuple(number for number, where in broken.items() if where[i]),
            is_normal=bool(model.is_normal[i]),
        )
        for i, group in enumerate(used)
    ]


# --- what chance does ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Model:
    """Groups of these sizes while nothing is wrong."""

    kind: Kind
    sizes: Floats
    centre: float

    @property
    def varies(self) -> bool:
        return self.centre > 0 and (self.kind == "u" or self.centre < 1)

    @property
    def sigma(self) -> Floats:
        complement = 1 - self.centre if self.kind == "p" else 1.0
        return np.sqrt(self.centre * complement / self.sizes)

    @property
    def is_normal(self) -> Bools:
        rarer = min(self.centre, 1 - self.centre) if self.kind == "p" else self.centre
        return np.asarray(self.sizes * rarer >= NORMAL_COUNT)

    def z(self, counts: Floats) -> Floats:
        return np.asarray((counts / self.sizes - self.centre) / self.sigma)

    def exact(self) -> tuple[Floats, Floats]:
        """Rates that are still within; beyond each lies a chance of `TAIL` at most."""
        if self.kind == "p":
            counted = stats.binom(self.sizes.astype(int), self.centre)
        else:
            counted = stats.poisson(self.sizes * self.centre)
        return counted.ppf(TAIL) / self.sizes, counted.isf(TAIL) / self.sizes

    def laney(self, sigma_z: float) -> tuple[Floats, Floats]:
        half = 3 * self.sigma * sigma_z
        most = 1.0 if self.kind == "p" else np.inf
        return np.maximum(self.centre - half, 0.0), np.minimum(self.centre + half, most)

    def draw(self, rng: np.random.Generator, times: int, sigma_z: float = 1.0) -> Floats:
        """Counts (times, groups) of a process in control. Where it varies by more than chance, its
        rate does so from group to group, as a beta (p) or gamma (u) variable."""
        shape = (times, len(self.sizes))
        between = self.sigma**2 * (sigma_z**2 - 1)
        if self.kind == "p":
            rate = _beta(rng, self.centre, between, shape)
            return rng.binomial(self.sizes.astype(int), rate, shape).astype(float)
        rate = _gamma(rng, self.centre, between, shape)
        return rng.poisson(self.sizes * rate, shape).astype(float)


def _beta(
    rng: np.random.Generator, mean: float, variance: Floats, shape: tuple[int, int]
) -> Floats | float:
    if not variance.any():
        return mean
    total = np.maximum(mean * (1 - mean) / variance - 1, 1e-3)
    return rng.beta(mean * total, (1 - mean) * total, shape)


def _gamma(
    rng: np.random.Generator, mean: float, variance: Floats, shape: tuple[int, int]
) -> Floats | float:
    if not variance.any():
        return mean
    return rng.gamma(mean**2 / variance, variance / mean, shape)


def _sigma_z(z: Floats) -> float:
    """Laney's: the mean moving range of z over d2."""
    return float(np.abs(np.diff(z, axis=-1)).mean() / _RANGE_TO_SIGMA)


def _sigma_z_limit(model: _Model) -> float:
    """What chance alone exceeds once in a hundred charts of groups like these."""
    z = model.z(model.draw(np.random.default_rng(_SEED), _times(model)))
    found = np.abs(np.diff(z, axis=1)).mean(axis=1) / _RANGE_TO_SIGMA
    return float(found.mean() + _OVER * found.std())


def _times(model: _Model) -> int:
    return int(np.clip(_DRAWS // len(model.sizes), 100, 1000))


def _false_alarms(model: _Model, rules: _Rules, sigma_z: float) -> float:
    """Of one long chart of groups like these."""
    times = _times(model)
    counts = model.draw(np.random.default_rng(_SEED + 1), times, sigma_z)
    marked = rules.repeated(times).beyond((counts / model.sizes).ravel())
    for where in rules.repeated(times).broken(model.z(counts).ravel()).values():
        marked = marked | where
    return round(1000 * float(marked.mean()), 2)


# --- Nelson's rules -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rules:
    low: Floats
    high: Floats
    is_normal: Bools
    spread: float

    def repeated(self, times: int) -> _Rules:
        """For the same groups again and again."""
        return _Rules(
            np.tile(self.low, times),
            np.tile(self.high, times),
            np.tile(self.is_normal, times),
            self.spread,
        )

    def beyond(self, rates: Floats) -> Bools:
        return np.asarray((rates < self.low) | (rates > self.high))

    def broken(self, z: Floats) -> dict[int, Bools]:
        """Rules 2 to 8, where all points that one looks at are nearly normal."""
        scaled = z / self.spread
        return {
            number: _windows(scaled, self.is_normal, length, test)
            for number, (length, test) in _NELSON.items()
        }


Test = Callable[[Floats], Bools]
"""Says for windows (windows, length) which of them break a rule."""


def _windows(z: Floats, is_normal: Bools, length: int, test: Test) -> Bools:
    """Points that complete a window of `length` normal points that breaks a rule."""
    marked = np.zeros(len(z), bool)
    if len(z) < length or not is_normal.any():
        return marked
    view = np.lib.stride_tricks.sliding_window_view
    marked[length - 1 :] = test(view(z, length)) & view(is_normal, length).all(axis=1)
    return marked


def _all_on_one_side(w: Floats) -> Bools:
    return np.asarray((w > 0).all(axis=1) | (w < 0).all(axis=1))


def _all_rising_or_falling(w: Floats) -> Bools:
    steps = np.diff(w, axis=1)
    return np.asarray((steps > 0).all(axis=1) | (steps < 0).all(axis=1))


def _alternating(w: Floats) -> Bools:
    steps = np.diff(w, axis=1)
    return np.asarray((steps[:, 1:] * steps[:, :-1] < 0).all(axis=1))


def _beyond_on_one_side(least: int, sigmas: float) -> Test:
    """The last point among them: else the rule would mark points after the cause is gone."""

    def test(w: Floats) -> Bools:
        above, below = w > sigmas, w < -sigmas
        return np.asarray(
            ((above.sum(axis=1) >= least) & above[:, -1])
            | ((below.sum(axis=1) >= least) & below[:, -1])
        )

    return test


_NELSON: dict[int, tuple[int, Test]] = {
    2: (9, _all_on_one_side),
    3: (6, _all_rising_or_falling),
    4: (14, _alternating),
    5: (3, _beyond_on_one_side(2, 2.0)),
    6: (5, _beyond_on_one_side(4, 1.0)),
    7: (15, lambda w: np.asarray((np.abs(w) < 1).all(axis=1))),
    8: (8, lambda w: np.asarray((np.abs(w) > 1).all(axis=1))),
}
