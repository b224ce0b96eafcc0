"""Recipes on the page: what there is, what is in each, who proposes, who approves, what judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from station.config import Loaded, Recipe
from station.recipe_desk import Desk
from station.recipe_form import (
    NotARecipe,
    RecipeField,
    differences,
    fields,
    flat,
    read_form,
    written,
)
from station.recipes import (
    RecipeError,
    Register,
    Step,
    Version,
    is_one_person,
    name_of,
    register,
)
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, conflict, not_found
from station.web.pages import WebRouter

router = WebRouter("/engineer")

CONFIGURED = "configured"
"""State of the recipe that the configuration names, while nothing was ever activated."""


class StepShown(BaseModel):
    """Who did a step, when and why."""

    who: str
    at: str
    reason: str
    account: str
    """Login name that it came from; the page's own where the person was signed in there."""


class VersionShown(BaseModel):
    """One version of a recipe, as the log has it."""

    recipe: str
    id: str
    version: int
    state: Literal["proposed", "approved", "active", "configured"]
    sha256: str
    proposed: StepShown | None = None
    approved: StepShown | None = None
    activated: StepShown | None = None
    problem: str = ""
    """Of its file: why it cannot judge."""


class SwitchShown(BaseModel):
    """An activation on its way, or why the last one did not come about."""

    wanted: str = ""
    who: str = ""
    stage: str = ""
    problem: str = ""


class ParityShown(BaseModel):
    """What scoring stored plates again said after a roll-back."""

    result: str
    recipe: str = ""
    plates: int = 0
    tiles: int = 0
    problem: str = ""


class EvidenceShown(BaseModel):
    """One thing that must be shown of another model; `problem` is empty where it is."""

    kind: str
    problem: str
    words: str


class RecipesPage(BaseModel):
    """Every version, newest first."""

    active: str
    former: str
    """What judged before, and can be gone back to; empty if nothing did."""
    parity: ParityShown | None
    """Of the last roll-back, where the active version was gone back to."""
    versions: list[VersionShown]
    findings: list[str]
    """Files that are not what the log says."""
    switch: SwitchShown
    is_running: bool


class FieldShown(BaseModel):
    """A key with its value."""

    key: str
    table: str
    kind: str
    unit: str
    bounds: str
    meaning: str
    """As the recipe's model says it."""
    choices: list[str]
    is_needed: bool
    default: str
    value: str
    mistake: str = ""


class RecipePage(BaseModel):
    """One version, key by key, and what may be done with it."""

    version: VersionShown
    fields: list[FieldShown]
    others: list[str]
    """Versions that it may be compared with."""
    may_approve: bool
    why_not_approve: str
    may_activate: bool
    switch: SwitchShown
    evidence: list[EvidenceShown]
    """What the version in force asks of this one's model, if that is another."""


class EditPage(BaseModel):
    """A form whose keys make the next version."""

    base: str
    next_version: int
    fields: list[FieldShown]
    mistakes: list[str] = Field(default_factory=list)
    """Of several keys at once, or of none."""
    reason: str = ""
    proposed: str = ""
    """The version that it became."""


class DifferenceShown(BaseModel):
    """A key that two versions have otherwise."""

    key: str
    meaning: str
    unit: str
    before: str
    after: str


class ComparePage(BaseModel):
    """Two versions side by side: what differs."""

    before: str
    after: str
    names: list[str]
    differences: list[DifferenceShown]


class Done(BaseModel):
    """What was done to which version, and the row that says so."""

    recipe: str
    state: str
    row: int | None = None


class ProposalForm(BaseModel):
    """A recipe's keys, as `plate.width_mm`, each with its value as text; one left out or empty has
    its default."""

    model_config = ConfigDict(extra="allow")

    reason: str = Field(min_length=1, max_length=1000)
    back: str = ""

    @property
    def keys(self) -> dict[str, str]:
        return {name: str(value) for name, value in (self.model_extra or {}).items()}


