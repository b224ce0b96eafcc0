"""The GenTL line-scan simulator: under harvesters, and under a consumer of nothing but GenTL."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from drivers.camera.producer import build
from drivers.camera.producer.build import build_producer
from drivers.camera.producer.source import Source, belt_source, memory_source, strip_source
from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import SimulatedCamera
from drivers.errors import DriverMissing
from station.cli.camera import app

if shutil.which("gcc") is None:
    pytest.skip("no gcc: apt-get install gcc libc6-dev", allow_module_level=True)

FOLDER = Path(build.__file__).parent
SERIAL = "VQI-LS-1"
SMALL = SimulatedCameraSettings.model_validate(
    {
        "type": "simulated",
        "width": 384,
        "frame_height": 32,
        "line_rate_hz": 20_000.0,
        "bank_plates": 3,
        "is_paced": False,
        "specimen": {
            "width_mm": 28.0,
            "length_mm": 26.0,
            "gap_mm": 10.0,
            "lateral_offset_mm": 1.0,
        },
    }
)
AT_ONE_ROW_A_LINE = {"AcquisitionLineRate": 20_000.0, "SimBeltSpeed": 2_000.0}
"""With 0.1 mm pixels each scan line falls on a row of the source."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Taken:
    """What a buffer held when it was fetched."""

    pixels: Pixels
    frame_id: int
    timestamp_ns: int
    height: int
    delivered_height: int
    size_filled: int
    is_complete: bool
    chunks: dict[str, int]


class Peer:
    """The camera under harvesters."""

    def __init__(self, acquirer: Any) -> None:
        self.acquirer = acquirer
        self.nodes = acquirer.remote_device.node_map

    def set(self, **features: Any) -> None:
        for name, value in features.items():
            self.nodes.get_node(name).value = value

    def get(self, name: str) -> Any:
        return self.nodes.get_node(name).value

    def execute(self, name: str) -> None:
        self.nodes.get_node(name).execute()

    def start(self) -> None:
        self.acquirer.start()

    def poll(self, timeout_s: float) -> Taken | None:
        """The next buffer, incomplete ones too; None if none comes in time."""
        from genicam.gentl import TimeoutException

        monitor = next(iter(self.acquirer._new_buffer_event_monitor_dict.values()))
        try:
            monitor.update_event_data(int(timeout_s * 1000))
        except TimeoutException:
            return None
        return self._copy(monitor.buffer)

    def take(self, count: int) -> list[Taken]:
        taken = []
        for _ in range(count):
            frame = self.poll(5.0)
            assert frame is not None, f"only {len(taken)} of {count} frames came"
            taken.append(frame)
        return taken

    def _copy(self, buffer: Any) -> Taken:
        raw = np.frombuffer(buffer.raw_buffer, np.uint8)
        rows, width = int(buffer.delivered_image_height), int(buffer.width)
        size = int(buffer.pixel_format >> 16 & 0xFF) // 8
        pixels = raw[: rows * width * size].reshape(rows, width * size).copy()
        self.acquirer._update_chunk_data(buffer=buffer, is_manual=True)
        taken = Taken(
            pixels if size == 1 else pixels.view("<u2"),
            *(int(buffer.frame_id), int(buffer.timestamp_ns), int(buffer.height), rows),
            *(int(buffer.size_filled), bool(buffer.is_complete()), self._chunks()),
        )
        buffer.parent.queue_buffer(buffer)
        return taken

    def _chunks(self) -> dict[str, int]:
        names = ("FrameID", "Timestamp", "EncoderValue", "LineStatusAll", "CounterValue")
        found = {}
        for name in names:
            with suppress(Exception):
                found[name] = int(self.get(f"Chunk{name}"))
        return found


@pytest.fixture(scope="session")
def producer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_producer(tmp_path_factory.mktemp("producer"))


