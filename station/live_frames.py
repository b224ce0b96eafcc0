"""What the camera sees now, for a page that asks: the last scan lines as they were delivered, in a
file of the runtime folder, twice a second at most, and only while somebody asks.

The acquire thread copies pixels, and nothing else; a thread of its own writes them. All that is
made of them (picture, profile, sharpness) is made by the process that reads them.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Frame
from station.ipc import Json

FRESH_S = 3.0
"""An ask holds so long."""
EVERY_S = 0.5
_FIRST_S = 0.25
"""What has come by then is the first picture."""
_KEPT_LINES = 512
_PICTURE = "live.pgm"
_MOST_BYTES = 64_000_000
"""Of a picture's file, with its head."""
_HEAD_BYTES = 4096

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LivePicture:
    """Scan lines that followed one another, and the counts of the feed by then."""

    pixels: Pixels
    frame_id: int
    at_ns: int
    """CLOCK_MONOTONIC when they were written."""
    line_rate_hz: float | None
    """By the frames' own timestamps."""
    frames: int
    lost_frames: int
    incomplete_frames: int


class LiveFrames:
    """The station's side. `take` is for the acquire thread: it copies into memory that is there,
    no more scan lines than are shown."""

    def __init__(self, runtime_dir: Path, width: int) -> None:
        self._folder = runtime_dir
        self._wanted_until = 0.0
        self._due: float | None = None
        """When the next picture is; None while nobody asks."""
        rows = max(1, min(_KEPT_LINES, (_MOST_BYTES - _HEAD_BYTES) // width))
        # Written once here: the first touch of a page is slow.
        self._ring: Pixels = np.full((rows, width), 0, np.uint8)
        self._picture: Pixels = np.full((rows, width), 0, np.uint8)
        """What is being written, or was."""
        self._begin = self._filled = 0
        """Of the ring: where its next scan line goes, and how many it holds."""
        self._stamps: deque[tuple[int, int]] = deque(maxlen=64)
        """Frame id and timestamp."""
        self._orders: queue.SimpleQueue[tuple[Json, int]] = queue.SimpleQueue()
        self._is_writing = threading.Event()
        with contextlib.suppress(RuntimeError):  # there is no thread to be had: no picture
            threading.Thread(target=self._write_all, name="live", daemon=True).start()

    def look(self) -> None:
        """Somebody asks; from any thread."""
        self._wanted_until = time.monotonic() + FRESH_S

    def take(self, frame: Frame, counts: Callable[[], Json], now: float) -> None:
        """Keep a copy of its last scan lines if somebody asks; `now` is time.monotonic()."""
        if now >= self._wanted_until:
            self._due = None
            return
        if frame.pixel_format != MONO8 or frame.pixels.shape[1] != self._ring.shape[1]:
            return
        is_next = bool(self._stamps) and frame.frame_id == self._stamps[-1][0] + 1
        if self._due is None or not is_next or frame.is_incomplete:
            self._clear()
        if self._due is None:
            self._due = now + _FIRST_S
        if frame.is_incomplete or not frame.height:
            return
        self._keep(frame)
        if now >= self._due and not self._is_writing.is_set():
            self._due = now + EVERY_S
            self._hand_over(frame, counts())

    def _clear(self) -> None:
        """What comes does not follow what came."""
        self._begin = self._filled = 0
        self._stamps.clear()

    def _keep(self, frame: Frame) -> None:
        ring, kept = self._ring, frame.pixels[-len(self._ring) :]
        straight = min(len(kept), len(ring) - self._begin)
        ring[self._begin : self._begin + straight] = kept[:straight]
        ring[: len(kept) - straight] = kept[straight:]
        self._begin = (self._begin + len(kept)) % len(ring)
        self._filled = min(self._filled + len(kept), len(ring))
        self._stamps.append((frame.frame_id, frame.timestamp_ns))

    def _hand_over(self, frame: Frame, counts: Json) -> None:
        rows, oldest = self._filled, self._begin if self._filled == len(self._ring) else 0
        self._picture[: rows - oldest] = self._ring[oldest:rows]
        self._picture[rows - oldest : rows] = self._ring[:oldest]
        self._is_writing.set()
        about = {**counts, "frame_id": frame.frame_id, "line_rate_hz": self._rate_hz(frame.height)}
        self._orders.put((about, rows))

    def _rate_hz(self, height: int) -> float | None:
        (first, start), (last, end) = self._stamps[0], self._stamps[-1]
        return (last - first) * height / ((end - start) / 1e9) if end > start else None

    def _write_all(self) -> None:
        while True:
            about, rows = self._orders.get()
            with contextlib.suppress(OSError):  # a disk that is full costs the picture alone
                _write(self._folder, about, self._picture[:rows])
            self._is_writing.clear()


def _write(folder: Path, about: Json, picture: Pixels) -> None:
    """A PGM file, whose comment says the rest (netpbm, pgm(5))."""
    rows, width = picture.shape
    said = json.dumps({**about, "at_ns": time.monotonic_ns()})
    temporary = folder / f"{_PICTURE}.new"
    with temporary.open("wb") as file:
        file.write(f"P5\n# {said}\n{width} {rows}\n255\n".encode())
        file.write(picture.data)
    temporary.replace(folder / _PICTURE)


def read_live(runtime_dir: Path) -> LivePicture | None:
    """What was written last; None if there is nothing, or nothing whole."""
    try:
        with (runtime_dir / _PICTURE).open("rb") as file:
            data = file.read(_MOST_BYTES)
        magic, comment, size, most, pixels = data.split(b"\n", 4)
        width, rows = map(int, size.split())
        about = json.loads(comment.removeprefix(b"#"))
    except (OSError, ValueError):
        return None
    if (magic, most) != (b"P5", b"255") or len(pixels) != width * rows:
        return None
    return LivePicture(np.frombuffer(pixels, np.uint8).reshape(rows, width), **about)
