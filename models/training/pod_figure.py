"""The POD curves of all kinds as one picture: small multiples with band and observed shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from models.training.pod import POD, Detection, Reach

_PANEL_IN = (2.3, 2.2)
_CURVE, _DOTS, _BOUND = "#1f5a8c", "#222222", "#b5432e"
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "pod",
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One curve."""

    title: str
    x_label: str
    detection: Detection


def draw(path: Path, title: str, rows: Sequence[Sequence[Panel]]) -> None:
    """Write the panels as SVG or PNG, by the file's suffix. Raises OSError."""
    width_in, height_in = _PANEL_IN
    with mpl.rc_context(_STYLE):
        size_in = (width_in * len(rows[0]), height_in * len(rows) + 0.8)
        figure = Figure(figsize=size_in, layout="constrained")
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey=True)
        for axes_row, panels in zip(grid, rows, strict=True):
            axes_row[0].set_ylabel("probability of detection")
            for axes, panel in zip(axes_row, panels, strict=True):
                _draw_panel(axes, panel)
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(
            "Line: logistic fit; band: 95 % bound on either side; dots: observed shares, each with "
            "its 95 % interval; dashed: a90/95",
            fontsize=7,
        )
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    detection, reach = panel.detection, panel.detection.reach()
    shares = detection.shares()
    middle = np.array([share.figure.value for share in shares])
    ends = np.array([(share.figure.low, share.figure.high) for share in shares]).T
    axes.errorbar(
        [share.value for share in shares], middle, np.abs(ends - middle),
        fmt="o", color=_DOTS, markersize=3, elinewidth=0.6,
    )  # fmt: skip
    if curve := detection.curve():
        axes.fill_between(curve.values, curve.low, curve.high, color=_CURVE, alpha=0.2, lw=0)
        axes.plot(curve.values, curve.pod, color=_CURVE, lw=1.3)
    axes.axhline(POD, color="#888888", lw=0.6)
    _mark_bound(axes, reach)
    _set_scales(axes, panel, reach)


def _mark_bound(axes: Axes, reach: Reach) -> None:
    """a90/95, and in a few words why there is none or what is wrong with it."""
    words = reach.note.partition(":")[0].partition(" up to")[0]
    axes.text(0.04, 1.02, words, transform=axes.transAxes, color=_BOUND, fontsize=6.5)
    if reach.a90_95 is None:
        return
    axes.axvline(reach.a90_95, color=_BOUND, lw=0.9, ls="--")
    axes.annotate(
        f"{reach.a90_95:.2g}", (reach.a90_95, 0.02), (3, 0), textcoords="offset points",
        color=_BOUND,
    )  # fmt: skip


def _set_scales(axes: Axes, panel: Panel, reach: Reach) -> None:
    low, high = reach.measured or (_TICKS[0], _TICKS[-1])
    axes.set_xscale("log")
    axes.set_xlim(low / 1.1, high * 1.1)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(panel.title, fontsize=8, pad=10)
    axes.set_xlabel(panel.x_label)
