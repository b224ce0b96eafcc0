"""What an exploration knows: one line of JSON for every candidate, every training, appended."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.training.explore.space import Spec, from_row

LOG_FILE = "log.jsonl"
SEARCH, RANDOM, REFERENCE = "search", "random", "reference"
ARMS = (SEARCH, RANDOM)
MERIT_OF_LATENCY = 0.04
"""AUROC that a network may lose for each e-fold of speed. 25 % faster is then worth .009 and 10 %
faster .004: what the project asks of an explored network takes them for a point and half of one."""


class LogError(Exception):
    """The folder holds another exploration, or a log that was damaged."""


@dataclass(slots=True)
class Candidate:
    """One network, as far as it is known."""

    id: int
    arm: str
    spec: Spec
    row: dict[str, Any]
    """Its line: violations, mflops, parameters, latency, zero_cost."""
    training: dict[str, Any] | None = None
    """The line of its short training."""

    @property
    def is_admissible(self) -> bool:
        return not self.row["violations"]

    @property
    def ratio(self) -> float:
        """Of the hand-made network's time."""
        return float(self.row["latency"]["ratio"])

    @property
    def auroc(self) -> float:
        """Out of fold, of the short training."""
        assert self.training is not None
        return float(self.training["auroc"])

    @property
    def merit(self) -> float:
        return merit(self.auroc, self.ratio)


def merit(auroc: float, ratio: float) -> float:
    """Accuracy and speed as one number, to compare what a search of either kind found."""
    return auroc - MERIT_OF_LATENCY * math.log(ratio)


@dataclass(slots=True)
class Log:
    """The lines of an exploration, folded. Only one process may append."""

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    """What makes it the same exploration."""
    candidates: list[Candidate] = field(default_factory=list)
    """In order of their ids."""

    @classmethod
    def read(cls, folder: Path) -> Log:
        """Raises `LogError`. A last line that a kill cut short does not count."""
        log = cls(folder / LOG_FILE)
        if not log.path.is_file():
            return log
        for number, line in enumerate(log.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                log._fold(json.loads(line))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise LogError(f"{log.path}:{number}: not a line of an exploration: {error}") from (
                    error
                )
        return log

    @classmethod
    def open(cls, folder: Path, run: dict[str, Any]) -> Log:
        """To append. Raises `LogError` if the folder holds an exploration of other settings."""
        folder.mkdir(parents=True, exist_ok=True)
        log = cls.read(folder)
        if log.run:
            for name, value in run.items():
                if log.run.get(name) != value:
                    raise LogError(
                        f"{log.path}: explored with {name} {log.run.get(name)!r}, not {value!r}; "
                        "name another folder with --out"
                    )
            cut_torn_line(log.path)
        else:
            log.path.unlink(missing_ok=True)
            log.append({"kind": "run", **run})
        return log

    def append(self, row: dict[str, Any]) -> None:
        """On disk before it counts."""
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._fold(row)

    def of(self, arm: str) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.arm == arm]

    def scored(self) -> list[Candidate]:
        """Of both arms, what has a time and zero-cost scores: no refused one has."""
        own = [candidate for candidate in self.candidates if candidate.arm in ARMS]
        return [each for each in own if {"latency", "zero_cost"} <= each.row.keys()]

    def trained(self, arm: str) -> list[Candidate]:
        """In the order in which their trainings ended."""
        found = [candidate for candidate in self.of(arm) if candidate.training]
        return sorted(found, key=lambda each: each.training["place"])  # type: ignore[index]

    def _fold(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        if kind == "run":
            self.run = {name: value for name, value in row.items() if name != "kind"}
        elif kind == "candidate":
            if row["id"] != len(self.candidates):
                raise ValueError(f"candidate {row['id']} where {len(self.candidates)} follows")
            spec = from_row(row["spec"])
            self.candidates.append(Candidate(row["id"], row["arm"], spec, row))
        elif kind == "training":
            self.candidates[row["id"]].training = row
        else:
            raise ValueError(f"a line of kind {kind!r}")


def cut_torn_line(path: Path) -> None:
    """What a kill left of a line at the end of a file."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
