"""What a commissioning run keeps: one file a finished step, pictures beside it.

A folder holds the runs `fat` and `sat`. A step's file is written whole or not at all, so that a run
that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import re
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

STEPS_FOLDER = "steps"


class Part(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Run(StrEnum):
    """Which acceptance test."""

    FAT = "fat"
    """At the maker's."""
    SAT = "sat"
    """At the line."""


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_DONE = "not done"
    """The device or the data is absent, or nobody answered."""


class Check(Part):
    """One figure or statement against what is expected of it."""

    what: str
    measured: float | str | None
    """None: it could not be measured, and so it is not as expected."""
    expected: str
    is_ok: bool
    unit: str = ""


class Picture(Part):
    """A picture of a step: PNG, JPEG or SVG."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    caption: str
    sha256: str


class Basis(Part):
    """What a step was done on; on another it must be done again."""

    configuration_sha256: str
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    model_id: str
    model_sha256: str
    producer_sha256: str = "none"
    """Of the GenTL producer's file; none for a camera without."""


class StepResult(Part):
    """One finished step."""

    step: str = Field(pattern="^[a-z_]+$")
    status: Status
    reason: str = ""
    """Why it is not done, or what ended it."""
    facts: dict[str, str] = {}
    """What was found, without a limit to it."""
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    who: str
    started_at: str
    finished_at: str
    basis: Basis

    @model_validator(mode="after")
    def _passes_by_its_checks(self) -> StepResult:
        is_good = bool(self.checks) and all(check.is_ok for check in self.checks)
        if self.status is Status.PASSED and not is_good:
            raise ValueError("a step has passed only if it has checks and all are as expected")
        return self


class RunFolderError(Exception):
    """A run's folder cannot be used; the message says which file and why."""


class RunFolder:
    """The finished steps of one run."""

    def __init__(self, directory: Path, run: Run) -> None:
        self.run = run
        self.path = directory / run
        self._steps = self.path / STEPS_FOLDER

    def steps(self) -> dict[str, StepResult]:
        """Finished steps by name. Raises `RunFolderError`."""
        found = (self._read(path) for path in sorted(self._steps.glob("*.json")))
        return {step.step: step for step in found}

    def write_step(self, step: StepResult) -> None:
        """Raises `RunFolderError`."""
        self.write(f"{STEPS_FOLDER}/{step.step}.json", step.model_dump_json(indent=1).encode())

    def write_picture(self, step: str, name: str, data: bytes, caption: str) -> Picture:
        """Keep a picture of a step. Raises `RunFolderError`."""
        file = f"{step}-{re.sub('[^A-Za-z0-9._-]', '-', name)}"
        self.write(file, data)
        return Picture(file=file, caption=caption, sha256=hashlib.sha256(data).hexdigest())

    def read_picture(self, picture: Picture) -> bytes:
        """Raises `RunFolderError` if it is not the picture that was kept."""
        try:
            data = (self.path / picture.file).read_bytes()
        except OSError as error:
            raise RunFolderError(
                f"{self.path / picture.file}: cannot be read: {error.strerror}; do its step again"
            ) from error
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise RunFolderError(f"{self.path / picture.file}: changed; do its step again")
        return data

    def write(self, name: str, data: bytes) -> None:
        """A file of the run, whole or not at all, durable on return. Raises `RunFolderError`."""
        path = self.path / name
        temporary = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error

    def _read(self, path: Path) -> StepResult:
        try:
            step = StepResult.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise RunFolderError(f"{path}: no finished step; remove it, do it again") from error
        if step.step != path.stem:
            raise RunFolderError(f"{path}: says it is {step.step}; remove it, do it again")
        return step
