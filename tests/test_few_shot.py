"""A new product from few plates, or from good ones only: the folder that comes out is a model like
any other, and what it is not sure of never passes."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from station_rig import Rig, vqi
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")

from models.card import read_card  # noqa: E402
from models.classifier import Classifier  # noqa: E402
from models.registry import shipped_model  # noqa: E402
from models.training.data import DataError, load_tiles, read_folder  # noqa: E402
from models.training.evaluate import auroc  # noqa: E402
from models.training.fit import Fit, TrainingRecipe, predict, run_fit  # noqa: E402
from models.training.good_plates import draw_marks  # noqa: E402
from models.training.lightdefectnet import LightDefectNet  # noqa: E402
from models.training.plate_limits import choose_limits  # noqa: E402
from models.training.train import load_network, read_summary  # noqa: E402
from models.training.unfold import beginning_of  # noqa: E402
from station.cli.model import app  # noqa: E402
from station.config import load_configuration, load_recipe  # noqa: E402
from station.precision import load_classifier  # noqa: E402
from station.synthesize import PlateSource, TileFolder  # noqa: E402

GOOD, BAD = 8, 6
DOTS = 'dot_pitch_mm = 0.8\ndot_layout = "staggered"\ndot_angle_deg = 20.0\n'


torch.set_num_threads(1)


def model(*arguments: str) -> Result:
    """`vqi model ...` in this process: starting it anew takes longer than most of what it does."""
    return CliRunner().invoke(app, [*arguments])


def rig_of(folder: Path, model: Path | None = None, lines: str = "") -> Rig:
    if model is None:
        return Rig(folder)
    return Rig(folder, recipe_lines=f'folder = "{model}"\n{lines}')


def recipe_of(rig: Rig) -> Any:
    rig.write()
    return load_recipe(str(rig.folder / "recipe.toml"))


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tiles of whole plates of the rig's size with other dots; the last ones to test."""
    root = tmp_path_factory.mktemp("plates")
    path = root / "recipe.toml"
    rig = Rig(root)
    rig.write()
    path.write_text(path.read_text().replace("[plate]\n", "[plate]\n" + DOTS))
    source = PlateSource(load_recipe(str(path)).value, 0.1, 768)
    with TileFolder(root) as folder:
        for number in range(2 * (GOOD + 1)):
            is_bad = number % 2 == 1
            split = "train" if number // 2 < (BAD if is_bad else GOOD) else "test"
            for tile in source.plate(np.random.default_rng((5, number)), is_bad, 0.0, 2.0):
                if tile.label is not None:
                    name = f"{number:02d}_{tile.x_px}_{tile.y_px}"
                    folder.add(tile, name, split, f"plate{number:02d}", 0.1)
    return root


