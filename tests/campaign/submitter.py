"""Hands plates with pictures to a journal process, as the station does, and remembers what was
acknowledged."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from test_qms import opened, result

from station.ipc import PeerGone
from station.journal_client import JournalClient
from station.record import ActuationBody, Body, Verdict

Json = dict[str, Any]
_ROWS, _WIDTH = 96, 128
_IN_FLIGHT = 6


class Submitter:
    """Numbers go on over lives of the journal process."""

    def __init__(self, runtime: Path, seed: int) -> None:
        self._runtime = runtime
        self._noise = np.random.default_rng(seed)
        self._draw = Random(seed)
        self.number = 0
        self.acknowledged: dict[str, set[str]] = {}
        """Kinds of rows that were acknowledged, by result."""
        self._client: JournalClient | None = None
        self._asked: dict[int, list[Body]] = {}

    def connect(self, within_s: float = 20.0) -> None:
        self._client = JournalClient(self._runtime)
        self._client.connect(within_s)
        self._client.hello()
        self._asked.clear()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def turn(self) -> None:
        """Send what may be in flight, take what was acknowledged. A journal that is gone answers
        nothing."""
        with contextlib.suppress(PeerGone, BlockingIOError):
            while len(self._asked) < _IN_FLIGHT:
                for row in self.next_plate():
                    self.send(row)
            self.take_answers()

    def next_plate(self) -> list[Body]:
        """One plate: its leading edge, its result, which goes with pictures, its lamp command."""
        self.number += 1
        verdict = self._draw.choice((Verdict.PASS, Verdict.FAIL))
        return [
            opened(self.number, self.number),
            result(self.number, verdict, plate_ordinal=self.number),
            ActuationBody(
                station_id="s",
                result_id=opened(self.number).result_id,
                command="idle",
                is_confirmed=None,
                commanded_ns=1,
                shown_ns=None,
            ),
        ]

    def send(self, row: Body) -> None:
        """In a submission of its own. Raises `PeerGone`."""
        assert self._client is not None
        if getattr(row, "kind") != "result":  # noqa: B009
            self._asked[self._client.send_submit([row])] = [row]
            return
        descriptor = self._plate()
        wanted = {"rows": _ROWS, "width": _WIDTH, "band_rows": 64, "keep": ["evidence", "preview"]}
        try:
            self._asked[self._client.send_submit([row], wanted, descriptor)] = [row]
        finally:
            os.close(descriptor)

    def take_answers(self) -> None:
        assert self._client is not None
        for answer in self._client.receive_ready():
            rows = self._asked.pop(answer["id"], [])
            if answer["ok"]:
                for row in rows:
                    name, kind = getattr(row, "result_id"), getattr(row, "kind")  # noqa: B009
                    self.acknowledged.setdefault(name, set()).add(kind)

    @property
    def waiting(self) -> int:
        return len(self._asked)

    def _plate(self) -> int:
        descriptor = os.memfd_create("plate", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _ROWS * _WIDTH)
        with mmap.mmap(descriptor, _ROWS * _WIDTH) as memory:
            memory[:] = self._noise.integers(0, 256, _ROWS * _WIDTH, np.uint8).tobytes()
        return descriptor
