"""What every command shares: its configuration option and how it fails.

Imports no numpy: the lamp process starts through here and must be back at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from station.config import ConfigError, Configuration, Loaded, load_configuration
from station.visible import visible

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        envvar="VQI_CONFIG",
        metavar="FILE",
        help="Configuration file, or shipped:simulated.",
        show_default=False,
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(help="Record the strip in this folder, or go on with the recording there."),
]
RecordGbOption = Annotated[
    float,
    typer.Option(min=0.001, help="Disk the recording takes at most; its oldest part is deleted."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a row on stdout.")]


def load_or_exit(source: str) -> Loaded[Configuration]:
    """The configuration, or its mistake on stderr and its exit status."""
    with exit_on_config_error():
        return load_configuration(source)


@contextlib.contextmanager
def exit_on_config_error() -> Iterator[None]:
    """Turns a `ConfigError` into its message and exit status."""
    try:
        yield
    except ConfigError as error:
        fail(str(error), error.status)


def command_line() -> str:
    """This command, as a shell would take it again."""
    return shlex.join(["vqi", *sys.argv[1:]])


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on stderr, then exit."""
    print(f"vqi: {visible(message)}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(status)


def say(text: str) -> None:
    """One line for people on stdout, whatever is in it."""
    print(visible(text), flush=True)  # noqa: T201


def print_json(row: dict[str, Any]) -> None:
    """One row on stdout; a number that JSON does not know (NaN) becomes its name, as in the log."""
    print(json_line(row), flush=True)  # noqa: T201


def json_line(row: dict[str, Any]) -> str:
    return json.dumps(_nameable(row), allow_nan=False)


def _nameable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _nameable(item) for key, item in value.items()}
    return [_nameable(item) for item in value] if isinstance(value, list) else value
