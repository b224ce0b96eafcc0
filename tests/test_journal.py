"""The journal process: what it acknowledges is there, whatever kills it."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from station_rig import Rig, copiers, start_vqi, vqi, wait_until
from test_qms import change, opened, result

from station.ipc import Json, PeerGone
from station.journal_client import JournalClient, journal_path
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import DATABASE, SNAPSHOT, Store
from station.record import Verdict
from station.snapshot import publish


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.write()
    return rig


@pytest.fixture
def process(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    process = start(rig)
    yield process
    process.kill()
    process.wait()


def start(rig: Rig) -> subprocess.Popen[bytes]:
    return start_vqi("serve", "journal", "--config", str(rig.folder / "station.toml"))


def connect(rig: Rig) -> JournalClient:
    client = JournalClient(rig.runtime)
    client.connect(15.0)
    return client


@pytest.fixture
def client(rig: Rig, process: subprocess.Popen[bytes]) -> Iterator[JournalClient]:
    with contextlib.closing(connect(rig)) as client:
        yield client


def plate_memory(rows: int = 120, width: int = 200) -> tuple[int, np.ndarray, Json]:
    """A plate in shared memory, as the station hands it over."""
    descriptor = os.memfd_create("plate")
    os.ftruncate(descriptor, rows * width)
    pixels = np.frombuffer(mmap.mmap(descriptor, rows * width), np.uint8).reshape(rows, width)
    pixels[:] = np.random.default_rng(0).integers(0, 256, (rows, width), np.uint8)
    wanted = {"width": width, "rows": rows, "band_rows": 100, "keep": ["evidence", "preview"]}
    return descriptor, pixels, wanted


def test_a_plate_becomes_a_row_and_pictures_that_match(rig: Rig, client: JournalClient) -> None:
    descriptor, pixels, wanted = plate_memory()
    before = client.submit([opened(1)])["seq"][0]
    answer = client.submit([result(1, Verdict.FAIL)], wanted, descriptor)
    assert answer["ok"], answer
    assert answer["seq"] == [before + 1]
    with Reader(rig.journal) as reader:
        row = next(reader.results(Filter()))
        assert verify(reader).findings == []
    assert row["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert answer["pictures"] == {key: row[key] for key in ("pixels_sha256", "images")}
    assert [image["role"] for image in row["images"]] == ["evidence", "preview"]
    for image in row["images"]:
        data = (rig.journal / "images" / image["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
    (rig.journal / "images" / row["images"][0]["path"]).write_bytes(b"swapped")
    with Reader(rig.journal) as reader:
        assert len(verify(reader).findings) == 1


def incoming(rig: Rig) -> list[Path]:
    return list((rig.journal / "images" / "incoming").iterdir())


def test_pictures_begin_while_the_plate_arrives(rig: Rig, client: JournalClient) -> None:
    descriptor, pixels, wanted = plate_memory(rows=250)
    name = opened(1).result_id
    pixels[120:] = 0  # not there yet, and not looked at
    client.send_arriving(name, wanted | {"rows": 120}, descriptor, is_complete=False)
    client.hello()
    pixels[120:] = 7
    client.send_arriving(name, wanted, descriptor, is_complete=True)
    wait_until(lambda: len(incoming(rig)) == 2, 5.0, "pictures before the result")
    answer = client.submit([result(1, Verdict.FAIL)], wanted, descriptor)
    assert answer["pictures"]["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert incoming(rig) == []
    whole = rig.journal / "images" / answer["pictures"]["images"][0]["path"]
    assert np.array_equal(cv2.imread(str(whole), cv2.IMREAD_UNCHANGED), pixels)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


def test_pictures_without_a_result_go_with_their_client(rig: Rig, client: JournalClient) -> None:
    descriptor, _, wanted = plate_memory()
    for number in range(3):
        client.send_arriving(f"s-{number}", wanted, descriptor, is_complete=True)
    wait_until(lambda: len(incoming(rig)) == 6, 5.0, "pictures")
    client.close()
    wait_until(lambda: incoming(rig) == [], 5.0, "an empty folder")


def test_pictures_begun_in_another_life_are_made_anew(rig: Rig) -> None:
    descriptor, pixels, wanted = plate_memory()
    process = start(rig)
    client = connect(rig)
    client.send_arriving(result(1).result_id, wanted, descriptor, is_complete=True)
    wait_until(lambda: len(incoming(rig)) == 2, 5.0, "pictures")
    process.kill()
    process.wait()
    client.close()
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            answer = client.submit([result(1, Verdict.FAIL)], wanted, descriptor)
        assert answer["pictures"]["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert len(answer["pictures"]["images"]) == 2
        assert len(list((rig.journal / "images" / "quarantine").iterdir())) == 2
    finally:
        process.terminate()
        assert process.wait(20.0) == 0


@pytest.mark.parametrize(
    "wrong", [{"rows": 121}, {"rows": 0}, {"width": 0}, {"band_rows": 0}, {"keep": ["film"]}]
)
def test_pixels_that_are_not_there_are_refused(
    rig: Rig, client: JournalClient, wrong: Json
) -> None:
    descriptor, _, wanted = plate_memory()
    answer = client.submit([result(1)], wanted | wrong, descriptor)
    assert not answer["ok"]
    client.send_arriving("s-2", wanted | wrong, descriptor, is_complete=False)
    with pytest.raises(PeerGone):
        client.hello()
    with contextlib.closing(connect(rig)) as other:
        assert other.submit([result(1)], wanted, descriptor)["ok"]


def test_a_score_that_is_no_number_is_written_like_any_other(
    rig: Rig, client: JournalClient
) -> None:
    nan = float("nan")
    box = {"x_px": 0, "y_px": 0, "w_px": 224, "h_px": 224, "x_mm": 1, "y_mm": 1, "score": nan}
    row = result(1, Verdict.UNDECIDED, reason="non-finite", score=nan, defects=[box])
    answer = client.submit([row])
    assert answer["ok"], answer
    assert client.submit([row])["seq"] == answer["seq"], "sent again, it is the same row"
    with Reader(rig.journal) as reader:
        found = next(reader.results(Filter()))
    assert (found["score"], found["defects"][0]["score"]) == ("NaN", "NaN")


def test_what_was_acknowledged_survives_kills_and_nothing_is_there_twice(rig: Rig) -> None:
    """A client that sends again whatever was not acknowledged, through three kill -9."""
    descriptor, _, wanted = plate_memory()
    acknowledged: set[int] = set()
    waiting = list(range(1, 121))
    for life in range(4):
        process = start(rig)
        try:
            client = connect(rig)
            sent: dict[int, int] = {}
            kill_after = len(acknowledged) + 25 if life < 3 else 10_000
            while waiting and len(acknowledged) < kill_after:
                for number in [n for n in waiting if n not in sent.values()][:8]:
                    try:
                        key = client.send_submit([result(number)], wanted, descriptor)
                    except BlockingIOError:
                        break
                    sent[key] = number
                for answer in client.receive_ready():
                    assert answer["ok"], answer
                    acknowledged.add(sent[answer["id"]])
                waiting = [n for n in waiting if n not in acknowledged]
                time.sleep(0.001)
        finally:
            process.send_signal(signal.SIGKILL if waiting else signal.SIGTERM)
            process.wait(20.0)
        client.close()
    with Reader(rig.journal) as reader:
        numbers = [row["sequence"] for row in reader.results(Filter())]
        assert verify(reader).findings == []
    assert sorted(numbers) == list(range(1, 121))


def test_a_second_journal_on_one_folder_is_refused_and_may_be_tried_again(
    rig: Rig, process: subprocess.Popen[bytes]
) -> None:
    connect(rig).close()
    done = vqi("serve", "journal", "--config", str(rig.folder / "station.toml"))
    assert done.returncode == 1
    assert str(rig.journal) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_full_disk_refuses_rows_and_ticks_and_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    config = rig.write()
    config.write_text(config.read_text().replace("min_free_mb = 0", "min_free_mb = 1000000000"))
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            answer = client.submit([opened(1)])
            assert not answer["ok"]
            assert answer["is_full"]
            assert "free some" in answer["error"]
            client.send_tick(7)
            wait_until(lambda: any(not answer["ok"] for answer in client.receive_ready()), 5, "no")
            assert client.hello()["last_sequence"] == 0
    finally:
        process.terminate()
        assert process.wait(20.0) == 0


def test_bad_rows_and_garbage_harm_nobody_else(rig: Rig, client: JournalClient) -> None:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    raw.connect(str(journal_path(rig.runtime)))
    raw.send(b"\xff\xfe not json")
    raw.send(b'{"op": "submit", "id": 1, "rows": [{"kind": "result"}]}')
    raw.send(b'{"op": "drop table"}')
    answers = [raw.recv(400_000) for _ in range(3)]
    assert all(b'"ok":false' in answer for answer in answers), answers
    raw.close()
    assert client.submit([change("still there")])["ok"]
    contradiction = [result(1)], [result(1, Verdict.FAIL)]
    assert client.submit(contradiction[0])["ok"]
    refused = client.submit(contradiction[1])
    assert not refused["ok"]
    assert "says otherwise" in refused["error"]


def test_pictures_that_cannot_be_made_are_refused_and_nobody_else(
    rig: Rig, client: JournalClient
) -> None:
    descriptor, _, wanted = plate_memory()
    for number, bad in enumerate(({"rows": "10"}, {"band_rows": 2.5}), 1):
        refused = client.submit([result(number)], wanted | bad, descriptor)
        assert not refused["ok"]
        assert "could not be made" in refused["error"]
        assert client.submit([result(number)], wanted, descriptor)["ok"]
    reading, writing = os.pipe()
    refused = client.submit([result(3)], wanted, reading)
    assert "do not lie in 0 bytes" in refused["error"]
    for one in (descriptor, reading, writing):
        os.close(one)


def test_a_stop_writes_what_waits_and_publishes(
    rig: Rig, process: subprocess.Popen[bytes], client: JournalClient
) -> None:
    descriptor, _, wanted = plate_memory(600, 800)
    for number in range(1, 9):
        client.send_submit([result(number)], wanted, descriptor)
    time.sleep(0.05)
    process.terminate()
    assert process.wait(20.0) == 0
    with pytest.raises(PeerGone):
        client.hello()
    (rig.journal / "journal.db").rename(rig.journal / "away.db")
    with Reader(rig.journal) as reader:
        assert reader.source == "snapshot"
        rows = len(list(reader.results(Filter())))
        (finding,) = verify(reader).findings
        assert "journal.db: there is no such file; only its copy" in finding
    assert rows > 0


def test_a_copy_that_fails_is_said_and_rows_go_on(rig: Rig) -> None:
    rig.journal.mkdir()
    in_the_way = rig.journal / f"{SNAPSHOT}.new"
    in_the_way.mkdir()
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            wait_until(lambda: client.status()["snapshot_problem"], 10.0, "what is wrong")
            assert str(in_the_way) in client.status()["snapshot_problem"]
            assert client.submit([opened(1)])["ok"]
            in_the_way.rmdir()
            wait_until(lambda: not client.status()["snapshot_problem"], 20.0, "a copy")
            assert client.status()["snapshot_age_s"] is not None
    finally:
        process.kill()
        process.wait()


def test_a_copy_that_hangs_does_not_hold_up_the_end(
    rig: Rig, process: subprocess.Popen[bytes], client: JournalClient
) -> None:
    assert client.submit([opened(1)])["ok"]
    wait_until(lambda: copiers(process.pid) != [], 30.0, "a copy on its way")
    for pid in copiers(process.pid):
        os.kill(pid, signal.SIGSTOP)
    process.terminate()
    assert process.wait(14.0) == 0, "its unit kills it after 15 s"
    assert not (rig.journal / f"{SNAPSHOT}.new").exists()
    with contextlib.closing(sqlite3.connect(rig.journal / SNAPSHOT)) as copy:
        assert copy.execute("SELECT count(*) FROM row").fetchone()[0] > 0


def test_a_log_that_is_gone_is_not_begun_anew(rig: Rig) -> None:
    with Store(rig.journal) as store:
        store.append([opened(1), result(1)])
    database, snapshot = rig.journal / DATABASE, rig.journal / SNAPSHOT
    publish(database, snapshot)
    kept = snapshot.read_bytes()
    config = str(rig.folder / "station.toml")
    for lose in (database.unlink, lambda: database.write_bytes(b"")):
        lose()
        said = vqi("serve", "journal", "--config", config)
        assert said.returncode == 78
        assert said.stderr.count("restore that log, see docs/maintenance.md") == 1
        assert snapshot.read_bytes() == kept
    database.unlink()
    assert "restore that log" in vqi("check", "--config", config).stdout
    shutil.copy(snapshot, database)  # as docs/maintenance.md says
    with Store(rig.journal) as store:
        assert store.head()[0] == 2


def test_tables_that_take_no_line_are_said_and_rows_go_on(rig: Rig) -> None:
    with Store(rig.journal), sqlite3.connect(rig.journal / DATABASE) as log:
        log.execute("CREATE UNIQUE INDEX other ON plate (lot)")
    log.close()
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            rows = [opened(1), result(1, lot="L"), opened(2), result(2, lot="L")]
            assert client.submit(rows)["ok"]
            said = client.status()["attentions"]
            assert any("UNIQUE constraint failed: plate.lot" in text for text in said)
            assert client.submit([opened(3)])["ok"]
    finally:
        process.terminate()
        assert process.wait(20.0) == 0
