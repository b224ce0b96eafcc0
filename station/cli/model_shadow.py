"""`vqi model shadow`: a candidate model scores what the active one judges, and nobody sees it."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from models.card import ModelError, read_card
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.config import ConfigError, Configuration, Loaded
from station.control import send_command
from station.ipc import Json, PeerGone
from station.log_reader import Reader
from station.product import limits_of, load_product, named_model
from station.qms import DATABASE, StoreError
from station.record import ChangeBody, score_text
from station.shadow import candidate
from station.shadow_report import Comparison, comparisons
from station.shadows import (
    LEAST_SHARE,
    MOST_SHARE,
    Register,
    Shadow,
    ShadowError,
    objection,
    register,
    started_change,
    stopped_change,
)
from station.signing import SigningError, journal_at_hand

app = typer.Typer(no_args_is_help=True, help="A model in the shadow: start, stop, status, report.")

WhoOption = Annotated[
    str | None, typer.Option(help="Who does it; stands in the log. Default: the user.")
]
ReasonOption = Annotated[str, typer.Option(help="Why; stands in the log.")]


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except (ShadowError, SigningError, StoreError, ModelError, ConfigError) as error:
        fail(str(error))


def _known(settings: Configuration) -> Register:
    """What the log says; nothing where there is none yet. Raises `StoreError`."""
    if not (settings.journal.directory / DATABASE).exists():
        return Register()
    with Reader(settings.journal.directory) as reader:
        return register(reader.shadow_changes())


def _submit(loaded: Loaded[Configuration], known: Register, row: ChangeBody) -> int:
    """The row's number. Raises `ShadowError`, `SigningError`."""
    problem = objection(known, row.as_json())
    if problem:
        raise ShadowError(problem)
    with journal_at_hand(loaded.source, loaded.value) as journal:
        answer = journal.submit([row])
    if not answer["ok"]:
        raise ShadowError(answer["error"])
    return int(answer["seq"][0])


