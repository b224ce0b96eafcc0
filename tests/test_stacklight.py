"""Stack lights: one contract for every driver, then each driver at its wire."""

from __future__ import annotations

import errno
import os
import threading
import time
import tty
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gpiod.line import Bias, Direction, Drive, Value
from light_devices import (
    CHANNELS,
    Adafruit,
    Bridge,
    Devantech,
    Device,
    Lcus,
    ModbusBoard,
    Numato,
    PatliteTower,
    TcpDevice,
    Told,
)
from pty_recorder import PtyRecorder, adafruit_elements, read_log
from pymodbus import FramerType
from station_rig import wait_until

from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
)
from drivers.stacklight import LightState, StackLight, open_stack_light
from drivers.stacklight.gpio import GpioStackLight
from drivers.stacklight.profiles import DEFAULT_PATTERNS
from drivers.stacklight.serial_tower import SerialTower
from drivers.stacklight.settings import (
    GpioLine,
    GpioStackLightSettings,
    LightPattern,
    ModbusRelaySettings,
    PatliteSettings,
    SerialElement,
    SerialTowerSettings,
    SimulatedStackLightSettings,
)
from drivers.stacklight.simulated import SimulatedStackLight

PATTERNS = DEFAULT_PATTERNS


class FakeChip(Device):
    """A GPIO chip at libgpiod's interface: what the kernel does with requests, in memory."""

    def __init__(self, lines: int = 8) -> None:
        super().__init__()
        self.levels = [0] * lines
        """Electrical level of each line."""
        self.held: set[int] = set()
        self.writes: list[tuple[int, dict[int, Value]]] = []
        self.lines: dict[int, Any] = {}
        """Settings of each requested line."""
        self.is_gone = False

    ELEMENTS = ("red", "yellow", "green", *"xxxxx")

    def shown(self) -> dict[str, str]:
        levels = self.levels
        return {
            self.ELEMENTS[offset]: "on"
            for offset, line in self.lines.items()
            if bool(levels[offset]) != line.active_low
        }

    def request_lines(self, path: str, consumer: str, config: dict[int, Any]) -> FakeRequest:
        if path != "/dev/gpiochip0":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if any(offset >= len(self.levels) for offset in config):
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.held & set(config):
            raise OSError(errno.EBUSY, "Device or resource busy")
        assert consumer == "vqi"
        self.held |= set(config)
        return FakeRequest(self, config)


class FakeRequest:
    def __init__(self, chip: FakeChip, config: dict[int, Any]) -> None:
        self.chip, self.config = chip, config

    def reconfigure_lines(self, config: dict[int, Any]) -> None:
        self.config = config
        self._apply({offset: line.output_value for offset, line in config.items()})

    def set_values(self, values: dict[int, Value]) -> None:
        for offset in values:
            if self.config[offset].direction is not Direction.OUTPUT:
                raise PermissionError(errno.EPERM, "Operation not permitted")
        self._apply(values)

    def get_values(self, offsets: list[int]) -> list[Value]:
        return [Value(self.chip.levels[o] ^ self.config[o].active_low) for o in offsets]

    def release(self) -> None:
        self.chip.held -= set(self.config)

    def _apply(self, values: dict[int, Value]) -> None:
        if self.chip.is_gone:
            raise OSError(errno.ENODEV, "No such device")
        self.chip.writes.append((time.monotonic_ns(), dict(values)))
        for offset, value in values.items():
            level = value.value ^ self.config[offset].active_low
            if self.chip.ELEMENTS[offset] in self.chip.stuck:
                level = self.config[offset].active_low
            self.chip.levels[offset] = int(level)
        self.chip.lines = self.config
        self.chip.history.append(self.chip.shown())


def gpio_settings(**changes: Any) -> GpioStackLightSettings:
    lines = {
        "red": GpioLine(offset=0, is_active_low=False),
        "yellow": GpioLine(offset=1, is_active_low=False),
        "green": GpioLine(offset=2, is_active_low=True),
    }
    return GpioStackLightSettings(
        **{"type": "gpio", "chip": "/dev/gpiochip0", "lines": lines, "blink_hz": 2.8, **changes}
    )


def serial_settings(port: Path, **changes: Any) -> SerialTowerSettings:
    return SerialTowerSettings(type="serial_tower", port=str(port), **changes)


# --- the contract, for every driver ---------------------------------------------------------------

