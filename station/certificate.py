"""A plate's certificate: every row about it as of a signed checkpoint, with the proof, in one file
that somebody who does not trust the station can check (deploy/check-certificate).

The JSON file is canonical (sorted keys, no spaces, UTF-8), and everything in it is proven or
follows from what is: a changed bit anywhere is found. The page is the same for people.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from station import packing
from station.checkpoint import Trees, checkpoints, prove_consistency, trees_at
from station.log_reader import Reader
from station.merkle import inclusion
from station.qms import Json, sha256_text
from station.record import CheckpointBody, HoldBody, PictureClass
from station.retention import Picture, is_held
from station.signed_note import Checkpoint, check_signature, fingerprint, parsed, public_pem

FORMAT = "vqi-certificate-1"
_ABOUT = text(
    "SELECT seq, kind, body FROM row WHERE result_id = :id AND seq <= :until ORDER BY seq"
)
_HOLDS = text(
    "SELECT seq, kind, body FROM row WHERE kind IN ('hold', 'release') AND result_id IS NULL "
    "AND seq <= :until ORDER BY seq"
)
_OF_SERIAL = text(
    "SELECT DISTINCT result_id FROM row WHERE part_id = :serial AND kind = 'result' "
    "AND seq <= :until ORDER BY seq"
)
_ROWS = text(
    "SELECT seq, kind, body FROM row WHERE seq IN (SELECT value FROM json_each(:seqs)) ORDER BY seq"
)
_LAST_ABOUT = text("SELECT max(seq) FROM row WHERE result_id = :id")
_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


class CertificateError(Exception):
    """No certificate was made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log as it was hashed."""

    seq: int
    kind: str
    body: str

    @property
    def content(self) -> Json:
        parsed_body: Json = json.loads(self.body)
        return parsed_body


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate's two files."""

    result_id: str
    says: str
    file: Path
    page: Path
    notes: tuple[str, ...]

    def as_row(self) -> Json:
        return {key: str(value) for key, value in asdict(self).items() if key != "notes"}


