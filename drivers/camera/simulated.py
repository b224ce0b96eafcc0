"""An endless belt of rendered plates under a paced line-scan camera.

The belt is a sequence of slots of one length: a gap, then a plate. Scan lines are counted from the
belt's start; plate k (from 1) begins at a scan line that needs no rendering to be known. The
pictures are rendered when the camera is opened: a frame then costs only a copy of its scan lines.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Camera, CameraInfo, Frame, PlateTruth
from drivers.camera.labels import LabelScanner
from drivers.camera.settings import FaultSettings, SimulatedCameraSettings, WearSettings
from drivers.camera.specimen import RenderedPlate, Specimen, plate_rows, render, render_belt
from drivers.errors import DeviceLost, DeviceRefused

Pixels = NDArray[np.uint8]

MONO12 = "Mono12"
_LATEST_S = 0.5
"""A camera's own buffers hold this long; what is not taken by then is lost."""
_BELT_ROWS = 1021
"""Scan lines of empty belt kept; prime, so that no frame height repeats them in step."""
_RENDER_THREADS = 2


class Slots:
    """Where plates lie on the belt, in scan lines from its start."""

    def __init__(self, settings: SimulatedCameraSettings) -> None:
        plate, pitch_mm = settings.specimen, settings.pixel_pitch_mm
        self.gap = math.ceil(plate.gap_mm / pitch_mm)
        size_mm = (plate.width_mm, plate.length_mm)
        angles = np.linspace(0, plate.skew_deg, 10)
        self.period = self.gap + max(plate_rows(size_mm, float(a), pitch_mm) for a in angles)

    def start(self, ordinal: int) -> int:
        """First scan line of a plate, counted from 1."""
        return self.gap + (ordinal - 1) * self.period

    def plates_before(self, scan_line: int) -> int:
        """How many plates begin before this scan line."""
        return max(0, -(-(scan_line - self.gap) // self.period))


def belt_plates_before(settings: SimulatedCameraSettings, scan_line: int) -> int:
    """How many plates' first scan line lies before `scan_line` of the belt; renders nothing."""
    return Slots(settings).plates_before(scan_line)


class SimulatedCamera(Camera):
    """The belt's camera. Raises `DeviceRefused` if the belt's file cannot be read."""

    def __init__(self, settings: SimulatedCameraSettings) -> None:
        self._settings = settings
        self._slots = Slots(settings)
        self._frame_s = settings.frame_height / settings.line_rate_hz
        self._epoch_s = None if settings.belt_file is None else _read_epoch_s(settings)
        self._bank = render_bank(settings)
        self._worn = _worn_pictures(settings, self._bank)
        self._belt = render_empty_belt(settings)
        labels, slots = settings.labels, self._slots
        pitch_mm = settings.pixel_pitch_mm
        self._labels = labels and LabelScanner(labels, pitch_mm, slots.start, slots.plates_before)
        self._order = lru_cache(maxsize=4)(partial(shuffled, settings))
        self.lost_frames = 0
        self._is_lost = False
        self._is_running = False
        self._first = 0
        self._next = 0
        self._resume_s = 0.0
        self._again: deque[int] = deque()
        self._stalled: set[int] = set()
        self.info = CameraInfo(
            driver="simulated",
            vendor="VQI",
            model="Simulated belt",
            serial=f"SIM-{settings.seed}",
            width=settings.width,
            frame_height=settings.frame_height,
            pixel_format=MONO8,
            line_rate_hz=settings.line_rate_hz,
            is_patient=not settings.is_paced,
        )

    def start(self) -> None:
        if self._is_lost:
            raise DeviceLost(f"{self.info.serial}: the camera is disconnected; open it again")
        now_s = time.monotonic()
        if self._settings.belt_file is None:
            self._epoch_s = now_s
        assert self._epoch_s is not None
        self._first = self._next = max(0, int((now_s - self._epoch_s) / self._frame_s))
        if not self._settings.is_paced and self._settings.belt_file is None:
            self._first = self._next = 0
        self._again.clear()
        self._stalled.clear()
        if self._labels:
            self._labels.begin(self._first * self._settings.frame_height)
        self._is_running = True

    def grab(self, into: Pixels, timeout_s: float) -> Frame | None:
        if self._is_lost:
            raise DeviceLost(f"{self.info.serial}: the camera is disconnected; open it again")
        if not self._is_running:
            raise RuntimeError("grab() before start()")
        if into.size < self.info.max_frame_bytes:
            raise ValueError(
                f"`into` holds {into.size} bytes, a frame may have {self.info.max_frame_bytes}"
            )
        if self._again:
            return self._deliver(self._again.popleft(), into)
        number = self._wait(timeout_s)
        return None if number is None else self._deliver(number, into)

    def stop(self) -> None:
        self._is_running = False

    def temperature_c(self) -> float | None:
        wear = self._settings.wear
        return wear.temperature_c if _is_worn(wear, self._next) else None

    def close(self) -> None:
        self.stop()
        self._bank = []

    def _due_s(self, number: int) -> float:
        """When the last scan line of a belt frame is in memory."""
        assert self._epoch_s is not None
        return self._epoch_s + (number + 1) * self._frame_s

    def _wait(self, timeout_s: float) -> int | None:
        """The next frame's number once it is complete; None if it is not within the time."""
        faults, deadline_s = self._settings.faults, time.monotonic() + timeout_s
        self._skip_unfetched()
        self._skip_faulty()
        ready_s = self._due_s(self._next) if self._settings.is_paced else self._resume_s
        _sleep_until(min(ready_s, deadline_s))
        if time.monotonic() < ready_s:
            return None
        if self._next in faults.disconnect:
            self._is_lost = True
            raise DeviceLost(f"{self.info.serial}: disconnected at belt frame {self._next}")
        number, self._next = self._next, self._next + 1
        if number in faults.duplicate:
            self._again.append(number)
        return number

    def _skip_unfetched(self) -> None:
        """Frames that were not taken in time are gone, as from a camera's own buffers."""
        if not self._settings.is_paced:
            return
        late_s = time.monotonic() - _LATEST_S - self._due_s(self._next)
        if late_s > 0:
            self._lose(math.ceil(late_s / self._frame_s))

    def _skip_faulty(self) -> None:
        """Frames that the faults swallow: dropped ones and those of a stall."""
        faults = self._settings.faults
        while True:
            if self._next in faults.stall and self._next not in self._stalled:
                self._stalled.add(self._next)
                self._resume_s = time.monotonic() + faults.stall_s
                self._lose(math.ceil(faults.stall_s / self._frame_s))
            elif self._next in faults.drop_frames:
                self._lose(1)
            else:
                return

    def _lose(self, frames: int) -> None:
        self._next += frames
        self.lost_frames += frames

    def _deliver(self, number: int, into: Pixels) -> Frame:
        """Compose a belt frame, with the faults that change its content."""
        faults, height = self._settings.faults, self._settings.frame_height
        is_stuck = number in faults.stuck and number > 0
        removed = _removed_rows(number, faults, height)
        if self._labels:
            self._labels.move((number + 1) * height)
        pixels = into[: height * self._settings.width].reshape(height, self._settings.width)
        self._compose(number - 1 if is_stuck else number, pixels)
        if number in faults.black:
            pixels[:] = 0
        if number in faults.saturated:
            pixels[:] = 255
        pixels[removed.start : removed.start + height - removed.stop] = pixels[removed.stop :]
        pixels = pixels[: height - len(removed)]
        pixel_format, width = MONO8, self._settings.width
        if number in faults.wrong_width:
            pixels, width = _repack(into, pixels[:, : width // 2]), width // 2
        if number in faults.wrong_pixel_format:
            wide = (pixels.astype("<u2") << 4).view(np.uint8)
            pixels, pixel_format = _repack(into, wide), MONO12
        return Frame(
            pixels=pixels,
            width=width,
            frame_id=number - self._first,
            timestamp_ns=time.monotonic_ns(),
            pixel_format=pixel_format,
            is_incomplete=number in faults.truncate,
            encoder_value=number * height,
            plate_counter=self._slots.plates_before(number * height),
            truth=self._truth(number),
        )

    def _compose(self, number: int, pixels: Pixels) -> None:
        """Copy the scan lines of a belt frame: empty belt, then the plates that lie in it."""
        height = len(pixels)
        first = number * height
        _copy_cyclic(self._belt, first, pixels)
        last_plate = self._slots.plates_before(first + height)
        for ordinal in range(max(1, self._slots.plates_before(first)), last_plate + 1):
            picture, start = self._picture(ordinal), self._slots.start(ordinal) - first
            top, bottom = max(start, 0), min(start + len(picture), height)
            if top < bottom:
                pixels[top:bottom] = picture[top - start : bottom - start]
        if _is_worn(self._settings.wear, number):
            _wear_out(pixels, self._settings.wear, number, self._settings.pixel_pitch_mm)

    def _truth(self, number: int) -> tuple[PlateTruth, ...]:
        """The plates whose leading edge lies in a belt frame."""
        first = number * self._settings.frame_height
        before = self._slots.plates_before(first)
        until = self._slots.plates_before(first + self._settings.frame_height)
        return tuple(
            PlateTruth(ordinal, self._slots.start(ordinal) - first, self._plate(ordinal).defects)
            for ordinal in range(before + 1, until + 1)
        )

    def _plate(self, ordinal: int) -> RenderedPlate:
        return self._bank[self._place(ordinal)]

    def _picture(self, ordinal: int) -> Pixels:
        """A plate as its material and the belt's travel make it look when it arrives."""
        arrives = self._slots.start(ordinal) // self._settings.frame_height
        if self._worn and _is_worn(self._settings.wear, arrives):
            return self._worn[self._place(ordinal)]
        return self._plate(ordinal).pixels

    def _place(self, ordinal: int) -> int:
        """Which plate of the bank it is."""
        lap, place = divmod(ordinal - 1, len(self._bank))
        return self._order(lap)[place]


def shuffled(settings: SimulatedCameraSettings, lap: int) -> tuple[int, ...]:
    """Every plate of the bank once a lap, in an order of its own."""
    rng = np.random.default_rng([settings.seed, 2, lap])
    return tuple(rng.permutation(settings.bank_plates).tolist())


def render_empty_belt(settings: SimulatedCameraSettings) -> Pixels:
    """Scan lines of the belt without plates, which repeat without end."""
    return render_belt(_BELT_ROWS, settings.width, np.random.default_rng([settings.seed, 1]))


def render_bank(
    settings: SimulatedCameraSettings, dot_contrast: float = 1.0
) -> list[RenderedPlate]:
    """The belt's different plates, `defective_share` of them with defects."""
    specimen, count = settings.specimen, settings.bank_plates
    defective = round(specimen.defective_share * count)

    def make(number: int) -> RenderedPlate:
        rng = np.random.default_rng([settings.seed, 0, number])
        plate = Specimen.random(specimen, rng, is_defective=number < defective)
        return render(
            plate.with_contrast(dot_contrast),
            settings.pixel_pitch_mm,
            settings.width,
            float(rng.uniform(-1, 1)) * specimen.lateral_offset_mm,
            float(rng.uniform(-1, 1)) * specimen.skew_deg,
            rng,
        )

    with ThreadPoolExecutor(_RENDER_THREADS) as pool:
        return list(pool.map(make, range(count)))


def _is_worn(wear: WearSettings, number: int) -> bool:
    is_over = wear.until_frame is not None and number >= wear.until_frame
    return number >= wear.from_frame and not is_over


def _worn_pictures(settings: SimulatedCameraSettings, bank: list[RenderedPlate]) -> list[Pixels]:
    """The plates' pictures of the worn material, with more (or fewer) scan lines; none where wear
    changes no plate."""
    wear = settings.wear
    if wear.dot_contrast != 1.0:
        bank = render_bank(settings, wear.dot_contrast)
    elif wear.stretch == 1.0:
        return []
    if wear.stretch == 1.0:
        return [plate.pixels for plate in bank]
    return _stretched(bank, wear.stretch)


def _stretched(bank: list[RenderedPlate], stretch: float) -> list[Pixels]:
    sizes = [(plate.pixels.shape[1], round(len(plate.pixels) * stretch)) for plate in bank]
    return [
        np.asarray(cv2.resize(plate.pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        for plate, size in zip(bank, sizes, strict=True)
    ]


def _wear_out(pixels: Pixels, wear: WearSettings, number: int, pixel_pitch_mm: float) -> None:
    """Weaken the light, then what lies below the dirt."""
    if wear.light_level != 1.0:
        share = min((number - wear.from_frame + 1) / max(wear.light_fade_frames, 1), 1.0)
        cv2.convertScaleAbs(pixels, dst=pixels, alpha=1 + share * (wear.light_level - 1))
    if wear.dirt_mm is not None:
        start, end = (round(at / pixel_pitch_mm) for at in wear.dirt_mm)
        below = pixels[:, start : max(end, start + 1)]
        below[:] = cv2.convertScaleAbs(below, alpha=1 + wear.dirt_contrast)


def _removed_rows(number: int, faults: FaultSettings, height: int) -> range:
    """Scan lines that a fault takes out of a frame."""
    middle = height // 2
    if number in faults.truncate:
        return range(middle, height)
    if number in faults.drop_scan_lines:
        return range(middle, min(height, middle + max(1, height // 8)))
    return range(0)


def _copy_cyclic(source: Pixels, first: int, into: Pixels) -> None:
    """Fill `into` with consecutive scan lines of `source`, which repeats without end."""
    done = 0
    while done < len(into):
        at = (first + done) % len(source)
        count = min(len(source) - at, len(into) - done)
        into[done : done + count] = source[at : at + count]
        done += count


def _repack(into: Pixels, pixels: Pixels) -> Pixels:
    """Lay `pixels` out anew at the start of the buffer, C-contiguous."""
    packed = pixels.copy()
    into[: packed.size] = packed.reshape(-1)
    return into[: packed.size].reshape(packed.shape)


def _read_epoch_s(settings: SimulatedCameraSettings) -> float:
    path = settings.belt_file
    assert path is not None
    try:
        return float(json.loads(path.read_text())["epoch_monotonic_ns"]) / 1e9
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceRefused(
            f'{path}: no belt here ({error}); it holds {{"epoch_monotonic_ns": NUMBER}}'
        ) from error


def _sleep_until(when_s: float) -> None:
    time.sleep(max(0.0, when_s - time.monotonic()))
