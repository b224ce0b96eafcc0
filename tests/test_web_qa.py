"""QA's pages: they say what the commands say, and what they give away harms nobody."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from zoneinfo import ZoneInfo

import httpx
import pytest
from hostile_texts import STORABLE
from log_maker import LogMaker
from station_rig import wait_until
from test_cli_questions import defect, review
from test_qms import opened, result
from typer.testing import CliRunner
from web_rig import PageClient, WebRig, web_rig

from station.cli.log import app
from station.config import ShiftSettings
from station.export_rows import for_spreadsheet
from station.export_source import Source
from station.log_reader import Reader
from station.qms import DATABASE, Store
from station.record import Body, Provenance, Verdict, result_id
from station.roles import Person, Role
from station.schema import TRIGGERS
from station.web import qa_proof
from station.web.errors import PageError
from station.web.feed import line_as_heard
from station.web.live import Live
from station.web.qa_choice import Choice, Clock, Range
from station.web.qa_figures import Kept
from station.web.qa_jobs import Job, Jobs, Kind, State, jobs_of, state_folder
from station.web.turns import Turns

Json = dict[str, Any]
SHIFTS = '[journal.shifts]\ntimezone = "Europe/Berlin"\nearly = "06:00"\nlate = "14:00"\n'
PLATES = 50


def rows_of_log() -> list[Body]:
    """Two days: 40 plates that passed, 8 that failed, 2 undecided; every fourth passed one is drawn
    and all but two of these are judged; serials are hostile texts."""
    found: list[Body] = []
    for number in range(1, PLATES + 1):
        verdict = Verdict.FAIL if number > 42 else Verdict.PASS
        verdict = Verdict.UNDECIDED if number in (41, 42) else verdict
        found += [
            opened(number),
            result(
                number,
                verdict,
                written_at=f"2026-02-0{1 + number // 26}T{number // 3:02d}:10:00.{number:06d}Z",
                reason="skewed" if verdict is Verdict.UNDECIDED else None,
                detail=STORABLE[-number] if verdict is Verdict.UNDECIDED else "",
                provenance=Provenance.PRODUCTION,
                part_id=STORABLE[number % len(STORABLE)],
                lot="A" if number % 2 else "B&C=1",
                shift=f"2026-02-0{1 + number // 26} early",
                is_audit_sample=number % 4 == 0 and verdict is Verdict.PASS,
                defects=[defect(10, 10), defect(50, 30, None)] if number > 42 else [],
            ),
        ]
    found += [review(n, Verdict.PASS) for n in range(12, 41, 4)][:7]
    found += [review(8, Verdict.FAIL), review(43, Verdict.PASS, "bob")]
    return [*found, *(review(n, Verdict.FAIL) for n in range(44, 51))]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("qa"), plates=0, tables=SHIFTS) as rig:
        with Store(rig.station.journal) as store:
            store.append(rows_of_log())
        yield rig


@pytest.fixture(scope="module")
def viewer(rig: WebRig) -> PageClient:
    return rig.client()


def got(client: PageClient, address: str) -> Json:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def said(rig: WebRig, *arguments: str, status: int = 0) -> list[Json]:
    """Rows of `vqi log … --json`."""
    config = str(rig.station.folder / "station.toml")
    done = CliRunner().invoke(app, [*arguments, "--config", config, "--json"])
    assert done.exit_code == status, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def without(rows: list[Json], name: str = "plates") -> list[Json]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def seen(rows: list[Json]) -> list[Json]:
    """Without samples that wait to be judged blind, of which a page says less than a command."""
    return [row for row in rows if not row.get("is_blind") and not is_waiting(row)]


def is_waiting(row: Json) -> bool:
    is_drawn = row.get("is_audit_sample") and row.get("verdict") == "PASS"
    return bool(is_drawn) and not row["review"]


# --- the same figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "command", "rows"),
    [
        ("/plates.json?limit=500", "list --limit 500", "rows"),
        ("/pareto.json", "pareto", "rows"),
        ("/pareto.json?of=kind", "pareto --of kind", "rows"),
        ("/pareto.json?of=size", "pareto --of size", "rows"),
        ("/pareto.json?of=zone&lot=A", "pareto --of zone --lot A", "rows"),
        ("/chart.json", "chart p", "points"),
        ("/chart.json?which=u&by=shift", "chart u --by shift", "points"),
        ("/chart.json?by=day&recipe=r%3A1", "chart p --by day --recipe r:1", "points"),
        ("/yield.json", "yield", "rows"),
        ("/map.json?cell_mm=5", "heat-map --cell-mm 5", "rows"),
        ("/quality.json", "quality", "rows"),
        ("/quality.json", "audit list", "samples"),
    ],
)
def test_a_page_says_what_the_command_says(
    rig: WebRig, viewer: PageClient, address: str, command: str, rows: str
) -> None:
    page, expected = got(viewer, address)[rows], said(rig, *command.split())
    if not command.startswith("yield"):  # there, it is a count
        page = without(page)
    assert len(page) == len(expected)
    assert seen(page) == seen(expected)
    assert page
    html = viewer.get(address.replace(".json", "")).text
    assert "</html>" in html


def test_expected_alarms_are_those_that_the_command_says(rig: WebRig, viewer: PageClient) -> None:
    alarms = got(viewer, "/chart/false-alarms.json")["false_alarms_per_1000"]
    config = str(rig.station.folder / "station.toml")
    done = CliRunner().invoke(app, ["chart", "p", "--config", config])
    assert f"{alarms:g} false alarms per 1,000 points" in done.stdout


FILTERS: dict[str, str] = {
    "since": "2026-02-01T05:30",
    "until": "2026-02-02T10:00",
    "serial": STORABLE[7],
    "lot": "B&C=1",
    "shift": "2026-02-01 early",
    "verdict": "FAIL",
    "reason": "skewed",
    "recipe": "r:1",
    "model": "m",
    "reviewer": "bob",
    "attempt": "1",
    "provenance": "production",
    "kind": "scratch",
    "min_size_mm": "3.5",
    "max_size_mm": "4",
    "place": "0,0,20,20",
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_chooses_what_the_option_chooses(
    rig: WebRig, viewer: PageClient, name: str
) -> None:
    query = urlencode({name: FILTERS[name], "limit": 500})
    option = f"--{name.replace('_', '-')}={FILTERS[name]}"
    page = got(viewer, f"/plates.json?{query}")
    assert seen(page["rows"]) == seen(said(rig, "list", option, "--limit", "500"))
    assert page["plates"] == len(page["rows"])


# --- the address is the state ---------------------------------------------------------------------


def test_an_address_can_be_shared(viewer: PageClient) -> None:
    """What a form sends, with its empty fields, has one short address that says the same."""
    empty = dict.fromkeys(("serial", "lot", "reason", "min_size_mm", "since_local"), "")
    sent = {**empty, "verdict": "FAIL", "until_local": "2026-02-02T16:00", "lot": "B&C=1"}
    first = got(viewer, f"/plates.json?{urlencode(sent)}")
    choice = first["asked"]["choice"]
    assert choice == {"until": "2026-02-02T15:00Z", "lot": "B&C=1", "verdict": "FAIL"}
    again = got(viewer, f"/plates.json?{urlencode(choice)}")
    assert again == first
    assert again["rows"]
    html = viewer.get(f"/plates?{urlencode(sent)}").text
    (form,) = [one for tag, one in tags(html) if tag == "form" and "data-canonical" in one]
    assert dict(parse_qsl(urlsplit(form["data-canonical"]).query)) == choice
    (until,) = [one for tag, one in tags(html) if one.get("name") == "until_local"]
    assert until["value"] == "2026-02-02T16:00"


def test_pages_follow_one_another_without_gap_or_repeat(viewer: PageClient) -> None:
    whole = [row["seq"] for row in got(viewer, "/plates.json?limit=500")["rows"]]
    for order, expected in (("newest", whole), ("oldest", whole[::-1])):
        found, address = [], f"/plates?order={order}&limit=7"
        while address:
            page = got(viewer, address.replace("/plates", "/plates.json"))
            found += [row["seq"] for row in page["rows"]]
            address = page["next"]
        assert found == expected


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("/plates?limit=501", "limit"),
        ("/plates?order=score", "order"),
        ("/plates?verdit=FAIL", "verdit"),
        ("/plates?since=yesterday", "since"),
        ("/plates?since_local=2026-02-02T16:00%2B01:00", "since_local"),
        ("/plates?place=9,0,1,5", "place"),
        ("/plates?recipe=r:x", "recipe"),
        ("/plates?min_size_mm=nan", "min_size_mm"),
        ("/chart?by=week", "by"),
        ("/map?cell_mm=0.1", "cell_mm"),
    ],
)
def test_what_cannot_be_asked_is_said(viewer: PageClient, address: str, named: str) -> None:
    answer = viewer.get(address.replace("?", ".json?"))
    assert answer.status_code == 422
    assert named in answer.json()["error"]
    assert viewer.get(address).status_code == 422


def test_bars_points_and_cells_lead_to_their_plates(viewer: PageClient) -> None:
    def plates(address: str) -> int:
        return int(got(viewer, address.replace("/plates", "/plates.json"))["plates"])

    for bar in got(viewer, "/pareto.json")["rows"]:
        assert plates(bar["plates"]) == bar["count"]
    for bar in got(viewer, "/pareto.json?of=zone")["rows"]:
        assert plates(bar["plates"]) == 8
    for by in ("hour", "day", "shift"):
        for point in got(viewer, f"/chart.json?by={by}&lot=A")["points"]:
            assert plates(point["plates"]) == point["count"]
    for cell in got(viewer, "/map.json")["rows"]:
        assert plates(cell["plates"]) == cell["defects"] == 8


# --- times ----------------------------------------------------------------------------------------

_BERLIN = ZoneInfo("Europe/Berlin")


def clock(now: str, with_shifts: bool = True) -> Clock:
    given: Json = {"timezone": "Europe/Berlin", "early": "06:00", "late": "14:00", "night": "22:00"}
    shifts = ShiftSettings(**given) if with_shifts else None
    return Clock(_BERLIN, shifts, datetime.fromisoformat(now))


@pytest.mark.parametrize(
    ("now", "range_", "since", "until"),
    [
        ("2026-03-05T06:30+00:00", Range.THIS_SHIFT, "2026-03-05T05", "2026-03-05T13"),
        ("2026-03-05T06:30+00:00", Range.LAST_SHIFT, "2026-03-04T21", "2026-03-05T05"),
        ("2026-03-05T23:30+00:00", Range.TODAY, "2026-03-05T23", "2026-03-06T23"),
        # Summer time begins: the day has 23 hours, the week before began in winter.
        ("2026-03-29T12:00+00:00", Range.TODAY, "2026-03-28T23", "2026-03-29T22"),
        ("2026-03-29T12:00+00:00", Range.DAYS_7, "2026-03-22T23", "2026-03-29T22"),
        ("2026-03-30T01:00+00:00", Range.THIS_SHIFT, "2026-03-29T20", "2026-03-30T04"),
    ],
)
def test_a_range_is_of_the_station_s_zone(now: str, range_: Range, since: str, until: str) -> None:
    found = Choice(range=range_).span(clock(now))
    assert found == (f"{since}:00:00.000000Z", f"{until}:00:00.000000Z")
    assert Choice(range=range_).canonical(clock(now)) == {"range": range_.value}


def test_picked_times_end_a_range_and_shifts_need_to_be_there() -> None:
    now = clock("2026-03-05T06:30+00:00", with_shifts=False)
    picked = Choice(range=Range.TODAY, since_local="2026-03-01T00:00")
    assert picked.canonical(now) == {"since": "2026-02-28T23:00Z"}
    assert now.ranges() == [Range.TODAY, Range.DAYS_7, Range.DAYS_30]


# --- what is kept of hours that are over ----------------------------------------------------------


def test_what_is_kept_never_lags(tmp_path: Path) -> None:
    """A plate comes late by its label, an hour begins, a defect is named: figures follow."""
    late, number = "2026-02-01T08:00:00.000000Z", PLATES
    with web_rig(tmp_path, plates=0) as rig, Store(rig.station.journal) as store:
        viewer = rig.client()
        store.append(rows_of_log())

        def is_right() -> None:
            page = got(viewer, "/pareto.json?of=kind")["rows"]
            assert without(page) == said(rig, "pareto", "--of", "kind")
            assert got(viewer, "/quality.json")["rows"] == said(rig, "quality")
            assert without(got(viewer, "/map.json")["rows"]) == said(rig, "heat-map")

        is_right()
        for at in (late, "2026-02-02T23:00:00.000000Z"):
            number += 1
            failed = result(number, Verdict.FAIL, written_at=at, defects=[defect(20, 20)])
            store.append([opened(number), failed])
            is_right()
        named = review(50, Verdict.FAIL).model_copy(update={"written_at": late})
        kinds = {"defects": [{"number": 0, "kind": "scratch"}]}
        store.append([type(named).model_validate(named.model_dump() | kinds)])
        is_right()
        assert {row["name"] for row in got(viewer, "/pareto.json?of=kind")["rows"]} == {
            "not named",
            "scratch",
        }


# --- hostile texts --------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attributes}))


def tags(html: str) -> list[tuple[str, dict[str, str]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.found


def test_hostile_serials_are_text_in_every_representation(viewer: PageClient) -> None:
    plain = [tag for tag, _ in tags(viewer.get("/plates?serial=nobody").text)]
    html = viewer.get("/plates?limit=500").text
    known = {*plain, "table", "thead", "tr", "th", "td", "tbody", "bdi", "br", "a", "img"}
    assert {tag for tag, _ in tags(html)} <= known
    assert not any(name.startswith("on") for _, one in tags(html) for name in one)
    for text in STORABLE[::12]:
        filled = viewer.get(f"/plates?{urlencode({'serial': text})}")
        assert filled.status_code == (200 if len(text) <= 200 else 422)
        fields = [one for tag, one in tags(filled.text) if one.get("name") == "serial"]
        # HTML knows one kind of line end; a field of one line has none.
        values = ["".join(field["value"].split()) for field in fields]
        assert values == (["".join(text.split())] if len(text) <= 200 else [])
    assert [row["part_id"] for row in got(viewer, "/plates.json?order=oldest")["rows"]] == [
        STORABLE[number % len(STORABLE)] for number in range(1, PLATES + 1)
    ]


def csv_rows(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    text = answer.content.decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_every_table_is_csv_that_no_spreadsheet_runs(rig: WebRig, viewer: PageClient) -> None:
    for path, rows in (
        ("pareto", "rows"), ("chart", "points"), ("yield", "rows"), ("map", "rows"),
        ("quality", "rows"),
    ):  # fmt: skip
        told = without(got(viewer, f"/{path}.json")[rows], "plates" if path != "yield" else "")
        found = csv_rows(viewer.get(f"/{path}.csv"))
        assert [list(row) for row in found] == [list(row) for row in told]
        for cells, row in zip(found, told, strict=True):
            for name, value in row.items():
                if isinstance(value, float):
                    assert float(cells[name]) == value
    asked = "?" + urlencode({"serial": STORABLE[7]})
    for path, query, rows in (("certificates", asked, "attempts"), ("reports", "", "reports")):
        told = got(viewer, f"/{path}.json{query}")[rows]
        found = csv_rows(viewer.get(f"/{path}.csv{query}"))
        assert found
        assert [list(row) for row in found] == [list(row) for row in told]
        assert f"/{path}.csv" in viewer.get(f"/{path}{query}").text
    samples = csv_rows(viewer.get("/quality/samples.csv"))
    assert [row["part_id"] for row in samples] == [for_spreadsheet(STORABLE[n]) for n in (4, 40)]


@pytest.mark.parametrize("path", ["pareto.svg", "chart.svg", "map.svg", "map.png"])
def test_every_chart_is_a_picture(viewer: PageClient, path: str) -> None:
    answer = viewer.get(f"/{path}")
    assert answer.status_code == 200
    begin = b"<svg xmlns=" if path.endswith("svg") else b"\x89PNG"
    assert answer.content.startswith(begin)
    if path != "map.png" and not path.startswith("map"):
        assert viewer.get(f"/{path}?lot=none").status_code == 404


# --- exports --------------------------------------------------------------------------------------


def exported(rig: WebRig, folder: Path, *options: str) -> bytes:
    """What `vqi log export` writes."""
    path = folder / "by-command"
    config = str(rig.station.folder / "station.toml")
    done = CliRunner().invoke(app, ["export", "--config", config, "--out", str(path), *options])
    assert done.exit_code == 0, done.output
    return path.read_bytes()


def test_a_small_export_is_there_at_once(rig: WebRig, viewer: PageClient, tmp_path: Path) -> None:
    for format_ in ("csv", "jsonl"):
        answer = viewer.get(f"/plates.{format_}?lot=A&verdict=FAIL")
        options = ("--format", format_, "--lot", "A", "--verdict", "FAIL")
        written = exported(rig, tmp_path, *options)
        assert answer.content == written
        assert len(written) > 100


def finished(client: PageClient, address: str, of: Callable[[Json], Json | None]) -> Json:
    found: list[Json] = []

    def is_done() -> bool:
        one = of(got(client, address))
        found[:] = [one] if one else []
        return bool(one) and one is not None and one["state"] != "running"

    wait_until(is_done, 60.0, f"{address} has ended")
    return found[0]


def test_a_large_export_is_the_command_s_file(rig: WebRig, tmp_path: Path) -> None:
    client = rig.client_of(Role.VIEWER, "vera")
    begun = client.send_json("/exports.json", {"filters": "reviewer=ada&lot=A", "format": "csv"})
    assert begun.status_code == 200, begun.text
    made = finished(client, "/exports.json", lambda page: page["exports"][0])
    assert (made["state"], made["who"]) == ("done", "vera")
    content = client.get(made["file"]).content
    assert content == exported(rig, tmp_path, "--format=csv", "--reviewer=ada", "--lot=A")
    path = tmp_path / made["manifest"]["file"]
    path.write_bytes(content)
    path.with_name(path.name + ".manifest.json").write_bytes(
        client.get(f"/exports/{made['id']}/manifest").content
    )
    config = str(rig.station.folder / "station.toml")
    checked = CliRunner().invoke(app, ["verify", "--config", config, "--export", str(path)])
    assert checked.exit_code == 0, checked.output


def test_a_job_can_be_given_up_and_nothing_of_it_stays(rig: WebRig) -> None:
    """While it is made, nobody else's is; what a page's process before left is told apart."""
    vera, other = (rig.client_of(Role.REVIEWER, name) for name in ("vera", "otto"))
    begun = vera.send_json("/exports.json", {"format": "xlsx"}).json()
    refused = other.send_json("/exports.json", {"format": "csv"})
    assert (refused.status_code, refused.json()["key"]) == (409, "qa.runs_already_export")
    assert other.send_json(f"/exports/{begun['id']}/cancel.json", {}).status_code == 403
    assert vera.send_form(f"/exports/{begun['id']}/cancel").status_code == 303
    ended = finished(vera, "/exports.json", lambda page: page["exports"][0])
    jobs = jobs_of(rig.web)
    folder = jobs.folder_of(jobs.get(begun["id"]))
    assert ended["state"] == "cancelled"
    wait_until(lambda: [one.name for one in folder.iterdir()] == ["job.json"], 30.0, "tidied")
    assert vera.get(f"/exports/{begun['id']}/file").status_code == 404
    said = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(said | {"state": "running"}))
    assert Jobs(folder.parent).get(begun["id"]).state is State.INTERRUPTED


def test_what_is_made_lies_where_the_pages_state_does(tmp_path: Path) -> None:
    with web_rig(tmp_path, plates=0, web_lines=f'state_dir = "{tmp_path}/state"') as rig:
        assert state_folder(rig.web) == tmp_path / "state" / "qa"


def test_who_may_have_what_made(rig: WebRig, viewer: PageClient) -> None:
    assert viewer.send_json("/exports.json", {}).status_code == 401
    reviewer = rig.client_of(Role.REVIEWER)
    assert reviewer.send_json("/proof/verify.json", {}).status_code == 403
    assert reviewer.send_json("/exports.json", {"filters": "since=x"}).status_code == 422
    assert reviewer.send_json("/exports.json", {"format": "../x"}).status_code == 422
    for name in ("..", "0" * 16, "%2e%2e%2fjob"):
        assert viewer.get(f"/exports/{name}/file").status_code == 404


# --- proof ----------------------------------------------------------------------------------------


@contextmanager
def signed_log(folder: Path) -> Iterator[tuple[WebRig, LogMaker]]:
    """A page over a log that lives, with signed checkpoints."""
    with web_rig(folder, plates=0, tables=SHIFTS) as rig:
        maker = LogMaker(rig.station.journal, seed=5)
        for _ in range(6):
            maker.plate()
        maker.checkpoint()
        yield rig, maker
        maker.close()


def spoil(journal: Path, seq: int) -> None:
    """As somebody with a database tool."""
    with contextlib.closing(sqlite3.connect(journal / DATABASE)) as log:
        for name in TRIGGERS:
            log.execute(f"DROP TRIGGER {name}")
        log.execute("UPDATE row SET body = replace(body, '\"s\"', '\"t\"') WHERE seq = ?", (seq,))
        log.commit()


def test_a_verification_names_the_first_bad_row(tmp_path: Path) -> None:
    """And says what the command says of the same log."""
    with signed_log(tmp_path) as (rig, _):
        spoil(rig.station.journal, seq=5)
        engineer = rig.client_of(Role.ENGINEER, "eve")
        assert engineer.send_form("/proof/verify", pictures="true").status_code == 303
        wait_until(lambda: not got(engineer, "/proof.json")["running"], 60.0, "verified")
        last = got(engineer, "/proof.json")["last"]
        assert (last["state"], last["who"]) == ("done", "eve"), last
        found = last["result"]
        (expected,) = said(rig, "verify", status=1)
        assert {name: found[name] for name in expected} == expected
        assert (found["ok"], found["first_bad_row"]) == (False, 5)
        assert "The first bad row is 5" in engineer.get("/proof").text
        calls = {call["part"]: call for call in got(engineer, "/index.json")["calls"]}
        assert calls["wrong_log"]["level"] == "attention"
        assert calls["wrong_log"]["count"] == found["findings_in_all"]
        assert 'href="/proof">What was found' in engineer.get("/").text


def test_what_a_verification_found_stands_until_another_comes_to_its_end(tmp_path: Path) -> None:
    with signed_log(tmp_path) as (rig, _):
        jobs = jobs_of(rig.web)
        found = {"ok": True, "rows": 3, "head": "", "findings": [], "findings_in_all": 0}
        found |= dict.fromkeys(("results", "open_plates", "images", "tombstones", "holds"), 0)
        found |= {
            "anchors": 0,
            "notes": [],
            "anchor_states": [{"where": "=file", "anchors": 2, "row": 3, "at": None}],
            "pictures": False,
            "first_bad_row": None,
        }
        with Reader(rig.station.journal) as reader:
            found["head"] = reader.chain_at(3)
        done = Job("0" * 16, Kind.VERIFY, {}, "eve", 1.0, State.DONE, result=found, ended_at=2.0)
        jobs._jobs[done.id] = done
        for number in range(1, 13):
            failed = replace(done, id=f"{number:016x}", state=State.FAILED, begun_at=2.0 + number)
            jobs._jobs[failed.id] = replace(failed, result={}, said="no memory")
        jobs._make_room(Kind.VERIFY)
        page = got(rig.client(), "/proof.json")
        assert page["last"]["id"] == done.id
        assert page["last_problem"]["said"] == "no memory"
        assert page["is_last_of_this_log"] is True
        (anchors,) = csv_rows(rig.client().get("/proof/anchors.csv"))
        assert anchors == {"where": "'=file", "anchors": "2", "row": "3", "at": ""}
        assert 'href="/proof/anchors.csv"' in rig.client().get("/proof").text
        assert "no memory" in rig.client().get("/proof").text
        parts = {call["part"] for call in got(rig.client(), "/index.json")["calls"]}
        assert "wrong_log" not in parts
        jobs._jobs[done.id] = replace(done, result=found | {"head": "0" * 64})
        assert got(rig.client(), "/proof.json")["is_last_of_this_log"] is False
        assert "no longer the one" in rig.client().get("/proof").text


def test_figures_wait_for_their_own_kind_only_and_are_bounded_by_bytes() -> None:
    kept: Kept[bytes] = Kept(most_bytes=3000)
    is_begun, may_end = threading.Event(), threading.Event()

    def slow() -> bytes:
        is_begun.set()
        assert may_end.wait(30.0)
        return b"slow"

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(kept.get, "slow", slow)
        try:
            assert is_begun.wait(30.0)
            with ThreadPoolExecutor(1) as second:
                assert second.submit(kept.get, "quick", lambda: b"quick").result(30.0) == b"quick"
        finally:
            may_end.set()
        assert waiting.result(30.0) == b"slow"
    made = []
    for number in (1, 2, 3, 1, 3):
        kept.get(number, lambda number=number: made.append(number) or bytes(1200))  # type: ignore[misc]
    assert made == [1, 2, 3, 1]


def test_documents_that_wait_leave_threads_for_other_pages(
    rig: WebRig, viewer: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many requests as there are threads, while one document takes long."""
    monkeypatch.setattr(qa_proof._turns, "_patience_s", 60.0)
    address = "/reports/shift?shift=2026-02-01+early"
    with ThreadPoolExecutor(40) as crowd:
        with qa_proof._one_document:
            asked = [crowd.submit(viewer.get, address) for _ in range(40)]
            wait_until(lambda: sum(one.done() for one in asked) == 36, 30.0, "who found no room")
            refused = [one.result() for one in asked if one.done()]
            assert {one.status_code for one in refused} == {503}
            assert {one.headers["retry-after"] for one in refused} == {"5"}
            assert viewer.get("/plates").status_code == 200
        statuses = [one.result(60.0).status_code for one in asked]
    assert (statuses.count(200), statuses.count(503)) == (4, 36)


