"""Views of light guide plates of any make: what a network must have seen to judge a new one.

A `Scene` is one plate under one camera, everything about it drawn at random: pattern, light,
optics, sensor. A `View` is a window of 224 x 224 px of it, good or with flaws that can really be
seen.

A flaw's visibility is the least of two ratios. First, its signal-to-noise ratio for the best linear
detector, against `LEAST_ANSWER`: how far its change of the picture stands above what distracts
from it at each spatial frequency, that is noise, texture, unevenness, and a share of the pattern,
which distracts although it repeats. Second, by how many levels it changes its core, against the
least change that shows on this light and in this noise. A flaw of visibility 1 and at least
`LEAST_PX` px is seen. A view whose flaw is not is not given out: it is neither good nor bad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera.flaws import flawed_dots, random_flaw
from drivers.camera.patterns import (
    CANVAS_PX,
    COLUMNS,
    MARGIN_PX,
    ROWS,
    VIEW_PX,
    DotPattern,
    Dots,
    Floats,
    Grooves,
    blurred,
    floats,
    log_uniform,
    random_dots,
    random_grooves,
    smooth_noise,
)

LEAST_ANSWER = 10.0
LEAST_LEVELS = 3.0
LEAST_LEVELS_OF_LIGHT = 0.03
"""Relative to the local brightness."""
LEAST_LEVELS_OF_NOISE = 0.8
"""Relative to the deviation of a pixel's noise."""
LEAST_PX = 5
CORE_SHARE = 0.4
"""A flaw's core are the pixels that it changes by so much of its strongest change, at least."""
_STRONGEST = 15.0
_TRIES = 4
_FREQUENCIES = np.fft.fftfreq(VIEW_PX) * VIEW_PX
_RADII = np.rint(np.hypot(*np.meshgrid(_FREQUENCIES, _FREQUENCIES))).astype(np.intp)
"""Waves across the view at each place of its spectrum, in any direction."""
_LEAST_POWER = 0.1
"""Of rounding to whole levels."""
_INNER = slice(MARGIN_PX, MARGIN_PX + VIEW_PX)


@dataclass(frozen=True, slots=True)
class Light:
    """Levels of a plate and their unevenness; relative values unless they say levels."""

    base_level: float
    contrast: float
    """Of dots or crests against what lies between them; negative: dark ones."""
    gradient: float
    vignette: float
    mura: float
    """Deviation of the unevenness that a good plate may have."""
    texture: float
    texture_px: tuple[float, float]
    band: float
    """Extra brightness at an edge with LEDs; 0: none near."""
    beat: float
    """How far the pattern's contrast comes and goes."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """Optics, sensor and what is done to the picture; levels."""

    blur_px: float
    motion_px: tuple[int, int]
    noise_level: float
    shot_share: float
    """Of the noise that grows with the root of the brightness."""
    grain_px: float
    column_level: float
    row_level: float
    flicker_level: float
    gamma: float
    jpeg_quality: int
    """0: not compressed."""

    def picture(self, canvas: Floats) -> Floats:
        """The view of a canvas without noise, 0 to 255."""
        soft = cv2.blur(blurred(canvas, self.blur_px), self.motion_px)
        level = floats(soft)[_INNER, _INNER]
        if self.gamma != 1:
            level = floats(255 * (np.maximum(level, 0) / 255) ** self.gamma)
        return floats(np.clip(level, 0, 255))

    def noise(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Random numbers of deviation 1 for every pixel, and what is added to whole lines."""
        grain = rng.standard_normal((VIEW_PX, VIEW_PX), dtype=np.float32)
        if self.grain_px:
            soft = blurred(grain, self.grain_px)
            grain = soft / np.float32(soft.std())
        column = rng.normal(0, self.column_level, VIEW_PX)
        beat_px, phase = log_uniform(rng, 3, 60), float(rng.uniform(0, 2 * math.pi))
        flicker = self.flicker_level * np.sin(np.arange(VIEW_PX) * 2 * math.pi / beat_px + phase)
        row = rng.normal(0, self.row_level, VIEW_PX) + flicker
        return grain, np.add.outer(row, column).astype(np.float32)

    def noise_of(self, picture: Floats) -> Floats:
        """Deviation of each pixel's noise, levels."""
        shot = np.sqrt(np.maximum(picture, 1) / np.float32(128))
        share = np.float32(self.shot_share)
        return np.float32(self.noise_level) * (1 - share + share * shot)


