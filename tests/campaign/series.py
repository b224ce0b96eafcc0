"""What is not one fault in one living station: power cuts, killed system calls, wrong stations."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaign import power, syscalls
from campaign.broken import CONTROLS
from campaign.ledger import Ledger

Json = dict[str, Any]
Live = Callable[[Json], None]
_CUTS_IN_A_PIECE = 100
CONTROL_RUNS = 50
POWER_CUT, SYSTEM_CALL = "power cut, WAL reused", "system call of a commit killed"


@contextmanager
def scratch() -> Iterator[Path]:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="vqi-campaign-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    print(text, flush=True)


def power_cuts(ledger: Ledger, wanted: int, seed: int, until: float) -> None:
    """As many as are still lacking in the ledger, in pieces on fresh disks."""
    while time.time() < until:
        done = count(ledger.counting(), POWER_CUT)
        if done >= wanted:
            return
        piece_seed = seed * 1000 + done
        with scratch() as folder:
            cuts = min(_CUTS_IN_A_PIECE, wanted - done)
            found = power.cut_again_and_again(folder, cuts, piece_seed, say=say, until=until)
        if not found.cuts:
            return
        ledger.add(_cuts_run(found, piece_seed))


def _cuts_run(found: power.Cuts, seed: int) -> Json:
    counts = {
        "lost": len(found.lost),
        "dangling": len(found.dangling),
        "duplicated": len(found.duplicated),
    }
    return {
        "kind": POWER_CUT,
        "seed": seed,
        "runs": found.cuts,
        "acknowledged": found.acknowledged,
        "findings": counts,
        "leave_green_s": None,
        "recovery_s": found.worst_recovery_s,
        "said": [*found.lost, *found.dangling, *found.duplicated],
        "broken": None,
    }


def system_calls(ledger: Ledger, seed: int, limit: int | None = None) -> None:
    """All of them once; a run of some of them is no run of all."""
    done = [run for run in ledger.counting() if run["kind"] == SYSTEM_CALL]
    if any(run["limit"] is None for run in done):
        return
    with scratch() as folder:
        found = syscalls.kill_each(folder, seed, say, limit)
    say(f"{found.killed} of {found.planned} calls of a commit killed in turn")
    say(f"calls: {', '.join(sorted(found.names))}")
    say(f"not made again: {', '.join(found.not_reached) or 'none'}")
    ledger.add(
        {
            "kind": SYSTEM_CALL,
            "seed": seed,
            "runs": found.killed,
            "planned": found.planned,
            "limit": limit,
            "not_reached": found.not_reached,
            "findings": {"lost": len(found.problems)},
            "leave_green_s": None,
            "recovery_s": None,
            "said": found.problems,
            "broken": None,
        }
    )


def controls(names: list[str], seed: int, live: Live, ledger: Ledger) -> list[str]:
    """Run each wrong station until it is caught. Lines of its table; a missed one says so."""
    lines = ["| wrong station | caught by | after runs | what was said |", "|---|---|---|---|"]
    for name in names:
        control = CONTROLS[name]
        caught = _by_faults(name, seed, live, ledger) if control.kinds else _by_cuts(name, seed)
        lines.append(f"| {name} | {' | '.join(map(str, caught))} |")
        say(lines[-1])
    return lines


def _by_cuts(name: str, seed: int) -> tuple[str, int, str]:
    finding = CONTROLS[name].finding
    with scratch() as folder:
        found = power.cut_again_and_again(folder, CONTROL_RUNS, seed, broken=name, stop_at=finding)
    said = found.of(finding)
    return ("power cut" if said else "MISSED", found.cuts, said[0] if said else "")


def _by_faults(name: str, seed: int, live: Live, ledger: Ledger) -> tuple[str, int, str]:
    kinds, finding = CONTROLS[name].kinds, CONTROLS[name].finding
    runs: list[Json] = []
    number = 0
    while len(runs) < CONTROL_RUNS and number < 12:
        plan = [(kind, seed * 1000 + 10 * number + i) for i, kind in enumerate(kinds)]
        live({"plan": plan, "broken": name, "seed": seed * 1000 + number})
        runs = [run for run in ledger.counting() if run["broken"] == name and run["seed"] >= 0]
        for place, run in enumerate(runs, 1):
            # Whatever else is said of it, for what it gets wrong it is caught or not at all.
            if run["findings"].get(finding, 0) > 0:
                said = next(text for text in run["said"] if text.startswith(f"{finding}: "))
                return run["kind"], place, said
        number += 1
    return "MISSED", len(runs), ""


def count(runs: list[Json], kind: str) -> int:
    return sum(run.get("runs", 1) for run in runs if run["kind"] == kind)
