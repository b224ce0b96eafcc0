"""Where in a tile the evidence of a defect lies, from the network's map of 7 x 7 cells."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CELL_PX = 32
_FINER = 4
"""Points a cell side that the map is interpolated to: boxes then follow the evidence more closely
than cells of 32 px do."""
_SHARE_OF_PEAK = 0.5

Box = tuple[int, int, int, int]
"""x, y of the first pixel, width, height, in px of the tile."""


def defect_boxes(defect_map: NDArray[np.float32]) -> list[tuple[Box, float]]:
    """Boxes around the places with at least half of the strongest evidence, strongest first.

    `defect_map` is float32 (7, 7), log odds of a defect that each cell adds. Returns each box with
    its strongest evidence; none if no cell speaks for a defect.
    """
    fine = _finer(defect_map)
    peak = float(fine.max())
    if not peak > 0:
        return []
    is_strong = (fine >= _SHARE_OF_PEAK * peak).astype(np.uint8)
    count, labels, places, _ = cv2.connectedComponentsWithStats(is_strong, connectivity=8)
    side = CELL_PX // _FINER
    boxes = [(_scaled(places[i], side), float(fine[labels == i].max())) for i in range(1, count)]
    return sorted(boxes, key=lambda box: -box[1])


def peak_of(defect_map: NDArray[np.float32]) -> tuple[int, int]:
    """x, y in px of the strongest evidence."""
    fine = _finer(defect_map)
    y, x = np.unravel_index(int(fine.argmax()), fine.shape)
    side = CELL_PX // _FINER
    return int(x) * side + side // 2, int(y) * side + side // 2


def _finer(defect_map: NDArray[np.float32]) -> NDArray[np.float32]:
    side = len(defect_map) * _FINER
    finer: NDArray[np.float32] = cv2.resize(
        defect_map, (side, side), interpolation=cv2.INTER_LINEAR
    ).astype(np.float32)
    return finer


def _scaled(place: NDArray[np.int32], side: int) -> Box:
    x, y, width, height = (int(value) * side for value in place[:4])
    return x, y, width, height
