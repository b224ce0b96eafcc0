"""The record: one chain that only grows, and that shows every change."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.log_reader import Filter, Reader
from station.log_verify import verify, verify_tail
from station.qms import (
    DATABASE,
    SNAPSHOT,
    WAL_KEPT_BYTES,
    ContradictionError,
    Store,
    StoreError,
    StoreRefused,
)
from station.record import (
    AcceptBody,
    ActuationBody,
    Body,
    ChangeBody,
    DowntimeBody,
    OpenedBody,
    Provenance,
    ResultBody,
    ReviewBody,
    Verdict,
    result_id,
)
from station.snapshot import give_room_back, publish


def opened(number: int, ordinal: int | None = None) -> OpenedBody:
    return OpenedBody(
        station_id="s",
        result_id=result_id("s", number),
        sequence=number,
        frame_id=number,
        encoder_value=None,
        plate_ordinal=ordinal,
        opened_ns=number,
    )


def result(number: int, verdict: Verdict = Verdict.PASS, **changes: object) -> ResultBody:
    return ResultBody.model_validate(
        {
            "station_id": "s",
            "result_id": result_id("s", number),
            "sequence": number,
            "provenance": Provenance.SIMULATED,
            "is_simulated": True,
            "verdict": verdict,
            "reason": "gap" if verdict is Verdict.UNDECIDED else None,
            "score": 0.25,
            "threshold": 0.5,
            "recipe_id": "r",
            "recipe_version": 1,
            "recipe_sha256": "0" * 64,
            "configuration_sha256": "0" * 64,
            "model_id": "m",
            "model_sha256": "0" * 64,
            "runtime": "t",
            "camera_serial": "c",
            "opened_ns": number,
            "last_scan_line_ns": number,
            "decided_ns": number,
            **changes,
        }
    )


def change(text: str) -> ChangeBody:
    return ChangeBody(station_id="s", what=text, who="somebody")


ROWS = st.lists(
    st.one_of(
        st.builds(opened, st.integers(1, 30)),
        st.builds(result, st.integers(1, 30), st.sampled_from(Verdict)),
        st.builds(change, st.text(max_size=20)),
    ),
    max_size=40,
)


def review(number: int, verdict: Verdict) -> ReviewBody:
    return ReviewBody(
        station_id="s",
        result_id=f"s-{number:08d}",
        verdict=verdict,
        reviewer="ada",
        reason="scratch",
    )


def verified(directory: Path) -> list[str]:
    with Reader(directory) as reader:
        return verify(reader).findings


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups=st.lists(ROWS, max_size=4))
def test_whatever_is_appended_verifies_and_is_there_once(
    groups: list[list[Body]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("log")
    with Store(directory) as store:
        for group in groups:
            try:
                numbers = store.append(group)
            except ContradictionError:
                continue
            assert len(numbers) == len(group)
            head = store.head()
            assert store.append(group) == numbers, "sent again, nothing is written again"
            assert store.head() == head
        with Reader(directory) as reader:
            ids = [row["result_id"] for row in reader.results(Filter())]
            found = verify(reader)
    assert len(set(ids)) == len(ids)
    assert found.findings == []
    assert (found.rows, found.head) == head if groups and found.rows else True


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with Store(tmp_path) as store:
        for number in range(1, 6):
            store.append([opened(number, number)])
            store.append([result(number, plate_ordinal=number)])
    return tmp_path


def tampered(directory: Path, statement: str) -> None:
    """Change the file behind the triggers' back."""
    connection = sqlite3.connect(directory / DATABASE)
    for name in ("row_no_update", "row_no_delete", "row_no_replace"):
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE row SET body = replace(body, 'PASS', 'FAIL') WHERE seq = 4",
        "UPDATE row SET body_sha256 = replace(body_sha256, '0', '1') WHERE seq = 4",
        "UPDATE row SET chain_sha256 = upper(chain_sha256) WHERE seq = 10",
        "UPDATE row SET kind = 'change' WHERE seq = 4",
        "DELETE FROM row WHERE seq = 5",
        "DELETE FROM row WHERE seq = 1",
        "UPDATE row SET seq = 99 WHERE seq = 10",
    ],
)
def test_verify_finds_what_was_changed(directory: Path, statement: str) -> None:
    assert verified(directory) == []
    tampered(directory, statement)
    assert verified(directory) != []


