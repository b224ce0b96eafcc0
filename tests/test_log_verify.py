"""What `vqi log verify` finds beside broken links: tables, views, triggers, what adds not up."""

from __future__ import annotations

import base64
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from station_rig import vqi
from test_qms import acted, change, downtime, opened, result, review, tampered, verified
from test_schema import DEFECTS, write_as_first_release

from station.chain_check import Beside, check
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, Store
from station.record import Body, Verdict


def life(first: int, last: int) -> list[Body]:
    rows: list[Body] = [change("start"), downtime(triggers=0)]
    for number in range(first, last + 1):
        is_failed = number % 4 == 0
        verdict = Verdict.FAIL if is_failed else Verdict.PASS
        rows += [opened(number, number)]
        rows += [result(number, verdict, defects=DEFECTS[:1] if is_failed else [])]
        rows += [acted(number)]
    return rows


_ONE_MORE = """
    INSERT INTO plate SELECT 13, station_id, 'x', written_at, shift, part_id, attempt, lot, verdict,
    reason, score, defects, recipe_id, recipe_version, model_id, provenance, triggers,
    is_audit_sample, NULL, NULL, NULL FROM plate WHERE seq = 14
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    with Store(folder) as store:
        store.append([*life(1, 8), *life(9, 16), review(8, Verdict.PASS), *life(17, 20)])
    return folder


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE plate SET verdict = 'PASS' WHERE seq = 14", "row 14: verdict 'PASS', by the row"),
        ("UPDATE plate SET score = score + 1e-9 WHERE seq = 14", "row 14: score"),
        ("UPDATE plate SET reviewer = 'eve' WHERE review_seq IS NOT NULL", "its review"),
        ("UPDATE plate SET reviewed_verdict = NULL, reviewer = NULL, review_seq = NULL", "lacks"),
        ("UPDATE plate SET reviewer = 'eve', review_seq = 3 WHERE seq = 14", "its review"),
        ("DELETE FROM plate WHERE seq = 14", "table plate lacks the line of row 14"),
        (_ONE_MORE, "table plate has a line of row 13 that no row makes"),
        ("UPDATE defect SET x_mm = 0", "table defect, line of row"),
        ("DELETE FROM defect", "table defect lacks the line of row"),
        ("UPDATE defect SET kind = 'dust'", "kind 'dust'"),
        ("UPDATE hourly SET plates = plates + 1 WHERE verdict = 'PASS'", "table hourly"),
        ("DELETE FROM hourly WHERE verdict = 'FAIL'", "table hourly"),
        ("DROP VIEW results", "view results is gone"),
        ("DROP INDEX row_result", "index row_result is gone"),
        ("DROP TABLE hourly", "table hourly is gone"),
        ("CREATE TRIGGER mine AFTER INSERT ON row BEGIN SELECT 1; END", "trigger mine is none"),
        ("CREATE TRIGGER sqlitex AFTER INSERT ON row BEGIN SELECT 1; END", "trigger sqlitex is"),
        ("UPDATE derived SET seq = 12", "table plate has a line of row 14; table derived says 12"),
        ("UPDATE derived SET seq = 12", "table defect has a line of row 14"),
        ("UPDATE derived SET seq = 9999", "table derived says row 9999; the last one is"),
        ("DELETE FROM derived", "table derived has 0 lines"),
        ("INSERT INTO derived SELECT seq FROM derived", "table derived has 2 lines"),
        ("DROP TABLE derived", "table derived is gone"),
        ("DELETE FROM schema_step; DROP TABLE derived", "table derived is gone"),
        ("DELETE FROM schema_step; DROP VIEW results", "view results is gone"),
        ("DROP TABLE schema_step", "table schema_step is gone"),
        ("DELETE FROM schema_step WHERE number = 1", "table schema_step lacks step 1"),
        ("DELETE FROM schema_step WHERE number = 2", "table schema_step lacks step 2"),
    ],
)  # fmt: skip
def test_what_is_not_made_of_the_rows_is_named(
    clean: Path, tmp_path: Path, statement: str, finding: str
) -> None:
    assert verified(clean) == []
    shutil.copytree(clean, tmp_path / "log")
    with sqlite3.connect(tmp_path / "log" / DATABASE) as log:
        log.executescript(statement)
    log.close()
    findings = verified(tmp_path / "log")
    assert any(finding in text for text in findings), findings


def test_a_generated_column_of_another_source_is_named(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "log")
    with sqlite3.connect(tmp_path / "log" / DATABASE) as log:
        log.execute("PRAGMA writable_schema = ON")
        changed = "replace(sql, '$.verdict', '$.reason')"
        log.execute(f"UPDATE sqlite_master SET sql = {changed} WHERE name = 'row'")
    log.close()
    assert "table row is not the one that was made" in verified(tmp_path / "log")


def test_a_trigger_that_does_nothing_is_named(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "log")
    with sqlite3.connect(tmp_path / "log" / DATABASE) as log:
        log.execute("DROP TRIGGER row_no_update")
        log.execute("CREATE TRIGGER row_no_update BEFORE UPDATE ON row BEGIN SELECT 1; END")
    log.close()
    assert verified(tmp_path / "log") == ["trigger row_no_update is not the one that was made"]


def without(kind: str, number: int) -> list[Body]:
    """Three lives without one row of a plate."""
    rows = [*life(1, 4), *life(5, 8), *life(9, 12)]
    left_out = {"kind": kind, "result_id": f"s-{number:08d}"}
    return [row for row in rows if not left_out.items() <= row.as_json().items()]


def test_a_station_that_starts_does_not_read_the_whole_file_at_once(tmp_path: Path) -> None:
    """Its command leaves out what SQLite would find."""
    with Store(tmp_path) as store:
        store.append(life(1, 8))
    file = tmp_path / DATABASE
    index = edited_schema(file, "DELETE FROM sqlite_master WHERE name = 'row_ordinal' RETURNING *")
    with Store(tmp_path) as store:
        store.append(life(9, 12))
    edited_schema(file, "INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
    verify_log = ("log", "verify", "--journal", str(tmp_path))
    assert "missing from index row_ordinal" in vqi(*verify_log).stdout
    assert vqi(*verify_log, "--no-file").stdout.startswith("ok: ")


@pytest.mark.parametrize("plates", [8, 3400])
def test_a_live_file_is_left_alone_where_that_is_asked(tmp_path: Path, plates: int) -> None:
    """Also by the second process that a longer log has. SQLite's check reads it all at once."""
    file = tmp_path / DATABASE
    with Store(tmp_path) as store:
        store.append(life(1, plates))
    index = edited_schema(file, "DELETE FROM sqlite_master WHERE name = 'row_ordinal' RETURNING *")
    with Store(tmp_path) as store:
        store.append(life(plates + 1, plates + 4))
    edited_schema(file, "INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
    assert any("from index row_ordinal" in text for text in verified(tmp_path))
    with Reader(tmp_path) as reader:
        assert verify(reader, with_file=False).findings == []


def edited_schema(file: Path, statement: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    with sqlite3.connect(file) as log:
        log.execute("PRAGMA writable_schema = ON")
        found = log.execute(statement, values).fetchall()
    log.close()
    return tuple(found[0]) if found else ()


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        (without("result", 2), "row 6: s-00000002 was opened and has no result"),
        (without("actuation", 2), "row 7: s-00000002 has no row of what the lamp was told"),
        ([*life(1, 4), acted(99)], "the lamp was told of s-00000099, no result"),
    ],
)
def test_what_does_not_add_up_is_named(tmp_path: Path, rows: list[Body], finding: str) -> None:
    write_as_first_release(tmp_path / "log", rows)
    assert any(finding in text for text in verified(tmp_path / "log"))


