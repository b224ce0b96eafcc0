"""`vqi model benchmark --config`: which faster precisions may judge plates on this processor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import track

from models.card import ModelError
from models.classifier import Classifier
from station.cli.common import command_line, exit_on_config_error, fail, load_or_exit, print_json
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.gate import GatePlan, plates_to_render, run_gate
from station.model_store import ModelStore
from station.precision import CandidateRecord, ChangedPlate, GateRecord, load_classifier
from station.product import fitting, load_product, model_folder
from station.recipe_desk import Desk
from station.recipes import RecipeError
from station.synthesize import SynthesisError


def report_gate(config: Path, is_json: bool, version: str | None = None) -> None:
    """Put this station's model through the gate in every precision, record and print what came out.
    A refusal is a result; exit status 1 if the gate could not be run."""
    loaded = load_or_exit(str(config))
    command = command_line()
    with exit_on_config_error():
        recipe = _product(loaded, version)
        try:
            sessions, sha256 = loaded.value.station.inspect_threads, recipe.value.model.sha256
            fp32 = Classifier.load(
                model_folder(recipe, ModelStore.of(loaded.value)), sessions, sha256
            )
            count = plates_to_render(fp32, GatePlan())
            progress = iter(track(range(count), "judging plates", console=Console(stderr=True)))
            record, path = run_gate(
                loaded, recipe, fp32, command, GatePlan(), lambda: next(progress, None)
            )
            why = load_classifier(loaded, recipe, 1).why
        except (ModelError, SynthesisError, OSError) as error:
            fail(str(error))
    typer.echo(f"{path}: written", err=True)
    for row in _rows(record) if is_json else []:
        print_json(row)
    for line in [] if is_json else [*_lines(record), f"this station judges in {why}"]:
        typer.echo(line)


def _product(configuration: Loaded[Configuration], version: str | None) -> Loaded[Recipe]:
    """What judges here, or a version that is to. Raises `ConfigError`."""
    if version is None:
        return load_product(configuration)
    try:
        return fitting(configuration, Desk.at(configuration).load(version))
    except RecipeError as error:
        raise ConfigError(str(error)) from error


def _rows(record: GateRecord) -> list[dict[str, Any]]:
    """fp32 and each candidate, each with what they were held against."""
    common = record.model_dump(exclude={"candidates"}, mode="json")
    fp32 = {
        "precision": "fp32",
        "is_passed": True,
        "runtime": record.fp32_runtime,
        "ms_per_tile": record.fp32_ms_per_tile,
        "speed_ratio": 1.0,
        "threshold": record.fp32_threshold,
    }
    candidates = [each.model_dump(mode="json") for each in record.candidates]
    return [row | {"gate": common} for row in (fp32, *candidates)]


def _lines(record: GateRecord) -> list[str]:
    tiles, model = record.gate_set, f"{record.model_id} sha256 {record.model_sha256[:12]}"
    fp32 = f"{record.fp32_ms_per_tile:.3f} ms a tile, threshold {record.fp32_threshold:.4f}"
    limit_samples = f"{record.limit_samples} limit samples that fp32 fails"
    return [
        _line("processor", record.processor),
        *(_line("", limit) for limit in record.limits),
        _line("model", f"{model}, recipe {record.recipe_id}"),
        _line("gate set", f"{tiles.tiles} tiles of {tiles.plates} plates, {tiles.defective} bad"),
        _line("", f"fp32 AUROC {tiles.auroc:.4f}{_origin(tiles.is_as_on_card)}"),
        _line("plates", f"{record.judged_plates} judged; {limit_samples}"),
        _line("", f"{record.choosing_plates} others chose the thresholds"),
        _line("fp32", f"{fp32}, {record.fp32_runtime}"),
        *(line for each in record.candidates for line in _candidate_lines(each)),
    ]


def _line(name: str, text: str) -> str:
    return f"{name:12}{text}"


def _origin(is_as_on_card: bool | None) -> str:
    if is_as_on_card is None:
        return "; the card names no gate set"
    return ", the card's" if is_as_on_card else ", rendered a little differently than the card's"


def _candidate_lines(candidate: CandidateRecord) -> list[str]:
    facts = [f"REFUSED: {candidate.refused}" if candidate.refused else "PASSED"]
    if candidate.speed_ratio is not None:
        speed = f"{candidate.ms_per_tile:.3f} ms a tile, {candidate.speed_ratio:.2f}x fp32"
        facts.append(f"{speed}, {candidate.runtime}")
    if candidate.auroc_difference is not None:
        value, low, high = candidate.auroc_difference
        facts.append(f"AUROC {value:+.5f} [{low:+.5f}, {high:+.5f}]")
    if candidate.equal_share_low is not None:
        equal = f"{candidate.equal_plates} equal plate verdicts"
        low_share = f"at least {candidate.equal_share_low:.2%}"
        facts.append(f"threshold {candidate.threshold:.4f}, {equal} ({low_share})")
    facts += map(_changed, candidate.changed)
    return [
        _line(name, fact) for name, fact in zip(_once(candidate.precision), facts, strict=False)
    ]


def _changed(plate: ChangedPlate) -> str:
    kind = (
        "limit sample" if plate.is_limit_sample else "defective" if plate.is_defective else "good"
    )
    scores = f"score {plate.fp32_score:.4f} in fp32, {plate.score:.4f} here"
    return f"{plate.change}: plate {plate.plate}, {kind}, {scores}"


def _once(name: str) -> Iterator[str]:
    """A name for the first line of several."""
    yield name
    yield from itertools.repeat("")
