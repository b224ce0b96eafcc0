"""`vqi log archive`: a closed period, to be kept somewhere else for as long as it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, fail, print_json
from station.cli.log_export import give_way
from station.cli.log_options import Config, Journal, Since, Until, open_log
from station.export_source import Source


def archive(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    config: Config = None,
    journal: Journal = None,
    since: Since = None,
    until: Until = None,
    is_json: JsonOption = False,
) -> None:
    """Rows, pictures and Parquet of a period in one folder that `check-archive` in it proves
    without this program. Removes nothing."""
    from station.archive import ArchiveError, make_archive

    if until is None:
        fail("name the end of the period: --until 2026-01-01", 2)
    give_way()
    with open_log(config, journal) as reader, Source(reader.path) as source:
        try:
            made = make_archive(source, reader.directory, reader.images, since, until, out)
        except ArchiveError as error:
            fail(str(error))
    if is_json:
        print_json(made)
    else:
        typer.echo(
            f"{out}: rows {made['before']['seq'] + 1} to {made['last']['seq']}, "
            f"{made['results']} results, {made['pictures']} pictures; check it with "
            f"{out / 'check-archive'}"
        )
