"""Plates that somebody must still see to: against a plain model, over any history."""

from __future__ import annotations

import itertools
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy import text as sql_text
from test_qms import result
from typer.testing import CliRunner

from station import open_plates, qms, unsettled
from station.cli.log import app
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, Store
from station.record import ReviewBody, Verdict
from station.tables import PLATE
from station.unsettled import State

PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED


class Log:
    """Writes plates and reviews, and keeps by hand what must be open then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder)
        self.plates: list[dict[str, Any]] = []
        self._nonces = itertools.count()

    def plate(self, verdict: Verdict, is_gap: bool = False, part_id: str | None = None) -> None:
        reason = "gap" if is_gap else ("skewed" if verdict is UNDECIDED else None)
        number = len(self.plates) + 1
        row = result(number, verdict, reason=reason, part_id=None if is_gap else part_id)
        self.store.append([row])
        self.plates.append(
            {"id": row.result_id, "verdict": verdict, "said": "", "part": row.part_id, "said_at": 0,
             "is_gap": is_gap, "ever": {verdict}, "agreed": set()}
        )  # fmt: skip

    def review(self, number: int, verdict: Verdict, said: str, who: str, two: bool) -> None:
        plate = self.plates[number % len(self.plates)]
        if plate["is_gap"] or (said == "use" and verdict is not PASS):
            return
        rows = self.store.of_result(plate["id"])
        last = self.store._numbered(plate["id"])
        seq = max(row["seq"] for row in last if row["kind"] in ("result", "review"))
        self.store.append(
            [
                ReviewBody(
                    station_id="s", result_id=plate["id"], verdict=verdict, reviewer=who,
                    reason="dirt", disposition=said, supersedes=seq,
                    nonce=f"nonce-{next(self._nonces):06}", four_eyes=(FAIL,) if two else (),
                )
            ]
        )  # fmt: skip
        assert len(self.store.of_result(plate["id"])) == len(rows) + 1
        self._model(plate, verdict, said, who, two)

    def _model(
        self, plate: dict[str, Any], verdict: Verdict, said: str, who: str, two: bool
    ) -> None:
        plate["ever"].add(verdict)
        plate["two"] = plate.get("two", False) or two
        plate["agreed"] = plate["agreed"] | {who} if verdict is PASS else set()
        waits = verdict is PASS and plate["two"] and FAIL in plate["ever"]
        if not waits or len(plate["agreed"]) > 1:
            plate["verdict"], plate["said"] = verdict, said
            plate["said_at"] = len(self.plates)

    def expected(self) -> dict[str, State]:
        found = {}
        for place, plate in enumerate(self.plates):
            since = self.plates[max(place + 1, plate["said_at"]) :]
            later = [one for one in since if one["part"] == plate["part"]]
            came_back = plate["part"] is not None and bool(later)
            if plate["said"] == "rework" and not came_back:
                found[plate["id"]] = State.REWORK
            elif plate["said"] == "" and not plate["is_gap"] and plate["verdict"] is not PASS:
                found[plate["id"]] = State.OPEN
            elif plate["said"] == "use":
                assert plate["verdict"] is PASS
        return found

    def found(self) -> dict[str, State]:
        with Reader(self.folder) as reader:
            return {
                row.result_id: state
                for state in State
                for row in open_plates.page(reader, 100, state)
            }


PLATES = st.tuples(
    st.just("plate"),
    st.sampled_from(Verdict),
    st.integers(0, 9).map(lambda n: n == 0),
    st.sampled_from([None, "A", "B"]),
)
REVIEWS = st.tuples(
    st.just("review"),
    st.integers(0, 20),
    st.sampled_from(Verdict),
    st.sampled_from(["", "removed", "rework", "scrap", "use"]),
    st.sampled_from(["ada", "bob"]),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(history=st.lists(st.one_of(PLATES, REVIEWS), max_size=25))
def test_any_history_leaves_open_what_a_plain_model_says(
    history: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = Log(tmp_path_factory.mktemp("log"))
    log.plate(FAIL)
    for kind, *values in history:
        getattr(log, kind)(*values)
    expected = log.expected()
    assert log.found() == expected
    assert log.store.unsettled() == {state: list(expected.values()).count(state) for state in State}
    log.store.close()
    with Reader(log.folder) as reader:
        assert verify(reader).findings == []
    _forget(log.folder)
    with Store(log.folder):
        assert log.found() == expected, "made anew"


def _forget(folder: Path) -> None:
    """As if a program that does not know the table had written all of it."""
    with sqlite3.connect(folder / DATABASE) as log:
        log.execute("DELETE FROM unsettled")
        log.execute("UPDATE unsettled_upto SET seq = 0")
    log.close()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "log")
    for verdict in (PASS, FAIL, UNDECIDED, FAIL):
        log.plate(verdict)
    log.review(1, FAIL, "removed", "ada", two=False)
    return log


def test_the_counts_follow_each_change_and_are_not_counted_again(log: Log) -> None:
    assert log.store.unsettled() == {State.OPEN: 2, State.REWORK: 0}
    asked: list[str] = []
    log.store._raw.set_trace_callback(asked.append)
    log.plate(FAIL, part_id="A")
    log.review(4, FAIL, "rework", "ada", two=False)
    assert log.store.unsettled() == {State.OPEN: 2, State.REWORK: 1}
    log.plate(UNDECIDED, part_id="A")
    log.review(2, FAIL, "scrap", "ada", two=False)
    assert log.store.unsettled() == {State.OPEN: 2, State.REWORK: 0}
    assert [one for one in asked if "FROM unsettled" in one and "total" in one] == []


def test_what_came_before_the_table_is_looked_at_once(log: Log) -> None:
    log.store.close()
    _forget(log.folder)
    with Reader(log.folder) as reader:
        found = verify(reader)
    assert (found.findings, len(found.notes)) == ([], 1)
    with Store(log.folder):
        assert log.found() == log.expected()
    before = (log.folder / DATABASE).stat().st_mtime_ns
    with Store(log.folder) as store:
        assert store.unsettled() == {State.OPEN: 2, State.REWORK: 0}
    assert (log.folder / DATABASE).stat().st_mtime_ns == before, "not at every start"


def test_a_review_that_waits_has_nothing_made_anew(log: Log) -> None:
    log.review(3, PASS, "use", "ada", two=True)
    log.store.close()
    before = (log.folder / DATABASE).stat().st_mtime_ns
    with Store(log.folder) as store:
        assert store.unsettled() == {State.OPEN: 2, State.REWORK: 0}
    assert (log.folder / DATABASE).stat().st_mtime_ns == before, "not at every start"


def test_making_it_anew_reads_no_plate_that_passed(log: Log) -> None:
    with sqlite3.connect(log.folder / DATABASE) as file:
        plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {unsettled.ALL}")]
    file.close()
    of_plate = [step for step in plan if step.startswith(("SCAN plate", "SEARCH plate"))]
    assert len(of_plate) == 2, plan
    assert all("plate_failing" in step or "plate_reviewer" in step for step in of_plate), plan


def test_a_log_of_an_older_program_is_used(log: Log) -> None:
    """Its steps do not know the table; reviews it wrote meanwhile count from the next start on."""
    log.store.close()
    with sqlite3.connect(log.folder / DATABASE) as file:
        file.executescript(
            "DROP VIEW unsettled_plates; DROP TABLE unsettled; DROP TABLE unsettled_upto;"
            "DELETE FROM schema_step WHERE name = 'plates to see to'"
        )
    file.close()
    with Reader(log.folder) as reader:
        assert verify(reader).findings == []
        with pytest.raises(qms.StoreError, match="written by an older program"):
            open_plates.count(reader)
    with Store(log.folder):
        assert log.found() == log.expected()


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM unsettled WHERE seq = 4", "table unsettled lacks row 4, open"),
        ("INSERT INTO unsettled VALUES (1, 'open')", "table unsettled has row 1, open"),
        (
            "UPDATE unsettled SET state = 'rework' WHERE seq = 3",
            "table unsettled lacks row 3, open",
        ),
        ("DROP TABLE unsettled", "table unsettled is gone"),
    ],
)
def test_who_checks_the_log_sees_a_list_that_was_changed(
    log: Log, statement: str, finding: str
) -> None:
    log.store.close()
    with sqlite3.connect(log.folder / DATABASE) as file:
        file.executescript(statement)
    file.close()
    with Reader(log.folder) as reader:
        assert finding in verify(reader).findings[0]


def test_a_reworked_part_that_comes_back_closes_its_rework(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.plate(FAIL, part_id="A")
    log.review(0, FAIL, "rework", "ada", two=False)
    assert log.store.unsettled() == {State.OPEN: 0, State.REWORK: 1}
    log.plate(PASS, part_id="A")
    assert log.store.unsettled() == {State.OPEN: 0, State.REWORK: 0}
    with Reader(tmp_path) as reader:
        beside = open_plates.attempts(reader, "A", 1)
    assert (beside.previous, beside.newest.attempt, beside.newest.verdict) == (None, 2, "PASS")


def test_of_a_serial_that_came_often_few_are_read(log: Log) -> None:
    for _ in range(9):
        log.plate(PASS, part_id="A")
    log.store.close()
    with Reader(log.folder) as reader:
        seqs = [row.seq for row in reader.ask(select(PLATE.c.seq).where(PLATE.c.part_id == "A"))]
        found = open_plates.attempts(reader, "A", seqs[4])
        assert (found.previous.seq, found.newest.seq, found.in_all) == (seqs[3], seqs[-1], 9)
        assert open_plates.attempts(reader, "A", seqs[-1]).newest is None
        for text in ("<", ">"):
            query = f"EXPLAIN QUERY PLAN SELECT * FROM plate WHERE part_id = 'A' AND seq {text} 9 "
            (step,) = reader.query(sql_text(f"{query} ORDER BY seq DESC LIMIT 1"), {})
            assert "USING INDEX plate_part (part_id=? AND rowid" in step[3]


def test_a_rework_given_after_the_part_came_by_again_is_still_to_be_done(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for verdict in (FAIL, FAIL):
        log.plate(verdict, part_id="A")
    log.review(0, FAIL, "rework", "ada", two=False)
    assert log.store.unsettled() == {State.OPEN: 1, State.REWORK: 1}
    log.plate(PASS, part_id="A")
    assert log.store.unsettled() == {State.OPEN: 1, State.REWORK: 0}


def test_a_failed_part_that_comes_by_again_stays_open(tmp_path: Path) -> None:
    """Nobody said that it was reworked: a second look until it passes is no rework."""
    log = Log(tmp_path)
    log.plate(FAIL, part_id="A")
    log.plate(PASS, part_id="A")
    assert log.store.unsettled() == {State.OPEN: 1, State.REWORK: 0}


def test_no_question_reads_the_plates_that_are_settled(log: Log) -> None:
    with sqlite3.connect(log.folder / DATABASE) as file:
        plans = [
            row[3]
            for select in (open_plates.count_select(), open_plates.page_select(10))
            for row in file.execute(
                f"EXPLAIN QUERY PLAN {select.compile(compile_kwargs={'literal_binds': True})}"
            )
        ]
    file.close()
    assert all("unsettled" in plan or "SEARCH plate USING INTEGER PRIMARY KEY" in plan
               for plan in plans), plans  # fmt: skip


def test_the_command_lists_them_oldest_first(log: Log) -> None:
    log.store.close()
    arguments = ["list", "--journal", str(log.folder), "--open"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["seq"] for row in found] == [3, 4]
    refused = CliRunner().invoke(app, [*arguments, "--verdict", "FAIL"])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
