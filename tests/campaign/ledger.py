"""Runs add up over pieces: one JSON line each, which counts as long as what it proved stands."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
_OURS = (
    "tests/campaign/",
    *(f"tests/{name}.py" for name in ("station_rig", "producer_rig", "own_machine", "test_qms")),
)
"""What the campaign itself is made of."""
_WORDS = (".md", ".jpg", ".svg", ".png")


def is_harmless(path: str) -> bool:
    """True for a file whose change takes nothing back: documentation, and tests of others."""
    if path.startswith("docs/") or path.endswith(_WORDS):
        return True
    return path.startswith("tests/") and not path.startswith(_OURS)


@dataclass(frozen=True)
class State:
    """What is run: a commit, and a digest of what differs from it (empty: nothing)."""

    commit: str
    dirty: str

    @classmethod
    def now(cls, root: Path = ROOT) -> State:
        """Of the working tree. Raises `subprocess.CalledProcessError` outside of git."""
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = [path for path in changed_since(root, commit) if not is_harmless(path)]
        digest = hashlib.sha256()
        for path in changed:
            file = root / path
            digest.update(path.encode() + b"\0" + (file.read_bytes() if file.is_file() else b""))
        return cls(commit, digest.hexdigest()[:16] if changed else "")


def changed_since(root: Path, commit: str) -> list[str]:
    """Paths that differ between a commit and the working tree, and those nobody tracks."""
    differing = _git(root, "diff", "--name-only", commit).splitlines()
    new = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    return sorted({*differing, *new})


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Ledger:
    """The runs in a file; several processes may append to it."""

    def __init__(self, path: Path, state: State, root: Path = ROOT) -> None:
        self.path, self._state, self._root = path, state, root
        path.parent.mkdir(parents=True, exist_ok=True)
        self.is_still_true = cache(self._is_still_true)
        """Whether a run of a commit, and of what differed from it, still says something of now."""

    def add(self, run: Json) -> None:
        stamped = {"commit": self._state.commit, "dirty": self._state.dirty, **run}
        stamped["host"] = socket.gethostname()
        line = json.dumps(stamped, separators=(",", ":")) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def counting(self) -> list[Json]:
        """Runs of this state, and of earlier ones that nothing since has touched."""
        if not self.path.exists():
            return []
        runs = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [run for run in runs if self.is_still_true(run["commit"], run["dirty"])]

    def _is_still_true(self, commit: str, dirty: str) -> bool:
        if (commit, dirty) == (self._state.commit, self._state.dirty):
            return True
        if dirty:
            return False  # what it was run on cannot be had again
        try:
            return all(map(is_harmless, changed_since(self._root, commit)))
        except subprocess.CalledProcessError:
            return False  # a commit that is not here


# --- the table ------------------------------------------------------------------------------------

_COLUMNS = {
    "false_greens": "false greens",
    "lost": "lost",
    "duplicated": "duplicated",
    "dangling": "dangling images",
    "wrong_rejects": "wrong reject",
    "unrecorded": "no record",
}


def table(runs: Iterable[Json]) -> list[str]:
    """Lines of Markdown: one a kind, and a sum."""
    kinds: dict[str, list[Json]] = {}
    for run in runs:
        kinds.setdefault(run["kind"], []).append(run)
    head = ["kind", "runs", *_COLUMNS.values(), "other", "leaves green, s", "recovered, s"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [_line(name, kinds[name]) for name in sorted(kinds)]
    every = [run for of in kinds.values() for run in of]
    return [*lines, _line(f"{len(kinds)} kinds", every)]


def _line(name: str, runs: list[Json]) -> str:
    counts = [sum(run["findings"].get(key, 0) for run in runs) for key in _COLUMNS]
    # What was said beyond the counted findings: no recovery, a check of the fault's own.
    other = sum(len(run["said"]) - sum(run["findings"].values()) for run in runs)
    worst = [_worst(runs, key) for key in ("leave_green_s", "recovery_s")]
    number = sum(run.get("runs", 1) for run in runs)
    return f"| {' | '.join(map(str, [name, number, *counts, other, *worst]))} |"


def _worst(runs: list[Json], key: str) -> str:
    values = [run[key] for run in runs if run[key] is not None]
    return f"{max(values):.2f}" if values else "-"


def deaths(runs: Iterable[Json]) -> str:
    """How soon the lamp left green after a death or a hang."""
    times = sorted(
        run["leave_green_s"]
        for run in runs
        if run.get("is_death") and run["leave_green_s"] is not None
    )
    if not times:
        return "no death or hang struck while green was lit"
    within = sum(time <= 2.0 for time in times)
    return (
        f"deaths and hangs while green was lit: {len(times)}; dark within 2 s: {within}; "
        f"median {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s"
    )
