"""Short and full trainings of small networks, several side by side, on a processor or a GPU.

Tiles lie on the device; a step draws, augments and learns from a batch there. On CUDA the steps of
all networks are one graph: networks this small spend their time on launching kernels otherwise.
The recipe is that of `vqi model train` from nothing; how an epoch is cut differs: batches are cut
from a stream of permutations, so that all are full.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from models.agreement import auroc
from models.training.augment import GAIN, NOISE_LEVELS, NOISE_SHARE, OFFSET_LEVELS, SHIFT_PX
from models.training.front_end import TILE_PX
from models.training.loss import heads_loss

BATCH = 16
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
_WARM_UP_SHARE = 0.05
_NOISE_TILES = 64
_CHECK_EVERY = 25
"""Steps between two looks at the clock."""


class OutOfTime(Exception):
    """The deadline came before the training was done."""


@dataclass(frozen=True, slots=True)
class Job:
    """One network to train: on these tiles, scored on those."""

    network: nn.Module
    seen: NDArray[np.int64]
    held: NDArray[np.int64]
    seed: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """Tiles uint8 (n, 1, 224, 224) and labels int64 (n,) on a device."""

    tiles: Tensor
    labels: Tensor

    @classmethod
    def on(cls, device: str, tiles: NDArray[np.uint8], labels: NDArray[np.int64]) -> Pictures:
        return cls(torch.from_numpy(tiles).to(device), torch.from_numpy(labels).to(device))


def train_together(
    jobs: Sequence[Job],
    pictures: Pictures,
    epochs: int,
    deadline: float = math.inf,
    is_eager: bool = False,
) -> tuple[list[NDArray[np.float32]], float]:
    """Train all jobs' networks. Defect probability of each job's held tiles after each of the last
    three epochs, (3, held), and the seconds it took. `is_eager`: no graph on CUDA. Raises
    `OutOfTime` at `deadline` (`time.time()`)."""
    started = time.time()
    steps = max(1, *(epochs * len(job.seen) // BATCH for job in jobs))
    device = pictures.tiles.device
    trainers = [_Trainer(job, pictures, steps, device) for job in jobs]
    ends = sorted({max(1, round(steps * (epochs - back) / epochs)) for back in (2, 1, 0)})
    run = _Steps(trainers, device.type == "cuda" and not is_eager)
    marks: list[list[NDArray[np.float32]]] = [[] for _ in jobs]
    for number in range(1, steps + 1):
        run.step()
        if number % _CHECK_EVERY == 0 and time.time() > deadline:
            raise OutOfTime
        if number in ends:
            for trainer, scores in zip(trainers, marks, strict=True):
                scores.append(predict(trainer.network, pictures.tiles, trainer.job.held))
    return [np.stack(scores) for scores in marks], time.time() - started


def predict(network: nn.Module, tiles: Tensor, which: NDArray[np.int64]) -> NDArray[np.float32]:
    """Defect probability float32 of the tiles at these places."""
    network.eval()
    parts = [np.empty(0, np.float32)]
    with torch.no_grad():
        for start in range(0, len(which), 64):
            places = torch.from_numpy(which[start : start + 64]).to(tiles.device)
            probabilities = network(tiles[places]).softmax(dim=2).mean(dim=1)[:, 1]
            parts.append(probabilities.float().cpu().numpy())
    network.train()
    return np.concatenate(parts)


class _Steps:
    """One step of every trainer at a time; on CUDA replayed as one graph, each on its stream."""

    def __init__(self, trainers: list[_Trainer], is_graph: bool) -> None:
        self._trainers, self._is_graph = trainers, is_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0
        if is_graph:
            self._streams = [torch.cuda.Stream() for _ in trainers]
            self._warm_up = torch.cuda.Stream()

    def step(self) -> None:
        self._done += 1
        if not self._is_graph:
            for trainer in self._trainers:
                trainer.step()
            return
        if self._graph is not None:
            self._graph.replay()
            return
        if self._done <= 3:  # libraries choose and allocate in the first steps
            self._warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._warm_up):
                self._fork()
            torch.cuda.current_stream().wait_stream(self._warm_up)
            return
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._warm_up):
            self._fork()
        self._graph = graph
        graph.replay()

    def _fork(self) -> None:
        here = torch.cuda.current_stream()
        for stream, trainer in zip(self._streams, self._trainers, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                trainer.step()
        for stream in self._streams:
            here.wait_stream(stream)


class _Trainer:
    """A network with all random numbers of its training, drawn beforehand on the CPU."""

    def __init__(self, job: Job, pictures: Pictures, steps: int, device: torch.device) -> None:
        self.job, self._pictures = job, pictures
        is_cuda = device.type == "cuda"
        layout = torch.contiguous_format if is_cuda else torch.channels_last
        self.network = job.network.to(device, memory_format=layout).train()
        self._rate = torch.tensor(LEARNING_RATE, device=device)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self._rate,
            weight_decay=WEIGHT_DECAY,
            capturable=is_cuda,
            foreach=is_cuda,
        )
        self._draws = _Draws.of(job, steps).to(device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)

    def step(self) -> None:
        draws = self._draws.at(self._number)
        self._rate.copy_(draws.rate[0])
        batch = _augment(self._pictures.tiles, draws)
        labels = self._pictures.labels.index_select(0, draws.order)
        loss = heads_loss(self.network(batch), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._number += 1


@dataclass(frozen=True, slots=True)
class _Draws:
    """Random numbers of all steps (steps, batch), or of one (batch,)."""

    order: Tensor
    shift_y: Tensor
    shift_x: Tensor
    way: Tensor
    gain: Tensor
    offset: Tensor
    sigma: Tensor
    noise: Tensor
    roll: Tensor
    rate: Tensor

    @classmethod
    def of(cls, job: Job, steps: int) -> _Draws:
        random = np.random.default_rng([job.seed, 7])
        count = steps * BATCH
        rounds = -(-count // len(job.seen))
        order = np.concatenate([random.permutation(job.seen) for _ in range(rounds)])[:count]

        def whole(bound: int) -> Tensor:
            return torch.from_numpy(random.integers(bound, size=(steps, BATCH)))

        def between(low: float, high: float) -> NDArray[np.float32]:
            return random.uniform(low, high, (steps, BATCH)).astype(np.float32)

        sigma = between(0, NOISE_LEVELS) * (between(0, 1) < NOISE_SHARE)
        rates = [_rate(step, steps) for step in range(steps)]
        return cls(
            order=torch.from_numpy(order.reshape(steps, BATCH)),
            shift_y=whole(2 * SHIFT_PX + 1) - SHIFT_PX,
            shift_x=whole(2 * SHIFT_PX + 1) - SHIFT_PX,
            way=whole(8),
            gain=torch.from_numpy(between(*GAIN)),
            offset=torch.from_numpy(between(-OFFSET_LEVELS, OFFSET_LEVELS)),
            sigma=torch.from_numpy(sigma.astype(np.float32)),
            noise=whole(_NOISE_TILES),
            roll=whole(TILE_PX),
            rate=torch.tensor(rates, dtype=torch.float32)[:, None],
        )

    def to(self, device: torch.device) -> _Draws:
        return _Draws(*(getattr(self, name).to(device) for name in _Draws.__slots__))

    def at(self, number: Tensor) -> _Draws:
        rows = (getattr(self, name).index_select(0, number)[0] for name in _Draws.__slots__)
        return _Draws(*rows)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm_up:
        return LEARNING_RATE * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2


def _augment(tiles: Tensor, draws: _Draws) -> Tensor:
    """What `augment.augment` does, as one look-up of pixels, so that it runs inside a graph."""
    ahead = torch.arange(TILE_PX, device=tiles.device)
    y = _mirrored(ahead + draws.shift_y[:, None])[:, :, None]
    x = _mirrored(ahead + draws.shift_x[:, None])[:, None, :]
    flips_y, flips_x, turns = ((draws.way >> bit & 1).bool()[:, None, None] for bit in range(3))
    y = torch.where(flips_y, TILE_PX - 1 - y, y)
    x = torch.where(flips_x, TILE_PX - 1 - x, x)
    pixel = torch.where(turns, x.transpose(1, 2) * TILE_PX + y.transpose(1, 2), y * TILE_PX + x)
    place = draws.order[:, None, None] * TILE_PX**2 + pixel
    levels = tiles.view(-1)[place].float()
    levels = levels * draws.gain[:, None, None] + draws.offset[:, None, None]
    columns = (ahead + draws.roll[:, None]) % TILE_PX
    noise = _noise(tiles.device)[
        draws.noise[:, None, None], ahead[None, :, None], columns[:, None, :]
    ]
    levels = levels + draws.sigma[:, None, None] * noise
    return levels.round().clamp(0, 255).to(torch.uint8)[:, None]


def _mirrored(places: Tensor) -> Tensor:
    """Places outside the tile, mirrored at its edge."""
    places = places.abs()
    return torch.where(places >= TILE_PX, 2 * (TILE_PX - 1) - places, places)


_noise_of: dict[torch.device, Tensor] = {}


def _noise(device: torch.device) -> Tensor:
    """Drawing fresh noise for each tile would take longer than the network's own step."""
    if device not in _noise_of:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((_NOISE_TILES, TILE_PX, TILE_PX), generator=generator)
        _noise_of[device] = noise.to(device)
    return _noise_of[device]