@pytest.fixture(autouse=True)
def _own_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are locked there: other tests, and a station on this machine, have their own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def opened(producer: Path, serial: str = SERIAL, **features: Any) -> Iterator[Peer]:
    from harvesters.core import Harvester

    harvester = Harvester()
    try:
        harvester.add_file(str(producer), check_existence=True)
        harvester.update()
        acquirer = harvester.create({"serial_number": serial})
        peer = Peer(acquirer)
        try:
            peer.set(**features)
            # Enough for a stall of this machine: nothing is lost unless it is meant.
            acquirer.num_buffers = max(16, min(512, 2**26 // peer.get("PayloadSize")))
            yield peer
        finally:
            # Of a device that is gone, harvesters' stop() raises, and its destroy() then works.
            with suppress(Exception):
                acquirer.stop()
            acquirer.destroy()
    finally:
        harvester.reset()


@contextmanager
def source_path(descriptor: int) -> Iterator[str]:
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def on_rows(producer: Path, rows: Pixels, **features: Any) -> Iterator[Peer]:
    """A camera above a belt of these rows, one scan line a row."""
    with (
        source_path(strip_source(rows, 0.1)) as path,
        opened(producer, SimSource=path, **AT_ONE_ROW_A_LINE, **features) as peer,
    ):
        yield peer


def numbered_rows(count: int, width: int = 64) -> Pixels:
    """Rows whose first two pixels tell their number."""
    rows = np.full((count, width), 100, np.uint8)
    rows[:, 0], rows[:, 1] = np.arange(count) // 200, np.arange(count) % 200
    return rows


def row_numbers(pixels: Pixels) -> NDArray[np.int64]:
    return pixels[:, 0].astype(np.int64) * 200 + pixels[:, 1]


def plates_on(width: int = 64) -> Source:
    """Plates of 50 rows of level 200, one every 120 rows of level 10."""
    belt = np.full((1, width), 10, np.uint8)
    return Source(belt, [np.full((50, width), 200, np.uint8)], [(70, 0)], 120, 0.1)


# --- what it is built of --------------------------------------------------------------------------


def test_constants_are_those_of_the_genicam_package() -> None:
    from genicam import gentl

    known = {
        name: int(value)
        for enum in vars(gentl).values()
        if isinstance(enum, type)
        for name, value in vars(enum).items()
        if name.isupper() and isinstance(value, int)
    }
    text = re.sub(r"/\*.*?\*/", "", (FOLDER / "gentl.h").read_text(), flags=re.DOTALL)
    checked_names = 0
    for body in re.findall(r"enum \{(.*?)\}", text, re.DOTALL):
        value = -1
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, given_value = item.partition(" = ")
            value = int(given_value) if given_value else value + 1
            if name in known:
                assert known[name] == value, name
                checked_names += 1
    assert checked_names > 100


def test_an_unchanged_build_is_not_repeated(producer: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(producer.parent, tmp_path / "copy"))
    made = (folder / producer.name).stat().st_mtime_ns
    path = build_producer(folder)
    assert path.stat().st_mtime_ns == made
    build_producer(folder, vendor="Other")
    assert path.stat().st_mtime_ns != made
    assert {file.name for file in folder.iterdir()} == {path.name, f"{path.name}.inputs"}


@pytest.mark.parametrize("vendor", ["", "a" * 33, 'x"', "a/b", "a\nb"])
def test_a_vendor_that_is_no_plain_name_is_refused(vendor: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vendor"):
        build_producer(tmp_path, vendor)


def test_without_gcc_one_line_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriverMissing, match=r"apt-get install gcc"):
        build_producer(tmp_path / "out")
    result = CliRunner().invoke(app, ["producer", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1


def test_the_command_builds_cameras_of_another_vendor(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["producer", "--out", str(tmp_path), "--vendor", "Acme"])
    assert result.exit_code == 0, result.output
    path, export = result.stdout.splitlines()
    assert export == f"export GENICAM_GENTL64_PATH={tmp_path}"
    with opened(Path(path), "Acme-LS-2") as peer:
        assert peer.get("DeviceVendorName") == "Acme"
        assert peer.get("DeviceSerialNumber") == "Acme-LS-2"


# --- features -------------------------------------------------------------------------------------


NOT_AVAILABLE, READ_ONLY, READ_WRITE = 1, 3, 4
"""EAccessMode of GenApi."""


@pytest.mark.parametrize("is_streaming", [False, True])
def test_every_feature_explains_itself_and_takes_its_value_back(
    is_streaming: bool, producer: Path
) -> None:
    locked = {False: READ_WRITE, True: READ_ONLY}[is_streaming]
    modes = {"RO": READ_ONLY, "RW": READ_WRITE, "LOCKED": locked}
    with opened(producer) as peer:
        if is_streaming:
            peer.start()
        for row in feature_rows():
            node = peer.nodes.get_node(row["name"])
            is_chunk, is_command = row["kind"] == "CHUNK", row["kind"] == "COMMAND"
            mode = NOT_AVAILABLE if is_chunk else modes[row["access"]]
            assert (row["name"], node.get_access_mode()) == (row["name"], mode)
            assert node.node.tooltip == row["tooltip"]
            assert getattr(node, "unit", "") == row["unit"]
            if mode == READ_WRITE and not is_command:
                node.value = node.value
            elif not is_chunk and not is_command:
                assert node.value is not None


def test_each_module_has_a_description(producer: Path) -> None:
    with opened(producer) as peer:
        acquirer = peer.acquirer
        assert acquirer.system.node_map.TLID.value == "VQI line-scan simulator"
        assert acquirer.interface.node_map.InterfaceID.value == "vqi-belt"
        assert acquirer.device.node_map.DeviceID.value == SERIAL
        assert acquirer.data_streams[0].node_map.StreamID.value == "vqi-stream"


_ROW = re.compile(
    r"^FEATURE\((?P<name>\w+), (?P<kind>\w+), \"\w+\", (?P<access>\w+), \w+, \"(?P<unit>[^\"]*)\""
    r".*, \w+, \"(?P<tooltip>[^\"]*)\"\)$",
    re.MULTILINE,
)


def feature_rows() -> list[dict[str, str]]:
    return [match.groupdict() for match in _ROW.finditer((FOLDER / "features.def").read_text())]


def table_of_features() -> list[str]:
    return [row["name"] for row in feature_rows()]


def readme_rows() -> list[str]:
    """The feature table of the README as it must be."""
    rows = ["| feature | kind | unit | what |", "|---|---|---|---|"]
    for row in feature_rows():
        access = {"RO": ", read only", "LOCKED": ", locked while streaming"}.get(row["access"], "")
        kind = row["kind"].lower() + access
        rows.append(f"| `{row['name']}` | {kind} | {row['unit']} | {row['tooltip']} |")
    return rows


def test_the_readme_lists_every_feature() -> None:
    assert len(feature_rows()) > 80
    assert "\n".join(readme_rows()) in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("Width", 8),
        ("Width", 4097),
        ("OffsetX", 1),
        ("Height", 0),
        ("AcquisitionLineRate", 100_001.0),
        ("AcquisitionLineRate", 0.0),
        ("ExposureTime", 333.4),
        ("Gain", 25.0),
        ("EncoderDivider", 0),
        ("PixelFormat", "RGB8"),
        ("SimLostFrames", "seven"),
        ("SimBeltStops", "1500"),
        ("SimBeltStops", "1500+300, 1700+10"),
        ("SimSource", "/nowhere"),
        ("DeviceModelName", "mine"),
        ("SensorWidth", 1),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_changes_nothing(
    name: str, bad: Any, producer: Path
) -> None:
    with opened(producer) as peer:
        before = peer.get(name)
        with pytest.raises(Exception, match=r".") as caught:
            peer.set(**{name: bad})
        assert type(caught.value).__module__.startswith(("_genapi", "_gentl", "genicam"))
        assert peer.get(name) == before


def test_bounds_follow_each_other(producer: Path) -> None:
    with opened(producer, Width=1000) as peer:
        assert peer.nodes.OffsetX.max == 3096
        peer.set(OffsetX=96)
        assert peer.nodes.Width.max == 4000
        peer.set(AcquisitionLineRate=50_000.0)
        assert peer.nodes.ExposureTime.max == 20.0
        peer.set(ExposureTime=20.0)
        assert peer.nodes.AcquisitionLineRate.max == 50_000.0
        peer.set(ExposureTime=1.0)
        assert peer.nodes.AcquisitionLineRate.max == 200_000.0
        peer.set(OffsetX=0, Width=4096, PixelFormat="Mono12")
        assert peer.nodes.AcquisitionLineRate.max == pytest.approx(1.2e9 / 8192)


def test_steps_are_rounded_as_cameras_do(producer: Path) -> None:
    with opened(producer, ExposureTime=12.34, Gain=1.26) as peer:
        assert peer.get("ExposureTime") == pytest.approx(12.3)
        assert peer.get("Gain") == pytest.approx(1.3)


def test_each_trigger_has_its_own_settings(producer: Path) -> None:
    with opened(producer) as peer:
        peer.set(TriggerSelector="FrameStart", TriggerMode="On", TriggerSource="Software")
        peer.set(TriggerSelector="LineStart")
        assert (peer.get("TriggerMode"), peer.get("TriggerSource")) == ("Off", "Line0")
        peer.set(TriggerSelector="FrameStart")
        assert (peer.get("TriggerMode"), peer.get("TriggerSource")) == ("On", "Software")


def test_what_sizes_a_frame_is_locked_while_it_streams(producer: Path) -> None:
    with opened(producer) as peer:
        peer.start()
        for name, value in (("Width", 512), ("PixelFormat", "Mono12"), ("SimSource", "")):
            with pytest.raises(Exception, match=r"(?i)writable|access"):
                peer.set(**{name: value})
        peer.set(ExposureTime=20.0)
        peer.acquirer.stop()
        peer.set(Width=512)


def test_payload_size_counts_pixels_and_chunks(producer: Path) -> None:
    with opened(producer, Width=100, Height=10, PixelFormat="Mono12") as peer:
        assert peer.get("PayloadSize") == 2000
        peer.set(ChunkModeActive=True)
        assert peer.get("PayloadSize") == 2040
        peer.set(ChunkSelector="EncoderValue", ChunkEnable=False)
        assert peer.get("PayloadSize") == 2032


def test_timestamps_are_this_hosts_monotonic_clock(producer: Path) -> None:
    with opened(producer, Height=32) as peer:
        before = time.monotonic_ns()
        peer.execute("TimestampLatch")
        after = time.monotonic_ns()
        assert before <= peer.get("TimestampLatchValue") <= after
        peer.start()
        frame = peer.take(1)[0]
        assert after < frame.timestamp_ns <= time.monotonic_ns()


def test_temperature_drifts_and_dark_level_with_it(producer: Path) -> None:
    with opened(producer, Height=16, SimTarget="Dark", SimDarkLevel=8.0) as peer:
        assert peer.get("DeviceTemperature") == 40.0
        peer.start()
        assert peer.take(1)[0].pixels.mean() == pytest.approx(8, abs=0.1)
        peer.set(SimTemperatureDrift=6000.0)
        deadline = time.monotonic() + 10
        while peer.get("DeviceTemperature") < 60 and time.monotonic() < deadline:
            peer.take(1)
        # Frames that waited in the buffers are of colder times.
        warm, level = 8 * 2 ** (20 / 8) - 1, 0.0
        while level <= warm and time.monotonic() < deadline:
            level = peer.take(1)[0].pixels.mean()
        assert level > warm


# --- pixels ---------------------------------------------------------------------------------------


def test_pixels_ids_and_counters_are_the_simulated_cameras(producer: Path) -> None:
    plates, frames = 5, 50
    with source_path(belt_source(SMALL, plates)) as path, SimulatedCamera(SMALL) as camera:
        features = {"SimSource": path, "Height": SMALL.frame_height, "ChunkModeActive": True}
        with opened(producer, **features, **AT_ONE_ROW_A_LINE) as peer:
            assert peer.get("Width") == peer.get("SensorWidth") == SMALL.width
            peer.start()
            camera.start()
            for taken in peer.take(frames):
                frame = camera.grab(np.empty(camera.info.max_frame_bytes, np.uint8), 1.0)
                assert frame is not None
                assert np.array_equal(taken.pixels, frame.pixels)
                assert taken.frame_id == taken.chunks["FrameID"] == frame.frame_id
                assert taken.chunks["EncoderValue"] == frame.encoder_value
                assert taken.chunks["CounterValue"] == frame.plate_counter
    rows = frames * SMALL.frame_height
    assert frame.plate_counter is not None
    assert 0 < frame.plate_counter <= plates < rows


def test_a_belt_repeats_without_end(producer: Path) -> None:
    rows = numbered_rows(1000)
    with on_rows(producer, rows, Height=300) as peer:
        peer.start()
        numbers = np.concatenate([row_numbers(frame.pixels) for frame in peer.take(8)])
    assert np.array_equal(numbers, np.arange(2400) % 1000)


def test_a_later_camera_finds_the_belt_further_on(producer: Path) -> None:
    rows = numbered_rows(30_000)
    epoch_ns = time.monotonic_ns()
    features = {"Height": 100, "SimBeltEpoch": epoch_ns, "ChunkModeActive": True}
    with on_rows(producer, rows, SimLostFrames="0, 1, 2", **features) as peer:
        peer.start()
        frame = peer.take(1)[0]
    first = row_numbers(frame.pixels)[0]
    assert frame.chunks["EncoderValue"] == first
    seen_ns = epoch_ns + (first + 100) * 1e9 / 20_000
    assert frame.timestamp_ns == pytest.approx(seen_ns, abs=2)
    assert first % 100 == 0


def test_exposure_and_gain_act_on_the_pixels(producer: Path) -> None:
    rows = np.full((64, 64), 100, np.uint8)
    with on_rows(producer, rows, Height=16) as peer:
        peer.start()
        assert (peer.take(1)[0].pixels == 100).all()
        for features, level in (
            ({"ExposureTime": 20.0}, 200),
            ({"ExposureTime": 40.0}, 255),
            ({"ExposureTime": 5.0}, 50),
            ({"Gain": 6.0}, 100),
            ({"Gain": 0.0, "SimLightLevel": 150.0}, 75),
            ({"ExposureTime": 10.0, "SimLightLevel": 100.0}, 100),
        ):
            peer.set(**features)
            settled = settle(peer)
            assert abs(settled.astype(int) - level).max() <= 1, features


def settle(peer: Peer) -> Pixels:
    """The pixels of a frame that was begun after all that was set before."""
    now_ns = time.monotonic_ns()
    while True:
        frame = peer.take(1)[0]
        if frame.timestamp_ns - frame.height * 1e9 / 20_000 > now_ns:
            return frame.pixels


def test_mono12_is_mono8_times_16(producer: Path) -> None:
    rows = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    with on_rows(producer, rows, Height=64, PixelFormat="Mono12", OffsetX=0) as peer:
        peer.start()
        frame = peer.take(1)[0]
    assert np.array_equal(frame.pixels, rows.astype(np.uint16) * 16)


def test_offset_chooses_pixels_of_the_sensor(producer: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (100, 64), np.uint8)
    with on_rows(producer, rows, Height=100, Width=16, OffsetX=20) as peer:
        peer.start()
        assert np.array_equal(peer.take(1)[0].pixels, rows[:, 20:36])


def test_optics_show_in_the_crossweb_profile(producer: Path) -> None:
    features = {"Height": 64, "SimTarget": "Uniform", **AT_ONE_ROW_A_LINE}
    with opened(producer, SimVignetting=20.0, SimDirtWidth=40, SimDirtPosition=3000,
                SimDirtContrast=60.0, SimDeadPixel=10, **features) as peer:  # fmt: skip
        peer.start()
        profile = peer.take(1)[0].pixels.mean(axis=0)
    assert profile[2048] == pytest.approx(160, abs=0.5)
    assert profile[-1] == pytest.approx(128, abs=1)
    assert profile[10] == 0
    assert profile[3000] == pytest.approx(0.4 * profile[2900], rel=0.1)
    assert profile[2978] == pytest.approx(profile[2970], abs=1)
    assert profile[2985] < profile[2970] - 5


def test_each_pixel_has_its_gain_and_noise_its_sigma(producer: Path) -> None:
    features = {"Height": 256, "SimTarget": "Uniform", **AT_ONE_ROW_A_LINE}
    with opened(producer, SimPixelNonUniformity=5.0, SimNoise=3.0, **features) as peer:
        peer.start()
        pixels = peer.take(1)[0].pixels.astype(float)
    assert pixels.std(axis=0).mean() == pytest.approx(3, rel=0.1)
    gains = pixels.mean(axis=0) / 160
    assert 0.94 < gains.min() < 0.96
    assert 1.04 < gains.max() < 1.06
    lines = pixels - pixels.mean(axis=0)
    assert abs(np.corrcoef(lines)[np.triu_indices(256, 1)]).max() < 0.15


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.5, 7.0])
def test_defocus_is_a_mean_over_a_square(radius: float, producer: Path) -> None:
    rows = np.full((64, 64), 20, np.uint8)
    rows[32, 32] = rows[10:20, 40:50] = 220
    with on_rows(producer, rows, Height=64, SimDefocus=radius) as peer:
        peer.start()
        found = peer.take(1)[0].pixels
    assert np.abs(found.astype(int) - blurred(rows, radius)).max() <= 1


def blurred(rows: Pixels, radius: float) -> NDArray[np.float64]:
    """Weights fall from 1 to the rim's share; the belt repeats, the scan line ends."""
    reach = int(radius) + 1
    weights = np.ones(2 * reach + 1)
    weights[[0, -1]] = radius - int(radius)
    down = sum(w * np.roll(rows.astype(float), k - reach, axis=0) for k, w in enumerate(weights))
    assert not isinstance(down, int)
    across = np.apply_along_axis(np.convolve, 1, down / weights.sum(), weights, "same")
    share = np.convolve(np.ones(rows.shape[1]), weights, "same")
    result: NDArray[np.float64] = across / share
    return result


def test_targets_replace_the_belt(producer: Path) -> None:
    with opened(producer, Height=120, SimTarget="Dark", **AT_ONE_ROW_A_LINE) as peer:
        peer.start()
        assert not peer.take(1)[0].pixels.any()
        peer.set(SimTarget="Lattice")
        rows = settle(peer)[-48:]
    wave = np.fft.rfft(rows.mean(axis=1) - rows.mean())
    assert int(np.abs(wave).argmax()) == 48 // 12


# --- belt, encoder, triggers ----------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "step"), [(4_000.0, 2.0), (1_000.0, 0.5), (500.0, 0.25)])
def test_a_wrong_line_rate_stretches_the_picture(speed: float, step: float, producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), Height=400) as peer:
        peer.set(SimBeltSpeed=speed)
        peer.start()
        numbers = row_numbers(peer.take(1)[0].pixels)
    assert np.array_equal(numbers, np.floor(np.arange(400) * step + 1e-6))


def test_a_stopped_belt_shows_one_row_and_a_reversed_one_goes_back(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), Height=200) as peer:
        peer.start()
        peer.take(5)
        peer.set(SimBeltDirection="Stopped")
        numbers = row_numbers(settle(peer))
        assert len(set(numbers.tolist())) == 1
        peer.set(SimBeltDirection="Reverse")
        back = row_numbers(settle(peer))
        assert (np.diff(back) % 4000 == 3999).all()


