"""The highest line rate that this machine inspects without loss, beside the network alone, and how
soon the lamp is commanded at half of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from drivers.camera import Frame
from drivers.camera.producer.source import NOMINAL_EXPOSURE_US
from drivers.camera.settings import (
    CameraSettings,
    GenicamCameraSettings,
    SimulatedCameraSettings,
    SpecimenSettings,
)
from drivers.camera.simulated import SimulatedCamera
from models.runtimes import processor_name
from station.config import Configuration, Loaded, Recipe
from station.cores import cpu_seconds
from station.ipc import Json
from station.precision import load_classifier
from station.product import geometry_of
from station.qms import DATABASE
from station.recipes import active_recipe
from station.strip import PlateOpened, StripCutter, TileRowReady, buffer_lines
from station.tied import tied
from station.tiling import CHUNK_TILES, TILE_PX, Geometry, TileRow, cut_tiles

_GAP_MM = 10.0
"""A dense belt, so that nearly every scan line is scored; at least twice the gap that separates
plates."""
_FRAME_HEIGHT = 64
"""Of another camera than the simulated one, which has its own."""
_FIRST_SHARE = 0.92
"""Of the network's own rate, tried first."""
_STEP = 0.93
_TRIES = 16
_FINER_TRIES = 2
"""Between the first rate without loss and the one before it, halving the step."""
_ALONE_S = 5.0
_WATCH_AFTER, _WATCH_FOR = 0.2, 0.4
"""Shares of a try, after its first record."""
_START_AND_END_S = 120.0


class BenchError(Exception):
    """No line rate was sustained, or the station did not start; says which."""


def run_bench(
    loaded: Loaded[Configuration],
    recipe: Loaded[Recipe],
    seconds: float,
    say: Callable[[str], None],
) -> Json:
    """Find the highest lossless rate by steps down from the network's own, `seconds` a try; then
    one more try at half of it."""
    dense = dense_camera(loaded.value, recipe)
    alone = NetworkAlone(loaded, dense, recipe)
    before = alone.tiles_per_s(_ALONE_S)

    def attempt(rate_hz: float) -> Json:
        summary = _try(loaded, dense, rate_hz, seconds)
        return summary | {"plate_period_ms": round(1000 * alone.period_lines / rate_hz, 1)}

    rate_hz, summary = highest_lossless(attempt, before / alone.tiles_per_line, say)
    at_half_rate = _try(loaded, dense, rate_hz / 2, seconds)
    network_alone = (before + alone.tiles_per_s(_ALONE_S)) / 2
    tiles_per_s = alone.tiles_per_line * rate_hz
    return summary | {
        "line_rate_hz": round(rate_hz, 1),
        "half_line_rate_hz": round(rate_hz / 2, 1),
        "latency_at_half_rate_ms": at_half_rate["latency_ms"],
        "cores_at_half_rate": at_half_rate["cores"],
        "tiles_per_s": round(tiles_per_s, 1),
        "network_alone_tiles_per_s": round(network_alone, 1),
        "share_of_network_alone": round(tiles_per_s / network_alone, 3),
        "runtime": alone.classifier.runtime,
        "precision": alone.classifier.precision,
        "processor": processor_name(),
    }


def highest_lossless(
    attempt: Callable[[float], Json],
    network_hz: float,
    say: Callable[[str], None],
    first_share: float = _FIRST_SHARE,
) -> tuple[float, Json]:
    """The highest rate found without loss, below `network_hz`, in scan lines/s, and the summary
    that `attempt` gave of it; the first try is at `first_share` of it. Raises `BenchError`."""

    def lossless(steps: float) -> tuple[float, Json] | None:
        rate_hz = network_hz * first_share * _STEP**steps
        summary = attempt(rate_hz)
        if _is_lossless(summary):
            return rate_hz, summary
        say(f"{rate_hz:.0f} scan lines/s: {_loss(summary)}")
        return None

    for tried in range(_TRIES):
        best = lossless(tried)
        if best:
            break
    else:
        lowest = first_share * _STEP ** (_TRIES - 1)
        raise BenchError(f"no rate was without loss, down to {lowest:.0%} of the network's own")
    steps = float(tried)
    for finer in range(1, _FINER_TRIES + 1 if tried else 1):
        found = lossless(steps - 0.5**finer)
        if found:
            best, steps = found, steps - 0.5**finer
    return best


