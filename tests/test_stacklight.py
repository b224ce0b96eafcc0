"""Stack lights: one contract for every driver, then each driver at its wire."""

from __future__ import annotations

import errno
import os
import time
import tty
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gpiod.line import Direction, Value
from pty_recorder import PtyRecorder, adafruit_elements, read_log

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
from drivers.stacklight.serial_tower import SerialTower
from drivers.stacklight.settings import (
    DEFAULT_PATTERNS,
    GpioLine,
    GpioStackLightSettings,
    SerialElement,
    SerialTowerSettings,
    SimulatedStackLightSettings,
)
from drivers.stacklight.simulated import SimulatedStackLight

PATTERNS = DEFAULT_PATTERNS


class FakeChip:
    """A GPIO chip at libgpiod's interface: what the kernel does with requests, in memory."""

    def __init__(self, lines: int = 8) -> None:
        self.levels = [0] * lines
        """Electrical level of each line."""
        self.held: set[int] = set()
        self.writes: list[tuple[int, dict[int, Value]]] = []
        self.stuck: dict[int, int] = {}
        self.is_gone = False

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
            self.chip.levels[offset] = self.chip.stuck.get(offset, level)


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


class Bench:
    """A driver with its device, and a way to see what is lit."""

    def __init__(self, light: StackLight, lit: Callable[[], dict[str, str]]) -> None:
        self.light, self.lit = light, lit


@pytest.fixture(params=["simulated", "serial_tower", "gpio"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "simulated":
        simulated = SimulatedStackLight(SimulatedStackLightSettings(type="simulated"), PATTERNS)
        yield Bench(simulated, lambda: dict(simulated.lit or {}))
        simulated.close()
    elif request.param == "serial_tower":
        with PtyRecorder() as tower:
            light = SerialTower(serial_settings(tower.device), PATTERNS)
            yield Bench(light, tower.elements)
            light.close()
    else:
        chip = FakeChip()
        gpio = GpioStackLight(gpio_settings(), PATTERNS, request_lines=chip.request_lines)
        yield Bench(gpio, lambda: watch_gpio(chip))
        gpio.close()


def watch_gpio(chip: FakeChip) -> dict[str, str]:
    """Look at the lines for longer than a flash: those that changed blink."""
    seen: dict[str, set[bool]] = {"red": set(), "yellow": set(), "green": set()}
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        for offset, (element, levels) in enumerate(seen.items()):
            levels.add(bool(chip.levels[offset]) != (element == "green"))
        time.sleep(0.002)
    return {e: "blink" if len(s) == 2 else "on" for e, s in seen.items() if True in s}


def eventually(condition: Callable[[], bool], timeout_s: float = 2.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("state", LightState)
def test_every_state_shows_its_pattern_after_any_other(bench: Bench, state: LightState) -> None:
    for before in (LightState.PASS, LightState.FAULT):
        bench.light.show(before)
        assert bench.light.show(state) is bench.light.can_confirm
        assert eventually(lambda: bench.lit() == PATTERNS[state]), bench.lit()


def test_close_changes_nothing_and_may_be_repeated(bench: Bench) -> None:
    bench.light.show(LightState.FAIL)
    assert eventually(lambda: bench.lit() == {"red": "on"})
    bench.light.close()
    bench.light.close()
    assert bench.lit() == {"red": "on"}


def test_it_says_what_was_opened(bench: Bench) -> None:
    assert "light" in bench.light.description or "tower" in bench.light.description


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
    chip.stuck[0] = 0
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