def test_changes_while_it_runs_act_from_a_scan_line_on(producer: Path) -> None:
    """Speed and line rate change the step from row to row; the belt never jumps."""
    with on_rows(producer, numbered_rows(39_000), Height=100) as peer:
        peer.start()
        taken = peer.take(2)
        for speed, rate in ((4_000.0, 20_000.0), (1_000.0, 10_000.0), (2_000.0, 5_000.0)):
            peer.set(SimBeltSpeed=speed)
            peer.set(AcquisitionLineRate=rate)
            taken += peer.take(6)
    steps = np.diff(np.concatenate([row_numbers(frame.pixels) for frame in taken]))
    assert steps.min() >= 0
    assert steps.max() <= 4
    assert set(steps[-100:].tolist()) == {4}


def test_jitter_wanders_about_the_belts_speed(producer: Path) -> None:
    with on_rows(producer, numbered_rows(30_000), Height=10_000, SimBeltJitter=10.0) as peer:
        peer.start()
        steps = np.diff(row_numbers(peer.take(1)[0].pixels))
    speeds = steps[: len(steps) // 500 * 500].reshape(-1, 500).mean(axis=1)
    assert 0.9 <= speeds.min() < speeds.max() <= 1.1
    assert speeds.max() - speeds.min() > 0.05


def encoder(**features: Any) -> dict[str, Any]:
    line_start = {"TriggerSelector": "LineStart", "TriggerMode": "On", "TriggerSource": "Encoder0"}
    return {**line_start, "Height": 200, "ChunkModeActive": True, **features}


@pytest.mark.parametrize("divider", [1, 2, 5])
def test_the_encoder_divider_stretches_the_picture(divider: int, producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), **encoder(EncoderDivider=divider)) as peer:
        peer.start()
        frames = peer.take(3)
    numbers = np.concatenate([row_numbers(frame.pixels) for frame in frames])
    assert np.array_equal(numbers, np.arange(600) * divider % 4000)
    values = [frame.chunks["EncoderValue"] for frame in frames]
    assert values == [0, 200 * divider, 400 * divider]


