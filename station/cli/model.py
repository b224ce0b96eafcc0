"""`vqi model`: training data, training, evaluation and export."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

from models.card import ModelError, write_card
from models.classifier import Classifier
from models.registry import find_model, list_models
from station.cli import (
    model_compare,
    model_learn,
    model_promotion,
    model_shadow,
    model_signed,
)
from station.cli.common import (
    JsonOption,
    command_line,
    exit_on_config_error,
    fail,
    print_json,
)
from station.cli.model_collect import collect
from station.cli.model_drift import drift
from station.cli.model_explore import explore_app
from station.cli.model_next import next_
from station.cli.model_options import (
    MEMORY_MB,
    BackgroundOption,
    DataOption,
    MemoryOption,
    go_to_background,
    needs_train_extra,
)
from station.cli.model_suspects import suspects
from station.config import Recipe, load_recipe
from station.gate_set import measure_gate_set
from station.plates import FALSE_REJECT_TARGET, plates_needed
from station.specimen_set import SPECIMEN_SET, write_specimen_set
from station.synthesize import (
    CONTRAST_SCALES,
    PlateSource,
    SynthesisError,
    TileFolder,
    write_plates,
    write_scenes,
)

if TYPE_CHECKING:
    from models.training.fit import TrainingRecipe
    from models.training.train import Beginning

app = typer.Typer(no_args_is_help=True)
model_promotion.add_to(app)
app.add_typer(model_shadow.app, name="shadow")
app.add_typer(explore_app, name="explore")
app.command("collect")(collect)
app.command("suspects")(suspects)
app.command("next")(next_)
app.command("compare")(model_compare.compare)
app.command("flips")(model_compare.flips)
app.command("sign-flip")(model_compare.sign_flip)
app.command("drift")(drift)
app.command("learn-good")(model_learn.learn_good)
app.command("hash")(model_learn.hash_)
for _name, _command in model_signed.COMMANDS.items():
    app.command(_name)(_command)

RecipeOption = Annotated[str, typer.Option(help="Recipe file, or shipped:<id>.")]
PitchOption = Annotated[float, typer.Option(min=1e-3, help="Size of a pixel on the plate.")]
WidthOption = Annotated[int, typer.Option(min=224, help="Pixels in a scan line.")]
_PIXEL_PITCH_MM, _SCAN_LINE_PX = 0.1, 4096
_DEMO = "shipped:demo-lgp"
_LEAST_PLATES = 20
_GOLDEN_PLATES = 4
ESCAPE_TARGET = 0.05
"""Share of defective plates that may pass."""


def _source(recipe: str, pixel_pitch_mm: float, width: int) -> tuple[PlateSource, Recipe]:
    """What renders the plates of a recipe, and the recipe; else exit status 78."""
    with exit_on_config_error():
        loaded = load_recipe(recipe).value
        try:
            return PlateSource(loaded, pixel_pitch_mm, width), loaded
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
    recipe: RecipeOption = _DEMO,
    pixel_pitch_mm: PitchOption = _PIXEL_PITCH_MM,
    width: WidthOption = _SCAN_LINE_PX,
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
    _refuse_existing(out)
    source, _ = _source(recipe, pixel_pitch_mm, width)
    console = Console(stderr=True)
    progress = iter(track(range(plates + scenes), "rendering", console=console))
    try:
        with TileFolder(out) as folder:
            write_plates(folder, source, plates, seed, variety, contrast, lambda: next(progress))
            write_scenes(folder, scenes, seed, lambda: next(progress))
    except (SynthesisError, OSError) as error:
        fail(str(error))
    typer.echo(f"{out}: {folder.count} tiles of {plates} plates and {scenes} scenes")


def _refuse_existing(out: Path) -> None:
    if (out / "labels.csv").exists():
        fail(f"{out}: holds a labels.csv already; name another folder", 2)


def _write_frozen(out: Path) -> None:
    from models.training.data import data_sha256, read_folder

    _refuse_existing(out)
    try:
        with TileFolder(out) as folder:
            write_specimen_set(folder)
    except (OSError, SynthesisError) as error:
        fail(str(error))
    found = data_sha256(read_folder(out))
    typer.echo(f"{out}: {folder.count} tiles of the frozen specimen set, sha256 {found}")
    if found != SPECIMEN_SET.sha256:
        typer.echo(
            f"{out}: not the published pixels (sha256 {SPECIMEN_SET.sha256}): this processor or "
            "library rounds differently; compare figures of this folder with each other only",
            err=True,
        )


@app.command("train")
def train_(
    data: DataOption,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; a killed run continues there. [var/runs/...]"),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            help="lightdefectnet, explored (with --spec), hand, or a baseline that `benchmark` "
            "lists."
        ),
    ] = "lightdefectnet",
    spec: Annotated[
        Path | None,
        typer.Option(help="Of an explored network: what `explore emit --to FILE.json` writes."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of the chosen recipe.")] = 3,
    recipe: Annotated[
        str | None, typer.Option(help="Name of a training recipe, instead of choosing one.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Instead of those for the number of pictures.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Run, or a model (id or folder), to begin with, not the shipped weights."
        ),
    ] = None,
    is_few: Annotated[
        bool,
        typer.Option(
            "--few-shot",
            help="For a new product of which 20 good and 20 defective plates are known.",
        ),
    ] = False,
    background: BackgroundOption = False,
    memory_mb: MemoryOption = MEMORY_MB,
) -> None:
    """Train on a folder: recipe, epoch and threshold by cross-validation inside its split train."""
    go_to_background(background, memory_mb)
    with needs_train_extra():
        from models.training.data import DataError
        from models.training.explore.space import read_spec
        from models.training.few_shot import train_few
        from models.training.train import Plan, recipes_for, train

        try:
            found = None if spec is None else read_spec(spec)
        except (ValueError, OSError) as error:
            fail(f"--spec {error}", 2)
        try:
            run = out or _default_run(data, network)
            begin = None if init is None else _beginning(init, data, run)
            plan = Plan(
                data=data,
                run=run,
                network=network,
                seeds=tuple(range(1, seeds + 1)),
                recipes=_recipes(recipes_for(network, recipe), begin),
                epochs=epochs,
                init=begin,
                spec=found,
            )
            with TrainingBar() as bar:
                summary = (train_few if is_few else train)(plan, command_line(), bar)
        except BrokenProcessPool:
            fail(f"{data}: a training process was killed, perhaps for want of memory; run it again")
        except (DataError, ModelError, OSError) as error:
            fail(str(error))
    typer.echo(f"{plan.run}: {_training_words(summary)}")


def _recipes(
    recipes: tuple[TrainingRecipe, ...], begin: Beginning | None
) -> tuple[TrainingRecipe, ...]:
    """Of a model that goes on only those that see what it sees; of a run all, as ever."""
    from models.training.unfold import front_end_of

    if begin is None or begin.weights.is_relative_to(begin.name):
        return recipes
    front_end = front_end_of(begin.weights)
    return tuple(each for each in recipes if each.front_end == front_end) or recipes


def _beginning(init: str, data: Path, run: Path) -> Beginning:
    """The weights of a run, or of a model."""
    from models.training.data import load_tiles, read_splits
    from models.training.train import LEARNED, SUMMARY_FILE, Beginning, learned_by, weights_file
    from models.training.unfold import beginning_of

    if (Path(init) / SUMMARY_FILE).is_file():
        return Beginning(init, weights_file(Path(init)), learned_by(Path(init)))
    model = find_model(init)
    weights = beginning_of(model, load_tiles(read_splits(data, *LEARNED)), run)
    # An exported model does not list what it learned from.
    is_shipped = model.resolve() in {folder.resolve() for folder in list_models().values()}
    return Beginning(init, weights, frozenset() if is_shipped else None)


def _default_run(data: Path, network: str) -> Path:
    return Path("var/runs") / f"{data.resolve().name}-{network}"


def _training_words(summary: dict[str, Any]) -> str:
    from models.training.train import pictures_seen

    out_of_fold = summary["out_of_fold"]
    seen = pictures_seen(summary)
    why = "Chosen on these pictures"
    if seen != 0:
        count = "perhaps some" if seen is None else f"{seen}"
        why = f"What it began with had learned from {count} of these pictures"
    return (
        f"{summary['recipe']['name']}, epoch {summary['epoch']} of {summary['epochs']}; out of fold"
        f" AUROC {out_of_fold['auroc']:.4f}, accuracy {out_of_fold['accuracy']:.4f} of "
        f"{out_of_fold['samples']} pictures; {summary['cpu_hours']} h on {summary['device']}\n"
        f"{why}, so they flatter: `vqi model evaluate` measures on the others."
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
    data: Annotated[
        Path | None, typer.Option(help="Folder with labels.csv, or good/ and defective/.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run of `train`. [the one that it left for this data]")
    ] = None,
    network: Annotated[str, typer.Option(help="Network of that run.")] = "lightdefectnet",
    model: Annotated[
        str | None, typer.Option(help="A model instead: id, or folder of an exported one.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or all.")] = "test",
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also how decisions hold when pictures change.")
    ] = False,
    plates: Annotated[
        int, typer.Option(min=0, help="Also on so many fresh rendered plates; needs --model.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the plates.")] = 2000,
    recipe: Annotated[str, typer.Option(help="Of the plates: file, or shipped:<id>.")] = _DEMO,
    pixel_pitch_mm: PitchOption = _PIXEL_PITCH_MM,
    width: WidthOption = _SCAN_LINE_PX,
    is_json: JsonOption = False,
) -> None:
    """Score a folder's pictures, or fresh rendered plates, and compare with what is known."""
    if data is None and not plates:
        fail("nothing to evaluate on: give --data, or --plates with --model", 2)
    if plates and (model is None or plates < _LEAST_PLATES):
        fail(f"--plates wants --model, and {_LEAST_PLATES} plates or more", 2)
    if robustness and model:
        fail("--robustness is of a training run: give --run, not --model", 2)
    row: dict[str, Any] = {}
    with needs_train_extra():
        from models.training.data import DataError
        from models.training.report import evaluate_model, evaluate_run

        try:
            if model:
                classifier = Classifier.load(find_model(model))
                row = {"model": classifier.model_id, "runtime": classifier.runtime}
                row |= evaluate_model(data, classifier, split) if data else {}
                if plates:
                    product = _source(recipe, pixel_pitch_mm, width)
                    row["plates"] = {"recipe": recipe} | _on_plates(
                        classifier, product, plates, seed
                    )
            elif data:
                row = evaluate_run(data, run or _default_run(data, network), split, robustness)
        except (DataError, ModelError, SynthesisError, ValueError, OSError) as error:
            fail(str(error))
    row["command"] = command_line()
    if is_json:
        print_json(row)
        return
    for key, value in row.items():
        typer.echo(f"{key:22} {_figure(value)}")


