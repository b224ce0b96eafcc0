"""The last lines of all processes, as a page shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from station.log_tail import Wanted, log_folder, tail
from station.logs import LogFile


def line(number: int, **fields: object) -> bytes:
    head = {"time": f"2026-01-01T00:00:{number:06d}Z", "level": "info", "process": "station"}
    return json.dumps({**head, "event": "result", **fields}).encode() + b"\n"


@pytest.fixture(autouse=True)
def _not_in_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


def test_another_units_variable_hides_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a terminal or a `vqi run` that a unit started: its lines go elsewhere."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    file = LogFile(log_folder(tmp_path) / "station.jsonl")
    assert file.write(line(1))
    assert [one["event"] for one in tail(tmp_path, Wanted()).lines] == ["result"]


def test_two_files_hold_the_last_lines_and_no_more(tmp_path: Path) -> None:
    file = LogFile(log_folder(tmp_path) / "station.jsonl")
    written = 0
    while written < 2_500_000:
        text = line(written, padding="some words " * 140)
        assert file.write(text)
        written += len(text)
    kept = sorted(log_folder(tmp_path).iterdir())
    assert [path.name for path in kept] == ["station.1.jsonl", "station.jsonl"]
    assert all(path.stat().st_size <= 1_000_000 for path in kept)
    newest = tail(tmp_path, Wanted()).lines[0]
    times = [json.loads(one)["time"] for one in kept[1].read_text().splitlines()]
    assert newest["time"] == max(times)


def test_lines_are_chosen_and_hold_no_secrets(tmp_path: Path) -> None:
    assert "no process" in tail(tmp_path, Wanted()).problem
    file = LogFile(log_folder(tmp_path) / "journal.jsonl")
    file.write(line(1, level="error", process="journal", result_id="s-1"))
    file.write(line(2, password="hidden", dsn="postgres://ann:hidden@plant/db"))
    file.write(b"a library that knows no JSON\n")
    file.write(b'{"event": "cut')
    lines = tail(tmp_path, Wanted()).lines
    assert [one["time"][-7:-1] for one in lines] == ["000002", "000001"]
    assert "hidden" not in json.dumps(lines)
    for wanted, count in (
        (Wanted(level="warning"), 1),
        (Wanted(process="journal"), 1),
        (Wanted(result_id="s-1"), 1),
        (Wanted(text="PLANT"), 1),
        (Wanted(level="critical"), 0),
    ):
        assert len(tail(tmp_path, wanted).lines) == count, wanted
