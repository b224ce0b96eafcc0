"""The passed plates that a person should look at next: in doubt, fresh, of different kinds, never
the audit's; asked for on the page until somebody has judged them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_qms import opened, result
from test_reviews import review
from web_rig import WebRig, web_rig

from models.choosing import choose, doubt
from station.log_reader import Reader
from station.next_plates import ASKED, asked_change, asked_lines, next_plates
from station.qms import Store
from station.record import ResultBody, Verdict
from station.reviews import last_judged
from station.roles import Role

PASS, FAIL = Verdict.PASS, Verdict.FAIL
GRID = base64.b64encode(np.array([(0, 0), (192, 0)], "<u2").tobytes()).decode()


def plate(number: int, scores: list[float], day: int = 20, **more: Any) -> ResultBody:
    told = {
        "written_at": f"2026-03-{day:02}T06:00:{number:02}.000000Z",
        "score": max(scores),
        "threshold": 0.6,
        "tile_grid": GRID,
        "tile_scores": base64.b64encode(np.array(scores, "<f4").tobytes()).decode(),
        "left_px": 0,
        "width_px": 416,
        "length_px": 224,
    }
    verdict = more.pop("verdict", PASS)
    return result(number, verdict, **(told | more))


def log(folder: Path, *plates: ResultBody) -> Reader:
    with Store(folder) as store:
        for number, one in enumerate(plates, 1):
            store.append([opened(number), one])
    return Reader(folder)


def judge(reader: Reader, folder: Path, number: int) -> None:
    name = f"s-{number:08}"
    with Store(folder) as store:
        store.append([review(result_id=name, supersedes=last_judged(reader.of_result(name)))])


def places(reader: Reader, count: int, **asked: Any) -> list[int]:
    return [int(one.result_id[-8:]) for one in next_plates(reader, count, **asked)]


# --- the choice ----------------------------------------------------------------------------------


def test_doubt_is_one_at_the_threshold_and_falls_on_both_sides() -> None:
    found = doubt(np.array([0.001, 0.5, 0.9, 0.99, 0.9999]), 0.9)
    assert found[2] == pytest.approx(1.0)
    assert found[0] < found[1] < found[2] > found[3] > found[4]
    assert np.isfinite(doubt(np.array([0.0, 1.0]), np.array([1.0, 0.0]))).all()


@given(
    doubts=arrays(float, st.integers(1, 40), elements=st.floats(0, 1)),
    count=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_so_many_are_chosen_once_each_and_the_most_doubtful_first(
    doubts: Any, count: int, seed: int
) -> None:
    seen = np.random.default_rng(seed).normal(size=(len(doubts), 3))
    found = choose(doubts, seen, count).tolist()
    assert len(found) == len(set(found)) == min(count, len(doubts))
    assert doubts[found[0]] == doubts.max()


def test_twins_are_not_asked_for_twice() -> None:
    doubts = np.array([1.0, 0.99, 0.98, 0.97, 0.96])
    seen = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [5.0, 5.0]])
    assert choose(doubts, seen, 2).tolist() == [0, 4]


# --- of a log -----------------------------------------------------------------------------------


def test_the_nearer_the_threshold_the_sooner_and_what_failed_not_at_all(tmp_path: Path) -> None:
    plates = [
        plate(1, [0.1, 0.2]),
        plate(2, [0.5, 0.1]),
        plate(3, [0.1, 0.9], verdict=FAIL),
        plate(4, [0.4, 0.1]),
    ]
    with log(tmp_path, *plates) as reader:
        assert places(reader, 3) == [2, 4, 1]
        (first, *_) = next_plates(reader, 1)
        assert (first.tile_x_px, first.tile_y_px, first.picture) == (0, 0, "none")
        assert places(reader, 3, only_whole=True) == []


def test_an_old_plate_counts_less(tmp_path: Path) -> None:
    with log(tmp_path, plate(1, [0.5, 0.1], day=1), plate(2, [0.45, 0.1], day=29)) as reader:
        assert places(reader, 2) == [2, 1]
        assert places(reader, 2, since="2026-03-02T00:00:00.000000Z") == [2]


def test_samples_of_the_audit_and_judged_plates_are_left_alone(tmp_path: Path) -> None:
    plates = [plate(1, [0.5, 0.1], is_audit_sample=True), plate(2, [0.4, 0.1]), plate(3, [0.3, 0])]
    with log(tmp_path, *plates) as reader:
        judge(reader, tmp_path, 2)
        assert places(reader, 3) == [3]


def test_what_was_asked_for_waits_until_it_is_judged(tmp_path: Path) -> None:
    with log(tmp_path, plate(1, [0.5, 0.1]), plate(2, [0.4, 0.1])) as reader:
        with Store(tmp_path) as store:
            row = asked_change("s", "ada", next_plates(reader, 2))
            assert row.what == ASKED
            store.append([row])
        assert [line.result_id[-1] for line in asked_lines(reader, 9)] == ["1", "2"]
        judge(reader, tmp_path, 1)
        assert [line.result_id[-1] for line in asked_lines(reader, 9)] == ["2"]


# --- on the page ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("asked"), plates=2) as rig:
        yield rig


def test_the_page_asks_people_to_check_them(rig: WebRig) -> None:
    person = rig.client_of(Role.REVIEWER, "ada")
    assert person.get("/samples.json").json()["asked"] == []
    with Reader(rig.station.journal) as reader:
        passed = [row["result_id"] for row in reader.bodies("result") if row["verdict"] == PASS]
    detail = {"plates": " ".join(passed), "count": str(len(passed))}
    row = asked_change("s", "bob", []).model_copy(update={"detail": detail})
    with Store(rig.station.journal) as store:
        store.append([row])
    asked = [one["result_id"] for one in person.get("/samples.json").json()["asked"]]
    assert asked == passed != []
    assert f'href="/plates/{passed[0]}"' in person.get("/samples").text