def test_an_encoder_line_trigger_sees_no_jitter_in_the_picture(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), **encoder(SimBeltJitter=30.0)) as peer:
        peer.set(ExposureTime=5.0, SimLightLevel=200.0)
        peer.start()
        frames = peer.take(4)
        assert peer.get("SimOvertriggeredLines") == 0
    numbers = np.concatenate([row_numbers(frame.pixels) for frame in frames])
    assert np.array_equal(numbers, np.arange(800))
    steps_ns = np.diff([frame.timestamp_ns for frame in frames])
    assert steps_ns.max() - steps_ns.min() > 0.01 * steps_ns.mean()


def test_a_belt_stands_still_in_its_stops(producer: Path) -> None:
    """20 scan lines a millisecond, which come later by the stops before them."""
    taken: list[Taken] = []
    with on_rows(producer, numbered_rows(30_000), **encoder(Height=100)) as peer:
        epoch_ns = time.monotonic_ns()
        peer.set(SimBeltEpoch=epoch_ns, SimBeltStops="400+150, 800+60")
        peer.start()
        while not taken or taken[-1].timestamp_ns < epoch_ns + 1_000_000_000:
            taken += peer.take(1)
    assert np.array_equal(
        np.concatenate([row_numbers(frame.pixels) for frame in taken]),
        np.arange(len(taken) * 100) + taken[0].chunks["EncoderValue"],
    )
    for frame in taken:
        at_ms = (frame.chunks["EncoderValue"] + 99) / 20
        at_ms += 150 if at_ms > 400 else 0
        at_ms += 60 if at_ms > 800 else 0
        assert (frame.timestamp_ns - epoch_ns) / 1e6 == pytest.approx(at_ms, abs=0.1)
    assert np.diff([frame.timestamp_ns for frame in taken]).max() > 150_000_000, "it was watched"


