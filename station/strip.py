"""From frames to plates: a gap-free run of scan lines is cut at leading and trailing edges.

Everything here happens scan line by scan line, so that any division of the same pixels into
frames gives the same plates and tiles. A frame that cannot be trusted is a gap: what it would have
shown is unknown, and unknown is never good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import MONO8, Frame, PlateTruth
from station.record import Reason
from station.tiling import OUTSIDE, Geometry, Rows, TileRow, scored_region, tile_row

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_EDGE_STEP_PX = 8
"""Edges are found on means of so many pixels: noise and dots do not move them."""
_LEADING_EDGE_PX = 40
"""So much of a scan line must be plate: a speck on the belt opens no plate."""
_END_NOISE_PX = 6
"""So many scan lines do not say that an end is not straight: of a whole plate's both, up to 3."""
_TRUTH_REACH_PX = 32
"""A plate is the one the source announced this close to its leading edge."""


@dataclass(slots=True)
class Plate:
    """One pass of one light guide plate, growing while it arrives.

    `pixels` is uint8 (scan lines, scan line pixels); None if no buffer was free.
    """

    pixels: Pixels | None
    opened_ns: int
    first_frame_id: int
    first_row: int
    """Scan line of that frame in which the leading edge lies."""
    encoder_value: int | None
    ordinal: int | None
    truth: PlateTruth | None
    left: Rows
    right: Rows
    region_left: Rows
    region_right: Rows
    lines: int = 0
    """Scan lines so far, with the belt after the last plate line."""
    length_px: int = 0
    """Scan lines from the leading edge to the last plate line."""
    region_lines: int = 0
    """Scan lines whose region is known."""
    next_tile_row: int = 0
    is_separated: bool = True
    is_scored: bool = False
    """All tile rows are out."""
    last_frame_id: int = -1
    last_scan_line_ns: int = 0

    @property
    def region(self) -> tuple[Rows, Rows]:
        return self.region_left[: self.region_lines], self.region_right[: self.region_lines]

    @property
    def outline(self) -> tuple[Rows, Rows]:
        return self.left[: self.length_px], self.right[: self.length_px]


@dataclass(frozen=True, slots=True)
class PlateOpened:
    plate: Plate


@dataclass(frozen=True, slots=True)
class TileRowReady:
    """The last scan line that decides these tiles is in."""

    plate: Plate
    row: TileRow


