"""Health: a healthy belt calls nobody, each fault is named after few plates, nothing flickers."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from numpy.typing import NDArray
from station_rig import LINE_RATE_HZ, Rig, vqi, wait_until

from drivers.camera import CameraInfo, Frame, PlateTruth
from drivers.camera.producer.build import build_producer
from drivers.camera.producer.source import belt_source
from drivers.camera.settings import SimulatedCameraSettings, SpecimenSettings
from drivers.camera.simulated import SimulatedCamera, Slots
from drivers.camera.specimen import Specimen, render
from station.config import Recipe
from station.crossweb import Profile, column_profile, deviations, streak_share
from station.health import SECTIONS, CameraHealth, Health, HealthRow, Seen, look_at, reference_key
from station.inspection import PlateWork
from station.ipc import Json
from station.qms import Store
from station.record import AttentionBody, DefectBody, Reason, ReferenceBody, ResultBody
from station.strip import Plate, PlateClosed, StripCutter, buffer_lines, measure
from station.tiling import Geometry
from station.view import plain_line

WIDTH_PX, PITCH_MM, FRAME_HEIGHT = 768, 0.1, 64
RECIPE = Recipe.model_validate(
    {
        "id": "small",
        "version": 1,
        "plate": {"width_mm": 60, "length_mm": 40},
        "model": {"id": "m"},
        "health": {"reference_plates": 10},
    }
)
GEOMETRY = Geometry.of(RECIPE, PITCH_MM, WIDTH_PX)
JUDGE: Any = None
"""No plate is judged here."""


# --- plates -------------------------------------------------------------------------------------


def belt(seed: int, wear: Json | None = None, bank: int = 16, **specimen: float) -> Iterator[Plate]:
    """Plates as the station cuts them from the simulated camera's frames, without end."""
    camera = SimulatedCamera(camera_settings(seed, wear or {}, bank, **specimen))
    pixels = np.zeros((buffer_lines(GEOMETRY), WIDTH_PX), np.uint8)
    cutter = StripCutter(GEOMETRY, FRAME_HEIGHT, lambda: pixels)
    into = np.empty(camera.info.max_frame_bytes, np.uint8)
    camera.start()
    while True:
        frame = camera.grab(into, 1.0)
        assert frame is not None
        closed = [event for event in cutter.feed(frame) if isinstance(event, PlateClosed)]
        for event in closed:
            assert event.reason is None, event.detail
            yield event.plate


def camera_settings(seed: int, wear: Json, bank: int, **specimen: float) -> SimulatedCameraSettings:
    size = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 20.0, "skew_deg": 0.8}
    return SimulatedCameraSettings.model_validate(
        {
            "type": "simulated",
            "seed": seed,
            "width": WIDTH_PX,
            "frame_height": FRAME_HEIGHT,
            "bank_plates": bank,
            "is_paced": False,
            "specimen": {**size, **specimen},
            "wear": wear,
        }
    )


def frame_of(ordinal: int) -> int:
    """The belt's frame in which a plate begins."""
    return Slots(camera_settings(0, {}, 1)).start(ordinal) // FRAME_HEIGHT


def look(plate: Plate, number: int, problem: Reason | None = None) -> Seen:
    """What the station sees of a plate whose true defects the network finds, all of them."""
    shape = measure(plate)
    body = ResultBody.model_construct(
        result_id=f"t-{number:08d}",
        defects=defects_of(plate.truth, plate),
        skew_deg=round(shape.skew_deg, 3),
        width_px=round(shape.width_px),
        length_px=plate.length_px,
    )
    work = PlateWork(plate, body.result_id, number, None, JUDGE, False, problem, sampled_px=100)
    return look_at(body, work, GEOMETRY)