def test_a_camera_that_is_opened_later_finds_the_stops_as_past(producer: Path) -> None:
    epoch_ns = time.monotonic_ns() - 2_000_000_000
    features = encoder(Height=100, SimBeltEpoch=epoch_ns, SimBeltStops="100+400, 600+1000")
    with on_rows(producer, numbered_rows(30_000), **features) as peer:
        peer.start()
        frame = peer.take(1)[0]
    at_ms = (frame.chunks["EncoderValue"] + 99) / 20 + 1400
    assert (frame.timestamp_ns - epoch_ns) / 1e6 == pytest.approx(at_ms, abs=0.1)


def test_high_resolution_counts_four_times(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), **encoder(EncoderDivider=4)) as peer:
        peer.set(EncoderMode="HighResolution")
        peer.start()
        frame = peer.take(2)[1]
    assert np.array_equal(row_numbers(frame.pixels), np.arange(200, 400))
    assert frame.chunks["EncoderValue"] == 800


def test_lines_faster_than_the_camera_are_lost_and_counted(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), **encoder(ExposureTime=70.0)) as peer:
        peer.set(SimLightLevel=1000 / 70)
        peer.start()
        frame = peer.take(1)[0]
        assert peer.get("SimOvertriggeredLines") >= 199
    assert np.array_equal(row_numbers(frame.pixels), np.arange(200) * 2)


@pytest.mark.parametrize(
    "features",
    [
        {"SimBeltDirection": "Stopped"},
        {"SimBeltDirection": "Reverse"},
        {"EncoderSourceA": "Line2", "EncoderSourceB": "Line1"},
        {"EncoderSourceA": "Off"},
        {"EncoderSourceA": "Line1", "EncoderSourceB": "Line1"},
    ],
)
def test_an_encoder_that_does_not_count_up_gives_no_frames(
    features: dict[str, str], producer: Path
) -> None:
    with on_rows(producer, numbered_rows(4000), **encoder(**features)) as peer:
        peer.start()
        assert peer.poll(0.1) is None
        assert peer.get("EncoderValue") <= 0


def test_new_positions_only_after_a_reversal(producer: Path) -> None:
    """PositionUp gives no pulse for a position that was seen before."""
    with on_rows(producer, numbered_rows(30_000), **encoder(Height=100)) as peer:
        peer.start()
        peer.take(2)
        peer.set(SimBeltDirection="Reverse")
        reversed_at = peer.get("EncoderValue")
        while peer.get("EncoderValue") > reversed_at - 300:
            pass
        peer.set(SimBeltDirection="Forward")
        frames = peer.take(30)
    numbers = np.concatenate([row_numbers(frame.pixels) for frame in frames])
    assert (np.diff(numbers) == 1).all()


def test_encoder_and_counter_are_set_back(producer: Path) -> None:
    with source_path(memory_source(plates_on())) as path, opened(producer, SimSource=path) as peer:
        peer.set(**AT_ONE_ROW_A_LINE, Height=120, ChunkModeActive=True)
        peer.start()
        peer.take(3)
        peer.set(SimBeltSpeed=0.0)  # a belt that runs counts on before anybody looks
        assert peer.get("EncoderValue") > 0
        assert peer.get("CounterValue") > 0
        peer.execute("EncoderReset")
        peer.execute("CounterReset")
        assert peer.get("EncoderValue") == 0
        assert peer.get("CounterValue") == 0


def frame_trigger(selector: str, source: str = "Line0", **features: Any) -> dict[str, Any]:
    trigger = {"TriggerSelector": selector, "TriggerMode": "On", "TriggerSource": source}
    return {**AT_ONE_ROW_A_LINE, **trigger, "ChunkModeActive": True, **features}


def test_frames_begin_at_the_plate(producer: Path) -> None:
    with (
        source_path(memory_source(plates_on())) as path,
        opened(producer, SimSource=path, **frame_trigger("FrameStart", Height=60)) as peer,
    ):
        peer.start()
        frames = peer.take(4)
    for number, frame in enumerate(frames):
        assert (frame.pixels[:50] == 200).all()
        assert (frame.pixels[50:] == 10).all()
        assert frame.chunks["CounterValue"] == number
        assert frame.chunks["EncoderValue"] == 70 + 120 * number
        assert frame.chunks["LineStatusAll"] & 1
    assert [frame.frame_id for frame in frames] == [0, 1, 2, 3]


def test_frames_end_with_the_plate(producer: Path) -> None:
    with (
        source_path(memory_source(plates_on())) as path,
        opened(producer, SimSource=path, **frame_trigger("FrameActive", Height=80)) as peer,
    ):
        peer.start()
        frames = peer.take(3)
        assert {frame.delivered_height for frame in frames} == {50}
        assert all(frame.is_complete and (frame.pixels == 200).all() for frame in frames)
        assert {frame.size_filled for frame in frames} == {50 * 64 + 40}
        peer.acquirer.stop()
        peer.set(TriggerActivation="LevelLow")
        peer.start()
        assert [frame.delivered_height for frame in peer.take(2)] == [70, 70]


def test_a_barrier_ahead_of_the_camera_delays_the_plate(producer: Path) -> None:
    features = frame_trigger("FrameStart", Height=60, SimBarrierDistance=2.0)
    with (
        source_path(memory_source(plates_on())) as path,
        opened(producer, SimSource=path, **features) as peer,
    ):
        peer.start()
        frame = peer.take(1)[0]
    assert (frame.pixels[:20] == 10).all()
    assert (frame.pixels[20:60] == 200).all()


def test_software_triggers_take_one_frame_each(producer: Path) -> None:
    with opened(producer, Height=20, **frame_trigger("FrameStart", "Software")) as peer:
        peer.start()
        assert peer.poll(0.05) is None
        for number in range(3):
            peer.execute("TriggerSoftware")
            assert peer.take(1)[0].frame_id == number
            assert peer.poll(0.02) is None


def test_software_triggers_take_one_scan_line_each(producer: Path) -> None:
    with opened(producer, Height=5, **frame_trigger("LineStart", "Software")) as peer:
        peer.start()
        for _ in range(9):
            peer.execute("TriggerSoftware")
        peer.take(1)
        assert peer.poll(0.02) is None
        peer.execute("TriggerSoftware")
        peer.take(1)


