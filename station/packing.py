"""A passed plate's row without what thousands of others say, too.

What stays the same from plate to plate (recipe, model, camera, configuration) is a `context` row of
the log, written when it changes; a row that is packed names it by its number (`context`), so that
the chain covers both and nobody has to guess which one held. What a field says by default is left
out, the places of tiles are given as blocks, and their scores without what their bytes repeat.
`whole` makes of it what was recorded, field by field. Only what no older program has to parse at
its start is packed: results that passed, and what the lamp was told.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

Json = dict[str, Any]

KIND = "context"
_CONSTANTS = (
    "station_id",
    "boot_id",
    "provenance",
    "is_simulated",
    "threshold",
    "recipe_id",
    "recipe_version",
    "recipe_sha256",
    "configuration_sha256",
    "model_id",
    "model_sha256",
    "runtime",
    "camera_serial",
    "camera_features_sha256",
    "flat_field_id",
    "flat_field_sha256",
    "commissioning_sha256",
    "job_id",
    "operator",
    "shift",
)
_OF_ACTUATION = ("station_id", "boot_id")
_SILENT: dict[str, Json] = {
    "result": {
        "triggers": 1,
        "detail": "",
        "lost_frames": 0,
        "incomplete_frames": 0,
        "defects_omitted": 0,
        "is_audit_sample": False,
        "truth_is_defective": None,
        "truth": [],
    },
    "actuation": {"detail": ""},
}
"""What is left out where it says this. Fields that programs of the first release read by name stay:
they list logs that this one has written."""
_MOST_REMEMBERED = 64
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What `whole` and `Contexts` raise of a body that was not packed here."""


def is_packable(fields: Mapping[str, Any]) -> bool:
    """Whether no older program has to parse this row when it starts."""
    if fields["kind"] == "result":
        return bool(fields["verdict"] == "PASS")
    return bool(fields["kind"] == "actuation")


