"""`vqi log backup`, `prune`, `hold`, `clock-is-right`: what keeps the log for years."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Config, Journal, Since, Until, journal_folder
from station.config import ConfigError, Configuration
from station.ipc import PeerGone
from station.log_reader import Filter, Reader
from station.qms import StoreError
from station.recipes import active_recipe
from station.record import BackupBody, Body, HoldBody, PictureClass, ReleaseBody
from station.retention import Catalogue, Doomed, Order, all_doomed, is_held, pictures_of

if TYPE_CHECKING:
    from station.journal_client import JournalClient

Json = dict[str, Any]
hold_app = typer.Typer(no_args_is_help=True, help="Keep pictures that a rule would remove.")
_SWEEP_LIMIT_S = 600.0


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return ""


Who = Annotated[str, typer.Option(help="Who asks for it.", default_factory=_user)]
Why = Annotated[str, typer.Option(help="Why; it is kept for ever.")]


@contextlib.contextmanager
def journal_process(configuration: Configuration, wait_s: float = 0.0) -> Iterator[JournalClient]:
    """The running journal process, waited for at most so long; only it writes."""
    from station.journal_client import JournalClient

    client = JournalClient(configuration.station.runtime_dir)
    try:
        client.connect(wait_s)
        yield client
    except (PeerGone, TimeoutError) as error:
        fail(f"{error}; only the journal process writes: start it with `vqi serve journal`")
    except ValueError as error:  # what cannot be sent, as text that is no Unicode
        fail(str(error), 2)
    finally:
        client.close()


# --- backup -------------------------------------------------------------------------------------


def backup(
    to: Annotated[Path, typer.Option(help="Folder of backups; begun if it is new or empty.")],
    config: Config = None,
    journal: Journal = None,
    keep: Annotated[int, typer.Option(min=1, help="Generations of the log.")] = 7,
    all_pictures: Annotated[
        bool, typer.Option("--all-pictures", help="Read every picture again, not a sample.")
    ] = False,
    is_timer: Annotated[bool, typer.Option("--timer", hidden=True)] = False,
    is_json: JsonOption = False,
) -> None:
    """Copy the log and its new pictures beside the running station, and verify the copy. Exit
    status 1 if there is none, or if it lacks pictures."""
    from station.backup import BackupError, make_backup

    folder = journal_folder(config, journal)
    try:
        made = make_backup(folder, to, keep, is_new=not is_timer, read_all=all_pictures)
    except BackupError as error:
        fail(str(error))
    if config is not None and not is_timer:
        configuration = load_or_exit(config).value
        said = {**_said(configuration), **asdict(made)}
        _tell(configuration, BackupBody(is_ok=not made.problem, **said))
    if is_json:
        print_json(asdict(made))
    else:
        typer.echo(
            f"{to / made.generation}: {made.head_seq} rows, {made.pictures} pictures, "
            f"{made.copied} of them new; verified in {made.took_s:.1f} s"
        )
    if made.problem:
        fail(f"the copy lacks pictures: {made.problem}")


def _tell(configuration: Configuration, row: BackupBody) -> None:
    """The log says when it was copied; a backup of a stopped station is as good."""
    from station.journal_client import JournalClient

    client = JournalClient(configuration.station.runtime_dir)
    try:
        client.connect(0.0)
        problem = client.submit([row]).get("error", "")
    except (PeerGone, TimeoutError) as error:
        problem = str(error)
    finally:
        client.close()
    if problem:
        print(f"vqi: the log does not know of it: {problem}", file=sys.stderr)  # noqa: T201


def restore(
    generation: Annotated[Path, typer.Argument(help="A copy: a folder in the folder of backups.")],
    config: ConfigOption,
    who: Who,
    why: Why,
    last_sequence: Annotated[
        int | None,
        typer.Option(min=0, help="Highest plate number known; else it is bounded by the time."),
    ] = None,
    is_without_plant: Annotated[
        bool,
        typer.Option("--without-plant", help="Though the plant's database may have later rows."),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Put a backup's copy in the place of a log that was lost, with all of the station stopped."""
    from station.cli.log_ship import plant_hub
    from station.plant import PlantError
    from station.restore import RestoreError
    from station.restore import restore as put_in_place

    configuration = load_or_exit(config).value
    is_asked = configuration.plant is not None and not is_without_plant
    dsn = os.environ.get("VQI_PLANT_DSN")
    with plant_hub(config, dsn) if is_asked else contextlib.nullcontext() as hub:
        try:
            made = put_in_place(configuration, generation, hub, last_sequence, who, why)
        except (RestoreError, PlantError) as error:
            fail(str(error))
    if is_json:
        print_json(asdict(made))
    else:
        typer.echo(
            f"{made.directory}: {made.copy_rows} rows of the copy, {made.plant_rows} of the plant; "
            f"plates go on after number {made.sequence}; {made.pictures} pictures, "
            f"{made.missing_pictures} of them not there"
        )


# --- prune --------------------------------------------------------------------------------------


