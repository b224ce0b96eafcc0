"""Ports that nobody listens at yet."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port of this machine; it stays free unless somebody else takes it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
