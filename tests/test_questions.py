"""Questions over the derived tables: each answer against the bodies themselves, on each path."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from test_qms import opened, result

from station.log_reader import Filter, Reader
from station.qms import DATABASE, SNAPSHOT, Store, StoreError
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
from station.record import Body, ReviewBody, Verdict, result_id
from station.snapshot import publish
from station.tables import DEFECT

PLATES = 1200
REASONS = ("gap", "skewed")


def plate(number: int, rng: random.Random) -> Body:
    """One of a plant's many kinds of plates; the clock was once set back by a day."""
    verdict = rng.choices(list(Verdict), (80, 15, 5))[0]
    day, minute = divmod(number * 7, 24 * 60)
    day -= number > 900
    defects = [defect(rng) for _ in range(rng.randint(1, 3))] if verdict is Verdict.FAIL else []
    return result(
        number,
        verdict,
        written_at=f"2026-01-{day + 2:02d}T{minute // 60:02d}:{minute % 60:02d}:00.000000Z",
        reason=rng.choice(REASONS) if verdict is Verdict.UNDECIDED else None,
        part_id=f"P{number // 2}" if number % 3 else None,
        lot=f"L{number // 100}" if number % 5 else None,
        recipe_id="old" if number < 400 else "new",
        recipe_version=1 + number % 2,
        model_id="m1" if number < 700 else "m2",
        provenance=rng.choice(["production", "simulated"]),
        is_audit_sample=rng.random() < 0.1,
        defects=defects,
    )


def defect(rng: random.Random) -> dict[str, float]:
    return {
        "x_px": 0, "y_px": 0, "w_px": 9, "h_px": 9, "x_mm": rng.uniform(0, 360),
        "y_mm": rng.uniform(0, 150), "w_mm": rng.uniform(1, 30), "h_mm": rng.uniform(1, 30),
        "score": 0.9,
    }  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = random.Random(7), tmp_path_factory.mktemp("questions")
    rows: list[Body] = []
    for number in range(1, PLATES + 1):
        rows += [opened(number), plate(number, rng)]
    for number in rng.sample(range(1, PLATES + 1), 200):
        said = rng.choice([Verdict.PASS, Verdict.FAIL])
        rows.append(
            ReviewBody(
                station_id="s", result_id=result_id("s", number), verdict=said,
                reviewer=rng.choice(["ada", "bob"]), reason="seen",
            )
        )  # fmt: skip
    with Store(folder) as store:
        store.append(rows)
    return folder


@pytest.fixture(scope="module")
def bodies(log: Path) -> list[dict[str, Any]]:
    with Reader(log) as reader:
        return list(reader.results(Filter()))


SELECTIONS = [
    Selection(),
    Selection(since="2026-01-03T09:35:00.000000Z", until="2026-01-05T10:05:00.000000Z"),
    Selection(since="2026-01-03T09:00:00.000000Z", until="2026-01-03T11:00:00.000000Z"),
    Selection(since="2026-01-03T09:10:00.000000Z", until="2026-01-03T09:50:00.000000Z"),
    Selection(since="2026-01-05T00:00:00.000000Z"),
    Selection(until="2026-01-02T12:30:00.000000Z"),
    Selection(since="2030-01-01T00:00:00.000000Z"),
    Selection(serial="P17"),
    Selection(lot="L7"),
    Selection(verdict="PASS"),
    Selection(verdict="FAIL", recipe="new"),
    Selection(verdict="UNDECIDED", until="2026-01-04T00:00:00.000000Z"),
    Selection(recipe="old", recipe_version=2),
    Selection(recipe="never"),
    Selection(model="m1", provenance="simulated"),
    Selection(reviewer="ada"),
    Selection(reviewer="ada", verdict="FAIL"),
    Selection(is_audit_sample=True),
    Selection(min_size_mm=20.0),
    Selection(max_size_mm=10.0, model="m2"),
    Selection(place_mm=(0.0, 0.0, 120.0, 50.0), min_size_mm=15.0, verdict="FAIL"),
]


