"""The classifier: right scores from a right model, no score at all from any other."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from models.card import (
    GoldenCard,
    InputCard,
    ModelCard,
    ThresholdCard,
    TrainingCard,
    read_card,
    sha256_of,
    write_card,
)
from models.classifier import Classifier, ModelError, processor_name
from models.graph import GraphRefused, check_self_contained
from models.registry import find_model, list_models, shipped_weights
from station.config import ConfigError, load_recipe
from station.judge import Judge
from station.product import model_folder

onnx = pytest.importorskip("onnx", reason="needs onnx (the `train` extra) to make models")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SHIPPED = shipped_weights() / "lightdefectnet-v3"
Tiles = NDArray[np.uint8]


def brightness_model(
    shape: tuple[int | str, ...] = ("n", 1, 224, 224),
    dtype: int = TensorProto.UINT8,
    classes: int = 2,
    bias: float = 0.0,
) -> onnx.ModelProto:
    """Probability of a defect = mean level / 255 + bias."""
    weight = np.zeros((1, classes), np.float32)
    weight[0, 1 if classes > 1 else 0] = 1 / 255
    nodes = [
        helper.make_node("Cast", ["tiles"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["probabilities"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
        numpy_helper.from_array(np.array([1]), "last"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([bias], np.float32), "bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("tiles", dtype, list(shape))],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def mapping_model(cell_px: int = 32) -> onnx.ModelProto:
    """The same with a map: the mean level of each cell."""
    model, sides = brightness_model(), [cell_px, cell_px]
    pool = helper.make_node("AveragePool", ["levels"], ["map"], kernel_shape=sides, strides=sides)
    model.graph.node.append(pool)
    shape = ["n", 1, 224 // cell_px, 224 // cell_px]
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, shape))
    return model


def golden_tiles() -> Tiles:
    levels = np.array([0, 60, 200], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (3, 1, 224, 224)).copy()


def put(folder: Path, model: bytes, scores: tuple[float, ...] | None = None) -> Path:
    """A model folder with a card that is true of these bytes."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tiles=golden_tiles())
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    (folder / "model.onnx").write_bytes(model)
    training = TrainingCard(
        data_sha256="0" * 64, good=1, defective=1, groups=2, seed=1, epochs=1, command="",
        code_revision="unknown", recipe="",
    )  # fmt: skip
    card = ModelCard(
        id=folder.name,
        name="mean brightness",
        created_at="2025-01-01T00:00:00Z",
        sha256=sha256_of(model),
        parameters=3,
        mflops=0.0,
        input=InputCard(front_end="none", constants={}),
        threshold=ThresholdCard(value=0.5, chosen_by="taste"),
        golden=GoldenCard(
            sha256=sha256_of(buffer.getvalue()), scores=scores or (0.0, 60 / 255, 200 / 255)
        ),
        training=training,
    )
    write_card(folder, card)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path / "brightness", brightness_model().SerializeToString())


def test_maps_belong_to_their_tiles(tmp_path: Path) -> None:
    tiles = np.zeros((6, 1, 224, 224), np.uint8)
    for number, tile in enumerate(tiles):
        tile[0, 32 * number : 32 * number + 32, 64:96] = 200
    found = Classifier.load(put(tmp_path / "map", mapping_model().SerializeToString())).find(tiles)
    assert found.defect_maps is not None
    assert found.defect_maps.shape == (6, 7, 7)
    lit = np.argwhere(found.defect_maps > 100).tolist()
    assert lit == [[number, number, 2] for number in range(6)]
    assert found.scores == pytest.approx(tiles.mean(axis=(1, 2, 3)) / 255)


def test_a_model_without_a_map_says_so(folder: Path) -> None:
    assert Classifier.load(folder).find(golden_tiles()).defect_maps is None


