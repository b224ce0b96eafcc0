"""The acquire thread: frames in, plates and tile rows out.

Nothing here waits for the journal or the lamp, nor for the inspection: a plate that finds no free
buffer is overrun. Only a source that waits for its reader (a recording) lets a plate wait for one,
5 s at most. A camera process that dies is replaced; what passed meanwhile is a gap.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from drivers.camera import MONO8, Break, CameraInfo, EndOfSource, Frame
from drivers.camera.recorder import StripRecorder
from drivers.camera.settings import CameraSettings
from drivers.errors import DeviceError
from station.acquisition import OPEN_LIMIT_S, CameraGone, CameraProcess, Tick
from station.belt_register import Place
from station.flat_field import correct, correction_of
from station.inspection import BufferPool, Inspector, PlateWork
from station.ipc import Json
from station.judge import Judge
from station.live_frames import LiveFrames
from station.record import Reason
from station.results import Context
from station.strip import (
    Event,
    Gap,
    Joined,
    Plate,
    PlateClosed,
    PlateOpened,
    StripCutter,
    TileRowReady,
)

_REOPEN_PAUSE_S = 0.5
_ROUNDING = 0.01
"""A camera that is set anew may read numbers back that differ by so much."""
_PLACE_EVERY_NS = 8_000_000
"""The belt's place is told no more often than this: it goes on well known in between."""
_FASTER = 2.0
"""No belt gets faster than so many times the speed that was seen, within a few frames."""
_TIMED_S = 0.2
_HANG_LIMIT_S = 1.5
_STALL_LIMIT_S = 1.0
"""A camera whose scan lines come by themselves is late with a frame, its first one too, if none
came for so long, or for three frames' time."""
_START_LIMIT_S = 10.0
"""A camera makes its buffers when it begins: hundreds of MB for some."""
_TURN_LIMIT_S = 10.0
"""A turn of the thread that takes longer hangs; beside it only the opening of a camera may."""
_STOP_LIMIT_S = 6.0
"""Longer than a plate of a source that can wait waits for its buffer. A station that ends waits for
it twice at most: a camera that is being opened keeps no stop from writing what is in flight."""


@dataclass(frozen=True, slots=True)
class PlateStarted:
    work: PlateWork


@dataclass(frozen=True, slots=True)
class PlateGrew:
    """More scan lines of a plate are in its buffer: the last, or some of one that is kept whole."""

    work: PlateWork


@dataclass(frozen=True, slots=True)
class PlateLeft:
    """A plate's trailing edge has passed the camera, at `belt_place`; None: it is not known."""

    result_id: str
    belt_place: int | None


@dataclass(frozen=True, slots=True)
class BeltBegan:
    """A camera was opened, or its encoder set back: places of the belt begin anew."""

    frame_height: int


@dataclass(frozen=True, slots=True)
class BeltMoved:
    """Where the belt was when a frame's last scan line was in memory."""

    place: Place
    is_measured: bool
    """Else a belt that stood still is taken to have run."""


@dataclass(frozen=True, slots=True)
class PlatesMissed:
    """From this place of the belt on, up to the last frame, plates may have begun unseen."""

    scan_line: int


@dataclass(frozen=True, slots=True)
class GapSeen:
    sequence: int
    gap: Gap


@dataclass(frozen=True, slots=True)
class CameraState:
    """The camera came or went; `problem` is empty while it delivers."""

    problem: str


@dataclass(frozen=True, slots=True)
class FeedEnded:
    """No more plates will come: as many as asked, the end of the source, or a stop."""


@dataclass(frozen=True, slots=True)
class FeedFailed:
    """The acquire thread hit something it does not know; the station must restart."""

    error: BaseException


Post = Callable[
    [
        PlateStarted
        | PlateGrew
        | PlateLeft
        | BeltBegan
        | BeltMoved
        | PlatesMissed
        | GapSeen
        | Joined
        | CameraState
        | FeedEnded
        | FeedFailed
    ],
    None,
]


@dataclass(slots=True)
class FeedCounts:
    """Written by the acquire thread, read by others."""

    frames: int = 0
    lost_frames: int = 0
    incomplete_frames: int = 0
    bytes: int = 0
    plates: int = 0
    camera_restarts: int = 0


