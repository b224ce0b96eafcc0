"""What is written down: the bodies of the journal's rows, as they travel and as they are hashed.

Times: `*_at` is UTC as RFC 3339 text (a label); `*_ns` is CLOCK_MONOTONIC of the boot named by
`boot_id` (orders events). Lengths end in `_mm` or `_px`; x is crossweb, y is downweb.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Verdict(StrEnum):
    """The judgement of one plate; exports say OK, NotOK, NotDecidable (OPC 40001-101)."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


class Provenance(StrEnum):
    """Where the pixels came from. Only `production` may drive the production PASS pattern."""

    PRODUCTION = "production"
    SIMULATED = "simulated"
    REPLAYED = "replayed"


class PictureClass(StrEnum):
    """What a picture is kept for; retention rules are given for each."""

    PASS_PREVIEW = "pass_preview"
    PASS_WHOLE = "pass_whole"
    AUDIT = "audit"
    """A passed plate kept whole because it was drawn before its verdict."""
    FAIL = "fail"
    """Of a plate that failed, or that a person judged to have failed."""
    UNDECIDED = "undecided"


class Reason(StrEnum):
    """Why a plate is UNDECIDED."""

    INCOMPLETE = "incomplete"
    """Pixels inside the plate are missing."""
    GAP = "gap"
    """Frames were lost where no plate was seen; plates may have passed unseen."""
    OVERRUN = "overrun"
    """The station was too slow and gave up the plate's pixels."""
    NON_FINITE = "non-finite"
    """A score is NaN or infinite."""
    MODEL = "model"
    """The classifier failed."""
    DEADLINE = "deadline"
    """The verdict or its commit came too late."""
    SKEWED = "skewed"
    OUT_OF_LANE = "out of lane"
    OVERLONG = "overlong"
    SHORT = "short"
    """Shorter than the recipe's plate less its tolerance."""
    NOT_SEPARATED = "not separated"
    NARROW = "narrow"
    """Narrower than a tile, or than the recipe's plate less its tolerance."""
    OUTLINE = "outline"
    """The plate's edge is not straight: part of it may be missing or unlit."""
    BELT_STOPPED = "belt stopped"
    INTERRUPTED = "interrupted"
    """The station died with the plate on the belt."""
    UNLIT = "unlit"
    """Too dark or saturated to be judged."""
    OBSCURED = "obscured"
    """A streak along the whole plate hides what lies below it."""
    STUCK = "stuck"
    """The camera repeated the same pixels."""
    UNCOVERED = "uncovered"
    """Not every tile of the region has a score."""
    UNSURE = "unsure"
    """No tile fails, but one scores too high to pass: only a person can tell."""
    HALTED = "halted"
    """The station was not OPERATIONAL while the plate passed."""


def utc_now() -> str:
    """UTC with microseconds as RFC 3339 text."""
    return rfc3339(datetime.now(UTC))


def rfc3339(at: datetime) -> str:
    """A time with its zone as RFC 3339 text in UTC, always of the same length."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def score_text(score: float | str) -> str:
    """A score for people; in JSON a score that is no number is text (`NaN`)."""
    return f"{float(score):.3f}"


@cache
def current_boot_id() -> str:
    """Which CLOCK_MONOTONIC times of this machine may be compared with one another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Identity(StrEnum):
    """How a plate came to its part serial, or why it has none."""

    SCANNER = "scanner"
    """Read on the belt, alone in the plate's window."""
    PLC = "plc"
    COMMAND = "command"
    """Typed by a person for the plate that came next."""
    NONE = "none"
    """Nothing was read in its window."""
    AMBIGUOUS = "ambiguous"
    """What was read may be of another plate, or two serials were; `serials` has them."""


