"""Tiles of stored pictures: 256 px squares of the picture itself and of its halves, quarters and so
on, lossless; and the same as the network's front end sees it.

Full size is cut from the evidence file's bands. Halves, quarters and so on are made once, in one
walk over the bands, and kept in the page's own cache folder, named by the picture's sha256.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from station.images import BandedPng, Pixels
from station.record import ImageBody, current_boot_id
from station.web.stored_pictures import (
    ArraySource,
    Bounded,
    PictureError,
    PixelSource,
    StoredPictures,
    Trouble,
)

TILE_PX = 256
TILE_BYTES = TILE_PX * TILE_PX
CACHE_BYTES = 2 * 10**9
"""Of the cache folder; what was not looked at for longest goes first."""
FORMAT = 1
"""Of the cached files and of what is in a tile; part of every tile's ETag."""
_THUMBNAIL_BYTES = 8 * 2**20
_WALK_ROWS = 256
MOST_CROP_PX = 4096
"""Of a part's side."""
CONTRAST_PER_LEVEL = 0.002
"""One grey level of the network's view is so much of the local brightness."""
_MIDDLE = 128
_SLOTS = 2
"""Tiles and levels that are worked on at once: the rest of the machine is the station's."""
_WAITING = 16
_PATIENCE_S = 10.0
"""So many requests wait for a slot, so long: pages of other kinds need threads, too."""


class NoSuchTileError(LookupError):
    """The picture has no such tile or level."""


