"""Freed memory, back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes


def give_back_freed() -> None:
    """Let the kernel have what the C library keeps of freed memory: in a process that runs for
    months it otherwise depends on what was allocated between whether a block ever goes back. Takes
    some ms; not for a thread that somebody waits for."""
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
