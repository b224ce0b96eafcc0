"""What is a LightDefectNet at all: predicates on the exported graph, whatever made it.

The computational constraints and best practices of Xu et al., "LightDefectNet" (2023). The input
layer is the first convolution; what lies before it is the front end's fixed arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from models.training.count import count_mflops, count_parameters, of_one_tile

MFLOPS_LIMIT = 100.0
PARAMETERS_LIMIT = 770_000
WIDTH_STEP = 16
"""ONNX Runtime's blocked layout: other widths run at half the speed."""
EARLY_PX = 28
"""Attention condensers attend to maps of at least this side."""
_AADS_TAPS = ((1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1))
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Graph:
    """An exported network, for one tile."""

    model: bytes
    nodes: tuple[onnx.NodeProto, ...]
    """In order, from the input layer on."""
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, NDArray[Any]]


def read_graph(model: bytes) -> Graph:
    """Raises ValueError for a graph without a convolution."""
    proto, shapes = of_one_tile(model)
    nodes = list(proto.graph.node)
    first = next((i for i, node in enumerate(nodes) if node.op_type == "Conv"), None)
    if first is None:
        raise ValueError("a graph without a convolution")
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return Graph(model, tuple(nodes[first:]), shapes, constants)


def is_small(graph: Graph) -> str | None:
    mflops = count_mflops(graph.model)
    return f"{mflops:.1f} MFLOPs" if mflops >= MFLOPS_LIMIT else None


def has_few_parameters(graph: Graph) -> str | None:
    count = count_parameters(graph.model)
    return f"{count:,} parameters" if count > PARAMETERS_LIMIT else None


def strides_no_pointwise(graph: Graph) -> str | None:
    for node in _convolutions(graph):
        if _kernel(graph, node) == (1, 1) and max(_stride(node)) > 1:
            return f"{node.name}: a strided 1 x 1 convolution"
    return None


