"""Where the acquire thread takes the belt to be, and which camera it takes for the one it had."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from producer_rig import belt_settings, producer_rig
from station_rig import FRAME_HEIGHT, Rig, children, wait_until

from drivers.camera import CameraInfo, Frame
from drivers.camera.producer.source import belt_source
from drivers.camera.recorder import Bounds, StripRecorder
from drivers.camera.recording import RecordedFrame, RecordedStrip
from drivers.errors import DriverMissing
from station.feed import _stranger, _Travel

HEIGHT, SPEED = 64, 4000.0
INFO = CameraInfo(
    driver="genicam",
    vendor="Acme",
    model="LS",
    serial="1",
    width=768,
    frame_height=HEIGHT,
    pixel_format="Mono8",
    offset_x_px=16,
    line_rate_hz=SPEED,
    exposure_us=50.0,
    producer_sha256="ab",
)


def frame(number: int, rows: int = HEIGHT, encoder: int | None = None, at: int = 0) -> Frame:
    """At the time at which a belt that runs evenly brings frame `at`, or this one."""
    at_ns = int((at or number) * HEIGHT / SPEED * 1e9)
    return Frame(np.zeros((rows, 1), np.uint8), 1, number, at_ns, encoder_value=encoder)


def places(frames: list[Frame]) -> list[tuple[bool, int]]:
    travel = _Travel(HEIGHT)
    return [(travel.take(one), travel.frame_end) for one in frames]


@pytest.mark.parametrize(
    ("frames", "ends"),
    [
        ([frame(0), frame(1), frame(2)], [1, 2, 3]),
        ([frame(0), frame(1, rows=0), frame(2)], [1, 2, 3]),
        ([frame(0), frame(1, rows=20), frame(3)], [1, 2, 4]),
        ([frame(0), frame(1), frame(1), frame(2)], [1, 2, 2, 3]),
        ([frame(0, encoder=640), frame(1, rows=0), frame(2, encoder=768)], [11, 12, 13]),
        ([frame(0, encoder=640), frame(1, rows=20, encoder=704)], [11, 12]),
    ],
)
def test_the_belt_runs_on_under_scan_lines_that_are_missing(
    frames: list[Frame], ends: list[int]
) -> None:
    assert places(frames) == [(True, end * HEIGHT) for end in ends]


def running(count: int, first: int = 0) -> list[Frame]:
    return [frame(number, encoder=first + number * HEIGHT) for number in range(count)]


@pytest.mark.parametrize(
    ("later", "is_reached"),
    [
        (frame(50, encoder=50 * HEIGHT), True),
        (frame(60, encoder=60 * HEIGHT, at=60), True),  # frames were lost
        (frame(50, encoder=49 * HEIGHT - 100, at=55), True),  # it turned back and came again
        (frame(50, encoder=0), False),  # set back
        (frame(50, encoder=0, at=200), True),  # or run back, nobody can tell
        (frame(50, encoder=-500), False),
        (frame(50, encoder=500 * HEIGHT), False),  # set to something
        (frame(0), False),  # a camera that counts its frames anew
    ],
)
def test_a_belt_cannot_be_where_it_could_not_have_run(later: Frame, is_reached: bool) -> None:
    found = places([*running(50), later])
    assert all(one for one, _ in found[:-1])
    assert found[-1][0] == is_reached


def test_frames_that_come_all_at_once_do_not_make_the_belt_fast() -> None:
    late = [replace(one, timestamp_ns=50 * 16_000_000 + n) for n, one in enumerate(running(50))]
    back = frame(50, encoder=0, at=51)
    assert places([*running(20), *late[20:], back])[-1] == (False, HEIGHT)


CHANGES: dict[str, dict[str, Any]] = {
    "OffsetX 0 for 16": {"offset_x_px": 0},
    "Height 32 for 64": {"frame_height": 32},
    "PixelFormat Mono12 for Mono8": {"pixel_format": "Mono12"},
    "frames triggered True for False": {"is_frame_triggered": True},
    "scan lines triggered True for False": {"is_scan_line_triggered": True},
    "ExposureTime 100 for 50": {"exposure_us": 100.0},
    "ExposureTime none for 50": {"exposure_us": None},
    "AcquisitionLineRate 3000 for 4000": {"line_rate_hz": 3000.0},
    "Width 400 for 768, OffsetX 0 for 16": {"width": 400, "offset_x_px": 0},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_camera_that_forgot_how_it_was_set_is_a_stranger(what: str) -> None:
    said = _stranger(replace(INFO, **CHANGES[what]), INFO)
    assert f"came back changed: {what}; start the station again" in said


def test_a_camera_that_only_rounds_is_none() -> None:
    assert not _stranger(INFO, INFO)
    assert not _stranger(replace(INFO, exposure_us=50.2, line_rate_hz=3990.0), INFO)
    triggered = replace(INFO, is_scan_line_triggered=True)
    assert not _stranger(replace(triggered, line_rate_hz=None), triggered)
    by_itself = replace(INFO, features={"ExposureAuto": "Continuous"})
    assert not _stranger(replace(by_itself, exposure_us=90.0), by_itself)


# --- the station ----------------------------------------------------------------------------------

_ACCEPT = """
[accept]
distance_mm = 90.0
pulse_ms = 40
device = { type = "simulated", outputs = ["accept"] }
"""


def test_a_camera_that_came_back_changed_is_not_taken(tmp_path: Path) -> None:
    """Its width is not in the configuration, and another one once it was opened anew."""
    try:
        (tmp_path / "line").mkdir()
        rig = producer_rig(tmp_path / "line", "Acme")
    except DriverMissing as error:
        pytest.skip(str(error))
    del rig.camera["features"]["Width"]
    source = Path(rig.camera["features"]["SimSource"])
    narrow = belt_settings({}).model_copy(update={"width": 700})
    with rig.running() as process:
        descriptor = belt_source(narrow, 2)
        other = source.with_name("other.source")
        other.write_bytes(Path(f"/proc/self/fd/{descriptor}").read_bytes())
        os.close(descriptor)
        other.replace(source)
        os.kill(children(process.pid)["camera"], signal.SIGKILL)
        what = "Width 700 for 768"
        wait_until(lambda: what in rig.status()["problems"].get("camera", ""), 20.0, what)
        assert rig.status()["state"] == "ERROR"


def set_back(strip: Path, to: Path, from_frame: int) -> Path:
    """A recording with the encoder at 0 from a frame on."""
    recorded, problems = RecordedStrip(strip), list[str]()
    recorder = StripRecorder(to, recorded.info, Bounds(2**30, 0), problems.append)
    for item in recorded.items():
        if not isinstance(item, RecordedFrame):
            continue
        one = item.read(np.empty(recorded.info.max_frame_bytes, np.uint8))
        assert isinstance(one, Frame)
        assert one.encoder_value is not None
        if one.frame_id >= from_frame:
            one = replace(one, encoder_value=(one.frame_id - from_frame) * FRAME_HEIGHT)
        recorder.append(one)
    recorder.close()
    assert not problems
    return to


@pytest.mark.long
def test_an_encoder_that_is_set_back_takes_no_plate_to_its_point_again(tmp_path: Path) -> None:
    """What was on its way has lost its place; what comes later is brought to its point as ever."""
    first = Rig(tmp_path / "first", specimen={"defective_share": 0.0})
    first.folder.mkdir()
    assert first.run("--plates", "8", "--record", str(tmp_path / "strip")).status == 0
    third = sorted(first.rows("result"), key=lambda row: int(row["sequence"]))[2]
    strip = set_back(tmp_path / "strip", tmp_path / "set-back", third["frame_ids"][0] + 3)
    camera = {"type": "replay", "path": str(strip), "timing": "recorded"}
    rig = Rig(tmp_path / "second", camera=camera, tables=_ACCEPT)
    rig.folder.mkdir()
    result = rig.run()
    assert result.status == 0, result.stderr
    said = {row["result_id"]: row["detail"] for row in rig.rows("accept")}
    passed = [row["sequence"] for row in rig.rows("result") if row["verdict"] == "PASS"]
    assert sorted(passed) == [1, 2, 4, 5, 6, 7, 8], "the third lies across the jump"
    assert "place was lost" in said["test-1-00000002"]
    later = {said[f"test-1-{number:08}"] for number in (4, 5, 6)}
    assert any("beyond its point" in why for why in later)
    assert not any("next plate" in why for why in later), "nothing lies before them any more"
