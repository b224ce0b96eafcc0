"""`python -m models.training.explore`: `vqi model explore` without the station's packages, for a
machine with an accelerator."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from models.training.data import DataError
from models.training.explore.log import LogError
from models.training.explore.searching import Plan
from models.training.explore.whole import Whole, parse_other, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models.training.explore")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--other", type=parse_other, action="append", default=[])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--front-end", default="fine")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trainings", type=int, default=32, help="of each arm")
    parser.add_argument("--candidates", type=int, default=200, help="timed and scored at least")
    parser.add_argument("--eager", dest="is_eager", action="store_true", help="no CUDA graphs")
    given = vars(parser.parse_args())
    others, minutes = given.pop("other"), given.pop("minutes")
    try:
        is_done = run(Whole(Plan(**given), others, minutes), _say)
    except (DataError, LogError) as error:
        _say(str(error))
        return 1
    _say("everything is trained" if is_done else "not done yet; the same command goes on")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
