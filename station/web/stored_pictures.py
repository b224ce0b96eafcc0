"""Pictures of the log as files: opened by their recorded name alone, held against the record before
anything of them is shown, and read band by band.

A stored picture is named by its content. What lies under that name may have been changed since, so
every file is hashed once (again when it was touched) and one that is not what was recorded is never
shown.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import numpy as np
from isal import igzip_lib, isal_zlib
from PIL import Image

from station.images import Pixels
from station.record import PICTURE_NAME, ImageBody

MOST_PIXELS = 2**29
"""What is larger is not opened: twice a plate of 16,384 x 16,384 px."""
_MOST_PREVIEW_PIXELS = 2**22
_BAND_BYTES = 128 * 2**20
"""Decoded bands that are remembered: what a screen of 4096 scan line pixels needs, ten times."""
_MOST_BANDS = 2**16
_SAMPLE_BAND_BYTES = 2**20
"""Each band is needed once, to make the picture small."""
_REMEMBERED_FILES = 512
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_8 = struct.pack(">BBBBB", 8, 0, 0, 0, 0)
"""Of IHDR: depth, colour type, compression, filter method, not interlaced (PNG, 11.2.1)."""
_SUB = 1
_READ_BYTES = 2**20

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Trouble(StrEnum):
    """Why a picture is not shown."""

    MISSING = "missing"
    """There is no such file, and the log does not say why."""
    REMOVED = "removed"
    """A tombstone of the log says which rule removed it."""
    ALTERED = "altered"
    """Its bytes are not those that were recorded."""
    UNREADABLE = "unreadable"
    """Its bytes are those that were recorded, and they are no picture that can be opened here."""
    NOT_KEPT = "not_kept"
    """The record names no such picture."""


class PictureError(Exception):
    """A picture is not shown; `trouble` says why, `found_sha256` what was found in place of it."""

    def __init__(self, trouble: Trouble, text: str, found_sha256: str = "") -> None:
        super().__init__(text)
        self.trouble = trouble
        self.found_sha256 = found_sha256


class Bounded(Generic[Key, Value]):
    """What was last used, up to a number of bytes; for several threads."""

    def __init__(self, most_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.bytes = 0
        self._most_bytes = most_bytes
        self._size_of = size_of
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            value = self._kept.get(key)
            if value is not None:
                self._kept.move_to_end(key)
            return value

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            self.bytes += self._size_of(value) - (0 if before is None else self._size_of(before))
            self._kept[key] = value
            while self.bytes > self._most_bytes and len(self._kept) > 1:
                self.bytes -= self._size_of(self._kept.popitem(last=False)[1])


@dataclass(frozen=True, slots=True)
class BandIndex:
    """Where each band of an evidence picture lies in its file."""

    columns: int
    rows: int
    band_rows: int
    """Scan lines of each band; the last has what is left."""
    places: tuple[tuple[int, int], ...]
    """Offset and length of each band's bytes."""

    def lines_of(self, band: int) -> int:
        return min(self.band_rows, self.rows - band * self.band_rows)


