"""The command line as a person meets it: help, checks, pictures, commands to a running station."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from modbus_peer import ModbusPeer
from station_rig import Rig, vqi
from typer.main import get_command

from drivers.errors import DeviceError
from drivers.plc.settings import IoPlcSettings, ModbusClientSettings, PlcSettings
from station.cli import _COMMANDS, _SINGLE, main
from station.cli.check import _check_plc
from station.qms import DATABASE

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def every_command() -> list[tuple[str, ...]]:
    """`("run",)`, `("log", "list")`, …"""
    from importlib import import_module

    found: list[tuple[str, ...]] = []
    for noun in _COMMANDS:
        if noun in _SINGLE:
            found.append((noun,))
            continue
        group = get_command(import_module(f"station.cli.{noun}").app)
        context = typer.Context(group)
        found += [(noun, verb) for verb in group.list_commands(context)]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("noun", _COMMANDS)
def test_every_noun_is_in_the_readme(noun: str) -> None:
    assert re.search(rf"vqi {noun}\b", README), noun


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_says_what_it_does(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vqi", *command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    text = " ".join(line.strip() for line in capsys.readouterr().out.splitlines())
    sentence = text.split("Usage:")[1].split("╭")[0].split("]", 1)[-1]
    assert len(sentence.split()) >= 4, text


def test_check_says_what_it_found(rig: Rig) -> None:
    done = vqi("check", "--config", str(rig.write()), "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, rows
    assert [row["part"] for row in rows] == [
        *("configuration", "recipe", "model", "limit samples", "camera", "light", "journal")
    ]
    assert all(row["ok"] for row in rows)
    assert "SIM-3" in rows[4]["found"]


def test_check_names_what_is_missing_and_goes_on(rig: Rig) -> None:
    rig.camera = {"type": "genicam", "producer": "/opt/none.cti", "serial": "1"}
    rig.light = {"device": {"type": "serial_tower", "port": "/dev/ttyNONE"}}
    done = vqi("check", "--config", str(rig.write()))
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == ["camera", "light"]
    assert "/opt/none.cti" in failed[0]
    assert "/dev/ttyNONE" in failed[1]
    assert "Traceback" not in done.stderr


_MODULE = {"type": "modbus", "host": "127.0.0.1", "outputs": {"ready": 0, "heartbeat": 1}}


def plc_at(kind: str, port: int, is_input_there: bool = True) -> PlcSettings:
    if kind == "modbus_client":
        given = {"tcp_port": port, "read_address": 0 if is_input_there else 5000}
        return ModbusClientSettings.model_validate({"type": kind, "host": "127.0.0.1", **given})
    inputs = {"ack": 0 if is_input_there else 5000}
    device = {**_MODULE, "tcp_port": port, "inputs": inputs}
    return IoPlcSettings.model_validate({"type": kind, "device": device})


@pytest.mark.parametrize("kind", ["modbus_client", "io"])
def test_check_asks_the_plc_and_a_connection_is_no_answer(kind: str) -> None:
    mute = socket.create_server(("127.0.0.1", 0))
    with mute, pytest.raises(DeviceError, match="no answer in time"):
        _check_plc(plc_at(kind, mute.getsockname()[1]), False)
    with ModbusPeer() as peer:
        assert "must watch the heartbeat" in _check_plc(plc_at(kind, peer.port), False)
        with pytest.raises(DeviceError, match="refuses"):
            _check_plc(plc_at(kind, peer.port, is_input_there=False), False)


def test_check_finds_a_damaged_log(rig: Rig) -> None:
    assert rig.run("--plates", "2").status == 0
    path = rig.journal / DATABASE
    data = bytearray(path.read_bytes())
    at = data.index(b'"station_id":"test-1"') + len('"station_id":"')
    data[at] ^= 1
    path.write_bytes(data)
    done = vqi("check", "--config", str(rig.folder / "station.toml"))
    assert done.returncode == 1
    assert "FAIL  journal" in done.stdout


def test_a_device_that_is_missing_ends_the_run_with_its_reason(rig: Rig) -> None:
    rig.camera = {"type": "genicam", "producer": "viky", "serial": "no such"}
    result = rig.run("--plates", "1")
    assert result.status == 1
    assert result.records == []
    assert "no such" in result.stderr
    assert "Traceback" not in result.stderr


def test_cameras_are_listed(rig: Rig) -> None:
    done = vqi("camera", "list", "--producer", "viky", "--config", str(rig.write()), "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert rows[0]["serial"] == "SIM-3"
    assert len(rows) == 4


def test_no_producer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENICAM_GENTL64_PATH", raising=False)
    done = vqi("camera", "list")
    assert done.returncode == 1
    assert "--producer viky" in done.stderr


def test_a_snap_is_what_the_camera_saw(rig: Rig, tmp_path: Path) -> None:
    out = tmp_path / "belt.png"
    done = vqi("camera", "snap", "--config", str(rig.write()), "--out", str(out), "--frames", "4")
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (4 * 64, 768)
    assert picture.std() > 1


def test_a_snap_of_a_short_source_is_what_there_is(rig: Rig, tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    cv2.imwrite(str(picture), np.full((100, 300), 90, np.uint8))
    rig.camera = {"type": "replay", "path": str(picture), "frame_height": 64}
    done = vqi("camera", "snap", "--config", str(rig.write()), "--out", str(tmp_path / "noname"))
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "noname"), cv2.IMREAD_UNCHANGED).shape[1] == 300
    done = vqi("camera", "snap", "--config", str(rig.write()), "--out", "/nowhere/x.png")
    assert done.returncode == 1
    assert (
        done.stderr.strip() == "vqi: /nowhere/x.png: cannot be written: No such file or directory"
    )


def test_commands_without_a_station_say_so(rig: Rig) -> None:
    config = str(rig.write())
    for op in ("status", "halt", "resume", "ack"):
        done = vqi("control", op, "--config", config)
        assert done.returncode == 1
        assert "no station answers" in done.stderr
        assert "vqi run" in done.stderr


def test_status_is_one_object(rig: Rig) -> None:
    with rig.running():
        done = vqi("control", "status", "--config", str(rig.folder / "station.toml"), "--json")
        status = json.loads(done.stdout)
    assert status["state"] == "OPERATIONAL"
    assert status["station_id"] == "test-1"
    assert status["tick_age_s"] is not None


def test_a_run_on_pictures_ends_with_them(rig: Rig, tmp_path: Path) -> None:
    """`replay` of a folder, once: as many records as the folder shows plates."""
    folder = tmp_path / "plates"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        plate = np.zeros((400, 768), np.uint8)
        plate[:, 80:680] = rng.integers(90, 110, (400, 600))
        cv2.imwrite(str(folder / f"{number}.png"), plate)
    rig.camera = {"type": "replay", "path": str(folder), "frame_height": 64}
    result = rig.run()
    assert result.status == 0, result.stderr
    assert len(result.records) == 3
    assert result.summary["plates"] == 3
    assert {row["provenance"] for row in result.records} == {"replayed"}
    assert not any(row["command"] == "pass" for row in rig.rows("actuation"))


def test_commands_of_models_do_without_what_only_training_needs() -> None:
    """An edge unit has no PyTorch, and nobody waits four seconds for a list."""
    program = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "sklearn", "onnx", "onnxscript"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from station.cli import main
sys.argv = ["vqi", "model", "list", "--json"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lightdefectnet" in done.stdout