def fold_cuts(
    labels: NDArray[np.int64], groups: Sequence[str], seed: int, folds: int = 4
) -> list[NDArray[np.int64]]:
    """Indices to hold out in turn: whole parts, both classes in each."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    cuts = [held for _, held in splitter.split(np.zeros(len(labels)), labels, np.array(groups))]
    if any(len(set(labels[cut])) < 2 for cut in cuts):
        raise ValueError("the parts cannot be cut into folds with both classes")
    return cuts


def mean_area(
    labels: NDArray[np.int64],
    cuts: Sequence[NDArray[np.int64]],
    scores: Sequence[NDArray[np.float32]],
) -> float:
    """AUROC, mean of the folds and of the last epochs of each; of a diverged network half, as a
    coin would have."""
    areas = [
        np.mean([auroc(labels[cut], mark) if np.isfinite(mark).all() else 0.5 for mark in marks])
        for cut, marks in zip(cuts, scores, strict=True)
    ]
    return float(np.mean(areas))


Builder = Callable[[int], nn.Module]
"""A network with weights that a seed decides."""


def out_of_fold(
    build: Builder,
    pictures: Pictures,
    cuts: Sequence[NDArray[np.int64]],
    epochs: int,
    seed: int,
    deadline: float = math.inf,
    is_eager: bool = False,
) -> tuple[list[NDArray[np.float32]], float]:
    """Scores (3, held) of each fold by a network that never saw it, and the seconds it took."""
    everything = np.arange(len(pictures.labels))
    jobs = [
        Job(build(seed * 10 + k), np.setdiff1d(everything, held), held, seed * 10 + k)
        for k, held in enumerate(cuts)
    ]
    return train_together(jobs, pictures, epochs, deadline, is_eager)