def make_certificates(
    reader: Reader,
    result_id: str | None,
    serial: str | None,
    folder: Path,
    as_of: int | None = None,
    since: str | None = None,
) -> Iterator[Made]:
    """One for a result, or one for each attempt of a serial, in `folder`; as of the newest signed
    checkpoint or the one of row `as_of`, proven to go on from the checkpoint `since`.

    Raises `CertificateError`, `CheckpointError`, `NoteError`, `StoreError`.
    """
    body = _signed_checkpoint(reader, as_of)
    trees = trees_at(reader, parsed(body.note))
    names = [result_id] if result_id else _attempts(reader, serial or "", trees.size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            yield _make(reader, name, body, trees, folder, since)
    except OSError as error:
        raise CertificateError(f"{folder}: cannot be written: {error.strerror}") from error


def rows_of_certificate(reader: Reader, result_id: str, until: int) -> tuple[list[Row], list[Row]]:
    """All rows about a result up to a row, and those elsewhere in the log that explain them: what
    they leave to their context, holds that cover it without naming it, and the releases of all
    its holds."""
    about = _rows(reader.query(_ABOUT, {"id": result_id, "until": until}))
    result = next((row.content for row in about if row.kind == "result"), None)
    elsewhere = _rows(reader.query(_HOLDS, {"until": until}))
    # A release names its hold alone, also where that names the result.
    held = {row.content["hold_id"] for row in about if row.kind == "hold"} | {
        row.content["hold_id"]
        for row in elsewhere
        if result is not None and row.kind == "hold" and _is_held(result, row.content)
    }
    named = {row.content[packing.KIND] for row in about if packing.KIND in row.content}
    contexts = _rows(reader.query(_ROWS, {"seqs": json.dumps(sorted(named))}))
    return about, contexts + [row for row in elsewhere if row.content["hold_id"] in held]


def _is_held(result: Json, hold: Json) -> bool:
    """By the rule for pictures, whether it has any or not."""
    picture = Picture(
        result["result_id"],
        "evidence",
        "",
        "",
        0,
        PictureClass.FAIL,
        result["written_at"],
        result.get("part_id"),
        result.get("lot"),
    )
    return is_held(picture, [HoldBody.model_validate(hold)])


def _rows(found: Any) -> list[Row]:
    return [Row(int(row.seq), str(row.kind), str(row.body)) for row in found]


def _signed_checkpoint(reader: Reader, as_of: int | None) -> CheckpointBody:
    signed = [body for _, body in checkpoints(reader) if body.public_key]
    found = [body for body in signed if as_of in (None, body.size)]
    if not found:
        which = "no signed checkpoint" + ("" if as_of is None else f" as of row {as_of}")
        raise CertificateError(
            f"{reader.path}: there is {which}; `vqi log key make` makes the key, "
            "`vqi log checkpoint` a checkpoint"
        )
    body = found[-1]
    check_signature(body.note, base64.b64decode(body.public_key or ""))
    return body


def _attempts(reader: Reader, serial: str, until: int) -> list[str]:
    found = [str(row[0]) for row in reader.query(_OF_SERIAL, {"serial": serial, "until": until})]
    if not found:
        raise CertificateError(
            f"{serial}: no result of this serial as of row {until}; if it is newer: "
            "`vqi log checkpoint`"
        )
    return found


def _make(
    reader: Reader,
    result_id: str,
    body: CheckpointBody,
    trees: Trees,
    folder: Path,
    since: str | None,
) -> Made:
    rows, context = rows_of_certificate(reader, result_id, trees.size)
    place = trees.place_of(reader, result_id)
    if not rows or place is None:
        raise CertificateError(
            f"{result_id}: the log says nothing of it as of row {trees.size}; if it is newer: "
            "`vqi log checkpoint`"
        )
    checkpoint = parsed(body.note)
    tree = trees.plates_tree(reader)
    said: Json = {
        "format": FORMAT,
        "says": says(checkpoint, result_id, len(rows)),
        "result_id": result_id,
        "checkpoint": body.note,
        "public_key": public_pem(base64.b64decode(body.public_key or "")).decode(),
        "rows": _proven(reader, trees, rows),
        "context": _proven(reader, trees, context),
        "plate": {"index": place, "proof": _hex(inclusion(tree, place, trees.plates))},
        "pictures": [_picture(reader, image) for image in _images(rows)],
        "since": _since(reader, since, checkpoint),
    }
    file, page = (folder / f"{result_id}.{suffix}" for suffix in ("json", "html"))
    file.write_bytes(canonical_bytes(said))
    page.write_bytes(_page(said, rows, context, checkpoint, body, file.name))
    return Made(result_id, said["says"], file, page, _notes(reader, said, trees.size))


def canonical_bytes(said: Json) -> bytes:
    """The one way to write a certificate."""
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def says(checkpoint: Checkpoint, result_id: str, rows: int) -> str:
    """The first sentence: what is proven, and as of when."""
    return (
        f"As of {checkpoint.at}, row {checkpoint.size} of the log {checkpoint.origin}, these "
        f"{rows} rows are all that the log says about {result_id}, word for word."
    )


def _proven(reader: Reader, trees: Trees, rows: Sequence[Row]) -> list[Json]:
    tree = trees.rows_tree(reader)
    return [
        {**asdict(row), "proof": _hex(inclusion(tree, row.seq - 1, trees.size))} for row in rows
    ]


def _hex(proof: Sequence[bytes]) -> list[str]:
    return [part.hex() for part in proof]


def _since(reader: Reader, note: str | None, new: Checkpoint) -> Json | None:
    if note is None:
        return None
    return {"checkpoint": note, "proof": _hex(prove_consistency(reader, parsed(note), new))}


def _images(rows: Sequence[Row]) -> list[Json]:
    return [
        image for row in rows if row.kind == "result" for image in row.content.get("images") or ()
    ]


def _picture(reader: Reader, image: Json) -> Json:
    """With its bytes, where the file is there; what is not there is for the checker to judge."""
    data = None
    with contextlib.suppress(OSError):
        data = base64.b64encode((reader.images / image["path"]).read_bytes()).decode()
    return {"path": image["path"], "sha256": image["sha256"], "data": data}


def _notes(reader: Reader, said: Json, until: int) -> tuple[str, ...]:
    """What whoever made it should know; the certificate is what it is."""
    name = said["result_id"]
    last = int(reader.query(_LAST_ABOUT, {"id": name}).scalar() or 0)
    notes = [f"row {last} about it is newer than the checkpoint"] if last > until else []
    said_here = [row["body"] for row in said["rows"] if row["kind"] == "tombstone"]
    for picture in said["pictures"]:
        path = picture["path"]
        if picture["data"] is not None or any(path in body for body in said_here):
            continue
        since = reader.is_removed(name, path)
        why = "removed since the checkpoint: make another" if since else "no tombstone says why"
        notes.append(f"{path}: not there, {why}; the checker will not take it")
    return tuple(notes)


# --- the page -----------------------------------------------------------------------------------


def _page(
    said: Json,
    rows: Sequence[Row],
    context: Sequence[Row],
    checkpoint: Checkpoint,
    body: CheckpointBody,
    file: str,
) -> bytes:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("station"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"facts": _facts, "data_uri": _data_uri}
    page = environment.get_template("certificate.html").render(
        said=said,
        rows=[(row, _whole(row, context), sha256_text(row.body)) for row in rows],
        context=[(row, row.content, sha256_text(row.body)) for row in context],
        result=next((_whole(row, context) for row in rows if row.kind == "result"), None),
        checkpoint=checkpoint,
        fingerprint=fingerprint(base64.b64decode(body.public_key or "")),
        file=file,
    )
    return page.encode()


def _whole(row: Row, context: Sequence[Row]) -> Json:
    """What was recorded, also where the row leaves it to its context."""
    said = {
        other.seq: other.content["constants"] for other in context if other.kind == packing.KIND
    }
    return packing.whole(row.content, said.__getitem__)


_ARRAYS = ("tile_grid", "tile_scores", "tile_blocks", "tile_score_planes", "images")


def _facts(content: Json) -> list[tuple[str, str]]:
    """What a row says, without long arrays and what is not known."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in content.items()
        if key not in _ARRAYS and value not in (None, "", [], {})
    ]


def _data_uri(picture: Json) -> str:
    media = _MEDIA_TYPES[picture["path"].rsplit(".", 1)[-1]]
    return f"data:{media};base64,{picture['data']}"
