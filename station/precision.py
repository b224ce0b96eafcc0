"""Which precision judges here: the fastest that the gate has passed with this model and recipe, on
this very processor and runtime; fp32 otherwise.

The gate (`vqi model benchmark --config FILE`) writes one record for a recipe's file and a model.
Whoever judges plates as the station does (`vqi run`, `inspect --config`, `bench`) loads its
classifier here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.card import ModelCard, ModelError, read_bounded, read_card
from models.classifier import Classifier, Variant
from models.runtimes import Faster, processor_name, runtime_name
from station.config import Configuration, Loaded, Recipe
from station.model_store import ModelStore
from station.product import model_folder

RUN_THE_GATE = "`vqi model benchmark --config FILE`"
_MAX_RECORD_BYTES = 5_000_000


class RecordPart(BaseModel):
    """Frozen; unknown keys are errors, and so are NaN and infinity: no score is above NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GateSetRecord(RecordPart):
    """The labelled tiles that fp32 and the candidates scored."""

    recipe: str
    seed: int
    plates: int
    tiles: int
    defective: int
    sha256: str
    """Of the tiles' pixels and labels."""
    is_as_on_card: bool | None
    """Rendered to the very bytes of the card's; None if the card names no gate set."""
    auroc: float
    """In fp32."""


class ChangedPlate(RecordPart):
    """A plate that the two precisions judge differently."""

    plate: int
    """Number under the record's seed."""
    change: Literal["FAIL to PASS", "PASS to FAIL"]
    is_defective: bool
    is_limit_sample: bool
    contrast_scale: float
    fp32_score: float
    score: float


class CandidateRecord(RecordPart):
    """What came out for one precision; what was not reached is None."""

    precision: Faster
    is_passed: bool
    refused: str
    """Why; empty if passed."""
    runtime: str | None = None
    ms_per_tile: float | None = None
    speed_ratio: float | None = None
    """fp32's time over this one's, median of interleaved runs."""
    auroc_difference: tuple[float, float, float] | None = None
    """From fp32 on the gate set, with its paired 95 % interval by plate."""
    threshold: float | None = None
    equal_plates: int | None = None
    equal_share_low: float | None = None
    """Lower end of the exact 95 % interval."""
    changed: tuple[ChangedPlate, ...] = ()
    golden_scores: tuple[float, ...] = ()
    derived_sha256: str | None = None


class GateRecord(RecordPart):
    """One run of the gate."""

    made_at: str
    command: str
    model_id: str
    model_sha256: str
    recipe_id: str
    recipe_sha256: str
    processor: str
    limits: tuple[str, ...]
    """What this processor lacks that would make it faster."""
    fp32_runtime: str
    fp32_ms_per_tile: float
    fp32_threshold: float
    gate_set: GateSetRecord
    pixel_pitch_mm: float
    """At which the plates were seen."""
    seed: int
    choosing_plates: int
    """They chose each precision's threshold."""
    judged_plates: int
    limit_samples: int
    """Of the judged plates: defects as faint as the specification still calls a defect, which fp32
    fails: so many could be lost."""
    candidates: tuple[CandidateRecord, ...]


class _File(RecordPart):
    """The record as it lies on the disk."""

    sha256: str
    """Of the record's own JSON text: a changed digit must not move a threshold."""
    record: GateRecord


@dataclass(frozen=True, slots=True)
class Chosen:
    """The classifier that judges, and why in this precision."""

    classifier: Classifier
    why: str
    is_warning: bool
    """A gate was passed here once, but its record no longer holds."""


def load_classifier(
    configuration: Loaded[Configuration], recipe: Loaded[Recipe], sessions: int
) -> Chosen:
    """The recipe's model in the fastest precision that may judge. Raises `ConfigError` for a model
    that is missing, `ModelError` for one that fp32 cannot run either."""
    folder = model_folder(recipe, ModelStore.of(configuration.value))
    wanted = recipe.value.model
    variant, why, is_warning = _choose(configuration.value, recipe, folder)
    if variant is not None:
        try:
            classifier = Classifier.load(folder, sessions, wanted.sha256, variant)
            classifier.self_test()
            return Chosen(classifier, why, is_warning)
        except ModelError as error:
            why, is_warning = f"fp32: {variant.precision} passed its gate, but: {error}", True
    return Chosen(Classifier.load(folder, sessions, wanted.sha256), why, is_warning)


def _choose(
    settings: Configuration, recipe: Loaded[Recipe], folder: Path
) -> tuple[Variant | None, str, bool]:
    """The variant that may judge, why, and whether that needs somebody's attention."""
    card, directory = read_card(folder), settings.precision_dir
    if recipe.value.model.unsure_above is not None or card.threshold.unsure_above is not None:
        return None, "fp32: the gate compares no plates that are neither PASS nor FAIL", False
    try:
        record = read_record(directory, recipe.value.id, card.sha256, recipe.sha256)
        if record is None:  # one of another version says why this is slower than it was
            record = _last_of_another_version(directory, recipe.value.id, card.sha256)
        if record is None:
            return None, f"fp32: no gate has run here ({RUN_THE_GATE})", False
        stale = _stale(record, recipe, card, settings.camera.pixel_pitch_mm)
        if stale:
            return None, f"fp32: the gate's record does not hold: {stale}; {RUN_THE_GATE}", True
        return _fastest(directory, record)
    except ModelError as error:
        return None, f"fp32: {error}; {RUN_THE_GATE}", True


