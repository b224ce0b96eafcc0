"""A small reader of udev rules: enough of udev(7) to say what a rules file does with a device whose
properties were recorded with `udevadm info`."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path

_TERM = re.compile(r'([A-Z_]+)(?:\{([^}]*)\})?\s*(==|!=|\+=|:=|=)\s*"([^"]*)"')


@dataclass
class Outcome:
    """What the rules gave a device."""

    values: dict[str, str] = field(default_factory=dict)
    """GROUP, MODE, and `ATTR{...}` or `ENV{...}` that were set."""
    links: list[str] = field(default_factory=list)


def read_device(path: Path) -> dict[str, str]:
    """Properties of `udevadm info` output, and ACTION, KERNEL as at its appearance."""
    found = {"ACTION": "add"}
    for line in path.read_text().splitlines():
        if line.startswith("E: "):
            key, _, value = line[3:].partition("=")
            found[key] = value
    found["KERNEL"] = found["DEVPATH"].rsplit("/", 1)[1]
    return found


def apply(rules: Path, device: dict[str, str]) -> Outcome:
    """Go through the rules from top to bottom. Raises ValueError at what cannot be read here."""
    outcome, waiting = Outcome(), ""
    for number, line in enumerate(rules.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        terms = _TERM.findall(line)
        if _TERM.sub("", line).strip(" ,"):
            raise ValueError(f"{rules.name}:{number}: {_TERM.sub('', line)!r}")
        if waiting:
            is_here = any(key == "LABEL" and value == waiting for key, _, _, value in terms)
            waiting = "" if is_here else waiting
        elif all(_holds(term, device) for term in terms):
            waiting = _carry_out(terms, device, outcome)
    if waiting:
        raise ValueError(f"{rules.name}: no label {waiting}")
    return outcome


def _holds(term: tuple[str, str, str, str], device: dict[str, str]) -> bool:
    key, name, operator, pattern = term
    if operator not in ("==", "!="):
        return True
    value = device.get(name if key == "ENV" else key, "")
    is_like = any(fnmatch.fnmatchcase(value, one) for one in pattern.split("|"))
    return is_like == (operator == "==")


def _carry_out(
    terms: list[tuple[str, str, str, str]], device: dict[str, str], outcome: Outcome
) -> str:
    """The label to go on at; empty for the next line."""
    for key, name, operator, text in terms:
        value = re.sub(r"\$env\{([^}]*)\}", lambda found: device.get(found[1], ""), text)
        if operator in ("==", "!=") or key in ("LABEL", "TAG"):
            continue
        if key == "GOTO":
            return value
        if key == "SYMLINK":
            outcome.links.append(value)
        else:
            outcome.values[f"{key}{{{name}}}" if name else key] = value
    return ""
