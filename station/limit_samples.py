"""Limit samples: known plates that must get their verdicts before the station judges others.

The recipe names a folder and the sha256 of its `samples.csv`, which names each stored plate, its
sha256 and the verdict that it must get. A station whose recipe asks for them cuts, tiles, scores
and judges them with the very sessions that plates are scored with, at each start (so after any
change of model, recipe, precision, flat field or camera) and when a shift begins; until all of them
come out as they should it is not OPERATIONAL.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from drivers.camera.picture import PictureError, read_grey_picture
from models.classifier import Classifier
from station.config import ConfigError, Loaded, Recipe
from station.inspection import Inspector, PlateWork
from station.ipc import Json
from station.judge import Judge
from station.offline import PictureInspector, cut_picture, hand_over, plate_of
from station.record import ChangeBody, Reason, Verdict, score_text
from station.results import Context, judge
from station.strip import Gap, Pixels

SAMPLES_FILE = "samples.csv"
ROW = "limit_samples"
"""Name of the change row: what came of a run."""
_RUN_LIMIT_S = 60.0
"""Of all samples together: a start has 120 s (TimeoutStartSec), and models to load before."""
_MOST_SAMPLES = 200
_MOST_BYTES = 1_000_000
_BELT_LIMIT_S = 60.0
"""A belt that is never empty for so long is not waited for: plates are UNDECIDED meanwhile."""


class SamplesError(Exception):
    """The limit samples cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A stored plate and the verdict that it must get."""

    path: Path
    expected: Verdict
    sha256: str
    """Empty where the list names none, as in commissioning."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a sample came to."""

    file: str
    sha256: str
    expected: Verdict
    verdict: Verdict | None
    """None where it could not be judged; `problem` says why."""
    reason: Reason | None
    score: float | None
    problem: str = ""

    @property
    def is_right(self) -> bool:
        return not self.problem and self.verdict is self.expected

    @property
    def text(self) -> str:
        if self.problem:
            return self.problem
        score = "" if self.score is None else f" {score_text(self.score)}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.file} is {self.verdict}{score}{reason}, not {self.expected}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run over all samples."""

    cause: str
    shift: str
    samples_sha256: str
    shown: tuple[Shown, ...]
    problem: str = ""
    """Why nothing was shown; empty if samples were."""

    @property
    def findings(self) -> list[str]:
        """What is wrong; empty if the run passed."""
        wrong = [one.text for one in self.shown if not one.is_right]
        return [self.problem] if self.problem else wrong

    @property
    def is_passed(self) -> bool:
        return bool(self.shown) and not self.findings


NO_SAMPLES = Run("", "", "", ())
"""Of a recipe that names none."""


# --- the folder -----------------------------------------------------------------------------------


def read_list(path: Path) -> list[Sample]:
    """The samples of a CSV with the columns file (relative to it), expected and, where it binds the
    pictures, sha256. Raises FileNotFoundError, `SamplesError`."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SamplesError(f"{path}: larger than {_MOST_BYTES} bytes; no list of samples")
        return _parse(path, path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: bytes) -> list[Sample]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SamplesError(f"{path}: cannot be read: {error}") from error
    samples = []
    for number, row in enumerate(rows, start=2):
        wanted = (row.get("expected") or "").strip().upper()
        if not row.get("file") or wanted not in set(Verdict):
            verdicts = ", ".join(Verdict)
            raise SamplesError(f"{path}, row {number}: file and expected ({verdicts}) are needed")
        sha256 = (row.get("sha256") or "").strip().lower()
        samples.append(Sample(path.parent / row["file"], Verdict(wanted), sha256))
    return samples


def samples_folder(recipe: Loaded[Recipe]) -> Path | None:
    """Where the recipe's samples lie; None where it asks for none."""
    wanted = recipe.value.limit_samples.folder
    return None if wanted is None else Path(recipe.source).parent / wanted


