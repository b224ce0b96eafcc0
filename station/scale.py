"""Millimetres per pixel from the plate itself, without a target.

Where the recipe declares the pitch of the plate's dots, their lattice is the ruler: a peak of the
picture's spectrum says roughly how many pixels a pitch has; the phase of the lattice, followed from
the middle of the plate to its ends, says it to a few millionths (phase unwrapping; a pitch that
changes downweb is followed by its map). Otherwise the plate's outline, known in mm, is the ruler.

A picture's pixel u (column, row) and the plate's point p (x, y in mm) are related by p = M u + p0.
M^-1 = L R: R turns the plate as it lies on the belt, L is lower triangular: pixels per mm along the
scan line, pixels per mm along the travel, and how far the two are from square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from station.config import PlateRecipe
from station.outline import (
    CELL_PX,
    NoOutline,
    PlateArea,
    SideSamples,
    find_plate,
    side_of,
    sides_of,
)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_WINDOW_PX = 512
"""Side of the square whose spectrum is searched."""
_CROSSWEB_SEARCH = (0.7, 1.43)
_DOWNWEB_SEARCH = (0.3, 3.3)
"""A wrong encoder divider stretches the picture; the optics is never so far off."""
_TILT_SEARCH = 0.08
_LEAST_PEAK = 8.0
"""A lattice's peak stands so far above the median of the spectrum around it; noise reaches 4."""
_BLOCK_PITCHES = 6
_BLOCKS = 14
"""Blocks a side, at most, in which the lattice's phase is measured."""
_GROWTH = 1.6
_LEAST_BLOCKS = 9
_PARTS = 4
"""The plate is split in 4 x 4 parts (outline: each side in 8) to say how far they agree."""
_LEAST_AMPLITUDE = 0.25
"""Of the median: a block where the dots are not seen says nothing."""
_MOST_UNEVEN_PX = 3.0
_EDGE_DOUBT_PX = 0.5
"""A side lies where half of its step is reached: light, optics and the cut decide on this much."""

SCALE_TOLERANCE = 0.005
MOST_OUT_OF_SQUARE_DEG = 0.1


class ScaleRefused(ValueError):
    """The scale cannot be measured from this picture: what is missing, what to do."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A value and its standard error: how far parts of the plate agree (jackknife), and what half a
    pixel of doubt about where a side lies does to it."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Scale:
    """What a plate says about the picture's scale."""

    method: Literal["lattice", "lattice with pitch map", "outline"]
    crossweb_mm_per_px: Measured
    downweb_mm_per_px: Measured
    aspect: Measured
    """Downweb over crossweb mm per pixel; 1 where pixels are square."""
    squareness_deg: Measured
    """Of the scan line, from the perpendicular of the travel."""
    rotation_deg: Measured
    """Of the plate as it lies on the belt."""
    residual_mm: float
    """RMS distance of the dots (or sides) from a straight, even scale."""
    parts: int
    """Parts of the plate that were compared."""


def measure_scale(pixels: Pixels, plate: PlateRecipe, pixel_pitch_mm: float) -> Scale:
    """Measure the scale on the largest plate of a picture, uint8 (scan lines, columns).

    `pixel_pitch_mm` is what is configured, and where the search begins. Raises `ScaleRefused`.
    """
    try:
        area = find_plate(pixels, plate.belt_level)
        if plate.dot_pitch_mm is not None:
            return _from_lattice(pixels, area, plate, pixel_pitch_mm)
        if plate.outline == "whole":
            raise ScaleRefused(
                "the recipe declares neither the pitch of the plate's dots (plate.dot_pitch_mm) "
                "nor an outline that a picture shows (plate.outline is whole); declare one"
            )
        return _from_outline(pixels, area, plate)
    except NoOutline as error:
        hint = "" if plate.dot_pitch_mm else ", or declare plate.dot_pitch_mm if it has dots"
        raise ScaleRefused(f"{error}; show one whole plate with belt around it{hint}") from error


