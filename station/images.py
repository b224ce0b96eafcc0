"""Pictures of plates: content-named, durable before the row that names them.

Evidence is PNG with one IDAT chunk per band of scan lines, each band a deflate block that stands on
its own: any viewer opens the whole, `read_band` reads a part. Previews are JPEG. A plate's hash and
evidence are made band by band while the plate arrives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from station.durable import sync
from station.record import PICTURE_NAME, ImageBody

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height in px."""

PREVIEW_SIDE_PX = 512
"""A preview's longer side at most."""
_JPEG_QUALITY = 88
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEADER = b"\x78\x01"
_SUB = 1
_WINDOW_BITS = -9
"""The smallest window, without a header: in a sensor's noise nothing recurs, so a larger one takes
a sixth longer and finds chance matches that only make the file larger."""
_ROLES = ("evidence", "preview")
_TEMPORARY = "incoming"
_QUARANTINE = "quarantine"
_LEAVING = "leaving"
_QUARANTINED = 1000
_QUARANTINE_BYTES = 10**9
_QUARANTINE_DAYS = 30


class ImageError(ValueError):
    """A stored picture is not what was stored; says which and what is wrong."""


class SyncFailed(Exception):
    """What was written may be lost although it looks as if it were there: the process must end, a
    sync is never tried again."""


class BandedPng:
    """A lossless PNG in the making: it is given band after band and its height at the end."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        """Scan lines that are in."""
        self._columns = columns
        self._packer = isal_zlib.compressobj(level=1, wbits=_WINDOW_BITS)
        self._checksum = 1
        self._parts: list[bytes] = []

    def add(self, band: Pixels, is_last: bool = False) -> None:
        """The next scan lines, uint8 (at least one, columns)."""
        filtered = _filter_sub(band)
        self._checksum = isal_zlib.adler32(filtered, self._checksum)
        flush = isal_zlib.Z_FINISH if is_last else isal_zlib.Z_FULL_FLUSH
        data = [self._packer.compress(filtered), self._packer.flush(flush)]
        if self.rows == 0:
            data.insert(0, _ZLIB_HEADER)
        if is_last:
            data.append(struct.pack(">I", self._checksum))
        self._parts += _chunk(b"IDAT", data)
        self.rows += len(band)

    def file(self) -> list[bytes]:
        """The whole file's bytes in parts, once the last band is in."""
        header = struct.pack(">IIBBBBB", self._columns, self.rows, 8, 0, 0, 0, 0)
        return [_SIGNATURE, *_chunk(b"IHDR", [header]), *self._parts, *_chunk(b"IEND", [])]


def _filter_sub(pixels: Pixels) -> memoryview:
    """PNG filter type 1: each pixel less the one to its left."""
    filtered = np.empty((pixels.shape[0], pixels.shape[1] + 1), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=filtered[:, 2:])
    return filtered.reshape(-1).data


def _chunk(kind: bytes, data: list[bytes]) -> list[bytes]:
    """A PNG chunk in parts: what is large is not copied."""
    crc = isal_zlib.crc32(kind)
    for part in data:
        crc = isal_zlib.crc32(part, crc)
    length = sum(map(len, data))
    return [struct.pack(">I", length) + kind, *data, struct.pack(">I", crc)]


def read_band(path: Path, band: int) -> Pixels:
    """One band of a stored evidence picture, uint8 (band rows, columns), without the others.

    Raises `ImageError` if the file is not such a picture, IndexError if it has no such band.
    """
    with path.open("rb") as file:
        if file.read(8) != _SIGNATURE:
            raise ImageError(f"{path}: not a PNG")
        columns, number = 0, -1
        while head := file.read(8):
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IHDR":
                columns = struct.unpack(">I", file.read(4))[0]
                file.seek(length - 4 + 4, os.SEEK_CUR)
                continue
            number += kind == b"IDAT"
            if kind == b"IDAT" and number == band:
                return _unpack(path, file.read(length), columns, is_first=band == 0)
            file.seek(length + 4, os.SEEK_CUR)
    raise IndexError(f"{path}: no band {band}; it has {number + 1}")


def _unpack(path: Path, data: bytes, columns: int, is_first: bool) -> Pixels:
    try:
        raw = zlib.decompressobj(wbits=-15).decompress(data[2:] if is_first else data)
    except zlib.error as error:
        raise ImageError(f"{path}: damaged: {error}") from error
    rows = np.frombuffer(raw, np.uint8).reshape(-1, columns + 1)
    return np.cumsum(rows[:, 1:], axis=1, dtype=np.uint8)


