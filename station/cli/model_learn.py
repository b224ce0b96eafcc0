"""`vqi model learn-good`: a model of a new product from good plates only; `vqi model hash`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from models.card import CARD_FILE, ModelError, sha256_of
from models.classifier import read_verified
from station.cli.common import JsonOption, command_line, fail, print_json
from station.cli.model_options import (
    MEMORY_MB,
    BackgroundOption,
    DataOption,
    MemoryOption,
    go_to_background,
    needs_train_extra,
)


def learn_good(
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [var/runs/DATA-patches]")
    ] = None,
    undecided_target: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of good plates that a person may judge.")
    ] = 0.1,
    background: BackgroundOption = False,
    memory_mb: MemoryOption = MEMORY_MB,
    is_json: JsonOption = False,
) -> None:
    """What good plates of a new product look like, from good ones only; then `export` the run.

    Of plates (groups) whose pictures are all labelled good or lie in good/: every tile, the plate
    as their group. Plates that are strange, but not certainly, become UNDECIDED.
    """
    go_to_background(background, memory_mb)
    with needs_train_extra():
        from models.training import good_plates
        from models.training.data import DataError

        run = out or Path("var/runs") / f"{data.resolve().name}-patches"
        plan = good_plates.GoodPlan(data, run, good_plates.shipped_trunks(), undecided_target)
        columns = (TextColumn("{task.description}"), TextColumn("{task.completed:.0f} tiles"))
        try:
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task("looking at good plates", total=None)
                on_tiles = partial(bar.advance, task)
                summary = good_plates.learn_good(plan, command_line(), on_tiles)
        except (DataError, OSError) as error:
            fail(str(error))
    if is_json:
        print_json({"run": str(run), **summary})
        return
    typer.echo(
        f"{run}: {summary['recipe']['name']}; AUROC {summary['out_of_fold']['auroc']:.4f} of drawn "
        f"marks against {summary['good']} good tiles of {summary['groups']} plates\n"
        f"unsure above {summary['unsure_above']:.4f}, fails above {summary['threshold']:.4f}: "
        f"{summary['threshold_words']}"
    )


def hash_(
    folders: Annotated[list[Path], typer.Argument(help="Folders of data, runs or models.")],
    is_json: JsonOption = False,
) -> None:
    """What a folder is, by its content: the same on the machine that it was copied to.

    Of data: labels and pictures, as `training.data_sha256` on a card and in a run. Of a run: its
    weights. Of a model: the graph, once it is the card's.
    """
    for folder in folders:
        with needs_train_extra():
            from models.training.data import DataError

            try:
                row = _hashed(folder)
            except (DataError, ModelError, OSError) as error:
                fail(str(error))
        if is_json:
            print_json(row)
        else:
            typer.echo(f"{row['sha256']}  {row['kind']}  {row['folder']}")


def _hashed(folder: Path) -> dict[str, str]:
    from models.training.data import data_sha256, read_folder
    from models.training.train import SUMMARY_FILE, weights_file

    row = {"folder": str(folder)}
    if (folder / CARD_FILE).is_file():
        card, _ = read_verified(folder)
        made_from = getattr(card.training, "data_sha256", "")  # nobody here knows a foreign one's
        return row | {"kind": "model", "sha256": card.sha256, "data_sha256": made_from}
    if (folder / SUMMARY_FILE).is_file():
        return row | {"kind": "run", "sha256": sha256_of(weights_file(folder).read_bytes())}
    return row | {"kind": "data", "sha256": data_sha256(read_folder(folder))}
