"""`vqi control`: commands to a running station."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.control import send_command
from station.ipc import Json, NotPermitted, PeerGone
from station.processes import ask

_ASK_TIMEOUT_S = 1.0

app = typer.Typer(no_args_is_help=True)


def _send(config: str, op: str, text: str = "") -> Json:
    runtime_dir = load_or_exit(config).value.station.runtime_dir
    try:
        answer = send_command(runtime_dir, op, text)
    except NotPermitted as error:
        fail(str(error))
    except (PeerGone, TimeoutError) as error:
        fail(f"no station answers in {runtime_dir} ({error}); start it with `vqi run`")
    if not answer["ok"]:
        fail(str(answer["error"]))
    return answer


def _command(config: str, op: str, is_json: bool, text: str = "") -> None:
    answer = _send(config, op, text)
    if is_json:
        print_json({"state": answer["state"]})
    else:
        typer.echo(answer["state"])


@app.command()
def status(config: ConfigOption, is_json: JsonOption = False) -> None:
    """What the station, its lamp process and its journal process are doing now."""
    answer = _send(config, "status")["status"]
    runtime_dir = load_or_exit(config).value.station.runtime_dir
    for process in ("lamp", "journal"):
        said, why = ask(runtime_dir, process, _ASK_TIMEOUT_S)
        answer[process] = {"down": why} if said is None else said
    if is_json:
        print_json(answer)
        return
    for key, value in _flat(answer):
        typer.echo(f"{key:30} {value}")


def _flat(answer: Json, before: str = "") -> Iterator[tuple[str, object]]:
    """Every value with the keys that lead to it."""
    for key, value in answer.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


@app.command()
def halt(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Stop judging: plates are recorded UNDECIDED, the light shows FAULT."""
    _command(config, "halt", is_json)


@app.command()
def resume(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Judge plates again after a halt."""
    _command(config, "resume", is_json)


@app.command()
def ack(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Acknowledge a FAIL or UNDECIDED that the light holds."""
    _command(config, "ack", is_json)


@app.command()
def relearn(config: ConfigOption, is_json: JsonOption = False) -> None:
    """After cleaning, or a new light: forget what ATTENTION saw, learn the light anew."""
    _command(config, "relearn", is_json)


@app.command("limit-samples")
def limit_samples(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Judge the recipe's limit samples now: between two plates, READY off."""
    _command(config, "limit_samples", is_json)


@app.command()
def operator(name: str, config: ConfigOption, is_json: JsonOption = False) -> None:
    """Sign on: plates from here on name this person; "" signs off."""
    _command(config, "operator", is_json, name)


@app.command()
def lot(text: str, config: ConfigOption, is_json: JsonOption = False) -> None:
    """Plates from here on are of this lot; "" ends it."""
    _command(config, "lot", is_json, text)


@app.command()
def job(text: str, config: ConfigOption, is_json: JsonOption = False) -> None:
    """Plates from here on are of this job; "" ends it."""
    _command(config, "job", is_json, text)


@app.command()
def serial(text: str, config: ConfigOption, is_json: JsonOption = False) -> None:
    """The plate that comes next has this serial."""
    _command(config, "serial", is_json, text)
