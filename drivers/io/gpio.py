"""Digital I/O on lines of this machine, through libgpiod v2.

Whether an output keeps its level after the process has died is up to the chip: wire it so that a
line at rest is the safe side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from drivers.errors import DeviceLost, DeviceTimeout, DriverMissing
from drivers.gpio_chip import open_error
from drivers.io import DigitalIo
from drivers.io.settings import GpioIoLine, GpioIoSettings

try:
    import gpiod
    from gpiod.line import Bias, Direction, Value
except ImportError as _error:  # pragma: no cover - gpiod is a base dependency
    raise DriverMissing("gpio needs libgpiod's Python binding: pip install gpiod") from _error


class GpioIo(DigitalIo):
    """One request holds all lines. Outputs are requested as they are and driven, all of them, from
    the first `write` on; those that it does not name go off then."""

    def __init__(
        self,
        settings: GpioIoSettings,
        request_lines: Callable[..., Any] = gpiod.request_lines,
    ) -> None:
        self._settings = settings
        count = len(settings.outputs) + len(settings.inputs)
        self.description = f"I/O at {settings.chip}, {count} lines"
        self._levels: dict[str, bool] = dict.fromkeys(settings.outputs, False)
        self._is_driven = False
        try:
            self._request = request_lines(
                settings.chip, consumer="vqi", config=self._line_settings(Direction.AS_IS)
            )
        except (OSError, ValueError) as error:
            lines = [*settings.outputs.values(), *settings.inputs.values()]
            offsets = [line.offset for line in lines]
            raise open_error(settings.chip, offsets, error) from error

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._settings.outputs)

    def write(self, levels: Mapping[str, bool]) -> bool:
        self._levels |= levels
        try:
            if self._is_driven:
                self._request.set_values({self._offset(n): _value(on) for n, on in levels.items()})
            else:
                self._request.reconfigure_lines(self._line_settings(Direction.OUTPUT))
                self._is_driven = True
            found = self._request.get_values([self._offset(name) for name in levels])
        except (OSError, gpiod.RequestReleasedError) as error:
            raise DeviceLost(f"{self.description}: gone ({error})") from error
        wrong = [n for n, level in zip(levels, found, strict=True) if level != _value(levels[n])]
        if wrong:
            raise DeviceTimeout(
                f"{self.description}: {', '.join(wrong)} read back wrong; check the wiring for a "
                "short circuit"
            )
        return True

    def pulse(self, output: str, seconds: float) -> bool:
        return self.write({output: True})

    def read(self) -> dict[str, bool]:
        names = list(self._settings.inputs)
        try:
            found = self._request.get_values([self._settings.inputs[n].offset for n in names])
        except (OSError, gpiod.RequestReleasedError) as error:
            raise DeviceLost(f"{self.description}: gone ({error})") from error
        return {name: level is Value.ACTIVE for name, level in zip(names, found, strict=True)}

    def close(self) -> None:
        with contextlib.suppress(OSError, gpiod.RequestReleasedError):
            self._request.release()

    def _offset(self, output: str) -> int:
        return self._settings.outputs[output].offset

    def _line_settings(self, direction: Direction) -> dict[Any, Any]:
        """`direction` of the outputs; inputs are inputs from the start."""
        lines = {
            line.offset: _settings_of(line, direction, self._levels[name])
            for name, line in self._settings.outputs.items()
        }
        for line in self._settings.inputs.values():
            lines[line.offset] = _settings_of(line, Direction.INPUT, False)
        return lines


def _settings_of(line: GpioIoLine, direction: Direction, is_on: bool) -> Any:
    return gpiod.LineSettings(
        direction=direction,
        active_low=line.is_active_low,
        bias=Bias[line.bias.upper()],
        output_value=_value(is_on),
    )


def _value(is_on: bool) -> Value:
    return Value.ACTIVE if is_on else Value.INACTIVE