def defects_of(truth: PlateTruth | None, plate: Plate) -> tuple[DefectBody, ...]:
    left = int(plate.left[plate.length_px // 2])
    return tuple(
        DefectBody(
            x_px=left + round((defect.x_mm - defect.width_mm / 2) / PITCH_MM) // 8 * 8,
            y_px=0,
            w_px=math.ceil(defect.width_mm / PITCH_MM / 8 + 1) * 8,
            h_px=8,
            x_mm=0.0,
            y_mm=0.0,
            score=1.0,
        )
        for defect in (truth.defects if truth else ())
    )


def health(recipe: Recipe = RECIPE, **known: object) -> Health:
    return Health(recipe, GEOMETRY, "t", "small SIM-1", **known)  # type: ignore[arg-type]


def watch(watched: Health, plates: Iterator[Plate], count: int) -> list[tuple[int, HealthRow]]:
    """Rows of `count` plates, each with its plate's number from 1."""
    return [
        (number, row)
        for number in range(1, count + 1)
        for row in watched.plate(look(next(plates), number))
    ]


def attentions(rows: list[tuple[int, HealthRow]]) -> list[tuple[int, AttentionBody]]:
    return [(number, row) for number, row in rows if isinstance(row, AttentionBody)]


def flat(number: int, shift_px: int = 0, level: float = 110.0, **changes: object) -> Seen:
    """An even plate without lattice or noise, `shift_px` off the middle."""
    left = 100 + shift_px
    profile = Profile(left, np.full(560, level), left + 280.0)
    return replace(Seen(f"t-{number:08d}", profile, unlit_share=0.0), **changes)  # type: ignore[arg-type]


# --- a healthy belt -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "skew_deg", "lateral_offset_mm"),
    [(1, 0.8, 5.0), (2, 0.0, 5.0), (3, 0.1, 1.0), (4, 1.8, 3.0), (5, 0.3, 0.0), (6, 0.0, 0.6)],
)
def test_a_healthy_belt_calls_nobody(seed: int, skew_deg: float, lateral_offset_mm: float) -> None:
    """Straight plates, whose lattice makes stripes ten times stronger than dirt, among them."""
    plates = belt(seed, bank=48, skew_deg=skew_deg, lateral_offset_mm=lateral_offset_mm)
    rows = watch(health(), plates, 120)
    assert attentions(rows) == []
    assert [number for number, _ in rows] == [10], "the reference, learned once"


@pytest.mark.parametrize("seed", range(6))
def test_no_product_is_taken_for_dirt(seed: int) -> None:
    """Square and staggered lattices of any pitch and rotation, plates that lie nearly straight."""
    rng = np.random.default_rng(seed)
    size = SpecimenSettings(width_mm=60, length_mm=40)
    lattice = Specimen.random(size, rng, is_defective=False, variety=1.0).lattice
    watched = health()
    for number in range(1, 61):
        specimen = replace(Specimen.random(size, rng, number % 2 == 0), lattice=lattice)
        shift_mm, skew_deg = rng.uniform(-5, 5), rng.uniform(-0.2, 0.2)
        plate = cut(render(specimen, PITCH_MM, WIDTH_PX, shift_mm, skew_deg, rng).pixels)
        rows = watched.plate(look(plate, number))
        assert not attentions([(number, row) for row in rows])


def cut(picture: NDArray[np.uint8]) -> Plate:
    """The plate in a picture that it fills from the first to the last scan line."""
    belt = np.full((2, GEOMETRY.min_gap_px + GEOMETRY.margin_px, WIDTH_PX), 12, np.uint8)
    strip = np.concatenate([belt[0], picture, belt[1]])
    pixels = np.zeros((buffer_lines(GEOMETRY), WIDTH_PX), np.uint8)
    cutter = StripCutter(GEOMETRY, len(strip), lambda: pixels, is_height_fixed=False)
    events = cutter.feed(Frame(strip, WIDTH_PX, frame_id=0, timestamp_ns=0))
    (closed,) = (event for event in events if isinstance(event, PlateClosed))
    assert closed.reason is None, closed.detail
    return closed.plate


def test_random_defects_are_no_dirt() -> None:
    """Six of ten plates fail, with up to three defects anywhere: thousands of plates, no dirt."""
    rng = np.random.default_rng(7)
    watched = health()
    for number in range(2000):
        shift = int(rng.integers(-50, 51))
        starts = rng.integers(100, 640, int(rng.integers(1, 4)) * int(rng.random() < 0.6))
        boxes = tuple((int(x), int(x) + int(rng.integers(2, 7)) * 8) for x in starts)
        assert not attentions(
            [(number, row) for row in watched.plate(flat(number, shift, 110, defects=boxes))]
        )


# --- dirt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dirt_mm", "contrast", "skew_deg", "text"),
    [
        ((41.2, 47.2), -0.03, 0.8, "clean crossweb 41-48 mm"),
        ((41.0, 47.0), -0.03, 0.0, "clean crossweb 41-47 mm"),
        ((30.0, 30.1), -0.12, 0.8, "clean crossweb 30.0-30.1 mm"),
        ((30.0, 30.3), 0.06, 0.1, "clean crossweb 30.0-30.3 mm"),
        ((20.0, 30.0), -0.4, 0.8, "clean crossweb 20-30 mm"),
    ],
)
def test_dirt_is_named_where_it_is_and_ends_when_it_is_cleaned(
    dirt_mm: tuple[float, float], contrast: float, skew_deg: float, text: str
) -> None:
    wear = {"dirt_mm": dirt_mm, "dirt_contrast": contrast, "from_frame": frame_of(15)}
    wear["until_frame"] = frame_of(31)
    found = attentions(watch(health(), belt(3, wear, skew_deg=skew_deg), 60))
    assert [(row.text, row.is_begin) for _, row in found] == [(text, True), (text, False)]
    (begun_at, begun), (ended_at, _) = found
    assert 20 <= begun_at <= 22, "six to eight plates with dirt"
    assert 34 <= ended_at <= 45
    assert begun.name == "dirt"
    assert begun.since_result_id == "t-00000015"
    assert begun.measured == pytest.approx(contrast, abs=0.012)
    assert (begun.limit, begun.unit) == (0.02, "relative")


