"""The page of one plate: what was found, what was recorded of it, and what people said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query

from station.qms import Json
from station.reviews import effective_verdict, last_judged
from station.roles import Person
from station.web.blind import is_blind_of
from station.web.context import Web
from station.web.errors import not_found
from station.web.judge_panel import panel_of
from station.web.pages import WebRouter
from station.web.picture_tiles import TILE_PX, Pyramid
from station.web.plate_beside import MARGIN, Look
from station.web.plate_log import (
    ARRAYS,
    PlateRows,
    around,
    found_plate,
    on_its_way,
    seen_plate,
)
from station.web.plate_model import (
    PlateDefect,
    PlateGeometry,
    PlatePage,
    PlatePicture,
    PlateReview,
    PlateStage,
    PlateView,
    SamePlace,
    Samples,
    WaitingPage,
)
from station.web.plate_pictures import (
    ROLES,
    crop_url,
    front_end_of,
    shown_picture,
    tiles_of,
)
from station.web.plate_place import pitch_of, pixels_per_pixel
from station.web.stored_pictures import PictureError, Trouble

router = WebRouter()
PlaceMm = Annotated[float, Query(ge=-10_000, le=10_000, allow_inf_nan=False)]
_AROUND = 4
_LEAST_HALF_PX = 32


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
            shown = _whole_page(Look(web, reader, person), found, defect, kind)
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
        look = Look(web, reader, person)
        place = (
            look.place(found, x_mm, y_mm) if defect is None else look.defect_place(found, defect)
        )
        if place is None:
            raise not_found("plate.no_place")
        return look.same_place(found, place)


@router.page("/plates/{result_id}/samples", template="plate/_samples.html")
def samples(web: Web, person: Person, result_id: str, kind: str = "") -> Samples:
    """Judged plates with a defect of a kind."""
    with web.reader() as reader:
        seen_plate(reader, result_id, person)
        return Look(web, reader, person).samples(result_id, kind)


# --- the page -------------------------------------------------------------------------------------

_ALWAYS = (
    *("result_id", "seq", "station_id", "sequence", "written_at", "provenance", "is_simulated"),
    *("recipe_id", "recipe_version", "recipe_sha256", "model_id", "model_sha256", "runtime"),
    *("camera_serial", "part_id", "lot", "job_id", "shift"),
)
"""What says nothing of the verdict."""
_UNLESS_BLIND = (
    *("identity", "serials", "attempt", "operator", "reason", "detail", "score", "threshold"),
    "unsure_above",
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
        picture=_without_reasons(_picture_of_evidence(web, found)),
        views=_views(web, found),
    )


def _without_reasons(picture: PlatePicture) -> PlatePicture:
    """How long a picture is kept depends on its verdict."""
    return picture.model_copy(update={"text": "", "removed": None})


def _whole_page(look: Look, found: PlateRows, defect: int | None, kind: str) -> PlatePage:
    web, result = look.web, found.result
    pictures = _pictures(web, found)
    defects = _defects(found, "" if pictures["picture"].trouble else pictures["picture"].role)
    chosen = _chosen(defects, defect)
    return PlatePage(
        **_said(result, (*_ALWAYS, *_UNLESS_BLIND)),
        is_blind=False,
        **_judged(found),
        **_light(found),
        stages=_stages(found),
        defects=defects,
        geometry=_geometry(web, result),
        **pictures,
        views=_views(web, found),
        **_beside(look, found),
        chosen=chosen,
        same_place=_chosen_place(look, found, chosen),
        samples=look.samples(result["result_id"], kind or _kind_of(defects, chosen)),
        rows=[_without_arrays(row) for row in found.all],
    )


def _judged(found: PlateRows) -> Json:
    judged = effective_verdict(found.all)
    return {
        "verdict": judged.verdict,
        "own_verdict": found.result["verdict"],
        "is_pending": judged.pending is not None,
        "reviewers": list(judged.reviewers),
        "reviews": [PlateReview.model_validate(row) for row in found.of_kind("review")],
        "supersedes": last_judged(found.all) or found.result["seq"],
    }


def _beside(look: Look, found: PlateRows) -> Json:
    """The plates before and after."""
    before, after = around(look.reader, found.result, _AROUND)
    return {
        name: [look.other(line) for line in lines]
        for name, lines in (("before", before), ("after", after))
    }


def _chosen(defects: Sequence[PlateDefect], wanted: int | None) -> int | None:
    """The first one where another was not asked for."""
    if wanted is not None and 0 <= wanted < len(defects):
        return wanted
    return 0 if defects else None


def _chosen_place(look: Look, found: PlateRows, chosen: int | None) -> SamePlace | None:
    place = None if chosen is None else look.defect_place(found, chosen)
    return None if place is None else look.same_place(found, place)


def _kind_of(defects: Sequence[PlateDefect], chosen: int | None) -> str:
    return "" if chosen is None else defects[chosen].kind or ""


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
    # 0: of a light that was not told, or of which that is not known
    said |= {name: told.get(f"{name}_ns") or None for name in ("commanded", "shown")}
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
    half_px = max(_LEAST_HALF_PX, MARGIN * max(defect["w_px"], defect["h_px"]) / 2)
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


_WRONG = (Trouble.ALTERED, Trouble.MISSING, Trouble.UNREADABLE)


# --- picture --------------------------------------------------------------------------------------


def _pictures(web: Web, found: PlateRows) -> Json:
    """The whole picture, or what became of it; where that is as it should be, a smaller one. What
    else is wrong is said beside it."""
    states = {role: _state(web, found, role) for role in ROLES if role in found.images}
    evidence = states.get("evidence")
    is_wrong = evidence is not None and evidence.trouble in _WRONG
    shown = next((state for state in states.values() if state.trouble is None), None)
    nothing = PlatePicture(role="evidence", trouble=Trouble.NOT_KEPT)
    picture = evidence if is_wrong else shown or next(iter(states.values()), nothing)
    others = (state for state in states.values() if state is not picture)
    return {"picture": picture, "also_wrong": [one for one in others if one.trouble in _WRONG]}


def _picture_of_evidence(web: Web, found: PlateRows) -> PlatePicture:
    if "evidence" not in found.images:
        return PlatePicture(role="evidence", trouble=Trouble.NOT_KEPT)
    return _state(web, found, "evidence")


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
        PlateView(name="recorded", is_available=True, why=why_flat),
        PlateView(
            name="contrast",
            is_available=front_end is not None,
            why="" if front_end else "plate.contrast_unknown",
        ),
    ]
