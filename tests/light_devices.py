"""Stack lights as devices at the far end of a real wire: what they are sent, what they then show.

Serial ones behind `PtyRecorder`, Modbus boards by pymodbus's own simulator servers, a Patlite tower
behind a TCP socket. `history` holds what was lit after each command.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ports import free_port
from pty_recorder import PtyRecorder
from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

Lit = dict[str, str]
CHANNELS = {"red": 0, "yellow": 1, "green": 2}


class Device:
    """What is lit, and what has been."""

    def __init__(self) -> None:
        self.history: list[Lit] = [{}]
        self.stuck: set[str] = set()
        """Elements that are broken: they never light."""

    def lit(self) -> Lit:
        return self.history[-1]

    def light(self, element: str, mode: str | None) -> None:
        lit = {e: m for e, m in self.lit().items() if e != element}
        if mode is not None and element not in self.stuck:
            lit[element] = mode
        self.history.append(lit)


class SerialBoard(Device):
    """A relay board: bytes in, bytes out. Elements on the channels of `CHANNELS`."""

    def feed(self, data: bytes) -> bytes:
        raise NotImplementedError

    def switch(self, channel: int, is_on: bool) -> None:
        for element, place in CHANNELS.items():
            if place == channel:
                self.light(element, "on" if is_on else None)

    @property
    def bits(self) -> int:
        return sum(1 << CHANNELS[element] for element in self.lit())


class Adafruit(Device):
    _ELEMENTS: tuple[tuple[int, str], ...] = ((1, "red"), (2, "yellow"), (4, "green"))

    def feed(self, data: bytes) -> bytes:
        for byte in data:
            mode = {0x10: "on", 0x20: None, 0x40: "blink"}[byte & 0xF0]
            for bit, element in self._ELEMENTS:
                if byte & bit:
                    self.light(element, mode)
        return b""


class Lcus(SerialBoard):
    def __init__(self) -> None:
        super().__init__()
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        while len(self._buffer) >= 4:
            start, channel, state, check = self._buffer[:4]
            assert start == 0xA0
            assert check == (0xA0 + channel + state) & 0xFF
            self._buffer = self._buffer[4:]
            self.switch(channel - 1, state == 1)
        return b""


class Numato(SerialBoard):
    """Echoes each command and ends its answer with a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = ""

    def feed(self, data: bytes) -> bytes:
        self._buffer += data.decode()
        reply = ""
        while "\r" in self._buffer:
            command, self._buffer = self._buffer.split("\r", 1)
            reply += f"{command}\n\r{self._do(command)}>"
        return reply.encode()

    def _do(self, command: str) -> str:
        if command == "relay readall":
            return f"{self.bits:02x}\n\r"
        switched = re.fullmatch(r"relay (on|off) ([0-9A-V])", command)
        assert switched, command
        self.switch(int(switched[2], 32), switched[1] == "on")
        return ""


class Devantech(SerialBoard):
    def feed(self, data: bytes) -> bytes:
        reply = b""
        for byte in data:
            if byte == 0x5B:
                reply += bytes((self.bits,))
            elif 0x65 <= byte <= 0x6C:
                self.switch(byte - 0x65, True)
            else:
                assert 0x6F <= byte <= 0x76
                self.switch(byte - 0x6F, False)
        return reply


class Told(SerialBoard):
    """A tower that nobody knows: letters, one `0` that darkens all, an answer of characters."""

    def feed(self, data: bytes) -> bytes:
        reply = ""
        for byte in data.decode():
            if byte == "?":
                reply += "".join("1" if e in self.lit() else "0" for e in CHANNELS) + "\n"
            elif byte == "0":
                self.history.append({})
            else:
                element = list(CHANNELS)["ryg".index(byte.lower())]
                self.light(element, "on" if byte.isupper() else "blink")
        return reply.encode()


# --- Modbus ---------------------------------------------------------------------------------------


