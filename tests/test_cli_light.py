"""`vqi light`, with and without a lamp process, on a real pty."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_devices import Device, ModbusBoard, PatliteTower, TcpDevice
from pty_recorder import PtyRecorder
from typer.testing import CliRunner, Result

from drivers.stacklight import LightState
from station.cli.light import app
from station.lamp import LampClient
from station.record import Provenance

FAULT = {"red": "blink"}
CONFIG = """
[station]
id = "test-1"
recipe = "shipped:demo-lgp"
runtime_dir = "{folder}/run"
[camera]
type = "simulated"
[journal]
directory = "{folder}/journal"
[light]
device = {{ type = "serial_tower", port = "{folder}/tower" }}
"""


@pytest.fixture
def tower(tmp_path: Path) -> Iterator[PtyRecorder]:
    (tmp_path / "station.toml").write_text(CONFIG.format(folder=tmp_path))
    with PtyRecorder(tmp_path / "tower") as recorder:
        yield recorder


@pytest.fixture
def lamp(tmp_path: Path, tower: PtyRecorder) -> Iterator[LampClient]:
    """A client of a lamp process that runs."""
    code = "from station.config import load_configuration as l; from station.lamp import serve;"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code} serve(l({str(tmp_path / 'station.toml')!r}).value)"]
    )
    with LampClient(tmp_path / "run") as client:
        client.connect(10.0)
        yield client
    process.kill()
    process.wait()


def vqi_light(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--config", str(folder / "station.toml")])


def history(tower: PtyRecorder) -> bytes:
    tower.wait_for(lambda: tower.elements() == FAULT)
    return tower.bytes_sent()


def test_without_a_lamp_process_the_device_is_opened_and_left_in_fault(
    tmp_path: Path, tower: PtyRecorder
) -> None:
    result = vqi_light(tmp_path, "show", "undecided", "--seconds", "0.2")
    assert result.exit_code == 0, result.output
    assert history(tower) == bytes.fromhex("21 22 24 28 12  21 22 24 28 41")


NETWORK = """
device = {{ type = "{type}", host = "127.0.0.1", tcp_port = {port}, {more} }}
"""
RELAYS = {"red": 0, "yellow": 1, "green": 2}


@contextlib.contextmanager
def network_light(kind: str) -> Iterator[tuple[Device, str]]:
    """A device, and its settings."""
    if kind == "patlite":
        patlite = PatliteTower()
        with TcpDevice(patlite.feed) as server:
            more = 'elements = ["red", "yellow", "green"]'
            yield patlite, NETWORK.format(type=kind, port=server.port, more=more)
        return
    board = ModbusBoard(RELAYS)
    more = "addresses = { red = 0, yellow = 1, green = 2 }, blink_hz = 2.8, pass_pulse_s = 2.0"
    yield board, NETWORK.format(type=kind, port=board.serve_tcp(), more=more)
    board.close()


@pytest.mark.parametrize("kind", ["modbus_relay", "patlite"])
def test_a_light_on_the_network_is_shown_tested_and_left_in_fault(
    tmp_path: Path, tower: PtyRecorder, kind: str
) -> None:
    config = tmp_path / "station.toml"
    with network_light(kind) as (device, settings):
        config.write_text(config.read_text().split("[light]")[0] + "[light]" + settings)
        assert vqi_light(tmp_path, "show", "undecided", "--seconds", "0.1").exit_code == 0
        assert {"yellow": "on"} in device.history
        result = vqi_light(tmp_path, "test")
        assert result.exit_code == 0, result.output
        assert "this light is read back; " in result.stdout
        assert ("ends a pass by itself" in result.stdout) == (kind == "modbus_relay")
        assert dict.fromkeys(RELAYS, "on") in device.history
        assert device.lit().keys() == {"red"}
    assert tower.bytes_sent() == b""


def test_fault_is_written_at_once(tmp_path: Path, tower: PtyRecorder) -> None:
    assert vqi_light(tmp_path, "show", "fault").exit_code == 0
    assert history(tower)[:5] == bytes.fromhex("21 22 24 28 41")


def test_the_lamp_test_lights_every_element(tmp_path: Path, tower: PtyRecorder) -> None:
    result = vqi_light(tmp_path, "test")
    assert result.exit_code == 0, result.output
    assert "red, yellow, green" in result.stdout
    assert "not read back" in result.stdout
    assert "unless a hardware watchdog" in result.stdout
    assert bytes.fromhex("11 12 14") in history(tower)


def test_a_person_cannot_show_pass(tmp_path: Path, tower: PtyRecorder) -> None:
    assert vqi_light(tmp_path, "show", "pass").exit_code == 2
    assert vqi_light(tmp_path, "show", "lamp_test").exit_code == 2
    assert vqi_light(tmp_path, "show", "purple").exit_code == 2
    assert tower.bytes_sent() == b""


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, tower: PtyRecorder) -> None:
    (tmp_path / "tower").unlink()
    result = vqi_light(tmp_path, "test")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "light.device: no serial port" in result.stderr


def test_a_bad_configuration_is_status_78(tmp_path: Path) -> None:
    (tmp_path / "station.toml").write_text("[station]\n")
    assert vqi_light(tmp_path, "test").exit_code == 78


def test_through_the_lamp_process_until_a_station_holds_it(
    tmp_path: Path, tower: PtyRecorder, lamp: LampClient
) -> None:
    result = vqi_light(tmp_path, "show", "undecided", "--seconds", "0.4")
    assert result.exit_code == 0, result.output
    assert bytes.fromhex("21 22 24 28 12") in history(tower)
    assert vqi_light(tmp_path, "test").exit_code == 0
    assert bytes.fromhex("11 12 14") in history(tower)

    lamp.send_show(LightState.IDLE, "", Provenance.SIMULATED, 1.9)
    tower.wait_for(lambda: tower.elements() == {})
    for arguments in (["show", "fail"], ["test"]):
        refused = vqi_light(tmp_path, *arguments)
        assert refused.exit_code == 1
        assert "holds the lamp" in refused.stderr


def test_a_terminated_show_leaves_fault(tmp_path: Path, tower: PtyRecorder) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from station.cli.light import app; app()"),
            *("show", "pass_not_production", "--config", str(tmp_path / "station.toml")),
        ]
    )
    try:
        tower.wait_for(lambda: "green" in tower.elements(), 10.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 1
        history(tower)
    finally:
        process.kill()
