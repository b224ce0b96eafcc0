"""Which line rate, and which encoder divider, make pixels square on a belt.

line rate = belt speed / pixel pitch; encoder counts per scan line = pixel pitch x counts per mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_ASPECT_TOLERANCE = 0.005
_LINK_SHARE = 0.9
"""Of a link's rate that pixels may take: headers and resends need the rest."""


@dataclass(frozen=True, slots=True)
class LineRatePlan:
    """What follows from a belt, a pixel and an encoder."""

    line_rate_hz: float
    """With `divider`, or for square pixels where there is no encoder."""
    line_rate_square_hz: float
    """For square pixels."""
    counts_per_scan_line: float | None
    """Encoder counts that one square pixel takes; None without an encoder."""
    divider_square: int | None
    """The whole divider nearest to it."""
    divider: int | None
    """What was asked for, or `divider_square`."""
    downweb_pitch_mm: float
    aspect: float
    """Downweb over crossweb pitch; 1 is square."""
    period_us: float
    mb_per_s: float | None
    """Pixels to carry, 1 byte each; None where the width is unknown."""
    warnings: tuple[str, ...]


def plan_line_rate(
    belt_mm_s: float,
    pixel_pitch_mm: float,
    counts_per_mm: float | None = None,
    divider: int | None = None,
    exposure_us: float | None = None,
    width: int | None = None,
    max_line_rate_hz: float | None = None,
    link_mb_per_s: float | None = None,
) -> LineRatePlan:
    """Plan a line rate; what is None is not checked. Raises ValueError for what cannot be."""
    _check_numbers(belt_mm_s, pixel_pitch_mm, counts_per_mm, divider, exposure_us)
    counts = None if counts_per_mm is None else pixel_pitch_mm * counts_per_mm
    square = None if counts is None else max(1, round(counts))
    used = divider if divider is not None else square
    pitch_mm = used / counts_per_mm if used and counts_per_mm else pixel_pitch_mm
    rate_hz = belt_mm_s / pitch_mm
    mb_per_s = None if width is None else rate_hz * width / 1e6
    return LineRatePlan(
        line_rate_hz=rate_hz,
        line_rate_square_hz=belt_mm_s / pixel_pitch_mm,
        counts_per_scan_line=counts,
        divider_square=square,
        divider=used,
        downweb_pitch_mm=pitch_mm,
        aspect=pitch_mm / pixel_pitch_mm,
        period_us=1e6 / rate_hz,
        mb_per_s=mb_per_s,
        warnings=(
            *_pixel_warnings(pitch_mm / pixel_pitch_mm, counts, used, square),
            *_exposure_warnings(rate_hz, exposure_us),
            *_camera_warnings(rate_hz, max_line_rate_hz, mb_per_s, link_mb_per_s),
        ),
    )


def _check_numbers(
    belt_mm_s: float,
    pixel_pitch_mm: float,
    counts_per_mm: float | None,
    divider: int | None,
    exposure_us: float | None,
) -> None:
    given = {
        "belt_mm_s": belt_mm_s,
        "pixel_pitch_mm": pixel_pitch_mm,
        "counts_per_mm": counts_per_mm,
        "divider": divider,
        "exposure_us": exposure_us,
    }
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be above 0, {value:g} was given")
    if divider is not None and counts_per_mm is None:
        raise ValueError("a divider divides encoder counts: counts_per_mm is needed with it")


def _pixel_warnings(
    aspect: float, counts: float | None, divider: int | None, square: int | None
) -> list[str]:
    if abs(aspect - 1) <= _ASPECT_TOLERANCE:
        return []
    text = f"pixels are not square: {aspect:.4f} times as long downweb as crossweb"
    if counts is not None and counts < 1:
        few = f"the encoder gives {counts:.3f} counts a pixel, fewer than one"
        return [f"{text}; {few}: use a finer encoder, or the camera's EncoderMultiplier"]
    if divider != square:
        return [f"{text}; the divider is {divider}, {square} is right"]
    if counts is None:
        return [text]
    why = f"no whole divider is nearer than {square} to {counts:.3f} counts a pixel"
    return [f"{text}; {why}: use a finer encoder, or a pixel pitch that fits the divider"]


def _exposure_warnings(rate_hz: float, exposure_us: float | None) -> list[str]:
    period_us = 1e6 / rate_hz
    if exposure_us is None or exposure_us < period_us:
        return []
    slower = f"slow the belt below {period_us / exposure_us:.0%}"
    why = f"exposure {exposure_us:g} us exceeds the scan line's period of {period_us:.1f} us"
    return [f"{why}: lower ExposureTime below it, or {slower}"]


def _camera_warnings(
    rate_hz: float,
    max_rate_hz: float | None,
    mb_per_s: float | None,
    link_mb_per_s: float | None,
) -> list[str]:
    warnings = []
    if max_rate_hz is not None and rate_hz > max_rate_hz:
        warnings.append(
            f"the camera cannot: {rate_hz:.0f} scan lines/s, at most {max_rate_hz:.0f}; slow the "
            f"belt to {max_rate_hz / rate_hz:.0%}, or use larger pixels"
        )
    if link_mb_per_s and mb_per_s and mb_per_s > _LINK_SHARE * link_mb_per_s:
        warnings.append(
            f"the link cannot: {mb_per_s:.1f} MB/s, at most {_LINK_SHARE:.0%} of "
            f"{link_mb_per_s:g} MB/s; lower Width or the belt's speed, or use a faster link"
        )
    return warnings
