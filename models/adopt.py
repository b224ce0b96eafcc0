"""Somebody else's ONNX classifier in our form: tiles uint8 (n, 1, 224, 224) in, probabilities
of good and defective (n, 2) out.

What goes around it says how it wants its pictures and what it gives (`Wrapping`). Needs the `onnx`
package (the `train` or `edge` extra). The file is untrusted: it is parsed and wrapped in a
throw-away process.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.card import MAX_MODEL_BYTES, ModelError, read_bounded
from models.graph import GraphRefused, check_self_contained
from models.limited import Json, run_limited, serve_limited
from models.runtimes import TILE_PX

MAX_MFLOPS = 10_000
"""For one tile: a ResNet-50 has 7,716, and takes a hundred times as long as ours."""
_PREFIX = "adopted/"
_IR_VERSION = 10
"""The newest that ONNX Runtime 1.20 reads."""

Gives = Literal["probabilities", "logits"]


@dataclass(frozen=True, slots=True)
class Wrapping:
    """What is put around the graph."""

    channels: Literal[1, 3] = 1
    """3: the grey picture three times."""
    is_uint8: bool = False
    """It takes the 8-bit levels themselves; scale, mean and deviation are not applied then."""
    scale: float = 1 / 255
    """Its input is (level * scale - mean) / deviation, for each channel."""
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    gives: Gives = "logits"
    """Its two outputs; logits become probabilities by softmax."""
    defective: Literal[0, 1] = 1
    """Which of its outputs is that of a defect."""

    @property
    def words(self) -> str:
        """For a card."""
        if self.is_uint8:
            return f"the 8-bit levels in {self.channels} channels, as they are"
        return (
            f"(level * {self.scale:.6g} - {_listed(self.mean)}) / {_listed(self.deviation)} in "
            f"{self.channels} channels; then the adopted network"
        )

    @property
    def constants(self) -> dict[str, float]:
        """For a card."""
        if self.is_uint8:
            return {}
        means = {f"mean_{i}": value for i, value in enumerate(self.mean)}
        deviations = {f"deviation_{i}": value for i, value in enumerate(self.deviation)}
        return {"scale": self.scale, **means, **deviations}


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A graph in our form."""

    model: bytes
    opset: int
    parameters: int
    mflops: float
    has_defect_map: bool


def wrap(file: Path, wrapping: Wrapping) -> Wrapped:
    """Raises `ModelError` with the reason for a file that is not such a classifier."""
    model = read_bounded(file, MAX_MODEL_BYTES)
    try:
        check_self_contained(model)
    except GraphRefused as error:
        raise ModelError(f"{file}: refused: {error}") from error
    found = run_limited(__name__, {"file": str(file.resolve()), "wrapping": asdict(wrapping)})
    return Wrapped(**{**found, "model": base64.b64decode(found["model"])})


def _wrap(asked: Json) -> Json:
    try:
        import onnx

        from models.training.count import count_mflops, count_parameters
    except ImportError as error:
        raise ModelError(f"needs package onnx: pip install vqi-station[train] ({error})") from error
    given = asked["wrapping"]
    wrapping = Wrapping(**{**given, "mean": tuple(given["mean"]),
                           "deviation": tuple(given["deviation"])})  # fmt: skip
    file = Path(asked["file"])
    data = read_bounded(file, MAX_MODEL_BYTES)
    try:
        check_self_contained(data)  # once more: it may have been replaced
        foreign = onnx.load_from_string(data)
        onnx.checker.check_model(foreign, full_check=True)
        wrapped = _around(foreign, wrapping)
        onnx.checker.check_model(wrapped, full_check=True)
        data = wrapped.SerializeToString(deterministic=True)
        mflops, parameters = count_mflops(data), count_parameters(data)
    except KeyError as error:
        raise ModelError(f"{file}: refused: sizes inside it are known only when it runs") from error
    except (GraphRefused, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
            ValueError, TypeError) as error:  # fmt: skip
        raise ModelError(f"{file}: refused: {' '.join(str(error).split())}") from error
    if mflops > MAX_MFLOPS:
        raise ModelError(
            f"{file}: refused: {mflops:.0f} million operations a tile, {MAX_MFLOPS} at most"
        )
    opset = next(each.version for each in wrapped.opset_import if each.domain in ("", "ai.onnx"))
    return {
        "model": base64.b64encode(data).decode(),
        "opset": opset,
        "parameters": parameters,
        "mflops": round(mflops, 2),
        "has_defect_map": len(wrapped.graph.output) == 2,
    }


