"""What a person tries out of lamp and outputs, and what became of it; over a real lamp process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pty_recorder import PtyRecorder
from station_rig import wait_until
from test_lamp import Site

from station.hand_test import HandTest
from station.lamp import LampClient


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LampClient]:
    folder: Path = tmp_path_factory.mktemp("lamp")
    with PtyRecorder(folder / "tower") as tower:
        site = Site(folder, tower)
        process = site.start()
        with site.client() as client:
            yield client
        process.kill()
        process.communicate()


def problem_of(test: HandTest, client: LampClient) -> str:
    """What is said of the last one, once it is."""

    def is_said() -> bool:
        for answer in client.receive_ready():
            test.shown(answer)
        for event in client.take_events():
            if event["op"] in ("test", "output"):
                test.answered(event)
        assert test.status is not None
        return test.status["problem"] is not None

    wait_until(is_said, 10.0, "answer")
    assert test.status is not None
    return str(test.status["problem"])


def test_a_state_shown_by_hand_has_its_answer(client: LampClient) -> None:
    test = HandTest()
    test.begin(client, "light", "fail", time.monotonic_ns())
    assert problem_of(test, client) == ""


def test_an_answer_is_not_taken_for_that_of_another(client: LampClient) -> None:
    test = HandTest()
    test.begin(client, "light", "test", time.monotonic_ns())
    test.begin(client, "light", "fail", time.monotonic_ns())
    assert problem_of(test, client) == "", "the lamp test was ended by it"
    test.begin(client, "output", "attention", time.monotonic_ns())
    assert "no station that holds the lamp" in problem_of(test, client)
