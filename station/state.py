"""What the station is (OPC 40100-1) and where its pictures come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from drivers.camera import CameraInfo
from station.model_signatures import SignedModel, UnsignedModel
from station.record import Provenance

SIMULATOR_VENDOR = "VQI"
"""The vendor that the GenTL simulator beside this program names: never production, whatever was
signed. Tests build it under another name, so that a production pass is seen on the wire."""


class StationState(StrEnum):
    PREOPERATIONAL = "PREOPERATIONAL"
    """Starting: the self-test has not passed yet."""
    OPERATIONAL = "OPERATIONAL"
    HALTED = "HALTED"
    """A person halted it: plates are recorded UNDECIDED."""
    ERROR = "ERROR"
    """It cannot inspect or cannot record; the reason is in the status."""


JUDGED_ALL_THE_SAME = frozenset(
    (
        *("log", "recording", "plc", "accept", "late", "pictures", "disk", "upkeep"),
        *("scanner", "serials", "recipe", "parity", "samples_due", "drift"),
    )
)
"""Parts of the station whose problems keep no plate from being judged and recorded: they call a
person. Any other part's is a fault."""


@dataclass(frozen=True, slots=True)
class Commissioned:
    """What commissioning signed: the one camera whose plates are production."""

    camera_serial: str
    producer_sha256: str


@dataclass(frozen=True, slots=True)
class NotCommissioned:
    """Nothing that was signed holds here; `why` is for people."""

    why: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a camera's frames come from, and why this is so."""

    provenance: Provenance
    why: str


def provenance(
    camera: CameraInfo,
    commissioned: Commissioned | NotCommissioned,
    model: SignedModel | UnsignedModel,
) -> Origin:
    """Where this camera's frames come from; the only place that says `production`.

    A GenICam camera is production only if its serial and its producer's sha256 are those that
    commissioning signed, it is not the simulator, and people whose keys are trusted here signed the
    model that judges; otherwise it counts as simulated, for GenTL producers simulate too.
    """
    if camera.driver == "replay":
        return Origin(Provenance.REPLAYED, "the camera is a replay")
    doubt = _doubt(camera, commissioned)
    if doubt is not None:
        return Origin(Provenance.SIMULATED, doubt)
    if isinstance(model, UnsignedModel):
        return Origin(Provenance.SIMULATED, model.why)
    why = f"camera {camera.serial} is the one that was signed; model {model.words}"
    return Origin(Provenance.PRODUCTION, why)


def _doubt(camera: CameraInfo, commissioned: Commissioned | NotCommissioned) -> str | None:
    """Why this camera's plates are not production; None if they are."""
    if camera.driver != "genicam":
        return f"the camera's driver is {camera.driver}"
    if camera.vendor == SIMULATOR_VENDOR:
        return f"the camera is the simulator (vendor {camera.vendor})"
    if isinstance(commissioned, NotCommissioned):
        return commissioned.why
    if not camera.serial or camera.serial != commissioned.camera_serial:
        return f"camera {commissioned.camera_serial} was signed, this is {camera.serial or 'none'}"
    if not camera.producer_sha256 or camera.producer_sha256 != commissioned.producer_sha256:
        return (
            f"the producer {camera.producer_path} is not the file that was signed "
            f"(sha256 {(camera.producer_sha256 or 'unknown')[:12]}, signed "
            f"{commissioned.producer_sha256[:12]})"
        )
    return None