class NetworkAlone:
    """Tile rows of a rendered plate through front end and network on all cores, nothing else."""

    def __init__(
        self,
        loaded: Loaded[Configuration],
        camera: SimulatedCameraSettings,
        recipe: Loaded[Recipe],
    ) -> None:
        threads = loaded.value.station.inspect_threads
        self.classifier = load_classifier(loaded, recipe, threads).classifier
        geometry = geometry_of(recipe, camera.pixel_pitch_mm, camera.width)
        self._geometry, self._threads = geometry, threads
        self._rows, self._pixels, period_lines = _one_plate(camera, geometry)
        tiles = sum(len(row.columns) for row in self._rows)
        self.period_lines = period_lines
        self.tiles_per_line = tiles / period_lines
        self._chunks = [(row, chunk) for row in self._rows for chunk in row.chunks()]

    def tiles_per_s(self, seconds: float) -> float:
        counts = [0] * self._threads
        end = time.monotonic() + seconds

        def score(session: int) -> None:
            block = np.empty((TILE_PX, self._geometry.block_px), np.uint8)
            batch = np.empty((CHUNK_TILES, 1, TILE_PX, TILE_PX), np.uint8)
            number = session
            while time.monotonic() < end:
                row, chunk = self._chunks[number % len(self._chunks)]
                count = cut_tiles(self._geometry, self._pixels, row, chunk, block, batch)
                self.classifier.scores(batch[:count], session)
                counts[session] += count
                number += self._threads

        threads = [threading.Thread(target=score, args=(i,)) for i in range(self._threads)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - started)


def _one_plate(
    camera: SimulatedCameraSettings, geometry: Geometry
) -> tuple[list[TileRow], np.ndarray[Any, np.dtype[np.uint8]], int]:
    """Tile rows of the belt's first plate, its pixels, and scan lines from plate to plate."""
    settings = camera.model_copy(update={"bank_plates": 1, "is_paced": False})
    buffers = [np.empty((buffer_lines(geometry), geometry.scan_line_px), np.uint8) for _ in "12"]
    cutter = StripCutter(geometry, camera.frame_height, lambda: buffers.pop())
    opened: list[PlateOpened] = []
    rows: list[TileRow] = []
    with SimulatedCamera(settings) as source:
        source.start()
        into = np.empty(source.info.max_frame_bytes, np.uint8)
        while len(opened) < 2:
            frame: Frame | None = source.grab(into, 1.0)
            assert frame is not None
            for event in cutter.feed(frame):
                if isinstance(event, PlateOpened):
                    opened.append(event)
                elif isinstance(event, TileRowReady) and len(opened) == 1:
                    rows.append(event.row)
    first, second = (event.plate for event in opened)
    assert first.pixels is not None
    assert first.encoder_value is not None
    assert second.encoder_value is not None
    return rows, first.pixels, second.encoder_value - first.encoder_value


def dense_camera(settings: Configuration, recipe: Loaded[Recipe]) -> SimulatedCameraSettings:
    """The configured belt, 4096 px wide, with the recipe's plates close together.

    Raises `BenchError` if they do not fit.
    """
    camera = settings.camera
    specimen, frame_height = SpecimenSettings(), _FRAME_HEIGHT
    if isinstance(camera, SimulatedCameraSettings):
        specimen, frame_height = camera.specimen, camera.frame_height
    elif isinstance(camera, GenicamCameraSettings) and camera.belt is not None:
        specimen = camera.belt.specimen
    plate = recipe.value.plate
    dense = {
        "width_mm": plate.width_mm,
        "length_mm": plate.length_mm,
        "gap_mm": max(_GAP_MM, 2 * plate.min_gap_mm),
        "skew_deg": 0.3,
    }
    try:
        return SimulatedCameraSettings(
            type="simulated",
            frame_height=frame_height,
            pixel_pitch_mm=camera.pixel_pitch_mm,
            bank_plates=4,
            specimen=specimen.model_copy(update=dense),
        )
    except ValidationError as error:
        raise BenchError(f"{recipe.source}: {error.errors()[0]['msg']}") from error


def _try(
    loaded: Loaded[Configuration], dense: SimulatedCameraSettings, rate_hz: float, seconds: float
) -> Json:
    """Run the whole station for a while on a journal of its own; its summary."""
    folder = loaded.value.journal.directory
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=folder.parent))
    try:
        config = work / "bench.toml"
        config.write_text(_bench_toml(loaded.value, dense, rate_hz, work))
        status, lines, cores = _run_watched(config, seconds)
        if status != 0 or not lines or "summary" not in json.loads(lines[-1]):
            raise BenchError(f"the station ended with exit status {status}")
        summary: Json = json.loads(lines.pop())["summary"]
        summary["cores"] = cores
        records = map(json.loads, lines)
        # Equal plates share a file, but each was written.
        written = sum(image["bytes"] for record in records for image in record["images"])
        written += (work / "journal" / DATABASE).stat().st_size
        summary["mb_written_per_s"] = round(written / 1e6 / summary["seconds"], 2)
        return summary
    finally:
        shutil.rmtree(work)