class _Travel:
    """Scan lines of belt travel: those of the encoder, or else those that the camera took."""

    def __init__(self, frame_height: int) -> None:
        self.frame_begin = self.frame_end = 0
        """Places at the first scan line of the last frame, and behind its last one."""
        self._frame_height = frame_height
        self._frame_id: int | None = None
        self._at_ns = 0
        self._timed: Place | None = None
        self._fastest = 0.0

    def take(self, frame: Frame) -> bool:
        """False if the belt cannot have come here from where the last frame saw it: the count began
        anew, and places that were told before are of another one."""
        begin = self._begin(frame)
        is_reached = abs(begin - self.frame_end) <= self._reach(frame)
        self._frame_id, self._at_ns = frame.frame_id, frame.timestamp_ns
        # Not as many as were delivered: the belt went on under those that are missing.
        self.frame_begin, self.frame_end = begin, begin + self._frame_height
        self._time(Place(self.frame_end, frame.timestamp_ns), is_reached)
        return is_reached

    def _begin(self, frame: Frame) -> int:
        if frame.encoder_value is not None:
            return frame.encoder_value
        lost = 0 if self._frame_id is None else frame.frame_id - self._frame_id - 1
        return self.frame_end + lost * self._frame_height

    def _reach(self, frame: Frame) -> float:
        """How far it may have run since the last frame, forward or back: one that turns begins the
        next frame two heights before that one's end."""
        if self._frame_id is None:
            return math.inf
        seconds = max(0, frame.timestamp_ns - self._at_ns) / 1e9
        return 2 * self._frame_height + _FASTER * self._fastest * seconds

    def _time(self, place: Place, is_reached: bool) -> None:
        """Over some frames, for those that waited come all at once."""
        if self._timed is None or not is_reached:
            self._timed = place
        elif (seconds := (place.at_ns - self._timed.at_ns) / 1e9) >= _TIMED_S:
            speed = abs(place.scan_lines - self._timed.scan_lines) / seconds
            self._fastest, self._timed = max(self._fastest, speed), place


