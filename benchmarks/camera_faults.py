"""Every fault of a camera, many times, in the middle of plates, while a whole station runs.

    python benchmarks/camera_faults.py [--camera simulated|producer] [--times 20] [--faults a,b]

`simulated` is the Python belt; `producer` the GenTL simulator, built with gcc and loaded through
harvesters, which renders the same belt. Prints one table: what record, log and lamp said of the
plates that each fault touched, and after how long the next plate was judged. Exit status 1 if a
plate that lacked a pixel passed, one that the belt carried has no record, or the station did not
recover.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drivers.camera.producer.build import build_producer
from drivers.camera.producer.source import NOMINAL_EXPOSURE_US, belt_source
from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import Slots
from models.runtimes import processor_name
from station.log_reader import Reader
from station.supervisor import Supervisor

Json = dict[str, Any]

LEAD_S = 15.0
"""From the start of the processes to the belt's."""
LINE_RATE_HZ, FRAME_HEIGHT, WIDTH = 4000.0, 64, 768
FRAME_S = FRAME_HEIGHT / LINE_RATE_HZ
SPECIMEN = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 40.0, "skew_deg": 0.8}
BELT = SimulatedCameraSettings.model_validate(
    {
        "type": "simulated",
        "seed": 3,
        "width": WIDTH,
        "frame_height": FRAME_HEIGHT,
        "line_rate_hz": LINE_RATE_HZ,
        "bank_plates": 4,
        "specimen": {**SPECIMEN, "lateral_offset_mm": 3.0, "contrast_scale": 3.0},
    }
)
SLOTS = Slots(BELT)
PLATE_ROWS = SLOTS.period - SLOTS.gap
STALL_S, OTHER_SERIAL_S = 0.4, 3.0


@dataclass(frozen=True)
class Fault:
    name: str
    knob: str
    """Of the camera: takes the numbers of the belt's frames."""
    frames: int = 1
    """Frames from that one on whose pixels are missing or wrong."""
    outage_s: float = 1.0
    """Until the next fault may come."""
    is_harmless: bool = False
    """Pixels arrive late, but all of them: the plate may be judged."""


SIMULATED = (
    Fault("frame lost", "drop_frames"),
    Fault("scan lines lost, unmarked", "drop_scan_lines"),
    Fault("frame cut short", "truncate"),
    Fault("frame twice", "duplicate"),
    Fault("camera stalls 0.4 s", "stall", math.ceil(STALL_S / FRAME_S), 1.5),
    Fault("black frame", "black"),
    Fault("saturated frame", "saturated"),
    Fault("pixels repeated", "stuck"),
    Fault("half as wide", "wrong_width"),
    Fault("Mono12 for Mono8", "wrong_pixel_format"),
    Fault("disconnect", "disconnect", outage_s=7.0),
)
PRODUCER = (
    Fault("frame lost", "SimLostFrames"),
    Fault("frame incomplete", "SimIncompleteFrames"),
    Fault("frame short", "SimShortFrames"),
    Fault("frame twice", "SimDuplicatedFrames"),
    Fault("frame 0.3 s late", "SimLateFrames", outage_s=1.5, is_harmless=True),
    Fault("half as high", "SimWrongHeightFrames"),
    Fault("disconnect", "SimDisconnectFrames", outage_s=9.0),
    Fault("other serial for 3 s", "SimOtherSerialFrames", outage_s=11.0),
)


@dataclass
class Case:
    """One fault at one place of the belt, and what came of it."""

    fault: Fault
    plate: int
    frame: int
    record: str = "none"
    logs: list[str] = field(default_factory=list)
    lamps: list[str] = field(default_factory=list)
    recovered_s: float | None = None

    @property
    def at_s(self) -> float:
        """When its frame is complete, from the belt's start."""
        return (self.frame + 1) * FRAME_S


