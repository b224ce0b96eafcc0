"""Whether a model that was gone back to still judges as it did. Whole stored plates of its last
time are scored again, on the same processor, runtime and precision, and each tile's score must have
the very bits that stand in the plate's record."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import select

from station.config import Configuration, Loaded, Recipe
from station.ipc import Json
from station.log_reader import Reader
from station.offline import Inspection, PictureInspector
from station.precision import load_classifier
from station.qms import IMAGES
from station.recipes import DIFFERS, EQUAL, NOTHING
from station.record import Reason
from station.stored_tiles import NotStored, Pixels, evidence_picture, proved_picture
from station.tables import PLATE
from station.verdict import OF_SCORES

MOST_PLATES = 8
"""Scored again, the last ones."""
_LOOK_AT = 500
"""Records that are looked through for whole plates: of those that pass, few are kept whole."""
_OF_SCORES_ALONE = frozenset({None, Reason.UNSURE})
"""Of a verdict that rests on scores and limits, and on nothing that is beside them."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What came of it."""

    recipe: str
    model_sha256: str
    runtime: str
    results: tuple[str, ...]
    """Scored again, the newest first."""
    tiles: int
    differing: tuple[str, ...]
    """What of which plate is not as it was recorded."""
    passed_over: int
    """Records of this version whose plate cannot be had whole or was not scored whole, or that
    another processor, runtime or precision scored."""

    @property
    def result(self) -> str:
        if not self.results:
            return NOTHING
        return DIFFERS if self.differing else EQUAL

    @property
    def problem(self) -> str:
        """Empty where all is as it was."""
        if not self.differing:
            return ""
        return (
            f"{self.recipe} does not score as it did: {self.differing[0]}"
            f" ({len(self.differing)} of {len(self.results)} stored plates differ)"
        )

    @property
    def detail(self) -> dict[str, str]:
        """For its row."""
        return {
            "result": self.result,
            "recipe": self.recipe,
            "model_sha256": self.model_sha256,
            "runtime": self.runtime,
            "plates": str(len(self.results)),
            "tiles": str(self.tiles),
            "passed_over": str(self.passed_over),
            **({"newest": self.results[0], "oldest": self.results[-1]} if self.results else {}),
            **({"problem": self.problem} if self.problem else {}),
        }


def check_parity(configuration: Loaded[Configuration], recipe: Loaded[Recipe]) -> Parity:
    """Score the last plates of a recipe's version again. Raises `ConfigError`, `ModelError`,
    `StoreError`."""
    classifier = load_classifier(configuration, recipe, 1).classifier
    pitch_mm = configuration.value.camera.pixel_pitch_mm
    inspector = PictureInspector(recipe, classifier, pitch_mm, 1)
    directory = configuration.value.journal.directory
    results: list[str] = []
    differing: list[str] = []
    tiles = passed_over = 0
    with Reader(directory) as reader:
        for body in _records(reader, recipe):
            picture = None
            # Of another one (the belt stopped, the edge is not straight) tiles are missing, and its
            # picture may be cut otherwise when it stands alone.
            is_of_scores = body["reason"] in OF_SCORES and body["tiles"]
            if is_of_scores and body["runtime"] == classifier.runtime:
                picture = whole_plate(directory / IMAGES, body, reader)
            if picture is None:
                passed_over += 1
                continue
            if problem := _difference(body, inspector.inspect(picture), classifier.model_sha256):
                differing.append(f"{body['result_id']}: {problem}")
            results.append(body["result_id"])
            tiles += body["tiles"]
            if len(results) == MOST_PLATES:
                break
    name = f"{recipe.value.id}@{recipe.value.version}"
    sha256, runtime = classifier.model_sha256, classifier.runtime
    return Parity(name, sha256, runtime, tuple(results), tiles, tuple(differing), passed_over)


def _records(reader: Reader, recipe: Loaded[Recipe]) -> Iterator[Json]:
    """Of the plates that this version judged, the newest first."""
    query = (
        select(PLATE.c.seq)
        .where(PLATE.c.recipe_id == recipe.value.id)
        .where(PLATE.c.recipe_version == recipe.value.version)
        .order_by(PLATE.c.seq.desc())
        .limit(_LOOK_AT)
    )
    for row in reader.ask(query):
        body = reader.bodies_at([row.seq])[row.seq]
        if body["recipe_sha256"] == recipe.sha256:
            yield body


def whole_plate(images: Path, body: Json, reader: Reader | None = None) -> Pixels | None:
    """The plate's pixels as they were scored; None where they were not kept, or are gone or
    damaged, which `vqi log verify` looks for. Without `reader` nobody asks for removals."""
    try:
        return evidence_picture(reader, body) if reader else proved_picture(images, body)
    except NotStored:
        return None


def _difference(body: Json, found: Inspection, model_sha256: str) -> str:
    """Empty where places, scores and verdict are the recorded ones."""
    if body["model_sha256"] != model_sha256:
        return f"model {body['model_sha256'][:12]} judged it, {model_sha256[:12]} is here"
    places = np.frombuffer(base64.b64decode(body["tile_grid"]), "<u2").reshape(-1, 2)
    recorded = np.frombuffer(base64.b64decode(body["tile_scores"]), "<f4")
    if [(tile.x_px, tile.y_px) for tile in found.tiles] != [tuple(xy) for xy in places.tolist()]:
        return f"{len(found.tiles)} tiles elsewhere than the {len(places)} recorded ones"
    scores = np.array([tile.score for tile in found.tiles], "<f4")
    if scores.tobytes() != recorded.tobytes():
        changed = int((scores.view("<u4") != recorded.view("<u4")).sum())
        return f"{changed} of {len(scores)} tile scores have other bits"
    # The same scores may be judged otherwise: by another threshold or doubt of the card, say.
    said, now = _judgement(body["verdict"], body["reason"]), _judgement(found.verdict, found.reason)
    if {body["reason"], found.reason} <= _OF_SCORES_ALONE and said != now:
        return f"the verdict is {now}, was {said}"
    return ""


def _judgement(verdict: str, reason: str | None) -> str:
    return f"{verdict} ({reason})" if reason else str(verdict)
