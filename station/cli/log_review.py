"""`vqi log review`, `reviews`: what people say of a plate after its verdict."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Config, Journal, journal_folder
from station.cli.log_upkeep import Who, journal_process
from station.config import Configuration
from station.ipc import PeerGone
from station.log_reader import Reader
from station.qms import StoreError
from station.record import MarkedPlaceBody, NamedDefectBody, ReviewBody, Verdict
from station.reviews import effective_verdict, last_judged

Json = dict[str, Any]
_RESEND_S = 15.0
"""A journal process that dies is back within this time."""


def review(
    result_id: str,
    config: ConfigOption,
    verdict: Annotated[Verdict, typer.Option(case_sensitive=False, help="What the plate is.")],
    reason: Annotated[str, typer.Option(help="A code of the recipe's review.reasons.")],
    who: Who,
    note: Annotated[str, typer.Option(help="In your words; it is kept for ever.")] = "",
    defect: Annotated[
        list[str] | None,
        typer.Option(metavar="N=KIND", help="Name a defect, numbered from 0 as `show` lists them."),
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="X,Y,W,H=KIND",
            help="Mark a defect that the station did not list: its box in px of the picture.",
        ),
    ] = None,
    disposition: Annotated[
        str, typer.Option(help="What becomes of it: removed, rework, scrap or use.")
    ] = "",
    supersedes: Annotated[
        int | None,
        typer.Option(help="Row that you saw last (`show`: seq); left out: the last there is."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Judge a plate again. It is a new row: what was said before stays, and is superseded."""
    configuration = load_or_exit(config).value
    wanted = {
        "result_id": result_id,
        "verdict": verdict,
        "reason": reason,
        "reviewer": who,
        "note": note,
        "defects": [_named(one) for one in defect or ()],
        "places": [_marked(one) for one in mark or ()],
        "disposition": disposition,
        "supersedes": supersedes or _last_row(configuration, result_id),
    }
    seq = _submit(configuration, _body(configuration, wanted))
    with _reader(configuration) as reader:
        row = _judged(reader.of_result(result_id))
    if is_json:
        print_json({"seq": seq, **row})
    else:
        say(f"row {seq}: {_line(row)}")


def reviews(
    config: Config = None,
    journal: Journal = None,
    is_pending: Annotated[
        bool, typer.Option("--pending", help="Only plates that wait for a second person.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Every plate that a person judged, and what holds of it now."""
    try:
        with Reader(journal_folder(config, journal)) as reader:
            ids = dict.fromkeys(body["result_id"] for body in reader.bodies("review"))
            rows = [_judged(reader.of_result(one)) for one in ids]
    except StoreError as error:
        fail(str(error))
    for row in rows:
        if is_pending and not row["pending"]:
            continue
        if is_json:
            print_json(row)
        else:
            say(_line(row))


def review_text(review: Json) -> str:
    """What a result's reviews come to, in a few words."""
    stands = f"reviewed {review['verdict']}" if review["verdict"] else ""
    waits = "a review waits for a second person" if review["pending"] else ""
    return ", ".join(part for part in (stands, waits) if part)


def _named(given: str) -> NamedDefectBody:
    number, _, kind = given.partition("=")
    if not number.isdecimal() or not kind:
        fail(f"--defect {given!r}: write the defect's number and its kind, as 0=scratch", 2)
    return NamedDefectBody(number=int(number), kind=kind)


def _marked(given: str) -> MarkedPlaceBody:
    try:
        return MarkedPlaceBody.of_text(given)
    except ValueError:
        fail(f"--at {given!r}: write left, top, width and height in px, kind: 9,9,30,8=dent", 2)


def _last_row(configuration: Configuration, result_id: str) -> int:
    with _reader(configuration) as reader:
        last = last_judged(reader.of_result(result_id))
    if last is None:
        fail(f"{result_id}: no such result in {configuration.journal.directory}")
    return last


def _reader(configuration: Configuration) -> Reader:
    try:
        return Reader(configuration.journal.directory)
    except StoreError as error:
        fail(str(error))


def _body(configuration: Configuration, given: Json) -> ReviewBody:
    said = {"station_id": configuration.station.id, "nonce": secrets.token_hex(16)}
    try:
        return ReviewBody.model_validate({**said, **given})
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", 2)


def _submit(configuration: Configuration, row: ReviewBody) -> int:
    """Number of its row. A journal process that dies meanwhile is asked again: it is one row."""
    deadline, wait_s = time.monotonic() + _RESEND_S, 0.0
    while True:
        with journal_process(configuration, wait_s) as client:
            try:
                answer = client.submit([row])
                break
            except (PeerGone, TimeoutError):
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    raise
    if not answer["ok"]:
        fail(str(answer["error"]))
    return int(answer["seq"][0])


def _judged(rows: list[Json]) -> Json:
    """A result's verdict, and what its reviews come to."""
    judged, result = effective_verdict(rows), rows[0]
    last = next((row for row in reversed(rows) if row["kind"] == "review"), {})
    return {
        "result_id": result["result_id"],
        "own_verdict": result["verdict"],
        "verdict": str(judged.verdict),
        "reviewers": list(judged.reviewers),
        "pending": judged.pending is not None,
        "last": last,
    }


def _line(row: Json) -> str:
    last = row["last"]
    by = ", ".join(row["reviewers"]) or "the station"
    waits = (
        f"; {last['verdict']} by {last['reviewer']} waits for a second person"
        if row["pending"]
        else ""
    )
    said = ", ".join(
        part for part in (last["reason"], last.get("note"), last.get("disposition")) if part
    )
    return f"{row['result_id']}: {row['verdict']} by {by}{waits} ({said})"
