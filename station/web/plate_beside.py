"""What is shown beside a plate: its neighbours, the same place on other plates, judged plates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from station.limit_samples import samples_folder
from station.log_reader import Reader
from station.record import ImageBody, Verdict
from station.reviews import effective_verdict
from station.roles import Person
from station.web.blind import is_blind_of
from station.web.context import Web
from station.web.judge_panel import loaded_recipe
from station.web.plate_limits import limit_samples
from station.web.plate_log import PlateRows, around, judged_defects, plate_rows
from station.web.plate_model import OtherPlate, PlaceCrop, SamePlace, Sample, Samples
from station.web.plate_pictures import ROLES, crop_url, plate_url
from station.web.plate_place import Pose, pitch_of

_LAST_PLATES = 6
_SAMPLES = 4
_LEAST_SIDE_MM, _MOST_SIDE_MM = 4.0, 100.0
MARGIN = 2.0
"""The side of a part, as a multiple of its defect's."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the picture of one plate."""

    x_px: float
    y_px: float
    side_mm: float
    number: int | None = None
    """Of the defect that is there."""


@dataclass(frozen=True, slots=True)
class Look:
    """One person's look at the log."""

    web: Web
    reader: Reader
    person: Person

    def pitch_mm(self, found: PlateRows) -> float:
        return pitch_of(found.result, self.web.configuration)[0]

    def pose(self, found: PlateRows) -> Pose | None:
        return Pose.of(found.result, self.pitch_mm(found))

    def verdict_seen(self, line: Any, rows: PlateRows | None) -> str | None:
        """Of a line of `plate`, reviews included; None where it is kept from this person."""
        if rows is None or is_blind_of(rows.all, self.person):
            return None
        return str(line.reviewed_verdict or line.verdict)

    # --- neighbours -------------------------------------------------------------------------------

    def other(self, line: Any) -> OtherPlate:
        """Another plate by its line of `plate`."""
        rows = plate_rows(self.reader, line.result_id)
        verdict = self.verdict_seen(line, rows)
        return OtherPlate(
            result_id=line.result_id,
            written_at=line.written_at,
            verdict=verdict,
            attempt=line.attempt,
            part_id=line.part_id,
            picture_url="" if rows is None else _small_url(rows),
        )

    # --- the same place ---------------------------------------------------------------------------

    def place(self, found: PlateRows, x_mm: float, y_mm: float) -> Place | None:
        """Any place, in mm as in the record; None where the record does not say where the plate
        lay."""
        pose = self.pose(found)
        if pose is None:
            return None
        x_px, y_px = x_mm / pose.pitch_mm + pose.left_px, y_mm / pose.pitch_mm
        return Place(x_px, y_px, 2 * _LEAST_SIDE_MM)

    def defect_place(self, found: PlateRows, number: int) -> Place | None:
        """None if there is no such defect, or as `place`."""
        defects = found.result.get("defects") or ()
        if self.pose(found) is None or not 0 <= number < len(defects):
            return None
        one = defects[number]
        side_mm = MARGIN * max(one["w_px"], one["h_px"]) * self.pitch_mm(found)
        side_mm = min(_MOST_SIDE_MM, max(_LEAST_SIDE_MM, side_mm))
        x_px, y_px = one["x_px"] + one["w_px"] / 2, one["y_px"] + one["h_px"] / 2
        return Place(x_px, y_px, side_mm, number)

    def same_place(self, found: PlateRows, place: Place) -> SamePlace:
        """A place of a plate that lies somewhere, on it and on the last ones before it."""
        pose = self.pose(found)
        assert pose is not None
        x_mm, y_mm = pose.on_plate(place.x_px, place.y_px)
        holds = str(effective_verdict(found.all).verdict)
        own = self._crop(found, holds, (place.x_px, place.y_px), place.side_mm, is_this=True)
        on_plate, in_camera = [own], [own]
        for rows, verdict in self._last(found):
            in_camera.append(self._crop(rows, verdict, (place.x_px, place.y_px), place.side_mm))
            other = self.pose(rows)
            if other is not None:
                at = other.in_picture(x_mm, y_mm)
                on_plate.append(self._crop(rows, verdict, at, place.side_mm))
        return SamePlace(
            result_id=found.result["result_id"],
            number=place.number,
            x_mm=round(x_mm, 2),
            y_mm=round(y_mm, 2),
            side_mm=round(place.side_mm, 2),
            on_plate=on_plate,
            in_camera=in_camera,
        )

    def _last(self, found: PlateRows) -> list[tuple[PlateRows, str | None]]:
        """The plates before, the nearest first, with the verdicts that may be seen."""
        lines, _ = around(self.reader, found.result, _LAST_PLATES)
        read = [(line, plate_rows(self.reader, line.result_id)) for line in reversed(lines)]
        return [(rows, self.verdict_seen(line, rows)) for line, rows in read if rows is not None]

    def _crop(
        self,
        found: PlateRows,
        verdict: str | None,
        centre_px: tuple[float, float],
        side_mm: float,
        is_this: bool = False,
    ) -> PlaceCrop:
        return PlaceCrop(
            result_id=found.result["result_id"],
            written_at=found.result["written_at"],
            verdict=verdict,
            role=_best_role(found),
            url=self._crop_url(found, centre_px, side_mm),
            is_this=is_this,
        )

    def _crop_url(self, found: PlateRows, centre_px: tuple[float, float], side_mm: float) -> str:
        role, half_px = _best_role(found), side_mm / self.pitch_mm(found) / 2
        return crop_url(found.result["result_id"], role, centre_px, half_px) if role else ""

    # --- samples ----------------------------------------------------------------------------------

    def samples(self, result_id: str, kind: str) -> Samples:
        """Of a kind that the active recipe knows; none of another."""
        recipe = loaded_recipe(self.web)
        kinds = [] if recipe is None else list(recipe.value.review.kinds)
        asked = kind if kind in kinds else ""
        return Samples(
            result_id=result_id,
            kind=asked,
            kinds=kinds,
            accepted=self._judged(asked, Verdict.PASS, result_id) if asked else [],
            rejected=self._judged(asked, Verdict.FAIL, result_id) if asked else [],
            limits=[] if recipe is None else limit_samples(recipe),
            has_limits=recipe is not None and samples_folder(recipe) is not None,
        )

    def _judged(self, kind: str, verdict: Verdict, but: str) -> list[Sample]:
        found = []
        for line in judged_defects(self.reader, kind, verdict, _SAMPLES + 1):
            rows = plate_rows(self.reader, line.result_id)
            is_seen = self.verdict_seen(line, rows) is not None
            if rows is not None and is_seen and line.result_id != but:
                found.append(self._sample(rows, line, kind))
        return found[:_SAMPLES]

    def _sample(self, rows: PlateRows, line: Any, kind: str) -> Sample:
        place = self.defect_place(rows, line.number)
        at = (0.0, 0.0) if place is None else (place.x_px, place.y_px)
        sides = [side for side in (line.w_mm, line.h_mm) if side is not None]
        return Sample(
            result_id=line.result_id,
            written_at=line.written_at,
            kind=kind,
            verdict=line.reviewed_verdict,
            reviewer=line.reviewer,
            size_mm=max(sides, default=None),
            url="" if place is None else self._crop_url(rows, at, place.side_mm),
        )


def _small_url(rows: PlateRows) -> str:
    """Of a small picture; empty without one."""
    return f"{plate_url(rows.result['result_id'])}/thumbnail.jpg" if _kept(rows) else ""


def _best_role(found: PlateRows) -> str:
    """Of the best picture that no rule has removed; empty if there is none."""
    kept = _kept(found)
    return next((role for role in ROLES if role in kept), "")


def _kept(found: PlateRows) -> dict[str, ImageBody]:
    return {role: one for role, one in found.images.items() if found.tombstone(one) is None}
