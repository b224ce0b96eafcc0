"""`vqi recipe`: versions of recipes, with approval by another person, switched between plates."""

from __future__ import annotations

import contextlib
import getpass
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from station.cli import recipe_samples
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.config import Configuration, Loaded
from station.control import send_command
from station.ipc import Json, PeerGone
from station.recipe_desk import Desk, is_claimed_by_one_account
from station.recipe_form import differences, fields, flat, written
from station.recipes import RecipeError, Version
from station.record import ChangeBody
from station.signing import SigningError, journal_at_hand, station_stopped

app = typer.Typer(no_args_is_help=True)
app.add_typer(recipe_samples.app, name="samples")

_SWITCH_LIMIT_S = 180.0
_ASK_EVERY_S = 0.25

NameArgument = Annotated[str, typer.Argument(metavar="ID@VERSION", help="As `list` names it.")]
WhoOption = Annotated[
    str | None, typer.Option(help="Who does it; stands in the log. Default: the user.")
]
ReasonOption = Annotated[str, typer.Option(help="Why; stands in the log.")]


@contextlib.contextmanager
def _desk(config: str) -> Iterator[Desk]:
    """Raises typer.Exit with status 1 for what cannot be done."""
    try:
        yield Desk.at(load_or_exit(config))
    except (RecipeError, SigningError) as error:
        fail(str(error))


