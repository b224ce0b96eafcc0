"""Defects of any kind as canvases of -1 to 1: where a plate's light changes, and how strongly.

Every kind is drawn at random in size, shape, direction, softness and polarity. `Flaw.on` puts one
on a plate; `flawed_dots` are defects of the printed dots themselves. Lengths in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera.patterns import (
    CANVAS_PX,
    COLUMNS,
    MARGIN_PX,
    ROWS,
    VIEW_PX,
    DotPattern,
    Dots,
    Floats,
    blurred,
    floats,
    log_uniform,
    smooth_noise,
)

Effect = Literal["gain", "glow", "cover", "smear"]
Path = NDArray[np.float64]
_SUBPIXELS = 4
_SHIFT_BITS = 4
_DRAG_PX = 25
_BRIGHT_COVER, _DARK_COVER = 1.9, 0.1
"""Brightness of what covers a plate, relative to the plate's."""
_LEAST_PITCH_PX = 7.0
"""Dots closer together are too small to be judged one by one."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One defect on the canvas."""

    kind: str
    shade: Floats
    """-1 to 1, the largest magnitude 1."""
    effect: Effect
    """`gain` scales the light that is there, `glow` adds light, `cover` hides the pattern, `smear`
    drags it along."""
    contrast: float
    """Relative to the local brightness, signed; of a cover or smear its size is the opacity."""
    strongest: float
    """Largest magnitude of the contrast that is like this kind."""

    def scaled(self, factor: float) -> Flaw:
        """The same with `factor` times its contrast, as far as there is light to take or add."""
        bound = 1.0 if self.effect in ("cover", "smear") or self.contrast < 0 else 3.0
        size = min(abs(self.contrast * factor), self.strongest, bound)
        return replace(self, contrast=math.copysign(size, self.contrast))

    def on(self, level: Floats, light: Floats) -> Floats:
        """The canvas `level` with this flaw; `light` is its brightness without a pattern."""
        change = np.float32(self.contrast) * self.shade
        if self.effect == "gain":
            return floats(np.maximum(level * (1 + change), 0))
        if self.effect == "glow":
            return floats(np.maximum(level + light * change, 0))
        share = floats(np.abs(change))
        if self.effect == "smear":
            return level + share * (floats(cv2.blur(level, (1, _DRAG_PX))) - level)
        cover = light * floats(np.where(change > 0, _BRIGHT_COVER, _DARK_COVER))
        return level + share * (cover - level)


def random_flaw(rng: np.random.Generator) -> Flaw:
    """A flaw of a random kind somewhere on the view, of medium contrast."""
    kinds, weights = zip(*_KINDS, strict=True)
    make = kinds[int(rng.choice(len(kinds), p=np.array(weights) / sum(weights)))]
    flaw: Flaw = make(rng)
    return flaw


def flawed_dots(
    pattern: DotPattern, dots: Dots, rng: np.random.Generator
) -> tuple[str, Dots] | None:
    """A kind and the dots with one of them, or a few, wrong; None if dots are too small for it."""
    low, high = MARGIN_PX, MARGIN_PX + VIEW_PX
    inside = (dots.x > low) & (dots.x < high) & (dots.y > low) & (dots.y < high)
    candidates = np.flatnonzero(inside)
    if pattern.pitch_px < _LEAST_PITCH_PX or not len(candidates):
        return None
    one = int(rng.choice(candidates))
    distance = np.hypot(dots.x - dots.x[one], dots.y - dots.y[one])
    return _wrong_dots(pattern, dots, np.argsort(distance)[: int(rng.integers(2, 40))], rng)