def _around(foreign: Any, wrapping: Wrapping) -> Any:
    """The model with our input and output. Raises ValueError if its own are not as `wrapping`
    says."""
    from onnx import TensorProto, compose, helper

    graph = foreign.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    _check_ends(inputs, list(graph.output), wrapping)
    compose.add_prefix(foreign, _PREFIX, inplace=True)
    tensor = _tensors(wrapping)
    before = [*_before(wrapping, inputs[0].name)]
    last = "classes" if wrapping.gives == "probabilities" else "softmax"
    after = [helper.make_node("Identity", [graph.output[0].name], ["classes"])]
    if wrapping.gives == "logits":
        after.append(helper.make_node("Softmax", ["classes"], ["softmax"], axis=1))
    after.append(helper.make_node("Gather", [last, "order"], ["probabilities"], axis=1))
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])]
    if len(graph.output) == 2:
        after.append(helper.make_node("Identity", [graph.output[1].name], ["defect_map"]))
        shape: list[str | int | None] = ["n", 1, 7, 7]
        outputs.append(helper.make_tensor_value_info("defect_map", TensorProto.FLOAT, shape))
    ours = helper.make_graph(
        [*before, *graph.node, *after],
        "adopted",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", 1, TILE_PX, TILE_PX])],
        outputs,
        [*tensor, *graph.initializer],
    )
    # Only the standard operators: an import of others that no node uses is left out.
    standard = [each for each in foreign.opset_import if each.domain in ("", "ai.onnx")]
    return helper.make_model(
        ours, opset_imports=standard, ir_version=_IR_VERSION, producer_name="vqi model adopt"
    )


def _tensors(wrapping: Wrapping) -> list[Any]:
    import numpy as np
    from onnx import numpy_helper

    def per_channel(values: tuple[float, ...]) -> Any:
        return np.broadcast_to(np.array(values, np.float32), (wrapping.channels,)).reshape(
            1, wrapping.channels, 1, 1
        )

    arrays: dict[str, Any] = {"order": np.array([1 - wrapping.defective, wrapping.defective])}
    if not wrapping.is_uint8:
        arrays["gain"] = per_channel((wrapping.scale,)) / per_channel(wrapping.deviation)
        arrays["offset"] = per_channel(wrapping.mean) / per_channel(wrapping.deviation)
    return [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()]


def _before(wrapping: Wrapping, its_input: str) -> list[Any]:
    from onnx import TensorProto, helper

    copies = ["tiles"] * wrapping.channels
    picture = [helper.make_node("Concat", copies, ["channels"], axis=1)]
    if wrapping.is_uint8:
        return [*picture, helper.make_node("Identity", ["channels"], [its_input])]
    return [
        *picture,
        helper.make_node("Cast", ["channels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "gain"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], [its_input]),
    ]


def _check_ends(inputs: list[Any], outputs: list[Any], wrapping: Wrapping) -> None:
    """Raises ValueError."""
    from onnx import TensorProto

    kind = TensorProto.UINT8 if wrapping.is_uint8 else TensorProto.FLOAT
    wanted = [wrapping.channels, TILE_PX, TILE_PX]
    name = "uint8" if wrapping.is_uint8 else "float"
    found = [_type_of(each) for each in inputs]
    if len(found) != 1 or found[0] != (kind, True, wanted):
        raise ValueError(
            f"it takes {_said(inputs)}; one input {name} (n, {wrapping.channels}, 224, 224) with a "
            "free n wanted: export it so, or say otherwise with --channels and --uint8"
        )
    given = [_type_of(each) for each in outputs]
    classes = (TensorProto.FLOAT, [2])
    maps = (TensorProto.FLOAT, [1, 7, 7])
    ends = [(kind, shape) for kind, _, shape in given]
    if ends not in ([classes], [classes, maps]) or not all(free for _, free, _ in given):
        raise ValueError(
            f"it gives {_said(outputs)}; float (n, 2) with a free n wanted, for good and defective,"
            " and at most a map float (n, 1, 7, 7)"
        )
    for values in (wrapping.mean, wrapping.deviation):
        if len(values) not in (1, wrapping.channels):
            raise ValueError(f"--mean and --deviation have 1 or {wrapping.channels} numbers")


def _type_of(value: Any) -> tuple[int, bool, list[int]]:
    """Element type, whether the first size is free, and the other sizes (0 where one is not
    said)."""
    tensor = value.type.tensor_type
    sizes = list(tensor.shape.dim)
    is_free = bool(sizes) and not sizes[0].HasField("dim_value")
    return tensor.elem_type, is_free, [size.dim_value for size in sizes[1:]]


def _said(values: list[Any]) -> str:
    from onnx import TensorProto

    def one(value: Any) -> str:
        tensor = value.type.tensor_type
        sizes = [str(size.dim_value or size.dim_param or "?") for size in tensor.shape.dim]
        return f"{TensorProto.DataType.Name(tensor.elem_type).lower()} ({', '.join(sizes)})"

    return " and ".join(map(one, values)) or "nothing"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


if __name__ == "__main__":
    serve_limited(_wrap)
