"""Malformed Modbus TCP, seeded: none of what is sent here may change anything."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable

_FRAMES_A_CONNECTION = 25


class Fuzz:
    """Sends malformed frames to a server, many to a connection where it stays open."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self._port = port
        self._rng = rng
        self.malformed = 0
        self.kinds: Counter[str] = Counter()
        self.refused = 0
        """Answered with an exception."""
        self.closed = 0
        """Answered by the end of the connection."""
        self._left_open: list[socket.socket] = []

    def run(self, frames: int) -> None:
        while self.malformed < frames:
            with self._connect() as peer:
                try:
                    for _ in range(_FRAMES_A_CONNECTION):
                        self._send_one(peer)
                except OSError:
                    self.closed += 1
        for peer in self._left_open:
            peer.close()

    def _connect(self) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def _send_one(self, peer: socket.socket) -> None:
        """Raises OSError when the connection is over."""
        make = self._rng.choice(_KINDS)
        frame, is_answered = make(self._rng)
        self.malformed += 1
        self.kinds[make.__name__.strip("_")] += 1
        peer.sendall(frame)
        if is_answered:
            answer = peer.recv(300)
            if not answer:
                raise ConnectionResetError
            assert answer[7] & 0x80, f"{frame.hex()} was obeyed: {answer.hex()}"
            self.refused += 1
            return
        self._leave(peer)

    def _leave(self, peer: socket.socket) -> None:
        """What the server must end: by itself, or by us, or by those that come after."""
        how = self._rng.random()
        if how < 0.02:
            self._left_open.append(peer.dup())
            if len(self._left_open) > 40:
                self._left_open.pop(0).close()
        elif how < 0.5:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            peer.shutdown(socket.SHUT_WR)
            peer.recv(300)
        raise ConnectionResetError


Made = tuple[bytes, bool]
"""A frame, and whether an answer is due before the connection ends."""


def _frame(rng: random.Random, pdu: bytes, length: int | None = None, protocol: int = 0) -> bytes:
    size = len(pdu) + 1 if length is None else length
    return struct.pack(">HHHB", rng.randrange(65536), protocol, size, rng.randrange(256)) + pdu


def _good_pdu(rng: random.Random) -> bytes:
    """One that would be obeyed."""
    return rng.choice(
        [
            struct.pack(">BHH", 4, 0, 7),
            struct.pack(">BHH", 2, 0, 9),
            struct.pack(">BHH", 5, rng.randrange(2), 0xFF00),
            struct.pack(">BHH", 6, rng.randrange(4), rng.randrange(65536)),
            struct.pack(">BHHBB", 15, 0, 2, 1, 3),
            struct.pack(">BHHBHH", 16, 0, 2, 4, 1, 1),
        ]
    )


def _truncated(rng: random.Random) -> Made:
    frame = _frame(rng, _good_pdu(rng))
    return frame[: rng.randrange(1, len(frame))], False


def _wrong_length(rng: random.Random) -> Made:
    """The header promises more than comes, or less than a frame has."""
    pdu = _good_pdu(rng)
    length = rng.choice([0, 1, rng.randrange(255, 65536), len(pdu) + rng.randrange(2, 200)])
    return _frame(rng, pdu, min(length, 65535)), False


def _wrong_protocol(rng: random.Random) -> Made:
    return _frame(rng, _good_pdu(rng), protocol=rng.randrange(1, 65536)), False


def _unknown_function(rng: random.Random) -> Made:
    codes = [code for code in range(256) if code not in (1, 2, 3, 4, 5, 6, 15, 16)]
    return _frame(rng, bytes((rng.choice(codes),)) + rng.randbytes(rng.randrange(0, 250))), True


def _giant_count(rng: random.Random) -> Made:
    code = rng.choice([1, 2, 3, 4])
    count = rng.choice([0, 65535, rng.randrange(126, 65536)])
    return _frame(rng, struct.pack(">BHH", code, rng.randrange(65536), count)), True


def _beyond_the_end(rng: random.Random) -> Made:
    code, first = rng.choice([(1, 2), (2, 9), (3, 4), (4, 7), (5, 2), (6, 4)])
    value = 0xFF00 if code == 5 else 1
    return _frame(rng, struct.pack(">BHH", code, rng.randrange(first, 65536), value)), True


def _too_much_written(rng: random.Random) -> Made:
    if rng.random() < 0.5:
        count = rng.randrange(5, 124)
        values = rng.randbytes(2 * count)
        return _frame(rng, struct.pack(">BHHB", 16, 0, count, 2 * count) + values), True
    count = rng.randrange(3, 1000)
    size = (count + 7) // 8
    return _frame(rng, struct.pack(">BHHB", 15, 0, count, size) + rng.randbytes(size)), True


def _counts_that_disagree(rng: random.Random) -> Made:
    count = rng.randrange(1, 5)
    size = rng.choice([n for n in range(240) if n != 2 * count])
    values = rng.randbytes(rng.choice([size, 2 * count, rng.randrange(240)]))
    return _frame(rng, struct.pack(">BHHB", 16, 0, count, size) + values), True


def _wrong_coil_value(rng: random.Random) -> Made:
    value = rng.choice([1, 0xFF, 0xFF01, 0xFFFF, rng.randrange(1, 0xFF00)])
    return _frame(rng, struct.pack(">BHH", 5, rng.randrange(2), value)), True


def _too_short_or_long(rng: random.Random) -> Made:
    pdu = _good_pdu(rng)
    cut = rng.randrange(1, len(pdu))
    changed = pdu[:cut] if rng.random() < 0.5 else pdu + rng.randbytes(rng.randrange(1, 100))
    return _frame(rng, changed), True


def _noise(rng: random.Random) -> Made:
    """No zero where the protocol's zeros belong."""
    return bytes(rng.randrange(1, 256) for _ in range(rng.randrange(6, 1500))), False


_KINDS: tuple[Callable[[random.Random], Made], ...] = (
    _truncated,
    _wrong_length,
    _wrong_protocol,
    _unknown_function,
    _giant_count,
    _beyond_the_end,
    _too_much_written,
    _counts_that_disagree,
    _wrong_coil_value,
    _too_short_or_long,
    _noise,
)
