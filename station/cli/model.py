"""`vqi model`: training data, training, evaluation and export."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    track,
)
from rich.progress import Progress as Bar

from models.card import MeasuredCard, ModelError, read_card, write_card
from models.classifier import Classifier
from models.registry import find_model, list_models
from station.cli.common import JsonOption, exit_on_config_error, fail, print_json
from station.config import load_recipe
from station.specimen_set import write_specimen_set
from station.synthesize import (
    CONTRAST_SCALES,
    PlateScore,
    PlateSource,
    SynthesisError,
    TileFolder,
    score_plates,
    write_plates,
    write_scenes,
)

app = typer.Typer(no_args_is_help=True)

DataOption = Annotated[Path, typer.Option(help="Folder with labels.csv, or good/ and defective/.")]
RecipeOption = Annotated[str, typer.Option(help="Recipe file, or shipped:<id>.")]


@contextlib.contextmanager
def _needs_train_extra() -> Iterator[None]:
    """Training's own packages and errors, as one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(
            f"needs package {error.name}: pip install torch==2.13.0 && "
            "pip install --no-deps pytorchcv==0.0.74 && pip install vqi[train]"
        )


def _command() -> str:
    return " ".join(["vqi", *sys.argv[1:]])


def _source(recipe: str, pixel_pitch_mm: float, width: int) -> PlateSource:
    with exit_on_config_error():
        loaded = load_recipe(recipe)
        try:
            return PlateSource(loaded.value, pixel_pitch_mm, width)
        except ValueError as error:
            fail(f"{recipe}: {error}", 78)


@app.command("synthesize")
def synthesize_(
    out: Annotated[Path, typer.Option(help="Folder to write: tiles/, labels.csv, boxes.csv.")],
    plates: Annotated[int, typer.Option(min=0, help="Rendered plates, half of them bad.")] = 700,
    scenes: Annotated[
        int, typer.Option(min=0, help="Plates of any make, a few tiles each; for a wide network.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    variety: Annotated[
        float, typer.Option(min=0, max=1, help="How far half of the plates differ in product.")
    ] = 0.5,
    contrast: Annotated[
        tuple[float, float],
        typer.Option(help="Scales of the defects' contrast; plain ones teach a network to begin."),
    ] = CONTRAST_SCALES,
    recipe: RecipeOption = "shipped:demo-lgp",
    pixel_pitch_mm: Annotated[float, typer.Option(min=1e-3)] = 0.1,
    width: Annotated[int, typer.Option(min=224, help="Pixels in a scan line.")] = 4096,
    is_frozen: Annotated[
        bool, typer.Option("--frozen", help="The frozen set for comparisons; takes only --out.")
    ] = False,
) -> None:
    """Labelled tiles: of a recipe's plates, cut as the station cuts them, and of any plates."""
    if is_frozen:
        _write_frozen(out)
        return
    if not plates + scenes:
        fail("nothing to render: give --plates or --scenes", 2)
    source = _source(recipe, pixel_pitch_mm, width)
    console = Console(stderr=True)
    progress = iter(track(range(plates + scenes), "rendering", console=console))
    try:
        with TileFolder(out) as folder:
            write_plates(folder, source, plates, seed, variety, contrast, lambda: next(progress))
            write_scenes(folder, scenes, seed, lambda: next(progress))
    except (SynthesisError, OSError) as error:
        fail(str(error))
    typer.echo(f"{out}: {folder.count} tiles of {plates} plates and {scenes} scenes")


def _write_frozen(out: Path) -> None:
    try:
        with TileFolder(out) as folder:
            write_specimen_set(folder)
    except OSError as error:
        fail(str(error))
    typer.echo(f"{out}: {folder.count} tiles of the frozen specimen set")


@app.command("train")
def train_(
    data: DataOption,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; a killed run continues there. [var/runs/...]"),
    ] = None,
    network: Annotated[
        str, typer.Option(help="lightdefectnet, hand, or a baseline that `benchmark` lists.")
    ] = "lightdefectnet",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of the chosen recipe.")] = 3,
    recipe: Annotated[
        str | None, typer.Option(help="Name of a training recipe, instead of choosing one.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Instead of those for the number of pictures.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Run whose weights to begin with, not the shipped ones.")
    ] = None,
) -> None:
    """Train on a folder: recipe, epoch and threshold by cross-validation inside its split train."""
    with _needs_train_extra():
        from models.training.data import DataError
        from models.training.train import Plan, recipes_for, train, weights_file

        try:
            plan = Plan(
                data=data,
                run=out or _default_run(data, network),
                network=network,
                seeds=tuple(range(1, seeds + 1)),
                recipes=recipes_for(network, recipe),
                epochs=epochs,
                init=init and weights_file(init),
            )
            with TrainingBar() as bar:
                summary = train(plan, _command(), bar)
        except DataError as error:
            fail(str(error))
    typer.echo(f"{plan.run}: {_training_words(summary)}")


def _default_run(data: Path, network: str) -> Path:
    return Path("var/runs") / f"{data.resolve().name}-{network}"


