"""Writes picture sources for the GenTL simulator; the layout is that of source.h."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fcntl import F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import Slots, render_bank, render_empty_belt, shuffled

Pixels = NDArray[np.uint8]

NOMINAL_EXPOSURE_US = 10.0
"""The simulator's exposure unless it is set: pixels then are the source's, bit for bit."""
_MAGIC, _VERSION = b"VQILINES", 1
_HEADER = struct.Struct("<8sIIddQQQQQII")
_PAIR = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Source:
    """A belt that repeats, and the pictures that lie on it."""

    belt: Pixels
    """Scan lines of empty belt, shape (rows, width), counted from the belt's beginning."""
    pictures: Sequence[Pixels]
    """Each as wide as the belt."""
    placements: Sequence[tuple[int, int]]
    """First scan line and index of each picture that lies on the belt, ascending, disjoint."""
    period_rows: int
    """Scan lines after which the placements repeat."""
    pixel_pitch_mm: float
    nominal_exposure_us: float = NOMINAL_EXPOSURE_US


def write_source(file: BinaryIO, source: Source) -> None:
    """Write a source from the file's beginning. Raises ValueError if the widths differ."""
    width = source.belt.shape[1]
    if any(picture.shape[1] != width for picture in source.pictures):
        raise ValueError(f"every picture must be {width} px wide, as the belt is")
    pictures_at = _HEADER.size
    placements_at = pictures_at + _PAIR.size * len(source.pictures)
    belt_at = placements_at + _PAIR.size * len(source.placements)
    file.write(
        _HEADER.pack(
            *(_MAGIC, _VERSION, width, source.pixel_pitch_mm, source.nominal_exposure_us),
            *(source.period_rows, belt_at, len(source.belt), pictures_at, placements_at),
            *(len(source.pictures), len(source.placements)),
        )
    )
    at = belt_at + source.belt.size
    for picture in source.pictures:
        file.write(_PAIR.pack(at, len(picture)))
        at += picture.size
    file.write(b"".join(_PAIR.pack(*placement) for placement in source.placements))
    for pixels in (source.belt, *source.pictures):
        file.write(np.ascontiguousarray(pixels).data)


def memory_source(source: Source) -> int:
    """The source in memory: a sealed descriptor, read as `/proc/self/fd/N` by whoever holds it.

    It goes with its last descriptor. The caller closes it.
    """
    descriptor = os.memfd_create("vqi-belt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            write_source(file, source)
        fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def simulated_belt(settings: SimulatedCameraSettings, plates: int) -> Source:
    """The simulated camera's belt, its first `plates` plates repeated without end.

    A camera that reads one row of it a scan line delivers the very pixels of `SimulatedCamera`, and
    counts the same plates.
    """
    slots, bank = Slots(settings), render_bank(settings)
    laps = -(-plates // len(bank))
    order = [number for lap in range(laps) for number in shuffled(settings, lap)][:plates]
    return Source(
        belt=render_empty_belt(settings),
        pictures=[plate.pixels for plate in bank],
        placements=[(slots.start(k + 1), number) for k, number in enumerate(order)],
        period_rows=plates * slots.period,
        pixel_pitch_mm=settings.pixel_pitch_mm,
    )


def belt_source(settings: SimulatedCameraSettings, plates: int) -> int:
    """`simulated_belt` in memory; the caller closes the descriptor."""
    return memory_source(simulated_belt(settings, plates))


def strip_source(pixels: Pixels, pixel_pitch_mm: float) -> int:
    """Recorded scan lines, shape (rows, width), in memory: one picture that repeats."""
    return memory_source(Source(pixels[:1], [pixels], [(0, 0)], len(pixels), pixel_pitch_mm))
