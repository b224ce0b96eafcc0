"""The commissioning file: what a person signed off, and whether it holds here.

The file says which camera, producer, flat field, recipe, model and report were signed. Its sha256
stands in the log as a chained change; only the file of the latest such change makes a camera
production.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from station.record import ChangeBody
from station.state import Commissioned, NotCommissioned

COMMISSIONED = "commissioned"
"""The name of the change that signing writes."""
SIGN_IT = "`vqi commission sign`"
_MAX_BYTES = 100_000

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class CommissioningFile(BaseModel):
    """What was signed. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    station_id: Text
    run: Literal["fat", "sat"]
    camera_vendor: str
    camera_model: str
    camera_serial: Text
    producer_sha256: Sha256
    features_sha256: Sha256
    """Of the camera's features as they were read back."""
    flat_field_id: str | None
    flat_field_sha256: Sha256 | None
    recipe_id: Text
    recipe_version: int
    recipe_sha256: Sha256
    model_id: Text
    model_sha256: Sha256
    configuration_sha256: Sha256
    report_sha256: Sha256
    """Of the JSON report."""
    report_html_sha256: Sha256
    who: Text
    signed_at: Text

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def commissioned_change(file: CommissioningFile) -> ChangeBody:
    """The row that makes this file the latest."""
    detail = {
        "file_sha256": sha256_hex(file.as_bytes()),
        "run": file.run,
        "camera_serial": file.camera_serial,
        "producer_sha256": file.producer_sha256,
        "report_sha256": file.report_sha256,
    }
    return ChangeBody(station_id=file.station_id, what=COMMISSIONED, who=file.who, detail=detail)


def read_commissioned(
    path: Path | None, station_id: str, signed_sha256s: Sequence[str]
) -> Commissioned | NotCommissioned:
    """What the configured file says, if it is the one signed last in this station's log.

    `signed_sha256s` are those of the log's `commissioned` changes, the latest first.
    """
    if path is None:
        return NotCommissioned("no commissioning file is configured ([commissioning] file)")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        return NotCommissioned(f"{path}: cannot be read: {error.strerror}; sign one: {SIGN_IT}")
    judged = judge_file(data, station_id, signed_sha256s)
    if isinstance(judged, NotCommissioned):
        return NotCommissioned(f"{path}: {judged.why}")
    return judged


def judge_file(
    data: bytes, station_id: str, signed_sha256s: Sequence[str]
) -> Commissioned | NotCommissioned:
    """Whether these bytes are the latest that was signed here; what they sign."""
    sha256 = sha256_hex(data)
    if not signed_sha256s:
        return NotCommissioned(f"this station's log says of no signing; sign it: {SIGN_IT}")
    if sha256 != signed_sha256s[0]:
        if sha256 in signed_sha256s:
            return NotCommissioned("an older file: another was signed since; put that one here")
        return NotCommissioned("not the file that was signed last: changed since, or another's")
    try:
        file = CommissioningFile.model_validate_json(data)
    except ValidationError:
        return NotCommissioned("this program does not understand the signed file; sign again")
    if file.station_id != station_id:
        return NotCommissioned(f"signed for station {file.station_id}, this is {station_id}")
    return Commissioned(file.camera_serial, file.producer_sha256)
