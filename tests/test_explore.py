"""Design exploration: the space, its constraints on real graphs, the search and its log."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from models.classifier import Classifier
from station.cli.model import app

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")
pytest.importorskip("optuna", reason="needs package optuna (the `train` extra)")

from torch import Tensor, nn  # noqa: E402

from models.training.count import count_mflops, count_parameters  # noqa: E402
from models.training.data import DataError, load_tiles, read_folder, select  # noqa: E402
from models.training.explore import costs, proposing  # noqa: E402
from models.training.explore.constraints import PREDICATES, violations  # noqa: E402
from models.training.explore.emit import source  # noqa: E402
from models.training.explore.fitting import Job, OutOfTime, Pictures, train_together  # noqa: E402
from models.training.explore.full import (  # noqa: E402
    FINAL,
    LATENCY,
    OUT_OF_FOLD,
    DataSet,
    Full,
    finalists,
    next_parts,
    train_finalists,
    winner,
)
from models.training.explore.log import LOG_FILE, RANDOM, REFERENCE, SEARCH, Log, LogError, merit  # noqa: E402
from models.training.explore.network import Blur, build, prepare_for_export  # noqa: E402
from models.training.explore.publish import read_report, write_report  # noqa: E402
from models.training.explore.report import markdown, netscore, pareto, report  # noqa: E402
from models.training.explore.searching import (  # noqa: E402
    Plan,
    _Exploration,
    explore,
    measure,
)
from models.training.explore.sizes import sizes_of  # noqa: E402
from models.training.explore.space import (  # noqa: E402
    HAND_MADE,
    PROTOTYPE,
    SPACE,
    Spec,
    draw,
    from_row,
    mutate,
    to_row,
)
from models.training.export import ExportError, export, to_onnx  # noqa: E402
from models.training.fit import predict  # noqa: E402
from models.training.lightdefectnet import ConvNorm, LightDefectNet  # noqa: E402
from models.training.onnx_graph import graph_of  # noqa: E402
from models.training.train import load_network  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def hand_graph() -> bytes:
    return costs.export(build(HAND_MADE))


# The space


def test_spec_survives_json() -> None:
    spec = draw(np.random.default_rng(3))
    assert from_row(json.loads(json.dumps(to_row(spec)))) == spec


@pytest.mark.parametrize(
    ("change", "word"),
    [({"blocks4": 9}, "blocks4"), ({"colour": 1}, "colour"), ({"stem_width": "16"}, "stem_width")],
)
def test_row_that_is_no_spec_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        from_row(to_row(HAND_MADE) | change)


def test_mutation_changes_as_many_fields_as_asked() -> None:
    child = to_row(mutate(HAND_MADE, np.random.default_rng(1), 3))
    assert sum(child[name] != value for name, value in to_row(HAND_MADE).items()) == 3


def test_hand_made_network_is_a_point_of_the_space(hand_graph: bytes) -> None:
    ours = to_onnx(LightDefectNet("fine"))
    assert count_parameters(hand_graph) == count_parameters(ours)
    assert count_mflops(hand_graph) == count_mflops(ours)


def test_sizes_by_arithmetic_are_those_of_the_network() -> None:
    random = np.random.default_rng(5)
    for spec in (HAND_MADE, PROTOTYPE, *(draw(random) for _ in range(40))):
        network = prepare_for_export(build(spec, "raw"))
        macs = 0

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal macs
            weight = module.kernel if isinstance(module, Blur) else module.weight
            macs += output.numel() * weight[0].numel()

        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | Blur):
                module.register_forward_hook(count)
        network.to("meta")(torch.empty(1, 1, 224, 224, device="meta"))
        mflops, parameters = sizes_of(spec)
        map_macs = 49 * spec.width4
        assert mflops == pytest.approx(2 * (macs + map_macs) / 1e6)
        tensors = [*network.parameters(), *network.buffers()]
        unfolded = sum(
            module.condenser.scale.numel()
            for module in network.network.modules()
            if getattr(module, "condenser", None) is not None
        )
        assert parameters == sum(tensor.numel() for tensor in tensors) - unfolded


def test_exported_graph_computes_what_the_network_computes() -> None:
    """Every choice of attention, filter and tap in one of them; scales unlike each other."""
    specs = [
        replace(HAND_MADE, a1_filter=kind, a1_attend=attend, b1_attend="after", early_filter=taps,
                condenser_embed=embed, condenser_step=step, input2=input2)
        for kind, attend, taps, embed, step, input2 in (
            ("residual", "before", "rect-2", "grouped", 4, "own"),
            ("pointwise first", "after", "binomial-5", "pointwise", 2, "both"),
        )
    ]  # fmt: skip
    specs.append(replace(specs[0], a1_width=32, pooling="average", block4="residual"))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 1, 224, 224), np.uint8)
    for spec in specs:
        network = build(spec, "fine", 1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            network(torch.from_numpy(tiles))  # statistics of the norms
        network.eval()
        found = costs.session(costs.export(network)).run(None, {"tiles": tiles})[0]
        with torch.no_grad():
            wanted = network(torch.from_numpy(tiles)).softmax(2).mean(1).numpy()
        assert np.abs(found - wanted).max() < 1e-5


# Constraints


def test_shipped_network_keeps_every_constraint(hand_graph: bytes) -> None:
    assert violations(hand_graph) == {}


def test_prototype_breaks_what_a_residual_design_breaks() -> None:
    assert set(violations(costs.export(build(PROTOTYPE)))) == {
        "FLOPs < 100 M",
        "parameters <= 0.77 M",
        "attention condensers early",
        "columns heterogeneous",
    }


class Strided(nn.Module):
    """Downsampling by a 1 x 1 convolution of stride two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(128, 128, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Sharpening(Blur):
    """Strides under a filter that is no low pass."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "binomial-3")
        self.kernel *= -1
        self.kernel[:, :, 1, 1] += 2


def _with(change: str) -> nn.Module:
    """The hand-made network with one thing wrong."""
    network = build(HAND_MADE)
    if change == "strided":
        network.stage3[-1] = Strided()
    elif change == "max pooling":
        network.stage3[-1] = nn.MaxPool2d(2)
    elif change == "sharpening":
        network.stage3[-1] = Sharpening(128)
    elif change == "no attention":
        for column in (network.stage1, network.stage2):
            for each in (column.column_a, column.column_b):
                each.attend, each.condenser = "none", None
    elif change == "late attention":
        network.stage4.append(SelfGate(256))
    elif change == "not condensed":
        network.stage2.column_a.filter = nn.Sequential(network.stage2.column_a.filter, SelfGate(32))
    elif change == "alike":
        network = build(replace(HAND_MADE, b1_attend="before"))
    elif change == "narrow":
        network.stage4[1].filter = ConvNorm(256, 256, 3, groups=32)
    elif change == "large":
        network = build(replace(HAND_MADE, width4=320, blocks4=4, group4=64))
    elif change == "slow":
        network = build(replace(HAND_MADE, b1_filter="dense", b1_kernel=5, a2_filter="dense"))
    exported = prepare_for_export(network)
    return OneHead(exported) if change == "one head" else exported


class SelfGate(nn.Module):
    """Attention at the resolution of what it attends to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class OneHead(nn.Module):
    """Only the first head's probabilities."""

    def __init__(self, exported: Any) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        features = self.exported.network.features(tiles)
        first = self.exported.network.classify(features)[:, 0].softmax(dim=1)
        return first, nn.functional.conv2d(features, self.exported.cell_weights)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("strided", {"no strided pointwise convolution", "downsampling only by AADS"}),
        ("max pooling", {"downsampling only by AADS"}),
        ("sharpening", {"downsampling only by AADS"}),
        ("no attention", {"attention condensers early", "columns heterogeneous"}),
        ("late attention", {"attention condensers early"}),
        ("not condensed", {"attention condensers early"}),
        ("alike", {"columns heterogeneous"}),
        ("narrow", {"widths in multiples of 16"}),
        ("large", {"parameters <= 0.77 M"}),
        ("slow", {"FLOPs < 100 M"}),
        ("one head", {"two heads paired"}),
    ],
)
def test_constraint_finds_the_network_that_breaks_it(change: str, broken: set[str]) -> None:
    found = violations(graph_of(_with(change).eval(), ("probabilities", "defect_map")))
    assert broken <= set(found) <= broken | {"FLOPs < 100 M"}


