"""The base of every driver's settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen; unknown keys are errors; every field carries a sentence, bounds and its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