class BusyError(Exception):
    """Too much is asked for at once; ask again."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """Sizes of a picture's levels; level 0 is the picture, each next one half of the one before."""

    columns: int
    rows: int

    @property
    def levels(self) -> int:
        return max(1, 1 + (max(self.columns, self.rows) - 1).bit_length() - 8)

    def size(self, level: int) -> tuple[int, int]:
        """Columns and rows in px, the last pixel standing for what is left."""
        return -(-self.columns // 2**level), -(-self.rows // 2**level)

    def tiles(self, level: int) -> tuple[int, int]:
        """Tiles crossweb and downweb."""
        columns, rows = self.size(level)
        return -(-columns // TILE_PX), -(-rows // TILE_PX)

    def place(self, level: int, column: int, row: int) -> int:
        """Where a tile of level 1 and above begins in the cached file."""
        before = sum(across * down for across, down in map(self.tiles, range(1, level)))
        return (before + row * self.tiles(level)[0] + column) * TILE_BYTES

    def extent(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a tile in px of its level. Raises `NoSuchTileError`."""
        if not 0 <= level < self.levels:
            raise NoSuchTileError(f"level {level}: there are 0 to {self.levels - 1}")
        across, down = self.tiles(level)
        if not (0 <= column < across and 0 <= row < down):
            raise NoSuchTileError(f"tile {column}, {row}: level {level} has {across} x {down}")
        width, height = self.size(level)
        x, y = column * TILE_PX, row * TILE_PX
        return x, y, min(width, x + TILE_PX), min(height, y + TILE_PX)


@dataclass(frozen=True, slots=True)
class LocalContrast:
    """The network's front end, by the constants of its card: grey levels relative to the mean of
    `window` x `window` cells of `cell_px` x `cell_px` pixels around them.

    The network's cells begin at the tile; `phase_px` is where that is crossweb. Beside a tile's
    edge the network has only the cells of the tile, this view all there are.
    """

    cell_px: int
    window: int
    dark_level: float
    phase_px: int = 0

    @property
    def name(self) -> str:
        """Of what it makes of a picture, for the cache."""
        return f"contrast-{self.cell_px}-{self.window}-{self.dark_level:g}-{self.phase_px}"

    @property
    def reach_px(self) -> int:
        """No pixel further away takes part."""
        return (self.window // 2 + 1) * self.cell_px

    def block(self, source: PixelSource, x: int, y: int, right: int, bottom: int) -> Pixels:
        """The view of pixels x to right and y to bottom: 128 is as bright as around it."""
        reach, cell = self.reach_px, self.cell_px
        left = self._cell_start(x - reach)
        top = (y - reach) // cell * cell
        end = min(source.columns, right + reach), min(source.rows, bottom + reach)
        start = max(0, left), max(0, top)
        levels = source.block(*start, *end).astype(np.float32) + np.float32(self.dark_level)
        padded = self._whole_cells(levels, start[0])
        contrast = padded / self._means(padded) - 1
        at_x = x - start[0] + self._pad_left(start[0])
        part = contrast[y - start[1] : bottom - start[1], at_x : at_x + right - x]
        shown = np.rint(part * (1 / CONTRAST_PER_LEVEL) + _MIDDLE)
        return np.asarray(np.clip(shown, 0, 255), np.uint8)

    def _cell_start(self, x: int) -> int:
        return (x - self.phase_px) // self.cell_px * self.cell_px + self.phase_px

    def _pad_left(self, start: int) -> int:
        return start - self._cell_start(start)

    def _whole_cells(self, levels: Pixels32, start: int) -> Pixels32:
        """Cells that the picture's edge cuts, completed."""
        left = self._pad_left(start)
        right = -(left + levels.shape[1]) % self.cell_px
        below = -levels.shape[0] % self.cell_px
        edge = cv2.BORDER_REPLICATE
        return np.asarray(cv2.copyMakeBorder(levels, 0, below, left, right, edge), np.float32)

    def _means(self, levels: Pixels32) -> Pixels32:
        """Of the cells around each pixel's own, those that there are."""
        height, width = levels.shape
        size = width // self.cell_px, height // self.cell_px
        cells = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
        window = (self.window, self.window)
        none = cv2.BORDER_CONSTANT
        total = cv2.boxFilter(cells, -1, window, normalize=False, borderType=none)
        count = cv2.boxFilter(np.ones_like(cells), -1, window, normalize=False, borderType=none)
        means = np.asarray(total / count, np.float32)
        spread = cv2.resize(means, (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(spread, np.float32)


class ContrastSource(PixelSource):
    """A picture as the network's front end sees it."""

    def __init__(self, source: PixelSource, front_end: LocalContrast) -> None:
        self._source = source
        self._front_end = front_end
        self.columns, self.rows = source.columns, source.rows

    def block(self, x: int, y: int, right: int, bottom: int) -> Pixels:
        """Some rows at a time: it takes twenty times the memory of what it shows."""
        parts = [
            self._front_end.block(self._source, x, top, right, min(bottom, top + _WALK_ROWS))
            for top in range(y, bottom, _WALK_ROWS)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass
class PictureTiles:
    """Makes tiles; one for a web process."""

    pictures: StoredPictures
    cache: Path
    most_cache_bytes: int = CACHE_BYTES
    _thumbnails: Bounded[tuple[str, int], bytes] = field(
        default_factory=lambda: Bounded(_THUMBNAIL_BYTES, len)
    )
    _making: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_SLOTS))
    _room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WAITING))

    def tile(
        self, image: ImageBody, front_end: LocalContrast | None, level: int, column: int, row: int
    ) -> bytes:
        """A tile as PNG. Raises `PictureError`, `NoSuchTileError`, `BusyError`; OSError where the
        cache folder cannot be written."""
        with self._slot():
            source = self._source(image, front_end)
            pyramid = Pyramid(source.columns, source.rows)
            extent = pyramid.extent(level, column, row)
            if level == 0:
                return png_of(source.block(*extent))
            path = self._levels(image, front_end, source, pyramid)
            return png_of(_cached_tile(path, pyramid, level, column, row))

    def overview(
        self, image: ImageBody, front_end: LocalContrast | None, most_px: int
    ) -> tuple[bytes, int]:
        """The whole picture, its longer side `most_px` at most, as PNG, and how many of its pixels
        lie along one of those; raises like `tile`."""
        with self._slot():
            source = self._source(image, front_end)
            pyramid = Pyramid(source.columns, source.rows)
            sizes = enumerate(map(pyramid.size, range(pyramid.levels)))
            level = next((n for n, size in sizes if max(size) <= most_px), pyramid.levels - 1)
            if level == 0:
                return png_of(source.block(0, 0, source.columns, source.rows)), 1
            path = self._levels(image, front_end, source, pyramid)
            return png_of(_whole_level(path, pyramid, level)), 2**level

    def thumbnail(self, image: ImageBody, side_px: int) -> bytes:
        """The whole picture as a JPEG whose longer side is `side_px` at most; raises like
        `tile`."""
        with self._slot():
            known = self._thumbnails.get((image.sha256, side_px))
            if known is None:
                known = _jpeg_of(self._small(image, side_px), side_px)
                self._thumbnails.put((image.sha256, side_px), known)
            return known

    def _small(self, image: ImageBody, least_px: int) -> Pixels:
        """The smallest level whose longer side is `least_px` at least."""
        source = self._source(image, None)
        pyramid = Pyramid(source.columns, source.rows)
        sizes = reversed(list(enumerate(map(pyramid.size, range(pyramid.levels)))))
        level = next((n for n, size in sizes if max(size) >= least_px), 0)
        if level == 0 or isinstance(source, ArraySource):
            return source.block(0, 0, source.columns, source.rows)
        return _whole_level(self._levels(image, None, source, pyramid), pyramid, level)

    def crop(
        self, image: ImageBody, front_end: LocalContrast | None, box: Box, most_px: int
    ) -> bytes:
        """Part of a picture as PNG, what lies outside it grey; raises like `tile`."""
        with self._slot():
            return png_of(_crop(self._source(image, front_end), box, most_px))

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._room.acquire(blocking=False):
            raise BusyError
        try:
            if not self._slots.acquire(timeout=_PATIENCE_S):
                raise BusyError
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._room.release()

    def _source(self, image: ImageBody, front_end: LocalContrast | None) -> PixelSource:
        source = self.pictures.source(image)
        return source if front_end is None else ContrastSource(source, front_end)

    def _levels(
        self,
        image: ImageBody,
        front_end: LocalContrast | None,
        source: PixelSource,
        pyramid: Pyramid,
    ) -> Path:
        """The file of the levels above 0, made where it is not there."""
        view = "recorded" if front_end is None else front_end.name
        # A power cut may leave holes in what was not forced to the disk, and forcing it would hold
        # up the log's disk: no file outlives the boot that wrote it.
        path = self.cache / f"{image.sha256}-{view}-{FORMAT}-{current_boot_id()}.levels"
        if not _touched(path):
            with self._maker(path.name):
                if not _touched(path):
                    self._make(path, source, pyramid)
        return path

    def _maker(self, name: str) -> threading.Lock:
        with self._lock:
            if len(self._making) > 1000:
                self._making.clear()
            return self._making.setdefault(name, threading.Lock())

    def _make(self, path: Path, source: PixelSource, pyramid: Pyramid) -> None:
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.cache / f"{path.name}.{os.getpid()}.{threading.get_ident()}.new"
        try:
            with temporary.open("wb") as file:
                file.truncate(pyramid.place(pyramid.levels, 0, 0))
                write_levels(file.fileno(), source, pyramid)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._bound()

    def _bound(self) -> None:
        """The cache stays below its size; files of a process that died or of a boot before go at
        once."""
        with self._lock:
            kept = 0
            found = []
            for path in self.cache.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
            for _, size, path in sorted(found, reverse=True):
                kept += size
                is_unfinished = path.suffix == ".new" and f".{os.getpid()}." not in path.name
                is_left_over = is_unfinished or current_boot_id() not in path.name
                if kept > self.most_cache_bytes or is_left_over:
                    path.unlink(missing_ok=True)


Box = tuple[int, int, int, int]
"""Left, top, right, bottom in px, ends exclusive; may reach beyond the picture."""
Pixels32 = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def png_of(pixels: Pixels) -> bytes:
    png = BandedPng(pixels.shape[1])
    png.add(np.ascontiguousarray(pixels), is_last=True)
    return b"".join(png.file())


def _jpeg_of(pixels: Pixels, side_px: int) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side_px, side_px))
    taken = io.BytesIO()
    picture.save(taken, "JPEG", quality=80)
    return taken.getvalue()


