"""Freed memory goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys

_HOLES = """
from station.heap import give_back_freed

def resident_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1000

blocks = [bytearray(b"1" * 100_000) for _ in range(400)]
last = blocks[-1]
full = resident_mb()
del blocks  # below a block that is used, the C library keeps them
freed = resident_mb()
give_back_freed()
print(full, freed, resident_mb())
"""


def test_holes_below_a_block_that_is_used_go_back_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True
    )
    full_mb, freed_mb, after_mb = map(float, done.stdout.split())
    assert full_mb - freed_mb < 10, "the C library gave them back by itself: the test shows nothing"
    assert full_mb - after_mb > 30
