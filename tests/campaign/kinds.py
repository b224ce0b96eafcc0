"""A kind of fault, and the register of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from campaign.life import Life, NotThere


@dataclass(frozen=True)
class Strike:
    """What was done, and when (CLOCK_MONOTONIC)."""

    began_ns: int
    ended_ns: int
    note: str = ""
    problems: tuple[str, ...] = ()
    """What the fault itself saw that must not be, beside the observer's findings."""
    check: Callable[[dict[int, str]], list[str]] = lambda verdicts: []
    """What is wrong with the verdicts of plates, by their number, once all is over."""


@dataclass(frozen=True)
class Kind:
    """`inject` strikes a living station and returns once the cause is gone again; whatever is to be
    restarted, `vqi run` or its starter do."""

    name: str
    inject: Callable[[Life, Random], Strike]
    is_blind: bool = False
    """No byte reaches the tower meanwhile: green is judged from the end on."""
    is_death: bool = False
    """A process dies or hangs: counts for the time in which the lamp leaves green."""
    camera: str = "producer"
    is_like_a_stop: bool = False
    """No frame comes and nothing else is wrong. Where an encoder triggers the scan lines, a belt
    that stands still looks so: it is struck where the camera runs free."""

    @property
    def family(self) -> str:
        """Kinds of one family can follow one another in one life."""
        return self.camera

    @property
    def chooses_its_moment(self) -> bool:
        """True if the engine has to wait for nothing."""
        return False


KINDS: dict[str, Kind] = {}


def kind(name: str, **how: bool) -> Callable[[Callable[[Life, Random], Strike]], Kind]:
    def register(inject: Callable[[Life, Random], Strike]) -> Kind:
        KINDS[name] = made = Kind(name, inject, **how)  # type: ignore[arg-type]
        return made

    return register


__all__ = ["KINDS", "Kind", "NotThere", "Strike", "kind", "now_ns"]


def now_ns() -> int:
    return time.monotonic_ns()


from campaign import kinds_camera as _camera  # noqa: E402, F401
from campaign import kinds_limits as _limits  # noqa: E402, F401
from campaign import kinds_processes as _processes  # noqa: E402, F401
from campaign import kinds_restarts as _restarts  # noqa: E402, F401
from campaign import kinds_storage as _storage  # noqa: E402, F401
from campaign import kinds_wires as _wires  # noqa: E402, F401

CORE = (
    *("kill -9 supervisor", "kill -9 lamp", "kill -9 journal", "kill -9 station", "kill -9 camera"),
    *("kill -9 everything", "two processes at once", "SIGSEGV journal", "SIGTERM station"),
    *("SIGSTOP lamp", "SIGSTOP journal", "SIGSTOP station", "SIGSTOP camera"),
    *("deadlock: station's main thread", "deadlock: station's worker"),
    *("deadlock: journal's main thread", "deadlock: camera's worker"),
    *("fsync says EIO", "write says EIO", "write says ENOSPC", "slow fsync", "disk full"),
    *("picture folder read-only", "power cut below the station", "WAL pinned by a reader"),
    *("database locked by another tool", "garbage behind the WAL", "model: bits flipped"),
    *("tower: nobody reads the wire", "tower: the wire loses bytes"),
    *("tower: unplugged and the lamp process dies", "I/O module does not answer"),
    *("I/O module reads back the opposite", "nonsense on every socket"),
    *("out of memory: station", "process table full while one dies", "processor time withheld"),
    *("everything pauses", "wall clock steps and a process dies"),
    *("producer: frame lost", "producer: frame incomplete", "producer: frame short and unmarked"),
    *("producer: camera gone and back", "simulated: black frame", "simulated: pixels repeated"),
    *("simulated: half as wide", "simulated: camera stalls", "simulated: Mono12 for Mono8"),
)
"""One of each sort, and none that takes long: for when time is short."""
