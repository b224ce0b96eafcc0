"""The model card: strict, whole, and only about one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.card import ModelError, read_card, sha256_of, write_card
from models.registry import shipped_weights

SHIPPED = shipped_weights() / "lightdefectnet-v3"


def shipped_card() -> dict[str, Any]:
    card: dict[str, Any] = json.loads((SHIPPED / "card.json").read_text())
    return card


def test_card_is_read_back_as_written(tmp_path: Path) -> None:
    card = read_card(SHIPPED)
    folder = tmp_path / card.id
    folder.mkdir()
    write_card(folder, card)
    assert read_card(folder) == card
    with pytest.raises(ModelError, match="the folder must have its name"):
        read_card(folder.rename(tmp_path / "other"))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["card.json"]


def test_figures_of_other_weights_are_refused(tmp_path: Path) -> None:
    """A retrained model with the figures of the one before it."""
    card = shipped_card()
    folder = tmp_path / card["id"]
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(
        ModelError, match=r"plate escape rate is a figure of other weights .* again"
    ):
        read_card(folder)


def test_card_belongs_to_the_files_beside_it() -> None:
    card = read_card(SHIPPED)
    assert card.id == SHIPPED.name
    assert card.sha256 == sha256_of((SHIPPED / "model.onnx").read_bytes())
    assert card.golden.sha256 == sha256_of((SHIPPED / card.golden.file).read_bytes())


def test_card_names_the_constants_of_its_graph() -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx (the `train` extra)")
    graph = onnx.load(str(SHIPPED / "model.onnx")).graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    scalars = {array.item() for array in arrays if array.size == 1}
    constants = read_card(SHIPPED).input.constants
    assert {constants["dark_level"], constants["gain"]} <= scalars


def test_missing_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"card\.json: cannot be read: No such file"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "abc"}, "sha256: String should match"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"threshold": {"value": 1.5, "chosen_by": ""}}, r"threshold\.value: Input should be less"),
        ({"precision": "fp8"}, "precision: Input should be 'fp32'"),
        ({"id": "../other"}, "id: String should match"),
    ],
)
def test_wrong_card_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "card.json").write_text(json.dumps({**shipped_card(), **change}))
    with pytest.raises(ModelError, match=f"not a model card: {message}"):
        read_card(tmp_path)


def test_golden_file_stays_inside_the_folder(tmp_path: Path) -> None:
    card = shipped_card()
    card["golden"]["file"] = "../golden.npz"
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"golden\.file: String should match"):
        read_card(tmp_path)


def test_text_that_is_no_json_and_an_absurd_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("not json")
    with pytest.raises(ModelError, match="not a model card: the file: Invalid JSON"):
        read_card(tmp_path)
    path.write_text(" " * 2_000_000)
    with pytest.raises(ModelError, match="larger than 1000000 bytes"):
        read_card(tmp_path)
