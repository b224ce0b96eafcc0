"""Other models than the shipped one, as real: its graph with the heads' bias moved, and a card that
is true of these bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from models.card import GOLDEN_FILE, MODEL_FILE, read_card, sha256_of, write_card
from models.classifier import Classifier
from models.registry import shipped_model

SHIPPED = "lightdefectnet-v3"


def leaning_model(folder: Path, towards_good: float) -> Path:
    """A model folder; each head's log-odds of a good tile are larger by `towards_good`."""
    shipped = shipped_model(SHIPPED)
    folder.mkdir(parents=True)
    shutil.copy(shipped / GOLDEN_FILE, folder / GOLDEN_FILE)
    model = onnx.load(str(shipped / MODEL_FILE))
    for each in model.graph.initializer:
        if each.name == "network.heads.bias":
            bias = numpy_helper.to_array(each).copy()
            bias[0::2] += np.float32(towards_good)
            each.CopyFrom(numpy_helper.from_array(bias, each.name))
    data = model.SerializeToString()
    (folder / MODEL_FILE).write_bytes(data)
    card = read_card(shipped)
    update = {"id": folder.name, "sha256": sha256_of(data), "measured": (), "gate": None}
    card = card.model_copy(update=update)
    write_card(folder, card)
    scores = Classifier.load(folder).scores(Classifier.load(folder).golden_tiles())
    golden = card.golden.model_copy(update={"scores": tuple(map(float, scores))})
    write_card(folder, card.model_copy(update={"golden": golden}))
    Classifier.load(folder).self_test()
    return folder
