"""`vqi log`: what QA asks of the record."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from station.cli import log_export, log_report, log_upkeep
from station.cli.common import JsonOption, fail, print_json
from station.cli.log_options import Config, Journal, Serial, Since, Until, Wanted, journal_folder
from station.export import check_export
from station.export_source import Source
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import Json, StoreError
from station.record import score_text

app = typer.Typer(no_args_is_help=True)
app.add_typer(log_upkeep.hold_app, name="hold")
app.command("export")(log_export.export)
app.command("report")(log_report.report_)
app.command("backup")(log_upkeep.backup)
app.command("prune")(log_upkeep.prune)
app.command("clock-is-right")(log_upkeep.clock_is_right)


@contextlib.contextmanager
def _reader(config: str | None, journal: Path | None) -> Iterator[Reader]:
    """The log, and a line on stderr that says which file was read."""
    try:
        with Reader(journal_folder(config, journal)) as reader:
            print(f"vqi: {reader.source_note}", file=sys.stderr)  # noqa: T201
            yield reader
    except StoreError as error:
        fail(str(error))


@app.command("list")
def list_(
    config: Config = None,
    journal: Journal = None,
    since: Since = None,
    until: Until = None,
    serial: Serial = None,
    verdict: Wanted = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    is_json: JsonOption = False,
) -> None:
    """The newest results first."""
    with _reader(config, journal) as reader:
        for row in reader.results(Filter(since, until, serial, verdict), True, limit):
            if is_json:
                print_json(_without_arrays(row))
            else:
                typer.echo(_line(row))


@app.command()
def show(
    result_id: str, config: Config = None, journal: Journal = None, is_json: JsonOption = False
) -> None:
    """Every row about one result, the result itself first."""
    with _reader(config, journal) as reader:
        rows = reader.of_result(result_id)
        if not rows:
            fail(f"{result_id}: no such result in {reader.path}")
        for row in rows:
            if is_json:
                print_json(row)
            else:
                typer.echo(json.dumps(_without_arrays(row), indent=2, ensure_ascii=False))


@app.command()
def stats(
    config: Config = None,
    journal: Journal = None,
    since: Since = None,
    until: Until = None,
    is_json: JsonOption = False,
) -> None:
    """Counts by verdict and reason."""
    with _reader(config, journal) as reader:
        found = reader.stats(Filter(since, until))
    if is_json:
        print_json(found)
        return
    typer.echo(f"results {found['results']}")
    for group in ("verdicts", "reasons"):
        for name, count in sorted(found[group].items()):
            typer.echo(f"{name:14} {count}")


@app.command()
def attentions(
    config: Config = None, journal: Journal = None, since: Since = None, is_json: JsonOption = False
) -> None:
    """When the station began to need a person, and when no more; oldest first."""
    with _reader(config, journal) as reader:
        for row in reader.bodies("attention", since or ""):
            if is_json:
                print_json(row)
            else:
                typer.echo(_attention_line(row))


@app.command("verify")
def verify_(
    config: Config = None,
    journal: Journal = None,
    pictures: Annotated[bool, typer.Option(help="Also read every picture.")] = True,
    export: Annotated[
        Path | None, typer.Option(help="Also compare this exported file with the log.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Recompute every hash, the chain and the pictures. Exit status 1 if anything differs."""
    with _reader(config, journal) as reader:
        found = verify(reader, pictures)
        if export is not None:
            with Source(reader.path) as log:
                found.findings += check_export(log, export)
        source = reader.source
    if is_json:
        print_json(
            {
                "ok": not found.findings,
                "source": source,
                "rows": found.rows,
                "results": found.results,
                "open_plates": found.open_plates,
                "images": found.images,
                "tombstones": found.tombstones,
                "holds": found.holds,
                "head": found.head,
                "findings": found.findings,
                "notes": found.notes,
            }
        )
    else:
        for finding in found.findings:
            typer.echo(finding)
        for note in found.notes:
            typer.echo(f"note: {note}")
        typer.echo(
            f"{'ok' if not found.findings else 'NOT OK'}: {found.rows} rows, {found.results} "
            f"results, {found.images} pictures ({found.tombstones} removed by a rule), "
            f"{found.holds} holds, head {found.head[:16]}"
        )
    raise typer.Exit(1 if found.findings else 0)


def _without_arrays(row: Json) -> Json:
    return {key: value for key, value in row.items() if key not in ("tile_grid", "tile_scores")}


def _line(row: Json) -> str:
    score = "" if row["score"] is None else f"score {score_text(row['score'])}"
    reason = f"{row['reason']}: {row['detail']}" if row["reason"] else ""
    places = " ".join(f"({d['x_mm']:.0f}, {d['y_mm']:.0f}) mm" for d in row["defects"][:3])
    review = f"reviewed {row['review']['verdict']}" if row["review"] else ""
    parts = (row["written_at"], row["result_id"], f"{row['verdict']:9}", score, reason, places)
    return "  ".join(part for part in (*parts, review) if part)


def _attention_line(row: Json) -> str:
    state = "ATTENTION" if row["is_begin"] else "ended    "
    figures = f"measured {row['measured']:.4g}, limit {row['limit']:.4g} {row['unit']}"
    since = f"since {row['since_result_id']}" if row["since_result_id"] else ""
    parts = (row["written_at"], row["result_id"], state, row["text"], figures, since)
    return "  ".join(part for part in parts if part)