def test_a_map_of_other_cells_is_refused(tmp_path: Path) -> None:
    model = mapping_model(cell_px=16).SerializeToString()
    with pytest.raises(ModelError, match=r"\(n, 1, 7, 7\) of where the evidence lies"):
        Classifier.load(put(tmp_path / "map", model))


def test_scores_are_the_second_class(folder: Path) -> None:
    classifier = Classifier.load(folder)
    assert classifier.scores(golden_tiles()) == pytest.approx([0, 60 / 255, 200 / 255])
    assert classifier.scores(golden_tiles()[:0]).shape == (0,)
    assert classifier.threshold == 0.5
    assert classifier.model_id == "brightness"
    assert classifier.model_sha256 == sha256_of((folder / "model.onnx").read_bytes())


def test_runtime_names_version_precision_and_processor(folder: Path) -> None:
    runtime = Classifier.load(folder).runtime
    assert runtime.startswith("onnxruntime ")
    assert " fp32, " in runtime
    assert processor_name() in runtime


def test_tiles_of_another_kind_are_refused(folder: Path) -> None:
    classifier = Classifier.load(folder)
    for tiles in (
        np.zeros((1, 1, 224, 224), np.float32),
        np.zeros((1, 3, 224, 224), np.uint8),
        np.zeros((224, 224), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"uint8 \(n, 1, 224, 224\) wanted"):
            classifier.scores(tiles)  # type: ignore[arg-type]


def test_nan_is_never_hidden(tmp_path: Path) -> None:
    """0 / 0 for a black tile, so that the plain grey warm-up passes and the score does not."""
    model = brightness_model()
    divide = helper.make_node("Div", ["product", "product"], ["probabilities"])
    model.graph.node[-1].CopyFrom(divide)
    constant = numpy_helper.from_array(np.full((1, 2), 1 / 255, np.float32), "weight")
    model.graph.initializer[2].CopyFrom(constant)
    classifier = Classifier.load(put(tmp_path / "nan", model.SerializeToString()))
    assert np.isnan(classifier.scores(golden_tiles())).tolist() == [True, False, False]
    with pytest.raises(ModelError, match="golden tiles score NaN"):
        classifier.self_test()


def test_nan_at_warm_up_is_refused(tmp_path: Path) -> None:
    model = brightness_model(bias=float("nan"))
    with pytest.raises(ModelError, match="plain grey tile scores NaN"):
        Classifier.load(put(tmp_path / "nan", model.SerializeToString()))


def test_every_flipped_byte_is_refused(folder: Path) -> None:
    path = folder / "model.onnx"
    model = bytearray(path.read_bytes())
    for place in np.linspace(0, len(model) - 1, 25).astype(int):
        damaged = bytearray(model)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="the file is damaged"):
            Classifier.load(folder)


