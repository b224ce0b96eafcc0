"""Scan lines straight from a camera, for whoever commissions it while the station does not run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Camera, EndOfSource, Frame
from drivers.camera.settings import CameraSettings, GenicamCameraSettings
from drivers.errors import DeviceRefused, DeviceTimeout

Pixels = NDArray[np.uint8]

TARGET = "SimTarget"
"""Of our GenTL simulator: what lies under the camera."""
_SILENT_S = 2.0
_BROKEN_SHARE = 3
"""So many times the frames wanted are looked at for whole ones."""


def frames_or_silence(camera: Camera, timeout_s: float) -> Iterator[Frame | None]:
    """Frames as they come, whole or not, None each time that none comes within `timeout_s`.

    A frame is valid until the next is asked for. Ends with the source. Raises `DeviceRefused` for
    another pixel format.
    """
    into = np.empty(camera.info.max_frame_bytes, np.uint8)
    while True:
        try:
            frame = camera.grab(into, timeout_s)
        except EndOfSource:
            return
        if frame is not None and frame.pixel_format != MONO8:
            raise DeviceRefused(
                f"the camera delivers {frame.pixel_format}; set PixelFormat = {MONO8!r}"
            )
        yield frame


def frames(camera: Camera, timeout_s: float = _SILENT_S) -> Iterator[Frame]:
    """The same, where silence is an error. Raises `DeviceTimeout`, `DeviceRefused`."""
    for frame in frames_or_silence(camera, timeout_s):
        if frame is None:
            raise DeviceTimeout(
                f"the camera delivers no frames within {timeout_s:g} s; is it triggered?"
            )
        if frame.height:  # of a frame whose beginning was lost nothing is there
            yield frame


def take_scan_lines(camera: Camera, count: int, is_gap_free: bool = False) -> Pixels:
    """`count` scan lines, uint8 (count, width), fewer where the source ends. Broken frames are
    left out; with `is_gap_free` taking begins anew after one. Raises `DeviceTimeout`,
    `DeviceRefused`."""
    taken: list[Pixels] = []
    looked_at, last_id = 0, -1
    for frame in frames(camera):
        looked_at += camera.info.frame_height
        is_whole = not frame.is_incomplete and frame.pixels.shape[1] == camera.info.width
        if is_gap_free and not (is_whole and frame.frame_id == last_id + 1):
            taken.clear()
        last_id = frame.frame_id
        if is_whole:
            taken.append(frame.pixels.copy())
        lines = sum(map(len, taken))
        if lines >= count:
            break
        if looked_at > _BROKEN_SHARE * (count + camera.info.frame_height):
            raise DeviceRefused(
                f"only {lines} of {looked_at} scan lines came in whole frames; check the link"
            )
    if not taken:
        raise DeviceRefused("the source has no frames")
    return np.concatenate(taken)[:count]


def discard(camera: Camera, seconds: float) -> None:
    """Take frames and forget them: what was exposed before a setting took effect."""
    end = time.monotonic() + seconds
    for _ in frames(camera):
        if time.monotonic() >= end:
            return


def with_target(settings: CameraSettings, target: str) -> CameraSettings:
    """The same camera with our simulator's target set. Raises `DeviceRefused` for a camera that
    has none."""
    if not isinstance(settings, GenicamCameraSettings):
        raise DeviceRefused(f"a camera of type {settings.type} has no {TARGET}")
    return settings.model_copy(update={"features": {**settings.features, TARGET: target}})
