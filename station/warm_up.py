"""Whether camera and lamp have warmed up: temperature and dark level have stopped moving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WarmUpSample:
    """One look at a camera that is warming up."""

    at_s: float
    """Monotonic."""
    temperature_c: float | None
    """DeviceTemperature; None where the camera does not say."""
    dark_level: float | None
    """Mean grey level of scan lines without light; None if none were taken."""


@dataclass(frozen=True, slots=True)
class WarmUpLimits:
    """How still is still."""

    minutes: float = 10.0
    temperature_band_c: float = 0.5
    dark_band: float = 0.5
    """Grey levels."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the samples say."""

    is_stable: bool
    stable_for_s: float
    """How long the newest samples have stayed within the bands."""
    remaining_s: float
    """At least so long to go."""
    temperature_c: float | None
    dark_level: float | None
    detail: str


def judge_warm_up(samples: Sequence[WarmUpSample], limits: WarmUpLimits | None = None) -> WarmUp:
    """Judge samples in order of time. One that is not finite ends a stable time, and so does a
    reading that comes or goes."""
    limits = limits or WarmUpLimits()
    if not samples:
        return WarmUp(False, 0.0, 60 * limits.minutes, None, None, "no samples")
    newest = samples[-1]
    stable_s = newest.at_s - samples[_first_stable(samples, limits)].at_s
    if newest.temperature_c is None and newest.dark_level is None:
        stable_s = 0.0
    remaining_s = max(0.0, 60 * limits.minutes - stable_s)
    return WarmUp(
        is_stable=remaining_s == 0.0,
        stable_for_s=stable_s,
        remaining_s=remaining_s,
        temperature_c=newest.temperature_c,
        dark_level=newest.dark_level,
        detail=_detail(newest, limits, stable_s),
    )


def _first_stable(samples: Sequence[WarmUpSample], limits: WarmUpLimits) -> int:
    """The earliest sample from which on all stay within the bands."""
    spans = [_Span(limits.temperature_band_c), _Span(limits.dark_band)]
    first = len(samples) - 1
    for number in range(len(samples) - 1, -1, -1):
        sample = samples[number]
        is_within = [
            span.takes(value)
            for span, value in zip(spans, (sample.temperature_c, sample.dark_level), strict=True)
        ]
        if not all(is_within):
            break
        first = number
    return first


class _Span:
    """Lowest and highest value so far, of one kind of reading."""

    def __init__(self, band: float) -> None:
        self._band = band
        self._low, self._high = math.inf, -math.inf
        self._is_missing: bool | None = None

    def takes(self, value: float | None) -> bool:
        """Whether the value lies within the band of all before."""
        if self._is_missing not in (None, value is None):
            return False
        self._is_missing = value is None
        if value is None:
            return True
        if not math.isfinite(value):
            return False
        self._low, self._high = min(self._low, value), max(self._high, value)
        return self._high - self._low <= self._band


def _detail(newest: WarmUpSample, limits: WarmUpLimits, stable_s: float) -> str:
    parts = []
    if newest.temperature_c is not None:
        parts.append(f"{newest.temperature_c:.1f} C (band {limits.temperature_band_c:g})")
    if newest.dark_level is not None:
        parts.append(f"dark level {newest.dark_level:.2f} (band {limits.dark_band:g})")
    if newest.temperature_c is None:
        parts.append("the camera says no temperature")
    if not parts or (newest.temperature_c is None and newest.dark_level is None):
        return "neither temperature nor dark level is known"
    return f"{', '.join(parts)}: within for {stable_s / 60:.1f} of {limits.minutes:g} min"
