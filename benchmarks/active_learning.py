"""How many plates a person must look at for the same AUROC: those that `vqi model next` would name,
against plates drawn at random.

    python benchmarks/active_learning.py --data FOLDER --seeds 8 [--unit plate] [--defective 0.1]

A simulation of pool and person. A share of the folder's plates tests; of the others a few are
labelled at first, then so many at a time are asked for, and the folder's labels answer, of all
tiles of a plate. After each answer the classifier is fitted again to all that is labelled: logistic
regression on hand-made features, which know nothing of the product (or `--features fine`, the
pre-trained network's), not the network itself. `doubt` and `choose` are those of `vqi model next`
(models/choosing.py); what a thing looks like is its most doubtful tile's features here, a small
picture and its place there. The labels that are needed are counted where the mean curve over the
seeds first holds an AUROC.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from models.agreement import auroc
from models.choosing import choose, doubt
from models.training.data import labels_of, load_tiles, read_folder
from models.training.embeddings import embeddings
from models.training.hand import features

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

TEST_SHARE = 0.4
DIMENSIONS = 32
STRENGTH = 0.3
_SMOOTH = 3
"""Rounds whose mean must hold an AUROC: a single one is noise."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Things that a person may be asked for, and what tests."""

    table: Floats
    """Features of all tiles, (n, d)."""
    labels: NDArray[np.int64]
    members: list[Places]
    """Tiles of each thing that may be asked for."""
    test: Places
    first: list[int]
    """Things that are labelled at first."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", default="hand", help="hand, contrast, fine or raw")
    parser.add_argument("--unit", choices=("plate", "tile"), default="plate")
    parser.add_argument("--defective", type=float, default=0.1, help="share of the pool")
    parser.add_argument("--first", type=int, default=10, help="labelled at first")
    parser.add_argument("--step", type=int, default=5, help="asked for at a time")
    parser.add_argument("--most", type=int, default=160, help="labelled at last")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--cache", type=Path, help="file that keeps the features")
    given = parser.parse_args()
    samples = read_folder(given.data)
    table = _table(given, [sample.name for sample in samples])
    labels, groups = labels_of(samples), np.array([sample.group for sample in samples])
    curves: dict[str, list[list[float]]] = {}
    for seed in range(given.seeds):
        pool = _pool(given, table, labels, groups, seed)
        for name, way in WAYS.items():
            curves.setdefault(name, []).append(_simulate(given, pool, way, seed))
        print(json.dumps({"seed": seed, "pool": len(pool.members)}), file=sys.stderr)
    for row in _rows(given, curves):
        print(json.dumps(row))
    return 0


def _table(given: Any, names: list[str]) -> Floats:
    if given.cache is not None and given.cache.is_file():
        with np.load(given.cache) as kept:
            if kept["name"].tolist() == names and given.features in kept.files:
                return np.asarray(kept[given.features], np.float64)
    tiles = load_tiles(read_folder(given.data))
    table = features(tiles) if given.features == "hand" else embeddings(tiles, given.features)
    if given.cache is not None:
        np.savez(given.cache, name=names, **{given.features: table})
    return table.astype(np.float64)


def _pool(given: Any, table: Floats, labels: Places, groups: NDArray[Any], seed: int) -> Pool:
    """Whole plates test; the pool has the wanted share of defective things."""
    rng = np.random.default_rng(seed)
    plates = rng.permutation(np.unique(groups))
    is_test = np.isin(groups, plates[: round(TEST_SHARE * len(plates))])
    left = np.flatnonzero(~is_test)
    if given.unit == "plate":
        members = [left[groups[left] == plate] for plate in np.unique(groups[left])]
    else:
        members = [np.array([place]) for place in left]
    bad = [one for one in members if labels[one].any()]
    good = [one for one in members if not labels[one].any()]
    wanted = min(len(bad), round(given.defective / (1 - given.defective) * len(good)))
    if min(wanted, len(good)) < max(4, round(2 * given.defective * given.first)):
        raise SystemExit(f"{given.data}: too few plates of either kind for this pool")
    chosen = [bad[i] for i in rng.choice(len(bad), wanted, replace=False)]
    mixed = [*chosen, *good]
    order = rng.permutation(len(mixed))
    mixed = [mixed[i] for i in order]
    is_bad = np.array([labels[one].any() for one in mixed])
    few = max(2, round(given.defective * given.first))
    first = [
        *rng.choice(np.flatnonzero(is_bad), few, replace=False),
        *rng.choice(np.flatnonzero(~is_bad), given.first - few, replace=False),
    ]
    scaled = StandardScaler().fit(table[left]).transform(table)
    reduced = PCA(min(DIMENSIONS, table.shape[1]), random_state=0).fit(scaled[left])
    seen = reduced.transform(scaled)
    seen *= 3 / seen[left].std(axis=0).max()
    return Pool(seen, labels, mixed, np.flatnonzero(is_test), [int(i) for i in first])


def _simulate(given: Any, pool: Pool, way: Way, seed: int) -> list[float]:
    """AUROC on the test tiles after each answer."""
    rng, known, curve = np.random.default_rng((seed, 1)), list(pool.first), []
    while True:
        tiles = np.concatenate([pool.members[one] for one in known])
        model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=300)
        model.fit(pool.table[tiles], pool.labels[tiles])
        scores = model.predict_proba(pool.table)[:, 1]
        curve.append(auroc(pool.labels[pool.test], scores[pool.test].astype(np.float32)))
        asked = np.setdiff1d(np.arange(len(pool.members)), known)
        if len(known) + given.step > given.most or len(asked) < given.step:
            return curve
        known += [int(asked[i]) for i in way(pool, scores, asked, given.step, rng)]


Way = Callable[[Pool, Floats, Places, int, np.random.Generator], Places]


def _strongest(pool: Pool, scores: Floats, asked: Places) -> tuple[Floats, Floats]:
    """The doubt of each thing, that of its most doubtful tile, and what that tile looks like."""
    doubts = doubt(scores, 0.5)
    tiles = np.array([pool.members[one][np.argmax(doubts[pool.members[one]])] for one in asked])
    seen = pool.table[tiles]
    sizes = np.linalg.norm(seen, axis=1, keepdims=True)
    return doubts[tiles], seen / np.maximum(sizes, 1e-9)


def _ours(
    pool: Pool, scores: Floats, asked: Places, count: int, rng: np.random.Generator
) -> Places:
    doubts, seen = _strongest(pool, scores, asked)
    return choose(doubts, seen, count)


def _doubtful(
    pool: Pool, scores: Floats, asked: Places, count: int, rng: np.random.Generator
) -> Places:
    return np.argsort(-_strongest(pool, scores, asked)[0], kind="stable")[:count]


def _highest(
    pool: Pool, scores: Floats, asked: Places, count: int, rng: np.random.Generator
) -> Places:
    highest = np.array([scores[pool.members[one]].max() for one in asked])
    return np.argsort(-highest, kind="stable")[:count]


def _random(
    pool: Pool, scores: Floats, asked: Places, count: int, rng: np.random.Generator
) -> Places:
    return rng.choice(len(asked), count, replace=False)


WAYS: dict[str, Way] = {
    "random": _random,
    "chosen": _ours,
    "doubt alone": _doubtful,
    "highest score": _highest,
}


def _rows(given: Any, curves: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    rounds = min(len(curve) for of_way in curves.values() for curve in of_way)
    table = {name: np.array([curve[:rounds] for curve in found]) for name, found in curves.items()}
    mean = {name: _smooth(found.mean(axis=0)) for name, found in table.items()}
    goal = float(mean["random"][-1])
    return [
        {
            "data": given.data.name,
            "features": given.features,
            "unit": given.unit,
            "defective": given.defective,
            "seeds": given.seeds,
            "way": name,
            "auroc_at_first": round(float(found[0]), 4),
            "auroc_at_last": round(float(found[-1]), 4),
            "goal": round(goal, 4),
            "labels": _labels_for(given, found, goal),
            "of_random": _share(given, table, name),
        }
        for name, found in mean.items()
    ]


def _smooth(curve: Floats) -> Floats:
    return np.convolve(curve, np.ones(_SMOOTH) / _SMOOTH, "valid")


def _labels_for(given: Any, curve: Floats, goal: float) -> int | None:
    """Labels with which the curve first holds an AUROC; None if it never does."""
    held = np.flatnonzero(curve >= goal - 1e-9)
    if not len(held):
        return None
    return int(given.first + given.step * (int(held[0]) + _SMOOTH // 2))


def _share(given: Any, table: dict[str, Floats], name: str) -> dict[str, float | None]:
    """Labels needed against random for what random reaches in the end, with a 95 % interval by
    drawing seeds: both curves and the goal are then those of the drawn ones."""
    rng, shares = np.random.default_rng(0), []
    seeds = len(table[name])
    for draw in range(500):
        chosen = np.arange(seeds) if draw == 0 else rng.integers(seeds, size=seeds)
        random = _smooth(table["random"][chosen].mean(axis=0))
        own = _smooth(table[name][chosen].mean(axis=0))
        goal = float(random[-1])
        needed, at_random = _labels_for(given, own, goal), _labels_for(given, random, goal)
        shares.append(np.inf if needed is None else needed / (at_random or given.most))
    low, high = np.percentile(shares[1:], [2.5, 97.5], method="nearest")
    return {
        key: None if not np.isfinite(value) else round(float(value), 3)
        for key, value in (("value", shares[0]), ("low", low), ("high", high))
    }


if __name__ == "__main__":
    sys.exit(main())