@dataclass(frozen=True, slots=True)
class PlateClosed:
    """The plate has ended; `reason` is set if its pixels cannot be judged."""

    plate: Plate
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Scan lines were lost where no plate was open, or plates passed unseen."""

    reason: Reason
    detail: str
    frame_ids: tuple[int, int]
    lost_frames: int
    triggers: int | None
    """Plates that the trigger counted and nobody saw; None without a trigger counter."""
    to_ordinal: int | None


@dataclass(frozen=True, slots=True)
class Joined:
    """The belt is seen again after a start; `triggers` plates passed before, None if unknown."""

    triggers: int | None
    from_ordinal: int | None
    to_ordinal: int | None
    is_counter_new: bool = False
    """The trigger counter is behind what the log answers for: it began anew."""


Event = PlateOpened | TileRowReady | PlateClosed | Gap | Joined


class TriggerCount:
    """Holds the trigger input's plate counter against the plates that were seen.

    A plate's leading edge may be counted a few scan lines before it is seen; a difference therefore
    counts only if it stands at two frames in a row.
    """

    def __init__(self, accounted: int | None) -> None:
        self.accounted = accounted
        """Highest ordinal that a row answers for."""
        self._difference = 0
        self._frame_base: int | None = None
        self._is_settled = False

    def at_frame(self, counter: int | None) -> int:
        """Plates that turned out to have passed unseen (negative: seen, but not counted)."""
        if counter is None:
            return 0
        self._frame_base = counter
        if self.accounted is None:
            self.accounted = counter
        difference = counter - self.accounted
        settled = 0
        if difference * self._difference > 0:
            settled = min(difference, self._difference, key=abs)
        self._is_settled = self._is_settled or difference == 0 or settled != 0
        self._difference = difference - settled
        self.accounted += settled
        return settled

    def open_plate(self) -> int | None:
        """Count a leading edge; its ordinal, None without a trigger counter."""
        if self.accounted is None:
            return None
        self.accounted += 1
        if self._is_settled or self._frame_base is None:
            return self.accounted
        # Plates that passed before this start are not yet in `accounted`.
        self._frame_base += 1
        return self._frame_base

    def interrupt(self) -> None:
        """After a gap the difference is settled anew."""
        self._difference = 0
        self._is_settled = False


@dataclass(slots=True)
class _Interruption:
    """A gap whose unseen plates are not yet settled."""

    reason: Reason
    detail: str
    first_frame_id: int
    last_frame_id: int
    lost_frames: int
    scan_lines: float
    """Unseen, or not surely of the plate that was cut off; infinite where that is unknown."""
    had_plate: bool
    triggers: int = 0
    frames_to_settle: int = 2


@dataclass(frozen=True, slots=True)
class _Break:
    """Frames do not follow one another."""

    text: str
    lost_frames: int
    scan_lines: float
    """Unseen; infinite where that is unknown."""


@dataclass(slots=True)
class _Continuity:
    """What the next frame must look like to follow the last one without a gap."""

    frame_height: int
    width: int
    is_height_fixed: bool
    frame_id: int | None = None
    timestamp_ns: int = 0
    encoder_value: int | None = None
    first_line: Pixels = field(default_factory=lambda: np.empty(0, np.uint8))
    last_line: Pixels = field(default_factory=lambda: np.empty(0, np.uint8))

    def problem(self, frame: Frame) -> tuple[Reason, str] | None:
        """Why this frame's pixels cannot be trusted to follow the last ones."""
        if frame.pixel_format != MONO8:
            return Reason.INCOMPLETE, f"frame {frame.frame_id} is {frame.pixel_format}, not {MONO8}"
        if frame.width != self.width or frame.pixels.shape[1] != self.width:
            return Reason.INCOMPLETE, f"frame {frame.frame_id} is {frame.width} px wide"
        if frame.is_incomplete:
            return Reason.INCOMPLETE, f"frame {frame.frame_id} is incomplete"
        if frame.height == 0:
            return Reason.INCOMPLETE, f"frame {frame.frame_id} is empty"
        if self.is_height_fixed and frame.height != self.frame_height:
            return Reason.INCOMPLETE, f"frame {frame.frame_id} has {frame.height} scan lines"
        return self._dead_picture(frame)

    def _dead_picture(self, frame: Frame) -> tuple[Reason, str] | None:
        first, last = frame.pixels[0], frame.pixels[-1]
        if not first.any() and not last.any():
            return Reason.UNLIT, f"frame {frame.frame_id} is black"
        if first.min() == 255 and last.min() == 255:
            return Reason.UNLIT, f"frame {frame.frame_id} is saturated"
        is_same = np.array_equal(first, self.first_line) and np.array_equal(last, self.last_line)
        return (
            (Reason.STUCK, f"frame {frame.frame_id} repeats the last pixels") if is_same else None
        )

    def break_before(self, frame: Frame) -> _Break | None:
        """What was lost between the last frame and this one; None if nothing."""
        if self.frame_id is None:
            return None
        step = frame.frame_id - self.frame_id
        if step > 1:
            text = f"frames {self.frame_id + 1} to {frame.frame_id - 1} are lost"
            return _Break(text, step - 1, (step - 1) * self.frame_height)
        if step == 0:
            text = f"frame {frame.frame_id} came after frame {self.frame_id}"
            return _Break(text, 0, self.frame_height)
        if step < 0:
            text = f"frame {frame.frame_id} came after frame {self.frame_id}"
            return _Break(text, 0, math.inf)
        if frame.timestamp_ns < self.timestamp_ns:
            return _Break(f"frame {frame.frame_id} is older than the one before", 0, math.inf)
        if (
            self.encoder_value not in (None, frame.encoder_value)
            and frame.encoder_value is not None
        ):
            missing = frame.encoder_value - (self.encoder_value or 0)
            text = f"the encoder jumps by {missing} scan lines before frame {frame.frame_id}"
            return _Break(text, 0, missing if missing > 0 else math.inf)
        return None

    def remember(self, frame: Frame, is_trusted: bool) -> None:
        self.frame_id, self.timestamp_ns = frame.frame_id, frame.timestamp_ns
        # After a frame of the wrong height the encoder says nothing about a further loss.
        self.encoder_value = None
        if is_trusted and frame.encoder_value is not None:
            self.encoder_value = frame.encoder_value + frame.height
        if frame.pixels.shape[0] and frame.pixels.shape[1] == self.width:
            self.first_line, self.last_line = frame.pixels[0].copy(), frame.pixels[-1].copy()


