"""How people write which plates they mean, on the command line and in the page's address. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from station.record import rfc3339

Rectangle = tuple[float, float, float, float]
"""Left, leading, right and trailing side, mm from the plate's left leading corner."""


def utc_text(given: str) -> str:
    """A time as `written_at` is written, so that both compare as text. Raises ValueError."""
    try:
        at = datetime.fromisoformat(given)
        return rfc3339(at.replace(tzinfo=at.tzinfo or UTC))
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{given!r} is no time; write it as 2026-11-24 or 2026-11-24T06:00 (UTC), "
            "or with an offset: 2026-11-24T07:00+01:00"
        ) from error


def rectangle(given: str) -> Rectangle:
    """Raises ValueError."""
    try:
        left, leading, right, trailing = (float(part) for part in given.split(","))
    except ValueError:
        left = leading = right = trailing = float("nan")
    if not (left <= right and leading <= trailing):
        raise ValueError(
            f"{given!r} is no rectangle; write its left, leading, right and trailing side in mm "
            "from the plate's left leading corner, as 0,0,120,50"
        )
    return left, leading, right, trailing


def recipe_and_version(given: str) -> tuple[str, int | None]:
    """Raises ValueError."""
    name, colon, version = given.partition(":")
    if colon and not (version.isascii() and version.isdecimal() and len(version) <= 9):
        raise ValueError(f"{given!r}: write a recipe as demo-lgp or demo-lgp:2")
    return name, int(version) if colon else None