class Body(BaseModel):
    """A row's body. Canonical text: JSON, sorted keys, no spaces, UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    station_id: str
    written_at: str = Field(default_factory=utc_now)
    boot_id: str = Field(default_factory=current_boot_id)

    @classmethod
    def of_log(cls, fields: dict[str, Any]) -> Self:
        """A row that stands in the log, maybe of a later program: what it says that is not known
        here is left out."""
        return cls.model_validate({k: v for k, v in fields.items() if k in cls.model_fields})

    def as_json(self) -> dict[str, Any]:
        """The row as JSON knows it: a number that is none (NaN, infinity) becomes its name."""
        fields: dict[str, Any] = json.loads(self.model_dump_json())
        return fields


class DefectBody(BaseModel):
    """One place on the plate that the network calls defective; box from the plate's leading edge
    and the left end of the scan line."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    x_px: int
    y_px: int
    w_px: int
    h_px: int
    x_mm: float
    """Centre, from the plate's left edge."""
    y_mm: float
    w_mm: float | None = None
    """None in records of versions that did not say."""
    h_mm: float | None = None
    score: float


PICTURE_NAME = r"^[0-9a-f]{2}/[0-9a-f]{64}\.(?:png|jpg)$"


class ImageBody(BaseModel):
    """A stored picture, named by its content; filled in by the journal process."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["evidence", "preview"]
    path: str = Field(pattern=PICTURE_NAME)
    """Relative to the journal's image folder."""
    sha256: str
    bytes: int
    width_px: int
    height_px: int


class OpenedBody(Body):
    """A plate's leading edge was seen: from this row's commit the plate counts."""

    kind: Literal["opened"] = "opened"
    result_id: str
    sequence: int
    frame_id: int
    encoder_value: int | None
    plate_ordinal: int | None
    """The trigger counter with this plate; None without a counter."""
    opened_ns: int


_LATER_IN_RESULT = (
    "identity",
    "serials",
    "attempt",
    "previous_result_id",
    "lot",
    "job_id",
    "operator",
    "shift",
    "unsure_above",
)
_LATER_IN_ACTUATION = ("scored_us", "received_us", "durable_us", "committed_us")
"""Fields that came after the first release."""


def _without_defaults(
    fields: dict[str, Any], body: type[BaseModel], names: tuple[str, ...]
) -> dict[str, Any]:
    """Without those of `names` that say nothing."""
    silent = {name for name in names if fields[name] in (body.model_fields[name].default, [])}
    return {name: value for name, value in fields.items() if name not in silent}


