"""The classifier that runs in the station: verified bytes in ONNX Runtime on the processor."""

from __future__ import annotations

import hashlib
import io
import platform
import zipfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.card import (
    MODEL_FILE,
    ModelCard,
    read_bounded,
    read_card,
    sha256_of,
)
from models.card import ModelError as ModelError
from models.graph import GraphRefused, check_self_contained

TILE_PX = 224
CHUNK_TILES = 4
"""Tiles that go through the graph at once; more of them would leave the processor's cache."""

_PROVIDER = "CPUExecutionProvider"
_MAX_MODEL_BYTES = 200_000_000
_MAX_GOLDEN_BYTES = 20_000_000
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


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


class Classifier:
    """Scores tiles with one or more one-thread sessions of the same verified model."""

    def __init__(self, folder: Path, card: ModelCard, sessions: list[ort.InferenceSession]) -> None:
        self.card = card
        self._folder = folder
        self._sessions = sessions

    @classmethod
    def load(
        cls, folder: Path, sessions: int = 1, expected_sha256: str | None = None
    ) -> Classifier:
        """Read, verify, build and warm up the model in `folder`.

        The sessions are built from the very bytes that were hashed. Raises `ModelError` if card,
        bytes or graph are not what they should be.
        """
        card = read_card(folder)
        model = _read_verified(folder, card, expected_sha256)
        classifier = cls(folder, card, [_build(folder, model) for _ in range(sessions)])
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
    def threshold(self) -> float:
        """The card's default; the recipe's own comes first."""
        return self.card.threshold.value

    @property
    def runtime(self) -> str:
        """Runtime, version, precision and processor: what the last bit of a score depends on."""
        return f"onnxruntime {ort.__version__} {self.card.precision}, {processor_name()}"

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def scores(self, tiles: NDArray[np.uint8], session: int = 0) -> NDArray[np.float32]:
        """Probability of a defect of each tile, float32 (n,), for tiles uint8 (n, 1, 224, 224).

        Different threads use different sessions; all give the same bits. What the network puts out
        is returned as it is, NaN included: the verdict deals with it.
        """
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (1, TILE_PX, TILE_PX):
            raise ValueError(
                f"tiles are {tiles.dtype} {tiles.shape}, uint8 (n, 1, 224, 224) wanted"
            )
        chunks = [
            self._run(tiles[start : start + CHUNK_TILES], session)
            for start in range(0, len(tiles), CHUNK_TILES)
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, np.float32)

    def machine_bits(self) -> MachineBits:
        """This machine's own bits of the golden scores, to be recorded at commissioning."""
        return self.self_test().bits

    def self_test(self, recorded: dict[str, str] | None = None) -> GoldenScores:
        """Score the golden tiles in every session and compare them: with the card, within its
        tolerance; with `recorded` (`MachineBits.as_dict`), bit by bit. Raises `ModelError` that
        names what differs.
        """
        golden = self.card.golden
        tiles = self._golden_tiles()
        runs = [self.scores(tiles, number) for number in range(self.sessions)]
        scores = runs[0]
        if not np.isfinite(scores).all():
            raise self._error("the golden tiles score NaN or infinity; restore the model")
        difference = float(np.abs(scores - np.array(golden.scores)).max())
        if difference > golden.tolerance:
            raise self._error(
                f"golden scores differ by {difference:.2g} from the card, {golden.tolerance:.2g} "
                "allowed; restore the model, or this runtime or processor cannot run it"
            )
        if any(run.tobytes() != scores.tobytes() for run in runs):
            raise self._error("two sessions of this machine score the golden tiles differently")
        bits = MachineBits(self.model_sha256, _sha256(scores), self.runtime)
        if recorded is not None:
            self._compare_bits(recorded, bits.as_dict())
        return GoldenScores(tuple(map(float, scores)), difference, bits)

    def _run(self, tiles: NDArray[np.uint8], session: int) -> NDArray[np.float32]:
        running = self._sessions[session]
        name = running.get_inputs()[0].name
        probabilities: NDArray[np.float32] = running.run(None, {name: tiles})[0]
        return probabilities[:, 1]

    def _warm_up(self, session: int) -> None:
        # The first runs allocate and are several times slower than the ones a plate waits for.
        tiles = np.full((CHUNK_TILES, 1, TILE_PX, TILE_PX), 128, np.uint8)
        for count in (1, CHUNK_TILES):
            scores = self._run(tiles[:count], session)
            if scores.shape != (count,) or not np.isfinite(scores).all():
                raise self._error("a plain grey tile scores NaN or infinity; restore the model")

    def _golden_tiles(self) -> NDArray[np.uint8]:
        golden = self.card.golden
        path = self._folder / golden.file
        data = read_bounded(path, _MAX_GOLDEN_BYTES)
        if sha256_of(data) != golden.sha256:
            raise ModelError(f"{path}: not the golden tiles of this card; restore the model")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                tiles: NDArray[np.uint8] = archive["tiles"]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path}: no archive with `tiles`: {error}") from error
        wanted = (len(golden.scores), 1, TILE_PX, TILE_PX)
        if tiles.dtype != np.uint8 or tiles.shape != wanted:
            raise ModelError(
                f"{path}: tiles are {tiles.dtype} {tiles.shape}, uint8 {wanted} wanted"
            )
        return tiles

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


def _read_verified(folder: Path, card: ModelCard, expected_sha256: str | None) -> bytes:
    path = folder / MODEL_FILE
    model = read_bounded(path, _MAX_MODEL_BYTES)
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
    try:
        check_self_contained(model)
    except GraphRefused as error:
        raise ModelError(f"{path}: refused: {error}") from error
    return model


def _build(folder: Path, model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=[_PROVIDER])
    except Exception as error:  # the runtime raises a dozen unrelated classes
        raise ModelError(f"{folder / MODEL_FILE}: ONNX Runtime refuses it: {error}") from error
    reason = _mismatch(session)
    if reason:
        raise ModelError(f"{folder / MODEL_FILE}: {reason}")
    return session


def _mismatch(session: ort.InferenceSession) -> str | None:
    """What is wrong with provider, inputs or outputs; None if they are ours."""
    if session.get_providers() != [_PROVIDER]:
        return f"runs on {session.get_providers()}, {_PROVIDER} wanted"
    inputs = [(i.type, i.shape[1:], isinstance(i.shape[0], int)) for i in session.get_inputs()]
    if inputs != [("tensor(uint8)", [1, TILE_PX, TILE_PX], False)]:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in session.get_inputs())
        return f"takes {found}; one input tensor(uint8) (n, 1, 224, 224) wanted"
    outputs = [(o.type, o.shape[1:]) for o in session.get_outputs()]
    if outputs != [("tensor(float)", [2])]:
        found = ", ".join(f"{o.name} {o.type} {o.shape}" for o in session.get_outputs())
        return f"gives {found}; one output tensor(float) (n, 2), good and defective, wanted"
    return None


@cache
def processor_name() -> str:
    """Model name, family and the instruction sets that choose the runtime's kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    sets = " ".join(each for each in _INSTRUCTION_SETS if each in flags)
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{name} ({family}; {sets})"


def _sha256(scores: NDArray[np.float32]) -> str:
    return hashlib.sha256(scores.astype("<f4").tobytes()).hexdigest()
