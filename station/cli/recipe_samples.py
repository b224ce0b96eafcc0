"""`vqi recipe samples`: known plates that a station must judge right before it judges others."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from drivers.camera.picture import PictureError, read_grey_picture
from models.card import ModelError
from models.classifier import Classifier
from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    fail,
    load_or_exit,
    print_json,
    say,
)
from station.config import Configuration, Loaded, Recipe
from station.limit_samples import (
    SAMPLES_FILE,
    Sample,
    SamplesError,
    Shown,
    read_list,
    samples_folder,
    show_offline,
    write_list,
)
from station.log_reader import Reader
from station.model_store import ModelStore
from station.precision import load_classifier
from station.product import limits_of
from station.qms import StoreError
from station.recipe_desk import Desk
from station.recipes import RecipeError
from station.record import Verdict

app = typer.Typer(
    no_args_is_help=True,
    help="Limit samples: take them from the log, see that they get their verdicts.",
)


@app.command()
def add(
    what: Annotated[str, typer.Argument(help="A result that is stored whole, or a PNG file.")],
    config: ConfigOption,
    expected: Annotated[Verdict, typer.Option(case_sensitive=False, help="What it must get.")],
    folder: Annotated[Path, typer.Option(help="Of the samples; made if it is not there.")],
    is_json: JsonOption = False,
) -> None:
    """Take a plate into a folder of limit samples; says the sha256 that a recipe names."""
    loaded = load_or_exit(config)
    source = Path(what) if Path(what).is_file() else _stored(loaded.value, what)
    try:
        read_grey_picture(source)
        if source.suffix.lower() != ".png":
            fail(f"{source}: a sample is a PNG, without loss")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / (source.name if Path(what).is_file() else f"{what}.png")
        if source.resolve() != file.resolve():
            shutil.copyfile(source, file)
        sample = Sample(file, expected, hashlib.sha256(file.read_bytes()).hexdigest())
        known = [one for one in _known(folder) if one.path.name != file.name]
        sha256 = write_list(folder, [*known, sample])
    except (PictureError, SamplesError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    row = {"file": file.name, "expected": str(expected), "samples": len(known) + 1,
           "samples_sha256": sha256}  # fmt: skip
    if is_json:
        print_json(row)
        return
    say(f"{file.name} must be {expected}; {len(known) + 1} samples. The recipe names them so:")
    say("[limit_samples]")
    say(f'folder = "{folder.resolve()}"')
    say(f'sha256 = "{sha256}"')


def _known(folder: Path) -> list[Sample]:
    try:
        return read_list(folder / SAMPLES_FILE)
    except FileNotFoundError:
        return []


def _stored(settings: Configuration, result_id: str) -> Path:
    """The evidence of a result."""
    try:
        with Reader(settings.journal.directory) as reader:
            rows = reader.of_result(result_id)
            if not rows or rows[0]["kind"] != "result":
                fail(f"{result_id}: no such result, and no such file")
            for image in rows[0]["images"]:
                if image["role"] == "evidence" and not reader.is_removed(result_id, image["path"]):
                    return reader.images / str(image["path"])
    except StoreError as error:
        fail(str(error))
    fail(f"{result_id}: it is not stored whole; take one that is (FAIL, UNDECIDED, audit sample)")


@app.command()
def check(
    config: ConfigOption,
    recipe: Annotated[str, typer.Option(help="ID@VERSION, a file, or active.")] = "active",
    model: Annotated[
        str | None, typer.Option(help="By another model, by id or folder, than the recipe's.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="With another threshold.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Judge the samples as the station would; exit 1 if one does not get its verdict."""
    loaded = load_or_exit(config)
    with exit_on_config_error():
        try:
            product = Desk.at(loaded).load(recipe)
            if samples_folder(product) is None:
                fail(f"{product.source}: no [limit_samples] folder")
            product, classifier = _judging(loaded, product, model, threshold)
            shown = show_offline(product, classifier, loaded.value.camera.pixel_pitch_mm)
        except (RecipeError, ModelError, SamplesError) as error:
            fail(str(error))
    for one in shown:
        if is_json:
            print_json(_row(one))
        else:
            say(f"{'ok  ' if one.is_right else 'FAIL'}  {one.file:32} {_words(one)}")
    raise typer.Exit(0 if all(one.is_right for one in shown) else 1)


def _judging(
    loaded: Loaded[Configuration],
    recipe: Loaded[Recipe],
    model: str | None,
    threshold: float | None,
) -> tuple[Loaded[Recipe], Classifier]:
    """By the recipe's own model, or by another one at that one's own limits. Raises `ConfigError`,
    `ModelError`."""
    if model is None:
        given = recipe if threshold is None else _with(recipe, threshold=threshold)
        return given, load_classifier(loaded, given, 1).classifier
    classifier = Classifier.load(ModelStore.of(loaded.value).named(model))
    fails_above, unsure_above = limits_of(loaded.value, classifier.card, None, threshold)
    return _with(recipe, threshold=fails_above, unsure_above=unsure_above), classifier


def _with(recipe: Loaded[Recipe], **limits: float | None) -> Loaded[Recipe]:
    model = recipe.value.model.model_copy(update=limits)
    return replace(recipe, value=recipe.value.model_copy(update={"model": model}))


def _words(one: Shown) -> str:
    return f"{one.verdict} as it must be" if one.is_right else one.text


def _row(one: Shown) -> dict[str, object]:
    return {
        "file": one.file,
        "expected": str(one.expected),
        "verdict": one.verdict and str(one.verdict),
        "reason": one.reason and str(one.reason),
        "score": one.score,
        "problem": one.problem,
        "is_right": one.is_right,
    }
