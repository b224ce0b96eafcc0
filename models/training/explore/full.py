"""Full trainings of the best: chosen by what they say out of fold, tested once on the split `test`.

Every network is trained alike: from nothing, as many epochs as `vqi model train` gives a set of its
size; once out of fold, then on all of `train` and `val` for each of three seeds. The winner is the
one of the search's best three whose out-of-fold AUROC and latency are worth most; random search
enters its best by the short trainings, of as many. On the other sets the winner alone is trained,
beside what it is compared with, behind the front end that is named for the set.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.training.data import (
    DataError,
    Sample,
    data_sha256,
    labels_of,
    load_tiles,
    read_folder,
    read_splits,
)
from models.training.explore import costs
from models.training.explore.fitting import (
    Job,
    OutOfTime,
    Pictures,
    fold_cuts,
    mean_area,
    out_of_fold,
    train_together,
)
from models.training.explore.log import (
    RANDOM,
    REFERENCE,
    SEARCH,
    Candidate,
    Log,
    LogError,
    cut_torn_line,
    merit,
)
from models.training.explore.network import build
from models.training.explore.searching import begin_process
from models.training.explore.space import HAND_MADE, Spec

FULL_FILE = "full.jsonl"
SEEDS = (1, 2, 3)
BEST = 3
FOLDS = 4
FOLDS_SEED = 1
OUT_OF_FOLD, FINAL, LATENCY = "out of fold", "final", "latency"
_ROUNDS = 100
_VISITS, _EPOCHS = 480.0, (6, 40)


Key = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A folder of `labels.csv`, and the front end that its networks get."""

    folder: Path
    front_end: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True, slots=True)
class Part:
    """Work on one network and set: the folds' trainings, each seed's final one, or its latency
    once more, when nothing else runs."""

    id: int
    data: DataSet
    what: str

    @property
    def key(self) -> Key:
        return self.id, self.data.name, self.what


@dataclass(slots=True)
class Full:
    """The lines of the full trainings."""

    folder: Path
    rows: dict[Key, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Full:
        """A last line that a kill cut short does not count."""
        path = folder / FULL_FILE
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in whole.splitlines()]
        return cls(folder, {(row["id"], row["set"], row["what"]): row for row in rows})

    def append(self, part: Part, row: dict[str, Any]) -> None:
        path = self.folder / FULL_FILE
        cut_torn_line(path)
        number, name, what = part.key
        data = {"folder": str(part.data.folder.resolve()), "front_end": part.data.front_end}
        line = {"id": number, "set": name, "what": what, **data, **row}
        with path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[part.key] = line


def finalists(log: Log) -> tuple[list[Candidate], Candidate, Candidate]:
    """The search's best by short trainings, random search's best of as many, the hand-made one.
    Raises `LogError` before there are any."""
    searched, drawn = log.trained(SEARCH), log.trained(RANDOM)
    count = min(len(searched), len(drawn))
    hand = [candidate for candidate in log.of(REFERENCE) if candidate.spec == HAND_MADE]
    if not count or not hand:
        raise LogError(f"{log.path}: no trainings of both arms yet; explore first")

    def ranked(found: list[Candidate]) -> list[Candidate]:
        return sorted(found[:count], key=lambda candidate: -candidate.merit)

    return ranked(searched)[:BEST], ranked(drawn)[0], hand[0]


def winner(log: Log, full: Full, own: str) -> Candidate | None:
    """Of the search's finalists, on the search's own set; None while one is missing."""
    best, _, _ = finalists(log)
    rows = [full.rows.get((candidate.id, own, OUT_OF_FOLD)) for candidate in best]
    worth = [merit(row["auroc"], c.ratio) for row, c in zip(rows, best, strict=True) if row]
    return best[int(np.argmax(worth))] if len(worth) == len(best) else None


def next_parts(log: Log, full: Full, own: DataSet, others: Sequence[DataSet]) -> list[Part]:
    """What can be trained now; empty when everything is done."""
    best, drawn, hand = finalists(log)
    whats = (OUT_OF_FOLD, FINAL)
    parts = [Part(c.id, own, what) for what in whats for c in (*best, drawn, hand)]
    if won := winner(log, full, own.name):
        parts += [Part(c.id, o, what) for o in others for c in (won, drawn, hand) for what in whats]
    missing = {part.key: part for part in parts if part.key not in full.rows}
    if not missing and won:
        timed = [Part(c.id, data, LATENCY) for data in (own, *others) for c in (won, drawn, hand)]
        return [part for part in timed if part.key not in full.rows][:1]
    return list(missing.values())


