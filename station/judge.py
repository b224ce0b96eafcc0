"""By what one plate is judged: recipe, model, threshold. A plate has one judge from its leading
edge to its record; a station changes its judge between two plates, without a restart, where a
recipe's next version differs in `[model]` only (station/recipe_switch.py)."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass

from models.card import ModelError
from models.classifier import Classifier
from station.config import ConfigError, Configuration, Loaded, Recipe, exit_status_of
from station.heap import give_back_freed
from station.machine import test_on_this_machine
from station.model_signatures import SignedModel, UnsignedModel
from station.model_store import ModelStore, check_bundle, judge_bundle, read_folder
from station.precision import load_classifier
from station.product import model_folder
from station.recipes import name_of

_IN_USE_LIMIT_S = 60.0
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """What stands in a plate's record beside its scores. Frozen: nothing of it changes while a
    plate is judged."""

    recipe: Loaded[Recipe]
    classifier: Classifier
    threshold: float
    """Of the classifier's precision."""
    is_self_tested: bool
    """The classifier reproduced its golden scores in this process."""
    unsure_above: float | None = None
    """A tile's score between it and `threshold` keeps its plate from passing, without failing it;
    None where `threshold` alone divides."""

    @property
    def recipe_threshold(self) -> float:
        """What the recipe says, or its model's card: of fp32, whatever precision judges."""
        own = self.recipe.value.model.threshold
        return self.classifier.threshold if own is None else own

    @property
    def seen_above(self) -> float:
        """Tiles with a higher score say where."""
        unsure = self.unsure_above
        return self.threshold if unsure is None else min(self.threshold, unsure)

    @classmethod
    def of(cls, recipe: Loaded[Recipe], classifier: Classifier) -> Judge:
        """By the limits of the recipe, or of the model's card where it says none."""
        model = recipe.value.model
        threshold = classifier.threshold_for(model.threshold)
        unsure_above = classifier.unsure_above_for(model.unsure_above)
        return cls(recipe, classifier, threshold, classifier.is_self_tested, unsure_above)

    @property
    def name(self) -> str:
        """Of the recipe's version."""
        return name_of(self.recipe.value.id, self.recipe.value.version)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedJudge:
    """A judge that may judge here, and what its tests said."""

    judge: Judge
    why_precision: str
    machine_scores: dict[str, str]
    """This machine's own bits of the golden scores."""
    vouched: SignedModel | UnsignedModel
    """Who vouches for the very weights that were loaded."""

    @property
    def detail(self) -> dict[str, str]:
        """For the row with which it begins to judge."""
        classifier = self.judge.classifier
        return {
            "model_id": classifier.model_id,
            "model_sha256": classifier.model_sha256,
            "threshold": repr(self.judge.threshold),
            "precision": self.why_precision,
            **{f"machine_{key}": value for key, value in self.machine_scores.items()},
            **_signed_names(self.vouched),
        }


def _signed_names(model: SignedModel | UnsignedModel) -> dict[str, str]:
    """Whose word there is for the model, or that there is none."""
    if isinstance(model, UnsignedModel):
        return {"model_signed_by": ""}
    return {"model_signed_by": model.words, "model_digest": model.digest}


def give_back_memory(former: weakref.ref[Classifier]) -> None:
    """Once no plate has the former judge any more, let the kernel have what its sessions took: the
    C library keeps freed memory for each thread that ever asked for some, and a station that
    changed its judge twenty times would hold twenty models' worth. Takes some ms; not for a thread
    that somebody waits for."""
    deadline = time.monotonic() + _IN_USE_LIMIT_S
    while former() is not None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    give_back_freed()


def load_judge(configuration: Loaded[Configuration], recipe: Loaded[Recipe]) -> LoadedJudge:
    """Load the recipe's model from the very bytes that are hashed, with a session for each inspect
    thread, in the fastest precision that its gate has passed here; it must reproduce its golden
    scores and this machine's bits of them (I12). Raises `ConfigError`, `ModelError`."""
    chosen = load_classifier(configuration, recipe, configuration.value.station.inspect_threads)
    classifier, folder = chosen.classifier, configuration.value.journal.directory
    try:
        scores = test_on_this_machine(classifier, folder)
    except OSError as error:
        raise ConfigError(
            f"{configuration.source}: journal.directory: {folder} cannot be used: {error.strerror}",
            exit_status_of(error),
        ) from error
    model = vouched(configuration.value, recipe, classifier)
    return LoadedJudge(Judge.of(recipe, classifier), chosen.why, scores, model)


def vouched(
    settings: Configuration, recipe: Loaded[Recipe], classifier: Classifier
) -> SignedModel | UnsignedModel:
    """Raises `ConfigError`. Hashes the whole model: not for a thread that somebody waits for."""
    folder = model_folder(recipe, ModelStore.of(settings))
    try:
        bundle = read_folder(folder)
        found = judge_bundle(settings, bundle)
        # The card has the sha256 of graph and golden tiles.
        is_loaded = isinstance(found, UnsignedModel) or check_bundle(bundle) == classifier.card
    except ModelError as error:
        return UnsignedModel(str(error))
    return found if is_loaded else UnsignedModel(f"{folder}: changed since the station loaded it")
