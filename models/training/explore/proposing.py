"""The generator: which networks are worth a look, from what is known of others.

NSGA-II (optuna) breeds on two Gaussian processes (scikit-learn) that were fitted to the log: one
guesses a spec's out-of-fold AUROC, one its latency. What it proposes is then measured, and measured
latency and zero-cost scores decide what is trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from models.training.explore.constraints import MFLOPS_LIMIT, PARAMETERS_LIMIT
from models.training.explore.log import Candidate, merit
from models.training.explore.sizes import sizes_of
from models.training.explore.space import (
    PROTOTYPE,
    SPACE,
    Spec,
    draw,
    from_row,
    mutate,
    name_of,
    to_row,
)

PROPOSALS = 8
"""Measured in each round; a quarter of them is trained."""
TAKEN = 2
_FIRST_TRAININGS = 8
"""Before the processes say anything; until then the prototype's descendants are tried."""
_FRONT_END_MFLOPS = 8.5
_FRONT_END_PARAMETERS = 40_000
"""At most."""
_POPULATION = 24
_GENERATIONS = 12
_CURIOSITY = 0.5
"""Standard deviations of the guess that are added to it."""
_TRIES = 20_000


def excesses(spec: Spec) -> tuple[float, float, float, float]:
    """How far a spec is from the space's admissible part, none above 0 inside; the predicates on
    its graph have the last word."""
    mflops, parameters = sizes_of(spec)
    attends = (spec.a1_attend, spec.b1_attend, spec.a2_attend, spec.b2_attend)
    return (
        mflops / (MFLOPS_LIMIT - _FRONT_END_MFLOPS) - 1,
        parameters / (PARAMETERS_LIMIT - _FRONT_END_PARAMETERS) - 1,
        0.0 if any(how != "none" for how in attends) else 1.0,
        1.0 if _are_alike(spec) else 0.0,
    )


def _are_alike(spec: Spec) -> bool:
    row = to_row(spec)
    names = ("attend", "filter", "kernel")
    alike = [all(row[f"a{stage}_{n}"] == row[f"b{stage}_{n}"] for n in names) for stage in (1, 2)]
    return all(alike) if spec.input2 == "own" else any(alike)


def is_likely(spec: Spec) -> bool:
    return all(excess <= 0 for excess in excesses(spec))


def random_spec(seed: int, number: int) -> Spec:
    """The `number`-th of random search: every choice with equal chance, drawn until it is likely to
    be admissible."""
    random = np.random.default_rng([seed, 1, number])
    for _ in range(_TRIES):
        spec = draw(random)
        if is_likely(spec):
            return spec
    raise RuntimeError("no admissible network in the space")


def propose(known: Sequence[Candidate], seed: int) -> list[Spec]:
    """New specs to measure, from what is known of the search's own candidates."""
    trained = [candidate for candidate in known if candidate.training]
    random = np.random.default_rng([seed, 2, len(known)])
    names = {name_of(candidate.spec) for candidate in known}
    if len(trained) < _FIRST_TRAININGS:
        return _descendants(names, random)
    specs = _breed(known, trained, int(random.integers(2**31)))
    fresh = [spec for spec in specs if name_of(spec) not in names]
    return fresh[:PROPOSALS] or _descendants(names, random)


def choose(known: Sequence[Candidate], waiting: Sequence[Candidate]) -> list[Candidate]:
    """Of measured candidates those to train, best first, by measured latency and guessed AUROC."""
    trained = [candidate for candidate in known if candidate.training]
    if len(trained) < _FIRST_TRAININGS:
        return sorted(waiting, key=lambda candidate: candidate.ratio)[:TAKEN]
    model = _fitted([_measured(c) for c in trained], [c.auroc for c in trained])
    mean, spread = model.predict(np.array([_measured(c) for c in waiting]), return_std=True)
    worth = [
        merit(guess, candidate.ratio)
        for candidate, guess in zip(waiting, mean + _CURIOSITY * spread, strict=True)
    ]
    return [waiting[place] for place in np.argsort(worth)[::-1][:TAKEN]]


def _descendants(names: set[str], random: np.random.Generator) -> list[Spec]:
    """Of the residual prototype: one field after the other is chosen anew, and kept where that
    brings it no further from the indicator function, until that takes it."""
    found: dict[str, Spec] = {}
    while len(found) < PROPOSALS:
        spec = PROTOTYPE
        while _distance(spec) > 0:
            child = mutate(spec, random)
            if _distance(child) <= _distance(spec):
                spec = child
        if name_of(spec) not in names:
            found[name_of(spec)] = spec
    return list(found.values())


def _distance(spec: Spec) -> float:
    return sum(max(0.0, excess) for excess in excesses(spec))


def _breed(known: Sequence[Candidate], trained: Sequence[Candidate], seed: int) -> list[Spec]:
    """Likely Pareto members, the one of the best guessed merit first."""
    measured = [candidate for candidate in known if candidate.is_admissible]
    accuracy = _fitted([_one_hot(c.spec) for c in trained], [c.auroc for c in trained])
    speed = _fitted([_with_size(c.spec) for c in measured], [math.log(c.ratio) for c in measured])

    def guess(spec: Spec) -> tuple[float, float]:
        mean, spread = accuracy.predict(np.array([_one_hot(spec)]), return_std=True)
        log_ratio = speed.predict(np.array([_with_size(spec)]))
        return float(mean[0] + _CURIOSITY * spread[0]), float(log_ratio[0])

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        row = {n: trial.suggest_categorical(n, choices) for n, choices in SPACE.items()}
        spec = from_row(row)
        trial.set_user_attr("excesses", excesses(spec))
        return guess(spec)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.NSGAIISampler(
            population_size=_POPULATION,
            seed=seed,
            constraints_func=lambda trial: trial.user_attrs["excesses"],
        )
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        best = sorted(trained, key=lambda candidate: -candidate.merit)[: _POPULATION // 2]
        for candidate in best:
            study.enqueue_trial(to_row(candidate.spec))
        random = np.random.default_rng(seed)
        for candidate in best:
            study.enqueue_trial(to_row(mutate(candidate.spec, random, 2)))
        study.optimize(objective, n_trials=_POPULATION * _GENERATIONS)
    good = [t for t in study.trials if all(excess <= 0 for excess in t.user_attrs["excesses"])]
    good.sort(key=lambda trial: -merit(trial.values[0], math.exp(trial.values[1])))
    return list(dict.fromkeys(from_row(trial.params) for trial in good))


def _fitted(features: Sequence[NDArray[np.float64]], values: Sequence[float]) -> Any:
    kernel = ConstantKernel(1.0) * Matern(5.0, (1.0, 50.0), nu=2.5) + WhiteKernel(0.2)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(np.array(features), np.array(values))


def _one_hot(spec: Spec) -> NDArray[np.float64]:
    row = to_row(spec)
    return np.array([row[n] == c for n, choices in SPACE.items() for c in choices], np.float64)


def _with_size(spec: Spec) -> NDArray[np.float64]:
    mflops, parameters = sizes_of(spec)
    return np.append(_one_hot(spec), [4 * math.log(mflops), math.log(parameters)])


def _measured(candidate: Candidate) -> NDArray[np.float64]:
    """What is known of a candidate before it is trained."""
    row = candidate.row
    scores = row["zero_cost"]
    sizes = [math.log(row["mflops"]), math.log(row["parameters"]), math.log(candidate.ratio)]
    cheap = [scores["naswot"] / 5, scores["synflow"] / 2, scores["gradient"]]
    return np.append(_one_hot(candidate.spec), sizes + cheap)
