"""Rates of good and bad plates with exact intervals, and what most often goes wrong. Pure.

Intervals are two-sided at 95 % and never narrower than they say: coverage is at least that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
SIZE_CLASSES_MM = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Upper ends, exclusive, of the longer side of a defect's box."""
_ACROSS = ("left", "middle", "right")
_ALONG = ("leading", "centre", "trailing")


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rate:
    """A share; None where nothing was counted, and then it may be anything."""

    value: float | None
    interval: Interval


UNKNOWN = Rate(None, Interval(0.0, 1.0))


def proportion(count: int, of: int, confidence: float = CONFIDENCE) -> Rate:
    """A share of independent plates, with the interval of Clopper and Pearson (Biometrika 26, 1934,
    404-413)."""
    if of == 0:
        return UNKNOWN
    bounds = stats.binomtest(count, of).proportion_ci(confidence, method="exact")
    return Rate(count / of, Interval(float(bounds.low), float(bounds.high)))


def number_in_lot(
    found: int, sampled: int, lot: int, confidence: float = CONFIDENCE
) -> tuple[int, int]:
    """How many of `lot` plates are defective if a random sample of them had `found`: the smallest
    and the largest number that the sample does not contradict (hypergeometric; Buonaccorsi, The
    American Statistician 41, 1987, 215-218)."""
    tail = (1 - confidence) / 2
    least, most = found, lot - (sampled - found)

    def may_be_low(number: int) -> bool:
        return bool(stats.hypergeom.sf(found - 1, lot, number, sampled) > tail)

    def may_be_high(number: int) -> bool:
        return bool(stats.hypergeom.cdf(found, lot, number, sampled) > tail)

    # The sample itself is always possible; beyond it, the tails fall.
    low = _first(least, most, may_be_low)
    high = _first(-most, -least, lambda number: may_be_high(-number))
    return low, -high


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number for which something holds that holds from then on; `high` at the latest."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the plates of one recipe, drawn at one rate."""

    passed: int
    failed: int
    audited: int
    """Passed plates that were drawn and that a person judged."""
    audited_defective: int
    reviewed_fails: int
    confirmed_fails: int

    def outgoing_defect_rate(self) -> Rate:
        """P(defective | passed)."""
        return proportion(self.audited_defective, self.audited)

    def overruled_share(self) -> Rate:
        """P(good | failed), of the FAILs that a person judged."""
        return proportion(self.reviewed_fails - self.confirmed_fails, self.reviewed_fails)

    def escape_rate(self) -> Rate:
        """P(passed | defective): of these plates, those that passed among those that are defective.

        Both numbers are bounded from their samples, at half the error each where both are sampled
        (Bonferroni); the rate rises with the one and falls with the other, so that its bounds are
        theirs, and hold at least as often.
        """
        if not self.audited:
            return UNKNOWN
        is_all_reviewed = self.reviewed_fails == self.failed
        level = CONFIDENCE if is_all_reviewed else 1 - (1 - CONFIDENCE) / 2
        escaped = number_in_lot(self.audited_defective, self.audited, self.passed, level)
        caught = number_in_lot(self.confirmed_fails, self.reviewed_fails, self.failed, level)
        interval = Interval(_share(escaped[0], caught[1], 0.0), _share(escaped[1], caught[0], 1.0))
        if not self.reviewed_fails and self.failed:
            return Rate(None, interval)
        among_passed = self.passed * self.audited_defective / self.audited
        among_failed = self.failed * self.confirmed_fails / max(1, self.reviewed_fails)
        defective = among_passed + among_failed
        return Rate(among_passed / defective if defective else None, interval)


def _share(part: float, other: float, if_none: float) -> float:
    return part / (part + other) if part + other else if_none


# --- Pareto -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParetoRow:
    name: str
    count: int
    share: float
    cumulative: float


def pareto(counts: Mapping[str, int]) -> list[ParetoRow]:
    """The most frequent first, with the share of all up to each."""
    total, so_far, rows = sum(counts.values()), 0, []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        so_far += count
        rows.append(ParetoRow(name, count, count / total, so_far / total))
    return rows


def size_class(w_mm: float | None, h_mm: float | None) -> str:
    """Of a defect's longer side; `unknown` in records of versions that did not say."""
    if w_mm is None or h_mm is None:
        return "unknown"
    size, before = max(w_mm, h_mm), 0.0
    for end in SIZE_CLASSES_MM:
        if size < end:
            return f"{before:g}-{end:g} mm"
        before = end
    return f"{before:g} mm and more"


def zone(x_mm: float | None, y_mm: float | None, size_mm: tuple[float, float]) -> str:
    """Which ninth of a plate (crossweb, downweb) a place lies in."""
    if x_mm is None or y_mm is None:
        return "unknown"
    across, along = (
        min(2, max(0, int(3 * place / size)))
        for place, size in zip((x_mm, y_mm), size_mm, strict=True)
    )
    return f"{_ALONG[along]} {_ACROSS[across]}"


SIZE_NAMES = tuple(size_class(low, low) for low in (0.0, *SIZE_CLASSES_MM))
ZONE_NAMES = tuple(zone(x, y, (3.0, 3.0)) for y in (0.5, 1.5, 2.5) for x in (0.5, 1.5, 2.5))
"""In the order in which questions number them."""


def extent_mm(places: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of a plate whose recipe is not at hand: what the places need, to the next 10 mm."""
    found = list(places)
    across, along = (max((place[axis] for place in found), default=0.0) for axis in (0, 1))
    return 10.0 * (across // 10 + 1), 10.0 * (along // 10 + 1)
