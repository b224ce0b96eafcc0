"""`vqi model compare`, `flips`, `sign-flip`: what another model would have judged otherwise, and
who answers for it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Since, Until
from station.cli.log_upkeep import Who
from station.compare import (
    REPORT_HTML,
    REPORT_JSON,
    CompareError,
    Contestant,
    Plan,
    Replayed,
    contestant,
    count_plates,
    open_plan,
    read_register,
    replay,
)
from station.compare_report import Report, build_report, compared_change, write_report
from station.comparisons import Comparison, ComparisonError, Opinion, signed_change
from station.config import Configuration, Loaded
from station.ipc import Json
from station.qms import StoreError
from station.record import ChangeBody, score_text
from station.signing import SigningError, journal_at_hand

COMPARISONS = "comparisons"
"""Folder in the journal's directory, where no --out is given."""
ThresholdOption = typer.Option(
    min=0, max=1, help="Default: the recipe's that names this model, or else its card's."
)
ShaArgument = Annotated[
    str, typer.Option("--comparison", help="sha256 of its report, or the first 8 digits.")
]


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What cannot be done, as one line and exit status 1."""
    try:
        yield
    except (CompareError, ComparisonError, SigningError, StoreError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")


_Made = tuple[Path, Plan, Report, bytes]


def compare(
    a: Annotated[str, typer.Argument(help="The model that judges: id, folder or ID@VERSION.")],
    b: Annotated[str, typer.Argument(help="The candidate: id, folder or ID@VERSION.")],
    config: ConfigOption,
    since: Since,
    who: Who,
    until: Until = None,
    threshold_a: Annotated[float | None, ThresholdOption] = None,
    threshold_b: Annotated[float | None, ThresholdOption] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; there a stopped run goes on."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Replay stored plates through two models: every flip by plate, riskiest first.

    Gives way to a running station. ID@VERSION is a recipe's version: its model and threshold.
    """
    assert since is not None  # it has no default
    loaded = load_or_exit(config)

    def work() -> _Made:
        sides = (contestant(loaded, a, threshold_a), contestant(loaded, b, threshold_b))
        folder = out or _usual_folder(loaded.value, sides, since)
        folder.mkdir(parents=True, exist_ok=True)
        plan = open_plan(folder, loaded, sides, since, until)
        report = build_report(plan, _replay(loaded, folder, plan, sides), folder)
        return folder, plan, report, write_report(report, folder)

    with _errors():
        folder, plan, report, page = _aside(work)
        row = _submit(loaded, compared_change(report, page, who))
    for plate in report.flips:
        if is_json:
            print_json(_flip(plate))
        else:
            say(_line(plate))
    summary = {
        "report_sha256": report.sha256,
        "report": str(folder / REPORT_JSON),
        "page": str(folder / REPORT_HTML),
        "row": row,
        "sample_seed": plan.sample_seed,
        **report.figures.model_dump(mode="json"),
        "differing": list(report.differing),
    }
    if is_json:
        print_json({"summary": summary})
    else:
        _say_summary(report, folder, row)


def _aside(work: Callable[[], _Made]) -> _Made:
    """What it gives, by a thread that gives way. Not this one: the journal process that it may
    start has its priority, and is waited for some seconds only."""
    done: Future[_Made] = Future()

    def run() -> None:
        _give_way()
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001, raised by `result`
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


def _give_way() -> None:
    """To every other process: it may take its time."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _usual_folder(
    settings: Configuration, sides: tuple[Contestant, Contestant], since: str
) -> Path:
    names = [f"{one.model.sha256[:8]}-{one.model.threshold:g}" for one in sides]
    return settings.journal.directory / COMPARISONS / f"{'-'.join(names)}-{since[:19]}"


def _replay(
    loaded: Loaded[Configuration],
    folder: Path,
    plan: Plan,
    sides: tuple[Contestant, Contestant],
) -> list[Replayed]:
    count = count_plates(loaded.value.journal.directory, plan)
    console = Console(stderr=True)
    steps = iter(track(range(count), "replaying plates", console=console, transient=True))
    return replay(loaded, folder, plan, sides, lambda: next(steps, None))


def _submit(loaded: Loaded[Configuration], row: ChangeBody) -> int:
    """The row's number. Raises `SigningError` where it is refused."""
    with journal_at_hand(loaded.source, loaded.value) as journal:
        answer = journal.submit([row])
    if not answer["ok"]:
        raise SigningError(str(answer["error"]))
    return int(answer["seq"][0])


def _flip(plate: Replayed) -> Json:
    """A flip as a row, without the texts of rows that are the same for all."""
    fields = plate.model_dump(mode="json", exclude={"unplayed", "recipe_sha256"})
    return {"flip": plate.flip, "is_to_sign": plate.is_to_sign, **fields}


def _line(plate: Replayed) -> str:
    assert plate.a is not None
    assert plate.b is not None
    scores = ", ".join(
        f"{name} {'–' if one.score is None else score_text(one.score)}"
        for name, one in (("A", plate.a), ("B", plate.b))
    )
    person = f", a person judged {plate.reviewed}" if plate.reviewed else ""
    part = f" {plate.part_id}" if plate.part_id else ""
    return f"{plate.result_id}{part}  {plate.flip}  {scores}{person}"


