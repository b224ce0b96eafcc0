"""The last lines of every process's log: from journald where it keeps them, else from the files
beside the sockets. Secrets are left out once more: a file may be of an older program."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from station.ipc import Json
from station.logs import is_journal
from station.redaction import redact

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
MOST_LINES: Final = 500
_NAMESPACE = "vqi"
_MOST_BYTES = 400_000
"""Read of one file."""
_MOST_CHARACTERS = 300
"""Of a field, as it is shown."""
_LIMIT_S = 5.0
_HEAD = ("time", "level", "process", "station_id", "logger", "event")


def log_folder(runtime_dir: Path) -> Path:
    """Where `vqi run` lets its processes keep their last lines."""
    return runtime_dir / "log"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines."""

    level: str = "info"
    """At least so bad."""
    process: str = ""
    result_id: str = ""
    text: str = ""
    """Anywhere in the line."""

    def holds(self, line: Json) -> bool:
        return (
            _rank(line) >= LEVELS.index(self.level)
            and self.process in ("", line.get("process"))
            and self.result_id in ("", line.get("result_id"))
            and (not self.text or self.text.casefold() in json.dumps(line).casefold())
        )


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest lines that are wanted, newest first."""

    lines: tuple[Json, ...]
    source: str
    problem: str = ""
    """Why there are none, or not all."""


def tail(runtime_dir: Path, wanted: Wanted, most: int = MOST_LINES) -> Tail:
    """Takes some seconds at most; raises nothing."""
    # Whoever writes to journald is a unit, and so are the others.
    if is_journal(2):
        (texts, problem), source = _from_journald(), f"journald, namespace {_NAMESPACE}"
    else:
        folder = log_folder(runtime_dir)
        texts, source = list(_from_files(folder)), str(folder)
        problem = "" if texts else f"no process of `vqi run` has kept lines in {folder}"
    lines = sorted(_parsed(texts), key=lambda line: str(line.get("time", "")), reverse=True)
    found = [line for line in lines if wanted.holds(line)]
    return Tail(tuple(redact(_short(line)) for line in found[:most]), source, problem)


def details(line: Json) -> Json:
    """What a line says beside its head."""
    return {key: value for key, value in line.items() if key not in _HEAD}


def _short(line: Json) -> Json:
    """Long texts cut: what looks for secrets in them takes its time with long words."""
    return {
        key: f"{value[:_MOST_CHARACTERS]} …"
        if isinstance(value, str) and len(value) > _MOST_CHARACTERS
        else value
        for key, value in line.items()
    }


def _rank(line: Json) -> int:
    level = str(line.get("level", "info"))
    return LEVELS.index(level) if level in LEVELS else 1


def _parsed(texts: list[bytes]) -> Iterator[Json]:
    """What is no line of ours, a library's or a cut one, is left out."""
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "event" in line:
            yield line


def _from_files(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES))
                yield from file.read(_MOST_BYTES).splitlines()
        except OSError:
            continue


def _from_journald() -> tuple[list[bytes], str]:
    """Lines, and why there are none."""
    command = ["journalctl", f"--namespace={_NAMESPACE}", "-n", "3000", "-o", "cat", "--no-pager"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"journalctl: {error}"
    return done.stdout.splitlines(), done.stderr.decode(errors="replace").strip()
