"""Configuration (what makes this machine equal to its siblings) and recipe (what defines a
product's inspection), as in OPC 40100-1. Both are TOML; unknown keys are errors."""

from __future__ import annotations

import errno
import hashlib
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    ConfigDict,
    Field,
    IPvAnyAddress,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from drivers.camera.settings import CameraSettings
from drivers.io.settings import DigitalIoSettings, ModbusIoSettings, output_names
from drivers.plc.settings import IoPlcSettings, PlcSettings
from drivers.scanner.settings import ScannerSettings
from drivers.settings import Count, Number, Settings, shared_wire
from drivers.stacklight import LightState
from drivers.stacklight.profiles import (
    DEFAULT_PROFILE,
    ProfileName,
    ambiguities,
    pattern_table,
)
from drivers.stacklight.settings import Abilities, LightPattern, Mode, StackLightSettings
from station.record import CLOCK_JUMP_LIMIT_H, PictureClass, Verdict

SHIPPED_PREFIX = "shipped:"
EX_CONFIG = 78
"""Exit status of a bad configuration (sysexits.h); the service manager does not restart on it."""
DEFAULT_RECORD_GB = 20.0
"""`vqi run --record` takes so much disk at most: half an hour at 12 MB/s."""

_PASSWORD = re.compile(r"password\s*=|://[^/@]*:[^/@]*@", re.IGNORECASE)

T = TypeVar("T")
ReviewWord = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


class ConfigError(Exception):
    """A file is wrong: names file, key, what is wrong, and what would be right."""

    def __init__(self, message: str, status: int = EX_CONFIG) -> None:
        """`status`: the program's exit status."""
        super().__init__(message)
        self.status = status


_WRONG_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


def exit_status_of(error: OSError) -> int:
    """Of a program that cannot use a file or folder of its configuration: 78 where path or rights
    are wrong, which no later start finds otherwise. Anything else may pass (a full, read-only or
    failing disk, no memory, too many files): 1, and the program is started again."""
    return EX_CONFIG if error.errno in _WRONG_PATH else 1


class PlateRecipe(Settings):
    """How a plate of this product lies on the belt and where it ends."""

    width_mm: Number = Field(gt=0, le=5_000, description="Crossweb size.")
    length_mm: Number = Field(gt=0, le=5_000, description="Downweb size.")
    tolerance_mm: Number = Field(3.0, gt=0, le=1e6, description="A plate off by more is UNDECIDED.")
    max_length_mm: Number | None = Field(
        None, gt=0, le=1e6, description="A longer plate is cut here; default 1.25 x length_mm."
    )
    outline: Literal["level", "whole"] = Field(
        "level",
        description="level: the plate is brighter than the belt; whole: the picture is the plate.",
    )
    belt_level: Count = Field(
        32, ge=1, le=254, description="8-bit level between the belt (darker) and the plate."
    )
    edge_margin_mm: Number = Field(
        2.0, ge=0, le=1_000, description="Border of the plate that is not scored."
    )
    min_gap_mm: Number = Field(
        5.0, gt=0, le=1_000, description="Plates closer than this are not separated."
    )
    max_skew_deg: Number = Field(
        2.0, gt=0, le=45, description="A plate that lies more askew is UNDECIDED."
    )
    is_narrow_allowed: bool = Field(
        False, description="Score a plate narrower than a tile by padding instead of UNDECIDED."
    )
    max_unlit_share: Number = Field(
        0.02, gt=0, le=1, description="Share of pixels at level 0 or 255 that a plate may have."
    )
    max_streak_share: Number = Field(
        0.25,
        gt=0,
        le=1,
        description="A streak along the whole plate that is darker or brighter by more hides it.",
    )
    belt_stop_timeout_s: Number = Field(
        3.0, gt=0, le=3600, description="No scan line for this long inside a plate: UNDECIDED."
    )
    dot_pitch_mm: Number | None = Field(
        None, gt=0, le=100, description="Of the plate's regular dots: the scale is measured on it."
    )
    dot_layout: Literal["square", "staggered"] = Field(
        "square",
        description="staggered: each row half a pitch beside the last, all dots equally far.",
    )
    dot_angle_deg: Number = Field(
        0.0, gt=-45, le=45, description="Of the rows of dots, against the leading edge."
    )
    dot_pitch_map: tuple[tuple[Number, Number], ...] = Field(
        (), description="[mm from the leading edge, pitch downweb there in mm], where it changes."
    )

    @model_validator(mode="after")
    def _dots_are_declared_whole(self) -> PlateRecipe:
        places = [place for place, _ in self.dot_pitch_map]
        if places and self.dot_pitch_mm is None:
            raise ValueError("dot_pitch_map needs dot_pitch_mm, the pitch crossweb")
        if places != sorted(set(places)) or len(places) == 1:
            raise ValueError(
                "dot_pitch_map needs two or more places, in order from the leading edge"
            )
        if any(pitch_mm <= 0 for _, pitch_mm in self.dot_pitch_map):
            raise ValueError("dot_pitch_map: a pitch is above 0 mm")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> PlateRecipe:
        if self.max_length_mm is not None and self.max_length_mm < self.length_mm:
            raise ValueError(
                f"max_length_mm {self.max_length_mm:g} is below length_mm {self.length_mm:g}"
            )
        if 2 * self.edge_margin_mm >= min(self.width_mm, self.length_mm):
            raise ValueError(
                f"edge_margin_mm {self.edge_margin_mm:g} leaves nothing of a plate of "
                f"{self.width_mm:g} x {self.length_mm:g} mm"
            )
        return self