def prune(
    config: ConfigOption,
    is_applied: Annotated[
        bool, typer.Option("--apply", help="Have the journal process remove them now.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """What the retention rules remove now, by class; nothing goes without --apply."""
    configuration = load_or_exit(config).value
    rows = _foreseen(configuration)
    if is_applied:
        removed = _apply(configuration)
    for row in rows:
        if is_json:
            print_json(row)
        else:
            typer.echo(_prune_line(row))
    if is_applied and not is_json:
        typer.echo(f"removed {removed['removed']} files, {removed['removed_mb']:.1f} MB")


def _foreseen(configuration: Configuration) -> list[Json]:
    """A row for each class of pictures."""
    rules, journal = configuration.retention.rules, configuration.journal.directory
    try:
        least_days = active_recipe(configuration).value.keep.min_pass_days
        with Reader(journal) as reader:
            database, images = reader.path, reader.images
    except (ConfigError, StoreError) as error:
        fail(str(error))
    with Catalogue(database) as catalogue:
        now = datetime.now(UTC)
        order = Order(log=database, images=images, rules=rules, min_pass_days=least_days, now=now)
        doomed = list(all_doomed(order, catalogue))
        used, holds = catalogue.used(), catalogue.holds()
        return [
            {
                "class": kind,
                "rule": rules[kind].model_dump(exclude_none=True) if kind in rules else {},
                "files": used.get(kind, (0, 0.0))[0],
                "mb": round(used.get(kind, (0, 0.0))[1], 3),
                "held": sum(is_held(one, holds) for one in catalogue.oldest(kind)) if holds else 0,
                **_sums([one for one in doomed if one.picture.picture_class is kind]),
            }
            for kind in PictureClass
        ]


def _sums(doomed: list[Doomed]) -> Json:
    size = sum(one.picture.bytes for one in doomed)
    return {"goes": len(doomed), "goes_mb": round(size / 1e6, 3)}


def _prune_line(row: Json) -> str:
    rule = ", ".join(f"{value:g} {key}" for key, value in row["rule"].items()) or "for ever"
    return (
        f"{row['class']:13} kept {rule:24} {row['files']:8} files {row['mb']:10.1f} MB   "
        f"{row['held']:6} held   goes {row['goes']:8} pictures {row['goes_mb']:10.1f} MB"
    )


def _apply(configuration: Configuration) -> Json:
    with journal_process(configuration) as client:
        before = client.status()["retention"]
        wanted = client.ask("prune")["sweep"]
        deadline = time.monotonic() + _SWEEP_LIMIT_S
        while (after := client.status())["retention"]["sweeps"] < wanted:
            if time.monotonic() > deadline:
                fail("the journal process is still at it; see `vqi log prune` later")
            time.sleep(0.1)
        if after["clock"]["doubt"]:
            fail(str(after["clock"]["doubt"]))
    return {key: after["retention"][key] - before[key] for key in ("removed", "removed_mb")}


# --- hold ---------------------------------------------------------------------------------------


@hold_app.command()
def add(
    config: ConfigOption,
    who: Who,
    why: Why,
    result: Annotated[str | None, typer.Option(help="Result id.")] = None,
    serial: Annotated[str | None, typer.Option(help="Part serial.")] = None,
    lot: Annotated[str | None, typer.Option(help="Lot.")] = None,
    since: Since = None,
    until: Until = None,
    is_json: JsonOption = False,
) -> None:
    """Hold pictures of a result, a serial, a lot or a time; what is given must all be met."""
    configuration = load_or_exit(config).value
    try:
        hold = HoldBody(
            **_said(configuration),
            hold_id=f"hold-{secrets.token_hex(4)}",
            result_id=result,
            part_id=serial,
            lot=lot,
            since_at=since,
            until_at=until,
            who=who,
            why=why,
        )
    except ValidationError as error:
        fail(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}", 2)
    _submit(configuration, hold)
    row = {"hold_id": hold.hold_id, **_covered(configuration, hold)}
    if is_json:
        print_json(row)
    else:
        typer.echo(
            f"{hold.hold_id}: {row['results']} results, {row['pictures']} pictures held; "
            f"{row['removed']} had been removed before"
        )


@hold_app.command()
def release(config: ConfigOption, hold_id: str, who: Who, why: Why) -> None:
    """End a hold; what its rules remove goes at the next sweep."""
    configuration = load_or_exit(config).value
    _submit(configuration, ReleaseBody(**_said(configuration), hold_id=hold_id, who=who, why=why))
    typer.echo(f"{hold_id}: released")


@hold_app.command("list")
def list_(config: Config = None, journal: Journal = None, is_json: JsonOption = False) -> None:
    """The holds that are in force."""
    try:
        with Reader(journal_folder(config, journal)) as reader:
            rows = reader.holds()
    except StoreError as error:
        fail(str(error))
    for row in rows:
        if is_json:
            print_json(row)
        else:
            named = ("result_id", "part_id", "lot", "since_at", "until_at")
            what = ", ".join(f"{key} {row[key]}" for key in named if row[key])
            say(f"{row['hold_id']}  {row['written_at']}  {row['who']}: {row['why']}  {what}")


def clock_is_right(config: ConfigOption, who: Who, why: Why) -> None:
    """After the clock was set: it is right now, and pictures may be removed by it again."""
    with journal_process(load_or_exit(config).value) as client:
        answer = client.ask("clock_is_right", who=who, why=why)
    if not answer["ok"]:
        fail(str(answer["error"]))
    typer.echo("written; pictures may be removed again")


def _said(configuration: Configuration) -> dict[str, Any]:
    return {"station_id": configuration.station.id}


def _submit(configuration: Configuration, row: Body) -> None:
    with journal_process(configuration) as client:
        answer = client.submit([row])
    if not answer["ok"]:
        fail(str(answer["error"]))


def _covered(configuration: Configuration, hold: HoldBody) -> Json:
    """How many results and pictures a hold covers, and how many pictures came too late."""
    found = {"results": 0, "pictures": 0, "removed": 0}
    with Reader(configuration.journal.directory) as reader:
        wanted = Filter(hold.since_at, hold.until_at, hold.part_id)
        for row in reader.results(wanted):
            if hold.result_id not in (None, row["result_id"]):
                continue
            if hold.lot not in (None, row.get("lot")):
                continue
            live = pictures_of(reader.of_result(row["result_id"]))
            found["results"] += 1
            found["pictures"] += len(live)
            found["removed"] += len(row["images"]) - len(live)
    return found
