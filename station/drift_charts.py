"""Control charts of what plates say of light, camera, material and network: limits, and what an
alarm means. Pure.

Plates of a line resemble the plates before them, so neither a limit for single plates nor one for
independent ones holds. Eight plates make a batch, its medians a point (Runger and Willemain,
Journal of Quality Technology 28, 1996); a point is charted twice: an exponentially weighted mean of
the points, which sees what stays, and the difference from what an autoregression of the points
before foretells, which sees what jumps. Limits follow from the points that were learned from: their
spread, their autocorrelation at the upper end of what the sample leaves open, how well both are
known, and a share of chance that all charts divide among themselves, so that together they call
without cause once in `TARGET_PLATES` plates or less. A change of less than 60 % of what is to be
found never calls: no product is that even for months.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from station.plate_names import MAP, NAMES, SCALARS

Floats = NDArray[np.float64]
Json = dict[str, Any]

BATCH_PLATES = 8
WEIGHT = 0.3
"""Of the newest point in the mean; the mean then remembers about six points, 50 plates."""
TARGET_PLATES = 400_000
"""Twice the in-control run length that is promised: what is foretold is never met exactly."""
MOST_POINTS = 400
"""Points that are kept, and learned from at most."""
_FLOOR_SHARE = 0.6
"""Of the change that is to be found: less never calls."""
_RELEASE = 0.7
"""Share of its limit below which a chart is well again."""
_WELL_POINTS = 6
"""Points in a row after which an alarm ends."""
_SUSPECT = 0.5
"""Share of its limit from which a chart of the image counts when scores are to be explained."""
_MOST_CORRELATION = 0.95
_ONE_SIDED = 1.645
_LEAST_FREEDOM = 4.0
_WANTED_FREEDOM = 40.0
"""Degrees of freedom of the least known spread; with less the limits are wide for want of plates.
"""
_LEAST_SPREAD = 1e-4
_NEED_KNOWN = 0.5
"""Share of a batch's plates, or of the points learned from, that must say something."""

MAP_CHART = "embedding"
CHARTS = (*SCALARS, MAP_CHART, *(name for name in NAMES if name.startswith("section")))
"""Names of the charts: one for each feature, but the map's features have one together: their
distance from what was learned."""
_CHARTED = np.array([name not in MAP for name in NAMES])
_IN_MAP = ~_CHARTED
_OWN = np.array([name != MAP_CHART for name in CHARTS])