class Feed:
    """Owns the camera process, the strip and the numbering of plates; one thread."""

    def __init__(
        self,
        camera: CameraProcess,
        settings: CameraSettings,
        context: Context,
        judge: Judge,
        cutter: StripCutter,
        pool: BufferPool,
        inspector: Inspector,
        post: Post,
        next_sequence: int,
        plates: int | None,
        recorder: StripRecorder | None,
        watches_belt: bool = False,
    ) -> None:
        self.counts = FeedCounts()
        self._camera: CameraProcess | None = camera
        self._settings = settings
        self._context = context
        self.judge = judge
        """Of the plates whose leading edge comes next; another thread may set another one."""
        self._cutter = cutter
        self._pool = pool
        self._inspector = inspector
        self._post = post
        self._next_sequence = next_sequence
        self._plates = plates
        self._recorder = recorder
        field = context.flat_field
        self._correction = None if field is None else correction_of(field)
        self._work: PlateWork | None = None
        self._travel = _Travel(camera.info.frame_height) if watches_belt else None
        self._told_ns = 0
        self._last_frame_id: int | None = None
        self._heard_at = self._last_frame_at = time.monotonic()
        """Where no frame has come yet: since when the camera could have delivered one."""
        self._silence_limit_s = _START_LIMIT_S
        """Once it has been heard, a tick comes every 250 ms."""
        self._problem = ""
        self._turn_ends_by = math.inf
        runtime_dir = context.configuration.value.station.runtime_dir
        self._live = LiveFrames(runtime_dir, camera.info.width)
        self._ends_between_plates = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acquire", daemon=True)

    @property
    def camera_pid(self) -> int | None:
        return self._camera.pid if self._camera else None

    @property
    def ring_slots(self) -> int | None:
        camera = self._camera
        return camera.ring_slots if camera else None

    @property
    def hangs(self) -> bool:
        """The thread has been at one thing for longer than it may, or has ended long ago."""
        return time.monotonic() > self._turn_ends_by

    def start(self) -> None:
        self._thread.start()

    def look(self) -> None:
        """Somebody wants to see what the camera sees, for the next seconds."""
        self._live.look()

    def end_between_plates(self) -> None:
        """End the acquisition once no plate is on the belt."""
        self._ends_between_plates = True

    def stop(self) -> None:
        """End the acquisition; a plate on the belt becomes UNDECIDED(interrupted)."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=_STOP_LIMIT_S)
        else:  # never started
            self._release()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._begin()
            self._loop()
            self._end()
        except BaseException as error:  # noqa: BLE001  the station decides what to do
            self._post(FeedFailed(error))
        finally:
            self._turn_ends_by = time.monotonic() + _TURN_LIMIT_S
            self._release()

    def _release(self) -> None:
        if self._camera is not None:
            self._camera.close()
        if self._recorder is not None:
            self._recorder.close()

    def _begin(self) -> None:
        assert self._camera is not None
        self._heard_at = self._last_frame_at = time.monotonic()
        self._silence_limit_s = _START_LIMIT_S
        if self._travel is not None:
            self._travel = _Travel(self._camera.info.frame_height)
            self._post(BeltBegan(self._camera.info.frame_height))
        try:
            self._camera.start()
        except CameraGone as error:
            self._lose_camera(str(error))

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            self._turn_ends_by = time.monotonic() + _TURN_LIMIT_S
            if self._ends_between_plates and self._work is None:
                return
            if self._camera is None:
                self._reopen()
                continue
            try:
                item = self._camera.receive(timeout_s=0.1)
            except CameraGone as error:
                self._lose_camera(str(error))
                continue
            except EndOfSource as end:
                for known in end.breaks:
                    self._break_off(known)
                return
            self._check_silence()
            if item is None:
                self._check_liveness()
                continue
            self._heard_at, self._silence_limit_s = time.monotonic(), _HANG_LIMIT_S
            if isinstance(item, Tick):
                self._check_stall(item)
                self._inspector.tick(item)
            else:
                self._take(*item)

    def _take(self, frame: Frame, slot: int) -> None:
        assert self._camera is not None
        for known in frame.breaks:
            self._break_off(known)
        self._count(frame)
        self._say("")
        # A copy, as delivered: what comes after this may change the pixels where they lie.
        if self._recorder is not None:
            self._recorder.append(frame)
        self._live.take(frame, self._said_counts, self._last_frame_at)
        self._flatten(frame)
        seen_until = self._tell_place(frame)
        events = self._cutter.feed(frame)
        if seen_until is not None and self._cutter.may_have_missed_plates:
            self._post(PlatesMissed(seen_until))
            if any(isinstance(event, Gap) for event in events):
                # The counter is believed two frames after it counted.
                self._post(PlatesMissed(seen_until - 2 * self._camera.info.frame_height))
        self._camera.release(slot)
        self._handle(events)

    def _flatten(self, frame: Frame) -> None:
        """Take the flat field out, in the ring; the strip refuses frames of another shape."""
        if self._correction is None or frame.pixel_format != MONO8:
            return
        if frame.pixels.shape[1] == self._context.geometry.scan_line_px:
            correct(frame.pixels, self._correction)

    def _tell_place(self, frame: Frame) -> int | None:
        """How far the belt was seen before this frame; None if nobody asks."""
        if self._travel is None:
            return None
        assert self._camera is not None
        info, seen_until = self._camera.info, self._travel.frame_end
        if not self._travel.take(frame):
            seen_until = self._travel.frame_begin
            self._told_ns = 0
            if self._work is not None:  # its edges are of two counts
                self._work.belt_place = None
            self._post(BeltBegan(info.frame_height))
        if frame.timestamp_ns - self._told_ns >= _PLACE_EVERY_NS:
            self._told_ns = frame.timestamp_ns
            place = Place(self._travel.frame_end, frame.timestamp_ns)
            is_measured = frame.encoder_value is not None or info.is_scan_line_triggered
            self._post(BeltMoved(place, is_measured))
        return min(seen_until, self._travel.frame_begin)

    def _count(self, frame: Frame) -> None:
        counts = self.counts
        if self._last_frame_id is not None and frame.frame_id > self._last_frame_id + 1:
            counts.lost_frames += frame.frame_id - self._last_frame_id - 1
        counts.frames += 1
        counts.incomplete_frames += frame.is_incomplete
        counts.bytes += frame.pixels.size
        self._last_frame_id, self._last_frame_at = frame.frame_id, time.monotonic()

    def _said_counts(self) -> Json:
        counts = self.counts
        return {
            "frames": counts.frames,
            "lost_frames": counts.lost_frames,
            "incomplete_frames": counts.incomplete_frames,
        }

    def _end(self) -> None:
        self._break_off(Break("ended", "the station was stopped"))
        self._post(FeedEnded())

    def _break_off(self, known: Break) -> None:
        """The scan lines end here, now or when this strip was recorded: a replay comes to the same
        plates, whatever the time is then."""
        if self._recorder is not None:
            self._recorder.mark(known)
        if known.kind == "belt_stopped":
            events = self._cutter.stop_plate(Reason.BELT_STOPPED, known.text)
        elif known.kind == "ended":
            events = self._cutter.stop_plate(Reason.INTERRUPTED, known.text)
        elif known.kind == "finished":
            events = self._cutter.finish()
        else:
            self._last_frame_id = None
            self.counts.lost_frames += known.frames
            events = self._cutter.lose(known.text)
        self._handle(events)

    # --- what the strip says --------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, PlateOpened):
                if self._plates is not None and self.counts.plates >= self._plates:
                    return
                self._open(event)
            elif isinstance(event, TileRowReady):
                if self._work is not None:
                    self._score(self._work, event)
            elif isinstance(event, PlateClosed):
                self._close(event)
            elif isinstance(event, Gap):
                self._post(GapSeen(self._take_sequence(), event))
            else:
                self._post(event)

    def _open(self, event: PlateOpened) -> None:
        sequence = self._take_sequence()
        self.counts.plates += 1
        self._work = PlateWork(
            plate=event.plate,
            result_id=self._context.result_id(sequence),
            sequence=sequence,
            buffer=self._pool.holding(event.plate.pixels),
            judge=self.judge,
            belt_place=self._belt_place(event.plate),
        )
        self._post(PlateStarted(self._work))

    def _belt_place(self, plate: Plate) -> int | None:
        """At its leading edge, which is in the last frame."""
        return None if self._travel is None else self._travel.frame_begin + plate.first_row

    def _score(self, work: PlateWork, event: TileRowReady) -> None:
        self._inspector.score(work, event.row)
        if work.is_failing or work.is_audit_sample:
            self._post(PlateGrew(work))

    def _close(self, event: PlateClosed) -> None:
        if self._work is None:
            return
        work, self._work = self._work, None
        if event.reason is not None:
            work.problem, work.detail = event.reason, event.detail
        began_at = work.belt_place
        ended_at = None if began_at is None else began_at + work.plate.length_px
        self._post(PlateLeft(work.result_id, ended_at))
        self._inspector.close(work)
        self._post(PlateGrew(work))
        if self._plates is not None and self.counts.plates >= self._plates:
            self._is_stopping.set()

    def _take_sequence(self) -> int:
        self._next_sequence += 1
        return self._next_sequence - 1

    # --- a camera that is gone or silent --------------------------------------------------------

    def _say(self, problem: str) -> None:
        """Why the camera does not deliver; empty: it does, or nobody can tell."""
        if problem != self._problem:
            self._problem = problem
            self._post(CameraState(problem))

    def _check_silence(self) -> None:
        if self._context.camera.is_patient:  # its belt stands still whenever nobody looks
            return
        timeout_s = self._context.belt_stop_timeout_s
        silent_s = time.monotonic() - self._last_frame_at
        if self._work is not None and silent_s > timeout_s:
            self._break_off(Break("belt_stopped", f"no scan line for {timeout_s:g} s"))

    def _check_stall(self, tick: Tick) -> None:
        """A camera that ticks but delivers nothing lets plates pass unseen: no pass may stay."""
        assert self._camera is not None
        if tick.number == 1:  # it has begun; until now it made its buffers
            self._last_frame_at = time.monotonic()
        limit_s = _frame_limit_s(self._camera.info)
        if limit_s is not None and time.monotonic() - self._last_frame_at > limit_s:
            text = f"no frame for {limit_s:g} s; check the camera's link and its triggers"
            self._say(text)

    def _check_liveness(self) -> None:
        """A camera process ticks also while no plate comes; one that does not hangs."""
        limit_s = self._silence_limit_s
        if time.monotonic() - self._heard_at > limit_s:
            self._lose_camera(f"the camera process hangs: nothing for {limit_s:g} s")

    def _lose_camera(self, problem: str) -> None:
        assert self._camera is not None
        self._say(problem)
        self._camera.close()
        self._camera = None
        self._break_off(Break("lost", problem))

    def _reopen(self) -> None:
        """Open the same camera again in a fresh process; another one is refused."""
        self._turn_ends_by += OPEN_LIMIT_S
        try:
            camera = CameraProcess(self._settings, self._context.configuration.value.station.ring_s)
        except DeviceError as error:
            self._say(str(error))
            self._is_stopping.wait(_REOPEN_PAUSE_S)
            return
        problem = _stranger(camera.info, self._context.camera)
        if problem:
            camera.close()
            self._say(problem)
            self._is_stopping.wait(_REOPEN_PAUSE_S)
            return
        self._camera = camera
        self.counts.camera_restarts += 1
        self._begin()
        if self._camera is not None and _frame_limit_s(camera.info) is None:
            # Its first frame comes when the belt runs; any other camera has to show one first.
            self._say("")


def _frame_limit_s(info: CameraInfo) -> float | None:
    """How long a camera may deliver nothing; None where the belt or the source makes it wait."""
    runs_free = not (info.is_patient or info.is_frame_triggered or info.is_scan_line_triggered)
    if info.driver == "replay" or not runs_free or not info.line_rate_hz:
        return None
    return max(_STALL_LIMIT_S, 3 * info.frame_height / info.line_rate_hz)


def _stranger(found: CameraInfo, known: CameraInfo) -> str:
    """Why a camera that came back is not the one this station began with; empty if it is. The
    producer counts too: provenance was judged by its sha256."""
    if found.serial != known.serial:
        return f"camera {found.serial} came back for {known.serial}"
    if found.producer_sha256 != known.producer_sha256:
        return f"the producer {found.producer_path} was changed; start the station again"
    changes = _changes(found, known)
    if changes:
        return (
            f"camera {found.serial} came back changed: {', '.join(changes)}; start the station "
            "again, and name in camera.features what it does not keep when its power goes"
        )
    return ""


def _changes(found: CameraInfo, known: CameraInfo) -> list[str]:
    """What flat field, strip and records say of the camera, and is so no longer: what it was set to
    by hand is gone with its power. The features of the configuration are not compared: they were
    set again, and read back as wanted but for a number's rounding."""
    exact = {
        "Width": (found.width, known.width),
        "OffsetX": (found.offset_x_px, known.offset_x_px),
        "Height": (found.frame_height, known.frame_height),
        "PixelFormat": (found.pixel_format, known.pixel_format),
        "frames triggered": (found.is_frame_triggered, known.is_frame_triggered),
        "scan lines triggered": (found.is_scan_line_triggered, known.is_scan_line_triggered),
    }
    rounded: dict[str, tuple[float | None, float | None]] = {}
    if known.features.get("ExposureAuto", "Off") == "Off":  # else it is the camera's to choose
        rounded["ExposureTime"] = (found.exposure_us, known.exposure_us)
    if not known.is_scan_line_triggered:
        rounded["AcquisitionLineRate"] = (found.line_rate_hz, known.line_rate_hz)
    changes = [f"{name} {now} for {was}" for name, (now, was) in exact.items() if now != was]
    for name, (now, was) in rounded.items():
        if now != was and (now is None or was is None or abs(now - was) > _ROUNDING * abs(was)):
            changes.append(f"{name} {_shown(now)} for {_shown(was)}")
    return changes


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
