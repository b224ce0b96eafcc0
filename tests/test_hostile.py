"""Hostile text: at each ingress it is stored exactly or refused with one line that says why, and
whatever lies in the log is harmless in everything that shows it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import secrets
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile_texts import ALL, HOSTILE
from station_rig import Rig, vqi
from test_doctor import QUICK, members
from test_journal import connect, start
from test_qms import result
from typer.testing import CliRunner

from station.cli import log as log_commands
from station.doctor import Wanted, examine
from station.journal_client import JournalClient
from station.log_lines import line_formatter
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import Store
from station.record import AttentionBody, HoldBody, ReviewBody, Verdict, result_id
from station.visible import visible

Json = dict[str, Any]
PLATE = result_id("test-1", 1)
ONE_OF_EACH = [(kind, texts[0]) for kind, texts in HOSTILE.items()]
SOME = range(1, 90, 4)
"""Numbers of plates."""
STORABLE = [text for text in ALL if not any(0xD800 <= ord(letter) < 0xE000 for letter in text)]


def is_plain(text: str) -> bool:
    """Nothing in it that a terminal obeys, hides or turns round."""
    return all(unicodedata.category(one)[0] != "C" for one in text.replace("\n", ""))


# --- ingress ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("hostile"))
    rig.write()
    process = start(rig)
    with contextlib.closing(connect(rig)) as client:
        client.submit([result(1, Verdict.FAIL, station_id="test-1", result_id=PLATE)])
    yield rig
    process.kill()
    process.wait()


@pytest.fixture
def client(rig: Rig) -> Iterator[JournalClient]:
    with contextlib.closing(connect(rig)) as client:
        yield client


def last(rig: Rig, kind: str) -> Json:
    rows = rig.rows(kind)
    return rows[-1] if rows else {}


def review_of(rig: Rig, **said: str) -> Json:
    with Reader(rig.journal) as reader:
        seq = max(row["seq"] for row in reader.of_result(PLATE))
    sent = {"verdict": "FAIL", "reviewer": "ada", "reason": "other", "nonce": secrets.token_hex(8)}
    plain = ReviewBody.model_validate(
        {"station_id": "test-1", "result_id": PLATE, "supersedes": seq, **sent}
    )
    return {**plain.as_json(), **said}


def hold_of(rig: Rig, **said: str) -> Json:
    hold_id = f"hold-{secrets.token_hex(4)}"
    plain = HoldBody(station_id="test-1", hold_id=hold_id, part_id="SN", who="kim", why="claim")
    return {**plain.as_json(), **said}


def submit_raw(client: JournalClient, row: Json) -> Json:
    """What any program may send that reaches the journal process's socket."""

    class Raw:
        def as_json(self) -> Json:
            return row

    return client.submit([Raw()])  # type: ignore[list-item]


FIELDS: list[tuple[Callable[..., Json], str]] = [
    (review_of, "reviewer"),
    (review_of, "note"),
    (review_of, "reason"),
    (review_of, "disposition"),
    (review_of, "result_id"),
    (review_of, "nonce"),
    (hold_of, "who"),
    (hold_of, "why"),
    (hold_of, "part_id"),
    (hold_of, "lot"),
    (hold_of, "hold_id"),
]


@pytest.mark.parametrize(("row_of", "field"), FIELDS)
def test_the_journal_stores_exactly_or_refuses(
    rig: Rig, client: JournalClient, row_of: Callable[..., Json], field: str
) -> None:
    texts = ALL if field in ("note", "why") else [texts[0] for texts in HOSTILE.values()]
    stored = 0
    with Reader(rig.journal) as reader:
        for text in texts:
            before = reader.last_seq()
            answer = submit_raw(client, row_of(rig, **{field: text}))
            added = [json.loads(row.body) for row in reader.rows(before + 1)]
            assert len(added) == answer["ok"], (text, answer)
            if answer["ok"]:
                assert added[0].get(field, "") == text
                stored += 1
            else:
                assert 0 < len(visible(str(answer["error"]))) < 20_000
    if field in ("reviewer", "note", "who", "why"):
        assert 0 < stored < len(texts)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


@pytest.mark.parametrize("field", ["reviewer", "note", "who", "why"])
def test_what_nobody_sees_is_not_taken(rig: Rig, client: JournalClient, field: str) -> None:
    row_of = review_of if field in ("reviewer", "note") else hold_of
    for kind in ("breaks", "control", "unseen", "long", "surrogates"):
        for text in HOSTILE[kind][:3]:
            answer = submit_raw(client, row_of(rig, **{field: text}))
            assert not answer["ok"], (kind, text)
    assert submit_raw(client, row_of(rig, **{field: "as seen, by hand"}))["ok"]


