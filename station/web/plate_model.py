"""What a plate's page says, as its JSON twin says it, too: names as in `vqi log show --json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from station.record import Verdict
from station.web.judge_panel import Panel
from station.web.plate_place import PitchSource
from station.web.stored_pictures import Trouble

Score = float | str | None
"""One that is no number is text, as in the log (`NaN`)."""


class PlateDefect(BaseModel):
    """A defect of the record, numbered from 0 as there."""

    number: int
    x_px: int
    y_px: int
    w_px: int
    h_px: int
    x_mm: float
    y_mm: float
    w_mm: float | None = None
    h_mm: float | None = None
    score: Score
    kind: str | None = None
    """What a reviewer called it last."""
    crop_url: str = ""
    """Of its part of the picture; empty without one."""


class PlateGeometry(BaseModel):
    """Where the plate lies in its picture, and how large a pixel was on it."""

    pitch_mm: float
    pitch_from: PitchSource
    left_px: int
    width_px: int | None
    length_px: int | None
    skew_deg: float | None


class PlatePicture(BaseModel):
    """The picture that is shown, or why there is none."""

    role: str
    """`evidence`: the whole picture; `preview`: a small one."""
    trouble: Trouble | None = None
    text: str = ""
    """For people: figures behind the trouble."""
    removed: dict[str, Any] | None = None
    """The row of the rule that removed it."""
    sha256: str = ""
    found_sha256: str = ""
    """Of what lies there instead."""
    bytes: int = 0
    columns: int = 0
    rows: int = 0
    """Of the picture, in its own pixels."""
    pixels_per_pixel: int | None = None
    """Pixels of the plate along one of the picture's; None: unknown, and nothing is measured."""
    levels: int = 0
    tile_px: int = 0


class PlateView(BaseModel):
    """A way to look at the picture."""

    name: str
    """`recorded`, `contrast`."""
    is_available: bool
    why: str = ""
    """A text of the catalogue: why not; of the recorded one, whether the flat field is out of
    it."""


class PlateReview(BaseModel):
    """A person's judgement."""

    seq: int
    written_at: str
    verdict: str
    reviewer: str
    reason: str
    note: str = ""
    disposition: str = ""
    is_pending: bool = False
    takes_back: bool = False
    """The review before: no person's judgement holds then, and `verdict` says nothing."""


class OtherPlate(BaseModel):
    """Another plate of the log: what may be said of it here."""

    result_id: str
    written_at: str
    verdict: str | None
    """That holds now; None where it is not to be seen."""
    attempt: int | None = None
    part_id: str | None = None
    picture_url: str = ""
    """A small picture; empty without one."""


class PlaceCrop(BaseModel):
    """A part of one plate's picture."""

    result_id: str
    written_at: str
    verdict: str | None
    role: str
    """Of the picture that it is cut from; empty where there is none."""
    url: str
    is_this: bool = False


class SamePlace(BaseModel):
    """One place on the last plates, on the product and in the camera: what is dirt before the
    camera stays in its column, what is the product's moves with the plate."""

    result_id: str
    number: int | None
    """Of the defect; None of a place that was chosen otherwise."""
    x_mm: float
    y_mm: float
    """Across and along the plate's own edges from its left leading corner."""
    side_mm: float
    on_plate: list[PlaceCrop]
    in_camera: list[PlaceCrop]


class Sample(BaseModel):
    """A defect of the kind on a plate that somebody has judged."""

    result_id: str
    written_at: str
    kind: str
    verdict: str
    """What the reviewer said of the plate."""
    reviewer: str
    size_mm: float | None
    url: str


class LimitSample(BaseModel):
    """A plate that the station shows to itself before it judges others."""

    file: str
    expected: Verdict
    """The verdict that it must get."""
    picture_url: str


class Samples(BaseModel):
    """The active recipe's limit samples; and what was let pass and what was not, of one kind of
    defect."""

    result_id: str
    kind: str
    kinds: list[str]
    """Kinds that the recipe knows."""
    accepted: list[Sample]
    rejected: list[Sample]
    limits: list[LimitSample] = []
    has_limits: bool = False
    """The recipe names limit samples; its list cannot be had where none are shown."""


class PlateStage(BaseModel):
    """A step in the plate's life, in ms after its last scan line."""

    name: str
    ms: float


class WaitingPage(BaseModel):
    """A plate whose leading edge was seen and that has no result yet."""

    result_id: str
    opened_at: str
    is_waiting: bool = True


class PlatePage(BaseModel):
    """Everything about one plate. What `is_blind` hides is not in it at all."""

    result_id: str
    seq: int
    station_id: str
    sequence: int
    written_at: str
    is_blind: bool
    judge: Panel | None = None
    """What may be said of it now, and what was."""
    verdict: str | None = None
    """That holds now, reviews included."""
    own_verdict: str | None = None
    """The station's."""
    is_pending: bool = False
    """The last review waits for a second person."""
    reviewers: list[str] = []
    reason: str | None = None
    detail: str = ""
    score: Score = None
    threshold: float | None = None
    unsure_above: float | None = None
    provenance: str
    is_simulated: bool
    is_audit_sample: bool = False
    part_id: str | None = None
    identity: str | None = None
    serials: list[str] = []
    attempt: int | None = None
    lot: str | None = None
    job_id: str | None = None
    operator: str | None = None
    shift: str | None = None
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    model_id: str
    model_sha256: str
    runtime: str
    camera_serial: str
    light: str | None = None
    """What the lamp was told; `unknown` where the station died before it wrote that down."""
    is_light_confirmed: bool | None = None
    stages: list[PlateStage] = []
    defects: list[PlateDefect] = []
    defects_omitted: int = 0
    tiles: int = 0
    geometry: PlateGeometry | None = None
    picture: PlatePicture
    also_wrong: list[PlatePicture] = []
    """Other pictures of it that are not what was recorded, or that are not there."""
    views: list[PlateView] = []
    reviews: list[PlateReview] = []
    supersedes: int
    """The row that a review of now supersedes."""
    before: list[OtherPlate] = []
    """The plates before, the nearest last."""
    after: list[OtherPlate] = []
    chosen: int | None = None
    """Number of the defect that is looked at."""
    same_place: SamePlace | None = None
    samples: Samples | None = None
    rows: list[dict[str, Any]] = []
    """Every row of the log about it, without the arrays of tiles."""
