"""The production pass on the wire: the C producer under another vendor's name, and a signature.

A proof that nothing but a signed camera lights the production pass proves nothing where no pass is
ever lit; here the same station shows it, and stops showing it for each reason there is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from producer_rig import SignedLine
from pty_recorder import PtyRecorder, adafruit_elements
from station_rig import children, wait_until

from drivers.errors import DriverMissing
from station.state import SIMULATOR_VENDOR

VENDOR = "Acme"
PASS, PASS_NOT_PRODUCTION = {"green": "on"}, {"green": "on", "yellow": "blink"}


def run_until(
    line: SignedLine, tower: PtyRecorder, shows: dict[str, str]
) -> tuple[set[str], list[dict[str, str]]]:
    """Provenances of a run's records, and the patterns that the tower showed."""
    with line.rig.running():
        wait_until(lambda: shows in shown(tower), 40.0, f"a pass as {shows}")
    return {row["provenance"] for row in line.rig.rows("result")}, shown(tower)


def shown(tower: PtyRecorder) -> list[dict[str, str]]:
    """The pattern after each write."""
    patterns, data = [], b""
    for _, part in list(tower.records):
        data += part
        patterns.append(adafruit_elements(data))
    return patterns


def a_line(folder: Path, vendor: str) -> SignedLine:
    folder.mkdir()
    light = {"type": "serial_tower", "port": str(folder / "tower")}
    try:
        return SignedLine(folder, light=light, vendor=vendor)
    except DriverMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def line(tmp_path: Path) -> SignedLine:
    return a_line(tmp_path / "line", VENDOR)


def _tamper(line: SignedLine) -> None:
    line.file.write_bytes(line.file.read_bytes().replace(b"sat", b"fat"))


def _change_the_producer(line: SignedLine) -> None:
    """Another build of the same source, as an update of a vendor's library is."""
    path = Path(line.rig.camera["producer"])
    path.write_bytes(path.read_bytes() + b"\0")


def _take_the_signatures(line: SignedLine) -> None:
    folder = Path(line.rig.station["model_dir"]) / "lightdefectnet-v3"
    (folder / "signatures.json").unlink()


def test_only_a_signed_camera_lights_the_production_pass(line: SignedLine) -> None:
    with PtyRecorder(line.rig.folder / "tower") as tower:
        provenances, patterns = run_until(line, tower, PASS)
        assert provenances == {"production"}
        assert PASS_NOT_PRODUCTION not in patterns
        commands = {row["command"] for row in line.rig.rows("actuation")}
        assert "pass" in commands
        assert "pass_not_production" not in commands
        assert not any(row["is_simulated"] for row in line.rig.rows("result"))
        start = next(row for row in line.rig.rows("change") if row["what"] == "start")
        assert "trained by Anna Trainer" in start["detail"]["model_signed_by"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_tamper, "changed since"),
        (_change_the_producer, "is not the file that was signed"),
        (_take_the_signatures, "no key that is trusted here signed it"),
    ],
)
def test_anything_else_never_does(
    line: SignedLine, spoil: Callable[[SignedLine], None], why: str
) -> None:
    """Every other way to spoil it is in test_commissioned.py, without the wire."""
    spoil(line)
    with PtyRecorder(line.rig.folder / "tower") as tower:
        provenances, patterns = run_until(line, tower, PASS_NOT_PRODUCTION)
    assert provenances == {"simulated"}
    assert PASS not in patterns
    start = next(row for row in line.rig.rows("change") if row["what"] == "start")
    assert why in start["detail"]["provenance_why"]


def test_a_producer_that_is_changed_while_the_station_runs_is_a_stranger(line: SignedLine) -> None:
    """Provenance was judged by its sha256; the camera that comes back is not the one judged."""
    path = Path(line.rig.camera["producer"])
    with PtyRecorder(line.rig.folder / "tower"), line.rig.running() as process:
        assert line.rig.status()["provenance"] == "production"
        updated = path.with_name("updated.cti")
        updated.write_bytes(path.read_bytes() + b"\0")
        updated.replace(path)
        os.kill(children(process.pid)["camera"], signal.SIGKILL)
        wait_until(
            lambda: "was changed" in line.rig.status()["problems"].get("camera", ""),
            20.0,
            "a word about the producer",
        )
        assert line.rig.status()["state"] == "ERROR"


def test_the_simulator_under_its_own_name_never_does(tmp_path: Path) -> None:
    line = a_line(tmp_path / "line", SIMULATOR_VENDOR)
    with PtyRecorder(line.rig.folder / "tower") as tower:
        provenances, patterns = run_until(line, tower, PASS_NOT_PRODUCTION)
    assert provenances == {"simulated"}
    assert PASS not in patterns
