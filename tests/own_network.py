"""A loopback interface that belongs to one process of tests.

Ports that a protocol fixes (GigE Vision 3956, Modbus 502) are then free, whatever else runs on this
machine, and tests in other processes may use them at the same time.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = "16sh22x"
_LIBC = ctypes.CDLL(None, use_errno=True)


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
        return True
    finally:
        os.close(before)
