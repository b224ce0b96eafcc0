"""`vqi bench`: the highest line rate without loss."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from models.card import ModelError
from station.bench import BenchError, run_bench
from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    fail,
    load_or_exit,
    print_json,
)
from station.product import load_product
from station.view import print_summary


def bench(
    config: ConfigOption,
    seconds: Annotated[float, typer.Option(min=5, help="Length of each try.")] = 20.0,
    is_json: JsonOption = False,
) -> None:
    """Run the whole station on a dense belt, slower until nothing is lost."""
    loaded = load_or_exit(config)
    with exit_on_config_error():
        try:
            recipe = load_product(loaded)
            summary = run_bench(loaded, recipe, seconds, lambda text: typer.echo(text, err=True))
        except (BenchError, ModelError, OSError) as error:
            fail(str(error))
    if is_json:
        print_json({"summary": summary})
    else:
        print_summary(Console(), summary)