@pytest.mark.parametrize(("mode", "count"), [("SingleFrame", 1), ("MultiFrame", 3)])
def test_acquisition_ends_after_its_frames(mode: str, count: int, producer: Path) -> None:
    with opened(producer, Height=16, AcquisitionMode=mode, AcquisitionFrameCount=3) as peer:
        peer.start()
        peer.take(count)
        assert peer.poll(0.05) is None


def test_the_light_barrier_is_line0(producer: Path) -> None:
    with source_path(memory_source(plates_on())) as path, opened(producer, SimSource=path) as peer:
        peer.set(SimBeltSpeed=0.0, SimBeltEpoch=time.monotonic_ns() - 1)
        assert peer.get("LineStatusAll") & 1 == 0
        assert peer.get("LineMode") == "Input"
        peer.set(SimBarrierDistance=8.0)
        assert peer.get("LineStatusAll") & 1 == 1
        assert peer.get("LineStatus") is True


# --- faults ---------------------------------------------------------------------------------------


def test_faults_happen_at_their_frames_of_the_belt(producer: Path) -> None:
    faults = {
        "SimLostFrames": "2, 3",
        "SimIncompleteFrames": "5",
        "SimShortFrames": "7",
        "SimWrongHeightFrames": "9",
        "SimDuplicatedFrames": "11",
    }
    with on_rows(producer, numbered_rows(4000), Height=40, **faults) as peer:
        peer.start()
        frames = peer.take(13)
    assert [f.frame_id for f in frames] == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 13]
    assert [f.frame_id for f in frames if not f.is_complete] == [5]
    shapes = {f.frame_id: (f.height, f.delivered_height) for f in frames}
    halves = {5: (40, 20), 7: (40, 20), 9: (20, 20)}
    assert shapes == {number: halves.get(number, (40, 40)) for number in shapes}
    assert all(f.size_filled == f.delivered_height * 64 for f in frames)
    for frame in frames:
        expected = np.arange(frame.frame_id * 40, frame.frame_id * 40 + frame.delivered_height)
        assert np.array_equal(row_numbers(frame.pixels), expected)


def test_a_late_frame_comes_late_and_whole(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), Height=40, SimLateFrames="3") as peer:
        peer.start()
        peer.take(3)
        late = peer.take(1)[0]
        assert time.monotonic_ns() - late.timestamp_ns >= 300_000_000
        numbers = np.concatenate([row_numbers(frame.pixels) for frame in peer.take(5)])
    assert np.array_equal(numbers, np.arange(160, 360))


def test_exposure_that_is_stuck_reads_as_set(producer: Path) -> None:
    rows = np.full((64, 64), 100, np.uint8)
    with on_rows(producer, rows, Height=16, SimStuckExposureFrames="2") as peer:
        peer.start()
        peer.take(4)
        peer.set(ExposureTime=20.0)
        assert peer.get("ExposureTime") == 20.0
        assert (settle(peer) == 100).all()
    with on_rows(producer, rows, Height=16, ExposureTime=20.0) as peer:
        peer.start()
        assert (peer.take(1)[0].pixels == 200).all()


def test_a_disconnected_device_is_found_again(producer: Path) -> None:
    with on_rows(producer, numbered_rows(400), Height=16, SimDisconnectFrames="3") as peer:
        peer.start()
        peer.take(3)
        assert peer.poll(0.05) is None
        with pytest.raises(Exception, match="disconnected"):
            peer.get("Width")
        assert peer.acquirer.device.module.access_status == 3
    with opened(producer) as peer:
        assert peer.get("DeviceSerialNumber") == SERIAL


