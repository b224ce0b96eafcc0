"""From a folder to weights that were not chosen by what they are tested on.

Recipe, epoch and threshold are chosen by cross-validation inside the splits `train` and `val`:
whole groups are held out in turn, and what each group's model, which never saw it, gives for it are
the out-of-fold scores. The weights that are kept are then trained on all of it, once per seed.
The split `test` is not looked at here.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from models.card import sha256_of
from models.registry import shipped_weights
from models.training.baselines import BASELINES
from models.training.data import (
    DataError,
    Sample,
    data_sha256,
    labels_of,
    load_tiles,
    picture_sha256,
    read_folder,
    read_splits,
    select,
)
from models.training.evaluate import auroc
from models.training.explore.space import Spec, from_row, name_of, to_row
from models.training.fit import (
    RESULT_FILE,
    Fit,
    FitResult,
    TrainingRecipe,
    code_revision,
    run_fit,
    training_device,
)
from models.training.hand import HandModel, fit_hand
from models.training.networks import EXPLORED, HAND, NETWORKS, OURS, build

SUMMARY_FILE = "summary.json"
LEARNED_FILE = "learned.txt"
"""The sha256 of each picture that was trained on, also before the run, by what it began with: it
cannot test the run."""
LEARNED = ("train", "val")
"""Splits that a training looks at; `test` is none of them."""
FOLDS = 4
LARGE = 3000
"""With so many training samples one held-out part is no longer noise, and four folds take hours."""
_LARGE_PARTS = 8
"""Of which a large set holds out one, unless it has a split `val`."""
_VISITS = 480.0
"""Epochs times the square root of the number of tiles."""
_BASELINE_VISITS = 240.0
_EPOCHS = (6, 40)
_LONG_VISITS = 8_760.0
"""Epochs times the number of tiles to the power of 3/4: 96 for 411 tiles, 43 for 1,200, so that
both are trained within half an hour on two cores."""
_LONG_EPOCHS = (6, 160)
_SMOOTH_EPOCHS = 3
DIVERGED = -1.0
_WORTH_PROCESSES = 30
"""Batches that take longer than it takes to start two processes."""
_SCORE_LIMIT = 1e-6

RECIPES = (
    TrainingRecipe("contrast, pre-trained", "contrast", is_pretrained=True, learning_rate=1e-3),
    TrainingRecipe("fine, pre-trained", "fine", is_pretrained=True, learning_rate=1e-3),
    TrainingRecipe("raw, pre-trained", "raw", is_pretrained=True, learning_rate=1e-3),
)
"""What our network chooses from, on all folds."""
FROM_NOTHING = (
    TrainingRecipe("contrast, from nothing", "contrast", is_pretrained=False),
    TrainingRecipe("fine, from nothing", "fine", is_pretrained=False),
)
"""Only by name: for the weights that others begin with, and to compare what must not have any."""
FROM_NOTHING_LONG = {
    front_end: TrainingRecipe(
        f"{front_end}, from nothing, long", front_end, is_pretrained=False, is_long=True
    )
    for front_end in ("contrast", "fine", "raw")
}
"""The best front end once more, from random weights and four times as long: better where a surface
is unlike what the shipped weights were trained on."""
BASELINE_RECIPES = (
    TrainingRecipe("contrast", "contrast", is_pretrained=False),
    TrainingRecipe("fine", "fine", is_pretrained=False),
    TrainingRecipe("raw", "raw", is_pretrained=False),
)
"""What a baseline chooses from, on one fold: a tile costs it ten times our network's time."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Weights that a training begins with, instead of the shipped ones."""

    name: str
    """Of the run or model, as it was given."""
    weights: Path
    learned: frozenset[str] | None
    """The sha256 of each picture that they learned from, beyond the shipped ones'; None if nobody
    knows."""

    def row(self, known: Sequence[Sample]) -> dict[str, Any]:
        """For the summary of a run on these pictures."""
        seen = None
        if self.learned is not None:
            seen = sum(picture_sha256(sample) in self.learned for sample in known)
        sha256 = sha256_of(self.weights.read_bytes())
        return {"name": self.name, "sha256": sha256, "pictures_seen": seen}


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of `train`."""

    data: Path
    run: Path
    network: str = OURS
    seeds: tuple[int, ...] = (1, 2, 3)
    recipes: tuple[TrainingRecipe, ...] = RECIPES
    epochs: int | None = None
    """None: by the number of tiles."""
    init: Beginning | None = None
    spec: Spec | None = None
    """Of an explored network."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What cross-validation chose, and on which evidence."""

    recipe: TrainingRecipe
    epoch: int
    threshold: float
    slope: float
    """Of the calibrated log odds over the network's own."""
    offset: float
    auroc: float
    """Out of fold, mean of the folds; -1 if a score was NaN."""
    accuracy: float
    """Out of fold, at `threshold`."""
    samples: int