@app.command("start")
def start(
    model: Annotated[
        str,
        typer.Argument(help="Id in the store or shipped, folder, or recipe version ID@VERSION."),
    ],
    config: ConfigOption,
    reason: ReasonOption,
    share: Annotated[
        float,
        typer.Option(min=LEAST_SHARE, max=MOST_SHARE, help="Of one core, that it may take."),
    ] = 0.2,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: the version's, else the card's.")
    ] = None,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Let a model score plates in the shadow, once card, bytes and golden scores are right."""
    loaded = load_or_exit(config)
    with _plain_errors():
        found, own = named_model(loaded.value, model)
        folder = found.resolve()
        card, recipe = read_card(folder), load_product(loaded)
        fails_above, unsure_above = limits_of(loaded.value, card, own, threshold)
        row = started_change(
            loaded.value.station.id,
            folder=str(folder),
            model_id=card.id,
            sha256=card.sha256,
            threshold=fails_above,
            unsure_above=unsure_above,
            share=share,
            who=who or getpass.getuser(),
            reason=reason,
        )
        known = _known(loaded.value)
        shadow = register([row.as_json()]).active
        if shadow is None:
            raise ShadowError(objection(Register(), row.as_json()))
        classifier = candidate(loaded, recipe, shadow)
        seq = _submit(loaded, known, row)
    said = {"row": seq, **_said(shadow), "runtime": classifier.runtime}
    if is_json:
        print_json(said)
    else:
        say(f"in the shadow: {_line(shadow)}; row {seq}; {classifier.runtime}")


@app.command("stop")
def stop(
    config: ConfigOption, reason: ReasonOption, who: WhoOption = None, is_json: JsonOption = False
) -> None:
    """End the shadow; what it scored stays in the log."""
    loaded = load_or_exit(config)
    with _plain_errors():
        known = _known(loaded.value)
        if known.active is None:
            raise ShadowError("no model is in the shadow")
        shadow, name = known.active, who or getpass.getuser()
        row = stopped_change(loaded.value.station.id, shadow, name, reason)
        seq = _submit(loaded, known, row)
    if is_json:
        print_json({"row": seq, "model_id": shadow.model_id, "sha256": shadow.sha256})
    else:
        say(f"not in the shadow any more: {_line(shadow)}; row {seq}")


@app.command("status")
def status(config: ConfigOption, is_json: JsonOption = False) -> None:
    """What is in the shadow by the log, and how its process is by the station that runs."""
    settings = load_or_exit(config).value
    with _plain_errors():
        shadow = _known(settings).active
    running = _running(settings.station.runtime_dir)
    if is_json:
        print_json({"shadow": _said(shadow) if shadow else None, "running": running})
        return
    say(f"in the shadow: {_line(shadow)}" if shadow else "no model is in the shadow")
    if running is None:
        say("no station runs")
    elif shadow is not None:
        process = "there" if running["is_there"] else "not there"
        say(
            f"its process is {process}; lent {running['lent']}, scored {running['scored']}, taken "
            f"back {running['taken_back']}"
        )
        if running["problem"]:
            say(f"problem: {running['problem']}")


def _running(folder: Path) -> Json | None:
    try:
        said = send_command(folder, "status")["status"]
    except (PeerGone, TimeoutError):
        return None
    found: Json | None = said.get("shadow")
    return found


@app.command("report")
def report(
    config: ConfigOption,
    model: Annotated[str | None, typer.Option(help="Only of this model: id or sha256.")] = None,
    flips: Annotated[int, typer.Option(min=0, help="Plates named at most, of each part.")] = 50,
    is_json: JsonOption = False,
) -> None:
    """Agreement, flips by serial, latency and share used; each judging model and recipe version on
    its own."""
    settings = load_or_exit(config).value
    with _plain_errors(), Reader(settings.journal.directory) as reader:
        found, notes = comparisons(reader, model), reader.notes
    for comparison in found:
        if is_json:
            print_json(comparison.as_json())
        else:
            _print(comparison, flips)
    if not found and not is_json:
        say("no model was in the shadow" + (f" of {model}" if model else ""))
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _print(found: Comparison, most: int) -> None:
    rate, said = found.agreement, found.as_json()
    say(
        f"{found.model_id} ({found.model_sha256[:12]}) against {found.judging_model_id} "
        f"({found.judging_model_sha256[:12]}), recipe {found.recipe_id}@{found.recipe_version} "
        f"({found.recipe_sha256[:12]})"
    )
    say(f"  shadowed {found.shadowed} of {found.judged} plates judged")
    if not found.shadowed:
        return
    low, high = rate.interval.low, rate.interval.high
    value = "unknown" if rate.value is None else f"{rate.value:.4%}"
    say(f"  agreement {value} (95 % interval {low:.4%} to {high:.4%}), {found.equal} plates equal")
    say(f"  the same scores to the last bit: {found.same_bits}")
    for name, ms in (("latency", said["took_ms"]), ("processor time", said["cpu_ms"])):
        say(f"  {name} per plate: p50 {ms['p50']} ms, p99 {ms['p99']} ms, longest {ms['max']} ms")
    share = found.share_used
    say(f"  share used: {'unknown' if share is None else f'{share:.1%}'} of one core")
    for flip in found.flips[:most]:
        say(
            f"  {flip.verdict} to {flip.shadow_verdict}: {flip.part_id or 'no serial'} "
            f"{flip.result_id} score {_score(flip.score)}, in the shadow "
            f"{_score(flip.shadow_score)}"
        )
    if len(found.flips) > most:
        say(f"  and {len(found.flips) - most} more flips; all with --json")


def _score(score: float | str | None) -> str:
    return "none" if score is None else score_text(score)


def _said(shadow: Shadow) -> Json:
    return {
        "model_id": shadow.model_id,
        "sha256": shadow.sha256,
        "folder": shadow.folder,
        "threshold": shadow.threshold,
        "unsure_above": shadow.unsure_above,
        "share": shadow.share,
        "started_at": shadow.started_at,
        "who": shadow.who,
        "reason": shadow.reason,
    }


def _line(shadow: Shadow) -> str:
    unsure = "" if shadow.unsure_above is None else f", unsure above {shadow.unsure_above:g}"
    return (
        f"{shadow.model_id} ({shadow.sha256[:12]}), threshold {shadow.threshold:g}{unsure}, share "
        f"{shadow.share:g} of a core, since {shadow.started_at} by {shadow.who}: {shadow.reason}"
    )
