"""The exploration: two searches of one space that spend the same trainings, from one log.

Cheap work (export, predicates, latency, zero-cost scores) runs in processes on cores of their own
where there are enough, so that no training disturbs a measured time; short trainings run in worker
processes. Everything that was finished is a line of the log; a killed exploration goes on from it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.training.count import count_mflops, count_parameters
from models.training.data import Sample, data_sha256, labels_of, load_tiles, read_splits
from models.training.explore import costs, proposing
from models.training.explore.constraints import violations
from models.training.explore.fitting import OutOfTime, Pictures, fold_cuts, mean_area, out_of_fold
from models.training.explore.log import ARMS, RANDOM, REFERENCE, SEARCH, Candidate, Log
from models.training.explore.network import build
from models.training.explore.space import HAND_MADE, PROTOTYPE, Spec, from_row, to_row

_SCORED_TILES = 32
_MANY_CORES = 8
"""From here on latency has cores of its own."""
_LEARNED = ("train", "val")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an exploration is to do."""

    data: Path
    out: Path
    workers: int
    front_end: str = "fine"
    epochs: int = 10
    folds: int = 2
    seed: int = 1
    trainings: int = 32
    """Of each arm."""
    candidates: int = 200
    """Timed and scored at zero cost at least; refused ones and references do not count."""
    is_eager: bool = False
    """No CUDA graphs."""


def explore(plan: Plan, deadline: float, say: Callable[[str], object] = print) -> bool:
    """Go on until the trainings are spent, or until `deadline` (`time.time()`); whether they are.
    Raises `DataError`, `LogError`."""
    samples = read_splits(plan.data, *_LEARNED)
    log = Log.open(plan.out, _identity(plan, samples))
    search = _Exploration(plan, log, deadline, say)
    try:
        search.run()
    finally:
        search.close()
    return search.is_done()


def _identity(plan: Plan, samples: list[Sample]) -> dict[str, Any]:
    return {
        "set": plan.data.resolve().name,
        "data_sha256": data_sha256(samples),
        "front_end": plan.front_end,
        "epochs": plan.epochs,
        "folds": plan.folds,
        "seed": plan.seed,
    }


@dataclass(frozen=True, slots=True)
class _Origin:
    """Whose candidate it is."""

    arm: str
    draw: int | None = None
    """Of random search: the number that decides the network."""


def _draws_left(log: Log, seed: int) -> Iterator[tuple[int, Spec]]:
    """Numbers and networks of random search that the log lacks, the lowest first: workers end in
    another order than they began in, and a killed one leaves a gap."""
    known = log.of(RANDOM)
    numbers = {candidate.row["draw"] for candidate in known if "draw" in candidate.row}
    # Logs of before draws had numbers: by the network itself.
    others = {candidate.spec for candidate in known if "draw" not in candidate.row}
    for number in itertools.count():
        if number not in numbers and (spec := proposing.random_spec(seed, number)) not in others:
            yield number, spec


