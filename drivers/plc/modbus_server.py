"""The station as Modbus TCP server: the PLC polls.

Frames and PDUs are pymodbus'; the sockets are our own, on one thread. pymodbus' own server has no
limit on connections, waits for ever for the rest of a frame, and answers from a memory that
somebody must keep up to date: here each answer is made when it is asked for.

Reads: discrete inputs and input registers are the station's words, coils and holding registers the
PLC's own. Any device id is answered.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from drivers.errors import DeviceBusy, DeviceRefused, DriverMissing
from drivers.plc import HandedOut, PlcInputs, PlcLink, PlcOutputs, ReadOutputs, TakeInputs
from drivers.plc.register_map import (
    INPUT_BITS,
    OUTPUT_BITS,
    OUTPUT_REGISTERS,
    STATUS,
    input_bits,
    input_count,
    input_registers,
    output_bits,
    output_registers,
    read_inputs,
)
from drivers.plc.settings import ModbusServerSettings

try:
    from pymodbus.constants import ExcCodes
    from pymodbus.framer import FramerSocket
    from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
    from pymodbus.pdu.bit_message import (
        ReadCoilsResponse,
        ReadDiscreteInputsResponse,
        WriteMultipleCoilsResponse,
        WriteSingleCoilResponse,
    )
    from pymodbus.pdu.register_message import (
        ReadHoldingRegistersResponse,
        ReadInputRegistersResponse,
        WriteMultipleRegistersResponse,
        WriteSingleRegisterResponse,
    )
except ImportError as _error:  # pragma: no cover - pymodbus is a base dependency
    raise DriverMissing("modbus needs pymodbus: pip install pymodbus") from _error

MAX_CONNECTIONS = 8
"""One more ends the one that was silent longest, those first that never asked anything sensible."""
HALF_FRAME_S = 1.0
"""The rest of a frame must come within this time."""
IDLE_S = 30.0
"""A connection that asks nothing for so long is closed: its PLC was switched off."""
_MAX_FRAME = 260
"""MBAP header and PDU (Modbus Messaging on TCP/IP 1.0b, 3.1.2)."""
_HEADER = 6
_TURN_S = 0.25

# What clients do wrong is answered or closed; a flood of it must not become a flood of words.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
_log = logging.getLogger(__name__)


class NotAFrame(ValueError):
    """What arrived is no Modbus TCP, and neither is what follows: the connection is closed."""


@dataclass(slots=True, eq=False)
class _Connection:
    peer: socket.socket
    heard_at: float
    data: bytearray = field(default_factory=bytearray)
    has_asked: bool = False
    """It asked something sensible once."""


class ModbusServerLink(PlcLink):
    """Listens from its opening on, serves from `start` on."""

    def __init__(self, settings: ModbusServerSettings) -> None:
        self._has_serials = settings.has_serials
        self.description = f"Modbus TCP server at {settings.host} port {settings.tcp_port}"
        self._listener = _listen(settings)
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        self._thread: threading.Thread | None = None
        self._is_closing = False

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def problem(self) -> str:
        is_dead = self._thread is not None and not self._thread.is_alive() and not self._is_closing
        return f"{self.description}: its thread has ended" if is_dead else ""

    def start(
        self, read_outputs: ReadOutputs, handed_out: HandedOut, take_inputs: TakeInputs
    ) -> None:
        self._handed_out = handed_out
        self._memory = Memory(read_outputs, take_inputs, self._has_serials)
        self._thread = threading.Thread(target=self._run, name="plc", daemon=True)
        self._thread.start()

    def say_nobody(self) -> None:
        """No answer says it."""

    def try_out(self) -> None:
        """It is the PLC that asks."""

    def close(self) -> None:
        """Nobody hears any more: that is what a station says that is not there."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(timeout=2.0)
            if self._thread.is_alive():
                return  # the sockets are still its own
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._selector.close()
        os.close(self._wake)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closing:
            self.turned_ns = time.monotonic_ns()
            for key, _ in self._selector.select(_TURN_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Connection):
                    self._serve(key.data)
            self._drop_silent()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # gone already, or no descriptor is free
            return
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * _MAX_FRAME)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop(min(self._connections.values(), key=lambda c: (c.has_asked, c.heard_at)))
        connection = _Connection(peer, time.monotonic())
        self._connections[peer.fileno()] = connection
        self._selector.register(peer, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.peer.fileno(), None) is not None:
            self._selector.unregister(connection.peer)
            connection.peer.close()

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            limit_s = HALF_FRAME_S if connection.data else IDLE_S
            if now - connection.heard_at > limit_s:
                self._drop(connection)

    def _serve(self, connection: _Connection) -> None:
        """Answer the whole frames that have come; whoever sends none is closed."""
        try:
            self._exchange(connection)
        except (NotAFrame, OSError):
            self._drop(connection)
        except Exception:  # noqa: BLE001
            # A mistake that one frame hits must not take the words from the PLC.
            _log.exception("a frame was not understood; its connection is closed")
            self._drop(connection)

    def _exchange(self, connection: _Connection) -> None:
        """Raises `NotAFrame`, OSError: also where the answers are not read."""
        data = connection.peer.recv(4 * _MAX_FRAME)
        if not data:
            raise NotAFrame("end of file")
        is_begun = bool(connection.data)
        connection.data += data
        answers, said = self._answers(connection)
        if answers or not is_begun:  # a frame that comes byte by byte gets no more time
            connection.heard_at = time.monotonic()
        if answers and connection.peer.send(answers) < len(answers):
            raise NotAFrame("its answers are not read")
        for outputs in said:
            self._handed_out(outputs)

    def _answers(self, connection: _Connection) -> tuple[bytes, list[PlcOutputs]]:
        """And what they say to a PLC. Raises `NotAFrame`."""
        answers, said = b"", []
        while frame := next_frame(connection.data):
            answer = self._memory.answer(frame)
            connection.has_asked = connection.has_asked or answer.is_sensible
            answers += answer.frame
            said += [] if answer.said is None else [answer.said]
        return answers, said


