"""The recipes that a station has: files that never change, and what the log says of each.

A version is proposed by one person, approved by another, then activated. Each step is a chained
change row; the folder holds the files that the rows name by sha256, `active.json` (which one
judges) and `switch.json` (which one was asked for). A file that no approved row names judges
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from station.config import ConfigError, Configuration, Loaded, Recipe, load_recipe
from station.ingress import name_problem, words_problem
from station.record import ChangeBody, utc_now
from station.reviews import person

PROPOSED = "recipe_proposed"
APPROVED = "recipe_approved"
ACTIVATED = "recipe_activated"
REFUSED = "recipe_refused"
"""Names of the change rows; the last: an activation that did not come about, and why."""
PARITY = "model_parity"
"""What came of judging stored plates again after a roll-back (station/parity.py)."""
CHANGES = (PROPOSED, APPROVED, ACTIVATED, REFUSED, PARITY)
ROLLBACK = "rollback"
"""Key of an activation's detail: it goes back to what judged before."""
EQUAL, DIFFERS, NOTHING = "equal", "differs", "nothing to compare"
"""Results of a parity row."""
MOST_BYTES = 100_000
"""Of a recipe's file; it stands in the row that proposes it."""
_ACTIVE, _SWITCH = "active.json", "switch.json"
_NAME = re.compile(r"([a-z0-9][a-z0-9_-]*)@([1-9][0-9]{0,8})")
_TOO_EARLY = "the station ended before it was taken up"
_ASK_AGAIN = "say which one is meant: `vqi recipe activate ID@VERSION`"

Row = Mapping[str, Any]
M = TypeVar("M", bound=BaseModel)


class RecipeError(ValueError):
    """It cannot be done; the message says why and what to do."""


class Named(BaseModel):
    """One version, and who wanted it. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    who: str
    at: str = Field(default_factory=utc_now)

    @property
    def name(self) -> str:
        return name_of(self.id, self.version)


class Switch(BaseModel):
    """An activation on its way. `tried`: a start has begun to load it and gets one chance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wanted: Named
    state: Literal["asked", "tried", "failed", "hot"] = "asked"
    """`hot`: a running station takes it up between two plates, without a start."""
    is_rollback: bool = False
    reason: str = ""
    problem: str = ""
    is_halted: bool = False
    """A person had halted the station: it stays so."""


@dataclass(frozen=True, slots=True)
class Step:
    """Who did it, when (UTC text) and why."""

    who: str
    at: str
    reason: str
    account: str = ""
    """Login name that it came from; `page_door.ACCOUNT` where the page knows who it was."""


@dataclass(frozen=True, slots=True)
class Version:
    """What the log says of one version."""

    id: str
    version: int
    sha256: str
    proposed: Step
    is_bound: bool
    """Its text names the model's bytes and the threshold: who approves it approves what will
    judge."""
    table: Row = field(default_factory=dict, compare=False)
    """Its text as TOML has it."""
    approved: Step | None = None
    activated: Step | None = None
    """The last time."""

    @property
    def name(self) -> str:
        return name_of(self.id, self.version)


@dataclass(frozen=True, slots=True)
class Register:
    """What rows of recipes come to."""

    versions: dict[str, Version] = field(default_factory=dict)
    """By name, in the order in which they were proposed."""
    active_sha256: str = ""
    """Of what was activated last; empty if the log names none."""
    judged: tuple[str, ...] = ()
    """Names of what was activated, one after another; a roll-back takes the last one off."""
    is_gone_back_to: bool = False
    """The version that judges was taken up by a roll-back."""
    parity: Row = field(default_factory=dict)
    """What scoring stored plates again said of the version that was gone back to; empty of one that
    was not."""
    strange: tuple[str, ...] = ()
    """Rows that no journal process takes."""

    def of(self, name: str) -> Version:
        """Raises `RecipeError` if there is none."""
        known = self.versions.get(name)
        if known is None:
            raise RecipeError(f"{name}: no such version; there are: {_listed(self.versions)}")
        return known

    @property
    def parity_problem(self) -> str:
        """The version that was gone back to does not score as it did; empty if it does."""
        is_other = self.parity.get("result") == DIFFERS
        return str(self.parity.get("problem", "")) if is_other else ""

    @property
    def active(self) -> Version | None:
        """What was activated last; None where the configured recipe judges."""
        return self.versions[self.judged[-1]] if self.judged else None

    @property
    def former(self) -> Version | None:
        """What judged before it, by the log: a roll-back goes there."""
        return self.versions[self.judged[-2]] if len(self.judged) > 1 else None

    def state(self, version: Version) -> Literal["proposed", "approved", "active"]:
        if version.approved is None:
            return "proposed"
        return "active" if version.sha256 == self.active_sha256 else "approved"

    def next_version(self, id: str) -> int:
        """The lowest number that the next version of a recipe may have."""
        return 1 + max((v.version for v in self.versions.values() if v.id == id), default=0)

    def brief(self) -> dict[str, Any]:
        """As much of it as a start needs."""
        approved = [v.sha256 for v in self.versions.values() if v.approved is not None]
        return {
            "active": self.active_sha256,
            "former": self.former.sha256 if self.former else "",
            "approved": approved[-2000:],
            "parity_problem": self.parity_problem,
            "lacks_parity": self.is_gone_back_to
            and self.parity.get("result") not in (EQUAL, NOTHING),
        }


