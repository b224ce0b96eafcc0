"""The classifier that runs in the station: verified bytes on the processor."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.card import (
    MAX_GOLDEN_BYTES,
    MAX_MODEL_BYTES,
    MODEL_FILE,
    ModelCard,
    read_bounded,
    read_card,
    sha256_of,
)
from models.card import ModelError as ModelError
from models.graph import GraphRefused, check_self_contained
from models.runtimes import (
    CHUNK_TILES,
    TILE_PX,
    Findings,
    Precision,
    Runner,
    build_runner,
    find,
    runtime_name,
)
from models.runtimes import processor_name as processor_name

_NPY_HEADER_BYTES = 1_000
"""At most, before the pixels."""


class BitsChanged(ModelError):
    """The scores are within the card's tolerance, but not this machine's recorded bits."""


@dataclass(frozen=True, slots=True)
class MachineBits:
    """What a processor and a runtime made of the golden tiles, to the last bit."""

    model_sha256: str
    scores_sha256: str
    """Of the golden scores' float32 bytes."""
    runtime: str

    def as_dict(self) -> dict[str, str]:
        """As it is recorded, and given back to `Classifier.self_test`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """A passed self-test."""

    scores: tuple[float, ...]
    largest_difference: float
    """From the card's scores."""
    bits: MachineBits


@dataclass(frozen=True, slots=True)
class Variant:
    """How the verified weights run in a faster precision, as a gate measured and allowed it."""

    precision: Precision
    threshold: float
    """What the fp32 threshold of the recipe or the card is in this precision."""
    golden_scores: tuple[float, ...]
    derived: Path | None = None
    """int8 only: the bytes that were made of the verified ones."""
    derived_sha256: str | None = None


class Classifier:
    """Scores tiles with one or more one-thread sessions of the same verified model."""

    def __init__(
        self, folder: Path, card: ModelCard, runners: list[Runner], variant: Variant | None
    ) -> None:
        self.card = card
        self.variant = variant
        self.runners = runners
        """A session for each thread."""
        self.is_self_tested = False
        """It reproduced its golden scores in this process."""
        self._folder = folder
        self._runtime = runtime_name(self.precision)

    @classmethod
    def load(
        cls,
        folder: Path,
        sessions: int = 1,
        expected_sha256: str | None = None,
        variant: Variant | None = None,
    ) -> Classifier:
        """Read, verify, build and warm up the model in `folder`; fp32 without a `variant`.

        The sessions are built from the very bytes that were hashed. Raises `ModelError` if card,
        bytes or graph are not what they should be.
        """
        card, model = read_verified(folder, expected_sha256)
        name = str(folder / MODEL_FILE)
        if variant is not None and variant.derived is not None:
            name, model = str(variant.derived), _read_derived(variant)
        precision = "fp32" if variant is None else variant.precision
        runners = [build_runner(name, model, precision) for _ in range(sessions)]
        classifier = cls(folder, card, runners, variant)
        for number in range(sessions):
            classifier._warm_up(number)
        return classifier

    @property
    def model_id(self) -> str:
        return self.card.id

    @property
    def model_sha256(self) -> str:
        return self.card.sha256

    @property
    def precision(self) -> Precision:
        return "fp32" if self.variant is None else self.variant.precision

    @property
    def threshold(self) -> float:
        """The card's default; the recipe's own comes first."""
        return self.card.threshold.value

    def threshold_for(self, recipe_threshold: float | None) -> float:
        """What a tile's score is held against: the recipe's own or the card's, as the gate found it
        again in this precision."""
        if self.variant is not None:
            return self.variant.threshold
        return self.threshold if recipe_threshold is None else recipe_threshold

    def unsure_above_for(self, recipe_unsure_above: float | None) -> float | None:
        """Above what a tile's score is too high to pass without failing: the recipe's own or the
        card's. Known in fp32 only: where there is one, no other precision judges."""
        own = self.card.threshold.unsure_above
        return own if recipe_unsure_above is None else recipe_unsure_above

    @property
    def runtime(self) -> str:
        """Runtime, version, precision and processor: what the last bit of a score depends on."""
        return f"{self._runtime}, {processor_name()}"

    @property
    def sessions(self) -> int:
        return len(self.runners)

    def scores(self, tiles: NDArray[np.uint8], session: int = 0) -> NDArray[np.float32]:
        """Probability of a defect of each tile, float32 (n,); as in `find`."""
        return self.find(tiles, session).scores

    def find(self, tiles: NDArray[np.uint8], session: int = 0) -> Findings:
        """Scores and defect maps of tiles uint8 (n, 1, 224, 224).

        Different threads use different sessions; all give the same bits. What the network puts out
        is returned as it is, NaN included: the verdict deals with it.
        """
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (1, TILE_PX, TILE_PX):
            raise ValueError(
                f"tiles are {tiles.dtype} {tiles.shape}, uint8 (n, 1, 224, 224) wanted"
            )
        return find(self.runners[session], tiles)

    def machine_bits(self) -> MachineBits:
        """This machine's own bits of the golden scores, to be recorded at commissioning."""
        return self.self_test().bits

    def self_test(self, recorded: dict[str, str] | None = None) -> GoldenScores:
        """Score the golden tiles in every session and compare them: with the card (a variant: with
        the gate's record), within the card's tolerance; with `recorded` (`MachineBits.as_dict`),
        bit by bit. Raises `ModelError` that names what differs.
        """
        self.is_self_tested = False
        golden, source, expected = self.card.golden, "card", self.card.golden.scores
        if self.variant is not None:
            source, expected = "gate's record", self.variant.golden_scores
        tiles = self.golden_tiles()
        runs = [self.scores(tiles, number) for number in range(self.sessions)]
        scores = runs[0]
        if not np.isfinite(scores).all():
            raise self._error("the golden tiles score NaN or infinity; restore the model")
        difference = float(np.abs(scores - np.array(expected)).max())
        if not difference <= golden.tolerance:  # also where the recorded ones are no numbers
            raise self._error(
                f"golden scores differ by {difference:.2g} from the {source}, "
                f"{golden.tolerance:.2g} allowed; restore the model, or this runtime or processor "
                "cannot run it"
            )
        if any(run.tobytes() != scores.tobytes() for run in runs):
            raise self._error("two sessions of this machine score the golden tiles differently")
        bits = MachineBits(self.model_sha256, _sha256(scores), self.runtime)
        if recorded is not None:
            self._compare_bits(recorded, bits.as_dict())
        self.is_self_tested = True
        return GoldenScores(tuple(map(float, scores)), difference, bits)

    def _warm_up(self, session: int) -> None:
        # The first runs allocate and are several times slower than the ones a plate waits for.
        tiles = np.full((CHUNK_TILES, 1, TILE_PX, TILE_PX), 128, np.uint8)
        for count in (1, CHUNK_TILES):
            scores = self.scores(tiles[:count], session)
            if scores.shape != (count,) or not np.isfinite(scores).all():
                raise self._error("a plain grey tile scores NaN or infinity; restore the model")

    def golden_tiles(self) -> NDArray[np.uint8]:
        """The card's golden tiles, uint8 (n, 1, 224, 224). Raises `ModelError`."""
        golden = self.card.golden
        path = self._folder / golden.file
        data = read_bounded(path, MAX_GOLDEN_BYTES)
        if sha256_of(data) != golden.sha256:
            raise ModelError(f"{path}: not the golden tiles of this card; restore the model")
        return _read_tiles(path, data, len(golden.scores))

    def _compare_bits(self, recorded: dict[str, str], found: dict[str, str]) -> None:
        changed = [
            f"{key} was {recorded.get(key)!r}, is {value!r}"
            for key, value in found.items()
            if recorded.get(key) != value
        ]
        if changed:
            raise BitsChanged(
                f"{self._folder}: this machine's recorded scores no longer hold: "
                f"{'; '.join(changed)}; find out why, then record them anew"
            )

    def _error(self, reason: str) -> ModelError:
        return ModelError(f"{self._folder}: {reason}")


