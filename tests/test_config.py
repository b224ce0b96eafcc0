"""Configuration and recipes: every shipped file loads; a mistake is one line that helps."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from station_rig import Rig, _table, vqi

from drivers.camera.settings import GenicamCameraSettings, LabelSettings
from drivers.io.settings import GpioIoLine, GpioIoSettings, ModbusIoSettings
from drivers.plc.settings import IoPlcSettings, ModbusClientSettings, ModbusServerSettings
from drivers.scanner.settings import (
    HidScannerSettings,
    SerialScannerSettings,
    SimulatedScannerSettings,
)
from drivers.stacklight import LightState
from drivers.stacklight.boards import ADAFRUIT_5125
from drivers.stacklight.profiles import DEFAULT_PATTERNS
from drivers.stacklight.settings import (
    GpioLine,
    GpioStackLightSettings,
    ModbusRelaySettings,
    PatliteSettings,
    SerialElement,
    SerialRead,
    SerialTowerSettings,
)
from station.config import (
    AcceptSettings,
    ConfigError,
    IdentitySettings,
    JournalSettings,
    LightSettings,
    ModelsSettings,
    Recipe,
    StationSettings,
    load_configuration,
    load_recipe,
    shipped_path,
)

CONFIG = Path(__file__).parents[1] / "config"


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_loads(path: Path) -> None:
    loaded = load_configuration(str(path))
    load_recipe(loaded.value.station.recipe)
    assert load_configuration(f"shipped:{path.stem}").sha256 == loaded.sha256


@pytest.mark.parametrize("path", sorted(CONFIG.glob("recipes/*.toml")), ids=lambda path: path.name)
def test_every_recipe_loads_under_its_own_name(path: Path) -> None:
    assert load_recipe(str(path)).value.id == path.stem
    assert shipped_path(f"recipes/{path.name}").read_bytes() == path.read_bytes()


def _keys(model: type[BaseModel]) -> set[str]:
    """Names of a settings class and of the settings inside it."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _keys(field.annotation)
    return found


def test_the_references_name_every_key() -> None:
    station = (CONFIG / "station.toml").read_text()
    for model in (
        StationSettings,
        JournalSettings,
        ModelsSettings,
        LightSettings,
        GenicamCameraSettings,
        SerialTowerSettings,
        SerialElement,
        SerialRead,
        ModbusRelaySettings,
        PatliteSettings,
        GpioStackLightSettings,
        GpioLine,
        AcceptSettings,
        IdentitySettings,
        SerialScannerSettings,
        HidScannerSettings,
        SimulatedScannerSettings,
        LabelSettings,
        ModbusServerSettings,
        ModbusClientSettings,
        IoPlcSettings,
        ModbusIoSettings,
        GpioIoSettings,
        GpioIoLine,
    ):
        missing = {key for key in _keys(model) if not re.search(rf"\b{key}\b", station)}
        assert not missing, model.__name__
    recipe = (CONFIG / "recipes" / "demo-lgp.toml").read_text()
    assert not {key for key in _keys(Recipe) if not re.search(rf"\b{key}\b", recipe)}


def uncommented(text: str, heading: str) -> dict[str, Any]:
    """A table that the reference shows as a comment, to its first empty line."""
    lines = text[text.index(f"# {heading}\n") :].split("\n\n")[0].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))


def test_the_tables_that_are_comments_are_right() -> None:
    text = (CONFIG / "station.toml").read_text()
    plc, accept = uncommented(text, "[plc]")["plc"], uncommented(text, "[accept]")["accept"]
    bare = {"type": "modbus_server", "host": plc["host"]}
    given = ModbusServerSettings.model_validate(plc)
    assert given.model_copy(update={"heartbeat_timeout_s": None}) == (
        ModbusServerSettings.model_validate(bare)
    )
    found = AcceptSettings.model_validate(accept)
    assert found.max_position_age_s == AcceptSettings.model_fields["max_position_age_s"].default


