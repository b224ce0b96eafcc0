"""How long does each question take to a long log while its station goes on writing, beside the same
question through datasette, DuckDB and the bare sqlite3 module?

    python benchmarks/questions.py JOURNAL [--times 200] [--plates-per-s 5] [--json]

JOURNAL is a folder that `make journal PLATES=1000000` made; a process appends plates to it all the
while, as a line would. datasette answers over HTTP from a process of its own, on the same file.
DuckDB reads Parquet files of the three tables, made before: its extension that reads SQLite files
is not part of its package. Each time asks for another serial, lot, shift, place or hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect

from models.runtimes import processor_name
from station.log_reader import Reader
from station.qms import DATABASE, Store
from station.questions import (
    Questions,
    Selection,
    audit_select,
    counts_select,
    defects_select,
    open_samples_select,
    page_select,
    reviewed_select,
)
from station.record import OpenedBody, ResultBody, result_id, utc_now
from station.tables import DEFECT, HOURLY, PLATE

Make = Callable[[random.Random], Any]
LIMIT = 50
WAYS = ("vqi", "sqlite3", "datasette", "DuckDB")


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to ask for, drawn from the log itself."""

    serials: list[str]
    lots: list[str]
    shifts: list[str]
    hours: list[str]
    recipes: list[str]
    models: list[str]
    reviewers: list[str]
    kinds: list[str]
    size_mm: tuple[float, float]
    defect_mm: float


def known_of(reader: Reader) -> Known:
    seqs = [row[0] for row in reader.ask(select(PLATE.c.seq).order_by(PLATE.c.seq), 600.0)]
    some = random.Random(1).sample(seqs, min(2000, len(seqs)))
    rows = reader.ask(select(PLATE).where(PLATE.c.seq.in_(some)), 600.0)
    reach = reader.ask(text("SELECT max(x_mm), max(y_mm), max(w_mm) FROM defect"), 600.0)[0]

    def of(name: str, table: Any = PLATE) -> list[str]:
        if table is PLATE:
            values = {getattr(row, name) for row in rows}
        else:
            values = {row[0] for row in reader.ask(select(table.c[name]).distinct(), 600.0)}
        return sorted(value for value in values if value)

    return Known(
        of("part_id"), of("lot"), of("shift"), of("hour", HOURLY), of("recipe_id", HOURLY),
        of("model_id", HOURLY), of("reviewer"), of("kind", DEFECT), (reach[0], reach[1]),
        reach[2],
    )  # fmt: skip


# --- the questions ------------------------------------------------------------------------------


