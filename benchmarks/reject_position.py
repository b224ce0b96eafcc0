"""How far a plate is from its accept point when the accept output goes on.

    python benchmarks/reject_position.py [--seconds 60] [--seed 1] [--json]

The lamp process' accept thread, in real time, drives a coil of a Modbus module over TCP (pymodbus'
simulator server) with pulses that the module times. The belt wanders, stops and turns back; its
true place is known when the coil goes on. Frames come late by some milliseconds. Where it may, it
runs at Nice=-15 as the lamp's unit does, and the module before it: that has a processor of its own.
Firm: half a frame height and 20 ms of travel; exit status 1 where that is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from belt_model import Belt, restless_belt
from modbus_peer import PULSE_OFFSET

from models.runtimes import processor_name
from station.belt_register import SLACK_S, Place
from station.config import AcceptSettings
from station.outputs import Accept, BeltNews, Events, PlateResult
from station.record import Provenance, Verdict

_MODULE = Path(__file__).parents[1] / "tests" / "modbus_peer.py"
PITCH_MM, DISTANCE_MM, PULSE_MS = 0.1, 300.0, 100
PLATE, GAP = 1500, 2500
"""Scan lines."""
VERDICT_S = 0.1
LEASE_NS = 3600 * 10**9


@dataclass(frozen=True)
class Case:
    """A belt's nominal speed in scan lines a second, and the camera's frame height."""

    speed: float
    height: int
    jitter: float


CASES = (Case(3000, 64, 0.1), Case(3000, 256, 0.1), Case(1000, 64, 0.3), Case(12000, 256, 0.05))


@dataclass(frozen=True)
class Errors:
    case: Case
    reached: int
    """Plates that passed and whose point the belt reached."""
    fates: dict[str, int]
    mm: list[float]
    shares: list[float]
    """Of the limit."""

    def row(self) -> dict[str, object]:
        p50, p99 = np.percentile(np.abs(self.mm), [50, 99])
        return {
            "belt_mm_s": self.case.speed * PITCH_MM,
            "frame_mm": self.case.height * PITCH_MM,
            "reached": self.reached,
            **self.fates,
            "error_mm_p50": round(float(p50), 2),
            "error_mm_p99": round(float(p99), 2),
            "error_mm_max": round(float(np.abs(self.mm).max()), 2),
            "limit_mm": round((self.case.height / 2 + SLACK_S * self.case.speed) * PITCH_MM, 2),
            "share_of_limit_max": round(max(self.shares), 2),
        }


def measure(case: Case, seconds: float, seed: int) -> Errors:
    rng = random.Random(seed)
    belt = restless_belt(rng, case.speed, seconds, case.jitter)
    module = subprocess.Popen(
        [sys.executable, str(_MODULE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert module.stdout is not None
    _give_priority(module.pid, -19)
    accept, events = _open(int(module.stdout.readline()))
    try:
        start_ns, plates = _play(accept, belt, case, rng)
    finally:
        accept.close()
        history = json.loads(module.communicate()[0])
    lit_ns = [at_ns for at_ns, coil, is_on in history if coil == 0 and is_on]
    told = [event for event in events.take() if event["op"] == "accept"]
    return _errors(case, belt, plates, told, [(ns - start_ns) / 1e9 for ns in lit_ns])


def _give_priority(pid: int, nice: int) -> bool:
    try:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    except PermissionError:
        return False
    return True


def _open(port: int) -> tuple[Accept, Events]:
    device = {"type": "modbus", "host": "127.0.0.1", "tcp_port": port, "outputs": {"accept": 0}}
    settings = AcceptSettings.model_validate(
        {
            "distance_mm": DISTANCE_MM,
            "pulse_ms": PULSE_MS,
            "device": {**device, "pulse_offset": PULSE_OFFSET},
        }
    )
    events = Events(lambda: None)
    accept = Accept(settings, PITCH_MM, events)
    accept.open(is_restart=False)
    accept.renew(time.monotonic_ns() + LEASE_NS)
    return accept, events


Plates = dict[str, tuple[int, bool]]
"""Trailing edge and whether it passed."""


def _play(accept: Accept, belt: Belt, case: Case, rng: random.Random) -> tuple[int, Plates]:
    """Send frames, plates and verdicts when they would come; when that began, and the plates."""
    start_ns = time.monotonic_ns() + 200_000_000
    plates: Plates = {}
    todo = sorted(_moments(belt, case, rng, start_ns, plates), key=lambda moment: moment[0])
    is_new = True
    for at_s, item in todo:
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9 + at_s))
        if isinstance(item, PlateResult):
            accept.result(item, time.monotonic_ns())
        else:
            accept.belt(BeltNews(case.height, is_new, *item))
            is_new = False
    time.sleep(0.5)
    return start_ns, plates


Seen = tuple[tuple[Place, ...], tuple[tuple[str, bool, int], ...]]


def _moments(
    belt: Belt, case: Case, rng: random.Random, start_ns: int, plates: Plates
) -> list[tuple[float, Seen | PlateResult]]:
    moments: list[tuple[float, Seen | PlateResult]] = []
    for frame in belt.frames(case.height):
        arrives = frame.at_s + 0.002 + min(0.02, rng.expovariate(1 / 0.004))
        first = frame.end - case.height
        edges = []
        for number in range(first // (PLATE + GAP) - 1, frame.end // (PLATE + GAP) + 1):
            begin = GAP + number * (PLATE + GAP)
            name = f"p-{number}"
            if number >= 0 and first <= begin < frame.end:
                edges.append((name, False, begin))
            if number >= 0 and first <= begin + PLATE < frame.end:
                edges.append((name, True, begin + PLATE))
                is_pass = rng.random() < 0.7
                plates[name] = begin + PLATE, is_pass
                verdict = Verdict.PASS if is_pass else Verdict.FAIL
                result = PlateResult(name, number, verdict, Provenance.PRODUCTION, False)
                moments.append((arrives + VERDICT_S, result))
        place = Place(frame.end, start_ns + int(frame.at_s * 1e9))
        moments.append((arrives, ((place,), tuple(edges))))
    return moments


def _errors(
    case: Case, belt: Belt, plates: Plates, told: list[dict[str, object]], lit_s: list[float]
) -> Errors:
    accepted = [str(event["result_id"]) for event in told if event["command"] == "accept"]
    assert len(accepted) == len(lit_s), "a pulse without a word, or a word without a pulse"
    assert all(plates[name][1] for name in accepted), "a plate that did not pass was accepted"
    mm, shares = [], []
    for name, at_s in zip(accepted, lit_s, strict=True):
        error = belt.place(at_s) - (plates[name][0] + DISTANCE_MM / PITCH_MM)
        limit = case.height / 2 + SLACK_S * max(case.speed, belt.top_speed(at_s - 1.0, at_s))
        mm.append(error * PITCH_MM)
        shares.append(abs(error) / limit)
    counts = Counter(str(event["command"]) for event in told)
    fates = {name: counts[name] for name in ("accept", "withheld", "withheld_late")}
    farthest = max(frame.end for frame in belt.frames(case.height)) - DISTANCE_MM / PITCH_MM
    reached = sum(is_pass and edge <= farthest for edge, is_pass in plates.values())
    return Errors(case, reached, fates, mm, shares)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each belt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    has_priority = _give_priority(os.getpid(), -15)
    if not arguments.json:
        print(processor_name() + ("" if has_priority else ", without priority"))
    worst = 0.0
    for case in CASES:
        errors = measure(case, arguments.seconds, arguments.seed)
        row = errors.row()
        worst = max(worst, *errors.shares)
        if arguments.json:
            print(json.dumps(row))
        else:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0 if worst <= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
