"""The handshake with a PLC: its rules, every link over its own wire, and a server that nothing that
a client sends can harm."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from modbus_peer import PULSE_OFFSET, ModbusPeer
from plc_fuzz import Fuzz
from ports import free_port
from pydantic import TypeAdapter, ValidationError
from pymodbus.client import ModbusTcpClient
from test_stacklight import FakeChip

from drivers.errors import DeviceBusy, DeviceError, DeviceNotFound, DeviceRefused
from drivers.io.gpio import GpioIo
from drivers.io.settings import GpioIoLine, GpioIoSettings
from drivers.plc import NOBODY, PlcInputs, PlcLink, PlcOutputs, open_plc_link
from drivers.plc.handshake import LOW_S, Handshake, PlateWord, StationWord
from drivers.plc.io_link import IoLink
from drivers.plc.modbus_client import ModbusClientLink
from drivers.plc.modbus_server import (
    HALF_FRAME_S,
    MAX_CONNECTIONS,
    Memory,
    ModbusServerLink,
)
from drivers.plc.register_map import (
    INPUT_BITS,
    OUTPUT_BITS,
    OUTPUT_REGISTERS,
    input_registers,
    markdown_table,
    output_registers,
    read_inputs,
    read_outputs,
)
from drivers.plc.settings import (
    IoPlcSettings,
    ModbusClientSettings,
    ModbusServerSettings,
    PlcSettings,
)

DOCS = Path(__file__).parents[1] / "docs" / "plc.md"


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


# --- the register map -----------------------------------------------------------------------------

WORDS_16, WORDS_32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
OUTPUTS = st.builds(
    PlcOutputs,
    **{name: st.booleans() for name in OUTPUT_BITS},
    heartbeat=WORDS_16,
    result=WORDS_32,
    overruns=WORDS_16,
    late=WORDS_16,
)
INPUTS = st.builds(
    PlcInputs,
    **{name: st.booleans() for name in INPUT_BITS},
    heartbeat=WORDS_16,
    triggers=WORDS_32,
)


@given(OUTPUTS, INPUTS)
def test_every_word_survives_the_registers(outputs: PlcOutputs, inputs: PlcInputs) -> None:
    assert read_outputs(output_registers(outputs)) == outputs
    assert read_inputs(input_registers(inputs)) == inputs


def test_every_word_has_its_place() -> None:
    words = {field.name for field in fields(PlcOutputs)}
    assert words == {*OUTPUT_BITS, "heartbeat", "result", "overruns", "late"}


def test_the_documentation_has_this_map() -> None:
    assert markdown_table() in DOCS.read_text(), "docs/plc.md is older than the register map"


def test_the_timing_diagram_is_drawn_from_its_trace() -> None:
    drawn = subprocess.run(
        [sys.executable, str(DOCS.with_name("make_timing.py")), "--draw", "--out", "-"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert drawn == DOCS.with_name("plc-timing.svg").read_text()


def test_nobody_there_is_an_error_and_nothing_else() -> None:
    assert output_registers(NOBODY)[0] == 1 << OUTPUT_BITS.index("error")


# --- the rules ------------------------------------------------------------------------------------

LEASE_NS = 1_200_000_000


class HandshakeMachine(RuleBasedStateMachine):
    """A station that lives, hangs and dies, and a PLC that does as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.handshake = Handshake()
        self.now_ns = 10**12
        self.expires_ns = 0
        self.word_error = True
        self.results: dict[int, PlateWord] = {}
        self.acked: set[int] = set()
        self.lost: set[int] = set()
        """Results that were on their way when the lease ended."""
        self.sequence = 0
        self.ticks = 0
        self.seen: list[PlcOutputs] = []

    @rule(ready=st.booleans(), busy=st.booleans(), error=st.booleans(), is_tick=st.booleans())
    def say(self, ready: bool, busy: bool, error: bool, is_tick: bool) -> None:
        self._note_lapse()
        self.expires_ns, self.word_error = self.now_ns + LEASE_NS, error
        word = StationWord(ready and not error, busy, error, False, self.expires_ns)
        self.handshake.renew(word, is_tick, self.now_ns)
        self.ticks += is_tick

    @rule(is_pass=st.booleans(), is_undecided=st.booleans(), is_production=st.booleans())
    def plate(self, is_pass: bool, is_undecided: bool, is_production: bool) -> None:
        self._note_lapse()
        self.sequence += 1
        word = PlateWord(self.sequence, is_pass, is_undecided and not is_pass, is_production)
        self.results[self.sequence] = word
        if self.now_ns >= self.expires_ns:
            self.lost.add(self.sequence)
        self.handshake.result(word, self.now_ns)

    @rule(ms=st.integers(0, 3000))
    def wait(self, ms: int) -> None:
        self.now_ns += ms * 1_000_000

    @rule(ack=st.booleans())
    def plc(self, ack: bool) -> None:
        before = hand_out(self.handshake, self.now_ns)
        self.handshake.take(PlcInputs(ack=ack), self.now_ns)
        after = hand_out(self.handshake, self.now_ns)
        if before.result_valid and not after.result_valid:
            assert ack, "a result went without an ACK"
            self.acked.add(before.result)

    @rule()
    def die(self) -> None:
        self.expires_ns = 0
        self._note_lapse()
        self.handshake.revoke()

    def _note_lapse(self) -> None:
        if self.now_ns >= self.expires_ns:
            self.lost |= self.results.keys()

    @invariant()
    def it_says_nothing_wrong(self) -> None:
        self._note_lapse()
        said = hand_out(self.handshake, self.now_ns)
        is_alive = self.now_ns < self.expires_ns
        if not is_alive:
            silent = replace(
                NOBODY,
                heartbeat=said.heartbeat,
                result=said.result,
                overruns=said.overruns,
                late=said.late,
            )
            assert said == silent
        assert not (said.ok and said.ng)
        assert said.heartbeat == self.ticks % 2**16
        on_its_way = (self.handshake._shown is not None) + (self.handshake._next is not None)
        ended = len(self.acked) + self.handshake.overruns
        assert len(self.results) == ended + on_its_way, "each ends once"
        if not said.result_valid:
            assert not any((said.ok, said.ng, said.undecided, said.not_production))
        else:
            self._check_result(said)
        self.seen.append(said)

    def _check_result(self, said: PlcOutputs) -> None:
        plate = self.results[said.result]
        assert said.ok or said.ng or not plate.is_production
        assert not said.ok or (plate.is_pass and plate.is_production and not self.word_error)
        assert said.result not in self.lost, "a result came back after its lease"
        assert said.result not in self.acked, "a result came back after its ACK"
        last = self.seen[-1] if self.seen else NOBODY
        assert not last.result_valid or last.result == said.result, "two results without a pause"