def encode_preview(pixels: Pixels) -> tuple[bytes, int, int]:
    """A small JPEG of uint8 (rows, columns), with its width and height."""
    # Whole cells: means over parts of pixels take seven times as long.
    cell = -(-max(pixels.shape) // PREVIEW_SIDE_PX)
    width, height = (max(1, side // cell) for side in reversed(pixels.shape))
    whole = pixels[: height * cell, : width * cell]
    small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    return data, width, height


@dataclass(frozen=True, slots=True)
class Written:
    """A picture in a temporary file: its bytes are durable, its name is not."""

    temporary: str
    """Names of pictures are joined as text: a `Path` interns each, for a table of the interpreter
    that is built anew, megabytes at once, after some ten thousand."""
    body: ImageBody


class ImageFolder:
    """`<journal>/images`: pictures under the first two digits of their sha256."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._temporary = directory / _TEMPORARY
        self._quarantine = directory / _QUARANTINE
        self._leaving = directory / _LEAVING
        for folder in (
            self._temporary,
            self._quarantine,
            self._leaving,
            *(directory / f"{i:02x}" for i in range(256)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
        sync(directory)

    def write(self, role: str, suffix: str, data: Sequence[bytes], size_px: Size) -> Written:
        """Write a picture, its file's bytes in parts, to a temporary file; any thread. Raises
        OSError, and then nothing is left of it, or `SyncFailed`."""
        digest = hashlib.sha256()
        for part in data:
            digest.update(part)
        sha256, (width, height) = digest.hexdigest(), size_px
        temporary = f"{self._temporary}/{uuid.uuid4().hex}"
        try:
            _write_durably(temporary, data)
        except OSError:
            _unlink(temporary)
            raise
        body = ImageBody.model_validate(
            {
                "role": role,
                "path": f"{sha256[:2]}/{sha256}.{suffix}",
                "sha256": sha256,
                "bytes": sum(map(len, data)),
                "width_px": width,
                "height_px": height,
            }
        )
        return Written(temporary, body)

    def make_durable(self, written: Sequence[Written]) -> None:
        """Their final names. An OSError means that nothing here may be trusted: the process must
        end, a sync is never tried again."""
        for item in written:
            os.rename(item.temporary, f"{self.directory}/{item.body.path}")
        for folder in {os.path.dirname(item.body.path) for item in written}:
            sync(f"{self.directory}/{folder}")

    def clean(self) -> int:
        """Move what a death left unfinished to quarantine; how many files that were. A picture that
        has its name is none of them: only the whole log knows that no row names it."""
        for path in self._leaving.iterdir():
            path.unlink()
        unfinished = list(self._temporary.iterdir())
        for path in unfinished:
            shutil.move(path, self._quarantine / path.name)
        return len(unfinished)

    def take_out(self, path: str) -> tuple[int, Path]:
        """A picture loses its name: its size, and where it lies until it is unlinked. Raises
        FileNotFoundError if there is none, `ImageError` if `path` is no picture's name."""
        picture = self._named(path)
        size = picture.stat().st_size
        leaving = self._leaving / picture.name
        picture.rename(leaving)
        return size, leaving

    def put_aside(self, path: str) -> None:
        """A picture that no row names goes to quarantine. Raises like `take_out`."""
        picture = self._named(path)
        picture.rename(self._quarantine / picture.name)

    def bound_quarantine(self, is_full: bool = False, is_dated: bool = True) -> Quarantine:
        """What no row ever named is kept for a look, but not for ever; not at all on a full disk.
        `is_dated`: the wall clock may be believed. What is left."""
        kept = sorted(
            ((path, path.stat()) for path in self._quarantine.iterdir()),
            key=lambda item: item[1].st_ctime,
            reverse=True,
        )
        left = Quarantine(0, 0)
        oldest_s = time.time() - _QUARANTINE_DAYS * 86_400 if is_dated else 0.0
        for path, status in kept:
            grown = Quarantine(left.files + 1, left.bytes + status.st_size)
            is_bounded = grown.files <= _QUARANTINED and grown.bytes <= _QUARANTINE_BYTES
            if is_full or not is_bounded or status.st_ctime < oldest_s:
                path.unlink(missing_ok=True)
            else:
                left = grown
        return left

    def _named(self, path: str) -> Path:
        if not re.fullmatch(PICTURE_NAME, path):
            raise ImageError(f"{path[:200]!r} is no picture's name")
        return self.directory / path


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Pictures without a row, put aside."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is recorded of a plate's pixels."""

    pixels_sha256: str
    """Of the pixels, scan line by scan line."""
    written: tuple[Written, ...]


class Draft:
    """A plate's hash and pictures while it arrives: what can be done before its end is done then.

    Any thread; what one thread is at, another waits for. A plate that is never finished leaves
    nothing behind if it is discarded.
    """

    def __init__(self, folder: ImageFolder, pixels: Pixels, band_rows: int) -> None:
        """`pixels` is uint8 (scan lines, scan line pixels) and fills while the plate arrives."""
        self._folder = folder
        self._pixels = pixels
        self._band_rows = band_rows
        self._lock = threading.Lock()
        self._is_over = False
        """What was asked for before and comes to run only now is not begun any more."""
        self._begin()

    def advance(self, rows: int, keep: Collection[str], is_complete: bool) -> None:
        """The first `rows` scan lines will not change any more; `is_complete`: they are all."""
        with self._lock:
            if self._is_over:
                return
            if is_complete:
                self._complete(rows, keep)
            else:
                self._take_bands(rows, keep)

    def finish(self, rows: int, keep: Collection[str]) -> Pictures:
        """All of the plate's `rows` scan lines are there, and these pictures are kept of it.

        Raises OSError if they cannot be written, and then nothing of them is left; `SyncFailed`.
        """
        with self._lock:
            self._is_over = True
            self._complete(rows, keep)
            kept = tuple(self._written.pop(role) for role in _ROLES if role in keep)
            self._remove_written()
            return Pictures(self._digest.hexdigest(), kept)

    def discard(self) -> None:
        """No more is wanted of this plate."""
        with self._lock:
            self._is_over = True
            self._remove_written()

    def _begin(self) -> None:
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._png = BandedPng(self._pixels.shape[1])
        self._rows: int | None = None
        """Of a plate that is complete."""
        self._written: dict[str, Written] = {}

    def _take_bands(self, rows: int, keep: Collection[str]) -> None:
        """Hash and encode the bands that end before scan line `rows`: none of them is the last."""
        step = self._band_rows
        while self._hashed + step < rows:
            self._hash(self._hashed + step)
        if "evidence" in keep and "evidence" not in self._written:
            while self._png.rows + step < rows:
                self._png.add(self._pixels[self._png.rows : self._png.rows + step])

    def _hash(self, until: int) -> None:
        self._digest.update(np.ascontiguousarray(self._pixels[self._hashed : until]).data)
        self._hashed = until

    def _complete(self, rows: int, keep: Collection[str]) -> None:
        if self._rows not in (None, rows) or self._hashed > rows:
            # Not the plate that was announced: nothing of that one may be recorded of this.
            self._remove_written()
            self._begin()
        self._take_bands(rows, keep)
        if self._rows is None:
            self._hash(rows)
        self._rows = rows
        try:
            self._write(rows, set(keep) - self._written.keys())
        except OSError:
            self._remove_written()
            self._begin()
            raise

    def _write(self, rows: int, roles: Collection[str]) -> None:
        pixels, folder = self._pixels[:rows], self._folder
        if "evidence" in roles:
            self._png.add(pixels[self._png.rows :], is_last=True)
            size_px = (pixels.shape[1], rows)
            self._written["evidence"] = folder.write("evidence", "png", self._png.file(), size_px)
            self._png = BandedPng(pixels.shape[1])
        if "preview" in roles:
            data, width, height = encode_preview(pixels)
            self._written["preview"] = folder.write("preview", "jpg", [data], (width, height))

    def _remove_written(self) -> None:
        for item in self._written.values():
            _unlink(item.temporary)
        self._written.clear()


def _unlink(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _write_durably(path: str, data: Sequence[bytes]) -> None:
    """Raises OSError if there is no room, `SyncFailed`. Only this file is synced: a sync of the
    whole file system would wait for whatever others write."""
    with open(path, "wb") as file:
        file.writelines(data)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise SyncFailed(f"{path}: {error.strerror}") from error