def test_another_model_than_the_recipe_approved_is_refused(folder: Path) -> None:
    sha256 = Classifier.load(folder).model_sha256
    assert Classifier.load(folder, expected_sha256=sha256).model_sha256 == sha256
    with pytest.raises(ModelError, match="the recipe was approved for 1111"):
        Classifier.load(folder, expected_sha256="1" * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ("n", 3, 224, 224)}, r"takes tiles tensor\(uint8\) \['n', 3, 224, 224\]"),
        ({"shape": ("n", 1, 128, 128)}, "takes tiles"),
        ({"shape": (1, 1, 224, 224)}, "takes tiles"),
        ({"dtype": TensorProto.FLOAT}, r"takes tiles tensor\(float\)"),
        ({"classes": 3}, r"gives probabilities tensor\(float\) \['n', 3\]"),
        ({"classes": 1}, "gives probabilities"),
    ],
)
def test_another_shape_or_dtype_or_class_count_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    model = brightness_model(**changes)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message):
        Classifier.load(put(tmp_path / "other", model.SerializeToString()))


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    model = brightness_model().SerializeToString()
    for number, data in enumerate((b"", b"hello world", b"\xff" * 100, model[: len(model) // 2])):
        with pytest.raises(ModelError, match="not an ONNX model"):
            Classifier.load(put(tmp_path / f"junk{number}", data))


def test_graph_that_the_runtime_refuses_is_refused(tmp_path: Path) -> None:
    model = brightness_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="ONNX Runtime refuses it"):
        Classifier.load(put(tmp_path / "unknown", model.SerializeToString()))


def external_model(directory: Path) -> onnx.ModelProto:
    model = brightness_model()
    tensor = model.graph.initializer[2]
    (directory / "weights.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model


def test_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = external_model(tmp_path).SerializeToString()
    monkeypatch.chdir(tmp_path)  # where a runtime that reads it would find it
    with pytest.raises(ModelError, match="external data"):
        Classifier.load(put(tmp_path / "external", model))


def test_subgraphs_functions_and_foreign_operators_are_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value_float=1.0)],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    subgraph, foreign, functions = brightness_model(), brightness_model(), brightness_model()
    subgraph.graph.node.append(
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    )
    foreign.graph.node.append(helper.make_node("Run", ["a"], ["b"], domain="com.example"))
    functions.functions.append(
        helper.make_function("own", "f", ["a"], ["b"], [], [helper.make_opsetid("", 18)])
    )
    for model, message in (
        (subgraph, "subgraphs"),
        (foreign, r"domain 'com\.example'"),
        (functions, "functions"),
    ):
        with pytest.raises(GraphRefused, match=message):
            check_self_contained(model.SerializeToString())


def test_external_data_inside_a_node_is_refused(tmp_path: Path) -> None:
    tensor = external_model(tmp_path).graph.initializer[2]
    model = brightness_model()
    model.graph.node.append(helper.make_node("Constant", [], ["extra"], value=tensor))
    with pytest.raises(GraphRefused, match="external data"):
        check_self_contained(model.SerializeToString())


def test_missing_model_is_refused(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read: No such file"):
        Classifier.load(folder)


def test_golden_scores_that_differ_are_refused(tmp_path: Path) -> None:
    model = brightness_model().SerializeToString()
    close = put(tmp_path / "close", model, (0.0, 60 / 255 + 5e-5, 200 / 255))
    assert Classifier.load(close).self_test().largest_difference == pytest.approx(5e-5, rel=0.01)
    far = put(tmp_path / "far", model, (0.0, 60 / 255 + 5e-4, 200 / 255))
    with pytest.raises(ModelError, match=r"golden scores differ by 0\.0005 from the card"):
        Classifier.load(far).self_test()


def test_changed_or_missing_golden_tiles_are_refused(folder: Path) -> None:
    path = folder / "golden.npz"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="not the golden tiles of this card"):
        Classifier.load(folder).self_test()
    path.unlink()
    with pytest.raises(ModelError, match=r"golden\.npz: cannot be read"):
        Classifier.load(folder).self_test()


def test_recorded_bits_must_hold(folder: Path) -> None:
    classifier = Classifier.load(folder, sessions=2)
    recorded = classifier.machine_bits().as_dict()
    assert classifier.self_test(recorded).bits.as_dict() == recorded
    for key in recorded:
        with pytest.raises(ModelError, match=rf"no longer hold: {key} was 'other', is"):
            classifier.self_test({**recorded, key: "other"})
    with pytest.raises(ModelError, match="runtime was None"):
        classifier.self_test({k: v for k, v in recorded.items() if k != "runtime"})


def test_a_model_is_found_by_its_id_or_its_folder(folder: Path) -> None:
    assert find_model(str(folder)) == folder
    assert find_model("lightdefectnet-v3") == SHIPPED
    assert set(list_models()) >= {"lightdefectnet-v3"}


def test_a_folder_does_not_take_the_place_of_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHIPPED.name).mkdir()
    (tmp_path / SHIPPED.name / "card.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_model(SHIPPED.name) == SHIPPED
    assert find_model(f"./{SHIPPED.name}").resolve() == tmp_path / SHIPPED.name


@pytest.mark.parametrize("name", ["no-such", "../brightness", "", "."])
def test_unknown_model_lists_those_there_are(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such model; there are: lightdefectnet"):
        find_model(name)


def test_a_recipe_names_an_exported_model_by_its_folder(folder: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "config" / "recipes" / "demo-lgp.toml").read_text()
    recipe = tmp_path / "mine.toml"
    lines = f'id = "brightness"\nfolder = "{os.path.relpath(folder, tmp_path)}"'
    recipe.write_text(text.replace('id = "lightdefectnet-v3"', lines))
    assert model_folder(load_recipe(str(recipe)), None).samefile(folder)
    recipe.write_text(recipe.read_text().replace('id = "brightness"', 'id = "other"'))
    with pytest.raises(ConfigError, match=r"model\.id: .*: holds the model brightness, not other"):
        model_folder(load_recipe(str(recipe)), None)


# The weights that come with the package


def random_tiles(count: int) -> Tiles:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 224, 224), np.uint8)