def is_chosen(body: dict[str, Any], wanted: Selection) -> bool:
    """What a selection says, said of a body."""
    review = body["review"] or {}
    plain = {
        "serial": body["part_id"],
        "lot": body.get("lot"),
        "verdict": body["verdict"],
        "recipe": body["recipe_id"],
        "recipe_version": body["recipe_version"],
        "model": body["model_id"],
        "provenance": body["provenance"],
        "reviewer": review.get("reviewer"),
        "is_audit_sample": body["is_audit_sample"],
    }
    given = {name: value for name, value in asdict(wanted).items() if value is not None}
    if any(given.get(name, value) != value for name, value in plain.items()):
        return False
    if not given.get("since", "") <= body["written_at"] < given.get("until", "9"):
        return False
    of_defects = {"min_size_mm", "max_size_mm", "place_mm"} & given.keys()
    return not of_defects or any(is_defect_chosen(one, wanted) for one in body["defects"])


def is_defect_chosen(one: dict[str, float], wanted: Selection) -> bool:
    size = max(one["w_mm"], one["h_mm"])
    left, leading, right, trailing = wanted.place_mm or (-1e9, -1e9, 1e9, 1e9)
    return (
        (wanted.min_size_mm or 0) <= size <= (wanted.max_size_mm or 1e9)
        and left <= one["x_mm"] <= right
        and leading <= one["y_mm"] <= trailing
    )


def pages(questions: Questions, wanted: Selection, limit: int = 100_000) -> list[Any]:
    return [line for page in questions.pages(wanted, limit) for line in page]


@pytest.mark.parametrize("wanted", SELECTIONS, ids=repr)
def test_each_selection_finds_what_the_bodies_say(
    log: Path, bodies: list[dict[str, Any]], wanted: Selection
) -> None:
    chosen = [body for body in bodies if is_chosen(body, wanted)]
    with Reader(log) as reader:
        found = pages(Questions(reader.ask), wanted)
        keys = [(line.written_at, line.seq) for line in found]
        assert keys == sorted(((b["written_at"], b["seq"]) for b in chosen), reverse=True)
        counted = Questions(reader.ask).counts(wanted, "recipe", "verdict", "hour")
    expected = Counter((b["recipe_id"], b["verdict"], b["written_at"][:13]) for b in chosen)
    assert {tuple(row)[:3]: row.plates for row in counted} == expected


@pytest.mark.parametrize("size", [1, 7, 500])
def test_pages_follow_one_another_without_gap_or_repetition(log: Path, size: int) -> None:
    with Reader(log) as reader:
        questions = Questions(reader.ask, page_rows=size)
        wanted = Selection(verdict="FAIL")
        whole = reader.ask(page_select(wanted, 10_000))
        assert pages(questions, wanted) == whole
        assert pages(questions, wanted, limit=10) == whole[:10]
        before = questions.key_of(whole[9].seq)
        rest = [line for page in questions.pages(wanted, 10_000, before) for line in page]
        assert rest == whole[10:]
        assert questions.key_of(10**9) is None


@pytest.mark.parametrize("wanted", SELECTIONS, ids=repr)
def test_defects_are_those_of_the_chosen_plates(
    log: Path, bodies: list[dict[str, Any]], wanted: Selection
) -> None:
    with Reader(log) as reader:
        found = reader.ask(defects_select(wanted, DEFECT.c.x_mm))
    expected = [
        one["x_mm"]
        for body in bodies
        if is_chosen(body, wanted)
        for one in body["defects"]
        if is_defect_chosen(one, wanted)
    ]
    assert sorted(row.x_mm for row in found) == sorted(expected)


def statements(wanted: Selection) -> dict[str, Any]:
    return {
        "page": page_select(wanted, 50),
        "counts": counts_select(wanted, ("verdict", "reason")),
        "defects": defects_select(wanted, DEFECT.c.kind),
        "audit": audit_select(wanted, ("recipe",)),
        "open": open_samples_select(wanted, 50),
        "reviewed": reviewed_select(wanted, ("recipe",)),
    }