def test_a_step_of_the_level_that_stays_in_place_is_named() -> None:
    """Half of the scan line darker: a smear's edge, or a sensor's half that lost its gain."""
    wear = {"dirt_mm": (38.4, 76.8), "dirt_contrast": -0.1, "from_frame": frame_of(15)}
    found = attentions(watch(health(), belt(3, wear), 28))
    steps = [(number, row) for number, row in found if row.name == "dirt"]
    assert len(steps) == 1
    assert steps[0][0] <= 15 + 8
    assert steps[0][1].start_mm is not None
    assert steps[0][1].start_mm <= 38.4 <= (steps[0][1].end_mm or 0) + 0.1


def test_fainter_dirt_than_the_recipe_says_is_none() -> None:
    wear = {"dirt_mm": (41.0, 47.0), "dirt_contrast": -0.012}
    assert not attentions(watch(health(), belt(3, wear), 40))


@pytest.mark.parametrize("width_px", [3, 40, 120])
@pytest.mark.parametrize("reach_px", [50, 10])
def test_a_streak_of_the_product_is_no_dirt(width_px: int, reach_px: int) -> None:
    """It moves with the plates: printed on it, or pressed into it by a damaged tool."""
    rng = np.random.default_rng(width_px)
    watched = health()
    for number in range(60):
        seen = flat(number, int(rng.integers(-reach_px, reach_px + 1)))
        assert seen.profile is not None
        seen.profile.levels[200 : 200 + width_px] *= 0.9
        assert not attentions([(number, row) for row in watched.plate(seen)])


@pytest.mark.parametrize("is_dirt", [True, False])
def test_defects_at_one_camera_column_are_dirt_and_at_one_place_of_the_plate_are_not(
    is_dirt: bool,
) -> None:
    rng = np.random.default_rng(4)
    watched, rows = health(), list[tuple[int, HealthRow]]()
    for number in range(1, 30):
        shift = int(rng.integers(-50, 51))
        start = 400 if is_dirt else 400 + round(shift / 8) * 8
        seen = flat(number, shift, defects=((start, start + 32),))
        rows += [(number, row) for row in watched.plate(seen)]
    found = attentions(rows)
    if not is_dirt:
        assert not found
        return
    assert [(row.text, row.is_begin) for _, row in found] == [("clean crossweb 40-44 mm", True)]
    assert found[0][0] <= 8
    assert found[0][1].unit == "share of plates"


@pytest.mark.parametrize("wide", [(400, 624), (400, 700)])
def test_boxes_of_whole_tiles_say_nothing_of_the_place(wide: tuple[int, int]) -> None:
    """The grid of tiles stays in place while plates move: so would any defect's box."""
    plate = next(belt(1))
    shape = measure(plate)
    box = DefectBody(
        x_px=wide[0], y_px=0, w_px=wide[1] - wide[0], h_px=224, x_mm=0, y_mm=0, score=1
    )
    body = ResultBody.model_construct(
        result_id="t-1",
        defects=(box,),
        skew_deg=shape.skew_deg,
        width_px=round(shape.width_px),
        length_px=plate.length_px,
    )
    assert look_at(body, PlateWork(plate, "t-1", 1, None, JUDGE, False), GEOMETRY).defects == ()


def test_plates_that_all_lie_alike_tell_nothing_of_dirt() -> None:
    wear = {"dirt_mm": (41.0, 47.0), "dirt_contrast": -0.05}
    assert not attentions(watch(health(), belt(3, wear, lateral_offset_mm=0.0), 30))


