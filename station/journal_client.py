"""The way to the journal process: what a process says to it, without what that one needs itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from station.ipc import SOCKETS, Channel, Json, PeerGone, connect
from station.page_door import way_in
from station.record import Body


class InOrder(StrEnum):
    """How a submission belongs to those before it, for a client that does not wait for answers:
    once one is refused, the journal refuses all that follow, until one resumes."""

    FOLLOWS = "follows"
    RESUMES = "resumes"
    """Sent when everything before was answered: the first that was refused."""


def journal_path(runtime_dir: Path) -> Path:
    return runtime_dir / SOCKETS["journal"]


class JournalClient:
    """A process's connection to the journal process. For one thread."""

    def __init__(self, runtime_dir: Path, is_page: bool = False) -> None:
        """`is_page`: through the page's own door, where there is one."""
        path = journal_path(runtime_dir)
        self._path = way_in(path) if is_page else path
        self._channel: Channel | None = None
        self._number = 0

    def connect(self, timeout_s: float) -> None:
        """Raises `PeerGone` if no journal process listens within `timeout_s`."""
        self._channel = connect(self._path, timeout_s)

    def hello(self) -> Json:
        """What the last life left: last_sequence, open_plates (bodies), without_actuation and
        without_accept (result ids), held (body of a FAIL or UNDECIDED that nobody acknowledged),
        has_late_plates, last_plate_ordinal, attentions and references (bodies), last_tick_at,
        signed_files (sha256 of commissioning files, the latest first), given (what people said
        holds from plate to plate), audit_seeds (bodies of those not revealed), recipes (sha256 of
        the active one and of those approved), shadow (the model in the shadow, or None), drift
        (limits and standing alarms by key, of every key), head (seq, chain)."""
        said = self._connected.request({"op": "hello"}, timeout_s=30.0)
        drift = said["drift"]
        following = drift.pop("next")
        while following is not None:
            more = self._connected.request({"op": "drift", "first": following}, timeout_s=30.0)
            following = more["drift"].pop("next")
            for name, found in more["drift"].items():
                drift[name] |= found
        return said

    def ask(self, op: str, **given: str) -> Json:
        """`prune`: look for pictures that may go, {"sweep": the number of sweeps after which it has
        been done}; `checkpoint`: make one, {"tried": how many will have been tried by then};
        `clock_is_right` with `who` and `why`."""
        return self._connected.request({"op": op, **given}, timeout_s=30.0)

    def status(self) -> Json:
        """How the journal process is, and what it has done for itself."""
        status: Json = self.ask("status")["status"]
        return status

    def submit(
        self,
        rows: Sequence[Body],
        pixels: Json | None = None,
        descriptor: int | None = None,
        timeout_s: float = 30.0,
    ) -> Json:
        """Submit and wait for the answer: {"ok": true, "seq": [...], "pictures": {...},
        "received_ns", "durable_ns" (of the pictures; None without), "committed_ns"} or
        {"ok": false, "error"}."""
        self._send(rows, pixels, descriptor, timeout_s=min(5.0, timeout_s))
        packet = self._connected.receive(timeout_s)
        packet.close()
        return packet.body

    def send_submit(
        self,
        rows: Sequence[Body],
        pixels: Json | None = None,
        descriptor: int | None = None,
        in_order: InOrder | None = None,
    ) -> int:
        """Submit without waiting; the number that the answer's `id` will have. Raises
        BlockingIOError if the journal is behind."""
        return self._send(rows, pixels, descriptor, timeout_s=0, in_order=in_order)

    def send_arriving(
        self, result_id: str, pixels: Json, descriptor: int, is_complete: bool
    ) -> None:
        """Say which scan lines of a plate will not change any more, and what would be kept of it
        now: its pictures are begun. It is sent once more with the result, so it may be lost."""
        message = {
            "op": "arriving",
            "result_id": result_id,
            "pixels": pixels,
            "is_complete": is_complete,
        }
        with contextlib.suppress(BlockingIOError):
            self._connected.send(message, (descriptor,), timeout_s=0)

    def send_tick(self, number: int) -> None:
        """Ask whether a row would be written now; a journal that is behind gets no ticks."""
        with contextlib.suppress(BlockingIOError):
            self._connected.send({"op": "tick", "n": number}, timeout_s=0)

    def fileno(self) -> int:
        return self._connected.fileno()

    def receive_ready(self) -> list[Json]:
        """All answers that are there: each has `id` or `n`, `ok`, and `error` if not ok."""
        answers: list[Json] = []
        while True:
            try:
                packet = self._connected.receive(timeout_s=0)
            except BlockingIOError:
                return answers
            packet.close()
            answers.append(packet.body)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    def _connected(self) -> Channel:
        if self._channel is None:
            raise PeerGone(f"not connected to {self._path}")
        return self._channel

    def _send(
        self,
        rows: Sequence[Body],
        pixels: Json | None,
        descriptor: int | None,
        timeout_s: float,
        in_order: InOrder | None = None,
    ) -> int:
        message = {
            "op": "submit",
            "id": self._number + 1,
            "rows": [row.as_json() for row in rows],
            "pixels": pixels if descriptor is not None else None,
            "in_order": in_order,
        }
        has_pixels = descriptor is not None and pixels is not None
        descriptors = (descriptor,) if has_pixels and descriptor is not None else ()
        self._connected.send(message, descriptors, timeout_s)
        self._number += 1
        return self._number
