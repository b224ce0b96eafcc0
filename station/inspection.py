"""The inspect threads: tile rows in, scores out. Each thread owns one classifier session."""

from __future__ import annotations

import mmap
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.localise import Box, defect_boxes
from models.runtimes import Findings
from station.acquisition import Tick
from station.given import Given
from station.identity import Association
from station.judge import Judge
from station.record import Reason
from station.strip import Pixels, Plate
from station.tiling import (
    CHUNK_TILES,
    OUTSIDE,
    TILE_PX,
    Geometry,
    TileRow,
    cut_tiles,
)
from station.verdict import TileScore, boxes_on_plate, is_failing

_UNLIT_EVERY_PX = 8
"""Dark and saturated pixels are counted on every eighth pixel and scan line."""


@dataclass(eq=False, slots=True)
class PlateBuffer:
    """Memory for one plate that the journal process can read without a copy."""

    descriptor: int
    pixels: Pixels


class BufferPool:
    """A fixed number of plate buffers: what is bounded cannot grow until it fails."""

    def __init__(self, count: int, lines: int, scan_line_px: int) -> None:
        self._buffers = [_plate_buffer(lines, scan_line_px) for _ in range(count)]
        self._free: queue.SimpleQueue[PlateBuffer] = queue.SimpleQueue()
        for buffer in self._buffers:
            self._free.put(buffer)

    def take(self, patience_s: float = 0.0) -> Pixels | None:
        """A free buffer's pixels, None if all are in work and stay so for `patience_s`."""
        try:
            return self._free.get(timeout=patience_s or None, block=patience_s > 0).pixels
        except queue.Empty:
            return None

    def holding(self, pixels: Pixels | None) -> PlateBuffer | None:
        return next((b for b in self._buffers if b.pixels is pixels), None)

    def give_back(self, buffer: PlateBuffer | None) -> None:
        if buffer is not None:
            self._free.put(buffer)

    def grow(self, lines: int, scan_line_px: int) -> None:
        """One buffer more; takes as long as its memory does to be given."""
        buffer = _plate_buffer(lines, scan_line_px)
        self._buffers.append(buffer)
        self._free.put(buffer)

    @property
    def in_use(self) -> int:
        return len(self._buffers) - self._free.qsize()

    def close(self) -> None:
        for buffer in self._buffers:
            os.close(buffer.descriptor)
        self._buffers.clear()


def _plate_buffer(lines: int, scan_line_px: int) -> PlateBuffer:
    descriptor = os.memfd_create("vqi-plate", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, lines * scan_line_px)
    memory = np.frombuffer(mmap.mmap(descriptor, lines * scan_line_px), np.uint8)
    # Now, not when the first plates come: the kernel gives memory when it is touched.
    memory[:] = 0
    return PlateBuffer(descriptor, memory.reshape(lines, scan_line_px))