def test_dirt_that_was_not_cleaned_is_named_again_after_relearning() -> None:
    wear = {"dirt_mm": (41.0, 47.0), "dirt_contrast": -0.05}
    watched, plates = health(), belt(3, wear)
    assert len(attentions(watch(watched, plates, 12))) == 1
    assert [row.is_begin for row in watched.relearn() if isinstance(row, AttentionBody)] == [False]
    assert watched.attentions == []
    assert [number for number, _ in attentions(watch(watched, plates, 12))] in ([6], [7], [8])


def test_two_places_are_two_attentions_and_a_growing_one_is_named_anew() -> None:
    rng = np.random.default_rng(1)
    watched = health()

    def texts(count: int, *dirty: slice) -> list[str]:
        for number in range(count):
            left = 100 + int(rng.integers(-50, 51))
            levels = np.full(768, 110.0)
            for place in dirty:
                levels[place] *= 0.95
            profile = Profile(left, levels[left : left + 560].copy(), left + 280.0)
            watched.plate(Seen(f"t-{number:08d}", profile))
        return [row.text for row in watched.attentions]

    assert texts(10, slice(300, 320)) == ["clean crossweb 30-32 mm"]
    both = texts(10, slice(300, 320), slice(500, 530))
    assert both == ["clean crossweb 30-32 mm", "clean crossweb 50-53 mm"]
    grown = texts(10, slice(250, 330), slice(500, 530))
    assert grown == ["clean crossweb 50-53 mm", "clean crossweb 25-33 mm"]
    assert texts(10) == []


# --- light and exposure -------------------------------------------------------------------------


def test_light_that_ages_slowly_is_found_and_a_new_one_can_be_learned() -> None:
    """0.1 % a plate under 2 % from plate to plate: found soon after 10 %, not before."""
    rng = np.random.default_rng(2)
    watched, found = health(), list[tuple[int, AttentionBody]]()
    for number in range(1, 161):
        level = 110 * (1 - 0.001 * max(0, number - 20)) * rng.normal(1, 0.02)
        rows = watched.plate(flat(number, level=level))
        found += attentions([(number, row) for row in rows])
    assert [(row.name, row.is_begin) for _, row in found] == [("light", True)]
    assert 115 <= found[0][0] <= 150
    assert found[0][1].measured == pytest.approx(-0.115, abs=0.025)
    assert "below its reference" in found[0][1].text
    assert [row.is_begin for row in watched.relearn() if isinstance(row, AttentionBody)] == [False]
    again = [row for number in range(30) for row in watched.plate(flat(number, level=97.0))]
    assert [row.kind for row in again] == ["reference"]


def test_a_dead_part_of_the_light_is_found_where_it_is() -> None:
    wear = {"dirt_mm": (8.0, 38.0), "dirt_contrast": -0.2, "from_frame": frame_of(15)}
    found = attentions(watch(health(), belt(5, wear), 45))
    lights = [(number, row) for number, row in found if row.name == "light"]
    assert len(lights) == 1
    assert lights[0][0] <= 15 + 16
    assert lights[0][1].end_mm is not None
    assert lights[0][1].end_mm <= 38.5
    assert lights[0][1].measured == pytest.approx(-0.2, abs=0.04)


def test_a_restart_forgets_neither_the_reference_nor_what_was_on() -> None:
    before = health()
    rows = [row for number in range(10) for row in before.plate(flat(number))]
    assert [row.kind for row in rows] == ["reference"]
    reference = ReferenceBody.model_validate_json(rows[0].model_dump_json())
    after = health(reference=reference)
    begun = [row for number in range(20) for row in after.plate(flat(number, level=88.0))]
    assert [(row.kind, getattr(row, "name", "")) for row in begun] == [("attention", "light")]
    restored = health(reference=reference, attentions=begun)
    assert [row.text for row in restored.attentions] == [begun[0].text]  # type: ignore[union-attr]
    rows = [row for number in range(19) for row in restored.plate(flat(number))]
    assert rows == [], "a few plates are no reason to say that it is over"
    ended = restored.plate(flat(20))
    assert [(row.name, row.is_begin) for row in ended if isinstance(row, AttentionBody)] == [
        ("light", False)
    ]


def test_dirt_from_before_a_restart_ends_only_when_plates_show_that_it_is_gone() -> None:
    wear = {"dirt_mm": (41.0, 47.0), "dirt_contrast": -0.05}
    begun = [row for _, row in attentions(watch(health(), belt(3, wear), 12))]
    dirty, clean = health(attentions=begun), health(attentions=begun)
    assert not attentions(watch(dirty, belt(4, wear), 20))
    ended = attentions(watch(clean, belt(4), 20))
    assert [(row.text, row.is_begin) for _, row in ended] == [("clean crossweb 41-47 mm", False)]
    assert clean.attentions == []


