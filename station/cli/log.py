"""`vqi log`: what QA asks of the record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from station import open_plates
from station.answers import bodies, without_arrays
from station.cli import (
    log_archive,
    log_export,
    log_proof,
    log_questions,
    log_report,
    log_review,
    log_serials,
    log_ship,
    log_upkeep,
)
from station.cli.common import JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import (
    Config,
    Journal,
    Since,
    open_log,
    open_tables,
    selecting,
)
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import Json
from station.questions import Questions, Selection
from station.record import score_text
from station.whole_check import hold_against_anchors, verification_row

app = typer.Typer(no_args_is_help=True)
app.add_typer(log_upkeep.hold_app, name="hold")
app.add_typer(log_proof.key_app, name="key")
app.command("checkpoint")(log_proof.checkpoint)
app.command("consistency")(log_proof.consistency)
app.command("certificate")(log_proof.certificate)
app.command("review")(log_review.review)
app.command("reviews")(log_review.reviews)
app.command("export")(log_export.export)
app.command("report")(log_report.report_)
app.command("archive")(log_archive.archive)
app.command("backup")(log_upkeep.backup)
app.command("restore")(log_upkeep.restore)
app.command("ship")(log_ship.ship)
app.command("prune")(log_upkeep.prune)
app.command("clock-is-right")(log_upkeep.clock_is_right)
app.command("serials")(log_serials.serials)
log_questions.register(app)

_SHOWN = 500
"""Plates that `show` shows at most where options choose them."""


@app.command("list")
@selecting
def list_(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    after: Annotated[int | None, typer.Option(help="Go on after this row, by its seq.")] = None,
    is_open: Annotated[
        bool,
        typer.Option("--open", help="Plates that somebody must still see to; the oldest first."),
    ] = False,
    is_plant: log_ship.Plant = False,
    station: log_ship.Station = None,
    is_json: JsonOption = False,
) -> None:
    """The newest results first."""
    if is_open and (is_plant or selection != Selection()):
        fail("--open lists this station's open plates, and takes no other choice of plates", 2)
    if is_plant:
        if after is not None:
            fail("--after goes on in a station's own log; of --plant choose by --since", 2)
        for row in log_ship.plant_results(config, replace(selection, station=station), limit):
            _say(row, is_json)
        return
    with open_tables(config, journal) as reader:
        if is_open:
            for row in bodies(reader, open_plates.page(reader, limit, after=after or 0)):
                _say(row, is_json)
            return
        questions = Questions(reader.ask)
        before = None if after is None else questions.key_of(after)
        if after is not None and before is None:
            fail(f"--after {after}: no such result in {reader.path}")
        for page in questions.pages(selection, limit, before):
            for row in bodies(reader, page):
                _say(row, is_json)


def _say(row: Json, is_json: bool) -> None:
    if is_json:
        print_json(without_arrays(row))
    else:
        say(_line(row))


@app.command()
@selecting
def show(
    selection: Selection,
    result_id: Annotated[str | None, typer.Argument(help="Or choose plates by options.")] = None,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """Every row about a result, or about each plate chosen, the result itself first."""
    if result_id is None and selection == Selection():
        fail("name a result, or choose plates, as by --serial", 2)
    with open_tables(config, journal) as reader:
        chosen = [result_id] if result_id else _result_ids(reader, selection)
        found = False
        for one in chosen:
            for row in reader.of_result(one):
                found = True
                if is_json:
                    print_json(row)
                else:
                    _show(row)
        if not found:
            fail(f"{result_id or 'what was asked for'}: no such result in {reader.path}")


def _show(row: Json) -> None:
    for line in json.dumps(without_arrays(row), indent=2, ensure_ascii=False).split("\n"):
        say(line)


def _result_ids(reader: Reader, selection: Selection) -> list[str]:
    """Of the newest plates chosen, oldest first."""
    pages = Questions(reader.ask).pages(selection, _SHOWN)
    return [line.result_id for page in pages for line in page][::-1]


@app.command()
@selecting
def stats(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    is_plant: log_ship.Plant = False,
    station: log_ship.Station = None,
    is_json: JsonOption = False,
) -> None:
    """Counts by verdict and reason."""
    by = ("verdict", "reason")
    if is_plant:
        found = _sums(log_ship.plant_counts(config, replace(selection, station=station), *by))
    else:
        with open_tables(config, journal) as reader:
            found = _sums(Questions(reader.ask).counts(selection, *by))
    if is_json:
        print_json(found)
        return
    typer.echo(f"results {found['results']}")
    for group in ("verdicts", "reasons"):
        for name, count in sorted(found[group].items()):
            typer.echo(f"{name:14} {count}")


def _sums(rows: Sequence[Any]) -> Json:
    verdicts, reasons = Counter[str](), Counter[str]()
    for row in rows:
        verdicts[row.verdict] += row.plates
        if row.reason:
            reasons[row.reason] += row.plates
    return {"results": verdicts.total(), "verdicts": dict(verdicts), "reasons": dict(reasons)}


@app.command()
def attentions(
    config: Config = None, journal: Journal = None, since: Since = None, is_json: JsonOption = False
) -> None:
    """When the station began to need a person, and when no more; oldest first."""
    with open_log(config, journal) as reader:
        for row in reader.bodies("attention", since or ""):
            if is_json:
                print_json(row)
            else:
                say(_attention_line(row))


@app.command("verify")
def verify_(
    config: Config = None,
    journal: Journal = None,
    pictures: Annotated[bool, typer.Option(help="Also read every picture.")] = True,
    file: Annotated[
        bool, typer.Option(help="Also hold indexes against tables, in one read of the whole file.")
    ] = True,
    anchor: log_proof.AnchorOption = None,
    public_key: log_proof.PublicKeyOption = None,
    export: log_export.ExportOption = None,
    is_plant: log_ship.Plant = False,
    station: log_ship.Station = None,
    is_json: JsonOption = False,
) -> None:
    """Recompute every hash, the chain, checkpoints and pictures, and hold the log against anchors
    that lie outside it. Exit status 1 if anything differs."""
    if is_plant:
        log_ship.verify_plant(config, station, is_json)
    with open_log(config, journal) as reader:
        found = verify(reader, pictures, public_key, with_file=file)
        settings = None if config is None else load_or_exit(config).value
        hold_against_anchors(reader, settings, anchor or [], found)
        if export is not None:
            found.findings += log_export.differences(reader, export)
        source = reader.source
    if is_json:
        print_json(verification_row(found, source))
    else:
        for finding in found.findings:
            say(finding)
        for note in found.notes:
            say(f"note: {note}")
        typer.echo(
            f"{'ok' if not found.findings else 'NOT OK'}: {found.rows} rows, {found.results} "
            f"results, {found.images} pictures ({found.tombstones} removed by a rule), "
            f"{found.holds} holds, {found.anchors} anchors, head {found.head[:16]}"
        )
    raise typer.Exit(1 if found.findings else 0)


def _line(row: Json) -> str:
    score = "" if row["score"] is None else f"score {score_text(row['score'])}"
    reason = f"{row['reason']}: {row['detail']}" if row["reason"] else ""
    places = " ".join(f"({d['x_mm']:.0f}, {d['y_mm']:.0f}) mm" for d in row["defects"][:3])
    review = log_review.review_text(row["review"]) if row["review"] else ""
    parts = (row["written_at"], row["result_id"], f"{row['verdict']:9}", score, reason, places)
    return "  ".join(part for part in (*parts, review) if part)


def _attention_line(row: Json) -> str:
    state = "ATTENTION" if row["is_begin"] else "ended    "
    figures = f"measured {row['measured']:.4g}, limit {row['limit']:.4g} {row['unit']}"
    since = f"since {row['since_result_id']}" if row["since_result_id"] else ""
    parts = (row["written_at"], row["result_id"], state, row["text"], figures, since)
    return "  ".join(part for part in parts if part)
