"""An exploration from the first candidate to the report, in one resumable go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.training.explore.full import DataSet, Full, train_finalists, winner
from models.training.explore.log import Candidate, Log, LogError
from models.training.explore.searching import Plan, explore
from models.training.explore.space import to_row
from models.training.front_end import FRONT_ENDS


@dataclass(frozen=True, slots=True)
class Whole:
    """Search, full trainings of the finalists, and for how long."""

    plan: Plan
    others: Sequence[DataSet]
    minutes: float


def run(whole: Whole, say: Callable[[str], object] = print) -> bool:
    """Go on where the folder's log ends; whether everything is trained. Raises `DataError`,
    `LogError`."""
    deadline = time.time() + whole.minutes * 60
    plan = whole.plan
    if not explore(plan, deadline, say):
        return False
    own = DataSet(plan.data, plan.front_end)
    return train_finalists(plan.out, own, whole.others, deadline, plan.workers, plan.is_eager, say)


def parse_other(text: str) -> DataSet:
    """`DIR=FRONT_END`. Raises ValueError."""
    folder, _, front_end = text.rpartition("=")
    if not folder or front_end not in FRONT_ENDS:
        raise ValueError(f"{text!r}: DIR=FRONT_END wanted, one of {', '.join(FRONT_ENDS)}")
    return DataSet(Path(folder), front_end)


def source_of(out: Path, number: int | None, name: str) -> str:
    """A candidate, the winner where none is named, as a Python file. Raises `LogError`."""
    from models.training.explore.emit import source

    log, candidate = _chosen(out, number)
    sizes = f"{candidate.row['parameters']:,} parameters, {candidate.row['mflops']:.1f} MFLOPs"
    title = f"Candidate {candidate.id} of a design exploration on {log.run['set']}: {sizes}."
    return source(candidate.spec, name, title, log.run["front_end"])


def spec_of(out: Path, number: int | None) -> str:
    """Its spec, JSON, to be trained by `vqi model train --network explored`. Raises `LogError`."""
    _, candidate = _chosen(out, number)
    return json.dumps(to_row(candidate.spec), indent=1) + "\n"


def _chosen(out: Path, number: int | None) -> tuple[Log, Candidate]:
    log = Log.read(out)
    if not log.run:
        raise LogError(f"{log.path}: no exploration there; begin one with --data and --out")
    if number is None:
        won = winner(log, Full.read(out), log.run["set"])
        if won is None:
            raise LogError(f"{out}: no winner yet; let the exploration end, or name a --candidate")
        number = won.id
    if number >= len(log.candidates):
        raise LogError(f"{log.path}: no candidate {number}; the last is {len(log.candidates) - 1}")
    candidate = log.candidates[number]
    if not candidate.is_admissible:
        broken = "; ".join(candidate.row["violations"].values())
        raise LogError(f"{log.path}: candidate {number} is no LightDefectNet: {broken}")
    return log, candidate
