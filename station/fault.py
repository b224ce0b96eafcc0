"""`python -m station.fault`: what the lamp's unit runs once its process has ended, however it did.

FAULT, then READY, OK and accept off, straight to the devices, which latch. A program of its own
because every tenth of a second counts here: it imports what it needs and no more.
"""

from __future__ import annotations

import os
import sys

from drivers.errors import DeviceError
from drivers.stacklight import LightState, open_stack_light
from station.config import EX_CONFIG, ConfigError, Configuration, load_configuration
from station.lock import LAMP_LOCK, take_lock


def main() -> int:
    """For the configuration that `VQI_CONFIG` names. Exit status 0; 1 a lamp process lives, or a
    device did not take it; 78 bad configuration."""
    try:
        settings = load_configuration(os.environ["VQI_CONFIG"]).value
    except (ConfigError, KeyError) as error:
        return _end(str(error), EX_CONFIG)
    lock = take_lock(settings.station.runtime_dir / LAMP_LOCK)
    if lock is None:
        return _end("a lamp process lives and holds the devices; tell that one", 1)
    problems = [_light_off(settings), _outputs_off(settings)]
    os.close(lock)
    said = "; ".join(problem for problem in problems if problem)
    return _end(said, 1) if said else 0


def _end(problem: str, status: int) -> int:
    sys.stderr.write(f"vqi: {problem}\n")
    return status


def _light_off(settings: Configuration) -> str:
    """Why the light does not show FAULT; empty if it does."""
    try:
        with open_stack_light(settings.light.device, settings.light.pattern_table) as device:
            device.show(LightState.FAULT)
    except DeviceError as error:
        return f"light.device: {error}"
    return ""


def _outputs_off(settings: Configuration) -> str:
    """Why an output may still be on; empty if none is. A Modbus server's words died with it."""
    if settings.plc is None and settings.accept is None:
        return ""
    from station.outputs import Outputs

    outputs = Outputs(settings, lambda: None)
    try:
        outputs.open(is_restart=False)
    except DeviceError as error:
        return str(error)
    finally:
        outputs.close()
    return ""


if __name__ == "__main__":
    sys.exit(main())