def _run_watched(config: Path, seconds: float) -> tuple[int, list[str], dict[str, float]]:
    """Exit status and output of `vqi run`, and the share of a core that each of its processes took
    in the middle of it."""
    process = subprocess.Popen(
        tied(
            [
                *(sys.executable, "-P", "-m", "station.cli", "run"),
                *("--config", str(config), "--json", "--seconds", str(seconds)),
            ],
            signal.SIGTERM,
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    is_late = threading.Event()

    def end_late() -> None:
        is_late.set()
        process.kill()

    limit = threading.Timer(seconds + _START_AND_END_S, end_late)
    limit.start()
    lines: list[str] = []
    cores: dict[str, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, seconds, cores))
    try:
        for line in process.stdout:
            if not lines:  # the first record: every process is there and works
                watcher.start()
            lines.append(line)
        status = process.wait()
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        if lines:
            watcher.join()
    if is_late.is_set():
        raise BenchError("the station did not end in time")
    return status, lines, cores


def _watch(pid: int, seconds: float, cores: dict[str, float]) -> None:
    time.sleep(_WATCH_AFTER * seconds)
    started, before = time.monotonic(), cpu_seconds(pid)
    time.sleep(_WATCH_FOR * seconds)
    taken_s, after = time.monotonic() - started, cpu_seconds(pid)
    cores |= {
        role: round((after[role] - spent) / taken_s, 2)
        for role, spent in before.items()
        if role in after
    }


def _bench_toml(
    settings: Configuration, camera: SimulatedCameraSettings, rate_hz: float, work: Path
) -> str:
    recipe = active_recipe(settings).source
    if not recipe.startswith("shipped:"):
        recipe = str(Path(recipe).resolve())
    return "\n".join(
        [
            "[station]",
            'id = "bench"',
            f"recipe = {json.dumps(recipe)}",
            f"runtime_dir = {json.dumps(str(work / 'run'))}",
            f"inspect_threads = {settings.station.inspect_threads}",
            f"precision_dir = {json.dumps(str(settings.precision_dir.resolve()))}",
            *_camera_toml(settings.camera, camera, rate_hz),
            "[journal]",
            f"directory = {json.dumps(str(work / 'journal'))}",
            "[light]",
            'device = { type = "simulated" }',
            "fail_hold_s = 0.1",
        ]
    )


def _camera_toml(
    configured: CameraSettings, belt: SimulatedCameraSettings, rate_hz: float
) -> list[str]:
    """The dense belt under the simulated camera, or under the line-scan simulator where that is
    what the configuration has."""
    settings = belt.specimen.model_dump(mode="json")
    specimen = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    bank = f"bank_plates = {belt.bank_plates}"
    common = ["[camera]", f"pixel_pitch_mm = {belt.pixel_pitch_mm}"]
    if not (isinstance(configured, GenicamCameraSettings) and configured.belt is not None):
        own = ['type = "simulated"', f"line_rate_hz = {rate_hz:.1f}", bank]
        own.append(f"frame_height = {belt.frame_height}")
        return [*common, *own, "[camera.specimen]", *specimen]
    features: dict[str, str | int | float] = {
        "Width": belt.width,
        "Height": belt.frame_height,
        "PixelFormat": "Mono8",
        "ExposureTime": NOMINAL_EXPOSURE_US,
        "AcquisitionLineRate": round(rate_hz, 1),
        "SimBeltSpeed": round(rate_hz, 1) * belt.pixel_pitch_mm,
    }
    names = {"producer": str(configured.producer), "serial": configured.serial}
    own = ['type = "genicam"', *(f"{key} = {json.dumps(value)}" for key, value in names.items())]
    own += ["[camera.features]", *(f"{key} = {json.dumps(v)}" for key, v in features.items())]
    return [*common, *own, "[camera.belt]", bank, "[camera.belt.specimen]", *specimen]


def _is_lossless(summary: Json) -> bool:
    """Every scan line was seen and every plate judged, but for the one that the end cut off; and
    verdicts come before the next plate's end, else buffers fill that a longer try would overrun."""
    judged = summary["plates"] - summary["undecided"]
    is_whole = summary["lost_frames"] == 0 and summary["gaps"] == 0
    is_in_time = judged > 0 and summary["latency_ms"]["p50"] <= summary["plate_period_ms"]
    return bool(is_whole and summary["undecided"] <= 1 and is_in_time)


def _loss(summary: Json) -> str:
    late_ms = summary["latency_ms"]["p50"]
    return (
        f"{summary['lost_frames']} frames lost, {summary['gaps']} gaps, {summary['undecided']} of "
        f"{summary['plates']} plates undecided, verdicts after {late_ms} ms at a plate "
        f"every {summary['plate_period_ms']} ms"
    )