class Progress(Protocol):
    """How far a run is, in batches."""

    def begin(self, batches: int, what: str) -> None:
        """A part of the run with so many batches begins."""

    def advance(self, batches: int = 1) -> None:
        """So many batches are done."""


def recipes_for(network: str, name: str | None = None) -> tuple[TrainingRecipe, ...]:
    """The recipes that a network chooses from, or the one of that name. Raises `DataError`."""
    if network == HAND:
        if name is not None:
            raise DataError(f"no recipe {name!r} of {HAND}: its classifier is chosen by the folds")
        return ()
    if network not in NETWORKS:
        raise DataError(f"no network {network!r}; there are {', '.join((*NETWORKS, HAND))}")
    chosen_from: tuple[TrainingRecipe, ...] = RECIPES
    others: tuple[TrainingRecipe, ...] = FROM_NOTHING
    if network in BASELINES:
        chosen_from, others = BASELINE_RECIPES, ()
    elif network == EXPLORED:  # no weights are shipped that it could begin with
        chosen_from, others = FROM_NOTHING, RECIPES
    if name is None:
        return chosen_from
    by_name = (*chosen_from, *others, *(FROM_NOTHING_LONG.values() if others else ()))
    named = tuple(recipe for recipe in by_name if recipe.name == name)
    if not named:
        known = "; ".join(recipe.name for recipe in by_name)
        raise DataError(f"no recipe {name!r} of {network}; there are: {known}")
    return named


def train(plan: Plan, command: str, progress: Progress) -> dict[str, Any]:
    """Choose, train and leave weights, out-of-fold scores and `summary.json` in `plan.run`.

    Continues where a killed run of the same data and plan stopped. Returns the summary. Raises
    `DataError`.
    """
    known = read_splits(plan.data, *LEARNED)
    samples = read_folder(plan.data)
    if plan.network == HAND:
        return _train_hand(plan, samples, command)
    if (plan.network == EXPLORED) != (plan.spec is not None):
        raise DataError(f"a spec and the network {EXPLORED} go together: give both or neither")
    if plan.spec and not plan.init and any(recipe.is_pretrained for recipe in plan.recipes):
        raise DataError(
            f"no weights of {EXPLORED} are shipped to begin with: train it from nothing first, and "
            "name that run with --init"
        )
    if plan.init and not any(recipe.is_pretrained for recipe in plan.recipes):
        raise DataError("--init: none of the recipes begins with weights; name one that does")
    sha256 = data_sha256(known)
    work = _Work(plan, known, sha256, progress)
    choice, candidates = _choose(work)
    fits = _final_fits(work, choice)
    results = work.run_all(fits, "training")
    summary = _summary(work, samples, choice, candidates, fits, results, command)
    write_result(plan.run, known, summary, plan.init)
    return summary


def hand_model(data: Path) -> HandModel:
    """The hand-made features' classifier, fitted to the split `train`: seconds, so it is not kept.

    Raises `DataError`.
    """
    known = read_splits(data, *LEARNED)
    groups = [sample.group for sample in known]
    return fit_hand(load_tiles(known), labels_of(known), groups, seed=1)