def _wrong_dots(
    pattern: DotPattern, dots: Dots, near: NDArray[np.intp], rng: np.random.Generator
) -> tuple[str, Dots]:
    """`near`: the chosen dot and its neighbours, the nearest first."""
    kind = rng.choice(["missing_dot", "large_dot", "merged_dots", "dot_cluster", "shifted_dot"])
    few = near[: int(rng.choice([1, 1, 1, 2, 4]))]
    if kind == "missing_dot":
        return kind, dots.changed(few, strength=float(rng.choice([0.0, 0.0, 0.3])))
    if kind == "large_dot":
        return kind, dots.changed(few, size=float(rng.uniform(1.35, 2.2)))
    if kind == "dot_cluster":
        size = float(rng.choice([rng.uniform(0.5, 0.8), rng.uniform(1.2, 1.6)]))
        return kind, dots.changed(near, size=size)
    if kind == "shifted_dot":
        x, y = dots.x.copy(), dots.y.copy()
        reach, turn = pattern.pitch_px * rng.uniform(0.25, 0.45), rng.uniform(0, 2 * math.pi)
        x[few] += np.float32(reach * math.cos(turn))
        y[few] += np.float32(reach * math.sin(turn))
        return kind, replace(dots, x=x, y=y)
    middle_x, middle_y = float(dots.x[near[:2]].mean()), float(dots.y[near[:2]].mean())
    radius, strength = float(dots.radius[near[0]]), float(dots.strength[near[0]])
    return kind, dots.with_more(middle_x, middle_y, radius * rng.uniform(0.8, 1.3), strength)


def _scratch(rng: np.random.Generator) -> Flaw:
    """Straight, bent or broken, alone or a few side by side."""
    length_px = log_uniform(rng, 12, 260)
    thickness_px = min(log_uniform(rng, 0.8, 4), length_px / 10)
    path = _arc(length_px, float(rng.choice([0, rng.normal(0, 0.5)]))) @ _turn(rng)
    spacing_px = float(rng.uniform(2, 14))
    across = np.array([path[-1, 1] - path[0, 1], path[0, 0] - path[-1, 0]]) / length_px
    number = int(rng.choice([1, 1, 1, 2, 3, 6]))
    steps = [k * spacing_px * float(rng.uniform(0.6, 1.4)) for k in range(number)]
    paths = [path + across * step + rng.normal(0, 2, 2) * (number > 1) for step in steps]
    if length_px > 60 and rng.random() < 0.25:
        paths = [dash for path in paths for dash in np.array_split(path, 8)[::2]]
    centre = _somewhere(rng)
    shade = _strokes([path + centre for path in paths], thickness_px)
    return _flaw("scratch", _worn(shade, rng), rng, ("gain", "glow", "cover"), 0.6)


def _crack(rng: np.random.Generator) -> Flaw:
    """A jagged line with branches."""
    trunk = _wander(rng, log_uniform(rng, 25, 200), 0.45, 14)
    paths = [trunk]
    for _ in range(int(rng.integers(0, 5))):
        start = trunk[int(rng.integers(len(trunk)))]
        paths.append(start + _wander(rng, log_uniform(rng, 8, 60), 0.45, 7))
    centre = _somewhere(rng) - trunk.mean(axis=0)
    shade = _strokes([path + centre for path in paths], log_uniform(rng, 0.8, 3))
    return _flaw("crack", shade, rng, ("gain", "glow", "cover"), 0.4)


def _chip(rng: np.random.Generator) -> Flaw:
    """A broken-out corner: a polygon, its rim of the other polarity or brighter."""
    outline = _ragged(rng, log_uniform(rng, 3, 25), int(rng.integers(4, 9))) + _somewhere(rng)
    inner = _filled(outline) * np.float32(rng.uniform(0.2, 1))
    rim = _strokes([np.vstack([outline, outline[:1]])], log_uniform(rng, 1, 2.5))
    return _flaw("crack", inner + np.float32(rng.choice([-1, 1])) * rim, rng, ("gain", "glow"), 0.5)


def _bright_spot(rng: np.random.Generator) -> Flaw:
    shade = _blob(rng, log_uniform(rng, 1.2, 14), irregular=0.15)
    return _flaw("bright_spot", shade, rng, ("gain", "glow", "glow", "cover"), 1.0)