def _listen(settings: ModbusServerSettings) -> socket.socket:
    try:
        family = socket.AF_INET if settings.host.version == 4 else socket.AF_INET6
        place = (str(settings.host), settings.tcp_port)
        return socket.create_server(place, family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        where = f"{settings.host} port {settings.tcp_port}"
        if error.errno == errno.EADDRINUSE:
            raise DeviceBusy(f"{where} is in use by another process; stop that one") from error
        if error.errno == errno.EACCES:
            raise DeviceRefused(
                f"no permission for {where}: a port below 1024 needs CAP_NET_BIND_SERVICE"
            ) from error
        raise DeviceRefused(f"{where} cannot be listened at: {error}") from error


def next_frame(data: bytearray) -> bytes:
    """Take the first whole frame out of `data`; empty if there is none yet. Raises `NotAFrame`."""
    if len(data) < _HEADER:
        return b""
    protocol, length = struct.unpack_from(">HH", data, 2)
    if protocol != 0 or not 2 <= length <= _MAX_FRAME - _HEADER:
        raise NotAFrame(f"protocol {protocol}, length {length}")
    end = _HEADER + length
    if len(data) < end:
        return b""
    frame = bytes(data[:end])
    del data[:end]
    return frame


# --- what is read and written ---------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, code: ExcCodes) -> None:
        super().__init__(code)
        self.code = code


_T = TypeVar("_T")
_ILLEGAL_FUNCTION = ExcCodes.ILLEGAL_FUNCTION
_ILLEGAL_ADDRESS = ExcCodes.ILLEGAL_ADDRESS
_ILLEGAL_VALUE = ExcCodes.ILLEGAL_VALUE
_MOST = {1: 2000, 2: 2000, 3: 125, 4: 125, 15: 1968, 16: 123}
"""Function codes with a count, and the count's limit (Modbus Application Protocol 1.1b3)."""


class Answer(NamedTuple):
    """What goes back for a frame."""

    frame: bytes
    is_sensible: bool
    """The request was."""
    said: PlcOutputs | None
    """What it says of the station, where RESULT_VALID is in it."""


class Memory:
    """Answers frames. A frame that is not wholly right changes nothing."""

    def __init__(
        self, read_outputs: ReadOutputs, take_inputs: TakeInputs, has_serials: bool = False
    ) -> None:
        self._read_outputs = read_outputs
        self._take_inputs = take_inputs
        self._has_serials = has_serials
        self.inputs = PlcInputs()
        """What the PLC wrote."""
        self._decoder = DecodePDU(True)
        self._framer = FramerSocket(self._decoder)
        self._said: PlcOutputs | None = None

    def answer(self, frame: bytes) -> Answer:
        self._said = None
        transaction, device_id, pdu = int.from_bytes(frame[:2]), frame[6], frame[7:]
        try:
            answer: ModbusPDU = self._obey(pdu)
        except _Refused as refused:
            answer = ExceptionResponse(pdu[0] & 0x7F, refused.code)
            self._said = None
        answer.transaction_id, answer.dev_id = transaction, device_id
        return Answer(self._framer.buildFrame(answer), not answer.isError(), self._said)

    def _obey(self, pdu: bytes) -> ModbusPDU:
        """Raises `_Refused`."""
        _check_shape(pdu)
        request = self._decoder.decode(pdu)
        if request is None:
            raise _Refused(_ILLEGAL_VALUE)
        match request.function_code:
            case 1:
                bits = _part(input_bits(self.inputs), request, len(INPUT_BITS))
                return ReadCoilsResponse(bits=bits)
            case 2:
                said = self._say(request, OUTPUT_BITS.index("result_valid"))
                bits = _part(output_bits(said), request, len(OUTPUT_BITS))
                return ReadDiscreteInputsResponse(bits=bits)
            case 3:
                words = _part(self._registers(), request, input_count(self._has_serials))
                return ReadHoldingRegistersResponse(registers=words)
            case 4:
                said = self._say(request, STATUS)
                words = _part(output_registers(said), request, OUTPUT_REGISTERS)
                return ReadInputRegistersResponse(registers=words)
            case 5 | 15:
                return self._write_bits(request)
            case _:
                return self._write_registers(request)

    def _say(self, request: ModbusPDU, valid_place: int) -> PlcOutputs:
        """A part without RESULT_VALID, the heartbeat for one, shows nobody a result."""
        said = self._read_outputs()
        has_valid = request.address <= valid_place < request.address + request.count
        self._said = said if has_valid else None
        return said

    def _write_bits(self, request: ModbusPDU) -> ModbusPDU:
        bits = input_bits(self.inputs)
        _put(bits, request.address, list(request.bits))
        command = sum(is_on << place for place, is_on in enumerate(bits))
        self._take([command, *self._registers()[1:]])
        if request.function_code == 5:
            return WriteSingleCoilResponse(address=request.address, bits=request.bits)
        return WriteMultipleCoilsResponse(address=request.address, count=request.count)

    def _write_registers(self, request: ModbusPDU) -> ModbusPDU:
        registers = self._registers()
        _put(registers, request.address, list(request.registers))
        self._take(registers)
        if request.function_code == 6:
            return WriteSingleRegisterResponse(address=request.address, registers=request.registers)
        return WriteMultipleRegistersResponse(address=request.address, count=request.count)

    def _registers(self) -> list[int]:
        """The PLC's words."""
        return input_registers(self.inputs, self._has_serials)

    def _take(self, registers: list[int]) -> None:
        self.inputs = read_inputs(registers)
        self._take_inputs(self.inputs)


def _check_shape(pdu: bytes) -> None:
    """Hold function code, length and counts against one another: pymodbus' decoder takes what is
    too long, and cuts what is too short. Raises `_Refused`."""
    code, size = pdu[0], len(pdu)
    if code not in (1, 2, 3, 4, 5, 6, 15, 16):
        raise _Refused(_ILLEGAL_FUNCTION)
    if size < 5 or (code <= 6 and size != 5):
        raise _Refused(_ILLEGAL_VALUE)
    if code == 5 and pdu[3:5] not in (b"\x00\x00", b"\xff\x00"):
        raise _Refused(_ILLEGAL_VALUE)
    count = int.from_bytes(pdu[3:5])
    if code in _MOST and not 1 <= count <= _MOST[code]:
        raise _Refused(_ILLEGAL_VALUE)
    if code in (15, 16):
        expected = (count + 7) // 8 if code == 15 else 2 * count
        if size != 6 + expected or pdu[5] != expected:
            raise _Refused(_ILLEGAL_VALUE)


def _part(values: list[_T], request: ModbusPDU, size: int) -> list[_T]:
    first, end = request.address, request.address + request.count
    if end > size:
        raise _Refused(_ILLEGAL_ADDRESS)
    return values[first:end]


def _put(values: list[_T], address: int, written: list[_T]) -> None:
    if address + len(written) > len(values):
        raise _Refused(_ILLEGAL_ADDRESS)
    values[address : address + len(written)] = written
