"""A camera behind a GenTL producer, through harvesters.

harvesters holds the interpreter while it waits, drops incomplete frames silently, and reports a
disconnect as a timeout; so frames are taken from its event monitor directly (a private attribute:
the version is pinned), copied, and their buffers queued again at once. A producer that crashes when
it is loaded takes only a throw-away process with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.camera import Camera, CameraInfo, Frame
from drivers.camera.settings import GenicamCameraSettings
from drivers.errors import DeviceBusy, DeviceLost, DeviceNotFound, DeviceRefused, DriverMissing

Pixels = NDArray[np.uint8]

VIKY = Path("viky")
"""Names the area-scan simulator that comes with the genicam package."""
_PATH_VARIABLE = "GENICAM_GENTL64_PATH"
_PRECHECK_LIMIT_S = 20.0
_POLL_S = 0.001
_PROBE_S = 0.3
"""A silent camera is asked for a register this often: a disconnect looks like a timeout."""
_PRECHECK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
needed = ("GCInitLib", "GCGetLastError", "TLOpen")
missing = [name for name in needed if not hasattr(library, name)]
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


def list_cameras(producer: Path) -> list[dict[str, str]]:
    """The cameras that a producer finds. Raises `DriverMissing`, `DeviceNotFound`,
    `DeviceRefused`."""
    path = _producer_path(producer)
    harvester = _load(path)
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


class GenicamCamera(Camera):
    """One camera, found by its serial."""

    def __init__(self, settings: GenicamCameraSettings) -> None:
        self._serial = settings.serial
        self._path = _producer_path(settings.producer)
        self._harvester = _load(self._path)
        self._acquirer: Any = None
        self._is_running = False
        self._is_lost = False
        self._first_id: int | None = None
        self._next_probe_s = 0.0
        try:
            self._open(settings.buffers)
            features = {name: self._apply(name, value) for name, value in settings.features.items()}
            self.info = self._read_info(features)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        if self._is_lost:
            raise self._lost("it was disconnected; open it again")
        self._first_id = None
        self._next_probe_s = time.monotonic() + _PROBE_S
        try:
            self._acquirer.start()
        except Exception as error:
            raise self._lost(str(error)) from error
        self._is_running = True

    def grab(self, into: Pixels, timeout_s: float) -> Frame | None:
        if self._is_lost:
            raise self._lost("it was disconnected; open it again")
        if not self._is_running:
            raise RuntimeError("grab() before start()")
        if into.size < self.info.max_frame_bytes:
            raise ValueError(
                f"`into` holds {into.size} bytes, a frame may have {self.info.max_frame_bytes}"
            )
        deadline = time.monotonic() + timeout_s
        while True:
            buffer = self._next_buffer()
            if buffer is not None:
                try:
                    return self._copy(buffer, into)
                finally:
                    buffer.parent.queue_buffer(buffer)
            self._probe()
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)

    def stop(self) -> None:
        if self._is_running:
            self._is_running = False
            # After a loss the producer may refuse; the device is released all the same.
            with contextlib.suppress(Exception):
                self._acquirer.stop()

    def close(self) -> None:
        self.stop()
        if self._acquirer is not None:
            with contextlib.suppress(Exception):
                self._acquirer.destroy()
            self._acquirer = None
        if self._harvester is not None:
            with contextlib.suppress(Exception):
                self._harvester.reset()
            self._harvester = None

    # --- opening --------------------------------------------------------------------------------

    def _open(self, buffers: int) -> None:
        from harvesters.core import ParameterKey, ParameterSet

        found = [str(info.serial_number) for info in self._harvester.device_info_list]
        if self._serial not in found:
            raise DeviceNotFound(
                f"no camera with serial {self._serial!r} behind {self._path}; "
                f"found: {', '.join(found) or 'none'}"
            )
        config = ParameterSet({ParameterKey.NUM_BUFFERS_FOR_FETCH_CALL: buffers})
        handler = signal.getsignal(signal.SIGINT)
        try:
            self._acquirer = self._harvester.create({"serial_number": self._serial}, config=config)
            self._acquirer.num_buffers = buffers
        except Exception as error:
            text = f"camera {self._serial} behind {self._path}: {error}"
            if "ResourceInUse" in type(error).__name__:
                raise DeviceBusy(f"{text}; another program holds it") from error
            raise DeviceRefused(text) from error
        finally:
            # harvesters takes SIGINT for itself.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, handler)

    def _apply(self, name: str, value: bool | int | float | str) -> str:
        """Set a feature and read it back."""
        try:
            node = self._nodes.get_node(name)
            if node is None:
                raise DeviceRefused(f"camera {self._serial} has no feature {name}")
            node.value = value
            found = node.value
        except DeviceRefused:
            raise
        except Exception as error:
            raise DeviceRefused(
                f"camera {self._serial} refuses {name} = {value!r}: {error}"
            ) from error
        is_same = (
            abs(float(found) - value) <= 1e-3 * max(1.0, abs(value))
            if isinstance(value, float)
            else str(found) == str(value)
        )
        if not is_same:
            raise DeviceRefused(
                f"camera {self._serial}: {name} is {found!r} after setting it to {value!r}"
            )
        return str(found)

    def _read_info(self, features: dict[str, str]) -> CameraInfo:
        info = next(
            item
            for item in self._harvester.device_info_list
            if str(item.serial_number) == self._serial
        )
        rate = self._read("AcquisitionLineRate")
        return CameraInfo(
            driver="genicam",
            vendor=str(info.vendor),
            model=str(info.model),
            serial=self._serial,
            width=int(self._nodes.Width.value),
            frame_height=int(self._nodes.Height.value),
            pixel_format=str(self._nodes.PixelFormat.value),
            line_rate_hz=None if rate is None else float(rate),
            producer_path=str(self._path),
            producer_sha256=hashlib.sha256(self._path.read_bytes()).hexdigest(),
            features=features,
        )

    def _read(self, name: str) -> Any:
        """A feature's value; None where the camera has no such feature."""
        try:
            node = self._nodes.get_node(name)
            return None if node is None else node.value
        except Exception:  # noqa: BLE001  not implemented, not available, not readable
            return None

    @property
    def _nodes(self) -> Any:
        return self._acquirer.remote_device.node_map

    # --- frames ---------------------------------------------------------------------------------

    def _next_buffer(self) -> Any:
        from genicam.gentl import TimeoutException

        monitor = next(iter(self._acquirer._new_buffer_event_monitor_dict.values()))
        try:
            monitor.update_event_data(0)
        except TimeoutException:
            return None
        except Exception as error:
            raise self._lost(str(error)) from error
        return monitor.buffer

    def _copy(self, buffer: Any, into: Pixels) -> Frame:
        """Copy a buffer's delivered scan lines; stale ones below them are left out."""
        width, height = int(buffer.width), self._delivered_height(buffer)
        code = int(buffer.pixel_format)
        row_bytes = -(-width * _bits_a_pixel(code) // 8)
        raw = np.frombuffer(buffer.raw_buffer, np.uint8)[int(buffer.image_offset) :]
        rows = min(height, len(raw) // row_bytes, len(into) // row_bytes)
        size = rows * row_bytes
        into[:size] = raw[:size]
        return Frame(
            pixels=into[:size].reshape(rows, row_bytes),
            width=width,
            frame_id=self._frame_id(int(buffer.frame_id)),
            timestamp_ns=time.monotonic_ns(),
            pixel_format=_pixel_format(code),
            is_incomplete=not buffer.is_complete() or rows < self.info.frame_height,
        )

    def _frame_id(self, number: int) -> int:
        if self._first_id is None:
            self._first_id = number
        return number - self._first_id

    def _delivered_height(self, buffer: Any) -> int:
        try:
            return int(buffer.delivered_image_height)
        except Exception:  # noqa: BLE001  optional in GenTL; the full height then
            return int(buffer.height)

    def _probe(self) -> None:
        """Ask the camera for a register now and then. Raises `DeviceLost`."""
        if time.monotonic() < self._next_probe_s:
            return
        self._next_probe_s = time.monotonic() + _PROBE_S
        try:
            _ = self._nodes.Width.value
        except Exception as error:
            raise self._lost(str(error)) from error

    def _lost(self, why: str) -> DeviceLost:
        self._is_lost = True
        return DeviceLost(f"camera {self._serial}: {why}")


def _bits_a_pixel(code: int) -> int:
    """Bits that a pixel takes, from its format's code (PFNC 2.1, bits 16 to 23)."""
    return (code >> 16) & 0xFF


def _pixel_format(code: int) -> str:
    """The name of a pixel format's code (PFNC)."""
    from harvesters.util.pfnc import dict_by_ints

    return str(dict_by_ints.get(code, f"0x{code:08X}"))


def _producer_path(producer: Path) -> Path:
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


def _load(path: Path) -> Any:
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
    return harvester


@cache
def _precheck(path: Path) -> None:
    """Load the producer in a process of its own: a bad one crashes whoever loads it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PRECHECK, str(path)],
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
