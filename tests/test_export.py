"""Exports say what the log says, in each format, to the tools that open them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import FORMULAS, STORABLE
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook
from PIL import Image
from test_qms import change, result

from station.export import (
    FORMATS,
    Wish,
    check_export,
    export_to,
    file_sha256,
    manifest_path,
)
from station.export_rows import COLUMNS, ExportError, for_spreadsheet, visible
from station.export_source import Chosen, Source
from station.images import ImageFolder
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, IMAGES, Store, StoreError
from station.record import ResultBody, ReviewBody, Verdict, result_id

Json = dict[str, Any]
DEFECT = {
    "x_px": 1, "y_px": 2, "w_px": 224, "h_px": 224, "x_mm": 3.5, "y_mm": -4.5, "w_mm": 22.4,
    "h_mm": None, "score": 0.75,
}  # fmt: skip
VERDICTS = [Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED]
NUMBER_OF_TEXTS = len(STORABLE)
LATE = "2026-07-01T22:30:00.123456Z"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate for each hostile text, as its serial, its detail, and its reviewer."""
    folder = tmp_path_factory.mktemp("log")
    picture = io.BytesIO()
    Image.new("L", (400, 200), 90).save(picture, "JPEG")
    images = ImageFolder(folder / IMAGES)
    kept = images.write("preview", "jpg", [picture.getvalue()], (400, 200))
    images.make_durable([kept])
    with Store(folder) as store:
        store.append([change("start")])
        store.append([_plate(n, text, kept.body.model_dump()) for n, text in _numbered()])
        store.append([_nan_plate()])
        store.append([_review(n, text) for n, text in _numbered() if n % 3 == 0])
    return folder


def _numbered() -> Iterator[tuple[int, str]]:
    return enumerate(STORABLE, start=1)


def _plate(number: int, text: str, image: Json) -> Any:
    verdict = VERDICTS[number % 3]
    return result(
        number, verdict, part_id=text, detail=text, lot=text, written_at=LATE, images=[image],
        defects=[DEFECT] * (number % 3), tiles=2, frame_ids=[number, number + 2],
        tile_grid="AAAAAMAAAAA=", tile_scores="AACAPgAAAD8=",
    )  # fmt: skip


def _nan_plate() -> Any:
    return result(
        NUMBER_OF_TEXTS + 1, Verdict.UNDECIDED, score=float("nan"), reason="non-finite",
        written_at=LATE, defects=[{**DEFECT, "score": float("nan")}],
    )  # fmt: skip


def _review(number: int, text: str) -> ReviewBody:
    return ReviewBody(
        station_id="s", result_id=result_id("s", number), verdict=Verdict.FAIL, reviewer=text,
        reason=text, written_at=LATE,
    )  # fmt: skip


def exported(log: Path, folder: Path, format_: str, wanted: Chosen | None = None) -> Path:
    path = folder / f"plates.{format_}"
    wish = Wish(format_, wanted or Chosen(), "Europe/Berlin", log / IMAGES)
    with Source(log / DATABASE) as source:
        export_to(source, wish, path)
    return path


def findings(log: Path, path: Path) -> list[str]:
    with Source(log / DATABASE) as source:
        return check_export(source, path)


def csv_rows(path: Path) -> list[Json]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


# --- reviews --------------------------------------------------------------------------------------


