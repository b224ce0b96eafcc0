"""A plant's own network: taken with what it is told to be, and refused with the reason otherwise,
by the graph's bytes or in a throw-away process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_rig import People
from numpy.typing import NDArray
from station_rig import Rig, vqi

onnx = pytest.importorskip("onnx", reason="needs onnx (the `train` extra) to make models")
pytest.importorskip("torch", reason="needs torch (the `train` extra)")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from models import limited  # noqa: E402
from models.adopt import Wrapping, wrap  # noqa: E402
from models.card import ForeignCard, ModelError, read_card, sha256_of, write_card  # noqa: E402
from models.classifier import Classifier  # noqa: E402
from models.graph import OPSETS, GraphRefused, check_self_contained  # noqa: E402
from models.probe import probe, scores_of  # noqa: E402
from models.registry import shipped_model  # noqa: E402
from station.cli.model_adopt import Origin, PlatePlan, adopt, measure  # noqa: E402
from station.config import load_configuration, load_recipe  # noqa: E402
from station.gate_set import GateSet  # noqa: E402
from station.model_desk import ModelDesk, ModelRefused, signed_bundle  # noqa: E402
from station.model_store import ModelStore, read_folder  # noqa: E402
from station.synthesize import PlateSource  # noqa: E402

Pixels = NDArray[np.uint8]
Model = Any
AS_3 = Wrapping(channels=3, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))


def a_network(
    channels: int = 3,
    opset: int = 17,
    shape: list[Any] | None = None,
    kind: int = TensorProto.FLOAT,
    classes: int = 2,
    gain: float = 40.0,
) -> Model:
    """Logits of how far the picture's pixels lie from their neighbours: a texture's roughness."""
    kernel = np.zeros((4, channels, 3, 3), np.float32)
    kernel[:, :, 1, 1] = 1 / channels
    for number, place in enumerate(((0, 1), (2, 1), (1, 0), (1, 2))):
        kernel[number, :, place[0], place[1]] = -1 / channels
    weight = np.zeros((4, classes), np.float32)
    weight[:, classes - 1] = gain
    bias = np.zeros(classes, np.float32)
    bias[0] = 3.0
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["steps"], pads=[1, 1, 1, 1]),
        helper.make_node("Abs", ["steps"], ["sizes"]),
        helper.make_node("GlobalAveragePool", ["sizes"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(bias, "bias"),
    ]
    sizes = shape or ["batch", channels, 224, 224]
    graph = helper.make_graph(
        nodes,
        "roughness",
        [helper.make_tensor_value_info("picture", kind, sizes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        constants,
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def write(folder: Path, model: Model) -> Path:
    path = folder / "plant.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def tiles(count: int = 12) -> Pixels:
    """Of growing roughness."""
    random = np.random.default_rng(5)
    made = [
        np.clip(random.normal(120, 2 + 3 * number, (1, 224, 224)), 0, 255)
        for number in range(count)
    ]
    return np.stack(made).astype(np.uint8)


# --- what comes through --------------------------------------------------------------------------


def test_a_three_channel_network_scores_as_it_does_at_home(tmp_path: Path) -> None:
    """Against numpy, with its own scaling."""
    wrapped = wrap(write(tmp_path, a_network()), AS_3)
    given = tiles(4)
    scaled = np.repeat(given.astype(np.float64) / 255, 3, axis=1)
    mean, deviation = (np.array(v)[None, :, None, None] for v in (AS_3.mean, AS_3.deviation))
    grey = np.pad(((scaled - mean) / deviation).mean(axis=1), ((0, 0), (1, 1), (1, 1)))
    centre = grey[:, 1:-1, 1:-1]
    beside = (grey[:, :-2, 1:-1], grey[:, 2:, 1:-1], grey[:, 1:-1, :-2], grey[:, 1:-1, 2:])
    logits = sum(40.0 * np.abs(centre - each).mean(axis=(1, 2)) for each in beside)
    expected = 1 / (1 + np.exp(3.0 - logits))
    assert np.abs(scores_of(wrapped.model, given) - expected).max() < 1e-4
    other_way = wrap(write(tmp_path, a_network()), Wrapping(**{**_fields(AS_3), "defective": 0}))
    assert np.abs(scores_of(other_way.model, given) - (1 - expected)).max() < 1e-4
    assert wrapped.opset == 17
    assert wrapped.parameters == 4 * 3 * 9 + 4 * 2 + 2 + 6
    check_self_contained(wrapped.model)


def _fields(wrapping: Wrapping) -> dict[str, Any]:
    return {name: getattr(wrapping, name) for name in wrapping.__slots__}


def test_an_adopted_network_is_a_model_like_any_other(tmp_path: Path, people: People) -> None:
    """Card, golden tiles, trial, signature, store."""
    origin = Origin(write(tmp_path, a_network()), "the plant's own, 2024", "proprietary", "vqi …")
    out = tmp_path / "plant-net"
    card, probed = adopt(origin, AS_3, tiles(), out)
    assert read_card(out) == card
    assert isinstance(card.training, ForeignCard)
    assert (card.training.origin, card.licence) == ("the plant's own, 2024", "proprietary")
    assert len(card.golden.scores) == 8
    assert list(card.golden.scores) == sorted(card.golden.scores)
    assert not probed.has_defect_map
    classifier = Classifier.load(out, expected_sha256=card.sha256)
    classifier.self_test()
    assert classifier.find(tiles(2)).defect_maps is None
    rig = Rig(tmp_path, tables=people.tables)
    desk = ModelDesk.at(load_configuration(str(rig.write())))
    bundle, _, _ = signed_bundle(
        read_folder(out), "trained", people.names["trained"], people.keys["trained"]
    )
    taken = desk.take_in(bundle, "Carla", "adopted")
    assert taken.row is not None
    assert ModelStore(rig.journal / "models").find("plant-net")
    with pytest.raises(ModelError, match="is there already"):
        adopt(origin, AS_3, tiles(), out)


@pytest.fixture
def people(tmp_path: Path) -> People:
    people = People(tmp_path)
    people.write()
    return people


def test_a_station_inspects_with_an_adopted_network(tmp_path: Path) -> None:
    """Boxes are whole tiles, and touching ones together, for it has no map."""
    out = tmp_path / "plant-net"
    origin = Origin(write(tmp_path, a_network()), "the plant's own", "proprietary", "vqi …")
    adopt(origin, AS_3, tiles(), out)
    (tmp_path / "line").mkdir()
    rig = Rig(tmp_path / "line", threshold=0.0)
    path = rig.write()
    recipe = rig.folder / "recipe.toml"
    recipe.write_text(
        recipe.read_text().replace(
            'id = "lightdefectnet-v3"', f'id = "plant-net"\nfolder = "{out}"'
        )
    )
    done = vqi("run", "--config", str(path), "--json", "--plates", "2", timeout_s=200.0)
    assert done.returncode == 0, done.stderr
    rows = rig.rows("result")
    assert {row["model_id"] for row in rows} == {"plant-net"}
    assert {row["verdict"] for row in rows} == {"FAIL"}
    boxes = [defect for row in rows for defect in row["defects"]]
    assert boxes
    assert all(min(box["w_px"], box["h_px"]) >= 192 for box in boxes), "no part of a tile"


def test_a_network_that_is_no_better_than_chance_is_refused(tmp_path: Path) -> None:
    """One that takes every rough tile for a good one."""
    out = tmp_path / "plant-net"
    origin = Origin(write(tmp_path, a_network(gain=-40.0)), "no good", "unknown", "vqi …")
    adopt(origin, AS_3, tiles(), out)
    recipe = str(Rig(tmp_path).write().with_name("recipe.toml"))
    gate_set = GateSet(recipe, 0.1, 768, plates=10, seed=1)
    source = PlateSource(load_recipe(recipe).value, 0.1, 768)
    with pytest.raises(ModelError, match="no better than chance on rendered plates"):
        measure(out, source, PlatePlan(400, 0.01, 1, "a test"), gate_set)


# --- what is refused -----------------------------------------------------------------------------


def with_loop(model: Model) -> Model:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))
    return model


def with_node(operator: str, domain: str = "") -> Callable[[Model], Model]:
    def changed(model: Model) -> Model:
        model.graph.node.append(helper.make_node(operator, ["logits"], ["more"], domain=domain))
        return model

    return changed


def with_external(model: Model) -> Model:
    """Weights from wherever the file points."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return model


