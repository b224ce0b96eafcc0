"""Deliberately wrong stations. A campaign that does not catch each of them proves nothing.

`python -m campaign.broken NAME run …` is `vqi run …` with that mistake in every process. Nothing of
this is in the product: the mistake is put into a loaded program, here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Control:
    """`finding`: what it must be caught with, by its name among the observer's findings. `kinds`:
    the faults that must catch it; none: power cuts must."""

    break_it: Callable[[], None]
    finding: str
    kinds: tuple[str, ...] = ()


CONTROLS: dict[str, Control] = {}


def control(
    name: str, finding: str, *kinds: str
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(break_it: Callable[[], None]) -> Callable[[], None]:
        CONTROLS[name] = Control(break_it, finding, kinds)
        return break_it

    return register


# --- of the log -----------------------------------------------------------------------------------


@control("row before image", "dangling")
def row_before_image() -> None:
    """The row is committed; its pictures get their names with the next."""
    from station.images import ImageFolder
    from station.journal import _Journal

    append, make_durable = _Journal._append, ImageFolder.make_durable
    waiting: list[Any] = []

    def later(self: ImageFolder, written: Any) -> None:
        waiting.append((self, written))

    def first(self: _Journal, items: Any) -> None:
        before, waiting[:-1] = waiting[:-1], []
        append(self, items)
        for folder, written in before:
            make_durable(folder, written)

    ImageFolder.make_durable = later  # type: ignore[method-assign]
    _Journal._append = first  # type: ignore[method-assign]


@control("no fsync of pictures", "dangling")
def no_fsync() -> None:
    from station import images

    def write(path: str, data: Any) -> None:
        with Path(path).open("wb") as file:
            file.writelines(data)

    images._write_durably = write


@control("no fsync of the folder", "dangling")
def no_folder_fsync() -> None:
    from station import images

    images.sync = lambda path: None  # type: ignore[attr-defined]


@control("synchronous = NORMAL", "lost")
def synchronous_normal() -> None:
    from station.qms import Store

    init = Store.__init__

    def relaxed(self: Store, directory: Path) -> None:
        init(self, directory)
        self._connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        self._connection.rollback()

    Store.__init__ = relaxed  # type: ignore[method-assign]


@control("acknowledged before the commit", "lost")
def acknowledged_first() -> None:
    """The commit comes with the next rows."""
    from station.journal import _Journal

    append, acknowledge = _Journal._append, _Journal._acknowledge
    held: list[Any] = []

    def eager(self: _Journal, items: Any) -> None:
        for item in items:
            acknowledge(self, item, [0 for _ in item.rows], time.monotonic_ns())
        held.append(items)
        while len(held) > 1:
            append(self, held.pop(0))

    _Journal._acknowledge = lambda *arguments: None  # type: ignore[method-assign]
    _Journal._append = eager  # type: ignore[method-assign]


@control(
    *("start writes no interrupted", "unrecorded"),
    *("kill -9 station", "kill -9 everything", "kill -9 supervisor"),
)
def no_interrupted() -> None:
    """What the last life left on the belt is forgotten."""
    from station.pipeline import Station

    say_start = Station._say_start

    def forgetful(self: Station, hello: Any, taken_up: Any, tested: Any) -> None:
        say_start(self, {**hello, "open_plates": []}, taken_up, tested)

    Station._say_start = forgetful  # type: ignore[method-assign]


# --- of the light ---------------------------------------------------------------------------------

_HANGS = ("SIGSTOP station", "SIGSTOP camera", "SIGSTOP journal", "deadlock: station's main thread")


@control("lamp without a lease", "false_greens", *_HANGS)
def no_lease() -> None:
    """What was commanded stays until something else is."""
    from drivers.stacklight import LightState
    from station.lease import LightLease, Write

    due = LightLease.due

    def never(self: LightLease, now_ns: int) -> Write | None:
        write = self.shown.write if self.shown else None
        if write is not None and write.lease is not None:
            return due(self, now_ns) if write.state is LightState.LAMP_TEST else None
        return due(self, now_ns)

    LightLease.due = never  # type: ignore[method-assign]


@control("watchdog fed by a timer", "false_greens", *_HANGS)
def timer_watchdog() -> None:
    """A thread of its own feeds the watchdog and repeats the last command, whatever hangs."""
    from station.lamp import LampClient
    from station.pipeline import Station
    from station.systemd import notify

    send = LampClient.send_show
    last: list[Any] = []

    def remember(
        self: LampClient, state: Any, result_id: str, provenance: Any, lease_s: float
    ) -> int:
        last[:] = [self, state, result_id, provenance, lease_s]
        return send(self, state, result_id, provenance, lease_s)

    def repeat() -> None:
        while True:
            time.sleep(0.25)
            notify("WATCHDOG=1")
            if last:
                try:
                    send(*last)
                except OSError:
                    continue

    LampClient.send_show = remember  # type: ignore[method-assign]
    Station._check_liveness = lambda self: None  # type: ignore[method-assign]
    threading.Thread(target=repeat, daemon=True).start()


@control(
    *("reject keyed to FAIL", "wrong_rejects"),
    *("producer: frame incomplete", "producer: frame lost"),
)
def reject_keyed_to_fail() -> None:
    """Whatever is not FAIL goes through, also what nobody saw."""
    from dataclasses import replace

    from station.belt_register import BeltRegister
    from station.outputs import Accept
    from station.record import Verdict

    tell = Accept.result

    def careless(self: Accept, result: Any, now_ns: int) -> None:
        if result.verdict is not Verdict.FAIL:
            result = replace(result, verdict=Verdict.PASS)
        tell(self, result, now_ns)

    Accept.result = careless  # type: ignore[method-assign]
    BeltRegister.miss = lambda *_: None  # type: ignore[method-assign]


_FAR = 1e9
"""Scan lines."""


@control(
    *("accept ignores the next plate", "wrong_rejects"),
    *("wall clock steps", "halt and resume", "kill -9 lamp", "SIGTERM station"),
)
def accept_ignores_the_next() -> None:
    """A pulse is given, and goes on, whatever comes behind its plate."""
    from station.belt_register import BeltRegister

    enter = BeltRegister.enter

    def far_away(self: BeltRegister, result_id: str, leading_edge: float) -> None:
        enter(self, result_id, leading_edge + _FAR)

    BeltRegister.enter = far_away  # type: ignore[method-assign]


# --- starting it ----------------------------------------------------------------------------------


def main() -> None:
    name, *arguments = sys.argv[1:]
    if arguments and arguments[0] == "-P":  # what a supervisor starts: -P -m station.cli …
        arguments = arguments[3:]
    CONTROLS[name].break_it()
    sys.executable = _wrapper(name)
    sys.argv = ["vqi", *arguments]
    from station.cli import main as vqi

    vqi()


def _wrapper(name: str) -> str:
    """An interpreter that makes the same mistake in whatever it is told to run of the station."""
    folder = Path(os.environ["XDG_RUNTIME_DIR"])
    path = folder / "broken-python"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *station.cli*serve*) exec {_PYTHON} -m campaign.broken '
        f'"{name}" "$@";; *) exec {_PYTHON} "$@";; esac\n'
    )
    path.chmod(0o755)
    return str(path)


_PYTHON = sys.executable


if __name__ == "__main__":
    main()
