"""GenTL producers under the camera contract: ours, and peers that nobody here wrote.

Each is skipped with a plain reason where its package is missing; where VQI_REQUIRE_PEERS=1 every
such skip is a failure. What is fetched or built is kept outside the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from own_machine import enter_outside_network, one_of_this_machine

from drivers.camera.producer import build
from drivers.errors import DriverMissing

Json = dict[str, Any]
Process = subprocess.Popen[bytes]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vqi-tests"
GIGE_SERIAL = "GV01"
WIDTH, HEIGHT = 512, 64
"""Frames small enough that a burst of one fits in a UDP socket's default buffer."""
GENTL_HEADER = Path(build.__file__).with_name("gentl.h")
_TLSIMU_WHEEL = "genicam==1.5.0"
_VMBPY_WHEEL = "vmbpy==1.2.3"
_GVCP = ("127.0.0.1", 3956)
_DISCOVERY = bytes.fromhex("42 11 0002 0000 0001")
_ARAVIS_FLAGS = (
    *("-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"),
    *("-isystem", "/usr/include/aravis-0.8"),
    *("-iquote", str(GENTL_HEADER.parent)),
)
_SHARED = ("-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,nodelete")


@dataclass(frozen=True)
class Peer:
    """A producer and the camera behind it that the contract is run over."""

    name: str
    serial: str
    producer: Callable[[], str]
    """Its file, or a skip that says what is missing."""
    features: Json
    beside: Callable[[], AbstractContextManager[Process | None]] = nullcontext
    """What runs beside it."""
    abilities: frozenset[str] = frozenset()
    """What not every device has; tests of it run over those that do."""

    @contextmanager
    def running(self) -> Iterator[Json]:
        """The camera's settings, while it is there."""
        producer = self.producer()
        with self.beside():
            yield self.settings(producer)

    def settings(self, producer: str, **changes: Any) -> Json:
        found = {"type": "genicam", "producer": producer, "serial": self.serial}
        return {**found, "features": self.features, **changes}


# --- where each comes from ----------------------------------------------------------------------


def viky() -> str:
    """Comes with the genicam package, which the driver needs anyway."""
    return "viky"


@cache
def tlsimu() -> str:
    """Out of an older genicam wheel; its frame grabber's library must lie beside it."""
    folder = CACHE / "tlsimu"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=_made(CACHE)) as scratch:
            out = _unpacked(_TLSIMU_WHEEL, Path(scratch))
            _put(next(out.rglob("TLSimu.cti")).parent, folder)
    return str(folder / "TLSimu.cti")


@cache
def vmbpy() -> Path:
    """A folder with Allied Vision's package vmbpy; not installed, for nothing else may use it."""
    folder = CACHE / _VMBPY_WHEEL
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=_made(CACHE)) as scratch:
            _put(_unpacked(_VMBPY_WHEEL, Path(scratch)), folder)
    return folder


def _put(made: Path, folder: Path) -> None:
    """Unless another process of these tests was faster."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unpacked(name: str, folder: Path) -> Path:
    """A wheel from the package index; a skip where that cannot be had."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "-d", str(folder), name],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=enter_outside_network,
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"pip cannot fetch {name}: {''.join(why)}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "out")
    return folder / "out"


@cache
def own() -> str:
    try:
        return str(build.build_producer(CACHE / "own"))
    except DriverMissing as error:
        pytest.skip(f"our own producer: {error}")