def read_verified(folder: Path, expected_sha256: str | None = None) -> tuple[ModelCard, bytes]:
    """Card and graph of a model, once its bytes are the card's and the recipe's and hold all that
    they need. Raises `ModelError`."""
    card, path = read_card(folder), folder / MODEL_FILE
    model = read_bounded(path, MAX_MODEL_BYTES)
    found = sha256_of(model)
    if found != card.sha256:
        raise ModelError(
            f"{path}: sha256 {found} is not the card's {card.sha256}: the file is damaged or the "
            "card belongs to other weights; restore both"
        )
    if expected_sha256 not in (None, found):
        raise ModelError(
            f"{path}: sha256 {found}, but the recipe was approved for {expected_sha256}; "
            "restore that model or approve the recipe for this one"
        )
    _check_graph(path, model)
    return card, model


def _read_derived(variant: Variant) -> bytes:
    """int8 bytes, which judge only if they are the very ones that the gate measured."""
    assert variant.derived is not None
    model = read_bounded(variant.derived, MAX_MODEL_BYTES)
    if sha256_of(model) != variant.derived_sha256:
        raise ModelError(f"{variant.derived}: not the bytes that the gate measured")
    _check_graph(variant.derived, model)
    return model


def _check_graph(path: Path, model: bytes) -> None:
    try:
        check_self_contained(model)
    except GraphRefused as error:
        raise ModelError(f"{path}: refused: {error}") from error


def _read_tiles(path: Path, data: bytes, count: int) -> NDArray[np.uint8]:
    """Of an .npz, uint8 (count, 1, 224, 224); nothing larger is unpacked. Raises `ModelError`."""
    wanted = (count, 1, TILE_PX, TILE_PX)
    limit = math.prod(wanted) + _NPY_HEADER_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("tiles.npy") as file:
            unpacked = io.BytesIO(file.read(limit + 1))
        version = np.lib.format.read_magic(unpacked)
        if version != (1, 0):
            raise ValueError(f"of version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(unpacked)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{path}: no archive with `tiles`: {error}") from error
    rest = unpacked.getvalue()[unpacked.tell() :]
    if dtype != np.uint8 or shape != wanted or len(rest) != math.prod(wanted):
        raise ModelError(
            f"{path}: tiles are {dtype} {shape}, {len(rest)} bytes; uint8 {wanted} wanted"
        )
    return np.frombuffer(rest, np.uint8).reshape(wanted)


def _sha256(scores: NDArray[np.float32]) -> str:
    return hashlib.sha256(scores.astype("<f4").tobytes()).hexdigest()
