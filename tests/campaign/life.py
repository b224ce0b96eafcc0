"""One station under fire: its files, its belt, its tower, its disk, and whoever restarts it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from producer_rig import SignedLine, belt_settings
from station_rig import Rig, children

from campaign.belt import Belt, short_stops, uneven_lap, write_uneven_source
from campaign.clock import Clock
from campaign.disk import Disk
from campaign.panel import Panel
from campaign.tower import Tower
from drivers.camera.settings import SimulatedCameraSettings
from models.registry import shipped_model

Json = dict[str, Any]

LINE_RATE_HZ, FRAME_HEIGHT = 3000.0, 96
"""Of three stations on two cores."""
FRAME_S = FRAME_HEIGHT / LINE_RATE_HZ
SPECIMEN = {"gap_mm": 100.0, "contrast_scale": 3.0, "defective_share": 0.25}
ACCEPT_MM = 120.0
"""From the camera to where plates are accepted: twice as far as the belt runs in a pulse, for of a
plate that the camera has not seen the station knows no more."""
_DISK_MB = 96
_MODEL = "lightdefectnet-v3"
_EX_CONFIG = 78
_REPEATS = 8
"""Plates in the picture source of `producer_rig`."""
_PRODUCER, SIMULATED = "producer", "simulated"
_STATION = {"plate_buffers": 8}


@dataclass
class Life:
    """`camera` is `producer` (signed: its passes are production) or `simulated`."""

    folder: Path
    camera: str
    seed: int
    broken: str | None = None
    """A deliberately wrong station of `broken.py` in its place."""
    schedule: Callable[[Belt], tuple[Json, Json]] = field(default=lambda belt: ({}, {}))
    """Faults of the camera, once it is known when the belt began: frames by kind, its settings."""
    has_stops: bool = True
    """The producer's belt stops now and then, and its encoder triggers the scan lines."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.folder.mkdir(parents=True)
        self.line = self.folder / "line"
        self.line.mkdir()
        self.tower = Tower(self.folder)
        self.panel = Panel(self.folder)
        self.clock = Clock(self.folder)
        self.run: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.stdout = self.folder / "stdout.jsonl"
        self.stderr = self.folder / "stderr.log"
        self.before_unmount: Callable[[], None] = lambda: None
        self.disk = Disk(self.folder / "disk.img", self.folder / "disk", _DISK_MB)
        epoch_ns = time.monotonic_ns()
        light = {"type": "serial_tower", "port": str(self.tower.link)}
        self.model = self.folder / _MODEL
        shutil.copytree(shipped_model(_MODEL), self.model)
        os.environ["XDG_RUNTIME_DIR"] = str(self.folder)
        make = self._producer if self.camera == _PRODUCER else self._simulated
        self.rig, self.belt = make(light, epoch_ns)
        is_simulated = self.camera == SIMULATED
        sees_stops = is_simulated or "TriggerMode[LineStart]" in self.rig.camera["features"]
        self.rig.tables += self.panel.tables(ACCEPT_MM if sees_stops else None)
        self.rig.recipe_lines = f'folder = "{self.model}"\n'
        # Last: the moments of its faults count from here.
        self.frames, knobs = self.schedule(self.belt)
        place = self.rig.camera["features"] if self.camera == _PRODUCER else self.rig.faults
        place.update(knobs)
        self.config = self.rig.write()

    def _producer(self, light: Json, epoch_ns: int) -> tuple[Rig, Belt]:
        belt = restless_belt(epoch_ns, self.draw)
        if not self.has_stops:
            belt = replace(belt, stops=())
        source = self.line / "uneven.source"
        write_uneven_source(source, belt)
        # Noise, for no two pictures may be alike: a lost one must not be hidden by its twin.
        features = {**belt_features(belt, source), "SimNoise": 1.0}
        journal = self.disk.folder / "journal"
        line = _CampaignLine(self.line, features, SPECIMEN, light, journal)
        line.rig.station = _STATION
        line.people.sign_folder(self.model)
        return line.rig, belt

    def _simulated(self, light: Json, epoch_ns: int) -> tuple[Rig, Belt]:
        belt = Belt(campaign_belt(), epoch_ns)
        file = self.line / "belt.json"
        file.write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))
        rig = Rig(
            self.line,
            camera={
                "belt_file": str(file),
                "frame_height": FRAME_HEIGHT,
                "line_rate_hz": LINE_RATE_HZ,
            },
            specimen=SPECIMEN,
            light={"device": light},
            station=_STATION,
            journal_folder=self.disk.folder / "journal",
        )
        return rig, belt

    # --- the processes --------------------------------------------------------------------------

    def start(self) -> None:
        module = ["station.cli"] if self.broken is None else ["campaign.broken", self.broken]
        command = ["run", "--config", str(self.config), "--json"]
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self.run = subprocess.Popen(
                [sys.executable, "-P", "-m", *module, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **self.clock.environment},
                start_new_session=True,
            )
        self.starts += 1

    def keep_running(self) -> None:
        """What a service manager does: `vqi run` that ended is started again, except after a bad
        configuration (`RestartPreventExitStatus=78`)."""
        if self.run is None or self.run.poll() not in (None, _EX_CONFIG):
            self.start()

    def family(self) -> dict[str, int]:
        """Process ids by name: supervisor, lamp, journal, station, camera; those that live."""
        if self.run is None or self.run.poll() is not None:
            return {}
        return children(self.run.pid) | {"supervisor": self.run.pid}

    def pid(self, name: str, within_s: float = 5.0) -> int:
        """Of a process, once it is there."""
        deadline = time.monotonic() + within_s
        while (pid := self.family().get(name)) is None:
            if time.monotonic() > deadline:
                raise NotThere(f"no {name} process")
            time.sleep(0.01)
        return pid

    def stop(self, within_s: float = 25.0) -> int:
        """As an operator does. Exit status; what does not end is killed."""
        if self.run is None:
            return 0
        family = self.family()
        if self.run.poll() is None:
            self.run.terminate()
        try:
            return self.run.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill_all(family)
            return self.run.wait()

    def kill_all(self, family: dict[str, int] | None = None) -> None:
        for pid in (family or self.family()).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.run is not None:
            self.run.wait()
        self.wait_gone(family or {})

    @staticmethod
    def wait_gone(family: dict[str, int], within_s: float = 5.0) -> None:
        deadline = time.monotonic() + within_s
        while any(is_alive(pid) for pid in family.values()) and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        family = self.family()
        self.kill_all(family)
        self.wait_gone(family)
        self.before_unmount()
        self.tower.close()
        self.panel.close()
        self.disk.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- the log --------------------------------------------------------------------------------

    @property
    def journal(self) -> Path:
        return self.rig.journal

    @property
    def runtime(self) -> Path:
        return self.rig.runtime