def _dark_spot(rng: np.random.Generator) -> Flaw:
    shade = _blob(rng, log_uniform(rng, 1.2, 14), irregular=0.25)
    return _flaw("dark_spot", shade, rng, ("gain", "gain", "cover"), 0.0)


def _speck(rng: np.random.Generator) -> Flaw:
    """A ragged particle."""
    outline = _ragged(rng, log_uniform(rng, 1.5, 12), int(rng.integers(5, 12)))
    shade = _filled(outline + _somewhere(rng))
    return _flaw("impurity", shade, rng, ("cover", "gain"), 0.2)


def _fibre(rng: np.random.Generator) -> Flaw:
    """A hair: a curly line."""
    path = _wander(rng, log_uniform(rng, 12, 180), float(rng.uniform(0.05, 0.4)), 40)
    shade = _strokes([path - path.mean(axis=0) + _somewhere(rng)], log_uniform(rng, 0.8, 3))
    return _flaw("impurity", shade, rng, ("cover", "gain", "glow"), 0.3)


def _dust(rng: np.random.Generator) -> Flaw:
    """Small grains strewn about."""
    centre, reach_px = _somewhere(rng), log_uniform(rng, 4, 50)
    shade = np.zeros((CANVAS_PX, CANVAS_PX), np.float32)
    for _ in range(int(rng.integers(3, 16))):
        outline = _ragged(rng, log_uniform(rng, 0.8, 3), 6) + centre + rng.normal(0, reach_px, 2)
        shade = np.maximum(shade, _filled(outline) * np.float32(rng.uniform(0.4, 1)))
    return _flaw("impurity", shade, rng, ("cover", "gain", "glow"), 0.35)


def _stain(rng: np.random.Generator) -> Flaw:
    """A large soft blot, cloudy, or with a dried rim; sometimes a fingerprint's ridges."""
    radius_px = log_uniform(rng, 8, 70)
    distance = _blob_distance(rng, radius_px, 0.3)
    soft_px = radius_px * float(rng.uniform(0.1, 0.8))
    fill = np.clip((1 - distance) * radius_px / soft_px + 0.5, 0, 1)
    rim = np.exp(-(((distance - 1) * radius_px / log_uniform(rng, 1, 6)) ** 2))
    rim_share = float(rng.choice([0, rng.uniform(0.2, 1)]))
    shade = fill * (1 - rim_share * float(rng.uniform(0.5, 1))) + rim_share * rim
    cloud = 1 + float(rng.uniform(0, 0.5)) * smooth_noise(rng, log_uniform(rng, 4, 25))
    if rng.random() < 0.12:
        wave_px = log_uniform(rng, 4, 10)
        cloud = 1 + np.sin(distance * radius_px * (2 * math.pi / wave_px))
    return _flaw("stain", shade * np.clip(cloud, 0, 2), rng, ("gain", "gain", "glow"), 0.4, 0.6)


def _bubble(rng: np.random.Generator) -> Flaw:
    """A ring with a highlight."""
    radius_px = log_uniform(rng, 2.5, 22)
    x, y = _offsets(rng)
    distance = np.hypot(x, y / np.float32(rng.uniform(0.7, 1)))
    rim_px = max(1.0, radius_px * float(rng.uniform(0.08, 0.3)))
    ring = np.exp(-(((distance - radius_px) / rim_px) ** 2))
    fill = float(rng.uniform(-0.4, 0.4)) * (distance < radius_px)
    glint_px = radius_px * float(rng.uniform(0.15, 0.4))
    glint = np.exp(-((x - radius_px / 3) ** 2 + (y + radius_px / 3) ** 2) / glint_px**2)
    shade = ring + fill + float(rng.choice([-1.0, 1.0, 0.0])) * glint
    return _flaw("bubble", shade, rng, ("gain", "glow"), 0.5)


