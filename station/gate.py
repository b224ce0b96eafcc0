"""The gate that a faster precision must pass before it may judge plates on this processor.

On labelled tiles its AUROC must be fp32's; then, at a threshold chosen again for it, whole plates
of this station must get the verdicts that fp32 gives them, limit samples above all. fp32 and every
candidate score the same pixels in one pass, because rendering is what costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from drivers.camera.settings import CameraSettings
from models.agreement import auroc, auroc_difference, equal_share_bound, matching_threshold
from models.card import MODEL_FILE, ModelError, sha256_of
from models.classifier import Classifier, read_verified
from models.quantise import quantise
from models.runtimes import (
    CHUNK_TILES,
    FASTER,
    Faster,
    Precision,
    Runner,
    build_runner,
    check_available,
    defect_scores,
    instruction_sets,
    processor_name,
    runtime_name,
)
from station.config import Configuration, Loaded, Recipe
from station.gate_set import (
    DEFAULT_GATE_SET,
    GateSet,
    GateTiles,
    OnPlate,
    Scorers,
    Workers,
    score_all,
    score_gate_set,
    stack,
)
from station.machine import accept_scores
from station.model_store import ModelStore
from station.precision import (
    CandidateRecord,
    ChangedPlate,
    GateRecord,
    GateSetRecord,
    variant_of,
    write_record,
)
from station.product import geometry_of, model_folder
from station.record import utc_now
from station.synthesize import CROWDING, LabelledTile, PlateSource

AUROC_TOLERANCE = 0.002
EQUAL_SHARE = 0.995
_ROUNDS = 150
"""Of runs in turn, for a median that a busy machine does not move."""
_CALIBRATION_PLATES = 8
_CALIBRATION_TILES = 64
_PLAIN_SCALE = 2.0
"""Defects go from the faintest that the specification calls one (scale 1) to twice its contrast."""
_LIMIT_SCALE = 1.0
_USUAL_SCAN_LINE_PX = 4096


@dataclass(frozen=True, slots=True)
class GatePlan:
    """How many plates, fixed before any is looked at: adding some until it passes would pass
    anything."""

    gate_set: GateSet | None = None
    """None: the card's."""
    choosing_plates: int = 240
    judged_plates: int = 1500
    """736 would do if no verdict changed; these bear two changes."""
    seed: int = 7_001
    equal_share: float = EQUAL_SHARE


@dataclass(slots=True)
class Candidate:
    """A precision on its way through the gate: a session for each worker, or why it is out."""

    precision: Faster
    runners: list[Runner] = field(default_factory=list)
    refused: str = ""
    runtime: str | None = None
    derived: bytes | None = None
    ms_per_tile: float | None = None
    speed_ratio: float | None = None
    auroc_difference: tuple[float, float, float] | None = None
    threshold: float | None = None
    equal_plates: int | None = None
    equal_share_low: float | None = None
    changed: tuple[ChangedPlate, ...] = ()
    golden_scores: tuple[float, ...] = ()

    def record(self) -> CandidateRecord:
        return CandidateRecord(
            precision=self.precision,
            is_passed=not self.refused,
            refused=self.refused,
            runtime=self.runtime,
            ms_per_tile=self.ms_per_tile,
            speed_ratio=self.speed_ratio,
            auroc_difference=self.auroc_difference,
            threshold=self.threshold,
            equal_plates=self.equal_plates,
            equal_share_low=self.equal_share_low,
            changed=self.changed,
            golden_scores=self.golden_scores,
            derived_sha256=None if self.derived is None else sha256_of(self.derived),
        )


@dataclass(frozen=True, slots=True)
class Plate:
    """What a rendered plate is, and its highest tile score in each precision."""

    number: int
    is_defective: bool
    contrast_scale: float
    highest: dict[Precision, float]

    @property
    def is_limit_sample(self) -> bool:
        return self.is_defective and self.contrast_scale == _LIMIT_SCALE


def plates_to_render(classifier: Classifier, plan: GatePlan) -> int:
    """For whoever shows how far the gate is."""
    plates = _gate_set(classifier, plan).plates + _CALIBRATION_PLATES
    return plates + plan.choosing_plates + plan.judged_plates


