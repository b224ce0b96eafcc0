"""Measurement system analysis of an attribute gauge, as in AIAG's MSA manual (4th edition).

Parts with a known reference are presented again and again, blind; each decision is compared with
the reference. UNDECIDED plates are kept from the customer as failed ones are, so both count as
rejected.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("part", "run", "reference", "verdict")
MIN_PARTS, MIN_RUNS = 50, 3
"""AIAG's usual size of an attribute study."""
_Z95 = 1.959963984540054
_RESAMPLES = 4000
_IS_ACCEPTED = {"PASS": True, "FAIL": False, "UNDECIDED": False}
_IS_GOOD = {"PASS": True, "GOOD": True, "FAIL": False, "DEFECTIVE": False}


class MsaError(ValueError):
    """The study cannot be read; says where and what is wrong."""


class Rating(StrEnum):
    """AIAG's three grades."""

    ACCEPTABLE = "acceptable"
    MARGINAL = "marginal"
    UNACCEPTABLE = "unacceptable"


@dataclass(frozen=True, slots=True)
class Decision:
    """One presentation of a part."""

    part: str
    run: str
    is_good: bool
    """The reference."""
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; NaN where the study cannot tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Limits:
    """From where a figure is acceptable and up to where marginal."""

    acceptable: float
    marginal: float
    is_high_good: bool

    def rate(self, value: float) -> Rating:
        sign = 1.0 if self.is_high_good else -1.0
        # NaN is neither: what the study cannot tell is not good.
        if sign * value >= sign * self.acceptable:
            return Rating.ACCEPTABLE
        return Rating.MARGINAL if sign * value >= sign * self.marginal else Rating.UNACCEPTABLE


EFFECTIVENESS = Limits(0.90, 0.80, is_high_good=True)
MISS_RATE = Limits(0.02, 0.05, is_high_good=False)
FALSE_ALARM_RATE = Limits(0.05, 0.10, is_high_good=False)
KAPPA = Limits(0.90, 0.70, is_high_good=True)


@dataclass(frozen=True, slots=True)
class Study:
    """What a study came to."""

    parts: int
    runs: int
    good_parts: int
    defective_parts: int
    effectiveness: Estimate
    """Share of parts decided as the reference says in every run."""
    miss_rate: Estimate
    """Share of the decisions on defective parts that accepted them."""
    false_alarm_rate: Estimate
    """Share of the decisions on good parts that rejected them."""
    kappa: Estimate
    """Cohen's kappa of decisions and reference."""
    repeatability: Estimate
    """Share of parts decided alike in every run, right or wrong."""
    wrong: tuple[str, ...]
    """Parts that were decided wrongly at least once."""

    @property
    def ratings(self) -> dict[str, Rating]:
        return {
            "effectiveness": EFFECTIVENESS.rate(self.effectiveness.value),
            "miss rate": MISS_RATE.rate(self.miss_rate.value),
            "false-alarm rate": FALSE_ALARM_RATE.rate(self.false_alarm_rate.value),
            "kappa": KAPPA.rate(self.kappa.value),
        }


def read_study(path: Path) -> list[Decision]:
    """Decisions from a CSV with the columns part, run, reference, verdict. Raises `MsaError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise MsaError(f"{path}: no column {missing[0]}; needed: {', '.join(COLUMNS)}")
            return [_decision(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MsaError(f"{path}: cannot be read: {error}") from error


def _decision(path: Path, line: int, row: dict[str, str | None]) -> Decision:
    part, run, reference, verdict = ((row[name] or "").strip() for name in COLUMNS)
    if not part or not run:
        raise MsaError(f"{path}, row {line}: part and run must be named")
    for name, text, known in (
        ("reference", reference, _IS_GOOD),
        ("verdict", verdict, _IS_ACCEPTED),
    ):
        if text.upper() not in known:
            raise MsaError(f"{path}, row {line}: {name} {text!r}; one of {', '.join(known)}")
    return Decision(part, run, _IS_GOOD[reference.upper()], _IS_ACCEPTED[verdict.upper()])


def evaluate(decisions: Iterable[Decision], seed: int = 1) -> Study:
    """The study's figures. Raises `MsaError` if parts and runs do not make a full table.

    Repeats of one part hang together, so that intervals of rates count parts, not decisions
    (Wilson), and kappa's is a bootstrap over parts.
    """
    references, accepted = _table(list(decisions))
    good = np.array(list(references.values()))
    table = np.array([accepted[part] for part in references])
    is_right = table == good[:, None]
    always_right = is_right.all(axis=1)
    return Study(
        parts=len(good),
        runs=table.shape[1],
        good_parts=int(good.sum()),
        defective_parts=int((~good).sum()),
        effectiveness=wilson(float(always_right.sum()), len(good)),
        miss_rate=_wrong_share(is_right[~good]),
        false_alarm_rate=_wrong_share(is_right[good]),
        kappa=_kappa_over_parts(good, table, seed),
        repeatability=wilson(float((table == table[:, :1]).all(axis=1).sum()), len(good)),
        wrong=tuple(part for part, ok in zip(references, always_right, strict=True) if not ok),
    )


def wilson(successes: float, trials: int) -> Estimate:
    """A share with Wilson's 95 % interval (1927); NaN and 0 to 1 without trials."""
    if trials == 0:
        return Estimate(math.nan, 0.0, 1.0)
    share, z2 = successes / trials, _Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half /= 1 + z2 / trials
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def cohen_kappa(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agreement beyond chance (Cohen 1960) of tables (..., 2, 2); NaN where chance is certain."""
    total = counts.sum(axis=(-2, -1))
    observed = np.trace(counts, axis1=-2, axis2=-1) / total
    expected = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _table(decisions: Sequence[Decision]) -> tuple[dict[str, bool], dict[str, list[bool]]]:
    """References and decisions, run by run, of each part."""
    references: dict[str, bool] = {}
    runs: dict[str, dict[str, bool]] = defaultdict(dict)
    for item in decisions:
        if references.setdefault(item.part, item.is_good) != item.is_good:
            raise MsaError(f"part {item.part} has two references")
        if item.run in runs[item.part]:
            raise MsaError(f"part {item.part} is there twice in run {item.run}")
        runs[item.part][item.run] = item.is_accepted
    if not references:
        raise MsaError("the study has no decisions")
    names = sorted({item.run for item in decisions})
    for part, found in runs.items():
        for name in names:
            if name not in found:
                raise MsaError(f"part {part} is missing in run {name}; present it once more")
    return references, {part: [found[name] for name in names] for part, found in runs.items()}


def _wrong_share(is_right: NDArray[np.bool_]) -> Estimate:
    parts = len(is_right)
    return wilson(parts * float((~is_right).mean()), parts) if parts else wilson(0, 0)


def _kappa_over_parts(good: NDArray[np.bool_], table: NDArray[np.bool_], seed: int) -> Estimate:
    counts = np.zeros((len(good), 2, 2))
    accepted = table.sum(axis=1)
    counts[np.arange(len(good)), good.astype(int), 1] = accepted
    counts[np.arange(len(good)), good.astype(int), 0] = table.shape[1] - accepted
    draws = np.random.default_rng(seed).integers(len(good), size=(_RESAMPLES, len(good)))
    resampled = cohen_kappa(np.stack([counts[draw].sum(axis=0) for draw in draws]))
    value = float(cohen_kappa(counts.sum(axis=0)))
    if math.isnan(value):
        return Estimate(value, -1.0, 1.0)
    low, high = np.nanpercentile(resampled, [2.5, 97.5]).tolist()
    return Estimate(value, low, high)
