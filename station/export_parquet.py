"""Parquet: typed columns with their units, defects, pictures and tiles as nested lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from station.export_rows import COLUMNS, DEFECT_COLUMNS, Column, Context, flat, tiles
from station.qms import Json

_GROUP_ROWS = 4096
"""In memory at once."""
_TYPES = {
    "text": pa.string(),
    "integer": pa.int64(),
    "real": pa.float64(),
    "yes": pa.bool_(),
    "time": pa.timestamp("us", "UTC"),
}
_NESTED = ("defects", "images")


def _field(column: Column) -> pa.Field:
    notes = {"unit": column.unit, "description": column.says}
    given = {key: text for key, text in notes.items() if text}
    return pa.field(column.name, _TYPES[column.type], metadata=given)


_IMAGE = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("path", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64(), metadata={"unit": "byte"}),
        pa.field("width_px", pa.int64(), metadata={"unit": "px"}),
        pa.field("height_px", pa.int64(), metadata={"unit": "px"}),
    ]
)
_DEFECT = pa.struct([_field(column) for column in DEFECT_COLUMNS[3:]])
_TILE_PLACE = {"unit": "px", "description": "left or leading side of each tile, in grid order"}
_LISTS = (
    pa.field("defects", pa.list_(_DEFECT)),
    pa.field("images", pa.list_(_IMAGE)),
    pa.field("tile_x_px", pa.list_(pa.uint16()), metadata=_TILE_PLACE),
    pa.field("tile_y_px", pa.list_(pa.uint16()), metadata=_TILE_PLACE),
    pa.field("tile_scores", pa.list_(pa.float32()), metadata={"unit": "1"}),
)
_FLAT = [column for column in COLUMNS if column.name not in _NESTED]
SCHEMA = pa.schema([*(_field(column) for column in _FLAT), *_LISTS])


def write(rows: Iterable[Json], path: Path, context: Context) -> None:
    schema = SCHEMA.with_metadata(dict(context.about))
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        while group := list(islice(remaining, _GROUP_ROWS)):
            file.write_table(_table(group).cast(schema), row_group_size=_GROUP_ROWS)


def _table(rows: list[Json]) -> pa.Table:
    flats = [flat(row) for row in rows]
    columns = [pa.array([one[c.name] for one in flats], _TYPES[c.type]) for c in _FLAT]
    defects = pa.array([_defects(row) for row in rows], pa.list_(_DEFECT))
    images = pa.array([row["images"] for row in rows], pa.list_(_IMAGE))
    return pa.Table.from_arrays([*columns, defects, images, *_tiles(rows)], schema=SCHEMA)


def _defects(row: Json) -> list[Json]:
    return [{**defect, "score": float(defect["score"])} for defect in row["defects"]]


def _tiles(rows: list[Json]) -> list[pa.Array]:
    """Left sides, leading sides and scores of all rows' tiles, as lists of a row each."""
    both = [tiles(row) for row in rows]
    grid = np.frombuffer(b"".join(one[0] for one in both), "<u2")
    scores = np.frombuffer(b"".join(one[1] for one in both), "<f4")
    return [
        _lists([len(one[0]) // 4 for one in both], grid[0::2]),
        _lists([len(one[0]) // 4 for one in both], grid[1::2]),
        _lists([len(one[1]) // 4 for one in both], scores),
    ]


def _lists(lengths: list[int], values: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def says(row: Json, context: Context) -> list[Json]:
    """A row of the file, as pyarrow gives it back."""
    found = {name: value for name, value in flat(row).items() if name not in _NESTED}
    grid, scores = tiles(row)
    places = np.frombuffer(grid, "<u2").tolist()
    names = [column.name for column in DEFECT_COLUMNS[3:]]
    return [
        {
            **found,
            "defects": [{name: one.get(name) for name in names} for one in _defects(row)],
            "images": row["images"],
            "tile_x_px": places[0::2],
            "tile_y_px": places[1::2],
            "tile_scores": np.frombuffer(scores, "<f4").tolist(),
        }
    ]


def read(path: Path) -> Iterator[Json]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=500):
            yield from batch.to_pylist()
