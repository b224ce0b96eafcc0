"""What an exploration found: against random search, against the hand-made network, in figures.

Everything comes from the two logs and the labels of the sets; nothing is trained here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.agreement import auroc
from models.training.data import DataError, Sample, data_sha256, labels_of, read_folder
from models.training.evaluate import evaluate, members_of
from models.training.explore.full import (
    FINAL,
    LATENCY,
    OUT_OF_FOLD,
    DataSet,
    Full,
    finalists,
    winner,
)
from models.training.explore.log import (
    ARMS,
    MERIT_OF_LATENCY,
    RANDOM,
    SEARCH,
    Candidate,
    Log,
    LogError,
)
from models.training.train import calibrate

_RESAMPLES = 2000
_SEED = 0
_LEAST_REPEATS = 3
"""Networks whose folds say what a repetition would."""
EXPLORED, DRAWN, HAND = "explored", "random search", "hand-made"


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best merit of an arm's first n short trainings."""

    arm: str
    trainings: int
    id: int
    merit: float
    interval: tuple[float, float] | None
    """95 % of the best of n drawn again from the n. Its upper end is the best itself: no draw is
    above it. None of the search: each of its trainings was chosen by the earlier ones, so that n
    others would be no draw of these."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two figures, with its 95 % interval by resampling."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True, slots=True)
class Found:
    """A network on one set, by its final trainings."""

    role: str
    id: int
    data: str
    front_end: str
    out_of_fold: float
    auroc: float
    auroc_low: float
    auroc_high: float
    accuracy: float
    ahead: Difference
    """AUROC over the hand-made network's, by drawing parts."""
    netscore: float
    """20 log10(a^2 / sqrt(p m)), a in %, p in millions of parameters, m in billions of MACs (Wong,
    2018)."""
    parameters: int
    mflops: float
    latency_ratio: float
    """Of the hand-made network's time on the processor that `latency_by` names."""
    latency_by: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    run: dict[str, Any]
    measured: dict[str, int]
    """Candidates by what happened to them."""
    zero_cost: dict[str, float]
    """Rank correlation of each cheap score with the AUROC of the short trainings (Spearman)."""
    zero_cost_trainings: int
    best: tuple[BestOf, ...]
    over_random: float | None
    """The search's best merit less random search's, of as many trainings; None before both have
    any."""
    repeat_limit: float | None
    """By which two repetitions of one short training differ at most, in 19 of 20 cases; None while
    too few are trained to say."""
    against_random: str
    """ahead or behind: the search's best lies above or below random search's interval by more than
    `repeat_limit`; else tie."""
    pareto: tuple[int, ...]
    found: tuple[Found, ...]
    """Empty until the finalists are trained."""
    over_hand: Difference | None
    """AUROC of the explored network over the hand-made one's, mean of the sets that are done, by
    drawing each set's parts."""
    against_hand: str
    """In words, over the sets that are done; empty until then."""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def report(log: Log, full: Full, sets: Sequence[DataSet]) -> Report:
    """`sets`: the search's own set first. Raises `LogError`, `DataError`."""
    if not log.run:
        raise LogError(f"{log.path}: no exploration there; begin one with --data and --out")
    trained = [c for c in log.candidates if c.training]
    arms = {arm: chosen for arm, chosen in _equal_budget(log).items() if chosen}
    best = {arm: _best_of(arm, chosen) for arm, chosen in arms.items()}
    repeat_limit = _repeat_limit(trained)
    has_both = len(best) == len(ARMS)
    found, over_hand = _found(log, full, sets) if has_both else ((), None)
    return Report(
        run=log.run,
        measured={
            "candidates": len(log.candidates),
            "refused": sum(not c.is_admissible for c in log.candidates),
            "timed": sum("latency" in c.row for c in log.candidates),
            "scored at zero cost": sum("zero_cost" in c.row for c in log.candidates),
            **{f"short trainings, {arm}": len(log.trained(arm)) for arm in ARMS},
        },
        zero_cost=_correlations(trained),
        zero_cost_trainings=len(trained),
        best=tuple(best.values()),
        over_random=best[SEARCH].merit - best[RANDOM].merit if has_both else None,
        repeat_limit=repeat_limit,
        against_random=_against_random(best, repeat_limit),
        pareto=tuple(candidate.id for candidate in pareto(trained)),
        found=found,
        over_hand=over_hand,
        against_hand=_against_hand(found, over_hand),
    )