class _Exploration:
    def __init__(self, plan: Plan, log: Log, deadline: float, say: Callable[[str], object]) -> None:
        self._plan, self._log, self._deadline, self._say = plan, log, deadline, say
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        timing, training = _shared_cores()
        context = multiprocessing.get_context("spawn")
        self._cheap = ProcessPoolExecutor(
            len(timing) if timing != training else 1,
            context,
            _begin_worker,
            (plan.data, timing, timing != training, context.Value("i", 0)),
        )
        self._dear = ProcessPoolExecutor(
            plan.workers, context, _begin_worker, (plan.data, training, False, None)
        )
        self._measuring: dict[Future[dict[str, Any]], _Origin] = {}
        self._proposing: Future[list[dict[str, Any]]] | None = None
        self._training: dict[Future[dict[str, Any] | None], Candidate] = {}
        self._chosen: list[Candidate] = []
        self._is_round_over = False
        self._draws = _draws_left(log, plan.seed)
        self._trainings_done = sum(c.training is not None for c in log.candidates)

    def run(self) -> None:
        self._measure_references()
        while not self.is_done() and time.time() < self._deadline:
            self._feed_cheap()
            self._feed_dear()
            busy: list[Future[Any]] = [*self._measuring, *self._training]
            busy += [self._proposing] if self._proposing else []
            if busy:
                left = max(0.0, self._deadline - time.time())
                wait(busy, timeout=min(1.0, left), return_when=FIRST_COMPLETED)
            self._harvest()

    def close(self) -> None:
        """Short work ends, trainings see the deadline; what they found still counts."""
        self._cheap.shutdown(wait=True, cancel_futures=True)
        self._dear.shutdown(wait=True, cancel_futures=True)
        self._proposing = None
        self._harvest()

    def is_done(self) -> bool:
        spent = all(len(self._log.trained(arm)) >= self._plan.trainings for arm in ARMS)
        return spent and len(self._log.scored()) >= self._plan.candidates

    def _measure_references(self) -> None:
        known = {candidate.spec for candidate in self._log.of(REFERENCE)}
        for spec in (HAND_MADE, PROTOTYPE):
            if spec not in known:
                self._measure(_Origin(REFERENCE), spec)

    def _measure(self, origin: _Origin, spec: Spec) -> None:
        job = self._cheap.submit(measure, to_row(spec), self._plan.front_end)
        self._measuring[job] = origin

    def _coming(self, arm: str) -> int:
        return sum(origin.arm == arm for origin in self._measuring.values())

    def _feed_cheap(self) -> None:
        plan, log = self._plan, self._log
        waiting = len(self._untrained(RANDOM))
        coming = self._coming(RANDOM)
        if self._started(RANDOM) < plan.trainings:
            wanted = plan.workers + 2 - waiting - coming
        else:
            short = plan.candidates - len(log.scored()) - len(self._measuring)
            wanted = min(short, 2 * os.cpu_count()) - coming if short > 0 else 0  # type: ignore[operator]
        for draw, spec in itertools.islice(self._draws, max(0, wanted)):
            self._measure(_Origin(RANDOM, draw), spec)
        is_busy = self._proposing or self._coming(SEARCH)
        enough = len(self._chosen) > plan.workers // 2
        if not is_busy and not enough and self._started(SEARCH) < plan.trainings:
            self._proposing = self._cheap.submit(
                _propose,
                [(c.id, c.arm, to_row(c.spec), c.row, c.training) for c in log.of(SEARCH)],
                plan.seed,
            )

    def _untrained(self, arm: str) -> list[Candidate]:
        """Measured, admissible, and not yet begun."""
        begun = {candidate.id for candidate in self._training.values()}
        return [
            candidate
            for candidate in self._log.of(arm)
            if candidate.is_admissible and not candidate.training and candidate.id not in begun
        ]

    def _started(self, arm: str) -> int:
        running = sum(candidate.arm == arm for candidate in self._training.values())
        return len(self._log.trained(arm)) + running

    def _feed_dear(self) -> None:
        while len(self._training) < self._plan.workers:
            candidate = self._next()
            if candidate is None:
                return
            job = self._dear.submit(
                train, to_row(candidate.spec), self._plan.front_end, self._plan.epochs,
                self._plan.folds, self._plan.seed, self._device, self._deadline,
                self._plan.is_eager,
            )  # fmt: skip
            self._training[job] = candidate

    def _next(self) -> Candidate | None:
        """Of the arm that has spent less; the other may be ahead by half of the workers."""
        hand = [c for c in self._untrained(REFERENCE) if c.spec == HAND_MADE]
        if hand:
            return hand[0]
        ahead = max(1, self._plan.workers // 2)
        counts = {arm: self._started(arm) for arm in ARMS}
        for arm in sorted(ARMS, key=lambda arm: counts[arm]):
            if counts[arm] >= self._plan.trainings or counts[arm] > min(counts.values()) + ahead:
                continue
            if arm == SEARCH:
                if not self._chosen and self._is_round_over:
                    known, waiting = self._log.of(SEARCH), self._untrained(SEARCH)
                    self._chosen = proposing.choose(known, waiting) if waiting else []
                    self._is_round_over = False
                if self._chosen:
                    return self._chosen.pop(0)
            elif waiting := self._untrained(RANDOM):
                return waiting[0]
        return None

    def _harvest(self) -> None:
        if self._proposing and self._proposing.done():
            for row in self._proposing.result():
                self._measure(_Origin(SEARCH), from_row(row))
            self._proposing = None
        for job in [job for job in self._measuring if job.done()]:
            origin = self._measuring.pop(job)
            if not job.cancelled():
                self._write_candidate(origin, job.result())
            self._is_round_over |= origin.arm == SEARCH and not self._coming(SEARCH)
        for training in [job for job in self._training if job.done()]:
            candidate = self._training.pop(training)
            if not training.cancelled():
                self._write_training(candidate, training.result())

    def _write_candidate(self, origin: _Origin, row: dict[str, Any]) -> None:
        number = len(self._log.candidates)
        draw = {} if origin.draw is None else {"draw": origin.draw}
        self._log.append({"kind": "candidate", "id": number, "arm": origin.arm, **draw, **row})
        if row["violations"]:
            self._say(f"{number} {origin.arm}: refused, {'; '.join(row['violations'].values())}")

    def _write_training(self, candidate: Candidate, row: dict[str, Any] | None) -> None:
        if row is None:
            return  # the deadline came first
        place = self._trainings_done
        self._trainings_done += 1
        self._log.append({"kind": "training", "id": candidate.id, "place": place, **row})
        self._say(
            f"{candidate.id} {candidate.arm}: AUROC {candidate.auroc:.4f} out of fold, "
            f"{candidate.ratio:.2f} of the hand-made network's time, "
            f"{len(self._log.candidates)} measured, {self._trainings_done} trained"
        )


def _shared_cores() -> tuple[list[int], list[int]]:
    """Cores for measuring and for training; the same ones where there are few."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < _MANY_CORES:
        return cores, cores
    apart = len(cores) // 3
    return cores[:apart], cores[apart:]


# In the worker processes

_samples: list[Sample] = []
_tiles: NDArray[np.uint8] | None = None
_pictures: dict[str, Pictures] = {}
_reference: dict[str, bytes] = {}


def _begin_worker(data: Path, cores: list[int], is_pinned: bool, turn: Any) -> None:
    """One thread, on its cores (on one of them each, if pinned); gone when the parent is."""
    global _samples, _tiles
    begin_process()
    if is_pinned:
        with turn.get_lock():
            place = turn.value
            turn.value += 1
        cores = [cores[place % len(cores)]]
    os.sched_setaffinity(0, cores)
    _samples = read_splits(data, *_LEARNED)
    _tiles = load_tiles(_samples)


def begin_process() -> None:
    """One thread; gone when the parent is."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def measure(row: dict[str, Any], front_end: str) -> dict[str, Any]:
    """A candidate's line but for its number: graph, predicates, and, where it keeps to them,
    latency and zero-cost scores."""
    spec = from_row(row)
    if front_end not in _reference:
        _reference[front_end] = costs.export(build(HAND_MADE, front_end))
    model = costs.export(build(spec, front_end))
    found: dict[str, Any] = {
        "spec": row,
        "violations": violations(model),
        "mflops": round(count_mflops(model), 3),
        "parameters": count_parameters(model),
    }
    taken = costs.latency(model, _reference[front_end])
    found["latency"] = {
        "ratio": taken.ratio, "ms": taken.ms, "reference_ms": taken.reference_ms,
        "processor": costs.processor(),
    }  # fmt: skip
    if not found["violations"]:
        assert _tiles is not None
        labels = labels_of(_samples)
        some = _some_of_both(labels)
        found["zero_cost"] = costs.zero_cost(spec, front_end, _tiles[some], labels[some])
    return found


def _some_of_both(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of as many good as defective tiles, spread over all."""
    halves = []
    for label in (0, 1):
        places = np.flatnonzero(labels == label)
        halves.append(places[np.linspace(0, len(places) - 1, _SCORED_TILES // 2).astype(np.int64)])
    return np.concatenate(halves)


def _propose(rows: list[tuple[Any, ...]], seed: int) -> list[dict[str, Any]]:
    known = [Candidate(i, arm, from_row(spec), row, trained) for i, arm, spec, row, trained in rows]
    return [dict(to_row(spec)) for spec in proposing.propose(known, seed)]


def train(
    row: dict[str, Any],
    front_end: str,
    epochs: int,
    folds: int,
    seed: int,
    device: str,
    deadline: float,
    is_eager: bool,
) -> dict[str, Any] | None:
    """The short training's line but for its number; None if the deadline came first."""
    spec = from_row(row)
    labels = labels_of(_samples)
    if device not in _pictures:
        assert _tiles is not None
        _pictures[device] = Pictures.on(device, _tiles, labels)
    cuts = fold_cuts(labels, [sample.group for sample in _samples], seed, folds)
    try:
        scores, seconds = out_of_fold(
            lambda number: build(spec, front_end, number),
            _pictures[device], cuts, epochs, seed, deadline, is_eager,
        )  # fmt: skip
    except OutOfTime:
        return None
    return {
        "auroc": round(mean_area(labels, cuts, scores), 5),
        "folds": [round(mean_area(labels, [cuts[k]], [scores[k]]), 5) for k in range(folds)],
        "seconds": round(seconds, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else costs.processor(),
    }