@dataclass(frozen=True, slots=True)
class Scene:
    """A plate under a camera."""

    pattern: DotPattern | Grooves | None
    behind: DotPattern | None
    """A second pattern that shines through, coarse and soft."""
    light: Light
    sensor: Sensor
    pixel_pitch_mm: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Scene:
        """Any plate under any camera."""
        choice = rng.random()
        pattern: DotPattern | Grooves | None = None
        if choice < 0.75:
            pattern = random_dots(rng)
        elif choice < 0.9:
            pattern = random_grooves(rng)
        behind = _coarse_dots(rng) if rng.random() < 0.15 else None
        return cls(pattern, behind, _random_light(rng), _random_sensor(rng), _random_pitch_mm(rng))


@dataclass(frozen=True, slots=True)
class ShownFlaw:
    """A flaw as a view shows it."""

    kind: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in px of the view, ends exclusive."""
    contrast: float
    """Mean change over its core relative to the local brightness, signed."""
    visibility: float
    """How far it stands above the rest of the view; see the module."""

    @property
    def size_px(self) -> int:
        """Longer side of the box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class View:
    """A window of a plate."""

    pixels: NDArray[np.uint8]
    """(224, 224)."""
    flaws: tuple[ShownFlaw, ...]
    """None on a good view; the one that is seen best comes first."""


def take_view(scene: Scene, rng: np.random.Generator, is_defective: bool) -> View | None:
    """A random window of a scene; None if no flaw of a defective one can be seen.

    The same state of `rng` gives the same view on one processor.
    """
    ground = _Ground.random(scene, rng)
    canvas, flaws = ground.canvas, []
    wanted = int(rng.choice([1, 2, 3], p=[0.8, 0.15, 0.05])) if is_defective else 0
    for _ in range(wanted):
        canvas, flaw = _with_flaw(ground, canvas, rng)
        flaws.append(flaw)
    shown = sorted((flaw for flaw in flaws if flaw), key=lambda flaw: -flaw.visibility)
    if is_defective and not shown:
        return None
    return View(ground.exposed(canvas), tuple(shown))


@dataclass(frozen=True, slots=True)
class _Region:
    """The scored part of a view at a plate's edge: beside it each scan line repeats its last pixel,
    beyond it the last scan line is repeated, as the station completes its tiles."""

    row: NDArray[np.intp]
    """(224,): the scan line that each one shows."""
    column: NDArray[np.intp]
    """(224, 224): the column that each pixel shows."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Region:
        number = np.arange(VIEW_PX)
        row, column = number, np.broadcast_to(number, (VIEW_PX, VIEW_PX))
        if rng.random() < 0.12:
            border = rng.uniform(16, VIEW_PX / 2) + math.tan(rng.uniform(-0.05, 0.05)) * number
            column = np.maximum(column, border.astype(np.intp)[:, None])
        if rng.random() < 0.06:
            row = np.maximum(number, int(rng.integers(16, VIEW_PX // 2)))
        if rng.random() < 0.5:
            row, column = VIEW_PX - 1 - row[::-1], VIEW_PX - 1 - column[::-1, ::-1]
        return cls(row, column)

    @property
    def is_inside(self) -> NDArray[np.bool_]:
        number = np.arange(VIEW_PX)
        inside: NDArray[np.bool_] = (self.column == number) & (self.row == number)[:, None]
        return inside

    def completed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels of the region, repeated beside it."""
        return np.ascontiguousarray(np.take_along_axis(pixels, self.column, axis=1)[self.row])


