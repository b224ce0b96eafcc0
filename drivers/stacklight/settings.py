"""Settings of each stack light driver, chosen by `type`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from drivers.modbus_link import ModbusLink
from drivers.settings import Count, Number, Settings, gpio_line

Element = Literal["red", "yellow", "green", "blue", "white", "buzzer"]
"""A place on the tower."""
Mode = Literal["on", "blink"]
LightPattern = dict[Element, Mode]
"""Elements that are not named are off."""
Abilities = dict[Element, frozenset[Mode]]
"""Elements that a device has, and what each can show beside dark."""

STEADY: frozenset[Mode] = frozenset({"on"})
FLASHING: frozenset[Mode] = frozenset({"on", "blink"})

Hex = Annotated[str, Field(pattern=r"^([0-9A-Fa-f]{2} ?)+$")]
"""Bytes as hex, for example `11` or `A0 01 01 A2`."""
Text = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x01-\x7f]+$")]
"""Bytes as ASCII text, `\\r` and `\\n` written as such."""
Parity = Literal["N", "E", "O"]
BlinkHz = Annotated[Number, Field(ge=1.4, le=2.8)]
"""Flash rate; IEC 60204-1: 1.4 to 2.8 Hz."""


def _bytes(code: str | None, text: str | None) -> bytes:
    return text.encode("ascii") if text is not None else bytes.fromhex(code or "")


class LightDeviceSettings(Settings):
    """What the settings of each device say about it before it is opened."""

    @property
    def abilities(self) -> Abilities | None:
        """None: it can show anything."""
        return None

    @property
    def can_confirm(self) -> bool:
        """True if it is read back."""
        return True

    @property
    def lapses_by_itself(self) -> bool:
        """True if the device itself ends a pass that nobody renews."""
        return False

    @property
    def is_latching(self) -> bool:
        """True if it keeps what it shows when this machine dies."""
        return True

    @property
    def wires(self) -> list[tuple[str, str]]:
        """Key and place of each coil, register or line that other devices could name too."""
        return []

    @property
    def nature(self) -> str:
        """What a site must know of it, for people."""
        confirmed = "read back" if self.can_confirm else "not read back: somebody must look at it"
        if self.lapses_by_itself:
            return f"{confirmed}; ends a pass by itself"
        latches = "; latches: a dead machine leaves green on unless a hardware watchdog cuts it"
        return confirmed + (latches if self.is_latching else "")


class SimulatedStackLightSettings(LightDeviceSettings):
    """A tower drawn by whoever watches the station; no device."""

    type: Literal["simulated"]

    @property
    def is_latching(self) -> bool:
        return False


# --- serial towers --------------------------------------------------------------------------------


class SerialElement(Settings):
    """The bytes that switch one element: `on` as hex or `on_text` as text, and so on."""

    on: Hex | None = None
    on_text: Text | None = None
    off: Hex | None = Field(None, description="May be left out where the tower has an all_off.")
    off_text: Text | None = None
    blink: Hex | None = Field(None, description="Where the device flashes by itself.")
    blink_text: Text | None = None

    def codes(self, mode: Mode | None) -> bytes:
        """What switches the element to `mode`, None for dark; empty if it has no such bytes."""
        match mode:
            case "on":
                return _bytes(self.on, self.on_text)
            case "blink":
                return _bytes(self.blink, self.blink_text)
            case None:
                return _bytes(self.off, self.off_text)

    @model_validator(mode="after")
    def _each_is_said_once(self) -> SerialElement:
        if (self.on is None) == (self.on_text is None):
            raise ValueError("give either on (hex bytes) or on_text")
        if None not in (self.off, self.off_text) or None not in (self.blink, self.blink_text):
            raise ValueError("give bytes either as hex or as text, not both")
        return self


class SerialRead(Settings):
    """How the device is asked what it shows, and where each element stands in its answer."""

    request: Hex | None = None
    request_text: Text | None = None
    reply_bytes: Count | None = Field(None, ge=1, le=16, description="Length of the answer.")
    prompt: Text | None = Field(None, description="Or: the text that ends the answer.")
    form: Literal["bits", "hex", "chars"] = Field(
        description="bits: of the answer's bytes, place 0 is the lowest of the first; hex: bits of "
        "the number in the answer's last word; chars: 1 or 0 in the answer's last word."
    )
    places: dict[Element, Count] = Field(default_factory=dict, description="From 0.")

    @property
    def request_codes(self) -> bytes:
        return _bytes(self.request, self.request_text)

    @model_validator(mode="after")
    def _answer_has_an_end(self) -> SerialRead:
        if (self.request is None) == (self.request_text is None):
            raise ValueError("give either request (hex bytes) or request_text")
        if (self.reply_bytes is None) == (self.prompt is None):
            raise ValueError("give either reply_bytes, the answer's length, or prompt, its end")
        if self.form == "bits" and self.reply_bytes is None:
            raise ValueError("form bits needs reply_bytes")
        if any(not 0 <= place < 128 for place in self.places.values()):
            raise ValueError("places are from 0 to 127")
        if self.form == "bits" and max(self.places.values(), default=0) >= 8 * (
            self.reply_bytes or 0
        ):
            raise ValueError(f"a place lies behind the answer's {self.reply_bytes} bytes")
        return self


class SerialMap(Settings):
    """Everything that is known of a serial tower's bytes."""

    elements: dict[Element, SerialElement] = Field(min_length=1)
    all_off: Hex | None = None
    all_off_text: Text | None = None
    answer: Hex | None = None
    answer_text: Text | None = None
    read: SerialRead | None = None

    @property
    def all_off_codes(self) -> bytes:
        return _bytes(self.all_off, self.all_off_text)

    @property
    def answer_codes(self) -> bytes:
        return _bytes(self.answer, self.answer_text)

    @model_validator(mode="after")
    def _each_can_go_dark(self) -> SerialMap:
        for element, codes in self.elements.items():
            if not codes.codes(None) and not self.all_off_codes:
                raise ValueError(f"elements.{element} has no off, and there is no all_off")
        if self.read is not None and self.read.places.keys() != self.elements.keys():
            raise ValueError("read.places names each of the elements, and no other")
        return self


