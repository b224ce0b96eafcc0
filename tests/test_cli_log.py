"""`vqi log`: what QA asks, and the answers that spreadsheets and scripts get."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
from station_rig import vqi
from test_qms import change, opened, result

from station.qms import DATABASE, Store
from station.record import ActuationBody, ReviewBody, Verdict, result_id

DEFECT = {
    "x_px": 1, "y_px": 2, "w_px": 224, "h_px": 224, "x_mm": 3.5, "y_mm": 4.5, "w_mm": 22.4,
    "h_mm": 22.4, "score": 0.75,
}  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Five plates: PASS, FAIL with a review, UNDECIDED, NaN, and a hostile serial."""
    rows = [
        result(1, written_at="2026-01-01T06:00:00.000000Z"),
        result(2, Verdict.FAIL, written_at="2026-01-02T06:00:00.000000Z", defects=[DEFECT]),
        result(3, Verdict.UNDECIDED, written_at="2026-01-03T06:00:00.000000Z", detail="frame 7"),
        result(
            4,
            Verdict.UNDECIDED,
            score=float("nan"),
            reason="non-finite",
            defects=[{**DEFECT, "score": float("nan")}],
        ),
        result(5, part_id='=HYPERLINK("http://x")', detail='quote " comma , line\nbreak'),
    ]
    acted = ActuationBody(
        station_id="s", result_id=result_id("s", 2), command="fail", is_confirmed=False,
        commanded_ns=1, shown_ns=2,
    )  # fmt: skip
    review = ReviewBody(
        station_id="s", result_id=result_id("s", 2), verdict=Verdict.PASS, reviewer="kim",
        reason="dust",
    )  # fmt: skip
    with Store(tmp_path) as store:
        store.append([change("start"), opened(1), *rows, acted, review])
    return tmp_path


def log(journal: Path, *arguments: str, status: int = 0) -> str:
    done = vqi("log", *arguments, "--journal", str(journal))
    assert done.returncode == status, done.stderr
    if status == 0:
        assert done.stderr.startswith(f"vqi: read the live file {journal / DATABASE}")
    return done.stdout


def ids(text: str) -> list[str]:
    return [json.loads(line)["result_id"] for line in text.splitlines()]


def test_the_newest_results_come_first_and_can_be_chosen(journal: Path) -> None:
    assert ids(log(journal, "list", "--json")) == [result_id("s", n) for n in (5, 4, 3, 2, 1)]
    assert ids(log(journal, "list", "--json", "--limit", "2")) == [
        result_id("s", 5),
        result_id("s", 4),
    ]
    assert ids(log(journal, "list", "--json", "--verdict", "fail")) == [result_id("s", 2)]
    assert ids(log(journal, "list", "--json", "--serial", '=HYPERLINK("http://x")')) == [
        result_id("s", 5)
    ]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2026-01-02", "2026-01-03"),
        ("2026-01-02T06:00", "2026-01-02T06:00:01"),
        ("2026-01-02T07:00+01:00", "2026-01-02T23:00-05:00"),
    ],
)
def test_times_are_utc_or_have_an_offset(journal: Path, since: str, until: str) -> None:
    chosen = log(journal, "list", "--json", "--since", since, "--until", until)
    assert ids(chosen) == [result_id("s", 2)]


def test_what_is_no_time_is_refused(journal: Path) -> None:
    done = vqi("log", "list", "--journal", str(journal), "--since", "yesterday")
    assert done.returncode == 2
    assert "is no time" in done.stderr


def test_people_see_one_line_a_plate(journal: Path) -> None:
    lines = log(journal, "list").splitlines()
    assert "quote" not in lines[0]  # a passed plate has no reason to explain
    assert "non-finite" in next(line for line in lines if result_id("s", 4) in line)
    assert "nan" in next(line for line in lines if result_id("s", 4) in line)
    failed = next(line for line in lines if result_id("s", 2) in line)
    assert "(4, 4) mm" in failed
    assert "reviewed PASS" in failed


