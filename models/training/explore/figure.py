"""Accuracy against latency of every network that was trained shortly, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from models.training.explore.log import RANDOM, REFERENCE, SEARCH, Log
from models.training.explore.report import pareto

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "explore",
    "svg.fonttype": "none",
}
_MARKS = {
    RANDOM: ("o", "#888888", "random search"),
    SEARCH: ("D", "#1f5a8c", "explored"),
    REFERENCE: ("*", "#b5432e", "hand-made"),
}


def draw(path: Path, log: Log) -> None:
    """Write the picture as SVG or PNG, by the file's suffix. Raises OSError."""
    trained = [candidate for candidate in log.candidates if candidate.training]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for arm, (marker, color, label) in _MARKS.items():
            own = [candidate for candidate in trained if candidate.arm == arm]
            size = 90 if arm == REFERENCE else 18
            axes.scatter(
                [c.ratio for c in own], [c.auroc for c in own], size, color, marker=marker,
                label=label, zorder=3, linewidths=0,
            )  # fmt: skip
        front = pareto(trained)
        axes.plot(
            [c.ratio for c in front], [c.auroc for c in front],
            color="#222222", lw=0.8, drawstyle="steps-post", label="Pareto front",
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("time of the hand-made network's, one thread, batch 10")
        axes.set_ylabel("AUROC out of fold, short training")
        axes.legend(frameon=False, loc="lower right")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
