"""Which of many unlabelled things a person should look at next: those in doubt, and of those no two
of a kind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BREADTH = 5
"""Among so many times as are asked for, the most doubtful, it is made sure that they differ."""
_EDGE = 1e-6


def doubt(scores: Floats, thresholds: Floats | float) -> Floats:
    """1 at the threshold, 0 far from it, by the log odds between score and threshold, (n,)."""
    odds = _log_odds(scores) - _log_odds(np.asarray(thresholds, np.float64))
    found: Floats = 1 - np.abs(np.tanh(odds / 2))
    return found


def choose(doubts: Floats, seen: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Places of the `count` things to look at next, the first one the most doubtful.

    `doubts` (n,); `seen` (n, d) says what each looks like, in units that compare. Of the
    `BREADTH` x `count` most doubtful, always the one that is least like those chosen so far
    (farthest first: Gonzalez, 1985; within a margin: Citovsky et al., 2021). Those of equal doubt
    come in their order.
    """
    order = np.argsort(-doubts, kind="stable")[: BREADTH * count]
    if len(order) <= count:
        return order.astype(np.int64)
    table = seen[order].astype(np.float64)
    taken = [0]
    distance = np.square(table - table[0]).sum(axis=1)
    distance[0] = -1.0
    while len(taken) < count:
        place = int(np.argmax(distance))
        distance = np.minimum(distance, np.square(table - table[place]).sum(axis=1))
        taken.append(place)
        distance[taken] = -1.0
    return order[taken].astype(np.int64)


def _log_odds(values: Floats) -> Floats:
    clipped = np.clip(values, _EDGE, 1 - _EDGE)
    found: Floats = np.log(clipped / (1 - clipped))
    return found