@pytest.fixture
def half_judged(tmp_path: Path) -> Path:
    """FAILs: 1 nobody judged; 2 ada holds, and bela alone would let pass; 3 ada alone would let
    pass; 4 ada's review was taken back; 5 two people let pass."""
    four = {"four_eyes": (Verdict.FAIL,)}
    with Store(tmp_path / "half-judged") as store:
        last = store.append([result(n, Verdict.FAIL, written_at=LATE) for n in range(1, 6)])

        def review(number: int, verdict: Verdict, name: str, **more: Any) -> None:
            body = ReviewBody(
                station_id="s", result_id=result_id("s", number), verdict=verdict, reviewer=name,
                reason=f"reason of {name}", note=f"note of {name}", account=f"account of {name}",
                written_at=f"2026-07-02T09:00:00.00000{len(name)}Z",
                nonce=f"nonce-{name}-{last[number - 1]}", supersedes=last[number - 1], **more,
            )  # fmt: skip
            [last[number - 1]] = store.append([body])

        review(2, Verdict.FAIL, "ada", **four)
        review(2, Verdict.PASS, "bela", is_pending=True, **four)
        review(3, Verdict.PASS, "ada", is_pending=True, **four)
        review(4, Verdict.PASS, "ada")
        review(4, Verdict.FAIL, "ada", takes_back=True)
        review(5, Verdict.PASS, "ada", is_pending=True, **four)
        review(5, Verdict.PASS, "bela", **four)
    return tmp_path / "half-judged"


def test_a_review_is_told_whole_or_not_at_all(half_judged: Path, tmp_path: Path) -> None:
    """Nobody's reason, time, note or row stands beside another person's name."""
    rows = csv_rows(exported(half_judged, tmp_path, "csv"))
    names = ("review_verdict", "reviewer", "review_reason", "reviewed_at", "review_pending")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("", "", "", "", "false"),
        ("NotOK", "ada", "reason of ada", "2026-07-02T11:00:00.000003+02:00", "true"),
        ("", "", "", "", "true"),
        ("", "", "", "", "false"),
        ("OK", "ada, bela", "reason of bela", "2026-07-02T11:00:00.000004+02:00", "false"),
    ]
    lines = exported(half_judged, tmp_path, "jsonl").read_text().splitlines()
    reviews = [json.loads(line)["review"] for line in lines]
    names = ("verdict", "reviewer", "reason", "note", "account", "pending")
    ada = ("FAIL", "ada", "reason of ada", "note of ada", "account of ada", True)
    assert [tuple(review.get(name) for name in names) for review in reviews[1:4]] == [
        ada,
        (None, "", None, None, None, True),
        (None, "", None, None, None, False),
    ]
    with Reader(half_judged) as reader:
        assert verify(reader).findings == []
        second = reader.of_result(result_id("s", 2))
    assert reviews[1]["seq"] == second[1]["seq"]
    for format_ in FORMATS:
        assert findings(half_judged, exported(half_judged, tmp_path, format_)) == []


def test_an_export_without_the_column_of_today_is_still_checked(log: Path, tmp_path: Path) -> None:
    path = exported(log, tmp_path, "csv")
    rows = [{k: v for k, v in row.items() if k != "review_pending"} for row in csv_rows(path)]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**manifest, "sha256": file_sha256(path)}))
    assert findings(log, path) == []
    path.write_bytes(path.read_bytes().replace(b'"NotOK"', b'"OK"', 1))
    assert any("verdict is 'OK', in the log 'NotOK'" in one for one in findings(log, path))


# --- the manifest -------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_is_what_the_log_says_also_after_it_went_on(
    log: Path, tmp_path: Path, format_: str
) -> None:
    copy = tmp_path / "log"
    shutil.copytree(log, copy)
    path = exported(copy, tmp_path, format_)
    manifest = json.loads(manifest_path(path).read_text())
    assert (manifest["rows"], manifest["first_seq"]) == (NUMBER_OF_TEXTS + 1, 2)
    with Store(copy) as store:
        store.append([_review(1, "later"), result(NUMBER_OF_TEXTS + 2, written_at=LATE)])
    assert findings(copy, path) == []
    assert sorted(p.name for p in tmp_path.glob("*plates*")) == [
        path.name,
        manifest_path(path).name,
    ]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_changed_cell_is_named(log: Path, tmp_path: Path, format_: str) -> None:
    path = exported(log, tmp_path, format_, Chosen(verdict="FAIL"))
    _turn_into_ok(path, format_)
    found = findings(log, path)
    assert found[0].startswith(f"{path.name}: is not the file that was exported; its sha256 is ")
    expected = f"{path.name}, results row 2 (s-00000004): verdict is 'OK', in the log 'NotOK'"
    assert expected in found


