"""`vqi model promote`, `gate`, `evidence`, `activate`, `rollback`, `parity`: which model judges,
what must be shown of it first, and the way back."""

from __future__ import annotations

import contextlib
import getpass
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.card import ModelCard, ModelError
from models.classifier import Classifier
from models.registry import list_models
from station.candidate import (
    measure_audit,
    measure_precision,
    measure_samples,
)
from station.cli.common import (
    ConfigOption,
    JsonOption,
    command_line,
    fail,
    load_or_exit,
    print_json,
    say,
)
from station.cli.recipe import (
    NameArgument,
    ReasonOption,
    WhoOption,
    activate,
    station_status,
    wait_until_active,
)
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.control import send_command
from station.ingress import words_problem
from station.ipc import Json, PeerGone
from station.limit_samples import SamplesError, samples_folder
from station.model_store import ModelStore
from station.parity import check_parity
from station.promotion import (
    AUDIT,
    CHOSEN,
    LIMIT_SAMPLES,
    PRECISION,
    Shown,
    gate_change,
    judging,
)
from station.qms import StoreError
from station.recipe_desk import Desk
from station.recipes import DIFFERS, RecipeError, Switch, name_of
from station.record import ChangeBody
from station.signing import SigningError, journal_at_hand, station_stopped

_PARITY_LIMIT_S = 300.0
_ASK_EVERY_S = 0.25
_BELT_PX = 40
"""Of belt on either side of a plate that is rendered for a camera whose width is not configured."""


@contextlib.contextmanager
def _desk(config: str) -> Iterator[Desk]:
    """Raises typer.Exit with status 1 for what cannot be done."""
    try:
        yield Desk.at(load_or_exit(config))
    except (RecipeError, SigningError, ConfigError, ModelError, StoreError) as error:
        fail(str(error))


def promote(
    model: Annotated[str, typer.Argument(help="Id of a shipped model, or folder of another.")],
    config: ConfigOption,
    reason: ReasonOption,
    recipe: Annotated[str, typer.Option(help="Id of the recipe, which is the one in force.")],
    who: WhoOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Instead of choosing it; --reason then says why this one."),
    ] = None,
    plates: Annotated[int, typer.Option(min=1, help="Fresh plates that choose it.")] = 400,
    false_reject_target: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="Share of good plates that may fail.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh plates.")] = 1000,
    is_json: JsonOption = False,
) -> None:
    """Propose the next version of the recipe in force, with another model, or with the same one
    and another threshold, and say what of it is shown and what is not.

    The threshold is chosen anew, on whole fresh plates of this recipe. Nothing judges by it before
    another person approves it and somebody activates it.
    """
    name = who or getpass.getuser()
    with _desk(config) as desk:
        folder = ModelStore.of(desk.configuration.value).named(model)
        classifier = Classifier.load(folder)
        classifier.self_test()
        draft = _draft(desk, recipe, folder, classifier.card)
        if threshold is None:
            value, chosen_by = _choose(desk, draft, classifier, plates, false_reject_target, seed)
        else:
            value, chosen_by = threshold, f"given by {name}: {reason}"
        bound = draft.model.model_copy(update={"threshold": value})
        row = desk.propose_changed(draft.model_copy(update={"model": bound}), name, reason)
        version = name_of(row.detail["id"], int(row.detail["version"]))
        detail = {"recipe": version, "model_sha256": classifier.model_sha256}
        detail |= {"threshold": repr(value), "chosen_by": chosen_by, "command": command_line()}
        said = ChangeBody(station_id=row.station_id, what=CHOSEN, who=name, detail=detail)
        number = _submitted(desk, [row])[0]
        _submitted(desk, [said])
        shown = Desk.at(desk.configuration).evidence(version)
    found = {"recipe": version, "state": "proposed", "who": name, "row": number}
    found |= {"model": classifier.model_id} | detail
    if is_json:
        print_json(found | {"evidence": [asdict(one) for one in shown]})
        return
    say(f"{version} proposed by {name}, row {number}: {classifier.model_id}, threshold {value:.6g}")
    say(f"threshold: {chosen_by}")
    _say_evidence(version, shown)


