"""The camera process and its ring: frames arrive, deaths are seen, nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from campaign.freeze import held
from station_rig import shared_memory, wait_until

from drivers.camera import EndOfSource, Frame
from drivers.camera.settings import (
    GenicamCameraSettings,
    ReplayCameraSettings,
    SimulatedCameraSettings,
)
from drivers.errors import DeviceBusy, DeviceError
from station import acquisition
from station.acquisition import CameraGone, CameraProcess, Tick

HEIGHT = 64


def belt(**changes: object) -> SimulatedCameraSettings:
    return SimulatedCameraSettings.model_validate(
        {
            "type": "simulated",
            "width": 768,
            "frame_height": HEIGHT,
            "line_rate_hz": 8000.0,
            "bank_plates": 1,
            "specimen": {"width_mm": 60.0, "length_mm": 30.0, "gap_mm": 10.0},
            **changes,
        }
    )


@pytest.fixture
def camera() -> Iterator[CameraProcess]:
    process = CameraProcess(belt(), ring_s=0.5)
    process.start()
    yield process
    process.close()


Taken = list[tuple[Frame, int]]


def frames(camera: CameraProcess, count: int, taken: Taken | None = None) -> Taken:
    """The next frames with their slots, which stay taken."""
    taken = [] if taken is None else taken
    while len(taken) < count:
        item = camera.receive(2.0)
        assert item is not None
        if not isinstance(item, Tick):
            taken.append(item)
    return taken


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_frames_travel_through_the_ring_whole_and_in_order(camera: CameraProcess) -> None:
    ids = []
    for frame, slot in frames(camera, 40):
        assert frame.pixels.shape == (HEIGHT, 768)
        assert frame.pixels.any()
        ids.append(frame.frame_id)
        camera.release(slot)
    assert ids == list(range(ids[0], ids[0] + 40))


def test_ticks_come_also_while_no_frame_does() -> None:
    camera = CameraProcess(belt(faults={"stall": [1], "stall_s": 30.0}), ring_s=0.5)
    try:
        camera.start()
        numbers = []
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            item = camera.receive(0.5)
            if isinstance(item, Tick):
                numbers.append(item.number)
        assert len(numbers) >= 4
        assert numbers == list(range(1, len(numbers) + 1))
    finally:
        camera.close()


def test_a_station_that_keeps_its_slots_loses_frames_and_the_ids_say_so(
    camera: CameraProcess,
) -> None:
    held = frames(camera, 20)
    copies = [frame.pixels.copy() for frame, _ in held]
    time.sleep(1.0)
    overrun = 0
    while overrun == 0:
        item = camera.receive(1.0)
        assert item is not None
        if isinstance(item, Tick):
            overrun = item.overrun
        else:
            held.append(item)
            copies.append(item[0].pixels.copy())
    # What is held is not overwritten while frames find no slot.
    for (frame, _), copy in zip(held, copies, strict=True):
        assert np.array_equal(frame.pixels, copy)
    last_id = held[-1][0].frame_id
    for _, slot in held:
        camera.release(slot)
    (frame, _), *_ = frames(camera, 1)
    assert frame.frame_id > last_id + 1


def test_a_killed_process_is_seen_at_once_and_says_how_it_ended(camera: CameraProcess) -> None:
    frames(camera, 3)
    os.kill(camera.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    with pytest.raises(CameraGone, match="SIGKILL"):
        frames(camera, 1_000_000)
    assert time.monotonic() - killed_at < 1.0


@pytest.mark.usefixtures("may_hold_threads")
def test_a_process_that_does_not_die_is_left_behind_and_not_many_are(
    camera: CameraProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a driver holds in the kernel: killed, and no end is told."""
    monkeypatch.setattr(acquisition, "_MOST_LEFT_BEHIND", 1)
    frames(camera, 3)
    with held(camera.pid, 60.0):
        closed_at = time.monotonic()
        camera.close()
        assert time.monotonic() - closed_at < 6.0
        assert _is_over(camera.pid), "killed"
        with pytest.raises(DeviceBusy, match=str(camera.pid)):
            CameraProcess(belt(), ring_s=0.5)
    successor = CameraProcess(belt(), ring_s=0.5)
    try:
        successor.start()
        frames(successor, 3)
    finally:
        successor.close()


def test_the_stations_death_ends_the_camera_process(camera: CameraProcess) -> None:
    pid = camera.pid
    camera._channel.close()  # what the kernel does when the station dies
    wait_until(lambda: _is_over(pid), 4.0, "end of the camera process")


def _is_over(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_the_end_of_a_source_comes_after_its_last_frame(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((100, 300), 90, np.uint8))
    settings = ReplayCameraSettings(type="replay", path=tmp_path, frame_height=32)
    camera = CameraProcess(settings, ring_s=0.5)
    try:
        camera.start()
        taken: Taken = []
        with pytest.raises(EndOfSource):
            frames(camera, 1_000_000, taken)
        assert sum(frame.height for frame, _ in taken) >= 100
    finally:
        camera.close()


def test_what_the_driver_said_reaches_the_station() -> None:
    settings = GenicamCameraSettings(type="genicam", producer=Path("viky"), serial="nobody")
    with pytest.raises(DeviceError, match="nobody"):
        CameraProcess(settings, ring_s=0.5)


@pytest.mark.long
def test_a_hundred_restarts_leave_nothing_behind(tmp_path: Path) -> None:
    """Opened, read and killed a hundred times: no descriptor, no process, no shared memory."""
    import cv2

    # The lightest source: what is tested is the process and the ring.
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64), 90, np.uint8))
    settings = ReplayCameraSettings(type="replay", path=tmp_path, frame_height=32, is_loop=True)
    memory, descriptors = shared_memory(), 0
    for number in range(100):
        camera = CameraProcess(settings, ring_s=0.5)
        camera.start()
        frames(camera, 2)
        if number % 2:
            os.kill(camera.pid, signal.SIGKILL)
        camera.close()
        assert _is_over(camera.pid)
        if number == 4:
            descriptors = open_descriptors()
    assert open_descriptors() == descriptors
    assert shared_memory() == memory
    assert mapped_rings() <= 1  # the last frame may still be held by the loop's own names


def mapped_rings() -> int:
    return Path("/proc/self/maps").read_text().count("vqi-ring")