def _turn_into_ok(path: Path, format_: str) -> None:
    """The second row's verdict, by a careful hand."""
    if format_ == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        place = table.schema.get_field_index("verdict")
        verdicts = table.column("verdict").to_pylist()
        verdicts[1] = "OK"
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(verdicts)), path)
    elif format_ == "xlsx":
        book = load_workbook(path)
        sheet = book["results"]
        place = next(c.column for c in sheet[1] if c.value == "verdict")
        sheet.cell(3, place).value = "OK"
        book.save(path)
    else:
        head, second, rest = path.read_bytes().partition(b"s-00000004")
        path.write_bytes(head + second + rest.replace(b"NotOK", b"OK", 1))


@pytest.mark.parametrize("format_", FORMATS)
def test_rows_left_out_and_put_in_are_named(log: Path, tmp_path: Path, format_: str) -> None:
    path = exported(log, tmp_path, format_, Chosen(verdict="FAIL"))
    manifest = json.loads(manifest_path(path).read_text())
    for wanted in (Chosen(verdict="PASS"), Chosen()):
        manifest["filter"] = {"verdict": "PASS"} if wanted.verdict else {}
        manifest_path(path).write_text(json.dumps(manifest))
        assert findings(log, path)


def test_a_log_that_is_shorter_or_another_one_is_told_from_the_exports_own(
    log: Path, tmp_path: Path
) -> None:
    path = exported(log, tmp_path, "csv")
    last = json.loads(manifest_path(path).read_text())["head"]["seq"]
    older = tmp_path / "older"
    with Store(older) as store:
        store.append([result(1)])
    said = f"{path.name}: was made as of row {last}; the log ends with row 1"
    assert findings(older, path) == [f"{said}: it is shorter than its export"]
    with Store(older) as store:
        store.append([result(n) for n in range(2, last + 2)])
    assert findings(older, path) == [
        f"{path.name}: row {last} of this log is not the one that it was made as of"
    ]


