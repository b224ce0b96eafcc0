"""What carries the light of a plate of any kind: dots, grooves, prisms or nothing. Lengths in px.

A pattern is drawn as a field of 0 (between) to 1 (on a dot, a crest) on a square canvas that is a
little larger than the view, so that nothing stops at the view's border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

VIEW_PX = 224
MARGIN_PX = 24
CANVAS_PX = VIEW_PX + 2 * MARGIN_PX
ROWS, COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[:CANVAS_PX, :CANVAS_PX])
"""Coordinates of the canvas' pixels."""
_FINEST_WAVE_PX = 60.0


def floats(values: object) -> Floats:
    """As float32."""
    return np.asarray(values, np.float32)


def blurred(canvas: Floats, sigma_px: float) -> Floats:
    """As soft as optics of this width make it."""
    return floats(cv2.GaussianBlur(canvas, (0, 0), sigma_px))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """As likely between 1 and 2 as between 2 and 4."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def smooth_noise(rng: np.random.Generator, scale_px: float) -> Floats:
    """A random canvas without a direction: mean 0, deviation 1, coarse to `scale_px`."""
    size = max(4, math.ceil(CANVAS_PX / max(scale_px / 2, 1)) + 2)
    coarse = rng.standard_normal((size, size), dtype=np.float32)
    coarse = blurred(coarse, 1.0)
    noise = floats(cv2.resize(coarse, (CANVAS_PX, CANVAS_PX), interpolation=cv2.INTER_CUBIC))
    return floats((noise - noise.mean()) / max(float(noise.std()), 1e-6))


@dataclass(frozen=True, slots=True)
class Warp:
    """A slow distortion of a pattern: two crossed waves."""

    amplitude_px: float
    length_px: float
    phase: float

    def moved(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Where the points (x, y) come to lie."""
        turn = np.float32(2 * math.pi / self.length_px)
        reach, phase = np.float32(self.amplitude_px), np.float32(self.phase)
        return x + reach * np.sin(turn * y + phase), y + reach * np.sin(turn * x + 2 * phase)


@dataclass(frozen=True, slots=True)
class Dots:
    """Dots on the canvas: float32 arrays of one length."""

    x: Floats
    y: Floats
    radius: Floats
    strength: Floats
    """Field at the dot's centre, about 1; 0: no dot."""

    def with_more(self, x: float, y: float, radius: float, strength: float) -> Dots:
        """These and one more."""
        return Dots(
            np.append(self.x, np.float32(x)),
            np.append(self.y, np.float32(y)),
            np.append(self.radius, np.float32(radius)),
            np.append(self.strength, np.float32(strength)),
        )

    def changed(self, place: NDArray[np.intp], size: float = 1.0, strength: float = 1.0) -> Dots:
        """The dots `place` larger and stronger by these factors."""
        radius, strengths = self.radius.copy(), self.strength.copy()
        radius[place] *= np.float32(size)
        strengths[place] *= np.float32(strength)
        return replace(self, radius=radius, strength=strengths)