@settings(max_examples=25, deadline=None)
@given(seq=st.integers(1, 10), place=st.integers(0, 10_000), letter=st.characters(codec="ascii"))
def test_one_changed_letter_is_found(
    seq: int, place: int, letter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("log")
    with Store(directory) as store:
        for number in range(1, 6):
            store.append([opened(number), result(number)])
    connection = sqlite3.connect(directory / DATABASE)
    connection.execute("DROP TRIGGER row_no_update")
    body = connection.execute("SELECT body FROM row WHERE seq = ?", (seq,)).fetchone()[0]
    at = place % len(body)
    changed = body[:at] + letter + body[at + 1 :]
    try:
        connection.execute("UPDATE row SET body = ? WHERE seq = ?", (changed, seq))
        connection.commit()
    except sqlite3.Error:
        return  # SQLite itself refuses what is no longer JSON
    finally:
        connection.close()
    try:
        findings = verified(directory)
    except (StoreError, sqlite3.Error, Exception):  # noqa: BLE001  unreadable is found, too
        return
    assert findings.pop(0) == "trigger row_no_update is gone"
    assert (findings != []) == (changed != body)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE row SET body = '{}' WHERE seq = 2",
        "DELETE FROM row WHERE seq = 2",
        (
            "REPLACE INTO row (seq, kind, body, body_sha256, chain_sha256) "
            "VALUES (2, 'change', '{}', '', '')"
        ),
        (
            "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) "
            "VALUES (50, 'change', '{}', '', '')"
        ),
        (
            "INSERT OR REPLACE INTO row (seq, kind, body, body_sha256, chain_sha256) "
            "SELECT 11, kind, body, body_sha256, chain_sha256 FROM row WHERE seq = 2"
        ),
    ],
)
def test_the_file_itself_refuses_edits(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / DATABASE)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_a_row_that_says_otherwise_is_refused_whole(directory: Path) -> None:
    with Store(directory) as store:
        head = store.head()
        with pytest.raises(ContradictionError, match="s-00000003"):
            store.append([change("before"), result(3, Verdict.FAIL)])
        assert store.head() == head
        store.append([change("after")])
    assert verified(directory) == []


