"""The base of every driver's settings, and their numbers."""

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