TestHandshake = HandshakeMachine.TestCase
TestHandshake.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def hand_out(handshake: Handshake, now_ns: int) -> PlcOutputs:
    said = handshake.look(now_ns)
    handshake.handed(said, now_ns)
    return said


def alive(handshake: Handshake, now_ns: int) -> None:
    hand_out(handshake, now_ns - int(LOW_S * 1e9))
    handshake.renew(StationWord(True, False, False, False, now_ns + LEASE_NS), True, now_ns)


def test_not_ng_never_means_ok() -> None:
    """In every state that can be handed out, the absence of NG says nothing: OK is a bit."""
    now_ns = 10**12
    handshake = Handshake()
    assert not handshake.look(now_ns).ng
    assert not handshake.look(now_ns).ok
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, True, False, is_production=False), now_ns)
    said = hand_out(handshake, now_ns)
    assert said.result_valid
    assert (said.ok, said.ng, said.not_production) == (False, False, True)


def test_undecided_is_ng_with_a_bit_of_its_own() -> None:
    now_ns, handshake = 10**12, Handshake()
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, False, True, is_production=True), now_ns)
    said = hand_out(handshake, now_ns)
    assert (said.result_valid, said.ok, said.ng, said.undecided) == (True, False, True, True)


def test_an_ack_for_one_plate_is_not_taken_for_the_next() -> None:
    now_ns, handshake = 10**12, Handshake()
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, True, False, True), now_ns)
    assert hand_out(handshake, now_ns).result_valid
    handshake.result(PlateWord(2, False, False, True), now_ns)
    assert not hand_out(handshake, now_ns).result_valid
    handshake.take(PlcInputs(ack=True), now_ns)  # it read plate 1 and had not seen the pause
    now_ns += int(LOW_S * 1e9)
    assert not hand_out(handshake, now_ns).result_valid, "ACK is on: it has not seen the pause"
    handshake.take(PlcInputs(ack=False), now_ns)
    said = hand_out(handshake, now_ns)
    assert (said.result_valid, said.result, said.ng, said.overruns) == (True, 2, True, 1)


