"""Pictures through the same strip, tiles, threads and verdict as live plates."""

from __future__ import annotations

import queue
from dataclasses import dataclass

import numpy as np

from drivers.camera import Frame
from models.classifier import Classifier
from station.acquisition import Tick
from station.config import Loaded, Recipe
from station.flat_field import FlatField, correct, correction_of
from station.inspection import FailingTile, Inspector, PlateScored, PlateWork
from station.judge import Judge
from station.product import geometry_of
from station.record import DefectBody, Reason, Verdict
from station.results import judge
from station.strip import (
    Event,
    Gap,
    Pixels,
    Plate,
    PlateClosed,
    PlateOpened,
    StripCutter,
    TileRowReady,
    buffer_lines,
)
from station.tiling import Geometry
from station.verdict import TileScore

_BELT_SEED = 8
_BELT_LEVELS = (6, 11)
MIN_SIDE_PX = 32
"""A smaller picture shows no tile's worth of anything."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one picture came to."""

    verdict: Verdict
    reason: Reason | None
    detail: str
    score: float | None
    tiles: tuple[TileScore, ...]
    defects: tuple[DefectBody, ...]


class PictureInspector:
    """Inspects pictures as plates, one after another; for one thread."""

    def __init__(
        self,
        recipe: Loaded[Recipe],
        classifier: Classifier,
        pixel_pitch_mm: float,
        threads: int,
        flat_field: FlatField | None = None,
    ) -> None:
        """`classifier` has at least `threads` sessions. Its self-test runs here. With `flat_field`
        pictures are scan lines as the camera delivers them; a station keeps corrected ones."""
        classifier.self_test()
        self._by = Judge.of(recipe, classifier)
        self._pixel_pitch_mm = pixel_pitch_mm
        self._threads = threads
        self._flat_field = flat_field

    def inspect(self, picture: Pixels) -> Inspection:
        """Judge a picture, uint8 (rows, columns). Raises `ConfigError` if the recipe does not
        fit it, ValueError if it is too small."""
        if min(picture.shape) < MIN_SIDE_PX:
            rows, columns = picture.shape
            raise ValueError(
                f"{columns} x {rows} px is too small to be judged; "
                f"at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px"
            )
        geometry = geometry_of(self._by.recipe, self._pixel_pitch_mm, picture.shape[1])
        if self._flat_field is not None:
            picture = _flattened(picture, self._flat_field)
        events = cut_picture(picture, geometry)
        plate = plate_of(events)
        if isinstance(plate, Gap):
            return _undecided(plate.reason, plate.detail)
        return self._judge(self._score(events, plate, geometry), geometry)

    def _score(self, events: list[Event], plate: Plate, geometry: Geometry) -> PlateWork:
        done: queue.SimpleQueue[PlateWork] = queue.SimpleQueue()

        def report(message: FailingTile | PlateScored | Tick) -> None:
            if isinstance(message, PlateScored):
                done.put(message.work)

        inspector = Inspector(geometry, self._threads, report)
        try:
            hand_over(events, PlateWork(plate, "", 0, None, self._by), inspector)
            return done.get()
        finally:
            inspector.stop()

    def _judge(self, work: PlateWork, geometry: Geometry) -> Inspection:
        plate = self._by.recipe.value.plate
        judged = judge(work, geometry, plate)
        return Inspection(
            judged.verdict,
            judged.reason,
            judged.detail,
            judged.score,
            tuple(judged.scores),
            tuple(judged.defects),
        )


def cut_picture(picture: Pixels, geometry: Geometry) -> list[Event]:
    """What the strip makes of a picture, uint8 (rows, columns)."""
    strip = picture if geometry.is_whole else _on_belt(picture, geometry)
    buffers = [np.empty((_lines(strip, geometry), strip.shape[1]), np.uint8)]
    cutter = StripCutter(
        geometry, len(strip), lambda: buffers.pop() if buffers else None, is_height_fixed=False
    )
    frame = Frame(np.ascontiguousarray(strip), strip.shape[1], frame_id=0, timestamp_ns=0)
    return cutter.feed(frame) + cutter.finish()


def plate_of(events: list[Event]) -> Plate | Gap:
    """The picture's one plate, or why there is none."""
    plates = [event.plate for event in events if isinstance(event, PlateOpened)]
    gaps = [event for event in events if isinstance(event, Gap)]
    if gaps:
        return gaps[0]
    if len(plates) != 1:
        detail = f"the picture shows {len(plates)} plates, not one"
        return Gap(Reason.OUTLINE, detail, (0, 0), 0, None, None)
    return plates[0]


def hand_over(events: list[Event], work: PlateWork, inspector: Inspector) -> None:
    """Let a picture's plate be scored, as the acquire thread does with those of a belt."""
    for event in events:
        if isinstance(event, TileRowReady):
            inspector.score(work, event.row)
        elif isinstance(event, PlateClosed):
            if event.reason is not None:
                work.problem, work.detail = event.reason, event.detail
            inspector.close(work)


def _flattened(picture: Pixels, flat_field: FlatField) -> Pixels:
    if picture.shape[1] != flat_field.width:
        raise ValueError(
            f"{picture.shape[1]} px wide; flat field {flat_field.id} is of scan lines of "
            f"{flat_field.width} px"
        )
    picture = np.array(picture, np.uint8)
    correct(picture, correction_of(flat_field))
    return picture


def _on_belt(picture: Pixels, geometry: Geometry) -> Pixels:
    """A stored plate begins and ends with plate: put the belt back before and after it."""
    lines = geometry.min_gap_px + geometry.margin_px + 1
    rng = np.random.default_rng(_BELT_SEED)
    belt = rng.integers(*_BELT_LEVELS, (2, lines, picture.shape[1]), np.uint8)
    return np.concatenate([belt[0], picture, belt[1]])


def _lines(strip: Pixels, geometry: Geometry) -> int:
    return len(strip) if geometry.is_whole else buffer_lines(geometry)


def _undecided(reason: Reason, detail: str) -> Inspection:
    return Inspection(Verdict.UNDECIDED, reason, detail, None, (), ())