def _draft(desk: Desk, recipe_id: str, folder: Path, card: ModelCard) -> Recipe:
    """The next version, with this model. Raises `RecipeError`."""
    active = desk.active()
    if active.value.id != recipe_id:
        raise RecipeError(
            f"{recipe_id}: not in force; {active.value.id}@{active.value.version} judges"
        )
    if desk.known.active is None:
        raise RecipeError(
            f"{recipe_id}@{active.value.version} judges by the configuration alone, and nothing "
            "could be gone back to; first `vqi recipe adopt`, then approve and activate what it "
            "proposes"
        )
    draft = desk.draft(active)
    known = (list_models().get(card.id), ModelStore.of(desk.configuration.value).find(card.id))
    place = None if folder in known else str(folder.resolve())
    # Its own limits, never those of the model that judges now.
    update = {"id": card.id, "folder": place, "sha256": card.sha256}
    update |= {"threshold": None, "unsure_above": None}
    return draft.model_copy(update={"model": draft.model.model_copy(update=update)})


def _choose(
    desk: Desk, draft: Recipe, classifier: Classifier, plates: int, target: float, seed: int
) -> tuple[float, str]:
    """The plate-level threshold of this very classifier, and on what it was chosen. Raises
    `RecipeError`."""
    try:
        from station.cli.plates import shown
        from station.plates import TooFewPlates, choose_threshold, score_plates
        from station.synthesize import PlateSource, SynthesisError
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"choosing a threshold needs package {error.name} (the `train` extra); choose it on "
            "another machine and give it with --threshold"
        ) from error
    camera = desk.configuration.value.camera
    pitch_mm, width = camera.pixel_pitch_mm, getattr(camera, "width", None)
    try:
        if width is None:
            width = round(draft.plate.width_mm / pitch_mm) + 2 * _BELT_PX
        source = PlateSource(draft, pitch_mm, width)
        scores = shown(score_plates(source, classifier, plates, seed), plates)
        chosen = choose_threshold(scores, target)
    except (ValueError, TooFewPlates, SynthesisError) as error:
        raise RecipeError(f"the threshold cannot be chosen: {error}") from error
    return chosen.value, f"{chosen.words}; plates of {draft.id} at {pitch_mm:g} mm a pixel"


def _submitted(desk: Desk, rows: list[ChangeBody]) -> list[int]:
    """Numbers of the rows. Raises `RecipeError`, `SigningError`."""
    with journal_at_hand(desk.configuration.source, desk.configuration.value) as journal:
        answer = journal.submit(rows)
    if not answer["ok"]:
        raise RecipeError(str(answer["error"]))
    return [int(seq) for seq in answer["seq"]]


def _say_evidence(version: str, shown: list[Shown]) -> None:
    for one in shown:
        say(f"{one.kind:14} " + (f"MISSING: {one.problem}" if one.problem else one.words))
    if not shown:
        say(f"{version}: the recipe in force asks for no evidence ([promotion])")


def evidence(name: NameArgument, config: ConfigOption, is_json: JsonOption = False) -> None:
    """What the recipe in force asks of a version with another model, and what rows show of it. Exit
    1 if anything is missing."""
    with _desk(config) as desk:
        shown = desk.evidence(name)
    if is_json:
        for one in shown:
            print_json({"recipe": name, **asdict(one), "is_shown": not one.problem})
    else:
        _say_evidence(name, shown)
    raise typer.Exit(1 if any(one.problem for one in shown) else 0)


def gate(
    name: NameArgument,
    config: ConfigOption,
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of limit samples with samples.csv (file,expected,sha256). Default: those "
            "that the version names; they must be, where the recipe in force names some.",
        ),
    ] = None,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Measure a version's model on audit samples that people have judged, beside the judging model,
    its speed on this processor, and whether limit samples pass and fail as they should; a row for
    each. Exit 1 if one does not do."""
    with _desk(config) as desk:
        version, active = desk.known.of(name), desk.active()
        wanted, by = desk.load(name), who or getpass.getuser()
        if not version.is_bound:
            raise RecipeError(f"{name}: its text leaves out model.sha256 or model.threshold")
        measured = {
            AUDIT: measure_audit(desk.configuration, active, wanted).as_detail(),
            PRECISION: measure_precision(desk.configuration, active, wanted),
        }
        if samples is not None or samples_folder(wanted) is not None:
            measured[LIMIT_SAMPLES] = _shown_samples(desk, wanted, samples)
        station_id, bound = desk.configuration.value.station.id, judging(name, version.table)
        beside = desk.judging()
        for which, figures in measured.items():
            _submitted(desk, [gate_change(station_id, which, beside, bound, figures, by)])
    for which, figures in measured.items():
        if is_json:
            print_json({"recipe": name, "set": which, **figures})
        else:
            refused = figures["problem"]
            say(f"{which:13} " + (f"REFUSED: {refused}" if refused else figures["words"]))
    raise typer.Exit(1 if any(figures["problem"] for figures in measured.values()) else 0)


def _shown_samples(desk: Desk, wanted: Loaded[Recipe], path: Path | None) -> dict[str, str]:
    """Those of the folder, or the version's own. Raises `RecipeError`."""
    try:
        return measure_samples(desk.configuration, wanted, path)
    except SamplesError as error:
        raise RecipeError(str(error)) from error