def plan(faults: tuple[Fault, ...], times: int) -> list[Case]:
    """The faults in random order, each in the middle of a plate of its own."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(faults)), times))
    cases, plate, period_s = [], 4, SLOTS.period / LINE_RATE_HZ
    for number in order.tolist():
        frame = (SLOTS.start(plate) + PLATE_ROWS // 2) // FRAME_HEIGHT
        cases.append(Case(faults[number], plate, frame))
        plate += math.ceil(faults[number].outage_s / period_s)
    return cases


# --- files --------------------------------------------------------------------------------------


def write_files(folder: Path, kind: str, cases: list[Case], epoch_ns: int) -> Path:
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'id = "faults"\nversion = 1\n[plate]\nwidth_mm = 60.0\nlength_mm = 40.0\n'
        'belt_stop_timeout_s = 3.0\n[model]\nid = "lightdefectnet-v3"\n'
    )
    frames: dict[str, list[int]] = {}
    for case in cases:
        frames.setdefault(case.fault.knob, []).append(case.frame)
    camera = {"simulated": simulated_camera, "producer": producer_camera}[kind]
    config = folder / "station.toml"
    config.write_text(
        f'[station]\nid = "faults-1"\nrecipe = "{recipe}"\nruntime_dir = "{folder}/run"\n'
        f"plate_buffers = 12\n{camera(folder, frames, epoch_ns)}"
        f'[journal]\ndirectory = "{folder}/journal"\n'
        '[light]\nfail_hold_s = 0.05\ndevice = { type = "simulated" }\n'
    )
    return config


def simulated_camera(folder: Path, frames: dict[str, list[int]], epoch_ns: int) -> str:
    belt = folder / "belt.json"
    belt.write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))
    tables = {"faults", "belt_file", "specimen", "wear"}
    dump = BELT.model_dump(mode="json", exclude=tables, exclude_none=True)
    return (
        toml("camera", dump | {"belt_file": str(belt)})
        + toml("camera.specimen", BELT.specimen.model_dump(mode="json", exclude_none=True))
        + toml("camera.faults", frames | {"stall_s": STALL_S})
    )


def producer_camera(folder: Path, frames: dict[str, list[int]], epoch_ns: int) -> str:
    source = folder / "belt.lines"
    # Where the simulator keeps a device for one program at a time: others may use theirs.
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    descriptor = belt_source(BELT, plates=400)
    source.write_bytes(Path(f"/proc/self/fd/{descriptor}").read_bytes())
    os.close(descriptor)
    features: Json = {
        "SimSource": str(source),
        "Width": WIDTH,
        "Height": FRAME_HEIGHT,
        "ExposureTime": NOMINAL_EXPOSURE_US,
        "AcquisitionLineRate": LINE_RATE_HZ,
        "ChunkModeActive": True,
        "SimBeltSpeed": LINE_RATE_HZ * BELT.pixel_pitch_mm,
        "SimBeltEpoch": epoch_ns,
        "SimOtherSerialDuration": OTHER_SERIAL_S,
    } | {knob: ",".join(map(str, numbers)) for knob, numbers in frames.items()}
    camera = {
        "type": "genicam",
        "producer": str(build_producer(folder / "producer")),
        "serial": "VQI-LS-1",
        "pixel_pitch_mm": BELT.pixel_pitch_mm,
    }
    return toml("camera", camera) + toml("camera.features", features)


def toml(name: str, values: Json) -> str:
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return f"[{name}]\n{''.join(lines)}"


# --- what the station said ----------------------------------------------------------------------


def judge(cases: list[Case], events: list[tuple[float, Json]], records: list[Json]) -> list[str]:
    """Fill the cases in from events (s from the belt's start) and records; violations found."""
    wrong = conservation(records)
    by_plate = {r["plate_ordinal"]: r for r in records if r["reason"] != "gap"}
    ends = [*(case.at_s for case in cases[1:]), math.inf]
    for case, end_s in zip(cases, ends, strict=True):
        window = [event for at_s, event in events if case.at_s - FRAME_S <= at_s < end_s]
        case.logs = [text for event in window for text in said(event)]
        record = by_plate.get(case.plate)
        if record is not None:
            case.record = f"{record['verdict']} {record['reason'] or ''}".strip()
            shown = (event["lamp"] for event in window if "lamp" in event)
            ids = [s["state"] for s in shown if s["result_id"] == record["result_id"]]
            case.lamps = sorted({*ids, *(["fault"] if is_fault(window) else [])})
        case.recovered_s = recovery_s(case, events)
        if case.recovered_s is None or case.recovered_s > end_s - case.at_s + 1:
            wrong.append(f"{case.fault.name} at plate {case.plate}: the station did not recover")
        wrong += passed(case, by_plate)
    return wrong


def is_fault(window: list[Json]) -> bool:
    return any(event.get("lamp", {}).get("state") == "fault" for event in window)


def said(event: Json) -> list[str]:
    """What an event says for the log, without its folders and numbers."""
    if "problem" in event:
        text = re.sub(r"/\S+/", "", event["problem"]["text"].splitlines()[0])
        text = re.sub(r"\d+", "N", text)
        return [f"{event['problem']['part']}: {text}"]
    return [f"station {event['state']}"] if "state" in event else []


def recovery_s(case: Case, events: list[tuple[float, Json]]) -> float | None:
    """From the fault to the next judged plate."""
    for at_s, event in events:
        record = event.get("record")
        is_later = record and at_s > case.at_s and (record["plate_ordinal"] or 0) > case.plate
        if is_later and record["verdict"] in ("PASS", "FAIL"):
            return at_s - case.at_s
    return None


def passed(case: Case, by_plate: dict[int, Json]) -> list[str]:
    """Plates with a pixel in a missing or wrong frame that passed all the same."""
    if case.fault.is_harmless:
        return []
    first, last = case.frame * FRAME_HEIGHT, (case.frame + case.fault.frames) * FRAME_HEIGHT
    touched = [n for n in range(case.plate, case.plate + 9) if SLOTS.start(n) < last]
    touched = [n for n in touched if SLOTS.start(n) + PLATE_ROWS > first]
    passes = [n for n in touched if by_plate.get(n, {}).get("verdict") == "PASS"]
    return [f"{case.fault.name}: plate {n} was touched and passed" for n in passes]


def conservation(records: list[Json]) -> list[str]:
    """Plates that the trigger counted = plates with a record + plates in gaps."""
    plates = [r["plate_ordinal"] for r in records if r["reason"] != "gap"]
    unseen = sum(r["triggers"] or 0 for r in records if r["reason"] == "gap")
    span = max(plates) - min(plates) + 1
    if len(set(plates)) != len(plates):
        return ["a plate has two records"]
    inside = unseen - sum(r["triggers"] or 0 for r in before(records, min(plates)))
    return [] if len(plates) + inside == span else [f"{len(plates)} + {inside} of {span} plates"]


def before(records: list[Json], first: int) -> Iterable[Json]:
    """Gaps that ended before the first plate that was seen."""
    gaps = (record for record in records if record["reason"] == "gap")
    return (gap for gap in gaps if gap["plate_ordinal"] and gap["plate_ordinal"] < first)


# --- the run ------------------------------------------------------------------------------------


def run(folder: Path, kind: str, cases: list[Case]) -> list[str]:
    epoch_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
    config = write_files(folder, kind, cases, epoch_ns)
    events: list[tuple[float, Json]] = []

    def show(event: Json) -> None:
        events.append(((time.monotonic_ns() - epoch_ns) / 1e9, event))

    last = cases[-1]
    seconds = epoch_ns / 1e9 - time.monotonic() + last.at_s + last.fault.outage_s + 1
    options = ["--seconds", f"{seconds:.1f}"]
    supervisor = Supervisor(str(config), None, options, show, lambda text: print(text, flush=True))
    status = supervisor.run()
    if status:
        sys.exit(f"the station ended with status {status}")
    with Reader(folder / "journal") as reader:
        return judge(cases, events, list(reader.bodies("result")))


def print_table(faults: tuple[Fault, ...], cases: list[Case]) -> None:
    print("| fault | times | record of the plate | log | lamp | recovered, s: median, max |")
    print("|---|---|---|---|---|---|")
    for fault in faults:
        of = [case for case in cases if case.fault is fault]
        if of:
            times = [math.inf if c.recovered_s is None else c.recovered_s for c in of]
            print(
                f"| {fault.name} | {len(of)} | {counted(c.record for c in of)} "
                f"| {counted(text for c in of for text in dict.fromkeys(c.logs))} "
                f"| {counted(' + '.join(c.lamps) or 'nothing' for c in of)} "
                f"| {np.median(times):.1f}, {max(times):.1f} |"
            )


def counted(words: Iterable[str]) -> str:
    found = Counter(words)
    return ", ".join(f"{word} x {count}" for word, count in found.most_common()) or "nothing"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--camera", choices=["simulated", "producer"], default="simulated")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--faults", default="", help="knobs, separated by commas; default: all")
    options = parser.parse_args()
    known = SIMULATED if options.camera == "simulated" else PRODUCER
    chosen = tuple(f for f in known if not options.faults or f.knob in options.faults.split(","))
    cases = plan(chosen, options.times)
    with tempfile.TemporaryDirectory(prefix="camera-faults-") as name:
        wrong = run(Path(name), options.camera, cases)
    print(f"{options.camera}, {len(cases)} faults, {processor_name()}")
    print_table(chosen, cases)
    for text in wrong:
        print(f"WRONG: {text}")
    print(
        "no plate that lacked a pixel passed, every plate has its record" if not wrong else "failed"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
