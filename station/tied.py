"""A process that the kernel ends with the one that started it, however that ends.

setpriv(1) would do the same, but sets its capabilities too, which the units' filter of system calls
refuses.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def tied(command: Sequence[str], end: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command, to be started by the calling process, that gets the signal `end` when the thread
    that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    python = [sys.executable, "-I", "-S", __file__]
    return [*python, str(os.getpid()), str(int(end)), *command]


def die_with(parent: int, end: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process `end` when its parent ends; at once if it has. Raises
    OSError."""
    if _LIBC.prctl(_PR_SET_PDEATHSIG, int(end)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """`PARENT SIGNAL COMMAND...`: become the command. Imports no other module of ours."""
    die_with(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execvp(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