class LaneRecipe(Settings):
    """The crossweb part of the scan line in which plates lie. The tile grid starts at its left."""

    start_mm: Number = Field(0.0, ge=0, description="From the scan line's left end.")
    end_mm: Number | None = Field(None, gt=0, description="Default: the end of the scan line.")


class GridRecipe(Settings):
    """Where tiles of 224 x 224 px lie."""

    step_px: Count = Field(192, ge=32, le=224, multiple_of=32, description="From tile to tile.")


class ModelRecipe(Settings):
    """Which classifier judges the tiles."""

    id: str = Field(min_length=1, description="Of a shipped model, or of the one in folder.")
    folder: str | None = Field(
        None, min_length=1, description="Of an exported model; relative to the recipe's file."
    )
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Of its ONNX file.")
    threshold: Number | None = Field(
        None, ge=0, le=1, description="Tile score above which a plate fails; default: the card's."
    )
    unsure_above: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Tile score above which a plate that does not fail is UNDECIDED; default: the "
        "card's, or none.",
    )

    @model_validator(mode="after")
    def _limits_agree(self) -> ModelRecipe:
        unsure, fails = self.unsure_above, self.threshold
        if unsure is not None and fails is not None and unsure > fails:
            raise ValueError(
                f"unsure_above {unsure:g} is above threshold {fails:g}, from where a plate fails"
            )
        return self


class KeepRecipe(Settings):
    """Which pictures are kept of a passed plate; FAIL and UNDECIDED are always kept whole."""

    pass_whole_share: Number = Field(
        0.02, ge=0, le=1, description="Passed plates kept whole, drawn before the verdict."
    )
    whole_from_score: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="A passed plate that scores so much is kept whole, too: a person should look "
        "at it, and it can train a model; left out: none.",
    )
    is_pass_preview: bool = Field(True, description="Keep a small JPEG of every passed plate.")
    min_pass_days: Number = Field(
        1.0, ge=0, le=3650, description="Pictures of passed plates stay so long on a full disk."
    )


class HealthRecipe(Settings):
    """From when on the station calls a person before plates are lost. No verdict depends on it."""

    dirt_contrast: Number = Field(
        0.02,
        gt=0,
        lt=1,
        description="A camera column so much darker or brighter than those beside it, and four "
        "times as much as is usual in the plate, is dirt or a dead pixel where it stays in place "
        "while plates lie shifted crossweb.",
    )
    dirt_plates: Count = Field(
        8, ge=4, le=64, description="Dirt is on three quarters of the last so many plates."
    )
    light_change: Number = Field(
        0.1, gt=0, lt=1, description="Change of the plates' level since the reference was learned."
    )
    light_plates: Count = Field(
        20, ge=4, le=1000, description="It is on three quarters of the last so many plates."
    )
    reference_plates: Count = Field(
        50, ge=4, le=10_000, description="Plates that the light's reference is learned from."
    )
    length_change: Number = Field(
        0.01, gt=0, lt=1, description="Difference of a plate's length from length_mm."
    )
    length_plates: Count = Field(
        10, ge=4, le=1000, description="The belt slips if three of the last so many plates differ."
    )
    dark_level: Number | None = Field(
        None, gt=0, le=254, description="8-bit level of a plate; default 1.5 x plate.belt_level."
    )
    unlit_share: Number = Field(
        0.01, gt=0, le=1, description="Share of a plate's pixels at level 0 or 255."
    )
    exposure_plates: Count = Field(
        3, ge=2, le=1000, description="So many plates in a row that are too dark or saturated."
    )
    min_temperature_c: Number = Field(0.0, ge=-60, le=100, description="Of the camera, if it says.")
    max_temperature_c: Number = Field(
        65.0, ge=-60, le=150, description="Of the camera, if it says."
    )

    @model_validator(mode="after")
    def _temperatures_agree(self) -> HealthRecipe:
        if self.min_temperature_c >= self.max_temperature_c:
            raise ValueError(
                f"min_temperature_c {self.min_temperature_c:g} is not below max_temperature_c "
                f"{self.max_temperature_c:g}"
            )
        return self


