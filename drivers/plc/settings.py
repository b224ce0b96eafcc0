"""Settings of each link to a PLC, chosen by `type`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from drivers.io.settings import DigitalIoSettings, input_names, output_names, times_pulses
from drivers.plc.register_map import INPUT_BITS, OUTPUT_BITS
from drivers.settings import Count, Number, Settings


class _PlcSettings(Settings):
    heartbeat_timeout_s: Number | None = Field(
        None,
        ge=0.5,
        le=60,
        description="The PLC's heartbeat must change within this time; left out: not watched.",
    )

    @property
    def wires(self) -> list[tuple[str, str]]:
        """Key and place of each coil or line that other devices could name too."""
        return []


class _RegisterSettings(_PlcSettings):
    has_serials: bool = Field(
        False, description="The PLC reads part serials and writes them into registers of its own."
    )


class ModbusServerSettings(_RegisterSettings):
    """The station is the server, the PLC polls."""

    type: Literal["modbus_server"]
    host: IPv4Address | IPv6Address = Field(
        description="This machine's address in the PLC's network."
    )
    tcp_port: Count = Field(502, ge=1, le=65_535)


class ModbusClientSettings(_RegisterSettings):
    """The station writes into holding registers of the PLC."""

    type: Literal["modbus_client"]
    host: IPv4Address | IPv6Address = Field(
        description="Of the PLC. An address, not a name: the lamp waits for no name server."
    )
    tcp_port: Count = Field(502, ge=1, le=65_535)
    device_id: Count = Field(1, ge=0, le=255)
    write_address: Count = Field(0, ge=0, le=65000, description="First register of our words.")
    read_address: Count = Field(100, ge=0, le=65000, description="First register of its words.")
    cycle_ms: Count = Field(50, ge=10, le=250)


class IoPlcSettings(_PlcSettings):
    """Each word is a wire. Names of the device's outputs and inputs are those of the words."""

    type: Literal["io"]
    device: DigitalIoSettings
    cycle_ms: Count = Field(20, ge=5, le=100)

    @property
    def wires(self) -> list[tuple[str, str]]:
        return [(f"device.{key}", place) for key, place in self.device.wires]

    @model_validator(mode="after")
    def _wires_have_known_names(self) -> IoPlcSettings:
        known = {"outputs": {*OUTPUT_BITS, "heartbeat"}, "inputs": {*INPUT_BITS, "heartbeat"}}
        given = {"outputs": output_names(self.device), "inputs": input_names(self.device)}
        for kind, names in given.items():
            strange = sorted(names - known[kind])
            if strange:
                raise ValueError(
                    f"device.{kind}.{strange[0]} is no word of the handshake; there are: "
                    f"{', '.join(sorted(known[kind]))}"
                )
        if "result_valid" in given["outputs"] and "ok" not in given["outputs"]:
            raise ValueError("device.outputs has result_valid but no ok: not NG never means OK")
        return self

    @model_validator(mode="after")
    def _what_says_good_ends(self) -> IoPlcSettings:
        outputs = output_names(self.device)
        latched = sorted({"ready", "ok"} & outputs)
        if latched and "heartbeat" not in outputs and not times_pulses(self.device):
            raise ValueError(
                f"device.outputs has {latched[0]} but no heartbeat: the device keeps it on when "
                "the station dies; add a heartbeat output and watch it, or take a module that "
                "times pulses (pulse_offset)"
            )
        return self


PlcSettings = Annotated[
    ModbusServerSettings | ModbusClientSettings | IoPlcSettings, Field(discriminator="type")
]