def scale_findings(scale: Scale, pixel_pitch_mm: float) -> tuple[str, ...]:
    """What is wrong with the scale, and what to do; empty if nothing."""
    across, along = scale.crossweb_mm_per_px.value, scale.downweb_mm_per_px.value
    findings = []
    if abs(across / pixel_pitch_mm - 1) > SCALE_TOLERANCE:
        findings.append(
            f"crossweb: {across:.5f} mm per pixel, {pixel_pitch_mm:g} is configured; correct "
            "camera.pixel_pitch_mm, or the working distance"
        )
    if abs(scale.aspect.value - 1) > SCALE_TOLERANCE:
        findings.append(
            f"downweb: {along:.5f} mm per pixel, {across:.5f} crossweb: the picture is stretched "
            f"{across / along:.4f} x; multiply EncoderDivider (or divide AcquisitionLineRate) by "
            f"{across / along:.4f}"
        )
    if abs(scale.squareness_deg.value) > MOST_OUT_OF_SQUARE_DEG:
        findings.append(
            f"the scan line is {scale.squareness_deg.value:+.3f} deg from square to the travel; "
            "turn the camera"
        )
    return tuple(findings)


# --- the lattice ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ruler:
    """The lattice as the recipe declares it: waves, in cycles per mm of a plate without a map."""

    waves: Floats
    """Shape (waves, 2): x, y."""
    places_mm: Floats
    pitches_mm: Floats
    pitch_mm: float

    @classmethod
    def of(cls, plate: PlateRecipe) -> _Ruler:
        assert plate.dot_pitch_mm is not None
        is_staggered = plate.dot_layout == "staggered"
        # Rows of a hexagonal lattice are closer together than its dots.
        period_mm = plate.dot_pitch_mm * (math.sin(math.pi / 3) if is_staggered else 1.0)
        step = math.pi / 3 if is_staggered else math.pi / 2
        turns = [math.radians(plate.dot_angle_deg) + k * step for k in range(2 + is_staggered)]
        waves = np.array([[math.cos(turn), math.sin(turn)] for turn in turns]) / period_mm
        table = np.array(plate.dot_pitch_map, np.float64).reshape(-1, 2)
        return cls(waves, table[:, 0], table[:, 1], plate.dot_pitch_mm)

    @property
    def has_map(self) -> bool:
        return len(self.places_mm) > 0

    def stretch(self, y_mm: Floats) -> Floats:
        """How much denser the dots lie downweb at `y_mm` than without a map."""
        if not self.has_map:
            return np.ones_like(y_mm)
        return self.pitch_mm / np.interp(y_mm, self.places_mm, self.pitches_mm)

    def unwarped(self, y_mm: Floats) -> Floats:
        """Where a dot at `y_mm` would lie without a map: the integral of `stretch`."""
        if not self.has_map:
            return y_mm
        places, pitches = self.places_mm, self.pitches_mm
        widths, changes = np.diff(places), np.diff(pitches)
        slopes = changes / widths
        pieces = [_log_integral(w, p, s) for w, p, s in zip(widths, pitches, slopes, strict=False)]
        starts = np.concatenate([[0.0], np.cumsum(pieces)])
        piece = np.clip(np.searchsorted(places, y_mm, "right") - 1, 0, len(slopes) - 1)
        inside = np.clip(y_mm, places[0], places[-1])
        grown = pitches[piece] + slopes[piece] * (inside - places[piece])
        is_even = np.abs(slopes[piece]) < 1e-12
        safe = np.where(is_even, 1.0, slopes[piece])
        along = np.where(
            is_even,
            (inside - places[piece]) / pitches[piece],
            np.log(grown / pitches[piece]) / safe,
        )
        beyond = (y_mm - inside) / np.where(y_mm < places[0], pitches[0], pitches[-1])
        return np.asarray(self.pitch_mm * (starts[piece] + along + beyond), np.float64)


def _log_integral(width_mm: float, pitch_mm: float, slope: float) -> float:
    """Pitches in a piece over which the pitch changes evenly."""
    if abs(slope) < 1e-12:
        return width_mm / pitch_mm
    return math.log1p(slope * width_mm / pitch_mm) / slope


