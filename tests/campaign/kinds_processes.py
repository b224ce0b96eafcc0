"""Deaths and hangs of each process, of single threads, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from random import Random

from station_rig import busy_workers, threads

from campaign.freeze import held
from campaign.kinds import KINDS, Kind, Strike, kind, now_ns
from campaign.life import Life, NotThere

PROCESSES = ("supervisor", "lamp", "journal", "station", "camera")
_HOLD_S = 2.6
"""Longer than any limit after which a hang must have been seen, but a process's watchdog."""
_REPLACED_S = 15.0
"""After it hangs the station's watchdog has acted."""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError as error:
        raise NotThere(f"process {pid} ended by itself") from error


def _strike_with(name: str, number: signal.Signals) -> Kind:
    def inject(life: Life, draw: Random) -> Strike:
        pid = life.pid(name)
        began_ns = now_ns()
        _signal(pid, number)
        if number is signal.SIGTERM:
            life.wait_gone({name: pid}, within_s=20.0)
        return Strike(began_ns, began_ns)

    word = {"SIGKILL": "kill -9", "SIGSEGV": "SIGSEGV", "SIGTERM": "SIGTERM"}[number.name]
    return Kind(f"{word} {name}", inject, is_death=True)


def _stop(name: str) -> Kind:
    def inject(life: Life, draw: Random) -> Strike:
        """Stopped until somebody kills it, or it is set free after `_HOLD_S`."""
        pid = life.pid(name)
        began_ns = now_ns()
        _signal(pid, signal.SIGSTOP)
        life.wait_gone({name: pid}, within_s=_HOLD_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return Strike(began_ns, now_ns())

    return Kind(f"SIGSTOP {name}", inject, is_death=True)


for _name in PROCESSES:
    for _made in (
        *(_strike_with(_name, n) for n in (signal.SIGKILL, signal.SIGTERM)),
        _stop(_name),
    ):
        KINDS[_made.name] = _made
for _name in PROCESSES[1:]:
    _made = _strike_with(_name, signal.SIGSEGV)
    KINDS[_made.name] = _made


@kind("kill -9 everything", is_death=True)
def kill_everything(life: Life, draw: Random) -> Strike:
    family = list(life.family().items())
    draw.shuffle(family)
    began_ns = now_ns()
    life.kill_all(dict(family))
    life.keep_running()
    return Strike(began_ns, began_ns)


@kind("kill -9 in the middle of a start", is_death=True, is_blind=True)
def kill_in_a_start(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    life.kill_all(life.family())
    life.start()
    time.sleep(draw.uniform(0.05, 1.5))
    life.kill_all(life.family())
    life.keep_running()
    return Strike(began_ns, now_ns())


@kind("two processes at once", is_death=True)
def two_at_once(life: Life, draw: Random) -> Strike:
    victims = draw.sample(PROCESSES[1:], 2)
    pids = [life.pid(name) for name in victims]
    began_ns = now_ns()
    for pid in pids:
        _signal(pid, draw.choice((signal.SIGKILL, signal.SIGSEGV)))
    return Strike(began_ns, began_ns, " and ".join(victims))


@kind("signal storm")
def signal_storm(life: Life, draw: Random) -> Strike:
    """Every call that can be interrupted is, in every process."""
    harmless = (signal.SIGWINCH, signal.SIGURG, signal.SIGCONT, signal.SIGCHLD)
    pids = list(life.family().values())
    began_ns = now_ns()
    for _ in range(2000):
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), draw.choice(harmless))
    return Strike(began_ns, now_ns())


# --- threads --------------------------------------------------------------------------------------


def _freeze(name: str, part: str) -> Kind:
    def inject(life: Life, draw: Random) -> Strike:
        pid = life.pid(name)
        workers = [tid for tid in threads(pid) if tid != pid]
        if part == "worker" and not workers:
            raise NotThere(f"the {name} process has one thread")
        return hold(pid if part == "main thread" else draw.choice(workers), pid, life, _HOLD_S)

    # It may be the one that makes the frames.
    is_like_a_stop = (name, part) == ("camera", "worker")
    title = f"deadlock: {name}'s {part}"
    return Kind(title, inject, is_death=True, is_like_a_stop=is_like_a_stop)


def hold(tid: int, pid: int, life: Life, within_s: float) -> Strike:
    """Freeze a thread until its process is killed, or for so long."""
    try:
        with held(tid, within_s) as began_ns:
            life.wait_gone({"held": pid}, within_s)
    except OSError as error:
        raise NotThere(str(error)) from error
    return Strike(began_ns, now_ns())


for _name in ("station", "journal", "camera", "lamp"):
    for _part in ("main thread", "worker"):
        _made = _freeze(_name, _part)
        KINDS[_made.name] = _made


@kind("deadlock: a busy worker of the station until it is replaced", is_death=True)
def hold_until_replaced(life: Life, draw: Random) -> Strike:
    """An inspect thread, which the other one lets every tick past, or the acquire thread."""
    pid = life.pid("station")
    return hold(draw.choice(busy_workers(pid)), pid, life, _REPLACED_S)
