"""Labelled folders: what is wrong is one line, and nothing small is lost on the way to a tile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.training.data import (
    DataError,
    Sample,
    load_tiles,
    load_truth,
    read_folder,
    read_splits,
)

HEAD = "file,label,split"


def load_tile(*files: Path) -> NDArray[np.uint8]:
    """The first of these pictures as a tile, loaded together."""
    samples = [Sample(file, file.name, 0, "train", file.name) for file in files]
    tile: NDArray[np.uint8] = load_tiles(samples)[0, 0]
    return tile


def write(path: Path, picture: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    return path


def grey(height: int = 40, width: int = 40, level: int = 90) -> NDArray[np.uint8]:
    return np.full((height, width), level, np.uint8)


def table(root: Path, *rows: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text("\n".join([HEAD, *rows, ""]))
    for row in rows:
        write(root / row.partition(",")[0], grey())
    return root


def test_a_folder_of_test_pictures_alone_can_be_read(tmp_path: Path) -> None:
    root = table(tmp_path, "a.png,0,test", "b.png,1,test")
    assert len(read_splits(root, "test")) == 2
    with pytest.raises(DataError, match="train or val has no good pictures"):
        read_splits(root, "train", "val")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("a.png,0,train", "./a.png,1,test"), "'a.png' is listed twice"),
        (("a.png,0,train", "b.png,1"), "labels.csv:3: more or fewer cells than the 3"),
        (("a.png,0,train", "b.png,1,train,x"), "labels.csv:3: more or fewer cells"),
    ],
)
def test_a_bad_table_is_one_clear_error(rows: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_folder(table(tmp_path, *rows))


def test_a_table_in_another_encoding_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(f"{HEAD}\nStöße.png,0,train\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a table in UTF-8"):
        read_folder(tmp_path)


def test_a_label_without_a_file_is_named_wherever_it_should_lie(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{HEAD}\n/nowhere/x.png,0,train\n")
    with pytest.raises(DataError, match=r"1 labels without a file, first .*nowhere/x\.png"):
        read_folder(tmp_path)


@pytest.mark.parametrize("count", [5, 9, 10, 31])
def test_a_fifth_of_each_class_folder_is_for_the_test(count: int, tmp_path: Path) -> None:
    for label in ("good", "defective"):
        for number in range(count):
            write(tmp_path / label / f"{number}.png", grey())
    split = Counter((s.label, s.split) for s in read_folder(tmp_path))
    wanted = -(-count // 5)
    assert split[0, "test"] == split[1, "test"] == wanted
    assert split[0, "train"] == count - wanted


def test_a_file_that_is_no_picture_by_its_name_is_named(tmp_path: Path) -> None:
    for label in ("good", "defective"):
        write(tmp_path / label / "1.png", grey())
        (tmp_path / label / ".hidden").write_text("")
    assert len(read_folder(tmp_path)) == 2
    (tmp_path / "good" / "2.pgm").write_text("")
    with pytest.raises(DataError, match=r"good/2\.pgm: not a picture by its name"):
        read_folder(tmp_path)


def test_a_thin_mark_survives_whatever_the_picture_measures(tmp_path: Path) -> None:
    for place in range(500, 520):
        picture = grey(200, 2000)
        picture[:, place : place + 3] = 255
        tile = load_tile(write(tmp_path / "wide.png", picture))
        assert tile.shape == (224, 224)
        assert tile.max() > 110


def test_levels_of_12_bits_are_not_taken_for_16(tmp_path: Path) -> None:
    levels = np.linspace(0, 4095, 1600).reshape(40, 40).astype(np.uint16)
    dark = write(tmp_path / "12.png", levels)
    with pytest.raises(DataError, match="levels up to 4095 of 65535 in pictures of 16 bits"):
        load_tile(dark)
    bright = write(tmp_path / "16.png", levels * 16)
    assert load_tile(bright).max() > 200
    assert load_tile(dark, bright).max() == 15, "a dark picture among bright ones is just dark"


def sample_of(root: Path, **changes: object) -> Sample:
    file = write(root / "picture.png", grey(4096, 4096))
    return Sample(file, "picture.png", 1, "test", "part", **changes)  # type: ignore[arg-type]


def test_a_small_mask_and_a_box_over_the_border_mark_something(tmp_path: Path) -> None:
    mask = np.zeros((4096, 4096), np.uint8)
    mask[2000:2006, 1000:1004] = 255
    truth = load_truth(sample_of(tmp_path, mask_file=write(tmp_path / "mask.png", mask)))
    assert truth is not None
    assert truth[2000 * 224 // 4096, 1000 * 224 // 4096]
    assert truth.sum() <= 4
    over = load_truth(sample_of(tmp_path, boxes=((-20.0, 4090.0, -5.0, 4200.0),)))
    assert over is not None
    assert np.argwhere(over).tolist() == [[223, 0]]


def test_a_mask_without_a_defect_is_one_clear_error(tmp_path: Path) -> None:
    mask = write(tmp_path / "mask.png", grey(level=0))
    with pytest.raises(DataError, match="a mask without a defect"):
        load_truth(sample_of(tmp_path, mask_file=mask))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [1, 3, 127])
def test_a_mask_may_hold_numbers_of_classes(tmp_path: Path, value: int, depth: type) -> None:
    mask = np.zeros((448, 448), depth)
    mask[100:140, 200:260] = value
    truth = load_truth(sample_of(tmp_path, mask_file=write(tmp_path / "mask.png", mask)))
    assert truth is not None
    assert np.argwhere(truth).min(axis=0).tolist() == [50, 100]
    assert np.argwhere(truth).max(axis=0).tolist() == [69, 129]


def test_transparency_does_not_brighten_a_dark_picture(tmp_path: Path) -> None:
    picture = np.full((40, 40, 4), 3000, np.uint16)
    picture[..., 3] = 65535
    with pytest.raises(DataError, match="levels up to 3000 of 65535"):
        load_tile(write(tmp_path / "rgba.png", picture))
