"""Ways to run a verified graph on this processor: each says what really runs, or refuses.

fp32 runs in ONNX Runtime. Every faster precision runs in OpenVINO (the `edge` extra) and only where
the processor has instructions for it; whether it may judge plates is for the gate to say.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.card import ModelError

TILE_PX = 224
CHUNK_TILES = 5
"""Tiles that go through the graph at once; more of them would leave the processor's cache."""

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Faster = Literal["bf16", "fp16", "int8"]
FASTER: tuple[Faster, ...] = ("bf16", "fp16", "int8")
"""Tried where the processor has them; fp32 is what they are compared with."""

_PROVIDER = "CPUExecutionProvider"
_DEVICE = "CPU"
_HINTS = {"bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""What OpenVINO is told; an int8 graph carries its own precision."""
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_RUNS_AS = {"fp32": {"f32"}, "bf16": {"bf16"}, "fp16": {"f16"}, "int8": {"i8", "u8"}}
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_OUTPUTS: list[tuple[str, list[int]]] = [("tensor(float)", [2]), ("tensor(float)", [1, 7, 7])]
_ROUNDING_STEPS = 5
"""Operations that OpenVINO makes of a pair of QuantizeLinear and DequantizeLinear, at most."""
_INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "amx_int8", "asimd", "sve",
)  # fmt: skip

Tiles = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the network says of n tiles."""

    scores: NDArray[np.float32]
    """Probability of a defect, (n,)."""
    defect_maps: NDArray[np.float32] | None
    """Where the evidence lies, (n, 7, 7): one value a cell of 32 px. None if the graph has none."""


class Runner(Protocol):
    """One thread's way through the graph."""

    def run(self, tiles: Tiles) -> Findings:
        """For tiles uint8 (n, 1, 224, 224): in fp32 any number, in other precisions at most
        CHUNK_TILES."""


class PrecisionUnavailable(ModelError):
    """This machine cannot run this precision at all: says what it lacks."""


def build_runner(name: str, model: bytes, precision: Precision) -> Runner:
    """A runner of these bytes; messages begin with `name`.

    Raises `PrecisionUnavailable`, or `ModelError` if the graph is not ours or does not really run
    in this precision.
    """
    if precision == "fp32":
        return _OnnxRunner(name, model)
    return _OpenVinoRunner(name, model, precision)


def find(runner: Runner, tiles: Tiles) -> Findings:
    """What the network says of any number of tiles."""
    if len(tiles) <= CHUNK_TILES:
        return runner.run(tiles) if len(tiles) else Findings(np.empty(0, np.float32), None)
    starts = range(0, len(tiles), CHUNK_TILES)
    chunks = [runner.run(tiles[start : start + CHUNK_TILES]) for start in starts]
    maps = [chunk.defect_maps for chunk in chunks if chunk.defect_maps is not None]
    scores = np.concatenate([chunk.scores for chunk in chunks])
    return Findings(scores, np.concatenate(maps) if maps else None)


def defect_scores(runner: Runner, tiles: Tiles) -> NDArray[np.float32]:
    """Probability of a defect of each tile, float32 (n,), for any number of tiles."""
    return find(runner, tiles).scores


def class_probabilities(name: str, model: bytes, tiles: Tiles) -> NDArray[np.float32]:
    """What the graph gives in fp32 for both classes, as it is, (n, 2). Raises `ModelError`."""
    runner = _OnnxRunner(name, model)
    starts = range(0, len(tiles), CHUNK_TILES)
    chunks = [runner.outputs(tiles[start : start + CHUNK_TILES])[0] for start in starts]
    return np.concatenate(chunks)


def _findings(outputs: Sequence[NDArray[np.float32]]) -> Findings:
    """From the graph's outputs: probabilities (n, 2), and mostly maps (n, 1, 7, 7)."""
    maps = outputs[1][:, 0] if len(outputs) > 1 else None
    return Findings(outputs[0][:, 1], maps)


def runtime_name(precision: Precision) -> str:
    """Runtime, version and precision, as records name them. Raises `PrecisionUnavailable`."""
    if precision == "fp32":
        return f"onnxruntime {ort.__version__} fp32"
    release = _openvino().__version__.partition("-")[0]
    return f"openvino {release} {precision}"