class ResultBody(Body):
    """One plate's verdict (OPC 40100-1 ResultType)."""

    kind: Literal["result"] = "result"
    result_id: str
    sequence: int
    triggers: int | None = 1
    """Plates this row answers for: 1; for a gap those that passed unseen, None if unknown."""
    plate_ordinal: int | None = None
    part_id: str | None = None
    """Serial of the part; None where there is none that is certain."""
    identity: Identity | None = None
    """None where no serials are looked for."""
    serials: tuple[str, ...] = ()
    """All that may be this plate's, where that is ambiguous."""
    attempt: int | None = None
    """The so-manieth result of this part in this log; filled in by the journal process."""
    previous_result_id: str | None = None
    """The attempt before; filled in by the journal process."""
    lot: str | None = None
    job_id: str | None = None
    operator: str | None = None
    """Who was signed on when the plate's leading edge was seen."""
    shift: str | None = None
    """`2026-11-26 early`: the local day on which it began, and its name in `[journal.shifts]`."""
    provenance: Provenance
    is_simulated: bool
    verdict: Verdict
    reason: Reason | None
    detail: str = ""
    """For people: figures behind the reason."""
    score: float | None
    """Highest tile score; None if no tile was scored."""
    threshold: float
    unsure_above: float | None = None
    """A plate with a tile score above it does not pass; None: `threshold` alone divides."""
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    configuration_sha256: str
    model_id: str
    model_sha256: str
    runtime: str
    """Classifier runtime, version, precision and processor."""
    camera_serial: str
    camera_features_sha256: str = ""
    """Of the features as the camera read them back."""
    flat_field_id: str | None = None
    flat_field_sha256: str | None = None
    """None where scan lines are judged as the camera delivers them."""
    opened_ns: int
    last_scan_line_ns: int | None
    """When the plate's last scan line was in memory."""
    decided_ns: int
    encoder_value: int | None = None
    frame_ids: tuple[int, int] | None = None
    """First and last frame of the plate."""
    lost_frames: int = 0
    incomplete_frames: int = 0
    left_px: int | None = None
    """The picture's left edge of the plate, at the leading edge."""
    width_px: int | None = None
    length_px: int | None = None
    skew_deg: float | None = None
    tiles: int = 0
    tile_grid: str = ""
    """base64 of little-endian uint16 pairs (x_px, y_px), in grid order."""
    tile_scores: str = ""
    """base64 of little-endian float32, in grid order."""
    defects: tuple[DefectBody, ...] = ()
    defects_omitted: int = 0
    is_audit_sample: bool = False
    pixels_sha256: str | None = None
    """Of the plate's pixels, scan line by scan line; filled in by the journal process."""
    images: tuple[ImageBody, ...] = ()
    truth_is_defective: bool | None = None
    """Simulation only: what the source knows."""
    truth: tuple[dict[str, float | str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without what says nothing and what older programs do not know: they must start here."""
        return _without_defaults(super().as_json(), type(self), _LATER_IN_RESULT)


class ActuationBody(Body):
    """What the lamp was told for a result, after the result's commit."""

    kind: Literal["actuation"] = "actuation"
    result_id: str
    command: str
    """The light state commanded, or `withheld_late`, `withheld`; `unknown` where the station died
    before it wrote that down."""
    is_confirmed: bool | None
    """True read back, False sent without read-back, None not sent or not answered."""
    commanded_ns: int
    shown_ns: int | None
    detail: str = ""
    scored_us: int | None = None
    """These four in microseconds after the result's `decided_ns`: the last tile had its score
    (before it, so negative),"""
    received_us: int | None = None
    """the journal process had the row,"""
    durable_us: int | None = None
    """its pictures were durable,"""
    committed_us: int | None = None
    """the row was. None where the station died between."""

    def as_json(self) -> dict[str, Any]:
        """As of a result."""
        return _without_defaults(super().as_json(), type(self), _LATER_IN_ACTUATION)


class AcceptBody(Body):
    """What the accept output was told for a result that passed. A kind of its own: actuation rows
    are one for each result, these are at most one."""

    kind: Literal["accept"] = "accept"
    result_id: str
    command: Literal["accept", "withheld_late", "withheld", "unknown"]
    """`withheld_late`: the plate was past its accept point before its verdict. `unknown`: the lamp
    process or the station ended before it said what became of the plate."""
    is_confirmed: bool | None
    """True read back, False sent without read-back, None not sent or not taken."""
    commanded_ns: int | None
    shown_ns: int | None
    detail: str = ""


class DowntimeBody(Body):
    """The time in which the station could not count plates, and what the trigger counted in it."""

    kind: Literal["downtime"] = "downtime"
    since_at: str | None
    """Last durable tick before; None at the first start."""
    until_at: str
    reason: str
    triggers: int | None
    """Plates that passed in this time by the trigger counter; None if unknown."""
    from_ordinal: int | None = None
    to_ordinal: int | None = None
    """Plates with from_ordinal < ordinal <= to_ordinal passed unseen."""
    is_counter_new: bool = False
    """The trigger counter began anew meanwhile: how many plates passed is unknown."""


class NamedDefectBody(BaseModel):
    """What a reviewer called one of a result's defects."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int = Field(ge=0)
    """From 0, as in the result's row."""
    kind: str


class MarkedPlaceBody(BaseModel):
    """Where a reviewer saw a defect that the station did not list; box from the plate's leading
    edge and the left end of the scan line, as in `DefectBody`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    x_px: int = Field(ge=0)
    y_px: int = Field(ge=0)
    w_px: int = Field(gt=0)
    h_px: int = Field(gt=0)
    kind: str

    @classmethod
    def of_text(cls, given: str) -> Self:
        """Of `X,Y,W,H=KIND`. Raises ValueError."""
        box, _, kind = given.partition("=")
        x, y, w, h = (int(part) for part in box.split(","))
        return cls(x_px=x, y_px=y, w_px=w, h_px=h, kind=kind)


Disposition = Literal["", "removed", "rework", "scrap", "use"]
"""What becomes of a plate; `removed`: taken off the line, not decided yet."""


class ReviewBody(Body):
    """A person's later judgement of a result; a new row, never an edit."""

    kind: Literal["review"] = "review"
    result_id: str
    verdict: Verdict
    reviewer: str
    reason: str
    """A code of the recipe's list."""
    note: str = ""
    defects: tuple[NamedDefectBody, ...] = ()
    places: tuple[MarkedPlaceBody, ...] = Field((), max_length=100)
    """Defects that the station did not list."""
    disposition: Disposition = ""
    supersedes: int | None = None
    """Number of the row that the reviewer saw last: the result's, or its last review's. None in
    rows of versions that did not ask."""
    nonce: str = ""
    """Chosen by who sends it: sent again, it is one row."""
    takes_back: bool = False
    """The review that it supersedes counts no more, and no person's judgement holds: the station's
    own verdict does. `verdict` is what programs that do not know this field make of it."""
    four_eyes: tuple[Verdict, ...] = ()
    """A plate that ever was one of these passes only by two people. This and what follows is filled
    in by the journal process."""
    is_pending: bool = False
    """It waits for a second person; what stood before still stands."""
    account: str = ""
    """Login name of the process that sent it."""

    def as_json(self) -> dict[str, Any]:
        """Without what says nothing."""
        fields = super().as_json()
        silent = {name for name in _SILENT_OF_REVIEW if not fields[name]}
        return {name: value for name, value in fields.items() if name not in silent}


_SILENT_OF_REVIEW = (
    "note",
    "defects",
    "places",
    "disposition",
    "supersedes",
    "nonce",
    "takes_back",
    "four_eyes",
    "is_pending",
    "account",
)


HAS_ACCEPT = "has_accept"
"""In the detail of a `start`: each plate of this life that passed gets an accept row."""


class ChangeBody(Body):
    """A command or a change of recipe, model or configuration, with who asked for it."""

    kind: Literal["change"] = "change"
    what: str
    who: str
    detail: dict[str, str] = Field(default_factory=dict)
    account: str = ""
    """Login name of the process that sent it for `who`, as the journal process saw it; empty where
    that is `who` itself, or nobody is."""

    def as_json(self) -> dict[str, Any]:
        """As of a result."""
        return _without_defaults(super().as_json(), type(self), ("account",))


class SerialBody(Body):
    """A reading that became no plate's serial."""

    kind: Literal["serial"] = "serial"
    result_id: str | None = None
    """The plate that it was read beside, where that is known."""
    serial: str = Field(max_length=1000)
    """As read; where it was refused, escaped and cut."""
    source: Identity
    why: Literal["refused", "unclaimed"]
    """`refused`: no serial at all. `unclaimed`: no plate came that it can be of."""
    detail: str = ""
    read_ns: int
    count: int = 1
    """So many of the kind since the last such row: refusals are written at a bounded rate."""


class AttentionBody(Body):
    """The station needs a person before plates are lost, or does no longer; no verdict changes."""

    kind: Literal["attention"] = "attention"
    result_id: str | None
    """The plate with which it began or ended; None before the first plate."""
    since_result_id: str | None
    """The first plate that showed it."""
    name: str
    """What was watched: `dirt`, `light`, `exposure`, `length`, `temperature`."""
    is_begin: bool
    text: str
    """For people: what to do, or what is off, and where."""
    measured: float
    limit: float
    """Both in `unit`; signed where both directions count, the limit then holds for the size."""
    unit: str
    start_mm: float | None = None
    end_mm: float | None = None
    """Where on the scan line, from its left end; None where it is not a matter of place."""


class ReferenceBody(Body):
    """The light as it was after commissioning: what later plates are held against."""

    kind: Literal["reference"] = "reference"
    result_id: str
    """The last plate that it was learned from."""
    key: str
    """Recipe, camera and camera features that it holds for."""
    plates: int
    levels: tuple[float | None, ...]
    """Mean 8-bit level of plates in equal parts of the scan line; None where no plate lay."""


class TombstoneBody(Body):
    """A picture of a result is removed by a rule: written, and durable, before its file goes."""

    kind: Literal["tombstone"] = "tombstone"
    result_id: str
    role: Literal["evidence", "preview"]
    path: str
    """As the result names it."""
    sha256: str
    bytes: int
    picture_class: PictureClass
    rule: Literal["days", "size", "watermark"]
    measured: float
    limit: float
    """days: age of the result; size: MB of the class; watermark: free MB of the disk."""
    why: str
    """For people."""


class HoldBody(Body):
    """Legal hold: no picture of the results that it covers is removed until it is released."""

    kind: Literal["hold"] = "hold"
    hold_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    result_id: str | None = None
    part_id: str | None = None
    lot: str | None = None
    since_at: str | None = None
    until_at: str | None = None
    """Results written in this time, exclusive of its end. What is given must all be met."""
    who: str = Field(min_length=1)
    why: str = Field(min_length=1)

    @model_validator(mode="after")
    def _says_what_is_held(self) -> HoldBody:
        if not any((self.result_id, self.part_id, self.lot, self.since_at, self.until_at)):
            raise ValueError("a hold names a result, a serial, a lot or a time")
        return self


class ReleaseBody(Body):
    """A hold ends."""

    kind: Literal["release"] = "release"
    hold_id: str
    who: str = Field(min_length=1)
    why: str = Field(min_length=1)


class ContextBody(Body):
    """What results that follow have in common; they name this row. Written by the log itself."""

    kind: Literal["context"] = "context"
    constants: dict[str, Any]
    """Fields of a result row, as it would have them."""


CLOCK_JUMP_LIMIT_H = 72.0


class RetentionBody(Body):
    """The rules by which pictures are removed from here on; {} where they are kept for ever."""

    kind: Literal["retention"] = "retention"
    rules: dict[PictureClass, dict[Literal["days", "mb"], float]]
    min_pass_days: float
    """Pictures of passed plates that are younger stay, also when the disk is nearly full, and those
    of other plates whatever room they take."""
    clock_jump_limit_h: float = CLOCK_JUMP_LIMIT_H
    """Nothing is removed while the clock is set ahead by more."""

    def as_json(self) -> dict[str, Any]:
        """Without what is as ever, which older programs do not know: they must start here."""
        fields = super().as_json()
        if fields["clock_jump_limit_h"] == CLOCK_JUMP_LIMIT_H:
            del fields["clock_jump_limit_h"]
        return fields


class DiskBody(Body):
    """The free disk crossed a watermark."""

    kind: Literal["disk"] = "disk"
    level: int
    """0 room enough; 1 previews of passed plates are not kept; 2 no picture of a passed plate is
    kept and the oldest are removed; 3 READY drops; 4 nothing is written."""
    before: int
    free_mb: float
    limits_mb: tuple[float, ...]
    """Below these the levels 1 to 4 begin."""


class ClockBody(Body):
    """The wall clock, against the time since boot: at a start, a step, another state of its
    synchronisation, and when a person says that it is right."""

    kind: Literal["clock"] = "clock"
    cause: Literal["start", "step", "sync", "accepted"]
    step_s: float
    """By how much it was set ahead since the row before; negative where it was set back."""
    ahead_s: float
    """All steps since a person last said that the clock is right."""
    boot_s: float
    """CLOCK_BOOTTIME at `written_at`."""
    is_synchronized: bool | None
    """By the kernel; None where it does not say."""
    who: str = ""
    why: str = ""


class BackupBody(Body):
    """The log was copied and the copy verified, or it could not be."""

    kind: Literal["backup"] = "backup"
    directory: str
    generation: str
    """Folder of this copy; empty where there is none."""
    is_ok: bool
    """False also for a copy that lacks pictures which the log has lost; `problem` says which."""
    problem: str = ""
    head_seq: int = 0
    head_chain_sha256: str = ""
    pictures: int = 0
    """That the copy's rows name and that are not removed by a rule."""
    copied: int = 0
    """Of them, those that the copy before did not have."""
    took_s: float = 0.0


class RestoredBody(Body):
    """The log was lost, and goes on from a copy. Written by `vqi log restore` alone: no process
    takes it from another."""

    kind: Literal["restored"] = "restored"
    generation: str
    """Folder of the copy."""
    copy_rows: int
    copy_chain_sha256: str
    """Of its last row."""
    plant_rows: int
    """Rows after those, as the plant's database had them. What was written later is lost."""
    sequence: int
    """Plates up to this number may have had an id in rows that are lost; the next is above it."""
    who: str
    why: str


class AuditSeedBody(Body):
    """The hash of the seed that draws the audit sample from here on, until a row reveals it."""

    kind: Literal["audit_seed"] = "audit_seed"
    seed_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    number: int = Field(ge=1)
    """Of the seed in its life of the station."""
    shift: str
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    share: float = Field(ge=0, le=1)
    """Of plates that are drawn, whatever their verdict."""


class AuditRevealBody(Body):
    """The seed that drew the audit sample; it draws no more."""

    kind: Literal["audit_reveal"] = "audit_reveal"
    seed_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """As the row said that announced it."""
    seed: str = Field(pattern="^[0-9a-f]{64}$")


class CheckpointBody(Body):
    """The heads of the log's two trees as of a row before this one, signed where there is a key."""

    kind: Literal["checkpoint"] = "checkpoint"
    size: int
    """Rows 1 to `size` are covered."""
    note: str
    """The signed note as docs/proof.md describes it; without its last line where nobody signed."""
    public_key: str | None = None
    """base64 of the 32 bytes of the Ed25519 key; None where nobody signed."""


class ShadowedPlate(BaseModel):
    """What a model in the shadow makes of a plate that another model has judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    result_id: str
    verdict: Verdict
    reason: Reason | None = None
    score: float | None
    """Highest tile score."""
    failing_tiles: int
    is_same_bits: bool
    """Each tile has the very score that the judging model gave it."""
    took_ms: float
    """From the plate's pixels in hand to its verdict, with the pauses that the share imposes."""
    cpu_ms: float


MOST_SHADOWED = 64
"""Plates of one row."""


class ShadowBody(Body):
    """Plates that a model in the shadow has scored; no light, no output and no verdict knows of it.
    All of one judging model and one recipe version."""

    kind: Literal["shadow"] = "shadow"
    started_at: str
    """`written_at` of the `model_shadow_started` row."""
    model_id: str
    model_sha256: str
    threshold: float
    unsure_above: float | None = None
    """A plate with a tile above it does not pass; None where `threshold` alone divides."""
    runtime: str
    judging_model_id: str
    judging_model_sha256: str
    judging_threshold: float
    """The recipe's, or its model's card's: of fp32, whatever precision judged."""
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    plates: tuple[ShadowedPlate, ...] = Field(min_length=1, max_length=MOST_SHADOWED)
    cpu_s: float
    """Processor time of the shadow's process since its row before, or since it began."""
    wall_s: float
    """Time since then."""


AnyBody = Annotated[
    OpenedBody
    | ResultBody
    | ActuationBody
    | AcceptBody
    | DowntimeBody
    | ReviewBody
    | ChangeBody
    | SerialBody
    | AttentionBody
    | ReferenceBody
    | TombstoneBody
    | HoldBody
    | ReleaseBody
    | RetentionBody
    | DiskBody
    | ClockBody
    | BackupBody
    | AuditSeedBody
    | AuditRevealBody
    | CheckpointBody
    | ShadowBody,
    Field(discriminator="kind"),
]


def result_id(station_id: str, sequence: int) -> str:
    return f"{station_id}-{sequence:08d}"
