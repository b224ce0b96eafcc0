"""By what one plate is judged: recipe, model, threshold. A plate has one judge from its leading
edge to its record; a station changes its judge between two plates, without a restart, where a
recipe's next version differs in `[model]` only (station/recipe_switch.py)."""

from __future__ import annotations

from dataclasses import dataclass

from models.classifier import Classifier
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.machine import test_on_this_machine
from station.precision import load_classifier


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


@dataclass(frozen=True, slots=True, eq=False)
class LoadedJudge:
    """A judge that may judge here, and what its tests said."""

    judge: Judge
    why_precision: str
    machine_scores: dict[str, str]
    """This machine's own bits of the golden scores."""

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
        }


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
            f"{configuration.source}: journal.directory: {folder} cannot be used: {error.strerror}"
        ) from error
    threshold = classifier.threshold_for(recipe.value.model.threshold)
    judge = Judge(recipe, classifier, threshold, is_self_tested=True)
    return LoadedJudge(judge, chosen.why, scores)