@app.command("list")
def list_(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Every version with its state, who proposed and who approved it; files that are not what the
    log says."""
    with _desk(config) as desk:
        problems = {found.file: found.problem for found in desk.findings()}
        rows = [
            _row(desk, version, problems.pop(f"{name}.toml", ""))
            for name, version in desk.known.versions.items()
        ]
        active = desk.active()
    if is_json:
        for row in rows:
            print_json(row)
        return
    for row in rows:
        say(_line(row))
    say(f"judges: {active.value.id}@{active.value.version} from {active.source}")
    for file, problem in problems.items():
        say(f"warning: {file}: {problem}")


def _row(desk: Desk, version: Version, problem: str) -> Json:
    steps = {"proposed": version.proposed, "approved": version.approved}
    steps |= {"activated": version.activated}
    return {
        "recipe": version.name,
        "id": version.id,
        "version": version.version,
        "state": desk.known.state(version),
        "sha256": version.sha256,
        **{f"{what}_by": step.who if step else None for what, step in steps.items()},
        **{f"{what}_at": step.at if step else None for what, step in steps.items()},
        **{f"{what}_account": step.account if step else None for what, step in steps.items()},
        "is_claimed_by_one_account": is_claimed_by_one_account(version),
        "reason": version.proposed.reason,
        "problem": problem,
    }


def _line(row: Json) -> str:
    people = f"proposed by {row['proposed_by']}"
    people += f", approved by {row['approved_by']}" if row["approved_by"] else ""
    if row["is_claimed_by_one_account"]:
        people += f" (both names given by account {row['approved_account']})"
    problem = f"  FILE {row['problem']}" if row["problem"] else ""
    return f"{row['recipe']:24} {row['state']:9} {people}: {row['reason']}{problem}"


@app.command()
def show(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="ID@VERSION, a file, or the active one.")] = "active",
    is_json: JsonOption = False,
) -> None:
    """Every key with its value, unit, bounds and meaning."""
    with _desk(config) as desk:
        values = flat(desk.load(name).value)
    for one in fields():
        value = values[one.key]
        if is_json:
            print_json({"key": one.key, "value": value, "unit": one.unit, "bounds": one.bounds,
                        "meaning": one.meaning, "default": one.default})  # fmt: skip
        else:
            text = written(one.kind, value).replace("\n", "; ")
            say(f"{one.key:28} {text:24} {one.unit:8} {one.bounds:16} {one.meaning}")


@app.command()
def diff(before: str, after: str, config: ConfigOption, is_json: JsonOption = False) -> None:
    """What two versions, or files, have otherwise."""
    with _desk(config) as desk:
        found = differences(desk.load(before).value, desk.load(after).value)
    for one in found:
        if is_json:
            print_json({"key": one.key, "before": one.before, "after": one.after})
        else:
            say(f"{one.key:28} {one.before}  ->  {one.after}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="ID@VERSION, a file, or active.")],
    config: ConfigOption,
    is_json: JsonOption = False,
) -> None:
    """Whether it can judge here: file, approval, model, golden scores. Exit 1 if it cannot."""
    problem = ""
    try:
        _check(Desk.at(load_or_exit(config)), name)
    except RecipeError as error:
        problem = str(error)
    if is_json:
        print_json({"recipe": name, "ok": not problem, "problem": problem})
    elif not problem:
        say(f"{name} can judge here")
    if problem and not is_json:
        fail(problem)
    raise typer.Exit(1 if problem else 0)


def _check(desk: Desk, name: str) -> None:
    recipe = desk.load(name)
    desk.test(recipe)
    if name in desk.known.versions:
        desk.may_be_activated(name)
        desk.must_be_shown(name)


@app.command()
def propose(
    file: Annotated[Path, typer.Argument(help="A recipe whose version is the next one.")],
    config: ConfigOption,
    reason: ReasonOption,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Keep a file as a version that another person may approve."""
    with _desk(config) as desk:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{file}: cannot be read: {error}") from error
        row = desk.propose(text, who or getpass.getuser(), reason)
        submit(desk.configuration, row, is_json)


@app.command()
def approve(
    name: NameArgument,
    config: ConfigOption,
    reason: ReasonOption = "",
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Let a version judge that another person proposed."""
    with _desk(config) as desk:
        row = desk.approve(name, who or getpass.getuser(), reason)
        submit(desk.configuration, row, is_json)


@app.command()
def adopt(
    config: ConfigOption, reason: ReasonOption, who: WhoOption = None, is_json: JsonOption = False
) -> None:
    """Propose what judges as its next version, with its model's bytes and threshold written in:
    what judges by the configuration alone can then be gone back to."""
    with _desk(config) as desk:
        draft = desk.draft(desk.active())
        submit(
            desk.configuration,
            desk.propose_changed(draft, who or getpass.getuser(), reason),
            is_json,
        )


def submit(configuration: Loaded[Configuration], row: ChangeBody, is_json: bool) -> None:
    with journal_at_hand(configuration.source, configuration.value) as journal:
        answer = journal.submit([row])
    if not answer["ok"]:
        raise RecipeError(str(answer["error"]))
    name = f"{row.detail['id']}@{row.detail['version']}"
    state = row.what.removeprefix("recipe_")
    if is_json:
        print_json({"recipe": name, "state": state, "who": row.who, "row": answer["seq"][0]})
    else:
        say(f"{name} {state} by {row.who}, row {answer['seq'][0]}")


@app.command()
def activate(name: NameArgument, config: ConfigOption, is_json: JsonOption = False) -> None:
    """Let an approved version judge: between two plates of a running station, or from the next
    start. The row names this command's user."""
    with _desk(config) as desk:
        settings = desk.configuration.value
        recipe = desk.may_be_activated(name)
        desk.must_be_shown(name)
        try:
            answer = send_command(settings.station.runtime_dir, "recipe", name)
        except (PeerGone, TimeoutError):
            _ask_next_start(desk, name, getpass.getuser())
            state = "asked"
        else:
            if not answer["ok"]:
                raise RecipeError(str(answer["error"]))
            wait_until_active(settings, name, recipe.sha256)
            state = "active"
    if is_json:
        print_json({"recipe": name, "state": state})
    else:
        say(f"{name} " + ("judges" if state == "active" else "is taken up at the next start"))


def _ask_next_start(desk: Desk, name: str, who: str) -> None:
    wanted = desk.named(name, who)
    with station_stopped(desk.configuration.value):
        try:
            desk.folder.ask(wanted)
        except OSError as error:
            raise RecipeError(f"{desk.folder.path}: {error.strerror}") from error


def wait_until_active(settings: Configuration, name: str, sha256: str) -> None:
    """Raises `RecipeError` where the former recipe goes on."""
    deadline = time.monotonic() + _SWITCH_LIMIT_S
    while time.monotonic() < deadline:
        said = station_status(settings)
        if said.get("recipe", {}).get("sha256") == sha256:
            return
        switch = said.get("recipe_switch", {})
        if switch.get("problem") and not switch.get("wanted"):
            raise RecipeError(f"{name} is not taken up: {switch['problem']}")
        time.sleep(_ASK_EVERY_S)
    raise RecipeError(f"{name} is not taken up yet; see `vqi control status`")


def station_status(settings: Configuration) -> dict[str, Any]:
    """Empty while the station starts."""
    with contextlib.suppress(PeerGone, TimeoutError):
        status: Json = send_command(settings.station.runtime_dir, "status")["status"]
        return status
    return {}
