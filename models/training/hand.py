"""Hand-made features and a small classifier: the floor that a network has to beat.

Marks on a surface are lines or spots that are narrower than what lies behind them. A bank of
oriented line filters runs over two scales of the tile's local contrast; what counts is how far the
strongest responses stand out from the tile's own texture, and how long a connected mark is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.training.data import TILE_PX, DataError
from models.training.evaluate import auroc

Floats = NDArray[np.float32]

FOLDS = 4
FINE_SIGMA_PX = 6.0
COARSE_SIGMA_PX = 16.0
"""Of the Gaussian that is the local brightness; coarse lines are looked for at half the size."""
CELLS_PX = (14, 28)
"""Sides of the cells whose means show stains and uneven areas."""
FEATURE_COUNT = 2 * (1 + 2 * 9) + len(CELLS_PX) * 2 * 5

_ORIENTATIONS = 12
_LINE_SIGMA_PX = 1.2
_LINE_LENGTH_PX = 10.0
_DARK_LEVEL = 16.0
_SPREAD_FLOOR = 0.02
"""Per cent of contrast: less than a grey level, so that flat tiles divide by something."""
_MARK_EDGE, _MARK_CORE = 4.0, 6.0
"""Spreads above the median: what belongs to a mark, and what it must hold to be one."""


# Features


def features(tiles: NDArray[np.uint8]) -> Floats:
    """Statistics of each tile, float32 (n, `FEATURE_COUNT`), of tiles uint8 (n, 1, 224, 224)."""
    found = np.empty((len(tiles), FEATURE_COUNT), np.float32)
    for row, tile in zip(found, tiles, strict=True):
        row[:] = _tile_features(tile[0].astype(np.float32))
    return found


def _tile_features(levels: Floats) -> list[float]:
    fine = _local_contrast(levels, FINE_SIGMA_PX)
    coarse = _local_contrast(levels, COARSE_SIGMA_PX)
    half = cv2.resize(coarse, (TILE_PX // 2, TILE_PX // 2), interpolation=cv2.INTER_AREA)
    return [*_line_features(fine), *_line_features(_f32(half)), *_cell_features(coarse)]


def _local_contrast(levels: Floats, sigma_px: float) -> Floats:
    """Per cent above or below the local brightness."""
    local = _f32(cv2.GaussianBlur(levels, (0, 0), sigma_px))
    return _f32((levels - local) / (local + _DARK_LEVEL) * 100)


def _line_features(contrast: Floats) -> list[float]:
    """19 statistics of one scale: bright and dark lines, in contrast and in spreads."""
    responses = np.stack([_filter(contrast, kernel) for kernel in _LINE_KERNELS])
    # Every fourth pixel is enough for a median, and medians take most of the time.
    spreads = np.array([_spread(response[::2, ::2]) for response in responses], np.float32)
    found = [_log(spreads.max() / spreads.min())]
    # A striped or dotted texture answers along its own directions only: each is measured in its
    # own spread.
    relative = responses / spreads[:, None, None]
    for sign in (1, -1):
        found += _absolute_features((sign * responses).max(axis=0))
        found += _relative_features((sign * relative).max(axis=0))
    return found


def _absolute_features(strongest: Floats) -> list[float]:
    high = np.percentile(strongest, (99.8, 99.98))
    return [_log(_spread(strongest)), *map(_log, high)]


def _relative_features(strongest: Floats) -> list[float]:
    spread = _spread(strongest)
    above = _f32((strongest - np.median(strongest)) / spread)
    high = np.percentile(above, (99, 99.8, 99.98))
    return [_log(spread), *map(_log, high), *_largest_mark(above)]


def _largest_mark(above: Floats) -> tuple[float, float]:
    """Logarithms of the longest mark's diagonal in pixels and of the heaviest one's sum."""
    is_part = above > _MARK_EDGE
    count, places, boxes, _ = cv2.connectedComponentsWithStats(
        is_part.astype(np.uint8), connectivity=8
    )
    core, mass = np.zeros(count), np.zeros(count)
    owners = places.astype(np.intp)[is_part]
    np.maximum.at(core, owners, above[is_part])
    np.add.at(mass, owners, above[is_part] - _MARK_EDGE)
    length = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    is_mark = core > _MARK_CORE
    longest, heaviest = length[is_mark].max(initial=0), mass[is_mark].max(initial=0)
    return float(np.log1p(longest)), float(np.log1p(heaviest))


def _cell_features(contrast: Floats) -> list[float]:
    """Uneven areas: means of cells as they are, and without each column's and row's own level."""
    stripes = np.median(contrast, axis=0, keepdims=True)
    plain = contrast - stripes
    plain = plain - np.median(plain, axis=1, keepdims=True)
    found = []
    for picture in (contrast, plain):
        for side in CELLS_PX:
            found += _cell_statistics(picture, TILE_PX // side)
    return found


def _cell_statistics(picture: Floats, cells: int) -> list[float]:
    means = _f32(cv2.resize(picture, (cells, cells), interpolation=cv2.INTER_AREA))
    spread = _spread(means)
    down = np.abs(np.diff(means, axis=0)).max()
    across = np.abs(np.diff(means, axis=1)).max()
    ratios = (means.max(), -means.min(), down, across)
    return [_log(spread), *(_log(ratio / spread) for ratio in ratios)]


def _line_kernel(angle: float) -> Floats:
    """A line's second derivative across, a Gaussian along; no mean, unit energy."""
    radius = int(np.ceil(1.2 * _LINE_LENGTH_PX))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / _LINE_SIGMA_PX
    kernel = (1 - across**2) * np.exp(-(across**2) / 2 - 2 * (along / _LINE_LENGTH_PX) ** 2)
    kernel -= kernel.mean()
    return _f32(kernel / np.sqrt((kernel**2).sum()))


