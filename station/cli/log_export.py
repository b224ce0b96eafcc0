"""`vqi log export`: results for QA's own tools."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, fail, load_or_exit, print_json
from station.cli.log_options import Config, Journal, open_log, selecting
from station.export import FORMATS, STREAMED, Wish, check_export, chosen, export_to, stream
from station.export_rows import ExportError
from station.export_source import Source
from station.log_reader import Reader
from station.questions import Selection

Out = Annotated[
    Path | None, typer.Option(help="Write this file and its manifest; without it: stdout.")
]

ExportOption = Annotated[
    Path | None, typer.Option(help="Also compare this exported file with the log, row by row.")
]


@selecting
def export(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    format_: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "csv",
    out: Out = None,
    is_json: JsonOption = False,
) -> None:
    """Results, oldest first: to stdout, or to a file that `vqi log verify --export` can check."""
    _see_format(format_, out, is_json)
    give_way()
    with open_log(config, journal) as reader, Source(reader.path) as source:
        try:
            wish = Wish(format_, chosen(reader, selection), timezone_of(config), reader.images)
            if out is None:
                _to_stdout(source, wish)
                return
            manifest = export_to(source, wish, out)
        except ExportError as error:
            fail(str(error))
    if is_json:
        print_json(manifest)
    else:
        typer.echo(f"{out}: {manifest['rows']} results, as of row {manifest['head']['seq']}")


def _see_format(format_: str, out: Path | None, is_json: bool) -> None:
    if format_ not in FORMATS:
        fail(f"--format {format_}: {', '.join(FORMATS[:-1])} or {FORMATS[-1]}", 2)
    if out is None and format_ not in STREAMED:
        fail(f"--format {format_} is a file: name it with --out FILE", 2)
    if out is None and is_json:
        fail("--json says what was written: name the file with --out FILE", 2)
    if out is not None and not out.parent.is_dir():
        fail(f"{out.parent}: there is no such folder", 2)


def _to_stdout(source: Source, wish: Wish) -> None:
    try:
        stream(source, wish, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def differences(reader: Reader, path: Path) -> list[str]:
    """What an exported file says that the log does not."""
    with Source(reader.path) as source:
        return check_export(source, path)


def timezone_of(config: str | None) -> str | None:
    """IANA name of the zone in which people read times; None: UTC."""
    if config is None:
        return None
    shifts = load_or_exit(config).value.journal.shifts
    return shifts.timezone if shifts else None


def give_way() -> None:
    """Whatever this process does can wait for the line."""
    os.nice(19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
