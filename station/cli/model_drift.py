"""`vqi model drift`: the drift watch's limits, charts and alarms; limits learned anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.control import send_command
from station.drift_report import drifts, html, lines
from station.ipc import NotPermitted, PeerGone
from station.log_reader import Reader
from station.qms import StoreError


def drift(
    config: ConfigOption,
    out: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the charts into this file.")
    ] = None,
    relearn: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Forget the limits of what runs now, learn them anew."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """What drifts: limits, the last points of each chart, the last alarms. A row for each recipe,
    camera and model that has limits."""
    settings = load_or_exit(config).value
    if relearn is not None:
        _relearn(settings.station.runtime_dir, relearn, is_json)
        return
    directory = settings.journal.directory
    try:
        with Reader(directory) as reader:
            found = drifts(reader.drift_changes(), directory)
    except StoreError as error:
        fail(str(error))
    if out is not None:
        try:
            out.write_bytes(html(settings.station.id, found))
        except OSError as error:
            fail(f"{out}: {error.strerror}")
    for row in found:
        if is_json:
            print_json(row)
        else:
            for line in lines(row):
                say(line)
    if not (found or is_json):
        wanted = "`vqi control status` says how many plates are learned"
        say(f"{directory}: no limits yet, they are learned from the first plates; {wanted}")


def _relearn(runtime_dir: Path, reason: str, is_json: bool) -> None:
    """Raises typer.Exit with status 1 where the station does not do it."""
    try:
        answer = send_command(runtime_dir, "drift", reason)
    except NotPermitted as error:
        fail(str(error))
    except (PeerGone, TimeoutError) as error:
        fail(f"no station answers in {runtime_dir} ({error}); start it with `vqi run`")
    if not answer["ok"]:
        fail(str(answer["error"]))
    if is_json:
        print_json({"state": answer["state"]})
    else:
        say("limits are learned anew from the plates that come")
