"""A shift's report: its figures are the log's, it needs nothing else, and it prints."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sqlite3
import subprocess
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import STORABLE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from station_rig import Rig, vqi
from test_qms import change, opened, result
from typer.testing import CliRunner

from station.answers import yields
from station.cli.log import app
from station.config import ShiftSettings
from station.export_source import Source
from station.images import ImageFolder
from station.log_reader import Reader
from station.qms import DATABASE, IMAGES, Store
from station.questions import Selection
from station.record import AttentionBody, DowntimeBody, ReviewBody, Verdict, result_id, rfc3339
from station.shift_report import Span, due, report, spans
from station.shifts import shift_of

SHIFTS = ShiftSettings.model_validate(
    {"timezone": "Europe/Berlin", "early": "06:00", "late": "14:00", "night": "22:00"}
)
BEGIN, END = datetime(2026, 7, 1, 4, tzinfo=UTC), datetime(2026, 7, 1, 12, tzinfo=UTC)
SPAN = Span("2026-07-01 early", BEGIN, END)
BAD = "<script>alert(1)</script>"


def at(hour: int, minute: int = 0) -> str:
    return f"2026-07-01T{hour:02}:{minute:02}:00.000000Z"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shift of eight hours with 8 passed, 2 failed (one reviewed), 1 undecided, 1 open plate, and
    a gap, all simulated."""
    folder = tmp_path_factory.mktemp("log")
    picture = io.BytesIO()
    Image.new("L", (400, 200), 90).save(picture, "JPEG")
    images = ImageFolder(folder / IMAGES)
    kept = images.write("preview", "jpg", [picture.getvalue()], (400, 200))
    images.make_durable([kept])
    defect = {"x_px": 1, "y_px": 2, "w_px": 9, "h_px": 9, "x_mm": 3.5, "y_mm": 4.5, "w_mm": 3.0,
              "h_mm": 2.0, "score": 0.9}  # fmt: skip
    failed = {"defects": [defect] * 3, "images": [kept.body.model_dump()], "part_id": BAD}
    with Store(folder) as store:
        store.append([change("start").model_copy(update={"written_at": at(3)})])
        store.append([opened(n).model_copy(update={"written_at": at(5)}) for n in range(1, 13)])
        store.append([result(n, written_at=at(3 + n)) for n in range(1, 9)])
        store.append([result(n, Verdict.FAIL, written_at=at(9), **failed) for n in (9, 10)])
        unsure = {"reason": "unsure", "detail": BAD}
        store.append([result(11, Verdict.UNDECIDED, written_at=at(10), **unsure)])
        store.append([result(21, Verdict.UNDECIDED, written_at=at(10), reason="gap")])
        store.append([result(20, Verdict.FAIL, written_at=at(12))])
        review = ReviewBody(station_id="s", written_at=at(11), result_id=result_id("s", 9),
                            verdict=Verdict.FAIL, reviewer="kim", reason="scratch")  # fmt: skip
        down = DowntimeBody(station_id="s", written_at=at(7), since_at=at(6, 30), until_at=at(7),
                            reason=f"stopped {BAD}", triggers=None)  # fmt: skip
        dirt = AttentionBody(station_id="s", written_at=at(8), result_id=None,
                             since_result_id=None, name="dirt", is_begin=True, text=BAD,
                             measured=0.1, limit=0.02, unit="1")  # fmt: skip
        store.append([review, down, dirt])
    return folder


def page_of(folder: Path, span: Span = SPAN) -> str:
    with Reader(folder) as reader, Source(reader.path) as source:
        return report(reader, source, "s", span)


