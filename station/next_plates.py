"""Which passed plates a person should look at next: near the threshold, not long ago, and no two of
a kind. What people say of them trains the next model; the audit's samples are not among them, so
that what is measured on those is not led by any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import desc, select, text

from models.choosing import BREADTH, choose, doubt
from station.log_reader import Reader
from station.questions import Selection, plate_conditions
from station.record import ChangeBody, Verdict
from station.stored_tiles import ScoredTile, picture_of, scored_tiles
from station.tables import PLATE
from station.tiling import TILE_PX

ASKED = "model_check_asked"
"""Name of the change row: somebody is asked to look at these plates."""
HALF_LIFE_DAYS = 14.0
"""After so many days a plate's doubt counts half: the line has changed meanwhile."""
MOST_PLATES = 20_000
"""The newest passed plates that are considered."""
_PATCH = 12
_PLACE_WEIGHT = 2.0
"""Of the place on the plate against what the picture shows there."""
_PAGE = 500
_DAY_S = 86_400.0
_LAST_ASKED = text(f"""
    SELECT body ->> '$.detail.plates' FROM row
    WHERE kind = 'change' AND body ->> '$.what' = '{ASKED}' ORDER BY +seq DESC LIMIT 5
""")
"""Older requests are over: what nobody looked at is asked for again, or is not worth it."""


@dataclass(frozen=True, slots=True)
class NextPlate:
    """A passed plate that nobody has judged."""

    result_id: str
    part_id: str | None
    written_at: str
    score: float
    threshold: float
    doubt: float
    """1: its score is the threshold and it is of today."""
    tile_x_px: int
    tile_y_px: int
    """Its most doubtful tile."""
    picture: str
    """What was kept: `whole`, `preview` or `none`; only a whole one can train."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Candidate:
    plate: NextPlate
    seen: NDArray[np.float64]


def next_plates(
    reader: Reader, count: int, since: str | None = None, only_whole: bool = False
) -> list[NextPlate]:
    """At most `count` plates, the first one first. Raises `StoreError`."""
    lines = _passed(reader, since)
    if not lines:
        return []
    scores = np.array([line.score for line in lines], np.float64)
    newest = max(line.written_at for line in lines)
    ages = np.array([_days_between(line.written_at, newest) for line in lines])
    fresh = np.power(0.5, ages / HALF_LIFE_DAYS)
    # All passed, so the higher score is the more doubtful one; the records, which alone know the
    # thresholds, are read of few.
    order = np.argsort(-scores * fresh, kind="stable")
    found: list[_Candidate] = []
    for start in range(0, len(order), _PAGE):
        if len(found) >= BREADTH * count:
            break
        page = [lines[place] for place in order[start : start + _PAGE].tolist()]
        bodies = reader.bodies_at([line.seq for line in page])
        for line, place in zip(page, order[start : start + _PAGE].tolist(), strict=True):
            one = _candidate(reader, bodies[line.seq], float(fresh[place]))
            if one is not None and not (only_whole and one.plate.picture != "whole"):
                found.append(one)
            if len(found) >= BREADTH * count:
                break
    if not found:
        return []
    doubts = np.array([one.plate.doubt for one in found])
    seen = np.stack([one.seen for one in found])
    return [found[place].plate for place in choose(doubts, seen, count).tolist()]


def asked_change(station_id: str, who: str, plates: Sequence[NextPlate]) -> ChangeBody:
    """The row that asks people to look."""
    detail = {"plates": " ".join(plate.result_id for plate in plates), "count": str(len(plates))}
    return ChangeBody(station_id=station_id, what=ASKED, who=who, detail=detail)


def asked_lines(reader: Reader, limit: int) -> Sequence[Any]:
    """Lines of `plate` that the last rows ask people to look at and that nobody has judged, in
    their order. Raises `StoreError`."""
    rows = reader.ask(_LAST_ASKED)
    asked = dict.fromkeys(one for row in rows for one in row[0].split())
    waiting = PLATE.c.reviewed_verdict.is_(None) & PLATE.c.result_id.in_(list(asked))
    lines = {line.result_id: line for line in reader.ask(select(PLATE).where(waiting))}
    return [lines[one] for one in asked if one in lines][:limit]


def _passed(reader: Reader, since: str | None) -> Sequence[Any]:
    """Lines of `plate`: passed, judged by nobody, not drawn for the audit, newest first."""
    wanted = Selection(since=since, verdict=Verdict.PASS.value, is_audit_sample=False)
    chosen = (
        select(PLATE)
        .where(
            plate_conditions(wanted), PLATE.c.reviewed_verdict.is_(None), PLATE.c.score.is_not(None)
        )
        .order_by(desc(PLATE.c.written_at), desc(PLATE.c.seq))
        .limit(MOST_PLATES)
    )
    return reader.ask(chosen)


def _candidate(reader: Reader, result: Mapping[str, Any], fresh: float) -> _Candidate | None:
    tiles = scored_tiles(result)
    if not tiles or result["score"] is None:
        return None
    tile = max(tiles, key=lambda one: one.score)
    threshold = float(result["threshold"])
    doubtful = float(doubt(np.array([tile.score], np.float64), threshold)[0]) * fresh
    role, picture = picture_of(reader.images, result)
    plate = NextPlate(
        result["result_id"],
        result.get("part_id"),
        result["written_at"],
        float(result["score"]),
        threshold,
        round(doubtful, 4),
        tile.x_px,
        tile.y_px,
        role,
    )
    return _Candidate(plate, _seen(result, tile, picture))


def _seen(result: Mapping[str, Any], tile: ScoredTile, picture: Path | None) -> NDArray[np.float64]:
    """Where on the plate the doubtful tile lies, and what a small picture of it shows; both about
    as large."""
    width, length = result.get("width_px") or TILE_PX, result.get("length_px") or TILE_PX
    left = result.get("left_px") or 0
    place = [(tile.x_px - left + TILE_PX / 2) / width, (tile.y_px + TILE_PX / 2) / length]
    patch = np.zeros(_PATCH * _PATCH)
    if picture is not None:
        patch = _patch(result, tile, picture)
    return np.concatenate([_PLACE_WEIGHT * np.clip(place, 0, 1), patch])


def _patch(result: Mapping[str, Any], tile: ScoredTile, picture: Path) -> NDArray[np.float64]:
    """12 x 12 means of the tile, less their own mean, of length 1; zeros where nothing is read."""
    none = np.zeros(_PATCH * _PATCH)
    pixels = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
    length = result.get("length_px") or 0
    if pixels is None or not length:
        return none
    scale = pixels.shape[0] / length
    x0, y0 = round(tile.x_px * scale), round(tile.y_px * scale)
    side = max(2, round(TILE_PX * scale))
    part = pixels[y0 : y0 + side, x0 : x0 + side]
    if part.size == 0:
        return none
    small = cv2.resize(part, (_PATCH, _PATCH), interpolation=cv2.INTER_AREA).astype(np.float64)
    small -= small.mean()
    size = float(np.sqrt(np.square(small).sum()))
    return small.ravel() / size if size else none


def _days_between(one: str, other: str) -> float:
    span = datetime.fromisoformat(other) - datetime.fromisoformat(one)
    return max(0.0, span.total_seconds() / _DAY_S)
