"""Labels that several networks doubt come first on the list; nobody's own label leads its voice."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="needs the train extra")

import cv2

from models.training.data import DataError, labels_of, load_tiles, picture_sha256, read_folder
from models.training.plate_limits import out_of_fold
from models.training.suspects import Voter, feature_voters, rank, run_voters, tables_of
from models.training.train import (
    Plan,
    learned_by,
    pictures_seen,
    read_summary,
    recipes_for,
    refuse_seen_folds,
    train,
)
from station.cli.model import app

Json = dict[str, Any]
TILES, PLANTED = 48, (3, 10, 29)


class Quiet:
    def begin(self, batches: int, what: str) -> None: ...

    def advance(self, batches: int = 1) -> None: ...


def write_tiles(root: Path, count: int, seed: int) -> None:
    """A dot lattice; every other tile has a scratch; some labels are turned round."""
    rng = np.random.default_rng(seed)
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group"])
        for n in range(count):
            tile = np.full((224, 224), 110, np.uint8)
            tile[4::12, 4::12] = 190
            if n % 2:
                ends = rng.integers(40, 180, 4).tolist()
                cv2.line(tile, ends[:2], [ends[2], 223 - ends[3]], 235, 3)
            tile = np.clip(tile + rng.normal(0, 4, tile.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / f"{n:02}.png"), tile)
            label = (n % 2) ^ (n in PLANTED)
            table.writerow([f"{n:02}.png", label, "train", f"part{n // 2}"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("noisy")
    write_tiles(root, TILES, 5)
    with (root / "provenance.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "result_id", "reviewers", "reason", "review_row"])
        table.writerow(["03.png", "s-00000007", "ada; <b>", "confirmed", "9"])
    return root


def test_planted_labels_come_first_with_who_said_so(folder: Path, tmp_path: Path) -> None:
    asked = ["suspects", "--data", str(folder), "--out", str(tmp_path), "--share", "0.0625"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["file"] for row in rows} == {f"{n:02}.png" for n in PLANTED}
    told = json.loads((tmp_path / "suspects.json").read_text())
    assert told["list"] == rows
    with (tmp_path / "suspects.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [row["file"] for row in listed][:3] == [row["file"] for row in rows]
    assert len(listed) == TILES
    page = (tmp_path / "suspects.html").read_text()
    assert page.count("<img") == 3
    assert "s-00000007" in page
    assert "<b>" not in page
    assert 'src="http' not in page


def test_a_tiles_own_label_has_no_part_in_what_is_said_of_it(folder: Path) -> None:
    """Turned round, the label moves the others' voices a little, and its own tile's not at all
    towards itself."""
    samples = read_folder(folder)
    tables, labels = tables_of(load_tiles(samples)), labels_of(samples)
    turned = labels.copy()
    turned[20] = 1 - turned[20]
    for before, after in zip(
        feature_voters(tables, labels), feature_voters(tables, turned), strict=True
    ):
        assert (before.probability[20] > 0.5) == (after.probability[20] > 0.5), before.name


def test_a_trainings_out_of_fold_scores_vote(folder: Path, tmp_path: Path) -> None:
    recipe = recipes_for("lightdefectnet", "contrast, pre-trained")
    run = tmp_path / "run"
    train(Plan(folder, run, seeds=(1,), recipes=recipe, epochs=2), "test", Quiet())
    samples = read_folder(folder)
    (voter,) = run_voters(run, samples)
    assert np.isfinite(voter.probability).all()
    order = rank(labels_of(samples), [voter]).order[:6].tolist()
    assert len({*order} & {*PLANTED}) >= 2
    path = folder / "labels.csv"
    text = path.read_text()
    try:
        path.write_text(text.replace("03.png,0", "03.png,1"))
        with pytest.raises(DataError, match="other pictures, labels"):
            run_voters(run, read_folder(folder))
    finally:
        path.write_text(text)


def test_folds_that_began_with_what_had_learned_from_them_have_no_voice(
    folder: Path, tmp_path: Path
) -> None:
    """A network that saw the held-out tiles before knows their wrong labels by heart."""

    def run_of(data: Path, name: str, *begin: str) -> Path:
        run = tmp_path / name
        asked = ["train", "--data", str(data), "--out", str(run), "--seeds", "1", "--epochs", "1"]
        done = CliRunner().invoke(app, [*asked, "--recipe", "contrast, pre-trained", *begin])
        assert done.exit_code == 0, done.output
        return run

    others = tmp_path / "others"
    others.mkdir()
    write_tiles(others, 24, 6)
    before = run_of(others, "before")
    unseen = run_of(folder, "unseen", "--init", str(before))
    samples = read_folder(folder)
    assert read_summary(unseen)["init"]["pictures_seen"] == 0
    assert len(run_voters(unseen, samples)) == 1
    known = {picture_sha256(sample) for sample in (*read_folder(others), *samples)}
    assert learned_by(unseen) == known

    for data in (folder, others):  # what it began with counts, and what that began with
        again = run_of(data, f"again-{data.name}", "--init", str(unseen))
        said = f"learned from {len(read_folder(data))} of its pictures, so that none is unseen"
        with pytest.raises(DataError, match=said):
            run_voters(again, read_folder(data))
        with pytest.raises(DataError, match=said):
            out_of_fold(data, again, read_summary(again))


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ({"command": "vqi model train --data D"}, 0),
        ({"command": "vqi model train --data D --init models/own"}, None),
        ({"command": "", "init": {"name": "models/own", "pictures_seen": None}}, None),
    ],
)
def test_a_beginning_of_which_nobody_knows_what_it_learned_from_is_refused(
    tmp_path: Path, said: Json, seen: int | None
) -> None:
    assert pictures_seen(said) == seen
    if seen is None:
        with pytest.raises(DataError, match=r"nobody knows .* train again without --init"):
            refuse_seen_folds(tmp_path, said)


def test_the_better_voter_leads_and_one_that_knows_nothing_is_silent() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    knows = Voter("knows", np.array([0.1, 0.1, 0.1, 0.95, 0.9, 0.9, 0.9, 0.9]), 0.9)
    guesses = Voter("guesses", np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]), 0.5)
    found = rank(labels, [knows, guesses])
    assert found.order[0] == 3
    assert found.suspicion[3] == pytest.approx(0.95)
    assert found.disagreeing[3] == 1
    assert found.estimated_wrong == 1
    with pytest.raises(DataError, match="no voter knows"):
        rank(labels, [guesses])
    with pytest.raises(DataError, match="no out-of-fold score"):
        rank(labels, [Voter("part", np.where(labels, 0.9, np.nan), 0.9)])
