"""The log's schema through the years: steps that only add, and tables made of the chain."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_qms import acted, change, opened, result, review

from station import derived, qms
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import DATABASE, Store, canonical, chain, sha256_text
from station.record import Body, DefectBody, Verdict
from station.schema import FIRST, STEPS
from station.snapshot import publish

DEFECTS = [
    DefectBody(x_px=1, y_px=2, w_px=3, h_px=4, x_mm=0.5, y_mm=1.5, score=0.75),
    DefectBody(x_px=9, y_px=8, w_px=3, h_px=4, x_mm=4.5, y_mm=5.5, score=float("nan")),
]


def plates(first: int, last: int) -> list[Body]:
    """Rows of plates, every third one failed and every fifth one reviewed; none passed, so that no
    row of the log's own comes between."""
    rows: list[Body] = []
    for number in range(first, last + 1):
        failed = number % 3 == 0
        defects = DEFECTS if failed else []
        verdict = Verdict.FAIL if failed else Verdict.UNDECIDED
        rows += [opened(number, number)]
        rows += [result(number, verdict, defects=defects, lot="L1")]
        rows += [acted(number)]
        if number % 5 == 0:
            rows += [review(number, Verdict.PASS)]
    return rows


def write_as_first_release(directory: Path, rows: list[Body], is_new: bool = True) -> None:
    """What the first release does with a log: its one table, its one statement for each row."""
    directory.mkdir(exist_ok=True)
    with sqlite3.connect(directory / DATABASE) as log:
        if is_new:
            for statement in FIRST:
                log.execute(statement)
            log.execute("PRAGMA user_version = 1")
            log.execute("PRAGMA journal_mode = WAL")
        head = log.execute("SELECT seq, chain_sha256 FROM row ORDER BY seq DESC LIMIT 1").fetchone()
        seq, link = head or (0, qms.EMPTY_CHAIN)
        for row in rows:
            seq, kind, body = seq + 1, row.kind, canonical(row)  # type: ignore[attr-defined]
            link = chain(link, seq, kind, sha256_text(body))
            log.execute(
                "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) "
                "VALUES (?, ?, ?, ?, ?)",
                (seq, kind, body, sha256_text(body), link),
            )
    log.close()