def _from_lattice(
    pixels: Pixels, area: PlateArea, plate: PlateRecipe, pixel_pitch_mm: float
) -> Scale:
    ruler = _Ruler.of(plate)
    if ruler.has_map and "leading" in area.cut_sides:
        raise NoOutline("dot_pitch_map counts from the leading edge, which the picture cuts off")
    fit = _LatticeFit(pixels, area, ruler)
    fit.begin(plate, pixel_pitch_mm)
    fit.follow()
    to_mm, residual_mm = fit.solve(fit.is_good)
    replicates = [fit.solve(fit.is_good & (fit.part != part))[0] for part in fit.parts]
    method: Literal["lattice", "lattice with pitch map"] = (
        "lattice with pitch map" if ruler.has_map else "lattice"
    )
    doubtful = fit.from_another_edge() if ruler.has_map else to_mm
    return _scale(method, to_mm, replicates, doubtful, residual_mm)


class _LatticeFit:
    """Follows the phase of the lattice's waves from the middle of the plate to its ends."""

    def __init__(self, pixels: Pixels, area: PlateArea, ruler: _Ruler) -> None:
        self._pixels = pixels
        self._area = area
        self._ruler = ruler
        self._to_mm: Floats = np.eye(2)
        self._centres = np.empty((0, 2))
        self._z = np.empty((0, 0), np.complex128)

    def begin(self, plate: PlateRecipe, pixel_pitch_mm: float) -> None:
        """A first M from the spectrum, and the blocks to measure in."""
        area = self._area
        middle = _middle(area)
        self._origin = self._leading_edge() if self._ruler.has_map else middle
        middle_mm = np.array([plate.length_mm / 2 if self._ruler.has_map else 0.0])
        stretch = float(self._ruler.stretch(middle_mm)[0])
        waves = self._ruler.waves * [1.0, stretch]
        window, place = _window(self._pixels, area, middle)
        peaks = _find_peaks(window, waves * pixel_pitch_mm)
        self._to_mm = _solved(waves, peaks)
        if self._ruler.has_map:
            # The window's middle need not be the plate's: take the pitch where the window lies.
            at_mm = (self._to_mm @ (place - self._origin))[1:]
            waves = self._ruler.waves * [1.0, float(self._ruler.stretch(at_mm)[0])]
            self._to_mm = _solved(waves, peaks)
        self._start = place
        self._lay_blocks()

    def _leading_edge(self) -> Floats:
        """A point on the leading edge, from which a pitch map counts."""
        side = side_of(self._pixels, self._area, "leading")
        offset, slope, _ = side.line()
        x = float(side.at.mean())
        return np.array([x, offset + slope * x])

    def _lay_blocks(self) -> None:
        period = 1 / np.abs(self._ruler.waves @ self._to_mm).max(axis=0)
        size = np.clip(np.round(_BLOCK_PITCHES * period), 32, 256).astype(int)
        area = self._area
        low = np.array([area.left_px, area.top_px]) + size // 2 + CELL_PX
        high = np.array([area.right_px, area.bottom_px]) - size // 2 - CELL_PX
        axes = [
            np.unique(
                np.linspace(a, b, max(1, min(_BLOCKS, int((b - a) / (s / 2)) + 1))).astype(int)
            )
            for a, b, s in zip(low, high, size, strict=True)
            if b > a
        ]
        centres = [(x, y) for y in axes[1] for x in axes[0]] if len(axes) == 2 else []
        centres = [centre for centre in centres if _is_inside(area, centre, size)]
        if len(centres) < _LEAST_BLOCKS:
            raise ScaleRefused("the picture shows too little of the plate; show more of it")
        self._size = size
        self._centres = np.array(centres, np.float64)
        share = (self._centres - low) / np.maximum(high - low, 1)
        part = np.clip((share * _PARTS).astype(int), 0, _PARTS - 1)
        self.part = part[:, 0] * _PARTS + part[:, 1]
        self.is_good = np.ones(len(centres), np.bool_)

    @property
    def parts(self) -> list[int]:
        return [int(part) for part in np.unique(self.part[self.is_good])]

    def follow(self) -> None:
        """Fit in a growing neighbourhood, so that no phase is ever off by a whole turn."""
        away = np.hypot(*(self._centres - self._start).T)
        reach = float(np.sort(away)[min(_LEAST_BLOCKS, len(away)) - 1])
        is_last = False
        while not is_last:
            is_last = reach >= away.max()
            self._demodulate()
            self.is_good = (away <= reach) & self._is_seen()
            if self.is_good.sum() < _LEAST_BLOCKS:
                raise ScaleRefused(
                    "the plate's dots are seen in too few places; focus the lens, or check the "
                    "recipe's dot_pitch_mm"
                )
            self._to_mm, _ = self.solve(self.is_good)
            reach *= _GROWTH
        self._demodulate()
        self.is_good = self._is_seen()
        self._drop_outliers()

    def from_another_edge(self) -> Floats:
        """M if the leading edge, from which the map counts, were half a pixel further."""
        kept = self._to_mm, self._origin
        self._origin = self._origin + np.array([0.0, _EDGE_DOUBT_PX])
        for _ in range(2):
            self._demodulate()
            self._to_mm, _ = self.solve(self.is_good)
        moved, (self._to_mm, self._origin) = self._to_mm, kept
        return moved

    def _is_seen(self) -> NDArray[np.bool_]:
        amplitude = np.abs(self._z).min(axis=1)
        return np.asarray(amplitude > _LEAST_AMPLITUDE * np.median(amplitude), np.bool_)

    def _drop_outliers(self) -> None:
        """Blocks with a defect in them."""
        misfit = np.abs(self._misfit(self.is_good)).max(axis=1)
        limit = 6 * float(np.median(misfit[self.is_good])) + 1e-4
        self.is_good &= misfit <= limit

    def _demodulate(self) -> None:
        """Each block's content at the model's local frequency; complex, (blocks, waves)."""
        offsets = [np.arange(side) - side // 2 for side in self._size]
        window = np.outer(np.hanning(self._size[1]), np.hanning(self._size[0]))
        found = []
        for x, y in self._centres.astype(int):
            rows, columns = y + offsets[1], x + offsets[0]
            block = self._pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            level = block - float((block * window).sum() / window.sum())
            phase = self._phase(columns[None, :], rows[:, None])
            found.append([(level * window * np.exp(-2j * math.pi * wave)).sum() for wave in phase])
        self._z = np.array(found)

    def _phase(self, columns: NDArray[np.int_], rows: NDArray[np.int_]) -> list[Floats]:
        """Cycles of each wave by the model."""
        across, along = columns - self._origin[0], rows - self._origin[1]
        m = self._to_mm
        x_mm = m[0, 0] * across + m[0, 1] * along
        y_mm = self._ruler.unwarped(m[1, 0] * across + m[1, 1] * along)
        return [wave[0] * x_mm + wave[1] * y_mm for wave in self._ruler.waves]

    def solve(self, blocks: NDArray[np.bool_]) -> tuple[Floats, float]:
        """M that takes out what is left of the phases in these blocks, and its RMS misfit in mm."""
        change, misfit = self._least_squares(blocks)
        period_mm = 1 / float(np.hypot(*self._ruler.waves[0]))
        rms = float(np.sqrt((misfit[blocks] ** 2).mean()))
        return self._to_mm + change, rms * period_mm

    def _misfit(self, blocks: NDArray[np.bool_]) -> Floats:
        return self._least_squares(blocks)[1]

    def _least_squares(self, blocks: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Change of M by the phases of `blocks`; misfit in cycles of all, (blocks, waves)."""
        unit = self._z / np.maximum(np.abs(self._z), 1e-12)
        nearest = np.argsort(np.hypot(*(self._centres - self._start).T) + 1e9 * ~blocks)
        zero = unit[nearest[:_LEAST_BLOCKS]].mean(axis=0)
        cycles = np.angle(unit * np.conj(zero)) / (2 * math.pi)
        d = self._centres - self._origin
        stretch = self._ruler.stretch((d @ self._to_mm.T)[:, 1])
        count, waves = cycles.shape
        jacobian = np.zeros((count, waves, 4 + waves))
        for number, (across, along) in enumerate(self._ruler.waves):
            jacobian[:, number, 0:2] = across * d
            jacobian[:, number, 2:4] = (along * stretch)[:, None] * d
            jacobian[:, number, 4 + number] = 1.0
        found = _solved(jacobian[blocks].reshape(-1, 4 + waves), cycles[blocks].reshape(-1))
        return found[:4].reshape(2, 2), cycles - jacobian @ found


def _solved(a: Floats, b: Floats) -> Floats:
    """Least squares."""
    return np.asarray(np.linalg.lstsq(a, b, rcond=None)[0], np.float64)


def _middle(area: PlateArea) -> Floats:
    rows, columns = np.nonzero(area.is_plate)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) * CELL_PX


def _is_inside(area: PlateArea, centre: tuple[int, int], size: NDArray[np.int_]) -> bool:
    """The whole block, and a cell around it, is plate."""
    left, top = (int((c - s // 2) // CELL_PX) - 1 for c, s in zip(centre, size, strict=True))
    right, bottom = (int((c + s // 2) // CELL_PX) + 2 for c, s in zip(centre, size, strict=True))
    if left < 0 or top < 0:
        return False
    cells = area.is_plate[top:bottom, left:right]
    return cells.shape == (bottom - top, right - left) and bool(cells.all())


def _window(pixels: Pixels, area: PlateArea, middle: Floats) -> tuple[Floats, Floats]:
    """A rectangle in the plate's middle, less its mean, under a Hann window; and its middle."""
    sizes = (area.right_px - area.left_px, area.bottom_px - area.top_px)
    half = [min(_WINDOW_PX, int(0.7 * size)) // 2 for size in sizes]
    x, y = (int(value) for value in middle)
    part = pixels[max(0, y - half[1]) : y + half[1], max(0, x - half[0]) : x + half[0]]
    window = np.outer(np.hanning(part.shape[0]), np.hanning(part.shape[1]))
    level = part - float((part * window).sum() / window.sum())
    return level * window, np.array([x, y], np.float64)


def _find_peaks(window: Floats, waves: Floats) -> Floats:
    """Cycles per pixel of each wave, (waves, 2), near `waves` but for a stretch. Raises
    `ScaleRefused`."""
    size = 2 * _WINDOW_PX
    magnitude = np.abs(np.fft.fft2(window, (size, size)))
    kx, ky = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))
    # The wave that runs most along the travel says how far the picture is stretched.
    order = np.argsort(-np.abs(waves[:, 1]))
    peaks = np.zeros_like(waves)
    downweb = _DOWNWEB_SEARCH
    for number in order:
        across, along = waves[number]
        tilt = _TILT_SEARCH * float(np.hypot(across, along))
        is_near = _between(kx, across, _CROSSWEB_SEARCH, tilt)
        is_near &= _between(ky, along, downweb, tilt)
        peaks[number] = _peak(magnitude, is_near, kx, ky)
        if number == order[0]:
            found = peaks[number, 1] / along
            downweb = (0.97 * found, 1.03 * found)
    return peaks


def _between(
    k: Floats, wanted: float, span: tuple[float, float], slack: float
) -> NDArray[np.bool_]:
    low, high = sorted((wanted * span[0], wanted * span[1]))
    return (k >= low - slack) & (k <= high + slack)


def _peak(magnitude: Floats, is_near: NDArray[np.bool_], kx: Floats, ky: Floats) -> Floats:
    near = np.where(is_near, magnitude, 0)
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    median = float(np.median(magnitude[is_near])) if is_near.any() else 0.0
    if near[row, column] < _LEAST_PEAK * max(median, 1e-9):
        raise ScaleRefused(
            "no regular dots of the recipe's pitch are seen on the plate; focus the lens, and "
            "check dot_pitch_mm, dot_layout and dot_angle_deg"
        )
    size = len(magnitude)
    x, y = (
        _parabola([magnitude[(row + dy * s) % size, (column + dx * s) % size] for s in (-1, 0, 1)])
        for dx, dy in ((1, 0), (0, 1))
    )
    return np.array([kx[row, column] + x / size, ky[row, column] + y / size])


def _parabola(three: list[float]) -> float:
    """Where the top lies between three samples of a logarithmic peak, in samples."""
    a, b, c = np.log(np.maximum(three, 1e-12))
    bend = a - 2 * b + c
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (a - c) / bend, -1, 1))


