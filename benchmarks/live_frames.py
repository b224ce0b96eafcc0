"""What the camera's picture on the page costs the acquire thread, for each frame, small and large:
while nobody looks, and while somebody does. `python benchmarks/live_frames.py`"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from drivers.camera import MONO8, Frame
from station.live_frames import LiveFrames

WIDTH, RATE_HZ = 4096, 3000.0
FRAMES = {64: 2000, 16384: 100}
"""Of each height."""


def frame(number: int, pixels: np.ndarray) -> Frame:
    at_ns = int(number * len(pixels) / RATE_HZ * 1e9)
    return Frame(
        pixels=pixels, frame_id=number, timestamp_ns=at_ns, width=WIDTH, pixel_format=MONO8
    )


def took_us(live: LiveFrames, frames: list[Frame], is_looking: bool) -> list[float]:
    took = []
    for one in frames:
        if is_looking:
            live.look()
            time.sleep(0.002 * max(1, one.height // 1024))  # faster than at the line
        began = time.perf_counter_ns()
        live.take(one, dict, time.monotonic())
        took.append((time.perf_counter_ns() - began) / 1000)
    return sorted(took)


def main() -> None:
    for height, count in FRAMES.items():
        pixels = np.random.default_rng(1).integers(0, 255, (height, WIDTH), np.uint8)
        frames = [frame(number, pixels) for number in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            live = LiveFrames(Path(folder), WIDTH)
            for what in ("nobody looks", "somebody looks"):
                took = took_us(live, frames, what == "somebody looks")
                p50, p99 = statistics.median(took), took[int(0.99 * count)]
                print(
                    f"{height:5} {what:14} {p50:8.1f} us p50 {p99:8.1f} us p99 "
                    f"{took[-1]:8.1f} us max of {1e6 * height / RATE_HZ:.0f} us"
                )


if __name__ == "__main__":
    main()
