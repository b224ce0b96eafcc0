"""Two models on the same stored plates: what would have been judged otherwise.

Every plate of a time that is stored whole goes through both models as `vqi inspect` would judge
it, under the recipe that judged it then, with each model's own threshold. The first model's scores
are held against the record, so that the replay is known to be the inspection. What cannot be
replayed is counted by its reason. A run may be stopped at any plate and goes on where it was.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models.card import ModelError
from models.classifier import Classifier
from station.comparisons import Comparisons, Side, register
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.images import Pixels, encode_preview
from station.ipc import Json
from station.log_reader import Filter, Reader
from station.offline import Inspection, PictureInspector
from station.product import limits_of, named_model
from station.qms import DATABASE, StoreError
from station.recipes import RecipeError
from station.record import Reason, Verdict, utc_now
from station.reviews import effective_verdict
from station.stored_tiles import NotStored, RecipeBook, evidence_picture

PLAN, PLATES, PICTURES = "plan.json", "plates.jsonl", "pictures"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_OF_SCORES = {
    Reason.MODEL,
    Reason.UNSURE,
    Reason.NON_FINITE,
    Reason.DEADLINE,
    Reason.HALTED,
    Reason.UNLIT,
    Reason.OBSCURED,
}
"""Why a plate was UNDECIDED that is there whole: a model may judge it."""
_CROP_PX = 448
_FRAME_LEVEL = 255

Agreement = Literal["bit for bit", "same verdict", "other verdict", "not comparable", "differs"]
"""How the first model's replay stands to the record: the very scores at the very places; or, where
another processor, runtime or precision judged then, with its own threshold, the same verdict or
another one; not to be compared, where another model judged then, or none could; or not what it
should be."""


class CompareError(Exception):
    """The comparison cannot be made; the message says why and what to do."""


class Part(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Model(Part):
    """One of the two."""

    id: str
    sha256: str
    threshold: float
    unsure_above: float | None
    runtime: str
    folder: str

    @property
    def side(self) -> Side:
        return Side(self.id, self.sha256, self.threshold)


class Plan(Part):
    """What is compared; a run that goes on must have the same."""

    station_id: str
    a: Model
    b: Model
    since: str
    until: str
    last_seq: int
    """The log as it was: no later result is looked at. Reviews are those that stand once all plates
    are replayed."""
    sample_seed: str
    """Drawn before the run showed a flip: by it a sample of them is chosen."""
    began_at: str


class Outcome(Part):
    """What one model says of one plate."""

    verdict: Verdict
    reason: Reason | None
    score: float | None
    """Highest tile score."""
    x_px: int | None = None
    """Place of that tile on the picture."""
    y_px: int | None = None


class Recorded(Part):
    """What the record says."""

    verdict: Verdict
    reason: Reason | None
    score: float | None
    threshold: float
    model_sha256: str
    runtime: str


class Replayed(Part):
    """One plate of the time: judged by both, or `unplayed` says why not."""

    result_id: str
    part_id: str | None
    written_at: str
    recipe: str
    """ID@VERSION by the record."""
    recipe_sha256: str
    recorded: Recorded
    is_drawn: bool
    """Drawn for the audit sample, before its verdict: kept whole whatever that was."""
    reviewed: Verdict | None = None
    """By people, in the end; None where none did, or while a second one is waited for."""
    unplayed: str = ""
    a: Outcome | None = None
    b: Outcome | None = None
    agreement: Agreement | None = None
    largest_difference: float | None = None
    """Of the first model's tile scores from the record's."""
    pictures: tuple[str, ...] = ()
    """Of a flip: files in `pictures`, the plate and the place."""

    @property
    def flip(self) -> str:
        """As `FAIL -> PASS`; empty where both say the same, or nothing was replayed."""
        if self.a is None or self.b is None or self.a.verdict is self.b.verdict:
            return ""
        return f"{self.a.verdict} -> {self.b.verdict}"

    @property
    def is_to_sign(self) -> bool:
        """Only the second model passes it."""
        return bool(self.flip) and self.b is not None and self.b.verdict is Verdict.PASS


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that is ready to judge."""

    model: Model
    classifier: Classifier

    def of(self, recipe: Loaded[Recipe]) -> Loaded[Recipe]:
        """The recipe of a plate, with this model and its limits in place of the recipe's."""
        update = {
            "id": self.model.id,
            "sha256": None,
            "threshold": self.model.threshold,
            "unsure_above": self.model.unsure_above,
        }
        own = recipe.value.model.model_copy(update=update)
        return Loaded(recipe.value.model_copy(update={"model": own}), recipe.source, recipe.sha256)


