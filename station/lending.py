"""The station's side of a model in the shadow: lends it one judged plate at a time.

A plate's buffer is lent once its verdict is durable and the lamp has been told; the pool has one
buffer more than the verdicts need, and no second one is ever lent. The loan ends when the shadow
says that it has scored the plate, dies, or is silent for too long; only a plate that was lent to
the last counts, so that nobody scores pixels that are written over. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from station.inspection import BufferPool, PlateBuffer, PlateWork
from station.ipc import Channel, Json, Listener, NotAMessage, PeerGone
from station.log_lines import get_logger
from station.record import ResultBody
from station.results import Context
from station.shadows import shadow_path
from station.strip import Pixels, Plate, buffer_lines
from station.tiling import Rows
from station.verdict import OF_SCORES

_LOG = get_logger("shadow")
SILENCE_LIMIT_S = 10.0
"""A shadow that says nothing for so long loses the plate; it says something with each chunk."""
_SIDES = ("left", "right", "region_left", "region_right")


@dataclass(eq=False, slots=True)
class _Loan:
    number: int
    buffer: PlateBuffer
    heard_at: float


@dataclass(slots=True)
class _Counts:
    lent: int = 0
    scored: int = 0
    taken_back: int = 0
    """From a shadow that was silent."""


class Lending:
    """For the station's main thread."""

    def __init__(self, runtime_dir: Path, selector: selectors.BaseSelector) -> None:
        self.wanted: Json | None = None
        """What is in the shadow by the log (`shadows.Register.brief`); None where nothing is."""
        self._selector = selector
        self._listener = Listener(shadow_path(runtime_dir), mode=0o600)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._client: Channel | None = None
        self._asks = False
        self._loan: _Loan | None = None
        self._pool: BufferPool | None = None
        self._has_room = threading.Event()
        """The pool has the buffer more."""
        self._is_growing = False
        self._problem = ""
        self._counts = _Counts()

    def want(self, wanted: Json | None, pool: BufferPool, context: Context) -> None:
        """The log says so from now on."""
        self.wanted, self._pool, self._problem = wanted, pool, ""
        if wanted is not None and not self._is_growing:
            self._is_growing = True
            threading.Thread(
                target=self._grow, args=(pool, context), name="shadow-room", daemon=True
            ).start()
        self._tell({"op": "shadow", "shadow": wanted})

    def lend(self, body: ResultBody, work: PlateWork, context: Context) -> bool:
        """True if the plate's buffer is lent: it comes back to the pool from here."""
        is_free = self._asks and self._loan is None and self._has_room.is_set()
        if not is_free or self.wanted is None or self._client is None or work.buffer is None:
            return False
        if body.reason not in OF_SCORES or work.problem is not None or not body.tiles:
            return False
        number = self._counts.lent + 1
        try:
            with _descriptors(work.buffer, work.plate) as descriptors:
                self._client.send(_message(number, body, work, context), descriptors, timeout_s=0)
        except (OSError, ValueError) as error:
            self._drop(f"a plate could not be lent: {error}")
            return False
        self._counts.lent, self._asks = number, False
        self._loan = _Loan(number, work.buffer, time.monotonic())
        return True

    def keep(self) -> None:
        """Take the plate back from whoever is silent."""
        loan = self._loan
        if loan is not None and time.monotonic() - loan.heard_at > SILENCE_LIMIT_S:
            self._counts.taken_back += 1
            self._drop(f"the shadow said nothing of a plate for {SILENCE_LIMIT_S:g} s")

    @property
    def lent(self) -> int:
        """Buffers that are lent now."""
        return int(self._loan is not None)

    @property
    def status(self) -> Json:
        shadow = self.wanted
        named = {"model_id": shadow["model_id"], "share": shadow["share"]} if shadow else {}
        return {
            **named,
            "is_set": shadow is not None,
            "is_there": self._client is not None,
            "is_lent": self._loan is not None,
            "problem": self._problem,
            **asdict(self._counts),
        }

    def close(self) -> None:
        self._drop("")
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener.path.unlink(missing_ok=True)

    # --- the shadow's process -------------------------------------------------------------------

    def _accept(self) -> None:
        client = self._listener.accept()
        if client.peer_uid() not in (0, os.getuid()):
            client.close()
            return
        # Its predecessor hangs, or is not done with dying.
        self._drop("")
        self._client = client
        self._selector.register(client, selectors.EVENT_READ, self._serve)
        self._tell({"op": "shadow", "shadow": self.wanted})

    def _serve(self) -> None:
        if self._client is None:
            return
        try:
            packet = self._client.receive(timeout_s=0)
            packet.close()
            self._take(packet.body)
        except BlockingIOError:
            return
        except PeerGone:
            self._drop("")
        except (NotAMessage, OSError, LookupError, TypeError, ValueError) as error:
            self._drop(f"the shadow sent nonsense: {error!r}")

    def _take(self, said: Json) -> None:
        loan = self._loan
        match said.get("op"):
            case "ready":
                self._asks = True
            case "still" if loan is not None and said["loan"] == loan.number:
                loan.heard_at = time.monotonic()
            case "done" if loan is not None and said["loan"] == loan.number:
                self._counts.scored += bool(said["is_scored"])
                self._end_loan()
                self._tell({"op": "kept", "loan": said["loan"]})
            case "problem":
                self._problem = str(said["text"])[:1000]

    def _tell(self, message: Json) -> None:
        if self._client is None:
            return
        try:
            self._client.send(message, timeout_s=0)
        except (OSError, ValueError) as error:
            self._drop(f"the shadow takes no message: {error}")

    def _drop(self, problem: str) -> None:
        if problem:
            _LOG.warning("shadow dropped", problem=problem)
            self._problem = problem
        client, self._client, self._asks = self._client, None, False
        if client is not None:
            self._selector.unregister(client)
            client.close()
        self._end_loan()

    def _end_loan(self) -> None:
        loan, self._loan = self._loan, None
        if loan is not None and self._pool is not None:
            self._pool.give_back(loan.buffer)

    def _grow(self, pool: BufferPool, context: Context) -> None:
        geometry = context.geometry
        with contextlib.suppress(OSError, MemoryError):
            pool.grow(buffer_lines(geometry), geometry.scan_line_px)
            self._has_room.set()


