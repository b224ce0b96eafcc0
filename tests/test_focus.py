"""The focus score on specimens whose blur is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from drivers.camera.settings import SpecimenSettings
from drivers.camera.specimen import Specimen, render, render_belt
from station.focus import FocusReading, judge_focus, measure_focus

Pixels = NDArray[np.uint8]
WIDTH = 1600


@pytest.fixture(scope="module")
def plate() -> Pixels:
    rng = np.random.default_rng(1)
    specimen = Specimen.random(SpecimenSettings(width_mm=140, length_mm=40), rng, False)
    return render(specimen, 0.1, WIDTH, 1.0, 0.5, rng).pixels[60:380]


def seen(
    plate: Pixels,
    blur_px: float | NDArray[np.float64] = 0.0,
    light: float = 1.0,
    noise: float = 1.5,
) -> Pixels:
    """The plate through a lens whose blur may differ from left to right."""
    rng = np.random.default_rng(9)
    blurs = np.broadcast_to(blur_px, 8)
    parts = np.array_split(np.arange(WIDTH), 8)
    level = np.concatenate([_blurred(plate, b)[:, p] for b, p in zip(blurs, parts, strict=True)], 1)
    return np.clip(
        np.rint(level * light + noise * rng.standard_normal(plate.shape)), 0, 255
    ).astype(np.uint8)


def _blurred(plate: Pixels, blur_px: float) -> NDArray[np.float64]:
    if blur_px:
        return cv2.GaussianBlur(plate.astype(np.float64), (0, 0), blur_px)
    return plate.astype(np.float64)


def score(reading: FocusReading) -> float:
    assert reading.score is not None
    return reading.score


def test_the_score_falls_with_every_turn_away_from_focus(plate: Pixels) -> None:
    blurs = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    scores = [score(measure_focus(seen(plate, blur))) for blur in blurs]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] < 0.7 * scores[0]
    assert scores[-1] < 0.02 * scores[0]


@pytest.mark.parametrize("blur_px", [0.0, 1.0, 2.0])
def test_brightness_and_noise_do_not_move_it(plate: Pixels, blur_px: float) -> None:
    usual = score(measure_focus(seen(plate, blur_px)))
    for light, noise in ((0.5, 1.5), (0.8, 3.0), (1.2, 1.5), (1.0, 0.5)):
        other = score(measure_focus(seen(plate, blur_px, light, noise)))
        assert other == pytest.approx(usual, rel=0.12), (light, noise)


def test_edges_grow_as_wide_as_the_blur_makes_them(plate: Pixels) -> None:
    rises = [
        [zone.rise_px for zone in measure_focus(seen(plate, blur)).zones] for blur in (0.0, 1.0)
    ]
    assert all(sharp is not None and 1.0 < sharp < 2.5 for sharp in rises[0])
    for sharp, soft in zip(*rises, strict=True):
        assert sharp is not None
        assert soft is not None
        assert soft > 1.25 * sharp


def test_a_tilted_camera_is_soft_on_one_side(plate: Pixels) -> None:
    level = measure_focus(seen(plate, 0.3))
    tilted = measure_focus(seen(plate, np.linspace(0.0, 1.2, 8)))
    assert level.tilt is not None
    assert tilted.tilt is not None
    assert abs(level.tilt) < 0.1 < 0.25 < -tilted.tilt
    verdict = judge_focus(tilted, level)
    assert not verdict.is_ok
    assert any(text.startswith("tilt: the right side is softer") for text in verdict.problems)


def test_a_reading_is_held_against_the_reference_zone_by_zone(plate: Pixels) -> None:
    reference = measure_focus(seen(plate))
    assert judge_focus(measure_focus(seen(plate, light=0.7)), reference).is_ok
    verdict = judge_focus(measure_focus(seen(plate, 1.0)), reference)
    assert not verdict.is_ok
    assert verdict.worst_share is not None
    assert verdict.worst_share < 0.7
    assert "of the reference's sharpness; refocus" in verdict.problems[0]


def test_where_no_plate_is_seen_nothing_is_said(plate: Pixels) -> None:
    belt = render_belt(320, WIDTH, np.random.default_rng(2))
    reading = measure_focus(belt)
    assert (reading.score, reading.tilt) == (None, None)
    assert not judge_focus(reading, measure_focus(seen(plate))).is_ok
    assert not judge_focus(measure_focus(seen(plate)), reading).is_ok
    half = belt.copy()
    half[:, : WIDTH // 2] = seen(plate)[:, : WIDTH // 2]
    zones = measure_focus(half).zones
    assert zones[0].score is not None
    assert zones[-1].score is None


def test_belt_between_plates_does_not_count(plate: Pixels) -> None:
    alone = score(measure_focus(seen(plate)))
    belt = render_belt(200, WIDTH, np.random.default_rng(2))
    both = score(measure_focus(np.concatenate([belt, seen(plate), belt])))
    assert both == pytest.approx(alone, rel=0.05)