def test_all_rows_about_a_result(journal: Path) -> None:
    rows = [
        json.loads(line)
        for line in log(journal, "show", result_id("s", 2), "--json").split("\n")
        if line
    ]
    assert [row["kind"] for row in rows] == ["result", "actuation", "review"]
    done = vqi("log", "show", "s-99", "--journal", str(journal))
    assert done.returncode == 1
    assert "s-99: no such result" in done.stderr


def test_stats_count_by_verdict_and_reason(journal: Path) -> None:
    found = json.loads(log(journal, "stats", "--json"))
    assert found == {
        "results": 5,
        "verdicts": {"PASS": 2, "FAIL": 1, "UNDECIDED": 2},
        "reasons": {"gap": 1, "non-finite": 1},
    }
    assert "results 5" in log(journal, "stats")


def test_csv_is_safe_in_a_spreadsheet_and_complete(journal: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(log(journal, "export", "--format", "csv"))))
    assert [row["verdict"] for row in rows] == ["OK", "NotOK", "NotDecidable", "NotDecidable", "OK"]
    assert rows[4]["part_id"] == '\'=HYPERLINK("http://x")'
    assert rows[4]["detail"] == 'quote " comma , line\nbreak'
    assert rows[1]["defects"] == "3.5 4.5 0.7500"
    assert (rows[1]["review_verdict"], rows[1]["reviewer"]) == ("OK", "kim")
    assert rows[3]["score"] == "NaN"
    assert rows[3]["defects"] == "3.5 4.5 nan"


def test_a_file_can_be_held_against_the_log(journal: Path, tmp_path: Path) -> None:
    path = tmp_path / "fails.xlsx"
    made = json.loads(
        log(
            journal, "export", "--format", "xlsx", "--out", str(path), "--verdict", "fail", "--json"
        )
    )
    assert (made["file"], made["rows"], made["filter"]) == ("fails.xlsx", 1, {"verdict": "FAIL"})
    assert json.loads(log(journal, "verify", "--export", str(path), "--json"))["ok"]
    path.write_bytes(path.read_bytes() + b"x")
    found = json.loads(log(journal, "verify", "--export", str(path), "--json", status=1))
    assert found["findings"][0].startswith("fails.xlsx: is not the file that was exported")


def test_jsonl_has_every_field(journal: Path) -> None:
    rows = [json.loads(line) for line in log(journal, "export", "--format", "jsonl").splitlines()]
    assert [row["verdict"] for row in rows] == ["OK", "NotOK", "NotDecidable", "NotDecidable", "OK"]
    assert rows[1]["defects"] == [DEFECT]
    assert rows[4]["part_id"] == '=HYPERLINK("http://x")'


def test_verify_tells_a_script_what_it_found(journal: Path) -> None:
    found = json.loads(log(journal, "verify", "--json"))
    assert (found["ok"], found["rows"], found["results"]) == (True, 10, 5)
    with sqlite3.connect(journal / DATABASE) as hostile:
        hostile.execute("DROP TRIGGER row_no_update")
        hostile.execute("UPDATE row SET body = replace(body, 'FAIL', 'PASS') WHERE seq = 4")
    hostile.close()
    found = json.loads(log(journal, "verify", "--json", status=1))
    assert not found["ok"]
    assert found["findings"][:3] == [
        "trigger row_no_update is gone",
        "row 4: its body is not the one that was hashed",
        "row 4: the chain breaks here",
    ]
    assert all("table" in finding for finding in found["findings"][3:])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, status, said in (
        (("list",), 2, "name the log: --config FILE or --journal FOLDER"),
        (("list", "--journal", str(tmp_path)), 1, "no log can be read here"),
        (
            ("export", "--format", "pdf", "--journal", str(tmp_path)),
            2,
            "--format pdf: csv, jsonl, parquet or xlsx",
        ),
        (
            ("export", "--format", "xlsx", "--journal", str(tmp_path)),
            2,
            "--format xlsx is a file: name it with --out FILE",
        ),
    ):
        done = vqi("log", *arguments)
        assert done.returncode == status
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