def pareto(trained: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in both accuracy and latency, the fastest first."""
    front: list[Candidate] = []
    for candidate in sorted(trained, key=lambda c: (c.ratio, -c.auroc)):
        if not front or candidate.auroc > front[-1].auroc:
            front.append(candidate)
    return front


def _equal_budget(log: Log) -> dict[str, list[Candidate]]:
    """Each arm's first trainings, as many as the other has spent."""
    arms = {arm: log.trained(arm) for arm in ARMS}
    budget = min((len(each) for each in arms.values() if each), default=0)
    return {arm: trained[:budget] for arm, trained in arms.items()}


def _best_of(arm: str, chosen: Sequence[Candidate]) -> BestOf:
    top = max(chosen, key=lambda candidate: candidate.merit)
    interval = None
    if arm == RANDOM:
        merits = np.array([candidate.merit for candidate in chosen])
        random = np.random.default_rng(_SEED)
        drawn = random.choice(merits, (_RESAMPLES, len(merits))).max(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        interval = float(low), float(high)
    return BestOf(arm, len(chosen), top.id, top.merit, interval)


def _repeat_limit(trained: Sequence[Candidate]) -> float | None:
    """From what the folds say apart: what is left of their AUROC without each network's mean and
    each fold's (the folds differ in difficulty, alike for all) is the noise of one fold's training,
    and of how a network suits a part of the set. The repeatability limit of ISO 5725: 1.96 standard
    deviations of a difference of two. Of the better half: what hardly learns is noisier."""
    ranked = sorted(trained, key=lambda candidate: -candidate.auroc)
    folds = [c.training["folds"] for c in ranked if c.training and "folds" in c.training]
    if len(folds) < _LEAST_REPEATS:
        return None
    areas = np.array(folds[: max(_LEAST_REPEATS, len(folds) // 2)])
    left = areas - areas.mean(axis=1, keepdims=True) - areas.mean(axis=0) + areas.mean()
    networks, parts = areas.shape
    variance = (left**2).sum() / ((networks - 1) * (parts - 1))
    return float(1.96 * math.sqrt(2 * variance / parts))


def _difference(value: float, drawn: NDArray[np.float64]) -> Difference:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Difference(float(value), float(low), float(high))


def _against_random(best: Mapping[str, BestOf], repeat_limit: float | None) -> str:
    if len(best) < len(ARMS) or repeat_limit is None:
        return "not known yet"
    interval = best[RANDOM].interval
    assert interval
    if best[SEARCH].merit > interval[1] + repeat_limit:
        return "ahead"
    return "behind" if best[SEARCH].merit < interval[0] - repeat_limit else "tie"


def _correlations(trained: Sequence[Candidate]) -> dict[str, float]:
    if len(trained) < 3:
        return {}
    areas = [candidate.auroc for candidate in trained]
    scores = {
        name: [c.row["zero_cost"][name] for c in trained]
        for name in ("naswot", "synflow", "gradient")
    }
    scores["mflops"] = [c.row["mflops"] for c in trained]
    scores["parameters"] = [c.row["parameters"] for c in trained]
    return {
        name: round(float(stats.spearmanr(values, areas).statistic), 3)
        for name, values in scores.items()
        if len(set(values)) > 1
    }


def _found(
    log: Log, full: Full, sets: Sequence[DataSet]
) -> tuple[tuple[Found, ...], Difference | None]:
    """Rows of the sets whose trainings are all done, and the explored network's mean over the
    hand-made one."""
    won = winner(log, full, sets[0].name) if sets else None
    if won is None:
        return (), None
    _, drawn, hand = finalists(log)
    rows: list[Found] = []
    explored: list[NDArray[np.float64]] = []
    for place, data in enumerate(sets):
        roles = {HAND: hand, DRAWN: drawn, EXPLORED: won}
        keys = [(c.id, data.name, what) for c in roles.values() for what in (OUT_OF_FOLD, FINAL)]
        if all(key in full.rows for key in keys):
            samples = read_folder(data.folder)
            for role, candidate in roles.items():
                random = np.random.default_rng([_SEED, place])
                row, differences = _on_set(role, candidate, hand, full, data, samples, random)
                rows.append(row)
                explored += [differences] if role == EXPLORED else []
    if not explored:
        return (), None
    mean = float(np.mean([row.ahead.value for row in rows if row.role == EXPLORED]))
    return tuple(rows), _difference(mean, np.mean(explored, axis=0))


def _on_set(
    role: str, candidate: Candidate, hand: Candidate, full: Full, data: DataSet,
    samples: list[Sample], random: np.random.Generator,
) -> tuple[Found, NDArray[np.float64]]:  # fmt: skip
    """And its differences from the hand-made network, over parts that were drawn."""
    tested = [sample for sample in samples if sample.split == "test"]
    labels, groups = labels_of(tested), [sample.group for sample in tested]
    own, other = (_scores(full, c, data, samples) for c in (candidate, hand))
    threshold = _threshold(full, candidate, data, samples)
    judged = evaluate(labels, own, [threshold] * len(own), groups)
    ahead, differences = _ahead(labels, own, other, groups, random)
    timed = full.rows.get((candidate.id, data.name, LATENCY)) or {
        "latency": candidate.row["latency"]
    }
    found = Found(
        role=role,
        id=candidate.id,
        data=data.name,
        front_end=data.front_end,
        out_of_fold=full.rows[candidate.id, data.name, OUT_OF_FOLD]["auroc"],
        auroc=judged.auroc.value,
        auroc_low=judged.auroc.low,
        auroc_high=judged.auroc.high,
        accuracy=judged.accuracy.value,
        ahead=_difference(ahead, differences),
        netscore=netscore(
            judged.accuracy.value, candidate.row["parameters"], candidate.row["mflops"]
        ),
        parameters=candidate.row["parameters"],
        mflops=candidate.row["mflops"],
        latency_ratio=timed["latency"]["ratio"],
        latency_by=timed["latency"]["processor"],
    )
    return found, differences


def netscore(accuracy: float, parameters: int, mflops: float) -> float:
    billions_of_macs = mflops / 2000
    size = math.sqrt(parameters / 1e6) * math.sqrt(billions_of_macs)
    return round(20 * math.log10((100 * accuracy) ** 2 / size), 2) if accuracy else 0.0


def _scores(
    full: Full, candidate: Candidate, data: DataSet, samples: list[Sample]
) -> list[NDArray[np.float32]]:
    row = full.rows[candidate.id, data.name, FINAL]
    if row["data_sha256"] != data_sha256(samples):
        raise DataError(f"{data.folder}: changed since the networks were trained on it")
    return [np.array(scores, np.float32) for scores in row["scores"]]


def _threshold(full: Full, candidate: Candidate, data: DataSet, samples: list[Sample]) -> float:
    """Where a defect is as likely as none, by the scores out of fold."""
    labels = labels_of([sample for sample in samples if sample.split != "test"])
    scores = np.array(full.rows[candidate.id, data.name, OUT_OF_FOLD]["out_of_fold"], np.float32)
    slope, offset = calibrate(labels, scores)
    return float(1 / (1 + math.exp(offset / slope))) if slope > 0 else 0.5


def _ahead(
    labels: NDArray[np.int64],
    own: Sequence[NDArray[np.float32]],
    other: Sequence[NDArray[np.float32]],
    groups: Sequence[str],
    random: np.random.Generator,
) -> tuple[float, NDArray[np.float64]]:
    """Difference of the seeds' mean AUROC, and what it is where parts are drawn for both; NaN in a
    draw of one class only."""

    def difference(drawn: NDArray[np.int64]) -> float:
        some = labels[drawn]
        if not 0 < some.sum() < len(some):
            return float("nan")
        return float(
            np.mean([auroc(some, a[drawn]) for a in own])
            - np.mean([auroc(some, b[drawn]) for b in other])
        )

    parts = members_of(groups)
    values = [
        difference(np.concatenate([parts[i] for i in random.integers(len(parts), size=len(parts))]))
        for _ in range(_RESAMPLES // 4)
    ]
    return difference(np.arange(len(labels))), np.array(values)


def _against_hand(found: Sequence[Found], over: Difference | None) -> str:
    """Accuracy and speed, both as means of the same sets."""
    if over is None:
        return ""
    explored = [row for row in found if row.role == EXPLORED]
    faster = 100 * (1 - float(np.mean([row.latency_ratio for row in explored])))
    sets = f"{len(explored)} set" + ("s" if len(explored) > 1 else "")
    return (
        f"{100 * over.value:+.2f} [{100 * over.low:+.2f}, {100 * over.high:+.2f}] points of AUROC "
        f"and {abs(faster):.0f} % {'faster' if faster >= 0 else 'slower'} than the hand-made "
        f"network (means of {sets})"
    )


def _interval_words(best: BestOf) -> str:
    return "[{:.4f}, {:.4f}]".format(*best.interval) if best.interval else "-"


def _random_words(made: Report) -> str:
    words = f"Against random search at equal budget: **{made.against_random}**"
    if made.over_random is None:
        return f"{words}."
    words += f", best over best {made.over_random:+.4f}"
    if made.repeat_limit is None:
        return f"{words}; too few trainings to say what two repetitions of one differ by."
    return (
        f"{words}. Ahead or behind is what lies beyond the interval by more than "
        f"{made.repeat_limit:.4f}, by which two repetitions of one short training differ at "
        "most in 19 of 20 cases (from the folds of the better half of all trainings)."
    )


def markdown(made: Report) -> str:
    """The report as a page's section."""
    lines = [", ".join(f"{name} {count}" for name, count in made.measured.items()) + ".", ""]
    if made.best:
        lines += [
            (
                f"Merit = AUROC - {MERIT_OF_LATENCY:g} ln(latency ratio); best of n. The interval "
                "is that of the best of n drawn again from random search's own log (95 %): its "
                "upper end is that best itself, not what n others might find. The search has none: "
                "each of its trainings was chosen by the earlier ones, so they are no sample."
            ),
            "",
            "| arm | n | best | interval | candidate |",
            "|---|--:|--:|---|--:|",
        ]
        lines += [
            f"| {b.arm} | {b.trainings} | {b.merit:.4f} | {_interval_words(b)} | {b.id} |"
            for b in made.best
        ]
        lines += ["", _random_words(made), ""]
    if made.zero_cost:
        scores = ", ".join(f"{name} {value:+.2f}" for name, value in made.zero_cost.items())
        lines += [
            (
                "Rank correlation with the short trainings' AUROC "
                f"({made.zero_cost_trainings} networks): {scores}."
            ),
            "",
        ]
    if made.found:
        lines += [
            (
                "| set | network | AUROC, test | over hand-made | accuracy | out of fold "
                "| parameters | MFLOPs | time | NetScore |"
            ),
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {f.data}, {f.front_end} | {f.role} ({f.id}) | {f.auroc:.4f} [{f.auroc_low:.3f}, "
            f"{f.auroc_high:.3f}] | {f.ahead} | "
            f"{f.accuracy:.4f} | {f.out_of_fold:.4f} | {f.parameters:,} | {f.mflops:.1f} | "
            f"{f.latency_ratio:.3f} | {f.netscore:.1f} |"
            for f in made.found
        ]
        lines += ["", f"The explored network: {made.against_hand}."]
    return "\n".join(lines) + "\n"
