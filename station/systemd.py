"""What a process tells the service manager, how it hears that its starter is dead, and how long a
process that keeps failing waits before it starts again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LIFELINE_VARIABLE = "VQI_LIFELINE_FD"
"""Names the descriptor of a pipe whose write end only the starter holds."""
LONGEST_PAUSE_S = 5.0
STEADY_S = 30.0
"""A process that lived so long starts again without a pause."""
LEAST_LIFE_S = 1.0
"""One that is replaced at once gets a pause if it lived shorter than this."""
_FIRST_PAUSE_S = 0.25


def notify(text: str) -> None:
    """Send `text`, for example `READY=1`, to the service manager; nothing happens without one.

    Never waits and never raises: a service manager that does not read is no reason to stop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
    ):
        connection.sendto(text.encode(), socket.MSG_DONTWAIT, address)


def lifeline() -> int | None:
    """The descriptor that becomes readable (end-of-file) when the starter is dead, or None.

    Children of this process do not inherit it.
    """
    number = os.environ.get(LIFELINE_VARIABLE, "")
    if not number.isdecimal():
        return None
    descriptor = int(number)
    try:
        os.set_inheritable(descriptor, False)
    except OSError:
        return None
    return descriptor


def exit_with_starter() -> None:
    """End this process at once when its starter is dead, also while it is busy: nobody would
    replace its parts, and its successor must not find it alive."""
    descriptor = lifeline()
    if descriptor is not None:
        threading.Thread(target=_exit_at_end_of_file, args=(descriptor,), daemon=True).start()


def _exit_at_end_of_file(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(1)


# --- starting again -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long the next start of a failing process waits, and the one after it if that fails."""

    pause_s: float = 0.0
    next_s: float = 0.0


def pauses_after(life_s: float, planned_s: float, is_replaced_at_once: bool) -> Pauses:
    """After a life of `life_s` that ended in a failure; `planned_s`: `next_s` of the pauses before.

    The first start again does not wait, each further one twice as long, up to 5 s; a steady life
    begins anew.
    """
    pause_s = planned_s if _is_failing(life_s, is_replaced_at_once) else 0.0
    return Pauses(pause_s, min(max(2 * pause_s, _FIRST_PAUSE_S), LONGEST_PAUSE_S))


def _is_failing(life_s: float, is_replaced_at_once: bool) -> bool:
    return life_s < (LEAST_LIFE_S if is_replaced_at_once else STEADY_S)


class UnitLife:
    """One life of a unit's process. The file remembers it until it has ended as it should: a start
    that finds the file follows a failure, however that life ended.

    systemd 252 cannot make the pauses between restarts grow, and knows no start limit that does not
    end in a unit that stays down.
    """

    def __init__(self, file: Path, is_replaced_at_once: bool) -> None:
        self._file = file
        self._is_replaced_at_once = is_replaced_at_once
        self._is_remembered = False
        self._began_s = time.monotonic()
        before = _read(file)
        self.is_restart = before is not None
        """Started again after a failure."""
        self.pauses = Pauses()
        if before is not None:
            planned_s, started_s = before
            life_s = time.monotonic() - started_s
            self.pauses = pauses_after(life_s, planned_s, is_replaced_at_once)

    def begin(self, start_limit_s: float) -> None:
        """Wait the pause, and remember that this life began."""
        if self.pauses.pause_s:
            limit_us = int((self.pauses.pause_s + start_limit_s) * 1e6)
            notify(
                f"EXTEND_TIMEOUT_USEC={limit_us}\n"
                f"STATUS=starts in {self.pauses.pause_s:g} s: earlier starts failed"
            )
            time.sleep(self.pauses.pause_s)
            notify("STATUS=")
        self._began_s = time.monotonic()
        with contextlib.suppress(OSError):
            _write(self._file, self.pauses.next_s)
            self._is_remembered = True

    def fail(self) -> None:
        """It ended in a failure. One that no file could remember keeps no later start waiting: this
        life waits at its end, unless it was long enough for a start without a pause."""
        life_s = time.monotonic() - self._began_s
        if not self._is_remembered and _is_failing(life_s, self._is_replaced_at_once):
            time.sleep(LONGEST_PAUSE_S)

    def end(self) -> None:
        """It ended as it should, or a person must mend the configuration: nothing to wait for."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def is_unit() -> bool:
    """Whether the service manager started this process, not `vqi run` or a person."""
    return "NOTIFY_SOCKET" in os.environ and LIFELINE_VARIABLE not in os.environ


def _read(file: Path) -> tuple[float, float] | None:
    """Next pause and CLOCK_MONOTONIC of the start, both in s; None if no life is remembered."""
    try:
        text = file.read_text()
    except OSError:
        return None
    try:
        known = json.loads(text)
        return float(known["next_pause_s"]), float(known["started_s"])
    except (ValueError, KeyError, TypeError):
        return _FIRST_PAUSE_S, time.monotonic()  # cut short while it was written: a quick failure


def _write(file: Path, next_pause_s: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({"next_pause_s": next_pause_s, "started_s": time.monotonic()}))
    temporary.rename(file)
