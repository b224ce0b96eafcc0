"""One contract for every camera driver, then what each has of its own."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from camera_peers import PEERS, Peer
from pydantic import TypeAdapter

from drivers.camera import Camera, EndOfSource, Frame, open_camera
from drivers.camera import genicam as genicam_driver
from drivers.camera.recorder import Bounds, StripRecorder
from drivers.camera.settings import CameraSettings
from drivers.errors import DeviceLost, DeviceNotFound, DeviceRefused

SETTINGS: TypeAdapter[Any] = TypeAdapter(CameraSettings)
SIMULATED: dict[str, Any] = {
    "type": "simulated",
    "width": 384,
    "frame_height": 32,
    "line_rate_hz": 20_000.0,
    "bank_plates": 2,
    "specimen": {
        "width_mm": 28.0,
        "length_mm": 26.0,
        "gap_mm": 10.0,
        "lateral_offset_mm": 1.0,
    },
}


def simulated(**changes: Any) -> Camera:
    return open_camera(SETTINGS.validate_python({**SIMULATED, **changes}))


def pictures(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        picture = rng.integers(80, 160, (100, 200 + 20 * number), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def record(folder: Path, frames: int = 30) -> list[Frame]:
    """Record frames of the simulated belt; copies of what was recorded."""
    taken = []
    with simulated(is_paced=False) as camera:
        camera.start()
        writer = StripRecorder(folder, camera.info, Bounds(10**8, 0), pytest.fail)
        into = np.empty(camera.info.max_frame_bytes, np.uint8)
        for _ in range(frames):
            frame = camera.grab(into, 1.0)
            assert frame is not None
            writer.append(frame)
            taken.append(frame)
            into = np.empty_like(into)
        writer.close()
    return taken


def make_simulated(folder: Path) -> Camera:
    return simulated()


def make_pictures(folder: Path) -> Camera:
    settings = {"type": "replay", "path": str(pictures(folder / "p")), "frame_height": 32}
    return open_camera(SETTINGS.validate_python({**settings, "is_loop": True}))


def make_strip(folder: Path) -> Camera:
    record(folder / "strip")
    settings = {"type": "replay", "path": str(folder / "strip"), "is_loop": True}
    return open_camera(SETTINGS.validate_python(settings))


Make = Callable[[Path], Camera]
_OWN_DRIVERS = {"simulated": make_simulated, "pictures": make_pictures, "strip": make_strip}


@pytest.fixture(params=[*_OWN_DRIVERS, *(pytest.param(peer, id=peer.name) for peer in PEERS)])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Opens the camera; what a peer needs beside it runs as long as the test."""
    if not isinstance(request.param, Peer):
        yield _OWN_DRIVERS[request.param]
        return
    with request.param.running() as settings:
        yield lambda folder: open_camera(SETTINGS.validate_python(settings))


def grab(camera: Camera, count: int) -> list[Frame]:
    """The next frames, each in memory of its own."""
    frames = []
    while len(frames) < count:
        frame = camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 2.0)
        assert frame is not None, "no frame within 2 s"
        frames.append(frame)
    return frames


# --- the contract -------------------------------------------------------------------------------