def contestant(
    configuration: Loaded[Configuration], name: str, threshold: float | None
) -> Contestant:
    """A model by its id, its folder, or the recipe version (ID@VERSION) that names it, with its
    limits (`product.limits_of`). fp32: a faster precision has its own gate. Raises
    `CompareError`."""
    try:
        folder, own = named_model(configuration.value, name)
        classifier = Classifier.load(folder)
        classifier.self_test()
        limits = limits_of(configuration.value, classifier.card, own, threshold)
    except (ModelError, ConfigError, RecipeError) as error:
        raise CompareError(f"{name}: {error}") from error
    return Contestant(
        Model(
            id=classifier.model_id,
            sha256=classifier.model_sha256,
            threshold=limits[0],
            unsure_above=limits[1],
            runtime=classifier.runtime,
            folder=str(folder),
        ),
        classifier,
    )


# --- the run --------------------------------------------------------------------------------------


def open_plan(
    folder: Path,
    configuration: Loaded[Configuration],
    sides: tuple[Contestant, Contestant],
    since: str,
    until: str | None,
) -> Plan:
    """A new plan in `folder`, or the one that is there if it is of the same comparison. One that
    was finished is not gone on with, unless its `until` is given: the time since is compared, too.
    Raises `CompareError`."""
    path, models = folder / PLAN, (sides[0].model, sides[1].model)
    directory = configuration.value.journal.directory
    try:
        there = Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        there = None
    except (OSError, ValidationError) as error:
        raise CompareError(f"{path}: cannot be understood: give another --out") from error
    if there is not None:
        is_same = (there.a, there.b) == models and there.since == since
        if not is_same or until not in (None, there.until):
            raise CompareError(
                f"{folder}: holds another comparison ({there.a.id} at {there.a.threshold:g}, "
                f"{there.b.id} at {there.b.threshold:g}, since {there.since}, until "
                f"{there.until}); give another --out"
            )
        finished = "" if until else _finished(folder, directory)
        if not finished:
            return there
        _set_aside(folder, folder / finished[:12])
    with Reader(directory) as reader:
        last_seq = reader.last_seq()
    plan = Plan(
        station_id=configuration.value.station.id,
        a=models[0],
        b=models[1],
        since=since,
        until=until or utc_now(),
        last_seq=last_seq,
        sample_seed=secrets.token_hex(16),
        began_at=utc_now(),
    )
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan.model_dump_json(indent=1).encode() + b"\n")
    return plan