def test_every_constraint_is_broken_by_some_network_here() -> None:
    marks = test_constraint_finds_the_network_that_breaks_it.pytestmark  # type: ignore[attr-defined]
    assert set().union(*(broken for _, broken in marks[0].args[1])) == set(PREDICATES)


# Costs


def test_latency_of_the_reference_against_itself_is_one(hand_graph: bytes) -> None:
    assert costs.latency(hand_graph, hand_graph).ratio == pytest.approx(1, abs=0.15)


def test_prototype_is_measured_slower(hand_graph: bytes) -> None:
    assert costs.latency(costs.export(build(PROTOTYPE)), hand_graph, rounds=6).ratio > 2


def test_zero_cost_scores_tell_networks_apart() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (8, 1, 224, 224), np.uint8)
    labels = np.arange(8) % 2
    small = replace(HAND_MADE, blocks4=1, width4=96, blocks3=0)
    rows = [costs.zero_cost(spec, "fine", tiles, labels) for spec in (HAND_MADE, small)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[0]["synflow"] > rows[1]["synflow"]
    assert rows[0] == costs.zero_cost(HAND_MADE, "fine", tiles, labels)


# Training


def _pictures(count: int) -> Pictures:
    """Half of them with a dark bar that nothing but its own place changes."""
    random = np.random.default_rng(0)
    tiles = random.normal(110, 3, (count, 1, 224, 224))
    for tile in tiles[1::2]:
        y, x = random.integers(30, 150, 2)
        tile[:, y : y + 12, x : x + 40] -= 50
    labels = np.arange(count) % 2
    return Pictures.on("cpu", tiles.clip(0, 255).astype(np.uint8), labels.astype(np.int64))


TINY = replace(
    HAND_MADE, a1_filter="separable", a2_filter="separable", b2_kernel=3, blocks3=0, exit3=64,
    blocks4=1, width4=96,
)  # fmt: skip


def test_training_learns() -> None:
    pictures, places = _pictures(48), np.arange(48)
    job = Job(build(TINY, "fine", 1), places[:32], places[32:], 1)
    (scores,), seconds = train_together([job], pictures, 30)
    assert scores.shape == (3, 16)
    assert seconds > 0
    labels = pictures.labels[32:].numpy()
    assert scores[-1][labels == 1].mean() > scores[-1][labels == 0].mean() + 0.2


def test_training_is_decided_by_its_seed() -> None:
    pictures, places = _pictures(24), np.arange(24)

    def train(seed: int) -> Any:
        job = Job(build(TINY, "fine", seed), places[:16], places[16:], seed)
        return train_together([job], pictures, 4)[0][0]

    first = train(1)
    assert (first == train(1)).all()
    assert (first != train(2)).any()


def test_training_stops_at_its_deadline() -> None:
    job = Job(build(TINY, "fine", 1), np.arange(16), np.arange(16), 1)
    with pytest.raises(OutOfTime):
        train_together([job], _pictures(16), 500, time.time())


def test_augmented_tiles_keep_their_label_and_their_grey() -> None:
    """The look-up of pixels turns, mirrors, moves; nothing comes from another tile."""
    from models.training.explore.fitting import _augment, _Draws

    tiles = torch.zeros(3, 1, 224, 224, dtype=torch.uint8)
    tiles[1] = 120
    tiles[2, :, :112] = 200
    job = Job(nn.Identity(), np.array([1, 2]), np.array([0]), 1)
    draws = _Draws.of(job, 2)
    for step in range(2):
        at = draws.at(torch.tensor([step]))
        at = replace(at, gain=torch.ones(16), offset=torch.zeros(16), sigma=torch.zeros(16))
        for tile, place in zip(_augment(tiles, at), at.order, strict=True):
            share = (tile == tiles[place].max()).float().mean()
            assert share == 1 if place == 1 else 0.4 < share < 0.6
        assert set(at.order.tolist()) == {1, 2}


# The generator


def _known(count: int, trained: int) -> list[Any]:
    from models.training.explore.log import Candidate

    random = np.random.default_rng(2)
    known = []
    for number in range(count):
        spec = proposing.random_spec(1, number)
        mflops, parameters = sizes_of(spec)
        cheap = {"naswot": 60 + random.normal(), "synflow": 12.0, "gradient": 0.5}
        row = {
            "violations": {}, "mflops": mflops, "parameters": parameters, "zero_cost": cheap,
            "latency": {"ratio": mflops / 70},
        }  # fmt: skip
        training = {"auroc": 0.8 + 0.02 * random.normal(), "place": number}
        known.append(Candidate(number, SEARCH, spec, row, training if number < trained else None))
    return known


def test_random_search_draws_likely_networks_that_only_the_seed_decides() -> None:
    specs = [proposing.random_spec(7, number) for number in range(10)]
    assert len(set(specs)) == 10
    assert specs == [proposing.random_spec(7, number) for number in range(10)]
    assert all(proposing.is_likely(spec) for spec in specs)


def test_search_starts_from_the_prototype() -> None:
    specs = proposing.propose([], 1)
    assert len(specs) == proposing.PROPOSALS
    assert all(proposing.is_likely(spec) for spec in specs)

    def shared(spec: Spec) -> int:
        return sum(to_row(spec)[name] == value for name, value in to_row(PROTOTYPE).items())

    drawn = [proposing.random_spec(1, number) for number in range(20)]
    assert np.mean([*map(shared, specs)]) > np.mean([*map(shared, drawn)])


def test_search_proposes_new_networks_inside_the_constraints() -> None:
    known = _known(14, 10)
    specs = proposing.propose(known, 1)
    assert specs == proposing.propose(known, 1)
    assert not {*specs} & {candidate.spec for candidate in known}
    assert all(proposing.is_likely(spec) for spec in specs)


def test_search_chooses_the_faster_of_equals() -> None:
    known = _known(14, 10)
    waiting = [known[10], known[11]]
    waiting[1].spec = waiting[0].spec
    waiting[1].row = waiting[0].row | {"latency": {"ratio": waiting[0].ratio / 2}}
    assert proposing.choose(known, waiting)[0] is waiting[1]


def test_pareto_front_holds_what_nothing_beats() -> None:
    known = _known(12, 12)
    front = pareto(known)
    for candidate in known:
        beaten = [o for o in known if o.ratio < candidate.ratio and o.auroc > candidate.auroc]
        assert (candidate in front) == (not beaten)


def test_merit_takes_speed_for_accuracy_at_the_stated_rate() -> None:
    assert merit(0.9, 1) == 0.9
    assert merit(0.9, 0.75) - 0.9 == pytest.approx(0.0115, abs=1e-4)


def test_netscore_of_published_figures() -> None:
    """SqueezeNet 1.1 on ImageNet: 58.2 %, 1.24 M parameters, .352 G MACs."""
    assert netscore(0.582, 1_240_000, 704) == pytest.approx(74.2, abs=0.1)


# The log


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def test_log_of_other_settings_is_refused(tmp_path: Path) -> None:
    Log.open(tmp_path, {"seed": 1})
    with pytest.raises(LogError, match="explored with seed 1, not 2"):
        Log.open(tmp_path, {"seed": 2})


def test_line_that_a_kill_cut_short_is_written_again(tmp_path: Path) -> None:
    log = Log.open(tmp_path, {"seed": 1})
    candidate = {"kind": "candidate", "arm": RANDOM, "spec": to_row(HAND_MADE), "violations": {}}
    log.append({"id": 0, **candidate})
    with log.path.open("ab") as file:
        file.write(b'{"kind": "candidate", "id": 1, "ar')
    again = Log.open(tmp_path, {"seed": 1})
    assert [each.id for each in again.candidates] == [0]
    again.append({"id": 1, **candidate})
    assert [row.get("id") for row in _lines(tmp_path)] == [None, 0, 1]


def test_damaged_log_is_named_with_its_line(tmp_path: Path) -> None:
    log = Log.open(tmp_path, {"seed": 1})
    log.path.write_bytes(log.path.read_bytes() + b'{"kind": "training", "id": 4}\n')
    with pytest.raises(LogError, match=f"{LOG_FILE}:2"):
        Log.read(tmp_path)


# The whole


def _write_set(root: Path, parts: int = 16) -> Path:
    """Two tiles of each part; every fourth part is for the test."""
    (root / "tiles").mkdir(parents=True)
    pictures = _pictures(2 * parts)
    rows = []
    for number, tile in enumerate(pictures.tiles.numpy()):
        file = f"tiles/{number}.png"
        cv2.imwrite(str(root / file), tile[0])
        part = number // 2
        split = "test" if part % 4 == 3 else "train"
        rows.append([file, number % 2, split, f"part{part}"])
    with (root / "labels.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file", "label", "split", "group"])
        writer.writerows(rows)
    return root