def test_an_ack_for_what_nobody_has_seen_acknowledges_nothing() -> None:
    now_ns, handshake = 10**12, Handshake()
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, True, False, True), now_ns)
    handshake.take(PlcInputs(ack=True), now_ns)
    assert not hand_out(handshake, now_ns).result_valid
    handshake.take(PlcInputs(ack=False), now_ns)
    said = hand_out(handshake, now_ns + int(LOW_S * 1e9))
    assert (said.result, said.result_valid) == (1, True)


def test_what_never_reached_the_wire_is_not_acknowledged_and_ends_no_pause() -> None:
    """Plate 2 is NG and the module is mute: the ACK of plate 1, which it still shows, is not its,
    and RESULT_VALID goes off on the wire before it goes on again."""
    now_ns, handshake = 10**12, Handshake()
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, True, False, True), now_ns)
    assert hand_out(handshake, now_ns).result == 1
    handshake.result(PlateWord(2, False, False, True), now_ns)
    for _ in range(3):
        now_ns += int(LOW_S * 1e9)
        assert not handshake.look(now_ns).result_valid, "a write that fails"
    handshake.take(PlcInputs(ack=True), now_ns)
    handshake.take(PlcInputs(ack=False), now_ns)
    assert not hand_out(handshake, now_ns).result_valid, "the wire shows plate 1 until here"
    now_ns += int(LOW_S * 1e9)
    assert handshake.look(now_ns).result == 2
    handshake.take(PlcInputs(ack=True), now_ns)
    handshake.take(PlcInputs(ack=False), now_ns)
    hand_out(handshake, now_ns)
    said = hand_out(handshake, now_ns + int(LOW_S * 1e9))
    assert (said.result_valid, said.result, said.ng) == (True, 2, True)


def test_what_a_predecessor_left_on_the_wire_ends_before_the_first_result() -> None:
    now_ns, handshake = 10**12, Handshake()
    handshake.renew(StationWord(True, False, False, False, now_ns + LEASE_NS), True, now_ns)
    handshake.result(PlateWord(1, True, False, True), now_ns)
    assert not hand_out(handshake, now_ns).result_valid
    assert hand_out(handshake, now_ns + int(LOW_S * 1e9)).result_valid


def test_under_an_error_no_plate_is_ok() -> None:
    now_ns, handshake = 10**12, Handshake()
    alive(handshake, now_ns)
    handshake.result(PlateWord(1, True, False, True), now_ns)
    assert hand_out(handshake, now_ns).ok
    handshake.renew(StationWord(False, False, True, False, now_ns + LEASE_NS), False, now_ns)
    assert not hand_out(handshake, now_ns).result_valid
    handshake.result(PlateWord(2, True, False, True), now_ns)
    said = hand_out(handshake, now_ns + int(LOW_S * 1e9))
    assert (said.ok, said.ng, said.undecided) == (False, True, True)


# --- the contract, for every link -----------------------------------------------------------------


@dataclass
class Bench:
    """A link with the PLC at the other end of its wire."""

    link: PlcLink
    sees: Callable[[], PlcOutputs]
    says: Callable[[PlcInputs], None]
    has_counts: bool
    """The wire carries numbers."""