@dataclass(frozen=True, slots=True)
class _Ground:
    """A good view, and what it takes to see what a flaw changes in it. Canvases in levels."""

    scene: Scene
    dots: Dots | None
    light: Floats
    """Canvas of the light without a pattern."""
    canvas: Floats
    clean: Floats
    """The view without noise."""
    grain: Floats
    lines: Floats
    distraction: Floats
    """Power spectrum of what distracts from a flaw, the same in every direction."""
    region: _Region

    @classmethod
    def random(cls, scene: Scene, rng: np.random.Generator) -> _Ground:
        light, sensor = scene.light, scene.sensor
        dots = scene.pattern.place(rng) if isinstance(scene.pattern, DotPattern) else None
        even = np.float32(light.base_level) * _illumination(light, rng)
        if scene.behind:
            soft = scene.behind.draw(scene.behind.place(rng))
            sigma = scene.behind.pitch_px / 5
            even *= 1 + np.float32(0.3) * blurred(soft, sigma)
        calm = even * _pattern_light(scene, dots, rng)
        canvas = calm * _unevenness(light, rng)
        clean = sensor.picture(canvas)
        grain, lines = sensor.noise(rng)
        regular = sensor.picture(calm)
        distracting = clean - regular + grain * sensor.noise_of(clean) + lines
        distracting += _pattern_share(scene) * (regular - regular.mean())
        return cls(
            scene, dots, even, canvas, clean, grain, lines, _round_power(distracting),
            _Region.random(rng),
        )  # fmt: skip

    def exposed(self, canvas: Floats) -> NDArray[np.uint8]:
        """The picture of this view with `canvas` in place of its own."""
        sensor = self.scene.sensor
        clean = sensor.picture(canvas)
        noisy = clean + self.grain * sensor.noise_of(clean) + self.lines
        pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if sensor.jpeg_quality:
            quality = [cv2.IMWRITE_JPEG_QUALITY, sensor.jpeg_quality]
            _, file = cv2.imencode(".jpg", pixels, quality)
            pixels = np.asarray(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE), np.uint8)
        return self.region.completed(pixels)

    def shown(self, kind: str, before: Floats, after: Floats) -> ShownFlaw | None:
        """What a flaw that made `after` of `before` looks like; None if nothing is left of it."""
        sensor = self.scene.sensor
        brightness = sensor.picture(before)
        change = (sensor.picture(after) - brightness) * self.region.is_inside
        size = np.abs(change)
        core = size >= CORE_SHARE * max(float(size.max()), 1e-3)
        if np.count_nonzero(core) < LEAST_PX:
            return None
        levels, light = float(size[core].mean()), float(brightness[core].mean())
        noise = float(sensor.noise_of(brightness)[core].mean())
        least = max(LEAST_LEVELS, LEAST_LEVELS_OF_LIGHT * light, LEAST_LEVELS_OF_NOISE * noise)
        answer = math.sqrt(float((_power(change) / self.distraction).sum()))
        visibility = min(answer / LEAST_ANSWER, levels / least)
        contrast = float(change[core].mean()) / max(light, 1.0)
        return ShownFlaw(kind, _box(core), contrast, visibility)


def _with_flaw(
    ground: _Ground, canvas: Floats, rng: np.random.Generator
) -> tuple[Floats, ShownFlaw | None]:
    """The canvas with one more flaw that can be seen, or as it is with None."""
    for _ in range(_TRIES):
        is_of_dots = canvas is ground.canvas and rng.random() < 0.22
        made = _dot_flaw(ground, rng) if is_of_dots else _laid_flaw(ground, canvas, rng)
        if made is None:
            continue
        changed, shown = made
        if shown and shown.visibility >= 1:
            return changed, shown
    return canvas, None


