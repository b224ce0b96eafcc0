"""The handshake on wires: each word is an output or an input of a digital I/O device.

READY and OK are renewed as pulses where the device times pulses, so that they end by themselves
when this process dies. Where it does not, the PLC must watch the heartbeat output, which changes
with every tick.
"""

from __future__ import annotations

import time

from drivers.io import DigitalIo, open_digital_io
from drivers.plc import PlcInputs, PlcOutputs
from drivers.plc.cyclic import CyclicLink
from drivers.plc.register_map import OUTPUT_BITS
from drivers.plc.settings import IoPlcSettings

_LEASED = ("ready", "ok")
_LEASE_S = 1.0
_RENEW_S = 0.3


class IoLink(CyclicLink):
    """Writes what has changed in each cycle, and everything once a second.

    On wires the words come one after another: a PLC reads them while RESULT_VALID is on.
    """

    def __init__(self, settings: IoPlcSettings, device: DigitalIo | None = None) -> None:
        """`device` None: open the one that `settings` name."""
        super().__init__(settings.cycle_ms / 1000)
        self._settings = settings
        self._device: DigitalIo | None = device or open_digital_io(settings.device)
        self.description = f"PLC on wires: {self._device.description}"
        self.keeps_last_word = not self._device.times_pulses
        self._written: dict[str, bool] = {}
        self._written_at = 0.0
        self._leased_at: dict[str, float] = {}

    @property
    def _is_open(self) -> bool:
        return self._device is not None

    def _open(self) -> None:
        self._device = open_digital_io(self._settings.device)

    def _release(self) -> None:
        self._written, self._leased_at = {}, {}
        if self._device is not None:
            self._device.close()
            self._device = None

    def _tell(self, said: PlcOutputs) -> None:
        assert self._device is not None
        self._write(_levels(said, self._device), self._device)

    def _hear(self) -> PlcInputs:
        assert self._device is not None
        inputs = self._device.read()
        return PlcInputs(
            ack=inputs.get("ack", False),
            ack_hold=inputs.get("ack_hold", False),
            heartbeat=int(inputs.get("heartbeat", False)),
        )

    def _write(self, levels: dict[str, bool], device: DigitalIo) -> None:
        """RESULT_VALID goes off before and on after all others: whoever sees it on sees the words
        of one plate."""
        now = time.monotonic()
        if now - self._written_at > 1.0:
            self._written, self._written_at = {}, now
        changed = {name: on for name, on in levels.items() if self._written.get(name) != on}
        valid = {name: on for name, on in changed.items() if name == "result_valid"}
        others = {name: on for name, on in changed.items() if name != "result_valid"}
        self._switch({name: on for name, on in valid.items() if not on}, device)
        self._switch({name: on for name, on in others.items() if not on}, device)
        self._switch({name: on for name, on in others.items() if on}, device)
        self._renew(levels, device, now)
        self._switch({name: on for name, on in valid.items() if on}, device)
        self._written = levels

    def _switch(self, levels: dict[str, bool], device: DigitalIo) -> None:
        lasting = {name: on for name, on in levels.items() if not (on and self._is_leased(name))}
        if lasting:
            device.write(lasting)

    def _renew(self, levels: dict[str, bool], device: DigitalIo, now: float) -> None:
        for name in _LEASED:
            is_on = levels.get(name, False) and self._is_leased(name)
            if not is_on:
                self._leased_at.pop(name, None)
            elif now - self._leased_at.get(name, -_LEASE_S) >= _RENEW_S:
                device.pulse(name, _LEASE_S)
                self._leased_at[name] = now

    def _is_leased(self, name: str) -> bool:
        return name in _LEASED and not self.keeps_last_word


def _levels(outputs: PlcOutputs, device: DigitalIo) -> dict[str, bool]:
    words = {name: bool(getattr(outputs, name)) for name in OUTPUT_BITS}
    words["heartbeat"] = bool(outputs.heartbeat % 2)
    return {name: words[name] for name in device.outputs}
