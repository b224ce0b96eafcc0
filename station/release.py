"""Which release of the program this is."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def program_version() -> str:
    """As installed; `unknown` where the program runs from a folder that nobody installed."""
    try:
        return metadata.version("vqi-station")
    except metadata.PackageNotFoundError:
        return "unknown"
