"""Full trainings of the best: chosen by what they say out of fold, tested once on the split `test`.

Every network is trained alike: from nothing, as many epochs as `vqi model train` gives a set of its
size, three seeds. The winner is the one of the search's best three whose mean out-of-fold AUROC and
latency are worth most; random search enters its best by the short trainings, as many of them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.agreement import auroc
from models.training.data import DataError, data_sha256, labels_of, load_tiles, read_folder
from models.training.explore.fitting import (
    Job,
    OutOfTime,
    Pictures,
    fold_cuts,
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
    merit,
)
from models.training.explore.network import build
from models.training.explore.searching import begin_process
from models.training.explore.space import HAND_MADE, Spec

FULL_FILE = "full.jsonl"
SEEDS = (1, 2, 3)
BEST = 3
FOLDS = 4
FRONT_ENDS = ("contrast", "fine", "raw")
FINAL = "final"
_VISITS, _EPOCHS = 480.0, (6, 40)


@dataclass(frozen=True, slots=True)
class Part:
    """Some trainings of one network on one set: out of fold for a seed, or all finals."""

    id: int
    data: Path
    front_end: str
    what: int | str
    """A seed, or `FINAL`."""

    @property
    def key(self) -> tuple[object, ...]:
        return self.id, self.data.name, self.front_end, self.what


@dataclass(slots=True)
class Full:
    """The lines of the full trainings."""

    folder: Path
    rows: dict[tuple[object, ...], dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Full:
        """A last line that a kill cut short does not count."""
        path = folder / FULL_FILE
        rows: dict[tuple[object, ...], dict[str, Any]] = {}
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            row = json.loads(line)
            rows[row["id"], row["set"], row["front_end"], row["what"]] = row
        return cls(folder, rows)

    def append(self, part: Part, row: dict[str, Any]) -> None:
        number, name, front_end, what = part.key
        line = {"id": number, "set": name, "front_end": front_end, "what": what, **row}
        with (self.folder / FULL_FILE).open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[part.key] = line

    def auroc(self, number: int, name: str, front_end: str) -> float | None:
        """Out of fold, mean of the seeds; None while one is missing."""
        rows = [self.rows.get((number, name, front_end, seed)) for seed in SEEDS]
        return float(np.mean([row["auroc"] for row in rows if row])) if all(rows) else None

    def front_end(self, number: int, name: str) -> str | None:
        """The one that the first seed's folds chose; None while one is missing."""
        rows = {each: self.rows.get((number, name, each, SEEDS[0])) for each in FRONT_ENDS}
        found = {each: row["auroc"] for each, row in rows.items() if row}
        return max(found, key=lambda each: found[each]) if len(found) == len(rows) else None


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


def winner(log: Log, full: Full, name: str, front_end: str) -> Candidate | None:
    """Of the search's finalists, on the search's own set; None while one is missing."""
    best, _, _ = finalists(log)
    areas = {c.id: full.auroc(c.id, name, front_end) for c in best}
    if None in areas.values():
        return None
    return max(best, key=lambda c: merit(areas[c.id] or 0.0, c.ratio))


def next_parts(log: Log, full: Full, data: Path, others: Sequence[Path]) -> list[Part]:
    """What can be trained now; empty when everything is done."""
    front_end = log.run["front_end"]
    best, drawn, hand = finalists(log)
    parts = [
        Part(candidate.id, data, front_end, what)
        for candidate in (*best, drawn, hand)
        for what in (*SEEDS, FINAL)
    ]
    won = winner(log, full, data.name, front_end)
    for candidate in (won, drawn, hand) if won else ():
        for other in others:
            parts += [Part(candidate.id, other, each, SEEDS[0]) for each in FRONT_ENDS]
            chosen = full.front_end(candidate.id, other.name)
            if chosen:
                parts += [Part(candidate.id, other, chosen, what) for what in (*SEEDS[1:], FINAL)]
    return list({part.key: part for part in parts if part.key not in full.rows}.values())