def _crop(source: PixelSource, box: Box, most_px: int) -> Pixels:
    x, y, right, bottom = box
    if not (0 < right - x <= MOST_CROP_PX and 0 < bottom - y <= MOST_CROP_PX):
        raise NoSuchTileError(f"a part has 1 to {MOST_CROP_PX} px a side")
    part = np.full((bottom - y, right - x), _MIDDLE, np.uint8)
    left, top = max(0, x), max(0, y)
    end_x, end_y = min(source.columns, right), min(source.rows, bottom)
    if left < end_x and top < end_y:
        part[top - y : end_y - y, left - x : end_x - x] = source.block(left, top, end_x, end_y)
    scale = most_px / max(part.shape)
    if scale >= 1:
        return part
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)


# --- levels -------------------------------------------------------------------------------------


def write_levels(descriptor: int, source: PixelSource, pyramid: Pyramid) -> None:
    """Write levels 1 and above of a picture in one walk from its leading edge."""
    write = _writer(descriptor, pyramid, pyramid.levels - 1)
    for level in reversed(range(1, pyramid.levels - 1)):
        write = _both(_writer(descriptor, pyramid, level), _halver(write))
    halve = _halver(write)
    for y in range(0, source.rows, _WALK_ROWS):
        bottom = min(source.rows, y + _WALK_ROWS)
        halve(source.block(0, y, source.columns, bottom), bottom == source.rows)


