"""`vqi web`: the station's page."""

from __future__ import annotations

import typer

from station.cli.common import ConfigOption, JsonOption, load_or_exit, print_json, say
from station.logs import set_up_logging


def web(config: ConfigOption, is_json: JsonOption = False) -> None:
    """Show the station's page until told to stop; its address is the only line on stdout."""
    loaded = load_or_exit(config)
    set_up_logging("web", loaded.value.station.id)
    from station.web.server import serve

    def tell(address: str) -> None:
        if is_json:
            print_json({"url": address})
        else:
            say(address)

    raise typer.Exit(serve(loaded, tell))
