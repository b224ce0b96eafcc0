"""What an export says of a plate: columns with type and unit, the same in each format."""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Literal

from station.opc_names import EVALUATIONS
from station.qms import Json

ASK_FOR_LESS = "ask for less with --since, --until or --verdict, or take --format parquet"
Type = Literal["text", "integer", "real", "yes", "time"]


class ExportError(Exception):
    """Nothing was exported; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: Type = "text"
    unit: str = ""
    width: int = 14
    """In a spreadsheet, characters."""
    says: str = ""
    """What the name does not."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a format needs to know beside the rows."""

    zone: tzinfo | None = None
    """Times for people are written in it; None: UTC."""
    images: Path | None = None
    """Where the pictures lie."""
    about: tuple[tuple[str, str], ...] = ()
    """For people: what was asked, of which log, as of which row."""


COLUMNS = (
    Column("seq", "integer", says="row of the log"),
    Column("result_id", width=24),
    Column("written_at", "time", width=26),
    Column("verdict", says="OK, NotOK, NotDecidable (OPC 40001-101)"),
    Column("reason", says="why it is NotDecidable"),
    Column("detail", width=40),
    Column("part_id", width=24, says="part serial"),
    Column("provenance"),
    Column("score", "real", "1", 10, "highest tile score"),
    Column("threshold", "real", "1", 10),
    Column("defects", width=40, says="x mm, y mm and score of each"),
    Column("tiles", "integer"),
    Column("recipe_id", width=16),
    Column("recipe_version", "integer"),
    Column("model_id", width=20),
    Column("model_sha256"),
    Column("camera_serial"),
    Column("images", width=20, says="files, named by their sha256"),
    Column("pixels_sha256"),
    Column("review_verdict", says="of the review that holds"),
    Column("reviewer"),
    Column("review_reason", width=24),
    Column("reviewed_at", "time", width=26),
    Column("review_pending", "yes", says="a review waits for a second person"),
    Column("station_id"),
    Column("sequence", "integer", says="plate number of the station"),
    Column("lot"),
    Column("job_id"),
    Column("operator"),
    Column("shift", width=18),
    Column("attempt", "integer", says="of this part"),
    Column("previous_result_id", width=24, says="the attempt before"),
    Column("identity", says="how the plate came to its serial"),
    Column("serials", width=24, says="all that may be its serial"),
    Column("triggers", "integer", says="plates that the row answers for"),
    Column("is_simulated", "yes"),
    Column("is_audit_sample", "yes"),
    Column("defect_count", "integer"),
    Column("recipe_sha256"),
    Column("configuration_sha256"),
    Column("runtime", width=30),
    Column("camera_features_sha256"),
    Column("flat_field_id"),
    Column("flat_field_sha256"),
    Column("encoder_value", "integer"),
    Column("first_frame_id", "integer"),
    Column("last_frame_id", "integer"),
    Column("lost_frames", "integer"),
    Column("incomplete_frames", "integer"),
    Column("left_px", "integer", "px"),
    Column("width_px", "integer", "px"),
    Column("length_px", "integer", "px"),
    Column("skew_deg", "real", "deg"),
    Column("opened_ns", "integer", "ns", 18, "CLOCK_MONOTONIC of boot_id"),
    Column("last_scan_line_ns", "integer", "ns", 18, "CLOCK_MONOTONIC of boot_id"),
    Column("decided_ns", "integer", "ns", 18, "CLOCK_MONOTONIC of boot_id"),
    Column("boot_id"),
    Column("body_sha256", says="of the row's text in the log"),
    Column("chain_sha256", says="of the chain up to this row"),
)
SINCE_ADDED = frozenset({"review_pending"})
"""Columns that exports of earlier programs do not have."""
DEFECT_COLUMNS = (
    Column("seq", "integer", says="row of the log"),
    Column("result_id", width=24),
    Column("number", "integer"),
    Column("x_mm", "real", "mm", 10, "centre, from the plate's left edge"),
    Column("y_mm", "real", "mm", 10, "centre, from its leading edge"),
    Column("w_mm", "real", "mm", 10),
    Column("h_mm", "real", "mm", 10),
    Column("x_px", "integer", "px"),
    Column("y_px", "integer", "px"),
    Column("w_px", "integer", "px"),
    Column("h_px", "integer", "px"),
    Column("score", "real", "1", 10),
)


