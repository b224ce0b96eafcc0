"""Training that a seed decides and a kill does not harm: a checkpoint after every epoch."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from models.training.augment import augment
from models.training.data import (
    DataError,
    Sample,
    data_sha256,
    hold_out,
    labels_of,
    load_tiles,
    read_folder,
    select,
)
from models.training.evaluate import auroc, best_threshold
from models.training.lightdefectnet import LightDefectNet
from models.training.loss import two_head_loss

CHECKPOINT_FILE = "checkpoint.pt"
SUMMARY_FILE = "summary.json"
VALIDATION_SHARE = 0.2
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the weights, beside the data."""

    epochs: int = 14
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 1


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    loss: float
    validation_loss: float
    validation_auroc: float


@dataclass(slots=True)
class RunState:
    """A run after some epochs: all that a checkpoint holds."""

    network: LightDefectNet
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    history: list[EpochReport] = field(default_factory=list)


def train(
    data: Path,
    run: Path,
    settings: TrainSettings,
    command: str,
    init: Path | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> dict[str, Any]:
    """Train on a folder and leave weights, checkpoint and `summary.json` in the folder `run`.

    Continues where a killed run of the same data and settings stopped. The split `val` chooses the
    epoch and the tile threshold; without one, whole groups are held out of `train`. `init` is a run
    whose weights to begin with. Returns the summary. Raises `DataError`.
    """
    samples = read_folder(data)
    fit, held = select(samples, "train"), select(samples, "val")
    if not held:
        fit, held = hold_out(fit, VALIDATION_SHARE, settings.seed)
    identity = {"data_sha256": data_sha256([*fit, *held]), **asdict(settings), "init": str(init)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    state = _begin(run, settings, identity, init, device)
    if state.epoch < settings.epochs:
        _run_epochs(state, settings, fit, held, run, identity, on_epoch)
    state.network.load_state_dict(state.best)
    summary = _summary(state, settings, samples, fit, held, data, command)
    _write_whole(run / SUMMARY_FILE, json.dumps(summary, indent=2).encode())
    return summary


def load_network(run: Path) -> LightDefectNet:
    """The chosen weights of a finished or unfinished run. Raises `DataError`."""
    network = LightDefectNet()
    network.load_state_dict(_read_checkpoint(run)["best"])
    return network.eval()


def predict(network: LightDefectNet, tiles: NDArray[np.uint8], batch: int = 64) -> Tensor:
    """Logits (n, 2, 2) of tiles uint8 (n, 1, 224, 224), on the CPU, in eval mode."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tiles), batch):
            parts.append(network(torch.from_numpy(tiles[start : start + batch]).to(device)).cpu())
    return torch.cat(parts)


def defect_probability(logits: Tensor) -> NDArray[np.float32]:
    """Mean of both heads, float32 (n,)."""
    scores: NDArray[np.float32] = logits.softmax(dim=2).mean(dim=1)[:, 1].numpy()
    return scores


def _run_epochs(
    state: RunState,
    settings: TrainSettings,
    fit: list[Sample],
    held: list[Sample],
    run: Path,
    identity: dict[str, Any],
    on_epoch: Callable[[EpochReport], None] | None,
) -> None:
    tiles, labels = load_tiles(fit), labels_of(fit)
    held_tiles, held_labels = load_tiles(held), labels_of(held)
    batches = math.ceil(len(tiles) / settings.batch)
    with _progress_bar() as bar:
        task = bar.add_task("training", total=settings.epochs * batches)
        bar.advance(task, state.epoch * batches)
        while state.epoch < settings.epochs:
            loss = _one_epoch(state, settings, tiles, labels, lambda: bar.advance(task))
            report = _validate(state, loss, held_tiles, held_labels)
            bar.update(task, description=f"val auroc {report.validation_auroc:.4f}")
            _write_checkpoint(run, state, identity)
            if on_epoch:
                on_epoch(report)


def _one_epoch(
    state: RunState,
    settings: TrainSettings,
    tiles: NDArray[np.uint8],
    labels: NDArray[np.int64],
    on_batch: Callable[[], object],
) -> float:
    """Every tile once, in an order and with changes that only seed and epoch decide."""
    generator = torch.Generator().manual_seed(settings.seed * 100_003 + state.epoch)
    order = torch.randperm(len(tiles), generator=generator).numpy()
    device = next(state.network.parameters()).device
    batches = math.ceil(len(tiles) / settings.batch)
    total = 0.0
    state.network.train()
    for number in range(batches):
        chosen = order[number * settings.batch : (number + 1) * settings.batch]
        if len(chosen) == 1 and batches > 1:
            continue  # batch norm cannot learn from a single tile at 1 x 1
        batch = augment(torch.from_numpy(tiles[chosen]), generator).to(device)
        for group in state.optimizer.param_groups:
            group["lr"] = _learning_rate(settings, state.epoch * batches + number, batches)
        loss = two_head_loss(state.network(batch), torch.from_numpy(labels[chosen]).to(device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        total += float(loss.detach()) * len(chosen)
        on_batch()
    return total / len(tiles)


def _learning_rate(settings: TrainSettings, step: int, batches: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    steps = settings.epochs * batches
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _validate(
    state: RunState, loss: float, tiles: NDArray[np.uint8], labels: NDArray[np.int64]
) -> EpochReport:
    logits = predict(state.network, tiles)
    held_loss = float(two_head_loss(logits, torch.from_numpy(labels)))
    area = auroc(labels, defect_probability(logits))
    state.epoch += 1
    report = EpochReport(state.epoch, loss, held_loss, area)
    earlier = [(r.validation_auroc, -r.validation_loss) for r in state.history]
    if not earlier or (area, -held_loss) >= max(earlier):
        weights = state.network.state_dict().items()
        state.best = {name: value.detach().cpu().clone() for name, value in weights}
        state.best_epoch = state.epoch
    state.history.append(report)
    return report


def _begin(
    run: Path,
    settings: TrainSettings,
    identity: dict[str, Any],
    init: Path | None,
    device: torch.device,
) -> RunState:
    network = (load_network(init) if init else LightDefectNet()).to(device)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    state = RunState(network, optimizer)
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINT_FILE).exists():
        _resume(run, state, identity)
    return state


def _resume(run: Path, state: RunState, identity: dict[str, Any]) -> None:
    saved = _read_checkpoint(run)
    if saved["identity"] != identity:
        raise DataError(f"{run}: holds a run of other data or settings; name another folder")
    state.network.load_state_dict(saved["network"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.epoch, state.best, state.best_epoch = saved["epoch"], saved["best"], saved["best_epoch"]
    state.history = [EpochReport(**report) for report in saved["history"]]


def _read_checkpoint(run: Path) -> dict[str, Any]:
    path = run / CHECKPOINT_FILE
    if not path.is_file():
        raise DataError(f"{run}: no training run ({CHECKPOINT_FILE} is missing)")
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def _write_checkpoint(run: Path, state: RunState, identity: dict[str, Any]) -> None:
    content = {
        "identity": identity,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "history": [asdict(report) for report in state.history],
    }
    temporary = run / f"{CHECKPOINT_FILE}.part"
    torch.save(content, temporary)
    temporary.replace(run / CHECKPOINT_FILE)


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _summary(
    state: RunState,
    settings: TrainSettings,
    samples: list[Sample],
    fit: list[Sample],
    held: list[Sample],
    data: Path,
    command: str,
) -> dict[str, Any]:
    labels = labels_of(held)
    scores = defect_probability(predict(state.network, load_tiles(held)))
    return {
        "data": str(data),
        "data_sha256": data_sha256(samples),
        "good": sum(sample.label == 0 for sample in fit),
        "defective": sum(sample.label == 1 for sample in fit),
        "groups": len({sample.group for sample in fit}),
        "validation_samples": len(held),
        "validation_auroc": auroc(labels, scores),
        "threshold": best_threshold(labels, scores),
        "best_epoch": state.best_epoch,
        "command": command,
        "code_revision": code_revision(),
        **asdict(settings),
    }


def code_revision() -> str:
    """The commit of the checkout that this code runs from, or `unknown`."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