def _train_hand(plan: Plan, samples: list[Sample], command: str) -> dict[str, Any]:
    started = time.monotonic()
    model = hand_model(plan.data)
    labels = labels_of(select(samples, *LEARNED))
    calls = model.out_of_fold > model.threshold
    summary = {
        "network": HAND,
        "data": str(plan.data),
        "data_sha256": data_sha256(samples),
        "recipe": {"name": model.kind},
        "epoch": 0,
        "epochs": 0,
        "threshold": model.threshold,
        "out_of_fold": {
            "samples": len(labels),
            "folds": FOLDS,
            "auroc": model.aurocs[model.kind],
            "accuracy": float((calls == labels).mean()),
        },
        "candidates": [{"recipe": {"name": k}, "auroc": v} for k, v in model.aurocs.items()],
        "seeds": [1],
        "trainings": len(model.aurocs) * FOLDS + 1,
        "device": "cpu",
        "cpu_hours": round((time.monotonic() - started) / 3600, 3),
        "command": command,
        "code_revision": code_revision(),
    }
    plan.run.mkdir(parents=True, exist_ok=True)
    write_result(plan.run, select(samples, *LEARNED), summary)
    return summary


def default_epochs(network: str, samples: int, is_long: bool = False) -> int:
    """Epochs for a set of this size: the smaller the set, the more often it is seen."""
    if is_long:
        return int(np.clip(round(_LONG_VISITS / samples**0.75), *_LONG_EPOCHS))
    visits = _BASELINE_VISITS if network in BASELINES else _VISITS
    return int(np.clip(round(visits / math.sqrt(samples)), *_EPOCHS))


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises `DataError`."""
    path = run / SUMMARY_FILE
    if not path.is_file():
        raise DataError(f"{run}: no finished training run ({SUMMARY_FILE} is missing)")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def code_revisions_of(summary: dict[str, Any]) -> str:
    """Those that the trainings ran from; a finished one is kept when the code goes on."""
    revisions: list[str] = summary.get("fits_code_revisions", [summary["code_revision"]])
    return ", ".join(revisions)


def weights_file(run: Path) -> Path:
    """The first seed's weights of a finished run. Raises `DataError`."""
    summary = read_summary(run)
    if summary["network"] == HAND:
        raise DataError(f"{run}: hand-made features have no weights to begin with")
    return run / summary["weights"][0]


def pictures_seen(summary: dict[str, Any]) -> int | None:
    """How many of a run's pictures its folds began with knowledge of (--init): what they hold out
    of these is not unseen. None if nobody knows."""
    if "init" in summary:
        seen: int | None = summary["init"]["pictures_seen"]
        return seen
    return None if "--init" in summary["command"] else 0  # summaries did not always say it


def refuse_seen_folds(run: Path, summary: dict[str, Any]) -> None:
    """Raises `DataError` for a run whose out-of-fold scores may be of pictures that the weights
    knew."""
    seen = pictures_seen(summary)
    if seen == 0:
        return
    name = summary.get("init", {}).get("name", "another model")
    what = "of which nobody knows what it learned from"
    if seen is not None:
        what = f"which had learned from {seen} of its pictures"
    raise DataError(
        f"{run}: its folds began with {name}, {what}, so that none is unseen; train again without "
        "--init, or with --init and a run of other pictures (`vqi model collect --since`)"
    )


def learned_by(run: Path) -> frozenset[str] | None:
    """The sha256 of each picture that the weights of a finished run learned from; None if nobody
    knows. Raises `DataError`."""
    path = run / LEARNED_FILE
    if pictures_seen(read_summary(run)) is None or not path.is_file():
        return None
    return frozenset(path.read_text().split())


def load_network(run: Path, seed: int | None = None) -> nn.Module:
    """The trained network of one seed, the first by default, on the CPU. Raises `DataError`."""
    summary = read_summary(run)
    seed = summary["seeds"][0] if seed is None else seed
    file = summary["weights"][summary["seeds"].index(seed)]
    saved = torch.load(run / file, weights_only=True)
    spec = name_of(from_row(summary["spec"])) if "spec" in summary else ""
    network = build(summary["network"], summary["recipe"]["front_end"], seed, spec)
    network.load_state_dict(saved["weights"])
    return network.eval()


@dataclass(frozen=True, slots=True)
class _Part:
    """A training with what it may see and what it is judged on: indices of the known samples."""

    fit: Fit
    seen: tuple[int, ...]
    held: tuple[int, ...]


