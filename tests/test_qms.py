"""The record: one chain that only grows, and that shows every change."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.qms import (
    DATABASE,
    ContradictionError,
    Filter,
    Reader,
    Store,
    StoreError,
    verify,
)
from station.record import (
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
        store.publish_snapshot()
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


def test_reviews_are_rows_of_their_own(directory: Path) -> None:
    with Store(directory) as store:
        store.append(
            [
                ReviewBody(
                    station_id="s",
                    result_id="s-00000002",
                    verdict=Verdict.FAIL,
                    reviewer="ada",
                    reason="scratch",
                )
            ]
        )
    with Reader(directory) as reader:
        rows = {row["result_id"]: row for row in reader.results(Filter())}
    assert rows["s-00000002"]["verdict"] == "PASS"
    assert rows["s-00000002"]["review"]["verdict"] == "FAIL"
    assert rows["s-00000001"]["review"] is None