@dataclass(frozen=True, slots=True)
class DotPattern:
    """A lattice of dots, or dots at random when `jitter` is large."""

    pitch_px: float
    aspect: float
    """Distance of the rows of dots relative to that of the dots in a row."""
    is_staggered: bool
    rotation_deg: float
    diameter_share: float
    """Of the pitch."""
    shape: Literal["round", "square", "diamond"]
    flattening: float
    """Short axis of a dot relative to its long one."""
    shape_deg: float
    profile: Literal["flat", "dome", "ring", "soft"]
    jitter: float
    """Largest displacement of a dot, relative to the pitch."""
    size_jitter: float
    strength_jitter: float
    growth: float
    """Relative change of the dots' size from one side of the view to the other, signed."""
    growth_deg: float
    warp: Warp

    def place(self, rng: np.random.Generator) -> Dots:
        """The dots of a view somewhere on the plate."""
        i, j = self._indices()
        x, y = self._lattice(i, j, rng)
        x, y = self.warp.moved(x, y)
        reach = self.jitter * self.pitch_px
        x += rng.uniform(-reach, reach, len(x)).astype(np.float32)
        y += rng.uniform(-reach, reach, len(y)).astype(np.float32)
        turn, middle = math.radians(self.growth_deg), CANVAS_PX / 2
        along = ((x - middle) * math.cos(turn) + (y - middle) * math.sin(turn)) / VIEW_PX
        size = 1 + self.growth * along + rng.normal(0, self.size_jitter, len(x))
        radius = np.clip(size, 0.3, 2.0) * (self.diameter_share * self.pitch_px / 2)
        strength = np.clip(1 + rng.normal(0, self.strength_jitter, len(x)), 0.2, 2.0)
        return Dots(x, y, radius.astype(np.float32), strength.astype(np.float32))

    def _indices(self) -> tuple[Floats, Floats]:
        reach = CANVAS_PX * 0.72 + 2 * self.pitch_px
        most_i = math.ceil(reach / self.pitch_px)
        most_j = math.ceil(reach / (self.pitch_px * self.aspect))
        j, i = np.mgrid[-most_j : most_j + 1, -most_i : most_i + 1]
        return i.ravel().astype(np.float32), j.ravel().astype(np.float32)

    def _lattice(self, i: Floats, j: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        if self.is_staggered:
            i = i + np.float32(0.5) * (j % 2)
        u = (i + rng.random(dtype=np.float32)) * np.float32(self.pitch_px)
        v = (j + rng.random(dtype=np.float32)) * np.float32(self.pitch_px * self.aspect)
        turn = math.radians(self.rotation_deg)
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        middle = np.float32(CANVAS_PX / 2)
        return u * cos - v * sin + middle, u * sin + v * cos + middle

    def draw(self, dots: Dots) -> Floats:
        """The field of these dots: each pixel belongs to the dot whose centre is nearest."""
        nearest = _nearest(dots, math.ceil(self.pitch_px))
        distance = self._distance(COLUMNS - dots.x[nearest], ROWS - dots.y[nearest])
        field = self._profile(distance, dots.radius[nearest])
        return floats(field * dots.strength[nearest])

    def _distance(self, x: Floats, y: Floats) -> Floats:
        turn = math.radians(self.shape_deg)
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        a = np.abs(x * cos + y * sin)
        b = np.abs(y * cos - x * sin) / np.float32(self.flattening)
        if self.shape == "square":
            return floats(np.maximum(a, b) * np.float32(1.13))  # the area of a circle
        if self.shape == "diamond":
            return floats((a + b) * np.float32(0.8))
        return floats(np.hypot(a, b))

    def _profile(self, distance: Floats, radius: Floats) -> Floats:
        if self.profile == "soft":
            return floats(np.exp(-(distance**2) / (radius**2 + np.float32(0.3))))
        disc = floats(np.clip(radius - distance + np.float32(0.5), 0, 1))
        if self.profile == "flat":
            return disc
        inner = np.clip(distance / np.maximum(radius, np.float32(0.5)), 0, 1) ** 2
        if self.profile == "dome":
            return floats(disc * (1 - np.float32(0.7) * inner))
        return floats(disc * (np.float32(0.25) + np.float32(0.75) * inner))


@dataclass(frozen=True, slots=True)
class Grooves:
    """Parallel grooves, or two crossed sets of them (prisms)."""

    pitch_px: float
    rotation_deg: float
    crest_share: float
    """Of the pitch."""
    profile: Literal["wave", "flat", "ridge", "saw"]
    is_crossed: bool
    size_jitter: float
    warp: Warp

    def draw(self, rng: np.random.Generator) -> Floats:
        """The field of a view somewhere on the plate."""
        x, y = self.warp.moved(COLUMNS, ROWS)
        field = self._set(x, y, self.rotation_deg, rng)
        if self.is_crossed:
            field = np.minimum(field, self._set(x, y, self.rotation_deg + 90, rng))
        return field

    def _set(self, x: Floats, y: Floats, turn_deg: float, rng: np.random.Generator) -> Floats:
        turn = math.radians(turn_deg)
        along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
        phase = along / np.float32(self.pitch_px) + rng.random(dtype=np.float32)
        groove = np.floor(phase).astype(np.intp)
        strength = 1 + rng.normal(0, self.size_jitter, 1 + int(groove.max() - groove.min()))
        height = (
            self._height(floats(phase - groove))
            * strength.astype(np.float32)[groove - groove.min()]
        )
        return floats(height)

    def _height(self, phase: Floats) -> Floats:
        """0 to 1 over one groove, `phase` 0 to 1."""
        if self.profile == "wave":
            return floats(0.5 - 0.5 * np.cos(np.float32(2 * math.pi) * phase))
        if self.profile == "saw":
            return floats(np.minimum(phase, (1 - phase) * np.float32(self.pitch_px / 1.5)))
        ridge = floats(1 - 2 * np.abs(phase - np.float32(0.5)))
        if self.profile == "ridge":
            return ridge
        rim = np.float32(max(2 / self.pitch_px, 1e-3))
        crest = (ridge - np.float32(1 - self.crest_share)) / rim
        return floats(np.clip(crest + np.float32(0.5), 0, 1))


def random_dots(rng: np.random.Generator) -> DotPattern:
    """Any dots that a view can resolve: 4 to 40 px apart, some as coarse as a row of LEDs."""
    is_coarse = rng.random() < 0.12
    pitch_px = log_uniform(rng, 40, 110) if is_coarse else log_uniform(rng, 4, 40)
    is_scattered = rng.random() < 0.15
    aspect = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.6, 1.6))
    shape = rng.choice(["round", "square", "diamond"], p=[0.8, 0.15, 0.05])
    profile = rng.choice(["flat", "dome", "ring", "soft"], p=[0.5, 0.2, 0.1, 0.2])
    return DotPattern(
        pitch_px=pitch_px,
        aspect=aspect,
        is_staggered=bool(rng.random() < 0.4),
        rotation_deg=0.0 if rng.random() < 0.25 else float(rng.uniform(0, 90)),
        diameter_share=float(rng.uniform(0.2, 0.7)) * min(1.0, aspect),
        shape=shape,
        flattening=1.0 if rng.random() < 0.6 else float(rng.uniform(0.5, 1.0)),
        shape_deg=float(rng.uniform(0, 180)),
        profile="soft" if is_coarse and rng.random() < 0.7 else profile,
        jitter=float(rng.uniform(0.2, 0.4)) if is_scattered else _often_none(rng, 0.1),
        size_jitter=_often_none(rng, 0.12),
        strength_jitter=_often_none(rng, 0.15),
        growth=_often_none(rng, 0.6) * float(rng.choice([-1, 1])),
        growth_deg=float(rng.uniform(0, 360)),
        warp=random_warp(rng, pitch_px),
    )


