"""The model card: what a network is, what it was made from and what it was seen to do."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CARD_FILE = "card.json"
MODEL_FILE = "model.onnx"
MODEL_ID = r"^[a-z0-9][a-z0-9._-]*$"
GOLDEN_FILE = "golden.npz"
_SHA256 = "^[0-9a-f]{64}$"
MAX_CARD_BYTES = 1_000_000
MAX_MODEL_BYTES = 200_000_000
MAX_GOLDEN_BYTES = 20_000_000


class ModelError(Exception):
    """A model is missing, damaged or not what its card says: names the folder and the reason."""


class CardPart(BaseModel):
    """Frozen; unknown keys are errors, and so are NaN and infinity: nothing differs from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputCard(CardPart):
    """Tiles as the graph takes them: (n, channels, size_px, size_px)."""

    size_px: Literal[224] = 224
    channels: Literal[1] = 1
    dtype: Literal["uint8"] = "uint8"
    front_end: str
    """What the graph does first, in words."""
    constants: dict[str, float]
    """Fixed scaling constants inside the graph; they never depend on a tile."""


class OutputCard(CardPart):
    """Probabilities (n, 2) of the classes, in this order."""

    dtype: Literal["float32"] = "float32"
    classes: tuple[Literal["good"], Literal["defective"]] = ("good", "defective")


class ThresholdCard(CardPart):
    """The default threshold; a recipe's own comes first."""

    value: float = Field(ge=0, le=1)
    """A tile whose probability of a defect is above this fails its plate."""
    unsure_above: float | None = Field(None, ge=0, le=1)
    """A plate with a tile above this does not pass, even if none fails; None: `value` divides."""
    chosen_by: str
    """On what, for which target, with what interval."""

    @model_validator(mode="after")
    def _limits_agree(self) -> ThresholdCard:
        if self.unsure_above is not None and self.unsure_above > self.value:
            raise ValueError(f"unsure_above {self.unsure_above:g} is above value {self.value:g}")
        return self


class GoldenCard(CardPart):
    """Tiles whose scores the model must reproduce before it may judge."""

    file: str = Field(GOLDEN_FILE, pattern="^[a-z0-9][a-z0-9._-]*$")
    sha256: str = Field(pattern=_SHA256)
    scores: tuple[float, ...] = Field(min_length=1)
    tolerance: float = Field(1e-4, gt=0, le=1e-2)


class TrainingCard(CardPart):
    """What the weights were made from."""

    data_sha256: str = Field(pattern=_SHA256)
    """Of the labels and the tiles' bytes."""
    good: int
    defective: int
    groups: int
    recipe: str
    seed: int
    epochs: int
    command: str
    code_revision: str


class ForeignCard(CardPart):
    """A network that was trained elsewhere: what is known of it (`vqi model adopt`)."""

    origin: str = Field(min_length=1)
    """Who trained it, on what, as far as that was said."""
    file: str
    file_sha256: str = Field(pattern=_SHA256)
    """Of the file as it came; the graph around it is ours."""
    opset: int
    command: str


class GateSetCard(CardPart):
    """Labelled tiles of rendered plates, on which a faster precision is held against fp32. Anybody
    can render them again; whether they came out the same, `sha256` and `auroc` tell."""

    recipe: str = Field(min_length=1)
    pixel_pitch_mm: float = Field(gt=0)
    scan_line_px: int = Field(gt=0)
    plates: int = Field(ge=10)
    """Every other one is defective."""
    seed: int
    tiles: int
    defective: int
    sha256: str = Field(pattern=_SHA256)
    """Of the tiles' pixels and labels, where the card was written."""
    auroc: float = Field(ge=0, le=1)
    """Of these weights in fp32."""


class MeasuredCard(CardPart):
    """One figure with its 95 % interval and the command that made it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    samples: int
    command: str
    model_sha256: str = Field(pattern=_SHA256)
    """Of the weights that it was measured on."""


class ModelCard(CardPart):
    """`card.json`, beside `model.onnx`."""

    id: str = Field(pattern=MODEL_ID)
    name: str
    created_at: str
    sha256: str = Field(pattern=_SHA256)
    """Of the bytes of `model.onnx`."""
    precision: Literal["fp32"] = "fp32"
    parameters: int
    mflops: float
    """2 x multiply-accumulates of one tile, counted from the graph, front end included."""
    input: InputCard
    output: OutputCard = OutputCard()
    threshold: ThresholdCard
    golden: GoldenCard
    training: TrainingCard | ForeignCard
    gate: GateSetCard | None = None
    measured: tuple[MeasuredCard, ...] = ()
    licence: str = "MIT"

    @model_validator(mode="after")
    def _figures_are_of_these_weights(self) -> ModelCard:
        for figure in self.measured:
            if figure.model_sha256 != self.sha256:
                raise ValueError(
                    f"measured: {figure.name} is a figure of other weights "
                    f"({figure.model_sha256[:12]}...); measure it again"
                )
        return self


def read_card(folder: Path) -> ModelCard:
    """The card of the model in `folder`. Raises `ModelError` if it is missing or does not parse."""
    path = folder / CARD_FILE
    try:
        card = ModelCard.model_validate_json(read_bounded(path, MAX_CARD_BYTES))
    except ValidationError as error:
        raise ModelError(f"{path}: not a model card: {_first_mistake(error)}") from error
    if card.id != folder.resolve().name:
        raise ModelError(f"{path}: the card of {card.id}; the folder must have its name")
    return card


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card, whole or not at all."""
    temporary = folder / f"{CARD_FILE}.part"
    temporary.write_text(card.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / CARD_FILE)


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a model's file. Raises `ModelError` if it is missing or absurdly large."""
    try:
        if path.stat().st_size > limit_bytes:
            raise ModelError(f"{path}: larger than {limit_bytes} bytes; not a file of ours")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; restore the model") from error


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"]) or "the file"
    return f"{key}: {mistake['msg']}"
