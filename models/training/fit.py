"""One training of one network: decided by its seed, not harmed by a kill."""

from __future__ import annotations

import hashlib
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.runtimes import instruction_sets
from models.training.ablations import WITHOUT_L1
from models.training.augment import augment
from models.training.data import DataError, Sample, labels_of, load_tiles
from models.training.loss import DISCREPANCY_WEIGHT, heads_loss
from models.training.networks import build

_IN_BF16 = ("resnet50",)
"""Trained in bfloat16 on a processor that has it: half of the time; the others' small convolutions
are slower so."""
_HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & set(instruction_sets()))
CHECKPOINT_FILE = "checkpoint.pt"
RESULT_FILE = "result.pt"
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """What is chosen by cross-validation."""

    name: str
    front_end: str
    is_pretrained: bool
    """Begins with the weights that the station ships, trained on rendered plates."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    batch: int = 16
    is_long: bool = False
    """Trained for more epochs: what begins with random weights learns on for long."""
    is_norm_frozen: bool = False
    """Norms keep the statistics that they begin with."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What decides the weights, beside the pictures."""

    name: str
    """Its folder in the run."""
    network: str
    recipe: TrainingRecipe
    seed: int
    epochs: int
    """Of the whole schedule of the learning rate."""
    stop_after: int
    """Epochs that are trained of it."""
    init: str = ""
    """File of weights to begin with; empty for random ones."""
    spec: str = ""
    """Of an explored network, JSON."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished training."""

    weights: dict[str, Tensor]
    held_scores: NDArray[np.float32]
    """Defect probability of each held-out sample after each epoch, (epochs, held)."""
    seconds: float
    """Of training, on `device`."""
    device: str
    code_revision: str


@dataclass(slots=True)
class _State:
    network: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    seconds: float = 0.0
    held_scores: list[Tensor] = field(default_factory=list)