def _laid_flaw(
    ground: _Ground, canvas: Floats, rng: np.random.Generator
) -> tuple[Floats, ShownFlaw | None] | None:
    """A flaw on the plate, of a contrast that makes it as visible as chance wants it."""
    flaw, wanted = random_flaw(rng), log_uniform(rng, 1.1, _STRONGEST)
    shown = ground.shown(flaw.kind, canvas, flaw.on(canvas, ground.light))
    if shown is None:
        return None
    changed = flaw.scaled(wanted / max(shown.visibility, 1e-3)).on(canvas, ground.light)
    return changed, ground.shown(flaw.kind, canvas, changed)


def _dot_flaw(ground: _Ground, rng: np.random.Generator) -> tuple[Floats, ShownFlaw | None] | None:
    """A flaw of the printed dots, as strong as they are."""
    pattern, dots = ground.scene.pattern, ground.dots
    if dots is None or not isinstance(pattern, DotPattern):
        return None
    made = flawed_dots(pattern, dots, rng)
    if made is None:
        return None
    kind, others = made
    contrast = np.float32(ground.scene.light.contrast)
    before, after = 1 + contrast * pattern.draw(dots), 1 + contrast * pattern.draw(others)
    changed = ground.canvas * (np.maximum(after, 0) / np.maximum(before, np.float32(0.02)))
    return changed, ground.shown(kind, ground.canvas, changed)


def _pattern_light(scene: Scene, dots: Dots | None, rng: np.random.Generator) -> Floats:
    """Light of the pattern relative to what lies between its dots or crests."""
    pattern = scene.pattern
    if pattern is None:
        return np.ones_like(ROWS)
    field = pattern.draw(rng) if isinstance(pattern, Grooves) else pattern.draw(_given(dots))
    if scene.light.beat:
        beat_px, angle = log_uniform(rng, 30, 150), float(rng.uniform(0, math.pi))
        along = COLUMNS * np.float32(math.cos(angle)) + ROWS * np.float32(math.sin(angle))
        wave = np.cos(along * np.float32(2 * math.pi / beat_px))
        field = field * (1 - np.float32(scene.light.beat / 2) * (1 + wave))
    return _at_least(1 + np.float32(scene.light.contrast) * field, 0.02)


def _given(dots: Dots | None) -> Dots:
    assert dots is not None
    return dots


def _pattern_share(scene: Scene) -> float:
    """How much of the pattern distracts: little of a regular one, more of an irregular one."""
    pattern = scene.pattern
    if pattern is None:
        return 0.15
    if isinstance(pattern, Grooves):
        return 0.15 + pattern.size_jitter
    return min(0.15 + pattern.size_jitter + pattern.strength_jitter + pattern.jitter, 0.5)


def _illumination(light: Light, rng: np.random.Generator) -> Floats:
    """Relative brightness of the light that comes in, about 1."""
    x = (COLUMNS - CANVAS_PX / 2) / np.float32(VIEW_PX / 2)
    y = (ROWS - CANVAS_PX / 2) / np.float32(VIEW_PX / 2)
    turn = float(rng.uniform(0, 2 * math.pi))
    along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    bright = 1 + np.float32(light.gradient) * along
    bright -= np.float32(light.vignette / 2) * (x * x + y * y)
    if light.band:
        bright += _band(light, np.rot90(x, int(rng.integers(4))), rng)
    return _at_least(bright, 0.1)


def _band(light: Light, x: Floats, rng: np.random.Generator) -> Floats:
    """The edge that LEDs shine into: brighter, with a hot spot before each."""
    fade = np.exp(-(x + 1) / np.float32(rng.uniform(0.1, 0.6)))
    spots_px, phase = log_uniform(rng, 25, 250), float(rng.uniform(0, 2 * math.pi))
    # The side along which x does not change is where the LEDs stand in a row.
    beside = ROWS if np.ptp(x[0]) > np.ptp(x[:, 0]) else COLUMNS
    spots = 1 + np.float32(rng.uniform(0, 1)) * np.cos(beside * (2 * math.pi / spots_px) + phase)
    return floats(light.band / 2 * fade * spots)


