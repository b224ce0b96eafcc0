"""From a model that judges back to weights that a training can begin with.

An exported graph has its norms and scales folded into the convolutions, and keeps their names. Here
each norm gets the mean and spread that the folded convolution's output has on the pictures at hand,
and what makes up for both: so the network computes what the graph does, and trains like one that
was never folded. Nothing but the verified graph is needed, wherever it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from models.card import ModelCard
from models.classifier import read_verified
from models.training.data import DataError
from models.training.fit import predict
from models.training.front_end import FRONT_ENDS
from models.training.lightdefectnet import AttentionCondenser, ConvNorm, LightDefectNet

_PREFIX = "network."
_BATCH = 32
_TOLERANCE = 1e-3


def beginning_of(model: Path, tiles: NDArray[np.uint8], folder: Path) -> Path:
    """A file of weights in `folder` that compute what the model in the folder `model` does; the one
    that lies there if it was made of that model already. `tiles` are those to be trained on.

    Raises `ModelError`, and `DataError` if the graph is not LightDefectNet's.
    """
    card, graph = read_verified(model)
    path = folder / f"begin-{card.sha256[:16]}.pt"
    if path.is_file():
        return path
    front_end = _front_end(model, card)
    network = unfold(model, graph, front_end, tiles)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    identity = {"recipe": {"front_end": front_end}, "model_sha256": card.sha256}
    torch.save({"identity": identity, "weights": network.state_dict()}, temporary)
    temporary.replace(path)
    return path


def front_end_of(weights: Path) -> str:
    """Of a file of weights to begin with, a run's or an unfolded model's."""
    return str(torch.load(weights, weights_only=True)["identity"]["recipe"]["front_end"])


def _front_end(model: Path, card: ModelCard) -> str:
    for name, build in FRONT_ENDS.items():
        front_end = build()
        if (front_end.words, front_end.constants) == (card.input.front_end, card.input.constants):
            return name
    raise DataError(f"{model}: its front end is none of {', '.join(FRONT_ENDS)}; name its run")


def unfold(model: Path, graph: bytes, front_end: str, tiles: NDArray[np.uint8]) -> LightDefectNet:
    """The network of a graph, its norms measured on `tiles`. Raises `DataError`."""
    arrays = {
        tensor.name.removeprefix(_PREFIX): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load_from_string(graph).graph.initializer
    }
    network = LightDefectNet(front_end).eval()
    folded: dict[str, Tensor] = {}
    try:
        for name, module in network.named_modules():
            if isinstance(module, ConvNorm):
                folded[f"{name}.conv.weight"] = arrays[f"{name}.conv.weight"]
                folded |= _plain(name, arrays[f"{name}.conv.bias"], module.norm.eps)
            elif isinstance(module, AttentionCondenser):
                folded[f"{name}.scale"] = _scale(name, arrays)
        folded |= {name: arrays[name] for name in ("heads.weight", "heads.bias")}
        missing = network.load_state_dict(folded, strict=False).missing_keys
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"{model}: not a graph of LightDefectNet as it is here ({error}); name the run that it "
            "was exported from, or leave --init out"
        ) from error
    learned = {name for name, _ in network.named_parameters()}
    assert not learned & set(missing), missing
    before = predict(network, tiles[:_BATCH])
    _measure_norms(network, tiles)
    difference = float(np.abs(predict(network, tiles[:_BATCH]) - before).max())
    if not difference <= _TOLERANCE:
        raise DataError(f"{model}: unfolded, its scores change by {difference:.2g}; name its run")
    return network


def _plain(name: str, bias: Tensor, eps: float) -> dict[str, Tensor]:
    """A norm that adds the bias and nothing else."""
    return {
        f"{name}.norm.weight": torch.ones_like(bias),
        f"{name}.norm.bias": bias,
        f"{name}.norm.running_mean": torch.zeros_like(bias),
        f"{name}.norm.running_var": torch.full_like(bias, 1 - eps),
    }


def _scale(name: str, arrays: dict[str, Tensor]) -> Tensor:
    """Column A's is in the weights of its filter; column B's in the blur that follows it, whose
    own kernel sums to 1."""
    stage, _, column = name.rpartition(".attend_")
    if column == "b":
        return arrays[f"{stage}.down_b.kernel"].sum(dim=(1, 2, 3)).view(-1, 1, 1)
    channels = arrays[f"{name}.embed.1.conv.bias"]
    return torch.ones_like(channels).view(-1, 1, 1)


def _measure_norms(network: LightDefectNet, tiles: NDArray[np.uint8]) -> None:
    """Give each norm the statistics of what it takes, and make up for them."""
    sums: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def watch(norm: nn.BatchNorm2d) -> Callable[..., None]:
        def note(_module: nn.Module, taken: tuple[Tensor, ...], _given: Tensor) -> None:
            values = taken[0].double().transpose(0, 1).flatten(1)
            found = [torch.tensor(values.shape[1]), values.sum(1), values.square().sum(1)]
            sums[norm] = [a + b for a, b in zip(sums[norm], found, strict=True)]

        return note

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums.update({norm: [torch.zeros(())] * 3 for norm in norms})
    hooks = [norm.register_forward_hook(watch(norm)) for norm in norms]
    predict(network, tiles)
    for hook in hooks:
        hook.remove()
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        norm.bias.data += mean.float()
        norm.weight.data = (variance + norm.eps).sqrt().float()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
