"""Pictures of plates: content-named, durable before the row that names them.

Evidence is PNG with one IDAT chunk per band of scan lines, each band a deflate block that stands on
its own: any viewer opens the whole, `read_band` reads a part. Previews are JPEG.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from station.record import ImageBody

Pixels = NDArray[np.uint8]

PREVIEW_SIDE_PX = 480
_JPEG_QUALITY = 88
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ZLIB_HEADER = b"\x78\x01"
_SUB = 1
_TEMPORARY = "incoming"
_QUARANTINE = "quarantine"
_QUARANTINED = 1000
_JANITOR_LIMIT_S = 2.0


class ImageError(ValueError):
    """A stored picture is not what was stored; says which and what is wrong."""


def encode_png(pixels: Pixels, band_rows: Sequence[int]) -> bytes:
    """Lossless PNG of uint8 (rows, columns); `band_rows` add up to the rows."""
    rows, columns = pixels.shape
    if sum(band_rows) != rows or min(band_rows) < 1:
        raise ValueError(f"bands of {list(band_rows)} rows do not make {rows} rows")
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    parts = [_SIGNATURE, _chunk(b"IHDR", header)]
    packer = isal_zlib.compressobj(level=1, wbits=-15)
    checksum, first = 1, 0
    for number, count in enumerate(band_rows):
        filtered = _filter_sub(pixels[first : first + count])
        checksum = isal_zlib.adler32(filtered, checksum)
        is_last = number == len(band_rows) - 1
        flush = isal_zlib.Z_FINISH if is_last else isal_zlib.Z_FULL_FLUSH
        data = packer.compress(filtered) + packer.flush(flush)
        data = (_ZLIB_HEADER if number == 0 else b"") + data
        parts.append(_chunk(b"IDAT", data + (struct.pack(">I", checksum) if is_last else b"")))
        first += count
    parts.append(_chunk(b"IEND", b""))
    return b"".join(parts)


def _filter_sub(pixels: Pixels) -> bytes:
    """PNG filter type 1: each pixel less the one to its left."""
    filtered = np.empty((pixels.shape[0], pixels.shape[1] + 1), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=filtered[:, 2:])
    return filtered.tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


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
    scale = min(1.0, PREVIEW_SIDE_PX / max(pixels.shape))
    width = max(1, round(pixels.shape[1] * scale))
    height = max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    return data, width, height


@dataclass(frozen=True, slots=True)
class Written:
    """A picture in a temporary file, not yet durable."""

    temporary: Path
    body: ImageBody


class ImageFolder:
    """`<journal>/images`: pictures under the first two digits of their sha256."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._temporary = directory / _TEMPORARY
        self._quarantine = directory / _QUARANTINE
        for folder in (
            self._temporary,
            self._quarantine,
            *(directory / f"{i:02x}" for i in range(256)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(directory)

    def write(self, pixels: Pixels, band_rows: Sequence[int], keep: Sequence[str]) -> list[Written]:
        """Encode and write what is kept of a plate to temporary files; any thread."""
        written: list[Written] = []
        try:
            if "evidence" in keep:
                data = encode_png(pixels, band_rows)
                height, width = pixels.shape
                written.append(self._write("evidence", "png", data, width, height))
            if "preview" in keep:
                data, width, height = encode_preview(pixels)
                written.append(self._write("preview", "jpg", data, width, height))
        except OSError:
            for item in written:
                item.temporary.unlink(missing_ok=True)
            raise
        return written

    def make_durable(self, written: Sequence[Written]) -> None:
        """One sync for all, then their final names. An OSError means that nothing here may be
        trusted: the process must end, a sync is never tried again."""
        if not written:
            return
        _sync_filesystem(self.directory)
        for item in written:
            item.temporary.rename(self.directory / item.body.path)
        for folder in {(self.directory / item.body.path).parent for item in written}:
            _sync_folder(folder)

    def clean(self, referenced: set[str], since_s: float) -> int:
        """Move what a death left behind to quarantine: temporary files, and pictures newer than
        `since_s` (Unix time) that no row names. How many they were; bounded in time."""
        moved = 0
        for path in self._temporary.iterdir():
            shutil.move(path, self._quarantine / path.name)
            moved += 1
        deadline = time.monotonic() + _JANITOR_LIMIT_S
        for number in range(256):
            if time.monotonic() > deadline:
                break
            for entry in os.scandir(self.directory / f"{number:02x}"):
                name = f"{number:02x}/{entry.name}"
                if name not in referenced and entry.stat().st_ctime >= since_s:
                    shutil.move(entry.path, self._quarantine / entry.name)
                    moved += 1
        self._bound_quarantine()
        return moved

    def _bound_quarantine(self) -> None:
        """What no row ever named is kept for a look, but not for ever."""
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_QUARANTINED]:
            path.unlink()

    def _write(self, role: str, suffix: str, data: bytes, width: int, height: int) -> Written:
        sha256 = hashlib.sha256(data).hexdigest()
        temporary = self._temporary / uuid.uuid4().hex
        try:
            temporary.write_bytes(data)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        body = ImageBody.model_validate(
            {
                "role": role,
                "path": f"{sha256[:2]}/{sha256}.{suffix}",
                "sha256": sha256,
                "bytes": len(data),
                "width_px": width,
                "height_px": height,
            }
        )
        return Written(temporary, body)


def _sync_filesystem(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)
