"""How large and how fast our network is beside the networks that it is measured against.

All of them take the same tiles uint8 (n, 1, 224, 224) and give probabilities (n, 2), in fp32 on one
thread of ONNX Runtime in sessions that are built as the station builds its own; ours also in the
faster precisions that this processor has and that need no other weights (int8 does). Baselines have
the three input channels that they were published with: the grey tile three times. All run in turn,
so that a busy machine slows them all; a ratio compares two runs of the same round. How fast a
precision is says nothing of whether it may judge: that is for the gate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.card import ModelError
from models.classifier import read_verified
from models.runtimes import (
    FASTER,
    Precision,
    Runner,
    build_runner,
    find,
    processor_name,
    runtime_name,
)
from models.training.baselines import BASELINES, build
from models.training.count import count_mflops, count_parameters
from models.training.front_end import TILE_PX, RawLevels
from models.training.onnx_graph import graph_of

BATCH = 10
ROUNDS = 20
_WARM_UP_ROUNDS = 2
_SEED = 0
_COLOURS = 3
"""Input channels of the baselines as they were published."""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """A network's size and speed. A ratio says how many times faster it is than that network."""

    network: str
    model: str | None
    """Id of a model of ours; baselines have random weights."""
    parameters: int
    """With each norm folded into the convolution before it."""
    mflops: float
    """2 x multiply-accumulates of one tile, millions."""
    ms_per_sample: float
    """Median of the rounds."""
    ratio_to_efficientnet_b0: float
    ratio_to_mobilenetv3_large: float
    ratio_to_resnet50: float
    processor: str
    runtime: str
    precision: str
    batch: int
    threads: int
    rounds: int


def benchmark(
    models: Mapping[str, Path], rounds: int = ROUNDS, on_step: Callable[[], object] = lambda: None
) -> list[BenchmarkRow]:
    """Rows of our models, given by id and folder, and then of the baselines.

    Calls `on_step` after each exported baseline and each round. Raises `ModelError` if a model is
    damaged or a graph would not run on the processor.
    """
    entries = []
    for name, folder in models.items():
        graph = read_verified(folder)[1]
        entries.append(_entry(name, graph, "fp32"))
        for precision in (each for each in FASTER if each != "int8"):
            with contextlib.suppress(ModelError):  # not here, or not really
                entries.append(_entry(name, graph, precision))
    for name in BASELINES:
        entries.append(_entry(name, export_baseline(name), "fp32"))
        on_step()
    times_ms = _time_in_turn(entries, rounds, on_step)
    return [_row(entry, entry.network in models, times_ms) for entry in entries]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A network in one precision."""

    network: str
    graph: bytes
    precision: Precision
    run: Callable[[NDArray[np.uint8]], object]

    @property
    def name(self) -> str:
        return f"{self.network} {self.precision}"


def _entry(network: str, graph: bytes, precision: Precision) -> _Entry:
    runner = build_runner(network, graph, precision)
    return _Entry(network, graph, precision, _whole_batch(runner, precision))


def _whole_batch(runner: Runner, precision: Precision) -> Callable[[NDArray[np.uint8]], object]:
    """ONNX Runtime takes a batch at once; the other runners only chunks of it."""
    return runner.run if precision == "fp32" else partial(find, runner)


def export_baseline(name: str) -> bytes:
    """A baseline with random weights: tiles uint8 (n, 1, 224, 224) -> probabilities (n, 2)."""
    return graph_of(_GreyBaseline(name).eval(), ("probabilities",))


class _GreyBaseline(nn.Module):
    """A baseline as it was published, for colours, which sees the grey tile three times."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.levels = RawLevels()
        self.network = _fold_norms(build(name, _COLOURS).eval())

    def forward(self, tiles: Tensor) -> Tensor:
        logits: Tensor = self.network(self.levels(tiles).expand(-1, _COLOURS, -1, -1))
        return logits.softmax(dim=1)


def _fold_norms(network: nn.Module) -> nn.Module:
    """As ours is exported; the exporter would do it too, but take half as long again."""
    for block in network.modules():
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()
    return network


def _time_in_turn(
    entries: Sequence[_Entry], rounds: int, on_step: Callable[[], object]
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds a tile of each entry in each round, by its name, after some rounds that do not
    count."""
    rng = np.random.default_rng(_SEED)
    tiles = rng.integers(0, 256, (BATCH, 1, TILE_PX, TILE_PX), np.uint8)
    times_ms = {entry.name: np.empty(rounds) for entry in entries}
    for number in range(-_WARM_UP_ROUNDS, rounds):
        for place in rng.permutation(len(entries)):
            taken_ms = _ms_per_tile(entries[place], tiles)
            if number >= 0:
                times_ms[entries[place].name][number] = taken_ms
        if number >= 0:
            on_step()
    return times_ms


def _ms_per_tile(entry: _Entry, tiles: NDArray[np.uint8]) -> float:
    started = perf_counter()
    entry.run(tiles)
    return (perf_counter() - started) * 1000 / len(tiles)


def _row(entry: _Entry, is_ours: bool, times_ms: Mapping[str, NDArray[np.float64]]) -> BenchmarkRow:
    own_ms = times_ms[entry.name]

    def ratio_to(baseline: str) -> float:
        return round(float(np.median(times_ms[f"{baseline} fp32"] / own_ms)), 2)

    return BenchmarkRow(
        network="lightdefectnet" if is_ours else entry.network,
        model=entry.network if is_ours else None,
        parameters=count_parameters(entry.graph),
        mflops=round(count_mflops(entry.graph), 2),
        ms_per_sample=round(float(np.median(own_ms)), 3),
        ratio_to_efficientnet_b0=ratio_to("efficientnet_b0"),
        ratio_to_mobilenetv3_large=ratio_to("mobilenetv3_large"),
        ratio_to_resnet50=ratio_to("resnet50"),
        processor=processor_name(),
        runtime=runtime_name(entry.precision),
        precision=entry.precision,
        batch=BATCH,
        threads=1,
        rounds=len(own_ms),
    )
