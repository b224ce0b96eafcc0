"""The camera while the station runs: its last scan lines, what they say, and only while somebody
looks. All that is made of the pixels is made here, not in the station."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import cv2
import numpy as np
from pydantic import BaseModel
from starlette.responses import Response

from station.focus import measure_focus
from station.live_frames import FRESH_S, LivePicture, read_live
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, not_found
from station.web.pages import WebRouter

router = WebRouter("/engineer")
# Threads of its own spin while they wait, on the cores that the tiles need.
cv2.setNumThreads(1)

_WIDEST_PX = 1200
_BINS = 64
_PROFILE_POINTS = 400
_QUALITY = 85
_FOCUS_LINES = 256
"""Enough for the sharpness, and half the work."""
_FIRST_PICTURE_S = 1.5
_LOOK_EVERY_S = 0.02


class ZoneShown(BaseModel):
    """Sharpness of a part of the scan line; None where no plate is seen."""

    start_px: int
    end_px: int
    score: float | None
    rise_px: float | None


class PictureShown(BaseModel):
    """What the last scan lines say."""

    frame_id: int
    at: str
    """When it came, in the station's zone."""
    age_s: float
    rows: int
    width_px: int
    line_rate_hz: float | None
    frames: int
    lost_frames: int
    incomplete_frames: int
    mean: float
    saturated_share: float
    unlit_share: float
    focus: float | None
    tilt: float | None
    zones: list[ZoneShown]
    profile_mean: list[float]
    """Mean level along the scan line, left to right, 0 to 255."""
    profile_low: list[float]
    profile_high: list[float]
    histogram: list[int]
    """Pixels of each level, 0 at the left, four levels a bar."""


class CameraPage(BaseModel):
    """The camera now; `picture` is None while none comes, and `why` says why."""

    is_running: bool
    why: str
    picture: PictureShown | None
    serial: str
    model: str
    temperature_c: float | None
    overrun_frames: int | None
    state: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture and what was made of it, for everybody who looks."""

    taken: tuple[int, int]
    """Frame id and time: ids begin anew with the camera."""
    shown: PictureShown
    jpeg: bytes


class _Desk:
    """Keeps the last picture: the work is done once, whoever many look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: _Seen | None = None

    def seen(self, picture: LivePicture) -> _Seen:
        with self._lock:
            taken = (picture.frame_id, picture.at_ns)
            if self._seen is None or self._seen.taken != taken:
                self._seen = _Seen(taken, _shown(picture), _jpeg(picture))
            return self._seen


_desk = _Desk()


@router.page("/camera", template="engineer/camera.html", role=Role.ENGINEER)
def camera(web: Web, person: Person) -> CameraPage:
    """What the camera sees now: picture, crossweb profile, histogram, sharpness, counters."""
    picture = _wanted(web, person)
    station = web.live.station or {}
    said = station.get("camera") or {}
    return CameraPage(
        is_running=picture is not None or bool(station),
        why="" if picture else "engineer.no_picture" if station else "engineer.station_away",
        picture=None if picture is None else _aged(_desk.seen(picture).shown, picture, web.zone),
        serial=str(said.get("serial") or ""),
        model=f"{said.get('vendor') or ''} {said.get('model') or ''}".strip(),
        temperature_c=said.get("temperature_c"),
        overrun_frames=said.get("overrun_frames"),
        state=str(station.get("state") or ""),
    )


@router.data("/camera/picture.jpg", role=Role.ENGINEER)
def camera_picture(web: Web) -> Response:
    """The picture that the page shows, small."""
    picture = _fresh(web)
    if picture is None:
        raise not_found("engineer.no_picture")
    headers = {"cache-control": "no-store"}
    return Response(_desk.seen(picture).jpeg, media_type="image/jpeg", headers=headers)


def _wanted(web: Web, person: Person) -> LivePicture | None:
    """Ask for a picture; the newest that there is, None if none comes."""
    try:
        web.command("look", "", person)
    except PageError:
        return None
    return _until(lambda: _fresh(web), _FIRST_PICTURE_S)


def _until(find: Callable[[], LivePicture | None], limit_s: float) -> LivePicture | None:
    deadline = time.monotonic() + limit_s
    while (found := find()) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    return found


def _fresh(web: Web) -> LivePicture | None:
    """None for what an earlier look left behind, or a station that is gone."""
    picture = read_live(web.configuration.value.station.runtime_dir)
    if picture is None or not 0 <= time.monotonic_ns() - picture.at_ns < FRESH_S * 1e9:
        return None
    return picture


def _aged(shown: PictureShown, picture: LivePicture, zone: ZoneInfo) -> PictureShown:
    age_s = (time.monotonic_ns() - picture.at_ns) / 1e9
    at = datetime.fromtimestamp(time.time() - age_s, zone).isoformat(timespec="seconds")
    return shown.model_copy(update={"at": at, "age_s": round(age_s, 2)})


def _shown(picture: LivePicture) -> PictureShown:
    pixels = picture.pixels
    reading = measure_focus(pixels[-_FOCUS_LINES:])
    counts = np.bincount(pixels.ravel(), minlength=256)
    low, mean, high = _profile(picture)
    return PictureShown(
        frame_id=picture.frame_id,
        at="",
        age_s=0.0,
        rows=pixels.shape[0],
        width_px=pixels.shape[1],
        line_rate_hz=picture.line_rate_hz,
        frames=picture.frames,
        lost_frames=picture.lost_frames,
        incomplete_frames=picture.incomplete_frames,
        mean=round(float(pixels.mean()), 2),
        saturated_share=float(counts[255]) / pixels.size,
        unlit_share=float(counts[0]) / pixels.size,
        focus=reading.score,
        tilt=reading.tilt,
        zones=[
            ZoneShown(
                start_px=zone.start_px, end_px=zone.end_px, score=zone.score, rise_px=zone.rise_px
            )
            for zone in reading.zones
        ],
        profile_low=low,
        profile_mean=mean,
        profile_high=high,
        histogram=counts.reshape(_BINS, -1).sum(axis=1).tolist(),
    )


def _profile(picture: LivePicture) -> tuple[list[float], list[float], list[float]]:
    """Lowest, mean and highest level of columns side by side; of dust a mean alone says nothing."""
    columns = np.array_split(picture.pixels, min(_PROFILE_POINTS, picture.pixels.shape[1]), axis=1)
    means = [np.mean(part, axis=0) for part in columns]
    return (
        [round(float(part.min()), 1) for part in means],
        [round(float(part.mean()), 1) for part in means],
        [round(float(part.max()), 1) for part in means],
    )


def _jpeg(picture: LivePicture) -> bytes:
    pixels = picture.pixels
    scale = min(1.0, _WIDEST_PX / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    is_made, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not is_made:
        raise PageError(500, "engineer.no_picture")
    return data.tobytes()
