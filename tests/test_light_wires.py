"""Stack lights at the wire: the vendors' bytes, and what a device says that is not an answer."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from light_devices import (
    CHANNELS,
    Bridge,
    Devantech,
    ModbusBoard,
    Numato,
    PatliteTower,
    TcpDevice,
)
from pty_recorder import PtyRecorder

from drivers.errors import (
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
)
from drivers.stacklight import LightState, StackLight, open_stack_light
from drivers.stacklight.profiles import DEFAULT_PATTERNS as PATTERNS
from drivers.stacklight.serial_tower import lit_places
from drivers.stacklight.settings import (
    ModbusRelaySettings,
    PatliteSettings,
    SerialRead,
    SerialTowerSettings,
)

ADDRESSES = {"red": 0, "yellow": 1, "green": 7}


def crc(frame: bytes) -> bytes:
    """A Modbus RTU frame with its check sum (Modbus over serial line 1.02, 2.5.1.2)."""
    value = 0xFFFF
    for byte in frame:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0xA001 if value & 1 else 0)
    return frame + value.to_bytes(2, "little")


def test_check_sums_are_those_of_the_vendors() -> None:
    for text in (
        "01 05 00 00 FF 00 8C 3A",
        "01 05 00 00 00 00 CD CA",
        "01 0F 00 00 00 08 01 FF BE D5",
        "01 01 00 00 00 08 3D CC",
        "01 05 02 00 00 07 8D B0",
        "01 06 00 01 01 00 D9 9A",
    ):
        frame = bytes.fromhex(text)
        assert crc(frame[:-2]) == frame


# --- serial boards --------------------------------------------------------------------------------


def open_board(tower: PtyRecorder, board: Any, **changes: Any) -> StackLight:
    given = {"board": board, "channels": CHANNELS, "blink_hz": 2.0, **changes}
    return open_stack_light(
        SerialTowerSettings(type="serial_tower", port=str(tower.device), **given), PATTERNS
    )


@pytest.fixture
def tower() -> Iterator[PtyRecorder]:
    with PtyRecorder() as recorder:
        yield recorder


def shown(light: StackLight, tower: PtyRecorder, state: LightState, count: int) -> bytes:
    """The bytes of one show, `count` of them."""
    before = len(tower.bytes_sent())
    light.show(state)
    tower.wait_for(lambda: len(tower.bytes_sent()) >= before + count)
    return tower.bytes_sent()[before:]


def test_lcus_bytes(tower: PtyRecorder) -> None:
    with open_board(tower, "lcus") as light:
        assert shown(light, tower, LightState.FAIL, 16) == bytes.fromhex(
            "A0 01 00 A1  A0 02 00 A2  A0 03 00 A3  A0 01 01 A2"
        )
        assert shown(light, tower, LightState.UNDECIDED, 16) == bytes.fromhex(
            "A0 01 00 A1  A0 02 00 A2  A0 03 00 A3  A0 02 01 A3"
        )


def test_numato_text(tower: PtyRecorder) -> None:
    board = Numato()
    tower.answer = board.feed
    with open_board(tower, "numato") as light:
        assert light.show(LightState.FAIL) is True
        assert tower.bytes_sent() == (
            b"relay off 0\rrelay off 1\rrelay off 2\rrelay on 0\rrelay readall\r"
        )


def test_devantech_bytes(tower: PtyRecorder) -> None:
    tower.answer = Devantech().feed
    with open_board(tower, "devantech_rly16") as light:
        assert light.show(LightState.PASS) is True
        assert tower.bytes_sent() == bytes.fromhex("6F 70 71 67 5B")


def test_a_device_that_babbles_is_not_waited_for(tower: PtyRecorder) -> None:
    tower.answer = lambda data: b"x" * 300
    with open_board(tower, "numato") as light, pytest.raises(DeviceRefused, match="this device"):
        light.show(LightState.FAIL)


def test_what_was_said_before_the_request_is_no_answer(tower: PtyRecorder) -> None:
    """A relay board that says `all dark` unasked, and then nothing."""
    board = Devantech()
    tower.answer = lambda data: board.feed(data.replace(b"\x5b", b""))
    with open_board(tower, "devantech_rly16", write_timeout_s=0.1) as light:
        tower.send(b"\x01")
        with pytest.raises(DeviceTimeout, match="no answer"):
            light.show(LightState.FAIL)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(min_size=1, max_size=20) | st.from_regex(rb"\A[0-9a-f \r\n>]{1,8}>\Z"))
@example(garbage=b"1\x85")
@pytest.mark.parametrize("board", ["numato", "devantech_rly16"])
def test_a_board_that_talks_garbage_is_never_confirmed_wrongly(board: Any, garbage: bytes) -> None:
    with PtyRecorder() as tower:
        real = Numato() if board == "numato" else Devantech()
        reads = (b"relay readall\r", b"\x5b")
        end = b">" if board == "numato" else b""  # without it, it is waited for
        tower.answer = lambda data: garbage + end if data.endswith(reads) else real.feed(data)
        with open_board(tower, board, blink_hz=2.0) as light:
            try:
                is_confirmed = light.show(LightState.FAIL)
            except DeviceError:
                return
    assert is_confirmed
    said = garbage if board != "numato" else bytes.fromhex(_last_word(garbage + end).zfill(32))[-1:]
    assert len(said) == 1
    assert said[0] & 0b111 == 0b001, "only a board that says `red alone` is believed"


def _last_word(answer: bytes) -> str:
    return answer.removesuffix(b">").split()[-1].decode()


@given(answer=st.binary(max_size=20))
def test_any_answer_is_understood_or_not_and_nothing_else(answer: bytes) -> None:
    for form in ("bits", "hex", "chars"):
        end: dict[str, Any] = {"reply_bytes": 2} if form == "bits" else {"prompt": ">"}
        read = SerialRead(request="5B", form=form, places=CHANNELS, **end)
        lit = lit_places(read, answer)
        assert lit is None or lit.keys() == CHANNELS.keys()


# --- Modbus ---------------------------------------------------------------------------------------


class Line:
    """A relay board on RS-485, and what was said on it."""

    def __init__(self, folder: Path, addresses: dict[str, int]) -> None:
        self.link = folder / "rs485"
        self.bridge, self.board = Bridge(self.link), ModbusBoard(addresses)
        self.board.serve_rtu(self.bridge.far.device)
        self._addresses = addresses

    def open(self, **changes: Any) -> StackLight:
        return open_stack_light(
            ModbusRelaySettings(
                type="modbus_relay", port=str(self.link), addresses=self._addresses, **changes
            ),
            {state: pattern for state, pattern in PATTERNS.items() if "blink" not in str(pattern)},
        )

    def sent(self) -> list[str]:
        data = self.bridge.near.bytes_sent()
        return [data[at : at + 8].hex(" ").upper() for at in range(0, len(data), 8)]

    def close(self) -> None:
        self.bridge.close()
        self.board.close()


@pytest.fixture
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    it = Line(tmp_path, getattr(request, "param", ADDRESSES))
    yield it
    it.close()


def test_modbus_rtu_bytes(line: Line) -> None:
    with line.open() as light:
        assert light.show(LightState.FAIL) is True
        assert line.sent() == [
            crc(bytes.fromhex("01 05 00 01 00 00")).hex(" ").upper(),
            crc(bytes.fromhex("01 05 00 07 00 00")).hex(" ").upper(),
            "01 05 00 00 FF 00 8C 3A",
            "01 01 00 00 00 08 3D CC",
        ]
        assert light.show(LightState.IDLE) is True
        assert line.sent()[4:6] == ["01 01 00 00 00 08 3D CC", "01 05 00 00 00 00 CD CA"]
        before = len(line.sent())
        assert light.show(LightState.IDLE) is True
        assert line.sent()[before:] == ["01 01 00 00 00 08 3D CC"], "a renewal is one read"


@pytest.mark.parametrize("line", [{"red": 1, "green": 2}], indirect=True)
def test_modbus_register_bytes(line: Line) -> None:
    with line.open(command="register") as light:
        assert light.show(LightState.FAIL) is True
    assert line.sent() == [
        crc(bytes.fromhex("01 06 00 02 02 00")).hex(" ").upper(),
        "01 06 00 01 01 00 D9 9A",
        crc(bytes.fromhex("01 03 00 01 00 02")).hex(" ").upper(),
    ]


@pytest.mark.parametrize("line", [{"red": 1, "green": 2}], indirect=True)
def test_a_register_board_that_cannot_be_read_is_never_confirmed(line: Line) -> None:
    with line.open(command="register", can_read_back=False) as light:
        assert light.can_confirm is False
        assert light.show(LightState.FAIL) is False
    assert all(frame[3:5] == "06" for frame in line.sent())


@pytest.mark.parametrize(
    ("line", "command", "pulse"),
    [
        ({"red": 1, "green": 0}, "coil", "01 05 02 00 00 14"),
        ({"red": 1, "green": 2}, "register", "01 06 00 02 06 02"),
    ],
    indirect=["line"],
)
def test_the_board_itself_ends_a_pass_that_is_not_renewed(
    line: Line, command: str, pulse: str
) -> None:
    with line.open(command=command, pass_pulse_s=2.0) as light:
        for _ in range(3):
            assert light.show(LightState.PASS) is True
        started = time.monotonic()
        assert crc(bytes.fromhex(pulse)).hex(" ").upper() in line.sent()
        assert all(lit == {"green": "on"} for lit in line.board.history[-3:]), "nothing is seen"
        while line.board.lit():
            assert time.monotonic() - started < 2.5
            time.sleep(0.01)
        assert light.show(LightState.FAIL) is True, "it ended by itself: no other master"


@pytest.mark.parametrize("first", [0, 0x0100, 0x0300])
def test_an_echo_is_no_confirmation(tmp_path: Path, first: int) -> None:
    """Each FC05 looks taken; an echoed FC01 for 0x03.. even has the form of an answer."""
    addresses = {"red": first, "yellow": first + 1, "green": first + 7}
    with PtyRecorder(tmp_path / "rs485") as wire:
        wire.answer = lambda data: data
        where = ModbusRelaySettings(
            type="modbus_relay", port=str(tmp_path / "rs485"), addresses=addresses, blink_hz=2.0
        )
        with (
            open_stack_light(where, PATTERNS) as light,
            pytest.raises(DeviceTimeout, match="no answer"),
        ):
            light.show(LightState.IDLE)
        assert crc(bytes((1, 5, first >> 8, 0, 0, 0))) in wire.bytes_sent()


def test_an_answer_that_belongs_to_the_request_before_is_not_taken(line: Line) -> None:
    """A board that is always one answer behind."""
    late = [b""]

    def behind(answer: bytes) -> bytes:
        late.append(answer)
        return late.pop(0)

    with line.open() as light:
        assert light.show(LightState.PASS) is True
        line.board.answers = behind
        for _ in range(3):
            with pytest.raises(DeviceTimeout):
                light.show(LightState.FAIL)


def test_what_was_said_on_the_line_before_the_request_is_no_answer(line: Line) -> None:
    """A relay that is stuck, and an older answer that says that it is lit."""
    with line.open() as light:
        assert light.show(LightState.PASS) is True
        line.bridge.near.send(crc(bytes.fromhex("01 01 01 02")))
        assert light.show(LightState.UNDECIDED) is True
        line.board.stuck.add("red")
        line.bridge.near.send(crc(bytes.fromhex("01 01 01 01")))
        with pytest.raises(DeviceTimeout, match="red read back wrong"):
            light.show(LightState.FAIL)


@pytest.mark.parametrize("line", [{"red": 0}], indirect=True)
def test_an_answer_to_something_else_is_none(line: Line) -> None:
    """A board that says of every request that red is lit."""
    line.board.answers = lambda data: crc(bytes.fromhex("01 01 01 01")) if data else data
    with line.open() as light, pytest.raises(DeviceTimeout, match="answers another request"):
        light.show(LightState.FAIL)


def test_what_the_board_refuses_is_said(tmp_path: Path) -> None:
    it = Line(tmp_path, {"red": 5000, "green": 5001})
    try:
        with it.open() as light, pytest.raises(DeviceRefused, match="refuses"):
            light.show(LightState.FAIL)
    finally:
        it.close()


def test_nobody_at_the_address() -> None:
    modbus = ModbusRelaySettings(
        type="modbus_relay", host="127.0.0.1", tcp_port=9, addresses={"red": 0}
    )
    patlite = PatliteSettings(type="patlite", host="127.0.0.1", tcp_port=9)
    for where in (modbus, patlite):
        with pytest.raises(DeviceNotFound, match=r"127\.0\.0\.1 port 9"):
            open_stack_light(where, {})


# --- Patlite --------------------------------------------------------------------------------------


def open_patlite(server: TcpDevice, **changes: Any) -> StackLight:
    return open_stack_light(
        PatliteSettings(type="patlite", host="127.0.0.1", tcp_port=server.port, **changes),
        {**PATTERNS, LightState.FAULT: {"red": "blink", "buzzer": "on"}},
    )


def test_pns_bytes() -> None:
    with TcpDevice(PatliteTower().feed) as server:
        with open_patlite(server) as light:
            assert light.show(LightState.PASS_NOT_PRODUCTION) is True
            assert light.show(LightState.FAULT) is True
        assert [frame.hex(" ") for frame in server.frames] == [
            "58 58 53 00 00 06 00 02 01 00 00 00",
            "58 58 47 00 00 00",
            "58 58 47 00 00 00",
            "58 58 53 00 00 06 02 00 00 00 00 01",
            "58 58 47 00 00 00",
        ]


def test_phn_bytes() -> None:
    with TcpDevice(PatliteTower().feed) as server:
        with open_patlite(server, protocol="phn", elements=("red", "yellow", "green")) as light:
            assert light.show(LightState.PASS_NOT_PRODUCTION) is True
            assert light.show(LightState.FAIL) is True
        assert [frame.hex(" ") for frame in server.frames] == ["57 44", "52", "52", "57 01", "52"]


@pytest.mark.parametrize("protocol", ["pns", "phn"])
def test_a_tower_that_says_no_is_refused(protocol: str) -> None:
    tower = PatliteTower()
    with TcpDevice(tower.feed) as server, open_patlite(server, protocol=protocol) as light:
        tower.is_refusing = True
        with pytest.raises(DeviceRefused):
            light.show(LightState.FAIL)


def test_a_connection_that_the_tower_dropped_is_made_again() -> None:
    tower = PatliteTower()
    with TcpDevice(tower.feed) as server, open_patlite(server) as light:
        assert light.show(LightState.FAIL) is True
        for _ in range(3):
            server.drop_connections()
            assert light.show(LightState.PASS) is True
        server.close()
        with pytest.raises(DeviceLost):
            light.show(LightState.PASS)


# --- garbage on the network -----------------------------------------------------------------------

Make = Callable[[int], Any]


def modbus(port: int, **changes: Any) -> Any:
    return ModbusRelaySettings(
        type="modbus_relay", host="127.0.0.1", tcp_port=port, addresses=CHANNELS, **changes
    )


def patlite(port: int, protocol: Any) -> Any:
    elements = ("red", "yellow", "green")
    return PatliteSettings(
        type="patlite", host="127.0.0.1", tcp_port=port, protocol=protocol, elements=elements
    )


def tcp_claims(request: bytes) -> list[bytes]:
    """Every answer to the read `request` that says `red alone`."""
    return [request[:4] + bytes((0, 4, 1, 1, 1, 1 | rest << 3)) for rest in range(32)]


NETWORK: dict[str, tuple[Make, Callable[[bytes], bool], Callable[[bytes], list[bytes]]]] = {
    "tcp": (modbus, lambda data: data[7] == 1, tcp_claims),
    "rtu": (
        lambda port: modbus(port, framing="rtu"),
        lambda data: data[1] == 1,
        lambda data: [crc(bytes((1, 1, 1, 1 | rest << 3))) for rest in range(32)],
    ),
    "registers": (
        lambda port: modbus(port, framing="rtu", command="register"),
        lambda data: data[1] == 3,
        lambda data: [crc(bytes((1, 3, 6, 0, 1, 0, 0, 0, 0)))],
    ),
    "pns": (
        lambda port: patlite(port, "pns"),
        lambda data: data[2:3] == b"G",
        lambda data: [bytes((1, 0, 0, *rest)) for rest in [(0, 0, 0)]],
    ),
    "phn": (lambda port: patlite(port, "phn"), lambda data: data == b"R", lambda data: [b"R\x01"]),
}


def taken(kind: str, request: bytes) -> bytes:
    """What a good device answers to a command."""
    return {"pns": b"\x06", "phn": b"ACK"}.get(kind, request)


@settings(max_examples=60)
@given(
    garbage=st.binary(max_size=40),
    damage=st.none() | st.tuples(st.integers(0, 8), st.integers(1, 255)),
)
@example(garbage=b"", damage=None)
@example(garbage=b"", damage=(3, 1))
@pytest.mark.parametrize("kind", NETWORK)
def test_garbage_from_the_network_is_never_taken_for_a_confirmation(
    kind: str, garbage: bytes, damage: tuple[int, int] | None
) -> None:
    make, is_read, claims = NETWORK[kind]
    said: list[bytes] = []

    def answer(request: bytes) -> bytes:
        if not is_read(request):
            return taken(kind, request)
        server.is_hanging_up = True
        reply = garbage
        if damage is not None:  # a good answer with one byte changed
            place, change = damage
            good = bytearray(claims(request)[0])
            good[place % len(good)] ^= change
            reply = bytes(good) + garbage
        said.append(reply)
        allowed.extend(claims(request))
        return reply

    allowed: list[bytes] = []
    server = TcpDevice(answer)
    with server:
        try:
            with open_stack_light(make(server.port), {LightState.FAIL: {"red": "on"}}) as light:
                is_confirmed = light.show(LightState.FAIL)
        except DeviceError:
            return
    assert is_confirmed
    assert any(claim in reply for reply in said for claim in allowed), said


@settings(max_examples=40)
@given(garbage=st.binary(max_size=40))
@pytest.mark.parametrize("kind", NETWORK)
def test_garbage_in_place_of_every_answer_is_an_error_of_the_contract(
    kind: str, garbage: bytes
) -> None:
    server = TcpDevice(lambda data: garbage)
    server.is_hanging_up = True
    with (
        server,
        open_stack_light(NETWORK[kind][0](server.port), {LightState.FAIL: {"red": "on"}}) as light,
        pytest.raises(DeviceError),
    ):
        light.show(LightState.FAIL)


# --- the lamp process must be back at once --------------------------------------------------------


LIBRARIES = {
    "serial_tower": set(),  # pyserial when a port is opened
    "modbus_relay": {"pymodbus", "serial"},
    "patlite": set(),
    "gpio": {"gpiod"},
}
HEAVY = ["numpy", "cv2", "onnxruntime", "sqlalchemy", "aiohttp"]


@pytest.mark.parametrize("driver", LIBRARIES)
def test_a_driver_imports_what_it_needs_and_no_other(driver: str) -> None:
    code = (
        f"import sys, station.lamp, drivers.stacklight.{driver};"
        f"print([m for m in {['serial', 'pymodbus', 'gpiod', *HEAVY]} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(ast.literal_eval(out.stdout)) == LIBRARIES[driver]