class LimitSampleRecipe(Settings):
    """Known plates that must get their verdicts before the station judges others."""

    folder: str | None = Field(
        None,
        min_length=1,
        description="Holds samples.csv and its pictures; relative to the recipe's file.",
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Of samples.csv, which names the pictures'."
    )
    at_shift_start: bool = Field(True, description="Judge them again when a shift begins.")

    @model_validator(mode="after")
    def _sha256_is_of_a_folder(self) -> LimitSampleRecipe:
        if self.sha256 is not None and self.folder is None:
            raise ValueError("sha256 is of samples.csv in folder, which is left out")
        return self


class DriftRecipe(Settings):
    """From which changes on slow drifts are to be found (docs/drift.md). No verdict depends on
    it."""

    learn_plates: Count = Field(
        1600,
        ge=48,
        le=3200,
        description="Judged plates that limits are learned from, in eights; up to twice as many, "
        "3,200 at most, where each is much like the one before it.",
    )
    light_change: Number = Field(
        0.05, gt=0, lt=1, description="Change of the plates' level that is to be found."
    )
    contrast_change: Number = Field(
        0.2, gt=0, lt=1, description="Of the contrast of their lattice of dots, relative."
    )
    noise_change: Number = Field(
        0.3, gt=0, lt=1, description="Of the noise of their pixels, relative."
    )
    score_change: Number = Field(
        1.0, gt=0, le=10, description="Of passing tiles' scores, in log odds."
    )


class ReviewRecipe(Settings):
    """What a person may say of a plate afterwards, and when one person is not enough."""

    reasons: dict[ReviewWord, str] = Field(
        {
            "dirt": "dust or dirt, no defect",
            "limit": "within the limit sample",
            "missed": "a defect that was not found",
            "confirmed": "as it was judged",
            "other": "see the note",
        },
        min_length=1,
        description="Codes that a review may give as its reason, and what each means.",
    )
    kinds: tuple[ReviewWord, ...] = Field(
        ("scratch", "dent", "inclusion", "bubble", "stain", "crack", "dots", "other"),
        description="What a reviewer may call a defect.",
    )
    four_eyes: tuple[Literal[Verdict.FAIL, Verdict.UNDECIDED], ...] = Field(
        (),
        description="A plate that was judged so, by the station or a person, passes by reviews of "
        "two people only.",
    )


Evidence = Literal["limit_samples", "audit", "compare", "shadow", "threshold", "precision"]
"""Of another model; see station/promotion.py."""


class PromotionRecipe(Settings):
    """What must be shown of another model before it may judge in this version's place."""

    evidence: tuple[Evidence, ...] = Field(
        get_args(Evidence),
        description="What rows of the log must show before a version with another model is "
        "approved or activated: limit_samples, audit, compare, shadow, threshold, precision.",
    )
    compare_plates: Count = Field(
        200, ge=1, le=10**7, description="Stored plates that both models have judged, at least."
    )
    shadow_plates: Count = Field(
        200, ge=1, le=10**7, description="Plates that it has judged in the shadow, at least."
    )


