"""The page's port: how many connections another machine has there, and how long it may greet."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any

from station.log_lines import get_logger

_LOG = get_logger("web")
_MOST_OF_ONE = 200
"""Connections of one address: some thirty browsers, an eighth of all that are let in."""
_HANDSHAKE_S = 5.0
_OWN = frozenset(("127.0.0.1", "::1", "::ffff:127.0.0.1"))
"""From where a proxy on this machine (`web.public_url`) speaks for everybody."""


class PageLoop(asyncio.SelectorEventLoop):
    """Gives up soon who begins TLS and goes no further; asyncio's own limit is a minute."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """As asyncio's."""
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = _HANDSHAKE_S
        return await super().create_server(*args, **options)


class FairListener(socket.socket):
    """A listening socket that gives no other machine more than its share; for one event loop."""

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(family, kind)
        self._open: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """As of a socket. Raises ConnectionAbortedError where one has too many: it is closed."""
        connection, whence = super().accept()
        address = str(whence[0])
        if address in _OWN:
            return connection, whence
        if self._open[address] >= _MOST_OF_ONE:
            connection.close()
            _LOG.warning("a machine has too many connections", address=address)
            raise ConnectionAbortedError
        self._open[address] += 1
        return _Counted(connection, self._open, address), whence


class _Counted(socket.socket):
    """One that is no more counted once it is closed."""

    def __init__(self, accepted: socket.socket, counts: Counter[str], address: str) -> None:
        kind = (accepted.family, accepted.type, accepted.proto)
        super().__init__(*kind, fileno=accepted.detach())
        self._counts, self._address = counts, address
        self._is_counted = True

    def close(self) -> None:
        """As of a socket."""
        super().close()
        if self._is_counted:
            self._is_counted = False
            self._counts[self._address] -= 1
            if not self._counts[self._address]:
                del self._counts[self._address]