def _message(number: int, body: ResultBody, work: PlateWork, context: Context) -> Json:
    """All that a verdict on this plate rests on, beside its pixels and its outline."""
    plate = work.plate
    return {
        "op": "plate",
        "loan": number,
        "plate": {
            "lines": plate.lines,
            "length_px": plate.length_px,
            "region_lines": plate.region_lines,
        },
        "geometry": asdict(context.geometry),
        "recipe": work.judge.recipe.value.model_dump(mode="json"),
        "recipe_sha256": work.judge.recipe.sha256,
        "judged": {
            "result_id": body.result_id,
            "tile_grid": body.tile_grid,
            "tile_scores": body.tile_scores,
        },
        "judging": {
            "judging_model_id": body.model_id,
            "judging_model_sha256": body.model_sha256,
            # Not of its precision: a promotion asks about what recipes say.
            "judging_threshold": work.judge.recipe_threshold,
            "recipe_id": body.recipe_id,
            "recipe_version": body.recipe_version,
            "recipe_sha256": body.recipe_sha256,
        },
    }


class _descriptors:
    """Of a plate's pixels, for reading only, and of its outline: int32, each of `_SIDES` for
    `lines` scan lines."""

    def __init__(self, buffer: PlateBuffer, plate: Plate) -> None:
        self._buffer, self._plate = buffer, plate
        self._opened: list[int] = []

    def __enter__(self) -> tuple[int, ...]:
        try:
            path = f"/proc/self/fd/{self._buffer.descriptor}"
            self._opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._opened.append(os.memfd_create("vqi-outline", os.MFD_CLOEXEC))
            sides = [getattr(self._plate, side)[: self._plate.lines] for side in _SIDES]
            os.write(self._opened[1], np.concatenate(sides).astype(np.int32).tobytes())
        except BaseException:
            self.__exit__()
            raise
        return tuple(self._opened)

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._opened:
            os.close(descriptor)


def lent_plate(said: Json, pixels: Pixels, outline: Rows) -> Plate:
    """The plate of a loan. Raises ValueError if its outline is not of so many scan lines."""
    lines = said["lines"]
    left, right, region_left, region_right = outline.reshape(len(_SIDES), lines)
    return Plate(
        pixels=pixels,
        opened_ns=0,
        first_frame_id=0,
        first_row=0,
        encoder_value=None,
        ordinal=None,
        truth=None,
        left=left,
        right=right,
        region_left=region_left,
        region_right=region_right,
        is_scored=True,
        **said,
    )
