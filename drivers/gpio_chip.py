"""What the drivers on GPIO lines have in common: words for a chip that does not give its lines."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from drivers.errors import DeviceBusy, DeviceError, DeviceNotFound, DeviceRefused


def open_error(chip: str, offsets: Iterable[int], error: Exception) -> DeviceError:
    """For what libgpiod raised when the lines were requested."""
    number, lines = getattr(error, "errno", None), ", ".join(map(str, offsets))
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("gpiochip*"))) or "none"
        return DeviceNotFound(f"no GPIO chip {chip}; found: {found}")
    if number == errno.EBUSY:
        return DeviceBusy(f"{chip}: a line of {lines} is held by another process; stop that one")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceRefused(f"no permission for {chip}; join the group gpio")
    return DeviceRefused(f"{chip} does not give lines {lines}: {error}")
