"""How fast is a strip recorded, what does it cost the acquire thread and the page cache, and does a
station that records still inspect as fast?

    python benchmarks/recording.py [--folder DIR] [--gb 2] [--seconds 20] [--rounds 2]

First the recorder alone, as fast as the disk below DIR takes frames of 4096 x 256 px, beside the
plain copy of such a frame and a plain file written with one fdatasync at its end. Then `vqi run` on
the simulated belt of config/simulated.toml, in turns with and without `--record`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from drivers.camera import CameraInfo, Frame
from drivers.camera.recorder import Bounds, StripRecorder
from models.runtimes import processor_name
from station.config import load_configuration

WIDTH, HEIGHT = 4096, 256
CONFIG = Path("config/simulated.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="recording-") as name:
        print(f"{processor_name()}, {os.cpu_count()} cores")
        recorder_alone(Path(name), int(options.gb * 1e9))
        print("  records  pass+fail  lost  lacking   MB/s  p50 ms  p99 ms  cpu s/s")
        for number in range(2 * options.rounds):
            station(Path(name), number, number % 2 == 1, options.seconds)


# --- the recorder alone -------------------------------------------------------------------------


def recorder_alone(folder: Path, size: int) -> None:
    frames = size // (WIDTH * HEIGHT)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    plain_s = plain_file(folder / "plain", pixels, frames)
    copy_us = copy_alone_us(pixels)
    cached, cpu_s, started = cached_mb(), time.process_time(), time.perf_counter()
    append_us = record(folder / "strip", pixels, frames)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    print(
        f"plain file {size / 1e6 / plain_s:.0f} MB/s; recorder {size / 1e6 / wall_s:.0f} MB/s, "
        f"{cpu_s / size * 1e10:.1f} % of a core at 100 MB/s\n"
        f"append of a frame of 1 MB {append_us:.0f} us, its copy alone {copy_us:.0f} us (medians)\n"
        f"page cache grew by {cached_mb() - cached:.0f} MB in {size / 1e6:.0f} MB recorded"
    )
    shutil.rmtree(folder / "strip")


def record(folder: Path, pixels: np.ndarray[Any, Any], frames: int) -> float:
    """Record in a ring of half the size; the median time that `append` took, in us."""
    info = CameraInfo("simulated", "VQI", "benchmark", "B-1", WIDTH, HEIGHT, "Mono8")
    bounds = Bounds(max(frames * pixels.size // 2, 50 * pixels.size), 0)
    recorder = StripRecorder(folder, info, bounds, lambda text: sys.exit(text))
    first, took = Frame(pixels, WIDTH, 0, 0), []
    for number in range(frames):
        while number - recorder.counts.frames > 64:
            time.sleep(0.0005)
        before = time.perf_counter()
        recorder.append(replace(first, frame_id=number))
        took.append(time.perf_counter() - before)
    recorder.close()
    return float(np.median(took)) * 1e6


def plain_file(path: Path, pixels: np.ndarray[Any, Any], frames: int) -> float:
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(frames):
            file.write(pixels.data)
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def copy_alone_us(pixels: np.ndarray[Any, Any]) -> float:
    slots, took = np.empty((64, *pixels.shape), np.uint8), []
    for number in range(640):
        before = time.perf_counter()
        np.copyto(slots[number % 64], pixels)
        took.append(time.perf_counter() - before)
    return float(np.median(took)) * 1e6


def cached_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Cached:")]
    return int(line.split()[1]) / 1024


# --- a station with and without -----------------------------------------------------------------


def station(folder: Path, number: int, is_recording: bool, seconds: float) -> None:
    config = folder / f"station-{number}.toml"
    loaded = load_configuration(str(CONFIG)).value
    text = CONFIG.read_text()
    for path in (loaded.station.runtime_dir, loaded.journal.directory):
        text = text.replace(f'"{path}"', f'"{folder / str(number) / path.name}"')
    config.write_text(text)
    recording = ["--record", str(folder / f"strip-{number}"), "--record-gb", "1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-P", "-m", "station.cli", "run", "--config", str(config), "--json"]
    command += ["--seconds", str(seconds), *(recording if is_recording else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(done.stdout.splitlines()[-1])["summary"]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lacking = summary["recording"]["lacking_frames"] if is_recording else 0
    latency = summary["latency_ms"]
    print(
        f"{'yes' if is_recording else 'no':>9} {summary['pass'] + summary['fail']:>10}"
        f" {summary['lost_frames']:>5} {lacking:>8} {summary['mb_per_s']:>6}"
        f" {latency['p50']:>7} {latency['p99']:>7} {cpu_s / summary['seconds']:>8.2f}"
    )


if __name__ == "__main__":
    main()