def test_the_reference_shows_the_defaults() -> None:
    """What the reference gives is what a station has that leaves it out."""
    given = load_configuration(str(CONFIG / "station.toml")).value
    bare = StationSettings(**given.station.model_dump(include={"id", "recipe", "runtime_dir"}))
    assert given.station == bare
    assert given.journal == JournalSettings(directory=given.journal.directory)
    assert isinstance(given.light.device, SerialTowerSettings)
    assert given.light.device.byte_map == ADAFRUIT_5125
    assert given.light.pattern_table == DEFAULT_PATTERNS
    assert set(DEFAULT_PATTERNS) == set(LightState)
    recipe = load_recipe("shipped:demo-lgp").value
    required = {"id", "version", "product", "lane", "model"}
    size = recipe.plate.model_dump(include={"width_mm", "length_mm", "dot_pitch_mm"})
    plain = Recipe.model_validate({**recipe.model_dump(include=required), "plate": size})
    assert recipe == plain


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "unknown key": (
        ('id = "test-1"', 'id = "test-1"\ncolour = 3'),
        ("station.colour: unknown key; known here:", "inspect_threads", "ring_s"),
    ),
    "unknown key of a device": (
        ("width = 768", "width = 768\nexposure_ms = 3"),
        ("camera.exposure_ms: unknown key; known here:", "line_rate_hz"),
    ),
    "out of bounds": (
        ("line_rate_hz = 4000.0", "line_rate_hz = -5"),
        ("camera.line_rate_hz: input should be greater than 0 (found -5)",),
    ),
    "a number with its unit": (
        ("line_rate_hz = 4000.0", 'line_rate_hz = "4 kHz"'),
        ("camera.line_rate_hz: a number is wanted, without quotes", "(found '4 kHz')"),
    ),
    "a number in quotes": (
        ("line_rate_hz = 4000.0", 'line_rate_hz = "4000"'),
        ("camera.line_rate_hz: a number is wanted, without quotes", "(found '4000')"),
    ),
    "no number": (
        ("width_mm = 60.0", "width_mm = inf"),
        ("camera.specimen.width_mm: input should be a finite number (found inf)",),
    ),
    "a plate wider than the scan line": (
        ("width_mm = 60.0", "width_mm = 75.0"),
        ("camera: specimen: a plate 75 mm wide", "does not fit in a scan line of 76.8 mm"),
    ),
    "a plate without room": (
        ("length_mm = 40.0", "length_mm = 5.0"),
        ("camera.specimen: a plate of 60 x 5 mm has no room for defects", "at least 25 mm"),
    ),
    "a wrong key of the light": (
        ('{ type = "simulated" }', '{ type = "serial_tower", prot = "/dev/x" }'),
        ("light.device.port: this key is missing", "light.device.prot: unknown key; known here:"),
    ),
    "a wrong key of the PLC": (
        ("[light]", '[plc]\ntype = "modbus_server"\nhost = "10.0.0.5"\nprot = 5\n[light]'),
        ("plc.prot: unknown key; known here: has_serials, heartbeat_timeout_s, host, tcp_port",),
    ),
    "a word on a wire that is none": (
        (
            "[light]",
            '[plc]\ntype = "io"\ndevice = { type = "simulated", outputs = ["redy"] }\n[light]',
        ),
        ("plc: device.outputs.redy is no word of the handshake; there are: attention, busy",),
    ),
    "accept without its output": (
        (
            "[light]",
            (
                "[accept]\ndistance_mm = 5.0\npulse_ms = 50\n"
                'device = { type = "simulated", outputs = ["ok"] }\n[light]'
            ),
        ),
        ("accept: device.outputs has no accept; name the output so",),
    ),
    "a pulse that the module cannot time": (
        (
            "[light]",
            (
                "[accept]\ndistance_mm = 5.0\npulse_ms = 50\n[accept.device]\n"
                'type = "modbus"\nhost = "10.0.0.5"\noutputs = { accept = 0 }\npulse_offset = 512\n'
                "[light]"
            ),
        ),
        ("accept: pulse_ms is no multiple of device.pulse_unit_ms 100",),
    ),
    "a state that does not exist": (
        ("[light]", '[light]\npatterns = { paas = { green = "on" } }'),
        ("light.patterns.paas: input should be 'pass', ",),
    ),
    "a fail that lights green": (
        ("[light]", '[light]\npatterns = { fail = { green = "on", red = "on" } }'),
        ("light: patterns.fail lights all that patterns.pass lights",),
    ),
    "a missing key": (('id = "test-1"', ""), ("station.id: this key is missing",)),
    "an unknown device": (
        ('type = "simulated"\nseed', 'type = "webcam"\nseed'),
        ("camera: ", "'webcam'", "'genicam'", "'replay'"),
    ),
    "no TOML": (("[station]", "[station"), ("not valid TOML", "line 1")),
    "a pass that looks like a fail": (
        ("[light]", '[light]\npatterns = { pass = { red = "on" } }'),
        ("light: patterns.pass is the same as patterns.fail",),
    ),
    "a lamp element that is not there": (
        (
            '{ type = "simulated" }',
            '{ type = "gpio", chip = "x", lines = { red = { offset = 1 } } }',
        ),
        ("light: patterns.pass wants green on", "the device has no green (it has red)", "profile"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_file_key_and_what_is_right(tmp_path: Path, name: str) -> None:
    (old, new), expected = MISTAKES[name]
    path = Rig(tmp_path).write()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_configuration(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for part in expected:
        assert part in message, message


Wires = dict[str, Any]
_TCP: Wires = {"host": "10.0.0.5", "tcp_port": 1502}
_RTU: Wires = {"port": "/dev/ttyRS485", "device_id": 3}
_LINES: Wires = {"red": {"offset": 0}, "yellow": {"offset": 1}, "green": {"offset": 2}}


def relays(**place: Any) -> Wires:
    elements = {"red": 0, "yellow": 1, "green": 2}
    return {"type": "modbus_relay", "blink_hz": 2.0, "addresses": elements, **place}


def accept_at(coil: int, **place: Any) -> Wires:
    return {"type": "modbus", "outputs": {"accept": coil}, **place}


def words_at(coils: dict[str, int], **place: Any) -> Wires:
    return {"type": "modbus", "outputs": {"heartbeat": 15, **coils}, **place}


def wired(folder: Path, light: Wires, accept: Wires, words: Wires) -> str:
    tables = _table("accept", {"distance_mm": 5.0, "pulse_ms": 100, "device": accept})
    tables += _table("plc", {"type": "io", "device": words})
    return str(Rig(folder, light={"device": light}, tables=tables).write())


_NO_WIRE: Wires = {"type": "simulated"}
_NO_ACCEPT: Wires = {"type": "simulated", "outputs": ["accept"]}
ONE_WIRE: dict[str, tuple[Wires, Wires, Wires, str]] = {
    "words of one device": (
        *(_NO_WIRE, _NO_ACCEPT, words_at({"result_valid": 0, "ok": 1, "ng": 1}, **_TCP)),
        "plc.device: outputs.ok and outputs.ng are both coil 1 of device 1 at 10.0.0.5 port 1502",
    ),
    "light and accept": (
        *(relays(**_TCP), accept_at(2, **_TCP), _NO_WIRE),
        (
            "light.device.addresses.green and accept.device.outputs.accept are both coil 2 of "
            "device 1 at 10.0.0.5 port 1502; give each its own"
        ),
    ),
    "another way to write the address": (
        *(relays(**_TCP), accept_at(2, **{**_TCP, "host": "::ffff:10.0.0.5"}), _NO_WIRE),
        "are both coil 2 of device 1 at 10.0.0.5 port 1502",
    ),
    "light and a word": (
        *(relays(**_RTU), _NO_ACCEPT, words_at({"ok": 0}, **_RTU)),
        (
            "light.device.addresses.red and plc.device.outputs.ok are both coil 0 of device 3 at "
            "/dev/ttyRS485"
        ),
    ),
    "a word and accept": (
        *(_NO_WIRE, accept_at(4, **_TCP), words_at({"ok": 4}, **_TCP)),
        "plc.device.outputs.ok and accept.device.outputs.accept are both coil 4",
    ),
    "a pulse of accept": (
        _NO_WIRE,
        accept_at(8, pulse_offset=504, **_TCP),
        words_at({"ok": 512, "heartbeat": 513}, **_TCP),
        "plc.device.outputs.ok and accept.device.outputs.accept are both coil 512",
    ),
    "a pulse of the light": (
        *(relays(pass_pulse_s=1.5, **_TCP), accept_at(514, **_TCP), _NO_WIRE),
        "light.device.addresses.green and accept.device.outputs.accept are both coil 514",
    ),
    "elements of one light": (
        {"type": "gpio", "chip": "/dev/c", "lines": {**_LINES, "green": {"offset": 1}}},
        *(_NO_ACCEPT, _NO_WIRE),
        "light.device.lines.yellow and light.device.lines.green are both line 1 of /dev/c",
    ),
    "an input and an output": (
        _NO_WIRE,
        {"type": "gpio", "chip": "/dev/c", "outputs": {"accept": {"offset": 7}}},
        {"type": "gpio", "chip": "/dev/c", "inputs": {"ack": {"offset": 7}}},
        "plc.device.inputs.ack and accept.device.outputs.accept are both line 7 of /dev/c",
    ),
}


@pytest.mark.parametrize("name", ONE_WIRE)
def test_no_two_words_are_on_one_wire(tmp_path: Path, name: str) -> None:
    """NG would switch on the coil of OK, and each is confirmed by its read-back."""
    *parts, problem = ONE_WIRE[name]
    with pytest.raises(ConfigError) as caught:
        load_configuration(wired(tmp_path, *parts))
    assert problem in str(caught.value)


def test_wires_of_their_own_are_not_mixed_up(tmp_path: Path) -> None:
    light, words = relays(pass_pulse_s=1.5, **_TCP), words_at({"ok": 3}, pulse_offset=512, **_TCP)
    others = ({**_TCP, "device_id": 2}, {**_TCP, "tcp_port": 502}, {**_TCP, "host": "10.0.0.6"})
    for accept in (accept_at(4, pulse_offset=512, **_TCP), *(accept_at(2, **at) for at in others)):
        load_configuration(wired(tmp_path, light, accept, words))
    register_board = relays(command="register", **_TCP)
    load_configuration(wired(tmp_path, register_board, accept_at(2, **_TCP), words))
    chips: list[Wires] = [{"type": "gpio", "chip": f"/dev/c{n}"} for n in range(2)]
    accept = chips[0] | {"outputs": {"accept": {"offset": 2}}}
    words = chips[1] | {"inputs": {"ack": {"offset": 2}}}
    load_configuration(wired(tmp_path, chips[0] | {"lines": _LINES}, accept_at(2, **_TCP), words))
    load_configuration(wired(tmp_path, chips[1] | {"lines": _LINES}, accept, _NO_WIRE))


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = Rig(tmp_path, camera={"width": 1, "seed": -1}).write()
    with pytest.raises(ConfigError, match=r"width: .*; .*seed: |seed: .*; .*width: "):
        load_configuration(str(path))


RECIPE_MISTAKES: dict[str, tuple[tuple[str, str], str]] = {
    "a model that is not there": (
        ('id = "lightdefectnet-v3"', 'id = "lightdefectnet-v9"'),
        "model.id: lightdefectnet-v9: no such model; there are: lightdefectnet-v3",
    ),
    "a threshold that is no number": (
        ("[model]", "[model]\nthreshold = nan"),
        "model.threshold: input should be a finite number (found nan)",
    ),
    "a margin that leaves nothing": (
        ("edge_margin_mm = 2.0", "edge_margin_mm = 20.0"),
        "plate: edge_margin_mm 20 leaves nothing of a plate of 60 x 40 mm",
    ),
    "an outline for single pictures": (
        ("[plate]", '[plate]\noutline = "whole"'),
        "plate.outline: 'whole' is for single pictures (`vqi inspect`); a belt needs 'level'",
    ),
    "a step that is no multiple": (
        ("[model]", "[grid]\nstep_px = 100\n[model]"),
        "grid.step_px: input should be a multiple of 32 (found 100)",
    ),
    "a lane wider than the scan line": (
        ("[model]", "[lane]\nend_mm = 900.0\n[model]"),
        "lane: lane 0.0 to 900.0 mm does not fit in a scan line of 768 px x 0.1 mm = 76.8 mm",
    ),
    "plates longer than a record can say": (
        ("edge_margin_mm = 2.0", "edge_margin_mm = 2.0\nmax_length_mm = 7000.0"),
        "plate: a plate may have 70021 scan lines, a record has room for 65536; less length_mm or",
    ),
    "more tiles than a record can hold": (
        (
            "belt_stop_timeout_s = 1.0\n",
            "max_length_mm = 5000.0\n[grid]\nstep_px = 32\n",
        ),
        "grid.step_px: a plate may have 37536 tiles in steps of 32 px, a record has room for 30000",
    ),
}


@pytest.mark.parametrize("name", RECIPE_MISTAKES)
@pytest.mark.parametrize("command", ["run", "check", "bench"])
def test_a_wrong_recipe_ends_each_command_with_78(tmp_path: Path, name: str, command: str) -> None:
    (old, new), expected = RECIPE_MISTAKES[name]
    config = Rig(tmp_path).write()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    done = vqi(command, "--config", str(config))
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{recipe}: {expected}" in done.stderr


def test_a_recipe_that_is_missing_names_the_key_that_named_it(tmp_path: Path) -> None:
    config = Rig(tmp_path).write()
    config.write_text(config.read_text().replace(str(tmp_path / "recipe.toml"), "shipped:none"))
    done = vqi("run", "--config", str(config))
    assert done.returncode == 78
    assert done.stderr.strip() == (
        f"vqi: {config}: station.recipe: shipped:none: no such shipped recipe; there are: "
        "demo-lgp, whole-image"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("check",),
        ("bench",),
        ("camera", "snap"),
        ("light", "test"),
        ("control", "status"),
        ("log", "list"),
        *(("serve", each) for each in ("lamp", "journal", "station", "web")),
    ],
    ids=" ".join,
)
def test_a_missing_configuration_is_one_line_and_78(arguments: tuple[str, ...]) -> None:
    done = vqi(*arguments, "--config", "nowhere.toml")
    assert done.returncode == 78
    assert done.stderr.strip() == (
        "vqi: nowhere.toml: this configuration cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("key", ["journal.directory", "station.runtime_dir"])
def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path, key: str) -> None:
    rig = Rig(tmp_path)
    config = rig.write()
    blocked = tmp_path / "file" / "inside"
    blocked.parent.write_text("not a folder")
    folder = rig.journal if key == "journal.directory" else rig.runtime
    config.write_text(config.read_text().replace(f'"{folder}"', f'"{blocked}"'))
    done = vqi("run", "--config", str(config), "--plates", "1")
    assert done.returncode == 78, done.stderr
    assert f"{key}" in done.stderr
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_record_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = Rig(tmp_path).run("--plates", "1", "--record", str(blocked / "strip"))
    assert result.status == 1
    assert str(blocked) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_command_without_a_configuration_says_so() -> None:
    done = vqi("run")
    assert done.returncode == 2
    assert "--config" in done.stderr
