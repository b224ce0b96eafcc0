"""The commands that ask for rates, charts and pictures: tables for people, rows for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from test_audit import Line
from test_qms import opened, result
from typer.testing import CliRunner

from station.cli.log import app
from station.qms import Store
from station.record import Body, Provenance, ReviewBody, Verdict, result_id

PRODUCTION = Provenance.PRODUCTION


def defect(x_mm: float, y_mm: float, size_mm: float | None = 4.0) -> dict[str, Any]:
    return {
        "x_px": 0, "y_px": 0, "w_px": 9, "h_px": 9, "x_mm": x_mm, "y_mm": y_mm, "w_mm": size_mm,
        "h_mm": size_mm, "score": 0.9,
    }  # fmt: skip


def review(number: int, verdict: Verdict, who: str = "ada") -> ReviewBody:
    return ReviewBody(
        station_id="s", result_id=result_id("s", number), verdict=verdict, reviewer=who, reason="-"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days: 40 plates that passed, 8 that failed, 2 undecided; every fourth passed one is drawn
    and all but two of these are judged."""
    rows: list[Body] = []
    for number in range(1, 51):
        day = 1 + number // 26
        verdict = Verdict.FAIL if number > 42 else Verdict.PASS
        verdict = Verdict.UNDECIDED if number in (41, 42) else verdict
        rows += [
            opened(number),
            result(
                number,
                verdict,
                written_at=f"2026-02-0{day}T{8 + number % 5:02d}:00:00.000000Z",
                reason="skewed" if verdict is Verdict.UNDECIDED else None,
                provenance=PRODUCTION,
                part_id=f"P{number % 45}",
                lot="A",
                is_audit_sample=number % 4 == 0 and verdict is Verdict.PASS,
                defects=[defect(10, 10), defect(200, 90, None)] if number > 42 else [],
            ),
        ]
    rows += [review(n, Verdict.PASS) for n in range(12, 41, 4)][:7]
    rows += [review(8, Verdict.FAIL), review(43, Verdict.PASS, "bob")]
    rows += [review(n, Verdict.FAIL) for n in range(44, 51)]
    folder = tmp_path_factory.mktemp("asked")
    with Store(folder) as store:
        store.append(rows)
    return folder


def asked(folder: Path, *arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments, "--journal", str(folder)])
    assert done.exit_code == status, done.output
    return done.stdout


def rows(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asked(folder, *arguments, "--json").splitlines()]


def test_pareto_of_reasons_and_of_defects(folder: Path) -> None:
    assert [(row["name"], row["count"]) for row in rows(folder, "pareto")] == [
        ("defects", 8),
        ("skewed", 2),
    ]
    assert [(r["name"], r["count"]) for r in rows(folder, "pareto", "--of", "kind")] == [
        ("not named", 16)
    ]
    found = rows(folder, "pareto", "--of", "size", "--place", "0,0,50,50")
    assert [(r["name"], r["count"], r["cumulative"]) for r in found] == [("2-5 mm", 8, 1.0)]
    assert {row["name"] for row in rows(folder, "pareto", "--of", "zone")} == {
        "leading left",
        "trailing right",
    }


def test_charts_have_a_point_an_hour_or_a_day(folder: Path) -> None:
    points = rows(folder, "chart", "p", "--by", "day")
    assert [(p["label"], p["size"], p["count"]) for p in points] == [
        ("2026-02-01", 25, 0),
        ("2026-02-02", 23, 8),
    ]
    assert points[1]["low"] <= 8 / 48 <= points[1]["high"]
    assert sum(point["count"] for point in rows(folder, "chart", "u")) == 16
    table = asked(folder, "chart", "p", "--by", "day")
    assert table.startswith("label")
    assert "limits exact" in table
    assert "false alarms per 1,000 points in control" in table


def test_yield_is_that_of_the_first_pass(folder: Path) -> None:
    (row,) = rows(folder, "yield", "--serial", "P3")
    # Where the writer numbers attempts, the second plate of a serial is no first pass.
    assert (row["plates"], row["attempt"]) in ((1, 1), (2, None))
    row = rows(folder, "yield")[-1]
    assert row["plates"] in (45, 50)
    assert row["yield_low"] < row["yield"] < row["yield_high"]