def flat(row: Json) -> Json:
    """A value for each of `COLUMNS`: text, int, float, bool, a time in UTC, or None."""
    review, frames = row["review"] or {}, row.get("frame_ids") or (None, None)
    told = {
        **row,
        "verdict": EVALUATIONS[row["verdict"]],
        "defects": "; ".join(_place(defect) for defect in row["defects"]),
        "defect_count": len(row["defects"]) + row.get("defects_omitted", 0),
        "images": "; ".join(image["path"] for image in row["images"]),
        "review_verdict": EVALUATIONS[review["verdict"]] if review.get("verdict") else None,
        "reviewer": review.get("reviewer"),
        "review_reason": review.get("reason"),
        "reviewed_at": review.get("written_at"),
        "review_pending": bool(review.get("pending")),
        "serials": "; ".join(row.get("serials", ())),
        "first_frame_id": frames[0],
        "last_frame_id": frames[1],
    }
    return {column.name: typed(column, told.get(column.name)) for column in COLUMNS}


def flat_defects(row: Json) -> list[Json]:
    """A value for each of `DEFECT_COLUMNS`, a row for each defect."""
    numbered = enumerate(row["defects"])
    told = [
        {**defect, "seq": row["seq"], "result_id": row["result_id"], "number": number}
        for number, defect in numbered
    ]
    return [{column.name: typed(column, one.get(column.name)) for column in DEFECT_COLUMNS}
            for one in told]  # fmt: skip


def typed(column: Column, value: Any) -> Any:
    """As the column's type; the log writes a number that is none (NaN) as its name."""
    if value is None or column.type in ("text", "yes", "integer"):
        return value
    return float(value) if column.type == "real" else datetime.fromisoformat(value)


def tiles(row: Json) -> tuple[bytes, bytes]:
    """Places as little-endian uint16 pairs (x_px, y_px) and scores as float32, in grid order."""
    return base64.b64decode(row["tile_grid"]), base64.b64decode(row["tile_scores"])


def _place(defect: Json) -> str:
    return f"{defect['x_mm']} {defect['y_mm']} {float(defect['score']):.4f}"


# --- text that people open in a spreadsheet -------------------------------------------------------

_FORMULA_STARTS = frozenset("=+-@|%\u2212")
_LOOKS_LIKE_A_NUMBER = re.compile(
    r"""[\d\s.,:/+\-%$€£'()eE]*\d[\d\s.,:/+\-%$€£'()eE]*          # numbers, dates, times
    | (true|false)
    | (\d{1,4}\W?)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\W?\d{0,4}""",
    re.IGNORECASE | re.VERBOSE,
)
_PART = re.compile(r"(?<=[;\t\n])[^;\t\n]+")
"""A comma is safe: every value is quoted."""
_PLAIN_NUMBER = re.compile(r"0|[1-9]\d{0,14}")


def visible(text: str) -> str:
    """Characters that nobody sees (controls, right-to-left and joining marks) by their number."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"‹U+{ord(one):04X}›" if _is_hidden(one) else one for one in text)


def for_spreadsheet(text: str) -> str:
    """`visible`, and with quotes where a spreadsheet would run it or change it.

    What would lose zeros or digits, or become a date, is kept as text: a serial.
    """
    shown = visible(text)
    if _LOOKS_LIKE_A_NUMBER.fullmatch(shown) and not _PLAIN_NUMBER.fullmatch(shown):
        return f"'{_PART.sub(_kept, shown)}"
    return without_formula(text)


def without_formula(text: str) -> str:
    """`visible`, and with a quote where a spreadsheet would run it: before it, and before each part
    that is a cell where another separator is taken for the file's."""
    shown = _PART.sub(_kept, visible(text))
    return f"'{shown}" if _is_run(shown) else shown


def _kept(part: re.Match[str]) -> str:
    return f"'{part[0]}" if _is_run(part[0]) else part[0]


def _is_run(shown: str) -> bool:
    """Whether a formula begins behind blanks and quotes, also in full width (OWASP, CSV injection);
    or a quote, so that the first one is never the text's own."""
    return shown.startswith("'") or _first_significant(shown) in _FORMULA_STARTS


def _is_hidden(one: str) -> bool:
    return one not in "\n\t" and unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _first_significant(text: str) -> str:
    bare = text.lstrip()
    while bare and (bare[0] in "'\"`´‘’‚“”„«»‹›" or bare[0].isspace()):
        bare = _without_mark(bare).lstrip()
    return unicodedata.normalize("NFKC", bare[0])[:1] if bare else ""


def _without_mark(text: str) -> str:
    """Without a quote, or a character that `visible` wrote by its number."""
    return re.sub(r"^(‹U\+[0-9A-F]{4,6}›|.)", "", text, count=1, flags=re.DOTALL)


def local(at: datetime, zone: tzinfo | None) -> datetime:
    return at.astimezone(zone or UTC)


def with_offset(at: datetime, zone: tzinfo | None) -> str:
    """RFC 3339 with microseconds: in the zone with its offset, without one in UTC with Z."""
    text = local(at, zone).isoformat(timespec="microseconds")
    return text if zone else text.replace("+00:00", "Z")