Sink = Callable[[Pixels, bool], None]
"""Takes the next rows of a level, and whether they are the last."""


def _both(first: Sink, second: Sink) -> Sink:
    def take(rows: Pixels, is_last: bool) -> None:
        first(rows, is_last)
        second(rows, is_last)

    return take


def _halver(sink: Sink) -> Sink:
    """Passes on each two rows as one of half their width, a last odd one by itself."""
    waiting: list[Pixels] = []

    def take(rows: Pixels, is_last: bool) -> None:
        joined = np.concatenate([*waiting, rows])
        even = len(joined) if is_last else len(joined) // 2 * 2
        waiting[:] = [joined[even:]]
        if even or is_last:
            sink(halved(joined[:even]), is_last)

    return take


def halved(pixels: Pixels) -> Pixels:
    """Means of 2 x 2 pixels; an odd last row or column is repeated."""
    odd_rows, odd_columns = (side % 2 for side in pixels.shape)
    if odd_rows or odd_columns:
        pixels = np.pad(pixels, ((0, odd_rows), (0, odd_columns)), mode="edge")
    size = pixels.shape[1] // 2, pixels.shape[0] // 2
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _writer(descriptor: int, pyramid: Pyramid, level: int) -> Sink:
    """Cuts a level's rows into tiles and writes each where it belongs."""
    waiting: list[Pixels] = []
    written = 0

    def take(rows: Pixels, is_last: bool) -> None:
        nonlocal written
        joined = np.concatenate([*waiting, rows])
        while len(joined) >= TILE_PX or (is_last and len(joined)):
            _write_row(descriptor, pyramid, level, written, joined[:TILE_PX])
            joined, written = joined[TILE_PX:], written + 1
        waiting[:] = [joined]

    return take


def _write_row(descriptor: int, pyramid: Pyramid, level: int, row: int, pixels: Pixels) -> None:
    across = pyramid.tiles(level)[0]
    whole = np.zeros((TILE_PX, across * TILE_PX), np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = whole.reshape(TILE_PX, across, TILE_PX).swapaxes(0, 1)
    os.pwrite(descriptor, np.ascontiguousarray(tiles).data, pyramid.place(level, 0, row))


def _touched(path: Path) -> bool:
    """Whether it is there; looked at now, so that it goes last."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _cached_tile(path: Path, pyramid: Pyramid, level: int, column: int, row: int) -> Pixels:
    left, top, right, bottom = pyramid.extent(level, column, row)
    with path.open("rb") as file:
        data = os.pread(file.fileno(), TILE_BYTES, pyramid.place(level, column, row))
    if len(data) != TILE_BYTES:
        path.unlink(missing_ok=True)
        raise PictureError(Trouble.UNREADABLE, f"{path}: cut; it is made anew")
    return np.frombuffer(data, np.uint8).reshape(TILE_PX, TILE_PX)[: bottom - top, : right - left]


def _whole_level(path: Path, pyramid: Pyramid, level: int) -> Pixels:
    across, down = pyramid.tiles(level)
    return np.concatenate([_row_of(path, pyramid, level, row, across) for row in range(down)])


def _row_of(path: Path, pyramid: Pyramid, level: int, row: int, across: int) -> Pixels:
    columns: Iterator[int] = iter(range(across))
    return np.concatenate([_cached_tile(path, pyramid, level, c, row) for c in columns], axis=1)
