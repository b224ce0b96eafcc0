"""Probability of detection (POD) along a property of defects, from which of them were hit.

MIL-HDBK-1823A (2009), appendix G, for hit/miss data: a generalized linear model with logit link on
the logarithm of the property, fitted by maximum likelihood, and confidence bounds from the
loglikelihood ratio. The value where 90 % are hit (a90) is given only inside the range that was
measured: nothing is extrapolated. Its bound a90/95 is the largest value at which the data do not
contradict a POD of 90 %, one-sided at 95 %: of a hundred such experiments about 95 give one that is
large enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from models.training.evaluate import Figure, rate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

POD = 0.9
CONFIDENCE = 0.95
MISFIT = 0.01
"""Data that are less likely than this if the model holds contradict it."""
_LIMIT = float(stats.chi2.ppf(2 * CONFIDENCE - 1, 1))
"""Of twice the loglikelihood ratio; two-sided at 90 % is one-sided at 95 %."""
_WIDEST_ODDS = 40.0
_NEWTON_STEPS = 60
_ENOUGH = 1e-10
_RIDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Reach:
    """From which value on defects are found."""

    trials: int
    hits: int
    measured: tuple[float, float] | None
    """Least and greatest value of the trials; None without any."""
    a50: float | None
    a90: float | None
    a90_95: float | None
    """Upper 95 % confidence bound of `a90`."""
    misfit_p: float | None
    """How likely data as far from the model are if it holds; below `MISFIT` it does not."""
    note: str
    """Why a value is None, or should not be believed; empty if all is well."""


@dataclass(frozen=True, slots=True)
class Curve:
    """POD at `values`, with a lower and an upper bound of 95 % confidence each; arrays (n,)."""

    values: Floats
    pod: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Share:
    """Hits of defects of about the same value."""

    value: float
    figure: Figure


class Detection:
    """Hits and misses along one property, and the model that is most likely to have made them."""

    def __init__(self, values: Floats, is_hit: Bools) -> None:
        """`values` float (n,), above 0; `is_hit` bool (n,)."""
        self._logs, self._is_hit = np.log(values), is_hit
        self._hits = is_hit.astype(np.float64)
        self.problem = _degenerate(self._logs, is_hit)
        """Why no model is the most likely one; empty if one is."""
        self._weights, self._best = np.zeros(2), 0.0
        if not self.problem:
            self._weights, self._best = self._fitted(self._logs, np.ones_like(self._logs))

    @cached_property
    def misfit_p(self) -> float | None:
        """Loglikelihood ratio of a model with the square of the logarithm added."""
        if self.problem:
            return None
        ones, middle = np.ones_like(self._logs), self._logs.mean()
        better = self._fitted(self._logs, ones, np.square(self._logs - middle))[1]
        return float(stats.chi2.sf(max(0.0, 2 * (better - self._best)), 1))

    def reach(self) -> Reach:
        """From which value on defects are found, as far as the trials can tell."""
        a50, a90, bound, note = self._found() if self._is_growing else (None, None, None, "")
        if not self._is_growing:
            note = self.problem or "POD does not grow"
        elif self.misfit_p is not None and self.misfit_p < MISFIT:
            note = "; ".join(filter(None, [note, "the curve does not fit: read the hit shares"]))
        return Reach(
            trials=len(self._hits),
            hits=int(self._hits.sum()),
            measured=self._measured,
            a50=a50,
            a90=a90,
            a90_95=bound,
            misfit_p=self.misfit_p,
            note=note,
        )

    def curve(self, points: int = 40) -> Curve | None:
        """POD over the measured range; None without a model."""
        if self.problem:
            return None
        logs = np.linspace(*self._range, points)
        odds = [self._odds(float(log)) for log in logs]
        low, middle, high = (special.expit(np.array(each)) for each in zip(*odds, strict=True))
        return Curve(np.exp(logs), middle, low, high)

    def shares(self, bins: int = 8) -> list[Share]:
        """Hit shares of groups of neighbouring values, all about as many."""
        groups = np.array_split(np.argsort(self._logs, kind="stable"), bins)
        return [
            Share(
                float(np.exp(self._logs[group].mean())),
                rate(int(self._is_hit[group].sum()), len(group)),
            )
            for group in groups
            if len(group)
        ]

    @property
    def _is_growing(self) -> bool:
        return not self.problem and bool(self._weights[0] > 0)

    @property
    def _measured(self) -> tuple[float, float] | None:
        if not len(self._logs):
            return None
        low, high = np.exp(self._range)
        return float(low), float(high)

    @property
    def _range(self) -> tuple[float, float]:
        return float(self._logs.min()), float(self._logs.max())

    def _found(self) -> tuple[float | None, float | None, float | None, str]:
        """a50, a90 and a90/95 where they were measured, and why one is missing."""
        low, high = self._range
        at50, at90, bound = self._log_where(0.5), self._log_where(POD), self._log_bound()
        a50, a90 = (float(np.exp(log)) if low <= log <= high else None for log in (at50, at90))
        note = ""
        if at90 > high:
            note = f"90 % not reached up to {np.exp(high):.3g}, the greatest measured"
        elif at90 < low:
            note = f"more than 90 % already at {np.exp(low):.3g}, the least measured"
        elif bound is None:
            note = f"90 % not shown with 95 % confidence up to {np.exp(high):.3g}, the greatest"
        return a50, a90, None if bound is None else float(np.exp(bound)), note

    def _log_where(self, pod: float) -> float:
        return float((special.logit(pod) - self._weights[1]) / self._weights[0])

    def _log_bound(self) -> float | None:
        """From where on the data contradict a POD below 90 %, if that was measured."""
        low, high = self._range
        start = max(low, self._log_where(POD))
        target = float(special.logit(POD))

        def beyond(log: float) -> float:
            return self._deviance(log, target) - _LIMIT

        if start >= high or beyond(high) < 0 or beyond(start) > 0:
            return None
        return float(optimize.brentq(beyond, start, high, xtol=1e-4))

    def _odds(self, log: float) -> tuple[float, float, float]:
        """Log odds of a hit at a place: lower bound, most likely, upper bound."""
        middle = float(self._weights[0] * log + self._weights[1])

        def beyond(odds: float) -> float:
            return self._deviance(log, odds) - _LIMIT

        return _end(beyond, middle, -1.0), middle, _end(beyond, middle, 1.0)

    def _deviance(self, log: float, odds: float) -> float:
        """Twice the loglikelihood that is lost if the log odds at a place are to be `odds`."""
        return 2 * (self._best - self._fitted(self._logs - log, offset=odds)[1])

    def _fitted(self, *columns: Floats, offset: float = 0.0) -> tuple[Floats, float]:
        return _fit(np.stack(columns, axis=1), self._hits, offset)


def _end(beyond: Callable[[float], float], middle: float, step: float) -> float:
    """Where `beyond` becomes positive, going from `middle` in the direction of `step`."""
    while beyond(middle + step) < 0:
        step *= 2
        if abs(step) > _WIDEST_ODDS:
            return middle + step
    near, far = sorted((middle, middle + step))
    return float(optimize.brentq(beyond, near, far, xtol=1e-3))


def _degenerate(logs: Floats, is_hit: Bools) -> str:
    """Why no model is the most likely one, the steeper the likelier; empty if one is."""
    if not len(is_hit):
        return "none was tried"
    if is_hit.all() or not is_hit.any():
        word = "hit" if is_hit.all() else "missed"
        return f"all {len(is_hit)} were {word}: no curve can be fitted"
    hits, misses = logs[is_hit], logs[~is_hit]
    if misses.max() <= hits.min():
        low, high = np.exp(misses.max()), np.exp(hits.min())
        return (
            f"hits and misses are completely separated: all up to {low:.3g} were missed, all from "
            f"{high:.3g} on hit; no curve can be fitted without more trials between"
        )
    if hits.max() <= misses.min():
        return "hits and misses are completely separated, the hits below: no curve can be fitted"
    return ""


def _fit(design: Floats, hits: Floats, offset: float) -> tuple[Floats, float]:
    """Most likely weights of the log odds `offset + design @ weights`, and their loglikelihood.

    Newton's method, halving steps that would lose likelihood; it is concave.
    """
    weights = np.zeros(design.shape[1])
    odds = np.full(len(hits), offset)
    best = _loglikelihood(odds, hits)
    for _ in range(_NEWTON_STEPS):
        pod = special.expit(odds)
        curvature = (design.T * (pod * (1 - pod))) @ design + _RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, design.T @ (hits - pod))
        share, found = _longest_gain(odds, design @ step, hits, best)
        weights, gain, best = weights + share * step, found - best, found
        odds = offset + design @ weights
        if gain < _ENOUGH:
            break
    return weights, best


def _longest_gain(odds: Floats, change: Floats, hits: Floats, best: float) -> tuple[float, float]:
    """The share of a change, a power of one half, that gains, and the loglikelihood there."""
    share = 1.0
    while share > _ENOUGH:
        found = _loglikelihood(odds + share * change, hits)
        if found >= best:
            return share, found
        share /= 2
    return 0.0, best


def _loglikelihood(odds: Floats, hits: Floats) -> float:
    return float((hits * odds - np.logaddexp(0, odds)).sum())
