"""The networks that can be trained, by name. All take tiles uint8 (n, 1, 224, 224) and give logits
float32 (n, heads, 2)."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from models.training.ablations import ABLATIONS
from models.training.baselines import BASELINES
from models.training.baselines import build as build_baseline
from models.training.explore import network as explored
from models.training.explore.space import from_row
from models.training.front_end import FRONT_ENDS
from models.training.lightdefectnet import LightDefectNet
from models.training.patches import PATCHES, PatchNetwork

OURS = "lightdefectnet"
EXPLORED = "explored"
"""What its spec says: a point of `explore.space`."""
HAND = "hand"
NETWORKS = (OURS, EXPLORED, *BASELINES, *ABLATIONS)


class Baseline(nn.Module):
    """A baseline behind one of our front ends, with one head."""

    def __init__(self, name: str, front_end: str) -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]()
        self.network = build_baseline(name, self.front_end.channels)

    def forward(self, tiles: Tensor) -> Tensor:
        logits: Tensor = self.network(self.front_end(tiles))
        return logits.view(-1, 1, 2)


def build(name: str, front_end: str, seed: int, spec: str = "") -> nn.Module:
    """A network with weights that only `seed` decides; `spec`, JSON, is an explored one's. Raises
    KeyError for an unknown name, ValueError for what is no spec."""
    if name == EXPLORED:
        return explored.build(from_row(json.loads(spec)), front_end, seed)
    torch.manual_seed(seed)
    if name in BASELINES:
        return Baseline(name, front_end)
    if name == PATCHES:
        return PatchNetwork(front_end)
    network = LightDefectNet(front_end)
    if name != OURS:
        ABLATIONS[name](network)
    return network
