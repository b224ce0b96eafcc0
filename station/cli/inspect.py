"""`vqi inspect`: pictures as plates."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from drivers.camera.picture import PictureError, read_grey_picture
from models.card import ModelError
from models.classifier import Classifier
from models.registry import find_model
from station.cli.common import JsonOption, exit_on_config_error, fail, print_json
from station.config import EX_CONFIG, ConfigError, Loaded, Recipe, load_configuration, load_recipe
from station.flat_field import FlatField, FlatFieldRefused, load_any_camera
from station.offline import Inspection, PictureInspector
from station.precision import load_classifier
from station.product import model_folder
from station.recipes import active_recipe

_USUAL_PITCH_MM = 0.1
_WHOLE_IMAGE = "shipped:whole-image"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"}


def inspect(
    paths: Annotated[list[str], typer.Argument(help="Pictures, or folders of pictures.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe file, or shipped:<id>; default: shipped:whole-image."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the recipe's.")] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="As this station: its recipe, in its precision."),
    ] = None,
    pixel_pitch_mm: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Size of a pixel; default: 0.1, or the station's."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(help="As the camera took them: apply the flat field of --config."),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Judge each picture as one plate. Exit status 1 if any could not be read."""
    inspector = _open_inspector(recipe, model, config, pixel_pitch_mm, raw)
    failed = False
    for path, error in _pictures(paths):
        try:
            if error is not None:
                raise error
            found = inspector.inspect(read_grey_picture(path))
        except (PictureError, ValueError, ConfigError) as problem:
            failed = True
            text = str(problem).removeprefix(f"{path}: ")
            print(f"vqi: {path}: {text}", file=sys.stderr)  # noqa: T201
            if is_json:
                print_json({"file": str(path), "verdict": None, "error": text})
            continue
        if is_json:
            print_json(_row(path, found))
        else:
            typer.echo(_line(path, found))
    raise typer.Exit(1 if failed else 0)


def _open_inspector(
    source: str | None,
    model: str | None,
    config: str | None,
    pixel_pitch_mm: float | None,
    is_raw: bool,
) -> PictureInspector:
    threads, usual_mm = len(os.sched_getaffinity(0)), _USUAL_PITCH_MM
    with exit_on_config_error():
        try:
            if config is not None and model is None:
                station = load_configuration(config)
                recipe = load_recipe(source) if source else active_recipe(station.value)
                classifier = load_classifier(station, recipe, threads).classifier
                usual_mm = station.value.camera.pixel_pitch_mm
            else:
                recipe = load_recipe(source or _WHOLE_IMAGE)
                classifier = _load_fp32(recipe, model, threads)
            field = _flat_field(config) if is_raw else None
            pitch_mm = pixel_pitch_mm or usual_mm
            return PictureInspector(recipe, classifier, pitch_mm, threads, field)
        except ModelError as error:
            fail(str(error), EX_CONFIG)


def _flat_field(config: str | None) -> FlatField:
    wanted = None if config is None else load_configuration(config).value.flat_field
    if wanted is None:
        raise ConfigError("--raw: no flat field; name a --config FILE that has [flat_field]")
    try:
        return load_any_camera(wanted.file, wanted.sha256)
    except FlatFieldRefused as error:
        raise ConfigError(f"{config}: flat_field.file: {error}") from error


def _load_fp32(recipe: Loaded[Recipe], model: str | None, threads: int) -> Classifier:
    if model is not None:
        return Classifier.load(find_model(model), threads)
    return Classifier.load(model_folder(recipe, None), threads, recipe.value.model.sha256)


def _pictures(paths: list[str]) -> Iterator[tuple[Path, PictureError | None]]:
    """Files as given; folders' pictures by name, with those in their sub-folders. What cannot be
    looked at comes with its reason."""
    for path in map(Path, paths):
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            yield path, _unreadable(error)
            continue
        if is_folder:
            yield from _in_folder(path)
        else:
            yield path, None


def _in_folder(folder: Path) -> Iterator[tuple[Path, PictureError | None]]:
    problems: list[OSError] = []
    found: list[Path] = []
    for at, _, names in os.walk(folder, onerror=problems.append):
        found += [Path(at, name) for name in names if Path(name).suffix.lower() in _SUFFIXES]
    for problem in problems:
        yield Path(problem.filename), _unreadable(problem)
    if not found and not problems:
        yield folder, PictureError(f"no pictures in this folder ({', '.join(sorted(_SUFFIXES))})")
    for path in sorted(found):
        yield path, None


def _unreadable(error: OSError) -> PictureError:
    return PictureError(f"cannot be read: {error.strerror}")


def _row(path: Path, found: Inspection) -> dict[str, Any]:
    return {
        "file": str(path),
        "verdict": str(found.verdict),
        "reason": found.reason and str(found.reason),
        "detail": found.detail,
        "score": found.score,
        "tiles": [{"x": t.x_px, "y": t.y_px, "score": t.score} for t in found.tiles],
        "defects": [defect.model_dump() for defect in found.defects],
    }


def _line(path: Path, found: Inspection) -> str:
    score = "" if found.score is None else f"  score {found.score:.3f}"
    places = "".join(
        f"\n    {d.w_px} x {d.h_px} px at ({d.x_px}, {d.y_px})  score {d.score:.3f}"
        for d in found.defects
    )
    reason = f"  {found.reason}: {found.detail}" if found.reason else ""
    return f"{path}  {found.verdict}{score}{reason}{places}"
