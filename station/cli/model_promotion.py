"""`vqi model activate`, `rollback`, `parity`: which model judges, and the way back."""

from __future__ import annotations

import getpass
import time

import typer

from models.card import ModelError
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.recipe import (
    NameArgument,
    ReasonOption,
    WhoOption,
    activate,
    station_status,
    wait_until_active,
)
from station.config import ConfigError, Configuration
from station.control import send_command
from station.ipc import Json, PeerGone
from station.parity import check_parity
from station.qms import StoreError
from station.recipe_desk import Desk
from station.recipes import DIFFERS, RecipeError, Switch
from station.signing import SigningError, station_stopped

_PARITY_LIMIT_S = 300.0
_ASK_EVERY_S = 0.25


def rollback(
    config: ConfigOption,
    reason: ReasonOption,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Go back to the version that judged before, between two plates; then judge its last stored
    plates again. Exit 1 if their scores have other bits than those recorded."""
    try:
        row = _roll_back(Desk.at(load_or_exit(config)), who or getpass.getuser(), reason)
    except (RecipeError, SigningError) as error:
        fail(str(error))
    if is_json:
        print_json(row)
    else:
        say(_words(row))
    raise typer.Exit(1 if row.get("parity", {}).get("result") == DIFFERS else 0)


def _roll_back(desk: Desk, who: str, reason: str) -> Json:
    """Raises `RecipeError`, `SigningError`."""
    name = desk.may_be_gone_back_to()
    row: Json = {"recipe": name, "from": desk.known.judged[-1], "who": who, "reason": reason}
    settings, version = desk.configuration.value, desk.known.of(name)
    began_at = time.monotonic()
    try:
        answer = send_command(settings.station.runtime_dir, "rollback", f"{name} {reason}", who=who)
    except (PeerGone, TimeoutError):
        wanted = desk.named(name, who)
        with station_stopped(settings):
            try:
                desk.folder.keep_switch(Switch(wanted=wanted, is_rollback=True, reason=reason))
            except OSError as error:
                raise RecipeError(f"{desk.folder.path}: {error.strerror}") from error
        return row | {"state": "asked"}
    if not answer["ok"]:
        raise RecipeError(str(answer["error"]))
    wait_until_active(settings, name, version.sha256)
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


def parity(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Score whole stored plates of the active version again, and hold each tile's score against its
    record, bit for bit. Exit 1 if any differs."""
    try:
        configuration = load_or_exit(config)
        found = check_parity(configuration, Desk.at(configuration).active())
    except (RecipeError, ConfigError, ModelError, StoreError) as error:
        fail(str(error))
    if is_json:
        print_json(found.detail)
    else:
        plates = f"{len(found.results)} stored plates, {found.tiles} tiles"
        say(found.problem or f"{found.recipe}: {plates}: {found.result}")
    raise typer.Exit(1 if found.differing else 0)


def add_to(app: typer.Typer) -> None:
    """The commands, under `vqi model`."""
    app.command("activate")(activate_model)
    app.command()(rollback)
    app.command()(parity)


def activate_model(name: NameArgument, config: ConfigOption, is_json: JsonOption = False) -> None:
    """As `vqi recipe activate`: let an approved version judge, between two plates."""
    activate(name, config, is_json)
