"""Stored pictures: lossless, readable by others, readable in part."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.images import (
    PREVIEW_SIDE_PX,
    ImageError,
    ImageFolder,
    encode_png,
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
    path.write_bytes(encode_png(pixels, bands))
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), pixels)
    first = 0
    for number, rows in enumerate(bands):
        assert np.array_equal(read_band(path, number), pixels[first : first + rows])
        first += rows
    with pytest.raises(IndexError, match=f"no band {len(bands)}"):
        read_band(path, len(bands))


def test_bands_must_make_the_picture() -> None:
    with pytest.raises(ValueError, match="do not make"):
        encode_png(np.zeros((10, 4), np.uint8), [4, 4])


def test_a_file_that_is_no_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"hello, this is text")
    with pytest.raises(ImageError, match=r"x\.png"):
        read_band(tmp_path / "x.png", 0)


def test_a_preview_is_small_and_keeps_its_shape() -> None:
    data, width, height = encode_preview(np.full((1500, 4096), 90, np.uint8))
    assert max(width, height) == PREVIEW_SIDE_PX
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert shown.shape == (height, width)
    assert abs(float(shown.mean()) - 90) < 2


def test_a_picture_has_its_name_only_once_it_is_durable(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    written = folder.write(pixels, [30], ["evidence", "preview"])
    assert not any((tmp_path / item.body.path).exists() for item in written)
    folder.make_durable(written)
    assert all((tmp_path / item.body.path).exists() for item in written)
    assert [item.body.role for item in written] == ["evidence", "preview"]


def test_what_a_death_left_is_put_aside_and_what_a_row_names_stays(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    named, orphan = (
        folder.write(np.full((8, 8), level, np.uint8), [8], ["evidence"]) for level in (1, 2)
    )
    folder.make_durable([*named, *orphan])
    folder.write(np.zeros((8, 8), np.uint8), [8], ["evidence"])
    assert folder.clean({named[0].body.path}, since_s=time.time() - 60) == 2
    assert (tmp_path / named[0].body.path).exists()
    assert not (tmp_path / orphan[0].body.path).exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 2
