"""Anchors: said where the log's owner cannot unsay them, and read back from there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_maker import LogMaker
from test_qms import change, opened, result
from test_units import UNITS, analyze, needs_systemd, read

from station.anchors import (
    Anchor,
    AnchorError,
    anchor_of,
    anchors_in,
    append,
    check_anchors,
    configured,
    from_journal,
    head_anchor,
    owner_note,
    publish,
    read_file,
    read_journal,
    tell_journal,
)
from station.checkpoint import keys_of
from station.config import ProofSettings
from station.log_reader import Reader
from station.qms import Store
from station.signed_note import parsed

OPTIONAL = UNITS.parent / "anchor"
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
ANCHORS = st.builds(
    Anchor,
    station_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", fullmatch=True),
    seq=st.integers(0, 10**12),
    chain_sha256=HEX,
    at=st.just("2026-06-01T12:00:00.000000Z"),
    key=st.none() | HEX,
)
AN_ANCHOR = Anchor("line-1", 12, "ab" * 32, "2026-06-01T12:00:00.000000Z", "cd" * 32)


def bare(anchor: Anchor) -> tuple[str, int, str, str, str | None]:
    return (anchor.station_id, anchor.seq, anchor.chain_sha256, anchor.at, anchor.key)


@given(given=st.lists(ANCHORS, min_size=1, max_size=5), is_printed=st.booleans())
def test_what_is_written_or_printed_is_read_again(given: list[Anchor], is_printed: bool) -> None:
    """Also typed in from paper, whatever stands around it and however it is broken into lines."""
    texts = [one.printed().replace(" ", "\n ", 7) if is_printed else one.line() for one in given]
    found = anchors_in("<p>early shift\n" + "\n<b>torn vqi-anchor x row\n".join(texts), "paper")
    assert [bare(one) for one in found] == [bare(one) for one in given]
    assert found[0].where == "paper line 2"


def test_what_holds_no_anchor_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, reason in (("empty", "no anchor in it"), ("none", "cannot be read")):
        with pytest.raises(AnchorError, match=reason):
            read_file(tmp_path / name)


def test_journald_gets_fields_that_journalctl_gives_back(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        tell_journal(AN_ANCHOR, tmp_path, tmp_path / "socket")
        data = journald.recv(65536).decode()
    fields = dict(line.split("=", 1) for line in data.splitlines())
    assert (fields["VQI_ROW"], fields["VQI_LOG"]) == ("12", str(tmp_path))
    entry = json.dumps(fields | {"__REALTIME_TIMESTAMP": "1780000000000000"})
    other = json.dumps({"MESSAGE": [1, 2], "MESSAGE_ID": fields["MESSAGE_ID"]})
    (found,) = from_journal([other, entry])
    assert bare(found) == bare(AN_ANCHOR)
    assert found.where.startswith("systemd journal")


@pytest.mark.parametrize(
    ("stderr", "reason"), [("", "group systemd-journal"), ("Bad file", "ended with 1: Bad file")]
)
def test_why_journalctl_gave_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, reason: str
) -> None:
    program = tmp_path / "journalctl"
    program.write_text(f"#!/bin/sh\nprintf '{stderr}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(AnchorError, match=reason):
        read_journal("s", tmp_path)


def test_a_file_is_only_appended_to_and_never_made(tmp_path: Path) -> None:
    path = tmp_path / "anchors"
    settings = ProofSettings(anchor_file=path)
    assert "No such file" in publish(AN_ANCHOR, settings, tmp_path)[0]
    path.write_text("kept\n")
    append(path, AN_ANCHOR)
    assert publish(AN_ANCHOR, settings, tmp_path) == []
    assert path.read_text() == "kept\n" + 2 * f"{AN_ANCHOR.line()}\n"
    (tmp_path / "link").symlink_to(path)
    assert publish(AN_ANCHOR, ProofSettings(anchor_file=tmp_path / "link"), tmp_path)
    anchors, _ = configured(settings, "line-1", tmp_path)
    assert [one.where for one in anchors] == [f"{path} line 2", f"{path} line 3"]


def serve_as_the_unit(listener: socket.socket, path: Path) -> None:
    """One connection, by the unit's own command."""
    command = shlex.split(read(OPTIONAL / "vqianchor@.service")["ExecStart"][0])
    connection, _ = listener.accept()
    with connection, path.open("ab") as file:
        subprocess.run(command, stdin=connection, stdout=file, check=True)