def test_what_is_no_export_is_said_in_one_line(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("seq\n")
    assert findings(log, path) == [f"{manifest_path(path)}: No such file or directory"]
    for text in ("", "[]", "{}", '{"format": "exe", "filter": {}, "timezone": null, "head": {}}'):
        manifest_path(path).write_text(text)
        [found] = findings(log, path)
        assert found.startswith(f"{manifest_path(path)}: this is no manifest of an export: ")


def test_a_sheet_that_cannot_hold_it_is_refused_before_it_is_written(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("station.export_xlsx.MOST_ROWS", 10)
    with pytest.raises(ExportError, match=r"results, a sheet holds 9: ask for less with --since"):
        exported(log, tmp_path, "xlsx")
    assert list(tmp_path.iterdir()) == []


def test_more_defects_than_a_sheet_holds_are_refused_too(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect = Chosen(verdict="UNDECIDED")
    with Source(log / DATABASE) as source:
        count = source.count(suspect, source.head().seq)
    monkeypatch.setattr("station.export_xlsx.MOST_ROWS", count + 1)
    with pytest.raises(ExportError, match=rf"sheet defects holds {count} rows at most: ask for "):
        exported(log, tmp_path, "xlsx", suspect)
    assert list(tmp_path.iterdir()) == []


_QUESTIONS: dict[str, Callable[[Source], object]] = {
    "head": lambda source: source.head(),
    "chain_at": lambda source: source.chain_at(9),
    "count": lambda source: source.count(Chosen(), 9),
    "results": lambda source: list(source.results(Chosen(), 9)),
    "body_of": lambda source: source.body_of(9),
    "rows": lambda source: list(source.rows(1, 9)),
    "one": lambda source: source.one("SELECT * FROM row", ()),
    "all": lambda source: source.all("SELECT * FROM row", {}),
}


@pytest.mark.parametrize("name", _QUESTIONS)
def test_a_log_that_cannot_be_read_is_named(log: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / DATABASE
    shutil.copy(log / DATABASE, path)
    with path.open("r+b") as file:
        file.seek(16384)
        file.write(bytes(path.stat().st_size - 16384))
    with Source(path) as source, pytest.raises(StoreError, match=rf"{path}: .*malformed"):
        _QUESTIONS[name](source)


def test_a_page_that_cannot_be_read_is_not_laid_to_the_export(log: Path, tmp_path: Path) -> None:
    path = exported(log, tmp_path, "csv")
    copy = shutil.copytree(log, tmp_path / "log") / DATABASE
    with contextlib.closing(sqlite3.connect(copy)) as raw:
        raw.execute("ALTER TABLE plate RENAME COLUMN seq TO other")
    assert findings(tmp_path / "log", path) == [
        f"{copy}: no such column: seq; see `vqi log verify`"
    ]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_full_disk_leaves_the_export_before_as_it_was(
    log: Path, small_disk: Path, format_: str
) -> None:
    with Source(log / DATABASE) as source:
        before = small_disk / f"plates.{format_}"
        export_to(source, Wish(format_, Chosen(verdict="PASS")), before)
        with contextlib.suppress(OSError), (small_disk / "full").open("wb", buffering=0) as full:
            while True:
                full.write(bytes(2**16))
        with pytest.raises(ExportError, match="No space left on device"):
            export_to(source, Wish(format_, Chosen()), before)
        assert check_export(source, before) == []
    names = {before.name, manifest_path(before).name, "full"}
    assert {path.name for path in small_disk.iterdir()} == names


def _without_tables(raw: sqlite3.Connection) -> None:
    for view in ("results", "defects", "hours"):
        raw.execute(f"DROP VIEW {view}")
    raw.execute("DROP TABLE plate")


def _with_tables_behind(raw: sqlite3.Connection) -> None:
    """As after an older program has written to this program's log."""
    raw.execute("UPDATE derived SET seq = 3")
    raw.execute("DELETE FROM plate WHERE seq > 3")


@pytest.mark.parametrize("make_old", [_without_tables, _with_tables_behind])
def test_a_log_of_an_older_program_is_asked_by_its_rows(
    log: Path, tmp_path: Path, make_old: Callable[[sqlite3.Connection], None]
) -> None:
    old = shutil.copytree(log, tmp_path / "old")
    with contextlib.closing(sqlite3.connect(old / DATABASE)) as raw:
        make_old(raw)
        raw.commit()
    for chosen in (
        Chosen(),
        Chosen(recipe="r", model="m"),
        Chosen(recipe="r", verdict="PASS"),
        Chosen(serial=STORABLE[3]),
        Chosen(lot=STORABLE[3], recipe="r", model="m"),
        Chosen(since="2026-07-01", until="2026-07-02", verdict="FAIL"),
        Chosen(shift="none"),
        Chosen(reason="gap", provenance="simulated", recipe_version=1),
        Chosen(min_size_mm=20, place_mm=(3, -5, 4, -4)),
        Chosen(max_size_mm=20),
        Chosen(rows=(2, 5, 99_999)),
    ):
        found = []
        for folder in (log, old):
            with Source(folder / DATABASE) as source:
                found.append([row["seq"] for row in source.results(chosen, source.head().seq)])
        assert found[0] == found[1]
        assert found[0] or chosen.shift or chosen.max_size_mm


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMULAS)
def test_no_formula_is_left(text: str) -> None:
    kept = for_spreadsheet(text)
    assert kept[0] not in "=+-@\t\r＝＋－＠|%" or kept == text == 'a",=1+1,"'
    if text not in ('a",=1+1,"', "a;=1+1"):
        assert kept.startswith("'")
        assert _taken_back(kept) == visible(text)


def _taken_back(kept: str) -> str:
    """Without one quote at the front and behind each separator, as the manual says."""
    return re.sub(r"(^|[;\t\n])'", r"\1", kept)


_ATTACKS = st.lists(st.sampled_from(["A", "=1+1", "-", "'", '"', ";", "\t", "\n", ",", " ", "1"]))


@given(st.text() | _ATTACKS.map("".join))
def test_what_a_spreadsheet_gets_can_be_told_apart_from_what_it_would_run(text: str) -> None:
    kept, shown = for_spreadsheet(text), visible(text)
    assert _taken_back(kept) == shown
    assert "\r" not in kept
    assert "\x00" not in kept


@pytest.mark.parametrize("separator", [";", "\t", "\n"])
@given(st.lists(st.sampled_from(FORMULAS) | st.text(), max_size=3))
def test_no_formula_begins_behind_another_separator(separator: str, parts: list[str]) -> None:
    """Excel of a country that writes 0,5 splits at `;`, also inside the second quoted value."""
    for cell in re.split(r"[;\t\n]", for_spreadsheet(separator.join(["A", *parts]))):
        assert cell.lstrip(" \"'`")[:1] not in tuple("=+-@|%") or "'" in cell[:1]


def test_every_value_is_quoted(log: Path, tmp_path: Path) -> None:
    text = exported(log, tmp_path, "csv").read_text("utf-8-sig")
    bare = re.sub(r'"(?:[^"]|"")*"', "", text)
    assert set(bare) == {",", "\n"}


@pytest.mark.parametrize(
    ("serial", "kept"),
    [
        ("000123", "'000123"),
        ("123", "123"),
        ("0", "0"),
        ("1234567890123456", "'1234567890123456"),
        ("1E5", "'1E5"),
        ("MAR1", "'MAR1"),
        ("1-2", "'1-2"),
        ("A-17", "A-17"),
        ("LGP 000123", "LGP 000123"),
        ("ab\u202ecd", "ab‹U+202E›cd"),
    ],
)
def test_serials_stay_as_they_are(serial: str, kept: str) -> None:
    assert for_spreadsheet(serial) == kept


def test_times_have_the_offset_of_the_stations_zone(log: Path, tmp_path: Path) -> None:
    rows = csv_rows(exported(log, tmp_path, "csv"))
    assert rows[0]["written_at"] == "2026-07-02T00:30:00.123456+02:00"


# --- the tools that open them -------------------------------------------------------------------


def test_openpyxl_finds_types_filters_widths_and_small_pictures(log: Path, tmp_path: Path) -> None:
    path = exported(log, tmp_path, "xlsx")
    sheet = load_workbook(path)["results"]
    header = [cell.value for cell in sheet[1]]
    first = dict(zip(header, sheet[2], strict=True))
    assert header[1 : 1 + 3] == ["seq", "result_id", "written_at"]
    assert first["written_at"].is_date
    assert first["written_at"].value == datetime(2026, 7, 2, 0, 30, 0, 123000)  # noqa: DTZ001
    assert first["utc_offset"].value == "+02:00"
    assert (first["score"].value, first["is_simulated"].value) == (0.25, True)
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref.endswith(str(NUMBER_OF_TEXTS + 2))
    assert sheet.column_dimensions["C"].width == 24
    # openpyxl's reader has no public list of pictures.
    assert len(sheet._images) == sum(n % 3 != 0 for n, _ in _numbered())
    for row in sheet.iter_rows():
        for cell in row:
            assert cell.data_type != "f"
    serials = [sheet.cell(n + 1, header.index("part_id") + 1) for n, _ in _numbered()]
    assert [cell.value or "" for cell in serials] == [visible(text) for text in STORABLE]
    assert serials[0].quotePrefix


def office(path: Path, to: Path, sheet: int = 1) -> list[list[str]]:
    """All cells as LibreOffice shows them, after it has opened the file."""
    if shutil.which("soffice") is None:
        pytest.skip("no LibreOffice here")
    # Comma, quote, UTF-8; all quoted, cells as shown, formulas not.
    form = f"csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false,false,false,{sheet}"
    # What its dialog finds out by itself: comma, quote, UTF-8.
    given = ["--infilter=CSV:44,34,76,1"] if path.suffix == ".csv" else []
    home = f"-env:UserInstallation=file://{to / 'home'}"
    command = ["soffice", home, "--headless", *given, "--convert-to", form, "--outdir", str(to)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    [made] = [p for p in to.glob("*.csv") if p != path]
    assert done.returncode == 0, done.stderr
    csv.field_size_limit(sys.maxsize)
    with made.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.long
@pytest.mark.parametrize("format_", ["csv", "xlsx"])
def test_libreoffice_shows_what_was_exported_and_runs_nothing(
    log: Path, tmp_path: Path, format_: str
) -> None:
    path = exported(log, tmp_path, format_)
    (tmp_path / "to").mkdir()
    header, *rows = office(path, tmp_path / "to")
    place = header.index("part_id")
    shown = [row[place].replace("\r\n", "\n") for row in rows[:NUMBER_OF_TEXTS]]
    kept = for_spreadsheet if format_ == "csv" else visible
    assert shown == [kept(text) for text in STORABLE]
    assert len(rows) == NUMBER_OF_TEXTS + 1


def test_parquet_has_types_units_and_lists_for_pyarrow_and_duckdb(
    log: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    path = exported(log, tmp_path, "parquet")
    schema = pq.read_schema(path)
    assert str(schema.field("written_at").type) == "timestamp[us, tz=UTC]"
    assert schema.field("skew_deg").metadata[b"unit"] == b"deg"
    assert schema.field("defects").type.value_type.field("x_mm").metadata[b"unit"] == b"mm"
    assert b"chain value of that row" in schema.metadata
    duckdb = pytest.importorskip("duckdb", reason="no DuckDB here")
    found = duckdb.sql(
        f"SELECT part_id, len(defects), tile_scores[2] FROM '{path}' ORDER BY seq LIMIT 2"
    ).fetchall()
    assert found == [(STORABLE[0], 1, 0.5), (STORABLE[1], 2, 0.5)]
    counts = duckdb.sql(f"SELECT verdict, count(*) FROM '{path}' GROUP BY ALL").fetchall()
    assert sum(count for _, count in counts) == NUMBER_OF_TEXTS + 1


def test_jsonl_and_parquet_have_every_serial_as_it_was(log: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    lines = exported(log, tmp_path, "jsonl").read_text().splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line)["part_id"] for line in lines[:-1]] == list(STORABLE)
    assert json.loads(lines[0])["opc"]["PartId"] == {"Id": STORABLE[0]}
    table = pq.read_table(exported(log, tmp_path, "parquet"), columns=["part_id"])
    assert table.column("part_id").to_pylist()[:-1] == list(STORABLE)


def test_every_column_says_something(log: Path, tmp_path: Path) -> None:
    """A name that no body has would stay empty for ever and nobody would see it."""
    with Source(log / DATABASE) as source:
        rows = list(source.results(Chosen(), source.head().seq))
    known = set(ResultBody.model_fields) | set(rows[0]) | {
        "review_verdict", "reviewer", "review_reason", "reviewed_at", "review_pending",
        "defect_count", "first_frame_id", "last_frame_id",
    }  # fmt: skip
    assert {column.name for column in COLUMNS} <= known


def test_a_reader_of_sqlite_alone_agrees(log: Path, tmp_path: Path) -> None:
    """The export against the table itself, by a program that is not ours."""
    rows = csv_rows(exported(log, tmp_path, "csv"))
    with sqlite3.connect(log / DATABASE) as raw:
        found = raw.execute(
            "SELECT seq, chain_sha256 FROM row WHERE kind = 'result' ORDER BY seq"
        ).fetchall()
    raw.close()
    assert [(int(row["seq"]), row["chain_sha256"]) for row in rows] == found
    assert datetime.fromisoformat(rows[0]["written_at"]).astimezone(UTC).hour == 22
