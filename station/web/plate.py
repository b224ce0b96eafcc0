"""The page of one plate: what was found, what was recorded of it, and what people said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any

from fastapi import Query

from station.config import ConfigError, load_recipe
from station.log_reader import Reader
from station.qms import Json
from station.record import ImageBody, Verdict
from station.reviews import effective_verdict, last_judged
from station.web.blind import is_blind_of
from station.web.context import Web
from station.web.errors import not_found
from station.web.judge_panel import panel_of
from station.web.pages import WebRouter
from station.web.picture_tiles import TILE_PX, Pyramid
from station.web.plate_log import (
    ARRAYS,
    PlateRows,
    around,
    attempts,
    found_plate,
    judged_defects,
    on_its_way,
    plate_rows,
    seen_plate,
)
from station.web.plate_model import (
    OtherPlate,
    PlaceCrop,
    PlateDefect,
    PlateGeometry,
    PlatePage,
    PlatePicture,
    PlateReview,
    PlateStage,
    PlateView,
    SamePlace,
    Sample,
    Samples,
    WaitingPage,
)
from station.web.plate_pictures import (
    ROLES,
    crop_url,
    front_end_of,
    plate_url,
    shown_picture,
    tiles_of,
)
from station.web.plate_place import Pose, pitch_of, pixels_per_pixel
from station.web.roles import Person
from station.web.stored_pictures import PictureError, Trouble

router = WebRouter()
PlaceMm = Annotated[float, Query(ge=-10_000, le=10_000, allow_inf_nan=False)]
_AROUND = 4
_LAST_PLATES = 6
_SAMPLES = 4
_LEAST_HALF_PX = 32
_LEAST_SIDE_MM, _MOST_SIDE_MM = 4.0, 100.0
_MARGIN = 2.0
"""A crop's side, as a multiple of the defect's."""


@router.page("/plates/{result_id}", template="plate/plate.html")
def plate(
    web: Web,
    person: Person,
    result_id: str,
    defect: int | None = None,
    kind: str = "",
    judged: int | None = None,
) -> PlatePage | WaitingPage:
    """Everything about one plate; of a defect of it, and of samples of a kind. `judged` is the row
    of a review that was just committed."""
    with web.reader() as reader:
        opened_at = on_its_way(reader, result_id)
        if opened_at is not None:
            return WaitingPage(result_id=result_id, opened_at=opened_at)
        found = found_plate(reader, result_id)
        if is_blind_of(found.all, person):
            shown = _blind_page(web, found)
        else:
            shown = _whole_page(web, reader, person, found, defect, kind)
        return shown.model_copy(update={"judge": panel_of(web, reader, found.all, person, judged)})


@router.page("/plates/{result_id}/same-place", template="plate/_same_place.html")
def same_place(
    web: Web,
    person: Person,
    result_id: str,
    defect: int | None = None,
    x_mm: PlaceMm = 0.0,
    y_mm: PlaceMm = 0.0,
) -> SamePlace:
    """One defect's place, or any, on the last plates."""
    with web.reader() as reader:
        found = seen_plate(reader, result_id, person)
        place = _place_of(web, found, defect, (x_mm, y_mm))
        if place is None:
            raise not_found("plate.no_place")
        return _same_place(web, reader, person, found, *place)


@router.page("/plates/{result_id}/samples", template="plate/_samples.html")
def samples(web: Web, person: Person, result_id: str, kind: str = "") -> Samples:
    """Judged plates with a defect of a kind."""
    with web.reader() as reader:
        seen_plate(reader, result_id, person)
        return _samples(web, reader, person, result_id, kind)


# --- the page -------------------------------------------------------------------------------------

_ALWAYS = (
    *("result_id", "seq", "station_id", "sequence", "written_at", "provenance", "is_simulated"),
    *("recipe_id", "recipe_version", "recipe_sha256", "model_id", "model_sha256", "runtime"),
    *("camera_serial", "part_id", "lot", "job_id", "shift"),
)
"""What says nothing of the verdict."""
_UNLESS_BLIND = (
    *("identity", "serials", "attempt", "operator", "reason", "detail", "score", "threshold"),
    *("is_audit_sample", "defects_omitted", "tiles"),
)


def _blind_page(web: Web, found: PlateRows) -> PlatePage:
    """Only what is named here: whatever a later version adds stays hidden until somebody says
    otherwise."""
    return PlatePage(
        **_said(found.result, _ALWAYS),
        is_blind=True,
        supersedes=last_judged(found.all) or found.result["seq"],
        geometry=_geometry(web, {**found.result, "defects": ()}),
        picture=_without_reasons(_picture(web, found, ("evidence",))),
        views=_views(web, found),
    )