def run_gate(
    configuration: Loaded[Configuration],
    recipe: Loaded[Recipe],
    classifier: Classifier,
    command: str,
    plan: GatePlan,
    on_plate: OnPlate,
) -> tuple[GateRecord, Path]:
    """Put every precision that this processor offers through the gate and record what came out;
    the record and where it lies. `classifier` is the recipe's in fp32, a session for each worker.

    Raises `ConfigError`, `ModelError`, `SynthesisError`, OSError.
    """
    settings = configuration.value
    folder = model_folder(recipe, ModelStore.of(settings))
    classifier.self_test()
    gate = Gate(classifier, recipe, settings.camera, plan, on_plate)
    candidates = gate.candidates(folder)
    record = gate.judge(candidates, command)
    made = [each.derived for each in candidates if each.derived and not each.refused]
    derived = {sha256_of(model): model for model in made}
    path = write_record(settings.precision_dir, record, derived)
    for passed in (each for each in record.candidates if each.is_passed):
        variant = variant_of(settings.precision_dir, passed)
        ready = Classifier.load(folder, 1, classifier.model_sha256, variant)
        accept_scores(ready, settings.journal.directory, "the precision gate")
    return record, path


class Gate:
    """One recipe and model, and the steps that candidates take; each step refuses some of them."""

    def __init__(
        self,
        classifier: Classifier,
        recipe: Loaded[Recipe],
        camera: CameraSettings,
        plan: GatePlan,
        on_plate: OnPlate = lambda: None,
    ) -> None:
        """Raises `ConfigError` if the recipe's lane does not fit in the camera's scan line."""
        pitch_mm, width_px = camera.pixel_pitch_mm, _scan_line_px(camera)
        geometry_of(recipe, pitch_mm, width_px)
        self._classifier = classifier
        self._recipe = recipe
        self._plan = plan
        self._on_plate = on_plate
        self._pixel_pitch_mm = pitch_mm
        self._workers = Workers(recipe.value, pitch_mm, width_px, classifier.sessions)
        self._threshold = classifier.threshold_for(recipe.value.model.threshold)

    def candidates(self, folder: Path) -> list[Candidate]:
        """Every faster precision; what cannot run here is refused already."""
        _, model = read_verified(folder, self._classifier.model_sha256)
        tiles = self._calibration_tiles()
        return [self._candidate(folder, model, tiles, Candidate(name)) for name in FASTER]

    def judge(self, candidates: Sequence[Candidate], command: str) -> GateRecord:
        """All the steps, and what came out."""
        fp32_ms = self.compare_speed(candidates)
        gate_set = self.compare_tiles(candidates)
        judged = self.compare_plates(candidates)
        return self.record(candidates, fp32_ms, gate_set, judged, command)

    def record(
        self,
        candidates: Sequence[Candidate],
        fp32_ms_per_tile: float,
        gate_set: GateSetRecord,
        judged: Sequence[Plate],
        command: str,
    ) -> GateRecord:
        """What came out; the golden scores of those that passed are taken here."""
        for each in _live(candidates):
            golden = defect_scores(each.runners[0], self._classifier.golden_tiles())
            each.golden_scores = tuple(map(float, golden))
        return GateRecord(
            made_at=utc_now(),
            command=command,
            model_id=self._classifier.model_id,
            model_sha256=self._classifier.model_sha256,
            recipe_id=self._recipe.value.id,
            recipe_sha256=self._recipe.sha256,
            processor=processor_name(),
            limits=limits_of(instruction_sets()),
            fp32_runtime=runtime_name("fp32"),
            fp32_ms_per_tile=fp32_ms_per_tile,
            fp32_threshold=self._threshold,
            gate_set=gate_set,
            pixel_pitch_mm=self._pixel_pitch_mm,
            seed=self._plan.seed,
            choosing_plates=self._plan.choosing_plates if judged else 0,
            judged_plates=len(judged),
            limit_samples=sum(
                plate.is_limit_sample and plate.highest["fp32"] > self._threshold
                for plate in judged
            ),
            candidates=tuple(each.record() for each in candidates),
        )

    def compare_speed(self, candidates: Sequence[Candidate]) -> float:
        """Refuse what is not faster than fp32 on one thread, run by run in turn; fp32's ms a
        tile."""
        golden = self._classifier.golden_tiles()
        tiles = np.resize(golden, (CHUNK_TILES, *golden.shape[1:]))
        live = _live(candidates)
        runners = [self._classifier.runners[0], *(each.runners[0] for each in live)]
        table = np.array([[_ms_per_tile(each, tiles) for each in runners] for _ in range(_ROUNDS)])
        for column, each in enumerate(live, start=1):
            each.ms_per_tile = _median(table[:, column])
            each.speed_ratio = _median(table[:, 0] / table[:, column])
            if each.speed_ratio <= 1:
                each.refused = f"not faster than fp32 here ({each.speed_ratio:.2f}x)"
        return _median(table[:, 0])

    def compare_tiles(self, candidates: Sequence[Candidate]) -> GateSetRecord:
        """Refuse whose AUROC on the card's gate set is not fp32's. Raises `ModelError` if the set
        is not what the card says."""
        wanted, card = _gate_set(self._classifier, self._plan), self._classifier.card.gate
        if self._plan.gate_set is not None:
            card = None
        tiles = score_gate_set(wanted, self._scorers(candidates), self._on_plate)
        area = auroc(tiles.labels, tiles.scores["fp32"])
        if card is not None and not abs(area - card.auroc) <= AUROC_TOLERANCE:
            raise ModelError(
                f"{self._classifier.model_id}: its gate set came out differently here: fp32 AUROC "
                f"{area:.4f}, the card says {card.auroc:.4f}; restore the model and its card"
            )
        for each in _live(candidates):
            _compare_auroc(each, tiles)
        return GateSetRecord(
            recipe=wanted.recipe,
            seed=wanted.seed,
            plates=wanted.plates,
            tiles=len(tiles.labels),
            defective=int(tiles.labels.sum()),
            sha256=tiles.sha256,
            is_as_on_card=None if card is None else tiles.sha256 == card.sha256,
            auroc=area,
        )

    def compare_plates(self, candidates: Sequence[Candidate]) -> list[Plate]:
        """Choose each threshold on the first plates and compare the verdicts on the others, which
        are given back."""
        scorers, choosing = self._scorers(candidates), self._plan.choosing_plates

        def score(number: int, worker: int, source: PlateSource) -> Plate:
            rng = np.random.default_rng((self._plan.seed, number))
            is_defective, scale = number % 2 == 1, float(rng.uniform(_LIMIT_SCALE, _PLAIN_SCALE))
            scale = _LIMIT_SCALE if number % 4 == 1 else scale
            tiles = stack(source.plate(rng, is_defective, 0.0, scale))
            # A maximum that NaN takes part in is NaN: it cannot hide behind a number.
            scores = score_all(scorers, tiles, worker)
            highest = {name: float(np.max(each)) for name, each in scores.items()}
            return Plate(number, is_defective, scale, highest)

        count = choosing + self._plan.judged_plates if len(scorers) > 1 else 0
        plates = self._workers.map(score, count, self._on_plate)
        for each in _live(candidates):
            share = self._plan.equal_share
            compare_verdicts(each, plates[:choosing], plates[choosing:], self._threshold, share)
        return plates[choosing:]

    def _candidate(
        self, folder: Path, model: bytes, tiles: NDArray[np.uint8], candidate: Candidate
    ) -> Candidate:
        precision, sessions = candidate.precision, self._classifier.sessions
        try:
            check_available(precision)
            candidate.runtime = runtime_name(precision)
            if precision == "int8":
                model = candidate.derived = quantise(model, tiles)
            name = str(folder / MODEL_FILE)
            candidate.runners = [build_runner(name, model, precision) for _ in range(sessions)]
        except ModelError as error:
            candidate.refused = str(error)
        return candidate

    def _calibration_tiles(self) -> NDArray[np.uint8]:
        """Tiles of plates that nothing is measured on, as many defective as good."""

        def draw(number: int, worker: int, source: PlateSource) -> list[LabelledTile]:
            rng = np.random.default_rng((self._plan.seed, 0, number))
            return source.plate(rng, number % 2 == 1, 0.0, _LIMIT_SCALE, CROWDING)

        plates = self._workers.map(draw, _CALIBRATION_PLATES, self._on_plate)
        tiles = [tile for plate in plates for tile in plate]
        chosen: list[LabelledTile] = []
        for label in (0, 1):
            some = [tile for tile in tiles if tile.label == label]
            chosen += some[:: max(1, len(some) * 2 // _CALIBRATION_TILES)]
        return stack(chosen)

    def _scorers(self, candidates: Sequence[Candidate]) -> Scorers:
        live: Scorers = {each.precision: each.runners for each in _live(candidates)}
        return {"fp32": self._classifier.runners, **live}


def compare_verdicts(
    candidate: Candidate,
    choosing: Sequence[Plate],
    judged: Sequence[Plate],
    fp32_threshold: float,
    equal_share: float = EQUAL_SHARE,
) -> None:
    """Choose the candidate's threshold on some plates and refuse it if its verdicts on the others
    are not fp32's."""
    name = candidate.precision
    if not all(np.isfinite(plate.highest[name]) for plate in (*choosing, *judged)):
        candidate.refused = "a plate scores NaN or infinity"
        return
    fails = np.array([plate.highest["fp32"] > fp32_threshold for plate in choosing])
    scores = np.array([plate.highest[name] for plate in choosing])
    threshold = matching_threshold(fails, scores, fp32_threshold)
    changes = (_change(plate, name, fp32_threshold, threshold) for plate in judged)
    candidate.threshold = threshold
    candidate.changed = tuple(change for change in changes if change is not None)
    candidate.equal_plates = len(judged) - len(candidate.changed)
    candidate.equal_share_low = equal_share_bound(len(candidate.changed), len(judged))
    candidate.refused = _objection(candidate.changed, candidate.equal_share_low, equal_share)


def _change(
    plate: Plate, precision: Precision, fp32_threshold: float, threshold: float
) -> ChangedPlate | None:
    fp32_score, score = plate.highest["fp32"], plate.highest[precision]
    if (fp32_score > fp32_threshold) == (score > threshold):
        return None
    return ChangedPlate(
        plate=plate.number,
        change="PASS to FAIL" if score > threshold else "FAIL to PASS",
        is_defective=plate.is_defective,
        is_limit_sample=plate.is_limit_sample,
        contrast_scale=plate.contrast_scale,
        fp32_score=fp32_score,
        score=score,
    )


def _objection(changed: Sequence[ChangedPlate], low: float, wanted: float) -> str:
    """Why these verdicts are not fp32's; empty if they are."""
    lost = [each for each in changed if each.is_limit_sample and each.change == "FAIL to PASS"]
    if lost:
        numbers = ", ".join(str(each.plate) for each in lost)
        return f"passes limit samples that fp32 fails: plates {numbers}"
    if low >= wanted:
        return ""
    return (
        f"{len(changed)} plate verdicts change: at least {low:.2%} are equal at 95 % confidence, "
        f"{wanted:.1%} wanted"
    )


def _live(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [each for each in candidates if not each.refused]


def _gate_set(classifier: Classifier, plan: GatePlan) -> GateSet:
    card = classifier.card.gate
    return plan.gate_set or (DEFAULT_GATE_SET if card is None else GateSet.of(card))


def _compare_auroc(candidate: Candidate, tiles: GateTiles) -> None:
    scores = tiles.scores[candidate.precision]
    if not np.isfinite(scores).all():
        candidate.refused = "a tile of the gate set scores NaN or infinity"
        return
    found = auroc_difference(tiles.labels, tiles.scores["fp32"], scores, tiles.plates)
    candidate.auroc_difference = (found.value, found.low, found.high)
    # The whole interval: a set too small to tell must not let a candidate pass.
    if not max(-found.low, found.high) <= AUROC_TOLERANCE:
        candidate.refused = (
            f"AUROC on the gate set differs by {found.value:+.4f} [{found.low:+.4f}, "
            f"{found.high:+.4f}] from fp32's, {AUROC_TOLERANCE} allowed"
        )


def _ms_per_tile(runner: Runner, tiles: NDArray[np.uint8]) -> float:
    started = perf_counter()
    runner.run(tiles)
    return (perf_counter() - started) * 1000 / len(tiles)


def _median(values: NDArray[np.float64]) -> float:
    return round(float(np.median(values)), 3)


def _scan_line_px(camera: CameraSettings) -> int:
    """Of a camera that is not opened for this."""
    if camera.type == "simulated":
        return camera.width
    features = camera.features if camera.type == "genicam" else {}
    return int(features.get("Width", _USUAL_SCAN_LINE_PX))


def limits_of(found: Sequence[str]) -> tuple[str, ...]:
    """What a processor with these instruction sets lacks that a faster one of its kind has."""
    if "avx2" not in found:
        return ()
    lacking = {
        "avx512f": "no AVX512: fp32 takes about one and a half times as long as with it",
        "avx512_vnni": "no AVX512 VNNI: int8 gains little",
        "avx512_bf16": "no AVX512 BF16: bf16 is not offered",
    }
    return tuple(text for name, text in lacking.items() if name not in found)