def name_of(id: str, version: int) -> str:
    return f"{id}@{version}"


def parse_name(text: str) -> tuple[str, int]:
    """Raises `RecipeError`."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise RecipeError(f"{text!r:.80}: a version is named ID@NUMBER, as in demo-lgp@2")
    return found[1], int(found[2])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[-20:]) or "none"


# --- the rules -----------------------------------------------------------------------------------


def register(rows: Iterable[Row]) -> Register:
    """Fold change rows, in their order; one that breaks a rule counts for nothing."""
    found = Register()
    for row in rows:
        found = _after(found, row)
    return found


def objection(known: Register, row: Row) -> str:
    """Why this change row may not follow; empty if it may, or is none of recipes."""
    if row["what"] not in (PROPOSED, APPROVED, ACTIVATED):
        return ""
    detail = row["detail"]
    try:
        name = name_of(*parse_name(f"{detail['id']}@{detail['version']}"))
        sha256 = detail["sha256"]
    except KeyError:
        return f"a {row['what']} row names id, version and sha256"
    except RecipeError as error:
        return str(error)
    if problem := _unfit_to_say(row):
        return problem
    if row["what"] == PROPOSED:
        return _no_proposal(known, row, name, sha256)
    version = known.versions.get(name)
    if version is None or version.sha256 != sha256:
        return f"{name}: nobody proposed it with sha256 {sha256[:12]}"
    if row["what"] == APPROVED:
        return _no_approval(version, row)
    return _no_rollback(known, version) if is_rollback(row) else _no_activation(version)


def _unfit_to_say(row: Row) -> str:
    """Why its person or its reason is none that the log takes; empty if both are."""
    return name_problem("person", row["who"]) or words_problem("reason", _reason(row))


def is_rollback(row: Row) -> bool:
    """Whether an activation goes back to what judged before."""
    return bool(row["what"] == ACTIVATED and row["detail"].get(ROLLBACK))


def _no_proposal(known: Register, row: Row, name: str, sha256: str) -> str:
    detail = row["detail"]
    if problem := _not_its_text(name, sha256, detail.get("toml", "")):
        return problem
    there = known.versions.get(name)
    if there is not None:
        is_again = (there.sha256, there.proposed.who) == (sha256, row["who"])
        return "" if is_again else f"{name}: there is one already; give it the next number"
    if not _reason(row):
        return "a proposal says why"
    least = known.next_version(detail["id"])
    if int(detail["version"]) < least:
        return f"{name}: the next version of {detail['id']} is {least}"
    return ""


def _not_its_text(name: str, sha256: str, text: str) -> str:
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        return f"{name}: the text is not the one of its sha256"
    table = _table(text)
    if name_of(table.get("id", ""), table.get("version", 0)) != name:
        return f"{name}: the text is not a recipe of that id and version"
    return ""


def _table(text: str) -> Row:
    """Of a recipe's text; empty for what is no TOML, or is nested too deep to be read."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def _is_bound(table: Row) -> bool:
    model, samples = table.get("model"), table.get("limit_samples", {})
    has_model = isinstance(model, dict) and {"sha256", "threshold"} <= model.keys()
    return has_model and ("folder" not in samples or "sha256" in samples)


def _no_approval(version: Version, row: Row) -> str:
    if not version.is_bound:
        return (
            f"{version.name}: its text leaves out model.sha256, model.threshold or "
            "limit_samples.sha256, so that something else could judge than what was approved; "
            "propose it again as the next version"
        )
    if version.approved is not None and version.approved.who != row["who"]:
        return f"{version.name}: {version.approved.who} has approved it already"
    if is_one_person(version.proposed.who, row["who"]):
        return f"{version.name}: {version.proposed.who} proposed it; another person approves it"
    return ""


