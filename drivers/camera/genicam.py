"""A camera behind a GenTL producer, through harvesters.

harvesters holds the interpreter while it waits, drops incomplete frames silently, leaves padding in
scan lines, and reports a disconnect as a timeout; so frames are taken from its event monitor
directly (a private attribute: the version is pinned), copied, and their buffers queued again at
once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.camera import Camera, CameraInfo, Frame
from drivers.camera.features import (
    HERTZ,
    MICROSECONDS,
    Applied,
    apply_features,
    read_feature,
    read_in,
)
from drivers.camera.gentl import load_producer, producer_path, sha256_of
from drivers.camera.settings import GenicamCameraSettings, SimulatedCameraSettings
from drivers.errors import DeviceBusy, DeviceLost, DeviceNotFound, DeviceRefused

Pixels = NDArray[np.uint8]

_POLL_S = 0.001
_BELT_PLATES = 100_000
"""Plates of a rendered belt before it repeats."""
_PROBE_S = 0.3
"""A silent camera is asked for a register this often: a disconnect looks like a timeout."""
_CLOCK_DRIFT = 100e-6
"""A camera's quartz and this host's go apart by no more than this."""
_WRAP_16 = 0xFFFF
"""GigE Vision 1.x counts its blocks from 1 to this and begins again at 1."""
_MOST_VALUES = 2**32
_FARTHEST_COUNTS = 2**24
"""Between two frames no encoder moves so far: minutes at its fastest."""


class GenicamCamera(Camera):
    """One camera, found by its serial."""

    def __init__(self, settings: GenicamCameraSettings) -> None:
        self._serial = settings.serial
        self._path = producer_path(settings.producer)
        self._harvester = load_producer(self._path)
        self._acquirer: Any = None
        self._is_running = False
        self._is_lost = False
        self._next_probe_s = 0.0
        self._ids = _FrameIds()
        self._clock = _DeviceClock()
        self._chunks: _Chunks | None = None
        self._is_height_variable = False
        self._belt: int | None = None
        try:
            self._open(settings.buffers)
            self._lay_belt(settings)
            applied = apply_features(self._nodes, settings.features, self._serial)
            self.info = self._read_info(applied)
        except BaseException:
            self.close()
            raise

    @property
    def node_map(self) -> Any:
        """The camera's features, for tools that list them."""
        return self._nodes

    def start(self) -> None:
        if self._is_lost:
            raise self._lost("it was disconnected; open it again")
        self._ids = _FrameIds()
        self._clock = _DeviceClock()
        self._chunks = _Chunks(self._nodes)
        self._is_height_variable = _is_on(self._nodes, "FrameActive")
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

    def temperature_c(self) -> float | None:
        value = read_feature(self._nodes, "DeviceTemperature")
        return None if value is None else float(value)

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
        if self._belt is not None:
            os.close(self._belt)
            self._belt = None

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
            # In use here, or controlled by another program (GenTL 1.6, IFOpenDevice).
            if type(error).__name__ in ("ResourceInUseException", "AccessDeniedException"):
                raise DeviceBusy(f"{text}; another program holds it") from error
            raise DeviceRefused(text) from error
        finally:
            # harvesters takes SIGINT for itself.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, handler)

    def _lay_belt(self, settings: GenicamCameraSettings) -> None:
        """Render the plates that the line-scan simulator shall see, and show it where they are.

        Not one of the features of `info`: where the memory lies differs from start to start.
        """
        if settings.belt is None:
            return
        from drivers.camera.producer.source import belt_source

        belt = SimulatedCameraSettings(
            type="simulated",
            width=int(settings.features.get("Width", 4096))
            + int(settings.features.get("OffsetX", 0)),
            pixel_pitch_mm=settings.pixel_pitch_mm,
            **settings.belt.model_dump(),
        )
        self._belt = belt_source(belt, _BELT_PLATES)
        where = {"SimSource": f"/proc/self/fd/{self._belt}"}
        apply_features(self._nodes, where, self._serial)

    def _read_info(self, applied: Applied) -> CameraInfo:
        info = next(
            item
            for item in self._harvester.device_info_list
            if str(item.serial_number) == self._serial
        )
        return CameraInfo(
            driver="genicam",
            vendor=str(info.vendor),
            model=str(info.model),
            serial=self._serial,
            width=int(self._nodes.Width.value),
            frame_height=int(self._nodes.Height.value),
            pixel_format=str(self._nodes.PixelFormat.value),
            offset_x_px=int(read_feature(self._nodes, "OffsetX") or 0),
            line_rate_hz=read_in(self._nodes, "AcquisitionLineRate", HERTZ),
            is_frame_triggered=_is_on(self._nodes, "FrameStart")
            or _is_on(self._nodes, "FrameActive"),
            is_scan_line_triggered=_is_on(self._nodes, "LineStart"),
            exposure_us=read_in(self._nodes, "ExposureTime", MICROSECONDS),
            producer_path=str(self._path),
            producer_sha256=sha256_of(self._path),
            features=applied.values,
            rounded=applied.rounded,
        )

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
        """Copy a buffer's delivered scan lines; stale ones below and padding beside them are left
        out."""
        arrived_ns = time.monotonic_ns()
        code, width = _layout(buffer)
        if not width:
            return self._empty(buffer, arrived_ns, into)
        pixels = _copy_scan_lines(buffer, width, -(-width * _bits_a_pixel(code) // 8), into)
        is_short = len(pixels) < self.info.frame_height and not self._is_height_variable
        assert self._chunks is not None
        encoder_value, plate_counter = self._chunks.read(self._acquirer, buffer)
        return Frame(
            pixels=pixels,
            width=width,
            frame_id=self._ids.counted(int(buffer.frame_id)),
            timestamp_ns=self._clock.on_host(_timestamp_ns(buffer), arrived_ns),
            pixel_format=_pixel_format(code),
            is_incomplete=not buffer.is_complete() or is_short,
            encoder_value=encoder_value,
            plate_counter=plate_counter,
        )

    def _empty(self, buffer: Any, arrived_ns: int, into: Pixels) -> Frame:
        """A frame whose leader was lost: nobody knows where its pixels belong."""
        return Frame(
            pixels=into[:0].reshape(0, self.info.width),
            width=self.info.width,
            frame_id=self._ids.counted(int(buffer.frame_id)),
            timestamp_ns=self._clock.last_ns or arrived_ns,
            pixel_format=self.info.pixel_format,
            is_incomplete=True,
        )

    def _probe(self) -> None:
        """Ask the camera for a register now and then. Raises `DeviceLost`."""
        if time.monotonic() < self._next_probe_s:
            return
        self._next_probe_s = time.monotonic() + _PROBE_S
        try:
            # A cached value would answer for a camera that is gone.
            width = int(self._nodes.Width.get_value(ignore_cache=True))
        except Exception as error:
            raise self._lost(str(error)) from error
        if width != self.info.width:
            raise self._lost(f"it was reset: Width is {width}, not {self.info.width}")

    def _lost(self, why: str) -> DeviceLost:
        self._is_lost = True
        return DeviceLost(f"camera {self._serial}: {why}")


class _FrameIds:
    """Frame ids counted from 0, also past the end of a 16-bit counter."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._last = 0
        self._wraps = 0

    def counted(self, number: int) -> int:
        if self._first is None:
            self._first = number
        is_wrapped = self._last <= _WRAP_16 and self._last - number > _WRAP_16 // 2
        self._wraps += is_wrapped
        self._last = number
        return number - self._first + self._wraps * _WRAP_16


class _DeviceClock:
    """A camera's timestamps on this host's CLOCK_MONOTONIC.

    A frame arrives after its last scan line was taken, never before: of all frames, the one that
    waited least tells the two clocks' offset best.
    """

    def __init__(self) -> None:
        self._offset_ns: float | None = None
        self._told_ns = self._device_ns = 0
        self.last_ns = 0
        """What was told last; 0 before the first frame."""

    def on_host(self, device_ns: int | None, arrived_ns: int) -> int:
        """When the last scan line was in the camera; its arrival where the camera does not say."""
        self.last_ns = arrived_ns if device_ns is None else self._mapped(device_ns, arrived_ns)
        return self.last_ns

    def _mapped(self, device_ns: int, arrived_ns: int) -> int:
        offset_ns = arrived_ns - device_ns
        # A clock that goes back began anew; some cameras tell only the part of a second.
        if self._offset_ns is not None and device_ns >= self._device_ns:
            drift_ns = (arrived_ns - self._told_ns) * _CLOCK_DRIFT
            offset_ns = int(min(offset_ns, self._offset_ns + drift_ns))
        self._offset_ns, self._told_ns, self._device_ns = offset_ns, arrived_ns, device_ns
        return device_ns + offset_ns


class _Counter:
    """A counter that goes on past its end.

    It begins again after 32 bits at the latest, signed or not, though a camera may show it as one
    of 64; one that was set back to 0 is left as it is.
    """

    def __init__(self, node: Any) -> None:
        self._values = _MOST_VALUES
        with contextlib.suppress(Exception):  # a camera need not say how far it counts
            self._values = min(_MOST_VALUES, int(node.max) - int(node.min) + 1)
        self._last: int | None = None
        self._passed = 0

    def counted(self, number: int) -> int:
        if self._last is not None:
            step = number - self._last
            ends = self._values if step < 0 else -self._values
            if abs(step + ends) <= min(_FARTHEST_COUNTS, self._values // 4):
                self._passed += ends
        self._last = number
        return number + self._passed


class _Chunks:
    """What the camera sends with a frame, where it does: encoder and plate counter (SFNC)."""

    def __init__(self, nodes: Any) -> None:
        self._nodes = nodes
        self._is_active = bool(read_feature(nodes, "ChunkModeActive"))
        source = str(read_feature(nodes, "TriggerSource[LineStart]"))
        is_by_encoder = _is_on(nodes, "LineStart") and source.startswith("Encoder")
        divider = read_feature(nodes, "EncoderDivider") if is_by_encoder else None
        self._counts_a_scan_line = None if divider is None else int(divider)
        self._counter: _Counter | None = None

    def read(self, acquirer: Any, buffer: Any) -> tuple[int | None, int | None]:
        """Scan lines that the encoder has counted, and plates, at the frame's first scan line.

        Counts of an encoder that does not trigger the scan lines say nothing of missing ones.
        """
        if not self._is_active or not _has_chunks(buffer):
            return None, None
        acquirer._update_chunk_data(buffer=buffer, is_manual=True)
        counts = read_feature(self._nodes, "ChunkEncoderValue")
        plates = read_feature(self._nodes, "ChunkCounterValue")
        scan_lines = None
        if counts is not None and self._counts_a_scan_line:
            # Only now: without a frame there is nothing that its range could be asked of.
            self._counter = self._counter or _Counter(self._nodes.get_node("ChunkEncoderValue"))
            scan_lines = self._counter.counted(int(counts)) // self._counts_a_scan_line
        return scan_lines, None if plates is None else int(plates)


def _has_chunks(buffer: Any) -> bool:
    """They come behind the pixels; where they did not, the features still read as in a frame
    before, or as 0."""
    if not buffer.is_complete():
        return False
    try:
        return bool(buffer.is_containing_chunk_data())
    except Exception:  # noqa: BLE001  optional in GenTL; harvesters then counts them
        return True


def _is_on(nodes: Any, trigger: str) -> bool:
    return str(read_feature(nodes, f"TriggerMode[{trigger}]")) == "On"


def _copy_scan_lines(buffer: Any, width: int, row_bytes: int, into: Pixels) -> Pixels:
    padding, offset = _padding(buffer), int(buffer.image_offset)
    height, stride = _delivered_height(buffer), row_bytes + padding
    raw = np.frombuffer(buffer.raw_buffer, np.uint8)[offset:]
    rows = min(height, len(raw) // stride, len(into) // row_bytes)
    filled = _filled_bytes(buffer)
    if filled is not None:  # padding behind the last scan line need not have come
        rows = min(rows, max(0, filled - offset + padding) // stride)
    pixels = into[: rows * row_bytes].reshape(rows, row_bytes)
    np.copyto(pixels, raw[: rows * stride].reshape(rows, stride)[:, :row_bytes])
    return pixels


def _layout(buffer: Any) -> tuple[int, int]:
    """Code of the pixel format, and width; 0 and 0 where a lost leader leaves them unknown."""
    try:
        return int(buffer.pixel_format), int(buffer.width)
    except Exception:
        if buffer.is_complete():
            raise
        return 0, 0


def _padding(buffer: Any) -> int:
    try:
        return int(buffer.padding_x)
    except Exception:  # noqa: BLE001  optional in GenTL; none then
        return 0


def _delivered_height(buffer: Any) -> int:
    try:
        return int(buffer.delivered_image_height)
    except Exception:  # noqa: BLE001  optional in GenTL; the full height then
        return int(buffer.height)


def _filled_bytes(buffer: Any) -> int | None:
    """How much was written into the buffer; None where the producer does not say. What lies behind
    it is of an older frame."""
    try:
        return int(buffer.size_filled) or None
    except Exception:  # noqa: BLE001  optional in GenTL
        return None


def _timestamp_ns(buffer: Any) -> int | None:
    try:
        return int(buffer.timestamp_ns) or None
    except Exception:  # noqa: BLE001  optional in GenTL
        return None


def _bits_a_pixel(code: int) -> int:
    """Bits that a pixel takes, from its format's code (PFNC 2.1, bits 16 to 23)."""
    return (code >> 16) & 0xFF


def _pixel_format(code: int) -> str:
    """The name of a pixel format's code (PFNC)."""
    from harvesters.util.pfnc import dict_by_ints

    return str(dict_by_ints.get(code, f"0x{code:08X}"))