def test_who_finds_a_turn_taken_waits_where_there_is_room() -> None:
    turns, lock, order = Turns(patience_s=30.0), threading.Lock(), list[int]()

    def take(number: int) -> None:
        with turns.of(lock):
            order.append(number)

    with ThreadPoolExecutor(4) as waiting:
        with lock:
            asked = [waiting.submit(take, number) for number in range(4)]
            wait_until(lambda: turns._room._value == 0, 30.0, "four who wait")
            with pytest.raises(PageError) as refused, turns.of(lock):
                pass
            assert (refused.value.status, refused.value.retry_s) == (503, 5)
        for one in asked:
            one.result(30.0)
    assert sorted(order) == [0, 1, 2, 3]
    with pytest.raises(PageError), lock, Turns(patience_s=0.01).of(lock):
        pass


def test_a_job_whose_process_fails_says_why_and_ends(tmp_path: Path) -> None:
    with signed_log(tmp_path) as (rig, _):
        jobs, eve = jobs_of(rig.web), Person("eve", "Eve", Role.ENGINEER)
        job = jobs.start(Kind.VERIFY, {}, eve)
        wait_until(lambda: jobs.get(job.id).state is not State.RUNNING, 60.0, "an end")
        assert (jobs.get(job.id).state, jobs.get(job.id).said) == (
            State.FAILED,
            "KeyError: 'config'",
        )
        silent = Job("f" * 16, Kind.VERIFY, {}, "eve", 1.0)
        jobs._jobs[silent.id] = silent
        command = [sys.executable, "-c", "print('{')"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            jobs._finish(silent, process)
        assert jobs.get(silent.id).state is State.FAILED
        assert jobs.get(silent.id).said


@pytest.mark.parametrize("deletes", ["shutil.rmtree", "_empty"])
def test_the_line_view_waits_for_no_export_that_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletes: str
) -> None:
    """Gigabytes take their time: of exports that make room, of one that failed."""
    has_begun, goes_on = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        has_begun.set()
        goes_on.wait(60.0)

    with signed_log(tmp_path) as (rig, _), ThreadPoolExecutor(2) as pool:
        jobs = jobs_of(rig.web)
        for number in range(10):
            old = Job(f"{number:016x}", Kind.EXPORT, {}, "eve", float(number), State.DONE)
            jobs._jobs[old.id] = old
        monkeypatch.setattr(f"station.web.qa_jobs.{deletes}", slow)
        eve = Person("eve", "Eve", Role.ENGINEER)
        starting = pool.submit(jobs.start, Kind.EXPORT, {}, eve)
        try:
            assert has_begun.wait(60.0)
            assert pool.submit(line_as_heard, rig.web, Live()).result(10.0).station_id == "s"
            with pytest.raises(PageError, match="runs_already"):
                jobs.start(Kind.EXPORT, {}, eve)
        finally:
            goes_on.set()
        job = starting.result(30.0)
        wait_until(lambda: jobs.get(job.id).state is State.FAILED, 60.0, "an end")