def _plan(data: Path, out: Path) -> Plan:
    return Plan(data, out, workers=1, epochs=1, folds=2, trainings=1, candidates=4)


@pytest.mark.long
def test_exploration_goes_on_after_a_kill_and_ends_in_a_report(tmp_path: Path) -> None:
    data, out = _write_set(tmp_path / "own"), tmp_path / "out"
    other = _write_set(tmp_path / "other", 20)
    command = [
        sys.executable, "-m", "models.training.explore", "--data", str(data), "--out", str(out),
        "--other", f"{other}=raw", "--workers", "1", "--epochs", "1", "--folds", "2",
        "--trainings", "2", "--candidates", "8",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    log = out / LOG_FILE
    while not log.is_file() or log.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = log.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert subprocess.run(command, check=False).returncode == 0
    assert log.read_bytes().startswith(before)

    known = Log.read(out)
    assert len(known.scored()) >= 8
    draws = [candidate.row["draw"] for candidate in known.of(RANDOM)]
    assert sorted(draws) == [*range(len(draws))]
    assert {len(known.trained(arm)) for arm in (SEARCH, RANDOM)} == {2}
    assert len({row["id"] for row in _lines(out) if row["kind"] == "training"}) == 5
    made = read_report(out)
    assert {(row.data, row.role) for row in made.found} == {
        (name, role)
        for name in ("own", "other")
        for role in ("explored", "random search", "hand-made")
    }
    assert [row.ahead.value for row in made.found if row.role == "hand-made"] == [0, 0]
    assert "three-way" not in write_report(out)[0].read_text()
    assert (out / "pareto.svg").read_text().count("<g") > 10


def _training(number: int, area: float, apart: float) -> dict[str, Any]:
    """A short training's line, its two folds so far from their mean."""
    folds = [area + apart, area - apart]
    return {"kind": "training", "id": number, "place": number, "auroc": area, "folds": folds}


def _logged(tmp_path: Path, count: int = 6) -> tuple[Path, DataSet]:
    """An exploration's log as it stands before the full trainings."""
    data = DataSet(_write_set(tmp_path / "own"), "fine")
    out = tmp_path / "out"
    log = Log.open(out, {"set": "own", "front_end": "fine", "data_sha256": "x", "seed": 1})
    random = np.random.default_rng(1)
    for number in range(2 * count + 1):
        arm = REFERENCE if not number else (SEARCH, RANDOM)[number % 2]
        spec = HAND_MADE if not number else replace(TINY, width4=SPACE["width4"][number % 7])
        mflops, parameters = sizes_of(spec)
        log.append(
            {
                "kind": "candidate", "id": number, "arm": arm, "spec": to_row(spec),
                "violations": {}, "mflops": mflops, "parameters": parameters,
                "latency": {"ratio": 1.0 if not number else 0.5 + 0.01 * number, "processor": "p"},
                "zero_cost": {n: random.normal() for n in ("naswot", "synflow", "gradient")},
            }
        )  # fmt: skip
        area = 0.8 - 0.01 * number + (0.15 if arm == SEARCH else 0)
        log.append(_training(number, area, 0.002 * (-1) ** (number // 2)))
    return out, data


def test_finalists_are_of_as_many_trainings_of_each_arm(tmp_path: Path) -> None:
    out, _ = _logged(tmp_path)
    log = Log.read(out)
    best, drawn, hand = finalists(log)
    assert [candidate.arm for candidate in best] == [SEARCH] * 3
    assert best[0].merit == max(candidate.merit for candidate in log.of(SEARCH))
    assert (drawn.arm, hand.spec) == (RANDOM, HAND_MADE)


def test_winner_is_chosen_out_of_fold_and_alone_goes_on(tmp_path: Path) -> None:
    out, own = _logged(tmp_path)
    other = DataSet(_write_set(tmp_path / "other"), "raw")
    log, full = Log.read(out), Full.read(out)
    best, drawn, hand = finalists(log)
    assert winner(log, full, "own") is None
    assert {part.data for part in next_parts(log, full, own, [other])} == {own}
    for part in next_parts(log, full, own, [other]):
        area = 0.99 if part.id == best[2].id else 0.9
        full.append(part, {"auroc": area} if part.what == OUT_OF_FOLD else {"scores": []})
    assert winner(log, full, "own") == best[2]
    parts = next_parts(log, full, own, [other])
    assert {part.id for part in parts} == {best[2].id, drawn.id, hand.id}
    assert {part.data for part in parts} == {other}
    for part in parts:
        full.append(part, {"auroc": 0.9} if part.what == OUT_OF_FOLD else {"scores": []})
    while parts := next_parts(log, Full.read(out), own, [other]):
        assert [part.what for part in parts] == [LATENCY]
        full.append(parts[0], {"latency": {"ratio": 1.0}})


def test_report_compares_with_random_search_and_the_hand_made_network(tmp_path: Path) -> None:
    out, own = _logged(tmp_path)
    log, full = Log.read(out), Full.read(out)
    tested = 8
    truth = np.arange(tested) % 2
    from models.training.data import data_sha256, read_folder

    sha256 = data_sha256(read_folder(own.folder))
    for part in next_parts(log, full, own, []):
        if part.what == OUT_OF_FOLD:
            labels = (np.arange(24) % 2) * 0.6 + 0.2
            labels[:2] = 0.5
            row: dict[str, Any] = {"auroc": 0.9, "out_of_fold": labels.tolist()}
        else:
            good = truth if part.id else 1 - truth
            row = {"data_sha256": sha256, "scores": [(0.8 * good + 0.1).tolist()] * 3}
        full.append(part, row)
    made = read_report(out)
    assert made.against_random == "ahead"
    assert made.over_random == pytest.approx(0.14 - 0.04 * np.log(0.52 / 0.51))
    by_role = {row.role: row for row in made.found}
    assert by_role["explored"].auroc == 1
    assert by_role["explored"].ahead.value == 1
    assert by_role["hand-made"].auroc == 0
    assert "+100.00 [+100.00, +100.00] points" in made.against_hand
    text = CliRunner().invoke(app, ["explore", "report", "--out", str(out)])
    assert text.exit_code == 0, text.output
    assert "**ahead**" in text.stdout
    row = json.loads(
        CliRunner().invoke(app, ["explore", "report", "--out", str(out), "--json"]).stdout
    )
    assert row["best"][0]["trainings"] == 6
    assert (out / "pareto.svg").is_file()


@pytest.mark.parametrize(
    ("lead", "verdict"),
    [(1e-6, "tie"), (0.02, "tie"), (0.05, "ahead"), (-0.05, "tie"), (-0.3, "behind")],
)
def test_search_is_ahead_of_random_search_by_more_than_a_repetition_only(
    tmp_path: Path, lead: float, verdict: str
) -> None:
    """Random search's merits are .60 to .75. The search has found one network, again and again, a
    lead above the best of these; how the folds differ from network to network says what it is
    worth."""
    log = Log.open(tmp_path, {"set": "own"})
    for number in range(32):
        arm = (SEARCH, RANDOM)[number % 2]
        row = {"spec": to_row(HAND_MADE), "violations": {}, "latency": {"ratio": 1.0},
               "zero_cost": dict.fromkeys(("naswot", "synflow", "gradient"), 1.0),
               "mflops": 70.0, "parameters": 700_000}  # fmt: skip
        log.append({"kind": "candidate", "id": number, "arm": arm, **row})
        area = 0.75 + lead if arm == SEARCH else 0.6 + 0.01 * (number // 2)
        # The first fold is the easier one for all of them: that is no noise.
        log.append(_training(number, area, 0.04 + 0.01 * (-1) ** (number // 2)))
    made = report(log, Full(tmp_path, {}), [])
    assert made.over_random == pytest.approx(lead)
    assert made.repeat_limit == pytest.approx(0.0277, rel=0.1)
    searched, drawn = made.best
    assert searched.interval is None, "its trainings are no sample"
    assert drawn.interval
    assert drawn.interval[1] == drawn.merit == pytest.approx(0.75)
    assert made.against_random == verdict
    assert f"**{verdict}**, best over best {lead:+.4f}" in markdown(made)


def test_a_log_that_cannot_say_what_a_repetition_differs_by_gives_no_verdict(
    tmp_path: Path,
) -> None:
    out, _ = _logged(tmp_path, 1)
    log = Log.read(out)
    for candidate in log.candidates:
        assert candidate.training
        del candidate.training["folds"]
    made = report(log, Full(out, {}), [])
    assert (made.repeat_limit, made.against_random) == (None, "not known yet")


def test_speed_and_accuracy_over_the_hand_made_network_are_means_of_the_same_sets(
    tmp_path: Path,
) -> None:
    out, own = _logged(tmp_path)
    other = DataSet(_write_set(tmp_path / "other"), "raw")
    log = Log.read(out)
    from models.training.data import data_sha256, read_folder

    while parts := next_parts(log, full := Full.read(out), own, [other]):
        for part in parts:
            sha256 = data_sha256(read_folder(part.data.folder))
            is_hand = log.candidates[part.id].spec == HAND_MADE
            ratio = 1.0 if is_hand else 0.5 if part.data == own else 0.9
            truth = (np.arange(8) % 2).tolist()
            level = [0.5] * 8
            full.append(
                part,
                {
                    OUT_OF_FOLD: {"auroc": 0.9, "out_of_fold": [0.4, 0.4, 0.2, 0.8] * 6},
                    FINAL: {"data_sha256": sha256,
                            "scores": [level if is_hand or part.data == own else truth] * 3},
                    LATENCY: {"latency": {"ratio": ratio, "processor": "p"}},
                }[part.what],
            )  # fmt: skip
    made = read_report(out)
    assert made.over_hand
    assert made.over_hand.value == pytest.approx(0.25)
    assert made.over_hand.low == pytest.approx(0.25)
    assert "30 % faster than the hand-made network (means of 2 sets)" in made.against_hand


def test_refused_networks_and_references_are_no_scored_candidates(tmp_path: Path) -> None:
    out, own = _logged(tmp_path, 1)
    log = Log.read(out)
    spec = {"arm": RANDOM, "spec": to_row(TINY)}
    refused = {"violations": {"FLOPs < 100 M": "too slow"}, "latency": {"ratio": 9.0}}
    log.append({"kind": "candidate", "id": 3, **spec, **refused})
    search = _Exploration(_plan(own.folder, out), log, 0.0, str)
    assert [candidate.id for candidate in log.scored()] == [1, 2]
    assert not search.is_done()
    for number in (4, 5):
        found = {"violations": {}, "latency": {"ratio": 1.0}, "zero_cost": {"naswot": 1.0}}
        log.append({"kind": "candidate", "id": number, **spec, **found})
    assert search.is_done()
    search.close()


def test_random_search_goes_on_with_the_draws_that_are_missing(tmp_path: Path) -> None:
    """Of draws 0 to 4, three ended before a kill; two of the lines are of an older log."""
    out, own = _logged(tmp_path, 0)
    log = Log.read(out)
    for number, (place, more) in enumerate([(1, {}), (4, {"draw": 4}), (0, {})], 1):
        spec = to_row(proposing.random_spec(1, place))
        row = {"spec": spec, "violations": {"FLOPs < 100 M": "too slow"}, **more}
        log.append({"kind": "candidate", "id": number, "arm": RANDOM, **row})

    search = _Exploration(_plan(own.folder, out), Log.read(out), 0.0, str)
    search._cheap = Now()  # type: ignore[assignment]
    search._feed_cheap()
    search._harvest()
    search.close()
    rows = [row for row in _lines(out) if row.get("arm") == RANDOM][3:]
    assert [row["draw"] for row in rows] == [2, 3, 5]
    assert [row["spec"] for row in rows] == [
        to_row(proposing.random_spec(1, place)) for place in (2, 3, 5)
    ]


class Now(Executor):
    """Every network is refused at once; nothing is proposed."""

    def submit(self, function: Any, /, *words: Any, **more: Any) -> Future[Any]:
        job: Future[Any] = Future()
        refused = {"spec": words[0], "violations": {"FLOPs < 100 M": "too slow"}}
        job.set_result(refused if function is measure else [])
        return job


def test_report_of_a_set_that_changed_is_refused(tmp_path: Path) -> None:
    out, own = _logged(tmp_path)
    log, full = Log.read(out), Full.read(out)
    for part in next_parts(log, full, own, []):
        scores = {"data_sha256": "other", "scores": [[0.5] * 8] * 3}
        folds = {"auroc": 0.9, "out_of_fold": [0.5] * 24}
        full.append(part, folds if part.what == OUT_OF_FOLD else scores)
    result = CliRunner().invoke(app, ["explore", "report", "--out", str(out)])
    assert result.exit_code == 1
    assert "changed since" in result.stderr


@pytest.mark.long
def test_search_needs_data_and_stops_at_its_deadline(tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, ["explore", "--data", str(tmp_path / "no")])
    assert missing.exit_code == 1
    assert "no such folder" in missing.stderr
    out = tmp_path / "out"
    assert not explore(_plan(_write_set(tmp_path / "own"), out), time.time(), lambda text: None)
    assert Log.read(out).run["set"] == "own"


def test_full_trainings_write_what_the_report_reads(tmp_path: Path) -> None:
    out, own = _logged(tmp_path, 1)
    with pytest.raises(LogError, match="explore first"):
        train_finalists(tmp_path / "none", own, [], time.time() + 60, 1)
    with pytest.raises(DataError, match="two sets of one name"):
        train_finalists(out, own, [own], time.time() + 60, 1)
    assert not train_finalists(out, own, [], time.time(), 1, say=lambda text: None)
    assert {part.what for part in next_parts(Log.read(out), Full.read(out), own, [])} == {
        OUT_OF_FOLD,
        FINAL,
    }


# The found network as a file


def test_emitted_file_is_the_network(tmp_path: Path) -> None:
    for number, spec in enumerate((HAND_MADE, replace(TINY, input2="own", block4="residual"))):
        path = tmp_path / f"found{number}.py"
        path.write_text(source(spec, "Found", "A network.", "fine"))
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found
        assert found.loader
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        network = build(spec, "fine", 1).eval()
        other = module.Found().eval()
        other.load_state_dict(network.state_dict())
        tiles = torch.randint(0, 256, (2, 1, 224, 224), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.equal(network(tiles), other(tiles))
            assert torch.equal(network.cell_weights(), other.cell_weights())


def test_found_network_becomes_a_model_that_tests_itself(tmp_path: Path) -> None:
    """From the log by its spec through train and export, by the commands."""
    out, data = _logged(tmp_path)
    spec, run, model = tmp_path / "found.json", tmp_path / "run", tmp_path / "found-1"

    def command(*words: object, status: int = 0) -> str:
        result = CliRunner().invoke(app, [*map(str, words)])
        assert result.exit_code == status, result.output
        return result.output

    command("explore", "emit", "--out", out, "--to", spec, "--candidate", 1)
    train = ("train", "--data", data.folder, "--network", "explored", "--epochs", 1, "--seeds", 1)
    recipe = ("--recipe", "fine, from nothing")
    command(*train, *recipe, "--spec", spec, "--out", run)
    assert from_row(json.loads((run / "summary.json").read_text())["spec"]) == from_row(
        json.loads(spec.read_text())
    )
    command("export", "--run", run, "--data", data.folder, "--out", model)
    classifier = Classifier.load(model)
    classifier.self_test()
    assert classifier.card.name == "LightDefectNet, explored"
    tiles = load_tiles(select(read_folder(data.folder), "test"))
    expected = predict(load_network(run), tiles)
    assert classifier.scores(tiles) == pytest.approx(expected, abs=1e-4)

    # Another spec in the same folder is another run; and what lacks something is said.
    command("explore", "emit", "--out", out, "--to", tmp_path / "2.json", "--candidate", 2)
    other = ("--spec", tmp_path / "2.json")
    assert "other data or settings" in command(*train, *recipe, *other, "--out", run, status=1)
    assert "go together" in command(*train, "--out", tmp_path / "none", status=1)
    begun = ("--recipe", "fine, pre-trained", "--spec", spec, "--out", tmp_path / "none")
    assert "name that run with --init" in command(*train, *begun, status=1)
    again = (*begun[:-1], tmp_path / "again", "--init", run)
    command(*train, *again)
    spec.write_text('{"stem_kernel": 3}')
    assert "found.json: not a spec" in command(*train, "--spec", spec, status=2)


def test_what_breaks_a_constraint_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no LightDefectNet"):
        export(build(PROTOTYPE), {}, np.zeros((2, 1, 224, 224), np.uint8), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_emit_names_what_it_cannot_write(tmp_path: Path) -> None:
    out, _ = _logged(tmp_path)
    base = ["explore", "emit", "--out", str(out), "--to", str(tmp_path / "net.py")]
    for more, status, word in (
        ([], 1, "no winner yet"),
        (["--candidate", "99"], 1, "no candidate 99"),
        (["--name", "1st"], 2, "Python name"),
    ):
        result = CliRunner().invoke(app, [*base, *more])
        assert result.exit_code == status
        assert word in result.stderr
    assert CliRunner().invoke(app, [*base, "--candidate", "1"]).exit_code == 0
    assert "class ExploredNet" in (tmp_path / "net.py").read_text()


def test_exploring_needs_no_package_of_the_station() -> None:
    """It runs on a machine that has PyTorch, ONNX Runtime, scikit-learn and optuna only."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pydantic', 'typer', 'sqlalchemy', 'rich',\n"
        "                                  'station', 'drivers', 'matplotlib', 'openvino'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import models.training.explore.__main__\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
