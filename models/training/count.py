"""Size and cost of a network, counted from its exported graph."""

from __future__ import annotations

import math

import onnx
from onnx import numpy_helper, shape_inference

Shapes = dict[str, tuple[int, ...]]


def count_parameters(model: bytes) -> int:
    """All floating-point constants of the graph, fixed kernels included."""
    graph = onnx.load_from_string(model).graph
    arrays = (numpy_helper.to_array(tensor) for tensor in graph.initializer)
    return int(sum(array.size for array in arrays if array.dtype.kind == "f"))


def count_mflops(model: bytes) -> float:
    """Millions of operations for one tile, 2 x multiply-accumulates, the front end included."""
    proto, shapes = of_one_tile(model)
    return 2 * sum(_macs(node, shapes) for node in proto.graph.node) / 1e6


def of_one_tile(model: bytes) -> tuple[onnx.ModelProto, Shapes]:
    """The graph for one tile, and the shape of every value in it by name."""
    proto = onnx.load_from_string(model)
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    dimensions[0].ClearField("dim_param")
    dimensions[0].dim_value = 1
    del proto.graph.value_info[:]
    return proto, _shapes(shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return 0


def _shapes(proto: onnx.ModelProto) -> Shapes:
    graph = proto.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value.type.tensor_type.shape
        shapes[value.name] = tuple(d.dim_value or 1 for d in shape.dim)
    return shapes