def _dent(rng: np.random.Generator) -> Flaw:
    """Bright on one side, dark on the other."""
    x, y = _offsets(rng)
    size_px = log_uniform(rng, 2, 20)
    tilt = size_px * float(rng.uniform(-0.3, 0.3))
    bump = np.exp(-(x**2 + (y / float(rng.uniform(0.5, 2))) ** 2) / (2 * size_px**2))
    return _flaw("dent", (x + tilt) * bump, rng, ("gain",), 0.5, 0.6)


def _patch(rng: np.random.Generator) -> Flaw:
    """Mura beyond tolerance: a broad unevenness."""
    x, y = _offsets(rng)
    size_px, ratio = log_uniform(rng, 10, 60), float(rng.uniform(0.3, 1))
    shade = np.exp(-(x**2 + (y / ratio) ** 2) / (2 * size_px**2))
    return _flaw("patch", shade, rng, ("gain",), 0.5, 0.4)


def _streak(rng: np.random.Generator) -> Flaw:
    """A stripe along travel or across it, over the whole view or a part of it."""
    place = float(rng.uniform(MARGIN_PX + 4, MARGIN_PX + VIEW_PX - 4))
    width_px = log_uniform(rng, 0.6, 12)
    along, across = (ROWS, COLUMNS) if rng.random() < 0.5 else (COLUMNS, ROWS)
    shade = np.exp(-(((across - place) / width_px) ** 2))
    if rng.random() < 0.4:
        middle, reach = float(rng.uniform(0, CANVAS_PX)), log_uniform(rng, 30, 150)
        shade = shade * np.clip((reach - np.abs(along - middle)) / 6, 0, 1)
    return _flaw("streak", shade, rng, ("gain", "glow"), 0.5, 0.8)


def _smear(rng: np.random.Generator) -> Flaw:
    """Print dragged along, or washed out."""
    shade = _blob(rng, log_uniform(rng, 8, 45), irregular=0.3)
    return _flaw("smear", shade, rng, ("smear",), 0.5)


_KINDS: tuple[tuple[Callable[[np.random.Generator], Flaw], float], ...] = (
    (_scratch, 0.2), (_bright_spot, 0.13), (_dark_spot, 0.11), (_speck, 0.07), (_fibre, 0.1),
    (_dust, 0.05), (_stain, 0.09), (_bubble, 0.05), (_dent, 0.05), (_crack, 0.03), (_chip, 0.02),
    (_patch, 0.05), (_streak, 0.04), (_smear, 0.03),
)  # fmt: skip


def _flaw(
    kind: str,
    shade: NDArray[np.floating],
    rng: np.random.Generator,
    effects: tuple[Effect, ...],
    bright_share: float,
    strongest: float = 3.0,
) -> Flaw:
    """Soften and scale what was drawn; choose how it acts and whether it is bright or dark."""
    soft = floats(shade)
    if rng.random() < 0.5:
        soft = blurred(soft, log_uniform(rng, 0.4, 2.5))
    peak = max(float(np.abs(soft).max()), 1e-6)
    effect = effects[int(rng.integers(len(effects)))]
    sign = 1 if rng.random() < bright_share else -1
    return Flaw(kind, soft / np.float32(peak), effect, sign * 0.3, strongest)


def _somewhere(rng: np.random.Generator) -> NDArray[np.float64]:
    """A point (x, y) of the view, not quite at its border."""
    return rng.uniform(MARGIN_PX + 3, MARGIN_PX + VIEW_PX - 3, 2)


def _turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation by any angle, shape (2, 2)."""
    angle = float(rng.uniform(0, 2 * math.pi))
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _offsets(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Coordinates of the pixels about a random point, turned at random."""
    (x0, y0), turn = _somewhere(rng), _turn(rng).astype(np.float32)
    x, y = COLUMNS - np.float32(x0), ROWS - np.float32(y0)
    return x * turn[0, 0] + y * turn[0, 1], x * turn[1, 0] + y * turn[1, 1]


def _arc(length_px: float, bend: float) -> Path:
    """An arc about the origin, shape (25, 2); `bend` is its rise relative to its length."""
    along = np.linspace(-0.5, 0.5, 25)
    return np.stack([along, bend * (0.25 - along**2)], axis=1) * length_px


