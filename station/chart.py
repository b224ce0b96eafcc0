"""Small line charts as SVG, for reports that print without a network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 34
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_POINTS = 600
"""A longer series is drawn by the lowest and highest value of each of half as many parts."""

Floats = NDArray[np.float64]


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Floats]) -> bytes:
    """One line for each series, drawn over its index; NaN leaves a gap."""
    values = np.concatenate([np.asarray(line, np.float64) for line in series.values()])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    longest = max(len(line) for line in series.values())
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
    )
    parts = [
        head,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 15, title, "start", "bold"),
        *_axes(low, high, longest, x_label, y_label),
    ]
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_line(np.asarray(line, np.float64), longest, low, high, colour))
        parts.append(_text(_WIDTH - _RIGHT - 110 * number, 15, name, "end", "normal", colour))
    return "".join([*parts, "</svg>"]).encode()


def _text(
    x: float, y: float, text: str, anchor: str, weight: str = "normal", colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _axes(low: float, high: float, longest: int, x_label: str, y_label: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    frame = (
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" '
        'fill="none" stroke="#999"/>'
    )
    y_axis = (
        f'<text transform="translate(12 {(_TOP + bottom) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle" fill="#222">{escape(y_label)}</text>'
    )
    return [
        frame,
        _text(_LEFT - 4, _TOP + 10, f"{high:.6g}", "end"),
        _text(_LEFT - 4, bottom, f"{low:.6g}", "end"),
        _text(_LEFT, bottom + 14, "0", "start"),
        _text(right, bottom + 14, str(longest - 1), "end"),
        _text((_LEFT + right) / 2, bottom + 26, x_label, "middle"),
        y_axis,
    ]


def _line(line: Floats, longest: int, low: float, high: float, colour: str) -> str:
    index, values = _thinned(line)
    x = _LEFT + index / max(1, longest - 1) * (_WIDTH - _LEFT - _RIGHT)
    y = _TOP + (high - values) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
    path, is_down = [], False
    for at_x, at_y in zip(x, y, strict=True):
        if np.isfinite(at_y):
            path.append(f"{'L' if is_down else 'M'}{at_x:.1f} {at_y:.1f}")
        is_down = bool(np.isfinite(at_y))
    return f'<path d="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="1.2"/>'


def _thinned(line: Floats) -> tuple[Floats, Floats]:
    """Few enough points, the extremes among them."""
    if len(line) <= _POINTS:
        return np.arange(len(line), dtype=np.float64), line
    parts = np.array_split(np.arange(len(line)), _POINTS // 2)
    chosen = [
        sorted({int(part[np.argmin(line[part])]), int(part[np.argmax(line[part])])})
        for part in parts
    ]
    index = np.array([at for pair in chosen for at in pair])
    return index.astype(np.float64), line[index]
