"""Stack light behind transistor outputs of this machine, through libgpiod v2.

Whether a line keeps its level after the process has died is up to the chip: wire it so that a
line at rest does not light green.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from drivers.errors import DeviceLost, DriverMissing
from drivers.gpio_chip import open_error
from drivers.stacklight import LightState
from drivers.stacklight.settings import GpioLine, GpioStackLightSettings, LightPattern
from drivers.stacklight.switched import Modes, SwitchedLight

try:
    import gpiod
    from gpiod.line import Bias, Direction, Drive, Value
except ImportError as _error:  # pragma: no cover - gpiod is a base dependency
    raise DriverMissing("gpio needs libgpiod's Python binding: pip install gpiod") from _error


class GpioStackLight(SwitchedLight):
    """One request holds all lines, and one call switches them.

    The lines are requested as they are and driven from the first `show` on.
    """

    can_confirm = True

    def __init__(
        self,
        settings: GpioStackLightSettings,
        patterns: dict[LightState, LightPattern],
        request_lines: Callable[..., Any] = gpiod.request_lines,
    ) -> None:
        self._settings = settings
        self.description = f"stack light at {settings.chip}, {len(settings.lines)} lines"
        try:
            self._request = request_lines(
                settings.chip, consumer="vqi", config=self._line_settings(Direction.AS_IS)
            )
        except (OSError, ValueError) as error:
            offsets = [line.offset for line in settings.lines.values()]
            raise open_error(settings.chip, offsets, error) from error
        self._is_driven = False
        self._levels = {line.offset: Value.INACTIVE for line in settings.lines.values()}
        """By offset; active-low is the kernel's matter."""
        super().__init__(patterns, settings.lines, settings.lines, settings.blink_hz)

    def _switch(self, modes: Modes, deadline_s: float) -> None:
        for element, mode in modes.items():
            level = Value.INACTIVE if mode is None else Value.ACTIVE
            self._levels[self._settings.lines[element].offset] = level
        try:
            if self._is_driven:
                self._request.set_values(self._levels)
            else:
                self._request.reconfigure_lines(self._line_settings(Direction.OUTPUT))
                self._is_driven = True
        except (OSError, gpiod.RequestReleasedError) as error:
            raise self._lost(error) from error

    def _read(self, deadline_s: float) -> Modes:
        try:
            found = self._request.get_values(list(self._levels))
        except (OSError, gpiod.RequestReleasedError) as error:
            raise self._lost(error) from error
        lit = [offset for offset, level in zip(self._levels, found, strict=True) if level.value]
        lines = self._settings.lines.items()
        return {element: "on" if line.offset in lit else None for element, line in lines}

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self._request.release()

    def _lost(self, error: Exception) -> DeviceLost:
        return DeviceLost(f"{self.description}: gone ({error})")

    def _line_settings(self, direction: Direction) -> dict[Any, Any]:
        lines = self._settings.lines.values()
        return {line.offset: self._one_line(line, direction) for line in lines}

    def _one_line(self, line: GpioLine, direction: Direction) -> gpiod.LineSettings:
        if direction is Direction.AS_IS:
            # Only lines with a direction can be given a drive.
            return gpiod.LineSettings(direction=direction, active_low=line.is_active_low)
        return gpiod.LineSettings(
            direction=direction,
            active_low=line.is_active_low,
            bias=Bias[line.bias.upper()],
            drive=Drive[line.drive.upper()],
            output_value=self._levels[line.offset],
        )