def _finished(folder: Path, directory: Path) -> str:
    """The sha256 of the folder's report, if the log has its row; else empty."""
    try:
        sha256 = hashlib.sha256((folder / REPORT_JSON).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
    return sha256 if sha256 in read_register(directory).known else ""


def _set_aside(folder: Path, to: Path) -> None:
    """What a row names is kept. The report goes first: a run without one is not finished, and goes
    on."""
    to.mkdir(exist_ok=True)
    for name in (REPORT_JSON, REPORT_HTML, PICTURES, PLATES, PLAN):
        if (folder / name).exists():
            (folder / name).rename(to / name)


def count_plates(directory: Path, plan: Plan) -> int:
    """Results of the plan's time."""
    with Reader(directory) as reader:
        wanted = Filter(plan.since, plan.until)
        return int(reader.stats(wanted)["results"])


def replay(
    configuration: Loaded[Configuration],
    folder: Path,
    plan: Plan,
    sides: tuple[Contestant, Contestant],
    on_plate: Callable[[], object] = lambda: None,
) -> list[Replayed]:
    """Every plate of the plan's time, in the log's order; what an earlier run did stays. Raises
    `CompareError`, `StoreError`."""
    done = _read_plates(folder / PLATES)
    judges = _Judges(configuration.value.camera.pixel_pitch_mm, sides)
    found = []
    with (
        Reader(configuration.value.journal.directory) as reader,
        (folder / PLATES).open("a", encoding="utf-8") as file,
    ):
        recipes = RecipeBook(configuration.value, reader)
        for body in reader.results(Filter(plan.since, plan.until)):
            if body["seq"] > plan.last_seq:
                break
            plate = done.get(body["result_id"])
            if plate is None:
                plate = _replay_one(reader, body, recipes, judges, folder / PICTURES)
                file.write(plate.model_dump_json() + "\n")
                file.flush()
            found.append(plate)
            on_plate()
        return _reviewed(reader, found)


def _reviewed(reader: Reader, plates: Sequence[Replayed]) -> list[Replayed]:
    """The plates with what people say of them now, whenever they were replayed."""
    reviews = reader.reviews_of([plate.result_id for plate in plates])

    def verdict(plate: Replayed) -> Verdict | None:
        if plate.result_id not in reviews:
            return None
        result = reader.of_result(plate.result_id)[0]
        judged = effective_verdict([result, *reviews[plate.result_id]])
        return judged.verdict if judged.review and not judged.pending else None

    return [plate.model_copy(update={"reviewed": verdict(plate)}) for plate in plates]


def _read_plates(path: Path) -> dict[str, Replayed]:
    """What is done; the last line may be half a plate."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    try:
        plates = [Replayed.model_validate_json(line) for line in whole.splitlines()]
    except ValidationError as error:
        raise CompareError(f"{path}: cannot be understood: give another --out") from error
    return {plate.result_id: plate for plate in plates}


class _Judges:
    """An inspector for each recipe and model."""

    def __init__(self, pixel_pitch_mm: float, sides: tuple[Contestant, Contestant]) -> None:
        self.sides = sides
        self._pixel_pitch_mm = pixel_pitch_mm
        self._made: dict[tuple[str, int], PictureInspector] = {}

    def inspect(self, recipe: Loaded[Recipe], side: int, pixels: Pixels) -> Inspection:
        key = (recipe.sha256, side)
        if key not in self._made:
            one = self.sides[side]
            self._made[key] = PictureInspector(
                one.of(recipe), one.classifier, self._pixel_pitch_mm, threads=1
            )
        return self._made[key].inspect(pixels)


def _replay_one(
    reader: Reader, body: Json, recipes: RecipeBook, judges: _Judges, pictures: Path
) -> Replayed:
    plate = Replayed(
        result_id=body["result_id"],
        part_id=body.get("part_id"),
        written_at=body["written_at"],
        recipe=f"{body['recipe_id']}@{body['recipe_version']}",
        recipe_sha256=body["recipe_sha256"],
        recorded=Recorded.model_validate({key: body[key] for key in Recorded.model_fields}),
        is_drawn=bool(body.get("is_audit_sample")),
    )
    if is_of_the_strip(plate.recorded.reason):
        return plate.model_copy(update={"unplayed": f"undecided: {plate.recorded.reason}"})
    try:
        recipe = recipes.of(plate.recipe_sha256)
    except NotStored:
        return plate.model_copy(update={"unplayed": f"recipe {plate.recipe} is not here"})
    try:
        pixels = evidence_picture(reader, body)
        found = [judges.inspect(recipe, side, pixels) for side in (0, 1)]
    except (NotStored, ConfigError, ValueError) as error:
        return plate.model_copy(update={"unplayed": str(error)})
    update: Json = {"a": _outcome(found[0]), "b": _outcome(found[1])}
    update |= _held_against(plate.recorded, body, judges.sides[0].model, found[0])
    plate = plate.model_copy(update=update)
    if plate.flip:
        names = _write_pictures(pictures, plate, pixels)
        plate = plate.model_copy(update={"pictures": names})
    return plate


def is_of_the_strip(reason: Reason | None) -> bool:
    """Whether a plate stays UNDECIDED whatever model judges it: its pixels are not all there, or
    not of one plate as the recipe wants it."""
    return reason is not None and reason not in _OF_SCORES


def _outcome(found: Inspection) -> Outcome:
    highest = max(found.tiles, key=lambda tile: tile.score, default=None)
    return Outcome(
        verdict=found.verdict,
        reason=found.reason,
        score=found.score,
        x_px=highest.x_px if highest else None,
        y_px=highest.y_px if highest else None,
    )


def _held_against(recorded: Recorded, body: Json, a: Model, found: Inspection) -> Json:
    """How the first model's replay stands to the record."""
    if recorded.model_sha256 != a.sha256:
        return {"agreement": "not comparable"}
    grid = np.frombuffer(base64.b64decode(body["tile_grid"]), "<u2").reshape(-1, 2)
    scores = np.frombuffer(base64.b64decode(body["tile_scores"]), "<f4")
    places = np.array([(tile.x_px, tile.y_px) for tile in found.tiles], "<u2").reshape(-1, 2)
    now = np.array([tile.score for tile in found.tiles], "<f4")
    # A record without scores (the classifier failed then) says nothing of them.
    is_there = len(scores) > 0
    difference = float(np.abs(now - scores).max()) if is_there and len(now) == len(scores) else None
    is_same = scores.tobytes() == now.tobytes() and grid.tobytes() == places.tobytes()
    if recorded.runtime == a.runtime and is_there:
        agreement = "bit for bit" if is_same else "differs"
    elif not is_there or recorded.reason is not None:
        agreement = "not comparable"
    else:
        agreement = "same verdict" if recorded.verdict is found.verdict else "other verdict"
    return {"agreement": agreement, "largest_difference": difference}


def _write_pictures(folder: Path, plate: Replayed, pixels: Pixels) -> tuple[str, ...]:
    """The plate, with a frame around the place that the model that fails it means; and the place,
    pixel for pixel."""
    assert plate.a is not None
    assert plate.b is not None
    meant = plate.b if plate.b.verdict is Verdict.FAIL else plate.a
    names = [f"{plate.result_id}-plate.jpg"]
    framed = pixels.copy()
    if meant.x_px is not None and meant.y_px is not None:
        half = _CROP_PX // 2
        x, y = meant.x_px + 112, meant.y_px + 112
        left = min(max(0, x - half), max(0, pixels.shape[1] - _CROP_PX))
        top = min(max(0, y - half), max(0, pixels.shape[0] - _CROP_PX))
        crop = np.ascontiguousarray(pixels[top : top + _CROP_PX, left : left + _CROP_PX])
        names.append(f"{plate.result_id}-place.jpg")
        cv2.imwrite(str(folder / names[1]), crop)
        width = max(2, max(pixels.shape) // 256)
        corner = (meant.x_px + 224, meant.y_px + 224)
        cv2.rectangle(framed, (meant.x_px, meant.y_px), corner, _FRAME_LEVEL, width)
    (folder / names[0]).write_bytes(encode_preview(framed)[0])
    return tuple(names)


def read_register(directory: Path) -> Comparisons:
    """What the log in this folder says of comparisons; nothing where there is no log yet. Raises
    `CompareError`."""
    if not (directory / DATABASE).exists():
        return Comparisons()
    try:
        with Reader(directory) as reader:
            return register(reader.comparison_changes())
    except StoreError as error:
        raise CompareError(str(error)) from error


def by_risk(plates: Sequence[Replayed]) -> list[Replayed]:
    """The flips, those first that may be escapes: what only the second model passes, and of it what
    a person judged to be defective, then what nobody judged; the higher the first model's score,
    the earlier."""

    def key(plate: Replayed) -> tuple[Any, ...]:
        assert plate.a is not None
        assert plate.b is not None
        opinion = {Verdict.FAIL: 0, Verdict.PASS: 2}.get(plate.reviewed or Verdict.UNDECIDED, 1)
        kinds = ("FAIL -> PASS", "UNDECIDED -> PASS", "FAIL -> UNDECIDED")
        kind = kinds.index(plate.flip) if plate.flip in kinds else len(kinds)
        return not plate.is_to_sign, kind, opinion, -(plate.a.score or 0.0), plate.result_id

    return sorted((plate for plate in plates if plate.flip), key=key)


def unplayed_counts(plates: Sequence[Replayed]) -> Iterator[tuple[str, str, int]]:
    """(recorded verdict, why it was not replayed, how many), the most first."""
    counts: dict[tuple[str, str], int] = {}
    for plate in plates:
        if plate.unplayed:
            key = (str(plate.recorded.verdict), plate.unplayed)
            counts[key] = counts.get(key, 0) + 1
    for (verdict, why), count in sorted(counts.items(), key=lambda item: -item[1]):
        yield verdict, why, count


def row_lists(plates: Sequence[Replayed]) -> tuple[str, str]:
    """JSON of the flips to sign, in order of risk, and of those that a person confirmed."""
    flips = [plate for plate in by_risk(plates) if plate.is_to_sign]
    confirmed = [plate.result_id for plate in flips if plate.reviewed is Verdict.FAIL]
    return json.dumps([plate.result_id for plate in flips]), json.dumps(confirmed)