def _wander(rng: np.random.Generator, length_px: float, wild: float, steps: int) -> Path:
    """A path from the origin that changes its heading at every step, shape (steps + 1, 2)."""
    headings = float(rng.uniform(0, 2 * math.pi)) + np.cumsum(rng.normal(0, wild, steps))
    step = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length_px / steps)
    return np.vstack([np.zeros((1, 2)), np.cumsum(step, axis=0)])


def _ragged(rng: np.random.Generator, radius_px: float, corners: int) -> Path:
    """A polygon about the origin, stretched at random, shape (corners, 2)."""
    turns = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    radii = radius_px * rng.uniform(0.5, 1.4, corners)
    outline = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radii[:, None]
    return (outline * (1, float(rng.uniform(0.5, 1)))) @ _turn(rng)


def _strokes(paths: list[Path], thickness_px: float) -> Floats:
    """Lines along paths: the covered share of each pixel."""
    fine = np.zeros((CANVAS_PX * _SUBPIXELS, CANVAS_PX * _SUBPIXELS), np.uint8)
    lines = [_fixed_point(path) for path in paths]
    thickness = max(1, round(thickness_px * _SUBPIXELS))
    cv2.polylines(fine, lines, False, 255, thickness, cv2.LINE_8, _SHIFT_BITS)
    return _coarse(fine)


def _filled(outline: Path) -> Floats:
    """A polygon: the covered share of each pixel."""
    fine = np.zeros((CANVAS_PX * _SUBPIXELS, CANVAS_PX * _SUBPIXELS), np.uint8)
    cv2.fillPoly(fine, [_fixed_point(outline)], 255, cv2.LINE_8, _SHIFT_BITS)
    return _coarse(fine)


def _fixed_point(path: Path) -> NDArray[np.int32]:
    # cv2 counts pixel centres as integers, at both resolutions.
    fine = (path + 0.5) * _SUBPIXELS - 0.5
    return np.round(fine * (1 << _SHIFT_BITS)).astype(np.int32).reshape(-1, 1, 2)


def _coarse(fine: NDArray[np.uint8]) -> Floats:
    share = cv2.resize(fine, (CANVAS_PX, CANVAS_PX), interpolation=cv2.INTER_AREA)
    return floats(share) / np.float32(255)


def _blob(rng: np.random.Generator, radius_px: float, irregular: float) -> Floats:
    """A spot: sharp, soft or without any rim."""
    distance = _blob_distance(rng, radius_px, irregular)
    if rng.random() < 0.3:
        return floats(np.exp(-(distance**2)))
    soft_px = max(1.0, radius_px * float(rng.uniform(0.05, 1)))
    return floats(np.clip((1 - distance) * np.float32(radius_px / soft_px) + 0.5, 0, 1))


def _blob_distance(rng: np.random.Generator, radius_px: float, irregular: float) -> Floats:
    """Distance from a random point relative to a blob's outline: below 1 inside."""
    x, y = _offsets(rng)
    y = y / np.float32(rng.uniform(0.6, 1))
    angle = np.arctan2(y, x)
    outline = np.ones_like(x)
    for waves in (2, 3, 5):
        phase = float(rng.uniform(0, 2 * math.pi))
        height = irregular * float(rng.normal(0, 0.5)) / math.sqrt(waves)
        outline += np.float32(height) * np.cos(waves * angle + np.float32(phase))
    return floats(np.hypot(x, y) / (np.float32(radius_px) * np.maximum(outline, 0.3)))


def _worn(shade: Floats, rng: np.random.Generator) -> Floats:
    """Sometimes stronger here and weaker there."""
    if rng.random() < 0.5:
        return shade
    wear = 0.6 + 0.4 * smooth_noise(rng, log_uniform(rng, 8, 60))
    return floats(shade * np.clip(wear, 0.05, 1.2))