class _Page(HTMLParser):
    """Elements, attributes and what is read on paper."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def test_its_figures_are_the_logs(log: Path) -> None:
    page = page_of(log)
    big = re.findall(r"<b>(\d+)</b><span>([^<]+)</span>", page)
    assert big == [("11", "plates"), ("8", "PASS"), ("2", "FAIL"), ("1", "UNDECIDED, suspect")]
    assert "72.73% (95 %: 39.03% to 93.98%)" in page  # Clopper-Pearson of 8 in 11
    for what, count in (
        ("Plates without a result", 1),
        ("FAIL or UNDECIDED that nobody has reviewed", 2),
    ):
        assert f"<td>{what}</td><td>{count}</td>" in page
    assert "6 defects on plates that did not pass" in page
    assert "<h2>11 simulated plates</h2>" in page
    assert "These plates were not of production" in page
    assert "<td>Gaps: frames were lost, and what passed then was not seen</td><td>1</td>" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "stopped &lt;script&gt;" in page
    with Source(log / "journal.db") as source:
        head = source.head()
    chain = " ".join(re.findall(".{8}", head.chain_sha256))
    assert f"vqi-anchor s row {head.seq} chain {chain} time " in page


def test_plates_of_production_are_counted_apart_and_as_the_questions_count_them(
    tmp_path: Path,
) -> None:
    made = {"provenance": "production", "is_simulated": False, "written_at": at(5)}
    with Store(tmp_path) as store:
        store.append([result(n, part_id=f"p{n}", **made) for n in range(1, 7)])
        store.append([result(7, Verdict.FAIL, part_id="p7", **made)])
        store.append([result(8, part_id="p7", **made)])
        store.append([result(9, **made), result(10, Verdict.UNDECIDED, reason="gap", **made)])
        store.append([result(n, Verdict.FAIL, written_at=at(6)) for n in range(20, 24)])
    page = page_of(tmp_path)
    big = re.findall(r"<b>(\d+)</b><span>([^<]+)</span>", page)
    assert big == [
        *(("9", "plates"), ("8", "PASS"), ("1", "FAIL"), ("0", "UNDECIDED, suspect")),
        *(("4", "plates"), ("0", "PASS"), ("4", "FAIL"), ("0", "UNDECIDED, suspect")),
    ]
    assert page.count("p-chart") == 2
    told = re.findall(
        r"<td>First-pass yield, recipe r version 1, ([^<]+)</td><td>([^<]+)</td>", page
    )
    selection = Selection(since=at(4), until=at(12))
    with Reader(tmp_path) as reader:
        asked = sorted(yields(reader, selection), key=lambda row: row["provenance"])
    assert [(row["provenance"], row["attempt"], row["plates"]) for row in asked] == [
        ("production", 1, 7), ("production", None, 1), ("simulated", None, 4),
    ]  # fmt: skip
    assert [text.rsplit(", ", 1)[1] for _, text in told] == [
        f"{row['pass']} of {row['plates']}" for row in asked
    ]
    assert told[0] == ("first attempts", "85.71% (95 %: 42.13% to 99.64%), 6 of 7")


def test_a_plate_is_reviewed_once_a_review_holds(tmp_path: Path) -> None:
    """One that waits for a second person, or that was taken back, does not; a gap has none."""

    def review(number: int, verdict: Verdict, **more: Any) -> ReviewBody:
        return ReviewBody(station_id="s", written_at=at(6), result_id=result_id("s", number),
                          verdict=verdict, reviewer="kim", reason="dirt", **more)  # fmt: skip

    with Store(tmp_path) as store:
        numbers = store.append([result(n, Verdict.FAIL, written_at=at(5)) for n in range(1, 5)])
        store.append([result(5, Verdict.UNDECIDED, reason="gap", written_at=at(5))])
        store.append([review(1, Verdict.FAIL)])
        store.append([review(2, Verdict.PASS, is_pending=True, four_eyes=(Verdict.FAIL,))])
        taken = {"supersedes": numbers[2], "nonce": "nonce-of-3a"}
        (first,) = store.append([review(3, Verdict.PASS, **taken)])
        back = {"supersedes": first, "nonce": "nonce-of-3b", "takes_back": True}
        store.append([review(3, Verdict.FAIL, **back)])
    assert "<td>FAIL or UNDECIDED that nobody has reviewed</td><td>3</td>" in page_of(tmp_path)
    with Store(tmp_path) as store:
        store.append([review(n, Verdict.FAIL) for n in (2, 3, 4)])
    assert "<td>FAIL or UNDECIDED that nobody has reviewed</td><td>0</td>" in page_of(tmp_path)


def test_an_empty_shift_has_a_report_too(log: Path) -> None:
    page = page_of(log, Span("x", BEGIN - timedelta(days=9), BEGIN - timedelta(days=8)))
    assert "<b>0</b><span>plates</span>" in page
    assert "unknown (95 %: 0.00% to 100.00%)" in page


_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "b", "span"),
    *("table", "tr", "th", "td", "svg", "text", "rect", "path", "circle", "polyline", "code"),
    *("figure", "img", "figcaption", "bdi", "br"),
}


def test_it_needs_nothing_and_runs_nothing_whatever_was_read(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for n, text in enumerate(STORABLE, start=1):
            changed = change(text[:900]).model_copy(update={"written_at": at(5), "who": text[:900]})
            row = result(n, Verdict.FAIL, part_id=text, detail=text, lot=text, recipe_id=text[:90],
                         written_at=at(5))  # fmt: skip
            store.append([changed, row])
    page = _Page(page_of(tmp_path))
    assert not page.tags - _TAGS
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "href"]
    urls = [value or "" for name, value in page.attributes if name == "src"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08]", page.text)


@pytest.mark.parametrize("day", [date(2026, 3, 28), date(2026, 6, 1), date(2026, 10, 24)])
@given(minutes=st.integers(0, 3 * 24 * 60))
def test_a_time_is_in_the_span_of_its_shift(day: date, minutes: int) -> None:
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(minutes=minutes)
    found = spans(SHIFTS, day - timedelta(days=1), day + timedelta(days=4))
    assert all(a.until == b.since for a, b in pairwise(found))
    [within] = [span for span in found if span.since <= moment < span.until]
    assert within.title == shift_of(SHIFTS, moment)


def test_each_shift_that_ended_is_due_once(tmp_path: Path) -> None:
    now = datetime(2026, 7, 2, 13, tzinfo=UTC)
    first = datetime(2026, 7, 1, 5, tzinfo=UTC)
    wanted = due(SHIFTS, now, tmp_path, first)
    titles = ["2026-07-01 early", "2026-07-01 late", "2026-07-01 night", "2026-07-02 early"]
    assert [span.title for span in wanted] == titles
    (tmp_path / wanted[1].file_name).touch()
    assert [s.title for s in due(SHIFTS, now, tmp_path, first)] == [titles[0], *titles[2:]]
    assert len(due(SHIFTS, now, tmp_path, first - timedelta(days=300))) <= 3 * 7 + 1


_SHIFTS = """
[journal.shifts]
timezone = "Europe/Berlin"
early = "06:00"
late = "14:00"
"""


def test_the_command_writes_one_page_a_shift(log: Path, tmp_path: Path) -> None:
    config = str(Rig(tmp_path, tables=_SHIFTS, journal_folder=log).write())
    out = ("--config", config, "--out", str(tmp_path / "reports"))
    done = vqi("log", "report", "--shift", "2026-07-01 early", *out, "--json")
    assert done.returncode == 0, done.stderr
    [written] = [json.loads(line) for line in done.stdout.splitlines()]
    assert written["title"] == "2026-07-01 early"
    page = Path(written["file"]).read_text()
    assert "<b>11</b><span>plates</span>" in page
    assert "2026-07-01 08:30:00+02:00" in page  # its zone's time
    for arguments, said in (
        (("--shift", "2026-07-01 noon"), "there are '2026-07-01 early', '2026-07-01 late'"),
        (("--shift", "noon"), "write it as '2026-11-26 early'"),
        ((), "name one: --shift"),
    ):
        refused = CliRunner().invoke(app, ["report", *arguments, *out])
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
        assert said in refused.stderr


def test_no_page_is_made_while_the_tables_lack_rows(log: Path, tmp_path: Path) -> None:
    """What is due is left to a later run; who names a shift is told."""
    journal = shutil.copytree(log, tmp_path / "behind")
    with Store(journal) as store:
        store.append([result(30, written_at=rfc3339(datetime.now(UTC) - timedelta(days=2)))])
    config = str(Rig(tmp_path, tables=_SHIFTS, journal_folder=journal).write())
    out = ("--config", config, "--out", str(tmp_path / "reports"))
    with contextlib.closing(sqlite3.connect(journal / DATABASE)) as raw:
        [known] = raw.execute("SELECT seq FROM derived").fetchone()
        raw.execute("UPDATE derived SET seq = seq - 1")
        raw.commit()
        for asked, code in (("--due", 0), ("--shift=2026-07-01 early", 1)):
            done = CliRunner().invoke(app, ["report", asked, *out])
            assert (done.exit_code, done.stdout) == (code, "")
            assert "1 rows are not in the tables yet" in done.stderr
            assert not (tmp_path / "reports").exists()
        raw.execute("UPDATE derived SET seq = ?", (known,))
        raw.commit()
    assert CliRunner().invoke(app, ["report", "--due", *out]).exit_code == 0
    assert list((tmp_path / "reports").glob("report-*.html"))


@pytest.mark.long
def test_it_prints_to_a4(log: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium here")
    page, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(page_of(log))
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
         f"--user-data-dir={tmp_path / 'home'}", f"--print-to-pdf={printed}", page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed.read_bytes())
    assert 1 <= len(boxes) <= 3
    for width_pt, height_pt in boxes:
        assert (round(float(width_pt)), round(float(height_pt))) == (595, 842)