def with_huge_constant(model: Model) -> Model:
    model.graph.initializer[0].dims[:] = [2**31, 2**31, 1, 1]
    return model


def with_many_nodes(model: Model) -> Model:
    model.graph.node.extend(
        helper.make_node("Identity", ["logits"], [f"copy{number}"]) for number in range(6_000)
    )
    return model


def with_function(model: Model) -> Model:
    node = helper.make_node("Relu", ["x"], ["y"])
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("f", "F", ["x"], ["y"], [node], imports))
    return model


def of_opset(*versions: int) -> Callable[[Model], Model]:
    def changed(model: Model) -> Model:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid("", version) for version in versions)
        return model

    return changed


def same(model: Model) -> Model:
    return model


GRAPHS = [
    (with_loop, r"subgraphs \(If, Loop, Scan\)"),
    (with_node("Evil", "com.example"), r"operators of the domain 'com\.example'"),
    (with_node("SequenceConstruct"), "operator SequenceConstruct: sequences"),
    (with_node("Optional"), "operator Optional: sequences or optional"),
    (with_node("RandomNormalLike"), "operator RandomNormalLike: random numbers"),
    (with_node("Bernoulli"), "operator Bernoulli: random numbers"),
    (with_node("StringNormalizer"), "texts or pictures"),
    (with_external, "external data"),
    (with_huge_constant, "constants have more than 60000000 elements"),
    (with_many_nodes, "more than 5000 nodes"),
    (with_function, "functions"),
    (of_opset(12), "of opset 12; 13 to 21 can be run here"),
    (of_opset(OPSETS[-1] + 1), "of opset 22; 13 to 21"),
    (of_opset(), "of opset none"),
    (of_opset(17, 17), "of opset 17, 17"),
]