def _filter(picture: Floats, kernel: Floats) -> Floats:
    return _f32(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT))


def _spread(values: Floats) -> float:
    """A standard deviation that a few strong pixels do not move."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) + _SPREAD_FLOOR


def _log(value: float) -> float:
    return float(np.log(max(value, 1e-2)))


def _f32(values: Any) -> Floats:
    return np.asarray(values, np.float32)


_LINE_KERNELS = [_line_kernel(np.pi * number / _ORIENTATIONS) for number in range(_ORIENTATIONS)]


# Classifier


@dataclass(frozen=True, slots=True)
class HandModel:
    """A fitted classifier on `features`."""

    kind: str
    """Of `_candidates`: the one with the highest out-of-fold AUROC."""
    out_of_fold: Floats
    """Score of each training tile by the model of a fold that knows nothing of its group, (n,)."""
    threshold: float
    """The most accurate one on `out_of_fold`."""
    aurocs: dict[str, float]
    """Out of fold, of every candidate."""
    estimator: Any

    def scores(self, tiles: NDArray[np.uint8]) -> Floats:
        """Probability of a defect, float32 (n,), of tiles uint8 (n, 1, 224, 224)."""
        return _probability(self.estimator, features(tiles))


def fit_hand(
    tiles: NDArray[np.uint8], labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> HandModel:
    """Choose and fit a classifier for tiles uint8 (n, 1, 224, 224) and labels (n,).

    Folds are made of whole groups. Raises `DataError` if there are too few of them.
    """
    table = features(tiles)
    folds = _folds(labels, groups, seed)
    out_of_fold = {
        kind: _score_folds(candidate, table, labels, folds)
        for kind, candidate in _candidates(seed).items()
    }
    aurocs = {kind: auroc(labels, scores) for kind, scores in out_of_fold.items()}
    kind = max(aurocs, key=lambda each: aurocs[each])
    return HandModel(
        kind=kind,
        out_of_fold=out_of_fold[kind],
        threshold=most_accurate_threshold(labels, out_of_fold[kind]),
        aurocs=aurocs,
        estimator=_candidates(seed)[kind].fit(table, labels),
    )


def most_accurate_threshold(labels: NDArray[np.int64], scores: Floats) -> float:
    """The middle of the gap between two scores above which calling a defect is right most often;
    the middle one of several that are equally good."""
    ordered = np.unique(scores)
    between = (ordered[1:] + ordered[:-1]) / 2 if len(ordered) > 1 else ordered
    bad, good = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    errors = np.searchsorted(bad, between, side="right") + len(good)
    errors = errors - np.searchsorted(good, between, side="right")
    best = np.flatnonzero(errors == errors.min())
    return float(between[best[len(best) // 2]])


def _candidates(seed: int) -> dict[str, Any]:
    return {
        "logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(C=0.03, class_weight="balanced", max_iter=5000)
        ),
        "extra trees": ExtraTreesClassifier(
            200, min_samples_leaf=3, class_weight="balanced", random_state=seed
        ),
        "gradient boosting": GradientBoostingClassifier(
            n_estimators=150,
            learning_rate=0.05,
            max_depth=2,
            min_samples_leaf=5,
            subsample=0.6,
            max_features="sqrt",
            random_state=seed,
        ),
    }


def _folds(
    labels: NDArray[np.int64], groups: Sequence[str], seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices to fit and to score of each fold."""
    if len(set(groups)) < FOLDS or np.bincount(labels, minlength=2).min() < FOLDS:
        raise DataError(f"too few groups for {FOLDS} folds; {FOLDS} parts or more wanted")
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    folds = list(splitter.split(labels, labels, groups))
    if any(len(np.unique(labels[fit])) < 2 for fit, _ in folds):
        raise DataError("too few groups to leave some of both classes out of each fold")
    return folds


def _score_folds(
    candidate: Any,
    table: Floats,
    labels: NDArray[np.int64],
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Floats:
    scores = np.empty(len(labels), np.float32)
    for fit, held in folds:
        scores[held] = _probability(candidate.fit(table[fit], labels[fit]), table[held])
    return scores


def _probability(estimator: Any, table: Floats) -> Floats:
    if not len(table):
        return np.empty(0, np.float32)
    return _f32(estimator.predict_proba(table)[:, 1])
