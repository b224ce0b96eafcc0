"""The commissioning bench: what every step of `vqi commission` works with, and how a step is run.

A step measures on the configured camera as it is, writes what it found beside what is expected, and
never repairs anything. Whatever is absent (a device, a file, an answer) makes a step `not done`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, CameraInfo, EndOfSource, Frame
from drivers.camera.settings import CameraSettings
from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DriverMissing,
)
from models.card import ModelError
from station.acquisition import CameraGone, CameraProcess, Tick
from station.commission_record import (
    Basis,
    Check,
    Picture,
    RunFolder,
    Status,
    StepResult,
)
from station.commissioning_report import measured
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.delays import DelayUnknown
from station.flat_field import FlatFieldRefused
from station.qms import StoreError
from station.record import utc_now
from station.scale import ScaleRefused
from station.scan_lines import with_target

Pixels = NDArray[np.uint8]

_PICTURE_SIDE_PX = 900
_SILENCE_S = 5.0
"""A camera that delivers nothing for so long has no trigger or no link."""


class NotDone(Exception):
    """A step's device, data or answer is absent; the message says which."""


class StepFailed(Exception):
    """A step found something that ends it; the message says what and what to do."""


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answers:
    """What only a person knows: asked at the terminal, or given in advance."""

    given: Mapping[str, str] = field(default_factory=dict)
    is_yes: bool = False
    """Every confirmation was given in advance."""
    ask: Callable[[str], str] | None = None
    """Asks the person who is there; None where nobody is."""

    def confirm(self, key: str, question: str) -> tuple[bool, str]:
        """Whether it is so, and who said it. Raises `NotDone`."""
        if key in self.given:
            return self.given[key].strip().lower() in ("y", "yes", "true"), "answered in advance"
        if self.is_yes:
            return True, "confirmed in advance (--yes)"
        if self.ask is None:
            raise NotDone(f"nobody answered: {question} (--answer {key}=yes)")
        answer = self.ask(f"{question} [y/n]").strip().lower()
        return answer in ("y", "yes"), "confirmed at the terminal"

    def text(self, key: str, question: str, default: str | None = None) -> str:
        """What was answered. Raises `NotDone` where nothing was and nothing is usual."""
        answer = self.given.get(key)
        if answer is None and self.ask is not None:
            usual = "" if default is None else f" (usually {default})"
            answer = self.ask(question + usual)
        answer = (answer or "").strip() or default
        if answer is None:
            raise NotDone(f"not given: {question} (--answer {key}=…)")
        return answer

    def number(self, key: str, question: str, default: str | None = None) -> float:
        """A positive number. Raises `NotDone`, `StepFailed` where it is none."""
        answer = self.text(key, question, default)
        with contextlib.suppress(ValueError):
            if 0 < float(answer) < float("inf"):
                return float(answer)
        raise StepFailed(f"{key}: {answer!r} is no positive number: {question}")


# --- the camera -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capture:
    """Scan lines of the configured camera, one frame after another."""

    info: CameraInfo
    pixels: Pixels
    """uint8 (scan lines, width)."""
    frames: tuple[Frame, ...]
    """Whole and incomplete ones, in order; only `pixels` holds what they showed."""

    @property
    def lost_frames(self) -> int:
        ids = [frame.frame_id for frame in self.frames]
        return max(ids) - min(ids) + 1 - len(set(ids)) if ids else 0

    @property
    def incomplete_frames(self) -> int:
        return sum(frame.is_incomplete for frame in self.frames)


def capture(settings: CameraSettings, ring_s: float, scan_lines: int) -> Capture:
    """Take `scan_lines` or a little more with the camera in a process of its own.

    Raises `DeviceError`, `StepFailed` where no frames come or they are not Mono8.
    """
    with camera_running(settings, ring_s) as camera:
        frames = list(_frames(camera, scan_lines))
    whole = [frame.pixels for frame in frames if _is_whole(frame, camera.info)]
    if not whole:
        raise StepFailed("the camera delivered no whole frame; check trigger and link")
    return Capture(camera.info, np.concatenate(whole), tuple(frames))


