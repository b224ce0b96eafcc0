"""Waiting for what is done one at a time, without holding the threads that other pages need."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from station.web.errors import PageError

_MOST_WAITING = 4
_PATIENCE_S = 10.0


class Turns:
    """Room for a few who wait for one of its locks, so that a page that takes long stops no other:
    all share one pool of threads."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._room = threading.Semaphore(_MOST_WAITING)

    @contextlib.contextmanager
    def of(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock. Raises `PageError` 503 where as many wait already, or others come first for
        too long."""
        if not lock.acquire(blocking=False):
            self._wait(lock)
        try:
            yield
        finally:
            lock.release()

    def _wait(self, lock: threading.Lock) -> None:
        if not self._room.acquire(blocking=False):
            raise PageError(503, "errors.busy", retry_s=5)
        try:
            if not lock.acquire(timeout=self._patience_s):
                raise PageError(503, "errors.busy", retry_s=5)
        finally:
            self._room.release()