def _without_reasons(picture: PlatePicture) -> PlatePicture:
    """How long a picture is kept depends on its verdict."""
    return picture.model_copy(update={"text": "", "removed": None})


def _whole_page(
    web: Web, reader: Reader, person: Person, found: PlateRows, defect: int | None, kind: str
) -> PlatePage:
    result, judged = found.result, effective_verdict(found.all)
    before, after = around(reader, result, _AROUND)
    picture = _picture(web, found)
    defects = _defects(found, "" if picture.trouble else picture.role)
    chosen = defect if defect is not None and 0 <= defect < len(defects) else None
    if chosen is None and defects:
        chosen = 0
    kind = kind or (defects[chosen].kind or "" if chosen is not None else "")
    return PlatePage(
        **_said(result, (*_ALWAYS, *_UNLESS_BLIND)),
        is_blind=False,
        verdict=judged.verdict,
        own_verdict=result["verdict"],
        is_pending=judged.pending is not None,
        reviewers=list(judged.reviewers),
        **_light(found),
        stages=_stages(found),
        defects=defects,
        geometry=_geometry(web, result),
        picture=picture,
        views=_views(web, found),
        reviews=[PlateReview.model_validate(row) for row in found.of_kind("review")],
        supersedes=last_judged(found.all) or result["seq"],
        attempts=_others(reader, person, attempts(reader, result.get("part_id")), result),
        before=_others(reader, person, before, result),
        after=_others(reader, person, after, result),
        chosen=chosen,
        same_place=_chosen_place(web, reader, person, found, chosen),
        samples=_samples(web, reader, person, result["result_id"], kind),
        rows=[_without_arrays(row) for row in found.all],
    )


def _said(result: Json, names: Sequence[str]) -> Json:
    return {name: result[name] for name in names if name in result}


def _without_arrays(row: Json) -> Json:
    return {key: value for key, value in row.items() if key not in ARRAYS}


def _light(found: PlateRows) -> Json:
    told = found.of_kind("actuation")
    if not told:
        return {}
    return {"light": told[0]["command"], "is_light_confirmed": told[0].get("is_confirmed")}


def _stages(found: PlateRows) -> list[PlateStage]:
    """The plate's life from its last scan line in memory to the light, as far as it is known."""
    result = found.result
    told: Json = next(iter(found.of_kind("actuation")), {})
    end, decided = result.get("last_scan_line_ns"), result["decided_ns"]
    if end is None or told.get("boot_id", result["boot_id"]) != result["boot_id"]:
        return []
    said = {"opened": result["opened_ns"], "last_scan_line": end}
    for name in ("scored", "received", "durable", "committed"):
        if told.get(f"{name}_us") is not None:
            said[name] = decided + 1000 * told[f"{name}_us"]
    said["decided"] = decided
    said |= {name: told.get(f"{name}_ns") for name in ("commanded", "shown")}
    known = sorted((at, name) for name, at in said.items() if at is not None)
    return [PlateStage(name=name, ms=(at - end) / 1e6) for at, name in known]


def _defects(found: PlateRows, role: str) -> list[PlateDefect]:
    """With parts of the picture of this role, where there is one."""
    kinds = found.defect_kinds
    return [
        PlateDefect(
            number=number,
            kind=kinds.get(number),
            crop_url=_defect_url(found.result["result_id"], role, one) if role else "",
            **one,
        )
        for number, one in enumerate(found.result.get("defects") or ())
    ]


def _defect_url(result_id: str, role: str, defect: Json) -> str:
    half_px = max(_LEAST_HALF_PX, _MARGIN * max(defect["w_px"], defect["h_px"]) / 2)
    centre_px = defect["x_px"] + defect["w_px"] / 2, defect["y_px"] + defect["h_px"] / 2
    return crop_url(result_id, role, centre_px, half_px)


def _geometry(web: Web, result: Mapping[str, Any]) -> PlateGeometry | None:
    if result.get("left_px") is None:
        return None
    pitch_mm, pitch_from = pitch_of(result, web.configuration)
    return PlateGeometry(
        pitch_mm=pitch_mm,
        pitch_from=pitch_from,
        left_px=result["left_px"],
        width_px=result.get("width_px"),
        length_px=result.get("length_px"),
        skew_deg=result.get("skew_deg"),
    )


