"""From tile scores to one verdict. Pure; the only place that says PASS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.localise import Box
from station.record import DefectBody, Reason, Verdict
from station.tiling import OUTSIDE, TILE_PX, TileRow

MAX_DEFECTS = 100
"""Defects listed in a record; more are counted."""
OF_SCORES = frozenset({None, Reason.UNSURE, Reason.NON_FINITE, Reason.UNLIT, Reason.OBSCURED})
"""Reasons of verdicts that rest on the plate's scores and pixels: others say nothing of a model."""


@dataclass(frozen=True, slots=True)
class TileScore:
    """A tile's place (first pixel, from scan line start and leading edge) and P(defective)."""

    column: int
    row: int
    x_px: int
    y_px: int
    score: float
    boxes: tuple[Box, ...] = ()
    """Where in a failing tile the defect is seen, in px of the tile; empty if nothing says."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict rests on."""

    problem: Reason | None
    """Why the plate's pixels cannot be judged, from the strip."""
    tiles_expected: int
    """Tiles that cover the whole region."""
    scores: Sequence[TileScore]
    threshold: float
    unsure_above: float | None
    """A tile score from here up to `threshold` says neither good nor defective; None: none does."""
    unlit_share: float
    """Share of the region's pixels at level 0 or 255."""
    max_unlit_share: float
    streak_share: float
    """Strongest change of brightness of a streak along the whole plate, relative."""
    max_streak_share: float
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
    if not all(map(_is_threshold, _limits(evidence))):
        return Verdict.UNDECIDED, Reason.MODEL
    if not evidence.unlit_share <= evidence.max_unlit_share:
        return Verdict.UNDECIDED, Reason.UNLIT
    places = {(tile.column, tile.row) for tile in evidence.scores}
    if evidence.tiles_expected < 1 or len(places) != evidence.tiles_expected:
        return Verdict.UNDECIDED, Reason.UNCOVERED
    if any(is_failing(tile.score, evidence.threshold) for tile in evidence.scores):
        return Verdict.FAIL, None
    if not evidence.streak_share <= evidence.max_streak_share:
        return Verdict.UNDECIDED, Reason.OBSCURED
    if any(is_failing(tile.score, min(_limits(evidence))) for tile in evidence.scores):
        return Verdict.UNDECIDED, Reason.UNSURE
    if evidence.is_late:
        return Verdict.UNDECIDED, Reason.DEADLINE
    return Verdict.PASS, None


def _limits(evidence: Evidence) -> tuple[float, ...]:
    """What scores are held against: all that a plate may not exceed to pass."""
    if evidence.unsure_above is None:
        return (evidence.threshold,)
    return evidence.unsure_above, evidence.threshold


def _is_threshold(threshold: float) -> bool:
    return math.isfinite(threshold) and 0.0 <= threshold <= 1.0


def find_defects(
    scores: Sequence[TileScore], threshold: float, left_px: int, pixel_pitch_mm: float
) -> list[DefectBody]:
    """Where the failing tiles see their defects, highest score first.

    Boxes that overlap or touch are one defect, also across tiles. A failing tile that says nothing
    of the place is a box of its own. `left_px` is the plate's left edge at its leading edge; x_mm
    and y_mm are the box's centre.
    """
    failing = (tile for tile in scores if is_failing(tile.score, threshold))
    parts = [part for tile in failing for part in _parts(tile)]
    found = [_defect(group, left_px, pixel_pitch_mm) for group in _groups(parts)]
    return sorted(found, key=lambda defect: -defect.score)


def boxes_on_plate(row: TileRow, x_px: int, boxes: Iterable[Box]) -> tuple[Box, ...]:
    """What of a tile's boxes lies on the plate's region; the rest of a tile is only padding.

    `x_px` is the tile's place in its row; boxes in px of the tile.
    """
    cut = (_cut(row, x_px, box) for box in boxes)
    return tuple(box for box in cut if box)


def _cut(row: TileRow, x_px: int, box: Box) -> Box | None:
    x, y, width, height = box
    left, right = row.left[y : y + height], row.right[y : y + height]
    lines = np.flatnonzero((left != OUTSIDE) & (left < x_px + x + width) & (right > x_px + x))
    if not len(lines):
        return None
    start = max(x, int(left[lines].min()) - x_px)
    end = min(x + width, int(right[lines].max()) - x_px)
    return start, y + int(lines[0]), end - start, int(lines[-1] - lines[0]) + 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A box on the plate, ends exclusive, with its tile's score."""

    x0: int
    y0: int
    x1: int
    y1: int
    score: float


def _parts(tile: TileScore) -> Iterator[_Part]:
    """The tile's boxes on the plate; without any, its whole square."""
    for x, y, width, height in tile.boxes or ((0, 0, TILE_PX, TILE_PX),):
        x0, y0 = tile.x_px + x, tile.y_px + y
        yield _Part(x0, y0, x0 + width, y0 + height, tile.score)


def _groups(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Parts that overlap or touch, also at a corner, directly or through others."""
    corners = np.array([(p.x0, p.y0, p.x1, p.y1) for p in parts], np.int64).reshape(-1, 4)
    starts, ends = corners[:, :2], corners[:, 2:]
    meets = np.all((starts[:, None] <= ends) & (starts <= ends[:, None]), axis=2)
    waiting = set(range(len(parts)))
    while waiting:
        group = [waiting.pop()]
        for place in group:
            near = waiting.intersection(np.flatnonzero(meets[place]).tolist())
            waiting -= near
            group += sorted(near)
        yield [parts[place] for place in group]


def _defect(group: list[_Part], left_px: int, pixel_pitch_mm: float) -> DefectBody:
    x, y = min(part.x0 for part in group), min(part.y0 for part in group)
    width = max(part.x1 for part in group) - x
    height = max(part.y1 for part in group) - y
    return DefectBody(
        x_px=x,
        y_px=y,
        w_px=width,
        h_px=height,
        x_mm=round((x + width / 2 - left_px) * pixel_pitch_mm, 2),
        y_mm=round((y + height / 2) * pixel_pitch_mm, 2),
        w_mm=round(width * pixel_pitch_mm, 2),
        h_mm=round(height * pixel_pitch_mm, 2),
        score=max(part.score for part in group),
    )
