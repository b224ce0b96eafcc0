"""What a process of tests has for itself, so that nothing else on this machine disturbs it.

Ports that a protocol fixes (GigE Vision 3956, Modbus 502) are free, whatever else runs here. And a
pseudo-terminal that is closed gives its name to the next one that is opened: a station of somebody
else's test, that looks for the light it lost, would find the light of this one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = "16sh22x"
_LIBC = ctypes.CDLL(None, use_errno=True)
_OUTSIDE: list[int] = []
"""The network that this process had before, once it has one of its own."""


def enter_own_network() -> bool:
    """Give the calling thread, and what it starts from now on, a network namespace with nothing but
    loopback. False, and all as before, where the kernel or this user's rights do not allow it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            return False
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                request = struct.pack(_IFREQ, b"lo", _IFF_UP)
                fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
        except OSError:
            if _LIBC.setns(before, _CLONE_NEWNET) != 0:
                raise
            return False
        _OUTSIDE.append(os.dup(before))
        return True
    finally:
        os.close(before)


@contextmanager
def one_of_this_machine(what: str) -> Iterator[None]:
    """Wait until no other process of tests has it, where this one shares the machine's network."""
    with Path(tempfile.gettempdir(), f"vqi-tests-{what}.lock").open("w") as lock:
        if not _OUTSIDE:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def enter_outside_network() -> None:
    """Give the calling thread the machine's network again: what fetches packages needs it. To be
    called between fork and exec (`preexec_fn`)."""
    for descriptor in _OUTSIDE[:1]:
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "the machine's network cannot be entered again")


def enter_own_mounts() -> None:
    """Mounts of the calling thread, and of what it starts from now on, are its own, and gone when
    they are. Raises OSError where that is not allowed."""
    if _LIBC.unshare(_CLONE_NEWNS) or _LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "mounts of its own are not allowed here")


def enter_own_terminals() -> bool:
    """The same for pseudo-terminals, in mounts of its own. False where that is not allowed."""
    try:
        enter_own_mounts()
    except OSError:
        return False
    options = b"newinstance,ptmxmode=0666,mode=620"
    return bool(_LIBC.mount(b"devpts", b"/dev/pts", b"devpts", 0, options) == 0)