def _others(reader: Reader, person: Person, lines: Sequence[Any], result: Json) -> list[OtherPlate]:
    return [_other(reader, person, line, result["result_id"]) for line in lines]


def _other(reader: Reader, person: Person, line: Any, this: str) -> OtherPlate:
    rows = plate_rows(reader, line.result_id)
    is_hidden = rows is None or is_blind_of(rows.all, person)
    return OtherPlate(
        result_id=line.result_id,
        written_at=line.written_at,
        verdict=None if is_hidden else str(line.reviewed_verdict or line.verdict),
        attempt=line.attempt,
        part_id=line.part_id,
        picture_url="" if rows is None else _small_url(rows, is_hidden),
        is_this=line.result_id == this,
    )


def _small_url(rows: PlateRows, is_hidden: bool) -> str:
    """Of a small picture; of the whole one where others are kept from this person."""
    address = plate_url(rows.result["result_id"])
    kept = _kept(rows)
    if "preview" in kept and not is_hidden:
        return f"{address}/pictures/preview"
    return f"{address}/overview/evidence/recorded" if "evidence" in kept else ""


# --- picture --------------------------------------------------------------------------------------


def _picture(web: Web, found: PlateRows, roles: Sequence[str] = ROLES) -> PlatePicture:
    """The best picture of these roles that is there; if none is, what became of the whole one."""
    states = [_state(web, found, role) for role in roles if role in found.images]
    if not states:
        return PlatePicture(role="evidence", trouble=Trouble.NOT_KEPT)
    worst = (Trouble.ALTERED, Trouble.MISSING, Trouble.UNREADABLE)
    wrong = next((state for state in states if state.trouble in worst), None)
    shown = next((state for state in states if state.trouble is None), None)
    return wrong or shown or states[0]


def _state(web: Web, found: PlateRows, role: str) -> PlatePicture:
    image = found.images[role]
    said: Json = {"role": role, "sha256": image.sha256, "bytes": image.bytes}
    try:
        with shown_picture(web, found, role):
            pass
        source = tiles_of(web).pictures.source(image)
    except PictureError as error:
        wrong: Json = {"text": str(error), "found_sha256": error.found_sha256}
        wrong["removed"] = found.tombstone(image)
        return PlatePicture(**said, trouble=error.trouble, **wrong)
    return PlatePicture(
        **said,
        columns=source.columns,
        rows=source.rows,
        pixels_per_pixel=pixels_per_pixel(found.result, image),
        levels=Pyramid(source.columns, source.rows).levels,
        tile_px=TILE_PX,
    )


def _views(web: Web, found: PlateRows) -> list[PlateView]:
    is_corrected = found.result.get("flat_field_sha256") is not None
    why_flat = "plate.flat_field_corrected" if is_corrected else "plate.flat_field_none"
    front_end = front_end_of(web, found.result)
    return [
        PlateView(name="recorded", is_available=True),
        PlateView(
            name="contrast",
            is_available=front_end is not None,
            why="" if front_end else "plate.contrast_unknown",
        ),
        PlateView(name="flat_field", is_available=False, why=why_flat),
    ]


# --- the same place -------------------------------------------------------------------------------


def _place_of(
    web: Web, found: PlateRows, defect: int | None, place_mm: tuple[float, float]
) -> tuple[int | None, float, float, float] | None:
    """Number of the defect, pixel of its centre and side in mm; None if there is no such place."""
    pose = Pose.of(found.result, pitch_of(found.result, web.configuration)[0])
    if pose is None:
        return None
    defects = found.result.get("defects") or ()
    if defect is None:
        x_px, y_px = place_mm[0] / pose.pitch_mm + pose.left_px, place_mm[1] / pose.pitch_mm
        return None, x_px, y_px, 2 * _LEAST_SIDE_MM
    if not 0 <= defect < len(defects):
        return None
    one = defects[defect]
    side_mm = _MARGIN * max(one["w_px"], one["h_px"]) * pose.pitch_mm
    side_mm = min(_MOST_SIDE_MM, max(_LEAST_SIDE_MM, side_mm))
    return defect, one["x_px"] + one["w_px"] / 2, one["y_px"] + one["h_px"] / 2, side_mm


def _chosen_place(
    web: Web, reader: Reader, person: Person, found: PlateRows, chosen: int | None
) -> SamePlace | None:
    place = None if chosen is None else _place_of(web, found, chosen, (0.0, 0.0))
    return None if place is None else _same_place(web, reader, person, found, *place)


