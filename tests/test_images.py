"""Stored pictures: lossless, readable by others, readable in part."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.images import (
    PREVIEW_SIDE_PX,
    BandedPng,
    Draft,
    ImageError,
    ImageFolder,
    Pixels,
    Written,
    encode_preview,
    read_band,
)


@settings(max_examples=30, deadline=None)
@given(
    bands=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    columns=st.integers(1, 120),
    seed=st.integers(0, 100),
)
def test_what_is_stored_comes_back_whole_and_in_bands(
    bands: list[int], columns: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (sum(bands), columns), np.uint8)
    path = tmp_path_factory.mktemp("png") / "a.png"
    ends = np.cumsum(bands)
    png = BandedPng(columns)
    for rows, end in zip(bands, ends, strict=True):
        png.add(pixels[end - rows : end], is_last=end == len(pixels))
    path.write_bytes(b"".join(png.file()))
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), pixels)
    for number, (rows, end) in enumerate(zip(bands, ends, strict=True)):
        assert np.array_equal(read_band(path, number), pixels[end - rows : end])
    with pytest.raises(IndexError, match=f"no band {len(bands)}"):
        read_band(path, len(bands))


def test_a_file_that_is_no_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"hello, this is text")
    with pytest.raises(ImageError, match=r"x\.png"):
        read_band(tmp_path / "x.png", 0)


@pytest.mark.parametrize("shape", [(1500, 4096), (512, 300), (513, 7), (4000, 2)])
def test_a_preview_is_small_and_keeps_its_shape(shape: tuple[int, int]) -> None:
    data, width, height = encode_preview(np.full(shape, 90, np.uint8))
    assert PREVIEW_SIDE_PX / 2 <= max(width, height) <= PREVIEW_SIDE_PX
    cell = max(shape) / max(width, height)
    assert height == pytest.approx(shape[0] / cell, abs=1)
    assert width == pytest.approx(shape[1] / cell, abs=1)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert shown.shape == (height, width)
    assert abs(float(shown.mean()) - 90) < 2


def noise(rows: int, columns: int = 40, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)


BOTH = ["evidence", "preview"]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    steps=st.lists(st.tuples(st.integers(1, 70), st.booleans()), max_size=6),
    is_announced=st.booleans(),
    keep=st.sampled_from([[], ["preview"], ["evidence"], BOTH]),
)
def test_however_a_plate_arrives_its_pictures_are_the_same(
    rows: int,
    steps: list[tuple[int, bool]],
    is_announced: bool,
    keep: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = ImageFolder(tmp_path_factory.mktemp("images"))
    pixels = noise(80)
    draft = Draft(folder, pixels, 16)
    for until, is_whole in sorted(steps):
        draft.advance(min(until, rows), BOTH if is_whole else [], is_complete=False)
    if is_announced:
        draft.advance(rows, ["preview"], is_complete=True)
    made = draft.finish(rows, keep)
    assert made.pixels_sha256 == hashlib.sha256(pixels[:rows].tobytes()).hexdigest()
    assert [item.body.role for item in made.written] == keep
    at_once = Draft(folder, pixels, 16).finish(rows, keep)
    assert [item.body for item in made.written] == [item.body for item in at_once.written]
    folder.make_durable(made.written)
    for item in made.written:
        data = (folder.directory / item.body.path).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (item.body.sha256, item.body.bytes)
        if item.body.role == "evidence":
            shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(shown, pixels[:rows])
    left = set((folder.directory / "incoming").iterdir())
    assert left == {Path(item.temporary) for item in at_once.written}


def test_another_plate_than_the_announced_one_is_hashed_anew(tmp_path: Path) -> None:
    pixels, folder = noise(80), ImageFolder(tmp_path)
    draft = Draft(folder, pixels, 16)
    draft.advance(70, BOTH, is_complete=True)
    made = draft.finish(50, BOTH)
    assert made.pixels_sha256 == hashlib.sha256(pixels[:50].tobytes()).hexdigest()
    assert made.written[0].body.height_px == 50
    assert len(list((tmp_path / "incoming").iterdir())) == 2


def test_a_plate_that_never_came_to_a_result_leaves_nothing(tmp_path: Path) -> None:
    draft = Draft(ImageFolder(tmp_path), noise(80), 16)
    draft.advance(70, BOTH, is_complete=True)
    assert len(list((tmp_path / "incoming").iterdir())) == 2
    draft.discard()
    draft.advance(70, BOTH, is_complete=True)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_was_asked_for_before_the_result_is_not_begun_after_it(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    draft = Draft(folder, noise(80), 16)
    folder.make_durable(draft.finish(70, BOTH).written)
    draft.advance(70, BOTH, is_complete=True)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_pictures_that_found_no_room_are_made_once_there_is_some(tmp_path: Path) -> None:
    pixels, folder = noise(80), ImageFolder(tmp_path)
    draft = Draft(folder, pixels, 16)
    (tmp_path / "incoming").rmdir()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            draft.advance(70, BOTH, is_complete=True)
    (tmp_path / "incoming").mkdir()
    made = draft.finish(70, BOTH)
    assert made.pixels_sha256 == hashlib.sha256(pixels[:70].tobytes()).hexdigest()
    folder.make_durable(made.written)
    shown = cv2.imread(str(tmp_path / made.written[0].body.path), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(shown, pixels[:70])


def test_a_picture_has_its_name_only_once_it_is_durable(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    written = Draft(folder, noise(30), 30).finish(30, BOTH).written
    assert not any((tmp_path / item.body.path).exists() for item in written)
    folder.make_durable(written)
    assert all((tmp_path / item.body.path).exists() for item in written)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_a_death_left_unfinished_is_put_aside_and_no_more(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)

    def write(seed: int) -> list[Written]:
        return list(Draft(folder, noise(8, seed=seed), 8).finish(8, ["evidence"]).written)

    named = write(1)
    folder.make_durable(named)
    write(2)
    assert folder.clean() == 1
    assert (tmp_path / named[0].body.path).exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
