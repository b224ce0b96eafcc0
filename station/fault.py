"""`python -m station.fault`: what the lamp's unit runs once its process has ended, however it did.

FAULT, then READY, OK and accept off, straight to the devices, which latch. A program of its own
because every tenth of a second counts here: it imports what it needs and no more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from drivers.errors import DeviceError
from drivers.stacklight import LightState, open_stack_light
from station.config import EX_CONFIG, ConfigError, Configuration, load_configuration
from station.lock import LAMP_LOCK, WAIT_S, take_lock
from station.outputs import switch_off

_REMEMBERED = "lamp.json"


def main() -> int:
    """For the configuration that the lamp process ran with, else the one that `VQI_CONFIG` names.
    Exit status 0; 1 a lamp process lives, or a device did not take it; 78 bad configuration."""
    try:
        settings = _settings()
    except (ConfigError, KeyError) as error:
        return _end(str(error), EX_CONFIG)
    problems = put_out_unheld(settings, WAIT_S)
    if problems is None:
        return _end("a lamp process lives and holds the devices; tell that one", 1)
    return _end("; ".join(problems), 1) if problems else 0


def _end(problem: str, status: int) -> int:
    sys.stderr.write(f"vqi: {problem}\n")
    return status


def _settings() -> Configuration:
    """Raises `ConfigError`, KeyError."""
    folder = os.environ.get("RUNTIME_DIRECTORY")  # of the unit
    settings = remembered(Path(folder)) if folder else None
    if settings is None:
        settings = load_configuration(os.environ["VQI_CONFIG"]).value
        settings = remembered(settings.station.runtime_dir) or settings
    return settings


def remember(settings: Configuration) -> None:
    """What a lamp process runs with: whoever puts out its devices must not depend on a file that a
    person may be editing. Raises OSError, and then nothing is remembered."""
    file = settings.station.runtime_dir / _REMEMBERED
    new = file.with_suffix(".new")
    try:
        new.write_text(settings.model_dump_json(exclude_unset=True))
        new.rename(file)
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        raise


def remembered(runtime_dir: Path) -> Configuration | None:
    """What the last lamp process of this runtime folder ran with; None if that is unknown."""
    try:
        return Configuration.model_validate_json((runtime_dir / _REMEMBERED).read_bytes())
    except (OSError, ValidationError):
        return None


def put_out_unheld(settings: Configuration, wait_s: float) -> list[str] | None:
    """As `put_out`, unless a lamp process holds the devices after `wait_s`: None then.

    A lock that cannot be opened, on a disk that became read-only say, keeps no green alight: if a
    lamp process lives all the same, FAULT is the safe side. One that this user may not open is
    another user's, who keeps the light.
    """
    path = settings.station.runtime_dir / LAMP_LOCK
    try:
        lock = take_lock(path, wait_s)
    except PermissionError as error:
        return [f"{path}: {error.strerror}"]
    except OSError as error:
        unknown = f"{path}: {error.strerror}; put out without knowing whether a lamp process lives"
        return [unknown, *put_out(settings)]
    if lock is None:
        return None
    try:
        return put_out(settings)
    finally:
        os.close(lock)


def put_out(settings: Configuration) -> list[str]:
    """FAULT, then READY, OK and accept off, straight to the devices, where no lamp process lives:
    they latch what the last one said. Why they may still show it; empty if they do not."""
    problems = []
    light = settings.light
    try:
        with open_stack_light(light.device, light.pattern_table, light.buzzer_s) as device:
            device.show(LightState.FAULT)
    except DeviceError as error:
        problems.append(f"light.device: {error}")
    return problems + switch_off(settings)


if __name__ == "__main__":
    sys.exit(main())
