"""QA's own tools read the log's views and exports, as docs/qa-tools.md says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import STORABLE
from ports import free_port
from test_qms import result

from station.export import Wish, export_to
from station.export_source import Chosen, Source
from station.qms import DATABASE, SNAPSHOT, Store
from station.record import ReviewBody, Verdict, result_id
from station.snapshot import publish

CHECKOUT = Path(__file__).parents[1]
METADATA = CHECKOUT / "deploy" / "datasette" / "metadata.json"
GUIDE = (CHECKOUT / "docs" / "qa-tools.md").read_text()
VIEWS = ("results", "defects", "reviews", "actuations", "hours")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    defect = {"x_px": 1, "y_px": 2, "w_px": 9, "h_px": 9, "x_mm": 31.0, "y_mm": 4.5, "w_mm": 3.0,
              "h_mm": 2.0, "score": 0.9}  # fmt: skip
    serials = ["LGP-000123", "LGP-000123", *STORABLE]
    with Store(folder) as store:
        for number, serial in enumerate(serials, start=1):
            verdict = list(Verdict)[number % 3]
            at = f"2026-07-{1 + number % 9:02}T06:{number % 60:02}:00.000000Z"
            store.append(
                [result(number, verdict, part_id=serial, written_at=at, defects=[defect],
                        tile_grid="AAAAAMAAAAA=", tile_scores="AACAPgAAAD8=")]
            )  # fmt: skip
        said = ReviewBody(station_id="s", result_id=result_id("s", 1), verdict=Verdict.PASS,
                          reviewer="kim", reason="dust")  # fmt: skip
        store.append([said])
    publish(folder / DATABASE, folder / SNAPSHOT)
    return folder


def blocks(language: str) -> list[str]:
    """Statements of the guide's fenced blocks."""
    found = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return [one.strip() for block in found for one in block.split(";") if one.strip()]


def columns(log: Path, view: str) -> list[str]:
    with closing(sqlite3.connect(log / SNAPSHOT)) as raw:
        return [row[1] for row in raw.execute(f"PRAGMA table_info({view})")]


@pytest.mark.parametrize("view", VIEWS)
def test_every_column_of_a_view_is_described(log: Path, view: str) -> None:
    database = json.loads(METADATA.read_text())["databases"][Path(SNAPSHOT).stem]
    assert set(database["tables"][view]["columns"]) == set(columns(log, view))
    assert f"| `{view}` |" in GUIDE


@pytest.mark.parametrize("sql", blocks("sql sqlite3"))
def test_the_guides_questions_run_in_sqlite3(log: Path, sql: str) -> None:
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("no sqlite3 here")
    done = subprocess.run(
        [shell, "-readonly", "-header", "-bail", str(log / SNAPSHOT), sql],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1


def test_the_guides_questions_run_in_duckdb(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb", reason="no DuckDB here")
    with Source(log / DATABASE) as source:
        for format_ in ("parquet", "csv", "jsonl"):
            export_to(source, Wish(format_, Chosen()), tmp_path / f"plates.{format_}")
    monkeypatch.chdir(tmp_path)
    statements = blocks("sql duckdb")
    assert len(statements) == 6
    for sql in statements:
        assert duckdb.sql(sql).fetchall(), sql


def test_grafanas_questions_run(log: Path) -> None:
    board = json.loads((CHECKOUT / "deploy" / "grafana" / "quality.json").read_text())
    with closing(sqlite3.connect(log / SNAPSHOT)) as raw:
        for panel in board["panels"]:
            [target] = panel["targets"]
            sql = target["rawQueryText"].replace("$__from", "1782864000000")
            assert raw.execute(sql.replace("$__to", "1786000000000")).fetchall(), panel["title"]


# --- datasette ----------------------------------------------------------------------------------


@contextmanager
def datasette(log: Path) -> Iterator[str]:
    program = Path(sys.executable).with_name("datasette")
    if not program.exists():
        pytest.skip("no datasette here")
    port = free_port()
    process = subprocess.Popen(
        [program, log / SNAPSHOT, "--metadata", METADATA, "--port", str(port),
         "--setting", "sql_time_limit_ms", "5000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}/{Path(SNAPSHOT).stem}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("datasette does not answer")


def get(url: str, **parameters: Any) -> str:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}") as answer:
        return str(answer.read().decode())


def test_datasette_serves_the_views_and_the_canned_questions(log: Path) -> None:
    values = {"serial": "LGP-000123", "since": "2026", "left": 30, "right": 40, "leading": 0,
              "trailing": 9}  # fmt: skip
    known = json.loads(METADATA.read_text())["databases"][Path(SNAPSHOT).stem]
    with datasette(log) as url:
        for view in VIEWS:
            rows = json.loads(get(f"{url}/{view}.json", _shape="objects"))["rows"]
            assert view == "actuations" or set(rows[0]) == set(columns(log, view))
        for name in known["queries"]:
            assert json.loads(get(f"{url}/{name}.json", _shape="array", **values)), name
        found = json.loads(get(f"{url}/results.json", _facet="verdict", _size=1))
        assert {one["value"] for one in found["facet_results"]["verdict"]["results"]} == {
            "OK", "NotOK", "NotDecidable",
        }  # fmt: skip
        page = get(f"{url}/results", _size=500)
    assert "Part serial; empty where none is certain" in page
    assert "<script>alert(1)</script>" in STORABLE
    for text in ("<script>alert(1)</script>", "<img src=x onerror"):
        assert text not in page
