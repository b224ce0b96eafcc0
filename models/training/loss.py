"""The loss of heads that should all be right and yet look at different evidence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DISCREPANCY_WEIGHT = 0.1
DISCREPANCY_LIMIT = 0.2
"""The heads earn nothing by differing more than this: without a bound one head would learn to be
wrong."""
_LEAST_PROBABILITY = 1e-6


def heads_loss(
    logits: Tensor, labels: Tensor, discrepancy_weight: float = DISCREPANCY_WEIGHT
) -> Tensor:
    """`two_head_loss` of two heads, cross-entropy of one."""
    if logits.shape[1] == 1:
        return F.cross_entropy(logits[:, 0], labels)
    return two_head_loss(logits, labels, discrepancy_weight)


def two_head_loss(
    logits: Tensor, labels: Tensor, discrepancy_weight: float = DISCREPANCY_WEIGHT
) -> Tensor:
    """NLL of the mean probability, half of each head's cross-entropy, less their L1 discrepancy.

    `logits` float (n, 2 heads, 2 classes), `labels` int64 (n,). Returns a scalar. After Xu et al.,
    "LightDefectNet" (2023).
    """
    probabilities = F.softmax(logits, dim=2)
    mean = probabilities.mean(dim=1).clamp_min(_LEAST_PROBABILITY)
    joint = F.nll_loss(mean.log(), labels)
    single = F.cross_entropy(logits[:, 0], labels) + F.cross_entropy(logits[:, 1], labels)
    discrepancy = (probabilities[:, 0] - probabilities[:, 1]).abs().sum(dim=1)
    earned = torch.clamp(discrepancy, max=DISCREPANCY_LIMIT).mean()
    return joint + single / 2 - discrepancy_weight * earned
