"""Plates that are rendered once and scored in every precision, on all cores."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.agreement import auroc
from models.card import GateSetCard
from models.classifier import Classifier
from models.runtimes import Precision, Runner, defect_scores
from station.config import Recipe, load_recipe
from station.synthesize import CROWDING, LabelledTile, PlateSource

Scores = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Scorers = dict[Precision, list[Runner]]
"""A session for each worker, in each precision."""
OnPlate = Callable[[], object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GateSet:
    """Labelled tiles that anybody can render again."""

    recipe: str
    pixel_pitch_mm: float
    scan_line_px: int
    plates: int
    seed: int

    @classmethod
    def of(cls, card: GateSetCard) -> GateSet:
        return cls(card.recipe, card.pixel_pitch_mm, card.scan_line_px, card.plates, card.seed)


DEFAULT_GATE_SET = GateSet("shipped:demo-lgp", 0.1, 4096, plates=60, seed=20_260)
"""What `vqi model export` writes on a card, and of a model whose card names none."""


@dataclass(frozen=True, slots=True)
class GateTiles:
    """The gate set's labels and what each precision made of its tiles."""

    labels: NDArray[np.int64]
    plates: NDArray[np.int64]
    """Number of each tile's plate."""
    scores: dict[Precision, Scores]
    sha256: str
    """Of pixels and labels."""


class Workers:
    """Threads that each render with a source and score with a session of their own."""

    def __init__(
        self, recipe: Recipe, pixel_pitch_mm: float, scan_line_px: int, count: int
    ) -> None:
        """Raises ValueError if the lane does not fit in the scan line."""
        self._count = count
        self._idle: queue.SimpleQueue[tuple[int, PlateSource]] = queue.SimpleQueue()
        for number in range(count):
            self._idle.put((number, PlateSource(recipe, pixel_pitch_mm, scan_line_px)))

    def map(
        self, task: Callable[[int, int, PlateSource], T], plates: int, on_plate: OnPlate
    ) -> list[T]:
        """What `task` makes of (plate number, worker, its source), in the order of the plates."""

        def one(number: int) -> T:
            worker, source = self._idle.get()
            try:
                return task(number, worker, source)
            finally:
                self._idle.put((worker, source))

        done: list[T] = []
        with ThreadPoolExecutor(self._count) as pool:
            try:
                for result in pool.map(one, range(plates)):
                    done.append(result)
                    on_plate()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return done


def stack(tiles: Sequence[LabelledTile]) -> Pixels:
    """Their pixels as a network takes them, uint8 (n, 1, 224, 224)."""
    return np.stack([tile.pixels for tile in tiles])[:, None]


def score_all(scorers: Scorers, tiles: Pixels, worker: int) -> dict[Precision, Scores]:
    return {name: defect_scores(runners[worker], tiles) for name, runners in scorers.items()}


def score_gate_set(gate_set: GateSet, scorers: Scorers, on_plate: OnPlate) -> GateTiles:
    """Render the gate set and score its labelled tiles. Raises `ConfigError`, `SynthesisError`."""

    def score(
        number: int, worker: int, source: PlateSource
    ) -> tuple[list[int], dict[Precision, Scores], bytes]:
        rng = np.random.default_rng((gate_set.seed, number))
        tiles = source.plate(rng, number % 2 == 1, 0.0, 1.0, CROWDING)
        labelled = [tile for tile in tiles if tile.label is not None]
        labels, pixels = [int(tile.label or 0) for tile in labelled], stack(labelled)
        digest = hashlib.sha256(pixels.tobytes() + bytes(labels)).digest()
        return labels, score_all(scorers, pixels, worker), digest

    recipe = load_recipe(gate_set.recipe).value
    count = min(map(len, scorers.values()))
    workers = Workers(recipe, gate_set.pixel_pitch_mm, gate_set.scan_line_px, count)
    plates = workers.map(score, gate_set.plates, on_plate)
    return GateTiles(
        labels=np.concatenate([labels for labels, _, _ in plates]).astype(np.int64),
        plates=np.repeat(np.arange(len(plates)), [len(labels) for labels, _, _ in plates]),
        scores={name: np.concatenate([each[name] for _, each, _ in plates]) for name in scorers},
        sha256=hashlib.sha256(b"".join(digest for _, _, digest in plates)).hexdigest(),
    )


def measure_gate_set(
    classifier: Classifier, gate_set: GateSet = DEFAULT_GATE_SET, on_plate: OnPlate = lambda: None
) -> GateSetCard:
    """What a card says of its gate set, measured with the fp32 `classifier`."""
    tiles = score_gate_set(gate_set, {"fp32": classifier.runners}, on_plate)
    return GateSetCard(
        recipe=gate_set.recipe,
        pixel_pitch_mm=gate_set.pixel_pitch_mm,
        scan_line_px=gate_set.scan_line_px,
        plates=gate_set.plates,
        seed=gate_set.seed,
        tiles=len(tiles.labels),
        defective=int(tiles.labels.sum()),
        sha256=tiles.sha256,
        auroc=round(auroc(tiles.labels, tiles.scores["fp32"]), 6),
    )