BoardName = Literal["adafruit_5125", "lcus", "numato", "devantech_rly16"]


class SerialTowerSettings(LightDeviceSettings):
    """A tower or relay board that takes bytes over a serial line."""

    type: Literal["serial_tower"]
    port: str = Field(min_length=1, description="Device, best a name under /dev/serial/by-id.")
    board: BoardName | None = Field(
        None, description="A known board; left out: elements says the bytes."
    )
    channels: dict[Element, Count] = Field(
        default_factory=dict, description="Relay of each element, from 0, on a relay board."
    )
    elements: dict[Element, SerialElement] = Field(
        default_factory=dict, description="Bytes of each element."
    )
    all_off: Hex | None = Field(None, description="Bytes that switch all elements off.")
    all_off_text: Text | None = None
    answer: Hex | None = Field(None, description="What the device's answer to a command ends with.")
    answer_text: Text | None = None
    read: SerialRead | None = Field(None, description="Left out: nothing is read back.")
    baud_rate: Count = Field(9600, gt=0)
    parity: Parity = "N"
    stop_bits: Literal[1, 2] = 1
    write_timeout_s: Number = Field(0.3, gt=0, le=0.5, description="A blocked line is an error.")
    blink_hz: BlinkHz | None = Field(
        None, description="The driver flashes what has no blink bytes; wears relays out."
    )

    @property
    def byte_map(self) -> SerialMap:
        """The board's bytes, or those of the file."""
        from drivers.stacklight.boards import board_map

        if self.elements:
            return SerialMap(
                elements=self.elements,
                all_off=self.all_off,
                all_off_text=self.all_off_text,
                answer=self.answer,
                answer_text=self.answer_text,
                read=self.read,
            )
        return board_map(self.board or "adafruit_5125", self.channels)

    @property
    def abilities(self) -> Abilities | None:
        return {
            element: FLASHING if codes.codes("blink") or self.blink_hz else STEADY
            for element, codes in self.byte_map.elements.items()
        }

    @property
    def can_confirm(self) -> bool:
        return self.byte_map.read is not None

    @model_validator(mode="after")
    def _board_or_elements(self) -> SerialTowerSettings:
        of_a_file = (self.all_off, self.all_off_text, self.answer, self.answer_text, self.read)
        if self.elements and (self.board or self.channels):
            raise ValueError("give either a board with its channels, or elements with their bytes")
        if not self.elements and any(part is not None for part in of_a_file):
            raise ValueError("all_off, answer and read belong to elements; a board has its own")
        elements = self.byte_map.elements  # raises ValueError where channels do not fit the board
        if self.blink_hz and not all(codes.codes(None) for codes in elements.values()):
            raise ValueError("blink_hz needs an off for each element: all_off darkens the others")
        return self


# --- Modbus relays --------------------------------------------------------------------------------

PULSE_COIL = 0x0200
"""FC05 to this + coil switches the coil on for a time."""