# --- the outline ----------------------------------------------------------------------------------


def _from_outline(pixels: Pixels, area: PlateArea, plate: PlateRecipe) -> Scale:
    sides = sides_of(pixels, area)
    for name, side in sides.items():
        spread = side.line()[2]
        if spread > _MOST_UNEVEN_PX:
            raise ScaleRefused(
                f"the plate's {name} side is not straight: {spread:.1f} px; clean it, or use "
                "another plate"
            )
    size_mm = (plate.width_mm, plate.length_mm)
    parts = 2 * _PARTS
    to_mm = _outline_matrix(sides, size_mm, None, parts)
    replicates = [_outline_matrix(sides, size_mm, part, parts) for part in range(parts)]
    spread_px = float(np.mean([side.line()[2] for side in sides.values()]))
    larger_mm = tuple(
        length * (1 - 2 * _EDGE_DOUBT_PX / pixels)
        for length, pixels in zip(size_mm, _size_px(area), strict=True)
    )
    doubtful = _outline_matrix(sides, (larger_mm[0], larger_mm[1]), None, parts)
    residual_mm = spread_px * float(np.abs(to_mm).max())
    return _scale("outline", to_mm, replicates, doubtful, residual_mm)


def _size_px(area: PlateArea) -> tuple[int, int]:
    return area.right_px - area.left_px, area.bottom_px - area.top_px