def test_another_camera_recipe_or_exposure_has_its_own_reference() -> None:
    info = CameraInfo("genicam", "v", "m", "1", 768, 64, "Mono8", features={"ExposureTime": "250"})
    keys = {
        reference_key("a", info),
        reference_key("b", info),
        reference_key("a", info, "S1-20261126T060000Z"),
        reference_key("a", replace(info, serial="2")),
        reference_key("a", replace(info, features={"ExposureTime": "200"})),
    }
    assert len(keys) == 5
    divided = replace(info, features={"ExposureTime": "250", "EncoderDivider": "3"})
    assert reference_key("a", divided) in keys, "what changes no level forgets nothing"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"level": 40.0}, "plates are dark: level 40, 48 wanted"), ({"unlit_share": 0.05}, "5.0% of")],
)
def test_a_stuck_exposure_is_found_after_three_plates(changes: Json, words: str) -> None:
    watched = health()
    assert not watched.plate(flat(1, **changes))
    assert not watched.plate(flat(2, **changes))
    found = watched.plate(flat(3, **changes))
    assert [(row.name, row.is_begin) for row in found if isinstance(row, AttentionBody)] == [
        ("exposure", True)
    ]
    assert words in watched.attentions[0].text
    assert not [row for number in range(4, 15) for row in watched.plate(flat(number, **changes))]
    assert not watched.plate(flat(15))
    ended = [row for number in range(16, 19) for row in watched.plate(flat(number))]
    assert len(ended) == 1


# --- the belt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "width", "text"),
    [
        (0.02, 0.0, "belt slips or encoder is off: plates 2.0% longer"),
        (-0.02, 0.004, "belt slips or encoder is off: plates 2.0% shorter"),
        (0.03, 0.028, "scale: plates 3.0% longer and 2.8% wider"),
        (0.03, 0.034, "scale: plates 3.0% longer and 3.4% wider"),
        (0.001, -0.04, "scale crossweb: plates 4.0% narrower"),
    ],
)
def test_a_wrong_length_and_a_wrong_width_are_told_apart(
    length: float, width: float, text: str
) -> None:
    watched = health()
    numbers = iter(range(100))

    def take(length: float, width: float) -> list[HealthRow]:
        seen = Seen(f"t-{next(numbers)}", length_change=length, width_change=width)
        return watched.plate(seen)

    assert not [row for _ in range(10) for row in take(0.001, 0.0)]
    begun = [row for _ in range(8) for row in take(length, width)]
    assert len(begun) == 1
    assert watched.attentions[0].text.startswith(text)
    assert len([row for _ in range(20) for row in take(0.001, 0.0)]) == 1
    assert watched.attentions == []


def test_a_belt_that_slips_now_and_then_is_found_and_one_broken_plate_is_not() -> None:
    watched = health()

    def take(number: int, length: float) -> list[HealthRow]:
        return watched.plate(Seen(f"t-{number}", length_change=length, width_change=0.0))

    rows = [take(n, 0.06 if n % 11 == 5 else 0.0) for n in range(60)]
    assert not any(rows)
    rows = [take(n, 0.015 if n % 3 == 0 else 0.0) for n in range(60, 120)]
    assert sum(map(bool, rows)) == 1
    assert next(n for n, row in enumerate(rows) if row) <= 9


def test_a_slipping_belt_is_seen_in_the_picture() -> None:
    wear = {"stretch": 1.025, "from_frame": frame_of(15), "until_frame": frame_of(30)}
    found = attentions(watch(health(), belt(2, wear), 45))
    assert [(row.name, row.is_begin) for _, row in found] == [("length", True), ("length", False)]
    assert 17 <= found[0][0] <= 18
    assert "belt slips" in found[0][1].text
    assert found[0][1].measured == pytest.approx(0.027, abs=0.006)


@pytest.mark.parametrize("problem", [Reason.INCOMPLETE, Reason.STUCK, Reason.NOT_SEPARATED])
def test_a_plate_that_was_not_seen_whole_says_nothing(problem: Reason) -> None:
    plate = next(belt(1))
    assert look(plate, 1, problem) == Seen("t-00000001")
    assert look(plate, 1, Reason.SHORT).profile is not None


# --- the camera ---------------------------------------------------------------------------------