ADDRESSES = {"red": 0, "yellow": 1, "green": 7}
TOLD = {
    "elements": {e: {"on_text": e[0].upper(), "blink_text": e[0]} for e in CHANNELS},
    "all_off_text": "0",
    "read": {"request_text": "?", "prompt": "\n", "form": "chars", "places": CHANNELS},
}
SERIAL: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "adafruit_5125": (Adafruit, {"board": "adafruit_5125"}),
    "lcus": (Lcus, {"board": "lcus", "channels": CHANNELS, "blink_hz": 2.8}),
    "numato": (Numato, {"board": "numato", "channels": CHANNELS, "blink_hz": 2.8}),
    "devantech": (Devantech, {"board": "devantech_rly16", "channels": CHANNELS, "blink_hz": 2.8}),
    "told": (Told, TOLD),
}
MODBUS = {
    "modbus_rtu": {"addresses": ADDRESSES},
    "modbus_tcp": {"addresses": ADDRESSES},
    "modbus_rtu_over_tcp": {"addresses": ADDRESSES, "framing": "rtu"},
    "modbus_registers": {
        "addresses": {"red": 1, "yellow": 2, "green": 8},
        "command": "register",
    },
}
KINDS = ["simulated", *SERIAL, *MODBUS, "patlite_pns", "patlite_phn", "gpio"]
READ_BACK = [kind for kind in KINDS if kind not in ("simulated", "adafruit_5125", "lcus")]
EXCLUSIVE = [*SERIAL, "modbus_rtu", "gpio"]
SHARED = [kind for kind in READ_BACK if kind not in EXCLUSIVE]


