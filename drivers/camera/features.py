"""A camera's features (GenICam SFNC): applied in an order that their dependences allow, read back.

A feature that a selector chooses is named with it: `TriggerMode[LineStart]`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivers.errors import DeviceRefused

Value = bool | int | float | str

_ORDER = (
    "UserSet",
    "Device",
    "Sim",  # what our simulator shows bounds what its camera may be set to
    "Sensor",
    "Binning",
    "Decimation",
    "Width",
    "Height",
    "Offset",
    "PixelFormat",
    "Line",
    "Encoder",
    "Counter",
    "Timer",
    "AcquisitionMode",
    "ExposureMode",
    "ExposureTime",
    "AcquisitionLineRate",
    "TriggerSource",
    "TriggerActivation",
    "TriggerDelay",
    "TriggerDivider",
    "TriggerMode",
    "Acquisition",
    "Exposure",
    "Gain",
    "BlackLevel",
    "ChunkModeActive",
    "Chunk",
)
"""Beginnings of names: what bounds another feature stands before it, what arms a trigger after
what it is armed with. The rest follows in the order of the configuration."""
_NAME = re.compile(r"^(\w+)(?:\[(\w+)\])?$")
_ROUNDING = 0.01
"""A float that a camera moves by more was not rounded but changed."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Features as the camera says they are after all were set."""

    values: dict[str, str]
    rounded: dict[str, str]
    """Of those that the camera rounded: what was asked for."""


def apply_features(node_map: Any, wanted: Mapping[str, Value], camera: str) -> Applied:
    """Set features and read them back. Raises `DeviceRefused`.

    What is refused is tried again after the others, for one feature's limits hang on another's.
    """
    pending = sorted(wanted, key=_place)
    while pending:
        refused = {}
        for name in pending:
            try:
                _write(node_map, name, wanted[name], camera)
            except DeviceRefused as error:
                refused[name] = error
        if len(refused) == len(pending):
            raise next(iter(refused.values()))
        pending = list(refused)
    # At the end, because setting one feature can move another.
    found = {name: _read(node_map, name) for name in wanted}
    return Applied(
        {name: str(value) for name, value in found.items()},
        _rounded(wanted, found, camera),
    )


def read_feature(node_map: Any, name: str) -> Any:
    """A feature's value; None where the camera has no such feature or does not give it now."""
    try:
        return _read(node_map, name)
    except Exception:  # noqa: BLE001  not implemented, not available, not readable
        return None


def read_in(
    node_map: Any, name: str, factors: Mapping[str, float], limit: str = "value"
) -> float | None:
    """A number in a unit of ours: `factors` holds what a camera's unit is multiplied by. `limit`
    "max" gives the most that it may be.

    Vendors give rates in Hz or kHz and times in us, ms or s; a unit that is not told is taken to be
    the first of `factors`.
    """
    if read_feature(node_map, name) is None:
        return None
    value = getattr(node_map.get_node(name), limit)
    unit = str(node_map.get_node(name).unit).strip()
    return float(value) * factors.get(unit, next(iter(factors.values())))


HERTZ = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6}
MICROSECONDS = {"us": 1.0, "µs": 1.0, "ns": 1e-3, "ms": 1e3, "s": 1e6}


def _place(name: str) -> int:
    """Where a feature stands in the order; `sorted` keeps the configuration's among equals."""
    fits = [place for place, start in enumerate(_ORDER) if name.startswith(start)]
    # The longest beginning decides: TriggerMode, not Trigger.
    return max(fits, key=lambda place: len(_ORDER[place]), default=len(_ORDER))


def _node(node_map: Any, name: str) -> Any:
    """A feature's node, its selector set. Raises `DeviceRefused`."""
    match = _NAME.match(name)
    if match is None:
        raise DeviceRefused(f"{name!r} is no feature's name; write Name or Name[Selected]")
    bare, selected = match.groups()
    node = node_map.get_node(bare) if node_map.has_node(bare) else None
    if node is None:
        raise DeviceRefused(f"there is no feature {bare}")
    if selected is not None:
        _select(node, bare, selected)
    return node


def _select(node: Any, name: str, selected: str) -> None:
    selectors = list(node.node.selecting_features)
    if not selectors:
        raise DeviceRefused(f"nothing selects {name}; leave out [{selected}]")
    selectors[0].value = int(selected) if selected.isdecimal() else selected


def _write(node_map: Any, name: str, value: Value, camera: str) -> None:
    try:
        _node(node_map, name).value = value
    except DeviceRefused as error:
        raise DeviceRefused(f"camera {camera}: {error}") from error
    except Exception as error:
        raise DeviceRefused(
            f"camera {camera} refuses {name} = {value!r}: {error}{_limits(node_map, name)}"
        ) from error


def _read(node_map: Any, name: str) -> Any:
    return _node(node_map, name).value


def _limits(node_map: Any, name: str) -> str:
    """What the camera would take, as far as it says so."""
    try:
        node = _node(node_map, name)
        if hasattr(node, "symbolics"):
            return f"; it takes {', '.join(node.symbolics)}"
        return f"; it takes {node.min:g} to {node.max:g} {node.unit}".rstrip()
    except Exception:  # noqa: BLE001  a hint only
        return ""


def _rounded(wanted: Mapping[str, Value], found: Mapping[str, Any], camera: str) -> dict[str, str]:
    """Numbers that the camera rounded. Raises `DeviceRefused` for what it changed."""
    rounded = {}
    for name, value in wanted.items():
        if is_same_value(value, found[name]):
            continue
        is_number = isinstance(found[name], float) and not isinstance(value, str)
        if not (is_number and abs(found[name] - float(value)) <= _ROUNDING * abs(float(value))):
            raise DeviceRefused(
                f"camera {camera}: {name} is {found[name]!r} after setting it to {value!r}"
            )
        rounded[name] = str(value)
    return rounded


def is_same_value(value: Value, found: Any) -> bool:
    """Whether a camera took a value as it is: 250 and 250.0 are one, also as text."""
    with contextlib.suppress(ValueError):
        found = float(found) if isinstance(value, int | float) else found
    if isinstance(found, float) and not isinstance(value, str):
        return abs(float(found) - float(value)) <= 1e-9 * max(1.0, abs(float(value)))
    return str(found) == str(value)