def check_available(precision: Precision) -> None:
    """Raises `PrecisionUnavailable` if runtime or processor do not offer this precision."""
    if precision == "fp32":
        return
    capabilities = _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in capabilities:
        raise PrecisionUnavailable(f"this processor has no {precision} instructions")


class _OnnxRunner:
    """The graph in ONNX Runtime, fp32, one thread."""

    def __init__(self, name: str, model: bytes) -> None:
        self._session = _session(name, model)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, tiles: Tiles) -> Findings:
        return _findings(self.outputs(tiles))

    def outputs(self, tiles: Tiles) -> Sequence[NDArray[np.float32]]:
        """What the graph gives, as it is."""
        given: Sequence[NDArray[np.float32]] = self._session.run(
            self._outputs, {self._input: tiles}
        )
        return given


def _session(name: str, model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=[_PROVIDER])
    except Exception as error:  # the runtime raises a dozen unrelated classes
        raise ModelError(f"{name}: ONNX Runtime refuses it: {error}") from error
    reason = _mismatch(session)
    if reason:
        raise ModelError(f"{name}: {reason}")
    return session


def _mismatch(session: ort.InferenceSession) -> str | None:
    """What is wrong with provider, inputs or outputs; None if they are ours."""
    if session.get_providers() != [_PROVIDER]:
        return f"runs on {session.get_providers()}, {_PROVIDER} wanted"
    inputs = [(i.type, i.shape[1:], isinstance(i.shape[0], int)) for i in session.get_inputs()]
    if inputs != [("tensor(uint8)", [1, TILE_PX, TILE_PX], False)]:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in session.get_inputs())
        return f"takes {found}; one input tensor(uint8) (n, 1, 224, 224) wanted"
    outputs = [(o.type, o.shape[1:]) for o in session.get_outputs()]
    if outputs not in (_OUTPUTS[:1], _OUTPUTS):
        found = ", ".join(f"{o.name} {o.type} {o.shape}" for o in session.get_outputs())
        return (
            f"gives {found}; tensor(float) (n, 2), good and defective, wanted, and at most a map "
            "tensor(float) (n, 1, 7, 7) of where the evidence lies"
        )
    return None


class _OpenVinoRunner:
    """The graph in OpenVINO on the processor, one thread in the caller's.

    The front end stays fp32: small differences of grey levels are what a faint defect is, and half
    precision would round them away. From the first convolution on all is in `precision`. A graph of
    fixed size is a fifth faster, so there is one for each number of tiles in a chunk.
    """

    def __init__(self, name: str, model: bytes, precision: Precision) -> None:
        check_available(precision)
        self._halves = [
            _Halves(name, model, precision, tiles) for tiles in range(1, CHUNK_TILES + 1)
        ]

    def run(self, tiles: Tiles) -> Findings:
        return self._halves[len(tiles) - 1].run(tiles)


class _Halves:
    """Front end and trunk for a fixed number of tiles."""

    def __init__(self, name: str, model: bytes, precision: Precision, tiles: int) -> None:
        try:
            front = _front_end(_read(model, tiles))
            trunk = _trunk(_read(model, tiles))
            compiled = _compile(front, "f32"), _compile(trunk, _HINTS[precision])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{name}: OpenVINO refuses it: {reason}") from error
        check_really_runs(name, compiled[1], precision)
        self._front, self._trunk = (each.create_infer_request() for each in compiled)
        self._tiles = self._front.get_input_tensor(0)
        self._trunk.set_input_tensor(0, self._front.get_output_tensor(0))

    def run(self, tiles: Tiles) -> Findings:
        # Copied: handing over the array itself takes longer than its 200 kB.
        self._tiles.data[:] = tiles
        self._front.infer()
        self._trunk.infer()
        # The tensors are the runtime's own and will be written over.
        outputs = self._trunk.model_outputs
        return _findings([self._trunk.get_tensor(output).data.copy() for output in outputs])


def check_really_runs(name: str, compiled: Any, precision: Precision) -> None:
    """Raises `ModelError` unless the compiled graph runs on the processor and computes every
    convolution in `precision`: a hint is only a hint."""
    devices = compiled.get_property("EXECUTION_DEVICES")
    if devices != [_DEVICE]:
        raise ModelError(f"{name}: OpenVINO runs it on {devices}, {_DEVICE} wanted")
    found = Counter(_convolution_precisions(compiled))
    if not found or found.keys() - _RUNS_AS[precision]:
        kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(found.items()))
        raise ModelError(
            f"{name}: not all of its convolutions run in {precision}: {kinds or 'it has none'}"
        )


