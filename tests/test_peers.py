"""Cameras behind GenTL producers, those that nobody here wrote among them: what the contract of
every camera does not ask, each producer under a consumer nobody here wrote, and the whole station.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_peers import (
    FAULTS,
    GIGE,
    ONE_OWNER,
    PLATES,
    TIMES,
    WHOLE,
    Json,
    Peer,
    gige_belt,
    gige_camera,
    peers,
    vmbpy,
)
from station_rig import Rig, RunResult, wait_until
from test_camera import SETTINGS, grab, simulated

from drivers.camera import Camera, Frame, open_camera
from drivers.camera.gentl import producer_path
from drivers.errors import DeviceBusy, DeviceLost, DeviceNotFound

LOSS_LIMIT_S = 10.0
"""A producer may hold its caller for as long as it tries again; libaravis does for 2.5 s."""


def opened(settings: Json, **features: Any) -> Camera:
    """The camera, with these features on top."""
    merged = {**settings, "features": {**settings["features"], **features}}
    return open_camera(SETTINGS.validate_python(merged))


def in_another_program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in an interpreter of its own."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


# --- who may have it ----------------------------------------------------------------------------


@peers()
def test_a_second_open_is_busy_and_leaves_the_first_alone(peer: Peer) -> None:
    with peer.running() as settings, opened(settings) as camera:
        camera.start()
        grab(camera, 2)
        with pytest.raises(DeviceBusy):
            opened(settings)
        grab(camera, 2)


_OPEN = """
import json, sys
from pydantic import TypeAdapter
from drivers.camera import open_camera
from drivers.camera.settings import CameraSettings
settings = TypeAdapter(CameraSettings).validate_python(json.loads(sys.argv[1]))
try:
    open_camera(settings).close()
except Exception as error:
    print(type(error).__name__)
else:
    print("opened")
"""


@peers(ONE_OWNER)
def test_a_camera_of_another_program_is_busy_until_it_is_given_back(peer: Peer) -> None:
    with peer.running() as settings:
        with opened(settings) as camera:
            camera.start()
            grab(camera, 1)
            assert in_another_program(_OPEN, json.dumps(settings)).stdout.strip() == "DeviceBusy"
            grab(camera, 1)
        assert in_another_program(_OPEN, json.dumps(settings)).stdout.strip() == "opened"


@peers()
def test_another_serial_is_not_found_and_what_is_there_is_named(peer: Peer) -> None:
    with (
        peer.running() as settings,
        pytest.raises(DeviceNotFound, match=rf"'nobody'.*found: .*{peer.serial}"),
    ):
        opened({**settings, "serial": "nobody"})


# --- frames -------------------------------------------------------------------------------------


@peers(TIMES)
def test_a_frame_has_the_time_it_was_taken_not_the_time_it_was_fetched(peer: Peer) -> None:
    """What waited in the producer is fetched in a burst; its times lie as far apart as before."""
    with peer.running() as settings, opened(settings) as camera:
        camera.start()
        prompt = grab(camera, 21)
        period_ns = (prompt[-1].timestamp_ns - prompt[0].timestamp_ns) / 20
        time.sleep(12 * period_ns / 1e9)
        waited = grab(camera, 9)
    assert waited[-1].timestamp_ns - waited[0].timestamp_ns > 4 * period_ns
    assert [f.timestamp_ns for f in waited] == sorted(f.timestamp_ns for f in waited)


@peers(GIGE)
def test_16_bit_frame_ids_count_on_past_their_end(peer: Peer) -> None:
    """The GigE camera begins near the end of its counter: 1 follows 65535."""
    with peer.running() as settings, opened(settings) as camera:
        camera.start()
        ids = [frame.frame_id for frame in grab(camera, 300)]
        assert camera._ids._wraps == 1, "the camera's counter did not come to its end"
    assert ids == list(range(300))


def is_ramp(frame: Frame) -> bool:
    """aravis's picture: each pixel is one more than that to its left and that above it, of 255."""
    pixels = frame.pixels.astype(np.int16)
    return bool(
        ((pixels[:, 1:] - pixels[:, :-1]) % 255 == 1).all()
        and ((pixels[1:] - pixels[:-1]) % 255 == 1).all()
    )