def _is_whole(frame: Frame, info: CameraInfo) -> bool:
    return not frame.is_incomplete and frame.height > 0 and frame.width == info.width


@contextlib.contextmanager
def camera_running(settings: CameraSettings, ring_s: float) -> Iterator[CameraProcess]:
    """The camera, acquiring, in a process of its own. Raises `DeviceError`."""
    camera = CameraProcess(settings, ring_s)
    try:
        camera.start()
        yield camera
    except CameraGone as error:
        raise DeviceLost(str(error)) from error
    finally:
        camera.close()


@dataclass(frozen=True, slots=True)
class Look:
    """What a camera that runs on says at one moment."""

    at_s: float
    """Monotonic."""
    temperature_c: float | None
    level: float
    """Mean grey level of the frames since the look before."""


def watch(settings: CameraSettings, ring_s: float, every_s: float) -> Iterator[Look]:
    """Look at a running camera again and again, without end. Raises as `capture` does."""
    with camera_running(settings, ring_s) as camera:
        levels: list[float] = []
        temperature_c, heard_s = None, time.monotonic()
        next_s = heard_s + every_s
        while True:
            item = _running_item(camera)
            now = time.monotonic()
            if isinstance(item, Tick):
                temperature_c = item.temperature_c
            elif item is not None:
                heard_s = now
                levels.append(float(item[0].pixels.mean()))
                camera.release(item[1])
            _check_silence(now - heard_s)
            if now >= next_s and levels:
                yield Look(now, temperature_c, sum(levels) / len(levels))
                next_s, levels = next_s + every_s, []


def _running_item(camera: CameraProcess) -> tuple[Frame, int] | Tick | None:
    try:
        return _item(camera)
    except EndOfSource as error:
        raise StepFailed("the source has ended; a camera is wanted that runs on") from error


def _item(camera: CameraProcess) -> tuple[Frame, int] | Tick | None:
    item = camera.receive(timeout_s=0.25)
    if isinstance(item, tuple) and item[0].pixel_format != MONO8:
        raise StepFailed(f"the camera delivers {item[0].pixel_format}; set PixelFormat = Mono8")
    return item


def _check_silence(silent_s: float) -> None:
    if silent_s > _SILENCE_S:
        raise StepFailed(f"the camera delivers no frames within {_SILENCE_S:g} s; is it triggered?")


def _frames(camera: CameraProcess, scan_lines: int) -> Iterator[Frame]:
    """Frames with pixels of their own, until so many scan lines are there or the source ends."""
    taken, heard_s = 0, time.monotonic()
    while taken < scan_lines:
        try:
            item = _item(camera)
        except EndOfSource:
            return
        _check_silence(time.monotonic() - heard_s)
        if isinstance(item, tuple):
            heard_s, taken = time.monotonic(), taken + item[0].height
            yield _copied(item[0])
            camera.release(item[1])


def _copied(frame: Frame) -> Frame:
    values = {name: getattr(frame, name) for name in Frame.__slots__}
    return Frame(**{**values, "pixels": frame.pixels.copy()})


# --- the bench ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bench:
    """One station under commissioning."""

    configuration: Loaded[Configuration]
    recipe: Loaded[Recipe]
    basis: Basis
    folder: RunFolder
    before: RunFolder | None
    """The run that this one is compared with."""
    answers: Answers
    who: str
    say: Callable[[str], None]
    dry_run_plates: int
    _is_simulator: bool | None = None

    @property
    def settings(self) -> Configuration:
        return self.configuration.value

    def capture(self, scan_lines: int) -> Capture:
        """Scan lines of whatever passes."""
        return capture(self.settings.camera, self.settings.station.ring_s, scan_lines)

    def capture_target(self, found: Findings, target: str, scan_lines: int) -> Capture:
        """Scan lines of a target, see `at_target`."""
        return capture(self.at_target(found, target), self.settings.station.ring_s, scan_lines)

    def at_target(self, found: Findings, target: str) -> CameraSettings:
        """The camera's settings while it sees a target: the simulator puts it there, a person
        before a real camera. `target` is a choice of the simulator's SimTarget. Raises `NotDone`.
        """
        if self.is_simulator:
            found.note(f"simulated target: {target}")
            return with_target(self.settings.camera, target)
        question = _TARGETS[target]
        is_there, how = self.answers.confirm(f"target_{target.lower()}", question)
        if not is_there:
            raise NotDone(f"{question} no")
        found.note(f"{question} yes, {how}")
        return self.settings.camera

    @property
    def is_simulator(self) -> bool:
        """Whether the camera can set its own target (feature SimTarget)."""
        if self._is_simulator is None:
            self._is_simulator = False
            with contextlib.suppress(DeviceRefused):
                belt = with_target(self.settings.camera, "Belt")
                CameraProcess(belt, self.settings.station.ring_s).close()
                self._is_simulator = True
        return self._is_simulator


