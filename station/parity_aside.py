"""The check of `station/parity.py` as a station has it made: in a process that gives way to it."""

from __future__ import annotations

import subprocess
import sys

from pydantic import BaseModel, ConfigDict, ValidationError

from station.recipes import DIFFERS, EQUAL, NOTHING
from station.tied import tied

_LIMIT_S = 240.0
"""Eight plates take some seconds; whoever asked for the roll-back waits 300 s for the answer."""


class ParityError(Exception):
    """The check did not come to an end; the message says why."""


class _Said(BaseModel):
    """Its answer; what stands in the row."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    result: str
    recipe: str


def parity_aside(name: str, source: str, limit_s: float = _LIMIT_S) -> dict[str, str]:
    """`Parity.detail` of a version, by the configuration of this file. Raises `ParityError`."""
    command = [sys.executable, "-P", "-m", "station.cli", "model", "parity", name]
    try:
        done = subprocess.run(
            tied(["nice", "-n", "10", *command, "--config", source, "--json"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ParityError(f"not done after {limit_s:g} s") from error
    except OSError as error:
        raise ParityError(f"no process for it: {error.strerror}") from error
    return _answer(name, done)


def _answer(name: str, done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    try:
        said = _Said.model_validate_json(done.stdout)
    except ValidationError as error:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit status {done.returncode}"
        raise ParityError(why) from error
    if said.recipe != name or said.result not in (EQUAL, DIFFERS, NOTHING):
        raise ParityError(f"the answer is {said.result!r:.40} of {said.recipe!r:.80}")
    return {key: str(value) for key, value in said.model_dump().items()}
