"""Options that the commands of `vqi log` share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import fail, load_or_exit
from station.record import Verdict, rfc3339

Config = Annotated[
    str | None, typer.Option("--config", envvar="VQI_CONFIG", help="Configuration file.")
]
Journal = Annotated[Path | None, typer.Option("--journal", help="Journal folder instead.")]


def _utc_text(given: str | None) -> str | None:
    """A time as `written_at` is written, so that both compare as text."""
    if given is None:
        return None
    try:
        at = datetime.fromisoformat(given)
    except ValueError as error:
        raise typer.BadParameter(
            f"{given!r} is no time; write it as 2026-11-24 or 2026-11-24T06:00 (UTC), "
            "or with an offset: 2026-11-24T07:00+01:00"
        ) from error
    return rfc3339(at.replace(tzinfo=at.tzinfo or UTC))


Since = Annotated[
    str | None, typer.Option(callback=_utc_text, help="UTC, as 2026-11-24 or 2026-11-24T06:00.")
]
Until = Annotated[str | None, typer.Option(callback=_utc_text, help="UTC, exclusive.")]
Serial = Annotated[str | None, typer.Option(help="Part serial.")]
Wanted = Annotated[Verdict | None, typer.Option("--verdict", case_sensitive=False)]


def journal_folder(config: str | None, journal: Path | None) -> Path:
    """The log's folder by either option, or a usage error."""
    if journal is not None:
        return journal
    if config is None:
        fail("name the log: --config FILE or --journal FOLDER", 2)
    return load_or_exit(config).value.journal.directory