@peers(GIGE)
def test_packets_lost_on_the_wire_are_seen_in_their_frames(peer: Peer) -> None:
    producer = peer.producer()
    with gige_camera(lost_per_thousand=20), opened(peer.settings(producer)) as camera:
        camera.start()
        frames = grab(camera, 200)
    ids = [frame.frame_id for frame in frames]
    assert all(after > before for before, after in itertools.pairwise(ids))
    whole = [frame for frame in frames if not frame.is_incomplete]
    assert 20 < len(whole) < 180, "25 packets a frame, of which 1 in 50 is lost"
    assert all(is_ramp(frame) for frame in whole)


@peers(FAULTS)
def test_frames_that_our_producer_spoils_are_seen(peer: Peer) -> None:
    faults = {"SimIncompleteFrames": "5", "SimShortFrames": "8", "SimLostFrames": "11"}
    with peer.running() as settings, opened(settings, **faults) as camera:
        camera.start()
        frames = {frame.frame_id: frame for frame in grab(camera, 20)}
    assert set(range(20)) - set(frames) == {11}
    assert [number for number, frame in frames.items() if frame.is_incomplete] == [5, 8]
    assert frames[8].height == frames[0].height // 2


# --- a camera that goes -------------------------------------------------------------------------


def wait_for_loss(camera: Camera) -> None:
    into = np.empty(camera.info.max_frame_bytes, np.uint8)
    started = time.monotonic()

    def grab_on() -> None:
        while time.monotonic() < started + LOSS_LIMIT_S:
            camera.grab(into, 1.0)

    with pytest.raises(DeviceLost, match=camera.info.serial):
        grab_on()
    with pytest.raises(DeviceLost):
        camera.grab(into, 0.1)
    with pytest.raises(DeviceLost):
        camera.start()


@peers(GIGE)
def test_unplugged_it_is_lost_and_found_again(peer: Peer) -> None:
    producer = peer.producer()
    with gige_camera() as plugged:
        camera = opened(peer.settings(producer))
        camera.start()
        grab(camera, 3)
        plugged.kill()
        wait_for_loss(camera)
    with gige_camera():
        camera.stop()
        camera.close()
        with opened(peer.settings(producer)) as again:
            again.start()
            assert len(grab(again, 3)) == 3


@peers(FAULTS)
def test_our_producers_disconnect_is_a_loss(peer: Peer) -> None:
    with (
        peer.running() as settings,
        opened(settings, SimDisconnectFrames="10") as camera,
    ):
        camera.start()
        grab(camera, 3)
        wait_for_loss(camera)


# --- a consumer nobody here wrote ---------------------------------------------------------------

_README = """
import json, sys
from harvesters.core import Harvester

path, serial, features = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
h = Harvester()
h.add_file(path)
h.update()
assert serial in [info.serial_number for info in h.device_info_list]
ia = h.create({"serial_number": serial})
for name, value in features.items():
    ia.remote_device.node_map.get_node(name).value = value
ia.start()
seen = []
for _ in range(5):
    with ia.fetch() as buffer:
        component = buffer.payload.components[0]
        picture = component.data.reshape(component.height, component.width)
        seen.append([*picture.shape, component.data_format, int(picture.max())])
ia.stop()
ia.destroy()
h.reset()
print(json.dumps(seen))
"""
"""The flow that harvesters' own README shows, one with-block a picture."""


@peers()
def test_harvesters_own_flow_works(peer: Peer) -> None:
    with peer.running() as settings:
        path = producer_path(Path(settings["producer"]))
        features = json.dumps(settings["features"])
        done = in_another_program(_README, str(path), peer.serial, features)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 5
    assert {(width, name) for _, width, name, _ in seen} == {(peer.features["Width"], "Mono8")}
    assert max(brightest for *_, brightest in seen) > 0


@peers(WHOLE)
def test_allied_visions_consumer_streams_from_it(peer: Peer) -> None:
    consumer = (Path(__file__).parent / "vmbc_consumer.py").read_text()
    package = str(vmbpy())
    with peer.running() as settings:
        folder = producer_path(Path(settings["producer"])).parent
        features = json.dumps(settings["features"])
        done = in_another_program(consumer, package, str(folder), peer.serial, features)
    assert done.returncode == 0, done.stdout + done.stderr
    frames = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(frames) == 20
    assert {frame["width"] for frame in frames} == {peer.features["Width"]}
    assert {frame["status"] for frame in frames} == {0}
    assert all(b["id"] > a["id"] for a, b in itertools.pairwise(frames))
    assert max(frame["brightest"] for frame in frames) > 0


