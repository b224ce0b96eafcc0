"""Does the network look where the defect is? Scored against masks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.localise import CELL_PX, defect_boxes, peak_of
from models.training.data import Sample, load_truth
from models.training.evaluate import Figure, Judge, members_of
from models.training.lightdefectnet import LightDefectNet

NEAR_PX = CELL_PX // 2
"""A place is right if it is so near to the defect: half a cell."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """Over the defective pictures whose defects' places are known."""

    peak_hits: Figure
    """Strongest evidence at most half a cell from a defect."""
    peak_hits_by_chance: float
    """The same for a random place: the mean share of the picture that is so near to a defect."""
    defects_touched: Figure
    """Pictures whose defects' boxes or masks are touched by a found box."""
    boxed_share: float
    """Mean share of the picture that the found boxes cover."""


def predict_maps(
    network: LightDefectNet, tiles: NDArray[np.uint8], batch: int = 32
) -> NDArray[np.float32]:
    """Evidence of each cell, float32 (n, 7, 7), of tiles uint8 (n, 1, 224, 224)."""
    weights = network.cell_weights()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tiles), batch):
            features = network.features(torch.from_numpy(tiles[start : start + batch]))
            parts.append(F.conv2d(features, weights)[:, 0].numpy())
    return np.concatenate(parts)


def localise(
    network: LightDefectNet, samples: Sequence[Sample], tiles: NDArray[np.uint8]
) -> Localisation | None:
    """None if no defect's place is known."""
    truths = {
        i: truth
        for i, sample in enumerate(samples)
        if sample.label == 1 and (truth := load_truth(sample)) is not None and truth.any()
    }
    if not truths:
        return None
    maps = predict_maps(network, tiles[list(truths)])
    near = [_grown(truth, NEAR_PX) for truth in truths.values()]
    peaks = [peak_of(each) for each in maps]
    found = [_painted(each) for each in maps]
    hits = np.array([area[y, x] for area, (x, y) in zip(near, peaks, strict=True)])
    touched = np.array(
        [(truth & boxes).any() for truth, boxes in zip(truths.values(), found, strict=True)]
    )
    judge, every = Judge(members_of([samples[i].group for i in truths]), seed=0), hits | True
    return Localisation(
        peak_hits=judge.rate(hits[None], every),
        peak_hits_by_chance=float(np.mean([area.mean() for area in near])),
        defects_touched=judge.rate(touched[None], every),
        boxed_share=float(np.mean([boxes.mean() for boxes in found])),
    )


def _grown(truth: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    side = 2 * reach_px + 1
    return cv2.dilate(truth.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def _painted(defect_map: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The found boxes as a mask of the tile."""
    side = len(defect_map) * CELL_PX
    mask = np.zeros((side, side), bool)
    for (x, y, width, height), _ in defect_boxes(defect_map):
        mask[y : y + height, x : x + width] = True
    return mask
