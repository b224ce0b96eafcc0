"""What people do with recipes: propose, approve, check. Each step gives the row that is to be
submitted to the journal process, which holds it against the log once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from models.card import ModelError, read_card
from station import limit_samples
from station.config import ConfigError, Configuration, Loaded, Recipe, load_recipe, parse_recipe
from station.ingress import name_problem
from station.ipc import Json
from station.log_reader import Reader
from station.machine import test_on_this_machine
from station.model_signatures import UnsignedModel
from station.model_store import ModelStore, judge_folder
from station.page_door import ACCOUNT
from station.precision import load_classifier
from station.product import configured_judging, fitting, model_folder
from station.promotion import Judging, Shown, evidence, judging
from station.qms import DATABASE, StoreError
from station.recipe_form import as_toml
from station.recipes import (
    MOST_BYTES,
    Finding,
    Named,
    RecipeError,
    RecipeFolder,
    Register,
    Version,
    active_recipe,
    approved_change,
    name_of,
    objection,
    proposed_change,
    register,
)
from station.record import ChangeBody


def read_register(directory: Path) -> Register:
    """What the log in this folder says of recipes; nothing where there is no log yet. Raises
    `RecipeError`."""
    if not (directory / DATABASE).exists():
        return Register()
    try:
        with Reader(directory) as reader:
            return register(reader.recipe_changes())
    except StoreError as error:
        raise RecipeError(str(error)) from error


def is_claimed_by_one_account(version: Version) -> bool:
    """Whether both steps came from one login name that several people may use: that they were two
    is what was typed there, not what was proven."""
    accounts = {version.proposed.account, version.approved.account if version.approved else ""}
    return len(accounts) == 1 and not accounts & {"", ACCOUNT}


def _bound(recipe: Loaded[Recipe], store: ModelStore) -> Recipe:
    """With the sha256 and the limits of its model's card, and the sha256 of its list of limit
    samples, where it says none itself. Raises `ConfigError`."""
    model, folder = recipe.value.model, model_folder(recipe, store)
    try:
        card = read_card(folder)
    except ModelError as error:
        raise ConfigError(f"{recipe.source}: model.id: {error}") from error
    if model.sha256 not in (None, card.sha256):
        raise ConfigError(
            f"{recipe.source}: model.sha256: {folder} holds another model ({card.sha256}); leave "
            "the key out to take that one"
        )
    threshold = card.threshold.value if model.threshold is None else model.threshold
    update = {"sha256": card.sha256, "threshold": threshold}
    if model.unsure_above is None and card.threshold.unsure_above is not None:
        # A threshold of one's own below the card's doubt leaves nothing to doubt.
        update["unsure_above"] = min(card.threshold.unsure_above, threshold)
    return limit_samples.bound(recipe).model_copy(update={"model": model.model_copy(update=update)})


@dataclass(frozen=True, slots=True)
class Desk:
    """One look at a station's recipes."""

    configuration: Loaded[Configuration]
    known: Register

    @classmethod
    def at(cls, configuration: Loaded[Configuration]) -> Desk:
        """Raises `RecipeError`."""
        return cls(configuration, read_register(configuration.value.journal.directory))

    @property
    def folder(self) -> RecipeFolder:
        return RecipeFolder.of(self.configuration.value)

    def active(self) -> Loaded[Recipe]:
        """What judges, or will at the next start. Raises `RecipeError`."""
        try:
            return active_recipe(self.configuration.value)
        except ConfigError as error:
            raise RecipeError(str(error)) from error

    def load(self, name: str) -> Loaded[Recipe]:
        """A version, `active`, or a file by its path. Raises `RecipeError`."""
        try:
            if name == "active":
                return active_recipe(self.configuration.value)
            if name in self.known.versions:
                return self.folder.load(name, self.known.versions[name].sha256)
            if name.endswith(".toml") or name.startswith("shipped:"):
                return load_recipe(name)
        except ConfigError as error:
            raise RecipeError(str(error)) from error
        return self.folder.load(name, self.known.of(name).sha256)

    def findings(self) -> list[Finding]:
        """Files that are not what the log says, and rows that no journal process takes."""
        strange = [Finding("the log", problem) for problem in self.known.strange]
        return self.folder.findings(self.known) + strange

    def next_version(self, id: str) -> int:
        """Of this recipe: above every one that was proposed, and above the active one."""
        active = self.active().value
        return max(self.known.next_version(id), active.version + 1 if active.id == id else 1)

    def draft(self, base: Loaded[Recipe]) -> Recipe:
        """A recipe to be changed into the next version of `base`. Its model is found from the
        folder of versions, too."""
        recipe = base.value
        model, samples = recipe.model, recipe.limit_samples
        place = Path(base.source).parent
        if model.folder is not None and place != self.folder.path:
            model = model.model_copy(update={"folder": str((place / model.folder).resolve())})
        if samples.folder is not None and place != self.folder.path:
            folder = str((place / samples.folder).resolve())
            samples = samples.model_copy(update={"folder": folder})
        update = {"version": self.next_version(recipe.id), "model": model, "limit_samples": samples}
        return recipe.model_copy(update=update)

    def propose(self, text: str, who: str, reason: str) -> ChangeBody:
        """The row that proposes a version; where its text leaves the model's sha256 or threshold
        out, they are written into it, and with them every other key. Raises `RecipeError`."""
        data = text.encode()
        if len(data) > MOST_BYTES:
            raise RecipeError(f"a recipe of {len(data)} bytes; {MOST_BYTES} at most")
        try:
            recipe = parse_recipe(data, "the proposal")
            name = name_of(recipe.value.id, recipe.value.version)
            recipe = replace(recipe, source=str(self.folder.file(name)))
            fitting(self.configuration, recipe)
            bound = _bound(recipe, ModelStore.of(self.configuration.value))
        except ConfigError as error:
            raise RecipeError(str(error)) from error
        if name not in self.known.versions and recipe.value.version < self.next_version(
            recipe.value.id
        ):
            raise RecipeError(
                f"{name}: the next version of {recipe.value.id} is "
                f"{self.next_version(recipe.value.id)}"
            )
        station_id = self.configuration.value.station.id
        if bound != recipe.value:
            text = as_toml(bound)
            recipe = parse_recipe(text.encode(), recipe.source)
        row = proposed_change(station_id, recipe, text, who, reason)
        self._must_be_allowed(row)
        return row

    def propose_changed(self, recipe: Recipe, who: str, reason: str) -> ChangeBody:
        """The same of a form's recipe. Raises `RecipeError`."""
        return self.propose(as_toml(recipe), who, reason)

    def approve(self, name: str, who: str, reason: str) -> ChangeBody:
        """The row that approves a version, whose file is the one that was proposed. Raises
        `RecipeError`."""
        version = self.known.of(name)
        self.load(name)
        self.must_be_shown(name)
        row = approved_change(self.configuration.value.station.id, version, who, reason)
        self._must_be_allowed(row)
        return row

    def may_be_activated(self, name: str) -> Loaded[Recipe]:
        """A version that was approved and is whole. Raises `RecipeError`."""
        version = self.known.of(name)
        if version.approved is None:
            raise RecipeError(f"{name}: nobody has approved it; another than its author must")
        return self.load(name)

    def may_be_gone_back_to(self) -> str:
        """Name of the version that judged before the active one, whole as it was. Raises
        `RecipeError`."""
        former = self.known.former
        if former is None:
            raise RecipeError("nothing judged before the active version, by the log")
        self.load(former.name)
        return former.name

    def judging(self) -> Judging:
        """As much of the version in force as evidence is about. Raises `ConfigError`."""
        active = self.known.active
        if active is None:
            return configured_judging(self.configuration.value)
        return judging(active.name, active.table)

    def evidence(self, name: str, rows: Callable[[], list[Json]] | None = None) -> list[Shown]:
        """What the version in force asks of this one, which has another model or looser limits,
        and what rows of the log show of it; nothing where nothing is asked. Raises
        `RecipeError`."""
        version = self.known.of(name)
        if not version.is_bound:
            return []
        try:
            before = self.judging()
            wanted = judging(version.name, version.table)
            if wanted.needs_none_after(before):
                return []
            if rows is not None:
                return evidence(before, wanted, rows())
            with Reader(self.configuration.value.journal.directory) as reader:
                return evidence(before, wanted, reader.model_changes())
        except (ConfigError, StoreError, ValueError) as error:
            raise RecipeError(f"{name}: {error}") from error

    def must_be_shown(self, name: str) -> None:
        """Raises `RecipeError` with what is not."""
        lacking = [f"{one.kind}: {one.problem}" for one in self.evidence(name) if one.problem]
        if lacking:
            raise RecipeError(f"{name}: {'; '.join(lacking)}")

    def named(self, name: str, who: str) -> Named:
        """A version as a person asks for it. Raises `RecipeError`, also where `who` is no name: no
        start could write the row."""
        if problem := name_problem("person", who):
            raise RecipeError(problem)
        version = self.known.of(name)
        return Named(id=version.id, version=version.version, sha256=version.sha256, who=who)

    def test(self, recipe: Loaded[Recipe]) -> None:
        """Load its model, which must reproduce its golden scores here, give the limit samples their
        verdicts, and on a line that was commissioned be signed by people whose keys are trusted.
        Raises `RecipeError`."""
        directory = self.configuration.value.journal.directory
        try:
            fitting(self.configuration, recipe)
            self._must_be_signed(recipe)
            chosen = load_classifier(self.configuration, recipe, 1)
            test_on_this_machine(chosen.classifier, directory)
            pitch_mm = self.configuration.value.camera.pixel_pitch_mm
            findings = limit_samples.findings_offline(recipe, chosen.classifier, pitch_mm)
        except (ConfigError, ModelError, OSError) as error:
            raise RecipeError(f"{recipe.source}: {error}") from error
        if findings:
            raise RecipeError(f"{recipe.source}: limit samples: {'; '.join(findings[:5])}")

    def _must_be_signed(self, recipe: Loaded[Recipe]) -> None:
        settings = self.configuration.value
        if settings.commissioning_file is None:
            return
        judged = judge_folder(settings, model_folder(recipe, ModelStore.of(settings)))
        if isinstance(judged, UnsignedModel):
            raise ConfigError(f"may not judge production: {judged.why}")

    def _must_be_allowed(self, row: ChangeBody) -> None:
        problem = objection(self.known, row.as_json())
        if problem:
            raise RecipeError(problem)
