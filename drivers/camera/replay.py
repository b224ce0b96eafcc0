"""Pictures or a recorded strip, played as a line-scan camera would deliver them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Camera, CameraInfo, EndOfSource, Frame
from drivers.camera.picture import PictureError, read_grey_picture
from drivers.camera.recording import HEADERS, RecordedStrip, RecordingError
from drivers.camera.settings import ReplayCameraSettings
from drivers.errors import DeviceNotFound, DeviceRefused

Pixels = NDArray[np.uint8]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"}
_BELT_LEVELS = (5, 12)
_BELT_ROWS = 1021
"""Scan lines of belt kept; prime, so that no frame height repeats them in step."""
_LATE_LIMIT_S = 0.5


class _Source(Protocol):
    info: CameraInfo
    frames: int

    def frame(self, number: int, lap: int, into: Pixels) -> Frame: ...


class ReplayCamera(Camera):
    """Raises `DeviceNotFound` if nothing lies at the path, `DeviceRefused` if it cannot be
    played."""

    def __init__(self, settings: ReplayCameraSettings) -> None:
        self._settings = settings
        self._source = _open_source(settings)
        self.info = self._source.info
        self._number = 0
        self._due_s = 0.0
        self._is_running = False

    def start(self) -> None:
        self._number = 0
        self._due_s = time.monotonic()
        self._is_running = True

    def grab(self, into: Pixels, timeout_s: float) -> Frame | None:
        if not self._is_running:
            raise RuntimeError("grab() before start()")
        if into.size < self.info.max_frame_bytes:
            raise ValueError(
                f"`into` holds {into.size} bytes, a frame may have {self.info.max_frame_bytes}"
            )
        lap, number = divmod(self._number, self._source.frames)
        if lap and not self._settings.is_loop:
            raise EndOfSource
        if not self._wait(timeout_s):
            return None
        self._number += 1
        return self._source.frame(number, lap, into)

    def stop(self) -> None:
        self._is_running = False

    def close(self) -> None:
        self.stop()

    def _wait(self, timeout_s: float) -> bool:
        """Wait until the next frame is due, if the replay is paced."""
        if self._settings.line_rate_hz is None:
            return True
        frame_s = self.info.frame_height / self._settings.line_rate_hz
        now = time.monotonic()
        # A replay waits for its reader: late frames are delayed, never lost.
        self._due_s = max(self._due_s, now - _LATE_LIMIT_S)
        wait_s = self._due_s + frame_s - now
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return False
        time.sleep(max(0.0, wait_s))
        self._due_s += frame_s
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
        if (path / HEADERS).is_file():
            return _Strip(RecordedStrip.open(path))
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
    """A recorded strip, frame by frame as it was delivered; times are those of the replay."""

    def __init__(self, strip: RecordedStrip) -> None:
        self._strip = strip
        self.frames = len(strip.headers)
        recorded = strip.info
        self.info = CameraInfo(
            driver="replay",
            vendor=recorded.vendor,
            model=f"replay of {recorded.model}",
            serial=recorded.serial,
            width=recorded.width,
            frame_height=recorded.frame_height,
            pixel_format=recorded.pixel_format,
            line_rate_hz=recorded.line_rate_hz,
            is_patient=True,
        )
        ids = [header["frame_id"] for header in strip.headers]
        self._ids_a_lap = max(ids) - min(ids) + 1
        self._plates_a_lap = max(header["plate_counter"] or 0 for header in strip.headers) + 1
        self._lines_a_lap = self._ids_a_lap * recorded.frame_height

    def frame(self, number: int, lap: int, into: Pixels) -> Frame:
        stored = self._strip.frame(number, into)
        counter, encoder = stored.plate_counter, stored.encoder_value
        return Frame(
            pixels=stored.pixels,
            width=stored.width,
            frame_id=stored.frame_id + lap * self._ids_a_lap,
            timestamp_ns=time.monotonic_ns(),
            pixel_format=stored.pixel_format,
            is_incomplete=stored.is_incomplete,
            encoder_value=None if encoder is None else encoder + lap * self._lines_a_lap,
            plate_counter=None if counter is None or lap else counter,
            truth=stored.truth if not lap else (),
        )


class _Pictures:
    """Pictures one below another with belt before, between and after them."""

    def __init__(self, settings: ReplayCameraSettings, paths: list[Path]) -> None:
        pictures = [read_grey_picture(path) for path in paths]
        self._width = max(picture.shape[1] for picture in pictures)
        self._height = settings.frame_height
        rng = np.random.default_rng(8)
        self._belt = rng.integers(*_BELT_LEVELS, (_BELT_ROWS, self._width), np.uint8)
        self._pictures: list[tuple[int, Pixels]] = []
        line = settings.gap_scan_lines
        for picture in pictures:
            self._pictures.append((line, picture))
            line += len(picture) + settings.gap_scan_lines
        self.frames = -(-line // self._height)
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

    def frame(self, number: int, lap: int, into: Pixels) -> Frame:
        first = number * self._height
        absolute = (lap * self.frames + number) * self._height
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
            frame_id=lap * self.frames + number,
            timestamp_ns=time.monotonic_ns(),
            encoder_value=absolute,
        )
