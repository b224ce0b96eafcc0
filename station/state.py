"""What the station is (OPC 40100-1) and where its pictures come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from drivers.camera import CameraInfo
from station.record import Provenance


class StationState(StrEnum):
    PREOPERATIONAL = "PREOPERATIONAL"
    """Starting: the self-test has not passed yet."""
    OPERATIONAL = "OPERATIONAL"
    HALTED = "HALTED"
    """A person halted it: plates are recorded UNDECIDED."""
    ERROR = "ERROR"
    """It cannot inspect or cannot record; the reason is in the status."""


@dataclass(frozen=True, slots=True)
class Commissioned:
    """What commissioning signed: the one camera whose plates are production."""

    camera_serial: str
    producer_sha256: str


def provenance(camera: CameraInfo, commissioned: Commissioned | None) -> Provenance:
    """Where this camera's frames come from; the only place that says `production`.

    A GenICam camera is production only if its serial and its producer's sha256 are those that
    commissioning signed; otherwise it counts as simulated, for GenTL producers simulate too.
    """
    if camera.driver == "replay":
        return Provenance.REPLAYED
    if camera.driver != "genicam" or commissioned is None:
        return Provenance.SIMULATED
    found = Commissioned(camera.serial, camera.producer_sha256 or "")
    return Provenance.PRODUCTION if found == commissioned else Provenance.SIMULATED