def key_of(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for results whose constants are."""
    return tuple(fields.get(name, ...) for name in _CONSTANTS)


def constants_of(fields: Mapping[str, Any]) -> Json:
    """What a result says that the next one will say, too."""
    return {name: fields[name] for name in _CONSTANTS if name in fields}


def pack(fields: Mapping[str, Any], context: int, constants: Mapping[str, Any]) -> Json:
    """The row without what its context says, and without what says nothing; all of it where its
    context says something else."""
    names = _CONSTANTS if fields["kind"] == "result" else _OF_ACTUATION
    said = {name: constants[name] for name in names if name in constants}
    if any(name in said and fields.get(name) != said[name] for name in names):
        return dict(fields)
    left_out = said | _SILENT[fields["kind"]]
    packed = {
        name: value
        for name, value in fields.items()
        if name not in left_out or value != left_out[name]
    }
    blocks = _blocks_of(packed.get("tile_grid") or "")
    if blocks is not None:
        packed["tile_blocks"] = blocks
        del packed["tile_grid"]
    planes = _planes_of(packed.get("tile_scores") or "")
    if planes is not None:
        packed["tile_score_planes"] = planes
        del packed["tile_scores"]
    return packed | {KIND: context}


def stated(body: Json, constants: Callable[[int], Json]) -> Json:
    """A row with what it leaves to its context, and its arrays as they are written. `constants`:
    what the context row of a number says; raises what it raises if there is none."""
    if KIND not in body:
        return body
    said = constants(body[KIND])
    if body["kind"] != "result":
        said = {name: said[name] for name in _OF_ACTUATION}
    fields = {**said, **_SILENT[body["kind"]], **body}
    del fields[KIND]
    return fields


def whole(body: Json, constants: Callable[[int], Json]) -> Json:
    """A row as it was recorded, arrays too; see `stated`."""
    fields = stated(body, constants)
    if "tile_blocks" in fields:
        fields["tile_grid"] = _grid_of(fields.pop("tile_blocks"))
    if "tile_score_planes" in fields:
        fields["tile_scores"] = _scores_of(fields.pop("tile_score_planes"))
    return fields


class Packer:
    """Which context row a new row may name. One is written for constants that come a second time:
    what changes with every plate costs no row of its own."""

    def __init__(self, rows: Iterable[tuple[int, Json]]) -> None:
        """`rows`: numbers and bodies of the last context rows, oldest first."""
        self._known: OrderedDict[tuple[Any, ...], tuple[int, Json]] = OrderedDict()
        self._once: tuple[Any, ...] | None = None
        for seq, body in rows:
            self.remember(seq, body["constants"])

    def remember(self, seq: int, constants: Json) -> None:
        """A context row was written."""
        self._known[key_of(constants)] = (seq, constants)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)

    def wanted(self, fields: Mapping[str, Any]) -> Json | None:
        """The constants of a result for which a context row is to be written before it."""
        if fields["kind"] != "result" or not is_packable(fields):
            return None
        key, once = key_of(fields), self._once
        self._once = key
        return constants_of(fields) if key == once and key not in self._known else None

    def pack(self, fields: Json) -> Json:
        """What is written of a row."""
        if not self._known or not is_packable(fields):
            return fields
        if fields["kind"] == "actuation":
            return pack(fields, *next(reversed(self._known.values())))
        key = key_of(fields)
        if key not in self._known:
            return fields
        self._known.move_to_end(key)
        return pack(fields, *self._known[key])


class Contexts:
    """The context rows of a log that were asked for, or used, last."""

    def __init__(self, read: Callable[[int], str | bytes | None]) -> None:
        """`read` gives the body of a row of the log, None if there is no such row."""
        self._read = read
        self._known: OrderedDict[int, Json] = OrderedDict()

    def constants(self, seq: int) -> Json:
        """What a context row says. Raises LookupError if there is none of that number."""
        if seq not in self._known:
            body = json.loads(self._read(seq) or "{}")
            if body.get("kind") != KIND:
                raise LookupError(f"row {seq} is no context")
            self._known[seq] = body["constants"]
        self._known.move_to_end(seq)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return self._known[seq]

    def stated(self, body: Json) -> Json:
        """A row without its arrays read. Raises LookupError if its context is missing."""
        return stated(body, self.constants)

    def whole(self, body: Json) -> Json:
        """A row as it was recorded. Raises LookupError if its context is missing."""
        return whole(body, self.constants)


@lru_cache(_MOST_REMEMBERED)
def _blocks_of(grid: str) -> list[list[int]] | None:
    """Tiles in grid order as blocks of equal steps, [x, y, columns, rows, step of x, step of y];
    None if that is no shorter."""
    places = np.frombuffer(base64.b64decode(grid), "<u2").reshape(-1, 2).astype(int)
    blocks: list[list[int]] = []
    for x, y, count, step in _runs(places.tolist()):
        last = blocks[-1] if blocks else None
        if last is not None and [last[0], last[2], last[4]] == [x, count, step]:
            down = y - last[1] - (last[3] - 1) * last[5]
            if (down > 0 and last[3] == 1) or down == last[5]:
                last[3], last[5] = last[3] + 1, down
                continue
        blocks.append([x, y, count, 1, step, 0])
    return blocks if len(json.dumps(blocks)) < len(grid) and _grid_of(blocks) == grid else None


def _runs(places: list[list[int]]) -> list[list[int]]:
    """[x, y, count, step] of tiles that lie side by side."""
    runs: list[list[int]] = []
    for x, y in places:
        run = runs[-1] if runs else None
        if run is not None and run[1] == y and run[2] == 1 and x > run[0]:
            run[2:] = [2, x - run[0]]
        elif run is not None and run[1] == y and run[2] > 1 and x == run[0] + run[2] * run[3]:
            run[2] += 1
        else:
            runs.append([x, y, 1, 0])
    return runs


def _grid_of(blocks: list[list[int]]) -> str:
    places = [
        (x + column * across, y + row * down)
        for x, y, columns, rows, across, down in blocks
        for row in range(rows)
        for column in range(columns)
    ]
    return base64.b64encode(np.asarray(places, "<u2").tobytes()).decode()


def _planes_of(scores: str) -> str | None:
    """base85 of raw deflate of the float32s' first bytes, their second bytes, and so on: exponents
    of scores are alike. None if that is no shorter."""
    values = np.frombuffer(base64.b64decode(scores), np.uint8).reshape(-1, 4)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    planes = base64.b85encode(deflate.compress(values.T.tobytes()) + deflate.flush()).decode()
    return planes if len(planes) < len(scores) else None


def _scores_of(planes: str) -> str:
    try:
        values = zlib.decompress(base64.b85decode(planes), -zlib.MAX_WBITS)
    except zlib.error as error:
        raise ValueError(f"scores that cannot be unpacked: {error}") from error
    return base64.b64encode(np.frombuffer(values, np.uint8).reshape(4, -1).T.tobytes()).decode()
