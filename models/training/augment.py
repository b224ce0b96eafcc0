"""What may differ between two pictures of the same place: orientation, light, focus, noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GAIN = (0.6, 1.4)
OFFSET_LEVELS = 12.0
BLUR_SHARE = 0.15
NOISE_SHARE = 0.5
NOISE_LEVELS = 2.0


def augment(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (n, 1, 224, 224) uint8, turned, relit, blurred and made noisy at random."""
    tiles = _turn(tiles, generator)
    levels = _relight(tiles.float(), generator)
    levels = _blur(levels, generator)
    levels = _add_noise(levels, generator)
    return levels.round().clamp(0, 255).to(torch.uint8)


def _uniform(tiles: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) per tile, made on the CPU so that every device draws the same."""
    return torch.rand(len(tiles), 1, 1, 1, generator=generator).to(tiles.device)


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


def _blur(levels: Tensor, generator: torch.Generator) -> Tensor:
    """A [1 2 1] blur of random weight on a share of the tiles."""
    weight = _uniform(levels, generator) * (_uniform(levels, generator) < BLUR_SHARE)
    row = torch.tensor([0.25, 0.5, 0.25], device=levels.device)
    kernel = torch.outer(row, row)[None, None]
    blurred = F.conv2d(F.pad(levels, (1, 1, 1, 1), mode="replicate"), kernel)
    return levels + weight * (blurred - levels)


def _add_noise(levels: Tensor, generator: torch.Generator) -> Tensor:
    is_noisy = _uniform(levels, generator) < NOISE_SHARE
    sigma = NOISE_LEVELS * _uniform(levels, generator) * is_noisy
    noise = torch.randn(levels.shape, generator=generator).to(levels.device)
    return levels + sigma * noise