@pytest.mark.parametrize(("spoil", "reason"), GRAPHS)
def test_a_hostile_graph_is_refused_by_its_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Model], Model],
    reason: str,
) -> None:
    """No process is started for it, and nothing parses it."""
    model = spoil(a_network())
    with pytest.raises(GraphRefused, match=reason):
        check_self_contained(model.SerializeToString())
    monkeypatch.setattr(limited.subprocess, "Popen", None)
    with pytest.raises(ModelError, match=f"refused: .*{reason}"):
        wrap(write(tmp_path, model), AS_3)


@pytest.mark.parametrize(
    ("model", "wrapping", "reason"),
    [
        (a_network(1), AS_3, r"takes float \(batch, 1, 224, 224\); one input float \(n, 3"),
        (a_network(shape=[1, 3, 224, 224]), AS_3, "with a free n wanted"),
        (a_network(shape=["n", 3, 256, 256]), AS_3, r"float \(n, 3, 256, 256\)"),
        (a_network(classes=1), AS_3, r"gives float \(batch, 1\); float \(n, 2\)"),
        (a_network(classes=10), AS_3, r"gives float \(batch, 10\)"),
        (a_network(), Wrapping(channels=3, mean=(0.1, 0.2)), "have 1 or 3 numbers"),
        (a_network(), Wrapping(channels=3, is_uint8=True), "one input uint8"),
        (with_node("NoSuchOperator")(a_network()), AS_3, "NoSuchOperator"),
        (with_node("Concat")(a_network()), AS_3, "axis"),
    ],
)
def test_what_is_no_such_classifier_is_refused(
    tmp_path: Path, model: Model, wrapping: Wrapping, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        wrap(write(tmp_path, model), wrapping)


def after(network: Model, nodes: list[Any], constants: dict[str, Any]) -> Model:
    """The network with more behind its logits, of the same shape."""
    graph = network.graph
    for node in graph.node:
        node.output[:] = ["raw" if name == "logits" else name for name in node.output]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return network


def nan_for_black() -> Model:
    """0 / 0 where all is flat."""
    nodes = [
        helper.make_node("ReduceMax", ["picture"], ["most"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["picture"], ["least"], axes=[2, 3], keepdims=0),
        helper.make_node("Sub", ["most", "least"], ["range"]),
        helper.make_node("ReduceMax", ["range"], ["column"], axes=[1], keepdims=1),
        helper.make_node("Div", ["column", "column"], ["ones"]),
        helper.make_node("Mul", ["raw", "ones"], ["logits"]),
    ]
    return after(a_network(), nodes, {})


def mean_of_the_batch() -> Model:
    """Each tile's score depends on those beside it."""
    nodes = [
        helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["raw", "mean"], ["logits"]),
    ]
    return after(a_network(), nodes, {})


def much_memory() -> Model:
    """A constant of 64 GB that the file does not hold, and that sizes do not betray: its shape is
    computed."""
    shape = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    nodes = [
        helper.make_node("Mul", ["side", "side"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["huge"], value=shape),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("Add", ["raw", "top"], ["logits"]),
    ]
    return after(a_network(), nodes, {"side": np.array([126_500])})


def always_the_same() -> Model:
    return after(
        a_network(),
        [helper.make_node("Mul", ["raw", "nought"], ["logits"])],
        {"nought": np.array([0.0], np.float32)},
    )


@pytest.mark.parametrize(
    ("make", "wrapping", "reason"),
    [
        (nan_for_black, AS_3, "NaN or infinity"),
        (mean_of_the_batch, AS_3, "scores otherwise among other tiles than alone"),
        (much_memory, AS_3, "memory|refuses it|crashed|alloc"),
        (always_the_same, AS_3, "every tile of the plates scores"),
        (
            a_network,
            Wrapping(**{**_fields(AS_3), "gives": "probabilities"}),
            "gives no probabilities: they lie between",
        ),
    ],
)
def test_what_goes_wrong_when_it_runs_goes_wrong_in_a_throw_away_process(
    tmp_path: Path, make: Callable[[], Model], wrapping: Wrapping, reason: str
) -> None:
    origin = Origin(write(tmp_path, make()), "a stranger", "unknown", "vqi …")
    with pytest.raises(ModelError, match=f"refused: .*({reason})"):
        adopt(origin, wrapping, tiles(), tmp_path / "plant-net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plant.onnx"]


def test_a_graph_that_computes_for_ever_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions of 60 GFLOPs a tile, against a limit of seconds."""
    kernel = np.zeros((512, 512, 7, 7), np.float32)
    wide = np.zeros((512, 3, 1, 1), np.float32)
    nodes = [helper.make_node("Conv", ["picture", "wide"], ["a0"])]
    nodes += [
        helper.make_node("Conv", [f"a{n}", "kernel2"], [f"a{n + 1}"], pads=[3, 3, 3, 3])
        for n in range(8)
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["a8"], ["pooled2"]),
        helper.make_node("Flatten", ["pooled2"], ["flat2"]),
        helper.make_node("ReduceMax", ["flat2"], ["slow"], axes=[1], keepdims=1),
        helper.make_node("Add", ["raw", "slow"], ["logits"]),
    ]
    model = after(a_network(), nodes, {"wide": wide, "kernel2": kernel})
    with pytest.raises(ModelError, match=r"million operations a tile, 10000 at most"):
        wrap(write(tmp_path, model), AS_3)
    monkeypatch.setattr(limited, "WALL_S", 2.0)
    with pytest.raises(ModelError, match="takes more than 2 s to be tried"):
        scores_of(_in_our_form(model), tiles(2))


def _in_our_form(model: Model) -> bytes:
    from models import adopt as adoption

    wrapped: bytes = adoption._around(model, AS_3).SerializeToString()
    return wrapped


def test_a_store_takes_no_hostile_graph_even_if_it_is_signed(
    tmp_path: Path, people: People
) -> None:
    """An import looks at the graph before anything runs it."""
    out = tmp_path / "plant-net"
    origin = Origin(write(tmp_path, a_network()), "the plant's own", "unknown", "vqi …")
    card, _ = adopt(origin, AS_3, tiles(), out)
    model = with_loop(onnx.load(out / "model.onnx")).SerializeToString()
    (out / "model.onnx").write_bytes(model)
    write_card(out, card.model_copy(update={"sha256": sha256_of(model)}))
    people.sign_folder(out)
    desk = ModelDesk.at(load_configuration(str(Rig(tmp_path, tables=people.tables).write())))
    with pytest.raises(ModelRefused, match=r"model\.onnx: refused: it contains subgraphs"):
        desk.take_in(read_folder(out), "Carla", "a folder")
    with pytest.raises(ModelError):
        probe(out)


def test_our_own_graph_is_adopted_bit_by_bit_with_its_map(tmp_path: Path) -> None:
    """8-bit levels, probabilities and a map: what is put around it changes nothing."""
    file = shipped_model("lightdefectnet-v3") / "model.onnx"
    origin = Origin(file, "this project", "MIT", "vqi …")
    wrapping = Wrapping(is_uint8=True, gives="probabilities")
    adopt(origin, wrapping, tiles(), tmp_path / "ours-again")
    again, ours = Classifier.load(tmp_path / "ours-again"), Classifier.load(file.parent)
    given = np.concatenate([tiles(6), ours.golden_tiles()])
    found, known = again.find(given), ours.find(given)
    assert found.scores.tobytes() == known.scores.tobytes()
    assert found.defect_maps is not None
    assert known.defect_maps is not None
    assert found.defect_maps.tobytes() == known.defect_maps.tobytes()
    assert again.card.mflops == ours.card.mflops
