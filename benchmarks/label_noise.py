"""How many planted wrong labels `vqi model suspects` lists first.

    python benchmarks/label_noise.py --data FOLDER --seeds 20 [--split train] [--share 0.05]
    python benchmarks/label_noise.py --data FOLDER --seeds 2 --train var/noise

Of the folder's labels a share is turned round at random, by seeds 0, 1, ...; then the tiles are
listed, and the planted ones among the first so many counted. With `--train` each planted folder is
also trained on as `vqi model train` does (a GPU is used where there is one), and the out-of-fold
scores of these runs vote, too. The ways of listing that were not chosen are measured beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from models.training.data import Sample, labels_of, load_tiles, read_folder, select
from models.training.suspects import Tables, Voter, feature_voters, rank, run_voters, tables_of
from models.training.train import Plan, recipes_for, train

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train", help="train (with val), or all")
    parser.add_argument("--share", type=float, default=0.05, help="of labels, turned and listed")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--train", type=Path, help="folder of planted sets and their trainings")
    parser.add_argument("--recipe", help="the only one that is trained; left out: all")
    parser.add_argument("--epochs", type=int, help="of the trainings; left out: by their size")
    parser.add_argument("--cache", type=Path, help="file that keeps the features")
    given = parser.parse_args()
    samples = _samples(given.data, given.split)
    tables, labels = _tables(samples, given.cache), labels_of(samples)
    count = round(given.share * len(labels))
    shares: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        planted = np.random.default_rng(seed).choice(len(labels), count, replace=False)
        wrong = labels.copy()
        wrong[planted] = 1 - wrong[planted]
        voters = feature_voters(tables, wrong)
        ways = {"chosen": rank(wrong, voters).order} | _others(wrong, voters)
        if given.train:
            trained = _trained(given, given.train / f"seed-{seed}", samples, wrong)
            ways["chosen, with the training"] = rank(wrong, [*voters, *trained]).order
            ways["the training alone"] = rank(wrong, trained).order
        for name, order in ways.items():
            found = np.isin(order[:count], planted).mean()
            shares.setdefault(name, []).append(float(found))
        print(json.dumps({"seed": seed, "found": shares["chosen"][-1]}), file=sys.stderr)
    for name, found in shares.items():
        print(json.dumps(_row(given, len(labels), count, name, found)))
    return 0


def _row(given: Any, samples: int, count: int, name: str, found: list[float]) -> dict[str, Any]:
    """Mean over the plantings, and its 95 % interval by drawing plantings."""
    rng, values = np.random.default_rng(0), np.array(found)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "data": given.data.name,
        "split": given.split,
        "labels": samples,
        "planted": count,
        "seeds": len(found),
        "way": name,
        "found": round(float(values.mean()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


def _samples(data: Path, split: str) -> list[Sample]:
    samples = read_folder(data)
    return samples if split == "all" else select(samples, "train", "val")


def _tables(samples: Sequence[Sample], cache: Path | None) -> Tables:
    """Features, which no label has a part in: once for all plantings."""
    names = np.array([sample.name for sample in samples])
    if cache is not None and cache.is_file():
        with np.load(cache) as kept:
            if np.array_equal(kept["name"], names):
                return {key: kept[key] for key in kept.files if key != "name"}
    tables = tables_of(load_tiles(samples))
    if cache is not None:
        np.savez(cache, name=names, **tables)
    return tables


def _others(labels: Labels, voters: Sequence[Voter]) -> dict[str, NDArray[np.int64]]:
    """The ways that were not chosen."""
    own = np.stack([np.where(labels == 1, v.probability, 1 - v.probability) for v in voters])
    ranks = own.argsort(axis=1).argsort(axis=1)
    usual = np.array([own[:, labels == label].mean() for label in (0, 1)])
    ways: dict[str, Floats] = {voter.name: own[i] for i, voter in enumerate(voters)}
    ways |= {
        "mean probability": own.mean(axis=0),
        "mean log odds": logit(own).mean(axis=0),
        "mean rank": ranks.mean(axis=0),
        "weakest voice": own.max(axis=0),
        "strongest voice": own.min(axis=0),
        "confident learning": own.mean(axis=0) - usual[labels],
        "stacking": _stacked(labels, voters),
    }
    return {name: np.argsort(value, kind="stable") for name, value in ways.items()}


def _stacked(labels: Labels, voters: Sequence[Voter]) -> Floats:
    """Probability of the own label by a logistic regression of the voters, by halves."""
    odds = logit(np.stack([voter.probability for voter in voters], axis=1))
    half = np.random.default_rng(0).permutation(len(labels)) % 2 == 0
    probability = np.empty(len(labels))
    for fit, held in ((half, ~half), (~half, half)):
        model = LogisticRegression(C=0.1).fit(odds[fit], labels[fit])
        probability[held] = expit(model.decision_function(odds[held]))
    return np.where(labels == 1, probability, 1 - probability)


def _trained(given: Any, folder: Path, samples: Sequence[Sample], labels: Labels) -> list[Voter]:
    """Train on the planted labels, as `vqi model train` does; goes on after a kill."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    with (data / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group"])
        for sample, label in zip(samples, labels.tolist(), strict=True):
            table.writerow([sample.file.resolve(), label, "train", sample.group])
    recipes = recipes_for("lightdefectnet", given.recipe)
    plan = Plan(data, folder / "run", seeds=(1,), recipes=recipes, epochs=given.epochs)
    train(plan, "benchmarks/label_noise.py", _Quiet())
    planted = read_folder(data)
    places = {sample.name: place for place, sample in enumerate(planted)}
    order = [places[str(sample.file.resolve())] for sample in samples]
    found = run_voters(plan.run, planted)
    return [Voter(one.name, one.probability[order], one.auroc) for one in found]


class _Quiet:
    """No bar."""

    def begin(self, batches: int, what: str) -> None:
        print(json.dumps({"doing": what, "batches": batches}), file=sys.stderr)

    def advance(self, batches: int = 1) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
