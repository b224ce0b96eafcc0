"""Opens and closes the configured camera many times, each time in a fresh process as the station
does after a loss, and says whether memory, descriptors or processes pile up.

python benchmarks/open_close.py --config config/simulated-genicam.toml --cycles 1000
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

from rich.progress import track

from station.acquisition import CameraProcess, Tick
from station.config import load_configuration

_SAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config/simulated-genicam.toml")
    parser.add_argument("--cycles", type=int, default=1000)
    given = parser.parse_args()
    settings = load_configuration(given.config).value
    rows = []
    for cycle in track(range(given.cycles + 1), "cycles"):
        if cycle:
            _cycle(CameraProcess(settings.camera, settings.station.ring_s))
        if cycle % max(1, given.cycles // _SAMPLES) == 0:
            rows.append((cycle, *_held()))
    print(f"{'cycles':>8} {'rss_mb':>8} {'descriptors':>12} {'children':>9}")
    for row in rows:
        print(f"{row[0]:8d} {row[1]:8.1f} {row[2]:12d} {row[3]:9d}")


def _cycle(camera: CameraProcess) -> None:
    """Open, take a frame, close."""
    try:
        camera.start()
        while True:
            received = camera.receive(timeout_s=5.0)
            if received is None:
                raise SystemExit("no frame and no tick within 5 s")
            if not isinstance(received, Tick):
                camera.release(received[1])
                return
    finally:
        camera.close()


def _held() -> tuple[float, int, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, descriptors, len(children)


if __name__ == "__main__":
    main()