class Recipe(Settings):
    """What defines a product's inspection."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Of the recipe, in every record.")
    version: Count = Field(ge=1, description="Of the recipe; each change has the next one.")
    product: str = Field("", description="What is inspected, for people.")
    plate: PlateRecipe
    lane: LaneRecipe = LaneRecipe()
    grid: GridRecipe = GridRecipe()
    model: ModelRecipe
    keep: KeepRecipe = KeepRecipe()
    health: HealthRecipe = HealthRecipe()
    drift: DriftRecipe = DriftRecipe()
    review: ReviewRecipe = ReviewRecipe()
    promotion: PromotionRecipe = PromotionRecipe()
    limit_samples: LimitSampleRecipe = LimitSampleRecipe()
    deadline_s: Number = Field(
        2.0,
        gt=0,
        le=60,
        description="A verdict not durable this long after the last scan line is late.",
    )


StationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class StationSettings(Settings):
    id: StationId = Field(description="Unique in the plant.")
    recipe: str = Field(
        min_length=1, description="Path of a recipe, or shipped:<id> for one that comes with vqi."
    )
    runtime_dir: Path = Field(description="Sockets and locks of the running station.")
    inspect_threads: Count = Field(2, ge=1, le=64, description="One-thread classifier sessions.")
    plate_buffers: Count = Field(6, ge=2, le=64, description="Plates in work at once, at most.")
    precision_dir: Path | None = Field(
        None,
        description="Records of `vqi model benchmark`; default: the journal's directory.",
    )
    recipe_dir: Path | None = Field(
        None,
        description="Versions of recipes, with approval; default: recipes in the journal's "
        "directory. What is activated there judges in place of `recipe`.",
    )
    model_dir: Path | None = Field(
        None,
        description="Models of this station, one folder an id (`vqi model import`); default: "
        "models in the journal's directory. One that is not there is looked for among the shipped.",
    )
    ring_s: Number = Field(0.75, ge=0.5, le=10, description="Frames the ring holds, in seconds.")


ClockTime = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class ShiftSettings(Settings):
    """When shifts begin, local time: each name of a shift is a key. A shift lasts until the next
    one begins."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ClockTime]

    timezone: str = Field(description="IANA name, e.g. Europe/Berlin; knows of summer time.")

    @property
    def begins(self) -> dict[str, str]:
        """The local time at which each shift begins, as HH:MM."""
        return dict(self.__pydantic_extra__)

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"no time zone {name!r}; an IANA name is Europe/Berlin") from error
        return name

    @model_validator(mode="after")
    def _shifts_can_be_told_apart(self) -> ShiftSettings:
        times = list(self.begins.values())
        if not times:
            raise ValueError('no shift is named; add for example early = "06:00"')
        if len(set(times)) < len(times):
            raise ValueError("two shifts begin at the same time")
        strange = [name for name in self.begins if not name.isidentifier() or not name.isascii()]
        if strange:
            raise ValueError(f"{strange[0]!r}: a shift's name is letters, digits and _")
        return self


class JournalSettings(Settings):
    directory: Path = Field(description="Database, published snapshot and pictures.")
    snapshot_interval_s: Number = Field(
        60.0, gt=0, le=86_400, description="How often the copy for other tools is renewed."
    )
    min_free_mb: Count = Field(200, ge=0, description="Below this much free disk it refuses.")
    watermarks_mb: tuple[Count, Count, Count] | None = Field(
        None,
        description="Free disk below which previews of passed plates, then all their pictures are "
        "not kept, then READY drops; default 10, 5 and 2 x min_free_mb.",
    )
    shifts: ShiftSettings | None = None

    reports: Path | None = Field(
        None, description="Folder of shift reports; `vqi log report --due` writes them."
    )

    @property
    def disk_limits_mb(self) -> tuple[int, int, int, int]:
        """Free disk below which levels 1 to 4 begin."""
        given = self.watermarks_mb
        previews, passes, ready = given or (n * self.min_free_mb for n in (10, 5, 2))
        return previews, passes, ready, self.min_free_mb

    @model_validator(mode="after")
    def _watermarks_descend(self) -> JournalSettings:
        limits = self.disk_limits_mb
        if self.watermarks_mb and any(a <= b for a, b in pairwise(limits)):
            raise ValueError(
                f"watermarks_mb {list(self.watermarks_mb)} must fall, and stay above min_free_mb "
                f"{self.min_free_mb}"
            )
        return self


class KeepRule(Settings):
    """How long pictures of one class are kept; what is first reached counts."""

    days: Number | None = Field(None, gt=0, le=36_500, description="Since the result was written.")
    mb: Number | None = Field(None, gt=0, le=1e9, description="Of the class; the oldest go first.")

    @model_validator(mode="after")
    def _says_something(self) -> KeepRule:
        if self.days is None and self.mb is None:
            raise ValueError("give days, mb or both; leave the class out to keep it for ever")
        return self


class BackupSettings(Settings):
    """A verified copy of the log and its pictures at intervals."""

    directory: Path = Field(description="Begun once with `vqi log backup --to`; another disk.")
    every_h: Number = Field(24.0, gt=0, le=8760)
    keep: Count = Field(7, ge=1, le=1000, description="Generations of the log.")


