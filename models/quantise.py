"""int8 bytes from verified fp32 bytes: what a processor with int8 dot products may run instead.

Needs the `onnx` package (the `edge` extra), and only where the gate runs: what came out is stored
with its sha256, and a station loads no other bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import ModelError
from models.graph import check_self_contained
from models.runtimes import CHUNK_TILES, PrecisionUnavailable

_PERCENTILE = 99.99
"""Of an activation's values lie within the range that 8 bits divide: single outliers would make
the steps coarse for all others."""
_OPERATORS = ["Add", "Concat", "Conv", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid"]


def quantise(model: bytes, tiles: NDArray[np.uint8]) -> bytes:
    """The graph with 8-bit weights and activations from the first convolution to the pooling; front
    end and heads stay fp32. Ranges are those of `tiles`, uint8 (n, 1, 224, 224).

    The same tiles give the same bytes. Raises `PrecisionUnavailable` without onnx, `ModelError` if
    the graph cannot be quantised.
    """
    try:
        import onnx
        from onnxruntime import quantization as q
    except ImportError as error:
        raise PrecisionUnavailable(
            f"needs package onnx ({error}): pip install vqi-station[edge]"
        ) from error
    with tempfile.TemporaryDirectory() as folder, _silence():
        given, prepared, out = (Path(folder, f"{each}.onnx") for each in ("in", "prepared", "out"))
        given.write_bytes(model)
        try:
            q.quant_pre_process(given, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            q.quantize_static(
                prepared,
                out,
                _reader(q.CalibrationDataReader, graph.input[0].name, tiles),
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=_front_end(graph),
                per_channel=True,
                weight_type=q.QuantType.QInt8,
                calibrate_method=q.CalibrationMethod.Percentile,
                extra_options={"CalibPercentile": _PERCENTILE},
            )
        except Exception as error:  # the package raises whatever its checks run into
            raise ModelError(f"cannot be quantised to int8: {error}") from error
        quantised = out.read_bytes()
    check_self_contained(quantised)
    return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The package prints to stdout, where only rows may go."""
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def _front_end(graph: Any) -> list[str]:
    """Names of the nodes before the first convolution."""
    before = itertools.takewhile(lambda node: node.op_type != "Conv", graph.node)
    return [node.name for node in before]


def _reader(base: Any, name: str, tiles: NDArray[np.uint8]) -> Any:
    """What the package asks for tiles, a chunk at a time."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            # Whole chunks only: the package stacks what comes out of them.
            starts = range(0, len(tiles) - CHUNK_TILES + 1, CHUNK_TILES)
            self._chunks = iter([tiles[start : start + CHUNK_TILES] for start in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            chunk = next(self._chunks, None)
            return None if chunk is None else {name: chunk}

    return Reader()