def downsamples_anti_aliased(graph: Graph) -> str | None:
    """After the input layer a map shrinks only under a fixed low-pass filter, or whole."""
    for node in graph.nodes[1:]:
        before, after = (graph.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
        if len(before) != 4 or len(after) != 4 or after[2:] == (1, 1):
            continue
        shrinks = after[2] < before[2] or after[3] < before[3]
        if shrinks and not _is_blur(graph, node):
            return f"{node.name}: {node.op_type} from {before[2]} to {after[2]} px is no AADS"
    return None


def pairs_heads(graph: Graph) -> str | None:
    """Two heads of two classes, each with its softmax, and their mean."""
    for node in graph.nodes:
        if node.op_type == "Softmax" and graph.shapes[node.input[0]] == (1, 2, 2):
            users = [user for user in graph.nodes if node.output[0] in user.input]
            if any(user.op_type == "ReduceMean" for user in users):
                return None
    return "no two heads whose softmax is averaged"


def attends_early(graph: Graph) -> str | None:
    """Attention condensers: there are some, coarser than what they attend to, on early maps."""
    count = 0
    for node in graph.nodes:
        if node.op_type != "Sigmoid":
            continue
        gate, gated = graph.shapes[node.output[0]], _gated_px(graph, node)
        if gated is None or len(gate) != 4:
            return f"{node.name}: a sigmoid that attends to nothing"
        if gate[2] >= gated:
            return f"{node.name}: attention at {gate[2]} px is not condensed"
        if gated < EARLY_PX:
            return f"{node.name}: attends to a late map of {gated} px"
        count += 1
    return None if count else "no visual attention condenser"


def has_different_columns(graph: Graph) -> str | None:
    """Where columns come together, they have looked differently."""
    joins = [
        node
        for node in graph.nodes
        if node.op_type == "Concat" and graph.shapes[node.output[0]][2:] not in ((), (1, 1))
    ]
    if not joins:
        return "a single column"
    for node in joins:
        kinds = [_kinds(graph, own) for own in _apart(graph, node)]
        if any(kind == kinds[0] for kind in kinds[1:]):
            return f"{node.name}: columns alike"
    return None


def keeps_blocks(graph: Graph) -> str | None:
    """Widths, per group too, in multiples of 16."""
    outputs = {name for node in graph.nodes for name in node.input}
    for node in list(_convolutions(graph))[1:]:
        if node.output[0] not in outputs:
            continue  # the map of where the evidence lies
        weight, groups = graph.constants[node.input[1]], _groups(node)
        if groups == weight.shape[0] and weight.shape[1] == 1:
            ok = groups % WIDTH_STEP == 0
        else:
            ok = weight.shape[1] % WIDTH_STEP == 0 == (weight.shape[0] // groups) % WIDTH_STEP
        if not ok:
            return f"{node.name}: {weight.shape[0]} channels in {groups} groups"
    return None


PREDICATES: dict[str, Callable[[Graph], str | None]] = {
    "FLOPs < 100 M": is_small,
    "parameters <= 0.77 M": has_few_parameters,
    "no strided pointwise convolution": strides_no_pointwise,
    "downsampling only by AADS": downsamples_anti_aliased,
    "two heads paired": pairs_heads,
    "attention condensers early": attends_early,
    "columns heterogeneous": has_different_columns,
    "widths in multiples of 16": keeps_blocks,
}
"""Each says what is wrong, or None."""


def violations(model: bytes) -> dict[str, str]:
    """What an exported graph breaks, by the name of the constraint, with what was found."""
    graph = read_graph(model)
    found = {name: predicate(graph) for name, predicate in PREDICATES.items()}
    return {name: reason for name, reason in found.items() if reason}


def _convolutions(graph: Graph) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.nodes if node.op_type == "Conv")


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _stride(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(_attribute(node, "strides", (1, 1)))


def _groups(node: onnx.NodeProto) -> int:
    return int(_attribute(node, "group", 1))


def _kernel(graph: Graph, node: onnx.NodeProto) -> tuple[int, ...]:
    if node.op_type == "Conv":
        return tuple(graph.shapes[node.input[1]][2:])
    return tuple(_attribute(node, "kernel_shape", ()))


def _is_blur(graph: Graph, node: onnx.NodeProto) -> bool:
    """A depthwise convolution by two whose kernels are all one low-pass filter, but for a scale."""
    if node.op_type != "Conv" or node.input[1] not in graph.constants:
        return False
    weight = graph.constants[node.input[1]].astype(np.float64)
    if _stride(node) != (2, 2) or weight.shape[1] != 1 or _groups(node) != weight.shape[0]:
        return False
    sums = weight.sum(axis=(1, 2, 3), keepdims=True)
    if not np.abs(sums).all():
        return False
    for taps in _AADS_TAPS:
        wanted = np.outer(taps, taps) / sum(taps) ** 2
        if weight.shape[2:] == wanted.shape:
            return bool(np.abs(weight / sums - wanted).max() < _TOLERANCE)
    return False


def _gated_px(graph: Graph, sigmoid: onnx.NodeProto) -> int | None:
    """Side of the map that a sigmoid, spread to its size, is multiplied with."""
    names = {sigmoid.output[0]}
    for node in graph.nodes:
        if not names & set(node.input):
            continue
        if node.op_type == "Mul":
            return graph.shapes[node.output[0]][2]
        if node.op_type == "Resize":
            names.add(node.output[0])
    return None


def _apart(graph: Graph, join: onnx.NodeProto) -> list[list[onnx.NodeProto]]:
    """For each input of a join the nodes that lead only to it."""
    maker = {name: node for node in graph.nodes for name in node.output}

    def behind(name: str) -> dict[str, onnx.NodeProto]:
        found: dict[str, onnx.NodeProto] = {}
        waiting = [name]
        while waiting:
            node = maker.get(waiting.pop())
            if node is not None and node.output[0] not in found:
                found[node.output[0]] = node
                waiting.extend(node.input)
        return found

    all_behind = [behind(name) for name in join.input]
    shared = set.intersection(*(set(found) for found in all_behind))
    return [
        [node for node in graph.nodes if node.output[0] in found and node.output[0] not in shared]
        for found in all_behind
    ]


def _kinds(graph: Graph, nodes: list[onnx.NodeProto]) -> tuple[object, ...]:
    """What a column does, step by step: operations and sizes of windows, not widths."""
    kinds = []
    for node in nodes:
        if node.op_type == "Conv":
            channels = graph.shapes[node.input[1]][0]
            groups = _groups(node)
            how = "depthwise" if groups == channels else "grouped" if groups > 1 else "dense"
            kinds.append((how, _kernel(graph, node), _stride(node)))
        elif node.op_type != "Slice":
            kinds.append((node.op_type, _kernel(graph, node), _stride(node)))
    return tuple(kinds)
