"""Other models than the shipped one, as good as it: the shipped network with weights of its last
layer scaled, its own bytes, card and golden scores."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from models.card import MODEL_FILE, read_card, sha256_of, write_card
from models.classifier import Classifier
from models.registry import shipped_model
from models.runtimes import build_runner, defect_scores

SHIPPED = shipped_model("lightdefectnet-v3")


def other_model(folder: Path, id: str, scale: float = 0.9) -> Path:
    """A model of this id in `folder`; its folder. `scale` is of the last layer's weights: 1 judges
    as the shipped one, 0 says 0.5 of every tile."""
    path = folder / id
    shutil.copytree(SHIPPED, path)
    graph = onnx.load_from_string((path / MODEL_FILE).read_bytes())
    last = max(
        (tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2),
        key=lambda tensor: [
            place for place, node in enumerate(graph.graph.node) if tensor.name in node.input
        ],
    )
    values = numpy_helper.to_array(last) * np.float32(scale)
    last.CopyFrom(numpy_helper.from_array(values.astype(np.float32), last.name))
    graph.producer_name = id
    model = graph.SerializeToString()
    (path / MODEL_FILE).write_bytes(model)
    card = read_card(SHIPPED)
    tiles = Classifier.load(SHIPPED).golden_tiles()
    scores = defect_scores(build_runner(id, model, "fp32"), tiles)
    golden = card.golden.model_copy(update={"scores": tuple(map(float, scores))})
    update = {"id": id, "sha256": sha256_of(model), "golden": golden, "measured": (), "gate": None}
    write_card(path, card.model_copy(update=update))
    return path