def rollback(
    config: ConfigOption,
    reason: ReasonOption,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Go back to the version that judged before, between two plates; then judge its last stored
    plates again. Exit 1 if their scores have other bits than those recorded."""
    with _desk(config) as desk:
        row = _roll_back(desk, who or getpass.getuser(), reason)
    if is_json:
        print_json(row)
    else:
        say(_words(row))
    raise typer.Exit(1 if row.get("parity", {}).get("result") == DIFFERS else 0)


def _roll_back(desk: Desk, who: str, reason: str) -> Json:
    """Raises `RecipeError`, `SigningError`."""
    name = desk.may_be_gone_back_to()
    row: Json = {"recipe": name, "from": desk.known.judged[-1], "who": who, "reason": reason}
    wanted = desk.named(name, who)
    if problem := words_problem("reason", reason) or ("" if reason else "a roll-back says why"):
        raise RecipeError(problem)
    settings = desk.configuration.value
    began_at = time.monotonic()
    try:
        answer = send_command(settings.station.runtime_dir, "rollback", f"{name} {reason}", who=who)
    except (PeerGone, TimeoutError):
        with station_stopped(settings):
            try:
                desk.folder.keep_switch(Switch(wanted=wanted, is_rollback=True, reason=reason))
            except OSError as error:
                raise RecipeError(f"{desk.folder.path}: {error.strerror}") from error
        return row | {"state": "asked"}
    if not answer["ok"]:
        raise RecipeError(str(answer["error"]))
    wait_until_active(settings, name, wanted.sha256)
    took_s = round(time.monotonic() - began_at, 2)
    return row | {"state": "active", "took_s": took_s, "parity": _parity(settings, name)}


def _parity(settings: Configuration, name: str) -> Json:
    """What the station says of its stored plates, once it has judged them again."""
    deadline = time.monotonic() + _PARITY_LIMIT_S
    while time.monotonic() < deadline:
        said: Json = station_status(settings).get("parity") or {}
        if said.get("recipe", name) == name and said.get("result"):
            return said
        time.sleep(_ASK_EVERY_S)
    raise RecipeError(f"{name} judges; its stored plates are not judged again yet: see the log")


def _words(row: Json) -> str:
    if row["state"] == "asked":
        return f"{row['recipe']} is taken up at the next start"
    said = row["parity"]
    words = f"{row['recipe']} judges again, {row['took_s']} s after it was asked for"
    if said["result"] == DIFFERS:
        return f"{words}; {said['problem']}"
    return f"{words}; {said['plates']} stored plates, {said['tiles']} tiles: {said['result']}"


def parity(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(help="ID@VERSION, or the active one.")] = "active",
    is_json: JsonOption = False,
) -> None:
    """Score whole stored plates of a version again, and hold each tile's score against its record,
    bit for bit. Exit 1 if any differs."""
    with _desk(config) as desk:
        found = check_parity(desk.configuration, desk.load(name))
    if is_json:
        print_json(found.detail)
    else:
        plates = f"{len(found.results)} stored plates, {found.tiles} tiles"
        say(found.problem or f"{found.recipe}: {plates}: {found.result}")
    raise typer.Exit(1 if found.differing else 0)


def add_to(app: typer.Typer) -> None:
    """The commands, under `vqi model`."""
    app.command()(promote)
    app.command()(gate)
    app.command()(evidence)
    app.command("activate")(activate_model)
    app.command()(rollback)
    app.command()(parity)


def activate_model(name: NameArgument, config: ConfigOption, is_json: JsonOption = False) -> None:
    """As `vqi recipe activate`: let an approved version judge, between two plates."""
    activate(name, config, is_json)