class ApprovalForm(BaseModel):
    """Why a version may judge."""

    reason: str = Field("", max_length=1000)
    back: str = ""


class RollbackForm(BaseModel):
    """Go back to the version that judged before."""

    reason: str = Field(min_length=1, max_length=1000)
    back: str = ""


class ActivationForm(BaseModel):
    """Take up a version between two plates."""

    back: str = ""


# --- pages ----------------------------------------------------------------------------------------


@router.page("/recipes", template="engineer/recipes.html", role=Role.VIEWER)
def recipes(web: Web) -> RecipesPage:
    """Every version of every recipe: its state, who proposed and who approved it."""
    desk = _desk(web)
    problems = _problems(desk)
    named = {f"{name}.toml" for name in desk.known.versions}
    others = [f"{file}: {why}" for file, why in problems.items() if file not in named]
    return RecipesPage(
        active=_active_name(desk),
        former=desk.known.former.name if desk.known.former else "",
        parity=_parity(desk),
        versions=_versions(desk, problems),
        findings=others,
        switch=_switch(web),
        is_running=web.live.station is not None,
    )


@router.page("/recipes/compare", template="engineer/compare.html", role=Role.VIEWER)
def compare_recipes(web: Web, before: str = "", after: str = "") -> ComparePage:
    """What two versions have otherwise, key by key."""
    desk = _desk(web)
    names = _names(desk)
    before, after = before or names[min(1, len(names) - 1)], after or names[0]
    found = differences(_load(desk, before).value, _load(desk, after).value)
    known = {one.key: one for one in fields()}
    return ComparePage(
        before=before,
        after=after,
        names=names,
        differences=[
            DifferenceShown(
                key=one.key,
                meaning=known[one.key].meaning,
                unit=known[one.key].unit,
                before=written(known[one.key].kind, one.before),
                after=written(known[one.key].kind, one.after),
            )
            for one in found
        ],
    )


@router.page("/recipes/{name}", template="engineer/recipe.html", role=Role.VIEWER)
def recipe(web: Web, person: Person, name: str) -> RecipePage:
    """One version: every key with its unit, meaning and bounds."""
    desk = _desk(web)
    found = _load(desk, name)
    shown = _version(desk, name)
    why_not = _why_not_approve(desk, name, person)
    return RecipePage(
        version=shown,
        fields=_fields(flat_texts(found.value)),
        others=[other for other in _names(desk) if other != shown.recipe],
        may_approve=shown.state == "proposed" and not why_not and person.may(Role.ENGINEER),
        why_not_approve=why_not if shown.state == "proposed" else "",
        may_activate=shown.state == "approved" and person.may(Role.ENGINEER),
        switch=_switch(web),
        evidence=_evidence(web, desk, shown),
    )


@router.page("/recipes/{name}/edit", template="engineer/edit.html", role=Role.ENGINEER)
def edit_recipe(web: Web, name: str) -> EditPage:
    """A form that makes the next version of this one. `active` is the one that is so now: what it
    is when the form is sent does not matter."""
    desk = _desk(web)
    base = _load(desk, name)
    draft = _draft(desk, base)
    return EditPage(
        base=name_of(base.value.id, base.value.version),
        next_version=draft.version,
        fields=_fields(flat_texts(draft)),
    )


# --- steps ----------------------------------------------------------------------------------------


