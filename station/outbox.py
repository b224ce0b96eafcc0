"""Rows on their way to the journal process: kept until they are acknowledged, in order.

What is not acknowledged when the journal process dies, or is refused because the disk is full, is
sent again, before what comes after it: a result never stands before the row that opened its plate.
Used by one thread; never waits.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from station.ipc import Json, PeerGone
from station.journal_client import InOrder, JournalClient
from station.record import Body

_RETRY_S = 1.0
_GONE_LIMIT_S = 10.0
_MAX_WAITING = 1000

Done = Callable[[Json], None]


class OutboxError(Exception):
    """The journal cannot be written to; the message says why."""


@dataclass(frozen=True, slots=True)
class _Submission:
    order: int
    rows: list[Body]
    pixels: Json | None
    descriptor: int | None
    done: Done | None
    refused: Done | None


class Outbox:
    """The station's end of the journal: `on_tick` gets the answers to ticks, `on_problem` why
    nothing can be written now."""

    def __init__(
        self,
        runtime_dir: Path,
        selector: selectors.BaseSelector,
        on_tick: Callable[[Json], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._runtime_dir = runtime_dir
        self._selector = selector
        self._on_tick = on_tick
        self._on_problem = on_problem
        self._journal: JournalClient | None = None
        self._gone_at = 0.0
        self._retry_at = 0.0
        self._is_refused = False
        """What is on its way follows something that was refused, so it will be, too."""
        self._order = itertools.count()
        self._unsent: list[_Submission] = []
        self._unanswered: dict[int, _Submission] = {}

    @property
    def is_empty(self) -> bool:
        return not (self._unsent or self._unanswered)

    @property
    def depths(self) -> tuple[int, int]:
        """Submissions that are not sent yet, and those that are sent and not answered."""
        return len(self._unsent), len(self._unanswered)

    def open(self, timeout_s: float) -> Json:
        """Connect and ask what the last life left. Raises `PeerGone`, TimeoutError."""
        return self._connect(timeout_s).hello()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def submit(
        self,
        rows: list[Body],
        pixels: Json | None = None,
        descriptor: int | None = None,
        done: Done | None = None,
        refused: Done | None = None,
    ) -> None:
        """Rows of one result; `done` gets the answer once they are durable, `refused` the answer
        that they may not follow on the log: without it, that ends the station. Raises
        `OutboxError` if the journal has been silent for too many of them."""
        item = _Submission(next(self._order), rows, pixels, descriptor, done, refused)
        self._unsent.append(item)
        if len(self._unsent) + len(self._unanswered) > _MAX_WAITING:
            raise OutboxError(f"the journal has not answered {_MAX_WAITING} rows")
        self._send()

    def arriving(self, result_id: str, pixels: Json, descriptor: int, is_complete: bool) -> None:
        """Let the journal begin a plate's pictures; not kept: the result says it all again."""
        self._do(lambda journal: journal.send_arriving(result_id, pixels, descriptor, is_complete))

    def tick(self, number: int) -> None:
        """Ask whether a row would be written now."""
        self._do(lambda journal: journal.send_tick(number))

    def keep_connected(self) -> None:
        """Look for a journal process that was replaced, and send what waits. Raises `OutboxError`
        if none comes."""
        if self._journal is None:
            with contextlib.suppress(PeerGone, TimeoutError):
                self._connect(timeout_s=0.0)
        self._send()
        if self._journal is None and time.monotonic() - self._gone_at > _GONE_LIMIT_S:
            raise OutboxError("the journal process did not come back")

    def _connect(self, timeout_s: float) -> JournalClient:
        journal = JournalClient(self._runtime_dir)
        journal.connect(timeout_s)
        self._journal = journal
        self._selector.register(journal, selectors.EVENT_READ, self._read)
        return journal

    def _send(self) -> None:
        while self._unsent and time.monotonic() >= self._retry_at:
            if self._is_refused and self._unanswered:
                return
            first, in_order = self._unsent[0], InOrder.FOLLOWS
            if self._is_refused:
                in_order = InOrder.RESUMES
            number = self._do(
                lambda journal, item=first, how=in_order: journal.send_submit(  # type: ignore[misc]
                    item.rows, item.pixels, item.descriptor, how
                )
            )
            if number is None:
                return
            self._is_refused = False
            self._unanswered[number] = self._unsent.pop(0)

    def _do(self, action: Callable[[JournalClient], int | None]) -> int | None:
        if self._journal is None:
            return None
        try:
            return action(self._journal)
        except BlockingIOError:
            # Its queue is full: it is behind, not gone. The next turn of the loop tries again.
            return None
        except (PeerGone, TimeoutError):
            self._lose()
            return None

    def _read(self) -> None:
        if self._journal is None:  # lost while an event before this one was handled
            return
        try:
            answers = self._journal.receive_ready()
        except PeerGone:
            self._lose()
            return
        for answer in answers:
            if "n" in answer:
                self._on_tick(answer)
            else:
                self._on_answer(answer)

    def _on_answer(self, answer: Json) -> None:
        item = self._unanswered.pop(answer["id"], None)
        if item is None:
            return
        if answer.get("is_full"):
            # Kept until there is room; the plates' buffers are bounded, so more become overruns.
            self._put_back([item])
            self._is_refused = True
            self._retry_at = time.monotonic() + _RETRY_S
            self._on_problem(answer["error"])
            return
        if not answer["ok"] and item.refused is not None:
            item.refused(answer)
            return
        if not answer["ok"]:
            raise OutboxError(f"the journal refused a row: {answer['error']}")
        if item.done is not None:
            item.done(answer)

    def _lose(self) -> None:
        if self._journal is None:
            return
        self._selector.unregister(self._journal)
        self._journal.close()
        self._journal = None
        self._gone_at = time.monotonic()
        self._put_back(list(self._unanswered.values()))
        self._unanswered.clear()
        self._is_refused = False
        self._on_problem("the journal process is gone")

    def _put_back(self, items: list[_Submission]) -> None:
        self._unsent = sorted([*items, *self._unsent], key=lambda item: item.order)
