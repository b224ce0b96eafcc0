"""This machine's own bits of the golden scores: recorded once, compared at every start.

A changed processor or runtime may change the last bits of a score within the card's tolerance;
somebody must then say that the new bits are meant (`vqi check --accept-scores`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from models.classifier import Classifier

_FILE = "machine-scores.json"


def test_on_this_machine(classifier: Classifier, directory: Path) -> dict[str, str]:
    """Self-test `classifier` against its card and this machine's record; record on first sight.

    Returns what was found, for the log. Raises `ModelError` that names what differs.
    """
    known = _read(directory).get(classifier.model_sha256)
    bits = classifier.self_test(known).bits.as_dict()
    if known is None:
        accept_scores(classifier, directory)
    return bits


def accept_scores(classifier: Classifier, directory: Path) -> None:
    """Record this machine's bits of the golden scores as the right ones."""
    known = _read(directory)
    known[classifier.model_sha256] = classifier.machine_bits().as_dict()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _FILE
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(known, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _read(directory: Path) -> dict[str, dict[str, str]]:
    try:
        known: dict[str, dict[str, str]] = json.loads((directory / _FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known