class RetentionSettings(Settings):
    """When pictures are removed; a class that is not named is kept for ever, and so are records."""

    pass_preview: KeepRule | None = None
    pass_whole: KeepRule | None = None
    audit: KeepRule | None = None
    fail: KeepRule | None = None
    undecided: KeepRule | None = None
    clock_jump_limit_h: Number = Field(
        CLOCK_JUMP_LIMIT_H,
        gt=0,
        le=8760,
        description="Nothing is removed after the clock was set ahead by more.",
    )
    backup: BackupSettings | None = None

    @property
    def rules(self) -> dict[PictureClass, KeepRule]:
        """The rule of each class that has one."""
        given = {kind: getattr(self, kind.value) for kind in PictureClass}
        return {kind: rule for kind, rule in given.items() if rule is not None}


KeyFingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ProofSettings(Settings):
    """What lets somebody who does not trust the station see that the log is whole."""

    every_h: Number = Field(1.0, gt=0, le=8760, description="Between two checkpoints.")
    key_file: Path | None = Field(
        None,
        description="Ed25519 key of `vqi log key make`; default: the unit's credential "
        "log-key.pem. Without one checkpoints are not signed.",
    )
    former_keys: tuple[KeyFingerprint, ...] = Field(
        (), description="Fingerprints of the keys that signed before this one."
    )
    anchor_file: Path | None = Field(
        None, description="Another user's file to which each checkpoint's anchor is appended."
    )
    anchor_socket: Path | None = Field(
        None, description="Whoever listens there appends to anchor_file; default: this process."
    )

    @model_validator(mode="after")
    def _socket_has_its_file(self) -> ProofSettings:
        if self.anchor_socket is not None and self.anchor_file is None:
            raise ValueError("anchor_socket needs anchor_file: the file that its listener appends")
        return self


class LightSettings(Settings):
    """The stack light and what it means at this site."""

    device: StackLightSettings
    profile: ProfileName = Field(DEFAULT_PROFILE, description="What each state looks like.")
    patterns: dict[LightState, LightPattern] = Field(
        default_factory=dict, description="Replaces the profile's pattern of the states it names."
    )
    buzzer: dict[LightState, Mode] = Field(
        default_factory=dict, description="States that sound the buzzer; left out: none."
    )
    buzzer_s: Number = Field(
        10.0, gt=0, le=86_400, description="It sounds so long when a state begins, then is silent."
    )
    lease_s: Number = Field(1.2, ge=0.5, le=1.2, description="A pass not renewed goes out.")
    fail_hold_s: Number | None = Field(
        None,
        gt=0,
        le=86_400,
        description="FAIL and UNDECIDED stay this long; default: until acknowledged.",
    )
    pass_hold_s: Number = Field(10.0, gt=0, le=3600, description="PASS stays this long at most.")

    @property
    def pattern_table(self) -> dict[LightState, LightPattern]:
        """A pattern for every state; the lamp test lights whatever any of them uses."""
        return pattern_table(self.profile, self.patterns, self.buzzer)

    @model_validator(mode="after")
    def _patterns_can_be_shown_and_told_apart(self) -> LightSettings:
        table = self.pattern_table
        abilities = self.device.abilities
        unclear = ambiguities(table)
        if unclear:
            raise ValueError(f"{unclear[0]}; give one of them another pattern")
        for state, pattern in table.items():
            for element, mode in pattern.items():
                if abilities is not None and mode not in abilities.get(element, ()):
                    raise ValueError(_cannot_show(state, element, mode, abilities))
        return self


def _cannot_show(state: LightState, element: str, mode: str, abilities: Abilities) -> str:
    """Which state the device cannot express, and what to do about it."""
    given = ", ".join(abilities)
    lack = f"no {element} (it has {given})"
    advice = f"give [light.patterns] {state} a pattern of its elements, or choose another profile"
    if element in abilities:
        lack = f"no {element} that flashes"
        advice = f"give [light.patterns] {state} another pattern, or blink_hz where it has that key"
    return f"patterns.{state} wants {element} {mode}, but the device has {lack}; {advice}"


ACCEPT_OUTPUT = "accept"


class AcceptSettings(Settings):
    """The output that lets a good plate through: on only while a plate that passed is there."""

    distance_mm: Number = Field(
        gt=0, le=100_000, description="From the camera's scan line to the accept point."
    )
    pulse_ms: Count = Field(gt=0, le=10_000, description="How long it is on for a plate.")
    max_position_age_s: Number = Field(
        0.5, gt=0, le=5, description="Without a frame for longer, the belt's place is unknown."
    )
    device: DigitalIoSettings = Field(description="With an output named accept.")

    @model_validator(mode="after")
    def _device_can_do_it(self) -> AcceptSettings:
        if ACCEPT_OUTPUT not in output_names(self.device):
            raise ValueError(f"device.outputs has no {ACCEPT_OUTPUT}; name the output so")
        if isinstance(self.device, ModbusIoSettings) and self.device.pulse_offset is not None:
            unit_ms = self.device.pulse_unit_ms
            if self.pulse_ms % unit_ms:
                raise ValueError(f"pulse_ms is no multiple of device.pulse_unit_ms {unit_ms}")
        return self


