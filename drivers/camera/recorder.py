"""Writes a recorded strip at line speed, into a bounded ring of segments, on a thread of its own.

The caller never waits for the disk: a frame is copied into one of a fixed number of slots, and
where none is free the recording lacks it and says so. A disk that is full or broken ends the
recording and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivers.camera import Break, CameraInfo, Frame
from drivers.camera.recording import (
    OLD_HEADERS,
    RecordedFrame,
    RecordingError,
    Segment,
    break_line,
    camera_of,
    frame_line,
    segment_items,
    segment_line,
    segments_in,
)

_SEGMENT_BYTES = 256 * 2**20
_LEAST_SEGMENTS = 8
"""The ring forgets at most such a share of its bound at once."""
_HEADER_SHARE = 16
"""A segment's headers may take this part of its pixels' bytes; then the next one begins."""
_QUEUE_BYTES = 256 * 2**20
_LEAST_SLOTS = 8
_SYNC_BYTES = 32 * 2**20
"""Written out and dropped from the page cache in steps of this size."""
_BUFFERS_A_WRITE = 256
_QUEUED_LIMIT = 10_000
_STALLED_S = 5.0
"""A disk that takes nothing for so long at the end is not waited for."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much disk a recording takes, at most."""

    max_bytes: int
    """Of all segments together; the oldest are deleted."""
    min_free_bytes: int
    """Left free on the disk for others: with less, the recording ends."""

    @property
    def segment_bytes(self) -> int:
        """Pixels in a segment."""
        least = self.max_bytes // _LEAST_SEGMENTS * _HEADER_SHARE // (_HEADER_SHARE + 1)
        return min(_SEGMENT_BYTES, least)

    @property
    def header_bytes(self) -> int:
        """Headers in a segment."""
        return self.segment_bytes // _HEADER_SHARE


@dataclass(slots=True)
class RecordingCounts:
    """Written by the recorder's two threads, read by others."""

    frames: int = 0
    bytes: int = 0
    lacking_frames: int = 0
    """That were delivered and are not in the recording."""