class StripCutter:
    """Cuts frames into plates and plates into tile rows. Pure but for the buffers it is given.

    `take_buffer` returns uint8 (at least `buffer_lines(geometry)`, scan_line_px), or None if none
    is free: the plate then keeps its place and loses its pixels (overrun).
    """

    def __init__(
        self,
        geometry: Geometry,
        frame_height: int,
        take_buffer: Callable[[], Pixels | None],
        accounted_ordinal: int | None = None,
        is_height_fixed: bool = True,
    ) -> None:
        self.geometry = geometry
        self.triggers = TriggerCount(accounted_ordinal)
        self.plate: Plate | None = None
        self._take_buffer = take_buffer
        self._continuity = _Continuity(frame_height, geometry.scan_line_px, is_height_fixed)
        self._is_synchronised = geometry.is_whole
        self._belt_lines = 0
        self._scan_line = 0
        self._truths: list[tuple[int, PlateTruth]] = []
        self._joining_from = accounted_ordinal
        self._joining = 2
        self._joined_triggers = 0
        self._is_counter_new = False
        self.may_have_missed_plates = False
        """Since the frame before the last one plates may have begun that were not opened, or the
        counter said so of plates shortly before."""
        self._unseen_lines = 0
        """Plate lines since the last belt, while no plate could be told from another."""
        self._lines_since_cut_plate = 0.0
        """Seen and lost, from the leading edge of the plate that was cut off since the last belt,
        which answers for one plate's worth of them; 0 if there is none."""
        self._gap: _Interruption | None = None
        self._events: list[Event] = []

    def feed(self, frame: Frame) -> list[Event]:
        """Take one frame's scan lines; its pixels may be reused afterwards."""
        self.may_have_missed_plates = not self._is_synchronised
        lost = self._continuity.break_before(frame)
        if lost is not None:
            self._interrupt(Reason.INCOMPLETE, frame.frame_id, lost)
        problem = self._continuity.problem(frame)
        if problem is not None:
            unseen = _Break(problem[1], 0, self._continuity.frame_height)
            self._interrupt(problem[0], frame.frame_id, unseen)
        self._continuity.remember(frame, problem is None)
        if problem is None:
            self._settle(self.triggers.at_frame(frame.plate_counter), frame)
            self._cut(frame)
        self._scan_line += frame.height
        return self._take_events()

    def stop_plate(self, reason: Reason, detail: str) -> list[Event]:
        """Close the open plate for a reason of its own, e.g. a belt that stands still."""
        if self.plate is not None:
            self._cut_short(reason, detail)
        return self._take_events()

    def lose(self, detail: str) -> list[Event]:
        """The source is gone: what passes until its next frame is unknown; frame ids start anew."""
        frame_id = (self._continuity.frame_id or 0) + 1
        self._interrupt(Reason.INCOMPLETE, frame_id, _Break(detail, 0, math.inf))
        self._continuity.frame_id = None
        self._continuity.encoder_value = None
        return self._take_events()

    def finish(self) -> list[Event]:
        """The source has ended: a plate that reached the last scan line ends there."""
        if self.plate is not None:
            self._close(None, "")
        if self._gap is not None:
            self._report_gap(self._gap)
        self._report_unseen(self._continuity.frame_id or 0)
        return self._take_events()

    # --- scan lines ---------------------------------------------------------------------------

    def _cut(self, frame: Frame) -> None:
        self._truths += [(self._scan_line + truth.row, truth) for truth in frame.truth]
        left, right = scan_line_edges(frame.pixels, self.geometry)
        for start, stop in _runs(left != OUTSIDE):
            lines = _Lines(frame, start, stop, left[start:stop], right[start:stop])
            if left[start] != OUTSIDE:
                self._plate_lines(lines)
            else:
                self._belt(lines)

    def _plate_lines(self, lines: _Lines) -> None:
        was_belt, self._belt_lines = self._belt_lines, 0
        if self.plate is None and self._is_settling:
            # Counted as unseen: its row must not come before the row of those that passed earlier.
            self._lose_track()
        if not self._is_synchronised:
            self._unseen_lines += lines.count
            if self._lines_since_cut_plate:
                self._lines_since_cut_plate += was_belt + lines.count
            return
        if self.plate is None:
            self.plate = self._open(lines)
            self._events.append(PlateOpened(self.plate))
        elif was_belt:
            self.plate.is_separated = False
        taken = self._append(self.plate, lines)
        self.plate.length_px = self.plate.lines
        self._score(self.plate, is_end=False)
        if taken < lines.count:
            self._cut_off(lines.count - taken)

    @property
    def _is_settling(self) -> bool:
        """How many plates passed before is not known yet."""
        return bool(self._joining) or self._gap is not None

    def _cut_off(self, lines: int) -> None:
        """The plate is longer than any plate may be; what follows belongs to it or to others."""
        assert self.plate is not None
        if self.plate.is_separated:
            self._cut_short(Reason.OVERLONG, f"longer than {self.geometry.max_rows} scan lines")
        else:
            gap_mm = self.geometry.min_gap_px * self.geometry.pixel_pitch_mm
            self._cut_short(Reason.NOT_SEPARATED, f"less than {gap_mm:g} mm to the next plate")
        self._unseen_lines = lines
        self._lines_since_cut_plate += lines

    def _cut_short(self, reason: Reason, detail: str) -> None:
        """Close the open plate before belt was seen after it."""
        assert self.plate is not None
        self._lines_since_cut_plate = self.plate.lines
        self._close(reason, detail)
        self._lose_track()

    def _lose_track(self) -> None:
        """What is plate from here on, until belt is seen, is of no plate that was opened."""
        self._is_synchronised = False
        self.may_have_missed_plates = True

    def _belt(self, lines: _Lines) -> None:
        self._belt_lines += lines.count
        plate, geometry = self.plate, self.geometry
        if plate is None:
            if self._belt_lines >= geometry.min_gap_px:
                self._synchronise(lines.frame)
            return
        self._append(plate, lines)
        if self._belt_lines >= min(geometry.margin_px, geometry.min_gap_px):
            self._score(plate, is_end=True)
        if self._belt_lines >= geometry.min_gap_px:
            self._close(None, "")

    def _synchronise(self, frame: Frame) -> None:
        """Belt is seen: the next plate line is a leading edge."""
        self._is_synchronised = True
        self._report_unseen(frame.frame_id)

    def _report_unseen(self, frame_id: int) -> None:
        unseen, self._unseen_lines = self._unseen_lines, 0
        since_cut_plate, self._lines_since_cut_plate = self._lines_since_cut_plate, 0.0
        could_hide_a_plate = unseen >= self._least_plate_lines or (
            unseen > 0 and since_cut_plate > self.geometry.max_rows
        )
        # With a counter, the counter says how many they were.
        if could_hide_a_plate and self.triggers.accounted is None and not self.geometry.is_whole:
            detail = f"{unseen} scan lines of plates that could not be told apart"
            self._events.append(Gap(Reason.GAP, detail, (frame_id, frame_id), 0, None, None))

    @property
    def _least_plate_lines(self) -> float:
        return self.geometry.length_px - self.geometry.tolerance_px

    def _open(self, lines: _Lines) -> Plate:
        frame, capacity = lines.frame, buffer_lines(self.geometry)
        encoder = frame.encoder_value
        return Plate(
            pixels=self._take_buffer(),
            opened_ns=frame.timestamp_ns,
            first_frame_id=frame.frame_id,
            first_row=lines.start,
            encoder_value=None if encoder is None else encoder + lines.start,
            ordinal=self.triggers.open_plate(),
            truth=self._truth_at(self._scan_line + lines.start),
            left=np.full(capacity, OUTSIDE, np.int32),
            right=np.full(capacity, OUTSIDE, np.int32),
            region_left=np.full(capacity, OUTSIDE, np.int32),
            region_right=np.full(capacity, OUTSIDE, np.int32),
        )

    def _truth_at(self, scan_line: int) -> PlateTruth | None:
        near = [t for at, t in self._truths if abs(at - scan_line) <= _TRUTH_REACH_PX]
        self._truths = [
            (at, t) for at, t in self._truths if t not in near and at > scan_line - 100_000
        ]
        return near[0] if near else None

    def _append(self, plate: Plate, lines: _Lines) -> int:
        """Copy scan lines while there is room; how many were taken."""
        limit = self.geometry.max_rows if lines.is_plate else len(plate.left)
        start, stop = plate.lines, min(plate.lines + lines.count, max(limit, plate.lines))
        taken = stop - start
        if plate.pixels is not None:
            source = lines.frame.pixels[lines.start : lines.start + taken]
            plate.pixels[start:stop] = source
        plate.left[start:stop] = lines.left[:taken]
        plate.right[start:stop] = lines.right[:taken]
        plate.lines = stop
        plate.last_frame_id = lines.frame.frame_id
        plate.last_scan_line_ns = lines.frame.timestamp_ns
        return taken

    # --- tile rows ------------------------------------------------------------------------------

    def _score(self, plate: Plate, is_end: bool) -> None:
        """Send out every tile row whose region is decided by the scan lines so far."""
        if plate.is_scored or plate.pixels is None:
            return
        margin, step = self.geometry.margin_px, self.geometry.step_px
        known = plate.length_px if is_end else plate.lines - margin
        if known <= plate.region_lines and not is_end:
            return
        self._extend_region(plate, known)
        while plate.next_tile_row * step + (1 if is_end else 224) <= known:
            self._send_tile_row(plate)
        plate.is_scored = is_end

    def _extend_region(self, plate: Plate, known: int) -> None:
        margin = self.geometry.margin_px
        first = max(0, plate.region_lines - margin)
        seen = slice(first, min(known + margin, plate.lines))
        left, right = scored_region(plate.left[seen], plate.right[seen], margin)
        fresh = slice(plate.region_lines, known)
        plate.region_left[fresh] = left[plate.region_lines - first : known - first]
        plate.region_right[fresh] = right[plate.region_lines - first : known - first]
        plate.region_lines = max(known, plate.region_lines)

    def _send_tile_row(self, plate: Plate) -> None:
        row = tile_row(self.geometry, plate.next_tile_row, *plate.region)
        plate.next_tile_row += 1
        if row is not None:
            self._events.append(TileRowReady(plate, row))

    def _close(self, reason: Reason | None, detail: str) -> None:
        plate = self.plate
        assert plate is not None
        if reason is None:
            self._score(plate, is_end=True)
            reason, detail = outline_problem(plate, self.geometry)
        self._events.append(PlateClosed(plate, reason, detail))
        self.plate = None

    # --- gaps and triggers ----------------------------------------------------------------------

    def _interrupt(self, reason: Reason, frame_id: int, lost: _Break) -> None:
        had_plate, unsure_lines = False, lost.scan_lines
        if self.plate is not None:
            had_plate = True
            if self.plate.lines == self.plate.length_px:
                # So much of what was seen may be the next plate's already, touching it.
                unsure_lines += max(0.0, self.plate.length_px - self._least_plate_lines)
            self._cut_short(reason, lost.text)
        self._lose_track()
        self._is_synchronised = self.geometry.is_whole
        self._belt_lines = self._unseen_lines = 0
        if self._lines_since_cut_plate:
            self._lines_since_cut_plate += lost.scan_lines
        self.triggers.interrupt()
        if self._gap is None:
            first = frame_id - lost.lost_frames
            self._gap = _Interruption(
                reason, lost.text, first, frame_id, lost.lost_frames, unsure_lines, had_plate
            )
            return
        self._gap.last_frame_id, self._gap.frames_to_settle = frame_id, 2
        self._gap.lost_frames += lost.lost_frames
        self._gap.scan_lines += lost.scan_lines

    def _settle(self, unseen: int, frame: Frame) -> None:
        """Report plates that passed unseen, once the counter has said so twice."""
        has_counter = frame.plate_counter is not None
        if self._joining:
            self._settle_start(unseen, has_counter)
        elif self._gap is not None:
            self._gap.triggers += max(0, unseen)
            self._gap.frames_to_settle -= 1
            if not has_counter or self._gap.frames_to_settle == 0:
                self._report_gap(self._gap, has_counter)
        elif unseen > 0:
            self.may_have_missed_plates = True
            detail = f"the trigger counted {unseen} plates that were not seen"
            frames = (frame.frame_id, frame.frame_id)
            self._events.append(Gap(Reason.GAP, detail, frames, 0, unseen, self.triggers.accounted))

    def _settle_start(self, unseen: int, has_counter: bool) -> None:
        self._joining -= 1
        self._joined_triggers += max(0, unseen)
        self._is_counter_new = self._is_counter_new or unseen < 0
        # Without a plate in the log there is nothing to hold the counter against.
        if has_counter and self._joining and self._joining_from is not None:
            return
        self._joining = 0
        since = self._joining_from
        if not has_counter or self._is_counter_new:
            now = self.triggers.accounted if has_counter else None
            self._events.append(Joined(None, since, now, self._is_counter_new))
            return
        triggers = 0 if since is None else self._joined_triggers
        end = (since or 0) + triggers if triggers else None
        self._events.append(Joined(triggers, since, end))

    def _report_gap(self, gap: _Interruption, has_counter: bool = False) -> None:
        self._gap = None
        # The plate that the gap cut off has a record of its own, which answers for it.
        could_hide_a_plate = gap.scan_lines >= self._least_plate_lines
        if gap.had_plate and not (gap.triggers if has_counter else could_hide_a_plate):
            return
        # Its row answers for all until belt is seen.
        self._lines_since_cut_plate = 0.0
        self._events.append(
            Gap(
                Reason.GAP,
                gap.detail,
                (gap.first_frame_id, gap.last_frame_id),
                gap.lost_frames,
                gap.triggers if has_counter else None,
                self.triggers.accounted,
            )
        )

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class _Lines:
    """A run of scan lines of one frame that are all plate or all belt."""

    frame: Frame
    start: int
    stop: int
    left: Rows
    right: Rows

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def is_plate(self) -> bool:
        return bool(self.left[0] != OUTSIDE)


