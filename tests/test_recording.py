"""Recorded strips: the ring on the disk, what a kill or a bad disk leaves of it, and a station over
the replay of what a station recorded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from station_rig import FRAME_HEIGHT, LINE_RATE_HZ, Json, Rig, children, wait_until

from drivers.camera import Break, CameraInfo, EndOfSource, Frame, PlateTruth, open_camera
from drivers.camera.recorder import Bounds, StripRecorder
from drivers.camera.recording import (
    RecordedFrame,
    RecordedStrip,
    RecordingError,
    segments_in,
    to_line,
)
from drivers.camera.settings import CameraSettings, SimulatedCameraSettings
from drivers.camera.simulated import Slots
from drivers.errors import DeviceRefused

SETTINGS: TypeAdapter[Any] = TypeAdapter(CameraSettings)
INFO = CameraInfo("simulated", "VQI", "a test", "T-1", 64, 16, "Mono8", 1000.0)
AMPLE = Bounds(10**8, 0)


def frame_of(number: int, height: int = 16, width: int = 64, **header: Any) -> Frame:
    """A frame whose pixels follow from its number."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width), np.uint8)
    return Frame(pixels, width, number, 10**9 + 10**7 * number, **header)


def write(folder: Path, frames: range, bounds: Bounds = AMPLE) -> None:
    """Record frames without any being lacking."""
    recorder = StripRecorder(folder, INFO, bounds, pytest.fail)
    for number in frames:
        wait_until(lambda n=number: recorder.counts.frames >= n - frames.start - 4, 10.0, "room")
        recorder.append(frame_of(number))
    recorder.close()


def read(folder: Path) -> list[Frame | Break]:
    """What a recording holds, damaged pixels as breaks; frames in memory of their own."""
    items: list[Frame | Break] = []
    for item in RecordedStrip(folder).items():
        is_frame = isinstance(item, RecordedFrame)
        items.append(item.read(np.empty(2 * 64 * 16, np.uint8)) if is_frame else item)
    return items


def ids(items: list[Frame | Break]) -> list[int]:
    return [item.frame_id for item in items if isinstance(item, Frame)]


def kinds(items: list[Frame | Break]) -> list[str]:
    return [item.kind for item in items if isinstance(item, Break)]


def is_same(old: Frame, new: Frame) -> bool:
    headers = [asdict(replace(frame, pixels=None, breaks=())) for frame in (old, new)]  # type: ignore[arg-type]
    return np.array_equal(old.pixels, new.pixels) and headers[0] == headers[1]


# --- the ring -----------------------------------------------------------------------------------

FRAMES = st.builds(
    frame_of,
    number=st.integers(0, 9),
    height=st.integers(0, 16),
    width=st.integers(1, 128),
    pixel_format=st.sampled_from(["Mono8", "Mono12"]),
    is_incomplete=st.booleans(),
    encoder_value=st.none() | st.integers(-(2**40), 2**40),
    plate_counter=st.none() | st.integers(0, 2**40),
    truth=st.just(()) | st.builds(lambda row: (PlateTruth(3, row),), st.integers(0, 15)),
)
BREAKS = st.builds(Break, st.sampled_from(["lost", "belt_stopped", "ended"]), st.text(max_size=9))


