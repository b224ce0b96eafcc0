"""`python -m models.training.explore`: the exploration without the rest of the project's packages,
for a machine with an accelerator."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from models.training.data import DataError
from models.training.explore.log import LogError
from models.training.explore.searching import Plan, explore


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models.training.explore")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--front-end", default="fine")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trainings", type=int, default=16, help="of each arm")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--eager", dest="is_eager", action="store_true", help="no CUDA graphs")
    plan = Plan(**vars(parser.parse_args()))
    try:
        explore(plan, _say)
    except (DataError, LogError) as error:
        _say(str(error))
        return 1
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