WIRES_OUT = {name: place for place, name in enumerate((*OUTPUT_BITS, "heartbeat"))}
WIRES_IN = {name: place for place, name in enumerate((*INPUT_BITS, "heartbeat"))}


def on_wires(levels: list[bool]) -> PlcOutputs:
    values = {name: levels[place] for name, place in WIRES_OUT.items()}
    return PlcOutputs(**{**values, "heartbeat": int(values["heartbeat"])})  # type: ignore[arg-type]


def wire_levels(inputs: PlcInputs) -> dict[int, bool]:
    return {place: bool(getattr(inputs, name)) for name, place in WIRES_IN.items()}


@pytest.fixture(params=["server", "client", "io_modbus", "io_gpio"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from {
        "server": _server_bench,
        "client": _client_bench,
        "io_modbus": _io_modbus_bench,
        "io_gpio": _io_gpio_bench,
    }[request.param]()


def open_server() -> ModbusServerLink:
    return ModbusServerLink(
        ModbusServerSettings(type="modbus_server", host="127.0.0.1", tcp_port=free_port())
    )


def _server_bench() -> Iterator[Bench]:
    link = open_server()
    plc = ModbusTcpClient("127.0.0.1", port=link.port, timeout=2)

    def sees() -> PlcOutputs:
        plc.connect()
        answer = plc.read_input_registers(0, count=OUTPUT_REGISTERS, device_id=1)
        return read_outputs(answer.registers)

    def says(inputs: PlcInputs) -> None:
        plc.connect()
        assert not plc.write_registers(0, input_registers(inputs), device_id=1).isError()

    yield Bench(link, sees, says, has_counts=True)
    plc.close()
    link.close()


def _client_bench() -> Iterator[Bench]:
    with ModbusPeer() as peer:
        link = ModbusClientLink(
            ModbusClientSettings(
                type="modbus_client", host="127.0.0.1", tcp_port=peer.port, cycle_ms=10
            )
        )

        def says(inputs: PlcInputs) -> None:
            peer.registers[100:104] = input_registers(inputs)

        def sees() -> PlcOutputs:
            return read_outputs(peer.registers[:OUTPUT_REGISTERS])

        yield Bench(link, sees, says, has_counts=True)
        link.close()


def _io_modbus_bench() -> Iterator[Bench]:
    with ModbusPeer() as peer:
        device = {
            "type": "modbus",
            "host": "127.0.0.1",
            "tcp_port": peer.port,
            "outputs": WIRES_OUT,
            "inputs": WIRES_IN,
            "pulse_offset": PULSE_OFFSET,
        }
        link = open_plc_link(IoPlcSettings.model_validate({"type": "io", "device": device}))

        def says(inputs: PlcInputs) -> None:
            for place, is_on in wire_levels(inputs).items():
                peer.inputs[place] = is_on

        yield Bench(link, lambda: on_wires(peer.lit()), says, has_counts=False)
        link.close()


def _io_gpio_bench() -> Iterator[Bench]:
    chip = FakeChip(lines=16)
    chip.ELEMENTS = ("x",) * 16  # type: ignore[misc]
    lines = {name: GpioIoLine(offset=at) for name, at in WIRES_OUT.items()}
    ins = {name: GpioIoLine(offset=10 + at) for name, at in WIRES_IN.items()}
    device = GpioIoSettings(type="gpio", chip="/dev/gpiochip0", outputs=lines, inputs=ins)
    settings_ = IoPlcSettings(type="io", device=device, cycle_ms=5)
    link = IoLink(settings_, GpioIo(device, request_lines=chip.request_lines))

    def says(inputs: PlcInputs) -> None:
        for place, is_on in wire_levels(inputs).items():
            chip.levels[10 + place] = int(is_on)

    yield Bench(link, lambda: on_wires([bool(x) for x in chip.levels]), says, has_counts=False)
    link.close()


class Station:
    """What the link is served from: a handshake behind a lock, with the real clock."""

    def __init__(self, link: PlcLink) -> None:
        self.handshake = Handshake()
        self.heard: list[PlcInputs] = []
        self._lock = threading.Lock()
        link.start(self.read, self.handed, self.take)

    def read(self) -> PlcOutputs:
        with self._lock:
            return self.handshake.look(time.monotonic_ns())

    def handed(self, said: PlcOutputs) -> None:
        with self._lock:
            self.handshake.handed(said, time.monotonic_ns())

    def take(self, inputs: PlcInputs) -> None:
        self.heard.append(inputs)
        with self._lock:
            self.handshake.take(inputs, time.monotonic_ns())

    def say(self, lease_s: float = 1.2) -> None:
        now_ns = time.monotonic_ns()
        word = StationWord(True, False, False, False, now_ns + int(lease_s * 1e9))
        with self._lock:
            self.handshake.renew(word, True, now_ns)

    def result(self, sequence: int, is_pass: bool) -> None:
        plate = PlateWord(sequence, is_pass, False, is_production=True)
        with self._lock:
            self.handshake.result(plate, time.monotonic_ns())


def test_a_plc_sees_nobody_until_a_station_speaks(bench: Bench) -> None:
    Station(bench.link)
    eventually(lambda: bench.sees().error, "an error")
    said = bench.sees()
    assert not any((said.ready, said.result_valid, said.ok))
    assert bench.link.problem == ""


def test_ready_lapses_by_itself(bench: Bench) -> None:
    station = Station(bench.link)
    station.say(lease_s=0.4)
    eventually(lambda: bench.sees().ready, "READY")
    assert not bench.sees().error
    eventually(lambda: not bench.sees().ready, "the end of READY", 2.0)
    eventually(lambda: bench.sees().error, "an error")


def test_results_travel_with_ack(bench: Bench) -> None:
    station = Station(bench.link)
    for sequence, is_pass in ((1, True), (2, False), (3, True)):
        station.say(lease_s=30)  # a result whose lease ends before it is shown does not come
        station.result(sequence, is_pass)
        eventually(lambda: bench.sees().result_valid, "a result")
        said = bench.sees()
        assert (said.ok, said.ng) == (is_pass, not is_pass), "both are there when it is"
        if bench.has_counts:
            assert said.result == sequence
        bench.says(PlcInputs(ack=True, heartbeat=sequence % 2))
        eventually(lambda: not bench.sees().result_valid, "RESULT_VALID off")
        eventually(lambda: not (bench.sees().ok or bench.sees().ng), "OK and NG off")
        bench.says(PlcInputs(ack=False, heartbeat=sequence % 2))
    assert station.handshake.overruns == 0
    assert {inputs.heartbeat for inputs in station.heard} == {0, 1}


def test_the_heartbeat_is_the_ticks(bench: Bench) -> None:
    station = Station(bench.link)
    for tick in (1, 2, 3):
        station.say()
        wanted = tick if bench.has_counts else tick % 2
        eventually(lambda wanted=wanted: bench.sees().heartbeat == wanted, f"tick {tick}")


def test_closing_says_that_nobody_is_there(bench: Bench, request: pytest.FixtureRequest) -> None:
    station = Station(bench.link)
    station.say(lease_s=30)
    station.result(1, True)
    eventually(lambda: bench.sees().ok, "OK")
    bench.link.close()
    bench.link.close()
    if "server" in request.node.name:
        with pytest.raises(OSError):  # the PLC has nobody to ask
            socket.create_connection(("127.0.0.1", 1), timeout=1)
        return
    said = bench.sees()
    assert not any((said.ready, said.result_valid, said.ok))
    assert said.error


# --- of their own ---------------------------------------------------------------------------------


def test_ready_on_wires_ends_in_the_module_when_nobody_writes() -> None:
    """The station's process is gone without a word: the module's own time ends READY and OK."""
    with ModbusPeer() as peer:
        outputs = {"ready": 0, "ok": 1, "result_valid": 2}
        device = {"type": "modbus", "host": "127.0.0.1", "tcp_port": peer.port, "outputs": outputs}
        link = open_plc_link(
            IoPlcSettings.model_validate(
                {"type": "io", "device": {**device, "pulse_offset": PULSE_OFFSET}}
            )
        )
        assert not link.keeps_last_word
        station = Station(link)
        station.say(lease_s=60)
        station.result(1, True)
        eventually(lambda: peer.lit()[:2] == [True, True], "READY and OK")
        time.sleep(1.3)
        assert peer.lit()[:2] == [True, True], "renewed"
        link._closing.set()  # type: ignore[attr-defined]
        eventually(lambda: peer.lit()[:2] == [False, False], "the end of both", 2.0)
        link.close()


def test_a_plc_that_goes_is_named_and_found_again() -> None:
    with ModbusPeer() as peer:
        link = ModbusClientLink(
            ModbusClientSettings(
                type="modbus_client", host="127.0.0.1", tcp_port=peer.port, cycle_ms=10
            )
        )
        station = Station(link)
        eventually(lambda: bool(station.heard), "a word from the PLC")
        peer.stop()
        eventually(lambda: bool(link.problem), "a problem")
        peer.start()
        eventually(lambda: link.problem == "", "the PLC again")
        link.close()


def test_a_cycle_that_fails_as_nobody_thought_of_is_tried_again() -> None:
    with ModbusPeer() as peer:
        link = ModbusClientLink(
            ModbusClientSettings(
                type="modbus_client", host="127.0.0.1", tcp_port=peer.port, cycle_ms=10
            )
        )
        heard: list[PlcInputs] = []
        broken = [True]

        def take(inputs: PlcInputs) -> None:
            if broken:
                raise ZeroDivisionError
            heard.append(inputs)

        link.start(lambda: NOBODY, lambda _: None, take)
        eventually(lambda: "ZeroDivisionError" in link.problem, "a problem")
        broken.clear()
        eventually(lambda: bool(heard), "the PLC again")
        link.close()


def test_a_plc_that_took_nothing_is_named_by_who_puts_out() -> None:
    """The module answers nothing: it may still show what it was told last."""
    with ModbusPeer() as peer:
        device = {
            "type": "modbus",
            "host": "127.0.0.1",
            "tcp_port": peer.port,
            "outputs": {"ready": 0, "ok": 1, "heartbeat": 2},
        }
        link = open_plc_link(IoPlcSettings.model_validate({"type": "io", "device": device}))
        peer.delay_s = 1.0
        with pytest.raises(DeviceError, match="no answer in time"):
            link.say_nobody()
        link.close()


def test_wires_are_written_though_their_inputs_cannot_be_read() -> None:
    """What a predecessor left on them ends."""
    with ModbusPeer() as peer:
        device = {
            "type": "modbus",
            "host": "127.0.0.1",
            "tcp_port": peer.port,
            "outputs": {"ready": 0, "heartbeat": 2},
            "inputs": {"ack": 5000},
        }
        peer.coils[0] = True
        link = open_plc_link(IoPlcSettings.model_validate({"type": "io", "device": device}))
        Station(link)
        eventually(lambda: not peer.lit()[0], "READY off")
        eventually(lambda: bool(link.problem), "a problem")
        link.close()


def test_what_cannot_be_opened_is_named() -> None:
    server = open_server()
    taken = ModbusServerSettings(type="modbus_server", host="127.0.0.1", tcp_port=server.port)
    with pytest.raises(DeviceBusy, match="in use"):
        open_plc_link(taken)
    server.close()
    with pytest.raises(DeviceRefused, match="cannot be listened at"):
        open_plc_link(ModbusServerSettings(type="modbus_server", host="192.0.2.1", tcp_port=15020))
    with pytest.raises(DeviceNotFound, match="check its power"):
        open_plc_link(ModbusClientSettings(type="modbus_client", host="127.0.0.1", tcp_port=1))


@pytest.mark.parametrize("word", ["ready", "ok"])
def test_what_says_good_needs_a_heartbeat_or_a_device_that_ends_it(word: str) -> None:
    adapter = TypeAdapter(PlcSettings)
    outputs = {word: 0, "ng": 1}
    device = {"type": "modbus", "host": "127.0.0.1", "outputs": outputs}
    with pytest.raises(ValidationError, match=f"has {word} but no heartbeat"):
        adapter.validate_python({"type": "io", "device": device})
    for ends in ({"outputs": {**outputs, "heartbeat": 2}}, {"pulse_offset": PULSE_OFFSET}):
        adapter.validate_python({"type": "io", "device": {**device, **ends}})


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["redy"], "redy is no word of the handshake"),
        (["result_valid", "ng"], "not NG never means OK"),
    ],
)
def test_wires_have_the_names_of_the_words(outputs: list[str], words: str) -> None:
    device = {"type": "simulated", "outputs": outputs}
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(PlcSettings).validate_python({"type": "io", "device": device})