def buffer_lines(geometry: Geometry) -> int:
    """Scan lines that a plate's buffer holds: the longest plate and the belt that ends it."""
    return geometry.max_rows + geometry.min_gap_px + geometry.margin_px


def scan_line_edges(pixels: Pixels, geometry: Geometry) -> tuple[Rows, Rows]:
    """First plate pixel and the one after the last of each scan line, int32 (lines,).

    OUTSIDE where too little of the scan line is brighter than the belt. Edges lie on multiples of
    8 px, inside the plate.
    """
    lines, width = pixels.shape
    if geometry.is_whole:
        return np.zeros(lines, np.int32), np.full(lines, width, np.int32)
    cells = width // _EDGE_STEP_PX
    means = cv2.resize(
        pixels[:, : cells * _EDGE_STEP_PX], (cells, lines), interpolation=cv2.INTER_AREA
    )
    is_plate = means > geometry.belt_level
    enough = is_plate.sum(axis=1) * _EDGE_STEP_PX >= _LEADING_EDGE_PX
    # The outermost cells may be cut by the edge.
    left = (is_plate.argmax(axis=1) + 1) * _EDGE_STEP_PX
    right = (cells - is_plate[:, ::-1].argmax(axis=1) - 1) * _EDGE_STEP_PX
    return (
        np.where(enough, left, OUTSIDE).astype(np.int32),
        np.where(enough, right, OUTSIDE).astype(np.int32),
    )


