"""Serial towers and relay boards whose bytes are known. Data only.

| board | bytes |
|---|---|
| Adafruit 5125 | R Y G buzzer on 11 12 14 18, off 21 22 24 28, blink 41 42 44 48 |
| LCUS relays | `A0 channel state sum`: channel 1 on `A0 01 01 A2`, off `A0 01 00 A1` |
| Numato relays | `relay on 0`, `relay off 0`, `relay readall`, each with CR; echo and `>` prompt |
| Devantech RLY16 | on 65-6C, off 6F-76, read 5B: one byte, a bit a relay |
"""

from __future__ import annotations

from dataclasses import dataclass

from drivers.stacklight.settings import (
    BoardName,
    Element,
    SerialElement,
    SerialMap,
    SerialRead,
)


@dataclass(frozen=True, slots=True)
class RelayBoard:
    """A board of equal channels; channel 0 is the one that its maker counts first."""

    channels: tuple[SerialElement, ...]
    answer_text: str | None = None
    read: SerialRead | None = None


ADAFRUIT_5125 = SerialMap(
    elements={
        "red": SerialElement(on="11", off="21", blink="41"),
        "yellow": SerialElement(on="12", off="22", blink="42"),
        "green": SerialElement(on="14", off="24", blink="44"),
        "buzzer": SerialElement(on="18", off="28", blink="48"),
    }
)


def _lcus(channel: int, state: int) -> str:
    return bytes((0xA0, channel, state, (0xA0 + channel + state) & 0xFF)).hex(" ").upper()


RELAY_BOARDS: dict[BoardName, RelayBoard] = {
    "lcus": RelayBoard(
        tuple(SerialElement(on=_lcus(c, 1), off=_lcus(c, 0)) for c in range(1, 9)),
    ),
    "numato": RelayBoard(
        tuple(
            SerialElement(on_text=f"relay on {c}\r", off_text=f"relay off {c}\r")
            for c in "0123456789ABCDEFGHIJKLMNOPQRSTUV"
        ),
        answer_text=">",
        read=SerialRead(request_text="relay readall\r", prompt=">", form="hex"),
    ),
    "devantech_rly16": RelayBoard(
        tuple(SerialElement(on=f"{0x65 + c:02X}", off=f"{0x6F + c:02X}") for c in range(8)),
        read=SerialRead(request="5B", reply_bytes=1, form="bits"),
    ),
}


def board_map(board: BoardName, channels: dict[Element, int]) -> SerialMap:
    """The bytes of a board whose relays switch `channels`. Raises ValueError."""
    if board == "adafruit_5125":
        if channels:
            raise ValueError("the Adafruit 5125 has no channels: its elements are fixed")
        return ADAFRUIT_5125
    known = RELAY_BOARDS[board]
    if not channels:
        raise ValueError("a relay board needs channels, for example { red = 0, green = 2 }")
    if len(set(channels.values())) < len(channels):
        raise ValueError("channels: two elements have the same one")
    if any(not 0 <= channel < len(known.channels) for channel in channels.values()):
        raise ValueError(f"channels of this board are 0 to {len(known.channels) - 1}")
    return SerialMap(
        elements={element: known.channels[c] for element, c in channels.items()},
        answer_text=known.answer_text,
        read=known.read.model_copy(update={"places": channels}) if known.read else None,
    )