def train_finalists(
    out: Path,
    data: Path,
    others: Sequence[Path],
    minutes: float,
    workers: int,
    is_eager: bool = False,
    say: Callable[[str], object] = print,
) -> bool:
    """Train what is missing; whether everything is done. Raises `DataError`, `LogError`."""
    deadline = time.time() + minutes * 60
    log, full = Log.read(out), Full.read(out)
    for folder in (data, *others):
        read_folder(folder)
    specs = {candidate.id: candidate.spec for candidate in log.candidates}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = multiprocessing.get_context("spawn")
    running: dict[Future[dict[str, Any] | None], Part] = {}
    with ProcessPoolExecutor(workers, context, begin_process) as pool:
        while time.time() < deadline:
            busy = {part.key for part in running.values()}
            for part in next_parts(log, full, data, others):
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
    return not next_parts(log, full, data, others)


def _keep(full: Full, part: Part, row: dict[str, Any] | None, say: Callable[[str], object]) -> None:
    if row is not None:
        full.append(part, row)
        words = f"AUROC {row['auroc']:.4f}" if "auroc" in row else "tested"
        say(f"{part.id} on {part.data.name}, {part.front_end}, {part.what}: {words}")


# In the worker processes

_loaded: dict[Path, tuple[Pictures, list[Any]]] = {}


def _train(
    part: Part, spec: Spec, device: str, deadline: float, is_eager: bool
) -> dict[str, Any] | None:
    if part.data not in _loaded:
        samples = read_folder(part.data)
        pictures = Pictures.on(device, load_tiles(samples), labels_of(samples))
        _loaded[part.data] = pictures, samples
    pictures, samples = _loaded[part.data]
    tested = np.array([i for i, sample in enumerate(samples) if sample.split == "test"])
    known = np.array([i for i, sample in enumerate(samples) if sample.split != "test"])
    epochs = int(np.clip(round(_VISITS / math.sqrt(len(known))), *_EPOCHS))

    def build_one(seed: int) -> torch.nn.Module:
        return build(spec, part.front_end, seed)

    learned = [samples[i] for i in known]
    row = {"data_sha256": data_sha256(samples), "epochs": epochs, "device": device}
    try:
        if part.what == FINAL:
            jobs = [Job(build_one(seed), known, tested, seed) for seed in SEEDS]
            scores, seconds = train_together(jobs, pictures, epochs, deadline, is_eager)
            return row | {"seconds": round(seconds, 2), "scores": [_short(s[-1]) for s in scores]}
        seed = int(part.what)
        groups = [sample.group for sample in learned]
        cuts = fold_cuts(labels_of(learned), groups, seed, FOLDS)
        own = Pictures(pictures.tiles[known], pictures.labels[known])
        scores, seconds = out_of_fold(build_one, own, cuts, epochs, seed, deadline, is_eager)
    except OutOfTime:
        return None
    labels = labels_of(learned)
    last = np.empty(len(known), np.float32)
    for cut, marks in zip(cuts, scores, strict=True):
        last[cut] = marks[-1]
    areas = [
        float(np.mean([_area(labels[cut], mark) for mark in marks]))
        for cut, marks in zip(cuts, scores, strict=True)
    ]
    area = round(float(np.mean(areas)), 5)
    return row | {"seconds": round(seconds, 2), "auroc": area, "out_of_fold": _short(last)}


def _area(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> float:
    return auroc(labels, scores) if np.isfinite(scores).all() else 0.5


def _short(scores: NDArray[np.float32]) -> list[float]:
    return [round(float(score), 5) for score in scores]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models.training.explore.full")
    parser.add_argument("--data", type=Path, required=True, help="the search's own set")
    parser.add_argument("--other", type=Path, action="append", default=[], help="for the winner")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exploration")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--eager", dest="is_eager", action="store_true", help="no CUDA graphs")
    given = parser.parse_args()

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    try:
        is_done = train_finalists(
            given.out, given.data, given.other, given.minutes, given.workers, given.is_eager, say
        )
    except (DataError, LogError) as error:
        say(str(error))
        return 1
    say("everything is trained" if is_done else "not done yet; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