@pytest.mark.parametrize(("kind", "text"), ONE_OF_EACH)
def test_the_command_line_stores_exactly_or_refuses(rig: Rig, kind: str, text: str) -> None:
    config = ["--config", str(rig.folder / "station.toml")]
    plain = ["--verdict", "fail", "--reason", "other"]
    for command, name, field in (
        (["review", PLATE, *plain, "--who=ada", f"--note={text}"], "review", "note"),
        (["hold", "add", "--serial=SN", "--who=kim", f"--why={text}"], "hold", "why"),
        (["hold", "add", f"--serial={text}", "--who=kim", "--why=x"], "hold", "part_id"),
        (["review", text, *plain, "--who=ada"], "review", "result_id"),
    ):
        before = len(rig.rows(name))
        done = CliRunner().invoke(log_commands.app, [*command, *config])
        if isinstance(done.exception, UnicodeEncodeError):  # `main` says so
            assert kind == "surrogates"
            continue
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert is_plain(done.stdout + done.stderr)
        if done.exit_code == 0:
            assert last(rig, name).get(field, "") == text
        else:
            assert done.exit_code in (1, 2)
            assert len(rig.rows(name)) == before


def test_an_argument_that_is_no_text_is_a_usage_error(rig: Rig) -> None:
    done = vqi("log", "show", "SN\udcff1", "--config", str(rig.folder / "station.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "an argument is not UTF-8" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# --- what shows it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A log of a version that took everything."""
    rig = Rig(tmp_path_factory.mktemp("shown"))
    rig.write()
    with Store(rig.journal) as store:
        for number, text in enumerate(STORABLE, start=1):
            plate = result(
                number, Verdict.UNDECIDED, station_id="test-1", part_id=text, lot=text, detail=text
            )
            said = ReviewBody(station_id="test-1", result_id=plate.result_id, verdict=Verdict.FAIL,
                              reviewer=text, reason=text, note=text)  # fmt: skip
            call = AttentionBody(
                station_id="test-1", result_id=None, since_result_id=None, name=text, is_begin=True,
                text=text, measured=1.0, limit=1.0, unit=text)  # fmt: skip
            hold = HoldBody(station_id="test-1", hold_id=f"h-{number}", part_id=text or "SN",
                            who=text or "w", why=text or "y")  # fmt: skip
            store.append([plate, said, call, hold])
    return rig


def log(shown: Rig, *arguments: str) -> str:
    done = CliRunner().invoke(log_commands.app, [*arguments, "--journal", str(shown.journal)])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_terminal_gets_nothing_that_it_obeys(shown: Rig) -> None:
    for command in (["list", "--limit=1000"], ["attentions"], ["hold", "list"], ["reviews"]):
        said = log(shown, *command)
        assert is_plain(said), command
        assert len(said.splitlines()) == len(STORABLE), command
    for number in SOME:
        assert is_plain(log(shown, "show", result_id("s", number)))


def test_json_says_exactly_what_is_in_the_log(shown: Rig) -> None:
    listed = [
        json.loads(line) for line in log(shown, "list", "--json", "--limit=1000").splitlines()
    ]
    assert [row["part_id"] for row in reversed(listed)] == STORABLE
    assert [row["review"].get("note", "") for row in reversed(listed)] == STORABLE
    for number in SOME:
        text = STORABLE[number - 1]
        said = log(shown, "show", "--json", result_id("s", number)).splitlines()
        assert said[0].isascii()
        assert json.loads(said[0])["detail"] == text
        if "\0" in text:  # SQLite ends a text there; no serial that is taken has one
            continue
        found = log(shown, "list", "--json", f"--serial={text}").splitlines()
        assert [json.loads(line)["part_id"] for line in found] == [text]


def test_csv_keeps_its_rows_and_runs_nothing(shown: Rig) -> None:
    rows = list(csv.DictReader(io.StringIO(log(shown, "export", "--format", "csv"), newline="")))
    assert len(rows) == len(STORABLE)
    for row in rows:
        assert None not in row
        assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]


def test_jsonl_keeps_its_rows_and_says_exactly(shown: Rig) -> None:
    lines = log(shown, "export", "--format", "jsonl").splitlines()
    assert [json.loads(line)["part_id"] for line in lines] == STORABLE


def test_the_log_still_verifies(shown: Rig) -> None:
    with Reader(shown.journal) as reader:
        assert verify(reader).findings == []
        assert len(list(reader.results(Filter()))) == len(STORABLE)


def test_supports_archive_has_none_of_it(shown: Rig) -> None:
    found = members(examine(str(shown.folder / "station.toml"), Wanted(), QUICK).close())
    whole = b"".join(found.values())
    assert b"\x1b" not in whole
    for row in map(json.loads, found["rows.jsonl"].splitlines()):
        said = {str(row.get(name)) for name in ("part_id", "lot", "reviewer", "who", "why", "note")}
        assert not said.intersection(STORABLE) - {"None", ""}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_line_of_the_programs_log_stays_one_plain_line(is_terminal: bool) -> None:
    formatter = line_formatter("journal", "test-1", is_terminal, is_journal=False)
    for text in ALL:
        record = logging.LogRecord("journal", logging.WARNING, "x", 1, "", None, None)
        record.msg = {"event": "refused", "what": text}
        record.__dict__.update(_logger=None, _name="warning")
        line = formatter.format(record)
        assert is_plain(line)
        assert "\n" not in line
        line.encode(sys.stdout.encoding or "utf-8")
        if not is_terminal and len(text) < 1000:
            assert json.loads(line)["what"] == text