def test_only_a_passed_self_test_makes_a_judge_that_may_pass_a_plate() -> None:
    classifier = Classifier.load(find_model("lightdefectnet-v3"))
    recipe = load_recipe("shipped:demo-lgp")
    assert not Judge.of(recipe, classifier).is_self_tested
    classifier.self_test()
    assert Judge.of(recipe, classifier).is_self_tested
    with pytest.raises(ModelError):
        classifier.self_test({**classifier.machine_bits().as_dict(), "scores_sha256": "0" * 64})
    assert not Judge.of(recipe, classifier).is_self_tested


def test_shipped_weights_pass_their_self_test() -> None:
    classifier = Classifier.load(SHIPPED, sessions=2)
    golden = classifier.self_test()
    assert len(golden.scores) >= 8
    assert min(golden.scores) < classifier.threshold < max(golden.scores)


def test_scores_depend_on_neither_session_nor_batch_nor_thread() -> None:
    classifier = Classifier.load(SHIPPED, sessions=2)
    tiles = random_tiles(11)
    whole = classifier.scores(tiles)
    alone = np.concatenate([classifier.scores(tile[None], session=1) for tile in tiles])
    assert whole.tobytes() == alone.tobytes()
    results: list[list[bytes]] = [[], []]

    def work(session: int) -> None:
        for _ in range(5):
            results[session].append(classifier.scores(tiles, session).tobytes())

    threads = [threading.Thread(target=work, args=(session,)) for session in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results[0] + results[1]) == {whole.tobytes()}
    assert len(results[0]) == len(results[1]) == 5


def test_shipped_weights_are_small_and_flat() -> None:
    check_self_contained((SHIPPED / "model.onnx").read_bytes())
    size_bytes = sum(path.stat().st_size for path in SHIPPED.iterdir())
    assert size_bytes < 2_500_000
    assert read_card(SHIPPED).mflops < 100


def test_the_runtime_keeps_its_blocked_layout_from_end_to_end(tmp_path: Path) -> None:
    """A layer between that ONNX Runtime cannot run blocked would reorder every tile twice."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this processor alone
    ort.InferenceSession(SHIPPED / "model.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = Counter((node.domain, node.op_type) for node in graph.node)
    assert kinds["com.microsoft.nchwc", "Conv"] > 20
    assert kinds["", "Conv"] == 0
    assert kinds["com.microsoft.nchwc", "ReorderInput"] == 0
    assert kinds["com.microsoft.nchwc", "ReorderOutput"] <= 2, "the scores' way and the map's"


def test_the_runtime_tells_nobody(tmp_path: Path) -> None:
    """No identifier is written, and no host is looked up, where the runtime would do both."""
    program = (
        "from models.classifier import Classifier; from models.registry import find_model; "
        "Classifier.load(find_model('lightdefectnet-v3')).self_test()"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("CI", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stderr.lower()
    assert list(tmp_path.iterdir()) == []