# --- the server and its clients -------------------------------------------------------------------


@dataclass
class Rig:
    link: ModbusServerLink
    written: list[PlcInputs]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.link.port), timeout=3)

    def ask(self, pdu: bytes, peer: socket.socket | None = None) -> bytes:
        """The answer's PDU."""
        with peer or self.connect() as connection:
            connection.sendall(struct.pack(">HHHB", 7, 0, len(pdu) + 1, 9) + pdu)
            answer = connection.recv(300)
        assert answer[:4] + answer[6:7] == b"\x00\x07\x00\x00\x09"
        return answer[7:]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(open_server(), [])
    said = PlcOutputs(ready=True, error=False, result=70000)
    rig.link.start(lambda: said, lambda _: None, rig.written.append)
    yield rig
    rig.link.close()


def test_the_wire_is_modbus(rig: Rig) -> None:
    assert rig.ask(b"\x04\x00\x00\x00\x04") == b"\x04\x08\x00\x01\x00\x00\x00\x01\x11\x70"
    assert rig.ask(b"\x02\x00\x00\x00\x09") == b"\x02\x02\x01\x00"
    assert rig.ask(b"\x05\x00\x00\xff\x00") == b"\x05\x00\x00\xff\x00"
    assert rig.ask(b"\x01\x00\x00\x00\x02") == b"\x01\x01\x01"
    assert rig.ask(b"\x0f\x00\x00\x00\x02\x01\x02") == b"\x0f\x00\x00\x00\x02"
    assert rig.ask(b"\x03\x00\x00\x00\x01") == b"\x03\x02\x00\x02"
    assert rig.ask(b"\x06\x00\x01\x12\x34") == b"\x06\x00\x01\x12\x34"
    assert rig.ask(b"\x10\x00\x02\x00\x02\x04\x00\x01\x00\x00") == b"\x10\x00\x02\x00\x02"
    assert rig.written[-1] == PlcInputs(ack_hold=True, heartbeat=0x1234, triggers=0x10000)


