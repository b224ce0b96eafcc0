"""What taking out the flat field costs: ways to do it side by side, and its share of the time that
the network takes for the same scan lines.

`python benchmarks/flat_field.py [--config FILE]`; prints one JSON object a row.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import cv2
import numpy as np

from models.runtimes import processor_name
from station.bench import NetworkAlone, dense_camera
from station.config import load_configuration
from station.flat_field import correct, correction_of, measure_flat_field
from station.product import load_product

WIDTH, ROWS = 4096, 64
_TRIES, _CALLS = 9, 40
_NETWORK_S = 5.0


def ways() -> dict[str, Callable[[], None]]:
    """Each corrects a frame of 64 x 4096 pixels."""
    rng = np.random.default_rng(1)
    light = 1 - 0.2 * np.linspace(-1, 1, WIDTH) ** 2
    dark = np.clip(rng.normal(4, 1.5, (512, WIDTH)), 0, 255).astype(np.uint8)
    bright = np.clip(rng.normal(180 * light + 4, 2.0, (4096, WIDTH)), 0, 255).astype(np.uint8)
    field = measure_flat_field(dark, bright, "benchmark")
    ours, frame = correction_of(field), bright[:ROWS].copy()
    offset, gain = np.rint(field.dark).astype(np.uint8), field.gain
    offsets = np.ascontiguousarray(np.broadcast_to(offset, (ROWS, WIDTH)))
    gains8 = np.ascontiguousarray(
        np.broadcast_to(np.clip((gain - 1) * 256, 0, 255).astype(np.uint8), (ROWS, WIDTH))
    )
    gains16 = np.rint(gain * 128).astype(np.uint16)
    table = np.clip(np.rint((np.arange(256.0)[None] - offset[:, None]) * gain[:, None]), 0, 255)
    flat, base = table.astype(np.uint8).ravel(), np.arange(WIDTH, dtype=np.int32) * 256
    wide, real = np.empty((ROWS, WIDTH), np.uint16), np.empty((ROWS, WIDTH), np.float32)
    index, scratch = np.empty((ROWS, WIDTH), np.int32), np.empty_like(frame)

    def cv2_8_bit() -> None:
        cv2.subtract(frame, offsets, dst=scratch)
        cv2.multiply(scratch, gains8, dst=frame, scale=1 / 256)
        cv2.add(scratch, frame, dst=scratch)

    def numpy_16_bit() -> None:
        np.subtract(frame, np.minimum(frame, offset), out=scratch)
        np.multiply(scratch, gains16, out=wide, casting="unsafe")
        np.minimum(np.right_shift(wide, 7, out=wide), 255, out=wide)
        np.copyto(scratch, wide, casting="unsafe")

    def numpy_float() -> None:
        np.multiply(np.subtract(frame, offset, out=real), gain, out=real)
        np.rint(np.clip(real, 0, 255, out=real), out=real)
        np.copyto(scratch, real, casting="unsafe")

    def look_up() -> None:
        np.take(flat, np.add(frame, base, out=index), out=scratch, mode="clip")

    return {
        "the station's: cv2, float32 product in blocks, 0 and 255 kept": lambda: correct(
            frame, ours
        ),
        "cv2, 8-bit fixed point (0.4 % steps)": cv2_8_bit,
        "numpy, 16-bit fixed point (0.8 % steps)": numpy_16_bit,
        "numpy, float32": numpy_float,
        "numpy, a table for each column": look_up,
    }


def seconds_a_frame(ways_: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The best of some tries, all ways in turn."""
    best = dict.fromkeys(ways_, float("inf"))
    for _ in range(_TRIES):
        for name, way in ways_.items():
            start = time.perf_counter()
            for _ in range(_CALLS):
                way()
            best[name] = min(best[name], (time.perf_counter() - start) / _CALLS)
    return best


def network_lines_per_s(config: str) -> float:
    """Scan lines that the network alone inspects on all cores, on a dense belt."""
    loaded = load_configuration(config)
    recipe = load_product(loaded)
    alone = NetworkAlone(loaded, dense_camera(loaded.value, recipe), recipe)
    return alone.tiles_per_s(_NETWORK_S) / alone.tiles_per_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="shipped:simulated")
    config = parser.parse_args().config
    cv2.setNumThreads(1)
    found = seconds_a_frame(ways())
    for name, seconds in found.items():
        print(json.dumps({"way": name, "mb_per_s": round(ROWS * WIDTH / 1e6 / seconds)}))
    lines_per_s, cores = network_lines_per_s(config), len(os.sched_getaffinity(0))
    share = next(iter(found.values())) / ROWS * lines_per_s
    print(
        json.dumps(
            {
                "network_alone_scan_lines_per_s": round(lines_per_s),
                "flat_field_share_of_one_core": round(share, 5),
                "flat_field_share_of_all_cores": round(share / cores, 5),
                "processor": processor_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