def _on_plates(
    classifier: Classifier, product: tuple[PlateSource, Recipe], plates: int, seed: int
) -> dict[str, Any]:
    from station.cli.plates import evaluate_plates, threshold_of

    source, loaded = product
    threshold = threshold_of(classifier, loaded.model)
    return evaluate_plates(source, classifier, threshold, plates, seed)


def _figure(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        text = f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
        few = value["few_groups"]
        return text + (f"  few groups [{few['low']:.4f}, {few['high']:.4f}]" if few else "")
    if isinstance(value, dict):
        return "  ".join(f"{key} {_figure(item)}" for key, item in value.items())
    return str(value)


@app.command("pod")
def pod_(
    model: Annotated[str, typer.Option(help="Id of a model, or folder of an exported one.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture of the curves to write: .svg or .png.")
    ] = None,
    plates: Annotated[
        int, typer.Option(min=1, help="Rendered plates, about 38 defects each.")
    ] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 3000,
    recipe: RecipeOption = _DEMO,
    pixel_pitch_mm: PitchOption = _PIXEL_PITCH_MM,
    width: WidthOption = _SCAN_LINE_PX,
    is_json: JsonOption = False,
) -> None:
    """Probability of detection by size and by contrast of the defects of each kind.

    At the plate threshold; a90 is where 90 % are found, a90/95 its upper 95 % bound
    (MIL-HDBK-1823A, hit/miss).
    """
    if out and out.suffix not in (".svg", ".png"):
        fail(f"{out}: the picture's name must end in .svg or .png", 2)
    with needs_train_extra():
        from station.cli.plates import (
            detect,
            detection_rows,
            detection_words,
            draw_detection,
            threshold_of,
        )

        source, loaded = _source(recipe, pixel_pitch_mm, width)
        try:
            classifier = Classifier.load(find_model(model))
            threshold = threshold_of(classifier, loaded.model)
            trials = detect(source, classifier, threshold, plates, seed)
            if out:
                title = f"{model} at threshold {threshold:.4g}"
                draw_detection(out, f"{title}: {len(trials)} defects on {plates} plates", trials)
        except (ModelError, SynthesisError, ValueError, OSError) as error:
            fail(str(error))
        made_by = {"model": model, "threshold": threshold, "recipe": recipe, "plates": plates}
        for row in detection_rows(trials):
            if is_json:
                print_json(row | made_by | {"seed": seed, "command": command_line()})
            else:
                typer.echo(detection_words(row))


@app.command("export")
def export_(
    run: Annotated[
        Path, typer.Option(help="Folder of a training run of lightdefectnet, or explored.")
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder to write; its name is the model's id.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Its plates choose the threshold; left out: the run's own, of tiles."),
    ] = None,
    plates: Annotated[int, typer.Option(min=1, help="Fresh plates that choose it.")] = 400,
    false_reject_target: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="Share of good plates that may fail.")
    ] = FALSE_REJECT_TARGET,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh plates.")] = 1000,
    own_plates: Annotated[
        bool,
        typer.Option(
            "--own-plates",
            help="The plates (groups) of --data choose the limits instead, out of fold; all tiles "
            "of each must be there.",
        ),
    ] = False,
    escape_target: Annotated[
        float,
        typer.Option(min=1e-4, max=0.5, help="With --own-plates: defective plates that may pass."),
    ] = ESCAPE_TARGET,
    pixel_pitch_mm: PitchOption = _PIXEL_PITCH_MM,
    width: WidthOption = _SCAN_LINE_PX,
) -> None:
    """Write model, card and golden tiles; with a recipe choose the threshold on whole plates.

    The good ones of half of the fresh plates choose the threshold; the other half measure it. With
    --own-plates it is the plates of the folder; what scores like good and like defective ones is
    UNDECIDED. A run of `learn-good` brings its limits.
    """
    if recipe and own_plates:
        fail("--recipe and --own-plates both choose the threshold: give one", 2)
    needed = 4 * plates_needed(false_reject_target)
    if recipe and plates < needed:
        fail(f"--plates {plates}: too few for this target; {needed} or more", 2)
    product = _source(recipe, pixel_pitch_mm, width) if recipe else None
    with needs_train_extra():
        from models.training.data import DataError
        from models.training.export import ExportError, export, golden_candidates, read_network

        try:
            network, summary = read_network(run)
            if own_plates:
                summary = _with_limits(data, run, summary, false_reject_target, escape_target)
            tiles = golden_candidates(data, network)
            card = export(network, summary, tiles, out)
            if product:
                card = card.model_copy(update={"gate": measure_gate_set(Classifier.load(out))})
                write_card(out, card)
                _set_threshold(out, product, plates, false_reject_target, seed)
        except (DataError, ExportError, ModelError, SynthesisError, OSError, ValueError) as error:
            fail(str(error))
    typer.echo(f"{out}: exported")


