"""A look into an ONNX file before any runtime sees it: is it one self-contained, flat graph?

Some versions of ONNX Runtime read external data from wherever the file points, also when the model
is given as bytes: unhashed bytes would then judge. This scan of the protobuf wire format needs no
onnx package; field numbers are those of onnx.proto (IR version 13 and before).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OWN_DOMAINS = (b"", b"ai.onnx")
OPSETS = range(13, 22)
"""Of the standard operators. Softmax and others mean another thing before 13; 21 is the newest that
the oldest runtime knows which a station may have (ONNX Runtime 1.20)."""
MAX_NODES = 5_000
MAX_ELEMENTS = 60_000_000
"""Of all constants together."""
_FORBIDDEN = {
    "sequences or optional values": (
        "Sequence",
        "SplitToSequence",
        "ConcatFromSequence",
        "Optional",
    ),
    "random numbers": ("Random", "Bernoulli", "Multinomial"),
    "texts or pictures": ("String", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder"),
}
"""What a name of an operator begins with that no classifier needs."""


class GraphRefused(ValueError):
    """The file is not a self-contained, flat ONNX graph: says what was found."""


def check_self_contained(model: bytes) -> None:
    """Raises `GraphRefused` for external data, subgraphs, functions, sparse tensors, operators of
    other domains or opsets, loops, sequences, random numbers, more nodes or constants than a
    classifier has, and for bytes that are not an ONNX model with a graph."""
    graphs, opsets = 0, list[int]()
    for field, value in _fields(memoryview(model)):
        if field == 25:
            raise GraphRefused("it contains functions")
        if field == 7:
            graphs += 1
            _check_graph(_message(value))
        elif field == 8:
            opsets += _opset(_message(value))
    if graphs != 1:
        raise GraphRefused("it is not an ONNX model")
    if len(opsets) != 1 or opsets[0] not in OPSETS:
        found = ", ".join(map(str, opsets)) or "none"
        raise GraphRefused(
            f"it is of opset {found}; {OPSETS[0]} to {OPSETS[-1]} can be run here: export it again"
        )


def _opset(entry: memoryview) -> list[int]:
    """Its version, if it is one of the standard operators."""
    domain, version = b"", 0
    for field, value in _fields(entry):
        if field == 1:
            domain = bytes(_message(value))
        elif field == 2 and isinstance(value, int):
            version = value
    return [version] if domain in _OWN_DOMAINS else []


def _check_graph(graph: memoryview) -> None:
    nodes, elements = 0, 0
    for field, value in _fields(graph):
        if field == 1:
            nodes += 1
            elements += _check_node(_message(value))
        elif field == 5:
            elements += _check_tensor(_message(value))
        elif field == 15:
            raise GraphRefused("it contains sparse tensors")
        if nodes > MAX_NODES:
            raise GraphRefused(f"it has more than {MAX_NODES} nodes")
        if elements > MAX_ELEMENTS:
            raise GraphRefused(f"its constants have more than {MAX_ELEMENTS} elements")


def _check_node(node: memoryview) -> int:
    """Elements of its constants."""
    elements = 0
    for field, value in _fields(node):
        if field == 4:
            _check_operator(bytes(_message(value)).decode(errors="replace"))
        elif field == 5:
            elements += _check_attribute(_message(value))
        elif field == 7 and bytes(_message(value)) not in _OWN_DOMAINS:
            name = bytes(_message(value)).decode(errors="replace")
            raise GraphRefused(f"it uses operators of the domain {name!r}")
    return elements


def _check_operator(name: str) -> None:
    for what, beginnings in _FORBIDDEN.items():
        if name.startswith(beginnings):
            raise GraphRefused(f"it contains the operator {name}: {what}")


def _check_attribute(attribute: memoryview) -> int:
    elements = 0
    for field, value in _fields(attribute):
        if field in (5, 10):
            elements += _check_tensor(_message(value))
        elif field in (6, 11):
            raise GraphRefused("it contains subgraphs (If, Loop, Scan)")
        elif field in (22, 23):
            raise GraphRefused("it contains sparse tensors")
    return elements


def _check_tensor(tensor: memoryview) -> int:
    """Its elements."""
    sizes: list[int] = []
    for field, value in _fields(tensor):
        if field == 13 or (field == 14 and value != 0):
            raise GraphRefused("it keeps weights in another file (external data)")
        if field == 1:
            sizes += [value] if isinstance(value, int) else _packed(value)
    return math.prod(sizes)


def _packed(value: memoryview) -> list[int]:
    sizes, at = [], 0
    while at < len(value):
        size, at = _varint(value, at)
        sizes.append(size)
    return sizes


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise GraphRefused("it is not an ONNX model")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field of a message, in order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise GraphRefused("it is not an ONNX model")
        if size > len(message) - at:
            raise GraphRefused("it is cut short or not an ONNX model")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number of at most 10 bytes, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise GraphRefused("it is cut short or not an ONNX model")
