"""What a network costs and promises before it is trained: its graph, its time, cheap scores."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from time import thread_time

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.training.explore.network import Explored, build, prepare_for_export
from models.training.explore.space import Spec
from models.training.front_end import TILE_PX
from models.training.loss import heads_loss
from models.training.onnx_graph import graph_of

BATCH = 10
ROUNDS = 24
_WARM_UP_ROUNDS = 3
_SEED = 0


def export(network: Explored) -> bytes:
    """The graph as the station would run it."""
    return graph_of(prepare_for_export(network.cpu()), ("probabilities", "defect_map"))


def session(model: bytes) -> ort.InferenceSession:
    """On one thread, as the station's own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one tile in a batch of 10 on one thread, measured in turn with the reference."""

    ratio: float
    """Of the reference's time, median of the rounds: below 1 is faster."""
    ms: float
    reference_ms: float


def latency(model: bytes, reference: bytes, rounds: int = ROUNDS) -> Latency:
    """The order changes from round to round, so that a busy machine slows both alike."""
    tiles = np.random.default_rng(_SEED).integers(0, 256, (BATCH, 1, TILE_PX, TILE_PX), np.uint8)
    own, other = session(model), session(reference)
    taken = np.empty((rounds, 2))
    for number in range(-_WARM_UP_ROUNDS, rounds):
        pair = (own, other) if number % 2 else (other, own)
        seconds = {id(each): _run_s(each, tiles) for each in pair}
        if number >= 0:
            taken[number] = seconds[id(own)], seconds[id(other)]
    own_ms, other_ms = np.median(taken, axis=0) * 1000 / BATCH
    ratio = float(np.median(taken[:, 0] / taken[:, 1]))
    return Latency(round(ratio, 4), round(float(own_ms), 4), round(float(other_ms), 4))


def _run_s(each: ort.InferenceSession, tiles: NDArray[np.uint8]) -> float:
    """This thread's time on the processor: what others take from it is not the network's."""
    started = thread_time()
    each.run(None, {"tiles": tiles})
    return thread_time() - started


def processor() -> str:
    """Its name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def zero_cost(
    spec: Spec, front_end: str, tiles: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Scores of an untrained network on one batch: how differently its units tell tiles apart
    (NASWOT, Mellor et al., 2021), how much flows through its weights (SynFlow, Tanaka et al., 2020)
    and the norm of its first gradient; the last two as logarithms."""
    batch = torch.from_numpy(tiles)
    network = build(spec, front_end, _SEED)
    network.train()
    return {
        "naswot": _naswot(network, batch),
        "synflow": _synflow(build(spec, front_end, _SEED)),
        "gradient": _gradient(network, batch, torch.from_numpy(labels)),
    }


def _naswot(network: nn.Module, batch: Tensor) -> float:
    """Log determinant of how often two tiles switch the same units."""
    count = len(batch)
    agree = torch.zeros(count, count, dtype=torch.float64)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on = (output.flatten(1) > 0).float()
        agree.add_((on @ on.T + (1 - on) @ (1 - on).T).double() / on.shape[1])

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.ReLU)]
    with torch.no_grad():
        network(batch)
    for hook in hooks:
        hook.remove()
    return round(float(torch.linalg.slogdet(agree)[1]), 4)


def _synflow(network: Explored) -> float:
    """Of the trunk and heads, for an input of ones with all weights made positive."""
    network.double().eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.dtype == torch.float64:
                value.abs_()
    ones = torch.ones(1, network.front_end.channels, TILE_PX, TILE_PX, dtype=torch.float64)
    network.zero_grad()
    network.classify(network.trunk(ones)).sum().backward()
    total = sum(
        float((p * p.grad).detach().sum()) for p in network.parameters() if p.grad is not None
    )
    return round(float(np.log10(max(total, 1e-300))), 4)


def _gradient(network: nn.Module, batch: Tensor, labels: Tensor) -> float:
    network.zero_grad()
    heads_loss(network(batch), labels).backward()
    squares = [float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None]
    return round(float(np.log10(max(sum(squares), 1e-300))) / 2, 4)
