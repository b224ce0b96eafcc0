"""Patlite tower on the network: PNS or PHN over TCP, read back; the tower flashes by itself.

PNS: `58 58 53 00 00 06` R A G B W buzzer (0 off, 1 on, 2 flash) is answered by 06 or 15;
`58 58 47 00 00 00` reads the six. PHN: `57 xx` (flash G A R bits 7-5, buzzer 4-3, steady G A R bits
2-0) is answered by ACK or NAK; `52` reads `52 xx`.

One command switches the whole tower. It latches.
"""

from __future__ import annotations

import time

from drivers.errors import DeviceError, DeviceLost, DeviceRefused, DeviceTimeout
from drivers.stacklight import LightState
from drivers.stacklight.settings import Element, LightPattern, Mode, PatliteSettings
from drivers.stacklight.switched import Modes, SwitchedLight
from drivers.wire import open_tcp

_PNS_ORDER: tuple[Element, ...] = ("red", "yellow", "green", "blue", "white", "buzzer")
_PNS_CODES: dict[Mode | None, int] = {None: 0, "on": 1, "blink": 2}
_PNS_MODES: dict[int, Mode | None] = {code: mode for mode, code in _PNS_CODES.items()}
_PNS_SHOW = bytes.fromhex("58 58 53 00 00 06")
_PNS_READ = bytes.fromhex("58 58 47 00 00 00")
_ACK, _NAK = b"\x06", b"\x15"
_PHN_BITS: dict[tuple[Element, Mode], int] = {
    ("red", "on"): 0x01,
    ("yellow", "on"): 0x02,
    ("green", "on"): 0x04,
    ("buzzer", "on"): 0x08,
    ("buzzer", "blink"): 0x10,
    ("red", "blink"): 0x20,
    ("yellow", "blink"): 0x40,
    ("green", "blink"): 0x80,
}


class Patlite(SwitchedLight):
    """A connection that the tower dropped is made again within the `show`."""

    can_confirm = True
    _has_rivals = True

    def __init__(self, settings: PatliteSettings, patterns: dict[LightState, LightPattern]) -> None:
        self._settings = settings
        self.description = f"Patlite stack light at {settings.host} port {settings.tcp_port}"
        self._connect()
        super().__init__(patterns, settings.elements, (), None)

    def _switch(self, modes: Modes, deadline_s: float) -> None:
        if self._settings.protocol == "pns":
            codes = bytes(_PNS_CODES[modes.get(element)] for element in _PNS_ORDER)
            answer = self._exchange(_PNS_SHOW + codes, 1, deadline_s)
            is_taken, is_refused = answer == _ACK, answer == _NAK
        else:
            bits = sum(bit for key, bit in _PHN_BITS.items() if modes.get(key[0]) == key[1])
            answer = self._exchange(bytes((0x57, bits)), 3, deadline_s)
            is_taken, is_refused = answer == b"ACK", answer == b"NAK"
        if is_refused:
            raise DeviceRefused(f"{self.description}: refuses; does its mode allow commands?")
        if not is_taken:
            raise DeviceTimeout(f"{self.description}: {answer!r} is no answer to a command")

    def _read(self, deadline_s: float) -> Modes:
        if self._settings.protocol == "pns":
            answer = self._exchange(_PNS_READ, len(_PNS_ORDER), deadline_s)
            if answer[:1] == _NAK:
                raise DeviceRefused(f"{self.description}: refuses to say what it shows")
            return self._understood(answer, _pns_modes(answer))
        answer = self._exchange(b"R", 2, deadline_s)
        return self._understood(answer, _phn_modes(answer))

    def _understood(self, answer: bytes, modes: Modes | None) -> Modes:
        if modes is None:
            raise DeviceTimeout(f"{self.description}: its answer {answer!r} cannot be understood")
        strange = [e for e, mode in modes.items() if mode is not None and e not in self._elements]
        if strange:
            raise DeviceTimeout(f"{self.description}: shows {strange[0]}, which is not of elements")
        return {element: modes[element] for element in self._elements}

    def _exchange(self, request: bytes, count: int, deadline_s: float) -> bytes:
        """Raises `DeviceTimeout` without an answer of `count` bytes, `DeviceLost`."""
        try:
            return self._ask(request, count, deadline_s)
        except DeviceLost as loss:
            self._wire.close()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise
            try:
                self._connect(left_s)
            except DeviceError as error:
                raise loss from error
        return self._ask(request, count, deadline_s)

    def _ask(self, request: bytes, count: int, deadline_s: float) -> bytes:
        self._wire.forget()
        self._wire.send(request, deadline_s)
        answer = b""
        while len(answer) < count and answer != _NAK:
            part = self._wire.receive(deadline_s)
            answer += part
            if not part:
                raise DeviceTimeout(
                    f"{self.description}: no answer in time, but {answer!r}; check that it speaks "
                    f"{self._settings.protocol}"
                )
        return answer

    def _connect(self, limit_s: float = 1.0) -> None:
        host, port = str(self._settings.host), self._settings.tcp_port
        self._wire = open_tcp(self.description, host, port, limit_s)

    def _release(self) -> None:
        self._wire.close()


def _pns_modes(answer: bytes) -> Modes | None:
    """None where the six bytes are no answer."""
    if len(answer) != len(_PNS_ORDER) or not set(answer) <= _PNS_MODES.keys():
        return None
    return {e: _PNS_MODES[code] for e, code in zip(_PNS_ORDER, answer, strict=True)}


def _phn_modes(answer: bytes) -> Modes | None:
    if len(answer) != 2 or answer[:1] != b"R":
        return None
    modes: Modes = dict.fromkeys(("red", "yellow", "green", "buzzer"))
    for (element, mode), bit in _PHN_BITS.items():
        if answer[1] & bit:
            if modes[element] is not None:
                return None
            modes[element] = mode
    return modes