def questions(known: Known) -> dict[str, Make]:
    """Each makes one select, or a selection whose newest plates are asked for."""

    def since(rng: random.Random) -> Selection:
        begin, end = sorted(rng.sample(known.hours, 2))
        return Selection(since=f"{begin}:17:00.000000Z", until=f"{end}:43:00.000000Z")

    def place(rng: random.Random) -> tuple[float, float, float, float]:
        left, leading = (rng.uniform(0, side - 30) for side in known.size_mm)
        return left, leading, left + 30, leading + 30

    one = random.Random.choice
    found: dict[str, Make] = {
        "list: newest": lambda rng: Selection(),
        "list: serial": lambda rng: Selection(serial=one(rng, known.serials)),
        "list: lot": lambda rng: Selection(lot=one(rng, known.lots)),
        "list: time": since,
        "list: shift": lambda rng: Selection(shift=one(rng, known.shifts)),
        "list: verdict": lambda rng: Selection(verdict=one(rng, ["PASS", "FAIL", "UNDECIDED"])),
        "list: recipe": lambda rng: Selection(recipe=one(rng, known.recipes)),
        "list: model": lambda rng: Selection(model=one(rng, known.models)),
        "list: reviewer": lambda rng: Selection(reviewer=one(rng, known.reviewers)),
        "list: attempt": lambda rng: Selection(attempt=one(rng, [1, 2, 3])),
        "list: provenance": lambda rng: Selection(provenance=one(rng, ["production", "replayed"])),
        "list: defect size": lambda rng: Selection(min_size_mm=rng.uniform(0, known.defect_mm)),
        "list: defect kind": lambda rng: Selection(kind=one(rng, known.kinds)),
        "list: place": lambda rng: Selection(place_mm=place(rng)),
        "list: recipe, verdict, place": lambda rng: Selection(
            recipe=one(rng, known.recipes), verdict="FAIL", place_mm=place(rng)
        ),
        "stats: all": lambda rng: counts_select(Selection(), ("verdict", "reason")),
        "stats: time": lambda rng: counts_select(since(rng), ("verdict", "reason")),
        "stats: shift": lambda rng: counts_select(
            Selection(shift=one(rng, known.shifts)), ("verdict", "reason")
        ),
        "stats: lot": lambda rng: counts_select(
            Selection(lot=one(rng, known.lots)), ("verdict", "reason")
        ),
        "chart p: all hours": lambda rng: counts_select(Selection(), ("hour", "verdict")),
        "chart u: shifts of a recipe": lambda rng: counts_select(
            Selection(recipe=one(rng, known.recipes)), ("hour", "shift", "verdict")
        ),
        "yield: all": lambda rng: counts_select(
            Selection(), ("recipe", "recipe_version", "provenance", "attempt", "verdict", "reason")
        ),
        "pareto: defects by kind": lambda rng: defects_select(Selection(), DEFECT.c.kind),
        "heat map: all": lambda rng: defects_select(Selection(), DEFECT.c.x_mm, DEFECT.c.y_mm),
        "heat map: time": lambda rng: defects_select(since(rng), DEFECT.c.x_mm, DEFECT.c.y_mm),
        "quality: audit": lambda rng: audit_select(Selection(), ("recipe", "recipe_version")),
        "quality: reviewed": lambda rng: reviewed_select(
            Selection(verdict="FAIL"), ("recipe", "recipe_version")
        ),
        "audit list": lambda rng: open_samples_select(Selection(), LIMIT),
    }
    nothing_to_name = {
        "shift": known.shifts,
        "reviewer": known.reviewers,
        "defect kind": known.kinds,
    }
    absent = [word for word, names in nothing_to_name.items() if not names]
    return {name: make for name, make in found.items() if name.partition(": ")[2] not in absent}


def ours(reader: Reader, wanted: Any) -> int:
    """As the commands do it: the newest plates with their records, or the rows of a select."""
    if not isinstance(wanted, Selection):
        return len(reader.ask(wanted))
    page = next(Questions(reader.ask).pages(wanted, LIMIT), [])
    return len(reader.bodies_at([line.seq for line in page]))


def as_select(reader: Reader, wanted: Any) -> Any:
    """The one select that others are asked: with the hours in which there are such plates, and
    without the step that looks for these."""
    if not isinstance(wanted, Selection):
        return wanted
    narrowed = Questions(reader.ask).narrowed(wanted)
    return page_select(narrowed or wanted, LIMIT)


def sql_of(statement: Any, dialect: Any) -> str:
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


# --- the others ---------------------------------------------------------------------------------