class StripRecorder:
    """`append`, `mark` and `close` belong to one thread. `report` is told, from any thread, that
    frames are lacking (once) and that the recording has ended by itself.

    Goes on with a recording of the same camera. Raises `RecordingError` for one of another, for one
    larger than the bound, and for a disk without room; OSError if it cannot be written to.
    """

    def __init__(
        self,
        directory: Path,
        info: CameraInfo,
        bounds: Bounds,
        report: Callable[[str], None],
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        self.counts = RecordingCounts()
        self._directory = directory
        self._report = report
        self._ring = _Ring(directory, info, bounds, self.counts)
        slots = max(_LEAST_SLOTS, queue_bytes // info.max_frame_bytes)
        self._slots = np.empty((slots, info.max_frame_bytes), np.uint8)
        # The last one given back is taken first: while the disk keeps up, few are ever touched.
        self._free = deque(range(slots))
        self._queue: queue.SimpleQueue[tuple[Frame, int] | Break | None] = queue.SimpleQueue()
        self._taken = 0
        self._gap: _Lacking | None = None
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def append(self, frame: Frame) -> None:
        """Take a copy of a frame, as it was delivered."""
        if self._has_ended:
            self.counts.lacking_frames += 1
            return
        # Once behind, one long gap: many short ones would leave no plate whole.
        if len(self._free) < (len(self._slots) // 2 if self._gap else 1):
            self._lack(frame.frame_id)
            return
        self._tell_lacking()
        slot = self._free.pop()
        self._taken += 1
        pixels = self._slots[slot][: frame.pixels.size].reshape(frame.pixels.shape)
        np.copyto(pixels, frame.pixels)
        self._queue.put((replace(frame, pixels=pixels), slot))

    def mark(self, known: Break) -> None:
        """What happened between the last frame and the next."""
        if self._has_ended:
            return
        if self._queue.qsize() > _QUEUED_LIMIT:
            self._end("the disk does not answer")
            return
        self._tell_lacking()
        self._queue.put(known)

    def close(self) -> None:
        """Write what was taken, as long as the disk takes it."""
        self._tell_lacking()
        self._queue.put(None)
        written = -1
        while self._thread.is_alive() and self.counts.frames != written:
            written = self.counts.frames
            self._thread.join(_STALLED_S)

    def _lack(self, frame_id: int) -> None:
        if not self.counts.lacking_frames:
            self._report(
                f"the recording in {self._directory} lacks frames from {frame_id} on: the disk "
                "does not keep up"
            )
        self.counts.lacking_frames += 1
        gap = self._gap = self._gap or _Lacking(frame_id)
        gap.last_id, gap.frames = frame_id, gap.frames + 1

    def _tell_lacking(self) -> None:
        gap, self._gap = self._gap, None
        if gap is not None:
            text = f"the recording lacks {gap.frames} frames, {gap.first_id} to {gap.last_id}"
            self._queue.put(Break("lost", f"{text}: the disk did not keep up", gap.frames))

    def _end(self, why: str) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._report(f"the recording in {self._directory} has ended: {why}")

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._write(self._take()):
                pass
        except Exception as error:  # noqa: BLE001  whatever it is, the inspection goes on
            self._end(_say(error))
            self.counts.lacking_frames += self._taken - self.counts.frames
        finally:
            with contextlib.suppress(OSError):
                self._ring.close()

    def _take(self) -> list[tuple[Frame, int] | Break | None]:
        """Everything that waits: the slower the disk, the larger the writes."""
        items = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while len(items) < _BUFFERS_A_WRITE:
                items.append(self._queue.get_nowait())
        return items

    def _write(self, items: list[tuple[Frame, int] | Break | None]) -> bool:
        """False once the recording is to be closed."""
        slots = []
        for item in items:
            if isinstance(item, Break):
                self._ring.add_break(item)
            elif item is not None:
                frame, slot = item
                self._ring.add(frame)
                slots.append(slot)
        self._ring.flush()
        self._free.extend(slots)
        return None not in items


@dataclass(slots=True)
class _Lacking:
    """Frames in a row that found no free slot."""

    first_id: int
    last_id: int = 0
    frames: int = 0


class _Ring:
    """The segments on the disk and the one that is written to."""

    def __init__(
        self, directory: Path, info: CameraInfo, bounds: Bounds, counts: RecordingCounts
    ) -> None:
        self._directory, self._bounds, self._counts = directory, bounds, counts
        self._first_line = segment_line(info)
        directory.mkdir(parents=True, exist_ok=True)
        if info.max_frame_bytes > bounds.segment_bytes:
            least_gb = info.max_frame_bytes * 1.1 * _LEAST_SEGMENTS / 1e9
            raise RecordingError(
                f"{directory}: a ring of frames this large takes {least_gb:.2g} GB"
            )
        self._segments = segments_in(directory)
        self._refuse_others(info)
        self._check_room()
        self._tidy()
        number = self._segments[-1].number + 1 if self._segments else 1
        self._open = self._begin(number)
        # A station that was killed said nothing.
        if number > 1:
            self.add_break(Break("started", "the recording was started again"))
            self.flush()

    def add(self, frame: Frame) -> None:
        if self._open.add(frame):
            return
        self.flush()
        self._open.close()
        self._open = self._begin(self._open.segment.number + 1)
        if not self._open.add(frame):
            raise RecordingError(f"frame {frame.frame_id} is larger than a segment")

    def add_break(self, known: Break) -> None:
        self._open.add_line(break_line(known))

    def flush(self) -> None:
        frames, size = self._open.flush()
        self._counts.frames += frames
        self._counts.bytes += size

    def close(self) -> None:
        self._open.close()

    def _begin(self, number: int) -> _OpenSegment:
        """Make room, take all of a segment's room at once, and open it."""
        bounds = self._bounds
        footprint = bounds.segment_bytes + bounds.header_bytes
        sizes = {segment: segment.bytes for segment in self._segments}
        while sizes and sum(sizes.values()) + footprint > bounds.max_bytes:
            oldest = self._segments.pop(0)
            oldest.delete()
            del sizes[oldest]
        if _free_bytes(self._directory) < footprint + bounds.min_free_bytes:
            raise RecordingError(
                f"the disk is full: {_mb(bounds.min_free_bytes)} MB stay free for the station"
            )
        segment = Segment(self._directory, number)
        opened = _OpenSegment(segment, bounds, self._first_line)
        self._segments.append(segment)
        return opened

    def _refuse_others(self, info: CameraInfo) -> None:
        if (self._directory / OLD_HEADERS).exists():
            raise RecordingError(
                f"{self._directory}: holds a recording of an earlier version; record into another "
                "folder"
            )
        known = (camera_of(segment) for segment in reversed(self._segments))
        found = next((camera for camera in known if camera is not None), None)
        if found is not None and _identity(found) != _identity(info):
            raise RecordingError(
                f"{self._directory}: holds a recording of {_describe(found)}, the camera is "
                f"{_describe(info)}; record into another folder"
            )

    def _check_room(self) -> None:
        """The whole ring must fit: that a disk fills up is better said before than hours later."""
        taken, bounds = sum(segment.bytes for segment in self._segments), self._bounds
        if taken > bounds.max_bytes:
            raise RecordingError(
                f"{self._directory}: holds {_gb(taken)} GB already, more than the bound of "
                f"{_gb(bounds.max_bytes)} GB, which would delete some; raise the bound or record "
                "into another folder"
            )
        room = _free_bytes(self._directory) + taken - bounds.min_free_bytes
        if room < bounds.max_bytes:
            raise RecordingError(
                f"{self._directory}: {_gb(bounds.max_bytes)} GB do not fit: there is room for "
                f"{_gb(max(0, room))} GB with {_mb(bounds.min_free_bytes)} MB left for the station"
            )

    def _tidy(self) -> None:
        """Give back what a station that was killed had taken and not used."""
        known = {segment.pixels for segment in self._segments}
        for file in self._directory.glob("strip-*.raw"):
            if file not in known:
                file.unlink()
        if self._segments:
            newest = self._segments[-1]
            frames = [item for item in segment_items(newest) if isinstance(item, RecordedFrame)]
            used = max((frame.end for frame in frames), default=0)
            if newest.pixels.exists() and newest.pixels.stat().st_size > used:
                os.truncate(newest.pixels, used)


class _OpenSegment:
    """A segment that is written to. Its pixels' place on the disk is taken from the start."""

    def __init__(self, segment: Segment, bounds: Bounds, first_line: bytes) -> None:
        self.segment = segment
        self._lines: list[bytes] = []
        self._buffers: list[NDArray[np.uint8]] = []
        self._room, self._header_room = bounds.segment_bytes, bounds.header_bytes
        self._end = self._written = self._synced = 0
        self._is_closed = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._pixels = os.open(segment.pixels, flags, 0o644)
        try:
            os.posix_fallocate(self._pixels, 0, bounds.segment_bytes)
            self._headers = os.open(segment.headers, flags | os.O_APPEND, 0o644)
        except BaseException:
            os.close(self._pixels)
            segment.pixels.unlink(missing_ok=True)
            raise
        self.add_line(first_line)
        self.flush()

    def add(self, frame: Frame) -> bool:
        """Keep a frame for the next `flush`; its pixels must stay as they are until then. False if
        the segment has no room for it."""
        line, end = frame_line(frame, self._end), self._end + frame.pixels.size
        if end > self._room or len(line) > self._header_room:
            return False
        self.add_line(line)
        self._buffers.append(frame.pixels.reshape(-1))
        self._end = end
        return True

    def add_line(self, line: bytes) -> None:
        self._lines.append(line)
        self._header_room -= len(line)

    def flush(self) -> tuple[int, int]:
        """Write what is kept; how many frames and bytes of pixels. Pixels first: a header says
        that they are there."""
        _write_all(self._pixels, [buffer.data for buffer in self._buffers], self._written)
        _write_all(self._headers, [memoryview(b"".join(self._lines))], None)
        written = len(self._buffers), self._end - self._written
        self._buffers.clear()
        self._lines.clear()
        self._written = self._end
        if self._written - self._synced >= _SYNC_BYTES:
            self._sync()
        return written

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            os.ftruncate(self._pixels, self._written)
            self._sync()
            os.fdatasync(self._headers)
            os.posix_fadvise(self._headers, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(self._pixels)
            os.close(self._headers)

    def _sync(self) -> None:
        """What is recorded is not read soon: it must not push other things out of the page cache,
        nor lie in it until a commit of the log has to wait for it."""
        os.fdatasync(self._pixels)
        os.posix_fadvise(self._pixels, 0, self._written, os.POSIX_FADV_DONTNEED)
        self._synced = self._written


def _write_all(descriptor: int, parts: list[memoryview], offset: int | None) -> None:
    """Write buffers at an offset, or at the end of the file. Raises OSError."""
    while parts:
        if offset is None:
            done = os.writev(descriptor, parts)
        else:
            done = os.pwritev(descriptor, parts, offset)
            offset += done
        while parts and done >= len(parts[0]):
            done -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][done:]


def _free_bytes(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def _identity(info: CameraInfo) -> tuple[str, int, int, str, str]:
    shape = info.serial, info.width, info.frame_height, info.pixel_format
    return *shape, info.features_sha256


def _describe(info: CameraInfo) -> str:
    features = f", features {info.features_sha256[:12]}" if info.features else ""
    return f"{info.serial} ({info.width} x {info.frame_height} px, {info.pixel_format}{features})"


def _say(error: Exception) -> str:
    if isinstance(error, RecordingError):
        return str(error)
    if not isinstance(error, OSError):
        return repr(error)
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or repr(error)


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g}"
