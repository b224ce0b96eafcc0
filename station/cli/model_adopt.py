"""`vqi model adopt`: a plant's own network, through the same gates as ours. Needs the `train`
extra."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.adopt import Wrapped, Wrapping, wrap
from models.card import (
    GOLDEN_FILE,
    MODEL_FILE,
    MODEL_ID,
    ForeignCard,
    GoldenCard,
    InputCard,
    ModelCard,
    ModelError,
    ThresholdCard,
    sha256_of,
    write_card,
)
from models.classifier import Classifier
from models.probe import Probed, probe, scores_of
from models.training.export import GOLDEN_TILES, TOLERANCE, golden_archive, spread
from station.cli.plates import set_threshold
from station.gate_set import DEFAULT_GATE_SET, GateSet, measure_gate_set, stack
from station.synthesize import CROWDING, PlateSource

_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a strange network comes from, for its card."""

    file: Path
    words: str
    licence: str
    command: str


@dataclass(frozen=True, slots=True)
class PlatePlan:
    """Fresh plates that choose and measure the threshold."""

    plates: int
    false_reject_target: float
    seed: int
    made_by: str


def gate_tiles(source: PlateSource, plates: int, seed: int) -> NDArray[np.uint8]:
    """Labelled tiles of the gate's first plates, uint8 (n, 1, 224, 224). Raises
    `SynthesisError`."""
    tiles = [
        tile
        for number in range(plates)
        for tile in source.plate(
            np.random.default_rng((seed, number)), number % 2 == 1, 0.0, 1.0, CROWDING
        )
        if tile.label is not None
    ]
    return stack(tiles)


def adopt(
    origin: Origin, wrapping: Wrapping, tiles: NDArray[np.uint8], out: Path
) -> tuple[ModelCard, Probed]:
    """Write a model's folder `out`, whose name is the id, once the network has come through; its
    golden tiles are some of `tiles`. Nothing is there otherwise. Raises `ModelError`, OSError."""
    if not re.fullmatch(MODEL_ID, out.name):
        raise ModelError(f"{out}: its name becomes the model's id; lower-case letters, digits, ._-")
    if out.exists():
        raise ModelError(f"{out}: is there already; a model never changes: name another folder")
    wrapped = wrap(origin.file, wrapping)
    try:
        scores = scores_of(wrapped.model, tiles)
    except ModelError as error:
        raise ModelError(f"{origin.file}: refused: {error}") from error
    if np.ptp(scores) == 0:
        raise ModelError(f"{origin.file}: refused: every tile of the plates scores {scores[0]:.4g}")
    chosen = spread(scores, GOLDEN_TILES)
    golden = golden_archive(tiles[chosen])
    card = _card(origin, wrapping, wrapped, out.name, golden, scores[chosen])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adopt-", dir=out.parent) as outer:
        folder = Path(outer) / out.name
        folder.mkdir()
        (folder / MODEL_FILE).write_bytes(wrapped.model)
        (folder / GOLDEN_FILE).write_bytes(golden)
        write_card(folder, card)
        try:
            probed = probe(folder)
        except ModelError as error:
            raise ModelError(
                f"{origin.file}: refused: {str(error).replace(f'{folder.resolve()}', out.name)}"
            ) from error
        shutil.move(folder, out)
    return card, probed


def _card(
    origin: Origin,
    wrapping: Wrapping,
    wrapped: Wrapped,
    id: str,
    golden: bytes,
    scores: NDArray[np.float32],
) -> ModelCard:
    return ModelCard(
        id=id,
        name=origin.file.stem,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        sha256=sha256_of(wrapped.model),
        parameters=wrapped.parameters,
        mflops=wrapped.mflops,
        input=InputCard(front_end=wrapping.words, constants=wrapping.constants),
        threshold=ThresholdCard(
            value=0.5, chosen_by="nobody: even odds as the network says them; choose one on plates"
        ),
        golden=GoldenCard(
            sha256=sha256_of(golden), scores=tuple(map(float, scores)), tolerance=TOLERANCE
        ),
        training=ForeignCard(
            origin=origin.words,
            file=origin.file.name,
            file_sha256=sha256_of(origin.file.read_bytes()),
            opset=wrapped.opset,
            command=origin.command,
        ),
        licence=origin.licence,
    )


def measure(
    out: Path, source: PlateSource, plan: PlatePlan, gate_set: GateSet = DEFAULT_GATE_SET
) -> None:
    """Put the gate set's figure and a threshold chosen on plates onto the card. Raises
    `ModelError` for a network that is no better than chance, `SynthesisError`, `TooFewPlates`."""
    gate = measure_gate_set(Classifier.load(out), gate_set)
    if not gate.auroc > _CHANCE:
        raise ModelError(
            f"{out}: no better than chance on rendered plates (AUROC {gate.auroc:.3f}): is the "
            "other output that of a defect (--defective), or the scaling another?"
        )
    card = Classifier.load(out).card
    write_card(out, card.model_copy(update={"gate": gate}))
    set_threshold(out, source, plan.plates, plan.false_reject_target, plan.seed, plan.made_by)
