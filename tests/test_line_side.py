"""What the station's end of PLC and accept sends after the lamp process was away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_outputs import site_settings

from station.belt_register import Place
from station.ipc import Channel, Json, Listener
from station.lamp import LampClient, lamp_path
from station.line_side import LineSide, Word
from station.record import Provenance, ResultBody, Verdict

WORD = Word(ready=True, busy=False, error=False, attention=False)


class Ends:
    """The station's end, and the lamp process' end of its connection."""

    def __init__(self, folder: Path) -> None:
        self.side = LineSide(site_settings(folder))
        self.side.belt_began(64)
        listener = Listener(lamp_path(folder / "run"))
        self.client = LampClient(folder / "run")
        self.client.connect(5.0)
        self.lamp: Channel = listener.accept()
        listener.close()

    def result(self, sequence: int, is_late: bool = False) -> None:
        body = ResultBody.model_construct(  # type: ignore[call-arg]
            result_id=f"t-{sequence}",
            sequence=sequence,
            verdict=Verdict.PASS,
            provenance=Provenance.PRODUCTION,
        )
        self.side.result(body, lambda: is_late)

    def sent(self) -> list[Json]:
        self.side.flush(self.client, WORD, time.monotonic_ns(), is_tick=True)
        bodies = []
        while True:
            try:
                bodies.append(self.lamp.receive(timeout_s=0).body)
            except BlockingIOError:
                return bodies

    def sent_results(self) -> list[tuple[int, bool]]:
        return [(b["sequence"], b["is_late"]) for b in self.sent() if b["op"] == "result"]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.client.close()
    ends.lamp.close()


def test_a_result_that_waited_does_not_count_as_good(ends: Ends) -> None:
    """Not after its deadline, and not after a lease: the plate is far away by then."""
    ends.result(1)
    ends.result(2, is_late=True)
    assert ends.sent_results() == [(1, False), (2, True)]
    ends.result(3)
    time.sleep(1.25)
    assert ends.sent_results() == [(3, True)]
    ends.result(4)
    time.sleep(1.25)
    ends.result(5)
    ends.side.forget_lamp()
    assert ends.sent_results() == [(5, False)], "nobody was told of it, and nobody needs to be"


def test_results_come_in_the_order_of_the_plates(ends: Ends) -> None:
    """The log may have refused a row for a moment, and taken those after it."""
    for sequence in (1, 2, 3):
        ends.side.plate_began(f"t-{sequence}", sequence, None)
        ends.side.decided(sequence)
    ends.result(2)
    assert ends.sent_results() == []
    ends.result(1)
    assert [sequence for sequence, _ in ends.sent_results()] == [1, 2]
    ends.side.plate_began("t-4", 4, None)
    ends.result(3)
    assert ends.sent_results() == [(3, False)], "a plate below the camera holds up none before it"


def test_a_result_that_waited_for_an_earlier_one_does_not_count_as_good(ends: Ends) -> None:
    ends.side.plate_began("t-1", 1, None)
    ends.result(2)
    time.sleep(1.25)
    ends.result(1)
    assert ends.sent_results() == [(1, False), (2, True)]


def test_it_says_that_a_later_plate_has_its_verdict(ends: Ends) -> None:
    for sequence in (1, 2):
        ends.side.plate_began(f"t-{sequence}", sequence, None)
        ends.side.decided(sequence)
    ends.result(1)
    ends.result(2)
    sent = [body for body in ends.sent() if body["op"] == "result"]
    assert [body["is_overtaken"] for body in sent] == [True, False]


def test_what_waits_for_a_lamp_process_is_bounded(ends: Ends) -> None:
    for number in range(20_000):
        ends.side.belt_moved(Place(number, number))
        ends.side.plate_began(f"station-of-some-name-{number}", number, number)
        ends.result(number)
    assert len(ends.sent_results()) <= 256


def test_another_lamp_process_hears_of_no_earlier_belt(ends: Ends) -> None:
    ends.sent()
    ends.side.belt_moved(Place(64, 1))
    ends.side.plate_began("t-1", 1, 10)
    ends.side.forget_lamp()
    ends.side.belt_moved(Place(128, 2))
    (news,) = (body for body in ends.sent() if body["op"] == "belt")
    assert (news["is_new"], news["places"], news["plates"]) == (True, [[128, 2]], [])


def given_up(ends: Ends) -> dict[str, bool]:
    return ends.side.without_answer(time.monotonic_ns() + int(2.5e9))


def test_a_plate_whose_lamp_process_went_is_given_up_once_and_later_words_are_no_news(
    ends: Ends,
) -> None:
    ends.result(1)
    ends.sent()
    ends.result(2)
    assert given_up(ends) == {}, "its lamp process will say"
    assert ends.side.is_news("t-1")
    ends.result(3)
    ends.sent()
    ends.result(4)
    ends.side.forget_lamp()
    assert given_up(ends) == {}, "nobody listens yet"
    assert [number for number, _ in ends.sent_results()] == [4]
    assert ends.side.without_answer(time.monotonic_ns()) == {}, "it may still say"
    assert given_up(ends) == {"t-2": True, "t-3": True}
    assert given_up(ends) == {}
    assert not ends.side.is_news("t-3")
    assert ends.side.is_news("t-4")


def test_what_the_log_lacks_is_given_up_unless_the_lamp_process_still_says_it(ends: Ends) -> None:
    ends.side.inherit(["t-1", "t-2"])
    ends.sent()
    assert ends.side.is_news("t-1")
    assert given_up(ends) == {"t-2": True}


def test_what_was_never_sent_is_given_up_too(ends: Ends) -> None:
    ends.sent()
    for number in range(300):
        ends.result(number)
    assert given_up(ends) == {f"t-{number}": False for number in range(300 - 256)}
