"""`vqi doctor`: one archive for support."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, fail, print_json
from station.doctor import Wanted, examine, write_archive


def doctor(
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="VQI_CONFIG", metavar="FILE", help="Configuration file."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where it goes; - is stdout.")
    ] = None,
    with_pictures: Annotated[
        bool, typer.Option("--with-pictures", help="The last plates' pictures too.")
    ] = False,
    with_secrets: Annotated[
        bool,
        typer.Option("--with-secrets", help="Nothing is redacted: secrets, serials, names."),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Gather what support needs to know; also of a station that is dead or badly configured."""
    archive = examine(config, Wanted(with_pictures, with_secrets))
    data = archive.close()
    if out == "-":
        with os.fdopen(os.dup(1), "wb") as stdout:
            stdout.write(data)
        return
    name = f"vqi-doctor-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
    try:
        path, problem = write_archive(data, Path(out or name))
    except OSError as error:
        fail(f"room for the archive is nowhere ({error}); see --out -")
    if problem:
        typer.echo(f"vqi: {problem}; the archive is elsewhere", err=True)
    if is_json:
        print_json({"archive": str(path), "bytes": len(data), "left_out": archive.left_out})
        return
    typer.echo(f"{path}  {len(data) / 1e6:.2f} MB, {len(archive.entries)} parts")
    for item in archive.left_out:
        typer.echo(f"  without {item['what']}: {item['why']}")
