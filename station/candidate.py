"""Figures of a model that is to judge: on audited plates beside the model that judges, and its
speed on this processor in the precision that it may judge in."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sqlalchemy import select

from models.classifier import Classifier
from models.runtimes import CHUNK_TILES, TILE_PX
from station.config import Configuration, Loaded, Recipe
from station.evidence import keys_of, read_trained_keys
from station.ipc import Json
from station.limit_samples import load_samples, show_samples
from station.log_reader import Reader
from station.msa import wilson
from station.offline import PictureInspector
from station.parity import whole_plate
from station.precision import load_classifier
from station.qms import IMAGES
from station.record import Verdict
from station.tables import PLATE

MOST_PLATES = 2000
"""Audited plates that are judged again, the newest first."""
_ROUNDS = 60
MOST_SLOWER = 1.1
"""A candidate whose tile takes so many times as long as the judging model's is refused: the line's
rate was commissioned with that one."""


@dataclass(slots=True)
class AuditFigures:
    """Audited plates through a candidate and the judging model. Good and defective are what people
    said."""

    good: int = 0
    defective: int = 0
    escapes: int = 0
    """Defective plates that the candidate passes."""
    false_rejects: int = 0
    active_escapes: int = 0
    active_false_rejects: int = 0
    undecided: int = 0
    """By the candidate: neither."""
    new_escape: str = ""
    """Result of the first plate that only the candidate lets escape."""
    passed_over: int = 0
    """Audited, but not kept whole, or gone since."""
    may_have_trained: int = 0
    """Audited, but an earlier attempt of the part may have trained."""
    digest: str = ""
    """sha256 over the results and what people said of each."""

    @property
    def problem(self) -> str:
        if not self.defective:
            left_out = ""
            if self.may_have_trained:
                left_out = f" ({self.may_have_trained} of parts that may have trained do not count)"
            return (
                "no defective audit sample that a person has judged was kept whole"
                f"{left_out}: nothing shows that it finds any"
            )
        if self.new_escape:
            return (
                f"it lets {self.new_escape} escape, which the judging model does not "
                f"({self.escapes} of {self.defective} defective audit samples, now "
                f"{self.active_escapes})"
            )
        return ""

    @property
    def words(self) -> str:
        escapes = _share("escapes", self.escapes, self.defective)
        rejects = _share("false rejects", self.false_rejects, self.good)
        now = self.active_escapes, self.active_false_rejects
        return f"{escapes} ({now[0]} now), {rejects} ({now[1]} now)"

    def as_detail(self) -> dict[str, str]:
        counts = ("good", "defective", "escapes", "false_rejects", "active_escapes",
                  "active_false_rejects", "undecided", "passed_over",
                  "may_have_trained")  # fmt: skip
        figures = {name: str(getattr(self, name)) for name in counts}
        said = {"problem": self.problem, "words": self.words, "plates_sha256": self.digest}
        return figures | said


def _share(what: str, count: int, of: int) -> str:
    if not of:
        return f"{what} 0 of 0"
    found = wilson(count, of)
    return f"{what} {count} of {of} [{found.low:.1%}, {found.high:.1%}]"


def measure_audit(
    configuration: Loaded[Configuration], active: Loaded[Recipe], wanted: Loaded[Recipe]
) -> AuditFigures:
    """Judge audit samples again that people have judged and that were kept whole, but for parts
    that may have trained. Raises `ConfigError`, `ModelError`, `StoreError`."""
    figures, digest = AuditFigures(), hashlib.sha256()
    inspectors = [_inspector(configuration, recipe) for recipe in (wanted, active)]
    directory = configuration.value.journal.directory
    with Reader(directory) as reader:
        trained = read_trained_keys(reader)
        for body, said in _audited(reader, wanted.value.id):
            picture = whole_plate(directory / IMAGES, body, reader)
            if picture is None:
                figures.passed_over += 1
                continue
            if not trained.isdisjoint(keys_of(body)):
                figures.may_have_trained += 1
                continue
            digest.update(f"{body['result_id']} {body['pixels_sha256']} {said}\n".encode())
            found, before = (inspector.inspect(picture).verdict for inspector in inspectors)
            _count(figures, body["result_id"], said, found, before)
    figures.digest = digest.hexdigest()
    return figures


def _count(
    figures: AuditFigures, result_id: str, said: str, found: Verdict, before: Verdict
) -> None:
    figures.undecided += found is Verdict.UNDECIDED
    if said == Verdict.FAIL:
        figures.defective += 1
        figures.escapes += found is Verdict.PASS
        figures.active_escapes += before is Verdict.PASS
        if found is Verdict.PASS and before is not Verdict.PASS:
            figures.new_escape = figures.new_escape or result_id
    else:
        figures.good += 1
        figures.false_rejects += found is Verdict.FAIL
        figures.active_false_rejects += before is Verdict.FAIL


def _inspector(configuration: Loaded[Configuration], recipe: Loaded[Recipe]) -> PictureInspector:
    classifier = load_classifier(configuration, recipe, 1).classifier
    return PictureInspector(recipe, classifier, configuration.value.camera.pixel_pitch_mm, 1)


def _audited(reader: Reader, recipe_id: str) -> Iterator[tuple[Json, str]]:
    """A product's audit samples, the newest first, each with what its last review says."""
    query = (
        select(PLATE.c.seq, PLATE.c.reviewed_verdict)
        .where(PLATE.c.is_audit_sample)
        .where(PLATE.c.recipe_id == recipe_id)
        .where(PLATE.c.reviewed_verdict.in_([Verdict.PASS.value, Verdict.FAIL.value]))
        .order_by(PLATE.c.written_at.desc())
        .limit(MOST_PLATES)
    )
    for row in reader.ask(query):
        yield reader.bodies_at([row.seq])[row.seq], row.reviewed_verdict


