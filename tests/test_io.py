"""Digital I/O: one contract for every driver over its own wire, then what each has of its own."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from modbus_peer import PULSE_OFFSET, ModbusPeer
from pydantic import ValidationError
from test_stacklight import FakeChip

from drivers.errors import DeviceError, DeviceNotFound, DeviceTimeout
from drivers.io import DigitalIo, open_digital_io
from drivers.io.gpio import GpioIo
from drivers.io.modbus import ModbusIo
from drivers.io.settings import GpioIoLine, GpioIoSettings, ModbusIoSettings, SimulatedIoSettings
from drivers.io.simulated import SimulatedIo

OUTPUTS, INPUTS = {"a": 0, "b": 1, "far": 5}, {"x": 3, "y": 4}


@dataclass
class Bench:
    """A driver with what lies at the other end of its wires."""

    io: DigitalIo
    lit: Callable[[], dict[str, bool]]
    press: Callable[[str, bool], None]


def modbus_settings(tcp_port: int, **changes: object) -> ModbusIoSettings:
    return ModbusIoSettings.model_validate(
        {
            "type": "modbus",
            "host": "127.0.0.1",
            "tcp_port": tcp_port,
            "outputs": OUTPUTS,
            "inputs": INPUTS,
            "pulse_offset": PULSE_OFFSET,
            **changes,
        }
    )


def gpio_settings() -> GpioIoSettings:
    return GpioIoSettings(
        type="gpio",
        chip="/dev/gpiochip0",
        outputs={
            name: GpioIoLine(offset=at, is_active_low=name == "b") for name, at in OUTPUTS.items()
        },
        inputs={
            name: GpioIoLine(offset=at, bias="pull_up" if name == "x" else "as_is")
            for name, at in INPUTS.items()
        },
    )


def modbus_bench(io: DigitalIo, peer: ModbusPeer) -> Bench:
    def press(name: str, is_on: bool) -> None:
        peer.inputs[INPUTS[name]] = is_on

    return Bench(io, lambda: {name: peer.lit()[at] for name, at in OUTPUTS.items()}, press)


class Bridge:
    """Two ptys joined end to end: a serial cable."""

    def __init__(self) -> None:
        self._ends = [pty.openpty() for _ in range(2)]
        for master, slave in self._ends:
            tty.setraw(master)
            tty.setraw(slave)
        self.ports = [Path(os.ttyname(slave)) for _, slave in self._ends]
        self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        (one, _), (other, _) = self._ends
        across = {one: other, other: one}
        while True:
            for ready in select.select([one, other, self._stop[0]], [], [])[0]:
                if ready == self._stop[0]:
                    return
                os.write(across[ready], os.read(ready, 512))

    def close(self) -> None:
        os.write(self._stop[1], b".")
        self._thread.join()
        for descriptor in (*self._ends[0], *self._ends[1], *self._stop):
            os.close(descriptor)


@pytest.fixture(params=["simulated", "gpio", "modbus_tcp", "modbus_rtu"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "simulated":
        settings = SimulatedIoSettings(
            type="simulated", outputs=tuple(OUTPUTS), inputs=tuple(INPUTS)
        )
        with SimulatedIo(settings) as simulated:
            yield Bench(simulated, lambda: simulated.lit, simulated.levels.__setitem__)
    elif request.param == "gpio":
        chip = FakeChip()

        def lit() -> dict[str, bool]:
            return {name: bool(chip.levels[at]) != (name == "b") for name, at in OUTPUTS.items()}

        def press(name: str, is_on: bool) -> None:
            chip.levels[INPUTS[name]] = is_on

        with GpioIo(gpio_settings(), request_lines=chip.request_lines) as gpio:
            yield Bench(gpio, lit, press)
    elif request.param == "modbus_tcp":
        with ModbusPeer() as peer, ModbusIo(modbus_settings(peer.port)) as tcp:
            yield modbus_bench(tcp, peer)
    else:
        cable = Bridge()
        with ModbusPeer(cable.ports[1]) as peer:
            settings = modbus_settings(1, host=None, port=str(cable.ports[0]))
            with ModbusIo(settings) as rtu:
                yield modbus_bench(rtu, peer)
        cable.close()


# --- the contract, for every driver ---------------------------------------------------------------


def test_outputs_follow_what_is_written_and_are_read_back(bench: Bench) -> None:
    assert bench.io.write(dict.fromkeys(OUTPUTS, False)) is True
    assert bench.lit() == dict.fromkeys(OUTPUTS, False)
    for levels in ({"a": True, "b": True}, {"a": False, "far": True}, {"b": False}):
        before = bench.lit()
        assert bench.io.write(levels) is True
        assert bench.lit() == before | levels, "what was not named stays as it was"


def test_inputs_are_read_by_name(bench: Bench) -> None:
    for is_on in (True, False):
        bench.press("x", is_on)
        bench.press("y", not is_on)
        assert bench.io.read() == {"x": is_on, "y": not is_on}


def test_a_pulse_ends_by_itself_where_the_device_times_it(bench: Bench) -> None:
    bench.io.write(dict.fromkeys(OUTPUTS, False))
    assert bench.io.pulse("b", 0.1) is True
    assert bench.lit() == {"a": False, "b": True, "far": False}
    if not bench.io.times_pulses:
        return
    deadline = time.monotonic() + 3.0
    while bench.lit()["b"]:
        assert time.monotonic() < deadline, "the pulse does not end"
        time.sleep(0.01)


def test_close_changes_nothing_and_may_be_repeated(bench: Bench) -> None:
    bench.io.write({"a": True, "b": True})
    before = bench.lit()
    bench.io.close()
    bench.io.close()
    assert bench.lit() == before


def test_it_names_its_outputs_and_itself(bench: Bench) -> None:
    assert set(bench.io.outputs) == set(OUTPUTS)
    assert "I/O" in bench.io.description


# --- of their own ---------------------------------------------------------------------------------


def test_settings_choose_the_driver() -> None:
    with open_digital_io(SimulatedIoSettings(type="simulated", outputs=("a",))) as io:
        assert isinstance(io, SimulatedIo)
    with pytest.raises(DeviceNotFound, match="gpiochip0"):
        open_digital_io(gpio_settings())
    with pytest.raises(DeviceNotFound, match="check its power"):
        open_digital_io(modbus_settings(1))


def test_an_echo_is_no_confirmation() -> None:
    """The coil does not switch, though the answer to FC05 repeats the request."""
    with ModbusPeer() as peer, ModbusIo(modbus_settings(peer.port)) as io:
        peer.stuck.add(0)
        with pytest.raises(DeviceTimeout, match="a read back wrong"):
            io.write({"a": True})
        assert io.write({"a": False}) is True


def test_a_module_that_is_gone_is_lost_and_found_again() -> None:
    with ModbusPeer() as peer, ModbusIo(modbus_settings(peer.port)) as io:
        io.write({"a": True})
        peer.stop()
        for _ in range(2):
            with pytest.raises(DeviceError):
                io.write({"a": False})
        with pytest.raises(DeviceNotFound, match="nobody answers"):
            ModbusIo(modbus_settings(peer.port))
        peer.start()
        with ModbusIo(modbus_settings(peer.port)) as again:
            assert again.write({"a": False}) is True


def test_neighbours_switch_in_one_command() -> None:
    with ModbusPeer() as peer, ModbusIo(modbus_settings(peer.port)) as io:
        io.write({"a": True, "b": True, "far": True})
        assert [frame[7] for frame in peer.frames if frame[7] != 1] == [15, 5]


def test_a_line_that_reads_back_wrong_is_named() -> None:
    chip = FakeChip()
    chip.levels = [0] * 5
    with pytest.raises(DeviceError, match="0, 1, 5, 3, 4"):
        GpioIo(gpio_settings(), request_lines=chip.request_lines)


def test_gpio_drives_nothing_before_the_first_write_and_then_all() -> None:
    chip = FakeChip()
    with GpioIo(gpio_settings(), request_lines=chip.request_lines) as io:
        assert chip.writes == []
        io.write({"a": True})
    assert chip.levels[:2] == [1, 1], "b is off at the high level"


def test_mistakes_in_settings_are_named() -> None:
    with pytest.raises(ValidationError, match="either port"):
        modbus_settings(1, port="/dev/ttyS0")
    line = GpioIoLine(offset=3)
    with pytest.raises(ValidationError, match=r"outputs\.a and inputs\.b are both line 3 of c;"):
        GpioIoSettings(type="gpio", chip="c", outputs={"a": line}, inputs={"b": line})


def test_no_two_outputs_of_a_module_are_one_coil() -> None:
    """What was written last would be on it, and the read-back would confirm both."""
    with pytest.raises(ValidationError, match=r"outputs.a and outputs.b are both coil 1 of "):
        modbus_settings(1, outputs={"a": 1, "b": 1})
    with pytest.raises(ValidationError, match=r"outputs.a and outputs.b are both coil 8 of "):
        modbus_settings(1, outputs={"a": 0, "b": 8}, pulse_offset=8)
    modbus_settings(1, outputs={"a": 0, "b": 7}, pulse_offset=8, inputs={"x": 0})


@pytest.mark.gpio_sim
def test_gpio_on_the_kernels_simulator() -> None:
    """A chip of the kernel's gpio-sim: real libgpiod, real ioctls; needs root and configfs."""
    configfs = Path("/sys/kernel/config/gpio-sim")
    if not configfs.is_dir() or os.geteuid() != 0:
        pytest.skip("no gpio-sim here: needs root, configfs and CONFIG_GPIO_SIM")
    chip = configfs / "vqi-io"
    bank = chip / "bank0"
    bank.mkdir(parents=True)
    try:
        (bank / "num_lines").write_text("8")
        (chip / "live").write_text("1")
        name = (bank / "chip_name").read_text().strip()
        lines = Path("/sys/devices/platform") / (chip / "dev_name").read_text().strip() / name
        settings = gpio_settings().model_copy(update={"chip": f"/dev/{name}"})
        with GpioIo(settings) as io:
            assert io.write({"a": True, "b": True}) is True
            levels = [(lines / f"sim_gpio{line}" / "value").read_text()[0] for line in (0, 1)]
            assert levels == ["1", "0"], "b is on at the low level"
            (lines / "sim_gpio3" / "pull").write_text("pull-up")
            assert io.read() == {"x": True, "y": False}
    finally:
        (chip / "live").write_text("0")
        bank.rmdir()
        chip.rmdir()