def outline_problem(plate: Plate, geometry: Geometry) -> tuple[Reason | None, str]:
    """Why a plate that has ended cannot be judged by its place and shape; None if it can."""
    if plate.pixels is None:
        return Reason.OVERRUN, "no plate buffer was free; the pixels were given up"
    if geometry.is_whole:
        return _narrow_problem(plate.right[0] - plate.left[0], plate.length_px, geometry)
    if not plate.is_separated:
        gap_mm = geometry.min_gap_px * geometry.pixel_pitch_mm
        return Reason.NOT_SEPARATED, f"less than {gap_mm:g} mm to the next plate"
    left, right = plate.outline
    inside = left != OUTSIDE
    if left[inside].min() < geometry.lane_left_px or right.max() > geometry.lane_right_px:
        return Reason.OUT_OF_LANE, (
            f"crossweb {left[inside].min()} to {right.max()} px, lane "
            f"{geometry.lane_left_px} to {geometry.lane_right_px} px"
        )
    shape = measure(plate)
    return _shape_problem(shape, plate, geometry)


@dataclass(frozen=True, slots=True)
class Shape:
    """A plate as measured from its outline."""

    width_px: float
    length_px: float
    skew_deg: float
    left_px: float
    """Crossweb, where the left side meets the first scan line."""
    right_px: float

    @property
    def slope(self) -> float:
        """Of the sides, px crossweb for each scan line."""
        return math.tan(math.radians(self.skew_deg))

    @property
    def slant_px(self) -> float:
        """Scan lines from one corner of an end to the other."""
        return self.width_px * abs(math.sin(math.radians(self.skew_deg)))


