"""How often do control charts call while nothing is wrong?

    python benchmarks/chart_alarms.py [--charts 60] [--points 200] [--seed 1]

Charts of simulated plates, in control and with hours that vary by more than chance; beside the
usual limits of three standard deviations.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from station.charts import Chart, Group, chart

Counts = NDArray[np.int64]
SIZES = (60, 600, 3000)
RATES = (0.003, 0.02, 0.1)


def drawn(counts: Counts, size: int) -> Chart:
    return chart("p", [Group(str(i), size, int(count)) for i, count in enumerate(counts)])


def usual(counts: Counts, size: int) -> float:
    """Share of points beyond three standard deviations."""
    rate = counts.mean() / size
    sigma = np.sqrt(rate * (1 - rate) / size)
    return float((np.abs(counts / size - rate) > 3 * sigma).mean())


def row(name: str, size: int, rate: float, counted: Iterator[Counts]) -> None:
    """Alarms per 1,000 points: usual limits, ours, ours with rules, and what charts say."""
    three, limits, marked, said, laney = [], [], [], [], []
    for counts in counted:
        found = drawn(counts, size)
        three.append(usual(counts, size))
        limits.append(np.mean([point.is_out for point in found.points]))
        marked.append(np.mean([point.is_out or bool(point.rules) for point in found.points]))
        said.append(found.false_alarms_per_1000 or 0.0)
        laney.append(found.limits == "laney")
    figures = (1000 * np.mean(three), 1000 * np.mean(limits), 1000 * np.mean(marked), np.mean(said))
    cells = "".join(f"{figure:>12.2f}" for figure in figures)
    print(f"{name:22}{size:>6}{rate:>8}{cells}{100 * np.mean(laney):>9.0f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--charts", type=int, default=60)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, points = np.random.default_rng(options.seed), options.points
    names = ("3 sigma", "limits", "with rules", "as it says")
    print(f"{'alarms per 1,000':22}{'plates':>6}{'rate':>8}", end="")
    print("".join(f"{name:>12}" for name in names) + f"{'Laney':>11}")
    for size in SIZES:
        for rate in RATES:
            in_control = (rng.binomial(size, rate, points) for _ in range(options.charts))
            row("in control", size, rate, in_control)
    for size in SIZES[1:]:
        for rate in RATES[1:]:
            total = 400  # plates whose rate an hour is known from: a spread beside chance
            spread = (
                rng.binomial(size, rng.beta(rate * total, (1 - rate) * total, points))
                for _ in range(options.charts)
            )
            row("hours that vary", size, rate, spread)


if __name__ == "__main__":
    main()