def train_finalists(
    out: Path,
    own: DataSet,
    others: Sequence[DataSet],
    deadline: float,
    workers: int,
    is_eager: bool = False,
    say: Callable[[str], object] = print,
) -> bool:
    """Train what is missing until `deadline` (`time.time()`); whether everything is done. Raises
    `DataError`, `LogError`."""
    log, full = Log.read(out), Full.read(out)
    names = [data.name for data in (own, *others)]
    if len(set(names)) < len(names):
        raise DataError(f"two sets of one name among {', '.join(names)}; rename a folder")
    for data in (own, *others):
        read_splits(data.folder, "test")
    specs = {candidate.id: candidate.spec for candidate in log.candidates}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    running: dict[Future[dict[str, Any] | None], Part] = {}
    with ProcessPoolExecutor(workers, context, begin_process) as pool:
        while time.time() < deadline:
            busy = {part.key for part in running.values()}
            for part in next_parts(log, full, own, others):
                if part.key not in busy and len(running) < workers:
                    job = pool.submit(_train, part, specs[part.id], device, deadline, is_eager)
                    running[job] = part
            if not running:
                return True
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for job in done:
                _keep(full, running.pop(job), job.result(), say)
        for job, part in running.items():
            _keep(full, part, job.result(), say)
    return not next_parts(log, full, own, others)


def _keep(full: Full, part: Part, row: dict[str, Any] | None, say: Callable[[str], object]) -> None:
    if row is not None:
        full.append(part, row)
        words = (
            f"AUROC {row['auroc']:.4f} out of fold" if "auroc" in row else "trained for the test"
        )
        say(f"{part.id} on {part.data.name}, {part.data.front_end}: {words}")


# In the worker processes

_loaded: dict[Path, tuple[Pictures, list[Sample]]] = {}


def _train(
    part: Part, spec: Spec, device: str, deadline: float, is_eager: bool
) -> dict[str, Any] | None:
    """The line but for its key; None if the deadline came first."""
    if part.what == LATENCY:
        front_end = part.data.front_end
        model, reference = (costs.export(build(each, front_end)) for each in (spec, HAND_MADE))
        taken = costs.latency(model, reference, _ROUNDS)
        return {"latency": {**asdict(taken), "processor": costs.processor()}}
    if part.data.folder not in _loaded:
        samples = read_folder(part.data.folder)
        pictures = Pictures.on(device, load_tiles(samples), labels_of(samples))
        _loaded[part.data.folder] = pictures, samples
    pictures, samples = _loaded[part.data.folder]
    tested = np.array([i for i, sample in enumerate(samples) if sample.split == "test"])
    known = np.array([i for i, sample in enumerate(samples) if sample.split != "test"])
    epochs = int(np.clip(round(_VISITS / math.sqrt(len(known))), *_EPOCHS))

    def build_one(seed: int) -> torch.nn.Module:
        return build(spec, part.data.front_end, seed)

    row: dict[str, Any] = {"data_sha256": data_sha256(samples), "epochs": epochs, "device": device}
    try:
        if part.what == FINAL:
            jobs = [Job(build_one(seed), known, tested, seed) for seed in SEEDS]
            marks, seconds = train_together(jobs, pictures, epochs, deadline, is_eager)
            return row | {"seconds": round(seconds, 2), "scores": [_short(m[-1]) for m in marks]}
        labels = labels_of(samples)[known]
        cuts = fold_cuts(labels, [samples[i].group for i in known], FOLDS_SEED, FOLDS)
        learned = Pictures(pictures.tiles[known], pictures.labels[known])
        marks, seconds = out_of_fold(
            build_one, learned, cuts, epochs, FOLDS_SEED, deadline, is_eager
        )
    except OutOfTime:
        return None
    scores = np.empty(len(known), np.float32)
    for cut, each in zip(cuts, marks, strict=True):
        scores[cut] = each[-1]
    area = round(mean_area(labels, cuts, marks), 5)
    return row | {"seconds": round(seconds, 2), "auroc": area, "out_of_fold": _short(scores)}


def _short(scores: NDArray[np.float32]) -> list[float]:
    return [round(float(score), 5) for score in scores]