def _training_words(summary: dict[str, Any]) -> str:
    out_of_fold = summary["out_of_fold"]
    return (
        f"{summary['recipe']['name']}, epoch {summary['epoch']} of {summary['epochs']}; out of fold"
        f" AUROC {out_of_fold['auroc']:.4f}, accuracy {out_of_fold['accuracy']:.4f} of "
        f"{out_of_fold['samples']} pictures; {summary['cpu_hours']} h on {summary['device']}"
    )


class TrainingBar:
    """The run's progress on stderr."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, batches: int, what: str) -> None:
        self._task = self._bar.add_task(what, total=batches)

    def advance(self, batches: int = 1) -> None:
        assert self._task is not None
        self._bar.advance(self._task, batches)


@app.command("evaluate")
def evaluate_(
    data: DataOption,
    run: Annotated[
        Path | None, typer.Option(help="Run of `train`. [the one that it left for this data]")
    ] = None,
    network: Annotated[str, typer.Option(help="Network of that run.")] = "lightdefectnet",
    model: Annotated[str | None, typer.Option(help="Id of an exported model instead.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also how decisions hold when pictures change.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Score a folder's pictures and compare with their labels."""
    with _needs_train_extra():
        from models.training.data import DataError
        from models.training.report import evaluate_model, evaluate_run

        try:
            if model:
                row = evaluate_model(data, Classifier.load(find_model(model)), split)
            else:
                row = evaluate_run(data, run or _default_run(data, network), split, robustness)
        except (DataError, ModelError, ValueError) as error:
            fail(str(error))
    row["command"] = _command()
    if is_json:
        print_json(row)
        return
    for key, value in row.items():
        typer.echo(f"{key:22} {_figure(value)}")


def _figure(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        return f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_figure(item)}" for key, item in value.items())
    return str(value)


@app.command("export")
def export_(
    run: Annotated[Path, typer.Option(help="Folder of a training run.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder to write; its name is the model's id.")],
    plates: Annotated[
        int, typer.Option(min=0, help="Fresh plates that choose the threshold; 0: the tiles' own.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh plates.")] = 1000,
) -> None:
    """Write model, card and golden tiles; choose and measure the threshold on whole plates.

    Half of the fresh plates choose the threshold, the other half measure it.
    """
    with _needs_train_extra():
        from models.training.data import DataError, load_tiles, read_folder, select
        from models.training.export import ExportError, export
        from models.training.train import load_network, read_summary

        try:
            summary = read_summary(run)
            tiles = load_tiles(select(read_folder(data), "test"))
            export(load_network(run), summary, tiles, out)
            if plates:
                _measure_plates(out, plates, seed)
        except (DataError, ExportError, OSError) as error:
            fail(str(error))
    typer.echo(f"{out}: exported")


def _measure_plates(folder: Path, plates: int, seed: int) -> None:
    """Choose the card's threshold on half of the plates, measure it on the others."""
    import numpy as np

    from models.training.evaluate import best_threshold, rate

    source = _source("shipped:demo-lgp", 0.1, 4096)
    classifier = Classifier.load(folder)
    scores: list[PlateScore] = list(
        track(
            score_plates(source, classifier, plates, seed),
            "scoring plates",
            total=plates,
            console=Console(stderr=True),
        )
    )
    choosing, measuring = scores[: plates // 2], scores[plates // 2 :]
    threshold = best_threshold(
        np.array([int(plate.is_defective) for plate in choosing]),
        np.array([plate.score for plate in choosing], np.float32),
    )
    bad = [plate for plate in measuring if plate.is_defective]
    good = [plate for plate in measuring if not plate.is_defective]
    figures = {
        "plate escape rate": rate(sum(p.score <= threshold for p in bad), len(bad)),
        "plate false-reject rate": rate(sum(p.score > threshold for p in good), len(good)),
    }
    card = read_card(folder)
    chosen = card.threshold.model_copy(
        update={
            "value": threshold,
            "chosen_by": "least mean of escape and false-reject rate on "
            f"{len(choosing)} fresh rendered plates, highest tile score of each",
        }
    )
    measured = tuple(
        MeasuredCard(
            name=name,
            value=round(figure.value, 4),
            low=round(figure.low, 4),
            high=round(figure.high, 4),
            samples=figure.samples,
            command=_command(),
        )
        for name, figure in figures.items()
    )
    write_card(folder, card.model_copy(update={"threshold": chosen, "measured": measured}))
    for item in measured:
        typer.echo(f"{item.name}: {item.value} [{item.low}, {item.high}] of {item.samples}")


@app.command("list")
def list_(is_json: JsonOption = False) -> None:
    """Models that a recipe can name."""
    for name, folder in list_models().items():
        try:
            card = read_card(folder)
        except ModelError as error:
            fail(str(error))
        row = {
            "id": name,
            "sha256": card.sha256,
            "parameters": card.parameters,
            "mflops": card.mflops,
            "threshold": card.threshold.value,
            "folder": str(folder),
        }
        if is_json:
            print_json(row)
        else:
            typer.echo("  ".join(f"{key} {value}" for key, value in row.items()))
