"""What may differ between two pictures of the same place: orientation, place, light, noise."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT_PX = 12
GAIN = (0.7, 1.3)
OFFSET_LEVELS = 12.0
NOISE_SHARE = 0.5
NOISE_LEVELS = 2.0
_NOISE_TILES = 64


def augment(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (n, 1, 224, 224) uint8, turned, moved, relit and made noisy at random.

    All numbers are drawn on the CPU, so that every device draws the same.
    """
    moved = _turn(_move(tiles, generator), generator)
    levels = _relight(moved.float(), generator)
    levels += _noise(levels, generator)
    return levels.round_().clamp_(0, 255).to(torch.uint8)


def _uniform(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) per tile."""
    return torch.rand(len(tiles), 1, 1, 1, generator=generator).to(tiles.device)


def _move(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """Each tile by up to 12 px, what enters is mirrored."""
    edge = (SHIFT_PX,) * 4
    padded = F.pad(tiles.float(), edge, mode="reflect").to(torch.uint8)
    height, width = tiles.shape[2:]
    places = torch.randint(2 * SHIFT_PX + 1, (len(tiles), 2), generator=generator).tolist()
    cuts = [
        tile[:, y : y + height, x : x + width] for tile, (y, x) in zip(padded, places, strict=True)
    ]
    return torch.stack(cuts)


def _turn(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """Each tile by its own of the eight flips and quarter turns."""
    ways = torch.randint(8, (len(tiles),), generator=generator)
    turned = [_turn_one(tile, int(way)) for tile, way in zip(tiles, ways, strict=True)]
    return torch.stack(turned)


def _turn_one(tile: Tensor, way: int) -> Tensor:
    turned = torch.rot90(tile, way % 4, (1, 2))
    return turned.flip(2) if way >= 4 else turned


def _relight(levels: Tensor, generator: torch.Generator) -> Tensor:
    gain = GAIN[0] + (GAIN[1] - GAIN[0]) * _uniform(levels, generator)
    offset = OFFSET_LEVELS * (2 * _uniform(levels, generator) - 1)
    return levels * gain + offset


def _noise(levels: Tensor, generator: torch.Generator) -> Tensor:
    is_noisy = _uniform(levels, generator) < NOISE_SHARE
    sigma = NOISE_LEVELS * _uniform(levels, generator) * is_noisy
    chosen = torch.randint(_NOISE_TILES, (len(levels),), generator=generator)
    shift = int(torch.randint(levels.shape[2], (1,), generator=generator))
    noise = _noise_tiles(levels.shape[2], levels.shape[3])[chosen].roll(shift, 2)
    return sigma * noise.to(levels.device)


@cache
def _noise_tiles(height: int, width: int) -> Tensor:
    """Drawing fresh noise for each tile would take longer than the network's own step."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((_NOISE_TILES, 1, height, width), generator=generator)