@router.action(
    "/recipes/{name}/propose",
    role=Role.ENGINEER,
    template="engineer/edit_form.html",
    to="/engineer/recipes/{proposed}",
)
def propose_recipe(
    web: Web, person: Person, request: Request, name: str, form: ProposalForm
) -> EditPage:
    """Propose the next version of a recipe; another person approves it. Refused where the form was
    of another next version: somebody proposed one meanwhile."""
    desk, reason = _desk(web), " ".join(form.reason.split())
    draft = _draft(desk, _load(desk, name))
    if form.keys.get("version", str(draft.version)) != str(draft.version):
        raise conflict("engineer.version_taken", version=draft.version)
    given = {**form.keys, "id": draft.id, "version": str(draft.version)}
    page = EditPage(base=name, next_version=draft.version, fields=_fields(given), reason=reason)
    try:
        row = desk.propose_changed(read_form(given, draft), person.name, reason)
    except NotARecipe as refused:
        return _with_mistakes(request, page, refused)
    except RecipeError as refused:
        return _told(request, page, [str(refused)])
    web.submit([row], person)
    return page.model_copy(update={"proposed": name_of(draft.id, draft.version)})


@router.action("/recipes/{name}/approve", role=Role.ENGINEER, to="/engineer/recipes/{recipe}")
def approve_recipe(web: Web, person: Person, name: str, form: ApprovalForm) -> Done:
    """Let a version judge that another person proposed."""
    desk = _desk(web)
    _version(desk, name)
    try:
        row = desk.approve(name, person.name, " ".join(form.reason.split()))
    except RecipeError as refused:
        raise PageError(409, "errors.refused", why=str(refused)) from refused
    (number,) = web.submit([row], person)
    return Done(recipe=name, state="approved", row=number)


@router.action("/recipes/{name}/activate", role=Role.ENGINEER, to="/engineer/recipes")
def activate_recipe(web: Web, person: Person, name: str, form: ActivationForm) -> Done:
    """Let the running station take up an approved version between two plates."""
    desk = _desk(web)
    _version(desk, name)
    try:
        desk.may_be_activated(name)
    except RecipeError as refused:
        raise PageError(409, "errors.refused", why=str(refused)) from refused
    web.command("recipe", name, person)
    return Done(recipe=name, state="asked")


@router.action("/recipes/rollback", role=Role.ENGINEER, to="/engineer/recipes")
def roll_back_recipe(web: Web, person: Person, form: RollbackForm) -> Done:
    """Let the running station go back to the version that judged before, from the next plate on."""
    desk = _desk(web)
    try:
        name = desk.may_be_gone_back_to()
    except RecipeError as refused:
        raise PageError(409, "errors.refused", why=str(refused)) from refused
    web.command("rollback", f"{name} {' '.join(form.reason.split())}", person)
    return Done(recipe=name, state="asked")


# --- what they share ------------------------------------------------------------------------------


def _desk(web: Web) -> Desk:
    with web.reader() as reader:
        return Desk(web.configuration, register(reader.recipe_changes()))


def _draft(desk: Desk, base: Loaded[Recipe]) -> Recipe:
    try:
        return desk.draft(base)
    except RecipeError as error:
        raise PageError(409, "errors.refused", why=str(error)) from error


def _load(desk: Desk, name: str) -> Loaded[Recipe]:
    """A version by its name, never a file by its path. Raises `PageError`."""
    try:
        if name == "active":
            return desk.active()
        if name in desk.known.versions:
            return desk.load(name)
        active = desk.active()
        if name == name_of(active.value.id, active.value.version):
            return active
    except RecipeError as error:
        raise PageError(409, "errors.refused", why=str(error)) from error
    raise not_found("engineer.no_recipe", name=name[:80])


def _active_name(desk: Desk) -> str:
    try:
        recipe = desk.active().value
    except RecipeError:
        return ""
    return name_of(recipe.id, recipe.version)


def _names(desk: Desk) -> list[str]:
    """Of all versions, the newest first; the configured one too."""
    names = list(desk.known.versions)[::-1]
    active = _active_name(desk)
    return names if active in names or not active else [*names, active]


def _versions(desk: Desk, problems: Mapping[str, str]) -> list[VersionShown]:
    """With what is wrong with files: every file is read for that, once."""
    return [_version(desk, name, problems) for name in _names(desk)]