def is_one_person(one: str, other: str) -> bool:
    """A full stop, a blank or another case makes nobody else."""
    first, second = ("".join(filter(str.isalnum, person(name))) for name in (one, other))
    return first == second


def _no_activation(version: Version) -> str:
    return "" if version.approved is not None else f"{version.name}: nobody has approved it"


def _no_rollback(known: Register, version: Version) -> str:
    """It judged before, so it was approved: nobody else has to."""
    if version in (known.former, known.active):
        return ""
    former = known.former
    goes_to = f"only {former.name} judged before it" if former else "nothing judged before it"
    return f"{version.name}: no roll-back goes there: {goes_to}, by the log"


def _after(before: Register, row: Row) -> Register:
    problem = objection(before, row)
    if problem:
        return replace(before, strange=(*before.strange, problem))
    if row["what"] == PARITY:
        is_of_active = before.judged[-1:] == (row["detail"].get("recipe"),)
        # Nothing that could be compared says nothing of what differed before.
        is_said = row["detail"].get("result") != NOTHING or not before.parity_problem
        is_new = is_of_active and is_said
        return replace(before, parity=dict(row["detail"])) if is_new else before
    if row["what"] not in (PROPOSED, APPROVED, ACTIVATED):
        return before
    detail = row["detail"]
    name = name_of(detail["id"], int(detail["version"]))
    step = Step(row["who"], row["written_at"], _reason(row), row.get("account", ""))
    version = before.versions.get(name)
    if version is None:
        table, named = _table(detail["toml"]), (detail["id"], int(detail["version"]))
        version = Version(*named, detail["sha256"], step, _is_bound(table), table)
    elif row["what"] == APPROVED and version.approved is None:
        version = replace(version, approved=step)
    elif row["what"] == ACTIVATED:
        version = replace(version, activated=step)
    known = replace(before, versions={**before.versions, name: version})
    if row["what"] != ACTIVATED:
        return known
    judged = before.judged[:-1] if is_rollback(row) else (*before.judged, name)
    if before.judged[-1:] == (name,):  # a start said it again
        judged = before.judged
    went_back = is_rollback(row)
    return replace(
        known,
        active_sha256=version.sha256,
        judged=judged,
        is_gone_back_to=went_back,
        parity={},
    )


def _reason(row: Row) -> str:
    return str(row["detail"].get("reason", ""))


def proposed_change(
    station_id: str, recipe: Loaded[Recipe], text: str, who: str, reason: str
) -> ChangeBody:
    """The row that proposes a version; it holds the whole text."""
    detail = {**_named(recipe.value, recipe.sha256), "reason": reason, "toml": text}
    return ChangeBody(station_id=station_id, what=PROPOSED, who=who, detail=detail)


def approved_change(station_id: str, version: Version, who: str, reason: str) -> ChangeBody:
    named = {"id": version.id, "version": str(version.version), "sha256": version.sha256}
    return ChangeBody(
        station_id=station_id, what=APPROVED, who=who, detail={**named, "reason": reason}
    )


def activated_change(station_id: str, switch: Switch, said: Mapping[str, str]) -> ChangeBody:
    """The row with which a version begins to judge; `said`: what its model's tests said."""
    wanted = switch.wanted
    detail = {"id": wanted.id, "version": str(wanted.version), "sha256": wanted.sha256}
    detail |= {ROLLBACK: "yes"} if switch.is_rollback else {}
    detail |= {"reason": switch.reason} if switch.reason else {}
    return ChangeBody(
        station_id=station_id, what=ACTIVATED, who=wanted.who, detail={**detail, **said}
    )


def activation_of(station_id: str, version: Version) -> ChangeBody:
    """As it would be, for a rule that is held against it."""
    wanted = Named(id=version.id, version=version.version, sha256=version.sha256, who="station")
    return activated_change(station_id, Switch(wanted=wanted), {})


def refused_change(station_id: str, name: str, who: str, problem: str) -> ChangeBody:
    """What was asked for is not active, and why; the former recipe goes on."""
    detail = {"recipe": name, "problem": problem}
    return ChangeBody(station_id=station_id, what=REFUSED, who=who, detail=detail)