def _unevenness(light: Light, rng: np.random.Generator) -> Floats:
    """Mura and texture of a good plate, about 1."""
    uneven = 1 + np.float32(light.mura) * smooth_noise(rng, log_uniform(rng, 25, 120))
    if light.texture:
        noise = rng.standard_normal((CANVAS_PX, CANVAS_PX), dtype=np.float32)
        sigma_x, sigma_y = light.texture_px
        fine = floats(cv2.GaussianBlur(noise, (0, 0), sigma_x, sigmaY=sigma_y))
        uneven *= 1 + np.float32(light.texture) * fine / fine.std()
    return _at_least(uneven, 0.2)


def _at_least(canvas: Floats, low: float) -> Floats:
    return floats(np.maximum(canvas, low))


def _power(view: Floats) -> Floats:
    """Power spectrum without the mean; its sum is that of the squares about the mean."""
    spectrum = floats(cv2.dft(view - view.mean(), flags=cv2.DFT_COMPLEX_OUTPUT))
    return floats((spectrum**2).sum(axis=2) / view.size)


def _round_power(view: Floats) -> Floats:
    """Power spectrum averaged over all directions."""
    power, radius = _power(view).ravel(), _RADII.ravel()
    mean = np.bincount(radius, power) / np.bincount(radius)
    return floats(np.maximum(mean, _LEAST_POWER)[_RADII])


def _box(core: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(core.any(axis=1)), np.flatnonzero(core.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _coarse_dots(rng: np.random.Generator) -> DotPattern:
    """LEDs behind a diffuser."""
    return replace(random_dots(rng), pitch_px=log_uniform(rng, 30, 120), jitter=0.0, growth=0.0)


def _random_light(rng: np.random.Generator) -> Light:
    base_level = float(rng.uniform(20, 220))
    is_dark = rng.random() < 0.25
    most = 0.9 if is_dark else min(1.6, 300 / base_level - 1)
    size = log_uniform(rng, 0.03, most) if rng.random() < 0.5 else float(rng.uniform(0.15, most))
    is_brushed = rng.random() < 0.25
    fine_px, long_px = log_uniform(rng, 0.6, 5), log_uniform(rng, 8, 60)
    texture_px = (0.8, long_px) if rng.random() < 0.5 else (long_px, 0.8)
    return Light(
        base_level=base_level,
        contrast=-size if is_dark else size,
        gradient=float(rng.uniform(-1, 1)) ** 3 * 0.4,
        vignette=_sometimes(rng, 0.4, 0.2),
        mura=_sometimes(rng, 0.6, 0.03),
        texture=log_uniform(rng, 0.003, 0.06) if rng.random() < 0.45 else 0.0,
        texture_px=texture_px if is_brushed else (fine_px, fine_px),
        band=_sometimes(rng, 0.12, 0.9),
        beat=_sometimes(rng, 0.15, 0.6),
    )


def _random_sensor(rng: np.random.Generator) -> Sensor:
    motion_px = int(rng.integers(2, 8)) if rng.random() < 0.15 else 1
    return Sensor(
        blur_px=log_uniform(rng, 0.3, 3),
        motion_px=(1, motion_px) if rng.random() < 0.6 else (motion_px, 1),
        noise_level=log_uniform(rng, 0.5, 8),
        shot_share=_sometimes(rng, 0.6, 1),
        grain_px=_sometimes(rng, 0.15, 0.8),
        column_level=_sometimes(rng, 0.4, 1.5),
        row_level=_sometimes(rng, 0.25, 1.2),
        flicker_level=_sometimes(rng, 0.15, 2),
        gamma=float(rng.uniform(0.7, 1.5)) if rng.random() < 0.25 else 1.0,
        jpeg_quality=int(rng.integers(80, 98)) if rng.random() < 0.1 else 0,
    )


def _random_pitch_mm(rng: np.random.Generator) -> float:
    return log_uniform(rng, 0.02, 0.2)


def _sometimes(rng: np.random.Generator, chance: float, most: float) -> float:
    """0, or with this chance up to `most`."""
    return float(rng.uniform(0, most)) if rng.random() < chance else 0.0