def _same_place(
    web: Web,
    reader: Reader,
    person: Person,
    found: PlateRows,
    number: int | None,
    x_px: float,
    y_px: float,
    side_mm: float,
) -> SamePlace:
    pitch_mm = pitch_of(found.result, web.configuration)[0]
    pose = Pose.of(found.result, pitch_mm)
    assert pose is not None
    x_mm, y_mm = pose.on_plate(x_px, y_px)
    lines, _ = around(reader, found.result, _LAST_PLATES)
    last = [(line, plate_rows(reader, line.result_id)) for line in reversed(lines)]
    others = [(line, rows) for line, rows in last if rows is not None]
    holds = str(effective_verdict(found.all).verdict)
    own = _crop(web, found, holds, (x_px, y_px), side_mm, is_this=True)
    on_plate, in_camera = [own], [own]
    for line, rows in others:
        is_hidden = is_blind_of(rows.all, person)
        seen = None if is_hidden else str(line.reviewed_verdict or line.verdict)
        other = Pose.of(rows.result, pitch_of(rows.result, web.configuration)[0])
        if other is not None:
            at = other.in_picture(x_mm, y_mm)
            on_plate.append(_crop(web, rows, seen, at, side_mm))
        in_camera.append(_crop(web, rows, seen, (x_px, y_px), side_mm))
    return SamePlace(
        result_id=found.result["result_id"],
        number=number,
        x_mm=round(x_mm, 2),
        y_mm=round(y_mm, 2),
        side_mm=round(side_mm, 2),
        on_plate=on_plate,
        in_camera=in_camera,
    )


def _crop(
    web: Web,
    found: PlateRows,
    verdict: str | None,
    centre_px: tuple[float, float],
    side_mm: float,
    is_this: bool = False,
) -> PlaceCrop:
    role = next((role for role in ROLES if role in _kept(found)), "")
    half_px = side_mm / pitch_of(found.result, web.configuration)[0] / 2
    return PlaceCrop(
        result_id=found.result["result_id"],
        written_at=found.result["written_at"],
        verdict=verdict,
        role=role,
        url=crop_url(found.result["result_id"], role, centre_px, half_px) if role else "",
        is_this=is_this,
    )


def _kept(found: PlateRows) -> dict[str, ImageBody]:
    """Pictures that no rule has removed."""
    return {role: one for role, one in found.images.items() if found.tombstone(one) is None}


# --- samples --------------------------------------------------------------------------------------


def _samples(web: Web, reader: Reader, person: Person, result_id: str, kind: str) -> Samples:
    kinds = list(_kinds(web.configuration.value.station.recipe))
    asked = kind if kind in kinds else ""
    groups = {
        name: _judged(web, reader, person, asked, verdict, result_id) if asked else []
        for name, verdict in (("accepted", Verdict.PASS), ("rejected", Verdict.FAIL))
    }
    return Samples(result_id=result_id, kind=asked, kinds=kinds, **groups)


@lru_cache(maxsize=8)
def _kinds(recipe: str) -> tuple[str, ...]:
    with suppress(ConfigError):
        return load_recipe(recipe).value.review.kinds
    return ()


def _judged(
    web: Web, reader: Reader, person: Person, kind: str, verdict: Verdict, but: str
) -> list[Sample]:
    found = []
    for line in judged_defects(reader, kind, verdict, _SAMPLES + 1):
        rows = plate_rows(reader, line.result_id)
        if rows is None or line.result_id == but or is_blind_of(rows.all, person):
            continue
        found.append(_sample(web, rows, line, kind))
    return found[:_SAMPLES]


def _sample(web: Web, rows: PlateRows, line: Any, kind: str) -> Sample:
    place = _place_of(web, rows, line.number, (0.0, 0.0))
    role = next((role for role in ROLES if role in _kept(rows)), "")
    url = ""
    if place is not None and role:
        half_px = place[3] / pitch_of(rows.result, web.configuration)[0] / 2
        url = crop_url(line.result_id, role, (place[1], place[2]), half_px)
    sides = [side for side in (line.w_mm, line.h_mm) if side is not None]
    return Sample(
        result_id=line.result_id,
        written_at=line.written_at,
        kind=kind,
        verdict=line.reviewed_verdict,
        reviewer=line.reviewer,
        size_mm=max(sides, default=None),
        url=url,
    )