Cause = Literal["light", "lens", "material", "model", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be found; changes relative, of scores in log odds."""

    light: float = 0.05
    contrast: float = 0.20
    noise: float = 0.30
    score: float = 1.0

    def floors(self) -> Floats:
        """The least change of each feature that calls, in its own unit."""
        of = {"level": self.light, "contrast": self.contrast, "noise": self.noise}
        changes = [
            self.score if name.startswith(("score", "map")) else of.get(name, self.light)
            for name in NAMES
        ]
        return _FLOOR_SHARE * np.array(changes)


@dataclass(frozen=True, slots=True)
class Limits:
    """What was learned; everything by feature, NaN where there is no chart, but `distance`."""

    plates: int
    points: int
    centre: Floats
    spread: Floats
    """Standard deviation of the points."""
    correlation: Floats
    """Of a point with the one before, that the limits were made for."""
    mean: Floats
    """Limit of the weighted mean's change."""
    jump: Floats
    """Limit of the difference from what the points before foretell."""
    map_inverse: Floats
    """Inverse covariance of the map's weighted means."""
    distance: float
    """Limit of their distance from what was learned; NaN without a map."""

    def as_json(self) -> Json:
        """Numbers rounded to six digits, NaN as null."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> Limits:
        """Raises ValueError if these are no limits of these charts."""
        try:
            found = {
                field.name: _array(said[field.name])
                for field in fields(cls)
                if field.name not in ("plates", "points", "distance")
            }
            distance = said["distance"]
            limits = cls(
                plates=int(said["plates"]),
                points=int(said["points"]),
                distance=np.nan if distance is None else float(distance),
                **found,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no limits of these charts: {error!r}") from error
        shapes = {value.shape for name, value in found.items() if name != "map_inverse"}
        if shapes != {(len(NAMES),)} or found["map_inverse"].shape != (len(MAP), len(MAP)):
            raise ValueError("limits of other charts")
        return limits

    def too_wide(self, wanted: Wanted) -> list[str]:
        """Charts whose limit is not below what is to be found: these plates vary too much."""
        wide = self.mean >= wanted.floors() / _FLOOR_SHARE
        return [name for name, is_wide in zip(NAMES, wide, strict=True) if is_wide]


def _rounded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_rounded(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def _array(value: Any) -> Floats:
    return np.array(value, dtype=np.float64)  # null becomes NaN


# --- points --------------------------------------------------------------------------------------


def point_of(plates: Sequence[Floats] | Floats) -> Floats:
    """Medians of a batch's features; NaN where fewer than half of its plates say something."""
    seen = np.asarray(plates)
    known = np.isfinite(seen).sum(axis=0)
    ordered = np.sort(seen, axis=0)  # NaN last
    low, high = (
        np.take_along_axis(ordered, np.maximum(at, 0)[None], axis=0)[0]
        for at in ((known - 1) // 2, known // 2)
    )
    is_known = known >= _NEED_KNOWN * len(seen)
    high = np.where(known // 2 < len(seen), high, low)
    return np.where(is_known & (known > 0), (low + high) / 2, np.nan)


# --- limits --------------------------------------------------------------------------------------


def is_enough(points: Sequence[Floats] | Floats, least: int) -> bool:
    """Whether limits can be learned from these points: `least` of them, up to twice as many where
    they are so alike from one to the next that their spread is not known well."""
    seen = np.asarray(points, np.float64)
    if len(seen) < max(least, 4):
        return False
    correlation = _spreads(seen)[2]
    known = correlation[np.isfinite(correlation)]
    is_known = bool((_freedom(known, len(seen)) >= _WANTED_FREEDOM).all())
    return is_known or len(seen) >= min(2 * least, MOST_POINTS)


def learn(points: Sequence[Floats] | Floats, wanted: Wanted) -> Limits:
    """Limits from points (n, features), n >= 4, of plates that are as they should be."""
    seen = np.asarray(points, np.float64)
    count, floors = len(seen), wanted.floors()
    centre, spread, correlation = _spreads(seen)
    is_used = np.isfinite(centre)
    charts = int(is_used[_CHARTED].sum()) * 2 + 1
    tail = BATCH_PLATES / TARGET_PLATES / charts
    of_mean = spread * np.sqrt(_mean_gain(correlation) + _centre_gain(correlation, count))
    of_jump = _jump_spread(seen, centre, correlation) * np.sqrt(1 + 1 / count)
    times = _student(tail / 2, _freedom(correlation, count))
    times_jump = _student(tail / 2, np.full(len(NAMES), count - 2.0))
    inverse, distance = _map_limit(seen, correlation, is_used, floors, tail)
    return Limits(
        plates=count * BATCH_PLATES,
        points=count,
        centre=centre,
        spread=spread,
        correlation=correlation,
        mean=np.where(_CHARTED, np.maximum(times * of_mean, floors), np.nan),
        jump=np.where(_CHARTED, np.maximum(times_jump * of_jump, floors), np.nan),
        map_inverse=inverse,
        distance=distance,
    )


def _spreads(seen: Floats) -> Floats:
    """`_series` of each feature, (3, features); NaN where too few points say something."""
    found = np.full((3, seen.shape[1]), np.nan)
    for at in np.flatnonzero(np.isfinite(seen).mean(axis=0) >= _NEED_KNOWN):
        found[:, at] = _series(seen[np.isfinite(seen[:, at]), at])
    return found


def _series(values: Floats) -> tuple[float, float, float]:
    """Mean, standard deviation and autocorrelation of points, the last at the upper end of what so
    few leave open (a one-sided interval of 95 % about the estimate without its bias)."""
    count, mean = len(values), float(values.mean())
    rest = values - mean
    power = float(rest @ rest)
    if count < 4 or power <= 0:
        return mean, _LEAST_SPREAD, 0.0
    r = float(rest[1:] @ rest[:-1]) / power
    unbiased = r + (1 + 4 * r) / count
    upper = unbiased + _ONE_SIDED * np.sqrt(max(1 - r * r, 0.0) / count)
    correlation = float(np.clip(upper, 0.0, _MOST_CORRELATION))
    # The sample's own mean follows slow changes: it takes them out of the spread.
    independent = max(count * (1 - correlation) / (1 + correlation), 2.0)
    variance = power / count / (1 - 1 / independent)
    return mean, max(float(np.sqrt(variance)), _LEAST_SPREAD), correlation


def _jump_spread(seen: Floats, centre: Floats, correlation: Floats) -> Floats:
    """Standard deviation of what the points learned from jump by, as they will be watched."""
    change = seen - centre
    jumps = change[1:] - correlation * change[:-1]
    known = np.isfinite(jumps)
    squares = np.where(known, jumps, 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=0) / np.maximum(known.sum(axis=0) - 1, 1))
    return np.asarray(np.where(np.isfinite(centre), np.maximum(spread, _LEAST_SPREAD), np.nan))


def _mean_gain(correlation: Floats) -> Floats:
    """Variance of the weighted mean of first-order autoregressive points of variance 1."""
    keep = 1 - WEIGHT
    gain = WEIGHT / (2 - WEIGHT) * (1 + correlation * keep) / (1 - correlation * keep)
    return np.asarray(gain)


def _centre_gain(correlation: Floats, count: int) -> Floats:
    """Variance of the learned centre."""
    return np.asarray((1 + correlation) / (1 - correlation) / count)


def _freedom(correlation: Floats, count: int) -> Floats:
    """Degrees of freedom of a variance from autocorrelated points."""
    freedom = count * (1 - correlation**2) / (1 + correlation**2) - 1
    return np.asarray(np.maximum(freedom, _LEAST_FREEDOM))


def _student(tail: float, freedom: Floats) -> Floats:
    from scipy import special  # a fifth of a second that no start of a station need take

    return np.asarray(-special.stdtrit(freedom, tail))


def _map_limit(
    seen: Floats, correlation: Floats, is_used: NDArray[np.bool_], floors: Floats, tail: float
) -> tuple[Floats, float]:
    """Inverse covariance of the weighted means of the map's features, and the limit of their
    distance (Hotelling)."""
    from scipy import special

    size = len(MAP)
    known = seen[np.isfinite(seen[:, _IN_MAP]).all(axis=1)][:, _IN_MAP]
    if not is_used[_IN_MAP].all() or len(known) < 4 * size:
        return np.full((size, size), np.nan), np.nan
    largest = np.array([correlation[_IN_MAP].max()])
    gain = float((_mean_gain(largest) + _centre_gain(largest, len(known)))[0])
    freedom = float(_freedom(largest, len(known))[0])
    rest = max(freedom - size + 1, 1.0)
    square = size * freedom / rest * float(special.fdtri(size, rest, 1 - tail))
    covariance = gain * np.cov(known.T) + np.diag(floors[_IN_MAP] ** 2 / square)
    inverse: Floats = np.linalg.inv(covariance).astype(np.float64)
    return inverse, float(np.sqrt(square))


# --- charts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """The charts after a point; NaN where nothing is known yet, or there is no chart. Arrays may
    have further dimensions before the last: many stations at once."""

    mean: Floats
    """Change of the weighted mean since it was learned, by feature."""
    jump: Floats
    """Difference from what the point before foretold, by feature."""
    distance: Floats


class Charts:
    """The weighted mean and the last point of each feature, against their limits."""

    def __init__(self, limits: Limits, mean: Floats | None = None, last: Floats | None = None):
        """`mean` and `last`: changes from the centre, as a state before left them."""
        self.limits = limits
        self.mean = np.full_like(limits.centre, np.nan) if mean is None else mean
        self.last = np.full_like(limits.centre, np.nan) if last is None else last

    def take(self, point: Floats) -> Reading:
        """One point more. What a point does not say stays as it was."""
        limits, change = self.limits, point - self.limits.centre
        is_known = np.isfinite(change)
        # It begins at what was learned; after a point that said nothing there is no jump.
        before = np.where(np.isfinite(self.mean), self.mean, 0.0)
        self.mean = np.where(is_known, before + WEIGHT * (change - before), self.mean)
        jump = change - limits.correlation * self.last
        self.last = change
        return Reading(self.mean.copy(), jump, self._distance())

    def _distance(self) -> Floats:
        said = self.mean[..., _IN_MAP]
        square = np.einsum("...i,...ij,...j->...", said, self.limits.map_inverse, said)
        return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def ratios(reading: Reading, limits: Limits) -> Floats:
    """How far each of `CHARTS` is, in multiples of its limit, signed as the change; the distance is
    never negative. NaN: not known."""
    mean, jump = reading.mean / limits.mean, reading.jump / limits.jump
    larger = np.where(np.abs(np.nan_to_num(jump)) > np.abs(np.nan_to_num(mean)), jump, mean)
    found = np.empty((*larger.shape[:-1], len(CHARTS)))
    found[..., _OWN] = larger[..., _CHARTED]
    found[..., CHARTS.index(MAP_CHART)] = reading.distance / limits.distance
    return found


def by_chart(values: Floats) -> dict[str, float]:
    """One station's ratios by the names of the charts; those that are known."""
    named = zip(CHARTS, values.tolist(), strict=True)
    return {name: value for name, value in named if np.isfinite(value)}


# --- what it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """What an alarm says."""

    cause: Cause
    chart: str
    change: float
    """Of the chart's feature: relative, or in log odds; of the distance, as it is."""
    limit: float
    text: str
    evidence: dict[str, float]
    """Changes by feature that told the causes apart."""


def finding(reading: Reading, limits: Limits, is_dirty: bool = False) -> Finding | None:
    """What is off, None if nothing is. `is_dirty`: dirt was found on the lens."""
    known = by_chart(np.abs(ratios(reading, limits)))
    sizes = {name: known.get(name, 0.0) for name in CHARTS}
    if max(sizes.values()) <= 1:
        return None
    chart = max(sizes, key=lambda name: sizes[name])
    cause, of = _cause(sizes, is_dirty)
    change, limit = _change_of(of, reading, limits)
    evidence = _evidence(reading, limits)
    text = _TEXTS[cause](of, evidence, sizes)
    return Finding(cause, of if sizes[of] > 1 else chart, change, limit, text, evidence)


def _cause(sizes: Mapping[str, float], is_dirty: bool) -> tuple[Cause, str]:
    """The cause, and the chart that speaks for it."""
    side = max((name for name in sizes if name.startswith("section")), key=lambda n: sizes[n])
    image = {name: sizes[name] for name in ("level", "contrast", "noise", side)}
    strongest = max(image, key=lambda name: image[name])
    if image[strongest] <= _SUSPECT:
        scored = max(("score", "score_high", MAP_CHART), key=lambda name: sizes[name])
        return "model", scored
    if sizes["contrast"] > 1 or strongest in ("contrast", "noise"):
        return "material", "contrast" if sizes["contrast"] > 1 else strongest
    if strongest == side or (is_dirty and sizes[side] > _SUSPECT):
        return "lens", strongest
    return "light", "level"


def _change_of(chart: str, reading: Reading, limits: Limits) -> tuple[float, float]:
    if chart == MAP_CHART:
        return float(reading.distance), float(limits.distance)
    at = NAMES.index(chart)
    mean, jump = float(reading.mean[at]), float(reading.jump[at])
    if abs(jump) / limits.jump[at] > abs(mean) / limits.mean[at]:
        return jump, float(limits.jump[at])
    return mean, float(limits.mean[at])


def _evidence(reading: Reading, limits: Limits) -> dict[str, float]:
    """The stronger of both charts' changes by feature, those that are known; relative ones as they
    are said: 0.05 is 5 %."""
    found: dict[str, float] = {}
    for at, name in enumerate(NAMES):
        if not _CHARTED[at] or not np.isfinite(reading.mean[at]):
            continue
        change, _ = _change_of(name, reading, limits)
        is_odds = name.startswith("score")
        found[name] = round(change if is_odds else float(np.expm1(change)), 4)
    if np.isfinite(reading.distance):
        found[MAP_CHART] = round(float(reading.distance), 3)
    return found


def _percent(evidence: Mapping[str, float], name: str) -> str:
    return f"{evidence[name]:+.1%}" if name in evidence else "not known"


def _light_text(chart: str, evidence: Mapping[str, float], sizes: Mapping[str, float]) -> str:
    side = "darker" if evidence["level"] < 0 else "brighter"
    return (
        f"drift: light, plates {abs(evidence['level']):.1%} {side} than learned, everywhere alike; "
        f"relative contrast {_percent(evidence, 'contrast')}, noise {_percent(evidence, 'noise')}; "
        "see the light and the exposure"
    )


def _lens_text(chart: str, evidence: Mapping[str, float], sizes: Mapping[str, float]) -> str:
    where = "" if chart == "level" else f" in {chart.replace('_', ' ')} of 8 along the scan line"
    return (
        f"drift: lens or one side of the light, level {_percent(evidence, chart)}{where}; clean "
        "lens and window, then look at the light there"
    )


def _material_text(chart: str, evidence: Mapping[str, float], sizes: Mapping[str, float]) -> str:
    return (
        f"drift: material or focus, lattice contrast {_percent(evidence, 'contrast')}, noise "
        f"{_percent(evidence, 'noise')}, level {_percent(evidence, 'level')}; compare a plate with "
        "one of those learned from, see the focus"
    )


def _model_text(chart: str, evidence: Mapping[str, float], sizes: Mapping[str, float]) -> str:
    scores = ", ".join(
        f"{word} {evidence[name]:+.2f}"
        for name, word in (("score", "median"), ("score_high", "upper decile"))
        if name in evidence
    )
    return (
        f"drift: model, scores of passing tiles shift (log odds {scores or 'not known'}; embedding "
        f"at {sizes[MAP_CHART]:.1f} of its limit) while level {_percent(evidence, 'level')}, "
        f"contrast {_percent(evidence, 'contrast')} and noise {_percent(evidence, 'noise')} stay; "
        "review plates, a new kind of surface or defect may have come"
    )


_TEXTS = {
    "light": _light_text,
    "lens": _lens_text,
    "material": _material_text,
    "model": _model_text,
}


class Alarm:
    """Whether an alarm stands, and for what: begins with a point beyond a limit, ends after some
    that are all well inside."""

    def __init__(self, standing: Cause | None = None) -> None:
        self.standing = standing
        self._well = 0

    def take(self, reading: Reading, limits: Limits, is_dirty: bool = False) -> Finding | None:
        """A new alarm, or a standing one that is known to be something else; None else. Ask
        `has_ended` after it."""
        found = finding(reading, limits, is_dirty)
        sizes = by_chart(np.abs(ratios(reading, limits)))
        self._well = self._well + 1 if max(sizes.values(), default=1.0) < _RELEASE else 0
        if found is None or found.cause == self.standing:
            return None
        self.standing = found.cause
        return found

    def has_ended(self) -> bool:
        """True once when a standing alarm is over."""
        if self.standing is None or self._well < _WELL_POINTS:
            return False
        self.standing = None
        return True
