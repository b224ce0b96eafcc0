"""What tells a stored plate that is judged as it was from one that is not."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from station.offline import Inspection
from station.parity import _difference, whole_plate
from station.record import Reason, Verdict
from station.verdict import TileScore

SCORES = [0.125, 0.75]


def record(verdict: Verdict, reason: Reason | None) -> dict[str, Any]:
    places = np.array([(0, 0), (192, 0)], "<u2")
    arrays = {"tile_grid": places, "tile_scores": np.array(SCORES, "<f4")}
    packed = {name: base64.b64encode(one.tobytes()).decode() for name, one in arrays.items()}
    return {**packed, "model_sha256": "a" * 64, "verdict": str(verdict), "reason": reason}


def inspection(verdict: Verdict, reason: Reason | None) -> Inspection:
    tiles = tuple(TileScore(n, 0, 192 * n, 0, score) for n, score in enumerate(SCORES))
    return Inspection(verdict, reason, "", max(SCORES), tiles, ())


@pytest.mark.parametrize(
    ("was", "now", "problem"),
    [
        ((Verdict.PASS, None), (Verdict.PASS, None), ""),
        ((Verdict.FAIL, None), (Verdict.FAIL, None), ""),
        ((Verdict.PASS, None), (Verdict.FAIL, None), "the verdict is FAIL, was PASS"),
        ((Verdict.FAIL, None), (Verdict.PASS, None), "the verdict is PASS, was FAIL"),
        (
            (Verdict.PASS, None),
            (Verdict.UNDECIDED, Reason.UNSURE),
            "the verdict is UNDECIDED (unsure), was PASS",
        ),
        (
            (Verdict.FAIL, None),
            (Verdict.UNDECIDED, Reason.UNSURE),
            "the verdict is UNDECIDED (unsure), was FAIL",
        ),
        (
            (Verdict.UNDECIDED, Reason.UNSURE),
            (Verdict.PASS, None),
            "the verdict is PASS, was UNDECIDED (unsure)",
        ),
        # What the line knew beside the picture.
        ((Verdict.UNDECIDED, Reason.OBSCURED), (Verdict.PASS, None), ""),
        # Of the picture alone, cut as it stands: no word on the model.
        ((Verdict.PASS, None), (Verdict.UNDECIDED, Reason.OUTLINE), ""),
    ],
)
def test_the_same_scores_with_another_verdict_differ(
    was: tuple[Verdict, Reason | None], now: tuple[Verdict, Reason | None], problem: str
) -> None:
    assert _difference(record(*was), inspection(*now), "a" * 64) == problem


def test_a_whole_plate_is_the_recorded_file_and_pixels(tmp_path: Path) -> None:
    pixels = np.arange(64 * 48, dtype=np.uint8).reshape(64, 48)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    (tmp_path / "1.png").write_bytes(data)
    image = {"role": "evidence", "path": "1.png", "sha256": hashlib.sha256(data).hexdigest()}
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    body = {"result_id": "s-00000001", "images": [image], "pixels_sha256": sha256}
    found = whole_plate(tmp_path, body)
    assert found is not None
    assert np.array_equal(found, pixels)
    assert whole_plate(tmp_path, {**body, "pixels_sha256": "0" * 64}) is None
    assert whole_plate(tmp_path, {**body, "images": [{**image, "sha256": "0" * 64}]}) is None
    assert whole_plate(tmp_path, {**body, "images": [{**image, "role": "preview"}]}) is None
    assert whole_plate(tmp_path, {**body, "images": [{**image, "path": "2.png"}]}) is None

    class Removed:
        images = tmp_path

        def is_removed(self, result_id: str, path: str) -> bool:
            return (result_id, path) == ("s-00000001", "1.png")

    reader: Any = Removed()
    assert whole_plate(tmp_path, body, reader) is None, "a tombstone, and the file still there"