@dataclass(eq=False, slots=True)
class PlateWork:
    """A plate on its way to a verdict. Scores arrive from several threads."""

    plate: Plate
    result_id: str
    sequence: int
    buffer: PlateBuffer | None
    judge: Judge
    """The one that judged when its leading edge was seen."""
    is_audit_sample: bool = False
    """Drawn by whoever reports the plate's opening to the log, before any tile has a score."""
    problem: Reason | None = None
    detail: str = ""
    tiles_expected: int = 0
    scores: list[TileScore] = field(default_factory=list)
    maps: list[NDArray[np.float32]] = field(default_factory=list)
    """What the network said of where, (n, 7, 7) for each chunk; in no order."""
    sampled_px: int = 0
    unlit_px: int = 0
    is_failing: bool = False
    is_closed: bool = False
    jobs: int = 0
    scored_ns: int = 0
    """CLOCK_MONOTONIC when the last score was in."""
    submitted_ns: int = 0
    given: Given = field(default_factory=Given)
    """What held when its leading edge was seen."""
    association: Association | None = None
    """With its serial; None where none is looked for."""
    belt_place: int | None = None
    """Scan lines of belt travel at the leading edge; None where nobody asked."""
    is_limit_sample: bool = False
    """A stored plate that is no production: it gets no record, no light and no output."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def unlit_share(self) -> float:
        return self.unlit_px / self.sampled_px if self.sampled_px else 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    work: PlateWork
    row: TileRow
    chunk: slice
    counts_unlit: bool


@dataclass(frozen=True, slots=True)
class FailingTile:
    """The first failing tile of a plate: green goes at once."""

    work: PlateWork


@dataclass(frozen=True, slots=True)
class PlateScored:
    """All tiles of a closed plate have their scores."""

    work: PlateWork


Report = Callable[[FailingTile | PlateScored | Tick], None]


class Inspector:
    """Scores tile rows on `threads` threads, each by its plate's own judge, and reports to one
    callback, from any thread."""

    def __init__(self, geometry: Geometry, threads: int, report: Report) -> None:
        self._geometry = geometry
        self._report = report
        self._jobs: queue.SimpleQueue[_Job | Tick | None] = queue.SimpleQueue()
        self._busy_since_ns = [0] * threads
        self._threads = [
            threading.Thread(target=self._run, args=(i,), name=f"inspect-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def score(self, work: PlateWork, row: TileRow) -> None:
        """Queue a tile row chunk by chunk: a thread that is held up holds up no more than one."""
        chunks = row.chunks()
        with work.lock:
            work.tiles_expected += len(row.columns)
            work.jobs += len(chunks)
        for place, chunk in enumerate(chunks):
            self._jobs.put(_Job(work, row, chunk, counts_unlit=place == 0))

    def close(self, work: PlateWork) -> None:
        """No more tile rows of this plate will come."""
        with work.lock:
            work.is_closed = True
            is_done = work.jobs == 0
        if is_done:
            self._end(work)

    def tick(self, tick: Tick) -> None:
        """Pass a tick through the queue: it arrives behind the work that is waiting."""
        self._jobs.put(tick)

    @property
    def waiting(self) -> int:
        """Jobs and ticks that no thread has begun."""
        return self._jobs.qsize()

    def busiest_s(self) -> float:
        """How long the slowest thread has been at its present job."""
        now = time.monotonic_ns()
        return max((now - since) / 1e9 if since else 0.0 for since in self._busy_since_ns)

    def stop(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _run(self, session: int) -> None:
        block = np.empty((TILE_PX, self._geometry.block_px), np.uint8)
        batch = np.empty((CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
        while (item := self._jobs.get()) is not None:
            if isinstance(item, Tick):
                self._report(item)
                continue
            self._busy_since_ns[session] = time.monotonic_ns()
            self._score_job(item, session, block, batch)
            self._busy_since_ns[session] = 0

    def _score_job(
        self, job: _Job, session: int, block: NDArray[np.uint8], batch: NDArray[np.uint8]
    ) -> None:
        work = job.work
        try:
            self._add(work, self._scores(job, session, block, batch))
        except Exception as error:  # noqa: BLE001  a failing classifier makes the plate UNDECIDED
            work.problem, work.detail = Reason.MODEL, f"{type(error).__name__}: {error}"
        if job.counts_unlit:
            _count_unlit(work, job.row, self._geometry)
        with work.lock:
            work.jobs -= 1
            is_done = work.is_closed and work.jobs == 0
        if is_done:
            self._end(work)

    def _end(self, work: PlateWork) -> None:
        work.scored_ns = time.monotonic_ns()
        self._report(PlateScored(work))

    def _scores(
        self, job: _Job, session: int, block: NDArray[np.uint8], batch: NDArray[np.uint8]
    ) -> list[TileScore]:
        row, chunk, pixels = job.row, job.chunk, job.work.plate.pixels
        assert pixels is not None
        count = cut_tiles(self._geometry, pixels, row, chunk, block, batch)
        judge = job.work.judge
        found = judge.classifier.find(batch[:count], session)
        if found.defect_maps is not None:
            job.work.maps.append(found.defect_maps)
        places = zip(row.columns[chunk], row.x_px[chunk], found.scores.tolist(), strict=True)
        return [
            TileScore(
                column,
                row.index,
                x,
                row.y_px,
                score,
                _boxes(row, x, found, i) if is_failing(score, judge.seen_above) else (),
            )
            for i, (column, x, score) in enumerate(places)
        ]

    def _add(self, work: PlateWork, scores: list[TileScore]) -> None:
        fails = any(is_failing(tile.score, work.judge.threshold) for tile in scores)
        with work.lock:
            work.scores += scores
            is_first = fails and not work.is_failing
            work.is_failing = work.is_failing or fails
        if is_first:
            self._report(FailingTile(work))


def _boxes(row: TileRow, x_px: int, found: Findings, number: int) -> tuple[Box, ...]:
    """Where a failing tile sees its defects; looked for in no other."""
    if found.defect_maps is None:
        return ()
    boxes = (box for box, _ in defect_boxes(found.defect_maps[number]))
    return boxes_on_plate(row, x_px, boxes)


def _count_unlit(work: PlateWork, row: TileRow, geometry: Geometry) -> None:
    """Count pixels at level 0 or 255 in the tile row's own step of the region."""
    pixels = work.plate.pixels
    assert pixels is not None
    lines = np.flatnonzero(row.left[: geometry.step_px] != OUTSIDE)[::_UNLIT_EVERY_PX]
    if not len(lines):
        return
    left, right = int(row.left[lines].max()), int(row.right[lines].min())
    sample = pixels[row.y_px + lines, left:right:_UNLIT_EVERY_PX]
    with work.lock:
        work.sampled_px += sample.size
        work.unlit_px += int(np.count_nonzero((sample == 0) | (sample == 255)))