def _say_summary(report: Report, folder: Path, row: int) -> None:
    found = report.figures
    flips = ", ".join(f"{count} {name}" for name, count in found.flips.items()) or "no flips"
    say(f"{found.replayed} of {found.results} results replayed: {flips}")
    for one in found.strata:
        if one.plates:
            of_all = one.to_pass_of_all
            reach = "" if of_all is None else f"; {of_all[0]} to {of_all[1]} of all {one.plates}"
            say(
                f"  {one.name} ({one.kept_by}): {one.replayed} of {one.plates}, only B passes "
                f"{one.to_pass.count}{reach}"
            )
    for test in found.tests:
        found_p = test.says if test.p_value is None else f"p {test.p_value:.3g}"
        say(f"  McNemar, {test.name}: A {test.only_a}, B {test.only_b}, {found_p}")
    say(f"  replay: {', '.join(f'{count} {name}' for name, count in found.agreement.items())}")
    for verdict, why, count in found.unplayed:
        say(f"  not replayed: {count} {verdict}, {why}")
    if report.differing:
        say(f"warning: not what was recorded: {', '.join(report.differing[:5])}")
    say(f"row {row}, report {folder / REPORT_HTML}")
    if found.to_sign:
        say(f"{found.to_sign} to sign: vqi model flips --comparison {report.sha256[:12]}")


def flips(
    config: ConfigOption,
    sha: Annotated[
        str, typer.Option("--comparison", help="sha256 of its report; default: all there are.")
    ] = "",
    sample: Annotated[
        int, typer.Option(min=0, help="Only the sample of this size that the seed draws.")
    ] = 0,
    is_json: JsonOption = False,
) -> None:
    """Comparisons and whether they are complete; with --comparison, each flip to sign and who
    signed it."""
    loaded = load_or_exit(config)
    with _errors():
        known = read_register(loaded.value.journal.directory)
        if not sha:
            for one in known.known.values():
                if is_json:
                    print_json(_comparison_row(one))
                else:
                    say(_comparison_line(one))
            return
        one = known.of(sha)
        names = one.sample(sample) if sample else one.to_sign
        for name in names:
            row = _signature_row(one, name)
            if is_json:
                print_json(row)
            else:
                said = f"{row['opinion']} by {row['who']}: {row['reason']}"
                mark = "  A PERSON JUDGED IT DEFECTIVE" if row["is_confirmed"] else ""
                say(f"{name}  {said if row['opinion'] else 'not signed'}{mark}")
    if not is_json:
        for why in one.missing:
            say(f"missing: {why}")


def _comparison_row(one: Comparison) -> Json:
    return {
        "comparison": one.sha256,
        "a": one.before.id,
        "b": one.after.id,
        "a_sha256": one.before.sha256,
        "b_sha256": one.after.sha256,
        "a_threshold": one.before.threshold,
        "b_threshold": one.after.threshold,
        "since": one.since,
        "until": one.until,
        "plates": one.plates,
        "flips": dict(one.flips),
        "to_sign": len(one.to_sign),
        "unsigned": list(one.unsigned),
        "escapes": list(one.escapes),
        "sample": one.sampled,
        "is_complete": one.is_complete,
        "missing": list(one.missing),
    }


def _comparison_line(one: Comparison) -> str:
    state = "complete" if one.is_complete else "; ".join(one.missing)
    return (
        f"{one.sha256[:12]}  {one.before.id} at {one.before.threshold:g} -> {one.after.id} at "
        f"{one.after.threshold:g}, {one.plates} plates, {len(one.to_sign)} to sign: {state}"
    )


def _signature_row(one: Comparison, name: str) -> Json:
    said = one.by_result.get(name)
    return {
        "result_id": name,
        "is_confirmed": name in one.confirmed,
        "opinion": said.opinion if said else "",
        "who": said.who if said else "",
        "at": said.at if said else "",
        "reason": said.reason if said else "",
        "sample": said.sample if said else 0,
    }


def sign_flip(
    config: ConfigOption,
    sha: ShaArgument,
    who: Annotated[str, typer.Option(help="Who looked at it; stands in the log.")],
    reason: Annotated[str, typer.Option(help="Why it may pass, or why not; stands in the log.")],
    result_id: Annotated[str, typer.Argument(help="One flip, as `flips` lists it.")] = "",
    sample: Annotated[
        int, typer.Option(min=0, help="Instead: the sample of this size that the seed draws.")
    ] = 0,
    is_escape: Annotated[
        bool, typer.Option("--escape", help="It must not pass: the candidate would let it escape.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Sign that a plate which only the candidate passes may pass, or say that it is an escape."""
    if bool(result_id) == bool(sample):
        fail("name one result, or --sample N", 2)
    if sample and is_escape:
        fail("an escape is said of one plate, not of a sample", 2)
    loaded = load_or_exit(config)
    with _errors():
        one = read_register(loaded.value.journal.directory).of(sha)
        names = one.sample(sample) if sample else (result_id,)
        opinion: Opinion = "escape" if is_escape else "accepted"
        row = signed_change(loaded.value.station.id, one, names, opinion, who, reason, sample)
        seq = _submit(loaded, row)
        one = read_register(loaded.value.journal.directory).of(one.sha256)
    if is_json:
        print_json({"row": seq, "opinion": opinion, "result_ids": list(names),
                    "is_complete": one.is_complete, "missing": list(one.missing)})  # fmt: skip
    else:
        left = "; ".join(one.missing) or "complete"
        say(f"row {seq}: {len(names)} {opinion} by {who}; comparison {one.sha256[:12]}: {left}")
