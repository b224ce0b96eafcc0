"""Drawings of a report as inline SVG: bars, a control chart, a map of the plate. Pure.

They print without a network, a script or a font of their own; a mark differs from another by its
shape, too, since a report may be printed grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from station.charts import Chart
from station.quality import ParetoRow

_WIDTH = 680
_INK, _GREY, _BLUE, _RED = "#222", "#999", "#1f5fa8", "#b00020"
_ROW_PX = 18
_MOST_LABELS = 12
_LETTER_PX = 8
"""With room beside it."""


def pareto_bars(rows: Sequence[ParetoRow]) -> str:
    """A bar a cause, its count, and the share of all up to it."""
    height = _ROW_PX * len(rows) + 4
    most = max(row.count for row in rows)
    drawn = []
    for number, row in enumerate(rows):
        y = number * _ROW_PX
        width = 300 * row.count / most
        drawn += [
            _text(0, y + 13, row.name[:34]),
            f'<rect x="200" y="{y + 3}" width="{width:.1f}" height="12" fill="{_BLUE}"/>',
            _text(206 + width, y + 13, str(row.count)),
            _text(_WIDTH, y + 13, f"{row.cumulative:.0%}", "end", _GREY),
        ]
    return _svg(height, drawn)


def control_chart(chart: Chart) -> str:
    """Points, centre and limits; a point that is out, or completes one of Nelson's rules, is a red
    square."""
    height, left, bottom, top = 190, 46, 150, 14
    width = _WIDTH - left - 8
    most = max(max(point.rate, point.high) for point in chart.points) * 1.08 or 1.0
    step = width / max(1, len(chart.points))

    def y(rate: float) -> float:
        return bottom - (bottom - top) * min(rate, most) / most

    drawn = [f'<path d="M{left} {top}V{bottom}H{_WIDTH - 8}" fill="none" stroke="{_GREY}"/>']
    for name in ("high", "low"):
        path = "".join(
            f"{'L' if n else 'M'}{left + n * step:.1f} {y(getattr(p, name)):.1f}h{step:.1f}"
            for n, p in enumerate(chart.points)
        )
        drawn.append(f'<path d="{path}" fill="none" stroke="{_GREY}" stroke-dasharray="4 3"/>')
    centre = y(chart.centre)
    drawn += [
        f'<path d="M{left} {centre:.1f}H{_WIDTH - 8}" stroke="{_GREY}"/>',
        _text(left - 5, centre + 4, f"{chart.centre:.1%}", "end", _GREY),
        _text(left - 5, bottom + 4, "0", "end", _GREY),
        _text(left - 5, top + 6, f"{most:.0%}", "end", _GREY),
    ]
    middles = [left + (n + 0.5) * step for n in range(len(chart.points))]
    points = " ".join(
        f"{x:.1f},{y(p.rate):.1f}" for x, p in zip(middles, chart.points, strict=True)
    )
    drawn.append(f'<polyline points="{points}" fill="none" stroke="{_INK}"/>')
    longest = max(1, *(len(point.label) for point in chart.points))
    fit = max(1, int(width / (_LETTER_PX * longest)))
    every = -(-len(middles) // min(_MOST_LABELS, fit))
    for number, (x, point) in enumerate(zip(middles, chart.points, strict=True)):
        drawn.append(_mark(x, y(point.rate), point.is_out or bool(point.rules)))
        if number % every == 0:
            drawn.append(_text(x, bottom + 15, point.label, "middle"))
            drawn.append(_text(x, bottom + 28, f"n {point.size}", "middle", _GREY))
    return _svg(height, drawn)


def plate_map(counts: NDArray[np.int64], cell_mm: float, size_mm: tuple[float, float]) -> str:
    """Defects by cell as the plate lies under the camera, leading edge up; the darker the more."""
    scale = min(420 / size_mm[0], 260 / size_mm[1])
    width, height = size_mm[0] * scale, size_mm[1] * scale
    most = max(1, int(counts.max(initial=0)))
    drawn = []
    for row, column in np.argwhere(counts):
        number = int(counts[row, column])
        x, y = column * cell_mm * scale, 16 + row * cell_mm * scale
        w, h = min(cell_mm * scale, width - x), min(cell_mm * scale, 16 + height - y)
        shade = 0.15 + 0.75 * number / most
        drawn.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{_RED}" '
            f'fill-opacity="{shade:.2f}"/>'
        )
        if w >= 16 and h >= 12:
            drawn.append(_text(x + w / 2, y + h / 2 + 4, str(number), "middle"))
    drawn += [
        f'<path d="M0 16h{width:.1f}v{height:.1f}H0z" fill="none" stroke="{_INK}"/>',
        _text(width / 2, 11, "leading edge", "middle", _GREY),
        _text(width + 8, 28, f"{size_mm[0]:g} x {size_mm[1]:g} mm"),
        _text(width + 8, 44, f"cells of {cell_mm:g} mm", colour=_GREY),
    ]
    return _svg(height + 20, drawn)


def _mark(x: float, y: float, is_marked: bool) -> str:
    if is_marked:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{_RED}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{_INK}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = _INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _svg(height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" width="100%" font-size="11" '
        f'font-family="sans-serif">{"".join(drawn)}</svg>'
    )