def test_quality_is_told_by_recipe_with_its_intervals(folder: Path) -> None:
    (row,) = rows(folder, "quality")
    assert (row["passed"], row["failed"], row["undecided"]) == (40, 8, 2)
    assert (row["audited"], row["audited_defective"], row["audit_open"]) == (8, 1, 2)
    assert (row["reviewed_fails"], row["confirmed_fails"]) == (8, 7)
    assert row["outgoing_defect_rate"] == pytest.approx(1 / 8)
    assert row["overruled_share"] == pytest.approx(1 / 8)
    assert row["escape_rate"] == pytest.approx(5 / 12)
    assert row["escape_rate_low"] < 5 / 12 < row["escape_rate_high"]
    assert "outgoing_defect_rate   0.125  (0.00315972 to " in asked(folder, "quality")


def test_the_heat_map_is_a_picture_and_its_figures(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    found = rows(folder, "heat-map", "--out", str(picture))
    assert found == [
        {"x_mm": 10.0, "y_mm": 10.0, "defects": 8},
        {"x_mm": 200.0, "y_mm": 90.0, "defects": 8},
    ]
    image = cv2.imread(str(picture))
    assert image is not None
    assert image.shape[1] > image.shape[0] > 200
    asked(folder, "heat-map", "--out", str(tmp_path / "none" / "map.png"), status=1)


def test_the_open_samples_ask_for_a_person(folder: Path) -> None:
    assert [row["result_id"] for row in rows(folder, "audit", "list")] == [
        result_id("s", 4),
        result_id("s", 40),
    ]
    with Store(folder) as store:
        store.append([review(4, Verdict.PASS)])
    assert len(rows(folder, "audit", "list")) == 1


def test_plates_drawn_at_different_rates_are_never_pooled(tmp_path: Path) -> None:
    """The same recipe and version, of which somebody changed the rate: a row for each."""
    line = Line(tmp_path, share=0.5)
    for share, times in ((0.5, 40), (0.1, 60), (0.5, 20)):
        line.share = share
        line.start()
        line.plates(times)
        line.stop()
        line.write()
    found = rows(tmp_path, "quality")
    assert {row["audit_share"]: row["passed"] for row in found} == {0.1: 60, 0.5: 60}
    (checked,) = rows(tmp_path, "audit", "check")
    assert (checked["ok"], checked["checked"]) == (True, 120)


def test_show_takes_a_result_or_a_choice(folder: Path) -> None:
    by_id = rows(folder, "show", result_id("s", 43))
    assert [row["kind"] for row in by_id] == ["result", "opened", "review"]
    assert rows(folder, "show", "--serial", "P43") == by_id
    asked(folder, "show", status=2)
    asked(folder, "show", "--serial", "nobody", status=1)


def test_a_list_goes_on_where_it_ended(folder: Path) -> None:
    whole = rows(folder, "list", "--verdict", "pass", "--limit", "1000")
    first = rows(folder, "list", "--verdict", "pass", "--limit", "15")
    rest = rows(folder, "list", "--verdict", "pass", "--after", str(first[-1]["seq"]))
    assert first + rest == whole
    assert len(whole) == 40
    asked(folder, "list", "--after", "999999", status=1)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--place", "1,2,3", "no rectangle"),
        ("--place", "9,0,1,5", "no rectangle"),
        ("--place", "nan,0,1,5", "no rectangle"),
        ("--recipe", "r:x", "demo-lgp:2"),
        ("--attempt", "0", "greater than"),
    ],
)
def test_a_choice_that_cannot_be_is_a_mistake_of_usage(
    folder: Path, option: str, value: str, said: str
) -> None:
    done = CliRunner().invoke(app, ["list", option, value, "--journal", str(folder)])
    assert done.exit_code == 2
    assert said in done.output


def test_nothing_found_is_an_answer(folder: Path) -> None:
    for command in (["pareto"], ["chart", "u"], ["yield"], ["heat-map"], ["quality"]):
        assert rows(folder, *command, "--recipe", "never") == []
        assert "no such plates" in asked(folder, *command, "--recipe", "never")


def test_an_export_holds_the_plates_that_a_list_shows(folder: Path) -> None:
    for options in (
        ["--reason", "skewed"],
        ["--reviewer", "bob"],
        ["--min-size-mm", "3", "--place", "0,0,50,50"],
        ["--attempt", "1", "--provenance", "production", "--recipe", "r:1"],
    ):
        listed = [row["result_id"] for row in rows(folder, "list", *options, "--limit", "1000")]
        exported = [json.loads(line) for line in asked(folder, "export", "--format", "jsonl",
                    *options).splitlines()]  # fmt: skip
        assert sorted(row["result_id"] for row in exported) == sorted(listed)
        assert listed