@pytest.mark.parametrize("does_write", [True, False])
def test_the_other_user_appends_what_its_socket_takes(tmp_path: Path, does_write: bool) -> None:
    path = tmp_path / "anchors"
    path.touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        to = path if does_write else tmp_path / "elsewhere"
        thread = threading.Thread(target=serve_as_the_unit, args=(listener, to))
        thread.start()
        settings = ProofSettings(anchor_file=path, anchor_socket=tmp_path / "socket")
        problems = publish(AN_ANCHOR, settings, tmp_path)
        thread.join()
    if does_write:
        assert problems == []
        assert bare(read_file(path)[0]) == bare(AN_ANCHOR)
    else:
        assert "not there" in problems[0]
    with socket.socket(socket.AF_UNIX) as listener:
        assert publish(AN_ANCHOR, settings, tmp_path), "nobody listens any more"


@needs_systemd
def test_systemd_accepts_the_optional_units(tmp_path: Path) -> None:
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(OPTIONAL, tmp_path / "etc/systemd/system")
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy("/usr/bin/head", tmp_path / "usr/bin/head")
    for unit in ("vqianchor.socket", "vqianchor@.service"):
        done = analyze("verify", "--man=no", f"--root={tmp_path}", unit)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_file_of_the_log_s_owner_is_said_to_be_one(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=1, is_signed=False)
    maker.close()
    path = tmp_path / "anchors"
    path.touch()
    assert "who can rewrite both" in owner_note(path, maker.directory)[0]
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
        path.chmod(0o644)
        assert owner_note(path, maker.directory) == []
        path.chmod(0o666)
        assert "anybody" in owner_note(path, maker.directory)[0]


def test_each_way_in_which_a_log_is_not_the_anchor_s_is_named(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=3, is_signed=False)
    maker.live(20)
    body = maker.checkpoint()
    maker.live(10)
    maker.close()
    with Reader(maker.directory) as reader:
        right = [anchor_of(parsed(body.note), None, "kept"), head_anchor(reader, "s", "now")]
        assert check_anchors(reader, right, keys_of(reader)) == []
        seq, chain = right[0].seq, right[0].chain_sha256
        wrong = {
            "shorter than an anchor: the log ends with row": Anchor("s", 10**6, chain, "t"),
            "another log than the anchor's: row": Anchor("s", seq - 1, chain, "t"),
            "another log than the anchor's: this one is of s": Anchor("other", seq, chain, "t"),
            "another key than the anchor's": Anchor("s", seq, chain, "t", "ab" * 32),
        }
        for reason, anchor in wrong.items():
            (finding,) = check_anchors(reader, [*right, anchor], keys_of(reader))
            assert reason in finding


def test_a_station_that_got_another_name_keeps_its_anchors(tmp_path: Path) -> None:
    """Whoever the last row is of, and whatever row was the last before the new name."""
    with Store(tmp_path) as store:
        store.append([opened(1), result(1)])
        with Reader(tmp_path) as reader:
            old = head_anchor(reader, "s", "then")
            as_of_the_same_row = head_anchor(reader, "renamed", "then")
        store.append([change("start").model_copy(update={"station_id": "renamed"}), change("x")])
        store.append([opened(2).model_copy(update={"station_id": "renamed"})])
    with Reader(tmp_path) as reader:
        new = head_anchor(reader, "renamed", "now")
        assert check_anchors(reader, [old, as_of_the_same_row, new], {}) == []
        (finding,) = check_anchors(reader, [replace(new, station_id="other")], {})
        assert "this one is of renamed" in finding
