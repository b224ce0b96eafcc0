"""What does acquisition through harvesters cost, and how much does it carry?

    python benchmarks/acquisition.py [--seconds 5] [--producer FILE.cti]

The GenTL simulator delivers 4096 x 1024 Mono8 at a paced line rate; `GenicamCamera` copies each
frame into one of 32 slots, as into the station's ring. One row of JSON for each rate: what came,
what was lost, and the share of one core that the consumer and the simulated camera took.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from drivers.camera.genicam import GenicamCamera
from drivers.camera.producer.build import build_producer
from drivers.camera.settings import GenicamCameraSettings

WIDTH, HEIGHT, RING_FRAMES, PITCH_MM = 4096, 1024, 32, 0.1
LINE_RATES_HZ = (24_414.0, 48_828.0, 100_000.0)
"""100, 200 and 410 MB/s."""


def settings(producer: Path, line_rate_hz: float) -> GenicamCameraSettings:
    return GenicamCameraSettings(
        type="genicam",
        producer=producer,
        serial="VQI-LS-1",
        features={
            "Width": WIDTH,
            "Height": HEIGHT,
            "ExposureTime": 10.0,
            "AcquisitionLineRate": line_rate_hz,
            "SimBeltSpeed": line_rate_hz * PITCH_MM,
        },
    )


def camera_thread_s() -> float:
    """Processor time of the simulated camera's own thread."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "vqi-camera":
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def measure(producer: Path, line_rate_hz: float, seconds: float) -> dict[str, float]:
    with GenicamCamera(settings(producer, line_rate_hz)) as camera:
        # Written once, so that no page is made while frames come.
        ring = np.ones((RING_FRAMES, camera.info.max_frame_bytes), np.uint8)
        camera.start()
        camera.grab(ring[0], 2.0)
        begin_s, used_s, camera_s = time.monotonic(), time.process_time(), camera_thread_s()
        first = last = None
        frames = incomplete = 0
        while time.monotonic() - begin_s < seconds:
            frame = camera.grab(ring[frames % RING_FRAMES], 2.0)
            if frame is None:
                continue
            first = frame.frame_id if first is None else first
            last = frame.frame_id
            frames += 1
            incomplete += frame.is_incomplete
        wall_s = time.monotonic() - begin_s
        camera_s = camera_thread_s() - camera_s
        used_s = time.process_time() - used_s - camera_s
    return {
        "line_rate_hz": line_rate_hz,
        "mb_per_s": round(frames * WIDTH * HEIGHT / wall_s / 1e6, 1),
        "frames": frames,
        "lost_frames": 0 if first is None or last is None else last - first + 1 - frames,
        "incomplete_frames": incomplete,
        "consumer_core_share": round(used_s / wall_s, 3),
        "simulated_camera_core_share": round(camera_s / wall_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--producer", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        producer = arguments.producer or build_producer(Path(folder))
        for line_rate_hz in LINE_RATES_HZ:
            print(json.dumps(measure(producer, line_rate_hz, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
