"""From a plate's work to the body of its record."""

from __future__ import annotations

import base64
import math
import time
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np

from drivers.camera import CameraInfo
from station.config import Configuration, Loaded, PlateRecipe
from station.crossweb import streak_share
from station.flat_field import FlatField
from station.given import Given
from station.inspection import PlateWork
from station.judge import Judge
from station.record import (
    DefectBody,
    OpenedBody,
    Provenance,
    Reason,
    ResultBody,
    Verdict,
    result_id,
    utc_now,
)
from station.shifts import shift_of
from station.strip import Gap, measure
from station.tiling import OUTSIDE, Geometry
from station.verdict import MAX_DEFECTS, Evidence, TileScore, decide, find_defects


@dataclass(frozen=True, slots=True)
class Context:
    """What stays the same from plate to plate, whoever judges them."""

    configuration: Loaded[Configuration]
    geometry: Geometry
    deadline_s: float
    belt_stop_timeout_s: float
    camera: CameraInfo
    provenance: Provenance
    flat_field: FlatField | None = None

    @property
    def station_id(self) -> str:
        return self.configuration.value.station.id

    def shift_at(self, written_at: str) -> str | None:
        """The shift of a time, where shifts are configured."""
        shifts = self.configuration.value.journal.shifts
        return shift_of(shifts, datetime.fromisoformat(written_at)) if shifts else None

    def result_id(self, sequence: int) -> str:
        return result_id(self.station_id, sequence)

    def is_late(self, last_scan_line_ns: int | None) -> bool:
        """True if a plate's deadline has passed; a source that can wait sets none."""
        if last_scan_line_ns is None or self.camera.is_patient:
            return False
        return (time.monotonic_ns() - last_scan_line_ns) / 1e9 > self.deadline_s


