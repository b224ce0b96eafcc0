"""`vqi model benchmark`: size and speed beside the baselines. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.progress import track

from models.card import ModelError
from models.registry import find_model, list_models
from models.training.baselines import BASELINES
from models.training.benchmark import ROUNDS, BenchmarkRow, benchmark
from station.cli.common import fail, print_json

_WIDTHS = (24, 12, 10, 11, 17, 15, 11)


def report_benchmark(model: str | None, is_json: bool) -> None:
    """Measure one of our models, or all that are shipped, and print the rows."""
    console, steps = Console(stderr=True), len(BASELINES) + ROUNDS
    progress = iter(track(range(steps), "measuring", console=console, transient=True))
    try:
        folders = [find_model(model)] if model else list_models().values()
        models = {folder.resolve().name: folder for folder in folders}
        rows = benchmark(models, on_step=lambda: next(progress, None))
    except ModelError as error:
        fail(str(error))
    for row in rows if is_json else []:
        print_json(asdict(row))
    for line in [] if is_json else _lines(rows):
        typer.echo(line)


def _lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    first = rows[0]
    names = (
        "",
        "parameters",
        "MFLOPs",
        "ms a tile",
        "EfficientNet-B0",
        "MobileNetV3-L",
        "ResNet-50",
    )
    head = "".join(f"{name:>{width}}" for name, width in zip(names, _WIDTHS, strict=True))
    how = f"medians of {first.rounds} rounds in turn, batches of {first.batch} tiles, one thread"
    return [
        f"{'times as fast as':>{sum(_WIDTHS)}}",
        head,
        *map(_line, rows),
        f"{how}, {first.runtime}",
        first.processor,
    ]


def _name(row: BenchmarkRow) -> str:
    return f"{row.model or row.network}{'' if row.precision == 'fp32' else ' ' + row.precision}"


def _line(row: BenchmarkRow) -> str:
    ratios = (
        row.ratio_to_efficientnet_b0,
        row.ratio_to_mobilenetv3_large,
        row.ratio_to_resnet50,
    )
    cells = (
        f"{_name(row):<{_WIDTHS[0]}}",
        f"{row.parameters:,}",
        f"{row.mflops:.1f}",
        f"{row.ms_per_sample:.3f}",
        *(f"{ratio:.2f}" for ratio in ratios),
    )
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