def plan(reader: Reader, statement: Any) -> list[str]:
    compiled = statement.compile(
        dialect=sqlite_dialect(paramstyle="named"), compile_kwargs={"literal_binds": True}
    )
    return [row.detail for row in reader.ask(text(f"EXPLAIN QUERY PLAN {compiled}"))]


_WHOLE = re.compile(
    r"SCAN (plate|row)\b(?! USING (COVERING )?INDEX plate_(audit|failing|reviewer))"
)


@pytest.mark.parametrize("wanted", SELECTIONS, ids=repr)
def test_no_question_reads_all_plates(log: Path, wanted: Selection) -> None:
    """Only a page without any condition walks the index of time, as far as the page goes; with one
    that has no index, `narrowed` bounds the walk by the hours in which there are such plates."""
    with Reader(log) as reader:
        bounded = Questions(reader.ask).narrowed(wanted)
        for name, statement in statements(bounded or wanted).items():
            steps = plan(reader, statement)
            if name == "page" and (bounded is None or wanted == Selection()):
                assert steps == ["SCAN plate USING INDEX plate_time"]
                continue
            assert not [step for step in steps if _WHOLE.match(step)], (name, steps)


def test_the_same_selects_are_postgresql(log: Path) -> None:
    for wanted in SELECTIONS:
        for statement in statements(wanted).values():
            assert "SELECT" in str(statement.compile(dialect=postgresql.dialect()))


def test_a_question_has_a_deadline(log: Path) -> None:
    endless = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )
    with Reader(log) as reader:
        with pytest.raises(StoreError, match=r"longer than 0\.05 s.*--since"):
            reader.ask(endless, limit_s=0.05)
        assert reader.ask(select(1)) == [(1,)], "the next question has a deadline of its own"


def test_a_log_of_an_older_program_says_what_to_do(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "old")
    with sqlite3.connect(tmp_path / "old" / "journal.db") as file:
        for view in ("results", "defects"):
            file.execute(f"DROP VIEW {view}")
        file.execute("DROP TABLE plate")
    file.close()
    with Reader(tmp_path / "old") as reader, pytest.raises(StoreError, match="older program"):
        pages(Questions(reader.ask), Selection())


def test_sums_are_the_same_by_any_split(log: Path) -> None:
    """Whole hours and broken ones together, wherever the time is cut."""
    rng = random.Random(3)
    with Reader(log) as reader:
        questions = Questions(reader.ask)
        total = total_of(questions.counts(Selection(), "verdict"))
        for _ in range(20):
            cuts = sorted(
                f"2026-01-0{rng.randint(2, 7)}T{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
                ":00.000000Z"
                for _ in range(3)
            )
            ends: list[str | None] = [None, *cuts, None]
            parts = Counter[str]()
            for since, until in itertools.pairwise(ends):
                parts += total_of(questions.counts(Selection(since, until), "verdict"))
            assert parts == total


def total_of(rows: Sequence[Any]) -> Counter[str]:
    return Counter({row.verdict: row.plates for row in rows})


def test_rows_are_json(log: Path) -> None:
    """What a page gives can be told to a script as it is."""
    with Reader(log) as reader:
        line = pages(Questions(reader.ask), Selection(), 1)[0]
    assert json.loads(json.dumps(dict(line._mapping)))["seq"] == line.seq


def test_the_snapshot_answers_as_the_live_file(log: Path, tmp_path: Path) -> None:
    publish(log / DATABASE, log / SNAPSHOT)
    shutil.copy(log / SNAPSHOT, tmp_path)
    with Reader(log) as live, Reader(tmp_path) as snapshot:
        assert snapshot.source == "snapshot"
        for wanted in SELECTIONS[:6]:
            for statement in statements(wanted).values():
                assert snapshot.ask(statement) == live.ask(statement)


def test_tables_that_lag_are_said_to(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "old")
    with Reader(log) as reader:
        assert reader.lag_note == ""
    with sqlite3.connect(tmp_path / "old" / DATABASE) as file:
        file.execute("UPDATE derived SET seq = seq - 5")
    file.close()
    with Reader(tmp_path / "old") as reader:
        assert reader.lag_note.startswith("5 rows")
