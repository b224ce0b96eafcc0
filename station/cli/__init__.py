"""The command line: one module per noun, imported only when it is named."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

_COMMANDS = {
    "run": "the station with all its processes",
    "web": "show the station's page to people",
    "serve": "one process of the station, for the units",
    "check": "validate, open each device, verify the model",
    "inspect": "pictures as plates",
    "camera": "commission a camera: features, picture, flat field, focus, rate, scale",
    "light": "show a state, test the lamp",
    "control": "a running station: status, halt, resume, ack",
    "recipe": "versions of recipes: propose, approve, activate between plates",
    "commission": "a guided acceptance run, its report, the signature",
    "bench": "the highest line rate without loss",
    "user": "people of the page: add, reset, list, lock, unlock, remove",
    "log": "the QMS log",
    "plant": "the database of all stations: make it, grant roles",
    "doctor": "one archive for support",
    "model": "train, evaluate and export classifiers",
}
_SINGLE = {"run", "check", "inspect", "bench", "doctor", "web"}


def main() -> None:
    """Entry point of `vqi`."""
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))
    app = typer.Typer(
        name="vqi",
        help="Visual quality inspection of light guide plates.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _root() -> None:
        pass

    named = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for noun in _COMMANDS if named not in _COMMANDS else (named,):
        module = import_module(f"station.cli.{noun}")
        if noun in _SINGLE:
            app.command(noun, help=_COMMANDS[noun])(getattr(module, noun))
        else:
            app.add_typer(module.app, name=noun, help=_COMMANDS[noun])
    try:
        app()
    except UnicodeEncodeError as error:  # what is no text reaches neither file nor database
        print(f"vqi: an argument is not UTF-8: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
