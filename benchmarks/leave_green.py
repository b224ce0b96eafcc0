"""How soon the light leaves green after any death or hang, and how soon the station is back.

    python benchmarks/leave_green.py [--runs 500] [--seed 1] [--minutes M] [--json]

A whole station: the GenTL simulator in C as another vendor's camera, signed, so that its plates
show the production pass; a serial tower on a pseudo-terminal that writes down each byte and its
time. At a random time while green shows, a process is struck; the time until the byte that leaves
green is what counts. Several strikes go into one living station. A run that was started again
begins where the ledger (`--ledger`, JSON lines) ends: runs count as long as nothing of the program
has changed since. Firm: 2 s in every run, and a station that is back within 60 s; exit status 1
where one took longer, or where fewer than --runs are there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from campaign.kinds_limits import group
from campaign.ledger import ROOT, Ledger, State
from producer_rig import SignedLine
from pty_recorder import PtyRecorder, adafruit_elements
from station_rig import children, wait_until

LIMIT_S = 2.0
PATIENCE_S = 10.0
BACK_LIMIT_S = 60.0
GAP_MM = 600.0
"""At 400 mm/s: a pass shows for 1.5 s, longer than its lease."""
LONGEST_WAIT_S = 0.4
"""From green to the strike: the lease ends before the next leading edge would end the pass."""
GREEN = {"green": "on"}
FREEZE = ROOT / "tests/campaign/freeze.py"

Pids = dict[str, int]


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Kind:
    """Which processes are struck, and how; leaving what `strike` gives ends the fault."""

    victims: tuple[str, ...]
    strike: Callable[[int], contextlib.AbstractContextManager[object]]


def _signal(number: signal.Signals) -> Callable[[int], contextlib.AbstractContextManager[object]]:
    def strike(pid: int) -> contextlib.AbstractContextManager[object]:
        os.kill(pid, number)
        return _nothing() if number is not signal.SIGSTOP else _continued(pid)

    return strike


@contextlib.contextmanager
def _continued(pid: int) -> Iterator[None]:
    yield
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _without_memory(pid: int) -> Iterator[None]:
    """The kernel kills it for memory at its next need of any."""
    with group("memory", [pid]) as own:
        (own / "memory.limit_in_bytes").write_text("64K")
        wait_until(lambda: _is_gone(pid), 5.0, "kill for memory")
        yield


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@contextlib.contextmanager
def _deadlocked(pid: int) -> Iterator[None]:
    """The main thread stands still, as in a deadlock; all others go on."""
    command = [sys.executable, str(FREEZE), str(pid), str(PATIENCE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.kill()


KILL, STOP, CRASH = map(_signal, (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV))
NAMES = ("lamp", "journal", "station", "camera")
EVERYTHING = ("supervisor", *NAMES)
KINDS = {
    **{f"{name} killed": Kind((name,), KILL) for name in NAMES},
    **{f"{name} stopped": Kind((name,), STOP) for name in NAMES},
    **{f"{name} crashed": Kind((name,), CRASH) for name in ("lamp", "station")},
    "station out of memory": Kind(("station",), _without_memory),
    "station deadlocked": Kind(("station",), _deadlocked),
    "supervisor killed": Kind(("supervisor",), KILL),
    "everything killed": Kind(EVERYTHING, KILL),
}


class Tower:
    """What the tower shows, and when it changed."""

    def __init__(self, recorder: PtyRecorder) -> None:
        self._recorder = recorder
        self._read = 0
        self._data = b""
        self.changes: list[tuple[int, bool]] = []
        """When, and whether it is green from then on."""

    def look(self) -> bool:
        """Whether it is green now."""
        records = self._recorder.records
        while self._read < len(records):
            at_ns, part = records[self._read]
            self._read += 1
            for byte in part:
                self._data = (self._data + bytes([byte]))[-64:]
                self._note(at_ns, adafruit_elements(self._data).get("green") == "on")
        return bool(self.changes) and self.changes[-1][1]

    def _note(self, at_ns: int, is_green: bool) -> None:
        if not self.changes or self.changes[-1][1] is not is_green:
            self.changes.append((at_ns, is_green))

    def left_green_ns(self, after_ns: int) -> int | None:
        """When it was first not green after `after_ns`, at which it was."""
        self.look()
        return next((at for at, green in self.changes if at > after_ns and not green), None)


@dataclass
class Line:
    """A living station under fire."""

    folder: Path
    tower: Tower
    line: SignedLine
    run: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        if self.run is None or self.run.poll() is not None:
            command = [sys.executable, "-P", "-m", "station.cli", "run", "--config"]
            self.run = subprocess.Popen(
                [*command, self.line.config],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def pids(self) -> Pids:
        assert self.run is not None
        return children(self.run.pid) | {"supervisor": self.run.pid}

    def wait_for_green(self) -> None:
        """A new pass, all processes being there."""
        wait_until(lambda: self.line.rig.status().get("ready") is True, 60.0, "READY")
        wait_until(lambda: not self.tower.look(), 15.0, "the end of a pass")
        wait_until(self.tower.look, 15.0, "a pass")

    def suffer(self, kind: Kind, pause_s: float) -> tuple[float | None, float | None]:
        """Seconds until green was left, and until the station was back; None: it never was."""
        pids: Pids = {}
        while not self.tower.look() or set(EVERYTHING) - pids.keys():
            self.wait_for_green()
            pids = self.pids()
            time.sleep(pause_s)
        struck_ns = time.monotonic_ns()
        with contextlib.ExitStack() as faults:
            for name in kind.victims:
                faults.enter_context(kind.strike(pids[name]))
            if "supervisor" in kind.victims:
                # What a service manager does.
                assert self.run is not None
                self.run.wait()
                self.start()
            left_ns = self._left(struck_ns)
        back_s = self._back_s(struck_ns)
        return (None if left_ns is None else (left_ns - struck_ns) / 1e9), back_s

    def _back_s(self, struck_ns: int) -> float | None:
        deadline = time.monotonic() + BACK_LIMIT_S
        while not self.is_back(struck_ns):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        return (time.monotonic_ns() - struck_ns) / 1e9

    def is_back(self, after_ns: int) -> bool:
        status = self.line.rig.status()
        age_s = status.get("tick_age_s")
        is_new = age_s is not None and time.monotonic_ns() - age_s * 1e9 > after_ns
        return is_new and status["state"] == "OPERATIONAL"

    def _left(self, struck_ns: int) -> int | None:
        deadline = time.monotonic() + PATIENCE_S
        while (left_ns := self.tower.left_green_ns(struck_ns)) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
        return left_ns


@contextlib.contextmanager
def living_station() -> Iterator[Line]:
    with tempfile.TemporaryDirectory(prefix="leave-green-") as name:
        folder = Path(name) / "line"
        folder.mkdir()
        with PtyRecorder(folder / "tower") as recorder:
            line = Line(
                folder,
                Tower(recorder),
                SignedLine(
                    folder,
                    {"ChunkModeActive": True},
                    {"gap_mm": GAP_MM, "contrast_scale": 3.0, "defective_share": 0.0},
                    light={"type": "serial_tower", "port": str(folder / "tower")},
                ),
            )
            line.start()
            try:
                yield line
            finally:
                assert line.run is not None
                line.run.terminate()
                line.run.wait(30.0)


def inflict(
    runs: int, seed: int, minutes: float, ledger: Ledger, say: Callable[[str], None]
) -> None:
    """Strike until the ledger counts `runs`, all kinds alike, or the time is up."""
    done = len(ledger.counting())
    deadline = time.monotonic() + minutes * 60
    with living_station() as line:
        line.wait_for_green()
        for number in itertools.count(done):
            if number >= runs or time.monotonic() > deadline:
                return
            draw = random.Random(f"{seed} {number}")
            name = list(KINDS)[number % len(KINDS)]
            left_s, back_s = line.suffer(KINDS[name], draw.uniform(0, LONGEST_WAIT_S))
            ledger.add({"seed": seed, "kind": name, "left_s": left_s, "back_s": back_s})
            say(f"{number + 1}/{runs} {name}: {left_s} s, back after {back_s} s")


def _share(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one kind."""
    left = [run["left_s"] if run["left_s"] is not None else PATIENCE_S for run in runs]
    back = [run["back_s"] if run["back_s"] is not None else BACK_LIMIT_S for run in runs]
    return {
        "kind": name,
        "runs": len(runs),
        "p50_s": round(_share(left, 0.5), 3),
        "p99_s": round(_share(left, 0.99), 3),
        "max_s": round(max(left), 3),
        "within_2_s": sum(value <= LIMIT_S for value in left) / len(left),
        "back_p50_s": round(_share(back, 0.5), 2),
        "back_max_s": round(max(back), 2),
        "never_back": sum(run["back_s"] is None for run in runs),
    }


def figures(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = [name for name in KINDS if any(run["kind"] == name for run in runs)]
    rows = [row(name, [run for run in runs if run["kind"] == name]) for name in kinds]
    return [*rows, row("all kinds", runs)] if runs else []


def is_proven(rows: list[dict[str, Any]], wanted: int) -> bool:
    """Of as many runs as were wanted, none was late and none was the station's last."""
    if not rows or rows[-1]["runs"] < wanted:
        return False
    return all(found["within_2_s"] == 1.0 and found["never_back"] == 0 for found in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=500, help="with those in the ledger")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="end after so long")
    parser.add_argument("--ledger", type=Path, default=ROOT / "var/leave-green.jsonl")
    parser.add_argument("--json", action="store_true", dest="is_json")
    options = parser.parse_args()
    # Told to end, it ends its station too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ledger = Ledger(options.ledger, State.now())
    if len(ledger.counting()) < options.runs:
        inflict(
            options.runs,
            options.seed,
            options.minutes,
            ledger,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    rows = figures(ledger.counting())
    for found in rows:
        print(json.dumps(found) if options.is_json else "  ".join(map(str, found.values())))
    return 0 if is_proven(rows, options.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
