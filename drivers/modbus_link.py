"""Settings of a Modbus device's link, for every driver that asks one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Self

from pydantic import Field, model_validator

from drivers.settings import Count, Settings


class ModbusLink(Settings):
    """RTU over a serial line (`port`), or TCP (`host`)."""

    port: str | None = Field(None, min_length=1, description="Serial device of the RS-485 line.")
    baud_rate: Count = Field(9600, gt=0)
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    host: IPv4Address | IPv6Address | None = Field(
        None, description="An address, not a name: the lamp waits for no name server."
    )
    tcp_port: Count = Field(502, ge=1, le=65_535)
    framing: Literal["tcp", "rtu"] = Field(
        "tcp", description="rtu: a device or converter that carries RTU frames over TCP."
    )
    device_id: Count = Field(1, ge=1, le=247, description="Unit id of the device.")

    @model_validator(mode="after")
    def _is_over_one_link(self) -> Self:
        if (self.port is None) == (self.host is None):
            raise ValueError("give either port (RTU) or host (TCP)")
        return self

    def place(self, table: str, address: int) -> str:
        """A coil or register of the device, for people; equal texts are the same one."""
        host = getattr(self.host, "ipv4_mapped", None) or self.host
        link = self.port or f"{host} port {self.tcp_port}"
        return f"{table} {address} of device {self.device_id} at {link}"
