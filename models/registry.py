"""Where models lie: those that come with the package, by id, and exported ones, by their folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from models.card import CARD_FILE, ModelError, read_card


def shipped_weights() -> Path:
    """The models that come with the package."""
    return Path(str(resources.files("models"))) / "weights"


def list_models() -> dict[str, Path]:
    """Folder of each shipped model, by id."""
    cards = sorted(shipped_weights().glob(f"*/{CARD_FILE}"))
    return {card.parent.name: card.parent for card in cards}


def shipped_model(model_id: str) -> Path:
    """Its folder. Raises `ModelError` that lists the models there are."""
    models = list_models()
    if model_id in models:
        return models[model_id]
    known = ", ".join(sorted(models)) or "none"
    raise ModelError(f"{model_id}: no such model; there are: {known}, and folders of exported ones")


def exported_model(folder: Path, model_id: str) -> Path:
    """`folder`, which holds the model of this id. Raises `ModelError`."""
    found = read_card(folder).id
    if found != model_id:
        raise ModelError(f"{folder}: holds the model {found}, not {model_id}")
    return folder


def find_model(name: str) -> Path:
    """The folder of a shipped model, by its id, or of an exported one, by its path.

    Raises `ModelError` that lists the models there are.
    """
    folder = Path(name)
    # An id is a shipped model's even where a folder of that name happens to lie.
    if name not in list_models() and (folder / CARD_FILE).is_file():
        return folder
    return shipped_model(name)