class ModbusRelaySettings(ModbusLink, LightDeviceSettings):
    """Relays behind Modbus RTU (`port`) or TCP (`host`)."""

    type: Literal["modbus_relay"]
    command: Literal["coil", "register"] = Field(
        "coil", description="coil: FC05 and FC01; register: FC06 with 0x0100 and 0x0200, and FC03."
    )
    can_read_back: bool = Field(True, description="False for a register board without FC03.")
    addresses: dict[Element, Annotated[Count, Field(ge=0, le=65_535)]] = Field(
        min_length=1, description="Coil or register of each element, as on the wire."
    )
    pass_pulse_s: Number | None = Field(
        None,
        ge=1.5,
        le=2.0,
        description="The board itself ends a pass so long after its last renewal: FC05 to 0x0200 + "
        "coil in 0.1 s, or FC06 0x0600 in whole seconds.",
    )
    blink_hz: BlinkHz | None = Field(
        None, description="The driver flashes; left out: nothing flashes. Wears relays out."
    )

    @property
    def abilities(self) -> Abilities | None:
        return dict.fromkeys(self.addresses, FLASHING if self.blink_hz else STEADY)

    @property
    def can_confirm(self) -> bool:
        return self.can_read_back

    @property
    def lapses_by_itself(self) -> bool:
        return self.pass_pulse_s is not None

    @property
    def wires(self) -> list[tuple[str, str]]:
        is_pulsed = self.command == "coil" and self.pass_pulse_s is not None
        return [
            (f"addresses.{element}", self.place(self.command, place))
            for element, address in self.addresses.items()
            for place in (address, PULSE_COIL | address if is_pulsed else address)
        ]

    @model_validator(mode="after")
    def _places_of_their_own(self) -> ModbusRelaySettings:
        places = sorted(self.addresses.values())
        if len(set(places)) < len(places):
            raise ValueError("addresses: two elements have the same one")
        # Longer requests would be of the same length as their answer: an echo might pass for one.
        if places[-1] - places[0] >= 16:
            raise ValueError("addresses lie more than 16 apart")
        if self.command == "coil" and not self.can_read_back:
            raise ValueError("can_read_back = false is for register boards; coils are read by FC01")
        if self.pass_pulse_s and self.command == "register" and self.pass_pulse_s != 2.0:
            raise ValueError("pass_pulse_s: register boards count whole seconds; give 2.0")
        return self


# --- Patlite --------------------------------------------------------------------------------------

PHN_ELEMENTS: tuple[Element, ...] = ("red", "yellow", "green", "buzzer")


class PatliteSettings(LightDeviceSettings):
    """A Patlite tower on the network (NHL, NH-FV and alike)."""

    type: Literal["patlite"]
    host: IPv4Address | IPv6Address = Field(
        description="An address, not a name: the lamp waits for no name server."
    )
    tcp_port: Count = Field(10_000, ge=1, le=65_535)
    protocol: Literal["pns", "phn"] = "pns"
    elements: tuple[Element, ...] = Field(
        PHN_ELEMENTS, min_length=1, description="What the tower is fitted with."
    )

    @property
    def abilities(self) -> Abilities | None:
        return dict.fromkeys(self.elements, FLASHING)

    @model_validator(mode="after")
    def _protocol_knows_them(self) -> PatliteSettings:
        unknown = [element for element in self.elements if element not in PHN_ELEMENTS]
        if self.protocol == "phn" and unknown:
            raise ValueError(f"phn knows no {unknown[0]}; use protocol pns")
        return self


# --- GPIO -----------------------------------------------------------------------------------------


class GpioLine(Settings):
    """One output line of the chip."""

    offset: Count = Field(ge=0, description="Line offset on the chip.")
    is_active_low: bool = Field(False, description="True if the element is lit at low level.")
    bias: Literal["as_is", "disabled", "pull_up", "pull_down"] = Field(
        "as_is", description="The chip's own resistor."
    )
    drive: Literal["push_pull", "open_drain", "open_source"] = "push_pull"


class GpioStackLightSettings(LightDeviceSettings):
    """A tower behind transistor outputs, through libgpiod."""

    type: Literal["gpio"]
    chip: str = Field(min_length=1, description="For example /dev/gpiochip0.")
    lines: dict[Element, GpioLine] = Field(min_length=1)
    blink_hz: BlinkHz = 2.0

    @property
    def abilities(self) -> Abilities | None:
        return dict.fromkeys(self.lines, FLASHING)

    @property
    def wires(self) -> list[tuple[str, str]]:
        lines = self.lines.items()
        return [(f"lines.{element}", gpio_line(self.chip, line.offset)) for element, line in lines]


StackLightSettings = Annotated[
    SimulatedStackLightSettings
    | SerialTowerSettings
    | ModbusRelaySettings
    | PatliteSettings
    | GpioStackLightSettings,
    Field(discriminator="type"),
]
