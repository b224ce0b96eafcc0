"""An Excel workbook: typed cells, a filter on each column, small pictures of plates that did not
pass; a second sheet with a row for each defect."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from openpyxl import Workbook, load_workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.drawing.image import Image
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.writer.excel import ExcelWriter

from station.export_rows import (
    ASK_FOR_LESS,
    COLUMNS,
    DEFECT_COLUMNS,
    Column,
    Context,
    ExportError,
    flat,
    flat_defects,
    for_spreadsheet,
    local,
    visible,
)
from station.qms import Json
from station.thumbnails import smallest, thumbnail

MOST_ROWS = 1_048_576
"""Of a sheet, its header among them (Excel specifications and limits)."""
_CELL_CHARACTERS = 32_767
_THUMBNAILS = 200
_THUMBNAIL_PX = 96
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:;/-]{0,999}")
_DATE = "yyyy-mm-dd hh:mm:ss.000"
_PICTURE = Column("picture")
_OFFSET = Column("utc_offset", width=10)


def _with_offset_columns(columns: Sequence[Column]) -> list[Column]:
    """With the picture in front, and the offset right of the first time."""
    place = next(n for n, column in enumerate(columns) if column.type == "time") + 1
    return [_PICTURE, *columns[:place], _OFFSET, *columns[place:]]


_RESULTS = _with_offset_columns(COLUMNS)


def write(rows: Iterable[Json], path: Path, context: Context) -> None:
    """Raises `ExportError` if a sheet cannot hold them."""
    book = Workbook(write_only=True)
    results = _Sheet(book, "results", _RESULTS)
    defects = _Sheet(book, "defects", DEFECT_COLUMNS)
    thumbnails = _Thumbnails(context)
    try:
        for row in rows:
            results.add(_values(row, context), thumbnails.of(row))
            for defect in flat_defects(row):
                defects.add(defect)
    finally:
        results.finish()
        defects.finish()
    about = book.create_sheet("about")
    for pair in context.about:
        about.append([_text_cell(about, text) for text in pair])
    about.close()
    # Not `book.save`: on a full disk it leaves a file that nobody closes.
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        ExcelWriter(book, archive).save()


def _values(row: Json, context: Context) -> Json:
    found = flat(row)
    offset = local(found["written_at"], context.zone).strftime("%z")
    found[_OFFSET.name] = f"{offset[:3]}:{offset[3:]}"
    for column in COLUMNS:
        if column.type == "time" and found[column.name] is not None:
            found[column.name] = local(found[column.name], context.zone).replace(tzinfo=None)
    return found


class _Sheet:
    """Rows go to a temporary file as they come."""

    def __init__(self, book: Workbook, name: str, columns: Sequence[Column]) -> None:
        self._sheet = book.create_sheet(name)
        self._columns = columns
        self._rows = 1
        self._sheet.freeze_panes = "A2"
        for place, column in enumerate(columns, start=1):
            self._sheet.column_dimensions[get_column_letter(place)].width = column.width
        # A sheet's filter stands behind its rows in the file, so its end is known in time.
        self._sheet.append([self._header(column) for column in columns])

    def add(self, values: Json, picture: Image | None = None) -> None:
        self._rows += 1
        if self._rows > MOST_ROWS:
            raise ExportError(
                f"sheet {self._sheet.title} holds {MOST_ROWS - 1:,} rows at most: {ASK_FOR_LESS}"
            )
        if picture is not None:
            self._sheet.row_dimensions[self._rows].height = picture.height * 0.75 + 3
            self._sheet.add_image(picture, f"A{self._rows}")
        self._sheet.append([_cell(self._sheet, c, values.get(c.name)) for c in self._columns])

    def finish(self) -> None:
        self._sheet.auto_filter.ref = f"A1:{get_column_letter(len(self._columns))}{self._rows}"
        self._sheet.close()

    def _header(self, column: Column) -> WriteOnlyCell:
        cell = _text_cell(self._sheet, column.name)
        cell.font = Font(bold=True)
        return cell


def _cell(sheet: Any, column: Column, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return value if _is_plain(value) else _text_cell(sheet, value)
    if isinstance(value, float) and not math.isfinite(value):
        return _text_cell(sheet, str(value))
    if isinstance(value, datetime):
        cell = WriteOnlyCell(sheet, value)
        cell.number_format = _DATE
        return cell
    # More digits than Excel keeps.
    return _text_cell(sheet, str(value)) if abs(value) >= 10**15 else value


@lru_cache(1024)
def _is_plain(text: str) -> bool:
    """What openpyxl takes for text by itself."""
    return _PLAIN.fullmatch(text) is not None and for_spreadsheet(text) == text


def _text_cell(sheet: Any, text: str) -> WriteOnlyCell:
    """Never a formula: typed as text, and marked so that it stays text when somebody edits it."""
    cell = WriteOnlyCell(sheet, "")
    cell.value, cell.data_type = _kept(text), "s"
    if for_spreadsheet(text) != visible(text):
        cell.quotePrefix = True
    return cell


def _kept(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= _CELL_CHARACTERS else f"{shown[: _CELL_CHARACTERS - 1]}…"


class _Thumbnails:
    """Of the first plates that did not pass; so many, so large."""

    def __init__(self, context: Context) -> None:
        self._folder, self._left = context.images, _THUMBNAILS

    def of(self, row: Json) -> Image | None:
        if self._folder is None or self._left == 0 or row["verdict"] == "PASS":
            return None
        kept = smallest(row["images"])
        data = thumbnail(self._folder / kept["path"], _THUMBNAIL_PX) if kept else None
        if data is None:
            return None
        self._left -= 1
        return Image(io.BytesIO(data))


# --- reading it back ------------------------------------------------------------------------------


def says_results(row: Json, context: Context) -> list[Json]:
    """A row of the first sheet, as openpyxl gives it back."""
    values = _values(row, context)
    return [{c.name: _said(values.get(c.name)) for c in _RESULTS if c is not _PICTURE}]


def says_defects(row: Json, context: Context) -> list[Json]:
    """Rows of the second sheet."""
    return [{name: _said(value) for name, value in one.items()} for one in flat_defects(row)]


def read_results(path: Path) -> Iterator[Json]:
    for row in _read(path, "results"):
        del row[_PICTURE.name]
        yield row


def read_defects(path: Path) -> Iterator[Json]:
    return _read(path, "defects")


def _read(path: Path, name: str) -> Iterator[Json]:
    book = load_workbook(path, read_only=True)
    try:
        rows = book[name].iter_rows(values_only=True)
        header = [str(text) for text in next(rows)]
        for row in rows:
            yield {key: _said(value) for key, value in zip(header, row, strict=True)}
    finally:
        book.close()


def _said(value: Any) -> Any:
    """To what a cell can hold: no empty text, times to a millisecond, no number of 16 digits."""
    if isinstance(value, str):
        return _kept(value) or None
    if isinstance(value, datetime):
        rounded = value + timedelta(microseconds=500)
        return rounded.replace(microsecond=rounded.microsecond // 1000 * 1000)
    if isinstance(value, bool) or value is None:
        return value
    is_text = (isinstance(value, float) and not math.isfinite(value)) or abs(value) >= 10**15
    return str(value) if is_text else value
