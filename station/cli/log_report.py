"""`vqi log report`: a shift on a sheet of paper."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.cli.log_export import give_way
from station.cli.log_options import Since, Until
from station.config import Configuration, ShiftSettings
from station.export import write_durably
from station.export_source import Source
from station.log_reader import Reader
from station.qms import StoreError

if TYPE_CHECKING:
    from station.shift_report import Span


def report_(
    config: ConfigOption,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: the configuration's journal.reports.")
    ] = None,
    shift: Annotated[str | None, typer.Option(help="As '2026-11-26 early'.")] = None,
    since: Since = None,
    until: Until = None,
    is_due: Annotated[
        bool, typer.Option("--due", help="Each shift that has ended and has no report there yet.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """One HTML page a shift that prints to A4: counts, yield, charts, downtime, what is open."""
    configuration = load_or_exit(config).value
    if sum((shift is not None, since is not None, is_due)) != 1:
        fail("name one: --shift '2026-11-26 early', --since TIME, or --due", 2)
    folder = out or configuration.journal.reports
    if folder is None:
        fail("name the folder: --out FOLDER, or journal.reports in the configuration", 2)
    give_way()
    try:
        with Reader(configuration.journal.directory) as reader, Source(reader.path) as source:
            if note := reader.lag_note:
                _wait(note, is_due)
            for span in _wanted(configuration, source, folder, shift, since, until):
                path = _write(reader, source, configuration.station.id, span, folder)
                _say(path, span, is_json)
    except (StoreError, OSError) as error:
        fail(str(error))


def _wait(note: str, is_due: bool) -> None:
    """No page is made that lacks plates: what is due is made by a later run. Does not return."""
    said = f"{note}; no report is made until then"
    if not is_due:
        fail(said)
    print(f"vqi: {said}", file=sys.stderr)  # noqa: T201
    raise typer.Exit


def _wanted(
    configuration: Configuration,
    source: Source,
    folder: Path,
    shift: str | None,
    since: str | None,
    until: str | None,
) -> list[Span]:
    from station.shift_report import due

    shifts = configuration.journal.shifts
    if since is not None:
        return [_span_of(since, until, shifts)]
    if shifts is None:
        fail("the configuration has no [journal.shifts]; give --since and --until instead", 2)
    if shift is not None:
        return [_shift_named(shift, shifts)]
    first = source.one("SELECT body ->> '$.written_at' FROM row ORDER BY seq LIMIT 1", {})
    now = datetime.now(UTC)
    return due(shifts, now, folder, datetime.fromisoformat(first[0])) if first else []


def _span_of(since: str, until: str | None, shifts: ShiftSettings | None) -> Span:
    from station.shift_report import Span

    zone = ZoneInfo(shifts.timezone) if shifts else UTC
    begin = datetime.fromisoformat(since).astimezone(zone)
    end = datetime.fromisoformat(until).astimezone(zone) if until else datetime.now(zone)
    if end <= begin:
        fail("--until is not after --since", 2)
    title = " to ".join(at.strftime("%Y-%m-%d %H.%M") for at in (begin, end))
    return Span(title, begin.astimezone(UTC), end.astimezone(UTC), zone)


def _shift_named(name: str, shifts: ShiftSettings) -> Span:
    from station.shift_report import span_named

    try:
        return span_named(shifts, name)
    except ValueError as error:
        fail(f"--shift {error}", 2)


def _write(reader: Reader, source: Source, station_id: str, span: Span, folder: Path) -> Path:
    from station.shift_report import report

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / span.file_name
    write_durably(path, report(reader, source, station_id, span))
    return path


def _say(path: Path, span: Span, is_json: bool) -> None:
    if is_json:
        print_json({"file": str(path), "title": span.title})
    else:
        typer.echo(str(path))
