"""A station on small plates for benchmarks that need thousands of verdicts: its configuration, the
highest rate it carries here, a run of it in the background, and how long its verdicts took."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from campaign.ledger import ROOT, Ledger, State
from numpy.typing import NDArray
from station_rig import children

from drivers.camera.settings import SimulatedCameraSettings
from models.runtimes import processor_name
from station.bench import NetworkAlone, highest_lossless
from station.config import load_configuration, load_recipe
from station.control import send_command
from station.ipc import PeerGone
from station.log_reader import Reader
from station.processes import process_figures

Json = dict[str, Any]
Floats = NDArray[np.float64]
_WIDTH_MM, _LENGTH_MM, _GAP_MM, _PITCH_MM = 60.0, 40.0, 10.0, 0.1
_FRAME_HEIGHT = 64
_START_LIMIT_S = 60.0
_TRY_S = 15.0
_FIRST_SHARE = 0.5
"""Of the network's own rate, tried first: of plates this small the records take most time."""
_WITHOUT_END = {"interrupted", "belt stopped", "gap"}
"""Reasons of records whose plate's last scan line was never seen."""
METRICS_PORT = 9791
PROCESSES = ("lamp", "journal", "station", "camera", "metrics")
PLATES_PER_SCAN_LINE = _PITCH_MM / (_LENGTH_MM + _GAP_MM)

_RECIPE = f"""
id = "small"
version = 1
[plate]
width_mm = {_WIDTH_MM}
length_mm = {_LENGTH_MM}
edge_margin_mm = 2.0
min_gap_mm = 3.0
[model]
id = "lightdefectnet-v3"
"""