def test_a_product_is_rendered_with_the_dots_of_its_recipe(tmp_path: Path) -> None:
    def tile(dots: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        path = tmp_path / "recipe.toml"
        Rig(tmp_path).write()
        path.write_text(path.read_text().replace("[plate]\n", "[plate]\n" + dots))
        source = PlateSource(load_recipe(str(path)).value, 0.1, 768)
        return source.plate(np.random.default_rng(1), False, 0.0, 1.0)[0].pixels

    demo = tile("dot_pitch_mm = 1.2\n")
    assert np.array_equal(demo, tile("")), "the demonstration product stays as it was"
    # 1.4 mm at 0.1 mm a pixel: 16 periods in a tile of 224 px; plates lie a little askew.
    waves = np.abs(np.fft.fft2(tile("dot_pitch_mm = 1.4\n") - 128.0))[0]
    assert 15 <= 4 + int(waves[4:100].argmax()) <= 17


@dataclass(frozen=True)
class GoodModel:
    folder: Path
    run: Path
    said: dict[str, Any]


@pytest.fixture(scope="module")
def good_model(plates: Path, tmp_path_factory: pytest.TempPathFactory) -> GoodModel:
    """Learned and exported by the commands."""
    root = tmp_path_factory.mktemp("good")
    run, out = root / "run", root / "lightdefectnet-v3"
    data = ("--data", str(plates))
    done = model("learn-good", *data, "--out", str(run), "--json")
    assert done.exit_code == 0, done.output
    exported = model("export", "--run", str(run), *data, "--out", str(out))
    assert exported.exit_code == 0, exported.output
    return GoodModel(out, run, json.loads(done.stdout))


def test_the_model_of_good_plates_is_one_graph_within_the_cost(good_model: GoodModel) -> None:
    card = read_card(good_model.folder)
    assert card.mflops < 100
    assert card.parameters < 770_000
    assert (card.training.good > 0, card.training.defective, card.training.groups) == (
        True, 0, GOOD
    )  # fmt: skip
    assert card.threshold.unsure_above is not None
    assert card.threshold.unsure_above < card.threshold.value
    assert "No defective plate was seen" in card.threshold.chosen_by


def test_what_judges_is_what_was_learned(good_model: GoodModel, plates: Path) -> None:
    classifier = Classifier.load(good_model.folder)
    classifier.self_test()
    tiles = load_tiles(read_folder(plates)[:20])
    found = classifier.find(tiles)
    assert found.scores == pytest.approx(predict(load_network(good_model.run), tiles), abs=1e-4)
    assert found.defect_maps is not None
    # The map's strongest cell is the tile's score, three log odds higher.
    strongest = found.defect_maps.max(axis=(1, 2)) - 3.0
    assert found.scores == pytest.approx(1 / (1 + np.exp(-strongest)), abs=1e-4)


def test_marks_are_strange_and_other_good_plates_mostly_are_not(
    good_model: GoodModel, plates: Path
) -> None:
    tested = [s for s in read_folder(plates) if s.split == "test" and s.label == 0]
    tiles = load_tiles(tested)
    classifier = Classifier.load(good_model.folder)
    plain, marked = (
        classifier.scores(each) for each in (tiles, draw_marks(tiles, np.random.default_rng(1)))
    )
    labels = np.repeat([0, 1], len(tiles))
    assert auroc(labels, np.concatenate([plain, marked])) > 0.7
    assert (plain > read_card(good_model.folder).threshold.value).mean() < 0.1


def test_the_station_takes_it_and_what_it_doubts_never_passes(
    good_model: GoodModel, tmp_path: Path
) -> None:
    """Every plate that does not fail is in doubt: none may pass, and each says why."""
    config = str(rig_of(tmp_path, good_model.folder, "unsure_above = 0.0\n").write())
    checked = vqi("check", "--config", config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = vqi("run", "--config", config, "--plates", "3", "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    results = [row for row in rows if "summary" not in row]
    assert len(results) == 3
    for row in results:
        assert row["unsure_above"] == 0.0
        assert row["model_sha256"] == read_card(good_model.folder).sha256
        assert row["verdict"] == ("FAIL" if row["score"] > row["threshold"] else "UNDECIDED")
        if row["verdict"] == "UNDECIDED":
            assert row["reason"] == "unsure"
            assert "above 0, fails above" in row["detail"]
            assert row["defects"], "a person is told where"
    verified = vqi("log", "verify", "--config", config)
    assert verified.returncode == 0, verified.stdout


def test_a_faster_precision_does_not_judge_where_there_is_doubt(
    good_model: GoodModel, tmp_path: Path
) -> None:
    rig = rig_of(tmp_path, good_model.folder)
    recipe = recipe_of(rig)
    chosen = load_classifier(load_configuration(str(rig.write())), recipe, 1)
    assert chosen.classifier.precision == "fp32"
    assert "neither PASS nor FAIL" in chosen.why


def test_a_copy_has_the_same_hash_and_a_changed_one_has_not(
    good_model: GoodModel, plates: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plates, copy)
    folders = [str(folder) for folder in (plates, copy, good_model.folder, good_model.run)]
    done = model("hash", *folders, "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["data", "data", "model", "run"]
    assert rows[0]["sha256"] == rows[1]["sha256"] == rows[2]["data_sha256"]
    picture = next((copy / "tiles").iterdir())
    picture.write_bytes(picture.read_bytes() + b"\0")
    changed = model("hash", str(copy), "--json")
    assert json.loads(changed.stdout)["sha256"] != rows[0]["sha256"]


def test_too_few_good_plates_are_refused(plates: Path, tmp_path: Path) -> None:
    with (plates / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["group"] <= "plate05"]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        for row in rows:
            table.writerow(row | {"file": os.path.relpath(plates / row["file"], tmp_path)})
    done = model("learn-good", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.exit_code == 1
    assert "good pictures of 3 plates; 8 or more are needed" in done.output


# --- 20 and 20 ---


@pytest.fixture(scope="module")
def few_run(plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("few") / "run"
    done = model(
        *("train", "--data", str(plates), "--out", str(run), "--few-shot"),
        *("--seeds", "2", "--epochs", "1"),
    )
    assert done.exit_code == 0, done.output
    return run


def test_few_plates_keep_the_norms_and_average_the_seeds(few_run: Path) -> None:
    summary = read_summary(few_run)
    assert summary["recipe"]["name"].endswith("few plates")
    assert summary["zero_shot_auroc"][summary["recipe"]["front_end"]] == max(
        summary["zero_shot_auroc"].values()
    )
    one, two = (
        torch.load(few_run / f"seed-{seed}" / "result.pt", weights_only=True)["weights"]
        for seed in (1, 2)
    )
    network = load_network(few_run).state_dict()
    changed = 0
    for name, value in network.items():
        if value.is_floating_point():
            assert torch.allclose(value, (one[name] + two[name]) / 2)
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(one[name], two[name])
        changed += not torch.equal(one[name], two[name])
    assert changed > 20


def test_its_own_plates_choose_the_limits(few_run: Path, plates: Path, tmp_path: Path) -> None:
    out = tmp_path / "few-plates"
    done = model(
        *("export", "--run", str(few_run), "--data", str(plates), "--out", str(out)),
        *("--own-plates", "--false-reject-target", "0.1"),
    )
    assert done.exit_code == 0, done.output
    limits = read_card(out).threshold
    assert f"of {GOOD} [" in limits.chosen_by
    assert f"of {BAD} [" in limits.chosen_by
    Classifier.load(out).self_test()
    rig = rig_of(tmp_path, out)
    path = rig.write()
    recipe = rig.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"lightdefectnet-v3"', '"few-plates"'))
    checked = vqi("check", "--config", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_limits_leave_the_overlap_to_a_person() -> None:
    good, bad = np.linspace(0, 0.6, 20), np.linspace(0.4, 1, 20)
    scores = np.concatenate([good, bad]).astype(np.float32)
    labels = np.repeat([0, 1], 20)
    groups = [str(number) for number in range(40)]
    limits = choose_limits(scores, labels, groups, 0.05, 0.05)
    assert limits.threshold == pytest.approx(0.6)
    assert limits.unsure_above is not None
    assert limits.unsure_above < bad[0]
    assert limits.unsure_above == pytest.approx(bad[0], abs=1e-6)
    apart = choose_limits((scores > 0.5).astype(np.float32), labels * 0 + (scores > 0.5), groups,
                          0.05, 0.05)  # fmt: skip
    assert apart.unsure_above is None


def test_a_training_of_before_is_still_the_same_run(plates: Path, tmp_path: Path) -> None:
    """A new key of the recipe must not make finished runs look like others."""
    samples = [sample for sample in read_folder(plates) if sample.split == "train"][:8]
    plain = TrainingRecipe("contrast, from nothing", "contrast", is_pretrained=False)
    run_fit(Fit("one", "lightdefectnet", plain, 1, 1, 1), samples, [], "0" * 64, tmp_path)
    saved = torch.load(tmp_path / "one" / "result.pt", weights_only=True)
    assert set(saved["identity"]["recipe"]) == {
        *("name", "front_end", "is_pretrained", "learning_rate", "weight_decay", "batch"),
    }  # fmt: skip


# --- from the model that judges ---


def test_a_model_unfolds_into_weights_that_compute_the_same(plates: Path, tmp_path: Path) -> None:
    shipped = shipped_model("lightdefectnet-v3")
    tiles = load_tiles(read_folder(plates)[:24])
    path = beginning_of(shipped, tiles, tmp_path)
    network = LightDefectNet("contrast")
    network.load_state_dict(torch.load(path, weights_only=True)["weights"])
    expected = Classifier.load(shipped).scores(tiles)
    assert predict(network, tiles) == pytest.approx(expected, abs=1e-5)
    # And in training mode: the norms know these pictures.
    with torch.no_grad():
        training = network.train()(torch.from_numpy(tiles)).softmax(2).mean(1)[:, 1].numpy()
    assert training == pytest.approx(expected, abs=1e-3)
    before = path.read_bytes()
    assert beginning_of(shipped, tiles[:4], tmp_path) == path
    assert path.read_bytes() == before, "a run that goes on begins where it began"


@pytest.mark.long
def test_retraining_begins_with_the_model_that_judges(plates: Path, tmp_path: Path) -> None:
    done = model(
        *("train", "--data", str(plates), "--out", str(tmp_path / "run"), "--few-shot"),
        *("--init", "lightdefectnet-v3", "--seeds", "1", "--epochs", "1"),
    )
    assert done.exit_code == 0, done.output
    summary = read_summary(tmp_path / "run")
    assert list(summary["zero_shot_auroc"]) == ["contrast"]
    assert list((tmp_path / "run").glob("begin-*.pt"))


def test_another_network_is_no_beginning(good_model: GoodModel, plates: Path) -> None:
    with pytest.raises(DataError, match="not a graph of LightDefectNet as it is here"):
        beginning_of(good_model.folder, load_tiles(read_folder(plates)[:4]), good_model.run)


# --- beside a running station ---


def test_a_background_command_gives_way_before_it_loads_anything() -> None:
    """What follows inherits it: threads that libraries start, too. On busy cores an idle process
    may not get far, so it is looked at from outside."""
    start = "from station.idle import be_idle; be_idle('-c', 'input()')"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while os.sched_getscheduler(process.pid) != os.SCHED_IDLE:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(os.sched_getaffinity(process.pid)) == 1
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "900"
        process.kill()


def test_a_command_ends_at_the_memory_it_may_take(plates: Path, tmp_path: Path) -> None:
    """As `--background` limits itself, without giving way, which takes long on busy cores."""
    limit = 370 << 20
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "station.cli", "model", "learn-good"),
            *("--data", str(plates), "--out", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "needs more than the 370 MiB it may take" in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "run" / "summary.json").exists()