def test_a_hot_camera_calls_a_person_once() -> None:
    watched = health()

    def at(temperature_c: float | None, readings: int) -> list[HealthRow]:
        rows = (watched.camera(CameraHealth(temperature_c)) for _ in range(readings))
        return [row for some_rows in rows for row in some_rows]

    assert not at(None, 20)
    assert not at(math.nan, 20)
    assert not at(64.9, 20)
    assert not at(66.0, 7)
    begun = at(66.0, 1)
    assert "camera at 66.0 C, at most 65 C wanted" in watched.attentions[0].text
    assert not at(64.0, 50), "within two degrees of the limit it stays"
    assert len(begun) == len(at(62.0, 8)) == 1
    assert "at least 0 C" in str(at(-5.0, 8)[0])
    assert len(at(None, 8)) == 1, "a camera that says nothing any more calls nobody"


# --- nothing flickers, nothing breaks -----------------------------------------------------------


VALUES = st.floats(-0.03, 0.03)


@given(st.lists(st.tuples(VALUES, VALUES, st.floats(30, 130), st.booleans()), max_size=80))
@settings(max_examples=60, deadline=None)
def test_beginnings_and_ends_take_turns(plates: list[tuple[float, float, float, bool]]) -> None:
    """Whatever plates say: each end has its beginning, and what is on is what has not ended."""
    watched, on = health(), dict[str, AttentionBody]()
    for number, (length, width, level, is_dirty) in enumerate(plates):
        seen = flat(number, shift_px=number * 37 % 90 - 45, level=level)
        boxes = ((300, 340),) if is_dirty else ()
        seen = replace(seen, defects=boxes, length_change=length, width_change=width)
        for row in watched.plate(seen):
            if isinstance(row, AttentionBody):
                key = f"{row.name} {row.start_mm if row.name == 'dirt' else ''}"
                assert (key in on) != row.is_begin
                on.pop(key, None)
                if row.is_begin:
                    on[key] = row
    assert {row.text for row in on.values()} == {row.text for row in watched.attentions}


@given(st.floats(0.008, 0.012), st.lists(st.floats(-0.0015, 0.0015), min_size=200, max_size=200))
@settings(max_examples=30, deadline=None)
def test_a_value_at_its_limit_does_not_flicker(at: float, noise: list[float]) -> None:
    watched = health()
    rows = [
        row
        for number, change in enumerate(noise)
        for row in watched.plate(Seen(f"t-{number}", length_change=at + change, width_change=0.0))
    ]
    assert len(rows) <= 1


