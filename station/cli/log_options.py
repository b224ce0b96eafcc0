"""Options that the commands of `vqi log` share."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from station.choices import recipe_and_version, rectangle, utc_text
from station.cli.common import fail, load_or_exit
from station.log_reader import Reader
from station.qms import StoreError
from station.questions import Selection
from station.record import Provenance, Verdict

Config = Annotated[
    str | None, typer.Option("--config", envvar="VQI_CONFIG", help="Configuration file.")
]
Journal = Annotated[Path | None, typer.Option("--journal", help="Journal folder instead.")]


T = TypeVar("T")


def _checked(read: Callable[[str], Any]) -> Callable[[str | None], str | None]:
    """Raises `typer.BadParameter` where what is given cannot be read so; keeps it as it is."""

    def callback(given: str | None) -> str | None:
        _as_usage(read, given)
        return given

    return callback


def _as_usage(read: Callable[[str], T], given: str | None) -> T | None:
    try:
        return None if given is None else read(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _utc_text(given: str | None) -> str | None:
    return _as_usage(utc_text, given)


Since = Annotated[
    str | None, typer.Option(callback=_utc_text, help="UTC, as 2026-11-24 or 2026-11-24T06:00.")
]
Until = Annotated[str | None, typer.Option(callback=_utc_text, help="UTC, exclusive.")]
Serial = Annotated[str | None, typer.Option(help="Part serial.")]
Wanted = Annotated[Verdict | None, typer.Option("--verdict", case_sensitive=False)]

_SELECTING: dict[str, Any] = {
    "since": Since,
    "until": Until,
    "serial": Serial,
    "lot": Annotated[str | None, typer.Option(help="Lot.")],
    "shift": Annotated[str | None, typer.Option(help="As in the record: 2026-11-24 early.")],
    "verdict": Wanted,
    "reason": Annotated[str | None, typer.Option(help="Why a plate is undecided.")],
    "recipe": Annotated[
        str | None, typer.Option(callback=_checked(recipe_and_version), help="ID or ID:VERSION.")
    ],
    "model": Annotated[str | None, typer.Option(help="Model id.")],
    "reviewer": Annotated[str | None, typer.Option(help="Of the last review.")],
    "attempt": Annotated[int | None, typer.Option(min=1, help="1: the first pass of a serial.")],
    "provenance": Annotated[Provenance | None, typer.Option(case_sensitive=False)],
    "kind": Annotated[str | None, typer.Option(help="Of a defect, as a reviewer named it.")],
    "min_size_mm": Annotated[float | None, typer.Option(min=0, help="Longer side of a defect.")],
    "max_size_mm": Annotated[float | None, typer.Option(min=0, help="Longer side of a defect.")],
    "place": Annotated[
        str | None,
        typer.Option(
            callback=_checked(rectangle), help="Of a defect: LEFT,LEADING,RIGHT,TRAILING in mm."
        ),
    ],
}


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that choose plates; it gets what they chose as `selection`."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in _SELECTING}
        command(selection=_selection(**chosen), **given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _SELECTING.items()
    ]
    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in own if one.name != "selection"]
    parameters = [*options, *parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _selection(place: str | None, recipe: str | None, **given: Any) -> Selection:
    name, version = recipe_and_version(recipe or "")
    return Selection(
        **given,
        recipe=name or None,
        recipe_version=version,
        place_mm=rectangle(place) if place is not None else None,
    )


def journal_folder(config: str | None, journal: Path | None) -> Path:
    """The log's folder by either option, or a usage error."""
    if journal is not None:
        return journal
    if config is None:
        fail("name the log: --config FILE or --journal FOLDER", 2)
    return load_or_exit(config).value.journal.directory


@contextlib.contextmanager
def open_tables(config: str | None, journal: Path | None) -> Iterator[Reader]:
    """As `open_log`, for questions to the derived tables; says it where they lag."""
    with open_log(config, journal) as reader:
        if note := reader.lag_note:
            print(f"vqi: {note}", file=sys.stderr)  # noqa: T201
        yield reader


@contextlib.contextmanager
def open_log(config: str | None, journal: Path | None) -> Iterator[Reader]:
    """The log, and a line on stderr that says which file was read."""
    try:
        with Reader(journal_folder(config, journal)) as reader:
            print(f"vqi: {reader.source_note}", file=sys.stderr)  # noqa: T201
            yield reader
    except StoreError as error:
        fail(str(error))
