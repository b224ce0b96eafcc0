"""Every system call of one commit, each killed in turn.

A plate is handed to a warm journal process: its leading edge, its result with two pictures, its
lamp command. Once that is traced; then it is done again for every call that was seen, in the main
thread and in the threads that make the pictures, with SIGKILL at that call's entry. After each a
successor must have every acknowledged row, no row without its pictures, and take the others once.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from campaign.life import Life, is_alive
from campaign.power import JournalRig
from station.ipc import PeerGone
from station.record import Body

_CALL = re.compile(r"^(?:\[pid +)?(\d+)?\]? *([a-z_0-9]+)\(")
_ATTACH_S, _ANSWER_S = 3.0, 4.0
_WORKERS, _MAIN = "pictures", "main"
_TRIES = 3
"""Of a call that was not made: timing decides, for example, who is woken by whom."""


@dataclass
class Calls:
    """What a series of kills came to."""

    planned: int = 0
    killed: int = 0
    not_reached: list[str] = field(default_factory=list)
    """Calls that were not made in any of the tries."""
    names: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def kill_each(
    folder: Path,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
    limit: int | None = None,
) -> Calls:
    """`limit`: only so many calls, spread over the commit."""
    journal = JournalRig(folder, seed)
    try:
        journal.start()
        _warm(journal)
        points = _points(journal, folder / "trace")
        if limit is not None:
            points = points[:: max(1, -(-len(points) // limit))]
        found = Calls(planned=len(points))
        for _ in range(_TRIES):
            points = [point for point in points if not _kill_at(journal, point, found)]
            say(f"{found.killed} of {found.planned} calls")
        found.not_reached = list(map(str, points))
        found.problems += [*journal.log.forgotten(), *journal.log.broken]
        return found
    finally:
        journal.close()


@dataclass(frozen=True)
class _Point:
    """The n-th time that a thread of a role makes a call."""

    role: str
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.role}: {self.call} no. {self.number}"


def _points(journal: JournalRig, trace: Path) -> list[_Point]:
    """Every call that one plate makes, by a role's busiest thread."""
    points = []
    for role in (_MAIN, _WORKERS):
        with _traced(_threads(journal.pid, role), ["-o", str(trace)]):
            _one_plate(journal)
        counts: Counter[tuple[str, str]] = Counter()
        for line in trace.read_text().splitlines():
            found = _CALL.match(line)
            if found:
                counts[found[1] or "", found[2]] += 1
        most: Counter[str] = Counter()
        for (_, call), count in counts.items():
            most[call] = max(most[call], count)
        points += [_Point(role, call, n) for call in most for n in range(1, most[call] + 1)]
    return points


def _threads(pid: int, role: str) -> list[int]:
    tids = sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    return [pid] if role == _MAIN else [tid for tid in tids if tid != pid]


@contextlib.contextmanager
def _traced(tids: list[int], options: list[str]) -> Iterator[None]:
    """`strace` on these threads alone."""
    pids = [word for tid in tids for word in ("-p", str(tid))]
    tracer = subprocess.Popen(
        ["strace", "-qq", *options, *pids], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _ATTACH_S
        while not all(_is_traced(tid) for tid in tids) and time.monotonic() < deadline:
            time.sleep(0.005)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(0.5)
        tracer.kill()
        tracer.wait()


def _is_traced(tid: int) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{tid}/status").read_text()
    except OSError:
        return True  # it is gone


def _one_plate(journal: JournalRig) -> list[Body]:
    """Hand over a plate and wait for the answers, or the process's death."""
    rows = journal.submitter.next_plate()
    deadline = time.monotonic() + _ANSWER_S
    with contextlib.suppress(PeerGone):
        for row in rows:
            journal.submitter.send(row)
        while journal.submitter.waiting and time.monotonic() < deadline:
            journal.submitter.take_answers()
            time.sleep(0.001)
    return rows


def _warm(journal: JournalRig) -> None:
    """Threads are made, caches are filled, the WAL is there."""
    for _ in range(4):
        _one_plate(journal)


def _kill_at(journal: JournalRig, point: _Point, found: Calls) -> bool:
    """False if the call was not made."""
    submitter = journal.submitter
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    options = ["-o", "/dev/null", "-e", f"trace={point.call}", "-e", inject]
    with _traced(_threads(journal.pid, point.role), options):
        rows = _one_plate(journal)
    Life.wait_gone({"journal": journal.pid}, within_s=0.05)
    is_reached = not is_alive(journal.pid)
    if is_reached:
        found.killed += 1
        found.names.add(point.call)
        submitter.close()
        journal.start()
        _warm(journal)
    _check(journal, point, rows, found)
    return is_reached


def _check(journal: JournalRig, point: _Point, rows: list[Body], found: Calls) -> None:
    """Acknowledged rows are there; the rest is taken when it is sent again, and once."""
    journal.look()
    problems = journal.missing(journal.submitter.acknowledged)
    journal.submitter.acknowledged.clear()
    for row in rows:
        journal.submitter.send(row)
    deadline = time.monotonic() + _ANSWER_S
    while journal.submitter.waiting and time.monotonic() < deadline:
        journal.submitter.take_answers()
        time.sleep(0.001)
    _, dangling, twice = journal.look()
    problems += [*journal.missing(journal.submitter.acknowledged), *dangling, *twice]
    if journal.submitter.waiting:
        problems.append("what was not acknowledged is not taken again")
    if len(journal.submitter.acknowledged) != 1:
        problems.append(f"sent again, {journal.submitter.acknowledged} was acknowledged")
    journal.submitter.acknowledged.clear()
    found.problems += [f"{point}: {problem}" for problem in problems]