def _convolution_precisions(compiled: Any) -> list[str]:
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return [
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) in _CONVOLUTIONS
    ]


def _read(model: bytes, tiles: int) -> Any:
    graph = _core().read_model(model)
    graph.reshape({0: [tiles, 1, TILE_PX, TILE_PX]})
    return graph


def _seen(graph: Any) -> Any:
    """What the first convolution takes, before an int8 graph rounds it: the front end's output."""
    kinds = ((operation, operation.get_type_name()) for operation in graph.get_ordered_ops())
    first = next((operation for operation, kind in kinds if kind in _CONVOLUTIONS), None)
    if first is None:
        raise RuntimeError("it has no convolution")
    taken = node = first.input(0)
    for _ in range(_ROUNDING_STEPS):
        source = node.get_source_output().get_node()
        if source.get_type_name() == "FakeQuantize":
            return source.input_value(0)
        if not source.inputs():
            break
        node = source.input(0)
    return taken.get_source_output()


def _front_end(graph: Any) -> Any:
    """From the tiles to what the first convolution takes."""
    return _openvino().Model([_seen(graph)], graph.get_parameters(), "front end")


def _trunk(graph: Any) -> Any:
    """From the first convolution to the outputs."""
    openvino, seen = _openvino(), _seen(graph)
    parameter = openvino.opset13.parameter(seen.get_partial_shape(), openvino.Type.f32)
    for target in seen.get_target_inputs():
        target.replace_source_output(parameter.output(0))
        _pair_columns(target.get_node())
    return openvino.Model(graph.get_results(), [parameter], "trunk")


def _pair_columns(convolution: Any) -> None:
    """Lets a 3 x 3 convolution of one channel and stride 2 see pairs of columns as two channels.

    It multiplies the same values. Reduced precisions are computed on pairs of channels, of which
    one would be empty: so it takes half of the time, and the pairs are the same bytes.
    """
    weights = convolution.input_value(1).get_node()
    facts = convolution.get_attributes()
    if weights.get_type_name() != "Constant" or list(weights.shape)[1:] != [1, 3, 3]:
        return
    if [facts[each] for each in ("strides", "pads_begin", "pads_end")] != [[2, 2], [1, 1], [1, 1]]:
        return
    ops = _openvino().opset13
    tiles, _, rows, columns = convolution.input_value(0).shape
    pairs = ops.reshape(convolution.input_value(0), [tiles, rows, columns // 2, 2], False)
    # Of the pair before, only its second column is seen.
    kernel = np.zeros((len(weights.data), 2, 3, 2), np.float32)
    kernel[:, 1, :, 0] = weights.data[:, 0, :, 0]
    kernel[:, 0, :, 1] = weights.data[:, 0, :, 1]
    kernel[:, 1, :, 1] = weights.data[:, 0, :, 2]
    paired = ops.convolution(
        ops.transpose(pairs, [0, 3, 1, 2]), kernel, [2, 1], [1, 1], [1, 0], [1, 1]
    )
    for target in convolution.output(0).get_target_inputs():
        target.replace_source_output(paired.output(0))


def _compile(graph: Any, hint: str) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(graph, _DEVICE, options)


@cache
def _core() -> Any:
    return _openvino().Core()


@cache
def _openvino() -> Any:
    # Its companion package tells its maker about models that are converted, and puts an identifier
    # into the home folder as soon as it is imported; OpenVINO runs without it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise PrecisionUnavailable(
            f"needs package openvino ({error}): pip install vqi-station[edge]"
        ) from error
    return openvino


@cache
def processor_name() -> str:
    """Model name, family and the instruction sets that choose the runtime's kernels."""
    facts = _processor_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    sets = " ".join(instruction_sets())
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{name} ({family}; {sets})"


def instruction_sets() -> tuple[str, ...]:
    """Those of this processor that decide how fast a network can be."""
    facts = _processor_facts()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return tuple(each for each in _INSTRUCTION_SETS if each in flags)


def _processor_facts() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