class StoredPictures:
    """The pictures of one log's folder."""

    def __init__(self, folder: Path, band_bytes: int = _BAND_BYTES) -> None:
        self.folder = folder
        self._checked: Bounded[tuple[object, ...], str] = Bounded(_REMEMBERED_FILES, lambda _: 1)
        self._indexes: Bounded[str, BandIndex] = Bounded(_REMEMBERED_FILES, lambda _: 1)
        self._bands: Bounded[tuple[str, int], Pixels] = Bounded(band_bytes, lambda b: b.nbytes)
        self._previews: Bounded[str, Pixels] = Bounded(_BAND_BYTES // 8, lambda p: p.nbytes)

    def open(self, image: ImageBody) -> BinaryIO:
        """The picture's file, whose bytes are those that were recorded. Raises `PictureError`."""
        file = self._found(image)
        try:
            found = self._sha256_of(file)
        except OSError as error:
            file.close()
            raise PictureError(Trouble.UNREADABLE, f"{image.path}: {error.strerror}") from error
        if found != image.sha256:
            file.close()
            raise PictureError(
                Trouble.ALTERED,
                f"{image.path}: recorded {image.sha256}, found {found}",
                found,
            )
        return file

    def _found(self, image: ImageBody) -> BinaryIO:
        return _open_beneath(self.folder, image.path)

    def _sha256_of(self, file: BinaryIO) -> str:
        """Of a file that is open; once for each state that it was in."""
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._checked.get(key)
        if known is None:
            digest = hashlib.sha256()
            while data := file.read(_READ_BYTES):
                digest.update(data)
            known = digest.hexdigest()
            self._checked.put(key, known)
        file.seek(0)
        return known

    def source(self, image: ImageBody) -> PixelSource:
        """The pixels of a picture, none of them decoded yet. Raises `PictureError`."""
        if image.width_px * image.height_px > MOST_PIXELS:
            size = f"{image.width_px} x {image.height_px} px"
            raise PictureError(Trouble.UNREADABLE, f"{size}: larger than what is opened here")
        with self.open(image) as file:
            if image.path.endswith(".jpg"):
                return ArraySource(self._preview(image, file))
            return BandSource(self, image, self._index(image, file))

    def _index(self, image: ImageBody, file: BinaryIO) -> BandIndex:
        index = self._indexes.get(image.sha256)
        if index is None:
            index = read_index(file)
            if (index.columns, index.rows) != (image.width_px, image.height_px):
                raise PictureError(Trouble.UNREADABLE, f"{image.path}: not of the recorded size")
            self._indexes.put(image.sha256, index)
        return index

    def _preview(self, image: ImageBody, file: BinaryIO) -> Pixels:
        known = self._previews.get(image.sha256)
        if known is None:
            known = _decoded_preview(image, file)
            self._previews.put(image.sha256, known)
        return known

    def band(self, image: ImageBody, index: BandIndex, band: int) -> Pixels:
        """One band, uint8 (band rows, columns). Raises `PictureError`."""
        key = (image.sha256, band)
        known = self._bands.get(key)
        if known is None:
            with self.open(image) as file:
                known = read_band_at(file, index, band)
            self._bands.put(key, known)
        return known


class SamplePictures(StoredPictures):
    """Evidence pictures that lie in one folder under other names: a recipe's limit samples."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _SAMPLE_BAND_BYTES)
        self._names: dict[str, str] = {}

    def image(self, sha256: str, name: str) -> ImageBody:
        """The picture with this content under this name. Raises `PictureError`."""
        self._names[sha256] = name
        said = {"role": "evidence", "path": f"{sha256[:2]}/{sha256}.png", "sha256": sha256}
        unread = ImageBody.model_validate({**said, "bytes": 0, "width_px": 0, "height_px": 0})
        with self.open(unread) as file:
            columns, rows = _size_of(file)
        return unread.model_copy(update={"width_px": columns, "height_px": rows})

    def _found(self, image: ImageBody) -> BinaryIO:
        name = self._names[image.sha256]
        if "/" in name:
            raise PictureError(Trouble.UNREADABLE, f"{name[:100]!r} is no file's name")
        return _open_at(self.folder, name)


class PixelSource:
    """Pixels of a picture, read in parts."""

    columns: int
    rows: int

    def block(self, x: int, y: int, right: int, bottom: int) -> Pixels:
        """Pixels x to right and y to bottom, ends exclusive and within the picture."""
        raise NotImplementedError


class ArraySource(PixelSource):
    """A picture that is small enough to be decoded whole."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.rows, self.columns = pixels.shape

    def block(self, x: int, y: int, right: int, bottom: int) -> Pixels:
        return self._pixels[y:bottom, x:right]


class BandSource(PixelSource):
    """An evidence picture, of which the bands that are asked for are decoded."""

    def __init__(self, pictures: StoredPictures, image: ImageBody, index: BandIndex) -> None:
        self._pictures = pictures
        self._image = image
        self._index = index
        self.columns, self.rows = index.columns, index.rows

    def block(self, x: int, y: int, right: int, bottom: int) -> Pixels:
        step = self._index.band_rows
        parts = []
        for band in range(y // step, -(-bottom // step)):
            top = band * step
            pixels = self._pictures.band(self._image, self._index, band)
            parts.append(pixels[max(0, y - top) : bottom - top, x:right])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _open_beneath(folder: Path, name: str) -> BinaryIO:
    """A regular file in a folder's folder, no symbolic link on the way (openat(2), O_NOFOLLOW)."""
    if not re.fullmatch(PICTURE_NAME, name):
        raise PictureError(Trouble.UNREADABLE, f"{name[:100]!r} is no picture's name")
    return _open_at(folder / name[:2], name[3:])


def _open_at(folder: Path, name: str) -> BinaryIO:
    """A regular file in a folder, neither a symbolic link. Raises `PictureError`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        parent = os.open(folder, flags | os.O_DIRECTORY)
        try:
            descriptor = os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError as error:
        raise PictureError(Trouble.MISSING, f"{name}: no such file") from error
    except OSError as error:
        raise PictureError(Trouble.UNREADABLE, f"{name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PictureError(Trouble.UNREADABLE, f"{name}: not a file")
    return os.fdopen(descriptor, "rb")


def read_index(file: BinaryIO) -> BandIndex:
    """Of an evidence picture, its first band's scan lines counted. Raises `PictureError`."""
    columns, rows = _size_of(file)
    places = []
    while head := file.read(8):
        if len(head) < 8:
            raise PictureError(Trouble.UNREADABLE, "the file ends within a chunk")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            places.append((file.tell(), length))
        if kind == b"IEND" or len(places) > _MOST_BANDS:
            break
        file.seek(length + 4, os.SEEK_CUR)
    if not places:
        raise PictureError(Trouble.UNREADABLE, "no band of pixels")
    whole = BandIndex(columns, rows, rows, tuple(places))
    band_rows = len(_unpacked(file, whole, 0)) // (columns + 1)
    if band_rows < 1 or -(-rows // band_rows) != len(places):
        raise PictureError(Trouble.UNREADABLE, "not written in bands of equal height")
    return BandIndex(columns, rows, band_rows, tuple(places))


def _size_of(file: BinaryIO) -> tuple[int, int]:
    """Columns and rows that the header says, below the cap; the file stands behind it."""
    start = file.read(33)
    if len(start) < 33 or start[:8] != _SIGNATURE or start[12:16] != b"IHDR":
        raise PictureError(Trouble.UNREADABLE, "not a PNG")
    columns, rows = struct.unpack(">II", start[16:24])
    if start[24:29] != _GREY_8 or not 0 < columns * rows <= MOST_PIXELS:
        raise PictureError(Trouble.UNREADABLE, f"{columns} x {rows} px: not an evidence picture")
    return columns, rows


def read_band_at(file: BinaryIO, index: BandIndex, band: int) -> Pixels:
    """One band, found by the index. Raises `PictureError`."""
    raw = np.frombuffer(_unpacked(file, index, band), np.uint8)
    lines = index.lines_of(band)
    if len(raw) != lines * (index.columns + 1):
        raise PictureError(Trouble.UNREADABLE, f"band {band} is not {lines} scan lines")
    rows = raw.reshape(lines, -1)
    if not (rows[:, 0] == _SUB).all():
        raise PictureError(Trouble.UNREADABLE, f"band {band} is filtered in another way")
    return np.cumsum(rows[:, 1:], axis=1, dtype=np.uint8)


def _unpacked(file: BinaryIO, index: BandIndex, band: int) -> bytes:
    """A band's bytes; one that is packed more tightly than its scan lines can be is given up."""
    offset, length = index.places[band]
    file.seek(offset)
    data = file.read(length)
    most = index.lines_of(band) * (index.columns + 1)
    try:
        unpacker = isal_zlib.decompressobj(wbits=-15)
        raw = bytes(unpacker.decompress(data[2:] if band == 0 else data, most + 1))
    except igzip_lib.IsalError as error:  # type: ignore[misc]
        raise PictureError(Trouble.UNREADABLE, f"band {band}: {error}") from error
    if len(raw) > most:
        raise PictureError(Trouble.UNREADABLE, f"band {band} holds more than its scan lines")
    return raw


def _decoded_preview(image: ImageBody, file: BinaryIO) -> Pixels:
    """A JPEG, whole; its header is held against the record before it is decoded."""
    if image.width_px * image.height_px > _MOST_PREVIEW_PIXELS:
        raise PictureError(Trouble.UNREADABLE, f"{image.path}: too large for a preview")
    try:
        with Image.open(file, formats=("JPEG",)) as picture:
            if picture.size != (image.width_px, image.height_px):
                raise PictureError(Trouble.UNREADABLE, f"{image.path}: not of the recorded size")
            return np.asarray(picture.convert("L"), np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(Trouble.UNREADABLE, f"{image.path}: not a JPEG: {error}") from error
