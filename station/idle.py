"""A process that gives way to every other: to the processor's and to the disk's other work; it does
not outlive the one that started it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from station.tied import tied

_FIRST_TO_GO = "900"
"""Where memory is short, rather this process than any that starts one (OOMScoreAdjust of the
units)."""


def is_idle() -> bool:
    """Whether this process runs only where nobody else wants to."""
    return os.sched_getscheduler(0) == os.SCHED_IDLE


def be_idle(*arguments: str) -> NoReturn:
    """Become this program's interpreter with `arguments`, which gives way as `start_idle`'s does
    and uses one core: all threads it ever starts are on that one, and every other stays free.
    Raises OSError if the machine has no `chrt`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    polite = ["nice", "-n", "19", "chrt", "--idle", "0"]
    if shutil.which("ionice"):
        polite += ["ionice", "-c", "3", "-t"]
    os.execvp(polite[0], [*polite, sys.executable, "-P", *arguments])


def start_idle(*arguments: str, is_awaited: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Start this program's interpreter with `arguments`, to talk with in text. One that somebody
    waits for is only nice: on busy cores an idle one may take minutes. The thread that starts it
    must stay until it has ended: it dies with that thread."""
    polite = ["nice", "-n", "19"]
    if shutil.which("ionice"):
        polite += ["ionice", "-c", "3", "-t"]
    process = subprocess.Popen(
        tied([*polite, sys.executable, "-P", *arguments]), text=True, close_fds=True, **options
    )
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(_FIRST_TO_GO)
    # Even the nicest process keeps a core for some milliseconds from whoever wakes up.
    if not is_awaited:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    return process
