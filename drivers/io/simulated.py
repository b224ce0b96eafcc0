"""Digital I/O without a wire, for a station without hardware."""

from __future__ import annotations

import time
from collections.abc import Mapping

from drivers.io import DigitalIo
from drivers.io.settings import SimulatedIoSettings


class SimulatedIo(DigitalIo):
    """Takes everything at once and remembers it; times its pulses."""

    times_pulses = True

    def __init__(self, settings: SimulatedIoSettings) -> None:
        self.description = f"simulated I/O, {len(settings.outputs)} outputs"
        self._ends_ns: dict[str, int | None] = dict.fromkeys(settings.outputs, 0)
        """When an output goes off; None: not by itself."""
        self.levels: dict[str, bool] = dict.fromkeys(settings.inputs, False)
        """What its inputs are to read."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._ends_ns)

    @property
    def lit(self) -> dict[str, bool]:
        """Level of each output now."""
        now_ns = time.monotonic_ns()
        return {name: end is None or end > now_ns for name, end in self._ends_ns.items()}

    def write(self, levels: Mapping[str, bool]) -> bool:
        for name, is_on in levels.items():
            self._ends_ns[name] = None if is_on else 0
        return True

    def pulse(self, output: str, seconds: float) -> bool:
        self._ends_ns[output] = time.monotonic_ns() + int(seconds * 1e9)
        return True

    def read(self) -> dict[str, bool]:
        return dict(self.levels)

    def close(self) -> None:
        """Nothing to release."""
