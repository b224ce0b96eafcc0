"""Rows on their way to a real journal process that dies, hangs or has no room."""

from __future__ import annotations

import contextlib
import selectors
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from station_rig import Rig, start_vqi
from test_journal import plate_memory
from test_qms import acted, opened, result

from station.ipc import Json
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.outbox import Outbox, OutboxError
from station.qms import DATABASE
from station.record import result_id


class Desk:
    """A station's main loop with nothing but an outbox."""

    def __init__(self, rig: Rig) -> None:
        self.selector = selectors.DefaultSelector()
        self.ticks: list[Json] = []
        self.problems: list[str] = []
        self.outbox = Outbox(rig.runtime, self.selector, self.ticks.append, self.problems.append)

    def turn(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (self.outbox.is_empty and seconds > 1):
            for key, _ in self.selector.select(0.02):
                key.data()
            self.outbox.keep_connected()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.write()
    return rig


@pytest.fixture
def desk(rig: Rig) -> Iterator[Desk]:
    desk = Desk(rig)
    yield desk
    desk.outbox.close()
    desk.selector.close()


def start(rig: Rig) -> subprocess.Popen[bytes]:
    return start_vqi("serve", "journal", "--config", str(rig.folder / "station.toml"))


def test_rows_survive_kills_in_order_and_once(rig: Rig, desk: Desk) -> None:
    done: list[str] = []
    process = start(rig)
    desk.outbox.open(15.0)
    for number in range(1, 61):
        for row in (opened(number), result(number), acted(number)):
            desk.outbox.submit([row], done=lambda _, row=row: done.append(row.kind))
        if number % 20 == 10:
            desk.turn(0.05)
            process.kill()
            process.wait()
            process = start(rig)
        desk.turn(0.01)
    desk.turn(20.0)
    assert desk.outbox.is_empty
    assert len(done) == 180
    process.terminate()
    assert process.wait(20.0) == 0
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
        for number in range(1, 61):
            kinds = [row["kind"] for row in reader.of_result(result_id("s", number))]
            assert kinds == ["result", "opened", "actuation"]
        sequences = [row["sequence"] for row in reader.results(Filter())]
    assert sequences == list(range(1, 61))
    assert any("gone" in problem for problem in desk.problems)


def test_a_journal_without_room_is_asked_again_in_order(rig: Rig, desk: Desk) -> None:
    config = rig.folder / "station.toml"
    roomy = config.read_text()
    config.write_text(roomy.replace("min_free_mb = 0", "min_free_mb = 100000000"))
    process = start(rig)
    desk.outbox.open(15.0)
    for number in range(1, 6):
        desk.outbox.submit([opened(number)])
        desk.outbox.submit([result(number)])
    desk.turn(1.0)
    assert not desk.outbox.is_empty
    assert any("free some" in problem for problem in desk.problems)
    config.write_text(roomy)
    process.terminate()
    process.wait(20.0)
    process = start(rig)
    try:
        desk.turn(20.0)
        assert desk.outbox.is_empty
        with Reader(rig.journal) as reader:
            kinds = [row.kind for row in reader.rows() if row.kind in ("opened", "result")]
        assert kinds == ["opened", "result"] * 5
    finally:
        process.terminate()
        process.wait(20.0)


def test_rows_keep_their_order_while_another_tool_holds_the_write_lock(
    rig: Rig, desk: Desk
) -> None:
    descriptor, _, wanted = plate_memory()
    process = start(rig)
    try:
        desk.outbox.open(15.0)
        with contextlib.closing(sqlite3.connect(rig.journal / DATABASE)) as other:
            other.execute("BEGIN IMMEDIATE")
            desk.outbox.submit([opened(1)])
            desk.turn(0.3)
            # They lie in the socket when the row before them is refused.
            desk.outbox.submit([result(1)], wanted, descriptor)
            desk.outbox.submit([acted(1)])
            while not desk.problems:
                desk.turn(0.01)
            other.rollback()
        # The journal would take these before it is asked again for the first.
        desk.turn(0.3)
        desk.outbox.submit([opened(2)])
        desk.outbox.submit([result(2)])
        assert all("write lock" in text for text in desk.problems)
        desk.turn(20.0)
        assert desk.outbox.is_empty
        desk.outbox.submit([acted(2)])
        desk.turn(20.0)
        with Reader(rig.journal) as reader:
            of_plates = [(row.kind, row.result_id) for row in reader.rows() if row.result_id]
            assert verify(reader).findings == []
        assert of_plates == [
            (kind, result_id("s", number))
            for number in (1, 2)
            for kind in ("opened", "result", "actuation")
        ]
    finally:
        process.terminate()
        process.wait(20.0)


def test_ticks_are_answered_and_a_hung_journal_answers_none(rig: Rig, desk: Desk) -> None:
    process = start(rig)
    try:
        desk.outbox.open(15.0)
        desk.outbox.tick(1)
        desk.turn(0.5)
        assert [tick["n"] for tick in desk.ticks] == [1]
        process.send_signal(signal.SIGSTOP)
        for number in range(2, 2000):
            desk.outbox.tick(number)  # never waits, however full the socket is
        desk.turn(0.2)
        assert len(desk.ticks) == 1
    finally:
        process.kill()
        process.wait()


def test_pictures_begun_are_lost_with_the_journal_and_come_with_the_result(
    rig: Rig, desk: Desk
) -> None:
    descriptor, _, wanted = plate_memory()
    process = start(rig)
    desk.outbox.open(15.0)
    process.send_signal(signal.SIGSTOP)
    for _ in range(2000):
        desk.outbox.arriving(result_id("s", 1), wanted, descriptor, is_complete=True)
    assert desk.outbox.is_empty  # nothing waits, however full the socket is
    process.kill()
    process.wait()
    desk.turn(0.1)
    desk.outbox.arriving(result_id("s", 1), wanted, descriptor, is_complete=True)
    answers: list[Json] = []
    desk.outbox.submit([result(1)], wanted, descriptor, done=answers.append)
    process = start(rig)
    try:
        desk.turn(20.0)
        assert [len(answer["pictures"]["images"]) for answer in answers] == [2]
        with Reader(rig.journal) as reader:
            assert verify(reader).findings == []
    finally:
        process.terminate()
        process.wait(20.0)


def test_a_journal_that_stays_silent_ends_the_station(rig: Rig, desk: Desk) -> None:
    for number in range(1, 1001):
        desk.outbox.submit([opened(number)])
    with pytest.raises(OutboxError, match="has not answered 1000 rows"):
        desk.outbox.submit([opened(1001)])
