"""A camera's features as a tree: what each is, what it may be, and what it is for (GenApi)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_ACCESS = ("not implemented", "not available", "write", "read", "read/write")
"""By GenApi's EAccessMode."""
_VISIBILITY = ("Beginner", "Expert", "Guru", "Invisible")
_READABLE = (3, 4)
_OWN_CORRECTION = re.compile(r"flat_?field|shading|^ffc|prnu|dsnu|^nuc(enable|mode)", re.IGNORECASE)
"""What makers call it; SFNC has no name for it."""
_SWITCH = re.compile(r"(Enable|Mode|Active)$")
_OFF = (False, None, "Off", "False", "Disabled", "Disable", "None", "Bypass")


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature; None where a kind of feature has no such thing, or it is not available now."""

    category: str
    """`AcquisitionControl`; a category in another is `Outer/Inner`."""
    name: str
    kind: str
    """`Integer`, `Float`, `Boolean`, `Enumeration`, `Command`, `String` or `Register`."""
    access: str
    value: bool | int | float | str | None
    unit: str
    minimum: float | None
    maximum: float | None
    increment: float | None
    choices: tuple[str, ...]
    selectors: tuple[str, ...]
    """Features that choose which one of several this is now."""
    visibility: str
    tooltip: str


def feature_tree(node_map: Any) -> list[Feature]:
    """Every implemented feature of a camera, category by category, as it lists them."""
    return list(_in_category(node_map.get_node("Root"), ""))


def own_corrections(features: list[Feature]) -> list[str]:
    """Switches of the camera's own flat-field correction that are on, as `Name = value`."""
    return [
        f"{feature.name} = {feature.value}"
        for feature in features
        if _OWN_CORRECTION.search(feature.name)
        and _SWITCH.search(feature.name)
        and feature.value not in _OFF
    ]


def _in_category(category: Any, path: str) -> Iterator[Feature]:
    for item in category.features:
        name = str(item.node.name)
        if hasattr(item, "features"):
            yield from _in_category(item, f"{path}/{name}" if path else name)
        elif int(item.node.get_access_mode()) > 0:
            yield _feature(item, path)


def _feature(item: Any, category: str) -> Feature:
    node, access = item.node, int(item.node.get_access_mode())
    kind = type(item).__name__.removeprefix("I")
    is_readable = access in _READABLE
    is_number = kind in ("Integer", "Float") and is_readable
    return Feature(
        category=category,
        name=str(node.name),
        kind=kind,
        access=_ACCESS[access],
        value=_value(item) if is_readable else None,
        unit=str(_ask(item, "unit") or "").strip(),
        minimum=_ask(item, "min") if is_number else None,
        maximum=_ask(item, "max") if is_number else None,
        increment=_ask(item, "inc") if is_number else None,
        choices=tuple(str(name) for name in _ask(item, "symbolics") or ()),
        selectors=tuple(str(selector.node.name) for selector in node.selecting_features),
        visibility=_VISIBILITY[int(node.visibility)],
        tooltip=" ".join(str(node.tooltip).split()),
    )


def _value(item: Any) -> bool | int | float | str | None:
    value = _ask(item, "value")
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def _ask(item: Any, what: str) -> Any:
    """None where the camera does not say: a float without a step, a register that is busy."""
    try:
        return getattr(item, what)
    except Exception:  # noqa: BLE001  a row with a gap is better than no tree
        return None
