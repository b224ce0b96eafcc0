"""GenTL producers: found, tried in a process of their own, loaded."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drivers.camera.producer.build import build_producer, source_sha256
from drivers.errors import DeviceBusy, DeviceNotFound, DeviceRefused, DriverMissing

VIKY = Path("viky")
"""Names the area-scan simulator that comes with the genicam package."""
LINESCAN = Path("linescan")
"""Names the line-scan simulator that comes with vqi and is built where it is wanted."""
_PATH_VARIABLE = "GENICAM_GENTL64_PATH"
_PRECHECK_LIMIT_S = 20.0
_NEEDED = tuple(
    """
GCInitLib GCCloseLib GCGetInfo GCGetLastError GCReadPort GCWritePort GCGetPortInfo
GCGetNumPortURLs GCGetPortURLInfo GCRegisterEvent EventGetData EventGetInfo EventFlush
TLOpen TLClose TLGetNumInterfaces TLGetInterfaceID TLOpenInterface TLUpdateInterfaceList
IFClose IFGetInfo IFGetNumDevices IFGetDeviceID IFGetDeviceInfo IFUpdateDeviceList IFOpenDevice
DevClose DevGetPort DevGetNumDataStreams DevGetDataStreamID DevOpenDataStream
DSClose DSGetInfo DSAnnounceBuffer DSQueueBuffer DSStartAcquisition DSStopAcquisition DSFlushQueue
DSRevokeBuffer DSGetBufferInfo
""".split()  # noqa: SIM905
)
"""What a frame needs on its way (GenTL 1.6); harvesters itself crashes for want of some."""
_PRECHECK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
missing = [name for name in sys.argv[2:] if not hasattr(library, name)]
if missing:
    sys.exit("not a GenTL producer: it lacks " + ", ".join(missing))
from harvesters.core import Harvester
harvester = Harvester()
harvester.add_file(sys.argv[1], check_existence=True)
harvester.update()
print(len(harvester.device_info_list))
harvester.reset()
"""


def producers_on_path() -> list[Path]:
    """Producers in the folders of GENICAM_GENTL64_PATH."""
    folders = [Path(part) for part in os.environ.get(_PATH_VARIABLE, "").split(":") if part]
    return sorted(file for folder in folders for file in folder.glob("*.cti"))


def producer_path(producer: Path) -> Path:
    """Where a producer's file lies. Raises `DeviceNotFound`, `DriverMissing`."""
    if producer == LINESCAN:
        return build_producer(_cache_folder())
    if producer == VIKY:
        package = find_spec("genicam")
        if package is None or package.origin is None:
            raise DriverMissing("the package genicam is not installed: pip install genicam==1.6.0")
        producer = Path(package.origin).parent / "viky.cti"
    if not producer.is_file():
        on_path = ", ".join(map(str, producers_on_path())) or "none"
        raise DeviceNotFound(
            f"{producer}: no such GenTL producer; {_PATH_VARIABLE} names: {on_path}"
        )
    return producer.resolve()


def _cache_folder() -> Path:
    """Where what is built here lies: the service manager's cache, or the user's."""
    given = os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME")
    return Path(given or Path.home() / ".cache") / "vqi" / f"producer-{source_sha256()[:12]}"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_producer(path: Path) -> Any:
    """A harvester with this producer alone.

    Raises `DriverMissing`, `DeviceRefused`, `DeviceBusy`.
    """
    try:
        from harvesters.core import Harvester
    except ImportError as error:
        raise DriverMissing(
            f"harvesters or genicam does not load: {error}; "
            "Debian's package libpython3.11 has the shared Python that genicam needs"
        ) from error
    _precheck(path)
    harvester = Harvester()
    harvester.add_file(str(path), check_existence=True)
    harvester.update()
    if not harvester._systems:  # harvesters keeps what TLOpen said to itself
        harvester.reset()
        raise DeviceBusy(f"{path}: this producer opens once in a program, and it is open here")
    return harvester


def list_cameras(producer: Path) -> list[dict[str, str]]:
    """The cameras that a producer finds. Raises `DriverMissing`, `DeviceNotFound`,
    `DeviceRefused`."""
    path = producer_path(producer)
    harvester = load_producer(path)
    try:
        return [
            {
                "producer": str(path),
                "vendor": str(info.vendor),
                "model": str(info.model),
                "serial": str(info.serial_number),
                "tl_type": str(info.tl_type),
            }
            for info in harvester.device_info_list
        ]
    finally:
        harvester.reset()


@cache
def _precheck(path: Path) -> None:
    """Load the producer in a process of its own: a bad one crashes whoever loads it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PRECHECK, str(path), *_NEEDED],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PRECHECK_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceRefused(f"{path}: loading this producer takes too long") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise DeviceRefused(f"{path}: loading it crashes ({name}); not a GenTL producer?")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DeviceRefused(f"{path}: this producer does not load: {''.join(last)}")
