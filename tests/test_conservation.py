"""Plates opened = results = lamp commands, seen from the log alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_qms import acted, change, opened, result, verified

from station.qms import Store
from station.record import Body

START = "start"


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ([opened(1), result(1), acted(1)], []),
        # A life dies with a plate on the belt; the next start writes its result, and answers it.
        ([opened(1), change(START), result(2), acted(2)], []),
        ([opened(1), result(1), change(START), acted(1)], []),
        ([opened(1), result(1), change(START)], []),
        (
            [opened(1), result(1), opened(2), change(START), acted(1), change("ack")],
            [],
        ),
    ],
)
def test_what_a_start_may_still_settle_is_not_lost(
    rows: list[Body], lost: list[str], tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        store.append(rows)
    assert verified(tmp_path) == lost


def test_what_two_starts_did_not_settle_is_lost(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([opened(1), opened(2), result(2), opened(3), result(3), acted(3)])
        store.append([change(START)])
        store.append([change("start").model_copy(update={"who": "another"})])
    assert verified(tmp_path) == [
        "row 1: s-00000001 was opened and has no result, two starts later",
        "row 3: s-00000002 has a result and no actuation, two starts later",
    ]
