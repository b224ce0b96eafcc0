"""A journal that the first release wrote, kept for ever: it opens, verifies and answers, before and
after this program wrote into it. Its file is `data/journal-first-release.db.xz`: eight plates of a
settled life, one whose lamp command is missing and one still open."""

from __future__ import annotations

import lzma
import sqlite3
from pathlib import Path

import pytest
from test_qms import opened, result

from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import DATABASE, Store
from station.record import Body, OpenedBody, ResultBody
from station.schema import FIRST, VERSION

FILE = Path(__file__).parent / "data" / "journal-first-release.db.xz"
HEAD = (36, "a03bdb9134e7232193083430ab2c3c6f60b1274021c91b3b68bef16f4f530c6a")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / DATABASE).write_bytes(lzma.decompress(FILE.read_bytes()))
    return tmp_path


def findings(journal: Path) -> list[str]:
    with Reader(journal) as reader:
        return verify(reader).findings


def test_it_is_read_before_anything_of_ours_wrote_into_it(journal: Path) -> None:
    with Reader(journal) as reader:
        rows = list(reader.results(Filter()))
        assert [row["verdict"] for row in rows if row["reason"] is None].count("FAIL") == 2
        assert rows[2]["review"]["reviewer"] == "ada"
        assert reader.of_result("line-1-00000003")[0]["defects"][0]["x_mm"] == 10.5
        found = verify(reader)
    assert (found.rows, found.head) == HEAD
    assert (found.findings, found.results, found.open_plates) == ([], 9, 1)


def test_it_opens_answers_and_is_gone_on_with(journal: Path) -> None:
    with Store(journal) as store:
        assert store.head() == HEAD
        assert store.lag == 0
        assert store.last_sequence() == 10
        assert [OpenedBody.model_validate(row).sequence for row in store.open_plates()] == [10]
        held = store.held_result()
        assert ResultBody.model_validate(held).sequence == 9
        assert len(store.holds()) == len(store.open_attentions()) == 1
        rows: list[Body] = []
        for number in range(11, 20):
            rows += [opened(number), result(number, part_id="LG000003")]
        store.append(rows)
    assert findings(journal) == []
    log = sqlite3.connect(journal / DATABASE)
    plates = log.execute("SELECT count(*), sum(defects) FROM plate").fetchone()
    packed = log.execute("SELECT count(*) FROM row WHERE body ->> '$.context'").fetchone()[0]
    review = log.execute("SELECT reviewed_verdict FROM results WHERE ResultId LIKE '%03'")
    attempt = log.execute("SELECT max(attempt) FROM plate WHERE part_id = 'LG000003'").fetchone()
    assert (plates, review.fetchone()[0], attempt[0]) == ((18, 3), "OK", 10)
    assert packed == 8
    assert log.execute("PRAGMA user_version").fetchone()[0] == VERSION == 1
    log.close()


def test_its_schema_is_the_one_that_we_know_it_by(journal: Path) -> None:
    texts = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    first, known = sqlite3.connect(journal / DATABASE), sqlite3.connect(":memory:")
    for statement in FIRST:
        known.execute(statement)
    said = [
        [(name, " ".join(sql.split())) for name, sql in log.execute(texts)]
        for log in (first, known)
    ]
    assert said[0] == said[1]
    first.close()