def test_what_a_source_is_asked_ends_with_its_time(tmp_path: Path) -> None:
    with signed_log(tmp_path) as (rig, _), Reader(rig.station.journal) as reader:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        with Source(reader.path, 0.2) as source:
            assert source.one("SELECT 1")[0] == 1
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                source.one(endless + "SELECT count(*) FROM n")


def test_a_printed_head_is_held_against_the_log(tmp_path: Path) -> None:
    with signed_log(tmp_path) as (rig, maker):
        viewer = rig.client()
        page = got(viewer, "/proof.json")
        assert (page["compared"], page["last"]) == (None, None)
        assert page["checkpoints"][0]["key"]
        printed = page["anchor"].replace("vqi-anchor", "vqi-anchor ")
        maker.plate()
        for text, is_right in ((printed, True), (printed.replace("row ", "row 9"), False)):
            compared = got(viewer, f"/proof.json?{urlencode({'printed': text})}")["compared"]
            assert (compared == []) is is_right
        assert got(viewer, "/proof.json?printed=nonsense")["compared"]
        (row,) = csv_rows(viewer.get("/proof/checkpoints.csv"))
        assert row["key"] == page["checkpoints"][0]["key"]


def test_a_certificate_is_the_command_s(tmp_path: Path) -> None:
    with signed_log(tmp_path) as (rig, maker):
        viewer, name = rig.client(), result_id("s", 2)
        answers = [viewer.get(f"/plates/{name}/certificate.{one}") for one in ("json", "html")]
        maker.store.close()
        made = said(rig, "certificate", name, "--out", str(tmp_path / "out"))[0]
        for answer, key in zip(answers, ("file", "page"), strict=True):
            assert answer.content == Path(made[key]).read_bytes()
        policy = answers[1].headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert viewer.get("/plates/none/certificate.json").status_code == 404
        row = got(viewer, "/plates.json?limit=500")["rows"]
        serial = next(one["part_id"] for one in row if one["part_id"])
        attempts = got(viewer, f"/certificates.json?{urlencode({'serial': serial})}")["attempts"]
        assert {one["result_id"] for one in attempts} == {
            one["result_id"] for one in row if one["part_id"] == serial
        }


def test_a_shift_report_is_a_page_of_its_own(rig: WebRig, viewer: PageClient) -> None:
    answer = viewer.get("/reports/shift?shift=2026-02-01+early")
    assert answer.status_code == 200
    assert "Shift report: 2026-02-01 early" in answer.text
    assert "'unsafe" not in answer.headers["content-security-policy"]
    for name in ("2026-02-01 never", "yesterday", "9999-12-31 early"):
        missing = viewer.get(f"/reports/shift?{urlencode({'shift': name})}")
        assert missing.status_code == 404
    reports = got(viewer, "/reports.json")["reports"]
    assert reports[0]["is_running"]
    assert all(one["since"] < one["until"] for one in reports)
