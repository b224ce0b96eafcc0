"""Hold one thread of a process, as a deadlock holds it, while all others go on.

`python freeze.py TID SECONDS`: PTRACE_SEIZE and PTRACE_INTERRUPT; the tracer's end sets it free.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000


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