def measure(plate: Plate) -> Shape:
    """Measure a plate from its outline.

    Sides are known to 8 px only, which says little about a small angle over a short side. The ends
    say more: there each column is known to the scan line.
    """
    left, right = _sides(plate)
    lines = np.arange(len(left), dtype=np.float64)
    seen = np.isfinite(left)
    middle = seen & (lines >= 0.3 * len(left)) & (lines <= 0.7 * len(left))
    if middle.sum() < 2:
        middle = seen
    width = _median((right - left)[middle])
    columns = _EDGE_STEP_PX * np.arange(1, max(3, width // _EDGE_STEP_PX))
    early, late = middle & (lines < len(left) / 2), middle & (lines >= len(left) / 2)
    slope = 0.0
    if early.any() and late.any():
        slope = (_median(left[late]) - _median(left[early])) / (0.2 * len(left))
    # The sides say well enough where the ends' columns are, and those say the angle.
    for _ in range(2):
        at_leading = _median((left - lines * slope)[middle]) + columns
        leading = _lines_before(left, right, at_leading)
        trailing = _lines_before(left[::-1], right[::-1], at_leading + slope * len(left))
        slope = (_rise(trailing) - _rise(leading)) / 2 / _EDGE_STEP_PX
    angle = math.atan(slope)
    straight = lines * slope
    return Shape(
        width_px=width * math.cos(angle),
        length_px=len(left) / math.cos(angle) - width * abs(math.sin(angle)),
        skew_deg=math.degrees(angle),
        left_px=_median((left - straight)[middle]),
        right_px=_median((right - straight)[middle]),
    )


def _sides(plate: Plate) -> tuple[Floats, Floats]:
    """Left and right side of each scan line; no column lies between them where it shows none."""
    left, right = (side.astype(np.float64) for side in plate.outline)
    is_belt = left == OUTSIDE
    left[is_belt], right[is_belt] = np.inf, -np.inf
    return left, right


def _lines_before(left: Floats, right: Floats, columns: Floats) -> Floats:
    """How many scan lines pass before the plate reaches each of these columns."""
    reached_left, reached_right = np.minimum.accumulate(left), np.maximum.accumulate(right)
    by_left = np.searchsorted(-reached_left, -columns, side="left")
    by_right = np.searchsorted(reached_right, columns, side="right")
    return np.maximum(by_left, by_right).astype(np.float64)


def _rise(lines: Floats) -> float:
    """Of an end, scan lines from column to column, as most of it has it."""
    half = len(lines) // 2
    rises = np.sort(lines[half : 2 * half] - lines[:half])
    return float(rises[half // 4 : half - half // 4].mean()) / half


def _straightness_problem(shape: Shape, plate: Plate, geometry: Geometry) -> str:
    """How sides or ends leave the rectangle that was measured; empty if they keep to it.

    The scored region follows the outline: what is missing, or dark, is looked at by nobody. So no
    more may be missing than the edge margin leaves out anyway, or than the plate may be too short
    by. Of a corner that much may be missing in one direction, whatever it is in the other.
    """
    side_limit = max(geometry.margin_px, 2 * _EDGE_STEP_PX)
    end_limit = max(min(side_limit, geometry.tolerance_px), _END_NOISE_PX)
    for what, off_px, limit_px in (
        ("a side deviates", _off_sides(plate, shape, end_limit), side_limit),
        ("the ends deviate", _off_ends(plate, shape, side_limit), end_limit),
    ):
        if off_px > limit_px:
            return f"{what} by {off_px * geometry.pixel_pitch_mm:.1f} mm from straight"
    return ""


def _off_sides(plate: Plate, shape: Shape, end_px: float) -> float:
    """Largest distance crossweb of a side from straight, beyond `end_px` scan lines of its ends."""
    left, right = _sides(plate)
    lines = np.arange(len(left), dtype=np.float64)
    end_px = min(end_px, len(lines) / 4)
    # A plate that lies askew shows one side first, the other that much later.
    left_start, right_start = (0.0, shape.slant_px) if shape.slope <= 0 else (shape.slant_px, 0.0)
    off_px = 0.0
    for side, at_start_px, start in (
        (left, shape.left_px, left_start),
        (right, shape.right_px, right_start),
    ):
        stop = start + len(lines) - shape.slant_px
        is_side = (lines >= start + end_px) & (lines < stop - end_px)
        off = np.abs(side - at_start_px - shape.slope * lines)[is_side]
        off_px = max(off_px, float(off.max(initial=0.0)))
    return off_px


def _off_ends(plate: Plate, shape: Shape, side_px: float) -> float:
    """By how many scan lines both ends together are off straight, beyond `side_px` of the sides.

    One angle for both: an end that is broken off slantwise is no skew, for the other does not share
    it. Where both are, the length tells.
    """
    left, right = _sides(plate)
    beside = min(side_px + _EDGE_STEP_PX, shape.width_px / 4) + abs(shape.slope) * shape.slant_px
    columns = np.arange(shape.left_px + beside, shape.right_px - beside, _EDGE_STEP_PX)
    if not len(columns):
        return math.inf
    straight = shape.slope * columns
    at_trailing = columns + shape.slope * len(left)
    leading = _lines_before(left, right, columns) + straight
    trailing = _lines_before(left[::-1], right[::-1], at_trailing) - straight
    return float(np.ptp(leading) + np.ptp(trailing))


def _median(values: Floats) -> float:
    """numpy's own imports its masked arrays at the first call: 10 ms while a plate waits."""
    ordered, half = np.sort(values), len(values) // 2
    middle = ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return float(middle)


def _shape_problem(shape: Shape, plate: Plate, geometry: Geometry) -> tuple[Reason | None, str]:
    tolerance = geometry.tolerance_px
    if shape.width_px > geometry.width_px + tolerance:
        return Reason.NOT_SEPARATED, _size("width", shape.width_px, geometry.width_px, geometry)
    # First: of what is no rectangle angle and size say nothing.
    if uneven := _straightness_problem(shape, plate, geometry):
        return Reason.OUTLINE, uneven
    if abs(shape.skew_deg) > geometry.max_skew_deg:
        return Reason.SKEWED, f"{shape.skew_deg:.2f} deg, {geometry.max_skew_deg} allowed"
    if shape.length_px < geometry.length_px - tolerance:
        return Reason.SHORT, _size("length", shape.length_px, geometry.length_px, geometry)
    if shape.length_px > geometry.length_px + tolerance:
        return Reason.OVERLONG, _size("length", shape.length_px, geometry.length_px, geometry)
    if shape.width_px < geometry.width_px - tolerance:
        return Reason.NARROW, _size("width", shape.width_px, geometry.width_px, geometry)
    return _narrow_problem(int(shape.width_px), plate.length_px, geometry)


def _size(what: str, found_px: float, wanted_px: float, geometry: Geometry) -> str:
    pitch = geometry.pixel_pitch_mm
    return (
        f"{what} {found_px * pitch:.1f} mm, the recipe says {wanted_px * pitch:.1f} "
        f"+- {geometry.tolerance_px * pitch:.1f} mm"
    )


def _narrow_problem(width: int, length: int, geometry: Geometry) -> tuple[Reason | None, str]:
    scored = min(width, length) - 2 * geometry.margin_px
    if scored < 1:
        return Reason.NARROW, "nothing is left inside the edge margin"
    if scored < 224 and not geometry.is_narrow_allowed:
        return Reason.NARROW, f"{scored} px to score, a tile has 224"
    return None, ""


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of equal flags, in order."""
    bounds = np.flatnonzero(np.diff(flags)) + 1
    edges = [0, *bounds.tolist(), len(flags)]
    return itertools.pairwise(edges)