def test_frames_are_what_the_info_says(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as camera:
        camera.start()
        for frame in grab(camera, 5):
            assert frame.pixels.dtype == np.uint8
            assert frame.pixels.flags.c_contiguous
            assert frame.pixels.shape == (camera.info.frame_height, camera.info.width)
            assert frame.width == camera.info.width
            assert frame.pixel_format == camera.info.pixel_format == "Mono8"
            assert not frame.is_incomplete


def test_a_frame_lies_in_the_callers_buffer(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as camera:
        camera.start()
        into = np.empty(camera.info.max_frame_bytes, np.uint8)
        frame = camera.grab(into, 2.0)
        assert frame is not None
        assert np.shares_memory(frame.pixels, into)
        before = frame.pixels.copy()
        other = np.empty_like(into)
        for _ in range(4):
            camera.grab(other, 2.0)
        assert np.array_equal(frame.pixels, before), "the camera wrote into a buffer given back"


def test_ids_and_times_go_up(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as camera:
        camera.start()
        before_ns = time.monotonic_ns()
        frames = grab(camera, 6)
        ids = [frame.frame_id for frame in frames]
        times = [frame.timestamp_ns for frame in frames]
        assert ids == sorted(set(ids))
        assert times == sorted(times)
        assert times[-1] <= time.monotonic_ns()
        assert times[-1] > before_ns


def test_acquisition_can_be_started_again(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as camera:
        camera.start()
        first = grab(camera, 2)[0].frame_id
        camera.stop()
        camera.start()
        assert grab(camera, 1)[0].frame_id <= first + 1


def test_misuse_is_an_error(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as camera:
        with pytest.raises(RuntimeError, match="start"):
            camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 0.1)
        camera.start()
        with pytest.raises(ValueError, match="may have"):
            camera.grab(np.empty(10, np.uint8), 0.1)
        camera.stop()
        camera.stop()
        camera.close()
        camera.close()


# --- simulated ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_belt() -> None:
    def belt(seed: int) -> np.ndarray[Any, Any]:
        with simulated(is_paced=False, seed=seed) as camera:
            camera.start()
            return np.concatenate([frame.pixels for frame in grab(camera, 20)])

    assert np.array_equal(belt(4), belt(4))
    assert not np.array_equal(belt(4), belt(5))


def test_truth_is_where_the_plate_begins() -> None:
    with simulated(is_paced=False) as camera:
        camera.start()
        frames = grab(camera, 60)
    strip = np.concatenate([frame.pixels for frame in frames])
    bright = (strip > 32).sum(axis=1) > 0
    starts = np.flatnonzero(bright[1:] & ~bright[:-1]) + 1
    told = [
        frame.encoder_value + truth.row
        for frame in frames
        if frame.encoder_value is not None
        for truth in frame.truth
    ]
    assert told == starts.tolist()
    assert [t.ordinal for f in frames for t in f.truth] == list(range(1, len(told) + 1))
    for frame in frames:
        assert frame.plate_counter == sum(start < frame.encoder_value for start in told)
    assert {t.is_defective for f in frames for t in f.truth} == {True, False}


def test_frames_not_taken_in_time_are_lost_and_counted() -> None:
    with simulated(line_rate_hz=3200.0) as camera:
        camera.start()
        first = grab(camera, 1)[0]
        time.sleep(1.0)
        later = grab(camera, 2)[-1]
    assert later.frame_id - first.frame_id > 20


def test_a_belt_file_outlives_its_cameras(tmp_path: Path) -> None:
    path = tmp_path / "belt.json"
    path.write_text(json.dumps({"epoch_monotonic_ns": time.monotonic_ns()}))
    encoders = []
    for _ in range(2):
        with simulated(belt_file=str(path)) as camera:
            camera.start()
            encoders.append(grab(camera, 1)[0].encoder_value)
        time.sleep(0.1)
    assert encoders[1] - encoders[0] >= 0.1 * 20_000 - 64
    path.write_text("{}")
    with pytest.raises(DeviceRefused, match=r"belt\.json"):
        simulated(belt_file=str(path))


def faulty(fault: str, count: int = 8, **more: Any) -> list[Frame]:
    with simulated(is_paced=False, faults={fault: [4], **more}) as camera:
        camera.start()
        return grab(camera, count)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("drop_frames", lambda f: [x.frame_id for x in f] == [0, 1, 2, 3, 5, 6, 7, 8]),
        ("drop_scan_lines", lambda f: f[4].height == 28 and not f[4].is_incomplete),
        ("truncate", lambda f: f[4].height == 16 and f[4].is_incomplete),
        ("duplicate", lambda f: [x.frame_id for x in f] == [0, 1, 2, 3, 4, 4, 5, 6]),
        ("black", lambda f: not f[4].pixels.any() and f[5].pixels.any()),
        ("saturated", lambda f: f[4].pixels.min() == 255 and f[5].pixels.min() < 255),
        ("stuck", lambda f: np.array_equal(f[3].pixels, f[4].pixels) and f[4].frame_id == 4),
        ("wrong_width", lambda f: f[4].width == 192 and f[4].pixels.shape == (32, 192)),
        ("wrong_pixel_format", lambda f: f[4].pixel_format == "Mono12"),
    ],
)
def test_each_fault_touches_its_frame_only(
    fault: str, check: Callable[[list[Frame]], bool]
) -> None:
    frames = faulty(fault)
    assert check(frames)
    clean = faulty("drop_frames", count=3)
    for frame, other in zip(frames[:3], clean, strict=True):
        assert np.array_equal(frame.pixels, other.pixels)


def test_a_stall_loses_what_passes_meanwhile() -> None:
    with simulated(faults={"stall": [4], "stall_s": 0.3}) as camera:
        camera.start()
        frames = grab(camera, 6)
    gap = frames[4].frame_id - frames[3].frame_id
    assert gap >= 0.3 * 20_000 / 32


def test_a_disconnect_is_seen_and_stays() -> None:
    with simulated(is_paced=False, faults={"disconnect": [4]}) as camera:
        camera.start()
        grab(camera, 4)
        for _ in range(2):
            with pytest.raises(DeviceLost, match="SIM-1"):
                camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 1.0)


# --- replay -------------------------------------------------------------------------------------


def test_a_recorded_strip_plays_back_bit_by_bit(tmp_path: Path) -> None:
    recorded = record(tmp_path / "strip")
    settings = {"type": "replay", "path": str(tmp_path / "strip")}
    with open_camera(SETTINGS.validate_python(settings)) as camera:
        camera.start()
        played = grab(camera, len(recorded))
        with pytest.raises(EndOfSource):
            camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 0.1)
    for old, new in zip(recorded, played, strict=True):
        assert np.array_equal(old.pixels, new.pixels)
        assert (old.frame_id, old.encoder_value, old.plate_counter, old.truth) == (
            new.frame_id,
            new.encoder_value,
            new.plate_counter,
            new.truth,
        )


