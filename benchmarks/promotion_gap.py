"""What a promotion and a roll-back cost a running line: plates UNDECIDED or lost, and the longest
time between two verdicts around each change, against the same line without a change.

    python benchmarks/promotion_gap.py [--changes 10] [--line-rate 3000] [--folder DIR]

A station of its own runs in a temporary folder: simulated belt, real processes, real journal. Two
models of the same network take turns: a promotion, then a roll-back. One JSON object a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from second_model import other_model
from station_rig import Rig, check_conservation, wait_until
from test_promotion import activated, plates, proposed

from station.control import send_command

Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--changes", type=int, default=10, help="promotions, and as many roll-backs"
    )
    parser.add_argument("--line-rate", type=float, default=3000.0, help="scan lines a second")
    parser.add_argument("--plates", type=int, default=6, help="between two changes, at least")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqi-promotion-") as folder:
        measure(Rig(Path(folder), camera={"line_rate_hz": wanted.line_rate}), wanted)


def measure(rig: Rig, wanted: argparse.Namespace) -> None:
    rig.recipe_lines = "[keep]\npass_whole_share = 0.2\n"
    models = [
        other_model(rig.folder, f"model-{name}", scale) for name, scale in (("a", 1.0), ("b", 0.9))
    ]
    asked: list[Json] = []
    with rig.running():
        a = activated(rig, models[0])
        b = proposed(rig, models[1])
        plates(rig, wanted.plates)
        began_ns = time.monotonic_ns()
        plates(rig, 5 * wanted.plates)
        quiet = (began_ns, time.monotonic_ns())
        memory = [rig.status()["process"]]
        for _ in range(wanted.changes):
            asked.append(change(rig, "recipe", b, b))
            plates(rig, wanted.plates)
            asked.append(change(rig, "rollback", f"{a} measured", a))
            wait_until(lambda: bool(rig.status()["parity"]), 120.0, "parity")
            plates(rig, wanted.plates)
        memory.append(rig.status()["process"])
    check_conservation(rig)
    report(rig, asked, quiet, memory)


def change(rig: Rig, op: str, text: str, name: str) -> Json:
    """Ask for it and wait until it judges."""
    version = int(name.partition("@")[2])
    began_ns = time.monotonic_ns()
    assert send_command(rig.runtime, op, text)["ok"]
    wait_until(lambda: rig.status()["recipe"]["version"] == version, 120.0, name)
    return {"what": op, "began_ns": began_ns, "ended_ns": time.monotonic_ns()}


def report(rig: Rig, asked: list[Json], quiet: tuple[int, int], memory: list[Json]) -> None:
    results = rig.rows("result")[:-1]  # the last plate may be cut off by the end
    decided = np.array([row["decided_ns"] for row in results])
    models = [row["model_sha256"] for row in results]
    handovers = sum(one != other for one, other in itertools.pairwise(models))
    undecided = [row["reason"] for row in results if row["verdict"] == "UNDECIDED"]
    without = longest_ms(decided, *quiet)
    for what in ("recipe", "rollback"):
        mine = [one for one in asked if one["what"] == what]
        around = [longest_ms(decided, one["began_ns"], one["ended_ns"]) for one in mine]
        took = [(one["ended_ns"] - one["began_ns"]) / 1e9 for one in mine]
        print(json.dumps({
            "what": "promotion" if what == "recipe" else "roll-back",
            "changes": len(mine),
            "asked_to_judging_s": [round(float(np.median(took)), 2), round(max(took), 2)],
            "longest_between_verdicts_ms": round(max(around), 1),
            "without_a_change_ms": round(without, 1),
        }))  # fmt: skip
    seen = Counter(row["verdict"] for row in results)
    print(json.dumps({
        "plates": len(results),
        "verdicts": dict(seen),
        "undecided": undecided,
        "lost": sum(row["triggers"] for row in results if row["reason"] == "gap"),
        "handovers": handovers,
        "starts": sum(row["what"] == "start" for row in rig.rows("change")),
        "parity": Counter(row["detail"]["result"] for row in rig.rows("change")
                          if row["what"] == "model_parity"),
        "rss_mb": [round(one["rss_bytes"] / 1e6) for one in memory],
        "descriptors": [one["descriptors"] for one in memory],
    }))  # fmt: skip


def longest_ms(decided: Any, since_ns: int, until_ns: int) -> float:
    """Longest time between two verdicts of which one lies in this time, ms."""
    first = max(0, int(np.searchsorted(decided, since_ns)) - 1)
    last = min(len(decided), int(np.searchsorted(decided, until_ns)) + 1)
    return float(np.diff(decided[first : last + 1]).max() / 1e6) if last > first else 0.0


if __name__ == "__main__":
    main()
