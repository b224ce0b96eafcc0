"""An exploration from the first candidate to the report, in one resumable go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.training.explore.full import DataSet, train_finalists
from models.training.explore.searching import Plan, explore


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
    from pathlib import Path

    from models.training.front_end import FRONT_ENDS

    folder, _, front_end = text.rpartition("=")
    if not folder or front_end not in FRONT_ENDS:
        raise ValueError(f"{text!r}: DIR=FRONT_END wanted, one of {', '.join(FRONT_ENDS)}")
    return DataSet(Path(folder), front_end)