def _with_limits(
    data: Path, run: Path, summary: dict[str, Any], false_reject_target: float, escape_target: float
) -> dict[str, Any]:
    from models.training.data import DataError
    from models.training.patches import PATCHES
    from models.training.plate_limits import choose_limits, out_of_fold

    if summary["network"] == PATCHES:
        raise DataError(f"{run}: has its limits from its good plates; leave --own-plates out")
    scores, labels, groups = out_of_fold(data, run, summary)
    limits = choose_limits(scores, labels, groups, false_reject_target, escape_target)
    typer.echo(f"threshold {limits.threshold:.4f}, unsure above {limits.unsure_above}")
    typer.echo(limits.words)
    return summary | {
        "threshold": limits.threshold,
        "unsure_above": limits.unsure_above,
        "threshold_words": limits.words,
    }


def _set_threshold(
    out: Path, product: tuple[PlateSource, Recipe], plates: int, target: float, seed: int
) -> None:
    from station.cli.plates import set_threshold

    source, loaded = product
    pitch_mm = source.geometry.pixel_pitch_mm
    made_by = f"plates of recipe {loaded.id} at {pitch_mm:g} mm a pixel; {command_line()}"
    set_threshold(out, source, plates, target, seed, made_by)


@app.command("adopt")
def adopt_(
    file: Annotated[Path, typer.Argument(help="An ONNX classifier with two outputs.")],
    out: Annotated[Path, typer.Option(help="Folder to write; its name is the model's id.")],
    origin: Annotated[str, typer.Option(help="Who trained it, on what; stands on the card.")],
    channels: Annotated[int, typer.Option(help="1, or 3: the grey picture three times.")] = 1,
    is_uint8: Annotated[
        bool, typer.Option("--uint8", help="It takes 8-bit levels; else floats, scaled so:")
    ] = False,
    scale: Annotated[float, typer.Option(help="(level * scale - mean) / deviation.")] = 1 / 255,
    mean: Annotated[
        list[float] | None, typer.Option(help="One, or one a channel. [0]", show_default=False)
    ] = None,
    deviation: Annotated[
        list[float] | None, typer.Option(help="One, or one a channel. [1]", show_default=False)
    ] = None,
    gives: Annotated[str, typer.Option(help="logits, or probabilities.")] = "logits",
    defective: Annotated[int, typer.Option(help="Which output is that of a defect.")] = 1,
    licence: Annotated[str, typer.Option(help="Of the network.")] = "unknown",
    recipe: RecipeOption = _DEMO,
    plates: Annotated[int, typer.Option(min=1, help="Fresh plates that choose it.")] = 400,
    false_reject_target: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="Share of good plates that may fail.")
    ] = FALSE_REJECT_TARGET,
    seed: Annotated[int, typer.Option(min=0, help="Of the fresh plates.")] = 1000,
    pixel_pitch_mm: PitchOption = _PIXEL_PITCH_MM,
    width: WidthOption = _SCAN_LINE_PX,
) -> None:
    """Bring your own network: wrapped, tried in a throw-away process, measured on plates."""
    needed = 4 * plates_needed(false_reject_target)
    if plates < needed:
        fail(f"--plates {plates}: too few for this target; {needed} or more", 2)
    if (
        channels not in (1, 3)
        or defective not in (0, 1)
        or gives not in ("logits", "probabilities")
    ):
        fail("--channels is 1 or 3, --defective 0 or 1, --gives logits or probabilities", 2)
    source, loaded = _source(recipe, pixel_pitch_mm, width)
    with needs_train_extra():
        from models.adopt import Wrapping
        from station.cli import model_adopt as adoption

        wrapping = Wrapping(
            channels=3 if channels == 3 else 1,
            is_uint8=is_uint8,
            scale=scale,
            mean=tuple(mean or (0.0,)),
            deviation=tuple(deviation or (1.0,)),
            gives="logits" if gives == "logits" else "probabilities",
            defective=1 if defective else 0,
        )
        made_by = f"plates of recipe {loaded.id} at {pixel_pitch_mm:g} mm a pixel; {command_line()}"
        plan = adoption.PlatePlan(plates, false_reject_target, seed, made_by)
        try:
            tiles = adoption.gate_tiles(source, _GOLDEN_PLATES, seed)
            named = adoption.Origin(file, origin, licence, command_line())
            card, probed = adoption.adopt(named, wrapping, tiles, out)
            typer.echo(
                f"{out}: {card.parameters} parameters, {card.mflops:g} MFLOPs, "
                f"{probed.ms_per_tile:.2f} ms a tile, {probed.peak_mb:.0f} MB"
                + ("" if probed.has_defect_map else "; it has no map: boxes are whole tiles")
            )
            adoption.measure(out, source, plan)
        except (ModelError, SynthesisError, OSError, ValueError) as error:
            fail(str(error))
    typer.echo(f"{out}: adopted; have it signed (`vqi model sign`)")


@app.command("benchmark")
def benchmark_(
    model: Annotated[
        str | None,
        typer.Option(help="A model, by id or folder, instead of all that are shipped."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Put a station's model through the gate for faster precisions instead."),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="With --config: of this recipe version, before it judges: ID@NUMBER."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Size and speed beside the baselines, all in turn on one thread; takes a minute.

    With --config: which faster precisions may judge on this processor; takes ten minutes.
    """
    if config and model:
        fail("--config judges the model of the station's recipe: give it or --model", 2)
    if config:
        from station.cli.gate import report_gate

        report_gate(config, is_json, version)
        return
    with needs_train_extra():
        from station.cli.benchmark import report_benchmark

        report_benchmark(model, is_json)
