"""What a process tells the service manager, and how it hears that its starter is dead."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

LIFELINE_VARIABLE = "VQI_LIFELINE_FD"
"""Names the descriptor of a pipe whose write end only the starter holds."""


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