def _stale(
    record: GateRecord, recipe: Loaded[Recipe], card: ModelCard, pixel_pitch_mm: float
) -> str:
    """What the record was made for and is no longer so; empty if it holds."""
    threshold = recipe.value.model.threshold
    now = {
        "model": (record.model_sha256, card.sha256),
        "recipe's file": (record.recipe_sha256, recipe.sha256),
        "pixel pitch": (record.pixel_pitch_mm, pixel_pitch_mm),
        "processor": (record.processor, processor_name()),
        "runtime": (record.fp32_runtime, runtime_name("fp32")),
        "threshold": (
            record.fp32_threshold, card.threshold.value if threshold is None else threshold
        ),
    }  # fmt: skip
    changed = [
        f"{name} was {was}, is {found}" for name, (was, found) in now.items() if was != found
    ]
    return "; ".join(changed)


def _fastest(directory: Path, record: GateRecord) -> tuple[Variant | None, str, bool]:
    """Raises `ModelError` if the runtime that passed is not there any more."""
    passed = [each for each in record.candidates if each.is_passed]
    if not passed:
        reasons = "; ".join(f"{each.precision} {each.refused}" for each in record.candidates)
        return None, f"fp32: the gate of {record.made_at} passed nothing else: {reasons}", False
    best = max(passed, key=lambda each: each.speed_ratio or 0.0)
    found = runtime_name(best.precision)
    if found != best.runtime:
        raise ModelError(f"the gate's record does not hold: runtime was {best.runtime}, is {found}")
    why = f"{best.precision}: passed its gate at {record.made_at}, {best.speed_ratio:.2f}x fp32"
    return variant_of(directory, best), why, False


def variant_of(directory: Path, passed: CandidateRecord) -> Variant:
    """How a classifier runs in a precision that passed."""
    assert passed.threshold is not None
    sha256 = passed.derived_sha256
    return Variant(
        passed.precision,
        passed.threshold,
        passed.golden_scores,
        derived_path(directory, sha256) if sha256 else None,
        sha256,
    )


def derived_path(directory: Path, sha256: str) -> Path:
    """Where bytes lie that were made of the verified ones."""
    return directory / f"{sha256}.onnx"


def record_path(directory: Path, recipe_id: str, model_sha256: str, recipe_sha256: str) -> Path:
    """One for each version of a recipe: what puts the next one through the gate leaves the record
    of the one that judges."""
    return directory / f"{recipe_id}-{model_sha256[:16]}-{recipe_sha256[:16]}.json"


def _former_path(directory: Path, recipe_id: str, model_sha256: str) -> Path:
    """Where a record lay while all versions of a recipe had one; nothing writes it any more."""
    return directory / f"{recipe_id}-{model_sha256[:16]}.json"


def read_record(
    directory: Path, recipe_id: str, model_sha256: str, recipe_sha256: str
) -> GateRecord | None:
    """The gate's record of this very file of the recipe; None if no gate has run with it. Raises
    `ModelError` if it is damaged."""
    record = _read(record_path(directory, recipe_id, model_sha256, recipe_sha256))
    if record is None:
        former = _read(_former_path(directory, recipe_id, model_sha256))
        record = former if former and former.recipe_sha256 == recipe_sha256 else None
    return record


def _last_of_another_version(
    directory: Path, recipe_id: str, model_sha256: str
) -> GateRecord | None:
    """The newest record of this model with any file of the recipe; those damaged say nothing."""
    former = _former_path(directory, recipe_id, model_sha256)
    found = []
    for path in (former, *directory.glob(f"{former.stem}-*.json")):
        with contextlib.suppress(ModelError):
            found.append(_read(path))
    return max(filter(None, found), key=lambda record: record.made_at, default=None)


def _read(path: Path) -> GateRecord | None:
    """None where there is none. Raises `ModelError` if it is damaged."""
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        file = _File.model_validate_json(read_bounded(path, _MAX_RECORD_BYTES))
    except ValidationError as error:
        raise ModelError(f"{path}: damaged: not a record of the gate") from error
    if file.sha256 != _sha256(file.record):
        raise ModelError(f"{path}: damaged: its content is not what the gate wrote")
    return file.record


def write_record(directory: Path, record: GateRecord, derived: dict[str, bytes]) -> Path:
    """Write derived graphs, by sha256, and then the record, each whole or not at all; its path.
    Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    for sha256, model in derived.items():
        _write(derived_path(directory, sha256), model)
    path = record_path(directory, record.recipe_id, record.model_sha256, record.recipe_sha256)
    file = _File(sha256=_sha256(record), record=record)
    _write(path, file.model_dump_json(indent=1).encode() + b"\n")
    return path


def _sha256(record: GateRecord) -> str:
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