class IdentitySettings(Settings):
    """Where part serials are read, and how they find their plates."""

    distance_mm: Number = Field(
        ge=0, le=100_000, description="From where labels are read to the camera's scan line."
    )
    tolerance_mm: Number = Field(
        20.0, gt=0, le=10_000, description="A label read so far before or behind a plate is its."
    )
    badge_prefix: str | None = Field(
        None,
        pattern=r"^[!-~]{1,16}$",
        description="A reading that begins so signs the person on whom the rest names.",
    )
    scanner: ScannerSettings | None = Field(
        None, description="Left out: serials come from the PLC's registers."
    )


class CommissioningSettings(Settings):
    """What makes this station's plates production."""

    file: Path = Field(description="Written by `vqi commission sign`; names camera and producer.")


class ModelsSettings(Settings):
    """Whose signatures let a model judge production."""

    trusted_keys: Path | None = Field(
        None,
        description="TOML file of [[key]] with who, public_key and roles, that only root may "
        "write. Left out: no model is signed, and no plate is production.",
    )
    needs_two_people: bool = Field(
        True, description="One signed as `trained`, another as `approved`; else approval alone."
    )


class FlatFieldSettings(Settings):
    """The flat field that `vqi camera calibrate` measured and somebody approved."""

    file: Path = Field(description="What `vqi camera calibrate` wrote.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the file's bytes.")


class MetricsSettings(Settings):
    """Where `vqi serve metrics` shows figures to Prometheus."""

    address: IPvAnyAddress = Field(
        IPv4Address("127.0.0.1"), description="Of this machine; 0.0.0.0 for all that it has."
    )
    port: Count = Field(9790, ge=1, le=65_535)
    stale_verdict_s: Number = Field(
        30.0,
        gt=0,
        le=3600,
        description="A plate that left the camera so long ago and has no durable verdict: /health "
        "says 503.",
    )


class PlantSettings(Settings):
    """The plant's database, to which `vqi log ship` sends the log."""

    dsn: str = Field(
        "", description="As libpq takes it: host, dbname, user, sslmode, sslrootcert; no password."
    )
    dsn_file: Path | None = Field(
        None, description="More of it, with the password; without a folder: the unit's credential."
    )
    images: str | None = Field(
        None, description="Folder or s3://bucket/prefix; left out: pictures stay at the station."
    )
    s3_endpoint_url: str | None = Field(
        None, pattern="^https?://", description="Of an object store that is not Amazon's."
    )

    nats: str | None = Field(
        None,
        pattern="^(nats|tls)://[^@]+$",
        description="JetStream server that rows go to in place of the database.",
    )
    nats_credentials_file: Path | None = Field(
        None, description="As `nsc` writes it; without a folder: the unit's credential."
    )
    nats_ca_file: Path | None = Field(None, description="Who signed its certificate, tls:// only.")

    @model_validator(mode="after")
    def _is_whole(self) -> PlantSettings:
        if self.nats is not None and self.images:
            raise ValueError("images go beside the database, not through nats: leave one out")
        if _PASSWORD.search(self.dsn):
            raise ValueError("dsn holds a password, which everybody may read: move it to dsn_file")
        if not self.dsn and self.dsn_file is None and self.nats is None:
            raise ValueError("give dsn, dsn_file or both, or nats")
        if self.s3_endpoint_url and not (self.images or "").startswith("s3://"):
            raise ValueError("s3_endpoint_url needs images = s3://bucket/prefix")
        return self


HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,253}$|^[0-9a-f:]{2,45}$")]


class OtherStation(Settings):
    """Another station whose plates the same inspector looks after."""

    name: str = Field(min_length=1, max_length=64)
    url: str = Field(pattern=r"^https?://[^/\s]+$", description="Of its page, without a path.")
    station_id: StationId | None = Field(
        None,
        description="Its id, by which the plant's database knows it before it has answered; "
        "left out: the name.",
    )
    ca_file: Path | None = Field(
        None, description="Whom to trust for its certificate, PEM; left out: as this machine does."
    )
    token_file: Path | None = Field(
        None, description="Holds that station's read token, where people sign in there."
    )

    @model_validator(mode="after")
    def _token_is_not_told_to_all(self) -> OtherStation:
        is_here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        if self.token_file is not None and not is_here and not self.url.startswith("https:"):
            raise ValueError("token_file needs an https:// url: anybody on the way could read it")
        return self