# --- the whole station --------------------------------------------------------------------------

WIDTH, HEIGHT = 768, 64
"""As wide as the station's belt in tests."""


def station_over(folder: Path, settings: Json) -> Rig:
    features = {**settings["features"], "Width": WIDTH}
    return Rig(folder, camera={**settings, "features": features})


@peers()
def test_the_station_runs_over_it(peer: Peer, tmp_path: Path) -> None:
    with peer.running() as settings:
        rig = station_over(tmp_path, settings)
        with rig.running() as run:
            wait_until(lambda: rig.status()["frames"] > 60, 60.0, "frames")
            status = rig.status()
    assert run.returncode == 0
    assert (status["lost_frames"], status["incomplete_frames"]) == (0, 0)
    assert status["camera_restarts"] == 0
    if PLATES not in peer.abilities:
        assert status["pass"] == 0, "passed what is no plate"


def recorded_belt(folder: Path) -> Path:
    """Scan lines of plates with belt between them, one file."""
    specimen = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 40.0, "lateral_offset_mm": 3.0}
    with simulated(
        is_paced=False,
        width=WIDTH,
        frame_height=HEIGHT,
        bank_plates=4,
        specimen={**specimen, "skew_deg": 0.8, "contrast_scale": 3.0},
    ) as camera:
        camera.start()
        strip = np.concatenate([frame.pixels for frame in grab(camera, 500)])
    path = folder / "strip.raw"
    path.write_bytes(strip.tobytes())
    return path


def station_over_gige(peer: Peer, folder: Path) -> Rig:
    folder.mkdir()
    settings = peer.settings(peer.producer())
    settings["features"] = {**settings["features"], "AcquisitionFrameRate": 60.0}
    return station_over(folder, settings)


def over_gige(peer: Peer, folder: Path, strip: Path, lost_share: float, *options: str) -> RunResult:
    with gige_belt(strip, lost_share):
        return station_over_gige(peer, folder).run(*options)


@peers(GIGE)
def test_plates_over_a_lossy_gige_link_are_judged_whole_or_not_at_all(
    peer: Peer, tmp_path: Path
) -> None:
    """The same belt with and without lost packets: what is decided was seen bit by bit."""
    strip = recorded_belt(tmp_path)
    clean = over_gige(peer, tmp_path / "clean", strip, 0.0, "--plates", "16")
    assert clean.status == 0, clean.stderr
    assert (clean.summary["lost_frames"], clean.summary["incomplete_frames"]) == (0, 0)
    assert {record["verdict"] for record in clean.records} == {"PASS", "FAIL"}
    lossy = over_gige(peer, tmp_path / "lossy", strip, 0.002, "--plates", "16")
    assert lossy.status == 0, lossy.stderr
    assert lossy.summary["incomplete_frames"] > 0
    known = {record["pixels_sha256"]: record["verdict"] for record in clean.records}
    decided = [r for r in lossy.records if r["verdict"] != "UNDECIDED"]
    undecided = [r for r in lossy.records if r["verdict"] == "UNDECIDED"]
    assert decided
    assert undecided
    assert {r["reason"] for r in undecided} <= {"incomplete", "gap"}
    for record in decided:
        assert known.get(record["pixels_sha256"]) == record["verdict"], record["detail"]


@pytest.mark.long
@peers(GIGE)
def test_unplugged_under_the_station_it_is_a_fault_until_it_is_back(
    peer: Peer, tmp_path: Path
) -> None:
    strip = recorded_belt(tmp_path)
    rig = station_over_gige(peer, tmp_path / "station")
    with ExitStack() as plugged:
        plugged.enter_context(gige_belt(strip))
        with rig.running():
            wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
            plugged.close()
            wait_until(lambda: rig.status()["light"] == "fault", 20.0, "FAULT")
            with gige_belt(strip):
                wait_until(lambda: rig.status()["camera_restarts"] == 1, 30.0, "the camera again")
                plates = rig.status()["plates"]
                wait_until(lambda: rig.status()["plates"] > plates + 2, 20.0, "plates afterwards")
    results = rig.rows("result")
    assert len({row["result_id"] for row in results}) == len(results)
    assert {row["reason"] for row in results} <= {None, "incomplete", "gap", "interrupted"}
    assert {row["verdict"] for row in results} >= {"PASS", "UNDECIDED"}
