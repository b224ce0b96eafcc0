"""Millimetres per pixel from plates whose true scale is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattices import Plate, View
from numpy.typing import NDArray

from drivers.camera.settings import SimulatedCameraSettings, SpecimenSettings
from drivers.camera.simulated import render_bank
from drivers.camera.specimen import GRADED_SHARE, Lighting, Specimen, render, render_belt
from station.config import PlateRecipe, load_configuration, load_recipe
from station.scale import Measured, Scale, ScaleRefused, measure_scale, scale_findings

Pixels = NDArray[np.uint8]
SIZE = {"width_mm": 66.0, "length_mm": 48.0}


def recipe(**changes: Any) -> PlateRecipe:
    return PlateRecipe(**{**SIZE, **changes})


def seen(plate: Plate, view: View, seed: int = 1) -> Pixels:
    return plate.seen(view, np.random.default_rng(seed))


def is_true(measured: Measured, true: float, tolerance: float) -> bool:
    """Within what is asked for, and not beyond what its own error allows."""
    away = abs(measured.value - true)
    return away <= tolerance and away <= 6 * measured.standard_error + tolerance / 3


def check(scale: Scale, view: View, share: float, angle_deg: float = 0.02) -> None:
    assert is_true(
        scale.crossweb_mm_per_px, view.crossweb_mm_per_px, share * view.crossweb_mm_per_px
    )
    assert is_true(scale.downweb_mm_per_px, view.downweb_mm_per_px, share * view.downweb_mm_per_px)
    assert abs(scale.squareness_deg.value - view.squareness_deg) <= angle_deg
    assert abs(scale.rotation_deg.value - view.rotation_deg) <= angle_deg


# --- the lattice ----------------------------------------------------------------------------------

VIEWS = st.builds(
    View,
    crossweb_mm_per_px=st.floats(0.09, 0.112),
    downweb_mm_per_px=st.floats(0.045, 0.18),
    rotation_deg=st.floats(-2, 2),
    squareness_deg=st.floats(-1, 1),
)
PLATES = st.builds(
    Plate,
    pitch_mm=st.floats(0.9, 2.0),
    is_staggered=st.booleans(),
    angle_deg=st.one_of(st.just(0.0), st.floats(-30, 30)),
    noise=st.floats(0, 5),
)


@given(PLATES, VIEWS, st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_any_lattice_under_any_view_is_a_ruler(plate: Plate, view: View, seed: int) -> None:
    declared = recipe(
        dot_pitch_mm=plate.pitch_mm,
        dot_layout="staggered" if plate.is_staggered else "square",
        dot_angle_deg=plate.angle_deg,
    )
    check(measure_scale(seen(plate, view, seed), declared, 0.1), view, share=3e-4)


def test_a_plate_cut_off_by_the_picture_is_a_ruler_too() -> None:
    view = View(0.1, 0.1, rotation_deg=1.0)
    picture = seen(Plate(), view)[150:450, 100:700]
    check(measure_scale(picture, recipe(dot_pitch_mm=1.2), 0.1), view, share=1e-4)


def test_a_stretched_encoder_shows_at_once() -> None:
    scale = measure_scale(
        seen(Plate(), View(downweb_mm_per_px=0.08)), recipe(dot_pitch_mm=1.2), 0.1
    )
    (finding,) = scale_findings(scale, 0.1)
    assert "stretched 1.2500 x; multiply EncoderDivider" in finding
    even = measure_scale(seen(Plate(), View()), recipe(dot_pitch_mm=1.2), 0.1)
    assert scale_findings(even, 0.1) == ()


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (View(0.102, 0.102), "crossweb: 0.10200 mm per pixel, 0.1 is configured"),
        (View(squareness_deg=0.4), r"+0.400 deg from square"),
    ],
)
def test_a_wrong_distance_or_a_turned_camera_shows(view: View, text: str) -> None:
    scale = measure_scale(seen(Plate(), view), recipe(dot_pitch_mm=1.2), 0.1)
    assert text in " ".join(scale_findings(scale, 0.1))


def test_a_defect_does_not_move_the_scale() -> None:
    picture = seen(Plate(), View())
    cv2.circle(picture, (300, 300), 40, 60, -1)
    cv2.line(picture, (100, 200), (700, 260), 230, 3)
    check(measure_scale(picture, recipe(dot_pitch_mm=1.2), 0.1), View(), share=1e-4)


# --- specimens of all three kinds -----------------------------------------------------------------


def specimen(dots: Any, skew_deg: float, seed: int = 3) -> Pixels:
    rng = np.random.default_rng(seed)
    plate = Specimen.random(SpecimenSettings(**SIZE, dots=dots), rng, is_defective=True)
    picture = render(plate, 0.1, 800, 1.0, skew_deg, rng).pixels
    belt = render_belt(80, 800, rng)
    return np.concatenate([belt, picture, belt])


@pytest.mark.parametrize("skew_deg", [0.0, 0.8, -1.5])
def test_a_specimen_with_regular_dots(skew_deg: float) -> None:
    scale = measure_scale(specimen("regular", skew_deg), recipe(dot_pitch_mm=1.2), 0.1)
    assert scale.method == "lattice"
    check(scale, View(rotation_deg=skew_deg), share=1e-4)


@pytest.mark.parametrize("skew_deg", [0.0, 0.8, -1.5])
def test_a_specimen_with_graded_dots_and_their_map(skew_deg: float) -> None:
    pitches = ((0.0, 1.2), (SIZE["length_mm"], GRADED_SHARE * 1.2))
    declared = recipe(dot_pitch_mm=1.2, dot_pitch_map=pitches)
    scale = measure_scale(specimen("graded", skew_deg), declared, 0.1)
    assert scale.method == "lattice with pitch map"
    check(scale, View(rotation_deg=skew_deg), share=1e-3)


@pytest.mark.parametrize("skew_deg", [0.0, 0.8, -1.5])
def test_a_specimen_without_dots_by_its_outline(skew_deg: float) -> None:
    scale = measure_scale(specimen("none", skew_deg), recipe(), 0.1)
    assert scale.method == "outline"
    # A specimen's outline is drawn up to a pixel large.
    check(scale, View(rotation_deg=skew_deg), share=4e-3)


@given(VIEWS, st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_any_outline_under_any_view_is_a_ruler(view: View, seed: int) -> None:
    scale = measure_scale(seen(Plate(pitch_mm=None), view, seed), recipe(), 0.1)
    check(scale, view, share=1.5e-3, angle_deg=0.06)


def test_the_demonstration_recipe_says_what_its_belt_carries() -> None:
    camera = load_configuration("shipped:simulated").value.camera
    assert isinstance(camera, SimulatedCameraSettings)
    plate = load_recipe("shipped:demo-lgp").value.plate
    picture = render_bank(camera.model_copy(update={"bank_plates": 1}))[0].pixels
    belt = render_belt(80, camera.width, np.random.default_rng(1))
    scale = measure_scale(np.concatenate([belt, picture, belt]), plate, camera.pixel_pitch_mm)
    assert scale.method == "lattice"
    assert scale_findings(scale, camera.pixel_pitch_mm) == ()
    assert abs(scale.aspect.value - 1) < 1e-4


# --- what is refused ------------------------------------------------------------------------------


def test_without_a_ruler_it_is_refused_by_name() -> None:
    with pytest.raises(ScaleRefused, match=r"plate\.dot_pitch_mm.*plate\.outline is whole"):
        measure_scale(seen(Plate(), View()), recipe(outline="whole"), 0.1)


def test_dots_that_are_not_there_are_refused() -> None:
    picture = seen(Plate(pitch_mm=None), View())
    with pytest.raises(ScaleRefused, match="no regular dots of the recipe's pitch"):
        measure_scale(picture, recipe(dot_pitch_mm=1.2), 0.1)


def test_an_outline_that_is_cut_off_is_refused() -> None:
    picture = seen(Plate(pitch_mm=None), View())
    with pytest.raises(ScaleRefused, match="cut off at its left and leading side; show one whole"):
        measure_scale(picture[150:, 200:], recipe(), 0.1)


def test_a_bare_belt_is_refused() -> None:
    belt = render_belt(300, 800, np.random.default_rng(1))
    with pytest.raises(ScaleRefused, match="no plate in the picture"):
        measure_scale(belt, recipe(dot_pitch_mm=1.2), 0.1)


def test_a_lattice_out_of_focus_is_refused_or_true() -> None:
    for sigma in (2.0, 4.0, 8.0, 16.0):
        blurred = cv2.GaussianBlur(seen(Plate(), View()), (0, 0), sigma)
        try:
            scale = measure_scale(blurred, recipe(dot_pitch_mm=1.2), 0.1)
        except ScaleRefused:
            continue
        assert abs(scale.downweb_mm_per_px.value / 0.1 - 1) < 1e-3


def test_a_map_of_one_pitch_is_the_same_as_none() -> None:
    picture, view = seen(Plate(), View(rotation_deg=0.5)), View(rotation_deg=0.5)
    flat = recipe(dot_pitch_mm=1.2, dot_pitch_map=((0.0, 1.2), (48.0, 1.2)))
    check(measure_scale(picture, flat, 0.1), view, share=1e-4)


def test_light_does_not_move_the_outline() -> None:
    lighting = Lighting(92.0, 170.0, 0.0, 0.0, 0.2, 2.0, 0.07)
    rng = np.random.default_rng(1)
    widths = []
    for gain in (0.7, 1.0, 1.2):
        light = Lighting(gain * lighting.base_level, gain * 170, 0.05, 0.05, 0.2, 2.0, 0.07)
        picture = render(Specimen(66.0, 48.0, None, light), 0.1, 800, 0.0, 0.5, rng).pixels
        belt = render_belt(80, 800, rng)
        scale = measure_scale(np.concatenate([belt, picture, belt]), recipe(), 0.1)
        widths.append(scale.crossweb_mm_per_px.value)
    assert max(widths) / min(widths) - 1 < 1e-3