def campaign_belt() -> SimulatedCameraSettings:
    """What every life's camera sees, and how."""
    changes = {"line_rate_hz": LINE_RATE_HZ, "frame_height": FRAME_HEIGHT}
    return belt_settings(SPECIMEN).model_copy(update=changes)


def restless_belt(epoch_ns: int, draw: random.Random) -> Belt:
    """The belt under the producer: with gaps into which no pulse fits, and stops."""
    settings = campaign_belt()
    belt = Belt(settings, epoch_ns, _REPEATS, uneven_lap(settings, _REPEATS, draw))
    return replace(belt, stops=short_stops(belt, ACCEPT_MM, draw))


def belt_features(belt: Belt, source: Path) -> Json:
    """What tells the producer of it."""
    pitch_mm = belt.settings.pixel_pitch_mm
    features = {
        "ChunkModeActive": True,
        "Height": FRAME_HEIGHT,
        "AcquisitionLineRate": LINE_RATE_HZ,
        "SimSource": str(source),
        "SimBeltSpeed": LINE_RATE_HZ * pitch_mm,
        "SimBeltEpoch": belt.epoch_ns,
    }
    if belt.stops:  # which only an encoder can see
        features |= {
            "TriggerSource[LineStart]": "Encoder0",
            "TriggerMode[LineStart]": "On",
            "EncoderDivider": 2,
            "SimEncoderResolution": 2 / pitch_mm,
            "SimBeltStops": ", ".join(f"{stop.from_ms}+{stop.for_ms}" for stop in belt.stops),
        }
    return features


class NotThere(Exception):
    """What a fault was meant for is not there now."""


class _CampaignLine(SignedLine):
    """A signed line whose journal lies on a disk of its own."""

    def __init__(
        self, folder: Path, features: Json, specimen: Json, light: Json, journal: Path
    ) -> None:
        self._journal = journal
        super().__init__(folder, features, specimen, light, vendor="Acme")

    def sign(self, **changes: str) -> None:
        from station.config import load_configuration

        self.rig.journal_folder = self._journal
        self.config = str(self.rig.write())
        self.settings = load_configuration(self.config).value
        super().sign(**changes)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def until(seconds: float) -> Iterator[Callable[[], bool]]:
    """`with until(2) as is_time_left: while is_time_left(): …`"""
    deadline = time.monotonic() + seconds
    yield lambda: time.monotonic() < deadline