def test_pictures_are_played_whole_between_stretches_of_belt(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    settings = {"type": "replay", "path": str(folder), "frame_height": 32, "gap_scan_lines": 50}
    with open_camera(SETTINGS.validate_python(settings)) as camera:
        camera.start()
        frames = []
        while True:
            try:
                frames += grab(camera, 1)
            except EndOfSource:
                break
    strip = np.concatenate([frame.pixels for frame in frames])
    first = cv2.imread(str(folder / "0.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(strip[50:150, :200], first)
    assert 0 < strip[:50].min() <= strip[:50].max() < 32


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_what_cannot_be_replayed_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DeviceRefused, match=str(tmp_path)):
        open_camera(SETTINGS.validate_python({"type": "replay", "path": str(tmp_path)}))
    with pytest.raises(DeviceNotFound, match="nowhere"):
        open_camera(SETTINGS.validate_python({"type": "replay", "path": "/nowhere"}))


# --- genicam ------------------------------------------------------------------------------------


def genicam(**changes: Any) -> Camera:
    settings = {"type": "genicam", "producer": "viky", "serial": "1", **changes}
    return open_camera(SETTINGS.validate_python(settings))


def test_a_missing_camera_names_what_was_looked_for_and_found() -> None:
    with pytest.raises(DeviceNotFound, match=r"'77'.*found: 0, 1, 2"):
        genicam(serial="77")
    with pytest.raises(DeviceNotFound, match=r"/no/such\.cti"):
        genicam(producer="/no/such.cti")


def test_a_library_that_is_no_producer_is_refused(tmp_path: Path) -> None:
    library = Path(cv2.__file__).parent
    victim = next(library.glob("*.so"))
    (tmp_path / "bad.cti").write_bytes(victim.read_bytes())
    with pytest.raises((DeviceRefused, DeviceNotFound), match=r"bad\.cti"):
        genicam(producer=str(tmp_path / "bad.cti"))


def test_features_are_applied_and_read_back() -> None:
    with genicam(features={"Width": 240, "Height": 120}) as camera:
        assert (camera.info.width, camera.info.frame_height) == (240, 120)
        assert camera.info.features == {"Width": "240", "Height": "120"}
        assert len(camera.info.producer_sha256 or "") == 64
        assert camera.info.line_rate_hz is None


@pytest.mark.parametrize(("name", "value"), [("Width", 99_999), ("NoSuchFeature", 1)])
def test_a_refused_feature_is_named(name: str, value: int) -> None:
    with pytest.raises(DeviceRefused, match=name):
        genicam(features={name: value})


def test_a_slow_reader_sees_the_loss_in_the_ids() -> None:
    with genicam(buffers=4, features={"Width": 240, "Height": 120}) as camera:
        camera.start()
        grab(camera, 1)
        time.sleep(1.0)
        ids = [frame.frame_id for frame in grab(camera, 8)]
    steps = [after - before for before, after in itertools.pairwise(ids)]
    assert min(steps) > 0
    assert max(steps) > 1, "four buffers do not hold a second"


class FakeBuffer:
    """What a GenTL producer hands over, as harvesters shows it."""

    pixel_format = 0x01080001  # PFNC: Mono8
    image_offset = 0
    width, height = 240, 120
    has_chunks = False

    def __init__(self, rows: int, is_complete: bool = True) -> None:
        self.raw_buffer = np.arange(240 * 120, dtype=np.uint32).astype(np.uint8)
        self.delivered_image_height = rows
        self.frame_id = 7
        self.is_queued = False
        self.parent = self
        self._is_complete = is_complete

    def is_complete(self) -> bool:
        return self._is_complete

    def is_containing_chunk_data(self) -> bool:
        return self.has_chunks

    def queue_buffer(self, buffer: FakeBuffer) -> None:
        assert buffer is self
        self.is_queued = True


class FakeMonitor:
    """The producer's new-buffer event: the buffers it is given, then nothing more."""

    def __init__(self, *buffers: FakeBuffer) -> None:
        self._waiting = list(buffers)
        self.buffer: FakeBuffer | None = None

    def update_event_data(self, timeout_ms: int) -> None:
        from genicam.gentl import TimeoutException

        if not self._waiting:
            raise TimeoutException("nothing came")
        self.buffer = self._waiting.pop(0)


@pytest.mark.parametrize(
    ("rows", "is_complete"), [(120, False), (50, False), (50, True), (0, True)]
)
def test_an_incomplete_or_short_buffer_is_marked_and_holds_nothing_stale(
    rows: int, is_complete: bool
) -> None:
    with genicam(features={"Width": 240, "Height": 120}) as camera:
        camera.start()
        buffer = FakeBuffer(rows, is_complete)
        acquirer = camera._acquirer
        real, acquirer._new_buffer_event_monitor_dict = (
            acquirer._new_buffer_event_monitor_dict,
            {0: FakeMonitor(buffer)},
        )
        into = np.full(camera.info.max_frame_bytes, 255, np.uint8)
        frame = camera.grab(into, 1.0)
        acquirer._new_buffer_event_monitor_dict = real
    assert frame is not None
    assert frame.is_incomplete
    assert frame.height == rows
    assert buffer.is_queued, "it goes back to the producer whatever it was"


def handed_over(*buffers: FakeBuffer) -> list[Frame]:
    """What the driver makes of these buffers."""
    with genicam(features={"Width": 240, "Height": 120}) as camera:
        camera.start()
        acquirer = camera._acquirer
        real, acquirer._new_buffer_event_monitor_dict = (
            acquirer._new_buffer_event_monitor_dict,
            {0: FakeMonitor(*buffers)},
        )
        frames = grab(camera, len(buffers))
        acquirer._new_buffer_event_monitor_dict = real
    return frames


class Leaderless(FakeBuffer):
    """Its first packet was lost, and with it what the buffer looks like."""

    @property
    def width(self) -> int:
        raise OSError("not available")


def test_a_frame_whose_leader_was_lost_is_incomplete_and_in_its_place() -> None:
    before, lost, zero, after = (
        FakeBuffer(120),
        Leaderless(0, is_complete=False),
        FakeBuffer(0, is_complete=False),
        FakeBuffer(120),
    )
    zero.width = zero.pixel_format = 0
    for number, buffer in enumerate([before, lost, zero, after]):
        buffer.frame_id = 7 + number
    frames = handed_over(before, lost, zero, after)
    assert [frame.frame_id for frame in frames] == [0, 1, 2, 3]
    assert [frame.is_incomplete for frame in frames] == [False, True, True, False]
    assert [frame.height for frame in frames] == [120, 0, 0, 120]
    times = [frame.timestamp_ns for frame in frames]
    assert times == sorted(times)
    assert lost.is_queued
    assert zero.is_queued


def test_a_device_clock_that_begins_anew_does_not_set_frames_back() -> None:
    buffers = [FakeBuffer(120) for _ in range(4)]
    for number, (buffer, ns) in enumerate(zip(buffers, [900, 950, 10, 60], strict=True)):
        buffer.frame_id, buffer.timestamp_ns = number, ns * 1_000_000
    before_ns = time.monotonic_ns()
    times = [frame.timestamp_ns for frame in handed_over(*buffers)]
    assert times == sorted(times)
    assert times[2] >= before_ns


def test_padding_beside_scan_lines_is_left_out() -> None:
    buffer = FakeBuffer(100)
    buffer.padding_x = 8
    (frame,) = handed_over(buffer)
    assert frame.pixels.shape == (100, 240)
    assert np.array_equal(frame.pixels, buffer.raw_buffer[: 100 * 248].reshape(100, 248)[:, :240])


class EncoderNodes:
    """A camera's features with a frame's chunks, its encoder triggering scan lines of 2 counts."""

    def __init__(self, least: int, most: int) -> None:
        selectors = SimpleNamespace(selecting_features=[SimpleNamespace(value="")])
        self.count = SimpleNamespace(value=0, min=least, max=most)
        self._nodes = {
            "ChunkModeActive": SimpleNamespace(value=True),
            "TriggerSource": SimpleNamespace(value="Encoder0", node=selectors),
            "TriggerMode": SimpleNamespace(value="On", node=selectors),
            "EncoderDivider": SimpleNamespace(value=2),
            "ChunkEncoderValue": self.count,
        }

    def has_node(self, name: str) -> bool:
        return name in self._nodes

    def get_node(self, name: str) -> SimpleNamespace:
        return self._nodes[name]


def scan_lines_counted(least: int, most: int, counts: list[int]) -> list[int | None]:
    """What the driver makes of a camera's counts, frame by frame."""
    nodes = EncoderNodes(least, most)
    chunks = genicam_driver._Chunks(nodes)
    acquirer = SimpleNamespace(_update_chunk_data=lambda **_: None)
    found = []
    for value in counts:
        nodes.count.value = value
        buffer = FakeBuffer(120)
        buffer.has_chunks = True
        found.append(chunks.read(acquirer, buffer)[0])
    return found


LONG = (-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("range_", "counts", "last"),
    [
        ((0, 2**32 - 1), [2**32 - 300, 2**32 - 100, 100, 300], 2**32 + 300),
        ((0, 2**32 - 1), [100, 2**32 - 100], -100),  # the belt turned back
        ((-(2**31), 2**31 - 1), [2**31 - 100, 100 - 2**31, 300 - 2**31], 2**31 + 300),
        ((0, 2**16 - 1), [2**16 - 1000, 1000, 2**15, 2**16 - 900, 900], 2**17 + 900),
        (LONG, [2**32 - 100, 100], 2**32 + 100),  # 32 bits behind a wider register
        (LONG, [2**32 - 100, 2**32 + 100], 2**32 + 100),
        ((0, 2**32 - 1), [2**31, 0, 200], 200),  # set back
        ((0, 2**32 - 1), [900, 0, 200], 200),
    ],
)
def test_an_encoder_counts_past_the_end_of_its_counter(
    range_: tuple[int, int], counts: list[int], last: int
) -> None:
    assert scan_lines_counted(*range_, counts)[-1] == last // 2


def test_an_encoder_whose_range_is_not_told_is_one_of_32_bits() -> None:
    nodes = EncoderNodes(0, 0)
    del nodes.count.min
    counter = genicam_driver._Counter(nodes.count)
    assert [counter.counted(value) for value in (2**32 - 1, 1)] == [2**32 - 1, 2**32 + 1]


class WithoutDeliveredHeight(FakeBuffer):
    """Of a producer that lacks it, and calls a buffer complete that was cut short."""

    def __init__(self, rows: int, size_filled: int) -> None:
        super().__init__(rows)
        self.height = rows
        del self.delivered_image_height
        self.size_filled = size_filled


@pytest.mark.parametrize(
    ("size_filled", "rows"),
    [
        (240 * 50, 50),
        (240 * 50 + 239, 50),
        (240 * 120, 120),
        (240 * 120 + 40, 120),  # and chunks
        (0, 120),  # many do not say
    ],
)
def test_only_what_was_filled_is_taken(size_filled: int, rows: int) -> None:
    (frame,) = handed_over(WithoutDeliveredHeight(120, size_filled))
    assert frame.height == rows
    assert frame.is_incomplete == (rows < 120)


def test_the_last_scan_lines_padding_need_not_be_filled() -> None:
    buffer = WithoutDeliveredHeight(100, 99 * 248 + 240)
    buffer.padding_x = 8
    (frame,) = handed_over(buffer)
    assert frame.height == 100


def losing(node_map: object) -> str:
    """What is said of a silent camera with these features, which must be lost within a second."""
    with genicam(features={"Width": 240, "Height": 120}) as camera:
        camera.start()
        real = camera._acquirer
        camera._acquirer = SimpleNamespace(
            remote_device=SimpleNamespace(node_map=node_map),
            _new_buffer_event_monitor_dict={0: FakeMonitor()},
        )
        started = time.monotonic()
        into = np.empty(camera.info.max_frame_bytes, np.uint8)
        with pytest.raises(DeviceLost) as lost:
            camera.grab(into, 5.0)
        assert time.monotonic() - started < 1.0
        with pytest.raises(DeviceLost):
            camera.grab(into, 0.1)
        camera._acquirer = real
    return str(lost.value)


def test_a_camera_that_answers_no_register_is_lost_within_a_second() -> None:
    """A disconnect looks like a camera without frames; only its registers tell."""

    class Unplugged:
        @property
        def Width(self) -> object:  # SFNC's name
            raise OSError("the device does not answer")

    assert "does not answer" in losing(Unplugged())


def test_a_camera_that_was_reset_is_lost_within_a_second() -> None:
    """Its power was off for a moment: it answers, but acquires nothing and is set as new."""
    width = SimpleNamespace(get_value=lambda ignore_cache: 400)
    assert "Width is 400, not 240" in losing(SimpleNamespace(Width=width))
