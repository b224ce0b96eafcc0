"""Checkpoints: what is signed is what the rows say, however it was computed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from station_rig import Rig, wait_until
from test_journal import connect, start
from test_merkle import naive
from test_qms import change, opened, result, review
from typer.testing import CliRunner

from station.checkpoint import (
    TREES,
    CheckpointError,
    checkpoints,
    last_checkpoint,
    make_checkpoint,
    plate_leaves,
    prove_consistency,
    trees_at,
)
from station.cli.log import app
from station.journal_client import JournalClient
from station.log_reader import Reader
from station.log_verify import verify
from station.merkle import CHUNK, inclusion, is_consistent, is_included
from station.qms import DATABASE, Store
from station.record import Body, CheckpointBody, Verdict
from station.signed_note import (
    Checkpoint,
    NoteError,
    SigningKeyError,
    check_signature,
    load_key,
    make_key,
    parsed,
    read_public,
    signed,
)

AT = "2026-06-01T00:00:00.000000Z"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def reference(directory: Path, size: int) -> tuple[bytes, int, bytes, str]:
    """Both heads, the number of results and the chain value, as docs/proof.md defines them."""
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as log:
        rows = log.execute(
            "SELECT seq, kind, body, chain_sha256 FROM row WHERE seq <= ? ORDER BY seq", [size]
        ).fetchall()
    leaves, lists = [], dict[str, bytes]()
    for seq, kind, body, _ in rows:
        leaves.append(sha256(b"\0" + f"{seq} {kind} {sha256(body.encode()).hex()}".encode()))
        name = json.loads(body).get("result_id")
        if name is not None:
            lists[name] = sha256(lists.get(name, sha256(name.encode())) + leaves[-1])
    plates = [sha256(b"\0" + lists[name] + name.encode()) for name in sorted(lists)]
    return naive(leaves), len(plates), naive(plates), rows[-1][3] if rows else "0" * 64


def made(directory: Path, key: Path | None = None) -> CheckpointBody:
    with Reader(directory) as reader:
        return make_checkpoint(reader, "s", AT, load_key(key))


def heads(body: CheckpointBody) -> tuple[bytes, int, bytes, str]:
    said = parsed(body.note)
    return said.root, said.plates, said.plates_root, said.head


ROWS = st.lists(
    st.one_of(
        st.builds(opened, st.integers(1, 30)),
        st.builds(result, st.integers(1, 30), st.sampled_from(Verdict)),
        st.builds(review, st.integers(1, 30), st.sampled_from(Verdict)),
        st.builds(change, st.text(max_size=20)),
    ),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups=st.lists(st.tuples(ROWS, st.sampled_from(["kept", "gone", "garbage", "old"]))))
def test_whatever_was_appended_the_heads_are_those_of_the_definition(
    groups: list[tuple[list[Body], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, old = tmp_path_factory.mktemp("log"), b"{}"
    with Store(directory) as store:
        for rows, trees in groups:
            with contextlib.suppress(Exception):
                store.append(rows)
            {
                "kept": lambda: None,
                "gone": lambda: (directory / TREES).unlink(missing_ok=True),
                "garbage": lambda: (directory / TREES).write_text('{"size": 3'),
                "old": lambda text=old: (directory / TREES).write_bytes(text),
            }[trees]()
            body = made(directory)
            assert heads(body) == reference(directory, body.size)
            old = (directory / TREES).read_bytes()
            store.append([body])
    with Reader(directory) as reader:
        assert verify(reader).findings == []


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over several chunks, with reviews of old plates, plates of an earlier name, and checkpoints
    in between; signed."""
    directory = tmp_path_factory.mktemp("long")
    make_key(directory / "key.pem", directory / "proof.pub")
    key = load_key(directory / "key.pem")
    with Store(directory) as store:
        number = 0
        for count in (CHUNK, 1, CHUNK - 2, 40, 300):
            rows: list[Body] = [change(f"before {number}")]
            for number in range(number + 1, number + count + 1):  # noqa: B020
                rows += [opened(number), result(number)]
            if count == 40:
                other = {"station_id": "a", "result_id": f"a-{number:08d}", "sequence": 10**6}
                rows.append(opened(number).model_copy(update=other))
            rows += [review(n, Verdict.FAIL) for n in {1, number // 2 + 1}]
            store.append(rows)
            with Reader(directory) as reader:
                store.append([make_checkpoint(reader, "s", f"2026-06-01T00:00:{count:02d}Z", key)])
    return directory


def test_a_long_log_has_the_heads_and_proofs_of_the_definition(long_log: Path) -> None:
    with Reader(long_log) as reader:
        found = [body for _, body in checkpoints(reader)]
        for body in found:
            assert heads(body) == reference(long_log, body.size)
        assert verify(reader).findings == []
        new = parsed(found[-1].note)
        for older in (parsed(body.note) for body in found):
            proof = prove_consistency(reader, older, new)
            assert is_consistent(older.size, older.root, new.size, new.root, proof)
            trees = trees_at(reader, older)
            place = trees.place_of(reader, "s-00000002")
            assert place is not None
            path = inclusion(trees.plates_tree(reader), place, older.plates)
            assert len(path) <= older.plates.bit_length() + 1
        assert trees.place_of(reader, "s-10000000") is None
        assert trees.place_of(reader, "") is None
        tree = trees.rows_tree(reader)
        leaf = tree.head(700, 701)
        assert is_included(leaf, 700, new.size, inclusion(tree, 700, new.size), new.root)


def test_a_chunk_of_results_costs_no_more_for_those_after_it(long_log: Path) -> None:
    """In steps of SQLite's machine: the first of several chunks, and the last full one."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with Reader(long_log) as reader:
        (*_, (_, last)) = checkpoints(reader)
        firsts = trees_at(reader, parsed(last.note)).firsts
        raw = reader.query(text("SELECT 1"), {}).connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(count, 10)
        costs = []
        for pair in itertools.pairwise(firsts):
            before = steps
            assert len(list(plate_leaves(reader, *pair, last.size))) == CHUNK
            costs.append(steps - before)
    assert len(costs) > 1
    assert max(costs) < 1.3 * min(costs)


def test_nobody_signs_what_was_changed(long_log: Path, tmp_path: Path) -> None:
    """Neither before the last checkpoint nor after it."""
    directory = tmp_path / "log"
    shutil.copytree(long_log, directory)
    with Store(directory) as store:
        last = store.append([change("new"), change("newer")])[0]
    for seq in (last, 5):
        with contextlib.closing(sqlite3.connect(directory / DATABASE)) as log:
            log.execute("DROP TRIGGER IF EXISTS row_no_update")
            log.execute(
                "UPDATE row SET body = replace(body, '\"written_at\":\"2', "
                "'\"written_at\":\"3'), body_sha256 = ? WHERE seq = ?", ["0" * 64, seq]
            )  # fmt: skip
            log.commit()
        (directory / TREES).unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match="verify"):
            made(directory, long_log / "key.pem")


# --- notes and keys -----------------------------------------------------------------------------


NOTED = Checkpoint("vqi/s", 3, sha256(b"1"), 2, sha256(b"2"), "ab" * 32, AT)


def test_openssl_and_we_agree_on_a_signature(tmp_path: Path) -> None:
    """And on what a note is: text, an empty line, who signed and how (C2SP signed-note)."""
    make_key(tmp_path / "key.pem", tmp_path / "pub.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    note = signed(NOTED, load_key(tmp_path / "key.pem"))
    assert parsed(note) == NOTED
    public = read_public(tmp_path / "pub.pem")
    check_signature(note, public)
    text, signature = note.split("\n\n— vqi/s ")
    data = base64.b64decode(signature)
    assert data[:4] == sha256(b"vqi/s\n\x01" + public)[:4]
    (tmp_path / "text").write_text(text + "\n")
    (tmp_path / "signature").write_bytes(data[4:])
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "pub.pem", "-rawin",
         "-in", tmp_path / "text", "-sigfile", tmp_path / "signature"],
        check=True, capture_output=True,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_changed_bit_of_a_note_is_found(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "note"
    if not folder.exists():
        make_key(folder / "key.pem", folder / "pub.pem")
    note = bytearray(signed(NOTED, load_key(folder / "key.pem")).encode())
    note[place % len(note)] ^= 1 << bit
    with pytest.raises(NoteError):
        check_signature(note.decode(errors="replace"), read_public(folder / "pub.pem"))


def test_no_key_is_ever_overwritten_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    make_key(tmp_path / "key.pem", tmp_path / "pub.pem")
    before = (tmp_path / "key.pem").read_bytes()
    for private, public in (("key.pem", "other.pub"), ("other.pem", "pub.pem")):
        with pytest.raises(SigningKeyError, match="is there already"):
            make_key(tmp_path / private, tmp_path / public)
    assert (tmp_path / "key.pem").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "pub.pem"]
    (tmp_path / "text").write_text("no key")
    for wrong in ("text", "nowhere", "pub.pem"):
        with pytest.raises(SigningKeyError):
            load_key(tmp_path / wrong)


# --- the journal process ------------------------------------------------------------------------


def log(rig: Rig, *arguments: str, status: int = 0) -> Result:
    """`vqi log`."""
    done = CliRunner().invoke(app, [*arguments, "--config", str(rig.folder / "station.toml")])
    assert done.exit_code == status, done.output
    return done


@contextlib.contextmanager
def running(rig: Rig) -> Iterator[JournalClient]:
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20.0)


def submit(client: JournalClient, rows: Sequence[Body]) -> None:
    answer = client.submit(rows)
    assert answer["ok"], answer


def test_a_checkpoint_on_command_is_a_signed_row_and_an_anchor(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors"
    anchors.touch()
    proof = f'[proof]\nkey_file = "{tmp_path}/key.pem"\nanchor_file = "{anchors}"\n'
    rig = Rig(tmp_path, tables=proof)
    rig.write()
    log(rig, "key", "make")
    assert "is there already" in log(rig, "key", "make", status=1).stderr
    with running(rig) as client:
        submit(client, [opened(1), result(1)])
        note = log(rig, "checkpoint").stdout
        check_signature(note, read_public(rig.journal / "proof.pub"))
        said = parsed(note)
        assert client.status()["proof"]["is_signed"]
        forged = client.submit([CheckpointBody(station_id="s", size=1, note=note)])
        assert "journal process alone" in forged["error"]
        shutil.copytree(rig.journal, tmp_path / "yesterday")
        (tmp_path / "old").write_text(note)
        submit(client, [opened(2), result(2)])
        (tmp_path / "new").write_text(log(rig, "checkpoint").stdout)
    with Reader(rig.journal) as reader:
        last = last_checkpoint(reader)
        assert last is not None
        assert last.size > said.size
        assert reader.chain_at(said.size) == said.head
    found = json.loads(log(rig, "verify", "--json").stdout)
    assert (found["ok"], found["anchors"]) == (True, 2), found
    assert any("owner of the log" in text for text in found["notes"])
    between = log(rig, "consistency", str(tmp_path / "old"), str(tmp_path / "new"), "--json")
    assert json.loads(between.stdout)["old"] == said.size
    backwards = log(rig, "consistency", str(tmp_path / "new"), str(tmp_path / "old"), status=1)
    assert "name the older first" in backwards.stderr
    since = ("--since-checkpoint", str(tmp_path / "old"), "--json")
    made = log(rig, "certificate", opened(1).result_id, "--out", str(tmp_path / "out"), *since)
    assert json.loads(made.stdout)["says"].startswith("As of ")
    assert log(rig, "certificate", "--out", str(tmp_path / "out"), status=2)
    log(rig, "backup", "--to", str(tmp_path / "backups"))
    (copy,) = (tmp_path / "backups").glob("*/proof.pub")
    assert copy.read_bytes() == (rig.journal / "proof.pub").read_bytes()
    yesterday = ["--journal", str(tmp_path / "yesterday"), "--anchor", str(anchors)]
    done = CliRunner().invoke(app, ["verify", *yesterday])
    assert done.exit_code == 1
    assert "shorter than an anchor" in done.stdout
    assert f"{anchors} line 2" in done.stdout


def test_without_a_key_checkpoints_are_made_by_themselves_and_said_to_be_unsigned(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, tables="[proof]\nevery_h = 0.0001\n")
    rig.write()
    with running(rig) as client:
        submit(client, [opened(1), result(1)])
        wait_until(lambda: client.status()["proof"]["size"] >= 2, 60.0, "a checkpoint")
        size = client.status()["proof"]["size"]
        submit(client, [opened(2)])
        wait_until(lambda: client.status()["proof"]["size"] > size, 60.0, "another")
        assert client.status()["proof"]["problem"] == ""
        done = log(rig, "checkpoint")
        assert "not signed" in done.stderr
    found = json.loads(log(rig, "verify", "--json").stdout)
    assert found["ok"]
    assert "no checkpoint is signed" in found["notes"]


def test_a_key_or_an_anchor_that_fails_calls_a_person(tmp_path: Path) -> None:
    proof = f'[proof]\nkey_file = "{tmp_path}/gone.pem"\nanchor_file = "{tmp_path}/gone"\n'
    rig = Rig(tmp_path, tables=proof)
    rig.write()
    with running(rig) as client:
        submit(client, [opened(1)])
        assert client.ask("checkpoint")["tried"] == 1
        wait_until(lambda: client.status()["proof"]["tried"] == 1, 60.0, "a checkpoint")
        problem = client.status()["proof"]["problem"]
        assert "gone.pem" in problem
        assert "no anchor" in problem
        assert problem in client.status()["attentions"]
        assert client.status()["proof"]["size"] >= 1, "unsigned, it is made all the same"


def test_what_an_anchor_contradicts_is_not_signed_and_calls_a_person(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors"
    proof = f'[proof]\nkey_file = "{tmp_path}/key.pem"\nanchor_file = "{anchors}"\n'
    rig = Rig(tmp_path, tables=proof)
    rig.write()
    log(rig, "key", "make")
    zeros = "0" * 64
    anchors.write_text(f"vqi-anchor s row 1 chain {zeros} time {AT} key none\n")
    with running(rig) as client:
        submit(client, [opened(1)])
        assert "another log than the anchor's" in log(rig, "checkpoint", status=1).stderr
        status = client.status()
        assert status["proof"]["problem"] in status["attentions"]
        assert status["proof"]["size"] == 0
    assert anchors.read_text().count("vqi-anchor") == 1
    with Reader(rig.journal) as reader:
        assert last_checkpoint(reader) is None


def test_the_credential_is_the_unit_s(tmp_path: Path) -> None:
    make_key(tmp_path / "vqi_log-key.pem", tmp_path / "pub.pem")
    command = ["-c", "from station.signed_note import load_key; print(load_key(None) is not None)"]
    for folder, there in ((tmp_path, "True"), (tmp_path / "none", "False")):
        environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(folder)}
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == there
