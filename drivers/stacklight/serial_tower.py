"""Stack light behind a serial line that takes bytes: USB towers, relay boards, and any other tower
whose bytes the configuration says. Known boards: drivers.stacklight.boards.

Such devices latch: they keep showing what they were told until told otherwise.
"""

from __future__ import annotations

import re
import time

from drivers.errors import DeviceError, DeviceRefused, DeviceTimeout
from drivers.stacklight import LightState
from drivers.stacklight.settings import Element, LightPattern, SerialRead, SerialTowerSettings
from drivers.stacklight.switched import Modes, SwitchedLight
from drivers.wire import open_serial

_MAX_ANSWER = 256
"""More bytes than this without the end that was wanted are no answer."""


class SerialTower(SwitchedLight):
    """Writes the bytes of every element at each `show`, those that go dark first."""

    def __init__(
        self, settings: SerialTowerSettings, patterns: dict[LightState, LightPattern]
    ) -> None:
        self._settings = settings
        self._map = settings.byte_map
        self._lit: Modes = {}
        """What was last written; empty at first, so that every element is switched off once."""
        self.can_confirm = settings.can_confirm
        self.description = f"serial tower at {settings.port}, {settings.baud_rate} baud"
        self._wire = open_serial(
            self.description,
            settings.port,
            settings.baud_rate,
            settings.parity,
            settings.stop_bits,
        )
        elements = self._map.elements
        host_flashed = [e for e, codes in elements.items() if not codes.codes("blink")]
        super().__init__(patterns, elements, host_flashed, settings.blink_hz)

    def _switch(self, modes: Modes, deadline_s: float) -> None:
        deadline_s = min(deadline_s, time.monotonic() + self._settings.write_timeout_s)
        try:
            self._send(self._commands(modes), deadline_s)
        except DeviceError:
            self._lit = {}
            raise
        self._lit |= modes

    def _commands(self, modes: Modes) -> list[bytes]:
        """Off for all that is dark or changes, then on or blink: never two patterns at once.

        An element that stays lit gets no off, so that a renewal is not seen.
        """
        off = [e for e, mode in modes.items() if mode is None or self._lit.get(e) != mode]
        dark = [self._map.elements[element].codes(None) for element in off]
        lit = {element: mode for element, mode in modes.items() if mode is not None}
        if not all(dark):
            # Only all_off darkens, which a renewal must not show.
            is_renewal = self._lit == modes
            dark = [codes for codes in dark if codes] if is_renewal else [self._map.all_off_codes]
        return dark + [self._map.elements[element].codes(mode) for element, mode in lit.items()]

    def _send(self, commands: list[bytes], deadline_s: float) -> None:
        """In one write, or one by one where the device answers each."""
        if not self._map.answer_codes:
            self._wire.send(b"".join(commands), deadline_s)
            return
        for codes in commands:
            self._wire.forget()
            self._wire.send(codes, deadline_s)
            self._receive_until(self._map.answer_codes, deadline_s)

    def _read(self, deadline_s: float) -> Modes | None:
        read = self._map.read
        if read is None:
            return None
        self._wire.forget()
        self._wire.send(read.request_codes, deadline_s)
        if read.reply_bytes is not None:
            answer = self._receive_exactly(read.reply_bytes, deadline_s)
        else:
            answer = self._receive_until((read.prompt or "").encode(), deadline_s)
        lit = lit_places(read, answer)
        if lit is None:
            raise DeviceTimeout(f"{self.description}: its answer {answer!r} cannot be understood")
        # Where the device flashes by itself, on and off are both right.
        by_itself = [e for e, mode in self._lit.items() if mode == "blink"]
        return {e: "on" if is_lit else None for e, is_lit in lit.items() if e not in by_itself}

    def _receive_until(self, end: bytes, deadline_s: float) -> bytes:
        answer = b""
        while not answer.endswith(end):
            part = self._wire.receive(deadline_s)
            answer += part
            if len(answer) > _MAX_ANSWER:
                raise DeviceRefused(
                    f"{self.description}: {len(answer)} bytes, and no {end!r}; is it this device?"
                )
            if not part:
                raise DeviceTimeout(f"{self.description}: no {end!r} in time, but {answer!r}")
        return answer

    def _receive_exactly(self, count: int, deadline_s: float) -> bytes:
        answer = b""
        while len(answer) < count:
            part = self._wire.receive(deadline_s)
            answer += part
            if not part:
                raise DeviceTimeout(f"{self.description}: no answer in time, but {answer!r}")
        if len(answer) > count:
            raise DeviceTimeout(f"{self.description}: {answer!r} is longer than {count} bytes")
        return answer

    def _release(self) -> None:
        self._wire.close()


def lit_places(read: SerialRead, answer: bytes) -> dict[Element, bool] | None:
    """Which elements the answer says are lit; None where it says nothing."""
    if read.form == "bits":
        number = int.from_bytes(answer, "little")
        return {element: bool(number >> place & 1) for element, place in read.places.items()}
    words = answer.removesuffix((read.prompt or "").encode()).split()
    word = words[-1] if words else b""
    if read.form == "hex":
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,32}", word):
            return None
        return {e: bool(int(word, 16) >> place & 1) for e, place in read.places.items()}
    if not re.fullmatch(rb"[01]+", word) or max(read.places.values()) >= len(word):
        return None
    return {element: word[place] == ord("1") for element, place in read.places.items()}
