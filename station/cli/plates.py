"""Whole rendered plates, for `vqi model export`, `evaluate` and `pod`. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from models.card import MeasuredCard, read_card, write_card
from models.classifier import Classifier
from models.training.evaluate import Figure
from station.config import ModelRecipe
from station.detection import PROPERTIES, Property, Trial, fit, nominal_defects, try_plates
from station.plates import (
    PlateScore,
    choose_threshold,
    measure_calibration,
    measure_rates,
    score_plates,
)
from station.synthesize import PlateSource

T = TypeVar("T")


def threshold_of(classifier: Classifier, recipe: ModelRecipe) -> float:
    """The recipe's own threshold if it was made for this model, else the card's."""
    is_its_own = recipe.id == classifier.model_id
    return classifier.threshold_for(recipe.threshold if is_its_own else None)


def evaluate_plates(
    source: PlateSource, classifier: Classifier, threshold: float, plates: int, seed: int
) -> dict[str, Any]:
    """What a model does on fresh plates; half of them calibrate, the others say how well. Raises
    `SynthesisError`."""
    scores = shown(score_plates(source, classifier, plates, seed), plates)
    half = plates // 2
    return {
        "plates": plates,
        "seed": seed,
        **asdict(measure_rates(scores, threshold)),
        "calibration": asdict(measure_calibration(scores[:half], scores[half:])),
    }


def set_threshold(
    folder: Path, source: PlateSource, plates: int, target: float, seed: int, made_by: str
) -> None:
    """Choose the card's threshold on half of the plates, measure it on the others. `target` is the
    share of good plates that may fail. Raises `SynthesisError`, OSError, `TooFewPlates`."""
    scores = shown(score_plates(source, Classifier.load(folder), plates, seed), plates)
    choosing, measuring = scores[: plates // 2], scores[plates // 2 :]
    chosen = choose_threshold(choosing, target)
    card = read_card(folder)
    threshold = card.threshold.model_copy(
        update={"value": chosen.value, "chosen_by": f"{chosen.words}; {made_by}"}
    )
    measured = tuple(
        MeasuredCard(
            name=name,
            value=round(figure.value, 4),
            low=round(figure.low, 4),
            high=round(figure.high, 4),
            samples=figure.samples,
            command=made_by,
            model_sha256=card.sha256,
        )
        for name, figure in _figures(choosing, measuring, chosen.value).items()
    )
    write_card(folder, card.model_copy(update={"threshold": threshold, "measured": measured}))
    typer.echo(f"threshold {chosen.value}: {chosen.words}")
    for item in measured:
        typer.echo(f"{item.name}: {item.value} [{item.low}, {item.high}] of {item.samples}")


def _figures(
    choosing: list[PlateScore], measuring: list[PlateScore], threshold: float
) -> dict[str, Figure]:
    rates = measure_rates(measuring, threshold)
    calibration = measure_calibration(choosing, measuring)
    odds = f"calibrated log odds = {calibration.slope:.4g} x log odds {calibration.offset:+.4g}"
    return {
        "plate escape rate": rates.escape_rate,
        "plate false-reject rate": rates.false_reject_rate,
        f"plate Brier score ({odds})": calibration.brier,
    }


def detect(
    source: PlateSource, classifier: Classifier, threshold: float, plates: int, seed: int
) -> list[Trial]:
    """Every defect of the plates, and whether it was found. Raises ValueError if the plate is too
    small for one, `SynthesisError`."""
    tried = shown(try_plates(source, classifier, threshold, plates, seed), plates)
    return [trial for of_plate in tried for trial in of_plate]


def detection_rows(trials: list[Trial]) -> Iterator[dict[str, Any]]:
    """Of each kind, from which size and contrast on it is found."""
    for kind, nominal in nominal_defects().items():
        reaches: dict[str, Any] = {
            name: asdict(fit(trials, kind, name).reach()) for name in PROPERTIES
        }
        reaches["size_mm"]["at_contrast"] = nominal.contrast
        reaches["contrast"]["at_size_mm"] = nominal.size_mm
        yield {"kind": kind, **reaches}


def detection_words(row: dict[str, Any]) -> str:
    """A row for people."""
    lines = [row["kind"]]
    for name in PROPERTIES:
        reach = row[name]
        values = "  ".join(
            f"{key.replace('_', '/')} {'-' if reach[key] is None else format(reach[key], '.3g')}"
            for key in ("a50", "a90", "a90_95")
        )
        found = f"{reach['hits']} of {reach['trials']} found"
        lines.append(f"  {name:8}  {values}  {found}  {reach['note']}".rstrip())
    return "\n".join(lines)


def draw_detection(path: Path, title: str, trials: list[Trial]) -> None:
    """Write the curves of all kinds as a picture. Raises OSError."""
    from models.training.pod_figure import Panel, draw

    def panel(kind: str, varied: Property) -> Panel:
        at = nominal_defects()[kind]
        label = f"longer side, mm (contrast {at.contrast:.2g})"
        if varied == "contrast":
            label = f"contrast (longer side {at.size_mm:.2g} mm)"
        return Panel(kind, label, fit(trials, kind, varied))

    draw(path, title, [[panel(kind, name) for kind in nominal_defects()] for name in PROPERTIES])


def shown(plates: Iterable[T], count: int) -> list[T]:
    """What comes of each plate, with a bar on stderr."""
    return list(track(plates, "scoring plates", total=count, console=Console(stderr=True)))
