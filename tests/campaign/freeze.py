"""Hold one thread of a process, as a deadlock holds it, while all others go on.

`python freeze.py TID SECONDS`: PTRACE_SEIZE and PTRACE_INTERRUPT; the tracer's end sets it free. If
the process is killed meanwhile, its parent does not learn of its end before: as with one that a
driver in the kernel holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator

_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000


@contextlib.contextmanager
def held(tid: int, seconds: float) -> Iterator[int]:
    """To the block's end, or for so long; since when, on CLOCK_MONOTONIC. Raises OSError."""
    command = [sys.executable, "-S", "-E", __file__, str(tid), str(seconds)]
    tracer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert tracer.stdout is not None
    try:
        told = tracer.stdout.readline()
        if not told:
            number = tracer.wait()
            raise OSError(number, f"thread {tid} cannot be held: {os.strerror(number)}")
        yield int(told)
    finally:
        tracer.kill()
        tracer.communicate()


def main() -> int:
    tid, seconds = int(sys.argv[1]), float(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for request in (_SEIZE, _INTERRUPT):
        if libc.ptrace(request, tid, None, None):
            return ctypes.get_errno()
    os.waitpid(tid, _WALL)
    print(time.monotonic_ns(), flush=True)
    time.sleep(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
