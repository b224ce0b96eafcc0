"""Rows of passed plates without what others say, too: nothing is lost, and older programs start."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_qms import acted, opened, result, verified

from station.log_reader import Filter, Reader
from station.packing import constants_of, pack, whole
from station.qms import DATABASE, ContradictionError, Store
from station.record import Verdict


def grid(places: list[tuple[int, int]]) -> str:
    return base64.b64encode(np.asarray(places, "<u2").reshape(-1, 2).tobytes()).decode()


PLACES = st.one_of(
    st.builds(
        lambda columns, rows, step, x0: [
            (x0 + i * step, j * step) for j in range(rows) for i in range(columns)
        ],
        st.integers(1, 25),
        st.integers(1, 20),
        st.sampled_from([96, 192, 224]),
        st.integers(0, 300),
    ),
    st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=40),
)


@settings(deadline=None)
@given(
    places=PLACES,
    scores=st.lists(st.floats(width=32), max_size=60),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "detail": st.text(max_size=5),
            "lost_frames": st.integers(0, 2),
            "is_audit_sample": st.booleans(),
            "truth_is_defective": st.sampled_from([None, True, False]),
            "lot": st.text(max_size=4),
            "triggers": st.sampled_from([None, 1, 2]),
            "flat_field_id": st.sampled_from([None, "f"]),
        },
    ),
)
def test_what_is_packed_is_whole_again(
    places: list[tuple[int, int]], scores: list[float], changes: dict[str, object]
) -> None:
    coded = base64.b64encode(np.asarray(scores, "<f4").tobytes()).decode()
    arrays = {"tile_grid": grid(places), "tile_scores": coded, "tiles": len(places)}
    fields = result(1, **arrays, **changes).as_json()
    constants = constants_of(fields)
    packed = pack(fields, 7, constants)
    assert packed["context"] == 7
    assert len(json.dumps(packed)) < len(json.dumps(fields))
    assert whole(json.loads(json.dumps(packed)), {7: constants}.__getitem__) == fields


def test_what_its_context_does_not_say_is_not_packed() -> None:
    fields = result(1).as_json()
    other = {**constants_of(fields), "model_id": "another"}
    assert pack(fields, 7, other) == fields
    told = acted(1).as_json()
    assert pack(told, 7, {**constants_of(fields), "boot_id": "another"}) == told


def test_only_passed_plates_are_packed_and_all_read_as_they_were(tmp_path: Path) -> None:
    places = [(192 * i, 192 * j) for j in range(4) for i in range(5)]
    bodies = [
        result(number, verdict, tile_grid=grid(places), recipe_version=1 + number // 10)
        for number, verdict in enumerate([*[Verdict.PASS] * 6, Verdict.FAIL] * 3, start=1)
    ]
    with Store(tmp_path) as store:
        for body in bodies:
            store.append([opened(body.sequence), body])
            store.append([acted(body.sequence)])
    with Store(tmp_path) as store:
        head = store.head()
        for body in bodies:
            store.append([body, acted(body.sequence)])
        assert store.head() == head, "sent again, nothing is written again"
        assert store.of_result(bodies[5].result_id)[1] == bodies[5].as_json()
    log = sqlite3.connect(tmp_path / DATABASE)
    rows = log.execute("SELECT verdict, body ->> '$.context' FROM row WHERE kind = 'result'")
    named = [(verdict, context is not None) for verdict, context in rows]
    contexts = log.execute("SELECT count(*) FROM row WHERE kind = 'context'").fetchone()[0]
    log.close()
    assert contexts == 2, "one for what came twice"
    assert ("FAIL", True) not in named
    assert named.count(("PASS", True)) >= 14
    with Reader(tmp_path) as reader:
        found = [
            {key: value for key, value in row.items() if key not in ("seq", "review")}
            for row in reader.results(Filter())
        ]
        assert found == [body.as_json() for body in bodies]
        of_one = reader.of_result(bodies[3].result_id)
    assert of_one[0]["model_sha256"] == "0" * 64
    assert verified(tmp_path) == []


def test_a_context_of_a_refused_group_is_forgotten(tmp_path: Path) -> None:
    """Another context takes the number that it would have had, as was read within the group."""
    again = result(2, Verdict.PASS, recipe_id="A")
    group = [opened(1), result(1, Verdict.PASS, recipe_id="A"), opened(2), again, again]
    others = [result(number, Verdict.PASS, recipe_id="B") for number in (3, 4)]
    with Store(tmp_path) as store:
        with pytest.raises(ContradictionError):
            store.append([*group, result(1, Verdict.FAIL)])
        store.append([opened(1), opened(2), *others])
        assert [store.of_result(body.result_id)[0] for body in others] == [
            body.as_json() for body in others
        ]
        head = store.head()
        store.append([others[1]])
        assert store.head() == head, "sent again, it says the same"


def test_a_grid_is_described_in_few_letters() -> None:
    places = [(40 + 192 * i, 192 * j) for j in range(20) for i in range(20)]
    fields = result(1, tile_grid=grid(places)).as_json()
    packed = pack(fields, 1, constants_of(fields))
    assert len(json.dumps(packed["tile_blocks"])) < 0.02 * len(fields["tile_grid"])


def test_a_context_that_was_taken_back_is_forgotten(tmp_path: Path) -> None:
    """Another one gets its number."""
    with Store(tmp_path) as store:
        first = [opened(1), result(1, recipe_id="A"), opened(2), result(2, recipe_id="A")]
        with pytest.raises(ContradictionError):
            # Sent again within its group, it is read back with its context.
            store.append([*first, first[-1], result(1, Verdict.FAIL)])
        store.append([opened(1)])
        store.append([opened(2)])
        later = [result(number, recipe_id="B") for number in (3, 4)]
        numbers = [store.append([body])[0] for body in later]
        assert numbers[1] - numbers[0] == 2, "a context was written between"
        assert [store.of_result(body.result_id)[0]["recipe_id"] for body in later] == ["B", "B"]
        assert store.append(later) == numbers