def run_fit(
    fit: Fit,
    samples: Sequence[Sample],
    held: Sequence[Sample],
    data_sha256: str,
    run: Path,
    on_batch: Callable[[], object] = lambda: None,
) -> FitResult:
    """Train on `samples` and score `held` after every epoch, in `run`/`fit.name`.

    A finished fit is read, a killed one goes on after its last whole epoch. Raises `DataError` if
    the folder holds another one.
    """
    folder = run / fit.name
    identity = {"data_sha256": data_sha256, "held": len(held), **asdict(fit)}
    for later in ("is_long", "is_norm_frozen"):
        if not identity["recipe"][later]:
            del identity["recipe"][later]  # finished runs of before it came are still read
    if not fit.spec:
        del identity["spec"]
    if fit.init:
        identity["init"] = _sha256(Path(fit.init))
    if (folder / RESULT_FILE).is_file():
        return _read_result(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    state = _begin(fit, folder, identity)
    tiles, labels, held_tiles = load_tiles(samples), labels_of(samples), load_tiles(held)
    while state.epoch < fit.stop_after:
        started = time.monotonic()
        _one_epoch(state, fit, tiles, labels, on_batch)
        state.epoch += 1
        state.seconds += time.monotonic() - started
        state.held_scores.append(torch.from_numpy(predict(state.network, held_tiles)))
        _save(folder / CHECKPOINT_FILE, _content(state, identity))
    return _finish(state, folder, identity)


def predict(network: nn.Module, tiles: NDArray[np.uint8], batch: int = 32) -> NDArray[np.float32]:
    """Defect probability float32 (n,), mean of all heads, of tiles uint8 (n, 1, 224, 224)."""
    device = next(network.parameters()).device
    network.eval()
    parts = [np.empty(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, len(tiles), batch):
            logits = network(torch.from_numpy(tiles[start : start + batch]).to(device))
            parts.append(logits.float().softmax(dim=2).mean(dim=1)[:, 1].cpu().numpy())
    return np.concatenate(parts)


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Begin with the weights in a file; the front end, and what has other shapes, stay as they are.

    Raises `DataError` if nothing in the file fits the network.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights, own = saved["weights"], network.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape and not name.startswith("front_end.")
    }
    if len(fitting) < len(own) / 2:
        raise DataError(f"{path}: the weights of another network")
    network.load_state_dict(fitting, strict=False)
    return network


def _sha256(weights: Path) -> str:
    """Of a file of weights to begin with: other weights under its name make another run. Raises
    `DataError`."""
    if not weights.is_file():
        raise DataError(f"{weights}: no weights to begin with; name a run with --init")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def _begin(fit: Fit, folder: Path, identity: dict[str, Any]) -> _State:
    network = build(fit.network, fit.recipe.front_end, fit.seed, fit.spec)
    if fit.init:
        load_weights(network, Path(fit.init))
    network = network.to(training_device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        network.parameters(), fit.recipe.learning_rate, weight_decay=fit.recipe.weight_decay
    )
    state = _State(network, optimizer)
    path = folder / CHECKPOINT_FILE
    if path.is_file():
        saved = _read(path, identity)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        state.epoch, state.seconds = saved["epoch"], saved["seconds"]
        state.held_scores = saved["held_scores"]
    return state


def training_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _one_epoch(
    state: _State,
    fit: Fit,
    tiles: NDArray[np.uint8],
    labels: NDArray[np.int64],
    on_batch: Callable[[], object],
) -> None:
    """Every tile once, in an order and with changes that only seed and epoch decide."""
    generator = torch.Generator().manual_seed(fit.seed * 100_003 + state.epoch)
    order = torch.randperm(len(tiles), generator=generator).numpy()
    size = fit.recipe.batch
    batches = math.ceil(len(tiles) / size)
    device = training_device()
    state.network.train()
    if fit.recipe.is_norm_frozen:
        _freeze_norms(state.network)
    for number in range(batches):
        chosen = order[number * size : (number + 1) * size]
        if len(chosen) == 1 and batches > 1:
            continue  # batch norm cannot learn from a single tile at 1 x 1
        for group in state.optimizer.param_groups:
            group["lr"] = _learning_rate(fit, state.epoch * batches + number, batches)
        batch = augment(torch.from_numpy(tiles[chosen]), generator).to(device)
        _step(state, fit, batch, torch.from_numpy(labels[chosen]).to(device))
        on_batch()


def _freeze_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _step(state: _State, fit: Fit, batch: Tensor, labels: Tensor) -> None:
    is_bf16 = batch.device.type == "cpu" and _HAS_BF16 and fit.network in _IN_BF16
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        logits = state.network(batch)
    weight = 0.0 if fit.network == WITHOUT_L1 else DISCREPANCY_WEIGHT
    loss = heads_loss(logits.float(), labels, weight)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()


def _learning_rate(fit: Fit, step: int, batches: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    steps = fit.epochs * batches
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm_up:
        return fit.recipe.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return fit.recipe.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _content(state: _State, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "identity": identity,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "seconds": state.seconds,
        "held_scores": state.held_scores,
    }


def _finish(state: _State, folder: Path, identity: dict[str, Any]) -> FitResult:
    weights = {name: value.cpu() for name, value in state.network.state_dict().items()}
    content = {
        "identity": identity,
        "weights": weights,
        "held_scores": torch.stack(state.held_scores),
        "seconds": state.seconds,
        "device": str(training_device()),
        "code_revision": code_revision(),
    }
    _save(folder / RESULT_FILE, content)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return _read_result(folder, identity)


def _read_result(folder: Path, identity: dict[str, Any]) -> FitResult:
    saved = _read(folder / RESULT_FILE, identity)
    scores = saved["held_scores"].numpy()
    revision = saved.get("code_revision", "unknown")
    return FitResult(saved["weights"], scores, saved["seconds"], saved["device"], revision)


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved["identity"] != identity:
        raise DataError(f"{path}: a run of other data or settings; name another folder")
    return saved


def _save(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    torch.save(content, temporary)
    temporary.replace(path)


def code_revision() -> str:
    """The commit of the checkout that this code runs from, with `+` if files differ from it, or
    `unknown`."""
    folder = str(Path(__file__).parent)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
