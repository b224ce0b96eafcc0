"""JSON Lines: the whole body of each result, one object a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from station.export_rows import Context
from station.opc_names import EVALUATIONS, opc_result
from station.qms import Json


def write(rows: Iterable[Json], path: Path, context: Context) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_to(file, rows, context)


def write_to(stream: TextIO, rows: Iterable[Json], context: Context) -> None:
    for row in rows:
        # ASCII alone: no mark of a serial can disturb whoever looks at it.
        print(json.dumps(says(row, context)[0], allow_nan=False), file=stream)


def says(row: Json, context: Context) -> list[Json]:
    """A row of the file. `opc`: the standard's names for what has one; what has none stands beside
    it, once."""
    named = opc_result(row)
    del named["ResultContent"]
    return [{**row, "verdict": EVALUATIONS[row["verdict"]], "opc": named}]


def read(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            yield json.loads(text)
