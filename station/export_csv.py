"""CSV (RFC 4180): every value as text, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from station.export_rows import (
    COLUMNS,
    Context,
    flat,
    for_spreadsheet,
    with_offset,
    without_formula,
)
from station.qms import Json

_NAMES = [column.name for column in COLUMNS]
_ENCODING = "utf-8-sig"
"""A file begins with a byte order mark: without one Excel takes it for the system's old code page.
What goes through a pipe has none."""


def write(rows: Iterable[Json], path: Path, context: Context) -> None:
    with path.open("w", encoding=_ENCODING, newline="") as file:
        write_to(file, rows, context)


def write_to(stream: TextIO, rows: Iterable[Json], context: Context) -> None:
    # What stands bare is split by a program that takes `;` or a tab for the separator.
    table = csv.DictWriter(stream, _NAMES, quoting=csv.QUOTE_ALL)
    table.writeheader()
    for row in rows:
        table.writerow(says(row, context)[0])


def table(rows: Sequence[Json], context: Context) -> str:
    """Any table in the same manner: names, then values as text; nothing for a table without
    rows."""
    taken = io.StringIO(newline="")
    if rows:
        file = csv.DictWriter(taken, list(rows[0]), quoting=csv.QUOTE_ALL)
        file.writeheader()
        file.writerows({name: _any(one, context) for name, one in row.items()} for row in rows)
    return taken.getvalue()


def _any(value: Any, context: Context) -> str:
    return _cell(" ".join(map(str, value)) if isinstance(value, list) else value, context)


def says(row: Json, context: Context) -> list[Json]:
    """A row of the file: each value as text."""
    values = flat(row)
    # Several numbers with blanks between them are none to a spreadsheet.
    defects = without_formula(values.pop("defects"))
    return [{"defects": defects, **{name: _cell(one, context) for name, one in values.items()}}]


def read(path: Path) -> Iterator[Json]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding=_ENCODING, newline="") as file:
        yield from csv.DictReader(file)


def _cell(value: Any, context: Context) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            return with_offset(value, context.zone)
        case float():
            return _number(value)
        case int():
            return str(value)
    return for_spreadsheet(value)


def _number(value: float) -> str:
    text = repr(value)
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