@pytest.mark.parametrize(
    ("pdu", "code"),
    [
        ("2B 0E 01 00", 1),  # a function that it does not have
        ("80", 1),
        ("04 00 00 00 00", 3),
        ("04 00 00 00 7E", 3),
        ("04 00 00 00", 3),
        ("04 00 00 00 01 00", 3),
        ("04 00 00 00 08", 2),
        ("04 FF FF 00 01", 2),
        ("05 00 00 12 34", 3),
        ("05 00 02 FF 00", 2),
        ("0F 00 00 00 02 02 03 00", 3),
        ("10 00 00 00 02 04 00 01", 3),
        ("10 00 03 00 02 04 00 01 00 01", 2),
        ("06 00 04 00 01", 2),
    ],
)
def test_what_is_not_wholly_right_is_refused_and_changes_nothing(
    rig: Rig, pdu: str, code: int
) -> None:
    data = bytes.fromhex(pdu)
    assert rig.ask(data) == bytes((data[0] & 0x7F | 0x80, code))
    assert rig.written == []


@pytest.mark.parametrize("header", ["0001 0001 0006", "0001 0000 0000", "0001 0000 0105"])
def test_what_is_no_modbus_ends_the_connection(rig: Rig, header: str) -> None:
    with rig.connect() as peer:
        peer.sendall(bytes.fromhex(header.replace(" ", "")) + b"\x01\x04\x00\x00\x00\x01")
        assert peer.recv(10) == b""


