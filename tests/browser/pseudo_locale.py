"""Catalogues with longer texts: what a translator who needs 40 % more room would hand in."""

from __future__ import annotations

import math
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import station

GROWTH = 1.4
_PLACEHOLDER = re.compile(r"(\{[^{}]*\}|<[^<>]*>)")
_ACCENTS = str.maketrans("aeiouyncAEIOUYNC", "åéïôûýñçÅÉÏÔÛÝÑÇ")


def longer(text: str) -> str:
    """The text with other letters and 40 % longer, by words of its own length; fields stay."""
    parts = _PLACEHOLDER.split(text)
    told = "".join(part if i % 2 else part.translate(_ACCENTS) for i, part in enumerate(parts))
    letters = sum(len(part) for part in parts[::2])
    missing = math.ceil(letters * (GROWTH - 1))
    longest = max((len(word) for part in parts[::2] for word in part.split()), default=1)
    filler = ""
    while len(filler) < missing:
        filler += "~" * min(longest, missing - len(filler)) + " "
    return f"{told} {filler}".strip() if missing else told


def station_with_longer_texts(folder: Path) -> Path:
    """A folder for PYTHONPATH: the program as it is, but for the German texts, which are longer."""
    source = Path(station.__file__).parent
    package = folder / "station"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "texts"))
    for name in ("drivers", "models"):
        (folder / name).symlink_to(source.parent / name)
    texts = package / "web" / "texts"
    texts.mkdir()
    for catalogue in (source / "web" / "texts").glob("*.toml"):
        (texts / catalogue.name).write_text(_longer_catalogue(catalogue.read_text()))
    return folder


def _longer_catalogue(text: str) -> str:
    return "\n".join(_tables("", tomllib.loads(text))) + "\n"


def _tables(name: str, table: dict[str, Any]) -> Iterator[str]:
    """A table of texts, or the tables in it, as TOML."""
    texts = {key: value for key, value in table.items() if isinstance(value, str)}
    if texts:
        yield f"[{name}]"
    for language, word in texts.items():
        yield f"{language} = {_quoted(longer(word) if language == 'de' else word)}"
    for key, inner in table.items():
        if isinstance(inner, dict):
            yield from _tables(f"{name}.{_quoted(key)}" if name else _quoted(key), inner)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
