"""Where models lie: a folder of folders, each named by its model's id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from models.card import CARD_FILE, ModelError

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")


def shipped_weights() -> Path:
    """The models that come with the package."""
    return Path(str(resources.files("models"))) / "weights"


def list_models(search: Sequence[Path] = ()) -> dict[str, Path]:
    """Folder of each model, by id, of the given folders and then of the shipped weights."""
    found: dict[str, Path] = {}
    for root in (*search, shipped_weights()):
        for card in sorted(root.glob(f"*/{CARD_FILE}")):
            found.setdefault(card.parent.name, card.parent)
    return found


def find_model(model_id: str, search: Sequence[Path] = ()) -> Path:
    """The folder of the model `model_id`, first in `search`, then among the shipped weights.

    Raises `ModelError` that lists the models there are.
    """
    models = list_models(search)
    if _ID.fullmatch(model_id) and model_id in models:
        return models[model_id]
    known = ", ".join(sorted(models)) or "none"
    raise ModelError(f"{model_id}: no such model; there are: {known}")
