"""Logs: lines of JSON for machines, text at a terminal, and nobody waits for a reader."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from station_rig import Json, Rig, children, wait_until

from station.ipc import connect
from station.lamp import LampClient, lamp_path
from station.log_lines import MOST_BYTES
from station.logs import FLOOD_LINES, FLOOD_S, Floods
from station.redaction import REDACTED, redact, redact_text, secrets_in

_LOG = """
import logging, sys
from station.log_lines import get_logger
from station.logs import set_up_logging
set_up_logging("lamp", "line-1")
log = get_logger("station.lamp")
"""


def run(code: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _LOG + code],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30.0,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return str(done.stderr)


def lines(code: str) -> list[Json]:
    return [json.loads(line) for line in run(code).splitlines()]


def test_a_line_says_when_who_what_and_of_which_plate() -> None:
    first, foreign, error, other, uncaught = lines(
        "log.warning('withheld', result_id='line-1-00000007', n=3)\n"
        "logging.getLogger('pymodbus').warning('port %s', 'x')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError:\n"
        "    log.exception('no')\n"
        "    logging.getLogger('f').exception('no')\n"
        "raise ValueError('the end')\n"
    )
    head = {"level": "warning", "process": "lamp", "station_id": "line-1", "event": "withheld"}
    assert head.items() <= first.items()
    assert first["result_id"] == "line-1-00000007"
    assert first["n"] == 3
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-01-01T00:00:00.000000Z")
    assert (foreign["event"], foreign["logger"]) == ("port x", "pymodbus")
    assert "ZeroDivisionError" in error["exception"]
    assert "ZeroDivisionError" in other["exception"]
    assert uncaught["level"] == "critical"
    assert uncaught["exception"].endswith("ValueError: the end")


def test_a_line_is_whole_json_whatever_it_is_told() -> None:
    found = run(
        "log.warning('long ' * 2000, a='\\x1b]0;x\\n{\"' * 900, b=[b'\\xff'] * 9000, c=object())\n"
        "log.warning('many', **{f'k{i}': 'v' * 99 for i in range(200)})\n"
        "log.warning('\\ud800 surrogate')\n"
    ).splitlines()
    assert len(found) == 3
    for line in found:
        assert len(line) < MOST_BYTES
        assert json.loads(line)["level"] == "warning"


def test_a_flood_is_counted() -> None:
    found = lines("for n in range(1000): log.warning('flood', n=n)\nlog.error('other')\n")
    assert [line["n"] for line in found if line["event"] == "flood"] == list(range(FLOOD_LINES))
    assert found[-2]["event"] == "other"
    assert found[-1]["of"] == "station.lamp: flood"
    assert found[-1]["left_out"] == 1000 - FLOOD_LINES


def test_what_many_do_pushes_nobodys_action_out() -> None:
    found = lines(
        "for n in range(100): log.warning('action', who='ada', path='/a')\n"
        "log.warning('action', who='ada', path='/b')\n"
        "log.warning('action', who='bob', path='/a')\n"
        "for n in range(100): log.warning('refused', who='', path=f'/{n}')\n"
        "log.warning('refused', who='bob', path='/c')\n"
    )
    said = [(one.get("who"), one.get("path")) for one in found if "of" not in one]
    assert {("ada", "/b"), ("bob", "/a"), ("bob", "/c")} < set(said)
    assert len(said) == 2 * FLOOD_LINES + 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=400))
def test_every_line_is_written_or_counted(events: list[tuple[str, float]]) -> None:
    floods, written, counted = Floods(), 0, 0
    for event, at in sorted(events, key=lambda item: item[1]):
        left_out = floods.take(event, at)
        written += left_out is not None
        counted += left_out or 0
    counted += sum(floods.over(float("inf")).values())
    assert written + counted == len(events)
    assert written <= 3 * FLOOD_LINES * (30 // FLOOD_S + 1)


def test_a_terminal_gets_text_that_moves_no_cursor() -> None:
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", _LOG + "log.info('fine')\nlog.warning('a\\x1b[2Jb', c='\\n')\n"],
        stderr=theirs,
        timeout=30.0,
        check=True,
    )
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(ours, 4096)
    assert said == b"WARNING lamp: a\\x1b[2Jb c=\\x0a\r\n"
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_journald_reads_the_priority() -> None:
    """As a unit's stderr: a stream socket that $JOURNAL_STREAM names."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run(
            [sys.executable, "-c", _LOG + "log.error('no')\nlog.info('yes')\n"],
            stderr=theirs,
            env=os.environ | stream,
            timeout=30.0,
            check=True,
        )
        first, second = ours.recv(8192).decode().splitlines()
    assert (first[:3], second[:3]) == ("<3>", "<6>")
    assert json.loads(first[3:])["event"] == "no"


