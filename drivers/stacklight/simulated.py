"""A stack light without a device, for whoever watches the station."""

from __future__ import annotations

from drivers.stacklight import LightState, StackLight
from drivers.stacklight.settings import LightPattern, SimulatedStackLightSettings


class SimulatedStackLight(StackLight):
    """Takes every state at once and remembers it."""

    can_confirm = True
    description = "simulated stack light"

    def __init__(
        self, settings: SimulatedStackLightSettings, patterns: dict[LightState, LightPattern]
    ) -> None:
        self._patterns = patterns
        self.shown: LightState | None = None
        self.lit: LightPattern | None = None
        """Elements that are lit; None before the first `show`."""

    def show(self, state: LightState) -> bool:
        self.lit = dict(self._patterns[state])
        self.shown = state
        return True

    def close(self) -> None:
        """Nothing to release."""
