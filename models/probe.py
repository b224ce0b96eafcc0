"""Whether a folder's model may be loaded at all: tried in a throw-away process, and only there.

What is asked of it: its golden scores; probabilities of two classes for the worst pictures there
are; the same bits twice; and a tile's score whatever tiles go with it.
"""

from __future__ import annotations

import resource
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.card import MAX_MODEL_BYTES, MODEL_FILE, ModelError, read_bounded
from models.classifier import Classifier, read_verified
from models.limited import Json, run_limited, serve_limited
from models.runtimes import CHUNK_TILES, TILE_PX, class_probabilities

_SUM_TOLERANCE = 1e-4
_TOLERANCE = 1e-4
_TIMED_RUNS = 9
_TILES_FILE = "tiles.npy"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Probed:
    """A model that came through."""

    golden_difference: float
    """Largest, from the card's scores."""
    batch_difference: float
    """Largest, of a tile's score among other tiles from its score alone."""
    ms_per_tile: float
    """Median, in chunks, one thread."""
    peak_mb: float
    """Of the process that tried it."""
    has_defect_map: bool
    runtime: str


def probe(folder: Path) -> Probed:
    """Try the model in `folder` in a process of its own. Raises `ModelError` with the reason."""
    return Probed(**run_limited(__name__, {"folder": str(folder.resolve())}))


def scores_of(model: bytes, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probability of a defect of each tile, uint8 (n, 1, 224, 224), by a graph in our form that
    nobody has tried yet. Raises `ModelError`."""
    with tempfile.TemporaryDirectory(prefix="vqi-model-") as folder:
        (Path(folder) / MODEL_FILE).write_bytes(model)
        np.save(Path(folder) / _TILES_FILE, tiles, allow_pickle=False)
        return np.array(run_limited(__name__, {"score": folder})["scores"], np.float32)


def _score(folder: Path) -> Json:
    tiles = np.load(folder / _TILES_FILE, allow_pickle=False)
    model = read_bounded(folder / MODEL_FILE, MAX_MODEL_BYTES)
    scores = class_probabilities("the graph", model, tiles)[:, 1]
    if not np.isfinite(scores).all():
        raise ModelError("the graph gives NaN or infinity for tiles of plates")
    first = tiles[:CHUNK_TILES]
    alone = [class_probabilities("the graph", model, tile[None])[0, 1] for tile in first]
    _check_batch("the graph", float(np.abs(scores[:CHUNK_TILES] - alone).max()), _TOLERANCE)
    return {"scores": [float(score) for score in scores]}


def _probe(asked: Json) -> Json:
    if "score" in asked:
        return _score(Path(asked["score"]))
    folder = Path(asked["folder"])
    classifier = Classifier.load(folder, sessions=2)
    golden = classifier.self_test()
    tiles = np.concatenate([extreme_tiles(), classifier.golden_tiles()])
    _check_probabilities(folder, tiles)
    batch = _batch_difference(classifier, tiles)
    _check_batch(str(folder), batch, classifier.card.golden.tolerance)
    found = classifier.find(tiles[:CHUNK_TILES])
    return asdict(
        Probed(
            golden_difference=golden.largest_difference,
            batch_difference=batch,
            ms_per_tile=round(_ms_per_tile(classifier, tiles), 3),
            peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB, 1),
            has_defect_map=found.defect_maps is not None,
            runtime=classifier.runtime,
        )
    )


def extreme_tiles() -> NDArray[np.uint8]:
    """What no camera should show and may: uint8 (n, 1, 224, 224)."""
    size = (TILE_PX, TILE_PX)
    y, x = np.indices(size)
    one_pixel = np.zeros(size)
    one_pixel[TILE_PX // 2, TILE_PX // 2] = 255
    noise = np.random.default_rng(0).integers(0, 256, size)
    drawn = [
        np.zeros(size), np.full(size, 255), np.ones(size), (x + y) % 2 * 255, y % 2 * 255,
        x * 255 // (TILE_PX - 1), one_pixel, 255 - one_pixel, noise,
    ]  # fmt: skip
    return np.stack(drawn).astype(np.uint8)[:, None]


def _check_probabilities(folder: Path, tiles: NDArray[np.uint8]) -> None:
    name, model = str(folder / MODEL_FILE), read_verified(folder)[1]
    first, second = (class_probabilities(name, model, tiles) for _ in range(2))
    if not np.isfinite(first).all():
        raise ModelError(f"{name}: gives NaN or infinity for an extreme picture")
    if first.min() < 0 or first.max() > 1 or np.abs(first.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
        raise ModelError(
            f"{name}: gives no probabilities: they lie between {first.min():.4g} and "
            f"{first.max():.4g}, a tile's two add up to {first.sum(axis=1).min():.4g} to "
            f"{first.sum(axis=1).max():.4g}"
        )
    if first.tobytes() != second.tobytes():
        raise ModelError(f"{name}: gives other bits for the same picture the second time")


def _check_batch(name: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise ModelError(
            f"{name}: a tile scores otherwise among other tiles than alone, by {difference:.2g}"
        )


def _batch_difference(classifier: Classifier, tiles: NDArray[np.uint8]) -> float:
    alone = np.concatenate([classifier.scores(tile[None]) for tile in tiles])
    together, turned = classifier.scores(tiles), classifier.scores(tiles[::-1])[::-1]
    return float(max(np.abs(together - alone).max(), np.abs(turned - alone).max()))


def _ms_per_tile(classifier: Classifier, tiles: NDArray[np.uint8]) -> float:
    times, chunk = [], tiles[:CHUNK_TILES]
    for _ in range(_TIMED_RUNS):
        start = perf_counter()
        classifier.scores(chunk)
        times.append(perf_counter() - start)
    return float(np.median(times)) * 1e3 / len(chunk)


if __name__ == "__main__":
    serve_limited(_probe)
