"""Reading one grey picture from a file that nobody vouches for."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 200_000_000
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
        if not path.is_file():
            raise PictureError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
        if path.stat().st_size == 0:
            raise PictureError(f"{path}: the file is empty")
        with warnings.catch_warnings():
            # Pillow's own limit only warns; ours is checked on the header below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as picture:
                _check_header(path, picture)
                picture.load()
                return _grey(path, picture)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path}: not a picture ({', '.join(_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: too large: {MAX_PIXELS} pixels are allowed") from error
    except PictureError:
        raise
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: damaged: {error}") from error


def _check_header(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{path}: {width} x {height} is too large: {MAX_PIXELS} pixels are allowed"
        )
    if picture.mode in _DEEP_MODES:
        raise PictureError(f"{path}: deeper than 8 bits; convert it to 8-bit grey")
    if picture.mode not in ("L", "RGB"):
        raise PictureError(f"{path}: pixels of kind {picture.mode}; convert it to 8-bit grey")


def _grey(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(picture, np.uint8)
    if pixels.ndim == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise PictureError(f"{path}: in colour; convert it to 8-bit grey")
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels)