def test_requests_in_one_segment_and_in_pieces_are_answered_in_order(rig: Rig) -> None:
    request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 4, 0, 1)
    with rig.connect() as peer:
        peer.sendall(request * 3 + request[:5])
        eventually(lambda: len(peer.recv(1000, socket.MSG_PEEK)) == 33, "three answers")
        peer.recv(1000)
        peer.sendall(request[5:])
        assert len(peer.recv(1000)) == 11


def is_over(peer: socket.socket, piece: bytes) -> bool:
    """Whether the connection has ended, after one more piece."""
    try:
        peer.sendall(piece)
        return peer.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_half_a_frame_gets_its_time_and_no_more(rig: Rig) -> None:
    """Byte by byte does not help: the time counts from the first."""
    with rig.connect() as peer:
        started = time.monotonic()
        peer.settimeout(0.05)
        eventually(lambda: is_over(peer, b"\x00"), "its end", HALF_FRAME_S + 5)
        assert time.monotonic() - started < HALF_FRAME_S + 3


def test_connections_are_bounded_and_a_polling_plc_keeps_its_own(rig: Rig) -> None:
    with rig.connect() as plc:
        rig.ask(b"\x04\x00\x00\x00\x01", plc.dup())
        crowd = []
        for _ in range(5 * MAX_CONNECTIONS):
            crowd.append(rig.connect())
            assert len(rig.ask(b"\x04\x00\x00\x00\x01", plc.dup())) == 4
        assert rig.link.connections <= MAX_CONNECTIONS
        for peer in crowd:
            peer.close()


