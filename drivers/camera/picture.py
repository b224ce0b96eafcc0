"""Reading one grey picture from a file that nobody vouches for."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 200_000_000
Image.MAX_IMAGE_PIXELS = None  # ours is checked on the header, and says what was found
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class PictureError(ValueError):
    """A file is not a picture that can be used; one line: which file, why."""


def read_grey_picture(path: Path) -> NDArray[np.uint8]:
    """An 8-bit grey picture, uint8 (rows, columns). Raises `PictureError`.

    Size and depth are read from the header before anything is decoded. Colour is refused: how it
    became grey would be a guess; grey stored as three equal channels is taken.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PictureError(f"{path}: not a file")
        if path.stat().st_size == 0:
            raise PictureError(f"{path}: the file is empty")
        with Image.open(path, formats=_FORMATS) as picture:
            _check_header(path, picture)
            picture.load()
            if picture.format == "JPEG":
                _check_jpeg(path)
            return _grey(path, picture)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path}: not a picture ({', '.join(_FORMATS)})") from error
    except PictureError:
        raise
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: damaged: {error}") from error


def _check_header(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    # Three channels take four times the memory on the way.
    limit = MAX_PIXELS if picture.mode == "L" else MAX_PIXELS // 4
    if width * height > limit:
        raise PictureError(f"{path}: {width} x {height} is too large: {limit} pixels are allowed")
    if getattr(picture, "n_frames", 1) > 1:
        raise PictureError(f"{path}: {picture.n_frames} pictures in one file; give it one")  # type: ignore[attr-defined]
    if picture.mode in _DEEP_MODES:
        raise PictureError(f"{path}: deeper than 8 bits; convert it to 8-bit grey")
    if picture.mode not in ("L", "RGB"):
        raise PictureError(f"{path}: pixels of kind {picture.mode}; convert it to 8-bit grey")


def _check_jpeg(path: Path) -> None:
    """libjpeg fills what is damaged with grey and only says so on stderr: an empty place would pass
    for a good one. Raises `PictureError` with what it says."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    sys.stderr.flush()
    kept, said = os.dup(2), os.memfd_create("stderr")
    try:
        os.dup2(said, 2)
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        text = os.pread(said, 500, 0).decode(errors="replace").strip()
        os.close(said)
    if decoded is None or text:
        raise PictureError(f"{path}: damaged: {' '.join(text.split()) or 'it does not decode'}")


def _grey(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(picture, np.uint8)
    if pixels.ndim == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise PictureError(f"{path}: in colour; convert it to 8-bit grey")
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels)