def tables(directory: Path) -> dict[str, list[Any]]:
    log = sqlite3.connect(directory / DATABASE)
    names = ("plate", "defect", "hourly", "derived", "unsettled")
    found = {name: sorted(log.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    log.close()
    return found


def test_a_row_fills_the_tables_in_its_own_transaction(tmp_path: Path) -> None:
    rows = plates(1, 30)
    with Store(tmp_path / "one") as store:
        for row in rows:
            store.append([row])
    with Store(tmp_path / "group") as store:
        numbers = store.append(rows)
        assert store.append(rows) == numbers, "sent again"
    found = tables(tmp_path / "one")
    assert found == tables(tmp_path / "group")
    assert len(found["plate"]) == 30
    assert len(found["defect"]) == 20
    assert found["derived"] == [(numbers[-1],)]
    assert sum(line[-2] for line in found["hourly"]) == 30
    assert sum(line[-1] for line in found["hourly"]) == 20


def test_a_refused_group_leaves_nothing_in_the_tables(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(plates(1, 3))
        before = tables(tmp_path)
        with pytest.raises(qms.ContradictionError):
            store.append([*plates(4, 6), result(1, Verdict.FAIL)])
        assert tables(tmp_path) == before


def test_the_last_review_holds_and_names_defects(tmp_path: Path) -> None:
    named = {"verdict": "FAIL", "reviewer": "bob", "result_id": "s-00000003"}
    lines = derived.lines_of("s", 12, "review", {**named, "defects": [{"number": 1, "kind": "x"}]})
    assert lines.defect_kinds == [{"seq": 12, "result_id": "s-00000003", "number": 1, "kind": "x"}]
    with Store(tmp_path) as store:
        store.append([*plates(1, 5), review(5, Verdict.UNDECIDED)])
    log = sqlite3.connect(tmp_path / DATABASE)
    found = log.execute(
        "SELECT reviewed_verdict, review_seq FROM plate WHERE result_id = ?", ["s-00000005"]
    )
    assert found.fetchall() == [("UNDECIDED", 17)]
    log.close()


def test_an_old_log_is_caught_up_in_batches(tmp_path: Path) -> None:
    """More rows than a start does at once: the rest is done while nothing waits."""
    rows = plates(1, 1400)
    write_as_first_release(tmp_path / "old", rows)
    with Store(tmp_path / "new") as store:
        store.append(rows)
    with Store(tmp_path / "old") as store:
        assert store.lag == len(rows)
        store.append([change("meanwhile")])
        assert store.lag == len(rows) + 1
        while store.lag:
            assert store.unsettled() is None, "0 would be a claim"
            store.catch_up()
        assert store.unsettled() is not None
    with Store(tmp_path / "new") as store:
        store.append([change("meanwhile")])
    assert tables(tmp_path / "old") == tables(tmp_path / "new")


def test_what_an_older_program_wrote_is_caught_up(tmp_path: Path) -> None:
    """Upgrade, roll-back, upgrade."""
    write_as_first_release(tmp_path / "log", plates(1, 10))
    with Store(tmp_path / "log") as store:
        store.append(plates(11, 20))
    write_as_first_release(tmp_path / "log", plates(21, 30), is_new=False)
    with Store(tmp_path / "log") as store:
        assert store.lag == 0
        store.append(plates(31, 40))
    with Store(tmp_path / "new") as store:
        store.append(plates(1, 40))
    found, new = tables(tmp_path / "log"), tables(tmp_path / "new")
    # The labels are of the time of writing, so the hours are those of both.
    assert [line[:3] for line in found["plate"]] == [line[:3] for line in new["plate"]]
    assert found["defect"] == new["defect"]
    with Reader(tmp_path / "log") as reader:
        assert verify(reader).findings == []
        assert len(list(reader.results(Filter()))) == 40


_KILLED = """
import os, signal, sys
from sqlalchemy import event, Engine
from pathlib import Path
from station import qms
qms._CATCH_UP_ROWS = 20
left = int(sys.argv[2])
def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
@event.listens_for(Engine, "connect")
def watch(connection, record):
    connection.set_trace_callback(count)
for folder in range(int(sys.argv[3])):
    child = os.fork()
    if child == 0:
        left = folder + 1
        qms.Store(Path(sys.argv[1]) / str(folder)).close()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
"""


def test_a_migration_killed_at_each_statement_goes_on(tmp_path: Path) -> None:
    """Of every step and batch, before each statement that SQLite is given, COMMIT among them."""
    write_as_first_release(tmp_path / "old", plates(1, 12))
    shutil.copytree(tmp_path / "old", tmp_path / "whole")
    with Store(tmp_path / "whole") as store:
        assert store.lag == 0
    whole, count = tables(tmp_path / "whole"), 110
    for number in range(count):
        shutil.copytree(tmp_path / "old", tmp_path / str(number))
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), "0", str(count)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    statuses = [int(line) for line in done.stdout.split()]
    assert statuses[-1] == 0, "the whole of it takes fewer statements"
    assert statuses.count(9) > 40
    for number in range(statuses.count(9) + 1):
        with Store(tmp_path / str(number)) as store:
            assert store.lag == 0
            assert store.head()[0] == len(plates(1, 12))
        assert tables(tmp_path / str(number)) == whole, number


def test_a_later_programs_steps_are_left_alone(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(plates(1, 3))
    log = sqlite3.connect(tmp_path / DATABASE)
    log.execute("INSERT INTO schema_step VALUES (?, 'of a later program', '')", [len(STEPS) + 7])
    log.execute("CREATE TABLE later (a)")
    log.commit()
    log.close()
    with Store(tmp_path) as store:
        store.append(plates(4, 6))
    assert len(tables(tmp_path)["plate"]) == 6


def test_views_are_in_the_log_and_in_its_snapshot(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(plates(1, 10))
        publish(tmp_path / DATABASE, tmp_path / qms.SNAPSHOT)
    for name in (DATABASE, qms.SNAPSHOT):
        log = sqlite3.connect(tmp_path / name)
        log.row_factory = sqlite3.Row
        found = log.execute("SELECT * FROM results WHERE ResultId = 's-00000005'").fetchone()
        assert (found["verdict"], found["JobId"], found["reviewed_verdict"]) == (
            "NotDecidable",
            "L1",
            "OK",
        )
        assert log.execute("SELECT count(*) FROM defects").fetchone()[0] == 6
        assert log.execute("SELECT reviewer FROM reviews").fetchall()[0][0] == "ada"
        assert log.execute("SELECT sum(plates) FROM hours").fetchone()[0] == 10
        assert log.execute("SELECT count(*) FROM actuations").fetchone()[0] == 10
        log.close()


def edit(directory: Path, *statements: str) -> None:
    """What another tool does to the tables."""
    with sqlite3.connect(directory / DATABASE) as log:
        for statement in statements:
            log.execute(statement)
    log.close()


WRONG_LINE = """
    INSERT INTO plate (seq, station_id, result_id, written_at, verdict, defects, recipe_id,
                       recipe_version, model_id, provenance, is_audit_sample)
    VALUES (14, 's', 's-00000005', '2026-11-26T09:00:00.000000Z', 'PASS', 0, 'r', 1, 'm', 'p', 0)
"""
"""Where that of the next plate will be: one is three rows here."""


@pytest.mark.parametrize(
    "statement",
    [
        WRONG_LINE,
        "UPDATE derived SET seq = 3",
        "UPDATE derived SET seq = 9999",
        "DELETE FROM derived",
    ],
)
def test_tables_that_were_changed_are_made_anew(tmp_path: Path, statement: str) -> None:
    with Store(tmp_path / "log") as store:
        store.append(plates(1, 4))
    edit(tmp_path / "log", statement)
    write_as_first_release(tmp_path / "log", plates(5, 8), is_new=False)
    with Store(tmp_path / "log") as store:
        assert store.lag == 0
        assert "made anew" in store.derived_problem
    assert_are_whole(tmp_path / "log", plates(1, 8), tmp_path / "new")


def test_tables_that_claim_more_rows_than_there_are_are_made_anew(tmp_path: Path) -> None:
    with Store(tmp_path / "log") as store:
        store.append(plates(1, 4))
        rows = store.head()[0]
    edit(tmp_path / "log", f"UPDATE derived SET seq = {rows + 1}")
    with Store(tmp_path / "log") as store:
        assert f"table derived says row {rows + 1}, the last one is {rows}" in store.derived_problem
        store.append(plates(5, 8))
        assert store.lag == 0
    assert_are_whole(tmp_path / "log", plates(1, 8), tmp_path / "new")
    with Store(tmp_path / "log") as store:
        assert store.derived_problem == ""


def test_a_wrong_line_does_not_stop_a_log_that_is_written(tmp_path: Path) -> None:
    with Store(tmp_path / "log") as store:
        store.append(plates(1, 4))
        edit(tmp_path / "log", WRONG_LINE)
        rows = plates(5, 8)
        numbers = store.append(rows)
        assert "made anew" in store.derived_problem
        assert store.append(rows) == numbers
        while store.lag:
            store.catch_up()
        store.append(plates(9, 9))
        assert store.lag == 0
    assert_are_whole(tmp_path / "log", plates(1, 9), tmp_path / "new")


def test_tables_that_take_no_line_do_not_stop_the_log(tmp_path: Path) -> None:
    """What another tool added to them is for a person to take away."""
    with Store(tmp_path) as store:
        edit(tmp_path, "CREATE UNIQUE INDEX other ON plate (lot)")
        rows = plates(1, 4)
        assert store.append(rows) == list(range(1, len(rows) + 1))
        with pytest.raises(qms.StoreRefused, match="UNIQUE"):
            store.catch_up()
    with Store(tmp_path) as store:
        store.append(plates(5, 6))
        assert store.derived_problem
        assert tables(tmp_path)["plate"] == []


def assert_are_whole(directory: Path, rows: list[Body], new: Path) -> None:
    """The tables are those of a log that nobody changed, but for when it was written."""
    with Store(new) as store:
        store.append(rows)
    found, expected = tables(directory), tables(new)
    assert [line[:3] for line in found["plate"]] == [line[:3] for line in expected["plate"]]
    assert (found["defect"], found["derived"]) == (expected["defect"], expected["derived"])
    with Reader(directory) as reader:
        assert verify(reader).findings == []
