"""Lines out of a stream of bytes, for scanners that send text. Pure."""

from __future__ import annotations

from collections import deque

from drivers.scanner import BROKEN_OFF, IS_REST, MAX_READING_BYTES, PAUSE_S, Scan

_ENDS = b"\r\n"


class LineAssembler:
    """Lines end with CR, LF or both; empty ones are none. Times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._heard_ns = 0
        self._is_too_long = self._is_rest = False
        self._scans: deque[Scan] = deque()

    def feed(self, data: bytes, now_ns: int) -> None:
        """Bytes that have come, none where the device was silent until now."""
        if self._line and (now_ns - self._heard_ns) / 1e9 > PAUSE_S:
            self._end(self._heard_ns, BROKEN_OFF)
            self._is_rest = True
        for byte in data:
            if byte in _ENDS:
                self._end(now_ns, self._fault())
            elif len(self._line) < MAX_READING_BYTES:
                self._line.append(byte)
            else:
                self._is_too_long = True
        self._heard_ns = now_ns if data else self._heard_ns

    def take(self) -> Scan | None:
        """The oldest line that nobody took."""
        return self._scans.popleft() if self._scans else None

    def _fault(self) -> str:
        if self._is_too_long:
            return "it has no end"
        return IS_REST if self._is_rest else ""

    def _end(self, at_ns: int, fault: str) -> None:
        if self._line:
            self._scans.append(Scan(bytes(self._line), at_ns, fault))
        self._line.clear()
        self._is_too_long = self._is_rest = False