class WebSettings(Settings):
    """Where `vqi web` shows the station's page, and to whom."""

    host: IPvAnyAddress = Field(
        IPv4Address("127.0.0.1"),
        description="Of this machine. Any but a loopback address needs TLS and users.",
    )
    port: Count = Field(8471, ge=0, le=65_535, description="0: any that is free, and said.")
    tls_cert_file: Path | None = Field(
        None, description="Certificate chain, PEM; without a folder: the unit's credential."
    )
    tls_key_file: Path | None = Field(
        None, description="Its key, PEM; without a folder: the unit's credential."
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        (), description="Further names by which people call this page, without a port."
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+$",
        description="What people type where a reverse proxy on this machine stands before it.",
    )
    state_dir: Path | None = Field(
        None, description="People and what proves them; default: web, beside the journal's folder."
    )
    idle_min: Number = Field(
        30.0, ge=1, le=1440, description="Nothing done for so long: the session ends."
    )
    shared_idle_s: Count = Field(
        90, ge=15, le=3600, description="The same on a screen that several people use."
    )
    session_h: Number = Field(
        12.0, gt=0, le=168, description="A session ends after so long, whatever is done."
    )
    sign_reviews: bool = Field(
        False, description="Each review asks for the password or PIN again (21 CFR 11.200)."
    )
    languages: tuple[Literal["en", "de", "zh"], ...] = Field(
        ("en", "de", "zh"), min_length=1, description="Offered; the first one where none fits."
    )
    stations: tuple[OtherStation, ...] = Field(
        (), max_length=64, description="Others on the page of all lines, in this order."
    )
    read_token_file: Path | None = Field(
        None, description="Holds what lets other stations read this line's state in short."
    )

    @property
    def is_tls(self) -> bool:
        return self.tls_cert_file is not None

    @property
    def is_secure(self) -> bool:
        """People reach it by TLS: its own, or that of the proxy before it."""
        return self.is_tls or (self.public_url or "").startswith("https:")

    @property
    def is_local(self) -> bool:
        """Nobody but who sits at this machine reaches it."""
        name = urlsplit(self.public_url or "").hostname
        return self.host.is_loopback and name in (None, "localhost", "127.0.0.1", "::1")

    @model_validator(mode="after")
    def _stations_can_be_told_apart(self) -> WebSettings:
        names = [one.name for one in self.stations]
        if len(set(names)) < len(names):
            raise ValueError("stations: two have the same name")
        return self

    @model_validator(mode="after")
    def _is_reached_by_tls(self) -> WebSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: give both or none")
        if not self.host.is_loopback and not self.is_tls:
            raise ValueError(
                f"host {self.host} can be reached from other machines: give tls_cert_file and "
                'tls_key_file (`vqi web --make-certificate` makes them), or host = "127.0.0.1"'
            )
        if not self.is_local and self.public_url and not self.public_url.startswith("https:"):
            raise ValueError("public_url is called from other machines: it must be https://")
        return self


class Configuration(Settings):
    """One station. Relative paths are relative to the current directory."""

    station: StationSettings
    camera: CameraSettings
    journal: JournalSettings
    retention: RetentionSettings = RetentionSettings()
    proof: ProofSettings = ProofSettings()
    light: LightSettings
    models: ModelsSettings = ModelsSettings()
    flat_field: FlatFieldSettings | None = None
    commissioning: CommissioningSettings | None = None
    plc: PlcSettings | None = None
    accept: AcceptSettings | None = None
    identity: IdentitySettings | None = None
    metrics: MetricsSettings | None = None
    plant: PlantSettings | None = None
    web: WebSettings | None = None

    @model_validator(mode="after")
    def _each_wire_has_one_word(self) -> Configuration:
        """Where two devices switch one coil, each confirms it, and none sees the other."""
        driven = [("light.device", self.light.device.wires)]
        if self.plc is not None:
            driven.append(("plc", self.plc.wires))
        if self.accept is not None:
            driven.append(("accept.device", self.accept.device.wires))
        problem = shared_wire(
            (f"{part}.{key}", place) for part, wires in driven for key, place in wires
        )
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _serials_come_from_somewhere(self) -> Configuration:
        identity = self.identity
        is_silent = (
            self.plc is None or isinstance(self.plc, IoPlcSettings) or not self.plc.has_serials
        )
        if identity is not None and identity.scanner is None and is_silent:
            raise ValueError(
                "identity: nothing reads serials: add [identity.scanner], or a [plc] with "
                "has_serials = true"
            )
        return self

    @property
    def commissioning_file(self) -> Path | None:
        return self.commissioning.file if self.commissioning else None

    @property
    def people_dir(self) -> Path:
        """Where the people of the page are kept."""
        given = self.web.state_dir if self.web else None
        return given or self.journal.directory.parent / "web"

    @property
    def precision_dir(self) -> Path:
        """Where the precision gate's records lie."""
        return self.station.precision_dir or self.journal.directory / "precision"

    @property
    def model_dir(self) -> Path:
        """Where the station's models lie."""
        return self.station.model_dir or self.journal.directory / "models"

    @property
    def recipe_dir(self) -> Path:
        """Where the versions of recipes lie."""
        return self.station.recipe_dir or self.journal.directory / "recipes"


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A validated file: its content, where it came from, and the sha256 of its bytes."""

    value: T
    source: str
    sha256: str


def load_configuration(source: str) -> Loaded[Configuration]:
    """Read a configuration. Raises `ConfigError`."""
    return _load(source, Configuration, "configuration")


def load_recipe(source: str) -> Loaded[Recipe]:
    """Read a recipe. Raises `ConfigError`."""
    return _load(source, Recipe, "recipe")


def parse_recipe(data: bytes, source: str) -> Loaded[Recipe]:
    """The recipe that a file's bytes say; `source` names it. Raises `ConfigError`."""
    return _parse(data, source, Recipe)