def measure_samples(
    configuration: Loaded[Configuration], wanted: Loaded[Recipe], folder: Path | None = None
) -> dict[str, str]:
    """Show limit samples to a candidate, as a station that judges by it shows them at each start:
    those of the folder, or those that the version itself names. `samples_sha256` is of their list,
    which binds each picture. Raises `ConfigError`, `ModelError`, `SamplesError`."""
    if folder is not None:
        section = wanted.value.limit_samples.model_copy(
            update={"folder": str(folder.resolve()), "sha256": None}
        )
        value = wanted.value.model_copy(update={"limit_samples": section})
        wanted = replace(wanted, value=value)
    digest, samples = load_samples(wanted)
    classifier = load_classifier(configuration, wanted, 1).classifier
    pitch_mm = configuration.value.camera.pixel_pitch_mm
    shown = show_samples(samples, wanted, classifier, pitch_mm)
    wrong = [one.text for one in shown if not one.is_right]
    problem = f"{'; '.join(wrong[:3])} ({len(wrong)} of {len(shown)})" if wrong else ""
    expected = Counter(one.expected for one in samples)
    counts = f"{expected[Verdict.FAIL]} fail and {expected[Verdict.PASS]} pass as they should"
    return {"samples_sha256": digest, "problem": problem, "words": counts}


def measure_precision(
    configuration: Loaded[Configuration], active: Loaded[Recipe], wanted: Loaded[Recipe]
) -> dict[str, str]:
    """Time of a tile in the precision that each may judge in here, interleaved, and why that one;
    for its row. Raises `ConfigError`, `ModelError`."""
    chosen = [load_classifier(configuration, recipe, 1) for recipe in (wanted, active)]
    for one in chosen:
        one.classifier.self_test()
    ours, theirs = _ms_per_tile([one.classifier for one in chosen])
    problem, precision = "", chosen[0].classifier.precision
    if ours > MOST_SLOWER * theirs:
        problem = (
            f"a tile takes {ours:.3f} ms, the judging model's {theirs:.3f} ms "
            f"({chosen[0].why}): put it through the gate for faster precisions, "
            f"`vqi model benchmark --version {wanted.value.id}@{wanted.value.version}`"
        )
    return {
        "runtime": chosen[0].classifier.runtime,
        "why": chosen[0].why,
        "ms_per_tile": f"{ours:.4f}",
        "active_ms_per_tile": f"{theirs:.4f}",
        "problem": problem,
        "words": f"{precision}, {ours / theirs:.2f} of the judging model's time",
    }


def _ms_per_tile(classifiers: list[Classifier]) -> list[float]:
    """The least of each, a chunk in turn, either first: what else the machine does slows both
    alike, and never always the same one."""
    tiles = np.random.default_rng(5).integers(0, 255, (CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
    times: list[list[float]] = [[] for _ in classifiers]
    pairs = list(zip(classifiers, times, strict=True))
    for number in range(_ROUNDS):
        for classifier, taken in pairs[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            classifier.scores(tiles)
            taken.append((time.perf_counter() - began) * 1000 / CHUNK_TILES)
    return [min(taken) for taken in times]