def _version(desk: Desk, name: str, problems: Mapping[str, str] | None = None) -> VersionShown:
    """Raises `PageError` if there is no such version."""
    if name == "active":
        name = _active_name(desk)
    version = desk.known.versions.get(name)
    if version is None:
        found = _load(desk, name)
        return VersionShown(
            recipe=name,
            id=found.value.id,
            version=found.value.version,
            state=CONFIGURED,
            sha256=found.sha256,
        )
    if problems is None:
        problems = _problems(desk)
    return _of_log(desk.known, version, problems.get(f"{name}.toml", ""))


def _of_log(known: Register, version: Version, problem: str) -> VersionShown:
    return VersionShown(
        recipe=version.name,
        id=version.id,
        version=version.version,
        state=known.state(version),
        sha256=version.sha256,
        proposed=_step(version.proposed),
        approved=_step(version.approved),
        activated=_step(version.activated),
        problem=problem,
    )


def _step(step: Step | None) -> StepShown | None:
    return None if step is None else StepShown(**asdict(step))


def _problems(desk: Desk) -> dict[str, str]:
    return {found.file: found.problem for found in desk.findings()}


def _switch(web: Web) -> SwitchShown:
    said = (web.live.station or {}).get("recipe_switch") or {}
    return SwitchShown(**{key: str(said.get(key) or "") for key in SwitchShown.model_fields})


def _parity(desk: Desk) -> ParityShown | None:
    """By the log's last row of it, which stands until another version judges."""
    said = desk.known.parity
    return None if not said else ParityShown(**said)


def _evidence(web: Web, desk: Desk, shown: VersionShown) -> list[EvidenceShown]:
    if shown.state not in ("proposed", "approved") or shown.recipe not in desk.known.versions:
        return []
    try:
        with web.reader() as reader:
            found = desk.evidence(shown.recipe, reader.model_changes)
    except RecipeError as error:
        raise PageError(409, "errors.refused", why=str(error)) from error
    return [EvidenceShown(**asdict(one)) for one in found]


def _why_not_approve(desk: Desk, name: str, person: Person) -> str:
    """Key of the text that says why this person may not approve it; empty if they may."""
    version = desk.known.versions.get(name)
    if version is None:
        return ""
    is_own = is_one_person(version.proposed.who, person.name)
    return "engineer.own_proposal" if is_own else ""


def flat_texts(recipe: Recipe) -> dict[str, str]:
    """Every key's value as a form shows it."""
    values = flat(recipe)
    return {one.key: written(one.kind, values[one.key]) for one in fields()}


def _fields(texts: dict[str, str]) -> list[FieldShown]:
    return [_field(one, texts.get(one.key, "")) for one in fields()]


def _field(one: RecipeField, value: str) -> FieldShown:
    return FieldShown(
        key=one.key,
        table=one.table,
        kind=one.kind,
        unit=one.unit,
        bounds=one.bounds,
        meaning=one.meaning,
        choices=list(one.choices),
        is_needed=one.is_needed,
        default=written(one.kind, one.default),
        value=value,
    )


def _with_mistakes(request: Request, page: EditPage, refused: NotARecipe) -> EditPage:
    """Each mistake at its field, the others above."""
    at: dict[str, Any] = {mistake.key: mistake.problem for mistake in refused.mistakes}
    shown = [one.model_copy(update={"mistake": at.pop(one.key, "")}) for one in page.fields]
    others = [f"{key}: {problem}" if key else problem for key, problem in at.items()]
    page = page.model_copy(update={"fields": shown})
    return _told(request, page, others, str(refused))


def _told(request: Request, page: EditPage, mistakes: list[str], whole: str = "") -> EditPage:
    """The form again, where htmx puts it in the place of the old one; else an error that says it.
    Raises `PageError`."""
    if "hx-request" not in request.headers:
        raise PageError(422, "errors.invalid", what=whole or "; ".join(mistakes))
    return page.model_copy(update={"mistakes": mistakes})
