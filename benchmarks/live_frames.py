"""What the camera's picture on the page costs the acquire thread, for each frame: while nobody
looks, and while somebody does. `python benchmarks/live_frames.py`"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from drivers.camera import MONO8, Frame
from station.live_frames import LiveFrames

FRAMES, WIDTH, HEIGHT, RATE_HZ = 2000, 4096, 64, 3000.0


def frame(number: int, pixels: np.ndarray) -> Frame:
    at_ns = int(number * HEIGHT / RATE_HZ * 1e9)
    return Frame(
        pixels=pixels, frame_id=number, timestamp_ns=at_ns, width=WIDTH, pixel_format=MONO8
    )


def main() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    frames = [frame(number, pixels) for number in range(FRAMES)]
    with tempfile.TemporaryDirectory() as folder:
        live = LiveFrames(Path(folder))
        for what in ("nobody looks", "somebody looks"):
            took = []
            for one in frames:
                if what == "somebody looks":
                    live.look()
                    time.sleep(0.002)  # ten times as often as at the line
                began = time.perf_counter_ns()
                live.take(one, dict, time.monotonic())
                took.append(time.perf_counter_ns() - began)
            took.sort()
            p50, p99 = statistics.median(took) / 1000, took[int(0.99 * len(took))] / 1000
            print(
                f"{what:16} {p50:8.1f} us p50 {p99:8.1f} us p99 of {1e6 * HEIGHT / RATE_HZ:.0f} us"
            )


if __name__ == "__main__":
    main()