_TARGETS = {
    "Uniform": "Is the whole scan line on an evenly lit target, the lens slightly defocused?",
    "Dark": "Is the lens covered, or the light off?",
    "Belt": "Do plates pass under the camera?",
}


@dataclass(slots=True)
class Findings:
    """What a step has found so far; kept also where it ends early."""

    bench: Bench
    step: str
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def check(
        self, what: str, value: float | str | None, expected: str, is_ok: bool, unit: str = ""
    ) -> None:
        """What could not be measured is not as expected."""
        is_known = value is not None and value == value  # NaN differs from itself
        self.checks.append(
            Check(
                what=what,
                measured=value if is_known else None,
                expected=expected,
                is_ok=bool(is_ok) and is_known,
                unit=unit,
            )
        )
        self.bench.say(check_line(self.checks[-1]))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def picture(self, name: str, data: bytes, caption: str) -> None:
        """`data` is the file's content, `name` ends in png, jpg or svg."""
        self.pictures.append(self.bench.folder.write_picture(self.step, name, data, caption))

    def show_pixels(self, name: str, pixels: Pixels, caption: str) -> None:
        """Grey pixels, uint8 (rows, columns), as a JPEG of at most some hundred px a side."""
        pixels = pixels[: 2 * pixels.shape[1]]
        scale = _PICTURE_SIDE_PX / max(pixels.shape)
        if scale < 1:
            size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        self.picture(f"{name}.jpg", cv2.imencode(".jpg", pixels)[1].tobytes(), caption)

    @property
    def status(self) -> Status:
        if not self.checks:
            return Status.NOT_DONE
        return Status.PASSED if all(check.is_ok for check in self.checks) else Status.FAILED


def check_line(check: Check) -> str:
    """A check for people."""
    return (
        f"{'ok  ' if check.is_ok else 'FAIL'}  {check.what:36} {measured(check):24} "
        f"expected {check.expected}"
    )


# --- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run. `do` fills what it found; see `run_step` for what it may raise."""

    name: str
    title: str
    do: Callable[[Bench, Findings], None]
    runs_the_station: bool = False
    """The station itself runs in it and takes the devices."""


_ABSENT = (NotDone, DeviceNotFound, DriverMissing, DeviceBusy)
_FAILURES = (
    StepFailed,
    DelayUnknown,
    DeviceError,
    FlatFieldRefused,
    ScaleRefused,
    ModelError,
    ConfigError,
    StoreError,
)


def run_step(bench: Bench, step: Step) -> StepResult:
    """Do a step and keep its result."""
    started_at, found = utc_now(), Findings(bench, step.name)
    try:
        step.do(bench, found)
        status, reason = found.status, "" if found.checks else "nothing was measured"
    except _ABSENT as error:
        status, reason = Status.NOT_DONE, str(error)
    except _FAILURES as error:
        status, reason = Status.FAILED, str(error)
    result = StepResult(
        step=step.name,
        status=status,
        reason=reason,
        facts=found.facts,
        checks=tuple(found.checks),
        notes=tuple(found.notes),
        pictures=tuple(found.pictures),
        who=bench.who,
        started_at=started_at,
        finished_at=utc_now(),
        basis=bench.basis,
    )
    bench.folder.write_step(result)
    return result