def random_grooves(rng: np.random.Generator) -> Grooves:
    """Any grooves or prisms that a view can resolve."""
    pitch_px = log_uniform(rng, 4, 50)
    return Grooves(
        pitch_px=pitch_px,
        rotation_deg=float(rng.choice([0.0, 90.0, rng.uniform(0, 180)])),
        crest_share=float(rng.uniform(0.15, 0.7)),
        profile=rng.choice(["wave", "flat", "ridge", "saw"]),
        is_crossed=bool(rng.random() < 0.25),
        size_jitter=_often_none(rng, 0.12),
        warp=random_warp(rng, pitch_px),
    )


def random_warp(rng: np.random.Generator, pitch_px: float) -> Warp:
    """Mostly none; at most so steep that neighbours stay neighbours."""
    length_px = log_uniform(rng, max(_FINEST_WAVE_PX, 3 * pitch_px), 1500)
    steepest = 0.12 * length_px / (2 * math.pi)
    amplitude_px = _often_none(rng, 1.0) * min(steepest, 2 * pitch_px)
    return Warp(amplitude_px, length_px, float(rng.uniform(0, 2 * math.pi)))


def _often_none(rng: np.random.Generator, most: float) -> float:
    """0 half of the time, else up to `most`."""
    return float(rng.uniform(0, most)) if rng.random() < 0.5 else 0.0


def _nearest(dots: Dots, pad_px: int) -> NDArray[np.intp]:
    """For each pixel of the canvas the number of the dot whose centre is nearest to it."""
    size = CANVAS_PX + 2 * pad_px
    column = np.floor(dots.x + 0.5).astype(np.intp) + pad_px
    row = np.floor(dots.y + 0.5).astype(np.intp) + pad_px
    near = np.flatnonzero((column >= 0) & (column < size) & (row >= 0) & (row < size))
    seeds = np.full((size, size), 255, np.uint8)
    seeds[row[near], column[near]] = 0
    _, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(labels.max()) + 1, np.intp)
    number[labels[row[near], column[near]]] = near
    inner = slice(pad_px, pad_px + CANVAS_PX)
    return np.asarray(number[labels[inner, inner]], np.intp)