def shipped_path(name: str) -> Path:
    """A file that comes with the package: `simulated.toml` or `recipes/<id>.toml`."""
    return Path(str(resources.files("station"))) / "shipped" / name


def _load(source: str, model: type[T], what: str) -> Loaded[T]:
    path = _resolve(source, what)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source}: this {what} cannot be read: {error.strerror}", exit_status_of(error)
        ) from error
    return _parse(data, source, model)


def _parse(data: bytes, source: str, model: type[T]) -> Loaded[T]:
    try:
        table: dict[str, Any] = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    try:
        value = TypeAdapter(model).validate_python(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error, model)}") from error
    return Loaded(value, source, hashlib.sha256(data).hexdigest())


def _resolve(source: str, what: str) -> Path:
    if not source.startswith(SHIPPED_PREFIX):
        return Path(source)
    name = source.removeprefix(SHIPPED_PREFIX)
    folder = "recipes/" if what == "recipe" else ""
    path = shipped_path(f"{folder}{name}.toml")
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.toml"))
        raise ConfigError(f"{source}: no such shipped {what}; there are: {', '.join(known)}")
    return path


def _explain(error: ValidationError, model: type[Any]) -> str:
    """Every mistake of the file in one line: key, what is wrong, what would be right."""
    return "; ".join(_explain_one(dict(item), model) for item in error.errors())


def _explain_one(item: dict[str, Any], model: type[Any]) -> str:
    key = ".".join(_written(item["loc"])) or "the file"
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = sorted(_fields_at(model, item["loc"][:-1]))
        return f"{key}: unknown key; known here: {', '.join(known)}"
    if kind == "missing":
        return f"{key}: this key is missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict) else f" (found {given!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


_CHOSEN: dict[tuple[str, ...], tuple[int, ...]] = {
    ("camera",): (1,),
    ("light", "device"): (2,),
    ("accept", "device"): (2,),
    ("plc",): (1,),
    ("identity", "scanner"): (2,),
    ("plc", "io", "device"): (3,),
}
"""Where pydantic names the type that chose a device's settings."""


def _written(location: tuple[Any, ...]) -> list[str]:
    """Keys as they stand in the file: without the type that chose a device's settings."""
    places = {
        place
        for start, places in _CHOSEN.items()
        if location[: len(start)] == start
        for place in places
    }
    keys = [str(part) for place, part in enumerate(location) if place not in places]
    return [key for key in keys if key != "[key]"]


def _fields_at(model: Any, location: tuple[Any, ...]) -> set[str]:
    """Field names of the settings that `location` leads to."""
    schema = TypeAdapter(model).json_schema()
    definitions = schema.get("$defs", {})

    def follow(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node or "anyOf" in node:  # the latter: it may be left out
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[1]]
            else:
                node = next((n for n in node["anyOf"] if n.get("type") != "null"), {})
        return node

    node = follow(schema)
    for part in location:
        if "discriminator" in node:
            mapping = node["discriminator"]["mapping"]
            node = follow({"$ref": mapping[part]} if part in mapping else {})
            continue
        inner = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
        node = follow(inner if isinstance(inner, dict) else {})
    return set(node.get("properties", {}))