def test_a_start_learns_where_the_last_life_ended(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert (store.last_sequence(), store.last_plate_ordinal(), store.open_plates()) == (
            0,
            None,
            [],
        )
        store.append([opened(1, 11), result(1, plate_ordinal=11), opened(2, 12)])
        store.append(
            [
                DowntimeBody(
                    station_id="s",
                    since_at=None,
                    until_at="2026-01-01T00:00:00Z",
                    reason="restart",
                    triggers=3,
                    from_ordinal=12,
                    to_ordinal=15,
                )
            ]
        )
    with Store(tmp_path) as store:
        assert store.last_sequence() == 2
        assert store.last_plate_ordinal() == 15
        assert [body["result_id"] for body in store.open_plates()] == ["s-00000002"]


def test_a_newer_schema_is_refused(directory: Path) -> None:
    connection = sqlite3.connect(directory / DATABASE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer program"):
        Store(directory)


def test_the_snapshot_says_what_the_live_file_says(directory: Path, tmp_path: Path) -> None:
    with Store(directory) as store:
        publish(store.directory / DATABASE, store.directory / SNAPSHOT)
        with Reader(directory) as live:
            assert live.source == "live"
            rows = [tuple(row) for row in live.rows()]
    other = tmp_path / "copy"
    other.mkdir()
    shutil.copy(directory / "journal-snapshot.db", other)
    with Reader(other) as snapshot:
        assert snapshot.source == "snapshot"
        assert "snapshot" in snapshot.source_note
        assert [tuple(row) for row in snapshot.rows()] == rows


def test_the_snapshot_before_stays_whole_for_whoever_has_it(directory: Path) -> None:
    log, snapshot, kept = (directory / name for name in (DATABASE, SNAPSHOT, "kept.db"))
    with Store(directory) as store:
        publish(log, snapshot)
        with contextlib.closing(sqlite3.connect(f"file:{snapshot}?mode=ro", uri=True)) as reader:
            before = reader.execute("SELECT * FROM row ORDER BY seq").fetchall()
            store.append([change("later")])
            publish(log, snapshot)
            reader.execute("PRAGMA cache_size = 0")
            assert reader.execute("SELECT * FROM row ORDER BY seq").fetchall() == before
        kept.hardlink_to(snapshot)
        publish(log, snapshot)
        assert kept.read_bytes() == snapshot.read_bytes()


@pytest.mark.parametrize(
    ("others", "is_emptied"), [(0, True), (1, False)], ids=["nobody has it", "a reader has it"]
)
def test_a_copy_without_a_name_is_emptied(tmp_path: Path, others: int, is_emptied: bool) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"1" * 20_000_000)
    with path.open("rb+") as copy, contextlib.ExitStack() as readers:
        for _ in range(others):
            readers.enter_context(path.open("rb"))
        give_room_back(copy)
        assert os.fstat(copy.fileno()).st_size == 20_000_000, "it has a name"
        path.unlink()
        give_room_back(copy)
        assert (os.fstat(copy.fileno()).st_size < 20_000_000) is is_emptied


def test_reviews_are_rows_of_their_own(directory: Path) -> None:
    with Store(directory) as store:
        store.append([review(2, Verdict.FAIL)])
    with Reader(directory) as reader:
        rows = {row["result_id"]: row for row in reader.results(Filter())}
    assert rows["s-00000002"]["verdict"] == "PASS"
    assert rows["s-00000002"]["review"]["verdict"] == "FAIL"
    assert rows["s-00000001"]["review"] is None


# --- a long log ---------------------------------------------------------------------------------

PLATES = 20_000


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plates of many weeks in one life, as the real writer writes them."""
    folder = tmp_path_factory.mktemp("long")
    with Store(folder) as store:
        store.append([change("start")])
        for first in range(1, PLATES, 500):
            rows: list[Body] = []
            for number in range(first, first + 500):
                rows += [opened(number, number), result(number, plate_ordinal=number)]
                rows.append(acted(number))
            store.append(rows)
    return folder


def acted(number: int) -> ActuationBody:
    return ActuationBody(
        station_id="s",
        result_id=result_id("s", number),
        command="pass",
        is_confirmed=True,
        commanded_ns=number,
        shown_ns=number,
    )


def test_what_a_start_asks_reads_a_small_part_of_a_long_log(long_log: Path) -> None:
    """Steps of SQLite's machine, not seconds: each question costs less than a tenth of a scan."""
    with Store(long_log) as store:
        raw = store._connection.connection.driver_connection
        assert raw is not None
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1000
            return 0

        raw.set_progress_handler(count, 1000)
        for ask, limit in (
            (store.last_sequence, 5_000),
            (store.last_plate_ordinal, 5_000),
            (store.held_result, 5_000),
            (lambda: store.append([opened(PLATES + 1, PLATES + 1)]), 5_000),
            (lambda: store.append([opened(PLATES + 1, PLATES + 1)]), 5_000),
            # These look at each row of the present life once.
            (store.open_plates, 60 * 3 * PLATES),
            (store.results_without_actuation, 60 * 3 * PLATES),
        ):
            steps = 0
            ask()
            assert steps <= limit, (ask, steps)
        raw.set_progress_handler(None, 0)


def test_a_start_looks_only_at_what_the_last_life_left(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([change("start"), opened(1), result(1), opened(2)])
        assert [row["sequence"] for row in store.open_plates()] == [2]
        assert [row["sequence"] for row in store.results_without_actuation()] == [1]
        store.append([result(2), acted(1), acted(2), change("start"), opened(3)])
        assert [row["sequence"] for row in store.open_plates()] == [3]
        assert store.results_without_actuation() == []


def test_a_life_that_dies_right_after_its_start_row_leaves_nothing_unsettled(
    tmp_path: Path,
) -> None:
    """Interrupted results stand before the `start` row, their lamp commands come after it."""
    with Store(tmp_path) as store:
        store.append([change("start"), opened(1)])
        store.append([result(1, Verdict.UNDECIDED), change("start")])
        assert [row["sequence"] for row in store.results_without_actuation()] == [1]
        store.append([acted(1), change("start")])
        assert store.results_without_actuation() == []


def test_plates_on_their_way_to_accept_are_found_where_there_was_one(tmp_path: Path) -> None:
    def start(has_accept: bool) -> ChangeBody:
        detail = {"has_accept": "yes"} if has_accept else {}
        return ChangeBody(station_id="s", what="start", who="station", detail=detail)

    def accept(number: int) -> AcceptBody:
        return AcceptBody(
            station_id="s",
            result_id=result_id("s", number),
            command="withheld",
            is_confirmed=None,
            commanded_ns=None,
            shown_ns=None,
        )

    with Store(tmp_path) as store:
        store.append([start(False), result(1), start(True), result(2), result(3, Verdict.FAIL)])
        store.append([accept(2), result(4)])
        assert store.passes_without_accept() == [result_id("s", 4)]
        for _ in range(5):
            store.append([start(True)])  # lives that end before they write anything
        assert store.passes_without_accept() == [result_id("s", 4)]
        store.append([accept(4), result(5), start(False), result(6)])
        assert store.passes_without_accept() == []


def test_the_newest_fail_is_held_until_acknowledged(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.held_result() is None
        store.append([result(1, Verdict.FAIL), result(2), result(3, Verdict.UNDECIDED), result(4)])
        held = store.held_result()
        assert held is not None
        assert held["sequence"] == 3
        store.append([change("ack"), result(5)])
        assert store.held_result() is None
        store.append([result(6, Verdict.FAIL)])
        assert store.held_result() is not None
        store.append([review(5, Verdict.FAIL)])
        held = store.held_result()
        assert held is not None
        assert (held["kind"], held["sequence"]) == ("result", 6)


def test_ordinals_count_from_where_the_counter_began_anew(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([opened(1, 10_000)])
        assert store.last_plate_ordinal() == 10_000
        store.append([downtime(to_ordinal=210, is_counter_new=True), opened(2, 211)])
        assert store.last_plate_ordinal() == 211


def downtime(**changes: object) -> DowntimeBody:
    return DowntimeBody.model_validate(
        {
            "station_id": "s",
            "since_at": None,
            "until_at": "2026-01-01T00:00:00Z",
            "reason": "start",
            "triggers": None,
            **changes,
        }
    )


def test_a_start_refuses_a_log_whose_tail_was_changed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([change(str(number)) for number in range(300)])
    with sqlite3.connect(tmp_path / DATABASE) as hostile:
        hostile.execute("DROP TRIGGER row_no_update")
        hostile.execute("UPDATE row SET body = replace(body, '298', '999') WHERE seq = 299")
    hostile.close()
    with pytest.raises(StoreError, match="row 299 is not the one that was written"):
        Store(tmp_path)


def test_a_lock_of_another_tool_is_not_the_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([change("before")])
        other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreRefused, match="another tool holds its write lock"):
            store.append([change("meanwhile")])
        other.execute("ROLLBACK")
        other.close()
        store.append([change("afterwards")])
    with Reader(tmp_path) as reader:
        assert [row["what"] for row in reader.bodies("change")] == ["before", "afterwards"]
        assert verify(reader).findings == []


def test_a_snapshot_is_finished_while_rows_are_written(long_log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "live"
    shutil.copytree(long_log, folder)
    is_done = threading.Event()
    with Store(folder) as store:

        def write() -> None:
            number = 0
            while not is_done.wait(0.01):
                number += 1
                store.append([change(f"{number}")])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                publish(folder / DATABASE, folder / SNAPSHOT)
        finally:
            is_done.set()
            writer.join()
    with Reader(folder) as reader:
        assert verify(reader, with_images=False).findings == []


@pytest.mark.parametrize(
    "read",
    [
        lambda reader: reader.rows(),
        lambda reader: reader.results(Filter()),
        lambda reader: reader.bodies("result"),
    ],
)
def test_a_slow_reader_of_the_whole_log_does_not_hold_its_write_ahead_file(
    long_log: Path, tmp_path: Path, read: Callable[[Reader], Iterator[Any]]
) -> None:
    """I8: who exports into a terminal that nobody scrolls keeps the file from no new beginning."""
    folder = tmp_path / "live"
    shutil.copytree(long_log, folder)
    with Store(folder) as store, Reader(folder) as reader:
        rows = read(reader)
        next(rows)
        store.append([change("meanwhile")])
        checkpoint = store._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        assert checkpoint.one()[0] == 0, "it was busy"
        assert (folder / f"{DATABASE}-wal").stat().st_size == 0
        assert len(list(rows)) >= PLATES - 1


def test_the_write_ahead_file_is_cut_once_who_held_it_is_gone(tmp_path: Path) -> None:
    """I8: one long reading does not leave a file of its size for good."""
    wal = tmp_path / f"{DATABASE}-wal"

    def write(store: Store) -> None:
        store.append([change("x" * 40_000) for _ in range(20)])

    with Store(tmp_path) as store:
        write(store)
        with contextlib.closing(
            sqlite3.connect(f"file:{tmp_path / DATABASE}?mode=ro", uri=True)
        ) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM row").fetchone()
            while wal.stat().st_size <= 2 * WAL_KEPT_BYTES:
                write(store)
        for _ in range(3):
            write(store)
        assert wal.stat().st_size <= WAL_KEPT_BYTES


def test_whole_and_filtered_reads_are_in_order_over_pages(long_log: Path) -> None:
    with Reader(long_log) as reader:
        assert [row.seq for row in reader.rows()] == list(range(1, reader.last_seq() + 1))
        numbers = [row["sequence"] for row in reader.results(Filter(), newest_first=True)]
        assert numbers == list(range(PLATES, 0, -1))
        few = reader.results(Filter(verdict="PASS"), limit=700)
        assert [row["sequence"] for row in few] == list(range(1, 701))
        assert list(reader.results(Filter(verdict="FAIL"))) == []


def test_the_tail_is_verified_in_part_of_a_long_log(long_log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    shutil.copytree(long_log, folder)
    with Reader(folder) as reader:
        last = reader.last_seq()
        report = verify_tail(reader)
        assert report.findings == []
        assert report.head == verify(reader, with_images=False).head
        assert report.rows < last
    outside, inside = last - report.rows - 1, last - report.rows + 1
    seqs = f"({outside}, {inside}, {last})"
    tampered(folder, f"UPDATE row SET body_sha256 = 'x' WHERE seq IN {seqs}")
    with Reader(folder) as reader:
        found = [text for text in verify_tail(reader).findings if "trigger" not in text]
    assert found == [f"row {seq} is not the one that was written" for seq in (inside, last)]


def test_the_tail_of_a_short_log_is_all_of_it(directory: Path) -> None:
    with Reader(directory) as reader:
        report = verify_tail(reader)
        assert (report.rows, report.findings) == (reader.last_seq(), [])
    tampered(directory, "UPDATE row SET kind = 'change' WHERE seq = 1")
    with Reader(directory) as reader:
        assert verify_tail(reader).findings[-1] == "row 1 is not the one that was written"