def test_no_secret_is_logged() -> None:
    found = run(
        "log.warning('x', password='p4ss', nested={'api_key': 'k3y', 'n': 1},\n"
        "            url='opc.tcp://user:w0rd@host/', text='token=t0ken; fine')\n"
    )
    for secret in ("p4ss", "k3y", "w0rd", "t0ken"):
        assert secret not in found
    assert "fine" in found


@given(st.text(min_size=4, alphabet=st.characters(categories=("L", "N")), max_size=30))
def test_redaction_takes_what_secret_names_hold(secret: str) -> None:
    told = {"broker": {"password": secret, "port": 1883}, "hosts": [f"mqtt://u:{secret}@h"]}
    said = redact(told)
    assert said["broker"] == {"password": REDACTED, "port": 1883}
    assert said["hosts"] == [f"mqtt://{REDACTED}@h"]
    assert secrets_in(told) == {secret}
    for text in (f'password = "{secret}"', f"api_key={secret}", f"token: '{secret}'",
                 f'secret = """\n{secret}\n"""'):  # fmt: skip
        assert secret not in redact_text(text).partition(REDACTED)[2]
        assert REDACTED in redact_text(text)[-len(REDACTED) - 1 :]


@pytest.mark.parametrize(
    "text",
    [
        "prog --password S3cret-9 --port 1",
        "prog --db-token 'S3cret-9' x",
        "mysql -pS3cret-9 db",
        "curl -u kim:S3cret-9 http://host/",
        "smbclient -U kim%S3cret-9 //host/share",
        "Authorization: Bearer S3cret-9",
        "authorization=Basic S3cret-9",
        '{"Authorization": "Bearer S3cret-9"}',
        "sent bearer S3cret-9 to it",
        "https://S3cret-9@host/path",
        "rtsp://u:p@S3cret-9@host/stream",
        "snmp community=S3cret-9",
        "pwd: S3cret-9",
    ],
)
def test_redaction_knows_how_secrets_are_written(text: str) -> None:
    said = redact_text(text)
    assert "S3cret-9" not in said
    assert REDACTED in said


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/path of a@b",
        "no token came within 1 s",
        "-- passes: 3 of 4; --port 1883 -p 4",
        "the bearer of bad news",
        "3 plates passed, -u was not given",
    ],
)
def test_redaction_leaves_what_is_no_secret(text: str) -> None:
    assert redact_text(text) == text


# --- a reader that does not read ----------------------------------------------------------------


@contextmanager
def full_pipe() -> Iterator[int]:
    """The end for writing of a pipe that is full and that nobody reads."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(theirs, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(theirs, b"x" * 512)
    os.set_blocking(theirs, True)
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


def test_lines_that_nobody_takes_are_counted() -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            _LOG + "for n in range(15): log.warning('x', n=n, text='y' * 900)\n"
            "print('full', flush=True)\nsys.stdin.readline()\nlog.warning('last')\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"full\n"
    taken = os.read(ours, 65536).count(b"\n")
    process.stdin.write(b"\n")
    process.stdin.close()
    assert json.loads(os.read(ours, 65536))["lines_lost"] == 15 - taken > 0
    assert process.wait(10.0) == 0
    process.stdout.close()
    os.close(ours)


def start(rig: Rig, stderr: int, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "station.cli", *arguments, "--config", str(rig.write())],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )


def test_the_lamp_goes_on_where_nobody_reads_its_log(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with full_pipe() as stderr:
        process = start(rig, stderr, "serve", "lamp")
        try:
            wait_until(lambda: lamp_path(rig.runtime).exists(), 20.0, "the lamp process")
            for _ in range(50):  # each is a line
                with connect(lamp_path(rig.runtime), 5.0) as channel:
                    channel.send({"op": "nonsense"})
            with LampClient(rig.runtime) as lamp:
                lamp.connect(5.0)
                assert lamp.status()["state"] == "fault"
        finally:
            process.terminate()
        assert process.wait(10.0) == 0


def test_the_station_goes_on_where_nobody_reads_its_log(tmp_path: Path) -> None:
    """Also whoever started it: a killed lamp process is replaced, which is a line of its own; and
    a metrics process that finds its port taken ends nothing."""
    rig = Rig(tmp_path, specimen={"contrast_scale": 3.0}, tables="[metrics]\nport = 9793\n")
    with full_pipe() as stderr, socket.create_server(("127.0.0.1", 9793)):
        process = start(rig, stderr, "run")
        try:
            wait_until(lambda: rig.status().get("plates", 0) > 2, 30.0, "plates")
            lamp = children(process.pid)["lamp"]
            os.kill(lamp, 9)
            wait_until(
                lambda: children(process.pid).get("lamp", lamp) != lamp, 10.0, "another lamp"
            )
            plates = rig.status()["plates"]
            wait_until(lambda: rig.status().get("plates", 0) > plates + 2, 20.0, "more plates")
        finally:
            process.terminate()
        assert process.wait(30.0) == 0


@pytest.fixture(autouse=True)
def _no_station_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQI_STATION_ID", raising=False)
