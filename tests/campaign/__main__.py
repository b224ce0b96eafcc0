"""The campaign's command line; see `docs/campaign.md`."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from own_machine import enter_own_mounts

from campaign import series
from campaign.broken import CONTROLS
from campaign.kinds import CORE, KINDS, Kind
from campaign.kinds_limits import remove_leftovers
from campaign.ledger import ROOT, Ledger, State, deaths, table

Json = dict[str, Any]
_OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Whatever ends the worker ends all that it started."""
_RUNS_IN_A_LIFE = 16
_LIFE_LIMIT_S = 600.0
_MAX_FRUITLESS = 6
"""Lives that brought no run at all, until the campaign gives up."""


class Campaign:
    """Gives lives to `stations` workers until every kind has its runs or the time is up."""

    def __init__(self, options: argparse.Namespace, kinds: list[Kind]) -> None:
        self._options, self._kinds = options, kinds
        self._state = State.now()
        self.ledger = Ledger(options.ledger, self._state)
        self._until = time.time() + 60 * (options.minutes or 1e6)
        self._planned: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._draw = random.Random(options.seed)
        self._lives = self._fruitless = 0
        self._workers: set[subprocess.Popen[bytes]] = set()

    def run_series(self) -> list[str]:
        """Lines of the wrong stations' table, if they were asked for."""
        options, seed = self._options, self._options.seed
        lines = []
        if options.controls is not None:
            wanted = options.controls.split(",")
            names = [name for name in CONTROLS if not options.controls or name in wanted]
            lines = series.controls(names, seed, self._live_once, self.ledger)
        if options.system_calls:
            series.system_calls(self.ledger, seed, options.calls)
        if options.power_cuts:
            series.power_cuts(self.ledger, options.power_cuts, seed, self._until)
        return lines

    def _live_once(self, order: Json) -> None:
        with series.scratch() as folder:
            first = KINDS[order["plan"][0][0]]
            self._live({**self._order(folder / "life", first, order["plan"]), **order})

    def run(self) -> None:
        with series.scratch() as folder:
            slots = [
                threading.Thread(target=self._slot, args=(folder,), daemon=True)
                for _ in range(self._options.stations)
            ]
            for slot in slots:
                slot.start()
            try:
                for slot in slots:
                    slot.join()
            finally:
                for process in list(self._workers):
                    process.kill()
                remove_leftovers()

    def _slot(self, folder: Path) -> None:
        while time.time() < self._until and self._fruitless < _MAX_FRUITLESS:
            order = self._next_order(folder)
            if order is None:
                return
            before = len(self.counting())
            self._live(order)
            shutil.rmtree(order["folder"], ignore_errors=True)
            with self._lock:
                for name, _ in order["plan"]:
                    self._planned[name] -= 1
                self._fruitless = 0 if len(self.counting()) > before else self._fruitless + 1
            self._say_progress()

    def _live(self, order: Json) -> None:
        paths = [str(ROOT), str(ROOT / "tests")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [*_OWN_PROCESSES, sys.executable, "-m", "campaign.worker", json.dumps(order)]
        process = subprocess.Popen(command, env=environment, cwd=ROOT)
        self._workers.add(process)
        try:
            process.wait(_LIFE_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            self._workers.discard(process)

    def counting(self) -> list[Json]:
        return [run for run in self.ledger.counting() if not run["broken"]]

    def _next_order(self, folder: Path) -> Json | None:
        """A life for the kinds that have the fewest runs; None once each has enough."""
        with self._lock:
            done = Counter(run["kind"] for run in self.counting()) + self._planned
            # What cannot be struck here (no control groups, no strace) is not tried for ever.
            runs, tries = self._options.runs, 2 * self._options.runs + 4
            waiting = [
                k for k in self._kinds if done[k.name] < runs and self._tries[k.name] < tries
            ]
            if not waiting:
                return None
            self._draw.shuffle(waiting)
            first = min(waiting, key=lambda kind: done[kind.name])
            family = [kind for kind in waiting if kind.family == first.family]
            plan = []
            while len(plan) < _RUNS_IN_A_LIFE and family:
                chosen = min(family, key=lambda kind: done[kind.name])
                plan.append((chosen.name, self._seed(chosen.name, done[chosen.name])))
                done[chosen.name] += 1
                self._planned[chosen.name] += 1
                self._tries[chosen.name] += 1
                family = [kind for kind in family if done[kind.name] < self._options.runs]
            self._lives += 1
            return self._order(folder / f"life-{self._lives}", first, plan)

    def _order(self, folder: Path, first: Kind, plan: list[tuple[str, int]]) -> Json:
        return {
            "folder": str(folder),
            "camera": first.camera,
            "plan": plan,
            "seed": self._seed("life", self._lives),
            "broken": None,
            "until": self._until,
            "ledger": str(self._options.ledger.resolve()),
            "commit": self._state.commit,
            "dirty": self._state.dirty,
            "stations": self._options.stations,
        }

    def _seed(self, name: str, number: int) -> int:
        return zlib.crc32(f"{self._options.seed}/{name}/{number}".encode())

    def _say_progress(self) -> None:
        runs = self.counting()
        bad = sum(bool(run["said"]) for run in runs)
        fewest = min((sum(r["kind"] == k.name for r in runs) for k in self._kinds), default=0)
        print(f"{len(runs)} runs, at least {fewest} of each kind, {bad} with findings", flush=True)


def choose(wanted: str) -> list[Kind]:
    """Kinds whose name contains one of the words; all for an empty text."""
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    exact = [KINDS[word] for word in words if word in KINDS]
    others = [word for word in words if word not in KINDS]
    found = [kind for kind in KINDS.values() if any(word in kind.name for word in others)]
    return list(KINDS.values()) if not words else [*exact, *found]


def report(runs: list[Json], kinds: list[Kind]) -> int:
    names = {kind.name for kind in kinds} | {"clean stop", series.POWER_CUT, series.SYSTEM_CALL}
    runs = [run for run in runs if run["kind"] in names]
    print(*table(runs), "", deaths(runs), sep="\n")
    bad = [run for run in runs if run["said"]]
    for run in bad:
        said = "; ".join(run["said"])
        print(f"WRONG: {run['kind']}, seed {run['seed']}: {said:.600}")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument(
        "--runs", type=int, help="of each kind, with those in the ledger; default 50"
    )
    parser.add_argument("--power-cuts", type=int, default=0, metavar="N")
    parser.add_argument(
        "--system-calls", action="store_true", help="of a commit, each killed in turn"
    )
    parser.add_argument("--calls", type=int, metavar="N", help="only N of them, spread over it")
    parser.add_argument(
        "--controls", nargs="?", const="", metavar="NAMES", help="wrong stations, each to be caught"
    )
    parser.add_argument("--minutes", type=float, help="begin no fault after that")
    parser.add_argument("--kinds", default="", help="names or parts of names, by commas")
    parser.add_argument("--core", action="store_true", help="one of each sort, the quick ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stations", type=int, default=3, help="at the same time")
    parser.add_argument("--ledger", type=Path, default=ROOT / "var/campaign/ledger.jsonl")
    parser.add_argument("--table", action="store_true", help="only print what the ledger holds")
    parser.add_argument("--list", action="store_true", help="only print the kinds")
    options = parser.parse_args()
    kinds = [KINDS[name] for name in CORE] if options.core else choose(options.kinds)
    if options.list:
        print(*sorted(kind.name for kind in kinds), sep="\n")
        return 0
    if options.runs is None:
        is_other = options.power_cuts or options.system_calls
        is_other = is_other or options.controls is not None
        options.runs = 0 if is_other else 50
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    enter_own_mounts()
    campaign = Campaign(options, kinds)
    lines = [] if options.table else campaign.run_series()
    if options.runs and not options.table:
        campaign.run()
    status = report(campaign.counting(), kinds)
    print(*lines, sep="\n")
    return 1 if any("MISSED" in line for line in lines) else status


if __name__ == "__main__":
    sys.exit(main())