def opened_body(context: Context, work: PlateWork) -> OpenedBody:
    return OpenedBody(
        station_id=context.station_id,
        result_id=work.result_id,
        sequence=work.sequence,
        frame_id=work.plate.first_frame_id,
        encoder_value=work.plate.encoder_value,
        plate_ordinal=work.plate.ordinal,
        opened_ns=work.plate.opened_ns,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the scores of one plate say, live and offline."""

    verdict: Verdict
    reason: Reason | None
    detail: str
    """Figures behind the reason."""
    score: float | None
    """Highest tile score; NaN counts as highest."""
    scores: list[TileScore]
    """In grid order."""
    defects: list[DefectBody]
    """Where failing tiles see them; of a plate that is UNDECIDED as unsure, where doubt lies."""
    left_px: int


def judge(
    work: PlateWork,
    geometry: Geometry,
    plate_recipe: PlateRecipe,
    is_late: bool = False,
) -> Judgement:
    """Judge a plate whose tiles all have their scores."""
    by = work.judge
    threshold, unsure_above = by.threshold, by.unsure_above
    scores = sorted(work.scores, key=lambda tile: (tile.row, tile.column))
    verdict, reason = decide(
        Evidence(
            problem=work.problem,
            tiles_expected=work.tiles_expected,
            scores=scores,
            threshold=threshold,
            unsure_above=unsure_above,
            unlit_share=work.unlit_share,
            max_unlit_share=plate_recipe.max_unlit_share,
            streak_share=streak_share(work.plate, geometry.pixel_pitch_mm),
            max_streak_share=plate_recipe.max_streak_share,
            is_self_tested=by.is_self_tested,
            is_late=is_late,
        )
    )
    left, score, detail, from_score = _left_px(work), _highest(scores), work.detail, threshold
    if reason is Reason.UNSURE and unsure_above is not None:
        detail = f"score {score:.4g}: above {unsure_above:.4g}, fails above {threshold:.4g}"
        from_score = unsure_above
    defects = find_defects(scores, from_score, left, geometry.pixel_pitch_mm)
    return Judgement(verdict, reason, detail, score, scores, defects, left)


def scored_body(context: Context, work: PlateWork) -> ResultBody:
    """The record of a plate whose tiles all have their scores."""
    judged = judge(
        work,
        context.geometry,
        work.judge.recipe.value.plate,
        is_late=context.is_late(work.plate.last_scan_line_ns),
    )
    plate, scores, defects = work.plate, judged.scores, judged.defects
    grid, tile_scores = packed(scores)
    shape = measure(plate) if plate.length_px > 2 and not context.geometry.is_whole else None
    return _body(
        context,
        work.judge,
        sequence=work.sequence,
        plate_ordinal=plate.ordinal,
        verdict=judged.verdict,
        reason=judged.reason,
        detail=judged.detail,
        score=judged.score,
        opened_ns=plate.opened_ns,
        last_scan_line_ns=plate.last_scan_line_ns,
        encoder_value=plate.encoder_value,
        frame_ids=(plate.first_frame_id, plate.last_frame_id),
        left_px=judged.left_px,
        width_px=round(shape.width_px) if shape else int(plate.right[: plate.length_px].max()),
        length_px=plate.length_px,
        skew_deg=round(shape.skew_deg, 3) if shape else None,
        tiles=len(scores),
        tile_grid=grid,
        tile_scores=tile_scores,
        defects=tuple(defects[:MAX_DEFECTS]),
        defects_omitted=max(0, len(defects) - MAX_DEFECTS),
        is_audit_sample=work.is_audit_sample,
        **(asdict(work.association) if work.association else {}),
        **asdict(work.given),
        truth_is_defective=plate.truth.is_defective if plate.truth else None,
        truth=tuple(asdict(defect) for defect in plate.truth.defects) if plate.truth else (),
    )


def gap_body(context: Context, judge: Judge, sequence: int, gap: Gap, given: Given) -> ResultBody:
    """The record of scan lines that nobody saw, under the judge of that moment."""
    now = time.monotonic_ns()
    return _body(
        context,
        judge,
        sequence=sequence,
        triggers=gap.triggers,
        plate_ordinal=gap.to_ordinal,
        verdict=Verdict.UNDECIDED,
        reason=gap.reason,
        detail=gap.detail,
        score=None,
        opened_ns=now,
        last_scan_line_ns=None,
        frame_ids=gap.frame_ids,
        lost_frames=gap.lost_frames,
        **asdict(given),
    )


def interrupted_body(
    context: Context, judge: Judge, opened: OpenedBody, given: Given
) -> ResultBody:
    """The record of a plate that was on the belt when the station died; its shift is that of its
    leading edge, not of the start that finds it."""
    return _body(
        context,
        judge,
        sequence=opened.sequence,
        plate_ordinal=opened.plate_ordinal,
        verdict=Verdict.UNDECIDED,
        reason=Reason.INTERRUPTED,
        detail="the station stopped while the plate was on the belt",
        score=None,
        opened_ns=opened.opened_ns,
        last_scan_line_ns=None,
        encoder_value=opened.encoder_value,
        shift=context.shift_at(opened.written_at),
        **asdict(given),
    )


def _body(context: Context, judge: Judge, *, sequence: int, **fields: object) -> ResultBody:
    recipe, classifier = judge.recipe, judge.classifier
    written_at = utc_now()
    values: dict[str, object] = {
        "station_id": context.station_id,
        "written_at": written_at,
        "shift": context.shift_at(written_at),
        "result_id": context.result_id(sequence),
        "sequence": sequence,
        "provenance": context.provenance,
        "is_simulated": context.provenance is not Provenance.PRODUCTION,
        "threshold": judge.threshold,
        "unsure_above": judge.unsure_above,
        "recipe_id": recipe.value.id,
        "recipe_version": recipe.value.version,
        "recipe_sha256": recipe.sha256,
        "configuration_sha256": context.configuration.sha256,
        "model_id": classifier.model_id,
        "model_sha256": classifier.model_sha256,
        "runtime": classifier.runtime,
        "camera_serial": context.camera.serial,
        "camera_features_sha256": context.camera.features_sha256,
        "flat_field_id": context.flat_field.id if context.flat_field else None,
        "flat_field_sha256": context.flat_field.sha256 if context.flat_field else None,
        "decided_ns": time.monotonic_ns(),
    }
    return ResultBody.model_validate({**values, **fields})


def _left_px(work: PlateWork) -> int:
    """Where the plate's left edge meets its leading edge."""
    left = work.plate.left[: work.plate.length_px]
    inside = left[left != OUTSIDE]
    return int(inside[: max(1, len(inside) // 4)].min()) if len(inside) else 0


def _highest(scores: list[TileScore]) -> float | None:
    if not scores:
        return None
    return max((tile.score for tile in scores), key=lambda s: math.inf if math.isnan(s) else s)


def packed(scores: list[TileScore]) -> tuple[str, str]:
    """Places and scores of tiles in grid order, as a record has them."""
    grid = _pack([(t.x_px, t.y_px) for t in scores], np.dtype("<u2"))
    return grid, _pack([t.score for t in scores], np.dtype("<f4"))


def _pack(values: list[float] | list[tuple[int, int]], dtype: np.dtype[np.generic]) -> str:
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()
