"""Stack light behind transistor outputs of this machine, through libgpiod v2.

Whether a line keeps its level after the process has died is up to the chip: wire it so that a
line at rest does not light green.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from drivers.errors import (
    DeviceBusy,
    DeviceError,
    DeviceLost,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimeout,
    DriverMissing,
)
from drivers.stacklight import LightState, StackLight
from drivers.stacklight.settings import GpioStackLightSettings, LightPattern

try:
    import gpiod
    from gpiod.line import Direction, Value
except ImportError as _error:  # pragma: no cover - gpiod is a base dependency
    raise DriverMissing("gpio needs libgpiod's Python binding: pip install gpiod") from _error


class GpioStackLight(StackLight):
    """One request holds all lines; a thread flashes, as the outputs cannot by themselves.

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
        self._patterns = patterns
        self.description = f"stack light at {settings.chip}, {len(settings.lines)} lines"
        try:
            self._request = request_lines(
                settings.chip, consumer="vqi", config=self._line_settings(Direction.AS_IS, None)
            )
        except (OSError, ValueError) as error:
            raise _open_error(settings, error) from error
        self._is_driven = False
        self._pattern: LightPattern = {}
        self._is_flash_lit = True
        self._problem: Exception | None = None
        self._is_closed = False
        self._lines = threading.Condition()
        """Guards everything above; notified when there is something to flash, and at close."""
        self._flasher = threading.Thread(target=self._flash, name="flash", daemon=True)
        self._flasher.start()

    def show(self, state: LightState) -> bool:
        with self._lines:
            pattern = self._patterns[state]
            if pattern != self._pattern:
                self._is_flash_lit = True
            self._pattern = pattern
            problem, self._problem = self._problem, None
            try:
                if problem is not None:
                    raise problem
                self._drive()
                self._confirm()
            except DeviceError:
                raise
            except (OSError, gpiod.RequestReleasedError) as error:
                raise DeviceLost(f"{self.description}: gone ({error})") from error
            self._lines.notify()
            return True

    def close(self) -> None:
        with self._lines:
            self._is_closed = True
            self._lines.notify()
        self._flasher.join()
        with contextlib.suppress(OSError):
            self._request.release()

    def _wanted(self) -> dict[int, Value]:
        """Level of each line now, by offset; active-low is the kernel's matter."""
        wanted = {}
        for element, line in self._settings.lines.items():
            mode = self._pattern.get(element)
            is_lit = mode == "on" or (mode == "blink" and self._is_flash_lit)
            wanted[line.offset] = Value.ACTIVE if is_lit else Value.INACTIVE
        return wanted

    def _drive(self) -> None:
        wanted = self._wanted()
        if self._is_driven:
            self._request.set_values(wanted)
            return
        self._request.reconfigure_lines(self._line_settings(Direction.OUTPUT, wanted))
        self._is_driven = True

    def _confirm(self) -> None:
        wanted = self._wanted()
        found = self._request.get_values(list(wanted))
        wrong = [
            element
            for (element, line), level in zip(self._settings.lines.items(), found, strict=True)
            if level != wanted[line.offset]
        ]
        if wrong:
            raise DeviceTimeout(
                f"{self.description}: {', '.join(wrong)} read back wrong; check the wiring for a "
                f"short circuit"
            )

    def _flash(self) -> None:
        half_period_s = 0.5 / self._settings.blink_hz
        with self._lines:
            while not self._is_closed:
                if "blink" not in self._pattern.values() or self._problem is not None:
                    self._lines.wait()
                    continue
                is_changed = self._lines.wait_for(
                    partial(self._has_changed, self._pattern), half_period_s
                )
                if is_changed:
                    continue
                self._is_flash_lit = not self._is_flash_lit
                try:
                    self._drive()
                except (OSError, gpiod.RequestReleasedError) as error:
                    self._problem = error  # the next show raises it

    def _has_changed(self, pattern: LightPattern) -> bool:
        return self._is_closed or self._pattern is not pattern

    def _line_settings(
        self, direction: Direction, levels: dict[int, Value] | None
    ) -> dict[Any, Any]:
        return {
            line.offset: gpiod.LineSettings(
                direction=direction,
                active_low=line.is_active_low,
                output_value=levels[line.offset] if levels else Value.INACTIVE,
            )
            for line in self._settings.lines.values()
        }


def _open_error(settings: GpioStackLightSettings, error: Exception) -> DeviceError:
    number = getattr(error, "errno", None)
    offsets = ", ".join(str(line.offset) for line in settings.lines.values())
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        found = ", ".join(sorted(str(chip) for chip in Path("/dev").glob("gpiochip*"))) or "none"
        return DeviceNotFound(f"no GPIO chip {settings.chip}; found: {found}")
    if number == errno.EBUSY:
        return DeviceBusy(
            f"{settings.chip}: a line of {offsets} is held by another process; stop that one"
        )
    if number in (errno.EACCES, errno.EPERM):
        return DeviceRefused(f"no permission for {settings.chip}; join the group gpio")
    return DeviceRefused(f"{settings.chip} does not give lines {offsets}: {error}")
