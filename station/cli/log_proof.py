"""`vqi log checkpoint`, `key`, `consistency`, `certificate`, and the anchors of `verify`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from station.certificate import CertificateError, make_certificates
from station.checkpoint import CheckpointError, last_checkpoint, prove_consistency
from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json
from station.cli.log_options import Config, Journal, Serial, journal_folder
from station.cli.log_upkeep import journal_process
from station.log_reader import Reader
from station.qms import StoreError
from station.signed_note import PUBLIC_KEY, NoteError, SigningKeyError, make_key, parsed

key_app = typer.Typer(no_args_is_help=True, help="The key that signs the log's checkpoints.")
_CHECKPOINT_LIMIT_S = 3600.0

AnchorOption = Annotated[
    list[Path] | None,
    typer.Option(help="File with anchors: a copy of them, a shift report, a checkpoint."),
]
PublicKeyOption = Annotated[
    Path | None,
    typer.Option(
        help="Copy of proof.pub that was kept elsewhere; default: the one beside the log."
    ),
]


@key_app.command()
def make(
    config: ConfigOption,
    out: Annotated[
        Path | None, typer.Option(help="File of the private key; default: proof.key_file.")
    ] = None,
) -> None:
    """Make the key, and proof.pub beside the log for whoever checks; never in place of another."""
    configuration = load_or_exit(config).value
    private = out or configuration.proof.key_file
    if private is None:
        fail("say where: --out FILE, or key_file in [proof] of the configuration", 2)
    public = configuration.journal.directory / PUBLIC_KEY
    try:
        fingerprint = make_key(private, public)
    except SigningKeyError as error:
        fail(str(error))
    typer.echo(f"{private}: keep it secret\n{public}: give it away; its fingerprint: {fingerprint}")


def checkpoint(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Have the journal process make a checkpoint now; prints it."""
    configuration = load_or_exit(config).value
    with journal_process(configuration) as client:
        wanted = int(client.ask("checkpoint")["tried"])
        deadline = time.monotonic() + _CHECKPOINT_LIMIT_S
        while (after := client.status()["proof"])["tried"] < wanted:
            if time.monotonic() > deadline:
                fail("the journal process is still at it; see `vqi log checkpoint` later")
            time.sleep(0.05)
    if after["problem"]:
        fail(after["problem"])
    with _reading(configuration.journal.directory) as reader:
        body = last_checkpoint(reader)
    if is_json:
        print_json({**after, "note": body.note if body else ""})
    elif body is not None:
        typer.echo(body.note, nl=False)
        typer.echo("signed" if after["is_signed"] else "not signed: there is no key", err=True)


def consistency(
    old: Annotated[Path, typer.Argument(help="The older checkpoint, a file.")],
    new: Annotated[Path, typer.Argument(help="The newer one.")],
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """Prove that the log as of one checkpoint begins with the log as of another."""
    with _reading(journal_folder(config, journal)) as reader:
        pair = [parsed(_text_of(path)) for path in (old, new)]
        proof = [part.hex() for part in prove_consistency(reader, *pair)]
    if is_json:
        print_json({"old": pair[0].size, "new": pair[1].size, "proof": proof})
    else:
        typer.echo(f"the first {pair[0].size} of {pair[1].size} rows are the same; the proof:")
        typer.echo("\n".join(proof))


def certificate(
    out: Annotated[Path, typer.Option(help="Folder; a page and a JSON file for each attempt.")],
    result_id: Annotated[str | None, typer.Argument(help="Result id.")] = None,
    serial: Serial = None,
    config: Config = None,
    journal: Journal = None,
    as_of: Annotated[
        int | None, typer.Option(help="Row of an older checkpoint; default: the newest.")
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option("--since-checkpoint", help="Also prove that the log goes on from this one."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Everything the log says of a plate, with the proof, for somebody who does not trust it."""
    if (result_id is None) == (serial is None):
        fail("name one: RESULT_ID or --serial", 2)
    with _reading(journal_folder(config, journal)) as reader:
        older = _text_of(since) if since else None
        for made in make_certificates(reader, result_id, serial, out, as_of, older):
            if is_json:
                print_json(made.as_row())
            else:
                typer.echo(f"{made.page}\n{made.file}: {made.says}")
            for note in made.notes:
                typer.echo(f"note: {note}", err=True)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Reader]:
    """Raises nothing of its own: what is wrong is said, and the exit status is 1."""
    try:
        with Reader(folder) as reader:
            yield reader
    except (StoreError, CheckpointError, CertificateError, NoteError) as error:
        fail(str(error))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}")