@contextmanager
def own_locks() -> Iterator[None]:
    """Our producer locks a camera for this machine; other runs of the tests are another factory."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="vqi-locks-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_RUNTIME_DIR")
            if before is not None:
                os.environ["XDG_RUNTIME_DIR"] = before


@cache
def aravis() -> str:
    return str(_build("aravis_producer.c", "aravis_producer.cti", _SHARED))


def _build(source: str, target: str, flags: tuple[str, ...] = ()) -> Path:
    """Build a C file of this folder over libaravis, unless it was built from the same text."""
    missing = [name for name in ("gcc", "pkg-config") if shutil.which(name) is None]
    if missing or not Path("/usr/include/aravis-0.8/arv.h").is_file():
        pytest.skip(f"{target}: apt-get install gcc pkg-config libaravis-dev")
    file = Path(__file__).parent / source
    text = file.read_bytes() + GENTL_HEADER.read_bytes() + repr(flags).encode()
    built = CACHE / hashlib.sha256(text).hexdigest()[:16]
    if not (built / target).is_file():
        built.mkdir(parents=True, exist_ok=True)
        libraries = [*_pkg_config("--cflags"), "-laravis-0.8", *_pkg_config("--libs")]
        command = ["gcc", *_ARAVIS_FLAGS, *flags, str(file), "-o", f"{built / target}.new"]
        done = subprocess.run([*command, *libraries], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        Path(f"{built / target}.new").replace(built / target)
    return built / target


def _pkg_config(what: str) -> list[str]:
    """Not of aravis itself: Debian's file asks for USB headers that nothing here needs."""
    command = ["pkg-config", what, "gio-2.0", "gobject-2.0"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [word.replace("-I", "-isystem", 1) for word in words]


# --- GigE Vision cameras on the loopback interface ----------------------------------------------


@contextmanager
def gige_camera(lost_per_thousand: int = 0) -> Iterator[Process]:
    """Debian's fake GigE Vision camera; loses so many of its packets."""
    program = shutil.which("arv-fake-gv-camera-0.8")
    if program is None:
        pytest.skip("GigE Vision camera: apt-get install aravis-tools")
    command = [program, "-i", _GVCP[0], "-s", GIGE_SERIAL, "-r", str(lost_per_thousand)]
    with _answering(command) as process:
        yield process


@contextmanager
def gige_belt(strip: Path, lost_share: float = 0.0) -> Iterator[Process]:
    """The same camera over a belt: it plays a file of scan lines."""
    program = _build("aravis_belt.c", "aravis_belt")
    with _answering([str(program), str(strip), GIGE_SERIAL, str(lost_share)]) as process:
        yield process


@contextmanager
def _answering(command: list[str]) -> Iterator[Process]:
    """A GigE Vision camera; its port is one of the standard's."""
    with one_of_this_machine("gige-camera"), _started(command) as process:
        yield process


@contextmanager
def _started(command: list[str]) -> Iterator[Process]:
    assert not _answers(), f"a GigE Vision camera already answers at {_GVCP}; stop that one"
    # It goes with the tests also where they are killed: one that stays would fail the next run.
    command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10.0
        while not _answers():
            assert process.poll() is None, f"{command[0]} ended: {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
        yield process
    finally:
        process.kill()
        process.wait()


def _answers() -> bool:
    """Does a camera answer a GVCP discovery?"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.1)
        asker.connect(_GVCP)
        try:
            asker.send(_DISCOVERY)
            return bool(asker.recv(1024))
        except OSError:
            return False


# --- all of them --------------------------------------------------------------------------------

TIMES = "tells when a frame was taken"
ONE_OWNER = "belongs to one program at a time"
PLATES = "shows plates"
GIGE = "is behind GigE Vision on a wire"
FAULTS = "fails where it is told to"
WHOLE = "has all that a strict GenTL consumer looks for"

_AREA = {"Width": WIDTH, "Height": HEIGHT, "PixelFormat": "Mono8"}
PEERS = [
    Peer(
        "viky",
        "1",
        viky,
        {"Width": 320, "PixelFormat": "Mono8", "AcquisitionFrameRate": 100.0},
        abilities=frozenset({WHOLE}),
    ),
    Peer("tlsimu", "SN_InterfaceA_0", tlsimu, _AREA, abilities=frozenset({TIMES})),
    Peer(
        "aravis",
        GIGE_SERIAL,
        aravis,
        {**_AREA, "AcquisitionFrameRate": 200.0},
        gige_camera,
        frozenset({TIMES, ONE_OWNER, GIGE}),
    ),
    Peer(
        "own",
        "VQI-LS-1",
        own,
        {**_AREA, "AcquisitionLineRate": 8000.0},
        own_locks,
        frozenset({TIMES, ONE_OWNER, PLATES, FAULTS, WHOLE}),
    ),
]


def peers(*abilities: str) -> Any:
    """Parametrizes a test's `peer` by those that can do this."""
    chosen = [peer for peer in PEERS if peer.abilities.issuperset(abilities)]
    return pytest.mark.parametrize("peer", chosen, ids=[peer.name for peer in chosen])
