"""This machine's own bits of the golden scores: recorded once, compared at every start.

A changed processor or runtime may change the last bits of a score within the card's tolerance;
somebody must then say that the new bits are meant (`vqi check --accept-scores`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from models.card import ModelError
from models.classifier import BitsChanged, Classifier
from station.record import utc_now

_FILE = "machine-scores.json"
ACCEPT = "`vqi check --accept-scores`"


def test_on_this_machine(classifier: Classifier, directory: Path) -> dict[str, str]:
    """Self-test `classifier` against its card and this machine's record; record on first sight.

    Returns the record, for the log's `start` row: a change of it is a chained one. Raises
    `ModelError` that names what differs.
    """
    recorded = _read(directory)
    known = recorded.get(_key(classifier), recorded.get(_former_key(classifier)))
    if known is None:
        return _record(classifier, directory, {"accepted": "on first sight"})
    try:
        classifier.self_test(known)
    except BitsChanged as error:
        raise ModelError(f"{error}: {ACCEPT}") from error
    return known


def accept_scores(classifier: Classifier, directory: Path, who: str) -> None:
    """Record this machine's bits of the golden scores as the right ones, because `who` says so."""
    _record(classifier, directory, {"accepted": f"{utc_now()} by {who}"})


def _record(classifier: Classifier, directory: Path, accepted: dict[str, str]) -> dict[str, str]:
    known = _read(directory)
    entry = known[_key(classifier)] = classifier.machine_bits().as_dict() | accepted
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _FILE
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(known, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return entry


def _key(classifier: Classifier) -> str:
    """Bytes that were derived of the model are others for each version of a recipe."""
    variant = classifier.variant
    derived = variant.derived_sha256 if variant is not None else None
    return _former_key(classifier) + (f" {derived[:16]}" if derived else "")


def _former_key(classifier: Classifier) -> str:
    """As entries were written while a model had one for all that is derived of it."""
    precision = classifier.precision
    return classifier.model_sha256 + ("" if precision == "fp32" else f" {precision}")


def _read(directory: Path) -> dict[str, dict[str, str]]:
    path = directory / _FILE
    try:
        known = TypeAdapter(dict[str, dict[str, str]]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise ModelError(
            f"{path}: damaged: this machine's scores are not known any more; if processor and "
            f"runtime are meant, remove it and run {ACCEPT}"
        ) from error
    return known
