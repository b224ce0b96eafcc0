"""Pictures or a recorded strip, played as a line-scan camera would deliver them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Break, Camera, CameraInfo, EndOfSource, Frame
from drivers.camera.picture import PictureError, read_grey_picture
from drivers.camera.recording import (
    RecordedFrame,
    RecordedStrip,
    RecordingError,
    is_recording,
)
from drivers.camera.settings import ReplayCameraSettings
from drivers.errors import DeviceNotFound, DeviceRefused

Pixels = NDArray[np.uint8]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"}
_BELT_LEVELS = (5, 12)
_BELT_ROWS = 1021
"""Scan lines of belt kept; prime, so that no frame height repeats them in step."""
_LATE_LIMIT_S = 0.5


@dataclass(frozen=True, slots=True)
class _Due:
    """A frame to come."""

    read: Callable[[Pixels], Frame | Break]
    """Its pixels go into the flat buffer; a break where they turn out to be damaged."""
    pause_s: float = 0.0
    """Between the frame before it and this one, as recorded."""
    is_older: bool = False
    """Its recorded time lies before that of the frame before it."""


class _Source(Protocol):
    info: CameraInfo

    def play(self, lap: int) -> Iterator[_Due | Break]:
        """What comes in a lap, counted from 0."""


class ReplayCamera(Camera):
    """Raises `DeviceNotFound` if nothing lies at the path, `DeviceRefused` if it cannot be
    played."""

    def __init__(self, settings: ReplayCameraSettings) -> None:
        self._settings = settings
        self._source = _open_source(settings)
        self.info = self._source.info
        self._is_running = False

    def start(self) -> None:
        self._items = self._source.play(0)
        self._lap = 0
        self._breaks: list[Break] = []
        self._next: _Due | None = None
        self._due_s = time.monotonic()
        self._stamp_ns = 0
        self._is_running = True

    def grab(self, into: Pixels, timeout_s: float) -> Frame | None:
        if not self._is_running:
            raise RuntimeError("grab() before start()")
        if into.size < self.info.max_frame_bytes:
            raise ValueError(
                f"`into` holds {into.size} bytes, a frame may have {self.info.max_frame_bytes}"
            )
        due = self._next = self._next or self._find_next()
        if not self._wait(due, timeout_s):
            return None
        self._next = None
        found = due.read(into)
        if isinstance(found, Break):
            self._add_break(found)
            return None
        return self._stamp(found, due.is_older)

    def stop(self) -> None:
        self._is_running = False

    def close(self) -> None:
        self.stop()

    def _find_next(self) -> _Due:
        """The next frame; breaks before it are kept for it. Raises `EndOfSource`."""
        while True:
            for item in self._items:
                if isinstance(item, _Due):
                    return item
                self._add_break(item)
            if not self._settings.is_loop:
                raise EndOfSource(*self._breaks)
            self._lap += 1
            self._items = self._source.play(self._lap)

    def _add_break(self, known: Break) -> None:
        last = self._breaks[-1] if self._breaks else None
        if last is not None and last.kind == known.kind == "damaged":
            # One is said for a long run: the breaks of a frame travel in one message.
            self._breaks[-1] = replace(last, frames=last.frames + known.frames)
        else:
            self._breaks.append(known)

    def _stamp(self, frame: Frame, is_older: bool) -> Frame:
        """Times are those of the replay, in the order in which they were recorded."""
        self._stamp_ns = self._stamp_ns - 1 if is_older else time.monotonic_ns()
        breaks, self._breaks = tuple(self._breaks), []
        return replace(frame, timestamp_ns=self._stamp_ns, breaks=breaks)

    def _pause_s(self, due: _Due) -> float:
        if self._settings.timing == "recorded":
            return due.pause_s
        rate_hz = self._settings.line_rate_hz
        return self.info.frame_height / rate_hz if rate_hz else 0.0

    def _wait(self, due: _Due, timeout_s: float) -> bool:
        """Wait until a frame is due, if the replay is paced."""
        pause_s, now = self._pause_s(due), time.monotonic()
        # A replay waits for its reader: late frames are delayed, never lost.
        self._due_s = max(self._due_s, now - _LATE_LIMIT_S - pause_s)
        wait_s = self._due_s + pause_s - now
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return False
        time.sleep(max(0.0, wait_s))
        self._due_s += pause_s
        return True


def _open_source(settings: ReplayCameraSettings) -> _Source:
    path = settings.path
    if not path.exists():
        folder = path.parent
        beside = sorted(entry.name for entry in folder.iterdir())[:10] if folder.is_dir() else []
        raise DeviceNotFound(
            f"replay: {path}: no such file or folder; found in {folder}: "
            f"{', '.join(beside) or 'nothing'}"
        )
    try:
        if path.is_dir() and is_recording(path):
            return _Strip(RecordedStrip(path))
        if settings.timing is not None:
            raise DeviceRefused(f"replay: {path}: only a recorded strip has a timing")
        return _Pictures(settings, _picture_paths(path))
    except (PictureError, RecordingError) as error:
        raise DeviceRefused(f"replay: {error}") from error


def _picture_paths(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise DeviceRefused(f"replay: {path}: neither pictures nor a recorded strip in this folder")
    return found


class _Strip:
    """A recorded strip, frame by frame as it was delivered."""

    def __init__(self, strip: RecordedStrip) -> None:
        self._strip = strip
        self._id_shift = self._highest_id = 0
        # What the records say of the camera stays; that it is a production camera does not.
        self.info = replace(
            strip.info,
            driver="replay",
            model=f"replay of {strip.info.model}",
            is_patient=True,
            producer_path=None,
            producer_sha256=None,
        )

    def play(self, lap: int) -> Iterator[_Due | Break]:
        if lap:
            yield Break("started", "the recording begins again")
        before_ns: int | None = None
        last: RecordedFrame | Break | None = None
        for item in self._strip.items():
            if isinstance(item, Break):
                before_ns = None if item.kind == "started" else before_ns
                yield item
            else:
                if lap and last is None:
                    self._id_shift = self._highest_id + 1 - item.header["frame_id"]
                yield self._due(item, before_ns, lap)
                before_ns = item.timestamp_ns
            last = item
        if not isinstance(last, Break) or last.kind not in ("ended", "finished"):
            # Nobody knows what would have come: a plate that has begun has no end.
            yield Break("ended", "the recording ends here")

    def _due(self, frame: RecordedFrame, before_ns: int | None, lap: int) -> _Due:
        step_ns = 0 if before_ns is None else frame.timestamp_ns - before_ns
        return _Due(partial(self._read, frame, lap), max(0, step_ns) / 1e9, step_ns < 0)

    def _read(self, recorded: RecordedFrame, lap: int, into: Pixels) -> Frame | Break:
        frame = recorded.read(into)
        if isinstance(frame, Break) or not lap:
            self._note(recorded.header["frame_id"])
            return frame
        frame_id = frame.frame_id + self._id_shift
        self._note(frame_id)
        return replace(frame, frame_id=frame_id, plate_counter=None, truth=())

    def _note(self, frame_id: int) -> None:
        self._highest_id = max(self._highest_id, frame_id)


class _Pictures:
    """Pictures one below another with belt before, between and after them."""

    def __init__(self, settings: ReplayCameraSettings, paths: list[Path]) -> None:
        pictures = [read_grey_picture(path) for path in paths]
        self._width = max(picture.shape[1] for picture in pictures)
        self._height, self._is_loop = settings.frame_height, settings.is_loop
        rng = np.random.default_rng(8)
        self._belt = rng.integers(*_BELT_LEVELS, (_BELT_ROWS, self._width), np.uint8)
        self._pictures: list[tuple[int, Pixels]] = []
        line = settings.gap_scan_lines
        for picture in pictures:
            self._pictures.append((line, picture))
            line += len(picture) + settings.gap_scan_lines
        self._frames = -(-line // self._height)
        self.info = CameraInfo(
            driver="replay",
            vendor="VQI",
            model=f"replay of {len(paths)} pictures",
            serial=f"REPLAY-{settings.path.name}",
            width=self._width,
            frame_height=self._height,
            pixel_format=MONO8,
            line_rate_hz=settings.line_rate_hz,
            is_patient=True,
        )

    def play(self, lap: int) -> Iterator[_Due | Break]:
        for number in range(self._frames):
            yield _Due(partial(self._compose, number, lap))
        if not self._is_loop:
            yield Break("finished", "")

    def _compose(self, number: int, lap: int, into: Pixels) -> Frame:
        first = number * self._height
        absolute = (lap * self._frames + number) * self._height
        pixels = into[: self._height * self._width].reshape(self._height, self._width)
        pixels[:] = self._belt[(absolute + np.arange(self._height)) % _BELT_ROWS]
        for start, picture in self._pictures:
            top, bottom = max(start - first, 0), min(start - first + len(picture), self._height)
            if top < bottom:
                rows = picture[top + first - start : bottom + first - start]
                pixels[top:bottom, : picture.shape[1]] = rows
        return Frame(
            pixels=pixels,
            width=self._width,
            frame_id=lap * self._frames + number,
            timestamp_ns=0,
            encoder_value=absolute,
        )
