"""The base of every driver's settings, and their numbers."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Settings(BaseModel):
    """Frozen; unknown keys are errors; numbers are finite; every field carries a sentence, bounds
    and its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _refuse_text(value: Any) -> Any:
    if isinstance(value, str | bool):
        raise ValueError("a number is wanted, without quotes and in the unit of its name")
    return value


Number = Annotated[float, BeforeValidator(_refuse_text)]
"""Never text that looks like a number, never true or false."""
Count = Annotated[int, BeforeValidator(_refuse_text)]
"""The same, whole."""


def shared_wire(wires: Iterable[tuple[str, str]]) -> str:
    """Which two keys are one wire, for people; empty if each has its own. `wires`: key and place of
    each; equal places are the same wire. What was said last is on it, and its read-back confirms
    both."""
    taken: dict[str, str] = {}
    for key, place in wires:
        first = taken.setdefault(place, key)
        if first != key:
            return f"{first} and {key} are both {place}; give each its own"
    return ""


def gpio_line(chip: str, offset: int) -> str:
    """For people; equal texts are the same line."""
    return f"line {offset} of {chip}"