@dataclass(frozen=True)
class Bench:
    """A folder that holds everything of one benchmark, also between its pieces."""

    folder: Path
    defective_share: float = 0.5

    @property
    def config(self) -> Path:
        return self.folder / "station.toml"

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def write(self, rate_hz: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.toml").write_text(_RECIPE)
        self.config.write_text(_configuration(self, rate_hz))


def _configuration(bench: Bench, rate_hz: float) -> str:
    return f"""
[station]
id = "bench"
recipe = "{bench.folder / "recipe.toml"}"
runtime_dir = "{bench.runtime}"
inspect_threads = {os.cpu_count()}

[camera]
type = "simulated"
seed = 1
width = 768
frame_height = {_FRAME_HEIGHT}
line_rate_hz = {rate_hz:.1f}
pixel_pitch_mm = {_PITCH_MM}
bank_plates = 16

[camera.specimen]
width_mm = {_WIDTH_MM}
length_mm = {_LENGTH_MM}
gap_mm = {_GAP_MM}
lateral_offset_mm = 1.0
skew_deg = 0.3
defective_share = {bench.defective_share}

[journal]
directory = "{bench.journal}"
snapshot_interval_s = 30.0

[light]
device = {{ type = "simulated" }}
fail_hold_s = 0.1

[metrics]
port = {METRICS_PORT}
"""


# --- the highest rate ---------------------------------------------------------------------------


def highest_rate_hz(bench: Bench, say: Callable[[str], None]) -> float:
    """Scan lines/s that the station carries here without loss; measured once for a folder and a
    processor. Takes some minutes. Raises `BenchError`."""
    known = bench.folder / "highest-rate.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(known.read_text())
        if found["host"] == host():
            return float(found["rate_hz"])
    bench.write(1000.0)
    loaded, recipe = (
        load_configuration(str(bench.config)),
        load_recipe(str(bench.folder / "recipe.toml")),
    )
    camera = loaded.value.camera
    assert isinstance(camera, SimulatedCameraSettings)
    alone = NetworkAlone(loaded, camera, recipe)
    tried = Bench(bench.folder / "rate", bench.defective_share)

    def attempt(rate_hz: float) -> Json:
        tried.write(rate_hz)
        period_ms = 1000 * alone.period_lines / rate_hz
        return run_to_end(tried, _TRY_S) | {"plate_period_ms": round(period_ms, 1)}

    network_hz = alone.tiles_per_s(5.0) / alone.tiles_per_line
    rate_hz, _ = highest_lossless(attempt, network_hz, say, _FIRST_SHARE)
    known.write_text(json.dumps({"host": host(), "rate_hz": rate_hz}))
    return rate_hz


def run_to_end(bench: Bench, seconds: float) -> Json:
    """The summary of a run of that length."""
    done = subprocess.run(
        vqi("run", "--config", str(bench.config), "--json", "--seconds", str(seconds)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    summary: Json = json.loads(done.stdout.splitlines()[-1])["summary"]
    return summary


ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")
"""Before a command: it is told to end when this process has ended, however."""


def vqi(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "station.cli", *arguments]


# --- a run in the background --------------------------------------------------------------------


@contextmanager
def running(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """`vqi run`, OPERATIONAL; told to stop at the end. Its log is added to `stderr.log`."""
    with (bench.folder / "stderr.log").open("ab") as log:
        process = subprocess.Popen(
            [*ENDS_WITH_US, *vqi("run", "--config", str(bench.config))],
            stdout=subprocess.DEVNULL,
            stderr=log,
            # In one session with what loads it: the kernel may share the processor among sessions
            # first (sched(7), autogroup), where the units have one group for all.
            process_group=0,
        )
    try:
        deadline = time.monotonic() + _START_LIMIT_S
        while status(bench).get("plates", 0) < 5:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the station did not start; see {bench.folder / 'stderr.log'}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(60.0)


def status(bench: Bench) -> Json:
    """Of the station; empty if none answers."""
    try:
        said: Json = send_command(bench.runtime, "status")["status"]
    except (PeerGone, TimeoutError, OSError):
        return {}
    return said


def lives(run: subprocess.Popen[bytes], names: Iterable[str]) -> dict[str, list[int]]:
    """Process id and start of these of its processes; who came back has another."""
    pids = children(run.pid)
    found = {name: process_figures(pids[name]) for name in names if name in pids}
    return {name: [pids[name], of.start_ticks] for name, of in found.items() if of is not None}


# --- what came of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Latencies:
    """From the last scan line in memory to the lamp's command, of each plate of one boot."""

    commanded_ns: NDArray[np.int64]
    ms: Floats

    def between(self, begin_ns: int, end_ns: int) -> Floats:
        inside = (self.commanded_ns >= begin_ns) & (self.commanded_ns < end_ns)
        return self.ms[inside]


def latencies(bench: Bench, boot_id: str) -> Latencies:
    """Read from the log, after the run."""
    last: dict[str, int] = {}
    found: list[tuple[int, float]] = []
    with Reader(bench.journal) as reader:
        for body in reader.bodies("result"):
            if body["boot_id"] == boot_id and body["reason"] not in _WITHOUT_END:
                last[body["result_id"]] = body["last_scan_line_ns"]
        for body in reader.bodies("actuation"):
            begin_ns = last.get(body["result_id"])
            is_light = body.get("output", "light") == "light"
            if begin_ns is not None and is_light and body["commanded_ns"]:
                commanded_ns = body["commanded_ns"]
                found.append((commanded_ns, (commanded_ns - begin_ns) / 1e6))
    found.sort()
    return Latencies(
        np.array([ns for ns, _ in found], np.int64), np.array([ms for _, ms in found], np.float64)
    )


# --- ledgers ------------------------------------------------------------------------------------


def host() -> str:
    return f"{platform.node()}, {processor_name()}, {os.cpu_count()} cores"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def state() -> Json:
    """Of the program: a commit, and what differs from it."""
    now = State.now()
    return {"commit": now.commit, "dirty": now.dirty}


def counting(path: Path, rate_hz: float, root: Path = ROOT) -> list[Json]:
    """Rows of a ledger that were measured at this rate, and on a program of which nothing but words
    and tests has changed since: the rule of `campaign.ledger`."""
    rule = Ledger(path, State.now(root), root)
    return [
        row
        for row in read_lines(path)
        if row["rate_hz"] == rate_hz
        and rule.is_still_true(row["commit"], row.get("dirty", "unknown"))
    ]


def read_lines(path: Path) -> list[Json]:
    """Rows of a ledger; one that a kill left half written is not there."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def append_line(path: Path, row: Json) -> None:
    is_torn = _last_byte(path) not in (b"", b"\n")
    with path.open("a") as file:
        file.write(("\n" if is_torn else "") + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _last_byte(path: Path) -> bytes:
    """Empty for a file that is empty or not there."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
    return b""
