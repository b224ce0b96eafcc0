"""Where a process says what happens to whoever watches: a reader that does not read delays nobody.

Events go through a bounded queue to a thread that writes them. What does not fit is dropped and
counted in the next event; the record of every plate is in the log.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable
from typing import Self

from station.ipc import Json

_EVENTS = 10_000
_STALLED_S = 3.0
"""A reader that takes nothing for so long at the end gets no more."""

Write = Callable[[Json], None]


class Outlet:
    """Used as a context manager; `emit` never waits."""

    def __init__(self, write: Write) -> None:
        """`write` is called for one event after another, on a thread of its own."""
        self._write = write
        self._queue: queue.Queue[Json | None] = queue.Queue(_EVENTS)
        self._dropped = 0
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def emit(self, event: Json) -> None:
        if self._dropped:
            event = {**event, "events_dropped": self._dropped}
        try:
            self._queue.put_nowait(event)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Write what waits, as long as somebody takes it."""
        written = -1
        while self._thread.is_alive() and self._written != written:
            written = self._written
            try:
                self._queue.put(None, timeout=_STALLED_S)
            except queue.Full:
                continue
            self._thread.join(_STALLED_S)

    def _run(self) -> None:
        try:
            while (event := self._queue.get()) is not None:
                self._write(event)
                self._written += 1
        except (OSError, ValueError):
            while self._queue.get() is not None:
                pass  # nobody reads any more


def write_line(descriptor: int, text: str) -> None:
    """Write a line without Python's buffer, whose lock a blocked thread would keep to the end."""
    data = (text + "\n").encode(errors="replace")
    while data:
        data = data[os.write(descriptor, data) :]


def write_json_line(event: Json) -> None:
    """An event as a line of JSON on stdout."""
    write_line(1, json.dumps(event, separators=(",", ":")))