def _named(recipe: Recipe, sha256: str) -> dict[str, str]:
    return {"id": recipe.id, "version": str(recipe.version), "sha256": sha256}


# --- the folder ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not what the log says."""

    file: str
    problem: str


class RecipeFolder:
    """The files. Raises OSError where they cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, configuration: Configuration) -> RecipeFolder:
        return cls(configuration.recipe_dir)

    def file(self, name: str) -> Path:
        """Raises `RecipeError` for what is no name of a version."""
        parse_name(name)
        return self.path / f"{name}.toml"

    def keep(self, name: str, data: bytes) -> None:
        """Write a version durably, before its row."""
        _write_durably(self.file(name), data, mode=0o444)

    def keep_proposed(self, row: ChangeBody, known: Register) -> None:
        """Write the version that a row proposes, which holds all of it; never over the file of one
        that is known. Raises OSError."""
        if row.what != PROPOSED:
            return
        name = name_of(row.detail["id"], int(row.detail["version"]))
        if name not in known.versions or not self.file(name).exists():
            self.keep(name, row.detail["toml"].encode())

    def load(self, name: str, sha256: str) -> Loaded[Recipe]:
        """Raises `ConfigError` if it is not the file of that sha256, or is no recipe."""
        recipe = load_recipe(str(self.file(name)))
        if recipe.sha256 != sha256:
            raise ConfigError(
                f"{recipe.source}: changed since it was proposed (sha256 {recipe.sha256[:12]}, "
                f"proposed {sha256[:12]}); it is not used: propose the change as a new version"
            )
        return recipe

    def findings(self, known: Register) -> list[Finding]:
        """Files that are missing, changed by hand, or named by no row."""
        found = []
        for name, version in known.versions.items():
            sha256 = _sha256_of(self.file(name))
            if sha256 != version.sha256:
                problem = "changed by hand since it was proposed" if sha256 else "missing"
                found.append(Finding(f"{name}.toml", problem))
        names = {f"{name}.toml" for name in known.versions}
        strays = sorted(path.name for path in self.path.glob("*.toml") if path.name not in names)
        problem = "no row of the log names it: it cannot be activated"
        return found + [Finding(name, problem) for name in strays]

    @property
    def active(self) -> Named | None:
        """What judges; None before anything was activated. Raises `ConfigError`."""
        return _read(self.path / _ACTIVE, Named)

    @property
    def switch(self) -> Switch | None:
        """Raises `ConfigError`."""
        return _read(self.path / _SWITCH, Switch)

    def ask(self, wanted: Named, is_halted: bool = False) -> None:
        """Let the next start take up this version."""
        self.keep_switch(Switch(wanted=wanted, is_halted=is_halted))

    def keep_switch(self, switch: Switch) -> None:
        """An activation on its way: what is cut off here, the next start settles."""
        self._write(_SWITCH, switch)

    def keep_active(self, row: ChangeBody) -> None:
        """Make `active.json` name what a row activates, before the row; a start has done so. Where
        that fails halfway, it names the former version again: the log does."""
        if row.what != ACTIVATED:
            return
        detail, active = row.detail, self.active
        if active is None or active.sha256 != detail["sha256"]:
            named = detail["id"], int(detail["version"]), detail["sha256"]
            wanted = dict(zip(("id", "version", "sha256"), named, strict=True))
            try:
                self.activate(Named(**wanted, who=row.who))
            except OSError:
                with contextlib.suppress(OSError, ConfigError):
                    self._put_back(active)
                raise

    def _put_back(self, former: Named | None) -> None:
        if former is None:
            (self.path / _ACTIVE).unlink(missing_ok=True)
        elif self.active != former:
            self.activate(former)

    def mark(self, switch: Switch, state: Literal["tried", "failed"], problem: str = "") -> None:
        self._write(_SWITCH, switch.model_copy(update={"state": state, "problem": problem}))

    def keep_halted(self, is_halted: bool) -> None:
        """A person halts or resumes a station that has not begun to judge yet: what is started
        after it stays so. Raises also `ConfigError`."""
        switch = self.switch
        if switch is not None:
            self._write(_SWITCH, switch.model_copy(update={"is_halted": is_halted}))

    def activate(self, wanted: Named) -> None:
        self._write(_ACTIVE, wanted)

    def forget_switch(self) -> None:
        (self.path / _SWITCH).unlink(missing_ok=True)

    def _write(self, name: str, value: BaseModel) -> None:
        _write_durably(self.path / name, value.model_dump_json(indent=1).encode() + b"\n")


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: cannot be understood; {_ASK_AGAIN}") from error


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- which one judges ----------------------------------------------------------------------------


def active_recipe(configuration: Configuration) -> Loaded[Recipe]:
    """What was activated, or else the recipe that the configuration names. Raises `ConfigError`."""
    folder = RecipeFolder.of(configuration)
    active = folder.active
    if active is None:
        return load_recipe(configuration.station.recipe)
    return folder.load(active.name, active.sha256)


def is_model_change(before: Recipe, after: Recipe) -> bool:
    """Whether two versions of a recipe differ in `[model]` only: what is cut, scored and kept of a
    plate stays the same, so that one plate can be judged by the one and the next by the other."""
    update = {"version": before.version, "model": before.model}
    return after.model_copy(update=update) == before


def next_recipe(configuration: Configuration) -> Loaded[Recipe]:
    """What the next start will load, as far as that can be said before it. Raises `ConfigError`."""
    folder = RecipeFolder.of(configuration)
    switch = folder.switch
    if switch is not None and switch.state == "asked":
        with contextlib.suppress(ConfigError):  # it would give way to the active one
            return folder.load(switch.wanted.name, switch.wanted.sha256)
    return active_recipe(configuration)


def starting_recipe(configuration: Configuration) -> Loaded[Recipe]:
    """What a start of the station loads: what was asked for, once, or else the active one. Raises
    `ConfigError`."""
    folder = RecipeFolder.of(configuration)
    switch = folder.switch
    if switch is None or switch.state in ("failed", "hot"):
        return active_recipe(configuration)
    if switch.state == "asked":
        folder.mark(switch, "tried")
        return folder.load(switch.wanted.name, switch.wanted.sha256)
    if folder.active != switch.wanted:
        folder.mark(switch, "failed", "the station ended while it loaded it")
    return active_recipe(configuration)


def give_up(configuration: Configuration, problem: str) -> bool:
    """A start failed. True if it was of a version that was only asked for: the next start takes the
    former one."""
    folder = RecipeFolder.of(configuration)
    with contextlib.suppress(ConfigError):
        switch = folder.switch
        if switch is not None and switch.state == "tried" and folder.active != switch.wanted:
            folder.mark(switch, "failed", problem)
            return True
    return False


def settle_start(
    configuration: Configuration, recipe: Loaded[Recipe], known: Mapping[str, Any]
) -> ChangeBody | None:
    """Hold the recipe of a start against the log (`Register.brief`), and make it the active one if
    it was asked for; the row that says so. Raises `ConfigError` if the log does not bear it out."""
    folder, station_id = RecipeFolder.of(configuration), configuration.station.id
    switch = folder.switch
    if switch is not None and _is_to_be_settled(switch, recipe, known):
        if not (switch.is_rollback and recipe.sha256 == known["former"]):
            _must_be_approved(recipe, known)
        row = activated_change(station_id, switch, {})
        # Before the file: no start would get past a version whose row is refused.
        if problem := _unfit_to_say(row.as_json()):
            raise ConfigError(f"{switch.wanted.name}: {problem}")
        folder.activate(switch.wanted)
        return row
    active = folder.active
    if (active or known["active"]) and recipe.sha256 != known["active"]:
        raise ConfigError(
            f"{folder.path / _ACTIVE}: not what was activated last by the log (sha256 "
            f"{known['active'][:12] or 'none'}, here {recipe.sha256[:12]}); {_ASK_AGAIN}"
        )
    if switch is None or switch.wanted.sha256 == known["active"]:
        return None
    problem = switch.problem if switch.state == "failed" else _TOO_EARLY
    return refused_change(station_id, switch.wanted.name, switch.wanted.who, problem)


def _is_to_be_settled(switch: Switch, recipe: Loaded[Recipe], known: Mapping[str, Any]) -> bool:
    """This start takes it up; or a running station was about to: the file that says which one
    judges was replaced, and no row says so yet."""
    is_cut_off = switch.state == "hot" and recipe.sha256 == switch.wanted.sha256
    return switch.state == "tried" or (is_cut_off and known["active"] != recipe.sha256)


def _must_be_approved(recipe: Loaded[Recipe], known: Mapping[str, Any]) -> None:
    if recipe.sha256 not in known["approved"]:
        raise ConfigError(
            f"{recipe.source}: no row of the log approves it (sha256 {recipe.sha256[:12]}); "
            "propose it, and let another person approve it"
        )
