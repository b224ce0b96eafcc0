"""Specimens of any make: what a view is, when its flaw counts, and the folder that holds them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from station_rig import vqi

from drivers.camera.flaws import Flaw, flawed_dots
from drivers.camera.patterns import CANVAS_PX, COLUMNS, ROWS, VIEW_PX, DotPattern, Warp
from drivers.camera.views import Scene, View, take_view
from models.training.data import data_sha256, read_folder
from station.specimen_set import SPECIMEN_SET, write_specimen_set
from station.synthesize import TileFolder
from station.tiling import TILE_PX


def view(number: int, is_defective: bool) -> View | None:
    rng = np.random.default_rng((7, number))
    return take_view(Scene.random(rng), rng, is_defective)


@pytest.fixture(scope="module")
def defective() -> list[View]:
    views = [view(number, True) for number in range(40)]
    return [one for one in views if one]


def test_the_same_state_gives_the_same_view() -> None:
    for number in range(4):
        first, second = view(number, True), view(number, True)
        assert first
        assert second
        assert first.flaws == second.flaws
        assert np.array_equal(first.pixels, second.pixels)


def test_scenes_differ_widely() -> None:
    views = [view(number, False) for number in range(60)]
    levels = np.array([float(one.pixels.mean()) for one in views if one])
    unrest = np.array([float(one.pixels.std()) for one in views if one])
    assert levels.min() < 50
    assert levels.max() > 180
    assert unrest.max() > 10 * unrest.min()


def test_a_good_view_has_no_flaw_and_a_defective_one_a_flaw_that_is_seen(
    defective: list[View],
) -> None:
    good = view(0, False)
    assert good
    assert good.flaws == ()
    assert len(defective) > 30
    for one in defective:
        assert one.pixels.shape == (VIEW_PX, VIEW_PX)
        assert all(flaw.visibility >= 1 for flaw in one.flaws)
        x0, y0, x1, y1 = one.flaws[0].box
        assert 0 <= x0 < x1 <= VIEW_PX
        assert 0 <= y0 < y1 <= VIEW_PX


def test_a_flaw_shows_where_its_box_is() -> None:
    """The good view of the same random numbers is the same plate without the flaw."""
    compared = 0
    for number in range(40):
        good, bad = view(number, False), view(number, True)
        if good is None or bad is None or len(bad.flaws) != 1 or bad.flaws[0].visibility < 2:
            continue
        x0, y0, x1, y1 = bad.flaws[0].box
        change = np.abs(bad.pixels.astype(float) - good.pixels)
        assert change[y0:y1, x0:x1].mean() > 2 * change.mean(), number
        compared += 1
    assert compared > 10


def test_a_flaw_acts_as_its_kind_does() -> None:
    spot = np.exp(-((ROWS - 100) ** 2 + (COLUMNS - 100) ** 2) / 50).astype(np.float32)
    level = np.full((CANVAS_PX, CANVAS_PX), 100, np.float32)
    level[:, ::2] = 140
    light = np.full_like(level, 100)
    gain = Flaw("any", spot, "gain", 0.5, 3.0).on(level, light)
    glow = Flaw("any", spot, "glow", 0.5, 3.0).on(level, light)
    cover = Flaw("any", spot, "cover", -1.0, 3.0).on(level, light)
    assert gain[100, 100] == pytest.approx(210)
    assert glow[100, 100] == pytest.approx(190)
    assert cover[100, 100] == pytest.approx(10)
    for changed in (gain, glow, cover):
        assert np.allclose(changed[200], level[200])


def test_no_flaw_is_stronger_than_its_kind() -> None:
    shade = np.ones((CANVAS_PX, CANVAS_PX), np.float32)
    assert Flaw("patch", shade, "gain", 0.3, 0.4).scaled(100).contrast == 0.4
    assert Flaw("dark_spot", shade, "gain", -0.3, 3.0).scaled(100).contrast == -1.0


def dots(pitch_px: float) -> DotPattern:
    none = Warp(0.0, 100.0, 0.0)
    return DotPattern(
        pitch_px, 1.0, False, 0.0, 0.5, "round", 1.0, 0.0, "flat", 0.0, 0.0, 0.0, 0.0, 0.0, none
    )  # fmt: skip


@pytest.mark.parametrize("pitch_px", [5.0, 12.0, 37.0])
def test_dots_cover_the_plate_at_their_pitch(pitch_px: float) -> None:
    pattern = dots(pitch_px)
    whole = round(CANVAS_PX // pitch_px * pitch_px)
    field = pattern.draw(pattern.place(np.random.default_rng(1)))[:whole, :whole]
    assert field.mean() == pytest.approx(np.pi / 16, rel=0.1)  # a circle half a pitch wide
    spectrum = np.abs(np.fft.rfft(field.mean(axis=0) - field.mean()))
    assert whole / spectrum.argmax() == pytest.approx(pitch_px, rel=0.1)


def test_dots_too_small_to_judge_have_no_flaw_of_their_own() -> None:
    rng = np.random.default_rng(2)
    assert flawed_dots(dots(5.0), dots(5.0).place(rng), rng) is None
    pattern = dots(12.0)
    placed = pattern.place(rng)
    made = flawed_dots(pattern, placed, rng)
    assert made
    change = np.abs(pattern.draw(made[1]) - pattern.draw(placed))
    assert change.max() > 0.5
    assert np.count_nonzero(change) < 0.1 * change.size


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_scenes_can_be_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "tiles"
    done = vqi("model", "synthesize", "--out", str(out), "--plates", "0", "--scenes", "12")
    assert done.returncode == 0, done.stderr
    samples = read_folder(out)
    assert {sample.split for sample in samples} == {"train", "val", "test"}
    labels, boxes = rows_of(out / "labels.csv"), rows_of(out / "boxes.csv")
    assert sum(row["label"] == "1" for row in labels) == len(labels) / 2
    assert {row["file"] for row in boxes} == {row["file"] for row in labels if row["label"] == "1"}
    for row in labels:
        is_defective = row["label"] == "1"
        figures = [row["size_px"], row["size_mm"], row["contrast"], row["defect_type"]]
        assert all(figures) if is_defective else not any(figures)
    for box in boxes:
        x0, y0, x1, y1 = (int(box[key]) for key in ("x0", "y0", "x1", "y1"))
        assert 0 <= x0 < x1 <= TILE_PX
        assert 0 <= y0 < y1 <= TILE_PX


def test_a_folder_of_plates_has_boxes_on_its_defects(tmp_path: Path) -> None:
    out = tmp_path / "tiles"
    options = ("--plates", "4", "--contrast", "3", "3", "--variety", "0", "--width", "4096")
    done = vqi("model", "synthesize", "--out", str(out), *options)
    assert done.returncode == 0, done.stderr
    boxes = rows_of(out / "boxes.csv")
    spots = [box for box in boxes if box["type"] == "bright_spot"]
    assert spots
    for box in spots:
        tile = cv2.imread(str(out / box["file"]), cv2.IMREAD_GRAYSCALE)
        assert tile is not None
        x0, y0, x1, y1 = (int(box[key]) for key in ("x0", "y0", "x1", "y1"))
        assert tile[y0:y1, x0:x1].mean() > 1.1 * tile.mean()


def test_the_frozen_set_is_cut_from_plates_of_one_split_each(tmp_path: Path) -> None:
    """A small one of the same make: the whole takes minutes to render."""
    small = replace(SPECIMEN_SET, tiles=(("train", 4, 5), ("test", 3, 2)))
    shas = []
    for name in ("first", "second"):
        with TileFolder(tmp_path / name) as folder:
            write_specimen_set(folder, small)
        samples = read_folder(tmp_path / name)
        shas.append(data_sha256(samples))
        counts = Counter((sample.split, sample.label) for sample in samples)
        assert counts == {("train", 0): 4, ("train", 1): 5, ("test", 0): 3, ("test", 1): 2}
        groups = {
            split: {s.group for s in samples if s.split == split} for split in ("train", "test")
        }
        assert not groups["train"] & groups["test"]
    assert shas[0] == shas[1], "the same pixels every time"


def test_the_frozen_set_is_frozen() -> None:
    assert re.fullmatch("[0-9a-f]{64}", SPECIMEN_SET.sha256)
    assert sum(good + bad for _, good, bad in SPECIMEN_SET.tiles) == 205 + 800