class _Work:
    """The samples of a run and the processes that train on them."""

    def __init__(self, plan: Plan, known: list[Sample], sha256: str, progress: Progress) -> None:
        self.plan, self.known, self.sha256 = plan, known, sha256
        self.labels = labels_of(known)
        self.folds = cut_folds(known, plan.seeds[0])
        self.is_large = len(self.folds) == 1
        self._progress = progress

    @property
    def choosing_folds(self) -> list[NDArray[np.int64]]:
        """The folds that recipes are compared on."""
        return self.folds[:1] if self.plan.network in BASELINES else self.folds

    def epochs(self, recipe: TrainingRecipe) -> int:
        """Of the recipe's schedule."""
        given = self.plan.epochs
        return given or default_epochs(self.plan.network, len(self.known), recipe.is_long)

    def part(self, name: str, recipe: TrainingRecipe, seed: int, held: Any, stop: int) -> _Part:
        init = ""
        if recipe.is_pretrained:
            begin = self.plan.init
            init = str(begin.weights if begin else pretrained_weights(recipe.front_end))
        spec = name_of(self.plan.spec) if self.plan.spec else ""
        fit = Fit(name, self.plan.network, recipe, seed, self.epochs(recipe), stop, init, spec)
        out = set(map(int, held))
        seen = tuple(i for i in range(len(self.known)) if i not in out)
        return _Part(fit, seen, tuple(sorted(out)))

    def run_all(self, parts: Sequence[_Part], what: str) -> list[FitResult]:
        """Train all parts, one to a core; on a CUDA device one after the other."""
        batches = sum(p.fit.stop_after * -(-len(p.seen) // p.fit.recipe.batch) for p in parts)
        self._progress.begin(batches, what)
        torch.set_num_threads(1)  # as in a process of its own: the same sums in the same order
        is_short = batches < _WORTH_PROCESSES
        if training_device().type == "cuda" or is_short or _cores() == 1:
            return [self._run(part, self._progress.advance) for part in parts]
        return self._run_in_processes(parts)

    def _run(self, part: _Part, on_batch: Callable[[], object]) -> FitResult:
        seen = [self.known[i] for i in part.seen]
        held = [self.known[i] for i in part.held]
        return run_fit(part.fit, seen, held, self.sha256, self.plan.run, on_batch)

    def _run_in_processes(self, parts: Sequence[_Part]) -> list[FitResult]:
        context = multiprocessing.get_context("spawn")
        batches_done = context.SimpleQueue()
        workers = min(_cores(), len(parts))
        with ProcessPoolExecutor(workers, context, _begin_worker, (batches_done,)) as pool:
            jobs = [
                pool.submit(
                    _work_in_process,
                    part.fit,
                    [self.known[i] for i in part.seen],
                    [self.known[i] for i in part.held],
                    self.sha256,
                    self.plan.run,
                )
                for part in parts
            ]
            try:
                self._await(jobs, batches_done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [job.result() for job in jobs]

    def _await(self, jobs: list[Future[FitResult]], batches_done: Any) -> None:
        waiting = set(jobs)
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            while not batches_done.empty():
                batches_done.get()
                self._progress.advance()
            for job in done:
                job.result()


_report_batch: Callable[[], object] = lambda: None  # noqa: E731


def _begin_worker(batches_done: Any) -> None:
    global _report_batch
    torch.set_num_threads(1)
    parent = os.getppid()

    def report() -> None:
        # Whoever continues a killed run must not meet its old workers at the same files.
        if os.getppid() != parent:
            os._exit(1)
        batches_done.put(None)

    _report_batch = report


def _work_in_process(
    fit: Fit, seen: list[Sample], held: list[Sample], sha256: str, run: Path
) -> FitResult:
    return run_fit(fit, seen, held, sha256, run, _report_batch)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def pretrained_weights(front_end: str) -> Path:
    """Weights trained on rendered plates, which small sets begin with."""
    return shipped_weights() / f"pretrained-{front_end}.pt"


def cut_folds(known: Sequence[Sample], seed: int) -> list[NDArray[np.int64]]:
    """Indices to hold out in turn: of a large set one part (the split `val` if it has enough
    parts), else four. Raises `DataError`."""
    if len(known) <= LARGE:
        return _folds(known, FOLDS, seed)
    val = [i for i, sample in enumerate(known) if sample.split == "val"]
    if _fewest_parts([known[i] for i in val]) >= _LARGE_PARTS:
        return [np.array(val, np.int64)]
    if _fewest_parts(known) < _LARGE_PARTS:
        return _folds(known, FOLDS, seed)
    return _folds(known, _LARGE_PARTS, seed)[:1]


def _fewest_parts(samples: Sequence[Sample]) -> int:
    """Parts of the class that has fewer of them."""
    return min(len({sample.group for sample in samples if sample.label == c}) for c in (0, 1))


def _folds(known: Sequence[Sample], count: int, seed: int) -> list[NDArray[np.int64]]:
    """Sets of indices to hold out: whole groups, both classes in each as evenly as they go."""
    labels, groups = labels_of(known), np.array([sample.group for sample in known])
    for label, word in ((0, "good"), (1, "defective")):
        found = len(set(groups[labels == label]))
        if found < count:
            raise DataError(
                f"{known[0].file.parent}: {word} pictures of {found} groups in train; "
                f"{count} are needed to choose anything by cross-validation"
            )
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that it could not spread evenly
        folds = [held for _, held in splitter.split(np.zeros(len(labels)), labels, groups)]
    if any(len(set(labels[fold])) < 2 for fold in folds):
        raise DataError(
            f"{known[0].file.parent}: the {len(set(groups))} groups of train cannot be cut into "
            f"{count} parts with both classes; more and smaller groups are needed"
        )
    return folds


def _choose(work: _Work) -> tuple[Choice, list[dict[str, Any]]]:
    """The recipe whose out-of-fold AUROC is best, with its epoch and threshold."""
    choices = _compare(work, work.plan.recipes)
    best = max(choices, key=lambda choice: choice.auroc)
    if work.plan.recipes == RECIPES and not work.is_large and not work.plan.init:
        choices += _compare(work, [FROM_NOTHING_LONG[best.recipe.front_end]])
        best = max(choices, key=lambda choice: choice.auroc)
    if best.auroc == DIVERGED:
        raise DataError(f"{work.plan.data}: every recipe's training diverged (scores of NaN)")
    candidates = [
        {"recipe": asdict(choice.recipe), "epoch": choice.epoch, "auroc": choice.auroc}
        for choice in choices
    ]
    return best, candidates


def _compare(work: _Work, recipes: Sequence[TrainingRecipe]) -> list[Choice]:
    parts = [part for recipe in recipes for part in _choosing_parts(work, recipe)]
    results = work.run_all(parts, "choosing")
    count = len(work.choosing_folds)
    return [
        _judge(work, recipe, results[i * count : (i + 1) * count])
        for i, recipe in enumerate(recipes)
    ]


def _choosing_parts(work: _Work, recipe: TrainingRecipe) -> list[_Part]:
    seed = work.plan.seeds[0] * 10
    return [
        work.part(fold_name(recipe.name, k), recipe, seed + k, held, work.epochs(recipe))
        for k, held in enumerate(work.choosing_folds)
    ]


def fold_name(recipe: str, fold: int) -> str:
    """Folder of a fold's training in the run."""
    return f"{recipe.replace(',', '').replace(' ', '-')}-fold-{fold}"


def _judge(work: _Work, recipe: TrainingRecipe, results: list[FitResult]) -> Choice:
    """Epoch, calibration and threshold of a recipe from its out-of-fold scores."""
    held = np.concatenate(work.choosing_folds)
    if not all(np.isfinite(result.held_scores).all() for result in results):
        return Choice(recipe, work.epochs(recipe), 0.5, 0.0, 0.0, DIVERGED, 0.0, len(held))
    labels = work.labels[held]
    by_fold = [
        [auroc(work.labels[fold], scores) for scores in result.held_scores]
        for fold, result in zip(work.choosing_folds, results, strict=True)
    ]
    area, epoch = _best_epoch(np.mean(by_fold, axis=0))
    if len(results) == 1:
        # One part's best epoch is noise; and of a large set this training's weights are kept.
        epoch, area = work.epochs(recipe), float(np.mean(by_fold[0][-_SMOOTH_EPOCHS:]))
    scores = np.concatenate([result.held_scores[epoch - 1] for result in results])
    slope, offset = calibrate(labels, scores)
    threshold = float(expit(-offset / slope)) if slope > 0 else 0.5
    right = float(((scores > threshold) == labels).mean())
    return Choice(recipe, epoch, threshold, slope, offset, area, right, len(held))


def _best_epoch(areas: NDArray[np.float64]) -> tuple[float, int]:
    """Best mean of neighbouring epochs in the second half of the schedule, and its epoch (from 1).

    A single epoch's area is noise, and before the half the learning rate is still high.
    """
    width = min(_SMOOTH_EPOCHS, len(areas))
    smooth = np.convolve(areas, np.ones(width) / width, "valid")
    first = max(0, len(areas) // 2 - width + 1)
    best = first + int(np.argmax(smooth[first:]))
    return float(smooth[best]), best + width


def calibrate(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> tuple[float, float]:
    """Slope and offset of the log odds that fit the labels best (Platt, 1999).

    Two numbers from all scores are less noisy than the one best cut between them.
    """
    fitted = LogisticRegression(C=1e6).fit(_log_odds(scores)[:, None], labels)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _log_odds(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    clipped = np.clip(scores.astype(np.float64), _SCORE_LIMIT, 1 - _SCORE_LIMIT)
    odds: NDArray[np.float64] = np.log(clipped / (1 - clipped))
    return odds


def _final_fits(work: _Work, choice: Choice) -> list[_Part]:
    """One training per seed, on everything known; a large set keeps its held-out part held out,
    and the training that chose is the first seed's."""
    seeds, held = work.plan.seeds, np.empty(0, np.int64)
    if work.is_large:
        seeds, held = seeds[1:], work.folds[0]
    parts = [work.part(f"seed-{seed}", choice.recipe, seed, held, choice.epoch) for seed in seeds]
    return _choosing_parts(work, choice.recipe) + parts if work.is_large else parts


def _summary(
    work: _Work,
    samples: list[Sample],
    choice: Choice,
    candidates: list[dict[str, Any]],
    parts: list[_Part],
    results: list[FitResult],
    command: str,
) -> dict[str, Any]:
    known = work.known
    return {
        "network": work.plan.network,
        **({"spec": to_row(work.plan.spec)} if work.plan.spec else {}),
        **({"init": work.plan.init.row(known)} if work.plan.init else {}),
        "data": str(work.plan.data),
        "data_sha256": data_sha256(samples),
        "good": int((work.labels == 0).sum()),
        "defective": int((work.labels == 1).sum()),
        "groups": len({sample.group for sample in known}),
        "recipe": asdict(choice.recipe),
        "epochs": work.epochs(choice.recipe),
        "epoch": choice.epoch,
        "threshold": choice.threshold,
        "calibration": {"slope": choice.slope, "offset": choice.offset},
        "out_of_fold": {
            "samples": choice.samples,
            "folds": len(work.choosing_folds),
            "auroc": choice.auroc,
            "accuracy": choice.accuracy,
        },
        "candidates": candidates,
        "seeds": list(work.plan.seeds),
        "weights": [f"{part.fit.name}/{RESULT_FILE}" for part in parts],
        "device": ", ".join(sorted({result.device for result in results})),
        "trainings": len(list(work.plan.run.glob(f"*/{RESULT_FILE}"))),
        "cpu_hours": _hours(work.plan.run),
        "command": command,
        "code_revision": code_revision(),
        "fits_code_revisions": sorted({result.code_revision for result in results}),
    }


def _hours(run: Path) -> float:
    """Time that all trainings of the run took, each on one core (or the device)."""
    saved = (torch.load(path, weights_only=True) for path in run.glob("*/result.pt"))
    return round(sum(result["seconds"] for result in saved) / 3600, 3)


def write_result(
    run: Path, known: Sequence[Sample], summary: dict[str, Any], init: Beginning | None = None
) -> None:
    learned = {picture_sha256(sample) for sample in known}
    if init and init.learned:
        learned |= init.learned
    _write_whole(run / LEARNED_FILE, "\n".join(sorted(learned)).encode())
    _write_whole(run / SUMMARY_FILE, json.dumps(summary, indent=2).encode())


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)