@given(
    some.arrays(np.float64, st.integers(128, 900), elements=st.floats(0, 255)),
    st.sampled_from([0.02, 0.1, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_profile_has_finite_deviations(levels: NDArray[np.float64], pitch_mm: float) -> None:
    found = deviations(levels, pitch_mm)
    assert found.shape == levels.shape
    assert np.isfinite(found).all()


def test_the_lattice_goes_and_the_streak_stays() -> None:
    """A straight plate's dots make 10 % of a column's mean; a streak of 3 % is read as 3 %."""
    profile = column_profile(next(belt(9, skew_deg=0.0)))
    assert profile is not None
    levels = profile.levels.copy()
    assert levels.std() / levels.mean() > 0.08
    assert np.abs(deviations(levels, PITCH_MM)).max() < 0.02
    levels[200:260] *= 0.97
    assert deviations(levels, PITCH_MM)[205:255].mean() == pytest.approx(-0.03, abs=0.006)


@pytest.mark.parametrize("skew_deg", [0.0, 0.8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_product_hides_itself_and_dirt_over_the_whole_length_does(
    seed: int, skew_deg: float
) -> None:
    for plate, _ in zip(belt(seed, skew_deg=skew_deg, contrast_scale=4.0), range(12), strict=False):
        assert streak_share(plate, PITCH_MM) < 0.12
        assert plate.pixels is not None
        profile = column_profile(plate)
        assert profile is not None
        side = profile.left_px
        for columns in (slice(380, 440), slice(300, 510), slice(side, side + 120)):
            part = plate.pixels[:, columns]
            clean = part.copy()
            for light in (0.6, 1.4):
                part[:] = np.minimum(clean * light, 255)
                assert streak_share(plate, PITCH_MM) > 0.27
            part[:] = clean
        plate.pixels[200:300, 380:440] = 10  # strong, but it ends somewhere: a defect
        assert streak_share(plate, PITCH_MM) < 0.12


@pytest.mark.parametrize("falls_to", [0.5, 0.8])
def test_light_that_falls_towards_the_sides_hides_nothing(falls_to: float) -> None:
    for plate, _ in zip(belt(4), range(6), strict=False):
        assert plate.pixels is not None
        place = np.linspace(-1, 1, plate.pixels.shape[1])
        plate.pixels[:] = plate.pixels * (1 - (1 - falls_to) * place**2)
        assert streak_share(plate, PITCH_MM) < 0.12


def test_a_plate_below_strong_dirt_is_never_good(tmp_path: Path) -> None:
    """The network learned defects, which end somewhere; what lies below dirt nobody sees."""
    wear = {"dirt_mm": [30.0, 36.0], "dirt_contrast": -0.6}
    rig = Rig(tmp_path, specimen={"defective_share": 0.0}, wear=wear)
    result = rig.run("--plates", "6")
    assert result.status == 0, result.stderr
    verdicts = {(row["verdict"], row["reason"]) for row in result.records}
    assert verdicts <= {("UNDECIDED", "obscured"), ("FAIL", None)}, verdicts


def test_a_plate_that_is_too_narrow_has_no_profile() -> None:
    plate = next(belt(1))
    assert streak_share(plate, PITCH_MM) < 0.12
    plate.region_right[: plate.region_lines] = plate.region_left[: plate.region_lines] + 100
    assert column_profile(plate) is None
    assert streak_share(plate, PITCH_MM) == 0.0
    plate.region_right[: plate.region_lines] = plate.region_left[: plate.region_lines] = -1
    assert column_profile(plate) is None


# --- the log ------------------------------------------------------------------------------------


def attention(name: str, is_begin: bool, start_mm: float | None = None) -> AttentionBody:
    return AttentionBody(
        station_id="t",
        result_id="t-1",
        since_result_id="t-1",
        name=name,
        is_begin=is_begin,
        text=f"{name} {start_mm}",
        measured=0.1,
        limit=0.05,
        unit="relative",
        start_mm=start_mm,
        end_mm=start_mm,
    )


def test_the_log_knows_what_has_not_ended_and_the_newest_reference_of_each_key(
    tmp_path: Path,
) -> None:
    def reference(key: str, level: float) -> ReferenceBody:
        levels = (level, *[None] * (SECTIONS - 1))
        return ReferenceBody(station_id="t", result_id="t-1", key=key, plates=5, levels=levels)

    with Store(tmp_path) as store:
        assert store.open_attentions() == store.references() == []
        store.append([attention("dirt", True, 1.0), attention("dirt", True, 5.0)])
        store.append([attention("light", True), attention("dirt", False, 1.0)])
        store.append([reference("a", 1.0), reference("b", 2.0), reference("a", 3.0)])
        assert [body["text"] for body in store.open_attentions()] == ["dirt 5.0", "light None"]
        found = {body["key"]: body["levels"][0] for body in store.references()}
        assert found == {"a": 3.0, "b": 2.0}


def test_attentions_are_lines_for_people() -> None:
    row = attention("dirt", True, 1.0).as_json()
    assert plain_line({"attention": row, "attentions": []}) == "ATTENTION: dirt 1.0"
    ended = {**row, "is_begin": False}
    assert plain_line({"attention": ended, "attentions": []}) == "ATTENTION ended: dirt 1.0"
    assert plain_line({"attentions": ["x", "y"]}) == "ATTENTION: x\nATTENTION: y"
    assert plain_line({"attentions": []}) is None


# --- the whole station --------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, specimen={"lateral_offset_mm": 5.0, "gap_mm": 60.0})


def test_a_dirty_lens_calls_a_person_and_hides_no_defect(rig: Rig) -> None:
    rig.wear = {"dirt_mm": [31.0, 31.3], "dirt_contrast": -0.3}
    rig.threshold = 0.5
    result = rig.run("--plates", "14")
    assert result.status == 0, result.stderr
    assert result.summary["attentions"] == ["clean crossweb 31.0-31.3 mm"]
    begun = rig.rows("attention")
    assert [(row["text"], row["is_begin"]) for row in begun] == [
        ("clean crossweb 31.0-31.3 mm", True)
    ]
    assert begun[0]["result_id"] <= "test-1-00000008"
    verdicts = {row["verdict"] for row in rig.rows("result")}
    assert verdicts == {"FAIL"}, "named as dirt, still not good"
    log = ("--journal", str(rig.journal))
    assert vqi("log", "verify", *log).returncode == 0
    listed = vqi("log", "attentions", *log, "--json").stdout.splitlines()
    assert [json.loads(line) for line in listed] == begun
    assert "ATTENTION  clean crossweb 31.0-31.3 mm" in vqi("log", "attentions", *log).stdout


def test_attention_shows_between_plates_outlives_a_restart_and_ends_when_cleaned(rig: Rig) -> None:
    """Dirt so weak that no tile fails: plates pass, and the light asks for a person in between."""
    rig.wear = {"dirt_mm": [31.0, 37.0], "dirt_contrast": -0.04}
    rig.specimen["defective_share"] = 0.0
    text = "clean crossweb 31-37 mm"
    with rig.running():
        wait_until(lambda: rig.status()["attentions"] == [text], 30.0, "dirt")
        wait_until(lambda: rig.status()["light"] == "attention", 20.0, "ATTENTION")
        assert rig.status()["state"] == "OPERATIONAL"
        passed = rig.status()["pass"]
        wait_until(lambda: rig.status()["pass"] > passed, 20.0, "a plate that passes")
    rig.wear = {}
    with rig.running():
        assert rig.status()["attentions"] == [text]
        wait_until(lambda: rig.status()["attentions"] == [], 30.0, "clean")
    assert [row["is_begin"] for row in rig.rows("attention")] == [True, False]
    commands = {row["command"] for row in rig.rows("actuation")}
    assert "pass_not_production" in commands


def test_belt_light_and_camera_are_watched_on_the_real_path(rig: Rig) -> None:
    rig.wear = {"stretch": 1.03, "light_level": 0.42, "temperature_c": 70.0}
    result = rig.run("--plates", "10")
    assert result.status == 0, result.stderr
    rows = rig.rows("attention")
    assert {row["name"] for row in rows if row["is_begin"]} == {"length", "exposure", "temperature"}
    assert not any(not row["is_begin"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["temperature"]["measured"] == 70.0
    assert by_name["length"]["measured"] == pytest.approx(0.03, abs=0.008)
    assert by_name["exposure"]["measured"] < 48


@pytest.mark.long
def test_the_light_can_be_learned_anew(rig: Rig) -> None:
    rig.recipe_lines = "[health]\nreference_plates = 4\nlight_plates = 4\n"
    dim_from = int(8 * 100 / 0.1 / 64)
    rig.wear = {"light_level": 0.8, "from_frame": dim_from}
    rig.camera["line_rate_hz"] = LINE_RATE_HZ
    config = str(rig.folder / "station.toml")
    with rig.running():
        wait_until(lambda: "below" in str(rig.status()["attentions"]), 40.0, "the dim light")
        assert vqi("control", "relearn", "--config", config).returncode == 0
        assert rig.status()["attentions"] == []
        wait_until(lambda: len(rig.rows("reference")) == 3, 20.0, "a new reference")
    first, forgotten, anew = (row["levels"] for row in rig.rows("reference"))
    assert forgotten == [], "a start before the new one would know none"
    assert anew[SECTIONS // 2] / first[SECTIONS // 2] == pytest.approx(0.8, abs=0.03)
    assert [row["what"] for row in rig.rows("change")] == ["start", "relearn", "stop"]


DIRT = {"SimDirtPosition": 340, "SimDirtWidth": 40, "SimDirtContrast": 6.0}
DEAD_PIXEL = {"SimDeadPixel": 303}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc libc6-dev")
@pytest.mark.parametrize(
    ("features", "texts"),
    [
        ({**DIRT, "SimBeltSpeed": 390.0}, {"clean crossweb 32-36 mm", "belt slips"}),
        pytest.param(
            {**DEAD_PIXEL, "SimVignetting": 20.0},
            {"clean crossweb 30.3-30.4 mm"},
            marks=pytest.mark.long,
        ),
        pytest.param({"SimLightLevel": 40.0}, {"plates are dark"}, marks=pytest.mark.long),
    ],
)
def test_faults_of_a_camera_behind_gentl_are_named(
    features: Json, texts: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line-scan simulator in C has faults of its own, made by other means than ours."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # its locks, apart from other tests'
    source = belt_source(camera_settings(3, {}, 6, gap_mm=60.0), plates=60)
    try:
        shutil.copyfile(f"/proc/self/fd/{source}", tmp_path / "belt")
    finally:
        os.close(source)
    camera: Json = {
        "type": "genicam",
        "producer": str(build_producer(tmp_path / "producer")),
        "serial": "VQI-LS-1",
        "features": {
            "SimSource": str(tmp_path / "belt"),
            "Width": WIDTH_PX,
            "Height": FRAME_HEIGHT,
            "AcquisitionLineRate": LINE_RATE_HZ,
            "SimBeltSpeed": LINE_RATE_HZ * PITCH_MM,
            **features,
        },
    }
    result = Rig(tmp_path, camera=camera).run("--plates", "9")
    assert result.status == 0, result.stderr
    found = result.summary["attentions"]
    assert len(found) == len(texts), found
    assert all(any(line.startswith(text) for line in found) for text in texts), found