def flood(peer: socket.socket, data: bytes) -> None:
    for _ in range(100):
        peer.sendall(data)


def test_a_client_that_does_not_read_is_dropped(rig: Rig) -> None:
    request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 4, 0, 7)
    with rig.connect() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            flood(peer, request * 10_000)
    assert len(rig.ask(b"\x04\x00\x00\x00\x01")) == 4


def test_a_lease_that_ended_is_never_read_as_ready_by_whatever_thread() -> None:
    """No thread runs but the reader's: the answer is made when it is asked for."""
    handshake, now = Handshake(), [10**12]
    alive(handshake, now[0])
    memory = Memory(lambda: hand_out(handshake, now[0]), lambda _: None)
    frame = struct.pack(">HHHBBHH", 1, 0, 6, 1, 4, 0, 1)
    status = OUTPUT_BITS.index("ready")
    assert memory.answer(frame)[0][-1] >> status & 1
    now[0] += LEASE_NS
    assert not memory.answer(frame)[0][-1] >> status & 1


@pytest.mark.parametrize(
    ("pdu", "is_result_seen"),
    [
        ("04 00 00 00 07", True),
        ("04 00 01 00 01", False),  # the heartbeat alone
        ("02 00 00 00 09", True),
        ("02 00 03 00 02", False),
        ("03 00 00 00 01", False),
        ("04 00 00 00 08", False),  # refused
    ],
)
def test_only_who_reads_result_valid_has_seen_the_result(pdu: str, is_result_seen: bool) -> None:
    memory = Memory(lambda: NOBODY, lambda _: None)
    data = bytes.fromhex(pdu)
    answer = memory.answer(struct.pack(">HHHB", 1, 0, len(data) + 1, 1) + data)
    assert (answer.said is not None) == is_result_seen


def test_thousands_of_malformed_frames_leave_state_and_thread_intact(rig: Rig) -> None:
    """`python benchmarks/plc_fuzz.py` does it 100,000 times."""
    fuzz = Fuzz(rig.link.port, random.Random(1))
    fuzz.run(3000)
    assert fuzz.malformed >= 3000
    assert rig.written == [], "a malformed frame changed something"
    assert rig.link.problem == ""
    assert rig.link.connections <= MAX_CONNECTIONS
    assert rig.ask(b"\x04\x00\x00\x00\x01") == b"\x04\x02\x00\x01"