class ModbusBoard(Device):
    """Relays behind one of pymodbus's simulator servers, in a thread of its own.

    Coils 0 to 15, 0x0200 + coil for a timed pulse; or registers 1 to 8.
    """

    def __init__(self, addresses: dict[str, int]) -> None:
        super().__init__()
        self.frames: list[bytes] = []
        """Requests as they came in."""
        self.answers: Callable[[bytes], bytes] = lambda data: data
        """What becomes of an answer on its way out."""
        self.on_read: Callable[[], None] = lambda: None
        """Called before a read is answered."""
        self._addresses = addresses
        self._pulses: dict[str, float] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modbus")
        self._thread.start()
        self._server: Any = None
        self._is_tcp_framed = False

    def serve_tcp(self, framer: FramerType = FramerType.SOCKET) -> int:
        """The port it listens at."""
        port = free_port()
        self._is_tcp_framed = framer is FramerType.SOCKET
        self._start(
            lambda: ModbusTcpServer(framer=framer, address=("127.0.0.1", port), **self._at())
        )
        return port

    def serve_rtu(self, port: Path, baud_rate: int = 9600) -> None:
        self._start(lambda: ModbusSerialServer(port=str(port), baudrate=baud_rate, **self._at()))

    def close(self) -> None:
        """Gone, with all its connections."""
        if self._server is not None:
            self._run(self._shut_down())
            self._server = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _shut_down(self) -> None:
        """With connections that are being accepted; what is closed needs turns of the loop."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.shutdown()
        for _ in range(3):
            await asyncio.sleep(0)

    def _at(self) -> dict[str, Any]:
        return {"context": self._device(), "trace_packet": self._trace}

    def _device(self) -> SimDevice:
        coils = [SimData(0, values=[False] * 1024, datatype=DataType.BITS)]
        registers = [SimData(0, count=16, values=0, datatype=DataType.REGISTERS)]
        one = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
        return SimDevice(id=1, simdata=(coils, one, registers, registers), action=self._act)

    def _start(self, make: Callable[[], Any]) -> None:
        async def start() -> Any:
            server = make()
            await server.serve_forever(background=True)
            return server

        self._server = self._run(start())

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(5)

    def _trace(self, is_sending: bool, data: bytes) -> bytes:
        if is_sending:
            return self.answers(data)
        self.frames.append(data)
        return data

    async def _act(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[Any] | None,
    ) -> ExcCodes | None:
        if values is not None:
            self._take(function, address, values[0])
        elif function in (1, 3):
            self.on_read()
            self._expire()
        self._fill(function, start, registers)
        return None

    def _take(self, function: int, address: int, value: Any) -> None:
        element = {place: e for e, place in self._addresses.items()}[address & 0x01FF]
        self._pulses.pop(element, None)
        if function == 5 and address & 0x0200:
            frame = self.frames[-1]
            value_at = 8 + 2 if self._is_tcp_framed else 4
            self._pulse(element, int.from_bytes(frame[value_at : value_at + 2]) / 10)
        elif function == 6 and value & 0xFF00 == 0x0600:
            self._pulse(element, value & 0xFF)
        else:
            self.light(element, "on" if value in (True, 0x0100) else None)

    def _pulse(self, element: str, seconds: float) -> None:
        self._pulses[element] = time.monotonic() + seconds
        self.light(element, "on")

    def lit(self) -> Lit:
        self._expire()
        return super().lit()

    def _expire(self) -> None:
        for element, until in list(self._pulses.items()):
            if time.monotonic() >= until:
                del self._pulses[element]
                self.history.append({e: m for e, m in self.history[-1].items() if e != element})

    def _fill(self, function: int, start: int, registers: list[int]) -> None:
        """The simulator's memory as the relays are."""
        lit = {place for e, place in self._addresses.items() if e in self.history[-1]}
        if function in (1, 5):
            registers[0] = sum(1 << place for place in lit)
        else:
            for place in self._addresses.values():
                registers[place - start] = int(place in lit)


class Bridge:
    """Two ptys joined: what is written to one end comes out of the other."""

    def __init__(self, link: Path) -> None:
        self.near, self.far = PtyRecorder(link), PtyRecorder()
        self.near.answer = lambda data: self._pass(self.far, data)
        self.far.answer = lambda data: self._pass(self.near, data)

    def _pass(self, to: PtyRecorder, data: bytes) -> bytes:
        with contextlib.suppress(OSError):
            to.send(data)
        return b""

    def close(self) -> None:
        self.near.close()
        self.far.close()


# --- Patlite --------------------------------------------------------------------------------------

_PNS_ORDER = ("red", "yellow", "green", "blue", "white", "buzzer")
_PNS_MODES = {0: None, 1: "on", 2: "blink"}


class TcpDevice:
    """Accepts connections one after another, and answers what each sends, until closed."""

    def __init__(self, answer: Callable[[bytes], bytes | None], port: int = 0) -> None:
        """`answer` returns None to hang up."""
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", port))
        self.port: int = self._server.getsockname()[1]
        self.frames: list[bytes] = []
        self._connections: list[socket.socket] = []
        self.is_hanging_up = False
        """Closes each connection after its first answer."""
        self.is_flooding = False
        """Talks on and on after its first answer."""
        self._is_closed = False
        self._threads = [threading.Thread(target=self._accept, name="tcp")]
        self._threads[0].start()

    def drop_connections(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                self.frames.append(data)
                reply = self._answer(data)
                if reply is None:
                    return
                connection.sendall(reply)
                while self.is_flooding and reply:
                    connection.sendall(reply)
                if self.is_hanging_up:
                    return


class PatliteTower(Device):
    """PNS and PHN, as the note's table has them."""

    def __init__(self) -> None:
        super().__init__()
        self.is_refusing = False
        self.on_read: Callable[[], None] = lambda: None

    def feed(self, data: bytes) -> bytes:
        if data[:1] in (b"W", b"R"):
            return self._phn(data)
        assert data[:2] == b"XX"
        if self.is_refusing:
            return b"\x15"
        if data[2:3] == b"G":
            self.on_read()
            codes = {mode: code for code, mode in _PNS_MODES.items()}
            return bytes(codes[self.lit().get(element)] for element in _PNS_ORDER)
        assert data[2:6] == b"S\0\0\x06"
        shown = {e: _PNS_MODES[code] for e, code in zip(_PNS_ORDER, data[6:], strict=True)}
        self._show(shown)
        return b"\x06"

    def _phn(self, data: bytes) -> bytes:
        bits = {"red": (0x01, 0x20), "yellow": (0x02, 0x40), "green": (0x04, 0x80)}
        if data == b"R":
            self.on_read()
            shown = self.lit()
            return b"R" + bytes(
                (sum(b[shown[e] == "blink"] for e, b in bits.items() if e in shown),)
            )
        if self.is_refusing:
            return b"NAK"
        code = data[1]
        self._show(
            {
                e: "on" if code & on else "blink" if code & flash else None
                for e, (on, flash) in bits.items()
            }
        )
        return b"ACK"

    def _show(self, shown: dict[str, str | None]) -> None:
        lit = {e: m for e, m in shown.items() if m is not None and e not in self.stuck}
        self.history.append(lit)
