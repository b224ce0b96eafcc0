"""A small, fast station for tests: real processes, a belt of 60 x 40 mm plates."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LINE_RATE_HZ = 4000.0
FRAME_HEIGHT = 64
FRAME_S = FRAME_HEIGHT / LINE_RATE_HZ
_MOST_BUSY = 3
"""Of a station: acquire and two inspect threads."""

_RECIPE = """
id = "small"
version = 1
[plate]
width_mm = 60.0
length_mm = 40.0
tolerance_mm = 3.0
edge_margin_mm = 2.0
min_gap_mm = 5.0
max_skew_deg = 2.0
belt_stop_timeout_s = 1.0
[model]
id = "lightdefectnet-v3"
"""


@dataclass
class Rig:
    """Files of one station under a folder, and how to run it."""

    folder: Path
    camera: Json = field(default_factory=dict)
    """Overrides of the camera's keys."""
    specimen: Json = field(default_factory=dict)
    faults: Json = field(default_factory=dict)
    wear: Json = field(default_factory=dict)
    light: Json = field(default_factory=lambda: {"device": {"type": "simulated"}})
    fail_hold_s: float | None = 0.05
    threshold: float | None = None
    recipe_lines: str = ""
    station: Json = field(default_factory=dict)
    """Further keys of the station."""
    tables: str = ""
    """Further tables of the configuration."""
    journal_folder: Path | None = None
    min_free_mb: int = 0
    watermarks_mb: list[int] | None = None

    @property
    def journal(self) -> Path:
        return self.journal_folder or self.folder / "journal"

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def write(self) -> Path:
        """Write recipe and configuration; the configuration's path."""
        threshold = "" if self.threshold is None else f"threshold = {self.threshold}\n"
        recipe = self.folder / "recipe.toml"
        text = _RECIPE + threshold + self.recipe_lines
        if "[promotion]" not in text:  # what is not about promotion may take any model
            text = text.replace("[model]", "[promotion]\nevidence = []\n[model]", 1)
        recipe.write_text(text)
        camera = {
            "type": "simulated",
            "seed": 3,
            "width": 768,
            "frame_height": FRAME_HEIGHT,
            "line_rate_hz": LINE_RATE_HZ,
            "pixel_pitch_mm": 0.1,
            "bank_plates": 4,
            **self.camera,
        }
        specimen = {
            "width_mm": 60.0,
            "length_mm": 40.0,
            "gap_mm": 40.0,
            "lateral_offset_mm": 3.0,
            "skew_deg": 0.8,
            **self.specimen,
        }
        if camera["type"] != "simulated":
            camera = {"type": camera["type"], **self.camera}
        if "belt" in camera:
            camera["belt"] = {"seed": 3, "bank_plates": 4, "specimen": specimen, **camera["belt"]}
        light = {**self.light}
        if self.fail_hold_s is not None:
            light["fail_hold_s"] = self.fail_hold_s
        text = _table(
            "station",
            {
                "id": "test-1",
                "recipe": str(recipe),
                "runtime_dir": str(self.runtime),
                **self.station,
            },
        ) + _table("camera", camera)
        if camera["type"] == "simulated":
            text += _table("camera.specimen", specimen) + _table("camera.faults", self.faults)
            text += _table("camera.wear", self.wear)
        text += _table(
            "journal",
            {
                "directory": str(self.journal),
                "min_free_mb": self.min_free_mb,
                "snapshot_interval_s": 1.0,
                **({"watermarks_mb": self.watermarks_mb} if self.watermarks_mb else {}),
            },
        )
        text += _table("light", light)
        path = self.folder / "station.toml"
        path.write_text(text + self.tables)
        return path

    def run(self, *options: str, timeout_s: float = 90.0) -> RunResult:
        """`vqi run --json` to its end."""
        config = self.write()
        done = vqi("run", "--config", str(config), "--json", *options, timeout_s=timeout_s)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        summary = rows.pop()["summary"] if rows and "summary" in rows[-1] else {}
        return RunResult(done.returncode, rows, summary, done.stderr)

    @contextmanager
    def running(
        self, *options: str, state: str = "OPERATIONAL"
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`vqi run` in the background, once it is in that state; told to stop at the end."""
        config = self.write()
        process = start_vqi("run", "--config", str(config), *options)
        try:
            wait_until(lambda: self.status().get("state") == state, 30.0, state)
            yield process
        finally:
            process.terminate()
            process.wait(30.0)

    def status(self) -> Json:
        """The running station's status; empty if none answers."""
        from station.control import send_command
        from station.ipc import PeerGone

        try:
            status: Json = send_command(self.runtime, "status")["status"]
        except (PeerGone, TimeoutError):
            return {}
        return status

    def rows(self, kind: str) -> list[Json]:
        """All bodies of a kind, in the journal's order, read as any reader reads them."""
        from station.log_reader import Reader

        with Reader(self.journal) as reader:
            return list(reader.bodies(kind))


def linescan_camera(producer: str = "linescan", **features: object) -> Json:
    """The rig's belt under the line-scan simulator, its encoder triggering the scan lines."""
    return {
        "type": "genicam",
        "producer": producer,
        "serial": "VQI-LS-1",
        "pixel_pitch_mm": 0.1,
        "features": {
            "Width": 768,
            "Height": FRAME_HEIGHT,
            "PixelFormat": "Mono8",
            "ExposureTime": 10.0,
            "TriggerSource[LineStart]": "Encoder0",
            "TriggerMode[LineStart]": "On",
            "EncoderDivider": 2,
            "ChunkModeActive": True,
            "SimEncoderResolution": 20.0,
            "SimBeltSpeed": LINE_RATE_HZ / 10,
            **features,
        },
        "belt": {},
    }


@dataclass
class RunResult:
    status: int
    records: list[Json]
    summary: Json
    stderr: str


def vqi(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "station.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def start_vqi(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "station.cli", *arguments],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)


def children(pid: int) -> dict[str, int]:
    """Process ids of a run's processes by name: lamp, journal, station, camera."""
    found: dict[str, int] = {}
    for child in _child_pids(pid):
        words = _command(child)
        if "serve" in words:
            found[words[words.index("serve") + 1]] = child
            for grandchild in _child_pids(child):
                if "station.acquisition" in _command(grandchild):
                    found["camera"] = grandchild
    return found


def copiers(journal_pid: int) -> list[int]:
    """The processes that copy the log for other tools, one or none."""
    return [child for child in _child_pids(journal_pid) if "station.snapshot" in _command(child)]


def _child_pids(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def busy_workers(pid: int) -> list[int]:
    """The threads, but the main one, that took most processor time just now, the busiest first."""
    before = _processor_times(pid)
    time.sleep(0.5)
    spent = {tid: now - before.get(tid, now) for tid, now in _processor_times(pid).items()}
    return sorted(spent, key=lambda tid: -spent[tid])[:_MOST_BUSY]


def _processor_times(pid: int) -> dict[int, int]:
    """In the kernel's ticks, of each thread but the main one."""
    fields = {
        tid: Path(f"/proc/{pid}/task/{tid}/stat").read_text().rsplit(")", 1)[1].split()
        for tid in threads(pid)
        if tid != pid
    }
    return {tid: int(words[11]) + int(words[12]) for tid, words in fields.items()}


def check_conservation(rig: Rig) -> None:
    """Plates that the belt carried while watched = records + plates inside downtime rows."""
    results, opened = rig.rows("result"), rig.rows("opened")
    assert len({row["sequence"] for row in results}) == len(results)
    assert len({row["result_id"] for row in results}) == len(results)
    assert {row["result_id"] for row in opened} <= {row["result_id"] for row in results}
    plates = [row["plate_ordinal"] for row in results if row["reason"] != "gap"]
    assert len(set(plates)) == len(plates), "a plate has two records"
    unseen = sum(row["triggers"] for row in results if row["reason"] == "gap")
    unseen += sum(row["triggers"] for row in rig.rows("downtime"))
    before = min(row["plate_ordinal"] - row["triggers"] for row in results)
    last = max(row["plate_ordinal"] for row in results)
    assert len(plates) + unseen == last - before, (len(plates), unseen, before, last)


def shared_memory() -> set[str]:
    """What lies in shared memory, without what belongs to somebody who trains or reads a camera's
    description: joblib's and GenApi's semaphores."""
    names = {entry.name for entry in Path("/dev/shm").iterdir()}
    others = (name for name in names if name.startswith("sem.loky-") or "GenICam_XML" in name)
    return names.difference(others)


def _table(name: str, values: Json) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: object) -> str:
    if isinstance(value, dict):
        items = (
            f"{key if key.isidentifier() else json.dumps(key)} = {_toml(item)}"
            for key, item in value.items()
        )
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value)
