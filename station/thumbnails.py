"""Small pictures of plates, for what people open: workbooks and reports."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from station.qms import Json

_MOST_BYTES = 32 * 2**20
_MOST_PIXELS = 2**26
"""What is larger is not opened."""


def smallest(images: list[Json]) -> Json | None:
    """The kept picture that is the least work."""
    return min(images, key=lambda image: int(image["bytes"]), default=None)


def thumbnail(path: Path, side_px: int) -> bytes | None:
    """A JPEG whose longer side is `side_px` at most; None where there is no such picture any
    more."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                return None
            picture.draft("L", (2 * side_px, 2 * side_px))
            small = picture.convert("L")
            small.thumbnail((side_px, side_px))
            taken = io.BytesIO()
            small.save(taken, "JPEG", quality=80)
            return taken.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