def _outline_matrix(
    sides: dict[str, SideSamples], size_mm: tuple[float, float], without: int | None, parts: int
) -> Floats:
    """M from the four corners, without one part of every side."""

    def line(name: str) -> tuple[float, float]:
        side = sides[name]
        if without is None:
            return side.line()[:2]
        count = len(side.at)
        left_out = slice(count * without // parts, count * (without + 1) // parts)
        return side.line(left_out)[:2]

    left, right, leading, trailing = (
        line(name) for name in ("left", "right", "leading", "trailing")
    )
    corners = [[_corner(side, end) for side in (left, right)] for end in (leading, trailing)]
    (first, second), (third, fourth) = corners
    across = (second - first + fourth - third) / 2 / size_mm[0]
    along = (third - first + fourth - second) / 2 / size_mm[1]
    return np.linalg.inv(np.stack([across, along], axis=1))


def _corner(side: tuple[float, float], end: tuple[float, float]) -> Floats:
    """Where x = a + b y meets y = c + d x."""
    (a, b), (c, d) = side, end
    x = (a + b * c) / (1 - b * d)
    return np.array([x, c + d * x])


# --- what M says ----------------------------------------------------------------------------------


def _scale(
    method: Literal["lattice", "lattice with pitch map", "outline"],
    to_mm: Floats,
    replicates: list[Floats],
    doubtful: Floats,
    residual_mm: float,
) -> Scale:
    def measured(figure: Callable[[_Figures], float]) -> Measured:
        values = [figure(_figures(replicate)) for replicate in replicates]
        value = figure(_figures(to_mm))
        doubt = abs(figure(_figures(doubtful)) - value)
        return Measured(value, math.hypot(_jackknife(values), doubt))

    return Scale(
        method=method,
        crossweb_mm_per_px=measured(lambda found: found.crossweb),
        downweb_mm_per_px=measured(lambda found: found.downweb),
        aspect=measured(lambda found: found.downweb / found.crossweb),
        squareness_deg=measured(lambda found: found.squareness_deg),
        rotation_deg=measured(lambda found: found.rotation_deg),
        residual_mm=residual_mm,
        parts=len(replicates),
    )


@dataclass(frozen=True, slots=True)
class _Figures:
    crossweb: float
    downweb: float
    squareness_deg: float
    rotation_deg: float


def _figures(to_mm: Floats) -> _Figures:
    """M^-1 = L R taken apart."""
    (a, b), below = np.linalg.inv(to_mm)
    turn = math.atan2(-b, a)
    across, along = (
        np.array([math.cos(turn), -math.sin(turn)]),
        np.array([math.sin(turn), math.cos(turn)]),
    )
    return _Figures(
        crossweb=1 / math.hypot(a, b),
        downweb=1 / float(below @ along),
        squareness_deg=math.degrees(math.atan2(float(below @ across), float(below @ along))),
        rotation_deg=math.degrees(turn),
    )


def _jackknife(values: list[float]) -> float:
    """Standard error from leaving out one part at a time (Tukey 1958)."""
    count = len(values)
    spread = float(np.var(values)) if count > 1 else math.nan
    return math.sqrt((count - 1) * spread) if count > 1 else math.nan
