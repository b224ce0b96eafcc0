"""A GenTL consumer nobody here wrote: Allied Vision's VmbC, through its C interface.

vmbc_consumer.py VMBPY_FOLDER PRODUCER_FOLDER SERIAL FEATURES_JSON prints a row for each frame. VmbC
comes in the package vmbpy; that package's Python classes also ask a producer to describe its own
modules, which GenTL asks of a producer and simulators rarely do.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from vmbpy.c_binding.vmb_c import (
    FRAME_CALLBACK_TYPE,
    VmbCameraInfo,
    VmbFrame,
    VmbHandle,
    call_vmb_c,
)

BUFFERS, FRAMES = 8, 20
FULL_ACCESS = 1
NO_CALLBACK = FRAME_CALLBACK_TYPE(0)
SETTINGS = """<?xml version="1.0"?>
<Settings><Logging><Level>Error</Level></Logging><TlLoading>
  <CtiPaths><Path required="true">{folder}</Path></CtiPaths>
  <TlRule vendor-type="*" interface-type="*" rule="allow"/>
</TlLoading></Settings>
"""
"""VmbC opens the producers of some vendors only, unless it is told otherwise."""


def camera_ids() -> dict[str, bytes]:
    """Ids by serial."""
    count, size = ctypes.c_uint32(), ctypes.sizeof(VmbCameraInfo)
    call_vmb_c("VmbCamerasList", None, 0, ctypes.byref(count), size)
    infos = (VmbCameraInfo * count.value)()
    call_vmb_c("VmbCamerasList", infos, count, ctypes.byref(count), size)
    return {info.serialString.decode(): info.cameraIdString for info in infos}


def set_features(camera: VmbHandle, features: dict[str, object]) -> None:
    for name, value in features.items():
        if isinstance(value, str):
            call_vmb_c("VmbFeatureEnumSet", camera, name.encode(), value.encode())
        elif isinstance(value, float):
            call_vmb_c("VmbFeatureFloatSet", camera, name.encode(), ctypes.c_double(value))
        else:
            call_vmb_c("VmbFeatureIntSet", camera, name.encode(), value)


def stream(camera: VmbHandle) -> None:
    payload = ctypes.c_uint32()
    call_vmb_c("VmbPayloadSizeGet", camera, ctypes.byref(payload))
    frames = [VmbFrame() for _ in range(BUFFERS)]
    memory = [ctypes.create_string_buffer(payload.value) for _ in frames]
    for frame, buffer in zip(frames, memory, strict=True):
        frame.buffer, frame.bufferSize = ctypes.cast(buffer, ctypes.c_void_p), payload.value
        call_vmb_c("VmbFrameAnnounce", camera, ctypes.byref(frame), ctypes.sizeof(VmbFrame))
    call_vmb_c("VmbCaptureStart", camera)
    for frame in frames:
        call_vmb_c("VmbCaptureFrameQueue", camera, ctypes.byref(frame), NO_CALLBACK)
    call_vmb_c("VmbFeatureCommandRun", camera, b"AcquisitionStart")
    for number in range(FRAMES):
        take(camera, frames[number % BUFFERS], memory[number % BUFFERS])
    call_vmb_c("VmbFeatureCommandRun", camera, b"AcquisitionStop")
    call_vmb_c("VmbCaptureEnd", camera)
    call_vmb_c("VmbCaptureQueueFlush", camera)
    call_vmb_c("VmbFrameRevokeAll", camera)


def take(camera: VmbHandle, frame: VmbFrame, memory: ctypes.Array[ctypes.c_char]) -> None:
    call_vmb_c("VmbCaptureFrameWait", camera, ctypes.byref(frame), 5000)
    row = {
        "id": int(frame.frameID),
        "width": int(frame.width),
        "height": int(frame.height),
        "status": int(frame.receiveStatus),
        "pixel_format": int(frame.pixelFormat),
        "brightest": max(memory.raw),
    }
    print(json.dumps(row))
    call_vmb_c("VmbCaptureFrameQueue", camera, ctypes.byref(frame), NO_CALLBACK)


def main() -> None:
    folder, serial, features = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as settings:
        settings.write(SETTINGS.format(folder=folder))
        settings.flush()
        call_vmb_c("VmbStartup", str(Path(settings.name)).encode())
    camera = VmbHandle()
    call_vmb_c("VmbCameraOpen", camera_ids()[serial], FULL_ACCESS, ctypes.byref(camera))
    set_features(camera, features)
    stream(camera)
    call_vmb_c("VmbCameraClose", camera)
    call_vmb_c("VmbShutdown")


main()