class Bench:
    """A kind of light: its device, the settings that open it, and what can go wrong with it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder = kind, folder
        self.device = Device()
        self.settings: Any = None
        self._ends: list[Any] = []
        self.plug_in()

    def open(self, patterns: dict[LightState, LightPattern] = PATTERNS) -> StackLight:
        if self.kind == "gpio":
            return GpioStackLight(self.settings, patterns, request_lines=self._chip.request_lines)
        return open_stack_light(self.settings, patterns)

    def plug_in(self) -> None:
        """A new device at the same place."""
        if self.kind in SERIAL:
            self._serial(*SERIAL[self.kind])
        elif self.kind in MODBUS:
            self._modbus(MODBUS[self.kind])
        elif self.kind.startswith("patlite"):
            self._patlite(self.kind.removeprefix("patlite_"))
        elif self.kind == "gpio":
            self.device = self._chip = FakeChip()
            self.settings = gpio_settings()
        else:
            self.settings = SimulatedStackLightSettings(type="simulated")

    def unplug(self) -> None:
        """The device is gone, with what leads to it."""
        for end in self._ends:
            end.close()
        if self.kind == "gpio":
            self._chip.is_gone = True

    def fall_silent(self) -> None:
        """The device is there and takes or answers nothing any more."""
        if self.kind in SERIAL or self.kind == "modbus_rtu":
            end = self._ends[0]
            (end.near if isinstance(end, Bridge) else end).stop_reading()
        elif self.kind in MODBUS:
            self.device.answers = lambda data: b""  # type: ignore[attr-defined]
        else:
            self._mute = True

    def interfere(self, element: str) -> None:
        """Another master lights an element."""
        self.device.light(element, "on")

    def _serial(self, board: type[Any], settings: dict[str, Any]) -> None:
        recorder = PtyRecorder(self._folder / "tower")
        self.device = board()
        recorder.answer = self.device.feed  # type: ignore[attr-defined]
        self._ends = [recorder]
        self.settings = serial_settings(self._folder / "tower", **settings)

    def _modbus(self, settings: dict[str, Any]) -> None:
        self.device = board = ModbusBoard(settings["addresses"])
        where: dict[str, Any] = {"host": "127.0.0.1"}
        self._ends = [board]
        if self.kind == "modbus_rtu":
            bridge = Bridge(self._folder / "rs485")
            board.serve_rtu(bridge.far.device)
            self._ends = [bridge, board]
            where = {"port": str(self._folder / "rs485")}
        else:
            is_rtu = "framing" in settings
            where["tcp_port"] = board.serve_tcp(FramerType.RTU if is_rtu else FramerType.SOCKET)
        self.settings = ModbusRelaySettings(type="modbus_relay", blink_hz=2.8, **where, **settings)

    def _patlite(self, protocol: Any) -> None:
        self.device = tower = PatliteTower()
        self._mute = False
        port = self.settings.tcp_port if self.settings else 0
        server = TcpDevice(lambda data: b"" if self._mute else tower.feed(data), port)
        self._ends = [server]
        self.settings = PatliteSettings(
            type="patlite",
            host="127.0.0.1",
            tcp_port=server.port,
            protocol=protocol,
            elements=tuple(CHANNELS),
        )


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(kind: str, tmp_path: Path) -> Iterator[Bench]:
    it = Bench(kind, tmp_path)
    yield it
    it.unplug()


def each(*kinds: str) -> Any:
    return pytest.mark.parametrize("kind", kinds, indirect=True)


def eventually(condition: Callable[[], bool], timeout_s: float = 2.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def is_seen(bench: Bench, light: StackLight, pattern: LightPattern) -> bool:
    """The device shows the pattern; what the host flashes has been lit, and dark again since."""
    if isinstance(light, SimulatedStackLight):
        return light.lit == pattern
    if bench.device.lit() == pattern:
        return True
    flashing = {element for element, mode in pattern.items() if mode == "blink"}
    steady = {element: mode for element, mode in pattern.items() if mode == "on"}
    is_lit, is_dark_again = set[str](), set[str]()
    for lit in list(bench.device.history):
        if {e: m for e, m in lit.items() if e not in flashing} != steady:
            is_lit, is_dark_again = set(), set()
        is_dark_again |= is_lit - lit.keys()
        is_lit |= flashing & lit.keys()
    return bool(flashing) and is_dark_again == flashing


@each(*KINDS)
def test_every_state_is_seen_at_the_device_and_a_renewal_is_not(bench: Bench) -> None:
    with bench.open() as light:
        for state in (LightState.FAULT, *LightState, LightState.PASS):
            assert light.show(state) is light.can_confirm
            assert eventually(partial(is_seen, bench, light, PATTERNS[state])), (
                state,
                bench.device.history[-12:],
            )
            before = len(bench.device.history)
            assert light.show(state) is light.can_confirm
            if "blink" not in PATTERNS[state].values():
                assert all(lit == PATTERNS[state] for lit in bench.device.history[before:])


@each(*(kind for kind in KINDS if kind != "simulated"))
def test_two_patterns_are_never_lit_at_once(bench: Bench) -> None:
    order = [LightState.PASS, LightState.FAIL, LightState.LAMP_TEST, LightState.UNDECIDED]
    with bench.open() as light:
        light.show(order[-1])
        assert eventually(lambda: bench.device.lit() == PATTERNS[order[-1]])
        for before, after in pairwise([order[-1], *order]):
            start = len(bench.device.history)
            light.show(after)
            assert eventually(lambda state=after: bench.device.lit() == PATTERNS[state])
            for lit in bench.device.history[start:]:
                assert lit.items() <= PATTERNS[before].items() or (
                    lit.items() <= PATTERNS[after].items()
                ), (before, after, bench.device.history[start:])


@each(*KINDS)
def test_close_changes_nothing_and_may_be_repeated(bench: Bench) -> None:
    light = bench.open()
    light.show(LightState.FAIL)
    assert eventually(lambda: is_seen(bench, light, {"red": "on"}))
    light.close()
    light.close()
    assert is_seen(bench, light, {"red": "on"})


@each(*KINDS)
def test_it_says_what_was_opened(bench: Bench) -> None:
    with bench.open() as light:
        assert "light" in light.description or "tower" in light.description
        assert light.can_confirm == bench.settings.can_confirm


@each(*(kind for kind in KINDS if kind != "simulated"))
def test_a_device_that_is_pulled_out_is_lost_until_it_is_opened_anew(bench: Bench) -> None:
    light = bench.open()
    light.show(LightState.FAULT)
    bench.unplug()
    for state in (LightState.PASS, LightState.FAULT):
        with pytest.raises(DeviceLost):
            light.show(state)
    light.close()
    light.close()
    bench.plug_in()
    with bench.open() as again:
        again.show(LightState.FAIL)
        assert eventually(lambda: bench.device.lit() == {"red": "on"})


@pytest.mark.alone
@each(*(kind for kind in KINDS if kind not in ("simulated", "gpio")))
def test_a_device_that_falls_silent_is_told_within_half_a_second(bench: Bench) -> None:
    with bench.open() as light:
        light.show(LightState.FAULT)
        bench.fall_silent()
        with pytest.raises(DeviceTimeout):  # noqa: PT012 - a pty takes 18 kB before it is full
            for _ in range(20_000):
                started = time.monotonic()
                light.show(LightState.FAIL)
        assert time.monotonic() - started < 0.5


@pytest.mark.alone
@each("modbus_tcp", "modbus_rtu_over_tcp", "modbus_registers", "patlite_pns", "patlite_phn")
@pytest.mark.parametrize("byte", [b"\x00", b"\x06"])
def test_a_device_that_talks_without_end_is_told_within_half_a_second(
    bench: Bench, byte: bytes
) -> None:
    with TcpDevice(lambda data: byte * 65_536) as flood:
        flood.is_flooding = True
        bench.settings = bench.settings.model_copy(update={"tcp_port": flood.port})
        with bench.open() as light:
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(DeviceError):
                    light.show(LightState.FAIL)
                assert time.monotonic() - started < 0.5


@each(*EXCLUSIVE)
def test_a_second_master_on_one_port_is_refused(bench: Bench) -> None:
    with bench.open() as light:
        with pytest.raises(DeviceBusy):
            bench.open()
        light.show(LightState.FAIL)
        assert eventually(lambda: bench.device.lit() == {"red": "on"})
    bench.open().close()


@each(*SHARED)
def test_a_second_master_on_the_network_is_noticed(bench: Bench) -> None:
    with bench.open() as light:
        light.show(LightState.FAIL)
        bench.interfere("green")
        with pytest.raises(DeviceTimeout, match="green read back wrong: on, left off"):
            light.show(LightState.FAIL)
        assert light.show(LightState.FAIL) is True
        assert bench.device.lit() == {"red": "on"}
        bench.device.on_read = lambda: bench.interfere("green")  # type: ignore[attr-defined]
        with pytest.raises(DeviceTimeout, match="green read back wrong"):
            light.show(LightState.FAIL)


@each(*READ_BACK)
def test_an_element_that_does_not_light_is_not_confirmed(bench: Bench) -> None:
    with bench.open() as light:
        assert light.show(LightState.PASS) is True
        bench.device.stuck.add("red")
        with pytest.raises(DeviceTimeout, match="red read back wrong: off, wanted on"):
            light.show(LightState.FAIL)
        assert light.show(LightState.UNDECIDED) is True


def test_a_buzzer_falls_silent_and_the_light_does_not(tmp_path: Path) -> None:
    patterns = {**PATTERNS, LightState.FAULT: LightPattern(red="on", buzzer="on")}
    settings = serial_settings(tmp_path / "tower")
    with (
        PtyRecorder(tmp_path / "tower") as tower,
        open_stack_light(settings, patterns, buzzer_s=0.05) as light,
    ):
        light.show(LightState.FAULT)
        tower.wait_for(lambda: tower.elements() == {"red": "on", "buzzer": "on"})
        time.sleep(0.06)  # as long as the buzzer may sound
        light.show(LightState.FAULT)
        tower.wait_for(lambda: tower.elements() == {"red": "on"})
        light.show(LightState.FAIL)
        light.show(LightState.FAULT)
        tower.wait_for(lambda: tower.elements() == {"red": "on", "buzzer": "on"})


def test_settings_choose_the_driver() -> None:
    with open_stack_light(SimulatedStackLightSettings(type="simulated"), PATTERNS) as light:
        assert isinstance(light, SimulatedStackLight)
    with pytest.raises(DeviceNotFound):
        open_stack_light(gpio_settings(chip="/dev/gpiochip-that-is-not-there"), PATTERNS)


# --- serial tower ---------------------------------------------------------------------------------


@pytest.fixture
def tower() -> Iterator[PtyRecorder]:
    with PtyRecorder() as recorder:
        yield recorder


def written(tower: PtyRecorder, count: int) -> bytes:
    tower.wait_for(lambda: len(tower.bytes_sent()) >= count)
    time.sleep(0.02)
    return tower.bytes_sent()


def test_adafruit_bytes_darken_before_they_light(tower: PtyRecorder) -> None:
    with SerialTower(serial_settings(tower.device), PATTERNS) as light:
        light.show(LightState.PASS)
        assert written(tower, 5) == bytes.fromhex("21 22 24 28 14")
        light.show(LightState.PASS)
        assert written(tower, 9)[5:] == bytes.fromhex("21 22 28 14"), "a renewal is not seen"
        light.show(LightState.FAIL)
        assert written(tower, 14)[9:] == bytes.fromhex("21 22 24 28 11")
        light.show(LightState.FAULT)
        assert written(tower, 19)[14:] == bytes.fromhex("21 22 24 28 41")


def test_a_relay_board_is_a_matter_of_settings(tower: PtyRecorder) -> None:
    elements = {
        "red": SerialElement(on="A0 01 01 A2", off="A0 01 00 A1"),
        "green": SerialElement(on="A0 02 01 A3", off="A0 02 00 A2"),
    }
    patterns = {**PATTERNS, LightState.PASS: {"green": "on"}}
    settings = serial_settings(tower.device, elements=elements)
    with SerialTower(settings, patterns) as light:
        light.show(LightState.PASS)
        assert written(tower, 12) == bytes.fromhex("A0010 0A1 A00200A2 A00201A3".replace(" ", ""))


def test_opening_writes_nothing(tower: PtyRecorder) -> None:
    with SerialTower(serial_settings(tower.device), PATTERNS):
        time.sleep(0.05)
    assert tower.bytes_sent() == b""


def test_closing_at_once_loses_nothing(tower: PtyRecorder) -> None:
    for _ in range(50):
        with SerialTower(serial_settings(tower.device), PATTERNS) as light:
            light.show(LightState.FAULT)
    assert len(written(tower, 250)) == 250


def test_a_second_opener_is_refused(tower: PtyRecorder) -> None:
    with (
        SerialTower(serial_settings(tower.device), PATTERNS),
        pytest.raises(DeviceBusy, match="held by another process"),
    ):
        SerialTower(serial_settings(tower.device), PATTERNS)
    SerialTower(serial_settings(tower.device), PATTERNS).close()


def test_a_port_that_is_not_there_or_not_serial_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFound, match="no-such-port"):
        SerialTower(serial_settings(tmp_path / "no-such-port"), PATTERNS)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceRefused, match="not a serial port"):
        SerialTower(serial_settings(tmp_path / "file"), PATTERNS)


def test_an_unplugged_tower_is_lost(tower: PtyRecorder) -> None:
    light = SerialTower(serial_settings(tower.device), PATTERNS)
    light.show(LightState.PASS)
    tower.unplug()
    with pytest.raises(DeviceLost, match="plug it in"):
        light.show(LightState.PASS)
    with pytest.raises(DeviceLost):
        light.show(LightState.FAULT)
    light.close()
    light.close()
    with pytest.raises(DeviceError):
        SerialTower(serial_settings(tower.device), PATTERNS)


def show_often(light: StackLight, state: LightState) -> None:
    for _ in range(20_000):
        light.show(state)


def test_a_line_that_nobody_reads_times_out_and_drops_what_is_stale() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    try:
        with SerialTower(
            serial_settings(Path(os.ttyname(slave)), write_timeout_s=0.2), PATTERNS
        ) as light:
            with pytest.raises(DeviceTimeout, match="did not take"):
                show_often(light, LightState.PASS)
            started = time.monotonic()
            with pytest.raises(DeviceTimeout):
                show_often(light, LightState.FAULT)
            assert time.monotonic() - started < 5, "a blocked line must not block its caller"
    finally:
        os.close(master)
        os.close(slave)


def test_the_recorder_logs_what_was_sent(tmp_path: Path) -> None:
    link, log = tmp_path / "tower", tmp_path / "log"
    with PtyRecorder(link, log) as recorder:
        before_ns = time.monotonic_ns()
        with SerialTower(serial_settings(link), PATTERNS) as light:
            light.show(LightState.PASS_NOT_PRODUCTION)
            recorder.wait_for(lambda: recorder.elements() == {"yellow": "blink", "green": "on"})
    records = read_log(log)
    assert before_ns < records[0][0] < time.monotonic_ns()
    assert adafruit_elements(b"".join(data for _, data in records)) == {
        "yellow": "blink",
        "green": "on",
    }


# --- GPIO -----------------------------------------------------------------------------------------


def open_gpio(fake: FakeChip, **changes: Any) -> GpioStackLight:
    return GpioStackLight(gpio_settings(**changes), PATTERNS, request_lines=fake.request_lines)


def test_gpio_levels_follow_active_low_and_opening_drives_nothing() -> None:
    chip = FakeChip()
    with open_gpio(chip) as light:
        assert chip.writes == []
        light.show(LightState.PASS)
        assert chip.levels[:3] == [0, 0, 0], "green is lit at low level"
        light.show(LightState.FAIL)
        assert chip.levels[:3] == [1, 0, 1]


def test_gpio_bias_and_drive_reach_the_chip_once_lines_are_driven() -> None:
    chip = FakeChip()
    lines = {
        "red": GpioLine(offset=0, bias="pull_up", drive="open_drain"),
        "yellow": GpioLine(offset=1, bias="pull_down", drive="open_source"),
        "green": GpioLine(offset=2, bias="disabled"),
    }
    with open_gpio(chip, lines=lines) as light:
        light.show(LightState.PASS)
    assert [(line.bias, line.drive) for line in chip.lines.values()] == [
        (Bias.PULL_UP, Drive.OPEN_DRAIN),
        (Bias.PULL_DOWN, Drive.OPEN_SOURCE),
        (Bias.DISABLED, Drive.PUSH_PULL),
    ]


def test_gpio_switches_all_lines_in_one_write() -> None:
    chip = FakeChip()
    with open_gpio(chip) as light:
        for state in (LightState.PASS, LightState.FAIL, LightState.UNDECIDED):
            light.show(state)
    assert [set(values) for _, values in chip.writes] == [{0, 1, 2}] * 3


def test_gpio_flashes_at_its_rate_also_while_renewed() -> None:
    chip = FakeChip()
    with open_gpio(chip) as light:
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            light.show(LightState.FAULT)
            time.sleep(0.05)
    red = [values[0] for _, values in chip.writes]
    changes = sum(a != b for a, b in pairwise(red))
    assert 3 <= changes <= 10, "1.6 s at 2.8 Hz are nine changes on an idle machine"
    assert all(values[2] is Value.INACTIVE for _, values in chip.writes)


def test_a_full_process_table_leaves_a_steady_fault_that_flashes_once_there_is_room() -> None:
    chip = FakeChip()
    threading.stack_size(2**47)  # the kernel has no room for such a thread
    try:
        light = open_gpio(chip)
        light.show(LightState.FAULT)
    finally:
        threading.stack_size(0)
    with light:
        assert chip.levels[0] == 1
        light.show(LightState.FAULT)
        wait_until(lambda: chip.levels[0] == 0, 5.0, "a flash")


def test_gpio_lines_are_held_until_closed() -> None:
    chip = FakeChip()
    light = open_gpio(chip)
    with pytest.raises(DeviceBusy, match="0, 1, 2"):
        open_gpio(chip)
    light.close()
    open_gpio(chip).close()


def test_gpio_chip_or_line_that_is_not_there() -> None:
    with pytest.raises(DeviceNotFound, match="gpiochip9"):
        open_gpio(FakeChip(), chip="/dev/gpiochip9")
    with pytest.raises(DeviceRefused, match="0, 1, 2"):
        open_gpio(FakeChip(lines=2))


def test_gpio_reads_back_what_it_drove() -> None:
    chip = FakeChip()
    chip.stuck.add("red")
    with open_gpio(chip) as light:
        assert light.show(LightState.PASS) is True
        with pytest.raises(DeviceTimeout, match="red read back wrong"):
            light.show(LightState.FAIL)


def test_a_gpio_chip_that_goes_while_flashing_is_lost() -> None:
    chip = FakeChip()
    with open_gpio(chip) as light:
        light.show(LightState.FAULT)
        chip.is_gone = True
        time.sleep(0.25)
        chip.is_gone = False
        with pytest.raises(DeviceLost, match="No such device"):
            light.show(LightState.FAULT)


@pytest.mark.gpio_sim
def test_gpio_on_the_kernels_simulator() -> None:
    """A chip of the kernel's gpio-sim: real libgpiod, real ioctls; needs root and configfs."""
    configfs = Path("/sys/kernel/config/gpio-sim")
    if not configfs.is_dir() or os.geteuid() != 0:
        pytest.skip("no gpio-sim here: needs root, configfs and CONFIG_GPIO_SIM")
    chip = configfs / "vqi-test"
    bank = chip / "bank0"
    bank.mkdir(parents=True)
    try:
        (bank / "num_lines").write_text("8")
        (chip / "live").write_text("1")
        name = (bank / "chip_name").read_text().strip()
        device = (chip / "dev_name").read_text().strip()
        pulls = Path("/sys/devices/platform") / device / name
        settings = gpio_settings(chip=f"/dev/{name}")

        def levels() -> list[int]:
            return [int((pulls / f"sim_gpio{line}" / "value").read_text()) for line in range(3)]

        with GpioStackLight(settings, PATTERNS) as light:
            assert light.show(LightState.PASS) is True
            assert levels() == [0, 0, 0]
            assert light.show(LightState.FAIL) is True
            assert levels() == [1, 0, 1]
    finally:
        (chip / "live").write_text("0")
        bank.rmdir()
        chip.rmdir()
