"""What an exploration found: against random search, against the hand-made network, in figures.

Everything comes from the two logs and the labels of the sets; nothing is trained here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
EXPLORED, DRAWN, HAND = "explored", "random search", "hand-made"


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best merit of an arm's first n short trainings, and where that of n others would lie."""

    arm: str
    trainings: int
    id: int
    merit: float
    low: float
    high: float


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
    ahead: float
    """AUROC over the hand-made network's, with its interval by drawing parts."""
    ahead_low: float
    ahead_high: float
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
    against_random: str
    """ahead, tie or behind: the search's best against the interval of random search's."""
    pareto: tuple[int, ...]
    found: tuple[Found, ...]
    """Empty until the finalists are trained."""
    against_hand: str
    """In words, over the sets that are done; empty until then."""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def report(log: Log, full: Full, sets: Sequence[DataSet]) -> Report:
    """`sets`: the search's own set first. Raises `LogError`, `DataError`."""
    if not log.run:
        raise LogError(f"{log.path}: no exploration there; begin one with --data and --out")
    trained = [c for c in log.candidates if c.training]
    best = tuple(_best_of(log, arm) for arm in ARMS if log.trained(arm))
    found = tuple(_found(log, full, sets)) if len(best) == len(ARMS) else ()
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
        best=best,
        against_random=_against_random(best),
        pareto=tuple(candidate.id for candidate in pareto(trained)),
        found=found,
        against_hand=_against_hand(found),
    )


def pareto(trained: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in both accuracy and latency, the fastest first."""
    front: list[Candidate] = []
    for candidate in sorted(trained, key=lambda c: (c.ratio, -c.auroc)):
        if not front or candidate.auroc > front[-1].auroc:
            front.append(candidate)
    return front


def _best_of(log: Log, arm: str) -> BestOf:
    counts = [len(log.trained(each)) for each in ARMS if log.trained(each)]
    chosen = log.trained(arm)[: min(counts)]
    merits = np.array([candidate.merit for candidate in chosen])
    random = np.random.default_rng(_SEED)
    drawn = random.choice(merits, (_RESAMPLES, len(merits))).max(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    top = chosen[int(merits.argmax())]
    return BestOf(arm, len(chosen), top.id, float(merits.max()), float(low), float(high))


def _against_random(best: Sequence[BestOf]) -> str:
    arms = {each.arm: each for each in best}
    if set(arms) != set(ARMS):
        return "not known yet"
    own, drawn = arms[SEARCH], arms[RANDOM]
    if own.merit > drawn.high:
        return "ahead"
    return "behind" if own.merit < drawn.low else "tie"


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


def _found(log: Log, full: Full, sets: Sequence[DataSet]) -> list[Found]:
    """Rows of the sets whose trainings are all done."""
    won = winner(log, full, sets[0].name) if sets else None
    if won is None:
        return []
    _, drawn, hand = finalists(log)
    rows = []
    for data in sets:
        roles = {HAND: hand, DRAWN: drawn, EXPLORED: won}
        keys = [(c.id, data.name, what) for c in roles.values() for what in (OUT_OF_FOLD, FINAL)]
        if all(key in full.rows for key in keys):
            samples = read_folder(data.folder)
            rows += [_on_set(role, c, hand, full, data, samples) for role, c in roles.items()]
    return rows


def _on_set(
    role: str, candidate: Candidate, hand: Candidate, full: Full, data: DataSet,
    samples: list[Sample],
) -> Found:  # fmt: skip
    tested = [sample for sample in samples if sample.split == "test"]
    labels, groups = labels_of(tested), [sample.group for sample in tested]
    own, other = (_scores(full, c, data, samples) for c in (candidate, hand))
    threshold = _threshold(full, candidate, data, samples)
    judged = evaluate(labels, own, [threshold] * len(own), groups)
    ahead, low, high = _ahead(labels, own, other, groups)
    timed = full.rows.get((candidate.id, data.name, LATENCY)) or {
        "latency": candidate.row["latency"]
    }
    return Found(
        role=role,
        id=candidate.id,
        data=data.name,
        front_end=data.front_end,
        out_of_fold=full.rows[candidate.id, data.name, OUT_OF_FOLD]["auroc"],
        auroc=judged.auroc.value,
        auroc_low=judged.auroc.low,
        auroc_high=judged.auroc.high,
        accuracy=judged.accuracy.value,
        ahead=ahead,
        ahead_low=low,
        ahead_high=high,
        netscore=netscore(
            judged.accuracy.value, candidate.row["parameters"], candidate.row["mflops"]
        ),
        parameters=candidate.row["parameters"],
        mflops=candidate.row["mflops"],
        latency_ratio=timed["latency"]["ratio"],
        latency_by=timed["latency"]["processor"],
    )


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
) -> tuple[float, float, float]:
    """Mean difference of the seeds' AUROC, with a 95 % interval by drawing parts for both."""

    def difference(drawn: NDArray[np.int64]) -> float:
        some = labels[drawn]
        if not 0 < some.sum() < len(some):
            return float("nan")
        return float(
            np.mean([auroc(some, a[drawn]) for a in own])
            - np.mean([auroc(some, b[drawn]) for b in other])
        )

    parts, random = members_of(groups), np.random.default_rng(_SEED)
    values = [
        difference(np.concatenate([parts[i] for i in random.integers(len(parts), size=len(parts))]))
        for _ in range(_RESAMPLES // 4)
    ]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return difference(np.arange(len(labels))), float(low), float(high)


def _against_hand(found: Sequence[Found]) -> str:
    explored = [row for row in found if row.role == EXPLORED]
    if not explored:
        return ""
    points = 100 * float(np.mean([row.ahead for row in explored]))
    faster = 100 * (1 - explored[0].latency_ratio)
    sets = f"{len(explored)} set" + ("s" if len(explored) > 1 else "")
    return (
        f"{points:+.2f} points of AUROC (mean of {sets}) and {abs(faster):.0f} % "
        f"{'faster' if faster >= 0 else 'slower'} than the hand-made network"
    )


def markdown(made: Report) -> str:
    """The report as a page's section."""
    lines = [", ".join(f"{name} {count}" for name, count in made.measured.items()) + ".", ""]
    if made.best:
        lines += [
            (
                f"Merit = AUROC - {MERIT_OF_LATENCY:g} ln(latency ratio); best of n, and the 95 % "
                "interval of the best of n others (resampled from the arm's own log):"
            ),
            "",
            "| arm | n | best | interval | candidate |",
            "|---|--:|--:|---|--:|",
        ]
        lines += [
            f"| {b.arm} | {b.trainings} | {b.merit:.4f} | [{b.low:.4f}, {b.high:.4f}] | {b.id} |"
            for b in made.best
        ]
        lines += ["", f"Against random search at equal budget: **{made.against_random}**.", ""]
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
            f"{f.auroc_high:.3f}] | {f.ahead:+.4f} [{f.ahead_low:+.3f}, {f.ahead_high:+.3f}] | "
            f"{f.accuracy:.4f} | {f.out_of_fold:.4f} | {f.parameters:,} | {f.mflops:.1f} | "
            f"{f.latency_ratio:.3f} | {f.netscore:.1f} |"
            for f in made.found
        ]
        lines += ["", f"The explored network: {made.against_hand}."]
    return "\n".join(lines) + "\n"
