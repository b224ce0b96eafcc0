"""`vqi web`: the station's page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, fail, load_or_exit, print_json, say
from station.logs import set_up_logging


def web(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            envvar="VQI_CONFIG",
            metavar="FILE",
            help="Configuration file, or shipped:simulated.",
            show_default=False,
        ),
    ] = None,
    make_certificate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only make cert.pem and key.pem there, for this machine."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further name or address that the certificate is good for."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Show the station's page until told to stop; its address is the only line on stdout."""
    if make_certificate is not None:
        _make(make_certificate, name or [], is_json)
        return
    if name:
        fail("--name belongs to --make-certificate DIR", 2)
    if config is None:
        fail("name the configuration: --config FILE, or shipped:simulated", 2)
    loaded = load_or_exit(config)
    set_up_logging("web", loaded.value.station.id)
    from station.web.server import serve

    def tell(address: str) -> None:
        if is_json:
            print_json({"url": address})
        else:
            say(address)

    raise typer.Exit(serve(loaded, tell))


def _make(folder: Path, names: list[str], is_json: bool) -> None:
    from station.web.certificates import make_certificate

    try:
        fingerprint = make_certificate(folder, names, datetime.now(UTC))
    except FileExistsError as error:
        fail(f"{error.filename} is there: choose another folder, or remove it first")
    except (OSError, ValueError) as error:
        fail(f"no certificate could be made in {folder}: {error}")
    files = {"tls_cert_file": str(folder / "cert.pem"), "tls_key_file": str(folder / "key.pem")}
    if is_json:
        print_json({**files, "sha256": fingerprint})
        return
    say("[web]")
    for key, path in files.items():
        say(f'{key} = "{path}"')
    say(f"# sha256, to compare with what a browser shows at the first visit: {fingerprint}")