def serials(producer: Path) -> set[str]:
    """What a fresh process finds."""
    code = (
        "import sys; from pathlib import Path; from drivers.camera.gentl import list_cameras; "
        "print(*(row['serial'] for row in list_cameras(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(producer)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_another_serial_comes_back_for_a_while(producer: Path) -> None:
    faults = {"SimOtherSerialFrames": "2", "SimOtherSerialDuration": 3600.0}
    with on_rows(producer, numbered_rows(400), Height=16, **faults) as peer:
        peer.start()
        peer.take(2)
        assert peer.poll(0.05) is None
    assert serials(producer) == {"VQI-LS-1-B", "VQI-LS-2"}
    with opened(producer, "VQI-LS-1-B") as peer:
        assert peer.get("DeviceSerialNumber") == "VQI-LS-1-B"
    faults["SimOtherSerialDuration"] = 0.0
    with opened(producer, "VQI-LS-1-B", **AT_ONE_ROW_A_LINE, **faults) as peer:
        peer.set(Height=16)
        peer.start()
        peer.take(2)
        assert peer.poll(0.05) is None
    assert serials(producer) == {"VQI-LS-1", "VQI-LS-2"}


def test_frames_without_a_buffer_leave_a_gap(producer: Path) -> None:
    with on_rows(producer, numbered_rows(4000), Height=20) as peer:
        peer.acquirer.num_buffers = 4
        peer.start()
        stream = peer.acquirer.data_streams[0].module
        deadline = time.monotonic() + 10
        while int(stream.num_underrun) < 5:
            assert time.monotonic() < deadline
        ids = [frame.frame_id for frame in peer.take(8)]
    assert ids[:4] == [0, 1, 2, 3]
    assert ids[4] >= 9


# --- who may hold it ------------------------------------------------------------------------------

_HOLD = """
import sys
from harvesters.core import Harvester
harvester = Harvester()
harvester.add_file(sys.argv[1])
harvester.update()
acquirer = harvester.create({"serial_number": "VQI-LS-1"})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_device_has_one_owner_and_a_killed_one_sets_it_free(producer: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(producer)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Exception, match="in use"), opened(producer):
            pass
        with opened(producer, "VQI-LS-2"):
            pass
        holder.kill()
    with opened(producer) as peer:
        with pytest.raises(Exception, match="in use"), opened(producer):
            pass
        assert peer.get("Width") == 4096


def test_two_cameras_look_at_two_belts(producer: Path) -> None:
    rows = numbered_rows(1000)
    with (
        on_rows(producer, rows, Height=100) as first,
        source_path(strip_source(rows[::-1], 0.1)) as path,
        opened(producer, "VQI-LS-2", SimSource=path, Height=50, **AT_ONE_ROW_A_LINE) as second,
    ):
        first.start()
        second.start()
        there = np.concatenate([row_numbers(frame.pixels) for frame in first.take(5)])
        back = np.concatenate([row_numbers(frame.pixels) for frame in second.take(5)])
    assert np.array_equal(there, np.arange(500))
    assert np.array_equal(back, 999 - np.arange(250))


# --- sources --------------------------------------------------------------------------------------


def test_a_file_that_is_no_source_is_refused_with_a_reason(producer: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with source_path(memory_source(plates_on())) as path:
        whole.write_bytes(Path(path).read_bytes())
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-1])
    text = tmp_path / "text"
    text.write_text("no source at all" * 10)
    with opened(producer, SimSource=str(whole)) as peer:
        for bad, why in ((cut, "beyond its end"), (text, "no picture source")):
            with pytest.raises(Exception, match=why):
                peer.set(SimSource=str(bad))
        assert peer.get("SimSource") == str(whole)
        assert peer.get("SensorWidth") == 64


def test_pictures_of_another_width_are_refused() -> None:
    wrong = Source(np.zeros((1, 64), np.uint8), [np.zeros((5, 32), np.uint8)], [(0, 0)], 5, 0.1)
    with pytest.raises(ValueError, match="64 px"):
        memory_source(wrong)


# --- the C interface, misused ---------------------------------------------------------------------


class Bare:
    """The producer's functions, called as C calls them."""

    def __init__(self, producer: Path) -> None:
        self._functions = ctypes.CDLL(str(producer))

    def call(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._functions, name)(*arguments))

    def handle(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        assert self.call(name, *arguments, ctypes.byref(handle)) == 0
        return handle

    def last_error(self) -> tuple[int, str]:
        code, size = ctypes.c_int32(), ctypes.c_size_t(512)
        text = ctypes.create_string_buffer(512)
        assert self.call("GCGetLastError", ctypes.byref(code), text, ctypes.byref(size)) == 0
        return code.value, text.value.decode()


@contextmanager
def open_stream(producer: Path) -> Iterator[tuple[Bare, ctypes.c_void_p]]:
    bare = Bare(producer)
    assert bare.call("GCInitLib") == 0
    try:
        interface = bare.handle("TLOpenInterface", bare.handle("TLOpen"), b"vqi-belt")
        device = bare.handle("IFOpenDevice", interface, SERIAL.encode(), 4)
        yield bare, bare.handle("DevOpenDataStream", device, b"vqi-stream")
    finally:
        assert bare.call("GCCloseLib") == 0


@pytest.fixture
def stream(producer: Path) -> Iterator[tuple[Bare, ctypes.c_void_p]]:
    with open_stream(producer) as opened_stream:
        yield opened_stream


def test_before_the_library_is_open_nothing_works(producer: Path) -> None:
    bare, handle = Bare(producer), ctypes.c_void_p()
    for name in ("GCCloseLib", "TLOpen", "TLClose", "DevClose", "DSClose"):
        arguments = () if name == "GCCloseLib" else (ctypes.byref(handle),)
        assert bare.call(name, *arguments) == -1002, name


def test_misuse_is_answered_with_the_standards_errors(
    stream: tuple[Bare, ctypes.c_void_p],
) -> None:
    bare, data_stream = stream
    size, type_, small = ctypes.c_size_t(), ctypes.c_int32(), ctypes.create_string_buffer(1)
    memory = ctypes.create_string_buffer(1024)
    buffer = bare.handle("DSAnnounceBuffer", data_stream, memory, ctypes.c_size_t(1024), None)

    assert bare.call("DSQueueBuffer", ctypes.c_void_p(0x1234), buffer) == -1006
    assert bare.call("DSQueueBuffer", data_stream, ctypes.c_void_p(0x1234)) == -1006
    assert "no buffer announced" in bare.last_error()[1]
    assert bare.call("DSQueueBuffer", data_stream, buffer) == 0
    assert bare.call("DSQueueBuffer", data_stream, buffer) == -1004
    ask = (data_stream, 0, ctypes.byref(type_))
    assert bare.call("DSGetInfo", *ask, None, ctypes.byref(size)) == 0
    assert size.value == len(b"vqi-stream") + 1
    size.value = 1
    assert bare.call("DSGetInfo", *ask, small, ctypes.byref(size)) == -1016
    assert bare.call("DSGetInfo", data_stream, 999, None, None, ctypes.byref(size)) == -1003
    assert bare.call("DSGetInfo", *ask, None, None) == -1009
    assert bare.call("DSFlushQueue", data_stream, 77) == -1009
    assert bare.call("GCRegisterEvent", data_stream, 0, ctypes.byref(size)) == -1003
    assert bare.last_error()[0] == -1003


INPUT_TO_OUTPUT, OUTPUT_DISCARD, ALL_TO_INPUT, UNQUEUED_TO_INPUT, ALL_DISCARD = range(5)


class Queues:
    """Buffers of a stream, and where they must be; nothing is acquired."""

    def __init__(self, bare: Bare, stream: ctypes.c_void_p) -> None:
        self.bare, self.stream = bare, stream
        self.event = bare.handle("GCRegisterEvent", stream, 1)
        self.announced: list[int] = []
        self.input: set[int] = set()
        self.output: set[int] = set()

    def announce(self, _: int) -> None:
        size = ctypes.c_size_t(64)
        made = self.bare.handle("DSAllocAndAnnounceBuffer", self.stream, size, None).value
        assert made is not None
        self.announced.append(made)

    def queue(self, number: int) -> None:
        buffer = self.announced[number] if number < len(self.announced) else None
        is_queued = buffer in self.input | self.output
        wanted = -1006 if buffer is None else -1004 if is_queued else 0
        assert self.bare.call("DSQueueBuffer", self.stream, ctypes.c_void_p(buffer)) == wanted
        if buffer is not None and not is_queued:
            self.input.add(buffer)

    def revoke(self, number: int) -> None:
        buffer = self.announced.pop(number) if number < len(self.announced) else None
        wanted = -1006 if buffer is None else 0
        revoked = self.bare.call("DSRevokeBuffer", self.stream, ctypes.c_void_p(buffer), None, None)
        assert revoked == wanted
        self.input -= {buffer}
        self.output -= {buffer}

    def flush(self, how: int) -> None:
        assert self.bare.call("DSFlushQueue", self.stream, how) == 0
        if how == INPUT_TO_OUTPUT:
            self.output |= self.input
        if how in (OUTPUT_DISCARD, ALL_TO_INPUT, ALL_DISCARD):
            self.output = set()
        if how in (ALL_TO_INPUT, UNQUEUED_TO_INPUT):
            self.input = set(self.announced) - self.output
        if how in (INPUT_TO_OUTPUT, ALL_DISCARD):
            self.input = set()

    def fetch(self, _: int) -> None:
        data, size = (ctypes.c_void_p * 2)(), ctypes.c_size_t(16)
        at_once = ctypes.c_uint64(0)
        result = self.bare.call("EventGetData", self.event, data, ctypes.byref(size), at_once)
        assert result == (0 if self.output else -1011)
        if result == 0:
            self.output.remove(data[0])

    def check(self) -> None:
        counts = (len(self.announced), len(self.input), len(self.output))
        for command, count in zip((3, 4, 5), counts, strict=True):
            size, found = ctypes.c_size_t(8), ctypes.c_size_t()
            told = (None, ctypes.byref(found), ctypes.byref(size))
            assert self.bare.call("DSGetInfo", self.stream, command, *told) == 0
            assert found.value == count


_STEPS = st.tuples(
    st.sampled_from(["announce", "announce", "queue", "queue", "revoke", "flush", "fetch"]),
    st.integers(0, 4),
)


@checked(max_examples=60, deadline=None)
@given(steps=st.lists(_STEPS, max_size=30))
def test_each_buffer_is_in_one_place(producer: Path, steps: list[tuple[str, int]]) -> None:
    """Input pool, output queue and consumer against a model of them."""
    with open_stream(producer) as (bare, stream):
        queues = Queues(bare, stream)
        for step, number in steps:
            getattr(queues, step)(number)
            queues.check()


def test_who_waits_is_sent_away_when_the_stream_closes(
    stream: tuple[Bare, ctypes.c_void_p],
) -> None:
    bare, data_stream = stream
    event = bare.handle("GCRegisterEvent", data_stream, 1)
    results: list[int] = []

    def wait() -> None:
        data, size = ctypes.create_string_buffer(16), ctypes.c_size_t(16)
        forever = ctypes.c_uint64(2**64 - 1)
        results.append(bare.call("EventGetData", event, data, ctypes.byref(size), forever))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert bare.call("EventKill", event) == 0
    waiting.join(10)
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert bare.call("DSClose", data_stream) == 0
    waiting.join(10)
    assert results[0] == -1012
    assert results[1] in (-1012, -1006)


# --- under a consumer of nothing but GenTL --------------------------------------------------------


def build_consumer(folder: Path, *flags: str) -> Path:
    consumer = folder / "gentl_consumer"
    source = Path(__file__).with_name("gentl_consumer.c")
    warnings = ("-Wall", "-Wextra", "-Werror")
    command = [
        "gcc",
        "-std=c11",
        "-O1",
        *warnings,
        *flags,
        "-o",
        str(consumer),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return consumer


def consume(consumer: Path, producer: Path, *arguments: str) -> list[dict[str, int]]:
    """One row a cycle."""
    done = subprocess.run(
        [str(consumer), str(producer), SERIAL, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    return [{key: int(value) for key, value in (f.split("=") for f in row)} for row in rows]


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Consumer and producer with address and undefined-behaviour checks."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        consumer = build_consumer(folder, "-fsanitize=address,undefined", "-g")
    except subprocess.CalledProcessError:
        pytest.skip("gcc has no sanitizers here: install libasan and libubsan")
    return consumer, build_producer(folder, sanitize=True)


FAST = ("AcquisitionLineRate=20000", "Height=40")
CASES = {
    "belt": (),
    "mono12": ("PixelFormat=0x01100005", "Width=999", "OffsetX=7", "ChunkModeActive=1"),
    "optics": ("SimNoise=3", "SimDefocus=2.5", "SimDirtWidth=40", "SimDeadPixel=0", "Gain=6"),
    "faults": (
        *("SimLostFrames=3,4", "SimIncompleteFrames=5", "SimShortFrames=6", "ChunkModeActive=1"),
        *("SimDuplicatedFrames=7,8", "SimLateFrames=9", "SimWrongHeightFrames=10"),
        *("SimStuckExposureFrames=11",),
    ),
    "encoder": (
        *("TriggerMode=1", "TriggerSource=2", "EncoderDivider=3", "SimBeltSpeed=3000"),
        *("SimBeltJitter=20", "SimBeltStops=1+20, 40+30"),
    ),
    "frame start": ("TriggerSelector=1", "TriggerMode=1", "SimBeltSpeed=30000"),
    "frame active": ("TriggerSelector=2", "TriggerMode=1", "SimBeltSpeed=30000"),
    "reverse": ("SimBeltDirection=2", "SimTarget=3"),
}


@pytest.mark.parametrize("case", CASES)
def test_sanitizers_find_nothing(case: str, sanitized: tuple[Path, Path]) -> None:
    rows = consume(*sanitized, "16", "2", *FAST, *CASES[case])
    assert [row["devices"] for row in rows] == [2, 2]
    assert [row["incomplete"] for row in rows] == ([1, 1] if case == "faults" else [0, 0])


@checked(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_source_whatever_it_says_leads_outside_its_file(
    data: st.DataObject, sanitized: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A few bytes changed: it is refused by name, or streams within the sanitizers' bounds."""
    with source_path(memory_source(plates_on())) as path:
        content = bytearray(Path(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 119))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, content[at] ^ 1]))
    file = tmp_path_factory.mktemp("source") / "source"
    file.write_bytes(content)
    done = subprocess.run(
        [*map(str, sanitized), SERIAL, "3", "1", *FAST, "ExposureTime=1", f"SimSource={file}"],
        capture_output=True,
        text=True,
    )
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr
    assert done.returncode == 0 or "SimSource" in done.stderr, done.stderr


_VIMBA = """
import json, sys
import vmbpy
system = vmbpy.VmbSystem.get_instance()
system.set_path_configuration(*sys.argv[2:])
with system, system.get_camera_by_id("VQI-LS-1") as camera:
    features = {"Height": 64, "AcquisitionLineRate": 20_000.0, "SimBeltSpeed": 2_000.0}
    for name, value in features.items():
        camera.get_feature_by_name(name).set(value)
    frames = [
        (frame.get_height(), frame.get_status().name, list(frame.get_buffer())[:: 64 * 4096 // 8])
        for frame in camera.get_frame_generator(limit=3, timeout_ms=5000)
    ]
    found = [camera.get_serial(), len(camera.get_all_features()), frames]
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def test_vimba_x_streams_from_it(producer: Path, tmp_path: Path) -> None:
    """A vendor's consumer that knows nothing of this producer; by default it loads its own only."""
    pytest.importorskip("vmbpy", reason="no vmbpy: pip install vmbpy==1.2.3")
    allowed = '<TlRule vendor-type="*" interface-type="*" rule="allow"/>'
    settings = tmp_path / "VmbC.xml"
    settings.write_text(f"<Settings><TlLoading>{allowed}</TlLoading></Settings>")
    found = tmp_path / "found.json"
    command = [sys.executable, "-c", _VIMBA, *map(str, (found, producer.parent, settings))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    serial, features, frames = json.loads(found.read_text())
    assert (serial, features) == (SERIAL, len(feature_rows()))
    assert frames == [[64, "Complete", [12] * 8]] * 3


def test_open_and_close_are_flat_in_memory(producer: Path, tmp_path: Path) -> None:
    rows = consume(build_consumer(tmp_path), producer, "2", "100", *FAST)
    held = [row["rss_kb"] for row in rows]
    assert max(held[20:]) - held[20] <= 256