@contextmanager
def line_that_runs(journal: Path, plates_per_s: float) -> Iterator[None]:
    command = [sys.executable, __file__, str(journal), "--write", str(plates_per_s)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def write(journal: Path, plates_per_s: float) -> None:
    """Plates as the last one, until told to end."""
    with Reader(journal) as reader:
        (line,) = reader.ask(page_select(Selection(verdict="PASS"), 1))
        body = reader.bodies_at([line.seq])[line.seq]
    with Store(journal) as store:
        while store.lag:
            store.catch_up()
        number = store.last_sequence()
        while True:
            number += 1
            said = {"result_id": result_id(body["station_id"], number), "sequence": number}
            opened = OpenedBody(
                station_id=body["station_id"], frame_id=number, encoder_value=None,
                plate_ordinal=None, opened_ns=number, **said,
            )  # fmt: skip
            passed = ResultBody.model_validate({**body, **said, "written_at": utc_now()})
            store.append([opened])
            store.append([passed])
            time.sleep(1 / plates_per_s)


@contextmanager
def datasette(database: Path) -> Iterator[Callable[[str], int]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "datasette", "serve", str(database), "--port", str(port)),
            *("--setting", "sql_time_limit_ms", "60000"),
            *("--setting", "max_returned_rows", "1000000"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}/{database.stem}.json?_shape=array&sql="

    def ask(sql: str) -> int:
        with urllib.request.urlopen(base + urllib.parse.quote(sql), timeout=60) as answer:
            return len(json.load(answer))

    try:
        _wait_for(lambda: ask("select 1") == 1)
        yield ask
    finally:
        process.terminate()
        process.wait()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def duckdb_of(database: Path, folder: Path) -> Callable[[str], int]:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, duck = sqlite3.connect(f"file:{database}?mode=ro", uri=True), duckdb.connect()
    for table in (PLATE, DEFECT, HOURLY):
        names = [column.name for column in table.columns]
        rows = source.execute(f"SELECT {', '.join(names)} FROM {table.name}").fetchall()
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        if "is_audit_sample" in columns:
            columns["is_audit_sample"] = [bool(value) for value in columns["is_audit_sample"]]
        path = folder / f"{table.name}.parquet"
        pq.write_table(pa.table(columns), path)
        duck.execute(f"CREATE VIEW {table.name} AS SELECT * FROM '{path}'")
    source.close()
    return lambda sql: len(duck.execute(sql).fetchall())


@dataclass(frozen=True, slots=True)
class Others:
    """Each takes a select and says how many rows it gave."""

    datasette: Callable[[str], int]
    duckdb: Callable[[str], int]


# --- the table ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal", type=Path)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--others", type=int, default=40, help="times for datasette and DuckDB")
    parser.add_argument("--plates-per-s", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.journal, options.write)
    with Reader(options.journal) as reader, tempfile.TemporaryDirectory() as name:
        known = known_of(reader)
        plates = reader.ask(text("SELECT count(*) FROM plate"), 600.0)[0][0]
        if not options.json:
            print(f"{processor_name()}, {os.cpu_count()} cores, {plates} plates; ms p50 / p99")
            ways = "".join(f"{way:>17}" for way in WAYS)
            print(f"{'question':30}{'rows':>7}{ways}", flush=True)
        running = line_that_runs(options.journal, options.plates_per_s)
        with running, datasette(options.journal / DATABASE) as served:
            others = Others(served, duckdb_of(options.journal / DATABASE, Path(name)))
            for question, make in questions(known).items():
                say(question, timed(reader, others, make, options), options.json)


def timed(reader: Reader, others: Others, make: Make, options: Any) -> dict[str, Any]:
    """p50 and p99 in ms of each way, in turns."""
    bare = sqlite3.connect(f"file:{reader.path}?mode=ro", uri=True)
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    rng, rows = random.Random(11), []
    for number in range(options.times):
        wanted = make(rng)
        statement = as_select(reader, wanted)
        sql = sql_of(statement, sqlite_dialect.dialect())
        ways: dict[str, Callable[[], int]] = {
            "vqi": lambda wanted=wanted: ours(reader, wanted),
            "sqlite3": lambda sql=sql: len(bare.execute(sql).fetchall()),
        }
        if number < options.others:
            duck_sql = sql_of(statement, postgresql.dialect())
            ways["datasette"] = lambda sql=sql: others.datasette(sql)
            ways["DuckDB"] = lambda sql=duck_sql: others.duckdb(sql)
        for way, do in ways.items():
            began = time.perf_counter()
            found = do()
            took[way].append(1e3 * (time.perf_counter() - began))
            if way == "vqi":
                rows.append(found)
    bare.close()
    figures = {way: np.percentile(times, [50, 99]).round(2).tolist() for way, times in took.items()}
    return {"rows": int(np.median(rows)), **figures}


def say(name: str, found: dict[str, Any], is_json: bool) -> None:
    if is_json:
        print(json.dumps({"question": name, **found}), flush=True)
        return
    cells = "".join(f"{found[way][0]:>9.2f} /{found[way][1]:>6.1f}" for way in WAYS)
    print(f"{name:30}{found['rows']:>7}{cells}", flush=True)


if __name__ == "__main__":
    main()
