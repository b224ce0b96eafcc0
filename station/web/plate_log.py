"""What a plate's page asks of the log: its rows, its neighbours, judged plates like it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from sqlalchemy import desc, select, text

from station.log_reader import Reader
from station.qms import Json
from station.record import ImageBody, Verdict
from station.roles import Person
from station.tables import PLATE
from station.tiling import TILE_PX
from station.web.blind import is_blind, is_blind_of
from station.web.errors import PageError, not_found

_REVIEWS_LOOKED_AT = 1000
"""Of a kind that is rarer there are no samples."""
# CROSS JOIN keeps SQLite from beginning with all defects.
_JUDGED_DEFECTS = text("""
    SELECT plate.*, defect.number, defect.w_mm, defect.h_mm
    FROM (SELECT DISTINCT result_id FROM (
        SELECT result_id FROM row WHERE kind = 'review' ORDER BY written_at DESC LIMIT :reviews
    )) AS reviewed
    CROSS JOIN plate ON plate.result_id = reviewed.result_id
    CROSS JOIN defect ON defect.station_id = plate.station_id AND defect.seq = plate.seq
    WHERE defect.kind = :kind AND plate.reviewed_verdict = :verdict
    ORDER BY plate.written_at DESC, plate.seq DESC, defect.number LIMIT :count
""")
_LONGEST_ID = 64
ARRAYS = ("tile_grid", "tile_scores")
"""Left out where a row is shown, as `vqi log show` does."""


@dataclass(frozen=True, slots=True)
class PlateRows:
    """Every row about one plate that has a result."""

    result: Json
    others: tuple[Json, ...]

    def of_kind(self, kind: str) -> list[Json]:
        return [row for row in self.others if row["kind"] == kind]

    @property
    def all(self) -> list[Json]:
        return [self.result, *self.others]

    @property
    def images(self) -> dict[str, ImageBody]:
        """The pictures that the record names, by their role."""
        named = [_image_of(image) for image in self.result.get("images") or ()]
        return {image.role: image for image in named}

    def tombstone(self, image: ImageBody) -> Json | None:
        """What removed a picture."""
        stones = self.of_kind("tombstone")
        return next((stone for stone in stones if stone["path"] == image.path), None)

    @property
    def defect_kinds(self) -> dict[int, str]:
        """What the last reviewer who named a defect called it, by its number."""
        named = [one for row in self.of_kind("review") for one in row.get("defects") or ()]
        return {one["number"]: one["kind"] for one in named}


def _image_of(said: Json) -> ImageBody:
    """As it is recorded; what no program recorded so is kept for its role alone, and not opened."""
    fields = {name: value for name, value in said.items() if name in ImageBody.model_fields}
    try:
        return ImageBody.model_validate(fields)
    except ValidationError:
        nothing = {"path": "", "sha256": "", "bytes": 0, "width_px": 0, "height_px": 0}
        return ImageBody.model_construct(role=str(said.get("role")), **nothing)  # type: ignore[arg-type]


def plate_rows(reader: Reader, result_id: str) -> PlateRows | None:
    """None of a plate without a result."""
    found = reader.of_result(result_id)
    if not found or found[0]["kind"] != "result":
        return None
    return PlateRows(found[0], tuple(found[1:]))


def on_its_way(reader: Reader, result_id: str) -> str | None:
    """When the leading edge of a plate without a result was seen; None of any other."""
    rows = reader.of_result(result_id) if len(result_id) <= _LONGEST_ID else []
    if not rows or rows[0]["kind"] == "result":
        return None
    return next((str(row["written_at"]) for row in rows if row["kind"] == "opened"), None)


def found_plate(reader: Reader, result_id: str) -> PlateRows:
    """Raises `PageError` 404: there is no such plate, or it has no result yet."""
    found = plate_rows(reader, result_id) if len(result_id) <= _LONGEST_ID else None
    if found is None:
        raise not_found("plate.no_such")
    return found


def seen_plate(reader: Reader, result_id: str, person: Person) -> PlateRows:
    """As `found_plate`; 403 where its verdict is kept from this person."""
    found = found_plate(reader, result_id)
    if is_blind_of(found.all, person):
        raise PageError(403, "plate.blind_hidden")
    return found


def not_blind(reader: Reader, result_id: str, person: Person) -> None:
    """Raises `PageError` 403 where a plate's verdict is kept from this person."""
    if len(result_id) <= _LONGEST_ID and is_blind(reader, result_id, person):
        raise PageError(403, "plate.blind_hidden")


def around(reader: Reader, result: Mapping[str, Any], count: int) -> tuple[list[Any], list[Any]]:
    """Lines of `plate` before and after a result, as they were written; the nearest last and
    first."""
    own = PLATE.c.station_id == result["station_id"]
    earlier = select(PLATE).where(own, PLATE.c.seq < result["seq"])
    later = select(PLATE).where(own, PLATE.c.seq > result["seq"])
    before = reader.ask(earlier.order_by(desc(PLATE.c.seq)).limit(count))
    after = reader.ask(later.order_by(PLATE.c.seq).limit(count))
    return list(before)[::-1], list(after)


def judged_defects(reader: Reader, kind: str, verdict: Verdict, count: int) -> Sequence[Any]:
    """Lines of `plate` and `defect` of a kind on plates that a person has judged so, among those
    of the last reviews; the newest first."""
    given = {"kind": kind, "verdict": verdict.value, "count": count, "reviews": _REVIEWS_LOOKED_AT}
    return reader.ask(_JUDGED_DEFECTS.bindparams(**given))


@dataclass(frozen=True, slots=True)
class TileScores:
    """What the network said of each tile, in grid order."""

    places: NDArray[np.int32]
    """(tiles, 2): x_px, y_px of each tile's first pixel."""
    scores: NDArray[np.float32]

    @property
    def step_px(self) -> int:
        """From tile to tile; a tile's own side where there is one only."""
        steps = [np.diff(np.unique(self.places[:, axis])) for axis in (0, 1)]
        found = [int(step.min()) for step in steps if len(step)]
        return min(found, default=TILE_PX)


def tile_scores(result: Mapping[str, Any]) -> TileScores:
    """Of a whole result body; without tiles, none."""
    places = np.frombuffer(base64.b64decode(result.get("tile_grid") or ""), "<u2")
    scores = np.frombuffer(base64.b64decode(result.get("tile_scores") or ""), "<f4")
    return TileScores(places.astype(np.int32).reshape(-1, 2), scores.astype(np.float32))