@settings(max_examples=25, deadline=None)
@given(st.lists(FRAMES | BREAKS, min_size=1, max_size=12))
def test_what_was_recorded_is_what_is_played(items: list[Frame | Break]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        recorder = StripRecorder(Path(name), INFO, AMPLE, pytest.fail)
        for item in items:
            (recorder.append if isinstance(item, Frame) else recorder.mark)(item)
        recorder.close()
        if not any(isinstance(item, Frame) for item in items):
            with pytest.raises(RecordingError, match="without a whole frame"):
                RecordedStrip(Path(name))
            return
        for old, new in zip(items, read(Path(name)), strict=True):
            assert old == new if isinstance(old, Break) else is_same(old, new)


def test_the_ring_stays_within_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    bounds = Bounds(200_000, 0)
    recorder = StripRecorder(tmp_path, INFO, bounds, pytest.fail)
    for number in range(600):
        wait_until(lambda n=number: recorder.counts.frames >= n - 4, 10.0, "room")
        recorder.append(frame_of(number))
        assert disk_bytes(tmp_path) <= bounds.max_bytes
    recorder.close()
    items = read(tmp_path)
    first = items.pop(0)
    assert isinstance(first, Break)
    assert "overwritten" in first.text
    assert ids(items) == list(range(600 - len(items), 600))
    assert len(items) > 120
    assert all(is_same(frame_of(item.frame_id), item) for item in items)


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take; some may be deleted meanwhile."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_closed_recording_takes_no_more_disk_than_it_holds(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    assert (tmp_path / "strip-000001.raw").stat().st_size == 5 * 16 * 64


def test_the_next_run_goes_on_with_the_recording(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    write(tmp_path, range(3))
    items = read(tmp_path)
    assert ids(items) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert kinds(items) == ["started"]


def test_what_is_no_recording_to_go_on_with_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, range(300))
    cases = {
        "T-1 \\(64 x 16 px": (replace(INFO, width=32), AMPLE),
        "recording of T-1": (replace(INFO, serial="T-2"), AMPLE),
        "the camera is .* features": (replace(INFO, features={"ExposureTime": "20"}), AMPLE),
        "more than the bound": (INFO, Bounds(100_000, 0)),
        "do not fit": (INFO, Bounds(10**18, 0)),
        "left for the station": (INFO, Bounds(10**8, 10**18)),
    }
    before = read(tmp_path)
    for words, (info, bounds) in cases.items():
        with pytest.raises(RecordingError, match=f"{tmp_path}.*{words}"):
            StripRecorder(tmp_path, info, bounds, pytest.fail)
    with pytest.raises(RecordingError, match="takes 1"):
        StripRecorder(tmp_path / "tiny", replace(INFO, frame_height=10**6), AMPLE, pytest.fail)
    assert ids(read(tmp_path)) == ids(before)


def test_frames_that_the_disk_did_not_take_are_named(tmp_path: Path) -> None:
    """More frames at once than slots: no disk takes them so fast."""
    info = replace(INFO, width=4096, frame_height=256)
    said: list[str] = []
    recorder = StripRecorder(tmp_path, info, AMPLE, said.append, queue_bytes=1)
    pixels = np.zeros((256, 4096), np.uint8)
    for number in range(200):
        recorder.append(Frame(pixels, 4096, number, number))
    recorder.close()
    counts = recorder.counts
    assert counts.lacking_frames > 0
    assert counts.frames + counts.lacking_frames == 200
    assert len(said) == 1
    assert "lacks frames from" in said[0]
    expected = 0
    for item in RecordedStrip(tmp_path).items():
        if isinstance(item, Break):
            assert (item.kind, item.frames > 0) == ("lost", True)
            expected += item.frames
        else:
            assert item.header["frame_id"] == expected
            expected += 1
    assert expected == 200


# --- kills and bad disks ------------------------------------------------------------------------

_RECORD_WITHOUT_END = """
import sys, time, itertools
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_recording import INFO, frame_of
from drivers.camera.recorder import Bounds, StripRecorder
recorder = StripRecorder(Path({folder!r}), INFO, Bounds(400_000, 0), print)
for number in itertools.count():
    while recorder.counts.frames < number - 4:
        time.sleep(0)
    recorder.append(frame_of(number))
    if number == 20:
        print("recording", flush=True)
"""


@pytest.mark.parametrize("after_frames", [0, 37, 400])
def test_a_kill_costs_no_whole_frame(tmp_path: Path, after_frames: int) -> None:
    script = _RECORD_WITHOUT_END.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"recording\n"
        newest = f"strip-{1 + after_frames // 20:06d}.jsonl"
        wait_until((tmp_path / newest).exists, 20.0, newest)
        process.send_signal(signal.SIGKILL)
    before = [item for item in read(tmp_path) if isinstance(item, Frame)]
    first = before[0].frame_id
    assert ids(before) == list(range(first, first + len(before)))
    assert all(is_same(frame_of(frame.frame_id), frame) for frame in before)
    write(tmp_path, range(3), Bounds(10**6, 0))
    raw_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.raw"))
    assert raw_bytes == (len(before) + 3) * 16 * 64, "what a kill left unused is given back"
    after = read(tmp_path)
    assert ids(after) == [*ids(before), 0, 1, 2]
    assert kinds(after)[-1] == "started"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_played(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = _sound(tmp_path_factory)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    sound = path.read_bytes()
    at = data.draw(st.integers(0, len(sound) - 1))
    flipped = sound[at] ^ (1 << data.draw(st.integers(0, 7)))
    path.write_bytes(sound[:at] + bytes([flipped]) + sound[at + 1 :])
    try:
        items = read(folder)
    finally:
        path.write_bytes(sound)
    assert all(is_same(frame_of(item.frame_id), item) for item in items if isinstance(item, Frame))
    expected = 0
    is_broken = False
    for item in items:
        if isinstance(item, Frame):
            assert is_broken or item.frame_id == expected, "frames are missing and nothing says so"
            expected, is_broken = item.frame_id + 1, False
        else:
            is_broken = True
    assert len(ids(items)) == 60 or kinds(items)


def _sound(factory: Any, made: list[Path] = []) -> Path:  # noqa: B006  once for all examples
    if not made:
        made.append(factory.mktemp("sound"))
        write(made[0], range(60), Bounds(200_000, 0))
        assert len(segments_in(made[0])) > 2
    return made[0]


@pytest.mark.parametrize("missing", [1, 40, 16 * 64 + 1])
def test_a_truncated_segment_plays_its_whole_frames(tmp_path: Path, missing: int) -> None:
    write(tmp_path, range(30))
    raw = tmp_path / "strip-000001.raw"
    os.truncate(raw, raw.stat().st_size - missing)
    items = read(tmp_path)
    whole = 30 - -(-missing // (16 * 64))
    assert ids(items) == list(range(whole))
    assert kinds(items) == ["damaged"] * (30 - whole)


def test_a_missing_segment_is_a_break(tmp_path: Path) -> None:
    write(tmp_path, range(60), Bounds(200_000, 0))
    segments_in(tmp_path)[1].delete()
    items = read(tmp_path)
    assert kinds(items) == ["lost"]
    segments_in(tmp_path)[1].pixels.unlink()
    assert kinds(read(tmp_path)) == ["lost", "damaged"]


def test_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    headers = tmp_path / "strip-000001.jsonl"
    lines = headers.read_bytes().splitlines(keepends=True)
    lines[0] = to_line({"format": "vqi-strip", "version": 3, "camera": {}})
    headers.write_bytes(b"".join(lines))
    with pytest.raises(DeviceRefused, match=r"strip-000001.*version 3") as refused:
        replay(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_recording_of_version_1_still_plays(tmp_path: Path) -> None:
    frames = [frame_of(number) for number in range(4)]
    lines = [json.dumps(asdict(INFO))]
    for place, frame in enumerate(frames):
        header = asdict(replace(frame, pixels=np.empty(0))) | {"offset": place * frame.pixels.size}
        del header["pixels"], header["breaks"]
        lines.append(json.dumps(header | {"shape": frame.pixels.shape}))
    (tmp_path / "frames.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "strip.raw").write_bytes(b"".join(f.pixels.tobytes() for f in frames)[:-100])
    played, _ = play(replay(tmp_path))
    assert [
        is_same(old, replace(new, timestamp_ns=old.timestamp_ns))
        for old, new in played_with(frames, played)
    ] == [True] * 3
    with pytest.raises(RecordingError, match="earlier version"):
        StripRecorder(tmp_path, INFO, AMPLE, pytest.fail)


def played_with(frames: list[Frame], played: list[Frame]) -> list[tuple[Frame, Frame]]:
    return list(zip(frames, played, strict=False))


def test_a_full_disk_ends_the_recording_and_nothing_else(small_disk: Path) -> None:
    said: list[str] = []
    folder = small_disk / "strip"
    recorder = StripRecorder(folder, INFO, Bounds(10**6, 0), said.append)
    fill(small_disk)
    number = 0
    while not said:
        recorder.append(frame_of(number))
        number += 1
        time.sleep(0.001)
    for _ in range(1000):
        recorder.append(frame_of(number))
    recorder.mark(Break("lost", "the camera is gone"))
    recorder.close()
    assert len(said) == 1
    assert str(folder) in said[0]
    assert "the disk is full" in said[0]
    assert ids(read(folder)) == list(range(recorder.counts.frames))


def fill(disk: Path) -> None:
    """Leave no room for another segment; somebody else may take some meanwhile."""
    room = os.statvfs(disk)
    with contextlib.suppress(OSError):
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))


def test_nobody_waits_for_a_disk_that_hangs(tmp_path: Path) -> None:
    """A pipe that nobody reads, in place of the file: its writer waits for ever."""
    recorder = StripRecorder(tmp_path, INFO, AMPLE, lambda text: None, queue_bytes=1)
    reader, writer = os.pipe()
    os.dup2(writer, descriptor_of(tmp_path / "strip-000001.jsonl"))
    try:
        for number in range(5000):
            recorder.append(frame_of(number))
        assert recorder.counts.lacking_frames > 0
    finally:
        os.close(writer)
        drain = threading.Thread(target=lambda: all(iter(lambda: os.read(reader, 65536), b"")))
        drain.start()
        recorder.close()
        drain.join()
        os.close(reader)


def descriptor_of(path: Path) -> int:
    """This process's open descriptor of a file."""
    opened = (entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return next(int(entry.name) for entry in opened if entry.readlink() == path)


# --- replay -------------------------------------------------------------------------------------


def replay(folder: Path, **options: Any) -> Any:
    return open_camera(SETTINGS.validate_python({"type": "replay", "path": str(folder), **options}))


def play(camera: Any) -> tuple[list[Frame], tuple[Break, ...]]:
    """Every frame of a replay, and what came after the last one."""
    frames = []
    with camera:
        camera.start()
        while True:
            try:
                frame = camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 1.0)
            except EndOfSource as end:
                return frames, end.breaks
            frames += [frame] if frame is not None else []


def test_breaks_come_with_the_frame_after_them(tmp_path: Path) -> None:
    recorder = StripRecorder(tmp_path, INFO, AMPLE, pytest.fail)
    lost, stopped = Break("lost", "gone"), Break("belt_stopped", "no scan line")
    for item in (frame_of(0), lost, stopped, frame_of(1), frame_of(2)):
        (recorder.append if isinstance(item, Frame) else recorder.mark)(item)
    recorder.close()
    frames, after = play(replay(tmp_path))
    assert [frame.breaks for frame in frames] == [(), (lost, stopped), ()]
    assert after == (Break("ended", "the recording ends here"),)


def test_a_damaged_frame_is_a_break_before_the_next(tmp_path: Path) -> None:
    write(tmp_path, range(9))
    raw = tmp_path / "strip-000001.raw"
    pixels = bytearray(raw.read_bytes())
    pixels[3 * 16 * 64] ^= 1
    pixels[4 * 16 * 64] ^= 1
    raw.write_bytes(pixels)
    frames, _ = play(replay(tmp_path))
    assert [frame.frame_id for frame in frames] == [0, 1, 2, 5, 6, 7, 8]
    (known,) = frames[3].breaks
    assert (known.kind, known.frames) == ("damaged", 2)


def test_frames_come_when_they_came_to_the_station(tmp_path: Path) -> None:
    """Frames 10 ms apart; two other runs of the station, of which one has a pause of 300 ms."""
    write(tmp_path, range(5))
    write(tmp_path, range(34, 35))
    recorder = StripRecorder(tmp_path, INFO, AMPLE, pytest.fail)
    for number in (5000, 5030):
        recorder.append(frame_of(number))
    recorder.close()
    started_ms = time.monotonic_ns() / 1e6
    frames, _ = play(replay(tmp_path, timing="recorded"))
    # Late frames are caught up with: none comes before its time.
    came_ms = np.array([frame.timestamp_ns for frame in frames]) / 1e6 - started_ms
    assert (came_ms >= [0, 10, 20, 30, 40, 40, 40, 340]).all(), came_ms
    assert came_ms[-1] < 40_000, "the night between two runs is not waited for"
    with pytest.raises(ValueError, match="exclude each other"):
        replay(tmp_path, timing="recorded", line_rate_hz=100.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeviceRefused, match="only a recorded strip"):
        replay(tmp_path / "empty", timing="recorded")


def test_a_time_that_ran_backwards_does_so_again(tmp_path: Path) -> None:
    recorder = StripRecorder(tmp_path, INFO, AMPLE, pytest.fail)
    for frame in (frame_of(0), replace(frame_of(1), timestamp_ns=5), frame_of(2)):
        recorder.append(frame)
    recorder.close()
    first, older, last = (frame.timestamp_ns for frame in play(replay(tmp_path))[0])
    assert older < first < last


# --- a station over what a station recorded -----------------------------------------------------

MAY_DIFFER = {
    "written_at",
    "opened_ns",
    "last_scan_line_ns",
    "decided_ns",
    "provenance",
    "configuration_sha256",
}
"""Of a record: when it was, and that the camera is a replay."""
_FAULTS = ("drop_frames", "truncate", "duplicate", "stuck", "drop_scan_lines", "stall")


def faulty_belt(folder: Path) -> Rig:
    """A station over a belt with every kind of loss in the middle of a plate of its own."""
    rig = Rig(folder, recipe_lines="[keep]\npass_whole_share = 1.0\n")
    rig.specimen = {"contrast_scale": 3.0, "gap_mm": 60.0}
    rig.station = {"plate_buffers": 12}
    specimen = {"width_mm": 60.0, "length_mm": 40.0, "skew_deg": 0.8, "gap_mm": 60.0}
    belt = {"width": 768, "frame_height": FRAME_HEIGHT, "specimen": specimen}
    slots = Slots(SimulatedCameraSettings.model_validate({"type": "simulated", **belt}))
    middle = [(slots.start(plate) + 200) // FRAME_HEIGHT for plate in range(1, 60)]
    for place, fault in enumerate(_FAULTS):
        rig.faults[fault] = [middle[4 + 3 * place]]
    rig.faults["disconnect"] = [middle[32]]
    # Longer than the recipe's belt_stop_timeout_s.
    rig.faults["stall_s"] = 1.6
    rig.camera["belt_file"] = str(folder / "belt.json")
    return rig


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, Any, Path]:
    """A run over the faulty belt, and where it was recorded."""
    folder = tmp_path_factory.mktemp("live")
    rig, strip = faulty_belt(folder), folder / "strip"
    lead_s = 8
    epoch_ns = time.monotonic_ns() + lead_s * 10**9
    Path(rig.camera["belt_file"]).write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))
    seconds = lead_s + 50 * 1012 / LINE_RATE_HZ
    live = rig.run("--seconds", f"{seconds:.0f}", "--record", str(strip), "--record-gb", "1")
    assert live.status == 0, live.stderr
    return rig, live, strip


@pytest.mark.parametrize("timing", ["fast", pytest.param("recorded", marks=pytest.mark.long)])
def test_a_replay_comes_to_the_same_records(
    recorded: tuple[Rig, Any, Path], tmp_path: Path, timing: str
) -> None:
    rig, live, strip = recorded
    assert live.summary["recording"]["lacking_frames"] == 0
    assert live.summary["recording"]["frames"] == live.summary["frames"]
    reasons = Counter(row["reason"] for row in rig.rows("result"))
    assert {"incomplete", "stuck", "belt stopped", "gap"} <= set(reasons), reasons
    assert live.summary["camera_restarts"] == 1
    assert any("disconnected at belt frame" in row["detail"] for row in rig.rows("result"))
    assert live.summary["pass"] > 3
    assert live.summary["fail"] > 3
    options = {"timing": "recorded"} if timing == "recorded" else {}
    again = Rig(tmp_path, camera={"type": "replay", "path": str(strip), **options})
    again.recipe_lines, again.station = rig.recipe_lines, rig.station
    played = again.run()
    assert played.status == 0, played.stderr
    for kind in ("opened", "result"):
        assert comparable(rig, kind) == comparable(again, kind)
    for figure in ("frames", "lost_frames", "incomplete_frames", "pass", "fail", "undecided"):
        assert played.summary[figure] == live.summary[figure], figure


def comparable(rig: Rig, kind: str) -> list[Json]:
    """Rows in the order of their sequence, without what may differ."""
    rows = sorted(rig.rows(kind), key=lambda row: row["sequence"])
    return [{key: row[key] for key in row.keys() - MAY_DIFFER} for row in rows]


@pytest.mark.long
def test_a_ring_plays_from_its_first_whole_plate(tmp_path: Path) -> None:
    rig = Rig(tmp_path, specimen={"contrast_scale": 3.0})
    rig.recipe_lines = "[keep]\npass_whole_share = 1.0\n"
    rig.camera["is_paced"] = False
    strip = tmp_path / "strip"
    live = rig.run("--plates", "40", "--record", str(strip), "--record-gb", "0.012")
    assert live.status == 0, live.stderr
    assert live.summary["recording"]["lacking_frames"] == 0
    again = Rig(tmp_path / "again", camera={"type": "replay", "path": str(strip)})
    again.folder.mkdir()
    again.recipe_lines = rig.recipe_lines
    played = again.run()
    assert played.status == 0, played.stderr
    by_plate = {row["plate_ordinal"]: row for row in rig.rows("result")}
    rows = sorted(again.rows("result"), key=lambda row: row["sequence"])
    start = rows.pop(0)
    assert (start["verdict"], start["reason"]) == ("UNDECIDED", "gap")
    assert "overwritten" in start["detail"]
    assert 3 < len(rows) < 40
    for row in rows:
        old = by_plate[row["plate_ordinal"]]
        for key in ("verdict", "reason", "tile_scores", "defects", "pixels_sha256", "frame_ids"):
            assert row[key] == old[key], key


def test_a_killed_station_goes_on_recording(tmp_path: Path) -> None:
    rig, strip = Rig(tmp_path), tmp_path / "strip"
    with rig.running("--record", str(strip), "--record-gb", "0.5") as run:
        wait_until(lambda: rig.status().get("plates", 0) > 2, 20.0, "plates")
        os.kill(children(run.pid)["station"], signal.SIGKILL)
        wait_until(lambda: len(segments_in(strip)) == 2, 30.0, "the recording goes on")
        wait_until(lambda: rig.status().get("plates", 0) > 1, 30.0, "plates afterwards")
    again = Rig(tmp_path / "again", camera={"type": "replay", "path": str(strip)})
    again.folder.mkdir()
    played = again.run()
    assert played.status == 0, played.stderr
    details = [row["detail"] for row in again.rows("result")]
    assert "the recording was started again" in details
    live, judged = (
        Counter(r["pixels_sha256"] for r in of.rows("result") if r["verdict"] != "UNDECIDED")
        for of in (rig, again)
    )
    assert live.total() > 3
    assert live <= judged, "a plate that had its verdict is not in the recording"


def test_a_full_disk_does_not_stop_the_station(tmp_path: Path, small_disk: Path) -> None:
    rig = Rig(tmp_path)
    strip = small_disk / "strip"
    with rig.running("--record", str(strip), "--record-gb", "0.02"):
        wait_until(lambda: rig.status().get("plates", 0) > 1, 20.0, "plates")
        fill(small_disk)
        wait_until(lambda: "recording" in rig.status()["problems"], 30.0, "the problem")
        status = rig.status()
        assert "the disk is full" in status["problems"]["recording"]
        assert status["state"] == "OPERATIONAL"
        wait_until(lambda: rig.status()["plates"] > status["plates"] + 3, 20.0, "more plates")
        wait_until(lambda: rig.status()["light"] == "attention", 20.0, "ATTENTION")
    (change,) = [row for row in rig.rows("change") if row["what"] == "recording"]
    assert "the disk is full" in change["detail"]["problem"]
    assert {row["reason"] for row in rig.rows("result")} <= {None, "interrupted"}
    assert RecordedStrip(strip).info.width == 768


def test_a_recording_that_cannot_begin_is_said_at_the_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    refused = rig.run("--plates", "1", "--record", str(tmp_path / "s"), "--record-gb", "1000000")
    assert refused.status == 1
    (line,) = [line for line in refused.stderr.splitlines() if "--record" in line]
    assert "do not fit" in line
    assert refused.records == []


@pytest.fixture
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "record"]


pytestmark = pytest.mark.usefixtures("_no_thread_is_left")