def test_what_the_last_two_lives_left_open_may_still_be_settled(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([*life(1, 4), *life(5, 8), opened(9), result(10), change("start"), opened(11)])
    with Reader(tmp_path) as reader:
        found = verify(reader)
    assert found.findings == []
    assert (found.results, found.open_plates, found.triggers) == (9, 2, 9)


def test_a_second_row_of_a_plate_is_named_though_nothing_bars_it(tmp_path: Path) -> None:
    write_as_first_release(tmp_path / "log", life(1, 4))
    tampered(tmp_path / "log", "DROP INDEX row_once")
    write_as_first_release(
        tmp_path / "log", [opened(2), result(2, Verdict.FAIL), acted(3)], is_new=False
    )
    said = " ".join(verified(tmp_path / "log"))
    for finding in ("a second opened of s-00000002", "a second actuation of s-00000003"):
        assert finding in said


def test_a_context_that_is_none_is_named(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "log")
    named = "body ->> '$.context' IS NOT NULL"
    tampered(
        tmp_path / "log",
        f"UPDATE row SET body = json_set(body, '$.context', 1) WHERE kind = 'result' AND {named}",
    )
    assert any("context cannot be read" in text for text in verified(tmp_path / "log"))


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    """A passed plate that is packed, scores too, and of which a person thinks otherwise."""
    places = np.array([(64 * x, 64 * y) for y in range(10) for x in range(10)], "<u2")
    scores = np.linspace(0.0, 0.1, 100, dtype="<f4")
    arrays = {
        "tile_grid": base64.b64encode(places.tobytes()).decode(),
        "tile_scores": base64.b64encode(scores.tobytes()).decode(),
    }
    with Store(tmp_path) as store:
        for number in range(1, 5):
            store.append([opened(number), result(number, **arrays), acted(number)])
        seq = store.head()[0] - 1
        said = {"supersedes": seq, "nonce": "abcdefgh1"}
        store.append([review(4, Verdict.FAIL).model_copy(update=said)])
    return tmp_path


@pytest.mark.parametrize(
    ("where", "changed"),
    [
        ("kind = 'result'", "json_set(body, '$.tile_score_planes', 'zzzzzzzzzz')"),
        ("kind = 'result'", "json_set(body, '$.tile_score_planes', 7)"),
        ("kind = 'result'", "json_set(body, '$.tile_blocks', json('[[1,2]]'))"),
        ("kind = 'result'", "json_set(body, '$.context', 1e30)"),
        ("kind = 'context'", "json_set(body, '$.kind', 'changed')"),
        ("kind = 'context'", "json_remove(body, '$.constants')"),
    ],
)
def test_a_packed_row_that_was_edited_is_a_finding_of_its_row(
    reviewed: Path, where: str, changed: str
) -> None:
    assert verified(reviewed) == []
    with Reader(reviewed) as reader:
        packed = [row.seq for row in reader.rows() if row.kind == "result" and "planes" in row.body]
    tampered(reviewed, f"UPDATE row SET body = {changed} WHERE {where}")
    findings = verified(reviewed)
    assert any(text.startswith(f"row {packed[-1]}: cannot be read") for text in findings), findings


def test_a_byte_that_is_no_utf8_is_a_finding(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "log")
    file = tmp_path / "log" / DATABASE
    data = bytearray(file.read_bytes())
    data[data.rindex(b'"recipe_id":"r"') + 13] = 0xFF
    file.write_bytes(data)
    assert any("its body is not the one" in text for text in verified(tmp_path / "log"))


def test_a_serial_that_was_edited_anywhere_in_the_file_is_found(tmp_path: Path) -> None:
    """In the row, in the derived table, and in the index of each."""
    with Store(tmp_path / "log") as store:
        store.append([opened(1), result(1, part_id="SERIAL-1"), acted(1)])
    file = tmp_path / "log" / DATABASE
    with sqlite3.connect(file) as log:
        log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log.close()
    data = file.read_bytes()
    places = [at.start() for at in re.finditer(b"SERIAL-1", data)]
    assert len(places) == 4
    for place in places:
        file.write_bytes(data[:place] + b"SERIAL-2" + data[place + 8 :])
        assert verified(tmp_path / "log") != [], place
    file.write_bytes(data)
    assert verified(tmp_path / "log") == []


def test_rows_that_the_tables_do_not_know_yet_are_a_note(clean: Path, tmp_path: Path) -> None:
    """As an older program leaves a log."""
    shutil.copytree(clean, tmp_path / "log")
    write_as_first_release(tmp_path / "log", [change("meanwhile")] * 3, is_new=False)
    with Reader(tmp_path / "log") as reader:
        found = verify(reader)
    assert found.findings == []
    assert "the derived tables do not know the last 3 rows" in found.notes


class Running(Reader):
    """Of a log that goes on: a plate comes after each look at where it is, and at its end."""

    def __init__(self, store: Store) -> None:
        self.store, self.number = store, 100
        super().__init__(store.directory)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name != "path":
            return found
        self.plate()
        return found

    def last_seq(self) -> int:
        last = super().last_seq()
        self.plate()
        return last

    def plate(self) -> None:
        self.number += 1
        rows = opened(self.number), result(self.number), review(self.number, Verdict.PASS)
        self.store.append([*rows, acted(self.number)])


def test_a_line_that_runs_meanwhile_alarms_nobody(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(life(1, 20))
        with Running(store) as reader:
            found = verify(reader)
            assert reader.number > 102, "plates came meanwhile"
    assert found.findings == []


def test_the_second_process_comes_to_the_same(clean: Path, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for first in range(1, 12_000, 6000):
            store.append([change(str(number)) for number in range(first, first + 6000)])
        last = store.head()[0]
    tampered(tmp_path, "UPDATE row SET body = replace(body, 'somebody', 'eve') WHERE seq = 9000")
    with Beside(tmp_path / DATABASE, last, with_file=True) as beside:
        found = beside.result()
    assert found == check(tmp_path / DATABASE, last, with_file=True)
    assert [seq for seq, _ in found.findings] == [9000, 9000]
