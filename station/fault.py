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
from station.outputs import switch_off


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
    problems = put_out(settings)
    os.close(lock)
    return _end("; ".join(problems), 1) if problems else 0


def _end(problem: str, status: int) -> int:
    sys.stderr.write(f"vqi: {problem}\n")
    return status


def put_out(settings: Configuration) -> list[str]:
    """FAULT, then READY, OK and accept off, straight to the devices, where no lamp process lives:
    they latch what the last one said. Why they may still show it; empty if they do not."""
    problems = []
    light = settings.light
    try:
        with open_stack_light(light.device, light.pattern_table, light.buzzer_s) as device:
            device.show(LightState.FAULT)
    except (DeviceError, RuntimeError) as error:  # RuntimeError: no thread for a driver's flashing
        problems.append(f"light.device: {error}")
    return problems + switch_off(settings)


if __name__ == "__main__":
    sys.exit(main())
