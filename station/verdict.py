"""From tile scores to one verdict. Pure; the only place that says PASS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from station.record import DefectBody, Reason, Verdict
from station.tiling import TILE_PX

MAX_DEFECTS = 100
"""Defects listed in a record; more are counted."""


@dataclass(frozen=True, slots=True)
class TileScore:
    """A tile's place (first pixel, from scan line start and leading edge) and P(defective)."""

    column: int
    row: int
    x_px: int
    y_px: int
    score: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict rests on."""

    problem: Reason | None
    """Why the plate's pixels cannot be judged, from the strip."""
    tiles_expected: int
    """Tiles that cover the whole region."""
    scores: Sequence[TileScore]
    threshold: float
    unlit_share: float
    """Share of the region's pixels at level 0 or 255."""
    max_unlit_share: float
    is_self_tested: bool
    """The active model is hash-verified and reproduced its golden scores."""
    is_late: bool = False
    """The deadline after the last scan line has passed: nobody knows where the plate is now."""


def is_failing(score: float, threshold: float) -> bool:
    """True unless the score is certainly good: NaN fails."""
    return not (math.isfinite(score) and score <= threshold)


def decide(evidence: Evidence) -> tuple[Verdict, Reason | None]:
    """Judge one plate. PASS only if I1's conditions that can be known here all hold."""
    if evidence.problem is not None:
        return Verdict.UNDECIDED, evidence.problem
    if not evidence.is_self_tested:
        return Verdict.UNDECIDED, Reason.MODEL
    if not all(math.isfinite(tile.score) for tile in evidence.scores):
        return Verdict.UNDECIDED, Reason.NON_FINITE
    if not _is_threshold(evidence.threshold):
        return Verdict.UNDECIDED, Reason.MODEL
    if not evidence.unlit_share <= evidence.max_unlit_share:
        return Verdict.UNDECIDED, Reason.UNLIT
    places = {(tile.column, tile.row) for tile in evidence.scores}
    if evidence.tiles_expected < 1 or len(places) != evidence.tiles_expected:
        return Verdict.UNDECIDED, Reason.UNCOVERED
    if any(is_failing(tile.score, evidence.threshold) for tile in evidence.scores):
        return Verdict.FAIL, None
    if evidence.is_late:
        return Verdict.UNDECIDED, Reason.DEADLINE
    return Verdict.PASS, None


def _is_threshold(threshold: float) -> bool:
    return math.isfinite(threshold) and 0.0 <= threshold <= 1.0


def find_defects(
    scores: Sequence[TileScore], threshold: float, left_px: int, pixel_pitch_mm: float
) -> list[DefectBody]:
    """Groups of neighbouring failing tiles as boxes, highest score first.

    `left_px` is the plate's left edge at its leading edge; x_mm and y_mm are the box's centre.
    """
    failing = {(t.column, t.row): t for t in scores if is_failing(t.score, threshold)}
    boxes = [_box(group, left_px, pixel_pitch_mm) for group in _groups(failing)]
    return sorted(boxes, key=lambda box: -box.score)


def _groups(tiles: dict[tuple[int, int], TileScore]) -> Iterator[list[TileScore]]:
    """Failing tiles that touch, also across a corner."""
    waiting = dict(tiles)
    while waiting:
        place, tile = waiting.popitem()
        group, front = [tile], [place]
        while front:
            column, row = front.pop()
            for near in [(column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in waiting:
                    group.append(waiting.pop(near))
                    front.append(near)
        yield group


def _box(group: list[TileScore], left_px: int, pixel_pitch_mm: float) -> DefectBody:
    x = min(tile.x_px for tile in group)
    y = min(tile.y_px for tile in group)
    width = max(tile.x_px for tile in group) + TILE_PX - x
    height = max(tile.y_px for tile in group) + TILE_PX - y
    return DefectBody(
        x_px=x,
        y_px=y,
        w_px=width,
        h_px=height,
        x_mm=round((x + width / 2 - left_px) * pixel_pitch_mm, 2),
        y_mm=round((y + height / 2) * pixel_pitch_mm, 2),
        score=max(tile.score for tile in group),
    )