def load_samples(recipe: Loaded[Recipe]) -> tuple[str, list[Sample]]:
    """sha256 of the recipe's list, and its samples. Raises `SamplesError` if the list is not the
    one that the recipe names, or proves nothing."""
    folder, wanted = samples_folder(recipe), recipe.value.limit_samples.sha256
    assert folder is not None
    path = folder / SAMPLES_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SamplesError(
            f"{path}: cannot be read: {error.strerror}; restore the limit samples of recipe "
            f"{recipe.value.id}@{recipe.value.version}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if wanted not in (None, found):
        raise SamplesError(
            f"{path}: changed (sha256 {found[:12]}, the recipe names {str(wanted)[:12]}); restore "
            "it, or propose a recipe that names the new list"
        )
    samples = _parse(path, data[:_MOST_BYTES])
    if unbound := [one for one in samples if not one.sha256]:
        raise SamplesError(
            f"{path}: {unbound[0].path.name} has no sha256; `vqi recipe samples add` names it"
        )
    kinds = {one.expected for one in samples}
    if not {Verdict.PASS, Verdict.FAIL} <= kinds or len(samples) > _MOST_SAMPLES:
        raise SamplesError(
            f"{path}: at least one plate that must PASS and one that must FAIL are needed, "
            f"{_MOST_SAMPLES} at most; it has {len(samples)}"
        )
    return found, samples


def _read(sample: Sample) -> Json:
    """`pixels` of a sample, or `problem`."""
    name = sample.path.name
    try:
        if hashlib.sha256(sample.path.read_bytes()).hexdigest() != sample.sha256:
            return {"problem": f"{name} is not the sample of the list: restore {sample.path}"}
        return {"pixels": read_grey_picture(sample.path)}
    except OSError as error:
        return {"problem": f"{name}: {error.strerror}: restore {sample.path}"}
    except PictureError as error:
        return {"problem": str(error)}


def _unexpected(error: Exception) -> str:
    return f"they could not be judged: {type(error).__name__}: {error}"


def _not_shown(sample: Sample, problem: str) -> Shown:
    name = sample.path.name
    return Shown(name, sample.sha256, sample.expected, None, None, None, problem)


def _width_problem(sample: Sample, pixels: Pixels, scan_line_px: int) -> str:
    if pixels.shape[1] == scan_line_px:
        return ""
    return (
        f"{sample.path.name}: {pixels.shape[1]} px wide, the camera's scan line has "
        f"{scan_line_px}: take samples with this camera"
    )


def show_offline(
    recipe: Loaded[Recipe],
    classifier: Classifier,
    pixel_pitch_mm: float,
    scan_line_px: int | None = None,
) -> tuple[Shown, ...]:
    """What the recipe's samples come to with this classifier, without a station; nothing where the
    recipe asks for none. `scan_line_px`: of the camera, where it is known. Raises `SamplesError`,
    `ConfigError`."""
    if samples_folder(recipe) is None:
        return ()
    samples = load_samples(recipe)[1]
    return show_samples(samples, recipe, classifier, pixel_pitch_mm, scan_line_px)


def show_samples(
    samples: Sequence[Sample],
    recipe: Loaded[Recipe],
    classifier: Classifier,
    pixel_pitch_mm: float,
    scan_line_px: int | None = None,
) -> tuple[Shown, ...]:
    """As `show_offline`, of a list that was loaded already: what is said of it is said of the very
    one that was shown. Raises `ConfigError`."""
    inspector = PictureInspector(recipe, classifier, pixel_pitch_mm, threads=1)
    shown = []
    for sample in samples:
        read = _read(sample)
        if "problem" in read:
            shown.append(_not_shown(sample, read["problem"]))
            continue
        pixels = read["pixels"]
        if scan_line_px and (problem := _width_problem(sample, pixels, scan_line_px)):
            shown.append(_not_shown(sample, problem))
            continue
        try:
            found = inspector.inspect(pixels)
        except ValueError as error:
            shown.append(_not_shown(sample, f"{sample.path.name}: {error}"))
            continue
        said = (found.verdict, found.reason, found.score)
        shown.append(Shown(sample.path.name, sample.sha256, sample.expected, *said))
    return tuple(shown)


def findings_offline(
    recipe: Loaded[Recipe], classifier: Classifier, pixel_pitch_mm: float
) -> list[str]:
    """What is wrong with the recipe's samples under this classifier; empty if nothing is. Raises
    `ConfigError`."""
    try:
        shown = show_offline(recipe, classifier, pixel_pitch_mm)
    except SamplesError as error:
        return [str(error)]
    return [one.text for one in shown if not one.is_right]


def run_aside(
    recipe: Loaded[Recipe],
    classifier: Classifier,
    pixel_pitch_mm: float,
    scan_line_px: int,
    cause: str,
    shift: str,
) -> Run:
    """A run with a classifier that judges no plates yet; it passes only where the recipe asks for
    samples and all get their verdicts. Whatever goes wrong is the run's problem."""
    sha256, shown, problem = "", tuple[Shown, ...](), ""
    try:
        if samples_folder(recipe) is not None:
            sha256, samples = load_samples(recipe)
            shown = show_samples(samples, recipe, classifier, pixel_pitch_mm, scan_line_px)
    except SamplesError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001  it keeps plates from being judged, not a roll-back
        problem = _unexpected(error)
    return Run(cause, shift, sha256, shown, problem)


# --- in the running station -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Showing:
    """A run that was begun, itself and no other like it."""

    judge: Judge
    """What is shown to: its row names it, whatever judges plates by then."""
    cause: str
    shift: str


@dataclass(frozen=True, slots=True)
class SamplesShown:
    """All samples have been judged, or could not be."""

    showing: Showing
    run: Run


State = Literal["none", "due", "running", "passed", "failed"]


class LimitSamples:
    """Whether the samples came out as they should. For the station's main thread, but for the
    thread that shows them."""

    def __init__(self, recipe: Loaded[Recipe], post: Callable[[SamplesShown], None]) -> None:
        self._recipe = recipe
        self._post = post
        self._awaited: dict[PlateWork, threading.Event] = {}
        """Samples that are scored, of any run; set once they have their scores."""
        self._current: Showing | None = None
        self.state: State = "none" if samples_folder(recipe) is None else "due"
        self._cause = "start"
        self._asked_meanwhile = ""
        """Cause of another run, asked for while one was under way; empty if none was."""
        self._shift = ""
        self._since = time.monotonic()
        self._last: Run | None = None

    @property
    def may_judge(self) -> bool:
        """Nothing is asked for, or all that is asked for has passed."""
        return self.state in ("none", "passed")

    @property
    def problem(self) -> str:
        """Why plates are not judged, and what to do; empty where nothing went wrong."""
        if self.state != "failed" or self._last is None:
            return ""
        findings = self._last.findings
        more = f" and {len(findings) - 3} more" if len(findings) > 3 else ""
        return (
            f"limit samples: {'; '.join(findings[:3])}{more}; put right what changed (model, "
            "recipe, samples), or activate the former recipe, then `vqi control limit-samples`"
        )

    @property
    def waiting(self) -> str:
        """Why no plate should come; empty unless samples wait for the belt to be empty."""
        if self.state != "due" or self._last is None:
            return ""
        return f"limit samples ({self._cause}) are judged after the plate on the belt"

    @property
    def status(self) -> Json:
        """For `vqi control status`."""
        shown = self._last.shown if self._last else ()
        return {
            "state": self.state,
            "cause": self._cause if self.state != "none" else "",
            "samples": len(shown),
            "right": sum(one.is_right for one in shown),
            "problem": self.problem,
        }

    def ask(self, cause: str) -> str:
        """They are due again, or once the run that is under way has ended; why not, empty if they
        are."""
        if self.state == "none":
            return "the recipe names no limit samples ([limit_samples] folder)"
        if self.state == "running":
            self._asked_meanwhile = cause
        else:
            self.state, self._cause, self._since = "due", cause, time.monotonic()
            self._asked_meanwhile = ""
        return ""

    def turn(self, shift: str) -> None:
        """A shift goes on, or has begun; a run that was asked for during another is due."""
        if self.state not in ("passed", "failed"):
            return
        is_asked = self._recipe.value.limit_samples.at_shift_start
        if self._asked_meanwhile:
            self.ask(self._asked_meanwhile)
        elif is_asked and shift != self._shift:
            self.ask(f"shift {shift}")

    def is_to_begin(self, is_belt_empty: bool) -> bool:
        """They are due, and no plate is in work; or there always is one."""
        if self.state != "due" or self._last is None:
            return False
        return is_belt_empty or time.monotonic() - self._since > _BELT_LIMIT_S

    def begin(self, context: Context, judge: Judge, inspector: Inspector, shift: str) -> None:
        """Show them, on a thread of their own; `SamplesShown` is posted at the end."""
        self.state, self._shift = "running", shift
        self._current = Showing(judge, self._cause, shift)
        threading.Thread(
            target=self._run,
            args=(self._current, context, inspector),
            name="limit-samples",
            daemon=True,
        ).start()

    def is_current(self, showing: Showing) -> bool:
        """What it came to counts: neither another judge nor another run came since it was begun."""
        return self._current is showing

    def scored(self, work: PlateWork) -> None:
        """A sample's tiles have their scores; of one that was given up nobody waits for them."""
        if awaited := self._awaited.get(work):
            awaited.set()

    def adopt(self, recipe: Loaded[Recipe], run: Run) -> None:
        """Another recipe judges, between two plates; its samples were shown aside (`run_aside`)
        with the classifier that judges now. A run that was begun with the former one is dropped."""
        self._recipe, self._shift = recipe, run.shift
        self.state, self._current = "none", None
        if samples_folder(recipe) is None:
            self._asked_meanwhile = ""
        else:
            self.settle(run)

    def settle(self, run: Run) -> None:
        """Its row is in the log: from here on it counts."""
        self._last, self._current = run, None
        self.state = "passed" if run.is_passed else "failed"

    def row(self, run: Run, context: Context, judge: Judge) -> ChangeBody:
        shown = [
            # A score may be no number, which JSON has no word for.
            {**asdict(one), "score": one.score and repr(one.score), "is_right": one.is_right}
            for one in run.shown
        ]
        detail = {
            "cause": run.cause,
            "shift": run.shift,
            "passed": "yes" if run.is_passed else "no",
            "problem": "; ".join(run.findings)[:2000],
            "samples": json.dumps(shown, default=str),
            "samples_sha256": run.samples_sha256,
            "recipe": judge.name,
            "recipe_sha256": judge.recipe.sha256,
            "model_sha256": judge.classifier.model_sha256,
            "runtime": judge.classifier.runtime,
            "threshold": repr(judge.threshold),
            **({} if judge.unsure_above is None else {"unsure_above": repr(judge.unsure_above)}),
            "camera_serial": context.camera.serial,
        }
        return ChangeBody(station_id=context.station_id, what=ROW, who="station", detail=detail)

    def _run(self, showing: Showing, context: Context, inspector: Inspector) -> None:
        sha256, shown, problem, by = "", list[Shown](), "", showing.judge
        until = time.monotonic() + _RUN_LIMIT_S
        try:
            sha256, samples = load_samples(by.recipe)
            for sample in samples:
                if not self.is_current(showing):
                    return
                if time.monotonic() > until:
                    judged = sum(not one.problem for one in shown)
                    problem = (
                        f"{judged} of {len(samples)} samples were judged within "
                        f"{_RUN_LIMIT_S:g} s: name fewer, or see why this machine is slow"
                    )
                    break
                shown.append(self._show(sample, context, by, inspector, until))
        except SamplesError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, no plate may be judged
            problem = _unexpected(error)
        run = Run(showing.cause, showing.shift, sha256, tuple(shown), problem)
        self._post(SamplesShown(showing, run))

    def _show(
        self, sample: Sample, context: Context, by: Judge, inspector: Inspector, until: float
    ) -> Shown:
        """`until`: of CLOCK_MONOTONIC, when the run is given up."""
        read, name, geometry = _read(sample), sample.path.name, context.geometry
        if "problem" in read:
            return _not_shown(sample, read["problem"])
        pixels = read["pixels"]
        if problem := _width_problem(sample, pixels, geometry.scan_line_px):
            return _not_shown(sample, problem)
        events = cut_picture(pixels, geometry)
        plate = plate_of(events)
        if isinstance(plate, Gap):
            return Shown(
                name, sample.sha256, sample.expected, Verdict.UNDECIDED, plate.reason, None
            )
        work = PlateWork(plate, "", 0, None, by, is_limit_sample=True)
        scored = self._awaited[work] = threading.Event()
        try:
            hand_over(events, work, inspector)
            if not scored.wait(max(0.0, until - time.monotonic())):
                return _not_shown(sample, f"{name}: no scores, {_RUN_LIMIT_S:g} s into the run")
        finally:
            del self._awaited[work]
        plate_recipe = by.recipe.value.plate
        judged = judge(work, geometry, plate_recipe)
        said = (judged.verdict, judged.reason, judged.score)
        return Shown(name, sample.sha256, sample.expected, *said)


def bound(recipe: Loaded[Recipe]) -> Recipe:
    """The recipe with the sha256 of its list of samples, where it says none itself. Raises
    `ConfigError`."""
    if samples_folder(recipe) is None:
        return recipe.value
    try:
        sha256, _ = load_samples(recipe)
    except SamplesError as error:
        raise ConfigError(f"{recipe.source}: limit_samples: {error}") from error
    section = recipe.value.limit_samples.model_copy(update={"sha256": sha256})
    return recipe.value.model_copy(update={"limit_samples": section})


def write_list(folder: Path, samples: Sequence[Sample]) -> str:
    """Write `samples.csv`, whole or not at all; its sha256. Raises OSError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "expected", "sha256"])
    for one in samples:
        table.writerow([one.path.name, str(one.expected), one.sha256])
    data = text.getvalue().encode()
    temporary = folder / f".{SAMPLES_FILE}.new"
    temporary.write_bytes(data)
    temporary.replace(folder / SAMPLES_FILE)
    return hashlib.sha256(data).hexdigest()
